"""Connections of an asyncio program: a transport is the object of its slot (see Engine).

Data goes from the arena straight to ``data_received``. Writes wait for the next crossing, all
together; a large one crosses at once, and so learns at once what the kernel has refused.
"""

from __future__ import annotations

import errno
import os
import socket as sockets
import sys
from asyncio import base_events, constants, protocols, transports, trsock
from asyncio.log import logger
from collections import deque
from contextvars import Context, copy_context
from types import SimpleNamespace
from typing import Any

from pyasync._core.addresses import PACKED_MAX, unpack_name
from pyasync._core.engine import INLINE_WRITE_LIMIT
from pyasync._core.listener import Listener as CoreListener
from pyasync._core.sockets import PeerHandle
from pyasync._core.stream import WITHOUT_LINGER
from pyasync._ffi import ffi, lib
from pyasync.aio.versions import attach, detach
from pyasync.errors import EventError, check

# Flags of SocketTransport._state.
OPEN = 2  # always set, so that the engine calls `_on_read`
PAUSED = 4  # pause_reading was called
CLOSING = 8  # close was called, or the connection has failed: nothing more is delivered
PRESUMED = 16  # `_own` is the listener's name: while the connection is open, the kernel is asked
BUFFERED = 32  # the protocol is a BufferedProtocol
PAUSED_INPUT = 64  # reading goes on, but paused input comes before new data
STARTING = 128  # connection_made was not called yet
EOF_SENT = 256  # write_eof was called
SENDING_FILE = 512
LOST = 1024  # writes are dropped
BLOCKED = 2048  # the kernel has refused a write, which waits in libuv
FORCED = 4096  # closed without flushing
ENDED = 8192  # the peer's end has come
TOLD = 16384  # connection_lost was called

_HOLDS_INPUT = PAUSED | PAUSED_INPUT | STARTING
_NOT_PLAIN = _HOLDS_INPUT | CLOSING | BUFFERED
_CHECKS_WRITES = EOF_SENT | SENDING_FILE | LOST

#: The default watermarks, in bytes: asyncio's.
WATER = 64 << 10, 16 << 10

#: When so many items of operations are pending, a write performs them. Otherwise a coroutine that
#: writes and never has to wait for drain() would fill the queue, and never learn of an error.
PENDING_ITEMS_MAX = 5 * 64

WRITE = lib.PA_WRITE
CLOSE = lib.PA_CLOSE

#: Socket objects whose descriptors were taken over. They are kept alive here, because a loop that
#: is collected unclosed closes its descriptors, and so would its socket objects if they were
#: collected with it: twice, and the second time perhaps another file's.
_adopted: set[sockets.socket] = set()


def hold(sock: sockets.socket) -> sockets.socket:
    """Keep a socket object whose descriptor C uses now, until `release`; return it."""
    _adopted.add(sock)
    # As makefile() holds it: the user's close must not free a number that C uses still.
    sock._io_refs += 1
    return sock


def release(sock: sockets.socket | None) -> None:
    """Take the descriptor, which C closes, away from a socket object of `hold`, or None."""
    if sock is not None:
        sock.detach()
        _adopted.discard(sock)


def settle(waiter: Any, error: BaseException | None = None) -> None:
    """Give a future its result, None, or the error; nothing if it has one, or is None itself."""
    if waiter is not None and not waiter.done():
        if error is None:
            waiter.set_result(None)
        else:
            waiter.set_exception(error)


class StreamTransport(transports._FlowControlMixin, transports.Transport):
    """Delivers input to a protocol, whatever the input comes from."""

    __slots__ = (
        "__weakref__",
        "_conn_lost",
        "_context",
        "_paused_input",
        "_protocol",
        "_state",
    )

    _event_cb = None
    _start_tls_compatible = True

    def __init__(self, loop: Any, protocol: Any, water: tuple[int, int]) -> None:
        #: As asyncio has it, which reads it in its fallback for sendfile.
        self._loop = loop
        self._state = OPEN
        #: Runs each callback of the protocol in the connection's own context.
        self._context: Any = None
        self._paused_input: deque[bytes | None] | None = None  # None in it: the end
        self._conn_lost = 0
        self._protocol_paused = False
        self._high_water, self._low_water = water
        self.set_protocol(protocol)

    def set_protocol(self, protocol: Any) -> None:
        self._protocol = protocol
        if isinstance(protocol, protocols.BufferedProtocol) or not hasattr(
            protocol, "data_received"
        ):
            self._state |= BUFFERED
        else:
            self._state &= ~BUFFERED

    def get_protocol(self) -> protocols.BaseProtocol:
        return self._protocol

    def _made(self) -> None:
        try:
            self._protocol.connection_made(self)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:
            self._report("Exception in callback connection_made", error)

    def _report(self, message: str, error: BaseException) -> None:
        self._loop.call_exception_handler(
            {
                "message": message,
                "exception": error,
                "transport": self,
                "protocol": self._protocol,
            }
        )

    @property
    def _paused(self) -> bool:
        return self._state & PAUSED != 0

    def is_reading(self) -> bool:
        return not self._state & (PAUSED | CLOSING)

    def _deliver_soon(self) -> None:
        self._loop.call_soon(self._deliver_paused_input, context=self._context)

    def _deliver_paused_input(self) -> None:
        items = self._paused_input
        try:
            while items and not self._state & (CLOSING | PAUSED):
                data = items.popleft()
                if data is None:
                    self._report_end()
                else:
                    self._deliver(data)
        finally:
            if not items:
                self._state &= ~PAUSED_INPUT
            elif not self._state & (CLOSING | PAUSED):
                self._deliver_soon()  # Ctrl-C leaves, and the loop may run again

    def _hold(self, item: bytes | None) -> None:
        if self._paused_input is None:
            self._paused_input = deque()
        self._paused_input.append(item)

    def _deliver(self, data: bytes) -> None:
        """Deliver data in the connection's context, which the caller has entered."""
        if self._state & BUFFERED:
            self._fill_buffers(memoryview(data))
            return
        try:
            self._protocol.data_received(data)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:
            self._fatal_error(error, "Fatal error: protocol.data_received() call failed.")

    def _fill_buffers(self, view: memoryview) -> None:
        """Give data to a BufferedProtocol, in as many of its buffers as it takes."""
        while len(view):
            # Each call of the protocol may change what comes next.
            if self._state & CLOSING:
                return
            if self._state & PAUSED:
                if self._paused_input is None:
                    self._paused_input = deque()
                self._paused_input.appendleft(bytes(view))
                return
            if not self._state & BUFFERED:
                self._deliver(bytes(view))
                return
            protocol = self._protocol
            doing = "get_buffer"
            try:
                buffer = protocol.get_buffer(-1)
                if not len(buffer):
                    raise RuntimeError("get_buffer() returned an empty buffer")
                target = memoryview(buffer).cast("B")
                size = min(len(view), len(target))
                target[:size] = view[:size]
                view = view[size:]
                doing = "buffer_updated"
                protocol.buffer_updated(size)
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as error:
                self._fatal_error(error, f"Fatal error: protocol.{doing}() call failed.")
                return

    def _report_end(self) -> None:
        if self._state & CLOSING:
            return
        try:
            keep_open = self._run_in_context(self._protocol.eof_received)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:
            self._fatal_error(error, "Fatal error: protocol.eof_received() call failed.")
            return
        self._end_reported(keep_open)

    def _run_in_context(self, function: Any) -> Any:
        """Call the function in the connection's context, from inside or outside of it."""
        entered = False

        def call() -> Any:
            nonlocal entered
            entered = True
            return function()

        try:
            return self._context.run(call)
        except RuntimeError:
            if entered:  # it is the function's own
                raise
        return function()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._set_write_buffer_limits(high=high, low=low)
        if self._protocol is not None:
            self._maybe_pause_protocol()

    def is_closing(self) -> bool:
        return self._state & CLOSING != 0

    # For a transport to define

    def _end_reported(self, keep_open: Any) -> None:
        """Act on what eof_received has returned."""
        raise NotImplementedError

    def _fatal_error(self, error: BaseException, message: str = "Fatal error on transport") -> None:
        """End the connection; report the error, unless it is one of the connection's."""
        if isinstance(error, OSError):
            if self._loop.get_debug():
                logger.debug("%r: %s", self, message, exc_info=True)
        else:
            self._report(message, error)
        self._force_close(error)

    def _push(self) -> None:
        """Give the kernel what was written, and learn what it refuses."""
        raise NotImplementedError

    def _force_close(self, error: BaseException | None) -> None:
        """End the connection, drop what it was to send, and give connection_lost the error."""
        raise NotImplementedError


class SocketTransport(StreamTransport):
    """A connected stream socket, TCP's or Unix's."""

    __slots__ = (
        "_empty_waiter",
        "_engine",
        "_error",
        "_own",
        "_peer",
        "_server",
        "_slot",
        "_sock",
    )

    _sendfile_compatible = constants._SendfileMode.TRY_NATIVE

    def __init__(
        self, engine: Any, slot: int, protocol: Any, context: Any, extra: Any, server: Any
    ) -> None:
        super().__init__(engine.aio, protocol, WATER)
        self._engine = engine
        self._slot = slot
        self._context = context
        self._extra = extra
        #: The asyncio.Server that counts this transport, or None.
        self._server = server
        #: The socket object whose descriptor was taken over, or None.
        self._sock: sockets.socket | None = None
        #: The packed addresses of the two ends, or None: they must outlive the connection.
        self._own: bytes | None = None
        self._peer: bytes | None = None
        self._error: BaseException | None = None
        self._empty_waiter: Any = None
        if server is not None:
            attach(server, self)

    @classmethod
    def adopt(
        cls,
        engine: Any,
        sock: sockets.socket,
        protocol: Any,
        extra: Any,
        server: Any,
        context: Context,
    ) -> SocketTransport:
        """Take over a connected socket; `_begin` is still to be called, in a callback."""
        unix = sock.family == sockets.AF_UNIX
        if not unix:
            base_events._set_nodelay(sock)
        engine.submit()
        slot = lib.pa_open(engine.c, sock.fileno(), lib.PA_PIPE if unix else lib.PA_TCP, 0)
        if slot < 0:
            sock.detach()  # C has closed it
            check(slot)
        transport = cls(engine, slot, protocol, context, extra, server)
        transport._sock = hold(sock)
        transport._state |= STARTING
        engine.register(slot, transport)
        return transport

    def __repr__(self) -> str:
        info = [type(self).__name__]
        if self._slot < 0:
            info.append("closed")
        elif self._state & CLOSING:
            info.append("closing")
        if self._slot >= 0:
            info.append(f"fd={self._sock_fd}")
            info.append("read=polling" if self.is_reading() else "read=idle")
            size = self.get_write_buffer_size()
            info.append(f"write=<{'polling' if size else 'idle'}, bufsize={size}>")
        return "<{}>".format(" ".join(info))

    # Information

    @property
    def _sock_fd(self) -> int:
        # libuv's error: C has closed it, and its record has yet to be walked.
        return max(-1, lib.pa_fileno(self._engine.c, self._slot)) if self._slot >= 0 else -1

    def _duplicate(self) -> sockets.socket:
        """Return a socket object on a duplicate of the descriptor: C's own must not be closed."""
        sock = sockets.socket(fileno=os.dup(self._sock_fd))
        # On PyPy the constructor makes the open file block; and sock_sendfile asks in debug mode.
        sock.setblocking(False)
        return sock

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        if self._extra is not None and name in self._extra:
            return self._extra[name]
        if name == "socket":
            if self._sock is None:
                return TransportSocket(self)
            # The same each time, as in asyncio: programs compare them.
            sock = trsock.TransportSocket(self._sock)
            self._extra = {**(self._extra or {}), name: sock}
            return sock
        if name == "sockname" or name == "peername":
            self._keep_names()
            packed = self._own if name == "sockname" else self._peer
            return default if packed is None else unpack_name(packed)
        return default

    def _keep_names(self) -> None:
        """Ask the system for the names that are not known yet."""
        if self._slot >= 0:
            if self._own is None or self._state & PRESUMED:
                self._own = _ask_name(self._engine, self._slot, lib.pa_getsockname)
                self._state &= ~PRESUMED
            if self._peer is None:
                self._peer = _ask_name(self._engine, self._slot, lib.pa_getpeername)

    def _begin(self, waiter: Any) -> None:
        """Report an adopted connection, or one that has connected, and read from it."""
        self._made()
        self._state &= ~STARTING
        if self._paused_input:  # C has read from it already
            self._state |= PAUSED_INPUT
            self._deliver_soon()
        if self._error is not None and not self._state & CLOSING:
            self._loop.call_soon(self._fatal_error, self._error)  # behind that input
        if not self._state & (PAUSED | CLOSING | ENDED):
            self._engine.queue((lib.PA_READ_START, self._slot, 0, b"", None))
        settle(waiter)

    # Reading

    def pause_reading(self) -> None:
        if not self._state & (PAUSED | CLOSING):
            self._state |= PAUSED
            self._engine.queue((lib.PA_READ_STOP, self._slot, 0, b"", None))

    def resume_reading(self) -> None:
        if self._state & CLOSING or not self._state & PAUSED:
            return
        self._state &= ~PAUSED
        if self._paused_input:
            self._state |= PAUSED_INPUT
            self._deliver_soon()
        if not self._state & (STARTING | ENDED):
            self._engine.queue((lib.PA_READ_START, self._slot, 0, b"", None))

    def _on_read(self, arena: Any, start: int, end: int) -> None:
        if self._state & _NOT_PLAIN:
            if self._state & CLOSING:
                return
            if self._state & _HOLDS_INPUT:
                self._hold(arena[start:end])
            else:
                self._context.run(self._fill_buffers, memoryview(arena)[start:end])
            return
        try:
            self._context.run(self._protocol.data_received, arena[start:end])
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:
            self._fatal_error(error, "Fatal error: protocol.data_received() call failed.")

    def _end_reported(self, keep_open: Any) -> None:
        if not keep_open:
            self.close()

    # Writing

    def write(self, data: Any) -> None:
        if self._state & _CHECKS_WRITES or type(data) is not bytes:
            data = self._check_write(data)
            if data is None:
                return
        size = len(data)
        engine = self._engine
        if size <= INLINE_WRITE_LIMIT:
            engine.queue((WRITE, self._slot, size, data, None))
            if len(engine.operations) > PENDING_ITEMS_MAX:
                self._push()
        else:
            blocked = engine.write_now(self._slot, data, None)
            if blocked:
                self._on_blocked(blocked)

    def _push(self) -> None:
        """Perform the pending operations, and learn what the kernel has refused."""
        engine = self._engine
        others = {*engine.operations[1::5]} - {self._slot}
        blocked = engine.write_now(self._slot, b"", None)
        if blocked:
            self._on_blocked(blocked)
        # The others too, or a coroutine that writes to several in turn and never has to wait would
        # learn only of the one that happens to flush.
        for slot in others:
            owner = engine.objects[slot]
            if (
                type(owner) is SocketTransport
                and not owner._state & LOST
                and lib.pa_write_queue_size(engine.c, slot)
            ):
                owner._state |= BLOCKED
                owner._run_in_context(owner._maybe_pause_protocol)

    def _on_blocked(self, blocked: int) -> None:
        """Take the size of the blocked writes, or the error of one: the record comes later."""
        if blocked < 0:
            self._state |= CLOSING | LOST
            self._conn_lost += 1
        else:
            self._state |= BLOCKED
            self._maybe_pause_protocol()

    def _check_write(self, data: Any) -> Any:
        """Return the data as bytes or a view of bytes; None: there is nothing to write."""
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise TypeError(
                f"data argument must be a bytes-like object, not {type(data).__name__!r}"
            )
        if self._state & EOF_SENT:
            raise RuntimeError("Cannot call write() after write_eof()")
        if self._state & SENDING_FILE:
            raise RuntimeError("unable to write; sendfile is in progress")
        if not data:
            return None
        if self._state & LOST:
            if self._conn_lost >= constants.LOG_THRESHOLD_FOR_CONNLOST_WRITES:
                logger.warning("socket.send() raised exception.")
            self._conn_lost += 1
            return None
        if type(data) is memoryview:
            data = data.cast("B") if data.c_contiguous else data.tobytes()
        # A copy of what waits in the queue: the caller may change its buffer.
        return bytes(data) if len(data) <= INLINE_WRITE_LIMIT else data

    def writelines(self, list_of_data: Any) -> None:
        if self._state & EOF_SENT:
            raise RuntimeError("Cannot call writelines() after write_eof()")
        if self._state & SENDING_FILE:
            raise RuntimeError("unable to writelines; sendfile is in progress")
        if list_of_data:
            self.write(b"".join(list_of_data))

    def write_eof(self) -> None:
        if not self._state & (CLOSING | EOF_SENT):
            self._state |= EOF_SENT
            self._engine.queue((lib.PA_SHUTDOWN, self._slot, 0, b"", None))

    def can_write_eof(self) -> bool:
        return True

    def get_write_buffer_size(self) -> int:
        if self._slot < 0 or self._state & LOST:
            return 0
        engine = self._engine
        pending: int = engine.pending_size(self._slot)[0]
        blocked: int = lib.pa_write_queue_size(engine.c, self._slot)
        return pending + blocked

    def _make_empty_waiter(self) -> Any:
        """Refuse writes from now on; return a future that is done when none waits any more."""
        if self._empty_waiter is not None:
            raise RuntimeError("Empty waiter is already set")
        self._empty_waiter = self._loop.create_future()
        self._state |= SENDING_FILE
        self._push()
        if not self._state & BLOCKED:
            self._empty_waiter.set_result(None)
        return self._empty_waiter

    def _reset_empty_waiter(self) -> None:
        self._empty_waiter = None
        self._state &= ~SENDING_FILE

    def _end_empty_waiter(self, error: BaseException | None) -> None:
        settle(self._empty_waiter, error)

    # Ending

    def close(self) -> None:
        if self._state & CLOSING:
            return
        self._state |= CLOSING
        engine = self._engine
        if self._state & BLOCKED:
            # The protocol may still write until the kernel has taken all, as with asyncio: TLS
            # sends its close_notify then. `_on_written` closes.
            engine.queue((lib.PA_READ_STOP, self._slot, 0, b"", None))
            return
        if not engine.operations and lib.pa_write_queue_size(engine.c, self._slot):
            self._state |= BLOCKED  # and its record has yet to be walked
            engine.queue((lib.PA_READ_STOP, self._slot, 0, b"", None))
            return
        self._state |= LOST
        self._conn_lost += 1
        if engine.operations:
            self._close_handle(WITHOUT_LINGER)  # connection_lost when it is flushed and gone
        else:
            self._loop.call_soon(self._close_now)

    def _close_now(self) -> None:
        """Close, as there is nothing to flush; connection_lost comes first, as in asyncio."""
        if not self._state & FORCED:
            self._state |= LOST
            try:
                self._lose()
            finally:  # Ctrl-C may leave connection_lost
                self._close_handle(WITHOUT_LINGER)

    def _close_handle(self, mode: int) -> None:
        # From now on the descriptor is C's alone, and soon nobody's: a close of the socket object
        # would hit whatever gets its number next.
        self._detach_socket()
        if self._slot >= 0:
            if self._own is None or self._peer is None:
                self._keep_names()
            self._engine.queue((CLOSE, self._slot, mode, b"", None))

    def _detach_socket(self) -> None:
        sock, self._sock = self._sock, None
        release(sock)

    def abort(self) -> None:
        if self._engine.operations and self._slot >= 0:
            self._engine.submit()  # what the kernel takes at once is sent, as with asyncio
        self._force_close(None)

    def _drop(self) -> None:
        """Close a connection that no protocol has heard of."""
        if self._slot >= 0 and not self._state & FORCED:
            self._state |= CLOSING | LOST | FORCED | TOLD
            self._engine.queue((CLOSE, self._slot, 1, b"", None))

    def _force_close(self, error: BaseException | None) -> None:
        if self._state & STARTING and self._protocol is None:
            self._error = error  # `_begin` reports it
            return
        if self._slot < 0 or self._state & FORCED or self._protocol is None:
            return
        self._state |= CLOSING | LOST | FORCED
        self._conn_lost += 1
        if self._error is None:
            self._error = error
        self._close_handle(1)
        self._loop.call_soon(self._lose)

    def _lose(self) -> None:
        """Call connection_lost, once."""
        protocol = self._protocol
        # Not only by the protocol, because asyncio's sendfile sets one again after the end.
        if protocol is None or self._state & TOLD:
            return
        self._state |= CLOSING | LOST | TOLD
        self._paused_input = None
        self._end_empty_waiter(ConnectionError("Connection is closed by peer"))
        error, server = self._error, self._server
        try:
            self._run_in_context(lambda: protocol.connection_lost(error))
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as failure:
            self._report("Exception in callback connection_lost", failure)
        finally:
            self._error = self._protocol = self._server = None
            if server is not None:
                detach(server, self)

    # Records: see the contract in Engine

    def _on_event(self, kind: int, value: int, data: int) -> None:
        if kind == lib.PA_READABLE:
            self._read_by_itself(data, value)
        elif kind == lib.PA_EOF:
            self._state |= ENDED
            if self._state & _HOLDS_INPUT:
                self._hold(None)
            else:
                self._report_end()
        elif kind == lib.PA_BLOCKED:
            if not self._state & LOST:
                self._state |= BLOCKED
                self._context.run(self._maybe_pause_protocol)
        elif kind == lib.PA_WRITTEN:
            self._on_written()
        elif kind == lib.PA_CONNECTED:
            self._end_empty_waiter(_os_error(value) if value else None)
        elif kind == lib.PA_READ_ERROR:
            self._fatal_error(_os_error(value), "Fatal read error on socket transport")
        elif kind == lib.PA_WRITE_ERROR:
            error = _os_error(value)
            self._end_empty_waiter(error)
            self._fatal_error(error, "Fatal write error on socket transport")

    def _read_by_itself(self, descriptor: int, size: int) -> None:
        if self._state & CLOSING:
            return
        try:
            data = self._engine.read(descriptor, size)
        except OSError as error:
            self._fatal_error(error, "Fatal read error on socket transport")
            return
        if data:
            self._on_read(data, 0, len(data))

    def _on_written(self) -> None:
        # Not the record's size: a write may have been made at once since.
        if self._slot < 0 or self._state & FORCED:
            return
        if not lib.pa_write_queue_size(self._engine.c, self._slot):
            self._state &= ~BLOCKED
            if self._protocol_paused and self._engine.operations:
                self._push()  # pending writes count too, and no record may come of them
        if self._protocol_paused:
            self._context.run(self._maybe_resume_protocol)
        if self._state & BLOCKED:
            return
        self._end_empty_waiter(None)
        if self._state & (CLOSING | LOST) == CLOSING:
            self._state |= LOST
            if self._engine.operations:
                self._close_handle(WITHOUT_LINGER)
            else:
                self._close_now()

    def _on_closed(self) -> None:
        self._slot = -1
        self._lose()

    def _on_loop_end(self) -> None:
        self._detach_socket()
        self._slot = -1
        self._state |= CLOSING | LOST


def _ask_name(engine: Any, slot: int, function: Any) -> bytes | None:
    name = ffi.new("char[]", lib.PA_NAME_MAX)
    size = function(engine.c, slot, name)
    return ffi.buffer(name, size)[:] if size >= 0 else None


def _os_error(value: int) -> OSError:
    """Return asyncio's exception for libuv's error: of the builtin class for its errno."""
    return OSError(-value, os.strerror(-value))


class TransportSocket(trsock.TransportSocket):
    """The socket of a transport, for its options and names. The descriptor stays C's."""

    __slots__ = ("_transport",)

    def __init__(self, transport: SocketTransport) -> None:
        self._transport = transport

    @property
    def _sock(self) -> Any:
        return _Socket(self._transport)

    def fileno(self) -> int:
        return self._transport._sock_fd

    def dup(self) -> sockets.socket:
        return self._transport._duplicate()

    def __eq__(self, other: object) -> bool:
        # Not the same each time: the transport and its socket would keep each other alive.
        return isinstance(other, TransportSocket) and self._transport is other._transport

    def __hash__(self) -> int:
        return hash(self._transport)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} fd={self.fileno()}>"


class _Socket(PeerHandle):
    """Stands for a socket object in asyncio's TransportSocket.

    What C cannot do is done on a duplicate of the descriptor: a socket object on the number itself
    would close it when it is collected.
    """

    __slots__ = ("_loop", "_slot", "_transport")

    def __init__(self, transport: SocketTransport) -> None:
        self._transport = transport
        self._loop = transport._engine
        self._slot = transport._slot

    def _handle_slot(self) -> int:
        if self._transport._slot < 0:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return self._slot

    def getsockname(self) -> Any:
        return self.sockname

    def getpeername(self) -> Any:
        return self.peername

    @property
    def family(self) -> int:
        # Programs ask it of closed connections too, and expect no error.
        self._transport._keep_names()
        packed = self._transport._own or self._transport._peer or bytes(2)
        return sockets.AddressFamily(int.from_bytes(packed[:2], sys.byteorder))

    @property
    def type(self) -> int:
        return sockets.SOCK_STREAM

    @property
    def proto(self) -> int:
        return 0 if self.family == sockets.AF_UNIX else sockets.IPPROTO_TCP

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> Any:
            with self._transport._duplicate() as sock:
                return getattr(sock, name)(*arguments)

        return call


class Listener(CoreListener):
    """A listening socket of an `asyncio.Server`."""

    __slots__ = ("_context", "_factory", "_kind", "_name", "_server")

    def __init__(
        self,
        engine: Any,
        sock: sockets.socket,
        factory: Any,
        server: Any,
        context: Context | None,
    ) -> None:
        unix = sock.family == sockets.AF_UNIX
        self._kind = lib.PA_PIPE_SERVER if unix else lib.PA_TCP_SERVER
        self._factory = factory
        self._server = server
        self._context = copy_context() if context is None else context
        try:
            if not unix:
                base_events._set_nodelay(sock)
            options = SimpleNamespace(loop=engine, needs_begin=False, event_cb=None, server=None)
            names_new = unix or _names_connections(sock)
            engine.submit()
            super().__init__(options, sock, None)
        except BaseException:
            sock.close()
            raise
        #: The packed address that connections have too, or None. It saves each a system call at its
        #: close, for programs that ask for the name after that.
        self._name = _ask_name(engine, self._slot, lib.pa_getsockname) if names_new else None

    def close(self) -> None:
        super().close()
        self._slot = -1

    def _on_accepted(self, slot: int, address: int) -> None:
        engine = self._loop
        try:
            if self._slot < 0:
                raise ConnectionAbortedError("the server was closed")
            context = self._context.copy()
            protocol = context.run(self._factory)
            transport = SocketTransport(engine, slot, protocol, context, None, self._server)
        except BaseException as error:
            self._refuse(slot)
            if isinstance(error, (SystemExit, KeyboardInterrupt)):
                raise
            self._accept_failed(error)
            return
        if address >= 0:
            transport._peer = engine._arena[address : address + PACKED_MAX]
        if self._name is not None:
            transport._own = self._name
            transport._state |= PRESUMED
        engine.register(slot, transport)
        context.run(transport._made)

    def _accept_failed(self, error: BaseException) -> None:
        """Report, as asyncio does, in debug mode only: the peer has caused it, or the server."""
        aio = self._loop.aio
        if aio.get_debug():
            aio.call_exception_handler(
                {
                    "message": "Error on transport creation for incoming connection",
                    "exception": error,
                }
            )

    def _report_error(self, error: EventError) -> None:
        self._loop.aio.call_exception_handler(
            {"message": "socket.accept() out of system resource", "exception": error}
        )


def _names_connections(sock: sockets.socket) -> bool:
    """Whether the connections of a listening socket of TCP have its own name.

    They have another where it has a wildcard address, or takes those for any (ip(7)).
    """
    six = sock.family == sockets.AF_INET6
    if sock.getsockname()[0] in ("0.0.0.0", "::", "::ffff:0.0.0.0"):
        return False
    if not sys.platform.startswith("linux"):
        return False
    level, transparent = (sockets.IPPROTO_IPV6, 75) if six else (sockets.IPPROTO_IP, 19)
    try:
        return not sock.getsockopt(level, transparent)
    except OSError:
        return False
