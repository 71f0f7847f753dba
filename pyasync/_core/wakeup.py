"""Wake-ups of a sleeping loop by other threads and by signals, and the hooks of a fork.

One ``uv_async_t`` and one queue serve all calls from other threads, because libuv's cost of a
wake-up grows with the number of its async handles.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable
from threading import current_thread, get_ident, main_thread
from time import sleep
from typing import TYPE_CHECKING, Any

from pyasync._ffi import lib
from pyasync.errors import check

if TYPE_CHECKING:
    from pyasync._core.engine import Engine

#: With it, threads see each other's changes in their order also without a lock.
HAS_GIL = getattr(sys, "_is_gil_enabled", lambda: True)()

#: When so many calls wait, a thread that queues one gives way to the loop's. Otherwise threads that
#: do nothing else would queue calls faster than the loop, which gets the interpreter's lock no more
#: often than each of them, runs them: the queue would grow without end.
CROWDED = 1000

#: For how long, in seconds. CPython hands its lock on even so; PyPy's thread would take it back.
_WAY = 0 if HAS_GIL and sys.implementation.name == "cpython" else 1e-4


def give_way(engine: Engine) -> None:
    """Let the loop run, if it is entered, in another thread than this."""
    if engine.thread not in (None, get_ident()):
        sleep(_WAY)


class Wakeup:
    """The calls that other threads have queued, and the count of reasons to keep the loop alive."""

    __slots__ = ("_lock", "calls", "holds", "woken")

    def __init__(self) -> None:
        self.calls: deque[Callable[[], object]] = deque()
        #: Whether a wake-up is pending. The loop clears it before it checks the queue. In the other
        #: order a call between the two would find it set, wake nobody, and wait for an event.
        self.woken = False
        #: Handles that C does not know and that keep the loop running. Not their number, which a
        #: signal handler could change in the middle of a change.
        self.holds: dict[Any, None] = {}
        # Reentrant, because a signal handler may interrupt `call` and call it again.
        self._lock = threading.RLock()

    def call(self, engine: Engine, fn: Callable[[], object]) -> None:
        """Queue a call, and wake the loop unless a wake-up is already pending."""
        with self._lock:
            if engine.closed:
                raise engine.not_running()
            self.calls.append(fn)
            self.wake(engine)
        if len(self.calls) > CROWDED:
            give_way(engine)

    def wake(self, engine: Engine) -> None:
        """Wake the loop, from any thread, unless a wake-up is already pending or it has ended."""
        if HAS_GIL and self.woken:  # what the caller has queued is seen after `clear`
            return
        with self._lock:
            if not self.woken and not engine.closed:
                try:
                    self.woken = True
                finally:  # Ctrl-C in between would leave it set, and no later call would wake
                    lib.pa_wakeup(engine.c)

    def clear(self) -> None:
        """Let later calls wake the loop. The lock keeps the order on a Python without a GIL too."""
        with self._lock:
            self.woken = False

    def close(self, engine: Engine) -> None:
        """Let no thread wake the loop any more, because its memory is about to be freed.

        The lock makes this wait for a `call` that is just now using that memory.
        """
        with self._lock:
            engine.closed = True

    def keep_alive(self, engine: Engine, owner: Any) -> None:
        """Keep the loop running until `let_end` of the same owner."""
        self.holds[owner] = None
        self._tell(engine)

    def let_end(self, engine: Engine, owner: Any) -> None:
        """Undo `keep_alive`; if there was none, do nothing."""
        self.holds.pop(owner, None)
        self._tell(engine)

    def _tell(self, engine: Engine) -> None:
        while True:  # until no signal handler has changed it in the middle
            on = bool(self.holds)
            lib.pa_keep_alive(engine.c, on)
            if on == bool(self.holds):
                return

    def forget_after_fork(self) -> None:
        """In the child: replace the lock, because a thread that is not in the child may hold it."""
        self._lock = threading.RLock()


class SignalWakeup:
    """Ends the poll's sleep when a signal arrives for which Python has a handler.

    libuv goes on polling when a signal interrupts it, so Ctrl-C would wait for the next event. So
    Python writes a byte to a pipe of C's (`signal.set_wakeup_fd`), and C polls its other end. For
    the main thread only, because Python's handlers run there and set_wakeup_fd refuses any other.
    """

    def __init__(self) -> None:
        self._fd = -1
        #: The wakeup descriptor that ours has replaced, for `restore`; None: ours is not installed.
        self._before: int | None = None

    def install(self, c: Any) -> None:
        """Let Python write a byte to our descriptor for each signal, and the loop ``c`` poll it."""
        self._fd = check(lib.pa_watch_signals(c))
        if self._before is not None:  # it has stayed there since an earlier run
            self.keep()
            return
        # Set before the call: if Ctrl-C comes between the call and the assignment of its result,
        # `restore` must still take our descriptor away, before C closes it.
        self._before = -1
        try:
            self._before = signal.set_wakeup_fd(self._fd, warn_on_full_buffer=False)
        except ValueError:  # in a subinterpreter, where no handlers of Python's run
            self._before = None

    def keep(self) -> None:
        """Install our descriptor again, if somebody else has replaced it since.

        A loop of another library that has run in a callback leaves none at its end.
        """
        if self._before is None or current_thread() is not main_thread():
            return
        found = signal.set_wakeup_fd(self._fd, warn_on_full_buffer=False)
        if found not in (-1, self._fd):
            self._before = found  # of somebody who expects it to be there after our loop

    def restore(self) -> None:
        """Put back the descriptor from before `install`. May be called again after an exception.

        To be called before C closes our descriptor: a signal's byte would go to whoever gets its
        number next. Does nothing in another thread than the main one, where that is impossible.
        """
        if self._before is None or current_thread() is not main_thread():
            return
        try:
            found = signal.set_wakeup_fd(self._before)
        except (OSError, ValueError):  # somebody has closed it meanwhile
            found = signal.set_wakeup_fd(-1)
        if found not in (-1, self._fd):
            # Not ours: the interrupt came before `install` had put ours in its place.
            signal.set_wakeup_fd(found)
        self._before = None


#: Loops that are not closed. The child of a fork must not touch them: it shares their epoll sets
#: with the parent, so that a change in one process would change the other's. A dict, because each
#: of its operations is atomic, for threads and for signal handlers: a WeakSet's are not.
open_engines: dict[int, weakref.ref[Engine]] = {}


def remember(engine: Engine) -> None:
    """Add a loop to those that are not closed, for as long as it exists."""
    number = id(engine)
    open_engines[number] = weakref.ref(engine, lambda ref: forget(number))


def forget(number: int) -> None:
    """Take the loop with this `id` out again. May be called twice."""
    open_engines.pop(number, None)


def _after_fork_in_child() -> None:
    try:
        for ref in list(open_engines.values()):
            engine = ref()
            if engine is not None:
                engine.forget_after_fork()
        open_engines.clear()
    finally:
        lib.pa_signals_after_fork(True)  # last, because it lets signals come again


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=lib.pa_signals_before_fork,
        after_in_parent=lambda: lib.pa_signals_after_fork(False),
        after_in_child=_after_fork_in_child,
    )
