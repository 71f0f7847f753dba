"""Signal handlers in the loop, and Python's own beside them."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from functools import partial

import pytest
from peers import PATIENCE, interrupt, nothing, preloaded, run_python

import pyasync

HOUR = 3600.0


def kill_self(signo):
    os.kill(os.getpid(), signo)


@contextlib.contextmanager
def python_handler(signo, handler):
    """Install a handler with Python's signal module, and take it away again."""
    before = signal.signal(signo, handler)
    try:
        yield
    finally:
        signal.signal(signo, before)


def run_script(script, *arguments):
    """Run a Python program; return how it ended."""
    return run_python("-c", script, *arguments)


# What a handler does


@pytest.mark.parametrize("send", [kill_self, signal.raise_signal])
@pytest.mark.parametrize("signo", [signal.SIGUSR1, signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_handler_runs_in_the_loop_when_its_signal_arrives(run, send, signo):
    handled = []

    def handle(number):
        handled.append((number, pyasync.current_loop() is not None))
        handler.close()

    with run():
        handler = pyasync.signal_handler(signo, handle)
        assert handler.signo == signo
        send(signo)
    assert handled == [(signo, True)]


def test_a_handler_runs_each_time_its_signal_arrives(run):
    handled = []

    def handle(signo):
        handled.append(signo)
        if len(handled) < 5:
            kill_self(signo)
        else:
            pyasync.clear_signal_handlers()

    with run():
        pyasync.signal_handler(signal.SIGUSR1, handle)
        kill_self(signal.SIGUSR1)
    assert handled == [signal.SIGUSR1] * 5


def test_each_signal_has_its_own_handler(run):
    handled = []

    def handle(name, signo):
        handled.append((name, signo))
        if len(handled) == 2:
            pyasync.clear_signal_handlers()

    with run():
        pyasync.signal_handler(signal.SIGUSR1, partial(handle, "one"))
        pyasync.signal_handler(signal.SIGUSR2, partial(handle, "two"))
        kill_self(signal.SIGUSR2)
        kill_self(signal.SIGUSR1)
    assert sorted(handled) == [("one", signal.SIGUSR1), ("two", signal.SIGUSR2)]


def test_a_second_handler_replaces_the_first(run):
    with run():
        first = pyasync.signal_handler(signal.SIGUSR1, partial(pytest.fail, "called"))
        second = pyasync.signal_handler(signal.SIGUSR1, lambda signo: second.close())
        assert (first.closed, second.closed) == (True, False)
        kill_self(signal.SIGUSR1)


# Its end


@pytest.mark.parametrize(
    "end",
    [
        lambda handler: handler.close(),
        lambda handler: pyasync.free_signal_handler(handler.signo),
        lambda handler: pyasync.clear_signal_handlers(),
    ],
    ids=["close", "free_signal_handler", "clear_signal_handlers"],
)
def test_a_handler_that_has_ended_is_not_called_and_lets_the_loop_end(run, end):
    handled = []

    with python_handler(signal.SIGUSR1, lambda signo, frame: handled.append("Python's")), run():
        handler = pyasync.signal_handler(signal.SIGUSR1, nothing)
        end(handler)
        end(handler)
        assert handler.closed
        signal.raise_signal(signal.SIGUSR1)
    assert handled == ["Python's"]


def test_free_signal_handler_leaves_other_signals_alone(run):
    with run():
        handler = pyasync.signal_handler(signal.SIGUSR1, lambda signo: handler.close())
        pyasync.free_signal_handler(signal.SIGUSR2)
        assert not handler.closed
        kill_self(signal.SIGUSR1)


# What a signal did before, it does again


@pytest.mark.parametrize("error", [None, ZeroDivisionError, KeyboardInterrupt])
def test_pythons_own_handler_acts_again_after_the_loop(run, error):
    handled = []

    def python(signo, frame):
        handled.append("Python's")

    def start():
        pyasync.signal_handler(signal.SIGUSR1, nothing).unref()
        if error:
            raise error

    with python_handler(signal.SIGUSR1, python):
        with pytest.raises(error) if error else contextlib.nullcontext():
            run(start)
        assert signal.getsignal(signal.SIGUSR1) is python
        signal.raise_signal(signal.SIGUSR1)
    assert handled == ["Python's"]


def test_ctrl_c_raises_keyboardinterrupt_again_after_the_loop(run):
    run(lambda: pyasync.signal_handler(signal.SIGINT, nothing).unref())
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_a_signal_that_was_ignored_is_ignored_again_after_the_loop(run):
    with python_handler(signal.SIGUSR1, signal.SIG_IGN):
        run(lambda: pyasync.signal_handler(signal.SIGUSR1, nothing).unref())
        signal.raise_signal(signal.SIGUSR1)


def test_a_signal_that_killed_the_process_kills_it_again_after_the_loop():
    script = (
        "import pyasync, signal\n"
        "with pyasync.event_loop():\n"
        "    pyasync.signal_handler(signal.SIGUSR1, print).unref()\n"
        "signal.raise_signal(signal.SIGUSR1)\n"
    )
    assert run_script(script).returncode == -signal.SIGUSR1


def test_a_handler_that_python_gets_meanwhile_stays(run):
    handled = []

    with python_handler(signal.SIGUSR1, signal.SIG_IGN):
        with run():
            handler = pyasync.signal_handler(signal.SIGUSR1, partial(pytest.fail, "called"))
            signal.signal(signal.SIGUSR1, lambda signo, frame: handled.append("new"))
            handler.close()
            signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGUSR1)
    assert handled == ["new", "new"]


# Sends SIGUSR1 right after each change of its disposition.
SIGACTION = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <unistd.h>

int sigaction(int signum, const struct sigaction *now, struct sigaction *before) {
  static int (*real)(int, const struct sigaction *, struct sigaction *);
  int result;

  if (real == NULL)
    *(void **) &real = dlsym(RTLD_NEXT, "sigaction");
  result = real(signum, now, before);
  if (now != NULL && signum == SIGUSR1)
    raise(signum);
  return result;
}
"""


@pytest.mark.parametrize(
    "end",
    [
        "pyasync.start_event_loop(lambda: handle().close())",
        "pyasync.start_event_loop(lambda: (handle(), pyasync.exit_event_loop()))",
        "pyasync.start_event_loop(lambda: (handle(), fork(), pyasync.exit_event_loop()))",
    ],
    ids=["close", "end of the loop", "fork"],
)
def test_a_signal_at_the_end_of_a_handler_never_meets_the_default_disposition(tmp_path, end):
    """The default would kill the process."""
    script = f"""if True:
        import os, signal, pyasync
        handled = []
        def handle():
            return pyasync.signal_handler(signal.SIGUSR1, lambda signo: None)
        def fork():
            pid = os.fork()
            if pid == 0:
                os._exit(0 if len(handled) == 2 else 1)
            assert os.waitpid(pid, 0)[1] == 0
        signal.signal(signal.SIGUSR1, lambda signo, frame: handled.append(signo))
        {end}
        os._exit(0 if len(handled) == 2 else 1)
    """
    env = preloaded(tmp_path, SIGACTION)
    run = subprocess.run([sys.executable, "-c", script], env=env, timeout=3 * PATIENCE)
    assert run.returncode == 0


def test_a_signal_that_comes_during_a_fork_reaches_pythons_handler_in_the_child(run):
    """Not the loop's handler, which is the parent's, and has no loop in the child."""
    program = """if True:
        import os, signal
        handled = []
        # Before pyasync's hook, which is registered at the import.
        os.register_at_fork(after_in_child=lambda: signal.raise_signal(signal.SIGUSR1))
        import pyasync
        signal.signal(signal.SIGUSR1, lambda signo, frame: handled.append(signo))
        def start():
            pyasync.signal_handler(signal.SIGUSR1, print)
            pid = os.fork()
            if pid == 0:
                os._exit(0 if handled else 1)
            assert os.waitpid(pid, 0)[1] == 0
            pyasync.exit_event_loop()
        pyasync.start_event_loop(start)
    """
    assert run_script(program).returncode == 0


def test_signals_that_were_caught_one_by_one_are_reported_one_by_one(run):
    """Also when there are many, and meanwhile the loop does other work."""
    handled, between = [], []

    def handle(signo):
        handled.append(signo)
        if len(handled) == 1000:
            handler.close()

    with run():
        handler = pyasync.signal_handler(signal.SIGUSR1, handle)
        for _ in range(1000):
            signal.raise_signal(signal.SIGUSR1)
        pyasync.call_soon(lambda: between.append(len(handled)))
    assert len(handled) == 1000
    assert between[0] < 1000


# Loops in several threads


def test_loops_in_two_threads_handle_the_same_signal(run):
    """And when one of them ends, the other one goes on handling it."""
    handled = []
    both = threading.Barrier(2, timeout=10)
    first_has_ended = threading.Event()

    def first():
        run(lambda: handle_once("first", both.wait))
        first_has_ended.set()

    def handle_once(name, ready):
        handler = pyasync.signal_handler(
            signal.SIGUSR1, lambda signo: (handled.append(name), handler.close())
        )
        ready()

    def handle_twice(signo):
        handled.append("second")
        if len(handled) < 3:
            assert first_has_ended.wait(10)
            kill_self(signal.SIGUSR1)
        else:
            pyasync.clear_signal_handlers()

    with python_handler(signal.SIGUSR1, lambda signo, frame: handled.append("Python's")):
        thread = threading.Thread(target=first)
        thread.start()
        with run():
            pyasync.signal_handler(signal.SIGUSR1, handle_twice)
            both.wait()
            kill_self(signal.SIGUSR1)
        thread.join()
        signal.raise_signal(signal.SIGUSR1)
    assert sorted(handled[:2]) == ["first", "second"]
    assert handled[2:] == ["second", "Python's"]


# Python's own handlers while a loop runs


@pytest.fixture
def send_to_sleeping_loop(wait_until_asleep):
    """Give a function that sends a signal as soon as the current loop sleeps."""
    threads = []

    def send(loop, signo):
        wait_until_asleep(loop)
        kill_self(signo)

    def start(signo):
        thread = threading.Thread(target=send, args=[pyasync.current_loop(), signo])
        threads.append(thread)
        thread.start()

    yield start
    for thread in threads:
        thread.join()


def test_pythons_own_handlers_run_while_the_loop_sleeps(run, send_to_sleeping_loop):
    handled = []

    def python(signo, frame):
        handled.append(signo)
        pyasync.exit_event_loop()

    with python_handler(signal.SIGUSR1, python), run():
        pyasync.delay(partial(pytest.fail, "slept"), time=HOUR)
        send_to_sleeping_loop(signal.SIGUSR1)
    assert handled == [signal.SIGUSR1]


def test_what_a_handler_of_pythons_raises_leaves_the_sleeping_loop(run, send_to_sleeping_loop):
    def python(signo, frame):
        raise ZeroDivisionError

    def start():
        pyasync.delay(partial(pytest.fail, "slept"), time=HOUR)
        send_to_sleeping_loop(signal.SIGUSR1)

    with python_handler(signal.SIGUSR1, python), pytest.raises(ZeroDivisionError):
        run(start)
    assert pyasync.current_loop() is None


@pytest.mark.parametrize("policy", [False, True])
def test_ctrl_c_leaves_the_sleeping_loop(run, send_to_sleeping_loop, policy):
    servers = []

    def start():
        servers.append(pyasync.tcp_server("127.0.0.1", 0, nothing))
        send_to_sleeping_loop(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(start, catch_app_errors=policy)
    assert servers[0].closed


def test_ctrl_c_ends_a_program_whose_loop_sleeps():
    status, _, errors = interrupt(
        "import pyasync\n"
        "with pyasync.event_loop():\n"
        "    pyasync.delay(print, time=3600)\n"
        "    pyasync.call_soon(lambda: print('ready', flush=True))\n"
    )
    assert status == -signal.SIGINT
    assert errors[-1].startswith("KeyboardInterrupt")


def run_another_loop():
    """As a library does that is called in a callback: it leaves no wakeup descriptor."""
    loop = asyncio.new_event_loop()
    loop.add_signal_handler(signal.SIGUSR2, nothing)
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()


@pytest.mark.parametrize("take", [run_another_loop, lambda: signal.set_wakeup_fd(-1)])
def test_ctrl_c_leaves_a_sleeping_loop_whose_wakeup_descriptor_was_taken(
    run, send_to_sleeping_loop, take
):
    def start():
        pyasync.delay(partial(pytest.fail, "slept"), time=HOUR)
        pyasync.delay(taken)

    def taken():
        take()
        assert signal.set_wakeup_fd(-1) == -1
        send_to_sleeping_loop(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(start)
    assert signal.set_wakeup_fd(-1) == -1


def test_a_wakeup_descriptor_that_a_callback_sets_is_there_after_the_loop(
    run, send_to_sleeping_loop
):
    def start():
        pyasync.delay(partial(pytest.fail, "slept"), time=HOUR)
        signal.set_wakeup_fd(sender.fileno())
        send_to_sleeping_loop(signal.SIGINT)

    receiver, sender = socket.socketpair()
    with receiver, sender:
        sender.setblocking(False)
        with pytest.raises(KeyboardInterrupt):
            run(start)
        assert signal.set_wakeup_fd(-1) == sender.fileno()


# The first argument is a program for the subinterpreter.
SUBINTERPRETER = """
import sys
try:
    import _interpreters as interpreters  # from Python 3.13 on
except ImportError:
    try:
        import _xxsubinterpreters as interpreters
    except ImportError:
        raise SystemExit("none here")
    interpreter = interpreters.create(isolated=False)
    run = interpreters.run_string
else:
    interpreter = interpreters.create("legacy")
    run = interpreters.exec
run(interpreter, sys.argv[1])
interpreters.destroy(interpreter)
"""


def test_a_loop_runs_in_a_subinterpreter():
    """In which set_wakeup_fd may not be called."""
    program = """if True:
        import os, pyasync, signal

        def handle(signo):
            print("handled")
            handler.close()

        with pyasync.event_loop():
            handler = pyasync.signal_handler(signal.SIGUSR1, handle)
            pyasync.delay(lambda: os.kill(os.getpid(), signal.SIGUSR1), time=0.001)
    """
    result = run_script(SUBINTERPRETER, program)
    if "none here" in result.stderr:
        pytest.skip("needs subinterpreters")
    assert (result.returncode, result.stdout, result.stderr) == (0, "handled\n", "")


@pytest.mark.parametrize("fail", [False, True])
def test_the_wakeup_descriptor_of_another_library_is_restored(run, fail):
    receiver, sender = socket.socketpair()
    with receiver, sender:
        sender.setblocking(False)
        before = signal.set_wakeup_fd(sender.fileno())
        try:
            with contextlib.suppress(ZeroDivisionError):
                run(lambda: 1 / 0 if fail else None)
        finally:
            restored = signal.set_wakeup_fd(before)
        assert restored == sender.fileno()


def test_a_loop_in_another_thread_leaves_the_wakeup_descriptor_alone(run):
    before = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(before)
    thread = threading.Thread(target=run, args=[nothing])
    thread.start()
    thread.join()
    assert signal.set_wakeup_fd(before) == before


# Arguments that are wrong are refused at the call


def test_a_refused_handler_leaves_the_one_there_is(run):
    with run():
        handler = pyasync.signal_handler(signal.SIGUSR1, lambda signo: handler.close())
        with pytest.raises(TypeError, match="callback must be a function"):
            pyasync.signal_handler(signal.SIGUSR1, None)
        with pytest.raises(TypeError, match="event_cb must be a function"):
            pyasync.signal_handler(signal.SIGUSR1, nothing, event_cb=1)
        kill_self(signal.SIGUSR1)


def test_a_write_of_a_signal_handler_does_not_overtake_what_was_written(run):
    """Real signals, at any place of the writes that they interrupt."""
    received, sent = bytearray(), bytearray()

    called = []
    before = signal.getsignal(signal.SIGALRM)
    try:
        with run():

            def write(force):
                client.data = "writing"  # not to be interrupted between these two by the other
                piece = b"%d\n" % (len(sent) // 8)
                sent.extend(piece.rjust(8))
                client.write(piece.rjust(8), write_cb=called.append, force=force)
                client.data = "idle"

            def handler(signo, frame):
                if not client.closed and client.data == "idle":
                    write(True)

            def step():
                for _ in range(20):
                    write(False)
                if len(sent) < 1 << 18:
                    pyasync.call_soon(step)
                else:
                    signal.setitimer(signal.ITIMER_REAL, 0)
                    client.close()
                    server.close()

            server = pyasync.tcp_server("127.0.0.1", 0, lambda socket, data: received.extend(data))
            client = pyasync.tcp_connect(*server.address, lambda socket, data: None)
            signal.signal(signal.SIGALRM, handler)
            signal.setitimer(signal.ITIMER_REAL, 0.0002, 0.0002)
            pyasync.call_soon(step)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert received == sent
    assert len(called) == len(sent) // 8
