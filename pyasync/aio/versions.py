"""Where the versions of Python differ for `pyasync.aio`: all of it is here, found by looking."""

from __future__ import annotations

import asyncio
import inspect
import sys
from asyncio import (
    base_events,
    constants,
    coroutines,
    events,
    selector_events,
    sslproto,
    unix_events,
)
from typing import Any


def _parameters(function: Any) -> Any:
    return inspect.signature(function).parameters


#: Since 3.13 a server is told which transport attaches to it, to close its clients.
ATTACH_TAKES_TRANSPORT = len(_parameters(base_events.Server._attach)) > 1

#: Since 3.11 SSLProtocol has a time limit for closing; it is a BufferedProtocol since then.
HAS_SHUTDOWN_TIMEOUT = "ssl_shutdown_timeout" in _parameters(sslproto.SSLProtocol.__init__)

#: Since 3.15 a loop's private methods that make transports are given the transport's context.
GIVES_CONTEXT = "context" in _parameters(selector_events.BaseSelectorEventLoop._start_serving)

#: The default high watermark of a TLS transport, in bytes, and its time limit for closing, in
#: seconds: asyncio's since 3.11. Before, it had 64 KiB as other transports, and no limit.
_SSL_HIGH_WATER: int = getattr(constants, "FLOW_CONTROL_HIGH_WATER_SSL_WRITE", 64) << 10
SSL_WATER = _SSL_HIGH_WATER, _SSL_HIGH_WATER // 4
SSL_SHUTDOWN_TIMEOUT: float = getattr(constants, "SSL_SHUTDOWN_TIMEOUT", 30.0)

#: Since 3.14 `cancel` of what call_soon_threadsafe returns waits while the call is being made.
ThreadSafeHandle: Any = getattr(events, "_ThreadSafeHandle", events.Handle)

#: How many frames of its source traceback in debug mode are not the program's.
THREAD_SAFE_HANDLE_FRAMES = 1 if ThreadSafeHandle is events.Handle else 2

#: Since 3.13 a datagram may be empty.
SENDS_EMPTY_DATAGRAMS = sys.version_info >= (3, 13)


#: The public one warns since 3.14.
iscoroutinefunction: Any = getattr(coroutines, "_iscoroutinefunction", None) or (
    coroutines.iscoroutinefunction
)


def attach(server: Any, transport: Any) -> None:
    """Count a transport of an `asyncio.Server`."""
    if ATTACH_TAKES_TRANSPORT:
        server._attach(transport)
    else:
        server._attach()


def detach(server: Any, transport: Any) -> None:
    """Undo `attach`."""
    if ATTACH_TAKES_TRANSPORT:
        server._detach(transport)
    else:
        server._detach()


def ssl_protocol(
    loop: Any,
    protocol: Any,
    context: Any,
    waiter: Any,
    server_side: bool,
    server_hostname: str | None,
    handshake_timeout: float | None,
    shutdown_timeout: float | None,
) -> Any:
    """Return asyncio's protocol that speaks TLS for another protocol."""
    options: dict[str, Any] = {"ssl_handshake_timeout": handshake_timeout}
    if HAS_SHUTDOWN_TIMEOUT:
        options["ssl_shutdown_timeout"] = shutdown_timeout
    return sslproto.SSLProtocol(
        loop, protocol, context, waiter, server_side, server_hostname, **options
    )


def default_policy() -> Any:
    """Return the class of asyncio's own policy. All public names of it warn since 3.14."""
    return unix_events._UnixDefaultEventLoopPolicy


def set_policy(policy: Any) -> None:
    """Set asyncio's policy, without the warning that its public function gives since 3.14."""
    set_it = getattr(asyncio.events, "_set_event_loop_policy", None)
    (set_it or asyncio.set_event_loop_policy)(policy)
