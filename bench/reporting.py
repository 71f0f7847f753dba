"""What a benchmark's server says of itself, and how it is printed."""

import json
import os
import resource
import sys
import time
from operator import add
from typing import NamedTuple

from workers import Reports

import pyasync

SAMPLES_PER_SECOND = 10


class Snapshot(NamedTuple):
    """What one server says of itself."""

    incoming: int = 0  # connections now
    outgoing: int = 0
    finished: int = 0  # requests so far
    peak: int = 0  # the most connections at once so far
    user: float = 0.0  # CPU seconds since it listens
    system: float = 0.0
    max_rss: int = 0  # bytes

    def __add__(self, other):
        """Return what two servers say, as if they were one."""
        return Snapshot(*map(add, self, other))


class Report:
    """Passes on what a server says, as `send(kind, value)`."""

    def __init__(self, send):
        self._send = send
        self._peak = 0

    def listening(self, address):
        """Say that the server listens. Called once, in the loop."""
        self._usage = resource.getrusage(resource.RUSAGE_SELF)
        pyasync.interval(self._sample, time=1 / SAMPLES_PER_SECOND).unref()
        self._send("listening", address)

    def counters(self, stats, finished):
        """Say how things are. Called every second."""
        self._snapshot(stats.incoming_tcp_connections, stats.outgoing_tcp_connections, finished)

    def end(self, finished):
        """Say what came of it all. Called after the loop."""
        self._snapshot(0, 0, finished)

    def _sample(self):
        self._peak = max(self._peak, pyasync.stats().incoming_tcp_connections)

    def _snapshot(self, incoming, outgoing, finished):
        usage = resource.getrusage(resource.RUSAGE_SELF)
        user = usage.ru_utime - self._usage.ru_utime
        system = usage.ru_stime - self._usage.ru_stime
        max_rss = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        self._send(
            "counters", Snapshot(incoming, outgoing, finished, self._peak, user, system, max_rss)
        )


class Console:
    """Prints what all the servers say, as one."""

    def __init__(self, processes, stats, as_json):
        self._processes = processes
        self._stats = stats
        self._as_json = as_json
        self._reports = Reports(processes, Snapshot())
        self._finished = 0  # at the last line
        self._last_line = time.monotonic()

    def open_files(self, limit, before):
        raised = f" (raised from {before:,})" if before != limit else ""
        self._print(
            f"open files: {limit:,}{raised}",
            event="limits",
            open_files=limit,
            open_files_before=before,
        )

    def listening(self, address):
        host, port = address[:2]
        self._print(
            f"listening on {host}:{port}",
            event="listening",
            host=host,
            port=port,
            pid=os.getpid(),
            processes=self._processes,
        )

    def page(self, address):
        host, port = address
        url = f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"
        self._print(f"page at {url}", event="page", url=url)

    def counters(self, pid, snapshot):
        """Take the report of one process; print a line when all have reported."""
        if self._reports.add(pid, snapshot) and self._stats:
            self._counters_line()

    def _counters_line(self):
        now = time.monotonic()
        total = self._reports.total()
        rate = (total.finished - self._finished) / (now - self._last_line)
        self._finished, self._last_line = total.finished, now
        self._print(
            f"incoming: {total.incoming:,}  outgoing: {total.outgoing:,}"
            f"  finished: {total.finished:,}  rate: {rate:,.0f} req/s",
            event="counters",
            incoming=total.incoming,
            outgoing=total.outgoing,
            finished=total.finished,
            rate=rate,
        )

    def ended(self, pid, outcome=None):
        """Expect nothing more of one process; `outcome` says how it died, if it did."""
        self._reports.ended()
        if outcome:
            print(f"worker {pid} {outcome}", file=sys.stderr, flush=True)

    def summary(self):
        total = self._reports.total()
        cpu = total.user + total.system
        per_request = cpu / total.finished * 1e6 if total.finished else 0.0
        self._print(
            f"server: {total.finished:,} requests, {total.peak:,} connections at most\n"
            f"  CPU: {total.user:.2f} s user, {total.system:.2f} s system,"
            f" {per_request:.1f} µs a request\n"
            f"  memory: {total.max_rss / 2**20:.1f} MiB at most",
            event="summary",
            requests=total.finished,
            peak_connections=total.peak,
            cpu_user=total.user,
            cpu_system=total.system,
            cpu_us_per_request=per_request,
            max_rss=total.max_rss,
        )

    def _print(self, text, **fields):
        print(json.dumps(fields) if self._as_json else text, flush=True)
