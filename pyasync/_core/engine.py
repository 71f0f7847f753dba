"""The event loop's core: libuv's loop, the two queues between it and Python, and its handles.

Two queues join Python and libuv, and cross once an iteration. The queue out: operations (writes,
closes, shutdowns) gather in a list, and travel as one array of integers and one joined payload in a
single call, `pa_run`. The same call runs an iteration of libuv, whose C callbacks append a record
for each event. The queue in: `Engine.dispatch` walks the records of an iteration, a *batch*, and
calls the object of each. These are plain Python calls, and no callback runs inside libuv. So a
callback may make any call, and its exception is like any other.

A *crossing* is a call from Python into C.

C knows a handle by its *slot*, a small number. ``Engine.objects`` has the Python object of each
slot. The contract of such an object:

``_state``
    Zero: data goes straight to ``_options.read_cb(object, data)``, with no call in between.
    Anything else: to ``_on_read``.
``_on_read(arena, start, end)``
    The data is ``arena[start:end]``. It is good until the next iteration, so copy it: a slice is
    a copy.
``_on_event(kind, value, data)``
    Any other record: see ``enum pa_event_kind`` in csrc/loop.cdef.h.
``_on_accepted(slot, address)``
    Of a listener: a connection has been accepted, and its slot needs an object. ``address`` is the
    peer's, for `Engine.unpack_address`.
``_on_closed()``
    The handle is gone, and the next iteration may give its slot to another. Not called if
    ``_state`` equals `CLOSED`: a plain close costs no call.
``_on_loop_end()``
    The loop has ended, and the handle with it. May be called twice.

An API subclasses `Engine`: it decides about exceptions (`on_error`) and the end of the loop, and
calls `poll`, `dispatch` and `run_ready` in turn between `enter` and `leave`.

A signal handler of Python's may run between any two bytecodes. It may raise, as Ctrl-C does, and it
may write, close or arm timers. So a change of the queues is one call or one assignment where it
can be, and otherwise can be repaired: see `Engine._recover`.
"""

from __future__ import annotations

import errno
import os
import sys
import warnings
from collections import deque
from collections.abc import Callable, Collection
from struct import Struct, pack
from threading import current_thread, get_ident, main_thread
from time import perf_counter, sleep
from typing import Any

from pyasync._core.addresses import PACKED_MAX, Address, unpack_address
from pyasync._core.arguments import require_callable
from pyasync._core.callback_names import name_of, record_callback
from pyasync._core.deadlines import Deadlines, due_in
from pyasync._core.wakeup import SignalWakeup, Wakeup, forget, remember
from pyasync._ffi import ffi, lib
from pyasync.counters import Stats
from pyasync.errors import EventLoopNotRunning, message

#: Kind (enum pa_operation), slot, value; and of a write its data, and its `WriteCall` or None.
Operation = tuple[int, int, int, Any, Any]
#: A handle, and the ``write_cb`` that is called with it.
WriteCall = tuple[Any, Callable[[Any], object]]

#: Called with the engine, seconds, and the callback's name.
SlowCallback = Callable[[Any, float, str], object]

PYPY = sys.implementation.name == "pypy"

#: A write of up to this size, in bytes, is joined with the iteration's others. A larger one crosses
#: at once, from its own memory and so without a copy.
INLINE_WRITE_LIMIT = 8192

# Of enum pa_event_kind. As globals, because `dispatch` compares each record with them, and an
# attribute of `lib` costs more.
READ = lib.PA_READ
TIMER = lib.PA_TIMER
ACCEPTED = lib.PA_ACCEPTED
CLOSED_RECORD = lib.PA_CLOSED
DONE = lib.PA_DONE

# The flags of a stream's `_state` that the engine knows; the others are in `pyasync._core.stream`.
CLOSED = 1  # the whole state of a stream that was closed, with nothing else special about it
FAILED = 16  # write callbacks of a failed stream are not called

#: The C function of each operation, for ``buffer_writes=False``: profilers show it by its name.
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
_pack_one = Struct("3q").pack
# Values of Engine.crossing; 0: Python is outside C.
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
        "long_callback_limit",
        "longest_callback",
        "max_callback_time",
        "objects",
        "operations",
        "pending",
        "python_handles",
        "queue",
        "ready",
        "requests",
        "slow_callback_watchers",
        "slow_callbacks",
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
        #: No more callbacks are to be called: see `drop`.
        self.stopping = False

        #: Handles by slot. They are referenced here until their closed record, or an open handle
        #: that the application has dropped would lose its callbacks.
        self.objects: list[Any] = [None] * 64
        self.deadlines = Deadlines()
        #: Requests under way in libuv's pool, by address.
        self.requests: dict[int, Any] = {}
        #: Handles that C does not know, by kind: see PythonHandle.
        self.python_handles: dict[str, dict[Any, None]] = {"notifier": {}, "work": {}}
        #: Calls to make after this iteration's records and write callbacks.
        self.ready: list[Callable[[], object]] = []
        #: A second queue of calls, which an API runs by itself: `poll` does not sleep while it has
        #: any. Another thread that adds to it calls `Wakeup.wake` after that.
        self.pending: Collection[Any] = ()
        #: TLS streams with deferred writes, which are encrypted together before the next crossing.
        self.to_encrypt: deque[Any] = deque()
        self.max_callback_time = 0.0
        #: The name of the callback that took so long.
        self.longest_callback: str | None = None
        #: A callback that takes more seconds is looked at: see `note_long_callback`.
        self.long_callback_limit = 0.0
        #: Who is told of slow callbacks: from how many seconds on, and the function to call.
        self.slow_callback_watchers: list[tuple[float, SlowCallback]] = []
        self.slow_callbacks = 0

        # The queue out, flat: the five items of each `Operation`. They are added by one call of
        # extend, because a signal handler may run between two calls, and add its own in between.
        self.operations: list[Any] = []
        self.queue: Callable[[Operation], object] = self.operations.extend
        self.inline_limit = INLINE_WRITE_LIMIT
        if not buffer_writes:
            self.queue = self._cross
            self.inline_limit = -1
        #: A cache of `pending_size`: (crossings, operations counted, sizes by slot).
        self._counted: tuple[int, int, dict[int, tuple[int, int]]] | None = None

        # A signal handler's exception may come before C has performed a crossing or after it.
        # `_recover` finds out which, so that no operation is lost or performed twice.
        #: The crossing that has begun: 0 (none), SUBMITTING or POLLING. Meanwhile the operations
        #: of a signal handler stay in the queue, because a second crossing would send the first's
        #: again.
        self.crossing = 0
        #: Of that crossing: how many items of the queue it takes, and its write callbacks; or ().
        self._in_flight: Any = ()
        #: How many crossings C has performed, as far as Python knows: see pa_crossings.
        self._crossings = 0

        # Write callbacks, in the order in which C gets the writes. C names a callback by its index
        # here (PA_CALLBACK_WAITS), so each write with a callback must have exactly one entry.
        #: Of the writes since the last pa_run.
        self._written: list[WriteCall] = []
        #: Of the writes before it: they are called after the records.
        self.written_now: list[WriteCall] = []

        #: The batch that poll has left for dispatch: its number of records as pa_run returns it,
        #: then their iterator, then None. An exception that leaves the walk leaves the iterator,
        #: and the next dispatch goes on with it.
        self._batch: Any = None
        #: The iterator over ``written_now``, kept for the same reason.
        self._write_calls: Any = None
        self._alive = True

        self._wakeup = Wakeup()
        #: Made when the main thread enters the loop first.
        self._signals: SignalWakeup | None = None
        #: Python's memory, because `stats` may be called when C has freed the loop.
        self.counters = ffi.new("pa_counters *")
        self._place = ffi.new("pa_loop **")
        self._records: Any = b""
        self._started = lib.uv_hrtime()
        self._ended: int | None = None

    # Beginning and end

    def open(self) -> None:
        """Make libuv's loop. Call it in a try statement with `close`, as Ctrl-C may come inside."""
        # First: pa_loop_new makes an epoll set, which the child of a fork must not touch.
        remember(self)
        # C stores the loop by itself: Ctrl-C between its result and an assignment would lose it.
        error = lib.pa_loop_new(self.counters, self._place)
        if error == -errno.EBADF:
            raise OSError(
                errno.EBADF,
                "a pipe that libuv keeps for the whole process was closed, for example by "
                "os.closerange: close descriptors before the first event loop is started",
            )
        if error != 0:
            raise OSError(-error, message(error))
        self.c = self._place[0]
        self._pa_run = lib.pa_run  # looked up once: an attribute of lib costs as much as a call
        self._arena = ffi.buffer(lib.pa_arena(self.c), lib.pa_arena_size())

    def enter(self) -> None:
        """Let the loop belong to this thread; in the main thread, let signals wake the poll."""
        self.thread = get_ident()
        if current_thread() is main_thread():
            self.watch_signals()

    def leave(self) -> None:
        """Undo `enter`. The loop may be entered again, also in another thread."""
        self.thread = None
        self.release_signals()

    def watch_signals(self) -> None:
        """Let signals wake the poll, until `release_signals`. In the main thread only."""
        if self._signals is None:
            self._signals = SignalWakeup()
        self._signals.install(self.c)

    def release_signals(self) -> None:
        """Undo `watch_signals` at the end of a run. An API may put that off until `close`."""
        if self._signals is not None:
            self._signals.restore()

    def close(self) -> None:
        """Close every handle, and free the loop.

        C walks its own handles, because Ctrl-C may have kept Python from seeing some. Pending
        writes are tried once. When an exception interrupts this, a second call goes on: each step
        may be repeated.
        """
        if self.forked or self._ended is not None:
            return
        if self.c is not None and not self.closed:
            self._recover()  # an exception may have left a crossing that is not accounted for
            self._flush_encryption()
            self.submit()
        self._wakeup.close(self)  # before the memory that a wake-up uses is freed
        self.thread = None
        self.stopping = True
        # Copies, because a signal handler or a __del__ may change them in the middle.
        for handle in [*self.objects, *(h for kind in self.python_handles.values() for h in kind)]:
            if handle is not None:
                handle._on_loop_end()
        for timer in self.deadlines.timers():
            timer._bucket = None  # not armed any more, as the application may ask
        if self._signals is not None:
            self._signals.restore()
        # C sets the place to NULL: a repeated call does nothing.
        if lib.pa_loop_close(self._place) != 0:
            warnings.warn(
                "the event loop has left memory to a request that cannot be cancelled",
                ResourceWarning,
                stacklevel=2,
            )
        self.objects.clear()
        for handles in self.python_handles.values():
            handles.clear()
        self._wakeup.holds.clear()
        self.deadlines = Deadlines()
        self._records, self._batch, self._write_calls = b"", None, None  # C's memory is gone
        forget(id(self))
        self._ended = lib.uv_hrtime()

    def forget_after_fork(self) -> None:
        """In the child of a fork: never touch the loop again.

        Its epoll set is the parent's as well (epoll(7)), so that closing a handle here would stop
        the parent from polling it.
        """
        self.forked = self.closed = True
        self.drop()
        self.thread = None
        self._wakeup.forget_after_fork()
        if self._signals is not None:
            self._signals.restore()

    # For any thread

    def call_threadsafe(self, fn: Callable[[], object]) -> None:
        """Run ``fn()`` in the loop's thread, in its next iteration; from any thread.

        Calls from one thread run in their order. They do not keep the loop running; a notifier
        does: see `make_notifier`. While more than 1,000 wait, a call lets it run first. Raises
        `TypeError`, and `EventLoopNotRunning` once the loop has ended.
        """
        require_callable("fn", fn)
        self._wakeup.call(self, fn)

    def stats(self) -> Stats:
        """Return a snapshot of the counters; from any thread, also after the loop has ended."""
        times = lib.pa_read_times(self.counters, not (self._ended or self.forked))
        counters = ffi.new("pa_counters *")
        lib.pa_copy_counters(self.counters, counters)
        # The loop may end between the two lines, or have ended after the first look: the earlier of
        # the two times is the one that belongs to the idle time.
        now = times.now if self._ended is None else min(times.now, self._ended)
        idle = times.idle
        handles = {name: counters.handles[kind] for kind, name in HANDLE_KINDS.items()}
        handles["timer"] = self.deadlines.count()
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
            longest_callback=self.longest_callback,
            slow_callbacks=self.slow_callbacks,
        )

    # Policy

    def on_error(self, error: Exception, owner: Any) -> None:
        """Handle the exception of a callback: for an API to override. Raising leaves `dispatch`.

        ``owner`` is the handle, timer or request whose callback has raised, or None.
        """
        raise error

    # Long callbacks

    def watch_slow_callbacks(self, threshold: float, watcher: SlowCallback) -> None:
        """Call ``watcher(engine, seconds, name)`` after a callback that has taken longer."""
        self.slow_callback_watchers.append((threshold, watcher))
        self.long_callback_limit = min(self.long_callback_limit, threshold)

    def note_long_callback(self, seconds: float, callback: Any) -> float:
        """Note a callback that has taken over the limit, and return the new limit.

        Callbacks have one clock, and one comparison: with the longest time so far, or with a lower
        threshold for slow callbacks. Everything else is here.
        """
        name = name_of(callback)
        if seconds > self.max_callback_time:
            self.max_callback_time, self.longest_callback = seconds, name
        for threshold, watcher in self.slow_callback_watchers:
            if seconds > threshold:
                watcher(self, seconds, name)
        thresholds = [threshold for threshold, _ in self.slow_callback_watchers]
        self.long_callback_limit = min([self.max_callback_time, *thresholds])
        return self.long_callback_limit

    # Threads

    def check_thread(self) -> None:
        """Raise unless this thread runs the loop."""
        if self.thread != get_ident():
            self.refuse()

    def refuse(self) -> None:
        """Raise the error for a call from a wrong thread, or when the loop does not run."""
        if self.thread is None:
            raise self.not_running()
        raise RuntimeError(
            "called from a thread that is not the event loop's: only call_threadsafe, "
            "Notifier.trigger and stats may be"
        )

    def may_change(self) -> bool:
        """Whether the loop has not ended; raise in a thread that is not the loop's.

        For closing a handle: between two runs of the loop it is possible too, and after the loop's
        end any thread may ask for it.
        """
        if self.closed:
            return False
        if self.thread is not None:
            self.check_thread()
        return True

    def not_running(self) -> EventLoopNotRunning:
        """Return the error for a call that needs the loop to run."""
        if self.forked:
            return EventLoopNotRunning(
                "the event loop was left to the parent by a fork: start a new one in the child"
            )
        if not self.closed:
            return EventLoopNotRunning("the event loop is not running")
        return EventLoopNotRunning("the event loop has ended")

    def keep_alive(self, owner: Any) -> None:
        """Keep the loop running until `let_end` of the same owner: a handle that C does not know.

        Each of the two may be called again by a signal handler that interrupts it.
        """
        self._wakeup.keep_alive(self, owner)

    def let_end(self, owner: Any) -> None:
        """Undo `keep_alive`; if there was none, do nothing."""
        self._wakeup.let_end(self, owner)

    # Operations

    def register(self, slot: int, handle: Any) -> None:
        """Make the handle the object of its slot, to which the slot's records go."""
        objects = self.objects
        while slot >= len(objects):
            objects.extend([None] * len(objects))
        objects[slot] = handle

    def read(self, descriptor: int, size: int) -> bytes:
        """Take PA_READABLE: read the input that C has left; b"": somebody has read it meanwhile.

        The handle must be open still, or the descriptor may be another's. Raises `OSError`.
        """
        try:
            data = os.read(descriptor, size)
        except BlockingIOError:
            return b""
        self.counters.bytes_read += len(data)
        return data

    def unpack_address(self, start: int) -> Address | None:
        """Return the address at an offset of the arena, good in this iteration; -1: None."""
        return None if start < 0 else unpack_address(self._arena[start : start + PACKED_MAX])

    def _cross(self, operation: Operation) -> None:
        """Perform an operation by itself, in place of ``queue``, with ``buffer_writes=False``.

        Writes never come here: with an ``inline_limit`` of -1 all of them go to `write_now`.
        """
        if self.crossing or self.operations:
            # A signal handler's write waits in the queue, and a close must not overtake it.
            self.operations.extend(operation)
            self.submit()
            return
        kind, slot, value, _, _ = operation
        _CROSSINGS[kind](self.c, slot, value)

    def submit(self) -> None:
        """Perform the pending operations now, before a rare one that crosses by itself.

        In a signal handler that has interrupted a crossing it does nothing: they stay in the queue.
        """
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

        Returns the size of the stream's blocked writes in bytes, or libuv's negative error; 0 if
        the write has to wait, because a signal handler makes it in the middle of a crossing.
        """
        size = len(data)
        if self.crossing:  # in a signal handler: copied, and queued for the next crossing
            kind = lib.PA_WRITE if callback is None else lib.PA_WRITE_CALLBACK
            self.operations.extend((kind, slot, size, bytes(data), callback))
            return 0
        try:
            self.crossing = SUBMITTING
            if type(data) is not bytes:
                data = ffi.from_buffer(data)  # CFFI passes bytes, but no memoryview, by itself
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
        """Return the pending operations packed for C. They stay in the queue until `_performed`."""
        # A copy by one bytecode: a signal handler may append to the queue from here on.
        batch = self.operations[:]
        size = len(batch)
        if size == 5 and callback is None:  # one, as in most iterations with a single message
            kind, slot, value, payload, written = batch
            self._in_flight = (size, [] if written is None else [written])
            return _pack_one(kind, slot, value), 1, payload
        payload = b"".join(batch[3::5])
        callbacks = [*filter(None, batch[4::5])]
        if callback is not None:
            callbacks.append(callback)
        del batch[4::5], batch[3::4]
        self._in_flight = (size, callbacks)
        return pack(f"{len(batch)}q", *batch), size // 5, payload

    def _performed(self) -> None:
        """Account for a crossing that C has performed.

        An exception may come between any two lines, and then `_recover` calls this again: no line
        may be done twice. So each one that changes something also removes the reason for it.
        """
        if self._in_flight:
            size, callbacks = self._in_flight
            # A repetition must not add the callbacks twice, because C counts each write once. Each
            # is an object of its own, so the last one tells.
            if callbacks and not (self._written and self._written[-1] is callbacks[-1]):
                self._written = self._written + callbacks
            self.operations[:size] = self._in_flight = ()
        if self.crossing == POLLING and self._written:
            self._alive = True
            self.written_now = self._written
            self._write_calls, self._written = iter(self._written), []
        self._crossings += 1
        self.crossing = 0

    def _recover(self) -> None:
        """Account for the crossing that an exception has interrupted.

        C's count of crossings tells whether it has performed this one. If it has, the operations
        must not be performed again, and a poll's records are still to be dispatched. If not, the
        operations stay in the queue.
        """
        if not self.crossing:
            return
        if lib.pa_crossings(self.c) == self._crossings:
            self._in_flight = ()
            self.crossing = 0
            return
        if self.crossing == POLLING and self._batch is None:
            # The result of pa_run is lost. Alive, because that errs on the safe side: the next
            # poll tells the truth, without a sleep if nothing is left.
            self._batch, self._alive = lib.pa_event_count(self.c), True
        self._performed()

    def pending_size(self, slot: int) -> tuple[int, int]:
        """Return the size of the slot's pending writes in bytes, and their number.

        Each pending operation is counted once, and the sums are cached. So a call after each write
        is O(1), however many writes are pending.
        """
        # Taken out, because a signal handler may call this too: it finds no cache, and counts anew,
        # in place of adding to the sums that this call is adding to.
        counted, self._counted = self._counted, None
        if counted is None or counted[0] != self._crossings:
            counted = (self._crossings, 0, {})
        crossings, start, sizes = counted
        operations = self.operations
        end = len(operations)
        try:
            for index in range(start, end, 5):
                # Not by a slice: see `deadlines._live`.
                kind, owner, size = operations[index], operations[index + 1], operations[index + 2]
                if kind == lib.PA_WRITE or kind == lib.PA_WRITE_CALLBACK:
                    before = sizes.get(owner, (0, 0))
                    sizes[owner] = (before[0] + size, before[1] + 1)
        except IndexError:
            pass  # a signal handler has submitted them
        if crossings != self._crossings:
            return self.pending_size(slot)
        self._counted = (crossings, end, sizes)
        return sizes.get(slot, (0, 0))

    # One iteration

    def poll(self, timeout: float | None = None) -> None:
        """Perform the pending operations, and run an iteration of libuv.

        It sleeps until an event, the first timer's deadline, or the end of ``timeout`` seconds; it
        does not sleep when a call is ready or a callback due. The records are for `dispatch`. It
        does nothing while an exception has left the last batch before its end, because C would
        overwrite the records.
        """
        if self._batch is not None:
            return
        if self.to_encrypt:
            self._flush_encryption()
        wakeup, deadlines = self._wakeup, self.deadlines
        try:
            self.crossing = POLLING
            size, callbacks = 0, None
            operations = _NO_OPERATIONS
            if self.operations:
                operations = self._pack_operations()
                size, callbacks = self._in_flight
            due = deadlines.first()
            # Cleared before the queues are checked: a later call wakes the loop, and none is
            # missed.
            if wakeup.woken:
                wakeup.clear()
            # Last, because what runs in between, such as a __del__, may ask for something.
            wait = not (
                self.ready
                or self.pending
                or self._written
                or callbacks
                or wakeup.calls
                or self.to_encrypt  # a signal handler has written, or a turn was not enough
                or len(self.operations) > size
            )
            referenced = deadlines.armed > deadlines.unreferenced
            if timeout is not None:
                wait = referenced = wait and timeout > 0  # libuv waits for nothing unreferenced
                limit = due_in(timeout)
                due = limit if due < 0 else min(due, limit)
            count = self._batch = self._pa_run(self.c, wait, due, referenced, *operations)
            self._alive = count != -1  # the complement of 0: nothing is referenced, and no event
            if self._in_flight or self._written:
                self._performed()
            else:
                self._crossings += 1
                self.crossing = 0
        except BaseException:
            self._recover()
            raise
        if count < 1 and count > -2 and wait and not (wakeup.calls or self.pending or self.ready):
            self._on_empty_poll()

    def _on_empty_poll(self) -> None:
        """Act on a sleep that has ended without an event, and before any callback."""
        if lib.pa_look_due(self.c) and self._signals is not None:
            self._signals.keep()
        if PYPY:
            # Nothing but a signal can have woken the poll. On PyPy another thread may have noticed
            # it first: the sleep gives up the GIL, so that it passes it on to this one.
            sleep(0.001)

    def _map_records(self) -> None:
        """Map C's array of records again, which has grown, and so has moved."""
        items = ffi.new("pa_event **")
        capacity = lib.pa_events(self.c, items)
        self._records = ffi.buffer(items[0], capacity * _RECORD_SIZE)

    def _flush_encryption(self) -> None:
        # A fixed count: a stream with more than its budget appends itself again, for the next
        # iteration, and must not keep I/O waiting.
        for _ in range(len(self.to_encrypt)):
            stream = self.to_encrypt[0]
            try:
                self.to_encrypt.popleft()
                stream._flush()
            except BaseException as error:
                # A signal handler's, because the stream deals with its own errors. It may have come
                # before anything was encrypted, and a second flush does no harm.
                if stream not in self.to_encrypt:
                    self.to_encrypt.append(stream)
                if not isinstance(error, Exception):
                    raise
                self.on_error(error, stream)

    def dispatch(self) -> None:
        """Walk the batch and call the object of each record; then call the write callbacks.

        An exception of a callback goes to `on_error`. If that raises, or the exception is no
        `Exception`, the rest of the batch is kept, and the next call goes on behind that callback.
        """
        batch = self._batch
        if type(batch) is int:
            count = batch if batch >= 0 else ~batch
            size = count * _RECORD_SIZE
            if size:
                if size > len(self._records):
                    self._map_records()
                # A copy: a traceback may keep this frame and its iterator for longer than C keeps
                # its array. Over a memoryview, such an iterator can crash the garbage collector of
                # CPython 3.11.
                batch = self._batch = _iter_records(self._records[:size])
            else:
                batch = self._batch = None
            if self.stopping:  # a signal handler has called `drop`, when there was no iterator yet
                self.drop()
        if batch is not None:
            owner: Any = None
            of_request: Any = None
            clock = perf_counter
            last = clock()
            limit = self.long_callback_limit
            objects, arena = self.objects, self._arena
            while True:  # goes on with the iterator after an exception
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
                            limit = self.long_callback_limit
                            last = clock()
                            continue
                        elif kind == CLOSED_RECORD:
                            # The slot's last record. C reuses the slot only in the next pa_run.
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
                            of_request = owner._callback
                            owner._on_event(kind, value, data)
                        else:
                            owner = objects[slot]
                            owner._on_event(kind, value, data)
                        now = clock()
                        if now - last > limit:
                            limit = self.note_long_callback(
                                now - last, record_callback(kind, owner, of_request)
                            )
                            now = clock()
                        last = now
                    break
                except Exception as error:
                    took = clock() - last
                    if took > limit:
                        self.note_long_callback(took, record_callback(kind, owner, of_request))
                    self.on_error(error, owner)
                    last, limit = clock(), self.long_callback_limit
        if self._write_calls is not None:
            self._call_written()
        self._batch = None

    def _call_written(self) -> None:
        """Call the write callbacks of the iteration.

        Those of blocked writes are not among them: PA_CALLBACK_WAITS has moved each to its stream,
        and left a function that does nothing in its place, or the indexes of the others would
        change.
        """
        clock = perf_counter
        last = clock()
        limit = self.long_callback_limit
        calls = self._write_calls
        owner: Any = None
        while True:
            try:
                for owner, callback in calls:
                    if not owner._state & FAILED:
                        callback(owner)
                    now = clock()
                    if now - last > limit:
                        limit = self.note_long_callback(now - last, callback)
                        now = clock()
                    last = now
                break
            except Exception as error:
                took = clock() - last
                if took > limit:
                    self.note_long_callback(took, callback)
                self.on_error(error, owner)
                last, limit = clock(), self.long_callback_limit
        written, self.written_now = self.written_now, []
        self._write_calls = None
        written.clear()  # blocked writes still refer to the list, and it must not keep the streams

    def run_ready(self) -> None:
        """Run the calls that are ready now; calls that they add wait for the next iteration."""
        calls, position = self.ready, 0
        try:
            self.ready = []
            # A fixed count, because other threads may append without end.
            for _ in range(len(self._wakeup.calls)):
                calls.append(self._wakeup.calls.popleft())
            for call in calls:
                if self.stopping:
                    return
                position += 1
                started = perf_counter()
                try:
                    call()
                except Exception as error:
                    self.on_error(error, None)
                took = perf_counter() - started
                if took > self.long_callback_limit:
                    self.note_long_callback(took, call)
        finally:
            # An exception leaves: the rest goes first the next time.
            if position < len(calls) and self.ready is not calls:
                self.ready[:0] = calls[position:]  # one step: what is added meanwhile is kept

    @property
    def has_ready(self) -> bool:
        """Whether calls wait for `run_ready`."""
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
        """Let the running callback be the last: forget the rest of the batch.

        The iterators are exhausted, so that the walk ends by itself: it has no check for this.
        """
        self.stopping = True
        if self._batch.__class__ is int:
            self._batch = 0
        else:
            deque(self._batch or (), maxlen=0)  # consumes it, in one call
        deque(self._write_calls or (), maxlen=0)
