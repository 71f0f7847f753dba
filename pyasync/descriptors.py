"""Streams on descriptors that the application has: standard streams, terminals, pipes, sockets."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from contextvars import Context
from fcntl import F_GETFL, fcntl
from typing import TYPE_CHECKING, Any, Literal, overload

from pyasync._core.arguments import (
    Descriptor,
    optional_callable,
    require_callable,
    require_descriptor,
    require_flag,
    wrong_type,
    wrong_value,
)
from pyasync._core.stream import ENDED, SHUT, Data, WriteCallback
from pyasync._ffi import lib
from pyasync.async_stream import AsyncStream
from pyasync.errors import check
from pyasync.loop import EventCallback, get_loop
from pyasync.options import StreamOptions
from pyasync.streams import Stream

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from pyasync._keywords import DescriptorKeywords

#: In seconds. There is a peer to wait for only at the other end of a socket.
SOCKET_LINGER = 2.0

#: os.O_ACCMODE, which PyPy lacks.
_ACCESS = os.O_RDONLY | os.O_WRONLY | os.O_RDWR


class DescriptorStream(Stream):
    """A stream on a descriptor, made by `open_stream`: of a terminal, a pipe or a socket.

    It may have one direction only, as a pipe has, or the standard input of a program.
    """

    __slots__ = ("_write_cb",)

    def __init__(
        self, options: StreamOptions, slot: int, state: int, write_cb: WriteCallback | None
    ) -> None:
        super().__init__(options, slot, state)
        self._write_cb = write_cb
        options.loop.register(slot, self)

    def _open(self) -> Any:
        """Set up the options, and return what the application gets: this, or its AsyncStream."""
        self._begin()
        subject = self._subject
        if self._state & ENDED and subject is not self:
            subject._end()
        return subject

    def write(
        self,
        data: Data,
        start: int = 0,
        end: int | None = None,
        read_cb: Callable[[Any, bytes], object] | None = None,
        write_cb: WriteCallback | None = None,
        event_cb: EventCallback | None = None,
        force: bool = False,
    ) -> None:
        """Send the data, in the order of these calls; it never blocks: see `TcpSocket.write`."""
        super().write(
            data,
            start=start,
            end=end,
            read_cb=read_cb,
            write_cb=write_cb or self._write_cb,
            event_cb=event_cb,
            force=force,
        )

    def shutdown(self) -> None:
        """End the sending side when the kernel has taken all writes; reading goes on.

        A socket's peer sees the end. A pipe that is only written to is closed; so is whatever has
        no more to be read. For what cannot be written to, and when called again, it does nothing.
        Raises `SocketClosed`.
        """
        if self._state & SHUT:
            self._loop.check_thread()
        else:
            super().shutdown()

    def _state_text(self) -> str:
        return "closed" if self.closed else "open"  # that it has one direction is no half-close


@overload
def open_stream(
    fd: Descriptor,
    read_cb: Callable[[DescriptorStream, AsyncStream], object] | None,
    *,
    stream: Literal[True],
    **keywords: Unpack[DescriptorKeywords],
) -> AsyncStream: ...
@overload
def open_stream(
    fd: Descriptor,
    read_cb: Callable[[DescriptorStream, bytes], object] | None,
    *,
    stream: Literal[False] = False,
    **keywords: Unpack[DescriptorKeywords],
) -> DescriptorStream: ...
@overload
def open_stream(
    fd: Descriptor,
    read_cb: Callable[[DescriptorStream, Any], object] | None,
    *,
    stream: bool,
    **keywords: Unpack[DescriptorKeywords],
) -> DescriptorStream | AsyncStream: ...
def open_stream(
    fd: Descriptor,
    read_cb: Callable[[DescriptorStream, Any], object] | None,
    *,
    stream: bool = False,
    event_cb: EventCallback | None = None,
    write_cb: WriteCallback | None = None,
    pressure_cb: Callable[[DescriptorStream, bool], object] | None = None,
    close_cb: Callable[[DescriptorStream, Exception | None], object] | None = None,
    read_timeout: float | None = None,
    write_timeout: float | None = None,
    drain_read_buffer: bool = True,
    allow_half_open: bool = False,
    context: Context | None = None,
) -> Any:
    r"""Make a stream on a descriptor, and call ``read_cb(stream, data)`` with what is read from it.

    ``fd`` is a number, such as 0 for the standard input, or an object that has a ``fileno()``. It
    must be that of a terminal, a pipe or FIFO, either side of a pseudo-terminal, or a connected
    stream socket. It stays the caller's, and may be closed at once: the stream has a descriptor of
    its own. A descriptor that was opened only for reading, or only for writing, makes a stream of
    that direction. With a ``read_cb`` of None nothing is read: a program that writes to the
    terminal must not take its input from another stream, or another program.

    ``write_cb(stream)`` is called for each write that has none of its own. ``event_cb`` gets the
    end (`SocketEOF`): Ctrl-D on a terminal, the last writer's end of a pipe, and of the master of a
    pseudo-terminal, that nobody has the other side any more. The other keywords are those of
    `tcp_server`. A close sends what was written, however long the reader of a pipe or terminal
    needs. A socket's peer must take something every 2 seconds.

    The stream never blocks, and other programs that have the same terminal or pipe open do not
    notice: on Linux the stream opens it once more, so that O_NONBLOCK is the stream's alone. Where
    that is impossible, for sockets, FIFOs with a name, the master of a pseudo-terminal, and a file
    of another user's, the stream shares the flag with everybody who has the descriptor from the
    same open(2), also a child. It is put back when the stream is closed, or the loop or the program
    ends. A terminal gets the mode back (termios(3)) that it had when its first stream was opened,
    in case the program has changed it, with `tty.setcbreak` for example; but not in the background.
    Only a program that a signal kills, or that ends by `os._exit`, puts nothing back.

    An open stream that is read keeps the loop running; see `Handle.unref`. Returns a
    `DescriptorStream`, or its `AsyncStream`. Raises `ValueError` for any other kind of descriptor:
    regular files and devices are for `pyasync.fs`. Raises `OSError` if it is not open, or if
    descriptors have run out; `TypeError`, and `EventLoopNotRunning`.

    >>> import os, pyasync
    >>> reader, writer = os.pipe()
    >>> _ = os.write(writer, b"hello\n")
    >>> os.close(writer)
    >>> with pyasync.event_loop():
    ...     stream = pyasync.open_stream(reader, lambda stream, data: print(data))
    ...     os.close(reader)
    b'hello\n'
    """
    loop = get_loop()
    if read_cb is not None:
        require_callable("read_cb", read_cb, "a function or None")
    optional_callable("write_cb", write_cb)
    number = require_descriptor("fd", fd)
    is_socket = _require_stream(number)
    access = fcntl(number, F_GETFL) & _ACCESS
    state = ENDED if read_cb is None or access == os.O_WRONLY else 0
    if access == os.O_RDONLY:
        if read_cb is None:
            raise wrong_type("read_cb", f"a function, as fd {number} is only for reading", None)
        state |= SHUT
    options = StreamOptions(
        loop,
        read_cb or _do_nothing,
        stream=stream,
        event_cb=event_cb,
        pressure_cb=pressure_cb,
        close_cb=close_cb,
        read_timeout=read_timeout,
        write_timeout=write_timeout,
        allow_half_open=allow_half_open,
        linger=SOCKET_LINGER if is_socket else None,
        context=context,
    )
    options.drain_read_buffer = require_flag("drain_read_buffer", drain_read_buffer)
    loop.submit()  # a close that is pending may free a descriptor
    slot = check(lib.pa_open_descriptor(loop.c, number, not state & ENDED))
    opened = DescriptorStream(options, slot, state, write_cb)
    opened._bind_context()
    return opened._open()


def _do_nothing(stream: Any, data: Any) -> None:
    pass


def _require_stream(fd: int) -> bool:
    """Raise unless it is a terminal, a pipe or a stream socket; return whether it is a socket."""
    mode = os.fstat(fd).st_mode  # raises if it is not open
    if stat.S_ISFIFO(mode) or (stat.S_ISCHR(mode) and os.isatty(fd)):
        return False
    if stat.S_ISSOCK(mode):
        if lib.pa_is_stream_socket(fd):
            return True
        found = "this socket is none, or it listens"
    elif stat.S_ISREG(mode):
        found = "pyasync.fs reads and writes a regular file"
    elif stat.S_ISDIR(mode):
        found = "pyasync.fs reads a directory"
    elif stat.S_IFMT(mode):
        found = "pyasync.fs reads and writes a device"
    else:
        found = "pyasync.poll waits for other kinds"
    raise wrong_value("fd", f"a terminal's, a pipe's or a stream socket's ({found})", fd)
