"""The event loop: how it starts, what it runs in which order, and how it ends."""

import importlib.metadata
import logging
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from functools import partial

import pytest
from peers import PATIENCE, echo, nothing

import pyasync

HOUR = 3600.0


def closed_when_the_loop_ends():
    """Open a server and an event, and return a function that says whether both are closed."""
    server = pyasync.tcp_server("127.0.0.1", 0, nothing)
    event = pyasync.delay(partial(pytest.fail, "fired"), time=HOUR)

    def are_closed():
        with pytest.raises(pyasync.EventLoopNotRunning):
            event.add()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(server.address)
        return server.closed

    return are_closed


# Start and end


def test_the_start_function_runs_in_the_loop():
    loops = [pyasync.current_loop()]
    result = pyasync.start_event_loop(lambda: loops.append(pyasync.current_loop()))
    assert result is None
    assert isinstance(loops[1], pyasync.Loop)
    assert [loops[0], pyasync.current_loop()] == [None, None]


def test_the_loop_runs_until_nothing_is_left(run):
    calls = []

    def last():
        calls.append("last")

    with run():
        pyasync.delay(lambda: pyasync.call_soon(lambda: pyasync.delay(last, time=0.005)))
    assert calls == ["last"]


def test_a_second_loop_in_one_thread_is_refused_and_the_first_goes_on(run):
    calls = []

    with run():
        outer = pyasync.current_loop()
        with pytest.raises(RuntimeError, match="running in this thread already"):
            pyasync.start_event_loop(nothing)
        with pytest.raises(RuntimeError), pyasync.event_loop():
            pass
        assert pyasync.current_loop() is outer
        pyasync.delay(lambda: calls.append("delay"), time=0.001)
    assert calls == ["delay"]


def test_loops_follow_each_other_in_one_thread(run):
    calls = []
    for number in range(20):
        run(partial(pyasync.delay, partial(calls.append, number)))
    assert calls == list(range(20))


def test_loops_in_several_threads_are_independent(run):
    together = threading.Barrier(4, timeout=10)
    loops, threads = set(), set()

    def start():
        loops.add(pyasync.current_loop())
        pyasync.delay(meet, time=0.001)

    def meet():
        together.wait()  # with the same callback in the three other loops
        threads.add(threading.get_ident())
        assert pyasync.current_loop() in loops
        if threading.current_thread() is leaver:
            pyasync.exit_event_loop()
        pyasync.delay(partial(fired.append, threading.current_thread()), time=0.01)

    fired = []
    others = [threading.Thread(target=run, args=[start]) for _ in range(3)]
    leaver = others[0]
    for thread in others:
        thread.start()
    run(start)
    for thread in others:
        thread.join()
    assert len(loops) == len(threads) == 4
    assert set(fired) == {threading.current_thread(), *others[1:]}


@pytest.mark.parametrize("wrong", [None, 1, "start"])
def test_a_start_function_that_cannot_be_called_is_refused(wrong):
    with pytest.raises(TypeError, match="start_fn must be a function"):
        pyasync.start_event_loop(wrong)
    assert pyasync.current_loop() is None


@pytest.mark.parametrize("wrong", [None, 1, "yes"])
def test_catch_app_errors_must_be_a_bool_or_a_function(wrong):
    with pytest.raises(TypeError, match="catch_app_errors"):
        pyasync.start_event_loop(nothing, catch_app_errors=wrong)
    with (
        pytest.raises(TypeError, match="catch_app_errors"),
        pyasync.event_loop(catch_app_errors=wrong),
    ):
        pass
    assert pyasync.current_loop() is None


@pytest.mark.parametrize(
    ("wrong", "error"), [("1", TypeError), (0, ValueError), (-1, ValueError), (1e300, ValueError)]
)
def test_the_threshold_of_slow_callbacks_is_a_time(wrong, error):
    with pytest.raises(error):
        pyasync.start_event_loop(nothing, slow_callback_threshold=wrong)
    assert pyasync.current_loop() is None


@pytest.mark.parametrize("closed", [[0], [0, 1, 2]])
def test_a_program_that_has_closed_its_standard_streams_can_have_a_loop(closed):
    """Libuv aborts when it closes a descriptor of such a number."""
    script = f"""
import os, pyasync
for fd in {closed}:
    os.close(fd)
with pyasync.event_loop():
    process = pyasync.spawn("cat", [], input=pyasync.PIPE, error_output=pyasync.INHERIT)
    process.input.close()
assert (process.exit_status, process.term_signal) == (0, 0)
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=20)


# What makes a descriptor, after the standard streams were closed in a callback. `done` ends the
# loop; `made` checks a descriptor that we get.
MAKES_A_DESCRIPTOR = {
    "accept": """
server = pyasync.tcp_server("127.0.0.1", 0, nothing, connect_cb=lambda sock: (made(sock), done()))
client = socket.socket()
close()
client.connect(server.address)
""",
    "tcp_connect": """
close()
pyasync.tcp_connect(*listener.getsockname(), nothing, connect_cb=lambda sock: (made(sock), done()))
""",
    "tcp_server": """
close()
made(pyasync.tcp_server("127.0.0.1", 0, nothing))
done()
""",
    "tcp_server on a descriptor": """
close()
made(pyasync.tcp_server(None, 0, nothing, fd=listener.fileno()))
done()
""",
    "pipe_server": """
close()
made(pyasync.pipe_server(path, nothing))
done()
""",
    "pipe_connect": """
pyasync.pipe_server(path, nothing)
close()
pyasync.pipe_connect(path, nothing, connect_cb=lambda sock: (made(sock), done()))
""",
    "udp_socket": """
close()
made(pyasync.udp_socket("127.0.0.1", 0, nothing))
done()
""",
    "poll": """
close()
pyasync.poll(listener, nothing)
done()
""",
    "fs_watch": """
close()
pyasync.fs_watch("/", nothing)
done()
""",
    "fs.open": """
close()
pyasync.fs.open("/", os.O_RDONLY, callback=lambda fd: (made(fd), done()))
""",
    "open_stream": """
sock, peer = socket.socketpair()
copies = [os.dup(fd) for fd in (sock.fileno(), 0, *os.pipe()[:1])]
close()
made(*(pyasync.open_stream(fd, nothing) for fd in copies))
done()
""",
    "spawn": """
close()
process = pyasync.spawn("cat", [], input=pyasync.PIPE, output=pyasync.PIPE)
made(process.input, process.output)
process.input.close()
""",
    "another loop": """
def other():
    with pyasync.event_loop():
        made(pyasync.tcp_server("127.0.0.1", 0, nothing))
        pyasync.exit_event_loop()

close()
thread = threading.Thread(target=other)
thread.start()
thread.join()
done()
""",
}


@pytest.mark.parametrize("what", MAKES_A_DESCRIPTOR)
def test_nothing_of_a_loop_gets_the_number_of_a_standard_stream(what, tmp_path):
    """Libuv aborts when it closes it, and so would a daemon close it that opens them again."""
    program = f"""
import os, socket, threading, pyasync

path = {str(tmp_path / "socket")!r}
listener = socket.create_server(("127.0.0.1", 0))

def nothing(*args):
    pass

def close():
    for fd in range(3):
        os.close(fd)

def made(*things):
    for thing in things:
        assert (thing if isinstance(thing, int) else thing.fileno()) > 2

def done():
    pyasync.exit_event_loop()

def start():
{textwrap.indent(MAKES_A_DESCRIPTOR[what], "    ")}

def begin():
    try:
        start()
    except BaseException:
        os._exit(3)

pyasync.start_event_loop(lambda: pyasync.delay(begin))
"""
    assert (
        subprocess.run(
            [sys.executable, "-c", program], stdin=subprocess.PIPE, timeout=3 * PATIENCE
        ).returncode
        == 0
    )


CLOSING_ALL = "os.closerange(3, 200)"


@pytest.mark.parametrize(
    ("between", "starts"),
    [
        (CLOSING_ALL, False),
        ("fork(); " + CLOSING_ALL, False),
        ("fork()", True),
        ("fork(); fork()", True),
        ("[os.pipe() for _ in range(100)]", True),
    ],
    ids=["closed", "closed by a child", "fork", "two forks", "pipes"],
)
def test_a_program_that_closes_what_libuv_keeps_is_told_so(between, starts):
    """As a daemon that closes all its descriptors, between two loops."""
    program = f"""if True:
        import os, pyasync

        def fork():
            pid = os.fork()
            if pid:
                os._exit(os.waitpid(pid, 0)[1] >> 8)

        def start():
            pyasync.signal_handler(10, print).close()
            print("it runs", flush=True)

        pyasync.start_event_loop(lambda: None)
        {between}
        try:
            pyasync.start_event_loop(start)
        except OSError as error:
            print(error, flush=True)
            assert pyasync.current_loop() is None
    """
    result = subprocess.run(
        [sys.executable, "-c", program], timeout=3 * PATIENCE, stdout=subprocess.PIPE, text=True
    )
    assert result.returncode == 0
    assert ("closerange" in result.stdout, "it runs" in result.stdout) == (not starts, starts)


# with event_loop()


def test_the_body_of_the_block_runs_in_the_loop_which_then_runs_on():
    calls = []
    with pyasync.event_loop() as loop:
        assert pyasync.current_loop() is loop
        pyasync.delay(lambda: calls.append("delay"), time=0.001)
        calls.append("body")
    assert calls == ["body", "delay"]
    assert pyasync.current_loop() is None


def test_a_block_that_raises_closes_everything_and_runs_nothing():
    are_closed = []

    def body():
        are_closed.append(closed_when_the_loop_ends())
        pyasync.call_soon(partial(pytest.fail, "ran"))
        pyasync.delay(partial(pytest.fail, "fired"))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), pyasync.event_loop():
        body()
    assert are_closed[0]()


def test_the_block_takes_the_keywords_of_start_event_loop():
    told = []
    with pyasync.event_loop(
        catch_app_errors=told.append, send_errors_to_event_cb=False, buffer_writes=False
    ):
        pyasync.call_soon(lambda: 1 / 0)
    assert [type(error) for error in told] == [ZeroDivisionError]


def test_exit_event_loop_in_the_body_of_the_block_runs_nothing():
    with pyasync.event_loop():
        pyasync.call_soon(partial(pytest.fail, "ran"))
        pyasync.exit_event_loop()
    assert pyasync.current_loop() is None


# exit_event_loop


def test_the_callback_that_leaves_the_loop_runs_to_its_end(run):
    calls = []

    def leave():
        pyasync.exit_event_loop()
        pyasync.exit_event_loop()
        pyasync.call_soon(lambda: calls.append("later"))
        calls.append("end")

    run(lambda: pyasync.delay(leave))
    assert calls == ["end"]


def test_leaving_the_loop_closes_everything(run):
    closed = []

    with run():
        closed.append(closed_when_the_loop_ends())
        pyasync.delay(pyasync.exit_event_loop)
    assert closed[0]()


@pytest.mark.parametrize("buffered", [True, False])
def test_events_of_the_same_batch_are_not_delivered_after_leaving(run, buffered):
    fired = []

    def leave():
        fired.append("leave")
        pyasync.exit_event_loop()

    with run(buffer_writes=buffered):
        pyasync.delay(lambda: fired.append("before"))
        pyasync.delay(leave)
        for _ in range(10):
            pyasync.delay(lambda: fired.append("after"))
    assert fired == ["before", "leave"]


def test_calls_that_are_ready_are_not_run_after_leaving(run):
    calls = []

    def leave():
        calls.append("leave")
        pyasync.exit_event_loop()

    with run():
        pyasync.call_soon(lambda: calls.append("before"))
        pyasync.call_soon(leave)
        pyasync.call_soon(lambda: calls.append("after"))
        pyasync.current_loop().call_threadsafe(lambda: calls.append("threadsafe"))
    assert calls == ["before", "leave"]


def test_a_timer_that_leaves_keeps_ready_calls_from_running(run):
    calls = []

    def leave():
        pyasync.call_soon(lambda: calls.append("ready"))
        pyasync.exit_event_loop()

    run(lambda: pyasync.delay(leave))
    assert calls == []


# Exit callbacks


def test_exit_callbacks_run_in_order_before_anything_is_closed(run):
    calls = []

    with run():
        server = pyasync.tcp_server("127.0.0.1", 0, nothing)
        pyasync.add_event_loop_exit_callback(lambda: calls.append(("first", server.closed)))
        pyasync.add_event_loop_exit_callback(lambda: calls.append(("second", server.closed)))
        server.unref()
    assert calls == [("first", False), ("second", False)]


def leave_by_itself():
    pass


def leave_by_exit_event_loop():
    pyasync.exit_event_loop()


def leave_by_an_exception():
    raise ZeroDivisionError


def leave_by_an_interrupt():
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    "leave",
    [leave_by_itself, leave_by_exit_event_loop, leave_by_an_exception, leave_by_an_interrupt],
)
def test_exit_callbacks_run_however_the_loop_ends(run, leave):
    calls = []

    try:
        with run():
            pyasync.add_event_loop_exit_callback(lambda: calls.append(pyasync.current_loop()))
            leave()
    except (ZeroDivisionError, KeyboardInterrupt):
        pass
    assert len(calls) == 1
    assert calls[0] is not None


def test_an_exit_callback_that_raises_is_logged_and_the_others_still_run(run, caplog):
    calls = []

    with run():
        pyasync.add_event_loop_exit_callback(lambda: 1 / 0)
        pyasync.add_event_loop_exit_callback(lambda: calls.append("second"))
    assert calls == ["second"]
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("pyasync", logging.ERROR)
    assert record.exc_info[0] is ZeroDivisionError


def test_what_an_exit_callback_asks_for_is_closed_with_the_rest(run):
    run(
        lambda: pyasync.add_event_loop_exit_callback(
            lambda: (
                pyasync.delay(partial(pytest.fail, "fired")),
                pyasync.call_soon(partial(pytest.fail, "ran")),
                pyasync.tcp_server("127.0.0.1", 0, nothing),
            )
        )
    )


# Ready calls


def test_ready_calls_run_in_the_order_in_which_they_were_made(run):
    calls = []

    with run():
        for number in range(100):
            pyasync.call_soon(partial(calls.append, number))
    assert calls == list(range(100))


def test_ready_calls_that_a_ready_call_makes_wait_for_the_next_iteration(run):
    calls = []

    def call(name):
        calls.append((name, pyasync.stats().iterations))

    with run():
        pyasync.call_soon(lambda: (call("first"), pyasync.call_soon(partial(call, "third"))))
        pyasync.call_soon(partial(call, "second"))
    assert [name for name, _ in calls] == ["first", "second", "third"]
    first, second, third = (iteration for _, iteration in calls)
    assert first == second
    assert third == first + 1


def test_a_ready_call_runs_after_the_callbacks_of_its_iteration(run):
    calls = []

    with run():
        pyasync.delay(lambda: pyasync.call_soon(lambda: calls.append("ready")))
        pyasync.delay(lambda: calls.append("second timer"))
    assert calls == ["second timer", "ready"]


# Each function does something in each iteration, until `running` is empty.


def go_on_with_ready_calls(running):
    pyasync.call_soon(lambda: running and go_on_with_ready_calls(running))


def go_on_with_calls_threadsafe(running):
    pyasync.current_loop().call_threadsafe(lambda: running and go_on_with_calls_threadsafe(running))


def go_on_with_idlers(running):
    def run_on():
        if not running:
            for idler in idlers:
                idler.close()

    idlers = [pyasync.idle(run_on) for _ in range(3)]


def wait_for_a_timer(running):
    pyasync.delay(running.clear, time=0.01)


def wait_for_a_connection(running):
    """It sends data to and fro a hundred times."""

    def answered(client, data):
        received.append(data)
        if len(received) < 100:
            client.write(data)
        else:
            running.clear()
            client.close()
            server.close()

    received = []
    server = pyasync.tcp_server("127.0.0.1", 0, echo)
    pyasync.tcp_connect(*server.address, answered, data=b"ping")


@pytest.mark.parametrize("wait_for", [wait_for_a_timer, wait_for_a_connection])
@pytest.mark.parametrize(
    "go_on", [go_on_with_ready_calls, go_on_with_calls_threadsafe, go_on_with_idlers]
)
def test_what_goes_on_and_on_keeps_nothing_else_waiting(run, go_on, wait_for):
    running = [True]
    with run():
        go_on(running)
        wait_for(running)
    assert not running


# Time


def test_now_stands_still_in_a_callback_until_update_time(run):
    with run():
        before = pyasync.now()
        time.sleep(0.02)
        assert pyasync.now() == before
        pyasync.update_time()
        # The loop's clock may be one that ticks every few milliseconds.
        assert pyasync.now() >= before + 0.01


def test_now_moves_on_from_iteration_to_iteration(run):
    times = []

    with run():
        times.append(pyasync.now())
        pyasync.delay(lambda: times.append(pyasync.now()), time=0.05)
    assert times[1] >= times[0] + 0.04


# What there is


def test_the_version_is_that_of_the_installed_package():
    assert pyasync.__version__ == importlib.metadata.version("pyasync")


def test_the_version_of_libuv_is_supported():
    version = pyasync.libuv_version()
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", version)
    assert tuple(int(number) for number in version.split(".")[:2]) >= (1, 44)


def test_what_is_not_referenced_is_served_while_ready_calls_keep_the_loop_running(run):
    """For libuv alone there would be nothing to do."""
    received = []

    def on_data(socket, data):
        received.append(data)
        socket.close()

    def again():
        if not (received and fired):
            pyasync.call_soon(again)

    fired = []
    with run():
        pyasync.delay(partial(fired.append, True), time=0.01).unref()
        server = pyasync.tcp_server("127.0.0.1", 0, on_data)
        server.unref()
        with socket.create_connection(server.address, timeout=10) as client:
            client.sendall(b"hello")
        again()
    assert (received, fired) == ([b"hello"], [True])


def test_the_status_has_a_line_for_each_handle(capsys):
    with pyasync.event_loop():
        pyasync.tcp_server("127.0.0.1", 0, nothing)
        pyasync.signal_handler(signal.SIGUSR1, nothing).unref()
        pyasync.delay(nothing, time=HOUR)
        pyasync.delay(nothing, time=HOUR).unref()
        pyasync.dump_event_loop_status()
        pyasync.exit_event_loop()
    assert sorted(line.split() for line in capsys.readouterr().out.splitlines()) == [
        ["signal", "active", "-", "-"],
        ["tcp-server", "active", "referenced", "-"],
        ["timer", "active", "-", "-"],
        ["timer", "active", "referenced", "-"],
    ]


def test_the_status_shows_handles_that_are_being_closed(capsys):
    with pyasync.event_loop():
        pyasync.tcp_server("127.0.0.1", 0, nothing).close()
        pyasync.delay(nothing, time=HOUR).free()
        pyasync.dump_event_loop_status(sys.stderr)
    output = capsys.readouterr()
    assert output.err.split() == ["tcp-server", "-", "referenced", "closing"]
    assert output.out == ""


def test_the_status_of_an_empty_loop_is_empty(capsys, run):
    run(pyasync.dump_event_loop_status)
    assert capsys.readouterr().out == ""
