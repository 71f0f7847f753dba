"""What all servers can: pause, tell their connections, and shut down in order."""

import socket
import time

import pytest
from peers import (
    LINKS,
    PIPE_LINKS,
    Background,
    after_iterations,
    make_link,
    nothing,
    read_all,
    when,
)
from tls_peers import TLS_LINKS

import pyasync

ACCEPTING = [link for link in [*LINKS, *PIPE_LINKS, *TLS_LINKS] if link.values[0]["incoming"]]


@pytest.fixture(params=ACCEPTING)
def link(request, run):
    return make_link(run, request.param)


def close_all(server, *clients):
    for client in clients:
        client.close()
    server.close()


# Pause and resume


def test_a_paused_server_lets_connections_wait_and_a_resumed_one_accepts_them(link):
    connected, clients = [], []

    def start():
        nonlocal server
        server = link.serve(read_cb=nothing, connect_cb=on_connected)
        server.pause()
        server.pause()
        assert "paused" in repr(server)
        clients.append(Background(link.dial, server.address))
        pyasync.delay(resume, time=0.03)

    def resume():
        assert connected == []
        assert pyasync.stats().accepted == 0
        server.resume()
        server.resume()

    def on_connected(stream):
        connected.append(stream)
        stream.close()
        server.close()
        for call in (server.pause, server.resume):
            with pytest.raises(pyasync.SocketClosed):
                call()

    server = None
    link.run(start)
    clients[0].result().close()
    assert len(connected) == 1


def test_a_paused_server_keeps_the_loop_running_unless_it_is_unreferenced(run):
    called = []
    with run():
        server = pyasync.tcp_server("127.0.0.1", 0, nothing)
        server.pause()

        def end():
            called.append("end")
            server.unref()

        pyasync.delay(end, time=0.02).unref()
    assert called == ["end"]

    with run():
        server = pyasync.tcp_server("127.0.0.1", 0, nothing)
        server.unref()
        server.pause()
        assert not server.has_ref
    with run():
        server = pyasync.tcp_server("127.0.0.1", 0, nothing)
        server.pause()
        server.close()


def test_a_pause_counts_with_max_connections(run):
    """A connection that ends while the server is paused does not make it accept."""
    accepted, socks = [], []

    def on_connected(stream):
        accepted.append(stream)
        if len(accepted) == 1:
            server.pause()
            stream.close()
            pyasync.delay(go_on, time=0.03)
        else:
            stream.close()
            server.close()

    def go_on():
        assert len(accepted) == 1
        server.resume()

    with run():
        server = pyasync.tcp_server(
            "127.0.0.1", 0, nothing, connect_cb=on_connected, max_connections=1
        )
        for _ in range(2):
            socks.append(socket.create_connection(server.address))
    for sock in socks:
        sock.close()
    assert len(accepted) == 2


# Connections, data


def test_a_server_tells_its_open_connections_and_no_others(run):
    clients = []

    def check():
        mine = server.connections
        assert len(mine) == 3
        assert {stream.peername for stream in mine} == {
            client.getsockname() for client in clients[:3]
        }
        assert len(other.connections) == 1
        mine[0].close()
        assert len(server.connections) == 2
        mine[1].set_timeouts(5, None)  # has options of its own from here on
        assert len(server.connections) == 2
        for stream in server.connections + other.connections:
            stream.close()
        assert server.connections == []
        server.close()
        other.close()
        assert server.connections == []

    with run():
        server = pyasync.tcp_server("127.0.0.1", 0, nothing)
        other = pyasync.tcp_server("127.0.0.1", 0, nothing)
        assert server.connections == []
        for address in [server.address] * 3 + [other.address]:
            clients.append(socket.create_connection(address))
        pyasync.tcp_connect(*other.address, nothing).close()
        when(lambda: pyasync.stats().accepted == 5, check)
    for client in clients:
        client.close()
    with pytest.raises(pyasync.EventLoopNotRunning):
        server.connections  # noqa: B018


def test_a_server_has_data_for_the_application(link):
    def start():
        server = link.serve(read_cb=nothing)
        assert server.data is None
        server.data = {"mine": 1}
        server.close()
        assert server.data == {"mine": 1}

    link.run(start)


# Shutdown


def test_a_shutdown_lets_connections_end_and_calls_back_after_them(link):
    told, socks = [], []

    def start():
        nonlocal server
        server = link.serve(
            read_cb=on_data, connect_cb=on_connected, close_cb=lambda *args: told.append("closed")
        )
        socks.append(Background(talk, server.address))

    def talk(address):
        with link.dial(address) as sock:
            data = sock.recv(5)
            sock.sendall(b"!")
            return data + read_all(sock)

    def on_connected(stream):
        server.shutdown(30, lambda server: told.append(server))
        assert server.closed
        stream.write(b"hello")

    def on_data(stream, data):
        assert told == []
        stream.write(b"the end")
        stream.close()

    server = None
    link.run(start)
    assert socks[0].result() == b"hellothe end"
    assert told == ["closed", server]


@pytest.mark.parametrize("timeout", [0, 0.02])
def test_a_shutdown_forces_what_is_left_after_the_time(link, timeout):
    told, socks = [], []

    def start():
        nonlocal server
        server = link.serve(
            read_cb=nothing,
            connect_cb=on_connected,
            close_cb=lambda stream, error: told.append(error),
        )
        socks.append(Background(link.dial, server.address))

    def on_connected(stream):
        begun.append(time.monotonic())
        server.shutdown(timeout, lambda server: told.append(time.monotonic()))

    begun, server = [], None
    link.run(start)
    socks[0].result().close()
    assert told[0] is None
    assert told[1] - begun[0] >= timeout
    assert len(told) == 2


def test_a_shutdown_without_connections_calls_back_soon_and_never_inside_the_call(run):
    told = []
    with run():
        server = pyasync.tcp_server("127.0.0.1", 0, nothing)
        server.shutdown(None, told.append)
        assert told == []
        server.shutdown(5, told.append)

        def again():
            assert told == [server, server]
            server.shutdown(5, told.append)
            assert told == [server, server]

        after_iterations(2, again)
    assert told == [server] * 3


def test_connections_that_are_closing_and_flushing_are_waited_for(run):
    told, sock = [], None

    def on_connected(stream):
        stream.write(bytes(8 << 20))
        stream.close()
        assert server.connections == []
        server.shutdown(30, lambda server: told.append(reader.result()))

    def read(address):
        with socket.create_connection(address) as sock:
            return len(read_all(sock))

    with run():
        server = pyasync.tcp_server("127.0.0.1", 0, nothing, connect_cb=on_connected, linger=30)
        reader = Background(read, server.address)
    assert sock is None
    assert told == [8 << 20]


def test_connections_that_c_has_accepted_in_this_iteration_are_waited_for(run):
    """The second connection is reported behind the first, whose callback shuts the server down."""
    told, streams, socks = [], [], []

    def on_connected(stream):
        streams.append(stream)
        if len(streams) == 1:
            server.shutdown(30, lambda server: told.append(len(streams)))
            pyasync.delay(lambda: [stream.close() for stream in streams], time=0.02)

    with run():
        server = pyasync.tcp_server("127.0.0.1", 0, nothing, connect_cb=on_connected)
        for _ in range(3):
            socks.append(socket.create_connection(server.address))
    for sock in socks:
        sock.close()
    assert told == [3]


def test_a_second_shutdown_sets_the_time_anew(run):
    told, socks = [], []

    def on_connected(stream):
        server.shutdown(None, lambda server: told.append("first"))
        pyasync.delay(lambda: server.shutdown(0, lambda server: told.append("second")), time=0.01)

    with run():
        server = pyasync.tcp_server("127.0.0.1", 0, nothing, connect_cb=on_connected)
        socks.append(socket.create_connection(server.address))
    socks[0].close()
    assert told == ["first", "second"]


def test_an_exception_of_the_callback_is_the_servers(run):
    events = []

    def fail(server):
        raise KeyError("mine")

    with run(catch_app_errors=True):
        server = pyasync.tcp_server("127.0.0.1", 0, nothing, event_cb=events.append)
        server.shutdown(1, fail)
    assert [type(event) for event in events] == [pyasync.CallbackError]
    assert events[0].owner is server


@pytest.mark.parametrize("timeout", [-1, float("nan"), float("inf"), "1"])
def test_a_wrong_time_raises_and_the_server_stays_open(run, timeout):
    with run():
        server = pyasync.tcp_server("127.0.0.1", 0, nothing)
        with pytest.raises((ValueError, TypeError)):
            server.shutdown(timeout)
        with pytest.raises(TypeError, match="callback must be a function"):
            server.shutdown(1, "callback")
        assert not server.closed
        server.close()


def test_a_shutdown_removes_the_file_of_a_pipe(run, tmp_path):
    with run():
        server = pyasync.pipe_server(tmp_path / "pipe", nothing)
        server.shutdown(1)
        assert not (tmp_path / "pipe").exists()
