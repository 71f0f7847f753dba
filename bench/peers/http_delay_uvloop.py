"""The server of bench/http_delay.py on uvloop, or with --asyncio on plain asyncio.

Written as their documentation advises for speed: an `asyncio.Protocol`, no coroutine and no
stream for a connection. The first SIGINT or SIGTERM ends it; it does not wait for connections
that are open, since keeping account of them would cost it what the other servers count in C.
"""

import argparse
import asyncio
import resource
import signal
import socket
import threading

RESPONSE = (
    b"HTTP/1.1 200 OK\r\n"
    b"Date: Wed, 03 Oct 2012 23:43:10 GMT\r\n"
    b"Content-Type: text/plain\r\n"
    b"Content-Length: 9\r\n"
    b"\r\n"
    b"omglolwtf"
)


class DelayProtocol(asyncio.Protocol):
    """One connection: waits, answers, closes."""

    __slots__ = ("delay", "loop", "transport")

    def __init__(self, loop, delay):
        self.loop = loop
        self.delay = delay

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        if self.delay:
            self.loop.call_later(self.delay, self.respond)
        else:
            self.respond()

    def respond(self):
        if not self.transport.is_closing():
            self.transport.write(RESPONSE)
            self.transport.close()


async def serve(port, delay):
    """Answer every request after `delay` seconds, until a signal."""
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for signo in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signo, stopped.set)
    server = await loop.create_server(
        lambda: DelayProtocol(loop, delay), "127.0.0.1", port, backlog=socket.SOMAXCONN
    )
    host, port = server.sockets[0].getsockname()
    print(f"listening on {host}:{port}", flush=True)
    await stopped.wait()
    server.close()


def spin():
    """Keep the interpreter busy, as a thread of the application may."""
    while True:
        pass


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("port", type=int)
    parser.add_argument("delay", type=float, help="seconds before the answer")
    parser.add_argument("--asyncio", action="store_true", help="plain asyncio, not uvloop")
    parser.add_argument("--busy", action="store_true", help="one busy Python thread beside")
    options = parser.parse_args()

    hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard_limit, hard_limit))
    if options.busy:
        threading.Thread(target=spin, daemon=True).start()
    if not options.asyncio:
        import uvloop

        uvloop.install()
    asyncio.run(serve(options.port, options.delay))


if __name__ == "__main__":
    main()
