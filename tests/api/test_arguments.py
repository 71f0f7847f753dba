"""Wrong arguments: each is refused at the call, with an error that names it, and opens nothing."""

import os
import pathlib
import signal
import ssl
from functools import partial

import pytest
from peers import LINKS, PIPE_LINKS, make_link, nothing, read_all
from tls_peers import CLIENT, SERVER, TLS_LINKS

import pyasync
from pyasync import fs

HOST = "127.0.0.1"
NAN, INFINITE = float("nan"), float("inf")


class Says:
    """A wrong value, and what the message says if it does not name the argument."""

    def __init__(self, match, value):
        self.match, self.value = match, value


def unnamed(*values):
    """Return wrong values whose error says it in Python's own words, or names a part of them."""
    return [Says(None, value) for value in values]


class Odd:
    def fileno(self):
        return "3"


# Functions that have the argument in another place


def with_delay(seconds, callback):
    pyasync.with_delay(seconds)(callback)


def with_interval(seconds, callback):
    pyasync.with_interval(seconds)(callback)


def call_threadsafe(fn):
    pyasync.current_loop().call_threadsafe(fn)


def tls_server(**arguments):
    pyasync.tcp_ssl_server(HOST, 0, **{"ssl_context": SERVER(), **arguments})


def tls_server_without_context(**arguments):
    pyasync.tcp_ssl_server(HOST, 0, nothing, **arguments)


def tls_connect(**arguments):
    pyasync.tcp_ssl_connect(HOST, 9, **{"ssl_context": CLIENT(), **arguments})


# The table: of each function arguments that are right, and, by exception and argument, values that
# are wrong in their place. What several functions share has a name. `self` is made in the loop.

# fmt: off
NO_CALLBACK = [5, "echo"]
NO_FUNCTION = [None, *NO_CALLBACK]
NO_LIMIT = [0, -1, NAN, INFINITE]
NO_TIME = [Says(r"\btime must be", value)
           for value in (-1, -0.001, NAN, INFINITE, -INFINITE, 1e300, 10**400)]
NO_NUMBER = unnamed("1", b"1", [], 1j)
CUT = Says("zero bytes", "a\0b")
NO_TEXT = Says("surrogates", "\udc80")

CALLBACKS = {TypeError: {"callback": NO_FUNCTION, "event_cb": NO_CALLBACK}}
CONNECTION = {
    TypeError: {
        "read_cb": NO_FUNCTION, "connect_cb": NO_CALLBACK, "event_cb": NO_CALLBACK,
        "pressure_cb": NO_CALLBACK, "read_timeout": unnamed("long"),
        "write_timeout": unnamed("long"), "linger": unnamed("long"),
    },
    ValueError: {"read_timeout": NO_LIMIT, "write_timeout": NO_LIMIT, "linger": NO_LIMIT[1:]},
}
CLIENT_SOCKET = {
    TypeError: {"write_cb": NO_CALLBACK, "data": [5, ["list"]], "connect_timeout": unnamed("long")},
    ValueError: {"data": [NO_TEXT], "connect_timeout": NO_LIMIT},
}
TARGET = {
    TypeError: {"host": [None, b"127.0.0.1", 2130706433], "port": ["80", None]},
    ValueError: {
        "host": [CUT, Says("zero bytes", "127.0.0.1\0.example"), NO_TEXT], "port": [-1, 65536],
    },
}
LOCAL_ADDRESS = {
    TypeError: {
        "local_address": [
            5, b"127.0.0.1", (HOST,), ("::1", 0, 0, 0), Says("port must be", (HOST, "port"))
        ],
    },
    ValueError: {
        "local_address": [
            "localhost", "not an address", Says("zero bytes", "127.0.0.1\0"),
            Says("port must be", (HOST, -1)), Says("port must be", (HOST, 65536)),
        ],
    },
}
TLS = {
    TypeError: {"ssl_context": ["context"]},
    ValueError: {"handshake_timeout": NO_LIMIT, "shutdown_timeout": NO_LIMIT},
}
PIPE_NAME = {
    TypeError: {"name": unnamed(None, 7, bytearray(b"pipe"))},
    ValueError: {"name": [
        "x" * 108, b"x" * 108, pathlib.Path("x" * 200), "\0" + "x" * 107, "", b"", CUT,
        Says("zero bytes", b"a\0b"), "\N{EURO SIGN}" * 36,  # each has three bytes
    ]},
}
LOOKUP = {
    TypeError: {
        "host": [b"localhost", None, 1], "resolve_cb": NO_FUNCTION, "event_cb": NO_CALLBACK,
    },
    ValueError: {"host": [CUT], "family": [1, 99, None, "AF_INET"]},
}
PATH = {
    TypeError: {"path": unnamed(None, 5)},
    ValueError: {"path": ["a\0b", b"a\0b", pathlib.Path("a\0b")]},
}
FD = {TypeError: {"fd": unnamed("1")}, ValueError: {"fd": [-1, 1 << 31]}}
OFFSET = {TypeError: {"offset": unnamed("1")}, ValueError: {"offset": [-1, 1 << 63]}}

CONNECT = {"host": HOST, "port": 9, "read_cb": nothing}
PIPE = {"name": "\0pyasync-arguments", "read_cb": nothing}
LISTEN = {"bind_address": HOST, "port": 0, "read_cb": nothing}
IPV4, IPV6 = ({"self": lambda host=host: pyasync.udp_socket(host)} for host in (HOST, "::1"))
FILE = {"path": "a", "callback": nothing}

TABLE = [
    # The loop
    (pyasync.call_soon, {"fn": nothing}, {TypeError: {"fn": NO_FUNCTION}}),
    (pyasync.add_event_loop_exit_callback, {"fn": nothing}, {TypeError: {"fn": NO_FUNCTION}}),
    (call_threadsafe, {}, {TypeError: {"fn": NO_FUNCTION}}),
    # Timers
    (pyasync.delay, {"callback": nothing}, CALLBACKS,
     {TypeError: {"time": NO_NUMBER}, ValueError: {"time": NO_TIME}}),
    (pyasync.interval, {"callback": nothing, "time": 1}, CALLBACKS,
     {TypeError: {"time": [*unnamed(None), *NO_NUMBER]},
      ValueError: {"time": [0, *NO_TIME]}}),
    (pyasync.make_event, {"callback": nothing}, CALLBACKS),
    (pyasync.Event.add, {"self": lambda: pyasync.make_event(nothing)},
     {TypeError: {"timeout": NO_NUMBER}, ValueError: {"timeout": NO_TIME}}),
    *[(function, {"seconds": 1, "callback": nothing},
       {TypeError: {"seconds": NO_NUMBER, "callback": NO_FUNCTION},
        ValueError: {"seconds": NO_TIME}})
      for function in (with_delay, with_interval)],
    # TCP
    (pyasync.tcp_server, LISTEN, CONNECTION,
     {TypeError: {"bind_address": [b"::1", 5], "port": ["80", None], "backlog": unnamed("many"),
                  "max_connections": unnamed("many")},
      ValueError: {"port": [-1, 65536], "backlog": [-1, 2**40], "max_connections": [0, 2**40],
                   "fd": [0]}}),
    (pyasync.tcp_server, {**LISTEN, "bind_address": None, "fd": 0},
     {TypeError: {"fd": unnamed("0")}, ValueError: {"port": [80]},
      OSError: {"fd": [Says("Bad file descriptor", -1)]}}),
    (pyasync.tcp_connect, CONNECT, CONNECTION, CLIENT_SOCKET, TARGET, LOCAL_ADDRESS),
    (pyasync.tcp_connect, {**CONNECT, "host": "localhost"}, TARGET, LOCAL_ADDRESS),
    (pyasync.tcp_connect, {**CONNECT, "data": b"data"}, {TypeError: {"write_cb": NO_CALLBACK}}),
    # TLS
    (tls_server_without_context, {},
     {TypeError: {"ssl_context": [None]},
      FileNotFoundError: {"certificate": unnamed("/nowhere/at/all")}}),
    (tls_server, {"read_cb": nothing}, CONNECTION, TLS,
     {TypeError: {"certificate": ["file"]},
      ValueError: {"ssl_context": [ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)]}}),
    (tls_connect, {"read_cb": nothing}, CONNECTION, CLIENT_SOCKET, TLS,
     {TypeError: {"server_hostname": [5], "session": unnamed("session")},
      ValueError: {"server_hostname": unnamed(".example"),
                   "ssl_context": [ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)]}}),
    (pyasync.start_tls, {}, {TypeError: {"socket": [object()]}}),
    # Pipes
    (pyasync.pipe_server, PIPE, CONNECTION, PIPE_NAME, {ValueError: {"fd": [0]}}),
    (pyasync.pipe_connect, PIPE, CONNECTION, CLIENT_SOCKET, PIPE_NAME),
    # UDP
    (pyasync.udp_socket, {"bind_address": HOST},
     {TypeError: {"bind_address": [b"::1", 5], "read_cb": NO_CALLBACK, "event_cb": NO_CALLBACK,
                  "port": ["53"]},
      ValueError: {"port": [-1, 65536]}}),
    (pyasync.UdpSocket.send, {**IPV4, "data": b"data", "address": (HOST, 9)},
     {TypeError: {"data": [1, None, ["data"]], "write_cb": NO_CALLBACK,
                  "address": [Says("port", (HOST, "9")), Says("host", (b"127.0.0.1", 9)), HOST,
                              *unnamed([HOST, 9])]},
      ValueError: {"address": [
          ("localhost", 9), ("", 9), Says("zero bytes", ("127.0.0.1\0", 9)),
          Says("cannot send to", ("::1", 9)), (HOST,), (HOST, 9, 0, 0),
          *[Says("port must be", (HOST, port)) for port in (0, -1, 65536)]]},
      pyasync.SocketError: {"address": [Says("Destination address required", None)]}}),
    (pyasync.UdpSocket.send, {**IPV6, "data": b"data"},
     {TypeError: {"address": [Says("flowinfo", ("::1", 9, None))]},
      ValueError: {"address": [
          Says("cannot send to", (HOST, 9)), Says("no interface", ("::1%nowhere", 9)),
          Says("flowinfo", ("::1", 9, 1 << 20)), Says("scope_id", ("::1", 9, 0, -1)),
          ("::1", 9, 0, 0, 0)]}}),
    (pyasync.UdpSocket.connect, {**IPV4, "host": HOST, "port": 9},
     {TypeError: {"host": [None], "port": ["9"]},
      ValueError: {"host": [Says("cannot send to", "::1")], "port": [0, 65536]},
      pyasync.DnsError: {"host": unnamed("name.invalid")}}),
    (pyasync.UdpSocket.join_multicast, {**IPV4, "group": "239.7.7.7"},
     {TypeError: {"group": [None], "interface": [1]},
      ValueError: {"group": [HOST, "240.0.0.1", "ff02::1", "name", ""],
                   "interface": ["::1", "nowhere", "192.0.2.77"]}}),
    (pyasync.UdpSocket.join_multicast, {**IPV6, "group": "ff32::7:7", "interface": "lo"},
     {ValueError: {"group": ["fe80::1", "239.7.7.7"], "interface": [HOST, "nowhere"],
                   "source": [HOST]}}),
    (pyasync.UdpSocket.set_multicast_interface, IPV4,
     {ValueError: {"interface": ["::1", "nowhere", "192.0.2.77"]}}),
    (pyasync.UdpSocket.set_multicast_interface, IPV6,
     {ValueError: {"interface": [HOST, "nowhere"]}}),
    # Lookups
    (pyasync.dns_lookup, {"host": "localhost", "resolve_cb": nothing}, LOOKUP),
    (pyasync.dns_lookup_all, {"host": "localhost", "resolve_cb": nothing}, LOOKUP),
    (pyasync.reverse_dns_lookup, {"ip": HOST, "resolve_cb": nothing},
     {TypeError: {"ip": [b"127.0.0.1", None, 0x7F000001], "resolve_cb": NO_FUNCTION,
                  "event_cb": NO_CALLBACK},
      ValueError: {"ip": ["localhost", "", "127.0.0.1.5", "127.0.0.1%lo", "[::1]",
                         Says("zero bytes", "::1\0")]}}),
    # Processes
    (pyasync.spawn, {"path": "sh", "args": []},
     {TypeError: {"path": unnamed(None, 1), "args": ["-c", b"-c", *unnamed(None, [1])],
                  "exit_cb": NO_CALLBACK, "event_cb": NO_CALLBACK,
                  "env": [[("A", "b")], *unnamed({"A": 1})], "working_directory": unnamed(1),
                  "uid": ["root"], "input": ["PIPE"], "output": [True]},
      ValueError: {"path": ["a\0b"], "args": [Says("zero bytes", ["\0"])],
                   "env": [{"A": "\0"},
                           *[Says("environment variable", {key: "b"}) for key in ("A=", "")]],
                   "working_directory": ["\0"], "uid": [-1], "gid": [2**32 - 1],
                   "output": [-1, 2**31, pyasync.StdioPipe(data="x")]}}),
    *[(function, {}, {TypeError: {
        "read_cb": [1], "data": [1], "write_cb": [1], "event_cb": [1], "pressure_cb": [1]}})
      for function in (pyasync.StdioPipe, pyasync.StdioStream)],
    (pyasync.Process.kill, {"self": lambda: pyasync.spawn("true", [])},
     {TypeError: {"signo": ["SIGTERM"]},
      ValueError: {"signo": [Says("no such signal", signo) for signo in (-1, signal.NSIG, 1000)]}}),
    # Signals and watchers
    (pyasync.signal_handler, {"signo": signal.SIGUSR1, "callback": nothing}, CALLBACKS,
     {TypeError: {"signo": ["SIGINT", 2.0, None]},
      ValueError: {"signo": [
          Says(f"signal {int(signo)} cannot be handled", signo)
          for signo in (signal.SIGKILL, signal.SIGSTOP, 0, -1, 65, 1000, 2**31, 2**64, -(2**31))
      ]}}),
    (pyasync.idle, {"callback": nothing}, CALLBACKS),
    (pyasync.poll, {"fd": 0, "callback": nothing}, CALLBACKS,
     {TypeError: {"fd": [None, "3", 3.0, [], Odd()]},
      ValueError: {"fd": [Says("descriptor", fd) for fd in (-1, -(2**40), 2**31, 2**70)]}}),
    # Threads
    (pyasync.make_notifier, {"callback": nothing}, CALLBACKS),
    (pyasync.work, {"fn": nothing, "callback": nothing}, CALLBACKS,
     {TypeError: {"fn": NO_FUNCTION}}),
    (pyasync.set_max_workers, {"number": 1},
     {TypeError: {"number": [1.5]}, ValueError: {"number": [0, -1]}}),
    # Files
    *[(function, FILE, CALLBACKS, PATH)
      for function in (pyasync.fs_watch, fs.stat, fs.lstat, fs.mkdir, fs.rmdir, fs.unlink,
                       fs.scandir, fs.readlink)],
    (pyasync.mkdtemp, {"template": "XXXXXX", "callback": nothing}, CALLBACKS,
     {TypeError: {"template": unnamed(None, 5)},
      ValueError: {"template": [
          "", "name", "XXXXX", "XXXXXXx", "\0XXXXXX", b"\0XXXXXX", pathlib.Path("\0XXXXXX")]}}),
    (fs.open, {**FILE, "flags": 0}, CALLBACKS, PATH,
     {TypeError: {"flags": unnamed("r"), "mode": unnamed("644")},
      ValueError: {"flags": [-1], "mode": [-1, 0o10000]}}),
    (fs.mkdir, FILE, {TypeError: {"mode": unnamed("755")}, ValueError: {"mode": [-1]}}),
    (fs.rename, {**FILE, "new_path": "new"}, CALLBACKS, PATH,
     {TypeError: {"new_path": unnamed(None, 5)},
      ValueError: {"new_path": ["a\0b", b"a\0b", pathlib.Path("a\0b")]}}),
    (fs.fstat, {"fd": 0, "callback": nothing}, CALLBACKS, FD),
    (fs.close, {"fd": 0, "callback": nothing}, CALLBACKS, FD),
    (fs.read, {"fd": 0, "size": 1, "callback": nothing}, CALLBACKS, FD, OFFSET,
     {TypeError: {"size": unnamed(1.5)}, ValueError: {"size": [-1]}}),
    (fs.write, {"fd": 0, "data": b"", "callback": nothing}, CALLBACKS, FD, OFFSET,
     {TypeError: {"data": unnamed(None, 5)}}),
    (fs.sendfile, {"out_fd": 0, "in_fd": 0, "offset": 0, "count": 1, "callback": nothing},
     CALLBACKS,
     {TypeError: {"offset": unnamed(None)}, ValueError: {"offset": [-1], "count": [-1]}}),
]

#: The same for the methods of a stream of any kind.
STREAM = [
    (pyasync.PipeSocket.write, {"data": b"data"},
     {TypeError: {"data": [None, 1, 1.5, [1], object(), {"a": 1}], "read_cb": NO_CALLBACK,
                  "write_cb": NO_CALLBACK, "event_cb": NO_CALLBACK},
      ValueError: {"start": [-1], "end": [-1]}}),
    (pyasync.PipeSocket.write, {"data": b"data", "start": 2}, {ValueError: {"end": [1]}}),
    (pyasync.PipeSocket.set_watermarks, {"high": 10},
     {ValueError: {"high": [-1], "low": [-1, 11]}}),
    (pyasync.PipeSocket.set_timeouts, {"read": None, "write": None},
     {ValueError: {"read": NO_LIMIT, "write": NO_LIMIT}}),
]
# fmt: on

#: They need none, or come to ask for something else first.
NEED_NO_LOOP = [
    call_threadsafe,
    pyasync.StdioPipe,
    pyasync.StdioStream,
    pyasync.start_tls,
    tls_server_without_context,
]


def rows_of(function, right, *tables):
    """Yield the function, its arguments, and the error that they raise with its message."""
    for table in tables:
        for error, arguments in table.items():
            for name, values in arguments.items():
                for wrong in values:
                    if not isinstance(wrong, Says):
                        wrong = Says(rf"\b{name}\b", wrong)
                    yield pytest.param(
                        function,
                        {**right, name: wrong.value},
                        error,
                        wrong.match,
                        id=f"{function.__qualname__}-{name}-{wrong.value!a:.30}",
                    )


def opened():
    stats = pyasync.stats()
    return stats.handles, stats.open_dns_queries


@pytest.mark.parametrize(
    ("function", "arguments", "error", "match"), [row for entry in TABLE for row in rows_of(*entry)]
)
def test_a_wrong_argument_is_refused_at_the_call(
    run, tmp_path, monkeypatch, function, arguments, error, match
):

    monkeypatch.chdir(tmp_path)
    arguments = dict(arguments)
    with run():
        handles = [arguments.pop("self")()] if "self" in arguments else []
        before = opened()
        with pytest.raises(error, match=match):
            function(*handles, **arguments)
        assert opened() == before
        for handle in handles:
            assert getattr(handle, "send_queue_size", 0) == 0
            handle.close()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("parameters", LINKS + PIPE_LINKS + TLS_LINKS)
def test_a_wrong_argument_of_a_stream_is_refused_and_nothing_is_sent(run, parameters):
    def connected(socket):
        for entry in STREAM:
            for row in rows_of(*entry):
                function, arguments, error, match = row.values
                with pytest.raises(error, match=match):
                    getattr(socket, function.__name__)(**arguments)
        socket.close()

    assert make_link(run, parameters)(connected, read_all) == b""


@pytest.mark.parametrize(
    "call",
    [
        *[
            pytest.param(partial(function, **right), id=function.__qualname__)
            for function, right, *_ in TABLE
            if "self" not in right and function not in NEED_NO_LOOP
        ],
        partial(pyasync.free_signal_handler, signal.SIGUSR1),
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
