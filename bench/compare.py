"""Runs the same server written on pyasync, C and its peers side by side, and compares the cost.

    python bench/compare.py                            everything, about five minutes
    python bench/compare.py --workloads http --servers pyasync c --rounds 9

Each round starts every server once, in turn, so that all of them meet the machine in the same
mood; the figures are medians over the rounds, with the lowest and the highest. A ratio is the
median of the ratios within each round. What is not installed is skipped, by name.

Workloads
  http  delay 0, 200 connections at a time, one request each, for some seconds; the server is
        pinned to one processor, the client to another. The figure to compare is the server's
        CPU time per request, by the kernel's accounting of the process: it does not depend on
        how fast the client is. Requests/s and latency do, and on two processors the client, in
        C, can well be what limits them.
  busy  the same beside one Python thread that never rests, in the server's process: requests/s.
        It shows what a server pays for releasing and retaking the interpreter's lock. The busy
        thread has a processor to itself: on a shared one it would seldom get to take the lock.
  held  15,000 connections, each with its delay pending: how much private memory (Private_Clean
        and Private_Dirty of smaps_rollup) the server has gained for each. 1,000 others are held
        before, so that what happened to be free in the heap at the start does not count.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Callable, NamedTuple

import pyasync

BENCH = Path(__file__).resolve().parent
BASELINE = BENCH / "baseline"
PYPY = BENCH.parent / ".venv-pypy3" / "bin" / "python"

CONNECTIONS = 200
WARM_UP_SECONDS = 0.5
HELD_BEFORE = 1_000
HELD_CONNECTIONS = 15_000
HELD_DELAY = 10.0
REFERENCES = ("c", "uvloop")  # what the ratios are to


# The servers


class Server(NamedTuple):
    """A server that can be started."""

    name: str
    command: list
    delay_option: str = ""  # what stands before the seconds
    busy: bool = True  # whether it can run a busy Python thread
    missing: str = ""  # why it cannot be started

    def start(self, cores, delay, busy):
        command = [*self.command, f"{self.delay_option}{delay}", *(["--busy"] if busy else [])]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=pin(cores))


def known_servers():
    python = sys.executable
    http_delay = [BENCH / "http_delay.py", "--port=0", "--no-stats"]
    peer = [python, BENCH / "peers" / "http_delay_uvloop.py", "0"]
    no_uvloop = "" if importlib.util.find_spec("uvloop") else "not installed"
    no_pypy = "" if PYPY.exists() else f"no {PYPY.relative_to(BENCH.parent)}: make pypy-test"
    return [
        Server("c", [BASELINE / "http_delay", "0"], busy=False),
        Server("pyasync", [python, *http_delay], "--delay="),
        Server("unbuffered", [python, *http_delay, "--unbuffered"], "--delay="),
        Server("uvloop", peer, missing=no_uvloop),
        Server("asyncio", [*peer, "--asyncio"]),
        Server("pypy", [PYPY, *http_delay], "--delay=", missing=no_pypy),
    ]


def pin(cores):
    """What a child process does before it starts, to stay on these processors."""
    return partial(os.sched_setaffinity, 0, cores)


@contextlib.contextmanager
def running(server, cores, *, delay=0.0, busy=False):
    """Run a server while the block runs. Gives its process id and its port."""
    process = server.start(cores, delay, busy)
    try:
        for line in process.stdout:
            if line.startswith("listening on "):
                yield process.pid, int(line.rpartition(":")[2])
                break
        else:
            raise RuntimeError(f"the server {server.name} did not start")
        process.terminate()
        process.communicate(timeout=HELD_DELAY + 30)
    finally:
        process.kill()
        process.wait()


# What the kernel knows of a process


def cpu_seconds(pid):
    """The CPU time that the process, all its threads, has used: (user, system)."""
    total = time.clock_gettime((~pid << 3) | 2)  # clock_getcpuclockid(3); exact
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    user, system = int(fields[11]), int(fields[12])  # in ticks of 10 ms: for the proportion
    return total * user / (user + system or 1), total * system / (user + system or 1)


def private_bytes(pid):
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_"))


def wait_until_held(pid, connections):
    """Wait until the process has so many descriptors, and rests."""
    deadline = time.monotonic() + HELD_DELAY
    while time.monotonic() < deadline:
        used = sum(cpu_seconds(pid))
        time.sleep(0.2)
        resting = sum(cpu_seconds(pid)) - used < 0.01
        if resting and len(os.listdir(f"/proc/{pid}/fd")) >= connections:
            return
    raise RuntimeError(f"the server never held {connections:,} connections")


# The workloads


class Workload(NamedTuple):
    """What is done to each server, and which figures come of it."""

    name: str
    title: str
    measure: Callable  # (server, options) -> figures by name; the first is the one to compare
    servers: Callable  # whether it is meant for a server


def load(cores, port, connections, *, requests=0, seconds=0.0):
    """Start the client, to run until it has made so many requests or seconds have passed."""
    command = [BASELINE / "http_load", port, connections, requests, seconds]
    return subprocess.Popen(
        [str(word) for word in command],
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=pin(cores),
    )


def result(client):
    """Wait for the client, and give what it found."""
    found = json.loads(client.communicate()[0])
    if found["lost"]:
        raise RuntimeError(f"{found['lost']:,} requests were lost")
    return found


def measure_http(server, options):
    with running(server, options.server_cores) as (pid, port):
        result(load(options.client_cores, port, CONNECTIONS, seconds=WARM_UP_SECONDS))
        user, system = cpu_seconds(pid)
        found = result(load(options.client_cores, port, CONNECTIONS, seconds=options.seconds))
        user, system = (now - before for now, before in zip(cpu_seconds(pid), (user, system)))
    per_request = 1e6 / found["replies"]
    return {
        "CPU µs/request": (user + system) * per_request,
        "user": user * per_request,
        "system": system * per_request,
        **speed(found),
    }


def measure_busy(server, options):
    cores = options.server_cores
    with running(server, cores, busy=True) as (pid, port):
        for thread in map(int, os.listdir(f"/proc/{pid}/task")):
            if thread != pid:
                os.sched_setaffinity(thread, options.client_cores)
        result(load(cores, port, CONNECTIONS, seconds=WARM_UP_SECONDS))
        return speed(result(load(cores, port, CONNECTIONS, seconds=options.seconds)))


def measure_held(server, options):
    with running(server, options.server_cores, delay=HELD_DELAY) as (pid, port):
        private, held, clients = [], 0, []
        for connections in (HELD_BEFORE, HELD_CONNECTIONS):
            clients.append(load(options.client_cores, port, connections, requests=connections))
            held += connections
            wait_until_held(pid, held)
            private.append(private_bytes(pid))
        for client in clients:
            result(client)
    before, after = private
    return {"bytes/connection": (after - before) / HELD_CONNECTIONS}


def speed(found):
    return {
        "requests/s": found["requests_per_second"],
        "p50 ms": found["latency_ms"]["p50"],
        "p99 ms": found["latency_ms"]["p99"],
    }


WORKLOADS = [
    Workload("http", "delay 0, 200 connections at a time", measure_http, lambda server: True),
    Workload("busy", "beside a busy Python thread", measure_busy, lambda server: server.busy),
    Workload("held", "15,000 connections held", measure_held, lambda server: True),
]


# The comparison


def compare(workload, servers, options):
    """Run all rounds of a workload. Gives, for each server, its figures in each round."""
    runs = {server.name: [] for server in servers if workload.servers(server)}
    for number in range(1, options.rounds + 1):
        for server in servers:
            if server.name not in runs:
                continue
            figures = workload.measure(server, options)
            runs[server.name].append(figures)
            figure, value = next(iter(figures.items()))
            progress = f"{workload.name} {number}/{options.rounds} {server.name}"
            print(f"{progress}: {value:,.1f} {figure}", file=sys.stderr, flush=True)
    return runs


def summarize(runs):
    """Medians, spread and ratios of the runs of a workload, by server."""
    summary = {}
    for name, figures in runs.items():
        summary[name] = {
            figure: {
                "median": statistics.median(values),
                "min": min(values),
                "max": max(values),
                "runs": values,
            }
            for figure in figures[0]
            for values in [[run[figure] for run in figures]]
        }
        compared = next(iter(figures[0]))
        summary[name]["ratios"] = {
            reference: statistics.median(
                run[compared] / other[compared] for run, other in zip(figures, runs[reference])
            )
            for reference in REFERENCES
            if reference in runs
        }
    return summary


def table(workload, summary):
    """The summary of a workload, as lines of text."""
    some = next(iter(summary.values()))
    compared, *others = (figure for figure in some if figure != "ratios")
    heading = ["", compared, "lowest-highest", *(f"÷ {name}" for name in some["ratios"]), *others]
    rows = [heading]
    for name, figures in summary.items():
        main = figures[compared]
        rows.append(
            [
                name,
                number(main["median"]),
                f"{number(main['min'])}-{number(main['max'])}",
                *(f"{ratio:.2f}" for ratio in figures["ratios"].values()),
                *(number(figures[other]["median"]) for other in others),
            ]
        )
    widths = [max(map(len, column)) for column in zip(*rows)]
    yield f"{workload.name}: {workload.title}"
    for name, *cells in rows:
        cells = [cell.rjust(width) for cell, width in zip(cells, widths[1:])]
        yield "  ".join([" ", name.ljust(widths[0]), *cells])


def number(value):
    return f"{value:,.0f}" if value >= 100 else f"{value:,.2f}"


def machine():
    """Where the figures come from."""
    processors = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(": ")[2] for line in processors if line.startswith("model name")]
    return {
        "processor": models[0] if models else platform.machine(),
        "processors": os.cpu_count(),
        "kernel": platform.release(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "libuv": pyasync.libuv_version(),
    }


def main():
    options = parse_options()
    subprocess.run(["make", "-C", BASELINE], check=True, stdout=sys.stderr)
    servers = []
    for server in known_servers():
        if server.name not in options.servers:
            continue
        if server.missing:
            print(f"skipped: {server.name} ({server.missing})", file=sys.stderr)
        else:
            servers.append(server)
    here = machine()
    if not options.json:
        print(", ".join(f"{name} {value}" for name, value in here.items()))
    summaries = {}
    for workload in WORKLOADS:
        if workload.name in options.workloads:
            summaries[workload.name] = summarize(compare(workload, servers, options))
            if not options.json:
                print("", *table(workload, summaries[workload.name]), sep="\n", flush=True)
    if options.json:
        print(json.dumps({"machine": here, "workloads": summaries}, indent=2))


def parse_options():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    servers = [server.name for server in known_servers()]
    workloads = [workload.name for workload in WORKLOADS]
    add = parser.add_argument
    add("--workloads", nargs="+", choices=workloads, default=workloads, metavar="NAME",
        help=", ".join(workloads))  # fmt: skip
    add("--servers", nargs="+", choices=servers, default=servers, metavar="NAME",
        help=", ".join(servers))  # fmt: skip
    add("--rounds", type=int, default=5, help="(%(default)s)")
    add("--seconds", type=float, default=3.0, help="that http and busy run (%(default)g)")
    add("--json", action="store_true", help="print one JSON object, with every run")
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    options.server_cores, options.client_cores = {cores[0]}, {cores[-1]}
    return options


if __name__ == "__main__":
    main()
