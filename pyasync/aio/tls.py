"""TLS of an asyncio program: a transport whose own transport carries what the TLS pump encrypts.

For the transport below it is the protocol. So it works on any of ours, and on another of its kind.
"""

from __future__ import annotations

import asyncio
import ssl
from asyncio import constants, sslproto
from asyncio.log import logger
from collections import deque
from typing import Any

from pyasync._core.engine import INLINE_WRITE_LIMIT
from pyasync._core.tls import HANDSHAKE, OPEN, PHASE_CLOSED, SHUTDOWN, TlsOptions, TlsState
from pyasync._core.tls_pump import TlsPump
from pyasync.aio.transports import (
    BUFFERED,
    CLOSING,
    ENDED,
    LOST,
    PAUSED,
    PAUSED_INPUT,
    StreamTransport,
    settle,
)
from pyasync.aio.versions import SSL_SHUTDOWN_TIMEOUT, SSL_WATER

# Of SSLTransport._state, besides the flags of `pyasync.aio.transports`.
MADE = 1 << 16  # the protocol knows of the connection, and is to hear of its end
ESTABLISHED = 1 << 17  # the handshake has succeeded

_NOT_PLAIN = PAUSED | PAUSED_INPUT | BUFFERED

#: How much a peer may send after our close_notify, in bytes: more than what is under way when it
#: learns of it, because Linux lets the buffers of both sides grow to 4 and 6 MiB (tcp(7)).
DISCARD_MAX = 16 << 20


class _Outgoing:
    """The deferred writes of a transport: see `pyasync._core.tls_pump.Outgoing`."""

    __slots__ = ("deferred", "deferred_size", "discarded", "tls")

    def __init__(self, tls: TlsState) -> None:
        self.tls = tls
        #: The bytes that came behind our close_notify.
        self.discarded = 0
        self.deferred: deque[Any] = deque()
        self.deferred_size = 0


class SSLTransport(TlsPump, StreamTransport):
    """A connection over TLS; asyncio's has the same name, by which some programs know it."""

    __slots__ = ("_extras", "_options", "_started", "_timer", "_transport", "_waiter")

    _sendfile_compatible = constants._SendfileMode.FALLBACK

    def __init__(
        self,
        loop: Any,
        protocol: Any,
        context: Any,
        waiter: Any,
        server_side: bool,
        server_hostname: str | None,
        handshake_timeout: float | None,
        shutdown_timeout: float | None,
        *,
        call_connection_made: bool = True,
    ) -> None:
        """Begin; the transport below calls `connection_made`.

        ``waiter`` is a future of the handshake's end, or None: then a server has accepted the
        connection. Without ``call_connection_made`` the protocol knows of the connection already.
        """
        super().__init__(loop, protocol, SSL_WATER)
        if not context:
            context = sslproto._create_transport_context(server_side, server_hostname)
        self._options = TlsOptions(
            context,
            server_side=server_side,
            server_hostname=server_hostname or None,
            handshake_timeout=_positive(
                "ssl_handshake_timeout", handshake_timeout, constants.SSL_HANDSHAKE_TIMEOUT
            ),
            shutdown_timeout=_positive(
                "ssl_shutdown_timeout", shutdown_timeout, SSL_SHUTDOWN_TIMEOUT
            ),
        )
        self._extras = _Outgoing(TlsState(self._options))
        #: The transport below, once it is connected.
        self._transport: Any = None
        self._waiter = waiter
        #: The time limit of the handshake, or of closing.
        self._timer: Any = None
        self._started: float | None = None
        if not call_connection_made:
            self._state |= MADE

    def __repr__(self) -> str:
        info = [type(self).__name__]
        if self._state & LOST:
            info.append("closed")
        elif self._state & CLOSING:
            info.append("closing")
        return "<{} over {!r}>".format(" ".join(info), self._transport)

    # Information

    @property
    def _engine(self) -> Any:
        return self._loop._engine

    @property
    def _ssl_protocol(self) -> SSLTransport:
        # asyncio's and uvloop's transports have it; some programs look at its _transport, and
        # aiohttp's tests at its _sslcontext.
        return self

    @property
    def _sslcontext(self) -> Any:
        return self._options.context

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        if name == "sslcontext":
            return self._options.context
        if self._state & ESTABLISHED:
            found = self._extras.tls.object
            if name == "ssl_object":
                return found
            if name == "peercert":
                return found.getpeercert()
            if name == "cipher":
                return found.cipher()
            if name == "compression":
                return found.compression()
        return default if self._transport is None else self._transport.get_extra_info(name, default)

    def _take_unread(self, protocol: asyncio.StreamReaderProtocol) -> None:
        """Take what a server's stream has read, and its program has not: it belongs to TLS.

        Newer versions of asyncio do so too (3.14.10 does, 3.13.0 does not). Otherwise the handshake
        would wait for ever, or what somebody has put before it would be read as if TLS had
        protected it.
        """
        reader: Any = getattr(protocol, "_stream_reader", None)
        if reader is not None and reader._buffer:
            self._extras.tls.unfed = bytes(reader._buffer)
            reader._buffer.clear()

    # The protocol of the transport below

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._context = transport._context
        if self._state & CLOSING:  # closed before there was a connection
            transport.abort()
            return
        if self._loop.get_debug():
            logger.debug("%r starts SSL handshake", self)
            self._started = self._loop.time()
        tls = self._extras.tls
        if self._state & MADE:  # it may have been written to
            transport._push()
            self._protocol_paused = tls.blocked = transport._protocol_paused
        # Nothing is encrypted while it has anything that the kernel does not take.
        transport.set_write_buffer_limits(high=0)
        self._timer = self._loop.call_later(
            self._options.handshake_timeout, self._handshake_timed_out
        )
        if not self._options.server_side:
            self._continue_handshake()  # the client speaks first
        elif tls.unfed:
            self._take_next_turn()

    def data_received(self, data: bytes) -> None:
        tls = self._extras.tls
        if tls.ended or tls.phase >= PHASE_CLOSED:
            return
        if tls.unfed:
            tls.unfed = b"".join((tls.unfed, data))
        else:
            self._take_turn(memoryview(data))

    def eof_received(self) -> bool:
        if self._loop.get_debug():
            logger.debug("%r received EOF", self)
        tls = self._extras.tls
        if tls.phase == HANDSHAKE:
            self._handshake_failed(
                ConnectionResetError("the peer has closed the connection during the TLS handshake")
            )
        elif not self._state & ENDED:
            # As asyncio, which takes it for an end also without a close_notify.
            self._on_peer_end()
        return True  # what is deferred is still sent

    def pause_writing(self) -> None:
        self._extras.tls.blocked = True
        self._run_in_context(self._maybe_pause_protocol)

    def resume_writing(self) -> None:
        tls = self._extras.tls
        tls.blocked = False
        tls.answers_size = 0
        self._send()

    def connection_lost(self, error: BaseException | None) -> None:
        self._stop_timer()
        self._drop()
        told = self._state & MADE
        self._state = (self._state | CLOSING | LOST) & ~MADE
        protocol, self._protocol = self._protocol, None
        self._paused_input = None
        try:
            if told and protocol is not None:
                protocol.connection_lost(error)
        finally:
            self._wake(error or ConnectionAbortedError("closed during the TLS handshake"))

    # The handshake

    def _continue_handshake(self) -> None:
        tls = self._extras.tls
        try:
            over = tls.handshake()
            # Decrypted before the protocol may close, because OpenSSL's shutdown drops input.
            data = tls.receive_pending() if over else b""
        except BaseException:
            self._interrupted()
            raise
        if not over and tls.error is not None:
            self._handshake_failed(_as_ssl_error(tls.error))
            return
        self._encrypt_soon()
        if over:
            self._state |= ESTABLISHED
            self._stop_timer()
            if self._started is not None:
                took = (self._loop.time() - self._started) * 1e3
                logger.debug("%r: SSL handshake took %.1f ms", self, took)
            self._established()
            self._on_decrypted(data)

    def _established(self) -> None:
        if not self._state & MADE:
            self._state |= MADE
            try:
                self._protocol.connection_made(self)
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as error:
                self._fatal_error(error, "Fatal error: protocol.connection_made() call failed.")
                self._wake(error)
        self._wake(None)

    def _wake(self, error: BaseException | None) -> None:
        waiter, self._waiter = self._waiter, None
        settle(waiter, error)

    def _handshake_timed_out(self) -> None:
        seconds = self._options.handshake_timeout
        self._handshake_failed(
            ConnectionAbortedError(
                f"SSL handshake is taking longer than {seconds} seconds: aborting the connection"
            )
        )

    def _handshake_failed(self, error: OSError) -> None:
        message = "SSL handshake failed"
        if isinstance(error, ssl.CertificateError):
            message = "SSL handshake failed on verifying the certificate"
        self._fatal_error(error, message)
        if self._waiter is None and self._loop.get_debug():
            self._report("Error on transport creation for incoming connection", error)
        self._wake(error)

    # Reading

    def pause_reading(self) -> None:
        if not self._state & CLOSING:
            self._state |= PAUSED
            self._pause_reading()

    def resume_reading(self) -> None:
        if self._state & CLOSING or not self._state & PAUSED:
            return
        self._state &= ~PAUSED
        if self._paused_input:
            self._state |= PAUSED_INPUT
            self._deliver_soon()
        self._take_turns_again()

    def _take_turns_again(self) -> None:
        if self._extras.tls.unfed:
            self._call_soon(self._take_next_turn)
        self._go_on_reading()

    def _pause_reading(self) -> None:
        self._transport.pause_reading()

    def _go_on_reading(self) -> None:
        if not self._extras.tls.paused and self._state & (PAUSED | CLOSING) != PAUSED:
            self._transport.resume_reading()

    def _take_next_turn(self) -> None:
        tls = self._extras.tls
        if tls.phase < PHASE_CLOSED and self._state & (PAUSED | CLOSING) != PAUSED:
            unfed, tls.unfed = tls.unfed, b""
            if unfed:
                self._take_turn(memoryview(unfed))

    def _on_decrypted(self, data: bytes) -> None:
        extras = self._extras
        tls = extras.tls
        # OpenSSL may have answered the input, or have waited for it to encrypt more.
        if tls.must_send() or (extras.deferred and self._may_send()):
            self._encrypt_soon()
        if data:
            if self._state & CLOSING:
                self._discard(len(data))
            elif self._state & _NOT_PLAIN == 0:
                try:
                    self._protocol.data_received(data)
                except (SystemExit, KeyboardInterrupt):
                    raise
                except BaseException as error:
                    self._fatal_error(error, "Fatal error: protocol.data_received() call failed.")
            elif self._state & (PAUSED | PAUSED_INPUT):
                self._hold(data)
            else:
                self._fill_buffers(memoryview(data))
        if tls.error is not None:
            self._fatal_error(_as_ssl_error(tls.error), "SSL error in data received")
        elif tls.ended:
            self._on_peer_end()

    def _discard(self, size: int) -> None:
        """Drop input, as the transport is closing; end the connection if the peer goes on and on.

        At first the input is taken, because the kernel of one that closes with unread input resets
        the connection, and the peer may lose what it has not read. An endless download would never
        end, though.
        """
        extras = self._extras
        if extras.tls.phase == SHUTDOWN:
            extras.discarded += size
            if extras.discarded > DISCARD_MAX:
                self._force_close(None)

    def _on_peer_end(self) -> None:
        """Act on the peer's close_notify, or on the end of its connection without one."""
        if self._state & ENDED:
            return
        self._state |= ENDED
        if self._state & CLOSING:
            self._send()  # if nothing is left, that ends the connection
        elif self._state & (PAUSED | PAUSED_INPUT):
            self._hold(None)
        else:
            self._report_end()

    def _end_reported(self, keep_open: Any) -> None:
        if keep_open:
            logger.warning("returning true from eof_received() has no effect when using ssl")
        self.close()

    # Writing

    def write(self, data: Any) -> None:
        if type(data) is not bytes:
            if not isinstance(data, (bytes, bytearray, memoryview)):
                raise TypeError(f"data: expecting a bytes-like instance, got {type(data).__name__}")
            data = bytes(data)  # a copy: the application may change its buffer
        if not data:
            return
        if self._state & CLOSING:
            if self._conn_lost >= constants.LOG_THRESHOLD_FOR_CONNLOST_WRITES:
                logger.warning("SSL connection is closed")
            self._conn_lost += 1
            return
        extras = self._extras
        tls = extras.tls
        extras.deferred.append((data, None))
        extras.deferred_size += len(data)
        if tls.phase != OPEN or tls.blocked:
            self._maybe_pause_protocol()
        elif extras.deferred_size > INLINE_WRITE_LIMIT or self._loop._thread_id is None:
            # Much data, or a loop that does not run: nobody would encrypt it soon. And a coroutine
            # that never has to wait for drain() learns of an error.
            self._send()
        elif not tls.to_encrypt:
            self._encrypt_soon()

    def writelines(self, list_of_data: Any) -> None:
        self.write(b"".join(list_of_data))

    def write_eof(self) -> None:
        raise NotImplementedError

    def can_write_eof(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        if self._state & LOST:
            return 0
        below: int = 0 if self._transport is None else self._transport.get_write_buffer_size()
        return self._extras.deferred_size + below

    def _hand_over(self, data: bytes, callbacks: list[Any]) -> None:
        self._transport.write(data)

    def _on_sent(self) -> None:
        if self._state & CLOSING and not self._extras.deferred:
            self._finish()
        elif self._protocol_paused and not self._extras.tls.blocked:
            # Later, because it must not run inside the application's write.
            self._call_soon(self._resume_protocol)

    def _resume_protocol(self) -> None:
        if not self._state & LOST:
            self._push()  # pending writes count too, and nothing tells when they have crossed
            self._maybe_resume_protocol()

    def _push(self) -> None:
        self._send()
        self._transport._push()

    # Ending

    def is_closing(self) -> bool:
        if self._state & CLOSING:
            return True
        return self._transport is not None and bool(self._transport.is_closing())

    def close(self) -> None:
        if self._state & CLOSING:
            return
        tls = self._extras.tls
        if self._transport is None or tls.phase == HANDSHAKE:
            self._force_close(None)
            return
        self._state |= CLOSING
        if self._transport.is_closing():
            return
        self._paused_input = None
        self._limit_closing(self.get_write_buffer_size())
        self._take_turns_again()  # the peer's close_notify must be seen
        self._send()

    def _limit_closing(self, left: int) -> None:
        self._timer = self._loop.call_later(
            self._options.shutdown_timeout, self._closing_timed_out, left
        )

    def _closing_timed_out(self, before: int) -> None:
        left = self.get_write_buffer_size()
        if left < before:
            self._limit_closing(left)  # the peer still reads
        else:
            self._force_close(asyncio.TimeoutError("SSL shutdown timed out"))

    def _finish(self) -> None:
        """Send a close_notify, as no deferred write is left; close when the peer's has come."""
        tls = self._extras.tls
        if tls.phase == OPEN and self._state & ENDED and not tls.ended:
            tls.phase = SHUTDOWN  # as asyncio: none, if the peer has ended without one
        elif tls.phase == OPEN:
            tls.shut_down()
            if tls.outgoing.pending:
                self._hand_over(tls.take_outgoing(), [])
        if tls.phase == SHUTDOWN and self._state & ENDED:
            tls.phase = PHASE_CLOSED
            self._transport.close()

    def abort(self) -> None:
        self._force_close(None)

    def _force_close(self, error: BaseException | None) -> None:
        self._state |= CLOSING
        tls, transport = self._extras.tls, self._transport
        self._drop()
        if transport is not None and not self._state & LOST:
            if error is not None and tls.must_send() and not transport.is_closing():
                # The alert. Performed at once, because the transport drops what waits.
                transport.write(tls.take_outgoing())
                transport._push()
            transport._force_close(error)

    def _drop(self) -> None:
        """Drop what waits here: nothing is sent or received any more."""
        extras = self._extras
        extras.tls.phase = PHASE_CLOSED
        extras.tls.unfed = b""
        extras.tls.error = None  # its traceback refers to what refers to it
        extras.deferred.clear()
        extras.deferred_size = 0

    def _stop_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    # For the pump

    def _call_soon(self, function: Any) -> None:
        self._loop.call_soon(function, context=self._context)

    def _fail_soon(self, error: Any) -> None:
        self._call_soon(lambda: self._fatal_error(_as_ssl_error(error)))

    def _interrupted(self) -> None:
        text = "an exception has interrupted TLS, and what it has lost is not known"
        self._extras.tls.outgoing.read()  # part of a record may be lost, and nothing may follow it
        self._force_close(ConnectionAbortedError(text))


def _positive(name: str, seconds: float | None, default: float) -> float:
    if seconds is None:
        return default
    if seconds <= 0:
        raise ValueError(f"{name} should be a positive number, got {seconds}")
    return seconds


def _as_ssl_error(error: Any) -> Any:
    """Return the exception of the module ssl for one that the pump has made of it."""
    if error.__cause__ is not None:
        return error.__cause__
    result = ssl.SSLError(error.errno, error.strerror)
    result.library, result.reason = error.library, error.reason
    return result
