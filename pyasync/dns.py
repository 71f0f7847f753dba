"""Lookups of names, on libuv's resolver: getaddrinfo(3) in a thread of libuv's pool."""

from __future__ import annotations

import errno
import socket as sockets
from collections.abc import Callable
from typing import Optional

from pyasync._ffi import ffi, lib
from pyasync.errors import DnsError, message
from pyasync.loop import Loop

#: An address family of the `socket` module, and a numeric address.
Address = tuple[int, str]
FoundCallback = Callable[[Optional[DnsError], list[Address]], object]


class Lookup:
    """A lookup that is under way. It keeps the loop running."""

    __slots__ = ("_event_cb", "_found_cb", "_loop", "_number", "host")

    def __init__(self, loop: Loop, host: str, family: int, found_cb: FoundCallback) -> None:
        """Call ``found_cb(error, addresses)`` when it is known where ``host`` is."""
        self.host = host
        self._loop = loop
        self._event_cb = None
        self._found_cb: FoundCallback | None = found_cb
        self._number = loop._request_count
        loop._request_count = (loop._request_count + 1) % 2**31
        status = lib.pa_getaddrinfo(loop._c, self._number, host.encode(), family)
        if status != 0:
            # libuv refuses it at once, such as a name that is too long.
            error = dns_error(status, host)
            loop._ready.append(lambda: self._finish(error, []))
        else:
            loop._requests[self._number] = self

    def close(self) -> None:
        """Forget the lookup: its callback is not called."""
        if self._found_cb is not None:
            self._found_cb = None
            if self._loop._thread is not None:
                lib.pa_lookup_cancel(self._loop._c, self._number)

    @property
    def closed(self) -> bool:
        """Whether the lookup is over, or was closed."""
        return self._found_cb is None

    def _on_event(self, kind: int, value: int) -> None:
        found = ffi.cast("pa_found *", value)
        status = found.status
        addresses = [
            (found.addresses[index].family, ffi.string(found.addresses[index].text).decode())
            for index in range(found.count)
        ]
        lib.pa_found_free(self._loop._c, found)
        if status == 0 and not addresses:
            status = -errno.ENOENT
        self._finish(dns_error(status, self.host) if status != 0 else None, addresses)

    def _finish(self, error: DnsError | None, addresses: list[Address]) -> None:
        found_cb, self._found_cb = self._found_cb, None
        if found_cb is not None:
            found_cb(error, addresses)


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
