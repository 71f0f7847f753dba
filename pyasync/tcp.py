"""TCP: servers and clients."""

from __future__ import annotations

import errno
import socket as sockets
from collections.abc import Callable, Sequence
from contextvars import Context
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, overload

from pyasync._core.addresses import Address, numeric_address
from pyasync._core.arguments import (
    Descriptor,
    optional_callable,
    require_descriptor,
    require_flag,
    require_instance,
    require_integer,
    require_port,
    require_time,
    require_timeout,
    shown,
    wrong_type,
    wrong_value,
)
from pyasync._core.connecting import Connector, Socket, connect
from pyasync._core.sockets import adopt, bind, bind_error, listen, require_limits
from pyasync._core.stream import UNCONNECTED, Data, WriteCallback
from pyasync._ffi import lib
from pyasync.async_stream import AsyncStream
from pyasync.errors import SocketError, check
from pyasync.loop import EventCallback, get_loop
from pyasync.options import StreamOptions
from pyasync.streams import Server, Stream

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from pyasync._keywords import InitKeywords, TcpKeywords

ReadCallback = Callable[["TcpSocket", Any], object]
SocketCallback = Callable[["TcpSocket"], object]
PressureCallback = Callable[["TcpSocket", bool], object]
CloseCallback = Callable[["TcpSocket", "Exception | None"], object]
LocalAddress = Union[str, "tuple[str, int]", None]
#: What `connect_tcp_socket` takes and returns.
Connecting = TypeVar("Connecting", bound="TcpSocket")


class TcpSocket(Stream, Socket):
    """A TCP connection, accepted by a `TcpServer` or made by `tcp_connect`."""

    __slots__ = ()

    if TYPE_CHECKING:

        @property
        def peername(self) -> Address: ...
        @property
        def sockname(self) -> Address: ...

    @property
    def nodelay(self) -> bool:
        """Whether small writes leave at once (TCP_NODELAY, tcp(7)); True unless set otherwise."""
        try:
            value: int = self.getsockopt(sockets.IPPROTO_TCP, sockets.TCP_NODELAY)
        except SocketError as error:
            if error.errno != errno.ENOTCONN or self.closed:
                raise
            return True  # there is no socket yet: it will be
        return value != 0

    @nodelay.setter
    def nodelay(self, on: bool) -> None:
        require_flag("nodelay", on)
        self.setsockopt(sockets.IPPROTO_TCP, sockets.TCP_NODELAY, on)

    def keepalive(
        self, delay: float | None, *, interval: float | None = None, count: int | None = None
    ) -> None:
        """Probe a connection that has been idle for ``delay`` seconds; None: do not.

        An unanswered probe is repeated every ``interval`` seconds, and after ``count`` of them the
        connection ends with a `SocketTimeout` (SO_KEEPALIVE and its options, tcp(7)). By default
        the interval is the delay, but at most TCP's 75 seconds (RFC 1122 leaves it open), and the
        count the system's (9 on Linux): with a delay of 5 a peer that is gone is noticed after 50.

        Times are rounded up to whole seconds. Raises `SocketClosed`, `ValueError` for a time that
        is not over 0, or over 32,767, or a count that is not from 1 to 127 (the kernel's limits).
        """
        idle = _whole_seconds("delay", delay)
        if interval is None and delay is not None:
            interval = min(delay, _KEEPALIVE_INTERVAL)
        between = _whole_seconds("interval", interval)
        if count is not None:
            require_integer("count", count, 1, 127, ", or None")
        self.setsockopt(sockets.SOL_SOCKET, sockets.SO_KEEPALIVE, delay is not None)
        for option, value in [
            (_KEEPALIVE_DELAY, idle),
            (sockets.TCP_KEEPINTVL, between),
            (sockets.TCP_KEEPCNT, count),
        ]:
            if value is not None:
                self.setsockopt(sockets.IPPROTO_TCP, option, value)


#: macOS has TCP_KEEPIDLE under another name, and Python knows that since 3.10.
_KEEPALIVE_DELAY: int = getattr(sockets, "TCP_KEEPIDLE", getattr(sockets, "TCP_KEEPALIVE", 0x10))

#: The longest default interval between the probes of `TcpSocket.keepalive`, in seconds.
_KEEPALIVE_INTERVAL = 75


def _whole_seconds(name: str, seconds: float | None) -> int | None:
    if seconds is None:
        return None
    require_time(name, seconds, most=32767, over=True, or_none=", or None")
    return -int(-seconds // 1)  # rounded up, because the kernel refuses 0


class TcpServer(Server):
    """A TCP server, made by `tcp_server`."""

    __slots__ = ()

    if TYPE_CHECKING:

        @property
        def address(self) -> Address: ...
        @property
        def connections(self) -> Sequence[TcpSocket]: ...

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
    stream: bool = False,
    fd: Descriptor | None = None,
    reuse_port: bool = False,
    allow_half_open: bool = False,
    max_connections: int | None = None,
    pressure_cb: PressureCallback | None = None,
    close_cb: CloseCallback | None = None,
    read_timeout: float | None = None,
    write_timeout: float | None = None,
    linger: float | None = 2.0,
    context: Context | None = None,
) -> TcpServer:
    """Accept TCP connections at an address, and call ``read_cb(socket, data)`` with their data.

    With ``stream``, it is ``read_cb(socket, stream)``, and the data waits in an `AsyncStream`.

    ``bind_address`` is a numeric address, or a name, which is looked up at once, in a call that
    blocks; None is every address of both families. ``port`` 0 lets the system choose: see
    `Server.address`. ``fd`` is a descriptor that is bound already, and may listen already: it is
    duplicated, the caller keeps its own, and the first two arguments are None and 0.

    ``connect_cb(socket)`` is called for each new connection, before its first data.
    ``event_cb(exception)`` gets the end of a connection (`SocketEOF`), its errors, and those of the
    server (`SocketAcceptError`). When the peer has ended its side, the connection is closed after
    ``event_cb``, unless ``allow_half_open`` leaves that to the application. ``close_cb(socket,
    error)`` is called once for each connection, when that is over, however it has ended: by a
    close, its peer, an error, or the loop's end. ``error`` is the first that ``event_cb`` got, or
    None. It is the last callback of the connection, whose descriptor is closed. With ``context``, a
    `contextvars.Context`, all callbacks of a connection run in a copy of it, each connection's own.

    ``backlog`` is the number of connections that may wait to be accepted (listen(2)), by default
    the most that the system allows. ``reuse_port`` lets several processes listen at one port
    (SO_REUSEPORT, socket(7)). With ``max_connections`` open, the server accepts no more until
    some are closed. For ``pressure_cb`` see `Stream.set_watermarks`, for the timeouts, in seconds,
    `Stream.set_timeouts`, for ``linger``, in seconds, `Stream.close`.

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
    options = StreamOptions(
        get_loop(),
        read_cb,
        stream=stream,
        event_cb=event_cb,
        connect_cb=connect_cb,
        pressure_cb=pressure_cb,
        close_cb=close_cb,
        allow_half_open=allow_half_open,
        linger=linger,
        read_timeout=read_timeout,
        write_timeout=write_timeout,
        context=context,
    )
    return make_server(
        TcpServer, options, bind_address, port, fd, backlog, reuse_port, max_connections
    )


def make_server(
    kind: type[TcpServer],
    options: StreamOptions,
    bind_address: str | None,
    port: int,
    fd: Descriptor | None,
    backlog: int | None,
    reuse_port: bool,
    max_connections: int | None,
) -> TcpServer:
    """Return a server of the kind: see `tcp_server` for the arguments."""
    require_limits(max_connections, backlog)
    require_flag("reuse_port", reuse_port)
    options.loop.submit()  # the pending close of another server may free the address
    if fd is None:
        port = require_port(port)
        sock = bind(bind_address, port, reuse_port)
    else:
        fd = require_descriptor("fd", fd)
        if bind_address is not None or port != 0:
            raise ValueError(
                f"fd must be None where bind_address and port say where to listen, not {fd}"
            )
        sock = adopt(fd, (sockets.AF_INET, sockets.AF_INET6))
    with sock:
        # Accepted connections inherit it, which saves a system call for each.
        sock.setsockopt(sockets.IPPROTO_TCP, sockets.TCP_NODELAY, 1)
        try:
            listen(sock, backlog)
        except OSError as error:
            raise bind_error(error, bind_address, port) from None
        return kind(options, sock, max_connections)


@overload
def tcp_connect(
    host: str,
    port: int,
    read_cb: Callable[[TcpSocket, AsyncStream], object],
    *,
    stream: Literal[True],
    **keywords: Unpack[TcpKeywords[TcpSocket]],
) -> AsyncStream: ...
@overload
def tcp_connect(
    host: str,
    port: int,
    read_cb: Callable[[TcpSocket, bytes], object],
    *,
    stream: Literal[False] = False,
    **keywords: Unpack[TcpKeywords[TcpSocket]],
) -> TcpSocket: ...
@overload
def tcp_connect(
    host: str,
    port: int,
    read_cb: Callable[[TcpSocket, Any], object],
    *,
    stream: bool,
    **keywords: Unpack[TcpKeywords[TcpSocket]],
) -> TcpSocket | AsyncStream: ...
def tcp_connect(
    host: str,
    port: int,
    read_cb: ReadCallback,
    *,
    data: Data | None = None,
    stream: bool = False,
    event_cb: EventCallback | None = None,
    connect_cb: SocketCallback | None = None,
    write_cb: WriteCallback | None = None,
    read_timeout: float | None = None,
    write_timeout: float | None = None,
    connect_timeout: float | None = None,
    drain_read_buffer: bool = True,
    local_address: LocalAddress = None,
    allow_half_open: bool = False,
    pressure_cb: PressureCallback | None = None,
    close_cb: CloseCallback | None = None,
    linger: float | None = 2.0,
    context: Context | None = None,
) -> Any:
    """Connect to a host, and call ``read_cb(socket, data)`` with data that arrives.

    ``host`` is a numeric address or a name. All addresses of a name are tried, of both families,
    each 250 ms after the one before or when that has failed (Happy Eyeballs, RFC 8305).

    ``connect_cb(socket)`` is called when the connection stands. Earlier writes are deferred, and
    sent then: ``data`` first, whose callback is ``write_cb``. ``event_cb(exception)`` gets the end
    of the connection (`SocketEOF`) and its errors, for example `SocketRefused` and `DnsError`, and
    a `SocketTimeout` after ``connect_timeout`` seconds. If no address answers, one error names them
    all. ``local_address`` is an address, or a pair of an address and a port, to connect from.

    With ``stream`` the data waits in an `AsyncStream`, which is returned in place of the socket,
    and the callback is ``read_cb(socket, stream)``. With ``drain_read_buffer=False`` too, no more
    is read from the kernel while over 64 KiB wait in the stream. The other keywords are those of
    `tcp_server`.

    Raises `ValueError` and `TypeError` for arguments that are wrong, `OSError` if the socket
    cannot be bound to ``local_address``, and `EventLoopNotRunning`.
    """
    options = StreamOptions(
        get_loop(),
        read_cb,
        # By position, because CPython makes a dictionary of a class's keywords, and so of the many
        # of `init_tcp_socket`: an eighth of what a connection costs.
        stream,
        event_cb,
        connect_cb,
        pressure_cb,
        close_cb,
        allow_half_open,
        linger,
        read_timeout,
        write_timeout,
        context,
    )
    socket = make_client(
        TcpSocket,
        options,
        None,
        data,
        write_cb,
        connect_timeout,
        local_address,
        drain_read_buffer,
    )
    return connect_new(socket, host, port)


@overload
def init_tcp_socket(
    read_cb: Callable[[TcpSocket, AsyncStream], object],
    *,
    stream: Literal[True],
    **keywords: Unpack[InitKeywords[TcpSocket]],
) -> AsyncStream: ...
@overload
def init_tcp_socket(
    read_cb: Callable[[TcpSocket, bytes], object],
    *,
    stream: Literal[False] = False,
    **keywords: Unpack[InitKeywords[TcpSocket]],
) -> TcpSocket: ...
@overload
def init_tcp_socket(
    read_cb: Callable[[TcpSocket, Any], object],
    *,
    stream: bool,
    **keywords: Unpack[InitKeywords[TcpSocket]],
) -> TcpSocket | AsyncStream: ...
def init_tcp_socket(
    read_cb: ReadCallback,
    *,
    fd: Descriptor | None = None,
    data: Data | None = None,
    stream: bool = False,
    event_cb: EventCallback | None = None,
    connect_cb: SocketCallback | None = None,
    write_cb: WriteCallback | None = None,
    read_timeout: float | None = None,
    write_timeout: float | None = None,
    connect_timeout: float | None = None,
    drain_read_buffer: bool = True,
    local_address: LocalAddress = None,
    allow_half_open: bool = False,
    pressure_cb: PressureCallback | None = None,
    close_cb: CloseCallback | None = None,
    linger: float | None = 2.0,
    context: Context | None = None,
) -> Any:
    """Return a `TcpSocket` that is not connected yet, for `connect_tcp_socket`.

    It can be written to: the writes are deferred. The keywords are those of `tcp_connect`. With
    ``fd``, the descriptor of a connected socket, the socket is connected at once: the descriptor is
    duplicated, and the caller keeps its own. Raises `ValueError` if it is not connected.
    """
    options = StreamOptions(
        get_loop(),
        read_cb,
        stream=stream,
        event_cb=event_cb,
        connect_cb=connect_cb,
        pressure_cb=pressure_cb,
        close_cb=close_cb,
        allow_half_open=allow_half_open,
        linger=linger,
        read_timeout=read_timeout,
        write_timeout=write_timeout,
        context=context,
    )
    return make_client(
        TcpSocket,
        options,
        fd,
        data,
        write_cb,
        connect_timeout,
        local_address,
        drain_read_buffer,
    )


def make_client(
    kind: type[TcpSocket],
    options: StreamOptions,
    fd: Descriptor | None,
    data: Data | None,
    write_cb: WriteCallback | None,
    connect_timeout: float | None,
    local_address: LocalAddress,
    drain_read_buffer: bool,
) -> Any:
    """Return a socket of the kind, or its stream: see `init_tcp_socket` for the arguments."""
    optional_callable("write_cb", write_cb)
    options.connect_timeout = require_timeout("connect_timeout", connect_timeout)
    options.local_address = _local_address(local_address)
    options.drain_read_buffer = require_flag("drain_read_buffer", drain_read_buffer)
    socket = kind(options, -1, UNCONNECTED)
    socket._bind_context()
    if data is not None:
        socket.write(data, write_cb=write_cb)
    if fd is not None:
        socket._before_connecting(None)
        sock = adopt(fd, (sockets.AF_INET, sockets.AF_INET6))
        try:
            sock.getpeername()  # ENOTCONN
        except OSError:
            sock.close()
            raise ValueError(f"fd must be a connected socket's, not {shown(fd)}") from None
        socket._on_slot(check(lib.pa_adopt(options.loop.c, sock.detach())))
    socket._begin()  # last, because no close_cb may follow an error of this call
    return socket._subject


def _local_address(given: LocalAddress) -> tuple[str | None, int]:
    host, port = given if isinstance(given, tuple) and len(given) == 2 else (given, 0)
    allowed = "a numeric address, or a tuple of one and a port"
    if host is not None:
        if not isinstance(host, str):
            raise wrong_type("local_address", allowed, given)
        if numeric_address(host, "local_address") is None:
            raise wrong_value("local_address", allowed, given)
    return host, require_port(port, "port in local_address")


def connect_new(subject: Any, host: str, port: int) -> Any:
    """Connect a socket that its caller has just made; return it."""
    try:
        return connect_tcp_socket(subject, host, port)
    except BaseException:
        # Nobody will ever have it: no close_cb may follow an error of the call that makes it.
        socket = subject.socket if isinstance(subject, AsyncStream) else subject
        socket._loop.watched.pop(socket, None)
        raise


@overload
def connect_tcp_socket(
    socket: AsyncStream, host: str, port: int, *, event_cb: EventCallback | None = None
) -> AsyncStream: ...
@overload
def connect_tcp_socket(
    socket: Connecting, host: str, port: int, *, event_cb: EventCallback | None = None
) -> Connecting: ...
def connect_tcp_socket(
    socket: Any, host: str, port: int, *, event_cb: EventCallback | None = None
) -> Any:
    """Connect a socket of `init_tcp_socket`, as `tcp_connect` does; return it.

    ``event_cb``, if given, replaces the socket's. Raises `ValueError` if the socket has been
    connected before, and the errors of `tcp_connect`.
    """
    subject = socket
    if isinstance(socket, AsyncStream):
        socket = socket.socket
    require_instance("socket", socket, TcpSocket, AsyncStream)
    numeric = numeric_address(host) is not None
    port = require_port(port)
    optional_callable("event_cb", event_cb)
    loop = socket._loop
    socket._open_slot()
    options = socket._options
    if not socket._state & UNCONNECTED or options.remote is not None:
        raise ValueError("socket must not be connected: it is, or was told to connect, already")
    if event_cb is not None:
        options.event_cb = options.bound(event_cb)
    socket._before_connecting(host)  # before anything is opened: TLS may refuse its options
    if numeric:
        socket._on_slot(check(connect(loop, host, port, options.local_address)))
        connector = None
    else:
        connector = Connector(socket, host, port, options.local_address)
    options.remote = (host, port)  # last: after an error the call may be made again
    if connector is not None or options.connect_timeout is not None:
        socket._connect_to(connector, options.connect_timeout)
    return subject
