"""Descriptors that the program owns: `add_reader`, `add_writer`, and `sock_recv` and its like.

They are in an epoll set of their own, whose descriptor libuv polls like any other. libuv itself
must not know them: it aborts when a program closes a descriptor that it polls, and a handle of C's
could get the number.

A `sock_*` call that has to wait leaves a *waiter*, and arms its descriptor for one event
(EPOLLONESHOT, epoll(7)). After that the descriptor stays in the set, disarmed. So the next call
costs one `epoll_ctl` in place of two, and a descriptor whose open file lives on elsewhere (in a
child process, by a duplicate) causes one event at most. Which open file a number stands for is
asked of the kernel each time, because a program may close a socket and get its number again: the
set forgets a file that is closed.
"""

from __future__ import annotations

import asyncio
import errno
import select
import selectors
import socket as sockets
import sys
from asyncio import base_events, events
from collections.abc import Callable, Mapping
from contextvars import copy_context
from functools import partial
from time import sleep
from typing import Any

from pyasync._core.engine import PYPY, Engine
from pyasync._core.handles import CHandle
from pyasync._ffi import lib
from pyasync.aio.handles import Handle
from pyasync.errors import check

# Of epoll(7).
IN = 1
OUT = 4
ONESHOT = 1 << 30

#: How much of the data `sock_sendall` gives to the kernel at a time. On PyPy that is copied,
#: because of a view it takes 1 s for a MiB.
SEND_MAX = 1 << 18 if PYPY else sys.maxsize

#: Events that are taken at a time, at most.
EVENTS_MAX = 256

#: An operation of a socket that waits: its future, the call that performs it, or raises
#: `BlockingIOError`, and the watch of its descriptor.
Waiter = tuple["asyncio.Future[Any]", Callable[[], Any], "Watch"]


class Watch:
    """What waits for a descriptor: of each direction a handle, a `Waiter` or None."""

    __slots__ = ("fd", "file", "mask", "reader", "writer")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        #: What the program has given to add_reader: it may name it so after it has closed it.
        self.file: Any = fd
        #: As the kernel has it, but for `ONESHOT` that has fired.
        self.mask = 0
        self.reader: Any = None
        self.writer: Any = None


class SelectorSet:
    """What is used of `select.epoll`, by a selector: one that the program gives, or of macOS."""

    def __init__(self, selector: selectors.BaseSelector) -> None:
        self._selector: Any = selector
        self.fileno = self._selector.fileno
        self.close = selector.close

    def register(self, fd: int, mask: int) -> None:
        wanted = (selectors.EVENT_READ if mask & IN else 0) | (
            selectors.EVENT_WRITE if mask & OUT else 0
        )
        self._selector.register(fd, wanted, mask)

    def modify(self, fd: int, mask: int) -> None:
        try:
            self._selector.unregister(fd)
        except KeyError:
            raise FileNotFoundError from None
        self.register(fd, mask)

    def unregister(self, fd: int) -> None:
        self._selector.unregister(fd)

    def poll(self, timeout: float, most: int) -> list[tuple[int, int]]:
        found = []
        for key, ready in self._selector.select(timeout):
            found.append(
                (
                    key.fd,
                    (IN if ready & selectors.EVENT_READ else 0)
                    | (OUT if ready & selectors.EVENT_WRITE else 0),
                )
            )
            if key.data & ONESHOT:
                self._selector.unregister(key.fd)
        return found


class Descriptors(CHandle):
    """The descriptors of a loop. The loop's ``_selector``: it answers what asyncio asks of that."""

    __slots__ = ("_poll", "_set", "_watches", "on_signal", "ready")

    def __init__(self, engine: Engine, selector: Any) -> None:
        if selector is None and hasattr(select, "epoll"):
            self._set: Any = select.epoll()
        else:
            self._set = SelectorSet(selector or selectors.DefaultSelector())
        self._poll = self._set.poll
        #: The loop's queue of ready handles.
        self.ready: Any = None
        #: Called with the number of each signal that Python has a handler for.
        self.on_signal: Any = None
        self._watches: dict[int, Watch] = {}
        try:
            slot = check(lib.pa_poll_start(engine.c, self._set.fileno(), lib.UV_READABLE))
            super().__init__(engine, slot, None)
            check(lib.pa_report_signals(engine.c, slot))
        except BaseException:
            self._set.close()
            raise

    def close(self) -> None:
        super().close()
        self._set.close()
        self._watches = {}

    def _on_loop_end(self) -> None:
        super()._on_loop_end()
        self._set.close()

    # What waits

    def watch(self, fd: int) -> Watch:
        """Return the watch of a descriptor."""
        watch = self._watches.get(fd)
        if watch is None:
            watch = self._watches[fd] = Watch(fd)
        return watch

    def arm(self, watch: Watch) -> None:
        """Let the kernel report what the watch waits for. Raises `OSError`."""
        reader, writer = watch.reader, watch.writer
        mask = ONESHOT
        if reader is not None:
            mask |= IN
            if type(reader) is not tuple:
                mask &= ~ONESHOT
        if writer is not None:
            mask |= OUT
            if type(writer) is not tuple:
                mask &= ~ONESHOT
        watch.mask = mask
        try:
            self._set.modify(watch.fd, mask)
        except FileNotFoundError:  # it is new, or another file has got the number
            self._set.register(watch.fd, mask)

    def disarm(self, watch: Watch) -> None:
        """Take the kernel's mind off what does not wait any more."""
        if watch.reader is not None or watch.writer is not None:
            self.arm(watch)
        elif not watch.mask & ONESHOT:
            del self._watches[watch.fd]
            try:
                self._set.unregister(watch.fd)
            except (OSError, KeyError):  # its file is closed, and the kernel has forgotten it
                pass

    def find(self, file: Any) -> Watch | None:
        """Return the watch of a file, if it has one. The file may be closed already."""
        try:
            return self._watches.get(_number(file))
        except ValueError:
            for watch in self._watches.values():
                if watch.file is file:
                    return watch
            raise

    # Events

    def _on_event(self, kind: int, value: int, data: int) -> None:
        if self._slot < 0:
            return
        if kind == lib.PA_SIGNAL:
            self.on_signal(value)
            if PYPY:
                sleep(0.001)  # as in `Engine._on_empty_poll`
            return
        watches = self._watches
        try:
            for fd, ready in self._poll(0, min(len(watches), EVENTS_MAX) or 1):
                watch = watches.get(fd)
                if watch is not None:
                    self._take(watch, ready)
        except BaseException:
            # Events that are not taken yet would be lost: the kernel reports them once.
            for watch in [*self._watches.values()]:
                if watch.reader is not None or watch.writer is not None:
                    self._arm_again(watch)
            raise

    def _take(self, watch: Watch, ready: int) -> None:
        done = False
        reader, writer = watch.reader, watch.writer
        # An error is both: the operation itself tells it.
        if reader is not None and ready & ~OUT:
            if type(reader) is not tuple:
                self.ready.append(reader)
            elif _perform(reader):
                watch.reader = None
                done = True
        if writer is not None and ready & ~IN:
            if type(writer) is not tuple:
                self.ready.append(writer)
            elif _perform(writer):
                watch.writer = None
                done = True
        if (done or watch.mask & ONESHOT) and (
            watch.reader is not None or watch.writer is not None
        ):
            self._arm_again(watch)

    def _arm_again(self, watch: Watch) -> None:
        try:
            self.arm(watch)
        except OSError as error:  # ENOSPC, or the program has closed it: nothing would come
            for waiter in (watch.reader, watch.writer):
                if type(waiter) is tuple and not waiter[0].done():
                    waiter[0].set_exception(error)

    # As a selector

    def get_key(self, file: Any) -> selectors.SelectorKey:
        """Return what is watched of a file, as `selectors.BaseSelector.get_key` does."""
        watch = self._watches.get(file if isinstance(file, int) else file.fileno())
        if watch is None or (watch.reader is None and watch.writer is None):
            raise KeyError(f"{file!r} is not registered")
        wanted = (selectors.EVENT_READ if watch.reader is not None else 0) | (
            selectors.EVENT_WRITE if watch.writer is not None else 0
        )
        return selectors.SelectorKey(watch.file, watch.fd, wanted, (watch.reader, watch.writer))

    def get_map(self) -> Mapping[int, selectors.SelectorKey]:
        """Return all that is watched, by descriptor."""
        return {
            fd: self.get_key(fd)
            for fd, watch in self._watches.items()
            if watch.reader is not None or watch.writer is not None
        }


def _perform(waiter: Waiter) -> bool:
    """Perform what waits; return whether it is over."""
    future, operation, _ = waiter
    if future.done():  # cancelled, and its coroutine has yet to run
        return True
    try:
        result = operation()
    except (BlockingIOError, InterruptedError):
        return False
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(result)
    return True


class DescriptorLoop(asyncio.SelectorEventLoop):
    """The methods of an event loop for descriptors."""

    _descriptors: Descriptors
    _engine: Any

    # add_reader and add_writer: asyncio's public methods call these, and so do its pipes

    def _add_reader(self, file: Any, callback: Any, *args: Any, context: Any = None) -> Any:
        return self._add(file, "reader", callback, args, context)

    def _add_writer(self, file: Any, callback: Any, *args: Any, context: Any = None) -> Any:
        return self._add(file, "writer", callback, args, context)

    def _remove_reader(self, file: Any) -> bool:
        return self._remove(file, "reader")

    def _remove_writer(self, file: Any) -> bool:
        return self._remove(file, "writer")

    def _add(self, file: Any, direction: str, callback: Any, args: Any, context: Any) -> Any:
        self._check_closed()
        handle: events.Handle
        if self._debug:
            handle = events.Handle(callback, args, self, context)
        else:
            handle = Handle(callback, args, copy_context() if context is None else context)
        watch = self._descriptors.watch(_number(file))
        before = getattr(watch, direction)
        file_before, watch.file = watch.file, file
        setattr(watch, direction, handle)
        try:
            self._descriptors.arm(watch)
        except BaseException:
            setattr(watch, direction, None)
            watch.file = file_before
            raise
        finally:
            if type(before) is not tuple and before is not None:
                before.cancel()
        return handle

    def _remove(self, file: Any, direction: str) -> bool:
        if self.is_closed():
            return False
        watch = self._descriptors.find(file)
        if watch is None:
            return False
        before = getattr(watch, direction)
        if before is None:
            return False
        setattr(watch, direction, None)
        self._descriptors.disarm(watch)
        if type(before) is not tuple:
            before.cancel()
        return True

    # sock_*

    def _check_sock(self, sock: sockets.socket) -> None:
        base_events._check_ssl_socket(sock)
        if self._debug and sock.gettimeout() != 0:
            raise ValueError("the socket must be non-blocking")

    async def _wait(self, sock: sockets.socket, operation: Any, writing: bool = False) -> Any:
        """Perform an operation that would block now, when its socket is ready."""
        self._check_closed()
        fd = sock.fileno()
        self._ensure_fd_no_transport(fd)
        watch = self._descriptors.watch(fd)
        future = self.create_future()
        waiter = (future, operation, watch)
        if writing:
            before, watch.writer = watch.writer, waiter
        else:
            before, watch.reader = watch.reader, waiter
        try:
            if before is not None and type(before) is not tuple:
                before.cancel()
            self._descriptors.arm(watch)
            return await future
        finally:
            if watch.reader is waiter:
                watch.reader = None
                self._disarm(watch)
            elif watch.writer is waiter:
                watch.writer = None
                self._disarm(watch)
            del future, waiter  # an exception's traceback keeps this frame

    def _disarm(self, watch: Watch) -> None:
        if not watch.mask & ONESHOT and not self.is_closed():
            self._descriptors.disarm(watch)

    async def _perform(self, sock: sockets.socket, operation: Any, writing: bool = False) -> Any:
        """Perform an operation, at once or when its socket is ready."""
        self._check_sock(sock)
        try:
            return operation()
        except (BlockingIOError, InterruptedError):
            pass
        return await self._wait(sock, operation, writing)

    async def sock_recv(self, sock: sockets.socket, n: int) -> bytes:
        self._check_sock(sock)
        try:
            return sock.recv(n)
        except (BlockingIOError, InterruptedError):
            pass
        data: bytes = await self._wait(sock, partial(sock.recv, n))
        return data

    async def sock_recv_into(self, sock: sockets.socket, buf: Any) -> int:
        size: int = await self._perform(sock, partial(sock.recv_into, buf))
        return size

    async def sock_recvfrom(self, sock: sockets.socket, bufsize: int) -> Any:
        return await self._perform(sock, partial(sock.recvfrom, bufsize))

    async def sock_recvfrom_into(self, sock: sockets.socket, buf: Any, nbytes: int = 0) -> Any:
        return await self._perform(sock, partial(sock.recvfrom_into, buf, nbytes or len(buf)))

    async def sock_sendall(self, sock: sockets.socket, data: Any) -> None:
        self._check_sock(sock)
        if type(data) is not bytes:
            # In bytes: the len() of a view is the number of its items.
            data = bytes(data) if PYPY else memoryview(data).cast("B")
        try:
            sent = sock.send(data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        if sent < len(data):
            rest = [data if PYPY else memoryview(data), sent]
            await self._wait(sock, partial(_send_rest, sock, rest), writing=True)

    async def sock_sendto(self, sock: sockets.socket, data: Any, address: Any) -> int:

        def operation() -> int:
            return sock.sendto(data, address)

        size: int = await self._perform(sock, operation, writing=True)
        return size

    async def sock_accept(self, sock: sockets.socket) -> Any:
        return await self._perform(sock, partial(_accept, sock))

    async def sock_connect(self, sock: sockets.socket, address: Any) -> None:
        self._check_sock(sock)
        if sock.family in (sockets.AF_INET, sockets.AF_INET6):
            found = await self._ensure_resolved(
                address, family=sock.family, type=sock.type, proto=sock.proto, loop=self
            )
            address = found[0][4]
        try:
            sock.connect(address)
            return
        except (BlockingIOError, InterruptedError):  # it goes on behind our back, connect(2)
            pass
        await self._perform(sock, partial(_connected, sock, address), writing=True)


def _send_rest(sock: sockets.socket, rest: list[Any]) -> None:
    data, sent = rest
    rest[1] += sock.send(data[sent : sent + SEND_MAX])
    if rest[1] < len(data):
        raise BlockingIOError


def _accept(sock: sockets.socket) -> Any:
    connection, address = sock.accept()
    connection.setblocking(False)
    return connection, address


def _connected(sock: sockets.socket, address: Any) -> None:
    """Return if the socket has connected, or raise why not: `BlockingIOError` if it still does."""
    error = sock.getsockopt(sockets.SOL_SOCKET, sockets.SO_ERROR)
    if error != 0:
        raise OSError(error, f"Connect call failed {address}")
    try:
        sock.getpeername()  # of the machine's own addresses it has connected within connect(2)
    except OSError as failure:
        if failure.errno == errno.ENOTCONN:
            raise BlockingIOError from None
        raise


def _number(file: Any) -> int:
    """Return the descriptor of a file object, as selectors do, or raise `ValueError`."""
    if isinstance(file, int):
        number = file
    else:
        try:
            number = int(file.fileno())
        except (AttributeError, TypeError, ValueError):
            raise ValueError(f"Invalid file object: {file!r}") from None
    if number < 0:
        raise ValueError(f"Invalid file descriptor: {number}")
    return number
