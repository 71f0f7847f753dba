"""The programs that bench/compare.py compares, how they are started, and what is not there.

Each does the same things when it is told the same words: see peers/peer.py.
"""

import contextlib
import ctypes
import functools
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import NamedTuple

BENCH = Path(__file__).resolve().parent
BASELINE = BENCH / "baseline"
PEERS = BENCH / "peers"
PYPY = BENCH.parent / ".venv-pypy3" / "bin" / "python"

# In which PyPy makes new objects: half of the largest cache, if it is not told, which would make
# the figures depend on that.
PYPY_NURSERY = "4M"

PATIENCE = 120.0  # seconds for anything that should take a few
LIBC = ctypes.CDLL(None)
PR_SET_PDEATHSIG = 1  # prctl(2)

UNSUPPORTED = 3  # the exit status of a program that cannot do what it was asked

# The programs in C have a file for each kind.
C_PROGRAMS = {
    "http": "http_delay",
    "echo": "echo_server",
    "accept": "accept_server",
    "udp": "udp_server",
}


class Unsupported(Exception):
    """The program says that it cannot do this."""


class Contender(NamedTuple):
    """A program that can be started, and what it is good for."""

    name: str
    title: str  # what it is, for a person
    program: list = ()
    http: list = ()  # in place of program, if http is another one
    busy: bool = True  # whether it can run a busy Python thread
    missing: str = ""  # why it cannot be started

    def command(self, kind, *words):
        """Return the words that start it."""
        if self.name == "c":
            command = [BASELINE / C_PROGRAMS.get(kind, kind), *(["0"] if kind == "http" else [])]
        elif kind == "http" and self.http:
            # Its delay is an option.
            command, words = self.http, [f"--delay={words[0]}", *words[1:]]
        else:
            command = [*self.program, kind]
        return [str(word) for word in (*command, *words)]


def known_contenders():
    """Every program that there could be, in the order of the tables."""
    python = sys.executable
    pyasync = [PEERS / "pyasync_peer.py"]
    http_delay = [BENCH / "http_delay.py", "--port=0", "--no-stats"]
    peer = [python, PEERS / "asyncio_peer.py"]
    pypy = ["env", f"PYPY_GC_NURSERY={PYPY_NURSERY}", PYPY]
    no_pypy = "" if PYPY.exists() else "no .venv-pypy3: make .venv-pypy3/.built PYTHON=pypy3"
    no_node = "" if shutil.which("node") else "not installed"
    unbuffered = "--unbuffered"
    return [
        Contender("c", "C and libuv", busy=False),
        Contender("pyasync", "pyasync", [python, *pyasync], [python, *http_delay]),
        Contender(
            "unbuffered",
            "pyasync, buffer_writes=False",
            [python, *pyasync, unbuffered],
            [python, *http_delay, unbuffered],
        ),
        Contender("uvloop", "uvloop", [*peer, "--uvloop"], missing=no_module("uvloop")),
        Contender("asyncio", "asyncio", peer),
        Contender(
            "gevent", "gevent", [python, PEERS / "gevent_peer.py"], missing=no_module("gevent")
        ),
        Contender(
            "node",
            "Node",
            ["node", "--expose-gc", PEERS / "node_peer.js"],
            busy=False,
            missing=no_node,
        ),
        Contender(
            "pypy", "pyasync on PyPy", [*pypy, *pyasync], [*pypy, *http_delay], missing=no_pypy
        ),
        Contender("pypy-asyncio", "asyncio on PyPy", [*pypy, *peer[1:]], missing=no_pypy),
        Contender("bare", "a bare SSLObject", [python, PEERS / "tls_bare.py"], busy=False),
    ]


def no_module(name):
    return "" if importlib.util.find_spec(name) else "not installed"


def begin(cores):
    """What a child process does before it starts: stay on these processors, end with its parent."""
    os.sched_setaffinity(0, cores)
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def start(command, cores, **options):
    """Start a program whose output is read here."""
    return subprocess.Popen(
        [str(word) for word in command],
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=functools.partial(begin, cores),
        **options,
    )


@contextlib.contextmanager
def bounded(process, seconds=PATIENCE):
    """End the process when the block has ended, or when it has had its time."""
    timer = threading.Timer(seconds, process.kill)
    timer.start()
    try:
        yield process
    finally:
        timer.cancel()
        process.kill()
        process.wait()
        process.stdout.close()
        if process.stdin:
            process.stdin.close()


def running(contender, cores, kind, *words, patience=PATIENCE):
    """Run a server while the block runs. Gives its process id and its port."""
    return serving(contender.name, contender.command(kind, *words), cores, patience)


@contextlib.contextmanager
def serving(name, command, cores, patience=PATIENCE):
    with bounded(start(command, cores), patience) as process:
        for line in process.stdout:
            if line.startswith("listening on "):
                yield process.pid, int(line.rpartition(":")[2])
                return
        fail(name, process)


def run(contender, cores, kind, *words, patience=PATIENCE):
    """Run a program that measures itself. Gives what it says."""
    command = contender.command(kind, *words)
    with bounded(start(command, cores), patience) as process:
        output = process.stdout.read()
        if process.wait() != 0 or not output:
            fail(contender.name, process)
        return json.loads(output)


def fail(name, process):
    status = process.wait()
    if status == UNSUPPORTED:
        raise Unsupported
    raise RuntimeError(f"{name} has ended with exit status {status}")
