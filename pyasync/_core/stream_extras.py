"""Fields that most connections never need, and time limits for reading, writing and closing.

No limit arms a timer when data moves. Its timer fires, compares, and is armed again for the rest.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pyasync._core.clock import monotonic
from pyasync._core.deadlines import Timer, background_timer
from pyasync._core.engine import FAILED
from pyasync.errors import SocketTimeout

if TYPE_CHECKING:
    from pyasync._core.file_sending import FileQueue
    from pyasync._core.stream import Stream

#: Marker in the deferred writes: entries after it were written while writing was disabled, and wait
#: for enable(write=True).
BARRIER: tuple[Any, None] = (None, None)

#: The default watermarks of the write queue, in bytes: asyncio's.
HIGH_WATERMARK = 64 << 10
LOW_WATERMARK = 16 << 10


class Extras:
    """Fields that most connections never need; allocated on first use to keep a Stream small."""

    __slots__ = (
        "blocked_callbacks",
        "connect_timer",
        "connector",
        "deferred",
        "deferred_size",
        "files",
        "high",
        "linger",
        "low",
        "over_high",
        "paused_input",
        "read_timeout",
        "referenced",
        "socket_options",
        "stream",
        "tls",
        "write_timeout",
    )

    def __init__(self) -> None:
        #: Callbacks of blocked writes, in order: (callback, batch, index in batch). C reports the
        #: end of blocked writes in the same order.
        self.blocked_callbacks: deque[tuple[Callable[[Any], object], list[Any], int]] = deque()
        #: Paused input: data, then the record of the end or error, if it came.
        self.paused_input: deque[bytes | tuple[int, Any]] = deque()
        #: Deferred writes, each with its callback, and their size in bytes.
        self.deferred: deque[tuple[Any, Callable[[Any], object] | None]] = deque()
        self.deferred_size = 0
        #: The files that are being sent, and the writes behind them; None: there are none.
        self.files: FileQueue | None = None
        self.connect_timer: Timer | None = None
        #: The connector of an unconnected socket: an object with a close(), or None.
        self.connector: Any = None
        #: Whether the handle is to keep the loop running, once there is one.
        self.referenced = True
        #: Options that were set before there was a handle: (level, option, value).
        self.socket_options: tuple[tuple[int, int, bytes], ...] = ()
        #: For an API: the callback API keeps its AsyncStream here.
        self.stream: Any = None
        self.read_timeout: ReadTimeout | None = None
        self.write_timeout: WriteTimeout | None = None
        self.linger: Linger | None = None
        self.high = HIGH_WATERMARK
        self.low = LOW_WATERMARK
        #: Whether the write queue has grown over ``high``, and not shrunk to ``low`` since.
        self.over_high = False
        #: Of a TLS socket: its TlsState.
        self.tls: Any = None

    def drop_deferred(self) -> None:
        """Drop the deferred writes, and their callbacks, and files that are being sent."""
        files, self.files = self.files, None
        if files is not None:
            files.stop()
        self.deferred.clear()
        self.deferred_size = 0

    def stop_connect_timer(self) -> None:
        """Stop the time limit of connecting, or of the TLS handshake."""
        # Here and below, taken out before it is used: a signal handler may stop it meanwhile.
        timer, self.connect_timer = self.connect_timer, None
        if timer is not None:
            timer.stop()

    def stop_read_timeout(self) -> None:
        """Stop the time limit of reading."""
        timeout, self.read_timeout = self.read_timeout, None
        if timeout is not None:
            timeout.stop()

    def stop_write_timeout(self) -> None:
        """Stop the time limit of writing."""
        timeout, self.write_timeout = self.write_timeout, None
        if timeout is not None:
            timeout.stop()

    def stop_linger(self) -> None:
        """Stop the time limit of a close."""
        linger, self.linger = self.linger, None
        if linger is not None:
            linger.stop()

    def stop_timeouts(self) -> None:
        """Stop all time limits except linger, which belongs to a close."""
        self.stop_connect_timer()
        self.stop_read_timeout()
        self.stop_write_timeout()

    def read_now(self) -> None:
        """Tell the time limit of reading that data has arrived."""
        timeout = self.read_timeout
        if timeout is not None:
            timeout.read_at = monotonic()


def report_timeout(stream: Stream, reason: str, *, force: bool) -> None:
    """Report a `SocketTimeout`, and close the stream; ``force`` drops blocked writes."""
    try:
        stream._report_error(SocketTimeout(errno.ETIMEDOUT, reason))
    finally:
        stream.close(force=force)


class ReadTimeout:
    """Ends a stream from which nothing has been read for some seconds."""

    __slots__ = ("_stream", "_timeout", "_timer", "read_at")

    def __init__(self, stream: Stream, timeout: float) -> None:
        self._stream = stream
        self._timeout = timeout
        #: The time of the last read, in seconds of `monotonic`. The stream sets it.
        self.read_at = monotonic()
        self._timer = background_timer(stream._loop, self._fired, timeout)

    def stop(self) -> None:
        self._timer.stop()

    def _fired(self) -> None:
        # Arming a timer for each read would cost more than to find here that it was early.
        left = self.read_at + self._timeout - monotonic()
        if left > 0:
            self._timer.start(left)
        else:
            reason = f"nothing was read for {self._timeout:g} seconds"
            report_timeout(self._stream, reason, force=False)


class WriteTimeout:
    """Ends a stream whose peer takes nothing of the blocked writes for some seconds."""

    __slots__ = ("_stream", "_timeout", "_timer", "size")

    def __init__(self, stream: Stream, timeout: float) -> None:
        self._stream = stream
        self._timeout = timeout
        #: The size that blocked writes would have if the peer took nothing: their size when the
        #: timer was armed, to which the stream adds that of later ones. Less: the peer reads.
        self.size = stream._blocked_size()
        self._timer = background_timer(stream._loop, self._fired, timeout)

    def stop(self) -> None:
        self._timer.stop()

    def _fired(self) -> None:
        size = self._stream._blocked_size()
        if size == 0:
            self._stream._stop_write_timeout()
        elif size < self.size:
            self.size = size
            self._timer.start(self._timeout)
        else:
            reason = f"the peer took nothing for {self._timeout:g} seconds"
            report_timeout(self._stream, reason, force=True)


class Linger:
    """Limits a close: the peer must take something every ``linger`` seconds, and end in time."""

    __slots__ = ("_left", "_seconds", "_stream", "_timer")

    def __init__(self, stream: Stream, seconds: float) -> None:
        self._stream = stream
        self._seconds = seconds
        self._left = self._size_left()
        self._timer = background_timer(stream._loop, self._fired, seconds)

    def stop(self) -> None:
        self._timer.stop()

    def _size_left(self) -> int:
        return self._stream._delayed_size() + self._stream._unsent_size()

    def _fired(self) -> None:
        before, self._left = self._left, self._size_left()
        size = self._stream._delayed_size()
        if self._left < before and self._seconds > 0:
            self._timer.start(self._seconds)  # the peer still reads
        elif size > 0 and not self._stream._state & FAILED:  # FAILED: it is reported already
            report_timeout(
                self._stream,
                f"closed, and the peer took nothing for {self._seconds:g} seconds: "
                f"{size} bytes are lost",
                force=True,
            )
        else:
            self._stream.close(force=True)
