"""Watches of files and directories, on libuv's ``uv_fs_event_t``."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any

from pyasync._ffi import ffi, lib
from pyasync.errors import FilesystemError, filesystem_error
from pyasync.fs import Path
from pyasync.handles import PlainHandle, optional_callable, require_callable
from pyasync.loop import EventCallback, Loop, get_loop

ChangeCallback = Callable[["FsMonitor", Any, bool, bool], object]

#: What inotify_init1(2) and inotify_add_watch(2) are out of, and where a user gets more.
_LIMITS = {
    errno.ENOSPC: "out of inotify watches: see fs.inotify.max_user_watches",
    errno.EMFILE: "out of descriptors, or of inotify instances: see fs.inotify.max_user_instances",
}


class FsMonitor(PlainHandle):
    """A watch of a path, which keeps the loop running; see `fs_watch`."""

    __slots__ = ("_callback", "path")

    def __init__(
        self,
        loop: Loop,
        slot: int,
        path: str | bytes,
        callback: ChangeCallback,
        event_cb: EventCallback | None,
    ) -> None:
        super().__init__(loop, slot, event_cb)
        #: The path, as `fs_watch` was given it.
        self.path = path
        self._callback = callback

    def _on_event(self, kind: int, value: int, data: int) -> None:
        if self._slot < 0:
            return
        if value < 0:
            self.close()
            self._loop._tell(self, _error(value, self.path))
            return
        name = ffi.string(lib.pa_text(self._loop._c) + data)
        filename = os.fsdecode(name) if isinstance(self.path, str) else name
        self._callback(self, filename, bool(value & lib.UV_RENAME), bool(value & lib.UV_CHANGE))


def _error(status: int, path: str | bytes) -> FilesystemError:
    return filesystem_error(status, path, detail=_LIMITS.get(-status))


def fs_watch(
    path: Path, callback: ChangeCallback, *, event_cb: EventCallback | None = None
) -> FsMonitor:
    """Watch a file or a directory, and call ``callback(monitor, filename, renamed, changed)``.

    Of a directory, ``filename`` is the name in it of what has changed (not of what is deeper): with
    ``renamed`` it has come, gone, or got another name, with ``changed`` its contents or attributes
    are others. Of a file, ``filename`` is its own name. It is `str`, or `bytes` if the path is.
    One change may be told several times, and changes that come close together as one.

    The path is what is watched, not the file that it led to. If that is removed or renamed,
    ``renamed`` tells so; when the path leads somewhere again, ``renamed`` and ``changed`` are both
    set, and that is watched: also after an editor has put a new file in its place. What has changed
    before the new watch began is never told by itself, but the callback that tells of it comes
    after: who reads the file, or lists the directory, in each callback has seen all.

    Raises `FilesystemNotFound` if there is nothing at the path, `FilesystemError` if it cannot be
    watched, such as with ENOSPC when the user's watches are used up, and `EventLoopNotRunning`.
    With a later error the monitor is closed, and ``event_cb`` gets the `FilesystemError`.

    >>> import os, pyasync, tempfile
    >>> def on_change(monitor, filename, renamed, changed):
    ...     print(filename, renamed, changed)
    ...     monitor.close()
    >>> with tempfile.TemporaryDirectory() as folder, pyasync.event_loop():
    ...     _ = pyasync.fs_watch(folder, on_change)
    ...     os.mkdir(os.path.join(folder, "new"))
    new True False
    """
    require_callable("callback", callback)
    optional_callable("event_cb", event_cb)
    given = os.fspath(path)
    encoded = os.fsencode(given)
    if b"\0" in encoded:
        raise ValueError(f"path must not have zero bytes: {given!r}")
    loop = get_loop()
    if not encoded:
        raise _error(-errno.ENOENT, given)
    # The working directory may be another when the watch must be started again.
    absolute = os.path.join(os.getcwdb(), encoded)
    loop._submit()
    slot = lib.pa_fs_event_start(loop._c, absolute.rstrip(b"/") or b"/")
    if slot < 0:
        raise _error(slot, given)
    return FsMonitor(loop, slot, given, callback, event_cb)


def fs_unwatch(monitor: FsMonitor) -> None:
    """Close the monitor. Closing twice does nothing."""
    monitor.close()


def fs_monitor_close(monitor: FsMonitor) -> None:
    """Close the monitor. Closing twice does nothing."""
    monitor.close()
