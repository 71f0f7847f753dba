"""Connections held open: the memory that each takes."""

import contextlib
import os
import socket
import time

from common import KIB, Cpu, private_bytes
from contenders import PATIENCE, load, running

from workloads import points, workload

HELD_BEFORE = 1_000  # so that what is free in the heap at the start does not count


@contextlib.contextmanager
def holding(pid, port, count, already, options):
    """Make connections; run the block when all are held, and the rest when all are answered."""
    with load("http", options.client_cores, port, count, "-n", count) as lines:
        next(lines)
        wait_until_held(pid, already + count, options.held_delay)
        yield
        next(lines)


def wait_until_held(pid, connections, seconds):
    """Wait until the process has so many descriptors, and rests."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        used = Cpu.of(pid).seconds
        time.sleep(0.2)
        resting = Cpu.of(pid).seconds - used < 0.01
        if resting and len(os.listdir(f"/proc/{pid}/fd")) >= connections:
            return
    raise RuntimeError(f"the server never held {connections:,} connections")


@workload()
def held(contender, connections, options):
    """{connections:,} connections held, each with its delay pending.

    The private memory (Private_Clean and Private_Dirty of smaps_rollup) that the server has
    gained for each connection, the kernel's not counted. No client limits it.
    """
    connections = connections or options.connections
    first = min(HELD_BEFORE, connections)
    with (
        running(contender, options.server_cores, "http", options.held_delay) as (pid, port),
        holding(pid, port, first, 0, options),
    ):
        before = private_bytes(pid)
        with holding(pid, port, connections, first, options):
            after = private_bytes(pid)
    return {"bytes/connection": (after - before) / connections}


@workload()
def idle(contender, connections, options):
    """{connections:,} connections that have echoed 1 KiB, and rest.

    Private memory for each: of the connection alone, without a timer.
    """
    with running(contender, options.server_cores, "echo") as (pid, port):
        address = "127.0.0.1", port
        return idle_cost(
            pid, lambda: socket.create_connection(address), HELD_BEFORE, options.connections
        )


def idle_cost(pid, connect, before, count):
    """Return what each of `count` connections takes, when there are `before` of them already."""
    with contextlib.ExitStack() as stack:
        private = []
        for more in (before, count):
            for _ in range(more):
                sock = stack.enter_context(connect())
                sock.sendall(bytes(KIB))
                receive(sock, KIB)
            time.sleep(0.3)
            private.append(private_bytes(pid))
    return {"bytes/connection": (private[1] - private[0]) / count}


def receive(sock, size):
    while size:
        data = sock.recv(size)
        if not data:
            raise RuntimeError("the server has closed the connection")
        size -= len(data)


@workload(once=True)
def growth(contender, value, options):
    """the same {connections:,} connections held ten times over.

    Private bytes for each connection, all that the process has gained since its start, in
    the tenth round and in the first. What leaks grows; a garbage collector takes its time.
    """
    count, words = options.connections, ("http", options.held_delay)
    patience = 10 * (options.held_delay + 20) + PATIENCE
    with running(contender, options.server_cores, *words, patience=patience) as (pid, port):
        start, grown = private_bytes(pid), []
        for _ in range(10):
            with holding(pid, port, count, 0, options):
                grown.append((private_bytes(pid) - start) / count)
    first, last = grown[0], grown[-1]
    return {"bytes/connection": last, "in the first round": first, "growth": last - first}


@workload(cases=points(100, 1_000, 10_000), curve="connections")
def scale_held(contender, connections, options):
    """so many connections held.

    Private bytes for each. A few hundred may fit into what is free already.
    """
    return held(contender, connections, options)
