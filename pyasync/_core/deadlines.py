"""Timers: when they are due, and firing them.

Timers that are due in the same millisecond of libuv's clock share a bucket: to arm one is to append
it to a list, and C knows of the first deadline only, for the one ``uv_timer_t`` that drives all.
To disarm one leaves a stale entry: an entry counts only while the timer's ``_bucket`` is the list
that it stands in. When stale entries outnumber the others, they are removed together.

A signal handler of Python's, and the ``__del__`` of an object that the garbage collector finds, may
run between any two steps of a change, and may arm and disarm timers themselves. So one change is
made at a time: those that come in the middle of another wait in a queue until it is over.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from heapq import heappop, heappush
from threading import get_ident
from time import monotonic, perf_counter
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from pyasync._core.engine import Engine

#: A deadline in milliseconds, and behind it timers, in the order in which they were armed.
Bucket = list[Any]

#: The longest time, in seconds: some 300 years.
MAX_TIME = 1e10

#: So many stale entries may stay where they are in any case.
SLACK = 1024

#: Timers that are called in one iteration; the others wait for the next, so that a million due
#: together do not keep I/O waiting.
FIRE_LIMIT = 16384


class Armable(Protocol):
    """What `Deadlines` uses of a timer, of whatever class."""

    #: The bucket in which the timer waits while it is armed.
    _bucket: Bucket | None
    #: What is called when it is due; None if it never will be again.
    _callback: Callable[[], object] | None
    #: None, or a pair whose second is False for a timer that lets the loop end while it is armed.
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
        "rest",
        "stale",
        "unreferenced",
    )

    def __init__(self) -> None:
        self.buckets: dict[int, Bucket] = {}
        #: A heap of the buckets' deadlines, and of some whose bucket is gone.
        self.dues: list[int] = []
        self.armed = 0
        #: How many of the armed timers do not keep the loop running.
        self.unreferenced = 0
        #: Entries of timers that were disarmed, or armed again.
        self.stale = 0
        #: Buckets that are due, and are to be fired.
        self.due: deque[Bucket] = deque()
        #: The bucket that is being fired, what is still to come of it, and whether firing has
        #: stopped before its end.
        self.firing: Bucket = []
        self.rest: Iterator[Any] = iter(())
        self.left_over = False
        #: Whether a change is being made, and the changes that came in the middle of it: methods
        #: and their arguments.
        self._changing = False
        self._postponed: deque[tuple[Any, ...]] = deque()

    @property
    def referenced(self) -> bool:
        """Whether an armed timer keeps the loop running."""
        return self.armed > self.unreferenced

    def first(self) -> int:
        """Return when the loop must look at the timers again, in milliseconds; -1: never."""
        if self._postponed:
            self._catch_up()
        if self.left_over:
            return 0
        return self.dues[0] if self.armed and self.dues else -1

    def arm(self, timer: Armable, due: int) -> None:
        """Let the timer fire when it is ``due``, in milliseconds, and not when it was before."""
        if self._changing:
            self._postponed.append((self.arm, timer, due))
            return
        if timer._bucket is not None:
            self.disarm(timer)
        try:
            self._changing = True
            bucket = self.buckets.get(due)
            if bucket is None:
                bucket = self.buckets[due] = [due]
                heappush(self.dues, due)
            bucket.append(timer)
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
        """Let the timer not fire."""
        if self._changing:
            self._postponed.append((self.disarm, timer))
            return
        if timer._bucket is None:
            return
        try:
            self._changing = True
            timer._bucket = None
            self.armed -= 1
            self.stale += 1
            if timer._options is not None and not timer._options[1]:
                self.unreferenced -= 1
            if self.stale > self.armed + SLACK:
                self._compact()
            self._changing = False
        except BaseException:
            self._repair()
            raise
        if self._postponed:
            self._catch_up()

    def _catch_up(self) -> None:
        """Make the changes that came in the middle of another."""
        while self._postponed and not self._changing:
            change, *arguments = self._postponed.popleft()
            change(*arguments)

    def set_options(self, timer: Armable, options: tuple[Any, bool] | None) -> None:
        """Set the timer's ``_options``, and count it as referenced or not if it is armed."""
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
        """Remove all stale entries that wait for their time.

        Called only when stale entries outnumber live ones, so the cost is amortized O(1) per
        cancellation.
        """
        buckets = {}
        for due, bucket in self.buckets.items():
            live = _live(bucket)
            self.stale -= len(bucket) - 1 - len(live)
            # One step of the interpreter, which leaves the list as the timers know it.
            bucket[1:] = live
            if live:
                buckets[due] = bucket
        dues = sorted(buckets)
        self.buckets, self.dues = buckets, dues

    def _repair(self) -> None:
        """Count anew, because an exception of a signal handler has cut a change short."""
        for bucket in self.due:
            if self.buckets.get(bucket[0]) is bucket:
                del self.buckets[bucket[0]]
        self.dues = sorted(self.buckets)
        waiting = [*self.due, *self.buckets.values()]
        live = [timer for bucket in waiting for timer in _live(bucket)]
        self.stale = sum(len(bucket) - 1 for bucket in waiting) - len(live)
        live += _live(self.firing)
        self.armed = len(live)
        self.unreferenced = sum(_is_unreferenced(timer._options) for timer in live)
        self._changing = False

    def timers(self) -> Iterator[Any]:
        """Yield the armed timers."""
        for bucket in [self.firing, *self.due, *self.buckets.values()]:
            yield from _live(bucket)

    # Firing

    def fire(self, now: int, engine: Engine) -> None:
        """Call the timers that are due by ``now``, in milliseconds; when they are many, a part.

        What a callback raises goes to ``engine.on_error``, and the others follow. When that raises,
        or the engine is told to stop, the next call goes on with them.
        """
        self.left_over = True
        self._collect(now)
        left = FIRE_LIMIT
        clock = perf_counter
        last, longest = clock(), engine.max_callback_time
        timer: Any = None
        try:
            while left and not engine.stopping:
                try:
                    bucket = self.firing
                    for timer in self.rest:
                        if timer._bucket is not bucket:
                            self.stale -= 1
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
                        callback = timer._callback
                        if callback is not None:
                            callback()
                        time = clock()
                        if time - last > longest:
                            longest = engine.max_callback_time = time - last
                        last = time
                        if engine.stopping or not left:
                            break
                    else:
                        if not self._take():
                            self.left_over = False
                            break
                except Exception as error:
                    if self._changing:
                        self._repair()
                    engine.max_callback_time = max(engine.max_callback_time, clock() - last)
                    engine.on_error(error, timer)
                    last, longest = clock(), engine.max_callback_time
        finally:
            if self._changing:
                self._repair()
            engine.counters.events += FIRE_LIMIT - left - 1  # C has counted one

    def _collect(self, now: int) -> None:
        """Let the buckets that are due be fired: not those that the callbacks will make."""
        try:
            self._changing = True
            while self.dues and self.dues[0] <= now:
                bucket = self.buckets.get(self.dues[0])
                if bucket is not None:
                    self.due.append(bucket)  # before it is removed: an exception must not lose it
                    del self.buckets[self.dues[0]]
                heappop(self.dues)
            self._changing = False
        except BaseException:
            self._repair()
            raise

    def _take(self) -> bool:
        """Let the next bucket that was collected be ``firing``. Returns whether there was one."""
        if self.due and self.due[0] is self.firing:
            self.due.popleft()  # an exception has come before this could be done below
        if not self.due:
            self.firing, self.rest = [], iter(())  # its callbacks are not to outlive their calls
            return False
        bucket = self.due[0]
        if self.stale:
            live = _live(bucket)
            self.stale -= len(bucket) - 1 - len(live)
            rest = iter(live)
        else:
            rest = iter(bucket)
            next(rest)
        self.firing, self.rest = bucket, rest
        self.due.popleft()
        return True


def _is_unreferenced(options: tuple[Any, bool] | None) -> bool:
    return options is not None and not options[1]


def _live(bucket: Bucket) -> list[Any]:
    """Return a bucket's entries without the stale ones: of a timer armed again the last counts."""
    live = [timer for timer in bucket[1:] if timer._bucket is bucket]
    return list(dict.fromkeys(reversed(live)))[::-1]


class Timer:
    """A callback that can be armed to run once, after a time, any number of times."""

    # Four fields, because programs hold very many of these. _options is a pair of event_cb and
    # whether the timer is referenced, where these are not None and True.
    __slots__ = ("_bucket", "_callback", "_loop", "_options")

    def __init__(self, loop: Engine, callback: Callable[[], object], event_cb: Any = None) -> None:
        """``event_cb`` is for the engine's `on_error`, which is given the timer."""
        self._loop = loop
        self._callback: Callable[[], object] | None = callback
        self._bucket: Bucket | None = None
        self._options: tuple[Any, bool] | None = None if event_cb is None else (event_cb, True)

    @property
    def _event_cb(self) -> Any:
        return None if self._options is None else self._options[0]

    def start(self, seconds: float | None = None) -> None:
        """Arm the timer, anew if it is armed; None: to run as soon as possible."""
        self._loop.deadlines.arm(self, 0 if seconds is None else due_in(seconds))

    def stop(self) -> None:
        """Disarm the timer for good. Stopping twice does nothing; in any thread after the end."""
        if self._loop.thread == get_ident():
            self._loop.deadlines.disarm(self)
        self._callback = None


def background_timer(loop: Engine, callback: Callable[[], object], seconds: float) -> Timer:
    """Return an armed timer for something that keeps the loop running by itself."""
    timer = Timer(loop, callback)
    timer._options = (None, False)
    timer.start(seconds)
    return timer


def due_in(seconds: float) -> int:
    """Return the time in ``seconds`` from now, in milliseconds of libuv's clock, rounded up."""
    if not 0 <= seconds <= MAX_TIME:
        raise ValueError(f"a time must be from 0 to {MAX_TIME:g} seconds, not {seconds!r}")
    return int((monotonic() + seconds) * 1000) + 1
