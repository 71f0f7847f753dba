"""Sending files on a stream, in order with its writes.

A file begins when the kernel has taken all writes before it. A thread of the pool then sends
pieces of it, by sendfile(2), or over TLS reads them, and the stream encrypts them. What the
application writes behind a file is *held* until that is sent. A piece never waits for the peer:
when the socket takes no more, the loop polls a duplicate of its descriptor until it does.

A thread works on duplicates of both descriptors, which belong to its request. So the application
may close the file, and the stream may close, and no number that a thread uses becomes another's.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import deque
from typing import TYPE_CHECKING, Any

from pyasync._core.handles import CHandle
from pyasync._core.pool_requests import Request
from pyasync._ffi import ffi, lib
from pyasync.errors import EventError, SocketError, check, socket_error

if TYPE_CHECKING:
    from pyasync._core.stream import Stream

#: A request sends so much at most, in bytes, so that others get the thread in between.
PIECE_SIZE = 1 << 20
#: So much is read at once for TLS, in bytes.
READ_SIZE = 256 << 10


class File:
    """A part of a file that waits to be sent, on a descriptor of its own."""

    def __init__(self, fd: int, offset: int, count: int | None, write_cb: Any) -> None:
        """Duplicate the descriptor. Raises `ValueError` unless it is a regular file's."""
        self.fd = -1  # for __del__
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(
                f"file must be a regular file or its descriptor, not descriptor {fd}: "
                "read it, and write the data"
            )
        self.fd = os.dup(fd)
        self.offset = offset
        #: The bytes that are left, as far as the size of the file tells.
        self.left = max(0, status.st_size - offset) if count is None else count
        #: Whether to go on until the file ends, which may grow, and may be of /proc.
        self.to_its_end = count is None
        self.write_cb = write_cb

    def close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    __del__ = close  # the end of a loop asks nobody


class Piece(Request):
    """A piece of a file that a thread sends, or reads."""

    __slots__ = ()

    def _results(self, address: int) -> tuple[int, bytes]:
        outcome = lib.pa_fs_result(address)
        if outcome.result < 0:
            raise self._error(outcome.result)
        return outcome.result, ffi.buffer(outcome.data, outcome.size)[:] if outcome.size else b""

    def _error(self, status: int) -> EventError:
        return socket_error(status)


class WritableWatch(CHandle):
    """Polls a duplicate of the stream's descriptor until that is writable."""

    __slots__ = ("_files",)

    def __init__(self, files: FileQueue) -> None:
        stream = files.stream
        loop = stream._loop
        fd = check(lib.pa_fileno(loop.c, stream._slot))
        slot = check(lib.pa_poll_start(loop.c, fd, lib.UV_WRITABLE))
        super().__init__(loop, slot, None)
        self._files = files
        if not lib.pa_has_ref(loop.c, stream._slot):
            self.unref()

    def watch(self) -> None:
        lib.pa_poll_modify(self._loop.c, self._slot, lib.UV_WRITABLE)

    def _on_event(self, kind: int, value: int, data: int) -> None:
        if self._slot < 0:
            return
        if value < 0:  # such as ENOSPC, epoll_ctl(2)
            self._files.fail(socket_error(value))
            return
        lib.pa_poll_modify(self._loop.c, self._slot, 0)
        self._files.go_on()


class FileQueue:
    """The files of a stream that wait to be sent, and the writes that are held between them."""

    def __init__(self, stream: Stream, reads: bool) -> None:
        """Make an empty queue. ``reads``: the stream encrypts, so that files must be read."""
        self.stream = stream
        #: Bytes of held writes, and of files as far as they are known.
        self.size = 0
        #: Whether the kernel has refused a part of the file.
        self.waiting = False
        self._reads = reads
        self._entries: deque[Any] = deque()
        self._file: File | None = None
        self._piece: Piece | None = None
        self._watch: WritableWatch | None = None

    @property
    def blocked_size(self) -> int:
        """Bytes of the file that the kernel has refused, for now."""
        file = self._file
        return file.left if self.waiting and file is not None else 0

    def add(self, entry: Any, size: int) -> None:
        """Add a `File`, or a write: (data, write_cb), for which data must not change."""
        self._entries.append(entry)
        self.size += size

    def next(self) -> None:
        """Pass the writes before the next file on to the stream, and let that file follow them."""
        stream = self.stream
        while self._entries:
            entry = self._entries.popleft()
            if isinstance(entry, File):
                self._file = entry
                # The callback of an empty write comes when the kernel has all before it.
                stream._write_behind(b"", _go_on)
                return
            data, write_cb = entry
            self.size -= len(data)
            stream._write_behind(data, write_cb)
        stream._end_files()

    def go_on(self) -> None:
        """Send the next piece of the file, or end it."""
        self.waiting = False
        file = self._file
        if file is None or self._piece is not None:
            return
        most = READ_SIZE if self._reads else PIECE_SIZE
        size = most if file.to_its_end else min(file.left, most)
        if size == 0:
            self._end_file()
            return
        slot = -1 if self._reads else self.stream._slot
        self._piece = Piece(self.stream._loop, self._on_piece, self._on_error)
        self._piece._begin(lib.pa_fs_send, slot, file.fd, file.offset, size)

    def _on_piece(self, size: int, data: bytes) -> None:
        self._piece = None
        file, stream = self._file, self.stream
        if file is None:
            return
        if size == 0:  # the file is shorter than was asked for
            self.size -= file.left
            self._end_file()
            return
        known = min(size, file.left)
        file.offset += size
        file.left -= known
        self.size -= known
        if self._reads:
            stream._write_behind(data, _go_on)
        else:
            stream._loop.counters.bytes_written += size
            self.go_on()
        self._check_pressure()

    def _on_error(self, error: EventError) -> None:
        self._piece = None
        if not isinstance(error, SocketError) or error.errno != errno.EAGAIN or self._reads:
            self.fail(error)
            return
        self.waiting = True
        self.stream._start_write_timeout()
        try:
            if self._watch is None:
                self._watch = WritableWatch(self)
            else:
                self._watch.watch()
        except SocketError as shortage:  # of descriptors
            self.fail(shortage)

    def fail(self, error: EventError) -> None:
        """End the stream with an error, as a write that fails does."""
        self.stream._fail_with(error)

    def _end_file(self) -> None:
        file, self._file = self._file, None
        if file is None:
            return
        file.close()
        if self._watch is not None:
            self._watch.close()
            self._watch = None
        if file.write_cb is not None:
            self.stream._write_behind(b"", file.write_cb)
        self.next()
        self._check_pressure()

    def _check_pressure(self) -> None:
        try:
            self.stream._check_pressure()
        except Exception as error:
            self.stream._loop.on_error(error, self.stream)

    def stop(self) -> None:
        """Drop what is left: files, and held writes with their callbacks."""
        entries, self._entries = self._entries, deque()
        file, self._file = self._file, None
        piece, self._piece = self._piece, None
        watch, self._watch = self._watch, None
        self.size = 0
        self.waiting = False
        if piece is not None:
            piece.close()
        if watch is not None:
            watch.close()
        for entry in [file, *entries]:
            if isinstance(entry, File):
                entry.close()


def _go_on(stream: Any) -> None:
    files = stream._extras.files
    if files is not None:  # otherwise it was stopped
        files.go_on()
