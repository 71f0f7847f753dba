"""AsyncStream: a socket as a file of `io`, with `io.BytesIO` as the model of what it must give."""

import array
import csv
import gc
import io
import json
import os
import shutil
import socket
import threading
import weakref
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peers import nothing, repetitions, reset

import pyasync
from pyasync import AsyncStream
from pyasync._core.engine import Engine


class Socket:
    """What a stream needs of its socket as long as it is only read from: here its loop is over."""

    _loop = Engine()

    def __init__(self, closed=False):
        self.closed = closed


def fed(*pieces, ended=False):
    """Return a stream at which these pieces have arrived, and perhaps the end."""
    stream = AsyncStream(Socket(closed=ended))
    for piece in pieces:
        stream._feed(piece)
    if ended:
        stream._end()
    return stream


# Reading, against the model

sizes = st.sampled_from([-1, 1, 2, 3, 5, 8, 40, 0, -2, None, 10_000])
reads = st.one_of(
    st.tuples(st.sampled_from(["readline", "read", "peek", "read1"]), sizes),
    st.tuples(st.just("readline"), sizes),
    st.tuples(st.sampled_from(["readinto", "readinto1"]), st.integers(0, 12)),
    st.tuples(st.sampled_from(["next", "readlines"]), st.integers(-1, 12)),
)
pieces = st.lists(st.sampled_from([b"\n", b"a", b"bc", b"\r\n", b"long" * 9]), max_size=9)


class Model:
    """What a stream must give, for what has arrived: as `io.BytesIO` does, or None."""

    def __init__(self):
        self.file = io.BytesIO()
        self.ended = False

    def feed(self, data):
        position = self.file.tell()
        self.file.seek(0, io.SEEK_END)
        self.file.write(data)
        self.file.seek(position)

    def left(self):
        return len(self.file.getvalue()) - self.file.tell()

    def read(self, size):
        return self.file.read(size) or (b"" if self.ended or size == 0 else None)

    read1 = read

    def readinto(self, size):
        buffer = bytearray(size)
        count = self.file.readinto(buffer)
        return (count if count or self.ended or size == 0 else None), buffer

    readinto1 = readinto

    def peek(self, size):
        position = self.file.tell()
        data = self.read(size if size and size > 0 else io.DEFAULT_BUFFER_SIZE)
        self.file.seek(position)
        return data

    def readline(self, size):
        position = self.file.tell()
        line = self.file.readline(-1 if size is None else size)
        if self.ended or line.endswith(b"\n") or len(line) == size:
            return line
        self.file.seek(position)
        return None

    def next(self, _):
        return self.readline(-1) or StopIteration

    def readlines(self, hint):
        lines = []
        while not 0 < hint < sum(map(len, lines)):  # io.IOBase: until it is exceeded
            line = self.readline(-1)
            if not line:
                break
            lines.append(line)
        return lines


def perform(stream, name, argument):
    """Call a method of the stream; give what it returns, in the model's form."""
    if name.startswith("readinto"):
        buffer = bytearray(argument)
        return getattr(stream, name)(buffer), buffer
    if name == "next":
        return next(stream, StopIteration)
    if name == "peek":
        return stream.peek(argument or 0)
    return getattr(stream, name)(argument)


@mock.patch("pyasync.async_stream.JOINED_SIZE", 5)  # so that there are many pieces
@pytest.mark.timeout(300)  # beside others, PyPy takes a while to make the examples
@settings(max_examples=repetitions(200))
@given(st.lists(st.tuples(pieces, reads)), st.lists(reads))
def test_it_gives_what_a_file_with_what_has_arrived_would(before, after):
    stream, model = AsyncStream(Socket()), Model()

    def perform_both(name, argument):
        assert perform(stream, name, argument) == getattr(model, name)(argument), name
        assert stream.buffered == model.left()

    for arrived, read in before:
        for piece in arrived:
            stream._feed(piece)
            model.feed(piece)
        perform_both(*read)
    stream._end()
    model.ended = True
    for read in after:
        perform_both(*read)
    perform_both("read", -1)
    perform_both("read", 1)


def test_small_pieces_and_large_ones_make_one_stream():
    pieces = [b"x" * size for size in (1, 1023, 1, 2000, 3, 0, 1020, 1, 1, 5000, 1)]
    assert fed(*pieces).read() == b"".join(pieces)


# Reading, by example

READS = {
    "read": lambda stream: stream.read(),
    "read(5)": lambda stream: stream.read(5),
    "read1": lambda stream: stream.read1(),
    "readinto": lambda stream: stream.readinto(bytearray(5)),
    "readinto1": lambda stream: stream.readinto1(bytearray(5)),
    "peek": lambda stream: stream.peek(),
    "readline": lambda stream: stream.readline(),
    "readline(5)": lambda stream: stream.readline(5),
}


def test_peek_without_a_size_gives_no_more_than_a_buffer():
    stream = fed(b"x" * 1_000_000)
    assert stream.peek() == stream.peek(-1) == b"x" * io.DEFAULT_BUFFER_SIZE
    assert stream.peek(500_000) == b"x" * 500_000
    assert stream.buffered == 1_000_000


def test_readinto_fills_any_writable_buffer():
    stream = fed(b"\1\0\2\0", b"\3\0\4")
    numbers = array.array("H", [9, 9, 9])
    assert stream.readinto(numbers) == 6
    assert numbers == array.array("H", b"\1\0\2\0\3\0")
    buffer = bytearray(3)
    with memoryview(buffer) as whole, whole[1:] as part:
        assert stream.readinto(part) == 1
    assert buffer == b"\0\4\0"
    buffer.append(1)  # nothing holds it any more


@pytest.mark.parametrize("wrong", [b"read-only", "text", 5, memoryview(bytearray(9))[::2]])
def test_readinto_what_cannot_be_filled_is_an_error_and_takes_nothing(wrong):
    stream = fed(b"data")
    with pytest.raises(TypeError):
        stream.readinto(wrong)
    assert stream.read() == b"data"


@pytest.mark.parametrize("name", ["read", "read1", "peek", "readline"])
@pytest.mark.parametrize("wrong", ["1", 1.0, b"1"])
def test_a_size_that_is_no_integer_is_an_error_and_takes_nothing(name, wrong):
    stream = fed(b"da", b"ta\n")
    with pytest.raises(TypeError):
        getattr(stream, name)(wrong)
    assert stream.read() == b"data\n"


# The cost, counted in bytes looked at or copied, and in calls


class Counted(bytes):
    """Bytes that count the work done on them."""

    work = 0

    def _count(self, size):
        Counted.work += 50 + size  # a call takes about as long as copying some hundred bytes

    def find(self, what, start=0, end=None):
        end = len(self) if end is None else min(end, len(self))
        found = super().find(what, start, end)
        self._count((end if found < 0 else found) - start)
        return found

    def rfind(self, what, start=0):
        found = super().rfind(what, start)
        self._count(max(0, len(self) - max(found, start)))
        return found

    def __getitem__(self, key):
        piece = super().__getitem__(key)
        self._count(len(piece))
        return piece

    def __add__(self, other):
        self._count(len(self) + len(other))
        return Counted(super().__add__(other))


def pieces_of(data, size):
    return [data[start : start + size] for start in range(0, len(data), size)]


def read_all(stream, read):
    while read(stream):
        pass


def peek_and_read(stream):
    return stream.peek(1) and stream.read(1)


def line_and_a_byte(stream):
    return stream.readline() and stream.read(1)


COSTLY_READS = {
    "readline": lambda stream: stream.readline(),
    "readline(3)": lambda stream: stream.readline(3),
    "readline(100000000)": lambda stream: stream.readline(100_000_000),
    "read(1)": lambda stream: stream.read(1),
    "read": lambda stream: stream.read(),
    "readinto": lambda stream: stream.readinto(bytearray(100)),
    "peek+read": peek_and_read,
    "readline+read": line_and_a_byte,
    "next": lambda stream: next(stream, None),
}

COSTLY_PIECES = {
    "a long line, byte by byte": lambda size: [b"x"] * size,
    "a long line in pieces": lambda size: [b"x" * 33] * (size // 33),
    "short lines in one piece": lambda size: [b"short\n" * (size // 6)],
    "short lines, each in pieces": lambda size: [b"sh", b"or", b"t\nsho", b"rt\n"] * (size // 12),
    "lines that end within pieces": lambda size: pieces_of((b"x" * 99 + b"\n") * (size // 100), 70),
    "a long line without its end, then bytes": lambda size: [b"x" * size] + [b"x"] * size,
    "short lines, then bytes": lambda size: [b"a\n" * (size // 2)] + [b"x"] * size,
}


@pytest.mark.parametrize("at_once", [True, False], ids=["read at once", "read at the end"])
@pytest.mark.parametrize("pieces", COSTLY_PIECES.values(), ids=COSTLY_PIECES)
def test_the_cost_grows_no_faster_than_what_arrives(pieces, at_once, monkeypatch):
    monkeypatch.setattr("pyasync.async_stream.JOINED_SIZE", 32)  # small beside all of it
    for name, read in COSTLY_READS.items():
        work = work_of(read, pieces(1_000), at_once)
        assert work_of(read, pieces(4_000), at_once) <= 4.5 * work, name


def work_of(read, pieces, at_once):
    """Return what it costs to feed these pieces to a stream and read it to its end."""
    Counted.work, stream = 0, AsyncStream(Socket())
    for piece in pieces:
        stream._feed(Counted(piece))
        if at_once:
            read_all(stream, read)
    stream._end()
    read_all(stream, read)
    assert stream.buffered == 0
    return Counted.work


@pytest.fixture
def memory_used():
    """Give memory_used(): how many bytes Python has allocated since the test began."""
    tracemalloc = pytest.importorskip("tracemalloc")  # PyPy has none
    tracemalloc.start()
    yield lambda: tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()


def test_small_pieces_take_not_much_more_memory_than_their_bytes(memory_used):
    stream = AsyncStream(Socket())
    for _ in range(50_000):
        stream._feed(bytes(3))
    assert stream.buffered == 150_000
    assert memory_used() < 1.2 * 150_000


@pytest.mark.parametrize("read", ["read", "readline", "close"])
def test_what_has_been_read_takes_no_memory(memory_used, read):
    stream = AsyncStream(mock.Mock(closed=False, _loop=Socket._loop))
    for _ in range(11):
        stream._feed(b"x" * 99_999 + b"\n")
        if read != "close":
            getattr(stream, read)()
    if read == "close":
        stream.close()
    assert memory_used() < 50_000


# What other modules make of it, once the end has come


def test_a_text_wrapper_decodes_what_was_split_inside_a_character():
    text = "naïve\r\n€uro\n\N{SNOWMAN}"
    stream = fed(*(bytes([byte]) for byte in text.encode()), ended=True)
    wrapper = io.TextIOWrapper(stream, encoding="utf-8")
    assert list(wrapper) == ["naïve\n", "€uro\n", "\N{SNOWMAN}"]
    assert wrapper.detach() is stream


def test_a_text_wrapper_reads_as_from_any_file():
    lines = [f"line {number}" for number in range(5000)]
    stream = fed(*pieces_of("\n".join(lines).encode(), 777), ended=True)
    wrapper = io.TextIOWrapper(stream, encoding="ascii", newline="")
    assert wrapper.read(6) == "line 0"
    assert wrapper.readline() == "\n"
    assert wrapper.read().split("\n") == lines[1:]
    assert wrapper.read() == ""
    wrapper.detach()


def test_a_text_wrapper_needs_no_encoding():
    wrapper = io.TextIOWrapper(fed(b"text", ended=True))
    assert wrapper.read() == "text"
    wrapper.detach()


def test_csv_and_json_read_from_it():
    rows = [["a", "b"], ["1", "two\nlines"], ["ü", ""]]
    table = io.StringIO(newline="")
    csv.writer(table).writerows(rows)
    wrapper = io.TextIOWrapper(fed(*pieces_of(table.getvalue().encode(), 4), ended=True), "utf-8")
    assert list(csv.reader(wrapper)) == rows
    wrapper.detach()
    values = [{"a": 1}, [None, "ü"], 3.5]
    lines = "\n".join(map(json.dumps, values)).encode()
    assert [json.loads(line) for line in fed(lines[:9], lines[9:], ended=True)] == values


@pytest.mark.parametrize("length", [0, 1, 1000])
def test_copyfileobj_copies_it(length):
    data = bytes(range(256)) * 40
    copy = io.BytesIO()
    shutil.copyfileobj(fed(*pieces_of(data, 333), ended=True), copy, length)
    assert copy.getvalue() == data


def test_copyfileobj_before_the_end_copies_what_is_there():
    stream, copy = fed(b"some"), io.BytesIO()
    shutil.copyfileobj(stream, copy)
    assert copy.getvalue() == b"some"


def test_it_is_a_binary_file():
    stream = fed(b"data")
    assert isinstance(stream, io.BufferedIOBase)
    assert stream.readable()
    assert stream.writable()
    assert not stream.seekable()
    assert not stream.isatty()
    for call in (stream.tell, stream.truncate, stream.detach, lambda: stream.seek(0)):
        with pytest.raises(io.UnsupportedOperation):
            call()
    assert stream.read() == b"data"


# Over a connection


def tcp(directory):
    def serve(read_cb, **options):
        return pyasync.tcp_server("127.0.0.1", 0, read_cb, **options)

    def connect(server, read_cb, **options):
        return pyasync.tcp_connect(*server.address, read_cb, **options)

    return serve, connect


def pipe(directory):
    path = str(directory / "pipe")

    def serve(read_cb, **options):
        return pyasync.pipe_server(path, read_cb, **options)

    def connect(server, read_cb, **options):
        return pyasync.pipe_connect(path, read_cb, **options)

    return serve, connect


@pytest.fixture(params=[tcp, pipe])
def transport(request, tmp_path):
    """Give serve(read_cb, ...) and connect(server, read_cb, ...)."""
    return request.param(tmp_path)


@pytest.fixture
def talk(transport, run):
    """Give talk(read_cb, act, ...): a server's stream, and a plain client for act(client).

    It returns what the client has received. An error that the client is told fails the test; so
    does one that the server is, unless there is an ``event_cb(event, stream)``. The stream is
    None if nothing has been read from it.
    """
    serve, connect = transport

    def talk(read_cb, act, *, event_cb=None, **options):
        received, errors, stream = [], [], None

        def fail(event, stream=None):
            if not isinstance(event, pyasync.SocketEOF):
                errors.append(event)

        def remember(socket, its_stream):
            nonlocal stream
            stream = its_stream
            read_cb(socket, stream)

        with run():
            server = serve(
                remember,
                stream=True,
                connect_cb=lambda connection: server.close(),
                event_cb=lambda event: (event_cb or fail)(event, stream),
                **options,
            )
            act(connect(server, lambda client, data: received.append(data), event_cb=fail))
        assert errors == []
        return b"".join(received)

    return talk


def send(data, *, end=True):
    """Return a function that lets a client send the data, and end its sending side."""

    def act(client):
        client.write(data)
        if end:
            client.shutdown()

    return act


def test_callbacks_get_the_same_stream_each_time(talk):
    seen = []

    def read_cb(socket, stream):
        seen.append((socket, stream))
        if stream.peek(2) == b"ab":
            stream.close()
        else:
            stream.write(b"more")

    def act(client):
        client.write(b"a", read_cb=lambda client, data: client.write(b"b"))

    talk(read_cb, act)
    assert len(seen) == 2
    (socket, stream), again = seen
    assert again == (socket, stream)
    assert type(stream) is AsyncStream
    assert stream.socket is socket


def test_a_client_is_a_stream_too(transport, run):
    serve, connect = transport
    lines = []

    def answer(server_socket, data):
        server_socket.write(data + b"two\n")
        server_socket.close()

    with run():
        server = serve(answer, connect_cb=lambda connection: server.close())
        client = connect(server, lambda socket, stream: lines.extend(stream), stream=True)
        assert type(client) is AsyncStream
        assert client.write(b"one\n") == 4
    assert lines == [b"one\n", b"two\n"]


def test_what_is_written_to_a_stream_comes_out_as_lines_at_the_other(talk):
    sent = [b"%d%s\n" % (number, b"x" * (number**2 % 5003)) for number in range(2000)]
    got = []

    def read_cb(socket, stream):
        for line in stream:
            got.append(line)
            stream.write(line)

    assert talk(read_cb, send(b"".join(sent))) == b"".join(sent)
    assert got == sent


def test_after_the_end_the_rest_can_be_read(talk):
    ends = []

    def event_cb(event, stream):
        assert isinstance(event, pyasync.SocketEOF)
        ends.append((stream.ended, stream.read(4), stream.readline(), stream.read()))

    assert talk(nothing, send(b"restof it"), event_cb=event_cb) == b""
    assert ends == [(True, b"rest", b"of it", b"")]


def test_before_the_end_nothing_there_is_none(talk):
    reads = []

    def read_cb(socket, stream):
        reads.append((stream.ended, stream.read(), stream.read(), stream.readline()))
        stream.close()

    talk(read_cb, send(b"all", end=False))
    assert reads == [(False, b"all", None, None)]


def test_with_half_open_the_answer_may_follow_the_end(talk):
    def event_cb(event, stream):
        with io.TextIOWrapper(stream, encoding="utf-8", newline="\n") as text:
            words = text.read().split()
            print(*sorted(words), sep="\n", file=text)

    answer = talk(nothing, send("ü b ö a".encode()), event_cb=event_cb, allow_half_open=True)
    assert answer.decode() == "a\nb\nö\nü\n"


def test_what_came_before_a_reset_can_be_read(run):
    streams, events = [], []

    def read_cb(socket, stream):
        if not stream.ended:
            streams.append(stream)
            reset(peer)

    with run():
        server = pyasync.tcp_server(
            "127.0.0.1",
            0,
            read_cb,
            stream=True,
            connect_cb=lambda connection: server.close(),
            event_cb=events.append,
        )
        peer = socket.create_connection(server.address)
        peer.sendall(b"line\nrest")
    assert list(map(type, events)) == [pyasync.SocketReset]
    assert streams[0].ended
    assert list(streams[0]) == [b"line\n", b"rest"]


def test_reading_can_be_stopped_so_that_no_more_waits(talk):
    size, buffered, got = 16 << 20, [], []

    def read_cb(socket, stream):
        buffered.append(stream.buffered)
        if not stream.ended:
            socket.disable(read=True)
            pyasync.delay(lambda: go_on(socket, stream), time=0.001)

    def go_on(socket, stream):
        got.append(len(stream.read()))
        socket.enable(read=True)

    def event_cb(event, stream):
        got.append(len(stream.read()))

    talk(read_cb, send(bytes(size)), event_cb=event_cb)
    assert sum(got) == size
    assert max(buffered) <= 1 << 20


# Writing


@pytest.mark.parametrize(
    "data",
    [
        b"bytes",
        b"",
        bytearray(b"bytearray"),
        memoryview(b"0123456789")[::3],
        array.array("I", [1, 2, 3]),
        bytes(1_000_000),
    ],
    ids=lambda data: type(data).__name__,
)
def test_write_takes_what_is_bytes_like_and_returns_its_size(talk, data):
    sizes = []

    def read_cb(socket, stream):
        sizes.append(stream.write(data))
        stream.close()

    expected = memoryview(data).tobytes()
    assert talk(read_cb, send(b"!", end=False)) == expected
    assert sizes == [len(expected)]


def test_writelines_writes_them_all(talk):
    def read_cb(socket, stream):
        stream.writelines([b"one\n", bytearray(b"two\n")])
        stream.close()

    assert talk(read_cb, send(b"!", end=False)) == b"one\ntwo\n"


@pytest.mark.parametrize("wrong", ["text", 5, None, [1]])
def test_write_takes_nothing_else(talk, wrong):
    def read_cb(socket, stream):
        with pytest.raises(TypeError):
            stream.write(wrong)
        stream.close()

    assert talk(read_cb, send(b"!", end=False)) == b""


@pytest.mark.parametrize("buffer_writes", [True, False])
def test_flush_sends_at_once(run, buffer_writes):
    received = []

    def read_cb(_, stream):
        stream.write(b"at ")
        stream.write(b"once")
        stream.flush()
        received.append(peer.recv(100))  # while the callback still runs
        stream.close()

    with run(buffer_writes=buffer_writes):
        server = pyasync.tcp_server(
            "127.0.0.1", 0, read_cb, stream=True, connect_cb=lambda connection: server.close()
        )
        peer = socket.create_connection(server.address, timeout=10)
        peer.sendall(b"!")
    peer.close()
    assert received == [b"at once"]


def test_when_the_loop_has_ended_any_thread_may_read_the_rest(talk):
    def read_cb(socket, stream):
        streams.append(stream)
        pyasync.exit_event_loop()

    def read_rest(stream):
        rest.extend([stream.buffered, stream.peek(1), stream.readline(), stream.read()])
        rest.extend(stream)

    streams, rest = [], []
    talk(read_cb, send(b"one\ntwo"))
    thread = threading.Thread(target=read_rest, args=streams)
    thread.start()
    thread.join()
    assert rest == [7, b"o", b"one\n", b"two"]


def test_copyfileobj_writes_a_file_to_it(talk):
    data = bytes(range(256)) * 5000

    def read_cb(socket, stream):
        shutil.copyfileobj(io.BytesIO(data), stream)
        stream.close()

    assert talk(read_cb, send(b"!", end=False)) == data


# The end of the stream, and of its socket


def test_close_sends_what_was_written_and_drops_what_was_not_read(talk):
    def read_cb(socket, stream):
        stream.write(b"last words")
        assert stream.buffered == 6
        stream.close()
        assert (stream.closed, socket.closed, stream.buffered) == (True, True, 0)
        stream.close()

    assert talk(read_cb, send(b"unread", end=False)) == b"last words"


def test_a_with_statement_closes(talk):
    def read_cb(socket, stream):
        with stream as same:
            assert same is stream
            stream.write(b"bye")
        assert stream.closed

    assert talk(read_cb, send(b"!", end=False)) == b"bye"


CALLS = {
    **READS,
    "read(0)": lambda stream: stream.read(0),
    "readinto(0)": lambda stream: stream.readinto(bytearray()),
    "readlines": lambda stream: stream.readlines(),
    "next": lambda stream: next(stream),
    "iter": lambda stream: iter(stream),
    "write": lambda stream: stream.write(b""),
    "writelines": lambda stream: stream.writelines([]),
    "flush": lambda stream: stream.flush(),
    "readable": lambda stream: stream.readable(),
    "writable": lambda stream: stream.writable(),
    "fileno": lambda stream: stream.fileno(),
    "with": lambda stream: stream.__enter__(),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_after_close_each_call_is_an_error(run, call):
    def read_cb(socket, stream):
        stream.close()
        with pytest.raises(ValueError, match="closed"):
            call(stream)
        done.append(True)

    done = []
    connect_stream(run, read_cb)
    assert done


def connect_stream(run, read_cb):
    """Run a loop in which read_cb(socket, stream) is called once, with two lines and a rest."""

    with run():

        def connect_cb(connection):
            server.close()
            connection.write(b"one\ntwo\nrest")

        server = pyasync.tcp_server("127.0.0.1", 0, nothing, connect_cb=connect_cb)
        pyasync.tcp_connect(*server.address, read_cb, stream=True)


def test_what_is_there_when_the_socket_is_closed_can_be_read(run):
    def read_cb(socket, stream):
        socket.close()
        assert (stream.closed, stream.ended) == (False, True)
        assert stream.readline() == b"one\n"
        stream.flush()  # that has been done
        with pytest.raises(ValueError, match="closed"):
            stream.write(b"more")
        with pytest.raises(io.UnsupportedOperation):
            stream.fileno()
        streams.append(stream)

    streams = []
    connect_stream(run, read_cb)
    (stream,) = streams
    with io.TextIOWrapper(stream) as text:
        assert list(text) == ["two\n", "rest"]
    assert stream.closed


def test_it_outlives_its_loop(run):
    def read_cb(socket, stream):
        streams.append(stream)
        pyasync.exit_event_loop()

    streams = []
    connect_stream(run, read_cb)
    (stream,) = streams
    assert stream.ended
    stream.flush()
    with pytest.raises(pyasync.SocketClosed):
        stream.write(b"more")
    with pytest.raises(io.UnsupportedOperation):
        stream.fileno()
    assert stream.readlines() == [b"one\n", b"two\n", b"rest"]
    assert stream.read() == b""
    stream.close()


def test_when_the_last_line_leaves_the_loop_its_end_is_not_told(run):
    def connect_cb(connection):
        connection.write(b"rest")
        connection.close()

    def read_cb(socket, stream):
        if stream.ended:
            pyasync.exit_event_loop()

    events = []
    with run():
        server = pyasync.tcp_server("127.0.0.1", 0, nothing, connect_cb=connect_cb)
        pyasync.tcp_connect(*server.address, read_cb, stream=True, event_cb=events.append)
    assert events == []


def test_fileno_is_the_sockets(run):
    def read_cb(socket, stream):
        assert stream.fileno() == socket.fileno()
        os.fstat(stream.fileno())
        stream.close()

    connect_stream(run, read_cb)


# Garbage


def test_garbage_does_not_close_a_socket_that_works_on(run):
    def start():
        server = pyasync.tcp_server(
            "127.0.0.1", 0, answer, connect_cb=lambda connection: server.close()
        )
        client = pyasync.tcp_connect(*server.address, lambda _, data: received.append(data))
        client.write(b"!")

    def answer(socket, data):
        dropped = weakref.ref(AsyncStream(socket))
        gc.collect()
        assert dropped() is None
        assert not socket.closed
        socket.write(b"still there")
        socket.close()

    received = []
    run(start)
    assert received == [b"still there"]


def test_a_stream_to_which_nothing_refers_is_read_on(talk):
    lines = []

    def read_cb(socket, stream):
        lines.extend(stream)
        del socket, stream
        gc.collect()

    def act(client):
        client.write(b"1\n")
        pyasync.delay(lambda: send(b"2\n")(client), time=0.01)

    talk(read_cb, act)
    assert lines == [b"1\n", b"2\n"]


def test_a_text_wrapper_that_becomes_garbage_closes_it_unless_detached(run):
    def read_cb(socket, stream):
        wrapper = io.TextIOWrapper(stream, encoding="utf-8")
        wrapper.detach()
        del wrapper
        gc.collect()
        assert not stream.closed
        io.TextIOWrapper(stream, encoding="utf-8")
        gc.collect()
        assert stream.closed
        assert socket.closed
        done.append(True)

    done = []
    connect_stream(run, read_cb)
    assert done


# A limit of what waits


def limited_stream(run, take):
    """Call ``take(stream)`` until it is True, with 4 MiB to come. Return the most that waited."""
    most = 0

    with run():

        def send(socket):
            socket.write(bytes(4 << 20))
            socket.close()

        def read_cb(socket, stream):
            nonlocal most
            most = max(most, stream.buffered)

        def act():
            if take(stream):
                ticker.close()
                stream.close()
                server.close()

        server = pyasync.tcp_server("127.0.0.1", 0, read_cb, connect_cb=send)
        stream = pyasync.tcp_connect(*server.address, read_cb, stream=True, drain_read_buffer=False)
        ticker = pyasync.interval(act, time=0.001)
    return most


def test_without_draining_little_waits_and_nothing_is_lost(run):
    taken = 0

    def take(stream):
        nonlocal taken
        data = stream.read(50_000)
        taken += len(data or b"")
        return data == b""

    most = limited_stream(run, take)
    assert taken == 4 << 20
    assert most <= (64 << 10) + (256 << 10)  # one more read may come on top of the limit


def test_without_draining_a_line_that_is_longer_than_the_limit_arrives(run):
    lines = []

    def take(stream):
        lines.append(stream.readline())
        return lines[-1] == b""

    limited_stream(run, take)
    assert [len(line) for line in lines if line] == [4 << 20]


def test_read_cb_is_called_for_the_last_line_without_an_end(run):
    lines = []

    with run():

        def send(socket):
            socket.write(b"one\ntwo")
            socket.close()
            server.close()

        server = pyasync.tcp_server("127.0.0.1", 0, lambda socket, data: None, connect_cb=send)
        pyasync.tcp_connect(
            *server.address, lambda socket, stream: lines.extend(stream), stream=True
        )
    assert lines == [b"one\n", b"two"]


# By size and by separator


@given(
    data=st.binary(max_size=60).map(lambda data: bytes(byte % 3 for byte in data)),
    cuts=st.lists(st.integers(0, 60), max_size=8),
    separator=st.binary(min_size=1, max_size=4).map(lambda data: bytes(b % 3 for b in data)),
    reads=st.integers(0, 3),
)
def test_readuntil_finds_what_one_search_of_all_data_finds(data, cuts, separator, reads):
    with mock.patch("pyasync.async_stream.JOINED_SIZE", 0):  # each piece stays by itself
        stream, got, left = fed(), [], data
        for start, end in zip([0, *sorted(cuts)], [*sorted(cuts), len(data)]):
            stream._feed(data[start:end])
            for _ in range(reads):
                got.append(stream.readuntil(separator, limit=None))
        while (found := stream.readuntil(separator)) is not None:
            got.append(found)
        expected = []
        while separator in left:
            size = left.index(separator) + len(separator)
            expected.append(left[:size])
            left = left[size:]
        assert [piece for piece in got if piece is not None] == expected
        assert (stream.read() or b"") == left


@given(data=st.binary(max_size=30), cut=st.integers(0, 30), n=st.integers(0, 40))
def test_readexactly_gives_all_of_it_or_nothing(data, cut, n):
    stream = fed(data[:cut])
    early = stream.readexactly(n)
    assert early == (data[:n] if n <= len(data[:cut]) else None)
    stream._feed(data[cut:])
    if early is None:
        assert stream.readexactly(n) == (data[:n] if n <= len(data) else None)


def test_a_separator_may_change_between_two_calls():
    stream = fed(b"a;b,c")
    assert stream.readuntil(b"!") is None
    assert stream.readuntil(b",") == b"a;b,"
    assert stream.readuntil(bytearray(b"!")) is None
    stream._feed(b"!d")
    assert stream.readuntil(memoryview(b"!")) == b"c!"
    assert stream.read() == b"d"


@pytest.mark.parametrize(
    ("read", "expected"),
    [
        (lambda stream: stream.readexactly(4), 4),
        (lambda stream: stream.readuntil(b"!"), None),
        (lambda stream: stream.readuntil(b"!", limit=3), None),
    ],
)
def test_the_end_before_all_of_it_raises_with_the_rest(read, expected):
    stream = fed(b"ab", b"c")
    assert read(stream) is None
    stream._end()
    with pytest.raises(pyasync.IncompleteReadError, match="after 3 bytes") as caught:
        read(stream)
    assert (caught.value.partial, caught.value.expected) == (b"abc", expected)
    assert isinstance(caught.value, EOFError)
    assert stream.read() == b""
    with pytest.raises(pyasync.IncompleteReadError) as caught:
        read(stream)
    assert caught.value.partial == b""


def test_what_is_whole_can_be_read_after_the_end():
    stream = fed(b"abc;de", ended=True)
    assert stream.readuntil(b";") == b"abc;"
    assert stream.readexactly(2) == b"de"
    assert stream.readexactly(0) == b""


@pytest.mark.parametrize(
    "read",
    [
        lambda stream: stream.readuntil(b"\n", 4),
        lambda stream: stream.readuntil(b"\n", limit=4),
        lambda stream: stream.readline(limit=4),
        lambda stream: stream.readline(None, limit=4),
    ],
)
def test_a_line_over_the_limit_raises_and_stays(read):
    stream = fed(b"1234")
    assert read(stream) is None
    stream._feed(b"\n12345")
    assert read(stream) == b"1234\n"
    for _ in range(2):
        with pytest.raises(pyasync.LimitOverrunError, match="without") as caught:
            read(stream)
        assert caught.value.consumed == 5
        assert isinstance(caught.value, ValueError)
    stream._feed(b"\n")
    with pytest.raises(pyasync.LimitOverrunError, match="before") as caught:
        read(stream)
    assert stream.readexactly(caught.value.consumed) == b"12345"
    assert read(stream) == b"\n"


def test_readuntil_has_asyncios_limit():
    stream = fed(b"x" * (1 << 16))
    assert stream.readuntil(b"\n") is None
    stream._feed(b"x")
    with pytest.raises(pyasync.LimitOverrunError):
        stream.readuntil(b"\n")
    assert stream.readuntil(b"\n", limit=None) is None


def test_the_rest_after_the_end_is_a_line_within_the_limit():
    stream = fed(b"rest", ended=True)
    with pytest.raises(pyasync.LimitOverrunError):
        stream.readline(limit=3)
    assert stream.readline(limit=4) == b"rest"
    assert stream.readline(limit=4) == b""


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda stream: stream.readexactly(-1), ValueError),
        (lambda stream: stream.readexactly("1"), TypeError),
        (lambda stream: stream.readuntil(b""), ValueError),
        (lambda stream: stream.readuntil("text"), TypeError),
        (lambda stream: stream.readuntil(b"x", -1), ValueError),
        (lambda stream: stream.readuntil(b"x", 1.5), TypeError),
        (lambda stream: stream.readline(limit=-1), ValueError),
        (lambda stream: stream.readline(5, limit=5), ValueError),
    ],
)
def test_reading_by_size_and_separator_refuses_wrong_arguments(call, error):
    stream = fed(b"text")
    with pytest.raises(error):
        call(stream)
    assert stream.read() == b"text"


@pytest.mark.parametrize(
    "read",
    [
        lambda stream: stream.readexactly(200_001),
        lambda stream: stream.readuntil(b"!", None),
        lambda stream: stream.readline(),
        lambda stream: stream.readline(limit=200_001),
    ],
)
def test_more_than_the_limit_of_a_socket_that_stops_reading_can_be_waited_for(run, read):
    got = []

    def on_data(socket, stream):
        data = read(stream)
        if data is not None:
            got.append(data)
            socket.close()
            server.close()

    with run():
        server = pyasync.tcp_server(
            "127.0.0.1",
            0,
            nothing,
            connect_cb=lambda socket: socket.write(b"x" * 200_000 + b"!\n"),
        )
        pyasync.tcp_connect(*server.address, on_data, stream=True, drain_read_buffer=False)
    assert got[0].rstrip() == b"x" * 200_000 + b"!"


def test_a_search_for_a_separator_looks_at_each_byte_once():
    """Ten times the pieces take ten times the time, and not a hundred times."""
    with mock.patch("pyasync.async_stream.JOINED_SIZE", 0):
        stream = fed()
        looks = []

        class Piece(bytes):
            def find(self, *args):
                looks.append(1)
                return super().find(*args)

        for _ in range(300):
            stream._feed(Piece(b"data"))
            assert stream.readuntil(b"--end--", limit=None) is None
    assert len(looks) < 300 * 5
