"""Addresses of datagrams: what the `socket` module has, and what crosses into C.

Between Python and C an address goes before its datagram, packed as csrc/udp.cdef.h says.
"""

from __future__ import annotations

import socket as sockets
from struct import Struct
from typing import Any, Union

from pyasync._ffi import lib
from pyasync.arguments import require_host, require_port

#: As the `socket` module has it: (host, port), of IPv6 (host, port, flowinfo, scope_id).
Address = Union["tuple[str, int]", "tuple[str, int, int, int]"]

#: An address family of the `socket` module, and a numeric address.
NumericAddress = tuple[int, str]

V4, V6 = sockets.AF_INET, sockets.AF_INET6

#: An address over IPv4, as a socket of IPv6 knows it (RFC 4291, 2.5.5.2).
MAPPED = "::ffff:"

#: What goes before a datagram to the peer to which the socket is connected.
TO_PEER = Struct("=H").pack(sockets.AF_UNSPEC)

_IN = Struct("=H2s4s")
_IN6 = Struct("=H2s4s16sI")


def numeric_address(host: str) -> NumericAddress | None:
    """Return the address, in its usual form, if the host is one and needs no lookup."""
    if "\0" in host:
        raise ValueError(f"a host must not have zero bytes: {host!r}")  # C would see it end there
    address, percent, scope = host.partition("%")
    try:
        if not percent:
            return sockets.AF_INET, sockets.inet_ntoa(sockets.inet_pton(sockets.AF_INET, host))
    except OSError:
        pass
    try:
        packed = sockets.inet_pton(sockets.AF_INET6, address)
    except OSError:
        return None
    # Only an address of IPv6 may have a %scope (RFC 4007).
    return sockets.AF_INET6, sockets.inet_ntop(sockets.AF_INET6, packed) + percent + scope


class AddressFormat:
    """How the addresses of one socket are packed. ``dual``: it is of IPv6, and for both."""

    __slots__ = ("dual", "family", "name", "size")

    def __init__(self, sock: sockets.socket) -> None:
        self.family = sock.family
        self.dual = sock.family == V6 and not sock.getsockopt(
            sockets.IPPROTO_IPV6, sockets.IPV6_V6ONLY
        )
        self.name = sock.getsockname()[0]
        #: Bytes of a packed address.
        self.size = (_IN6 if sock.family == V6 else _IN).size

    def numeric(self, host: str) -> str:
        """Return the host as an address of the socket's family, or raise `ValueError`."""
        found = numeric_address(host)
        if found is None:
            raise ValueError(f"the host must be a numeric address, not {host!r}: see dns_lookup")
        family, text = found
        if family == self.family:
            return text
        if self.dual:
            return MAPPED + text
        raise ValueError(f"a socket of {self.name} cannot send to {host!r}")

    def pack(self, address: Any) -> bytes:
        """Pack an address; raise `ValueError` or `TypeError` if it is none for this socket."""
        if not isinstance(address, tuple):
            raise TypeError(f"address must be a tuple, not {type(address).__name__}")
        if not 2 <= len(address) <= (2 if self.family == V4 else 4):
            raise ValueError(f"address must be (host, port), not {address!r}")
        host, port, flowinfo, scope = (*address, 0, 0)[:4]
        require_target(host, port)
        if not isinstance(flowinfo, int) or not isinstance(scope, int):
            raise TypeError(f"flowinfo and scope_id must be integers: {address!r}")
        if not (0 <= flowinfo < 1 << 20 and 0 <= scope < 1 << 32):
            raise ValueError(f"flowinfo or scope_id is out of range: {address!r}")
        host, _, zone = self.numeric(host).partition("%")
        packed, in_order = sockets.inet_pton(self.family, host), port.to_bytes(2, "big")
        if self.family == V4:
            return _IN.pack(V4, in_order, packed)
        return _IN6.pack(
            V6, in_order, flowinfo.to_bytes(4, "big"), packed, zone_number(zone) if zone else scope
        )

    def unpack(self, header: bytes) -> Any:
        """Return what `pack` has packed."""
        if self.family == V4:
            _, port, packed = _IN.unpack(header)
            return (sockets.inet_ntoa(packed), int.from_bytes(port, "big"))
        _, port, flowinfo, packed, scope = _IN6.unpack(header)
        return (
            sockets.inet_ntop(V6, packed),
            int.from_bytes(port, "big"),
            int.from_bytes(flowinfo, "big"),
            scope,
        )


def is_mapped(header: bytes) -> bool:
    """Whether a packed address is one over IPv4, in a socket of IPv6."""
    return len(header) == _IN6.size and header[8:20] == bytes(10) + b"\xff\xff"


def zone_number(zone: str) -> int:
    """Return the number of a zone of IPv6 addresses: an interface's name, or its number."""
    number: int = int(zone) if zone.isdecimal() else lib.if_nametoindex(zone.encode())
    if not 0 < number < 1 << 32:
        raise ValueError(f"there is no interface {zone!r}")
    return number


def interface_of(family: int, interface: str) -> bytes:
    """Return an interface as libuv wants it: an address, of IPv6 one with a zone."""
    require_host("interface", interface)
    found = numeric_address(interface)
    if found is not None and found[0] == family:
        return interface.encode()
    if found is None and family == V6:
        return b"::%%%d" % zone_number(interface)
    raise ValueError(f"interface must be an address of it, or of IPv6 its name, not {interface!r}")


def require_target(host: Any, port: Any) -> None:
    """Raise `TypeError` or `ValueError` unless that is what a datagram can be sent to."""
    require_host("host", host)
    require_port(port)
    if port == 0:
        raise ValueError("port must be from 1 to 65535, not 0")
