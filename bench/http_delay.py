"""The server of cl-async's benchmark page: answers every request after a delay.

    python bench/http_delay.py                  listen on port 9009, answer after 5 seconds
    python bench/http_delay.py --load 10000     the same, under load: then report, and end
    python bench/http_delay.py --delay 8 --workers 4 --load 40000 --rate 6000
    python -m cProfile -s tottime bench/http_delay.py --delay 0 --load 20000 --concurrency 200

The first SIGINT or SIGTERM closes the listener: running connections finish, and the exit status
is 0. A second one ends it at once.
"""

import functools
import math
import os
import resource
import signal
import socket
import subprocess
import sys
from operator import add
from types import MethodType
from typing import NamedTuple

import common
from common import BENCH, RESPONSE, delay_time, port_to_listen, positive_float, positive_int
from workers import STOP_SIGNALS, Console, Workers

import pyasync

DEFAULT_LOAD = 10_000
DEFAULT_RATE = 2_000.0

# Linux spreads the connections of a shared port over its listeners by a hash, so the fullest
# process holds more than its share.
UNEVENNESS = 1.25


# The server


def serve(options, send, on_data=None):
    """Run the server, or one that does `on_data(socket, data)`, until a signal ends it.

    It reports with `send(kind, value)`: "listening", with the address, once, in the loop;
    "counters", with a Snapshot, every second and after the end.
    """
    delay = options.delay
    listen = pyasync.tcp_server
    if options.tls:
        listen = functools.partial(pyasync.tcp_ssl_server, ssl_context=common.server_context())
    finished = 0

    def on_request(socket, data):
        if delay:
            # For each connection that waits: a bound method has 64 bytes, a closure some 250.
            pyasync.delay(MethodType(respond, socket), time=delay)
        else:
            respond(socket)

    def respond(socket):
        if not socket.closed:
            socket.write(RESPONSE, write_cb=on_written)

    def on_written(socket):
        nonlocal finished
        finished += 1
        socket.close()

    def on_event(event):
        if isinstance(event, pyasync.EventError):  # the end of a stream is no error
            print("error:", event, file=sys.stderr)

    def on_signal(signo):
        pyasync.clear_signal_handlers()
        server.close()  # the loop ends by itself when the last connection has been answered

    with pyasync.event_loop(buffer_writes=not options.unbuffered):
        server = listen(
            options.host,
            options.port,
            on_data or on_request,
            event_cb=on_event,
            backlog=options.backlog,
            reuse_port=options.workers > 1,
        )
        for signo in STOP_SIGNALS:
            pyasync.signal_handler(signo, on_signal)
        report = watch(lambda: finished, send)
        send("listening", server.address)
    report()


class Snapshot(NamedTuple):
    """What one server says of itself."""

    incoming: int = 0  # connections now
    outgoing: int = 0
    finished: int = 0  # requests so far
    peak: int = 0  # the most connections that a look has seen at once so far
    user: float = 0.0  # CPU seconds since it listens
    system: float = 0.0
    max_rss: int = 0  # bytes

    def __add__(self, other):
        """Return what two servers say, as if they were one."""
        return Snapshot(*map(add, self, other))


def watch(finished, send):
    """Look at the loop that runs, and at this process, ten times a second.

    Returns what sends a Snapshot, as is done every second.
    """

    def look():
        nonlocal peak
        peak = max(peak, loop.stats().incoming_tcp_connections)

    def report():
        stats, usage = loop.stats(), resource.getrusage(resource.RUSAGE_SELF)
        cpu = usage.ru_utime - before.ru_utime, usage.ru_stime - before.ru_stime
        counts = stats.incoming_tcp_connections, stats.outgoing_tcp_connections, finished(), peak
        send("counters", Snapshot(*counts, *cpu, usage.ru_maxrss * 1024))

    loop, peak = pyasync.current_loop(), 0
    before = resource.getrusage(resource.RUSAGE_SELF)
    # By themselves these keep no loop running.
    pyasync.interval(look, time=0.1).unref()
    pyasync.interval(report, time=1).unref()
    return report


# The processes


def main():
    """Run what the command line asks for. Returns the exit status."""
    options = parse_options()
    limit, limit_before = common.raise_open_files_limit()
    if options.load and options.workers < (needed := workers_needed(options, limit)):
        print(
            f"this load holds {connections_held(options):,} connections at once, and a process may"
            f" open {limit:,} files: run it with --workers {needed}",
            file=sys.stderr,
        )
        return 2
    console = Console(as_json=options.json)
    fields = {"open_files": limit, "open_files_before": limit_before}
    console.print("limits", "open files: {open_files:,} (before: {open_files_before:,})", **fields)
    run = Run(options, console)
    try:
        status = run.here() if options.workers == 1 else run.in_workers()
    except OSError as error:  # the port is in use, most likely
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        run.stop_load()
    run.print_summary()
    lost = run.client.returncode if run.client else bool(options.load)  # which was not even begun
    return status or lost


def connections_held(options):
    """How many connections the load may hold at once."""
    held = min(options.load, options.concurrency or options.load)
    if options.rate:
        held = min(held, math.ceil(options.rate * (options.delay + 1)))  # a second of lag
    return held


def workers_needed(options, limit):
    held = connections_held(options)
    alone = common.processes_needed(held, limit) == 1
    return 1 if alone else common.processes_needed(held * UNEVENNESS, limit)


def run_server(options, send):
    """Be the process of a server; a second SIGINT ends it at once."""
    # Python leaves SIGINT ignored where it was, as in a job that a shell started with `&`.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if options.busy:
        common.start_busy_thread()
    try:
        serve(options, send)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


class Run:
    """A run of the server, in this process or in workers: the load on it, and what is printed."""

    def __init__(self, options, console):
        self.options, self.console = options, console
        self.client = None  # bench/http_load.py, which prints to where this process prints
        self.listening = 0  # servers
        self.total = Snapshot()

    def here(self):
        """Run the server in this process. Returns the exit status."""
        run_server(self.options, self.on_report)
        return 0

    def in_workers(self):
        """Run several processes on one port. Returns the exit status."""
        options, signals, status = self.options, [], 0

        def on_stop_signal(signo, frame):
            signals.append(signo)
            workers.send_signal(signo)

        def on_child_signal(signo, frame):
            if not signals:
                self.end_with_load()

        with reserve_port(options.host, options.port) as reservation:
            options.port = reservation.getsockname()[1]
            server = functools.partial(run_server, options)
            workers = Workers([server] * options.workers, Snapshot())
            for signo in STOP_SIGNALS:
                signal.signal(signo, on_stop_signal)
            signal.signal(signal.SIGCHLD, on_child_signal)
            for pid, kind, value in workers.messages():
                if kind != "ended":
                    self.on_report(kind, value)
                    continue
                if value and len(signals) < 2:
                    common.say(f"worker {pid} {value}")
                    status = 1
                if self.listening < options.workers:  # they will never be all
                    workers.send_signal(signal.SIGTERM)
        self.total = workers.total()
        return 128 + signals[1] if len(signals) > 1 else status

    def on_report(self, kind, value):
        """Deal with what a server says, and the counters of all."""
        if kind == "listening":
            self.listening += 1
            if self.listening == self.options.workers:
                self.on_listening(value)
        elif value:
            self.total = value
            if self.options.stats:
                self.console.print(
                    "counters",
                    "incoming: {incoming:,}  outgoing: {outgoing:,}  finished: {finished:,}"
                    "  rate: {rate:,.0f} req/s",
                    rate=self.console.rate(value.finished),
                    **value._asdict(),
                )

    def on_listening(self, address):
        options, where = self.options, dict(zip(("host", "port"), address))
        more = {"pid": os.getpid(), "processes": options.workers}
        self.console.print("listening", "listening on {host}:{port}", **where, **more)
        if options.page is not None:
            self.console.print("page", "page at {url}", url=serve_page(options))
        if options.load:
            if options.workers == 1:  # before the client: it may end at once
                pyasync.signal_handler(signal.SIGCHLD, lambda signo: self.end_with_load())
            self.start_load(**where)

    def start_load(self, host, port):
        options = self.options
        command = [sys.executable, BENCH / "http_load.py", f"--server={host}", f"--port={port}"]
        command += ["--lines", f"--num-conns={options.load}", f"--timeout={options.delay + 60}"]
        command += [f"--rate={options.rate}"] if options.rate else []
        command += [f"--concurrency={options.concurrency}"] if options.concurrency else []
        command += [f"--{name}" for name in ("tls", "json") if getattr(options, name)]
        self.client = subprocess.Popen(command)

    def end_with_load(self):
        """If the client has ended, end the server, as anyone would: by a signal."""
        if self.client and self.client.poll() is not None:
            os.kill(os.getpid(), signal.SIGTERM)

    def stop_load(self):
        """Stop the client, if the server has ended before it."""
        if self.client:
            self.client.terminate()
            self.client.wait()

    def print_summary(self):
        total = self.total
        cpu = total.user + total.system
        self.console.print(
            "summary",
            "server: {requests:,} requests, {peak_connections:,} connections seen at most\n"
            "  CPU: {cpu_user:.2f} s user, {cpu_system:.2f} s system,"
            " {cpu_us_per_request:.1f} µs a request\n"
            "  memory: {max_mebibytes:.1f} MiB at most",
            requests=total.finished,
            peak_connections=total.peak,
            cpu_user=total.user,
            cpu_system=total.system,
            cpu_us_per_request=cpu / total.finished * 1e6 if total.finished else 0.0,
            max_rss=total.max_rss,
            max_mebibytes=total.max_rss / common.MIB,
        )


def reserve_port(host, port):
    """A socket that keeps the port for the workers, any free one for 0; it does not listen."""
    reservation = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    reservation.bind((host, port))
    return reservation


def serve_page(options):
    """Serve the page of examples/stats_page.py in this loop. Returns its URL."""
    sys.path.append(str(BENCH.parent / "examples"))
    from stats_page import StatsPage

    host, port = StatsPage(options.host, options.page).address
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def parse_options(words=None):
    """Return the options that the command line asks for, or these words."""
    parser = common.option_parser(__doc__)
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    add("--port", type=port_to_listen, default=9009, help="0 for any that is free (%(default)s)")
    add("--delay", type=delay_time, default=5.0, help="seconds before the answer (%(default)s)")
    add("--backlog", type=common.between(int, 0, 2**31 - 1), metavar="NUM",
        help="of the listening socket (the system's limit)")  # fmt: skip
    add("--workers", type=common.between(int, 1, 10_000), default=1,
        help="processes that share the port")  # fmt: skip
    add("--unbuffered", action="store_true", help="a crossing into libuv for each operation")
    add("--tls", action="store_true", help="over TLS, with a certificate made for it")
    add("--busy", action="store_true", help="run a busy Python thread beside the server")
    add("--no-stats", dest="stats", action="store_false", help="no line of counters every second")
    add("--page", type=port_to_listen, metavar="PORT",
        help="show the counters live, at http://HOST:PORT/")  # fmt: skip
    load = parser.add_argument_group("load", "start bench/http_load.py against the server")
    add = load.add_argument
    add("--load", type=positive_int, nargs="?", const=DEFAULT_LOAD, metavar="NUM",
        help=f"how many connections to make ({DEFAULT_LOAD:,}); the server ends after the last"
        " one, with exit status 1 if one was lost")  # fmt: skip
    add("--rate", type=positive_float, help=f"connections a second ({DEFAULT_RATE:,.0f})")
    add("--concurrency", type=positive_int, help="how many to keep open, in place of a rate")
    options = parser.parse_args(words)
    if options.page is not None and options.workers > 1:
        parser.error("--page shows one loop: it needs --workers 1")
    if options.load is None and (options.rate or options.concurrency):
        parser.error("--rate and --concurrency need --load")
    if options.load and not options.rate and not options.concurrency:
        options.rate = DEFAULT_RATE
    return options


if __name__ == "__main__":
    sys.exit(main())
