"""What `call_soon` and `call_later` return, and the timers of a loop.

These are asyncio's classes without the fields that only debugging needs. In debug mode the loop
makes asyncio's own.
"""

from __future__ import annotations

from asyncio import events
from collections.abc import Callable
from operator import attrgetter
from typing import Any

from pyasync._core.clock import monotonic
from pyasync._core.deadlines import Bucket, Deadlines
from pyasync._core.engine import Engine

#: A deadline in milliseconds for times beyond it: some 30,000 years, which fits into C's int64_t.
FOREVER = 10**15


class _NotDebugging:
    """What `repr` asks of a handle's loop."""

    @staticmethod
    def get_debug() -> bool:
        return False


class Handle(events.Handle):
    """A call that is to be made; cancelled if ``_callback`` is None."""

    __slots__ = ()

    # In place of the fields of asyncio's: nobody sets them here.
    _source_traceback = None
    _repr = None
    _loop = _NotDebugging

    def __init__(self, callback: Any, args: Any, context: Any) -> None:
        self._callback = callback
        self._args = args
        self._context = context

    @property
    def _cancelled(self) -> bool:
        return self._callback is None

    def cancel(self) -> None:
        self._callback = None
        self._args = None

    def cancelled(self) -> bool:
        return self._callback is None

    def _run(self) -> None:
        if self._callback is not None:
            self._context.run(self._callback, *self._args)


class _Armable:
    """What makes a handle an entry of `Deadlines`: see `pyasync._core.deadlines.Armable`."""

    __slots__ = ()

    _options: Any = None  # it keeps the loop running
    _bucket: Bucket | None
    _deadlines: Any

    def _join_ready(self) -> None:
        self._deadlines.fired.append(self)

    _on_due: Any = _join_ready


class TimerHandle(_Armable, events.TimerHandle):
    """A call that is to be made at a time."""

    __slots__ = ("_bucket", "_deadlines")

    _source_traceback = None
    _repr = None
    _loop = _NotDebugging
    _scheduled = False

    def __init__(
        self, when: float, callback: Any, args: Any, context: Any, deadlines: HandleDeadlines
    ) -> None:
        self._when = when
        self._callback = callback
        self._args = args
        self._context = context
        self._deadlines = deadlines
        self._bucket = None

    _cancelled = Handle._cancelled
    cancelled = Handle.cancelled
    _run = Handle._run

    def cancel(self) -> None:
        self._callback = None
        self._args = None
        if self._bucket is not None:
            self._deadlines.disarm(self)


class DebugTimerHandle(_Armable, events.TimerHandle):
    """A `TimerHandle` for debug mode: it knows where it was made."""

    __slots__ = ("_bucket", "_deadlines")

    def __init__(
        self,
        when: float,
        callback: Any,
        args: Any,
        loop: Any,
        context: Any,
        deadlines: HandleDeadlines,
    ) -> None:
        self._bucket = None
        self._deadlines = deadlines
        super().__init__(when, callback, args, loop, context)
        if self._source_traceback:
            del self._source_traceback[-1]

    def cancel(self) -> None:
        super().cancel()
        if self._bucket is not None:
            self._deadlines.disarm(self)


class HandleDeadlines(Deadlines):
    """The timers of a loop: those of the callback API fire, and handles join the ready queue."""

    __slots__ = ("_ready", "fired")

    def __init__(self, ready: Any) -> None:
        super().__init__()
        #: The loop's queue of ready handles.
        self._ready = ready
        #: Handles that are due in this iteration.
        self.fired: list[Any] = []

    def fire(self, now: int, engine: Engine) -> None:
        try:
            super().fire(now, engine)
        finally:
            fired, self.fired = self.fired, []
            # Within a millisecond the core fires in the order in which timers were armed.
            fired.sort(key=_when)
            # To the front: in asyncio too a timer that is due runs before the handles that are
            # made ready in its iteration. The handles from before the poll have run already.
            self._ready.extendleft(reversed(fired))


_when: Callable[[Any], float] = attrgetter("_when")


def milliseconds(when: float) -> int:
    """Return a time of `monotonic` in milliseconds, rounded up, for `Deadlines.arm`.

    0, which is always due, for a time that has come: rounded up it would be a millisecond late. As
    in asyncio NaN is due at once, too.
    """
    if not when > monotonic():
        return 0
    return int(when * 1000) + 1 if when < FOREVER / 1000 else FOREVER
