"""Every exception of pyasync, and how libuv's errors become them.

Each error is also the builtin exception that a Python programmer would catch. Errors from libuv
carry ``errno`` and ``strerror`` as any `OSError` does, and cl-async's names for the same:
``errcode`` (libuv's negative number) and ``errmsg``.
"""

from __future__ import annotations

import errno
import functools
import os
import socket
import ssl
from typing import TYPE_CHECKING, Any

from pyasync._ffi import ffi, lib

if TYPE_CHECKING:
    from pyasync.streams import Server, Stream
    from pyasync.udp import UdpSocket


class EventInfo(Exception):
    """An event for an ``event_cb``; by itself it is no error."""


class EventError(EventInfo):
    """An error that an ``event_cb`` gets, or that a call raises."""

    #: Set where `errcode` does not follow from ``errno``.
    _errcode: int | None

    @property
    def errcode(self) -> int | None:
        """Libuv's number of the error; None if the error is not libuv's.

        It is ``-errno`` on Unix, or ``UV_EAI_...`` for an error of getaddrinfo(3), such as -3008 if
        there is no such name.
        """
        try:
            return self._errcode
        except AttributeError:
            return libuv_number(self)

    @property
    def errmsg(self) -> str:
        """The error's text."""
        return getattr(self, "strerror", None) or str(self)


@functools.cache
def _as_builtin(kind: type[OSError], number: Any) -> type[OSError]:
    """Return the class of this name that is the builtin class of the errno too.

    `OSError` itself does the same: ``OSError(errno.EEXIST, "")`` is a `FileExistsError`.
    """
    builtin = type(OSError(number, ""))
    if issubclass(kind, (builtin, ssl.SSLError)):  # whose numbers are OpenSSL's
        return kind

    def reduce(self: OSError) -> Any:  # pickle finds a class by its name, and so the other one
        made: Any = OSError.__reduce__(self)
        return (kind, *made[1:])

    members = {"__module__": kind.__module__, "__doc__": kind.__doc__, "__reduce__": reduce}
    return type(kind.__name__, (kind, builtin), members)


def _new_error(cls: type[OSError], *args: Any) -> Any:
    """Make an error whose first argument is its errno, unless it has a text only."""
    if len(args) > 1:
        cls = _as_builtin(cls, args[0])  # type: ignore[arg-type]  # a class has a hash
    return OSError.__new__(cls, *args)


class CallbackError(EventError):
    """A callback has raised, and ``catch_app_errors=True`` lets the loop go on.

    ``error`` (also ``__cause__``) is the exception. ``owner`` is the handle, timer or request whose
    callback it was. ``socket`` is the owner if that is a socket or server, else None.
    """

    def __init__(self, error: Any, owner: Any = None) -> None:
        super().__init__(f"{type(error).__name__}: {error}")
        self.error = error
        self.owner = owner
        self.socket = owner if hasattr(type(owner), "fileno") else None


class EventLoopNotRunning(EventError, RuntimeError):
    """The call needs a running event loop in this thread, or its object's loop has ended."""


class HandleClosed(EventError, ValueError):
    """The call was made on a handle that is closed."""


class EventFreed(HandleClosed):
    """The event has been freed."""


class NotifierFreed(HandleClosed):
    """The notifier has been freed, or its loop has ended."""


class DnsError(EventError, socket.gaierror):
    """A name or an address could not be looked up; ``errno`` is the ``socket.EAI_…`` code."""


class SocketEOF(EventInfo):
    """The peer has shut down its sending side: nothing more will be read from ``socket``."""

    socket: Stream = None  # type: ignore[assignment]  # set before it is reported


class SocketError(EventError, OSError):
    """A socket's error; ``socket`` is the socket or server that has it, if there is one.

    It is an instance of the builtin class of its ``errno`` too, where Python has one: with EACCES
    of `PermissionError`, for example.
    """

    if not TYPE_CHECKING:
        __new__ = _new_error
    socket: Stream | UdpSocket | Server | None = None


class IncompleteReadError(EventError, EOFError):
    """The end of a stream has come before all that was asked for.

    ``partial`` is what came before it, and ``expected`` the number of bytes that was asked for, or
    None. As asyncio's exception of this name.
    """

    partial: bytes = b""
    expected: int | None = None


class LimitOverrunError(EventError, ValueError):
    """More than ``limit`` bytes have arrived without the separator that was asked for.

    They are still in the stream; ``consumed`` of them have no separator, and can be read to go on.
    As asyncio's exception of this name.
    """

    consumed: int = 0


class SocketReset(SocketError, ConnectionResetError):
    """The peer has reset the connection (ECONNRESET)."""


class SocketRefused(SocketError, ConnectionRefusedError):
    """Nobody listens there (ECONNREFUSED)."""


class SocketUnreachable(SocketError):
    """There is no route to the host or its network (EHOSTUNREACH, ENETUNREACH)."""


class SocketAborted(SocketError, ConnectionAbortedError):
    """The connection was aborted (ECONNABORTED)."""


class SocketTimeout(SocketError, TimeoutError):
    """A time limit has passed (ETIMEDOUT)."""


class SocketBrokenPipe(SocketError, BrokenPipeError):
    """The socket was written to, and can send no more (EPIPE)."""


class SocketCanceled(SocketError):
    """The operation was cancelled (ECANCELED)."""


class SocketClosed(SocketError, HandleClosed):
    """The call was made on a closed socket."""


class SocketAcceptError(SocketError):
    """A server could not accept: it is out of descriptors or memory, and will try again.

    ``server`` is the server, ``count`` the number of failures since its last report.
    """

    server: Server = None  # type: ignore[assignment]  # set before it is reported
    count: int = 1


class TcpServerBindError(SocketError):
    """A server, or a UDP socket, could not bind to its ``address`` and ``port``."""

    address: str | None = None
    port: int | None = None


class SocketAddressInUse(TcpServerBindError):
    """Another socket has the address (EADDRINUSE)."""


class PipeNotFound(SocketError, FileNotFoundError):
    """There is no pipe of that name (ENOENT)."""


class TcpSslError(SocketError, ssl.SSLError):
    """TLS failed: the handshake, a certificate, or a record.

    ``library`` and ``reason`` are OpenSSL's names for the error, as of `ssl.SSLError`. For a
    certificate that was refused, ``verify_code`` and ``verify_message`` give the reason.
    """

    verify_code: int | None = None
    verify_message: str | None = None


class FilesystemError(EventError, OSError):
    """An operation on files failed; ``filename`` is set where there is one.

    It is an instance of the builtin class of its ``errno`` too, where Python has one: of
    `FileExistsError`, `IsADirectoryError`, `NotADirectoryError`, `BlockingIOError` and others.
    """

    if not TYPE_CHECKING:
        __new__ = _new_error


class FilesystemNotFound(FilesystemError, FileNotFoundError):
    """There is no such file or directory (ENOENT)."""


class FilesystemAccess(FilesystemError, PermissionError):
    """Permission denied (EACCES)."""


class FilesystemPermission(FilesystemError, PermissionError):
    """Operation not permitted (EPERM)."""


_SOCKET_ERRORS: dict[int, type[SocketError]] = {
    errno.ECONNRESET: SocketReset,
    errno.ECONNREFUSED: SocketRefused,
    errno.ECONNABORTED: SocketAborted,
    errno.ETIMEDOUT: SocketTimeout,
    errno.EPIPE: SocketBrokenPipe,
    errno.ECANCELED: SocketCanceled,
    errno.EADDRINUSE: SocketAddressInUse,
    errno.EHOSTUNREACH: SocketUnreachable,
    errno.ENETUNREACH: SocketUnreachable,
}


#: Libuv's numbers of the errors of getaddrinfo(3), by the system's. Where the system has one number
#: for two, the last counts.
_EAI_ERRORS: dict[int, int] = {
    getattr(socket, name): getattr(lib, f"UV_{name}")
    for name in (
        "EAI_ADDRFAMILY",
        "EAI_AGAIN",
        "EAI_BADFLAGS",
        "EAI_FAIL",
        "EAI_FAMILY",
        "EAI_MEMORY",
        "EAI_NODATA",
        "EAI_NONAME",
        "EAI_OVERFLOW",
        "EAI_SERVICE",
        "EAI_SOCKTYPE",
    )
    if hasattr(socket, name)
}


def libuv_number(error: Exception) -> int | None:
    """Return libuv's number of an error with an errno or a number of getaddrinfo(3), or None."""
    number: int | None = getattr(error, "errno", None)
    if number is not None and isinstance(error, socket.gaierror):
        return _EAI_ERRORS.get(number)
    return None if number is None else -number


def message(status: int) -> str:
    """Return the text of a libuv error, which is a negative number."""
    # The system's text first, because it is the one of Python's own errors.
    known = os.strerror(-status)
    if not known.startswith("Unknown error"):
        return known
    return str(ffi.string(lib.uv_strerror(status)).decode())


def socket_error(
    status: int,
    socket: Any = None,
    kind: type[SocketError] | None = None,
    detail: str | None = None,
) -> SocketError:
    """Return the exception for a libuv error of a socket."""
    kind = kind or _SOCKET_ERRORS.get(-status, SocketError)
    text = message(status)
    error = kind(-status, text if detail is None else f"{text}: {detail}")
    error.socket = socket
    return error


_FILESYSTEM_ERRORS: dict[int, type[FilesystemError]] = {
    errno.ENOENT: FilesystemNotFound,
    errno.EACCES: FilesystemAccess,
    errno.EPERM: FilesystemPermission,
}


def filesystem_error(
    status: int, filename: Any = None, filename2: Any = None, detail: str | None = None
) -> FilesystemError:
    """Return the exception for a libuv error of an operation on files."""
    kind = _FILESYSTEM_ERRORS.get(-status, FilesystemError)
    text = message(status) if detail is None else f"{message(status)}: {detail}"
    if filename is None:
        return kind(-status, text)
    return kind(-status, text, filename, None, filename2)


def check(status: int) -> int:
    """Return libuv's result; raise `SocketError` if it is an error, a negative number."""
    if status < 0:
        raise socket_error(status)
    return status
