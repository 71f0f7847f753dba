"""Try an installed pyasync: see `make wheel-test`."""

import os
import platform
import ssl
import sys
import tempfile
import time

begun = time.perf_counter()
import pyasync  # noqa: E402

imported = time.perf_counter() - begun
DATA = os.urandom(300_000)
#: Of localhost, until 2126, for this program only: a bare system cannot make one.
CERTIFICATE = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgRDUa8lkZWWdK5txy
k0ym3gXOXi4rS2aG/Sksd1wV6vmhRANCAAS25iBRrGh+F14yOn4/JUZvBMt0V92z
0KB5mRUOvBKMVd1z4DxoR9yjMA63GrlGZRGJjVPeK+XsCiPeDz9WasKU
-----END PRIVATE KEY-----
-----BEGIN CERTIFICATE-----
MIIBlDCCATugAwIBAgIUF4/xFhADpGV7XH9Ww4ZRd8iI3L8wCgYIKoZIzj0EAwIw
FDESMBAGA1UEAwwJbG9jYWxob3N0MCAXDTI2MTEyNjE2MzM0MVoYDzIxMjYxMTAy
MTYzMzQxWjAUMRIwEAYDVQQDDAlsb2NhbGhvc3QwWTATBgcqhkjOPQIBBggqhkjO
PQMBBwNCAAS25iBRrGh+F14yOn4/JUZvBMt0V92z0KB5mRUOvBKMVd1z4DxoR9yj
MA63GrlGZRGJjVPeK+XsCiPeDz9WasKUo2kwZzAdBgNVHQ4EFgQUST0BZwyC/d52
qCslZirk7Amc7XQwHwYDVR0jBBgwFoAUST0BZwyC/d52qCslZirk7Amc7XQwDwYD
VR0TAQH/BAUwAwEB/zAUBgNVHREEDTALgglsb2NhbGhvc3QwCgYIKoZIzj0EAwID
RwAwRAIgPtLQDgx0TbuHfHvEtStxI4i5NZXmJIW6YGlJQSvs+rMCIAGy0fBmdwMr
UbEyXno2PJHuv/TYOcnBZvYCCzUpzGAp
-----END CERTIFICATE-----
"""
failed = []
done = []


def on_event(event):
    if isinstance(event, pyasync.EventError):
        failed.append(repr(event))


def send_and_receive(server, connect, *where, **options):
    """Send DATA to a server that sends it back."""
    received = []

    def on_data(socket, data):
        received.append(data)
        if sum(map(len, received)) == len(DATA):
            assert b"".join(received) == DATA
            done.append(type(socket).__name__)
            socket.close()
            server.close()

    connect(*where, on_data, data=DATA, event_cb=on_event, **options)


def answer(socket, data):
    socket.write(data)


def start():
    server = pyasync.tcp_server("127.0.0.1", 0, answer, event_cb=on_event)
    send_and_receive(server, pyasync.tcp_connect, *server.address[:2])
    path = os.path.join(folder, "certificate.pem")
    with open(path, "w") as file:
        file.write(CERTIFICATE)
    server = pyasync.tcp_ssl_server("127.0.0.1", 0, answer, certificate=path, event_cb=on_event)
    port = server.address[1]
    context = ssl.create_default_context(cafile=path)
    send_and_receive(server, pyasync.tcp_ssl_connect, "localhost", port, ssl_context=context)
    path = os.path.join(folder, "pipe")
    server = pyasync.pipe_server(path, answer, event_cb=on_event)
    send_and_receive(server, pyasync.pipe_connect, path)
    pyasync.dns_lookup("localhost", lambda *found: done.append("dns"), event_cb=on_event)
    pyasync.delay(lambda: done.append("timer"), time=0.01)
    pyasync.fs.stat("/", lambda status: done.append("fs"), event_cb=on_event)
    pyasync.spawn(sys.executable, ["-c", ""], exit_cb=lambda *told: done.append("spawn"))


with tempfile.TemporaryDirectory() as folder:
    pyasync.start_event_loop(start)
assert not failed, failed
sockets = ["PipeSocket", "SslSocket", "TcpSocket"]
assert sorted(done) == [*sockets, "dns", "fs", "spawn", "timer"], done
python = f"{platform.python_implementation()} {platform.python_version()}"
print(
    f"{platform.machine()}, {python}, libuv {pyasync.libuv_version()}: "
    f"all is well; the import took {imported:.2f} s"
)
