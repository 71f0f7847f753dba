"""Connecting: TCP connections that C makes, for asyncio's `create_connection`.

Lookups, the order of the addresses, Happy Eyeballs and the errors of all attempts together are
asyncio's own code: it calls `_connect_sock` for each attempt.
"""

from __future__ import annotations

import socket as sockets
from asyncio import base_events
from contextvars import copy_context
from typing import Any

from pyasync._core.addresses import pack_address
from pyasync._ffi import ffi, lib
from pyasync.aio.descriptors import DescriptorLoop
from pyasync.aio.transports import STARTING, SocketTransport

#: The class of sockets. A program may have put another in its place, which connects by a proxy.
_Socket = sockets.socket


class ConnectedSocket:
    """Stands for a connected socket until a transport is made of it: the transport exists."""

    __slots__ = ("_transport",)

    family = sockets.AF_INET  # or AF_INET6: of TCP

    def __init__(self, transport: SocketTransport) -> None:
        self._transport: SocketTransport | None = transport

    def setblocking(self, flag: bool) -> None:
        """Do nothing: C's sockets never block."""

    def take(self) -> SocketTransport:
        """Return the transport, which is its new owner's to close."""
        transport, self._transport = self._transport, None
        assert transport is not None
        return transport

    def close(self) -> None:
        transport, self._transport = self._transport, None
        if transport is not None:
            transport._drop()

    def __del__(self) -> None:
        # An attempt may win while its create_connection is cancelled: nobody has it then. Any
        # thread may collect it.
        transport = self._transport
        if transport is not None and not transport._engine.closed:
            transport._engine.call_threadsafe(transport._drop)


class ConnectingLoop(DescriptorLoop):
    """The part of an event loop that makes connections."""

    async def _connect_sock(
        self, exceptions: Any, addr_info: Any, local_addr_infos: Any = None
    ) -> Any:
        transport = None
        if local_addr_infos is None and self._can_connect(*addr_info[:3]):
            transport = self._begin_connection(addr_info[4])
        if transport is None:
            return await super()._connect_sock(exceptions, addr_info, local_addr_infos)
        errors: list[OSError] = []
        exceptions.append(errors)
        sock = ConnectedSocket(transport)
        try:
            await transport._empty_waiter
        except OSError as error:
            sock.close()
            errors.append(OSError(error.errno, f"Connect call failed {addr_info[4]}"))
            raise errors[0] from None
        except BaseException:
            sock.close()
            raise
        finally:
            del exceptions, errors  # a traceback keeps this frame
        transport._empty_waiter = None
        return sock

    def _can_connect(self, family: int, kind: int, protocol: int) -> bool:
        return (
            family in (sockets.AF_INET, sockets.AF_INET6)
            and kind == sockets.SOCK_STREAM
            and protocol in (0, sockets.IPPROTO_TCP)
            # The program may have its own way to connect.
            and base_events.socket.socket is _Socket
            and type(self).sock_connect is DescriptorLoop.sock_connect
            and "sock_connect" not in self.__dict__
        )

    def _begin_connection(self, address: Any) -> SocketTransport | None:
        """Return a transport that connects; None: the address is none that C takes."""
        try:
            packed = pack_address(*address)
        except (OSError, ValueError, TypeError, AttributeError):
            return None
        engine = self._engine
        slot = lib.pa_tcp_connect(engine.c, packed, ffi.NULL, True)
        if slot < 0:
            return None  # as there is no memory or descriptor, Python's own way raises that
        transport = SocketTransport(engine, slot, None, copy_context(), None, None)
        transport._state |= STARTING
        transport._empty_waiter = self.create_future()
        if len(address) == 2 and packed[4:] != bytes(4):  # 0.0.0.0 connects to 127.0.0.1
            transport._peer = packed  # which is what the kernel would say
        engine.register(slot, transport)
        return transport

    async def _create_connection_transport(self, sock: Any, *args: Any, **options: Any) -> Any:
        try:
            return await super()._create_connection_transport(sock, *args, **options)
        finally:
            if type(sock) is ConnectedSocket:
                sock.close()  # the program's protocol factory has raised

    async def getaddrinfo(
        self,
        host: Any,
        port: Any,
        *,
        family: int = 0,
        type: int = 0,
        proto: int = 0,
        flags: int = 0,
    ) -> Any:
        """Look a name up in a thread, as asyncio does; a numeric address at once."""
        if (port is None or isinstance(port, int)) and _is_numeric(host):
            return sockets.getaddrinfo(host, port, family, type, proto, flags)
        return await super().getaddrinfo(
            host, port, family=family, type=type, proto=proto, flags=flags
        )


def _is_numeric(host: Any) -> bool:
    if not isinstance(host, str):
        return host is None
    for family in (sockets.AF_INET, sockets.AF_INET6):
        try:
            sockets.inet_pton(family, host)
            return True
        except (OSError, ValueError):
            pass
    return False
