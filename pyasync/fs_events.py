"""Monitors: a callback that runs when a file or a directory changes."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from pyasync._core.arguments import (
    StrOrBytesPath,
    as_path,
    c_string,
    optional_callable,
    require_callable,
    require_instance,
)
from pyasync._core.handles import CHandle
from pyasync._ffi import ffi, lib
from pyasync.errors import FilesystemError, filesystem_error
from pyasync.loop import EventCallback, Loop, get_loop

ChangeCallback = Callable[["FsMonitor", str, bool, bool], object]

RENAME: int = lib.UV_RENAME
CHANGE: int = lib.UV_CHANGE
OVERFLOW: int = lib.PA_FS_OVERFLOW

#: The limit behind an error whose own text does not name it (inotify(7)).
_LIMITS = {
    errno.ENOSPC: "this user has no inotify watch left (fs.inotify.max_user_watches)",
    errno.EMFILE: (
        "no descriptor is left, or this user has no inotify instance left "
        "(fs.inotify.max_user_instances)"
    ),
    errno.EOVERFLOW: (
        "changes were lost, as more had happened than the system keeps: look at everything again "
        "(fs.inotify.max_queued_events)"
    ),
}


class FsMonitor(CHandle):
    """A function that runs when the file at a path changes; made by `fs_watch`."""

    __slots__ = ("_callback", "_name", "path")

    _loop: Loop

    def __init__(
        self,
        loop: Loop,
        slot: int,
        path: str | bytes,
        callback: ChangeCallback,
        event_cb: EventCallback | None,
    ) -> None:
        #: The path that `fs_watch` was given, as `str` or `bytes`.
        self.path = path
        self._name = os.path.basename(os.fsdecode(path).rstrip("/")) or "/"
        self._callback = callback
        super().__init__(loop, slot, event_cb)

    def _on_event(self, kind: int, value: int, data: int) -> None:
        # A callback of the same batch may have closed it.
        if self._slot < 0:
            return
        loop, name = self._loop, self._name
        if data >= 0:
            name = os.fsdecode(ffi.string(lib.pa_text(loop.c) + data))
        else:
            lost = value & OVERFLOW
            # A change of the file itself: C looks whether another has taken its place.
            value = lib.pa_fs_look(loop.c, self._slot, value & ~OVERFLOW)
            if lost:
                loop.report(self, _error(-errno.EOVERFLOW, self.path))
                if self._slot < 0:  # event_cb has closed it
                    return
        if value > 0:
            self._callback(self, name, bool(value & RENAME), bool(value & CHANGE))
        elif value < 0:
            self.close()
            loop.report(self, _error(value, self.path))


def fs_watch(
    path: StrOrBytesPath, callback: ChangeCallback, *, event_cb: EventCallback | None = None
) -> FsMonitor:
    """Run ``callback(monitor, filename, renamed, changed)`` when the file at the path changes.

    Of a directory, changes of its entries are reported, but not changes below them: ``filename`` is
    the entry's name. An entry that was made, deleted, or moved in or out is ``renamed``; an entry
    whose contents or attributes have changed is ``changed``. Of a file, and of a directory itself,
    ``filename`` is the last part of the path. Names are decoded by `os.fsdecode`. One change often
    makes several reports: they say "look again".

    The monitor watches the path, not the file that is there now. When another file takes its place,
    as many editors do when they save, it is ``renamed`` and ``changed``, and from then on the new
    file is watched. The callback runs after that, so that a callback which reads the file misses
    nothing. When nothing is at the path any more it is only ``renamed``, and the monitor waits: it
    is ``renamed`` and ``changed`` when something is at the path again.

    A relative path begins at the present working directory. Symbolic links are followed; a monitor
    of the link does not notice that it points elsewhere, but a monitor of its directory does. The
    same holds for directories further up that are renamed.

    The monitor keeps the loop running; see `Handle.unref`. Raises `FilesystemNotFound` if there is
    nothing at the path, `FilesystemAccess` if it may not be read, another `FilesystemError` when
    watches or descriptors have run out, and `EventLoopNotRunning`. When watches run out later, at
    such a replacement, the monitor is closed, and ``event_cb`` gets the `FilesystemError`. When
    others change files faster than the callbacks run, the system drops changes: ``event_cb`` of
    every monitor of the loop gets a `FilesystemError` with EOVERFLOW, and the monitors go on.

    On Linux this is inotify(7), elsewhere uv_fs_event_t (docs.libuv.org).

    >>> import pyasync, pathlib, tempfile
    >>> def on_change(monitor, filename, renamed, changed):
    ...     print(filename, "renamed" if renamed else "changed")
    ...     pyasync.fs_unwatch(monitor)
    >>> with tempfile.TemporaryDirectory() as folder, pyasync.event_loop():
    ...     monitor = pyasync.fs_watch(folder, on_change)
    ...     pathlib.Path(folder, "new").touch()
    new renamed
    """
    require_callable("callback", callback)
    optional_callable("event_cb", event_cb)
    loop = get_loop()
    encoded, given = c_string("path", path), as_path("path", path)
    if encoded:  # "" is an error, not the working directory
        # Absolute, because C looks the path up again later, in another working directory maybe.
        try:
            encoded = os.path.join(os.getcwdb(), encoded)
        except OSError as error:
            raise filesystem_error(-(error.errno or 0), given) from None
    slot = lib.pa_fs_watch(loop.c, encoded)
    if slot < 0:
        raise _error(slot, given)
    return FsMonitor(loop, slot, given, callback, event_cb)


def fs_unwatch(monitor: FsMonitor) -> None:
    """Close the monitor. Closing twice does nothing."""
    require_instance("monitor", monitor, FsMonitor)
    monitor.close()


def _error(status: int, path: str | bytes) -> FilesystemError:
    return filesystem_error(status, path, detail=_LIMITS.get(-status))
