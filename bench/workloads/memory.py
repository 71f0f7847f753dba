"""Connections held open, each with its delay pending."""

import contextlib
import os
import time

from common import Cpu, private_bytes
from contenders import PATIENCE, load, running

from workloads import Workload, points

HELD_BEFORE = 1_000  # so that what is free in the heap at the start does not count
ROUNDS = 10


@contextlib.contextmanager
def held(pid, port, count, already, options):
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


def measure_held(contender, connections, options):
    connections = connections or options.connections
    first = min(HELD_BEFORE, connections)
    words = ("http", options.held_delay)
    with (
        running(contender, options.server_cores, *words) as (pid, port),
        held(pid, port, first, 0, options),
    ):
        before = private_bytes(pid)
        with held(pid, port, connections, first, options):
            after = private_bytes(pid)
    return {"bytes/connection": (after - before) / connections}


def measure_growth(contender, value, options):
    count, words = options.connections, ("http", options.held_delay)
    patience = ROUNDS * (options.held_delay + 20) + PATIENCE
    with running(contender, options.server_cores, *words, patience=patience) as (pid, port):
        start, grown = private_bytes(pid), []
        for _ in range(ROUNDS):
            with held(pid, port, count, 0, options):
                grown.append((private_bytes(pid) - start) / count)
    first, last = grown[0], grown[-1]
    return {"bytes/connection": last, "in the first round": first, "growth": last - first}


WORKLOADS = [
    Workload(
        "held",
        "{connections:,} connections held, each with its delay pending",
        "The private memory (Private_Clean and Private_Dirty of smaps_rollup) that the server has\n"
        "gained for each connection, the kernel's not counted. No client limits it.",
        measure_held,
    ),
    Workload(
        "growth",
        "the same {connections:,} connections held ten times over",
        "Private bytes for each connection, all that the process has gained since its start, in\n"
        "the tenth round and in the first. What leaks grows; a garbage collector takes its time.",
        measure_growth,
        once=True,
    ),
    Workload(
        "scale-held",
        "so many connections held",
        "Private bytes for each. A few hundred may fit into what is free already.",
        measure_held,
        points(100, 1_000, 10_000),
        curve="connections",
    ),
]
