"""Child processes, without an API: start, exit, signals, and pipes to their standard streams."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Iterable, Mapping
from typing import Any

from pyasync._core.arguments import (
    StrOrBytesPath,
    as_path,
    c_string,
    require_flag,
    require_integer,
    wrong_type,
    wrong_value,
)
from pyasync._core.engine import CLOSED, FAILED, Engine
from pyasync._core.handles import CHandle, ClosedHandle
from pyasync._ffi import ffi, lib
from pyasync.errors import filesystem_error

Argument = StrOrBytesPath

#: The greatest id of a user or group: one more, (uid_t) -1, means "no change" to setreuid(2).
MAX_ID = 2**32 - 2


class ChildProcess(CHandle):
    """A child process that `NewChild` has started."""

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
        require_integer("signo", signo, 0, signal.NSIG - 1)
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


class NewChild:
    """A child that is being started, and its pipes: in the end there is all of it, or nothing.

    Call `open_pipe` and `start`, then `end`; and `undo` if an exception comes in between. Checks
    the arguments: raises `TypeError` and `ValueError`.
    """

    def __init__(
        self,
        loop: Engine,
        path: Argument,
        args: Iterable[Argument],
        *,
        env: Mapping[Any, Any] | None,
        working_directory: Argument | None,
        uid: int | None,
        gid: int | None,
        detached: bool,
    ) -> None:
        if isinstance(args, (str, bytes)) or not isinstance(args, Iterable):
            raise wrong_type("args", "a list of arguments", args)
        self._loop = loop
        file = c_string("path", path)
        self._path = as_path("path", path)
        argv = _c_strings([file, *(c_string(f"args[{i}]", arg) for i, arg in enumerate(args))])
        environ = ffi.NULL if env is None else _c_strings(_environment(env))
        directory = (
            ffi.NULL
            if working_directory is None
            else ffi.new("char[]", c_string("working_directory", working_directory))
        )
        self._directory = (
            None if working_directory is None else as_path("working_directory", working_directory)
        )
        flags = lib.PA_DETACHED if require_flag("detached", detached) else 0
        for name, value, flag in [("uid", uid, lib.PA_SETUID), ("gid", gid, lib.PA_SETGID)]:
            if value is not None:
                require_integer(name, value, 0, MAX_ID, ", or None")
                flags |= flag
        #: The arguments of pa_spawn, and what they point to.
        self._arguments = (
            file, argv[0], environ and environ[0], directory, flags, uid or 0, gid or 0
        )  # fmt: skip
        self._memory = (argv, environ)
        self._spawning = ffi.new("pa_spawning *", ([-1] * 3, [-1] * 3, -1))
        self._slots: list[int] = []  # of our ends of the pipes
        loop.submit()  # a close that is pending may free a descriptor

    def open_pipe(self, fd: int) -> int:
        """Make a pipe to the standard stream ``fd``; return the slot of our end.

        It is a pipe, in place of the socket pair that libuv would make, so that the child can open
        ``/dev/stdout``. Raises `FilesystemError`.
        """
        status = lib.pa_spawn_pipe(self._loop.c, self._spawning, fd)
        if status < 0:
            raise filesystem_error(status)
        self._slots.append(self._spawning.pipes[fd])
        return self._slots[-1]

    def start(self, stdio: Mapping[int, int]) -> int:
        """Start the child; return its slot.

        ``stdio`` has our descriptor for each standard stream that is neither a pipe nor
        ``/dev/null``. Raises `FilesystemError`.
        """
        for fd, descriptor in stdio.items():
            self._spawning.stdio[fd] = descriptor
        status = lib.pa_spawn(self._loop.c, self._spawning, *self._arguments)
        if status < 0:
            raise filesystem_error(status, _culprit(status, self._path, self._directory))
        return int(self._spawning.process)

    def end(self) -> None:
        """Close the child's ends of the pipes, which would keep them from their end of file."""
        lib.pa_spawn_end(self._loop.c, self._spawning)

    def undo(self) -> None:
        """Kill the child if it has been started, and close all pipes; no callback is called."""
        for slot in self._slots:
            stream = self._loop.objects[slot]
            if stream is not None:
                stream._state = CLOSED | FAILED  # also for a write_cb that is queued
            self._loop.register(slot, ClosedHandle())
        if self._spawning.process >= 0:
            self._loop.register(self._spawning.process, ClosedHandle())
        lib.pa_spawn_undo(self._loop.c, self._spawning)


def _c_strings(strings: list[bytes]) -> tuple[Any, list[Any]]:
    """Return a ``char *[]`` that ends with NULL, and its strings, which must live as long."""
    memory = [ffi.new("char[]", string) for string in strings]
    return ffi.new("char *[]", [*memory, ffi.NULL]), memory


def _environment(env: Mapping[Any, Any]) -> list[bytes]:
    if not isinstance(env, Mapping):
        raise wrong_type("env", "a mapping", env)
    items = [(c_string("a name in env", key), c_string(f"env[{key!r}]", env[key])) for key in env]
    # environ(7): "name=value", so that a "=" in a name would move the border.
    for key, _ in items:
        if not key or b"=" in key:
            raise wrong_value("a name in env", "an environment variable's, without =", key)
    return [b"%s=%s" % item for item in items]


def _culprit(status: int, path: str | bytes, directory: str | bytes | None) -> str | bytes | None:
    """Return the path that the child could not use, or None; a guess, as it reports only errno."""
    if -status not in (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.ELOOP, errno.ENAMETOOLONG):
        return path if -status in (errno.ENOEXEC, errno.ETXTBSY, errno.EISDIR) else None
    if directory is not None and not (os.path.isdir(directory) and os.access(directory, os.X_OK)):
        return directory
    return path
