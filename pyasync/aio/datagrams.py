"""UDP sockets of an asyncio program: a transport is the object of its slot (see Engine).

Datagrams are received several at a time, and those that a callback sends leave together, as in the
callback API. Sockets of other families, such as Unix datagrams, are asyncio's own transports.
"""

from __future__ import annotations

import socket as sockets
from asyncio import constants, protocols, selector_events, transports, trsock
from asyncio.log import logger
from contextvars import copy_context
from typing import Any

from pyasync._core.addresses import TO_PEER, AddressFormat, unpack_address
from pyasync._core.datagrams import RECEIVE_RETRY, REMEMBERED
from pyasync._core.engine import INLINE_WRITE_LIMIT
from pyasync._ffi import lib
from pyasync.aio.transports import (
    BLOCKED,
    CLOSING,
    FORCED,
    OPEN,
    PENDING_ITEMS_MAX,
    STARTING,
    TOLD,
    WATER,
    WRITE,
    _os_error,
    hold,
    release,
    settle,
)
from pyasync.aio.versions import SENDS_EMPTY_DATAGRAMS
from pyasync.errors import check

_NOT_PLAIN = CLOSING | STARTING


class DatagramTransport(transports._FlowControlMixin, transports.DatagramTransport):
    """A UDP socket."""

    __slots__ = (
        "__weakref__",
        "_address",
        "_conn_lost",
        "_connected",
        "_context",
        "_engine",
        "_error",
        "_format",
        "_header_size",
        "_peers",
        "_protocol",
        "_slot",
        "_sock",
        "_state",
        "_targets",
    )

    _event_cb = None

    def __init__(
        self, engine: Any, sock: sockets.socket, protocol: Any, address: Any, extra: Any
    ) -> None:
        """Take over a socket. ``address``: of the only peer that it sends to, or None."""
        try:
            peer = sock.getpeername()
        except OSError:
            peer = None
        self._engine = engine
        self._loop = engine.aio
        self._extra = {
            **(extra or {}),
            "socket": trsock.TransportSocket(sock),
            "sockname": sock.getsockname(),
            "peername": peer,
        }
        self._address = address
        self._format = AddressFormat(sock)
        self._header_size = self._format.size
        self._connected = peer is not None
        #: Addresses by their headers, and headers by their addresses.
        self._peers: dict[bytes, Any] = {}
        self._targets: dict[Any, bytes] = {}
        self._state = OPEN | STARTING
        self._context = copy_context()
        self._error: BaseException | None = None
        self._conn_lost = 0
        self._protocol_paused = False
        self._high_water, self._low_water = WATER
        self.set_protocol(protocol)
        engine.submit()
        slot = lib.pa_udp_open(engine.c, sock.fileno())
        if slot < 0:
            sock.detach()  # C has closed it
            check(slot)
        self._slot = slot
        self._sock: sockets.socket | None = hold(sock)
        engine.register(slot, self)

    def __repr__(self) -> str:
        info = [type(self).__name__]
        if self._slot < 0:
            info.append("closed")
        elif self._state & CLOSING:
            info.append("closing")
        if self._sock is not None:
            info.append(f"fd={self._sock.fileno()}")
        return "<{}>".format(" ".join(info))

    def _begin(self, waiter: Any) -> None:
        """Report the socket: in a callback, in the transport's context."""
        try:
            if self._state & STARTING:
                self._state &= ~STARTING
                self._protocol.connection_made(self)
        finally:
            settle(waiter)

    def set_protocol(self, protocol: Any) -> None:
        self._protocol = protocol

    def get_protocol(self) -> protocols.BaseProtocol:
        return self._protocol

    # Sending

    def sendto(self, data: Any, addr: Any = None) -> None:
        if self._state & CLOSING or type(data) is not bytes or not data:
            data = self._check_send(data, addr)
            if data is None:
                return
        try:
            target = self._targets[addr]
        except (KeyError, TypeError):
            found = self._pack(addr)
            if found is None:
                self._send_by_socket(data, addr)
                return
            target = found
        datagram = target + data
        size = len(datagram)
        engine = self._engine
        if size <= INLINE_WRITE_LIMIT:
            engine.queue((WRITE, self._slot, size, datagram, None))
            if len(engine.operations) > PENDING_ITEMS_MAX:
                engine.submit()
                self._check_blocked()
        else:
            engine.write_now(self._slot, datagram, None)
            self._check_blocked()
        if self._state & BLOCKED:
            self._maybe_pause_protocol()

    def _check_blocked(self) -> None:
        """Learn what the kernel refuses: the record comes later, if the program lets it."""
        if lib.pa_udp_send_queue_size(self._engine.c, self._slot):
            self._state |= BLOCKED

    def _check_send(self, data: Any, addr: Any) -> bytes | None:
        """Return the data as bytes; None: there is nothing to send."""
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise TypeError(
                f"data argument must be a bytes-like object, not {type(data).__name__!r}"
            )
        if not data and not SENDS_EMPTY_DATAGRAMS:
            return None
        if self._state & CLOSING:
            self._check_address(addr)
            if self._conn_lost >= constants.LOG_THRESHOLD_FOR_CONNLOST_WRITES:
                logger.warning("socket.send() raised exception.")
            self._conn_lost += 1
            return None
        return bytes(data)

    def _check_address(self, addr: Any) -> None:
        if self._address is not None and addr is not None and addr != self._address:
            raise ValueError(f"Invalid address: must be None or {self._address}")

    def _pack(self, addr: Any) -> bytes | None:
        """Return the header for an address, and cache it; None: it is not a numeric one."""
        self._check_address(addr)
        try:
            if self._connected:
                target = TO_PEER  # whatever the address, as with asyncio
            else:
                target = self._format.pack(self._address if addr is None else addr)
            if len(self._targets) >= REMEMBERED:
                self._targets.clear()
            self._targets[addr] = target
        except (TypeError, ValueError):
            return None
        return target

    def _send_by_socket(self, data: bytes, addr: Any) -> None:
        """Send to what is no numeric address: it may be a name, which Python looks up, or wrong."""
        self._engine.submit()  # in the order of the calls
        assert self._sock is not None
        try:
            if self._connected:
                self._sock.send(data)
            else:
                self._sock.sendto(data, self._address if addr is None else addr)
        except OSError as error:
            self._protocol.error_received(error)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:
            self._fatal_error(error, "Fatal write error on datagram transport")

    def get_write_buffer_size(self) -> int:
        if self._slot < 0 or self._state & FORCED:
            return 0
        pending, count = self._engine.pending_size(self._slot)
        header = len(TO_PEER) if self._connected else self._header_size
        blocked: int = lib.pa_udp_send_queue_size(self._engine.c, self._slot)
        size: int = pending - count * header + blocked
        return size

    # Ending

    def is_closing(self) -> bool:
        return self._state & CLOSING != 0

    def close(self) -> None:
        if not self._state & CLOSING:
            self._state |= CLOSING
            self._close_handle(0)  # connection_lost when all has been sent

    def abort(self) -> None:
        self._engine.submit()  # what the kernel takes at once is sent
        self._force_close(None)

    def _force_close(self, error: BaseException | None) -> None:
        if self._slot < 0 or self._state & FORCED:
            return
        self._state |= CLOSING | FORCED
        self._error = error
        self._close_handle(1)

    def _fatal_error(self, error: BaseException, message: str) -> None:
        self._loop.call_exception_handler(
            {
                "message": message,
                "exception": error,
                "transport": self,
                "protocol": self._protocol,
            }
        )
        self._force_close(error)

    def _close_handle(self, mode: int) -> None:
        # The descriptor is C's alone from now on, and soon nobody's.
        self._detach_socket()
        self._engine.queue((lib.PA_CLOSE, self._slot, mode, b"", None))

    def _detach_socket(self) -> None:
        sock, self._sock = self._sock, None
        release(sock)

    # Records: see the contract in Engine

    def _on_read(self, arena: Any, start: int, end: int) -> None:
        """Take a header, the sender's address, and the datagram behind it."""
        if self._state & _NOT_PLAIN:
            if self._state & CLOSING:
                return
            self._context.run(self._begin, None)  # Ctrl-C has kept it from being called
        data = start + self._header_size
        header = arena[start:data]
        address = self._peers.get(header)
        if address is None:
            if len(self._peers) >= REMEMBERED:  # bounded, because anybody may send
                self._peers.clear()
            address = self._peers[header] = unpack_address(header)
        self._context.run(self._protocol.datagram_received, arena[data:end], address)

    def _on_event(self, kind: int, value: int, data: int) -> None:
        if self._slot < 0 or self._state & FORCED:
            return
        if kind == lib.PA_BLOCKED:
            self._state |= BLOCKED
            if not self._state & CLOSING:
                self._context.run(self._maybe_pause_protocol)
        elif kind == lib.PA_WRITTEN:
            self._check_sent()
        elif kind == lib.PA_WRITE_ERROR:
            try:
                self._context.run(self._protocol.error_received, _os_error(value))
            finally:
                self._check_sent()
        elif kind == lib.PA_READ_ERROR and not self._state & CLOSING:
            if data:  # C has paused, because one error follows another
                self._loop.call_later(RECEIVE_RETRY, self._receive_again)
            self._context.run(self._protocol.error_received, _os_error(value))

    def _check_sent(self) -> None:
        if self._slot < 0 or self._state & FORCED:  # the protocol has aborted it
            return
        if not lib.pa_udp_send_queue_size(self._engine.c, self._slot):
            self._state &= ~BLOCKED
        if self._protocol_paused and not self._state & CLOSING:
            self._context.run(self._maybe_resume_protocol)

    def _receive_again(self) -> None:
        if not self._state & CLOSING:
            self._engine.queue((lib.PA_READ_START, self._slot, 0, b"", None))

    def _on_closed(self) -> None:
        self._slot = -1
        if self._state & TOLD:
            return
        self._state |= TOLD
        protocol, error = self._protocol, self._error
        self._error = None
        self._context.run(protocol.connection_lost, error)

    def _on_loop_end(self) -> None:
        self._detach_socket()
        self._slot = -1
        self._state |= CLOSING


class _Unnamed(str):
    """The name of a connected peer that has none, as of socketpair(2): it is a name all the same.

    By whether the name is true asyncio's transport tells whether its socket is connected.
    """

    __slots__ = ()

    def __bool__(self) -> bool:
        return True


def other_datagram_transport(
    loop: Any, sock: sockets.socket, protocol: Any, address: Any, waiter: Any, extra: Any
) -> Any:
    """Return asyncio's transport for a socket that C does not know."""
    transport = selector_events._SelectorDatagramTransport(
        loop, sock, protocol, address, waiter, extra
    )
    if transport._extra["peername"] == "":
        transport._extra["peername"] = _Unnamed()
    return transport
