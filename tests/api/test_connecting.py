"""Clients on their way to a connection: names, Happy Eyeballs, time limits, and giving up."""

import contextlib
import errno
import os
import re
import shutil
import socket
import subprocess
import sys
import time

import pytest
from peers import (
    PATIENCE,
    Background,
    after_iterations,
    full_backlog,
    no_descriptor_left,
    nothing,
    preloaded,
    read_all,
    read_exactly,
    unused_port,
    when,
)

import pyasync
from pyasync._core import connecting

V4, V6 = socket.AF_INET, socket.AF_INET6

#: A name that stands for the addresses that a test says: see `names`.
NAME = "several.test"


@pytest.fixture
def names(monkeypatch):
    """Give names(addresses, delay=None): what NAME stands for, and how long a lookup takes.

    Lookup is replaced where connecting uses it, as no test may edit the system's names. All other
    names are looked up as ever.
    """

    class GivenLookup:
        def __init__(self, loop, host, family, found_cb, event_cb):
            found, seconds = given[host]
            self._event = pyasync.make_event(lambda: found_cb(list(found)))
            self._event.add(3600 if seconds == "never" else seconds)  # it keeps the loop running

        def close(self):
            self._event.free()

    def lookup(loop, host, *args):
        return (GivenLookup if host in given else real)(loop, host, *args)

    given, real = {}, connecting.Lookup
    monkeypatch.setattr(connecting, "Lookup", lookup)
    return lambda addresses, delay=None: given.update({NAME: (addresses, delay)})


@contextlib.contextmanager
def listening(host="127.0.0.1", port=0, **options):
    """Give a plain socket that listens."""
    family = V6 if ":" in host else V4
    with socket.create_server((host, port), family=family, **options) as listener:
        listener.settimeout(PATIENCE)
        yield listener


@pytest.fixture
def listener():
    with listening() as listener:
        yield listener


def port_of(listener):
    return listener.getsockname()[1]


def port_free_everywhere():
    """A port for a few addresses: one that the kernel picks for one may be taken on another."""
    with socket.socket() as sock:
        sock.bind(("", 0))
        return port_of(sock)


@contextlib.contextmanager
def full_listener(host, port=0):
    """Give a plain socket that listens, and whose backlog is full."""
    address = host, port or port_free_everywhere()
    with listening(*address, backlog=0) as listener, full_backlog(listener):
        yield listener


@contextlib.contextmanager
def hanging(host, port=0):
    """Give a port of an address that answers nobody."""
    with full_listener(host, port) as listener:
        yield port_of(listener)


def accept_all(listener):
    listener.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            listener.accept()[0].close()


def resolves(name, family):
    try:
        return bool(socket.getaddrinfo(name, None, family, socket.SOCK_STREAM))
    except OSError:
        return False


def talk(listener, peer=read_all):
    """Accept one connection in a thread, and return what peer(sock) returns there."""

    def accept():
        with listener.accept()[0] as sock:
            sock.settimeout(PATIENCE)
            return peer(sock)

    return Background(accept)


def connect(run, host, port, **options):
    """Run a client that closes when it has connected. Gives its socket, and what it was told."""
    told, clients = [], []

    def connect_cb(client):
        told.append(client.peername[0])
        client.close()

    options.setdefault("connect_cb", connect_cb)

    with run():
        clients.append(pyasync.tcp_connect(host, port, nothing, event_cb=told.append, **options))
    assert clients[0].closed
    return clients[0], told


# Names


@pytest.mark.parametrize("family", [V4, V6], ids=["v4", "v6"])
def test_localhost_is_found_wherever_it_listens(run, family, names):
    name = "localhost"
    if not resolves(name, family):
        name = NAME  # a system whose files tell of one family only
        names([(V6, "::1"), (V4, "127.0.0.1")])
    host = {V4: "127.0.0.1", V6: "::1"}[family]
    with listening(host) as listener:
        assert connect(run, name, port_of(listener))[1] == [host]


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_numeric_address_needs_no_lookup(run, host, monkeypatch):
    monkeypatch.setattr(connecting, "Lookup", None)
    queries = []
    with listening(host) as listener:

        def start():
            client = pyasync.tcp_connect(host, port_of(listener), nothing)
            queries.append(pyasync.stats().open_dns_queries)
            client.close()

        run(start)
    assert queries == [0]


def test_a_lookup_is_counted_while_it_is_under_way(run, listener):
    queries = []

    def connect_cb(client):
        queries.append(pyasync.stats().open_dns_queries)
        client.close()

    with run():
        pyasync.tcp_connect("localhost", port_of(listener), nothing, connect_cb=connect_cb)
        queries.append(pyasync.stats().open_dns_queries)
    assert queries == [1, 0]


@pytest.mark.parametrize(
    "host",
    [
        *("name.invalid", "n\N{LATIN SMALL LETTER A WITH DIAERESIS}me.invalid"),
        *("", "x" * 300, "a..b", "127.0.0.1%x"),
    ],
    ids=["name", "idna", "empty", "long", "malformed", "zone"],
)
def test_a_name_that_does_not_exist_is_a_dns_error_once(run, host):
    client, (error,) = connect(run, host, 80)
    assert type(error) is pyasync.DnsError
    assert error.socket is client
    assert host in str(error)


# Every address is tried


@pytest.mark.parametrize(
    ("addresses", "order"),
    [
        ("", ""),
        ("a", "a"),
        ("ab", "ab"),
        ("aAbB", "aAbB"),
        ("abAB", "aAbB"),
        ("ABab", "AaBb"),
        ("abcA", "aAbc"),
        ("aABC", "aABC"),
        ("AabcBd", "AaBbcd"),
    ],
)
def test_families_take_turns_and_the_first_one_begins(addresses, order):
    # Small letters are of one family, capitals of the other.
    found = [(V4 if letter.islower() else V6, letter) for letter in addresses]
    assert "".join(letter for _, letter in connecting.interleave(found)) == order


def test_each_address_is_tried_until_one_answers(run, names, monkeypatch):
    # A refusal is an answer: the next one is not kept waiting.
    monkeypatch.setattr(connecting, "ATTEMPT_DELAY", 3600)
    names([(V6, "::1"), (V4, "127.0.0.3"), (V4, "127.0.0.4"), (V4, "127.0.0.1")])
    with listening() as listener:
        assert connect(run, NAME, port_of(listener))[1] == ["127.0.0.1"]


def test_one_error_names_each_address_that_was_tried(run, names):
    addresses = [(V6, "::1"), (V4, "127.0.0.1"), (V4, "127.0.0.2")]
    names(addresses)
    with unused_port() as port:
        client, told = connect(run, NAME, port)
    (error,) = told
    assert isinstance(error, pyasync.SocketRefused)
    assert error.socket is client
    assert NAME in str(error)
    for _, address in addresses:
        assert f"{address} port {port}: Connection refused" in str(error)


def test_the_error_for_a_numeric_address_names_it(run):
    with unused_port() as port:
        client, told = connect(run, "127.0.0.1", port)
    (error,) = told
    assert isinstance(error, pyasync.SocketRefused)
    assert error.socket is client
    assert f"127.0.0.1 port {port}" in str(error)


def test_no_address_at_all_is_an_error(run, names):
    names([])
    _, told = connect(run, NAME, 80)
    assert [type(error) for error in told] == [pyasync.SocketError]


def test_after_250_ms_the_next_address_is_tried_and_the_loser_closed(run, names):
    names([(V4, "127.0.0.2"), (V4, "127.0.0.1")])
    handles = []

    def connect_cb(client):
        waited.append(time.monotonic() - started)
        # The loser's handle goes with the next iterations.
        after_iterations(3, lambda: (handles.append(pyasync.stats().handles), client.close()))

    waited = []
    with listening() as listener, hanging("127.0.0.2", port_of(listener)) as port:
        started = time.monotonic()
        connect(run, NAME, port, connect_cb=connect_cb)
    assert connecting.ATTEMPT_DELAY <= waited[0] < connecting.ATTEMPT_DELAY + 5
    assert handles[0]["tcp"] == 1


def test_what_was_written_goes_to_the_winner_alone(run, names):
    names([(V4, "127.0.0.2"), (V4, "127.0.0.1")])
    with listening() as listener, hanging("127.0.0.2", port_of(listener)) as port:
        received = talk(listener)

        def start():
            client = pyasync.tcp_connect(NAME, port, nothing, data="one ")
            client.write("two")
            client.close()

        run(start)
        assert received.result() == b"one two"


def test_the_first_address_may_still_win_while_the_second_is_tried(run, names):
    names([(V4, "127.0.0.2"), (V4, "127.0.0.3")])
    told = []

    def connect_cb(client):
        told.append(client.peername[0])
        client.close()

    with full_listener("127.0.0.2") as first, hanging("127.0.0.3", port_of(first)) as port:

        def start():
            pyasync.tcp_connect(NAME, port, nothing, connect_cb=connect_cb, event_cb=told.append)
            when(lambda: pyasync.stats().handles["tcp"] == 2, lambda: accept_all(first))

        run(start)
    assert told == ["127.0.0.2"]


# Time limits


@pytest.mark.parametrize(
    ("host", "delay"), [(NAME, "never"), (NAME, None), ("127.0.0.2", None)],
    ids=["resolving", "connecting", "numeric"],
)  # fmt: skip
def test_connecting_has_a_time_limit(run, names, host, delay):
    names([(V4, "127.0.0.2")], delay)
    with hanging("127.0.0.2") as port:
        started = time.monotonic()
        client, told = connect(run, host, port, connect_timeout=0.1)
        assert 0.1 <= time.monotonic() - started < 5
    assert [type(error) for error in told] == [pyasync.SocketTimeout]
    assert f"connecting to {host} port {port} took longer than 0.1 seconds" in str(told[0])
    assert told[0].socket is client


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_the_limit_is_over_when_the_connection_stands(run, host, listener):
    told = []

    def connect_cb(client):
        pyasync.delay(client.close, time=1.6)

    talker = talk(listener)
    connect(run, host, port_of(listener), connect_cb=connect_cb, connect_timeout=1.5)
    assert talker.result() == b""
    assert told == []


# Giving up


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("resolving", [False, True], ids=["connecting", "resolving"])
def test_closing_on_the_way_calls_nothing(run, names, resolving, force):
    names([(V4, "127.0.0.2"), (V4, "127.0.0.3")], "never" if resolving else None)
    told = []
    callbacks = dict.fromkeys(["read_cb", "connect_cb", "event_cb"], told.append)
    if force:
        callbacks.update(data=b"dropped", write_cb=told.append)
    with hanging("127.0.0.2") as port, hanging("127.0.0.3", port), run():
        client = pyasync.tcp_connect(NAME, port, **callbacks)
        # While connecting, both are tried by then.
        pyasync.delay(lambda: client.close(force=force), time=0.3)
    assert told == []


def test_a_close_that_waits_for_a_connection_in_vain_ends_after_linger(run, names):
    names([(V4, "127.0.0.2")])
    with hanging("127.0.0.2") as port:
        client_told = []

        def start():
            client = pyasync.tcp_connect(
                NAME, port, nothing, data=b"x", event_cb=client_told.append, linger=0.1
            )
            client.close()

        run(start)
    assert [type(error) for error in client_told] == [pyasync.SocketTimeout]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_what_cannot_be_sent_after_a_close_is_reported_once(run, host):
    told = []
    with unused_port() as port:

        def start():
            client = pyasync.tcp_connect(host, port, nothing, event_cb=told.append)
            client.write(b"x", write_cb=told.append)
            client.close()

        run(start)
    assert [type(error) for error in told] == [pyasync.SocketRefused]


@pytest.mark.parametrize("host", ["localhost", "name.invalid", "127.0.0.1"])
def test_leaving_the_loop_on_the_way_neither_hangs_nor_reports(run, host, listener):
    told = []

    with run():
        for _ in range(10):  # more than the threads that look up
            pyasync.tcp_connect(
                host, port_of(listener), told.append, connect_cb=told.append, event_cb=told.append
            )
        pyasync.exit_event_loop()
    assert told == []


def test_an_exception_while_a_lookup_is_under_way_leaves_the_loop(run, listener):
    def start():
        pyasync.tcp_connect("localhost", port_of(listener), nothing)
        raise LookupError("of the application")

    with pytest.raises(LookupError):
        run(start)


# Before the connection stands


def test_what_a_socket_has_not_yet_is_an_error(run, names):
    names([(V4, "127.0.0.2")], "never")

    with run():
        client = pyasync.tcp_connect(NAME, 80, nothing)
        for ask in (lambda: client.peername, lambda: client.sockname):
            with pytest.raises(pyasync.SocketError, match="not connected"):
                ask()
        client.close()


# In two steps


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_socket_may_be_made_first_and_connected_later(run, host, listener):
    told, received = [], talk(listener)

    with run():
        client = pyasync.init_tcp_socket(
            nothing, data="one ", connect_cb=lambda socket: told.append(socket), linger=1
        )
        client.write("two ")

        def connect():
            assert pyasync.connect_tcp_socket(client, host, port_of(listener)) is client
            client.write("three")
            client.close()

        pyasync.delay(connect, time=0.01)
    assert received.result() == b"one two three"
    assert told == []  # it was closed by then


def test_connecting_may_bring_its_own_event_cb(run):
    first, second = [], []

    with unused_port() as port, run():
        client = pyasync.init_tcp_socket(nothing, event_cb=first.append)
        pyasync.connect_tcp_socket(client, "127.0.0.1", port, event_cb=second.append)
    assert first == []
    assert [type(error) for error in second] == [pyasync.SocketRefused]


def test_a_socket_is_connected_once(run, names, listener):
    names([(V4, "127.0.0.1")])

    with run():
        for host in ("127.0.0.1", NAME):
            client = pyasync.tcp_connect(host, port_of(listener), nothing)
            with pytest.raises(ValueError, match="already"):
                pyasync.connect_tcp_socket(client, host, port_of(listener))
            client.close()
            with pytest.raises(pyasync.SocketClosed):
                pyasync.connect_tcp_socket(client, host, port_of(listener))


def test_a_stream_may_be_connected_later(run, listener):
    lines, talker = [], talk(listener, lambda sock: sock.sendall(b"one\ntwo\n"))

    with run():
        stream = pyasync.init_tcp_socket(lambda socket, stream: lines.extend(stream), stream=True)
        assert isinstance(stream, pyasync.AsyncStream)
        assert pyasync.connect_tcp_socket(stream, "localhost", port_of(listener)) is stream
    talker.result()
    assert lines == [b"one\n", b"two\n"]


def test_a_socket_that_is_never_connected_keeps_nothing_running(run):
    with run():
        client = pyasync.init_tcp_socket(nothing, data="never sent")
    assert client.closed


# Adopted descriptors


@pytest.fixture
def pair(listener):
    """Give both ends of a TCP connection."""
    one = socket.create_connection(listener.getsockname(), timeout=PATIENCE)
    with one, listener.accept()[0] as other:
        other.settimeout(PATIENCE)
        yield one, other


def test_an_adopted_descriptor_is_connected(run, pair):
    ours, theirs = pair
    told = []

    theirs.sendall(b"hello")
    with run():
        client = pyasync.init_tcp_socket(
            lambda socket, data: (told.append(data), socket.close()),
            fd=ours.fileno(),
            data="first",
            connect_cb=lambda socket: told.append(socket.peername),
        )
        assert client.fileno() != ours.fileno()
        with pytest.raises(ValueError, match="already"):
            pyasync.connect_tcp_socket(client, "127.0.0.1", 80)
    assert told == [theirs.getsockname(), b"hello"]
    assert read_exactly(theirs, 5) == b"first"


def test_connect_cb_of_an_adopted_descriptor_comes_before_its_data(run, pair):
    ours, theirs = pair
    order = []

    theirs.sendall(b"hello")
    with run():
        for _ in range(20_000):  # more than fire in one iteration: no timer may stand for it
            pyasync.delay(nothing)
        pyasync.init_tcp_socket(
            lambda socket, data: (order.append("data"), socket.close()),
            fd=ours.fileno(),
            connect_cb=lambda socket: order.append("connected"),
        )
    assert order == ["connected", "data"]


def test_an_adopted_descriptor_is_let_go_when_an_argument_is_wrong(run, pair):
    ours, _ = pair

    with run():
        for wrong in [{"data": 5}, {"data": b"", "write_cb": 5}]:
            with pytest.raises(TypeError):
                pyasync.init_tcp_socket(nothing, fd=ours.fileno(), connect_cb=pytest.fail, **wrong)
        assert pyasync.stats().handles["tcp"] == 0


def test_the_callers_descriptor_is_its_own_still(run, pair):
    ours, theirs = pair

    with run():
        pyasync.init_tcp_socket(nothing, fd=ours.fileno()).close(force=True)
    ours.sendall(b"still here")
    assert read_exactly(theirs, 10) == b"still here"


def test_the_caller_may_close_its_descriptor(run, pair):
    ours, theirs = pair

    with run():
        client = pyasync.init_tcp_socket(nothing, fd=ours.fileno())
        ours.close()
        client.write("sent by pyasync")
        client.close()
    assert read_all(theirs) == b"sent by pyasync"


def test_a_descriptor_of_the_wrong_kind_is_refused(run, listener, tmp_path):
    with contextlib.ExitStack() as stack:
        one, other = socket.socketpair()
        wrong = [
            stack.enter_context(one),
            stack.enter_context(other),
            stack.enter_context(socket.socket(V4, socket.SOCK_DGRAM)),
            stack.enter_context(socket.socket()),  # not connected
            stack.enter_context((tmp_path / "file").open("w")),
            listener,
        ]

        def start():
            for file in wrong:
                with pytest.raises(ValueError, match=rf"fd must be .*, not {file.fileno()}"):
                    pyasync.init_tcp_socket(nothing, fd=file.fileno())
            closed = os.dup(0)
            os.close(closed)
            with pytest.raises(OSError, match="Bad file descriptor"):
                pyasync.init_tcp_socket(nothing, fd=closed)

        run(start)


# Options


def test_small_writes_leave_at_once_unless_told_not_to(run, listener):
    seen = []

    def connect_cb(client):
        seen.append(client.nodelay)
        client.nodelay = False
        seen.append(client.nodelay)
        client.nodelay = True
        seen.append(client.nodelay)
        client.close()

    connect(run, "127.0.0.1", port_of(listener), connect_cb=connect_cb)
    assert seen == [True, False, True]


@pytest.mark.parametrize(
    ("arguments", "idle", "interval", "count"),
    [
        ({"delay": 60}, 60, 60, 9),
        ({"delay": 1.5}, 2, 2, 9),
        ({"delay": 7200}, 7200, 75, 9),
        ({"delay": 5, "interval": 0.1, "count": 3}, 5, 1, 3),
        ({"delay": 32767, "interval": 32767, "count": 127}, 32767, 32767, 127),
    ],
)
def test_keepalive_sets_the_probes_in_whole_seconds_rounded_up(
    run, listener, arguments, idle, interval, count
):
    seen = []

    def look(client):
        options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
        on = client.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        seen.append((on, *(client.getsockopt(socket.IPPROTO_TCP, name) for name in options)))

    def connect_cb(client):
        look(client)
        client.keepalive(**arguments)
        look(client)
        client.keepalive(None)
        look(client)
        client.close()
        with pytest.raises(pyasync.SocketClosed):
            client.keepalive(60)

    connect(run, "127.0.0.1", port_of(listener), connect_cb=connect_cb)
    assert seen[0][0] == seen[2][0] == 0
    assert seen[1] == (1, idle, interval, count)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
@pytest.mark.parametrize("with_port", [False, True])
def test_the_local_address_is_what_it_connects_from(run, host, with_port, listener):
    seen = []

    def connect_cb(client):
        seen.append(client.sockname)
        client.close()

    with unused_port("127.0.0.9") as port:
        pass  # free again
    local = ("127.0.0.9", port) if with_port else "127.0.0.9"
    connect(run, host, port_of(listener), connect_cb=connect_cb, local_address=local)
    assert seen[0][0] == "127.0.0.9"
    assert seen[0][1] == port or not with_port


def test_a_local_port_in_time_wait_serves_a_connection_to_another_peer(run):
    with unused_port("127.0.0.9") as port:
        pass  # free again
    local, used = ("127.0.0.9", port), []
    with listening() as first, listening() as second:
        for listener in (first, second):
            connect(
                run,
                "127.0.0.1",
                port_of(listener),
                connect_cb=lambda client: (used.append(client.sockname), client.close()),
                local_address=local,
            )
            # The client has ended first: TIME_WAIT is on its side (RFC 9293, 3.6).
            peer, _ = listener.accept()
            with peer:
                assert read_all(peer) == b""
    assert used == [local, local]


# Out of descriptors


def test_a_close_frees_its_descriptor_for_a_connection_in_the_same_callback(run, listener):
    told, again = [], []

    def connect_cb(client):
        with no_descriptor_left():
            client.close()
            again.append(pyasync.tcp_connect("127.0.0.1", port_of(listener), nothing, **options))

    options = {"event_cb": told.append, "connect_cb": lambda client: client.close()}
    connect(run, "127.0.0.1", port_of(listener), connect_cb=connect_cb)
    assert told == []
    assert again[0].closed


@pytest.mark.parametrize("pending", [False, True], ids=["nothing_pending", "a_write_pending"])
def test_no_descriptor_left_is_an_error_for_event_cb(run, pending, listener):
    told = []

    def connect_cb(client):
        if pending:
            client.write(b"!")  # which frees none
        with no_descriptor_left():
            pyasync.tcp_connect("127.0.0.1", port_of(listener), nothing, event_cb=told.append)
        assert told == []  # not inside the call
        client.close()

    connect(run, "127.0.0.1", port_of(listener), connect_cb=connect_cb)
    assert [error.errno for error in told] == [errno.EMFILE]


# Between socket() and a later fcntl() another thread may fork, and its child keep the descriptor.
SOCKET = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <sys/socket.h>

int socket(int family, int type, int protocol) {
  int (*original)(int, int, int) = dlsym(RTLD_NEXT, "socket");

  if (type & SOCK_CLOEXEC)
    puts("not inherited");
  else
    puts("inherited");
  fflush(stdout);
  return original(family, type, protocol);
}
"""


def test_a_socket_with_a_local_address_is_never_inherited(tmp_path, listener):
    program = f"""if True:
        import pyasync
        pyasync.start_event_loop(lambda: pyasync.tcp_connect(
            "127.0.0.1", {port_of(listener)}, print, local_address="127.0.0.9",
            connect_cb=lambda client: client.close(),
        ))
    """
    output = subprocess.run(
        [sys.executable, "-c", program],
        env=preloaded(tmp_path, SOCKET), stdout=subprocess.PIPE, text=True, check=True, timeout=50,
    ).stdout  # fmt: skip
    assert set(output.split("\n")) == {"not inherited", ""}


def test_of_a_name_the_addresses_of_the_local_ones_family_are_tried(run, names):
    names([(V6, "::1"), (V4, "127.0.0.1")])
    with listening() as listener:
        told = connect(run, NAME, port_of(listener), local_address="127.0.0.9")[1]
    assert told == ["127.0.0.1"]


def test_an_address_whose_interface_has_gone_since_the_lookup_is_passed_over(run, names):
    names([(V6, "fe80::1%gone"), (V4, "127.0.0.1")])
    with listening() as listener:
        assert connect(run, NAME, port_of(listener))[1] == ["127.0.0.1"]
    names([(V6, "fe80::1%gone")])
    _, (error,) = connect(run, NAME, 80)
    assert error.errno == errno.ENODEV
    assert "fe80::1%gone port 80" in str(error)


@pytest.mark.parametrize("host", ["::1", NAME])
def test_a_local_address_of_the_other_family_is_an_error(run, names, host):
    names([(V6, "::1")])
    with listening("::1") as listener:
        _, told = connect(run, host, port_of(listener), local_address="127.0.0.9")
    (error,) = told
    assert isinstance(error, pyasync.SocketError)
    assert "::1 port" in str(error)


def test_a_local_address_that_is_nobodys_is_an_error(run, names):
    names([(V4, "127.0.0.1")])
    nobodys = "192.0.2.1"  # RFC 5737

    with run(), pytest.raises(OSError, match="assign"):
        pyasync.tcp_connect("127.0.0.1", 80, nothing, local_address=nobodys)
    _, told = connect(run, NAME, 80, local_address=nobodys)
    (error,) = told
    assert re.search(r"127\.0\.0\.1 port 80: .*assign", str(error))


def test_a_connect_that_raises_leaves_the_socket_to_be_connected(run):
    connected = []

    with run():
        server = pyasync.tcp_server("127.0.0.1", 0, lambda socket, data: None)
        socket = pyasync.init_tcp_socket(
            lambda socket, data: None,
            connect_cb=lambda socket: (connected.append(True), socket.close(), server.close()),
        )
        with pytest.raises(ValueError, match="zero bytes"):
            pyasync.connect_tcp_socket(socket, "a\0b", 80)
        pyasync.connect_tcp_socket(socket, *server.address)
    assert connected


def test_unref_before_connecting_to_a_name_lets_the_loop_end_after_it(run):
    with run():
        server = pyasync.tcp_server(
            "127.0.0.1", 0, lambda socket, data: None, connect_cb=lambda socket: socket.unref()
        )
        server.unref()
        socket = pyasync.tcp_connect("localhost", server.address[1], lambda socket, data: None)
        assert socket.has_ref
        socket.unref()
        assert not socket.has_ref


@pytest.mark.skipif(
    shutil.which("unshare") is None
    or subprocess.run(["unshare", "-n", "true"], capture_output=True).returncode != 0,
    reason="cannot make a network namespace",
)
def test_an_unreachable_network_is_an_error_of_its_own():
    program = """
import pyasync
pyasync.start_event_loop(lambda: pyasync.tcp_connect(
    "127.0.0.1", 80, print, event_cb=lambda event: print(type(event).__name__)))
"""
    # In a namespace of its own, whose loopback interface is down.
    ran = subprocess.run(
        ["unshare", "-n", sys.executable, "-c", program], capture_output=True, text=True, timeout=30
    )
    assert ran.stdout == "SocketUnreachable\n", ran.stderr


# Before there is a socket


@pytest.mark.parametrize("connect_by", ["name", "address", "pipe"])
def test_writes_before_a_disable_are_sent_when_connected_and_those_after_it_wait(
    run, tmp_path, connect_by
):
    """It is the same for TCP, to an address or a name, and for pipes."""
    got = []

    def on_data(stream, data):
        got.append(data)
        if b"".join(got) == b"first":
            pyasync.delay(go_on, time=0.02)
        if b"".join(got).endswith(b"last"):
            stream.close()
            server.close()

    def go_on():
        assert b"".join(got) == b"first"
        assert client.write_queue_size == len(b"last")
        client.enable(write=True)

    with run():
        if connect_by == "pipe":
            server = pyasync.pipe_server(tmp_path / "p", on_data)
            client = pyasync.pipe_connect(tmp_path / "p", nothing)
        else:
            server = pyasync.tcp_server("127.0.0.1", 0, on_data)
            host = "localhost" if connect_by == "name" else "127.0.0.1"
            client = pyasync.tcp_connect(host, server.address[1], nothing)
        client.write(b"fi")
        client.disable(write=True)
        client.enable(write=True)
        client.write(b"rst")
        client.disable(write=True)
        client.disable(write=True)
        client.write(b"last")
    assert b"".join(got) == b"firstlast"


@pytest.mark.parametrize("force", [False, True])
def test_a_socket_with_nothing_to_send_does_not_connect_because_it_was_disabled(run, force):
    with run():
        server = pyasync.tcp_server("127.0.0.1", 0, nothing)
        client = pyasync.tcp_connect("localhost", server.address[1], nothing)
        client.disable(write=True)
        client.close(force=force)
        pyasync.delay(server.close, time=0.05)
    assert server._loop.stats().accepted == 0


@pytest.mark.parametrize("make", [pyasync.init_tcp_socket, pyasync.init_tcp_ssl_socket])
def test_options_are_set_before_there_is_a_socket(run, make):
    seen = []

    def on_connect(stream):
        seen.append(
            (
                stream.nodelay,
                stream.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE),
                stream.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT),
            )
        )
        assert stream.fileno() >= 0

    with run():
        server = pyasync.tcp_server("127.0.0.1", 0, nothing)
        client = make(nothing, connect_cb=on_connect, event_cb=nothing)
        assert client.fileno() == -1
        assert client.nodelay is True
        client.nodelay = False
        assert client.nodelay is False
        client.keepalive(30, count=3)
        assert client.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        with pytest.raises(pyasync.SocketError):
            client.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        pyasync.connect_tcp_socket(client, "localhost", server.address[1])
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)

        def end():
            if make is pyasync.init_tcp_ssl_socket:  # whose handshake nobody answers
                on_connect(client)
            client.close(force=True)
            server.close()
            with pytest.raises(pyasync.SocketClosed):
                client.fileno()

        when(lambda: pyasync.stats().connected, end)
    assert seen == [(False, 1, 4)]


def test_an_option_that_the_system_refuses_ends_the_connection(run):
    errors = []
    with run():
        server = pyasync.tcp_server("127.0.0.1", 0, nothing)
        client = pyasync.init_tcp_socket(nothing, event_cb=errors.append)
        client.setsockopt(socket.SOL_SOCKET, 9999, 1)
        pyasync.connect_tcp_socket(client, *server.address)
        assert errors == []
        when(lambda: errors, server.close)
    assert len(errors) == 1
    assert isinstance(errors[0], pyasync.SocketError)
