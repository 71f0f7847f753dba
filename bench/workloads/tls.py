"""Connections over TLS: echoes, handshakes, and memory. The client is the module ssl of Python."""

import asyncio
import contextlib
import os
import socket
import tempfile
import time

from common import KIB, MIB, make_certificate, private_bytes, trusting_context
from contenders import Watch, running

from workloads import Case, workload
from workloads.memory import idle_cost, receive

PEERS = ("uvloop", "asyncio")  # that speak TLS
IDLE_BEFORE, IDLE = 100, 500


@contextlib.contextmanager
def serving(contender, options, kind, *words):
    """Run a server, with this process on the other processor. Gives its id, and a connect()."""
    context = trusting_context()

    def connect(session=None):
        sock = socket.create_connection(("127.0.0.1", port), timeout=30)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return context.wrap_socket(sock, server_hostname="localhost", session=session)

    everywhere = os.sched_getaffinity(0)
    with tempfile.TemporaryDirectory() as folder:
        words = (kind, *make_certificate(folder), *words)
        with running(contender, options.server_cores, *words) as (pid, port):
            os.sched_setaffinity(0, options.client_cores)
            connect.port = port
            try:
                yield pid, connect
            finally:
                os.sched_setaffinity(0, everywhere)


def cost(pid, act, options, what, each=1):
    """Do it over and over, with so many of what it does each time; return the server's figures."""
    for seconds in (options.warm_up, options.seconds):
        count, watch, end = 0, Watch(pid), time.monotonic() + seconds
        while time.monotonic() < end:
            act()
            count += each
    return watch.figures(count, what)


def sizes(options):
    return [Case(f"{size} KiB", size * KIB) for size in (1, 10, 100)]


@workload(cases=sizes, references=PEERS)
def tls(contender, size, options):
    """TLS 1.3: echo on 10 connections.

    Compare CPU/message, the server's own. The client, in Python, limits messages/s.
    """
    with serving(contender, options, "tls") as (pid, connect), contextlib.ExitStack() as stack:
        data = bytes(size)
        socks = [stack.enter_context(connect()) for _ in range(10)]

        def round_trips():
            for sock in socks:
                sock.sendall(data)
            for sock in socks:
                receive(sock, size)

        return cost(pid, round_trips, options, "message", 10)


class Asker(asyncio.Protocol):
    """Sends data over and over, as soon as all of it has come back; counts how often."""

    def __init__(self, data):
        self.data, self.left, self.count = data, 0, 0

    def connection_made(self, transport):
        self.transport = transport
        self.data_received(b"")

    def data_received(self, data):
        self.left -= len(data)
        if self.left <= 0:
            self.count += 1
            self.left = len(self.data)
            self.transport.write(self.data)

    def connection_lost(self, error):
        self.count = float("nan")  # the figures show it


@workload(cases=sizes, references=PEERS)
def tls_many(contender, size, options):
    """TLS 1.3: echo on 50 connections at once.

    Compare CPU/message, the server's own. The client, an asyncio.Protocol on asyncio's own
    loop, limits messages/s.
    """

    async def ask(pid, port):
        loop, context, askers = asyncio.get_running_loop(), trusting_context(), []
        for _ in range(50):
            _, asker = await loop.create_connection(
                lambda: Asker(bytes(size)), "127.0.0.1", port, ssl=context
            )
            askers.append(asker)
        await asyncio.sleep(options.warm_up)
        watch, count = Watch(pid), -sum(asker.count for asker in askers)
        await asyncio.sleep(options.seconds)
        return watch.figures(count + sum(asker.count for asker in askers), "message")

    with serving(contender, options, "tls") as (pid, connect):
        return asyncio.run(ask(pid, connect.port))


@workload(cases=lambda options: [Case("in full", False), Case("resumed", True)], references=PEERS)
def tls_handshake(contender, resume, options):
    """TLS 1.3: a connection, one byte to and fro, and its end; P-256.

    Compare CPU/connection, the server's own. The client makes one after the other: it
    limits connections/s.
    """
    session = None

    def one_byte():
        nonlocal session
        with connect(session) as sock:
            sock.sendall(b"?")
            receive(sock, 1)
            if sock.session_reused != (session is not None):
                raise RuntimeError("a session was resumed, or was not")
            if resume:
                session = sock.session

    with serving(contender, options, "tls") as (pid, connect):
        return cost(pid, one_byte, options, "connection")


@workload(references=("bare", "uvloop"))
def tls_idle(contender, value, options):
    """TLS 1.3: connections that have echoed 1 KiB, and rest.

    Private memory for each. bare is an SSLObject with its two BIOs and a socket: what
    OpenSSL and the module ssl need.
    """
    with serving(contender, options, "tls_idle") as (pid, connect):
        return idle_cost(pid, connect, IDLE_BEFORE, IDLE)


@workload(references=PEERS)
def tls_slow(contender, value, options):
    """TLS 1.3: {waiting:,} MiB wait for one slow reader.

    Private memory that the server gains at most; the data it had before.
    """
    size = options.waiting * MIB
    with serving(contender, options, "tls_source", size) as (pid, connect):
        before = most = private_bytes(pid)
        with connect() as sock:
            for _ in range(32):
                time.sleep(0.02)
                most = max(most, private_bytes(pid))
                receive(sock, size // 32)
    return {"MiB more": (most - before) / MIB}
