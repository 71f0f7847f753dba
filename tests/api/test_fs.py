"""Operations on files, each in a thread."""

import errno
import fcntl
import inspect
import os
import pathlib
import socket
import stat
import tempfile
import threading
from functools import partial

import pytest
from peers import Background, nothing, read_exactly, run_python

import pyasync
from pyasync import fs

GIB = 1 << 30


def unexpected(*arguments):
    pytest.fail(f"called with {arguments}")


@pytest.fixture
def outcome(run):
    """Give `outcome(function, *arguments, **keywords)`: what an operation's callback gets.

    Of one argument that is it, of none (). An error that its event_cb gets is raised.
    """

    def perform(function, *arguments, **keywords):
        results, errors = [], []

        requests = []
        with run():
            request = function(
                *arguments,
                lambda *result: results.append(result),
                event_cb=errors.append,
                **keywords,
            )
            assert not request.closed
            assert (results, errors) == ([], [])  # nothing is called inside the call
            requests.append(request)
        assert requests[0].closed
        if errors:
            assert (len(errors), results) == (1, [])
            raise errors[0]
        assert len(results) == 1
        return results[0][0] if len(results[0]) == 1 else results[0]

    return perform


@pytest.fixture
def opened():
    """Give `opened(path, flags)`: a descriptor, closed after the test."""
    descriptors = []

    def open_one(path, flags=os.O_RDONLY):
        descriptors.append(os.open(path, flags, 0o600))
        return descriptors[-1]

    yield open_one
    for fd in descriptors:
        os.close(fd)


# The status of files


def test_stat_gives_what_os_stat_gives(outcome, tmp_path):
    (tmp_path / "file").write_bytes(b"12345")
    os.utime(tmp_path / "file", ns=(1_111_111_111_123_456_789, 2_222_222_222_987_654_321))
    for path in (tmp_path, tmp_path / "file", pathlib.Path("/dev/null")):
        ours, theirs = outcome(fs.stat, path), os.stat(path)
        assert isinstance(ours, os.stat_result)
        for name in dir(theirs):
            # Somebody else may read the others meanwhile.
            if name.startswith("st_") and ("atime" not in name or path.name == "file"):
                expected = getattr(theirs, name)
                if isinstance(expected, float):
                    expected = pytest.approx(expected, abs=1e-5)
                assert getattr(ours, name) == expected, name
        assert tuple(ours)[:7] == tuple(theirs)[:7]


def test_a_link_is_followed_by_stat_and_not_by_lstat(outcome, tmp_path):
    (tmp_path / "file").write_bytes(b"12345")
    (tmp_path / "link").symlink_to("file")
    assert outcome(fs.stat, tmp_path / "link").st_size == 5
    assert stat.S_ISLNK(outcome(fs.lstat, tmp_path / "link").st_mode)


def test_fstat_tells_the_status_of_a_descriptor(outcome, opened, tmp_path):
    (tmp_path / "file").write_bytes(b"12345")
    fd = opened(tmp_path / "file")
    assert outcome(fs.fstat, fd).st_ino == os.fstat(fd).st_ino


# Reading and writing


def test_a_file_is_made_written_read_and_closed(run, tmp_path):
    path = tmp_path / "file"
    steps = []

    def on_opened(fd):
        steps.append(os.get_inheritable(fd))
        fs.write(fd, b"first ", lambda size: on_first(fd, size))

    def on_first(fd, size):
        steps.append(size)
        fs.write(fd, "and sécond", lambda size: on_second(fd, size))

    def on_second(fd, size):
        steps.append(size)
        fs.read(fd, 100, lambda data: on_end(fd, data))

    def on_end(fd, data):
        steps.append(data)
        fs.read(fd, 5, lambda data: on_read(fd, data), offset=6)

    def on_read(fd, data):
        steps.append(data)
        fs.close(fd, lambda: steps.append(fd_is_open(fd)))

    run(lambda: fs.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, on_opened, mode=0o640))
    assert steps == [False, 6, 11, b"", "and sé".encode()[:5], False]
    assert path.read_text(encoding="utf-8") == "first and sécond"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640 & ~current_umask()


def fd_is_open(fd):
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def current_umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_write_with_an_offset_leaves_the_position_alone(outcome, opened, tmp_path):
    fd = opened(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    assert outcome(fs.write, fd, b"abc", offset=10) == 3
    assert outcome(fs.write, fd, bytearray(b"def")) == 3
    assert outcome(fs.write, fd, memoryview(b"ghi")[::2]) == 2
    assert (tmp_path / "file").read_bytes() == b"defgi\0\0\0\0\0abc"


def test_data_that_is_changed_after_the_call_is_written_as_it_was(run, opened, tmp_path):
    fd = opened(tmp_path / "file", os.O_WRONLY | os.O_CREAT)

    with run():
        data = bytearray(b"a" * 100_000)
        fs.write(fd, data, nothing)
        data[:] = b"b" * 100_000
    assert (tmp_path / "file").read_bytes() == b"a" * 100_000


def test_empty_reads_and_writes_are_done(outcome, opened, tmp_path):
    fd = opened(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    assert outcome(fs.write, fd, b"") == 0
    assert outcome(fs.read, fd, 0) == b""


def test_offsets_beyond_4_gib_work(outcome, opened, tmp_path):
    fd = opened(tmp_path / "sparse", os.O_RDWR | os.O_CREAT)
    out = opened(tmp_path / "out", os.O_RDWR | os.O_CREAT)
    assert outcome(fs.write, fd, b"far away", offset=5 * GIB) == 8
    assert outcome(fs.fstat, fd).st_size == 5 * GIB + 8
    assert outcome(fs.read, fd, 100, offset=5 * GIB + 4) == b"away"
    assert outcome(fs.sendfile, out, fd, 5 * GIB, 100) == 8
    assert (tmp_path / "out").read_bytes() == b"far away"


def test_a_read_of_any_size_gives_what_there_is(outcome, opened, tmp_path):
    (tmp_path / "file").write_bytes(b"all of it")
    assert outcome(fs.read, opened(tmp_path / "file"), (1 << 63) - 1) == b"all of it"


def test_a_read_that_a_signal_interrupts_goes_on():
    """A signal may reach any thread, such as the pool's: here it is the only one that takes it."""
    program = """
import os, signal
import pyasync

reader, writer = os.pipe()
told, handled = [], []
signal.signal(signal.SIGUSR1, lambda *args: handled.append(1))

def start():
    pyasync.fs.stat("/", begin)  # starts the thread, which inherits the mask of signals

def begin(status):
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    pyasync.fs.read(reader, 10, told.append, event_cb=told.append)
    pyasync.delay(interrupt, time=0.01)

def interrupt():
    os.kill(os.getpid(), signal.SIGUSR1)
    if len(handled) < 50 and not told:
        pyasync.delay(interrupt, time=0.01)
    else:
        os.write(writer, b"hello")

pyasync.start_event_loop(start)
assert told == [b"hello"], told
"""
    result = run_python("-c", program, env={**os.environ, "UV_THREADPOOL_SIZE": "1"})
    assert (result.returncode, result.stderr) == (0, "")


def test_a_short_write_goes_on_and_a_full_descriptor_says_how_much_it_took(outcome):
    reader, writer = os.pipe()
    try:
        os.set_blocking(writer, False)
        size = outcome(fs.write, writer, bytes(1 << 20))
        assert 0 < size < 1 << 20
        with pytest.raises(pyasync.FilesystemError) as caught:
            outcome(fs.write, writer, b"more")
        assert caught.value.errno == errno.EAGAIN
        assert len(os.read(reader, 1 << 20)) == size
    finally:
        os.close(reader)
        os.close(writer)


def test_an_error_after_a_short_write_is_told(tmp_path):
    # A limit on the size of files makes the kernel write a part: the rest then fails.
    script = """
import os, resource, signal, sys, pyasync
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
with pyasync.event_loop():
    pyasync.fs.write(fd, bytes(80_000), print, event_cb=lambda error: print(error.errno))
print(os.fstat(fd).st_size)
"""
    assert output_of(script, tmp_path / "file").split() == [str(errno.EFBIG), "50000"]


def output_of(script, *arguments):
    done = run_python("-c", script, *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_a_file_is_cut_and_filled_up(outcome, opened, tmp_path):
    (tmp_path / "file").write_bytes(b"12345")
    fd = opened(tmp_path / "file", os.O_RDWR)
    for size, data in [(3, b"123"), (5, b"123\0\0"), (0, b"")]:
        assert outcome(fs.ftruncate, fd, size) == ()
        assert (tmp_path / "file").read_bytes() == data
    assert outcome(fs.ftruncate, fd, 5 * GIB) == ()
    assert os.fstat(fd).st_size == 5 * GIB
    assert outcome(fs.fsync, fd) == ()


# Whole files


@pytest.mark.parametrize("size", [0, 1, 131_071, 131_072, 3_000_000])
def test_a_whole_file_is_written_and_read(outcome, tmp_path, size):
    path, data = tmp_path / "file", os.urandom(size)
    path.write_bytes(b"earlier" * 500_000)
    assert outcome(fs.write_file, path, data) == ()
    assert path.read_bytes() == data
    assert outcome(fs.read_file, path) == data


def test_a_new_file_has_the_mode_and_text_is_utf_8(outcome, tmp_path):
    path = os.fsencode(tmp_path / "file")
    outcome(fs.write_file, path, "grüße", mode=0o640)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o640 & ~current_umask()
    assert outcome(fs.read_file, path) == "grüße".encode()


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="needs /proc")
def test_a_file_that_is_longer_than_it_says_is_read_to_its_end(outcome, tmp_path):
    assert os.stat("/proc/self/maps").st_size == 0
    assert b"\n" in outcome(fs.read_file, "/proc/self/maps")


def test_what_a_named_pipe_gives_is_read_to_its_end(outcome, tmp_path):
    os.mkfifo(tmp_path / "fifo")
    data = os.urandom(500_000)
    writer = Background((tmp_path / "fifo").write_bytes, data)
    assert outcome(fs.read_file, tmp_path / "fifo") == data
    writer.result()


@pytest.mark.parametrize(("function", "arguments"), [(fs.read_file, ()), (fs.write_file, (b"",))])
def test_a_directory_is_no_whole_file(outcome, tmp_path, function, arguments):
    with pytest.raises(pyasync.FilesystemError) as caught:
        outcome(function, tmp_path, *arguments)
    assert (caught.value.errno, caught.value.filename) == (errno.EISDIR, str(tmp_path))


def test_a_whole_file_that_cannot_be_written_is_an_error(tmp_path):
    script = """
import resource, signal, sys, pyasync
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
with pyasync.event_loop():
    pyasync.fs.write_file(
        sys.argv[1], bytes(80_000), print, event_cb=lambda error: print(error.errno))
"""
    assert output_of(script, tmp_path / "file").split() == [str(errno.EFBIG)]
    assert (tmp_path / "file").stat().st_size == 50_000


def test_a_file_is_copied_with_its_mode(outcome, tmp_path):
    source, copy = tmp_path / "source", tmp_path / "copy"
    source.write_bytes(os.urandom(300_000))
    source.chmod(0o751)
    copy.write_bytes(b"earlier" * 100_000)
    assert outcome(fs.copyfile, source, copy) == ()
    assert copy.read_bytes() == source.read_bytes()
    assert stat.S_IMODE(copy.stat().st_mode) == 0o751
    with pytest.raises(pyasync.FilesystemError, match="File exists") as caught:
        outcome(fs.copyfile, source, copy, exclusive=True)
    assert (caught.value.filename, caught.value.filename2) == (str(source), str(copy))


# sendfile


def test_sendfile_copies_a_part_of_a_file(outcome, opened, tmp_path):
    data = os.urandom(300_000)
    (tmp_path / "in").write_bytes(data)
    source, out = opened(tmp_path / "in"), opened(tmp_path / "out", os.O_WRONLY | os.O_CREAT)
    assert outcome(fs.sendfile, out, source, 1000, 200_000) == 200_000
    assert outcome(fs.sendfile, out, source, 290_000, 200_000) == 10_000
    assert outcome(fs.sendfile, out, source, 300_000, 1) == 0
    assert (tmp_path / "out").read_bytes() == data[1000:201_000] + data[290_000:]
    assert os.lseek(source, 0, os.SEEK_CUR) == 0


def test_sendfile_sends_to_a_socket(outcome, opened, tmp_path):
    data = os.urandom(50_000)
    (tmp_path / "in").write_bytes(data)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert outcome(fs.sendfile, ours.fileno(), opened(tmp_path / "in"), 0, 50_000) == 50_000
        ours.close()
        assert b"".join(iter(partial(theirs.recv, 1 << 16), b"")) == data


def test_sendfile_to_a_descriptor_that_blocks_waits_for_the_reader(outcome, opened, large_file):
    path, data = large_file
    ours, theirs = socket.socketpair()
    with ours, theirs:
        reader = Background(read_exactly, theirs, len(data))
        assert outcome(fs.sendfile, ours.fileno(), opened(path), 0, 2**63 - 1) == len(data)
        assert reader.result() == data


@pytest.fixture
def large_file(tmp_path):
    """Give the path of a file, and its data, which no kernel takes from a peer that waits."""
    data = os.urandom(1 << 20) * 16
    (tmp_path / "large").write_bytes(data)
    return tmp_path / "large", data


def socket_pair():
    ours, theirs = socket.socketpair()
    return ours.detach(), theirs.detach()


def tcp_pair():
    with socket.create_server(("127.0.0.1", 0)) as server:
        theirs = socket.create_connection(server.getsockname())
        ours = server.accept()[0]
    return ours.detach(), theirs.detach()


def pipe_pair():
    reader, writer = os.pipe()
    return writer, reader


def append_pair():
    """Give a pipe to which sendfile(2) is refused: with O_APPEND, it is EINVAL."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETFL, os.O_APPEND)
    return writer, reader


PAIRS = [socket_pair, tcp_pair, pipe_pair, append_pair]


@pytest.fixture(params=PAIRS)
def pair(request):
    """Give `pair()`: a descriptor that does not block, and the one of its peer."""
    descriptors = []

    def make():
        ours, theirs = request.param()
        os.set_blocking(ours, False)
        descriptors.extend([ours, theirs])
        return ours, theirs

    def close(fd):
        descriptors.remove(fd)
        os.close(fd)

    make.close = close
    yield make
    for fd in descriptors:
        os.close(fd)


def read_size(fd, size):
    """Read as much, and return it."""
    data = bytearray()
    while len(data) < size:
        piece = os.read(fd, size - len(data))
        assert piece, "the end has come early"
        data += piece
    return bytes(data)


def test_sendfile_never_waits_for_a_peer_that_does_not_read(run, opened, large_file, pair):
    # Four, because the pool has as many threads.
    def start():
        for ours in sizes:
            on_sent(ours, 0)
        fs.stat("/", stats.append)

    def on_sent(ours, size):
        # Until it is full: TCP finds room for more when it has waited for a while.
        sizes[ours] = sent = sizes[ours] + size
        fs.sendfile(
            ours, source, 1000 + sent, len(data) - sent, partial(on_sent, ours),
            event_cb=errors.append,
        )  # fmt: skip

    path, data = large_file
    source = opened(path)
    pairs = [pair() for _ in range(4)]
    sizes, errors, stats = dict.fromkeys((ours for ours, _ in pairs), 0), [], []
    run(start)
    assert [error.errno for error in errors] == [errno.EAGAIN] * 4
    assert len(stats) == 1
    for ours, theirs in pairs:
        size = sizes[ours]
        assert 0 < size < len(data)
        assert read_size(theirs, size) == data[1000 : 1000 + size]


def test_a_short_sendfile_goes_on_where_it_was_when_the_descriptor_is_writable(
    run, opened, large_file, pair
):

    def on_sent(size):
        sizes.append(size)
        if sum(sizes) < len(data):
            poller = pyasync.poll(ours, lambda *events: on_writable(poller), readable=False)

    def on_writable(poller):
        poller.close()
        done = sum(sizes)
        fs.sendfile(ours, source, done, len(data) - done, on_sent, event_cb=on_error)

    def on_error(error):
        assert error.errno == errno.EAGAIN  # poll(2) calls a pipe writable before a page is free
        on_sent(0)

    path, data = large_file
    source = opened(path)
    ours, theirs = pair()
    sizes = []
    reader = Background(read_size, theirs, len(data))
    with run():
        fs.sendfile(ours, source, 0, len(data), on_sent)
    assert reader.result() == data


def test_sendfile_to_a_peer_that_has_left_is_a_broken_pipe(outcome, opened, large_file, pair):
    path, data = large_file
    ours, theirs = pair()
    size = outcome(fs.sendfile, ours, opened(path), 0, len(data))
    assert 0 < size < len(data)
    pair.close(theirs)  # with all of that unread
    with pytest.raises(pyasync.FilesystemError) as caught:
        outcome(fs.sendfile, ours, opened(path), 0, len(data))
    assert caught.value.errno in (errno.EPIPE, errno.ECONNRESET)


def test_a_sendfile_that_has_begun_may_be_closed_and_its_loop_may_end(run, opened, large_file):
    path, data = large_file
    source, out = opened(path), opened(path.with_name("out"), os.O_WRONLY | os.O_CREAT)
    for end in (pyasync.exit_event_loop, nothing):

        def start(end=end):
            request = fs.sendfile(out, source, 0, len(data), unexpected)
            request.close()
            end()

        run(start)
    assert fd_is_open(source)
    assert fd_is_open(out)


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs /proc")
def test_sendfile_copies_a_file_that_is_longer_than_it_says(outcome, opened, tmp_path):
    out = opened(tmp_path / "out", os.O_WRONLY | os.O_CREAT)
    size = outcome(fs.sendfile, out, opened("/proc/self/status"), 0, 1 << 20)
    assert size > 100
    assert (tmp_path / "out").read_bytes().startswith(b"Name:")


def test_sendfile_from_a_pipe_takes_what_is_there_but_loses_nothing(outcome, opened, tmp_path):
    out = opened(tmp_path / "out", os.O_WRONLY | os.O_CREAT)
    reader, writer = os.pipe()
    try:
        os.write(writer, b"12345")
        os.set_blocking(out, False)
        with pytest.raises(pyasync.FilesystemError) as caught:
            outcome(fs.sendfile, out, reader, 0, 5)
        assert caught.value.errno == errno.ESPIPE
        os.set_blocking(out, True)
        assert outcome(fs.sendfile, out, reader, 0, 5) == 5
        assert (tmp_path / "out").read_bytes() == b"12345"
    finally:
        os.close(reader)
        os.close(writer)


def test_sendfile_to_a_file_that_appends_is_refused(outcome, opened, tmp_path):
    (tmp_path / "in").write_bytes(b"12345")
    out = opened(tmp_path / "out", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    with pytest.raises(pyasync.FilesystemError) as caught:
        outcome(fs.sendfile, out, opened(tmp_path / "in"), 0, 5)
    assert caught.value.errno == errno.EBADF


# Directories and names


def test_directories_are_made_and_removed(outcome, tmp_path):
    assert outcome(fs.mkdir, tmp_path / "new", mode=0o750) == ()
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o750 & ~current_umask()
    assert outcome(fs.rmdir, tmp_path / "new") == ()
    assert not (tmp_path / "new").exists()


def test_files_are_renamed_and_removed(outcome, tmp_path):
    (tmp_path / "old").write_bytes(b"old")
    (tmp_path / "new").write_bytes(b"new")
    assert outcome(fs.rename, tmp_path / "old", str(tmp_path / "new")) == ()
    assert (tmp_path / "new").read_bytes() == b"old"
    assert outcome(fs.unlink, os.fsencode(tmp_path / "new")) == ()
    assert os.listdir(tmp_path) == []


def test_scandir_lists_names_and_types(outcome, tmp_path):
    assert outcome(fs.scandir, tmp_path) == []
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("nowhere")
    os.mkfifo(tmp_path / "fifo")
    expected = {
        ("file", "file"),
        ("folder", "directory"),
        ("link", "link"),
        ("fifo", "fifo"),
    }
    entries = outcome(fs.scandir, str(tmp_path))
    assert set(entries) == expected
    assert {entry.name: entry.type for entry in entries} == dict(expected)
    encoded = outcome(fs.scandir, os.fsencode(tmp_path))
    assert {entry.name for entry in encoded} == {name.encode() for name, _ in expected}


def test_scandir_lists_a_large_directory_and_any_name(outcome, tmp_path):
    names = {f"{number}-{'long' * 50}" for number in range(1000)} | {os.fsdecode(b"\xff\n")}
    for name in names:
        (tmp_path / name).touch()
    assert {entry.name for entry in outcome(fs.scandir, tmp_path)} == names


def test_readlink_gives_what_a_link_holds(outcome, tmp_path):
    (tmp_path / "link").symlink_to("some/wh\udcff")
    assert outcome(fs.readlink, tmp_path / "link") == "some/wh\udcff"
    assert outcome(fs.readlink, os.fsencode(tmp_path / "link")) == b"some/wh\xff"


def test_links_are_made(outcome, tmp_path):
    file, hard, soft = (tmp_path / name for name in ("file", "hard", "soft"))
    file.write_bytes(b"")
    assert outcome(fs.link, file, hard) == ()
    assert hard.stat().st_ino == file.stat().st_ino
    assert outcome(fs.symlink, "not/there", os.fsencode(soft)) == ()
    assert os.readlink(soft) == "not/there"
    for function in (fs.link, fs.symlink):
        with pytest.raises(pyasync.FilesystemError, match="File exists") as caught:
            outcome(function, file, hard)
        assert (caught.value.filename, caught.value.filename2) == (str(file), str(hard))


def test_realpath_follows_all_links(outcome, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder")
    path = tmp_path / "link" / ".." / "folder" / "." / ".." / "link"
    expected = os.path.realpath(path)
    assert outcome(fs.realpath, path) == expected
    assert outcome(fs.realpath, os.fsencode(path)) == os.fsencode(expected)


def test_access_tells_what_may_be_done(outcome, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"")
    path.chmod(0o600)
    for mode in (os.F_OK, os.R_OK, os.W_OK, os.R_OK | os.W_OK):
        assert outcome(fs.access, path, mode) == ()
    with pytest.raises(pyasync.FilesystemAccess) as caught:  # root may not either
        outcome(fs.access, path, os.X_OK)
    assert caught.value.filename == str(path)


def test_the_mode_and_the_times_of_a_file_are_set(outcome, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"")
    assert outcome(fs.chmod, path, 0o4751) == ()
    assert stat.S_IMODE(path.stat().st_mode) == 0o4751
    for times in [(1_111_111_111.25, 2_222_222_222.5), (0, -1.5)]:
        assert outcome(fs.utime, path, *times) == ()
        status = path.stat()
        assert (status.st_atime, status.st_mtime) == pytest.approx(times, abs=1e-5)


def test_a_whole_file_that_is_closed_before_it_begins_is_not_made(run, tmp_path, slow_pool):
    with run():
        empty = slow_pool()
        fs.write_file(tmp_path / "new", b"data", unexpected, event_cb=unexpected).close()
        fs.read_file("/dev/null", unexpected, event_cb=unexpected).close()
        empty()
    assert os.listdir(tmp_path) == []


def test_mkdtemp_makes_a_directory_of_ones_own(outcome, tmp_path):
    paths = [outcome(pyasync.mkdtemp, f"{tmp_path}/a-XXXXXX") for _ in range(2)]
    assert paths[0] != paths[1]
    for path in paths:
        assert path.startswith(f"{tmp_path}/a-")
        assert not path.endswith("XXXXXX")
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o700
    assert isinstance(outcome(pyasync.mkdtemp, os.fsencode(tmp_path) + b"/XXXXXX"), bytes)
    assert isinstance(outcome(pyasync.mkdtemp, tmp_path / "XXXXXX"), str)


# Errors


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (fs.stat, ()),
        (fs.lstat, ()),
        (fs.open, (os.O_RDONLY,)),
        (fs.rmdir, ()),
        (fs.unlink, ()),
        (fs.scandir, ()),
        (fs.readlink, ()),
        (fs.realpath, ()),
        (fs.access, (os.F_OK,)),
        (fs.chmod, (0o600,)),
        (fs.utime, (0, 0)),
        (fs.read_file, ()),
        (fs.rename, ("/new",)),
        (fs.link, ("/new",)),
        (fs.copyfile, ("/new",)),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_what_is_not_there_is_filesystem_not_found(outcome, tmp_path, function, arguments):
    path = str(tmp_path / "missing")
    with pytest.raises(pyasync.FilesystemNotFound) as caught:
        outcome(function, path, *arguments)
    error = caught.value
    assert isinstance(error, FileNotFoundError)
    assert (error.errno, error.filename) == (errno.ENOENT, path)
    assert error.errcode == -errno.ENOENT
    assert error.filename2 == (arguments[0] if "/new" in arguments else None)


@pytest.mark.parametrize("function", [fs.mkdir, pyasync.mkdtemp])
def test_nothing_is_made_in_a_directory_that_is_not_there(outcome, tmp_path, function):
    path = str(tmp_path / "missing" / "XXXXXX")
    with pytest.raises(pyasync.FilesystemNotFound) as caught:
        outcome(function, path)
    assert caught.value.filename == path


def test_other_errors_are_filesystem_errors_of_their_number(outcome, tmp_path):
    with pytest.raises(pyasync.FilesystemError) as caught:
        outcome(fs.mkdir, tmp_path)
    assert isinstance(caught.value, FileExistsError)
    assert caught.value.errno == errno.EEXIST
    assert caught.value.filename == str(tmp_path)


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (fs.fstat, ()),
        (fs.read, (1,)),
        (fs.write, (b"x",)),
        (fs.sendfile, (0, 0, 1)),
        (fs.fsync, ()),
        (fs.ftruncate, (1,)),
        (fs.close, ()),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_descriptor_that_is_not_open_is_an_error(outcome, function, arguments):
    with pytest.raises(pyasync.FilesystemError) as caught:
        outcome(function, 99_999, *arguments)
    assert (caught.value.errno, caught.value.filename) == (errno.EBADF, None)


@pytest.mark.skipif(os.geteuid() != 0, reason="root becomes somebody else")
@pytest.mark.parametrize(
    ("mode", "flags", "kind"),
    [
        (0o600, os.O_RDONLY, "FilesystemAccess"),
        (0o644, os.O_RDONLY | os.O_NOATIME, "FilesystemPermission"),  # only for the owner: open(2)
    ],
)
def test_a_refusal_is_an_error_of_its_kind(mode, flags, kind):
    script = """
import os, sys, pyasync
os.seteuid(65534)
with pyasync.event_loop():
    pyasync.fs.open(sys.argv[1], int(sys.argv[2]), print, event_cb=lambda error: print(
        type(error).__name__, error.filename, isinstance(error, PermissionError)))
"""
    with tempfile.TemporaryDirectory() as folder:  # tmp_path is below one that is root's alone
        os.chmod(folder, 0o755)
        secret = pathlib.Path(folder, "secret")
        secret.touch()
        secret.chmod(mode)
        assert output_of(script, secret, flags) == f"{kind} {secret} True\n"


# Closing requests, and the end of the loop


@pytest.fixture
def slow_pool(tmp_path):
    """Give `slow_pool()`, which keeps every thread of the pool in a read, and ends it."""
    reader, writer = os.pipe()

    def fill():
        for _ in range(int(os.environ.get("UV_THREADPOOL_SIZE", 4))):
            fs.read(reader, 1, nothing)
        return lambda: os.write(writer, bytes(4))

    yield fill
    os.close(reader)
    os.close(writer)


def test_a_request_that_is_closed_before_it_begins_does_nothing(run, tmp_path, slow_pool):
    with run():
        empty = slow_pool()
        request = fs.mkdir(tmp_path / "new", unexpected, event_cb=unexpected)
        for _ in range(2):
            request.close()
            assert request.closed
        empty()
    assert os.listdir(tmp_path) == []


def test_a_descriptor_whose_close_is_closed_is_closed(run, slow_pool):
    fd = os.open("/", os.O_RDONLY)
    with run():
        empty = slow_pool()
        request = fs.close(fd, unexpected)
        request.close()
        assert request.closed
        pyasync.delay(empty, time=0.01)
    assert not fd_is_open(fd)


def test_a_descriptor_whose_close_the_end_of_the_loop_cancels_is_closed(run, slow_pool):
    fd = os.open("/", os.O_RDONLY)
    with run():
        # The end of the loop waits for the threads, when it has cancelled what waits for them.
        thread = threading.Timer(0.2, slow_pool())
        thread.start()
        fs.close(fd, unexpected)
        pyasync.exit_event_loop()
    thread.join()
    assert not fd_is_open(fd)


def wait_for(condition):
    """Wait in the loop's thread, so that the loop does not go on, until a thread has done it."""
    for _ in range(10_000_000):
        if condition():
            return
    pytest.fail("it never came")


def test_what_a_closed_request_has_opened_is_closed(run, tmp_path):
    # The fixture of all tests fails this one if the descriptor is left.

    with run():
        request = fs.open(tmp_path / "new", os.O_WRONLY | os.O_CREAT, unexpected)
        wait_for((tmp_path / "new").exists)
        request.close()


def test_what_a_request_has_opened_when_the_loop_ends_is_closed(run, tmp_path):
    with run():
        fs.open(tmp_path / "new", os.O_WRONLY | os.O_CREAT, unexpected)
        wait_for((tmp_path / "new").exists)
        pyasync.exit_event_loop()


@pytest.mark.parametrize("end", ["close", "exit"])
def test_a_directory_of_mkdtemp_that_nobody_gets_is_removed(run, tmp_path, end):
    made = []

    with run():
        request = pyasync.mkdtemp(tmp_path / "XXXXXX", unexpected)
        wait_for(lambda: made.extend(os.listdir(tmp_path)) or made)
        request.close() if end == "close" else pyasync.exit_event_loop()
    assert made
    assert os.listdir(tmp_path) == []


def test_the_loop_ends_in_a_callback(run, tmp_path):
    called = []

    def on_stat(status):
        called.append(status)
        pyasync.exit_event_loop()

    with run():
        for _ in range(100):
            fs.stat(tmp_path, on_stat)
            fs.open(tmp_path, os.O_RDONLY, os.close)
    assert len(called) == 1


def test_a_request_that_a_thread_cannot_end_is_left_behind_with_a_warning(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    script = """
import os, sys, warnings, pyasync
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    with pyasync.event_loop():
        pyasync.fs.open(sys.argv[1], os.O_RDONLY, print)  # waits for one who writes
        pyasync.delay(pyasync.exit_event_loop, time=0.5)
print([warning.category.__name__ for warning in caught])
sys.stdout.flush()
os._exit(0)  # an orderly exit would wait for libuv's threads
"""
    assert output_of(script, tmp_path / "fifo") == "['ResourceWarning']\n"


# Many


def test_a_thousand_at_once(run, tmp_path):
    def on_opened(path, fd):
        fs.write(fd, path.name, lambda size: fs.close(fd, lambda: on_closed(path)))

    def on_closed(path):
        fs.stat(path, lambda status: sizes.append(status.st_size))

    sizes = []
    with run():
        for number in range(1000):
            path = tmp_path / f"{number:04}"
            fs.open(path, os.O_WRONLY | os.O_CREAT, partial(on_opened, path))
    assert sizes == [4] * 1000


@pytest.mark.skipif("asan" in os.environ.get("LD_PRELOAD", ""), reason="keeps what is freed")
def test_memory_does_not_grow_with_the_number_of_requests(run, tmp_path):
    (tmp_path / "file").write_bytes(bytes(100_000))

    def rounds(count):
        with run():
            fd = os.open(tmp_path / "file", os.O_RDWR)

            def again(left):
                if left == 0:
                    os.close(fd)
                    return
                fs.write(fd, bytes(100_000), lambda size: None, offset=0)
                fs.scandir(tmp_path, nothing)
                fs.read(fd, 100_000, lambda data: again(left - 1), offset=0)

            again(count)
        return resident()

    before = rounds(100)
    assert rounds(500) - before < 20 << 20  # of 100 MB that were read and written


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")


# Names


def test_the_names_of_the_module_are_the_documented_ones():
    functions = {name for name in fs.__all__ if inspect.isfunction(getattr(fs, name))}
    assert functions == {
        *("access", "chmod", "close", "copyfile", "fstat", "fsync", "ftruncate", "link", "lstat"),
        *("mkdir", "mkdtemp", "open", "read", "read_file", "readlink", "realpath", "rename"),
        *("rmdir", "scandir", "sendfile", "stat", "symlink", "unlink", "utime", "write"),
        "write_file",
    }
    for name in functions:
        parameters = list(inspect.signature(getattr(fs, name)).parameters.values())
        by_position = [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY]
        assert by_position[-1] == "callback"
        assert "event_cb" in [p.name for p in parameters]
        assert inspect.getdoc(getattr(fs, name))
