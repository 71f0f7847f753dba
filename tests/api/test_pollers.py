"""Pollers: readiness of descriptors of every kind."""

import contextlib
import errno
import os
import pty
import socket
import subprocess
import sys
from functools import partial

import pytest
from peers import PATIENCE, fork_and_check, no_descriptor_left, nothing, reset

import pyasync


@pytest.fixture
def pair():
    """Give two connected sockets."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(sock) for sock in socket.socketpair()]


@pytest.fixture
def tcp_pair():
    """Give two sockets of a TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname(), timeout=PATIENCE)
        with client, listener.accept()[0] as accepted:
            yield client, accepted


@pytest.fixture
def pipe():
    """Give the ends of a pipe, which a test may close."""
    with contextlib.ExitStack() as stack:
        reader, writer = os.pipe()
        yield [
            stack.enter_context(open(reader, "rb", buffering=0)),
            stack.enter_context(open(writer, "wb", buffering=0)),
        ]


class Poll:
    """A poller that closes itself after a number of calls; `calls` are what it was told."""

    def __init__(self, fd, *, count=1, action=None, **keywords):
        self.calls = []
        self.count, self.action = count, action
        self.poller = pyasync.poll(fd, self.on_ready, **keywords)

    def on_ready(self, readable, writable):
        self.calls.append((readable, writable))
        if self.action is not None:
            self.action(self)
        if len(self.calls) == self.count:
            self.poller.close()


# What is reported


def test_what_can_be_written_is_reported(run, pair):
    polls = []
    run(lambda: polls.append(Poll(pair[0])))
    assert polls[0].calls == [(False, True)]


def test_what_can_be_read_and_written_is_reported_in_one_call(run, pair):
    polls = []
    pair[1].send(b"hello")
    run(lambda: polls.append(Poll(pair[0])))
    assert polls[0].calls == [(True, True)]


@pytest.mark.parametrize(
    ("keywords", "call"),
    [({"writable": False}, (True, False)), ({"readable": False}, (False, True))],
)
def test_only_what_is_waited_for_is_reported(run, pair, keywords, call):
    polls = []
    pair[1].send(b"hello")
    run(lambda: polls.append(Poll(pair[0], **keywords)))
    assert polls[0].calls == [call]


def test_a_poller_waits_until_there_is_something_to_read(run, pair):
    received = []

    with run():
        Poll(pair[0], writable=False, action=lambda poll: received.append(pair[0].recv(100)))
        pyasync.delay(lambda: pair[1].send(b"hello"), time=0.01)
    assert received == [b"hello"]


def test_a_poller_waits_until_there_is_room_to_write(run, pair):
    def drain():
        nonlocal drained
        drained = True
        with contextlib.suppress(BlockingIOError):
            while pair[1].recv(1 << 20):
                pass

    drained, seen, polls = False, [], []
    for sock in pair:
        sock.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            pair[0].send(bytes(1 << 16))
    with run():
        polls.append(Poll(pair[0], readable=False, action=lambda poll: seen.append(drained)))
        pyasync.delay(drain, time=0.01)
    assert seen == [True]
    assert polls[0].calls == [(False, True)]


def test_a_descriptor_is_reported_in_each_iteration_while_it_is_ready(run, pair):
    """Readiness is a level, not an edge: what is left unread is reported again."""
    iterations, received = [], []

    def read_a_byte(poll):
        iterations.append(pyasync.stats().iterations)
        received.append(pair[0].recv(1))

    pair[1].send(b"hello")
    run(lambda: Poll(pair[0], count=5, writable=False, action=read_a_byte))
    assert b"".join(received) == b"hello"
    assert iterations == list(range(iterations[0], iterations[0] + 5))


def test_an_answer_of_a_server_in_the_same_loop_is_read(run):
    """What cl-async's suite tests: a plain socket, polled beside a server."""
    answers = []

    def answer(socket, data):
        socket.write(data + b" lol")
        server.close()

    def on_ready(readable, writable):
        answers.append(client.recv(100))
        pyasync.delay(client.close)
        pyasync.delay(partial(pyasync.free_poller, poller))

    with run():
        server = pyasync.tcp_server("127.0.0.1", 0, answer)
        client = socket.create_connection(server.address, timeout=PATIENCE)
        poller = pyasync.poll(client, on_ready, writable=False)
        client.send(b"omg")
    assert answers[0] == b"omg lol"


# Descriptors of every kind


# Each function opens one that is ready, and returns it and for what it is.

READABLE, WRITABLE, BOTH = (True, False), (False, True), (True, True)


def opened(stack, *descriptors):
    for fd in descriptors:
        stack.callback(os.close, fd)
    return descriptors


def reader_of_a_pipe(stack):
    reader, writer = opened(stack, *os.pipe())
    os.write(writer, b"hello")
    return reader, READABLE


def writer_of_a_pipe(stack):
    return opened(stack, *os.pipe())[1], WRITABLE


def terminal(stack):
    master, slave = opened(stack, *pty.openpty())
    os.write(master, b"hello\n")
    return slave, READABLE


def eventfd(stack):
    return opened(stack, os.eventfd(42, os.EFD_CLOEXEC))[0], BOTH


def pidfd(stack):
    process = stack.enter_context(subprocess.Popen([sys.executable, "-c", ""]))
    return opened(stack, os.pidfd_open(process.pid))[0], READABLE


def datagram_socket(stack):
    sock = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    sock.bind(("127.0.0.1", 0))
    sock.sendto(b"hello", sock.getsockname())
    return sock, BOTH


def connecting_socket(stack):
    listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    client = stack.enter_context(socket.socket())
    client.setblocking(False)
    assert client.connect_ex(listener.getsockname()) in (0, errno.EINPROGRESS)
    return client, WRITABLE


def listening_socket(stack):
    listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    stack.enter_context(socket.create_connection(listener.getsockname(), timeout=PATIENCE))
    return listener, READABLE


@pytest.mark.parametrize(
    "open_one",
    [
        *(reader_of_a_pipe, writer_of_a_pipe, terminal, eventfd, pidfd, datagram_socket),
        *(connecting_socket, listening_socket),
    ],
)
def test_descriptors_of_every_kind_are_polled(run, open_one):
    needs = {eventfd: "eventfd", pidfd: "pidfd_open"}.get(open_one, "open")
    if not hasattr(os, needs):
        pytest.skip(f"needs os.{needs}")
    with contextlib.ExitStack() as stack:
        fd, call = open_one(stack)
        with run():
            poll = Poll(fd, readable=call[0], writable=call[1])
        assert poll.calls == [call]


@pytest.mark.parametrize("give", [socket.socket.fileno, lambda sock: sock])
def test_a_descriptor_is_a_number_or_an_object_that_has_one(run, pair, give):
    polls = []
    pair[1].send(b"hello")
    run(lambda: polls.append(Poll(give(pair[0]))))
    assert polls[0].calls == [(True, True)]


# Hang-ups and errors


def test_an_end_of_file_is_readable(run, tcp_pair):
    client, accepted = tcp_pair
    seen = []

    def read(poll):
        seen.append((client.recv(100), poll.poller.disconnected))

    client.settimeout(PATIENCE)
    accepted.send(b"hello")
    accepted.shutdown(socket.SHUT_WR)
    run(lambda: Poll(client, count=2, writable=False, action=read))
    assert [data for data, _ in seen] == [b"hello", b""]
    assert seen[-1][1] is True


def test_a_poller_is_not_disconnected_before_the_peer_is(run, tcp_pair):
    client, accepted = tcp_pair
    seen = []

    def read(poll):
        seen.append((client.recv(100), poll.poller.disconnected))
        accepted.close()

    accepted.send(b"hello")
    run(lambda: Poll(client, count=2, writable=False, action=read))
    assert seen == [(b"hello", False), (b"", True)]


def test_a_reader_of_a_pipe_hears_of_its_end(run, pipe):
    reader, writer = pipe
    seen = []

    def read(poll):
        seen.append((reader.read(100), poll.poller.disconnected))

    writer.write(b"hello")
    writer.close()
    run(lambda: Poll(reader, count=2, action=read))
    assert seen[-1] == (b"", True)
    assert b"".join(data for data, _ in seen) == b"hello"


@pytest.mark.parametrize(
    ("keywords", "call"), [({}, (True, True)), ({"readable": False}, (False, True))]
)
def test_an_error_makes_all_ready_that_is_waited_for(run, pipe, keywords, call):
    """A pipe without a reader: libuv has UV_EBADF for it, and would stop."""
    reader, writer = pipe
    polls = []
    reader.close()
    run(lambda: polls.append(Poll(writer, count=3, **keywords)))
    assert polls[0].calls == [call] * 3
    with pytest.raises(BrokenPipeError):
        writer.write(b"hello")


def test_a_refused_connection_is_writable_and_has_its_error(run):
    with socket.socket() as client, socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))  # but does not listen
        client.setblocking(False)
        assert client.connect_ex(silent.getsockname()) in (errno.EINPROGRESS, errno.ECONNREFUSED)
        polls, errors = [], []
        run(lambda: polls.append(Poll(client, readable=False, event_cb=errors.append)))
        assert polls[0].calls == [(False, True)]
        assert errors == []


def test_a_reset_is_readable_and_a_disconnect(run, tcp_pair):
    client, accepted = tcp_pair
    errors = []

    def read(poll):
        with pytest.raises(ConnectionResetError) as raised:
            client.recv(100)
        errors.append((raised.type, poll.poller.disconnected))

    reset(accepted)
    run(lambda: Poll(client, writable=False, action=read))
    assert errors == [(ConnectionResetError, True)]


def test_a_half_close_is_nothing_to_a_poller_that_only_writes(run, tcp_pair):
    """It would be reported without end, although the poller cannot do anything about it."""
    client, accepted = tcp_pair
    called = []

    client.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            client.send(bytes(1 << 16))
    accepted.shutdown(socket.SHUT_WR)
    with run():
        poller = pyasync.poll(client, lambda *ready: called.append(ready), readable=False)
        pyasync.delay(poller.close, time=0.02)
    assert called == []


# Changing what is waited for


def test_modify_changes_what_is_waited_for(run, pair):
    def change(poll):
        if len(poll.calls) == 1:
            poll.poller.modify(readable=False, writable=True)
        else:
            poll.poller.modify(readable=True)

    pair[1].send(b"hello")
    polls = []
    run(lambda: polls.append(Poll(pair[0], count=3, writable=False, action=change)))
    assert polls[0].calls == [(True, False), (False, True), (True, True)]


def test_a_poller_that_waits_for_nothing_is_open_but_lets_the_loop_end(run, pair):
    pollers = []

    with run():
        poller = pyasync.poll(pair[0], partial(pytest.fail, "called"))
        poller.modify(readable=False, writable=False)
        assert not poller.closed
        pollers.append(poller)
    assert pollers[0].closed


def test_a_poller_can_begin_by_waiting_for_nothing(run, pair):
    polls = []
    with run():
        poll = Poll(pair[0], readable=False, writable=False)
        pyasync.delay(partial(poll.poller.modify, writable=True), time=0.01)
        polls.append(poll)
    assert polls[0].calls == [(False, True)]


def test_what_another_callback_of_the_batch_has_changed_is_not_reported(run, pair):
    def on_ready(other, *ready):
        called.append(ready)
        pollers[other].modify(writable=False)
        pyasync.delay(pollers[other].close, time=0.01)
        pollers[1 - other].close()

    pollers, called = [], []

    with run():
        pollers.append(pyasync.poll(pair[0], partial(on_ready, 1)))
        pollers.append(pyasync.poll(pair[1], partial(on_ready, 0)))
    assert called == [(False, True)]


# Two pollers of one descriptor, and descriptors that are closed


def test_two_pollers_of_one_descriptor_are_independent(run, pair):
    polls = []

    pair[1].send(b"hello")
    with run():
        polls.append(Poll(pair[0], count=2, writable=False))
        polls.append(Poll(pair[0], count=3, readable=False))
    assert [poll.calls for poll in polls] == [[(True, False)] * 2, [(False, True)] * 3]


def test_a_descriptor_that_is_closed_while_it_is_polled_stays_open_for_the_poller(run, pair):
    """libuv would abort: epoll forgets what is closed, and then cannot change its watch."""
    ours, theirs = pair
    polls = []

    with run():
        poll = Poll(ours, readable=False, count=3, action=lambda poll: ours.close())
        polls.append(poll)
    assert polls[0].calls == [(False, True)] * 3
    theirs.settimeout(PATIENCE)
    assert theirs.recv(1) == b""


def test_a_number_that_is_used_again_is_another_descriptor(run):
    calls = []

    def on_ready(name, *ready):
        calls.append(name)
        pollers.pop(name).close()

    def start():
        first, peer = socket.socketpair()
        number = first.fileno()
        pollers["first"] = pyasync.poll(first, partial(on_ready, "first"), writable=False)
        first.close()
        second, other = socket.socketpair()
        assert number in (second.fileno(), other.fileno())
        pollers["second"] = pyasync.poll(number, partial(on_ready, "second"), writable=False)
        sockets.extend([peer, second, other])
        peer.send(b"hello")
        for sock in (second, other):
            sock.send(b"hello")

    pollers, sockets = {}, []
    run(start)
    for sock in sockets:
        sock.close()
    assert sorted(calls) == ["first", "second"]


def test_a_blocking_descriptor_stays_blocking(run, pair):
    polls = []

    fd, blocking = pair[0].fileno(), []
    os.set_blocking(fd, True)
    with run():
        polls.append(Poll(pair[0], action=lambda poll: blocking.append(os.get_blocking(fd))))
    assert [*blocking, os.get_blocking(fd)] == [True, True]


def test_a_non_blocking_descriptor_stays_non_blocking(run, pair):
    fd = pair[0].fileno()
    os.set_blocking(fd, False)
    run(lambda: Poll(fd))
    assert not os.get_blocking(fd)


# Its end


def test_a_poller_is_closed_with_the_loop_and_its_descriptor_with_it(run, pair):
    with run():
        poller = pyasync.poll(pair[0], lambda *ready: pyasync.exit_event_loop())
    assert poller.closed
    poller.close()
    pair[0].close()
    pair[1].settimeout(PATIENCE)
    assert pair[1].recv(1) == b""
    with pytest.raises(pyasync.EventLoopNotRunning):
        poller.modify(readable=False)


# What is refused


def test_a_regular_file_is_refused_with_the_reason(run, tmp_path):
    with run():
        with open(tmp_path / "file", "wb") as file, pytest.raises(ValueError, match="regular file"):
            pyasync.poll(file, nothing)
        fd = os.open(tmp_path, os.O_RDONLY)
        try:
            with pytest.raises(ValueError, match=f"fd must be .*, not {fd}: .*directory"):
                pyasync.poll(fd, nothing)
        finally:
            os.close(fd)


def test_a_closed_descriptor_is_refused(run, pair):
    with run():
        fd = os.dup(0)
        os.close(fd)
        with pytest.raises(pyasync.SocketError, match=f"descriptor {fd}") as raised:
            pyasync.poll(fd, nothing)
        assert raised.value.errno == errno.EBADF
        assert isinstance(raised.value, OSError)
        pair[0].close()
        with pytest.raises(ValueError, match=r"from 0 .* fd=-1"):
            pyasync.poll(pair[0], nothing)


def test_running_out_of_descriptors_is_told(run, pair):
    with run():
        with pytest.raises(OSError, match="Too many open files") as raised, no_descriptor_left():
            pyasync.poll(pair[0], nothing)
        assert raised.value.errno == errno.EMFILE


# Forks and Ctrl-C


@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_the_child_of_a_fork_leaves_the_poller_to_the_parent(run, pair):
    def check():
        poll.poller.close()
        with pytest.raises(pyasync.EventLoopNotRunning):
            poll.poller.modify(writable=True)

    with run():
        poll = Poll(pair[0], writable=False)
        fork_and_check(check)
        pair[1].send(b"hello")
    assert poll.calls == [(True, False)]
