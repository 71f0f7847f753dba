"""The event loop.

Work crosses between Python and libuv in two queues, once an iteration. What callbacks ask for
(writes, closes, timers) gathers in two lists, and travels as one array of integers and one joined
payload in a single call, `pa_run`; the same call runs an iteration of libuv, whose C callbacks
leave a record for each event. Then the loop walks these records, and calls the objects that they
are for, as plain Python calls: no callback runs inside libuv, so each may make any call, and what
it raises is an exception like any other.

With ``buffer_writes=False`` every operation is a call of its own: see `Loop._cross`.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from struct import Struct
from threading import get_ident
from time import monotonic, monotonic_ns, perf_counter, sleep
from typing import TYPE_CHECKING, Any, Protocol, TextIO, Union

from pyasync._ffi import ffi, lib
from pyasync.counters import Stats
from pyasync.deadlines import Deadlines
from pyasync.errors import EventError, EventInfo, EventLoopNotRunning, check, message

if TYPE_CHECKING:
    from pyasync.threads import WorkerPool

EventCallback = Callable[[Exception], object]
ErrorPolicy = Union[bool, Callable[[Exception], object]]
#: Which, slot, value; the data of a write, and its stream and callback.
Operation = tuple[int, int, int, Any, Any]
WrittenCallback = tuple[Any, Callable[[Any], object]]

PYPY = sys.implementation.name == "pypy"

logger = logging.getLogger("pyasync")

#: The longest `delay`, in seconds: some 300 years.
MAX_TIME = 1e10

#: Up to this size a write is joined with the iteration's others; a larger one crosses at once,
#: from its own memory.
INLINE_WRITE_LIMIT = 8192

#: Events that are called in one iteration; the others wait for the next, so that a million due
#: together do not keep I/O waiting.
FIRE_LIMIT = 16384

# enum pa_event_kind, as constants that the loop below can compare with.
READ = lib.PA_READ
TIMER = lib.PA_TIMER
ACCEPTED = lib.PA_ACCEPTED
CLOSED = lib.PA_CLOSED
NOTHING = lib.PA_NOTHING
DONE = lib.PA_DONE

# What the loop must know of Stream._state: all of it when a stream has closed and nothing else has
# happened to it, and the flag of one that failed, whose write callbacks are not called.
STREAM_CLOSED = 1
STREAM_FAILED = 16

#: How each operation is named when it crosses by itself.
_CROSSINGS = {
    lib.PA_CLOSE: lib.pa_close,
    lib.PA_SHUTDOWN: lib.pa_shutdown,
    lib.PA_READ_START: lib.pa_read_start,
    lib.PA_READ_STOP: lib.pa_read_stop,
    lib.PA_ACCEPT: lib.pa_accept,
}

_HANDLE_KINDS = {
    lib.PA_TCP: "tcp",
    lib.PA_PIPE: "pipe",
    lib.PA_TCP_SERVER: "tcp-server",
    lib.PA_PIPE_SERVER: "pipe-server",
    lib.PA_SIGNAL_HANDLER: "signal",
    lib.PA_IDLER: "idler",
    lib.PA_POLLER: "poller",
    lib.PA_PROCESS: "process",
    lib.PA_FS_MONITOR: "fs-monitor",
    lib.PA_UDP: "udp",
    lib.PA_STDIO: "stdio",
}

_RECORD = Struct("iiqq")  # pa_event
_INT64_ARRAY = ffi.typeof("int64_t[]")


class Owner(Protocol):
    """What an exception in a callback is blamed on."""

    @property
    def _event_cb(self) -> EventCallback | None: ...


class _Current(threading.local):
    loop: Loop | None = None


_current = _Current()
#: Loops that have not ended, for the child of a fork to give up.
_running_loops: weakref.WeakSet[Loop] = weakref.WeakSet()


class Loop:
    """An event loop. Made by `start_event_loop` and `event_loop`; found by `current_loop`.

    It belongs to the thread that started it. Only `call_threadsafe` and `stats` are for any
    thread.
    """

    def __init__(
        self,
        *,
        catch_app_errors: ErrorPolicy = False,
        send_errors_to_event_cb: bool = True,
        buffer_writes: bool = True,
    ) -> None:
        if not isinstance(catch_app_errors, bool) and not callable(catch_app_errors):
            raise TypeError("catch_app_errors must be a bool or a function of one exception")
        if _current.loop is not None:
            raise RuntimeError("an event loop is running in this thread already")
        self._catch_app_errors = catch_app_errors
        self._send_errors_to_event_cb = send_errors_to_event_cb

        #: Handles by slot, which C gives out.
        self._objects: list[Any] = [None] * 64
        self._deadlines = Deadlines()

        #: Requests under way, such as lookups, by address.
        self._requests: dict[int, Any] = {}
        #: How many things keep the loop running of which libuv does not know.
        self._holds = 0
        #: Handles that C does not know, by kind: see PythonHandle.
        self._python_handles: dict[str, dict[Any, None]] = {"notifier": {}, "work": {}}
        self._pool: WorkerPool | None = None

        # The queue out, five items an operation: which, slot, value, and of a write its data and
        # callback. All come at once: between two calls a signal's handler may run, and raise.
        self._operations: list[Any] = []
        self._queue: Callable[[Operation], object] = self._operations.extend
        self._inline_limit = INLINE_WRITE_LIMIT
        if not buffer_writes:
            self._queue = self._cross
            self._inline_limit = -1

        #: Whether the queue is being handed to C: then what a signal's handler does must wait.
        self._crossing = False

        # Write callbacks, in the order in which C gets the writes: of those since the last pa_run,
        # and of those before it, which are being called.
        self._written: list[WrittenCallback] = []
        self._written_now: list[WrittenCallback] = []
        self._ready: list[Callable[[], object]] = []
        #: Streams that gather what is written, to encrypt it as one before the next crossing.
        self._gathering: deque[Any] = deque()
        self._threadsafe: deque[Callable[[], object]] = deque()
        #: Whether the loop has been woken since it last looked at what is in there.
        self._woken = False
        self._exit_callbacks: list[Callable[[], object]] = []
        self._stopping = False
        self._forked = False
        self._max_callback_time = 0.0
        # Reentrant: a signal handler of Python's may interrupt call_threadsafe and call it again.
        self._lock = threading.RLock()

        self._counters = ffi.new("pa_counters *")
        self._c_place = ffi.new("pa_loop **")
        self._records = memoryview(bytearray())
        self._started = monotonic_ns()
        self._ended: int | None = None
        self._thread: int | None = None
        self._wakeup: _SignalWakeup | None = None

    def _open(self) -> None:
        """Make what `_close` must end. Ctrl-C may come at any time: call it in a try statement."""
        self._thread = get_ident()
        _running_loops.add(self)
        _current.loop = self
        error = lib.pa_loop_new(self._counters, self._c_place)
        if error != 0:
            raise OSError(-error, message(error))
        self._c = self._c_place[0]
        self._arena = ffi.buffer(lib.pa_arena(self._c), lib.pa_arena_size())
        if threading.current_thread() is threading.main_thread():
            self._wakeup = _SignalWakeup()
            self._wakeup.open(self._c)

    # For any thread

    def call_threadsafe(self, fn: Callable[[], object]) -> None:
        """Run ``fn()`` in the loop's thread, in its next iteration; from any thread.

        Calls from one thread run in their order. They do not keep the loop running: see
        `make_notifier` for what does. Raises `EventLoopNotRunning` once the loop has ended.
        """
        if not callable(fn):
            raise TypeError("fn must be callable")
        with self._lock:
            if self._thread is None:
                raise self._not_running()
            self._threadsafe.append(fn)
            if not self._woken:
                try:
                    self._woken = True
                finally:  # Ctrl-C in between would let all later calls wait for another event
                    lib.pa_wakeup(self._c)

    def stats(self) -> Stats:
        """Return a snapshot of the counters; from any thread, also after the loop has ended."""
        counters = self._counters
        times = lib.pa_read_times(counters, not (self._ended or self._forked))
        now, idle = self._ended or times.now, times.idle
        handles = {name: counters.handles[kind] for kind, name in _HANDLE_KINDS.items()}
        handles["timer"] = self._deadlines.armed
        handles.update((kind, len(found)) for kind, found in self._python_handles.items())
        return Stats(
            incoming_tcp_connections=counters.incoming_tcp,
            outgoing_tcp_connections=counters.outgoing_tcp,
            incoming_pipe_connections=counters.incoming_pipe,
            outgoing_pipe_connections=counters.outgoing_pipe,
            open_dns_queries=counters.open_dns_queries,
            handles=handles,
            accepted=counters.accepted,
            connected=counters.connected,
            closed=counters.closed,
            accept_errors=counters.accept_errors,
            bytes_read=counters.bytes_read,
            bytes_written=counters.bytes_written,
            iterations=counters.iterations,
            events=counters.events,
            crossings=counters.crossings,
            idle_time=idle / 1e9,
            busy_time=max(0, now - self._started - idle) / 1e9,
            max_callback_time=self._max_callback_time,
        )

    # For the modules of the package

    def _check_thread(self) -> None:
        if self._thread != get_ident():
            self._refuse()

    def _refuse(self) -> None:
        if self._thread is None:
            raise self._not_running()
        raise RuntimeError(
            "called from a thread that is not the event loop's: only call_threadsafe, "
            "Notifier.trigger and stats may be"
        )

    def _not_running(self) -> EventLoopNotRunning:
        if self._forked:
            return EventLoopNotRunning(
                "the event loop was left to the parent by a fork: start a new one in the child"
            )
        return EventLoopNotRunning("the event loop has ended")

    def _cross(self, operation: Operation) -> None:
        """Perform an operation by itself: what ``_queue`` is when writes are not buffered."""
        kind, slot, value, _, _ = operation
        _CROSSINGS[kind](self._c, slot, value)

    def _submit(self) -> None:
        """Perform the pending operations now, before a rare one that crosses by itself."""
        if self._operations and not self._crossing:
            self._crossing = True
            try:
                lib.pa_submit(self._c, *self._take_operations())
            finally:
                self._crossing = False

    def _write_now(self, slot: int, data: Any, callback: WrittenCallback | None) -> None:
        """Perform the pending operations and a write, whose data is not copied, in one call."""
        size = len(data)
        if self._crossing:
            kind = lib.PA_WRITE if callback is None else lib.PA_WRITE_CALLBACK
            self._operations.extend((kind, slot, size, bytes(data), callback))
            return
        self._crossing = True
        try:
            if type(data) is not bytes:
                data = ffi.from_buffer(data)
            batch = self._take_operations() if self._operations else None
            if callback is not None:
                self._written.append(callback)
            if batch is None:
                lib.pa_write(self._c, slot, data, size, callback is not None)
            else:
                lib.pa_submit_and_write(self._c, *batch, slot, data, size, callback is not None)
        finally:
            self._crossing = False

    def _take_operations(self) -> tuple[Any, int, bytes]:
        """Empty the queue. The caller has set ``_crossing``, and hands the result to C."""
        operations = self._operations
        if not operations:
            return ffi.NULL, 0, b""
        batch = operations[:]
        size = len(batch)
        payload = b"".join(batch[3::5])
        callbacks = filter(None, batch[4::5])
        del batch[4::5], batch[3::4]
        integers = ffi.new(_INT64_ARRAY, batch)
        # Last, so that nothing is lost if a signal's handler has raised.
        del operations[:size]
        self._written += callbacks
        return integers, size // 5, payload

    def _hold(self) -> None:
        """Keep the loop running until `_release`, for what only Python knows of."""
        self._holds += 1
        if self._holds == 1:
            lib.pa_keep_alive(self._c, True)

    def _release(self) -> None:
        self._holds -= 1
        if self._holds == 0:
            lib.pa_keep_alive(self._c, False)

    def _register(self, slot: int, handle: Any) -> None:
        objects = self._objects
        while slot >= len(objects):
            objects.extend([None] * len(objects))
        objects[slot] = handle

    def _tell(self, owner: Owner, info: EventInfo, socket: Any = None) -> None:
        """Give ``info`` to the owner's ``event_cb``; without one, log it if it is an error."""
        if socket is not None:
            info.socket = socket  # type: ignore[attr-defined]
        event_cb = owner._event_cb
        if event_cb is not None:
            self._call_event_cb(event_cb, info)
        elif isinstance(info, EventError):
            logger.error("%s: %s: %s", owner, type(info).__name__, info)

    def _call_event_cb(self, event_cb: EventCallback, info: Exception) -> None:
        try:
            event_cb(info)
        except Exception:
            logger.exception("exception in an event_cb, which was told %r", info)

    def _app_error(self, error: Exception, owner: Owner | None) -> None:
        """Deal with what a callback of ``owner`` has raised, as ``catch_app_errors`` says."""
        policy = self._catch_app_errors
        if policy is False:
            raise error
        if policy is not True:
            self._call_event_cb(policy, error)
            return
        event_cb = owner._event_cb if owner is not None else None
        if event_cb is not None and self._send_errors_to_event_cb:
            self._call_event_cb(event_cb, error)
        else:
            logger.error("exception in a callback", exc_info=error)

    # Running

    def _map_records(self, count: int) -> memoryview:
        """Return C's array of events, which has grown to ``count`` records or more."""
        items = ffi.new("pa_event **")
        capacity = lib.pa_events(self._c, items)
        self._records = memoryview(ffi.buffer(items[0], capacity * _RECORD.size))
        return self._records

    def _run(self) -> None:
        """Run until nothing is left that could happen, or until the loop is told to stop."""
        c = self._c
        run = lib.pa_run
        operations, take_operations = self._operations, self._take_operations
        objects, requests, deadlines = self._objects, self._requests, self._deadlines
        arena, records = self._arena, self._records
        capacity = 0
        threadsafe, gathering = self._threadsafe, self._gathering
        clock = perf_counter
        owner: Any
        callback: Any

        while not self._stopping:
            if gathering:
                self._flush_gathered()
            self._crossing = True
            batch_out = take_operations()
            written: Any = ()
            if self._written:
                written = self._written_now = self._written
                self._written = []
            ready = self._ready
            self._woken = False  # before looking: a call that comes after it wakes the loop
            wait = not (written or ready or threadsafe or gathering)
            count = run(c, wait, deadlines.first(), deadlines.referenced, *batch_out)
            self._crossing = False
            alive = count >= 0
            if not alive:
                count = ~count

            if wait and not count and PYPY and not threadsafe:
                sleep(0.001)  # PyPy may have let another thread find the signal: let it say so

            last = clock()
            longest = self._max_callback_time
            if count:
                if count > capacity:
                    records = self._map_records(count)
                    capacity = len(records) // _RECORD.size
                batch = _RECORD.iter_unpack(records[: count * _RECORD.size])
                owner = None
                try:
                    while True:
                        try:
                            for kind, slot, value, data in batch:
                                if kind == READ:
                                    owner = objects[slot]
                                    if owner._state:
                                        owner._on_read(arena, value, data)
                                    else:
                                        owner._settings.read_cb(owner, arena[value:data])
                                elif kind == TIMER:
                                    self._run_timers(value)
                                    longest = self._max_callback_time
                                    last = clock()
                                    continue
                                elif kind == CLOSED:
                                    owner = objects[slot]
                                    objects[slot] = None
                                    if owner._state != STREAM_CLOSED:
                                        owner._on_closed()
                                    continue
                                elif kind == ACCEPTED:
                                    owner = objects[value]
                                    owner._on_accepted(slot)
                                elif kind == DONE:
                                    owner = requests.pop(value)
                                    owner._on_event(kind, value, data)
                                elif kind != NOTHING:
                                    owner = objects[slot]
                                    owner._on_event(kind, value, data)
                                now = clock()
                                if now - last > longest:
                                    longest = self._max_callback_time = now - last
                                last = now
                            break
                        except Exception as error:
                            self._max_callback_time = max(self._max_callback_time, clock() - last)
                            self._app_error(error, owner)
                            last = clock()
                finally:
                    # A traceback may keep this frame, and CPython 3.11's collector of garbage
                    # crashes on a memoryview of which something else there holds a buffer.
                    del batch

            if written:
                calls = iter(written)
                while True:
                    try:
                        for owner, callback in calls:
                            if not owner._state & STREAM_FAILED:
                                callback(owner)
                            now = clock()
                            if now - last > longest:
                                longest = self._max_callback_time = now - last
                            last = now
                        break
                    except Exception as error:
                        self._max_callback_time = max(self._max_callback_time, clock() - last)
                        self._app_error(error, owner)
                        last = clock()
                callback = None  # nothing of it is to outlive its call
                self._written_now = []
                written.clear()  # writes that the kernel has refused refer to their batch still

            if ready or threadsafe:
                self._run_ready()
            elif not (
                alive
                or count
                or written
                or operations
                or self._ready
                or threadsafe
                or gathering
                or deadlines.referenced
            ):
                return
        if self._forked:
            raise self._not_running()

    def _flush_gathered(self) -> None:
        # Counted: a stream with much to send takes turns with the others, and gathers again.
        for _ in range(len(self._gathering)):
            stream = self._gathering.popleft()
            try:
                stream._flush()
            except Exception as error:
                self._app_error(error, stream)

    def _run_timers(self, now: int) -> None:
        """Call the events that are due by ``now``, in milliseconds; when they are many, a part."""
        deadlines = self._deadlines
        deadlines.left_over = True
        deadlines.collect(now)
        left = FIRE_LIMIT
        clock = perf_counter
        last, longest = clock(), self._max_callback_time
        owner: Any = None
        while left and not self._stopping:
            try:
                bucket = deadlines.firing
                for owner in deadlines.rest:
                    if owner._bucket is not bucket:
                        continue  # it was disarmed
                    owner._bucket = None
                    deadlines.armed -= 1
                    if owner._options is not None and not owner._options[1]:
                        deadlines.unreferenced -= 1
                    left -= 1
                    owner._callback()
                    time = clock()
                    if time - last > longest:
                        longest = self._max_callback_time = time - last
                    last = time
                    if self._stopping or not left:
                        break
                else:
                    if not deadlines.take():
                        deadlines.left_over = False
                        break
            except Exception as error:
                self._max_callback_time = max(self._max_callback_time, clock() - last)
                self._app_error(error, owner)
                last = clock()
        self._counters.events += FIRE_LIMIT - left - 1  # C has counted one

    def _run_ready(self) -> None:
        """Run the calls that are ready now; those that they add wait for the next iteration."""
        ready, self._ready = self._ready, []
        for _ in range(len(self._threadsafe)):
            ready.append(self._threadsafe.popleft())
        for call in ready:
            if self._stopping:
                return
            started = perf_counter()
            try:
                call()
            except Exception as error:
                self._app_error(error, None)
            self._max_callback_time = max(self._max_callback_time, perf_counter() - started)

    def _stop(self) -> None:
        """Let the running callback be the last, also of the records that are being walked."""
        self._stopping = True
        self._records[:] = bytes(len(self._records))  # PA_NOTHING
        self._written_now.clear()

    # Ending

    def _close(self) -> None:
        """Close every handle, and free the loop. C does it, whatever Python has seen or not."""
        if self._forked:
            return
        self._records = memoryview(bytearray())  # C's array may have moved since it was mapped
        self._crossing = False
        try:
            for callback in self._exit_callbacks:
                try:
                    callback()
                except Exception:
                    logger.exception("exception in an exit callback of the event loop")
            self._flush_gathered()
            self._submit()  # what was written is tried once
        finally:
            with self._lock:
                self._thread = None
            self._stopping = True
            self._ended = monotonic_ns()
            _running_loops.discard(self)
            if _current.loop is self:
                _current.loop = None
            for handle in self._objects:
                if handle is not None:
                    handle._on_loop_end()
            self._objects.clear()
            for handles in self._python_handles.values():
                for handle in handles:
                    handle._on_loop_end()
                handles.clear()
            for event in self._deadlines.events():
                event._bucket = None
            self._deadlines = Deadlines()
            try:
                if self._c_place[0] != ffi.NULL and lib.pa_loop_close(self._c_place[0]) != 0:
                    warnings.warn(
                        "the event loop has left memory to a request that cannot be cancelled",
                        ResourceWarning,
                        stacklevel=2,
                    )
            finally:
                if self._wakeup is not None:
                    self._wakeup.close()
                if self._pool is not None:
                    self._pool.close()

    def _forget_after_fork(self) -> None:
        """In the child: never touch the loop again, which shares its epoll set with the parent."""
        self._stop()
        self._forked = True
        self._thread = None
        self._lock = threading.RLock()
        if self._wakeup is not None:
            self._wakeup.restore()


class _SignalWakeup:
    """Ends the poll's sleep when a signal arrives for which Python has a handler.

    libuv goes on polling when a signal interrupts it, so that Ctrl-C would wait for the next
    event: https://docs.python.org/3/library/signal.html#signal.set_wakeup_fd. Main thread only.
    """

    def __init__(self) -> None:
        self._receiver, self._sender = socket.socketpair()
        self._receiver.setblocking(False)
        self._sender.setblocking(False)
        self._before: int | None = None

    def open(self, c: Any) -> None:
        check(lib.pa_watch_signals(c, self._receiver.fileno()))
        self._before = signal.set_wakeup_fd(-1)
        signal.set_wakeup_fd(self._sender.fileno(), warn_on_full_buffer=False)

    def restore(self) -> None:
        before, self._before = self._before, None
        if before is not None:
            signal.set_wakeup_fd(before)

    def close(self) -> None:
        self.restore()
        self._receiver.close()
        self._sender.close()


def _after_fork_in_child() -> None:
    lib.pa_signals_after_fork(True)
    for loop in list(_running_loops):
        loop._forget_after_fork()
    _running_loops.clear()
    _current.loop = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=lib.pa_signals_before_fork,
        after_in_parent=lambda: lib.pa_signals_after_fork(False),
        after_in_child=_after_fork_in_child,
    )


def start_event_loop(
    start_fn: Callable[[], object],
    *,
    catch_app_errors: ErrorPolicy = False,
    send_errors_to_event_cb: bool = True,
    buffer_writes: bool = True,
) -> None:
    """Run ``start_fn()`` in a new event loop, then the loop, until nothing is left in it.

    ``catch_app_errors`` says what happens to an exception that a callback raises. ``False``: the
    loop stops, everything is closed, and this call raises it. ``True``: it goes to the
    ``event_cb`` of the operation whose callback it was, if it has one and
    ``send_errors_to_event_cb`` is set, else to the logger ``pyasync``, and the loop goes on. A
    function: it is called with the exception. `KeyboardInterrupt` and `SystemExit` always leave
    the loop.

    ``buffer_writes=False`` makes each write, close and timer a call into C of its own, in place of
    one an iteration for all: slower, but a profiler then shows each of them by its name.

    Raises `RuntimeError` if a loop runs in this thread already.

    >>> import pyasync
    >>> pyasync.start_event_loop(lambda: pyasync.delay(lambda: print("later"), time=0.01))
    later
    """
    if not callable(start_fn):
        raise TypeError("start_fn must be callable")
    loop = Loop(
        catch_app_errors=catch_app_errors,
        send_errors_to_event_cb=send_errors_to_event_cb,
        buffer_writes=buffer_writes,
    )
    try:
        loop._open()
        loop._ready.append(start_fn)
        loop._run()
    finally:
        loop._close()


@contextmanager
def event_loop(
    *,
    catch_app_errors: ErrorPolicy = False,
    send_errors_to_event_cb: bool = True,
    buffer_writes: bool = True,
) -> Iterator[Loop]:
    """Run the body of the ``with`` statement in a new event loop; at its end run the loop.

    The loop runs until nothing is left in it. If the body raises, everything is closed at once.
    The keywords are those of `start_event_loop`.

    >>> import pyasync
    >>> with pyasync.event_loop():
    ...     _ = pyasync.delay(lambda: print("later"), time=0.01)
    later
    """
    loop = Loop(
        catch_app_errors=catch_app_errors,
        send_errors_to_event_cb=send_errors_to_event_cb,
        buffer_writes=buffer_writes,
    )
    try:
        loop._open()
        yield loop
        loop._run()
    finally:
        loop._close()


def exit_event_loop() -> None:
    """Leave the loop: the running callback returns, what was written is tried once, no more.

    Nothing else is delivered, and everything is closed. Raises `EventLoopNotRunning`.
    """
    get_loop()._stop()


def current_loop() -> Loop | None:
    """Return the event loop that runs in this thread, or None."""
    return _current.loop


def get_loop() -> Loop:
    """Return the event loop that runs in this thread, or raise `EventLoopNotRunning`."""
    loop = _current.loop
    if loop is None:
        raise EventLoopNotRunning("no event loop is running in this thread")
    return loop


def add_event_loop_exit_callback(fn: Callable[[], object]) -> None:
    """Call ``fn()`` when the loop has run for the last time, before its handles are closed.

    What it raises is logged. Raises `EventLoopNotRunning`.
    """
    if not callable(fn):
        raise TypeError("fn must be callable")
    get_loop()._exit_callbacks.append(fn)


def call_soon(fn: Callable[[], object]) -> None:
    """Call ``fn()`` after the callbacks of this iteration, in the order of these calls.

    Calls that it makes to `call_soon` wait for the next iteration: I/O goes on between them.
    Raises `EventLoopNotRunning`.
    """
    if not callable(fn):
        raise TypeError("fn must be callable")
    get_loop()._ready.append(fn)


def stats() -> Stats:
    """Return a snapshot of the counters of this thread's loop. Raises `EventLoopNotRunning`."""
    return get_loop().stats()


def now() -> float:
    """Return the loop's time in seconds: a monotonic clock, read once an iteration (``uv_now``).

    Raises `EventLoopNotRunning`.
    """
    milliseconds: int = lib.pa_now(get_loop()._c)
    return milliseconds / 1000


def update_time() -> None:
    """Read the clock again, after a callback that has taken long (``uv_update_time``).

    Raises `EventLoopNotRunning`.
    """
    lib.pa_update_time(get_loop()._c)


def libuv_version() -> str:
    """Return the version of libuv that is in use, such as ``"1.44.2"``."""
    return str(ffi.string(lib.uv_version_string()).decode())


def dump_event_loop_status(file: TextIO | None = None) -> None:
    """Write a line for each handle to ``file`` (`sys.stdout`): type, active, referenced, closing.

    Raises `EventLoopNotRunning`.
    """
    loop = get_loop()
    loop._submit()
    file = file or sys.stdout
    size = sum(loop._counters.handles)
    statuses = ffi.new("pa_handle_status[]", max(size, 1))
    rows = [
        (_HANDLE_KINDS[status.kind], status.active, status.referenced, status.closing)
        for status in statuses[0 : lib.pa_handles(loop._c, statuses, size)]
    ]
    rows += [("timer", True, event.has_ref, False) for event in loop._deadlines.events()]
    rows += [
        (kind, handle._active, handle.has_ref, False)
        for kind, handles in loop._python_handles.items()
        for handle in handles
    ]
    for kind, active, referenced, closing in rows:
        state = " ".join(
            name if value else "-"
            for name, value in [
                ("active", active),
                ("referenced", referenced),
                ("closing", closing),
            ]
        )
        print(f"{kind:<12} {state}", file=file)


def due_in(seconds: float) -> int:
    """Return the time in ``seconds`` from now, in milliseconds of libuv's clock, rounded up."""
    if not 0 <= seconds <= MAX_TIME:
        raise ValueError(f"a time must be from 0 to {MAX_TIME:g} seconds, not {seconds!r}")
    return int((monotonic() + seconds) * 1000) + 1
