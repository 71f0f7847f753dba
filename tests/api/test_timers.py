"""Delays, intervals and events."""

import gc
import random
import time
import weakref
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peers import nothing, repetitions

import pyasync

HOUR = 3600.0

#: More events than this one iteration does not fire.
LIMIT = 16384

either_way = pytest.mark.parametrize("buffered", [True, False], ids=["buffered", "unbuffered"])


def timers_pending():
    return pyasync.stats().handles["timer"]


# A delay


def test_a_delay_without_a_time_runs_as_soon_as_possible(run):
    order = []

    with run():
        pyasync.delay(lambda: order.append("timed"), time=0.0)
        pyasync.delay(lambda: order.append("soon"))
    assert order == ["soon", "timed"]


def test_with_delay_turns_a_function_into_an_event(run):
    fired = []

    with run():

        @pyasync.with_delay(0.001)
        def greet():
            fired.append("greet")

        assert isinstance(greet, pyasync.Event)
    assert fired == ["greet"]


@pytest.mark.parametrize("seconds", [0, 0.0004, 0.001, 0.0015, 0.003, 0.0101])
def test_no_delay_fires_early(run, seconds):
    early = []

    def arm():
        due = time.monotonic() + seconds
        pyasync.delay(lambda: early.append(time.monotonic() < due), time=seconds)

    with run():
        for _ in range(5):
            arm()
        pyasync.delay(arm, time=0.0007)
    assert early == [False] * 6


def test_a_delay_armed_after_a_callback_that_blocked_is_not_early(run):
    early = []

    def block_then_arm():
        time.sleep(0.05)
        due = time.monotonic() + 0.02
        pyasync.delay(lambda: early.append(time.monotonic() < due), time=0.02)

    run(lambda: pyasync.delay(block_then_arm))
    assert early == [False]


def test_a_delay_armed_after_a_callback_that_blocked_is_not_late_by_that_time(run):
    times = []

    def block_then_arm():
        time.sleep(1)
        times.append(time.monotonic())
        pyasync.delay(lambda: times.append(time.monotonic()), time=0.001)

    run(lambda: pyasync.delay(block_then_arm))
    assert times[1] - times[0] < 1


# Order


@either_way
@pytest.mark.parametrize("seconds", [None, 0.005], ids=["soon", "timed"])
def test_events_due_together_fire_in_the_order_in_which_they_were_armed(run, seconds, buffered):
    fired = []

    with run(buffer_writes=buffered):
        for number in range(100):
            pyasync.delay(partial(fired.append, number), time=seconds)
    assert fired == list(range(100))


@pytest.mark.parametrize("count", [100_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_very_many_timers_due_in_one_iteration_all_fire_in_order(run, count):
    fired = []

    with run():
        for number in range(count):
            pyasync.delay(partial(fired.append, number))
    assert fired == list(range(count))


@pytest.mark.parametrize("count", [100_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_very_many_timers_can_be_cancelled(run, count):
    fired = []
    left = []

    with run():
        events = [
            pyasync.delay(partial(fired.append, n), time=random.uniform(1, HOUR))
            for n in range(count)
        ]
        assert timers_pending() == count
        random.shuffle(events)
        for event in events:
            event.remove()
        left.append(timers_pending())
    assert (fired, left) == ([], [0])


def test_very_many_timers_due_together_do_not_keep_other_calls_waiting(run):
    fired = []
    fired_before_the_call = []

    with run():
        pyasync.delay(lambda: pyasync.call_soon(lambda: fired_before_the_call.append(len(fired))))
        for number in range(50_000):
            pyasync.delay(partial(fired.append, number))
    assert len(fired) == 50_000
    assert fired_before_the_call[0] < 50_000


def test_when_the_last_of_an_iterations_events_raises_the_others_fire_still(run):
    fired = []

    def callback(number):
        fired.append(number)
        if number == LIMIT - 1:
            raise ZeroDivisionError

    with run(catch_app_errors=lambda error: fired.append(error)):
        for number in range(LIMIT + 10):
            pyasync.delay(partial(callback, number))
    assert len(fired) == LIMIT + 11


def test_an_event_armed_by_anothers_callback_waits_for_the_next_iteration(run):
    iterations = []

    def callback():
        iterations.append(pyasync.stats().iterations)
        if len(iterations) < 100:
            pyasync.delay(callback)

    run(lambda: pyasync.delay(callback))
    assert len(set(iterations)) == 100


def test_a_callback_that_has_run_is_not_kept(run):
    class Callback:
        def __call__(self):
            pass

    callbacks, left = weakref.WeakSet(), []

    def start():
        for _ in range(10):
            callback = Callback()
            callbacks.add(callback)
            pyasync.delay(callback)
        del callback
        pyasync.delay(lambda: pyasync.call_soon(look))

    def look():
        gc.collect()
        left.append(len(callbacks))

    run(start)
    assert left == [0]


def test_cancelled_events_do_not_pile_up(run):
    class Callback:
        def __call__(self):
            raise AssertionError("it was cancelled")

    callbacks = weakref.WeakSet()

    def start():
        for number in range(20_000):
            callback = Callback()
            callbacks.add(callback)
            pyasync.delay(callback, time=HOUR + number % 100).remove()
        del callback
        gc.collect()
        assert len(callbacks) < 3_000

    run(start)


class Model:
    """What is known of a set of events: to each that is armed, its deadline and its order.

    A deadline is a pair: the earliest and the latest, by the clock before and after the call,
    in the whole milliseconds of the loop's clock.
    """

    def __init__(self):
        self.events = [pyasync.make_event(partial(self.fire, n)) for n in range(4)]
        self.armed = {}
        self.arms = 0

    def add(self, number, seconds):
        before = time.monotonic()
        self.events[number].add(seconds)
        after = time.monotonic()
        self.arms += 1
        earliest, latest = (
            0 if seconds is None else int((moment + seconds) * 1000) + 1
            for moment in (before, after)
        )
        iteration = pyasync.stats().iterations
        self.armed[number] = ((earliest, self.arms), (latest, self.arms), iteration)

    def remove(self, number):
        self.events[number].remove()
        self.armed.pop(number, None)

    def fire(self, number):
        assert number in self.armed, "fired without being armed"
        earliest, _, _ = self.armed.pop(number)
        assert time.monotonic() * 1000 >= earliest[0] - 1, "fired early"
        iteration = pyasync.stats().iterations
        for _, latest, armed_in in self.armed.values():
            # What callbacks of this very batch have armed comes after the batch.
            assert armed_in == iteration or latest > earliest, "fired out of order"


TIMES = st.sampled_from([None, 0.0, 0.001, 0.002, 0.003])
STEPS = st.one_of(
    st.tuples(st.just("add"), st.integers(0, 3), TIMES),
    st.tuples(st.just("remove"), st.integers(0, 3)),
    st.tuples(st.just("wait for"), TIMES),
)


@settings(max_examples=repetitions(60))
@given(steps=st.lists(STEPS, max_size=30), buffered=st.booleans())
def test_any_sequence_of_adds_and_removes_fires_what_a_model_says(run, steps, buffered):
    with run(buffer_writes=buffered):
        model = Model()
        take_steps(model, iter(steps))
    assert model.armed == {}, "never fired"


def take_steps(model, steps):
    for name, *arguments in steps:
        if name == "wait for":
            pyasync.delay(partial(take_steps, model, steps), time=arguments[0])
            return
        getattr(model, name)(*arguments)


# An event


def test_a_new_event_is_not_armed_and_does_not_keep_the_loop_running(run):
    fired = []
    remaining = []
    run(lambda: remaining.append(pyasync.make_event(lambda: fired.append("event")).remaining))
    assert (fired, remaining) == ([], [None])


def test_an_event_can_be_armed_again_after_it_has_fired(run):
    fired = []

    def fire():
        fired.append("event")
        if len(fired) < 5:
            event.add(0.001)

    with run():
        event = pyasync.make_event(fire)
        event.add()
    assert fired == ["event"] * 5


def test_an_event_can_be_freed_from_its_own_callback(run):
    freed = []

    def fire():
        event.free()
        freed.append(event.freed)

    with run():
        event = pyasync.delay(fire)
    assert freed == [True]


def test_remaining_is_the_time_until_the_callback(run):
    seen = []

    def fire():
        seen.append(event.remaining)

    with run():
        event = pyasync.delay(fire, time=10)
        first = event.remaining
        time.sleep(0.01)
        second = event.remaining
        assert second <= first - 0.01
        assert 0 < second < first <= 10.001
        event.add(0.001)
        time.sleep(0.005)
        assert event.remaining == 0.0
    assert seen == [None]


def test_an_event_outlives_its_loop_but_cannot_be_armed(run):
    events = []
    run(lambda: events.append(pyasync.make_event(nothing)))
    for call in (events[0].add, events[0].remove, lambda: events[0].remaining):
        with pytest.raises(pyasync.EventLoopNotRunning):
            call()
    events[0].free()
    assert events[0].freed


def test_an_event_belongs_to_the_loop_that_it_was_made_in(run):
    events = []
    run(lambda: events.append(pyasync.make_event(nothing)))

    with run(), pytest.raises(pyasync.EventLoopNotRunning):
        events[0].add()


# Two events of one batch, of which the first changes what the second was to do


@pytest.fixture
def run_pair(run):
    """Give a function that runs two events due together; the first calls `change(second)`."""

    def run_pair(change, buffered):
        fired = []

        with run(buffer_writes=buffered):
            pyasync.delay(lambda: (fired.append("first"), change(second, fired)))
            second = pyasync.delay(lambda: fired.append("second"))
            pyasync.delay(lambda: fired.append("third"))
        return fired

    return run_pair


@either_way
@pytest.mark.parametrize("method", ["remove", "free"])
def test_an_event_that_is_taken_away_while_it_is_due_does_not_fire(run_pair, method, buffered):
    fired = run_pair(lambda second, fired: getattr(second, method)(), buffered)
    assert fired == ["first", "third"]


@either_way
def test_an_event_that_is_armed_anew_while_it_is_due_fires_once_at_its_new_time(run_pair, buffered):
    due = []

    def change(second, fired):
        due.append(time.monotonic() + 0.02)
        second.add(0.02)

    fired = run_pair(change, buffered)
    assert time.monotonic() >= due[0]
    assert fired == ["first", "third", "second"]


@either_way
def test_an_event_that_is_removed_and_armed_while_it_is_due_fires_once(run_pair, buffered):
    def change(second, fired):
        for _ in range(3):
            second.add()
            second.remove()
        second.add()

    assert run_pair(change, buffered) == ["first", "third", "second"]


@either_way
def test_new_events_do_not_inherit_the_firing_of_one_that_was_removed(run_pair, buffered):
    new = []

    def change(second, fired):
        second.remove()
        for _ in range(5):
            new.append(pyasync.delay(lambda: fired.append("new, early"), time=HOUR))
        pyasync.delay(lambda: fired.append("new, due"))
        pyasync.delay(lambda: [event.free() for event in new], time=0.005)

    assert run_pair(change, buffered) == ["first", "third", "new, due"]


@either_way
def test_events_are_reused_for_a_long_time_without_a_wrong_firing(run, buffered):
    """Each of 2,000 steps removes an event that is due with it, and one that is not."""
    wrong = []
    steps = []

    def step():
        due.remove()
        late.free()
        steps.append(1)
        if len(steps) < 2000:
            arm()

    def arm():
        nonlocal due, late
        pyasync.delay(step)
        due = pyasync.delay(lambda: wrong.append("removed"))
        late = pyasync.delay(lambda: wrong.append("early"), time=HOUR)

    due = late = None
    run(arm, buffer_writes=buffered)
    assert (len(steps), wrong) == (2000, [])


# What keeps the loop running


def test_an_unreferenced_event_does_not_keep_the_loop_running(run):
    fired = []

    with run():
        armed_first = pyasync.delay(lambda: fired.append("armed first"), time=HOUR)
        armed_first.unref()
        armed_later = pyasync.make_event(lambda: fired.append("armed later"))
        armed_later.unref()
        armed_later.add(HOUR)
        assert not armed_first.has_ref
        assert not armed_later.has_ref
    assert fired == []


def test_an_unreferenced_event_fires_while_something_else_keeps_the_loop_running(run):
    fired = []

    with run():
        pyasync.delay(lambda: fired.append("unreferenced"), time=0.001).unref()
        pyasync.delay(lambda: fired.append("referenced"), time=0.02)
    assert fired == ["unreferenced", "referenced"]


def test_an_event_that_loses_its_reference_while_the_loop_sleeps_lets_it_end(run):
    with run():
        event = pyasync.delay(nothing, time=HOUR)
        pyasync.delay(event.unref, time=0.001)


def test_a_pending_delay_that_is_removed_lets_the_loop_end(run):
    with run():
        event = pyasync.delay(nothing, time=HOUR)
        pyasync.delay(event.remove, time=0.001)


# An interval

PERIOD = 0.01


class Ticks:
    """An interval beside a delay shortly after each of its multiples.

    `multiples` tells of each tick at which multiple of the period it was due: the tick itself, or
    one that it comes too late for. Both kinds of timer fire in order of their deadlines, however
    busy the machine is; that makes the number certain.
    """

    def __init__(self, callback, count):
        self.callback, self.count = callback, count
        self.multiples = []
        self.early = []
        self.passed = 0
        self.started = time.monotonic()
        self.interval = pyasync.interval(self.tick, time=PERIOD)
        now = time.monotonic()
        self.marks = [  # for so long that a busy machine ticks often enough
            pyasync.delay(self.mark, time=(multiple + 0.3) * PERIOD + now - time.monotonic())
            for multiple in range(1, 1001)
        ]

    def mark(self):
        self.passed += 1

    def tick(self):
        multiple = self.passed + 1
        self.multiples.append(multiple)
        self.early.append(time.monotonic() < self.started + multiple * PERIOD)
        self.callback(self)
        if len(self.multiples) == self.count:
            for timer in (self.interval, *self.marks):
                timer.close()


def test_an_interval_runs_at_multiples_of_its_time_and_does_not_drift(run):
    with run():
        ticks = Ticks(lambda ticks: time.sleep(0.6 * PERIOD), 20)
    assert not any(ticks.early)
    assert len(set(ticks.multiples)) == 20


def test_an_interval_that_falls_behind_skips_what_it_has_missed(run):
    def block_the_first_time(ticks):
        if len(ticks.multiples) == 1:
            time.sleep(3.5 * PERIOD)

    with run():
        ticks = Ticks(block_the_first_time, 5)
    assert not any(ticks.early)
    multiples = ticks.multiples
    assert len(set(multiples)) == len(multiples)
    # The second tick was due while the first one blocked; then it is as if nothing had been.
    assert multiples[2] - multiples[1] >= 3


@pytest.mark.parametrize(
    "cancel",
    [lambda interval: interval(), pyasync.Interval.close, pyasync.remove_interval],
    ids=["call", "close", "remove_interval"],
)
def test_an_interval_can_be_cancelled_from_its_own_callback(run, cancel):
    ticks = []

    def tick():
        ticks.append(interval.closed)
        if len(ticks) == 3:
            cancel(interval)
            cancel(interval)
            ticks.append(interval.closed)

    with run():
        interval = pyasync.interval(tick, time=0.001)
    assert ticks == [False, False, False, True]


def test_an_interval_can_be_cancelled_before_it_ticks(run):
    ticks = []

    with run():
        interval = pyasync.interval(lambda: ticks.append("tick"), time=0.001)
        interval.close()
        assert interval.closed
    assert ticks == []


def test_with_interval_turns_a_function_into_an_interval(run):
    ticks = []

    with run():

        @pyasync.with_interval(0.001)
        def tick():
            ticks.append("tick")
            if len(ticks) == 2:
                tick.close()

        assert isinstance(tick, pyasync.Interval)
    assert ticks == ["tick"] * 2


def test_an_unreferenced_interval_does_not_keep_the_loop_running(run):
    ticks = []

    with run():
        interval = pyasync.interval(lambda: ticks.append("tick"), time=0.005)
        assert interval.has_ref
        interval.unref()
        assert not interval.has_ref
        pyasync.delay(nothing, time=0.05)
    assert ticks


# Timers beside other things that the loop waits for


@either_way
def test_delays_are_delivered_while_the_loop_waits_for_connections(run, buffered):
    """The poll must not sleep while there are events that have not been delivered."""
    steps = []

    def step():
        steps.append(1)
        if len(steps) == 200:
            server.close()
            last.close()
        else:
            pyasync.delay(step, time=None if len(steps) % 2 else 0)

    with run(buffer_writes=buffered):
        server = pyasync.tcp_server("127.0.0.1", 0, lambda socket, data: None)
        last = pyasync.delay(nothing, time=HOUR)
        step()
    assert len(steps) == 200


# Arguments that are wrong are refused at the call


def test_a_wrong_time_leaves_an_armed_event_as_it_was(run):
    fired = []

    with run():
        event = pyasync.delay(lambda: fired.append("event"), time=0.001)
        with pytest.raises(ValueError, match="-1"):
            event.add(-1)
    assert fired == ["event"]


def test_a_time_of_many_years_is_no_error(run):
    with run():
        event = pyasync.delay(nothing, time=1e9)
        assert event.remaining > 9e8
        event.free()


@pytest.mark.parametrize(
    ("arm", "old"),
    [
        (lambda **time: pyasync.make_event(pyasync.exit_event_loop).add(**time), "timeout"),
        (lambda **time: pyasync.with_delay(**time)(pyasync.exit_event_loop), "seconds"),
        (lambda **time: pyasync.with_interval(**time)(pyasync.exit_event_loop), "seconds"),
    ],
    ids=["add", "with_delay", "with_interval"],
)
def test_a_time_is_given_by_its_name_or_its_older_name(run, arm, old):
    for name in ("time", old):
        start = time.monotonic()
        with run():
            arm(**{name: 0.05})
        assert time.monotonic() - start >= 0.05
    with run(), pytest.raises(TypeError, match=f"{old} is an older name of time"):
        arm(**{"time": 1, old: 1})
