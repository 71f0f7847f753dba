"""Connections over TLS: echoes, handshakes, and memory. The client is the module ssl of Python."""

import contextlib
import os
import socket
import tempfile
import time

import measuring
from certificates import make_certificate, trusting_context
from contenders import running

from workloads import Case, Workload

KIB, MIB = 1 << 10, 1 << 20
CONNECTIONS = 10
IDLE_BEFORE, IDLE = 100, 500


class Client:
    """Makes connections to a server, one after the other."""

    def __init__(self, port):
        self.context = trusting_context()
        self.port = port

    def connect(self, session=None):
        sock = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self.context.wrap_socket(sock, server_hostname="localhost", session=session)


@contextlib.contextmanager
def serving(contender, options, kind="tls", *words):
    """Run a server while the block runs, on a processor of its own. Gives its id and a client."""
    everywhere = os.sched_getaffinity(0)
    with tempfile.TemporaryDirectory() as folder:
        words = (*make_certificate(folder), *words)
        with running(contender, options.server_cores, kind, *words) as (pid, port):
            os.sched_setaffinity(0, options.client_cores)
            try:
                yield pid, Client(port)
            finally:
                os.sched_setaffinity(0, everywhere)


def receive(sock, size):
    while size:
        data = sock.recv(size)
        if not data:
            raise RuntimeError("the server has closed the connection")
        size -= len(data)


def cost(pid, act, options, what, each=1):
    """Do it over and over, with so many of what it does each time; return the server's figures."""
    for seconds in (options.warm_up, options.seconds):
        count, began, before = 0, time.monotonic(), measuring.cpu(pid)
        while time.monotonic() < began + seconds:
            act()
            count += 1
    seconds, count = time.monotonic() - began, count * each
    total, user, system = measuring.cpu(pid).for_each(count, since=before)
    return {
        f"CPU µs/{what}": total,
        "user": user,
        "system": system,
        f"{what}s/s": count / seconds,
    }


def measure_echo(contender, size, options):
    with serving(contender, options) as (pid, client), contextlib.ExitStack() as stack:
        data = bytes(size)
        socks = [stack.enter_context(client.connect()) for _ in range(CONNECTIONS)]

        def round_trips():
            for sock in socks:
                sock.sendall(data)
            for sock in socks:
                receive(sock, size)

        return cost(pid, round_trips, options, "message", CONNECTIONS)


def measure_handshake(contender, resume, options):
    session = None

    def connect():
        nonlocal session
        with client.connect(session) as sock:
            sock.sendall(b"?")
            receive(sock, 1)
            if sock.session_reused != (session is not None):
                raise RuntimeError("a session was resumed, or was not")
            if resume:
                session = sock.session

    with serving(contender, options) as (pid, client):
        return cost(pid, connect, options, "connection")


def measure_idle(contender, value, options):
    with serving(contender, options) as (pid, client), contextlib.ExitStack() as stack:
        private = []
        for count in (IDLE_BEFORE, IDLE):
            for _ in range(count):
                sock = stack.enter_context(client.connect())
                sock.sendall(bytes(KIB))
                receive(sock, KIB)
            time.sleep(0.3)
            private.append(measuring.private_bytes(pid))
    return {"bytes/connection": (private[1] - private[0]) / IDLE}


def measure_slow_reader(contender, value, options):
    size = options.waiting * MIB
    with serving(contender, options, "tls_source", size) as (pid, client):
        before = most = measuring.private_bytes(pid)
        with client.connect() as sock:
            for _ in range(32):
                time.sleep(0.02)
                most = max(most, measuring.private_bytes(pid))
                receive(sock, size // 32)
    return {"MiB more": (most - before) / MIB}


def speaks_tls(contender):
    return contender.name in ("pyasync", "uvloop", "asyncio", "pypy", "pypy-asyncio")


WORKLOADS = [
    Workload(
        "tls",
        f"TLS 1.3: echo on {CONNECTIONS} connections",
        "Compare CPU/message, the server's own. The client, in Python, limits messages/s.",
        measure_echo,
        lambda options: [Case(f"{size} KiB", size * KIB) for size in (1, 10, 100)],
        speaks_tls,
        references=("uvloop", "asyncio"),
    ),
    Workload(
        "tls-handshake",
        "TLS 1.3: a connection, one byte to and fro, and its end; P-256",
        "Compare CPU/connection, the server's own. The client makes one after the other: it\n"
        "limits connections/s.",
        measure_handshake,
        lambda options: [Case("in full", False), Case("resumed", True)],
        speaks_tls,
        references=("uvloop", "asyncio"),
    ),
    Workload(
        "tls-idle",
        "TLS 1.3: connections that have echoed 1 KiB, and rest",
        "Private memory for each. bare is an SSLObject with its two BIOs and a socket: what\n"
        "OpenSSL and the module ssl need.",
        measure_idle,
        contenders=lambda contender: contender.name == "bare" or speaks_tls(contender),
        references=("bare", "uvloop"),
    ),
    Workload(
        "tls-slow",
        "TLS 1.3: {waiting:,} MiB wait for one slow reader",
        "Private memory that the server gains at most; the data it had before.",
        measure_slow_reader,
        contenders=speaks_tls,
        references=("uvloop", "asyncio"),
    ),
]
