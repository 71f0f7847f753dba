"""The callback API's streams and servers, the common part of TCP, pipes and TLS."""

from __future__ import annotations

import socket as sockets
from collections.abc import Callable, Sequence
from threading import get_ident
from typing import Any

from pyasync._core.arguments import (
    Descriptor,
    optional_callable,
    require_callable,
    require_descriptor,
    require_integer,
    require_time,
)
from pyasync._core.contexts import Binder, unbound
from pyasync._core.deadlines import Timer, background_timer
from pyasync._core.engine import CLOSED
from pyasync._core.file_sending import File
from pyasync._core.listener import Listener
from pyasync._core.stream import (
    CANNOT_WRITE,
    IN_CONTEXT,
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
from pyasync._ffi import lib
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
        if self._options.server is not None:
            self._bind_context()
        super()._begin()

    def _bind_context(self) -> None:
        """Let the callbacks run in a copy of the context that was given, if one was."""
        options = self._options
        context = options.context
        if context is not None:
            if options.server is not None:  # the other connections have contexts of their own
                options = self._options = options.copy()
            options.bind(Binder(context))
            self._state |= IN_CONTEXT

    @property
    def read_cb(self) -> Callable[[Any, Any], object]:
        """The function that is called with data, as the call that made the socket was given it.

        It can be set at any time, for all data that is delivered after that.
        """
        read_cb: Callable[[Any, Any], object] = unbound(self._options.read_cb)
        return read_cb

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
        file: Descriptor,
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
        self._send_file(File(fd, offset, count, self._options.bound(write_cb)))

    def _replace_callbacks(self, read_cb: Any, event_cb: Any) -> None:
        optional_callable("read_cb", read_cb)
        optional_callable("event_cb", event_cb)
        self._options = self._options.copy()
        if read_cb is not None:
            self._options.read_cb = self._options.bound(read_cb)
        if event_cb is not None:
            self._options.event_cb = self._options.bound(event_cb)

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
        server = self._options.server
        if server is not None and server._ending is not None:
            server._ending.forget(self)  # which calls back behind that close_cb

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

    __slots__ = ("_ending", "_paused", "data")

    _connection: type[Stream]
    _loop: Loop

    def __init__(self, options: StreamOptions, sock: sockets.socket, limit: int | None) -> None:
        #: For the application to use as it likes.
        self.data: Any = None
        self._paused = False
        self._ending: Ending | None = None
        super().__init__(options, sock, limit)
        if options.context is not None:
            self._event_cb = Binder(options.context).bind(options.event_cb)

    def pause(self) -> None:
        """Accept no more connections, until `resume`.

        They wait in the kernel, as many as the backlog holds. The server keeps its address, and
        keeps the loop running. What has been accepted in this iteration is still reported. Raises
        `SocketClosed`; pausing twice does nothing.
        """
        slot = self._open_slot()
        if not self._paused:
            if self.has_ref:
                self._loop.keep_alive(self)  # C's handle does not, while it is not polled
            self._paused = True
            self._loop.queue((lib.PA_ACCEPT, slot, lib.PA_PAUSE_ACCEPTING, b"", None))

    def resume(self) -> None:
        """Accept connections again after `pause`. Raises `SocketClosed`."""
        slot = self._open_slot()
        if self._paused:
            self._paused = False
            self._loop.queue((lib.PA_ACCEPT, slot, lib.PA_RESUME_ACCEPTING, b"", None))
            self._loop.let_end(self)

    def ref(self) -> None:
        super().ref()
        if self._paused:
            self._loop.keep_alive(self)

    def unref(self) -> None:
        super().unref()
        self._loop.let_end(self)

    def close(self) -> None:
        """Stop accepting, and free the address. Connections stay open. Closing twice is fine."""
        if self._slot >= 0 and self._loop.may_change():
            self._loop.let_end(self)
        super().close()

    @property
    def connections(self) -> Sequence[Stream]:
        """The open connections that the server has accepted, also in the handshake of TLS.

        A new list, which takes a look at each handle of the loop: no connection pays for it.
        """
        self._loop.check_thread()
        return [stream for stream in self._streams() if not stream._state & CLOSED]

    def _streams(self) -> list[Stream]:
        """Return the connections that have a handle still, also those that are closing."""
        return [
            stream
            for stream in list(self._loop.objects)
            if isinstance(stream, Stream) and stream._options.server is self
        ]

    def shutdown(
        self, timeout: float | None, callback: Callable[[Any], object] | None = None
    ) -> None:
        """Close the server, let its connections end, and call ``callback(server)`` after that.

        Connections that are still open after ``timeout`` seconds are closed by force; None: there
        is no limit, 0: at once. What ends a connection sooner is the application's: see
        `connections`. A server that is closed already may be shut down too. A second call sets the
        time anew, and adds its callback. Raises `ValueError`, `TypeError` and
        `EventLoopNotRunning`.
        """
        self._loop.check_thread()
        optional_callable("callback", callback)
        if timeout is not None:
            require_time("timeout", timeout, or_none=", or None")
        self.close()
        if self._ending is None:
            self._ending = Ending(self)
        self._ending.limit(timeout, callback)

    def _state_text(self) -> str:
        return "paused" if self._paused and not self.closed else super()._state_text()

    def _make_connection(self, slot: int, address: int) -> Any:
        return self._connection(self._options, slot, self._state_of_new)

    def _report_error(self, error: EventError) -> None:
        self._loop.report(self, error, self)


class Ending:
    """The end of a server: it waits for the connections that the server has accepted."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._loop = server._loop
        self._callbacks: list[Callable[[Any], object]] = []
        self._timer: Timer | None = None
        self._left: set[Stream] | None = None
        # Not now, because this iteration's records may report connections that C has accepted.
        self._loop.ready.append(self._begin)

    def limit(self, timeout: float | None, callback: Callable[[Any], object] | None) -> None:
        """Set the time from now at which connections are closed by force, in seconds."""
        if callback is not None:
            self._callbacks.append(callback)
        self._stop_timer()
        if timeout is not None:
            self._timer = background_timer(self._loop, self._force, timeout)
        if self._left is not None and not self._left:  # it has ended before
            self._loop.ready.append(self._finish)

    def _begin(self) -> None:
        self._left = set(self._server._streams())
        for stream in self._left:
            stream._need_extras()  # or a plain close would not be reported to `forget`
        self._finish()

    def forget(self, stream: Stream) -> None:
        """Take note that a connection is over."""
        if self._left:
            self._left.discard(stream)
            if not self._left:
                # Not now: close_cb of the last one comes first.
                self._loop.ready.append(self._finish)

    def _force(self) -> None:
        for stream in self._server._streams():
            stream.close(force=True)

    def _finish(self) -> None:
        if self._left:
            return
        self._stop_timer()
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            try:
                callback(self._server)
            except Exception as error:
                self._loop.on_error(error, self._server)

    def _stop_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.stop()
