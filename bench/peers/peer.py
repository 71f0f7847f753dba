"""What the Python programs that bench/compare.py compares have in common: the command line.

    PROGRAM http DELAY_SECONDS | echo | accept | udp      a server: says where, runs until a signal
    PROGRAM tls CERTIFICATE KEY                           an echo server over TLS
    PROGRAM tls_source CERTIFICATE KEY BYTES              sends so much, and closes
    PROGRAM timers fire|cancel|pending COUNT SPREAD_SECONDS
    PROGRAM connect PORT CONNECTIONS SECONDS
    PROGRAM wakeups SECONDS                               these print one JSON object

The programs in C and on Node are told the same. A program that cannot do what it is asked says so
with exit status 3, and is skipped.
"""

import gc
import json
import os
import resource
import ssl
import sys
import threading
import time
from pathlib import Path

RESPONSE = (
    b"HTTP/1.1 200 OK\r\n"
    b"Date: Wed, 03 Oct 2012 23:43:10 GMT\r\n"
    b"Content-Type: text/plain\r\n"
    b"Content-Length: 9\r\n"
    b"\r\n"
    b"omglolwtf"
)

#: How the words after the name of a kind are read.
ARGUMENTS = {
    "http": [float],
    "echo": [],
    "accept": [],
    "udp": [],
    "tls": [str, str],
    "tls_source": [str, str, int],
    "timers": [str, int, float],
    "connect": [int, int, float],
    "wakeups": [float],
}

PENDING_SECONDS = 3600.0


def main(functions, words):
    """Run what the words ask for: the function of that name."""
    hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard_limit, hard_limit))
    if "--busy" in words:
        words.remove("--busy")
        threading.Thread(target=spin, daemon=True).start()
    kind, *arguments = words
    functions[kind](*(read(word) for read, word in zip(ARGUMENTS[kind], arguments)))


def spin():
    """Keep the interpreter busy, as a thread of the application may."""
    while True:
        pass


def unsupported(reason):
    """End the program: it cannot do what it was asked."""
    print(reason, file=sys.stderr)
    sys.exit(3)


def listening(address):
    """Say where the server listens."""
    host, port = address[:2]
    print(f"listening on {host}:{port}", flush=True)


def server_context(certificate, key):
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    return context


def result(**figures):
    """Say what was measured, and end at once: to free a million objects takes its time."""
    print(json.dumps(figures), flush=True)
    os._exit(0)


def private_bytes():
    """Return the memory that only this process has, and what is still referenced in it."""
    gc.collect()
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_"))


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
