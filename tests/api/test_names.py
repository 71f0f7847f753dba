"""What is public is what is documented: no name more, and no name less."""

import inspect
import socket
import ssl

import pytest

import pyasync
from pyasync._core.engine import Engine

#: The arguments with a default that may be given by position; all others are given by name.
OPTIONAL = {
    "dump_event_loop_status": ["file"],
    "udp_socket": ["bind_address", "port", "read_cb"],
    "with_delay": ["time"],
    "with_interval": ["time"],
}
FUNCTIONS = [name for name in pyasync.__all__ if inspect.isfunction(getattr(pyasync, name))]

#: What every handle has: see the conventions of the API.
HANDLE = {"close", "closed", "ref", "unref", "has_ref"}
SERVER = HANDLE | {
    "address",
    "connections",
    "data",
    "fileno",
    "getsockopt",
    "pause",
    "resume",
    "setsockopt",
    "shutdown",
}
STREAM = HANDLE | {
    "data",
    "disable",
    "enable",
    "fileno",
    "read_cb",
    "sendfile",
    "set_timeouts",
    "set_watermarks",
    "shutdown",
    "write",
    "write_queue_size",
}
SOCKET = STREAM | {"getsockopt", "peername", "setsockopt", "sockname"}
MEMBERS = {
    "DescriptorStream": STREAM,
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
    "PipeSocket": SOCKET | {"peer_credentials"},
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
    "IncompleteReadError": ("EventError", EOFError),
    "LimitOverrunError": ("EventError", ValueError),
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


def test_what_is_public_is_listed_and_nothing_else():
    found = {
        name
        for name, value in vars(pyasync).items()
        if not name.startswith("_") and (name in MODULES or not inspect.ismodule(value))
    }
    assert found == set(pyasync.__all__)
    assert found - {*FUNCTIONS} == set().union(MEMBERS, BASES, CONSTANTS, MODULES, OTHER_CLASSES)


def test_the_list_of_names_is_sorted_and_names_nothing_twice():
    names = sorted(set(pyasync.__all__))
    assert pyasync.__all__ == sorted(names, key=str.isupper, reverse=True)  # constants first


@pytest.mark.parametrize("name", FUNCTIONS)
def test_arguments_with_a_default_are_given_by_name_except_the_documented_ones(name):
    parameters = inspect.signature(getattr(pyasync, name)).parameters.values()
    optional = [p for p in parameters if p.default is not p.empty]
    by_position = [p.name for p in optional if p.kind is not p.KEYWORD_ONLY]
    assert by_position == OPTIONAL.get(name, [])


#: What a loop has for the modules of the package, beside its own two; its docstring says so.
INTERNAL = {member for member in dir(Engine) if member[0] != "_"} - MEMBERS["Loop"] | {
    "call_close_cb",
    "call_event_cb",
    "exit_callbacks",
    "pool",
    "report",
    "run",
    "watched",
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
