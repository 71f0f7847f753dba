"""A load client for the server of http_delay.py: httperf's job, without its 1,024 descriptors.

    python bench/http_load.py --num-conns 10000 --rate 1000          an open loop: by the clock
    python bench/http_load.py --num-conns 50000 --concurrency 200    a closed loop: 200 at a time

Each connection makes one request. An answer is good only when its bytes are exactly right and
the end of the stream follows them. The exit status is 1 if any request was lost.

It is written on pyasync, speaks TLS, and tells errors apart; bench/baseline/load, in C, is what
servers are measured with.
"""

import errno
import ipaddress
import itertools
import math
import signal
import sys
from array import array
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter

import common
from common import CONNECTIONS_PER_ADDRESS, RESPONSE, positive_float, positive_int, shares
from workers import STOP_SIGNALS, Console, Workers

import pyasync

REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"

DEFAULT_CONCURRENCY = 100

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


@dataclass
class Tally:
    """What one process has done so far."""

    errors: Counter = field(default_factory=Counter)  # by kind
    started: int = 0
    open: int = 0
    peak: int = 0  # the most open at once
    connected: int = 0
    replies: int = 0
    seconds: float = 0.0
    connecting_seconds: float = 0.0  # until the last connection was established
    latencies: array = field(default_factory=lambda: array("d"))  # only at the end

    def __add__(self, other):
        """Return what two processes have done, side by side."""
        mine, theirs = vars(self), vars(other)
        longest = {name: max(mine[name], theirs[name]) for name in mine if "seconds" in name}
        return Tally(**{**{name: mine[name] + theirs[name] for name in mine}, **longest})


class LoadClient:
    """Makes `connections` requests, by the clock or so many at a time; `run` runs it."""

    def __init__(self, options, connections, rate, concurrency, sources):
        self.connections = connections
        self.rate = rate
        self.concurrency = concurrency
        self.timeout = options.timeout
        self.sources = itertools.cycle(sources)
        connect, more = pyasync.tcp_connect, {}
        if options.tls:
            connect, more = pyasync.tcp_ssl_connect, {"ssl_context": common.trusting_context()}
        more.update(data=REQUEST, event_cb=self.on_event)
        self.connect = partial(connect, options.server, options.port, self.on_data, **more)
        self.tally = Tally()
        self.open = {}  # when each connection was started, the oldest first
        self.latencies = array("d")  # of the good answers, in seconds

    def run(self, send):
        """Run the load, and report the tally every second, and at the end with the latencies."""
        with pyasync.event_loop():
            for signo in STOP_SIGNALS:
                pyasync.signal_handler(signo, self.on_signal).unref()
            self.start(send)
        self.tally.latencies = self.latencies
        self.report()

    def start(self, send, ended_cb=lambda: None):
        """Start the load in the loop that runs; it may be an asyncio program's."""
        self.send, self.ended_cb = send, ended_cb
        self.began = perf_counter()
        self.connected_before = pyasync.stats().connected
        self.seconds = pyasync.interval(self.on_second, time=1)
        self.seconds.unref()
        self.ticker = pyasync.interval(self.on_tick, time=TICK)

    def report(self):
        self.tally.open = len(self.open)
        self.tally.replies = len(self.latencies)
        self.tally.seconds = perf_counter() - self.began
        self.send("counters", self.tally)

    # The requests

    def start_request(self):
        self.tally.started += 1
        now = perf_counter()
        try:
            self.open[self.connect(local_address=next(self.sources))] = now
        except pyasync.SocketError as error:
            self.count_error(error)

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
            self.tally.errors["short answer"] += 1
        else:
            self.tally.errors["wrong answer"] += 1
        del self.open[socket]
        if self.rate is None and self.tally.started < self.connections:
            self.start_request()  # a closed loop: in place of the one that has ended

    def count_error(self, error):
        self.tally.errors[ERROR_KINDS.get(error.errno, "other")] += 1

    # The clock

    def on_tick(self):
        elapsed = perf_counter() - self.began
        for _ in range(self.requests_due(elapsed)):
            self.start_request()
        self.tally.peak = max(self.tally.peak, len(self.open))
        connected = pyasync.stats().connected - self.connected_before
        if connected > self.tally.connected:
            self.tally.connected = connected
            self.tally.connecting_seconds = elapsed
        if self.tally.started == self.connections and not self.open:
            self.ticker.close()  # which ends a loop of its own
            self.seconds.close()
            self.ended_cb()

    def requests_due(self, elapsed):
        """How many requests to start now: by the schedule, but never above the concurrency.

        The schedule is a function of the time, so it does not drift.
        """
        by_now = int(elapsed * (self.rate or RAMP_PER_SECOND)) + 1
        due = self.connections if self.rate is None else min(self.connections, by_now)
        allowed = min(self.concurrency, by_now) if self.rate is None else self.concurrency
        return max(0, min(due - self.tally.started, allowed - len(self.open)))

    def on_second(self):
        oldest_allowed = perf_counter() - self.timeout
        late = itertools.takewhile(lambda item: item[1] < oldest_allowed, self.open.items())
        for socket, _ in list(late):
            self.tally.errors["timeout"] += 1
            socket.close(force=True)
            del self.open[socket]
        self.report()

    def on_signal(self, signo):
        self.tally.errors["interrupted"] = self.connections - self.tally.started + len(self.open)
        pyasync.exit_event_loop()


# The processes


def main():
    options = parse_options()
    limit, _ = common.raise_open_files_limit()
    most_open = min(options.concurrency or options.num_conns, options.num_conns)
    processes = options.processes or common.processes_needed(most_open, limit)
    processes = min(processes, most_open)
    rate = options.rate and options.rate / processes
    sources = source_addresses(options.server, options.num_conns)
    parts = zip(shares(options.num_conns, processes), shares(most_open, processes))
    clients = [LoadClient(options, part, rate, open_, sources) for part, open_ in parts]
    in_place = sys.stdout.isatty() and not options.lines and not options.json
    console = Console(as_json=options.json, in_place=in_place)
    workers = Workers([client.run for client in clients], Tally())
    for signo in STOP_SIGNALS:
        signal.signal(signo, lambda signo, frame: workers.send_signal(signo))
    for pid, kind, value in workers.messages():
        if kind == "counters" and value:
            print_tally(console, value)
        elif kind == "ended" and value:
            common.say(f"process {pid} {value}")
    total = workers.total()
    how = {"processes": processes, "source_addresses": len(sources)}
    print_result(console, total, options.num_conns, **how)
    return 1 if total.replies < options.num_conns else 0


def parse_options():
    parser = common.option_parser(__doc__)
    add = parser.add_argument
    add("--server", default="127.0.0.1", help="address of the server (%(default)s)")
    add("--port", type=common.port_to_connect, default=9009, help="(%(default)s)")
    add("--num-conns", type=positive_int, default=1000, help="how many connections (%(default)s)")
    add("--rate", type=positive_float, help="connections started in a second, come what may")
    add("--concurrency", type=positive_int, help="how many to keep open, or with --rate the most"
        f" (without either: {DEFAULT_CONCURRENCY})")  # fmt: skip
    add("--timeout", type=positive_float, default=60.0, help="seconds a request (%(default)g)")
    add("--processes", type=positive_int, help="how many share the work (as open files need)")
    add("--tls", action="store_true", help="over TLS, whatever the server's certificate")
    add("--lines", action="store_true", help="a line every second, not one in place")
    options = parser.parse_args()
    if options.rate is None and options.concurrency is None:
        options.concurrency = DEFAULT_CONCURRENCY
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


def print_tally(console, total, **more):
    errors = sum(total.errors.values())
    counts = {name: getattr(total, name) for name in ("started", "open", "replies")}
    console.print(
        "load",
        "client: started: {started:,}  open: {open:,}  replies: {replies:,}"
        "  errors: {errors:,}  rate: {rate:,.0f} req/s",
        progress=True,
        **{**counts, "errors": errors, "rate": console.rate(total.replies), **more},
    )


def print_result(console, total, connections, **more):
    errors = ", ".join(f"{kind} {count:,}" for kind, count in total.errors.items())
    latency_ms, shown = percentiles_ms(total.latencies)
    console.print(
        "load-summary",
        "client: {connections:,} connections in {seconds:.2f} s, {maximum_concurrent:,} open at"
        f" most\n  replies: {{replies:,}}, lost: {{lost:,}}{f' ({errors})' if errors else ''}\n"
        "  rate: {requests_per_second:,.0f} req/s, {connects_per_second:,.0f} connects/s\n"
        f"  latency ms: {shown}",
        connections=connections,
        replies=total.replies,
        lost=connections - total.replies,
        errors=total.errors,
        seconds=total.seconds,
        requests_per_second=total.replies / (total.seconds or 1.0),
        connects_per_second=total.connected / (total.connecting_seconds or 1.0),
        maximum_concurrent=total.peak,
        latency_ms=latency_ms,
        **more,
    )


def percentiles_ms(seconds):
    """Milliseconds at some percentiles, by name, and in words; none of nothing."""
    ordered, last = sorted(seconds), len(seconds) - 1
    points = {"min": 0, "p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1}
    found = {name: ordered[round(last * point)] * 1e3 for name, point in points.items() if seconds}
    return found, "  ".join(f"{name} {value:,.2f}" for name, value in found.items())


if __name__ == "__main__":
    sys.exit(main())
