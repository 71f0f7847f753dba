"""Loops and threads: what another thread may call, and what it may not."""

import collections
import contextlib
import queue
import signal
import subprocess
import sys
import threading
import time
from functools import partial

import pytest
from peers import Background, in_other_thread, nothing

import pyasync

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

    def start():
        nonlocal keep_running
        keep_running = pyasync.delay(nothing, time=HOUR)
        others.extend(Background(make_calls, pyasync.current_loop(), n) for n in range(threads))

    ident, keep_running, others = threading.get_ident(), None, []
    run(start, limit=50)
    for other in others:
        other.result()
    for number in range(threads):
        assert [count for n, count in done if n == number] == list(range(calls))


def test_a_call_wakes_a_sleeping_loop(run, wait_until_asleep):
    def wake(loop):
        wait_until_asleep(loop)
        loop.call_threadsafe(sleeper.free)

    def start():
        nonlocal sleeper
        sleeper = pyasync.delay(partial(pytest.fail, "slept"), time=HOUR)
        others.append(Background(wake, pyasync.current_loop()))

    sleeper, others = None, []
    run(start)
    others[0].result()


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
    counted = CountedWakeups(pyasync.loop.lib)
    monkeypatch.setattr(pyasync.loop, "lib", counted)
    calls = []

    def call_often(loop):
        for number in range(1000):
            loop.call_threadsafe(partial(calls.append, number))

    def start():
        in_other_thread(call_often, pyasync.current_loop())
        assert counted.count == 1
        assert calls == []
        keep_running = pyasync.make_notifier(nothing)
        pyasync.current_loop().call_threadsafe(keep_running.free)

    run(start)
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

    def start():
        nonlocal idler, sleeper
        idler = pyasync.idle(nothing)
        sleeper = pyasync.delay(nothing, time=HOUR)
        loops.append(pyasync.current_loop())
        others.append(Background(make_calls, pyasync.current_loop()))

    ident, idler, sleeper = threading.get_ident(), None, None
    loops, iterations, others = [], [], []
    monkeypatch.setattr(pyasync.loop, "deque", TakenAtOnce)
    run(start)
    others[0].result()


def test_no_call_is_left_in_a_loop_that_sleeps(run):
    """Each of these is the only one, made when the loop has just run the one before."""

    def call_and_wait(loop):
        for _ in range(3000):
            loop.call_threadsafe(partial(answers.put, True))
            assert answers.get(timeout=10)

    def start():
        loop = pyasync.current_loop()
        keep_running = pyasync.make_notifier(nothing)
        others.extend(Background(call_and_wait, loop) for _ in range(2))
        others.append(Background(free_when_done, loop, keep_running))

    def free_when_done(loop, keep_running):
        for other in others[:2]:
            other.join()
        loop.call_threadsafe(keep_running.free)

    others, answers = [], queue.SimpleQueue()
    run(start, limit=40)
    for other in others:
        other.result()


def test_a_call_of_the_loops_own_thread_runs_in_the_next_iteration(run):
    calls = []

    def start():
        pyasync.current_loop().call_threadsafe(partial(calls.append, "threadsafe"))
        pyasync.delay(partial(calls.append, "delay"), time=0.01)

    run(start)
    assert calls == ["threadsafe", "delay"]


def test_calls_that_go_on_and_on_do_not_keep_timers_waiting(run):
    running = [True]

    def again(loop):
        if running:
            loop.call_threadsafe(partial(again, loop))

    def start():
        again(pyasync.current_loop())
        pyasync.delay(running.clear, time=0.01)

    run(start)
    assert not running


def test_a_call_after_the_loop_has_ended_raises(run):
    loops = []
    run(lambda: loops.append(pyasync.current_loop()))
    with pytest.raises(pyasync.EventLoopNotRunning, match="has ended"):
        loops[0].call_threadsafe(nothing)


def test_calls_that_race_with_the_end_of_the_loop_raise_or_are_forgotten(run):
    def call_until_the_end(loop):
        with contextlib.suppress(pyasync.EventLoopNotRunning):
            while True:
                loop.call_threadsafe(nothing)

    def start():
        loop = pyasync.current_loop()
        others.extend(Background(call_until_the_end, loop) for _ in range(2))
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
    subprocess.run([sys.executable, "-c", script], check=True, timeout=20)


# Calls that only the loop's thread may make


def test_calls_on_handles_from_another_thread_raise(run):
    def check(event, interval, server, connection, handler):
        for call in (
            event.add,
            event.remove,
            event.free,
            event.ref,
            event.unref,
            lambda: event.remaining,
            interval.close,
            interval.ref,
            server.close,
            server.fileno,
            server.ref,
            lambda: server.has_ref,
            lambda: connection.write(b"data"),
            connection.close,
            connection.shutdown,
            connection.fileno,
            handler.close,
            handler.unref,
        ):
            with pytest.raises(RuntimeError, match="not the event loop's"):
                call()

    def start():
        server = pyasync.tcp_server("127.0.0.1", 0, nothing)
        handles = (
            pyasync.delay(nothing, time=HOUR),
            pyasync.interval(nothing, time=HOUR),
            server,
            pyasync.tcp_connect(*server.address, nothing),
            pyasync.signal_handler(signal.SIGUSR1, nothing),
        )
        in_other_thread(check, *handles)
        assert not any(handle.closed for handle in handles)
        pyasync.exit_event_loop()

    run(start)


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

    def start():
        others.append(Background(read, pyasync.current_loop()))
        ticker = pyasync.interval(tick, time=0.001)
        pyasync.delay(ticker.close, time=0.5)

    finished, others = threading.Event(), []
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        run(start)
    finally:
        sys.setswitchinterval(interval)
        finished.set()
    others[0].result()
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
