"""Measures what an event costs in the program alone: no epoll, read or write reaches the kernel.

    python bench/hot.py                                       pyasync beside C and uvloop
    python bench/hot.py --servers aio --against ../other      and the build of another checkout

A library in C (baseline/hot.c) is loaded before the system's into a server of bench/peers. It
gives the server connections, requests and messages as fast as that takes them, and counts them.
The CPU time for each is the steadiest measure there is, because only the program runs. It says
nothing of system calls, of which one program may make more than another. Each round starts every
program once, in turn; a ratio is the median of the ratios within each round.

To compare with a commit: `git worktree add ../other COMMIT`, and there `make .venv/.built`.
"""

import json
import os
import sys
from argparse import ArgumentTypeError
from pathlib import Path

import common
from compare import compare, tables
from contenders import Contender, installed, run
from workloads import Case, Workload

#: What is counted, the words for the program, how many connections it has, the size of a message.
WORKLOADS = {
    "request": ("a connection a request, 200 at a time", ["http", 0], 200, 0),  # 0: no message
    "echo": ("echo of 1 KiB, 100 connections: 100 messages an iteration", ["echo"], 100, 1024),
    "one": ("echo of 1 KiB, 1 connection: a message an iteration", ["echo"], 1, 1024),
    "timers": ("timers, due over a second, and fired", ["timers", "fire", "EVENTS", 1], 0, 0),
}
SERVERS = ["c", "pyasync", "aio", "uvloop"]  # if not told; all of them are on libuv
CHOICES = [*SERVERS, "unbuffered", "pypy", "pypy-aio"]


def main():
    options = parse_options()
    common.compile_baseline("peer", "hot.so")
    contenders = installed(options.servers)
    if options.against:
        ours = next(one for one in contenders if one.name not in ("c", "uvloop"))
        other = ["env", f"PYTHONPATH={options.against}", *ours.command]
        contenders.insert(0, Contender("against", other))
    measured = compare(HOT, contenders, options)
    if options.json:
        print(json.dumps({"machine": common.machine(), "workloads": measured}, indent=2))
    else:
        print(common.in_words(common.machine()), *tables(HOT, measured, options), sep="\n")


def measure(contender, kind, options):
    """Run a program until it has had its events; return the CPU time of each."""
    _, words, connections, size = WORKLOADS[kind]
    words = [options.events if word == "EVENTS" else word for word in words]
    settings = [f"LD_PRELOAD={common.BASELINE / 'hot.so'}", f"HOT_CONNECTIONS={connections}",
                f"HOT_SIZE={size}", f"HOT_EVENTS={options.events}"]  # fmt: skip
    program = Contender(contender.name, ["env", *settings, *contender.command])
    found = run(program, {max(os.sched_getaffinity(0))}, *words)
    return {"CPU µs/event": found["cpu_seconds"] * 1e6}


HOT = Workload(
    "hot",
    "the program alone",
    "\n".join(f"{name}: {title}" for name, (title, *_) in WORKLOADS.items()),
    measure,
    cases=lambda options: [Case(kind, kind) for kind in options.workloads],
    once=False,
    curve="",
    references=("against", "c", "uvloop"),
)


def parse_options():
    parser = common.option_parser(__doc__)
    add = parser.add_argument
    add("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS), metavar="NAME",
        help=", ".join(WORKLOADS))  # fmt: skip
    add("--servers", nargs="+", choices=CHOICES, default=SERVERS, metavar="NAME",
        help=f"{', '.join(CHOICES)} ({' '.join(SERVERS)})")  # fmt: skip
    add("--against", metavar="FOLDER", type=built_checkout,
        help="a checkout that is built: of pyasync's servers the first")  # fmt: skip
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
