"""What tests share: plain blocking sockets as peers, connections to them, and forks."""

import contextlib
import fcntl
import gc
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
import traceback
import uuid

import pytest

import pyasync
from pyasync._ffi import lib

#: How long a peer waits for anything, in seconds, before it fails the test.
PATIENCE = 30

#: More than the kernel takes from a socket whose peer does not read, after `small_buffers`.
MORE_THAN_FITS = 2 << 20


def repetitions(count):
    """Return how many of so many cases to run: fewer where each takes many times as long."""
    slow = sys.implementation.name == "pypy" or "asan" in os.environ.get("LD_PRELOAD", "")
    return -(-count // 4) if slow else count


def number_of(interface):
    """Return the number of an interface; 0: there is none."""
    return lib.if_nametoindex(interface.encode())  # PyPy's socket module lacks it


class Background(threading.Thread):
    """A function that runs in a thread; `result` waits for what it returns, or raises."""

    def __init__(self, fn, *args):
        super().__init__(name=getattr(fn, "__name__", repr(fn)), daemon=True)
        self._fn, self._args = fn, args
        self._value = self._error = None
        self.start()

    def run(self):
        try:
            self._value = self._fn(*self._args)
        except BaseException as error:
            self._error = error

    def result(self):
        self.join(2 * PATIENCE)
        assert not self.is_alive(), f"{self.name} still runs"
        if self._error is not None:
            raise self._error
        return self._value


def wait_until(condition, seconds=PATIENCE):
    """Wait, in no event loop, until `condition()` is true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@contextlib.contextmanager
def flood(post):
    """Let threads call `post(nothing)` without a pause until the block ends, which is soon."""
    ends, late = threading.Event(), threading.Event()
    limit = time.monotonic() + 10

    def call():
        while not ends.is_set():
            post(nothing)
            if time.monotonic() > limit:
                late.set()
                return

    threads = [Background(call) for _ in range(8)]
    try:
        yield
    finally:
        ends.set()
        for thread in threads:
            thread.result()
    assert not late.is_set()


def in_other_thread(fn, *args):
    """Run a function in another thread, and return what it returns, or raise what it raises."""
    return Background(fn, *args).result()


# Forks, and programs


def fork_and_check(check):
    """Run `check()` in a forked child that ends with it, and fail if it raises."""
    pid = os.fork()
    if pid == 0:
        end_child(check)
    _, status = os.waitpid(pid, 0)
    assert status == 0, "the child failed: see what it wrote to stderr"


def end_child(check):
    """Run `check()`; then end this process, whose status says whether it has raised."""
    status = 1
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(20)  # or a child that hangs would outlive the tests
        check()
        status = 0
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(status)


def interrupt(program):
    """Run a program of Python's until it prints "ready", and then press Ctrl-C.

    Returns how it ended, what else it has printed, and its lines on the standard error.
    """
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with process:
        try:
            assert process.stdout.readline() == "ready\n"
            process.send_signal(signal.SIGINT)
            output, errors = process.communicate(timeout=3 * PATIENCE)
        finally:
            process.kill()
    return process.returncode, output, errors.splitlines()


#: For `preloaded`: a system that refuses, or cuts off, datagrams.
REFUSING_KERNEL = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/socket.h>

/* There is no room for a long time; but libuv 1.44 sends its queue by syscall(). */
static int refused(void) {
  static int left = 1000;

  errno = EAGAIN;
  return getenv("REFUSE") != NULL && left-- > 0;
}

ssize_t sendmsg(int fd, const struct msghdr *message, int flags) {
  ssize_t (*next)(int, const struct msghdr *, int);

  *(void **) &next = dlsym(RTLD_NEXT, "sendmsg");
  return refused() ? -1 : next(fd, message, flags);
}

int sendmmsg(int fd, struct mmsghdr *messages, unsigned number, int flags) {
  int (*next)(int, struct mmsghdr *, unsigned, int);

  *(void **) &next = dlsym(RTLD_NEXT, "sendmmsg");
  return refused() ? -1 : next(fd, messages, number, flags);
}

int recvmmsg(int fd, struct mmsghdr *messages, unsigned number, int flags,
             struct timespec *timeout) {
  int (*next)(int, struct mmsghdr *, unsigned, int, struct timespec *);
  unsigned index;

  if (getenv("CUT") != NULL)
    for (index = 0; index < number; index++)
      messages[index].msg_hdr.msg_iov->iov_len = 8;
  *(void **) &next = dlsym(RTLD_NEXT, "recvmmsg");
  return next(fd, messages, number, flags, timeout);
}
"""


def preloaded(folder, source):
    """Compile C whose functions come before the system's; return the environment that loads it."""
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs Linux and a C compiler")
    library, file = folder / "preloaded.so", folder / "preloaded.c"
    file.write_text(source)
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-o", library, file, "-ldl"], check=True, timeout=60
    )
    preload = f"{os.environ.get('LD_PRELOAD', '')} {library}".strip()
    return {**os.environ, "LD_PRELOAD": preload}


def run_python(*words, timeout=3 * PATIENCE, **options):
    """Run Python with these words to its end. Gives its exit status, output and errors, as text."""
    command = [sys.executable, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, **options)


@contextlib.contextmanager
def full_backlog(listener):
    """Fill the backlog of a plain socket that listens, so that nobody else gets an answer."""
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            sock = stack.enter_context(socket.socket(listener.family))
            sock.settimeout(0.2)
            try:
                sock.connect(listener.getsockname())
            except (socket.timeout, BlockingIOError):
                sock.close()  # or it would be the next
                break
        else:
            pytest.skip("this system's backlogs are never full")
        yield listener


@contextlib.contextmanager
def no_descriptor_left():
    """Let this process open nothing more."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def resident_size():
    """Return how many bytes of memory this process holds."""
    gc.collect()
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@contextlib.contextmanager
def unused_port(host="127.0.0.1"):
    """Give a port at which nobody listens, and which nobody else gets."""
    with socket.socket() as sock:
        sock.bind((host, 0))
        yield sock.getsockname()[1]


# What a peer does


def nothing(*args):
    """Be a callback that ignores what it is told, or a peer that does nothing."""


def read_all(sock):
    """Return what arrives until the end of the stream."""
    return b"".join(iter(lambda: sock.recv(1 << 18), b""))


def count_all(sock):
    """Return how many bytes arrive until the end of the stream."""
    return len(read_all(sock))


def waiting_for(event, peer=nothing):
    """Return a peer that does what another does, when the event is set."""

    def wait(sock):
        assert event.wait(PATIENCE)
        return peer(sock)

    return wait


def read_exactly(sock, size):
    data = bytearray()
    while len(data) < size:
        piece = sock.recv(size - len(data))
        assert piece, f"the stream ended after {len(data)} of {size} bytes"
        data += piece
    return bytes(data)


def exchange(sock, data):
    """Send the data, read as much meanwhile, and return it."""
    sender = Background(sock.sendall, data)
    received = read_exactly(sock, len(data))
    sender.result()
    return received


def read_up_to(sock, size):
    """Read as much and no more, or until the stream ends in whatever way."""
    try:
        while size and (data := sock.recv(min(size, 1 << 18))):
            size -= len(data)
    except ConnectionError:
        pass


def end_of(sock):
    """Read on; return how many bytes came, and the error with which the stream ended or None."""
    size = 0
    try:
        while True:
            data = sock.recv(1 << 18)
            if not data:
                return size, None
            size += len(data)
    except ConnectionError as error:
        return size, type(error)


def reset(sock):
    """Close the socket so that its peer gets all that was sent, and then a reset."""
    if sock.family != socket.AF_UNIX:
        # It sends at once what would wait for an acknowledgement (tcp(7)), and be lost.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def small_window(sock):
    """Let the socket's kernel keep little of what is not read, however fast it is read."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)


def segments_received(sock):
    """Return in how many segments the data came: tcpi_data_segs_in of Linux's struct tcp_info."""
    return struct.unpack_from("I", sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 192), 152)[
        0
    ]


def echo(stream, data):
    """Be a read_cb that sends back what it gets."""
    stream.write(data)


def tell(types, then=nothing):
    """Return an event_cb that notes the type of what it is told."""
    return lambda event: (types.append(type(event)), then())


# On the loop's side


def unread_size(stream):
    """Return how much input the kernel has for one of pyasync's."""
    return struct.unpack("i", fcntl.ioctl(stream.fileno(), termios.FIONREAD, bytes(4)))[0]


def small_buffers(stream):
    """Let the kernel keep little of what is sent, and nothing grow: see MORE_THAN_FITS."""
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 128 << 10)
    small_window(stream)


def after_iterations(count, fn):
    """Call the function when the loop has run so many times, and polled each time."""
    if count:
        pyasync.call_soon(lambda: after_iterations(count - 1, fn))
    else:
        fn()


def when(condition, fn):
    """Call the function in the iteration in which the condition holds."""
    if condition():
        fn()
    else:
        pyasync.call_soon(lambda: when(condition, fn))


# Connections


class Link:
    """One kind of connection: a socket of pyasync's in a loop, and a plain one, its peer.

    `incoming` says who connects. TLS and pipes differ from TCP in `listen`, `dial`, `serve` and
    `connect` alone.
    """

    def __init__(self, run, family, host, *, incoming, buffer_writes):
        self.family, self.host = family, host
        self.incoming, self.buffer_writes = incoming, buffer_writes
        self._run = run

    def __call__(
        self, connected, peer=nothing, *, event_cb=None, begin=None, made=nothing, **options
    ):
        """Call connected(socket) in a loop and peer(sock) in a thread; return what peer returns.

        The loop runs until the socket is closed. When the peer returns, its end is closed. The
        options are those of `tcp_server` and `tcp_connect`. Without an ``event_cb`` the test fails
        when an error is reported; a busy machine is none, so ``linger`` is long unless it is given.
        ``begin(go)`` may come first in the loop: it calls go().
        ``made(socket)`` is called with a client's socket before it is connected.
        """
        errors = []
        options.setdefault("read_cb", nothing)
        options.setdefault("linger", PATIENCE)
        options.update(connect_cb=connected, event_cb=event_cb or errors.append)
        threads = []

        def go():
            if self.incoming:
                threads.append(self._accept(peer, options))
            else:
                threads.append(self._connect(peer, options, made))

        try:
            self.run(lambda: begin(go) if begin else go())
        finally:
            results = [thread.result() for thread in threads]
        assert [error for error in errors if not isinstance(error, pyasync.SocketEOF)] == []
        return results[0]

    def run(self, start=None, **keywords):
        return self._run(start, buffer_writes=self.buffer_writes, **keywords)

    def _accept(self, peer, options):
        connected = options["connect_cb"]

        def connect_cb(stream):
            server.close()
            connected(stream)

        options["connect_cb"] = connect_cb
        server = self.serve(**options)
        return Background(self._talk, lambda: self.dial(server.address), peer)

    def _connect(self, peer, options, made):
        listener = self.listen()
        made(self.connect(listener.getsockname(), **options))
        return Background(self._talk, lambda: self.accept(listener), peer)

    @staticmethod
    def _talk(connect, peer):
        with connect() as sock:
            return peer(sock)

    # What each transport does in its own way

    def serve(self, **options):
        """Return a server of pyasync's."""
        return pyasync.tcp_server(self.host, 0, **options)

    def connect(self, address, **options):
        """Return a client of pyasync's."""
        return pyasync.tcp_connect(self.host, address[1], **options)

    def listen(self):
        """Return a plain listening socket."""
        listener = socket.socket(self.family, socket.SOCK_STREAM)
        listener.settimeout(PATIENCE)
        listener.bind((self.host, 0))
        listener.listen()
        return listener

    @staticmethod
    def accept(listener):
        with listener:
            sock, _ = listener.accept()
        sock.settimeout(PATIENCE)
        return sock

    def dial(self, address):
        """Return a plain socket, connected to a server of pyasync's."""
        with contextlib.ExitStack() as on_failure:
            sock = on_failure.enter_context(socket.socket(self.family, socket.SOCK_STREAM))
            sock.settimeout(PATIENCE)
            sock.connect(address)
            on_failure.pop_all()
        return sock

    @staticmethod
    def reset(sock):
        reset(sock)


class PipeLink(Link):
    """A Link over a pipe of an abstract name. A pipe has no resets: its peer sees an end."""

    def serve(self, **options):
        return pyasync.pipe_server(f"\0{uuid.uuid4()}", **options)

    def connect(self, address, **options):
        return pyasync.pipe_connect(address, **options)

    def listen(self):
        listener = socket.socket(self.family, socket.SOCK_STREAM)
        listener.settimeout(PATIENCE)
        listener.bind(f"\0{uuid.uuid4()}")
        listener.listen()
        return listener


def _links():
    """Return parameters of Link: each value of each meets each of every other, in four."""
    for name, family, host in [
        ("tcp4", socket.AF_INET, "127.0.0.1"),
        ("tcp6", socket.AF_INET6, "::1"),
    ]:
        for incoming in (True, False):
            buffer_writes = incoming == (name == "tcp4")
            yield pytest.param(
                {
                    "family": family,
                    "host": host,
                    "incoming": incoming,
                    "buffer_writes": buffer_writes,
                },
                id="-".join(
                    [
                        name,
                        "accepted" if incoming else "connected",
                        "buffered" if buffer_writes else "unbuffered",
                    ]
                ),
            )


LINKS = list(_links())
PIPE_LINKS = [
    pytest.param(
        {"kind": PipeLink, "family": socket.AF_UNIX, "host": None, "incoming": incoming,
         "buffer_writes": incoming},
        id="pipe-accepted-buffered" if incoming else "pipe-connected-unbuffered",
    )
    for incoming in (True, False)
]  # fmt: skip
#: For tests that take their time.
FEW_LINKS = LINKS[:2]
BUFFERED_LINKS = [link for link in LINKS if link.values[0]["buffer_writes"]]


def make_link(run, parameters):
    """Return the Link, or PipeLink, that the parameters of a fixture describe."""
    parameters = dict(parameters)
    return parameters.pop("kind", Link)(run, **parameters)


# Callbacks

#: The kinds of callbacks from within which a test can act: see `within`.
CALLBACKS = ["connect_cb", "read_cb", "write_cb", "event_cb", "pressure_cb", "timer", "call_soon"]


def within(link, kind, act, peer=nothing, **options):
    """Call act(socket) once, within a callback of that kind, over a link; peer(sock) follows.

    Returns what the peer returns. ``event_cb`` stands for the end of the stream, with
    ``allow_half_open``.
    """
    acted, errors = threading.Event(), []

    def once(socket, *args):
        if not acted.is_set():
            acted.set()
            act(socket)

    def connected(socket):
        small_buffers(socket)
        if kind == "connect_cb":
            once(socket)
        elif kind == "write_cb":
            socket.write(b"", write_cb=once)
        elif kind == "pressure_cb":
            socket.set_watermarks(0)
            socket.write(bytes(MORE_THAN_FITS))
        elif kind == "timer":
            pyasync.delay(lambda: once(socket), time=0.001)
        elif kind == "call_soon":
            pyasync.call_soon(lambda: once(socket))

    def provoke(sock):
        if kind == "read_cb":
            sock.sendall(b"!")
        elif kind == "event_cb":
            sock.shutdown(socket.SHUT_WR)
        elif kind == "pressure_cb":
            acted.wait(PATIENCE)  # what is read at once makes no pressure
            read_up_to(sock, MORE_THAN_FITS)
        return peer(sock)

    if kind == "read_cb":
        options["read_cb"] = first_then(once, options.get("read_cb", nothing))
    elif kind == "event_cb":
        options["event_cb"] = first_then(lambda event: once(event.socket), errors.append)
        options["allow_half_open"] = True
    elif kind == "pressure_cb":
        options["pressure_cb"] = once
    result = link(connected, provoke, **options)
    assert acted.is_set(), f"no {kind} was called"
    assert errors == []
    return result


def first_then(first, others):
    """Return a function that calls one function the first time, and another from then on."""
    functions = iter([first])
    return lambda *args: next(functions, others)(*args)
