"""The asyncio loop: scheduling, both APIs in one loop, signals, threads, exceptions, its end."""

import asyncio
import contextvars
import errno
import gc
import math
import os
import resource
import signal
import socket
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
from peers import PATIENCE, flood, run_python

import pyasync
import pyasync.aio


def run(main, **options):
    return pyasync.aio.run(asyncio.wait_for(main, PATIENCE), **options)


# Ways to run it


async def name_of_loop():
    return type(asyncio.get_running_loop())


def test_run_runs_a_coroutine_in_pyasyncs_loop():
    assert pyasync.aio.run(name_of_loop()) is pyasync.aio.EventLoop
    assert pyasync.current_loop() is None


def test_run_raises_what_the_coroutine_raises():
    async def fail():
        raise LookupError("why")

    with pytest.raises(LookupError, match="why"):
        pyasync.aio.run(fail())


def test_install_changes_what_asyncio_run_makes_and_run_does_not():
    program = (
        "import asyncio, pyasync.aio\n"
        "async def main(): print(type(asyncio.get_running_loop()).__module__)\n"
        "pyasync.aio.run(main()); asyncio.run(main()); pyasync.aio.install(); asyncio.run(main())"
    )
    done = run_python("-c", program)
    first, second, third = done.stdout.split()
    assert [first, third] == ["pyasync.aio.loop"] * 2
    assert second.startswith("asyncio")
    assert done.stderr == ""


@pytest.mark.parametrize("by_name", [False, True])
def test_any_program_is_run_by_the_command(tmp_path, by_name):
    program = tmp_path / "program.py"
    program.write_text(
        "import asyncio, sys, beside\n"
        "async def main(): print(type(asyncio.get_running_loop()).__module__, sys.argv[1:])\n"
        "asyncio.run(main())\n"
    )
    (tmp_path / "beside.py").touch()
    words = ["-m", "program"] if by_name else [str(program)]
    done = run_python("-m", "pyasync.aio", *words, "--port", "80", cwd=tmp_path)
    assert done.stdout == "pyasync.aio.loop ['--port', '80']\n", done.stderr


@pytest.mark.parametrize("words", [["/no/such.py"], ["-m", "no_such"], ["-m", "no.such"]])
def test_a_program_that_is_not_there_is_named_in_one_line(words):
    done = run_python("-m", "pyasync.aio", *words)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert words[-1] in done.stderr


# Scheduling


def test_timers_run_in_the_order_of_their_times_and_never_early(loop):
    start, ran = loop.time(), []
    for delay in (0.02, 0.0104, 0.0101, 0.01, 0.0):
        loop.call_at(start + delay, lambda delay=delay: ran.append((delay, loop.time() - start)))
    loop.call_later(0.03, loop.stop)
    loop.run_forever()
    assert [delay for delay, _ in ran] == [0.0, 0.01, 0.0101, 0.0104, 0.02]
    assert all(at >= delay for delay, at in ran)


@pytest.mark.parametrize("delay", [1e9, 1e300, math.inf])
def test_a_timer_may_be_as_far_away_as_one_likes(loop, delay):
    handle = loop.call_later(delay, pytest.fail)
    assert isinstance(handle, asyncio.TimerHandle)
    assert handle.when() >= delay
    loop.call_later(0.01, loop.stop)
    loop.run_forever()
    handle.cancel()
    assert handle.cancelled()


@pytest.mark.parametrize("debug", [False, True])
def test_cancelled_handles_do_not_run(loop, debug):
    loop.set_debug(debug)
    for handle in (loop.call_soon(pytest.fail), loop.call_later(0.001, pytest.fail)):
        handle.cancel()
        handle.cancel()
        assert handle.cancelled()
    loop.call_later(0.02, loop.stop)
    loop.run_forever()
    assert loop.stats().handles["timer"] == 0


def test_equal_timers_are_two_timers(loop):
    ran = []
    when = loop.time() + 0.001
    first, second = (loop.call_at(when, ran.append, 1) for _ in range(2))
    assert first == second
    for _ in range(3000):  # so many that stale entries are removed
        loop.call_at(when, ran.append, 2).cancel()
    loop.call_later(0.01, loop.stop)
    loop.run_forever()
    assert ran == [1, 1]


def test_a_chain_of_call_soon_does_not_keep_io_waiting(loop):
    left, right = socket.socketpair()
    with left, right:
        right.setblocking(False)
        loop.add_reader(right, loop.stop)

        def go_on():
            loop.call_soon(go_on)

        go_on()
        loop.call_later(0.01, left.send, b"x")
        loop.run_forever()
        loop.remove_reader(right)


def test_every_callback_has_its_context(loop):
    name, seen = contextvars.ContextVar("name", default=None), []

    def note():
        seen.append(name.get())
        name.set("changed")  # in a copy, which nobody else sees

    for number in range(2):
        name.set(number)
        loop.call_soon(note)
        loop.call_later(0.001, note)
    own = contextvars.copy_context()
    loop.call_soon(note, context=own)
    name.set("outside")
    loop.call_later(0.02, loop.stop)
    loop.run_forever()
    assert seen == [0, 1, 1, 0, 1]
    assert own[name] == "changed"


# Both APIs in one loop


def test_objects_of_the_callback_api_work_beside_coroutines():
    async def main():
        aio = asyncio.get_running_loop()
        assert pyasync.current_loop().stats().iterations == aio.stats().iterations
        server = pyasync.tcp_server("127.0.0.1", 0, lambda sock, data: sock.write(data.upper()))
        reader, writer = await asyncio.open_connection(*server.address)
        writer.write(b"hello")
        answer = await reader.readexactly(5)
        stats = aio.stats()
        assert (stats.incoming_tcp_connections, stats.handles["tcp-server"]) == (1, 1)

        done = aio.create_future()
        pyasync.delay(lambda: pyasync.call_soon(lambda: done.set_result("timer")), time=0.001)
        finished = aio.create_future()
        pyasync.spawn(
            sys.executable, ["-c", "raise SystemExit(7)"],
            exit_cb=lambda process, status, signo: finished.set_result(status),
        )  # fmt: skip
        worked = aio.create_future()
        pyasync.work(lambda: threading.current_thread().name, worked.set_result)
        results = [answer, await done, await finished, await worked != "MainThread"]
        writer.close()
        server.close()
        return results

    assert run(main()) == [b"HELLO", "timer", 7, True]


def test_exit_event_loop_stops_the_loop_which_may_run_again(loop):
    loop.call_soon(pyasync.exit_event_loop)
    loop.run_forever()
    assert loop.run_until_complete(asyncio.sleep(0, "again")) == "again"


def test_an_exception_of_the_callback_api_goes_to_the_exception_handler(loop):
    contexts, told = [], []
    loop.set_exception_handler(lambda loop, context: contexts.append(context))

    def fail():
        raise LookupError("why")

    async def main():
        pyasync.delay(fail, time=0.001, event_cb=told.append)
        pyasync.call_soon(fail)
        await asyncio.sleep(0.02)

    loop.run_until_complete(main())
    assert [str(context["exception"]) for context in contexts] == ["why", "why"]
    assert [type(error) for error in told] == [pyasync.CallbackError]


def test_two_loops_in_a_thread_run_in_turn(loop):
    other = pyasync.aio.new_event_loop()
    try:
        for one in (loop, other, loop):
            assert one.run_until_complete(name_of_loop()) is pyasync.aio.EventLoop
    finally:
        other.close()


def test_a_loop_is_refused_inside_of_another(loop):
    async def main():
        with pytest.raises(RuntimeError, match="another loop is running"):
            other.run_forever()
        with pytest.raises(RuntimeError, match="is running in this thread"):
            pyasync.start_event_loop(lambda: None)

    other = pyasync.aio.new_event_loop()
    try:
        loop.run_until_complete(main())
    finally:
        other.close()


# Threads and signals


def test_a_thread_wakes_the_loop():
    async def main():
        loop = asyncio.get_running_loop()
        for _ in range(200):
            future = loop.create_future()
            thread = threading.Thread(
                target=lambda: loop.call_soon_threadsafe(future.set_result, None)  # noqa: B023
            )
            thread.start()
            await future
            thread.join()

    run(main())


def test_threads_that_never_pause_cannot_starve_the_loop(loop):
    async def main():
        with flood(loop.call_soon_threadsafe):
            for _ in range(10):  # each waits behind all that the threads have added
                await asyncio.sleep(0.001)

    loop.run_until_complete(main())


def test_a_thread_does_not_wait_for_a_loop_that_is_not_running(loop):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw
    for _ in range(10_000):
        loop.call_soon_threadsafe(int)
    # It counts how often the process has slept. With a sleep for each call it would be thousands.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw - before < 2_000
    loop.run_until_complete(asyncio.sleep(0))


def test_a_loop_made_in_one_thread_runs_in_another(loop):
    results = []
    thread = threading.Thread(
        target=lambda: results.append(loop.run_until_complete(asyncio.to_thread(lambda: 42)))
    )
    thread.start()
    thread.join()
    assert results == [42]
    loop.run_until_complete(loop.shutdown_default_executor())


def test_signal_handlers_run_in_the_loop_and_are_taken_back(loop):
    before, calls = signal.getsignal(signal.SIGUSR1), []

    def handler(*args):
        calls.append(args)
        if len(calls) == 3:
            loop.stop()
        else:
            loop.call_later(0.001, os.kill, os.getpid(), signal.SIGUSR1)

    loop.add_signal_handler(signal.SIGUSR1, handler, "first")
    os.kill(os.getpid(), signal.SIGUSR1)  # also before the loop runs
    loop.call_later(PATIENCE, loop.stop)
    loop.run_forever()
    assert calls == [("first",)] * 3
    assert loop.remove_signal_handler(signal.SIGUSR1)
    assert not loop.remove_signal_handler(signal.SIGUSR1)
    assert signal.getsignal(signal.SIGUSR1) == before
    with pytest.raises(TypeError, match="coroutines"):
        loop.add_signal_handler(signal.SIGUSR1, name_of_loop)
    with pytest.raises(RuntimeError, match="cannot be caught"):
        loop.add_signal_handler(signal.SIGKILL, handler)


@pytest.fixture
def wakeup_fd():
    """A wakeup descriptor that somebody else expects to find again."""
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    before = signal.set_wakeup_fd(writer.fileno())
    yield writer.fileno()
    signal.set_wakeup_fd(before)
    reader.close()
    writer.close()


def test_a_signal_that_cannot_be_caught_leaves_nothing_behind(loop, wakeup_fd):
    with pytest.raises(RuntimeError, match="cannot be caught"):
        loop.add_signal_handler(signal.SIGKILL, print)
    assert not loop._signal_handlers
    assert signal.set_wakeup_fd(wakeup_fd) == wakeup_fd


@pytest.mark.parametrize("replacement", [None, signal.SIG_IGN])
def test_a_signal_handler_stays_beside_what_replaces_it(loop, replacement):
    calls = []

    async def main():
        called = asyncio.Event()
        loop.add_signal_handler(signal.SIGUSR1, lambda: (calls.append("ours"), called.set()))
        signal.signal(signal.SIGUSR1, replacement or (lambda *_: calls.append("theirs")))
        signal.raise_signal(signal.SIGUSR1)
        if replacement is None:
            await asyncio.wait_for(called.wait(), PATIENCE)
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        signal.raise_signal(signal.SIGUSR1)
        loop.add_signal_handler(signal.SIGUSR2, called.set)
        called.clear()
        signal.raise_signal(signal.SIGUSR2)
        await asyncio.wait_for(called.wait(), PATIENCE)

    loop.run_until_complete(main())
    assert calls == (["theirs", "ours"] if replacement is None else [])
    loop.remove_signal_handler(signal.SIGUSR1)


def test_signals_that_come_between_two_runs_are_handled_in_the_next(loop, wakeup_fd):
    calls = []

    async def add():
        loop.add_signal_handler(signal.SIGUSR1, calls.append, 1)

    loop.run_until_complete(add())
    for _ in range(3):
        signal.raise_signal(signal.SIGUSR1)
    assert calls == []
    loop.run_until_complete(asyncio.sleep(0.01))
    assert calls == [1, 1, 1]
    signal.raise_signal(signal.SIGUSR1)
    loop.remove_signal_handler(signal.SIGUSR1)
    assert signal.set_wakeup_fd(wakeup_fd) == wakeup_fd
    loop.run_until_complete(asyncio.sleep(0.01))
    assert calls == [1, 1, 1]
    loop.add_signal_handler(signal.SIGUSR1, calls.append, 1)
    assert signal.set_wakeup_fd(wakeup_fd) != wakeup_fd
    loop.close()
    assert signal.set_wakeup_fd(-1) == wakeup_fd


def test_the_main_thread_adds_a_signal_handler_to_a_loop_of_another_thread(loop, wakeup_fd):
    started = threading.Event()
    loop.call_soon(started.set)
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    assert started.wait(PATIENCE)
    called = threading.Event()
    threads = []
    loop.add_signal_handler(
        signal.SIGUSR1, lambda: (threads.append(threading.current_thread()), called.set())
    )
    signal.raise_signal(signal.SIGUSR1)
    assert called.wait(PATIENCE)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    assert threads == [thread]
    loop.close()
    assert signal.set_wakeup_fd(wakeup_fd) == wakeup_fd


def test_only_the_main_thread_adds_signal_handlers(loop):
    async def add():
        with pytest.raises(RuntimeError, match="main thread"):
            asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, print)

    thread = threading.Thread(target=loop.run_until_complete, args=[add()])
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL


def test_ctrl_c_leaves_a_sleeping_loop_which_may_run_on(loop, wait_until_asleep):
    def press():
        wait_until_asleep(loop)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press)
    loop.call_soon(thread.start)
    with pytest.raises(KeyboardInterrupt):
        loop.run_until_complete(asyncio.sleep(PATIENCE))
    thread.join()
    for task in asyncio.all_tasks(loop):
        task.cancel()
    assert loop.run_until_complete(asyncio.sleep(0, "on")) == "on"


def test_what_was_read_before_ctrl_c_is_delivered_when_the_loop_runs_on(loop):
    received = []

    class Receiver(asyncio.Protocol):
        def data_received(self, data):
            received.append(data)
            if len(received) == 1:
                raise KeyboardInterrupt
            if len(received) == 3:
                loop.stop()

    pairs = [socket.socketpair() for _ in range(3)]
    for ours, _ in pairs:
        loop.run_until_complete(loop.create_connection(Receiver, sock=ours))
    for _, theirs in pairs:
        theirs.send(b"data")
    with pytest.raises(KeyboardInterrupt):
        loop.run_forever()
    loop.run_forever()
    assert received == [b"data"] * 3
    for _, theirs in pairs:
        theirs.close()


# Exceptions


@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize("kind", [LookupError, asyncio.CancelledError, GeneratorExit])
def test_an_exception_of_a_handle_is_reported_and_the_others_run(loop, kind, debug):
    loop.set_debug(debug)
    contexts, ran = [], []
    loop.set_exception_handler(lambda loop, context: contexts.append(context))

    def fail():
        raise kind("why")

    handles = [loop.call_soon(fail), loop.call_later(0.001, fail)]
    loop.call_soon(ran.append, 1)
    loop.call_later(0.02, loop.stop)
    loop.run_forever()
    assert [type(context["exception"]) for context in contexts] == [kind, kind]
    assert [context["handle"] for context in contexts] == handles
    assert all("fail" in context["message"] for context in contexts)
    assert ran == [1]


# The end


def test_close_is_final_and_may_be_repeated(loop):
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    loop.close()
    for call in (
        lambda: loop.call_soon(print),
        lambda: loop.call_later(0, print),
        lambda: loop.call_soon_threadsafe(print),
        loop.run_forever,
    ):
        with pytest.raises(RuntimeError, match="closed"):
            call()
    assert loop.stats().iterations > 0


def test_a_loop_with_open_connections_is_closed_whole(loop):
    ours, theirs = socket.socketpair()
    transport, _ = loop.run_until_complete(loop.create_connection(asyncio.Protocol, sock=ours))
    server = loop.run_until_complete(loop.create_server(asyncio.Protocol, "127.0.0.1", 0))
    transport.write(b"last words")
    loop.close()
    with theirs:
        theirs.settimeout(PATIENCE)
        assert theirs.recv(100) == b"last words"
        assert theirs.recv(100) == b""
    assert transport.is_closing()
    transport.write(b"dropped")
    transport.close()
    transport.abort()
    server.close()


def test_the_child_of_a_fork_leaves_the_loop_to_its_parent():
    program = """if True:
        import asyncio, os, pyasync.aio
        async def main():
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            pid = os.fork()
            if not pid:
                asyncio.set_event_loop(None)
                try:
                    loop.call_soon(print)
                    asyncio._set_running_loop(None)
                    assert pyasync.aio.run(asyncio.sleep(0.01, 3)) == 3
                finally:
                    os._exit(0)
            assert os.waitpid(pid, 0)[1] == 0
            writer.write(b"still here")
            print(await reader.readexactly(10))
            writer.close()
        async def echo(reader, writer):
            writer.write(await reader.read(100))
            writer.close()
        loop = pyasync.aio.new_event_loop()
        server = loop.run_until_complete(asyncio.start_server(echo, "127.0.0.1", 0))
        loop.run_until_complete(asyncio.wait_for(main(), 30))
    """
    done = run_python("-W", "ignore", "-c", program)
    assert done.stdout == "b'still here'\n", done.stderr


# Times that come at once, and times that never come


@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize("when", [-math.inf, -(10**400), -1e300, -1, 0, math.nan])
def test_a_time_that_has_passed_is_due_at_once(loop, when, debug):
    loop.set_debug(debug)
    loop.call_at(when, loop.stop)
    loop.run_forever()
    if abs(when) != 10**400:  # no float holds it: asyncio refuses it as well
        loop.call_later(when, loop.stop)
        loop.run_forever()


def test_no_delay_costs_no_millisecond(loop):
    """Rounded up, nearly each would be a millisecond after the last, also on a fast machine."""
    calls = []

    def again():
        calls.append(loop.time())
        if len(calls) < 1000:
            loop.call_later(0, again)
        else:
            loop.stop()

    again()
    loop.run_forever()
    short = sum(after - before < 0.0005 for before, after in zip(calls, calls[1:]))
    assert short > 100


def test_a_timer_without_a_delay_runs_in_the_next_iteration(loop):
    """Before what a chain of other handles adds then."""

    async def main():
        ran = []
        loop.call_later(0, ran.append, "timer")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return ran

    assert loop.run_until_complete(main()) == ["timer"]


@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.skipif(sys.version_info < (3, 14), reason="cancel does not wait there")
def test_cancel_of_a_threads_call_waits_until_it_has_ended(loop, debug):
    loop.set_debug(debug)
    begun, ended = threading.Event(), []

    def call():
        begun.set()
        time.sleep(0.3)
        ended.append(name.get())

    def in_thread():
        name.set("the thread's")
        handle = loop.call_soon_threadsafe(call)
        assert begun.wait(PATIENCE)
        handle.cancel()
        ended.append("cancelled")
        loop.call_soon_threadsafe(loop.stop)

    name = contextvars.ContextVar("name")
    thread = threading.Thread(target=in_thread)
    thread.start()
    loop.run_forever()
    thread.join()
    assert ended == ["the thread's", "cancelled"]


# Ends


def test_a_loop_that_cannot_be_made_leaves_nothing_and_says_why():
    program = """
import gc, resource, pyasync.aio
pyasync.aio.new_event_loop().close()
resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
try:
    pyasync.aio.new_event_loop()
except OSError as error:
    print(error.errno)
gc.collect()
"""
    done = run_python("-W", "error", "-c", program)
    assert (done.stdout.strip(), done.stderr) == (str(errno.EMFILE), "")


def test_a_close_that_was_interrupted_can_be_repeated(loop):
    def interrupt():
        raise KeyboardInterrupt

    class Executor(ThreadPoolExecutor):
        def shutdown(self, wait=True, **options):
            super().shutdown(wait)
            interrupt()

    loop.set_default_executor(Executor(1))
    before = len(os.listdir("/dev/fd"))
    with pytest.raises(KeyboardInterrupt):
        loop.close()
    loop.close()
    assert len(os.listdir("/dev/fd")) < before
    with pytest.raises(pyasync.EventLoopNotRunning):
        loop._engine.call_threadsafe(interrupt)


def test_a_closed_loop_keeps_no_timers_callback():
    loop = pyasync.aio.new_event_loop()

    class Callback:
        def __call__(self):
            pass

    callback = Callback()
    dead = weakref.ref(callback)
    loop.call_later(1000, callback)
    loop.close()
    del callback
    for _ in range(3):
        gc.collect()
    assert dead() is None
