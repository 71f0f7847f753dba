"""Operations on files, each in a thread of libuv's pool: the loop never waits for a disk.

A function begins the operation and returns its request; the callback runs later, in the loop, and
never inside the call. An error goes to ``event_cb`` as a `FilesystemError` of its kind, which is
also the `OSError` that the blocking call would raise, with ``filename`` set where there is a path;
without an ``event_cb`` it is logged.

Paths are `str`, bytes-like or `os.PathLike`; names and paths in results are `bytes` where the
argument was bytes-like, and otherwise `str`. A descriptor is a number, or an object that has a
``fileno()``, such as an open file; only `close` wants a number.
Every function raises `TypeError` or `ValueError` for arguments of a wrong kind or range, such as a
path with a zero byte, and `EventLoopNotRunning`.

A request keeps the loop running. Its ``close()`` cancels it, or forgets it if a thread has begun
it. Then nothing is called, and a file or directory that it has opened or made is closed or removed
again. Requests run side by side, in any order: an operation that must follow another belongs in
the other's callback. The pool has four threads for all loops (libuv's ``UV_THREADPOOL_SIZE``). An
operation that blocks, for example a read from a terminal or the opening of a named pipe, holds one
of them: see `poll` and `pipe_connect`. A descriptor must stay open until the callback, because a
closed one's number may be another file's.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from types import GenericAlias
from typing import TYPE_CHECKING, Any, AnyStr, Generic, NamedTuple, Union

from pyasync._core.arguments import (
    MAX_FD,
    MAX_TIME,
    Descriptor,
    StrOrBytesPath,
    as_path,
    c_string,
    optional_callable,
    require_callable,
    require_descriptor,
    require_flag,
    require_integer,
    require_time,
    wrong_value,
)
from pyasync._core.engine import PYPY
from pyasync._core.pool_requests import Request
from pyasync._core.stream import Data, as_buffer_slice
from pyasync._ffi import ffi, lib
from pyasync.errors import EventError, FilesystemError, filesystem_error
from pyasync.loop import EventCallback, Loop, get_loop

__all__ = [
    "Entry",
    "FsRequest",
    "access",
    "chmod",
    "close",
    "copyfile",
    "fstat",
    "fsync",
    "ftruncate",
    "link",
    "lstat",
    "mkdir",
    "mkdtemp",
    "open",
    "read",
    "read_file",
    "readlink",
    "realpath",
    "rename",
    "rmdir",
    "scandir",
    "sendfile",
    "stat",
    "symlink",
    "unlink",
    "utime",
    "write",
    "write_file",
]

Callback = Callable[..., object]

#: By the numbers of enum uv_dirent_type_t.
_TYPES = ("unknown", "file", "directory", "link", "fifo", "socket", "char", "block")


if TYPE_CHECKING:
    #: A path that is text or bytes, as the results of the operation are. bytes-like is bytes.
    PathOf = Union[AnyStr, "os.PathLike[AnyStr]", bytearray, memoryview]

    class Entry(NamedTuple, Generic[AnyStr]):
        name: AnyStr
        type: str
else:

    class Entry(NamedTuple):
        """An entry of a directory; for type checkers ``Entry[str]`` or ``Entry[bytes]``.

        ``type`` is ``"file"``, ``"directory"``, ``"link"`` (a symbolic one), ``"fifo"``,
        ``"socket"``, ``"char"``, ``"block"``, or ``"unknown"`` where the file system does not say:
        then `lstat` does.
        """

        name: str
        type: str

        __class_getitem__ = classmethod(GenericAlias)


class FsRequest(Request):
    """An operation on files that is under way."""

    __slots__ = ("_filenames", "_read")

    _loop: Loop

    def __init__(
        self,
        callback: Callback,
        event_cb: EventCallback | None,
        read: Callable[[int, Any], tuple[Any, ...]],
        function: Callable[..., int],
        *arguments: Any,
        filenames: tuple[Any, ...] = (),
    ) -> None:
        """Call C's ``function``, and later ``callback`` with the results of ``read``."""
        require_callable("callback", callback)
        optional_callable("event_cb", event_cb)
        super().__init__(get_loop(), callback, event_cb)
        self._read = read
        self._filenames = filenames
        self._begin(function, *arguments)

    def _results(self, address: int) -> tuple[Any, ...]:
        outcome = lib.pa_fs_result(address)
        if outcome.result < 0:
            raise self._error(outcome.result)
        if self._callback is None:
            # Closed meanwhile. A descriptor that it has opened, or a directory that it has made,
            # stays C's, which closes or removes it.
            return ()
        return self._read(address, outcome)

    def _error(self, status: int) -> FilesystemError:
        return filesystem_error(status, *self._filenames)

    def _report_error(self, error: EventError) -> None:
        self._loop.report(self, error)


class CloseRequest(FsRequest):
    """A descriptor's close that is under way."""

    __slots__ = ()

    def close(self) -> None:
        """Forget the request: its callback is not called. The descriptor is closed all the same."""
        if not self.closed:
            self._loop.check_thread()
            self._callback = None


# Results: functions that read the callback's arguments from a request


def _nothing(address: int, outcome: Any) -> tuple[()]:
    return ()


def _number(address: int, outcome: Any) -> tuple[int]:
    return (outcome.result,)


def _descriptor(address: int, outcome: Any) -> tuple[int]:
    lib.pa_fs_take(address)  # the callback's from here on: C does not close it
    return (outcome.result,)


def _data(address: int, outcome: Any) -> tuple[bytes]:
    return (ffi.buffer(outcome.data, outcome.size)[:],)


def _decoder(like: str | bytes) -> Callable[[bytes], Any]:
    return os.fsdecode if isinstance(like, str) else bytes


def _path_like(like: str | bytes) -> Callable[[int, Any], tuple[str | bytes]]:
    decode = _decoder(like)
    return lambda address, outcome: (decode(ffi.buffer(outcome.data, outcome.size)[:]),)


def _stat_result(address: int, outcome: Any) -> tuple[os.stat_result]:
    stat = lib.pa_fs_result_stat(address)
    fields = {"st_blksize": stat.st_blksize, "st_blocks": stat.st_blocks, "st_rdev": stat.st_rdev}
    times = {"atime": stat.st_atim, "mtime": stat.st_mtim, "ctime": stat.st_ctim}
    for name, time in times.items():
        fields[f"st_{name}"] = time.tv_sec + time.tv_nsec * 1e-9
        fields[f"st_{name}_ns"] = time.tv_sec * 10**9 + time.tv_nsec
        if PYPY:  # before PyPy 8 st_atime_ns and its like are properties, made from such fields
            fields[f"nsec_{name}"] = time.tv_nsec
    integers = [
        *(stat.st_mode, stat.st_ino, stat.st_dev, stat.st_nlink),
        *(stat.st_uid, stat.st_gid, stat.st_size),
        *(time.tv_sec for time in times.values()),
    ]
    return (os.stat_result(integers, fields),)


# Arguments


def _path(value: StrOrBytesPath, name: str = "path") -> tuple[str | bytes, bytes]:
    """Return the path as it was given, for errors, and as bytes for C."""
    encoded = c_string(name, value)
    return as_path(name, value), encoded


def _fd(value: Descriptor, name: str = "fd") -> int:
    return require_descriptor(name, value)


def _size(value: int, name: str) -> int:
    return require_integer(name, value, 0, 2**63 - 1)


def _offset(value: int | None) -> int:
    if value is None:
        return -1
    return require_integer("offset", value, 0, 2**63 - 1, ", or None")


def _mode(value: int) -> int:
    return require_integer("mode", value, 0, 0o7777)


# Files


def stat(
    path: StrOrBytesPath,
    callback: Callable[[os.stat_result], object],
    *,
    event_cb: EventCallback | None = None,
) -> FsRequest:
    """Call ``callback(status)`` with an `os.stat_result`, as `os.stat` returns it.

    For a symbolic link it is the status of the link's target.

    >>> import pyasync, stat
    >>> with pyasync.event_loop():
    ...     _ = pyasync.fs.stat("/", lambda status: print(stat.S_ISDIR(status.st_mode)))
    True
    """
    name, encoded = _path(path)
    return FsRequest(callback, event_cb, _stat_result, lib.pa_fs_stat, encoded, filenames=(name,))


def lstat(
    path: StrOrBytesPath,
    callback: Callable[[os.stat_result], object],
    *,
    event_cb: EventCallback | None = None,
) -> FsRequest:
    """Do as `stat`, but for a symbolic link give the link's own status."""
    name, encoded = _path(path)
    return FsRequest(callback, event_cb, _stat_result, lib.pa_fs_lstat, encoded, filenames=(name,))


def fstat(
    fd: Descriptor,
    callback: Callable[[os.stat_result], object],
    *,
    event_cb: EventCallback | None = None,
) -> FsRequest:
    """Do as `stat`, for an open descriptor."""
    return FsRequest(callback, event_cb, _stat_result, lib.pa_fs_fstat, _fd(fd))


def open(
    path: StrOrBytesPath,
    flags: int,
    callback: Callable[[int], object],
    *,
    mode: int = 0o666,
    event_cb: EventCallback | None = None,
) -> FsRequest:
    """Open a file, and call ``callback(fd)`` with its descriptor, which the callback must close.

    ``flags`` are those of `os.open`: ``os.O_RDONLY``, ``os.O_WRONLY | os.O_CREAT | os.O_TRUNC``.
    ``O_CLOEXEC`` is always added: programs that the process starts do not inherit the descriptor.
    ``mode`` is that of a new file, less the process's umask.
    """
    name, encoded = _path(path)
    flags = require_integer("flags", flags, 0, 2**31 - 1) | os.O_CLOEXEC
    return FsRequest(
        callback,
        event_cb,
        _descriptor,
        lib.pa_fs_open,
        encoded,
        flags,
        _mode(mode),
        filenames=(name,),
    )


def read(
    fd: Descriptor,
    size: int,
    callback: Callable[[bytes], object],
    *,
    offset: int | None = None,
    event_cb: EventCallback | None = None,
) -> FsRequest:
    """Read up to ``size`` bytes, and call ``callback(data)``; at the end of the file with ``b""``.

    It is one read(2), or with an ``offset`` in bytes one pread(2), which leaves the descriptor's
    position alone: several of these may run at once. A read may give less than there is.
    """
    return FsRequest(
        callback, event_cb, _data, lib.pa_fs_read, _fd(fd), _size(size, "size"), _offset(offset)
    )


def write(
    fd: Descriptor,
    data: Data,
    callback: Callable[[int], object],
    *,
    offset: int | None = None,
    event_cb: EventCallback | None = None,
) -> FsRequest:
    """Write all of the data, and call ``callback(size)`` with the number of bytes.

    ``data`` is bytes-like, or `str`, written as UTF-8; it is copied. After a short write the rest
    is written as well. If that fails, ``event_cb`` gets the error, which does not tell how much was
    written. A non-blocking descriptor may take less, and then ``size`` is less. With an ``offset``
    in bytes the descriptor's position is left alone (pwrite(2)).
    """
    data = bytes(as_buffer_slice(data))
    return FsRequest(
        callback, event_cb, _number, lib.pa_fs_write, _fd(fd), data, len(data), _offset(offset)
    )


def sendfile(
    out_fd: Descriptor,
    in_fd: Descriptor,
    offset: int,
    count: int,
    callback: Callable[[int], object],
    *,
    event_cb: EventCallback | None = None,
) -> FsRequest:
    """Copy ``count`` bytes between descriptors inside the kernel, and call ``callback(size)``.

    They are read from ``offset``, in bytes, and written at the position of ``out_fd``. ``size`` is
    their number, less than ``count`` where the file ends. The position of ``in_fd`` does not count,
    and stays. A file as ``out_fd`` must not append: with ``O_APPEND`` the error is EBADF
    (copy_file_range(2)).

    An ``out_fd`` with ``O_NONBLOCK``, such as a socket's, never holds a thread of the pool for a
    peer that does not read. When it takes no more, ``size`` is the number of bytes that it has
    taken; if that is none, the error is EAGAIN. Wait with `poll` until it is writable, and send the
    rest from ``offset + size``. An ``out_fd`` that blocks holds a thread until its peer has read
    all. When the peer has left, the error is EPIPE or ECONNRESET.

    ``in_fd`` is a file. A pipe or a socket, which has no offset, is read at its own position. With
    a non-blocking ``out_fd`` that is ESPIPE, because bytes would be lost. Where the kernel cannot
    copy, the bytes pass through a buffer of 128 KiB.
    """
    return FsRequest(
        callback,
        event_cb,
        _number,
        lib.pa_fs_sendfile,
        _fd(out_fd, "out_fd"),
        _fd(in_fd, "in_fd"),
        _size(offset, "offset"),
        _size(count, "count"),
    )


def close(
    fd: int, callback: Callable[[], object], *, event_cb: EventCallback | None = None
) -> FsRequest:
    """Close the descriptor, and call ``callback()``.

    It is closed in any case: also if the request is closed, or if the loop ends before a thread has
    begun it.
    """
    # A number only: an object would close its descriptor again, when that is another file's.
    number = require_integer("fd", fd, 0, MAX_FD)
    return CloseRequest(callback, event_cb, _nothing, lib.pa_fs_close, number)


def fsync(
    fd: Descriptor, callback: Callable[[], object], *, event_cb: EventCallback | None = None
) -> FsRequest:
    """Let the disk have all that was written to the file, and call ``callback()`` (fsync(2))."""
    return FsRequest(callback, event_cb, _nothing, lib.pa_fs_fsync, _fd(fd))


def ftruncate(
    fd: Descriptor,
    size: int,
    callback: Callable[[], object],
    *,
    event_cb: EventCallback | None = None,
) -> FsRequest:
    """Cut the file to ``size`` bytes, or fill it up to that with zeros; call ``callback()``."""
    return FsRequest(
        callback, event_cb, _nothing, lib.pa_fs_ftruncate, _fd(fd), _size(size, "size")
    )


# Whole files


def read_file(
    path: StrOrBytesPath,
    callback: Callable[[bytes], object],
    *,
    event_cb: EventCallback | None = None,
) -> FsRequest:
    """Read a whole file, and call ``callback(data)``.

    One thread opens the file, reads it to its end, and closes it. So the callback gets a file that
    is written meanwhile as it was at different moments. A file without an end, such as
    ``/dev/zero``, or a pipe, holds the thread and takes memory as long as it gives data.

    >>> import pyasync
    >>> with pyasync.event_loop():
    ...     _ = pyasync.fs.read_file("/dev/null", print)
    b''
    """
    name, encoded = _path(path)
    return FsRequest(callback, event_cb, _data, lib.pa_fs_read_file, encoded, filenames=(name,))


def write_file(
    path: StrOrBytesPath,
    data: Data,
    callback: Callable[[], object],
    *,
    mode: int = 0o666,
    event_cb: EventCallback | None = None,
) -> FsRequest:
    """Write a whole file, in place of what it holds, and call ``callback()``.

    ``data`` is bytes-like, or `str`, written as UTF-8; it is copied. ``mode`` is that of a new
    file, less the process's umask. One thread opens the file, writes it, and closes it. It is
    written in place: others may see it empty, or its beginning only, and after an error it stays
    so. Where that matters write another file, `fsync` it, and `rename` it.
    """
    name, encoded = _path(path)
    data = bytes(as_buffer_slice(data))
    return FsRequest(
        callback,
        event_cb,
        _nothing,
        lib.pa_fs_write_file,
        encoded,
        data,
        len(data),
        _mode(mode),
        filenames=(name,),
    )


def copyfile(
    path: StrOrBytesPath,
    new_path: StrOrBytesPath,
    callback: Callable[[], object],
    *,
    exclusive: bool = False,
    event_cb: EventCallback | None = None,
) -> FsRequest:
    """Copy a file's data and mode, in place of a file at ``new_path``; call ``callback()``.

    With ``exclusive`` an existing file is an error (EEXIST). Where the file system can, the two
    share their blocks until one is changed. After an error there is no file at ``new_path``. An
    error has both paths: ``filename`` and ``filename2``.
    """
    flags = lib.UV_FS_COPYFILE_EXCL if require_flag("exclusive", exclusive) else 0
    return _on_two("path", path, new_path, callback, event_cb, lib.pa_fs_copyfile, flags)


# Directories and names


def mkdir(
    path: StrOrBytesPath,
    callback: Callable[[], object],
    *,
    mode: int = 0o777,
    event_cb: EventCallback | None = None,
) -> FsRequest:
    """Make a directory, whose mode is ``mode`` less the process's umask; call ``callback()``."""
    name, encoded = _path(path)
    return FsRequest(
        callback, event_cb, _nothing, lib.pa_fs_mkdir, encoded, _mode(mode), filenames=(name,)
    )


def rmdir(
    path: StrOrBytesPath, callback: Callable[[], object], *, event_cb: EventCallback | None = None
) -> FsRequest:
    """Remove an empty directory, and call ``callback()``."""
    name, encoded = _path(path)
    return FsRequest(callback, event_cb, _nothing, lib.pa_fs_rmdir, encoded, filenames=(name,))


def rename(
    path: StrOrBytesPath,
    new_path: StrOrBytesPath,
    callback: Callable[[], object],
    *,
    event_cb: EventCallback | None = None,
) -> FsRequest:
    """Rename a file, in place of one that has the new name, and call ``callback()`` (rename(2)).

    An error has both paths: ``filename`` and ``filename2``.
    """
    return _on_two("path", path, new_path, callback, event_cb, lib.pa_fs_rename)


def link(
    path: StrOrBytesPath,
    new_path: StrOrBytesPath,
    callback: Callable[[], object],
    *,
    event_cb: EventCallback | None = None,
) -> FsRequest:
    """Give a file a second name, a hard link, and call ``callback()`` (link(2)).

    An error has both paths: ``filename`` and ``filename2``.
    """
    return _on_two("path", path, new_path, callback, event_cb, lib.pa_fs_link)


def symlink(
    target: StrOrBytesPath,
    new_path: StrOrBytesPath,
    callback: Callable[[], object],
    *,
    event_cb: EventCallback | None = None,
) -> FsRequest:
    """Make a symbolic link that holds the path ``target``, and call ``callback()`` (symlink(2)).

    Nothing need be there. An error has both paths: ``filename`` and ``filename2``.
    """
    return _on_two("target", target, new_path, callback, event_cb, lib.pa_fs_symlink)


def _on_two(
    name: str,
    path: StrOrBytesPath,
    new_path: StrOrBytesPath,
    callback: Callable[[], object],
    event_cb: EventCallback | None,
    function: Callable[..., int],
    *arguments: Any,
) -> FsRequest:
    """Begin an operation on two paths."""
    first, encoded = _path(path, name)
    second, new_encoded = _path(new_path, "new_path")
    return FsRequest(
        callback,
        event_cb,
        _nothing,
        function,
        encoded,
        new_encoded,
        *arguments,
        filenames=(first, second),
    )


def access(
    path: StrOrBytesPath,
    mode: int,
    callback: Callable[[], object],
    *,
    event_cb: EventCallback | None = None,
) -> FsRequest:
    """Call ``callback()`` if this process may use the file so; otherwise it is an error.

    ``mode`` is `os.F_OK` (there is such a file), or a sum of `os.R_OK`, `os.W_OK` and `os.X_OK`.
    `FilesystemAccess`, `FilesystemNotFound` and others tell why not. The real user and group count
    (access(2)). Another program may change the file before it is opened: the open tells for sure.
    """
    name, encoded = _path(path)
    number = require_integer("mode", mode, 0, os.R_OK | os.W_OK | os.X_OK)
    return FsRequest(
        callback, event_cb, _nothing, lib.pa_fs_access, encoded, number, filenames=(name,)
    )


def chmod(
    path: StrOrBytesPath,
    mode: int,
    callback: Callable[[], object],
    *,
    event_cb: EventCallback | None = None,
) -> FsRequest:
    """Set the mode of a file, of a link's target, and call ``callback()`` (chmod(2))."""
    name, encoded = _path(path)
    return FsRequest(
        callback, event_cb, _nothing, lib.pa_fs_chmod, encoded, _mode(mode), filenames=(name,)
    )


def utime(
    path: StrOrBytesPath,
    atime: float,
    mtime: float,
    callback: Callable[[], object],
    *,
    event_cb: EventCallback | None = None,
) -> FsRequest:
    """Set the times of the last access and the last change of a file; call ``callback()``.

    Both are in seconds since 1970, as `time.time` has them; libuv keeps microseconds.
    """
    name, encoded = _path(path)
    times = [
        float(require_time(which, time, -MAX_TIME))
        for which, time in [("atime", atime), ("mtime", mtime)]
    ]
    return FsRequest(
        callback, event_cb, _nothing, lib.pa_fs_utime, encoded, *times, filenames=(name,)
    )


def unlink(
    path: StrOrBytesPath, callback: Callable[[], object], *, event_cb: EventCallback | None = None
) -> FsRequest:
    """Remove a file, or a symbolic link itself, and call ``callback()``."""
    name, encoded = _path(path)
    return FsRequest(callback, event_cb, _nothing, lib.pa_fs_unlink, encoded, filenames=(name,))


def scandir(
    path: PathOf[AnyStr],
    callback: Callable[[list[Entry[AnyStr]]], object],
    *,
    event_cb: EventCallback | None = None,
) -> FsRequest:
    """List a directory, and call ``callback(entries)``: a list of `Entry`, ``(name, type)``.

    ``.`` and ``..`` are left out. The order is that of the file system.
    """
    name, encoded = _path(path)
    decode = _decoder(name)

    # A digit for the type, the name, and a zero byte for each entry: see csrc/fs.c.
    def entries(address: int, outcome: Any) -> tuple[list[Entry[Any]]]:
        packed = ffi.buffer(outcome.data, outcome.size)[:].split(b"\0") if outcome.size else [b""]
        return ([Entry(decode(each[1:]), _TYPES[each[0] - 48]) for each in packed[:-1]],)

    return FsRequest(callback, event_cb, entries, lib.pa_fs_scandir, encoded, filenames=(name,))


def readlink(
    path: PathOf[AnyStr],
    callback: Callable[[AnyStr], object],
    *,
    event_cb: EventCallback | None = None,
) -> FsRequest:
    """Call ``callback(target)`` with the path that a symbolic link holds."""
    name, encoded = _path(path)
    return FsRequest(
        callback, event_cb, _path_like(name), lib.pa_fs_readlink, encoded, filenames=(name,)
    )


def realpath(
    path: PathOf[AnyStr],
    callback: Callable[[AnyStr], object],
    *,
    event_cb: EventCallback | None = None,
) -> FsRequest:
    """Call ``callback(path)`` with the absolute path without links, ``.`` and ``..`` (realpath(3)).

    Unlike for `os.path.realpath` there must be such a file.
    """
    name, encoded = _path(path)
    return FsRequest(
        callback, event_cb, _path_like(name), lib.pa_fs_realpath, encoded, filenames=(name,)
    )


def mkdtemp(
    template: PathOf[AnyStr],
    callback: Callable[[AnyStr], object],
    *,
    event_cb: EventCallback | None = None,
) -> FsRequest:
    """Make a directory that only this user may enter, and call ``callback(path)``.

    The last six characters of ``template`` are ``XXXXXX``; others take their place that make a new
    name (mkdtemp(3)). The callback's program must remove the directory. But if the request is
    closed first, or its loop ends, it is removed again. Raises `ValueError` for another template.

    >>> import os, pyasync
    >>> def on_made(path):
    ...     print(os.path.basename(path)[:5])
    ...     os.rmdir(path)
    >>> with pyasync.event_loop():
    ...     _ = pyasync.mkdtemp("/tmp/work-XXXXXX", on_made)
    work-
    """
    name, encoded = _path(template, "template")
    if not encoded.endswith(b"XXXXXX"):
        raise wrong_value("template", "a path that ends in XXXXXX", name)
    decode = _decoder(name)

    def made(address: int, outcome: Any) -> tuple[str | bytes]:
        path = decode(ffi.buffer(outcome.data, outcome.size)[:])
        lib.pa_fs_take(address)  # the callback's from here on: C does not remove it
        return (path,)

    return FsRequest(callback, event_cb, made, lib.pa_fs_mkdtemp, encoded, filenames=(name,))
