"""Idlers: a callback that runs in each iteration of the loop."""

from __future__ import annotations

from collections.abc import Callable

from pyasync._ffi import lib
from pyasync.arguments import optional_callable, require_callable
from pyasync.handles import PlainHandle
from pyasync.loop import EventCallback, Loop, get_loop


class Idler(PlainHandle):
    """A function that runs once in each iteration of the loop, until the idler is closed."""

    __slots__ = ("_callback",)

    def __init__(
        self, loop: Loop, callback: Callable[[], object], event_cb: EventCallback | None
    ) -> None:
        super().__init__(loop, lib.pa_idle_start(loop.c), event_cb)
        self._callback = callback

    def _on_event(self, kind: int, value: int, data: int) -> None:
        if self._slot >= 0:
            self._callback()


def idle(callback: Callable[[], object], *, event_cb: EventCallback | None = None) -> Idler:
    """Run ``callback()`` once in each iteration of the loop, until the returned `Idler` is closed.

    It does not wait for idleness (libuv's ``uv_idle_t`` has its name from what it does to the
    poll): it runs also when there is other work, which it never keeps waiting. But while there is
    an idler the loop does not sleep, and takes all of a processor: see `delay` and `call_soon` for
    what must run once.

    The idler keeps the loop running; see `Handle.unref`. What the callback raises goes to
    ``event_cb``, as `start_event_loop` says. Raises `EventLoopNotRunning`.

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


def free_idler(idler: Idler) -> None:
    """Close the idler. Closing twice does nothing."""
    idler.close()
