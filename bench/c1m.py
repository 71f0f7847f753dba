"""Holds a million connections at once, each with its delay pending, and answers every one.

    make c1m                                        a million: about six minutes, 12 GiB
    python bench/c1m.py --connections 50000

The server is bench/http_delay.py, in as many processes as the limit of open files asks for, each
at a port of its own. As many clients (bench/baseline/load, in C, so that the memory goes to the
server) connect at --rate, from addresses of 127.0.0.0/8. The delay is so long that every
connection waits for its answer when the last one has come; then memory is read, and the answers
follow, at the pace of the connections. An answer is good only when its bytes are exactly right and
the end of the stream follows them.

Before it begins it looks at the limits of the machine, and says what is in the way. The exit status
is 0 if all were held at once and answered, 1 if not, and 2 if it could not begin.
"""

import gc
import ipaddress
import json
import math
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import common
import http_delay
from common import CONNECTIONS_PER_ADDRESS, LOAD, MIB, positive_float, positive_int, private_bytes
from workers import STOP_SIGNALS, Workers, describe_exit

FIRST_SOURCE = ipaddress.IPv4Address("127.1.0.0")
SPARE_DELAY = 15.0  # seconds
END_SECONDS = 30.0  # for the processes to end

# Measured on Linux 6.18: two TCP sockets with their files, inodes, directory entries, ports and
# places in epoll sets, and the server's own share, rounded up.
BYTES_PER_CONNECTION = 12_000
BYTES_PER_PROCESS = 20 * MIB  # a server, idle, and its client

# The kernel's caches that connections fill
SLABS = ("TCP", "request_sock_TCP", "tw_sock_TCP", "sock_inode_cache", "dentry", "filp",
         "eventpoll_epi", "ep_head", "eventpoll_pwq", "tcp_bind_bucket",
         "tcp_bind2_bucket")  # fmt: skip


class Failure(Exception):
    """Not all were held, or answered."""


def main():
    options = parse_options()
    files, _ = common.raise_open_files_limit()
    # A tenth of the descriptors stays free.
    most = int((files - common.RESERVED_FILES) * 0.9)
    options.processes = math.ceil(options.connections / min(options.per_process or most, most))
    if options.delay is None:
        options.delay = 1.2 * options.connections / options.rate + SPARE_DELAY
    if reasons := list(in_the_way(options)):
        print("This machine cannot do it:", *reasons, sep="\n  ", file=sys.stderr)
        return 2
    common.compile_baseline("load")
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
    parser = common.option_parser(__doc__)
    add = parser.add_argument
    add("--connections", type=positive_int, default=1_000_000, metavar="N", help="(%(default)s)")
    add("--rate", type=positive_float, default=8_000.0, help="connections a second (%(default)g)")
    add("--delay", type=common.delay_time, help="seconds before an answer"
        f" (1.2 * connections / rate + {SPARE_DELAY:g})")  # fmt: skip
    add("--per-process", type=positive_int, metavar="N",
        help="most connections of a process (as open files allow)")  # fmt: skip
    add("--limit", type=positive_float, default=480.0, help="seconds for all of it (%(default)g)")
    return parser.parse_args()


# The machine


def in_the_way(options):
    """Why the machine cannot hold so many connections, or not in the time: reasons."""
    connections, processes = options.connections, options.processes
    used, _, most = numbers("fs/file-nr")
    files = 2 * connections + 64 * processes
    if files > most - used:
        yield (
            f"fs.file-max is {most:,}, {used:,} are in use, and {files:,} are needed:"
            f" sysctl fs.file-max={files + used + 10_000}"
        )
    if limit("fs/epoll/max_user_watches") < 2 * connections:
        yield f"fs.epoll.max_user_watches is below {2 * connections:,}"
    needed = (connections * BYTES_PER_CONNECTION + processes * BYTES_PER_PROCESS) // MIB
    available = meminfo()["MemAvailable"] // MIB
    if needed > available:
        yield f"{available:,} MiB of memory are available, and about {needed:,} MiB are needed"
    low, high = numbers("net/ipv4/ip_local_port_range")
    if (high - low + 1) // 2 < min(CONNECTIONS_PER_ADDRESS, connections):
        ports = 2 * CONNECTIONS_PER_ADDRESS
        yield f"net.ipv4.ip_local_port_range is {low}-{high}: an address needs {ports:,} ports"
    if limit("net/netfilter/nf_conntrack_max") < connections and tracks_connections():
        yield f"net.netfilter.nf_conntrack_max is below {connections:,}"
    if 2 * processes > min(limit("kernel/pid_max"), limit("kernel/threads-max")):
        yield f"{2 * processes:,} processes are needed: the open files of each are few"
    connecting = connections / options.rate
    if options.delay + connecting + END_SECONDS > options.limit:
        yield (
            f"--limit is {options.limit:,.0f} s, and the delay {options.delay:,.0f} s after"
            f" {connecting:,.0f} s of connecting: raise --rate or --limit"
        )


def tracks_connections():
    """Whether the kernel keeps a record of connections on the loopback."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()),
    ):
        return limit("net/netfilter/nf_conntrack_count") > 0


def numbers(name):
    """The numbers in a file of /proc/sys."""
    return [int(word) for word in Path("/proc/sys", name).read_text().split()]


def limit(name):
    """The number in a file of /proc/sys; without the file there is no limit."""
    return numbers(name)[0] if Path("/proc/sys", name).exists() else math.inf


def meminfo():
    """The figures of /proc/meminfo, in bytes."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if "kB" in line}


def memory_now():
    """What memory is used for, in bytes by name: in all, but for files' pages; and the kernel's."""
    info = meminfo()
    return {
        "used": info["MemTotal"] - info["MemFree"] - info["Buffers"] - info["Cached"],
        "slab": info["Slab"],
        "socket buffers": int(tcp_sockets().split()[-1]) * 4096,  # in pages
        "page tables": info["PageTables"],
        **dict(slabs()),
    }


def tcp_sockets():
    """What /proc/net/sockstat says of TCP."""
    lines = Path("/proc/net/sockstat").read_text().splitlines()
    return next(line for line in lines if line.startswith("TCP:"))


def slabs():
    """The memory of the kernel's caches that connections fill, as far as it may be read."""
    try:
        lines = Path("/proc/slabinfo").read_text().splitlines()[2:]
    except OSError:  # only the superuser may
        return
    for name, _, _, _, _, pages_each, *rest in map(str.split, lines):
        if name in SLABS:
            yield name, int(rest[rest.index("slabdata") + 2]) * int(pages_each) * 4096


# The run


class Run:
    """The processes, and what they say."""

    def __init__(self, options):
        self.options = options
        self.clients = []
        self.pids = []  # of the servers
        self.result = {"processes": options.processes}

    def run(self):
        options = self.options
        self.say(
            f"{options.connections:,} connections, {options.processes} servers and as many clients,"
            f" {options.rate:,.0f} connections/s, an answer after {options.delay:,.0f} s"
        )
        began = time.monotonic()
        self.deadline = began + options.limit
        self.used_before = memory_now()["used"]
        gc.collect()
        gc.freeze()  # the collector must not write to pages that the servers share
        server = http_delay.parse_options(["--port=0", f"--delay={options.delay}"])
        # SIGTERM is like Ctrl-C: all processes end, and then this one.
        for signo in STOP_SIGNALS:
            signal.signal(signo, signal.default_int_handler)
        targets = [partial(http_delay.run_server, server)] * options.processes
        workers = Workers(targets, http_delay.Snapshot())
        try:
            messages = workers.messages()
            self.connect(messages)
            self.hold(messages)
            self.collect_answers(messages)
            workers.send_signal(signal.SIGTERM)
            for _ in self.totals(messages, ending=True):
                pass
        finally:
            # No Ctrl-C may come between a process and its end.
            for signo in STOP_SIGNALS:
                signal.signal(signo, signal.SIG_IGN)
            workers.send_signal(signal.SIGKILL)
            for client in self.clients:
                client.kill()
                client.communicate()
            for _ in workers.messages():
                pass
            common.progress("")
        self.finish(workers.total(), time.monotonic() - began)

    # What happens, in order

    def connect(self, messages):
        """Start the servers, and a client for each."""
        ports = []
        while len(ports) < self.options.processes:
            pid, kind, value = next(messages)
            self.check(pid, kind, value)
            if kind == "listening":
                self.pids.append(pid)
                ports.append(value[1])
        self.idle = memory_now()
        self.idle_private = sum(map(private_bytes, self.pids))
        self.connecting = time.monotonic()
        source = FIRST_SOURCE
        for port, share in zip(ports, common.shares(self.options.connections, len(ports))):
            rate = self.options.rate * share / self.options.connections
            words = ["-r", rate, "-t", self.options.delay + 60, "-a", source, "-n", share]
            words = map(str, [LOAD, *words, "http", port, share])
            pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "text": True}
            # In a session of its own: a Ctrl-C at the terminal is for this process alone.
            client = subprocess.Popen(words, start_new_session=True, **pipes)
            self.clients.append(client)
            source += 1 + share // CONNECTIONS_PER_ADDRESS  # as many as it connects from

    def hold(self, messages):
        """Wait until every connection is there, and read memory."""
        held_at_once = 0
        for total in self.totals(messages):
            held_at_once = max(held_at_once, total.incoming)
            common.progress(f"connecting: {total.incoming:,} held")
            if total.finished:
                raise Failure(
                    f"the first answer was due when {held_at_once:,} were held:"
                    " give a longer --delay, or a --rate that the machine can keep"
                )
            if total.incoming == self.options.connections:
                break
        seconds = time.monotonic() - self.connecting
        now, sockets = memory_now(), tcp_sockets()
        server = sum(map(private_bytes, self.pids)) - self.idle_private
        client = sum(private_bytes(client.pid) for client in self.clients)
        self.say(f"held at once: {held_at_once:,}, after {seconds:,.0f} s, none answered yet")
        self.say(f"kernel: {sockets}")
        memory = {**self.memory(now, server, client), "sockets": sockets}
        self.result.update(held_at_once=held_at_once, connecting_seconds=seconds, memory=memory)

    def memory(self, now, server, client):
        """Bytes for each connection, and of an idle server."""
        count, used = self.options.connections, now.pop("used") - self.used_before
        rows = {name: size - self.idle.get(name, 0) for name, size in now.items()}
        kernel = rows["slab"] + max(0, rows["socket buffers"])
        idle = self.idle_private / len(self.pids)
        for name, size in rows.items():
            if abs(size) >= count:  # a byte for each
                name = f"  {name}" if name in SLABS else name
                self.say(f"  {name:20} {size / MIB:10,.1f} MiB {size / count:10,.0f} each")
        self.say(
            f"bytes a connection: {server / count:,.0f} of the server's processes,"
            f" {kernel / count:,.0f} of the kernel for both ends,"
            f" {client / count:,.0f} of the clients\n"
            f"  idle: {idle / MIB:,.1f} MiB private of each server;"
            f" all in all {used / MIB:,.0f} MiB used"
        )
        return {
            "server_bytes_per_connection": server / count,
            "kernel_bytes_per_connection": kernel / count,
            "client_bytes_per_connection": client / count,
            "idle_server_bytes": idle,
            "used_bytes": used,
            "slabs": {name: size for name, size in rows.items() if name in SLABS},
        }

    def collect_answers(self, messages):
        """Wait until every client has ended, and add up what they have found."""
        for total in self.totals(messages):
            common.progress(f"answering: {total.finished:,} answered, {total.incoming:,} held")
            if all(client.poll() is not None for client in self.clients):
                break
        found = [client.stdout.read().splitlines()[1:] for client in self.clients]
        replies = sum(json.loads(line)["done"] for lines in found for line in lines)
        self.result.update(replies=replies, errors=self.options.connections - replies)
        if died := found.count([]):
            raise Failure(f"{died} clients died; {replies:,} good answers")

    def finish(self, total, seconds):
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

    def totals(self, messages, ending=False):
        """The sum of the servers' reports, once a second, when each has reported."""
        for pid, kind, value in messages:
            self.check(pid, kind, value, ending)
            if kind == "counters" and value:
                yield value

    def check(self, pid, kind, value, ending=False):
        """Raise Failure if something has ended that should not, or lasts too long."""
        if kind == "ended" and (value or not ending):
            raise Failure(f"server {pid} {value or 'has ended'}")
        for client in self.clients:
            if client.poll():
                raise Failure(f"a client {describe_exit(client.returncode)}")
        if time.monotonic() > self.deadline:
            raise Failure(f"it was not over after {self.options.limit:,.0f} s (--limit)")

    def say(self, text):
        if not self.options.json:
            common.say(text, file=sys.stdout)


if __name__ == "__main__":
    sys.exit(main())
