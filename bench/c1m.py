"""Holds a million connections at once, each with its delay pending, and answers every one.

    make c1m                                        a million: about six minutes, 12 GiB
    python bench/c1m.py --connections 50000

The server is bench/http_delay.py, in as many processes as the limit of open files asks for, each
at a port of its own. As many clients (bench/baseline/http_load, in C, so that the memory goes to
the server) connect at --rate, from addresses of 127.0.0.0/8. The delay is so long that every
connection waits for its answer when the last one has come; then memory is read, and the answers
follow, at the pace of the connections. An answer is good only when its bytes are exactly right and
the end of the stream follows them.

Before it begins it looks at the limits of the machine, and says what is in the way. The exit status
is 0 if all were held at once and answered, 1 if not, and 2 if it could not begin.
"""

import argparse
import gc
import json
import math
import signal
import subprocess
import sys
import time
from argparse import Namespace
from functools import partial
from pathlib import Path

import harness
import http_delay
import limits
import machine
from machine import MIB, Memory, private_bytes
from reporting import Snapshot
from workers import Reports, Workers, describe_exit

BASELINE = Path(__file__).resolve().parent / "baseline"
FIRST_SOURCE = (127 << 24) + (1 << 16)  # 127.1.0.0
SPARE_DELAY = 15.0  # seconds
END_SECONDS = 30.0  # for the processes to end


class Failure(Exception):
    """Not all were held, or answered."""


def main():
    options = parse_options()
    limit, _ = limits.raise_open_files_limit()
    # A tenth of the descriptors stays free.
    options.per_process = min(options.per_process or limit, int((limit - limits.RESERVED) * 0.9))
    options.processes = math.ceil(options.connections / options.per_process)
    if options.delay is None:
        options.delay = 1.2 * options.connections / options.rate + SPARE_DELAY
    reasons = machine.in_the_way(options.connections, options.processes)
    if options.delay + options.connections / options.rate + END_SECONDS > options.limit:
        reasons.append(
            f"--limit is {options.limit:,.0f} s, and the delay {options.delay:,.0f} s after"
            f" {options.connections / options.rate:,.0f} s of connecting: raise --rate or --limit"
        )
    if reasons:
        print("This machine cannot do it:", *reasons, sep="\n  ", file=sys.stderr)
        return 2
    subprocess.run(["make", "-C", BASELINE, "http_load"], check=True, stdout=subprocess.DEVNULL)
    try:
        Run(options).run()
    except Failure as failure:
        print(f"failed: {failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    return 0


def parse_options():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--connections", type=int, default=1_000_000, metavar="N", help="(%(default)s)")
    add("--rate", type=float, default=8_000.0, help="connections a second (%(default)g)")
    add("--delay", type=float, help="seconds before an answer"
        f" (1.2 * connections / rate + {SPARE_DELAY:g})")  # fmt: skip
    add("--per-process", type=int, help="most connections of a process (as the open files allow)")
    add("--limit", type=float, default=480.0, help="seconds for all of it (%(default)g)")
    add("--json", action="store_true", help="print the result as one JSON object, at the end")
    options = parser.parse_args()
    for name in ("connections", "rate", "per_process", "limit"):
        value = getattr(options, name)
        if value is not None and value <= 0:
            parser.error(f"--{name.replace('_', '-')} must be positive")
    return options


class Run:
    """The processes, and what they say."""

    def __init__(self, options):
        self.options = options
        self.shares = [
            options.connections * (i + 1) // options.processes
            - options.connections * i // options.processes
            for i in range(options.processes)
        ]
        self.clients = []
        self.pids = []  # of the servers
        self.reports = Reports(options.processes, Snapshot())
        self.held_at_once = 0
        self.result = {}

    def run(self):
        options = self.options
        self.say(
            f"{options.connections:,} connections, {options.processes} servers and as many clients,"
            f" {options.rate:,.0f} connections/s, an answer after {options.delay:,.0f} s"
        )
        began = time.monotonic()
        self.deadline = began + self.options.limit
        self.before = Memory.now()
        gc.collect()
        gc.freeze()  # the collector must not write to pages that the servers share
        server = Namespace(
            host="127.0.0.1",
            port=0,
            delay=self.options.delay,
            backlog=None,
            workers=1,
            unbuffered=False,
            tls=False,
            busy=False,
        )
        # SIGTERM is like Ctrl-C: all processes end, and then this one.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        workers = Workers(
            [partial(harness.run_server, http_delay.serve, server)] * self.options.processes
        )
        try:
            messages = workers.messages()
            self.connect(messages)
            self.hold(messages)
            self.collect_answers(messages)
            workers.send_signal(signal.SIGTERM)
            self.end(messages)
        finally:
            # No Ctrl-C may come between a process and its end.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            workers.send_signal(signal.SIGKILL)
            for client in self.clients:
                client.kill()
            for client in self.clients:
                client.wait()
                client.stdout.close()
            for _ in workers.messages():
                pass
            self.progress("")
        self.finish(time.monotonic() - began)

    # What happens, in order

    def connect(self, messages):
        """Start the servers, and a client for each."""
        ports = []
        for pid, kind, value in messages:
            self.check(pid, kind, value)
            if kind == "listening":
                self.pids.append(pid)
                ports.append(value[1])
                if len(ports) == self.options.processes:
                    break
        self.idle = Memory.now()
        self.idle_private = sum(map(private_bytes, self.pids))
        self.connecting = time.monotonic()
        first = FIRST_SOURCE
        for port, share in zip(ports, self.shares):
            self.clients.append(self.start_client(port, share, first))
            first += machine.addresses_needed(share)

    def start_client(self, port, share, first_source):
        rate = self.options.rate * share / self.options.connections
        patience = self.options.delay + 60
        source = ".".join(str(first_source >> shift & 255) for shift in (24, 16, 8, 0))
        command = [BASELINE / "http_load", "-r", rate, "-t", patience, "-a", source]
        command += [port, share, share, 0]
        return subprocess.Popen(
            [str(word) for word in command],
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # a Ctrl-C at the terminal is for this process, which ends it
        )

    def hold(self, messages):
        """Wait until every connection is there, and read memory."""
        for total in self.totals(messages):
            self.held_at_once = max(self.held_at_once, total.incoming)
            self.progress(f"connecting: {total.incoming:,} held")
            if total.finished:
                raise Failure(
                    f"the first answer was due when {self.held_at_once:,} were held:"
                    " give a longer --delay, or a --rate that the machine can keep"
                )
            if total.incoming == self.options.connections:
                break
        seconds = time.monotonic() - self.connecting
        self.held = Memory.now()
        self.held_private = sum(map(private_bytes, self.pids))
        self.say(f"held at once: {self.held_at_once:,}, after {seconds:,.0f} s, none answered yet")
        client_private = sum(private_bytes(client.pid) for client in self.clients)
        self.result.update(
            held_at_once=self.held_at_once,
            connecting_seconds=seconds,
            processes=self.options.processes,
            memory=self.memory(client_private),
        )

    def memory(self, client_private):
        """Bytes for each connection, and of an idle server."""
        count = self.options.connections
        server = (self.held_private - self.idle_private) / count
        kernel = self.held.kernel(self.idle)
        for line in self.held.table(self.idle, count):
            self.say(line)
        self.say(
            f"bytes a connection: {server:,.0f} of the server's processes,"
            f" {kernel / count:,.0f} of the kernel for both ends,"
            f" {client_private / count:,.0f} of the clients\n"
            f"  idle: {self.idle_private / len(self.pids) / MIB:,.1f} MiB private of each server;"
            f" all in all {(self.held.used - self.before.used) / MIB:,.0f} MiB used"
        )
        return {
            "server_bytes_per_connection": server,
            "kernel_bytes_per_connection": kernel / count,
            "client_bytes_per_connection": client_private / count,
            "idle_server_bytes": self.idle_private / len(self.pids),
            "used_bytes": self.held.used - self.before.used,
            "slabs": self.held.slabs_since(self.idle),
            "sockets": self.held.sockets,
        }

    def collect_answers(self, messages):
        """Wait until every client has ended, and add up what they have found."""
        for total in self.totals(messages):
            self.progress(f"answering: {total.finished:,} answered, {total.incoming:,} held")
            if all(client.poll() is not None for client in self.clients):
                break
        found = [client.stdout.read() for client in self.clients]
        died = sum(not output for output in found)
        replies = sum(json.loads(output)["replies"] for output in found if output)
        self.result.update(replies=replies, errors=self.options.connections - replies)
        if died:
            raise Failure(f"{died} clients died; {replies:,} good answers")

    def end(self, messages):
        for pid, kind, value in messages:
            if kind == "ended" and value:
                raise Failure(f"server {pid} {describe_exit(value)}")
            if kind == "counters":
                self.reports.add(pid, value)
            if time.monotonic() > self.deadline:
                raise Failure("the servers did not end")

    def finish(self, seconds):
        total = self.reports.total()
        per_request = (total.user + total.system) * 1e6 / max(1, total.finished)
        self.result.update(seconds=seconds, cpu_us_per_request=per_request)
        self.say(
            f"answered: {self.result['replies']:,}, errors: {self.result['errors']:,};"
            f" servers' CPU {per_request:.1f} µs a request; {seconds:,.0f} s in all"
        )
        if self.options.json:
            print(json.dumps(self.result, indent=2))
        if self.result["errors"]:
            raise Failure(f"{self.result['errors']:,} requests were lost")

    # What they say

    def totals(self, messages):
        """The sum of the servers' reports, once a second, when each has reported."""
        for pid, kind, value in messages:
            self.check(pid, kind, value)
            if kind == "counters" and self.reports.add(pid, value):
                yield self.reports.total()

    def check(self, pid, kind, value):
        if kind == "ended":
            raise Failure(f"server {pid} {describe_exit(value)}")
        for client in self.clients:
            if client.poll():
                raise Failure(f"a client {describe_exit(client.returncode)}")
        if time.monotonic() > self.deadline:
            raise Failure(f"it was not over after {self.options.limit:,.0f} s (--limit)")

    def progress(self, text):
        if sys.stderr.isatty():
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)

    def say(self, text):
        self.progress("")
        if not self.options.json:
            print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
