"""A socket as a binary file of `io` that never blocks.

What arrives waits in the stream as the pieces in which it came, none of them copied to make room
for the next. Each byte is searched for the end of a line at most twice: once from behind, where
only the last newline matters, and once when its line is taken. So whatever the pieces and lines
are like, the cost grows with the number of bytes.
"""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Callable
from operator import index
from threading import get_ident
from typing import TYPE_CHECKING, Any

from pyasync._core.stream_extras import LOW_WATERMARK
from pyasync.errors import EventError

if TYPE_CHECKING:
    from _typeshed import MaybeNone, ReadableBuffer, WriteableBuffer

#: Small pieces are joined until they have this size, as each `bytes` object takes some 40 bytes
#: besides its own.
JOINED_SIZE = 1024


class AsyncStream(io.BufferedIOBase):
    r"""A socket as a binary file: what ``read_cb(socket, stream)`` gets with ``stream=True``.

    Nothing blocks. Reading gives what has arrived; None if nothing is there, as `io` says of
    non-blocking files; and ``b""`` if nothing will come any more either: the peer has ended, an
    error has (``event_cb`` got it), or the socket was closed. What has arrived can still be read
    then; only `close` drops it, after which each call raises `ValueError`.

    A ``for`` loop takes the whole lines that are there, and stops; the next one goes on. When the
    end has come (`ended`) it takes the rest, too: from then on `io.TextIOWrapper`,
    `shutil.copyfileobj` and all else that reads a file to its end is right.

    Only the loop's thread may use it, others get a `RuntimeError`; when the loop has ended, any
    thread may read what is left.

    What is not read stays in memory: when `buffered` grows, ``socket.disable(read=True)`` slows the
    peer down.

    A stream that becomes garbage does not close its socket, unlike other files. But an
    `io.TextIOWrapper` over it does: keep that, or take the stream back by its ``detach()``. The
    stream's own `detach` raises `io.UnsupportedOperation`: it goes with its `socket`.

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

    __slots__ = ("_chunks", "_closed", "_ended", "_fed", "_head", "_loop", "_newline",
                 "_position", "_resume", "_searched", "_socket")  # fmt: skip

    #: There is none, as of `io.BytesIO`; but the type of what `io.TextIOWrapper` takes asks for it.
    name: Any

    def __init__(self, socket: Any) -> None:
        self._socket = socket
        self._loop = socket._loop
        self._closed = False
        self._ended = False
        #: What to call when little waits again, for a socket that has stopped reading.
        self._resume: Callable[[], object] | None = None
        #: What waits, in order; of the first, the bytes before _position have been taken.
        self._chunks: deque[bytes] = deque()
        # Places in the stream: how many bytes came before.
        self._fed = 0  # the end of the last chunk
        self._position = 0  # the next byte to be taken
        self._head = 0  # the start of the first chunk
        self._searched = 0  # how far the last newline was searched for
        self._newline = -1  # that newline; it may have been taken

    @property
    def socket(self) -> Any:
        """The socket that the stream is over, a `TcpSocket` or one like it."""
        return self._socket

    @property
    def buffered(self) -> int:
        """How many bytes are there to be read."""
        self._check_thread()
        return self._fed - self._position

    @property
    def ended(self) -> bool:
        """Whether nothing more will arrive; what has may still be there to be read."""
        return self._ended or bool(self._socket.closed)

    # Reading

    def read(self, size: int | None = -1, /) -> bytes | MaybeNone:
        """Return up to ``size`` of the bytes that are there; if it is None or negative, all.

        Returns None if none are there, ``b""`` if the end has come as well.
        """
        count = self._available(size)
        return self._take(count) if count or size == 0 or self.ended else None

    # There is no other file below of which one method could read more than the other.
    read1 = read

    def readinto(self, buffer: WriteableBuffer, /) -> int | MaybeNone:
        """Put bytes that are there into a writable buffer, such as a `bytearray`.

        Returns how many; None if none are there, 0 if the end has come as well.
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
        """Return what ``read(size)`` would, and leave it there.

        With a ``size`` of 0 or less, return up to `io.DEFAULT_BUFFER_SIZE` bytes.
        """
        count = self._available(size if index(size) > 0 else io.DEFAULT_BUFFER_SIZE)
        return self._next(count) if count or self.ended else None

    def readline(self, size: int | None = -1, /) -> bytes | MaybeNone:
        r"""Return the next line with its ``b"\n"``, or None if it is not there as a whole.

        When the end has come, return what remains. With a ``size`` of 0 or more, return the first
        ``size`` bytes of a longer line, whether its end is there or not.
        """
        if self._loop.thread != get_ident():
            self._check_thread()
        position = self._position
        found = self._newline >= position or self._find_last_newline()
        # The usual case, if the line is in one chunk.
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
        self._read_on()  # the line may be longer than what waits at most
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
        """Send bytes, as the socket's `write` does, and return how many; it never blocks.

        Raises `SocketClosed`, a `ValueError`, if the socket is closed, `SocketBrokenPipe` if its
        sending side is, and `TypeError` for a string: see `io.TextIOWrapper`.
        """
        with memoryview(data) as view:
            size = view.nbytes
        self._socket.write(data)
        return size

    def flush(self) -> None:
        """Send what was written at once, without waiting for the running callback to return.

        If the socket is closed, that has been done.
        """
        self._check_open()
        if not self._socket.closed:
            self._socket._submit()

    def writable(self) -> bool:
        """Return True."""
        return self.readable()

    # The file itself

    def close(self) -> None:
        """Close the socket, which sends what was written; drop what was not read."""
        if not self._closed:
            self._socket.close()
            self._closed = True
            self._chunks.clear()
            self._position = self._fed

    @property
    def closed(self) -> bool:
        """Whether `close` was called. The socket may have closed before."""
        return self._closed

    def __del__(self) -> None:
        """Do nothing, where other files close: the socket works on without the stream."""

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
        """Take what has arrived."""
        chunks = self._chunks
        self._fed += len(data)
        if chunks and len(chunks[-1]) + len(data) <= JOINED_SIZE:
            chunks[-1] += data
        else:
            chunks.append(data)

    def _take_all(self) -> bytes:
        """Give up what waits."""
        data = self._next(self._fed - self._position)
        self._chunks.clear()
        self._position = self._head = self._fed
        return data

    def _end(self) -> None:
        """Take note that nothing more will arrive."""
        self._ended = True

    # The buffer

    def _available(self, size: int | None) -> int:
        """Return how many of ``size`` bytes are there; None or less than 0 asks for all."""
        self._check_thread()
        self._check_open()
        waiting = self._fed - self._position
        return waiting if size is None or index(size) < 0 else min(index(size), waiting)

    def _take(self, count: int) -> bytes:
        """Remove the next ``count`` bytes, which are there, and return them."""
        data, chunks = self._next(count), self._chunks
        self._position += count
        while chunks and self._head + len(chunks[0]) <= self._position:
            self._head += len(chunks.popleft())
        if self._fed - self._position <= LOW_WATERMARK:
            self._read_on()
        return data

    def _read_on(self) -> None:
        """Let a socket read that has stopped because much waits."""
        resume, self._resume = self._resume, None
        if resume is not None:
            resume()

    def _next(self, count: int) -> bytes:
        """Return the next ``count`` bytes, which are there."""
        pieces, start = [], self._position - self._head
        for chunk in self._chunks:
            pieces.append(chunk[start : start + count])
            count -= len(pieces[-1])
            if not count:
                break
            start = 0
        return b"".join(pieces)

    def _find_last_newline(self) -> bool:
        """Search what has come since the last search; return whether a whole line is there."""
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
        """Return the size of the next line, which is there as a whole, or ``most`` if less."""
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
