"""Notifiers: a callback in the loop that any thread can ask for."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from pyasync.arguments import optional_callable, require_callable
from pyasync.errors import EventLoopNotRunning, NotifierFreed
from pyasync.handles import PythonHandle
from pyasync.loop import EventCallback, Loop, get_loop


class Notifier(PythonHandle):
    """A function that runs in the loop after `trigger`, which any thread may call.

    It keeps the loop running, also asleep, until it is freed; see `unref`. `trigger` is for any
    thread, all else for the loop's.
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

        After each call the callback runs, and sees what the thread has done before; calls that
        come before it runs share that one run (as with libuv's ``uv_async_send``). May also be
        called by a signal handler of Python's, and by the callback itself: then it runs again.

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
        except BaseException:  # of a signal's handler: another thread may count on this call
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
        # Two threads may both have found that it was not triggered.
        if self._slot >= 0 and self._triggered:
            self._triggered = False  # first: what is triggered from here on is another call
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
    `NotifierFreed`. What the callback raises goes to ``event_cb``, as `start_event_loop` says.
    Raises `EventLoopNotRunning`.

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
    return Notifier(get_loop(), callback, event_cb, bool(single_shot))


def trigger_notifier(notifier: Notifier) -> None:
    """Let the notifier's callback run in its loop; from any thread: see `Notifier.trigger`."""
    notifier.trigger()


def free_notifier(notifier: Notifier) -> None:
    """Free the notifier. Freeing twice does nothing."""
    notifier.free()
