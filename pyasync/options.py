"""The options of a socket of the callback API."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import Context
from typing import Any

from pyasync._core.arguments import (
    optional_callable,
    require_callable,
    require_flag,
    require_time,
    require_timeout,
)
from pyasync._core.contexts import Binder, optional_context
from pyasync.loop import EventCallback, Loop


class StreamOptions:
    """The options of a client's socket, or of all connections of a server: they share one object.

    Whoever changes an option of one connection must copy the object before.
    """

    __slots__ = (
        "allow_half_open",
        "binder",
        "close_cb",
        "connect_cb",
        "connect_timeout",
        "context",
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
        stream: bool = False,
        event_cb: EventCallback | None = None,
        connect_cb: Callable[[Any], object] | None = None,
        pressure_cb: Callable[[Any, bool], object] | None = None,
        close_cb: Callable[[Any, Exception | None], object] | None = None,
        allow_half_open: bool = False,
        linger: float | None = 2.0,
        read_timeout: float | None = None,
        write_timeout: float | None = None,
        context: Context | None = None,
    ) -> None:
        require_callable("read_cb", read_cb)
        optional_callable("event_cb", event_cb)
        optional_callable("connect_cb", connect_cb)
        optional_callable("pressure_cb", pressure_cb)
        optional_callable("close_cb", close_cb)
        optional_context(context)
        if linger is not None:
            require_time("linger", linger, or_none=", or None")
        self.loop = loop
        self.read_cb = read_cb
        self.event_cb = event_cb
        self.connect_cb = connect_cb
        self.pressure_cb = pressure_cb
        self.close_cb = close_cb
        self.allow_half_open = require_flag("allow_half_open", allow_half_open)
        self.linger = linger
        self.read_timeout = require_timeout("read_timeout", read_timeout)
        self.write_timeout = require_timeout("write_timeout", write_timeout)
        self.stream = require_flag("stream", stream)
        #: Each connection has a copy of it, in which its callbacks run; None: they run as they are.
        self.context = context
        #: Of one connection: what has wrapped its callbacks, or None.
        self.binder: Binder | None = None
        #: The server that accepts the connections, or None.
        self.server: Any = None
        #: Of a client: the host and port to connect to.
        self.remote: tuple[str, int] | None = None
        #: Of a client: the address and port to connect from.
        self.local_address: tuple[str | None, int] = (None, 0)
        #: In seconds; None: no limit.
        self.connect_timeout: float | None = None
        #: False: read no more from the kernel while much data waits in the AsyncStream.
        self.drain_read_buffer = True
        #: Of TLS sockets: a TlsOptions.
        self.tls: Any = None

    @property
    def needs_begin(self) -> bool:
        """Whether a connection with these options needs `Stream._begin`."""
        return (
            self.stream
            or self.read_timeout is not None
            or self.close_cb is not None
            or self.context is not None
        )

    def bind(self, binder: Binder) -> None:
        """Let the callbacks, which are one connection's, run in the copy of a context."""
        self.binder = binder
        for name in ("read_cb", "event_cb", "connect_cb", "pressure_cb", "close_cb"):
            setattr(self, name, binder.bind(getattr(self, name)))

    def bound(self, callback: Any) -> Any:
        """Return a callback so that it runs in the connection's context, if that has one."""
        return callback if self.binder is None else self.binder.bind(callback)

    def copy(self) -> StreamOptions:
        """Return a copy for one socket, to be changed."""
        copy = StreamOptions.__new__(StreamOptions)
        for name in StreamOptions.__slots__:
            setattr(copy, name, getattr(self, name))
        return copy
