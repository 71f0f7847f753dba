"""The counters of a loop, and their snapshots."""

import dataclasses
import signal
import time
from collections.abc import Mapping
from functools import partial

import pytest
from peers import nothing

import pyasync

HOUR = 3600.0

COUNTS = [
    "incoming_tcp_connections",
    "outgoing_tcp_connections",
    "open_dns_queries",
    "accepted",
    "connected",
    "closed",
    "accept_errors",
    "bytes_read",
    "bytes_written",
    "iterations",
    "events",
    "crossings",
    "slow_callbacks",
]
TIMES = ["idle_time", "busy_time", "max_callback_time"]


@pytest.fixture
def run_between(run):
    """Give a function that runs a loop and returns its stats at the beginning and the end."""

    def run_between(start_fn, **keywords):
        loops, snapshots = [], []

        with run(**keywords):
            loops.append(pyasync.current_loop())
            snapshots.append(pyasync.stats())
            start_fn()
        return snapshots[0], loops[0].stats()

    return run_between


def repeat(count, step):
    """Call the step in each of so many iterations."""
    if count:
        step()
        pyasync.call_soon(partial(repeat, count - 1, step))


# A snapshot


def test_a_snapshot_has_all_that_is_documented(run):
    stats = []
    run(lambda: stats.append(pyasync.stats()))
    for name in COUNTS:
        assert isinstance(getattr(stats[0], name), int)
        assert getattr(stats[0], name) >= 0
    for name in TIMES:
        assert isinstance(getattr(stats[0], name), float)
        assert getattr(stats[0], name) >= 0
    assert isinstance(stats[0].handles, Mapping)


def test_a_snapshot_cannot_be_changed_and_does_not_change(run):
    with run():
        before = pyasync.stats()
        copy = dataclasses.replace(before)
        pyasync.delay(nothing)
        pyasync.tcp_server("127.0.0.1", 0, nothing).close()
        assert before == copy != pyasync.stats()
        with pytest.raises(dataclasses.FrozenInstanceError):
            before.accepted = 1


def test_stats_can_be_read_from_the_loop_object_and_after_its_end(run):
    with run():
        loop = pyasync.current_loop()
        pyasync.tcp_server("127.0.0.1", 0, nothing)
        pyasync.delay(nothing, time=HOUR)
        pyasync.exit_event_loop()
    first = loop.stats()
    time.sleep(0.001)
    assert first == loop.stats()
    assert not any(first.handles.values())


# Subtraction


def test_a_difference_has_what_was_counted_in_between_and_what_is_there_at_the_end():
    def stats(there, accepted, bytes_read, idle, busy):
        return pyasync.Stats(
            incoming_tcp_connections=there, handles={"tcp": there}, accepted=accepted,
            bytes_read=bytes_read, idle_time=idle, busy_time=busy, max_callback_time=0.5,
        )  # fmt: skip

    difference = stats(2, 14, 150, 4.0, 3.0) - stats(3, 10, 100, 1.0, 2.0)
    assert difference == stats(2, 4, 50, 3.0, 1.0)
    assert difference.utilization == 0.25


def test_only_stats_can_be_subtracted():
    with pytest.raises(TypeError):
        pyasync.Stats() - 1


def test_the_utilization_of_no_time_is_zero():
    assert pyasync.Stats().utilization == 0


# Time


@pytest.mark.parametrize("busy", [False, True])
def test_time_is_idle_where_the_loop_sleeps_and_busy_where_it_works(run_between, busy):
    # A busy machine makes both wait besides: the sleeping loop wakes at the same time all the same.
    work = partial(time.sleep, 0.5)
    before, after = run_between(work if busy else partial(pyasync.delay, nothing, time=0.9))
    interval = after - before
    assert (interval.busy_time if busy else interval.idle_time) > 0.49
    share = interval.busy_time / (interval.busy_time + interval.idle_time)
    assert interval.utilization == pytest.approx(share)


def test_idle_and_busy_time_are_all_the_time_there_is(run_between):
    started = time.monotonic()
    before, after = run_between(lambda: pyasync.delay(partial(time.sleep, 0.02), time=0.02))
    elapsed = time.monotonic() - started
    interval = after - before
    assert 0.04 <= interval.idle_time + interval.busy_time <= elapsed


@pytest.mark.parametrize("schedule", [pyasync.delay, pyasync.call_soon])
def test_the_longest_callback_is_seen(run_between, schedule):
    def start():
        schedule(partial(time.sleep, 0.05))
        schedule(nothing)

    before, after = run_between(start)
    assert 0.05 <= after.max_callback_time < 5
    assert before.max_callback_time < 5


def test_the_time_of_a_callback_that_raises_is_seen(run_between):
    def fail():
        time.sleep(0.05)
        raise ArithmeticError

    _, after = run_between(partial(pyasync.delay, fail), catch_app_errors=nothing)
    assert after.max_callback_time >= 0.05


# Long callbacks


class Slow:
    """Callbacks that take a while, and then end what they belong to."""

    #: Much less than they take, and more than other callbacks do, but on a stalled machine.
    threshold = 0.02

    def __call__(self, *arguments):
        time.sleep(0.05)

    def function(self, *arguments):
        self()

    def on_connection(self, socket, *arguments):
        self()
        socket.close()

    def on_event(self, event):
        self()

    def on_failure(self):
        self()
        raise ArithmeticError


def connect_to_a_server(slow, **client):
    def on_data(socket, data):
        server.close()
        socket.close()

    server = pyasync.tcp_server("127.0.0.1", 0, on_data)
    pyasync.tcp_connect(*server.address, nothing, **{"data": b"x", **client})


def read_slowly(slow, **keywords):
    def on_data(socket, data):
        server.close()
        slow.on_connection(socket)

    on_data.__qualname__ = "Slow.on_connection"
    server = pyasync.tcp_server("127.0.0.1", 0, on_data, **keywords)
    pyasync.tcp_connect(*server.address, nothing, data=b"x")


def receive_a_datagram(slow):
    sock = pyasync.udp_socket("127.0.0.1", 0, slow.on_connection)
    sock.send(b"x", sock.address)


def write_slowly(slow):
    def connected(socket):
        socket.write(b"x", write_cb=slow.function)

    connect_to_a_server(slow, connect_cb=connected, data=None)


def close_an_interval(slow):
    ticker = pyasync.interval(slow.function, time=0.001)
    pyasync.delay(ticker.close, time=0.001)


SLOW_CALLBACKS = {
    "call_soon": ("function", lambda slow: pyasync.call_soon(partial(slow.function, 1))),
    "a delay": ("function", lambda slow: pyasync.delay(slow.function)),
    "an interval": ("function", close_an_interval),
    "a notifier": (
        "function",
        lambda slow: pyasync.make_notifier(slow.function).trigger(),
    ),
    "work": ("function", lambda slow: pyasync.work(nothing, slow.function)),
    "a file": ("function", lambda slow: pyasync.fs.stat("/", slow.function)),
    "a child": ("function", lambda slow: pyasync.spawn("true", [], exit_cb=slow.function)),
    "a datagram": ("on_connection", receive_a_datagram),
    "read_cb": ("on_connection", read_slowly),
    "read_cb of a stream": ("on_connection", partial(read_slowly, stream=True)),
    "write_cb": ("function", write_slowly),
    "connect_cb": (
        "function",
        lambda slow: connect_to_a_server(slow, connect_cb=slow.function),
    ),
    "event_cb": ("on_event", lambda slow: connect_to_a_server(slow, event_cb=slow.on_event)),
    "close_cb": ("function", lambda slow: connect_to_a_server(slow, close_cb=slow.function)),
    "one that raises": ("on_failure", lambda slow: pyasync.delay(slow.on_failure)),
}


@pytest.mark.parametrize(("name", "start"), SLOW_CALLBACKS.values(), ids=SLOW_CALLBACKS)
def test_a_slow_callback_is_logged_with_its_name_and_counted(run_between, caplog, name, start):
    _, after = run_between(
        partial(start, Slow()),
        slow_callback_threshold=Slow.threshold,
        catch_app_errors=nothing,
    )
    logged = [record.getMessage() for record in caplog.records]
    named = f"callback {__name__}.Slow.{name} took "
    assert [line for line in logged if line.startswith(named)]
    # A stalled machine makes others slow too.
    assert after.slow_callbacks == len(logged)
    assert after.max_callback_time >= 0.05


def test_without_a_threshold_no_callback_is_slow(run_between, caplog):
    _, after = run_between(partial(pyasync.delay, Slow()))
    assert after.slow_callbacks == 0
    assert caplog.records == []
    assert after.longest_callback == f"{__name__}.Slow"


def test_slow_callbacks_are_told_after_longer_ones(run_between, caplog):
    def start():
        pyasync.delay(partial(time.sleep, 0.6))
        pyasync.delay(Slow().function, time=0.001)

    before, after = run_between(start, slow_callback_threshold=Slow.threshold)
    assert after.slow_callbacks >= 2
    assert any("Slow.function" in record.getMessage() for record in caplog.records)
    assert after.longest_callback == "time.sleep"
    assert (after - before).longest_callback == "time.sleep"  # of one moment, not a sum


# Handles


def test_handles_are_counted_by_type_while_they_are_open(run):
    def all_gone():
        assert not any(pyasync.stats().handles.values())

    with run():
        server = pyasync.tcp_server("127.0.0.1", 0, nothing)
        handler = pyasync.signal_handler(signal.SIGUSR1, nothing)
        events = [pyasync.delay(nothing, time=HOUR) for _ in range(3)]
        pyasync.make_event(nothing)
        events[0].remove()
        handles = pyasync.stats().handles
        assert {name: count for name, count in handles.items() if count} == {
            "tcp-server": 1,
            "signal": 1,
            "timer": 2,
        }
        server.close()
        handler.close()
        events[1].free()
        events[2].add()
        pyasync.delay(all_gone, time=0.001)


# Iterations and crossings


def test_iterations_are_counted(run_between):
    before, after = run_between(lambda: repeat(100, nothing))
    assert 100 <= after.iterations - before.iterations < 110


def test_events_are_counted(run_between):
    before, after = run_between(lambda: repeat(100, partial(pyasync.delay, nothing)))
    assert after.events - before.events == 100


def test_events_due_together_are_counted_one_by_one(run_between):
    def start():
        for _ in range(50):
            pyasync.delay(nothing)
        pyasync.delay(nothing, time=HOUR).remove()

    before, after = run_between(start)
    assert after.events - before.events == 50


@pytest.fixture
def a_thousand_operations(run_between):
    """Give a function that runs a loop with ten operations in each of 100 iterations."""

    def ten_operations(socket):
        for _ in range(5):
            socket.disable(read=True)
            socket.enable(read=True)

    def a_thousand_operations(**keywords):
        def start():
            def connected(socket):
                server.close()
                steps = iter([partial(ten_operations, socket)] * 100 + [socket.close])
                repeat(101, lambda: next(steps)())

            server = pyasync.tcp_server("127.0.0.1", 0, nothing)
            pyasync.tcp_connect(*server.address, nothing, connect_cb=connected)

        before, after = run_between(start, **keywords)
        return after - before

    return a_thousand_operations


def test_buffered_operations_cross_together_once_an_iteration(a_thousand_operations):
    interval = a_thousand_operations()
    # And a few times at the beginning and the end.
    assert interval.iterations <= interval.crossings < interval.iterations + 30


def test_unbuffered_operations_cross_one_by_one(a_thousand_operations):
    interval = a_thousand_operations(buffer_writes=False)
    assert 1000 <= interval.crossings - interval.iterations < 1030


def test_to_read_the_stats_is_no_crossing(run):
    with run():
        before = pyasync.stats().crossings
        assert pyasync.stats().crossings == before
