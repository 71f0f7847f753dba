"""TCP servers: where they listen, what they accept, and what they outlive."""

import contextlib
import errno
import json
import os
import resource
import select
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
from peers import (
    PATIENCE,
    Background,
    after_iterations,
    echo,
    exchange,
    nothing,
    read_all,
    read_exactly,
    reset,
    tell,
    when,
)

import pyasync

HOSTS = {"127.0.0.1": socket.AF_INET, "::1": socket.AF_INET6}

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="asks Linux about the socket")


def dial(address):
    sock = socket.create_connection(address[:2], timeout=PATIENCE)
    sock.settimeout(PATIENCE)
    return sock


def talk(address):
    """Be a client that gets its echo, and leaves."""
    with dial(address) as sock:
        assert exchange(sock, b"hello") == b"hello"


def readable(socks, count):
    """Wait until so many of the sockets can be read, and return them."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        ready = select.select(socks, [], [], 0.01)[0]
        if len(ready) >= count:
            return ready
    raise AssertionError(f"{len(ready)} of {count} can be read")


def serve(run, talk, read_cb=echo, *, host="127.0.0.1", port=0, **options):
    """Serve while talk(address) runs in a thread, then close the server; return talk's result."""
    threads = []

    def finish(thread, server):
        server.close()
        threads.append(thread)

    with run():
        server = pyasync.tcp_server(host, port, read_cb, **options)
        thread = Background(talk, server.address)
        when(lambda: not thread.is_alive(), lambda: finish(thread, server))
    return threads[0].result()


# Where it listens


@pytest.mark.parametrize("host", HOSTS)
def test_a_server_has_an_address_and_a_descriptor_that_listens(run, host):
    with run():
        server = pyasync.tcp_server(host, 0, echo)
        assert server.address[0] == host
        assert server.address[1] > 0
        with socket.socket(fileno=os.dup(server.fileno())) as sock:
            assert sock.getsockname() == server.address
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        assert not server.closed
        server.close()
        assert server.closed
        assert server.address[0] == host
        with pytest.raises(pyasync.SocketClosed):
            server.fileno()
        server.close()


@pytest.mark.parametrize("host", HOSTS)
def test_the_names_of_a_connection_are_those_that_its_peer_sees(run, host):
    names = []

    def connect_cb(stream):
        names.append((stream.peername, stream.sockname))

    def client(address):
        with dial(address) as sock:
            assert exchange(sock, b"!") == b"!"
            return sock.getsockname(), sock.getpeername()

    assert serve(run, client, host=host, connect_cb=connect_cb) == names[0]


def test_the_port_can_be_chosen(run):
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    assert serve(run, lambda address: address, port=port) == ("127.0.0.1", port)


def test_a_name_can_be_bound(run):
    assert serve(run, lambda address: address, host="localhost")[0] in HOSTS


def test_without_an_address_both_families_are_served(run):
    def clients(address):
        peers = []
        for host in HOSTS:
            with dial((host, address[1])) as sock:
                assert exchange(sock, b"!") == b"!"
                peers.append(sock.getsockname()[1])
        return peers

    ports = []
    assert (
        serve(run, clients, host=None, connect_cb=lambda stream: ports.append(stream.peername[1]))
        == ports
    )


def test_an_ipv6_address_does_not_serve_ipv4(run):
    def client(address):
        with pytest.raises(ConnectionRefusedError):
            dial(("127.0.0.1", address[1]))

    serve(run, client, host="::")


def test_an_address_in_use_raises(run):
    with run(), socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(pyasync.SocketAddressInUse) as caught:
            pyasync.tcp_server("127.0.0.1", port, echo)
        assert (caught.value.address, caught.value.port) == ("127.0.0.1", port)
        assert isinstance(caught.value, OSError)
        assert isinstance(caught.value, pyasync.TcpServerBindError)
        assert caught.value.errno == errno.EADDRINUSE
        assert caught.value.errcode == -errno.EADDRINUSE
        assert caught.value.errmsg == caught.value.strerror
        assert os.strerror(errno.EADDRINUSE) in str(caught.value)
        assert str(port) in str(caught.value)


@pytest.mark.parametrize("address", ["192.0.2.1", "not an address", "2001:db8::1"])
def test_an_address_that_cannot_be_bound_raises(run, address):
    with run():
        with pytest.raises(pyasync.TcpServerBindError) as caught:
            pyasync.tcp_server(address, 0, echo)
        assert not isinstance(caught.value, pyasync.SocketAddressInUse)
        assert (caught.value.address, caught.value.port) == (address, 0)
        assert address in str(caught.value)


@linux_only
@pytest.mark.parametrize(("backlog", "length"), [(7, 7), (None, socket.SOMAXCONN)])
def test_the_backlog_is_what_was_asked_for(run, backlog, length):
    with run():
        server = pyasync.tcp_server("127.0.0.1", 0, echo, backlog=backlog)
        with socket.socket(fileno=os.dup(server.fileno())) as sock:
            info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32)
        server.close()
        (granted,) = struct.unpack_from("I", info, 28)  # tcpi_sacked: of a listening socket
        assert granted == min(length, int(Path("/proc/sys/net/core/somaxconn").read_text()))


def test_two_servers_share_a_port_with_reuse_port(run):
    served = set()

    def finish(thread, *servers):
        thread.result()
        for server in servers:
            server.close()

    with run():
        first = pyasync.tcp_server(
            "127.0.0.1", 0, echo, reuse_port=True, connect_cb=lambda stream: served.add(1)
        )
        port = first.address[1]
        with pytest.raises(pyasync.SocketAddressInUse):
            pyasync.tcp_server("127.0.0.1", port, echo)
        second = pyasync.tcp_server(
            "127.0.0.1", port, echo, reuse_port=True, connect_cb=lambda stream: served.add(2)
        )
        thread = Background(lambda: [talk(first.address) for _ in range(100)])
        when(lambda: not thread.is_alive(), lambda: finish(thread, first, second))
    assert served == {1, 2}


def test_accepted_sockets_send_small_writes_at_once(run):
    options = []

    def connect_cb(stream):
        options.append(stream.nodelay)

    serve(run, talk, connect_cb=connect_cb)
    assert options == [True]


# Descriptors given by the caller


@pytest.mark.parametrize("listens", [False, True])
@pytest.mark.parametrize("host", HOSTS)
def test_a_descriptor_is_duplicated_and_the_callers_stays_usable(run, host, listens):
    with socket.socket(HOSTS[host]) as sock:
        sock.bind((host, 0))
        if listens:
            sock.listen()

        def client(address):
            assert address == sock.getsockname()
            talk(address)

        serve(run, client, host=None, fd=sock.fileno())

        # The server is closed: the caller accepts now.
        sock.listen()
        sock.settimeout(PATIENCE)
        with dial(sock.getsockname()):
            sock.accept()[0].close()


def test_closing_the_callers_descriptor_does_not_end_the_server(run):
    def client(address):
        sock.close()
        talk(address)

    sock = socket.create_server(("127.0.0.1", 0))
    serve(run, client, host=None, fd=sock.fileno())


def test_descriptors_of_the_wrong_kind_are_refused(run, tmp_path):
    with contextlib.ExitStack() as stack:
        wrong = [
            stack.enter_context(each).fileno()
            for each in [
                (tmp_path / "file").open("w"),
                socket.socket(type=socket.SOCK_DGRAM),
                socket.socket(socket.AF_UNIX),
            ]
        ]
        with run():
            for fd in wrong:
                with pytest.raises(ValueError, match=f"fd must be .*, not {fd}"):
                    pyasync.tcp_server(None, 0, echo, fd=fd)
            with pytest.raises(OSError, match="Bad file descriptor"):
                pyasync.tcp_server(None, 0, echo, fd=1 << 20)


def test_a_connected_descriptor_is_refused_and_stays_connected(run):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = dial(listener.getsockname())
        accepted = listener.accept()[0]
    with client, accepted:
        with run(), pytest.raises((ValueError, pyasync.TcpServerBindError)):
            pyasync.tcp_server(None, 0, echo, fd=client.fileno())
        client.sendall(b"still")
        assert read_exactly(accepted, 5) == b"still"


# Closing


def test_closing_frees_the_address_at_once(run):
    with run():
        first = pyasync.tcp_server("127.0.0.1", 0, echo)
        first.close()
        second = pyasync.tcp_server("127.0.0.1", first.address[1], echo)
        second.close()
        with socket.socket() as sock:
            sock.bind(first.address)


def test_closing_frees_the_address_also_while_connections_are_open(run):
    def connect_cb(stream):
        first.close()
        servers.append(pyasync.tcp_server("127.0.0.1", first.address[1], second_read))

    def second_read(stream, data):
        stream.write(b"second")
        servers[1].close()

    def clients(address):
        with dial(address) as old:
            assert exchange(old, b"first") == b"first"
            with dial(address) as new:
                new.sendall(b"?")
                assert read_exactly(new, 6) == b"second"
            assert exchange(old, b"still") == b"still"

    servers = []
    with run():
        first = pyasync.tcp_server("127.0.0.1", 0, echo, connect_cb=connect_cb)
        servers.append(first)
        thread = Background(clients, first.address)
    thread.result()


def test_a_closed_server_refuses_connections(run):
    refused = []

    def knock(address):
        with socket.socket() as sock:
            refused.append(sock.connect_ex(address))

    with run():
        server = pyasync.tcp_server("127.0.0.1", 0, echo)
        server.close()
        after_iterations(2, lambda: knock(server.address))
    assert refused == [errno.ECONNREFUSED]


# Accepting


def test_connect_cb_comes_first_and_once(run):
    told = []

    def clients(address):
        for _ in range(5):
            talk(address)

    serve(
        run,
        clients,
        lambda stream, data: (told.append((stream, "read")), stream.write(data)),
        connect_cb=lambda stream: told.append((stream, "connect")),
        event_cb=lambda event: told.append((event.socket, type(event))),
    )
    streams = [stream for stream, what in told if what == "connect"]
    assert len(set(streams)) == 5
    for stream in streams:
        own = [what for other, what in told if other is stream]
        assert own == ["connect", "read", pyasync.SocketEOF]


def test_many_connections_of_one_iteration_are_all_accepted(run):
    """More than a batch of accept: they wait in the backlog when the loop looks."""
    count, accepted = 200, []

    def connect_cb(stream):
        accepted.append(stream)
        stream.close()
        if len(accepted) == count:
            server.close()

    clients = []
    with run():
        server = pyasync.tcp_server("127.0.0.1", 0, echo, connect_cb=connect_cb)
        clients.extend(dial(server.address) for _ in range(count))
    assert [read_all(client) for client in clients] == [b""] * count
    for client in clients:
        client.close()


def test_resets_before_accept_do_not_end_the_listener(run):
    events = []

    def finish(thread, server):
        server.close()
        thread.result()

    with run():
        server = pyasync.tcp_server("127.0.0.1", 0, echo, event_cb=tell(events))
        for _ in range(50):
            reset(dial(server.address))
        thread = Background(talk, server.address)
        when(lambda: not thread.is_alive(), lambda: finish(thread, server))
    assert events.count(pyasync.SocketEOF) == 1
    assert set(events) <= {pyasync.SocketEOF, pyasync.SocketReset}


def test_at_max_connections_the_server_waits_until_one_closes(run):
    opened = []

    def connect_cb(stream):
        opened.append(pyasync.stats().incoming_tcp_connections)

    def clients(address):
        with contextlib.ExitStack() as stack:
            waiting = [stack.enter_context(dial(address)) for _ in range(5)]
            for sock in waiting:
                sock.sendall(b"hello")
            readable(waiting, 2)
            time.sleep(0.02)  # nothing comes for the others
            assert len(readable(waiting, 2)) == 2
            while waiting:
                sock = readable(waiting, 1)[0]
                assert read_exactly(sock, 5) == b"hello"
                waiting.remove(sock)
                sock.close()
        for _ in range(5):
            talk(address)

    serve(run, clients, connect_cb=connect_cb, max_connections=2)
    assert len(opened) == 10
    assert max(opened) == 2


def test_a_closed_server_with_max_connections_lets_its_connections_end(run):
    def connect_cb(stream):
        server.close()

    with run():
        server = pyasync.tcp_server("127.0.0.1", 0, echo, connect_cb=connect_cb, max_connections=1)
        thread = Background(talk, server.address)
    thread.result()


@pytest.fixture
def many_descriptors():
    """Raise the soft limit of open files to the hard one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 10_500:
        pytest.skip(f"needs 10,500 descriptors, may have {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("many_descriptors")
@pytest.mark.parametrize("buffer_writes", [True, False])
def test_five_thousand_connections_at_once_each_get_their_echo(run, buffer_writes):
    count = 5000
    clients, waiting, failed = [], [], []
    answered = {}

    def read_cb(stream, data):
        """Answer when all have asked."""
        waiting.append((stream, data))
        if len(waiting) == count:
            stats = pyasync.stats()
            assert stats.incoming_tcp_connections == stats.outgoing_tcp_connections == count
            assert stats.handles["tcp"] == 2 * count
            server.close()
            for stream, data in waiting:
                stream.write(data)
                stream.close()

    def client_read(stream, data):
        answered[stream.data] = answered.get(stream.data, b"") + data

    def failed_cb(event):
        if not isinstance(event, pyasync.SocketEOF):
            failed.append(event)

    def connect_some():
        for _ in range(100):
            number = len(clients)
            client = pyasync.tcp_connect(
                "127.0.0.1", server.address[1], client_read, data=b"%d" % number, event_cb=failed_cb
            )
            client.data = number
            clients.append(client)
        if len(clients) < count:
            pyasync.call_soon(connect_some)

    stats = []
    with run(buffer_writes=buffer_writes):
        server = pyasync.tcp_server("127.0.0.1", 0, read_cb, event_cb=failed_cb)
        pyasync.add_event_loop_exit_callback(lambda: stats.append(pyasync.stats()))
        connect_some()
    assert failed == []
    assert answered == {number: b"%d" % number for number in range(count)}
    assert (stats[0].accepted, stats[0].connected, stats[0].closed) == (count, count, 2 * count)
    assert (stats[0].incoming_tcp_connections, stats[0].outgoing_tcp_connections) == (0, 0)


# Out of descriptors

STARVED_SERVER = """
import json, os, resource, sys, time
import pyasync

free = 20
used = len(os.listdir("/proc/self/fd")) + 8  # and those of the loop
resource.setrlimit(resource.RLIMIT_NOFILE, (used + free, used + free))
reports, marks, accepted = [], [], []

def read_cb(socket, data):
    if data == b"quit":
        server.close()
        accepted.append(pyasync.stats().accepted)
    else:
        socket.write(data)

def event_cb(event):
    if isinstance(event, pyasync.SocketAcceptError):
        assert event.server is server
        assert event.errno == 24, event
        reports.append((time.monotonic(), event.count))
        stats = pyasync.stats()
        if len(reports) <= 2:
            marks.append((stats, time.process_time()))
            print(stats.incoming_tcp_connections, flush=True)

def start():
    global server
    server = pyasync.tcp_server("127.0.0.1", 0, read_cb, event_cb=event_cb)
    print(server.address[1], flush=True)

pyasync.start_event_loop(start)
starved = marks[1][0] - marks[0][0]
print(json.dumps({
    "seconds": reports[1][0] - reports[0][0],
    "counts": [count for _, count in reports],
    "iterations": starved.iterations,
    "errors": starved.accept_errors,
    "busy": marks[1][1] - marks[0][1],
    "accepted": accepted[0],
}))
"""


@linux_only
def test_a_server_out_of_descriptors_waits_reports_and_goes_on(tmp_path):
    count = 60
    stack = contextlib.ExitStack()
    with subprocess.Popen(
        [sys.executable, "-c", STARVED_SERVER],
        stdout=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    ) as server:
        try:
            address = ("127.0.0.1", int(server.stdout.readline()))
            waiting = [stack.enter_context(dial(address)) for _ in range(count)]
            accepted = int(server.stdout.readline())
            assert 0 < accepted < count
            for sock in waiting:
                sock.sendall(b"hello")
            served = readable(waiting, accepted)

            # A second later it reports again, and those that it has are served still.
            assert int(server.stdout.readline()) == accepted
            assert len(readable(waiting, accepted)) == accepted
            for sock in served:
                assert read_exactly(sock, 5) == b"hello"
                assert exchange(sock, b"still") == b"still"

            # As they leave, those who wait are accepted, in turn.
            for sock in served:
                sock.close()
                waiting.remove(sock)
            while waiting:
                sock = readable(waiting, 1)[0]
                assert read_exactly(sock, 5) == b"hello"
                waiting.remove(sock)
                if not waiting:
                    sock.sendall(b"quit")
                sock.close()
            report = json.loads(server.stdout.readline())
            assert server.wait(PATIENCE) == 0
        finally:
            stack.close()
            server.kill()
    assert report["accepted"] == count
    assert report["seconds"] >= 1
    assert report["counts"][0] == 1
    assert 2 <= report["counts"][1] <= 11
    assert report["errors"] == report["counts"][1]
    # Each of the connections' messages is an iteration or two, and each attempt to accept.
    assert report["iterations"] <= 30 * report["seconds"] + 2 * accepted
    assert report["busy"] < 0.5 * report["seconds"]


# A flood

FLOOD = """
import resource, selectors, socket, struct, sys, time

port, count = int(sys.argv[1]), int(sys.argv[2])
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
at_once = min(count, hard - 100)
waiting = selectors.DefaultSelector()
connected = echoed = failed = begun = 0
deadline = time.monotonic() + 50

def leave(sock):
    waiting.unregister(sock)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()

while echoed + failed < count and time.monotonic() < deadline:
    while begun < count and len(waiting.get_map()) < at_once:
        sock = socket.socket()
        sock.setblocking(False)
        sock.connect_ex(("127.0.0.1", port))
        waiting.register(sock, selectors.EVENT_WRITE, b"%08d" % begun)
        begun += 1
    for key, events in waiting.select(1):
        sock, message = key.fileobj, key.data
        try:
            if events & selectors.EVENT_WRITE:
                error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if error:
                    raise OSError(error, "connect")
                connected += 1
                sock.sendall(message)
                waiting.modify(sock, selectors.EVENT_READ, message)
            else:
                assert sock.recv(8) == message
                echoed += 1
                leave(sock)
        except OSError as error:
            print(error, file=sys.stderr)
            failed += 1
            leave(sock)
print(connected, echoed, failed)
"""


@pytest.mark.slow
@pytest.mark.usefixtures("many_descriptors")
def test_each_connection_of_a_flood_gets_its_echo(run, tmp_path):
    count = 15_000
    clients = []

    with run(limit=55):
        server = pyasync.tcp_server("127.0.0.1", 0, echo, backlog=128, event_cb=nothing)
        client = subprocess.Popen(
            [sys.executable, "-c", FLOOD, str(server.address[1]), str(count)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
        )
        clients.append(client)
        thread = Background(client.communicate)
        when_gone = pyasync.interval(lambda: finish(), time=0.05)

        def finish():
            if not thread.is_alive():
                when_gone.close()
                server.close()
                clients.append(thread.result()[0])

    connected, echoed, failed = map(int, clients[1].split())
    assert (connected, echoed, failed) == (count, count, 0)


def test_what_comes_with_a_connection_waits_until_reading_is_enabled(run):
    def connect_cb(connection):
        connection.disable(read=True)
        pyasync.delay(lambda: connection.enable(read=True), time=0.05)
        sock.sendall(b"then")

    def read_cb(connection, data):
        received.append((pyasync.now() >= opened + 0.04, data))
        if b"".join(data for _, data in received) == b"firstthen":
            server.close()
            connection.close()

    opened, received = 0.0, []
    try:
        with run():
            opened = pyasync.now()
            server = pyasync.tcp_server("127.0.0.1", 0, read_cb, connect_cb=connect_cb)
            sock = socket.create_connection(server.address)
            sock.sendall(b"first")
    finally:
        sock.close()
    assert all(late for late, _ in received)


def test_a_connection_that_brings_data_along_is_read_on_and_to_its_end(run):
    def read_cb(connection, data):
        received.append(data)
        if data == b"first":
            sock.sendall(b"second")
        else:
            sock.shutdown(socket.SHUT_WR)

    def event_cb(event):
        received.append(type(event))
        server.close()

    received = []
    try:
        with run():
            server = pyasync.tcp_server("127.0.0.1", 0, read_cb, event_cb=event_cb)
            sock = socket.create_connection(server.address)
            sock.sendall(b"first")
    finally:
        sock.close()
    assert received == [b"first", b"second", pyasync.SocketEOF]


def test_new_connections_that_bring_much_along_do_not_hold_up_others(run):
    """Their data fills what is read in an iteration, several times over."""

    def read_cb(connection, data):
        if data == b"first":
            for _ in range(200):
                sock = socket.create_connection(server.address)
                socks.append(sock)
                sock.setblocking(False)
                sock.send(bytes(256 << 10))
            socks[0].sendall(b"second")
        elif data == b"second":
            accepted.append(pyasync.stats().accepted)
            pyasync.exit_event_loop()

    accepted, socks = [], []
    try:
        with run():
            server = pyasync.tcp_server("127.0.0.1", 0, read_cb)
            socks.append(socket.create_connection(server.address))
            socks[0].sendall(b"first")
    finally:
        for sock in socks:
            sock.close()
    assert accepted[0] <= 1 + 2 * 64
