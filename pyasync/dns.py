"""Lookups of names, on libuv's resolver: getaddrinfo(3) in a thread of libuv's pool."""

from __future__ import annotations

import errno
import socket as sockets
from collections.abc import Callable

from pyasync._ffi import ffi, lib
from pyasync.errors import DnsError, message
from pyasync.loop import EventCallback, Loop
from pyasync.requests import Request

#: An address family of the `socket` module, and a numeric address.
Address = tuple[int, str]
FoundCallback = Callable[[list[Address]], object]


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
        self._begin(lib.pa_getaddrinfo, host.encode(), family)

    def _results(self, address: int) -> tuple[list[Address]]:
        found = lib.pa_getaddrinfo_result(address)
        if found.status != 0:
            raise self._error(found.status)
        if found.count == 0:
            raise self._error(-errno.ENOENT)
        return (
            [
                (found.addresses[index].family, ffi.string(found.addresses[index].text).decode())
                for index in range(found.count)
            ],
        )

    def _error(self, status: int) -> DnsError:
        return dns_error(status, self.host)


def dns_error(status: int, host: str) -> DnsError:
    """Return the exception for a libuv error of a lookup."""
    name = ffi.string(lib.uv_err_name(status)).decode()
    code = getattr(sockets, name, status) if name.startswith("EAI_") else status
    return DnsError(code, f"{message(status)}: {host}")


def numeric_address(host: str) -> Address | None:
    """Return the address if the host is one and needs no lookup."""
    if "\0" in host:
        raise ValueError(f"a host must not have zero bytes: {host!r}")  # C would see it end there
    for family in (sockets.AF_INET, sockets.AF_INET6):
        try:
            # Only an address of IPv6 may have a %scope (RFC 4007).
            sockets.inet_pton(
                family, host.partition("%")[0] if family == sockets.AF_INET6 else host
            )
        except OSError:
            continue
        return family, host
    return None
