"""A load client for the server of http_delay.py: httperf's job, without its 1,024 descriptors.

    python bench/http_load.py --num-conns 10000 --rate 1000          an open loop: by the clock
    python bench/http_load.py --num-conns 50000 --concurrency 200    a closed loop: 200 at a time

Each connection makes one request. An answer is good only when its bytes are exactly right and
the end of the stream follows them. The exit status is 1 if any request was lost.
"""

import argparse
import errno
import functools
import ipaddress
import itertools
import json
import math
import os
import signal
import sys
from array import array
from collections import Counter
from time import perf_counter
from typing import NamedTuple

import certificates
import limits
from http_delay import RESPONSE
from workers import Reports, Workers, describe_exit

import pyasync

REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"

DEFAULT_CONCURRENCY = 100

# Linux connects from half of the 28,232 ports of net.ipv4.ip_local_port_range first, and looks
# for a free one longer and longer as that half fills.
CONNECTIONS_PER_ADDRESS = 10_000

# A closed loop opens its first connections at this pace: all at once would overflow the
# listener's backlog, and a dropped SYN is sent again only a second later.
RAMP_PER_SECOND = 10_000

TICK = 0.005  # seconds between looks at the clock, for what is due

ERROR_KINDS = {
    errno.ETIMEDOUT: "timeout",
    errno.ECONNREFUSED: "refused",
    errno.ECONNRESET: "reset",
    errno.EPIPE: "reset",
    errno.EMFILE: "descriptors",
    errno.ENFILE: "descriptors",
    errno.EADDRINUSE: "ports",
    errno.EADDRNOTAVAIL: "ports",
}


class Tally(NamedTuple):
    """What one process has done so far."""

    errors: Counter  # by kind
    started: int = 0
    open: int = 0
    peak: int = 0  # the most open at once
    connected: int = 0
    replies: int = 0
    seconds: float = 0.0
    connecting_seconds: float = 0.0  # until the last connection was established

    def __add__(self, other):
        """Return what two processes have done, side by side."""
        return Tally(
            *(a + b for a, b in zip(self[:-2], other)),
            max(self.seconds, other.seconds),
            max(self.connecting_seconds, other.connecting_seconds),
        )


class LoadClient:
    """Makes `connections` requests, by the clock or so many at a time; `run` runs it."""

    def __init__(
        self, server, port, connections, *, rate, concurrency, timeout, sources, tls_context=None
    ):
        self.connections = connections
        self.rate = rate
        self.concurrency = concurrency
        self.timeout = timeout
        self.sources = itertools.cycle(sources)
        self.connect = functools.partial(
            pyasync.tcp_connect
            if tls_context is None
            else functools.partial(pyasync.tcp_ssl_connect, ssl_context=tls_context),
            server,
            port,
            self.on_data,
            data=REQUEST,
            event_cb=self.on_event,
        )
        self.started = 0
        self.peak = 0
        self.connected = 0
        self.connecting_seconds = 0.0
        self.open = {}  # when each connection was started, the oldest first
        self.latencies = array("d")  # of the good answers, in seconds
        self.errors = Counter()

    def run(self, report):
        """Run the load; `report(tally)` is called every second. Returns the last tally."""
        self.report = report
        self.began = perf_counter()
        with pyasync.event_loop():
            for signo in (signal.SIGINT, signal.SIGTERM):
                pyasync.signal_handler(signo, self.on_signal).unref()
            pyasync.interval(self.on_second, time=1).unref()
            self.ticker = pyasync.interval(self.on_tick, time=TICK)
        return self.tally()

    def tally(self):
        return Tally(
            self.errors,
            self.started,
            len(self.open),
            self.peak,
            self.connected,
            len(self.latencies),
            perf_counter() - self.began,
            self.connecting_seconds,
        )

    # The requests

    def start_request(self):
        self.started += 1
        now = perf_counter()
        try:
            socket = self.connect(local_address=next(self.sources))
        except pyasync.SocketError as error:
            self.count_error(error)
            return
        self.open[socket] = now

    def on_data(self, socket, data):
        socket.data = data if socket.data is None else socket.data + data

    def on_event(self, event):
        """Deal with the end of a connection, good or bad."""
        socket = event.socket
        if not isinstance(event, pyasync.SocketEOF):
            self.count_error(event)
            socket.close(force=True)
        elif socket.data == RESPONSE:
            self.latencies.append(perf_counter() - self.open[socket])
        elif RESPONSE.startswith(socket.data or b""):
            self.errors["short answer"] += 1
        else:
            self.errors["wrong answer"] += 1
        del self.open[socket]
        if self.rate is None and self.started < self.connections:
            self.start_request()  # a closed loop: in place of the one that has ended

    def count_error(self, error):
        self.errors[ERROR_KINDS.get(error.errno, "other")] += 1

    # The clock

    def on_tick(self):
        elapsed = perf_counter() - self.began
        for _ in range(self.requests_due(elapsed)):
            self.start_request()
        self.peak = max(self.peak, len(self.open))
        connected = pyasync.stats().connected
        if connected > self.connected:
            self.connected = connected
            self.connecting_seconds = elapsed
        if self.started == self.connections and not self.open:
            self.ticker.close()  # which ends the loop

    def requests_due(self, elapsed):
        """How many requests to start now: by the schedule, but never above the concurrency.

        The schedule is a function of the time, so it does not drift.
        """
        due = self.connections
        allowed = self.concurrency
        if self.rate is None:
            allowed = min(allowed, int(elapsed * RAMP_PER_SECOND) + 1)
        else:
            due = min(due, int(elapsed * self.rate) + 1)
        return max(0, min(due - self.started, allowed - len(self.open)))

    def on_second(self):
        oldest_allowed = perf_counter() - self.timeout
        late = itertools.takewhile(lambda item: item[1] < oldest_allowed, self.open.items())
        for socket, _ in list(late):
            self.errors["timeout"] += 1
            socket.close(force=True)
            del self.open[socket]
        self.report(self.tally())

    def on_signal(self, signo):
        self.errors["interrupted"] = self.connections - self.started + len(self.open)
        pyasync.exit_event_loop()


# The processes


def main():
    options = parse_options()
    limit, _ = limits.raise_open_files_limit()
    most_open = min(options.concurrency or options.num_conns, options.num_conns)
    processes = min(options.processes or limits.clients_needed(most_open, limit), most_open)
    sources = source_addresses(options.server, options.num_conns)
    clients = [
        LoadClient(
            options.server,
            options.port,
            connections,
            rate=options.rate and options.rate / processes,
            concurrency=concurrency,
            timeout=options.timeout,
            sources=sources,
            tls_context=certificates.trusting_context() if options.tls else None,
        )
        for connections, concurrency in zip(
            shares(options.num_conns, processes), shares(most_open, processes)
        )
    ]
    console = Console(options, processes, len(sources))
    run = run_here if processes == 1 else run_workers
    run(clients, console)
    return console.result()


def parse_options():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--server", default="127.0.0.1", help="address of the server (%(default)s)")
    add("--port", type=int, default=9009, help="(%(default)s)")
    add("--num-conns", type=int, default=1000, help="how many connections (%(default)s)")
    add("--rate", type=float, help="connections started in a second, come what may")
    add("--concurrency", type=int, help="how many to keep open, or with --rate the most"
        f" (without either: {DEFAULT_CONCURRENCY})")  # fmt: skip
    add("--timeout", type=float, default=60.0, help="seconds for a request (%(default)g)")
    add("--processes", type=int, help="how many share the work (as the open files need)")
    add("--tls", action="store_true", help="over TLS, whatever the server's certificate")
    add("--lines", action="store_true", help="a line every second, not one in place")
    add("--json", action="store_true", help="print one JSON object a line")
    options = parser.parse_args()
    if options.rate is None and options.concurrency is None:
        options.concurrency = DEFAULT_CONCURRENCY
    for name in ("num_conns", "rate", "concurrency", "timeout", "processes"):
        value = getattr(options, name)
        if value is not None and value <= 0:
            parser.error(f"--{name.replace('_', '-')} must be positive")
    return options


def source_addresses(server, connections):
    """The addresses to connect from, on the loopback as many as the ports call for.

    None leaves the choice to the kernel.
    """
    count = math.ceil(connections / CONNECTIONS_PER_ADDRESS)
    if count == 1 or not server.startswith("127."):
        return [None]
    first = ipaddress.IPv4Address("127.0.0.1")
    return [str(first + i) for i in range(count)]


def shares(total, count):
    """Split a whole number into so many nearly equal ones."""
    return [total * (i + 1) // count - total * i // count for i in range(count)]


def run_here(clients, console):
    client = clients[0]

    def report(tally):
        console.progress(os.getpid(), tally)

    report(client.run(report))
    console.latencies(client.latencies)


def run_workers(clients, console):
    workers = Workers([functools.partial(run_worker, client) for client in clients])
    for signo in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signo, lambda signo, frame: workers.send_signal(signo))
    for pid, kind, value in workers.messages():
        if kind == "tally":
            console.progress(pid, value)
        elif kind == "latencies":
            console.latencies(value)
        else:
            console.ended(pid, describe_exit(value) if value else None)


def run_worker(client, send):
    def report(tally):
        send("tally", tally)

    report(client.run(report))
    send("latencies", client.latencies)


# What is printed


class Console:
    """Prints what all the processes do, as one."""

    def __init__(self, options, processes, sources):
        self._connections = options.num_conns
        self._as_json = options.json
        self._in_place = sys.stdout.isatty() and not options.lines and not options.json
        self._processes = processes
        self._sources = sources
        self._reports = Reports(processes, Tally(Counter()))
        self._replies = 0  # at the last line
        self._seconds = 0.0
        self._latencies = array("d")

    def progress(self, pid, tally):
        """Take the report of one process; print a line when all have reported."""
        if not self._reports.add(pid, tally):
            return
        total = self._reports.total()
        rate = (total.replies - self._replies) / (total.seconds - self._seconds)
        self._replies, self._seconds = total.replies, total.seconds
        errors = sum(total.errors.values())
        self._print(
            f"client: started: {total.started:,}  open: {total.open:,}"
            f"  replies: {total.replies:,}  errors: {errors:,}  rate: {rate:,.0f} req/s",
            in_place=self._in_place,
            event="load",
            started=total.started,
            open=total.open,
            replies=total.replies,
            errors=errors,
            rate=rate,
        )

    def latencies(self, latencies):
        self._latencies.extend(latencies)

    def ended(self, pid, outcome):
        """Expect nothing more of one process; `outcome` says how it died, if it did."""
        self._reports.ended()
        if outcome:
            print(f"process {pid} {outcome}", file=sys.stderr, flush=True)

    def result(self):
        """Print the result. Returns the exit status."""
        total = self._reports.total()
        lost = self._connections - total.replies
        seconds = total.seconds or 1.0
        connects = total.connected / total.connecting_seconds if total.connected else 0.0
        errors = ", ".join(f"{kind} {count:,}" for kind, count in total.errors.items())
        latency = {name: value * 1e3 for name, value in percentiles(self._latencies).items()}
        latency_text = "  ".join(f"{name} {value:,.2f}" for name, value in latency.items())
        self._print(
            f"client: {self._connections:,} connections in {total.seconds:.2f} s,"
            f" {total.peak:,} open at most\n"
            f"  replies: {total.replies:,}, lost: {lost:,}"
            + (f" ({errors})" if errors else "")
            + f"\n  rate: {total.replies / seconds:,.0f} req/s, {connects:,.0f} connects/s\n"
            f"  latency ms: {latency_text}",
            event="load-summary",
            connections=self._connections,
            replies=total.replies,
            lost=lost,
            errors=total.errors,
            seconds=total.seconds,
            requests_per_second=total.replies / seconds,
            connects_per_second=connects,
            maximum_concurrent=total.peak,
            latency_ms=latency,
            processes=self._processes,
            source_addresses=self._sources,
        )
        return 1 if lost else 0

    def _print(self, text, in_place=False, **fields):
        if self._as_json:
            text = json.dumps(fields)
        if self._in_place:
            text = "\r\x1b[K" + text
        print(text, end="" if in_place else "\n", flush=True)


def percentiles(values):
    """The values at some percentiles, by name; none of no values."""
    ordered = sorted(values)
    last = len(ordered) - 1
    points = {"min": 0, "p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1}
    return {name: ordered[round(last * point)] for name, point in points.items()} if ordered else {}


if __name__ == "__main__":
    sys.exit(main())
