"""Requests, which libuv performs in a thread of its pool; and lookups, which are requests.

The pool has four threads for all loops of the process (libuv's ``UV_THREADPOOL_SIZE``). Lookups
take half of them at most, because a slow resolver must not keep operations on files waiting. More
lookups than that wait for their turn.
"""

from __future__ import annotations

import errno
import os
import socket as sockets
from collections.abc import Callable
from typing import Any

from pyasync._core.addresses import NumericAddress, ascii_host, numeric_address, pack_address
from pyasync._core.deadlines import Timer
from pyasync._core.engine import Engine
from pyasync._ffi import ffi, lib
from pyasync.errors import DnsError, EventError, message

FoundCallback = Callable[[list[NumericAddress]], object]


class Request:
    """An operation in a thread of the pool. It keeps the loop running until it is over, or closed.

    C owns the request's memory until `_on_event` frees it, also when Python has closed the request:
    a thread may be writing to it.
    """

    __slots__ = ("__weakref__", "_address", "_callback", "_event_cb", "_loop")

    def __init__(self, loop: Engine, callback: Callable[..., object], event_cb: Any) -> None:
        self._loop = loop
        self._callback: Callable[..., object] | None = callback
        self._event_cb = event_cb
        self._address = -1

    def _begin(self, function: Callable[..., int], *arguments: Any) -> None:
        """Call a C function that begins a request, and returns its address or a negative error."""
        self._loop.submit()
        address = function(self._loop.c, *arguments)
        if address < 0:  # refused at once, for example a name that is too long
            self._finish_soon(error=self._error(address))
        else:
            self._address = address
            self._loop.requests[address] = self

    def _finish_soon(self, *results: Any, error: EventError | None = None) -> None:
        """End the request without a thread, but in a later iteration.

        No callback runs inside the call that begins a request.
        """

        def finish() -> None:
            if error is not None:
                self._fail(error)
            else:
                self._succeed(*results)

        Timer(self._loop, finish, self._event_cb).start()

    def close(self) -> None:
        """Forget the request: its callback is not called.

        A thread that has begun the operation completes it, because nothing can interrupt it.
        Closing twice does nothing.
        """
        if self._callback is None:
            return
        running = self._loop.may_change()
        self._callback = None
        if running and self._address >= 0:
            lib.pa_request_cancel(self._loop.c, self._address)

    @property
    def closed(self) -> bool:
        """Whether the request is over, or was closed, or its loop has ended."""
        return self._callback is None or self._loop.closed

    # Called by the loop

    def _on_event(self, kind: int, value: int, data: int) -> None:
        """Take PA_DONE."""
        self._address = -1
        try:
            try:
                results = self._results(value)
            finally:  # before any callback, which may raise: the memory would leak
                lib.pa_request_free(self._loop.c, value)
        except EventError as error:
            self._fail(error)
        else:
            self._succeed(*results)

    def _succeed(self, *results: Any) -> None:
        callback, self._callback = self._callback, None
        if callback is not None:
            callback(*results)

    def _fail(self, error: EventError) -> None:
        callback, self._callback = self._callback, None
        if callback is not None:
            self._report_error(error)

    def _report_error(self, error: EventError) -> None:
        """Report that the request has failed: an API overrides this for its own rules."""
        if self._event_cb is not None:
            self._event_cb(error)

    # For the kinds of request

    def _results(self, address: int) -> tuple[Any, ...]:
        """Return the arguments for the callback, copied from C's request, or raise the error."""
        raise NotImplementedError

    def _error(self, status: int) -> EventError:
        """Return the exception for a libuv error."""
        raise NotImplementedError


class Lookup(Request):
    """A lookup of a name that is under way."""

    __slots__ = ("host",)

    def __init__(
        self,
        loop: Engine,
        host: str,
        family: int,
        found_cb: FoundCallback,
        event_cb: Any = None,
    ) -> None:
        """Call ``found_cb(addresses)`` when the addresses of ``host`` are known."""
        super().__init__(loop, found_cb, event_cb)
        #: The name that is looked up.
        self.host = host
        address = numeric_address(host)
        if address is None:
            try:
                name = ascii_host(host)
            except UnicodeError:
                self._finish_soon(error=self._error(lib.UV_EAI_NONAME))
                return
            self._begin(lib.pa_getaddrinfo, name.encode(), family)
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
        loop: Engine,
        ip: str,
        found_cb: Callable[[str, str], object],
        event_cb: Any = None,
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
        # The owner of the address chooses the name, so that it may be any bytes.
        return os.fsdecode(ffi.string(name.host)), os.fsdecode(ffi.string(name.service))

    def _error(self, status: int) -> DnsError:
        return dns_error(status, self.ip)


def dns_error(status: int, host: str) -> DnsError:
    """Return the exception for a libuv error of a lookup."""
    if -status in (errno.EINVAL, errno.ENAMETOOLONG):  # libuv has refused the name: none such
        status = lib.UV_EAI_NONAME
    name = ffi.string(lib.uv_err_name(status)).decode()
    code = getattr(sockets, name, sockets.EAI_FAIL) if name[:4] == "EAI_" else sockets.EAI_SYSTEM
    error = DnsError(code, f"{message(status)}: {host or repr(host)}")
    error._errcode = status
    return error
