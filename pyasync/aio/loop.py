"""The asyncio event loop: asyncio's own Unix loop, of which the costly parts are replaced.

Replaced are the iteration (one crossing, as in the callback API), handles and timers, connections
(`pyasync.aio.transports`, `connecting` and `tls`), UDP (`datagrams`), and what waits for
descriptors (`descriptors`). The rest is asyncio's own code: pipes, child watchers, executors.
"""

from __future__ import annotations

import asyncio
import errno
import selectors
import signal
import socket as sockets
import ssl
from asyncio import base_events, coroutines, events
from collections.abc import Callable
from contextlib import suppress
from contextvars import Context, copy_context
from functools import partial
from threading import current_thread, main_thread
from time import perf_counter
from typing import Any, cast

from pyasync._core.arguments import require_instance
from pyasync._core.clock import monotonic
from pyasync._core.wakeup import CROWDED, give_way
from pyasync.aio.connecting import ConnectedSocket, ConnectingLoop
from pyasync.aio.datagrams import DatagramTransport, other_datagram_transport
from pyasync.aio.descriptors import Descriptors
from pyasync.aio.handles import (
    FOREVER,
    DebugTimerHandle,
    Handle,
    HandleDeadlines,
    TimerHandle,
    milliseconds,
)
from pyasync.aio.tls import SSLTransport
from pyasync.aio.transports import FORCED, Listener, SocketTransport, StreamTransport
from pyasync.aio.versions import (
    GIVES_CONTEXT,
    HAS_SHUTDOWN_TIMEOUT,
    THREAD_SAFE_HANDLE_FRAMES,
    ThreadSafeHandle,
    iscoroutinefunction,
    ssl_protocol,
)
from pyasync.counters import Stats
from pyasync.loop import Loop

#: Handles that may run before the next crossing, where handles keep adding others. So a chain of
#: call_soon does not cost a crossing each; and I/O waits no longer than this.
READY_BUDGET = 64

#: A delay, in seconds, whose deadline is less than `FOREVER` for certain.
DELAY_MAX = 10**9

UDP_FAMILIES = (sockets.AF_INET, sockets.AF_INET6)
STREAM_FAMILIES = (*UDP_FAMILIES, sockets.AF_UNIX)

_new_handle = Handle.__new__
_new_timer = TimerHandle.__new__


class AioEngine(Loop):
    """The pyasync loop below an `EventLoop`: what `pyasync.current_loop` gives in it."""

    __slots__ = ("aio",)

    def __init__(self, aio: EventLoop) -> None:
        self._set_up()
        #: The asyncio loop.
        self.aio = aio
        self.queue = self._queue_at_once

    def enter(self) -> None:
        super().enter()
        self.queue = self.operations.extend

    def leave(self) -> None:
        self.queue = self._queue_at_once
        try:
            self.submit()
        finally:
            super().leave()

    def release_signals(self) -> None:
        # As asyncio does: a signal that comes between two runs is handled in the next one.
        if not self.aio._signal_handlers:
            super().release_signals()

    def _queue_at_once(self, operation: Any) -> None:
        """Perform an operation while the loop does not run: no crossing would take it along."""
        self.operations.extend(operation)
        if self.c is not None and not self.closed:
            self.submit()

    def drop(self) -> None:
        """Stop, for `exit_event_loop`. Nothing is dropped, because the loop may run again."""
        if self.forked:
            super().drop()
        else:
            self.aio.stop()

    def forget_after_fork(self) -> None:
        super().forget_after_fork()
        for handle in self.objects:
            if isinstance(handle, SocketTransport):
                handle._on_loop_end()  # a large write would go to the parent's loop

    def on_error(self, error: Exception, owner: Any) -> None:
        if isinstance(owner, Listener):
            owner._accept_failed(error)
            return
        context: dict[str, Any] = {"message": "Exception in a callback", "exception": error}
        if owner is not None:
            context["message"] = f"Exception in a callback of {owner!r}"
        self.aio.call_exception_handler(context)
        self._tell_owner(error, owner)


class EventLoop(ConnectingLoop):
    """An asyncio event loop on pyasync's core. All methods are those of asyncio's loops."""

    _closed = True  # until asyncio's __init__: its __del__ asks, also when ours has failed before

    def __init__(self, selector: selectors.BaseSelector | None = None) -> None:
        """Make a loop. ``selector`` is as of `asyncio.SelectorEventLoop`; it needs a ``fileno``.

        One that has none, such as a `selectors.PollSelector`, is replaced by the default.
        """
        if selector is not None:
            require_instance("selector", selector, selectors.BaseSelector)
        if not hasattr(selector, "fileno"):
            selector = None
        self._engine = AioEngine(self)
        self._listeners: dict[sockets.socket, Listener] = {}
        #: For handles that enter a context of their own.
        self._outside = Context()
        try:
            self._engine.open()
            self._descriptors = Descriptors(self._engine, selector)
            super().__init__(cast(selectors.BaseSelector, self._descriptors))
            self._engine.pending = self._descriptors.ready = self._ready
            self._wake = self._engine._wakeup.wake
            self._descriptors.on_signal = self._handle_signal
            self._deadlines = self._engine.deadlines = HandleDeadlines(self._ready)
        except BaseException:
            self._engine.close()
            raise

    def stats(self) -> Stats:
        """Return a snapshot of the loop's counters; from any thread, and after its end too."""
        return self._engine.stats()

    # Wake-ups and signals. asyncio's own need a pair of sockets in the selector: these do not.

    def _make_self_pipe(self) -> None:
        self._ssock = self._csock = None
        self._internal_fds += 1  # asyncio's count of the loop's own: ours is the engine's wake-up

    def _close_self_pipe(self) -> None:
        self._internal_fds -= 1

    def _write_to_self(self) -> None:
        self._wake(self._engine)

    def add_signal_handler(self, sig: int, callback: Any, *args: Any) -> None:
        if coroutines.iscoroutine(callback) or iscoroutinefunction(callback):
            raise TypeError("coroutines cannot be used with add_signal_handler()")
        self._check_signal(sig)
        self._check_closed()
        if current_thread() is not main_thread():
            raise RuntimeError("add_signal_handler() works only in the main thread")
        handle = events.Handle(callback, args, self, None)
        before = self._signal_handlers.get(sig)
        self._signal_handlers[sig] = handle
        try:
            self._engine.watch_signals()
            # The handler only makes Python write to the wakeup descriptor, which reports each
            # signal to `_handle_signal`. So signal.signal may replace it, as with asyncio.
            signal.signal(sig, _ignore_signal)
            signal.siginterrupt(sig, False)
        except (ValueError, OSError) as error:
            if before is None:
                del self._signal_handlers[sig]
            else:
                self._signal_handlers[sig] = before
            self._release_signals()
            raise _signal_error(sig, error) from None

    def remove_signal_handler(self, sig: int) -> bool:
        self._check_signal(sig)
        if self._signal_handlers.pop(sig, None) is None:
            return False
        default = signal.default_int_handler if sig == signal.SIGINT else signal.SIG_DFL
        try:
            signal.signal(sig, default)
        except OSError as error:
            raise _signal_error(sig, error) from None
        finally:
            self._release_signals()
        return True

    def _release_signals(self) -> None:
        if self._engine.thread is None:  # else `leave` does so
            self._engine.release_signals()

    # Scheduling

    time = staticmethod(monotonic)  # the clock by which C fires

    def call_soon(
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> events.Handle:
        if self._debug or self._closed:
            handle = super().call_soon(callback, *args, context=context)
            if handle._source_traceback:
                del handle._source_traceback[-1]
            return handle
        handle = _new_handle(Handle)  # without __init__: its call would be a third of this method
        handle._callback = callback
        handle._args = args
        handle._context = copy_context() if context is None else context
        self._ready.append(handle)
        return handle

    def call_soon_threadsafe(
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> events.Handle:
        if self._closed:
            self._check_closed()
        handle: events.Handle
        if self._debug:
            self._check_callback(callback, "call_soon_threadsafe")
        if self._debug or ThreadSafeHandle is not events.Handle:
            handle = ThreadSafeHandle(callback, args, self, context)
            if handle._source_traceback:
                del handle._source_traceback[-THREAD_SAFE_HANDLE_FRAMES:]
            # Its `_run` holds the lock for which `cancel` waits.
            self._ready.append(handle if self._debug else Handle(handle._run, (), self._outside))
        else:
            handle = _new_handle(Handle)  # without __init__, as in `call_soon`
            handle._callback = callback
            handle._args = args
            handle._context = copy_context() if context is None else context
            self._ready.append(handle)
        self._wake(self._engine)
        if len(self._ready) > CROWDED:
            give_way(self._engine)
        return handle

    def call_later(
        self, delay: float, callback: Callable[..., object], *args: Any, context: Any = None
    ) -> events.TimerHandle:
        if delay is None:
            raise TypeError("delay must not be None")
        if self._debug or self._closed:
            handle = self.call_at(self.time() + delay, callback, *args, context=context)
            if handle._source_traceback:
                del handle._source_traceback[-1]
            return handle
        # Without __init__, as in `call_soon`, and without `call_at` and `milliseconds`.
        timer = _new_timer(TimerHandle)
        timer._when = when = self.time() + delay
        timer._callback = callback
        timer._args = args
        timer._context = copy_context() if context is None else context
        timer._deadlines = deadlines = self._deadlines
        timer._bucket = None
        if 0 < delay < DELAY_MAX:
            deadlines.new.append(timer)
        else:
            deadlines.arm(timer, milliseconds(when))
        return timer

    def call_at(
        self, when: float, callback: Callable[..., object], *args: Any, context: Any = None
    ) -> events.TimerHandle:
        if when is None:
            raise TypeError("when cannot be None")
        self._check_closed()
        if self._debug:
            self._check_thread()
            self._check_callback(callback, "call_at")
            debug = DebugTimerHandle(when, callback, args, self, context, self._deadlines)
            if debug._source_traceback:
                del debug._source_traceback[-1]
            self._deadlines.arm(debug, milliseconds(when))
            return debug
        if context is None:
            context = copy_context()
        handle = TimerHandle(when, callback, args, context, self._deadlines)
        if monotonic() < when < FOREVER / 1000:
            self._deadlines.new.append(handle)
        else:
            self._deadlines.arm(handle, milliseconds(when))
        return handle

    # Running

    def run_forever(self) -> None:
        self._check_closed()
        self._check_running()
        engine = self._engine
        if engine.forked:
            raise engine.not_running()
        try:
            engine.enter()
            super().run_forever()
        finally:
            engine.leave()

    def _run_once(self) -> None:
        """Iterate until `stop` is called; asyncio's `run_forever` calls this in a loop.

        In an iteration: cross once, which polls; run the handles that were ready before the poll;
        then what the poll has found; then the handles that this has made ready, and those that they
        add, until `READY_BUDGET` or until there are operations for C or a timer without a delay,
        which is due in the next iteration.
        """
        engine, ready, deadlines = self._engine, self._ready, self._deadlines
        while True:
            if self._stopping:
                engine.poll(0)
            else:
                engine.poll()
            if ready and engine._batch:
                self._run_handles(len(ready))
            engine.dispatch()
            if engine.ready or engine._wakeup.calls:
                engine.run_ready()
            budget = READY_BUDGET
            while ready:
                budget -= len(ready)
                self._run_handles(len(ready))
                if budget <= 0 or engine.operations or self._stopping or 0 in deadlines.buckets:
                    break
            if self._stopping:
                return

    def _run_handles(self, count: int) -> None:
        """Run so many of the handles that are ready."""
        popleft = self._ready.popleft
        if self._debug or self._engine.slow_callback_watchers:
            run = self._run_in_debug_mode if self._debug else self._run_watched
            for _ in range(count):
                run(popleft())
            return
        handle: Any = None
        while count:
            try:
                while count:
                    count -= 1
                    handle = popleft()
                    # In this order: `cancel`, by a signal handler in between, clears both.
                    args = handle._args
                    callback = handle._callback
                    if callback is not None:
                        if args:
                            handle._context.run(callback, *args)
                        else:  # a third quicker
                            handle._context.run(callback)
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as error:
                self._handle_failed(handle, error)
        # An exception's traceback would keep them, and be kept by them.
        handle = callback = args = None

    def _run_watched(self, handle: Any) -> None:
        """Run a handle as for asyncio, and look at its time: see `watch_slow_callbacks`."""
        callback = handle._callback
        if callback is None:
            return
        start = perf_counter()
        try:
            handle._run()
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:
            self._handle_failed(handle, error)
        took = perf_counter() - start
        if took > self._engine.long_callback_limit:
            task = getattr(callback, "__self__", None)
            if isinstance(task, asyncio.Task):
                callback = task.get_coro()
            self._engine.note_long_callback(took, callback)

    def _run_in_debug_mode(self, handle: Any) -> None:
        if handle._cancelled:
            return
        self._current_handle = handle
        try:
            start = self.time()
            if isinstance(handle, Handle):  # it was made before debug mode was on
                try:
                    handle._run()
                except (SystemExit, KeyboardInterrupt):
                    raise
                except BaseException as error:
                    self._handle_failed(handle, error)
            else:
                handle._run()
            took = self.time() - start
            if took >= self.slow_callback_duration:
                base_events.logger.warning(
                    "Executing %s took %.3f seconds",
                    base_events._format_handle(handle),
                    took,
                )
        finally:
            # The handle too, because an exception of its task may keep this frame.
            self._current_handle = handle = None

    def _handle_failed(self, handle: Any, error: BaseException) -> None:
        callback = base_events._format_handle(handle)
        if handle._callback is not None:
            callback = asyncio.format_helpers._format_callback_source(
                handle._callback, handle._args
            )
        context = {
            "message": f"Exception in callback {callback}",
            "exception": error,
            "handle": handle,
        }
        if handle._source_traceback:
            context["source_traceback"] = handle._source_traceback
        self.call_exception_handler(context)

    def close(self) -> None:
        if self.is_running():
            raise RuntimeError("Cannot close a running event loop")
        try:
            super().close()
        finally:  # Ctrl-C may have ended an earlier call: each step may be repeated
            if self._selector is not None:
                self._selector.close()
            self._engine.close()
            self._listeners.clear()
            self._deadlines = self._engine.deadlines  # empty: it keeps no callbacks

    # Serving

    def _start_serving(
        self,
        protocol_factory: Any,
        sock: sockets.socket,
        sslcontext: Any = None,
        server: Any = None,
        backlog: int = 100,
        ssl_handshake_timeout: float | None = None,
        ssl_shutdown_timeout: float | None = None,
        context: Context | None = None,
    ) -> None:
        self._ensure_fd_no_transport(sock)
        factory = protocol_factory
        if sslcontext is not None:

            def factory() -> Any:
                return SSLTransport(
                    self,
                    protocol_factory(),
                    sslcontext,
                    None,
                    True,
                    None,
                    ssl_handshake_timeout,
                    ssl_shutdown_timeout,
                )

        # A duplicate: asyncio's Server keeps the socket itself, and closes it.
        listener = Listener(self._engine, sock.dup(), factory, server, context)
        self._listeners[sock] = listener

    def _stop_serving(self, sock: sockets.socket) -> None:
        listener = self._listeners.pop(sock, None)
        if listener is not None:
            listener.close()
        super()._stop_serving(sock)

    # Transports

    def _make_socket_transport(
        self,
        sock: sockets.socket,
        protocol: Any,
        waiter: Any = None,
        *,
        extra: Any = None,
        server: Any = None,
        context: Context | None = None,
    ) -> Any:
        if context is None:
            context = copy_context()
        if isinstance(sock, ConnectedSocket):
            transport = sock.take()
            transport.set_protocol(protocol)
            transport._context = context
            self.call_soon(transport._begin, waiter, context=context)
            return transport
        if not _is_socket(sock, STREAM_FAMILIES):
            options: dict[str, Any] = {"context": context} if GIVES_CONTEXT else {}
            return super()._make_socket_transport(
                sock, protocol, waiter, extra=extra, server=server, **options
            )
        self._ensure_fd_no_transport(sock)
        fd = sock.fileno()
        transport = SocketTransport.adopt(self._engine, sock, protocol, extra, server, context)
        self._transports[fd] = transport
        # As an accepted one: what connection_made sets in a context, data_received finds.
        self.call_soon(transport._begin, waiter, context=context)
        return transport

    def _make_datagram_transport(
        self,
        sock: sockets.socket,
        protocol: Any,
        address: Any = None,
        waiter: Any = None,
        extra: Any = None,
    ) -> Any:
        if not _is_socket(sock, UDP_FAMILIES):
            return other_datagram_transport(self, sock, protocol, address, waiter, extra)
        self._ensure_fd_no_transport(sock)
        fd = sock.fileno()
        transport = DatagramTransport(self._engine, sock, protocol, address, extra)
        self._transports[fd] = transport
        self.call_soon(transport._begin, waiter, context=transport._context)
        return transport

    def _make_ssl_transport(
        self,
        rawsock: sockets.socket,
        protocol: Any,
        sslcontext: Any,
        waiter: Any = None,
        *,
        server_side: bool = False,
        server_hostname: str | None = None,
        extra: Any = None,
        server: Any = None,
        ssl_handshake_timeout: float | None = None,
        ssl_shutdown_timeout: float | None = None,
        context: Context | None = None,
    ) -> Any:
        ours = isinstance(rawsock, ConnectedSocket) or _is_socket(rawsock, STREAM_FAMILIES)
        tls: Any = (SSLTransport if ours else ssl_protocol)(
            self,
            protocol,
            sslcontext,
            waiter,
            server_side,
            server_hostname,
            ssl_handshake_timeout,
            ssl_shutdown_timeout,
        )
        self._make_socket_transport(rawsock, tls, extra=extra, server=server, context=context)
        return tls if ours else tls._app_transport

    async def start_tls(
        self,
        transport: Any,
        protocol: Any,
        sslcontext: Any,
        *,
        server_side: bool = False,
        server_hostname: str | None = None,
        ssl_handshake_timeout: float | None = None,
        ssl_shutdown_timeout: float | None = None,
    ) -> Any:
        if not (isinstance(transport, StreamTransport) and isinstance(sslcontext, ssl.SSLContext)):
            options: dict[str, Any] = {"ssl_shutdown_timeout": ssl_shutdown_timeout}
            return await super().start_tls(
                transport,
                protocol,
                sslcontext,
                server_side=server_side,
                server_hostname=server_hostname,
                ssl_handshake_timeout=ssl_handshake_timeout,
                **(options if HAS_SHUTDOWN_TIMEOUT else {}),
            )
        if transport.is_closing():
            raise ConnectionAbortedError("start_tls() of a transport that is closed")
        waiter = self.create_future()
        tls = SSLTransport(
            self,
            protocol,
            sslcontext,
            waiter,
            server_side,
            server_hostname,
            ssl_handshake_timeout,
            ssl_shutdown_timeout,
            call_connection_made=False,
        )
        # Later, because what the protocol has made ready must run before.
        transport.pause_reading()
        if server_side and isinstance(protocol, asyncio.StreamReaderProtocol):
            tls._take_unread(protocol)
        transport.set_protocol(tls)
        begin = self.call_soon(tls.connection_made, transport, context=transport._context)
        resume = self.call_soon(transport.resume_reading)
        try:
            await waiter
        except BaseException:
            transport.close()
            begin.cancel()
            resume.cancel()
            waiter = None  # it has the exception, whose traceback has this frame
            raise
        return tls

    async def _sendfile_native(self, transp: Any, file: Any, offset: int, count: int) -> int:
        if not isinstance(transp, SocketTransport):
            return await super()._sendfile_native(transp, file, offset, count)
        reading = transp.is_reading()
        transp.pause_reading()
        sock = None
        try:
            await transp._make_empty_waiter()
            # A duplicate, because the transport may be closed meanwhile, and its number reused.
            sock = transp._duplicate()
            transp._empty_waiter = self.create_future()  # of the end of the connection now
            transp._empty_waiter.add_done_callback(partial(_end_sending, transp, sock))
            return await self.sock_sendfile(sock, file, offset, count, fallback=False)
        finally:
            if sock is not None:
                sock.close()
            transp._reset_empty_waiter()
            if reading:
                transp.resume_reading()


def _is_socket(sock: Any, families: tuple[int, ...]) -> bool:
    """Whether C may take over the descriptor: the program's own stand-in for a socket keeps it.

    By its type, because a mock claims to be an instance.
    """
    return sock.family in families and issubclass(type(sock), sockets.socket)


def _ignore_signal(signum: int, frame: Any) -> None:
    """Do nothing: see `EventLoop.add_signal_handler`."""


def _signal_error(sig: int, error: OSError | ValueError) -> Exception:
    """Return what asyncio raises where `signal.signal` has raised this error."""
    if isinstance(error, ValueError):  # in a subinterpreter
        return RuntimeError(str(error))
    if error.errno == errno.EINVAL:
        return RuntimeError(f"sig {sig} cannot be caught")
    return error


def _end_sending(transport: SocketTransport, sock: sockets.socket, lost: Any) -> None:
    """End the sending of a file when its transport is aborted: else it would go on, or for ever."""
    if not lost.cancelled() and lost.exception() is not None and transport._state & FORCED:
        with suppress(OSError):  # the peer has gone, or the sending has just ended
            sock.shutdown(sockets.SHUT_RDWR)
