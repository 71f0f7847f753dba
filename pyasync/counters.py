"""The counters that every loop keeps, at all times, and their snapshots."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

#: Fields of `Stats` that are values of one moment, and not sums: a difference keeps the later one.
_GAUGES = {
    "incoming_tcp_connections",
    "outgoing_tcp_connections",
    "incoming_pipe_connections",
    "outgoing_pipe_connections",
    "open_dns_queries",
    "handles",
    "longest_callback",
    "max_callback_time",
}


@dataclass(frozen=True)
class Stats:
    """A snapshot of a loop's counters. ``later - earlier`` is the `Stats` of the time between.

    >>> import pyasync
    >>> with pyasync.event_loop():
    ...     before = pyasync.stats()
    ...     print((pyasync.stats() - before).accepted)
    0
    """

    #: Open TCP connections that this loop's servers have accepted. A connection counts until its
    #: descriptor is closed, so also while a close flushes or lingers.
    incoming_tcp_connections: int = 0
    #: Open TCP connections that this loop's clients have made.
    outgoing_tcp_connections: int = 0
    #: Open pipes that this loop's servers have accepted.
    incoming_pipe_connections: int = 0
    #: Open pipes that this loop's clients have made.
    outgoing_pipe_connections: int = 0
    #: Lookups of names and addresses that are neither answered nor closed.
    open_dns_queries: int = 0
    #: Open handles by type. Of ``"timer"``: pending timers. Of ``"work"``: functions that wait for
    #: a thread or run in one.
    handles: Mapping[str, int] | None = None
    #: Connections that servers have accepted, TCP and pipes together.
    accepted: int = 0
    #: Connections that clients have made, TCP and pipes together.
    connected: int = 0
    #: Connections that were closed, of servers and clients, TCP and pipes together.
    closed: int = 0
    #: Failures of accept(2), because descriptors or memory had run out.
    accept_errors: int = 0
    #: Bytes taken from the kernel.
    bytes_read: int = 0
    #: Bytes handed to the kernel.
    bytes_written: int = 0
    #: Iterations of the loop.
    iterations: int = 0
    #: Events that libuv reported.
    events: int = 0
    #: Calls from Python into C.
    crossings: int = 0
    #: Seconds that the loop slept in the poll.
    idle_time: float = 0.0
    #: All other seconds since the loop started.
    busy_time: float = 0.0
    #: The longest time that one callback has taken since the loop started, in seconds.
    max_callback_time: float = 0.0
    #: The name of the callback that took so long, such as ``__main__.on_data``; None before the
    #: first one.
    longest_callback: str | None = None
    #: Callbacks that took longer than ``slow_callback_threshold`` of `start_event_loop`.
    slow_callbacks: int = 0

    @property
    def utilization(self) -> float:
        """Busy time as a share of all time, from 0 to 1."""
        total = self.busy_time + self.idle_time
        # Clamped, because clocks that two threads read differ by nanoseconds: a difference of
        # `Stats` may be below zero.
        return min(1.0, max(0.0, self.busy_time / total)) if total > 0 else 0.0

    def __sub__(self, earlier: object) -> Stats:
        if not isinstance(earlier, Stats):
            return NotImplemented
        names = (field.name for field in fields(self) if field.name not in _GAUGES)
        return replace(
            self, **{name: getattr(self, name) - getattr(earlier, name) for name in names}
        )
