"""Connecting: a stream that may be a client's, and Happy Eyeballs (RFC 8305) for names.

The addresses of the name are tried in turn, families interleaved. Each has 250 ms for itself; then
the next one is tried beside it. The first connection that stands wins, and the others are closed.
"""

from __future__ import annotations

import errno
import socket as sockets
from collections import deque
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

from pyasync._core.addresses import NumericAddress, pack_address
from pyasync._core.deadlines import Timer, background_timer
from pyasync._core.engine import CLOSED
from pyasync._core.handles import ClosedHandle
from pyasync._core.pool_requests import Lookup
from pyasync._core.sockets import PEERNAME, SOCKNAME, PeerHandle, join_names
from pyasync._core.stream import (
    CONNECTING,
    READ_DISABLED,
    SENDING_FILE,
    SHUT,
    UNCONNECTED,
    WRITE_DISABLED,
    Stream,
    pop_first,
)
from pyasync._core.stream_extras import report_timeout
from pyasync._ffi import ffi, lib
from pyasync.errors import EventError, SocketError, message, socket_error

#: RFC 8305, section 5: Connection Attempt Delay, in seconds.
ATTEMPT_DELAY = 0.25


#: The names of sockets that were asked for one of them, or that report their close: (peer's, own).
#: Here, because a field for them would make every connection larger.
_names: WeakKeyDictionary[Socket, tuple[Any, Any]] = WeakKeyDictionary()


class Socket(PeerHandle, Stream):
    """A stream that is a socket: it has addresses, and may be a client's, not connected yet."""

    __slots__ = ()

    def _connect_to(self, connector: Any, timeout: float | None) -> None:
        """Wait for ``connector``: it calls `_on_slot` and `_begin_connected`, or `_fail_with`.

        None: the handle is connecting already, and C reports PA_CONNECTED. ``timeout`` is in
        seconds.
        """
        extras = self._need_extras()
        extras.connector = connector
        if timeout is not None:

            def fired() -> None:
                reason = f"connecting to {self._target()} took longer than {timeout:g} seconds"
                report_timeout(self, reason, force=True)

            extras.connect_timer = background_timer(self._loop, fired, timeout)

    def _target(self) -> str:
        """Return what is connected to, for a message."""
        assert self._options.remote is not None
        host, port = self._options.remote
        return f"{host} port {port}"

    def ref(self) -> None:
        """Let the socket keep the loop running while it is open, as it does from the start."""
        self._reference(True)

    def unref(self) -> None:
        """Let the loop end although this socket is open (libuv's ``uv_unref``).

        Before it is connected the loop still waits for the connection.
        """
        self._reference(False)

    def _reference(self, referenced: bool) -> None:
        if self._open_slot() >= 0:
            lib.pa_ref(self._loop.c, self._slot, referenced)
        else:  # no handle yet: _on_slot applies it
            self._need_extras().referenced = referenced

    @property
    def has_ref(self) -> bool:
        """Whether the socket keeps the loop running."""
        if self._open_slot() >= 0:
            return bool(lib.pa_has_ref(self._loop.c, self._slot))
        return self._extras is None or self._extras.referenced

    def _handle_slot(self) -> int:
        slot = self._open_slot()
        if slot < 0:
            raise socket_error(-errno.ENOTCONN, self)
        return slot

    # Options

    def fileno(self) -> int:
        """Return the descriptor, which stays pyasync's to close; -1: there is none yet.

        Raises `SocketClosed`.
        """
        return -1 if self._open_slot() < 0 else super().fileno()

    def _store_option(self, level: int, option: int, value: bytes) -> None:
        if self._open_slot() < 0:  # `_apply_options` sets it
            self._need_extras().socket_options += ((level, option, value),)
        else:
            super()._store_option(level, option, value)

    def _load_option(self, level: int, option: int, size: int) -> bytes:
        if self._open_slot() < 0 and self._extras is not None:
            for *which, value in reversed(self._extras.socket_options):
                if which == [level, option]:
                    return bytes(value[:size])
        return super()._load_option(level, option, size)

    # Names

    def _name(self, which: int) -> Any:
        if self.closed:
            names = _names.get(self, ())
            if which < len(names) and names[which] is not None:
                return names[which]
        name = super()._name(which)
        self._keep_names()
        return name

    def _names_text(self, known: bool) -> list[str]:
        kept = _names.get(self)
        return super()._names_text(known) if kept is None else join_names(kept[1], kept[0])

    def _keep_names(self) -> None:
        if self._slot >= 0 and self not in _names:
            _names[self] = (self._find_name(PEERNAME), self._find_name(SOCKNAME))

    # Connecting

    def _before_connecting(self, host: str | None) -> None:
        """Prepare for a connection to the host; None: a connected descriptor was adopted."""

    def _on_slot(self, slot: int) -> None:
        """Take a handle that is connected or connecting."""
        self._slot = slot
        self._loop.register(slot, self)
        self._state |= CONNECTING
        if self._extras is not None and not self._extras.referenced:
            lib.pa_ref(self._loop.c, slot, False)
        if self._extras is not None and self._extras.socket_options:
            self._apply_options(self._extras.socket_options)
        self._catch_up()
        self._state &= ~UNCONNECTED

    def _apply_options(self, options: tuple[tuple[int, int, bytes], ...]) -> None:
        """Set the options that were set before there was a socket."""
        for level, option, value in options:
            error = lib.pa_setsockopt(self._loop.c, self._slot, level, option, value, len(value))
            if error < 0:  # not now, because event_cb must not run inside a call of connecting
                self._loop.ready.append(partial(self._fail_with, socket_error(error, self)))

    def _catch_up(self) -> None:
        """Perform the calls that the application made while there was no handle.

        In this order: C performs operations in the order of the queue, and writes nothing behind
        a shutdown or a close.
        """
        extras = self._extras
        ended = self._state & (SHUT | CLOSED)
        if extras is not None and extras.deferred:
            if ended or not self._state & WRITE_DISABLED:
                self._stop_deferring(UNCONNECTED)
            else:
                self._flush_to_barrier()
        if not self._state & SENDING_FILE:
            self._end_writing()

    def _on_connected(self, status: int) -> None:
        # C does not know that it was closed, if there is a file to be sent before.
        if self._state & CLOSED and (status == 0 or not self._state & SENDING_FILE):
            return
        if status != 0:
            self._fail_with(socket_error(status, detail=self._target()))
            return
        self._established()

    def _established(self) -> None:
        """End the state of connecting, as the connection stands, and report it."""
        self._state &= ~CONNECTING
        extras = self._extras
        if extras is not None:
            extras.connector = None
            extras.stop_connect_timer()
        if self._state & READ_DISABLED:  # disabled while connecting; C has begun to read now
            self._loop.queue((lib.PA_READ_STOP, self._slot, 0, b"", None))
        self._start_read_timeout()
        self._report_opened()

    def _begin_connected(self) -> None:
        """Report the connection from a timer's or an attempt's callback.

        An error must be blamed on this stream: the caller's own handler would blame its owner.
        """
        try:
            self._on_connected(0)
        except Exception as error:
            self._loop.on_error(error, self)


def interleave(addresses: list[NumericAddress]) -> list[NumericAddress]:
    """Return the addresses with families alternating, from the first's (RFC 8305, section 4)."""
    if not addresses:
        return []
    first = [address for address in addresses if address[0] == addresses[0][0]]
    other = [address for address in addresses if address[0] != addresses[0][0]]
    result = []
    while first or other:
        result += first[:1] + other[:1]
        first, other = first[1:], other[1:]
    return result


class Connector:
    """Connects a socket that has no handle yet, and gives it the slot of the winning attempt."""

    def __init__(self, socket: Any, host: str, port: int, local: tuple[str | None, int]) -> None:
        self.socket = socket
        self.loop = socket._loop
        self.host = host
        self.port = port
        self.local = local
        self.addresses: deque[NumericAddress] = deque()
        self.attempts: list[Attempt] = []
        self.failures: list[tuple[str, int]] = []
        self.timer: Timer | None = None
        self.closed = False
        self.lookup: Lookup | None = Lookup(
            self.loop, host, sockets.AF_UNSPEC, self._on_found, self._on_not_found
        )

    def close(self) -> None:
        """Stop the lookup, the timer and all attempts; nothing is called after this."""
        # New lists, because a signal handler may close it while the old ones are walked.
        self.closed, self.addresses = True, deque()
        attempts, self.attempts = self.attempts, []
        lookup, timer = self.lookup, self.timer
        if lookup is not None:
            lookup.close()
        if timer is not None:
            timer.stop()
        for attempt in attempts:
            attempt.close()

    def _on_not_found(self, error: EventError) -> None:
        self.lookup = None
        self.socket._fail_with(error)

    def _on_found(self, addresses: list[NumericAddress]) -> None:
        self.lookup = None
        self.addresses = deque(interleave(addresses))
        self._try_next()

    def _try_next(self) -> None:
        if self.closed:
            return
        timer, self.timer = self.timer, None
        if timer is not None:
            timer.stop()
        while (found := pop_first(self.addresses)) is not None:
            _, address = found
            try:
                slot = connect(self.loop, address, self.port, self.local)
            except ValueError:  # the zone's interface has gone since the lookup
                slot = -errno.ENODEV
            if slot < 0:  # such as a local address of the other family
                self.failures.append((address, slot))
                continue
            self.attempts.append(Attempt(self, slot, address))
            if self.closed:  # by a signal handler, and the attempt came after that
                self.close()
            elif self.addresses:  # the Connection Attempt Delay begins with each attempt
                self.timer = background_timer(self.loop, self._try_next, ATTEMPT_DELAY)
            return
        if not self.attempts and not self.closed:
            self.socket._fail_with(self._error())

    def _error(self) -> SocketError:
        tried = "; ".join(
            f"{address} port {self.port}: {message(status)}" for address, status in self.failures
        )
        status = self.failures[0][1] if self.failures else -errno.EADDRNOTAVAIL
        return socket_error(status, detail=f"cannot connect to {self.host}: {tried}")

    def on_connected(self, attempt: Attempt, status: int) -> None:
        """Take the result of an attempt: 0, or libuv's error."""
        try:
            self.attempts.remove(attempt)  # before self.close(), which would close the winner too
        except ValueError:
            return  # closed by an earlier record of this batch: another attempt has won
        if status != 0:
            attempt.close()
            self.failures.append((attempt.address, status))
            self._try_next()
            return
        self.close()
        # Here the slot gets another object: its records go to the socket from now on.
        self.socket._on_slot(attempt.slot)
        self.socket._begin_connected()


class Attempt(ClosedHandle):
    """A connection that is being tried: the object of its slot until it wins or is closed."""

    def __init__(self, connector: Connector, slot: int, address: str) -> None:
        self.connector = connector
        self.slot = slot
        self.address = address
        connector.loop.register(slot, self)

    def close(self) -> None:
        self.connector.loop.queue((lib.PA_CLOSE, self.slot, 1, b"", None))  # 1: nothing to flush

    def _on_event(self, kind: int, value: int, data: int) -> None:
        if kind == lib.PA_CONNECTED:
            self.connector.on_connected(self, value)


def connect(loop: Any, address: str, port: int, local: tuple[str | None, int]) -> int:
    """Begin to connect to a numeric address; return the slot, or libuv's negative error.

    ``local`` is the address and port to connect from. Raises `ValueError` if the zone of an
    address is no interface.
    """
    host, local_port = local
    remote = pack_address(address, port)
    packed = ffi.NULL
    if host is not None:
        packed = pack_address(host, local_port)
        loop.submit()  # a pending close may free the local address
    may_retry = bool(loop.operations)
    slot: int = lib.pa_tcp_connect(loop.c, remote, packed, may_retry)
    if slot < 0 and may_retry:
        loop.submit()  # a pending close may free a descriptor
        slot = lib.pa_tcp_connect(loop.c, remote, packed, False)
    return slot
