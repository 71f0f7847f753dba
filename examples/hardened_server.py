"""A server that strangers may reach: it answers each line, within limits (docs/guides/security.md).

    python examples/hardened_server.py --port 7000
    python examples/tcp_client.py 127.0.0.1 7000 hello

Each limit is an option. With --certificate it speaks TLS.

SIGTERM ends it when its clients have been told, or after five seconds. SIGINT (Ctrl-C) ends it at
once.
"""

import argparse
import collections
import signal
import ssl
import sys

import pyasync

GRACE = 5.0  # seconds that clients have to take what waits for them, at SIGTERM


class Client:
    """What the server keeps of a connection."""

    __slots__ = ("address", "deadline", "rest")

    def __init__(self, address):
        self.address = address
        self.rest = b""  # the beginning of a line whose end has not come
        self.deadline = None  # the timer until which it must come


class LineServer:
    """Answers lines, and closes connections that go beyond the limits."""

    def __init__(self, limits):
        self.limits = limits
        self.connections = collections.Counter()  # by address

    def on_connect(self, socket):
        try:
            address = socket.peername[0]
        except OSError:  # the peer has reset the connection already
            socket.close(force=True)
            return
        if self.connections[address] >= self.limits.per_address:
            socket.close(force=True)  # a reset: nothing of the connection stays, here or in TCP
            return
        self.connections[address] += 1
        socket.data = Client(address)

    def on_data(self, socket, data):
        client = socket.data
        *lines, client.rest = (client.rest + data).split(b"\n")
        if lines:
            self.stop_waiting(client)
        if max(map(len, [*lines, client.rest])) > self.limits.line_length:
            self.refuse(socket, b"error: the line is too long\n")
            return
        if lines:
            socket.write(b"".join(line.upper() + b"\n" for line in lines))
        # The read timeout begins anew with each byte. A client that sends one now and then would
        # stay for ever: the whole line has a limit.
        if client.rest and client.deadline is None:
            client.deadline = pyasync.delay(
                lambda: self.refuse(socket, b"error: too slow\n"), time=self.limits.line_time
            )

    def on_pressure(self, socket, paused):
        # A client that does not read its answers gets no more of them: what it sends waits in the
        # kernel, then at the client. The write timeout ends it.
        if paused:
            socket.disable(read=True)
        else:
            socket.enable(read=True)

    def on_event(self, event):
        # The end of a connection, or an error of it: pyasync closes it. Nothing is logged, because
        # a peer can cause as many as it likes; stats() counts connections and failed accepts.
        socket = getattr(event, "socket", None)
        if socket is not None:
            self.forget(socket)
        if isinstance(event, pyasync.SocketAcceptError):  # at most one a second
            print("cannot accept:", event, file=sys.stderr)

    def refuse(self, socket, why):
        self.forget(socket)
        socket.write(why)
        socket.close()

    def end(self, server):
        for socket in server.connections:
            self.refuse(socket, b"error: the server ends\n")
        server.shutdown(GRACE, lambda server: pyasync.exit_event_loop())

    def forget(self, socket):
        client, socket.data = getattr(socket, "data", None), None
        if client is not None:
            self.stop_waiting(client)
            self.connections[client.address] -= 1
            self.connections += collections.Counter()  # drops the addresses with none

    @staticmethod
    def stop_waiting(client):
        if client.deadline is not None:
            client.deadline.free()
            client.deadline = None


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen at (%(default)s)")
    add("--port", type=int, default=7000, help="port; 0: any that is free (%(default)s)")
    add("--certificate", help="a file with a certificate and its key, in PEM")
    add("--key", help="a file with its key, if that is not in the same")
    add("--connections", type=int, default=1000, help="open at once (%(default)s)")
    add("--per-address", type=int, default=50, help="of them from one address (%(default)s)")
    add("--line-length", type=int, default=1024, help="bytes in a line (%(default)s)")
    add("--line-time", type=float, default=10.0, help="seconds for a line (%(default)s)")
    add("--idle-time", type=float, default=60.0, help="seconds without input (%(default)s)")
    add("--write-time", type=float, default=10.0,
        help="seconds in which a client takes nothing of its answers (%(default)s)")  # fmt: skip
    limits = parser.parse_args()
    for name in ("connections", "per_address", "line_length"):
        if not 1 <= getattr(limits, name) < 1 << 31:
            parser.error(f"--{name.replace('_', '-')} must be from 1 to 2,147,483,647")
    for name in ("line_time", "idle_time", "write_time"):
        if not 0 < getattr(limits, name) <= 1e6:  # nor is NaN
            parser.error(
                f"--{name.replace('_', '-')} must be over 0, and 1,000,000 seconds at most"
            )
    if limits.key and not limits.certificate:
        parser.error("--key needs a --certificate")

    lines = LineServer(limits)
    options = {
        "event_cb": lines.on_event,
        "connect_cb": lines.on_connect,
        "pressure_cb": lines.on_pressure,
        "max_connections": limits.connections,
        "read_timeout": limits.idle_time,
        "write_timeout": limits.write_time,
    }
    # Without catch_app_errors a fault of ours that one peer finds would end the server for all.
    with pyasync.event_loop(catch_app_errors=True):
        pyasync.signal_handler(signal.SIGINT, lambda signo: pyasync.exit_event_loop())
        pyasync.signal_handler(signal.SIGTERM, lambda signo: lines.end(server))
        serve = pyasync.tcp_server
        try:
            if limits.certificate:
                context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
                context.minimum_version = ssl.TLSVersion.TLSv1_2
                try:
                    context.load_cert_chain(limits.certificate, limits.key)
                except OSError as error:  # ssl.SSLError is one
                    sys.exit(f"cannot use the certificate {limits.certificate}: {error}")
                options.update(ssl_context=context, handshake_timeout=limits.line_time)
                serve = pyasync.tcp_ssl_server
            server = serve(limits.host, limits.port, lines.on_data, **options)
        except (OSError, ValueError) as error:
            sys.exit(f"cannot listen: {error}")
        host, port = server.address[:2]
        print(f"listening at {host} port {port}", flush=True)


if __name__ == "__main__":
    main()
