"""UDP sockets."""

from __future__ import annotations

import socket as sockets
from collections.abc import Callable
from contextvars import Context
from typing import Any

from pyasync._core.arguments import optional_callable, require_flag, require_port
from pyasync._core.contexts import Binder, optional_context
from pyasync._core.datagrams import DatagramSocket
from pyasync._core.sockets import bind
from pyasync.errors import EventError
from pyasync.loop import EventCallback, Loop, get_loop

ReadCallback = Callable[["UdpSocket", bytes, Any], object]


class UdpSocket(DatagramSocket):
    """A UDP socket, made by `udp_socket`. It keeps the loop running while it is open."""

    __slots__ = ()

    _loop: Loop

    def _report_error(self, error: EventError) -> None:
        self._loop.report(self, error, self)


def udp_socket(
    bind_address: str | None = None,
    port: int = 0,
    read_cb: ReadCallback | None = None,
    *,
    event_cb: EventCallback | None = None,
    reuse_port: bool = False,
    broadcast: bool = False,
    context: Context | None = None,
) -> UdpSocket:
    """Open a UDP socket, and call ``read_cb(socket, data, address)`` with each datagram.

    ``data`` is `bytes`; ``address`` is the sender's in the form of the `socket` module, ``(host,
    port)``, or of IPv6 ``(host, port, flowinfo, scope_id)``. `UdpSocket.send` takes it. Without a
    ``read_cb`` datagrams that arrive are dropped.

    ``bind_address`` is a numeric address, or a name, which is looked up at once, in a call that
    blocks; None is every address of both families, where the system has both. Then the socket is
    one of IPv6, which names a sender over IPv4 ``::ffff:192.0.2.1``. ``port`` 0 lets the system
    choose: see `UdpSocket.address`. ``reuse_port`` lets several sockets share the port
    (SO_REUSEPORT, socket(7)): datagrams are spread over them, and those to a multicast group go to
    all. ``broadcast`` lets the socket send broadcasts (SO_BROADCAST).

    ``event_cb(exception)`` gets errors, none of which closes the socket: a `SocketError` for a
    datagram that could not be sent; `SocketRefused` if the peer of a connected socket says that
    nobody listens; and a `SocketError` with EMSGSIZE in place of a datagram that was cut off. The
    buffer is larger than any datagram of UDP, so the last should not happen. With ``context``, a
    `contextvars.Context`, all callbacks of the socket run in one copy of it.

    Raises `SocketAddressInUse` or another `TcpServerBindError`, `ValueError` and `TypeError` for
    arguments that are wrong, and `EventLoopNotRunning`.

    >>> import pyasync
    >>> def answer(socket, data, address):
    ...     socket.send(data.upper(), address)
    >>> def show(socket, data, address):
    ...     print(data)
    ...     server.close()
    ...     socket.close()
    >>> with pyasync.event_loop():
    ...     server = pyasync.udp_socket("127.0.0.1", 0, answer)
    ...     client = pyasync.udp_socket("127.0.0.1", 0, show)
    ...     client.send(b"hello", server.address)
    b'HELLO'
    """
    loop = get_loop()
    optional_callable("read_cb", read_cb)
    optional_callable("event_cb", event_cb)
    optional_context(context)
    require_port(port)
    require_flag("reuse_port", reuse_port)
    require_flag("broadcast", broadcast)
    loop.submit()  # the pending close of another socket may free the address
    sock = bind(bind_address, port, reuse_port, sockets.SOCK_DGRAM)
    with sock:
        sock.setsockopt(sockets.SOL_SOCKET, sockets.SO_BROADCAST, broadcast)
        if context is None:
            return UdpSocket(loop, sock, read_cb, event_cb)
        binder = Binder(context)
        udp = UdpSocket(loop, sock, binder.bind(read_cb), binder.bind(event_cb))
        udp._binder = binder
        return udp
