"""The callback API's event loop: its run, its end, and its policy for exceptions."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import Context
from typing import TYPE_CHECKING, Any, Protocol, TextIO, Union

from pyasync._core.arguments import (
    require_callable,
    require_flag,
    require_timeout,
    wrong_type,
)
from pyasync._core.contexts import in_context, optional_context
from pyasync._core.engine import HANDLE_KINDS, Engine
from pyasync._ffi import ffi, lib
from pyasync.counters import Stats
from pyasync.errors import CallbackError, EventError, EventInfo, EventLoopNotRunning

if TYPE_CHECKING:
    from pyasync.threads import WorkerPool

EventCallback = Callable[[Exception], object]
ErrorPolicy = Union[bool, Callable[[Exception], object]]

logger = logging.getLogger("pyasync")


class Owner(Protocol):
    """A handle, timer or request: an exception of its callback goes to its ``event_cb``."""

    @property
    def _event_cb(self) -> EventCallback | None: ...


class _Current(threading.local):
    loop: Loop | None = None


current = _Current()


class Loop(Engine):
    """An event loop. Made by `start_event_loop` and `event_loop`; found by `current_loop`.

    It belongs to the thread that started it. Only `call_threadsafe` and `stats` are for any
    thread. All other attributes are for the modules of the package, and may change.
    """

    __slots__ = (
        "_catch_app_errors",
        "_send_errors_to_event_cb",
        "exit_callbacks",
        "pool",
        "watched",
    )

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        raise TypeError("a Loop is made by start_event_loop or event_loop, and not by hand")

    def _set_up(
        self,
        *,
        catch_app_errors: ErrorPolicy = False,
        send_errors_to_event_cb: bool = True,
        buffer_writes: bool = True,
        slow_callback_threshold: float | None = None,
    ) -> None:
        require_timeout("slow_callback_threshold", slow_callback_threshold)
        if not isinstance(catch_app_errors, bool):
            allowed = "True, False or a function of one exception"
            require_callable("catch_app_errors", catch_app_errors, allowed)
        super().__init__(buffer_writes=require_flag("buffer_writes", buffer_writes))
        self._catch_app_errors = catch_app_errors
        self._send_errors_to_event_cb = require_flag(
            "send_errors_to_event_cb", send_errors_to_event_cb
        )
        if slow_callback_threshold is not None:
            self.watch_slow_callbacks(slow_callback_threshold, Loop._report_slow_callback)
        self.exit_callbacks: list[Callable[[], object]] = []
        #: The threads of `work`; None until the first work.
        self.pool: WorkerPool | None = None
        #: Open sockets that have a ``close_cb``, each with the error that has ended it, or None.
        self.watched: dict[Any, EventError | None] = {}

    # Running

    def enter(self) -> None:
        if current.loop is not None:
            raise RuntimeError("an event loop is running in this thread already")
        super().enter()
        current.loop = self

    def leave(self) -> None:
        super().leave()
        if current.loop is self:
            current.loop = None

    def run(self) -> None:
        """Run until nothing keeps the loop alive, or until it is told to stop."""
        while True:  # CPython 3.11 specializes the code of such a loop, and of no other kind
            if self.stopping:
                break
            self.poll()
            if self.stopping:  # a signal handler has called `drop`: no record may be delivered
                break
            self.dispatch()
            if self.ready or self._wakeup.calls:
                self.run_ready()
            elif not self._alive and not self.alive:
                break
        if self.forked:
            raise self.not_running()

    def close(self) -> None:
        """Call the exit callbacks, close everything, and call each ``close_cb`` that is left.

        May be called again after an interrupt, and goes on: each callback is taken off its list
        before it is called. See also `Engine.close`.
        """
        if not self.forked:
            while self.exit_callbacks:
                callback = self.exit_callbacks.pop(0)
                try:
                    callback()
                except Exception:
                    logger.exception("exception in an exit callback of the event loop")
        if current.loop is self:
            current.loop = None
        super().close()
        while not self.forked and (socket := next(iter(self.watched), None)) is not None:
            try:
                self.call_close_cb(socket)
            except Exception:
                logger.exception("exception in a close_cb, at the end of the event loop")
        if self.pool is not None and not self.forked:
            self.pool.close()
            self.pool = None  # closed once: the next call would wait again

    def forget_after_fork(self) -> None:
        super().forget_after_fork()
        if current.loop is self:
            current.loop = None

    # Events and exceptions

    def report(self, owner: Owner, info: EventInfo, socket: Any = None) -> None:
        """Give ``info`` to the owner's ``event_cb``; without one, log it if it is an error."""
        if socket is not None:
            info.socket = socket  # type: ignore[attr-defined]
        event_cb = owner._event_cb
        if event_cb is not None:
            self.call_event_cb(event_cb, info)
        elif isinstance(info, EventError):
            logger.error("%s: %s: %s", owner, type(info).__name__, info)

    def call_event_cb(self, event_cb: EventCallback, info: Exception) -> None:
        """Call an ``event_cb``; its exception is handled as ``catch_app_errors`` says."""
        try:
            event_cb(info)
        except Exception as error:
            # Not given to an event_cb: it would be called for its own exception, without end.
            if self._catch_app_errors is True:
                logger.exception("exception in an event_cb, which was told %r", info)
            else:
                self.on_error(error, None)

    def call_close_cb(self, socket: Any) -> None:
        """Call the socket's ``close_cb``, once; its exception is no event of the socket's any more.

        So that exception is handled like an ``event_cb``'s.
        """
        error = self.watched.pop(socket, socket)
        if error is socket:
            return  # it was called, or there was none when the socket was made
        try:
            socket._options.close_cb(socket, error)
        except Exception as raised:
            if self._catch_app_errors is True:
                logger.exception("exception in a close_cb of %r", socket)
            else:
                self.on_error(raised, None)

    def on_error(self, error: Exception, owner: Any) -> None:
        """Handle the exception of a callback of ``owner``, as ``catch_app_errors`` says."""
        policy = self._catch_app_errors
        if policy is False:
            raise error
        if policy is not True:
            try:
                policy(error)
            except Exception:
                logger.exception("exception in catch_app_errors, which was told %r", error)
            return
        whose = "a callback" if owner is None else f"a callback of {owner!r}"
        logger.error("exception in %s", whose, exc_info=error)
        if self._send_errors_to_event_cb:
            self._tell_owner(error, owner)

    def _report_slow_callback(self, seconds: float, name: str) -> None:
        self.slow_callbacks += 1
        logger.warning("callback %s took %.3f seconds", name, seconds)

    def _tell_owner(self, error: Exception, owner: Owner | None) -> None:
        """Give the exception of a callback to its owner's ``event_cb``, as a `CallbackError`."""
        event_cb = owner._event_cb if owner is not None else None
        if event_cb is not None:
            told = CallbackError(error, owner)
            told.__cause__ = error
            self.call_event_cb(event_cb, told)


def start_event_loop(
    start_fn: Callable[[], object],
    *,
    catch_app_errors: ErrorPolicy = False,
    send_errors_to_event_cb: bool = True,
    buffer_writes: bool = True,
    slow_callback_threshold: float | None = None,
) -> None:
    """Run ``start_fn()`` in a new event loop, then the loop, until nothing is left in it.

    ``catch_app_errors`` is the policy for exceptions of callbacks. ``False``: the loop stops,
    everything is closed, and this call raises the exception. ``True``: the exception is logged by
    the logger ``pyasync`` with its traceback, and the loop goes on. If the operation whose callback
    it was has an ``event_cb``, and ``send_errors_to_event_cb`` is set, that gets a `CallbackError`.
    A function: it is called with the exception, and the loop goes on. The same holds for exceptions
    of an ``event_cb``, except that no ``event_cb`` gets them. `KeyboardInterrupt` and `SystemExit`
    always leave the loop.

    ``buffer_writes=False`` makes each write and close a call into C of its own, in place of one an
    iteration for all: slower, but a profiler then shows each of them by its name.

    A callback that takes over ``slow_callback_threshold`` seconds is logged as a warning, with its
    name and its time, and counted in `Stats.slow_callbacks`. None: none is.

    Raises `TypeError` and `ValueError`; `RuntimeError` if a loop runs in this thread already; and
    `OSError` if the system refuses a loop, or if the program has closed a pipe that libuv keeps
    from the first loop on: a daemon that closes all descriptors must do so before.

    >>> import pyasync
    >>> pyasync.start_event_loop(lambda: pyasync.delay(lambda: print("later"), time=0.01))
    later
    """
    require_callable("start_fn", start_fn)
    loop = Loop.__new__(Loop)
    loop._set_up(
        catch_app_errors=catch_app_errors,
        send_errors_to_event_cb=send_errors_to_event_cb,
        buffer_writes=buffer_writes,
        slow_callback_threshold=slow_callback_threshold,
    )
    try:
        loop.open()
        loop.enter()
        loop.ready.append(start_fn)
        loop.run()
    finally:
        try:
            loop.close()
        finally:
            try:
                loop.close()  # goes on where Ctrl-C has interrupted the first
            finally:
                loop.close()


@contextmanager
def event_loop(
    *,
    catch_app_errors: ErrorPolicy = False,
    send_errors_to_event_cb: bool = True,
    buffer_writes: bool = True,
    slow_callback_threshold: float | None = None,
) -> Iterator[Loop]:
    """Run the body of the ``with`` statement in a new event loop; at its end run the loop.

    The loop runs until nothing is left in it. If the body raises, everything is closed at once.
    The keywords are those of `start_event_loop`.

    >>> import pyasync
    >>> with pyasync.event_loop():
    ...     _ = pyasync.delay(lambda: print("later"), time=0.01)
    later
    """
    loop = Loop.__new__(Loop)
    loop._set_up(
        catch_app_errors=catch_app_errors,
        send_errors_to_event_cb=send_errors_to_event_cb,
        buffer_writes=buffer_writes,
        slow_callback_threshold=slow_callback_threshold,
    )
    try:
        loop.open()
        loop.enter()
        yield loop
        loop.run()
    finally:
        try:
            loop.close()
        finally:
            try:
                loop.close()  # goes on where Ctrl-C has interrupted the first
            finally:
                loop.close()


def exit_event_loop() -> None:
    """Leave the loop when the running callback returns: no other callback is called.

    Pending writes are tried once, and everything is closed. Raises `EventLoopNotRunning`.
    """
    get_loop().drop()


def current_loop() -> Loop | None:
    """Return the event loop that runs in this thread, or None."""
    return current.loop


def get_loop() -> Loop:
    """Return the event loop that runs in this thread, or raise `EventLoopNotRunning`."""
    loop = current.loop
    if loop is None:
        raise EventLoopNotRunning("no event loop is running in this thread")
    return loop


def add_event_loop_exit_callback(fn: Callable[[], object]) -> None:
    """Call ``fn()`` when the loop has run for the last time, before its handles are closed.

    Its exception is logged. Raises `TypeError` and `EventLoopNotRunning`.
    """
    require_callable("fn", fn)
    get_loop().exit_callbacks.append(fn)


def call_soon(fn: Callable[[], object], *, context: Context | None = None) -> None:
    """Call ``fn()`` after the callbacks of this iteration, in the order of these calls.

    Calls that it makes to `call_soon` wait for the next iteration: I/O goes on between them. With a
    ``context``, it runs in that `contextvars.Context`. Raises `TypeError` and
    `EventLoopNotRunning`.
    """
    require_callable("fn", fn)
    optional_context(context)
    get_loop().ready.append(in_context(context, fn))


def stats() -> Stats:
    """Return a snapshot of the counters of this thread's loop. Raises `EventLoopNotRunning`."""
    return get_loop().stats()


def now() -> float:
    """Return the loop's time in seconds: a monotonic clock, read once an iteration (``uv_now``).

    Raises `EventLoopNotRunning`.
    """
    milliseconds: int = lib.pa_now(get_loop().c)
    return milliseconds / 1000


def update_time() -> None:
    """Read the clock of `now` again, after a callback that has taken long (``uv_update_time``).

    Raises `EventLoopNotRunning`.
    """
    lib.pa_update_time(get_loop().c)


def libuv_version() -> str:
    """Return the version of libuv that is in use, such as ``"1.44.2"``."""
    return str(ffi.string(lib.uv_version_string()).decode())


def dump_event_loop_status(file: TextIO | None = None) -> None:
    """Write a line for each handle to ``file`` (`sys.stdout`): type, active, referenced, closing.

    Raises `EventLoopNotRunning`.
    """
    loop = get_loop()
    file = sys.stdout if file is None else file
    if not hasattr(file, "write"):
        raise wrong_type("file", "a text file that can be written to, or None", file)
    loop.submit()
    size = sum(loop.counters.handles)
    statuses = ffi.new("pa_handle_status[]", max(size, 1))
    # No more than there was room for: a __del__ may have opened one meanwhile.
    count = min(size, lib.pa_handles(loop.c, statuses, size))
    rows = [
        (HANDLE_KINDS[status.kind], status.active, status.referenced, status.closing)
        for status in statuses[0:count]
    ]
    # By their fields and from copies, because a __del__ may close some of them meanwhile.
    rows += [
        ("timer", True, timer._options is None or timer._options[1], False)
        for timer in loop.deadlines.timers()
    ]
    rows += [
        (kind, handle._active, handle._referenced, False)
        for kind, handles in loop.python_handles.items()
        for handle in list(handles)
    ]
    for kind, active, referenced, closing in rows:
        state = " ".join(
            name if value else "-"
            for name, value in [
                ("active", active),
                ("referenced", referenced),
                ("closing", closing),
            ]
        )
        print(f"{kind:<12} {state}", file=file)
