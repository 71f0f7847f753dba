"""TLS without I/O: an `ssl.SSLObject` between two `ssl.MemoryBIO`, one for each direction."""

from __future__ import annotations

import ssl
from typing import Any

from pyasync._core.addresses import ascii_host
from pyasync._core.arguments import wrong_value
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

#: How many records OpenSSL gets at once, to decrypt. A call of OpenSSL's goes on until it has data,
#: and a peer may send records without any, each of which costs a derivation of keys.
BATCH_RECORDS = 32

#: How many records a stream decrypts before others have their turn.
TURN_RECORDS = 256

#: The most records without data, one after the other, after the handshake. A few are usual: tickets
#: of sessions, a change of keys, a renegotiation.
IDLE_RECORDS = 64


NOTHING = memoryview(b"")


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


def require_name(options: TlsOptions, host: str | None) -> None:
    """Refuse a client that has no name to look for in the server's certificate, and must.

    Before Python 3.14 `ssl` takes such a connection, and looks for none.
    """
    if (
        options.context.check_hostname
        and not options.server_side
        and options.server_hostname is None
        and host is None
    ):
        raise ValueError(
            "server_hostname must be a host's name, not None, "
            "because ssl_context.check_hostname is true and no host is known"
        )


class TlsState:
    """The TLS of one connection."""

    __slots__ = (
        "answers_size",
        "blocked",
        "ended",
        "ends",
        "error",
        "header",
        "idle_records",
        "incoming",
        "missing",
        "object",
        "outgoing",
        "paused",
        "phase",
        "sending",
        "tickets_size",
        "to_encrypt",
        "unfed",
    )

    def __init__(self, options: TlsOptions, host: str | None = None) -> None:
        """Begin; ``host`` is the server's name if the options have no ``server_hostname``.

        Raises `ssl.SSLError` or `ValueError` for options that do not fit together.
        """
        self.incoming = ssl.MemoryBIO()
        self.outgoing = ssl.MemoryBIO()
        name = options.server_hostname
        if name is None:
            name = host
        try:
            if name is not None:
                # Without the zone, which means something on this host only (RFC 6874, section 1),
                # and without the dot at the end of an absolute name (RFC 6066, section 3).
                name = ascii_host(name.partition("%")[0])
                name = name[:-1] if name.endswith(".") else name
                if not name or name[0] == ".":
                    raise UnicodeError("an empty label")
            self.object = options.context.wrap_bio(
                self.incoming,
                self.outgoing,
                server_side=options.server_side,
                server_hostname=None if options.server_side else name,
                session=options.session,
            )
        except UnicodeError:  # such as of an empty label
            argument = "host" if options.server_hostname is None else "server_hostname"
            given = host if options.server_hostname is None else options.server_hostname
            raise wrong_value(argument, "a host's name", given) from None
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
        #: Bytes of session tickets (TLS 1.3) at the beginning of ``outgoing``, which wait until
        #: there is something else to send. If a client that reads nothing closes its socket with
        #: tickets unread, its system resets the connection, and what it has sent may be lost.
        self.tickets_size = 0

        #: Input that waits for the stream's next turn, which is in the engine's ``ready`` then.
        self.unfed: memoryview | bytes = b""
        #: The records of the end and of errors that came behind it: pairs (kind, value).
        self.ends: list[tuple[int, int]] = []
        #: Reading is stopped until there is no ``unfed``.
        self.paused = False
        #: The input ends inside the header of a record of TLS, of which this is there; or
        self.header = b""
        #: inside its contents, and so many bytes of them are missing.
        self.missing = 0
        #: Records that have come since the last data.
        self.idle_records = 0

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
        if self.object.server_side and self.object.version() == "TLSv1.3":
            # All else has gone: the client could not have answered before.
            self.tickets_size = self.outgoing.pending
        return True

    def must_send(self) -> bool:
        """Whether ``outgoing`` has anything but tickets."""
        return self.outgoing.pending > self.tickets_size

    def take_outgoing(self) -> bytes:
        """Return what is to be sent, and the tickets before it."""
        self.tickets_size = 0
        return self.outgoing.read()

    def feed(self, data: memoryview) -> memoryview:
        """Give input to the handshake; return the rest, for the next turn."""
        records = 0
        while data and records < TURN_RECORDS:
            piece, data, count = self._next_piece(data)
            write(self.incoming, piece)
            records += count
        return data

    def receive(self, data: memoryview) -> tuple[bytes, memoryview]:
        """Decrypt input; return the data, and the rest of the input, for the next turn.

        `ended` and `error`, if it sets them, come after the data.
        """
        chunks: list[bytes] = []
        records = 0
        while data and records < TURN_RECORDS:
            piece, data, count = self._next_piece(data)
            before = len(chunks)
            write(self.incoming, piece)
            self._decrypt(chunks)
            if self.ended or self.error is not None:
                data = NOTHING
            elif len(chunks) > before:
                self.idle_records = 0
            else:
                self.idle_records += count
                if self.idle_records > IDLE_RECORDS:
                    text = f"the peer has sent over {IDLE_RECORDS} records without data"
                    self.error = make_error(ssl.SSL_ERROR_SSL, "TOO_MANY_RECORDS", text)
                    data = NOTHING
            records += count
        return chunks[0] if len(chunks) == 1 else b"".join(chunks), data

    def _next_piece(self, data: memoryview) -> tuple[memoryview, memoryview, int]:
        """Return the next piece of input, the rest, and how many records begin in the piece.

        The piece has at most `BATCH_SIZE` bytes and `BATCH_RECORDS` records. A record has a header
        of five bytes, the last two of which are the size of its contents (RFC 8446, 5.1).
        """
        size, at = len(data), self.missing  # where the next header begins, or goes on
        if at == 0 and size > 5 and 5 + (data[3] << 8 | data[4]) == size and not self.header:
            return data, NOTHING, 1  # one whole record, as is usual, does without the rest
        size, records = min(size, BATCH_SIZE), 0
        while at < size:
            if records == BATCH_RECORDS:
                size = at
                break
            header = self.header + data[at : at + 5 - len(self.header)]
            at += len(header) - len(self.header)
            if len(header) < 5:
                self.header = header
                break
            self.header = b""
            records += 1
            at += header[3] << 8 | header[4]
        self.missing = at - size
        return data[:size], data[size:], records

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
