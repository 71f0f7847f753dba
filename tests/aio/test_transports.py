"""Connections of asyncio programs, against plain sockets as peers."""

import asyncio
import contextlib
import contextvars
import io
import os
import socket
import threading

import pytest
import tls_peers
from peers import PATIENCE, read_all, read_exactly, reset, run_python
from protocols import Buffered, Recorder, in_thread, random_bytes


async def connected(factory=Recorder):
    """Return a protocol with a transport, and a plain socket, its peer."""
    ours, theirs = socket.socketpair()
    theirs.settimeout(PATIENCE)
    _, protocol = await asyncio.get_running_loop().create_connection(factory, sock=ours)
    return protocol, theirs


async def serve_one(loop):
    """Return a server, and the future of the stream that it writes to its client."""
    accepted = loop.create_future()
    server = await asyncio.start_server(
        lambda reader, writer: accepted.set_result(writer), "127.0.0.1", 0
    )
    return server, accepted


def scenario(test):
    """Let a coroutine function be a test, of a connection of its own."""

    async def run(loop):
        protocol, theirs = await connected()
        try:
            await test(protocol, theirs)
        finally:
            theirs.close()
            protocol.transport.abort()

    run.__name__ = test.__name__
    return run


# Data


@pytest.mark.parametrize("size", [1, 8192, 8193, 65_537, 3 << 20])
@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("unix", [False, True])
def test_streams_echo_data_of_any_size(loop, tmp_path, size, tls, unix):
    data = random_bytes(size)

    async def echo(reader, writer):
        while True:
            piece = await reader.read(100_000)
            if not piece:
                break
            writer.write(piece)
            await writer.drain()
        writer.close()

    async def main():
        serve, connect = {"ssl": None}, {"ssl": None}
        if tls:
            serve["ssl"] = tls_peers.server_context()
            connect = {"ssl": tls_peers.client_context(), "server_hostname": "localhost"}
        if unix:
            path = str(tmp_path / "socket")
            server = await asyncio.start_unix_server(echo, path, **serve)
            reader, writer = await asyncio.open_unix_connection(path, **connect)
        else:
            server = await asyncio.start_server(echo, "127.0.0.1", 0, **serve)
            address = server.sockets[0].getsockname()
            reader, writer = await asyncio.open_connection(*address, **connect)
        writer.write(data)
        received, _ = await asyncio.gather(reader.readexactly(size), writer.drain())
        writer.close()
        await writer.wait_closed()
        server.close()
        await server.wait_closed()
        return received

    assert loop.run_until_complete(asyncio.wait_for(main(), PATIENCE)) == data


@scenario
async def test_a_protocol_may_replace_its_own_data_received(protocol, theirs):
    heard = asyncio.get_running_loop().create_future()
    protocol.data_received = heard.set_result
    theirs.sendall(b"data")
    assert await asyncio.wait_for(heard, PATIENCE) == b"data"


@pytest.mark.parametrize("factory", [Recorder, Buffered])
def test_a_fast_upload_with_pauses_is_received_whole(loop, factory):
    data = random_bytes(8 << 20)

    async def main():
        protocol, theirs = await connected(factory)
        thread = threading.Thread(target=lambda: (theirs.sendall(data), theirs.shutdown(1)))
        thread.start()
        while not protocol.lost.done():
            protocol.transport.pause_reading()
            assert not protocol.transport.is_reading()
            before = len(protocol.data)
            await asyncio.sleep(0.001)
            assert len(protocol.data) == before
            protocol.transport.resume_reading()
            await asyncio.sleep(0.005)
        thread.join()
        theirs.close()
        return protocol

    protocol = loop.run_until_complete(asyncio.wait_for(main(), 2 * PATIENCE))
    assert protocol.data == data
    assert protocol.calls == ["made", "eof", "lost"]


@scenario
async def test_protocols_may_be_changed_while_data_arrives(protocol, theirs):
    class First(Recorder):
        def data_received(self, data):
            super().data_received(data)
            transport.set_protocol(then)

    transport, then, protocol = protocol.transport, Buffered(), First()
    transport.set_protocol(protocol)
    theirs.send(b"first")
    while not protocol.data:
        await asyncio.sleep(0.001)
    theirs.send(b"second")
    while not then.data:
        await asyncio.sleep(0.001)
    assert (protocol.data, bytes(then.data)) == (b"first", b"second")
    assert transport.get_protocol() is then


@pytest.mark.parametrize("data", [b"x" * 10, bytearray(b"x" * 10), memoryview(b"yxyxyx")[1::2],
                                  memoryview(bytearray(40_000)), bytearray(40_000)])  # fmt: skip
async def test_buffers_of_any_kind_are_copied_before_they_change(loop, data):
    protocol, theirs = await connected()
    want = bytes(data)
    protocol.transport.write(data)
    if isinstance(data, bytearray):
        data[:] = b"z" * len(data)
    protocol.transport.writelines([b"and ", bytearray(b"more")])
    received = await in_thread(read_exactly, theirs, len(want) + 8)
    protocol.transport.abort()
    theirs.close()
    assert received == want + b"and more"


@scenario
async def test_wrong_data_is_refused_at_the_call(protocol, theirs):
    for data in ("text", 5, None):
        with pytest.raises(TypeError, match="bytes-like"):
            protocol.transport.write(data)
    protocol.transport.write_eof()
    for write in (protocol.transport.write, lambda data: protocol.transport.writelines([data])):
        with pytest.raises(RuntimeError, match="after write_eof"):
            write(b"late")


# Flow control


@scenario
async def test_writing_is_paused_at_once_and_resumed_when_the_peer_reads(protocol, theirs):
    transport = protocol.transport
    total = 0
    while "pause" not in protocol.calls:
        transport.write(bytes(1000))  # a coroutine need not yield to learn of it
        total += 1000
        assert total < 64 << 20
    assert transport.get_write_buffer_size() > 64 << 10
    assert transport.get_write_buffer_limits() == (16 << 10, 64 << 10)
    received = await in_thread(read_exactly, theirs, total)
    assert len(received) == total
    while protocol.calls[-1] != "resume":
        await asyncio.sleep(0.001)
    assert protocol.calls == ["made", "pause", "resume"]
    assert transport.get_write_buffer_size() == 0


async def test_a_coroutine_that_never_waits_learns_of_each_peer_that_does_not_read(loop):
    """Five, because they divide the number of writes after which the first performs them."""
    pairs = [await connected() for _ in range(5)]
    (_, fasts_peer), *slow = pairs
    last = pairs[-1][1]
    for sock in (fasts_peer, last):
        sock.setblocking(False)
    for _ in range(5000):
        for protocol, _ in pairs:
            if "pause" not in protocol.calls:
                protocol.transport.write(bytes(1000))
        for sock in (fasts_peer, last):
            with contextlib.suppress(BlockingIOError):
                while sock.recv(1 << 20):
                    pass
    assert ["pause" in protocol.calls for protocol, _ in slow] == [True, True, True, False]
    for protocol, theirs in pairs:
        protocol.transport.abort()
        theirs.close()


async def test_drain_hears_of_a_reset_in_a_loop_that_never_sleeps(loop):
    server, accepted = await serve_one(loop)
    peer = socket.create_connection(server.sockets[0].getsockname())
    writer = await accepted
    reset(peer)

    async def write_on():
        while True:
            writer.write(b"data")
            await writer.drain()

    with pytest.raises(ConnectionError):
        await write_on()
    server.close()


# Ends


@pytest.mark.parametrize("keep_open", [False, None, True])
async def test_the_peers_end_closes_unless_the_protocol_keeps_it_open(loop, keep_open):
    protocol, theirs = await connected()
    protocol.keep_open = keep_open
    theirs.shutdown(socket.SHUT_WR)
    while "eof" not in protocol.calls:
        await asyncio.sleep(0.001)
    protocol.transport.write(b"answer")
    protocol.transport.close()
    assert await protocol.lost is None
    received = await in_thread(read_all, theirs)
    theirs.close()
    assert received == (b"answer" if keep_open else b"")


@scenario
async def test_close_flushes_what_the_kernel_has_refused(protocol, theirs):
    data = random_bytes(5 << 20)
    protocol.transport.write(data)
    protocol.transport.close()
    protocol.transport.close()
    assert protocol.transport.is_closing()
    protocol.transport.write(b"as asyncio has it: while it flushes, writes are taken")
    received = await in_thread(read_all, theirs)
    assert received.startswith(data)
    assert len(received) > len(data)
    assert await protocol.lost is None
    assert protocol.calls.count("lost") == 1


@scenario
async def test_abort_sends_what_the_kernel_takes_at_once(protocol, theirs):
    protocol.transport.write(b"small")
    protocol.transport.write(b" writes")
    protocol.transport.abort()
    assert await protocol.lost is None
    assert await in_thread(read_all, theirs) == b"small writes"


@scenario
async def test_abort_drops_what_was_written(protocol, theirs):
    protocol.transport.write(bytes(50 << 20))
    protocol.transport.abort()
    protocol.transport.abort()
    assert await protocol.lost is None
    assert len(await in_thread(read_all, theirs)) < 50 << 20
    assert protocol.calls.count("lost") == 1


@pytest.mark.parametrize("call", ["close", "abort", "write_eof", "pause_reading"])
@pytest.mark.parametrize("inside", ["made", "data", "eof", "lost", "pause"])
async def test_any_call_may_be_made_inside_of_any_callback(loop, inside, call):
    class Protocol(Recorder):
        def act(self, callback):
            if callback == inside:
                getattr(self.transport, call)()

        def connection_made(self, transport):
            super().connection_made(transport)
            self.act("made")

        def data_received(self, data):
            super().data_received(data)
            self.act("data")

        def eof_received(self):
            super().eof_received()
            self.act("eof")

        def pause_writing(self):
            super().pause_writing()
            self.act("pause")

        def connection_lost(self, error):
            self.act("lost")
            super().connection_lost(error)

    protocol, theirs = await connected(Protocol)
    with contextlib.suppress(BrokenPipeError):
        theirs.send(b"data")
    if inside == "pause":
        protocol.transport.write(bytes(2 << 20))
    await asyncio.sleep(0.01)
    theirs.close()
    await asyncio.sleep(0.01)
    protocol.transport.abort()
    await protocol.lost
    assert protocol.calls.count("lost") == 1


@pytest.mark.parametrize("method", ["connection_made", "data_received", "eof_received",
                                    "connection_lost", "pause_writing"])  # fmt: skip
@pytest.mark.parametrize("kind", [LookupError, asyncio.CancelledError])
def test_an_exception_of_a_protocol_is_reported_once(loop, method, kind):
    contexts = []
    loop.set_exception_handler(lambda loop, context: contexts.append(context))

    def fail(*args):
        raise kind("why")

    class Protocol(Recorder):
        pass

    setattr(Protocol, method, fail)

    async def main():
        protocol, theirs = await connected(Protocol)
        transport = getattr(protocol, "transport", None)
        theirs.send(b"data")
        if method == "pause_writing":
            transport.write(bytes(2 << 20))
        while not contexts and method != "connection_lost":
            theirs.settimeout(0)
            await asyncio.sleep(0.001)
            if method == "eof_received":
                theirs.shutdown(socket.SHUT_WR)
        theirs.close()
        for _ in range(100):
            await asyncio.sleep(0.001)

    loop.run_until_complete(asyncio.wait_for(main(), PATIENCE))
    assert [type(context["exception"]) for context in contexts] == [kind]


async def test_a_reset_is_told_to_connection_lost(loop):
    protocols = []

    def factory():
        protocols.append(Recorder())
        return protocols[-1]

    server = await loop.create_server(factory, "127.0.0.1", 0)
    peer = socket.create_connection(server.sockets[0].getsockname())
    while not protocols:
        await asyncio.sleep(0.001)
    reset(peer)
    assert isinstance(await protocols[0].lost, ConnectionResetError)
    server.close()
    await server.wait_closed()


# Information


async def test_names_and_the_socket_are_there_and_outlive_the_connection(loop):
    server, accepted = await serve_one(loop)
    address = server.sockets[0].getsockname()
    _, client = await asyncio.open_connection(*address)
    served = await accepted
    sock = served.get_extra_info("socket")
    assert sock.fileno() > 2
    assert (sock.family, sock.type) == (socket.AF_INET, socket.SOCK_STREAM)
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)
    assert not sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert sock.getsockname() == address
    with sock.dup() as duplicate:
        assert duplicate.getpeername() == sock.getpeername()
    for writer in (client, served):
        writer.close()
        await writer.wait_closed()
    assert served.get_extra_info("sockname") == client.get_extra_info("peername") == address
    assert served.get_extra_info("peername") == client.get_extra_info("sockname")
    assert served.get_extra_info("nothing", 5) == 5
    server.close()


@pytest.mark.parametrize("while_open", [False, True])
@pytest.mark.parametrize(
    ("bound", "connected"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("127.0.0.2", "127.0.0.2"),
        ("0.0.0.0", "127.0.0.3"),
        ("::1", "::1"),
        ("::", "::1"),
        ("::", "127.0.0.3"),
        ("::ffff:127.0.0.3", "127.0.0.3"),
        ("::ffff:0.0.0.0", "127.0.0.3"),
        ("path", "path"),
        ("\0abstract", "\0abstract"),
    ],
)
async def test_the_name_of_an_accepted_connection_outlives_it(
    loop, tmp_path, bound, connected, while_open
):
    class Closes(asyncio.Protocol):
        def connection_made(self, transport):
            self.transport = transport
            self.before = transport.get_extra_info("sockname") if while_open else None
            transport.close()

        def connection_lost(self, error):
            assert error is None
            loop.call_soon(lost.set_result, self)  # the descriptor is closed then

    internet = ":" in bound or "." in bound
    family = socket.AF_UNIX if not internet else socket.AF_INET6 if ":" in bound else socket.AF_INET
    listening = socket.socket(family)
    if internet:
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listening.bind((bound, 0))
        address = (connected, listening.getsockname()[1])
    else:
        address = str(tmp_path / bound) if bound == "path" else f"{bound} {tmp_path}"
        listening.bind(address)
    lost = loop.create_future()
    serve = loop.create_server if internet else loop.create_unix_server
    server = await serve(Closes, sock=listening)
    with socket.socket(family) as peer:
        peer.setblocking(False)
        mapped = family == socket.AF_INET6 and "." in connected
        await loop.sock_connect(peer, (f"::ffff:{connected}", address[1]) if mapped else address)
        expected = peer.getpeername()
        closed = await lost
    assert closed.transport.get_extra_info("sockname") == expected
    assert closed.before == (expected if while_open else None)
    server.close()


async def test_the_socket_of_a_transport_equals_itself(loop):
    server, accepted = await serve_one(loop)
    _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    ends = [writer, await accepted]
    first, second = ([end.get_extra_info("socket") for end in ends] for _ in range(2))
    assert first == second
    assert len({*first, *second}) == 2
    for end in ends:
        end.close()
        await end.wait_closed()
    server.close()


class StandIn:
    """Stands for a socket, as a class of a program may, and counts what is sent by it."""

    def __init__(self, sock):
        self.sock, self.sent = sock, 0

    def __getattr__(self, name):
        return getattr(self.sock, name)

    def send(self, data):
        self.sent += len(data)
        return self.sock.send(data)


@pytest.mark.parametrize("tls", [False, True])
async def test_a_stand_in_for_a_socket_sends_by_itself(loop, tls):
    ours, theirs = socket.socketpair()
    theirs.settimeout(PATIENCE)
    sock = StandIn(ours)
    options = {"ssl": tls_peers.client_context(), "server_hostname": "localhost"} if tls else {}
    making = asyncio.ensure_future(loop.create_connection(Recorder, sock=sock, **options))
    if tls:
        wrap = tls_peers.server_context().wrap_socket
        theirs = await in_thread(lambda: wrap(theirs, server_side=True))
    transport, protocol = await making
    before = sock.sent
    transport.write(bytes(1000))
    assert await in_thread(read_exactly, theirs, 1000) == bytes(1000)
    assert sock.sent - before >= 1000
    theirs.sendall(b"answer")
    while protocol.data != b"answer":
        await asyncio.sleep(0.001)
    transport.abort()
    await protocol.lost
    theirs.close()


def test_each_connection_has_its_own_context(loop):
    name, seen = contextvars.ContextVar("name", default=None), []

    class Protocol(asyncio.Protocol):
        def connection_made(self, transport):
            name.set(transport.get_extra_info("peername"))

        def data_received(self, data):
            seen.append(name.get())

    async def main():
        server = await loop.create_server(Protocol, "127.0.0.1", 0)
        peers = [socket.create_connection(server.sockets[0].getsockname()) for _ in range(3)]
        for peer in peers:
            peer.send(b"x")
        while len(seen) < 3:
            await asyncio.sleep(0.001)
        assert sorted(seen) == sorted(peer.getsockname() for peer in peers)
        for peer in peers:
            peer.close()
        server.close()

    loop.run_until_complete(asyncio.wait_for(main(), PATIENCE))
    assert name.get() is None


async def test_writing_resumes_when_a_pending_write_is_the_last(loop):
    protocol, theirs = await connected()
    transport = protocol.transport
    transport.set_write_buffer_limits(0)
    transport.write(random_bytes(3 << 20))
    while protocol.calls != ["made", "pause"]:
        await asyncio.sleep(0)
    reading = asyncio.ensure_future(in_thread(read_exactly, theirs, (3 << 20) + 1))
    # In the iteration that finds the queue empty, before its records are walked.
    while transport.get_write_buffer_size():
        await asyncio.sleep(0)
    transport.write(b"1")
    await reading
    while protocol.calls[-1] != "resume":
        await asyncio.sleep(0.001)
    transport.abort()
    theirs.close()


# More than streams


@pytest.mark.parametrize("regular", [True, False])
async def test_sendfile_sends_in_order_with_writes(loop, tmp_path, regular):
    data = random_bytes(3 << 20)
    path = tmp_path / "file"
    path.write_bytes(data)
    protocol, theirs = await connected()
    transport = protocol.transport
    reading = asyncio.ensure_future(in_thread(read_all, theirs))
    transport.write(b"before")
    with path.open("rb") if regular else io.BytesIO(data) as file:
        assert await loop.sendfile(transport, file, 1000, 2 << 20) == 2 << 20
    transport.write(b"after")
    transport.close()
    received = await reading
    theirs.close()
    assert received == b"before" + data[1000 : 1000 + (2 << 20)] + b"after"


async def test_start_tls_on_a_connection(loop):
    accepted = loop.create_future()

    async def serve(reader, writer):
        assert await reader.readline() == b"STARTTLS\n"
        writer.write(b"go\n")
        transport = await loop.start_tls(
            writer.transport,
            writer.transport.get_protocol(),
            tls_peers.server_context(),
            server_side=True,
        )
        accepted.set_result((writer, transport))
        transport.write(b"secret")

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    writer.write(b"STARTTLS\n")
    assert await reader.readline() == b"go\n"
    transport = await loop.start_tls(
        writer.transport,
        writer.transport.get_protocol(),
        tls_peers.client_context(),
        server_hostname="localhost",
    )
    assert await reader.readexactly(6) == b"secret"
    for end in (transport, writer, *await accepted):
        end.close()
    server.close()


def test_a_server_that_was_closed_accepts_nobody(loop):
    made = []

    async def main():
        server = await loop.create_server(lambda: made.append(1), "127.0.0.1", 0)
        address = server.sockets[0].getsockname()
        with socket.create_connection(address):
            server.close()
            await server.wait_closed()
            await asyncio.sleep(0.02)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)

    loop.run_until_complete(asyncio.wait_for(main(), PATIENCE))
    assert made == []


def test_transports_may_be_used_between_two_runs(loop):
    protocol, theirs = loop.run_until_complete(connected())
    protocol.transport.write(b"at once")
    assert theirs.recv(100) == b"at once"
    protocol.transport.pause_reading()
    theirs.send(b"later")
    loop.run_until_complete(asyncio.sleep(0.01))
    assert protocol.data == b""
    protocol.transport.resume_reading()
    loop.run_until_complete(asyncio.sleep(0.01))
    assert protocol.data == b"later"
    protocol.transport.close()
    assert loop.run_until_complete(protocol.lost) is None
    assert theirs.recv(100) == b""
    theirs.close()


def test_a_failed_factory_closes_the_connection(loop):
    contexts = []
    loop.set_debug(True)
    loop.set_exception_handler(lambda loop, context: contexts.append(context))

    def fail():
        raise LookupError("why")

    async def main():
        server = await loop.create_server(fail, "127.0.0.1", 0)
        peer = socket.create_connection(server.sockets[0].getsockname())
        peer.settimeout(PATIENCE)
        assert await in_thread(peer.recv, 100) == b""
        peer.close()
        server.close()

    loop.run_until_complete(asyncio.wait_for(main(), PATIENCE))
    assert [str(context["exception"]) for context in contexts] == ["why"]


# After the end


@pytest.mark.parametrize("end", ["close", "abort"])
async def test_a_transport_may_be_asked_about_at_any_time_of_its_end(loop, end):
    """C has closed it some time before Python hears of it, and its slot has no handle then."""
    protocol, theirs = await connected()
    transport = protocol.transport
    transport.write(b"x")
    getattr(transport, end)()
    for _ in range(10):
        repr(transport)
        sock = transport.get_extra_info("socket")
        assert sock.family == socket.AF_UNIX
        assert sock.type == socket.SOCK_STREAM
        assert sock.proto == 0
        repr(sock)
        if sock.fileno() < 0:
            with pytest.raises(OSError, match="Bad file descriptor"):
                sock.getsockname()
        await asyncio.sleep(0)
    assert await protocol.lost is None
    assert transport.get_extra_info("socket").fileno() == -1
    theirs.close()


async def test_the_user_may_close_the_socket_object_of_a_connection(loop):
    """C uses the number still; another file would get it, and then be closed with the transport."""
    ours, theirs = socket.socketpair()
    with ours:
        transport, protocol = await loop.create_connection(Recorder, sock=ours)
    ends = os.pipe()
    transport.abort()
    await protocol.lost
    await asyncio.sleep(0.01)
    os.write(ends[1], b"x")
    assert os.read(ends[0], 1) == b"x"
    for end in ends:
        os.close(end)
    theirs.close()


def test_a_loop_that_is_collected_unclosed_closes_each_descriptor_once():
    """Finalizers run in the order in which objects were made: here the socket's before the loop's.

    In between, as here, somebody may open a file, and get the number.
    """
    program = """
import asyncio, gc, os, socket, pyasync.aio
gc.disable()
opened = []
class Opens:
    def __del__(self):
        opened.append(os.open(os.devnull, os.O_RDONLY))
ours, theirs = socket.socketpair()
opens = Opens()
opens.itself = opens
loop = pyasync.aio.new_event_loop()
loop.run_until_complete(loop.create_connection(asyncio.Protocol, sock=ours))
number = ours.fileno()
del ours, loop, opens
gc.collect()
gc.collect()
os.fstat(*opened)
try:
    os.fstat(number)
except OSError:
    print("closed")
"""
    done = run_python("-W", "ignore", "-c", program)
    assert (done.stdout, done.stderr) == ("closed\n", "")


async def test_connection_lost_is_called_once_in_the_middle_of_sendfile(loop):
    """asyncio's fallback sets the protocol again when the connection is gone already."""
    protocol, theirs = await connected()
    loop.call_later(0.1, theirs.close)
    with pytest.raises(ConnectionError):
        await loop.sendfile(protocol.transport, io.BytesIO(bytes(10 << 20)), fallback=True)
    await asyncio.sleep(0.01)
    assert protocol.calls.count("lost") == 1


async def test_an_abort_ends_the_sending_of_a_file_to_a_peer_that_does_not_read(loop, tmp_path):
    path = tmp_path / "file"
    with path.open("wb") as file:
        file.truncate(20 << 20)
    protocol, theirs = await connected()
    loop.call_later(0.05, protocol.transport.abort)
    with path.open("rb") as file, pytest.raises(ConnectionError):
        await loop.sendfile(protocol.transport, file, fallback=False)
    assert await protocol.lost is None
    assert len(await in_thread(read_all, theirs)) < 20 << 20
    theirs.close()


async def test_sendfile_works_in_debug_mode(loop, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"data of the file")
    loop.set_debug(True)
    protocol, theirs = await connected()
    with path.open("rb") as file:
        assert await loop.sendfile(protocol.transport, file, fallback=False) == 16
    assert read_exactly(theirs, 16) == b"data of the file"
    protocol.transport.abort()
    theirs.close()


async def test_a_close_waits_for_writes_of_whose_refusal_nobody_has_heard(loop):
    """Another connection's operations have crossed with them."""
    protocol, theirs = await connected()
    other, others_peer = await connected()
    transport = protocol.transport
    while not loop._engine.operations:
        await asyncio.sleep(0)
        transport.write(bytes(8000))
    for _ in range(60):
        transport.write(bytes(8000))
    other.transport.write(bytes(10_000))
    transport.close()
    await asyncio.sleep(0.05)
    assert "lost" not in protocol.calls
    assert len(await in_thread(read_all, theirs)) == 61 * 8000
    assert await protocol.lost is None
    other.transport.abort()
    theirs.close()
    others_peer.close()


def test_an_interrupt_of_data_received_loses_no_paused_input(loop):
    class Protocol(Recorder):
        def data_received(self, data):
            super().data_received(data)
            if data == b"first":
                raise KeyboardInterrupt

    async def begin():
        protocol, theirs = await connected(Protocol)
        protocol.transport._hold(b"first")
        protocol.transport._hold(b"second")
        protocol.transport._hold(None)
        protocol.transport.pause_reading()
        return protocol, theirs

    protocol, theirs = loop.run_until_complete(begin())
    protocol.transport.resume_reading()
    with pytest.raises(KeyboardInterrupt):
        loop.run_until_complete(protocol.lost)
    loop.run_until_complete(asyncio.wait_for(protocol.lost, PATIENCE))
    assert (protocol.data, protocol.calls) == (b"firstsecond", ["made", "eof", "lost"])
    theirs.close()


def test_an_interrupt_of_connection_lost_leaves_nothing_open(loop):
    class Protocol(Recorder):
        def connection_lost(self, error):
            super().connection_lost(error)
            raise KeyboardInterrupt

    protocol, theirs = loop.run_until_complete(connected(Protocol))
    protocol.transport.close()
    with pytest.raises(KeyboardInterrupt):
        loop.run_until_complete(asyncio.sleep(1))
    loop.run_until_complete(asyncio.sleep(0))
    assert theirs.recv(1) == b""
    theirs.close()


@pytest.mark.parametrize("callback", ["eof", "lost"])
def test_a_callback_that_enters_its_own_context_is_called_once(loop, callback):
    errors = []
    loop.set_exception_handler(lambda loop, context: errors.append(context["exception"]))

    class Protocol(Recorder):
        def connection_made(self, transport):
            super().connection_made(transport)
            self.context = transport._context

        def eof_received(self):
            super().eof_received()
            if callback == "eof":
                self.context.run(int)

        def connection_lost(self, error):
            super().connection_lost(error)
            if callback == "lost":
                self.context.run(int)

    async def main():
        protocol, theirs = await connected(Protocol)
        theirs.close()
        await protocol.lost
        await asyncio.sleep(0)
        assert protocol.calls == ["made", "eof", "lost"]

    loop.run_until_complete(asyncio.wait_for(main(), PATIENCE))
    (error,) = errors
    assert "already entered" in str(error)


@pytest.mark.parametrize("accepted", [False, True])
async def test_what_connection_made_sets_in_its_context_the_others_find(loop, accepted):
    variable = contextvars.ContextVar("variable", default="unset")
    made = loop.create_future()

    class Protocol(Recorder):
        def connection_made(self, transport):
            super().connection_made(transport)
            assert transport.is_reading()
            variable.set("by connection_made")
            made.set_result(self)

        def data_received(self, data):
            super().data_received(variable.get().encode())

        def connection_lost(self, error):
            self.seen_at_end = variable.get()
            super().connection_lost(error)

    if accepted:
        server = await loop.create_server(Protocol, "127.0.0.1", 0)
        theirs = socket.create_connection(server.sockets[0].getsockname())
        protocol = await made
        server.close()
    else:
        protocol, theirs = await connected(Protocol)
    theirs.send(b"x")
    theirs.close()
    await protocol.lost
    assert (protocol.data, protocol.seen_at_end) == (
        b"by connection_made",
        "by connection_made",
    )
    assert variable.get() == "unset"


async def test_the_child_of_a_fork_cannot_write_to_its_parents_connections(loop):
    protocol, theirs = await connected()
    child = os.fork()
    if not child:
        try:
            protocol.transport.write(bytes(20 << 20))
            protocol.transport.close()
            protocol.transport.abort()
            os._exit(0 if protocol.transport.get_write_buffer_size() == 0 else 1)
        finally:
            os._exit(2)
    _, status = await in_thread(os.waitpid, child, 0)
    assert status == 0
    protocol.transport.write(b"the parent's")
    assert await in_thread(theirs.recv, 100) == b"the parent's"
    protocol.transport.abort()
    theirs.close()
