"""The runs of ffi_profile.py: a server under load, in a process of its own, watched in one way.

By itself this is the load client of the echo server:

    python bench/ffi_workloads.py PORT CONNECTIONS MESSAGES
"""

import argparse
import cProfile
import os
import resource
import signal
import subprocess
import sys
from collections import Counter
from functools import partial
from typing import NamedTuple

import harness
import http_delay
import limits
from workers import Workers, describe_exit

import pyasync

MESSAGE = bytes(1024)

#: How a run is watched.
PLAIN, PROFILED, COUNTED = "plain", "profiled", "counted"


class Observation(NamedTuple):
    """What a run has cost, from the time when the load was started."""

    requests: int
    user: float  # CPU seconds
    system: float
    asleep: float
    events: int
    crossings: int
    bytes_read: int
    counts: Counter  # crossings by name, of a counted run
    profile: dict  # of a profiled one, as cProfile has it

    @property
    def cpu(self):
        return self.user + self.system


# The servers


def serve_echo(options, report):
    """Send back what comes, until a signal ends the server. Returns how many messages came."""
    received = 0

    def on_data(socket, data):
        nonlocal received
        received += len(data)
        socket.write(data)

    def on_event(event):
        if isinstance(event, pyasync.EventError):
            print("error:", event, file=sys.stderr)

    with pyasync.event_loop(buffer_writes=not options.unbuffered):
        server = pyasync.tcp_server(options.host, options.port, on_data, event_cb=on_event)
        pyasync.signal_handler(signal.SIGTERM, lambda signo: pyasync.exit_event_loop())
        report.listening(server.address)
    return received // len(MESSAGE)


def http_load(port, options):
    return [
        *(harness.LOAD_CLIENT, f"--port={port}", "--json"),
        *(f"--num-conns={options.requests}", f"--concurrency={options.concurrency}"),
    ]


def echo_load(port, options):
    return [__file__, port, options.concurrency, options.requests]


class Workload(NamedTuple):
    """A server, and the client that puts load on it."""

    title: str
    unit: str
    serve: object
    load: object


WORKLOADS = {
    "http": Workload("http_delay: a connection for each request", "request",
                     http_delay.serve, http_load),
    "echo": Workload("echo: messages of 1 KiB", "message", serve_echo, echo_load),
}  # fmt: skip


# A run


def observe(name, mode, options):
    """Run a server under load in a new process. Returns an Observation."""
    workers = Workers([partial(run, WORKLOADS[name], mode, options)])
    observation = None
    for _, kind, value in workers.messages():
        if kind == "observation":
            observation = value
        elif value:  # it has ended
            raise RuntimeError(f"the server {describe_exit(value)}")
    if observation is None or not observation.requests:
        raise RuntimeError(f"the load on {name} has failed")
    return observation


def run(workload, mode, options, send):
    """Be the process of a run."""
    limits.raise_open_files_limit()
    client = Client(workload, options)
    server_options = argparse.Namespace(
        **{"host": "127.0.0.1", "port": 0, "delay": 0, "backlog": None, "workers": 1},
        **{"tls": False, "unbuffered": options.unbuffered},
    )
    counts = Counter()
    if mode == COUNTED:
        count_crossings(counts)
    profiler = cProfile.Profile()
    if mode == PROFILED:
        profiler.enable()
    requests = workload.serve(server_options, client)
    profiler.disable()
    usage = resource.getrusage(resource.RUSAGE_SELF)
    if client.wait() == 0:
        profiler.create_stats()
        stats = client.loop.stats() - client.stats
        send(
            "observation",
            Observation(
                requests,
                usage.ru_utime - client.usage.ru_utime,
                usage.ru_stime - client.usage.ru_stime,
                stats.idle_time,
                stats.events,
                stats.crossings,
                stats.bytes_read,
                counts,
                profiler.stats if mode == PROFILED else {},
            ),
        )


class Client:
    """The report of a server, which starts the load, and ends the server when that has ended."""

    def __init__(self, workload, options):
        self._workload = workload
        self._options = options

    def listening(self, address):
        words = self._workload.load(address[1], self._options)
        self._process = subprocess.Popen(
            [sys.executable, *map(str, words)], stdout=subprocess.DEVNULL
        )
        pyasync.signal_handler(signal.SIGCHLD, self._on_child_ended).unref()
        self.loop = pyasync.current_loop()
        self.stats = self.loop.stats()
        self.usage = resource.getrusage(resource.RUSAGE_SELF)

    def counters(self, stats, finished):
        pass

    def _on_child_ended(self, signo):
        if self._process.poll() is not None:
            os.kill(os.getpid(), signal.SIGTERM)

    def wait(self):
        return self._process.wait()


def count_crossings(counts):
    """Put a counter before each function of C's, where there is no profiler that names them."""
    from pyasync import loop
    from pyasync._ffi import lib

    class CountingLib:
        def __getattr__(self, name):
            function = getattr(lib, name)
            if callable(function):
                function = counting(name, function)
            setattr(self, name, function)
            return function

    def counting(name, function):
        def counted(*arguments):
            counts[name] += 1
            return function(*arguments)

        return counted

    counting_lib = CountingLib()
    for name, module in list(sys.modules.items()):
        if name.startswith("pyasync.") and getattr(module, "lib", None) is lib:
            module.lib = counting_lib
    for kind, function in loop._CROSSINGS.items():
        loop._CROSSINGS[kind] = counting(function.__name__, function)


# The load on the echo server


def load_echo(port, connections, messages):
    """Send messages on each connection, one when the last has come back. Returns those lost."""
    left = messages

    def start(socket):
        nonlocal left
        socket.data = len(MESSAGE)  # how much of the answer is still to come
        if left:
            left -= 1
            socket.write(MESSAGE)
        else:
            socket.data = 0
            socket.close()

    def on_data(socket, data):
        nonlocal done
        socket.data -= len(data)
        if socket.data == 0:
            done += 1
            start(socket)

    done = 0
    with pyasync.event_loop():
        for _ in range(min(connections, messages)):
            pyasync.tcp_connect("127.0.0.1", port, on_data, connect_cb=start)
    return messages - done


if __name__ == "__main__":
    sys.exit(1 if load_echo(*map(int, sys.argv[1:])) else 0)
