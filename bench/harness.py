"""What surrounds a benchmark's server: options, worker processes, the load.

A benchmark is a function `serve(options, report)` that runs its server until a signal ends it,
and returns how many requests it has answered. It tells `report` once where it listens, and its
counters every second. `main` runs it in this process, or with --workers in several.
"""

import argparse
import math
import os
import signal
import socket
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import limits
from reporting import Console, Report
from workers import Workers, describe_exit

import pyasync

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
LOAD_CLIENT = Path(__file__).with_name("http_load.py")
DEFAULT_LOAD = 10_000
DEFAULT_RATE = 2_000.0
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def main(description, serve):
    """Run the benchmark that the command line asks for. Returns the exit status."""
    options = parse_options(description)
    limit, limit_before = limits.raise_open_files_limit()
    if options.load:
        held = connections_held(options)
        needed = limits.servers_needed(held, limit)
        if options.workers < needed:
            print(
                f"this load holds {held:,} connections at once, and a process may open {limit:,}"
                f" files: run it with --workers {needed}",
                file=sys.stderr,
            )
            return 2
    console = Console(options.workers, options.stats, options.json)
    console.open_files(limit, limit_before)
    load = Load(options) if options.load else None
    run = run_here if options.workers == 1 else run_workers
    try:
        status = run(options, serve, console, load)
    except OSError as error:  # the port is in use, most likely
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        if load:
            load.stop()
    console.summary()
    return status or (load.status if load else 0)


def parse_options(description):
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    add("--port", type=int, default=9009, help="port, 0 for any that is free (%(default)s)")
    add("--delay", type=float, default=5.0, help="seconds before the answer (%(default)s)")
    add("--backlog", type=int, help="of the listening socket (the system's limit)")
    add("--workers", type=int, default=1, metavar="N", help="processes that share the port")
    add("--unbuffered", action="store_true", help="a crossing into libuv for each operation")
    add("--tls", action="store_true", help="over TLS, with a certificate made for it")
    add("--busy", action="store_true", help="run a busy Python thread beside the server")
    add("--no-stats", dest="stats", action="store_false", help="no line of counters every second")
    add("--json", action="store_true", help="print one JSON object a line")
    add("--page", type=int, metavar="PORT", help="show the counters live, at http://HOST:PORT/")
    load = parser.add_argument_group("load", "start bench/http_load.py against the server")
    add = load.add_argument
    add("--load", type=int, nargs="?", const=DEFAULT_LOAD, metavar="NUM",
        help=f"how many connections to make ({DEFAULT_LOAD:,}); the server ends after the last"
        " one, with exit status 1 if one was lost")  # fmt: skip
    add("--rate", type=float, help=f"connections a second ({DEFAULT_RATE:,.0f})")
    add("--concurrency", type=int, help="how many to keep open, in place of a rate")
    options = parser.parse_args()
    if options.delay < 0:
        parser.error("--delay must not be negative")
    if options.workers < 1:
        parser.error("--workers must be at least 1")
    if options.page is not None and options.workers > 1:
        parser.error("--page shows one loop: it needs --workers 1")
    if options.load is None and (options.rate or options.concurrency):
        parser.error("--rate and --concurrency need --load")
    if options.load and not options.rate and not options.concurrency:
        options.rate = DEFAULT_RATE
    return options


def connections_held(options):
    """How many connections the load may hold at once."""
    held = min(options.load, options.concurrency or options.load)
    if options.rate:
        held = min(held, math.ceil(options.rate * (options.delay + 1)))  # a second of lag
    return held


def run_server(serve, options, send):
    """Run the server in this process; a second SIGINT ends the process at once."""
    # Python leaves SIGINT ignored where it was, as in a job that a shell started with `&`.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if options.busy:
        threading.Thread(target=spin, daemon=True).start()
    report = Report(send)
    try:
        report.end(serve(options, report))
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


def spin():
    """Keep the interpreter busy, as a thread of the application may."""
    while True:
        pass


# One process


def run_here(options, serve, console, load):
    def send(kind, value):
        if kind == "listening":
            console.listening(value)
            if options.page is not None:
                console.page(serve_page(options))
            if load:
                load.start(value)
                pyasync.signal_handler(signal.SIGCHLD, lambda signo: load.stop_server_at_end())
        else:
            console.counters(os.getpid(), value)

    run_server(serve, options, send)
    return 0


def serve_page(options):
    """Serve the page of examples/stats_page.py in this loop. Returns its address."""
    sys.path.append(str(EXAMPLES))
    from stats_page import StatsPage

    return StatsPage(options.host, options.page).address


# Several processes on one port


def run_workers(options, serve, console, load):
    with reserve_port(options.host, options.port) as reservation:
        options.port = reservation.getsockname()[1]
        workers = Workers([partial(run_server, serve, options)] * options.workers)
        signals = []
        listening = status = 0

        def on_stop_signal(signo, frame):
            signals.append(signo)
            workers.send_signal(signo)

        def on_child_signal(signo, frame):
            if load and not signals:
                load.stop_server_at_end()

        for signo in STOP_SIGNALS:
            signal.signal(signo, on_stop_signal)
        signal.signal(signal.SIGCHLD, on_child_signal)

        for pid, kind, value in workers.messages():
            if kind == "listening":
                listening += 1
                if listening == options.workers:
                    console.listening(value)
                    if load:
                        load.start(value)
            elif kind == "counters":
                console.counters(pid, value)
            else:
                died = value != 0 and len(signals) < 2
                console.ended(pid, describe_exit(value) if died else None)
                status = 1 if died else status
                if listening < options.workers:  # they will never be all
                    workers.send_signal(signal.SIGTERM)
    return 128 + signals[1] if len(signals) > 1 else status


def reserve_port(host, port):
    """A socket that keeps the port for the workers, any free one for 0; it does not listen."""
    reservation = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    reservation.bind((host, port))
    return reservation


# The load


class Load:
    """bench/http_load.py as a child process, which prints to where this process prints."""

    def __init__(self, options):
        self._options = options
        self._process = None

    def start(self, address):
        options = self._options
        host, port = address[:2]
        command = [sys.executable, LOAD_CLIENT, f"--server={host}", f"--port={port}", "--lines"]
        command += ["--tls"] if options.tls else []
        command += [f"--num-conns={options.load}", f"--timeout={options.delay + 60}"]
        command += [f"--rate={options.rate}"] if options.rate else []
        command += [f"--concurrency={options.concurrency}"] if options.concurrency else []
        command += ["--json"] if options.json else []
        self._process = subprocess.Popen(command)

    def stop_server_at_end(self):
        """If the client has ended, end the server, as anyone would: by a signal."""
        if self._process and self._process.poll() is not None:
            os.kill(os.getpid(), signal.SIGTERM)

    def stop(self):
        """Stop the client, if the server has ended before it."""
        if self._process:
            self._process.terminate()
            self._process.wait()

    @property
    def status(self):
        """The client's exit status: 0 if it ran and lost no request."""
        return self._process.returncode if self._process else 1
