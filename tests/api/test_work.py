"""Work: functions that run in other threads, and their results in the loop."""

import os
import threading
import time
from functools import partial

import pytest
from peers import Background, fork_and_check, interrupt, nothing, run_python

import pyasync
from pyasync import threads

PATIENCE = 20


class Gate:
    """A function for a thread that waits until it is let go; `entered` when it has begun."""

    def __init__(self, result=None):
        self.entered, self.go = threading.Event(), threading.Event()
        self.result = result

    def __call__(self):
        self.entered.set()
        assert self.go.wait(PATIENCE), "nobody let it go"
        return self.result


def test_the_result_of_a_function_in_another_thread_comes_to_the_loops(run):
    found = []

    def compute():
        return threading.get_ident(), pyasync.current_loop()

    def callback(result):
        found.append((result, threading.get_ident(), pyasync.current_loop() is not None))

    run(lambda: pyasync.work(compute, callback))
    ((other, loop), ident, in_loop) = found[0]
    assert other != ident == threading.get_ident()
    assert loop is None
    assert in_loop


def test_the_loop_runs_on_while_a_function_does(run):
    found = []
    with run():
        gate = Gate("result")
        pyasync.work(gate, found.append)
        pyasync.delay(gate.go.set, time=0.01)  # which only a loop that runs can do
    assert found == ["result"]


def test_a_thousand_functions_all_run_and_their_results_arrive(run):
    found = []

    with run():
        for number in range(1000):
            pyasync.work(partial(pow, number, 2), found.append)
        assert pyasync.stats().handles["work"] == 1000
    assert sorted(found) == [number**2 for number in range(1000)]


def test_a_callback_may_give_more_work(run):
    found = []

    def more(number):
        found.append(number)
        if number < 20:
            pyasync.work(partial(int, number + 1), more)

    run(partial(more, 0))
    assert found == list(range(21))


# Exceptions


def test_the_exception_of_the_function_goes_to_event_cb_as_it_is(run):
    errors = []
    error = ZeroDivisionError("mine")

    def fail():
        raise error

    run(lambda: pyasync.work(fail, partial(pytest.fail, "called"), event_cb=errors.append))
    assert errors == [error]


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit])
@pytest.mark.parametrize("policy", [False, True])
def test_an_exception_that_is_none_of_the_applications_leaves_the_loop(run, error, policy):
    def fail():
        raise error

    with pytest.raises(error):
        run(
            lambda: pyasync.work(fail, nothing, event_cb=partial(pytest.fail, "told")),
            catch_app_errors=policy,
        )


# Closing


def test_work_that_no_thread_has_begun_can_be_cancelled(run):
    works, found, ran = [], [], []
    with run():
        pyasync.set_max_workers(1)
        first = Gate("first")
        works.append(pyasync.work(first, found.append))
        works.append(pyasync.work(partial(ran.append, "second"), partial(pytest.fail, "called")))
        assert first.entered.wait(PATIENCE)
        assert [work.running for work in works] == [True, False]
        works[1].close()
        works[1].close()
        assert works[1].closed
        assert works[1].cancelled
        first.go.set()
    assert (found, ran) == (["first"], [])
    assert not works[0].cancelled


def test_the_callback_of_closed_work_is_not_called_though_its_function_ends(run):
    with run():
        gate = Gate()
        work = pyasync.work(gate, partial(pytest.fail, "called"), event_cb=partial(pytest.fail))
        assert gate.entered.wait(PATIENCE)
        work.close()
        assert work.closed
        assert not work.cancelled
        gate.go.set()
        pyasync.work(nothing, nothing)  # the loop runs on, and would call it


def test_work_that_is_done_can_be_closed_before_its_callback_is_called(run):
    with run():
        done = threading.Event()
        work = pyasync.work(done.set, partial(pytest.fail, "called"))
        assert done.wait(PATIENCE)
        work.close()


def test_work_is_closed_when_its_callback_is_called(run):
    def callback(result):
        closed.append(work.closed)
        work.close()

    closed = []
    with run():
        work = pyasync.work(int, callback)
        closed.append(work.closed)
    assert closed == [False, True]
    with pytest.raises(pyasync.EventLoopNotRunning):
        work.ref()


# The end of the loop


@pytest.mark.parametrize("error", [None, ZeroDivisionError, KeyboardInterrupt])
def test_a_loop_that_is_left_cancels_what_has_not_begun(run, error):
    def leave():
        if error is None:
            pyasync.exit_event_loop()
        else:
            raise error

    def start():
        pyasync.set_max_workers(2)
        gates.extend([Gate(), Gate()])
        for gate in gates:
            works.append(pyasync.work(gate, partial(pytest.fail, "called")))
        for _ in range(10):
            works.append(pyasync.work(partial(ran.append, 1), partial(pytest.fail, "called")))
        for gate in gates:
            assert gate.entered.wait(PATIENCE)
        others.append(Background(let_go_after_the_end))
        leave()

    def let_go_after_the_end():
        while not works[-1].cancelled:
            time.sleep(0.001)
        for gate in gates:
            gate.go.set()

    works, gates, ran, others = [], [], [], []
    if error is None:
        run(start)
    else:
        with pytest.raises(error):
            run(start)
    assert [work.cancelled for work in works] == [False] * 2 + [True] * 10
    others[0].result()
    assert all(work.closed for work in works)
    assert ran == []


def test_a_function_that_does_not_end_is_left_to_its_thread_with_a_warning(run, monkeypatch):
    def start():
        before.update(threading.enumerate())
        pyasync.work(gate, partial(pytest.fail, "called"))
        assert gate.entered.wait(PATIENCE)
        pyasync.exit_event_loop()

    monkeypatch.setattr(threads, "CLOSE_WAIT", 0.01)
    gate, before = Gate(), set()
    with pytest.warns(ResourceWarning, match="has left work to its threads") as warned:
        run(start)
    assert len(warned) == 1  # it is waited for once, although a loop is closed three times
    left = set(threading.enumerate()) - before
    gate.go.set()
    for thread in left:
        thread.join(PATIENCE)


def test_the_threads_of_a_loop_end_with_it(run):
    before = set(threading.enumerate())

    with run():
        for _ in range(50):
            pyasync.work(nothing, nothing)
    assert set(threading.enumerate()) == before


def test_each_loop_has_its_own_threads(run):
    found = []
    for _ in range(3):
        run(lambda: pyasync.work(threading.current_thread, found.append))
    assert len({id(thread) for thread in found}) == 3


# How many threads


def running_at_once(limit, count):
    """Give work for `count`, and return a list that will have the most that ran at a time."""
    lock, running, most = threading.Lock(), [0], [0]
    all_there = threading.Barrier(limit)

    def fn():
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        all_there.wait(PATIENCE)  # passes only if so many run at once
        with lock:
            running[0] -= 1

    for _ in range(count):
        pyasync.work(fn, nothing)
    return most


@pytest.mark.parametrize("limit", [1, 3, 20])
def test_so_many_functions_run_at_once(run, limit):
    most = []
    with run():
        pyasync.set_max_workers(limit)
        most.append(running_at_once(limit, 3 * limit))
    assert most == [[limit]]


def test_more_threads_take_what_waits_for_one(run):
    most, found = [], []
    with run():
        pyasync.set_max_workers(1)
        first = Gate("first")
        pyasync.work(first, found.append)
        assert first.entered.wait(PATIENCE)
        most.append(running_at_once(5, 10))
        pyasync.work(first.go.set, nothing)  # ends the first when it is its turn: so not behind it
        pyasync.set_max_workers(5)
    assert found == ["first"]
    assert most == [[5]]


def test_fewer_threads_take_what_waits_in_order(run):
    ran = []
    with run():
        pyasync.set_max_workers(4)
        gates = [Gate() for _ in range(4)]
        for gate in gates:
            pyasync.work(gate, nothing)
        for gate in gates:
            assert gate.entered.wait(PATIENCE)
        for number in range(20):
            pyasync.work(partial(ran.append, number), nothing)
        pyasync.set_max_workers(1)
        pyasync.work(lambda: [gate.go.set() for gate in gates], nothing)
    assert ran == list(range(20))


# Forks


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_the_child_of_a_fork_has_work_of_its_own(run):
    found = []

    def check():
        work.close()
        in_child = []
        pyasync.start_event_loop(lambda: pyasync.work(lambda: "child's", in_child.append))
        assert in_child == ["child's"]

    with run():
        gate = Gate("parent's")
        work = pyasync.work(gate, found.append)
        assert gate.entered.wait(PATIENCE)
        fork_and_check(check)
        gate.go.set()
    assert found == ["parent's"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_the_child_of_a_fork_can_end_as_programs_do():
    script = """
import os, pyasync, sys, threading, warnings

warnings.simplefilter("ignore")  # 3.12 warns of a fork beside threads

go, entered = threading.Event(), threading.Event()

def fn():
    entered.set()
    go.wait(20)

with pyasync.event_loop():
    pyasync.work(fn, lambda result: print("done", flush=True))
    entered.wait(20)
    pid = os.fork()
    if pid == 0:
        sys.exit(3)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3
    go.set()
"""
    finished = run_python("-c", script)
    assert (finished.stdout, finished.stderr) == ("done\n", "")


def test_ctrl_c_ends_a_loop_that_waits_for_work_and_then_the_program():
    _, output, errors = interrupt("""
import pyasync, threading

gate = threading.Event()
with pyasync.event_loop():
    pyasync.add_event_loop_exit_callback(gate.set)
    pyasync.work(lambda: print("ready", flush=True) or gate.wait(20), print)
""")
    assert output == ""
    assert errors[-1].startswith("KeyboardInterrupt")
