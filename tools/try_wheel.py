"""Try an installed pyasync: see `make wheel-test`."""

import os
import platform
import sys
import tempfile
import time

begun = time.perf_counter()
import pyasync  # noqa: E402

imported = time.perf_counter() - begun
DATA = os.urandom(300_000)
failed = []
done = []


def on_event(event):
    if isinstance(event, pyasync.EventError):
        failed.append(repr(event))


def send_and_receive(server, connect, *where):
    """Send DATA to a server that sends it back."""
    received = []

    def on_data(socket, data):
        received.append(data)
        if sum(map(len, received)) == len(DATA):
            assert b"".join(received) == DATA
            done.append(type(server).__name__)
            socket.close()
            server.close()

    connect(*where, on_data, data=DATA, event_cb=on_event)


def answer(socket, data):
    socket.write(data)


def start():
    server = pyasync.tcp_server("127.0.0.1", 0, answer, event_cb=on_event)
    send_and_receive(server, pyasync.tcp_connect, *server.address[:2])
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
assert sorted(done) == ["PipeServer", "TcpServer", "dns", "fs", "spawn", "timer"], done
print(
    f"{platform.machine()}, Python {platform.python_version()}, libuv {pyasync.libuv_version()}: "
    f"all is well; the import took {imported:.2f} s"
)
