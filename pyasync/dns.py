"""Lookups of names and addresses, on libuv's resolver: getaddrinfo(3) and getnameinfo(3).

They run in a thread of libuv's pool, of which lookups may take half at a time, so that they do not
keep operations on files waiting: the others wait for their turn.
"""

from __future__ import annotations

import errno
import os
import socket as sockets
from collections.abc import Callable

from pyasync._ffi import ffi, lib
from pyasync.addresses import NumericAddress, numeric_address, pack_address
from pyasync.arguments import optional_callable, require_callable, require_host
from pyasync.errors import DnsError, message
from pyasync.loop import EventCallback, Loop, get_loop
from pyasync.requests import Request

FoundCallback = Callable[[list[NumericAddress]], object]

FAMILIES = (sockets.AF_UNSPEC, sockets.AF_INET, sockets.AF_INET6)


class Lookup(Request):
    """A lookup of a name that is under way."""

    __slots__ = ("host",)

    def __init__(
        self,
        loop: Loop,
        host: str,
        family: int,
        found_cb: FoundCallback,
        event_cb: EventCallback | None,
    ) -> None:
        """Call ``found_cb(addresses)`` when it is known where ``host`` is."""
        super().__init__(loop, found_cb, event_cb)
        #: The name that is looked up.
        self.host = host
        address = numeric_address(host)
        if address is None:
            self._begin(lib.pa_getaddrinfo, host.encode(), family)
        elif family in (sockets.AF_UNSPEC, address[0]):
            self._finish_soon([address])
        else:
            self._finish_soon(error=self._error(lib.UV_EAI_ADDRFAMILY))

    def _results(self, address: int) -> tuple[list[NumericAddress]]:
        found = lib.pa_getaddrinfo_result(address)
        if found.status != 0:
            raise self._error(found.status)
        if found.count == 0:
            raise self._error(lib.UV_EAI_NONAME)
        return (
            [
                (sockets.AddressFamily(entry.family), ffi.string(entry.text).decode())
                for entry in found.addresses[0 : found.count]
            ],
        )

    def _error(self, status: int) -> DnsError:
        return dns_error(status, self.host)


class ReverseLookup(Request):
    """A lookup of an address that is under way."""

    __slots__ = ("ip",)

    def __init__(
        self,
        loop: Loop,
        ip: str,
        found_cb: Callable[[str, str], object],
        event_cb: EventCallback | None,
    ) -> None:
        """Call ``found_cb(host, service)`` when the name of ``ip`` is known."""
        super().__init__(loop, found_cb, event_cb)
        #: The address that is looked up.
        self.ip = ip
        self._begin(lib.pa_getnameinfo, pack_address(ip, 0))

    def _results(self, address: int) -> tuple[str, str]:
        name = lib.pa_getnameinfo_result(address)
        if name.status != 0:
            raise self._error(name.status)
        # Whoever owns the address chooses the name: it may be any bytes.
        return os.fsdecode(ffi.string(name.host)), os.fsdecode(ffi.string(name.service))

    def _error(self, status: int) -> DnsError:
        return dns_error(status, self.ip)


def dns_lookup(
    host: str,
    resolve_cb: Callable[[str, int], object],
    *,
    event_cb: EventCallback | None = None,
    family: int = sockets.AF_UNSPEC,
) -> Lookup:
    """Find an address of a host, and call ``resolve_cb(address, family)``, later.

    The address is numeric, a string; its family is ``socket.AF_INET`` or ``AF_INET6``. It is the
    first of those that `dns_lookup_all` finds. The arguments and errors are those of
    `dns_lookup_all`, and so is what is returned.

    >>> import pyasync
    >>> with pyasync.event_loop():
    ...     _ = pyasync.dns_lookup("127.0.0.1", lambda address, family: print(address))
    127.0.0.1
    """
    return _look_up(host, resolve_cb, lambda found: resolve_cb(*found[0][::-1]), event_cb, family)


def dns_lookup_all(
    host: str,
    resolve_cb: Callable[[list[tuple[str, int]]], object],
    *,
    event_cb: EventCallback | None = None,
    family: int = sockets.AF_UNSPEC,
) -> Lookup:
    """Find all addresses of a host, and call ``resolve_cb(addresses)``, later.

    ``addresses`` is a list of pairs ``(address, family)``, in the order in which they are to be
    tried: that of RFC 6724, as getaddrinfo(3) gives it. There is one at least. ``host`` is a name,
    which the system looks up in its own way (nsswitch.conf(5)); of one that is not ASCII, the form
    that IDNA gives it. It may be a numeric address: then nothing is looked up. ``family`` is
    ``socket.AF_INET``, ``AF_INET6``, or ``AF_UNSPEC`` for both.

    If there is no such host, or none in that family, ``event_cb`` gets a `DnsError`, whose
    ``errno`` is one of ``socket.EAI_NONAME`` and its like.

    Returns the lookup. It keeps the loop running; its ``close()`` cancels it, and then nothing is
    called. ``closed`` says whether it is over or was closed. Raises `ValueError` for another
    family, a host with a zero byte, or an address whose zone is no interface; `TypeError` for a
    host that is no string; and `EventLoopNotRunning`.
    """
    return _look_up(
        host,
        resolve_cb,
        lambda found: resolve_cb([(address, family) for family, address in found]),
        event_cb,
        family,
    )


def reverse_dns_lookup(
    ip: str,
    resolve_cb: Callable[[str, str], object],
    *,
    event_cb: EventCallback | None = None,
) -> ReverseLookup:
    """Find the name of an address, and call ``resolve_cb(host, service)``, later.

    ``ip`` is a numeric address, of IPv4 or IPv6. ``host`` is its name; an address that has none is
    given back as it is, as getnameinfo(3) does. ``service`` is that of port 0, so ``"0"`` as a
    rule: cl-async's callback has it. If the lookup fails, ``event_cb`` gets a `DnsError`.

    Returns the lookup, which is that of `dns_lookup_all`. Raises `ValueError` if ``ip`` is no
    numeric address, or its zone no interface; `TypeError` if it is no string; and
    `EventLoopNotRunning`.
    """
    require_host("ip", ip)
    require_callable("resolve_cb", resolve_cb)
    optional_callable("event_cb", event_cb)
    if numeric_address(ip) is None:
        raise ValueError(f"ip must be a numeric address, not {ip!r}")
    return ReverseLookup(get_loop(), ip, resolve_cb, event_cb)


def _look_up(
    host: str,
    resolve_cb: Callable[..., object],
    found_cb: FoundCallback,
    event_cb: EventCallback | None,
    family: int,
) -> Lookup:
    require_host("host", host)
    require_callable("resolve_cb", resolve_cb)
    optional_callable("event_cb", event_cb)
    if family not in FAMILIES:
        raise ValueError(f"family must be AF_INET, AF_INET6 or AF_UNSPEC, not {family!r}")
    return Lookup(get_loop(), host, family, found_cb, event_cb)


def dns_error(status: int, host: str) -> DnsError:
    """Return the exception for a libuv error of a lookup."""
    if -status in (errno.EINVAL, errno.ENAMETOOLONG):  # libuv has refused the name
        status = lib.UV_EAI_NONAME
    name = ffi.string(lib.uv_err_name(status)).decode()
    code = getattr(sockets, name, sockets.EAI_FAIL) if name[:4] == "EAI_" else sockets.EAI_SYSTEM
    error = DnsError(code, f"{message(status)}: {host}")
    error._errcode = status
    return error
