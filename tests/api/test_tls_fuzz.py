"""Handshakes of which some bytes are wrong: no crash, no hang, no leak."""

import gc
import random
import ssl
import sys

import pytest
from tls_peers import CLIENT, SERVER, client_context, server_context

from pyasync._core.tls import HANDSHAKE, TlsOptions, TlsState
from pyasync.errors import TcpSslError

CASES = 10_000


def make(context, server_side):
    settings = TlsOptions(
        context, server_side=server_side, handshake_timeout=None, shutdown_timeout=None
    )
    return TlsState(settings, None if server_side else "localhost")


def flights(version):
    """Record what each side of a good connection sends, in turn: hello, answer, finished, data."""
    client = make(client_context(maximum_version=version), False)
    server = make(server_context(), True)
    recorded = {"client": [], "server": []}
    for _ in range(3):
        for name, sender, receiver in [("client", client, server), ("server", server, client)]:
            if sender.phase == HANDSHAKE:
                sender.handshake()
            if sender.phase != HANDSHAKE and name == "client":
                sender.object.write(b"a request")
            data = sender.outgoing.read()
            recorded[name].append(data)
            receiver.incoming.write(data)
    assert client.error is server.error is None
    return recorded


def mutate(rng, data):
    """Change, drop, repeat or insert a few bytes, most often where the lengths and types are."""
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        if not data:
            break
        place = rng.randrange(min(len(data), rng.choice([6, 60, 10_000])))
        kind = rng.randrange(5)
        if kind == 0:
            data[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[place] = rng.choice([0, 1, 0x7F, 0x80, 0xFF])
        elif kind == 2:
            del data[place : place + rng.choice([1, 2, 50])]
        elif kind == 3:
            data[place:place] = bytes(data[place : place + rng.choice([1, 5, 300])])
        else:
            data[place:place] = rng.randbytes(rng.choice([1, 4, 20_000]))
    return bytes(data)


def feed(state, data, rng):
    """Let it arrive in pieces, as a connection would; return whether it was taken for an error."""
    while data and state.error is None and not state.ended:
        size = rng.choice([1, 5, 100, 100_000])
        piece, data = data[:size], data[size:]
        if state.phase == HANDSHAKE:
            state.incoming.write(piece)
            if state.handshake():
                state.receive(b"")
        else:
            state.receive(piece)
        state.outgoing.read()
    assert state.error is None or isinstance(state.error, TcpSslError)
    return state.error is not None


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("side", ["server", "client"])
def test_a_mutated_handshake_ends_in_an_error_or_goes_on(side, version):
    rng = random.Random(f"{side} {version}")
    recorded = flights(version)["client" if side == "server" else "server"]
    context = SERVER() if side == "server" else CLIENT()
    errors = 0
    for _ in range(CASES // 4):
        state = make(context, side == "server")
        if side == "client":
            state.handshake()
            state.outgoing.read()
        arrives = list(recorded)
        # A recorded flight answers another random number than this side's: what follows the
        # first can only be wrong, and is tried less often.
        which = rng.choice([0, 0, 0, 1])
        arrives[which] = mutate(rng, arrives[which])
        errors += feed(state, b"".join(arrives), rng)
    assert errors > CASES // 8


@pytest.mark.skipif(sys.implementation.name == "pypy", reason="counts objects by CPython's means")
def test_failed_handshakes_leave_no_objects():
    rng = random.Random(1)
    hello = flights(ssl.TLSVersion.TLSv1_3)["client"][0]

    def fail(count):
        for _ in range(count):
            feed(make(SERVER(), True), mutate(rng, hello), rng)
        gc.collect()
        return len(gc.get_objects())

    fail(50)
    before = fail(50)
    assert fail(500) - before < 50
