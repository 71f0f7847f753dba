"""The callback API's streams and servers, the common part of TCP, pipes and TLS."""

from __future__ import annotations

from collections.abc import Callable
from threading import get_ident
from typing import Any

from pyasync._core.arguments import (
    optional_callable,
    require_callable,
    require_descriptor,
    require_integer,
)
from pyasync._core.engine import CLOSED
from pyasync._core.file_sending import File
from pyasync._core.listener import Listener
from pyasync._core.stream import (
    CANNOT_WRITE,
    READ_DISABLED,
    STREAMING,
    WRITE,
    WRITE_CALLBACK,
    Data,
    WriteCallback,
    as_buffer_slice,
)
from pyasync._core.stream import Stream as CoreStream
from pyasync._core.stream_extras import HIGH_WATERMARK
from pyasync.async_stream import AsyncStream
from pyasync.errors import EventError, SocketEOF
from pyasync.loop import EventCallback, Loop
from pyasync.options import StreamOptions


class Stream(CoreStream):
    """A connected socket. Its callbacks get it as their first argument."""

    __slots__ = ()

    _options: StreamOptions

    def _begin(self) -> None:
        if self._options.stream:
            self._need_extras().stream = AsyncStream(self)
            self._state |= STREAMING
        if self._options.close_cb is not None:
            self._need_extras()  # so that the state is not zero, and `_report_closed` is called
            self._loop.watched[self] = None
        super()._begin()

    @property
    def read_cb(self) -> Callable[[Any, Any], object]:
        """The function that is called with data, as the call that made the socket was given it.

        It can be set at any time, for all data that is delivered after that.
        """
        return self._options.read_cb

    @read_cb.setter
    def read_cb(self, read_cb: Callable[[Any, Any], object]) -> None:
        require_callable("read_cb", read_cb)
        self._open_slot()
        self._replace_callbacks(read_cb, None)

    def write(
        self,
        data: Data,
        start: int = 0,
        end: int | None = None,
        read_cb: Callable[[Any, bytes], object] | None = None,
        write_cb: WriteCallback | None = None,
        event_cb: EventCallback | None = None,
        force: bool = False,
    ) -> None:
        """Send the data, in the order of these calls; it never blocks.

        ``data`` is bytes-like, or a string to be sent as UTF-8. ``start`` and ``end`` choose a
        part of it, in bytes. All writes of one callback leave together, when it has returned;
        ``force`` sends this write and all earlier ones now. ``write_cb(socket)`` is called once
        the kernel has taken this write and all before it, never inside this call. It is not called
        if the connection fails first. ``read_cb`` and ``event_cb``, if given, replace the socket's
        from now on.

        Raises `SocketClosed`, `SocketBrokenPipe` after `shutdown`, `EventLoopNotRunning` after
        the end of the loop, `ValueError` unless ``start`` is in the data and ``end`` not before
        it, and `TypeError` for data that is not bytes-like.
        """
        loop = self._options.loop
        if self._state & CANNOT_WRITE or loop.thread != get_ident():
            self._check_writable()
        if type(data) is not bytes or start or end is not None:
            data = as_buffer_slice(data, start, end)
            if len(data) <= loop.inline_limit:
                data = bytes(data)  # it waits in the queue, and a buffer may change meanwhile
        if write_cb is not None and not callable(write_cb):
            require_callable("write_cb", write_cb)
        if read_cb is not None or event_cb is not None:
            self._replace_callbacks(read_cb, event_cb)
        size = len(data)
        if size <= loop.inline_limit and not self._state & CANNOT_WRITE and not force:
            # The same as `_write`, without the call: almost every write comes this way.
            if write_cb is None:
                loop.queue((WRITE, self._slot, size, data, None))
            else:
                loop.queue((WRITE_CALLBACK, self._slot, size, data, (self, write_cb)))
        else:
            self._write(data, write_cb, force)

    def sendfile(
        self,
        file: Any,
        offset: int = 0,
        count: int | None = None,
        *,
        write_cb: WriteCallback | None = None,
    ) -> None:
        """Send a part of a file, in order with writes, and without reading it into Python.

        ``file`` is a regular file: a descriptor, or an object that has a ``fileno()``, whose own
        position does not count and stays. ``count`` bytes are sent from ``offset``; None: all up to
        its end. If the file ends before, less is sent. The descriptor is duplicated, so that the
        caller may close its own at once. A file that changes meanwhile is sent as it is by then.

        It is sent by sendfile(2) in libuv's pool, no thread of which ever waits for the peer. Over
        TLS it is read there in pieces, which are encrypted. ``write_cb(socket)`` is called as
        `write` calls it. An error, such as one of the file's disk, is reported as a write's, and
        ends the connection. What is left of files counts in `write_queue_size`.

        Raises what `write` does, `ValueError` for anything but a regular file, such as a pipe,
        which `poll` is for, and `OSError` if the descriptor is not open.
        """
        loop = self._options.loop
        if self._state & CANNOT_WRITE or loop.thread != get_ident():
            self._check_writable()
        fd = require_descriptor("file", file)
        require_integer("offset", offset, 0, 2**63 - 1)
        if count is not None:
            require_integer("count", count, 0, 2**63 - 1, ", or None")
        optional_callable("write_cb", write_cb)
        self._send_file(File(fd, offset, count, write_cb))

    def _replace_callbacks(self, read_cb: Any, event_cb: Any) -> None:
        optional_callable("read_cb", read_cb)
        optional_callable("event_cb", event_cb)
        self._options = self._options.copy()
        if read_cb is not None:
            self._options.read_cb = read_cb
        if event_cb is not None:
            self._options.event_cb = event_cb

    def disable(self, *, read: bool = False, write: bool = False) -> None:
        self._require_flags(read, write)
        if read and self._state & STREAMING:
            # The application pauses by itself now: the stream must not enable reading behind it.
            self._need_extras().stream._resume = None
        super().disable(read=read, write=write)

    def _drop_input(self) -> None:
        if self._options.close_cb is not None:
            self._keep_names()
        super()._drop_input()
        if self._state & STREAMING:
            self._need_extras().stream._end()

    def _on_loop_end(self) -> None:
        if self._options.close_cb is not None and not self._state & CLOSED:
            self._keep_names()
        super()._on_loop_end()

    # Reports of the core

    def _report_opened(self) -> None:
        if self._options.connect_cb is not None:
            self._options.connect_cb(self)

    def _report_data(self, data: bytes) -> None:
        if self._state & STREAMING:
            stream = self._need_extras().stream
            stream._feed(data)
            self._options.read_cb(self, stream)
            if not self._options.drain_read_buffer:
                self._limit(stream)
        else:
            self._options.read_cb(self, data)

    def _limit(self, stream: AsyncStream) -> None:
        """Read no more from the kernel while much data waits in the stream."""
        stop = stream.buffered > HIGH_WATERMARK and not stream._needs_more
        if stop and not self._state & (CLOSED | READ_DISABLED):
            self.disable(read=True)
            stream._resume = self._end_limit  # after disable, which clears it

    def _end_limit(self) -> None:
        if not self._state & CLOSED:
            self.enable(read=True)

    def _report_end(self) -> None:
        if self._state & STREAMING:
            self._end_stream(self._need_extras().stream)
        if not self._state & CLOSED and not self._loop.stopping:
            self._loop.report(self, SocketEOF("end of stream"), self)

    def _end_stream(self, stream: AsyncStream) -> None:
        stream._end()
        if stream.buffered:  # for example a last line without a newline
            try:
                self._options.read_cb(self, stream)
            except Exception as error:
                self._loop.on_error(error, self)

    def _report_error(self, error: EventError) -> None:
        watched = self._loop.watched
        if self in watched and watched[self] is None:  # the first error is the cause of others
            watched[self] = error
        self._loop.report(self, error, self)

    def _report_closed(self) -> None:
        if self._options.close_cb is not None:
            # Not now: write callbacks of this iteration are still to be called.
            self._loop.ready.append(self._call_close_cb)

    def _call_close_cb(self) -> None:
        self._loop.call_close_cb(self)

    def _report_pressure(self, over_high: bool) -> None:
        pressure_cb = self._options.pressure_cb
        if pressure_cb is not None:
            pressure_cb(self, over_high)

    @property
    def _subject(self) -> Any:
        """The object that the application gets: the AsyncStream, or the stream itself."""
        return self._need_extras().stream if self._state & STREAMING else self

    @property
    def _event_cb(self) -> EventCallback | None:
        return self._options.event_cb


class Server(Listener):
    """A listening socket, whose connections are streams of one class, with the same options."""

    __slots__ = ()

    _connection: type[Stream]
    _loop: Loop

    def _make_connection(self, slot: int, address: int) -> Any:
        return self._connection(self._options, slot, self._state_of_new)

    def _report_error(self, error: EventError) -> None:
        self._loop.report(self, error, self)
