"""Child processes: how they are run, talked to, ended, and never left as zombies."""

import contextlib
import errno
import os
import pathlib
import pwd
import signal
import socket
import subprocess
import sys
import threading
import time
from functools import partial
from inspect import isfunction

import pytest
from interrupts import Interrupt, each_line, raise_interrupt
from peers import (
    PATIENCE,
    Background,
    fork_and_check,
    no_descriptor_left,
    nothing,
    preloaded,
    when,
)

import pyasync
from pyasync import processes
from pyasync._core import children

MIB = 1 << 20
#: More than a pipe holds (pipe(7)): 64 KiB on Linux.
MORE_THAN_FITS = MIB

ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
LINUX = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")


@pytest.fixture(autouse=True)
def _no_child_is_left(monkeypatch):
    """Fail a test after which there is a child, running or not reaped."""
    monkeypatch.delenv("LD_PRELOAD", raising=False)  # a sanitizer's: not for the children
    yield
    with pytest.raises(ChildProcessError):
        pytest.fail(f"a child is left: {os.waitpid(-1, os.WNOHANG)}")


def sh(script, **options):
    return pyasync.spawn("/bin/sh", ["-c", script], **options)


def result(run, path, args, **options):
    """Run a program to its end; return status, signal, what it has written, and errors told."""
    output, told = [], []

    def exit_cb(process, status, signo):
        assert process is processes[0]
        assert (process.exit_status, process.term_signal) == (status, signo)
        output[:0] = [(status, signo)]

    processes = []
    with run():
        options.setdefault(
            "output", pyasync.StdioPipe(read_cb=lambda pipe, data: output.append(data))
        )
        processes.append(
            pyasync.spawn(path, args, exit_cb=exit_cb, event_cb=told.append, **options)
        )
    errors = [event for event in told if not isinstance(event, pyasync.SocketEOF)]
    return *output[0], b"".join(output[1:]), errors


def written_by(run, script, **options):
    """Return what a script writes to its output."""
    status, signo, output, errors = result(run, "/bin/sh", ["-c", script], **options)
    assert (status, signo, errors) == (0, 0, [])
    return output


def exists(pid):
    """Whether there is such a process, be it a zombie."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def wait_for_exit(pid):
    """Wait until our child is a zombie, and leave it one."""
    while b") Z " not in pathlib.Path(f"/proc/{pid}/stat").read_bytes():
        time.sleep(0.001)


# Exit


def test_a_program_runs_and_its_exit_is_reported(run, tmp_path):
    path = tmp_path / "made"
    assert result(run, "touch", [path]) == (0, 0, b"", [])
    assert path.exists()


@pytest.mark.parametrize("status", [0, 1, 255])
def test_the_exit_status_is_reported(run, status):
    assert result(run, "sh", ["-c", f"exit {status}"])[:2] == (status, 0)


@pytest.mark.parametrize("signo", [signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV, signal.SIGPIPE])
def test_the_signal_that_ended_a_child_is_reported(run, signo):
    assert result(run, "sh", ["-c", f"kill -{int(signo)} $$"])[:2] == (0, signo)


def test_a_process_without_callbacks_keeps_the_loop_running_until_it_exits(run):
    processes = []
    run(lambda: processes.append(sh("exit 7")))
    assert (processes[0].exit_status, processes[0].term_signal) == (7, 0)
    assert processes[0].closed


def test_before_the_exit_there_is_no_status(run):
    with run():
        process = sh("")
        assert (process.exit_status, process.term_signal) == (None, None)
        assert not process.closed
        assert process.has_ref
        assert (process.input, process.output, process.error_output) == (None, None, None)


@pytest.mark.timeout(200)  # a fork takes PyPy some hundredths of a second beside others
@pytest.mark.parametrize("buffer_writes", [True, False])
def test_200_children_at_once(run, buffer_writes):
    output, statuses = {}, []

    with run(buffer_writes=buffer_writes, limit=150):
        for number in range(200):
            read_cb = lambda pipe, data, number=number: output.setdefault(number, data)  # noqa: E731
            process = sh(
                f"read line; echo $line; exit {number}",
                input=pyasync.PIPE,
                output=pyasync.StdioPipe(read_cb=read_cb),
                exit_cb=lambda process, status, signo: statuses.append(status),
            )
            process.input.write(f"{number}\n")
    assert output == {number: b"%d\n" % number for number in range(200)}
    assert sorted(statuses) == list(range(200))


@LINUX
def test_a_child_may_be_referenced_that_has_exited_unheard(run):
    """Two children are reaped together: the second has not reported its exit yet."""

    def exit_cb(process, status, signo):
        (other,) = {*processes} - {process}
        if not other.closed:
            seen.append(other.has_ref)
            other.ref()
            other.unref()
            seen.append(other.has_ref)

    processes, seen = [], []
    with run():
        processes.extend(sh("", exit_cb=exit_cb) for _ in range(2))
        for process in processes:
            wait_for_exit(process.pid)
    assert seen == [False, False]


def test_the_end_of_an_output_may_come_after_the_exit(run):
    """As when another process has it still."""
    order = []

    def event_cb(event):
        order.append(type(event))
        assert event.socket is process.output

    with run():
        process = sh(
            "exec 3<&0; cat <&3 & exit 0",
            input=pyasync.PIPE,
            output=pyasync.StdioPipe(
                read_cb=lambda pipe, data: order.append(data), event_cb=event_cb
            ),
            exit_cb=lambda *args: (order.append("exit"), process.input.write("to the other")),
        )
    assert order == ["exit", b"to the other", pyasync.SocketEOF]


def test_a_child_may_close_its_output_and_live_on(run):
    order = []

    def event_cb(event):
        order.append(type(event))
        assert process.exit_status is None
        process.input.close()

    with run():
        process = sh(
            "exec >&-; read line",
            input=pyasync.PIPE,
            output=pyasync.StdioPipe(event_cb=event_cb),
            exit_cb=lambda *args: order.append("exit"),
        )
    assert order == [pyasync.SocketEOF, "exit"]


# What it runs


def test_arguments_reach_the_program_as_they_are(run):
    args = ["a b", "", "$HOME", b"\xff", pathlib.Path("p/q"), "ï"]
    output = written_by_args(run, args)
    assert output == b"|".join(os.fsencode(arg) for arg in args) + b"|"


def written_by_args(run, args):
    return result(run, "printf", ["%s|", *args])[2]


@pytest.mark.parametrize("kind", [str, os.fsencode, pathlib.Path])
def test_a_path_may_be_of_any_kind(run, kind):
    assert result(run, kind("/bin/sh"), ["-c", "echo $0"])[2] == b"/bin/sh\n"


@pytest.fixture
def program(tmp_path):
    """Give a folder with a program of a name that is nowhere else."""
    path = tmp_path / "bin" / "pyasync-test-program"
    path.parent.mkdir()
    path.write_text("#!/bin/sh\necho found $1\n")
    path.chmod(0o755)
    return path


def test_a_program_is_looked_up_in_our_path(run, program, monkeypatch):
    with pytest.raises(FileNotFoundError):
        result(run, program.name, [])
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    assert result(run, program.name, ["it"])[2] == b"found it\n"


def test_a_program_is_looked_up_in_the_path_of_env(run, program, monkeypatch):
    assert result(run, program.name, ["it"], env={"PATH": str(program.parent)})[2] == b"found it\n"
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    with pytest.raises(FileNotFoundError):
        result(run, program.name, [], env={"PATH": "/nowhere"})


def test_a_program_is_looked_up_in_the_usual_folders_when_env_has_no_path(run):
    assert result(run, "sh", ["-c", "echo found"], env={})[2] == b"found\n"


def test_a_script_without_interpreter_is_run_by_sh(run, program):
    program.write_text('echo "$0" "$@"\n')
    told = b"%s one two\n" % os.fsencode(program)
    assert result(run, program, ["one", "two"])[2] == told
    env = {"PATH": f"/no/such:{program.parent}"}
    assert result(run, program.name, ["one", "two"], env=env)[2] == told


def test_the_environment_is_ours_by_default(run, monkeypatch):
    monkeypatch.setenv("PYASYNC_TEST", "inherited")
    assert written_by(run, "printf %s $PYASYNC_TEST") == b"inherited"


def test_env_is_the_whole_environment(run, monkeypatch):
    monkeypatch.setenv("PYASYNC_TEST", "inherited")
    env = {"ENV": "$HOME/.shinit", b"BYTES": b"\xff", "EMPTY": "", "EQUALS": "a=b"}
    output = result(run, "/usr/bin/env", [], env=env)[2]
    assert set(output.splitlines()) == {
        b"ENV=$HOME/.shinit",
        b"BYTES=\xff",
        b"EMPTY=",
        b"EQUALS=a=b",
    }
    assert result(run, "/usr/bin/env", [], env={})[2] == b""


def test_a_program_starts_in_the_working_directory(run, tmp_path):
    assert written_by(run, "pwd -P", working_directory=tmp_path) == os.fsencode(
        f"{tmp_path.resolve()}\n"
    )


def test_a_relative_path_begins_in_the_working_directory(run, program):
    path = f"./{program.name}"
    assert result(run, path, ["it"], working_directory=program.parent)[2] == b"found it\n"


@ROOT
def test_a_program_runs_as_another_user_and_group_with_no_others(run):
    nobody = pwd.getpwnam("nobody")
    ids = {"uid": nobody.pw_uid, "gid": nobody.pw_gid}
    expected = b"%d %d %d\n" % (nobody.pw_uid, nobody.pw_gid, nobody.pw_gid)
    assert written_by(run, "echo $(id -u) $(id -g) $(id -G)", **ids) == expected


@ROOT
def test_a_user_who_may_not_become_another_is_told_so(run):
    def check():
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        run(spawn_as_root)

    def spawn_as_root():
        with pytest.raises(pyasync.FilesystemPermission) as caught:
            sh("", uid=0)
        assert caught.value.errno == errno.EPERM
        assert caught.value.filename is None

    fork_and_check(check)


@pytest.mark.parametrize("detached", [False, True])
def test_a_detached_child_leads_a_session(run, detached):
    sessions = []

    with run():
        process = sh("read line", input=pyasync.PIPE, detached=detached)
        sessions.append((os.getsid(process.pid), process.pid))
        process.input.close()
    session, pid = sessions[0]
    assert session == (pid if detached else os.getsid(0))


@LINUX
def test_a_child_ignores_and_blocks_no_signal(run):
    assert signal.getsignal(signal.SIGPIPE) is signal.SIG_IGN  # which is Python's doing
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    try:
        output = result(run, "grep", ["-E", "^Sig(Blk|Ign)", "/proc/self/status"])[2]
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    blocked, ignored = (int(mask, 16) for mask in output.split()[1::2])
    assert blocked == 0
    assert ignored & 0x7FFFFFFF == 0  # 1 to 31: libuv leaves the real-time signals alone


@LINUX
def test_a_child_gets_no_descriptor_but_those_meant_for_it(run):
    output = []

    def connected(client):
        others = [sh("cat", input=pyasync.PIPE, output=pyasync.STREAM) for _ in range(2)]
        expected.update(fd for fd in map(int, os.listdir("/proc/self/fd")) if is_inheritable(fd))
        pyasync.spawn(
            "ls",
            ["/proc/self/fd"],
            input=pyasync.PIPE,
            output=pyasync.StdioPipe(read_cb=lambda pipe, data: output.append(data)),
            error_output=pyasync.PIPE,
            exit_cb=lambda *args: close(others, client),
        )

    def close(others, client):
        for process in others:
            process.input.close()
        client.close()
        server.close()

    def is_inheritable(fd):
        try:
            return os.get_inheritable(fd)
        except OSError:
            return False  # that of listdir

    expected = {0, 1, 2}
    with run():
        server = pyasync.tcp_server("127.0.0.1", 0, nothing)
        pyasync.tcp_connect(*server.address, nothing, connect_cb=connected)
    found = set(map(int, b"".join(output).split()))
    assert len(found - expected) == 1  # that of ls


# A program that cannot be run


@pytest.mark.parametrize(
    ("path", "kind", "builtin", "number"),
    [
        ("pyasync-no-such-program", pyasync.FilesystemNotFound, FileNotFoundError, errno.ENOENT),
        ("/no/such/program", pyasync.FilesystemNotFound, FileNotFoundError, errno.ENOENT),
        ("", pyasync.FilesystemNotFound, FileNotFoundError, errno.ENOENT),
        ("/etc/passwd", pyasync.FilesystemAccess, PermissionError, errno.EACCES),
        ("/etc/passwd/x", pyasync.FilesystemError, NotADirectoryError, errno.ENOTDIR),
    ],
)
def test_a_program_that_cannot_be_run_is_an_error_of_the_call(run, path, kind, builtin, number):
    with run():
        with pytest.raises(builtin) as caught:
            pyasync.spawn(
                path,
                [],
                input=pyasync.PIPE,
                output=pyasync.STREAM,
                exit_cb=partial(pytest.fail, "called"),
            )
        assert isinstance(caught.value, kind)
        assert (caught.value.errno, caught.value.filename) == (number, path)
        assert caught.value.errcode == -number
        assert pyasync.stats().handles["process"] == 0
        assert pyasync.stats().handles["stdio"] == 0


def test_a_working_directory_that_is_not_there_is_the_one_named(run, tmp_path):
    with run():
        with pytest.raises(pyasync.FilesystemNotFound) as caught:
            sh("", working_directory=tmp_path / "none")
        assert caught.value.filename == str(tmp_path / "none")
        with pytest.raises(pyasync.FilesystemNotFound) as caught:
            pyasync.spawn("pyasync-no-such-program", [], working_directory=tmp_path)
        assert caught.value.filename == "pyasync-no-such-program"


def test_out_of_descriptors_is_an_error_of_the_call(run):
    with run():
        with no_descriptor_left(), pytest.raises(pyasync.FilesystemError) as caught:
            sh("", input=pyasync.PIPE)
        assert caught.value.errno == errno.EMFILE


def test_a_descriptor_that_is_not_open_is_refused_by_the_system(run):
    with run():
        with pytest.raises(pyasync.FilesystemError) as caught:
            sh("", output=9999)
        assert caught.value.errno == errno.EBADF


# Standard streams


@LINUX
@pytest.mark.parametrize("kind", [None, pyasync.IGNORE])
def test_an_ignored_stream_is_the_null_device(run, kind):
    links = []

    with run():
        process = sh("exec sleep 60", input=kind, output=kind, error_output=kind)
        links.extend(os.readlink(f"/proc/{process.pid}/fd/{fd}") for fd in range(3))
        process.kill(signal.SIGKILL)
    assert links == ["/dev/null"] * 3


def test_an_inherited_output_is_ours(run, capfd):
    run(lambda: sh("echo out; echo err >&2", output=pyasync.INHERIT, error_output=pyasync.INHERIT))
    assert tuple(capfd.readouterr()) == ("out\n", "err\n")


def test_an_inherited_input_is_ours(run):
    reader, writer = os.pipe()
    os.write(writer, b"ours")
    os.close(writer)
    before = os.dup(0)
    os.dup2(reader, 0)
    os.close(reader)
    try:
        assert written_by(run, "cat", input=pyasync.INHERIT) == b"ours"
    finally:
        os.dup2(before, 0)
        os.close(before)


def test_a_descriptor_or_a_file_may_be_a_stream(run, tmp_path):
    (tmp_path / "in").write_bytes(b"from a file")
    with open(tmp_path / "in") as source, open(tmp_path / "out", "wb") as target:
        run(
            lambda: sh(
                "cat; echo err >&2", input=source, output=target, error_output=target.fileno()
            )
        )
    assert (tmp_path / "out").read_bytes() == b"from a fileerr\n"


@pytest.mark.parametrize("blocking", [True, False])
def test_a_descriptor_that_a_child_shares_keeps_its_mode(run, blocking):
    """A socket of a loop's that began to block would halt the loop."""

    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(blocking)
        with run():
            theirs.sendall(
                b"hello\n"
            )  # first, because the child does not wait on a non-blocking one
            sh("read line; echo $line", input=ours, output=ours)
        assert os.get_blocking(ours.fileno()) is blocking
        assert theirs.recv(100) == b"hello\n"


def test_outputs_can_be_exchanged(run, capfd):
    run(lambda: sh("echo out; echo err >&2", output=2, error_output=1))
    assert tuple(capfd.readouterr()) == ("err\n", "out\n")


KINDS = {"pipe": pyasync.StdioPipe, "stream": pyasync.StdioStream}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("position", "script"), [("output", "cat"), ("error_output", "cat >&2")])
def test_what_is_written_to_the_input_comes_from_an_output(run, kind, position, script):
    """As in cl-async's tests."""
    received = bytearray()

    def read_cb(pipe, data):
        if kind == "stream":
            assert data is getattr(process, position)
            assert data.socket is pipe
            data = data.read()
        else:
            assert pipe is getattr(process, position)
        received.extend(data)
        if received == b"hello--42--":
            process.input.close()

    exits = []
    with run():
        options = {position: KINDS[kind](read_cb=read_cb), "input": KINDS[kind](data="hello")}
        process = sh(script, exit_cb=lambda *args: exits.append(args), **options)
        process.input.write(b"--42--")
        assert pyasync.process_input(process) is process.input
        assert pyasync.process_output(process) is process.output
        assert pyasync.process_error_output(process) is process.error_output
        assert (process.output is None) == (position != "output")
        assert (process.error_output is None) == (position != "error_output")
    assert exits == [(process, 0, 0)]
    assert received == b"hello--42--"


@pytest.mark.parametrize("buffer_writes", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_much_data_passes_whole_and_in_order(run, kind, buffer_writes):
    data = os.urandom(4 * MIB)
    received = bytearray()

    def read_cb(pipe, piece):
        received.extend(piece if kind == "pipe" else piece.read())

    with run(buffer_writes=buffer_writes):
        process = sh("cat", input=KINDS[kind](), output=KINDS[kind](read_cb=read_cb))
        for begin in range(0, len(data), 100_000):
            process.input.write(data[begin : begin + 100_000])
        process.input.close()
    assert received == data


def test_a_stream_without_read_cb_keeps_what_it_gets(run):
    processes = []
    run(lambda: processes.append(sh("printf 'one\\ntwo\\n'; yes | head -c 200000",
                                    output=pyasync.STREAM)))  # fmt: skip
    (process,) = processes
    assert process.output.readline() == b"one\n"
    assert process.output.readline() == b"two\n"
    assert len(process.output.read()) == 200000
    assert process.output.read() == b""


def test_a_stream_to_the_input_has_nothing_to_read(run):
    with run():
        process = sh("cat >/dev/null", input=pyasync.STREAM)
        assert process.input.read() == b""
        assert process.input.write(b"x") == 1
        process.input.close()


def test_a_pipe_without_read_cb_does_not_hold_up_the_child(run):
    assert result(run, "head", ["-c", "1000000", "/dev/zero"], output=pyasync.PIPE)[:2] == (0, 0)


@LINUX
def test_a_child_can_open_its_standard_streams_again(run):
    """Which of a socket fails, with ENXIO."""
    output, errors = [], []

    with run():
        process = sh(
            "cat /dev/stdin > /dev/stdout; echo err > /dev/stderr",
            input=pyasync.StdioPipe(data="in"),
            output=pyasync.StdioPipe(read_cb=lambda pipe, data: output.append(data)),
            error_output=pyasync.StdioPipe(read_cb=lambda pipe, data: errors.append(data)),
        )
        process.input.close()
    assert (output, errors) == ([b"in"], [b"err\n"])


def test_writes_call_their_own_write_cb_or_the_pipes(run):
    called = []

    with run():
        process = sh(
            "cat",
            input=pyasync.StdioPipe(data="1", write_cb=lambda pipe: called.append("pipe's")),
        )
        process.input.write("2", write_cb=lambda pipe: called.append("own"))
        process.input.write("3")
        process.input.close()
        assert called == []
    assert called == ["pipe's", "own", "pipe's"]


@pytest.mark.parametrize("end", ["close", "shutdown"])
def test_the_end_of_the_input_comes_after_all_that_was_written(run, end):
    """However long the child takes: it is stopped until the pipe is full and the loop waits."""
    output, called, told = [], [], []

    with run():
        process = sh(
            "wc -c",
            input=pyasync.PIPE,
            output=pyasync.StdioPipe(read_cb=lambda pipe, data: output.append(data)),
            event_cb=told.append,
        )
        assert process.kill(signal.SIGSTOP)
        process.input.write(bytes(MORE_THAN_FITS), write_cb=lambda pipe: called.append("large"))
        process.input.write(b"!", write_cb=lambda pipe: called.append("small"))
        getattr(process.input, end)()
        getattr(process.input, end)()
        assert process.input.closed
        with pytest.raises(pyasync.SocketClosed):
            process.input.write(b"?")
        assert called == []
        pyasync.delay(lambda: process.kill(signal.SIGCONT), time=0.05)
    assert [int(data) for data in output] == [MORE_THAN_FITS + 1]
    assert called == ["large", "small"]
    assert [type(event) for event in told] == [pyasync.SocketEOF]


def test_a_close_by_force_drops_what_was_written(run):
    output = []

    with run():
        process = sh(
            "wc -c",
            input=pyasync.PIPE,
            output=pyasync.StdioPipe(read_cb=lambda pipe, data: output.append(data)),
        )
        assert process.kill(signal.SIGSTOP)
        process.input.write(bytes(MORE_THAN_FITS), write_cb=partial(pytest.fail, "called"))
        process.input.close(force=True)
        process.kill(signal.SIGCONT)
    assert int(output[0]) < MORE_THAN_FITS


def test_pressure_is_told_when_the_child_does_not_read_and_when_it_does(run):
    pressure = []

    def on_pressure(pipe, paused):
        assert pipe is process.input
        pressure.append(paused)
        if paused:
            assert pipe.write_queue_size > 64 << 10
            process.kill(signal.SIGCONT)
        else:
            pipe.close()

    with run():
        process = sh("cat > /dev/null", input=pyasync.StdioPipe(pressure_cb=on_pressure))
        process.kill(signal.SIGSTOP)
        process.input.write(bytes(MORE_THAN_FITS))
    assert pressure == [True, False]


def test_a_child_whose_output_is_not_read_has_to_wait(run):
    size, paused = 0, False

    def read_cb(pipe, data):
        nonlocal size, paused
        assert not paused
        size += len(data)
        if not paused and size < 2 * MORE_THAN_FITS:
            paused = True
            pipe.disable(read=True)
            pyasync.delay(partial(go_on, pipe), time=0.002)

    def go_on(pipe):
        nonlocal paused
        assert pipe is process.output
        assert process.exit_status is None
        paused = False
        pipe.enable(read=True)

    with run():
        process = sh(
            f"head -c {4 * MORE_THAN_FITS} /dev/zero", output=pyasync.StdioPipe(read_cb=read_cb)
        )
    assert size == 4 * MORE_THAN_FITS


@pytest.mark.parametrize("size", [1, MORE_THAN_FITS])
def test_writing_to_a_child_that_is_gone_is_a_broken_pipe(run, size):
    told = []

    def exit_cb(process, status, signo):
        process.input.write(bytes(size), write_cb=partial(pytest.fail, "called"))

    run(lambda: sh("", input=pyasync.StdioPipe(event_cb=told.append), exit_cb=exit_cb))
    assert [type(error) for error in told] == [pyasync.SocketBrokenPipe]


def test_what_waits_for_a_child_that_dies_is_a_broken_pipe(run):
    told = []

    with run():
        process = sh("exec sleep 60", input=pyasync.PIPE, event_cb=told.append)
        process.input.write(bytes(MORE_THAN_FITS), write_cb=partial(pytest.fail, "called"))
        process.input.close()
        pyasync.delay(lambda: process.kill(signal.SIGKILL), time=0.01)
    assert [type(error) for error in told] == [pyasync.SocketBrokenPipe]


def test_writing_to_a_child_that_has_closed_its_input_is_a_broken_pipe(run):
    told = []

    def event_cb(error):
        told.append((type(error), error.socket))
        process.kill(signal.SIGKILL)

    with run():
        process = sh(
            "exec <&-; echo closed; exec sleep 60",
            input=pyasync.PIPE,
            output=pyasync.StdioPipe(
                read_cb=lambda pipe, data: process.input.write("x"), event_cb=nothing
            ),
            event_cb=event_cb,
        )
    assert told == [(pyasync.SocketBrokenPipe, process.input)]


def test_an_output_cannot_be_written_to(run):
    got = []
    with run():
        process = sh(
            "echo one", output=pyasync.StdioPipe(read_cb=lambda pipe, data: got.append(data))
        )
        with pytest.raises(pyasync.SocketBrokenPipe):
            process.output.write(b"x")
        process.output.shutdown()  # there is nothing to be shut
    assert got == [b"one\n"]


def test_an_input_cannot_be_read(run):
    with run():
        process = sh("read line", input=pyasync.StdioPipe(read_cb=partial(pytest.fail, "called")))
        process.input.disable(read=True)
        process.input.enable(read=True)
        process.input.set_timeouts(0.001, None)
        pyasync.delay(process.input.close, time=0.01)


def test_an_output_that_is_closed_with_data_unread_ends_the_writer(run):
    ended = []
    with run():
        process = pyasync.spawn(
            "yes", [], output=pyasync.StdioPipe(read_cb=lambda pipe, data: pipe.close()),
            exit_cb=lambda *args: ended.append(args[1:]),
        )  # fmt: skip
        assert process.output.fileno() > 2
    assert ended == [(0, signal.SIGPIPE)]


def test_events_of_pipes_go_to_their_own_event_cb_or_the_process(run):
    own, shared = [], []
    run(
        lambda: sh(
            "", output=pyasync.StdioPipe(event_cb=own.append), error_output=pyasync.PIPE,
            event_cb=shared.append,
        )
    )  # fmt: skip
    assert [type(event) for event in own] == [pyasync.SocketEOF]
    assert [type(event) for event in shared] == [pyasync.SocketEOF]
    assert own[0].socket is not shared[0].socket


def test_the_input_is_closed_after_the_exit(run):
    processes = []
    with run():
        process = sh("", input=pyasync.PIPE, exit_cb=lambda *args: None)
        processes.append(process)
        wait = pyasync.interval(lambda: process.input.closed and wait.close(), time=0.001)


@LINUX
@pytest.mark.parametrize("kind", [pyasync.PIPE, pyasync.STREAM])
def test_the_input_of_a_process_that_was_closed_stays_open_after_the_exit(run, kind):
    # The child is gone, but what it has started reads on, and nobody was told of the exit.

    def on_gone(process, wait):
        wait.close()
        # The loop has closed all that it will when the process's handle is gone.
        again = pyasync.interval(
            lambda: pyasync.stats().handles["process"] or write(process, again), time=0.001
        )

    def write(process, again):
        again.close()
        assert not process.input.closed
        process.input.write(b"late")
        process.input.close()

    received = []
    with run():
        process = sh(
            "exec 3<&0; cat <&3 & exit",
            input=kind,
            output=pyasync.StdioPipe(read_cb=lambda pipe, data: received.append(data)),
            exit_cb=partial(pytest.fail, "called"),
        )
        process.close()
        wait = pyasync.interval(lambda: exists(process.pid) or on_gone(process, wait), time=0.001)
    assert b"".join(received) == b"late"


@LINUX
def test_an_input_that_stays_open_does_not_keep_the_loop_running_and_can_break(run):
    def start():
        process = sh("", input=pyasync.PIPE, event_cb=told.append)
        process.close()
        inputs.append(process.input)
        wait = pyasync.interval(lambda: exists(process.pid) or end(wait, process.input), time=0.001)

    def end(wait, pipe):
        wait.close()
        assert not pipe.closed
        if writes:
            pipe.write("nobody reads this")

    for writes in (False, True):
        inputs, told = [], []
        run(start)
        assert inputs[0].closed
        assert [type(event) for event in told] == writes * [pyasync.SocketBrokenPipe]


def test_pipes_of_children_are_no_connections(run):
    def start():
        process = sh("cat", input=pyasync.PIPE, output=pyasync.PIPE, error_output=pyasync.STREAM)
        stats = pyasync.stats()
        assert (stats.handles["process"], stats.handles["stdio"]) == (1, 3)
        process.input.write("12345")
        process.input.close()
        pyasync.add_event_loop_exit_callback(lambda: seen.append(pyasync.stats()))

    seen = []
    run(start)
    (stats,) = seen
    assert (stats.handles["process"], stats.handles["stdio"]) == (0, 0)
    assert (stats.bytes_read, stats.bytes_written) == (5, 5)
    assert (stats.accepted, stats.connected, stats.closed) == (0, 0, 0)
    assert (stats.incoming_pipe_connections, stats.outgoing_pipe_connections) == (0, 0)


# Signals to a child


@pytest.mark.parametrize("signo", [signal.SIGINT, signal.SIGKILL, 15])
def test_a_child_is_ended_by_a_signal(run, signo):
    ended = []

    with run():
        process = pyasync.spawn(
            "cat", [], input=pyasync.PIPE, exit_cb=lambda *args: ended.append(args[1:])
        )
        assert pyasync.process_kill(process, signo) is True
    assert ended == [(0, signo)]


def test_signal_zero_tells_whether_a_child_is_there(run):
    def exit_cb(process, status, signo):
        assert process.kill(0) is False

    with run():
        process = sh("read line", input=pyasync.PIPE, exit_cb=exit_cb)
        assert process.kill(0) is True
        process.input.close()


def test_a_signal_after_the_exit_is_no_error(run):
    processes = []

    def exit_cb(process, status, signo):
        assert process.kill(signal.SIGTERM) is False
        pyasync.delay(lambda: told.append(process.kill(signal.SIGTERM)))

    told = []
    run(lambda: processes.append(sh("", exit_cb=exit_cb)))
    assert told == [False]
    assert processes[0].kill(signal.SIGTERM) is False


def new_process_with(pid):
    """Return a subprocess with this pid, which is free; skip the test if that cannot be had."""
    for _ in range(50):
        try:
            pathlib.Path("/proc/sys/kernel/ns_last_pid").write_text(str(pid - 1))
        except OSError:
            break
        stranger = subprocess.Popen(["sleep", "60"])
        if stranger.pid == pid:
            return stranger
        with stranger:
            stranger.kill()
    pytest.skip("pids cannot be chosen here")


@LINUX
def test_a_signal_never_reaches_another_process_that_has_the_pid_now(run):
    """Two children are reaped together: the second has not reported its exit yet."""
    killed = []

    def exit_cb(process, status, signo):
        if killed:
            return
        (other,) = {*processes} - {process}
        assert other.exit_status is None
        with new_process_with(other.pid) as stranger:
            killed.append(other.kill(signal.SIGTERM))
            stranger.kill()
        assert stranger.returncode == -signal.SIGKILL

    processes = []
    with run():
        processes.extend(sh("", exit_cb=exit_cb) for _ in range(2))
        for process in processes:
            wait_for_exit(process.pid)
    assert killed == [False]


# Closing, and zombies


@LINUX
def test_a_process_that_is_closed_is_forgotten_and_reaped(run):
    with run():
        process = sh("read line", input=pyasync.PIPE, exit_cb=partial(pytest.fail, "called"))
        process.close()
        process.close()
        assert process.closed
        for call in (process.kill, process.ref, process.unref, lambda: process.has_ref):
            with pytest.raises(pyasync.HandleClosed):
                call()
        assert exists(process.pid)
        process.input.close()
        # Only this keeps the loop running.
        wait = pyasync.interval(lambda: exists(process.pid) or wait.close(), time=0.001)


def reap_abandoned(run, pid):
    """End a child that a loop has left behind, and let the next loop reap it."""
    assert exists(pid)
    os.kill(pid, signal.SIGKILL)
    wait_for_exit(pid)
    found = []
    run(lambda: found.append(exists(pid)))
    assert found == [False]


@LINUX
@pytest.mark.parametrize("close", [False, True])
def test_a_child_that_outlives_its_loop_is_reaped_by_the_next(run, close):
    with run():
        process = sh("exec sleep 60", exit_cb=partial(pytest.fail, "called"))
        if close:
            process.close()
        else:
            process.unref()
    assert process.closed
    assert process.exit_status is None
    with pytest.raises((pyasync.EventLoopNotRunning, pyasync.HandleClosed)):
        process.kill(signal.SIGTERM)
    reap_abandoned(run, process.pid)


@LINUX
def test_a_child_that_outlives_its_loop_is_reaped_by_the_next_spawn(run):
    with run():
        process = sh("exec sleep 60")
        process.unref()
        pid = process.pid
    with run():
        os.kill(pid, signal.SIGKILL)
        wait_for_exit(pid)
        sh("")
        assert not exists(pid)


@LINUX
@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_a_child_that_has_exited_unheard_is_reaped_at_the_end_of_the_loop(run, error):
    pids = []

    def start():
        pids.append(sh("", exit_cb=partial(pytest.fail, "called")).pid)
        wait_for_exit(pids[0])
        raise error

    with pytest.raises(error):
        run(start)
    assert not exists(pids[0])


def test_other_children_of_the_program_are_left_alone(run):
    def exit_cb(process, status, signo):
        statuses.append(status)
        assert subprocess.call(["sh", "-c", "exit 3"]) == 3

    statuses = []
    with run():
        others = [subprocess.Popen(["sh", "-c", f"exit {number}"]) for number in range(5)]
        ours = [sh(f"exit {number}", exit_cb=exit_cb) for number in range(5)]
        others.extend(subprocess.Popen(["sh", "-c", f"exit {number}"]) for number in range(5, 9))
        assert [other.wait() for other in others] == list(range(9))
        del ours
    assert sorted(statuses) == list(range(5))


@pytest.mark.parametrize("where", ["exit_cb", "read_cb", "event_cb", "write_cb", "timer", "start"])
@pytest.mark.parametrize("force", [False, True])
def test_everything_can_be_closed_in_every_callback(run, where, force):
    """And what is closed calls no more."""
    called = []

    def close(name, *args):
        if isinstance(args[-1], pyasync.EventError):
            pytest.fail(f"told {args[-1]}")
        called.append(name)
        if name == where:
            process.close()
            for pipe in (process.input, process.output, process.error_output):
                pipe.close(force=force)
                pipe.close(force=force)
            process.close()
            assert process.closed
            assert process.output.closed

    with run():
        process = sh(
            "read line; echo $line; echo error >&2",
            input=pyasync.StdioPipe(data="line\n", write_cb=partial(close, "write_cb")),
            output=pyasync.StdioPipe(
                read_cb=partial(close, "read_cb"), event_cb=partial(close, "event_cb")
            ),
            error_output=pyasync.PIPE,
            exit_cb=partial(close, "exit_cb"),
        )
        if where == "timer":
            pyasync.delay(partial(close, "timer", None))
        if where == "start":
            close("start", None)
        # A process that is closed does not keep the loop running.
        wait = pyasync.interval(lambda: exists(process.pid) or wait.close(), time=0.001)
    assert where in called
    assert set(called[called.index(where) + 1 :]) <= {"exit_cb", "event_cb", "write_cb", "read_cb"}
    if where in ("timer", "start"):
        assert "exit_cb" not in called


# All or nothing


def children_of_ours():
    """Return the pids of our children that have not ended."""
    path = pathlib.Path(f"/proc/self/task/{os.getpid()}/children")
    pids = [int(pid) for pid in path.read_text().split()]
    return [pid for pid in pids if b") Z " not in pathlib.Path(f"/proc/{pid}/stat").read_bytes()]


def open_files():
    """Return what our descriptors are, each of which has a name of its own, but for pidfds."""
    with os.scandir("/proc/self/fd") as entries:
        links = [pathlib.Path(entry.path) for entry in entries]
    return [os.readlink(link) for link in links if link.exists()]


@LINUX
@pytest.mark.timeout(300)
@pytest.mark.parametrize("path", ["cat", "/no/such/program"])
def test_a_spawn_that_an_interrupt_ends_leaves_nothing(run, path):
    """At each of its lines: no child, no pipe, no descriptor, and no callback is called."""
    interrupted, called = [], []

    def start():
        called.clear()
        before = open_files()
        try:
            process = pyasync.spawn(
                path,
                [],
                input=pyasync.StdioPipe(data=b"data", write_cb=called.append),
                output=pyasync.STREAM,
                error_output=pyasync.PIPE,
                exit_cb=lambda *args: called.append(args),
                event_cb=called.append,
            )
        except (Interrupt, FileNotFoundError) as error:
            interrupted.append(type(error))
        else:  # the interrupt did not come
            process.kill(signal.SIGKILL)
            return
        left = [what for what in open_files() if what not in before]
        assert left in ([], ["anon_inode:[pidfd]"])  # until the child is reaped
        assert pyasync.stats().handles["stdio"] == 0
        when(lambda: not children_of_ours(), spawn_in_the_same_slots)

    def spawn_in_the_same_slots():
        with contextlib.suppress(Interrupt):
            sh("echo", output=pyasync.PIPE, input=pyasync.PIPE, exit_cb=nothing_was_called)

    def nothing_was_called(*args):
        assert called == []

    functions = [
        pyasync.spawn,
        processes._open,
        processes._descriptors,
        processes._pipe_options,
        children.ChildProcess.__init__,
        *vars(children.NewChild).values(),
    ]
    functions = [function for function in functions if isfunction(function)]
    lines = each_line(lambda: run(start), raise_interrupt, *functions)
    assert lines > 30
    assert interrupted.count(Interrupt) > 30


# Exits that no signal tells of


def test_an_exit_is_heard_of_while_sigchld_is_blocked(run):
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
    try:
        assert result(run, "sh", ["-c", "exit 3"])[:2] == (3, 0)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@LINUX
def test_an_exit_is_heard_of_in_a_flood_of_signals(run):
    """Of more than fit into a pipe, through which libuv passes signals on."""

    exits = []
    with run():
        handler = pyasync.signal_handler(signal.SIGUSR1, nothing)
        for _ in range(5000):
            signal.raise_signal(signal.SIGUSR1)
        process = sh("exit 3", exit_cb=lambda *args: (exits.append(args[1:]), handler.close()))
        wait_for_exit(process.pid)
    assert exits == [(3, 0)]


def test_an_exit_whose_status_somebody_else_has_taken_is_reported(run):

    exits = []
    with run():
        process = sh("exit 3", exit_cb=lambda *args: exits.append(args[1:]))
        assert os.waitpid(process.pid, 0)[1] >> 8 == 3
        assert process.kill(0) is False or not exists(process.pid)
    assert exits == [(255, 0)]


# A system call that fails, as it does before Linux 5.3, in a sandbox, or without descriptors.
PIDFD_OPEN = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <sys/syscall.h>

long syscall(long number, long a, long b, long c, long d, long e, long f) {
  long (*real)(long, ...);

  *(void **) &real = dlsym(RTLD_NEXT, "syscall");
  if (number != SYS_pidfd_open)
    return real(number, a, b, c, d, e, f);
  errno = %s;
  return -1;
}
"""


@pytest.mark.parametrize("error", ["ENOSYS", "EPERM", "EMFILE"])
def test_exits_are_heard_of_without_pidfds(tmp_path, monkeypatch, error):
    monkeypatch.undo()  # a sanitizer's LD_PRELOAD, which this program needs
    script = """if True:
        import os, signal, pyasync
        os.environ.pop("LD_PRELOAD")
        exits = []
        def exited(process, *status):
            exits.append(status)
        def start():
            pyasync.spawn("sh", ["-c", "exit 3"], exit_cb=exited)
            pyasync.spawn("cat", [], input=pyasync.PIPE, exit_cb=exited).kill(signal.SIGTERM)
            pyasync.spawn("sleep", ["60"]).unref()
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
        pyasync.start_event_loop(start)
        assert sorted(exits) == [(0, signal.SIGTERM), (3, 0)], exits
    """
    env = preloaded(tmp_path, PIDFD_OPEN % error)
    subprocess.run([sys.executable, "-c", script], env=env, check=True, timeout=3 * PATIENCE)


# SIGCHLD


@pytest.fixture
def python_handler():
    """Install a handler of Python's for SIGCHLD; give the list of what it has handled."""
    handled = []
    before = signal.signal(signal.SIGCHLD, lambda signo, frame: handled.append(signo))
    yield handled
    signal.signal(signal.SIGCHLD, before)


def assert_handled(handled):
    handled.clear()
    signal.raise_signal(signal.SIGCHLD)
    assert handled == [signal.SIGCHLD]


def test_pythons_own_handler_acts_while_there_are_children(run, python_handler):
    """Also one that is set meanwhile."""

    def exited(*args):
        signal.signal(signal.SIGCHLD, lambda signo, frame: later.append(signo))
        sh("", exit_cb=lambda *args: exits.append(args))

    later, exits = [], []
    with run():
        sh("read line", exit_cb=exited, input=pyasync.PIPE).input.close()
        assert_handled(python_handler)
    assert len(exits) == 1
    assert later == [signal.SIGCHLD]
    assert python_handler[1:] == [signal.SIGCHLD]


def test_pythons_own_handler_acts_again_after_the_last_child(run, python_handler):
    def both_exited(*args):
        remaining.pop()
        if not remaining:
            pyasync.delay(partial(assert_handled, python_handler))

    remaining = [1, 2]
    run(lambda: [sh("", exit_cb=both_exited), sh("", exit_cb=both_exited)])
    assert_handled(python_handler)


def test_pythons_own_handler_acts_again_after_two_children_reaped_together(run, python_handler):
    with run():
        for process in [sh(""), sh("")]:
            wait_for_exit(process.pid)
    assert_handled(python_handler)


def test_pythons_own_handler_acts_again_after_a_loop_that_a_child_outlives(run, python_handler):
    with run():
        process = sh("exec sleep 60")
        process.unref()
        pid = process.pid
    assert_handled(python_handler)
    reap_abandoned(run, pid)
    assert_handled(python_handler)


def test_pythons_own_handler_acts_again_after_a_failure(run, python_handler):
    with run():
        with pytest.raises(FileNotFoundError):
            pyasync.spawn("/no/such/program", [])
        assert_handled(python_handler)


def test_children_are_heard_of_although_sigchld_was_ignored(run):
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        assert result(run, "sh", ["-c", "exit 3"])[:2] == (3, 0)
        assert signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGCHLD, before)


@pytest.mark.parametrize("first", ["handler", "child"])
def test_a_handler_for_sigchld_works_beside(run, python_handler, first):
    handled = []

    def exited(process, status, signo):
        when(lambda: handled, again)

    def again():
        handlers.pop().close()
        handled.clear()
        sh("", exit_cb=lambda *args: exits.append(args))

    handlers, exits = [], []
    with run():
        if first == "handler":
            handlers.append(pyasync.signal_handler(signal.SIGCHLD, handled.append))
        process = sh("read line", exit_cb=exited, input=pyasync.PIPE)
        if first == "child":
            handlers.append(pyasync.signal_handler(signal.SIGCHLD, handled.append))
        process.input.close()
    assert len(exits) == 1
    assert handled == []
    assert_handled(python_handler)


def test_loops_in_threads_have_children_each(run, python_handler):
    ended = []
    both = threading.Barrier(2, timeout=10)

    def one(number):
        with run():
            for _ in range(5):
                sh(f"exit {number}", exit_cb=lambda process, status, signo: ended.append(status))
            both.wait()

    threads = [Background(one, number) for number in (1, 2)]
    for thread in threads:
        thread.result()
    assert sorted(ended) == [1] * 5 + [2] * 5
    assert_handled(python_handler)


# os.fork


forking = pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")


@forking
def test_a_forked_child_leaves_the_processes_to_the_parent(run, python_handler):
    def check(process):
        assert_handled(python_handler)
        with pytest.raises(pyasync.EventLoopNotRunning, match="left to the parent by a fork"):
            process.kill(signal.SIGKILL)
        process.close()
        assert result(run, "sh", ["-c", "exit 3"])[:2] == (3, 0)
        assert_handled(python_handler)

    def exit_cb(process, status, signo):
        statuses.append(status)

    statuses = []
    with run():
        process = sh("read line; exit 4", input=pyasync.PIPE, exit_cb=exit_cb)
        fork_and_check(partial(check, process))
        process.input.close()
    assert statuses == [4]
    assert_handled(python_handler)


@forking
def test_a_forked_child_does_not_wait_for_the_abandoned(run):
    with run():
        process = sh("exec sleep 60")
        process.unref()
        pid = process.pid
    fork_and_check(partial(result, run, "sh", []))
    reap_abandoned(run, pid)
