"""Connections held open, each with its delay pending."""

import contextlib

import contenders
from measuring import http_load, http_result, private_bytes, wait_until_held

from workloads import Workload

HELD_BEFORE = 1_000  # so that what is free in the heap at the start does not count
ROUNDS = 10


def measure_held(contender, value, options):
    return {"bytes/connection": hold(contender, options.connections, options)}


def hold(contender, connections, options):
    delay = options.held_delay
    with (
        contenders.running(contender, options.server_cores, "http", delay) as (pid, port),
        contextlib.ExitStack() as stack,
    ):
        private, held, clients = [], 0, []
        for count in (min(HELD_BEFORE, connections), connections):
            client = http_load(options.client_cores, port, count, requests=count)
            clients.append(client)
            stack.enter_context(contenders.bounded(client))
            held += count
            wait_until_held(pid, held, delay)
            private.append(private_bytes(pid))
        for client in clients:
            http_result(client)
    before, after = private
    return (after - before) / connections


def measure_growth(contender, value, options):
    delay, count = options.held_delay, options.connections
    private = []
    patience = ROUNDS * (delay + 20) + contenders.PATIENCE
    with contenders.running(contender, options.server_cores, "http", delay, patience=patience) as (
        pid,
        port,
    ):
        start = private_bytes(pid)
        for _ in range(ROUNDS):
            client = http_load(options.client_cores, port, count, requests=count)
            with contenders.bounded(client):
                wait_until_held(pid, count, delay)
                private.append(private_bytes(pid))
                http_result(client)
    first, last = ((value - start) / count for value in (private[0], private[-1]))
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
]
