"""Idlers: a callback in each iteration of the loop."""

import contextlib
import socket
from functools import partial

import pyasync


def test_an_idler_runs_once_in_each_iteration(run):
    counts = []

    def count():
        counts.append(pyasync.stats().iterations)
        if len(counts) == 517:
            pyasync.free_idler(idler)

    with run():
        idler = pyasync.idle(count)
    assert counts == list(range(counts[0], counts[0] + 517))


def test_several_idlers_run_in_each_iteration(run):
    calls = []

    def call(name):
        calls.append((pyasync.stats().iterations, name))
        if len(calls) == 30:
            for idler in idlers:
                idler.close()

    idlers = []
    with run():
        idlers.extend(pyasync.idle(partial(call, name)) for name in "abc")
    first = calls[0][0]
    assert sorted(calls) == [(first + n, name) for n in range(10) for name in "abc"]


def test_an_idler_runs_also_in_iterations_that_have_ready_calls(run):
    calls = []

    def ready(left):
        calls.append("ready")
        if left:
            pyasync.call_soon(partial(ready, left - 1))
        else:
            idler.close()

    with run():
        idler = pyasync.idle(partial(calls.append, "idle"))
        ready(10)
    assert calls.count("idle") == 10


def test_an_idler_runs_in_each_iteration_that_reads_much(run):
    """More than an iteration reads is there from the first peer on."""
    counts, read = [], []

    def read_cb(socket, data):
        read.append(len(data))
        with contextlib.suppress(BlockingIOError):
            for peer in peers:
                peer.send(bytes(1 << 20))

    def count():
        counts.append(pyasync.stats().iterations)
        if len(counts) == 200:
            pyasync.exit_event_loop()

    peers = []
    try:
        with run():
            server = pyasync.tcp_server("127.0.0.1", 0, read_cb)
            for _ in range(8):
                peers.append(socket.create_connection(server.address))
                peers[-1].setblocking(False)
                peers[-1].send(bytes(1 << 20))
            pyasync.idle(count)
    finally:
        for peer in peers:
            peer.close()
    assert counts == list(range(counts[0], counts[0] + 200))
    assert sum(read) > 20 << 20


# Its end


def test_an_idler_can_be_made_by_the_callback_of_one_that_closes(run):
    def chain(left):
        calls.append(left)
        idlers.pop().close()
        if left:
            idlers.append(pyasync.idle(partial(chain, left - 1)))

    calls, idlers = [], []
    run(lambda: idlers.append(pyasync.idle(partial(chain, 9))))
    assert calls == list(range(9, -1, -1))


def test_an_idler_that_nobody_refers_to_runs_on(run):
    calls = []

    def call():
        calls.append(1)
        if len(calls) == 3:
            pyasync.exit_event_loop()

    run(lambda: pyasync.idle(call) and None)
    assert len(calls) == 3
