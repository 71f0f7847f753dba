"""TLS without I/O: an `ssl.SSLObject` between two `ssl.MemoryBIO`, one for each direction."""

from __future__ import annotations

import ssl
from collections.abc import Iterable
from typing import Any

from pyasync._core.addresses import ascii_host
from pyasync._core.engine import PYPY
from pyasync._ffi import ffi
from pyasync.errors import TcpSslError

# The phases of a connection, in order.
HANDSHAKE = 0  # also before there is a connection
OPEN = 1
SHUTDOWN = 2  # our close_notify is sent, and nothing may follow it (RFC 8446, 6.1)
PHASE_CLOSED = 3  # C has all writes, or they were dropped
BROKEN = 4  # an error was reported; at most an alert is still on its way

#: The most plain text in a record of TLS, in bytes: RFC 8446, section 5.1.
RECORD_SIZE = 16 << 10

#: How much OpenSSL gets at once, to decrypt or to encrypt, in bytes. An encrypted part leaves with
#: one system call. More would cost memory, because the buffer of a MemoryBIO never shrinks, and is
#: a third larger than the most that it has held.
BATCH_SIZE = 128 << 10


class TlsOptions:
    """The TLS options of a client's socket, or of all connections of a server."""

    __slots__ = (
        "context",
        "handshake_timeout",
        "server_hostname",
        "server_side",
        "session",
        "shutdown_timeout",
    )

    def __init__(
        self,
        context: ssl.SSLContext,
        *,
        server_side: bool,
        server_hostname: str | None = None,
        session: ssl.SSLSession | None = None,
        handshake_timeout: float | None,
        shutdown_timeout: float | None,
    ) -> None:
        self.context = context
        self.server_side = server_side
        self.server_hostname = server_hostname
        self.session = session
        self.handshake_timeout = handshake_timeout
        self.shutdown_timeout = shutdown_timeout


class TlsState:
    """The TLS of one connection."""

    __slots__ = (
        "answers_size",
        "blocked",
        "ended",
        "error",
        "incoming",
        "object",
        "outgoing",
        "phase",
        "sending",
        "to_encrypt",
    )  # fmt: skip

    def __init__(self, options: TlsOptions, host: str | None = None) -> None:
        """Begin; ``host`` is the server's name if the options have no ``server_hostname``.

        Raises `ssl.SSLError` or `ValueError` for options that do not fit together.
        """
        self.incoming = ssl.MemoryBIO()
        self.outgoing = ssl.MemoryBIO()
        name = options.server_hostname
        if name is None:
            name = host
        if name is not None:
            # Without the zone, which means something on this host only (RFC 6874, section 1), and
            # without the dot at the end of an absolute name (RFC 6066, section 3).
            name = ascii_host(name.partition("%")[0])
            name = name[:-1] if name.endswith(".") else name
        self.object = options.context.wrap_bio(
            self.incoming,
            self.outgoing,
            server_side=options.server_side,
            server_hostname=None if options.server_side else name,
            session=options.session,
        )
        self.phase = HANDSHAKE
        #: The peer's close_notify has arrived.
        self.ended = False
        self.error: TcpSslError | None = None
        #: A write is blocked. Until it is done nothing is encrypted, so that a slow peer's data
        #: waits as the application's own objects, and not as copies.
        self.blocked = False
        #: Bytes of answers to key updates that were sent while a write was blocked.
        self.answers_size = 0
        #: The stream is in the engine's ``to_encrypt``.
        self.to_encrypt = False
        #: Encrypting now. A signal handler that writes must not call OpenSSL in the middle of it.
        self.sending = False

    def handshake(self) -> bool:
        """Go on with the handshake; return whether it is over. May set `error`."""
        try:
            self.object.do_handshake()
        except ssl.SSLWantReadError:
            return False
        except (OSError, ValueError) as error:
            self.error = tls_error(error)
            return False
        self.phase = OPEN
        return True

    def feed(self, data: memoryview) -> None:
        """Give input to the handshake."""
        for piece in _pieces(data):
            write(self.incoming, piece)

    def receive(self, data: memoryview) -> bytes:
        """Decrypt input, and return the data. `ended` and `error`, if it sets them, come after."""
        chunks: list[bytes] = []
        for piece in _pieces(data):
            write(self.incoming, piece)
            self._decrypt(chunks)
            if self.ended or self.error is not None:
                break
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def receive_pending(self) -> bytes:
        """Decrypt the input that came with the end of the handshake, as `receive` does."""
        chunks: list[bytes] = []
        self._decrypt(chunks)
        return b"".join(chunks)

    def _decrypt(self, chunks: list[bytes]) -> None:
        incoming, read = self.incoming, self.object.read
        try:
            # A read takes one record off the BIO. Without the check of pending, each call would end
            # with an SSLWantReadError, which costs as much as a small record.
            while incoming.pending:
                chunk = read(RECORD_SIZE)
                if not chunk:
                    self.ended = True
                    return
                chunks.append(chunk)
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:  # close_notify in answer to ours
            self.ended = True
        except OSError as error:
            if self.phase == SHUTDOWN and _reason(error) == "PROTOCOL_IS_SHUTDOWN":
                self.ended = True  # PyPy's error for a close_notify in answer to ours
            else:
                self.error = tls_error(error)

    def shut_down(self) -> None:
        """Put a close_notify behind the encrypted data."""
        self.phase = SHUTDOWN
        try:
            self.object.unwrap()
        except OSError:
            # SSLWantReadError: ours is in the BIO, and the peer's has not arrived. Any other error
            # shows when more is read.
            pass


def _pieces(data: memoryview) -> Iterable[memoryview]:
    if len(data) <= BATCH_SIZE:
        return (data,)
    return (data[start : start + BATCH_SIZE] for start in range(0, len(data), BATCH_SIZE))


def write(target: ssl.SSLObject | ssl.MemoryBIO, data: bytes | memoryview) -> None:
    """Write at most `BATCH_SIZE` bytes to OpenSSL, which takes all or raises.

    On PyPy the data is copied to C memory first. To pass `bytes` to C, PyPy would move them to
    memory that only a major collection frees; of a memoryview it would make such bytes. Major
    collections are rare, and memory would grow with the data that passes through.
    """
    if not PYPY:
        target.write(data)
        return
    try:
        memory = _spare.pop()  # atomic: other threads' loops use the list too
    except IndexError:
        memory = ffi.new("char[]", BATCH_SIZE)
    try:
        ffi.memmove(memory, data, len(data))
        target.write(ffi.buffer(memory, len(data)))
    finally:
        _spare.append(memory)


#: Free buffers of `write`, for all threads.
_spare: list[Any] = []


def tls_error(error: OSError | ValueError) -> TcpSslError:
    """Return the `TcpSslError` for an exception of the module `ssl`."""
    number = getattr(error, "errno", None) or ssl.SSL_ERROR_SSL
    result = TcpSslError(number, getattr(error, "strerror", None) or str(error))
    for name in ("library", "reason", "verify_code", "verify_message"):
        setattr(result, name, getattr(error, name, None))
    if isinstance(error, (ssl.SSLError, ValueError)):
        result._errcode = None  # errno is OpenSSL's number here, and not the system's
    result.__cause__ = error.with_traceback(None)  # the traceback's frames would keep the socket
    return result


def _reason(error: OSError) -> str | None:
    return getattr(error, "reason", None)


def make_error(number: int, reason: str, text: str) -> TcpSslError:
    """Return an error that OpenSSL does not report, in the same form as one that it does."""
    error = TcpSslError(number, text)
    error.library, error.reason = "SSL", reason
    return error
