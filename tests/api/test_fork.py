"""os.fork while a loop runs: the child leaves the loop to the parent."""

import gc
import os
import signal
import subprocess
import sys
import threading
from functools import partial

import pytest
from peers import PATIENCE, end_child, fork_and_check, nothing

import pyasync

HOUR = 3600.0

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork"),
    # Python 3.12 warns of every fork of a process with threads; libuv has threads of its own.
    pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning"),
]


# The child


def test_the_child_has_no_loop_and_is_told_so(run):
    def check(loop, event, interval, server, handler):
        assert pyasync.current_loop() is None
        for call in (
            pyasync.now,
            pyasync.exit_event_loop,
            lambda: pyasync.call_soon(nothing),
            lambda: pyasync.delay(nothing),
            lambda: pyasync.tcp_server(None, 0, nothing),
        ):
            with pytest.raises(pyasync.EventLoopNotRunning, match="no event loop"):
                call()
        for call in (
            event.add,
            event.remove,
            event.ref,
            interval.ref,
            server.fileno,
            handler.unref,
            lambda: loop.call_threadsafe(nothing),
        ):
            with pytest.raises(pyasync.EventLoopNotRunning, match="left to the parent by a fork"):
                call()
        for handle in (event, interval, server, handler):
            handle.close()

    with run():
        handles = (
            pyasync.delay(nothing, time=HOUR),
            pyasync.interval(nothing, time=HOUR),
            pyasync.tcp_server("127.0.0.1", 0, nothing),
            pyasync.signal_handler(signal.SIGUSR1, nothing),
        )
        fork_and_check(partial(check, pyasync.current_loop(), *handles))
        for handle in handles:
            assert not handle.closed
            handle.close()


@pytest.mark.parametrize("fork_from", ["delay", "call_soon", "start"])
def test_the_child_leaves_the_loop_and_runs_nothing_else_of_it(fork_from):
    parent, calls = os.getpid(), []

    def fork():
        calls.append(os.fork())

    def start():
        pyasync.add_event_loop_exit_callback(partial(calls.append, "exit callback"))
        pyasync.delay(partial(calls.append, "delay"), time=0.02)
        if fork_from == "start":
            fork()
        elif fork_from == "delay":
            pyasync.delay(fork)
            pyasync.delay(partial(calls.append, "due together"))
        else:
            pyasync.call_soon(fork)
        pyasync.call_soon(partial(calls.append, "ready"))

    def check():
        assert raised is not None
        assert "left to the parent by a fork" in str(raised)
        assert calls[calls.index(0) :] == [0]

    raised = None
    try:
        pyasync.start_event_loop(start, catch_app_errors=True)
    except pyasync.EventLoopNotRunning as error:
        raised = error
    finally:
        if os.getpid() != parent:
            end_child(check)
    (child,) = (call for call in calls if isinstance(call, int))
    assert os.waitpid(child, 0)[1] == 0
    assert "delay" in calls
    assert calls[-1] == "exit callback"


def use_a_loop():
    """Run a loop that uses a timer, a connection, a signal handler and a wakeup."""
    done = []

    def read(connection, data):
        done.append(data)
        connection.close()
        server.close()

    def handle(signo):
        done.append(signo)
        handler.close()

    def start():
        nonlocal server, handler
        server = pyasync.tcp_server("127.0.0.1", 0, read)
        pyasync.tcp_connect(*server.address, nothing, data=b"data")
        handler = pyasync.signal_handler(signal.SIGUSR1, handle)
        signal.raise_signal(signal.SIGUSR1)
        pyasync.delay(partial(done.append, "delay"), time=0.01)
        pyasync.current_loop().call_threadsafe(partial(done.append, "wakeup"))

    server = handler = None
    pyasync.start_event_loop(start)
    assert set(done) == {b"data", signal.SIGUSR1, "delay", "wakeup"}


def test_the_child_can_run_a_loop_of_its_own(run):
    run(lambda: pyasync.delay(partial(fork_and_check, use_a_loop)))


def test_the_child_can_run_a_loop_when_it_has_left_the_parents():
    parent, pids = os.getpid(), []
    try:
        pyasync.start_event_loop(lambda: pyasync.delay(lambda: pids.append(os.fork())))
    except pyasync.EventLoopNotRunning:
        pass
    finally:
        if os.getpid() != parent:
            end_child(use_a_loop)
    assert os.waitpid(pids[0], 0)[1] == 0


def test_a_child_that_a_thread_without_a_loop_forks_can_run_a_loop(run):
    with run():
        thread = threading.Thread(target=fork_and_check, args=[use_a_loop])
        thread.start()
        thread.join()
        pyasync.delay(nothing, time=0.001)


def test_children_of_children_can_run_loops(run):
    def check():
        run(lambda: pyasync.delay(partial(fork_and_check, use_a_loop)))

    run(lambda: fork_and_check(check))


# The end of the child


@pytest.mark.parametrize(
    "child",
    ["", "use()", "fork(lambda: sys.exit(7))", "use(); fork(lambda: sys.exit(7))"],
    ids=["nothing", "uses the pool", "forks", "uses the pool and forks"],
)
@pytest.mark.parametrize("leave", ["", "with pyasync.event_loop(): "], ids=["no loop", "loop"])
def test_a_child_that_exits_has_its_own_status(child, leave):
    """Although libuv would join the threads of its pool, which the child has not got."""
    program = f"""if True:
        import os, sys, pyasync

        def use():
            with pyasync.event_loop():
                pyasync.fs.stat("/", print)
                pyasync.dns_lookup("localhost", print, event_cb=print)

        def fork(then):
            pid = os.fork()
            if pid == 0:
                then()
            status = os.waitpid(pid, 0)[1]
            assert status == 7 << 8, status

        def in_child():
            {child or "pass"}
            sys.exit(7)

        use()
        {leave}fork(in_child)
    """
    subprocess.run(
        [sys.executable, "-c", program],
        check=True,
        timeout=3 * PATIENCE,
        stdout=subprocess.DEVNULL,
    )


# Signals


def test_in_the_child_signals_do_again_what_they_did_before_the_loop(run):
    handled = []

    def check():
        signal.raise_signal(signal.SIGUSR1)
        assert handled == ["Python's"]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGUSR1, lambda signo, frame: handled.append("Python's"))
    try:
        with run():
            pyasync.signal_handler(signal.SIGUSR1, partial(pytest.fail, "called"))
            pyasync.signal_handler(signal.SIGINT, partial(pytest.fail, "called"))
            fork_and_check(check)
            pyasync.clear_signal_handlers()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert handled == []


def test_the_wakeup_descriptor_is_the_one_from_before_the_loop():
    """In a program without asyncio, which from Python 3.12 on resets the descriptor in each child.

    Its hook may come after ours: such hooks run in the order in which modules are imported.
    """
    program = """if True:
        import os, signal, socket, sys, pyasync

        assert "asyncio" not in sys.modules
        receiver, sender = socket.socketpair()
        sender.setblocking(False)
        signal.set_wakeup_fd(sender.fileno())

        def fork():
            pid = os.fork()
            if pid == 0:
                os._exit(signal.set_wakeup_fd(-1) != sender.fileno())
            assert os.waitpid(pid, 0)[1] == 0

        pyasync.start_event_loop(fork)
        assert signal.set_wakeup_fd(-1) == sender.fileno()
    """
    subprocess.run([sys.executable, "-c", program], check=True, timeout=2 * PATIENCE)


def test_a_signal_to_the_childs_own_loop_does_not_reach_the_parents(run):
    handled = []

    with run():
        handler = pyasync.signal_handler(signal.SIGUSR1, handled.append)
        fork_and_check(use_a_loop)
        pyasync.delay(handler.close, time=0.01)
    assert handled == []


# The parent


def test_the_parents_loop_goes_on_undisturbed(run):
    """Its timers, connections and signal handler work, also after the child has used a loop."""
    done = []
    event = None

    def read(connection, data):
        nonlocal event
        done.append(data)
        if data == b"before":
            event = pyasync.delay(partial(done.append, "delay"), time=0.01)
            fork_and_check(check)
            connection.write(b"after")
            signal.raise_signal(signal.SIGUSR1)

    def check():
        server.close()
        client.close(force=True)
        handler.close()
        event.free()
        use_a_loop()

    def answered(connection, data):
        done.append((data, client is connection))
        connection.close()
        server.close()

    def handle(signo):
        done.append(signo)
        handler.close()

    with run():
        server = pyasync.tcp_server("127.0.0.1", 0, read)
        client = pyasync.tcp_connect(*server.address, answered, data=b"before")
        handler = pyasync.signal_handler(signal.SIGUSR1, handle)
    assert done[0] == b"before"
    assert set(done[1:]) == {(b"after", True), signal.SIGUSR1, "delay"}


def test_a_child_that_collects_the_inherited_loop_does_not_disturb_the_parent(run):
    accepted = []

    def accept(connection):
        accepted.append(connection)
        connection.close()
        server.close()

    def forget():
        nonlocal server
        server = None
        gc.collect()

    def start():
        nonlocal server
        server = pyasync.tcp_server("127.0.0.1", 0, nothing, connect_cb=accept)
        fork_and_check(forget)
        pyasync.tcp_connect(*server.address, nothing)

    server = None
    run(start)
    assert len(accepted) == 1
