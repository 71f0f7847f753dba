"""Timers: a delay, an interval, and the event that both are made of.

A pending event is an entry in a list, and no libuv handle: see `pyasync._core.deadlines`. Times are
rounded up to libuv's milliseconds, because no event may fire early.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import Context
from threading import get_ident
from typing import Any

from pyasync._core.arguments import (
    MAX_TIME,
    optional_callable,
    require_callable,
    require_time,
    time_error,
)
from pyasync._core.clock import monotonic
from pyasync._core.contexts import in_context, optional_context
from pyasync._core.deadlines import Bucket, due_in
from pyasync.errors import EventFreed
from pyasync.loop import EventCallback, Loop, current, get_loop

Callback = Callable[[], object]

#: The shortest `interval`, in seconds. It runs once a millisecond at most, as libuv's timers do.
MIN_INTERVAL = 1e-6


class Event:
    """A callback that can be armed to run once, after a time, any number of times.

    Events due at the same time run in the order in which they were armed; none runs early.
    """

    # Only four fields, because programs hold very many of these: see Armable. _options is
    # (event_cb, referenced), or None in place of (None, True), which almost all events have.
    __slots__ = ("_bucket", "_loop", "_on_due", "_options")

    def __init__(
        self, loop: Loop, callback: Callback, event_cb: EventCallback | None = None
    ) -> None:
        require_callable("callback", callback)
        optional_callable("event_cb", event_cb)
        self._loop = loop
        self._on_due: Callback | None = callback
        self._bucket: Bucket | None = None
        self._options: tuple[EventCallback | None, bool] | None = None
        if event_cb is not None:
            self._options = (event_cb, True)

    def add(self, time: float | None = None, *, timeout: float | None = None) -> None:
        """Arm the event to run its callback after ``time`` seconds; None: as soon as possible.

        ``timeout`` is an older name of ``time``. An event that is armed already is armed anew.
        Raises `EventFreed`, `EventLoopNotRunning` when its loop has ended, and `ValueError` for a
        time that is negative or NaN.
        """
        if timeout is not None:
            time = _one_of(time, "timeout", timeout)
        self._loop.check_thread()
        if self._on_due is None:
            raise EventFreed("the event has been freed")
        self._loop.deadlines.arm(self, 0 if time is None else due_in(time))

    def remove(self) -> None:
        """Disarm the event; it can be added again. Raises `EventFreed`."""
        self._loop.check_thread()
        if self._on_due is None:
            raise EventFreed("the event has been freed")
        self._loop.deadlines.disarm(self)

    def free(self) -> None:
        """Disarm the event for good. Freeing twice does nothing."""
        loop = self._loop
        if loop.thread == get_ident() or loop.may_change():
            loop.deadlines.disarm(self)
        self._on_due = None

    close = free

    @property
    def freed(self) -> bool:
        """Whether the event has been freed."""
        return self._on_due is None

    @property
    def closed(self) -> bool:
        """Whether the event has been freed, or its loop has ended."""
        return self._on_due is None or self._loop.closed

    @property
    def remaining(self) -> float | None:
        """Seconds until the callback runs, at the earliest; None if the event is not armed."""
        self._loop.check_thread()
        bucket = self._bucket
        if bucket is None:
            return None
        due: int = bucket[0]
        return max(0.0, due / 1000 - monotonic())

    def ref(self) -> None:
        """Let the event keep the loop running while it is armed, as it does from the start."""
        self._reference(True)

    def unref(self) -> None:
        """Let the loop end although the event is armed."""
        self._reference(False)

    def _reference(self, referenced: bool) -> None:
        self._loop.check_thread()
        if self._on_due is None:
            raise EventFreed("the event has been freed")
        event_cb = self._event_cb
        options = None if event_cb is None and referenced else (event_cb, referenced)
        self._loop.deadlines.set_options(self, options)

    @property
    def _event_cb(self) -> EventCallback | None:
        return None if self._options is None else self._options[0]

    @property
    def has_ref(self) -> bool:
        """Whether the event keeps the loop running while it is armed."""
        if self._loop.thread is not None:
            self._loop.check_thread()
        return self._options is None or self._options[1]


_new_event = Event.__new__


class Interval:
    """A callback that runs every ``time`` seconds, until the interval is closed or called."""

    __slots__ = ("__weakref__", "_callback", "_due", "_event", "_time")

    def __init__(self, loop: Loop, callback: Callback, time: float, event_cb: Any) -> None:
        require_callable("callback", callback)
        require_time("time", time, MIN_INTERVAL)
        self._callback = callback
        self._time = time
        self._event = Event(loop, self._run, event_cb)
        self._event.add(time)
        self._due = monotonic() + time

    def _run(self) -> None:
        # Armed before the callback, because that may raise, or close the interval. Due times are
        # multiples from the start, so that nothing drifts; multiples that have passed are skipped.
        late = monotonic() - self._due
        self._due += self._time * (1 + max(0, late // self._time))
        self._event.add(max(0.0, self._due - monotonic()))
        self._callback()

    def __call__(self) -> None:
        """Cancel the interval."""
        self.close()

    def close(self) -> None:
        """Cancel the interval. Closing twice does nothing."""
        self._event.free()

    @property
    def closed(self) -> bool:
        """Whether the interval is cancelled, or its loop has ended."""
        return self._event.closed

    def ref(self) -> None:
        """Let the interval keep the loop running while it is open, as it does from the start."""
        self._event.ref()

    def unref(self) -> None:
        """Let the loop end although the interval is open."""
        self._event.unref()

    @property
    def has_ref(self) -> bool:
        """Whether the interval keeps the loop running."""
        return self._event.has_ref


def _event_in(
    loop: Loop, callback: Callback, event_cb: EventCallback | None, context: Context | None
) -> Event:
    optional_context(context)
    require_callable("callback", callback)
    optional_callable("event_cb", event_cb)
    return Event(loop, in_context(context, callback), in_context(context, event_cb))


def delay(
    callback: Callback,
    *,
    time: float | None = None,
    event_cb: EventCallback | None = None,
    context: Context | None = None,
) -> Event:
    """Run ``callback()`` once, ``time`` seconds from now; None: as soon as possible.

    With a ``context``, it and ``event_cb`` run in that `contextvars.Context`. An exception of the
    callback is handled as `start_event_loop` says. Raises `TypeError`, `ValueError` for a time that
    is negative or NaN, and `EventLoopNotRunning`.

    >>> import pyasync
    >>> with pyasync.event_loop():
    ...     _ = pyasync.delay(lambda: print("second"), time=0.02)
    ...     _ = pyasync.delay(lambda: print("first"), time=0.01)
    first
    second
    """
    # The same as get_loop() and due_in(time), without the calls: programs make very many delays.
    loop = current.loop or get_loop()
    # An async function is refused when the timer fires: to look for it here costs a tenth.
    if context is None and event_cb is None and callable(callback):
        event = _new_event(Event)  # without __init__, for the same reason
        event._loop = loop
        event._on_due = callback
        event._bucket = event._options = None
    else:
        event = _event_in(loop, callback, event_cb, context)
    try:
        if time is None:
            due = 0
        elif 0 <= time <= MAX_TIME:
            due = int((monotonic() + time) * 1000) + 1
        else:
            raise time_error("time", time)
    except TypeError:
        raise time_error("time", time) from None
    loop.deadlines.arm(event, due)
    return event


def with_delay(
    time: float | None = None, *, seconds: float | None = None, context: Context | None = None
) -> Callable[[Callback], Event]:
    """Run the decorated function ``time`` seconds from now; its name stands for the `Event`.

    ``seconds`` is an older name of ``time``. For ``context`` see `delay`.

    >>> import pyasync
    >>> with pyasync.event_loop():
    ...     @pyasync.with_delay(0.01)
    ...     def greet():
    ...         print("hello")
    hello
    """
    if seconds is not None:
        time = _one_of(time, "seconds", seconds)
    if time is not None:  # now, because ``@with_delay`` without a call would decorate nothing
        require_time("time", time)
    optional_context(context)
    return lambda callback: delay(callback, time=time, context=context)


def interval(
    callback: Callback,
    *,
    time: float,
    event_cb: EventCallback | None = None,
    context: Context | None = None,
) -> Interval:
    """Run ``callback()`` every ``time`` seconds, until the returned `Interval` is closed.

    The times are multiples of ``time`` from now: nothing drifts. When the loop falls behind, it
    runs the callback once, late, and skips the other times that it has missed. With a ``context``,
    it and ``event_cb`` run in that `contextvars.Context`. Raises `TypeError`, `ValueError` unless
    ``time`` is a microsecond or more, and `EventLoopNotRunning`.

    >>> import pyasync
    >>> with pyasync.event_loop():
    ...     ticks = []
    ...     def tick():
    ...         ticks.append(1)
    ...         if len(ticks) == 3:
    ...             ticker.close()
    ...     ticker = pyasync.interval(tick, time=0.01)
    >>> len(ticks)
    3
    """
    loop = get_loop()
    optional_context(context)
    if context is not None:
        require_callable("callback", callback)
        optional_callable("event_cb", event_cb)
    return Interval(loop, in_context(context, callback), time, in_context(context, event_cb))


def with_interval(
    time: float | None = None, *, seconds: float | None = None, context: Context | None = None
) -> Callable[[Callback], Interval]:
    """Run the decorated function every ``time`` seconds; its name stands for the `Interval`.

    ``seconds`` is an older name of ``time``. For ``context`` see `interval`.
    """
    if seconds is not None:
        time = _one_of(time, "seconds", seconds, MIN_INTERVAL)
    every = require_time("time", time, MIN_INTERVAL)
    optional_context(context)
    return lambda callback: interval(callback, time=every, context=context)


def _one_of(time: float | None, old_name: str, given: float, least: float = 0) -> float:
    """Return the time that was given by its older name, which the error for a wrong one has."""
    if time is not None:
        raise TypeError(f"{old_name} is an older name of time: only one of them can be given")
    return require_time(old_name, given, least)


def make_event(
    callback: Callback, *, event_cb: EventCallback | None = None, context: Context | None = None
) -> Event:
    """Return an `Event` that is not armed: see `Event.add`.

    With a ``context``, the callback and ``event_cb`` run in that `contextvars.Context`, whenever
    the event is due. Raises `TypeError` and `EventLoopNotRunning`.
    """
    return _event_in(get_loop(), callback, event_cb, context)
