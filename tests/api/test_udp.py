"""UDP sockets."""

import contextlib
import errno
import json
import os
import random
import shutil
import socket
import subprocess
import sys
from functools import partial

import pytest
from peers import (
    PATIENCE,
    Background,
    after_iterations,
    nothing,
    number_of,
    resident_size,
    when,
)

import pyasync

V4, V6 = socket.AF_INET, socket.AF_INET6
HOSTS = {V4: "127.0.0.1", V6: "::1"}
# One for each process, because members are counted over the whole system.
GROUP = f"239.192.{os.getpid() >> 8 & 255}.{os.getpid() & 255}"
SANITIZED = "asan" in os.environ.get("LD_PRELOAD", "")

each_family = pytest.mark.parametrize("family", [V4, V6], ids=["v4", "v6"])
each_way = pytest.mark.parametrize("buffer_writes", [True, False], ids=["buffered", "unbuffered"])


@contextlib.contextmanager
def plain(family=V4, host=None, receive_buffer=None):
    """Give a plain bound UDP socket."""
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.settimeout(PATIENCE)
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.bind((HOSTS[family] if host is None else host, 0))
        yield sock


@pytest.fixture
def peer():
    with plain() as sock:
        yield sock


def receive(sock, number):
    return [sock.recv(1 << 16) for _ in range(number)]


def send_all(run, peer, *datagrams, **keywords):
    """Send each of the datagrams to a peer from a socket of pyasync's, and return what comes."""
    family = peer.family

    with run(**keywords):
        sender = pyasync.udp_socket(HOSTS[family], event_cb=pytest.fail)
        for datagram in datagrams:
            sender.send(datagram, peer.getsockname())
        sender.close()
    return receive(peer, len(datagrams))


def buffer_of(udp, size):
    sock = socket.socket(fileno=udp.fileno())
    sock.setblocking(False)  # PyPy has just made it block
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)
    sock.detach()


@pytest.fixture
def in_loop(run):
    """Give `in_loop()`: a loop for a `with` block that is told of no error.

    It gives a function that opens sockets as `udp_socket` does, on the loopback.
    """

    @contextlib.contextmanager
    def in_loop(**keywords):
        errors = []

        def open_socket(host="127.0.0.1", port=0, read_cb=None, **options):
            options.setdefault("event_cb", errors.append)
            return pyasync.udp_socket(host, port, read_cb, **options)

        with run(**keywords):
            yield open_socket
        assert errors == []

    return in_loop


# Receiving


@each_family
@each_way
def test_what_is_sent_comes_back_from_an_echo(run, family, buffer_writes):
    number, window = 10_000, 50

    def echo(udp, data, address):
        if data == b"end":
            udp.close()
        else:
            udp.send(data, address)

    def talk(address):
        with plain(family) as sock:
            for begin in range(0, number, window):
                expected = [b"%d" % index * (index % 100) for index in range(begin, begin + window)]
                for datagram in expected:
                    sock.sendto(datagram, address)
                assert receive(sock, window) == expected
            sock.sendto(b"end", address)

    with run(buffer_writes=buffer_writes):
        server = pyasync.udp_socket(HOSTS[family], 0, echo, event_cb=pytest.fail)
        client = Background(talk, server.address)
    client.result()


@each_family
def test_the_address_is_that_of_the_socket_module(run, family):
    def read(udp, data, address):
        addresses.append(address)
        if len(addresses) == 3:
            udp.close()

    addresses = []
    with plain(family) as first, plain(family) as second:
        with run():
            udp = pyasync.udp_socket(HOSTS[family], 0, read)
            assert udp.address == udp.sockname
            assert udp.address[0] == HOSTS[family]
            for sock in (first, second, first):
                sock.sendto(b"", udp.address)
        assert addresses == [first.getsockname(), second.getsockname(), first.getsockname()]
        assert type(addresses[0]) is tuple


@each_family
def test_a_batch_of_the_largest_datagrams_arrives_whole(run, family):
    largest = {V4: 65507, V6: 65527}[family]
    sizes = [largest] * 45 + [0, 1, largest, 15, 16, 17, 0, largest - 1]
    datagrams = [random.Random(size).randbytes(size) for size in sizes]

    def read(udp, data, address):
        received.append(data)
        if len(received) == len(sizes):
            udp.close()

    def start():
        udp = pyasync.udp_socket(HOSTS[family], 0, read, event_cb=pytest.fail)
        buffer_of(udp, 16 << 20)
        with plain(family) as sock:
            for datagram in datagrams:
                sock.sendto(datagram, udp.address)
                if not fits:
                    return udp.close()

    received = []
    # Twice what is set, and what Linux counts for a datagram is more than its data.
    with plain(family, receive_buffer=16 << 20) as sock:
        fits = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) >= 8 << 20
    if not fits:
        pytest.skip("the system allows no buffer of this size")
    run(start)
    assert [len(data) for data in received] == sizes
    assert received == datagrams


def test_all_that_waits_at_many_sockets_is_received(run):
    # More than one iteration's arena holds.
    size, number = 60_000, 100

    def read(udp, data, address):
        received.append(data)
        udp.close()

    received = []
    with run(), plain() as sock:
        for index in range(number):
            udp = pyasync.udp_socket("127.0.0.1", 0, read, event_cb=pytest.fail)
            sock.sendto(bytes([index]) * size, udp.address)
    assert sorted(received) == [bytes([index]) * size for index in range(number)]


def test_busy_sockets_that_fill_the_arena_have_their_turns_one_after_the_other(run):
    """The kernel always names them in the same order, and the last one behind them all."""
    busy = 64

    def read(udp, data, address):
        turns.append(udp.data)
        if udp.data < busy:
            sock.sendto(bytes(60_000), udp.address)
            if len(turns) == 4 * busy:
                sock.sendto(b"ping", udps[-1].address)
        if udp.data == busy or len(turns) == 50 * busy:
            for udp in udps:
                udp.close()

    udps, turns = [], []
    with plain() as sock, run():
        for number in range(busy + 1):
            udps.append(pyasync.udp_socket("127.0.0.1", 0, read))
            udps[-1].data = number
        for udp in udps[:-1]:
            for _ in range(2):
                sock.sendto(bytes(60_000), udp.address)
    assert turns[-1] == busy


def test_datagrams_are_received_in_batches_and_the_rest_by_and_by(run):
    iterations = []

    def read(udp, data, address):
        iterations.append(pyasync.stats().iterations)
        if len(iterations) == 100:
            udp.close()

    with run():
        udp = pyasync.udp_socket("127.0.0.1", 0, read)
        with plain() as sock:
            for _ in range(100):
                sock.sendto(b"datagram", udp.address)
    batches = [iterations.count(iteration) for iteration in sorted(set(iterations))]
    assert max(batches) <= 32
    if sys.platform == "linux":
        assert batches == [20] * 5


def test_without_a_read_cb_what_arrives_is_dropped(run, peer):
    with run():
        udp = pyasync.udp_socket("127.0.0.1", event_cb=pytest.fail)
        peer.sendto(b"dropped", udp.address)
        when(lambda: pyasync.stats().bytes_read == 7, udp.close)


# A flood


def flood(address, number, stop):
    """Send datagrams as fast as possible; return how many."""
    with plain() as sock:
        for count in range(number):
            if stop:
                return count
            try:
                sock.sendto(b"flood" * 20, address)
            except OSError:
                return count
    return number


@pytest.mark.parametrize(
    "number",
    [20_000, pytest.param(1_000_000, marks=[pytest.mark.slow, pytest.mark.timeout(300)])],
)
def test_a_flood_does_not_starve_a_connection(run, number):
    received = [0]
    order = []

    def read(udp, data, address):
        received[0] += 1

    flooders = []
    with run(limit=250):
        udp = pyasync.udp_socket("127.0.0.1", 0, read, event_cb=pytest.fail)
        server = pyasync.tcp_server("127.0.0.1", 0, lambda socket, data: socket.write(data))
        flooder = Background(flood, udp.address, number, [])

        def on_data(socket, data):
            order.append(received[0])
            if len(order) < 1000 or flooder.is_alive():
                socket.write(data)
                return
            socket.close()
            server.close()
            udp.close()
            flooders.append(flooder)

        pyasync.tcp_connect(*server.address, on_data, data=b"ping")
    assert flooders[0].result() == number
    assert received[0] > 1000
    # Round trips and datagrams alternate: no more than some batches lie between two of them.
    gaps = [after - before for before, after in zip(order, order[1:])]
    assert max(gaps) <= 200


# Sending


@each_way
def test_datagrams_leave_in_order_and_whole(run, peer, buffer_writes):
    view = memoryview(b"0123456789")
    datagrams = [b"bytes", "string \N{SNOWMAN}", bytearray(b"array"), view[::2], b"", b"x" * 20_000]
    expected = [b"bytes", "string \N{SNOWMAN}".encode(), b"array", b"02468", b"", b"x" * 20_000]
    assert send_all(run, peer, *datagrams, buffer_writes=buffer_writes) == expected


@each_way
def test_a_buffer_may_be_changed_after_the_call(run, peer, buffer_writes):
    with run(buffer_writes=buffer_writes):
        sender = pyasync.udp_socket("127.0.0.1")
        for size in (5, 20_000):
            data = bytearray(b"a" * size)
            sender.send(data, peer.getsockname())
            data[:] = b"b" * size
        sender.close()
    assert receive(peer, 2) == [b"a" * 5, b"a" * 20_000]


@pytest.mark.parametrize(
    ("family", "host", "most"),
    [(V4, "127.0.0.1", 65507), (V6, "::1", 65527), (V6, "127.0.0.1", 65507)],
    ids=["v4", "v6", "mapped"],
)
@pytest.mark.parametrize("connected", [False, True], ids=["", "connected"])
def test_too_much_data_is_an_error_at_the_call(run, family, host, most, connected):
    with plain(V6 if ":" in host else V4, host, 1 << 20) as peer:

        def start():
            sender = pyasync.udp_socket(None if family == V6 else host, event_cb=pytest.fail)
            address = peer.getsockname()
            if connected:
                sender.connect(*address[:2])
                address = None
            with pytest.raises(ValueError, match=str(most)):
                sender.send(bytes(most + 1), address)
            sender.send(bytes(most), address)
            sender.close()

        run(start)
        assert peer.recv(1 << 17) == bytes(most)


@each_way
def test_a_write_cb_is_called_later_and_in_order(run, peer, buffer_writes):
    called = []

    with run(buffer_writes=buffer_writes):
        sender = pyasync.udp_socket("127.0.0.1")
        for index, size in enumerate([1, 10_000, 1]):
            sender.send(
                bytes(size),
                peer.getsockname(),
                write_cb=lambda udp, index=index: called.append((udp is sender, index)),
            )
            assert called == []
        sender.close()
        assert called == []
    assert called == [(True, 0), (True, 1), (True, 2)]


def test_sends_cross_together(run, peer):
    crossings = []

    def done(before):
        interval = pyasync.stats() - before
        crossings.append((interval.crossings, interval.bytes_written))

    with run():
        sender = pyasync.udp_socket("127.0.0.1")
        before = pyasync.stats()
        for _ in range(100):
            sender.send(b"datagram", peer.getsockname())
        sender.send(b"last", peer.getsockname(), write_cb=lambda udp: (done(before), udp.close()))
    assert crossings == [(1, 804)]


def test_a_scope_may_be_named_or_numbered(in_loop):
    scope = number_of("lo")
    received = []

    def read(udp, data, address):
        received.append(data)
        if len(received) == 3:
            udp.close()

    with in_loop() as open_socket:
        udp = open_socket("::1", read_cb=read)
        port = udp.address[1]
        for address in (("::1%lo", port), (f"::1%{scope}", port), ("::1", port, 0, scope)):
            udp.send(address[0].encode(), address)
    assert received == [b"::1%lo", b"::1%%%d" % scope, b"::1"]


def test_more_peers_than_are_remembered(in_loop, monkeypatch):
    monkeypatch.setattr("pyasync._core.datagrams.REMEMBERED", 3)
    received = []

    def read(udp, data, address):
        received.append(data)
        assert address == peers[int(data)].getsockname()
        udp.send(data, address)
        if len(received) == 30:
            udp.close()

    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(plain()) for _ in range(10)]
        with in_loop() as open_socket:
            udp = open_socket(read_cb=read)
            for _ in range(3):
                for index, sock in enumerate(peers):
                    sock.sendto(b"%d" % index, udp.address)
        for index, sock in enumerate(peers):
            assert receive(sock, 3) == [b"%d" % index] * 3


# Errors of one datagram

BROADCAST = "127.255.255.255"


@each_way
@pytest.mark.parametrize("bad", [{0}, {99}, set(range(10, 100, 7)), set(range(50))])
def test_bad_datagrams_among_many_harm_no_other(run, peer, bad, buffer_writes):
    errors, called = [], []

    with run(buffer_writes=buffer_writes):
        udp = pyasync.udp_socket("127.0.0.1", event_cb=errors.append)
        for index in range(100):
            udp.send(
                b"%d" % index if index not in bad else bytes(9000),
                (BROADCAST, 9) if index in bad else peer.getsockname(),
                write_cb=lambda udp, index=index: called.append(index),
            )
        udp.close()
    good = [index for index in range(100) if index not in bad]
    assert [int(datagram) for datagram in receive(peer, len(good))] == good
    assert called == good
    assert [error.errno for error in errors] == [errno.EACCES] * len(bad)
    assert all(isinstance(error, pyasync.SocketError) for error in errors)
    assert all(isinstance(error, PermissionError) for error in errors)
    assert {type(error.socket) for error in errors} == {pyasync.UdpSocket}


def test_broadcasts_are_sent_if_asked_for(in_loop):
    def open_socket_and_close(open_socket):
        udp = open_socket()
        pyasync.call_soon(udp.close)
        return udp

    def read(udp, data, address):
        received.append(data)
        udp.broadcast = False
        assert not udp.broadcast
        udp.close()

    received = []
    with in_loop() as open_socket:
        assert not open_socket_and_close(open_socket).broadcast
        udp = open_socket("0.0.0.0", read_cb=read, broadcast=True)
        assert udp.broadcast
        udp.send(b"to all", (BROADCAST, udp.address[1]))
    assert received == [b"to all"]


# Connected


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", None])
def test_a_connected_socket_talks_to_its_peer_only(run, host):
    received = []

    def read(udp, data, address):
        received.append((data, address))
        udp.close()

    def answer(peer, stranger):
        data, address = peer.recvfrom(100)
        stranger.sendto(b"unheard", address)
        peer.sendto(data.upper(), address)

    family = V6 if host == "::1" else V4
    with plain(family) as peer, plain(family) as stranger:

        def start():
            udp = pyasync.udp_socket(host, 0, read, event_cb=pytest.fail)
            name = "127.0.0.1" if host is None else host
            udp.connect(name, peer.getsockname()[1])
            udp.send(b"hello")
            assert udp.peername[1] == peer.getsockname()[1]
            assert udp.sockname[1] == udp.address[1]
            threads.append(Background(answer, peer, stranger))

        threads = []
        run(start)
        threads[0].result()
        expected = peer.getsockname()
    if host is None and socket.has_dualstack_ipv6():
        expected = ("::ffff:127.0.0.1", expected[1], 0, 0)
    assert received == [(b"HELLO", expected)]


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", None, "0.0.0.0"])
@pytest.mark.parametrize("known", [False, True], ids=["unknown", "known"])
@pytest.mark.parametrize("read_before", [False, True], ids=["in-the-kernel", "in-the-batch"])
def test_of_strangers_nothing_is_delivered_once_the_socket_is_connected(
    run, host, known, read_before
):
    received = []
    number = 0 if host == "0.0.0.0" else 1  # 0.0.0.0 is this host, by another name: ip(7)
    family = V6 if host == "::1" else V4
    name = {None: "127.0.0.1", "0.0.0.0": "127.0.0.1"}.get(host, host)

    def send(udp, *messages):
        for sock, data in messages:
            sock.sendto(data, (name, udp.address[1]))

    def read(udp, data, address):
        received.append(data)
        if data == b"connect":
            udp.connect("0.0.0.0" if number == 0 else name, peer.getsockname()[1])
        elif data == b"last":
            udp.close()
        elif data == b"known":
            send(udp, (peer, b"connect"), (stranger, b"unheard"), (peer, b"last"))

    with plain(family) as peer, plain(family) as stranger:

        def start():
            udp = pyasync.udp_socket(name if host is not None else None, 0, read)
            if known:  # the socket has cached the stranger's address
                send(udp, (stranger, b"known"))
            elif read_before:
                send(udp, (peer, b"connect"), (stranger, b"unheard"), (peer, b"last"))
            else:
                send(udp, (stranger, b"unheard"), (peer, b"last"))
                udp.connect("0.0.0.0" if number == 0 else name, peer.getsockname()[1])

        run(start)
    assert received == [b"known"] * known + [b"connect"] * (known or read_before) + [b"last"]


def test_a_connected_socket_takes_no_address_and_no_other_peer(in_loop, peer):
    with in_loop() as open_socket:
        udp = open_socket()
        with pytest.raises(pyasync.SocketError) as raised:
            _ = udp.peername
        assert raised.value.errno == errno.ENOTCONN
        udp.send(b"before", peer.getsockname())
        udp.connect(*peer.getsockname())
        for attempt in (
            lambda: udp.send(b"data", peer.getsockname()),
            lambda: udp.connect(*peer.getsockname()),
        ):
            with pytest.raises(pyasync.SocketError) as raised:
                attempt()
            assert raised.value.errno == errno.EISCONN
        udp.send(b"after", None)
        udp.close()
    assert receive(peer, 2) == [b"before", b"after"]


@contextlib.contextmanager
def unused_port(family=V4):
    """Give a port at which nobody listens, and free it."""
    with plain(family) as sock:
        port = sock.getsockname()[1]
    yield port


@each_family
@each_way
def test_a_refusal_is_told_and_the_socket_lives_on(run, family, buffer_writes):
    errors, received = [], []

    def read(udp, data, address):
        received.append(data)
        udp.close()

    def come_alive(udp):
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.bind((HOSTS[family], port))
            sock.sendto(b"here I am", udp.address)

    with unused_port(family) as port, run(buffer_writes=buffer_writes):
        udp = pyasync.udp_socket(HOSTS[family], 0, read, event_cb=errors.append)
        udp.connect(HOSTS[family], port)
        udp.send(b"to nobody")
        when(lambda: errors, lambda: come_alive(udp))
    assert [type(error) for error in errors] == [pyasync.SocketRefused]
    assert isinstance(errors[0].socket, pyasync.UdpSocket)
    assert received == [b"here I am"]


def test_a_refusal_costs_no_other_datagram(run):
    errors, called = [], []

    received = []
    with unused_port() as port, run(buffer_writes=False):
        udp = pyasync.udp_socket("127.0.0.1", event_cb=errors.append)
        udp.connect("127.0.0.1", port)
        udp.send(b"to nobody")
        with socket.socket(V4, socket.SOCK_DGRAM) as sock:
            sock.bind(("127.0.0.1", port))
            sock.settimeout(PATIENCE)
            udp.send(b"to somebody", write_cb=lambda udp: (called.append(1), udp.close()))
            received.append(sock.recv(100))
    assert received == [b"to somebody"]
    assert [type(error) for error in errors] == [pyasync.SocketRefused]
    assert called == [1]


@each_way
def test_each_refusal_is_told(run, buffer_writes):
    errors, called = [], []

    with unused_port() as port, run(buffer_writes=buffer_writes):
        udp = pyasync.udp_socket("127.0.0.1", event_cb=errors.append)
        udp.connect("127.0.0.1", port)
        for _ in range(50):
            udp.send(b"to nobody", write_cb=called.append)
        when(lambda: len(errors) == len(called) == 50, udp.close)
    assert {type(error) for error in errors} == {pyasync.SocketRefused}


# Binding


def test_every_address_of_both_families_by_default(run):
    received = {}

    def read(udp, data, address):
        received[data] = address
        udp.send(data.upper(), address)
        if len(received) == 2:
            udp.close()

    with plain(V4) as over_v4, plain(V6) as over_v6:

        def start():
            udp = pyasync.udp_socket(None, 0, read, event_cb=pytest.fail)
            over_v4.sendto(b"four", ("127.0.0.1", udp.address[1]))
            over_v6.sendto(b"six", ("::1", udp.address[1]))

        if not socket.has_dualstack_ipv6():
            pytest.skip("this system has no sockets of both families")
        run(start)
        assert over_v4.recv(100) == b"FOUR"
        assert over_v6.recv(100) == b"SIX"
        assert received == {
            b"four": ("::ffff:127.0.0.1", over_v4.getsockname()[1], 0, 0),
            b"six": over_v6.getsockname(),
        }


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "localhost"])
def test_an_address_in_use_is_an_error_at_the_call(in_loop, address):
    with in_loop() as open_socket:
        udp = open_socket(address)
        with pytest.raises(pyasync.SocketAddressInUse) as raised:
            open_socket(address, udp.address[1])
        assert (raised.value.address, raised.value.port) == (address, udp.address[1])
        assert raised.value.errno == errno.EADDRINUSE
        udp.close()
        open_socket(address, udp.address[1]).close()


@pytest.mark.parametrize("option", [socket.SO_REUSEADDR, socket.SO_REUSEPORT])
def test_nobody_takes_what_comes_to_a_socket_by_binding_to_its_port(in_loop, option):
    with in_loop() as open_socket:
        udp = open_socket()
        with socket.socket(V4, socket.SOCK_DGRAM) as thief:
            thief.setsockopt(socket.SOL_SOCKET, option, 1)
            with pytest.raises(OSError, match="use"):
                thief.bind(udp.address)
        udp.close()


@pytest.mark.parametrize("address", ["192.0.3.77", "name.invalid", "2001:db8::7"])
def test_an_address_that_is_not_there_is_an_error_at_the_call(in_loop, address):
    with in_loop() as open_socket:
        with pytest.raises(pyasync.TcpServerBindError) as raised:
            open_socket(address, 0)
        assert isinstance(raised.value, pyasync.SocketError)
        assert raised.value.address == address


def test_several_sockets_share_a_port_if_all_ask_for_it(in_loop):
    with in_loop() as open_socket:
        udp = open_socket(reuse_port=True)
        other = open_socket(port=udp.address[1], reuse_port=True)
        assert other.address == udp.address
        with pytest.raises(pyasync.SocketAddressInUse):
            open_socket(port=udp.address[1])
        udp.close()
        other.close()


# Multicast


@pytest.mark.parametrize("bind_address", ["0.0.0.0", None])
@pytest.mark.parametrize("source", [None, "127.0.0.1"])
def test_members_of_a_group_get_what_is_sent_to_it(in_loop, bind_address, source):
    received = []

    def read(udp, data, address):
        received.append(data)
        if data == b"to the group":
            udp.leave_multicast(GROUP, "127.0.0.1", source=source)
            sender.send(b"unheard", (GROUP, udp.address[1]))
            sender.send(b"end", ("127.0.0.1", udp.address[1]))
        else:
            udp.close()
            sender.close()

    with in_loop() as open_socket:
        udp = open_socket(bind_address, read_cb=read)
        udp.join_multicast(GROUP, "127.0.0.1", source=source)
        with pytest.raises(pyasync.SocketError):
            udp.join_multicast(GROUP, "127.0.0.1", source=source)
        sender = open_socket()
        sender.set_multicast_interface("127.0.0.1")
        sender.send(b"to the group", (GROUP, udp.address[1]))
    assert received == [b"to the group", b"end"]


def test_other_sources_are_not_heard(in_loop):
    received = []

    def read(udp, data, address):
        received.append(data)
        udp.close()

    with in_loop() as open_socket:
        udp = open_socket("0.0.0.0", read_cb=read)
        udp.join_multicast(GROUP, "127.0.0.1", source="127.0.0.2")
        for source in ("127.0.0.1", "127.0.0.2"):
            sender = open_socket(source)
            sender.set_multicast_interface("127.0.0.1")
            sender.send(source, (GROUP, udp.address[1]))
            sender.close()
    assert received == [b"127.0.0.2"]


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", None])
def test_this_systems_members_can_be_left_out(in_loop, host):
    # A datagram that leaves through the loopback's own interface comes back all the same.

    with in_loop() as open_socket:
        udp = open_socket(host)
        assert udp.multicast_loop is True
        udp.multicast_loop = False
        assert udp.multicast_loop is False
        udp.multicast_loop = True
        assert udp.multicast_loop is True
        udp.close()


GROUP6 = f"ff02::7:{os.getpid() % 0xFFFF + 1:x}"

needs_tables = pytest.mark.skipif(
    not os.path.exists("/proc/net/igmp6"), reason="the system tells no memberships"
)


def members(group):
    """Return the names of the interfaces on which the system is a member of a group."""
    found = []
    if ":" in group:
        packed = socket.inet_pton(V6, group).hex()
        with open("/proc/net/igmp6") as table:
            found = [line.split()[1] for line in table if line.split()[2] == packed]
    else:
        packed = socket.inet_aton(group)[::-1].hex().upper()
        with open("/proc/net/igmp") as table:
            for line in table:
                if not line.startswith("\t"):
                    interface = line.split()[1]
                elif line.split()[0] == packed:
                    found.append(interface)
    return found


def sources(group):
    """Return pairs of each interface on which sources of a group are chosen, and the source."""
    family = V6 if ":" in group else V4
    packed = socket.inet_pton(family, group).hex()
    with open("/proc/net/mcfilter6" if family == V6 else "/proc/net/mcfilter") as table:
        rows = [line.split() for line in table][1:]
    return [
        (name, socket.inet_ntop(family, bytes.fromhex(source.replace("0x", ""))))
        for _, name, multicast, source, *_ in rows
        if multicast.replace("0x", "") == packed
    ]


ON_LO = [
    ("0.0.0.0", GROUP, "lo"),
    ("0.0.0.0", GROUP, str(number_of("lo"))),
    ("0.0.0.0", GROUP, "127.0.0.1"),
    ("0.0.0.0", GROUP, "127.0.0.2"),  # lo's as well
    ("::", GROUP6, "lo"),
    ("::", GROUP6, str(number_of("lo"))),
    ("::", GROUP6, "::1"),
    ("::", GROUP6, "::1%lo"),
    ("::", GROUP6, "::%lo"),
    (None, GROUP, "lo"),
    (None, GROUP, "127.0.0.1"),
    (None, GROUP6, "lo"),
    (None, GROUP6, "::1"),
]


@needs_tables
@pytest.mark.parametrize(("bind_address", "group", "interface"), ON_LO)
@pytest.mark.parametrize("by_source", [False, True], ids=["any", "source"])
def test_a_group_is_joined_on_the_interface_that_is_named(
    in_loop, bind_address, group, interface, by_source
):
    source = None if not by_source else "::1" if group == GROUP6 else "127.0.0.1"

    with in_loop() as open_socket:
        udp = open_socket(bind_address)
        assert members(group) == []
        udp.join_multicast(group, interface, source=source)
        assert members(group) == ["lo"]
        assert sources(group) == ([("lo", source)] if by_source else [])
        with pytest.raises(pyasync.SocketError) as raised:
            udp.join_multicast(group, interface, source=source)
        assert raised.value.errno == (errno.EADDRNOTAVAIL if by_source else errno.EADDRINUSE)
        udp.leave_multicast(group, "lo", source=source)
        assert members(group) == []
        with pytest.raises(pyasync.SocketError):
            udp.leave_multicast(group, interface, source=source)
        udp.close()


@needs_tables
def test_a_group_is_joined_on_the_interface_of_its_zone(in_loop):
    others = [name for name in sorted(os.listdir("/sys/class/net")) if number_of(name) > 1]

    with in_loop() as open_socket:
        udp = open_socket("::")
        for zone in ("lo", number_of("lo")):
            for interface in (None, "lo", "::1", "::"):
                udp.join_multicast(f"{GROUP6}%{zone}", interface)
                assert members(GROUP6) == ["lo"]
                udp.leave_multicast(f"{GROUP6}%{zone}", interface)
                assert members(GROUP6) == []
        for interface in others[:1]:
            with pytest.raises(ValueError, match="another interface"):
                udp.join_multicast(f"{GROUP6}%lo", interface)
        with pytest.raises(ValueError, match="no interface"):
            udp.join_multicast(f"{GROUP6}%nowhere")
        udp.close()


@pytest.mark.parametrize(
    ("bind_address", "interface", "source"),
    [
        ("0.0.0.0", "lo", "0.0.0.0"),
        ("0.0.0.0", str(number_of("lo")), "0.0.0.0"),
        ("0.0.0.0", "127.0.0.1", "127.0.0.1"),
        ("::", "lo", None),
        ("::", str(number_of("lo")), None),
        ("::", "::1", None),
        ("::", "::%lo", None),
        (None, "lo", "0.0.0.0"),
        (None, "::1", "0.0.0.0"),
        (None, "127.0.0.1", "127.0.0.1"),
    ],
)
def test_what_goes_to_groups_leaves_through_the_interface_that_is_named(
    in_loop, bind_address, interface, source
):

    def options(udp):
        found = []
        with socket.socket(fileno=os.dup(udp.fileno())) as sock:
            if sock.family == V6:
                found.append(sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF))
            if source is not None:
                option = sock.getsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, 4)
                found.append(socket.inet_ntoa(option))
        return found

    def read(member, data, address):
        received.append(data)
        member.close()

    received = []
    with in_loop() as open_socket:
        udp = open_socket(bind_address)
        udp.set_multicast_interface(interface)
        of_v6 = [] if bind_address == "0.0.0.0" else [number_of("lo")]
        of_v4 = [] if source is None else [source]
        assert options(udp) == of_v6 + of_v4
        if of_v4:
            # What leaves through another interface does not come to a member on this one.
            member = open_socket("0.0.0.0", read_cb=read)
            member.join_multicast(GROUP, "lo")
            udp.send(b"to the group", (GROUP, member.address[1]))
        udp.set_multicast_interface("::" if bind_address == "::" else "0.0.0.0")
        assert options(udp) == [0] * len(of_v6) + ["0.0.0.0"] * len(of_v4)
        udp.close()
    assert received == ([] if source is None else [b"to the group"])


NAMESPACE = """
import json, socket, sys
import pyasync
sys.path[:0] = sys.argv[1:]
from test_udp import GROUP, GROUP6, members, number_of

def refused(function, *arguments):
    try:
        function(*arguments)
    except ValueError as error:
        return str(error)

def joined():
    for bind_address, group, interface in (
        (None, GROUP, "vb"), (None, GROUP, "198.51.100.1"), (None, GROUP, "198.51.100.9"),
        (None, GROUP6, "vb"), (None, GROUP6, "2001:db8::b"), (None, GROUP6, "fe80::b"),
        (None, GROUP6, "fe80::c%vb"), (None, GROUP6 + "%vb", None),
    ):
        udp = pyasync.udp_socket(bind_address)
        udp.join_multicast(group, interface)
        yield members(group.partition("%")[0])
        udp.leave_multicast(group, interface)
        yield members(group.partition("%")[0])
        udp.close()
    udp = pyasync.udp_socket()
    udp.join_multicast(GROUP6, "1")
    assert number_of("lo") == 1 and members(GROUP6) == ["1"]  # the interface of that name
    udp.leave_multicast(GROUP6, "1")
    for interface in ("fe80::c", "192.0.2.77", "2001:db8::77"):
        assert "interface" in refused(udp.join_multicast, GROUP6, interface), interface
        assert "interface" in refused(udp.set_multicast_interface, interface), interface
    udp.close()

def left_through():
    sniffer = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3))  # ETH_P_ALL
    sniffer.settimeout(10)
    for interface in ("vb", "va", "198.51.100.1", "192.0.2.9", "2001:db8::b", "fe80::a"):
        udp = pyasync.udp_socket(event_cb=print)
        udp.set_multicast_interface(interface)
        for group in (GROUP, GROUP6):
            udp.send("to " + group, (group, 9))
            while True:
                data, (name, _, kind, *_) = sniffer.recvfrom(1 << 16)
                if data.endswith(b"to " + group.encode()) and kind == 4:  # PACKET_OUTGOING
                    break
            yield name
        udp.close()
    sniffer.close()

def zones():
    for zone in ("va", number_of("va")):
        udp = pyasync.udp_socket("::")
        udp.connect(f"fe80::a%{zone}", 9)
        yield udp.peername
        udp.close()
        udp = pyasync.udp_socket("::")
        given = socket.getaddrinfo
        socket.getaddrinfo = lambda *arguments: given("fe80::a%va", *arguments[1:])
        udp.connect("a.test", 9)
        socket.getaddrinfo = given
        yield udp.peername
        udp.close()
        server = pyasync.tcp_server(f"fe80::a%{zone}", 0, print)
        yield server.address
        client = pyasync.tcp_connect(f"fe80::a%{zone}", server.address[1], print, event_cb=print,
            connect_cb=lambda client, server=server: connected(client, server),
            local_address=f"fe80::a%{zone}")

def connected(client, server):
    results["connected"] += [client.peername, client.sockname]
    client.close()
    server.close()

def start():
    results.update(joined=[*joined()], left=[*left_through()], zones=[*zones()])

results = {"va": number_of("va"), "connected": []}
pyasync.start_event_loop(start, buffer_writes=False)  # the sniffer waits for what is sent
print(json.dumps(results))
"""

SET_UP = """
ip link set lo up && ip link add va type veth peer name vb && ip link set va up &&
ip link set vb up || exit 77
for address in 192.0.2.1/24 fe80::a/64 fe80::c/64 2001:db8::a/64; do
  ip addr add $address dev va nodad 2>/dev/null || ip addr add $address dev va || exit 77
done
for address in 198.51.100.1/24 fe80::b/64 fe80::c/64 2001:db8::b/64; do
  ip addr add $address dev vb nodad 2>/dev/null || ip addr add $address dev vb || exit 77
done
ip link add 1 type veth peer name other && ip link set 1 up && ip link set other up &&
ip addr add 192.0.2.9/24 dev va label va:1 && ip addr add 198.51.100.9/24 dev vb label vb:1 &&
exec "$@"
"""


@pytest.mark.skipif(
    shutil.which("unshare") is None or shutil.which("ip") is None, reason="needs iproute2"
)
def test_among_several_interfaces_the_one_that_is_named_is_taken():
    here = os.path.dirname(os.path.abspath(__file__))
    ran = subprocess.run(
        [
            "unshare",
            "-n",
            "sh",
            "-c",
            SET_UP,
            "sh",
            sys.executable,
            "-c",
            NAMESPACE,
            here,
            os.path.dirname(here),
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    if ran.returncode == 77 or "unshare failed" in ran.stderr:
        pytest.skip(f"cannot make interfaces: {ran.stderr}")
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout.splitlines()[-1])
    assert found["joined"] == [["vb"], []] * 8
    assert found["left"] == ["vb", "vb", "va", "va"] * 3
    names = [*found["zones"], *found["connected"]]
    assert len(names) == 10
    for host, _, _, scope in names:  # PyPy's hosts have the zone too
        assert (host.partition("%")[0], scope) == ("fe80::a", found["va"])


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", None])
def test_hops_are_limited(in_loop, host):
    with in_loop() as open_socket:
        udp = open_socket(host)
        assert udp.multicast_ttl == 1
        for hops in (0, 255):
            udp.multicast_ttl = hops
            assert udp.multicast_ttl == hops
        udp.ttl = 7
        assert udp.ttl == 7
        for name, hops in [("multicast_ttl", -1), ("multicast_ttl", 256), ("ttl", 0)]:
            with pytest.raises(ValueError, match=name):
                setattr(udp, name, hops)
            with pytest.raises(TypeError, match=name):
                setattr(udp, name, 1.5)
        udp.close()


# Closing


@each_way
@pytest.mark.parametrize("where", ["read_cb", "write_cb", "event_cb", "timer", "call_soon"])
def test_a_socket_can_be_closed_within_any_callback(run, peer, where, buffer_writes):
    called = []

    def close(kind, udp):
        called.append(kind)
        if kind == where:
            udp.close()
            udp.close()
            assert udp.closed

    with run(buffer_writes=buffer_writes):
        udp = pyasync.udp_socket(
            "127.0.0.1",
            0,
            lambda udp, data, address: close("read_cb", udp),
            event_cb=lambda error: close("event_cb", error.socket),
        )
        if where == "read_cb":
            for _ in range(50):
                peer.sendto(b"data", udp.address)
        elif where == "write_cb":
            udp.send(b"data", peer.getsockname(), write_cb=partial(close, "write_cb"))
        elif where == "event_cb":
            udp.send(b"data", (BROADCAST, 9))
        elif where == "timer":
            pyasync.delay(lambda: close("timer", udp), time=0.001)
        else:
            pyasync.call_soon(lambda: close("call_soon", udp))
    assert called == [where]


def test_a_closed_socket_refuses_everything(in_loop, peer):
    def check(udp):
        assert udp.closed
        assert udp.address[0] == "127.0.0.1"
        for call in (
            lambda: udp.send(b"data", peer.getsockname()),
            lambda: udp.connect(*peer.getsockname()),
            lambda: udp.join_multicast(GROUP),
            lambda: udp.leave_multicast(GROUP),
            lambda: udp.set_multicast_interface("127.0.0.1"),
            lambda: udp.sockname,
            lambda: udp.peername,
            lambda: udp.send_queue_size,
            lambda: udp.multicast_ttl,
            lambda: setattr(udp, "multicast_ttl", 1),
            lambda: setattr(udp, "broadcast", True),
        ):
            with pytest.raises(pyasync.SocketClosed):
                call()

    with in_loop() as open_socket:
        udp = open_socket()
        udp.close()
        after_iterations(2, lambda: check(udp))
        check(udp)


def test_after_the_end_of_the_loop_a_socket_is_closed(run, peer):
    with run():
        socket = pyasync.udp_socket("127.0.0.1", 0, pytest.fail)
        socket.send(b"tried once", peer.getsockname())
        pyasync.exit_event_loop()
    assert receive(peer, 1) == [b"tried once"]
    assert socket.closed
    with pytest.raises(pyasync.EventLoopNotRunning):
        socket.send(b"data", peer.getsockname())
    socket.close()
    with pytest.raises(pyasync.EventLoopNotRunning):
        pyasync.udp_socket()


# As a handle


def test_a_socket_has_a_descriptor_and_a_place_for_data(in_loop):
    with in_loop() as open_socket:
        udp = open_socket()
        udp.data = "for the application"
        assert udp.fileno() > 2
        udp.close()
        assert udp.data == "for the application"


def test_sockets_and_bytes_are_counted(run, peer):
    def finish(udp, before):
        interval = pyasync.stats() - before
        assert (interval.bytes_read, interval.bytes_written) == (5, 7)
        assert udp.send_queue_size == 0
        udp.close()
        after_iterations(2, lambda: gone.append(pyasync.stats().handles["udp"]))

    gone = []
    with run():
        before = pyasync.stats()
        udp = pyasync.udp_socket("127.0.0.1", 0, lambda *datagram: finish(udp, before))
        assert pyasync.stats().handles["udp"] == before.handles["udp"] + 1
        udp.send(b"seven..", peer.getsockname())
        assert udp.send_queue_size == 7
        peer.sendto(b"five.", udp.address)
    assert gone == [0]


# A kernel that refuses


def test_what_the_kernel_has_no_room_for_waits_in_order(strange_kernel):
    strange_kernel(
        "REFUSE",
        """if True:
        peer = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        peer.bind(("127.0.0.1", 0))
        peer.settimeout(5)
        called, errors = [], []

        def start():
            udp = pyasync.udp_socket("127.0.0.1", event_cb=errors.append)
            for index in range(100):
                address = peer.getsockname() if index % 10 != 5 else ("127.255.255.255", 9)
                write_cb = (lambda udp, index=index: called.append(index)) if index % 3 else None
                udp.send(b"%d" % index, address, write_cb=write_cb)
            udp.send(b"last", peer.getsockname(), write_cb=lambda udp: udp.close())
            assert called == []

        pyasync.start_event_loop(start)
        good = [index for index in range(100) if index % 10 != 5]
        assert [int(peer.recv(9)) for _ in good] == good
        assert peer.recv(9) == b"last"
        assert called == [index for index in good if index % 3], called
        assert [error.errno for error in errors] == [13] * 10, errors
    """,
    )


def test_what_waits_is_told(strange_kernel):
    output = strange_kernel(
        "REFUSE",
        """if True:
        def start():
            udp = pyasync.udp_socket("127.0.0.1")
            for _ in range(3):
                udp.send(bytes(1000), udp.address)
                print(udp.send_queue_size)
            udp.send(bytes(1000), udp.address, write_cb=done)

        def done(udp):
            print(udp.send_queue_size)
            udp.close()

        pyasync.start_event_loop(start, buffer_writes=False)
    """,
    )
    assert output.split() == ["1000", "2000", "3000", "0"]


def test_a_close_waits_for_what_the_kernel_has_no_room_for(strange_kernel):
    strange_kernel(
        "REFUSE",
        """if True:
        peer = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        peer.bind(("127.0.0.1", 0))
        peer.settimeout(5)
        called = []

        def start():
            udp = pyasync.udp_socket("127.0.0.1", 0, called.append)
            for index in range(50):
                udp.send(b"%d" % index, peer.getsockname(), write_cb=called.append)
            udp.close()
            peer.sendto(b"unheard", udp.address)

        pyasync.start_event_loop(start)
        assert [int(peer.recv(9)) for _ in range(50)] == list(range(50))
        assert len(called) == 50
    """,
    )


@pytest.mark.parametrize("leave", ["pyasync.exit_event_loop()", "os._exit(0)", "1 / 0"])
def test_the_loop_can_be_left_while_datagrams_wait(strange_kernel, leave):
    strange_kernel(
        "REFUSE",
        f"""if True:
        def start():
            udp = pyasync.udp_socket("127.0.0.1")
            for index in range(50):
                udp.send(bytes(10_000), udp.address, write_cb=print)
            {leave}

        try:
            pyasync.start_event_loop(start)
        except ZeroDivisionError:
            pass
    """,
    )


def test_a_datagram_that_is_cut_off_is_an_error_in_its_place(strange_kernel):
    strange_kernel(
        "CUT",
        """if True:
        import errno
        told = []

        def read(udp, data, address):
            told.append(data)
            if data == b"end":
                udp.close()

        def start():
            udp = pyasync.udp_socket("127.0.0.1", 0, read, event_cb=told.append)
            for data in (b"short", b"longer than eight", b"end"):
                udp.send(data, udp.address)

        pyasync.start_event_loop(start)
        assert told[0] == b"short" and told[2] == b"end" and len(told) == 3, told
        assert isinstance(told[1], pyasync.SocketError) and told[1].errno == errno.EMSGSIZE
    """,
    )


# Memory


def open_and_close(run, number):
    left = number

    def again(*ignored):
        nonlocal left
        if left > 0:
            left -= 1
            udp = pyasync.udp_socket("127.0.0.1", 0, lambda udp, *datagram: (udp.close(), again()))
            udp.send(b"to itself", udp.address, write_cb=nothing)

    run(again, limit=60)
    assert left == 0


@pytest.mark.skipif(SANITIZED, reason="the sanitizers keep what is freed")
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs /proc")
def test_sockets_leave_no_memory_behind(run):
    open_and_close(run, 3000)
    before = resident_size()
    open_and_close(run, 10_000)
    assert resident_size() - before < 100 * 10_000
