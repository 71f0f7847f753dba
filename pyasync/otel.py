"""Metrics of event loops for OpenTelemetry: ``pip install 'pyasync[otel]'``.

>>> import pyasync, pyasync.otel
>>> with pyasync.event_loop() as loop:
...     pyasync.otel.instrument(loop)

Only ``opentelemetry-api`` is needed: the program chooses an SDK, and where the metrics go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

from opentelemetry import metrics
from opentelemetry.metrics import Observation

import pyasync
from pyasync.counters import Stats
from pyasync.loop import Loop

__all__ = ["instrument"]

#: A callback that takes longer, in seconds, is in the histogram.
SLOW = 0.01
#: Upper limits of the histogram's buckets, in seconds.
BUCKETS = [0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10]

STATE = "pyasync.eventloop.state"
DIRECTION = "network.io.direction"
TRANSPORT = "network.transport"
ROLE = "pyasync.connection.role"
POOL = "pyasync.pool.name"

#: Values of one loop, each with its attributes.
Values = Iterable[tuple[float, dict[str, str]]]


def instrument(loop: Any, meter_provider: Any = None) -> None:
    """Report a loop's metrics to OpenTelemetry.

    ``loop`` is what `event_loop` and `current_loop` give, or an asyncio loop of `pyasync.aio`.
    ``meter_provider`` is a ``MeterProvider``; None: the global one. Instrumenting a loop twice does
    nothing more. Raises `TypeError` for any other loop.

    The counters run in any case. They are read when a reader of the SDK collects, in its thread.
    Only callbacks of more than 10 ms are recorded one by one. After the loop's end its last values
    are reported as long as something refers to the loop.
    """
    engine = getattr(loop, "_engine", loop)  # an asyncio loop has the pyasync loop below it
    if not isinstance(engine, Loop):
        raise TypeError(f"loop must be a loop of pyasync or pyasync.aio, not {loop!r}")
    provider = metrics.get_meter_provider() if meter_provider is None else meter_provider
    with _lock:
        if provider not in _instruments:
            _instruments[provider] = Instruments(provider)
        _instruments[provider].add(engine)


class Observed:
    """A loop that is instrumented."""

    def __init__(self, number: int, loop: Loop) -> None:
        self.attributes = {"pyasync.eventloop.id": str(number)}
        #: What was there when the gauges of an interval were collected last, by gauge.
        self.before = {gauge: loop.stats() for gauge in (_utilization, _iteration_duration)}


class Instruments:
    """The instruments of a meter provider, for all its loops."""

    def __init__(self, provider: Any) -> None:
        self.loops: WeakKeyDictionary[Loop, Observed] = WeakKeyDictionary()
        self.count = 0
        meter = metrics.get_meter("pyasync", pyasync.__version__, provider)

        def add(create: Any, name: str, unit: str, description: str, read: Any) -> None:
            callbacks = [lambda options: self.observe(read)]
            create(f"pyasync.{name}", callbacks=callbacks, unit=unit, description=description)

        gauge, counter = meter.create_observable_gauge, meter.create_observable_counter
        size = meter.create_observable_up_down_counter
        add(
            gauge, "eventloop.utilization", "1",
            "The share of the time since the last collection in which the loop was busy.",
            _utilization,
        )  # fmt: skip
        add(counter, "eventloop.time", "s", "Time that the loop was busy, and slept.", _time)
        add(counter, "eventloop.iterations", "{iteration}", "Iterations of the loop.", _iterations)
        add(
            gauge, "eventloop.iteration.duration", "s",
            "The mean time of an iteration since the last collection, without sleep.",
            _iteration_duration,
        )  # fmt: skip
        add(size, "connection.count", "{connection}", "Open connections.", _connections)
        add(counter, "network.io", "By", "Bytes read and written.", _bytes)
        add(counter, "accept.errors", "{error}", "Connections not accepted.", _accept_errors)
        add(size, "timer.count", "{timer}", "Pending timers.", _timers)
        add(size, "pool.request.count", "{request}", "Requests that wait or run.", _pools)
        self.slow_callbacks = meter.create_histogram(
            "pyasync.eventloop.slow_callback.duration",
            unit="s",
            description=f"The time of callbacks that took over {SLOW * 1000:g} ms.",
            explicit_bucket_boundaries_advisory=BUCKETS,
        )

    def add(self, loop: Loop) -> None:
        if loop not in self.loops:
            self.loops[loop] = Observed(self.count, loop)
            self.count += 1
            loop.watch_slow_callbacks(SLOW, self.record)

    def record(self, loop: Loop, seconds: float, name: str) -> None:
        attributes = {**self.loops[loop].attributes, "code.function.name": name}
        self.slow_callbacks.record(seconds, attributes)

    def observe(self, read: Callable[[Loop, Observed], Values]) -> Iterable[Observation]:
        """Read a metric of each loop, in the thread of a reader."""
        with _lock:
            loops = list(self.loops.items())
        for loop, observed in loops:
            for value, attributes in read(loop, observed):
                yield Observation(value, {**observed.attributes, **attributes})


_lock = Lock()
_instruments: WeakKeyDictionary[Any, Instruments] = WeakKeyDictionary()


# What each metric is


def _since(loop: Loop, observed: Observed, gauge: Any) -> Stats:
    """Return the counters of the time since the gauge was collected last."""
    stats = loop.stats()
    before, observed.before[gauge] = observed.before[gauge], stats
    return stats - before


def _utilization(loop: Loop, observed: Observed) -> Values:
    yield _since(loop, observed, _utilization).utilization, {}


def _iteration_duration(loop: Loop, observed: Observed) -> Values:
    interval = _since(loop, observed, _iteration_duration)
    yield interval.busy_time / max(1, interval.iterations), {}


def _time(loop: Loop, observed: Observed) -> Values:
    stats = loop.stats()
    yield stats.busy_time, {STATE: "active"}
    yield stats.idle_time, {STATE: "idle"}


def _iterations(loop: Loop, observed: Observed) -> Values:
    yield loop.stats().iterations, {}


def _connections(loop: Loop, observed: Observed) -> Values:
    stats = loop.stats()
    yield stats.incoming_tcp_connections, {TRANSPORT: "tcp", ROLE: "server"}
    yield stats.outgoing_tcp_connections, {TRANSPORT: "tcp", ROLE: "client"}
    yield stats.incoming_pipe_connections, {TRANSPORT: "unix", ROLE: "server"}
    yield stats.outgoing_pipe_connections, {TRANSPORT: "unix", ROLE: "client"}


def _bytes(loop: Loop, observed: Observed) -> Values:
    stats = loop.stats()
    yield stats.bytes_read, {DIRECTION: "receive"}
    yield stats.bytes_written, {DIRECTION: "transmit"}


def _accept_errors(loop: Loop, observed: Observed) -> Values:
    yield loop.stats().accept_errors, {}


def _timers(loop: Loop, observed: Observed) -> Values:
    yield loop.deadlines.count(), {}


def _pools(loop: Loop, observed: Observed) -> Values:
    yield len(loop.requests), {POOL: "libuv"}
    yield len(loop.python_handles["work"]), {POOL: "work"}
