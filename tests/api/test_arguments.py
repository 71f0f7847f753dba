"""Wrong arguments: each is refused at the call, and opens nothing.

The error names the argument, and says what is allowed and what was given.
"""

import inspect
import os
import pathlib
import re
import signal
import socket
import ssl
from decimal import Decimal
from functools import partial
from unittest import mock

import pytest
from peers import LINKS, PIPE_LINKS, make_link, nothing, read_all
from tls_peers import CLIENT, SERVER, TLS_LINKS, certificate

import pyasync
import pyasync.aio
from pyasync import fs
from pyasync._core.arguments import shown

HOST = "127.0.0.1"
NAN, INFINITE, HUGE = float("nan"), float("inf"), 10**5000


class Kind:
    """What a parameter of one kind refuses: values of wrong types, wrong values, maybe None."""

    def __init__(self, types=(), values=(), *, none=False, other=()):
        self.types, self.values, self.none, self.other = [*types], [*values], none, dict(other)

    def also(self, *values):
        """Return the kind that refuses these values as well."""
        return Kind(self.types, [*self.values, *values], none=self.none, other=self.other)

    def wrong(self, parameter):
        """Yield each error, and a value for which it is raised."""
        none = [] if self.none or parameter.default is None else [None]
        errors = {TypeError: [*self.types, *none], ValueError: self.values, **self.other}
        return [(error, value) for error, values in errors.items() for value in values]


class Part:
    """A wrong value of which the message shows a part."""

    def __init__(self, value, part):
        self.value, self.part = value, part


class Made(partial):
    """An argument that is made in the loop."""


class Odd:
    def fileno(self):
        return "3"


# Functions that have the parameter in another place


def call_threadsafe(fn):
    pyasync.current_loop().call_threadsafe(fn)


def with_tls(function, context):
    """Return the function, with a context that is right; it is made when it is called."""

    def call(**arguments):
        function(**{"ssl_context": context(), **arguments})

    call.__signature__, call.__name__ = inspect.signature(function), function.__name__
    call.__qualname__ = function.__qualname__
    return call


def setting(cls, name):
    """Return a function that sets a property of the class."""

    def set_property(self, **value):
        setattr(self, name, value[name])

    parameters = [inspect.Parameter(each, inspect.Parameter.POSITIONAL_OR_KEYWORD)
                  for each in ("self", name)]  # fmt: skip
    set_property.__signature__ = inspect.Signature(parameters)
    set_property.__qualname__ = getattr(cls, name).fset.__qualname__
    return set_property


def outside(function):
    """Return a function that starts a loop in no loop."""

    def call(**arguments):
        current, pyasync.loop.current.loop = pyasync.loop.current.loop, None
        try:
            with function(**arguments):
                pass
        finally:
            pyasync.loop.current.loop = current

    call.__signature__, call.__qualname__ = inspect.signature(function), function.__qualname__
    return call


async def an_async_function(*arguments):
    """It may go nowhere where a callback goes."""


# The kinds, by the names of the parameters: one name has one meaning, but for those in OTHERS.

# fmt: off
FUNCTION = Kind([5, "echo", an_async_function])
FLAG = Kind(["no", 1.5, [], 2, -1])
TIME = Kind(["1", b"1", [], 1j, Decimal(1), nothing],
            [-1, -0.001, NAN, INFINITE, -INFINITE, 1e300, HUGE])
EPOCH = Kind(TIME.types, [NAN, INFINITE, -INFINITE, 1e300, HUGE])
LIMIT = Kind(TIME.types, [0, *TIME.values], none=True)
TEXT = Kind([5, b"text", []], ["a\0b", "\udc80"])
ADDRESS_TEXT = TEXT.also("name", "127.0.0.1.5", "")
PATH = Kind([5, [], 1.5], ["a\0b", b"a\0b", pathlib.Path("a\0b"), "\ud800"])
DATA = Kind([5, 1.5, [], object(), {"a": 1}], ["\udc80"])
OBJECT = Kind([5, "handle", nothing])
NOT_AN_INTEGER = ["1", 1.5, NAN, [], True]


def integer(least, most, **others):
    return Kind(NOT_AN_INTEGER, [least - 1, most + 1, HUGE], **others)


FD = Kind(["1", 1.5, [], True, Odd()], [-1, -(2**40), 2**31, HUGE])
OFFSET = integer(0, 2**63 - 1)
PORT = integer(0, 65535)

KINDS = {
    **dict.fromkeys(["fn", "start_fn", "callback", "read_cb", "connect_cb", "write_cb", "event_cb",
                     "pressure_cb", "resolve_cb", "exit_cb", "close_cb"], FUNCTION),
    **dict.fromkeys(["stream", "reuse_port", "allow_half_open", "drain_read_buffer", "broadcast",
                     "readable", "writable", "single_shot", "detached", "server_side", "nodelay",
                     "multicast_loop", "send_errors_to_event_cb", "buffer_writes"], FLAG),
    **dict.fromkeys(["read_timeout", "write_timeout", "connect_timeout", "handshake_timeout",
                     "shutdown_timeout", "slow_callback_threshold"], LIMIT),
    **dict.fromkeys(["socket", "monitor", "idler", "notifier", "poller", "process", "ssl_context",
                     "session", "selector"], OBJECT),
    "time": TIME, "seconds": TIME, "linger": Kind(TIME.types, TIME.values, none=True),
    "context": Kind([5, "context", {}, nothing], none=True),
    "catch_app_errors": Kind([5, "yes", []]), "file": Kind([5, "path"]),
    "bind_address": Kind(TEXT.types, TEXT.values, none=True),
    "host": TEXT, "port": PORT, "ip": ADDRESS_TEXT.also("localhost", "[::1]"),
    "backlog": integer(0, 2**31 - 1), "max_connections": integer(1, 2**31 - 1),
    "data": DATA, "received": Kind([5, "text", []]),
    "local_address": Kind(
        [5, b"127.0.0.1", (HOST,), ("::1", 0, 0, 0), Part((HOST, "port"), "port")],
        ["localhost", "127.0.0.1\0", Part((HOST, -1), -1), Part((HOST, 65536), 65536)]),
    "server_hostname": TEXT,
    "name": Kind([7, []],
                 ["x" * 108, b"x" * 108, pathlib.Path("x" * 200), "\0" + "x" * 107, "", b"",
                  "a\0b", b"a\0b", "\ud800", "\N{EURO SIGN}" * 36]),  # each has three bytes
    "fd": FD, "in_fd": FD, "out_fd": FD,
    "family": Kind(["AF_INET", 1.5, []], [1, 99, -1, HUGE]),
    "path": PATH, "new_path": PATH, "working_directory": PATH, "target": PATH,
    "atime": EPOCH, "mtime": EPOCH, "exclusive": FLAG,
    "template": PATH.also("", "name", "XXXXX", "XXXXXXx", b"\0XXXXXX"),
    "args": Kind([5, "-c", b"-c", Part([1], 1), Part(["a", None], None)], [Part(["\0"], "\0")]),
    "env": Kind([5, [("A", "b")], Part({"A": 1}, 1), Part({1: "a"}, 1)],
                [Part({"A=": "b"}, b"A="), Part({"": "b"}, b""), Part({"A": "\0"}, "\0")]),
    "uid": integer(0, 2**32 - 2), "gid": integer(0, 2**32 - 2),
    **dict.fromkeys(["input", "output", "error_output"],
                    Kind(["PIPE", True, 1.5, [], Odd()], [-1, 2**31, HUGE])),
    "signo": integer(1, signal.NSIG - 1), "number": integer(1, 1 << 22),
    "flags": integer(0, 2**31 - 1), "mode": integer(0, 0o7777),
    "n": integer(0, 2**63 - 1), "limit": Kind(NOT_AN_INTEGER, [-1, HUGE], none=True),
    "separator": Kind([5, "text", []], [b"", bytearray()]),
    "size": OFFSET, "offset": OFFSET, "count": OFFSET,
    "start": Kind(["1", 1.5, True], [-1, 5, HUGE], none=True), "end": integer(0, 2**63 - 1),
    "high": integer(0, 2**63 - 1), "low": integer(0, 65536),
    "level": integer(-(2**31), 2**31 - 1), "option": integer(-(2**31), 2**31 - 1),
    "buflen": integer(0, 1024), "value": Kind(["1", 1.5, []], [2**32, -(2**31) - 1, HUGE]),
    "address": Kind(
        [HOST, 5, [HOST, 9], Part((HOST, "9"), "9"), Part((b"127.0.0.1", 9), b"127.0.0.1")],
        [(HOST,), (HOST, 9, 0, 0), *[Part((host, 9), host) for host in (
            "localhost", "", "127.0.0.1\0", "::1")],
         *[Part((HOST, port), port) for port in (0, -1, 65536, HUGE)]],
        none=True),
    "group": ADDRESS_TEXT.also(HOST, "240.0.0.1", "ff02::1"), "source": ADDRESS_TEXT.also("::1"),
    "interface": TEXT.also("::1", "nowhere", "192.0.2.77"),
    "ttl": integer(1, 255), "multicast_ttl": integer(0, 255),
}
PER_MESSAGE = Kind([5, "echo"])  # an async one is not looked for there
KEEPALIVE = Kind(TIME.types, [0, 32768, *TIME.values], none=True)
OTHERS = {
    "Event.add.timeout": TIME,
    "interval.time": TIME.also(0, 1e-9), "with_interval.time": TIME.also(0, 1e-9),
    "remove_interval.interval": OBJECT,
    "signal_handler.signo": integer(1, signal.NSIG - 1).also(signal.SIGKILL, signal.SIGSTOP),
    "ChildProcess.kill.signo": integer(0, signal.NSIG - 1),
    "process_kill.signo": integer(0, signal.NSIG - 1),
    "TcpSocket.keepalive.delay": KEEPALIVE, "TcpSocket.keepalive.interval": KEEPALIVE,
    "TcpSocket.keepalive.count": integer(1, 127),
    "DatagramSocket.connect.port": integer(1, 65535),
    "DatagramSocket.connect.host": TEXT.also("::1"),
    "Stream.set_timeouts.read": LIMIT, "Stream.set_timeouts.write": LIMIT,
    **dict.fromkeys(["Stream.disable.read", "Stream.disable.write", "Stream.enable.read",
                     "Stream.enable.write"], FLAG),
    **dict.fromkeys(["AsyncStream.read.size", "AsyncStream.peek.size",
                     "AsyncStream.readline.size"], Kind(["1", 1.5, []], none=True)),
    "Stream.sendfile.file": FD,
    "Server.shutdown.timeout": Kind(TIME.types, TIME.values, none=True),
    "access.mode": integer(0, 7),
    "delay.callback": PER_MESSAGE,
    "Stream.write.write_cb": PER_MESSAGE, "DatagramSocket.send.write_cb": PER_MESSAGE,
}
#: Parameters that are not checked, and why.
UNCHECKED = {
    **dict.fromkeys(["Stream.write.force", "Stream.close.force", "AsyncStream.write.data",
                     "AsyncStream.readinto.buffer", "AsyncStream.readinto1.buffer"],
                    "every write and close would pay for it, or it is io's"),
    "with_interval.seconds": "an older name: see MORE",
    **dict.fromkeys(["tcp_ssl_server.certificate", "tcp_ssl_server.key",
                     "tcp_ssl_server.password"], "only without an ssl_context: see MORE"),
    "AsyncStream.read1.size": "the same function as read",
}

CERTIFICATE = Made(lambda: certificate().certificate)
CONNECT = {"host": HOST, "port": 9, "read_cb": nothing}
PIPE = {"name": "\0pyasync-arguments", "read_cb": nothing}
LISTEN = {"bind_address": HOST, "port": 0, "read_cb": nothing}
FILE = {"path": "a", "callback": nothing}


def a_process():
    return pyasync.spawn("true", [])


def an_output():
    return pyasync.spawn("true", [], output=pyasync.PIPE).output


def a_client(**options):
    return pyasync.init_tcp_socket(nothing, **options)


def a_poller():
    return pyasync.poll(pyasync.udp_socket(HOST).fileno(), nothing)


UDP, UDP6 = partial(pyasync.udp_socket, HOST), partial(pyasync.udp_socket, "::1")
SERVER_HANDLE = partial(pyasync.tcp_server, HOST, 0, nothing)
OPTION = {"level": socket.SOL_SOCKET, "option": socket.SO_RCVBUF}

#: Each public function with arguments that are right. `self` is made in the loop.
CALLS = [
    # The loop
    (outside(pyasync.event_loop), {}),
    (pyasync.start_event_loop, {"start_fn": nothing}),
    (pyasync.call_soon, {"fn": nothing}),
    (pyasync.add_event_loop_exit_callback, {"fn": nothing}),
    (call_threadsafe, {"fn": nothing}),
    (pyasync.dump_event_loop_status, {}),
    (pyasync.aio.EventLoop, {}),
    # Timers
    (pyasync.delay, {"callback": nothing}),
    (pyasync.interval, {"callback": nothing, "time": 1}),
    (pyasync.make_event, {"callback": nothing}),
    (pyasync.with_delay, {}),
    (pyasync.with_interval, {"time": 1}),
    (pyasync.Event.add, {"self": partial(pyasync.make_event, nothing)}),
    (pyasync.remove_interval, {}),
    # TCP
    (pyasync.tcp_server, LISTEN),
    (pyasync.tcp_connect, CONNECT),
    (pyasync.tcp_connect, {**CONNECT, "host": "localhost"}),
    (pyasync.init_tcp_socket, {"read_cb": nothing}),
    (pyasync.connect_tcp_socket, {"socket": Made(a_client), "host": HOST, "port": 9}),
    (pyasync.TcpSocket.write, {"self": a_client, "data": b"data"}),
    (pyasync.TcpSocket.sendfile, {"self": a_client, "file": 0}),
    (pyasync.TcpSocket.disable, {"self": a_client}),
    (pyasync.TcpSocket.enable, {"self": a_client}),
    (pyasync.TcpSocket.set_timeouts, {"self": a_client, "read": None, "write": None}),
    (pyasync.TcpSocket.set_watermarks, {"self": a_client}),
    (pyasync.TcpSocket.keepalive, {"self": a_client, "delay": 1}),
    (setting(pyasync.TcpSocket, "nodelay"), {"self": a_client}),
    (pyasync.TcpServer.getsockopt, {"self": SERVER_HANDLE, **OPTION}),
    (pyasync.TcpServer.setsockopt, {"self": SERVER_HANDLE, **OPTION, "value": 1}),
    (pyasync.TcpServer.shutdown, {"self": SERVER_HANDLE, "timeout": None}),
    (pyasync.AsyncStream, {}),
    (pyasync.AsyncStream.read, {"self": partial(a_client, stream=True)}),
    (pyasync.AsyncStream.peek, {"self": partial(a_client, stream=True)}),
    (pyasync.AsyncStream.readline, {"self": partial(a_client, stream=True)}),
    (pyasync.AsyncStream.readexactly, {"self": partial(a_client, stream=True)}),
    (pyasync.AsyncStream.readuntil, {"self": partial(a_client, stream=True), "separator": b";"}),
    (setting(pyasync.TcpSocket, "read_cb"), {"self": a_client}),
    # TLS
    (with_tls(pyasync.tcp_ssl_server, SERVER), LISTEN),
    (with_tls(pyasync.tcp_ssl_connect, CLIENT), CONNECT),
    (with_tls(pyasync.init_tcp_ssl_socket, CLIENT),
     {"read_cb": nothing, "server_hostname": "localhost"}),
    (with_tls(pyasync.start_tls, CLIENT), {"socket": Made(a_client)}),
    # Pipes
    (pyasync.pipe_server, PIPE),
    (pyasync.pipe_server, {**PIPE, "name": None}),
    (pyasync.pipe_connect, PIPE),
    # Descriptors
    (pyasync.open_stream, {"fd": Made(an_output), "read_cb": nothing}),
    # UDP
    (pyasync.udp_socket, {"bind_address": HOST}),
    (pyasync.UdpSocket.send, {"self": UDP, "data": b"data", "address": (HOST, 9)}),
    (pyasync.UdpSocket.connect, {"self": UDP, "host": HOST, "port": 9}),
    (pyasync.UdpSocket.join_multicast, {"self": UDP, "group": "239.7.7.7"}),
    (pyasync.UdpSocket.leave_multicast, {"self": UDP, "group": "239.7.7.7"}),
    (pyasync.UdpSocket.set_multicast_interface, {"self": UDP, "interface": "lo"}),
    *[(setting(pyasync.UdpSocket, name), {"self": UDP})
      for name in ("ttl", "multicast_ttl", "multicast_loop", "broadcast")],
    # Lookups
    (pyasync.dns_lookup, {"host": "localhost", "resolve_cb": nothing}),
    (pyasync.dns_lookup_all, {"host": "localhost", "resolve_cb": nothing}),
    (pyasync.reverse_dns_lookup, {"ip": HOST, "resolve_cb": nothing}),
    # Processes
    (pyasync.spawn, {"path": "true", "args": []}),
    (pyasync.StdioPipe, {}),
    (pyasync.StdioStream, {}),
    (pyasync.Process.kill, {"self": a_process}),
    (pyasync.process_kill, {"process": Made(a_process), "signo": 0}),
    *[(function, {}) for function in (
        pyasync.process_input, pyasync.process_output, pyasync.process_error_output)],
    # Signals and watchers
    (pyasync.signal_handler, {"signo": signal.SIGUSR1, "callback": nothing}),
    (pyasync.free_signal_handler, {"signo": signal.SIGUSR1}),
    (pyasync.idle, {"callback": nothing}),
    (pyasync.free_idler, {}),
    (pyasync.poll, {"fd": 0, "callback": nothing}),
    (pyasync.Poller.modify, {"self": a_poller}),
    (pyasync.free_poller, {}),
    # Threads
    (pyasync.make_notifier, {"callback": nothing}),
    (pyasync.free_notifier, {}),
    (pyasync.trigger_notifier, {}),
    (pyasync.work, {"fn": nothing, "callback": nothing}),
    (pyasync.set_max_workers, {"number": 1}),
    # Files
    (pyasync.fs_watch, FILE),
    (pyasync.fs_unwatch, {}),
    (pyasync.fs_monitor_close, {}),
    *[(function, FILE) for function in (
        fs.stat, fs.lstat, fs.mkdir, fs.rmdir, fs.unlink, fs.scandir, fs.readlink, fs.realpath,
        fs.read_file)],
    *[(function, {**FILE, "new_path": "new"}) for function in (fs.link, fs.copyfile)],
    (fs.symlink, {"target": "a", "new_path": "new", "callback": nothing}),
    (fs.access, {**FILE, "mode": 0}),
    (fs.chmod, {**FILE, "mode": 0}),
    (fs.utime, {**FILE, "atime": 0, "mtime": 0}),
    (fs.write_file, {**FILE, "data": b""}),
    (fs.fsync, {"fd": 0, "callback": nothing}),
    (fs.ftruncate, {"fd": 0, "size": 0, "callback": nothing}),
    (fs.mkdtemp, {"template": "XXXXXX", "callback": nothing}),
    (fs.open, {**FILE, "flags": 0}),
    (fs.rename, {**FILE, "new_path": "new"}),
    (fs.fstat, {"fd": 0, "callback": nothing}),
    (fs.close, {"fd": 0, "callback": nothing}),
    (fs.read, {"fd": 0, "size": 1, "callback": nothing}),
    (fs.write, {"fd": 0, "data": b"", "callback": nothing}),
    (fs.sendfile, {"out_fd": 0, "in_fd": 0, "offset": 0, "count": 1, "callback": nothing}),
]

#: What depends on more than one argument, with what the message says, and the error.
MORE = [
    (pyasync.tcp_server, {**LISTEN, "fd": 0}, "fd must be None where bind_address", ValueError),
    (pyasync.tcp_server, {**LISTEN, "bind_address": None, "fd": 1 << 20}, "Bad file descriptor",
     OSError),
    (pyasync.pipe_server, {**PIPE, "fd": 0}, "fd must be None where a name", ValueError),
    (pyasync.pipe_server, {**PIPE, "name": None}, "name must be a path, not None", TypeError),
    (pyasync.tcp_connect, {**CONNECT, "data": b"data", "write_cb": 5}, "write_cb", TypeError),
    (pyasync.tcp_ssl_server, LISTEN, "ssl_context must be .* or .* a certificate", TypeError),
    (with_tls(pyasync.tcp_ssl_server, SERVER), {**LISTEN, "certificate": "file"},
     "certificate, key and password must be None", TypeError),
    *[(pyasync.tcp_ssl_server, {**LISTEN, "certificate": CERTIFICATE, **given}, match, error)
      for given, match, error in [
          ({"certificate": 5}, "certificate must be .* not 5", TypeError),
          ({"certificate": "a\0b"}, r"certificate must be .* not 'a\\x00b'", ValueError),
          ({"certificate": "/nowhere/at/all"}, "'/nowhere/at/all'", FileNotFoundError),
          ({"certificate": __file__}, re.escape(__file__), ssl.SSLError),
          ({"key": 5}, "key must be .* not 5", TypeError),
          ({"key": "/no/key"}, "'/no/key'", FileNotFoundError),
          ({"password": 12345}, "password must be .*, not int$", TypeError)]],
    (with_tls(pyasync.tcp_ssl_server, lambda: ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)), LISTEN,
     "ssl_context must be for the server's side", ValueError),
    (with_tls(pyasync.tcp_ssl_connect, lambda: ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)), CONNECT,
     "ssl_context must be for the client's side", ValueError),
    (with_tls(pyasync.tcp_ssl_connect, CLIENT), {**CONNECT, "server_hostname": ".example"},
     "server_hostname must be a host's name, not '.example'",
     ValueError),
    (with_tls(pyasync.start_tls, CLIENT), {"socket": Made(a_client)}, "socket must be connected",
     ValueError),
    (pyasync.UdpSocket.send, {"self": UDP, "data": b""}, "Destination address required",
     pyasync.SocketError),
    *[(pyasync.UdpSocket.send, {"self": UDP6, "data": b"", "address": ("::1", 9, *rest)}, match,
       error)
      for rest, match, error in [
          ((None,), "flowinfo in address must be", TypeError),
          ((1 << 20,), "flowinfo in address must be", ValueError),
          ((0, -1), "scope_id in address must be", ValueError),
          ((0, 0, 0), "address must be", ValueError)]],
    *[(pyasync.UdpSocket.send, {"self": UDP6, "data": b"", "address": (host, 9)}, match, ValueError)
      for host, match in [
          (HOST, "host in address must be an address that a socket at ::1 can send to"),
          ("::1%nowhere", "there is no interface 'nowhere'")]],
    (pyasync.UdpSocket.connect, {"self": UDP, "host": "name.invalid", "port": 9}, "name.invalid",
     pyasync.DnsError),
    *[(pyasync.UdpSocket.join_multicast, {"self": UDP6, **arguments}, match, ValueError)
      for match, arguments in [
          ("group", {"group": "fe80::1"}), ("group", {"group": "239.7.7.7"}),
          ("interface", {"group": "ff32::7:7", "interface": HOST}),
          ("source", {"group": "ff32::7:7", "interface": "lo", "source": HOST})]],
    (pyasync.UdpSocket.set_multicast_interface, {"self": UDP6, "interface": HOST}, "interface",
     ValueError),
    (pyasync.spawn, {"path": "sh", "args": [], "output": pyasync.StdioPipe(data="x")},
     "output must have no data", ValueError),
    (pyasync.TcpSocket.write, {"self": a_client, "data": b"data", "start": 2, "end": 1},
     "end must be an integer from 2 to .*, or None, not 1", ValueError),
    (pyasync.TcpSocket.set_watermarks, {"self": a_client, "high": 10, "low": 11},
     "low must be an integer from 0 to 10, not 11", ValueError),
    (pyasync.Loop, {}, "made by start_event_loop or event_loop", TypeError),
    (pyasync.with_delay, {"time": nothing}, "time must be a number of seconds", TypeError),
    (pyasync.with_interval, {"seconds": 0}, "seconds must be a number of seconds", ValueError),
    *[(function, {**right, "bind_address": ""}, "not known: '' port 0", pyasync.SocketError)
      for function, right in [(pyasync.tcp_server, LISTEN), (pyasync.udp_socket, {})]],
    *[(with_tls(pyasync.tcp_ssl_connect, CLIENT), {**CONNECT, **given}, match, ValueError)
      for given, match in [
          ({"host": ""}, "^host must be a host's name, not ''"),
          ({"server_hostname": ""}, "^server_hostname must be a host's name, not ''"),
          ({"server_hostname": "."}, r"^server_hostname must be a host's name, not '\.'")]],
    (pyasync.UdpSocket.connect, {"self": UDP, "host": "", "port": 9}, "not known: ''",
     pyasync.DnsError),
    (pyasync.UdpSocket.leave_multicast, {"self": UDP, "group": "239.7.7.7"}, "group 239.7.7.7",
     pyasync.SocketError),
    *[(function, {"self": SERVER_HANDLE, "level": 1, "option": 9999, **value},
       "option 9999 of level 1", pyasync.SocketError)
      for function, value in [
          (pyasync.TcpServer.getsockopt, {}), (pyasync.TcpServer.setsockopt, {"value": 1})]],
    (pyasync.TcpSocket.sendfile, {"self": a_client, "file": 0},
     "file must be a regular file or its descriptor, not descriptor 0", ValueError),
]
# fmt: on

#: Methods that a stream of any kind has.
STREAM = ["write", "disable", "enable", "set_timeouts", "set_watermarks"]


def key(function, parameter):
    return f"{function.__qualname__}.{parameter}"


def parameters_of(function):
    return [each for each in inspect.signature(function).parameters.values() if each.name != "self"]


def kind_of(function, name):
    return OTHERS.get(key(function, name)) or KINDS.get(name)


def rows():
    for function, right in CALLS:
        for parameter in parameters_of(function):
            if key(function, parameter.name) not in UNCHECKED:
                yield pytest.param(function, right, parameter, id=key(function, parameter.name))


def opened():
    stats = pyasync.stats()
    return stats.handles, stats.open_dns_queries


def refused(function, arguments, parameter, error, value):
    """Check that the value is refused in place of the parameter, and by what words."""
    value, part = (value.value, value.part) if isinstance(value, Part) else (value, value)
    positional = []
    if parameter.kind is parameter.POSITIONAL_ONLY:
        positional = [value]
    else:
        arguments = {**arguments, parameter.name: value}
    with pytest.raises(error) as caught:
        function(*positional, **arguments)
    words = str(caught.value)
    assert re.search(rf"\b{parameter.name}\b.* must ", words), words
    assert f"not {shown(part)}" in words or repr(part) in words, words


def make(right):
    """Return the handles to begin with, and all arguments, made in the running loop."""
    arguments = {k: v() if isinstance(v, Made) else v for k, v in right.items()}
    return [arguments.pop("self")()] if "self" in arguments else [], arguments


@pytest.mark.parametrize(("function", "right", "parameter"), [*rows()])
def test_a_wrong_argument_is_refused_at_the_call(
    run, tmp_path, monkeypatch, function, right, parameter
):
    monkeypatch.chdir(tmp_path)
    kind = kind_of(function, parameter.name)
    with run():
        handles, arguments = make(right)
        before = opened()
        for error, value in kind.wrong(parameter):
            refused(partial(function, *handles), arguments, parameter, error, value)
            assert opened() == before
        assert all(getattr(handle, "send_queue_size", 0) == 0 for handle in handles)
        pyasync.exit_event_loop()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(("function", "right", "match", "error"), MORE)
def test_arguments_that_do_not_fit_together_are_refused_at_the_call(
    run, function, right, match, error
):
    with run():
        handles, arguments = make(right)
        before = opened()
        with pytest.raises(error, match=match):
            function(*handles, **arguments)
        assert opened() == before
        pyasync.exit_event_loop()


class Callable:
    async def __call__(self):
        """Do nothing."""

    async def method(self):
        yield


@pytest.mark.parametrize(
    "function",
    [
        an_async_function,
        partial(partial(an_async_function, 1), 2),
        Callable(),
        Callable().method,
        partial(Callable()),
    ],
    ids=["function", "partial", "object", "method", "partial object"],
)
@pytest.mark.parametrize("register", [pyasync.delay, pyasync.call_soon, pyasync.make_notifier])
def test_an_async_function_in_place_of_a_callback_is_refused(run, register, function):
    words = r"must be a function, not the async .*: nothing would await it.*create_task"
    with pytest.raises(TypeError, match=words), run():
        register(function)  # of a delay, when it fires


@pytest.mark.parametrize(
    "function",
    [partial(nothing, 1), [].clear, list, type("Called", (), {"__call__": nothing})(), mock.Mock()],
    ids=["partial", "builtin", "class", "object", "mock"],
)
def test_whatever_else_can_be_called_is_a_callback(run, function):
    for register in (pyasync.delay, pyasync.call_soon, pyasync.make_event):
        with run():
            register(function)


def public():
    """Yield each function that a program calls, but for exceptions, which take anything."""
    for module, names in [(pyasync, pyasync.__all__), (fs, fs.__all__)]:
        for name in names:
            value = getattr(module, name)
            if inspect.isfunction(value):
                yield value
            elif inspect.isclass(value) and not issubclass(value, Exception):
                yield from methods(value)
    yield from [pyasync.StdioPipe, pyasync.StdioStream]


def methods(cls):
    for name in {name for name in dir(cls) if not name.startswith("_")}:
        # As the first class has it, which has them all: others override it.
        base = [base for base in cls.__mro__ if name in vars(base)][-1]
        member = vars(base)[name]
        if inspect.isfunction(member) and base.__module__.startswith("pyasync"):
            yield member
        elif isinstance(member, property) and member.fset is not None:
            yield setting(base, name)


def test_every_public_parameter_is_in_the_table():
    checked = {
        key(function, each.name) for function, _ in CALLS for each in parameters_of(function)
    }
    checked |= {*UNCHECKED, "Engine.call_threadsafe.fn"}
    internal = ("Loop.", "Engine.")  # attributes for the modules of the package, as Loop says
    asked = {
        key(function, each.name)
        for function in public()
        for each in parameters_of(function)
        if not function.__qualname__.startswith(internal)
    }
    assert asked - checked == set()
    assert all(
        kind_of(function, each.name) is not None or key(function, each.name) in UNCHECKED
        for function, _ in CALLS
        for each in parameters_of(function)
    )


@pytest.mark.parametrize("parameters", LINKS + PIPE_LINKS + TLS_LINKS)
def test_a_wrong_argument_of_a_stream_is_refused_and_nothing_is_sent(run, parameters):
    calls = {
        function.__name__: (function, right)
        for function, right in CALLS
        if function.__name__ in STREAM and "self" in right
    }

    def connected(socket):
        for name in STREAM:
            function, right = calls[name]
            arguments = {k: v for k, v in right.items() if k != "self"}
            for parameter in parameters_of(function):
                if key(function, parameter.name) not in UNCHECKED:
                    for error, value in kind_of(function, parameter.name).wrong(parameter):
                        refused(getattr(socket, name), arguments, parameter, error, value)
        socket.close()

    assert make_link(run, parameters)(connected, read_all) == b""


#: They need no loop, or ask for something else first.
NEED_NO_LOOP = ["call", "call_threadsafe", "start_event_loop", "event_loop", "EventLoop",
                "StdioPipe", "StdioStream", "AsyncStream", "with_delay",
                "with_interval"]  # fmt: skip


@pytest.mark.parametrize(
    "call",
    [
        *[
            pytest.param(partial(function, **right), id=function.__qualname__)
            for function, right in CALLS
            if right
            and not {"self", "socket", "process"} & {*right}
            and function.__qualname__ not in NEED_NO_LOOP
            and (right.get("name") or "name" not in right)
        ],
        pyasync.clear_signal_handlers,
        pyasync.dump_event_loop_status,
        pyasync.exit_event_loop,
        pyasync.now,
        pyasync.stats,
        pyasync.update_time,
    ],
)
def test_a_call_without_a_loop_is_refused(call):
    with pytest.raises(pyasync.EventLoopNotRunning, match="no event loop is running"):
        call()
