"""What all kinds of handles have in common: references, and their line in the loop's status."""

import contextlib
import io
import os
import signal
import socket
import threading

import pytest
from peers import PATIENCE, nothing

import pyasync

HOUR = 3600.0


class Peers:
    """What a handle needs around it; everything is gone after the test."""

    def __init__(self, stack, path):
        self.stack, self.path = stack, path

    def listener(self, family, address):
        listener = self.stack.enter_context(socket.socket(family))
        listener.bind(address)
        listener.listen()
        return listener.getsockname()

    def pipe(self):
        for fd in (pipe := os.pipe()):
            self.stack.callback(os.close, fd)
        return pipe

    def path_of(self, name):
        return str(self.path / name)


# A function for each kind: it makes a handle at which nothing happens by itself, and calls `use`
# with it when it is open.


def with_tcp(peers, use):
    host, port = peers.listener(socket.AF_INET, ("127.0.0.1", 0))
    pyasync.tcp_connect(host, port, nothing, connect_cb=use)


def with_pipe(peers, use):
    path = peers.listener(socket.AF_UNIX, peers.path_of("pipe"))
    pyasync.pipe_connect(path, nothing, connect_cb=use)


def with_process(peers, use):
    process = pyasync.spawn("sleep", ["3600"])
    peers.stack.callback(end_process, process.pid)
    use(process)


def with_stdio(peers, use):
    process = pyasync.spawn("sleep", ["3600"], output=pyasync.PIPE)
    peers.stack.callback(end_process, process.pid)
    process.unref()
    use(process.output)


def with_descriptor(peers, use):
    use(pyasync.open_stream(peers.pipe()[0], nothing))


def end_process(pid):
    with contextlib.suppress(ProcessLookupError, ChildProcessError):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def with_work(peers, use):
    entered, go = threading.Event(), threading.Event()
    work = pyasync.work(lambda: entered.set() or go.wait(PATIENCE), nothing)
    assert entered.wait(PATIENCE)
    pyasync.add_event_loop_exit_callback(go.set)
    use(work)


KINDS = {
    "timer": lambda peers, use: use(pyasync.delay(nothing, time=HOUR)),
    "tcp": with_tcp,
    "tcp-server": lambda peers, use: use(pyasync.tcp_server("127.0.0.1", 0, nothing)),
    "pipe": with_pipe,
    "pipe-server": lambda peers, use: use(pyasync.pipe_server(peers.path_of("server"), nothing)),
    "udp": lambda peers, use: use(pyasync.udp_socket("127.0.0.1", 0, nothing)),
    "signal": lambda peers, use: use(pyasync.signal_handler(signal.SIGUSR1, nothing)),
    "idler": lambda peers, use: use(pyasync.idle(nothing)),
    "poller": lambda peers, use: use(pyasync.poll(peers.pipe()[0], nothing, writable=False)),
    "process": with_process,
    "stdio": with_stdio,
    "notifier": lambda peers, use: use(pyasync.make_notifier(nothing)),
    "work": with_work,
    "fs-monitor": lambda peers, use: use(pyasync.fs_watch(os.path.dirname(__file__), nothing)),
}


#: An interval counts as a timer, and a stream on a descriptor as the stdio of a process.
HANDLES = {
    **KINDS,
    "descriptor": with_descriptor,
    "interval": lambda peers, use: use(pyasync.interval(nothing, time=HOUR)),
}

#: What a closed one of these raises; of all others it is HandleClosed.
FREED = {pyasync.Event: pyasync.EventFreed, pyasync.Notifier: pyasync.NotifierFreed}

each_handle = pytest.mark.parametrize("make", HANDLES.values(), ids=HANDLES)


@pytest.fixture
def peers(tmp_path):
    with contextlib.ExitStack() as stack:
        yield Peers(stack, tmp_path)


def status_of(kind):
    """Return the words behind the kind in the one line that it has in the loop's status."""
    file = io.StringIO()
    pyasync.dump_event_loop_status(file)
    found = [line.split()[1:] for line in file.getvalue().splitlines() if line.split()[0] == kind]
    assert len(found) == 1
    return found[0]


def soon(callback):
    """Call it in some milliseconds, if something else keeps the loop running until then."""
    pyasync.delay(callback, time=0.01).unref()


@each_handle
def test_a_referenced_handle_keeps_the_loop_running_until_it_is_closed(run, peers, make):
    def use(handle):
        def close():
            handle.close()
            closed.append(handle.closed)

        assert handle.has_ref
        assert not handle.closed
        soon(close)

    closed = []
    run(lambda: make(peers, use))
    assert closed == [True]


@each_handle
def test_an_unreferenced_handle_lets_the_loop_end(run, peers, make):
    def use(handle):
        handle.unref()
        handle.unref()
        assert not handle.has_ref
        handles.append(handle)

    handles = []
    run(lambda: make(peers, use))
    assert handles[0].closed


@pytest.mark.parametrize("buffer_writes", [True, False], ids=["buffered", "unbuffered"])
@each_handle
def test_a_handle_that_is_referenced_again_keeps_the_loop_running(run, peers, make, buffer_writes):
    def use(handle):
        handle.unref()
        handle.ref()
        handle.ref()
        assert handle.has_ref
        soon(lambda: closed.append(handle.close()))

    closed = []
    run(lambda: make(peers, use), buffer_writes=buffer_writes)
    assert closed == [None]


@each_handle
def test_a_closed_handle_says_so_and_can_be_closed_again(run, peers, make):
    def use(handle):
        handle.close()
        handle.close()
        calls = [handle.ref, handle.unref]
        if not isinstance(handle, (pyasync.Event, pyasync.Interval)):
            calls.append(lambda: handle.has_ref)
        for name in ("add", "fileno", "modify", "remove", "trigger"):
            if hasattr(type(handle), name):
                calls.append(getattr(handle, name))
        for call in calls:
            with pytest.raises(
                FREED.get(type(handle), pyasync.HandleClosed),
                match=rf"{type(handle).__name__} is closed|has been freed",
            ):
                call()
        closed.append(handle.closed)

    closed = []
    run(lambda: make(peers, use))
    assert closed == [True]


@each_handle
def test_an_open_handle_is_closed_with_the_loop(run, peers, make):
    def use(handle):
        handles.append(handle)
        pyasync.exit_event_loop()

    handles = []
    run(lambda: make(peers, use))
    (handle,) = handles
    assert handle.closed
    with pytest.raises((pyasync.EventLoopNotRunning, pyasync.HandleClosed)):
        handle.ref()
    handle.close()


@pytest.mark.parametrize("kind", KINDS)
def test_the_status_of_the_loop_has_each_handle_with_its_state(run, peers, kind):
    def use(handle):
        statuses.append(status_of(kind))
        handle.unref()
        statuses.append(status_of(kind))

    statuses = []
    run(lambda: KINDS[kind](peers, use))
    assert statuses == [["active", "referenced", "-"], ["active", "-", "-"]]


@pytest.mark.parametrize("kind", KINDS)
def test_open_handles_are_counted_by_kind(run, peers, kind):
    def use(handle):
        counts.append(pyasync.stats().handles[kind])
        if kind == "process":
            handle.kill(signal.SIGKILL)  # it counts until it has exited
        handle.close()
        count_again()

    def count_again():
        counts.append(pyasync.stats().handles[kind])
        if counts[-1] > 0:
            pyasync.call_soon(count_again)

    counts = []
    run(lambda: KINDS[kind](peers, use))
    assert sorted(set(counts)) == [0, 1]


def test_every_kind_that_is_counted_is_here(run):
    counted = []
    run(lambda: counted.extend(pyasync.stats().handles))
    assert set(counted) == set(KINDS)


# Each function returns several whose callbacks run together, in one batch.


def idlers(peers, callback):
    return [pyasync.idle(callback) for _ in range(3)]


def pollers(peers, callback):
    reader, writer = peers.pipe()
    os.write(writer, b"!")
    return [pyasync.poll(reader, callback, writable=False) for _ in range(3)]


def signal_handlers(peers, callback):
    handlers = [
        pyasync.signal_handler(signo, callback) for signo in (signal.SIGUSR1, signal.SIGUSR2)
    ]
    for handler in handlers:
        signal.raise_signal(handler.signo)
    return handlers


def notifiers(peers, callback):
    notifiers = [pyasync.make_notifier(callback) for _ in range(3)]
    for notifier in notifiers:
        notifier.trigger()
    return notifiers


def work(peers, callback):
    done = [threading.Event() for _ in range(3)]
    works = [pyasync.work(event.set, callback) for event in done]
    for event in done:
        assert event.wait(PATIENCE)
    return works


def monitors(peers, callback):
    monitors = [pyasync.fs_watch(peers.path, callback) for _ in range(3)]
    os.mkdir(peers.path_of("new"))
    return monitors


def requests(peers, callback):
    return [pyasync.fs.stat(peers.path, callback) for _ in range(100)]


@pytest.mark.parametrize(
    "make", [idlers, pollers, signal_handlers, notifiers, work, monitors, requests]
)
def test_what_another_callback_of_its_batch_closes_is_not_called(run, peers, make):
    called = []

    def callback(*arguments):
        called.append(arguments)
        for handle in handles:
            handle.close()

    with run():
        handles = make(peers, callback)
    assert len(called) == 1
