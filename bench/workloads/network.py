"""Servers under load, over TCP and UDP, and a client."""

import os

from common import BASELINE, KIB
from contenders import Contender, cost, load, rates, run, running

from workloads import Case, points, workload

CONNECTIONS = points(1, 10, 100, 1_000, 10_000)


@workload()
def http(contender, connections, options):
    """a connection a request, delay 0, 200 at a time.

    Compare CPU/request, the server's own by the kernel's account: it does not depend on the
    client. Requests/s and latency do; with a fast server the client may be what limits them.
    """
    return cost(contender, options, ("http", 0), "request", "http", connections or 200)


@workload()
def busy(contender, value, options):
    """http beside a busy Python thread.

    Requests/s, which the server limits: it waits for the interpreter's lock. The busy
    thread has a processor to itself; on a shared one the lock is hardly fought over.
    """
    words = ("-w", options.warm_up, "-d", options.seconds)
    with running(contender, options.server_cores, "http", 0, "--busy") as (pid, port):
        for thread in map(int, os.listdir(f"/proc/{pid}/task")):
            if thread != pid:
                os.sched_setaffinity(thread, options.client_cores)
        with load("http", options.server_cores, port, 200, *words) as lines:
            next(lines)
            return rates(next(lines), "request")


def echo_cases(*numbers):
    return lambda options: [
        Case(f"{number} connection{'s' * (number > 1)}, {size} KiB", (number, size * KIB))
        for size in (1, 10, 100)
        for number in numbers
    ]


@workload(cases=echo_cases(1, 100))
def echo(contender, value, options):
    """echo over kept connections.

    Compare CPU/message, the server's own. The client makes as many system calls as a
    server, in C, on a processor of its own: messages/s of fast servers may be its limit.
    """
    connections, size = value
    return cost(contender, options, ("echo",), "message", "echo", connections, "-s", size)


@workload()
def accept(contender, value, options):
    """accept a connection and close it, 100 at a time.

    Compare CPU/accept, the server's own. Accepts/s may be the limit of the client, in C.
    """
    return cost(contender, options, ("accept",), "accept", "accept", 100)


@workload()
def connect(contender, value, options):
    """make a connection, which the peer closes, 100 at a time.

    Here the program is the client; CPU/connect is its own. The server is in C, on the other
    processor, and spends less than any client.
    """
    server = Contender("accept", [BASELINE / "peer"])
    with running(server, options.client_cores, "accept") as (_, port):
        found = run(contender, options.server_cores, "connect", port, 100, options.seconds)
    return {"CPU µs/connect": found["cpu_seconds"] * 1e6, "connects/s": found["per_second"]}


@workload()
def udp(contender, value, options):
    """echo of datagrams of 100 bytes, 32 in flight.

    CPU/packet is the server's own, for one received and one sent. The client takes many at
    once with recvmmsg(2): packets/s is the server's limit.
    """
    return cost(contender, options, ("udp",), "packet", "udp", 32, "-s", 100)


@workload(cases=CONNECTIONS, curve="connections at a time")
def scale_http(contender, connections, options):
    """http, so many connections at a time.

    CPU/request of the server. A server that never sleeps takes more events a system call.
    """
    return http(contender, connections, options)


@workload(cases=CONNECTIONS, curve="connections")
def scale_echo(contender, connections, options):
    """echo of 1 KiB, so many connections.

    CPU/message of the server.
    """
    return echo(contender, (connections, KIB), options)
