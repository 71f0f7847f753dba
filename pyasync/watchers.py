"""Pollers and idlers: callbacks for the application's descriptors, and for each iteration."""

from __future__ import annotations

import errno
from collections.abc import Callable

from pyasync._core.arguments import (
    Descriptor,
    optional_callable,
    require_callable,
    require_descriptor,
    require_flag,
)
from pyasync._core.handles import CHandle
from pyasync._ffi import lib
from pyasync.errors import check, socket_error
from pyasync.loop import EventCallback, Loop, get_loop

READABLE: int = lib.UV_READABLE
WRITABLE: int = lib.UV_WRITABLE
DISCONNECT: int = lib.UV_DISCONNECT


class Poller(CHandle):
    """A function that runs when a descriptor can be read or written, until the poller is closed.

    The poller has a duplicate of the descriptor, because libuv aborts when a descriptor is closed
    while it polls it. So the open file, or the connection, stays open until the poller is closed
    too.
    """

    __slots__ = ("_callback", "_disconnected", "_events")

    _loop: Loop

    def __init__(
        self,
        loop: Loop,
        slot: int,
        events: int,
        callback: Callable[[bool, bool], object],
        event_cb: EventCallback | None,
    ) -> None:
        super().__init__(loop, slot, event_cb)
        self._callback = callback
        self._events = events
        self._disconnected = False

    def modify(self, *, readable: bool | None = None, writable: bool | None = None) -> None:
        """Change the events to wait for; None leaves one as it is.

        A poller that waits for neither is open, but does not keep the loop running. Raises
        `HandleClosed`.
        """
        slot = self._open_slot()
        was_readable, was_writable = self._events & READABLE != 0, self._events & WRITABLE != 0
        self._events = _events(
            was_readable if readable is None else require_flag("readable", readable),
            was_writable if writable is None else require_flag("writable", writable),
        )
        lib.pa_poll_modify(self._loop.c, slot, self._events)

    @property
    def disconnected(self) -> bool:
        """Whether the peer has hung up, as far as the callback knows.

        A hang-up is noticed while the poller waits to read: of a socket at once, of others when all
        data before it has been read. Then the descriptor stays readable: a read gives the rest, and
        then the end or the error.
        """
        return self._disconnected

    def _on_event(self, kind: int, value: int, data: int) -> None:
        # A callback of the same batch may have closed or changed it.
        if self._slot < 0:
            return
        if value < 0:  # such as ENOSPC, epoll_ctl(2)
            self.close()
            self._loop.report(self, socket_error(value))
            return
        if value & DISCONNECT:
            self._disconnected = True
            value |= READABLE  # a read tells the end or the error
        value &= self._events  # the record may be older than a call of modify
        if value:
            self._callback(bool(value & READABLE), bool(value & WRITABLE))


def poll(
    fd: Descriptor,
    callback: Callable[[bool, bool], object],
    *,
    event_cb: EventCallback | None = None,
    readable: bool = True,
    writable: bool = True,
) -> Poller:
    """Run ``callback(readable, writable)`` while the descriptor can be read or written.

    ``fd`` is a number, or an object that has a ``fileno()``, such as a socket; it may be anything
    that epoll(7) takes: sockets, pipes, terminals, eventfd, pidfd and others. ``readable`` and
    ``writable`` are the events to wait for; `Poller.modify` changes them. The callback runs each
    time that the loop polls and finds the descriptor ready: again and again, until all input is
    read or the poller waits for less. Most descriptors are writable most of the time. The callback
    should make one read or write only, because a second may block, unless the descriptor is
    non-blocking; its mode is left as it was.

    An end of file, a hang-up (see `Poller.disconnected`) and an error of the descriptor are
    reported as readable, or as writable if the poller waits for that only: the next read or write
    tells which it was.

    The poller has a duplicate of the descriptor. So two pollers of one descriptor are independent
    of each other, and the descriptor may be closed before the poller. The open file then stays
    open until the poller is closed; a peer sees no end of a connection before.

    If the system has no room for another descriptor to poll (epoll_ctl(2), ENOSPC and ENOMEM), the
    poller is closed, and ``event_cb`` gets a `SocketError`.

    The poller keeps the loop running; see `Handle.unref`. Raises `SocketError` (an `OSError`) for
    a descriptor that is not open (EBADF), and when descriptors have run out; `ValueError` for a
    negative one, and for regular files, directories and the like (``/dev/null``), of which
    epoll_ctl(2) has nothing to report; and `EventLoopNotRunning`.

    >>> import pyasync, socket
    >>> def on_ready(readable, writable):
    ...     print(ours.recv(100))
    ...     pyasync.free_poller(poller)
    >>> ours, theirs = socket.socketpair()
    >>> with ours, theirs, pyasync.event_loop():
    ...     poller = pyasync.poll(ours, on_ready, writable=False)
    ...     _ = theirs.send(b"hello")
    b'hello'
    """
    require_callable("callback", callback)
    optional_callable("event_cb", event_cb)
    number = require_descriptor("fd", fd)
    events = _events(require_flag("readable", readable), require_flag("writable", writable))
    loop = get_loop()
    slot = lib.pa_poll_start(loop.c, number, events)
    if slot == -errno.EPERM:
        raise ValueError(
            f"fd must be a descriptor that can be polled, not {number}: like any regular file or "
            "directory it can always be read and written"
        )
    if slot < 0:
        raise socket_error(slot, detail=f"descriptor {number}")
    return Poller(loop, slot, events, callback, event_cb)


def _events(readable: bool, writable: bool) -> int:
    return (READABLE if readable else 0) | (WRITABLE if writable else 0)


class Idler(CHandle):
    """A function that runs once in each iteration of the loop, until the idler is closed."""

    __slots__ = ("_callback",)

    def __init__(
        self, loop: Loop, callback: Callable[[], object], event_cb: EventCallback | None
    ) -> None:
        super().__init__(loop, check(lib.pa_idle_start(loop.c)), event_cb)
        self._callback = callback

    def _on_event(self, kind: int, value: int, data: int) -> None:
        if self._slot >= 0:
            self._callback()


def idle(callback: Callable[[], object], *, event_cb: EventCallback | None = None) -> Idler:
    """Run ``callback()`` once in each iteration of the loop, until the returned `Idler` is closed.

    It does not wait for idleness, in spite of its name, which is libuv's (``uv_idle_t``): it runs
    also when there is other work, which it never keeps waiting. While there is an idler the loop
    does not sleep, and takes all of a processor: for a function that must run once see `delay` and
    `call_soon`.

    The idler keeps the loop running; see `Handle.unref`. An exception of the callback is handled as
    `start_event_loop` says. Raises `TypeError` and `EventLoopNotRunning`.

    >>> import pyasync
    >>> with pyasync.event_loop():
    ...     parts = [1, 2, 3]
    ...     def work_a_little():
    ...         print(parts.pop())
    ...         if not parts:
    ...             idler.close()
    ...     idler = pyasync.idle(work_a_little)
    3
    2
    1
    """
    require_callable("callback", callback)
    optional_callable("event_cb", event_cb)
    return Idler(get_loop(), callback, event_cb)
