"""Listening sockets: accepting, limits, and trying again when descriptors have run out.

C accepts by itself, because ``uv_listen`` hides the errors of accept(2): see docs/inside/design.md.
"""

from __future__ import annotations

import socket as sockets
from typing import Any

from pyasync._core.addresses import SocketName
from pyasync._core.clock import monotonic
from pyasync._core.deadlines import Timer
from pyasync._core.handles import CHandle, ClosedHandle
from pyasync._core.sockets import SocketHandle, name_text
from pyasync._core.stream import HAS_EXTRAS, LIMITED
from pyasync._ffi import lib
from pyasync.errors import EventError, SocketAcceptError, SocketClosed, check, message

#: A server that is out of descriptors or memory tries again after this time, in seconds.
ACCEPT_RETRY = 0.1
#: A server reports that it cannot accept at most once in this time, in seconds.
ACCEPT_REPORT = 1.0


class Listener(CHandle, SocketHandle):
    """A listening socket, whose connections share one options object."""

    __slots__ = ("_address", "_failures", "_options", "_reported", "_retry", "_state_of_new")

    _closed_error = SocketClosed
    _kind: int

    def __init__(self, options: Any, sock: sockets.socket, limit: int | None) -> None:
        """Take over a listening socket. ``limit`` is the greatest number of open connections."""
        loop = options.loop
        self._address = sock.getsockname()
        self._options = options
        # Zero unless something must be done when a connection begins or ends: the engine delivers
        # data of a connection whose state is zero by itself, and closes it without a call.
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
        sock.detach()  # C owns the descriptor now; before, the caller closes it if this raises
        options.server = self
        super().__init__(loop, slot, options.event_cb)

    @property
    def address(self) -> SocketName:
        """The address at which the server listens, from `socket.socket.getsockname`."""
        address: SocketName = self._address
        return address

    def _state_text(self) -> str:
        return "closed" if self.closed else "listening"

    def _names_text(self, known: bool) -> list[str]:
        return [name_text(self._address)]

    def close(self) -> None:
        """Stop accepting, and free the address. Connections stay open. Closing twice is fine."""
        super().close()
        if self._retry is not None:
            self._retry.stop()

    # Called by the loop

    def _on_accepted(self, slot: int, address: int) -> None:
        try:
            stream = self._make_connection(slot, address)
        except BaseException:
            self._refuse(slot)
            raise
        objects = self._loop.objects
        if slot < len(objects):
            objects[slot] = stream
        else:
            self._loop.register(slot, stream)
        if self._state_of_new & HAS_EXTRAS:
            stream._begin()
        self._begin_connection(stream)

    def _refuse(self, slot: int) -> None:
        """Close a connection that has no object: nobody else knows that it is open."""
        self._loop.register(slot, ClosedHandle())
        self._loop.queue((lib.PA_CLOSE, slot, 1, b"", None))

    def _begin_connection(self, stream: Any) -> None:
        """Begin a connection that has its slot, and report it."""
        stream._report_opened()

    def _make_connection(self, slot: int, address: int) -> Any:
        """Return the stream of a connection that has been accepted: for an API to override.

        ``address`` is the peer's, for `Engine.unpack_address`.
        """
        raise NotImplementedError

    def _connection_closed(self) -> None:
        """Let C accept one connection more, in place of the one that is gone."""
        if self._slot >= 0:
            self._loop.queue((lib.PA_ACCEPT, self._slot, 1, b"", None))

    def _on_event(self, kind: int, value: int, data: int) -> None:
        """Take PA_ACCEPT_ERROR: the server cannot accept, and C has stopped polling it.

        Polling on would take all of a processor, because the socket stays readable while a
        connection waits.
        """
        if self._slot < 0:
            return
        if self._retry is None:
            self._retry = Timer(self._loop, self._accept_again)
        self._retry.start(ACCEPT_RETRY)
        self._failures += 1
        if monotonic() - self._reported >= ACCEPT_REPORT:
            self._reported = monotonic()
            error = SocketAcceptError(-value, message(value))
            error.server = self  # type: ignore[assignment]  # of the API
            error.count, self._failures = self._failures, 0
            self._report_error(error)

    def _report_error(self, error: EventError) -> None:
        """Report that no connection can be accepted for now: for an API to override."""

    def _accept_again(self) -> None:
        # 0 more connections: C polls again, and its limit is as before.
        self._loop.queue((lib.PA_ACCEPT, self._slot, 0, b"", None))
