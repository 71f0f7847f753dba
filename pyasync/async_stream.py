"""A socket as a binary file of `io` that never blocks.

Data waits in the stream as the pieces in which it came; appending a piece copies no other, except
very small ones. Each byte is searched for the end of a line at most twice: once backwards, for the
last newline only, and once when its line is taken. So the cost is linear in the number of bytes,
for any size of pieces and lines.
"""

from __future__ import annotations

import io
import sys
from collections import deque
from collections.abc import Callable
from operator import index
from threading import get_ident
from typing import TYPE_CHECKING, Any

from pyasync._core.arguments import require_integer, wrong_type, wrong_value
from pyasync._core.stream_extras import LOW_WATERMARK
from pyasync.errors import EventError, IncompleteReadError, LimitOverrunError

if TYPE_CHECKING:
    from _typeshed import MaybeNone, ReadableBuffer, WriteableBuffer

    from pyasync.streams import Stream

#: Small pieces are joined up to this size, in bytes, because each `bytes` object has an overhead of
#: some 40 bytes.
JOINED_SIZE = 1024

#: The default of ``limit`` of `AsyncStream.readuntil`, in bytes: asyncio's.
LIMIT = 1 << 16


class AsyncStream(io.BufferedIOBase):
    r"""A socket as a binary file; ``read_cb(socket, stream)`` gets it with ``stream=True``.

    Nothing blocks. Reading returns the data that has arrived; None if there is none, as `io` has it
    for non-blocking files; and ``b""`` if none will come any more either, because the peer has
    ended the stream, an error has (``event_cb`` got it), or the socket was closed. Data that has
    arrived can still be read then. Only `close` drops it, after which each call raises
    `ValueError`.

    A ``for`` loop takes the whole lines that have arrived, and stops; the next one goes on. When
    the end has come (`ended`) it takes the rest, too. From then on `io.TextIOWrapper`,
    `shutil.copyfileobj` and other code that reads a file to its end works.

    Only the loop's thread may use it, others get a `RuntimeError`. When the loop has ended, any
    thread may read the rest.

    Unread data stays in memory: when `buffered` grows, ``socket.disable(read=True)`` slows the
    peer down.

    A stream that becomes garbage does not close its socket, unlike other files. But an
    `io.TextIOWrapper` over it does: keep that, or take the stream back by its ``detach()``. The
    stream's own `detach` raises `io.UnsupportedOperation`, because it belongs to its `socket`.

    >>> import pyasync
    >>> def answer(socket, stream):
    ...     server.close()
    ...     for line in stream:
    ...         stream.write(line.upper())
    >>> def show(socket, stream):
    ...     for line in stream:
    ...         print(line)
    >>> with pyasync.event_loop():
    ...     server = pyasync.tcp_server("127.0.0.1", 0, answer, stream=True)
    ...     client = pyasync.tcp_connect(*server.address, show, stream=True)
    ...     client.writelines([b"one\n", b"two\nth", b"ree\n"])
    ...     client.socket.shutdown()
    b'ONE\n'
    b'TWO\n'
    b'THREE\n'
    """

    __slots__ = ("_chunks", "_closed", "_ended", "_fed", "_head", "_loop", "_needs_more",
                 "_newline", "_position", "_resume", "_searched", "_separator", "_socket",
                "_without")  # fmt: skip

    #: Never set, as in `io.BytesIO`. Declared, because the type that `io.TextIOWrapper` takes has
    #: it.
    name: str

    def __init__(self, socket: Any) -> None:
        self._socket: Stream = socket
        try:
            self._loop = socket._loop
        except AttributeError:
            raise wrong_type("socket", "a socket of pyasync", socket) from None
        self._closed = False
        self._ended = False
        #: Called when little data waits again; set while the socket has stopped reading.
        self._resume: Callable[[], object] | None = None
        #: Whether a call waits for more than has arrived, so that the socket must not stop.
        self._needs_more = False
        #: The data that waits, in order; bytes of the first before _position have been taken.
        self._chunks: deque[bytes] = deque()
        # Positions in the stream, in bytes from its beginning.
        self._fed = 0  # the end of the last chunk
        self._position = 0  # the next byte to be taken
        self._head = 0  # the start of the first chunk
        self._searched = 0  # how far the last newline was searched for
        self._newline = -1  # that newline; it may have been taken
        self._without = 0  # up to here no separator begins that readuntil was asked for last
        self._separator = b""  # that separator

    def __repr__(self) -> str:
        """Tell the socket, and how much waits."""
        return f"<AsyncStream, {self._fed - self._position} bytes wait, of {self._socket!r}>"

    @property
    def socket(self) -> Stream:
        """The socket under the stream, a `TcpSocket` or one like it."""
        return self._socket

    @property
    def buffered(self) -> int:
        """The number of bytes that can be read now."""
        self._check_thread()
        return self._fed - self._position

    @property
    def ended(self) -> bool:
        """Whether no more data will arrive; `buffered` data can still be read."""
        return self._ended or bool(self._socket.closed)

    # Reading

    def read(self, size: int | None = -1, /) -> bytes | MaybeNone:
        """Return up to ``size`` bytes of the data that waits; None or a negative ``size``: all.

        Returns None if no data waits, and ``b""`` if the end has come as well.
        """
        count = self._available(size)
        return self._take(count) if count or size == 0 or self.ended else None

    # The same, because there is no raw file below from which `read` could read more than once.
    read1 = read

    def readinto(self, buffer: WriteableBuffer, /) -> int | MaybeNone:
        """Copy data that waits into a writable buffer, such as a `bytearray`.

        Returns the number of bytes; None if no data waits, 0 if the end has come as well.
        """
        with memoryview(buffer) as whole, whole.cast("B") as view:
            if view.readonly:
                raise TypeError(f"the buffer must be writable, not {type(buffer).__name__}")
            data = self.read(len(view))
            if data is None:
                return None
            view[: len(data)] = data
            return len(data)

    readinto1 = readinto

    def peek(self, size: int = 0, /) -> bytes | MaybeNone:
        """Return the same as ``read(size)``, and leave the data in the stream.

        With a ``size`` of 0 or less, return up to `io.DEFAULT_BUFFER_SIZE` bytes.
        """
        count = self._available(size if _integer(size) > 0 else io.DEFAULT_BUFFER_SIZE)
        return self._next(count) if count or self.ended else None

    def readexactly(self, n: int) -> bytes | None:
        """Return ``n`` bytes; None while fewer have arrived.

        When the end has come first, raises `IncompleteReadError`, whose ``partial`` is the rest: it
        is taken from the stream.
        """
        if type(n) is not int or not 0 <= n <= sys.maxsize:
            n = require_integer("n", n, 0, sys.maxsize)
        count = self._available(n)
        if count == n:
            return self._take(count)
        if self.ended:
            raise self._incomplete(n)
        self._read_on()
        return None

    def readuntil(self, separator: ReadableBuffer, limit: int | None = LIMIT) -> bytes | None:
        r"""Return the data up to the separator, and that with it; None while it has not arrived.

        When over ``limit`` bytes have come before it, or without it, raises `LimitOverrunError`,
        and they stay in the stream; None: there is no limit. When the end has come first, raises
        `IncompleteReadError`, whose ``partial`` is the rest: it is taken from the stream.

        >>> import pyasync
        >>> def show(socket, stream):
        ...     while (head := stream.readuntil(b"\r\n\r\n", limit=1000)) is not None:
        ...         print(head)
        ...         server.close()
        >>> with pyasync.event_loop():
        ...     server = pyasync.tcp_server("127.0.0.1", 0, show, stream=True)
        ...     pyasync.tcp_connect(*server.address, print, data=b"a: b\r\n\r\n").close()
        b'a: b\r\n\r\n'
        """
        try:
            wanted = memoryview(separator).tobytes()
        except TypeError:
            raise wrong_type("separator", "bytes-like", separator) from None
        if not wanted:
            raise wrong_value("separator", "bytes-like and not empty", separator)
        data = self._until(wanted, limit)
        if data is None and self.ended:
            raise self._incomplete(None)
        return data

    def readline(self, size: int | None = -1, /, *, limit: int | None = None) -> bytes | MaybeNone:
        r"""Return the next line with its ``b"\n"``, or None if its end has not arrived.

        When the end of the stream has come, return the rest. With a ``size`` of 0 or more, return
        the first ``size`` bytes of a longer line, whether its end has arrived or not.

        With a ``limit``, a line of more bytes, its end not counted, raises `LimitOverrunError`, and
        stays in the stream: so a peer cannot make a line grow without end.
        """
        if limit is not None:
            return self._limited_line(size, limit)
        if self._loop.thread != get_ident():
            self._check_thread()
        position = self._position
        found = self._newline >= position or self._find_last_newline()
        # The usual case, without a call: the line is in one chunk, which holds more.
        if found and (size == -1 or size is None) and self._resume is None:
            head, start = self._chunks[0], position - self._head
            end = head.find(b"\n", start) + 1
            if 0 < end < len(head):
                self._position = position + end - start
                return head[start:end]
        most = self._available(size)
        if found:
            return self._take(self._line_size(most))
        if self.ended or most == size:
            return self._take(most)
        self._read_on()
        return None

    def __next__(self) -> bytes:
        line: bytes | None = self.readline()
        if not line:
            raise StopIteration
        return line

    def readable(self) -> bool:
        """Return True."""
        self._check_open()
        return True

    # Writing

    def write(self, data: ReadableBuffer, /) -> int:
        """Send bytes, as the socket's `write` does, and return their number; it never blocks.

        Raises `SocketClosed`, a `ValueError`, if the socket is closed, `SocketBrokenPipe` if its
        sending side is, and `TypeError` for a string: see `io.TextIOWrapper`.
        """
        with memoryview(data) as view:
            size = view.nbytes
        self._socket.write(data)
        return size

    def flush(self) -> None:
        """Send all pending writes now, before the running callback returns.

        On a closed socket it does nothing, because `close` sends them.
        """
        self._check_open()
        if not self._socket.closed:
            self._socket._submit()

    def writable(self) -> bool:
        """Return True."""
        return self.readable()

    # The file itself

    def close(self) -> None:
        """Close the socket, which sends all earlier writes; drop unread data."""
        if not self._closed:
            self._socket.close()
            self._closed = True
            self._chunks = deque()  # a new one: a signal handler may have interrupted a read
            self._position = self._fed

    @property
    def closed(self) -> bool:
        """Whether `close` was called. The socket may have closed before."""
        return self._closed

    def __del__(self) -> None:
        """Do nothing, unlike other files, which close: the socket works on without the stream."""

    def fileno(self) -> int:
        """Return the socket's descriptor, which stays pyasync's.

        Raises `io.UnsupportedOperation`, a `ValueError` and `OSError`, if it has none.
        """
        try:
            descriptor: int = self._socket.fileno()
        except EventError as error:
            raise io.UnsupportedOperation(str(error)) from error
        return descriptor

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError("the stream is closed")

    def _check_thread(self) -> None:
        """Raise `RuntimeError` in another thread than the loop's, while the loop runs."""
        if self._loop.thread is not None:
            self._loop.check_thread()

    # For the socket

    def _feed(self, data: bytes) -> None:
        """Append data that has arrived."""
        chunks = self._chunks
        self._needs_more = False
        self._fed += len(data)
        if chunks and len(chunks[-1]) + len(data) <= JOINED_SIZE:
            chunks[-1] += data
        else:
            chunks.append(data)

    def _take_all(self) -> bytes:
        """Remove and return all data that waits."""
        data = self._next(self._fed - self._position)
        self._chunks.clear()
        self._position = self._head = self._fed
        return data

    def _end(self) -> None:
        """Mark the end: no more data will arrive."""
        self._ended = True

    # Reading up to a separator

    def _limited_line(self, size: int | None, limit: int) -> bytes | None:
        if size is not None and _integer(size) >= 0:
            raise wrong_value("size", "-1 or None where there is a limit", size)
        line = self._until(b"\n", limit)
        return self._take(self._available(-1)) if line is None and self.ended else line

    def _until(self, separator: bytes, limit: int | None) -> bytes | None:
        """Take the data up to the separator; return None if that has not arrived."""
        if limit is not None and (type(limit) is not int or not 0 <= limit <= sys.maxsize):
            limit = require_integer("limit", limit, 0, sys.maxsize, ", or None")
        waiting = self._available(-1)
        found = self._find(separator)
        size = found - self._position if found >= 0 else waiting - len(separator) + 1
        if limit is not None and size > limit:
            what = "before" if found >= 0 else "without"
            error = LimitOverrunError(f"over {limit} bytes have arrived {what} {separator!r}")
            error.consumed = size
            raise error
        if found >= 0:
            return self._take(size + len(separator))
        self._read_on()
        return None

    def _find(self, separator: bytes) -> int:
        """Return the position of the next separator; -1: it has not arrived.

        The data is searched once, however often this is called for the same separator.
        """
        start = self._position
        if self._separator == separator:
            start = max(start, self._without)
        size, end, new = len(separator), self._fed, []
        for chunk in reversed(self._chunks):  # backwards to where the last search has ended
            end -= len(chunk)
            new.append((end, chunk))
            if end <= start:
                break
        before = b""  # the end of the chunks before, in which a separator may begin
        for begin, chunk in reversed(new):
            if before:
                found = (before + chunk[: size - 1]).find(separator)
                if found >= 0:
                    return begin - len(before) + found
            offset = max(0, start - begin)
            found = chunk.find(separator, offset)
            if found >= 0:
                return begin + found
            if size > 1:
                before = (before + chunk[max(offset, len(chunk) - size + 1) :])[1 - size :]
        self._separator, self._without = separator, max(start, self._fed - size + 1)
        return -1

    def _incomplete(self, expected: int | None) -> IncompleteReadError:
        partial = self._take(self._available(-1))
        what = "the separator" if expected is None else f"all of {expected} bytes"
        error = IncompleteReadError(f"the end came after {len(partial)} bytes, before {what}")
        error.partial, error.expected = partial, expected
        return error

    # The buffer

    def _available(self, size: int | None) -> int:
        """Return how many of ``size`` bytes wait; None or less than 0 asks for all."""
        self._check_thread()
        self._check_open()
        waiting = self._fed - self._position
        if size is None:
            return waiting
        number = _integer(size)
        return waiting if number < 0 else min(number, waiting)

    def _take(self, count: int) -> bytes:
        """Remove and return the next ``count`` bytes; the caller knows that as many wait."""
        data, chunks = self._next(count), self._chunks
        self._position += count
        # Only whole chunks are removed: to cut the first one would copy its rest at each read.
        while chunks and self._head + len(chunks[0]) <= self._position:
            self._head += len(chunks.popleft())
        if self._fed - self._position <= LOW_WATERMARK:
            self._resume_reading()
        return data

    def _read_on(self) -> None:
        """Let the socket read more than its limit, because what was asked for is not there yet.

        A line may be longer than the limit at which the socket stops reading: without more input
        its end would never come.
        """
        self._needs_more = True  # until there is more
        self._resume_reading()

    def _resume_reading(self) -> None:
        """Let the socket read again, if it has stopped because much data waits."""
        resume, self._resume = self._resume, None
        if resume is not None:
            resume()

    def _next(self, count: int) -> bytes:
        """Return the next ``count`` bytes; the caller knows that as many wait."""
        pieces, start = [], self._position - self._head
        for chunk in self._chunks:
            pieces.append(chunk[start : start + count])
            count -= len(pieces[-1])
            if not count:
                break
            start = 0
        return b"".join(pieces)

    def _find_last_newline(self) -> bool:
        """Search the data since the last search; return whether a whole line waits."""
        # Backwards, and no further than the last search has come: that part has no newline that
        # was not found.
        searched, self._searched = max(self._searched, self._position), self._fed
        end = self._fed
        for chunk in reversed(self._chunks):
            end -= len(chunk)
            found = chunk.rfind(b"\n", max(0, searched - end))
            if found >= 0:
                self._newline = end + found
                return True
            if end <= searched:
                break
        return False

    def _line_size(self, most: int) -> int:
        """Return the size of the next line, whose end has arrived, or ``most`` if that is less."""
        size, start = 0, self._position - self._head
        for chunk in self._chunks:
            end = chunk.find(b"\n", start, start + most - size) + 1
            if end:
                return size + end - start
            size += len(chunk) - start
            if size >= most:
                break
            start = 0
        return most


def _integer(size: int) -> int:
    try:
        return index(size)
    except TypeError:
        raise wrong_type("size", "an integer, or None", size) from None
