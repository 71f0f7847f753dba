"""TLS: sockets that encrypt what is written to them, and decrypt what they read.

An `SslSocket` is a TCP socket whose writes are always held back, as while writing is disabled:
that is the place between what the application has written and what goes to C. From there they are
encrypted when the handshake is over, all of a callback's as one, and no faster than the kernel
takes them: what a slow peer has not taken waits as the application's own objects.
"""

from __future__ import annotations

import contextlib
import errno
import ssl
from threading import get_ident
from time import monotonic
from typing import Any

from pyasync._ffi import lib
from pyasync.errors import EventError, TcpSslError, socket_error
from pyasync.loop import PYPY
from pyasync.stream_state import (
    CLOSED,
    CONNECTING,
    ENCRYPTED,
    ENDED,
    FAILED,
    KEPT,
    READ_DISABLED,
    SHUT,
    TIMED,
    WRITE_DISABLED,
    Rare,
    Settings,
    WriteCallback,
)
from pyasync.tcp import TcpServer, TcpSocket
from pyasync.timers import background_timer
from pyasync.tls_state import (
    BATCH_SIZE,
    BROKEN,
    HANDSHAKE,
    OPEN,
    RECORD_SIZE,
    SHUTDOWN,
    TlsState,
    make_error,
    tls_error,
    write,
)
from pyasync.tls_state import CLOSED as OVER

#: How much a socket encrypts before others have their turn, in bytes.
TURN_SIZE = 1 << 20

#: How many bytes of answers may wait for a peer that asks for new keys, and reads nothing.
ANSWERS_SIZE = 1 << 20

#: What stands among what is held where writing was disabled: what is behind it has to wait.
BARRIER: tuple[Any, None] = (None, None)


class SslSocket(TcpSocket):
    """A TLS connection over TCP. It has what a `TcpSocket` has; its data is what TLS carries."""

    __slots__ = ()

    _rare: Rare

    def __init__(self, settings: Settings, slot: int, state: int = 0) -> None:
        # It connects until the handshake is over.
        super().__init__(settings, slot, state | ENCRYPTED | CONNECTING)
        self._need_rare()

    # What TLS has agreed upon

    @property
    def ssl_object(self) -> Any:
        """The `ssl.SSLObject`, to ask what else TLS knows; None before connecting.

        Leave reading, writing and unwrapping to the socket.
        """
        tls = self._rare.tls
        return None if tls is None else tls.object

    @property
    def cipher(self) -> tuple[str, str, int] | None:
        """The cipher in use: name, version of the protocol, secret bits; None before that."""
        tls = self._rare.tls
        return None if tls is None else tls.object.cipher()

    @property
    def alpn(self) -> str | None:
        """The application's protocol, chosen by ALPN (RFC 7301), or None.

        Offer some by ``set_alpn_protocols`` of the context.
        """
        tls = self._rare.tls
        return None if tls is None else tls.object.selected_alpn_protocol()

    @property
    def session(self) -> Any:
        """The `ssl.SSLSession`, for ``session=`` of the next connection to the same server.

        A server's tickets come behind the handshake with TLS 1.3: take it when data has been
        read, or at the end. It can be read after the socket has closed.
        """
        tls = self._rare.tls
        return None if tls is None else tls.object.session

    # Writing

    def _hold(self, data: Any, write_cb: WriteCallback | None, force: bool) -> None:
        rare, size = self._rare, len(data)
        rare.held.append((data if type(data) is bytes else bytes(data), write_cb))
        rare.held_size += size
        if not self._may_send():
            self._check_pressure()
        elif force or size > self._options.loop.inline_limit:
            self._send()
            if force:
                self._loop.submit()
        else:
            self._gather()

    def disable(self, *, read: bool = False, write: bool = False) -> None:
        self._open_slot()
        if write and not self._state & (WRITE_DISABLED | SHUT):
            self._rare.held.append(BARRIER)
        super().disable(read=read, write=write)

    def enable(self, *, read: bool = False, write: bool = False) -> None:
        self._open_slot()
        if write:
            self._lift_barrier()
        super().enable(read=read, write=write)

    def _lift_barrier(self) -> None:
        if self._state & WRITE_DISABLED:
            with contextlib.suppress(ValueError):  # it was disabled after shutdown
                self._rare.held.remove(BARRIER)

    def _may_send(self) -> bool:
        rare = self._rare
        tls, held = rare.tls, rare.held
        return (
            tls is not None
            and tls.phase == OPEN
            and not tls.blocked
            and len(held) > 0
            and held[0] is not BARRIER
        )

    def _gather(self) -> None:
        """Send what there is to send before the loop's next crossing, as one."""
        tls = self._rare.tls
        if not tls.gathering:
            tls.gathering = True
            self._options.loop.to_encrypt.append(self)

    def _flush(self) -> None:
        self._rare.tls.gathering = False
        self._send()

    def _send(self) -> None:
        """Encrypt what was written, as much as the kernel takes, and hand it to C."""
        tls = self._rare.tls
        if tls.phase >= OVER:
            return
        if tls.sending:
            self._gather()
            return
        tls.sending = True
        try:
            self._send_some()
        except BaseException:
            self._interrupted()
            raise
        finally:
            tls.sending = False

    def _send_some(self) -> None:
        rare = self._rare
        tls, held = rare.tls, rare.held
        end_of_turn = rare.held_size - TURN_SIZE
        while self._may_send():
            if rare.held_size < end_of_turn:
                self._gather()
                break
            try:
                callbacks, waits = self._encrypt(held)
            except OSError as error:
                # After an error that is kept back, OpenSSL only says that it goes on no more.
                self._fail_soon(tls.error or tls_error(error))
                return
            if tls.outgoing.pending or callbacks:
                self._hand_over(tls.outgoing.read(), callbacks)
            if waits:
                break
        if tls.outgoing.pending:  # of the handshake, or a key update
            answer = tls.outgoing.read()
            if tls.phase != SHUTDOWN:  # after close_notify nothing may follow: RFC 8446, 6.1
                self._hand_over(answer, [])
                tls.answers_size += len(answer) if tls.blocked and tls.phase == OPEN else 0
                if tls.answers_size > ANSWERS_SIZE:
                    text = "the peer asks for new keys, and does not read the answers"
                    self._fail_soon(make_error(errno.ENOBUFS, "TOO_MANY_KEY_UPDATES", text))
                    return
        if not held and self._state & (CLOSED | SHUT):
            self._finish()
        if rare.paused and rare.held_size <= rare.low:
            self._loop.ready.append(self._tell_pressure)

    def _fail_soon(self, error: EventError) -> None:
        """Fail, but not now, as the application may be writing."""
        self._loop.ready.append(lambda: self._fail_with(error))

    def _interrupted(self) -> None:
        """End the connection, as an exception has come in between, such as a signal handler's."""
        text = "an exception has interrupted TLS, and what it has lost is not known"
        self._fail_with(make_error(errno.EINTR, "INTERRUPTED", text))

    def _tell_pressure(self) -> None:
        try:
            self._check_pressure()
        except Exception as error:
            self._loop.on_error(error, self)

    def _encrypt(self, held: Any) -> tuple[list[WriteCallback], bool]:
        """Encrypt the next part of what is held. Returns the callbacks of what it completes.

        And whether TLS can take no more before it has read something: a renegotiation runs.
        """
        rare, tls = self._rare, self._rare.tls.object
        done: list[WriteCallback] = []
        room = BATCH_SIZE
        if PYPY and rare.held_size > TURN_SIZE:
            room = RECORD_SIZE  # as `bytes`, what is encrypted stays until a major collection
        while held and held[0] is not BARRIER and room > 0:
            data, write_cb = held.popleft()
            size = len(data)
            callbacks = [] if write_cb is None else [write_cb]
            if size > room:
                view = memoryview(data)
                held.appendleft((view[room:], write_cb))
                data, size, callbacks = view[:room], room, []
            elif _fits(held, size):
                pieces = [data]
                while _fits(held, size):
                    data, write_cb = held.popleft()
                    size += len(data)
                    pieces.append(data)
                    if write_cb is not None:
                        callbacks.append(write_cb)
                data = b"".join(pieces)
            try:
                if size:  # PyPy takes an empty write for an error
                    write(tls, data)
            except ssl.SSLWantReadError:
                held.extendleft((b"", write_cb) for write_cb in reversed(callbacks))
                held.appendleft((data, None))
                return done, True
            rare.held_size -= size
            room -= size
            done += callbacks
        return done, False

    def _hand_over(self, data: bytes, callbacks: list[WriteCallback]) -> None:
        """Hand C what is encrypted, and behind it the callbacks of what it completes."""
        if not callbacks:
            self._write_encrypted(data, None)
        elif len(callbacks) == 1:
            self._write_encrypted(data, (self, callbacks[0]))
        else:
            self._write_encrypted(data, (self, lambda socket: socket._call_written(callbacks)))

    def _call_written(self, callbacks: list[WriteCallback]) -> None:
        for write_cb in callbacks:
            if self._state & FAILED or self._loop.stopping:
                return
            try:
                write_cb(self)
            except Exception as error:
                self._loop.on_error(error, self)

    def _write_encrypted(self, data: bytes, callback: Any) -> None:
        loop, size = self._options.loop, len(data)
        if size <= loop.inline_limit:
            kind = lib.PA_WRITE if callback is None else lib.PA_WRITE_CALLBACK
            loop.queue((kind, self._slot, size, data, callback))
        else:
            loop.write_now(self._slot, data, callback)
            if self._refused_size():
                self._rare.tls.blocked = True

    def _release(self) -> None:
        self._lift_barrier()
        if self._rare.tls is not None:
            self._send()

    def _submit(self) -> None:
        tls, here = self._rare.tls, self._loop.thread == get_ident()
        if tls is not None and here and not self._state & CLOSED:
            self._send()
        super()._submit()

    def _on_blocked(self, kind: int, size: int) -> None:
        self._rare.tls.blocked = True
        super()._on_blocked(kind, size)

    def _on_written(self, kind: int, has_callback: int) -> None:
        tls = self._rare.tls
        if tls.phase == BROKEN:
            return  # what waits for it was dropped
        if tls.blocked and not self._refused_size():
            tls.blocked = False
            tls.answers_size = 0
            self._send()
        super()._on_written(kind, has_callback)

    # Connecting

    def _before_connecting(self, host: str | None) -> None:
        self._rare.tls = TlsState(self._options.tls, host)

    def _catch_up(self) -> None:
        """Do nothing: it is done when the handshake is over."""

    def _on_connected(self, status: int) -> None:
        """Begin the handshake, as TCP is connected."""
        rare = self._rare
        if self._state & CLOSED and not rare.held:
            return
        if status != 0:
            if self._state & CLOSED:
                self._fail(status)
            else:
                super()._on_connected(status)
            return
        rare.connector = None
        if rare.connect_timer is not None:
            rare.connect_timer.free()
            rare.connect_timer = None
        timeout = self._options.tls.handshake_timeout
        if timeout is not None:
            rare.connect_timer = background_timer(self._loop, self._handshake_timed_out, timeout)
        if not self._options.tls.server_side and not rare.tls.incoming.pending:
            self._go_on()

    def _handshake_timed_out(self) -> None:
        seconds = self._options.tls.handshake_timeout
        text = f"the TLS handshake was not over after {seconds:g} seconds"
        self._fail_with(make_error(errno.ETIMEDOUT, "HANDSHAKE_TIMEOUT", text))

    def _go_on(self) -> None:
        """Go on with the handshake; if it is over, with what comes behind it."""
        rare = self._rare
        tls = rare.tls
        try:
            over = tls.handshake()
            # At once, as the callback may shut down: OpenSSL drops what it finds unread then.
            data = tls.receive_pending() if over else b""
        except BaseException:
            self._interrupted()
            raise
        if tls.error is not None and not over:
            self._fail_with(tls.error)
            return
        self._gather()
        if not over:
            return
        if rare.connect_timer is not None:
            rare.connect_timer.free()
            rare.connect_timer = None
        if not self._state & CLOSED:
            try:
                self._established()
            except Exception as error:
                self._loop.on_error(error, self)
        if not self._loop.stopping:
            self._take(data)

    # Reading

    def _stop_reading(self) -> None:
        if not self._state & CONNECTING:  # the handshake reads
            super()._stop_reading()

    def _on_read(self, arena: Any, start: int, end: int) -> None:
        tls = self._rare.tls
        # None: there is no TLS, because of its settings, and the socket is closed.
        if tls is None or tls.ended or tls.phase >= OVER:
            return
        if self._state & TIMED:
            self._rare.read_timeout.read_at = monotonic()  # type: ignore[union-attr]
        read = memoryview(arena)[start:end]
        shaking = tls.phase == HANDSHAKE
        try:
            data = tls.feed(read) if shaking else tls.receive(read)
        except BaseException:
            self._interrupted()
            raise
        if shaking:
            self._go_on()
        else:
            self._take(data)

    def _take(self, data: bytes) -> None:
        """Take what was decrypted, and the end that may be behind it."""
        tls = self._rare.tls
        if tls.outgoing.pending or self._may_send():
            self._gather()
        over = tls.ended or tls.error is not None
        if data and not self._state & CLOSED:
            try:
                if self._state & (READ_DISABLED | KEPT):
                    self._keep(data)
                else:
                    self._deliver(data)
            except Exception as error:
                if not over:
                    raise
                self._loop.on_error(error, self)
        if self._loop.stopping:
            return
        if tls.error is not None:
            self._on_tls_end(lib.PA_READ_ERROR, tls.error)
        elif over:
            self._on_tls_end(lib.PA_EOF, None)

    def _on_tls_end(self, kind: int, error: EventError | None) -> None:
        if not self._state & CLOSED:
            super()._on_end_event(kind, error)  # type: ignore[arg-type]
        elif error is not None and self._rare.tls.phase < OVER:
            self._fail_with(error)  # closed, and not everything has been sent

    def _on_end_event(self, kind: int, value: int) -> None:
        """Take the end of TCP, which is an error unless TLS has ended before."""
        tls = self._rare.tls
        if tls is None or tls.ended or tls.phase >= OVER:
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
            return  # what is still to be sent may arrive
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

    def _on_end(self, kind: int, value: Any) -> None:
        if isinstance(value, EventError):
            self._fail_with(value)
        else:
            super()._on_end(kind, value)

    # Closing

    def set_timeouts(self, read: float | None, write: float | None) -> None:
        """Set the time limits, as `Stream.set_timeouts`; that of `shutdown` remains."""
        super().set_timeouts(read, write)
        tls = self._rare.tls
        if tls is not None and tls.phase == SHUTDOWN:
            self._limit_shutdown()

    def shutdown(self) -> None:
        """Send what was written, then a close_notify, and end TCP's sending side; reading goes on.

        The peer sees the end of the stream, and may answer, as TLS 1.3 has it (RFC 8446, 6.1);
        with TLS 1.2 and older a peer must end its side at once. When nothing has arrived for
        ``shutdown_timeout`` seconds after that, ``event_cb`` gets a `SocketTimeout`, and the
        socket is closed. Raises `SocketClosed`; a second call does nothing.
        """
        self._open_slot()
        if self._state & SHUT:
            return
        self._state |= SHUT
        self._release()
        if self._state & ENDED:
            self.close()

    def close(self, *, force: bool = False) -> None:
        """Send what was written, then a close_notify, then close; ``force`` drops it.

        All else is as of `Stream.close`. The peer's close_notify is not waited for.
        """
        loop, rare = self._options.loop, self._rare
        tls = rare.tls
        if tls is not None and tls.phase == BROKEN:  # what is still under way is the alert
            if not self._state & CLOSED:
                super().close(force=force)
            elif force and self._enter() and loop.objects[self._slot] is self:
                loop.queue((lib.PA_CLOSE, self._slot, 1, b"", None))
            return
        if (self._state & CLOSED or loop.thread != get_ident()) and not self._may_close(force):
            return
        self._lift_barrier()
        on_its_way = self._slot >= 0 or rare.connector is not None
        if force or not on_its_way or not (rare.held or tls.phase != HANDSHAKE):
            if tls is not None:
                # The end of the handshake: the peer will know that there was a connection.
                if tls.phase == OPEN and tls.outgoing.pending:
                    self._write_encrypted(tls.outgoing.read(), None)
                    loop.submit()
                tls.phase = OVER
            super().close(force=force)
            return
        self._state = self._state & ~TIMED | CLOSED
        timer, rare.connect_timer = rare.connect_timer, None
        rare.stop_timeouts()
        rare.connect_timer = timer  # the handshake may still take its time
        rare.kept.clear()
        if rare.stream is not None:
            rare.stream._end()
        if self._state & READ_DISABLED and self._slot >= 0:
            loop.queue((lib.PA_READ_START, self._slot, 0, b"", None))
        self._send()
        if tls.phase < OVER:
            self._on_lingering()

    def _finish(self) -> None:
        """End TLS, as all that was written is encrypted, and then TCP as far as is asked for."""
        loop, tls = self._loop, self._rare.tls
        if tls.phase == OPEN:
            tls.shut_down()
            if tls.outgoing.pending:
                self._write_encrypted(tls.outgoing.read(), None)
            if not self._state & CLOSED:
                loop.queue((lib.PA_SHUTDOWN, self._slot, 0, b"", None))
                self._limit_shutdown()
        if self._state & CLOSED and tls.phase != HANDSHAKE:
            tls.phase = OVER
            loop.queue((lib.PA_CLOSE, self._slot, 0, b"", None))

    def _limit_shutdown(self) -> None:
        """Let the read timeout be ``shutdown_timeout`` from now on, if it is longer."""
        read, limit = self._options.read_timeout, self._options.tls.shutdown_timeout
        if limit is not None and (read is None or read > limit):
            self._options = self._options.copy()
            self._options.read_timeout = limit
            self._stop_read_timeout()
            self._start_read_timeout()

    def _fail_with(self, error: EventError) -> None:
        """Report the error, once, and close; of an error of TLS, tell the peer by an alert."""
        rare = self._rare
        tls = rare.tls
        if tls is not None:
            if tls.phase == BROKEN:
                return  # such as that the alert could not be sent
            tls.error = None  # it knows the socket, once it is reported
        if tls is None or not isinstance(error, TcpSslError) or self._options.linger is None:
            super()._fail_with(error)
            return
        if self._state & FAILED or tls.phase == OVER:
            return
        tls.phase = BROKEN
        alert = tls.outgoing.read()
        if alert:
            self._write_encrypted(alert, None)
        self._state |= FAILED
        self._loop.report(self, error, self)
        rare.drop_held()
        rare.waiting.clear()
        if not self._state & CLOSED:
            # Not by force, which may make the kernel send a reset, and take the alert with it.
            super().close()
        else:
            self._loop.queue((lib.PA_CLOSE, self._slot, 0, b"", None))


def _fits(held: Any, size: int) -> bool:
    """Whether what is held next goes into a record with so many bytes before it."""
    return held and held[0] is not BARRIER and size + len(held[0][0]) <= RECORD_SIZE


class SslServer(TcpServer):
    """A TCP server whose connections speak TLS."""

    __slots__ = ()

    _connection = SslSocket

    def _on_accepted(self, slot: int) -> None:
        socket = SslSocket(self._options, slot, self._state_of_new)
        self._loop.register(slot, socket)
        socket._begin()
        try:
            socket._before_connecting(None)
        except (OSError, ValueError) as error:
            socket._fail_with(tls_error(error))
        else:
            socket._on_connected(0)
