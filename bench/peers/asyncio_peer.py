"""What bench/compare.py compares pyasync with: asyncio; --uvloop: uvloop; --aio: pyasync.aio.

One text for all of them, written as their documentation advises for speed: an `asyncio.Protocol`,
no coroutine and no stream for a connection, but where the name of the kind says so. See peer.py for
the command line.
"""

import asyncio
import contextlib
import importlib
import socket
import sys
import time

import peer


async def serve(protocol, **options):
    loop = asyncio.get_running_loop()
    server = await loop.create_server(protocol, peer.HOST, 0, backlog=socket.SOMAXCONN, **options)
    peer.listening(server.sockets[0].getsockname())


class EchoProtocol(asyncio.Protocol):
    __slots__ = ("transport",)

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.transport.write(data)


class DelayProtocol(EchoProtocol):
    """One connection: waits, answers, closes."""

    __slots__ = ("delay",)

    def __init__(self, delay):
        self.delay = delay

    def data_received(self, data):
        if self.delay:
            asyncio.get_running_loop().call_later(self.delay, self.respond)
        else:
            self.respond()

    def respond(self):
        if not self.transport.is_closing():
            self.transport.write(peer.RESPONSE)
            self.transport.close()


async def http(delay):
    await serve(lambda: DelayProtocol(delay))


async def echo():
    await serve(EchoProtocol)


# The same two servers with streams, and the echo with a socket's own calls


async def serve_streams(handle):
    server = await asyncio.start_server(handle, peer.HOST, 0, backlog=socket.SOMAXCONN)
    peer.listening(server.sockets[0].getsockname())


async def http_streams():
    async def handle(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(peer.RESPONSE)
        await writer.drain()
        writer.close()

    await serve_streams(handle)


async def echo_streams():
    async def handle(reader, writer):
        # A client that ends while an answer is on its way resets the connection.
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(peer.BUFFER):
                writer.write(data)
                await writer.drain()
        writer.close()

    await serve_streams(handle)


async def echo_sock():
    async def handle(sock):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with sock, contextlib.suppress(ConnectionError):
            while data := await loop.sock_recv(sock, peer.BUFFER):
                await loop.sock_sendall(sock, data)

    loop = asyncio.get_running_loop()
    with socket.create_server((peer.HOST, 0), backlog=socket.SOMAXCONN) as listener:
        listener.setblocking(False)
        peer.listening(listener.getsockname())
        while True:
            sock, _ = await loop.sock_accept(listener)
            begin(handle(sock))


TASKS = set()


def begin(coroutine):
    """Run a coroutine beside the others."""
    task = asyncio.get_running_loop().create_task(coroutine)
    TASKS.add(task)
    task.add_done_callback(TASKS.discard)


# Servers of others, which keep their connections


async def uvicorn(http):
    with peer.needed():
        import uvicorn

        __import__(http)

    async def application(scope, receive, send):
        headers = [(b"content-type", b"text/plain"), (b"content-length", b"9")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"omglolwtf"})

    listener = socket.create_server((peer.HOST, 0), backlog=socket.SOMAXCONN)
    peer.listening(listener.getsockname())
    quiet = {"lifespan": "off", "log_level": "critical", "access_log": False}
    config = uvicorn.Config(application, loop="none", http=http, **quiet)
    await uvicorn.Server(config).serve(sockets=[listener])


async def aiohttp():
    with peer.needed():
        from aiohttp import web

    async def answer(request):
        return web.Response(text="omglolwtf")

    application = web.Application()
    application.router.add_get("/", answer)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, peer.HOST, 0, backlog=socket.SOMAXCONN).start()
    peer.listening(runner.addresses[0])


async def tls(certificate, key):
    await serve(EchoProtocol, ssl=peer.server_context(certificate, key))


tls_idle = tls


async def tls_source(certificate, key, size):
    class SourceProtocol(asyncio.Protocol):
        def connection_made(self, transport):
            transport.write(data)
            transport.close()

    data = b"x" * size
    await serve(SourceProtocol, ssl=peer.server_context(certificate, key))


class AcceptProtocol(asyncio.Protocol):
    __slots__ = ()

    def connection_made(self, transport):
        transport.close()


async def accept():
    await serve(AcceptProtocol)


class UdpProtocol(asyncio.DatagramProtocol):
    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, data, address):
        self.transport.sendto(data, address)


async def udp():
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(UdpProtocol, local_addr=(peer.HOST, 0))
    peer.listening(transport.get_extra_info("sockname"))


async def timers(mode, count, spread):
    loop = asyncio.get_running_loop()
    handles = [None] * count
    measured = peer.Timers(mode, count, spread)
    on_timer = measured.on_timer
    for i, seconds in enumerate(measured.deadlines):
        handles[i] = loop.call_later(seconds, on_timer)
    if mode == "cancel":
        for handle in handles:
            handle.cancel()
    if mode == "fire":
        await asyncio.Event().wait()
    await asyncio.sleep(0)
    measured.end()


# What a loop does without a socket


AT_ONCE = 1_000


async def chain(loop, count):
    """Each callback asks for the next one."""
    left, done = count, loop.create_future()

    def step():
        nonlocal left
        left -= 1
        if left:
            loop.call_soon(step)
        else:
            done.set_result(None)

    loop.call_soon(step)
    await done


async def wide(loop, count):
    """Many callbacks at once."""
    await at_once(loop.call_soon, count)


async def threadsafe(loop, count):
    """Many callbacks at once, each of which must wake a loop that sleeps."""
    await at_once(loop.call_soon_threadsafe, count)


async def at_once(call, count):
    for _ in range(count // AT_ONCE):
        for _ in range(AT_ONCE):
            call(nothing)
        await asyncio.sleep(0)


def nothing():
    pass


async def futures(loop, count):
    """A coroutine awaits one future after the other; a callback gives each its result."""
    for _ in range(count):
        future = loop.create_future()
        loop.call_soon(future.set_result, None)
        await future


async def tasks(loop, count):
    """A coroutine makes one task after the other, and awaits it."""
    for _ in range(count):
        await loop.create_task(just_return())


async def just_return():
    pass


async def steps(kind, count):
    loop, act = asyncio.get_running_loop(), globals()[kind]
    await act(loop, count)  # to warm up: PyPy compiles meanwhile
    cpu = time.process_time()
    await act(loop, count)
    peer.result(cpu_seconds=(time.process_time() - cpu) / count)


async def connect(port, connections, seconds):
    class ConnectProtocol(asyncio.Protocol):
        def connection_lost(self, error):
            pace.one_more()
            start()

    def start():
        begin(loop.create_connection(ConnectProtocol, peer.HOST, port))

    loop, pace = asyncio.get_running_loop(), peer.Pace(seconds)
    for _ in range(connections):
        start()


async def wakeups(seconds):
    loop = asyncio.get_running_loop()
    wakeups = peer.Wakeups(seconds)
    wakeups.start(lambda: loop.call_soon_threadsafe(wakeups.answer))


def lines(port, when, limit):
    read = read_at_end if when == "at_end" else read_at_once
    peer.measure_lines(lambda: asyncio.run(read(port, limit)))


async def read_at_once(port, limit):
    reader, writer = await asyncio.open_connection(peer.HOST, port, limit=limit)
    lines = await count_lines(reader)
    writer.close()
    return lines


async def read_at_end(port, limit):
    # open_connection's reader would stop reading from the socket at its limit.
    reader, ended = asyncio.StreamReader(), asyncio.Event()

    class Filler(asyncio.Protocol):
        def data_received(self, data):
            reader.feed_data(data)

        def eof_received(self):
            reader.feed_eof()
            ended.set()

    await asyncio.get_running_loop().create_connection(Filler, peer.HOST, port)
    await ended.wait()
    return await count_lines(reader)


async def count_lines(reader):
    lines = 0
    while await reader.readline():
        lines += 1
    return lines


async def forever(coroutine):
    """Run a kind until it, or a signal, ends the process."""
    await coroutine
    await asyncio.Event().wait()


if __name__ == "__main__":
    words = sys.argv[1:]
    if words[0] in ("--uvloop", "--aio"):
        importlib.import_module(
            {"--uvloop": "uvloop", "--aio": "pyasync.aio"}[words.pop(0)]
        ).install()
    if coroutine := peer.main(globals(), words):
        asyncio.run(forever(coroutine))
