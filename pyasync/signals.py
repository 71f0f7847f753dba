"""Signal handlers."""

from __future__ import annotations

import signal
from collections.abc import Callable

from pyasync._core.arguments import optional_callable, require_callable, require_integer
from pyasync._core.handles import CHandle
from pyasync._ffi import lib
from pyasync.errors import message
from pyasync.loop import EventCallback, Loop, get_loop


class SignalHandler(CHandle):
    """A function that runs in the loop when a signal arrives.

    Closing it restores the signal's disposition from before the loop handled it.
    """

    __slots__ = ("_callback", "signo")

    def __init__(
        self,
        loop: Loop,
        slot: int,
        signo: int,
        callback: Callable[[int], object],
        event_cb: EventCallback | None,
    ) -> None:
        super().__init__(loop, slot, event_cb)
        #: The signal's number.
        self.signo = signo
        self._callback = callback

    def _on_event(self, kind: int, value: int, data: int) -> None:
        if self._slot >= 0:  # a callback of the same batch may have closed it
            self._callback(value)


def _handlers(loop: Loop) -> list[SignalHandler]:
    return [
        handle for handle in loop.objects if isinstance(handle, SignalHandler) and not handle.closed
    ]


def signal_handler(
    signo: int, callback: Callable[[int], object], *, event_cb: EventCallback | None = None
) -> SignalHandler:
    """Run ``callback(signo)`` in the loop each time the signal arrives.

    ``signo`` is a number from Python's `signal` module. While the handler is open it replaces the
    signal's earlier handler, also Python's own: with a handler for SIGINT, Ctrl-C raises no
    `KeyboardInterrupt`. A loop has one handler for a signal: a second call replaces the first.
    Signals that arrive close together may be reported once (signal(7)).

    The handler keeps the loop running; see `Handle.unref`. Raises `TypeError`, `ValueError` for a
    signal that does not exist or cannot be handled, and `EventLoopNotRunning`.
    """
    require_callable("callback", callback)
    optional_callable("event_cb", event_cb)
    require_integer("signo", signo, 1, signal.NSIG - 1)
    loop = get_loop()
    slot = lib.pa_signal_start(loop.c, signo)
    if slot < 0:  # such as SIGKILL
        raise ValueError(
            f"signo must be a signal that can be handled, not {signo!r}: {message(slot)}"
        )
    free_signal_handler(signo)  # the first one, after the second has begun: no signal is missed
    return SignalHandler(loop, slot, signo, callback, event_cb)


def free_signal_handler(signo: int) -> None:
    """Close this loop's handler for the signal, if there is one.

    Raises `TypeError` and `ValueError` for what is no signal's number, and `EventLoopNotRunning`.
    """
    require_integer("signo", signo, 1, signal.NSIG - 1)
    for handler in _handlers(get_loop()):
        if handler.signo == signo:
            handler.close()


def clear_signal_handlers() -> None:
    """Close all of this loop's signal handlers. Raises `EventLoopNotRunning`."""
    for handler in _handlers(get_loop()):
        handler.close()
