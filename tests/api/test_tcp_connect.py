"""Clients of every kind on their way: what they send before they are connected, and refusals.

Names, time limits, local addresses and giving up are in test_connecting.py.
"""

import errno
import socket
import threading

import pytest
from peers import (
    LINKS,
    MORE_THAN_FITS,
    PIPE_LINKS,
    after_iterations,
    make_link,
    nothing,
    read_all,
    when,
)
from tls_peers import TLS_LINKS

import pyasync

#: One whose name is to be looked up first.
LOCALHOST = pytest.param(
    {"family": socket.AF_INET, "host": "localhost", "incoming": False, "buffer_writes": True},
    id="localhost-connected-buffered",
)


@pytest.fixture(
    params=[
        *[link for link in LINKS + PIPE_LINKS + TLS_LINKS if not link.values[0]["incoming"]],
        LOCALHOST,
    ]
)
def link(request, run):
    return make_link(run, request.param)


@pytest.fixture(params=["127.0.0.1", "::1"])
def unused(request):
    """Give an address at which nobody listens, and nobody else will."""
    family = socket.AF_INET6 if ":" in request.param else socket.AF_INET
    with socket.socket(family) as sock:
        sock.bind((request.param, 0))
        yield sock.getsockname()[:2]


def test_a_client_is_connected_when_connect_cb_is_called(link):
    clients, names = [], []

    def peer(sock):
        return sock.getpeername(), sock.getsockname()

    def connected(client):
        assert clients == [client]
        names.append((client.sockname, client.peername))

    assert link(connected, peer, made=clients.append) == names[0]


@pytest.mark.parametrize(
    ("data", "sent"),
    [
        (b"bytes", b"bytes"),
        ("grüße", "grüße".encode()),
        (bytearray(b"array"), b"array"),
        (memoryview(b"abcdef")[::2], b"ace"),
        (b"", b""),
        (b"x" * MORE_THAN_FITS, b"x" * MORE_THAN_FITS),
    ],
    ids=["bytes", "str", "bytearray", "memoryview", "empty", "large"],
)
def test_data_is_sent_first_and_called_back(link, data, sent):
    told = []

    def connected(client):
        told.append("connected")
        client.write(b"after")
        client.close()

    assert (
        link(connected, read_all, data=data, write_cb=lambda client: told.append("written"))
        == sent + b"after"
    )
    assert told == ["connected", "written"]


@pytest.mark.parametrize("size", [10, 100_000, 3 << 20])
def test_what_is_written_before_the_connection_stands_is_sent_as_it_was(link, size):
    data = bytearray(b"x" * size)
    called = []

    def made(client):
        client.write(data, write_cb=lambda client: called.append(1))
        client.write(b",forced,", force=True, write_cb=lambda client: called.append(2))
        client.write(b"0123456789", start=3, end=7)
        client.write(b"", write_cb=lambda client: called.append(3))
        assert client.write_queue_size == 6 + size + 8 + 4
        data[:] = bytes(size)

    def connected(client):
        assert called == []
        client.close()

    sent = link(connected, read_all, data="first,", made=made)
    assert sent == b"first," + b"x" * size + b",forced,3456"
    assert called == [1, 2, 3]


@pytest.mark.parametrize("size", [1, 3 << 20])
def test_a_close_on_the_way_sends_what_was_written(link, size):
    called = []

    def made(client):
        client.disable(write=True)
        client.write(b"before,", write_cb=lambda client: called.append("before"))
        client.enable(write=True)
        client.write(bytes(size), write_cb=lambda client: called.append("written"))
        client.close()
        assert client.closed

    assert link(called.append, read_all, made=made) == b"before," + bytes(size)
    assert called == ["before", "written"]


@pytest.mark.parametrize("force", [False, True])
def test_a_client_closed_on_its_way_is_never_counted_or_told_anything(link, force):
    told, counted = [], []
    with link.run():
        listener = link.listen()
        callbacks = dict.fromkeys(["read_cb", "connect_cb", "event_cb"], told.append)
        client = link.connect(listener.getsockname(), **callbacks)
        client.close(force=force)
        client.close(force=force)
        assert client.closed
        listener.close()
        pyasync.add_event_loop_exit_callback(lambda: counted.append(pyasync.stats()))
    assert told == []
    (stats,) = counted
    assert stats.connected == stats.closed
    assert set(stats.handles.values()) == {0}


def test_a_shutdown_on_the_way_follows_what_was_written(link):
    told = []

    def peer(sock):
        sock.sendall(read_all(sock).upper())

    def made(client):
        client.write("question")
        client.shutdown()
        client.shutdown()
        with pytest.raises(pyasync.SocketBrokenPipe):
            client.write("more")

    link(nothing, peer, made=made, read_cb=lambda client, data: told.append(data))
    assert b"".join(told) == b"QUESTION"


def test_reading_may_be_disabled_on_the_way(link):
    told, sent = [], threading.Event()

    def peer(sock):
        sock.sendall(b"hello")
        sent.set()

    def connected(client):
        when(sent.is_set, lambda: after_iterations(5, lambda: enable(client)))

    def enable(client):
        assert told == []
        client.enable(read=True)

    link(
        connected, peer, made=lambda client: client.disable(read=True),
        read_cb=lambda client, data: told.append(data),
    )  # fmt: skip
    assert told == [b"hello"]


@pytest.mark.parametrize("end", ["enable", "shutdown", "close"])
def test_writing_may_be_disabled_on_the_way(link, end):
    """What was written before is sent when the connection stands; what comes behind it waits."""
    called = []

    def made(client):
        client.write(b"before,", write_cb=lambda client: called.append("before"))
        client.disable(write=True)
        client.write(b"behind", write_cb=lambda client: called.append("behind"))

    def connected(client):
        after_iterations(5, lambda: go_on(client))

    def go_on(client):
        assert called == ["before"]
        assert client.write_queue_size == 6
        getattr(client, end)(**({"write": True} if end == "enable" else {}))
        client.close()

    assert link(connected, read_all, made=made) == b"before,behind"
    assert called == ["before", "behind"]


@pytest.mark.parametrize("size", [1000, 200 << 10], ids=["small writes", "large writes"])
def test_pressure_ends_also_when_the_kernel_takes_all_at_once(link, size):
    told = []

    def pressure_cb(client, paused):
        told.append(paused)
        if not paused:
            client.close()

    def made(client):
        for _ in range((200 << 10) // size):
            client.write(bytes(size))

    assert len(link(nothing, read_all, made=made, pressure_cb=pressure_cb)) >= 200_000
    assert told == [True, False]


# Refusals


def test_a_refused_connection_is_reported_once_and_closed(run, unused):
    events, clients = [], []

    def start():
        client = pyasync.tcp_connect(
            *unused,
            lambda *args: events.append("read"),
            data=b"data",
            connect_cb=lambda *args: events.append("connected"),
            write_cb=lambda *args: events.append("written"),
            event_cb=events.append,
        )
        client.write(b"more", write_cb=lambda *args: events.append("written"))
        clients.append(client)
        pyasync.add_event_loop_exit_callback(lambda: clients.append(pyasync.stats()))

    run(start)
    (error,) = events
    client, stats = clients
    assert type(error) is pyasync.SocketRefused
    assert isinstance(error, ConnectionRefusedError)
    assert (error.errno, error.errcode) == (errno.ECONNREFUSED, -errno.ECONNREFUSED)
    assert error.errmsg == error.strerror
    assert error.socket is client
    assert client.closed
    assert (stats.connected, stats.closed, stats.outgoing_tcp_connections) == (0, 0, 0)
    assert stats.handles["tcp"] == 0


@pytest.mark.parametrize("force", [False, True])
def test_a_client_is_closed_in_the_event_cb_of_its_refusal(run, unused, force):
    events = []

    def event_cb(event):
        events.append(type(event))
        event.socket.close(force=force)

    run(lambda: pyasync.tcp_connect(*unused, nothing, data=b"data", event_cb=event_cb))
    assert events == [pyasync.SocketRefused]


def test_a_refusal_can_be_answered_by_another_attempt(run, unused):
    events = []

    def attempt():
        pyasync.tcp_connect(*unused, nothing, event_cb=event_cb)

    def event_cb(event):
        events.append(type(event))
        if len(events) < 50:
            attempt()

    run(attempt)
    assert events == [pyasync.SocketRefused] * 50
