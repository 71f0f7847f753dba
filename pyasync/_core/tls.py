"""TLS without a connection: what arrives goes in, what is to be sent comes out.

It is the standard library's: an `ssl.SSLObject` between two `ssl.MemoryBIO`.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterable
from typing import Any

from pyasync._core.engine import PYPY
from pyasync._ffi import ffi
from pyasync.errors import TcpSslError

# The phases of a connection, in order.
HANDSHAKE = 0  # also before there is a connection
OPEN = 1
SHUTDOWN = 2  # our close_notify has been sent: nothing more will be
PHASE_CLOSED = 3  # all that was to be sent has been handed over, or was dropped
BROKEN = 4  # an error has been reported

#: The most content that a record has, in bytes: RFC 8446, section 5.1.
RECORD_SIZE = 16 << 10

#: How much is handed to OpenSSL at once, to decrypt and to encrypt: what is encrypted leaves with
#: one system call. The buffer of a MemoryBIO never shrinks, so a connection that has seen as much
#: keeps a buffer of that size, and a third.
BATCH_SIZE = 128 << 10


class TlsOptions:
    """What a client's socket, or all the connections of a server, were asked to do about TLS."""

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
        """Begin; ``host`` is the name of the server if the options give none.

        Raises `ssl.SSLError` or `ValueError` for options that do not fit together.
        """
        self.incoming = ssl.MemoryBIO()
        self.outgoing = ssl.MemoryBIO()
        name = options.server_hostname
        if name is None and host is not None:
            name = host.partition("%")[0]  # a zone is none of the peer's business: RFC 6874, 1
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
        #: The kernel takes no more for now: nothing is encrypted meanwhile.
        self.blocked = False
        #: Bytes of answers to key updates that have been sent since then.
        self.answers_size = 0
        #: What was written will be encrypted before the loop's next crossing.
        self.to_encrypt = False
        #: It is being encrypted: a signal's handler that writes has to wait.
        self.sending = False

    def handshake(self) -> bool:
        """Go on with what has arrived; return whether the handshake is over. May set `error`."""
        try:
            self.object.do_handshake()
        except ssl.SSLWantReadError:
            return False
        except (OSError, ValueError) as error:
            self.error = tls_error(error)
            return False
        self.phase = OPEN
        return True

    def feed(self, data: memoryview) -> bytes:
        """Take what has arrived, for the handshake: there is nothing to deliver."""
        for piece in _pieces(data):
            write(self.incoming, piece)
        return b""

    def receive(self, data: memoryview) -> bytes:
        """Decrypt what has arrived. May set `ended`, and `error`, behind what it returns."""
        chunks: list[bytes] = []
        for piece in _pieces(data):
            write(self.incoming, piece)
            self._decrypt(chunks)
            if self.ended or self.error is not None:
                break
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def receive_pending(self) -> bytes:
        """Decrypt what came with the end of the handshake, as `receive` does."""
        chunks: list[bytes] = []
        self._decrypt(chunks)
        return b"".join(chunks)

    def _decrypt(self, chunks: list[bytes]) -> None:
        incoming, read = self.incoming, self.object.read
        try:
            # A read takes one record off the BIO. To try once more than there are records would
            # raise SSLWantReadError, which costs as much as a small record does.
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
                self.ended = True  # the same, on PyPy
            else:
                self.error = tls_error(error)

    def shut_down(self) -> None:
        """Let a close_notify follow what has been encrypted."""
        self.phase = SHUTDOWN
        try:
            self.object.unwrap()
        except OSError:
            # SSLWantReadError: it is sent, and the peer's has not arrived. What else is wrong
            # shows when more is read.
            pass


def _pieces(data: memoryview) -> Iterable[memoryview]:
    if len(data) <= BATCH_SIZE:
        return (data,)
    return (data[start : start + BATCH_SIZE] for start in range(0, len(data), BATCH_SIZE))


def write(target: ssl.SSLObject | ssl.MemoryBIO, data: bytes | memoryview) -> None:
    """Write at most `BATCH_SIZE` bytes to OpenSSL, which takes all or raises.

    To give `bytes` to C, PyPy moves them to where only its major collections free them, which are
    few beside much data; of a memoryview it makes such bytes first. So it gets memory of C.
    """
    if not PYPY:
        target.write(data)
        return
    try:
        memory = _spare.pop()
    except IndexError:
        memory = ffi.new("char[]", BATCH_SIZE)
    try:
        ffi.memmove(memory, data, len(data))
        target.write(ffi.buffer(memory, len(data)))
    finally:
        _spare.append(memory)


#: Memory for `write` that nobody uses now, in any thread.
_spare: list[Any] = []


def tls_error(error: OSError | ValueError) -> TcpSslError:
    """Return what an ``event_cb`` is told of an error of the module `ssl`."""
    number = getattr(error, "errno", None) or ssl.SSL_ERROR_SSL
    result = TcpSslError(number, getattr(error, "strerror", None) or str(error))
    for name in ("library", "reason", "verify_code", "verify_message"):
        setattr(result, name, getattr(error, name, None))
    if isinstance(error, (ssl.SSLError, ValueError)):
        result._errcode = None  # errno is OpenSSL's, which counts its errors from 1 as well
    result.__cause__ = error.with_traceback(None)  # its frames would keep the socket
    return result


def _reason(error: OSError) -> str | None:
    return getattr(error, "reason", None)


def make_error(number: int, reason: str, text: str) -> TcpSslError:
    """Return an error that OpenSSL does not report, in the form of those that it does."""
    error = TcpSslError(number, text)
    error.library, error.reason = "SSL", reason
    return error
