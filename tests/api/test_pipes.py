"""What is particular to pipes: their names, their files, and a backlog that is full."""

import contextlib
import errno
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
from peers import PATIENCE, Background, echo, exchange, fork_and_check, full_backlog, nothing, when

import pyasync

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="abstract names are Linux's")

#: sockaddr_un's sun_path has 108 bytes, the last of them zero: unix(7).
LONGEST = 107


@pytest.fixture
def path(tmp_path, monkeypatch):
    """Give a path for a pipe; if the temporary folder's is too long for one, a relative one."""
    path = tmp_path / "pipe"
    if len(os.fsencode(path)) > LONGEST - 20:
        monkeypatch.chdir(tmp_path)
        path = Path("pipe")
    return str(path)


@pytest.fixture
def abstract(tmp_path):
    """Give a name that no other test has."""
    return f"\0pyasync {tmp_path.name} {os.getpid()} {id(tmp_path)}"


@contextlib.contextmanager
def listening(name, backlog=128):
    """Give a plain socket that listens; a path stays when it closes."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(name)
        listener.listen(backlog)
        listener.settimeout(PATIENCE)
        yield listener


def dial(name):
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(PATIENCE)
    sock.connect(name)
    return sock


def leave_stale(path):
    """Leave a socket's file behind at which nobody listens."""
    with listening(path):
        pass
    assert is_socket(path)


def is_socket(path):
    return stat.S_ISSOCK(os.lstat(path).st_mode)


def connect(run, name, **options):
    """Run a client that closes when it has connected; return what its event_cb was told."""
    told = []
    options.setdefault("connect_cb", lambda client: client.close())
    run(lambda: pyasync.pipe_connect(name, nothing, event_cb=told.append, **options))
    return told


# Names


def exchange_over(run, name, server_name=None):
    """Talk over pyasync's pipe from both ends. Gives what the client has got."""
    got = []

    def on_data(client, data):
        got.append(data)
        client.close()
        server.close()

    with run():
        server = pyasync.pipe_server(server_name or name, echo)
        pyasync.pipe_connect(name, on_data, data="hello")
    return got


@pytest.mark.parametrize("kind", [str, os.fsencode, Path], ids=["str", "bytes", "PathLike"])
def test_a_path_may_be_of_any_kind(run, path, kind):
    assert exchange_over(run, kind(path)) == [b"hello"]


@pytest.mark.parametrize("name", ["p\N{LATIN SMALL LETTER I WITH DIAERESIS}pe", b"p\xffpe", " "])
def test_a_path_may_have_any_bytes(run, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert exchange_over(run, name) == [b"hello"]
    assert os.listdir(tmp_path) == []


def test_a_path_may_be_relative(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert exchange_over(run, "pipe") == [b"hello"]


@LINUX
@pytest.mark.parametrize("kind", [str, os.fsencode], ids=["str", "bytes"])
def test_a_name_may_be_abstract(run, abstract, kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert exchange_over(run, kind(abstract)) == [b"hello"]
    assert os.listdir(tmp_path) == []


@LINUX
def test_an_abstract_name_may_have_zero_bytes(run, abstract):
    one, other = f"{abstract}\0one", f"{abstract}\0other"

    with listening(one), run():
        with pytest.raises(pyasync.SocketAddressInUse):
            pyasync.pipe_server(one, nothing)
        pyasync.pipe_server(other, nothing).close()


def test_the_longest_path_is_taken_whole(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "x" * LONGEST

    with run():
        server = pyasync.pipe_server(name, nothing)
        assert os.listdir(tmp_path) == [name]
        assert server.address == name
        server.close()
    assert exchange_over(run, name) == [b"hello"]


def test_the_address_is_the_name(run, path):
    with run():
        server = pyasync.pipe_server(path, nothing)
        assert server.address == path
        server.close()


# The file of a server


def test_the_file_is_removed_when_the_server_is_closed(run, path):
    with run():
        server = pyasync.pipe_server(path, nothing)
        assert is_socket(path)
        server.close()
        assert not os.path.lexists(path)
        server.close()


@pytest.mark.parametrize("leave", ["exit_event_loop", "raise"])
def test_the_file_is_removed_when_the_loop_ends(run, path, leave):
    with contextlib.suppress(LookupError), run():
        pyasync.pipe_server(path, nothing)
        if leave == "raise":
            raise LookupError
        pyasync.exit_event_loop()
    assert not os.path.lexists(path)


def test_closing_a_server_leaves_its_connections_alone(run, path):
    def start():
        server = pyasync.pipe_server(path, echo, connect_cb=lambda socket: server.close())

    run_with_peer(run, start, path, lambda sock: exchange(sock, b"hello"))
    assert not os.path.lexists(path)


def run_with_peer(run, start, path, peer):
    """Run a loop, and peer(sock) connected to its pipe in a thread; return what peer returns."""
    talkers = []

    def talk():
        with dial(path) as sock:
            return peer(sock)

    with run():
        start()
        talkers.append(Background(talk))
    return talkers[0].result()


@pytest.mark.parametrize("end", ["close", "loop"])
def test_a_file_that_has_taken_its_place_is_left_alone(run, path, end):
    with run():
        server = pyasync.pipe_server(path, nothing)
        # Not removed first: its number might be given to the new one.
        os.rename(path, path + ".old")
        Path(path).write_text("another's")
        if end == "close":
            server.close()
        else:
            pyasync.exit_event_loop()
    assert Path(path).read_text() == "another's"
    assert is_socket(path + ".old")


def test_another_servers_file_is_left_alone(run, path):
    with contextlib.ExitStack() as stack, run():
        server = pyasync.pipe_server(path, nothing)
        os.rename(path, path + ".old")
        another = stack.enter_context(listening(path))
        server.close()
        with dial(path), another.accept()[0]:
            pass


def test_the_file_is_removed_while_the_server_listens_still(run, path, monkeypatch):
    """Later, another server might have replaced it by a file with the same inode."""

    looked = []
    with run():
        server = pyasync.pipe_server(path, nothing)

        def unlink(name):
            looked.append(server.closed)
            os.rename(name, path + ".old")

        with monkeypatch.context() as patch:
            patch.setattr("pyasync.pipes.os.unlink", unlink)
            server.close()
        assert server.closed
    assert looked == [False]


@pytest.mark.parametrize("end", ["close", "loop"])
def test_a_relative_path_stays_that_of_the_directory_of_the_call(run, tmp_path, monkeypatch, end):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(tmp_path)
    got = []

    def on_data(client, data):
        got.append(data)
        client.close()
        if end == "close":
            server.close()
        else:
            pyasync.exit_event_loop()

    with run():
        server = pyasync.pipe_server("p", echo)
        pyasync.pipe_connect("p", on_data, data="hello", event_cb=got.append)
        os.chdir(elsewhere)
        Path("p").write_text("another's")
    assert got == [b"hello"]
    assert os.listdir(tmp_path) == ["elsewhere"]
    assert Path("p").read_text() == "another's"


def test_a_forks_child_leaves_the_file_to_its_parent(run, path):
    with run():
        server = pyasync.pipe_server(path, nothing)
        fork_and_check(server.close)
        assert is_socket(path)
        server.close()
    assert not os.path.lexists(path)


@pytest.mark.parametrize(
    ("wrong", "error"), [({"backlog": -1}, ValueError), ({"backlog": "many"}, TypeError)]
)
def test_a_server_that_is_refused_leaves_no_file(run, path, wrong, error):
    with run(), pytest.raises(error):
        pyasync.pipe_server(path, nothing, **wrong)
    assert not os.path.lexists(path)


def test_a_file_that_is_gone_is_no_error(run, path):
    with run():
        server = pyasync.pipe_server(path, nothing)
        os.unlink(path)
        server.close()


def test_a_stale_file_is_replaced(run, path):
    leave_stale(path)
    assert exchange_over(run, path) == [b"hello"]
    assert not os.path.lexists(path)


@pytest.mark.parametrize("kind", [str, os.fsencode])
def test_bytes_and_strings_are_not_compared_with_each_other(path, kind):
    """Under ``python -bb`` that is an error: here a stale file is replaced."""
    leave_stale(path)
    program = f"""
import pyasync
with pyasync.event_loop():
    server = pyasync.pipe_server({kind(path)!r}, print)
    pyasync.pipe_connect({kind(path)!r}, print, connect_cb=lambda socket: pyasync.exit_event_loop())
"""
    subprocess.run([sys.executable, "-bb", "-c", program], check=True, timeout=3 * PATIENCE)


@pytest.mark.parametrize("whose", ["another process's", "our own"])
def test_a_live_servers_name_is_in_use(run, path, whose):
    with contextlib.ExitStack() as stack, run():
        if whose == "our own":
            server = pyasync.pipe_server(path, nothing)
        else:
            server = stack.enter_context(listening(path))
        with pytest.raises(pyasync.SocketAddressInUse) as caught:
            pyasync.pipe_server(path, nothing)
        assert caught.value.errno == errno.EADDRINUSE
        assert caught.value.filename == path
        assert is_socket(path)
        dial(path).close()
        server.close()


def test_a_live_server_whose_backlog_is_full_is_not_stale(run, path):
    with full_listener(path):
        with run(), pytest.raises(pyasync.SocketAddressInUse):
            pyasync.pipe_server(path, nothing)
        assert is_socket(path)


@LINUX
def test_a_live_servers_abstract_name_is_in_use(run, abstract):
    with listening(abstract), run(), pytest.raises(pyasync.SocketAddressInUse):
        pyasync.pipe_server(abstract, nothing)


def test_a_name_is_free_again_as_soon_as_its_server_is_closed(run, path):
    with run():
        for _ in range(3):
            pyasync.pipe_server(path, nothing).close()


@pytest.mark.parametrize("kind", ["file", "folder", "dangling link"])
def test_what_is_no_socket_is_left_alone(run, path, kind):
    if kind == "file":
        Path(path).write_text("precious")
    elif kind == "folder":
        os.mkdir(path)
    else:
        os.symlink(path + ".nowhere", path)
    before = os.lstat(path)

    with run(), pytest.raises(pyasync.SocketError):
        pyasync.pipe_server(path, nothing)
    after = os.lstat(path)
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    if kind == "file":
        assert Path(path).read_text() == "precious"


def test_a_folder_that_is_missing_is_an_error(run, path):
    with run():
        with pytest.raises(pyasync.PipeNotFound) as caught:
            pyasync.pipe_server(path + ".nowhere/pipe", nothing)
        assert isinstance(caught.value, FileNotFoundError)
        assert caught.value.filename == path + ".nowhere/pipe"


# Connecting


def test_a_missing_pipe_is_an_error_for_event_cb(run, path):
    (error,) = connect(run, path)
    assert isinstance(error, pyasync.PipeNotFound)
    assert isinstance(error, FileNotFoundError)
    assert error.filename == path
    assert isinstance(error.socket, pyasync.PipeSocket)
    assert error.socket.closed


@pytest.mark.parametrize("kind", ["stale", "file", pytest.param("abstract", marks=LINUX)])
def test_a_pipe_at_which_nobody_listens_is_refused(run, path, abstract, kind):
    if kind == "stale":
        leave_stale(path)
    elif kind == "file":
        Path(path).touch()
    (error,) = connect(run, abstract if kind == "abstract" else path)
    assert isinstance(error, pyasync.SocketRefused)


def in_child_without_permission(fn):
    """Run fn() in a child, as nobody if we are root, to whom all is permitted; it gives a bool."""
    child = os.fork()
    if child == 0:
        status = 2
        try:
            if os.getuid() == 0:
                os.setuid(65534)
            status = 0 if fn() else 1
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_without_permission_a_client_has_an_error(run, path):
    def is_refused():
        (error,) = connect(run, path)
        return isinstance(error, pyasync.SocketError) and error.errno == errno.EACCES

    with listening(path):
        os.chmod(path, 0)
        in_child_without_permission(is_refused)


def test_without_permission_a_server_has_an_error(path):
    def is_refused():
        with pyasync.event_loop():
            try:
                pyasync.pipe_server(path, nothing)
            except pyasync.SocketError as error:
                return error.errno == errno.EACCES

    folder = os.path.dirname(os.path.abspath(path))
    os.chmod(folder, 0o555)
    try:
        in_child_without_permission(is_refused)
    finally:
        os.chmod(folder, 0o755)


@contextlib.contextmanager
def full_listener(name):
    """Give a plain socket that listens, and whose backlog is full."""
    with listening(name, backlog=0) as listener, full_backlog(listener):
        yield listener


def test_with_a_full_backlog_it_connects_when_there_is_room(run, path):
    connected = []

    def make_room():
        assert connected == []
        stack.enter_context(listener.accept()[0])

    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(full_listener(path))
        with run():
            pyasync.pipe_connect(
                path,
                nothing,
                connect_cb=lambda client: (connected.append(client.peername), client.close()),
                event_cb=connected.append,
            )
            pyasync.delay(make_room, time=0.05)
    assert connected == [path]


def test_with_a_full_backlog_it_waits_no_longer_than_its_time_limit(run, path):
    with full_listener(path):
        told = connect(run, path, connect_timeout=0.05)
    assert [type(error) for error in told] == [pyasync.SocketTimeout]
    assert f"connecting to {path!r} took longer than 0.05 seconds" in str(told[0])


@contextlib.contextmanager
def no_descriptor_left():
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(0))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for fd in taken:
            os.close(fd)


def test_no_descriptor_left_is_an_error_for_event_cb(run, path):
    told = []

    def on_event(error):
        told.append(error.errno)
        shortage.close()

    with listening(path), contextlib.ExitStack() as shortage, run():
        pyasync.pipe_connect(path, nothing, event_cb=on_event)
        shortage.enter_context(no_descriptor_left())
    assert told == [errno.EMFILE]


def test_no_descriptor_left_is_an_error_of_a_server(run, path):
    with run():
        with no_descriptor_left(), pytest.raises(pyasync.SocketError) as caught:
            pyasync.pipe_server(path, nothing)
        assert (caught.value.errno, caught.value.filename) == (errno.EMFILE, path)
    assert not os.path.lexists(path)


# Counting


def test_pipes_are_counted_apart_from_tcp(run, path):
    seen = []

    def on_connect(client):
        when(lambda: pyasync.stats().accepted == 1, lambda: look(client))

    def look(client):
        seen.append(pyasync.stats())
        client.close()
        server.close()

    with run():
        server = pyasync.pipe_server(path, nothing)
        pyasync.pipe_connect(path, nothing, connect_cb=on_connect)
    (stats,) = seen
    assert (stats.accepted, stats.connected) == (1, 1)
    assert (stats.incoming_pipe_connections, stats.outgoing_pipe_connections) == (1, 1)
    assert (stats.incoming_tcp_connections, stats.outgoing_tcp_connections) == (0, 0)
    assert (stats.handles["pipe"], stats.handles["tcp"]) == (2, 0)


# Adopted descriptors


def serve_adopted(run, listener, name, **options):
    """Serve on another's descriptor until it has had one connection."""

    def start():
        server = pyasync.pipe_server(
            None, echo, fd=listener.fileno(), connect_cb=lambda socket: server.close(), **options
        )
        assert server.fileno() != listener.fileno()

    return run_with_peer(run, start, name, lambda sock: exchange(sock, b"hello"))


def test_a_server_may_adopt_a_listening_descriptor(run, path):
    with listening(path) as listener:
        assert serve_adopted(run, listener, path) == b"hello"
        assert is_socket(path)  # the file is the caller's, too
        with dial(path), listener.accept()[0]:
            pass


def test_a_server_may_adopt_a_descriptor_that_is_only_bound(run, path):
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(path)

        def start():
            server = pyasync.pipe_server(
                None, echo, fd=bound.fileno(), connect_cb=lambda socket: server.close()
            )
            bound.close()

        assert run_with_peer(run, start, path, lambda sock: exchange(sock, b"hello")) == b"hello"


def test_a_descriptor_of_the_wrong_kind_is_refused(run, tmp_path):
    with contextlib.ExitStack() as stack:
        wrong = [
            stack.enter_context(socket.create_server(("127.0.0.1", 0))),
            stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)),
            stack.enter_context((tmp_path / "file").open("w")),
        ]

        def start():
            for file in wrong:
                with pytest.raises(ValueError, match=rf"fd must be .*, not {file.fileno()}"):
                    pyasync.pipe_server(None, nothing, fd=file.fileno())

        run(start)


def test_a_connected_descriptor_cannot_listen(run):
    one, other = socket.socketpair()

    with one, other, run(), pytest.raises(pyasync.SocketError):
        pyasync.pipe_server(None, nothing, fd=one.fileno())


# Who may connect


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o777])
def test_the_file_has_the_mode_that_is_asked_for_before_anybody_can_connect(run, path, mode):
    seen = []
    listen = pyasync.pipes.listen

    def look(sock, backlog):
        seen.append(stat.S_IMODE(os.stat(path).st_mode))
        listen(sock, backlog)

    umask = os.umask(0o027)
    try:
        with run(), mock.patch("pyasync.pipes.listen", look):
            server = pyasync.pipe_server(path, nothing, mode=mode)
            assert stat.S_IMODE(os.stat(path).st_mode) == mode
            server.close()
    finally:
        os.umask(umask)
    assert seen == [mode]


def test_without_a_mode_the_umask_decides(run, path):
    umask = os.umask(0o027)
    try:
        with run():
            server = pyasync.pipe_server(path, nothing)
            assert stat.S_IMODE(os.stat(path).st_mode) == 0o750
            server.close()
    finally:
        os.umask(umask)


def test_a_mode_where_there_is_no_file_is_refused(run, path):
    with run(), listening(path) as listener:
        for name, fd in [("\0pyasync-mode", None), (None, listener)]:
            with pytest.raises(ValueError, match="mode must be None where there is no file"):
                pyasync.pipe_server(name, nothing, fd=fd, mode=0o600)


@pytest.mark.skipif(sys.platform != "linux", reason="needs SO_PEERCRED")
def test_both_ends_know_each_others_process(run, path):
    seen = []

    def on_connect(socket):
        seen.append(socket.peer_credentials)
        socket.close()
        server.close()

    with run():
        server = pyasync.pipe_server(path, nothing, connect_cb=on_connect)
        client = pyasync.pipe_connect(
            path, nothing, connect_cb=lambda socket: seen.append(socket.peer_credentials)
        )
        with pytest.raises(pyasync.SocketError):
            client.peer_credentials  # noqa: B018
    assert seen == [(os.getpid(), os.getuid(), os.getgid())] * 2
    assert seen[0].uid == os.getuid()


def test_a_system_without_credentials_says_so(run, path, monkeypatch):
    monkeypatch.setattr("pyasync.pipes._SO_PEERCRED", -1)
    errors = []

    def on_connect(socket):
        with pytest.raises(pyasync.SocketError) as caught:
            socket.peer_credentials  # noqa: B018
        errors.append(caught.value.errno)
        socket.close()
        server.close()

    with run():
        server = pyasync.pipe_server(path, nothing, connect_cb=on_connect)
        pyasync.pipe_connect(path, nothing).close()
        with dial(path):
            pass
    assert errors[0] == errno.ENOTSUP
