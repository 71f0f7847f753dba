"""Messages that come back on connections that are kept."""

from contenders import running
from measuring import cpu, message_load

from workloads import Case, Workload

KIB = 1024


def cases(options):
    return [
        Case(
            f"{connections} connection{'s' * (connections > 1)}, {size} KiB",
            (connections, size * KIB),
        )
        for size in (1, 10, 100)
        for connections in (1, 100)
    ]


def measure_echo(contender, value, options):
    connections, size = value
    words = (connections, size, options.warm_up, options.seconds)
    with (
        running(contender, options.server_cores, "echo") as (pid, port),
        message_load("echo_load", options.client_cores, port, *words) as load,
    ):
        next(load)
        before = cpu(pid)
        found = next(load)
        each, user, system = cpu(pid).for_each(found["messages"], since=before)
    return {
        "CPU µs/message": each,
        "user": user,
        "system": system,
        "messages/s": found["per_second"],
        "p50 ms": found["latency_ms"]["p50"],
        "p99 ms": found["latency_ms"]["p99"],
    }


WORKLOADS = [
    Workload(
        "echo",
        "echo over kept connections",
        "Compare CPU/message, the server's own. The client makes as many system calls as a\n"
        "server, in C, on a processor of its own: messages/s of fast servers may be its limit.",
        measure_echo,
        cases,
    )
]
