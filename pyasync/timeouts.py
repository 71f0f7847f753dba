"""The time limits of a stream: for reading, for writing, and for a close that cannot end at once.

None of them costs a call when data moves: a timer that fires looks at what has happened since, and
is armed again for the rest.
"""

from __future__ import annotations

import errno
from time import monotonic
from typing import TYPE_CHECKING

from pyasync.errors import SocketTimeout
from pyasync.loop import STREAM_FAILED as FAILED
from pyasync.timers import background_timer

if TYPE_CHECKING:
    from pyasync.streams import Stream


def time_out(stream: Stream, reason: str, *, force: bool) -> None:
    """Report a `SocketTimeout`, and close the stream."""
    stream._loop.report(stream, SocketTimeout(errno.ETIMEDOUT, reason), stream)
    stream.close(force=force)


class ReadTimeout:
    """Ends a stream from which nothing has been read for some seconds."""

    __slots__ = ("_stream", "_timeout", "_timer", "read_at")

    def __init__(self, stream: Stream, timeout: float) -> None:
        self._stream = stream
        self._timeout = timeout
        #: When the stream was read from: to be kept up to date.
        self.read_at = monotonic()
        self._timer = background_timer(stream._loop, self._fired, timeout)

    def stop(self) -> None:
        self._timer.free()

    def _fired(self) -> None:
        left = self.read_at + self._timeout - monotonic()
        if left > 0:
            self._timer.add(left)
        else:
            time_out(self._stream, f"nothing was read for {self._timeout:g} seconds", force=False)


class WriteTimeout:
    """Ends a stream whose peer takes nothing for some seconds of what the kernel has refused."""

    __slots__ = ("_stream", "_timeout", "_timer", "size")

    def __init__(self, stream: Stream, timeout: float) -> None:
        self._stream = stream
        self._timeout = timeout
        #: What would wait by now if the peer had taken nothing: to be kept up to date.
        self.size = stream._refused_size()
        self._timer = background_timer(stream._loop, self._fired, timeout)

    def stop(self) -> None:
        self._timer.free()

    def _fired(self) -> None:
        size = self._stream._refused_size()
        if size == 0:
            self._stream._stop_write_timeout()
        elif size < self.size:
            self.size = size
            self._timer.add(self._timeout)
        else:
            time_out(
                self._stream, f"the peer took nothing for {self._timeout:g} seconds", force=True
            )


class Linger:
    """Ends a close when the peer takes nothing for some seconds, or sends no end of its own."""

    __slots__ = ("_left", "_seconds", "_stream", "_timer")

    def __init__(self, stream: Stream, seconds: float) -> None:
        self._stream = stream
        self._seconds = seconds
        self._left = self._size_left()
        self._timer = background_timer(stream._loop, self._fired, seconds)

    def stop(self) -> None:
        self._timer.free()

    def _size_left(self) -> int:
        return self._stream._waiting_size() + self._stream._unsent_size()

    def _fired(self) -> None:
        before, self._left = self._left, self._size_left()
        size = self._stream._waiting_size()
        if self._left < before and self._seconds > 0:
            self._timer.add(self._seconds)  # the peer still reads
        elif size > 0 and not self._stream._state & FAILED:  # of which it has been told
            time_out(
                self._stream,
                f"closed, and the peer took nothing for {self._seconds:g} seconds: "
                f"{size} bytes are lost",
                force=True,
            )
        else:
            self._stream.close(force=True)
