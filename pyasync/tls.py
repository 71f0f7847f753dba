"""TLS: servers, clients, and the upgrade of a connection, on the standard library's `ssl`."""

from __future__ import annotations

import errno
import os
import ssl
from collections.abc import Callable
from contextvars import Context
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, Union, overload

from pyasync._core.arguments import (
    Descriptor,
    StrOrBytesPath,
    as_path,
    c_string,
    optional_callable,
    require_flag,
    require_host,
    require_instance,
    require_timeout,
    wrong_type,
)
from pyasync._core.stream import (
    CONNECTING,
    ENCRYPTED,
    ENDED,
    SENDING_FILE,
    SHUT,
    UNCONNECTED,
    Data,
    WriteCallback,
)
from pyasync._core.tls import TlsOptions, TlsState, require_name, tls_error
from pyasync._core.tls_stream import TlsStream, start_tls_on
from pyasync.async_stream import AsyncStream
from pyasync.errors import socket_error
from pyasync.loop import EventCallback, get_loop
from pyasync.options import StreamOptions
from pyasync.tcp import (
    LocalAddress,
    TcpServer,
    TcpSocket,
    connect_new,
    make_client,
    make_server,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from pyasync._keywords import InitSslKeywords, SslKeywords, StartTlsKeywords


class SslSocket(TlsStream, TcpSocket):
    """A TLS connection over TCP: a `TcpSocket` whose data is encrypted on the way."""

    __slots__ = ()


class SslServer(TcpServer):
    """A TCP server whose connections speak TLS."""

    __slots__ = ()

    _connection = SslSocket

    def _begin_connection(self, socket: Any) -> None:
        try:  # options that do not fit together raise here, and must not end the server
            socket._before_connecting(None)
        except (OSError, ValueError) as error:
            socket._fail_with(tls_error(error))
        else:
            socket._on_connected(0)


ReadCallback = Callable[[SslSocket, Any], object]
SocketCallback = Callable[[SslSocket], object]
PressureCallback = Callable[[SslSocket, bool], object]
CloseCallback = Callable[[SslSocket, "Exception | None"], object]
Password = Union[str, bytes, bytearray, Callable[[], Union[str, bytes, bytearray]], None]


def tcp_ssl_server(
    bind_address: str | None,
    port: int,
    read_cb: ReadCallback,
    *,
    ssl_context: ssl.SSLContext | None = None,
    certificate: StrOrBytesPath | None = None,
    key: StrOrBytesPath | None = None,
    password: Password = None,
    handshake_timeout: float | None = 60.0,
    shutdown_timeout: float | None = 30.0,
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
    """Accept TLS connections at an address, and call ``read_cb(socket, data)`` with their data.

    ``ssl_context`` is a server's context with its certificate: it also says all about client
    certificates, ALPN, ciphers and versions. In its place, ``certificate``, ``key`` and
    ``password`` are the arguments of `ssl.SSLContext.load_cert_chain`, for a context of
    `ssl.create_default_context`.

    ``connect_cb(socket)`` is called when the handshake is over, with an `SslSocket`. A connection
    whose handshake fails, or is not over after ``handshake_timeout`` seconds, is closed, and
    ``event_cb`` gets a `TcpSslError`; the server goes on. For ``shutdown_timeout``, in seconds, see
    `SslSocket.shutdown`. The other arguments are those of `tcp_server`.

    Raises the errors of `tcp_server`, `OSError` for files that cannot be read, and `ssl.SSLError`
    for a wrong certificate, key, password or context.
    """
    if ssl_context is None:
        ssl_context = _context_with(certificate, key, password)
    elif (certificate, key, password) != (None, None, None):
        raise TypeError("certificate, key and password must be None where there is an ssl_context")
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
    options.tls = _tls_options(ssl_context, True, None, None, handshake_timeout, shutdown_timeout)
    TlsState(options.tls)  # a wrong context raises now, and not for each connection
    return make_server(
        SslServer, options, bind_address, port, fd, backlog, reuse_port, max_connections
    )


@overload
def tcp_ssl_connect(
    host: str,
    port: int,
    read_cb: Callable[[SslSocket, AsyncStream], object],
    *,
    stream: Literal[True],
    **keywords: Unpack[SslKeywords[SslSocket]],
) -> AsyncStream: ...
@overload
def tcp_ssl_connect(
    host: str,
    port: int,
    read_cb: Callable[[SslSocket, bytes], object],
    *,
    stream: Literal[False] = False,
    **keywords: Unpack[SslKeywords[SslSocket]],
) -> SslSocket: ...
@overload
def tcp_ssl_connect(
    host: str,
    port: int,
    read_cb: Callable[[SslSocket, Any], object],
    *,
    stream: bool,
    **keywords: Unpack[SslKeywords[SslSocket]],
) -> SslSocket | AsyncStream: ...
def tcp_ssl_connect(
    host: str,
    port: int,
    read_cb: ReadCallback,
    *,
    ssl_context: ssl.SSLContext | None = None,
    server_hostname: str | None = None,
    session: ssl.SSLSession | None = None,
    handshake_timeout: float | None = 60.0,
    shutdown_timeout: float | None = 30.0,
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
    """Connect to a host by TLS, and call ``read_cb(socket, data)`` with data that arrives.

    Without an ``ssl_context`` it is `ssl.create_default_context`'s, made once: the server's
    certificate must be signed by an authority that the system trusts, and name the host. The name
    sent to the server (SNI, RFC 6066) and looked for in the certificate is ``server_hostname``,
    by default ``host``. ``session`` is the `SslSocket.session` of an earlier connection with the
    same context, to be resumed if the server still knows it.

    ``connect_cb(socket)`` is called when the handshake is over. ``connect_timeout`` limits the time
    until TCP is connected, ``handshake_timeout`` the handshake, both in seconds. ``event_cb`` gets
    a `TcpSslError` if the handshake fails or takes longer, if a record is wrong, or if the peer
    ends the connection without a close_notify: then the data may have been cut off. For
    ``shutdown_timeout`` see `SslSocket.shutdown`. The other arguments are those of `tcp_connect`.

    Returns an `SslSocket`, or its `AsyncStream` with ``stream``. Raises the errors of
    `tcp_connect`, and `ValueError` for a name or session that does not go with the context.
    """
    socket = init_tcp_ssl_socket(
        read_cb,
        ssl_context=ssl_context,
        server_hostname=server_hostname,
        session=session,
        handshake_timeout=handshake_timeout,
        shutdown_timeout=shutdown_timeout,
        data=data,
        stream=stream,
        event_cb=event_cb,
        connect_cb=connect_cb,
        write_cb=write_cb,
        read_timeout=read_timeout,
        write_timeout=write_timeout,
        connect_timeout=connect_timeout,
        drain_read_buffer=drain_read_buffer,
        local_address=local_address,
        allow_half_open=allow_half_open,
        pressure_cb=pressure_cb,
        close_cb=close_cb,
        linger=linger,
        context=context,
    )
    return connect_new(socket, host, port)


@overload
def init_tcp_ssl_socket(
    read_cb: Callable[[SslSocket, AsyncStream], object],
    *,
    stream: Literal[True],
    **keywords: Unpack[InitSslKeywords[SslSocket]],
) -> AsyncStream: ...
@overload
def init_tcp_ssl_socket(
    read_cb: Callable[[SslSocket, bytes], object],
    *,
    stream: Literal[False] = False,
    **keywords: Unpack[InitSslKeywords[SslSocket]],
) -> SslSocket: ...
@overload
def init_tcp_ssl_socket(
    read_cb: Callable[[SslSocket, Any], object],
    *,
    stream: bool,
    **keywords: Unpack[InitSslKeywords[SslSocket]],
) -> SslSocket | AsyncStream: ...
def init_tcp_ssl_socket(
    read_cb: ReadCallback,
    *,
    ssl_context: ssl.SSLContext | None = None,
    server_hostname: str | None = None,
    session: ssl.SSLSession | None = None,
    handshake_timeout: float | None = 60.0,
    shutdown_timeout: float | None = 30.0,
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
    """Return an `SslSocket`, a client's, that is not connected yet, for `connect_tcp_socket`.

    It can be written to: the writes are deferred. The keywords are those of `tcp_ssl_connect`. With
    ``fd``, the descriptor of a connected socket, the handshake begins at once: the descriptor is
    duplicated, and the caller keeps its own. No host is known then: a ``server_hostname`` must be
    given, or else an ``ssl_context`` without `ssl.SSLContext.check_hostname`.
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
    options.tls = _tls_options(
        ssl_context, False, server_hostname, session, handshake_timeout, shutdown_timeout
    )
    return make_client(
        SslSocket,
        options,
        fd,
        data,
        write_cb,
        connect_timeout,
        local_address,
        drain_read_buffer,
    )


@overload
def start_tls(socket: AsyncStream, **keywords: Unpack[StartTlsKeywords]) -> AsyncStream: ...
@overload
def start_tls(socket: TcpSocket, **keywords: Unpack[StartTlsKeywords]) -> SslSocket: ...
def start_tls(
    socket: Any,
    *,
    ssl_context: ssl.SSLContext | None = None,
    server_side: bool = False,
    server_hostname: str | None = None,
    session: ssl.SSLSession | None = None,
    received: bytes = b"",
    read_cb: ReadCallback | None = None,
    connect_cb: SocketCallback | None = None,
    event_cb: EventCallback | None = None,
    handshake_timeout: float | None = 60.0,
    shutdown_timeout: float | None = 30.0,
) -> Any:
    """Go on with TLS on a connected `TcpSocket`, or its `AsyncStream`; return it.

    The socket becomes an `SslSocket`, the same object, with its data and time limits. Earlier
    writes are sent as plain text, later ones are encrypted. Unread input, in the `AsyncStream` or
    paused by `TcpSocket.disable`, belongs to TLS. So does ``received``: bytes that came in one
    piece with the message that agrees on TLS, behind it, which the application hands over here.
    They are taken for a part of the handshake, so that nobody can slip in plain text that would
    pass for encrypted data (CVE-2011-0411).

    With ``server_side`` it is the server's side, and ``ssl_context`` must have a certificate.
    Otherwise the context and the ``server_hostname`` are as of `tcp_ssl_connect`; the default is
    the host of `tcp_connect`; of a socket without one, such as an accepted socket, it must be given
    if the context checks names. ``connect_cb(socket)`` is called when the handshake is over;
    ``read_cb`` and ``event_cb``, if given, replace the socket's at once.
    ``socket.disable(read=True)`` takes effect at the end of the handshake.

    Raises `SocketClosed`, `ValueError` for a socket that is not connected, that the peer has ended,
    or that speaks TLS already, `SocketBrokenPipe` after `TcpSocket.shutdown`, and the errors of
    `tcp_ssl_connect`.
    """
    subject = socket
    if isinstance(socket, AsyncStream):
        socket = socket.socket
    require_instance("socket", socket, TcpSocket, AsyncStream)
    require_flag("server_side", server_side)
    for name, callback in [("read_cb", read_cb), ("connect_cb", connect_cb)]:
        optional_callable(name, callback)
    optional_callable("event_cb", event_cb)
    if server_side and ssl_context is None:
        raise TypeError("ssl_context must be a server's ssl.SSLContext, not None")
    tls_options = _tls_options(
        ssl_context, server_side, server_hostname, session, handshake_timeout, shutdown_timeout
    )
    try:
        view = memoryview(received)
    except TypeError:
        raise wrong_type("received", "bytes-like", received) from None
    with view:
        belongs_to_tls = [bytes(view)]
    socket._open_slot()
    state = socket._state
    if state & ENCRYPTED:
        raise ValueError("socket must have no TLS: it speaks TLS already")
    if state & (CONNECTING | UNCONNECTED | ENDED):
        raise ValueError(
            "socket must be connected: it is not connected, or the peer has ended the stream"
        )
    if state & SHUT:
        raise socket_error(-errno.EPIPE, socket)
    if state & SENDING_FILE:
        raise ValueError("socket must send no file: wait for its write_cb")
    remote = socket._options.remote
    host = remote[0] if remote is not None else None
    require_name(tls_options, host)
    tls = TlsState(tls_options, host)
    # Nothing raises from here on: a socket that is neither plain nor TLS would be of no use.
    options = socket._options = socket._options.copy()
    options.tls = tls_options
    options.read_cb = options.bound(read_cb) or options.read_cb
    options.connect_cb = options.bound(connect_cb)
    options.event_cb = options.bound(event_cb) or options.event_cb
    if socket._extras is not None and socket._extras.stream is not None:
        belongs_to_tls.append(socket._extras.stream._take_all())
    start_tls_on(socket, SslSocket, tls, belongs_to_tls)
    return subject


def _context_with(
    certificate: StrOrBytesPath | None, key: StrOrBytesPath | None, password: Password
) -> ssl.SSLContext:
    """Return a server's context with this certificate."""
    if certificate is None:
        raise TypeError(
            "ssl_context must be a server's ssl.SSLContext, not None, or there must be "
            "a certificate"
        )
    files = [("certificate", certificate)]
    if key is not None:
        files.append(("key", key))
    for name, path in files:
        c_string(name, path)
    # As strings or bytes: PyPy takes no other paths.
    paths = [as_path(name, path) for name, path in files]
    if not (
        password is None or isinstance(password, (str, bytes, bytearray)) or callable(password)
    ):
        # A secret may be in it: its value is not shown.
        raise TypeError(
            f"password must be a str, bytes, bytearray or a function, not {type(password).__name__}"
        )
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(paths[0], paths[1] if key is not None else None, password)
    except ssl.SSLError as error:  # which says "PEM lib", and no more
        error.strerror = f"{error.strerror}: {' and '.join(map(os.fsdecode, paths))}"
        raise
    except OSError as error:
        error.filename = _unreadable(paths)
        raise
    return context


def _unreadable(paths: list[Any]) -> Any:
    """Return the first file that cannot be opened, or None."""
    for path in paths:
        try:
            with open(path, "rb"):
                pass
        except OSError:
            return path
    return None


@cache
def _default_context() -> ssl.SSLContext:
    return ssl.create_default_context()  # cached, because it reads some hundred certificates


def _tls_options(
    context: ssl.SSLContext | None,
    server_side: bool,
    server_hostname: str | None,
    session: ssl.SSLSession | None,
    handshake_timeout: float | None,
    shutdown_timeout: float | None,
) -> TlsOptions:
    if context is None:
        context = _default_context()
    if not isinstance(context, ssl.SSLContext):
        raise wrong_type("ssl_context", "an ssl.SSLContext, or None", context)
    wrong = ssl.PROTOCOL_TLS_CLIENT if server_side else ssl.PROTOCOL_TLS_SERVER
    if context.protocol == wrong:  # not every version of Python checks it
        side = "server" if server_side else "client"
        raise ValueError(f"ssl_context must be for the {side}'s side, not {context.protocol!r}")
    if server_hostname is not None:
        require_host("server_hostname", server_hostname)
    if session is not None and not isinstance(session, ssl.SSLSession):
        raise wrong_type("session", "an ssl.SSLSession, or None", session)
    return TlsOptions(
        context,
        server_side=server_side,
        server_hostname=server_hostname,
        session=session,
        handshake_timeout=require_timeout("handshake_timeout", handshake_timeout),
        shutdown_timeout=require_timeout("shutdown_timeout", shutdown_timeout),
    )
