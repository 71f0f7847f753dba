"""What the Python programs that bench/compare.py compares have in common: the command line.

    PROGRAM http DELAY_SECONDS | echo | accept | udp      a server: says where, runs until a signal
    PROGRAM tls | tls_idle CERTIFICATE KEY                an echo server over TLS
    PROGRAM tls_source CERTIFICATE KEY BYTES              sends so much, and closes
    PROGRAM timers fire|cancel|pending COUNT SPREAD_SECONDS
    PROGRAM connect PORT CONNECTIONS SECONDS
    PROGRAM wakeups SECONDS
    PROGRAM lines PORT at_once|at_end LIMIT               these print one JSON object

The programs in C and on Node are told the same. --busy: beside a busy thread. A program that
cannot do what it is asked says so with exit status 3, and is skipped.
"""

import gc
import json
import os
import sys
import threading
import time
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))

import common

HOST = "127.0.0.1"
BUFFER = 256 << 10
RESPONSE = common.RESPONSE
server_context = common.server_context

#: How the words after the name of a kind are read.
ARGUMENTS = {
    "http": [float],
    "tls_source": [str, str, int],
    "timers": [str, int, float],
    "connect": [int, int, float],
    "wakeups": [float],
    "lines": [int, str, int],
}

PENDING_SECONDS = 3600.0


def main(functions, words):
    """Run what the words ask for: the function of that name."""
    common.raise_open_files_limit()
    if "--busy" in words:
        words.remove("--busy")
        common.start_busy_thread()
    kind, *arguments = words
    if kind not in functions:
        sys.exit(3)
    readers = ARGUMENTS.get(kind, [str] * len(arguments))
    functions[kind](*(read(word) for read, word in zip(readers, arguments)))


def listening(address):
    """Say where the server listens."""
    host, port = address[:2]
    print(f"listening on {host}:{port}", flush=True)


def result(**figures):
    """Say what was measured, and end at once: to free a million objects takes its time."""
    print(json.dumps(figures), flush=True)
    os._exit(0)


def private_bytes():
    """Return the memory that only this process has, and what is still referenced in it."""
    gc.collect()
    return common.private_bytes()


class Pace:
    """Counts what is done for some seconds, and its CPU time."""

    def __init__(self, seconds):
        self.count = 0
        self._seconds = seconds
        self._began, self._cpu = time.perf_counter(), time.process_time()

    def one_more(self):
        """Count one. Returns whether to go on."""
        self.count += 1
        return time.perf_counter() - self._began < self._seconds

    def result(self):
        """Say how it went."""
        seconds, cpu = time.perf_counter() - self._began, time.process_time() - self._cpu
        result(per_second=self.count / seconds, cpu_seconds=cpu / self.count)


class Notifications:
    """A thread that wakes a loop with `notify`, and waits for each answer before the next.

    `on_wakeup`, which the loop calls, returns whether there will be more.
    """

    def __init__(self, seconds):
        self.pace = Pace(seconds)
        self._answered = threading.Semaphore(0)
        self._more = True

    def start(self, notify):
        def run():
            while self._more:
                notify()
                self._answered.acquire()

        threading.Thread(target=run).start()

    def on_wakeup(self):
        self._more = self.pace.one_more()
        self._answered.release()
        return self._more


def cancels(mode):
    """Check the mode of timers. Returns whether they are cancelled."""
    if mode not in ("fire", "cancel", "pending"):
        raise ValueError(mode)
    return mode == "cancel"


def deadlines(mode, count, spread):
    """The times after which timers are due, spread evenly, one after another."""
    first = PENDING_SECONDS if mode == "pending" else 0.0
    return (first + spread * i / count for i in range(count))


def measure_lines(read):
    """Read all lines of two connections, with `read()`. Says what the second took: it is warm."""
    for _ in range(2):
        gc.collect()
        began, cpu = time.perf_counter(), time.process_time()
        lines = read()
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    result(lines=lines, seconds=seconds, cpu_seconds=cpu)


def count_lines(readline):
    lines = 0
    while readline():
        lines += 1
    return lines
