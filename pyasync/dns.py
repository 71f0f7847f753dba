"""Lookups of names and addresses, on libuv's resolver: getaddrinfo(3) and getnameinfo(3).

They run in threads of libuv's pool, and take half of these at most, because a slow resolver must
not keep operations on files waiting. More lookups than that wait for their turn.
"""

from __future__ import annotations

import socket as sockets
from collections.abc import Callable

from pyasync._core.addresses import numeric_address
from pyasync._core.arguments import (
    optional_callable,
    require_callable,
    require_host,
    wrong_type,
    wrong_value,
)
from pyasync._core.pool_requests import FoundCallback
from pyasync._core.pool_requests import Lookup as CoreLookup
from pyasync._core.pool_requests import ReverseLookup as CoreReverseLookup
from pyasync.errors import EventError
from pyasync.loop import EventCallback, Loop, get_loop

FAMILIES = (sockets.AF_UNSPEC, sockets.AF_INET, sockets.AF_INET6)


class Lookup(CoreLookup):
    """A lookup of a name that is under way."""

    __slots__ = ()

    _loop: Loop

    def _report_error(self, error: EventError) -> None:
        self._loop.report(self, error)


class ReverseLookup(CoreReverseLookup):
    """A lookup of an address that is under way."""

    __slots__ = ()

    _loop: Loop

    def _report_error(self, error: EventError) -> None:
        self._loop.report(self, error)


def dns_lookup(
    host: str,
    resolve_cb: Callable[[str, int], object],
    *,
    event_cb: EventCallback | None = None,
    family: int = sockets.AF_UNSPEC,
) -> Lookup:
    """Find an address of a host, and call ``resolve_cb(address, family)``, later.

    The address is numeric, a string; its family is ``socket.AF_INET`` or ``AF_INET6``. It is the
    first of those that `dns_lookup_all` finds. The arguments, the errors and the result are those
    of `dns_lookup_all`.

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
    which the system looks up in its own way (nsswitch.conf(5)). A name that is not ASCII is looked
    up in its form of IDNA 2008 (RFC 5891) where the package ``idna`` is installed, and of IDNA 2003
    where it is not. ``host`` may be a numeric address: then nothing is looked up. ``family`` is
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

    ``ip`` is a numeric address, of IPv4 or IPv6. ``host`` is its name, or the address itself if it
    has no name, as getnameinfo(3) does it. ``service`` is the service of port 0, usually ``"0"``;
    it is there because cl-async's callback has it. If the lookup fails, ``event_cb`` gets a
    `DnsError`.

    Returns the lookup, which is that of `dns_lookup_all`. Raises `ValueError` if ``ip`` is no
    numeric address, or its zone no interface; `TypeError` if it is no string; and
    `EventLoopNotRunning`.
    """
    require_callable("resolve_cb", resolve_cb)
    optional_callable("event_cb", event_cb)
    if numeric_address(ip, "ip") is None:
        raise wrong_value("ip", "a numeric address", ip)
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
    if not isinstance(family, int) or family not in FAMILIES:
        error = wrong_value if isinstance(family, int) else wrong_type
        raise error("family", "AF_INET, AF_INET6 or AF_UNSPEC", family)
    return Lookup(get_loop(), host, family, found_cb, event_cb)
