"""How the cost changes with the number of connections, or of timers: curves."""

from workloads import Case, Workload
from workloads.echo import KIB, measure_echo
from workloads.http import measure_concurrency
from workloads.memory import hold
from workloads.timers import fire


def points(*counts):
    return lambda options: [
        Case(f"{count:,}", count, count) for count in counts if count <= options.most
    ]


def measure_echo_at(contender, connections, options):
    return measure_echo(contender, (connections, KIB), options)


def measure_held_at(contender, connections, options):
    return {"bytes/connection": hold(contender, connections, options)}


CONNECTIONS = points(1, 10, 100, 1_000, 10_000)

WORKLOADS = [
    Workload(
        "scale-http",
        "http, so many connections at a time",
        "CPU/request of the server. A server that never sleeps takes more events a system call.",
        measure_concurrency,
        CONNECTIONS,
        curve="connections at a time",
    ),
    Workload(
        "scale-echo",
        "echo of 1 KiB, so many connections",
        "CPU/message of the server.",
        measure_echo_at,
        CONNECTIONS,
        curve="connections",
    ),
    Workload(
        "scale-held",
        "so many connections held",
        "Private bytes for each. A few hundred may fit into what is free already.",
        measure_held_at,
        points(100, 1_000, 10_000),
        curve="connections",
    ),
    Workload(
        "scale-timers",
        "so many timers created and fired",
        "CPU time for each timer, of a process of its own.",
        fire,
        points(100, 10_000, 1_000_000),
        curve="timers",
    ),
]
