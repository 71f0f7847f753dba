"""socket.sendfile: in order with writes, on any kind of stream, and never waiting in a thread."""

import os
import socket
import threading

import pytest
from peers import (
    LINKS,
    MORE_THAN_FITS,
    PIPE_LINKS,
    count_all,
    end_of,
    make_link,
    nothing,
    read_all,
    reset,
    small_buffers,
    wait_until,
    waiting_for,
    when,
)
from tls_peers import CLIENT, SERVER, TLS_LINKS

import pyasync
from pyasync import fs

DATA = os.urandom(1 << 16) * 40  # more than a piece
TCP = LINKS[0].values[0]


@pytest.fixture(params=[*LINKS, *PIPE_LINKS, *TLS_LINKS])
def link(request, run):
    return make_link(run, request.param)


@pytest.fixture
def tcp(run):
    return make_link(run, TCP)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("sendfile") / "file"
    path.write_bytes(DATA)
    return path


def note(list_, what):
    return lambda stream: list_.append(what)


# In order


def test_files_and_writes_arrive_in_the_order_of_the_calls(link, path):
    done = []

    def connected(stream):
        stream.write(b"one", write_cb=note(done, 1))
        with open(path, "rb") as file:  # closed at once: the descriptor is duplicated
            stream.sendfile(file, write_cb=note(done, 2))
            stream.write(b"two", write_cb=note(done, 3))
            stream.sendfile(file.fileno(), 100, 50, write_cb=note(done, 4))
            stream.sendfile(file, len(DATA) - 10)
        stream.write("three", write_cb=note(done, 5))
        assert done == []
        stream.close()

    received = link(connected, read_all)
    assert received == b"one" + DATA + b"two" + DATA[100:150] + DATA[-10:] + b"three"
    assert done == [1, 2, 3, 4, 5]


def test_a_shutdown_waits_for_the_file_and_reading_goes_on(link, path):
    received = []

    def connected(stream):
        with open(path, "rb") as file:
            stream.sendfile(file)
        stream.write(b"tail")
        stream.shutdown()
        with pytest.raises(pyasync.SocketBrokenPipe):
            stream.write(b"!")
        with pytest.raises(pyasync.SocketBrokenPipe), open(path, "rb") as file:
            stream.sendfile(file)

    def peer(sock):
        data = read_all(sock)
        sock.sendall(b"answer")
        return data

    data = link(connected, peer, read_cb=lambda stream, data: received.append(data))
    assert data == DATA + b"tail"
    assert b"".join(received) == b"answer"


def test_a_later_write_of_another_callback_comes_behind_the_file(link, path):
    def connected(stream):
        small_buffers(stream)
        with open(path, "rb") as file:
            stream.sendfile(file, write_cb=sent)
        pyasync.delay(lambda: stream.write(b"later", force=True), time=0.001)

    def sent(stream):
        with open(path, "rb") as file:
            stream.sendfile(file, 0, 3, write_cb=close)

    def close(stream):
        pyasync.delay(stream.close, time=0.002)

    assert link(connected, read_all) in (DATA + b"later" + DATA[:3], DATA + DATA[:3] + b"later")


@pytest.mark.parametrize("connect", [pyasync.tcp_connect, pyasync.tcp_ssl_connect])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_before_the_connection_stands(run, path, connect, host):
    received = []

    def on_data(stream, data):
        received.append(data)

    def on_close(stream, error):
        server.close()

    with run():
        if connect is pyasync.tcp_ssl_connect:
            serve, context = pyasync.tcp_ssl_server, {"ssl_context": SERVER()}
            client_context = {"ssl_context": CLIENT()}
        else:
            serve, context, client_context = pyasync.tcp_server, {}, {}
        server = serve("127.0.0.1", 0, on_data, close_cb=on_close, **context)
        stream = connect(host, server.address[1], nothing, data=b"head", **client_context)
        with open(path, "rb") as file:
            stream.sendfile(file)
        stream.write(b"tail")
        assert stream.write_queue_size >= len(DATA) + 8
        stream.close()
    assert b"".join(received) == b"head" + DATA + b"tail"


def test_a_file_that_was_sent_while_writing_was_disabled_waits(link, path):
    def connected(stream):
        stream.disable(write=True)
        stream.write(b"head")
        with open(path, "rb") as file:
            stream.sendfile(file)
        stream.write(b"tail")
        pyasync.delay(lambda: enable(stream), time=0.01)

    def enable(stream):
        assert stream.write_queue_size >= len(DATA) + 8
        stream.enable(write=True)
        stream.close()

    assert link(connected, read_all) == b"head" + DATA + b"tail"


def test_a_close_sends_files_also_while_writing_is_disabled(link, path):
    def connected(stream):
        stream.disable(write=True)
        with open(path, "rb") as file:
            stream.sendfile(file)
        stream.write(b"tail")
        stream.close()

    assert link(connected, read_all) == DATA + b"tail"


def test_the_input_of_a_process_takes_a_file(run, path):
    received = []
    with run():
        process = pyasync.spawn(
            "cat",
            [],
            input=pyasync.PIPE,
            output=pyasync.StdioPipe(read_cb=lambda pipe, data: received.append(data)),
        )
        with open(path, "rb") as file:
            process.input.sendfile(file)
        process.input.close()
    assert b"".join(received) == DATA


# What is sent


@pytest.mark.parametrize(
    ("offset", "count", "expected"),
    [
        (0, 0, b""),
        (0, None, DATA),
        (5, 1, DATA[5:6]),
        (len(DATA), None, b""),
        (len(DATA) + 5, 10, b""),
        (len(DATA) - 5, 1 << 40, DATA[-5:]),
    ],
)
@pytest.mark.parametrize("parameters", [TCP, TLS_LINKS[0].values[0]])
def test_the_part_that_is_asked_for_is_sent(run, path, parameters, offset, count, expected):
    done = []

    def connected(stream):
        with open(path, "rb") as file:
            stream.sendfile(file, offset, count, write_cb=note(done, "sent"))
            assert file.tell() == 0
        stream.close()

    assert make_link(run, parameters)(connected, read_all) == expected
    assert done == ["sent"]


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs /proc")
def test_a_file_that_is_longer_than_it_says_is_sent_to_its_end(link):
    def connected(stream):
        with open("/proc/self/status", "rb") as file:
            stream.sendfile(file)
        stream.close()

    assert link(connected, read_all).startswith(b"Name:")


def test_a_file_that_shrinks_ends_early_and_the_writes_behind_it_follow(tcp, tmp_path):
    path = tmp_path / "shrinks"
    path.write_bytes(bytes(8 << 20))
    shrunk = threading.Event()

    def connected(stream):
        small_buffers(stream)
        with open(path, "rb") as file:
            stream.sendfile(file)
        stream.write(b"tail")
        stream.close()
        when(lambda: pyasync.stats().handles["poller"], shrink)  # a part of it has been sent

    def shrink():
        os.truncate(path, 0)
        shrunk.set()

    received = tcp(connected, waiting_for(shrunk, read_all))
    assert received.endswith(b"\0tail")
    assert len(received) < 8 << 20


# Arguments


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"file": "name"}, TypeError, "file must be"),
        ({"file": -1}, ValueError, "file"),
        ({"file": 1 << 40}, ValueError, "file"),
        ({"offset": -1}, ValueError, "offset"),
        ({"offset": 1.5}, TypeError, "offset"),
        ({"count": -1}, ValueError, "count"),
        ({"count": "1"}, TypeError, "count"),
        ({"write_cb": 5}, TypeError, "write_cb"),
    ],
)
def test_wrong_arguments_raise_and_the_connection_goes_on(tcp, path, arguments, error, message):
    def connected(stream):
        with open(path, "rb") as file, pytest.raises(error, match=message):
            stream.sendfile(**{"file": file, **arguments})
        stream.write(b"on")
        stream.close()

    assert tcp(connected, read_all) == b"on"


def test_only_a_regular_file_is_taken(tcp):
    def connected(stream):
        reader, writer = os.pipe()
        with pytest.raises(ValueError, match="regular file"):
            stream.sendfile(reader)
        os.close(reader)
        os.close(writer)
        with pytest.raises(OSError, match="descriptor"):
            stream.sendfile(reader)
        stream.close()

    tcp(connected)


def test_a_closed_socket_takes_none(tcp, path):
    def connected(stream):
        stream.close()
        with open(path, "rb") as file, pytest.raises(pyasync.SocketClosed):
            stream.sendfile(file)

    tcp(connected)


def test_tls_cannot_begin_in_the_middle_of_a_file(tcp, path):
    def connected(stream):
        with open(path, "rb") as file:
            stream.sendfile(file)
        with pytest.raises(ValueError, match="file"):
            pyasync.start_tls(stream, server_side=True, ssl_context=SERVER())
        stream.close()

    assert tcp(connected, read_all) == DATA


# A peer that does not read, and errors


def test_peers_that_do_not_read_hold_no_thread_of_the_pool(run, path):
    """More of them than the pool has threads: an operation on a file is done all the same."""
    clients, streams = [], []
    blocked = [False] * 8

    def connected(stream):
        small_buffers(stream)
        streams.append(stream)
        with open(path, "rb") as file:
            stream.sendfile(file)
        if len(streams) == len(blocked):
            wait_for_pollers()

    def wait_for_pollers():
        if pyasync.stats().handles["poller"] == len(blocked):
            fs.stat(path, found)
        else:
            pyasync.delay(wait_for_pollers, time=0.001)

    def found(result):
        assert result.st_size == len(DATA)
        for stream in streams:
            stream.close(force=True)
        server.close()

    with run():
        server = pyasync.tcp_server("127.0.0.1", 0, nothing, connect_cb=connected)
        for _ in blocked:
            client = socket.socket()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)
            client.connect(server.address)
            clients.append(client)
    for client in clients:
        client.close()


@pytest.mark.parametrize("end", ["close", "exit"])
def test_a_file_may_be_dropped_in_the_middle(link, path, end):
    done, closed = [], []

    def connected(stream):
        small_buffers(stream)
        with open(path, "rb") as file:
            stream.sendfile(file, write_cb=done.append)
            stream.sendfile(file, write_cb=done.append)
        stream.write(b"tail", write_cb=done.append)
        pyasync.delay(
            pyasync.exit_event_loop if end == "exit" else lambda: stream.close(force=True),
            time=0.01,
        )

    def close_cb(stream, error):
        closed.append(error)

    link(connected, lambda sock: wait_until(lambda: closed), close_cb=close_cb)
    assert closed == [None]
    assert done == []


def test_a_number_is_not_reused_under_a_thread(link, path, tmp_path):
    """A descriptor that is opened right after a forced close gets nothing of the file."""

    def connected(stream):
        with open(path, "rb") as file:
            for _ in range(5):
                stream.sendfile(file)
        pyasync.call_soon(lambda: pyasync.call_soon(lambda: swap(stream)))

    def swap(stream):
        stream.close(force=True)
        number = None
        for index in range(20):
            number = os.open(tmp_path / str(index), os.O_RDWR | os.O_CREAT)
            numbers.append(number)

    numbers = []
    link(connected, end_of)
    for number in numbers:
        os.close(number)
    assert sum(os.stat(tmp_path / str(index)).st_size for index in range(20)) == 0


@pytest.mark.parametrize("reading", [True, False])
def test_an_error_is_reported_once_as_a_writes(tcp, path, reading):
    events, done, closed = [], [], []

    def connected(stream):
        small_buffers(stream)
        stream.disable(read=not reading)
        with open(path, "rb") as file:
            stream.sendfile(file, write_cb=done.append)
        stream.write(b"tail", write_cb=done.append)

    tcp(
        connected,
        reset,
        event_cb=events.append,
        close_cb=lambda stream, error: closed.append(error),
    )
    # The kernel gives a socket's error once: where the thread gets it, a read finds an end.
    errors = [event for event in events if not isinstance(event, pyasync.SocketEOF)]
    assert len(errors) == 1
    assert isinstance(errors[0], (pyasync.SocketReset, pyasync.SocketBrokenPipe))
    assert closed == errors
    assert done == []


def test_a_failed_connect_drops_the_file(run, path):
    errors = []
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    with run():
        stream = pyasync.tcp_connect("127.0.0.1", port, nothing, event_cb=errors.append)
        with open(path, "rb") as file:
            stream.sendfile(file, write_cb=errors.append)
        stream.close()
    assert [type(error) for error in errors] == [pyasync.SocketRefused]


@pytest.mark.parametrize("limit", ["write_timeout", "linger"])
def test_a_peer_that_takes_nothing_is_timed_out(tcp, path, limit):
    events, closed = [], []

    def connected(stream):
        small_buffers(stream)
        with open(path, "rb") as file:
            stream.sendfile(file)
        if limit == "linger":
            stream.close()

    tcp(
        connected,
        lambda sock: wait_until(lambda: closed),
        event_cb=events.append,
        close_cb=lambda stream, error: closed.append(error),
        **{limit: 0.05},
    )
    assert [type(event) for event in events] == [pyasync.SocketTimeout]
    assert "took nothing" in str(events[0])


def test_a_peer_that_reads_slowly_is_not_timed_out(tcp, path):
    def connected(stream):
        small_buffers(stream)
        with open(path, "rb") as file:
            stream.sendfile(file)
        stream.close()

    assert tcp(connected, count_all, write_timeout=5, linger=5) == len(DATA)


def test_files_count_as_pressure(link, path):
    told = []

    def connected(stream):
        small_buffers(stream)
        with open(path, "rb") as file:
            stream.sendfile(file)
        assert told == [True]
        assert stream.write_queue_size >= len(DATA) > 1 << 20

    def pressure_cb(stream, paused):
        told.append(paused)
        if not paused:
            assert stream.write_queue_size <= 16 << 10
            stream.close()

    assert link(connected, count_all, pressure_cb=pressure_cb) == len(DATA)
    assert told == [True, False]


def test_more_writes_than_fit_wait_in_front_of_a_file(link, path):
    def connected(stream):
        small_buffers(stream)
        stream.write(bytes(MORE_THAN_FITS))
        with open(path, "rb") as file:
            stream.sendfile(file)
        stream.close()

    assert link(connected, read_all) == bytes(MORE_THAN_FITS) + DATA
