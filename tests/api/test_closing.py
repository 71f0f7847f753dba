"""Closing: in which callbacks, what is still sent, for how long, and what the peer sees."""

import contextlib
import threading
import time

import pytest
from peers import (
    CALLBACKS,
    FEW_LINKS,
    LINKS,
    MORE_THAN_FITS,
    PATIENCE,
    Background,
    Link,
    after_iterations,
    end_of,
    nothing,
    read_all,
    read_exactly,
    small_buffers,
    small_window,
    tell,
    waiting_for,
    when,
    within,
)

import pyasync

# More than the kernel ever keeps for a socket with buffers of its own choice.
SEVERAL_MEGABYTES = 12 << 20


@pytest.fixture(params=LINKS)
def link(request, run):
    return Link(run, **request.param)


# In callbacks


@pytest.mark.parametrize("callback", CALLBACKS)
@pytest.mark.parametrize("force", [False, True])
def test_a_socket_is_closed_in_any_of_its_callbacks_and_then_silent(link, callback, force):
    told = []

    def act(socket):
        told.clear()
        socket.close(force=force)
        assert socket.closed

    def peer(sock):
        try:
            sock.sendall(b"more" * 1000)
        except OSError:
            pass  # it is closed already, in one way or the other
        return end_of(sock)

    within(link, callback, act, peer, read_cb=lambda socket, data: told.append(data))
    assert told == []


@pytest.mark.parametrize("force", [False, True])
def test_a_socket_is_closed_in_the_event_cb_of_its_error(link, force):
    events = []

    def event_cb(event):
        events.append(type(event))
        event.socket.close(force=force)
        assert event.socket.closed

    link(nothing, link.reset, event_cb=event_cb)
    assert events == [pyasync.SocketReset]


@pytest.mark.parametrize("callback", CALLBACKS)
def test_other_sockets_and_servers_are_closed_in_any_callback(link, callback):
    others, told = [], []

    def begin(go):
        def connected(socket):
            others.append(socket)
            if len(others) == 3:
                for other in others[1:]:
                    other.write(bytes(100_000))
                go()

        def tell(*args):
            told.append(args)

        callbacks = {"connect_cb": connected, "event_cb": tell}
        others.append(link.serve(read_cb=nothing, **callbacks))
        link.connect(others[0].address, read_cb=nothing, **callbacks)

    def act(socket):
        for other in others:
            other.close()
            assert other.closed
        told.clear()
        socket.close()

    within(link, callback, act, end_of, begin=begin)
    assert told == []
    assert len(others) == 3


def test_a_socket_closed_by_an_earlier_callback_of_its_batch_is_told_nothing(link):
    """Data for all three is there when the loop looks: the first that is called closes the rest."""
    count = 3
    sockets, told, threads = [], [], []
    accepted, sent, closed = threading.Event(), threading.Semaphore(0), threading.Event()

    def peer(address):
        with link.dial(address) as sock:
            assert accepted.wait(PATIENCE)
            sock.sendall(b"data")
            sent.release()
            assert closed.wait(PATIENCE)

    def connect_cb(socket):
        sockets.append(socket)
        if len(sockets) == count:
            server.close()
            accepted.set()
            for _ in range(count):
                assert sent.acquire(timeout=PATIENCE)

    def tell(socket, what):
        told.append((socket, what))
        if not closed.is_set():
            closed.set()
            for other in sockets:
                if other is not socket:
                    other.close()

    with link.run():
        server = link.serve(
            connect_cb=connect_cb,
            read_cb=tell,
            event_cb=lambda event: tell(event.socket, type(event)),
        )
        threads.extend(Background(peer, server.address) for _ in range(count))
    for thread in threads:
        thread.result()
    first = told[0][0]
    assert told == [(first, b"data"), (first, pyasync.SocketEOF)]


def test_closing_thrice_counts_once(link):
    before = []

    def connected(socket):
        before.append(pyasync.stats())
        socket.close()
        socket.close()
        after_iterations(3, socket.close)
        pyasync.add_event_loop_exit_callback(lambda: before.append(pyasync.stats()))

    link(connected, end_of)
    first, last = before
    assert first.incoming_tcp_connections + first.outgoing_tcp_connections == 1
    assert (last.incoming_tcp_connections, last.outgoing_tcp_connections) == (0, 0)
    assert (last - first).closed == 1
    assert last.handles["tcp"] == 0


# By force


@pytest.mark.parametrize("flushes", [False, True])
def test_a_force_close_releases_the_socket_at_once_also_when_it_flushes(link, flushes):
    called, released = [], threading.Event()

    def connected(socket):
        small_buffers(socket)
        socket.write(bytes(MORE_THAN_FITS), write_cb=called.append)
        if flushes:
            socket.close()
        after_iterations(3 * flushes, lambda: force(socket))

    def force(socket):
        assert pyasync.stats().closed == 0
        socket.close(force=True)
        after_iterations(3, look)

    def look():
        assert pyasync.stats().closed == 1
        released.set()

    size, _ = link(connected, waiting_for(released, end_of), linger=60)
    assert size < MORE_THAN_FITS
    assert called == []


# What is still sent


def test_close_sends_several_megabytes(link):
    def connected(socket):
        socket.write(bytes(SEVERAL_MEGABYTES))
        socket.close()

    assert link(connected, end_of) == (SEVERAL_MEGABYTES, None)


def test_close_with_input_unread_sends_everything_and_then_the_end(link):
    sent = threading.Event()

    def peer(sock):
        sock.sendall(b"never read")
        sent.set()
        return end_of(sock)

    def connected(socket):
        socket.disable(read=True)
        socket.write(bytes(SEVERAL_MEGABYTES))
        assert sent.wait(PATIENCE)
        socket.close()

    assert link(connected, peer) == (SEVERAL_MEGABYTES, None)


@pytest.mark.parametrize("size", [1000, 100_000, 1 << 20, 3 << 20, SEVERAL_MEGABYTES])
@pytest.mark.parametrize("piece", [1000, SEVERAL_MEGABYTES])
def test_input_that_comes_after_the_close_destroys_nothing(link, size, piece):
    """The kernel holds most of it, for the peer has not read yet."""
    closed = threading.Event()

    def peer(sock):
        assert closed.wait(PATIENCE)
        sock.sendall(b"never read")
        return end_of(sock)

    def connected(socket):
        write(socket, size)

    def write(socket, left):
        socket.write(bytes(min(piece, left)))
        if left > piece:
            pyasync.call_soon(lambda: write(socket, left - piece))
        else:
            socket.close()
            after_iterations(3, closed.set)

    if size > 100 * piece:
        size = 200 * piece
    assert link(connected, peer) == (size, None)


def test_what_comes_in_during_a_close_is_discarded(link):
    told = []

    def peer(sock):
        # Before it reads: with nothing left to send and to read, our side would be gone.
        sock.sendall(bytes(SEVERAL_MEGABYTES))
        data = read_exactly(sock, SEVERAL_MEGABYTES)
        sock.shutdown(1)
        return len(data), end_of(sock)

    def connected(socket):
        socket.write(bytes(SEVERAL_MEGABYTES))
        socket.close()

    assert link(connected, peer, read_cb=lambda socket, data: told.append(data)) == (
        SEVERAL_MEGABYTES,
        (0, None),
    )
    assert told == []


def test_a_closing_socket_is_counted_until_it_is_gone(link):
    counted = threading.Event()

    def connected(socket):
        small_buffers(socket)
        socket.write(bytes(MORE_THAN_FITS))
        socket.close()
        after_iterations(3, look)

    def look():
        stats = pyasync.stats()
        assert stats.incoming_tcp_connections + stats.outgoing_tcp_connections == 1
        assert stats.closed == 0
        counted.set()
        when(lambda: pyasync.stats().closed == 1, nothing)

    assert link(connected, waiting_for(counted, end_of)) == (MORE_THAN_FITS, None)


# Linger


def test_a_close_ends_after_linger_when_the_peer_never_reads(link):
    events, done = [], threading.Event()

    def connected(socket):
        small_buffers(socket)
        socket.write(bytes(MORE_THAN_FITS))
        assert socket.write_queue_size > 0
        socket.close()
        events.append(time.monotonic())

    def event_cb(event):
        events.append(event)
        events.append(time.monotonic())
        done.set()

    link(connected, waiting_for(done), event_cb=event_cb, linger=0.05)
    began, event, ended = events
    assert type(event) is pyasync.SocketTimeout
    (lost,) = [int(word) for word in str(event).split() if word.isdigit() and len(word) > 3]
    assert 0 < lost < MORE_THAN_FITS
    assert event.socket.closed
    assert ended - began >= 0.05


def test_linger_of_zero_drops_what_the_kernel_has_not_taken_and_says_so(link):
    events, done = [], threading.Event()

    def connected(socket):
        small_buffers(socket)
        socket.write(bytes(MORE_THAN_FITS))
        socket.close()

    size, _ = link(connected, waiting_for(done, end_of), event_cb=tell(events, done.set), linger=0)
    assert events == [pyasync.SocketTimeout]
    assert 0 < size < MORE_THAN_FITS


@pytest.mark.parametrize("linger", [0, 0.01])
def test_linger_loses_nothing_that_the_kernel_has_taken(link, linger):
    def connected(socket):
        socket.write(b"x" * 10_000)
        socket.close()

    assert link(connected, read_all, linger=linger) == b"x" * 10_000


@pytest.mark.parametrize("link", FEW_LINKS, indirect=True)
def test_a_slow_reader_is_not_cut_off_while_it_reads(link):
    """It takes longer than linger for all, but never that long for nothing."""
    size = 3 << 20

    def peer(sock):
        small_window(sock)
        for _ in range(9):
            time.sleep(0.3)
            read_exactly(sock, size // 10)
        return 9 * (size // 10) + end_of(sock)[0]

    def connected(socket):
        small_buffers(socket)
        socket.write(bytes(size))
        socket.close()

    assert link(connected, peer, linger=2) == size


@pytest.mark.parametrize("link", FEW_LINKS, indirect=True)
def test_a_slow_reader_that_sends_is_not_cut_off_either(link):
    """All is the kernel's when the socket closes; what the peer sends must not destroy it."""
    size = 3 << 20
    closed = threading.Event()

    def peer(sock):
        small_window(sock)
        assert closed.wait(PATIENCE)
        for _ in range(9):
            with contextlib.suppress(ConnectionError):  # the peer's kernel may have all by now
                sock.sendall(b"never read")
            time.sleep(0.3)
            read_exactly(sock, size // 10)
        return 9 * (size // 10) + end_of(sock)[0]

    def connected(socket):
        socket.write(bytes(size))
        when(lambda: socket.write_queue_size == 0, lambda: close(socket))

    def close(socket):
        socket.close()
        closed.set()

    assert link(connected, peer, linger=2) == size


@pytest.mark.parametrize("link", FEW_LINKS, indirect=True)
def test_without_linger_a_close_waits_as_long_as_it_takes(link):
    def peer(sock):
        time.sleep(0.2)
        return len(read_all(sock))

    def connected(socket):
        small_buffers(socket)
        socket.write(bytes(MORE_THAN_FITS))
        socket.close()

    assert link(connected, peer, linger=None) == MORE_THAN_FITS


def test_a_close_that_lingers_ends_with_the_peers_end(link):
    began, sent = time.monotonic(), threading.Event()

    def peer(sock):
        sock.sendall(b"never read")
        sent.set()
        return read_all(sock)

    def connected(socket):
        socket.disable(read=True)
        assert sent.wait(PATIENCE)
        socket.write(b"bye")
        socket.close()

    assert link(connected, peer, linger=5) == b"bye"
    assert time.monotonic() - began < 5


def test_a_peer_that_sends_without_end_does_not_keep_a_close_waiting(link):
    sent = threading.Event()

    def peer(sock):
        try:
            while True:
                sock.sendall(bytes(1 << 16))
                sent.set()
        except ConnectionError:
            return "stopped"

    def connected(socket):
        socket.disable(read=True)
        assert sent.wait(PATIENCE)
        socket.close()

    assert link(connected, peer, linger=0.05) == "stopped"


# Resets by the peer, at each stage

GONE = (pyasync.SocketReset, pyasync.SocketBrokenPipe)


@pytest.mark.parametrize("data", [b"", b"data"])
def test_a_reset_before_accept_is_an_error_of_the_connection(link, data):
    told = []

    with link.run():

        def connect_cb(socket):
            told.append("connected")
            server.close()

        server = link.serve(
            connect_cb=connect_cb,
            read_cb=lambda socket, data: told.append(data),
            event_cb=tell(told),
        )
        sock = link.dial(server.address)
        sock.sendall(data)
        link.reset(sock)
    assert told == ["connected", *([data] if data else []), pyasync.SocketReset]


@pytest.mark.parametrize("data", [b"", b"data"])
def test_a_reset_is_reported_once(link, data):
    events, received, connected = [], [], threading.Event()

    def peer(sock):
        assert connected.wait(PATIENCE)
        sock.sendall(data)
        link.reset(sock)

    link(
        lambda socket: connected.set(),
        peer,
        read_cb=lambda socket, data: received.append(data),
        event_cb=tell(events),
    )
    assert events == [pyasync.SocketReset]
    assert b"".join(received) == data


def test_a_reset_while_an_answer_is_delayed_closes_the_socket_before_the_answer(link):
    events = []

    def peer(sock):
        sock.sendall(b"question")
        assert asked.wait(PATIENCE)
        link.reset(sock)

    def read_cb(socket, data):
        asked.set()
        when(lambda: socket.closed, lambda: answer(socket))

    def answer(socket):
        with pytest.raises(pyasync.SocketClosed):
            socket.write(b"answer")
        events.append("answered")

    asked = threading.Event()
    link(nothing, peer, read_cb=read_cb, event_cb=tell(events))
    assert events == [pyasync.SocketReset, "answered"]


@pytest.mark.parametrize("close", [False, True])
def test_a_reset_while_much_is_written_is_reported_once(link, close):
    events, called = [], []

    def peer(sock):
        read_exactly(sock, 1000)
        link.reset(sock)

    def connected(socket):
        small_buffers(socket)
        for _ in range(3):
            socket.write(bytes(MORE_THAN_FITS), write_cb=called.append)
        if close:
            socket.close()

    link(connected, peer, event_cb=tell(events))
    assert len(events) == 1
    assert issubclass(events[0], GONE)
    assert called == []


def test_a_reset_found_by_a_write_is_reported_once(link):
    """With reading disabled nothing but a write meets it."""
    events, called, done = [], [], threading.Event()

    def peer(sock):
        link.reset(sock)
        done.set()

    def connected(socket):
        socket.disable(read=True)
        when(done.is_set, lambda: write(socket))

    def write(socket):
        if not socket.closed:
            socket.write(b"x", write_cb=called.append)
            pyasync.call_soon(lambda: write(socket))

    link(connected, peer, event_cb=tell(events))
    assert len(events) == 1
    assert issubclass(events[0], GONE)
    assert called == []


def test_a_reset_after_shutdown_is_reported_once(link):
    events = []

    def peer(sock):
        assert read_all(sock) == b"bye"
        link.reset(sock)

    def connected(socket):
        socket.write(b"bye")
        socket.shutdown()

    link(connected, peer, event_cb=tell(events))
    assert events == [pyasync.SocketReset]


def test_a_reset_while_a_close_lingers_is_not_reported(link):
    """All was handed over: there is nothing left to fail."""
    events, sent = [], threading.Event()

    def peer(sock):
        sock.sendall(b"never read")
        sent.set()
        assert read_all(sock) == b"bye"
        link.reset(sock)

    def connected(socket):
        socket.disable(read=True)
        assert sent.wait(PATIENCE)
        socket.write(b"bye")
        socket.close()

    link(connected, peer, event_cb=tell(events))
    assert events == []


def test_input_that_comes_while_the_answer_is_made_is_no_reason_for_a_reset(link):
    sent = threading.Event()

    def read_cb(socket, data):
        assert sent.wait(PATIENCE)
        socket.write(b"answer")
        socket.close()

    def peer(sock):
        sock.sendall(b"first")
        sock.sendall(b"second")
        sent.set()
        return read_all(sock)

    assert link(nothing, peer, read_cb=read_cb) == b"answer"
