"""Notifiers: a callback in the loop that any thread asks for."""

import os
import queue
import signal
import threading
from functools import partial

import pytest
from peers import PATIENCE, Background, after_iterations, fork_and_check, nothing

import pyasync


def test_a_trigger_runs_the_callback_in_the_loops_thread(run):
    called = []

    def callback():
        called.append((threading.get_ident(), pyasync.current_loop() is not None))

    with run():
        notifier = pyasync.make_notifier(callback)
        other = Background(notifier.trigger)
    other.result()
    assert called == [(threading.get_ident(), True)]


def test_a_trigger_wakes_a_sleeping_loop(run, wait_until_asleep):
    called = []

    def trigger(loop, notifier):
        wait_until_asleep(loop)
        pyasync.trigger_notifier(notifier)

    with run():
        notifier = pyasync.make_notifier(partial(called.append, 1))
        other = Background(trigger, pyasync.current_loop(), notifier)
    other.result()
    assert called == [1]


def test_a_loop_sleeps_for_a_notifier_alone_and_wakes_each_time(run, wait_until_asleep):
    called = []

    def trigger(loop):
        for _ in range(5):
            wait_until_asleep(loop)
            notifier.trigger()
            assert called.get(timeout=PATIENCE)
        loop.call_threadsafe(notifier.free)

    called = queue.Queue()
    with run():
        notifier = pyasync.make_notifier(partial(called.put, True), single_shot=False)
        other = Background(trigger, pyasync.current_loop())
    other.result()


def test_triggers_before_the_callback_runs_are_one_call(run):
    called = []

    with run():
        notifier = pyasync.make_notifier(partial(called.append, 1), single_shot=False)
        for _ in range(100):
            notifier.trigger()
        assert called == []
        after_iterations(3, notifier.free)
    assert called == [1]


def test_no_trigger_of_many_threads_is_lost(run):
    """After each trigger the callback runs, and sees what the thread has done before."""
    threads, triggers = 8, 125_000
    done = [0] * threads

    def trigger(number):
        for count in range(1, triggers + 1):
            done[number] = count
            notifier.trigger()

    def callback():
        nonlocal calls, seen
        calls += 1
        seen = sum(done)
        if seen == threads * triggers:
            notifier.free()

    others, calls, seen = [], 0, 0
    # The last one frees it, and so ends the loop: without that it would run into its limit.
    with run(limit=100):
        notifier = pyasync.make_notifier(callback, single_shot=False)
        others.extend(Background(trigger, number) for number in range(threads))
    for other in others:
        other.result()
    assert seen == threads * triggers
    assert 1 <= calls <= seen


def test_notifiers_of_many_threads_have_their_own_callbacks(run):
    called = []

    others = []
    with run():
        for number in range(20):
            notifier = pyasync.make_notifier(partial(called.append, number))
            others.append(Background(notifier.trigger))
    for other in others:
        other.result()
    assert sorted(called) == list(range(20))


def test_a_callback_that_triggers_its_notifier_is_called_again(run):
    called = []

    def callback():
        called.append(pyasync.stats().iterations)
        if len(called) < 5:
            notifier.trigger()
        else:
            notifier.free()

    with run():
        notifier = pyasync.make_notifier(callback, single_shot=False)
        notifier.trigger()
    assert called == list(range(called[0], called[0] + 5))


def test_a_handler_of_pythons_may_trigger(run, wait_until_asleep):
    called = []

    def send(loop):
        wait_until_asleep(loop)
        os.kill(os.getpid(), signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, lambda signo, frame: notifier.trigger())
    try:
        with run():
            notifier = pyasync.make_notifier(partial(called.append, 1))
            other = Background(send, pyasync.current_loop())
    finally:
        signal.signal(signal.SIGUSR1, before)
    other.result()
    assert called == [1]


def test_a_handler_of_pythons_may_interrupt_a_trigger_with_its_own(run):
    """Wherever it interrupts: both share a call, or each has its own, and none is lost."""
    counts, handled = [0, 0], []

    def handle(signo, frame):
        handled.append(1)
        counts[1] += 1
        notifier.trigger()

    def callback():
        seen[:] = counts

    def trigger_and_be_interrupted():
        for _ in range(20_000):
            counts[0] += 1
            notifier.trigger()
        if handled:
            signal.setitimer(signal.ITIMER_REAL, 0)
            after_iterations(3, notifier.free)
        else:
            pyasync.call_soon(trigger_and_be_interrupted)

    seen = []
    before = signal.signal(signal.SIGALRM, handle)
    try:
        with run():
            notifier = pyasync.make_notifier(callback, single_shot=False)
            signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
            trigger_and_be_interrupted()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert seen == counts


def test_a_trigger_that_is_interrupted_loses_none_of_another_thread(run, monkeypatch):
    class Interrupt(BaseException):
        pass

    def interrupted(loop, fn):
        monkeypatch.undo()
        Background(notifier.trigger).result()  # finds that it shares the other's call
        raise Interrupt

    called = []
    with run():
        notifier = pyasync.make_notifier(partial(called.append, 1))
        monkeypatch.setattr(pyasync.Loop, "call_threadsafe", interrupted)
        with pytest.raises(Interrupt):
            notifier.trigger()
    assert called == [1]


# Single shots


def test_a_single_shot_is_freed_when_it_is_called(run):
    called = []

    def callback():
        called.append(notifier.freed)
        with pytest.raises(pyasync.NotifierFreed):
            notifier.trigger()
        notifier.free()

    with run():
        notifier = pyasync.make_notifier(callback)
        notifier.trigger()
        notifier.trigger()
    assert called == [True]


# Its end


def test_a_freed_notifier_refuses_triggers_of_any_thread(run):
    with run():
        notifier = pyasync.make_notifier(partial(pytest.fail, "called"))
        assert not notifier.freed
        pyasync.free_notifier(notifier)
        notifier.free()
        notifier.close()
        assert notifier.freed
        assert notifier.closed
        with pytest.raises(pyasync.NotifierFreed, match="freed"):
            notifier.trigger()
        with pytest.raises(pyasync.NotifierFreed, match="freed"):
            Background(notifier.trigger).result()
        with pytest.raises(pyasync.NotifierFreed):
            notifier.ref()


def test_a_trigger_after_the_loop_has_ended_raises(run):
    with run():
        notifier = pyasync.make_notifier(nothing)
        notifier.unref()
    assert notifier.freed
    with pytest.raises(pyasync.NotifierFreed, match="its loop has ended"):
        notifier.trigger()
    notifier.free()


def test_a_notifier_that_is_freed_after_its_trigger_is_not_called(run):
    with run():
        notifier = pyasync.make_notifier(partial(pytest.fail, "called"))
        notifier.trigger()
        notifier.free()


# What else it is


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_the_child_of_a_fork_leaves_the_notifier_to_the_parent(run):
    called = []

    def check():
        with pytest.raises(pyasync.NotifierFreed):
            notifier.trigger()
        notifier.free()

    with run():
        notifier = pyasync.make_notifier(partial(called.append, 1))
        fork_and_check(check)
        assert called == []
        notifier.trigger()
    assert called == [1]
