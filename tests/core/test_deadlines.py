"""Timers of the core: one change at a time, whoever comes in between."""

import gc
import itertools

import pytest
from interrupts import Interrupt, each_line, raise_interrupt
from peers import repetitions

from pyasync._core import deadlines
from pyasync._core.deadlines import Deadlines


class Alarm:
    """The least that Deadlines asks of a timer."""

    def __init__(self, callback=lambda: None, referenced=True):
        self._bucket = None
        self._on_due = callback
        self._options = None if referenced else (None, False)


class FakeEngine:
    """What `Deadlines.fire` uses of an engine."""

    class counters:
        events = 0

    def __init__(self):
        self.stopping = False
        self.long_callback_limit = 0.0
        self.errors = []

    def note_long_callback(self, seconds, callback):
        return seconds

    def on_error(self, error, owner):
        self.errors.append((error, owner))


CHANGES = [
    Deadlines.arm,
    Deadlines.disarm,
    Deadlines.set_options,
    Deadlines._compact,
    Deadlines._collect,
    Deadlines._take,
    Deadlines._catch_up,
]


def check(timers):
    """The counts are those of what stands in the buckets."""
    armed = list(timers.timers())
    assert timers.armed == len(armed) == len(set(armed))
    assert timers.unreferenced == sum(t._options is not None and not t._options[1] for t in armed)
    assert all(timer._bucket is not None for timer in armed)
    waiting = timers.buckets.values()
    assert timers.stale == sum(len(bucket) - 1 for bucket in waiting) - sum(
        timer._bucket is bucket for bucket in waiting for timer in set(bucket[1:])
    )
    assert set(timers.buckets) <= set(timers.dues)


def fire_all(timers):
    engine = FakeEngine()
    timers.fire(10**12, engine)
    return engine


def test_stale_entries_are_counted_also_while_some_wait_to_be_fired(monkeypatch):
    """Once a compaction has counted those of the buckets being fired, and they were below zero."""
    monkeypatch.setattr(deadlines, "FIRE_LIMIT", 10)
    timers, engine = Deadlines(), FakeEngine()
    first = [Alarm() for _ in range(100)]
    second = [Alarm() for _ in range(3000)]
    for alarm in first:
        timers.arm(alarm, 1)
    for alarm in second:
        timers.arm(alarm, 2)
    timers.fire(5, engine)  # ten of them
    for alarm in [*first, *second]:
        timers.disarm(alarm)
    others = [Alarm() for _ in range(3000)]
    for alarm in others:
        timers.arm(alarm, 9)
    for alarm in others:
        timers.disarm(alarm)
    assert timers.armed == 0
    assert timers.stale >= 0
    while timers.left_over:
        timers.fire(10, engine)
    assert timers.stale == 0
    assert engine.errors == []


def test_disarming_timers_that_are_due_compacts_nothing_again_and_again(monkeypatch):
    """Their entries cannot be removed by a compaction, and once each of them caused one."""
    timers, engine, compactions = Deadlines(), FakeEngine(), []
    compact = Deadlines._compact
    monkeypatch.setattr(Deadlines, "_compact", lambda self: (compactions.append(1), compact(self)))
    due = [Alarm() for _ in range(5000)]

    def disarm_the_others():
        for alarm in due[1:]:
            timers.disarm(alarm)

    due[0]._on_due = disarm_the_others
    later = [Alarm() for _ in range(2000)]
    for alarm in due:
        timers.arm(alarm, 1)
    for alarm in later:
        timers.arm(alarm, 10**9)
    timers.fire(5, engine)
    assert compactions == []
    assert (timers.armed, timers.stale) == (2000, 0)
    check(timers)


def scenario(timers, fired):
    """Arm, disarm and fire timers, so many that they are compacted."""
    alarms = [Alarm(lambda n=n: fired.append(n), n % 3 != 0) for n in range(60)]
    for n, alarm in enumerate(alarms):
        timers.arm(alarm, n % 7)
    for n, alarm in enumerate(alarms):
        if n % 2:
            timers.disarm(alarm)
    timers.set_options(alarms[0], None)
    timers.arm(alarms[2], 5)
    fire_all(timers)


@pytest.fixture
def _compacted_soon(monkeypatch):
    monkeypatch.setattr(deadlines, "SLACK", -20)


@pytest.mark.usefixtures("_compacted_soon")
@pytest.mark.parametrize("action", ["arm", "disarm", "both"])
def test_a_signal_handler_may_change_timers_at_any_line(action):
    fired, handled = [], []
    timers = None

    def handler():
        alarm = Alarm(lambda: handled.append(1))
        timers.arm(alarm, 3)
        if action != "arm":
            timers.disarm(alarm)
        if action == "both":
            timers.arm(alarm, 3)

    def run():
        nonlocal timers
        fired.clear(), handled.clear()
        timers = Deadlines()
        scenario(timers, fired)
        if timers.first() >= 0:
            fire_all(timers)  # what the handler has armed while the others were fired
        check(timers)
        assert sorted(fired) == list(range(0, 60, 2))
        assert len(handled) <= 1
        assert timers.armed == 0

    step = 100 // repetitions(100)
    lines = each_line(run, handler, Deadlines.fire, *CHANGES, step=step)
    assert lines > 500


@pytest.mark.usefixtures("_compacted_soon")
def test_counts_are_right_after_an_exception_at_any_line():
    fired = []

    def run():
        fired.clear()
        timers = Deadlines()
        alarms = [Alarm(lambda n=n: fired.append(n), n % 3 != 0) for n in range(40)]
        steps = [lambda n=n, a=a: timers.arm(a, n % 7) for n, a in enumerate(alarms)]
        steps += [lambda a=a: timers.disarm(a) for a in alarms[::2]]
        steps += [lambda: timers.set_options(alarms[1], None)]
        for step in steps:
            try:
                step()
            except Interrupt:
                timers.first()
                check(timers)
        check(timers)
        engine = FakeEngine()
        for _ in range(3):
            try:
                timers.fire(10**12, engine)
            except Interrupt:
                pass
        check(timers)
        assert timers.armed == 0
        assert len(fired) == len(set(fired)) >= 19

    each_line(run, raise_interrupt, *CHANGES)


class Cleaning:
    """An object in a cycle, whose clean-up frees a timer and arms another: ordinary code."""

    def __init__(self, timers, number):
        self.me = self
        self.timers = timers
        self.alarm = Alarm()
        timers.arm(self.alarm, 1000 + number % 50)

    def __del__(self):
        self.timers.disarm(self.alarm)
        other = Alarm()
        self.timers.arm(other, 1000)
        self.timers.disarm(other)


def test_the_garbage_collector_may_run_in_the_middle_of_a_change():
    timers, numbers = Deadlines(), itertools.count()
    threshold = gc.get_threshold() if hasattr(gc, "get_threshold") else None  # not on PyPy
    if threshold is not None:
        gc.set_threshold(20, 2, 2)
    try:
        for _ in range(3000):
            Cleaning(timers, next(numbers))
    finally:
        if threshold is not None:
            gc.set_threshold(*threshold)
    for _ in range(3):  # PyPy needs more than one
        gc.collect()
    timers.first()
    check(timers)
    assert timers.armed == 0
    assert timers.stale <= deadlines.SLACK
