"""Every kind of path where a path goes, every kind of descriptor where a descriptor goes."""

import array
import contextlib
import inspect
import io
import os
import pathlib
import socket

import pytest
from peers import nothing
from tls_peers import CLIENT, SERVER, certificate

import pyasync
from pyasync import fs

HOST = "127.0.0.1"


class BytesPath:
    def __init__(self, path):
        self._path = path

    def __fspath__(self):
        return self._path


PATHS = {
    "str": str,
    "bytes": os.fsencode,
    "bytearray": lambda path: bytearray(os.fsencode(path)),
    "memoryview": lambda path: memoryview(os.fsencode(path)),
    "array": lambda path: array.array("B", os.fsencode(path)),
    "pathlib": pathlib.Path,
    "PathLike of bytes": lambda path: BytesPath(os.fsencode(path)),
}
each_path = pytest.mark.parametrize("form", PATHS.values(), ids=PATHS)


class Folder:
    """A folder with a file, a link, a folder and names that are free, each in one form of paths."""

    def __init__(self, folder, form):
        (folder / "file").write_bytes(b"content")
        (folder / "link").symlink_to("file")
        (folder / "folder").mkdir()
        self._folder, self._form = folder, form

    def __getattr__(self, name):
        return self._form(str(self._folder / name))


def then(results):
    return {"callback": lambda *result: results.append(result), "event_cb": pytest.fail}


def watch(path, callback, event_cb):
    monitor = pyasync.fs_watch(path, nothing, event_cb=event_cb)
    callback(monitor.path)
    monitor.close()


def run_there(form, folder, callback, event_cb):
    pyasync.spawn(
        form("ls"),
        [form("-a")],
        env={form("PATH") if form in (str, os.fsencode) else "PATH": form(os.environ["PATH"])},
        working_directory=folder,
        exit_cb=lambda process, *status: callback(*status),
    )


def listen_and_connect(name, callback, event_cb):
    def connected(client):
        server.close()
        client.close()
        callback()

    server = pyasync.pipe_server(name, nothing)
    pyasync.pipe_connect(name, nothing, connect_cb=connected, event_cb=event_cb)


def listen_by_tls(form):
    leaf = certificate()
    pyasync.tcp_ssl_server(
        HOST, 0, nothing, certificate=form(leaf.certificate), key=form(leaf.key)
    ).close()


#: By each parameter, or two, that is a path: a call with them.
WITH_PATHS = {
    ("fs.stat.path",): lambda at, then: fs.stat(at.file, **then),
    ("fs.lstat.path",): lambda at, then: fs.lstat(at.link, **then),
    ("fs.open.path",): lambda at, then: fs.open(
        at.file, os.O_RDONLY, lambda fd: (os.close(fd), then["callback"]())
    ),
    ("fs.read_file.path",): lambda at, then: fs.read_file(at.file, **then),
    ("fs.write_file.path",): lambda at, then: fs.write_file(at.new, b"new", **then),
    ("fs.copyfile.path", "fs.copyfile.new_path"): lambda at, then: fs.copyfile(
        at.file, at.new, **then
    ),
    ("fs.mkdir.path",): lambda at, then: fs.mkdir(at.new, **then),
    ("fs.rmdir.path",): lambda at, then: fs.rmdir(at.folder, **then),
    ("fs.rename.path", "fs.rename.new_path"): lambda at, then: fs.rename(at.file, at.new, **then),
    ("fs.link.path", "fs.link.new_path"): lambda at, then: fs.link(at.file, at.new, **then),
    ("fs.symlink.target", "fs.symlink.new_path"): lambda at, then: fs.symlink(
        at.file, at.new, **then
    ),
    ("fs.access.path",): lambda at, then: fs.access(at.file, os.R_OK, **then),
    ("fs.chmod.path",): lambda at, then: fs.chmod(at.file, 0o600, **then),
    ("fs.utime.path",): lambda at, then: fs.utime(at.file, 0, 0, **then),
    ("fs.unlink.path",): lambda at, then: fs.unlink(at.file, **then),
    ("fs.scandir.path",): lambda at, then: fs.scandir(at.folder, **then),
    ("fs.readlink.path",): lambda at, then: fs.readlink(at.link, **then),
    ("fs.realpath.path",): lambda at, then: fs.realpath(at.link, **then),
    ("fs.mkdtemp.template", "mkdtemp.template"): lambda at, then: pyasync.mkdtemp(
        at.newXXXXXX, **then
    ),
    ("fs_watch.path",): lambda at, then: watch(at.folder, **then),
    ("spawn.path", "spawn.args", "spawn.env", "spawn.working_directory"): lambda at, then: (
        run_there(at._form, at.folder, **then)
    ),
    ("pipe_server.name", "pipe_connect.name"): lambda at, then: listen_and_connect(at.pipe, **then),
    ("tcp_ssl_server.certificate", "tcp_ssl_server.key"): lambda at, then: (
        listen_by_tls(at._form),
        then["callback"](),
    ),
}


@each_path
@pytest.mark.parametrize("call", WITH_PATHS.values(), ids=map(" ".join, WITH_PATHS))
def test_each_kind_of_path_is_one(run, tmp_path, monkeypatch, form, call):
    monkeypatch.chdir(tmp_path)  # a pipe's name must be short
    results = []
    with run():
        call(Folder(pathlib.Path(), form), then(results))
    assert len(results) == 1
    for result in results[0]:
        if isinstance(result, (str, bytes)) and call is not WITH_PATHS["fs.read_file.path",]:
            assert isinstance(result, str if form in (str, pathlib.Path) else bytes)


@each_path
def test_a_program_and_its_arguments_may_be_any_kind_of_path(run, form):
    output = []
    with run():
        pyasync.spawn(
            form("printf"),
            [form("%s"), form("text")],
            env={"PATH": form(os.environ["PATH"])},
            output=pyasync.StdioPipe(read_cb=lambda pipe, data: output.append(data)),
        )
    assert output == [b"text"]


@each_path
def test_the_filename_of_an_error_is_text_or_bytes(run, form):
    errors = []
    with run():
        fs.stat(form("/nowhere"), nothing, event_cb=errors.append)
        with pytest.raises(FileNotFoundError) as raised:
            pyasync.fs_watch(form("/nowhere"), nothing)
        errors.append(raised.value)
        with pytest.raises(FileNotFoundError) as raised:
            pyasync.spawn(form("/nowhere"), [])
        errors.append(raised.value)
    for error in errors:
        assert type(error.filename) in (str, bytes)
        assert os.fsencode(error.filename) == b"/nowhere"


# Descriptors


class HasFileno:
    """An object that has a descriptor, and closes it never."""

    def __init__(self, fd):
        self._fd = fd

    def fileno(self):
        return self._fd


DESCRIPTORS = {
    "number": lambda file: file.fileno(),
    "file": lambda file: file,
    "fileno": lambda file: HasFileno(file.fileno()),
}


@contextlib.contextmanager
def a_file(tmp_path, mode="r+b"):
    path = tmp_path / "descriptor"
    path.write_bytes(b"content")
    with open(path, mode, buffering=0) as file:
        yield file


@contextlib.contextmanager
def a_listener(tmp_path, family=socket.AF_INET):
    with socket.socket(family) as sock:
        sock.bind((HOST, 0) if family == socket.AF_INET else str(tmp_path / "pipe"))
        yield sock


@contextlib.contextmanager
def a_connection(tmp_path):
    with (
        socket.create_server((HOST, 0)) as listener,
        socket.create_connection(listener.getsockname()) as sock,
        listener.accept()[0],
    ):
        yield sock


def spawn_with(name, fd, callback):
    pyasync.spawn(*("true", []), **{name: fd}, exit_cb=lambda process, *status: callback(*status))


def poll(fd, callback):
    def ready(readable, writable):
        poller.close()
        callback()

    poller = pyasync.poll(fd, ready)


def send_a_file(file, callback):
    def sent(stream):
        stream.close()
        server.close()
        callback()

    server = pyasync.tcp_server(HOST, 0, nothing)
    pyasync.tcp_connect(*server.address, nothing).sendfile(file, write_cb=sent)


def closing(handle, callback):
    handle.close()
    callback()


#: By each parameter, or two, that is a descriptor: what it is of, and a call with it.
WITH_DESCRIPTORS = {
    ("fs.fstat.fd",): (a_file, lambda fd, cb: fs.fstat(fd, cb, event_cb=pytest.fail)),
    ("fs.read.fd",): (a_file, lambda fd, cb: fs.read(fd, 9, cb, event_cb=pytest.fail)),
    ("fs.write.fd",): (a_file, lambda fd, cb: fs.write(fd, b"!", cb, event_cb=pytest.fail)),
    ("fs.sendfile.out_fd", "fs.sendfile.in_fd"): (
        a_file,
        lambda fd, cb: fs.sendfile(fd, fd, 0, 0, cb, event_cb=pytest.fail),
    ),
    ("fs.fsync.fd",): (a_file, lambda fd, cb: fs.fsync(fd, cb, event_cb=pytest.fail)),
    ("fs.ftruncate.fd",): (a_file, lambda fd, cb: fs.ftruncate(fd, 1, cb, event_cb=pytest.fail)),
    ("poll.fd",): (a_connection, poll),
    ("open_stream.fd",): (
        a_connection,
        lambda fd, cb: closing(pyasync.open_stream(fd, nothing), cb),
    ),
    ("Stream.sendfile.file",): (a_file, send_a_file),
    **{
        (f"spawn.{name}",): (a_file, lambda fd, cb, name=name: spawn_with(name, fd, cb))
        for name in ("input", "output", "error_output")
    },
    ("tcp_server.fd",): (
        a_listener,
        lambda fd, cb: closing(pyasync.tcp_server(None, 0, nothing, fd=fd), cb),
    ),
    ("tcp_ssl_server.fd",): (
        a_listener,
        lambda fd, cb: closing(
            pyasync.tcp_ssl_server(None, 0, nothing, fd=fd, ssl_context=SERVER()), cb
        ),
    ),
    ("pipe_server.fd",): (
        lambda folder: a_listener(folder, socket.AF_UNIX),
        lambda fd, cb: closing(pyasync.pipe_server(None, nothing, fd=fd), cb),
    ),
    ("init_tcp_socket.fd",): (
        a_connection,
        lambda fd, cb: closing(pyasync.init_tcp_socket(nothing, fd=fd), cb),
    ),
    ("init_tcp_ssl_socket.fd",): (
        a_connection,
        lambda fd, cb: pyasync.init_tcp_ssl_socket(
            nothing, fd=fd, ssl_context=CLIENT(), server_hostname="localhost"
        ).close(force=True) or cb(),
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", DESCRIPTORS.values(), ids=DESCRIPTORS)
@pytest.mark.parametrize(
    ("of", "call"), WITH_DESCRIPTORS.values(), ids=map(" ".join, WITH_DESCRIPTORS)
)
def test_each_kind_of_descriptor_is_one(run, tmp_path, form, of, call):
    results = []
    with of(tmp_path) as file, run():
        call(form(file), lambda *result: results.append(result))
    assert len(results) == 1


@pytest.mark.parametrize("call", [call for _, call in WITH_DESCRIPTORS.values()],
                         ids=map(" ".join, WITH_DESCRIPTORS))  # fmt: skip
def test_a_file_that_is_closed_or_has_no_descriptor_is_named(run, tmp_path, call):
    with a_file(tmp_path) as closed:
        pass
    with run():
        for file in (closed, io.BytesIO()):
            with pytest.raises(ValueError, match=r"^\w+ must (be|have) .*, not <_io\."):
                call(file, nothing)
        pyasync.exit_event_loop()  # which ends what a call has made before


# The tables are complete


#: The annotations of these parameters. `fs.close` takes a number only: an object would close its
#: descriptor again.
KINDS = {"StrOrBytesPath", "Name", "Argument", "Descriptor", "StdioOption", "PathOf"}


def annotated_parameters():
    owners = [("", pyasync, pyasync.__all__), ("fs.", fs, fs.__all__)]
    owners += [
        (f"{name}.", cls, [member for member in vars(cls) if not member.startswith("_")])
        for cls in [pyasync.streams.Stream, *filter(inspect.isclass, vars(pyasync).values())]
        for name in [cls.__name__]
    ]
    for prefix, owner, names in owners:
        for name in names:
            function = getattr(owner, name)
            if inspect.isfunction(function):
                for parameter in inspect.signature(function).parameters.values():
                    words = str(parameter.annotation).replace("[", " ").replace("]", " ").split()
                    if KINDS.intersection(words):
                        yield f"{prefix}{name}.{parameter.name}"


def test_no_parameter_is_forgotten():
    tried = {name for names in [*WITH_PATHS, *WITH_DESCRIPTORS] for name in names}
    assert set(annotated_parameters()) == tried
