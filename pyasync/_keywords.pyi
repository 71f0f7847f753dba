# The keywords of the calls that make a client, for their overloads: with `stream=True` they return
# an AsyncStream, and otherwise the socket. Only type checkers read this.
import ssl
from collections.abc import Callable
from contextvars import Context
from typing import Generic, TypeVar

from typing_extensions import TypedDict

from pyasync._core.arguments import Descriptor
from pyasync._core.stream import Data, WriteCallback
from pyasync.descriptors import DescriptorStream
from pyasync.loop import EventCallback
from pyasync.tcp import LocalAddress
from pyasync.tls import ReadCallback, SocketCallback

S = TypeVar("S")

class ClientKeywords(TypedDict, Generic[S], total=False):
    data: Data | None
    event_cb: EventCallback | None
    connect_cb: Callable[[S], object] | None
    write_cb: WriteCallback | None
    read_timeout: float | None
    write_timeout: float | None
    connect_timeout: float | None
    drain_read_buffer: bool
    allow_half_open: bool
    pressure_cb: Callable[[S, bool], object] | None
    close_cb: Callable[[S, Exception | None], object] | None
    linger: float | None
    context: Context | None

class TcpKeywords(ClientKeywords[S], Generic[S], total=False):
    local_address: LocalAddress

class InitKeywords(TcpKeywords[S], Generic[S], total=False):
    fd: Descriptor | None

class DescriptorKeywords(TypedDict, total=False):
    event_cb: EventCallback | None
    write_cb: WriteCallback | None
    pressure_cb: Callable[[DescriptorStream, bool], object] | None
    close_cb: Callable[[DescriptorStream, Exception | None], object] | None
    read_timeout: float | None
    write_timeout: float | None
    drain_read_buffer: bool
    allow_half_open: bool
    context: Context | None

class TlsKeywords(TypedDict, total=False):
    ssl_context: ssl.SSLContext | None
    server_hostname: str | None
    session: ssl.SSLSession | None
    handshake_timeout: float | None
    shutdown_timeout: float | None

class SslKeywords(TcpKeywords[S], TlsKeywords, Generic[S], total=False): ...
class InitSslKeywords(InitKeywords[S], TlsKeywords, Generic[S], total=False): ...

class StartTlsKeywords(TlsKeywords, total=False):
    server_side: bool
    received: bytes
    read_cb: ReadCallback | None
    connect_cb: SocketCallback | None
    event_cb: EventCallback | None
