"""Sockets of the system: bind, adopt, listen; and the names and options of a handle's socket."""

from __future__ import annotations

import errno
import os
import socket as sockets
import sys
from typing import Any, overload

from pyasync._core.addresses import (
    SocketName,
    ascii_host,
    numeric_address,
    pack_address,
    unpack_address,
    unpack_name,
)
from pyasync._core.arguments import require_descriptor, require_integer, wrong_type
from pyasync._core.handles import DescriptorHandle
from pyasync._ffi import ffi, lib
from pyasync.errors import (
    SocketAddressInUse,
    TcpServerBindError,
    check,
    libuv_number,
    socket_error,
)

#: The size of C's int, in bytes.
_INT_SIZE = 4
#: The least and the greatest value of C's int.
_C_INT = (-(1 << 31), (1 << 31) - 1)


def bind(
    address: str | None,
    port: int,
    reuse_port: bool,
    kind: sockets.SocketKind = sockets.SOCK_STREAM,
) -> sockets.socket:
    """Return a socket that is bound to an address; None: to every address of both families.

    A name is looked up at once, in a blocking call. Raises `TcpServerBindError`, or
    `SocketAddressInUse`, which is one.
    """
    numeric = None if address is None else numeric_address(address, "bind_address")
    where: Any
    try:
        if numeric is not None:
            family, where = numeric[0], unpack_address(pack_address(numeric[1], port))
        elif address is None and sockets.has_dualstack_ipv6():
            family, where = sockets.AF_INET6, ("::", port)
        else:
            name = None if address is None else ascii_host(address).encode()
            found = sockets.getaddrinfo(name, port, type=kind, flags=sockets.AI_PASSIVE)
            family, _, _, _, where = found[0]
        sock = new_socket(family, kind)
    except OSError as error:
        raise bind_error(error, address, port) from None
    try:
        if kind == sockets.SOCK_STREAM:
            # Without it, connections of an earlier server in TIME_WAIT keep the address
            # (socket(7)). Not for UDP, where it would let another process take the port.
            sock.setsockopt(sockets.SOL_SOCKET, sockets.SO_REUSEADDR, 1)
        if reuse_port:
            sock.setsockopt(sockets.SOL_SOCKET, sockets.SO_REUSEPORT, 1)
        if family == sockets.AF_INET6:  # set always, because the default is a sysctl: ipv6(7)
            sock.setsockopt(sockets.IPPROTO_IPV6, sockets.IPV6_V6ONLY, address is not None)
        sock.bind(where)
    except OSError as error:
        sock.close()
        raise bind_error(error, address, port) from None
    return sock


def new_socket(family: int, kind: int) -> sockets.socket:
    """Return a socket whose descriptor has not the number of a standard stream."""
    check(lib.pa_open_standard_streams())
    return sockets.socket(family, kind)


def bind_error(error: OSError, address: str | None, port: int) -> TcpServerBindError:
    """Return the exception for an error of `bind` or `listen`."""
    kind = SocketAddressInUse if error.errno == errno.EADDRINUSE else TcpServerBindError
    where = "*" if address is None else address or "''"
    # Python's own errors, such as of a wrong family, have no errno.
    result = kind(error.errno, f"{error.strerror or error}: {where} port {port}")
    result.address = address
    result.port = port
    result._errcode = libuv_number(error)  # errno may be a number of getaddrinfo(3), not -errcode
    return result


def adopt(fd: Any, families: tuple[int, ...]) -> sockets.socket:
    """Return a stream socket on a duplicate of the descriptor; the caller keeps its own.

    ``fd`` may be an object with a ``fileno()``. Raises `ValueError` if it is no stream socket of
    one of the families, and `OSError` if it is not open.
    """
    fd = require_descriptor("fd", fd)
    # A duplicate: if we closed the caller's number, it could be another file's by then.
    check(lib.pa_open_standard_streams())
    duplicate = os.dup(fd)
    try:
        sock = sockets.socket(fileno=duplicate)
    except OSError:
        os.close(duplicate)
        raise ValueError(f"fd must be a stream socket's, not {fd}: it is no socket") from None
    if sock.type != sockets.SOCK_STREAM or sock.family not in families:
        sock.close()
        raise ValueError(f"fd must be a stream socket's of a kind that fits, not {fd}: {sock!r}")
    return sock


def require_limits(max_connections: int | None, backlog: int | None) -> None:
    """Raise unless both arguments of a server are integers that C's int can be, or None."""
    for name, value, least in [("max_connections", max_connections, 1), ("backlog", backlog, 0)]:
        if value is not None:
            require_integer(name, value, least, 2**31 - 1, ", or None")


def listen(sock: sockets.socket, backlog: int | None) -> None:
    """Let the socket listen. ``backlog`` None: the longest that the system allows (listen(2))."""
    sock.listen(sockets.SOMAXCONN if backlog is None else backlog)


class SocketHandle(DescriptorHandle):
    """A handle with a socket, which has options."""

    __slots__ = ()

    @overload
    def getsockopt(self, level: int, option: int) -> int: ...
    @overload
    def getsockopt(self, level: int, option: int, buflen: int) -> bytes: ...
    def getsockopt(self, level: int, option: int, buflen: int = 0) -> int | bytes:
        """Return an option of the socket, as `socket.socket.getsockopt` does.

        ``level`` and ``option`` are constants of the `socket` module (socket(7), tcp(7), ip(7)).
        The value is an integer; with ``buflen``, 1 to 1024, it is bytes, of this size at most.
        Raises `SocketError` if the system refuses, and `SocketClosed`.
        """
        require_integer("level", level, *_C_INT)
        require_integer("option", option, *_C_INT)
        require_integer("buflen", buflen, 0, 1024)
        result = self._load_option(level, option, buflen or _INT_SIZE)
        return result if buflen else int.from_bytes(result, sys.byteorder, signed=True)

    def setsockopt(self, level: int, option: int, value: int | bytes | bytearray) -> None:
        """Set an option of the socket, as `socket.socket.setsockopt` does.

        ``level`` and ``option`` are constants of the `socket` module (socket(7), tcp(7), ip(7)).
        ``value`` is an integer of 32 bits, or the bytes of a C structure. What was written or sent
        before leaves without the option. Of a client that has no socket yet it is set as soon as it
        has one, and an error then ends the connection. Raises `SocketError` if the system refuses,
        `ValueError`, `TypeError` and `SocketClosed`.
        """
        if isinstance(value, int):
            value = require_integer("value", int(value), -(1 << 31), (1 << 32) - 1)
            value = (value & 0xFFFFFFFF).to_bytes(_INT_SIZE, sys.byteorder)
        else:
            try:
                value = bytes(memoryview(value))
            except TypeError:
                raise wrong_type("value", "an integer or bytes-like", value) from None
        require_integer("level", level, *_C_INT)
        require_integer("option", option, *_C_INT)
        self._store_option(level, option, value)

    def _store_option(self, level: int, option: int, value: bytes) -> None:
        self._handle_slot()  # raises in a wrong thread, before operations are performed
        self._loop.submit()
        detail = f"option {option} of level {level}"
        self._ask(lib.pa_setsockopt, level, option, value, len(value), detail=detail)

    def _load_option(self, level: int, option: int, size: int) -> bytes:
        value = ffi.new("char[]", size)
        detail = f"option {option} of level {level}"
        length = self._ask(lib.pa_getsockopt, level, option, value, size, detail=detail)
        return bytes(ffi.buffer(value, length))

    def _ask(self, function: Any, *arguments: Any, detail: str | None = None) -> int:
        """Call a C function for the socket, and return its result, or raise its error."""
        result: int = function(self._loop.c, self._handle_slot(), *arguments)
        if result < 0:
            raise socket_error(result, self, detail=detail)
        return result


class PeerHandle(SocketHandle):
    """A handle with a socket that talks to peers: it has an address, and its peer may have one."""

    __slots__ = ()

    @property
    def peername(self) -> SocketName:
        """The peer's address, in the form of `socket.socket.getpeername`.

        Of a TCP connection it is known also when the peer has reset that. It can be read after the
        end too, of a stream that has a ``close_cb`` or that was asked for it before. Raises
        `SocketError` (ENOTCONN) for a socket that is not connected, and `SocketClosed`.
        """
        return self._name(PEERNAME)

    @property
    def sockname(self) -> SocketName:
        """The socket's own address, in the form of `socket.socket.getsockname`.

        It can be read after the end as `peername` can.
        """
        return self._name(SOCKNAME)

    def _name(self, which: int) -> SocketName:
        name = ffi.new("char[]", lib.PA_NAME_MAX)
        return unpack_name(ffi.buffer(name, self._ask(_NAMES[which], name))[:])

    def _find_name(self, which: int) -> Any:
        """Return a name of a handle that C knows; None: it is not known. It raises nothing."""
        name = ffi.new("char[]", lib.PA_NAME_MAX)
        size = _NAMES[which](self._loop.c, self._slot, name)
        return unpack_name(ffi.buffer(name, size)[:]) if size >= 0 else None

    def _names_text(self, known: bool) -> list[str]:
        if not known:
            return []
        return join_names(self._find_name(SOCKNAME), self._find_name(PEERNAME))


PEERNAME, SOCKNAME = 0, 1
_NAMES = (lib.pa_getpeername, lib.pa_getsockname)


def join_names(own: Any, peer: Any) -> list[str]:
    """Return the names of a socket's two ends for its repr: neither, one, or both in one text."""
    texts = [name_text(own), name_text(peer)]
    return [" -> ".join(text or "?" for text in texts)] if texts[1] else [t for t in texts if t]


def name_text(name: Any) -> str:
    """Return an address for a repr: ``127.0.0.1:80``, ``[::1]:80``, or the name of a pipe."""
    if not isinstance(name, tuple):
        return repr(name) if name else ""
    host, port = name[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
