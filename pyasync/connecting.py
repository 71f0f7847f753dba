"""Connecting to a name: Happy Eyeballs (RFC 8305).

The addresses of the name are tried in turn, families interleaved. Each has 250 ms for itself, then
the next one is tried beside it; the first that answers wins, and the others are closed.
"""

from __future__ import annotations

import errno
from typing import Any

from pyasync._ffi import ffi, lib
from pyasync.addresses import NumericAddress, pack_address
from pyasync.dns import Lookup
from pyasync.errors import SocketError, message, socket_error
from pyasync._core.deadlines import Timer, background_timer

#: RFC 8305, section 5: Connection Attempt Delay, in seconds.
ATTEMPT_DELAY = 0.25


def interleave(addresses: list[NumericAddress]) -> list[NumericAddress]:
    """Return the addresses with families in turn, the first one's first (RFC 8305, section 4)."""
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
    """Connects a socket that has no handle yet, and hands it the handle that has connected."""

    def __init__(self, socket: Any, host: str, port: int, local: tuple[str | None, int]) -> None:
        self.socket = socket
        self.loop = socket._loop
        self.host = host
        self.port = port
        self.local = local
        self.addresses: list[NumericAddress] = []
        self.attempts: list[Attempt] = []
        self.failures: list[tuple[str, int]] = []
        self.timer: Timer | None = None
        self.lookup: Lookup | None = Lookup(self.loop, host, 0, self._on_found, self._on_not_found)

    def close(self) -> None:
        """Give up, and call nothing any more."""
        if self.lookup is not None:
            self.lookup.close()
        if self.timer is not None:
            self.timer.stop()
        for attempt in self.attempts:
            attempt.close()
        self.attempts.clear()
        self.addresses.clear()

    def _on_not_found(self, error: Exception) -> None:
        self.lookup = None
        self.socket._fail_with(error)

    def _on_found(self, addresses: list[NumericAddress]) -> None:
        self.lookup = None
        self.addresses = interleave(addresses)
        self._try_next()

    def _try_next(self) -> None:
        if self.timer is not None:
            self.timer.stop()
            self.timer = None
        while self.addresses:
            _, address = self.addresses.pop(0)
            try:
                slot = connect(self.loop, address, self.port, self.local)
            except ValueError:  # an interface that was there is gone
                slot = -errno.ENODEV
            if slot < 0:  # a local address of the other family, or one that cannot be bound
                self.failures.append((address, slot))
                continue
            self.attempts.append(Attempt(self, slot, address))
            if self.addresses:
                self.timer = background_timer(self.loop, self._try_next, ATTEMPT_DELAY)
            return
        if not self.attempts:
            self.socket._fail_with(self._error())

    def _error(self) -> SocketError:
        tried = "; ".join(
            f"{address} port {self.port}: {message(status)}" for address, status in self.failures
        )
        status = self.failures[0][1] if self.failures else -errno.EADDRNOTAVAIL
        return socket_error(status, detail=f"cannot connect to {self.host}: {tried}")

    def on_connected(self, attempt: Attempt, status: int) -> None:
        """Take note that an attempt has connected, or failed."""
        if attempt not in self.attempts:
            return  # it was closed in this batch
        self.attempts.remove(attempt)
        if status != 0:
            attempt.close()
            self.failures.append((attempt.address, status))
            self._try_next()
            return
        self.close()
        self.socket._on_slot(attempt.slot)
        self.socket._begin_connected()


class Attempt:
    """A connection that is being tried: what the loop knows its slot by."""

    _state = -1  # not a Stream's; nothing of it is read
    _event_cb = None

    def __init__(self, connector: Connector, slot: int, address: str) -> None:
        self.connector = connector
        self.slot = slot
        self.address = address
        connector.loop.register(slot, self)

    def close(self) -> None:
        self.connector.loop.queue((lib.PA_CLOSE, self.slot, 1, b"", None))

    def _on_event(self, kind: int, value: int, data: int) -> None:
        if kind == lib.PA_CONNECTED:
            self.connector.on_connected(self, value)

    def _on_read(self, arena: Any, start: int, end: int) -> None:
        pass

    def _on_closed(self) -> None:
        pass

    def _on_loop_end(self) -> None:
        pass


def connect(loop: Any, address: str, port: int, local: tuple[str | None, int]) -> int:
    """Begin to connect to a numeric address; return the slot, or libuv's error.

    Raises `ValueError` if there is no interface of an address's zone.
    """
    host, local_port = local
    packed = ffi.NULL if host is None else pack_address(host, local_port)
    slot: int = lib.pa_tcp_connect(loop.c, pack_address(address, port), packed)
    return slot
