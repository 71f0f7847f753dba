"""What `call_soon` and `call_later` return, and the timers of a loop.

These are asyncio's classes without the fields that only debugging needs. In debug mode the loop
makes asyncio's own.
"""

from __future__ import annotations

from asyncio import events
from collections.abc import Callable, Iterator
from heapq import heappush
from operator import attrgetter
from typing import Any

from pyasync._core.clock import monotonic
from pyasync._core.deadlines import FIRE_LIMIT, Bucket, Deadlines
from pyasync._core.engine import Engine

#: A deadline in milliseconds for times beyond it: some 30,000 years, which fits into C's int64_t.
FOREVER = 10**15

#: The longest bucket that is taken at once.
TAKE_MAX = 4096


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
    """The timers of a loop: those of the callback API fire, and handles join the ready queue.

    New handles are armed together before the next poll. So they share the cost of a change, and one
    that is cancelled by then, as most time limits of short operations are, costs hardly anything.
    """

    __slots__ = ("_ready", "_taken", "fired", "new")

    def __init__(self, ready: Any) -> None:
        super().__init__()
        #: The loop's queue of ready handles.
        self._ready = ready
        #: Handles that `first` is to arm, for a time to come. To add one is a call of `append`, so
        #: it may come in the middle of anything.
        self.new: list[TimerHandle] = []
        #: Handles that are due in this iteration.
        self.fired: list[Any] = []
        #: How many of them were taken together with their bucket.
        self._taken = 0

    def count(self) -> int:
        return self.armed + sum(map(_is_new, [*self.new]))

    def first(self) -> int:
        if self.new:
            self._arm_new()
        return super().first()

    def _arm_new(self) -> None:
        handles, count = [*self.new], 0
        try:
            self._changing = True
            for handle in handles:
                if handle._callback is None or handle._bucket is not None:
                    continue
                due = int(handle._when * 1000) + 1
                bucket = self.buckets.get(due)
                if bucket is None:
                    bucket = self.buckets[due] = [due]
                    heappush(self.dues, due)
                bucket.append(handle)
                handle._bucket = bucket  # after append, as in `arm`
                count += 1
            self.armed += count
            self._changing = False
        except BaseException:
            self._repair()
            raise  # those that are armed are not new any more
        del self.new[: len(handles)]

    def timers(self) -> Iterator[Any]:
        yield from super().timers()
        yield from (handle for handle in [*self.new] if _is_new(handle))

    def fire(self, now: int, engine: Engine) -> None:
        try:
            super().fire(now, engine)
        finally:
            engine.counters.events += self._taken
            self._taken = 0
            # Within a millisecond the core fires in the order in which timers were armed.
            fired = sorted(self.fired, key=_when, reverse=True)
            # To the front: in asyncio too a timer that is due runs before the handles that are
            # made ready in its iteration. The handles from before the poll have run already.
            self._ready.extendleft(fired)
            self.fired = []

    def _take(self) -> bool:
        # Most buckets have handles only, which need not be looked at one by one.
        while super()._take():
            if not self._take_handles():
                return True
        return False

    def _take_handles(self) -> bool:
        """Take all handles of the bucket that is being fired, unless it has other timers too."""
        bucket = self.firing[0]
        if len(bucket) > TAKE_MAX or self._taken > FIRE_LIMIT:
            return False  # too many at once: `fire` takes as many more as may fire
        handles: list[Any] = []
        try:
            self._changing = True
            _, *entries = bucket
            if all(type(timer) is TimerHandle for timer in entries):
                handles = [timer for timer in entries if timer._bucket is bucket]
                self.fired += handles
                for handle in handles:
                    handle._bucket = None
                self._taken += len(handles)
                self.armed -= len(handles)
                entries = []
            self._changing = False
        except BaseException:
            if handles and self.fired and self.fired[-1] is handles[-1]:
                for handle in handles:
                    handle._bucket = None
            self._repair()
            raise
        if self._postponed:
            self._catch_up()
        return not entries


def _is_new(handle: TimerHandle) -> bool:
    """Whether a handle of `HandleDeadlines.new` is to be armed still."""
    return handle._callback is not None and handle._bucket is None


_when: Callable[[Any], float] = attrgetter("_when")


def milliseconds(when: float) -> int:
    """Return a time of `monotonic` in milliseconds, rounded up, for `Deadlines.arm`.

    0, which is always due, for a time that has come: rounded up it would be a millisecond late. As
    in asyncio NaN is due at once, too.
    """
    if not when > monotonic():
        return 0
    return int(when * 1000) + 1 if when < FOREVER / 1000 else FOREVER
