"""Child processes, without an API: start, exit, signals, and pipes to their standard streams."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pyasync._core.arguments import StrOrBytesPath, c_string, require_integer
from pyasync._core.engine import Engine
from pyasync._core.handles import CHandle
from pyasync._ffi import ffi, lib
from pyasync.errors import check, filesystem_error

Argument = StrOrBytesPath

#: The greatest id of a user or group: one more, (uid_t) -1, means "no change" to setreuid(2).
MAX_ID = 2**32 - 2

# Values of `stdio` in started_child; any other number is one of our descriptors.
NULL_DEVICE = -1
NEW_PIPE = -2


class ChildProcess(CHandle):
    """A child process that `started_child` has started."""

    __slots__ = ("exit_status", "pid", "term_signal")

    def __init__(self, loop: Engine, slot: int, event_cb: Any) -> None:
        #: The child's process id. After the exit it may belong to another process.
        self.pid: int = lib.pa_process_pid(loop.c, slot)
        #: The child's exit status, 0 if a signal has ended it; None while it runs.
        self.exit_status: int | None = None
        #: The signal that has ended the child, or 0; None while it runs.
        self.term_signal: int | None = None
        super().__init__(loop, slot, event_cb)

    def kill(self, signo: int = signal.SIGTERM) -> bool:
        """Send a signal to the child, by default SIGTERM; return False if it has exited.

        The call does not wait for the effect: ``exit_cb`` tells when the child has exited. With a
        ``signo`` of 0 nothing is sent, and only the result counts (kill(2)). Raises `TypeError`,
        `ValueError` if there is no such signal, `HandleClosed` if the process was closed before it
        exited, and `FilesystemPermission` if the child has become another user's.
        """
        if not isinstance(signo, int):
            raise TypeError(f"signo must be an integer, not {type(signo).__name__}")
        if not 0 <= signo < signal.NSIG:
            raise ValueError(f"no such signal: {signo}")
        if self.exit_status is not None:
            return False
        slot = self._open_slot()
        self._loop.submit()
        status = lib.pa_process_kill(self._loop.c, slot, signo)
        # C sends nothing once the child is reaped, because its pid may be another's. Python may
        # not have seen the exit yet: its record is in the batch, or comes with the next one.
        if status == -errno.ESRCH:
            return False
        if status < 0:
            raise filesystem_error(status)
        return True

    def _on_event(self, kind: int, value: int, data: int) -> None:
        if self._slot < 0:
            return  # closed before the exit: the handle stayed in C to reap the child
        self._slot = -1  # C closes the handle by itself when it learns of the exit
        self.exit_status, self.term_signal = value, data
        self._report_exit()

    def _report_exit(self) -> None:
        """Report that the child has exited: for an API to override."""


@contextmanager
def started_child(
    loop: Engine,
    path: Argument,
    args: Iterable[Argument],
    stdio: list[int],
    *,
    env: Mapping[Any, Any] | None,
    working_directory: Argument | None,
    uid: int | None,
    gid: int | None,
    detached: bool,
) -> Iterator[tuple[int, list[int]]]:
    """Start a program, and yield its slot and our ends of its pipes (-1: there is no pipe).

    ``stdio`` has an entry for each standard stream: one of our descriptors, `NULL_DEVICE` or
    `NEW_PIPE`. The end of the ``with`` statement closes our ends, except those that `pipe_slot` has
    taken. Raises `TypeError`, `ValueError` and `FilesystemError`.
    """
    if isinstance(args, (str, bytes)):
        raise TypeError("args must be a list of arguments, not one")
    file = c_string("path", path)
    argv = _c_strings([file, *(c_string("an argument", arg) for arg in args)])
    environ = ffi.NULL if env is None else _c_strings(_environment(env))
    directory = (
        ffi.NULL
        if working_directory is None
        else ffi.new("char[]", c_string("working_directory", working_directory))
    )
    flags = lib.PA_DETACHED if detached else 0
    for name, value, flag in [("uid", uid, lib.PA_SETUID), ("gid", gid, lib.PA_SETGID)]:
        if value is not None:
            require_integer(name, value, 0, MAX_ID)
            flags |= flag
    loop.submit()  # a close that is pending may free a descriptor
    with _descriptors(stdio) as (theirs, ours):
        slot = lib.pa_spawn(
            loop.c, file, argv[0], environ and environ[0], directory, theirs, flags,
            uid or 0, gid or 0,
        )  # fmt: skip
        if slot < 0:
            raise filesystem_error(slot, _culprit(slot, path, working_directory))
        yield slot, ours


def pipe_slot(loop: Engine, ours: list[int], fd: int) -> int:
    """Make a handle of our end of the pipe to the standard stream ``fd``; return its slot."""
    # Marked as taken first: C closes the descriptor also when it fails, and a second close, at the
    # end of started_child, could hit a file of another thread.
    descriptor, ours[fd] = ours[fd], -1
    return check(lib.pa_open(loop.c, descriptor, lib.PA_STDIO, True))


def _c_strings(strings: list[bytes]) -> tuple[Any, list[Any]]:
    """Return a ``char *[]`` that ends with NULL, and its strings, which must live as long."""
    memory = [ffi.new("char[]", string) for string in strings]
    return ffi.new("char *[]", [*memory, ffi.NULL]), memory


def _environment(env: Mapping[Any, Any]) -> list[bytes]:
    if not isinstance(env, Mapping):
        raise TypeError(f"env must be a mapping, not {type(env).__name__}")
    items = [(c_string("a name in env", key), c_string("env", env[key])) for key in env]
    # environ(7): "name=value", so that a "=" in a name would move the border.
    for key, _ in items:
        if not key or b"=" in key:
            raise ValueError(f"no name of an environment variable: {key!r}")
    return [b"%s=%s" % item for item in items]


@contextmanager
def _descriptors(stdio: list[int]) -> Iterator[tuple[list[int], list[int]]]:
    """Yield the child's three descriptors, and our ends of its pipes (-1: there is none).

    At the end close the child's ends, because they would keep the pipe from its end of file, and
    ours, except those that `pipe_slot` has taken. The pipes are
    pipes, in place of the socket pairs that libuv would make, so that a child can open
    ``/dev/stdout``.
    """
    theirs, ours, made = [-1] * 3, [-1] * 3, []
    try:
        for fd, wanted in enumerate(stdio):
            if wanted == NEW_PIPE:
                reader, writer = _pipe()
                theirs[fd], ours[fd] = (reader, writer) if fd == 0 else (writer, reader)
                made.append(theirs[fd])
            else:
                theirs[fd] = wanted
        yield theirs, ours
    finally:
        for fd in [*made, *ours]:
            if fd >= 0:
                os.close(fd)


def _pipe() -> tuple[int, int]:
    try:
        return os.pipe()
    except OSError as error:
        raise filesystem_error(-(error.errno or 0)) from None


def _culprit(status: int, path: Argument, directory: Argument | None) -> Argument | None:
    """Return the path that the child could not use, or None; a guess, as it reports only errno."""
    if -status not in (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.ELOOP, errno.ENAMETOOLONG):
        return path if -status in (errno.ENOEXEC, errno.ETXTBSY, errno.EISDIR) else None
    if directory is not None and not (os.path.isdir(directory) and os.access(directory, os.X_OK)):
        return directory
    return path
