"""Loops and threads: what another thread may call, and what it may not."""

import collections
import contextlib
import os
import queue
import signal
import ssl
import subprocess
import sys
import threading
import time
from functools import partial

import pytest
from peers import Background, after_iterations, flood, in_other_thread, nothing

import pyasync
from pyasync._core import wakeup

HOUR = 3600.0


# call_threadsafe


def test_calls_from_many_threads_all_run_in_the_loops_thread_in_order(run):
    threads, calls = 8, 10_000
    done = []

    def call(number, count):
        assert threading.get_ident() == ident
        done.append((number, count))
        if len(done) == threads * calls:
            keep_running.free()

    def make_calls(loop, number):
        for count in range(calls):
            loop.call_threadsafe(partial(call, number, count))

    ident, others = threading.get_ident(), []
    with run(limit=100):
        keep_running = pyasync.delay(nothing, time=HOUR)
        others.extend(Background(make_calls, pyasync.current_loop(), n) for n in range(threads))
    for other in others:
        other.result()
    for number in range(threads):
        assert [count for n, count in done if n == number] == list(range(calls))


def test_threads_that_never_pause_cannot_starve_the_loop(run):
    def again(left):
        if left:
            loop.call_threadsafe(partial(again, left - 1))  # behind all that the threads have added
        else:
            flooding.close()
            keep_running.free()

    with contextlib.ExitStack() as flooding, run():
        loop = pyasync.current_loop()
        keep_running = pyasync.delay(nothing, time=HOUR)
        flooding.enter_context(flood(loop.call_threadsafe))
        again(10)


def test_a_call_wakes_a_sleeping_loop(run, wait_until_asleep):
    def wake(loop):
        wait_until_asleep(loop)
        loop.call_threadsafe(sleeper.free)

    with run():
        sleeper = pyasync.delay(partial(pytest.fail, "slept"), time=HOUR)
        other = Background(wake, pyasync.current_loop())
    other.result()


class CountedWakeups:
    """The C library, with its wake-ups counted."""

    def __init__(self, lib):
        self._lib = lib
        self.count = 0

    def __getattr__(self, name):
        return getattr(self._lib, name)

    def pa_wakeup(self, c):
        self.count += 1
        self._lib.pa_wakeup(c)


def test_many_calls_that_the_loop_has_not_run_yet_share_one_wakeup(run, monkeypatch):
    counted = CountedWakeups(wakeup.lib)
    monkeypatch.setattr(wakeup, "lib", counted)
    calls = []

    def call_often(loop):
        for number in range(1000):
            loop.call_threadsafe(partial(calls.append, number))

    with run():
        in_other_thread(call_often, pyasync.current_loop())
        assert counted.count == 1
        assert calls == []
        keep_running = pyasync.make_notifier(nothing)
        pyasync.current_loop().call_threadsafe(keep_running.free)
    assert calls == list(range(1000))


def test_a_call_that_has_run_before_it_wakes_the_loop_leaves_the_next_its_wakeup(
    run, monkeypatch, wait_until_asleep
):
    class TakenAtOnce(collections.deque):
        """A queue from which the loop takes what another thread appends, before that goes on."""

        def append(self, fn):
            super().append(fn)
            if threading.get_ident() != ident:
                wait_until_asleep(loops[0])
                iterations.append(loops[0].stats().iterations)

    def make_calls(loop):
        loop.call_threadsafe(idler.close)  # which has kept the loop awake to take the call
        while loop.stats().iterations == iterations[0]:
            time.sleep(0.0001)
        wait_until_asleep(loop)
        monkeypatch.setattr(TakenAtOnce, "append", collections.deque.append)
        loop.call_threadsafe(sleeper.free)

    ident = threading.get_ident()
    loops, iterations = [], []
    monkeypatch.setattr(wakeup, "deque", TakenAtOnce)
    with run():
        idler = pyasync.idle(nothing)
        sleeper = pyasync.delay(nothing, time=HOUR)
        loops.append(pyasync.current_loop())
        other = Background(make_calls, pyasync.current_loop())
    other.result()


def test_no_call_is_left_in_a_loop_that_sleeps(run):
    """Each of these is the only one, made when the loop has just run the one before."""

    def call_and_wait(loop):
        for _ in range(3000):
            loop.call_threadsafe(partial(answers.put, True))
            assert answers.get(timeout=10)

    def free_when_done(loop, keep_running):
        for other in others[:2]:
            other.join()
        loop.call_threadsafe(keep_running.free)

    others, answers = [], queue.SimpleQueue()
    with run(limit=100):
        loop = pyasync.current_loop()
        keep_running = pyasync.make_notifier(nothing)
        others.extend(Background(call_and_wait, loop) for _ in range(2))
        others.append(Background(free_when_done, loop, keep_running))
    for other in others:
        other.result()


def test_a_call_of_the_loops_own_thread_runs_in_the_next_iteration(run):
    calls = []

    with run():
        pyasync.current_loop().call_threadsafe(partial(calls.append, "threadsafe"))
        after_iterations(2, partial(calls.append, "later"))
    assert calls == ["threadsafe", "later"]


def test_a_call_after_the_loop_has_ended_raises(run):
    loops = []
    run(lambda: loops.append(pyasync.current_loop()))
    with pytest.raises(pyasync.EventLoopNotRunning, match="has ended"):
        loops[0].call_threadsafe(nothing)


@pytest.mark.parametrize(
    ("make", "refusal"),
    [
        (lambda: partial(pyasync.current_loop().call_threadsafe, nothing), "EventLoopNotRunning"),
        (lambda: pyasync.make_notifier(nothing, single_shot=False).trigger, "NotifierFreed"),
    ],
    ids=["call_threadsafe", "trigger"],
)
def test_calls_that_race_with_the_end_of_the_loop_raise_or_are_forgotten(run, make, refusal):
    def call_until_the_end(call):
        with contextlib.suppress(getattr(pyasync, refusal)):
            while True:
                call()

    def start():
        call = make()
        others.extend(Background(call_until_the_end, call) for _ in range(2))
        pyasync.delay(pyasync.exit_event_loop, time=0.001)

    others = []
    for _ in range(20):
        run(start)
    for other in others:
        other.result()


def test_a_handler_of_pythons_may_interrupt_a_call_with_one_of_its_own():
    """No lock that the interrupted call holds may be one that the handler waits for.

    That would be a deadlock that nothing in its process ends.
    """
    script = """
import pyasync, signal

interrupts = []

def interrupt(signo, frame):
    interrupts.append(signo)
    loop.call_threadsafe(interrupts.clear)

signal.signal(signal.SIGVTALRM, interrupt)
with pyasync.event_loop() as loop:
    signal.setitimer(signal.ITIMER_VIRTUAL, 0.0001, 0.0001)
    while len(interrupts) < 100:
        loop.call_threadsafe(interrupts.clear)
    signal.setitimer(signal.ITIMER_VIRTUAL, 0)
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=50)


# Calls that only the loop's thread may make


# What is looked at and changed by nobody, or is one flag, and what is made for other threads.
FOR_ANY_THREAD = {
    "Event": {"closed", "freed"},
    "Interval": {"closed"},
    "Idler": {"closed"},
    "Notifier": {"closed", "freed", "trigger"},
    "Work": {"cancelled", "closed", "running"},
    "Poller": {"closed", "disconnected"},
    "SignalHandler": {"closed", "signo"},
    "FsMonitor": {"closed", "path"},
    "FsRequest": {"closed"},
    "CloseRequest": {"closed"},
    "Lookup": {"closed", "host"},
    "ReverseLookup": {"closed", "ip"},
    "TcpServer": {"address", "closed", "data"},
    "SslServer": {"address", "closed", "data"},
    "PipeServer": {"address", "closed", "data"},
    "TcpSocket": {"closed", "data", "read_cb"},
    "SslSocket": {"closed", "data", "read_cb"},
    "PipeSocket": {"closed", "data", "read_cb"},
    "ProcessPipe": {"closed", "data", "read_cb"},
    "DescriptorStream": {"closed", "data", "read_cb"},
    "Process": {
        *("closed", "error_output", "exit_status", "input", "output", "pid", "term_signal"),
    },
    "UdpSocket": {"address", "closed", "data"},
    # The last of these are io's own, and the same for every stream.
    "AsyncStream": {
        *("closed", "ended", "socket"),
        *("detach", "isatty", "name", "readable", "seek", "seekable", "tell", "truncate"),
        "writable",
    },
}

REFUSED = "RuntimeError: called from a thread that is not the event loop's"

# For those that need some; of one name, by kind.
ARGUMENTS = {
    "connect": ("127.0.0.1", 9),
    "getsockopt": (1, 9),
    "join_multicast": ("239.1.2.3",),
    "keepalive": (10,),
    "leave_multicast": ("239.1.2.3",),
    "readexactly": (9,),
    "readinto": (bytearray(9),),
    "readinto1": (bytearray(9),),
    "readuntil": (b"d",),
    "send": (b"data", ("127.0.0.1", 9)),
    "sendfile": (__file__,),
    "set_multicast_interface": ("127.0.0.1",),
    "set_timeouts": (10, 10),
    "setsockopt": (1, 9, 1),
    "shutdown": {"TcpServer": (None,), "SslServer": (None,), "PipeServer": (None,)},
    "write": (b"data",),
    "writelines": ([b"data"],),
}


def set_read_cb(socket):
    socket.read_cb = nothing


OF_A_HANDLE = {
    "Interval": [pyasync.remove_interval],
    "Idler": [pyasync.free_idler],
    "Notifier": [pyasync.free_notifier],
    "Poller": [pyasync.free_poller],
    "FsMonitor": [pyasync.fs_unwatch, pyasync.fs_monitor_close],
    "Process": [lambda process: pyasync.process_kill(process, 0)],
    "SslSocket": [set_read_cb],
    "PipeSocket": [set_read_cb],
    "ProcessPipe": [set_read_cb],
    "DescriptorStream": [set_read_cb],
    "TcpSocket": [
        set_read_cb,
        lambda socket: pyasync.connect_tcp_socket(socket, "127.0.0.1", 9),
        pyasync.start_tls,
    ],
    "AsyncStream": [pyasync.start_tls, list, next, lambda stream: stream.__exit__()],
}


def calls_on(handle):
    """Give name and call of all that a handle has, and of what takes one."""
    kind = type(handle)
    for name in dir(handle):
        private = name.startswith("_") and name != "__call__"
        if private or name in FOR_ANY_THREAD[kind.__name__]:
            continue
        member = getattr(kind, name)
        if isinstance(member, property):
            yield name, partial(getattr, handle, name)
            if member.fset is not None:
                yield f"{name} =", partial(setattr, handle, name, 1)
        else:
            arguments = ARGUMENTS.get(name, ())
            if isinstance(arguments, dict):
                arguments = arguments.get(kind.__name__, ())
            yield name, partial(getattr(handle, name), *arguments)
    for function in OF_A_HANDLE.get(kind.__name__, ()):
        yield str(function), partial(function, handle)


def test_calls_on_handles_from_another_thread_raise(run, tmp_path):
    def check(handles):
        assert {type(handle).__name__ for handle in handles} == set(FOR_ANY_THREAD)
        accepted = []
        for handle in handles:
            for name, call in calls_on(handle):
                try:
                    outcome = call()
                except Exception as error:
                    outcome = f"{type(error).__name__}: {error}"
                if not str(outcome).startswith(REFUSED):
                    accepted.append((type(handle).__name__, name, outcome))
        assert accepted == []

    reader, writer = os.pipe()
    try:
        with run():
            server = pyasync.tcp_server("127.0.0.1", 0, nothing)
            pipe_server = pyasync.pipe_server(tmp_path / "pipe", nothing)
            process = pyasync.spawn("cat", [], input=pyasync.PIPE)
            stream = pyasync.tcp_connect(*server.address, nothing, stream=True)
            stream._feed(b"a line\nand more")
            handles = [
                pyasync.delay(nothing, time=HOUR),
                pyasync.interval(nothing, time=HOUR),
                pyasync.idle(nothing),
                pyasync.make_notifier(nothing),
                pyasync.work(nothing, nothing),
                pyasync.poll(reader, nothing),
                pyasync.signal_handler(signal.SIGUSR1, nothing),
                pyasync.fs_watch(tmp_path, nothing),
                pyasync.fs.stat("/", nothing),
                pyasync.fs.close(os.dup(reader), nothing),
                pyasync.dns_lookup("127.0.0.1", nothing),
                pyasync.reverse_dns_lookup("127.0.0.1", nothing),
                server,
                tcp_ssl_server(),
                pipe_server,
                pyasync.tcp_connect(*server.address, nothing),
                pyasync.init_tcp_ssl_socket(nothing),
                pyasync.pipe_connect(tmp_path / "pipe", nothing),
                process,
                process.input,
                pyasync.open_stream(reader, nothing),
                pyasync.udp_socket("127.0.0.1", 0),
                stream,
            ]
            in_other_thread(check, handles)
            assert not any(handle.closed for handle in handles)
            assert stream.read() == b"a line\nand more"
            process.kill()
            process.input.close()
            pyasync.exit_event_loop()
    finally:
        os.close(reader)
        os.close(writer)


def tcp_ssl_server():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    return pyasync.tcp_ssl_server("127.0.0.1", 0, nothing, ssl_context=context)


def test_another_thread_has_no_loop_of_its_own(run):
    def check():
        assert pyasync.current_loop() is None
        for call in (pyasync.now, pyasync.exit_event_loop, partial(pyasync.delay, nothing)):
            with pytest.raises(pyasync.EventLoopNotRunning):
                call()

    run(partial(in_other_thread, check))


# stats from another thread


def test_stats_can_be_read_while_the_loop_runs_and_never_run_backwards(run):
    """However reads and iterations interleave: neither time nor count is seen to go back."""
    reads = []

    def read(loop):
        before = loop.stats()
        while not finished.is_set():
            now = loop.stats()
            interval = now - before
            assert now.iterations >= before.iterations
            # Two threads read the clock at slightly different times.
            assert interval.idle_time > -0.0001
            assert interval.busy_time > -0.0001
            assert 0 <= interval.utilization <= 1
            assert min(now.handles.values()) >= 0
            before = now
            reads.append(now)

    def tick():
        # Some work with slots: the count of pending timers is read from what this changes.
        for event in [pyasync.delay(nothing) for _ in range(50)]:
            event.remove()

    finished = threading.Event()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with run():
            other = Background(read, pyasync.current_loop())
            ticker = pyasync.interval(tick, time=0.001)
            pyasync.delay(ticker.close, time=0.5)
    finally:
        sys.setswitchinterval(interval)
        finished.set()
    other.result()
    assert reads[-1].iterations > 1


# A loop in a thread that is not the main one


def test_a_loop_runs_in_any_thread(run, wait_until_asleep):
    calls = []

    def start():
        loops.append(pyasync.current_loop())
        pyasync.delay(partial(calls.append, "delay"))
        pyasync.delay(partial(pytest.fail, "slept"), time=HOUR)
        started.set()

    loops, started = [], threading.Event()
    other = Background(run, start)
    assert started.wait(10)
    wait_until_asleep(loops[0])
    assert pyasync.current_loop() is None
    loops[0].call_threadsafe(pyasync.exit_event_loop)
    other.result()
    assert calls == ["delay"]


def test_an_exception_leaves_a_loop_in_any_thread(run):
    with pytest.raises(ZeroDivisionError):
        in_other_thread(run, lambda: pyasync.delay(lambda: 1 / 0))


def test_a_thread_can_run_one_loop_after_another_beside_the_main_threads(run):
    calls = []

    def run_some():
        for number in range(5):
            run(partial(pyasync.delay, partial(calls.append, number)))

    run(partial(in_other_thread, run_some))
    assert calls == list(range(5))
