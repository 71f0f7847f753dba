"""The programs that bench/compare.py compares: how they are started, and put under load.

Each does the same things when it is told the same words: see peers/peer.py.
"""

import contextlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from typing import NamedTuple

from common import BASELINE, BENCH, LOAD, Cpu, end_with_parent, say

PEERS = BENCH / "peers"
PYPY = BENCH.parent / ".venv-pypy3" / "bin" / "python"

# In which PyPy makes new objects: half of the largest cache, if it is not told, which would make
# the figures depend on that.
PYPY_NURSERY = "4M"

PATIENCE = 120.0  # seconds for anything that should take a few
UNSUPPORTED = 3  # the exit status of a program that cannot do what it was asked


class Unsupported(Exception):
    """The program says that it cannot do this."""


class Contender(NamedTuple):
    """A program that can be started."""

    name: str
    command: list
    missing: str = ""  # why it cannot be started


def known_contenders():
    """Every program that there could be, in the order of the tables."""
    pyasync, asyncio, gevent, bare = (
        [sys.executable, PEERS / f"{name}_peer.py"]
        for name in ("pyasync", "asyncio", "gevent", "bare")
    )
    pypy = ["env", f"PYPY_GC_NURSERY={PYPY_NURSERY}", PYPY]
    no_pypy = "" if PYPY.exists() else "no .venv-pypy3: make .venv-pypy3/.built PYTHON=pypy3"
    no_node = "" if shutil.which("node") else "not installed"
    return [
        Contender("c", [BASELINE / "peer"]),
        Contender("pyasync", pyasync),
        Contender("unbuffered", [*pyasync, "--unbuffered"]),
        Contender("aio", [*asyncio, "--aio"]),
        Contender("uvloop", [*asyncio, "--uvloop"], no_module("uvloop")),
        Contender("asyncio", asyncio),
        Contender("gevent", gevent, no_module("gevent")),
        Contender("node", ["node", "--expose-gc", PEERS / "node_peer.js"], no_node),
        Contender("pypy", [*pypy, *pyasync[1:]], no_pypy),
        Contender("pypy-aio", [*pypy, *asyncio[1:], "--aio"], no_pypy),
        Contender("pypy-asyncio", [*pypy, *asyncio[1:]], no_pypy),
        Contender("bare", bare),
    ]


def installed(names):
    """Those of these names that can be started; says what is missing."""
    chosen = [one for one in known_contenders() if one.name in names]
    for one in chosen:
        if one.missing:
            say(f"skipped: {one.name} ({one.missing})")
    return [one for one in chosen if not one.missing]


def no_module(name):
    return "" if importlib.util.find_spec(name) else "not installed"


@contextlib.contextmanager
def started(command, cores, seconds=PATIENCE):
    """Run a program on these processors while the block runs, or until it has had its time.

    Its output is read here. It ends with this process, however that comes.
    """

    def begin():
        os.sched_setaffinity(0, cores)
        end_with_parent()

    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(list(map(str, command)), preexec_fn=begin, **pipes) as process:
        timer = threading.Timer(seconds, process.kill)
        timer.start()
        try:
            yield process
        finally:
            timer.cancel()
            process.kill()


def failure(process):
    """Return the exception that says how a process has ended before it should."""
    status = process.wait()
    if status == UNSUPPORTED:
        return Unsupported()
    name = " ".join(os.path.basename(word) for word in process.args)
    return RuntimeError(f"{name} has ended with exit status {status}")


@contextlib.contextmanager
def running(contender, cores, *words, patience=PATIENCE):
    """Run a server while the block runs. Gives its process id and its port."""
    with started([*contender.command, *words], cores, patience) as process:
        for line in process.stdout:
            if line.startswith("listening on "):
                yield process.pid, int(line.rpartition(":")[2])
                return
        raise failure(process)


def run(contender, cores, *words):
    """Run a program that measures itself. Gives what it says."""
    with started([*contender.command, *words], cores) as process:
        *_, last = process.stdout.read().splitlines() or [""]
        if process.wait() != 0 or not last.startswith("{"):
            raise failure(process)
        return json.loads(last)


@contextlib.contextmanager
def load(kind, cores, port, number, *words):
    """Run bench/baseline/load. Gives an iterator: first at its beginning, then its result.

    The connections are open until the block ends.
    """
    with started([LOAD, *words, kind, port, number], cores) as process:

        def lines():
            for line in process.stdout:
                found = None if line == "begin\n" else json.loads(line)
                if found and found["lost"] and kind != "udp":
                    raise RuntimeError(f"{found['lost']} requests were lost")
                yield found
            raise failure(process)

        yield lines()


class Watch:
    """What a process does from now on."""

    def __init__(self, pid):
        self.pid, self.cpu, self.began = pid, Cpu.of(pid), time.monotonic()

    def figures(self, count, what):
        """Its CPU time for each of so many, and how many there were a second."""
        total, user, system = Cpu.of(self.pid).for_each(count, since=self.cpu)
        rate = count / (time.monotonic() - self.began)
        return {f"CPU µs/{what}": total, "user": user, "system": system, f"{what}s/s": rate}


def cost(contender, options, words, what, kind, number, *load_words):
    """Run a server under load. Returns the figures: its CPU time for each of `what`, and rates."""
    load_words += ("-w", options.warm_up, "-d", options.seconds)
    with (
        running(contender, options.server_cores, *words) as (pid, port),
        load(kind, options.client_cores, port, number, *load_words) as lines,
    ):
        next(lines)
        watch = Watch(pid)
        found = next(lines)
        return {**watch.figures(found["done"], what), **rates(found, what)}


def rates(found, what):
    figures = {f"{what}s/s": found["per_second"]}
    if what == "packet":  # of datagrams the client knows no latencies, and some get lost
        return {**figures, "lost": found["lost"]}
    return {**figures, **{f"{name} ms": found["latency_ms"][name] for name in ("p50", "p99")}}


def wrk(cores, port, seconds):
    """Run wrk, which keeps its connections, for whole seconds. Gives how many requests it made."""
    command = ["wrk", "-t1", "-c64", f"-d{max(1, round(seconds))}s", f"http://127.0.0.1:{port}/"]
    with started(command, cores) as process:
        report = process.stdout.read()
    done = re.search(r"(\d+) requests in", report)
    if not done or "errors" in report or "Non-2xx" in report:
        raise RuntimeError(f"wrk says {report!r}")
    return int(done[1])
