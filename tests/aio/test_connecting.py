"""Connecting by create_connection, and numeric lookups."""

import asyncio
import concurrent.futures
import errno
import gc
import os
import resource
import socket

import pytest
from peers import PATIENCE, unused_port

import pyasync.aio


@pytest.fixture(params=["127.0.0.1", "::1"])
def server(request):
    family = socket.AF_INET6 if ":" in request.param else socket.AF_INET
    with socket.create_server((request.param, 0), family=family) as server:
        server.settimeout(PATIENCE)
        yield server


def connections(loop):
    return loop.stats().handles["tcp"]


async def gone(loop):
    while connections(loop):
        await asyncio.sleep(0.001)


@pytest.mark.parametrize("words", ["alone", "local_addr", "happy_eyeballs_delay", "sock", "family"])
async def test_a_connection_has_its_names_and_carries_data(loop, server, words):
    host, port = server.getsockname()[:2]
    options = {
        "local_addr": {"local_addr": (host, 0)},
        "happy_eyeballs_delay": {"happy_eyeballs_delay": 0.25, "interleave": 1},
        "family": {"family": server.family, "proto": socket.IPPROTO_TCP},
    }.get(words, {})
    if words == "sock":
        sock = socket.socket(server.family, proto=socket.IPPROTO_TCP)
        sock.setblocking(False)
        await loop.sock_connect(sock, (host, port))
        reader, writer = await asyncio.open_connection(sock=sock)
    else:
        reader, writer = await asyncio.open_connection(host, port, **options)
    theirs, address = server.accept()
    with theirs:
        assert writer.get_extra_info("sockname") == address
        assert writer.get_extra_info("peername") == server.getsockname()
        ours = writer.get_extra_info("socket")
        assert ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert ours.family == server.family
        writer.write(b"ping")
        await writer.drain()
        theirs.setblocking(False)
        assert await loop.sock_recv(theirs, 9) == b"ping"
        theirs.send(b"pong")
        assert await reader.read(9) == b"pong"
        writer.close()
        await writer.wait_closed()
        assert await loop.sock_recv(theirs, 9) == b""


@pytest.mark.parametrize("ending", ["data", "end", "reset"])
async def test_what_comes_before_the_protocol_exists_reaches_it(loop, server, ending):
    host, port = server.getsockname()[:2]
    calls, lost = [], loop.create_future()

    class Protocol(asyncio.Protocol):
        def connection_made(self, transport):
            calls.append("made")

        def data_received(self, data):
            calls.append(data)
            if ending == "data":
                lost.set_result(None)

        def connection_lost(self, error):
            calls.append(type(error))
            if not lost.done():
                lost.set_result(None)

    connecting = loop._connect_sock([], (server.family, socket.SOCK_STREAM, 0, "", (host, port)))
    sock = await connecting
    theirs, _ = server.accept()
    with theirs:
        theirs.send(b"early")
        if ending == "reset":
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1" + bytes(7))
        if ending != "data":
            theirs.close()
        await asyncio.sleep(0.05)  # the loop reads it meanwhile
        transport, _ = await loop._create_connection_transport(sock, Protocol, None, "")
        await lost
        transport.abort()
    expected = {"data": [], "end": [type(None)], "reset": [ConnectionResetError]}[ending]
    assert calls == ["made", b"early", *expected] or (
        ending == "reset" and calls == ["made", *expected]  # the kernel has dropped the data
    )
    await gone(loop)


async def test_a_refusal_names_the_address(loop):
    with unused_port() as port:
        with pytest.raises(ConnectionRefusedError, match=f"Connect call failed .*{port}"):
            await loop.create_connection(asyncio.Protocol, "127.0.0.1", port)
        await gone(loop)


async def test_a_socket_that_cannot_be_made_is_the_systems_error(loop):
    fd = os.dup(0)  # all numbers below are in use
    os.close(fd)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (fd, limits[1]))
    try:
        with pytest.raises(OSError, match=os.strerror(errno.EMFILE)) as caught:
            await loop.create_connection(asyncio.Protocol, "127.0.0.1", 1)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert caught.value.errno == errno.EMFILE
    await gone(loop)


@pytest.mark.parametrize("delay", [None, 0.05])
async def test_the_next_address_is_tried(loop, delay):
    with unused_port() as port, socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()

        async def lookup(*arguments, **options):
            bad = ("127.0.0.1", port)
            kind = (socket.AF_INET, socket.SOCK_STREAM, 0, "")
            return [(*kind, bad), (*kind, address)]

        loop.getaddrinfo = lookup
        transport, _ = await loop.create_connection(
            asyncio.Protocol, "a.name", 1, happy_eyeballs_delay=delay
        )
        assert transport.get_extra_info("peername") == address
        assert connections(loop) == 1
        transport.abort()
        await gone(loop)


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::1", "::"])
async def test_the_peers_name_is_the_kernels_also_after_the_end(loop, host):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    if ":" in host and not socket.has_dualstack_ipv6():
        pytest.skip("there is no IPv6")
    here = "::1" if ":" in host else "127.0.0.1"
    with socket.create_server((here, 0), family=family) as server:
        port = server.getsockname()[1]
        transport, _ = await loop.create_connection(asyncio.Protocol, host, port)
        name = transport.get_extra_info("socket").getpeername()
        assert name == server.getsockname()
        transport.abort()
        await gone(loop)
        assert transport.get_extra_info("peername") == name


@pytest.mark.parametrize("steps", range(5))
async def test_a_cancelled_connection_leaves_nothing(loop, steps):
    with socket.create_server(("127.0.0.1", 0)) as server:
        task = asyncio.ensure_future(
            loop.create_connection(asyncio.Protocol, *server.getsockname())
        )
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        try:
            transport, _ = await task
        except asyncio.CancelledError:
            pass
        else:
            transport.abort()
        del task
        gc.collect()
        await gone(loop)


async def test_a_factory_that_raises_leaves_nothing(loop):
    def fail():
        raise ZeroDivisionError

    with socket.create_server(("127.0.0.1", 0)) as server:
        with pytest.raises(ZeroDivisionError):
            await loop.create_connection(fail, *server.getsockname())
        await gone(loop)


def test_a_loop_is_closed_while_it_connects():
    loop = pyasync.aio.new_event_loop()
    with socket.create_server(("127.0.0.1", 0)) as server:
        task = loop.create_task(loop.create_connection(asyncio.Protocol, *server.getsockname()))
        loop.call_soon(loop.stop)
        loop.run_forever()
        task._log_destroy_pending = False
        loop.close()
        task.get_coro().close()


async def test_a_program_may_connect_in_its_own_way(loop, monkeypatch):
    made = []

    class Proxied(socket.socket):
        def connect(self, address):
            made.append(address)
            super().connect(address)

    monkeypatch.setattr(socket, "socket", Proxied)
    with socket.create_server(("127.0.0.1", 0)) as server:
        transport, _ = await loop.create_connection(asyncio.Protocol, *server.getsockname())
        assert made == [server.getsockname()]
        transport.abort()
        await gone(loop)


@pytest.mark.parametrize(
    ("host", "port"), [("127.0.0.1", 80), ("::1", 80), (None, 80), ("127.0.0.1", None)]
)
async def test_a_numeric_address_needs_no_thread(loop, host, port):
    class Executor(concurrent.futures.ThreadPoolExecutor):
        def submit(self, *arguments, **options):
            raise AssertionError("a thread is asked")

    loop.set_default_executor(Executor())
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    assert found == socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)


async def test_a_numeric_address_of_the_wrong_family_is_no_address(loop):
    with pytest.raises(socket.gaierror):
        await loop.getaddrinfo("127.0.0.1", 80, family=socket.AF_INET6)


async def test_an_unreachable_address_is_the_systems_error(loop):
    with pytest.raises(OSError, match="Connect call failed") as caught:
        await loop.create_connection(asyncio.Protocol, "255.255.255.255", 1)
    assert caught.value.errno in (errno.ENETUNREACH, errno.EACCES, errno.EHOSTUNREACH)
