"""Other threads: work, which runs in them, and notifiers, by which they reach the loop."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextvars import Context, copy_context
from functools import partial
from typing import Any, TypeVar

from pyasync._core.arguments import (
    optional_callable,
    require_callable,
    require_flag,
    require_integer,
)
from pyasync._core.contexts import in_context, optional_context
from pyasync._core.handles import PythonHandle
from pyasync.errors import EventLoopNotRunning, NotifierFreed
from pyasync.loop import EventCallback, Loop, get_loop, logger

Result = TypeVar("Result")

#: The end of a loop waits this long for functions that run in threads, in seconds.
CLOSE_WAIT = 1.0

#: The most threads that a loop may be told to use: Linux's limit of pid_max, proc(5).
MAX_WORKERS = 1 << 22


class Work(PythonHandle):
    """A function that runs in another thread. It keeps the loop running until it is over.

    It is closed when its callback is called. `unref` lets the loop end before.
    """

    __slots__ = ("_callback", "_fn", "_future")

    _loop: Loop

    _kind = "work"

    def __init__(
        self,
        loop: Loop,
        fn: Callable[[], Any],
        callback: Callable[[Any], object],
        event_cb: EventCallback | None,
    ) -> None:
        self._loop = loop
        self._fn = fn
        self._callback = callback
        # Before it is registered: if no thread can be started, nothing is left behind. The end of
        # the function cannot be reported before, because the loop's thread is here.
        self._begin()
        super().__init__(loop, event_cb)

    def _begin(self) -> None:
        """Queue the function for a thread."""
        self._future = _pool(self._loop).submit(self._fn, self._on_done)

    def _requeue(self) -> None:
        if self._future.cancel():  # False: a thread has begun it
            self._begin()

    def close(self) -> None:
        """Forget the work: its callback is not called. Closing twice does nothing.

        If no thread has begun the function, it is not called either: see `cancelled`. Otherwise the
        thread completes it, and the loop does not wait for that.
        """
        if self._slot >= 0 and self._loop.may_change():
            self._future.cancel()
            super().close()

    @property
    def running(self) -> bool:
        """Whether the function runs in a thread now."""
        return self._future.running()

    @property
    def cancelled(self) -> bool:
        """Whether the work was closed, or its loop has ended, before a thread had begun it."""
        return self._future.cancelled()

    @property
    def _active(self) -> bool:
        return self.running

    def _on_done(self) -> None:
        """Tell the loop, from the other thread, that the function has returned or raised."""
        try:
            self._loop.call_threadsafe(self._finish)
        except EventLoopNotRunning:
            pass

    def _finish(self) -> None:
        if self._slot < 0:
            return  # closed after the thread had queued this call
        super().close()
        error = self._future.exception()
        if error is None:
            self._call(self._callback, self._future.result())
        elif not isinstance(error, Exception):
            raise error  # SystemExit and KeyboardInterrupt leave the loop from any thread
        elif self._event_cb is not None:
            self._loop.call_event_cb(self._event_cb, error)
        else:
            logger.error("exception in work in a thread", exc_info=error)


class WorkerPool:
    """The threads of a loop, which are made when they are needed first."""

    def __init__(self) -> None:
        self._max_workers: int | None = None  # the default of ThreadPoolExecutor
        self._executor: ThreadPoolExecutor | None = None
        #: Executors with another number of workers: they end when nothing runs in them.
        self._retired: list[ThreadPoolExecutor] = []
        #: Functions that wait for a thread or run in one, also of work that was closed.
        self._futures: set[Future[Any]] = set()

    def submit(self, fn: Callable[[], Any], on_done: Callable[[], None]) -> Future[Any]:
        """Run ``fn()`` in a thread, then ``on_done()`` there, unless the future is cancelled."""

        # Runs in the worker's thread, in the one that cancels, or in this one if fn is over.
        def done(future: Future[Any]) -> None:
            self._futures.discard(future)
            if not future.cancelled():
                on_done()

        if self._executor is None:
            self._executor = ThreadPoolExecutor(self._max_workers, "pyasync")
        future = self._executor.submit(fn)
        self._futures.add(future)
        future.add_done_callback(done)
        return future

    def resize(self, max_workers: int) -> None:
        """Use at most ``max_workers`` threads for functions that are submitted from now on."""
        self._max_workers = max_workers
        if self._executor is not None:
            self._executor.shutdown(wait=False)  # its threads complete what they have begun
            self._retired.append(self._executor)
            self._executor = None

    def close(self) -> None:
        """Cancel functions that have not begun, wait a little for the others, end the threads."""
        executors = self._retired
        if self._executor is not None:
            executors.append(self._executor)
        for executor in executors:
            executor.shutdown(wait=False, cancel_futures=True)
        running = wait(list(self._futures), timeout=CLOSE_WAIT).not_done
        if running:
            warnings.warn(
                "the event loop has left work to its threads that still runs and cannot be stopped",
                ResourceWarning,
                stacklevel=2,
            )
        else:
            for executor in executors:
                executor.shutdown()


def _pool(loop: Loop) -> WorkerPool:
    if loop.pool is None:
        loop.pool = WorkerPool()
    return loop.pool


def work(
    fn: Callable[[], Result],
    callback: Callable[[Result], object],
    *,
    event_cb: EventCallback | None = None,
    context: Context | None = None,
) -> Work:
    """Run ``fn()`` in another thread, then ``callback(result)`` in the loop.

    The threads are a `concurrent.futures.ThreadPoolExecutor` that the loop makes for its first
    work: see `set_max_workers`. ``fn`` must not call pyasync, but for `Loop.call_threadsafe`,
    `Notifier.trigger` and `Loop.stats`.

    An exception that ``fn`` raises is given to ``event_cb`` as it is, or logged if there is none;
    `SystemExit` and `KeyboardInterrupt` leave the loop. An exception of the callback is handled as
    `start_event_loop` says.

    ``fn`` runs in a copy of the caller's context (`contextvars`), as with `asyncio.to_thread`. With
    a ``context`` it is a copy of that, and ``callback`` and ``event_cb`` run in the context itself.

    The work keeps the loop running until the callback has been called: see `Work.unref` and
    `Work.close`. When the loop is left otherwise, work that has not begun is cancelled, and the
    loop waits for running work, a second at most. Then that is left to its thread, with a
    `ResourceWarning`, and Python waits for the thread when the program ends.

    Raises `TypeError`, `EventLoopNotRunning`, and `RuntimeError` when no thread can be started.

    >>> import pyasync
    >>> with pyasync.event_loop():
    ...     _ = pyasync.work(lambda: sum(range(1000)), print)
    499500
    """
    require_callable("fn", fn)
    require_callable("callback", callback)
    optional_callable("event_cb", event_cb)
    optional_context(context)
    copy = copy_context() if context is None else context.copy()
    return Work(
        get_loop(),
        partial(copy.run, fn),
        in_context(context, callback),
        in_context(context, event_cb),
    )


def set_max_workers(number: int) -> None:
    """Let the `work` of this thread's loop use at most ``number`` threads from now on.

    The default is that of `concurrent.futures.ThreadPoolExecutor`: the number of processors and 4,
    32 at most. Work that waits for a thread is given to the new ones, in its order; running work
    ends in its old thread, which counts no more. Raises `TypeError`, `ValueError` unless the number
    is from 1 to 4,194,304 (no Linux has more threads, proc(5)), and `EventLoopNotRunning`.
    """
    number = require_integer("number", number, 1, MAX_WORKERS)
    loop = get_loop()
    _pool(loop).resize(number)
    # A copy, because a signal handler may close some, or begin others.
    for waiting in list(loop.python_handles["work"]):
        if not waiting.closed:
            waiting._requeue()


class Notifier(PythonHandle):
    """A function that runs in the loop after `trigger`, which any thread may call.

    It keeps the loop running, also while that sleeps, until it is freed; see `unref`. `trigger` is
    for any thread, all other methods for the loop's.
    """

    __slots__ = ("_callback", "_single_shot", "_triggered")

    _kind = "notifier"
    _closed_error = NotifierFreed

    def __init__(
        self,
        loop: Loop,
        callback: Callable[[], object],
        event_cb: EventCallback | None,
        single_shot: bool,
    ) -> None:
        super().__init__(loop, event_cb)
        self._callback = callback
        self._single_shot = single_shot
        self._triggered = False

    def trigger(self) -> None:
        """Let the callback run in the loop, in its next iteration; from any thread.

        After each call the callback runs, and sees all that the thread has done before the call.
        Calls that come before it runs share one run (as with libuv's ``uv_async_send``). May also
        be called by a signal handler of Python's, and by the callback itself: then it runs again.

        Raises `NotifierFreed` when the notifier has been freed or its loop has ended. A notifier
        that is freed between this call and the callback is not called.
        """
        if self._slot < 0:
            raise NotifierFreed("the notifier has been freed, or its loop has ended")
        if self._triggered:
            return
        try:
            self._triggered = True
            self._loop.call_threadsafe(self._run)
        except EventLoopNotRunning as error:
            raise NotifierFreed(str(error)) from None
        except BaseException:
            # A signal handler's exception came after _triggered was set, maybe before the call was
            # queued. Another thread has seen _triggered, and counts on the call: queue it again,
            # as a second one does nothing.
            with contextlib.suppress(EventLoopNotRunning):
                self._loop.call_threadsafe(self._run)
            raise

    def free(self) -> None:
        """Free the notifier: its callback is not called again. Freeing twice does nothing."""
        self.close()

    @property
    def freed(self) -> bool:
        """Whether the notifier has been freed, or its loop has ended."""
        return self.closed

    def _run(self) -> None:
        # Two threads may both have found _triggered unset, and have queued a call each.
        if self._slot >= 0 and self._triggered:
            self._triggered = False  # before the callback: a trigger from here on is another run
            if self._single_shot:
                self.close()
            self._call(self._callback)


def make_notifier(
    callback: Callable[[], object],
    *,
    event_cb: EventCallback | None = None,
    single_shot: bool = True,
) -> Notifier:
    """Return a `Notifier`, whose callback runs in the loop after `Notifier.trigger`.

    With ``single_shot`` it is freed when its callback is called, once; a later trigger raises
    `NotifierFreed`. An exception of the callback is handled as `start_event_loop` says. Raises
    `TypeError` and `EventLoopNotRunning`.

    >>> import pyasync, threading
    >>> with pyasync.event_loop():
    ...     notifier = pyasync.make_notifier(lambda: print("done"))
    ...     thread = threading.Thread(target=notifier.trigger)
    ...     thread.start()
    done
    >>> thread.join()
    """
    require_callable("callback", callback)
    optional_callable("event_cb", event_cb)
    return Notifier(get_loop(), callback, event_cb, require_flag("single_shot", single_shot))
