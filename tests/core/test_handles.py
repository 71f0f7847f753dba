"""Handles of the core without the callback API: what another API would build on."""

import contextlib
import errno
import socket
import sys

import pytest
from engines import Options, RecordingStream, entered, read_available, steps, stream_and_peer
from peers import PATIENCE, end_of, reset, unused_port
from tls_peers import CLIENT, SERVER

import pyasync
from pyasync._core.children import ChildProcess, NewChild
from pyasync._core.connecting import Connector, Socket, connect
from pyasync._core.datagrams import DatagramSocket
from pyasync._core.listener import Listener
from pyasync._core.pool_requests import Lookup
from pyasync._core.sockets import bind, listen
from pyasync._core.stream import UNCONNECTED, WITHOUT_LINGER
from pyasync._core.tls import TlsOptions
from pyasync._core.tls_stream import TlsStream
from pyasync._ffi import lib


class Reporting:
    """The six methods that an API overrides; they note what the core tells."""

    __slots__ = ()

    def _note(self, *item):
        self._options.notes.append(item)

    def _report_opened(self):
        self._note("opened", self)

    def _report_data(self, data):
        self._note("data", data)

    def _report_end(self):
        self._note("end")

    def _report_error(self, error):
        self._note("error", type(error))

    def _report_pressure(self, over_high):
        self._note("pressure", over_high)

    def _report_closed(self):
        self._note("closed")


class Connection(Reporting, Socket):
    __slots__ = ()


class TlsConnection(Reporting, TlsStream):
    __slots__ = ()


class NotingOptions(Options):
    """Options whose streams note everything; a listener's have no event_cb."""

    pressure_cb = True  # the core need not know what an API has here
    event_cb = None
    connect_timeout = None

    def __init__(self, loop, **more):
        super().__init__(loop, lambda stream, data: stream._report_data(data))
        self.notes = []
        vars(self).update(more)


class NotingListener(Listener):
    """A listener that makes connections of the class in its options."""

    __slots__ = ()
    _kind = lib.PA_TCP_SERVER

    def _make_connection(self, slot, address):
        self._options.notes.append(("address", self._loop.unpack_address(address)))
        return self._options.connection(self._options, slot, self._state_of_new)


@contextlib.contextmanager
def listening(engine, **options):
    sock = bind("127.0.0.1", 0, False)
    listen(sock, None)
    with sock:
        listener = NotingListener(NotingOptions(engine, **options), sock, None)
    yield listener
    listener.close()


def client_of(engine, host, port, kind=Connection, **options):
    """Connect as an API does, to an address or to a name."""
    stream = kind(NotingOptions(engine, remote=(host, port), **options), -1, UNCONNECTED)
    stream._begin()
    stream._before_connecting(host)
    if host == "localhost":
        stream._connect_to(Connector(stream, host, port, (None, 0)), None)
    else:
        stream._on_slot(connect(engine, host, port, (None, 0)))
    return stream


def kinds(notes):
    return [item[0] for item in notes]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_the_six_reports_of_a_connection_come_in_order(host):
    with entered() as engine, listening(engine, connection=Connection) as listener:
        client = client_of(engine, host, listener.address[1])
        notes, ours = listener._options.notes, client._options.notes
        steps(engine, lambda: kinds(notes)[-1:] == kinds(ours) == ["opened"])
        assert notes.pop(0) == ("address", client.sockname)
        server = notes[0][1]
        client._write(b"question", None, False)
        steps(engine, lambda: len(notes) == 2)
        assert notes[1] == ("data", b"question")
        server.set_watermarks(0)
        server._write(bytes(8 << 20), None, False)
        server.shutdown()
        steps(engine, lambda: "end" in kinds(ours))
        steps(engine, lambda: "closed" in kinds(notes) and "closed" in kinds(ours))
        assert sum(len(item[1]) for item in ours if item[0] == "data") == 8 << 20
        assert [item for item in notes if item[0] == "pressure"] == [
            ("pressure", True), ("pressure", False),
        ]  # fmt: skip
        assert engine.errors == []


def test_a_connection_that_is_refused_reports_its_error_and_is_closed():
    with unused_port() as port, entered() as engine:
        client = client_of(engine, "127.0.0.1", port)
        steps(engine, lambda: "closed" in kinds(client._options.notes))
        assert client._options.notes == [("error", pyasync.SocketRefused), ("closed",)]


def test_tls_is_a_mixin_over_the_cores_stream():
    def tls(context, server_side):
        return TlsOptions(
            context, server_side=server_side, server_hostname=None if server_side else "localhost",
            handshake_timeout=10, shutdown_timeout=10,
        )  # fmt: skip

    with entered() as engine, socket.create_server(("127.0.0.1", 0)) as listener:
        client = client_of(
            engine, *listener.getsockname(), kind=TlsConnection, tls=tls(CLIENT(), False)
        )
        sock, _ = listener.accept()
        sock.setblocking(False)
        server = TlsConnection(NotingOptions(engine, tls=tls(SERVER(), True)), -1, UNCONNECTED)
        server._before_connecting(None)
        server._on_slot(lib.pa_open(engine.c, sock.detach(), lib.PA_TCP, True))
        server._on_connected(0)
        client._write(b"x" * 100_000, None, False)
        notes = server._options.notes
        steps(engine, lambda: sum(len(n[1]) for n in notes if n[0] == "data") == 100_000)
        client.close()
        steps(engine, lambda: "closed" in kinds(notes))
        assert kinds(notes)[0] == "opened"
        assert kinds(notes)[-2:] == ["end", "closed"]


def test_datagrams_do_without_an_api():
    class Datagrams(DatagramSocket):
        __slots__ = ()

        def _report_error(self, error):
            errors.append(error)

    errors, got = [], []
    with entered() as engine:
        sockets = [
            Datagrams(engine, bind("127.0.0.1", 0, False, socket.SOCK_DGRAM), read, None)
            for read in (lambda udp, data, address: got.append((data, address)), None)
        ]
        sockets[1].send(b"hello", sockets[0].address)
        assert sockets[1].send_queue_size == 5
        steps(engine, lambda: got)
        assert got == [(b"hello", sockets[1].address)]
        assert errors == []


def test_a_child_and_its_pipe_do_without_an_api():
    class Child(ChildProcess):
        __slots__ = ()

        def _report_exit(self):
            exits.append((self.exit_status, self.term_signal))

    exits, program = [], "print('hello'); raise SystemExit(3)"
    with entered() as engine:
        child = NewChild(
            engine, sys.executable, ["-c", program], env=None,
            working_directory=None, uid=None, gid=None, detached=False,
        )  # fmt: skip
        output = RecordingStream.__new__(RecordingStream)
        output.told = []
        slot = child.open_pipe(1)
        options = Options(engine, RecordingStream._report_data)
        super(RecordingStream, output).__init__(options, slot)
        engine.register(slot, output)
        Child(engine, child.start({}), None)
        child.end()
        steps(engine, lambda: exits and "end" in output.told)
        assert exits == [(3, 0)]
        assert b"".join(item for item in output.told if isinstance(item, bytes)) == b"hello\n"


def test_a_lookup_tells_its_failure_to_whoever_has_asked():
    found, errors = [], []
    with entered() as engine:
        Lookup(engine, "localhost", socket.AF_INET, found.append, errors.append)
        Lookup(engine, "", socket.AF_INET, found.append, errors.append)
        steps(engine, lambda: found and errors)
        assert found == [[(socket.AF_INET, "127.0.0.1")]]
        assert isinstance(errors[0], pyasync.DnsError)


def test_what_is_written_when_nobody_runs_the_engine_leaves_with_the_next_poll():
    with entered() as engine, stream_and_peer(engine) as (stream, peer):
        engine.leave()
        stream._write(b"later", None, False)
        assert read_available(peer) == b""
        engine.enter()
        steps(engine, lambda: stream._loop.operations == [])
        assert read_available(peer) == b"later"


def tcp_pair():
    """Give two connected plain sockets: ours does not block, nor does the peer."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        peer, _ = listener.accept()
    ours.setblocking(False)
    peer.setblocking(False)
    return ours, peer


def test_a_descriptor_can_be_adopted_without_being_read():
    ours, peer = socket.socketpair()
    with entered() as engine, peer:
        stream = RecordingStream(engine, ours, read=False)
        peer.send(b"early")
        for _ in range(3):
            engine.poll(0)
            engine.dispatch()
        assert stream.told == []
        engine.queue((lib.PA_READ_START, stream._slot, 0, b"", None))
        steps(engine, lambda: stream.told == [b"early"])


def test_a_large_write_answers_with_the_size_of_the_queue_and_then_with_the_error():
    with entered() as engine:
        ours, peer = tcp_pair()
        stream = RecordingStream(engine, ours, kind=lib.PA_TCP)
        assert engine.write_now(stream._slot, b"x" * 10, None) == 0
        blocked = engine.write_now(stream._slot, bytes(32 << 20), None)
        assert 0 < blocked < 32 << 20
        assert engine.write_now(stream._slot, b"x" * 10, None) == blocked + 10
        stream.close(force=True)
        steps(engine, lambda: "closed" in stream.told)
        peer.close()

        ours, peer = tcp_pair()
        stream = RecordingStream(engine, ours, kind=lib.PA_TCP, read=False)
        reset(peer)  # of which nobody reads
        assert engine.write_now(stream._slot, b"x" * 10, None) in (-errno.ECONNRESET, -errno.EPIPE)
        steps(engine, lambda: "closed" in stream.told)


@pytest.mark.parametrize("lingers", [True, False])
def test_a_close_lingers_for_unread_input_unless_the_api_does_not_want_it(lingers):
    class Impatient(RecordingStream):
        __slots__ = ()
        _close_mode = WITHOUT_LINGER

    with entered() as engine:
        ours, peer = tcp_pair()
        with peer:
            kind = RecordingStream if lingers else Impatient
            stream = kind(engine, ours, kind=lib.PA_TCP, read=False)
            peer.send(b"never read")
            engine.poll(0)
            engine.dispatch()
            stream._write(b"last words", None, False)
            stream.close()
            steps(engine, lambda: engine.operations == [])
            if lingers:
                assert engine.stats().handles["tcp"] == 1  # it waits for the peer's end
                assert read_available(peer) == b"last words"
                peer.shutdown(socket.SHUT_WR)
            steps(engine, lambda: engine.stats().handles["tcp"] == 0)
            if not lingers:
                assert end_of(peer)[1] is ConnectionResetError


def test_a_connection_that_gets_no_object_is_closed():
    class Failing(NotingListener):
        __slots__ = ()

        def _make_connection(self, slot, address):
            raise ZeroDivisionError

    with entered() as engine:
        sock = bind("127.0.0.1", 0, False)
        listen(sock, None)
        with sock:
            listener = Failing(NotingOptions(engine), sock, None)
        with socket.create_connection(listener.address) as peer:
            peer.settimeout(PATIENCE)
            steps(engine, lambda: engine.stats().accepted == engine.stats().closed == 1)
            assert end_of(peer) in [(0, None), (0, ConnectionResetError)]
        assert [type(error) for error in engine.errors] == [ZeroDivisionError]
        listener.close()


@pytest.mark.parametrize("report", ["_report_end", "_report_error"])
def test_a_stream_is_closed_also_when_its_report_raises(report):
    def fail(*arguments):
        raise ZeroDivisionError

    kind = type("Failing", (RecordingStream,), {"__slots__": (), report: fail})
    with entered() as engine:
        ours, peer = tcp_pair()
        stream = kind(engine, ours, kind=lib.PA_TCP)
        (reset if report == "_report_error" else socket.socket.close)(peer)
        steps(engine, lambda: engine.objects[stream._slot] is None)
        assert stream.closed
        assert [type(error) for error in engine.errors] == [ZeroDivisionError]


def test_each_stream_that_is_broken_answers_every_write_with_its_own_error():
    with entered() as engine:
        streams = []
        for _ in range(2):
            ours, peer = tcp_pair()
            streams.append(RecordingStream(engine, ours, kind=lib.PA_TCP, read=False))
            reset(peer)
        told = [engine.write_now(stream._slot, b"x", None) for stream in streams * 2]
        assert set(told) == {-errno.ECONNRESET}  # of the first write; EPIPE is for those after it
        steps(engine, lambda: all("closed" in stream.told for stream in streams))
