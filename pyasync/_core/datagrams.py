"""UDP sockets, without an API.

A datagram crosses between Python and C behind its header, the peer's packed address, and otherwise
like a stream's data: it leaves with the iteration's other operations. Datagrams are received
several at a time (recvmmsg(2)). Addresses are packed as in
`pyasync._core.addresses`, and each socket caches them.
"""

from __future__ import annotations

import errno
import socket as sockets
from collections import deque
from collections.abc import Callable
from struct import Struct
from threading import get_ident
from typing import TYPE_CHECKING, Any

from pyasync._core.addresses import (
    TO_PEER,
    V4,
    V6,
    Address,
    AddressFormat,
    ascii_host,
    interface_number,
    is_mapped,
    numeric_address,
    pack_address,
    require_target,
    unpack_address,
    zone_number,
)
from pyasync._core.arguments import (
    optional_callable,
    require_flag,
    require_integer,
    wrong_value,
)
from pyasync._core.contexts import Binder
from pyasync._core.deadlines import Timer, background_timer
from pyasync._core.engine import Engine
from pyasync._core.handles import CHandle
from pyasync._core.sockets import PeerHandle
from pyasync._core.stream import (
    WRITE,
    WRITE_CALLBACK,
    Data,
    WriteCallback,
    add_blocked_callback,
    as_buffer_slice,
    call_blocked_callback,
)
from pyasync._ffi import ffi, lib
from pyasync.errors import DnsError, EventError, SocketClosed, check, socket_error

#: The most data of a datagram, in bytes: 65,535 less 8 for the header of UDP (RFC 768), and over
#: IPv4 less 20 for the header of IP, which counts there (RFC 791), and not in IPv6 (RFC 8200).
MAX_SIZE = {V4: 65507, V6: 65527}

#: ip_mreqn (ip(7)): a group, an address of the interface, and its number.
IP_MREQN = Struct("=4s4si")

#: A socket whose reads fail again and again tries again after this time, in seconds.
RECEIVE_RETRY = 0.1

#: The size of each cache of addresses, in peers.
REMEMBERED = 4096


class DatagramSocket(PeerHandle, CHandle):
    """A UDP socket.

    Datagrams go to ``read_cb(socket, data, address)``; if that is None they are dropped.
    """

    __slots__ = (
        "_address",
        "_binder",
        "_blocked_callbacks",
        "_format",
        "_header_size",
        "_max_size",
        "_peer",
        "_peers",
        "_read_cb",
        "_targets",
        "data",
    )

    _closed_error = SocketClosed

    if TYPE_CHECKING:

        @property
        def peername(self) -> Address: ...
        @property
        def sockname(self) -> Address: ...

    #: Not zero, so that the engine calls `_on_read`: see the contract in Engine.
    _state = 2

    def __init__(
        self,
        loop: Engine,
        sock: sockets.socket,
        read_cb: Callable[[Any, bytes, Any], object] | None,
        event_cb: Any,
    ) -> None:
        """Take over a bound socket."""
        self._format = AddressFormat(sock)
        self._header_size = self._format.size
        self._max_size = MAX_SIZE[sock.family]
        self._address = sock.getsockname()
        self._read_cb = read_cb
        #: Of an API: what binds the callbacks of datagrams to the socket's context, or None.
        self._binder: Binder | None = None
        #: The address of the connected peer, or None.
        self._peer: Any = None
        self._peers: dict[bytes, Any] = {}
        self._targets: dict[Any, bytes] = {}
        self._blocked_callbacks: deque[Any] = deque()
        #: For the application to use as it likes.
        self.data: Any = None
        super().__init__(loop, check(lib.pa_udp_open(loop.c, sock.detach())), event_cb)

    # Sending

    def send(
        self,
        data: Data,
        address: Address | None = None,
        *,
        write_cb: WriteCallback | None = None,
    ) -> None:
        """Send a datagram, in the order of these calls; it never blocks.

        ``data`` is bytes-like, or a string to be sent as UTF-8; it may be empty. ``address`` is
        that of the `socket` module: ``(host, port)``, where the host is numeric; of IPv6 flowinfo
        and scope_id may follow. A socket for both families takes addresses of both. After `connect`
        it is None.

        Datagrams leave when the callback that sends them has returned; a datagram that the kernel
        refuses for lack of room waits in a queue. ``write_cb(socket)`` is called once the kernel
        has taken this datagram and all before it, never inside this call. That does not mean that
        it arrives. A datagram that cannot be sent is reported to ``event_cb``, and the socket goes
        on: for example ENETUNREACH, or EACCES for a broadcast without ``broadcast=True``.

        Raises `ValueError` for an address that is not numeric, or of the wrong family, and for
        more data than a datagram holds (65,507 bytes, over IPv6 65,527); `TypeError` for data or
        an address of a wrong type; `SocketError` for an address after `connect` (EISCONN), or None
        before it (EDESTADDRREQ); and `SocketClosed`.
        """
        loop = self._loop
        if self._slot < 0 or loop.thread != get_ident():
            self._open_slot()
        try:
            target = self._targets.get(address)
        except TypeError:  # it has no hash, and so it is no tuple
            target = None
        if target is None:
            target = self._target(address)
        if type(data) is not bytes:
            data = bytes(as_buffer_slice(data))  # to be joined with the header
        if len(data) > MAX_SIZE[V4]:
            self._check_size(len(data), target)
        if write_cb is not None:
            if not callable(write_cb):
                optional_callable("write_cb", write_cb)
            if self._binder is not None:
                write_cb = self._binder.bind(write_cb)
        datagram = target + data
        size = len(datagram)
        callback = None if write_cb is None else (self, write_cb)
        if size <= loop.inline_limit:
            kind = WRITE if callback is None else WRITE_CALLBACK
            loop.queue((kind, self._slot, size, datagram, callback))
        else:
            loop.write_now(self._slot, datagram, callback)

    def _check_size(self, size: int, target: bytes) -> None:
        limit = MAX_SIZE[V4] if is_mapped(target) else self._max_size
        if size > limit:
            raise ValueError(f"data must have {limit} bytes at most (a datagram's), not {size}")

    def _target(self, address: Any) -> bytes:
        """Return the header for an address, and cache it."""
        if address is None:
            raise socket_error(-errno.EDESTADDRREQ, self)
        if None in self._targets:
            raise socket_error(-errno.EISCONN, self, detail="address must be None")
        target = self._format.pack(address)
        self._remember(self._targets, address, target)
        return target

    @staticmethod
    def _remember(known: dict[Any, Any], key: Any, value: Any) -> None:
        if len(known) >= REMEMBERED:  # bounded, because anybody may send from ever new addresses
            known.clear()
        known[key] = value

    def connect(self, host: str, port: int) -> None:
        """Talk to one peer only: datagrams of others are dropped, and `send` needs no address.

        ``host`` is a numeric address, or a name, which is looked up at once, in a call that blocks;
        `dns_lookup` does not. Nothing is sent. If the peer's system answers that nobody listens
        there, ``event_cb`` gets a `SocketRefused`, and the socket goes on (udp(7)).

        Raises `SocketError` if there is no route to the peer, or the socket is connected already
        (EISCONN), `DnsError` for a name that is not found, `ValueError` and `TypeError` for
        arguments that are wrong, and `SocketClosed`.
        """
        slot = self._open_slot()
        require_target(host, port)
        where = (host, port) if numeric_address(host) else self._look_up(host, port)
        target = pack_address(self._format.numeric(where[0], "host"), *where[1:])
        self._loop.submit()  # earlier datagrams go to their own addresses
        status = lib.pa_udp_connect(self._loop.c, slot, target)
        if status != 0:
            raise socket_error(status, self, detail=f"{host} port {port}")
        self._targets = {None: TO_PEER}  # the cache's only entry: any other address is EISCONN
        # The system's form of the peer's address: connect takes 0.0.0.0 for 127.0.0.1, for example.
        self._peer = self.peername
        self._peers = {}  # new, because `_sender` lets strangers into the old one
        if is_mapped(target):
            self._max_size = MAX_SIZE[V4]

    def _look_up(self, host: str, port: int) -> Any:
        family = sockets.AF_UNSPEC if self._format.dual else self._format.family
        try:
            name = ascii_host(host).encode()
            found = sockets.getaddrinfo(name, port, family, sockets.SOCK_DGRAM)
        except sockets.gaierror as error:
            raise DnsError(error.errno, f"{error.strerror}: {host or repr(host)}") from None
        return found[0][4]

    @property
    def send_queue_size(self) -> int:
        """Bytes of datagrams, without headers, that were sent and are not yet with the kernel."""
        size: int = lib.pa_udp_send_queue_size(self._loop.c, self._open_slot())
        # Pending writes have headers, all of one size, because `connect` submits those before it.
        header = len(TO_PEER) if None in self._targets else self._header_size
        pending, count = self._loop.pending_size(self._slot)
        size += pending - count * header
        return size

    # The socket

    @property
    def address(self) -> Address:
        """The address that the socket was bound to, from `socket.socket.getsockname`."""
        address: Address = self._address
        return address

    def close(self) -> None:
        """Send the datagrams that are pending, then close. Closing twice does nothing.

        Callbacks of these datagrams still run, no others.
        """
        if self._slot >= 0 and self._loop.may_change():
            slot, self._slot = self._slot, -1
            self._loop.queue((lib.PA_CLOSE, slot, 0, b"", None))

    # Options

    def join_multicast(
        self, group: str, interface: str | None = None, *, source: str | None = None
    ) -> None:
        """Receive the datagrams for a multicast group, on one interface.

        ``group`` is a numeric address. ``interface`` is the name of the interface, or one of its
        addresses, of the group's family; an address that several interfaces have, as link-local
        ones may, needs its zone (``fe80::1%eth0``). None: the interface of the group's zone
        (``ff02::7:7%eth0``), or one that the system chooses. With ``source``, a numeric address,
        only that host's datagrams are received (RFC 4607); call it for each source.

        Raises `ValueError` for a wrong address or interface, `TypeError`, `SocketError` if the
        system refuses, for example EADDRINUSE when the socket is a member already, and
        `SocketClosed`.
        """
        self._set_membership(group, interface, source, True)

    def leave_multicast(
        self, group: str, interface: str | None = None, *, source: str | None = None
    ) -> None:
        """Undo `join_multicast` with the same arguments. Raises the same errors."""
        self._set_membership(group, interface, source, False)

    def _set_membership(
        self, group: str, interface: str | None, source: str | None, join: bool
    ) -> None:
        slot = self._open_slot()
        family, text = self._own("group", group)
        address, _, zone = text.partition("%")
        # 224.0.0.0/4 (RFC 5771) and ff00::/8 (RFC 4291, 2.7).
        first = sockets.inet_pton(family, address)[0]
        if not (224 <= first < 240 if family == V4 else first == 0xFF):
            raise wrong_value("group", "a multicast address", group)
        if source is not None and self._own("source", source)[0] != family:
            raise wrong_value("source", "an address of the group's family", source)
        number = 0 if interface is None else interface_number(interface, family)
        of_group = zone_number(zone, "group") if zone else number
        if number not in (0, of_group):
            raise ValueError(f"group {group!r} is on another interface than {interface!r}")
        whom = ffi.NULL if source is None else pack_address(source, 0)
        self._loop.submit()  # in the order of the calls
        packed = pack_address(text, 0)
        status = lib.pa_udp_membership(self._loop.c, slot, packed, of_group, whom, join)
        if status < 0:
            raise socket_error(status, self, detail=f"group {group}")

    def set_multicast_interface(self, interface: str) -> None:
        """Send the datagrams for multicast groups through this interface.

        ``interface`` is as of `join_multicast`. On a socket for both families it may be an address
        of either, and is set for both. Raises `ValueError` if there is no such interface,
        `TypeError`, `SocketError`, and `SocketClosed`.
        """
        self._open_slot()
        families = (V4, V6) if self._format.dual else (self._format.family,)
        number = interface_number(interface, *families)
        found = numeric_address(interface)
        # Over IPv4 the interface's address is the datagrams' source too (ip(7)), unless the socket
        # is bound to an address.
        address = found[1] if found is not None and found[0] == V4 else "0.0.0.0"
        if V6 in families:
            self.setsockopt(sockets.IPPROTO_IPV6, sockets.IPV6_MULTICAST_IF, number)
        if V4 in families:
            request = IP_MREQN.pack(bytes(4), sockets.inet_aton(address), number)
            self.setsockopt(sockets.IPPROTO_IP, sockets.IP_MULTICAST_IF, request)

    def _own(self, name: str, host: str) -> tuple[int, str]:
        found = numeric_address(host, name)
        if found is None or not (found[0] == self._format.family or self._format.dual):
            raise wrong_value(name, "a numeric address of the socket's family", host)
        return found

    @property
    def multicast_ttl(self) -> int:
        """The TTL of multicast datagrams, 0 to 255: the routers that they may pass, and one.

        It is 1 unless set: they stay in the local network (IP_MULTICAST_TTL, ip(7)).
        """
        return self._option(sockets.IP_MULTICAST_TTL, sockets.IPV6_MULTICAST_HOPS)

    @multicast_ttl.setter
    def multicast_ttl(self, hops: int) -> None:
        require_integer("multicast_ttl", hops, 0, 255)
        self._set_option(sockets.IP_MULTICAST_TTL, sockets.IPV6_MULTICAST_HOPS, hops)

    @property
    def multicast_loop(self) -> bool:
        """Whether members on this host get this socket's multicast datagrams; by default they do.

        (IP_MULTICAST_LOOP, ip(7).)
        """
        return self._option(sockets.IP_MULTICAST_LOOP, sockets.IPV6_MULTICAST_LOOP) != 0

    @multicast_loop.setter
    def multicast_loop(self, on: bool) -> None:
        require_flag("multicast_loop", on)
        self._set_option(sockets.IP_MULTICAST_LOOP, sockets.IPV6_MULTICAST_LOOP, on)

    @property
    def ttl(self) -> int:
        """The TTL of other datagrams, 1 to 255: the routers that they may pass, and one.

        Unless set it is the system's (IP_TTL, ip(7)).
        """
        return self._option(sockets.IP_TTL, sockets.IPV6_UNICAST_HOPS)

    @ttl.setter
    def ttl(self, hops: int) -> None:
        require_integer("ttl", hops, 1, 255)
        self._set_option(sockets.IP_TTL, sockets.IPV6_UNICAST_HOPS, hops)

    @property
    def broadcast(self) -> bool:
        """Whether broadcasts may be sent (SO_BROADCAST, socket(7))."""
        value: int = self.getsockopt(sockets.SOL_SOCKET, sockets.SO_BROADCAST)
        return value != 0

    @broadcast.setter
    def broadcast(self, on: bool) -> None:
        require_flag("broadcast", on)
        self.setsockopt(sockets.SOL_SOCKET, sockets.SO_BROADCAST, on)

    def _option(self, of_v4: int, of_v6: int) -> int:
        if self._format.family == V4:
            level, option = sockets.IPPROTO_IP, of_v4
        else:
            level, option = sockets.IPPROTO_IPV6, of_v6
        value: int = self.getsockopt(level, option)
        return value

    def _set_option(self, of_v4: int, of_v6: int, value: int) -> None:
        # A socket for both families has an option for each.
        if self._format.family == V6:
            self.setsockopt(sockets.IPPROTO_IPV6, of_v6, value)
        if self._format.family == V4 or self._format.dual:
            self.setsockopt(sockets.IPPROTO_IP, of_v4, value)

    # Called by the loop

    def _on_read(self, arena: Any, start: int, end: int) -> None:
        """Take a header, the sender's address, and the datagram behind it."""
        read_cb = self._read_cb
        if read_cb is None or self._slot < 0:  # closed by a callback of the same batch
            return
        data = start + self._header_size
        header = arena[start:data]
        address = self._peers.get(header)
        if address is None:
            address = self._sender(header)
            if address is None:
                return
        read_cb(self, arena[data:end], address)

    def _sender(self, header: bytes) -> Any:
        """Return the address of a header, and cache it; None: it is not the connected peer's.

        The kernel drops a stranger's datagrams from connect(2) on, but keeps those that wait.
        """
        address, peer = unpack_address(header), self._peer
        if peer is not None and (address[:2] + address[3:] != peer[:2] + peer[3:]):
            return None  # compared without the flow label, which the peer may choose anew
        self._remember(self._peers, header, address)
        return address

    def _on_event(self, kind: int, value: int, data: int) -> None:
        if kind == lib.PA_CALLBACK_WAITS:
            add_blocked_callback(self, self._blocked_callbacks, value)
        elif kind == lib.PA_WRITTEN:
            if value:
                call_blocked_callback(self, self._blocked_callbacks)
        elif kind == lib.PA_WRITE_ERROR:
            if data:  # the lost datagram has a callback, which is not called
                self._blocked_callbacks.popleft()
            self._report_error(socket_error(value))
        elif kind == lib.PA_READ_ERROR and self._slot >= 0:
            if data:
                self._receive_later()
            self._report_error(socket_error(value))

    def _receive_later(self) -> None:
        """Try again after a while: C has paused, because one error follows another."""
        if self.has_ref:  # C's handle keeps the loop running only while it receives
            Timer(self._loop, self._receive_again).start(RECEIVE_RETRY)
        else:
            background_timer(self._loop, self._receive_again, RECEIVE_RETRY)

    def _receive_again(self) -> None:
        if self._slot >= 0:
            self._loop.queue((lib.PA_READ_START, self._slot, 0, b"", None))

    def _report_error(self, error: EventError) -> None:
        """Report an error, after which the socket goes on: for an API to override."""
        raise NotImplementedError
