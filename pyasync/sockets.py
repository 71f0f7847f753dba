"""Sockets of every kind: what clients have beside a stream, and servers."""

from __future__ import annotations

import errno
import socket as sockets
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any

from pyasync._ffi import lib
from pyasync.errors import (
    SocketAcceptError,
    SocketClosed,
    check,
    message,
    socket_error,
)
from pyasync.handles import DescriptorHandle, PlainHandle
from pyasync.stream_state import (
    CLOSED,
    CONNECTING,
    LIMITED,
    RARE,
    READ_DISABLED,
    SHUT,
    UNCONNECTED,
    WRITE_DISABLED,
    Settings,
)
from pyasync.streams import Stream
from pyasync.timeouts import time_out
from pyasync.timers import Event, background_timer

#: Out of descriptors or memory, a server tries again after this time, in seconds,
ACCEPT_RETRY = 0.1
#: and tells its event_cb at most once in this time.
ACCEPT_REPORT = 1.0


class Named(DescriptorHandle):
    """A handle with a socket that has names and options."""

    __slots__ = ()

    @contextmanager
    def _socket(self) -> Iterator[sockets.socket]:
        """Lend a socket object on the handle's own descriptor."""
        sock = sockets.socket(fileno=self.fileno())
        sock.setblocking(False)  # PyPy has just made it block
        try:
            yield sock
        except OSError as error:
            raise socket_error(-(error.errno or errno.EIO), self) from None
        finally:
            sock.detach()

    @property
    def peername(self) -> Any:
        """The peer's address, as `socket.socket.getpeername` gives it."""
        with self._socket() as sock:
            return sock.getpeername()

    @property
    def sockname(self) -> Any:
        """The socket's own address, as `socket.socket.getsockname` gives it."""
        with self._socket() as sock:
            return sock.getsockname()


class Socket(Named, Stream):
    """A stream that is a socket: it has names, and may be a client's, still to be connected."""

    __slots__ = ()

    def _connect_to(self, connector: Any, timeout: float | None) -> None:
        """Wait for ``connector``, which calls `_on_slot` and `_on_connected`, or the last."""
        rare = self._need_rare()
        rare.connector = connector
        if timeout is not None:
            rare.connect_timer = background_timer(self._loop, self._connect_timer_fired, timeout)

    def ref(self) -> None:
        """Let the loop run on while this socket is open: how every socket begins."""
        self._reference(True)

    def unref(self) -> None:
        """Let the loop end although this socket is open, once it is connected."""
        self._reference(False)

    def _reference(self, referenced: bool) -> None:
        if self._open_slot() >= 0:
            lib.pa_ref(self._loop.c, self._slot, referenced)
        else:
            self._need_rare().referenced = referenced

    @property
    def has_ref(self) -> bool:
        """Whether the socket keeps the loop running."""
        if self._open_slot() >= 0:
            return bool(lib.pa_has_ref(self._loop.c, self._slot))
        return self._rare is None or self._rare.referenced

    def _handle_slot(self) -> int:
        slot = self._open_slot()
        if slot < 0:
            raise socket_error(-errno.ENOTCONN, self)
        return slot

    # Connecting

    def _before_connecting(self, host: str | None) -> None:
        """Make what is needed for a connection to the host; None: it is connected already."""

    def _on_slot(self, slot: int) -> None:
        """Take a handle, which has connected or begins to."""
        self._slot = slot
        self._loop.register(slot, self)
        self._state = self._state & ~UNCONNECTED | CONNECTING
        if self._rare is not None and not self._rare.referenced:
            lib.pa_ref(self._loop.c, slot, False)
        self._catch_up()

    def _catch_up(self) -> None:
        """Do what the application has asked for while there was no handle."""
        rare, slot = self._rare, self._slot
        ended = self._state & (SHUT | CLOSED)
        if rare is not None and rare.held and (ended or not self._state & WRITE_DISABLED):
            self._release()
        if self._state & SHUT:
            self._loop.queue((lib.PA_SHUTDOWN, slot, 0, b"", None))
        if self._state & CLOSED:
            self._loop.queue((lib.PA_CLOSE, slot, 0, b"", None))

    def _on_connected(self, status: int) -> None:
        if self._state & CLOSED:
            return
        if status != 0:
            assert self._options.remote is not None
            host, port = self._options.remote
            self._fail_with(socket_error(status, detail=f"{host} port {port}"))
            return
        self._established()

    def _established(self) -> None:
        """Take note that the connection stands, and tell."""
        self._state &= ~CONNECTING
        rare = self._rare
        if rare is not None:
            rare.connector = None
            if rare.connect_timer is not None:
                rare.connect_timer.free()
                rare.connect_timer = None
        if self._state & READ_DISABLED:
            self._loop.queue((lib.PA_READ_STOP, self._slot, 0, b"", None))
        self._start_read_timeout()
        if self._options.connect_cb is not None:
            self._options.connect_cb(self)

    def _begin_connected(self) -> None:
        """Be connected, in a callback of the loop's that belongs to something else."""
        try:
            self._on_connected(0)
        except Exception as error:
            self._loop.on_error(error, self)

    def _connect_timer_fired(self) -> None:
        time_out(self, "connecting took too long", force=True)


class Server(PlainHandle, DescriptorHandle):
    """A listening socket, whose connections are streams of one class, with the same settings."""

    __slots__ = ("_address", "_failures", "_reported", "_retry", "_options", "_state_of_new")

    _closed_error = SocketClosed
    _connection: type[Stream]
    _kind: int

    def __init__(self, settings: Settings, sock: sockets.socket, limit: int | None) -> None:
        """Take over a socket that listens. ``limit`` is the greatest number of connections."""
        loop = settings.loop
        self._address = sock.getsockname()
        self._options = settings
        # Zero, unless there is something to do when a connection begins or ends.
        self._state_of_new = LIMITED if limit is not None else 0
        if settings.stream or settings.read_timeout or settings.write_timeout:
            self._state_of_new |= RARE
        self._failures = 0
        self._reported = float("-inf")
        self._retry: Event | None = None
        sock.setblocking(False)
        slot = check(
            lib.pa_listen(loop.c, sock.fileno(), self._kind, -1 if limit is None else limit)
        )
        sock.detach()
        settings.server = self
        super().__init__(loop, slot, settings.event_cb)

    @property
    def address(self) -> Any:
        """The address that the server listens at, as `socket.socket.getsockname` gives it."""
        return self._address

    def close(self) -> None:
        """Stop accepting, and free the address. Connections stay open. Closing twice is fine."""
        super().close()
        if self._retry is not None:
            self._retry.free()

    # Called by the loop

    def _on_accepted(self, slot: int) -> None:
        settings = self._options
        stream = self._connection(settings, slot, self._state_of_new)
        objects = self._loop.objects
        if slot < len(objects):
            objects[slot] = stream
        else:
            self._loop.register(slot, stream)
        if self._state_of_new & RARE:
            stream._begin()
        if settings.connect_cb is not None:
            settings.connect_cb(stream)

    def _on_connection_closed(self) -> None:
        if self._slot >= 0:
            self._loop.queue((lib.PA_ACCEPT, self._slot, 1, b"", None))

    def _on_event(self, kind: int, value: int, data: int) -> None:
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
            self._loop.report(self, error, self)

    def _accept_again(self) -> None:
        self._loop.queue((lib.PA_ACCEPT, self._slot, 0, b"", None))
