"""Numeric addresses and their zones, and their packed form for C.

All parsing of addresses is here, because libuv's parser takes a zone by its name only. Addresses
cross into C and back in the packed form of csrc/addresses.cdef.h.
"""

from __future__ import annotations

import functools
import os
import socket as sockets
import sys
from collections.abc import Callable
from struct import Struct
from typing import Any, Union

from pyasync._core.arguments import require_host, require_integer, wrong_type, wrong_value
from pyasync._ffi import ffi, lib
from pyasync.errors import check

#: An address of the `socket` module: (host, port), or of IPv6 (host, port, flowinfo, scope_id).
Address = Union["tuple[str, int]", "tuple[str, int, int, int]"]

#: What a socket's name may be: an address, or of a pipe a path, or the bytes of an abstract name.
SocketName = Union[Address, str, bytes]

#: An address family of the `socket` module, and a numeric address.
NumericAddress = tuple[int, str]

V4, V6 = sockets.AF_INET, sockets.AF_INET6

#: Prefix of an IPv4-mapped address: a socket of IPv6 names IPv4 peers so (RFC 4291, 2.5.5.2).
MAPPED = "::ffff:"

#: The header of a datagram from a connected socket: no address, because the kernel has the peer's.
TO_PEER = Struct("=H").pack(sockets.AF_UNSPEC)

# The port is bytes, because it is in network order. "=" packs without padding, as C unpacks it.
_IN = Struct("=H2s4s")
_IN6 = Struct("=H2s4s16sI")
#: The size of the longest packed address, in bytes.
PACKED_MAX = _IN6.size


def numeric_address(host: str, name: str = "host") -> NumericAddress | None:
    """Return the family and the address in its usual form; None if the host is a name.

    An address of IPv6 may have a zone after a percent sign (RFC 4007, section 11): the name of an
    interface, or its number. Raises `ValueError` if there is no such interface, and the errors of
    `require_host` for the argument ``name``.
    """
    require_host(name, host)
    address, percent, zone = host.partition("%")
    try:
        if not percent:
            return V4, sockets.inet_ntoa(sockets.inet_pton(V4, host))
    except OSError:
        pass
    try:
        packed = sockets.inet_pton(V6, address)
    except OSError:
        return None
    if percent:
        zone_number(zone, name)
    return V6, sockets.inet_ntop(V6, packed) + percent + zone


def ascii_host(host: str) -> str:
    """Return the form of a host's name that DNS and certificates have, in small ASCII letters.

    Whatever needs a name must take it from here, because two conversions may differ: IDNA 2003 and
    IDNA 2008 make two names of ``straße``, and the owner of one would pass for the other. This is
    IDNA 2008 (RFC 5891, mapped as by UTS 46) where the package ``idna`` is installed, IDNA 2003
    (RFC 3490, Python's codec) where it is not. A numeric address stays as it is. Raises
    `UnicodeError` for what is no name.
    """
    if numeric_address(host) is not None:  # the name of its zone is of no concern to DNS
        return host
    if not host.isascii():
        if len(host) > 253:  # RFC 1035, 2.3.4; the conversion's time may grow with its square
            raise UnicodeError(f"a host's name is too long: {len(host)} characters")
        host = _idna_encoder()(host).decode("ascii")
    return host.lower()


@functools.cache  # the choice must not change while the process lives
def _idna_encoder() -> Callable[[str], bytes]:
    try:
        import idna  # here, because it takes time to load, and few need it
    except ImportError:
        return lambda host: host.encode("idna")
    return functools.partial(idna.encode, uts46=True)


def zone_number(zone: str, name: str = "host") -> int:
    """Return the number of the interface that a zone of the argument ``name`` has.

    Raises `ValueError` if there is none.
    """
    # By name first: an interface may have a number for a name.
    number: int = lib.if_nametoindex(os.fsencode(zone))
    if number:
        return number
    if zone.isascii() and zone.isdecimal() and 0 < int(zone) < 1 << 32:
        text = ffi.new("char[]", lib.IF_NAMESIZE)
        if lib.if_indextoname(int(zone), text):
            return int(zone)
    raise ValueError(f"{name} must name an interface of this host: there is no interface {zone!r}")


def pack_address(host: str, port: int, flowinfo: int = 0, scope: int = 0) -> bytes:
    """Pack a numeric address for C. The zone, if there is one, replaces ``scope``."""
    address, percent, zone = host.partition("%")
    in_order = port.to_bytes(2, "big")
    if ":" not in address:
        return _IN.pack(V4, in_order, sockets.inet_pton(V4, address))
    packed = sockets.inet_pton(V6, address)
    if percent:
        scope = zone_number(zone)
    return _IN6.pack(V6, in_order, flowinfo.to_bytes(4, "big"), packed, scope)


def unpack_name(packed: bytes) -> SocketName:
    """Return a socket's name in the form of the `socket` module: of a pipe too."""
    if int.from_bytes(packed[:2], sys.byteorder) != sockets.AF_UNIX:
        return unpack_address(packed)
    name = packed[2:]
    return name if name[:1] == b"\0" else os.fsdecode(name)  # bytes: an abstract name


def unpack_address(packed: bytes) -> Address:
    """Return a packed address in the form of the `socket` module; bytes may follow it."""
    if int.from_bytes(packed[:2], sys.byteorder) == V4:
        _, port, address = _IN.unpack(packed[: _IN.size])
        return (sockets.inet_ntoa(address), int.from_bytes(port, "big"))
    _, port, flowinfo, address, scope = _IN6.unpack(packed)
    return (
        sockets.inet_ntop(V6, address),
        int.from_bytes(port, "big"),
        int.from_bytes(flowinfo, "big"),
        scope,
    )


class AddressFormat:
    """How the addresses of one socket are packed. ``dual``: an IPv6 socket for both families."""

    __slots__ = ("dual", "family", "name", "size")

    def __init__(self, sock: sockets.socket) -> None:
        self.family = sock.family
        self.dual = sock.family == V6 and not sock.getsockopt(
            sockets.IPPROTO_IPV6, sockets.IPV6_V6ONLY
        )
        self.name = sock.getsockname()[0]
        #: Bytes of a packed address.
        self.size = (_IN6 if sock.family == V6 else _IN).size

    def numeric(self, host: str, name: str) -> str:
        """Return the host as an address of the socket's family, or raise `ValueError`.

        An IPv4 address becomes an IPv4-mapped one for a socket of both families.
        """
        found = numeric_address(host, name)
        if found is None:
            raise wrong_value(name, "a numeric address (see dns_lookup)", host)
        family, text = found
        if family == self.family:
            return text
        if self.dual:
            return MAPPED + text
        raise wrong_value(name, f"an address that a socket at {self.name} can send to", host)

    def pack(self, address: Any) -> bytes:
        """Pack an address of the `socket` module, or raise `ValueError` or `TypeError`."""
        allowed = "a tuple (host, port)" + ("" if self.family == V4 else ", as of socket.AF_INET6")
        if not isinstance(address, tuple):
            raise wrong_type("address", allowed, address)
        if not 2 <= len(address) <= (2 if self.family == V4 else 4):
            raise wrong_value("address", allowed, address)
        host, port, flowinfo, scope = (*address, 0, 0)[:4]
        require_target(host, port, " in address")
        # A flow label has 20 bits (RFC 8200, section 6), and sin6_scope_id 32.
        require_integer("flowinfo in address", flowinfo, 0, (1 << 20) - 1)
        require_integer("scope_id in address", scope, 0, (1 << 32) - 1)
        return pack_address(self.numeric(host, "host in address"), port, flowinfo, scope)


def is_mapped(header: bytes) -> bool:
    """Whether a packed address is IPv4-mapped (RFC 4291, 2.5.5.2)."""
    return len(header) == _IN6.size and header[8:20] == bytes(10) + b"\xff\xff"


def interface_number(interface: str, *families: int) -> int:
    """Return the number of an interface, given by its name or by one of its addresses.

    The address must be of one of ``families``. ``0.0.0.0`` and ``::`` give 0, the system's choice.
    Raises `ValueError` and `TypeError`.
    """
    found = numeric_address(interface, "interface")
    if found is None:
        return zone_number(interface, "interface")
    family, text = found
    address, _, zone = text.partition("%")
    if family in families:
        if zone:
            return zone_number(zone, "interface")
        if address in ("0.0.0.0", "::"):
            return 0
        number = check(lib.pa_interface_with(pack_address(address, 0)))
        if number:
            return number
    raise wrong_value("interface", "the name or an address of one", interface)


def require_target(host: Any, port: Any, where: str = "") -> None:
    """Raise `TypeError` or `ValueError` unless the types are right and the port is not 0.

    ``where`` comes after their names in the message.
    """
    require_host(f"host{where}", host)
    # 0 means "any" to bind(2), and is no destination (RFC 768).
    require_integer(f"port{where}", port, 1, 65535)
