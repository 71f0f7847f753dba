"""Random programs over the public API, beside a model of what must come of them.

    make fuzz FUZZ_ARGS='--hypothesis-seed=1'

A program opens servers and connections (TCP, pipes, TLS), timers, notifiers and children; it
writes, pauses, closes and lets callbacks raise. The same calls are made by a signal handler, by
`__del__` when the garbage collector comes along, and by callbacks. Each message says who has sent
it and which it is, so the model knows what must arrive. Loops end by themselves, by
`exit_event_loop`, or by Ctrl-C in the middle of anything.
"""

import contextlib
import functools
import gc
import os
import signal
import struct
import sys
import threading
import time
import uuid
import weakref

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test
from tls_peers import client_context, server_context

import pyasync

#: How many programs `make fuzz` runs, of how many steps; the tests run a few, always the same.
EXAMPLES = int(os.environ.get("PYASYNC_FUZZ", "0"))
SETTINGS = settings(
    max_examples=EXAMPLES or 6,
    stateful_step_count=100 if EXAMPLES else 40,
    derandomize=not EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
PATIENCE = 20
HOST = "127.0.0.1"

# Who calls: a writer's messages arrive in its order.
RULE, HANDLER, FINALIZER = range(3)
HEADER = struct.Struct(">BIH")
ID = struct.Struct(">I")
SIZES = st.sampled_from([0, 1, 100, 4096, 9000, 60_000])
DELAYS = st.sampled_from([None, 0, 0.001, 0.003])
ACTIONS = st.sampled_from(["write", "close", "force", "shutdown", "arm", "free", "disable"])
NUMBERS = st.integers(0, 1000)


class Boom(Exception):
    """What a callback raises."""


class End:
    """One end of a connection: its socket, and what the model knows of it."""

    def __init__(self, machine, socket=None):
        self.machine, self.socket = machine, socket
        self.other = None
        self.sent, self.received = [0, 0, 0], [0, 0, 0]
        self.with_callback, self.called = 0, 0
        self.buffer = b""
        self.forced = self.closed_here = self.over = False

    def write(self, writer, size):
        if self.socket is None:
            return
        number, self.sent[writer] = self.sent[writer], self.sent[writer] + 1
        message = HEADER.pack(writer, number, size) + bytes([number % 256]) * size
        callback = self.written if number % 2 else None
        try:
            self.socket.write(message, write_cb=callback)
        except (pyasync.SocketClosed, pyasync.SocketBrokenPipe):
            self.sent[writer] -= 1
            return
        self.with_callback += callback is not None

    def written(self, socket):
        assert socket is self.socket
        self.called += 1
        self.machine.may_raise()

    def receive(self, socket, data):
        assert not self.over, "data after the end"
        self.buffer += data
        while len(self.buffer) >= HEADER.size:
            writer, number, size = HEADER.unpack_from(self.buffer)
            if len(self.buffer) < HEADER.size + size:
                break
            body = self.buffer[HEADER.size : HEADER.size + size]
            self.buffer = self.buffer[HEADER.size + size :]
            assert body == bytes([number % 256]) * size, "a message has been damaged"
            assert number == self.received[writer], "a message is lost, or comes twice"
            self.received[writer] += 1
        self.machine.may_raise()

    def event(self, event):
        assert not self.over, f"{event!r} after the end"
        self.over = True
        if isinstance(event, pyasync.EventError) and not self.may_fail:
            self.machine.failures.append(f"{event!r} without a cause")
        self.machine.may_raise()

    @property
    def may_fail(self):
        return self.forced or self.other is None or self.other.forced

    def close(self, force):
        if self.socket is not None:
            self.forced |= force
            self.closed_here = True
            self.socket.close(force=force)

    @property
    def is_complete(self):
        """Whether all that the other end has sent is here, as far as it must arrive."""
        other = self.other
        if self.closed_here or self.may_fail or other is None or other.socket is None:
            return True
        if self.received != other.sent:
            return False
        return other.closed_here or other.called == other.with_callback


class Machine(RuleBasedStateMachine):
    buffer_writes = True

    def __init__(self):
        super().__init__()
        self.failures = []
        self.interrupted = False
        self.handlers = signal.signal(signal.SIGALRM, self.on_alarm)
        self.hook, sys.unraisablehook = sys.unraisablehook, self.on_unraisable
        self.descriptors = count_descriptors()
        self.begin()

    # A loop's life

    def begin(self):
        self.servers, self.ends, self.dialed = [], [], {}
        self.timers, self.notifiers, self.children = [], [], []
        self.raising = self.expected = 0
        self.raised = []
        self.alarm_action = None
        self.context = pyasync.event_loop(
            catch_app_errors=self.on_error, buffer_writes=self.buffer_writes
        )
        self.loop = self.context.__enter__()

    def on_error(self, error):
        if isinstance(error, Boom):
            self.raised.append(error)
        else:
            self.failures.append(repr(error))

    def on_unraisable(self, what):
        """Let Ctrl-C in a ``__del__`` pass: Python drops it. And a socket that it has left."""
        if what.exc_type not in (KeyboardInterrupt, self.interrupted and ResourceWarning):
            self.hook(what)

    def may_raise(self):
        if self.raising:
            self.raising -= 1
            self.expected += 1
            raise Boom

    def turn(self, timeout=0):
        self.loop.poll(timeout)
        self.loop.dispatch()
        self.loop.run_ready()

    def turn_until(self, condition, what):
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, what()
            self.turn(0.005)

    def check(self):
        assert self.failures == []
        assert len(self.raised) == self.expected

    def over(self, error=None):
        """End the loop: by itself, or by the error that has come out of it."""
        signal.setitimer(signal.ITIMER_REAL, 0)
        self.alarm_action = None
        if error is None:
            self.settle()
            self.close_all()
            self.context.__exit__(None, None, None)
        else:
            with contextlib.suppress(type(error)):
                self.context.__exit__(type(error), error, None)
        self.check()
        assert pyasync.current_loop() is None
        assert self.loop.closed
        sockets = [end.socket for end in self.ends if end.socket is not None]
        assert all(handle.closed for handle in [*self.servers, *sockets])
        left = {kind: n for kind, n in self.loop.stats().handles.items() if n}
        assert error is not None or left == {}, left
        del sockets

    def close_all(self):
        for end in self.ends:
            end.close(False)
        for handle in [*self.servers, *self.notifiers]:
            handle.close()
        for timer in self.timers:
            timer["event"].free()

    def teardown(self):
        set_collecting(False)
        try:
            if pyasync.current_loop() is not None:
                self.over()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, self.handlers)
            gc.collect()
            sys.unraisablehook = self.hook
            if pyasync.current_loop() is not None:
                self.loop.close()
        self.__dict__.clear()
        gc.collect()

    # What handlers, finalizers and rules do

    def act(self, writer, action, number, size):
        end = self.ends[number % len(self.ends)] if self.ends else None
        if action == "arm":
            self.arm(0.001 * (number % 3))
        elif action == "free" and self.timers:
            self.free(number)
        elif end is None or end.socket is None:
            return
        elif action == "write":
            end.write(writer, size)
        elif action in ("close", "force"):
            end.close(action == "force")
        elif not end.socket.closed:
            # A handler may close it in between.
            with contextlib.suppress(pyasync.SocketClosed):
                if action == "shutdown":
                    end.socket.shutdown()
                elif action == "disable":
                    end.socket.disable(read=True, write=bool(number % 2))

    def arm(self, delay):
        timer = {"fired": 0, "freed": False, "due": time.monotonic() + (delay or 0)}

        def fire():
            timer["fired"] += 1
            if time.monotonic() < timer["due"] - 0.001:
                self.failures.append("a timer was early")
            self.may_raise()

        timer["event"] = pyasync.delay(fire, time=delay)
        self.timers.append(timer)

    def free(self, number):
        timer = self.timers[number % len(self.timers)]
        timer["freed"] = True
        timer["event"].free()

    def on_alarm(self, signo, frame):
        action, self.alarm_action = self.alarm_action, None
        if action == "interrupt":
            raise KeyboardInterrupt
        if action is not None and pyasync.current_loop() is self.loop:
            self.act(HANDLER, *action)

    # Rules

    @precondition(lambda self: len(self.servers) < 4)
    @rule(kind=st.sampled_from(["tcp", "pipe", "tls"]))
    def serve(self, kind):
        options = {"connect_cb": self.accepted, "event_cb": self.first_event}
        if kind == "pipe":
            server = pyasync.pipe_server(f"\0{uuid.uuid4()}", self.first_data, **options)
        elif kind == "tcp":
            server = pyasync.tcp_server(HOST, 0, self.first_data, **options)
        else:
            server = pyasync.tcp_ssl_server(
                HOST, 0, self.first_data, ssl_context=tls_contexts()[0], **options
            )
        self.servers.append(server)
        server_kinds[server] = kind

    def accepted(self, socket):
        socket.data = End(self, socket)
        self.may_raise()

    def first_data(self, socket, data):
        end = socket.data
        if end is None or end.other is not None:
            (end or End(self, socket)).receive(socket, data)
            return
        end.buffer += data
        if len(end.buffer) >= ID.size:
            end.other = self.dialed[ID.unpack_from(end.buffer)[0]]
            end.other.other = end
            self.ends.append(end)
            rest, end.buffer = end.buffer[ID.size :], b""
            end.receive(socket, rest)

    def first_event(self, event):
        socket = getattr(event, "socket", None)
        end = getattr(socket, "data", None)
        if end is not None and end.other is not None:
            end.event(event)

    @precondition(lambda self: self.servers and len(self.dialed) < 8)
    @rule(number=NUMBERS)
    def connect(self, number):
        server = self.servers[number % len(self.servers)]
        end = End(self)
        self.dialed[len(self.dialed)] = end
        options = {"event_cb": end.event, "data": ID.pack(len(self.dialed) - 1)}
        kind = server_kinds[server]
        if kind == "pipe":
            end.socket = pyasync.pipe_connect(server.address, end.receive, **options)
        elif kind == "tcp":
            end.socket = pyasync.tcp_connect(HOST, server.address[1], end.receive, **options)
        else:
            end.socket = pyasync.tcp_ssl_connect(
                "localhost", server.address[1], end.receive,
                ssl_context=tls_contexts()[1], **options,
            )  # fmt: skip
        self.ends.append(end)

    @rule(action=ACTIONS, number=NUMBERS, size=SIZES, repeat=st.integers(1, 5))
    def do(self, action, number, size, repeat):
        for _ in range(repeat):
            self.act(RULE, action, number, size)

    @rule(number=NUMBERS, size=SIZES)
    def write(self, number, size):
        self.act(RULE, "write", number, size)

    @rule(delay=DELAYS)
    def delay(self, delay):
        self.arm(delay)

    @rule(
        action=ACTIONS,
        number=NUMBERS,
        size=SIZES,
        after=st.integers(1, 3000),
        turns=st.integers(0, 5),
    )
    def do_in_a_handler(self, action, number, size, after, turns):
        self.alarm_action = action, number, size
        signal.setitimer(signal.ITIMER_REAL, after / 1e6)
        for _ in range(turns):
            self.act(RULE, "write", number + 1, size)
            self.turn()

    @rule(action=ACTIONS, number=NUMBERS, size=SIZES)
    def do_when_collected(self, action, number, size):
        Litter(self, (FINALIZER, action, number, size))

    @rule(often=st.booleans())
    def collect(self, often):
        set_collecting(often)

    @rule(count=st.integers(1, 3))
    def let_callbacks_raise(self, count):
        self.raising += count

    @rule(number=st.integers(0, 5), threaded=st.booleans())
    def notify(self, number, threaded):
        called = []
        notifier = pyasync.make_notifier(lambda: called.append(1), single_shot=bool(number % 2))
        self.notifiers.append(notifier)
        if threaded:
            thread = threading.Thread(target=notifier.trigger)
            thread.start()
            self.turn_until(lambda: called, lambda: "the notifier has not been called")
            thread.join()
        else:
            notifier.trigger()
            self.turn_until(lambda: called, lambda: "the notifier has not been called")

    @precondition(lambda self: len(self.children) < 2)
    @rule(status=st.integers(0, 3), kill=st.booleans())
    def spawn(self, status, kill):
        exits = []
        child = pyasync.spawn(
            "sh",
            ["-c", f"test {int(kill)} = 1 && exec sleep 60; exit {status}"],
            exit_cb=lambda process, *how: exits.append(how),
        )
        if kill:
            child.kill(signal.SIGKILL)
        self.children.append((exits, (0, signal.SIGKILL) if kill else (status, 0)))

    @rule(turns=st.integers(1, 10))
    def turns(self, turns):
        for _ in range(turns):
            self.turn()
        self.check()

    @rule()
    def settle(self):
        """Let everything arrive, and compare it with the model."""
        self.raising = 0
        for end in list(self.ends):
            if end.socket is not None and not end.socket.closed:
                with contextlib.suppress(pyasync.SocketClosed):  # a handler's
                    end.socket.enable(read=True, write=True)
        self.turn_until(lambda: not self.unsettled(), lambda: str(self.unsettled()))
        self.check()
        assert all(timer["fired"] <= 1 for timer in self.timers)

    def unsettled(self):
        return [
            *(f"received {end.received} of {end.other.sent}, {end.other.called} callbacks of "
              f"{end.other.with_callback}" for end in self.ends if not end.is_complete),
            *("a timer" for timer in self.timers if not timer["fired"] and not timer["freed"]),
            *(f"a child: {exits} of {how}" for exits, how in self.children if exits != [how]),
        ]  # fmt: skip

    @rule()
    def end(self):
        self.over()
        self.begin()

    @rule()
    def exit(self):
        pyasync.exit_event_loop()
        self.over(Boom())
        self.begin()

    @rule(after=st.integers(1, 5000))
    def interrupt(self, after):
        """Ctrl-C in the middle of anything, and out of the loop."""
        signal.setitimer(signal.ITIMER_REAL, 0)
        self.alarm_action = None
        self.interrupted = True
        deadline = time.monotonic() + PATIENCE
        try:
            while time.monotonic() < deadline:
                if self.alarm_action is None:  # a __del__ had the exception, and it was dropped
                    self.alarm_action = "interrupt"
                    signal.setitimer(signal.ITIMER_REAL, after / 1e6)
                self.act(RULE, "write", after, 100)
                self.arm(0.001)
                self.turn()
        except KeyboardInterrupt as error:
            self.raised, self.expected = [], 0  # it may have come between the two
            self.failures.clear()
            self.over(error)
        else:
            raise AssertionError("no interrupt has come")
        self.begin()


class Litter:
    """Garbage in a cycle, which acts when it is collected."""

    def __init__(self, machine, arguments):
        self.me, self.machine, self.loop, self.arguments = self, machine, machine.loop, arguments

    def __del__(self):
        if pyasync.current_loop() is self.loop:  # in its thread, and it has not ended
            self.machine.act(*self.arguments)


CPYTHON = hasattr(gc, "get_threshold")
THRESHOLD = gc.get_threshold() if CPYTHON else ()


def set_collecting(often):
    """Let the collector come along at almost any time, or as usual; PyPy's comes once."""
    if not CPYTHON:
        gc.collect()
    else:
        gc.set_threshold(*((1,) if often else THRESHOLD))


server_kinds = weakref.WeakKeyDictionary()


@functools.cache
def tls_contexts():
    return server_context(), client_context()


def count_descriptors():
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0


@pytest.mark.timeout(0 if EXAMPLES else 120)
@pytest.mark.parametrize("buffer_writes", [True, False], ids=["buffered", "unbuffered"])
def test_random_programs_do_what_the_model_says(buffer_writes):
    kind = type("Machine", (Machine,), {"buffer_writes": buffer_writes})
    run_state_machine_as_test(kind, settings=SETTINGS)
