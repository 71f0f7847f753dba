"""Listening sockets: accepting, limits, and trying again when descriptors have run out."""

from __future__ import annotations

import socket as sockets
from time import monotonic
from typing import Any

from pyasync._core.deadlines import Timer
from pyasync._core.handles import CHandle, DescriptorHandle
from pyasync._core.stream import HAS_EXTRAS, LIMITED
from pyasync._ffi import lib
from pyasync.errors import EventError, SocketAcceptError, SocketClosed, check, message

#: Out of descriptors or memory, a server tries again after this time, in seconds,
ACCEPT_RETRY = 0.1
#: and reports it at most once in this time.
ACCEPT_REPORT = 1.0


class Listener(CHandle, DescriptorHandle):
    """A listening socket, whose connections share one options object."""

    __slots__ = ("_address", "_failures", "_options", "_reported", "_retry", "_state_of_new")

    _closed_error = SocketClosed
    _kind: int

    def __init__(self, options: Any, sock: sockets.socket, limit: int | None) -> None:
        """Take over a socket that listens. ``limit`` is the greatest number of connections."""
        loop = options.loop
        self._address = sock.getsockname()
        self._options = options
        # Zero, unless there is something to do when a connection begins or ends.
        self._state_of_new = LIMITED if limit is not None else 0
        if options.needs_begin:
            self._state_of_new |= HAS_EXTRAS
        self._failures = 0
        self._reported = float("-inf")
        self._retry: Timer | None = None
        sock.setblocking(False)
        slot = check(
            lib.pa_listen(loop.c, sock.fileno(), self._kind, -1 if limit is None else limit)
        )
        sock.detach()
        options.server = self
        super().__init__(loop, slot, options.event_cb)

    @property
    def address(self) -> Any:
        """The address that the server listens at, as `socket.socket.getsockname` gives it."""
        return self._address

    def close(self) -> None:
        """Stop accepting, and free the address. Connections stay open. Closing twice is fine."""
        super().close()
        if self._retry is not None:
            self._retry.stop()

    # Called by the loop

    def _on_accepted(self, slot: int, address: int) -> None:
        stream = self._make_connection(slot, address)
        objects = self._loop.objects
        if slot < len(objects):
            objects[slot] = stream
        else:
            self._loop.register(slot, stream)
        if self._state_of_new & HAS_EXTRAS:
            stream._begin()
        stream._report_opened()

    def _make_connection(self, slot: int, address: int) -> Any:
        """Return the stream of a connection that has been accepted: for an API to say.

        `Engine.unpack_address` tells what ``address`` is.
        """
        raise NotImplementedError

    def _connection_closed(self) -> None:
        if self._slot >= 0:
            self._loop.queue((lib.PA_ACCEPT, self._slot, 1, b"", None))

    def _on_event(self, kind: int, value: int, data: int) -> None:
        """Take PA_ACCEPT_ERROR: the server cannot accept, and has paused."""
        if self._slot < 0:
            return
        if self._retry is None:
            self._retry = Timer(self._loop, self._accept_again)
        self._retry.start(ACCEPT_RETRY)
        self._failures += 1
        if monotonic() - self._reported >= ACCEPT_REPORT:
            self._reported = monotonic()
            error = SocketAcceptError(-value, message(value))
            error.server = self
            error.count, self._failures = self._failures, 0
            self._report_error(error)

    def _report_error(self, error: EventError) -> None:
        """Take notice that connections cannot be accepted for now: for an API to override."""

    def _accept_again(self) -> None:
        self._loop.queue((lib.PA_ACCEPT, self._slot, 0, b"", None))
