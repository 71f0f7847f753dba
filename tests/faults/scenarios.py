"""What is done while a fault is injected, and which faults real kernels give.

A scenario makes its calls, and returns a function that tells whether all of it has been achieved,
the data compared. Its `Case` collects the errors that were raised or reported.
"""

import contextlib
import errno
import os
import signal
import socket
import ssl
import threading

from tls_peers import client_context, server_context

import pyasync
from pyasync import fs

HOST = "127.0.0.1"
DATA = os.urandom(100 << 10)
BULK = os.urandom(8 << 20)
PATIENCE = 10


class Case:
    """A scenario under way: its handles, its errors, and its peers in threads."""

    def __init__(self, folder):
        self.folder = folder
        self.errors, self.opened, self.threads, self.sockets = [], [], [], []

    def own(self, handle):
        self.opened.append(handle)
        return handle

    def event(self, event):
        """Serve as an ``event_cb``, and as ``catch_app_errors``."""
        if not isinstance(event, pyasync.SocketEOF):
            self.errors.append(f"{type(event).__name__}: {event}")

    def peer(self, fn, *args):
        """Run ``fn(*args)`` in a thread; its result is appended to the list that this returns."""
        results = []

        def run():
            try:
                results.append(fn(*args))
            except OSError as error:  # the connection's end is ours to report, not the peer's
                results.append(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        self.threads.append(thread)
        return results

    def listen(self, talk, family=socket.AF_INET, address=(HOST, 0)):
        """Return the address of a plain listening socket; ``talk(sock)`` gets its connection."""
        listener = socket.socket(family)
        listener.settimeout(PATIENCE)
        listener.bind(address)
        listener.listen()
        self.sockets.append(listener)
        self.peer(lambda: talk(self.adopt(listener.accept()[0])))
        return listener.getsockname()

    def adopt(self, sock):
        sock.settimeout(PATIENCE)
        self.sockets.append(sock)
        return sock

    def dial(self, family, address):
        sock = self.adopt(socket.socket(family))
        sock.connect(address)
        return sock

    def close(self):
        """Close what is open still; the loop must have nothing left of it."""
        for handle in self.opened:
            if isinstance(handle, (pyasync.TcpSocket, pyasync.PipeSocket)):
                handle.close(force=True)
            else:
                handle.close()

    def join(self):
        for sock in self.sockets:
            try:
                sock.shutdown(socket.SHUT_RDWR)  # ends the call that a thread is in
            except OSError:
                pass
        for thread in self.threads:
            thread.join(PATIENCE)
        for sock in self.sockets:
            sock.close()
        return not any(thread.is_alive() for thread in self.threads)


def exchange(sock):
    """Send the data, read what comes back until the end, and return it."""
    sock.sendall(DATA)
    sock.shutdown(socket.SHUT_WR)
    return read_all(sock)


def read_all(sock):
    parts = []
    with sock:  # a close that lingers waits for the peer's
        while part := sock.recv(1 << 16):
            parts.append(part)
    return b"".join(parts)


def echo(sock):
    with sock:
        while data := sock.recv(1 << 16):
            sock.sendall(data)


def send_back(sock, data):
    sock.write(data)


# Scenarios


def first_loop(case):
    fired = []
    pyasync.delay(lambda: fired.append(1), time=0.001)
    return lambda: fired


def tcp_accept(case):
    server = case.own(pyasync.tcp_server(HOST, 0, send_back, event_cb=case.event))
    got = case.peer(lambda: exchange(case.dial(socket.AF_INET, server.address)))
    return lambda: got == [DATA]


def pipe_accept(case):
    path = os.path.join(case.folder, "pipe")
    case.own(pyasync.pipe_server(path, send_back, event_cb=case.event))
    got = case.peer(lambda: exchange(case.dial(socket.AF_UNIX, path)))
    return lambda: got == [DATA]


def connected(case, connect, *where, **options):
    received = []
    sock = connect(
        *where,
        lambda sock, data: received.append(data),
        event_cb=case.event,
        connect_cb=lambda sock: sock.write(DATA) or sock.shutdown(),
        **options,
    )
    case.own(sock)
    return lambda: b"".join(received) == DATA


def tcp_connect(case):
    return connected(case, pyasync.tcp_connect, HOST, case.listen(echo)[1])


def tcp_connect_from(case):
    port = case.listen(echo)[1]
    return connected(case, pyasync.tcp_connect, HOST, port, local_address=HOST)


def tcp_connect_by_name(case):
    return connected(case, pyasync.tcp_connect, "localhost", case.listen(echo)[1])


def pipe_connect(case):
    address = case.listen(echo, socket.AF_UNIX, os.path.join(case.folder, "pipe"))
    return connected(case, pyasync.pipe_connect, address)


def tls_accept(case):
    def talk():
        sock = case.dial(socket.AF_INET, server.address)
        try:
            with client_context().wrap_socket(sock, server_hostname="localhost") as tls:
                tls.sendall(DATA)
                parts = b""
                while len(parts) < len(DATA) and (part := tls.recv(1 << 16)):
                    parts += part
                tls.unwrap()
                return parts
        except ssl.SSLError as error:
            return error

    server = case.own(
        pyasync.tcp_ssl_server(
            HOST, 0, send_back, ssl_context=server_context(), event_cb=case.event
        )
    )
    got = case.peer(talk)
    return lambda: got == [DATA]


def blocked_write(case):
    written = []

    def connect_cb(sock):
        for part in range(0, len(BULK), 1 << 20):
            sock.write(BULK, start=part, end=part + (1 << 20), write_cb=written.append)
        sock.close()

    server = case.own(
        pyasync.tcp_server(HOST, 0, send_back, connect_cb=connect_cb, event_cb=case.event)
    )
    got = case.peer(lambda: read_all(case.dial(socket.AF_INET, server.address)))
    return lambda: got == [BULK] and len(written) == 8


def udp(case):
    answers = []
    server = case.own(
        pyasync.udp_socket(
            HOST, 0, lambda sock, data, address: sock.send(data, address), event_cb=case.event
        )
    )
    client = case.own(
        pyasync.udp_socket(
            HOST, 0, lambda sock, data, address: answers.append(data), event_cb=case.event
        )
    )
    for number in range(30):
        client.send(b"%d" % number, server.address)
    return lambda: sorted(answers) == sorted(b"%d" % number for number in range(30))


def threads(case):
    called = []
    notifier = case.own(pyasync.make_notifier(lambda: called.append("notifier")))
    pyasync.work(lambda: 1, lambda result: called.append("work"), event_cb=case.event)
    loop = pyasync.current_loop()
    case.peer(lambda: [notifier.trigger(), loop.call_threadsafe(lambda: called.append("call"))])
    return lambda: sorted(called) == ["call", "notifier", "work"]


def signals(case):
    got = []

    def on_signal(signo):
        got.append(signo)
        handler.close()

    handler = case.own(pyasync.signal_handler(signal.SIGUSR1, on_signal, event_cb=case.event))
    os.kill(os.getpid(), signal.SIGUSR1)
    return lambda: got == [signal.SIGUSR1]


def spawn(case):
    output, exits = [], []

    def exited(process, status, signo):
        exits.append((status, signo))
        if status == 255:  # nobody knows it, because somebody else has reaped the child
            case.errors.append("the exit status is lost")

    # The program's end comes with that of its input: it ends also where something has failed.
    process = pyasync.spawn(
        "cat",
        [],
        input=pyasync.PIPE,
        output=pyasync.StdioPipe(
            read_cb=lambda sock, data: output.append(data), event_cb=case.event
        ),
        event_cb=case.event,
        exit_cb=exited,
    )
    case.own(process)
    case.own(process.input)
    case.own(process.output)
    process.input.write(DATA, event_cb=case.event)
    process.input.close()
    return lambda: b"".join(output) == DATA and exits == [(0, 0)]


def files(case):
    steps, options = [], {"event_cb": case.event}
    path = os.path.join(case.folder, "files")

    def made(folder):
        steps.append(folder)
        fs.open(folder + "/a", os.O_RDWR | os.O_CREAT, opened, **options)

    def opened(fd):
        steps.append(fd)
        fs.write(
            fd, DATA, lambda size: fs.read(fd, len(DATA), read, offset=0, **options), **options
        )

    def read(data):
        steps.append(data == DATA)
        fs.fstat(steps[1], sized, **options)

    def sized(found):  # before anything that ends in a close: requests may overtake each other
        steps.append(found.st_size)
        fs.stat(steps[0], close, **options)

    def close(found):
        fs.close(steps[1], closed, **options)
        steps[1] = True  # the descriptor is pyasync's to close now

    def closed():
        fs.rename(steps[0] + "/a", steps[0] + "/b", renamed, **options)

    def renamed():
        fs.scandir(steps[0], listed, **options)

    def listed(entries):
        steps.append([entry.name for entry in entries])
        fs.unlink(steps[0] + "/b", lambda: fs.rmdir(steps[0], lambda: steps.append("end")))

    class Descriptor:
        """The file, if a failed step has left it open."""

        @staticmethod
        def close():
            if len(steps) > 1 and steps[1] is not True:
                with contextlib.suppress(OSError):  # the step that failed was to close it
                    os.close(steps[1])

    case.own(Descriptor)
    fs.mkdtemp(path + "XXXXXX", made, **options)
    return lambda: steps[2:] == [True, len(DATA), ["b"], "end"]


def whole_files(case):
    steps, options = [], {"event_cb": case.event}
    path = os.path.join(case.folder, "whole")

    def do(number):
        """Begin a step, whose callback begins the next."""
        function, *arguments = calls[number]
        function(*arguments, lambda *result: done(number, *result), **options)

    def done(number, *result):
        steps.append(result)
        if number + 1 < len(calls):
            do(number + 1)

    calls = [
        (fs.write_file, path, DATA),
        (fs.chmod, path, 0o600),
        (fs.utime, path, 1, 2),
        (fs.access, path, os.R_OK),
        (fs.copyfile, path, path + "2"),
        (fs.link, path, path + "3"),
        (fs.symlink, "whole", path + "4"),
        (fs.realpath, path + "4"),
        (fs.read_file, path + "2"),
    ]
    do(0)
    end = (os.path.realpath(path),), (DATA,)
    return lambda: (*steps[-2:],) == end and steps[:-2] == [()] * 7


def lookups(case):
    found = []
    pyasync.dns_lookup_all("localhost", found.append, event_cb=case.event)
    pyasync.reverse_dns_lookup(HOST, lambda *name: found.append(name), event_cb=case.event)
    return lambda: len(found) == 2


def watch(case):
    names = []

    def changed(monitor, filename, renamed, changed):
        names.append(filename)

    case.own(pyasync.fs_watch(case.folder, changed, event_cb=case.event))
    with open(os.path.join(case.folder, "new"), "w"):
        pass
    return lambda: "new" in names


def pollers(case):
    ours, theirs = socket.socketpair()
    case.sockets += [ours, theirs]
    called = []
    theirs.send(b"!")
    case.own(pyasync.poll(ours.fileno(), lambda *how: called.append("poll"), event_cb=case.event))
    case.own(pyasync.idle(lambda: called.append("idle")))
    return lambda: {"poll", "idle"} <= set(called)


def descriptors(case):
    """Read a pipe, and write to a socket: one is opened again, and the other shared."""
    reader, writer = os.pipe()
    os.write(writer, DATA[:1000])
    os.close(writer)
    ours, theirs = socket.socketpair()
    case.sockets += [ours, theirs]
    read = []
    try:
        case.own(
            pyasync.open_stream(reader, lambda _, data: read.append(data), event_cb=case.event)
        )
    finally:
        os.close(reader)
    output = case.own(pyasync.open_stream(ours, None, event_cb=case.event))
    output.write(DATA[:1000])
    output.close()
    return lambda: (
        b"".join(read) == DATA[:1000] == theirs.recv(1000) and os.get_blocking(ours.fileno())
    )


SCENARIOS = [
    first_loop, tcp_accept, pipe_accept, tcp_connect, tcp_connect_from, tcp_connect_by_name,
    pipe_connect, tls_accept, blocked_write, udp, threads, signals, spawn, files, whole_files,
    lookups, watch,
    pollers, descriptors,
]  # fmt: skip

# Faults

#: Errors of shortage: they may last, so that the calls after the n-th fail as well. Not ENOBUFS:
#: libuv takes it for EAGAIN and tries again, as a network driver has room again in a moment.
SHORTAGE = {"EMFILE", "ENFILE", "ENOMEM", "ENOSPC", "EDQUOT"}

_DESCRIPTOR = "EMFILE ENFILE ENOMEM"
_READ = "EINTR ECONNRESET ETIMEDOUT EHOSTUNREACH ENOMEM"
_WRITE = "EINTR EAGAIN EPIPE ECONNRESET ENOBUFS ENOMEM EHOSTUNREACH"
_DATAGRAM = "EINTR EAGAIN ENOBUFS ENOMEM EPERM ECONNREFUSED EMSGSIZE ENETUNREACH"
_PATH = "EACCES ENOENT ENOMEM EIO"

#: Each function, with the errors that Linux gives, by its manual and by the kernel's source.
FAULTS = {
    **dict.fromkeys(["malloc", "calloc", "realloc"], "ENOMEM"),
    "read": _READ,
    **dict.fromkeys(["read_file", "readv"], "EINTR EIO"),
    **dict.fromkeys(["read_internal", "write_internal"], "EINTR"),
    **dict.fromkeys(["write_file", "writev_file"], "EINTR EIO ENOSPC EDQUOT"),
    **dict.fromkeys(["write", "writev", "sendmsg"], _WRITE),
    **dict.fromkeys(["pread", "pread64"], "EINTR EIO"),
    "pwrite64": "EINTR EIO ENOSPC EDQUOT",
    **dict.fromkeys(["sendto", "sendmmsg"], _DATAGRAM),
    **dict.fromkeys(["recvmsg", "recvmmsg"], "EINTR ECONNREFUSED ENOMEM"),
    "accept4": f"{_DESCRIPTOR} ENOBUFS ECONNABORTED EINTR EPERM EPROTO EAGAIN",
    "socket": f"{_DESCRIPTOR} ENOBUFS EACCES EAFNOSUPPORT",
    "bind": "EADDRINUSE EADDRNOTAVAIL EACCES ENOMEM",
    "listen": "EADDRINUSE",
    "connect": "ECONNREFUSED ENETUNREACH EADDRNOTAVAIL EACCES EPERM EINTR EAGAIN ETIMEDOUT",
    "shutdown": "ENOTCONN",
    "setsockopt": "ENOMEM ENOBUFS EINVAL ENOPROTOOPT EPERM",
    "getsockopt": "ENOBUFS",
    "getsockname": "ENOBUFS",
    "getpeername": "ENOTCONN",
    **dict.fromkeys(["fcntl", "fcntl64"], "EMFILE"),
    **dict.fromkeys(["dup", "eventfd", "epoll_create1"], _DESCRIPTOR),
    "dup3": "EMFILE EINTR",
    "pipe2": "EMFILE ENFILE",
    "epoll_ctl": "ENOSPC ENOMEM",
    **dict.fromkeys(["epoll_pwait", "epoll_wait"], "EINTR"),
    "poll": "EINTR ENOMEM",
    "inotify_init1": _DESCRIPTOR,
    "inotify_add_watch": "ENOSPC ENOMEM EACCES ENOENT",
    "fork": "EAGAIN ENOMEM",
    "waitpid": "EINTR ECHILD",
    "kill": "EPERM ESRCH",
    **dict.fromkeys(["open", "open64"], f"{_DESCRIPTOR} {_PATH} EINTR ENOSPC"),
    **dict.fromkeys(["stat", "stat64", "lstat64", "fstat64", "readlink", "realpath"], _PATH),
    **dict.fromkeys(["access", "chmod", "link", "symlink", "utimensat"], f"{_PATH} EROFS"),
    **dict.fromkeys(["scandir64", "opendir"], f"{_PATH} EMFILE"),
    **dict.fromkeys(["mkdir", "mkdtemp"], f"{_PATH} ENOSPC EDQUOT EROFS"),
    **dict.fromkeys(["rmdir", "rename", "unlink"], f"{_PATH} EROFS EBUSY"),
    "fsync": "EIO ENOSPC",
    **dict.fromkeys(["sendfile", "sendfile64", "copy_file_range"], "EINTR EIO ENOMEM"),
    "getifaddrs": "ENOMEM EMFILE",
    "close": "EINTR EIO",
    "syscall": "ENOSYS",  # statx and others of newer kernels: seccomp of old containers
    "pthread_create": "EAGAIN",
}

#: Functions that return an error of their own, in place of errno.
CODES = {
    "getaddrinfo": {
        name: getattr(socket, name) for name in ("EAI_AGAIN", "EAI_FAIL", "EAI_MEMORY")
    },
    "getnameinfo": {name: getattr(socket, name) for name in ("EAI_AGAIN", "EAI_MEMORY")},
}

#: What no kernel gives, and is not injected.
IMPOSSIBLE = {
    "ioctl(FIONBIO, FIOCLEX, FIONREAD, SIOCOUTQ)": "fails only where the descriptor is no socket",
    "isatty, tcgetattr, tcsetattr, ttyname_r, fstatfs": "fail only where there is no terminal, or"
    " EBADF",
    "fcntl(F_GETFL, F_SETFL, F_GETFD, F_SETFD)": "fails only for EBADF, or flags that we never set",
    "epoll_ctl(EPOLL_CTL_DEL, EPOLL_CTL_MOD)": "need no memory, nor does an addition of what is"
    " there already; libuv calls abort() if they fail",
    "epoll_wait": "other than EINTR it fails only for wrong arguments",
    "sigaction, pthread_sigmask, sigprocmask": "fail only for numbers that are no signals",
    "pthread_mutex_*, pthread_cond_*, sem_*": "fail only where they are misused",
    "clock_gettime": "CLOCK_MONOTONIC is always there",
    "EBADF, EFAULT, ENOTSOCK, EINVAL": "faults of a program, and not of a system, but for the"
    " EINVAL of setsockopt, which TCP gives after a reset",
    "close: EBADF": "the same; EIO and EINTR close the descriptor all the same",
    "read_internal, write_internal: all but EINTR": "both ends of these pipes and eventfds are"
    " ours, and a byte always fits",
}


def errors_of(function):
    """Return the errors that a function may give: number by name."""
    if function in CODES:
        return CODES[function]
    return {name: getattr(errno, name) for name in FAULTS[function].split()}
