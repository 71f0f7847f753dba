"""One request on each connection, answered at once."""

import os

from contenders import running
from measuring import cpu, http_load, http_result

from workloads import Workload

CONNECTIONS = 200


def measure_http(contender, value, options):
    return measure_concurrency(contender, CONNECTIONS, options)


def measure_concurrency(contender, connections, options):
    cores = options.client_cores
    with running(contender, options.server_cores, "http", 0) as (pid, port):
        http_result(http_load(cores, port, connections, seconds=options.warm_up))
        before = cpu(pid)
        found = http_result(http_load(cores, port, connections, seconds=options.seconds))
        each, user, system = cpu(pid).for_each(found["replies"], since=before)
    return {"CPU µs/request": each, "user": user, "system": system, **speed(found)}


def measure_busy(contender, value, options):
    cores = options.server_cores
    with running(contender, cores, "http", 0, "--busy") as (pid, port):
        for thread in map(int, os.listdir(f"/proc/{pid}/task")):
            if thread != pid:
                os.sched_setaffinity(thread, options.client_cores)
        http_result(http_load(cores, port, CONNECTIONS, seconds=options.warm_up))
        return speed(http_result(http_load(cores, port, CONNECTIONS, seconds=options.seconds)))


def speed(found):
    return {
        "requests/s": found["requests_per_second"],
        "p50 ms": found["latency_ms"]["p50"],
        "p99 ms": found["latency_ms"]["p99"],
    }


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
        contenders=lambda contender: contender.busy,
    ),
]
