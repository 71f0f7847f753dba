"""What is public is what is documented: no name more, and no name less."""

import inspect
import socket
import ssl

import pytest

import pyasync
from pyasync._core.engine import Engine

#: The arguments that may be given by position; all others are given by name.
POSITIONAL = {
    "add_event_loop_exit_callback": ["fn"],
    "call_soon": ["fn"],
    "clear_signal_handlers": [],
    "connect_tcp_socket": ["socket", "host", "port"],
    "current_loop": [],
    "delay": ["callback"],
    "dns_lookup": ["host", "resolve_cb"],
    "dns_lookup_all": ["host", "resolve_cb"],
    "dump_event_loop_status": ["file"],
    "event_loop": [],
    "exit_event_loop": [],
    "free_idler": ["idler"],
    "free_notifier": ["notifier"],
    "free_poller": ["poller"],
    "free_signal_handler": ["signo"],
    "fs_monitor_close": ["monitor"],
    "fs_unwatch": ["monitor"],
    "fs_watch": ["path", "callback"],
    "idle": ["callback"],
    "init_tcp_socket": ["read_cb"],
    "init_tcp_ssl_socket": ["read_cb"],
    "interval": ["callback"],
    "libuv_version": [],
    "make_event": ["callback"],
    "make_notifier": ["callback"],
    "mkdtemp": ["template", "callback"],
    "now": [],
    "pipe_connect": ["name", "read_cb"],
    "pipe_server": ["name", "read_cb"],
    "poll": ["fd", "callback"],
    "process_error_output": ["process"],
    "process_input": ["process"],
    "process_kill": ["process", "signo"],
    "process_output": ["process"],
    "remove_interval": ["interval"],
    "reverse_dns_lookup": ["ip", "resolve_cb"],
    "set_max_workers": ["number"],
    "signal_handler": ["signo", "callback"],
    "spawn": ["path", "args"],
    "start_event_loop": ["start_fn"],
    "start_tls": ["socket"],
    "stats": [],
    "tcp_connect": ["host", "port", "read_cb"],
    "tcp_server": ["bind_address", "port", "read_cb"],
    "tcp_ssl_connect": ["host", "port", "read_cb"],
    "tcp_ssl_server": ["bind_address", "port", "read_cb"],
    "udp_socket": ["bind_address", "port", "read_cb"],
    "trigger_notifier": ["notifier"],
    "update_time": [],
    "with_delay": ["seconds"],
    "with_interval": ["seconds"],
    "work": ["fn", "callback"],
}

#: What every handle has: see the conventions of the API.
HANDLE = {"close", "closed", "ref", "unref", "has_ref"}
SERVER = HANDLE | {"address", "fileno", "getsockopt", "setsockopt"}
STREAM = HANDLE | {
    "data",
    "disable",
    "enable",
    "fileno",
    "set_timeouts",
    "set_watermarks",
    "shutdown",
    "write",
    "write_queue_size",
}
SOCKET = STREAM | {"getsockopt", "peername", "setsockopt", "sockname"}
MEMBERS = {
    "Event": HANDLE | {"add", "remove", "free", "freed", "remaining"},
    "Idler": HANDLE,
    "Interval": HANDLE,
    "Loop": {"call_threadsafe", "stats"},
    "FsMonitor": HANDLE | {"path"},
    "SignalHandler": HANDLE | {"signo"},
    "Process": HANDLE
    | {"error_output", "exit_status", "input", "kill", "output", "pid", "term_signal"},
    "ProcessPipe": STREAM,
    "Notifier": HANDLE | {"free", "freed", "trigger"},
    "PipeServer": SERVER,
    "Poller": HANDLE | {"disconnected", "modify"},
    "PipeSocket": SOCKET,
    "SslSocket": SOCKET | {"alpn", "cipher", "keepalive", "nodelay", "session", "ssl_object"},
    "TcpServer": SERVER,
    "TcpSocket": SOCKET | {"keepalive", "nodelay"},
    "UdpSocket": HANDLE
    | {
        "address",
        "broadcast",
        "connect",
        "data",
        "fileno",
        "getsockopt",
        "join_multicast",
        "leave_multicast",
        "multicast_loop",
        "multicast_ttl",
        "peername",
        "send",
        "send_queue_size",
        "set_multicast_interface",
        "setsockopt",
        "sockname",
        "ttl",
    },
    "Work": HANDLE | {"cancelled", "running"},
}


#: The bases of each exception.
BASES = {
    "CallbackError": ["EventError"],
    "EventInfo": (Exception,),
    "SocketEOF": ("EventInfo",),
    "EventError": ("EventInfo",),
    "HandleClosed": ("EventError", ValueError),
    "EventFreed": ("HandleClosed",),
    "NotifierFreed": ("HandleClosed",),
    "EventLoopNotRunning": ("EventError", RuntimeError),
    "DnsError": ("EventError", socket.gaierror),
    "SocketError": ("EventError", OSError),
    "SocketReset": ("SocketError", ConnectionResetError),
    "SocketRefused": ("SocketError", ConnectionRefusedError),
    "SocketUnreachable": ("SocketError",),
    "SocketAborted": ("SocketError", ConnectionAbortedError),
    "SocketTimeout": ("SocketError", TimeoutError),
    "SocketBrokenPipe": ("SocketError", BrokenPipeError),
    "SocketAcceptError": ("SocketError",),
    "TcpServerBindError": ("SocketError",),
    "SocketAddressInUse": ("TcpServerBindError",),
    "SocketClosed": ("SocketError", "HandleClosed"),
    "SocketCanceled": ("SocketError",),
    "PipeNotFound": ("SocketError", FileNotFoundError),
    "TcpSslError": ("SocketError", ssl.SSLError),
    "FilesystemError": ("EventError", OSError),
    "FilesystemNotFound": ("FilesystemError", FileNotFoundError),
    "FilesystemAccess": ("FilesystemError", PermissionError),
    "FilesystemPermission": ("FilesystemError", PermissionError),
}

CONSTANTS = {"IGNORE", "INHERIT", "PIPE", "STREAM"}
MODULES = {"fs"}
#: Their members have tests of their own.
OTHER_CLASSES = {"AsyncStream", "Stats", "StdioPipe", "StdioStream"}


def test_the_public_names_are_the_documented_ones():
    documented = [POSITIONAL, MEMBERS, BASES, CONSTANTS, MODULES, OTHER_CLASSES]
    assert set(pyasync.__all__) == set().union(*documented)


def test_the_list_of_names_is_sorted_and_names_nothing_twice():
    names = sorted(set(pyasync.__all__))
    assert pyasync.__all__ == sorted(names, key=str.isupper, reverse=True)  # constants first


@pytest.mark.parametrize("name", sorted(POSITIONAL))
def test_arguments_are_given_by_name_except_the_documented_ones(name):
    parameters = inspect.signature(getattr(pyasync, name)).parameters.values()
    by_position = [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY]
    assert by_position == POSITIONAL[name]


def test_each_public_function_has_its_arguments_listed_here():
    functions = {name for name in pyasync.__all__ if inspect.isfunction(getattr(pyasync, name))}
    assert functions == set(POSITIONAL)


#: What a loop has for the modules of the package, beside its own two; its docstring says so.
INTERNAL = {member for member in dir(Engine) if member[0] != "_"} - MEMBERS["Loop"] | {
    "call_event_cb",
    "exit_callbacks",
    "pool",
    "report",
    "run",
}


@pytest.mark.parametrize("name", sorted(MEMBERS))
def test_the_public_members_of_a_class_are_the_documented_ones(name):
    members = {member for member in dir(getattr(pyasync, name)) if member[0] != "_"}
    assert members - (INTERNAL if name == "Loop" else set()) == MEMBERS[name]


@pytest.mark.parametrize("name", sorted(set(pyasync.__all__)))
def test_each_public_name_has_a_docstring(name):
    assert inspect.getdoc(getattr(pyasync, name))


@pytest.mark.parametrize("name", BASES)
def test_each_exception_has_the_bases_that_are_documented(name):
    bases = [getattr(pyasync, base) if isinstance(base, str) else base for base in BASES[name]]
    assert set(getattr(pyasync, name).__bases__) == set(bases)


@pytest.mark.parametrize("name", BASES)
def test_each_exception_can_be_made_and_says_what_happened(name):
    kind = getattr(pyasync, name)
    assert "what happened" in str(kind("what happened"))
    if issubclass(kind, pyasync.EventError):
        assert "what happened" in kind("what happened").errmsg


def test_no_exception_is_undocumented():
    public = vars(pyasync).values()
    found = {
        kind.__name__ for kind in public if isinstance(kind, type) and issubclass(kind, Exception)
    }
    assert found == set(BASES)
