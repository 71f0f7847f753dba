"""What all tests share: `run`, and the check that nothing is left behind after a test."""

import contextlib
import gc
import io
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

import pyasync

# What tests share is to say as much of a failed assertion as they do.
pytest.register_assert_rewrite("peers", "tls_peers", "engines", "interrupts", "example_programs")

# A shell that runs the tests in the background may ignore SIGINT, and children inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# LeakSanitizer has read this, and looks at the end of this process. In programs that tests start it
# would find what the interpreter leaves, and take a second each.
sanitizer = os.environ.get("ASAN_OPTIONS", "")
os.environ.update({"ASAN_OPTIONS": sanitizer.replace("leaks=1", "leaks=0")} if sanitizer else {})

# An example may take its time, and so may making one: PyPy compiles meanwhile, and others work.
settings.register_profile(
    "patient",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("patient")

# libuv makes a pipe for signals with the first loop, and keeps it as long as the process lives.
pyasync.start_event_loop(lambda: None)


def pytest_collection_finish():
    """Leave the tree, when pytest has found all that it was told to find from there.

    Programs that tests start look for modules in the current folder first. In the tree they would
    find its package in place of the installed one that is tested.
    """
    os.chdir(Path(__file__).parent)


@pytest.fixture(scope="session")
def run():
    """Give `run()`: a loop for a `with` block, and a failure if it does not end.

    `with run(**keywords):` is event_loop, and `run(start_fn, **keywords)` is start_event_loop. The
    keywords are theirs, and `limit`: the time in seconds that the loop may take.
    """
    return run_with_limit


def run_with_limit(start_fn=None, *, limit=60, **keywords):
    if start_fn is None:
        return loop_with_limit(limit, keywords)

    def start():
        watch(pyasync.current_loop())
        start_fn()

    with watchdog(limit) as watch:
        pyasync.start_event_loop(start, **keywords)


@contextlib.contextmanager
def loop_with_limit(limit, keywords):
    with watchdog(limit) as watch, pyasync.event_loop(**keywords) as loop:
        watch(loop)
        yield loop


@contextlib.contextmanager
def watchdog(limit):
    """Give `watch(loop)`, from which on the loop may take so long."""
    timers, expired = [], []

    def watch(loop):
        timers.append(threading.Timer(limit, expire, [loop]))
        timers[0].start()

    def expire(loop):
        expired.append("it ended when it was woken up")
        loop.call_threadsafe(give_up)

    def give_up():
        status = io.StringIO()
        pyasync.dump_event_loop_status(status)
        expired[0] = f"it has these handles:\n{status.getvalue()}"
        pyasync.exit_event_loop()

    try:
        yield watch
    finally:
        for timer in timers:
            timer.cancel()
            timer.join()
        if expired:
            pytest.fail(f"the loop still ran after {limit} s; {expired[0]}")


@pytest.fixture(scope="session")
def wait_until_asleep():
    """Give `wait_until_asleep(loop)`, which another thread calls: it returns when the loop polls.

    Only in its sleep does a loop's idle time grow between two iterations.
    """
    return wait_for_idle_time


def wait_for_idle_time(loop):
    before, now = loop.stats(), loop.stats()
    while now.iterations != before.iterations or now.idle_time == before.idle_time:
        time.sleep(0.001)
        before, now = now, loop.stats()


@pytest.fixture(autouse=True)
def _nothing_is_left_behind():
    """Fail a test that leaves a loop, a descriptor or a thread."""
    threads, descriptors = set(threading.enumerate()), open_descriptors()
    yield
    loop = pyasync.current_loop()
    if loop is not None:
        loop.close()  # or every later test would fail as well
    left = [
        *(["the current loop"] if loop is not None else []),
        *(f"thread {thread.name}" for thread in set(threading.enumerate()) - threads),
        *(f"descriptor {fd}: {what}" for fd, what in new_descriptors(descriptors)),
    ]
    if left:
        pytest.fail("the test left behind: " + ", ".join(left))


def new_descriptors(before):
    found = open_descriptors() - before
    if found:
        gc.collect()  # what nothing refers to any more is no leak
        found = open_descriptors() - before
    return sorted(found)


def open_descriptors():
    """Return pairs of each descriptor and what it is, on systems that have /proc."""
    found = set()
    for name in os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else ():
        try:
            found.add((int(name), os.readlink(f"/proc/self/fd/{name}")))
        except OSError:
            pass  # the descriptor by which they were listed
    return found


@pytest.fixture(scope="session")
def strange_kernel(tmp_path_factory):
    """Give a function that runs a program on a system that refuses, or cuts off, datagrams."""
    from peers import REFUSING_KERNEL, preloaded, run_python  # after register_assert_rewrite

    environment = preloaded(tmp_path_factory.mktemp("kernel"), REFUSING_KERNEL)

    def run_program(which, program):
        program = "import pyasync, socket, os\n" + program
        result = run_python("-c", program, env={**environment, which: "1"})
        assert (result.returncode, result.stderr) == (0, "")
        return result.stdout

    return run_program
