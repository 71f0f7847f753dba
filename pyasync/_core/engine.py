"""The event loop's core: libuv's loop, the two queues between it and Python, and its handles.

Work crosses between Python and libuv in two queues, once an iteration. What callbacks ask for
(writes, closes, timers) gathers in a list, and travels as one array of integers and one joined
payload in a single call, `pa_run`; the same call runs an iteration of libuv, whose C callbacks
leave a record for each event. Then `Engine.dispatch` walks these records, a batch, and calls the
objects that they are for, as plain Python calls: no callback runs inside libuv, so each may make
any call, and what it raises is an exception like any other.

C knows a handle by its slot, a small number. ``Engine.objects`` has the Python object of each slot.
The contract of such an object:

``_state``
    Zero: data that is read goes straight to ``_options.read_cb(object, data)``, with no call in
    between. Anything else: to ``_on_read``.
``_on_read(arena, start, end)``
    ``arena[start:end]`` is what was read. It holds until the next iteration, so copy it: a slice
    is a copy.
``_on_event(kind, value, data)``
    Any other record: see ``enum pa_event_kind`` in csrc/loop.cdef.h.
``_on_accepted(slot, address)``
    Of a listener: a connection has been accepted, and the slot is to be given an object. The peer's
    address is where `Engine.unpack_address` finds it in this iteration.
``_on_closed()``
    The handle is gone, and its slot is about to be another's. Not called if ``_state`` is just
    `CLOSED`: a plain close costs no call.
``_on_loop_end()``
    The loop has ended, and the handle with it. May be called twice.

An API on top of this subclasses `Engine`: it says what happens to exceptions (`on_error`), when the
loop ends, and calls `poll`, `dispatch` and `run_ready` in turn between `enter` and `leave`.
"""

from __future__ import annotations

import sys
import warnings
from collections import deque
from collections.abc import Callable
from struct import Struct, pack
from threading import current_thread, get_ident, main_thread
from time import monotonic_ns, perf_counter, sleep
from typing import Any

from pyasync._core.addresses import PACKED_MAX, unpack_address
from pyasync._core.deadlines import Deadlines, due_in
from pyasync._core.wakeup import SignalWakeup, Wakeup, open_engines
from pyasync._ffi import ffi, lib
from pyasync.counters import Stats
from pyasync.errors import EventLoopNotRunning, message

#: Which, slot, value; the data of a write, and its stream and callback.
Operation = tuple[int, int, int, Any, Any]
WriteCall = tuple[Any, Callable[[Any], object]]

PYPY = sys.implementation.name == "pypy"

#: Up to this size a write is joined with the iteration's others; a larger one crosses at once,
#: from its own memory.
INLINE_WRITE_LIMIT = 8192

# enum pa_event_kind, as constants that `dispatch` can compare with.
READ = lib.PA_READ
TIMER = lib.PA_TIMER
ACCEPTED = lib.PA_ACCEPTED
CLOSED_RECORD = lib.PA_CLOSED
DONE = lib.PA_DONE

# What the engine must know of `_state`: all of it when a stream has closed and nothing else has
# happened to it, and the flag of one that failed, whose write callbacks are not called.
CLOSED = 1
FAILED = 16

#: How each operation is named when it crosses by itself.
_CROSSINGS = {
    lib.PA_CLOSE: lib.pa_close,
    lib.PA_SHUTDOWN: lib.pa_shutdown,
    lib.PA_READ_START: lib.pa_read_start,
    lib.PA_READ_STOP: lib.pa_read_stop,
    lib.PA_ACCEPT: lib.pa_accept,
}

HANDLE_KINDS = {
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
_RECORD_SIZE = _RECORD.size
_iter_records = _RECORD.iter_unpack
_NO_OPERATIONS = (b"", 0, b"")
# What Engine.crossing says beside 0.
SUBMITTING = 1
POLLING = 2


class Engine:
    """An event loop without an API. It belongs to the thread that is between `enter` and `leave`.

    Only `call_threadsafe` and `stats` are for any thread.
    """

    __slots__ = (
        "__weakref__",
        "_alive",
        "_arena",
        "_batch",
        "_buffer_writes",
        "_capacity",
        "_counted",
        "_crossings",
        "_ended",
        "_in_flight",
        "_pa_run",
        "_place",
        "_records",
        "_signals",
        "_started",
        "_wakeup",
        "_write_calls",
        "_written",
        "c",
        "closed",
        "counters",
        "crossing",
        "deadlines",
        "forked",
        "inline_limit",
        "max_callback_time",
        "objects",
        "operations",
        "python_handles",
        "queue",
        "ready",
        "requests",
        "stopping",
        "thread",
        "to_encrypt",
        "written_now",
    )

    def __init__(self, *, buffer_writes: bool = True) -> None:
        #: libuv's loop, after `open`.
        self.c: Any = None
        #: The thread that runs the loop, between `enter` and `leave`.
        self.thread: int | None = None
        self.closed = False
        self.forked = False
        #: Set by an API that wants no more callbacks to be called: see `drop`.
        self.stopping = False

        #: Handles by slot.
        self.objects: list[Any] = [None] * 64
        self.deadlines = Deadlines()
        #: Requests under way in libuv's pool, by address.
        self.requests: dict[int, Any] = {}
        #: Handles that C does not know, by kind: see PythonHandle.
        self.python_handles: dict[str, dict[Any, None]] = {"notifier": {}, "work": {}}
        #: Calls for the end of this iteration.
        self.ready: list[Callable[[], object]] = []
        #: Streams that gather what is written, to encrypt it as one before the next crossing.
        self.to_encrypt: deque[Any] = deque()
        self.max_callback_time = 0.0

        # The queue out, five items an operation: which, slot, value, and of a write its data and
        # callback. All five come in one call, because a signal handler may run between two.
        self.operations: list[Any] = []
        self.queue: Callable[[Operation], object] = self.operations.extend
        self.inline_limit = INLINE_WRITE_LIMIT
        self._buffer_writes = buffer_writes
        if not buffer_writes:
            self.queue = self._cross
            self.inline_limit = -1
        #: Sizes of the pending writes as far as they have been counted: see `pending_size`.
        self._counted: tuple[int, int, dict[int, tuple[int, int]]] | None = None

        # Crossings. An exception, of a signal handler, may come before C has performed one or after
        # it: `_recover` finds out which, and nothing is lost or done twice.
        #: What is being handed to C: nothing (0), or what follows. Then the operations of a signal
        #: handler must wait.
        self.crossing = 0
        #: How many items of the queue C is being given, and the callbacks of writes; or nothing.
        self._in_flight: Any = ()
        #: How many crossings C has performed, as far as Python knows.
        self._crossings = 0

        # Callbacks of writes, in the order in which C gets the writes: of those since the last
        # pa_run, and of those before it, which are being called.
        self._written: list[WriteCall] = []
        self.written_now: list[WriteCall] = []

        # What poll has left for dispatch: a number of records, as pa_run returns it, then their
        # iterator, and None when all is done. So an exception that leaves the walk loses nothing.
        self._batch: Any = None
        self._write_calls: Any = None
        self._alive = True

        self._wakeup = Wakeup()
        self._signals: SignalWakeup | None = None
        self.counters = ffi.new("pa_counters *")
        self._place = ffi.new("pa_loop **")
        self._records: Any = b""
        self._capacity = 0
        self._started = monotonic_ns()
        self._ended: int | None = None

    # Beginning and end

    def open(self) -> None:
        """Make what `close` must end. Ctrl-C may come at any time: call it in a try statement."""
        open_engines.add(self)
        error = lib.pa_loop_new(self.counters, self._place)
        if error != 0:
            raise OSError(-error, message(error))
        self.c = self._place[0]
        self._pa_run = lib.pa_run  # looked up once: an attribute of lib costs as much as a call
        self._arena = ffi.buffer(lib.pa_arena(self.c), lib.pa_arena_size())

    def enter(self) -> None:
        """Let the loop belong to this thread, and its signals wake the poll."""
        self.thread = get_ident()
        if current_thread() is main_thread():
            if self._signals is None:
                self._signals = SignalWakeup(self.c)
            self._signals.install()

    def leave(self) -> None:
        """Undo `enter`. The loop may be entered again, also in another thread."""
        self.thread = None
        if self._signals is not None:
            self._signals.restore()

    def close(self) -> None:
        """Close every handle, and free the loop. C does it, whatever Python has seen or not.

        What was written is tried once. When an exception interrupts it, a second call goes on
        where the first has stopped: an interrupt is no reason to leave a loop half closed.
        """
        if self.forked or self._ended is not None:
            return
        if self.c is not None and not self.closed:
            self._recover()
            self._flush_encryption()
            self.submit()
        self._wakeup.close(self)
        self.thread = None
        self.stopping = True
        for handle in [*self.objects, *(h for kind in self.python_handles.values() for h in kind)]:
            if handle is not None:
                handle._on_loop_end()
        for timer in self.deadlines.timers():
            timer._bucket = None
        if lib.pa_loop_close(self._place) != 0:
            warnings.warn(
                "the event loop has left memory to a request that cannot be cancelled",
                ResourceWarning,
                stacklevel=2,
            )
        if self._signals is not None:
            self._signals.close()
        self.objects.clear()
        for handles in self.python_handles.values():
            handles.clear()
        self.deadlines = Deadlines()
        self._ended = monotonic_ns()
        open_engines.discard(self)

    def forget_after_fork(self) -> None:
        """In the child: never touch the loop again, which shares its epoll set with the parent."""
        self.forked = self.closed = True
        self.drop()
        self.thread = None
        self._wakeup.forget_after_fork()
        if self._signals is not None:
            self._signals.restore()

    # For any thread

    def call_threadsafe(self, fn: Callable[[], object]) -> None:
        """Run ``fn()`` in the loop's thread, in its next iteration; from any thread.

        Calls from one thread run in their order. They do not keep the loop running: see
        `make_notifier` for what does. Raises `EventLoopNotRunning` once the loop has ended.
        """
        if not callable(fn):
            raise TypeError("fn must be callable")
        self._wakeup.call(self, fn)

    def stats(self) -> Stats:
        """Return a snapshot of the counters; from any thread, also after the loop has ended."""
        counters = self.counters
        times = lib.pa_read_times(counters, not (self._ended or self.forked))
        now, idle = self._ended or times.now, times.idle
        handles = {name: counters.handles[kind] for kind, name in HANDLE_KINDS.items()}
        handles["timer"] = self.deadlines.armed
        handles.update((kind, len(found)) for kind, found in self.python_handles.items())
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
            max_callback_time=self.max_callback_time,
        )

    # What the owner of the engine says

    def on_error(self, error: Exception, owner: Any) -> None:
        """Deal with what a callback has raised; what this raises leaves `dispatch`.

        ``owner`` is the handle, timer or request whose callback it was, or None.
        """
        raise error

    # Threads

    def check_thread(self) -> None:
        """Raise unless this thread runs the loop."""
        if self.thread != get_ident():
            self.refuse()

    def refuse(self) -> None:
        """Raise what a call from a wrong thread, or outside the loop's life, raises."""
        if self.thread is None:
            raise self.not_running()
        raise RuntimeError(
            "called from a thread that is not the event loop's: only call_threadsafe, "
            "Notifier.trigger and stats may be"
        )

    def not_running(self) -> EventLoopNotRunning:
        """Return the error for a call that needs the loop to run."""
        if self.forked:
            return EventLoopNotRunning(
                "the event loop was left to the parent by a fork: start a new one in the child"
            )
        return EventLoopNotRunning("the event loop has ended")

    def keep_alive(self) -> None:
        """Keep the loop running until `let_end`, for something that only Python knows of."""
        self._wakeup.keep_alive(self)

    def let_end(self) -> None:
        """Undo one `keep_alive`."""
        self._wakeup.let_end(self)

    # Operations

    def register(self, slot: int, handle: Any) -> None:
        """Let the handle get the records of its slot."""
        objects = self.objects
        while slot >= len(objects):
            objects.extend([None] * len(objects))
        objects[slot] = handle

    def unpack_address(self, start: int) -> Any:
        """Return a peer's address, which the arena holds in this iteration; None for -1."""
        return None if start < 0 else unpack_address(self._arena[start : start + PACKED_MAX])

    def _cross(self, operation: Operation) -> None:
        """Perform an operation by itself: what ``queue`` is when writes are not buffered."""
        kind, slot, value, _, _ = operation
        _CROSSINGS[kind](self.c, slot, value)

    def submit(self) -> None:
        """Perform the pending operations now, before a rare one that crosses by itself."""
        if self.operations and not self.crossing:
            try:
                self.crossing = SUBMITTING
                lib.pa_submit(self.c, *self._pack_operations())
                self._performed()
            except BaseException:
                self._recover()
                raise

    def write_now(self, slot: int, data: Any, callback: WriteCall | None) -> int:
        """Perform the pending operations and a write, whose data is not copied, in one call.

        Returns the size of the stream's blocked writes, or the error of one that has failed; 0 if
        the write has to wait, because a signal handler makes it in the middle of a crossing.
        """
        size = len(data)
        if self.crossing:
            kind = lib.PA_WRITE if callback is None else lib.PA_WRITE_CALLBACK
            self.operations.extend((kind, slot, size, bytes(data), callback))
            return 0
        try:
            self.crossing = SUBMITTING
            if type(data) is not bytes:
                data = ffi.from_buffer(data)
            if self.operations:
                batch = self._pack_operations(callback)
                state: int = lib.pa_submit_and_write(
                    self.c, *batch, slot, data, size, callback is not None
                )
            else:
                if callback is not None:
                    self._in_flight = (0, [callback])
                state = lib.pa_write(self.c, slot, data, size, callback is not None)
            self._performed()
            return state
        except BaseException:
            self._recover()
            raise

    def _pack_operations(self, callback: WriteCall | None = None) -> tuple[bytes, int, bytes]:
        """Return the pending operations as C takes them. They stay in the queue until it has."""
        batch = self.operations[:]
        size = len(batch)
        payload = b"".join(batch[3::5])
        callbacks = [*filter(None, batch[4::5])]
        if callback is not None:
            callbacks.append(callback)
        del batch[4::5], batch[3::4]
        self._in_flight = (size, callbacks)
        return pack(f"{len(batch)}q", *batch), size // 5, payload

    def _performed(self) -> None:
        """Take notice that C has performed a crossing.

        Each line may be the last before an exception, and is not done twice then: see `_recover`.
        """
        if self._in_flight:
            size, callbacks = self._in_flight
            if callbacks:
                self._written, self._in_flight = self._written + callbacks, (size, ())
            self.operations[:size] = self._in_flight = ()
        if self.crossing == POLLING and self._written:
            self._alive = True
            self.written_now = self._written
            self._write_calls, self._written = iter(self._written), []
        self._crossings += 1
        self.crossing = 0

    def _recover(self) -> None:
        """Find out whether C has performed the crossing that an exception has interrupted.

        If it has, the operations must not be performed again, and the records that a poll has left
        are still to be dispatched. If not, the operations are in the queue still.
        """
        if not self.crossing:
            return
        if lib.pa_crossings(self.c) == self._crossings:
            self._in_flight = ()
            self.crossing = 0
            return
        if self.crossing == POLLING and self._batch is None:
            self._batch, self._alive = lib.pa_event_count(self.c), True
        self._performed()

    def pending_size(self, slot: int) -> tuple[int, int]:
        """Return how many bytes of the slot's writes are pending, and in how many writes.

        Each pending operation is counted once for all who ask, so that asking after each write is
        cheap however many there are.
        """
        # Taken, because a signal handler may ask too: then it counts anew.
        counted, self._counted = self._counted, None
        if counted is None or counted[0] != self._crossings:
            counted = (self._crossings, 0, {})
        crossings, start, sizes = counted
        operations = self.operations
        end = len(operations)
        for index in range(start, end, 5):
            kind, owner, size = operations[index : index + 3]
            if kind == lib.PA_WRITE or kind == lib.PA_WRITE_CALLBACK:
                before = sizes.get(owner, (0, 0))
                sizes[owner] = (before[0] + size, before[1] + 1)
        self._counted = (crossings, end, sizes)
        return sizes.get(slot, (0, 0))

    # One iteration

    def poll(self, timeout: float | None = None) -> None:
        """Perform the pending operations, and run an iteration of libuv.

        It sleeps until something happens, the first timer is due, or ``timeout`` seconds have
        passed; not at all when there is something to do. What it finds is for `dispatch`. While a
        batch is not dispatched to its end, because an exception has left the walk, it does nothing.
        """
        if self._batch is not None:
            return
        if self.to_encrypt:
            self._flush_encryption()
        wakeup, deadlines = self._wakeup, self.deadlines
        try:
            self.crossing = POLLING
            operations = self._pack_operations() if self.operations else _NO_OPERATIONS
            wakeup.woken = False  # before looking: a call that comes after it wakes the loop
            wait = not (
                self.ready
                or self._written
                or (self._in_flight and self._in_flight[1])
                or wakeup.calls
                or self.to_encrypt
            )
            due = deadlines.first()
            if timeout is not None:
                wait = wait and timeout > 0
                limit = due_in(timeout)
                due = limit if due < 0 else min(due, limit)
            count = self._batch = self._pa_run(
                self.c, wait, due, deadlines.armed > deadlines.unreferenced, *operations
            )
            self._alive = count != -1  # the complement of 0: nothing is referenced, and no event
            if self._in_flight or self._written:
                self._performed()
            else:
                self._crossings += 1
                self.crossing = 0
        except BaseException:
            self._recover()
            raise
        if PYPY and wait and count in (0, -1) and not wakeup.calls:
            sleep(0.001)  # PyPy may have let another thread find the signal: let it say so

    def _map_records(self) -> None:
        """Find C's array of records, which moves when it grows."""
        items = ffi.new("pa_event **")
        capacity = lib.pa_events(self.c, items)
        self._records = ffi.buffer(items[0], capacity * _RECORD.size)
        self._capacity = capacity

    def _flush_encryption(self) -> None:
        # Counted: a stream with much to send takes turns with the others, and gathers again.
        for _ in range(len(self.to_encrypt)):
            stream = self.to_encrypt.popleft()
            try:
                stream._flush()
            except Exception as error:
                self.on_error(error, stream)

    def dispatch(self) -> None:
        """Call the objects that the batch is for, then the callbacks of writes.

        What a callback raises goes to `on_error`. When that raises, or something raises that is no
        `Exception`, the batch is kept, and the next call goes on behind that callback.
        """
        batch = self._batch
        if type(batch) is int:
            count = batch if batch >= 0 else ~batch
            if count:
                if count > self._capacity:
                    self._map_records()
                # A copy, so that the walk uses no memory of C.
                batch = self._batch = _iter_records(self._records[: count * _RECORD_SIZE])
            else:
                batch = self._batch = None
            if self.stopping:  # a signal handler has called `drop` before there was this to drop
                self.drop()
        if batch is not None:
            owner: Any = None
            clock = perf_counter
            last = clock()
            longest = self.max_callback_time
            objects, arena = self.objects, self._arena
            while True:
                try:
                    for kind, slot, value, data in batch:
                        if kind == READ:
                            owner = objects[slot]
                            if owner._state:
                                owner._on_read(arena, value, data)
                            else:
                                owner._options.read_cb(owner, arena[value:data])
                        elif kind == TIMER:
                            self.deadlines.fire(value, self)
                            longest = self.max_callback_time
                            last = clock()
                            continue
                        elif kind == CLOSED_RECORD:
                            owner = objects[slot]
                            objects[slot] = None
                            if owner._state != CLOSED:
                                owner._on_closed()
                            continue
                        elif kind == ACCEPTED:
                            owner = objects[value]
                            owner._on_accepted(slot, data)
                        elif kind == DONE:
                            owner = self.requests.pop(value)
                            owner._on_event(kind, value, data)
                        else:
                            owner = objects[slot]
                            owner._on_event(kind, value, data)
                        now = clock()
                        if now - last > longest:
                            longest = self.max_callback_time = now - last
                        last = now
                    break
                except Exception as error:
                    self.max_callback_time = max(self.max_callback_time, clock() - last)
                    self.on_error(error, owner)
                    last, longest = clock(), self.max_callback_time
        if self._write_calls is not None:
            self._call_written()
        self._batch = None

    def _call_written(self) -> None:
        """Call the callbacks of the writes that the kernel has taken."""
        clock = perf_counter
        last = clock()
        longest = self.max_callback_time
        calls = self._write_calls
        owner: Any = None
        while True:
            try:
                for owner, callback in calls:
                    if not owner._state & FAILED:
                        callback(owner)
                    now = clock()
                    if now - last > longest:
                        longest = self.max_callback_time = now - last
                    last = now
                break
            except Exception as error:
                self.max_callback_time = max(self.max_callback_time, clock() - last)
                self.on_error(error, owner)
                last, longest = clock(), self.max_callback_time
        written, self.written_now = self.written_now, []
        self._write_calls = None
        written.clear()  # blocked writes refer to their batch still

    def run_ready(self) -> None:
        """Run the calls that are ready now; those that they add wait for the next iteration."""
        calls, self.ready = self.ready, []
        for _ in range(len(self._wakeup.calls)):
            calls.append(self._wakeup.calls.popleft())
        position = 0
        try:
            for call in calls:
                if self.stopping:
                    return
                position += 1
                started = perf_counter()
                try:
                    call()
                except Exception as error:
                    self.on_error(error, None)
                self.max_callback_time = max(self.max_callback_time, perf_counter() - started)
        finally:
            if position < len(calls):
                self.ready = calls[position:] + self.ready

    @property
    def has_ready(self) -> bool:
        """Whether there is something for `run_ready` to do."""
        return bool(self.ready or self._wakeup.calls)

    @property
    def alive(self) -> bool:
        """Whether something can still happen in the loop."""
        return bool(
            self._alive
            or self.operations
            or self.has_ready
            or self.to_encrypt
            or self.deadlines.referenced
        )

    def drop(self) -> None:
        """Let the running callback be the last: forget what the batch still has."""
        self.stopping = True
        if self._batch.__class__ is int:
            self._batch = 0
        else:
            deque(self._batch or (), maxlen=0)
        deque(self._write_calls or (), maxlen=0)
