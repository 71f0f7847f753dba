"""TLS on a stream, as a mixin over the core's `Stream`: writes are encrypted, input is decrypted.

All writes of a `TlsStream` are deferred, because they must be encrypted before they go to C. They
are encrypted when the handshake is over, all writes of a callback together, and no faster than the
kernel takes the result. So data for a slow peer waits as the application's own objects.

How that is done is in `pyasync._core.tls_pump`; here is what a stream makes of it.
"""

from __future__ import annotations

import errno
import ssl
from threading import get_ident
from typing import Any

from pyasync._core.connecting import Socket
from pyasync._core.deadlines import background_timer
from pyasync._core.engine import CLOSED, FAILED
from pyasync._core.stream import (
    CONNECTING,
    ENCRYPTED,
    ENDED,
    PAUSED_INPUT,
    READ_DISABLED,
    SHUT,
    TIMED,
    WRITE_DISABLED,
    WriteCallback,
)
from pyasync._core.stream_extras import BARRIER, Extras
from pyasync._core.tls import (
    BROKEN,
    HANDSHAKE,
    OPEN,
    PHASE_CLOSED,
    SHUTDOWN,
    TlsState,
    make_error,
    require_name,
)
from pyasync._core.tls_pump import TlsPump
from pyasync._ffi import lib
from pyasync.errors import EventError, TcpSslError, socket_error


class TlsStream(TlsPump, Socket):
    """A stream over TLS."""

    __slots__ = ()

    _extras: Extras

    def __init__(self, options: Any, slot: int, state: int = 0) -> None:
        # CONNECTING lasts until the handshake is over.
        super().__init__(options, slot, state | ENCRYPTED | CONNECTING)
        self._need_extras()

    # Results of the handshake

    @property
    def ssl_object(self) -> ssl.SSLObject | None:
        """The `ssl.SSLObject`, for all that TLS knows of the connection; None before connecting.

        Do not read, write or unwrap by it: the socket does.
        """
        self._loop.may_change()  # OpenSSL's objects are for one thread at a time
        tls = self._extras.tls
        return None if tls is None else tls.object

    @property
    def cipher(self) -> tuple[str, str, int] | None:
        """The cipher: (name, protocol version, secret bits); None before it is agreed upon."""
        tls = self.ssl_object
        return None if tls is None else tls.cipher()

    @property
    def alpn(self) -> str | None:
        """The application protocol that ALPN has chosen (RFC 7301), or None.

        The context's ``set_alpn_protocols`` offers some.
        """
        tls = self.ssl_object
        return None if tls is None else tls.selected_alpn_protocol()

    @property
    def session(self) -> ssl.SSLSession | None:
        """The `ssl.SSLSession`, for ``session=`` of the next connection to the same server.

        With TLS 1.3 a server's tickets come after the handshake (RFC 8446, 4.6.1): take the session
        when data has been read, or at the end. It is there also after the socket has closed.
        """
        tls = self.ssl_object
        return None if tls is None else tls.session

    # Writing

    def _defer_write(self, data: Any, write_cb: WriteCallback | None, force: bool) -> None:
        extras, size = self._extras, len(data)
        # A copy of anything but bytes: the application may change its buffer before it is sent.
        extras.deferred.append((data if type(data) is bytes else bytes(data), write_cb))
        extras.deferred_size += size
        if not self._may_send():
            self._check_pressure()
        elif force or size > self._options.loop.inline_limit:
            self._send()  # now: a large write would leave by itself without TLS too
            if force:
                self._loop.submit()
        else:
            self._encrypt_soon()

    def disable(self, *, read: bool = False, write: bool = False) -> None:
        self._require_flags(read, write)
        if write and not self._state & (WRITE_DISABLED | SHUT):
            # Writes before the barrier are still sent, as on a plain stream.
            self._extras.deferred.append(BARRIER)
        super().disable(read=read, write=write)

    def enable(self, *, read: bool = False, write: bool = False) -> None:
        self._require_flags(read, write)
        if write:
            self._lift_barrier()
        super().enable(read=read, write=write)

    @property
    def _engine(self) -> Any:
        return self._options.loop

    def _on_sent(self) -> None:
        extras = self._extras
        if not extras.deferred and self._state & (CLOSED | SHUT) and extras.files is None:
            self._finish()
        if extras.over_high and extras.deferred_size <= extras.low:
            # Later, because pressure_cb must not run inside the application's write.
            self._loop.ready.append(self._end_pressure)

    def _end_writing(self) -> None:
        self._send()  # which ends in _on_sent

    def _fail_soon(self, error: EventError) -> None:
        """Fail at the end of the iteration, because event_cb must not run inside a write."""
        self._loop.ready.append(lambda: self._fail_with(error))

    def _call_soon(self, function: Any) -> None:
        self._loop.ready.append(function)

    def _interrupted(self) -> None:
        text = "an exception has interrupted TLS, and what it has lost is not known"
        self._fail_with(make_error(errno.EINTR, "INTERRUPTED", text))

    def _end_pressure(self) -> None:
        try:
            self._check_pressure()
        except Exception as error:
            self._loop.on_error(error, self)

    def _hand_over(self, data: bytes, callbacks: list[WriteCallback]) -> None:
        # They are one callback of C's write, because C sees one write.
        if len(callbacks) > 1:
            self._write_encrypted(data, lambda socket: socket._call_written(callbacks))
        else:
            self._write_encrypted(data, callbacks[0] if callbacks else None)

    def _call_written(self, callbacks: list[WriteCallback]) -> None:
        for write_cb in callbacks:
            if self._state & FAILED or self._loop.stopping:  # a callback before has done it
                return
            try:
                write_cb(self)
            except Exception as error:
                self._loop.on_error(error, self)

    def _write_encrypted(self, data: bytes, write_cb: WriteCallback | None) -> None:
        if self._write_through(data, write_cb, False) != 0:
            self._extras.tls.blocked = True  # before PA_BLOCKED comes, or the loop would go on

    def _flush_deferred(self) -> None:
        self._lift_barrier()
        if self._extras.tls is not None:
            self._send()

    def _submit(self) -> None:
        tls, here = self._extras.tls, self._loop.thread == get_ident()
        if tls is not None and here and not self._state & CLOSED:
            self._send()
        super()._submit()

    def _on_blocked(self, kind: int, size: int) -> None:
        self._extras.tls.blocked = True
        super()._on_blocked(kind, size)

    def _on_written(self, kind: int, has_callback: int) -> None:
        tls = self._extras.tls
        if tls.phase == BROKEN:
            return  # it was the alert; deferred writes and callbacks were dropped
        # All of them, or encrypted data would pile up in C behind a slow peer.
        if tls.blocked and not self._blocked_size():
            tls.blocked = False
            tls.answers_size = 0
            self._send()
        super()._on_written(kind, has_callback)

    # Connecting

    def _before_connecting(self, host: str | None) -> None:
        require_name(self._options.tls, host)
        self._extras.tls = TlsState(self._options.tls, host)

    def _catch_up(self) -> None:
        """Do nothing: deferred writes, shutdown and close wait for the end of the handshake."""

    def _on_connected(self, status: int) -> None:
        """Begin the handshake, as TCP is connected."""
        extras = self._extras
        if self._state & CLOSED and not extras.deferred:
            return  # closed, and nothing to send first
        if status != 0:
            if self._state & CLOSED:
                self._fail_with(socket_error(status))
            else:
                super()._on_connected(status)
            return
        extras.connector = None
        extras.stop_connect_timer()
        timeout = self._options.tls.handshake_timeout
        if timeout is not None:
            extras.connect_timer = background_timer(self._loop, self._handshake_timed_out, timeout)
        if not self._options.tls.server_side and not extras.tls.unfed:
            self._continue_handshake()  # the client speaks first

    def _handshake_timed_out(self) -> None:
        seconds = self._options.tls.handshake_timeout
        text = f"the TLS handshake was not over after {seconds:g} seconds"
        self._fail_with(make_error(errno.ETIMEDOUT, "HANDSHAKE_TIMEOUT", text))

    def _continue_handshake(self) -> None:
        """Go on with the handshake; if it is over, report that, and then data that came with it."""
        extras = self._extras
        tls = extras.tls
        try:
            over = tls.handshake()
            # Decrypted before connect_cb runs, because that may shut down, and OpenSSL's shutdown
            # drops unread input.
            data = tls.receive_pending() if over else b""
            if over or tls.error is None:
                self._encrypt_soon()  # the handshake's messages; after its end, deferred writes
        except BaseException:
            self._interrupted()
            raise
        if tls.error is not None and not over:
            self._fail_with(tls.error)
            return
        if not over:
            return
        extras.stop_connect_timer()
        if not self._state & CLOSED:
            try:
                self._established()
            except Exception as error:
                self._loop.on_error(error, self)
        if not self._loop.stopping:
            self._on_decrypted(data)

    # Reading

    def _stop_reading(self) -> None:
        if not self._state & CONNECTING:  # the handshake must go on reading
            super()._stop_reading()

    def _on_read(self, arena: Any, start: int, end: int) -> None:
        tls = self._extras.tls
        # None: the options did not fit together, and the socket was closed before it had TLS.
        if tls is None or tls.ended or tls.phase >= PHASE_CLOSED:
            return
        if self._state & TIMED:
            self._extras.read_now()
        read = memoryview(arena)[start:end]
        if tls.unfed:
            tls.unfed = b"".join((tls.unfed, read))
            tls.paused = True
            self._pause_reading()
        else:
            self._take_turn(read)

    def _on_readable(self, size: int, descriptor: int) -> None:
        if self._extras.tls.phase < PHASE_CLOSED:  # also when it is closed, and flushes
            self._read_from(descriptor, size)

    def _pause_reading(self) -> None:
        self._loop.queue((lib.PA_READ_STOP, self._slot, 0, b"", None))

    def _go_on_reading(self) -> None:
        if not self._state & READ_DISABLED or self._state & (CONNECTING | CLOSED):
            self._loop.queue((lib.PA_READ_START, self._slot, 0, b"", None))

    def _take_next_turn(self) -> None:
        """Go on with the input that waits; behind it, report the end or errors that came."""
        tls = self._extras.tls
        if tls.phase >= PHASE_CLOSED:
            return
        unfed, tls.unfed = tls.unfed, b""
        try:
            if unfed:
                self._take_turn(memoryview(unfed))
        except Exception as error:
            self._loop.on_error(error, self)
        while tls.ends and not tls.unfed and not self._loop.stopping:
            kind, value = tls.ends.pop(0)
            self._on_event(kind, value, 0)

    def _on_decrypted(self, data: bytes) -> None:
        """Report decrypted data, and the end or the error that TLS has found behind it."""
        tls = self._extras.tls
        # OpenSSL may have answered the input, or have waited for it to encrypt more.
        try:
            if tls.must_send() or self._may_send():
                self._encrypt_soon()
        except BaseException:
            self._interrupted()
            raise
        over = tls.ended or tls.error is not None
        if data and not self._state & CLOSED:
            try:
                if self._state & (READ_DISABLED | PAUSED_INPUT):
                    self._extras.paused_input.append(data)
                else:
                    self._report_data(data)
            except Exception as error:
                if not over:
                    raise
                self._loop.on_error(error, self)  # the end must be reported all the same
        if self._loop.stopping:
            return
        if tls.error is not None:
            self._on_tls_end(lib.PA_READ_ERROR, tls.error)
        elif over:
            self._on_tls_end(lib.PA_EOF, None)

    def _on_tls_end(self, kind: int, error: EventError | None) -> None:
        if not self._state & CLOSED:
            super()._on_end_event(kind, error)
        elif error is not None and self._extras.tls.phase < PHASE_CLOSED:
            self._fail_with(error)  # closed, but a flush is under way: data is lost

    def _on_end_event(self, kind: int, value: int) -> None:
        """Take the end of TCP, which is an error unless a close_notify came before it.

        Without one anybody on the way could cut the data off unseen (RFC 8446, 6.1).
        """
        tls = self._extras.tls
        if tls is None or tls.ended or tls.phase >= PHASE_CLOSED:
            return
        if tls.unfed:
            tls.ends.append((kind, value))
            return
        error: EventError
        if kind != lib.PA_EOF:
            error = socket_error(value)
        elif tls.phase == HANDSHAKE:
            error = make_error(
                ssl.SSL_ERROR_EOF,
                "UNEXPECTED_EOF_WHILE_READING",
                "the peer has closed the connection during the TLS handshake",
            )
        elif self._state & CLOSED:
            return  # the peer may still read the writes that are being flushed
        else:
            error = make_error(
                ssl.SSL_ERROR_EOF,
                "UNEXPECTED_EOF_WHILE_READING",
                "the peer has ended the connection without close_notify: data may be missing",
            )
        if tls.phase == HANDSHAKE:
            self._fail_with(error)
        else:
            self._on_tls_end(lib.PA_READ_ERROR, error)

    def _on_write_error(self, kind: int, value: int) -> None:
        tls = self._extras.tls
        if tls is not None and tls.unfed and tls.phase < PHASE_CLOSED:
            tls.ends.append((kind, value))  # what came before the error is reported first
        else:
            super()._on_write_error(kind, value)

    def _on_end(self, kind: int, value: Any) -> None:
        if isinstance(value, EventError):
            self._fail_with(value)
        else:
            super()._on_end(kind, value)

    # Closing

    def set_timeouts(self, read: float | None, write: float | None) -> None:
        """Set the time limits: see `Stream.set_timeouts`. After `shutdown` its limit remains."""
        super().set_timeouts(read, write)
        tls = self._extras.tls
        if tls is not None and tls.phase == SHUTDOWN:
            self._limit_shutdown()

    def shutdown(self) -> None:
        """Send all earlier writes, then a close_notify, and end TCP's sending side; read on.

        The peer sees the end of the stream. With TLS 1.3 it may go on sending (RFC 8446, 6.1); with
        TLS 1.2 and older it must end its side at once (RFC 5246, 7.2.1). When nothing has arrived
        for ``shutdown_timeout`` seconds after that, ``event_cb`` gets a `SocketTimeout`, and the
        socket is closed. Raises `SocketClosed`; a second call does nothing.
        """
        self._open_slot()
        if self._state & SHUT:
            return
        self._state |= SHUT
        self._flush_deferred()
        if self._state & ENDED:  # both sides are over
            self.close()

    def close(self, force: bool = False) -> None:
        """Send all earlier writes and a close_notify, then close; ``force`` drops the writes.

        All else is as of `Stream.close`. It does not wait for the peer's close_notify.
        """
        loop, extras = self._options.loop, self._extras
        tls = extras.tls
        if tls is not None and tls.phase == BROKEN:  # only the alert is still under way
            if not self._state & CLOSED:
                super().close(force=force)
            elif force and self._loop.may_change() and loop.objects[self._slot] is self:
                loop.queue((lib.PA_CLOSE, self._slot, 1, b"", None))
            return
        if (self._state & CLOSED or loop.thread != get_ident()) and not self._may_close(force):
            return
        self._lift_barrier()
        on_its_way = self._slot >= 0 or extras.connector is not None
        if force or not on_its_way or not (extras.deferred or tls.phase != HANDSHAKE):
            if tls is not None:
                # The last message of the handshake is sent even so, or the peer would report a
                # failed handshake for a connection that stood.
                if tls.phase == OPEN and tls.must_send():
                    self._write_encrypted(tls.take_outgoing(), None)
                    loop.submit()
                tls.phase = PHASE_CLOSED
            super().close(force=force)
            return
        self._state = self._state & ~TIMED | CLOSED
        timer, extras.connect_timer = extras.connect_timer, None
        extras.stop_timeouts()
        extras.connect_timer = timer  # kept: a handshake that is under way still has its limit
        self._drop_input()
        if self._state & READ_DISABLED and self._slot >= 0:
            # The handshake must go on, and the end of the peer must be seen.
            loop.queue((lib.PA_READ_START, self._slot, 0, b"", None))
        self._send()
        if tls.phase < PHASE_CLOSED:
            self._on_lingering()

    def _finish(self) -> None:
        """End TLS, as no deferred write is left; then shut down or close TCP, as was asked for."""
        loop, tls = self._loop, self._extras.tls
        if tls.phase == OPEN:
            tls.shut_down()
            if tls.outgoing.pending:
                self._write_encrypted(tls.take_outgoing(), None)
            if not self._state & CLOSED:
                loop.queue((lib.PA_SHUTDOWN, self._slot, 0, b"", None))
                self._limit_shutdown()  # a peer need not answer a close_notify, nor ever end
        if self._state & CLOSED and tls.phase != HANDSHAKE:
            tls.phase = PHASE_CLOSED
            loop.queue((lib.PA_CLOSE, self._slot, self._close_mode, b"", None))

    def _limit_shutdown(self) -> None:
        """Let the read timeout be ``shutdown_timeout`` from now on, unless it is shorter."""
        read, limit = self._options.read_timeout, self._options.tls.shutdown_timeout
        if limit is not None and (read is None or read > limit):
            self._options = self._options.copy()
            self._options.read_timeout = limit
            self._stop_read_timeout()
            self._start_read_timeout()

    def _fail_with(self, error: EventError) -> None:
        """Report the error, once, and close; an error of TLS is told the peer by an alert."""
        extras = self._extras
        tls = extras.tls
        if tls is not None:
            if tls.phase == BROKEN:
                return  # a later error, for example that the alert could not be sent
            tls.error = None  # a reported error refers to the socket: a reference cycle
        if tls is None or not isinstance(error, TcpSslError) or self._options.linger is None:
            super()._fail_with(error)
            return
        if self._state & FAILED or tls.phase == PHASE_CLOSED:
            return
        tls.phase = BROKEN
        if tls.must_send():
            self._write_encrypted(tls.take_outgoing(), None)
        self._state |= FAILED
        try:
            self._report_error(error)
        finally:
            extras.drop_deferred()
            extras.blocked_callbacks.clear()
            if not self._state & CLOSED:
                # Not by force: the kernel could send a reset, and the peer would lose the alert.
                super().close()
            else:
                self._loop.queue((lib.PA_CLOSE, self._slot, self._close_mode, b"", None))


def start_tls_on(stream: Any, kind: type[TlsStream], tls: TlsState, received: list[bytes]) -> None:
    """Let a connected stream go on with TLS; the same object becomes one of class ``kind``.

    Earlier writes are sent as plain text. ``received``, input that the application has got before,
    and paused input are given to TLS. The stream's options must have a TlsOptions.
    """
    extras, state = stream._need_extras(), stream._state
    if extras.deferred:
        stream._flush_deferred()  # now, while the stream is plain: later ones are encrypted
    items = list(extras.paused_input)
    ends = [item for item in items if not isinstance(item, bytes)]
    received = received + [item for item in items if isinstance(item, bytes)]
    extras.paused_input.clear()
    stream._stop_read_timeout()
    # _flush_deferred may have cleared WRITE_DISABLED: it stays as the application has set it.
    stream._state = stream._state & ~PAUSED_INPUT | ENCRYPTED | CONNECTING | state & WRITE_DISABLED
    stream.__class__ = kind
    if state & WRITE_DISABLED:
        extras.deferred.append(BARRIER)
    extras.tls = tls
    tls.unfed, tls.ends = b"".join(received), ends
    if state & READ_DISABLED:  # the handshake must read; _established stops it again
        stream._loop.queue((lib.PA_READ_START, stream._slot, 0, b"", None))
    stream._on_connected(0)
    if tls.unfed or ends:
        # Not now, because callbacks may run.
        stream._loop.ready.append(stream._take_next_turn)
