"""What ends a loop's sleep from outside: other threads, and signals; and what a fork leaves behind.

One ``uv_async_t`` and one queue serve all calls from other threads, because libuv's cost for a
wake-up grows with the number of its async handles.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pyasync._ffi import lib
from pyasync.errors import check

if TYPE_CHECKING:
    from pyasync._core.engine import Engine


class Wakeup:
    """The calls that other threads have asked a loop for, and what keeps it running for them."""

    __slots__ = ("_holds", "_lock", "calls", "woken")

    def __init__(self) -> None:
        self.calls: deque[Callable[[], object]] = deque()
        #: Whether a wake-up is pending. The loop clears it before it looks at the calls, so that
        #: none is missed.
        self.woken = False
        #: How many things keep the loop running that only Python knows of.
        self._holds = 0
        # Reentrant, because a signal handler may interrupt `call` and call it again.
        self._lock = threading.RLock()

    def call(self, engine: Engine, fn: Callable[[], object]) -> None:
        """Queue a call, and wake the loop unless a wake-up is already pending."""
        with self._lock:
            if engine.closed:
                raise engine.not_running()
            self.calls.append(fn)
            if not self.woken:
                try:
                    self.woken = True
                finally:  # Ctrl-C in between would let all later calls wait for another event
                    lib.pa_wakeup(engine.c)

    def close(self, engine: Engine) -> None:
        """Let no thread wake the loop any more: its memory is about to be freed."""
        with self._lock:
            engine.closed = True

    def keep_alive(self, engine: Engine) -> None:
        """Keep the loop running until `let_end`, for something that only Python knows of."""
        self._holds += 1
        if self._holds == 1:
            lib.pa_keep_alive(engine.c, True)

    def let_end(self, engine: Engine) -> None:
        """Undo one `keep_alive`."""
        self._holds -= 1
        if self._holds == 0:
            lib.pa_keep_alive(engine.c, False)

    def forget_after_fork(self) -> None:
        """In the child: the lock may be held by a thread that the child has not got."""
        self._lock = threading.RLock()


class SignalWakeup:
    """Ends the poll's sleep when a signal arrives for which Python has a handler.

    libuv goes on polling when a signal interrupts it, so that Ctrl-C would wait for the next
    event: https://docs.python.org/3/library/signal.html#signal.set_wakeup_fd. Main thread only.
    """

    def __init__(self, c: Any) -> None:
        self._receiver, self._sender = socket.socketpair()
        self._receiver.setblocking(False)
        self._sender.setblocking(False)
        #: The descriptor that was there before, while ours is in its place.
        self._before: int | None = None
        try:
            check(lib.pa_watch_signals(c, self._receiver.fileno()))
        except BaseException:
            self.close()
            raise

    def install(self) -> None:
        """Let Python write a byte to our descriptor for each signal."""
        self._before = -1
        self._before = signal.set_wakeup_fd(self._sender.fileno(), warn_on_full_buffer=False)

    def restore(self) -> None:
        """Put back what was there before `install`. May be called again after an exception."""
        if self._before is not None:
            signal.set_wakeup_fd(self._before)
            self._before = None

    def close(self) -> None:
        """Restore, and close the descriptors: never one that Python still writes to."""
        self.restore()
        self._receiver.close()
        self._sender.close()


#: Loops that are not closed, which the child of a fork must never touch.
open_engines: weakref.WeakSet[Engine] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    lib.pa_signals_after_fork(True)
    for engine in list(open_engines):
        engine.forget_after_fork()
    open_engines.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=lib.pa_signals_before_fork,
        after_in_parent=lambda: lib.pa_signals_after_fork(False),
        after_in_child=_after_fork_in_child,
    )
