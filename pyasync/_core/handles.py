"""The base of all handles.

C owns a handle's memory. Python knows the handle by its slot, and the loop holds the Python object
until C says that the handle is gone: an open handle that its user has dropped keeps working.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyasync._core.engine import Engine
from pyasync._ffi import lib
from pyasync.errors import HandleClosed, check


class Handle:
    """Something open in an event loop, which keeps it running while it is referenced."""

    __slots__ = ()

    _loop: Engine
    #: By which C knows the handle; -1 when it is closed.
    _slot: int
    _event_cb: Any

    #: What a call on a closed handle raises.
    _closed_error: type[HandleClosed] = HandleClosed

    def close(self) -> None:
        """Close the handle: its callbacks are not called again. Closing twice does nothing."""
        raise NotImplementedError

    @property
    def closed(self) -> bool:
        """Whether the handle is closed, or its loop has ended."""
        return self._slot < 0

    def ref(self) -> None:
        """Let the loop run on while this handle is open: how every handle begins."""
        lib.pa_ref(self._loop.c, self._handle_slot(), True)

    def unref(self) -> None:
        """Let the loop end although this handle is open (libuv's ``uv_unref``)."""
        lib.pa_ref(self._loop.c, self._handle_slot(), False)

    @property
    def has_ref(self) -> bool:
        """Whether the handle keeps the loop running."""
        return bool(lib.pa_has_ref(self._loop.c, self._handle_slot()))

    def _enter(self) -> bool:
        """Check the thread; return whether the loop still runs."""
        loop = self._loop
        if loop.thread is None:
            return False
        loop.check_thread()
        return True

    def _open_slot(self) -> int:
        self._loop.check_thread()
        if self.closed:
            raise self._closed_error(f"{type(self).__name__} is closed")
        return self._slot

    def _handle_slot(self) -> int:
        """Return the slot of an open handle that C knows."""
        return self._open_slot()

    # Called by the loop

    def _on_event(self, kind: int, value: int, data: int) -> None:
        raise NotImplementedError

    def _on_closed(self) -> None:
        """Take notice that the handle's memory is gone, and its slot about to be."""

    def _on_loop_end(self) -> None:
        raise NotImplementedError


class DescriptorHandle(Handle):
    """A handle that has a descriptor."""

    __slots__ = ()

    def fileno(self) -> int:
        """Return the descriptor, which stays pyasync's. Raises `SocketClosed`."""
        return check(lib.pa_fileno(self._loop.c, self._handle_slot()))


class CHandle(Handle):
    """A handle of which a program has few: it keeps its own loop and event callback."""

    __slots__ = ("__weakref__", "_event_cb", "_loop", "_slot")

    _state = 0  # see Stream

    def __init__(self, loop: Engine, slot: int, event_cb: Any) -> None:
        self._loop = loop
        self._slot = slot
        self._event_cb = event_cb
        loop.register(slot, self)

    def close(self) -> None:
        if self._slot >= 0 and self._enter():
            self._loop.submit()
            # Forgotten first: a signal's handler may raise between the two.
            slot, self._slot = self._slot, -1
            lib.pa_close(self._loop.c, slot, 1)

    def _on_loop_end(self) -> None:
        self._slot = -1


class PythonHandle(Handle):
    """A handle of which C knows nothing. While it is referenced, the loop runs on for it."""

    __slots__ = ("__weakref__", "_event_cb", "_loop", "_referenced", "_slot")

    #: By what name it is counted: a key of Loop._python_handles.
    _kind: str

    def __init__(self, loop: Engine, event_cb: Any) -> None:
        self._loop = loop
        self._slot = 0  # as long as it is open
        self._event_cb = event_cb
        self._referenced = True
        loop.python_handles[self._kind][self] = None
        loop.keep_alive()

    def close(self) -> None:
        if self._slot >= 0 and self._enter():
            self._slot = -1
            self._loop.python_handles[self._kind].pop(self, None)
            if self._referenced:
                self._loop.let_end()

    def ref(self) -> None:
        self._open_slot()
        if not self._referenced:
            self._referenced = True
            self._loop.keep_alive()

    def unref(self) -> None:
        self._open_slot()
        if self._referenced:
            self._referenced = False
            self._loop.let_end()

    @property
    def has_ref(self) -> bool:
        self._open_slot()
        return self._referenced

    @property
    def _active(self) -> bool:
        """Whether something can happen to it now."""
        return True

    def _call(self, callback: Callable[..., object], *arguments: Any) -> None:
        """Call a function of the user's, and blame on this handle what it raises."""
        try:
            callback(*arguments)
        except Exception as error:
            self._loop.on_error(error, self)

    def _on_loop_end(self) -> None:
        self._slot = -1
