"""TLS on pyasync beside uvloop and asyncio: echoes, handshakes, and idle connections.

    python bench/tls.py                                   everything, about two minutes
    python bench/tls.py --workloads echo-1 idle --rounds 3 --seconds 1

Each round starts every server once, in turn, on one processor, and the client on another. The
figures are medians over the rounds; a ratio is the median of the ratios within each round. Times
are the server's CPU time, by the kernel's accounting: the client, in Python, may be what limits
the speed. The certificate is of the curve P-256, and the protocol TLS 1.3.

Workloads
  echo-1, echo-10, echo-100   so many KiB to and fro on ten connections: µs a message
  handshake, resumed          a connection, one byte to and fro, and its end: µs a connection;
                              in full, and with the session of an earlier one
  idle                        private bytes (smaps_rollup) for each connection that has echoed
                              1 KiB, and rests; `bare` is a bare SSLObject with its two BIOs
"""

import argparse
import functools
import os
import socket
import ssl
import statistics
import sys
import tempfile
import time
from pathlib import Path

import compare
import contenders
import measuring
from certificates import make_certificate, trusting_context

PEER = Path(__file__).with_name("peers") / "tls_echo.py"
KINDS = ["pyasync", "uvloop", "asyncio"]
CONNECTIONS = 10
IDLE_BEFORE, IDLE = 100, 500


class Client:
    """Makes connections to a server, one after the other."""

    def __init__(self, port):
        self.context = trusting_context()
        self.port = port

    def connect(self, session=None):
        sock = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self.context.wrap_socket(sock, server_hostname="localhost", session=session)


def echo(sock, data):
    sock.sendall(data)
    left = len(data)
    while left:
        left -= len(sock.recv(left))


def for_seconds(seconds, act):
    """Call the function over and over; return how often."""
    count, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        act()
        count += 1
    return count


def measure_echo(size, client, pid, seconds):
    data, socks = bytes(size), [client.connect() for _ in range(CONNECTIONS)]

    def round_trips():
        for sock in socks:
            sock.sendall(data)
        for sock in socks:
            left = size
            while left:
                left -= len(sock.recv(left))

    for_seconds(seconds / 5, round_trips)
    before = measuring.cpu(pid)
    count = for_seconds(seconds, round_trips) * CONNECTIONS
    total = measuring.cpu(pid).for_each(count, before)[0]
    for sock in socks:
        sock.close()
    return total


def measure_handshakes(resume, client, pid, seconds):
    sessions = [None]

    def connect():
        with client.connect(sessions[0]) as sock:
            echo(sock, b"?")
            if resume:
                assert sock.session_reused or sessions[0] is None
                sessions[0] = sock.session

    for_seconds(seconds / 5, connect)
    before = measuring.cpu(pid)
    count = for_seconds(seconds, connect)
    return measuring.cpu(pid).for_each(count, before)[0]


def measure_idle(client, pid, seconds):
    socks, private = [], []
    for count in (IDLE_BEFORE, IDLE):
        for _ in range(count):
            socks.append(client.connect())
            echo(socks[-1], bytes(1024))
        time.sleep(0.3)
        private.append(measuring.private_bytes(pid))
    for sock in socks:
        sock.close()
    return (private[1] - private[0]) / IDLE


WORKLOADS = {
    "echo-1": ("µs/message", functools.partial(measure_echo, 1 << 10)),
    "echo-10": ("µs/message", functools.partial(measure_echo, 10 << 10)),
    "echo-100": ("µs/message", functools.partial(measure_echo, 100 << 10)),
    "handshake": ("µs/connection", functools.partial(measure_handshakes, False)),
    "resumed": ("µs/connection", functools.partial(measure_handshakes, True)),
    "idle": ("bytes/connection", measure_idle),
}


def run(workload, kinds, files, options):
    """Run all rounds of a workload; return each server's figures."""
    figures = {kind: [] for kind in kinds}
    measure = WORKLOADS[workload][1]
    for number in range(options.rounds):
        for kind in kinds:
            compare.progress(f"{workload} {number + 1}/{options.rounds} {kind}")
            command = [sys.executable, PEER, kind, *files]
            with contenders.serving(kind, command, options.server_cores) as (pid, port):
                figures[kind].append(measure(Client(port), pid, options.seconds))
    return figures


def table(figures):
    references = [kind for kind in ("bare", "uvloop", "asyncio") if kind in figures]
    yield ["", "median", "lowest-highest", *(f"÷ {kind}" for kind in references)]
    for kind, values in figures.items():
        yield [
            kind,
            compare.number(statistics.median(values)),
            f"{compare.number(min(values))}-{compare.number(max(values))}",
            *(
                f"{statistics.median(a / b for a, b in zip(values, figures[reference])):.2f}"
                for reference in references
            ),
        ]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS), metavar="NAME",
        help=", ".join(WORKLOADS))  # fmt: skip
    add("--servers", nargs="+", choices=KINDS, default=KINDS, metavar="NAME",
        help=", ".join(KINDS))  # fmt: skip
    add("--rounds", type=int, default=5, help="(%(default)s)")
    add("--seconds", type=float, default=1.0, help="that each runs (%(default)g)")
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    options.server_cores = {cores[0]}
    os.sched_setaffinity(0, {cores[-1]})
    servers = options.servers
    if contenders.no_module("uvloop"):
        servers = [kind for kind in servers if kind != "uvloop"]
    print(", ".join(f"{name} {value}" for name, value in compare.machine().items()), end=", ")
    print(ssl.OPENSSL_VERSION)
    with tempfile.TemporaryDirectory() as folder:
        files = make_certificate(folder)
        for workload in options.workloads:
            kinds = [*servers, "bare"] if workload == "idle" else servers
            figures = run(workload, kinds, files, options)
            compare.progress("")
            print(f"\n{workload}: {WORKLOADS[workload][0]}")
            print(*compare.aligned(list(table(figures))), sep="\n", flush=True)


if __name__ == "__main__":
    main()
