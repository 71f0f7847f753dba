"""Servers under load, over TCP and UDP, and a client."""

import os

from common import BASELINE
from contenders import Contender, cost, load, rates, run, running

from workloads import KIB, Case, Workload, points

AT_A_TIME = 200  # requests
CONNECTS_AT_A_TIME = 100
DATAGRAMS, DATAGRAM_SIZE = 32, 100


def measure_http(contender, connections, options):
    return cost(contender, options, ("http", 0), "request", "http", connections or AT_A_TIME)


def measure_busy(contender, value, options):
    words = ("-w", options.warm_up, "-d", options.seconds)
    with running(contender, options.server_cores, "http", 0, "--busy") as (pid, port):
        for thread in map(int, os.listdir(f"/proc/{pid}/task")):
            if thread != pid:
                os.sched_setaffinity(thread, options.client_cores)
        with load("http", options.server_cores, port, AT_A_TIME, *words) as lines:
            next(lines)
            return rates(next(lines), "request")


def measure_echo(contender, value, options):
    connections, size = value
    return cost(contender, options, ("echo",), "message", "echo", connections, "-s", size)


def measure_accept(contender, value, options):
    return cost(contender, options, ("accept",), "accept", "accept", CONNECTS_AT_A_TIME)


def measure_connect(contender, value, options):
    server = Contender("accept", [BASELINE / "peer"])
    with running(server, options.client_cores, "accept") as (_, port):
        words = ("connect", port, CONNECTS_AT_A_TIME, options.seconds)
        found = run(contender, options.server_cores, *words)
    return {"CPU µs/connect": found["cpu_seconds"] * 1e6, "connects/s": found["per_second"]}


def measure_udp(contender, value, options):
    figures = cost(contender, options, ("udp",), "packet", "udp", DATAGRAMS, "-s", DATAGRAM_SIZE)
    return {name: value for name, value in figures.items() if not name.endswith(" ms")}


def echo_cases(options):
    return [
        Case(f"{number} connection{'s' * (number > 1)}, {size} KiB", (number, size * KIB))
        for size in (1, 10, 100)
        for number in (1, 100)
    ]


CONNECTIONS = points(1, 10, 100, 1_000, 10_000)

WORKLOADS = [
    Workload(
        "http",
        "a connection a request, delay 0, 200 at a time",
        "Compare CPU/request, the server's own by the kernel's account: it does not depend on the\n"
        "client. Requests/s and latency do; with a fast server the client may be what limits them.",
        measure_http,
    ),
    Workload(
        "busy",
        "http beside a busy Python thread",
        "Requests/s, which the server limits: it waits for the interpreter's lock. The busy\n"
        "thread has a processor to itself; on a shared one the lock is hardly fought over.",
        measure_busy,
    ),
    Workload(
        "echo",
        "echo over kept connections",
        "Compare CPU/message, the server's own. The client makes as many system calls as a\n"
        "server, in C, on a processor of its own: messages/s of fast servers may be its limit.",
        measure_echo,
        echo_cases,
    ),
    Workload(
        "accept",
        "accept a connection and close it, 100 at a time",
        "Compare CPU/accept, the server's own. Accepts/s may be the limit of the client, in C.",
        measure_accept,
    ),
    Workload(
        "connect",
        "make a connection, which the peer closes, 100 at a time",
        "Here the program is the client; CPU/connect is its own. The server is in C, on the other\n"
        "processor, and spends less than any client.",
        measure_connect,
    ),
    Workload(
        "udp",
        "echo of datagrams of 100 bytes, 32 in flight",
        "CPU/packet is the server's own, for one received and one sent. The client takes many at\n"
        "once with recvmmsg(2): packets/s is the server's limit.",
        measure_udp,
    ),
    Workload(
        "scale-http",
        "http, so many connections at a time",
        "CPU/request of the server. A server that never sleeps takes more events a system call.",
        measure_http,
        CONNECTIONS,
        curve="connections at a time",
    ),
    Workload(
        "scale-echo",
        "echo of 1 KiB, so many connections",
        "CPU/message of the server.",
        lambda contender, number, options: measure_echo(contender, (number, KIB), options),
        CONNECTIONS,
        curve="connections",
    ),
]
