"""The engine: iterations, batches and crossings that outlive an exception, and its end."""

import contextlib
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from inspect import isfunction

import pytest
from engines import (
    RecordingEngine,
    entered,
    read_available,
    step,
    steps,
    stream_and_peer,
)
from interrupts import Interrupt, each_line, raise_interrupt
from peers import in_other_thread, run_python, wait_until

import pyasync
from pyasync._core.deadlines import Timer
from pyasync._core.engine import Engine
from pyasync._core.stream import Stream
from pyasync._core.wakeup import SignalWakeup, Wakeup
from pyasync._ffi import lib
from pyasync.loop import Loop
from pyasync.threads import Work, WorkerPool

CROSSINGS = [
    Engine.poll,
    Engine.submit,
    Engine.write_now,
    Engine._pack_operations,
    Engine._performed,
]


# Iterations


def test_a_poll_ends_after_its_timeout_and_at_once_with_zero():
    with entered() as engine:
        engine.keep_alive(engine)
        for timeout in (0, 0.01):
            before = time.monotonic()
            engine.poll(timeout)
            engine.dispatch()
            assert time.monotonic() - before >= timeout
        engine.let_end(engine)


def test_a_poll_ends_at_the_first_deadline_if_that_comes_before_its_timeout():
    fired = []
    with entered() as engine:
        Timer(engine, lambda: fired.append(True)).start(0.02)
        step(engine, 3600)  # an hour's poll would last longer than the test
        steps(engine, lambda: fired)


def test_an_engine_only_says_that_nothing_is_alive_and_goes_on():
    with entered() as engine:
        # Of the iteration in which a signal or a thread wakes it, an engine cannot say so yet.
        wait_until(lambda: step(engine) or not engine.alive)
        called = []
        engine.ready.append(lambda: called.append(1))
        assert engine.alive
        step(engine)
        assert called == [1]


def test_an_engine_that_sleeps_and_ends_while_another_thread_reads_its_times(monkeypatch):
    class Reader:
        """C's functions, of which the one that reads the times is slow to return."""

        def __getattr__(self, name):
            return getattr(lib, name)

        def pa_read_times(self, counters, running):
            times = lib.pa_read_times(counters, running)
            if not engine.closed:
                engine.keep_alive(engine)
                engine.poll(0.5)
                engine.close()
            return times

    with entered() as engine:
        monkeypatch.setattr("pyasync._core.engine.lib", Reader())
        before = engine.stats()
        interval = engine.stats() - before
    assert interval.idle_time > 0.01  # not all: signals may end a poll early
    assert interval.busy_time >= 0


def test_several_engines_live_in_a_thread_and_take_turns():
    with entered() as first:
        first.leave()
        with entered() as second:
            first_called, second_called = [], []
            first.ready.append(lambda: first_called.append(1))
            second.ready.append(lambda: second_called.append(1))
            step(second)
            second.leave()
            first.enter()
            step(first)
            assert (first_called, second_called) == ([1], [1])


def test_an_engine_is_made_in_one_thread_and_runs_in_another():
    engine = RecordingEngine()
    engine.open()

    def run():
        engine.enter()
        with stream_and_peer(engine) as (stream, peer):
            peer.send(b"hello")
            steps(engine, lambda: stream.told)
        engine.leave()
        engine.close()
        return stream.told

    assert in_other_thread(run)[0] == b"hello"


def test_left_is_not_closed():
    with entered() as engine:
        engine.leave()
        with pytest.raises(pyasync.EventLoopNotRunning):
            engine.check_thread()
        called = []
        engine.call_threadsafe(lambda: called.append(1))  # for when it is entered again
        engine.enter()
        step(engine)
        assert called == [1]
    with pytest.raises(pyasync.EventLoopNotRunning):
        engine.call_threadsafe(lambda: None)


# Batches


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_a_batch_goes_on_behind_the_callback_that_has_raised(error):
    """Of three streams that have something to read in one iteration."""
    got = []

    def read(stream, data):
        got.append(data)
        if len(got) == 2:
            raise error

    with contextlib.ExitStack() as stack:
        engine = stack.enter_context(entered())
        peers = [stack.enter_context(stream_and_peer(engine, read))[1] for _ in range(3)]
        step(engine)
        for number, peer in enumerate(peers):
            peer.send(b"%d" % number)
        engine.poll(1)
        with pytest.raises(error):
            engine.dispatch()
        assert len(got) == 2
        iterations = engine.stats().iterations
        engine.poll(0)  # nothing is polled before the rest of the batch
        assert engine.stats().iterations == iterations
        engine.dispatch()
        assert sorted(got) == [b"0", b"1", b"2"]
        engine.poll(0)
        assert engine.stats().iterations == iterations + 1


def test_a_batch_goes_on_at_once_behind_each_exception():
    def read(stream, data):
        raise LookupError(data)

    with contextlib.ExitStack() as stack:
        engine = stack.enter_context(entered())
        peers = [stack.enter_context(stream_and_peer(engine, read))[1] for _ in range(3)]
        step(engine)
        for number, peer in enumerate(peers):
            peer.send(b"%d" % number)
        engine.poll(1)
        engine.dispatch()
        assert sorted(error.args[0] for error in engine.errors) == [b"0", b"1", b"2"]


def test_callbacks_of_writes_and_timers_go_on_behind_the_one_that_has_raised():
    called = []

    def callback(number):
        called.append(number)
        if number in (1, 4):
            raise KeyboardInterrupt

    with entered() as engine, stream_and_peer(engine) as (stream, _):
        for number in range(3):
            stream._write(b"x", lambda stream, number=number: callback(number), False)
        for number in range(3, 6):
            Timer(engine, lambda number=number: callback(number)).start()
        raised = 0
        for _ in range(20):
            try:
                step(engine)
            except KeyboardInterrupt:
                raised += 1
        assert raised == 2
        assert sorted(called) == list(range(6))


def test_what_is_ready_goes_on_behind_the_call_that_has_raised():
    called = []

    def call(number):
        called.append(number)
        if number == 1:
            engine.ready.append(lambda: call(3))
            raise KeyboardInterrupt

    with entered() as engine:
        for number in range(3):
            engine.ready.append(lambda number=number: call(number))
        with pytest.raises(KeyboardInterrupt):
            step(engine)
        step(engine)
        assert called == [0, 1, 2, 3]


# Crossings


def check_crossings(buffer_writes):
    """Write, close and read while an exception may come; at its end nothing is lost or doubled."""
    done, interrupted = [], []

    def attempt(write, number):
        try:
            write()
        except Interrupt:
            interrupted.append(number)

    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.suppress(Interrupt))  # which comes while the engine closes
        engine = stack.enter_context(entered(buffer_writes=buffer_writes))
        stream, peer = stack.enter_context(stream_and_peer(engine))
        received = b""
        for number in range(6):
            size = 3 if number % 3 else 20_000  # large ones cross at once
            data = bytes([number]) * size

            def write(data=data, number=number):
                stream._write(data, lambda stream: done.append(number), False)

            attempt(write, number)
            peer.send(bytes([100 + number]))
            if number % 2:
                for part in (engine.submit, lambda: engine.poll(0)):
                    attempt(part, None)
                engine.dispatch()
            received += read_available(peer)
        for _ in range(6):
            attempt(lambda: engine.poll(0), None)
            engine.dispatch()
            received += read_available(peer)
        assert b"".join(stream.told) == bytes(range(100, 106))
        wrote = [number for number in range(6) if bytes([number]) in received]
        expected = b"".join(bytes([n]) * (3 if n % 3 else 20_000) for n in wrote)
        assert received == expected
        assert set(range(6)) - set(wrote) <= set(interrupted)  # only that one may be missing
        assert done == wrote
        assert engine.errors == []


@pytest.mark.parametrize("buffer_writes", [True, False], ids=["buffered", "unbuffered"])
def test_nothing_is_lost_or_done_twice_by_an_exception_at_any_line_of_a_crossing(buffer_writes):
    lines = each_line(lambda: check_crossings(buffer_writes), raise_interrupt, *CROSSINGS)
    assert lines > 100


def test_a_handler_that_writes_at_any_line_of_a_crossing_writes_in_order():
    """Its write is whole, and those of the stream come in the order of their calls."""
    current = []

    def handler():
        current[0]._write(b"[handler]", None, False)
        current.append(1)

    def scenario():
        with entered() as engine, stream_and_peer(engine) as (stream, peer):
            current[:] = [stream]
            received = b""
            for number in range(4):
                stream._write(b"<%d>" % number * (1 if number % 2 else 5000), None, False)
                if number % 2:
                    step(engine)
                    received += read_available(peer)
            for _ in range(3):
                step(engine)
                received += read_available(peer)
            if current[1:]:  # it may have come behind the last crossing
                step(engine)
                received += read_available(peer)
            pieces = [b"<%d>" % number * (1 if number % 2 else 5000) for number in range(4)]
            assert received.replace(b"[handler]", b"") == b"".join(pieces)
            assert received.count(b"[handler]") == len(current[1:])
            before = received.partition(b"[handler]")[0]
            assert before in [b"".join(pieces[:n]) for n in range(5)]

    each_line(scenario, handler, *CROSSINGS)


def test_the_queue_of_a_stream_is_counted_once_for_all_who_ask():
    class Operations(list):
        looked_at = 0

        def __getitem__(self, index):
            self.looked_at += 1
            return super().__getitem__(index)

    with contextlib.ExitStack() as stack:
        engine = stack.enter_context(entered())
        stream, other = (stack.enter_context(stream_and_peer(engine))[0] for _ in range(2))
        engine.operations = Operations()
        engine.queue = engine.operations.extend
        for number in range(1, 1001):
            stream._write(b"xyz", None, False)
            other._write(b"x", None, False)
            assert stream.write_queue_size == 3 * number
            assert other.write_queue_size == number
        assert engine.operations.looked_at <= 3 * 2000  # kind, slot and size of each


def test_writes_of_a_handler_go_behind_the_deferred_ones():
    """At any line at which these are written, because writing is enabled again."""
    current = []

    def scenario():
        with entered() as engine, stream_and_peer(engine) as (stream, peer):
            current[:] = [stream]
            stream.disable(write=True)
            for data in (b"1", b"2", b"3"):
                stream._write(data, None, False)
            stream.enable(write=True)
            stream._write(b"4", None, False)
            step(engine)
            step(engine)
            received = read_available(peer)
            assert received.replace(b"[handler]", b"") == b"1234"
            assert received.count(b"[handler]") == len(current[1:])
            assert received.find(b"[handler]") not in range(3)

    def handler():
        current[0]._write(b"[handler]", None, False)
        current.append(1)

    functions = [Stream.enable, Stream._stop_deferring, Stream._flush_deferred]
    each_line(scenario, handler, *functions, Stream._write_through)


def test_a_close_does_not_overtake_a_handlers_write_that_waits_for_a_crossing():
    current = []

    def scenario():
        with entered(buffer_writes=False) as engine, stream_and_peer(engine) as (stream, peer):
            current[:] = [stream]
            stream._write(b"first", None, False)
            if current[1:]:
                stream.close()
            step(engine)
            stream.close()
            steps(engine, lambda: "closed" in stream.told or engine.objects[stream._slot] is None)
            received = read_available(peer)
            # At the first lines the handler's write comes before the other has begun.
            assert received.replace(b"[handler]", b"") == b"first"
            assert received.count(b"[handler]") == len(current[1:])

    def handler():
        current[0]._write(b"[handler]", None, False)
        current.append(b"[handler]")

    each_line(scenario, handler, Engine.write_now, Engine.submit, Engine._performed)


def test_no_ready_call_is_lost_by_an_exception_at_any_line():
    def scenario():
        called = []
        with entered() as engine:
            for number in range(3):
                engine.ready.append(lambda number=number: called.append(number))
            engine.call_threadsafe(lambda: called.append(3))
            for _ in range(3):
                with contextlib.suppress(Interrupt):
                    engine.run_ready()
            # A call may be lost only when it was about to be made.
            assert len(called) >= 3
            assert sorted(set(called)) == called
            assert engine.errors == [] or isinstance(engine.errors[0], Interrupt)

    each_line(scenario, raise_interrupt, Engine.run_ready)


def test_a_handle_can_be_closed_between_two_runs():
    with entered() as engine, stream_and_peer(engine) as (stream, peer):
        engine.leave()
        stream.close()
        assert stream.closed
        engine.enter()
        steps(engine, lambda: engine.objects[stream._slot] is None)
        assert peer.recv(10) == b""


def test_a_poll_waits_for_its_timeout_also_when_nothing_is_referenced():
    def waits(engine):
        before = engine.stats()
        engine.poll(0.09)
        return (engine.stats() - before).idle_time

    with entered() as engine:
        assert any(waits(engine) >= 0.08 for _ in range(10))  # not all: signals may end one early


# The end


def open_descriptors():
    return set(os.listdir("/proc/self/fd"))


def test_an_engine_that_was_never_entered_closes():
    engine = RecordingEngine()
    engine.open()
    engine.close()
    engine.close()
    with pytest.raises(pyasync.EventLoopNotRunning):
        engine.call_threadsafe(lambda: None)


CLOSING = [Engine.close, Engine.submit, Engine.leave, Wakeup.close,
           SignalWakeup.restore]  # fmt: skip


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
def test_a_close_that_is_interrupted_at_any_line_goes_on_with_the_next_call():
    before = signal.set_wakeup_fd(-1)
    try:
        descriptors = open_descriptors()

        def scenario():
            engine = RecordingEngine()
            engine.open()
            engine.enter()
            with stream_and_peer(engine) as (stream, peer):
                stream._write(b"last", None, False)
                interrupts = 0
                for _ in range(2):
                    try:
                        engine.close()
                    except Interrupt:
                        interrupts += 1
                assert interrupts <= 1
                assert read_available(peer) == b"last"
                assert stream.closed
                assert signal.set_wakeup_fd(-1) == -1
                assert engine.thread is None
            assert open_descriptors() == descriptors

        each_line(scenario, raise_interrupt, *CLOSING)
    finally:
        signal.set_wakeup_fd(before)


def methods(*classes):
    return [member for cls in classes for member in vars(cls).values() if isfunction(member)]


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "functions",
    [
        [
            pyasync.start_event_loop,
            *(Loop.run, Loop.__init__, Loop.enter, Loop.close),
            *(Engine.__init__, Engine.open, Engine.enter),
            *CLOSING,
            *methods(Wakeup, SignalWakeup),
        ],
        methods(WorkerPool, Work, ThreadPoolExecutor),
    ],
    ids=["loop", "threads"],
)
def test_ctrl_c_at_any_line_of_the_begin_and_end_of_a_loop_leaves_nothing(run, functions):
    """No loop, wakeup descriptor, descriptor or thread; and another loop can be started."""

    def interrupt():
        raise KeyboardInterrupt

    def start():
        pyasync.tcp_server("127.0.0.1", 0, print).unref()
        pyasync.work(lambda: None, lambda result: None)

    def scenario():
        try:
            pyasync.start_event_loop(start)
        except KeyboardInterrupt:
            pass
        assert pyasync.current_loop() is None
        assert signal.set_wakeup_fd(-1) == -1
        assert open_descriptors() == descriptors
        # A thread whose start was interrupted is known to nobody; it ends by itself.
        wait_until(lambda: threading.active_count() == count)

    before = signal.set_wakeup_fd(-1)
    descriptors, count = open_descriptors(), threading.active_count()
    try:
        assert each_line(scenario, interrupt, *functions) > 50
    finally:
        signal.set_wakeup_fd(before)
    run(lambda: None)


def test_a_signal_handler_may_end_the_loop_while_c_moves_its_records():
    """Of six hundred descriptors that are ready at once, more than ever before."""
    program = """if True:
        import os, signal, threading
        import pyasync
        signal.signal(signal.SIGUSR1, lambda *_: pyasync.exit_event_loop())
        go = threading.Event()
        def kill():
            go.wait()
            os.kill(os.getpid(), signal.SIGUSR1)  # while the main thread is in C
        threading.Thread(target=kill).start()
        pipes = [os.pipe() for _ in range(600)]
        def start():
            for reader, _ in pipes:
                pyasync.poll(reader, on_ready, writable=False)
            os.write(pipes[0][1], b"!")
        def on_ready(readable, writable):
            if not go.is_set():
                os.read(pipes[0][0], 1)
                pyasync.call_soon(provoke)
        def provoke():
            for _, writer in pipes:
                os.write(writer, b"!")
            go.set()
        pyasync.start_event_loop(start)
        print("ended")
        """
    for _ in range(5):
        result = run_python("-c", program)
        assert (result.returncode, result.stdout) == (0, "ended\n"), result.stderr
