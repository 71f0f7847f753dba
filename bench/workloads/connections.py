"""Connections that are accepted, and connections that are made: nothing is sent on them."""

import contenders
from measuring import cpu, http_load, http_result

from workloads import Workload

AT_A_TIME = 100


def measure_accept(contender, value, options):
    cores = options.client_cores
    with contenders.running(contender, options.server_cores, "accept") as (pid, port):
        http_result(http_load(cores, port, AT_A_TIME, "-e", seconds=options.warm_up))
        before = cpu(pid)
        found = http_result(http_load(cores, port, AT_A_TIME, "-e", seconds=options.seconds))
        each, user, system = cpu(pid).for_each(found["replies"], since=before)
    return {
        "CPU µs/accept": each,
        "user": user,
        "system": system,
        "accepts/s": found["requests_per_second"],
        "p99 ms": found["latency_ms"]["p99"],
    }


def measure_connect(contender, value, options):
    server = [contenders.BASELINE / "accept_server"]
    with contenders.serving("accept_server", server, options.client_cores) as (_, port):
        words = (port, AT_A_TIME, options.seconds)
        found = contenders.run(contender, options.server_cores, "connect", *words)
    return {"CPU µs/connect": found["cpu_seconds"] * 1e6, "connects/s": found["per_second"]}


WORKLOADS = [
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
]
