"""Streams: what connected sockets of every kind have in common.

The usual life of a connection (data arrives, an answer is written, the connection is closed) runs
through `Stream.write` and `Stream.close` and the loop itself. All that is rarer shows in the flags
of ``_state``, zero for an open connection with nothing special about it, and keeps its data in a
`Rare` made for that connection alone: see `pyasync.stream_state`.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable
from threading import get_ident
from time import monotonic
from typing import Any

from pyasync._ffi import lib
from pyasync.arguments import optional_callable, require_callable, require_timeout
from pyasync.async_stream import AsyncStream
from pyasync.errors import EventError, SocketClosed, SocketEOF, socket_error
from pyasync.handles import DescriptorHandle
from pyasync.loop import EventCallback, Loop
from pyasync.stream_state import (
    CANNOT_WRITE,
    CLOSED,
    CONNECTING,
    ENDED,
    FAILED,
    HELD,
    HIGH_WATERMARK,
    KEPT,
    LIMITED,
    RARE,
    READ_DISABLED,
    SHUT,
    STREAMING,
    TIMED,
    UNCONNECTED,
    WRITE_DISABLED,
    Data,
    Rare,
    Settings,
    WriteCallback,
)
from pyasync.timeouts import Linger, ReadTimeout, WriteTimeout

WRITE = lib.PA_WRITE
WRITE_CALLBACK = lib.PA_WRITE_CALLBACK
CLOSE = lib.PA_CLOSE

_NOT_READING = READ_DISABLED | CONNECTING | UNCONNECTED | ENDED


class Stream(DescriptorHandle):
    """A connected socket. Its callbacks get it as their first argument."""

    __slots__ = ("__weakref__", "_rare", "_options", "_slot", "_state", "data")

    _closed_error = SocketClosed

    def __init__(self, settings: Settings, slot: int, state: int = 0) -> None:
        self._options = settings
        self._slot = slot
        self._state = state
        self._rare: Rare | None = None
        #: For the application to use as it likes.
        self.data: Any = None

    def _begin(self) -> None:
        """Make what the settings ask for, beside the ordinary."""
        settings = self._options
        if settings.stream:
            self._need_rare().stream = AsyncStream(self)
            self._state |= STREAMING
        if settings.read_timeout is not None or settings.write_timeout is not None:
            self.set_timeouts(settings.read_timeout, settings.write_timeout)

    # Writing

    def write(
        self,
        data: Data,
        *,
        start: int = 0,
        end: int | None = None,
        read_cb: Callable[[Any, bytes], object] | None = None,
        write_cb: WriteCallback | None = None,
        event_cb: EventCallback | None = None,
        force: bool = False,
    ) -> None:
        """Send the data, in the order of these calls; it never blocks.

        ``data`` is bytes-like, or a string to be sent as UTF-8. ``start`` and ``end`` choose a
        part of it, in bytes. What one callback writes leaves together, when it has returned;
        ``force`` sends at once what has been written until now. ``write_cb(socket)`` is called
        once this write, and all before it, have been handed to the kernel: never inside this call.
        It is not called if the connection fails first. ``read_cb`` and ``event_cb``, if given,
        replace the socket's from now on.

        Raises `SocketClosed`, `SocketBrokenPipe` after `shutdown`, `EventLoopNotRunning` after
        the end of the loop, and `TypeError` for data that is not bytes-like.
        """
        loop = self._options.loop
        if self._state & CANNOT_WRITE or loop.thread != get_ident():
            self._check_writable()
        if type(data) is not bytes or start or end is not None:
            data = part_of(data, start, end)
            if len(data) <= loop.inline_limit:
                data = bytes(data)
        if write_cb is not None and not callable(write_cb):
            require_callable("write_cb", write_cb)
        if read_cb is not None or event_cb is not None:
            self._replace_callbacks(read_cb, event_cb)
        if self._state & HELD:
            self._hold(data, write_cb, force)
            return
        size = len(data)
        callback = None if write_cb is None else (self, write_cb)
        if size <= loop.inline_limit and not force:
            kind = WRITE if callback is None else WRITE_CALLBACK
            loop.queue((kind, self._slot, size, data, callback))
        else:
            loop.write_now(self._slot, data, callback)

    def _check_writable(self) -> None:
        if self._state & CLOSED:
            raise SocketClosed("the socket is closed")
        self._loop.check_thread()
        if self._state & SHUT:
            raise socket_error(-errno.EPIPE, self)

    def _replace_callbacks(self, read_cb: Any, event_cb: Any) -> None:
        optional_callable("read_cb", read_cb)
        optional_callable("event_cb", event_cb)
        self._options = self._options.copy()
        if read_cb is not None:
            self._options.read_cb = read_cb
        if event_cb is not None:
            self._options.event_cb = event_cb

    def _submit(self) -> None:
        """Send what was written at once."""
        self._loop.check_thread()
        self._loop.submit()

    @property
    def write_queue_size(self) -> int:
        """Bytes that have been written, and not yet been handed to the kernel."""
        self._open_slot()
        return self._waiting_size() + self._loop.pending_size(self._slot)[0]

    def _refused_size(self) -> int:
        """Bytes that the kernel has refused."""
        return lib.pa_write_queue_size(self._loop.c, self._slot) if self._slot >= 0 else 0

    def _unsent_size(self) -> int:
        """Bytes that the kernel has taken, but not sent."""
        return lib.pa_unsent_size(self._loop.c, self._slot) if self._slot >= 0 else 0

    def _waiting_size(self) -> int:
        """Bytes that the kernel has refused, or that are held back."""
        size = self._refused_size()
        if self._rare is not None:
            size += self._rare.held_size
        return size

    def set_watermarks(self, high: int | None = None, low: int | None = None) -> None:
        """Set when ``pressure_cb(socket, paused)`` is called, in bytes of `write_queue_size`.

        It is called with True when the queue has grown over ``high`` (64 KiB), and with False when
        it has shrunk to ``low`` (a quarter of ``high``) after that. Raises `ValueError` unless
        0 <= ``low`` <= ``high``.
        """
        self._open_slot()
        high = HIGH_WATERMARK if high is None else high
        low = high // 4 if low is None else low
        if not 0 <= low <= high:
            raise ValueError(f"watermarks must be 0 <= low <= high, not {low!r} and {high!r}")
        rare = self._need_rare()
        rare.high, rare.low = high, low
        self._check_pressure()

    def _check_pressure(self) -> None:
        pressure_cb = self._options.pressure_cb
        if pressure_cb is None or self._state & CLOSED:
            return
        rare = self._need_rare()
        # Not write_queue_size: what is yet to be tried may be taken, and then no event comes.
        paused = self._waiting_size() > (rare.low if rare.paused else rare.high)
        if paused != rare.paused:
            rare.paused = paused
            pressure_cb(self, paused)

    # Closing

    def close(self, *, force: bool = False) -> None:
        """Send what was written, then close; ``force`` drops it, and closes at once.

        Callbacks of writes still run, no others. When the peer takes nothing for ``linger``
        seconds (a keyword of the call that made the socket), what it has not taken is dropped,
        and ``event_cb`` gets a `SocketTimeout`. Closing with input unread would make the kernel
        reset the connection, and destroy what the peer has not read yet (RFC 2525, 2.17): then
        the writing side is shut down, and input is discarded for ``linger`` seconds at most.

        Closing again does nothing, but to force a close that is still going on.
        """
        loop = self._options.loop
        if (self._state & CLOSED or loop.thread != get_ident()) and not self._may_close(force):
            return
        self._state |= CLOSED
        if self._rare is not None:
            self._leave(force)
        if force:
            self._state |= FAILED
        if self._slot >= 0:
            loop.queue((CLOSE, self._slot, 1 if force else 0, b"", None))

    def _may_close(self, force: bool) -> bool:
        """Whether there is something to close still, or a close under way to be forced."""
        if not self._enter():
            return False
        if not self._state & CLOSED:
            return True
        still_there = self._slot < 0 or self._loop.objects[self._slot] is self
        return force and not self._state & FAILED and still_there

    def _leave(self, force: bool) -> None:
        """Give up what a closed socket has no use for."""
        rare = self._need_rare()
        rare.stop_timeouts()
        rare.kept.clear()
        if rare.stream is not None:
            rare.stream._end()
        if force:
            rare.waiting.clear()
            rare.drop_held()
        if rare.connector is not None and rare.held:
            self._on_lingering()  # connect, send, then close
        elif self._slot < 0:
            if rare.connector is not None:
                rare.connector.close()
            rare.drop_held()
        else:
            self._release()

    def shutdown(self) -> None:
        """Send what was written, then end the sending side (half-close); reading goes on.

        The peer sees the end of the stream. Raises `SocketClosed`; a second call does nothing.
        """
        self._open_slot()
        if self._state & SHUT:
            return
        if self._state & WRITE_DISABLED and self._slot >= 0:
            self._release()
        self._state |= SHUT
        if self._slot >= 0:
            self._loop.queue((lib.PA_SHUTDOWN, self._slot, 0, b"", None))
        if self._state & ENDED:
            self.close()

    @property
    def closed(self) -> bool:
        """Whether the socket was closed, by `close`, its peer, an error, or the loop's end."""
        # The loop tells its end to those that have a handle.
        return self._state & CLOSED != 0 or (self._slot < 0 and self._loop.thread is None)

    # Disabling and enabling

    def disable(self, *, read: bool = False, write: bool = False) -> None:
        """Stop reading (``read_cb`` is not called, the peer is slowed down), or sending, or both.

        What is written while writing is disabled is held back, and its `write_cb` with it.
        Raises `SocketClosed`.
        """
        self._open_slot()
        if read and self._state & STREAMING:
            self._need_rare().stream._resume = None  # from now on it is the caller's to enable
        if read and not self._state & READ_DISABLED:
            self._state |= READ_DISABLED
            self._stop_reading()
            self._stop_read_timeout()
        if write:
            self._state |= WRITE_DISABLED

    def enable(self, *, read: bool = False, write: bool = False) -> None:
        """Undo `disable`. What had been read and kept back is delivered first, in order.

        Raises `SocketClosed`.
        """
        self._open_slot()
        if read and self._state & READ_DISABLED:
            rare = self._need_rare()
            if rare.kept:
                self._loop.ready.append(self._deliver_kept)
            self._state &= ~READ_DISABLED
            self._state |= KEPT if rare.kept else 0
            if self._slot >= 0 and not self._state & ENDED:
                self._loop.queue((lib.PA_READ_START, self._slot, 0, b"", None))
            self._start_read_timeout()
        if write and self._state & WRITE_DISABLED:
            self._state &= ~WRITE_DISABLED
            if self._slot >= 0:
                self._release()

    def _stop_reading(self) -> None:
        if self._slot >= 0:
            self._loop.queue((lib.PA_READ_STOP, self._slot, 0, b"", None))

    def _hold(self, data: Any, write_cb: WriteCallback | None, force: bool) -> None:
        rare = self._need_rare()
        rare.held.append((bytes(data), write_cb))
        rare.held_size += len(data)
        self._check_pressure()

    def _release(self) -> None:
        """Write what was held back, whatever has happened to the socket since."""
        state, self._state = self._state, self._state & ~CANNOT_WRITE
        rare = self._need_rare()
        while rare.held:
            data, write_cb = rare.held.popleft()
            rare.held_size -= len(data)
            self.write(data, write_cb=write_cb)
        if rare.paused:
            self.write(b"", write_cb=Stream._check_pressure)
        self._state |= state & (CLOSED | SHUT)

    def _keep(self, item: bytes | tuple[int, int]) -> None:
        self._need_rare().kept.append(item)

    def _deliver_kept(self) -> None:
        kept = self._need_rare().kept
        while kept and not self._state & (CLOSED | READ_DISABLED) and not self._loop.stopping:
            item = kept.popleft()
            try:
                if isinstance(item, bytes):
                    self._deliver(item)
                else:
                    self._on_end(*item)
            except Exception as error:
                self._loop.on_error(error, self)
        if not kept:
            self._state &= ~KEPT

    # Timeouts

    def set_timeouts(self, read: float | None, write: float | None) -> None:
        """Set the time limits of the socket, in seconds; None: no limit.

        ``read`` is the longest time without input; it stands still while reading is disabled.
        ``write`` is the longest time for which the peer may take nothing of what waits for it.
        When one passes, ``event_cb`` gets a `SocketTimeout`, and the socket is closed. Raises
        `SocketClosed`, and `ValueError` for a time that is not over 0.
        """
        self._open_slot()
        if self._options.read_timeout != read or self._options.write_timeout != write:
            settings = self._options.copy()
            settings.read_timeout = require_timeout("read", read)
            settings.write_timeout = require_timeout("write", write)
            self._options = settings
        self._stop_read_timeout()
        self._start_read_timeout()
        self._stop_write_timeout()
        self._start_write_timeout()

    def _start_read_timeout(self) -> None:
        timeout = self._options.read_timeout
        if timeout is not None and not self._state & _NOT_READING:
            self._need_rare().read_timeout = ReadTimeout(self, timeout)
            self._state |= TIMED

    def _stop_read_timeout(self) -> None:
        self._state &= ~TIMED
        rare = self._rare
        if rare is not None and rare.read_timeout is not None:
            rare.read_timeout.stop()
            rare.read_timeout = None

    def _start_write_timeout(self) -> None:
        timeout, rare = self._options.write_timeout, self._need_rare()
        if timeout is not None and rare.write_timeout is None and self._refused_size():
            rare.write_timeout = WriteTimeout(self, timeout)

    def _stop_write_timeout(self) -> None:
        rare = self._rare
        if rare is not None and rare.write_timeout is not None:
            rare.write_timeout.stop()
            rare.write_timeout = None

    # Events

    def _on_read(self, arena: Any, start: int, end: int) -> None:
        """Take data, which the arena holds in this iteration, when the state is not zero."""
        state = self._state
        if state & CLOSED:
            return
        if state & TIMED:
            self._need_rare().read_timeout.read_at = monotonic()  # type: ignore[union-attr]
        if state & (READ_DISABLED | KEPT):
            self._keep(arena[start:end])
        else:
            self._deliver(arena[start:end])

    def _deliver(self, data: bytes) -> None:
        if self._state & STREAMING:
            stream = self._need_rare().stream
            stream._feed(data)
            self._options.read_cb(self, stream)
            if not self._options.drain_read_buffer:
                self._limit(stream)
        else:
            self._options.read_cb(self, data)

    def _limit(self, stream: AsyncStream) -> None:
        """Read no more from the kernel while much waits in the stream."""
        if stream.buffered > HIGH_WATERMARK and not self._state & (CLOSED | READ_DISABLED):
            self.disable(read=True)
            stream._resume = self._end_limit

    def _end_limit(self) -> None:
        if not self._state & CLOSED:
            self.enable(read=True)

    def _on_event(self, kind: int, value: int, data: int) -> None:
        _EVENTS[kind](self, kind, value)

    def _on_end_event(self, kind: int, value: int) -> None:
        if self._state & CLOSED:
            return
        if self._state & (READ_DISABLED | KEPT):
            self._keep((kind, value))
        else:
            self._on_end(kind, value)

    def _on_end(self, kind: int, value: int) -> None:
        if kind != lib.PA_EOF:
            self._fail(value)
            return
        self._state |= ENDED
        self._stop_read_timeout()
        if self._state & STREAMING:
            self._end_stream(self._need_rare().stream)
        if self._state & CLOSED or self._loop.stopping:
            return
        self._loop.report(self, SocketEOF("end of stream"), self)
        if not self._options.allow_half_open or self._state & SHUT:
            self.close()

    def _end_stream(self, stream: AsyncStream) -> None:
        stream._end()
        if stream.buffered:  # such as a last line without an end
            try:
                self._options.read_cb(self, stream)
            except Exception as error:
                self._loop.on_error(error, self)

    def _on_write_error(self, kind: int, value: int) -> None:
        # Also of a socket that is closed already, and has not sent everything.
        self._fail(value)

    def _fail(self, status: int) -> None:
        """Report the error, once, and close."""
        self._fail_with(socket_error(status))

    def _fail_with(self, error: EventError) -> None:
        if self._state & FAILED:
            return
        self._state |= FAILED
        self._loop.report(self, error, self)
        self._state &= ~FAILED
        self.close(force=True)

    def _on_blocked(self, kind: int, size: int) -> None:
        if self._options.write_timeout is not None and not self._state & CLOSED:
            rare = self._need_rare()
            if rare.write_timeout is not None:
                rare.write_timeout.size += size
            else:
                self._start_write_timeout()
        self._check_pressure()

    def _on_held(self, kind: int, index: int) -> None:
        keep_callback(self, self._need_rare().waiting, index)

    def _on_written(self, kind: int, has_callback: int) -> None:
        try:
            if has_callback and not self._state & FAILED:
                call_kept_callback(self, self._need_rare().waiting)
        finally:
            self._check_pressure()

    def _on_lingering(self) -> None:
        """Set a limit to a close that cannot end at once: it flushes, or awaits the peer's end."""
        rare, seconds = self._need_rare(), self._options.linger
        if seconds is not None and rare.linger is None:
            rare.linger = Linger(self, seconds)

    def _on_connected(self, status: int) -> None:
        raise NotImplementedError

    def _on_closed(self) -> None:
        if self._rare is not None:
            self._rare.stop_timeouts()
            if self._rare.linger is not None:
                self._rare.linger.stop()
                self._rare.linger = None
        if self._state & LIMITED:
            self._options.server._on_connection_closed()

    def _on_loop_end(self) -> None:
        self._state |= CLOSED

    # For Handle, and this class

    @property
    def _loop(self) -> Loop:  # type: ignore[override]
        return self._options.loop

    @property
    def _subject(self) -> Any:
        """What the application knows the stream as."""
        return self._need_rare().stream if self._state & STREAMING else self

    @property
    def _event_cb(self) -> EventCallback | None:  # type: ignore[override]
        return self._options.event_cb

    def _need_rare(self) -> Rare:
        if self._rare is None:
            self._rare = Rare()
            self._state |= RARE
        return self._rare


_EVENTS: dict[int, Callable[[Stream, int, int], None]] = {
    # Those that a kind of stream has its own way with are looked up in its class.
    lib.PA_EOF: lambda stream, kind, value: stream._on_end_event(kind, value),
    lib.PA_READ_ERROR: lambda stream, kind, value: stream._on_end_event(kind, value),
    lib.PA_BLOCKED: lambda stream, kind, value: stream._on_blocked(kind, value),
    lib.PA_HELD: Stream._on_held,
    lib.PA_WRITTEN: lambda stream, kind, value: stream._on_written(kind, value),
    lib.PA_WRITE_ERROR: Stream._on_write_error,
    lib.PA_LINGERING: lambda stream, kind, value: stream._on_lingering(),
    lib.PA_CONNECTED: lambda stream, kind, value: stream._on_connected(value),
}


def _do_nothing(handle: Any) -> None:
    pass


def keep_callback(handle: Any, waiting: deque[Any], index: int) -> None:
    """Take PA_HELD: let a write's callback wait until the write is done."""
    batch = handle._loop.written_now
    waiting.append((batch[index][1], batch, index))
    batch[index] = (handle, _do_nothing)


def call_kept_callback(handle: Any, waiting: deque[Any]) -> None:
    """Take PA_WRITTEN: the first of the writes whose callbacks wait is done."""
    write_cb, batch, index = waiting.popleft()
    if batch is handle._loop.written_now:
        batch[index] = (handle, write_cb)  # it follows those before it, after this walk
    else:
        write_cb(handle)


def part_of(data: Data, start: int = 0, end: int | None = None) -> bytes | memoryview:
    """Return the part of the data to send: bytes, or a contiguous view of them."""
    if isinstance(data, str):
        data = data.encode()
    elif type(data) is not bytes:  # a subclass may have a length of its own
        try:
            view = memoryview(data)
        except TypeError:
            raise TypeError(
                f"data must be bytes-like or a string, not {type(data).__name__}"
            ) from None
        data = view.cast("B") if view.c_contiguous else view.tobytes()
    if start < 0 or (end is not None and end < start):
        raise ValueError(f"start and end must be 0 <= start <= end, not {start!r} and {end!r}")
    return data if start == 0 and end is None else memoryview(data)[start:end]
