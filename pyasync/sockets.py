"""Servers of every kind: they accept connections, and outlive whatever goes wrong with one."""

from __future__ import annotations

import socket as sockets
from time import monotonic
from typing import Any

from pyasync._ffi import lib
from pyasync.errors import SocketAcceptError, SocketClosed, check, message
from pyasync.handles import PlainHandle
from pyasync.streams import LIMITED, RARE, Settings, Stream
from pyasync.timers import Event

#: Out of descriptors or memory, a server tries again after this time, in seconds,
ACCEPT_RETRY = 0.1
#: and tells its event_cb at most once in this time.
ACCEPT_REPORT = 1.0


class Server(PlainHandle):
    """A listening socket, whose connections are streams of one class, with the same settings."""

    __slots__ = ("_address", "_failures", "_reported", "_retry", "_settings", "_state_of_new")

    _closed_error = SocketClosed
    _connection: type[Stream]
    _kind: int

    def __init__(self, settings: Settings, sock: sockets.socket, limit: int | None) -> None:
        """Take over a socket that listens. ``limit`` is the greatest number of connections."""
        loop = settings.loop
        self._address = sock.getsockname()
        self._settings = settings
        # Zero, unless there is something to do when a connection begins or ends.
        self._state_of_new = LIMITED if limit is not None else 0
        if settings.read_timeout is not None or settings.write_timeout is not None:
            self._state_of_new |= RARE
        self._failures = 0
        self._reported = float("-inf")
        self._retry: Event | None = None
        sock.setblocking(False)
        slot = check(
            lib.pa_listen(loop._c, sock.fileno(), self._kind, -1 if limit is None else limit)
        )
        sock.detach()
        settings.server = self
        super().__init__(loop, slot, settings.event_cb)

    @property
    def address(self) -> Any:
        """The address that the server listens at, as `socket.socket.getsockname` gives it."""
        return self._address

    def fileno(self) -> int:
        """Return the listening descriptor, which stays pyasync's. Raises `SocketClosed`."""
        return check(lib.pa_fileno(self._loop._c, self._open_slot()))

    def close(self) -> None:
        """Stop accepting, and free the address. Connections stay open. Closing twice is fine."""
        super().close()
        if self._retry is not None:
            self._retry.free()

    # Called by the loop

    def _on_accepted(self, slot: int) -> None:
        settings = self._settings
        stream = self._connection(settings, slot, self._state_of_new)
        objects = self._loop._objects
        if slot < len(objects):
            objects[slot] = stream
        else:
            self._loop._register(slot, stream)
        if self._state_of_new:
            stream._begin()
        if settings.connect_cb is not None:
            settings.connect_cb(stream)

    def _on_connection_closed(self) -> None:
        if self._slot >= 0:
            self._loop._queue((lib.PA_ACCEPT, self._slot, 1))

    def _on_event(self, kind: int, value: int) -> None:
        """Take PA_ACCEPT_ERROR: the server cannot accept, and has paused."""
        if self._slot < 0:
            return
        if self._retry is None:
            self._retry = Event(self._loop, self._accept_again)
        self._retry.add(ACCEPT_RETRY)
        self._failures += 1
        if monotonic() - self._reported >= ACCEPT_REPORT:
            self._reported = monotonic()
            error = SocketAcceptError(-value, message(value))
            error.server = self
            error.count, self._failures = self._failures, 0
            self._loop._tell(self, error, self)

    def _accept_again(self) -> None:
        self._loop._queue((lib.PA_ACCEPT, self._slot, 0))
