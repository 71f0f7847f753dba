"""A connected stream of any kind, without callbacks: an API overrides the six `_report` methods.

The usual life of a connection (data arrives, an answer is written, the connection is closed) runs
through `Stream._write`, `Stream.close` and the engine itself. Everything rarer sets a flag of
``_state``, which is zero for an open connection with nothing special about it. Its fields are in an
`Extras`, made for that connection alone.

Words: a *pending write* waits in Python for the next crossing. A *deferred write* is held back by
the stream, because it is not connected, or writing is disabled, or TLS has to encrypt it. A
*blocked write* was refused by the kernel, and waits in libuv. *Paused input* was read, and is not
delivered because reading is disabled. To *linger* is to wait, in a close, until the peer has read
everything.
"""

from __future__ import annotations

import contextlib
import errno
import sys
from collections import deque
from collections.abc import Callable
from threading import get_ident
from typing import TYPE_CHECKING, Any, Protocol, Union

from pyasync._core.arguments import (
    require_flag,
    require_integer,
    require_timeout,
    wrong_type,
    wrong_value,
)
from pyasync._core.engine import CLOSED, FAILED, PYPY, Engine
from pyasync._core.file_sending import File, FileQueue
from pyasync._core.handles import DescriptorHandle
from pyasync._core.stream_extras import (
    BARRIER,
    HIGH_WATERMARK,
    Extras,
    Linger,
    ReadTimeout,
    WriteTimeout,
)
from pyasync._ffi import lib
from pyasync.errors import EventError, SocketClosed, socket_error

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

Data = Union[str, "ReadableBuffer"]
WriteCallback = Callable[[Any], object]

# The flags of Stream._state. CLOSED (1): close() was called, or pyasync has closed the stream.
# FAILED (16): pending and blocked writes are lost.
ENDED = 2  # the peer's end of stream has been reported
SHUT = 4  # shutdown() was called
CONNECTING = 8  # not connected yet, or the TLS handshake is not over
READ_DISABLED = 32
WRITE_DISABLED = 64
TIMED = 128  # a read timeout runs, and needs the time of each read
PAUSED_INPUT = 256  # reading is enabled again, but paused input comes before new data
LIMITED = 512  # the server has max_connections, and must learn of the close
HAS_EXTRAS = 1024  # so that the state is not zero, and a close calls _on_closed
UNCONNECTED = 2048  # there is no handle yet
STREAMING = 4096  # for an API: data goes to a stream object of its own
ENCRYPTED = 8192  # data passes through TLS in both directions
SENDING_FILE = 16384  # writes are held behind a file
IN_CONTEXT = 32768  # for an API: callbacks of writes must be bound to a context

DEFERRED = WRITE_DISABLED | UNCONNECTED | ENCRYPTED | SENDING_FILE  # any of these defers writes
NOT_PLAIN = DEFERRED | IN_CONTEXT
CANNOT_WRITE = CLOSED | SHUT | NOT_PLAIN  # any of these bars the fast path of a write

READABLE = lib.PA_READABLE
WRITE = lib.PA_WRITE
WRITE_CALLBACK = lib.PA_WRITE_CALLBACK
CLOSE = lib.PA_CLOSE
WITHOUT_LINGER = 2  # a value of CLOSE: flush, then close, also with unread input

_NOT_READING = READ_DISABLED | CONNECTING | UNCONNECTED | ENDED


class Options(Protocol):
    """The options that the core reads; all connections of a server share one object."""

    loop: Engine
    #: The engine itself calls it with data while the stream's state is zero.
    read_cb: Callable[[Any, Any], object]
    #: None: `Stream._report_pressure` need not be called.
    pressure_cb: Any
    allow_half_open: bool
    linger: float | None
    read_timeout: float | None
    write_timeout: float | None
    #: Whether `Stream._begin` must be called for a connection that was accepted.
    needs_begin: bool
    #: The listener that made the connection, or None.
    server: Any
    #: Of a client: the host and port that it connects to.
    remote: tuple[str, int] | None
    #: Of TLS: a TlsOptions.
    tls: Any

    def copy(self) -> Any: ...


class Stream(DescriptorHandle):
    """A connected stream.

    The six fields are all that Python keeps of a plain connection.
    """

    __slots__ = ("__weakref__", "_extras", "_options", "_slot", "_state", "data")

    _closed_error = SocketClosed
    #: The value of CLOSE for a close that drops nothing: see PA_CLOSE. An API whose closes do not
    #: linger sets `WITHOUT_LINGER`.
    _close_mode = 0

    def __init__(self, options: Any, slot: int, state: int = 0) -> None:
        self._options = options
        self._slot = slot
        self._state = state
        self._extras: Extras | None = None
        #: For the application to use as it likes.
        self.data: Any = None

    def _begin(self) -> None:
        """Set up the rarer options, such as time limits: see ``Options.needs_begin``."""
        self._start_read_timeout()  # that for writing starts with the first blocked write

    # The six methods that an API overrides

    def _report_opened(self) -> None:
        """Report that the connection stands, and that its TLS handshake is over."""

    def _report_data(self, data: bytes) -> None:
        """Report data that was read."""

    def _report_end(self) -> None:
        """Report that the peer has ended its sending side; the core closes, if it must, after."""

    def _report_error(self, error: EventError) -> None:
        """Report an error, after which the core closes the stream."""

    def _report_pressure(self, over_high: bool) -> None:
        """Report that the write queue has grown over its high watermark, or shrunk to its low."""

    def _report_closed(self) -> None:
        """Report that the handle is gone, or that an unconnected stream will never have one.

        Not called after a plain close: see Engine. May be called again.
        """

    # Writing

    def _write(self, data: bytes | memoryview, write_cb: WriteCallback | None, force: bool) -> None:
        """Write, or defer the write; the caller has checked that the stream is open for writing."""
        if not self._state & NOT_PLAIN:
            self._write_through(data, write_cb, force)
            return
        if write_cb is not None and self._state & IN_CONTEXT:
            write_cb = self._options.bound(write_cb)
        if self._state & SENDING_FILE:
            self._hold_write(data, write_cb)
        elif self._state & DEFERRED:
            self._defer_write(data, write_cb, force)
        else:
            self._write_through(data, write_cb, force)

    def _write_through(
        self, data: bytes | memoryview, write_cb: WriteCallback | None, force: bool
    ) -> int:
        """Write behind the pending writes, whatever the state is.

        Returns what `Engine.write_now` does; 0: the write waits for the next crossing.
        """
        loop = self._options.loop
        size = len(data)
        callback = None if write_cb is None else (self, write_cb)
        if size <= loop.inline_limit and not force:
            kind = WRITE if callback is None else WRITE_CALLBACK
            loop.queue((kind, self._slot, size, data, callback))
            return 0
        state: int = loop.write_now(self._slot, data, callback)
        return state

    # Sending files: see pyasync._core.file_sending

    def _send_file(self, file: File) -> None:
        """Send a file behind all earlier writes; later ones are held until it is sent."""
        extras, files = self._need_extras(), self._need_extras().files
        if files is not None:
            files.add(file, file.left)
        else:
            files = extras.files = FileQueue(self, self._state & ENCRYPTED != 0)
            files.add(file, file.left)
            self._state |= SENDING_FILE
            files.next()
        self._check_pressure()

    def _hold_write(self, data: Any, write_cb: WriteCallback | None) -> None:
        files = self._need_extras().files
        if files is not None:
            # A copy, because the application may change its buffer before it is sent.
            files.add((bytes(data), write_cb), len(data))
            self._check_pressure()

    def _write_behind(self, data: bytes, write_cb: WriteCallback | None) -> None:
        """Write what is behind a file, or the file's own end."""
        if self._state & DEFERRED & ~SENDING_FILE:
            self._defer_write(data, write_cb, False)
        else:
            self._write_through(data, write_cb, False)

    def _end_files(self) -> None:
        """End the sending of files, as none is left; then shut down or close, if asked to."""
        self._need_extras().files = None
        self._state &= ~SENDING_FILE
        if self._slot >= 0:
            self._end_writing()

    def _end_writing(self) -> None:
        """Perform a shutdown or close that has waited for writes to come before it."""
        if self._state & SHUT:
            self._loop.queue((lib.PA_SHUTDOWN, self._slot, 0, b"", None))
        if self._state & CLOSED:
            self._loop.queue((CLOSE, self._slot, self._close_mode, b"", None))

    def _check_writable(self) -> None:
        if self._state & CLOSED:
            raise SocketClosed("the socket is closed")
        self._loop.check_thread()
        if self._state & SHUT:
            raise socket_error(-errno.EPIPE, self)

    def _submit(self) -> None:
        """Send the pending writes now; those of other streams leave with them."""
        self._loop.check_thread()
        self._loop.submit()

    @property
    def write_queue_size(self) -> int:
        """Bytes of writes and files that the kernel has not taken yet."""
        self._open_slot()
        pending: int = self._loop.pending_size(self._slot)[0]
        return self._delayed_size() + pending

    def _blocked_size(self) -> int:
        """Bytes of blocked writes, and of a file that the kernel has refused for now."""
        if self._slot < 0:
            return 0
        size: int = lib.pa_write_queue_size(self._loop.c, self._slot)
        if self._extras is not None and self._extras.files is not None:
            size += self._extras.files.blocked_size
        return size

    def _unsent_size(self) -> int:
        """Bytes that the kernel has taken, but not sent (SIOCOUTQNSD; 0 on other systems)."""
        return lib.pa_unsent_size(self._loop.c, self._slot) if self._slot >= 0 else 0

    def _delayed_size(self) -> int:
        """Bytes of blocked and deferred writes, and of files and held writes."""
        size = self._blocked_size()
        if self._extras is not None:
            size += self._extras.deferred_size
            files = self._extras.files
            if files is not None:
                size += files.size - files.blocked_size
        return size

    def set_watermarks(self, high: int | None = None, low: int | None = None) -> None:
        """Set when ``pressure_cb(socket, paused)`` is called, in bytes.

        It is called with True when deferred and blocked writes have grown over ``high`` (64 KiB),
        and with False when they have shrunk to ``low`` (a quarter of ``high``) after that. Writes
        that wait for the end of the callback do not count, unlike in `write_queue_size`. Raises
        `ValueError` unless 0 <= ``low`` <= ``high``.
        """
        self._open_slot()
        high = HIGH_WATERMARK if high is None else require_integer("high", high, 0, 2**63 - 1)
        low = high // 4 if low is None else require_integer("low", low, 0, high)
        extras = self._need_extras()
        extras.high, extras.low = high, low
        self._check_pressure()

    def _check_pressure(self) -> None:
        if self._options.pressure_cb is None or self._state & CLOSED:
            return
        extras = self._need_extras()
        # Not write_queue_size: the kernel may take pending writes at once. Then no record comes,
        # and the end of the pressure would never be reported.
        over_high = self._delayed_size() > (extras.low if extras.over_high else extras.high)
        if over_high != extras.over_high:
            extras.over_high = over_high
            self._report_pressure(over_high)

    # Closing

    def close(self, force: bool = False) -> None:
        """Send all earlier writes, then close; ``force`` drops them, and closes at once.

        Callbacks of writes still run, no others. When the peer takes nothing for ``linger``
        seconds (a keyword of the call that made the socket), the rest is dropped, and ``event_cb``
        gets a `SocketTimeout`. Closing with unread input would make the kernel reset the
        connection, and the peer would lose data that it has not read yet (RFC 2525, 2.17). So then
        the sending side is shut down, and input is discarded for ``linger`` seconds at most.

        Closing again does nothing, unless it forces a close that is still going on.
        """
        loop = self._options.loop
        if (self._state & CLOSED or loop.thread != get_ident()) and not self._may_close(force):
            return
        self._state |= CLOSED
        if self._extras is not None and self._leave(force):
            return
        if force:  # write callbacks are not called: the writes are dropped
            self._state |= FAILED
        if self._slot >= 0:
            loop.queue((CLOSE, self._slot, 1 if force else self._close_mode, b"", None))

    def _may_close(self, force: bool) -> bool:
        """Whether the stream is open, or ``force`` applies to a close that is under way."""
        if not self._loop.may_change():
            return False
        if not self._state & CLOSED:
            return True
        # After the closed record the slot may be another stream's: a close must not reach that.
        still_there = self._slot < 0 or self._loop.objects[self._slot] is self
        return force and not self._state & FAILED and still_there

    def _leave(self, force: bool) -> bool:
        """Stop timeouts, drop input, and flush, drop or keep deferred writes, for a close.

        Returns whether files are to be sent first: `_end_files` closes then.
        """
        extras = self._need_extras()
        extras.stop_timeouts()
        self._drop_input()
        self._lift_barrier()
        if force:
            extras.blocked_callbacks.clear()
            extras.drop_deferred()
        if extras.connector is not None and extras.deferred:
            self._on_lingering()  # connect, send, then close: within the limit of a close
        elif self._slot < 0:  # nothing to send, or nowhere to send it
            if extras.connector is not None:
                extras.connector.close()
            extras.drop_deferred()
            self._report_closed()
        else:
            self._flush_deferred()
            if extras.files is not None:
                self._state &= ~WRITE_DISABLED  # what is held is sent too
                self._on_lingering()
                return True
        return False

    def _drop_input(self) -> None:
        """Drop the paused input of a closed stream."""
        self._need_extras().paused_input.clear()

    def shutdown(self) -> None:
        """Send all earlier writes, then end the sending side (half-close); reading goes on.

        The peer sees the end of the stream. If it has ended its own side already, the socket is
        closed. Raises `SocketClosed`; a second call does nothing.
        """
        self._open_slot()
        if self._state & SHUT:
            return
        if self._state & WRITE_DISABLED and self._slot >= 0:
            self._flush_deferred()  # nothing can be written behind a shutdown
        self._state |= SHUT
        if self._state & SENDING_FILE:
            self._state &= ~WRITE_DISABLED  # what is held is sent too
        elif self._slot >= 0:  # otherwise _catch_up does it
            self._loop.queue((lib.PA_SHUTDOWN, self._slot, 0, b"", None))
        if self._state & ENDED:
            self.close()

    @property
    def closed(self) -> bool:
        """Whether the socket was closed, by `close`, its peer, an error, or the loop's end."""
        # At its end the loop sets CLOSED for streams with a handle; others it does not know.
        return self._state & CLOSED != 0 or (self._slot < 0 and self._loop.closed)

    # Disabling and enabling

    def disable(self, *, read: bool = False, write: bool = False) -> None:
        """Stop reading, or sending, or both.

        While reading is disabled ``read_cb`` is not called, and TCP slows the peer down. While
        writing is disabled writes are deferred, and their ``write_cb`` with them, until `enable`,
        `shutdown` or `close`. Raises `SocketClosed`.
        """
        self._require_flags(read, write)
        if read and not self._state & READ_DISABLED:
            self._state |= READ_DISABLED
            self._stop_reading()
            self._stop_read_timeout()
        if write:
            if self._slot < 0 and not self._state & (WRITE_DISABLED | ENCRYPTED | SHUT):
                # Writes before it are sent as soon as the connection stands, as by a socket that
                # has a handle: C has those already.
                self._need_extras().deferred.append(BARRIER)
            self._state |= WRITE_DISABLED

    def enable(self, *, read: bool = False, write: bool = False) -> None:
        """Undo `disable`. Paused input is delivered first, in order, and never inside this call.

        Raises `SocketClosed`.
        """
        self._require_flags(read, write)
        if read and self._state & READ_DISABLED:
            extras = self._need_extras()
            if extras.paused_input:  # not now, because its callbacks must not run inside this call
                self._loop.ready.append(self._deliver_paused_input)
            self._state &= ~READ_DISABLED
            self._state |= PAUSED_INPUT if extras.paused_input else 0
            if self._slot >= 0 and not self._state & ENDED:
                self._loop.queue((lib.PA_READ_START, self._slot, 0, b"", None))
            self._start_read_timeout()
        if write and self._state & WRITE_DISABLED:
            if self._slot >= 0:
                self._stop_deferring(WRITE_DISABLED)
            else:
                self._lift_barrier()
                self._state &= ~WRITE_DISABLED

    def _lift_barrier(self) -> None:
        if self._state & WRITE_DISABLED:
            with contextlib.suppress(ValueError):  # disabled after shutdown: there is no barrier
                self._need_extras().deferred.remove(BARRIER)

    def _require_flags(self, read: bool, write: bool) -> None:
        """Check the arguments of `disable` and `enable`, before anything is changed."""
        self._open_slot()
        require_flag("read", read)
        require_flag("write", write)

    def _stop_reading(self) -> None:
        if self._slot >= 0:
            self._loop.queue((lib.PA_READ_STOP, self._slot, 0, b"", None))

    def _defer_write(self, data: Any, write_cb: WriteCallback | None, force: bool) -> None:
        extras = self._need_extras()
        # A copy, because the application may change its buffer before it is sent.
        extras.deferred.append((bytes(data), write_cb))
        extras.deferred_size += len(data)
        self._check_pressure()

    def _flush_deferred(self) -> None:
        """Write the deferred writes, also of a stream that was shut down or closed since.

        The state still defers what a signal handler writes meanwhile: it goes behind them.
        """
        extras = self._need_extras()
        while (entry := pop_first(extras.deferred)) is not None:
            if entry is BARRIER:
                continue
            data, write_cb = entry
            extras.deferred_size -= len(data)
            self._write_through(data, write_cb, False)
        if extras.over_high:
            # The kernel may take them all at once, with no record. The callback of an empty write
            # comes behind them in any case.
            self._write_through(b"", Stream._check_pressure, False)

    def _flush_to_barrier(self) -> None:
        """Write the deferred writes that were made before writing was disabled."""
        extras = self._need_extras()
        while (entry := pop_first(extras.deferred)) not in (None, BARRIER):
            data, write_cb = entry
            extras.deferred_size -= len(data)
            self._write_through(data, write_cb, False)

    def _stop_deferring(self, flag: int) -> None:
        """Write the deferred writes, and then defer none because of this flag."""
        while True:
            self._flush_deferred()
            self._state &= ~flag
            if not self._need_extras().deferred or self._state & DEFERRED:
                return
            self._state |= flag  # a signal handler has written before the flag was gone

    def _deliver_paused_input(self) -> None:
        items = self._need_extras().paused_input
        # Checked for each, because a callback may close the stream, or disable reading again.
        while not self._state & (CLOSED | READ_DISABLED) and not self._loop.stopping:
            item = pop_first(items)
            if item is None:
                break
            try:
                if isinstance(item, bytes):
                    self._report_data(item)
                else:
                    self._on_end(*item)
            except Exception as error:
                self._loop.on_error(error, self)
        if not items:  # only now may new data pass: before, it queues behind the paused input
            self._state &= ~PAUSED_INPUT

    # Timeouts

    def set_timeouts(self, read: float | None, write: float | None) -> None:
        """Set the time limits of the socket, in seconds; None: no limit.

        ``read`` is the longest time without input; it stands still while reading is disabled.
        ``write`` is the longest time for which the peer may take nothing of blocked writes.
        When one passes, ``event_cb`` gets a `SocketTimeout`, and the socket is closed. Raises
        `SocketClosed`, and `ValueError` for a time that is not over 0.
        """
        self._open_slot()
        require_timeout("read", read)
        require_timeout("write", write)
        if self._options.read_timeout != read or self._options.write_timeout != write:
            options = self._options.copy()  # the server's other connections share the original
            options.read_timeout, options.write_timeout = read, write
            self._options = options
        self._stop_read_timeout()
        self._start_read_timeout()
        self._stop_write_timeout()
        self._start_write_timeout()

    def _start_read_timeout(self) -> None:
        timeout = self._options.read_timeout
        if timeout is not None and not self._state & _NOT_READING:
            self._need_extras().read_timeout = ReadTimeout(self, timeout)
            self._state |= TIMED

    def _stop_read_timeout(self) -> None:
        self._state &= ~TIMED
        if self._extras is not None:
            self._extras.stop_read_timeout()

    def _start_write_timeout(self) -> None:
        timeout, extras = self._options.write_timeout, self._need_extras()
        if timeout is not None and extras.write_timeout is None and self._blocked_size():
            extras.write_timeout = WriteTimeout(self, timeout)

    def _stop_write_timeout(self) -> None:
        if self._extras is not None:
            self._extras.stop_write_timeout()

    # Records: see the contract in Engine

    def _on_read(self, arena: Any, start: int, end: int) -> None:
        state = self._state
        if state & CLOSED:
            return
        if state & TIMED:
            self._need_extras().read_now()
        if state & (READ_DISABLED | PAUSED_INPUT):
            self._need_extras().paused_input.append(arena[start:end])
        else:
            self._report_data(arena[start:end])

    def _on_event(self, kind: int, value: int, data: int) -> None:
        if kind == READABLE:
            self._on_readable(value, data)
        else:
            _EVENTS[kind](self, kind, value)

    def _on_readable(self, size: int, descriptor: int) -> None:
        if not self._state & CLOSED:
            self._read_from(descriptor, size)

    def _read_from(self, descriptor: int, size: int) -> None:
        """Read the handle's own descriptor: it must be open still."""
        try:
            data = self._loop.read(descriptor, size)
        except OSError as error:
            self._on_end_event(lib.PA_READ_ERROR, -(error.errno or 0))
            return
        if data:
            self._on_read(data, 0, len(data))

    def _on_end_event(self, kind: int, value: Any) -> None:
        if self._state & CLOSED:
            return
        if self._state & (READ_DISABLED | PAUSED_INPUT):
            self._need_extras().paused_input.append((kind, value))
        else:
            self._on_end(kind, value)

    def _on_end(self, kind: int, value: Any) -> None:
        if kind != lib.PA_EOF:
            self._fail_with(socket_error(value))
            return
        self._state |= ENDED
        self._stop_read_timeout()
        try:
            self._report_end()
        finally:
            # If the callback has left the loop, that closes everything.
            half_open = self._options.allow_half_open and not self._state & SHUT
            if not half_open and not self._loop.stopping:
                self.close()

    def _on_write_error(self, kind: int, value: int) -> None:
        # Reported also for a stream that is closed, because a flush was under way: data is lost.
        self._fail_with(socket_error(value))

    def _fail_with(self, error: EventError) -> None:
        """Report the error, once, and close."""
        if self._state & FAILED:
            return
        # Set while event_cb runs: an error that its calls cause must not be a second report.
        self._state |= FAILED
        try:
            self._report_error(error)
        finally:
            self._state &= ~FAILED  # or close would take it for a forced close that is done
            self.close(force=True)

    def _on_blocked(self, kind: int, size: int) -> None:
        if self._options.write_timeout is not None and not self._state & CLOSED:
            extras = self._need_extras()
            if extras.write_timeout is not None:
                extras.write_timeout.size += size  # or it would hide that the peer takes data
            else:
                self._start_write_timeout()
        self._check_pressure()

    def _on_callback_waits(self, kind: int, index: int) -> None:
        add_blocked_callback(self, self._need_extras().blocked_callbacks, index)

    def _on_written(self, kind: int, has_callback: int) -> None:
        try:
            if has_callback and not self._state & FAILED:
                call_blocked_callback(self, self._need_extras().blocked_callbacks)
        finally:  # also after an exception of write_cb: no other record may follow
            self._check_pressure()

    def _on_lingering(self) -> None:
        """Limit a close that cannot end at once, because it flushes or waits for the peer's end."""
        extras, seconds = self._need_extras(), self._options.linger
        if seconds is not None and extras.linger is None:  # it may have begun while connecting
            extras.linger = Linger(self, seconds)

    def _on_connected(self, status: int) -> None:
        raise NotImplementedError

    def _on_closed(self) -> None:
        if self._extras is not None:
            self._extras.stop_timeouts()
            self._extras.stop_linger()
        if self._state & LIMITED:  # only now, as the descriptor counts until it is closed
            self._options.server._connection_closed()
        self._report_closed()

    def _on_loop_end(self) -> None:
        self._state |= CLOSED
        if self._extras is not None and self._extras.files is not None:
            self._extras.files.stop()

    # Fields

    def _state_text(self) -> str:
        state = self._state
        if state & CLOSED or self.closed:
            here = self._slot >= 0 and not self._loop.closed
            return "closing" if here and self._loop.objects[self._slot] is self else "closed"
        if state & CONNECTING:
            return "connecting"
        if state & UNCONNECTED:
            extras = self._extras
            connecting = extras is not None and extras.connector is not None
            return "connecting" if connecting else "unconnected"
        if state & ENDED:
            return "ended by the peer"
        return "shut down" if state & SHUT else "open"

    def _keep_names(self) -> None:
        """Keep the addresses, as the end has come: a stream that has none does nothing."""

    @property
    def _loop(self) -> Any:  # type: ignore[override]
        return self._options.loop

    def _need_extras(self) -> Extras:
        if self._extras is None:
            self._extras = Extras()
            self._state |= HAS_EXTRAS
        return self._extras


_EVENTS: dict[int, Callable[[Stream, int, int], None]] = {
    # By lambdas where subclasses override the method: Stream._on_written would bypass theirs.
    lib.PA_EOF: lambda stream, kind, value: stream._on_end_event(kind, value),
    lib.PA_READ_ERROR: lambda stream, kind, value: stream._on_end_event(kind, value),
    lib.PA_BLOCKED: lambda stream, kind, value: stream._on_blocked(kind, value),
    lib.PA_CALLBACK_WAITS: Stream._on_callback_waits,
    lib.PA_WRITTEN: lambda stream, kind, value: stream._on_written(kind, value),
    lib.PA_WRITE_ERROR: lambda stream, kind, value: stream._on_write_error(kind, value),
    lib.PA_LINGERING: lambda stream, kind, value: stream._on_lingering(),
    lib.PA_CONNECTED: lambda stream, kind, value: stream._on_connected(value),
}


def _do_nothing(handle: Any) -> None:
    pass


def pop_first(queue: deque[Any]) -> Any:
    """Remove and return the first item; None: there is none.

    It does not look first: a signal handler, or a ``__del__``, may empty the queue in between.
    """
    try:
        return queue.popleft()
    except IndexError:
        return None


def add_blocked_callback(handle: Any, callbacks: deque[Any], index: int) -> None:
    """Take PA_CALLBACK_WAITS: move the callback of a blocked write from its batch to the handle.

    ``index`` is that of the write among the batch's writes with a callback, in Python and in C.
    """
    batch = handle._loop.written_now
    callbacks.append((batch[index][1], batch, index))
    batch[index] = (handle, _do_nothing)  # not removed, because C names the others by index


def call_blocked_callback(handle: Any, callbacks: deque[Any]) -> None:
    """Take PA_WRITTEN: the first blocked write with a callback is done."""
    entry = pop_first(callbacks)
    if entry is None:  # a signal handler has just closed the handle by force
        return
    write_cb, batch, index = entry
    if batch is handle._loop.written_now:
        # Blocked and done in one iteration: back to its place, or it would run before the
        # callbacks of earlier writes.
        batch[index] = (handle, write_cb)
    else:
        write_cb(handle)


def as_buffer_slice(data: Data, start: int = 0, end: int | None = None) -> bytes | memoryview:
    """Return the part of the data to send: bytes, or a contiguous view of them.

    ``start`` and ``end`` are in bytes. Raises `TypeError`, and `ValueError` unless ``start`` is in
    the data, and ``end`` not before it.
    """
    if isinstance(data, str):
        try:
            data = data.encode()
        except UnicodeEncodeError:
            raise wrong_value("data", "a string without lone surrogates", data) from None
    elif type(data) is not bytes:  # a subclass of bytes may define a len() of its own
        try:
            view = memoryview(data)
        except TypeError:
            raise wrong_type("data", "bytes-like or a string", data) from None
        if PYPY or not view.c_contiguous:
            # On PyPy a view would lock the application's buffer until the garbage collector runs.
            with view:
                data = view.tobytes()
        else:
            data = view.cast("B")  # in bytes: the len() of a view is the number of its items
    if start == 0 and end is None:
        return data
    start = require_integer("start", start, 0, len(data))
    if end is not None:  # it may be behind the data, as in a slice
        end = require_integer("end", end, start, sys.maxsize, ", or None")
    return memoryview(data)[start:end]
