"""Measures what an event costs in the program alone: no epoll, read or write reaches the kernel.

    python bench/hot.py                                       pyasync beside C and uvloop
    python bench/hot.py --servers pyasync --against ../other  and the build of another checkout

A library in C (baseline/hot.c) is loaded before the system's into a server of bench/peers. It
gives the server connections, requests and messages as fast as that takes them, and counts them.
The CPU time for each is the steadiest measure there is, because only the program runs. It says
nothing of system calls, of which one program may make more than another. Each round starts every
program once, in turn; a ratio is the median of the ratios within each round.

To compare with a commit: `git worktree add ../other COMMIT`, and there `make .venv/.built`.
"""

import itertools
import json
import os
import sys
from argparse import ArgumentTypeError
from pathlib import Path

import common
from compare import case_table, summarize
from contenders import Contender, failure, known_contenders, started

#: The words for the program, how many connections it has at a time, and the size of a message.
WORKLOADS = {
    "request": (["http", 0], 200, 0),  # 0: a connection a request
    "echo": (["echo"], 100, 1024),
    "one": (["echo"], 1, 1024),
    "timers": (["timers", "fire", "EVENTS", 1], 0, 0),
}
TITLES = {
    "request": "a connection a request, 200 at a time",
    "echo": "echo of 1 KiB, 100 connections: 100 messages an iteration",
    "one": "echo of 1 KiB, 1 connection: a message an iteration",
    "timers": "timers created, due over a second, and fired",
}
SERVERS = ["c", "pyasync", "aio", "uvloop"]  # if not told; all of them are on libuv
CHOICES = [*SERVERS, "unbuffered", "pypy", "pypy-aio"]
FIGURE = "CPU µs/event"


def main():
    options = parse_options()
    common.compile_baseline("peer", "hot.so")
    contenders = [one for one in known_contenders() if one.name in options.servers]
    if options.against:
        pyasync = next(one for one in known_contenders() if one.name == "pyasync")
        other = ["env", f"PYTHONPATH={options.against}", *pyasync.command]
        contenders.insert(0, Contender("against", other))
    contenders = [one for one in contenders if not one.missing]
    runs = {kind: {one.name: [] for one in contenders} for kind in options.workloads}
    rounds = range(1, options.rounds + 1)
    for number, kind, contender in itertools.product(rounds, options.workloads, contenders):
        common.progress(f"{kind} {number}/{options.rounds} {contender.name}")
        cost = measure(contender, kind, options)
        runs[kind][contender.name].append({FIGURE: cost * 1e6})
    common.progress("")
    references = ("against", "c", "uvloop")
    measured = {kind: summarize(runs[kind], references) for kind in options.workloads}
    if options.json:
        print(json.dumps({"machine": common.machine(), "workloads": measured}, indent=2))
        return
    print(common.in_words(common.machine()))
    for kind, summary in measured.items():
        print(f"\n{kind}: {TITLES[kind]}", *case_table(summary), sep="\n")


def measure(contender, kind, options):
    """Run a program until it has had its events; return the CPU time of each, in seconds."""
    words, connections, size = WORKLOADS[kind]
    words = [options.events if word == "EVENTS" else word for word in words]
    settings = {"LD_PRELOAD": common.BASELINE / "hot.so", "HOT_CONNECTIONS": connections,
                "HOT_SIZE": size, "HOT_EVENTS": options.events}  # fmt: skip
    settings = [f"{name}={value}" for name, value in settings.items()]
    core = {max(os.sched_getaffinity(0))}
    with started(["env", *settings, *contender.command, *words], core) as process:
        *_, last = process.stdout.read().splitlines() or [""]
        if process.wait() != 0 or not last.startswith("{"):
            raise failure(process)
    return json.loads(last)["cpu_seconds"]


def parse_options():
    parser = common.option_parser(__doc__)
    add = parser.add_argument
    add("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS), metavar="NAME",
        help=", ".join(WORKLOADS))  # fmt: skip
    add("--servers", nargs="+", choices=CHOICES, default=SERVERS, metavar="NAME",
        help=f"{', '.join(CHOICES)} ({' '.join(SERVERS)})")  # fmt: skip
    add("--against", metavar="FOLDER", type=built_checkout, help="a checkout that is built")
    add("--rounds", type=common.positive_int, default=5, help="(5)")
    add("--events", type=common.between(int, 4, 10**9), default=100_000, help="of a run (100,000)")
    return parser.parse_args()


def built_checkout(text):
    folder = Path(text).resolve()
    if not list(folder.glob("pyasync/_libuv*.so")):
        raise ArgumentTypeError(f"has no extension: {folder / 'pyasync'}")
    return folder


if __name__ == "__main__":
    sys.exit(main())
