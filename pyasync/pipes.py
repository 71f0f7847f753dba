"""Pipes: Unix domain sockets, with a path or, on Linux, an abstract name (unix(7))."""

from __future__ import annotations

import errno
import os
import socket as sockets
import stat
import sys
from collections.abc import Callable, Sequence
from contextvars import Context
from struct import Struct
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, overload

from pyasync._core.arguments import (
    Descriptor,
    StrOrBytesPath,
    as_path,
    optional_callable,
    require_descriptor,
    require_flag,
    require_integer,
    require_timeout,
    wrong_value,
)
from pyasync._core.connecting import Socket
from pyasync._core.deadlines import Timer
from pyasync._core.sockets import adopt, listen, new_socket, require_limits
from pyasync._core.stream import UNCONNECTED, Data, WriteCallback
from pyasync._ffi import lib
from pyasync.async_stream import AsyncStream
from pyasync.errors import PipeNotFound, SocketAddressInUse, SocketError, check, socket_error
from pyasync.loop import EventCallback, get_loop, logger
from pyasync.options import StreamOptions
from pyasync.streams import Server, Stream

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from pyasync._keywords import ClientKeywords

ReadCallback = Callable[["PipeSocket", Any], object]
SocketCallback = Callable[["PipeSocket"], object]
PressureCallback = Callable[["PipeSocket", bool], object]
CloseCallback = Callable[["PipeSocket", "Exception | None"], object]
Name = StrOrBytesPath

LINUX = sys.platform == "linux"

#: The longest name, in bytes: sun_path has 108, with the zero byte at the end (unix(7)); 104 on
#: macOS and the BSDs.
LONGEST = 107 if LINUX else 103

#: When a server's backlog is full, a client tries again after this time, in seconds, because the
#: kernel does not tell when there is room again (connect(2), EAGAIN).
CONNECT_RETRY = 0.01


#: Linux's struct ucred: pid_t, uid_t and gid_t.
_SO_PEERCRED: int = lib.pa_peercred_option()
_CREDENTIALS = Struct("iII")


class PeerCredentials(NamedTuple):
    """The process at the other end of a pipe, as `PipeSocket.peer_credentials` tells it."""

    pid: int
    uid: int
    gid: int


class PipeSocket(Stream, Socket):
    """A connection over a pipe, accepted by a `PipeServer` or made by `pipe_connect`."""

    __slots__ = ()

    if TYPE_CHECKING:

        @property
        def peername(self) -> str | bytes: ...
        @property
        def sockname(self) -> str | bytes: ...

    @property
    def peer_credentials(self) -> PeerCredentials:
        """The process id, user and group of the peer: ``(pid, uid, gid)``, told by the kernel.

        They are those of the process that has connected, or has begun to listen, at that time
        (SO_PEERCRED, unix(7)): it may have ended since, or have passed its descriptor on. Linux has
        them; elsewhere, and for a socket that is not connected, raises `SocketError`, and after the
        end `SocketClosed`.
        """
        if _SO_PEERCRED < 0:
            raise socket_error(-errno.ENOTSUP, self)
        packed = self.getsockopt(sockets.SOL_SOCKET, _SO_PEERCRED, _CREDENTIALS.size)
        return PeerCredentials._make(_CREDENTIALS.unpack(packed))

    def _target(self) -> str:
        connector = self._need_extras().connector
        return "a pipe" if connector is None else repr(connector.path)


class PipeServer(Server):
    """A server at a pipe, made by `pipe_server`."""

    __slots__ = ("_file",)

    if TYPE_CHECKING:

        @property
        def address(self) -> str | bytes: ...
        @property
        def connections(self) -> Sequence[PipeSocket]: ...

    _connection = PipeSocket
    _kind = lib.PA_PIPE_SERVER

    def __init__(
        self, options: StreamOptions, sock: sockets.socket, limit: int | None, file: _File | None
    ) -> None:
        super().__init__(options, sock, limit)
        self._file = file

    def close(self) -> None:
        """Stop accepting, and remove the socket's file if it is still this server's."""
        if self._slot >= 0 and self._loop.may_change():
            self._remove_file()
        super().close()

    def _on_loop_end(self) -> None:
        super()._on_loop_end()
        self._remove_file()

    def _remove_file(self) -> None:
        """Remove the file, while the server listens still.

        Once it does not, another may replace the file, and that file may get the same inode.
        """
        file, self._file = self._file, None
        if file is not None:
            file.remove()


class _File:
    """The file that a server's bind has made."""

    def __init__(self, path: str | bytes) -> None:
        # Absolute, because the program may change its directory before the file is removed.
        self._path = os.path.abspath(path)
        self._identity = self._look()

    def _look(self) -> tuple[int, int] | None:
        """Return the device and inode of the file that has the path now; None: there is none."""
        try:
            status = os.lstat(self._path)
        except OSError:
            return None
        return status.st_dev, status.st_ino

    def remove(self) -> None:
        """Remove it, unless it is another's by now: removing that would cut its server off."""
        if self._identity is not None and self._look() == self._identity:
            try:
                os.unlink(self._path)
            except OSError as error:
                logger.warning("cannot remove the file of a pipe: %s", error)


def pipe_server(
    name: Name | None,
    read_cb: ReadCallback,
    *,
    event_cb: EventCallback | None = None,
    connect_cb: SocketCallback | None = None,
    backlog: int | None = None,
    stream: bool = False,
    fd: Descriptor | None = None,
    mode: int | None = None,
    allow_half_open: bool = False,
    max_connections: int | None = None,
    pressure_cb: PressureCallback | None = None,
    close_cb: CloseCallback | None = None,
    read_timeout: float | None = None,
    write_timeout: float | None = None,
    linger: float | None = 2.0,
    context: Context | None = None,
) -> PipeServer:
    """Accept connections at a pipe, and call ``read_cb(socket, data)`` with data that arrives.

    ``name`` is a path, or, on Linux, an abstract name, which begins with a zero byte (unix(7)). The
    file of an earlier server, at which nobody listens any more, is replaced. When the server is
    closed, or its loop ends, it removes its file, unless another server has replaced that. With
    ``fd``, a descriptor that is bound already, ``name`` is None, and no file is removed. ``mode``
    is the mode of the file, such as 0o660: who may write to it may connect (unix(7)). It has that
    mode before anybody can; None: it is what the umask leaves. The other keywords are those of
    `tcp_server`.

    Raises `SocketAddressInUse` or another `SocketError` if it cannot listen there, `ValueError`
    (a name that is too long, among others), `TypeError`, and `EventLoopNotRunning`.
    """
    loop = get_loop()
    require_limits(max_connections, backlog)
    options = StreamOptions(
        loop,
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
    loop.submit()  # the pending close of another server may free the name
    path = None if name is None else _path(name)
    if mode is not None:
        require_integer("mode", mode, 0, 0o7777, ", or None")
        if path is None or _is_abstract(path):
            raise wrong_value("mode", "None where there is no file", mode)
    if fd is None:
        if path is None:
            raise TypeError("name must be a path, not None, or there must be an fd")
        sock = _new_socket(path)
    elif path is None:
        sock = adopt(fd, (sockets.AF_UNIX,))
    else:
        fd = require_descriptor("fd", fd)
        raise ValueError(f"fd must be None where a name says where to listen, not {fd}")
    file = None
    with sock:
        try:
            if path is not None:
                file = _bind(sock, path)
                if mode is not None:  # before it listens: until then nobody can connect
                    _change_mode(path, mode)
            try:
                listen(sock, backlog)
            except OSError as error:
                raise _pipe_error(error, sock.getsockname()) from None
            return PipeServer(options, sock, max_connections, file)
        except BaseException:
            if file is not None:
                file.remove()
            raise


def _path(name: Name) -> str | bytes:
    allowed = f"a path of 1 to {LONGEST} bytes without zero bytes"
    if LINUX:
        allowed += ", or an abstract name"
    path = as_path("name", name, allowed)
    try:
        encoded = os.fsencode(path)
    except UnicodeEncodeError:
        raise wrong_value("name", allowed, name) from None
    abstract = LINUX and encoded[:1] == b"\0"
    # For the kernel a path would end at a zero byte.
    if not 0 < len(encoded) <= LONGEST or (0 in encoded and not abstract):
        raise wrong_value("name", allowed, name)
    return path


def _new_socket(path: str | bytes) -> sockets.socket:
    try:
        return new_socket(sockets.AF_UNIX, sockets.SOCK_STREAM)
    except OSError as error:  # such as EMFILE
        raise _pipe_error(error, path) from None


def _bind(sock: sockets.socket, path: str | bytes) -> _File | None:
    """Bind the socket; return the file that this has made. An abstract name has none."""
    try:
        try:
            sock.bind(path)
        except OSError as error:
            # A socket's file outlives its server (unix(7)): only a connect tells.
            if error.errno != errno.EADDRINUSE or not _is_stale(path):
                raise
            os.unlink(path)
            sock.bind(path)
    except OSError as error:
        raise _pipe_error(error, path) from None
    return None if _is_abstract(path) else _File(path)


def _change_mode(path: str | bytes, mode: int) -> None:
    try:
        os.chmod(path, mode)
    except OSError as error:
        raise _pipe_error(error, path) from None


def _is_abstract(path: str | bytes) -> bool:
    return os.fsencode(path[:1]) == b"\0"


def _is_stale(path: str | bytes) -> bool:
    """Whether there is a socket's file at the path, and nobody listens."""
    if _is_abstract(path) or not stat.S_ISSOCK(os.stat(path).st_mode):
        return False
    with sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM) as probe:
        probe.setblocking(False)  # a full backlog is EAGAIN: somebody listens
        return probe.connect_ex(path) == errno.ECONNREFUSED


def _pipe_error(error: OSError, path: str | bytes) -> SocketError:
    number = error.errno or errno.EIO
    kind = {errno.ENOENT: PipeNotFound, errno.EADDRINUSE: SocketAddressInUse}.get(number)
    pipe_error = socket_error(-number, kind=kind)
    pipe_error.filename = path
    return pipe_error


@overload
def pipe_connect(
    name: Name,
    read_cb: Callable[[PipeSocket, AsyncStream], object],
    *,
    stream: Literal[True],
    **keywords: Unpack[ClientKeywords[PipeSocket]],
) -> AsyncStream: ...
@overload
def pipe_connect(
    name: Name,
    read_cb: Callable[[PipeSocket, bytes], object],
    *,
    stream: Literal[False] = False,
    **keywords: Unpack[ClientKeywords[PipeSocket]],
) -> PipeSocket: ...
@overload
def pipe_connect(
    name: Name,
    read_cb: Callable[[PipeSocket, Any], object],
    *,
    stream: bool,
    **keywords: Unpack[ClientKeywords[PipeSocket]],
) -> PipeSocket | AsyncStream: ...
def pipe_connect(
    name: Name,
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
    allow_half_open: bool = False,
    pressure_cb: PressureCallback | None = None,
    close_cb: CloseCallback | None = None,
    linger: float | None = 2.0,
    context: Context | None = None,
) -> Any:
    """Connect to a pipe, and call ``read_cb(socket, data)`` with data that arrives.

    ``name`` is a path, or, on Linux, an abstract name, which begins with a zero byte (unix(7)). If
    there is no such pipe ``event_cb`` gets a `PipeNotFound`, if nobody listens there a
    `SocketRefused`. A relative path belongs to the working directory at the time of the call,
    unless the absolute path has more than 107 bytes: then to that of the loop's next iteration.
    The keywords are those of `tcp_connect`. Returns a `PipeSocket`, or its `AsyncStream`. Raises
    `ValueError`, `TypeError` and `EventLoopNotRunning`.
    """
    loop = get_loop()
    path = _resolve(_path(name))
    optional_callable("write_cb", write_cb)
    options = StreamOptions(
        loop,
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
    options.drain_read_buffer = require_flag("drain_read_buffer", drain_read_buffer)
    require_timeout("connect_timeout", connect_timeout)
    socket = PipeSocket(options, -1, UNCONNECTED)
    socket._bind_context()
    if data is not None:
        socket.write(data, write_cb=write_cb)
    socket._begin()
    socket._connect_to(_PipeConnector(socket, path), connect_timeout)
    return socket._subject


def _resolve(path: str | bytes) -> str | bytes:
    """Return the absolute path, if the kernel takes one of that length; else the path itself."""
    absolute = path if _is_abstract(path) else os.path.abspath(path)
    return absolute if len(os.fsencode(absolute)) <= LONGEST else path


class _PipeConnector:
    """Connects in the loop's next iteration, and tries again while the server's backlog is full.

    Python connects, because ``uv_pipe_connect`` knows no abstract names.
    """

    def __init__(self, socket: PipeSocket, path: str | bytes) -> None:
        self._socket = socket
        self.path = path
        self._timer = Timer(socket._loop, self._connect)
        self._timer.start()

    def close(self) -> None:
        self._timer.stop()

    def _connect(self) -> None:
        loop = self._socket._loop
        try:
            with new_socket(sockets.AF_UNIX, sockets.SOCK_STREAM) as sock:
                sock.setblocking(False)
                sock.connect(self.path)
                slot = check(lib.pa_open(loop.c, sock.detach(), lib.PA_PIPE, True))
        except BlockingIOError:
            self._timer.start(CONNECT_RETRY)
        except OSError as error:
            self._socket._fail_with(_pipe_error(error, self.path))
        else:
            self._socket._on_slot(slot)
            self._socket._begin_connected()
