"""examples/hardened_server.py, attacked by peers; an honest client is served all the while."""

import contextlib
import os
import socket
import ssl
import sys
import time
import warnings

import pytest
from example_programs import serving
from peers import PATIENCE, Background, read_all, reset
from tls_peers import certificate, client_context

pytestmark = [
    pytest.mark.skipif(
        sys.implementation.name == "pypy",
        reason="the limits are the same code, and PyPy starts slowly",
    ),
    pytest.mark.skipif("LD_PRELOAD" in os.environ, reason="its memory is the sanitizers'"),
]

MIB = 1 << 20
LIMITS = {
    "connections": 40,
    "per-address": 20,
    "line-length": 100,
    "line-time": 1,
    "idle-time": 2,
    "write-time": 1,
}
ARGUMENTS = [f"--{name}={value}" for name, value in LIMITS.items()]


@pytest.fixture
def server():
    with serving("hardened_server.py", *ARGUMENTS) as server:
        yield server


def ask(server, question=b"hello\n"):
    """Ask as an honest client, from another address than the attackers', and check the answer."""
    with socket.create_connection(server.address, PATIENCE, ("127.0.0.2", 0)) as client:
        client.sendall(question)
        client.shutdown(socket.SHUT_WR)
        assert read_all(client) == question.upper()


def connect_many(server, count, stack):
    return [stack.enter_context(server.connect()) for _ in range(count)]


def is_ended(client):
    """Whether the server has ended the connection; waits for it, and drops answers."""
    try:
        while client.recv(1 << 16):
            pass
    except socket.timeout:
        return False
    except ConnectionError:
        pass
    return True


def memory_of(server):
    with open(f"/proc/{server.process.pid}/status") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmRSS"))


def test_an_honest_client_is_served(server):
    ask(server, b"".join(b"line %d\n" % number for number in range(1000)))


def test_connections_that_say_nothing_are_closed(server):
    with contextlib.ExitStack() as stack:
        clients = connect_many(server, LIMITS["per-address"], stack)
        ask(server)
        assert all(map(is_ended, clients))


def test_a_byte_at_a_time_gains_no_time(server):
    with server.connect() as client:
        start = time.monotonic()
        with contextlib.suppress(ConnectionError):
            while time.monotonic() < start + PATIENCE:  # each byte is within the idle time
                client.send(b"x")
                time.sleep(0.05)
                client.settimeout(0)
                with contextlib.suppress(BlockingIOError):
                    assert client.recv(100) == b"error: too slow\n"
                    break
                client.settimeout(PATIENCE)
        assert time.monotonic() < start + PATIENCE
        ask(server)


def test_a_line_without_an_end_is_not_kept(server):
    with server.connect() as client:
        with contextlib.suppress(ConnectionError):
            client.sendall(bytes(8 * MIB))
        assert is_ended(client)
    ask(server)


def test_a_line_that_is_too_long_is_refused_and_the_next_is_not_answered(server):
    with server.connect() as client:
        client.sendall(b"x" * (LIMITS["line-length"] + 1) + b"\nnext\n")
        assert read_all(client) == b"error: the line is too long\n"


def test_a_client_that_never_reads_is_closed_and_costs_little_memory(server):
    ask(server)
    before = memory_of(server)
    with contextlib.ExitStack() as stack:
        clients = connect_many(server, 10, stack)

        def flood(client):  # what comes after the write timeout may be taken, and is discarded
            with contextlib.suppress(ConnectionError):
                client.sendall(b"question\n" * (64 * MIB // 9))

        floods = [Background(flood, client) for client in clients]
        ask(server)
        for client, flooding in zip(clients, floods):
            flooding.result()
            assert is_ended(client)
        ask(server)
    assert memory_of(server) < before + 32 * MIB


def test_one_address_gets_no_more_than_its_share(server):
    with contextlib.ExitStack() as stack:
        clients = connect_many(server, 2 * LIMITS["per-address"], stack)
        refused = [client for client in clients[LIMITS["per-address"] :] if is_ended(client)]
        assert len(refused) == LIMITS["per-address"]
        ask(server)
    with server.connect() as client:  # there is room again
        client.sendall(b"back\n")
        assert client.recv(5) == b"BACK\n"


def test_connections_over_the_limit_wait_and_are_served_then(server):
    with contextlib.ExitStack() as stack:
        for number in range(2):
            for _ in range(LIMITS["per-address"]):
                source = (f"127.0.0.{10 + number}", 0)
                client = socket.create_connection(server.address, PATIENCE, source)
                stack.enter_context(client)
                client.sendall(b"x\n")
                assert client.recv(2) == b"X\n"
        ask(server)  # waits until the idle time has ended some


def test_resets_and_garbage_do_no_harm(server):
    for number in range(300):
        with server.connect() as client:
            if number % 3:
                client.sendall(os.urandom(90))
            reset(client)
    ask(server)


def test_sigterm_is_told_to_the_clients():
    with serving("hardened_server.py", *ARGUMENTS) as server:
        client = server.connect()
        client.sendall(b"one\ntw")
        assert client.recv(4) == b"ONE\n"
    with client:
        assert read_all(client) == b"error: the server ends\n"


# The same over TLS


@pytest.fixture
def tls_server():
    leaf = certificate()
    files = [f"--certificate={leaf.certificate}", f"--key={leaf.key}"]
    with serving("hardened_server.py", *files, *ARGUMENTS) as server:
        yield server


def ask_by_tls(server):
    with (
        socket.create_connection(server.address, PATIENCE, ("127.0.0.2", 0)) as sock,
        client_context().wrap_socket(sock, server_hostname="localhost") as client,
    ):
        client.sendall(b"hello\n")
        assert client.recv(100) == b"HELLO\n"


def test_handshakes_that_do_not_go_on_are_closed(tls_server):
    with contextlib.ExitStack() as stack:
        clients = connect_many(tls_server, LIMITS["per-address"], stack)
        for client in clients[::2]:
            client.sendall(b"\x16\x03\x01\x02\x00")  # the header of a record that never comes
        ask_by_tls(tls_server)
        assert all(map(is_ended, clients))


def test_what_is_no_tls_is_refused(tls_server):
    for garbage in (b"GET / HTTP/1.1\r\n\r\n", os.urandom(1000), b"\x16\x03\x03\xff\xff" * 100):
        with tls_server.connect() as client:
            client.sendall(garbage)
            assert is_ended(client)
    ask_by_tls(tls_server)


def test_old_versions_of_tls_are_refused(tls_server):
    context = client_context()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # which Python gives since 3.10
        context.maximum_version = context.minimum_version = ssl.TLSVersion.TLSv1_1
    with tls_server.connect() as sock, pytest.raises((ssl.SSLError, ConnectionError)):
        context.wrap_socket(sock, server_hostname="localhost")
