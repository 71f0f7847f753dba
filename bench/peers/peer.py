"""What the Python programs that bench/compare.py compares have in common: the command line.

    PROGRAM http DELAY_SECONDS | echo | accept | udp      a server: says where, runs until a signal
    PROGRAM http_streams | echo_streams | echo_sock       the same, written in other ways
    PROGRAM uvicorn httptools|h11                         an HTTP server; so is:
    PROGRAM aiohttp
    PROGRAM tls | tls_idle CERTIFICATE KEY                an echo server over TLS
    PROGRAM tls_source CERTIFICATE KEY BYTES              sends so much, and closes
    PROGRAM timers fire|cancel|pending COUNT SPREAD_SECONDS
    PROGRAM steps chain|wide|threadsafe|futures|tasks COUNT
    PROGRAM connect PORT CONNECTIONS SECONDS
    PROGRAM wakeups SECONDS
    PROGRAM lines PORT at_once|at_end LIMIT               these print one JSON object

The programs in C and on Node are told the same. --busy: beside a busy thread. A program that
cannot do what it is asked says so with exit status 3, and is skipped.
"""

import contextlib
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
    "steps": [str, int],
    "connect": [int, int, float],
    "wakeups": [float],
    "lines": [int, str, int],
}

PENDING_SECONDS = 3600.0
UNSUPPORTED = 3  # the exit status


def main(functions, words):
    """Call what the words ask for, the function of that name. Returns what it does."""
    if "--busy" in words:
        words.remove("--busy")
        common.start_busy_thread()
    kind, *arguments = words
    if kind not in functions:
        sys.exit(UNSUPPORTED)
    readers = ARGUMENTS.get(kind, [str] * len(arguments))
    return functions[kind](*(read(word) for read, word in zip(readers, arguments)))


@contextlib.contextmanager
def needed():
    """A program cannot do what it was asked without what the block imports."""
    try:
        yield
    except ImportError:
        sys.exit(UNSUPPORTED)


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
        self._count, self._seconds = 0, seconds
        self._began, self._cpu = time.perf_counter(), time.process_time()

    def one_more(self):
        """Count one. When the time is over this says how it went, and ends the process."""
        self._count += 1
        seconds = time.perf_counter() - self._began
        if seconds >= self._seconds:
            cpu = time.process_time() - self._cpu
            result(per_second=self._count / seconds, cpu_seconds=cpu / self._count)


class Wakeups(Pace):
    """A thread that wakes a loop with `notify`, and waits for each answer before the next."""

    def start(self, notify):
        def run():
            while True:
                notify()
                self._answered.acquire()

        self._answered = threading.Semaphore(0)
        threading.Thread(target=run, daemon=True).start()

    def answer(self, *_):
        """What the loop calls when it has been woken."""
        self.one_more()
        self._answered.release()


class Timers:
    """What timers take that a loop is told to make: all fire, are cancelled, or are pending.

    Each is due after one of `deadlines`, and calls `on_timer`.
    """

    def __init__(self, mode, count, spread):
        first = {"fire": 0.0, "cancel": 0.0, "pending": PENDING_SECONDS}[mode]
        self._mode, self._count = mode, count
        self.deadlines = (first + spread * i / count for i in range(count))
        self.on_timer = self._make_callback()
        self._before, self._began = private_bytes(), time.process_time()

    def _make_callback(self):
        left = self._count  # not an attribute, because this is what the figures are of

        def on_timer():
            nonlocal left
            left -= 1
            if left == 0:
                self.end()

        def on_surprise():
            raise RuntimeError("a timer has fired that was cancelled, or is not due")

        return on_timer if self._mode == "fire" else on_surprise

    def end(self):
        """Say what it took. They are still referenced, if they are pending."""
        if self._mode == "pending":
            result(bytes=(private_bytes() - self._before) / self._count)
        result(cpu_seconds=(time.process_time() - self._began) / self._count)


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
