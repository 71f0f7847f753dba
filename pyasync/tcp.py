"""TCP: servers and clients."""

from __future__ import annotations

import errno
import os
import socket as sockets
from collections.abc import Callable

from pyasync._ffi import ffi, lib
from pyasync.errors import (
    SocketAddressInUse,
    SocketTimeout,
    TcpServerBindError,
    check,
)
from pyasync.handles import optional_callable
from pyasync.loop import EventCallback, get_loop
from pyasync.sockets import Server
from pyasync.streams import (
    CONNECTING,
    Data,
    Settings,
    Stream,
    WriteCallback,
    require_timeout,
)
from pyasync.timers import background_timer

ReadCallback = Callable[["TcpSocket", bytes], object]
SocketCallback = Callable[["TcpSocket"], object]
PressureCallback = Callable[["TcpSocket", bool], object]


class TcpSocket(Stream):
    """A TCP connection, accepted by a `TcpServer` or made by `tcp_connect`."""

    __slots__ = ()

    def _time_out_connecting(self) -> None:
        if self._state & CONNECTING:
            error = SocketTimeout(errno.ETIMEDOUT, "connecting took too long")
            self._loop._tell(self, error, self)
            self.close(force=True)


class TcpServer(Server):
    """A TCP server, made by `tcp_server`."""

    __slots__ = ()

    _connection = TcpSocket
    _kind = lib.PA_TCP_SERVER


def tcp_server(
    bind_address: str | None,
    port: int,
    read_cb: ReadCallback,
    *,
    event_cb: EventCallback | None = None,
    connect_cb: SocketCallback | None = None,
    backlog: int | None = None,
    fd: int | None = None,
    reuse_port: bool = False,
    allow_half_open: bool = False,
    max_connections: int | None = None,
    pressure_cb: PressureCallback | None = None,
    read_timeout: float | None = None,
    write_timeout: float | None = None,
    linger: float | None = 2.0,
) -> TcpServer:
    """Accept TCP connections at an address, and call ``read_cb(socket, data)`` with what arrives.

    ``bind_address`` is a numeric address, or a name, which is looked up at once; None is every
    address of both families. ``port`` 0 lets the system choose: see `Server.address`. ``fd`` is a
    descriptor that is bound already, and listens or not: it is duplicated, the caller keeps its
    own, and the first two arguments are None and 0.

    ``connect_cb(socket)`` is called for each new connection. ``event_cb(exception)`` gets the
    end of a connection (`SocketEOF`), its errors, and those of the server (`SocketAcceptError`).
    When the peer has ended its side, the connection is closed after ``event_cb``, unless
    ``allow_half_open`` leaves that to the application.

    ``backlog`` is how many connections the system keeps until they are accepted (listen(2)), by
    default as many as it allows. ``reuse_port`` lets several processes listen at one port
    (SO_REUSEPORT, socket(7)). With ``max_connections`` open, the server accepts no more until
    some are closed. For ``pressure_cb`` see `Stream.set_watermarks`, for the timeouts
    `Stream.set_timeouts`, for ``linger`` `Stream.close`.

    Raises `SocketAddressInUse` or another `TcpServerBindError`, `ValueError` and `TypeError` for
    arguments that are wrong, and `EventLoopNotRunning`.

    >>> import pyasync
    >>> def echo(socket, data):
    ...     socket.write(data)
    >>> with pyasync.event_loop():
    ...     server = pyasync.tcp_server("127.0.0.1", 0, echo)
    ...     host, port = server.address
    ...     server.close()
    >>> host
    '127.0.0.1'
    """
    loop = get_loop()
    if max_connections is not None and not max_connections > 0:
        raise ValueError(f"max_connections must be over 0, or None, not {max_connections!r}")
    settings = Settings(
        loop,
        read_cb,
        event_cb=event_cb,
        connect_cb=connect_cb,
        pressure_cb=pressure_cb,
        allow_half_open=allow_half_open,
        linger=linger,
        read_timeout=read_timeout,
        write_timeout=write_timeout,
    )
    loop._submit()  # a server that was closed just now may have held the address
    if fd is None:
        require_port(port)
        sock = _bind(bind_address, port, reuse_port)
    else:
        if bind_address is not None or port != 0:
            raise ValueError("with fd, bind_address must be None and port 0")
        sock = adopt(fd, (sockets.AF_INET, sockets.AF_INET6))
    with sock:
        # Connections inherit it from the listening socket: tcp(7).
        sock.setsockopt(sockets.IPPROTO_TCP, sockets.TCP_NODELAY, 1)
        try:
            sock.listen(sockets.SOMAXCONN if backlog is None else backlog)
        except OSError as error:
            raise _bind_error(error, bind_address, port) from None
        return TcpServer(settings, sock, max_connections)


def _bind(address: str | None, port: int, reuse_port: bool) -> sockets.socket:
    try:
        if address is None and sockets.has_dualstack_ipv6():
            family, where = sockets.AF_INET6, ("::", port)
        else:
            found = sockets.getaddrinfo(
                address, port, type=sockets.SOCK_STREAM, flags=sockets.AI_PASSIVE
            )
            family, _, _, _, where = found[0]  # type: ignore[assignment]
        sock = sockets.socket(family, sockets.SOCK_STREAM)
    except OSError as error:
        raise _bind_error(error, address, port) from None
    try:
        # Without it, connections of an earlier server that wait in TIME_WAIT hold the address.
        sock.setsockopt(sockets.SOL_SOCKET, sockets.SO_REUSEADDR, 1)
        if reuse_port:
            sock.setsockopt(sockets.SOL_SOCKET, sockets.SO_REUSEPORT, 1)
        if family == sockets.AF_INET6:
            sock.setsockopt(sockets.IPPROTO_IPV6, sockets.IPV6_V6ONLY, address is not None)
        sock.bind(where)
    except OSError as error:
        sock.close()
        raise _bind_error(error, address, port) from None
    return sock


def _bind_error(error: OSError, address: str | None, port: int) -> TcpServerBindError:
    kind = SocketAddressInUse if error.errno == errno.EADDRINUSE else TcpServerBindError
    bind_error = kind(error.errno, f"{error.strerror}: {address or '*'} port {port}")
    bind_error.address = address
    bind_error.port = port
    return bind_error


def adopt(fd: int, families: tuple[int, ...]) -> sockets.socket:
    """Return a stream socket on a duplicate of the descriptor; the caller keeps its own."""
    duplicate = os.dup(fd)
    try:
        sock = sockets.socket(fileno=duplicate)
    except OSError:
        os.close(duplicate)
        raise ValueError(f"descriptor {fd} is not a socket") from None
    if sock.type != sockets.SOCK_STREAM or sock.family not in families:
        sock.close()
        raise ValueError(f"descriptor {fd} is a socket of the wrong kind: {sock!r}")
    return sock


def require_port(port: int) -> None:
    """Raise `TypeError` or `ValueError` unless the port is one."""
    if not isinstance(port, int):
        raise TypeError(f"port must be an integer, not {type(port).__name__}")
    if not 0 <= port <= 65535:
        raise ValueError(f"port must be from 0 to 65535, not {port}")


def tcp_connect(
    host: str,
    port: int,
    read_cb: ReadCallback,
    *,
    data: Data | None = None,
    event_cb: EventCallback | None = None,
    connect_cb: SocketCallback | None = None,
    write_cb: WriteCallback | None = None,
    read_timeout: float | None = None,
    write_timeout: float | None = None,
    connect_timeout: float | None = None,
    local_address: str | tuple[str, int] | None = None,
    allow_half_open: bool = False,
    pressure_cb: PressureCallback | None = None,
    linger: float | None = 2.0,
) -> TcpSocket:
    """Connect to ``host``, a numeric address, and call ``read_cb(socket, data)`` with what arrives.

    ``connect_cb(socket)`` is called when the connection stands. What is written before is kept,
    and sent then, ``data`` first, for which ``write_cb`` is. ``event_cb(exception)`` gets the end
    of the connection (`SocketEOF`) and its errors: `SocketRefused`, and `SocketTimeout` after
    ``connect_timeout`` seconds, among them. ``local_address`` is an address, or a pair of one and
    a port, to connect from. The other keywords are those of `tcp_server`.

    Raises `ValueError` and `TypeError` for arguments that are wrong, `OSError` if the socket
    cannot be bound to ``local_address``, and `EventLoopNotRunning`.
    """
    loop = get_loop()
    require_port(port)
    optional_callable("write_cb", write_cb)
    require_timeout("connect_timeout", connect_timeout)
    settings = Settings(
        loop,
        read_cb,
        event_cb=event_cb,
        connect_cb=connect_cb,
        pressure_cb=pressure_cb,
        allow_half_open=allow_half_open,
        linger=linger,
        read_timeout=read_timeout,
        write_timeout=write_timeout,
    )
    loop._submit()  # what was closed just now may free a descriptor, or the local address
    local, local_port = local_address if isinstance(local_address, tuple) else (local_address, 0)
    slot = lib.pa_tcp_connect(
        loop._c,
        host.encode(),
        port,
        ffi.NULL if local is None else local.encode(),
        local_port,
    )
    if slot == -errno.EINVAL:
        raise ValueError(f"not a numeric address: {host!r} or {local!r}")
    socket = TcpSocket(settings, check(slot), CONNECTING)
    loop._register(slot, socket)
    if connect_timeout is not None:
        socket._need_rare().connect_timer = background_timer(
            loop, socket._time_out_connecting, connect_timeout
        )
    if data is not None:
        socket.write(data, write_cb=write_cb)
    return socket
