"""What the system refuses: places in epoll, descriptors, threads. Nothing aborts, and all else
goes on.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from peers import preloaded, run_python

from pyasync import _libuv

#: Functions that refuse when they are told to, by refuse(which, error, skip, count): the calls
#: behind the first `skip` ones, `count` of them.
SYSTEM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

enum { EPOLL_ADD, SHUTDOWN, RECVMMSG, THREAD, MEMORY, FUNCTIONS };
static struct { int error, skip, count; } refusals[FUNCTIONS];

void refuse(int which, int error, int skip, int count) {
  refusals[which].error = error;
  refusals[which].skip = skip;
  refusals[which].count = count;
}

int left(int which) {
  return refusals[which].count;
}

static int refused(int which) {
  if (refusals[which].count == 0 || refusals[which].skip-- > 0)
    return 0;
  refusals[which].skip = 0;
  refusals[which].count--;
  errno = refusals[which].error;
  return 1;
}

#define NEXT(name) *(void **) &next = dlsym(RTLD_NEXT, name)

int epoll_ctl(int epoll, int op, int fd, struct epoll_event *event) {
  int (*next)(int, int, int, struct epoll_event *);

  NEXT("epoll_ctl");
  if (op == EPOLL_CTL_ADD && refused(EPOLL_ADD))
    return -1;
  return next(epoll, op, fd, event);
}

int shutdown(int fd, int how) {
  int (*next)(int, int);

  NEXT("shutdown");
  return refused(SHUTDOWN) ? -1 : next(fd, how);
}

int recvmmsg(int fd, struct mmsghdr *messages, unsigned number, int flags,
             struct timespec *timeout) {
  int (*next)(int, struct mmsghdr *, unsigned, int, struct timespec *);

  NEXT("recvmmsg");
  return refused(RECVMMSG) ? -1 : next(fd, messages, number, flags, timeout);
}

int pthread_create(pthread_t *thread, const pthread_attr_t *attributes,
                   void *(*start)(void *), void *arg) {
  int (*next)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);

  NEXT("pthread_create");
  return refused(THREAD) ? errno : next(thread, attributes, start, arg);
}
"""

#: The same for memory, of which only the extension gets none.
MEMORY = r"""
extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);

static int without_memory(void *caller) {
  Dl_info info;

  return refusals[MEMORY].count != 0 && dladdr(caller, &info) != 0 &&
         strstr(info.dli_fname, "_libuv") != NULL && refused(MEMORY);
}

void *malloc(size_t size) {
  return without_memory(__builtin_return_address(0)) ? NULL : __libc_malloc(size);
}

void *calloc(size_t count, size_t size) {
  return without_memory(__builtin_return_address(0)) ? NULL : __libc_calloc(count, size);
}

void *realloc(void *array, size_t size) {
  return without_memory(__builtin_return_address(0)) ? NULL : __libc_realloc(array, size);
}
"""

PROLOGUE = """
import ctypes, errno, os, socket, sys, tempfile, time
import pyasync

system = ctypes.CDLL(None)
EPOLL_ADD, SHUTDOWN, RECVMMSG, THREAD, MEMORY = range(5)
FOREVER = 1 << 30
told = []
nothing = lambda *args: None

def refuse(which, error, skip=0, count=1):
    system.refuse(which, error, skip, count)

def echo(stream, data):
    stream.write(data)

def dial(address):
    return socket.create_connection(address[:2], timeout=10)

def exchange(sock, then):
    # A client on the same loop: the program has one thread.
    sock.setblocking(False)
    sock.sendall(b"hello")
    def readable(*args):
        poller.close()
        assert sock.recv(5) == b"hello"
        then()
    poller = pyasync.poll(sock, readable, writable=False)

def must_raise(call):
    try:
        call()
    except OSError as error:
        assert error.errno == ERROR
    else:
        raise AssertionError("nothing was raised")

def wait(condition, then):
    if condition():
        then()
    else:
        pyasync.delay(lambda: wait(condition, then), time=0.001)
"""


#: Runs each program that is sent to it in a fork of its own, which spares the imports.
FORKS = (
    PROLOGUE
    + """
import json

for line in sys.stdin:
    program, output = json.loads(line)
    child = os.fork()
    if child == 0:
        with open(os.devnull) as null, open(output, "w") as file:
            os.dup2(null.fileno(), 0)
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        exec(program)
        sys.exit()
    print(os.waitpid(child, 0)[1], flush=True)
"""
)


@pytest.fixture(scope="module")
def short_of(tmp_path_factory):
    """Give a function that runs a program, with `refuse`, and fails if that prints anything."""
    source = SYSTEM
    if "asan" not in os.environ.get("LD_PRELOAD", ""):  # a sanitizer has its own malloc
        source += MEMORY
    folder = tmp_path_factory.mktemp("system")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    output = folder / "output"

    def run_program(program, **names):
        setting = "".join(f"{name} = {value!r}\n" for name, value in names.items())
        print(json.dumps([setting + program, str(output)]), file=forks.stdin, flush=True)
        status = forks.stdout.readline()
        assert (status, output.read_text()) == ("0\n", "")

    with subprocess.Popen(
        # Python 3.12 and later warn of forks beside the pool's threads.
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORKS],
        env=preloaded(folder, source),
        **pipes,
    ) as forks:
        yield run_program
        forks.stdin.close()
        assert forks.wait() == 0


# Places in epoll (epoll_ctl(2): ENOSPC, ENOMEM)

REFUSED_BY_EPOLL = {
    "an accepted connection": """
def start():
    global server
    server = pyasync.tcp_server("127.0.0.1", 0, echo, event_cb=told.append)
    before = dial(server.address)
    exchange(before, lambda: meet(before))

def meet(before):
    refuse(EPOLL_ADD, ERROR)
    refused = dial(server.address)
    wait(lambda: told, lambda: look(before, refused))

def look(before, refused):
    (error,) = told
    assert isinstance(error, pyasync.SocketError) and error.errno == ERROR, error
    assert isinstance(error.socket, pyasync.TcpSocket)
    assert refused.recv(1) == b""
    exchange(before, lambda: exchange(dial(server.address), pyasync.exit_event_loop))
""",
    "an accepted connection that has been answered": """
def start():
    global server
    server = pyasync.tcp_server("127.0.0.1", 0, answer, event_cb=told.append)
    sock = dial(server.address)
    sock.sendall(b"request")
    wait(lambda: told, lambda: look(sock))

def answer(stream, data):
    refuse(EPOLL_ADD, ERROR)
    stream.write(bytes(64 << 20), write_cb=told.append)  # more than the kernel takes

def look(sock):
    (error,) = told
    assert error.errno == ERROR, error
    exchange_again()

def exchange_again():
    server.close()
    other = pyasync.tcp_server("127.0.0.1", 0, echo)
    exchange(dial(other.address), pyasync.exit_event_loop)
""",
    "an accepted connection that closes": """
def start():
    global server
    server = pyasync.tcp_server("127.0.0.1", 0, answer, event_cb=told.append)
    sock = dial(server.address)
    sock.sendall(b"request")
    wait(lambda: told, pyasync.exit_event_loop)

def answer(stream, data):
    refuse(EPOLL_ADD, ERROR)
    stream.write(bytes(64 << 20))
    stream.close()
    # What is lost is told.
""",
    "a client": """
def start():
    refuse(EPOLL_ADD, ERROR)
    pyasync.tcp_connect(*listener.getsockname(), nothing, connect_cb=told.append,
                        event_cb=told.append)
    wait(lambda: told, again)

def again():
    assert told[0].errno == ERROR, told
    pyasync.tcp_connect(*listener.getsockname(), nothing, connect_cb=connected)

def connected(client):
    assert len(told) == 1, told
    client.close(force=True)

listener = socket.create_server(("127.0.0.1", 0))
""",
    "a client that is closed": """
def start():
    refuse(EPOLL_ADD, ERROR)
    client = pyasync.tcp_connect(*listener.getsockname(), nothing, data=b"lost",
                                 event_cb=told.append)
    client.close()

listener = socket.create_server(("127.0.0.1", 0))
""",
    "a server": """
def start():
    refuse(EPOLL_ADD, ERROR)
    must_raise(lambda: pyasync.tcp_server("127.0.0.1", 0, echo))
    refuse(EPOLL_ADD, ERROR, 1)  # behind libuv's own trial, in uv_poll_init
    global server
    server = pyasync.tcp_server("127.0.0.1", 0, echo, event_cb=told.append)
    wait(lambda: told, lambda: exchange(dial(server.address), pyasync.exit_event_loop))
""",
    "a poller": """
def start():
    refuse(EPOLL_ADD, ERROR)
    must_raise(lambda: pyasync.poll(ours, nothing))
    refuse(EPOLL_ADD, ERROR, 1)  # behind libuv's own trial, in uv_poll_init
    poller = pyasync.poll(ours, told.append, event_cb=told.append)
    wait(lambda: told, lambda: again(poller))

def again(poller):
    assert poller.closed
    pyasync.poll(ours, lambda *args: pyasync.exit_event_loop())

ours, theirs = socket.socketpair()
""",
    "a UDP socket": """
def start():
    global udp
    refuse(EPOLL_ADD, ERROR)
    udp = pyasync.udp_socket("127.0.0.1", 0, lambda *args: udp.close(), event_cb=told.append)
    udp.send(b"hello", udp.address)
""",
    "a monitor": """
def start():
    refuse(EPOLL_ADD, ERROR)
    must_raise(lambda: pyasync.fs_watch(directory, nothing))
    told.append(OSError(ERROR, ""))
    pyasync.fs_watch(directory, lambda *args: pyasync.exit_event_loop())
    open(os.path.join(directory, "file"), "w").close()

directory = tempfile.mkdtemp()
""",
    "a loop": """
def start():
    pyasync.delay(lambda: None, time=0.01)

pyasync.start_event_loop(start)
for number in range(4):
    before = os.listdir("/proc/self/fd")
    refuse(EPOLL_ADD, ERROR, number)
    must_raise(lambda: pyasync.start_event_loop(start))
    assert os.listdir("/proc/self/fd") == before
told.append(OSError(ERROR, ""))
""",
    "a child": """
def start():
    refuse(EPOLL_ADD, ERROR)  # the trial for the child's pidfd
    pyasync.spawn("/bin/sh", ["-c", "exit 3"], exit_cb=first_exited)

def first_exited(process, status, signo):
    assert status == 3
    refuse(EPOLL_ADD, ERROR, 1)  # the pidfd itself
    pyasync.spawn("/bin/sh", ["-c", "exit 4"], exit_cb=exited)

def exited(process, status, signo):
    assert status == 4
    told.append(OSError(ERROR, ""))
""",
    "a child's output": """
def start():
    refuse(EPOLL_ADD, ERROR, 1)  # behind the trial for the child's pidfd
    pyasync.spawn("/bin/cat", [], input=pyasync.PIPE, output=pyasync.StdioPipe(
        read_cb=nothing, event_cb=told.append))
    wait(lambda: told, pyasync.exit_event_loop)
""",
}


@pytest.mark.parametrize("error", ["ENOSPC", "ENOMEM"])
@pytest.mark.parametrize("what", REFUSED_BY_EPOLL)
def test_what_epoll_has_no_place_for_fails_alone(short_of, what, error):
    short_of(
        f"from errno import {error} as ERROR\n"
        + REFUSED_BY_EPOLL[what]
        + """
pyasync.start_event_loop(start)
assert [error.errno for error in told] == [ERROR], told
assert not system.left(EPOLL_ADD)
"""
    )


# A UDP socket whose reads fail


def test_an_error_of_receiving_that_stays_is_reported_ten_times_a_second(short_of):
    short_of("""
def start():
    global udp
    udp = pyasync.udp_socket("127.0.0.1", 0, lambda *args: got.append(args), event_cb=told.append)
    refuse(RECVMMSG, errno.ENOBUFS, 0, FOREVER)
    udp.send(b"hello", udp.address)
    pyasync.delay(look, time=1)

def look():
    assert 16 < len(told) <= 16 + 11, len(told)
    assert all(error.errno == errno.ENOBUFS for error in told)
    refuse(RECVMMSG, 0, 0, 0)
    wait(lambda: got, udp.close)

got = []
pyasync.start_event_loop(start)
assert [data for _, data, _ in got] == [b"hello"]
""")


# Descriptors for a loop


#: Makes loops with 0 to 9 descriptors left, in a fork each. Prints how many could not be made.
FEW_DESCRIPTORS = """
import errno, os, resource, sys
import pyasync

def start():
    pyasync.start_event_loop(lambda: pyasync.delay(lambda: ran.append(1)))

def take_all():
    taken = []
    try:
        while True:
            taken.append(os.dup(0))
    except OSError:
        return taken

def free(taken):
    for fd in taken:
        os.close(fd)

def attempt(left):
    raised = 0
    if WHICH == "later":
        start()
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
    held = take_all()
    free(held[:left])
    for _ in range(5):
        try:
            start()
        except OSError as error:
            assert error.errno == errno.EMFILE, error
            raised += 1
    if raised:
        taken = take_all()
        # libuv keeps the pipe of the process.
        assert len(taken) in (left, left - 2 if WHICH == "first" else left), taken
        free(taken)
    free(held[left:])
    ran.clear()
    start()
    assert ran == [1]
    return raised

ran = []
WHICH = sys.argv[1]
for left in range(10):
    child = os.fork()
    if child == 0:
        sys.exit(100 + attempt(left))
    print(os.waitpid(child, 0)[1] // 256 - 100, flush=True)
"""


@pytest.mark.parametrize("which", ["first", "later"])
def test_a_loop_without_descriptors_raises_and_leaves_none_open(which):
    """libuv aborts if it cannot open the pipe of the process with the first loop."""
    done = run_python("-c", FEW_DESCRIPTORS, which)
    assert (done.returncode, done.stderr) == (0, "")
    raised = [int(line) for line in done.stdout.split()]
    assert len(raised) == 10
    assert raised[0] == 5
    assert raised[-1] == 0
    assert raised == sorted(raised, reverse=True)


# Threads of libuv's pool

NO_THREADS = {
    "lookup": """
def act():
    pyasync.dns_lookup("localhost", nothing, event_cb=told.append)
""",
    "reverse lookup": """
def act():
    pyasync.reverse_dns_lookup("127.0.0.1", nothing, event_cb=told.append)
""",
    "client": """
def act():
    pyasync.tcp_connect("localhost", 1, nothing, event_cb=told.append)
""",
    "stat": """
def act():
    pyasync.fs.stat("/", nothing, event_cb=told.append)
""",
    "close": """
def act():
    global fd
    fd = os.open("/", os.O_RDONLY)
    pyasync.fs.close(fd, nothing, event_cb=told.append)
""",
}


@pytest.mark.parametrize("what", NO_THREADS)
def test_what_needs_a_thread_that_cannot_be_started_fails_alone(short_of, what):
    """A pids limit, for example. libuv aborts when it cannot start all threads of its pool."""
    short_of(
        NO_THREADS[what]
        + """
import encodings.idna

def start(number):
    refuse(THREAD, errno.EAGAIN, number)
    act()
    # When there are threads again, the next request gets them.
    wait(lambda: told, lambda: pyasync.fs.stat("/", done.append, event_cb=done.append))

done = []
pyasync.start_event_loop(lambda: start(NUMBER))
(error,) = told
if isinstance(error, pyasync.DnsError):
    assert error.errcode == -errno.EAGAIN, error
else:
    assert error.errno == errno.EAGAIN, error
assert done[0].st_mode
if WHAT == "close":
    try:
        os.fstat(fd)
    except OSError:
        pass
    else:
        raise AssertionError("it is open")
""",
        WHAT=what,
        NUMBER=list(NO_THREADS).index(what) % 4,  # the pool has four
    )


def test_the_pool_of_a_forks_child_is_tried_again(short_of):
    short_of("""
def stat(told):
    pyasync.start_event_loop(
        lambda: pyasync.fs.stat("/", lambda status: told.append(None), event_cb=told.append))

stat(told)
child = os.fork()
if child == 0:
    try:
        refuse(THREAD, errno.EAGAIN)
        stat(told)
        stat(told)
        assert told[0] is told[2] is None and told[1].errno == errno.EAGAIN, told
    except BaseException as error:
        print(repr(error), file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
""")


def test_without_threads_a_lookup_raises_under_a_limit_of_the_system(tmp_path):
    result = run_python("-c", """
import os, resource
import pyasync, encodings.idna

if os.geteuid() == 0:  # to whom the limit does not apply
    os.setgid(54322)
    os.setuid(54322)
resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
pyasync.start_event_loop(lambda: pyasync.dns_lookup("localhost", print, event_cb=print))
""", cwd="/")  # fmt: skip
    if "Operation not permitted" in result.stderr:
        pytest.skip("may not become another user")
    assert (result.returncode, result.stderr) == (0, "")
    assert "Resource temporarily unavailable: localhost" in result.stdout


# A half-close that fails


@pytest.mark.parametrize("reading", [True, False])
def test_a_half_close_that_fails_is_reported(short_of, reading):
    """Else the peer would wait for the end, and nobody would know."""
    short_of(
        """
def start():
    global server
    server = pyasync.tcp_server("127.0.0.1", 0, nothing, connect_cb=connected,
                                event_cb=told.append, allow_half_open=True)
    sock = dial(server.address)
    wait(lambda: told, lambda: look(sock))

def connected(stream):
    server.close()
    refuse(SHUTDOWN, errno.EIO)
    if not READING:
        stream.disable(read=True)
    stream.write(b"hello")
    stream.shutdown()

def look(sock):
    assert sock.recv(5) == b"hello"
    (error,) = told
    assert error.errno == errno.EIO, error

pyasync.start_event_loop(start)
""",
        READING=reading,
    )


def test_data_comes_before_the_error_of_a_half_close(short_of):
    short_of("""
def start():
    global server, sock
    server = pyasync.tcp_server("127.0.0.1", 0, told.append2, connect_cb=connected,
                                event_cb=told.append, allow_half_open=True)
    sock = dial(server.address)

def connected(stream):
    server.close()
    pyasync.delay(lambda: half_close(stream), time=0.01)

def half_close(stream):
    refuse(SHUTDOWN, errno.EIO)
    sock.sendall(b"data")
    stream.shutdown()

class Told(list):
    def append2(self, stream, data):
        self.append(data)

told = Told()
pyasync.start_event_loop(start)
data, error = told
assert data == b"data" and error.errno == errno.EIO, told
""")


# Memory


@pytest.mark.skipif(
    "asan" in os.environ.get("LD_PRELOAD", ""), reason="a sanitizer has its own malloc"
)
@pytest.mark.skipif(
    b"libuv.so" not in Path(_libuv.__file__).read_bytes(),
    reason="the extension has libuv inside, which cannot do without memory",
)
@pytest.mark.parametrize(
    "calls",
    [
        "pyasync.start_event_loop(lambda: None)",
        "in_loop(lambda: pyasync.udp_socket('127.0.0.1', 0, nothing).close())",
        "in_loop(lambda: pyasync.tcp_server('127.0.0.1', 0, nothing).close())",
        "in_loop(lambda: pyasync.idle(nothing).close())",
        "in_loop(lambda: pyasync.poll(pair[0], nothing).close())",
        "in_loop(lambda: pyasync.signal_handler(10, nothing).close())",
        "in_loop(lambda: pyasync.fs_watch('/', nothing).close())",
        "in_loop(lambda: pyasync.spawn('/bin/true', []))",
        "in_loop(lambda: pyasync.spawn('/bin/cat', [], output=pyasync.PIPE).kill(9))",
        "in_loop(lambda: pyasync.fs.stat('/', nothing, event_cb=told.append))",
        "in_loop(lambda: pyasync.fs.scandir('/', nothing, event_cb=told.append))",
        "in_loop(lambda: pyasync.fs.read(zero, 9, nothing, event_cb=told.append))",
        "in_loop(lambda: pyasync.fs.close(os.dup(zero), nothing, event_cb=told.append))",
        "in_loop(lambda: pyasync.dns_lookup('localhost', nothing, event_cb=told.append))",
        "in_loop(lambda: pyasync.reverse_dns_lookup('127.0.0.1', nothing, event_cb=told.append))",
        "in_loop(lambda: pyasync.tcp_connect(*listener.getsockname(), nothing, data=b'x', "
        "event_cb=told.append).close())",
        "in_loop(half_close)",
        "in_loop(blocked_close)",
        "in_loop(many_writes)",
        "in_loop(many_connections)",
    ],
)
def test_without_memory_a_call_fails_alone(short_of, calls):
    """The first allocation of the extension fails, then the second, until none does."""
    short_of(
        """
import encodings.idna

pair = socket.socketpair()
zero = os.open("/dev/zero", os.O_RDONLY)
listener = socket.create_server(("127.0.0.1", 0))

def in_loop(start):
    # What the loop itself needs is there already.
    def begin():
        refuse(MEMORY, errno.ENOMEM, number)
        try:
            start()
        finally:
            pyasync.delay(lambda: None, time=0.001)
    pyasync.start_event_loop(begin)

def half_close():
    pyasync.tcp_connect(*listener.getsockname(), nothing, event_cb=told.append,
                        connect_cb=lambda client: (client.shutdown(), client.close(force=True)))

def blocked_close():
    client = pyasync.tcp_connect(*listener.getsockname(), nothing, event_cb=told.append,
                                 connect_cb=lambda client: close(client), linger=0.01)

def close(client):
    client.write(bytes(8 << 20))
    client.close()

def many_writes():
    client = pyasync.tcp_connect(*listener.getsockname(), nothing, event_cb=told.append,
                                 connect_cb=lambda client: write(client))

def write(client):
    for number in range(200):
        client.write(b"x", write_cb=written.append)
    client.close()
    accepted = listener.accept()[0]
    reader = pyasync.poll(accepted, lambda *args: read(accepted, reader), writable=False)

def read(accepted, reader):
    data = accepted.recv(1000)
    received.extend(data)
    if not data:
        reader.close()

def many_connections():
    server = pyasync.tcp_server("127.0.0.1", 0, echo, event_cb=told.append)
    clients = [dial(server.address) for _ in range(70)]
    for client in clients:
        client.sendall(b"hello")
        client.setblocking(False)
    wait(lambda: pyasync.stats().accepted == 70 or told, lambda: (server.close(),
         pyasync.exit_event_loop()))

written, received = [], bytearray()
pyasync.start_event_loop(lambda: None)
for number in range(300):
    told.clear()
    while True:
        try:
            listener.setblocking(False)
            listener.accept()[0].close()
        except BlockingIOError:
            listener.setblocking(True)
            break
    written.clear()
    received.clear()
    refuse(MEMORY, errno.ENOMEM, number)
    try:
        eval(CALLS)
    except OSError as error:
        assert error.errno == errno.ENOMEM, error
    for error in told:
        if isinstance(error, (pyasync.SocketEOF, pyasync.SocketReset)):
            continue  # the test's clients leave
        assert -errno.ENOMEM in (-(error.errno or 0), error.errcode) or isinstance(
            error, (pyasync.DnsError, pyasync.SocketTimeout)), error
    if "many_writes" in CALLS and written:
        assert len(written) == len(received) == 200, (number, len(written), len(received))
    if system.left(MEMORY):
        break
    system.refuse(MEMORY, 0, 0, 0)
else:
    raise AssertionError("it never came to an end")
refuse(MEMORY, 0, 0, 0)
""",
        CALLS=calls,
    )
