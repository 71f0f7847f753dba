"""The base of all handles.

C owns a handle's memory. Python knows the handle by its slot. The loop refers to the Python object
until C's closed record, so an open handle works on when its user has dropped it.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import get_ident
from typing import Any

from pyasync._core.engine import CLOSED, Engine
from pyasync._ffi import lib
from pyasync.errors import HandleClosed, check


class Handle:
    """An open thing of an event loop; while it is referenced it keeps the loop running."""

    __slots__ = ()

    _loop: Engine
    #: The number by which C knows the handle; -1 when it is closed.
    _slot: int
    _event_cb: Any

    #: Raised by a call on a closed handle.
    _closed_error: type[HandleClosed] = HandleClosed

    def close(self) -> None:
        """Close the handle: its callbacks are not called again. Closing twice does nothing."""
        raise NotImplementedError

    @property
    def closed(self) -> bool:
        """Whether the handle is closed, or its loop has ended."""
        return self._slot < 0

    def ref(self) -> None:
        """Let the handle keep the loop running while it is open, as it does from the start."""
        lib.pa_ref(self._loop.c, self._handle_slot(), True)

    def unref(self) -> None:
        """Let the loop end although this handle is open (libuv's ``uv_unref``)."""
        lib.pa_ref(self._loop.c, self._handle_slot(), False)

    @property
    def has_ref(self) -> bool:
        """Whether the handle keeps the loop running."""
        return bool(lib.pa_has_ref(self._loop.c, self._handle_slot()))

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
        """Let go of the handle, whose memory is freed: its slot will be another handle's."""

    def _on_loop_end(self) -> None:
        raise NotImplementedError


class DescriptorHandle(Handle):
    """A handle that has a descriptor."""

    __slots__ = ()

    def __repr__(self) -> str:
        """Tell the state, the descriptor, and the addresses if there are any; it never raises."""
        parts = [type(self).__name__, self._state_text()]
        loop, slot = self._loop, self._slot
        # In the loop's thread only, and while the slot is this handle's.
        known = loop.thread == get_ident() and slot >= 0 and loop.objects[slot] is self
        descriptor = lib.pa_fileno(loop.c, slot) if known else -1
        if descriptor >= 0:  # libuv closes it before it tells that the handle is closed
            parts.append(f"fd={descriptor}")
        return "<{}>".format(" ".join(parts + self._names_text(known)))

    def _state_text(self) -> str:
        """Return the state in a word or two, for the repr."""
        return "closed" if self.closed else "open"

    def _names_text(self, known: bool) -> list[str]:
        """Return the addresses for the repr. ``known``: C knows the handle, and may be asked."""
        return []

    def fileno(self) -> int:
        """Return the descriptor, which stays pyasync's to close. Raises `SocketClosed`."""
        return check(lib.pa_fileno(self._loop.c, self._handle_slot()))


class CHandle(Handle):
    """A handle that C knows, of a kind of which programs have few.

    It has fields for its loop and its event callback, which streams share in their options.
    """

    __slots__ = ("__weakref__", "_event_cb", "_loop", "_slot")

    _state = 0  # of the contract in Engine; these kinds get no PA_READ

    def __init__(self, loop: Engine, slot: int, event_cb: Any) -> None:
        self._loop = loop
        self._slot = slot
        self._event_cb = event_cb
        loop.register(slot, self)

    def close(self) -> None:
        if self._slot >= 0 and self._loop.may_change():
            self._loop.submit()  # operations that were queued before come first
            # Forgotten first: a signal handler may raise between the two lines. Then C's handle
            # stays open until the loop ends; a second pa_close could hit the slot's next handle.
            slot, self._slot = self._slot, -1
            lib.pa_close(self._loop.c, slot, 1)

    def _on_loop_end(self) -> None:
        self._slot = -1


class ClosedHandle:
    """Stands for a handle without an object of its own: it is closed, or still connecting."""

    _state = CLOSED
    _event_cb = None

    def _on_read(self, arena: Any, start: int, end: int) -> None:
        """Drop the data."""

    def _on_event(self, kind: int, value: int, data: int) -> None:
        """Drop the record."""

    def _on_loop_end(self) -> None:
        """Nobody is to be told."""


class PythonHandle(Handle):
    """A handle that C does not know. While it is referenced, it keeps the loop running."""

    __slots__ = ("__weakref__", "_event_cb", "_loop", "_slot")

    #: The name under which it is counted: a key of Engine.python_handles.
    _kind: str

    def __init__(self, loop: Engine, event_cb: Any) -> None:
        self._loop = loop
        self._slot = 0  # open: any number that is not negative
        self._event_cb = event_cb
        loop.python_handles[self._kind][self] = None
        loop.keep_alive(self)

    def close(self) -> None:
        if self._slot >= 0 and self._loop.may_change():
            self._slot = -1
            self._loop.python_handles[self._kind].pop(self, None)
            self._loop.let_end(self)

    def ref(self) -> None:
        self._open_slot()
        self._loop.keep_alive(self)
        if self._slot < 0:  # closed by a signal handler meanwhile
            self._loop.let_end(self)

    def unref(self) -> None:
        self._open_slot()
        self._loop.let_end(self)

    @property
    def has_ref(self) -> bool:
        self._open_slot()
        return self._referenced

    @property
    def _referenced(self) -> bool:
        return self in self._loop._wakeup.holds

    @property
    def _active(self) -> bool:
        """Whether it is active, for `dump_event_loop_status`."""
        return True

    def _call(self, callback: Callable[..., object], *arguments: Any) -> None:
        """Call a callback; its exception is reported with this handle as the owner."""
        try:
            callback(*arguments)
        except Exception as error:
            self._loop.on_error(error, self)

    def _on_loop_end(self) -> None:
        self._slot = -1
