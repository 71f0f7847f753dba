"""When the armed events of a loop are due.

Events that are due in the same millisecond of libuv's clock share a bucket: arming one is to append
it to a list, and C knows of the first deadline only, for the one timer that drives all. Disarming
leaves an event where it is: an entry counts only while the event's ``_bucket`` is the list that it
stands in. When too many do not count, they are all dropped at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from heapq import heappop, heappush
from typing import Any

#: A deadline in milliseconds, and behind it the events, in the order in which they were armed.
Bucket = list[Any]

#: So many entries of disarmed events may stay where they are in any case.
SLACK = 1024


class Deadlines:
    """The armed events of a loop, in buckets."""

    __slots__ = (
        "armed",
        "buckets",
        "dead",
        "due",
        "dues",
        "firing",
        "left_over",
        "rest",
        "unreferenced",
    )

    def __init__(self) -> None:
        self.buckets: dict[int, Bucket] = {}
        #: A heap of the buckets' deadlines, and of some whose bucket is gone.
        self.dues: list[int] = []
        self.armed = 0
        #: How many of the armed events do not keep the loop running.
        self.unreferenced = 0
        #: Entries that do not count.
        self.dead = 0
        #: Buckets that are due, and are to be walked.
        self.due: deque[Bucket] = deque()
        #: The bucket that is being walked, what is still to come of it, and whether the walk was
        #: broken off.
        self.firing: Bucket = []
        self.rest: Iterator[Any] = iter(())
        self.left_over = False

    @property
    def referenced(self) -> bool:
        """Whether an armed event keeps the loop running."""
        return self.armed > self.unreferenced

    def first(self) -> int:
        """Return when the loop must look at the events again; -1: never."""
        if self.left_over:
            return 0
        return self.dues[0] if self.armed and self.dues else -1

    def open(self, due: int, event: Any) -> Bucket:
        """Make the bucket of a deadline, with its first event."""
        heappush(self.dues, due)
        bucket = self.buckets[due] = [due, event]
        return bucket

    def collect(self, now: int) -> None:
        """Let the buckets that are due be walked: not those that the walk itself will make.

        In an order in which a signal's handler may raise at any point, and no event is lost.
        """
        dues, buckets = self.dues, self.buckets
        while dues and dues[0] <= now:
            bucket = buckets.get(dues[0])
            if bucket is not None:
                self.due.append(bucket)
                del buckets[dues[0]]
            heappop(dues)

    def take(self) -> bool:
        """Let the next bucket that was collected be ``firing``. Returns whether there was one."""
        if not self.due:
            self.firing, self.rest = [], iter(())  # its callbacks are not to outlive their calls
            return False
        bucket = self.due[0]
        if self.dead:
            self.drop_dead(bucket)
        rest = iter(bucket)
        next(rest)
        self.firing, self.rest = bucket, rest
        self.due.popleft()
        return True

    def drop_dead(self, bucket: Bucket) -> None:
        """Drop entries that do not count, and all but the last of an event that was armed again."""
        size = len(bucket)  # a signal's handler may arm more
        alive = [event for event in bucket[1:size] if event._bucket is bucket]
        bucket[1:size] = reversed(dict.fromkeys(reversed(alive)))
        self.dead -= size - len(bucket)

    def compact(self) -> None:
        """Drop all entries that do not count: so many that their disarming bears the cost."""
        for due, bucket in list(self.buckets.items()):
            self.drop_dead(bucket)
            if len(bucket) == 1:
                del self.buckets[due]
        self.dead = 0
        self.dues[:] = self.buckets
        self.dues.sort()

    def events(self) -> Iterator[Any]:
        """Yield the armed events."""
        for bucket in [self.firing, *self.due, *self.buckets.values()]:
            for event in dict.fromkeys(bucket[1:]):
                if event._bucket is bucket:
                    yield event
