"""Child processes, and the pipes to their standard streams."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Mapping
from contextvars import Context
from typing import Any, Union

from pyasync._core.arguments import Descriptor, optional_callable, require_descriptor
from pyasync._core.children import Argument, ChildProcess, NewChild
from pyasync._core.contexts import Binder, optional_context
from pyasync._core.stream import (
    ENDED,
    IN_CONTEXT,
    SHUT,
    Data,
    WriteCallback,
    as_buffer_slice,
)
from pyasync.async_stream import AsyncStream
from pyasync.descriptors import DescriptorStream
from pyasync.loop import EventCallback, Loop, get_loop
from pyasync.options import StreamOptions

ExitCallback = Callable[["Process", int, int], object]


class Stdio(enum.Enum):
    """A standard stream of a child that needs no callbacks and no descriptor."""

    #: ``/dev/null``.
    IGNORE = "ignore"
    #: The parent's own.
    INHERIT = "inherit"
    #: A pipe to the parent.
    PIPE = "pipe"
    #: A pipe to the parent, which has an `AsyncStream` over it.
    STREAM = "stream"


IGNORE, INHERIT, PIPE, STREAM = Stdio


class StdioPipe:
    """A pipe to a standard stream of a child, and its callbacks.

    ``read_cb(pipe, data)`` gets the child's output; without one that is read and dropped. ``data``
    is written first. ``write_cb(pipe)`` is called for each write that has none of its own.
    ``event_cb`` gets the end and errors, for example a `SocketBrokenPipe`; without one, that of
    `spawn` does. For ``pressure_cb(pipe, paused)`` see `ProcessPipe.set_watermarks`, for
    ``close_cb(pipe, error)`` `tcp_server`. Raises `TypeError` unless the callbacks are functions or
    None, and the data bytes-like or a string.
    """

    _stream = False

    def __init__(
        self,
        *,
        read_cb: Callable[[Any, Any], object] | None = None,
        data: Data | None = None,
        write_cb: WriteCallback | None = None,
        event_cb: EventCallback | None = None,
        pressure_cb: Callable[[Any, bool], object] | None = None,
        close_cb: Callable[[Any, Exception | None], object] | None = None,
    ) -> None:
        optional_callable("read_cb", read_cb)
        optional_callable("write_cb", write_cb)
        optional_callable("event_cb", event_cb)
        optional_callable("pressure_cb", pressure_cb)
        optional_callable("close_cb", close_cb)
        self._read_cb = read_cb
        self._data = None if data is None else bytes(as_buffer_slice(data))
        self._write_cb = write_cb
        self._event_cb = event_cb
        self._pressure_cb = pressure_cb
        self._close_cb = close_cb


class StdioStream(StdioPipe):
    """A `StdioPipe` with an `AsyncStream` over it, for ``read_cb(pipe, stream)``.

    Unread data stays in the stream, also with no ``read_cb``.
    """

    _stream = True


#: A standard stream of a child, as `spawn` takes it.
StdioOption = Union[Stdio, StdioPipe, Descriptor, None]


class ProcessPipe(DescriptorStream):
    """The parent's end of a pipe to a standard stream of a child: a stream of one direction.

    `write` to the child's input never blocks. `shutdown` and `close` both end the input when the
    pipe has taken all writes, however long the child needs to read them; of an output `shutdown`
    does nothing. When nobody has the other end any more, ``event_cb`` gets a `SocketBrokenPipe`
    after a write. A write to an output raises that at the call.
    """

    __slots__ = ()


class Process(ChildProcess):
    """A child process, made by `spawn`.

    It keeps the loop running until the child has exited. Then it is closed, and `exit_status` and
    `term_signal` tell how the child has exited. The pipes are handles of their own. An output lives
    until its end, when nobody can write to it any more; that may be before the exit or after. The
    input is closed after ``exit_cb`` at the latest, except of a process that was closed before: see
    `close`.
    """

    __slots__ = ("_exit_cb", "error_output", "input", "output")

    def __init__(
        self, loop: Loop, slot: int, exit_cb: ExitCallback | None, event_cb: EventCallback | None
    ) -> None:
        self._exit_cb = exit_cb
        #: The `ProcessPipe` or `AsyncStream` to each standard stream; None if it has none.
        self.input: ProcessPipe | AsyncStream | None = None
        self.output: ProcessPipe | AsyncStream | None = None
        self.error_output: ProcessPipe | AsyncStream | None = None
        super().__init__(loop, slot, event_cb)

    def close(self) -> None:
        """Forget the child, which runs on: ``exit_cb`` is not called, its pipes stay open.

        They are open after its exit as well: an output until its end, the input until it is closed
        or broken. So programs that the child has started can be written to as long as they run, and
        the caller must close the input. An open input alone does not keep the loop running.

        The child is reaped when it exits, by the loop, or, if that has ended, when a child is
        spawned next or a loop begins or ends. Closing twice does nothing.
        """
        super().close()

    def _report_exit(self) -> None:
        if self._exit_cb is not None:
            self._exit_cb(self, self.exit_status or 0, self.term_signal or 0)

    def _on_closed(self) -> None:
        """Close the input after the exit, because few programs do so themselves.

        It is not closed if the process was closed before its exit: the application does not know of
        the exit, and a write would fail for no visible reason.
        """
        if self.input is not None and self.exit_status is not None:
            self.input.close()


def spawn(
    path: Argument,
    args: Iterable[Argument],
    *,
    exit_cb: ExitCallback | None = None,
    event_cb: EventCallback | None = None,
    input: StdioOption = None,
    output: StdioOption = None,
    error_output: StdioOption = None,
    env: Mapping[Any, Argument] | None = None,
    working_directory: Argument | None = None,
    uid: int | None = None,
    gid: int | None = None,
    detached: bool = False,
    context: Context | None = None,
) -> Process:
    r"""Run a program in a child process, with these arguments; no shell is involved.

    ``path`` is looked up in the folders of PATH if it has no slash, as execvp(3) does: in the PATH
    of ``env`` if that is given, else in ours. ``args`` come after the program's name. Texts are
    encoded as file names are (`os.fsencode`). ``exit_cb(process, exit_status, term_signal)`` is
    called when the child has exited; that may be before or after the ends of its pipes. The status
    is 255 if somebody else has taken it, with `os.wait` for example.

    ``input``, ``output`` and ``error_output`` are each `IGNORE` (``/dev/null``; so is None),
    `INHERIT` (ours), `PIPE`, `STREAM`, a `StdioPipe` or `StdioStream` with callbacks, or a
    descriptor or an open file that the child gets. We write to ``process.input``, and read from
    ``process.output`` and ``process.error_output``. ``event_cb`` gets the events of pipes that have
    none of their own. The child inherits no other descriptor unless it is inheritable (PEP 446).
    No signal is blocked or ignored in the child, except real-time signals that we ignore.

    ``env`` is the whole environment, a mapping; None: the child gets ours. ``working_directory`` is
    the directory in which it starts; a relative ``path`` with a slash begins there. With ``uid`` or
    ``gid`` it runs as that user or group, with no other groups. A ``detached`` child leads a
    session of its own (setsid(2)), so that our terminal's signals do not reach it; `Handle.unref`
    lets the loop end before it. With ``context``, a `contextvars.Context`, all callbacks of the
    process and of its pipes run in one copy of it.

    Raises `FilesystemNotFound`, `FilesystemAccess`, `FilesystemPermission` or another
    `FilesystemError`, an `OSError`, if the program cannot be run; `TypeError`, `ValueError` and
    `EventLoopNotRunning`. See also uv_spawn (docs.libuv.org).

    >>> import pyasync
    >>> def show(pipe, data):
    ...     print(data)
    >>> with pyasync.event_loop():
    ...     cat = pyasync.spawn("cat", [], input=pyasync.PIPE,
    ...                         output=pyasync.StdioPipe(read_cb=show))
    ...     cat.input.write("hello\n")
    ...     cat.input.close()
    b'hello\n'
    >>> cat.exit_status
    0
    """
    loop = get_loop()
    optional_callable("exit_cb", exit_cb)
    optional_callable("event_cb", event_cb)
    optional_context(context)
    wanted = [
        _require_stdio("input", input),
        _require_stdio("output", output),
        _require_stdio("error_output", error_output),
    ]
    # Before the child is started: a wrong argument must not leave one behind.
    options = [
        _pipe_options(loop, stdio, event_cb) if isinstance(stdio, StdioPipe) else None
        for stdio in wanted
    ]
    if context is not None:
        binder = Binder(context)
        exit_cb, event_cb = binder.bind(exit_cb), binder.bind(event_cb)
        for pipe in filter(None, options):
            pipe.bind(binder)

    child = NewChild(
        loop,
        path,
        args,
        env=env,
        working_directory=working_directory,
        uid=uid,
        gid=gid,
        detached=detached,
    )
    try:
        # First, because it may fail: then no child has run.
        pipes: list[Any] = [
            _open(pipe, wanted[fd], child, fd) if pipe is not None else None
            for fd, pipe in enumerate(options)
        ]
        slot = child.start(_descriptors(wanted))
        process = Process(loop, slot, exit_cb, event_cb)
        process.input, process.output, process.error_output = map(_begin, pipes)
        child.end()
        for stdio, pipe in zip(wanted, pipes):
            if isinstance(stdio, StdioPipe) and stdio._data is not None:
                pipe.write(stdio._data)
        return process
    except BaseException:
        child.undo()
        raise


# The arguments of spawn


def _require_stdio(name: str, value: Any) -> StdioPipe | Stdio | int:
    if value is None:
        return IGNORE
    if value is PIPE:
        return StdioPipe()
    if value is STREAM:
        return StdioStream()
    if isinstance(value, (Stdio, StdioPipe)):
        if name != "input" and isinstance(value, StdioPipe) and value._data is not None:
            raise ValueError(f"{name} must have no data: only to input can be written")
        return value
    return require_descriptor(
        name,
        value,
        "IGNORE, INHERIT, PIPE, STREAM, a StdioPipe, a StdioStream, a descriptor (an integer from "
        "0) or an open file",
    )


def _descriptors(wanted: Iterable[StdioPipe | Stdio | int]) -> dict[int, int]:
    """Return our descriptor of each standard stream of the child that gets one."""
    found = {fd: stdio for fd, stdio in enumerate(wanted) if isinstance(stdio, int)}
    found.update((fd, fd) for fd, stdio in enumerate(wanted) if stdio is INHERIT)
    return found


def _pipe_options(loop: Loop, stdio: StdioPipe, event_cb: EventCallback | None) -> StreamOptions:
    return StreamOptions(
        loop,
        stdio._read_cb or _do_nothing,
        stream=stdio._stream,
        event_cb=stdio._event_cb or event_cb,
        pressure_cb=stdio._pressure_cb,
        close_cb=stdio._close_cb,
        linger=None,  # a child may be busy for long before it reads
    )


def _do_nothing(pipe: Any, data: Any) -> None:
    pass


def _open(options: StreamOptions, stdio: Any, child: NewChild, fd: int) -> Any:
    """Return the stream of our end of a pipe to the standard stream ``fd``."""
    slot = child.open_pipe(fd)
    # The pipe has one direction: our end of the input has no data to read, and its end of stream
    # must not be waited for; our end of an output cannot be written to.
    state = ENDED if fd == 0 else SHUT
    if options.binder is not None:
        state |= IN_CONTEXT
    return ProcessPipe(options, slot, state, stdio._write_cb)


def _begin(pipe: ProcessPipe | None) -> Any:
    """Return the pipe of a child that has started, or its AsyncStream."""
    return None if pipe is None else pipe._open()
