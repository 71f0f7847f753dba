"""TLS of asyncio programs, against the module ssl of a plain peer."""

import asyncio
import contextlib
import contextvars
import gc
import logging
import select
import socket
import ssl
import sys
import weakref

import pytest
import tls_peers
from peers import PATIENCE, read_all, read_exactly, reset
from protocols import Buffered, Recorder, in_thread, random_bytes

import pyasync.aio
from pyasync.aio.tls import SSLTransport
from pyasync.aio.versions import HAS_SHUTDOWN_TIMEOUT

TLS_1_2, TLS_1_3 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
BIG = 3 << 20


def both_versions(test):
    return pytest.mark.parametrize("version", [TLS_1_2, TLS_1_3], ids=["1.2", "1.3"])(test)


def both_sides(test):
    return pytest.mark.parametrize("server_side", [False, True], ids=["client", "server"])(test)


def contexts(version, server_side):
    """Return the context of our side, and the peer's."""
    client = tls_peers.CLIENT(maximum_version=version, minimum_version=version)
    server = tls_peers.SERVER(maximum_version=version, minimum_version=version)
    return (server, client) if server_side else (client, server)


async def over(sock, factory, context, server_side, **options):
    """Return our protocol, connected by TLS over a socket."""
    loop = asyncio.get_running_loop()
    if server_side:
        _, protocol = await loop.connect_accepted_socket(factory, sock, ssl=context, **options)
    else:
        _, protocol = await loop.create_connection(
            factory, sock=sock, ssl=context, server_hostname="localhost", **options
        )
    return protocol


async def connected(factory=Recorder, version=TLS_1_3, server_side=False, tcp=False, **options):
    """Return our protocol with a transport, and a `TlsPeer`."""
    ours, theirs = tcp_pair() if tcp else socket.socketpair()
    theirs.settimeout(PATIENCE)
    our_context, their_context = contexts(version, server_side)
    peer = asyncio.ensure_future(in_thread(shake_hands, theirs, their_context, not server_side))
    protocol = await over(ours, factory, our_context, server_side, **options)
    return protocol, await peer


def shake_hands(sock, context, server_side):
    return tls_peers.TlsPeer(sock, context, server_side=server_side, server_hostname="localhost")


def tcp_pair():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        return ours, listener.accept()[0]


def run(loop, coroutine):
    return loop.run_until_complete(asyncio.wait_for(coroutine, PATIENCE))


def the_end(peer):
    """Read to the peer's end of the stream; return the data, and whether it was a close_notify."""
    data = read_all(peer)
    return data, peer.ended_properly


# Data


@both_versions
@both_sides
@pytest.mark.parametrize("factory", [Recorder, Buffered])
@pytest.mark.parametrize("size", [1, 16384, 16385, BIG])
async def test_data_of_any_size_goes_both_ways(loop, version, server_side, factory, size):
    data = random_bytes(size)
    protocol, peer = await connected(factory, version, server_side)
    reading = asyncio.ensure_future(in_thread(read_exactly, peer, size))
    protocol.transport.write(data)
    assert await reading == data
    await in_thread(peer.sendall, data)
    await in_thread(peer.close)
    assert await protocol.lost is None
    assert protocol.data == data
    assert course(protocol) == ["made", "eof", "lost"]


def pressure(protocol):
    return [call for call in protocol.calls if call in ("pause", "resume")]


def course(protocol):
    """Return the calls but for those of `pressure`, which come whenever the peer has read."""
    return [call for call in protocol.calls if call not in ("pause", "resume")]


async def test_records_may_come_in_single_bytes(loop):
    protocol, peer = await connected()
    peer.object.write(b"in pieces")
    for byte in peer._outgoing.read():
        peer.sock.send(bytes([byte]))
        await asyncio.sleep(0)
    while protocol.data != b"in pieces":
        await asyncio.sleep(0.001)
    protocol.transport.abort()
    peer.sock.close()


async def test_an_echo_costs_one_crossing(loop):
    protocol, peer = await connected()
    transport, arrived = protocol.transport, asyncio.Event()

    def echo(data):
        transport.write(data)
        arrived.set()

    protocol.data_received = echo
    transport.set_protocol(protocol)
    before = loop.stats()
    for _ in range(100):
        peer.sendall(b"?")
        await arrived.wait()
        arrived.clear()
        while not select.select([peer.sock], [], [], 0)[0]:
            await asyncio.sleep(0)
        assert peer.recv(1) == b"?"
    after = loop.stats()
    # An iteration reads, and the next one writes. Each is one crossing; a few more are rare.
    assert after.iterations - before.iterations <= 2 * 100 + 5
    assert after.crossings - before.crossings <= 2 * 100 + 5
    transport.abort()
    peer.sock.close()


async def test_many_small_writes_share_a_record(loop):
    protocol, peer = await connected()
    before = peer.wire[1]
    for _ in range(100):
        protocol.transport.write(b"0123456789")
    assert await in_thread(read_exactly, peer, 1000) == b"0123456789" * 100
    assert peer.wire[1] - before < 1100
    protocol.transport.abort()
    peer.sock.close()


@tls_peers.key_updates
async def test_key_updates_are_answered(loop):
    protocol, peer = await connected()
    for _ in range(3):
        tls_peers.update_keys(peer.object)
        peer.sendall(b"x")
        protocol.transport.write(b"y")
        assert await in_thread(peer.recv, 10) == b"y"
    assert protocol.data == b"xxx"
    protocol.transport.abort()
    peer.sock.close()


# Closing


@both_versions
@both_sides
async def test_close_flushes_and_waits_for_the_answer_to_its_close_notify(
    loop, version, server_side
):
    data = random_bytes(BIG)
    protocol, peer = await connected(version=version, server_side=server_side)
    protocol.transport.write(data)
    protocol.transport.close()
    assert protocol.transport.is_closing()
    protocol.transport.write(b"dropped")
    assert await in_thread(the_end, peer) == (data, True)
    assert not protocol.lost.done()
    await in_thread(peer.close)
    assert await protocol.lost is None


@both_versions
@both_sides
@pytest.mark.parametrize("paused", [False, True])
async def test_close_drops_what_the_peer_still_sends(loop, version, server_side, paused):
    protocol, peer = await connected(version=version, server_side=server_side)
    if paused:
        protocol.transport.pause_reading()
    sending = asyncio.ensure_future(in_thread(peer.sendall, random_bytes(BIG)))
    await asyncio.sleep(0.01)
    before = len(protocol.data)
    protocol.transport.close()
    await sending
    assert await in_thread(the_end, peer) == (b"", True)
    await in_thread(peer.close)
    assert await protocol.lost is None
    assert len(protocol.data) == before


@both_versions
@both_sides
async def test_close_does_not_wait_for_the_end_of_an_endless_stream(loop, version, server_side):
    protocol, peer = await connected(version=version, server_side=server_side)
    sending = asyncio.ensure_future(in_thread(send_for_ever, peer))
    await asyncio.sleep(0.01)
    protocol.transport.close()
    assert await protocol.lost is None
    assert isinstance(await sending, OSError)
    peer.sock.close()


def send_for_ever(peer):
    try:
        while True:
            peer.sendall(bytes(65536))
    except OSError as error:
        return error


@pytest.mark.skipif(not HAS_SHUTDOWN_TIMEOUT, reason="asyncio has no such argument before 3.11")
@pytest.mark.parametrize("size", [1, BIG])
async def test_the_time_for_closing_is_limited(loop, size):
    protocol, peer = await connected(ssl_shutdown_timeout=0.3)
    protocol.transport.write(bytes(size))
    protocol.transport.close()
    with pytest.raises(asyncio.TimeoutError):
        raise await protocol.lost
    peer.sock.close()


@both_versions
async def test_the_peers_close_notify_is_answered_behind_the_writes(loop, version):
    data = random_bytes(BIG)
    protocol, peer = await connected(version=version)
    if version is TLS_1_3:  # 1.2 has no half-close
        protocol.transport.write(data)
    await in_thread(peer.shutdown, socket.SHUT_WR)
    expected = data if version is TLS_1_3 else b""
    assert await in_thread(the_end, peer) == (expected, True)
    assert await protocol.lost is None
    assert course(protocol) == ["made", "eof", "lost"]
    peer.sock.close()


@pytest.mark.parametrize("keep_open", [False, True])
def test_the_end_of_tcp_is_an_end_as_well(loop, keep_open, caplog):
    data = random_bytes(BIG)

    async def main():
        protocol, peer = await connected()
        protocol.keep_open = keep_open
        protocol.transport.write(data)
        peer.sock.shutdown(socket.SHUT_WR)
        assert (await in_thread(the_end, peer))[0] == data
        assert await protocol.lost is None
        assert course(protocol) == ["made", "eof", "lost"]
        peer.sock.close()

    run(loop, main())
    assert ("has no effect when using ssl" in caplog.text) == keep_open


@pytest.mark.parametrize("notify", [False, True])
async def test_data_and_the_end_wait_while_reading_is_paused(loop, notify):
    protocol, peer = await connected()
    transport = protocol.transport
    assert transport.is_reading()
    transport.pause_reading()
    assert not transport.is_reading()
    peer.sendall(b"paused")
    if notify:
        peer.shutdown(socket.SHUT_WR)
    else:
        peer.sock.shutdown(socket.SHUT_WR)
    await asyncio.sleep(0.02)
    assert protocol.calls == ["made"]
    assert protocol.data == b""
    transport.resume_reading()
    assert await protocol.lost is None
    assert protocol.calls == ["made", "eof", "lost"]
    assert protocol.data == b"paused"
    await in_thread(peer.close)


async def test_pause_in_data_received_holds_the_end_too(loop):
    class Pausing(Recorder):
        def data_received(self, data):
            super().data_received(data)
            self.transport.pause_reading()

    protocol, peer = await connected(Pausing)
    peer.object.write(b"last")
    peer.shutdown(socket.SHUT_WR)  # in one segment
    while not protocol.data:
        await asyncio.sleep(0)
    await asyncio.sleep(0.02)
    assert protocol.calls == ["made"]
    protocol.transport.resume_reading()
    assert await protocol.lost is None
    assert protocol.calls == ["made", "eof", "lost"]
    await in_thread(peer.close)


async def test_abort_drops_what_was_written(loop):
    protocol, peer = await connected()
    protocol.transport.write(random_bytes(BIG))
    protocol.transport.abort()
    assert protocol.transport.is_closing()
    assert await protocol.lost is None
    assert protocol.transport.get_write_buffer_size() == 0
    assert len((await in_thread(the_end, peer))[0]) < BIG
    peer.sock.close()


class Closing(Recorder):
    """Closes its transport in one of its callbacks."""

    where = how = None

    def act(self, here):
        if here == self.where:
            for _ in range(2):
                getattr(self.transport, self.how)()

    def connection_made(self, transport):
        super().connection_made(transport)
        self.act("connection_made")
        if self.where in ("pause_writing", "resume_writing"):
            transport.write(bytes(BIG))

    def data_received(self, data):
        super().data_received(data)
        self.act("data_received")

    def eof_received(self):
        super().eof_received()
        self.act("eof_received")

    def pause_writing(self):
        super().pause_writing()
        self.act("pause_writing")

    def resume_writing(self):
        super().resume_writing()
        self.act("resume_writing")

    def connection_lost(self, error):
        super().connection_lost(error)
        self.act("connection_lost")


def talk(sock):
    """Send data and an end by TLS, and read up to the peer's; until the peer aborts."""
    with sock, contextlib.suppress(OSError):
        peer = shake_hands(sock, tls_peers.SERVER(), True)
        peer.sendall(b"data")
        peer.close()


@pytest.mark.parametrize("how", ["close", "abort"])
@pytest.mark.parametrize(
    "where",
    [
        "connection_made",
        "data_received",
        "eof_received",
        "pause_writing",
        "resume_writing",
        "connection_lost",
    ],
)
async def test_a_transport_may_be_ended_in_any_callback(loop, where, how):
    class Here(Closing):
        pass

    Here.where, Here.how = where, how
    ours, theirs = socket.socketpair()
    theirs.settimeout(PATIENCE)
    talking = asyncio.ensure_future(in_thread(talk, theirs))
    protocol = await over(ours, Here, tls_peers.CLIENT(), False)
    assert await protocol.lost is None
    await talking
    await asyncio.sleep(0.01)
    assert protocol.calls.count("lost") == 1
    assert protocol.calls[-1] == "lost"


@pytest.mark.parametrize("state", ["handshake", "open", "paused", "blocked", "closing"])
def test_the_loop_may_be_closed_in_any_state(state):
    loop = pyasync.aio.new_event_loop()
    ours, theirs = socket.socketpair()
    theirs.settimeout(PATIENCE)

    async def main():
        if state == "handshake":
            task = asyncio.ensure_future(over(ours, Recorder, tls_peers.CLIENT(), False))
            assert await in_thread(theirs.recv, 1)  # it has begun
            task.cancel()
            return None, theirs
        protocol, peer = await connected()
        if state == "paused":
            protocol.transport.pause_reading()
            peer.sendall(b"data")
        elif state != "open":
            protocol.transport.write(bytes(BIG))
            if state == "closing":
                protocol.transport.close()
        await asyncio.sleep(0.01)
        return protocol, peer

    protocol, peer = run(loop, main())
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()
    if protocol is not None:
        for use in (protocol.transport.close, protocol.transport.abort, protocol.transport.close):
            use()
        protocol.transport.write(b"nowhere")
        assert protocol.transport.is_closing()
    for sock in (peer, ours, theirs):
        getattr(sock, "sock", sock).close()


# Writing


@both_versions
async def test_writing_is_paused_while_the_peer_does_not_read(loop, version):
    protocol, peer = await connected(version=version)
    transport = protocol.transport
    transport.set_write_buffer_limits(high=BIG)
    transport.write(bytes(BIG // 2))
    await asyncio.sleep(0.01)
    assert protocol.calls == ["made"]
    transport.write(bytes(BIG))
    assert protocol.calls == ["made", "pause"]
    assert BIG < transport.get_write_buffer_size() <= BIG * 3 // 2
    await in_thread(read_exactly, peer, BIG * 3 // 2)
    while protocol.calls != ["made", "pause", "resume"]:
        await asyncio.sleep(0.001)
    while transport.get_write_buffer_size():
        await asyncio.sleep(0.001)
    with pytest.raises(ValueError, match="must be >= low"):
        transport.set_write_buffer_limits(high=1, low=2)
    transport.abort()
    peer.sock.close()


async def test_drain_without_a_buffer_waits_for_the_kernel(loop):
    protocol, peer = await connected()
    protocol.transport.set_write_buffer_limits(0)
    for _ in range(3):
        protocol.transport.write(bytes(BIG))
        assert protocol.calls[-1] == "pause"
        await in_thread(read_exactly, peer, BIG)
        while protocol.calls[-1] != "resume":
            await asyncio.sleep(0.001)
    assert protocol.calls == ["made", *["pause", "resume"] * 3]
    protocol.transport.abort()
    peer.sock.close()


@pytest.mark.parametrize("data", [bytearray(b"changed"), memoryview(bytearray(b"changed"))])
async def test_a_buffer_may_be_changed_after_the_write(loop, data):
    protocol, peer = await connected()
    protocol.transport.write(data)
    data[0] = ord("X")
    protocol.transport.writelines([b"", b" later"])
    assert await in_thread(read_exactly, peer, 13) == b"changed later"
    for wrong in ("text", None, 1):
        with pytest.raises(TypeError):
            protocol.transport.write(wrong)
    assert not protocol.transport.can_write_eof()
    with pytest.raises(NotImplementedError):
        protocol.transport.write_eof()
    protocol.transport.abort()
    peer.sock.close()


async def test_a_coroutine_that_never_waits_learns_of_a_reset(loop):
    protocol, peer = await connected(tcp=True)
    reset(peer.sock)
    while not protocol.transport.is_closing():
        protocol.transport.write(b"small")


def test_a_transport_may_be_used_between_two_runs(loop):
    protocol, peer = run(loop, connected())
    protocol.transport.write(b"at once")
    assert peer.recv(100) == b"at once"
    protocol.transport.close()
    assert the_end(peer) == (b"", True)
    peer.shutdown(socket.SHUT_WR)
    assert run(loop, protocol.lost) is None
    peer.sock.close()


async def test_sendfile_falls_back_to_reading_the_file(loop, tmp_path):
    data = random_bytes(BIG)
    (tmp_path / "file").write_bytes(data)
    protocol, peer = await connected()
    reading = asyncio.ensure_future(in_thread(the_end, peer))
    with (tmp_path / "file").open("rb") as file:
        assert await loop.sendfile(protocol.transport, file) == BIG
        with pytest.raises(RuntimeError):
            await loop.sendfile(protocol.transport, file, fallback=False)
    protocol.transport.close()
    assert await reading == (data, True)
    await in_thread(peer.close)


# Errors


async def test_garbage_ends_the_connection_and_the_peer_is_told(loop):
    protocol, peer = await connected()
    peer.sock.sendall(b"this is no record of TLS" * 10)
    # OpenSSL 3.0's words and 3.6's. Not the `reason`, which PyPy 8 has not got for the latter.
    said = "(?i)wrong.version.number|record.layer.failure"
    with pytest.raises(ssl.SSLError, match=said) as caught:
        raise await protocol.lost
    assert type(caught.value) is ssl.SSLError
    with pytest.raises(ssl.SSLError, match=r"(?i)alert"):
        await in_thread(peer.recv, 100)
    assert protocol.calls == ["made", "lost"]
    peer.sock.close()


@pytest.mark.parametrize("paused", [False, True])
async def test_a_reset_is_lost_once(loop, paused):
    protocol, peer = await connected(tcp=True)
    protocol.transport.write(bytes(16 << 20))  # more than the kernel takes
    if paused:
        protocol.transport.pause_reading()
    await asyncio.sleep(0.01)
    reset(peer.sock)
    assert isinstance(await protocol.lost, (ConnectionResetError, BrokenPipeError))
    for _ in range(10):
        protocol.transport.write(b"nobody")
    await asyncio.sleep(0.01)
    assert protocol.calls.count("lost") == 1


@pytest.mark.parametrize("factory", [Recorder, Buffered])
@pytest.mark.parametrize("where", ["made", "data", "eof", "lost"])
def test_the_exception_of_a_callback_is_reported(loop, factory, where):
    reports = []
    loop.set_exception_handler(lambda loop, context: reports.append(context["exception"]))

    class Failing(factory):
        def connection_made(self, transport):
            super().connection_made(transport)
            self.fail("made")

        def data_received(self, data):
            Recorder.data_received(self, data)
            self.fail("data")

        def buffer_updated(self, count):
            super().buffer_updated(count)
            self.fail("data")

        def eof_received(self):
            super().eof_received()
            self.fail("eof")

        def connection_lost(self, error):
            super().connection_lost(error)
            self.fail("lost")

        def fail(self, here):
            if here == where:
                raise LookupError(here)

    if factory is Buffered:
        del Failing.data_received
        Failing.data_received = None

    async def main():
        ours, theirs = socket.socketpair()
        theirs.settimeout(PATIENCE)
        talking = asyncio.ensure_future(in_thread(talk, theirs))
        with pytest.raises(LookupError) if where == "made" else contextlib.nullcontext():
            protocol = await over(ours, Failing, tls_peers.CLIENT(), False)
            error = await protocol.lost
            assert isinstance(error, LookupError) == (where != "lost")
        await talking

    run(loop, main())
    assert [str(error) for error in reports] == [where]


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"HTTP/1.0 400 Bad Request\r\n\r\n", ssl.SSLError),
        (b"", ConnectionResetError),
        (None, ConnectionAbortedError),
    ],
)
@both_sides
async def test_a_failed_handshake_raises(loop, server_side, answer, error):
    ours, theirs = socket.socketpair()
    our_context, _ = contexts(TLS_1_3, server_side)
    if answer is not None:
        theirs.sendall(answer)
        theirs.shutdown(socket.SHUT_WR)
    options = {} if answer is not None else {"ssl_handshake_timeout": 0.3}
    protocols = []

    def factory():
        protocols.append(Recorder())
        return protocols[0]

    with pytest.raises(error) as caught:
        await over(ours, factory, our_context, server_side, **options)
    assert isinstance(caught.value, error)
    await asyncio.sleep(0.01)
    assert protocols[0].calls == []
    theirs.close()


async def test_a_certificate_that_is_refused_is_told_the_server(loop):
    ours, theirs = socket.socketpair()
    theirs.settimeout(PATIENCE)
    peer = asyncio.ensure_future(in_thread(shake_hands, theirs, tls_peers.SERVER(), True))
    with pytest.raises(ssl.SSLCertVerificationError) as caught:
        await over(ours, Recorder, ssl.create_default_context(), False)
    assert caught.value.verify_code != 0
    # In TLS 1.3 the server learns of it behind the handshake, or within.
    with pytest.raises(ssl.SSLError, match=r"(?i)unknown.ca"):
        await in_thread((await peer).recv, 1)
    theirs.close()


def test_cancelling_a_connect_leaves_nothing(loop):
    async def main():
        ours, theirs = socket.socketpair()
        context = tls_peers.client_context()
        task = asyncio.ensure_future(over(ours, Recorder, context, False))
        assert await in_thread(theirs.recv, 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        while await in_thread(theirs.recv, 1000):
            pass
        theirs.close()
        return weakref.ref(context)

    context = run(loop, main())
    loop.run_until_complete(asyncio.sleep(0))
    gc.collect()
    gc.collect()
    assert context() is None


@pytest.mark.parametrize("option", ["ssl_handshake_timeout", "ssl_shutdown_timeout"])
@pytest.mark.parametrize("seconds", [0, -1])
async def test_wrong_limits_are_refused(loop, option, seconds):
    if option == "ssl_shutdown_timeout" and not HAS_SHUTDOWN_TIMEOUT:
        pytest.skip("asyncio has no such argument before 3.11")
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(ValueError, match=f"{option} should be a positive"):
        await over(ours, Recorder, tls_peers.CLIENT(), False, **{option: seconds})


def test_a_server_outlives_failed_handshakes_and_tells_of_them_in_debug_mode(loop):
    reports = []
    loop.set_debug(True)
    loop.set_exception_handler(lambda loop, context: reports.append(context["message"]))

    async def main():
        server = await loop.create_server(Recorder, "127.0.0.1", 0, ssl=tls_peers.SERVER())
        address = server.sockets[0].getsockname()
        with socket.create_connection(address) as sock:
            sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
            await in_thread(read_all, sock)
        _, protocol = await loop.create_connection(
            Recorder, *address, ssl=tls_peers.CLIENT(), server_hostname="localhost"
        )
        protocol.transport.close()
        assert await protocol.lost is None
        server.close()
        await server.wait_closed()

    run(loop, main())
    assert reports == ["Error on transport creation for incoming connection"]


# Information and context


@both_versions
@both_sides
async def test_what_is_known_of_a_connection(loop, version, server_side):
    protocol, peer = await connected(version=version, server_side=server_side, tcp=True)
    transport = protocol.transport
    assert "SSL" in type(transport).__name__
    for _ in range(2):  # the same when it has ended
        info = transport.get_extra_info
        assert info("ssl_object").version() == f"TLSv{'1.2' if version is TLS_1_2 else '1.3'}"
        assert bool(info("peercert")) != server_side
        assert info("cipher") == peer.object.cipher()
        assert info("compression") is None
        assert info("sslcontext") is contexts(version, server_side)[0]
        assert transport._ssl_protocol._sslcontext is info("sslcontext")  # as aiohttp looks
        assert info("nothing", 7) == 7
        assert isinstance(info("sockname"), tuple)
        assert isinstance(info("peername"), tuple)
        if not transport.is_closing():
            assert info("socket").family == socket.AF_INET
            assert info("peername") == peer.sock.getsockname()
        transport.close()
        await in_thread(peer.close)
        await protocol.lost


def test_callbacks_run_in_the_context_of_the_connection(loop):
    variable = contextvars.ContextVar("variable", default="outside")
    seen = {}

    class Noting(Recorder):
        def note(self, name, *arguments):
            seen[name] = variable.get()
            return getattr(Recorder, name)(self, *arguments)

        def connection_made(self, transport):
            variable.set("inside")
            self.note("connection_made", transport)

        def data_received(self, data):
            self.note("data_received", data)

        def eof_received(self):
            self.note("eof_received")

        def pause_writing(self):
            self.note("pause_writing")

        def resume_writing(self):
            self.note("resume_writing")

        def connection_lost(self, error):
            self.note("connection_lost", error)

    async def main():
        protocol, peer = await connected(Noting)
        for size in (1, BIG):
            protocol.transport.write(bytes(size))
        # The small writes are joined until the next crossing, which is outside of any callback.
        await asyncio.sleep(0)
        protocol.transport.set_write_buffer_limits(0)
        protocol.transport.write(b"more")
        await in_thread(read_exactly, peer, BIG + 5)
        while "resume_writing" not in seen:
            await asyncio.sleep(0.001)
        peer.sendall(b"data")
        peer.shutdown(socket.SHUT_WR)
        await protocol.lost
        await in_thread(peer.close)

    run(loop, main())
    pause = seen.pop("pause_writing")
    assert pause in ("inside", "outside")  # inside a write it is the writer's
    assert set(seen.values()) == {"inside"}
    assert len(seen) == 5
    assert variable.get() == "outside"


def test_debug_mode_logs_the_handshake(loop, caplog):
    loop.set_debug(True)
    caplog.set_level(logging.DEBUG, "asyncio")

    async def main():
        protocol, peer = await connected()
        peer.sock.shutdown(socket.SHUT_WR)
        await protocol.lost
        peer.sock.close()

    run(loop, main())
    for words in ("starts SSL handshake", "SSL handshake took", "received EOF"):
        assert words in caplog.text


# start_tls


async def test_tls_within_tls(loop):
    data = random_bytes(BIG)
    ends = loop.create_future()

    async def serve(reader, writer):
        inner = await loop.start_tls(
            writer.transport, Recorder(), tls_peers.SERVER(), server_side=True
        )
        protocol = inner.get_protocol()
        protocol.connection_made(inner)
        inner.write(data)
        inner.close()
        ends.set_result((protocol, writer))  # a writer closes when it is freed

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls_peers.SERVER())
    transport, protocol = await loop.create_connection(
        Recorder,
        *server.sockets[0].getsockname(),
        ssl=tls_peers.CLIENT(),
        server_hostname="localhost",
    )
    inner = await loop.start_tls(
        transport, protocol, tls_peers.CLIENT(), server_hostname="localhost"
    )
    assert isinstance(inner, SSLTransport)
    assert inner is not transport
    assert inner.get_extra_info("peername") == server.sockets[0].getsockname()
    assert await protocol.lost is None
    assert protocol.data == data
    protocol, _ = await ends
    assert await protocol.lost is None
    server.close()


async def test_start_tls_behind_plain_writes(loop):
    ours, theirs = socket.socketpair()
    theirs.settimeout(PATIENCE)
    transport, protocol = await loop.create_connection(Recorder, sock=ours)
    transport.write(bytes(BIG))
    starting = asyncio.ensure_future(
        loop.start_tls(transport, protocol, tls_peers.CLIENT(), server_hostname="localhost")
    )
    await in_thread(read_exactly, theirs, BIG)
    peer = await in_thread(shake_hands, theirs, tls_peers.SERVER(), True)
    secure = await starting
    secure.write(bytes(BIG))
    assert await in_thread(read_exactly, peer, BIG) == bytes(BIG)
    secure.close()
    await in_thread(peer.close)
    assert await protocol.lost is None
    assert pressure(protocol) == ["pause", "resume"] * (len(pressure(protocol)) // 2)


async def test_start_tls_takes_what_a_servers_stream_has_read(loop):
    """The client has begun the handshake before the server asks for it."""
    ours, theirs = socket.socketpair()
    theirs.settimeout(PATIENCE)
    reader = asyncio.StreamReader()
    transport, protocol = await loop.create_connection(
        lambda: asyncio.StreamReaderProtocol(reader), sock=ours
    )
    shaking = asyncio.ensure_future(in_thread(shake_hands, theirs, tls_peers.CLIENT(), False))
    while not reader._buffer:
        await asyncio.sleep(0.001)
    tls = await loop.start_tls(transport, protocol, tls_peers.SERVER(), server_side=True)
    peer = await shaking
    await in_thread(peer.sendall, b"ping\n")
    assert await reader.readline() == b"ping\n"
    tls.close()
    await in_thread(peer.close)


@pytest.mark.skipif(sys.implementation.name != "cpython", reason="counts references")
def test_a_failed_handshake_leaves_nothing_to_the_garbage_collector(loop):
    async def main():
        ours, theirs = socket.socketpair()
        theirs.settimeout(PATIENCE)
        transport, protocol = await loop.create_connection(asyncio.Protocol, sock=ours)
        shaking = asyncio.ensure_future(in_thread(shake_hands, theirs, tls_peers.SERVER(), True))
        failed = False
        try:
            await loop.start_tls(
                transport, protocol, ssl.create_default_context(), server_hostname="localhost"
            )
        except ssl.SSLCertVerificationError:  # not by pytest.raises, which would keep it
            failed = True
        assert failed
        with contextlib.suppress(OSError):
            (await shaking).close()
        theirs.close()
        gone = weakref.ref(transport)
        del transport
        while gone() is not None:
            await asyncio.sleep(0.001)

    gc.disable()
    try:
        run(loop, main())
    finally:
        gc.enable()


async def test_start_tls_of_a_closed_transport_is_refused(loop):
    ours, theirs = socket.socketpair()
    transport, protocol = await loop.create_connection(Recorder, sock=ours)
    transport.close()
    with pytest.raises(ConnectionAbortedError):
        await loop.start_tls(transport, protocol, tls_peers.CLIENT())
    for wrong in (transport, object()):
        with pytest.raises(TypeError):
            await loop.start_tls(wrong, protocol, None)
    await protocol.lost
    theirs.close()
