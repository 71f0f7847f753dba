"""The base of what libuv does in a thread of its pool: lookups, and operations on files."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyasync._ffi import lib
from pyasync.errors import EventError
from pyasync.loop import EventCallback, Loop
from pyasync.timers import Event


class Request:
    """Something under way in a thread. It keeps the loop running until it is over, or closed."""

    __slots__ = ("__weakref__", "_address", "_callback", "_event_cb", "_loop")

    def __init__(
        self, loop: Loop, callback: Callable[..., object], event_cb: EventCallback | None
    ) -> None:
        self._loop = loop
        self._callback: Callable[..., object] | None = callback
        self._event_cb = event_cb
        self._address = -1

    def _begin(self, function: Callable[..., int], *arguments: Any) -> None:
        """Call a function of C that begins a request, and returns its address or an error."""
        self._loop.submit()
        address = function(self._loop.c, *arguments)
        if address < 0:  # refused at once, such as a name that is too long
            self._finish_soon(error=self._error(address))
        else:
            self._address = address
            self._loop.requests[address] = self

    def _finish_soon(self, *results: Any, error: EventError | None = None) -> None:
        """End the request without a thread, but in a later iteration as any other."""

        def finish() -> None:
            if error is not None:
                self._fail(error)
            else:
                self._succeed(*results)

        Event(self._loop, finish, self._event_cb).add()

    def close(self) -> None:
        """Forget the request: its callback is not called. What a thread has begun, it ends."""
        if self._callback is None:
            return
        running = self._loop.thread is not None
        if running:
            self._loop.check_thread()
        self._callback = None
        if running and self._address >= 0:
            lib.pa_request_cancel(self._loop.c, self._address)

    @property
    def closed(self) -> bool:
        """Whether the request is over, or was closed, or its loop has ended."""
        return self._callback is None or self._loop.thread is None

    # Called by the loop

    def _on_event(self, kind: int, value: int, data: int) -> None:
        """Take PA_DONE."""
        self._address = -1
        try:
            try:
                results = self._results(value)
            finally:  # before any callback: it is over, and counted no more
                lib.pa_request_free(self._loop.c, value)
        except EventError as error:
            self._fail(error)
        else:
            self._succeed(*results)

    def _succeed(self, *results: Any) -> None:
        callback, self._callback = self._callback, None
        if callback is not None:
            callback(*results)

    def _fail(self, error: EventError) -> None:
        callback, self._callback = self._callback, None
        if callback is not None:
            self._loop.report(self, error)

    # For the kinds of request

    def _results(self, address: int) -> tuple[Any, ...]:
        """Read what the callback is to be called with, or raise the error."""
        raise NotImplementedError

    def _error(self, status: int) -> EventError:
        """Return the exception for a libuv error."""
        raise NotImplementedError
