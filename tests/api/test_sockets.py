"""Names and options of sockets: of servers, connections and UDP sockets alike."""

import contextlib
import errno
import gc
import os
import socket
import struct

import pytest
from interrupts import Interrupt, each_line, raise_interrupt
from peers import LINKS, PIPE_LINKS, Background, end_of, in_other_thread, make_link, nothing, reset
from tls_peers import TLS_LINKS

import pyasync
from pyasync._core.sockets import PeerHandle, SocketHandle

ALL_LINKS = LINKS + PIPE_LINKS + TLS_LINKS
TCP_SERVERS = [link for link in LINKS + TLS_LINKS if link.values[0]["incoming"]]


@pytest.fixture
def link(request, run):
    return make_link(run, request.param)


# Names


@pytest.mark.parametrize("link", LINKS + PIPE_LINKS, indirect=True)
def test_both_ends_agree_on_their_names(link):
    names = []

    def connected(stream):
        names.append((stream.sockname, stream.peername))
        stream.close()

    def peer(sock):
        theirs = sock.getpeername(), sock.getsockname()
        end_of(sock)
        return theirs

    theirs = link(connected, peer)
    assert names == [theirs]


def test_a_pipes_names_are_paths_and_that_of_a_client_is_empty(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = []

    def connected(stream):
        names.append((stream.sockname, stream.peername))
        stream.close()
        if len(names) == 2:
            server.close()

    with run():
        server = pyasync.pipe_server(b"p\xffpe", nothing, connect_cb=connected)
        pyasync.pipe_connect(b"p\xffpe", nothing, connect_cb=connected)
    path = os.fsdecode(b"p\xffpe")
    assert sorted(names) == [("", path), (path, "")]


@pytest.mark.parametrize("link", TCP_SERVERS, indirect=True)
def test_a_connection_that_was_reset_before_it_was_accepted_has_the_name_of_its_peer(link):
    """As a port scan does: connect_cb logs the name, and must not raise."""
    names, expected, errors = [], [], []

    def connected(stream):
        names.append(stream.peername)
        if len(names) == 3:
            server.close()
        stream.close()

    def on_event(error):
        if not isinstance(error, (pyasync.SocketReset, pyasync.TcpSslError)):
            errors.append(error)
        else:
            names.append(error.socket.peername)
            if len(names) == 3:
                server.close()

    with link.run():
        server = link.serve(
            read_cb=nothing, connect_cb=connected, event_cb=lambda error: on_event(error)
        )
        for _ in range(3):
            sock = socket.socket(link.family)
            sock.connect(server.address)
            expected.append(sock.getsockname())
            reset(sock)
    assert errors == []
    assert names == expected


@pytest.mark.parametrize("link", LINKS, indirect=True)
def test_a_connection_that_was_reset_has_the_name_of_its_peer(link):
    names = []

    def connected(stream):
        names.append(stream.peername)
        stream.write(b"hello")

    def event_cb(error):
        assert isinstance(error, pyasync.SocketReset)
        names.append(error.socket.peername)

    def peer(sock):
        assert sock.recv(1)
        reset(sock)

    link(connected, peer, event_cb=event_cb)
    assert len(names) == 2
    assert names[0] == names[1]


# Options


def udp(run, use):

    with run(), contextlib.closing(pyasync.udp_socket("127.0.0.1", 0, nothing)) as sock:
        use(sock)


def tcp_server(run, use):

    with run(), contextlib.closing(pyasync.tcp_server("127.0.0.1", 0, nothing)) as server:
        use(server)


def pipe_server(run, use):
    name = "\0" + os.urandom(8).hex()
    with run(), contextlib.closing(pyasync.pipe_server(name, nothing)) as server:
        use(server)


def connection_over(parameters):
    def connection(run, use):
        def connected(stream):
            use(stream)
            stream.close()

        make_link(run, parameters)(connected, end_of)

    return connection


KINDS = [
    *(pytest.param(kind, id=kind.__name__) for kind in (udp, tcp_server, pipe_server)),
    *(pytest.param(connection_over(link.values[0]), id=link.id) for link in ALL_LINKS),
]


@pytest.mark.parametrize("kind", KINDS)
def test_options_are_those_of_the_descriptor(run, kind):
    def use(handle):
        handle.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)
        with socket.socket(fileno=os.dup(handle.fileno())) as sock:
            sock.setblocking(False)  # PyPy has just made the descriptor block
            size = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        assert handle.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == size != 0
        assert handle.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4) == struct.pack("i", size)
        for linger in (struct.pack("ii", 1, 7), bytearray(struct.pack("ii", 0, 7))):
            handle.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            assert handle.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 100) == linger

    kind(run, use)


@pytest.mark.parametrize("kind", KINDS)
def test_wrong_options_are_refused(run, kind):
    def use(handle):
        for call in (
            lambda: handle.getsockopt(socket.SOL_SOCKET, 9999),
            lambda: handle.setsockopt(socket.SOL_SOCKET, 9999, 1),
        ):
            with pytest.raises(pyasync.SocketError) as caught:
                call()
            assert caught.value.errno == errno.ENOPROTOOPT
            assert caught.value.socket is handle
        for value, error in ((1 << 32, ValueError), ("1", TypeError), (None, TypeError)):
            with pytest.raises(error):
                handle.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, value)
        for size, error in ((1025, ValueError), (-1, ValueError), ("1", TypeError)):
            with pytest.raises(error):
                handle.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)
        with pytest.raises(RuntimeError):
            in_other_thread(handle.setsockopt, socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        handle.close()
        for call in (
            lambda: handle.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF),
            lambda: handle.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1),
        ):
            with pytest.raises(pyasync.SocketClosed):
                call()

    kind(run, use)


# What a signal handler raises in the middle


@pytest.mark.parametrize("ask", ["peername", "getsockopt"])
def test_an_exception_at_any_line_leaves_the_descriptor_alone(run, ask):
    """The loop goes on after it: a closed number would be the next connection's, too."""

    def question(stream):
        if ask == "peername":
            return stream.peername
        return stream.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)

    def look(stream):
        before = os.fstat(stream.fileno())
        each_line(
            lambda: attempt(stream, before),
            raise_interrupt,
            PeerHandle._name,
            SocketHandle.getsockopt,
            SocketHandle._ask,
        )
        stream.close()
        server.close()

    def attempt(stream, before):
        with contextlib.suppress(Interrupt):
            question(stream)
        gc.collect()
        assert os.path.samestat(before, os.fstat(stream.fileno()))

    def start():
        nonlocal server, peer
        server = pyasync.tcp_server("127.0.0.1", 0, nothing, connect_cb=look)
        peer = Background(dial_and_wait, server.address)

    def dial_and_wait(address):
        with socket.create_connection(address, timeout=60) as sock:
            return end_of(sock)

    server = peer = None
    run(start, limit=60)
    assert peer.result() == (0, None)


# read_cb


def test_read_cb_can_be_set_for_each_state_of_a_protocol(run):
    got = []

    def first(stream, data):
        assert stream.read_cb is first
        got.append(("first", data))
        stream.read_cb = second
        stream.write(b"2")

    def second(stream, data):
        got.append(("second", data))
        stream.close()
        server.close()
        with pytest.raises(pyasync.SocketClosed):
            stream.read_cb = first

    with run():
        server = pyasync.tcp_server("127.0.0.1", 0, lambda stream, data: stream.write(data))
        others = pyasync.tcp_server("127.0.0.1", 0, nothing)
        client = pyasync.tcp_connect(*server.address, first, data=b"1")
        for wrong in (None, "first", 5):
            with pytest.raises(TypeError, match="read_cb must be a function"):
                client.read_cb = wrong
        others.close()
    assert got == [("first", b"1"), ("second", b"2")]


def test_setting_read_cb_leaves_the_other_connections_of_the_server_alone(run):
    got = []

    def mine(stream, data):
        got.append(("mine", data))

    def shared(stream, data):
        got.append(("shared", data))
        stream.read_cb = mine
        stream.close()
        if len(got) == 2:
            server.close()

    with run():
        server = pyasync.tcp_server("127.0.0.1", 0, shared)
        for _ in range(2):
            pyasync.tcp_connect(*server.address, nothing, data=b"!").close()
        shared_before = server._options.read_cb
    assert [name for name, _ in got] == ["shared", "shared"]
    assert shared_before is shared


# Names after the end, and reprs


@pytest.mark.parametrize("ending", ["close", "force", "peer", "exit", "error"])
@pytest.mark.parametrize("how", ["close_cb", "asked"])
def test_names_can_be_read_after_the_end(run, ending, how):
    seen, closed = [], []

    def connected(stream):
        if how == "asked":
            seen.append((stream.peername, stream.sockname))
        streams.append(stream)
        server.close()
        if ending == "exit":
            pyasync.exit_event_loop()
        elif ending in ("close", "force"):
            stream.close(force=ending == "force")

    def close_cb(stream, error):
        closed.append((stream.peername, stream.sockname))

    streams = []
    options = {"close_cb": close_cb} if how == "close_cb" else {}
    with run():
        server = pyasync.tcp_server(
            "127.0.0.1", 0, nothing, connect_cb=connected, event_cb=nothing, **options
        )
        sock = socket.create_connection(server.address)
        expected = (sock.getsockname(), server.address)
        if ending == "error":
            reset(sock)
        elif ending == "peer":
            sock.close()
    sock.close()
    (stream,) = streams
    assert (stream.peername, stream.sockname) == expected
    for names in seen + closed:
        assert names == expected
    assert f"closed {expected[1][0]}:{expected[1][1]} -> {expected[0][0]}:" in repr(stream)


def test_names_are_not_kept_for_those_who_do_not_ask(run):
    streams = []

    def connected(stream):
        streams.append(stream)
        stream.close()
        server.close()

    with run():
        server = pyasync.tcp_server("127.0.0.1", 0, nothing, connect_cb=connected)
        pyasync.tcp_connect(*server.address, nothing).close()
        socket.create_connection(server.address).close()
    with pytest.raises(pyasync.EventLoopNotRunning):
        streams[0].peername  # noqa: B018
    assert repr(streams[0]) == "<TcpSocket closed>"


def test_the_repr_of_a_socket_whose_descriptor_has_gone_names_none(run):
    told = []

    def connected(stream):
        stream.write(bytes(16 << 20))
        stream.close()
        reset(listener.accept()[0])

    with socket.create_server(("127.0.0.1", 0)) as listener, run():
        pyasync.tcp_connect(
            *listener.getsockname(), nothing, connect_cb=connected,
            event_cb=lambda error: told.append(repr(error.socket)),
        )  # fmt: skip
    assert told == ["<TcpSocket closing>"]


def test_names_of_pipes_can_be_read_after_the_end(run, tmp_path):
    with run():
        server = pyasync.pipe_server(tmp_path / "p", nothing)
        stream = pyasync.pipe_connect(tmp_path / "p", nothing, close_cb=nothing)
        pyasync.delay(lambda: (stream.close(), server.close()), time=0.01)
    assert stream.peername == str(tmp_path / "p")
    assert stream.sockname == ""


def test_reprs_tell_state_descriptor_and_names(run):
    def connected(stream):
        port = server.address[1]
        own = stream.sockname[1]
        assert repr(stream) == (
            f"<TcpSocket open fd={stream.fileno()} 127.0.0.1:{own} -> 127.0.0.1:{port}>"
        )
        stream.shutdown()
        assert repr(stream).startswith("<TcpSocket shut down fd=")
        stream.close()
        assert repr(stream).startswith("<TcpSocket closing fd=")
        server.close()
        assert repr(server) == f"<TcpServer closed 127.0.0.1:{port}>"

    with run():
        server = pyasync.tcp_server("127.0.0.1", 0, nothing)
        assert repr(server).startswith(f"<TcpServer listening fd={server.fileno()} 127.0.0.1:")
        stream = pyasync.init_tcp_socket(nothing)
        assert repr(stream) == "<TcpSocket unconnected>"
        stream.close()
        assert repr(stream) == "<TcpSocket closed>"
        named = pyasync.tcp_connect("localhost", server.address[1], nothing)
        assert repr(named) == "<TcpSocket connecting>"
        named.close()
        client = pyasync.tcp_connect(*server.address, nothing, connect_cb=connected, stream=True)
        assert repr(client).startswith("<AsyncStream, 0 bytes wait, of <TcpSocket connecting fd=")
        assert in_other_thread(repr, client.socket) == "<TcpSocket connecting>"
        udp = pyasync.udp_socket("127.0.0.1", 0, nothing)
        assert repr(udp) == f"<UdpSocket open fd={udp.fileno()} 127.0.0.1:{udp.address[1]}>"
        udp.close()
        six = pyasync.tcp_server("::1", 0, nothing)
        assert f"[::1]:{six.address[1]}" in repr(six)
        six.close()
        process = pyasync.spawn("true", [], output=pyasync.PIPE)
        assert repr(process.output) == f"<ProcessPipe open fd={process.output.fileno()}>"
    assert "closed" in repr(client.socket)
    assert repr(process.output) == "<ProcessPipe closed>"
