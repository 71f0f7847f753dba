"""The TLS pump: what connections over TLS do alike, whatever their API and their transport.

It encrypts deferred writes together, as many as the transport takes, and decrypts input in turns.

An exception may come between OpenSSL and the transport, such as a signal handler's. Then nobody
knows how much of a record is lost, and the connection cannot go on: see `TlsPump._interrupted`.
"""

from __future__ import annotations

import errno
import ssl
from collections import deque
from typing import Any, Protocol

from pyasync._core.engine import PYPY
from pyasync._core.stream_extras import BARRIER
from pyasync._core.tls import (
    BATCH_SIZE,
    HANDSHAKE,
    OPEN,
    PHASE_CLOSED,
    RECORD_SIZE,
    SHUTDOWN,
    make_error,
    tls_error,
    write,
)
from pyasync.errors import EventError

#: How much a stream encrypts before others have their turn, in bytes.
ENCRYPT_BUDGET = 1 << 20

#: The most bytes of answers to key updates for a peer that reads nothing. Without a limit such a
#: peer could make us queue answers without end.
ANSWERS_SIZE = 1 << 20


class Outgoing(Protocol):
    """What the pump uses of a connection's deferred writes."""

    #: The `TlsState`; None before there is a connection.
    tls: Any
    #: Pairs (data, callback or None), and `BARRIER`.
    deferred: deque[Any]
    #: Their size in bytes.
    deferred_size: int


class TlsPump:
    """A mixin: TLS between deferred writes and input on one side, a transport on the other.

    The methods of the second half are the connection's own. None of them but `_on_decrypted` may
    run the application's code, because the pump may be in the middle of a write of its.
    """

    __slots__ = ()

    _extras: Any

    # Writing

    def _may_send(self) -> bool:
        tls = self._extras.tls
        if tls is None or tls.phase != OPEN or tls.blocked:
            return False
        try:
            return self._extras.deferred[0] is not BARRIER
        except IndexError:  # not by len() first: a signal handler could empty it in between
            return False

    def _encrypt_soon(self) -> None:
        """Encrypt and send before the loop's next crossing, so that many writes leave as one."""
        tls = self._extras.tls
        if not tls.to_encrypt:
            # In this order: an exception in between must not let it wait for nothing.
            self._engine.to_encrypt.append(self)
            tls.to_encrypt = True

    def _flush(self) -> None:
        """Encrypt and send, before a crossing: the engine calls it, after `_encrypt_soon`."""
        self._extras.tls.to_encrypt = False
        self._send()

    def _send(self) -> None:
        """Encrypt deferred writes, as many as the kernel takes, and hand them to C."""
        tls = self._extras.tls
        if tls.phase >= PHASE_CLOSED:
            return
        if tls.sending:  # in a signal handler that has interrupted this
            self._encrypt_soon()
            return
        try:
            tls.sending = True
            self._send_some()
        except BaseException:
            self._interrupted()
            raise
        finally:
            tls.sending = False

    def _send_some(self) -> None:
        extras = self._extras
        tls, deferred = extras.tls, extras.deferred
        end_of_turn = extras.deferred_size - ENCRYPT_BUDGET  # then the others have their turn
        while self._may_send():
            if extras.deferred_size < end_of_turn:
                self._encrypt_soon()
                break
            try:
                callbacks, waits = self._encrypt(deferred)
            except OSError as error:
                # After an error in reading, OpenSSL only says that it does not go on: the first
                # error has the cause.
                self._fail_soon(tls.error or tls_error(error))
                return
            if callbacks or tls.must_send():
                self._hand_over(tls.take_outgoing(), callbacks)
            if waits:
                break
        if tls.must_send():  # OpenSSL's own answers: of a handshake, or to a key update
            answer = tls.take_outgoing()
            if tls.phase != SHUTDOWN:  # nothing may follow a close_notify: RFC 8446, 6.1
                self._hand_over(answer, [])
                tls.answers_size += len(answer) if tls.blocked and tls.phase == OPEN else 0
                if tls.answers_size > ANSWERS_SIZE:
                    text = "the peer asks for new keys, and does not read the answers"
                    self._fail_soon(make_error(errno.ENOBUFS, "TOO_MANY_KEY_UPDATES", text))
                    return
        self._on_sent()

    def _encrypt(self, deferred: Any) -> tuple[list[Any], bool]:
        """Encrypt the next deferred writes, `BATCH_SIZE` bytes at most.

        Returns the callbacks of the writes that it completes; and whether OpenSSL must read before
        it takes more, because a renegotiation runs.
        """
        extras, tls = self._extras, self._extras.tls.object
        done: list[Any] = []
        budget = BATCH_SIZE
        if PYPY and extras.deferred_size > ENCRYPT_BUDGET:
            # PyPy keeps large `bytes`, as the encrypted data is, until a major collection.
            budget = RECORD_SIZE
        while budget > 0 and (entry := _next_write(deferred)) is not None:
            data, write_cb = entry
            size = len(data)
            callbacks = [] if write_cb is None else [write_cb]
            if size > budget:
                view = memoryview(data)  # no copy; the callback goes with the last part
                deferred.appendleft((view[budget:], write_cb))
                data, size, callbacks = view[:budget], budget, []
            elif _fits(deferred, size):
                # Small writes share a record, because each record costs a header, a tag and a call.
                pieces = [data]
                while _fits(deferred, size) and (entry := _next_write(deferred)) is not None:
                    data, write_cb = entry
                    size += len(data)
                    pieces.append(data)
                    if write_cb is not None:
                        callbacks.append(write_cb)
                data = b"".join(pieces)
            try:
                if size:  # PyPy raises for an empty write
                    write(tls, data)
            except ssl.SSLWantReadError:
                # Back to the front, in one entry: the next write must begin with the same data
                # (SSL_write(3)). Empty entries behind it carry the callbacks.
                deferred.extendleft((b"", write_cb) for write_cb in reversed(callbacks))
                deferred.appendleft((data, None))
                return done, True
            extras.deferred_size -= size
            budget -= size
            done += callbacks
        return done, False

    # Reading

    def _take_turn(self, read: memoryview) -> None:
        """Decrypt input, and keep what is too much for one turn.

        Otherwise a peer with very many small records would hold up all others.
        """
        tls = self._extras.tls
        shaking = tls.phase == HANDSHAKE
        try:
            if shaking:
                rest = tls.feed(read)
            else:
                data, rest = tls.receive(read)
            if rest:
                # A copy of what is in the arena.
                tls.unfed = rest if type(rest.obj) is bytes else memoryview(bytes(rest))
                tls.paused = True
                self._call_soon(self._take_next_turn)
                self._pause_reading()
            elif tls.paused:
                tls.paused = False
                self._go_on_reading()
        except BaseException:
            self._interrupted()
            raise
        if shaking:
            self._continue_handshake()
        else:
            self._on_decrypted(data)

    # For a connection to define

    @property
    def _engine(self) -> Any:
        """The engine, in whose ``to_encrypt`` the connection waits."""
        raise NotImplementedError

    def _hand_over(self, data: bytes, callbacks: list[Any]) -> None:
        """Give the transport encrypted data, with the callbacks of the writes that it completes.

        If the transport refuses some, set ``tls.blocked``; clear it when all has gone, and `_send`.
        """
        raise NotImplementedError

    def _on_sent(self) -> None:
        """Act on the end of `_send`: deferred writes have become fewer, or none are left."""
        raise NotImplementedError

    def _fail_soon(self, error: EventError) -> None:
        """Fail, but not inside a write of the application's."""
        raise NotImplementedError

    def _interrupted(self) -> None:
        """End the connection after an exception, such as a signal handler's, in the middle of TLS.

        OpenSSL may have taken data that the transport will never get, or the other way round. Any
        further record would be wrong.
        """
        raise NotImplementedError

    def _call_soon(self, function: Any) -> None:
        """Call the function in the next iteration."""
        raise NotImplementedError

    def _take_next_turn(self) -> None:
        """Take ``tls.unfed`` out, and decrypt it by `_take_turn`."""
        raise NotImplementedError

    def _pause_reading(self) -> None:
        """Read no more, because ``tls.paused`` is set: so that no more input piles up."""
        raise NotImplementedError

    def _go_on_reading(self) -> None:
        """Undo `_pause_reading`, unless the application has paused too."""
        raise NotImplementedError

    def _continue_handshake(self) -> None:
        """Act on input of the handshake."""
        raise NotImplementedError

    def _on_decrypted(self, data: bytes) -> None:
        """Deliver data, or b""; then ``tls.ended`` and ``tls.error``, which came behind it."""
        raise NotImplementedError


def _fits(deferred: Any, size: int) -> bool:
    """Whether the next deferred write fits into a record behind ``size`` bytes."""
    try:
        first = deferred[0]
    except IndexError:  # not by len() first: a signal handler could empty it in between
        return False
    return first is not BARRIER and size + len(first[0]) <= RECORD_SIZE


def _next_write(deferred: Any) -> Any:
    """Remove and return the next deferred write; None: there is none before a barrier."""
    try:
        return None if deferred[0] is BARRIER else deferred.popleft()
    except IndexError:  # as in `_fits`
        return None
