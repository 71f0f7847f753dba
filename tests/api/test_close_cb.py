"""close_cb: once for each socket, last, however it has ended."""

import os
import sys

import pytest
from peers import (
    CALLBACKS,
    LINKS,
    MORE_THAN_FITS,
    PIPE_LINKS,
    end_of,
    fork_and_check,
    make_link,
    nothing,
    read_all,
    read_exactly,
    reset,
    small_buffers,
    unused_port,
    wait_until,
    when,
    within,
)
from tls_peers import CLIENT, SERVER, TLS_LINKS

import pyasync

ALL_LINKS = [*LINKS, *PIPE_LINKS, *TLS_LINKS]


@pytest.fixture(params=ALL_LINKS)
def link(request, run):
    return make_link(run, request.param)


class Calls:
    """Notes what is called for a socket, in order, and that close_cb is the last of it."""

    def __init__(self):
        self.names, self.closed = [], []

    def note(self, name, then=nothing):
        def callback(*args):
            assert not self.closed, f"{name} after close_cb"
            self.names.append(name)
            then(*args)

        return callback

    def close_cb(self, stream, error):
        assert not self.closed
        assert stream.closed
        with pytest.raises(pyasync.EventError):
            stream.write(b"!")
        stream.close()  # does nothing, as does the other
        stream.close(force=True)
        self.closed.append((stream, error))

    def options(self, **options):
        callbacks = {
            name: self.note(name, options.get(name, nothing))
            for name in ("read_cb", "event_cb", "pressure_cb")
        }
        return {**options, **callbacks, "close_cb": self.close_cb}


@pytest.fixture
def calls():
    return Calls()


# Connections that stand


def send_and_read(sock):
    sock.sendall(b"?")
    read_all(sock)


ENDINGS = {
    "close": (lambda stream: stream.close(), read_all),
    "close by force": (lambda stream: stream.close(force=True), nothing),
    "shutdown, then the peer": (lambda stream: stream.shutdown(), read_all),
    "the peer": (nothing, lambda sock: read_exactly(sock, len(b"hello"))),
    "close with unread input": (lambda stream: stream.close(), send_and_read),
    "exit": (lambda stream: pyasync.exit_event_loop(), nothing),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_it_is_called_once_and_last(link, calls, ending):
    end, peer = ENDINGS[ending]
    streams = []

    def connected(stream):
        streams.append(stream)
        stream.write(b"hello", write_cb=calls.note("write_cb"))
        end(stream)

    def talk(sock):
        try:
            return peer(sock)
        except OSError:
            return None  # the connection is closed by force, in the middle of it

    link(connected, talk, **calls.options())
    assert calls.closed == [(streams[0], None)]


@pytest.mark.parametrize("callback", CALLBACKS)
@pytest.mark.parametrize("force", [False, True])
def test_it_comes_after_a_close_in_any_callback(link, calls, callback, force):
    within(
        link, callback, lambda stream: stream.close(force=force), end_of, close_cb=calls.close_cb
    )
    assert [error for _, error in calls.closed] == [None]


def test_it_gets_the_error_that_event_cb_got(request, run, calls):
    link, errors = make_link(run, LINKS[0].values[0]), []
    link(nothing, reset, **calls.options(event_cb=errors.append))
    assert [type(error) for error in errors] == [pyasync.SocketReset]
    assert [error for _, error in calls.closed] == errors


def test_it_gets_the_first_of_two_errors(run, calls):
    link, errors = make_link(run, LINKS[0].values[0]), []

    def connected(stream):
        small_buffers(stream)
        stream.write(bytes(MORE_THAN_FITS))

    # The read timeout closes, and then the flush cannot end.
    link(
        connected,
        lambda sock: wait_until(lambda: calls.closed),
        **calls.options(event_cb=errors.append),
        read_timeout=0.05,
        linger=0.05,
    )
    assert [type(error) for error in errors] == [pyasync.SocketTimeout] * 2
    assert [error for _, error in calls.closed] == errors[:1]


def test_a_blocked_write_is_told_before(link, calls):
    def connected(stream):
        small_buffers(stream)
        stream.write(bytes(MORE_THAN_FITS), write_cb=calls.note("write_cb"))
        stream.close()

    link(connected, end_of, **calls.options())
    assert "write_cb" in calls.names
    assert len(calls.closed) == 1


def test_its_descriptor_is_closed_when_it_is_called(link):
    descriptors = []

    def connected(stream):
        descriptors.append(os.fstat(stream.fileno()).st_ino)
        stream.close()

    def close_cb(stream, error):
        assert descriptors[0] not in open_inodes()

    link(connected, **{"close_cb": close_cb})


def open_inodes():
    inodes = set()
    for fd in range(256):
        try:
            inodes.add(os.fstat(fd).st_ino)
        except OSError:
            pass
    return inodes


def test_other_sockets_of_the_server_have_a_call_of_their_own(run):
    closed = []
    with run():
        server = pyasync.tcp_server(
            "127.0.0.1", 0, nothing, close_cb=lambda stream, error: count(stream)
        )

        def count(stream):
            closed.append(stream)
            if len(closed) == 3:
                server.close()

        for _ in range(3):
            pyasync.tcp_connect(*server.address, nothing, data=b"!").close()
    assert len(set(closed)) == 3


def test_a_connection_of_a_limited_server_makes_room_for_the_next(run):
    closed = []

    def close_cb(stream, error):
        closed.append(stream)
        if len(closed) == 2:
            server.close()

    with run():
        server = pyasync.tcp_server("127.0.0.1", 0, nothing, close_cb=close_cb, max_connections=1)
        for _ in range(2):
            pyasync.tcp_connect(*server.address, nothing, data=b"!").close()
    assert len(closed) == 2


def test_it_follows_a_connection_that_goes_on_with_tls(run):
    closed = []

    def close_cb(stream, error):
        closed.append((type(stream), error))

    def go_on(stream, data):
        pyasync.start_tls(stream, ssl_context=SERVER(), server_side=True, received=data)

    with run():
        server = pyasync.tcp_server("127.0.0.1", 0, go_on, close_cb=close_cb)
        client = pyasync.tcp_connect(*server.address, nothing, close_cb=close_cb)

        def connected(stream):
            stream.close()
            server.close()

        def begin(stream):
            pyasync.start_tls(
                stream, ssl_context=CLIENT(), server_hostname="localhost", connect_cb=connected
            )

        client.write(b"", write_cb=begin)
    assert closed == [(pyasync.SslSocket, None)] * 2


# Connections that fail, and sockets that never connect


@pytest.mark.parametrize("connect", [pyasync.tcp_connect, pyasync.tcp_ssl_connect])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_failed_connect_is_told_with_its_error(run, calls, connect, host):
    errors = []
    with unused_port() as port, run():
        stream = connect(host, port, **calls.options(event_cb=errors.append))
    assert [type(error) for error in errors] == [pyasync.SocketRefused]
    assert calls.closed == [(stream, errors[0])]


def test_a_pipe_that_is_not_there_is_told_with_its_error(run, calls, tmp_path):
    errors = []
    with run():
        stream = pyasync.pipe_connect(tmp_path / "p", **calls.options(event_cb=errors.append))
    assert calls.closed == [(stream, errors[0])]
    assert isinstance(errors[0], pyasync.PipeNotFound)


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("make", [pyasync.init_tcp_socket, pyasync.init_tcp_ssl_socket])
@pytest.mark.parametrize("data", [None, b"never sent"])
def test_a_socket_that_is_closed_unconnected_is_told_and_not_inside_the_close(
    run, calls, make, force, data
):
    with run():
        stream = make(**calls.options(), data=data)
        stream.close(force=force)
        stream.close(force=True)
        assert calls.closed == []
    assert calls.closed == [(stream, None)]


@pytest.mark.parametrize("data", [None, b"never sent"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_socket_that_is_closed_while_it_connects_is_told(run, calls, host, data):
    with run():
        server = pyasync.tcp_server("127.0.0.1", 0, nothing)
        stream = pyasync.tcp_connect(host, server.address[1], **calls.options(), data=data)
        stream.close()
        when(lambda: calls.closed, server.close)
    assert calls.closed == [(stream, None)]


@pytest.mark.parametrize("make", [pyasync.init_tcp_socket, pyasync.init_tcp_ssl_socket])
def test_a_socket_that_never_connects_is_told_at_the_loops_end(run, calls, make):
    with run():
        stream = make(**calls.options())
    assert calls.closed == [(stream, None)]


@pytest.mark.parametrize(
    "make",
    [
        lambda **options: pyasync.tcp_connect("127.0.0.1", 70000, **options),
        lambda **options: pyasync.tcp_connect("fe80::1%none", 1, **options),
        lambda **options: pyasync.tcp_ssl_connect(
            "127.0.0.1", 1, local_address="192.0.2.1", **options
        ),
        lambda **options: pyasync.init_tcp_socket(fd=0x7FFF0000, **options),
        lambda **options: pyasync.tcp_connect("127.0.0.1", 1, data=5, **options),
        lambda **options: pyasync.spawn(
            "/no/such/program", [], output=pyasync.StdioPipe(close_cb=options["close_cb"])
        ),
    ],
)
def test_a_call_that_raises_has_made_no_socket(run, make):
    with run(), pytest.raises((OSError, ValueError, TypeError)):
        make(read_cb=nothing, close_cb=lambda *args: pytest.fail("close_cb was called"))


# Pipes of processes


def test_the_pipes_of_a_process_are_told(run):
    closed = []

    def pipe(**options):
        return pyasync.StdioPipe(close_cb=lambda pipe, error: closed.append((pipe, error)))

    with run():
        process = pyasync.spawn("cat", [], input=pipe(), output=pipe(), error_output=pipe())
        process.input.close()
    ends = [process.input, process.output, process.error_output]
    assert sorted(map(id, ends)) == sorted(id(end) for end, _ in closed)
    assert [error for _, error in closed] == [None] * 3


def test_a_stream_of_a_process_is_told_with_its_pipe(run):
    closed = []
    stream = pyasync.StdioStream(close_cb=lambda pipe, error: closed.append((pipe, error)))
    with run():
        process = pyasync.spawn("true", [], output=stream)
    assert closed == [(process.output.socket, None)]


def test_input_that_nobody_reads_is_told_with_the_error(run):
    closed, errors = [], []
    with run():
        process = pyasync.spawn(
            sys.executable,
            ["-c", "import os, time; os.close(0); print(flush=True); time.sleep(60)"],
            input=pyasync.StdioPipe(
                event_cb=errors.append, close_cb=lambda pipe, error: closed.append(error)
            ),
            output=pyasync.StdioPipe(read_cb=lambda pipe, data: process.input.write(b"!")),
        )

        def end():
            if closed:
                process.kill()
            else:
                pyasync.delay(end, time=0.005)

        end()
    assert [type(error) for error in closed] == [pyasync.SocketBrokenPipe]
    assert closed == errors


# Exceptions, the loop's end, forks


@pytest.mark.parametrize("ending", ["callback", "loop's end"])
@pytest.mark.parametrize("policy", ["stop", "log", "function"])
def test_its_exception_is_handled_like_an_event_cbs(run, caplog, policy, ending):
    caught = []
    policies = {"stop": False, "log": True, "function": caught.append}

    def fail(stream, error):
        raise KeyError("mine")

    def start():
        stream = pyasync.init_tcp_socket(nothing, event_cb=caught.append, close_cb=fail)
        if ending == "callback":
            stream.close()
            pyasync.delay(nothing, time=0.001)

    if policy == "stop" and ending == "callback":
        with pytest.raises(KeyError):
            run(start, catch_app_errors=policies[policy])
        return
    run(start, catch_app_errors=policies[policy])
    if policy == "function":
        assert [type(error) for error in caught] == [KeyError]
    else:
        assert caught == []
        assert "close_cb" in caplog.text


def test_ctrl_c_in_one_leaves_the_others_to_be_called(run):
    called = []

    def close_cb(stream, error):
        called.append(stream)
        if len(called) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), run():
        sockets = [pyasync.init_tcp_socket(nothing, close_cb=close_cb) for _ in range(4)]
    assert called == sockets


def test_at_the_loops_end_no_call_is_possible_but_closing(run):
    told = []

    def close_cb(stream, error):
        assert pyasync.current_loop() is None
        for call in (pyasync.now, lambda: pyasync.delay(nothing), lambda: stream.write(b"!")):
            with pytest.raises(pyasync.EventError):
                call()
        told.append(error)

    with run():
        pyasync.tcp_server("127.0.0.1", 0, nothing).unref()
        pyasync.init_tcp_socket(nothing, close_cb=close_cb)
    assert told == [None]


def test_an_exception_that_ends_the_loop_ends_all_sockets(run):
    closed = []

    def close_cb(stream, error):
        closed.append(error)

    def fail(stream):
        raise KeyError("mine")

    def start():
        server = pyasync.tcp_server("127.0.0.1", 0, nothing, close_cb=close_cb)
        pyasync.tcp_connect(*server.address, nothing, connect_cb=fail, close_cb=close_cb)

    with pytest.raises(KeyError):
        run(start)
    assert closed
    assert set(closed) == {None}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_the_child_of_a_fork_calls_none_because_the_connection_lives_on(run):
    parent, closed = os.getpid(), []

    def close_cb(stream, error):
        closed.append(error)
        assert os.getpid() == parent

    with run():
        stream = pyasync.init_tcp_socket(nothing, close_cb=close_cb)
        fork_and_check(stream.close)
        assert closed == []
    assert closed == [None]


# What it costs


def test_a_connection_without_one_keeps_its_fast_path(run):
    states = []

    def connected(stream):
        states.append((stream._state, stream._extras, len(stream._loop.watched)))
        stream.close()
        server.close()

    with run():
        server = pyasync.tcp_server("127.0.0.1", 0, nothing, connect_cb=connected)
        pyasync.tcp_connect(*server.address, nothing, data=b"!").close()
    assert states == [(0, None, 0)]
