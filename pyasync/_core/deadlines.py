"""Timers: their deadlines, and firing them.

Timers that are due in the same millisecond of libuv's clock share a *bucket*, a list. To arm a
timer is to append it to its bucket. C knows the first deadline only, for the one ``uv_timer_t``
that drives all. To disarm a timer leaves a *stale entry* in the bucket: an entry is live only while
the timer's ``_bucket`` is the list that holds it. Stale entries are removed together when they
outnumber the live ones.

A signal handler of Python's may run between any two bytecodes, and so may the ``__del__`` of an
object that the garbage collector finds. Either may arm and disarm timers. So one change is made at
a time, and a change that comes in the middle of another waits in a queue until that one is over.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from heapq import heappop, heappush
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol

from pyasync._core.arguments import MAX_TIME, refuse_coroutine, time_error
from pyasync._core.clock import monotonic

if TYPE_CHECKING:
    from pyasync._core.engine import Engine

#: A deadline in milliseconds of libuv's clock, then timers in the order in which they were armed.
Bucket = list[Any]

#: This many stale entries may stay in any case, or a few timers would be compacted all the time.
SLACK = 1024

#: The most timers that fire in one iteration. The others wait for the next, because a million that
#: are due together must not keep I/O waiting.
FIRE_LIMIT = 16384


class Armable(Protocol):
    """The fields of a timer that `Deadlines` uses; the class is the API's."""

    #: The bucket in which the timer waits; None: it is not armed.
    _bucket: Bucket | None
    #: Called when the timer is due; None: it was stopped for good.
    _on_due: Callable[[], object] | None
    #: None, or a pair (anything, referenced). An armed timer that is not referenced lets the loop
    #: end.
    _options: tuple[Any, bool] | None


class Deadlines:
    """The armed timers of a loop, in buckets."""

    __slots__ = (
        "_changing",
        "_postponed",
        "armed",
        "buckets",
        "due",
        "dues",
        "firing",
        "left_over",
        "stale",
        "unreferenced",
    )

    def __init__(self) -> None:
        self.buckets: dict[int, Bucket] = {}
        #: A heap of the buckets' deadlines. Some of their buckets may be gone.
        self.dues: list[int] = []
        self.armed = 0
        #: How many armed timers are not referenced.
        self.unreferenced = 0
        #: The number of stale entries in ``buckets``.
        self.stale = 0
        #: Buckets that are due, and have yet to be fired.
        self.due: deque[Bucket] = deque()
        #: The bucket that is being fired, and the iterator over its entries that have not fired. It
        #: is kept here, because an exception may leave `fire`, and the next call goes on with it.
        self.firing: tuple[Bucket, Iterator[Any]] = ([], iter(()))
        #: Whether `fire` has stopped before the end of ``due``: by its limit, or by an exception.
        self.left_over = False
        #: Whether a change is being made.
        self._changing = False
        #: Changes that came in the middle of another: methods and their arguments.
        self._postponed: deque[tuple[Any, ...]] = deque()

    @property
    def referenced(self) -> bool:
        """Whether some armed timer keeps the loop running."""
        return self.armed > self.unreferenced

    def count(self) -> int:
        """Return the number of armed timers; from any thread."""
        return self.armed

    def first(self) -> int:
        """Return the first deadline in milliseconds; 0: timers are left over; -1: none is armed."""
        if self._postponed:
            self._catch_up()
        if self.left_over:
            return 0
        return self.dues[0] if self.armed and self.dues else -1

    def arm(self, timer: Armable, due: int) -> None:
        """Arm the timer, anew if it is armed, for ``due`` in milliseconds of libuv's clock."""
        if self._changing:
            self._postponed.append((self.arm, timer, due))
            return
        try:
            self._changing = True
            if timer._bucket is not None:
                self._remove(timer)
            bucket = self.buckets.get(due)
            if bucket is None:
                bucket = self.buckets[due] = [due]
                heappush(self.dues, due)
            bucket.append(timer)
            # After append: an exception in between leaves a stale entry, which `_repair` counts.
            timer._bucket = bucket
            self.armed += 1
            if timer._options is not None and not timer._options[1]:
                self.unreferenced += 1
            self._changing = False
        except BaseException:
            self._repair()
            raise
        if self._postponed:
            self._catch_up()

    def disarm(self, timer: Armable) -> None:
        """Disarm the timer; its entry becomes stale."""
        if self._changing:
            self._postponed.append((self.disarm, timer))
            return
        if timer._bucket is None:
            return
        try:
            self._changing = True
            self._remove(timer)
            self._changing = False
        except BaseException:
            self._repair()
            raise
        if self._postponed:
            self._catch_up()

    def _remove(self, timer: Armable) -> None:
        """Disarm an armed timer, in the middle of a change."""
        bucket: Any = timer._bucket
        timer._bucket = None
        self.armed -= 1
        if timer._options is not None and not timer._options[1]:
            self.unreferenced -= 1
        # Entries of buckets that are due are not counted, because firing soon passes them by, and
        # a compaction could not remove them: one would follow the other.
        if self.buckets.get(bucket[0]) is bucket:
            self.stale += 1
            if self.stale > self.armed + SLACK:
                self._compact()

    def _catch_up(self) -> None:
        """Make the changes that came in the middle of another, in their order."""
        while self._postponed and not self._changing:
            change, *arguments = self._postponed.popleft()
            change(*arguments)

    def set_options(self, timer: Armable, options: tuple[Any, bool] | None) -> None:
        """Set the timer's ``_options``, and correct the count of unreferenced timers."""
        if self._changing:
            self._postponed.append((self.set_options, timer, options))
            return
        try:
            self._changing = True
            before, timer._options = timer._options, options
            if timer._bucket is not None:
                self.unreferenced += _is_unreferenced(options) - _is_unreferenced(before)
            self._changing = False
        except BaseException:
            self._repair()
            raise
        if self._postponed:
            self._catch_up()

    def _compact(self) -> None:
        """Remove all stale entries from buckets that are not due yet.

        Called only when stale entries outnumber live ones, so the cost is amortized O(1) per
        cancellation.
        """
        buckets = {}
        for due, bucket in self.buckets.items():
            live = _live(bucket)
            self.stale -= len(bucket) - 1 - len(live)
            # In place, because the timers refer to this list; and by one bytecode, because an
            # exception between two would lose timers.
            bucket[1:] = live
            if live:
                buckets[due] = bucket
        dues = sorted(buckets)
        self.buckets, self.dues = buckets, dues

    def _repair(self) -> None:
        """Count anew from the entries, after an exception has cut a change short."""
        self._changing = True  # the exception may have come before it was set
        for bucket in self.due:  # _collect was cut off between its two steps
            if self.buckets.get(bucket[0]) is bucket:
                del self.buckets[bucket[0]]
        self.dues = sorted(self.buckets)
        live = [timer for bucket in self.buckets.values() for timer in _live(bucket)]
        self.stale = sum(len(bucket) - 1 for bucket in self.buckets.values()) - len(live)
        for bucket in [self.firing[0], *self.due]:
            live += _live(bucket)
        self.armed = len(live)
        self.unreferenced = sum(_is_unreferenced(timer._options) for timer in live)
        self._changing = False

    def timers(self) -> Iterator[Any]:
        """Yield the armed timers."""
        for bucket in [self.firing[0], *self.due, *self.buckets.values()]:
            yield from _live(bucket)

    # Firing

    def fire(self, now: int, engine: Engine) -> None:
        """Fire the timers that are due by ``now``, in milliseconds, `FIRE_LIMIT` at most.

        An exception of a callback goes to ``engine.on_error``, and the other timers follow. If that
        raises, or the engine stops, the next call goes on with them.
        """
        self.left_over = True  # until the end is reached: an exception may leave this before
        self._collect(now)
        left = FIRE_LIMIT
        clock = perf_counter
        last, limit = clock(), engine.long_callback_limit
        timer: Any = None
        callback: Any = None
        try:
            while left and not engine.stopping:
                try:
                    bucket, rest = self.firing
                    for timer in rest:
                        if timer._bucket is not bucket:  # stale: disarmed, or armed again
                            continue
                        self._changing = True
                        timer._bucket = None
                        self.armed -= 1
                        if timer._options is not None and not timer._options[1]:
                            self.unreferenced -= 1
                        self._changing = False
                        if self._postponed:
                            self._catch_up()
                        left -= 1
                        callback = timer._on_due
                        # None: a postponed change may have stopped it.
                        if callback is not None and (result := callback()) is not None:
                            refuse_coroutine("callback", callback, result)
                            result = None  # it may hold resources
                        time = clock()
                        if time - last > limit:
                            limit = engine.note_long_callback(time - last, callback)
                            time = clock()
                        last = time
                        if engine.stopping or not left:
                            break
                    else:
                        if not self._take():
                            self.left_over = False
                            break
                except Exception as error:
                    self._put_back(timer)
                    took = clock() - last
                    if took > limit:
                        engine.note_long_callback(took, callback)
                    engine.on_error(error, timer)
                    last, limit = clock(), engine.long_callback_limit
        finally:
            self._put_back(timer)
            engine.counters.events += FIRE_LIMIT - left - 1  # C has counted one

    def _put_back(self, timer: Any) -> None:
        """After an exception: keep a timer that was taken for firing, and is still armed."""
        if self._changing:
            self._repair()
        bucket, rest = self.firing
        if timer is not None and timer._bucket is bucket:
            self.firing = (bucket, iter([timer, *rest]))

    def _collect(self, now: int) -> None:
        """Move the due buckets to ``due``.

        Before any callback runs: timers that callbacks arm wait for the next iteration, or a timer
        that arms itself again with no delay would keep I/O waiting.
        """
        try:
            self._changing = True
            while self.dues and self.dues[0] <= now:
                bucket = self.buckets.get(self.dues[0])
                if bucket is not None:
                    if self.stale:
                        live = _live(bucket)
                        self.stale -= len(bucket) - 1 - len(live)
                        bucket[1:] = live
                    # Appended before it is removed: an exception in between must not lose it.
                    # `_repair` finds a bucket that is in both.
                    self.due.append(bucket)
                    del self.buckets[self.dues[0]]
                heappop(self.dues)
            self._changing = False
        except BaseException:
            self._repair()
            raise

    def _take(self) -> bool:
        """Make the next due bucket the one that is being fired; return whether there was one."""
        if self.due and self.due[0] is self.firing[0]:
            self.due.popleft()  # an exception came before the last line of this method
        if not self.due:
            # Dropped, because the list keeps its timers, and so their callbacks, alive.
            self.firing = ([], iter(()))
            return False
        bucket = self.due[0]
        rest = iter(bucket)
        next(rest)
        # Stored before the bucket leaves ``due``, and at once: an exception in between must not
        # lose it.
        self.firing = (bucket, rest)
        self.due.popleft()
        return True


def _is_unreferenced(options: tuple[Any, bool] | None) -> bool:
    return options is not None and not options[1]


def _live(bucket: Bucket) -> list[Any]:
    """Return a bucket's live entries.

    A timer that was disarmed and armed again for the same millisecond is in it twice: the last
    entry counts, because it has the place in the order.
    """
    # By way of a copy: CPython up to 3.11 may run a __del__ when it makes the list of a slice, and
    # reads behind the end of a list that has shrunk meanwhile. It makes a copy's list first.
    live = [timer for timer in [*bucket][1:] if timer._bucket is bucket]
    # By identity, because two timers of an API may be equal.
    return [*{id(timer): timer for timer in reversed(live)}.values()][::-1]


class Timer:
    """A callback that can be armed to run once, after a time, any number of times."""

    # Only four fields, because programs hold very many of these. _options is (event_cb,
    # referenced), or None in place of (None, True), which almost all timers have.
    __slots__ = ("_bucket", "_loop", "_on_due", "_options")

    def __init__(self, loop: Engine, callback: Callable[[], object], event_cb: Any = None) -> None:
        """``event_cb`` is for the engine's `on_error`, which gets the timer as the owner."""
        self._loop = loop
        self._on_due: Callable[[], object] | None = callback
        self._bucket: Bucket | None = None
        self._options: tuple[Any, bool] | None = None if event_cb is None else (event_cb, True)

    @property
    def _event_cb(self) -> Any:
        return None if self._options is None else self._options[0]

    def start(self, seconds: float | None = None) -> None:
        """Arm the timer for ``seconds`` from now, or anew; None: as soon as possible."""
        self._loop.deadlines.arm(self, 0 if seconds is None else due_in(seconds))

    def stop(self) -> None:
        """Disarm the timer for good. Stopping twice does nothing.

        After the loop's end any thread may call it, and there is nothing to disarm.
        """
        if self._loop.may_change():
            self._loop.deadlines.disarm(self)
        self._on_due = None


def background_timer(loop: Engine, callback: Callable[[], object], seconds: float) -> Timer:
    """Return an armed timer that does not keep the loop running, because its handle does."""
    timer = Timer(loop, callback)
    timer._options = (None, False)
    timer.start(seconds)
    return timer


def due_in(seconds: float) -> int:
    """Return the time in ``seconds`` from now, in milliseconds of libuv's clock, rounded up.

    It is computed from the true time, because uv_now() was read some time ago: from that, a timer
    would fire early. See `pyasync._core.clock`.
    """
    try:
        if 0 <= seconds <= MAX_TIME:
            return int((monotonic() + seconds) * 1000) + 1
    except TypeError:
        pass
    raise time_error("time", seconds)
