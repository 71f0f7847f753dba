"""Datagrams that come back."""

from contenders import running
from measuring import cpu, message_load

from workloads import Workload

IN_FLIGHT = 32
SIZE = 100


def measure(contender, value, options):
    words = (IN_FLIGHT, SIZE, options.warm_up, options.seconds)
    with (
        running(contender, options.server_cores, "udp") as (pid, port),
        message_load("udp_load", options.client_cores, port, *words) as load,
    ):
        next(load)
        before = cpu(pid)
        found = next(load)
        each, user, system = cpu(pid).for_each(found["messages"], since=before)
    return {
        "CPU µs/packet": each,
        "user": user,
        "system": system,
        "packets/s": found["per_second"],
        "lost": found["lost"],
    }


WORKLOADS = [
    Workload(
        "udp",
        "echo of datagrams of 100 bytes, 32 in flight",
        "CPU/packet is the server's own, for one received and one sent. The client takes many at\n"
        "once with recvmmsg(2): packets/s is the server's limit.",
        measure,
    )
]
