"""Streams on descriptors that the program has: standard streams, terminals, pipes, sockets."""

import contextlib
import contextvars
import fcntl
import os
import pty
import socket
import subprocess
import sys
import termios
import textwrap
import tty

import pytest
from peers import PATIENCE, Background, no_descriptor_left, nothing, run_python

import pyasync

#: More than each kind takes while nobody reads.
MUCH = 8 << 20

pytestmark = pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")


class Ends:
    """Two ends of one kind: what is written to `writer` is read from `reader`."""

    def __init__(self, kind, folder):
        self.kind = kind
        if kind == "pipe":
            self.reader, self.writer = os.pipe()
        elif kind == "fifo":
            path = folder / "fifo"
            os.mkfifo(path)
            both = os.open(path, os.O_RDWR)  # or each open would wait for the other
            self.reader, self.writer = os.open(path, os.O_RDONLY), os.open(path, os.O_WRONLY)
            os.close(both)
        elif kind == "unix":
            self.reader, self.writer = (sock.detach() for sock in socket.socketpair())
        elif kind == "tcp":
            with socket.create_server(("127.0.0.1", 0)) as listener:
                self.writer = socket.create_connection(listener.getsockname()).detach()
                self.reader = listener.accept()[0].detach()
        else:
            ends = pty.openpty()
            tty.setraw(ends[1])
            self.reader, self.writer = ends if kind == "master" else ends[::-1]

    def end_writer(self):
        fd, self.writer = self.writer, -1
        os.close(fd)

    def read(self, size):
        """Read so much, or up to the end, and close the reader."""
        data = read_up_to(self.reader, size)
        fd, self.reader = self.reader, -1
        os.close(fd)
        return data

    def close(self):
        for fd in (self.reader, self.writer):
            if fd >= 0:
                os.close(fd)


@pytest.fixture(params=["pipe", "fifo", "unix", "tcp", "slave", "master"])
def ends(request, tmp_path):
    """Give two `Ends`. The kind is that of the reader: of a "slave" the writer is the master."""
    with contextlib.closing(Ends(request.param, tmp_path)) as ends:
        yield ends


@pytest.fixture
def terminal():
    """Give master and slave of a pseudo-terminal."""
    ends = pty.openpty()
    yield ends
    for fd in ends:
        os.close(fd)


@pytest.fixture
def sockets():
    """Give the numbers of two connected sockets."""
    pair = socket.socketpair()
    with pair[0], pair[1]:
        yield [sock.fileno() for sock in pair]


def read_up_to(fd, size):
    parts = []
    while size > 0 and (data := os.read(fd, min(size, 1 << 16))):
        parts.append(data)
        size -= len(data)
    return b"".join(parts)


# Reading and writing


@pytest.mark.parametrize("early", [True, False], ids=["before", "after"])
def test_data_is_read_and_then_the_end(ends, early, run):
    """Also where the writer has written, and gone, before the stream is made."""
    got, events, closed = [], [], []

    def write():
        os.write(ends.writer, b"hello\n")
        if ends.kind != "slave":
            ends.end_writer()

    def on_data(stream, data):
        got.append(data)
        if ends.kind == "slave":  # what it has not read goes with the master
            ends.end_writer()

    with run():
        if early:
            write()
        stream = pyasync.open_stream(
            ends.reader,
            on_data,
            event_cb=events.append,
            close_cb=lambda stream, error: closed.append((stream, error)),
        )
        assert stream.fileno() != ends.reader
        if not early:
            pyasync.delay(write, time=0.01)
    assert got == [b"hello\n"]
    assert [type(event) for event in events] == [pyasync.SocketEOF]
    assert events[0].socket is stream
    assert closed == [(stream, None)]
    assert os.get_blocking(ends.reader)  # which is open still


def test_more_than_fits_is_written_without_blocking(ends, run):
    data, sent, pressure = os.urandom(MUCH), [], []
    if ends.kind in ("slave", "master"):
        data = data[: MUCH // 32]  # it takes 4 KiB at a time

    with run():
        stream = pyasync.open_stream(
            ends.writer,
            None,
            write_cb=sent.append,
            pressure_cb=lambda stream, paused: pressure.append(paused),
        )
        stream.write(data)
        stream.close()
        reader = Background(ends.read, len(data))
    assert reader.result() == data
    assert sent == [stream]
    assert pressure == []  # closed before
    assert os.get_blocking(ends.writer)


def test_pressure_is_told(ends, run):
    pressure, readers = [], []

    def on_pressure(stream, paused):
        pressure.append(paused)
        if paused:
            readers.append(Background(ends.read, size))
        else:
            stream.close()

    with run():
        stream = pyasync.open_stream(ends.writer, None, pressure_cb=on_pressure)
        size = MUCH if ends.kind not in ("slave", "master") else MUCH // 32
        stream.write(bytes(size))
    assert pressure == [True, False]
    assert len(readers[0].result()) == size


def test_a_terminal_is_read_and_written_by_one_stream(terminal, run):
    master, slave = terminal
    tty.setraw(slave)

    def on_data(stream, data):
        stream.write(data.upper())
        stream.close()

    with run():
        pyasync.open_stream(slave, on_data)
        os.write(master, b"hello")
    assert os.read(master, 100) == b"HELLO"


def test_a_terminals_lines_are_a_stream(terminal, run):
    master, slave = terminal
    lines = []

    def on_lines(terminal, stream):
        while line := stream.readline():
            lines.append(line)

    with run():
        stream = pyasync.open_stream(slave, on_lines, stream=True)
        assert isinstance(stream, pyasync.AsyncStream)
        assert isinstance(stream.socket, pyasync.DescriptorStream)
        os.write(master, b"one\ntwo\n\x04")  # Ctrl-D
    assert lines == [b"one\n", b"two\n"]


def test_without_a_read_cb_nothing_is_read(terminal, run):
    """The input is another stream's, or another program's."""
    master, slave = terminal

    with run():
        stream = pyasync.open_stream(slave, None, stream=True)
        assert stream.read() == b""
        stream.write(b"hello")
        os.write(master, b"input\n")
        stream.socket.disable(read=True)
        stream.socket.enable(read=True)
        pyasync.delay(stream.close, time=0.05)
    assert os.read(slave, 100) == b"input\n"


def test_a_close_that_must_wait_takes_no_input(terminal, run):
    """What was typed is for the next program."""
    master, slave = terminal
    tty.setraw(slave)
    data = bytes(1 << 20)

    def close():
        assert stream.write_queue_size > 0
        os.write(master, b"input")
        stream.close()
        readers.append(Background(read_up_to, master, len(data)))

    readers = []
    with run():
        stream = pyasync.open_stream(slave, nothing)
        stream.write(data, force=True)
        pyasync.call_soon(close)
    assert len(readers[0].result()) == len(data)
    assert os.read(slave, 100) == b"input"


def test_a_descriptor_of_one_direction_makes_such_a_stream(run):
    reader, writer = os.pipe()
    with run():
        of_reader = pyasync.open_stream(reader, nothing)
        of_writer = pyasync.open_stream(writer, pytest.fail)
        os.close(reader)
        os.close(writer)
        with pytest.raises(pyasync.SocketBrokenPipe):
            of_reader.write(b"x")
        of_reader.shutdown()  # does nothing
        assert repr(of_reader) == f"<DescriptorStream open fd={of_reader.fileno()}>"
        of_writer.shutdown()
        assert of_writer.closed
        assert not of_reader.closed
    assert repr(of_reader) == "<DescriptorStream closed>"


def test_a_broken_pipe_is_reported(run):
    reader, writer = os.pipe()
    errors, closed = [], []
    with run():
        stream = pyasync.open_stream(
            writer,
            None,
            event_cb=errors.append,
            close_cb=lambda stream, error: closed.append(error),
        )
        os.close(writer)
        os.close(reader)
        stream.write(b"x")
    assert [type(error) for error in errors] == [pyasync.SocketBrokenPipe]
    assert closed == errors


def test_a_socket_is_shut_down_on_its_own_side(run):
    ours, theirs = socket.socketpair()
    got = []

    def answer():
        asked = read_up_to(theirs.fileno(), 100)
        theirs.sendall(b"answer")
        theirs.close()
        return asked

    with ours, theirs, run():
        stream = pyasync.open_stream(ours, lambda stream, data: got.append(data))
        stream.write(b"question")
        stream.shutdown()
        assert not stream.closed
        peer = Background(answer)
    assert peer.result() == b"question"
    assert got == [b"answer"]


def test_a_socket_closed_with_unread_input_delivers_what_was_written(run, monkeypatch):
    """Its close lingers, or TCP would reset the connection (RFC 2525, 2.17)."""
    monkeypatch.setattr(pyasync.descriptors, "SOCKET_LINGER", PATIENCE)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        theirs = socket.create_connection(listener.getsockname())
        ours = listener.accept()[0]

    def read():
        data = read_up_to(theirs.fileno(), MUCH)
        theirs.close()
        return data

    with theirs, ours:
        with run():
            stream = pyasync.open_stream(ours, None)
            ours.close()
            theirs.sendall(b"unread")
            stream.write(bytes(MUCH))
            stream.close()
            reader = Background(read)
        assert len(reader.result()) == MUCH


@pytest.mark.parametrize("where", ["read_cb", "write_cb", "event_cb", "pressure_cb", "close_cb"])
@pytest.mark.parametrize("force", [True, False])
def test_it_can_be_closed_in_each_callback(where, force, sockets, run, monkeypatch):
    monkeypatch.setattr(pyasync.descriptors, "SOCKET_LINGER", PATIENCE)
    ours, theirs = sockets
    called, readers = [], []

    def read_and_end():
        data = read_up_to(theirs, MUCH)
        with socket.socket(fileno=os.dup(theirs)) as peer:
            peer.shutdown(socket.SHUT_WR)  # or where nothing tells what is unread, a close lingers
        return data

    def act(stream, *args):
        if not called:
            called.append(stream)
            stream.close(force=force)

    callbacks = {name: act for name in ("write_cb", "pressure_cb", "close_cb") if name == where}
    if where == "event_cb":
        callbacks[where] = lambda event: act(event.socket)
    with run():
        stream = pyasync.open_stream(ours, act if where == "read_cb" else nothing, **callbacks)
        if where == "read_cb":
            os.write(theirs, b"x")
        elif where == "event_cb":
            with socket.socket(fileno=os.dup(theirs)) as peer:
                peer.shutdown(socket.SHUT_WR)
        else:
            stream.write(bytes(MUCH))
            readers.append(Background(read_and_end))
            if where == "close_cb":
                stream.close()
    assert called == [stream]
    assert stream.closed
    assert os.get_blocking(ours)
    with socket.socket(fileno=os.dup(ours)) as ended:
        ended.shutdown(socket.SHUT_RDWR)
    for reader in readers:
        assert force or len(reader.result()) == MUCH
        reader.result()


def test_time_limits_contexts_and_references(sockets, run):
    name = contextvars.ContextVar("name", default="none")
    context = contextvars.copy_context()
    context.run(name.set, "its own")
    seen, errors = [], []

    def on_event(event):
        errors.append(event)
        seen.append(name.get())

    with run():
        stream = pyasync.open_stream(
            sockets[0], nothing, read_timeout=0.01, event_cb=on_event, context=context
        )
        stats = pyasync.stats()
    assert [type(error) for error in errors] == [pyasync.SocketTimeout]
    assert seen == ["its own"]
    assert stats.handles["stdio"] == 1
    assert stats.outgoing_tcp_connections + stats.outgoing_pipe_connections == 0
    assert stats.connected == stats.accepted == 0
    with run():
        stream = pyasync.open_stream(sockets[0], nothing)
        stream.unref()  # or the loop would not end
    assert stream.closed


# What a stream refuses


@contextlib.contextmanager
def opened(path, flags=os.O_RDONLY):
    fd = os.open(path, flags)
    try:
        yield fd
    finally:
        os.close(fd)


REFUSED = {
    "file": (lambda: opened(__file__), "pyasync.fs reads and writes a regular file"),
    "folder": (lambda: opened("/"), "pyasync.fs reads a directory"),
    "null": (lambda: opened("/dev/null"), "pyasync.fs reads and writes a device"),
    "server": (lambda: socket.create_server(("127.0.0.1", 0)), "this socket is none, or it li"),
    "datagrams": (lambda: socket.socket(type=socket.SOCK_DGRAM), "this socket is none, or it li"),
}


@pytest.mark.parametrize(("make", "match"), REFUSED.values(), ids=REFUSED)
def test_other_kinds_are_refused_at_the_call_by_a_word_on_what_is_for_them(make, match, run):
    with run(), make() as thing:
        with pytest.raises(ValueError, match=f"fd must be a terminal's.*{match}.*, not "):
            pyasync.open_stream(thing, nothing)
        assert pyasync.stats().handles["stdio"] == 0


def test_a_descriptor_that_is_not_open_is_an_error(run):
    with run(), pytest.raises(OSError, match="Bad file descriptor"):
        pyasync.open_stream(1 << 20, nothing)


def test_without_a_descriptor_left_it_raises_and_changes_nothing(ends, run):
    with run():
        with no_descriptor_left(), pytest.raises(OSError, match="Too many open files"):
            pyasync.open_stream(ends.reader, nothing)
        assert pyasync.stats().handles["stdio"] == 0
    assert os.get_blocking(ends.reader)


# What others share: O_NONBLOCK, and the mode of a terminal


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="opens it by /proc")
@pytest.mark.parametrize("which", ["pipe", "slave"])
def test_who_has_the_same_terminal_or_pipe_notices_nothing(which, tmp_path, run):
    with contextlib.closing(Ends(which, tmp_path)) as ends, run():
        fd = ends.reader
        stream = pyasync.open_stream(fd, nothing)
        assert not os.get_blocking(stream.fileno())
        if which == "slave" or not is_portable():
            assert os.get_blocking(fd)
        pyasync.call_soon(stream.close)


def is_portable():
    """Whether the extension was built without what only Linux has: see PYASYNC_PORTABLE."""
    reader, writer = os.pipe()
    stream = pyasync.open_stream(writer, None)
    portable = not os.get_blocking(writer)
    stream.close(force=True)
    os.close(reader)
    os.close(writer)
    return portable


def test_a_flag_that_was_set_before_stays_set(ends, run):
    os.set_blocking(ends.reader, False)
    with run():
        pyasync.call_soon(pyasync.open_stream(ends.reader, nothing).close)
    assert not os.get_blocking(ends.reader)


@pytest.mark.parametrize("first", [0, 1])
def test_two_streams_of_one_open_file_never_block(first, sockets, run):
    """As of the socket that a super-server makes the standard input and the output."""
    ours = sockets[0]

    def then(stream, error):
        assert not os.get_blocking(ours)
        streams[1 - first].close(force=True)

    with run():
        streams = [pyasync.open_stream(ours, nothing) for _ in range(2)]
        streams[first].close(force=True)
        pyasync.delay(lambda: then(streams[first], None), time=0.01)
    assert os.get_blocking(ours)


def test_loops_of_two_threads_share_an_open_file(sockets):
    """One may open a stream of it while the other closes its last."""

    def open_and_close():
        with pyasync.event_loop():
            for _ in range(2000):
                pyasync.open_stream(sockets[0], None).close(force=True)
                pyasync.current_loop().submit()

    threads = [Background(open_and_close) for _ in range(2)]
    for thread in threads:
        thread.result()
    assert os.get_blocking(sockets[0])


def test_a_terminal_gets_back_the_mode_that_it_had_before_its_first_stream(terminal, run):
    _, slave = terminal
    before = termios.tcgetattr(slave)
    with run():
        first = pyasync.open_stream(slave, nothing)
        tty.setraw(slave)
        raw = termios.tcgetattr(slave)
        second = pyasync.open_stream(slave, None)
        first.close()

        def then():
            assert first.closed
            assert termios.tcgetattr(slave) == raw  # the second needs it
            second.close()

        pyasync.delay(then, time=0.01)
    assert raw != before
    assert termios.tcgetattr(slave) == before


#: How a program ends that has streams on its standard input and output.
ENDINGS = {
    "end": "stream.unref()",
    "close": "stream.close()",
    "exception": "raise ZeroDivisionError",
    "Ctrl-C": "os.kill(os.getpid(), signal.SIGINT)",
    "exit": "sys.exit(3)",
    "exit_event_loop": "pyasync.exit_event_loop()",
    "handled signal": (
        "pyasync.signal_handler(signal.SIGTERM, lambda signo: pyasync.exit_event_loop())\n"
        "    os.kill(os.getpid(), signal.SIGTERM)"
    ),
    "another thread's loop": "ready.set()",
}

PROGRAM = """
import os, signal, sys, threading, tty, pyasync

ready = threading.Event()

def start():
    stream = pyasync.open_stream(0, print)
    pyasync.open_stream(1, None)
    tty.setraw(0)
    pyasync.call_soon(lambda: end(stream))

def end(stream):
    {ending}

def run():
    pyasync.start_event_loop(start)

if {in_thread}:
    threading.Thread(target=run, daemon=True).start()
    ready.wait()
else:
    run()
"""


@pytest.mark.parametrize("ending", ENDINGS)
def test_however_a_program_ends_it_leaves_its_standard_streams_as_they_were(ending, terminal):
    program = PROGRAM.format(ending=ENDINGS[ending], in_thread=ending.startswith("another"))
    _, slave = terminal
    before = termios.tcgetattr(slave)
    output, theirs = socket.socketpair()
    with output, theirs:
        done = subprocess.run(
            [sys.executable, "-c", program],
            stdin=slave,
            stdout=output,
            stderr=subprocess.PIPE,
            timeout=3 * PATIENCE,
        )
        failed = {"exception": b"ZeroDivisionError", "Ctrl-C": b"KeyboardInterrupt"}
        assert failed.get(ending, b"") in done.stderr
        assert bool(done.stderr) == (ending in failed), done.stderr
        assert os.get_blocking(output.fileno())
    assert os.get_blocking(slave)
    assert termios.tcgetattr(slave) == before


def run_on_terminal(program):
    """Run a program of Python's as the leader of a terminal's session; return what it prints."""
    master, slave = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)],
        stdin=slave,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    ) as process:
        try:
            output = process.communicate(timeout=3 * PATIENCE)[0]
        finally:
            process.kill()
            os.close(master)
            os.close(slave)
    return output.decode()


def test_in_the_background_a_terminal_keeps_the_mode_of_the_foreground():
    """To set it there would stop the program (SIGTTOU, termios(3))."""
    output = run_on_terminal("""
        import os, signal, termios, tty, pyasync

        started, goes_on = os.pipe(), os.pipe()
        pid = os.fork()
        if pid == 0:
            signal.alarm(30)
            os.setpgid(0, 0)  # like a job of the shell
            with pyasync.event_loop():
                pyasync.open_stream(0, None)
                os.write(started[1], b"x")
                os.read(goes_on[0], 1)
            os._exit(0)
        os.read(started[0], 1)
        tty.setraw(0)
        raw = termios.tcgetattr(0)
        os.write(goes_on[1], b"x")
        _, status = os.waitpid(pid, os.WUNTRACED)
        print(os.WIFEXITED(status), termios.tcgetattr(0) == raw)
    """)
    assert output.split() == ["True", "True"]


def run_on_a_socket(program):
    """Run a program whose standard input is a socket; fail if it fails, or writes an error."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        done = run_python("-c", textwrap.dedent(program), stdin=ours)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_child_of_a_fork_puts_nothing_back_when_it_ends():
    """The stream is the parent's, which still must not block."""
    run_on_a_socket("""
        import os, sys, pyasync

        with pyasync.event_loop():
            stream = pyasync.open_stream(0, print)
            pid = os.fork()
            if pid == 0:
                sys.exit()
            assert os.waitpid(pid, 0)[1] == 0
            assert not os.get_blocking(0)
            stream.close()
        assert os.get_blocking(0)
    """)


def test_a_child_that_inherits_the_standard_input_leaves_a_stream_on_it_as_it_is():
    """Libuv makes the standard streams of a child blocking."""
    run_on_a_socket("""
        import os, pyasync

        def exited(*args):
            assert not os.get_blocking(0)
            stream.close()

        with pyasync.event_loop():
            stream = pyasync.open_stream(0, print)
            pyasync.spawn("true", [], input=pyasync.INHERIT, exit_cb=exited)
        assert os.get_blocking(0)
    """)
