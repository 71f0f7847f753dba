"""TLS on a connection that has begun without it."""

import contextlib
import ssl
import threading

import pytest
from peers import (
    LINKS,
    MORE_THAN_FITS,
    Background,
    Link,
    after_iterations,
    nothing,
    read_all,
    read_exactly,
    small_buffers,
    tell,
)
from tls_peers import CLIENT, SERVER, TlsPeer

import pyasync


@pytest.fixture(params=LINKS)
def link(request, run):
    return Link(run, **request.param)


def upgrade(link, socket, **options):
    """Let TLS begin, in the role that is not the peer's."""
    if link.incoming:
        return pyasync.start_tls(socket, ssl_context=SERVER(), server_side=True, **options)
    return pyasync.start_tls(socket, ssl_context=CLIENT(), **options)


def upgraded(link, sock, **options):
    if link.incoming:
        return TlsPeer(sock, CLIENT(), server_side=False, server_hostname=link.host, **options)
    return TlsPeer(sock, SERVER(), server_side=True, **options)


def test_a_connection_goes_on_with_tls(link):
    told = []

    def peer(sock):
        assert read_exactly(sock, 8) == b"go ahead"
        with upgraded(link, sock) as tls:
            tls.sendall(b"secret")
            return read_all(tls), tls.ended_properly

    def connected(socket):
        socket.data = "mine"
        socket.write(b"go ahead")
        assert upgrade(link, socket, read_cb=read_cb, connect_cb=agreed) is socket
        assert isinstance(socket, pyasync.SslSocket)
        socket.write(b"early,")

    def agreed(socket):
        assert socket.data == "mine"
        told.append(socket.cipher[1])
        socket.write(b"in connect_cb,")

    def read_cb(socket, data):
        told.append(data)
        socket.write(b"answer")
        socket.close()

    assert link(connected, peer) == (b"early,in connect_cb,answer", True)
    assert told == ["TLSv1.3", b"secret"]


def test_what_was_written_before_is_sent_as_it_is_and_called_back(link):
    called = []

    def peer(sock):
        plain = read_exactly(sock, MORE_THAN_FITS + 4)
        with upgraded(link, sock) as tls:
            return plain[-4:], read_all(tls)

    def connected(socket):
        small_buffers(socket)
        socket.write(bytes(MORE_THAN_FITS), write_cb=lambda socket: called.append("plain"))
        socket.disable(write=True)
        socket.write(b"held", write_cb=lambda socket: called.append("held"))
        upgrade(link, socket)
        socket.enable(write=True)
        socket.write(b"encrypted", write_cb=lambda socket: called.append("encrypted"))
        socket.close()

    assert link(connected, peer, linger=5) == (b"held", b"encrypted")
    assert called == ["plain", "held", "encrypted"]


@pytest.mark.parametrize("how", ["received", "stream", "disabled"])
def test_bytes_that_have_arrived_already_belong_to_tls(run, how):
    """A client that does not wait for the answer to STARTTLS: its hello is behind it."""
    link = Link(run, **LINKS[0].values[0])
    told = []

    def peer(sock):
        tls = upgraded(link, sock, handshake=False)
        with pytest.raises(ssl.SSLWantReadError):
            tls.object.do_handshake()
        hello = tls._outgoing.read()
        sock.sendall(b"STARTTLS\n" + hello)
        assert read_exactly(sock, 3) == b"OK\n"
        with tls:
            tls.handshake()
            tls.sendall(b"secret")
            return read_all(tls)

    def read_line(socket, data):
        if how == "stream":
            assert data.readline() == b"STARTTLS\n"
            rest = b""
        else:
            line, rest = data[:9], data[9:]
            assert (line, rest[:1]) == (b"STARTTLS\n", b"\x16")
        if how == "disabled":
            # As if the rest had come by itself, after reading was disabled.
            socket.disable(read=True)
            socket._need_extras().paused_input.append(rest)
            rest = b""
            socket.write(b"OK\n")
            upgrade(link, socket, read_cb=read_secret)
            after_iterations(50, lambda: enable(socket))
            return
        socket.write(b"OK\n")
        upgrade(link, data if how == "stream" else socket, read_cb=read_secret, received=rest)

    def enable(socket):
        assert told == []
        socket.enable(read=True)

    def read_secret(socket, data):
        told.append(data.read() if how == "stream" else data)
        socket.close()

    assert link(nothing, peer, read_cb=read_line, stream=how == "stream") == b""
    assert told == [b"secret"]


def test_plain_text_slipped_in_is_no_data(run):
    """CVE-2011-0411: what came unencrypted must not be taken for what was encrypted."""
    link = Link(run, **LINKS[0].values[0])
    told, events = [], []

    def peer(sock):
        sock.sendall(b"STARTTLS\nRCPT TO:<attacker>\n")
        read_all(sock)

    def read_cb(socket, stream):
        told.append(stream.readline())
        upgrade(link, stream, read_cb=lambda socket, stream: told.append(stream.read()))
        assert stream.buffered == 0

    link(nothing, peer, read_cb=read_cb, stream=True, event_cb=events.append)
    assert told == [b"STARTTLS\n"]
    assert [type(event) for event in events] == [pyasync.TcpSslError]


def test_timeouts_and_callbacks_are_kept(link):
    events, done = [], threading.Event()

    def peer(sock):
        with upgraded(link, sock):
            assert done.wait(10)

    link(
        lambda socket: upgrade(link, socket),
        peer,
        read_timeout=0.5,
        event_cb=tell(events, done.set),
    )
    assert events == [pyasync.SocketTimeout]


def test_writing_stays_disabled(link):
    """What was written before belongs to the plain connection, and is sent there."""
    sizes = []

    def peer(sock):
        assert read_exactly(sock, 6) == b"before"
        with upgraded(link, sock) as tls:
            return read_all(tls)

    def connected(socket):
        socket.disable(write=True)
        socket.write(b"before")
        upgrade(link, socket, connect_cb=encrypted)

    def encrypted(socket):
        socket.write(b"after")
        after_iterations(3, lambda: enable(socket))

    def enable(socket):
        sizes.append(socket.write_queue_size)
        socket.enable(write=True)
        socket.close()

    assert link(connected, peer) == b"after"
    assert sizes == [5]


def test_an_upgrade_of_what_cannot_be_raises(link):
    def connected(socket):
        with pytest.raises(TypeError, match="TcpSocket"):
            pyasync.start_tls(object())
        with pytest.raises(TypeError, match="context"):
            pyasync.start_tls(socket, server_side=True)
        upgrade(link, socket)
        with pytest.raises(ValueError, match="already"):
            upgrade(link, socket)
        socket.close(force=True)
        with pytest.raises(pyasync.SocketClosed):
            pyasync.start_tls(socket)

    link(connected, lambda sock: sock.close())


def test_a_socket_that_is_not_connected_cannot_be_upgraded():
    with pyasync.event_loop():
        socket = pyasync.init_tcp_socket(nothing)
        with pytest.raises(ValueError, match="not connected"):
            pyasync.start_tls(socket)
        socket.close()


def test_a_pipe_cannot_be_upgraded(run):
    with run():
        server = pyasync.pipe_server("\0pyasync-start-tls", nothing)
        client = pyasync.pipe_connect("\0pyasync-start-tls", nothing)
        with pytest.raises(TypeError):
            pyasync.start_tls(client)
        client.close()
        server.close()


def test_a_socket_adopted_by_descriptor_begins_with_the_handshake(run):
    link = Link(run, **LINKS[0].values[0])
    received = []

    def talk(sock):
        with TlsPeer(sock, SERVER(), server_side=True) as tls:
            tls.sendall(b"hello")

    with run():
        listener = link.listen()
        sock = link.dial(listener.getsockname())
        thread = Background(talk, link.accept(listener))
        pyasync.init_tcp_ssl_socket(
            lambda socket, data: received.append(data),
            fd=sock.fileno(),
            ssl_context=CLIENT(),
            server_hostname="localhost",
        )
        sock.close()
    thread.result()
    assert received == [b"hello"]


def test_a_socket_without_a_host_needs_the_name_that_is_checked(run):
    """Before Python 3.14, `ssl` itself takes any name in the certificate then."""
    link = Link(run, **LINKS[0].values[0])
    told = []

    @contextlib.contextmanager
    def refused():
        with pytest.raises(ValueError, match="server_hostname must be a host's name, not None"):
            yield
        told.append("refused")

    def connected(socket):
        with refused():
            pyasync.start_tls(socket, ssl_context=CLIENT())
        socket.close()

    with run(), link.listen() as listener:
        client = link.dial(listener.getsockname())
        with client, link.accept(listener):
            with refused():
                pyasync.init_tcp_ssl_socket(nothing, fd=client.fileno(), ssl_context=CLIENT())
            pyasync.init_tcp_socket(nothing, fd=client.fileno(), connect_cb=connected)
    assert told == ["refused", "refused"]
