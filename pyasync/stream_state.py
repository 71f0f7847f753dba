"""What a stream was asked to do, and what it remembers beside its handle."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Union

from pyasync.arguments import optional_callable, require_callable, require_timeout
from pyasync._core.deadlines import MAX_TIME, Timer
from pyasync._core.engine import CLOSED, FAILED
from pyasync.loop import EventCallback, Loop
from pyasync.timeouts import Linger, ReadTimeout, WriteTimeout

Data = Union[bytes, bytearray, memoryview, str]
WriteCallback = Callable[[Any], object]

# The flags of Stream._state.
# CLOSED, 1: close() was called, or pyasync has closed it
# FAILED, 16: what was written is lost
ENDED = 2  # the peer's end of stream has been reported
SHUT = 4  # shutdown() was called
CONNECTING = 8
READ_DISABLED = 32
WRITE_DISABLED = 64
TIMED = 128  # a read timeout runs
KEPT = 256  # what was kept back while reading was disabled is being delivered
LIMITED = 512  # the server counts its connections
RARE = 1024  # there is a _Rare
UNCONNECTED = 2048  # there is no handle yet
STREAMING = 4096  # what is read goes to an AsyncStream
ENCRYPTED = 8192  # what is written and read passes through TLS

HELD = WRITE_DISABLED | UNCONNECTED | ENCRYPTED  # what is written is held back
CANNOT_WRITE = CLOSED | SHUT | HELD

#: Watermarks of the write queue unless set otherwise, in bytes: asyncio's.
HIGH_WATERMARK = 64 << 10
LOW_WATERMARK = 16 << 10


class Settings:
    """What a client's socket, or all the connections of a server, were asked to do."""

    __slots__ = (
        "allow_half_open",
        "connect_cb",
        "connect_timeout",
        "drain_read_buffer",
        "event_cb",
        "linger",
        "local_address",
        "loop",
        "pressure_cb",
        "read_cb",
        "read_timeout",
        "remote",
        "server",
        "stream",
        "tls",
        "write_timeout",
    )

    def __init__(
        self,
        loop: Loop,
        read_cb: Callable[[Any, Any], object],
        *,
        stream: bool = False,
        event_cb: EventCallback | None = None,
        connect_cb: Callable[[Any], object] | None = None,
        pressure_cb: Callable[[Any, bool], object] | None = None,
        allow_half_open: bool = False,
        linger: float | None = 2.0,
        read_timeout: float | None = None,
        write_timeout: float | None = None,
    ) -> None:
        require_callable("read_cb", read_cb)
        optional_callable("event_cb", event_cb)
        optional_callable("connect_cb", connect_cb)
        optional_callable("pressure_cb", pressure_cb)
        if linger is not None and not 0 <= linger <= MAX_TIME:
            raise ValueError(f"linger must be from 0 to {MAX_TIME:g} seconds, not {linger!r}")
        self.loop = loop
        self.read_cb = read_cb
        self.event_cb = event_cb
        self.connect_cb = connect_cb
        self.pressure_cb = pressure_cb
        self.allow_half_open = allow_half_open
        self.linger = linger
        self.read_timeout = require_timeout("read_timeout", read_timeout)
        self.write_timeout = require_timeout("write_timeout", write_timeout)
        self.stream = bool(stream)
        #: The server whose connections these are.
        self.server: Any = None
        #: Of a client: what it connects to, and from, how long, and whether it reads on and on.
        self.remote: tuple[str, int] | None = None
        self.local_address: tuple[str | None, int] = (None, 0)
        self.connect_timeout: float | None = None
        self.drain_read_buffer = True
        #: Of TLS sockets: a TlsSettings.
        self.tls: Any = None

    def copy(self) -> Settings:
        """Return settings of one socket's own, to be changed."""
        copy = Settings.__new__(Settings)
        for name in Settings.__slots__:
            setattr(copy, name, getattr(self, name))
        return copy


class Rare:
    """What few connections need, or few at a time."""

    __slots__ = (
        "connect_timer",
        "connector",
        "held",
        "held_size",
        "high",
        "kept",
        "linger",
        "low",
        "paused",
        "read_timeout",
        "referenced",
        "stream",
        "tls",
        "waiting",
        "write_timeout",
    )

    def __init__(self) -> None:
        #: Write callbacks that wait for the kernel, in order; for each the batch that it was
        #: submitted in, and its index there.
        self.waiting: deque[tuple[WriteCallback, list[Any], int]] = deque()
        #: What has been read while reading is disabled: data, then the event that ended it.
        self.kept: deque[bytes | tuple[int, int]] = deque()
        #: What has been written and is held back, and its size in bytes.
        self.held: deque[tuple[bytes | memoryview, WriteCallback | None]] = deque()
        self.held_size = 0
        self.connect_timer: Timer | None = None
        #: What is trying to connect an unconnected socket: it has a close().
        self.connector: Any = None
        #: Of a socket without a handle: whether that will keep the loop running.
        self.referenced = True
        #: The AsyncStream, if that is what the callbacks get.
        self.stream: Any = None
        self.read_timeout: ReadTimeout | None = None
        self.write_timeout: WriteTimeout | None = None
        self.linger: Linger | None = None
        self.high = HIGH_WATERMARK
        self.low = LOW_WATERMARK
        self.paused = False
        #: Of a TLS socket: its TlsState.
        self.tls: Any = None

    def drop_held(self) -> None:
        self.held.clear()
        self.held_size = 0

    def stop_timeouts(self) -> None:
        if self.connect_timer is not None:
            self.connect_timer.stop()
        if self.read_timeout is not None:
            self.read_timeout.stop()
        if self.write_timeout is not None:
            self.write_timeout.stop()
        self.connect_timer = self.read_timeout = self.write_timeout = None
