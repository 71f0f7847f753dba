"""Runs a mixed load of everything, with hostile peers and faults, and looks for what grows.

    make soak                           ten minutes
    python bench/soak.py --minutes 1 --svg soak.svg

One process is the server: echo over TCP, TLS, pipes and UDP, beside timers, notifiers, children,
files, lookups, monitors and work; its callbacks raise at random, and now and then it gets no
descriptor. A second process is honest clients, which check each byte and take the time of each
answer. A third is hostile: peers that never read, that send a byte at a time, that reset, that
half-close, that are killed, that ask for new keys of TLS without end, and that send garbage.

At the end all peers leave. Then the counters must reconcile (accepted = closed, bytes here = bytes
there, exceptions raised = exceptions reported); no descriptor, handle or child may be left; and the
memory must not have grown since the first third. The exit status is 0 if all that holds.
"""

import contextlib
import json
import os
import random
import resource
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import chart
import common
from common import MIB, say
from workers import Workers

import pyasync
from pyasync import fs

HOST = "127.0.0.1"
PATIENCE = 30  # seconds, for an honest client's answer
QUIET = 30  # seconds, for everything to end when the peers have left
HONEST_CLIENTS, HOSTILE_CLIENTS = 6, 8
MOST_BYTES = 100_000  # in a message
MEMORY_SLACK = 12 * MIB  # what Python and malloc keep back, beside 5 %

#: What the server does beside, over and over, and how many seconds lie between on average.
JOBS = {"time": 0.05, "spawn": 0.3, "file": 0.05, "look_up": 0.1, "watch": 0.1, "work": 0.05,
        "notify": 0.05, "starve": 3, "connect": 0.05}  # fmt: skip


# The server


class Boom(Exception):
    """What callbacks raise at random."""


class Server:
    """The server's process: `run` is its life, `sample` what it tells once a second."""

    def __init__(self, folder):
        self.folder = folder
        self.counts = Counter(received=0, written=0, raised=0, reported=0, done=0)
        self.unexpected = []
        self.rng = random.Random(1)
        self.jobs = True

    def run(self, send):
        common.end_with_parent()
        self.send = send
        with pyasync.event_loop(catch_app_errors=self.on_error):
            signal.signal(signal.SIGUSR1, lambda *_: self.begin_no_more())
            signal.signal(signal.SIGTERM, lambda *_: self.stop())
            self.loop = pyasync.current_loop()
            context = common.server_context(
                self.folder / "certificate.pem", self.folder / "key.pem"
            )
            tls = {"ssl_context": context, "handshake_timeout": PATIENCE}
            honest = {"event_cb": self.on_event, "pressure_cb": self.on_pressure}
            limits = {"read_timeout": 1, "write_timeout": 1, "max_connections": 200, "linger": 0.5}
            hostile = {**honest, **limits}
            self.servers = [
                pyasync.tcp_server(HOST, 0, self.echo, **honest),
                pyasync.tcp_ssl_server(HOST, 0, self.echo, **tls, **honest),
                pyasync.pipe_server(self.folder / "pipe", self.echo, **honest),
                pyasync.tcp_server(HOST, 0, self.echo_hostile, **hostile),
                pyasync.tcp_ssl_server(
                    HOST, 0, self.echo_hostile, **{**tls, "handshake_timeout": 1}, **hostile
                ),
            ]
            self.udp = pyasync.udp_socket(HOST, 0, lambda sock, *what: sock.send(*what))
            self.clock = pyasync.interval(self.sample, time=1)
            for job in JOBS:
                self.attempt(job)
            addresses = [server.address for server in self.servers]
            send("addresses", [*addresses[:2], str(addresses[2]), *addresses[3:], self.udp.address])

    def begin_no_more(self):
        self.jobs = False

    def stop(self):
        self.begin_no_more()
        for handle in [*self.servers, self.udp, self.clock]:
            handle.close()

    def sample(self):
        stats = self.loop.stats()
        names = ("accepted", "connected", "closed", "accept_errors", "max_callback_time")
        self.send("sample", {
            **self.counts, **{name: getattr(stats, name) for name in names},
            "handles": {kind: count for kind, count in stats.handles.items() if count},
            "memory": common.private_bytes(), "descriptors": len(os.listdir("/proc/self/fd")),
            "unexpected": self.unexpected[:5],
        })  # fmt: skip

    def on_error(self, error):
        if isinstance(error, Boom):
            self.counts["reported"] += 1
        elif not isinstance(error, OSError):  # of a shortage of descriptors
            self.unexpected.append(repr(error))

    @staticmethod
    def on_event(event):
        """Let peers fail as they like."""

    @staticmethod
    def on_pressure(sock, paused):
        sock.disable(read=True) if paused else sock.enable(read=True)

    def echo(self, sock, data):
        self.counts["received"] += len(data)
        self.counts["written"] += len(data)
        self.echo_hostile(sock, data)

    def echo_hostile(self, sock, data):
        sock.write(data)
        self.may_raise()

    def may_raise(self):
        if self.rng.random() < 0.001:
            self.counts["raised"] += 1
            raise Boom

    def attempt(self, job):
        try:
            getattr(self, job)(partial(self.again, job))
        except OSError:  # no descriptors
            self.again(job)

    def again(self, job, *_):
        """Do the job again later, unless the end is near."""
        self.counts["done"] += 1
        if self.jobs:
            seconds = JOBS[job] * self.rng.random() * 2
            pyasync.delay(partial(self.attempt, job), time=seconds)

    # The jobs: each calls `over` when it is done.

    def time(self, over):
        timers = [pyasync.delay(self.may_raise, time=self.rng.random()) for _ in range(50)]
        for timer in timers[::3]:
            timer.free()
        over()

    def spawn(self, over):
        process = pyasync.spawn(
            "cat", [], input=pyasync.PIPE, output=pyasync.StdioPipe(read_cb=lambda *_: None),
            exit_cb=over, event_cb=self.on_event,
        )  # fmt: skip
        process.input.write(bytes(self.rng.randrange(MOST_BYTES)))
        if self.rng.random() < 0.3:
            process.kill(signal.SIGKILL)
        process.input.close()

    def file(self, over):
        path = self.folder / f"file{self.counts['done'] % 7}"

        def opened(fd):
            def close(*_):
                fs.close(fd, partial(fs.unlink, path, over, event_cb=over), event_cb=over)

            fs.write(fd, bytes(self.rng.randrange(MOST_BYTES)), close, event_cb=close)

        fs.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, opened, event_cb=over)

    def look_up(self, over):
        pyasync.dns_lookup_all("localhost", over, event_cb=over)

    def watch(self, over):
        monitor = pyasync.fs_watch(self.folder, lambda *_: None, event_cb=self.on_event)

        def end():
            monitor.close()
            over()

        pyasync.delay(end, time=0.5)

    def work(self, over):
        pyasync.work(lambda: time.sleep(0.002), over, event_cb=over)

    def notify(self, over):
        notifier = pyasync.make_notifier(over)
        pyasync.work(notifier.trigger, lambda _: None, event_cb=lambda _: notifier.trigger())

    def connect(self, over):
        """Be a client, too: of the server's own hostile port, in the same loop."""
        pyasync.tcp_connect(
            HOST, self.servers[3].address[1], lambda sock, data: sock.close(),
            data=b"hello", event_cb=self.on_event,
        )  # fmt: skip
        over()

    def starve(self, over):
        """Have no descriptor left for a moment."""
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        highest = max(map(int, os.listdir("/proc/self/fd")))
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest, limits[1]))

        def end():
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            over()

        pyasync.delay(end, time=0.1)


# Honest clients


class Honest:
    """The process of clients that check what they get, and take the time."""

    def __init__(self, addresses):
        self.addresses = addresses
        self.sent = self.received = 0
        self.times, self.failures = [], []
        self.lock, self.over = threading.Lock(), threading.Event()

    def run(self, send):
        common.end_with_parent()
        signal.signal(signal.SIGTERM, lambda *_: self.over.set())
        self.context = common.trusting_context()
        with ThreadPoolExecutor(HONEST_CLIENTS) as pool:
            talks = pool.map(self.talk, range(HONEST_CLIENTS))
            while not self.over.wait(1):
                with self.lock:
                    times, self.times = sorted(self.times), []
                tail = times[int(0.99 * len(times))] if times else 0
                send("latency", {"exchanges": len(times), "p99": tail})
            list(talks)  # raises what they have
        totals = {"sent": self.sent, "received": self.received, "failures": self.failures}
        send("totals", totals)

    def talk(self, number):
        rng = random.Random(number)
        while not self.over.is_set():
            try:
                if rng.random() < 0.2:
                    self.exchange_datagram(rng)
                else:
                    with self.connect(rng.choice(["tcp", "tls", "pipe"])) as sock:
                        for _ in range(rng.randrange(1, 20)):
                            self.exchange(sock, rng.randbytes(rng.randrange(1, MOST_BYTES)))
            except Exception as error:
                self.failures.append(repr(error))

    def connect(self, kind):
        tcp, tls, pipe, *_ = self.addresses
        sock = socket.socket(socket.AF_UNIX if kind == "pipe" else socket.AF_INET)
        sock.settimeout(PATIENCE)
        sock.connect({"tcp": tuple(tcp), "tls": tuple(tls), "pipe": pipe}[kind])
        return sock if kind != "tls" else self.context.wrap_socket(sock)

    def exchange(self, sock, data):
        start = time.perf_counter()
        sock.sendall(data)
        answer = bytearray()
        while len(answer) < len(data):
            part = sock.recv(1 << 16)
            if not part:
                raise EOFError("the server has ended the connection")
            answer += part
        if answer != data:
            raise ValueError("the answer is another than the question")
        with self.lock:
            self.times.append(time.perf_counter() - start)
            self.sent += len(data)
            self.received += len(answer)

    def exchange_datagram(self, rng):
        data = rng.randbytes(100)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(1)
            for _ in range(PATIENCE):
                sock.sendto(data, tuple(self.addresses[5]))
                with contextlib.suppress(socket.timeout):
                    if sock.recv(1000) == data:
                        return
        raise TimeoutError("no datagram comes back")


# Hostile peers


def attack(addresses, send):
    """Run the hostile peers until a signal says that it is over."""
    common.end_with_parent()
    over = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: over.set())

    def go_on(number):
        rng = random.Random(number)
        while not over.is_set():
            with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
                rng.choice(ATTACKS)(rng, partial(dial, addresses, rng, stack))

    with ThreadPoolExecutor(HOSTILE_CLIENTS) as pool:
        attacks = pool.map(go_on, range(HOSTILE_CLIENTS))
        over.wait()
        list(attacks)  # raises what they have


def dial(addresses, rng, stack):
    """Connect to the hostile ports: TCP's, or TLS's, to which the peer need not speak TLS."""
    sock = stack.enter_context(socket.socket())
    sock.settimeout(5)
    sock.connect(tuple(rng.choice(addresses[3:5])))
    return sock


def never_read(rng, dial):
    for sock in [dial() for _ in range(10)]:
        sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            for _ in range(100):
                sock.send(bytes(MOST_BYTES))
    time.sleep(1.5)


def bytes_slowly(rng, dial):
    socks = [dial() for _ in range(5)]
    for _ in range(50):
        for sock in socks:
            sock.send(b"x")
        time.sleep(0.02)


def storm_of_resets(rng, dial):
    for _ in range(200):
        sock = dial()
        if rng.random() < 0.5:
            sock.send(rng.randbytes(rng.randrange(1000)))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()


def half_close(rng, dial):
    for sock in [dial() for _ in range(10)]:
        sock.send(rng.randbytes(5000))
        sock.shutdown(socket.SHUT_WR)
        if rng.random() < 0.5:
            while sock.recv(1 << 16):
                pass


def garbage(rng, dial):
    for start in (b"", b"\x16\x03\x01\x02\x00", b"\x16\x03\x03\xff\xff", b"GET / HTTP/1.1\r\n\r\n"):
        dial().send(start + rng.randbytes(rng.randrange(5000)))
    time.sleep(0.2)


def update_keys(rng, dial):
    """Ask for new keys of TLS again and again, by OpenSSL's own client, where it is installed."""
    words = ["openssl", "s_client", "-connect", "{}:{}".format(*dial().getpeername())]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(words, **pipes) as client:
        for _ in range(200):
            client.stdin.write(b"K\n")  # a command of its own if it is read alone
            client.stdin.flush()
            time.sleep(0.005)


def killed(rng, dial):
    """Be a process that is killed with its connections."""
    socks = [dial() for _ in range(10)]
    pid = os.fork()
    if pid == 0:
        for sock in socks:
            sock.setblocking(False)
            with contextlib.suppress(OSError):
                sock.send(bytes(MOST_BYTES))
        os.kill(os.getpid(), signal.SIGKILL)
    for sock in socks:
        sock.close()
    os.waitpid(pid, 0)


ATTACKS = [never_read, bytes_slowly, storm_of_resets, half_close, garbage, update_keys, killed]


# All of it


class Soak:
    def __init__(self, options):
        self.options = options
        self.workers = Workers()
        self.said = defaultdict(list)  # by kind: addresses, sample, latency, totals
        self.outcomes = {}  # of the processes that have ended, by id

    def run(self):
        """Return the reasons why it has failed, and the figures."""
        with tempfile.TemporaryDirectory() as folder:
            folder = Path(folder)
            common.make_certificate(folder)
            try:
                server = self.workers.add(Server(folder).run)
                self.listen(PATIENCE, lambda: self.said["addresses"])
                (addresses,) = self.said["addresses"]
                honest = self.workers.add(Honest(addresses).run)
                hostile = self.workers.add(partial(attack, addresses))
                self.listen(60 * self.options.minutes, lambda: server in self.outcomes)
                self.end(hostile, PATIENCE)
                self.end(honest, PATIENCE + QUIET)
                self.workers.send_signal(signal.SIGUSR1, server)
                settled = self.listen(QUIET, self.is_quiet) and self.said["sample"][-1]
                self.end(server, QUIET)
                return list(self.failures(server, settled)), self.figures()
            finally:
                self.workers.send_signal(signal.SIGKILL)
                for _ in self.workers.messages():
                    pass

    def listen(self, seconds, until):
        """Keep what is said, for so long at most. Returns whether it was until then."""
        end = time.monotonic() + seconds
        for pid, kind, value in self.workers.messages(seconds):
            if kind == "ended":
                self.outcomes[pid] = value
            else:
                self.said[kind].append(value)
                common.progress(f"{end - time.monotonic():.0f} s left, {value}"[:100])
            if until():
                return True
        return False

    def end(self, pid, seconds):
        """End a process, and wait for its end."""
        self.workers.send_signal(signal.SIGTERM, pid)
        self.listen(seconds, lambda: pid in self.outcomes)

    def is_quiet(self):
        """Whether the server has no connections and jobs."""
        handles = self.said["sample"][-1]["handles"] if self.said["sample"] else {}
        # Timers: the clock's.
        return handles == {"tcp-server": 4, "pipe-server": 1, "udp": 1, "timer": 1}

    def failures(self, server, settled):
        last, (totals,) = (self.said["sample"] or [{}])[-1], self.said["totals"] or [None]
        for pid, outcome in self.outcomes.items():
            if outcome:
                yield f"the server {outcome}" if pid == server else f"a client {outcome}"
        if server not in self.outcomes:
            yield "the server has not ended"
        if totals is None:
            yield "the honest clients have not ended"
            return
        for failure in totals["failures"][:5]:
            yield f"an honest client: {failure}"
        for failure in last.get("unexpected", ["the server has said nothing"]):
            yield f"an exception in the server: {failure}"
        if not settled:
            yield f"handles are left: {last.get('handles')}"
            return
        if settled["accepted"] + settled["connected"] != settled["closed"]:
            yield (f"{settled['accepted']} accepted and {settled['connected']} connected, but"
                   f" {settled['closed']} closed")  # fmt: skip
        if settled["raised"] != settled["reported"]:
            yield f"{settled['raised']} exceptions raised, {settled['reported']} reported"
        for ours, theirs in [("received", "sent"), ("written", "received")]:
            if settled[ours] != totals[theirs]:
                yield f"{settled[ours]:,} bytes {ours} here, {totals[theirs]:,} {theirs} there"
        # At rest: the loop's own, the listeners, the workers' and the pipes to the parent.
        if settled["descriptors"] > 40:
            yield f"{settled['descriptors']} descriptors are left"
        first, later = self.memory()
        if later > 1.05 * first + MEMORY_SLACK:
            yield f"memory has grown from {first / MIB:.1f} to {later / MIB:.1f} MiB"

    def memory(self):
        """Return the medians of the memory in the second third of the run, and in the last."""
        memory = [sample["memory"] for sample in self.said["sample"]] or [0]
        third = len(memory) // 3
        return statistics.median(memory[third : 2 * third] or memory), statistics.median(
            memory[-third:] if third else memory
        )

    def figures(self):
        last, (totals,) = (self.said["sample"] or [{}])[-1], self.said["totals"] or [{}]
        first, later = self.memory()
        return {
            "minutes": self.options.minutes,
            "exchanges": sum(latency["exchanges"] for latency in self.said["latency"]),
            "bytes": totals.get("sent"),
            **{name: last.get(name) for name in
               ("accepted", "connected", "closed", "accept_errors", "raised", "done")},
            "slowest": last.get("max_callback_time"),
            "memory_mib": [round(first / MIB, 1), round(later / MIB, 1)],
            "p99_ms": round(1000 * max((s["p99"] for s in self.said["latency"]), default=0), 1),
        }  # fmt: skip

    def draw(self, path):
        panels = [
            partial(draw_line, "memory, MiB", [s["memory"] / MIB for s in self.said["sample"]]),
            partial(draw_line, "descriptors", [s["descriptors"] for s in self.said["sample"]]),
            partial(draw_line, "latency of honest clients, ms: p99",
                    [1000 * s["p99"] for s in self.said["latency"]]),
        ]  # fmt: skip
        chart.save(path, panels, 6, common.in_words(common.machine()), columns=1, width=8)


def draw_line(title, values, axes):
    axes.plot(values, color=chart.PYASYNC, linewidth=1)
    axes.set_title(title)
    axes.set_xlabel("seconds")
    axes.set_ylim(bottom=0)


def main():
    parser = common.option_parser(__doc__)
    parser.add_argument("--minutes", type=common.positive_float, default=10.0, help="(%(default)g)")
    parser.add_argument("--svg", type=chart.new_file, help="draw memory and latency into this")
    options = parser.parse_args()
    common.raise_open_files_limit()
    soak = Soak(options)
    failures, figures = soak.run()
    if options.svg:
        soak.draw(options.svg)
    if options.json:
        print(json.dumps({**figures, "failures": failures}))
    else:
        for name, value in figures.items():
            say(f"{name:<14} {value}", sys.stdout)
        for failure in failures:
            say(f"FAILED: {failure}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
