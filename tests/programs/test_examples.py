"""The examples, each run as a program and used as a person would use it."""

import contextlib
import hashlib
import os
import pty
import re
import select
import signal
import socket
import struct
import subprocess
import termios
import time
from pathlib import Path

import pytest
from example_programs import command, run, serving
from peers import PATIENCE, Background, end_of, read_all, read_exactly, reset

SERVERS = ["echo_server.py", "hardened_server.py", "proxy.py", "chat.py", "stats_page.py"]

#: What a client sends to a server to get an answer, if no line will do.
GREETINGS = {"stats_page.py": b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n"}

SANITIZED = "asan" in os.environ.get("LD_PRELOAD", "")
MIB = 1 << 20

#: How much the proxy's memory may grow while it passes on much more.
GROWTH_LIMIT = 16 * MIB


@pytest.fixture
def echo():
    with serving("echo_server.py") as server:
        yield server


@pytest.fixture
def target():
    """Give a plain socket that listens, for the proxy to connect to."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE)
        yield listener


@pytest.fixture
def proxy(target, monkeypatch):
    # Before PyPy collects anything, garbage fills half of the largest cache, unless it is told.
    monkeypatch.setenv("PYPY_GC_NURSERY", "1M")
    with serving("proxy.py", *target.getsockname()) as server:
        yield server


@pytest.fixture
def joined(proxy, target):
    """Give a client of the proxy, and the socket that the target has accepted for it."""
    with proxy.connect() as client, target.accept()[0] as accepted:
        accepted.settimeout(PATIENCE)
        yield client, accepted


# All of them


@pytest.mark.parametrize(
    "program",
    [
        *(*SERVERS, "tcp_client.py", "udp_echo.py", "background_work.py", "run_all.py"),
        *("watch.py", "copy_file.py"),
    ],
)
def test_each_explains_itself(program):
    finished = run(program, "--help")
    assert finished.returncode == 0
    assert f"python examples/{program}" in finished.stdout
    assert "SIGINT" in finished.stdout


@pytest.mark.parametrize("signo", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("program", SERVERS)
def test_a_signal_ends_a_server_with_connections(program, signo, target):
    arguments = target.getsockname() if program == "proxy.py" else []
    with contextlib.ExitStack() as stack, serving(program, *arguments, signo=signo) as server:
        client = stack.enter_context(server.connect())  # and it stays
        client.sendall(GREETINGS.get(program, b"hello\n"))
        if program == "proxy.py":
            stack.enter_context(target.accept()[0])
        else:
            assert client.recv(1)


@pytest.mark.parametrize("program", SERVERS)
def test_an_address_in_use_is_an_error_in_one_line(program, target):
    host, port = target.getsockname()
    arguments = [host, port] if program == "proxy.py" else []
    finished = run(program, *arguments, f"--host={host}", f"--port={port}")
    assert finished.returncode == 1
    assert re.fullmatch(r"cannot listen: .*in use.*\n", finished.stderr)


# echo_server.py


def test_the_echo_server_echoes_to_many(echo):
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(echo.connect()) for _ in range(20)]
        for number, client in enumerate(clients):
            client.sendall(b"%d\n" % number * 1000)
        for number, client in enumerate(clients):
            data = b"%d\n" % number * 1000
            assert read_exactly(client, len(data)) == data


def test_the_echo_server_sends_the_rest_after_the_end_of_the_client(echo):
    data = os.urandom(4 * MIB)
    with echo.connect() as client:
        sender = Background(lambda: (client.sendall(data), client.shutdown(socket.SHUT_WR)))
        assert read_all(client) == data
        sender.result()


def test_the_echo_server_reads_no_more_from_a_client_that_reads_nothing():
    errors = "(error: .*reset.*\n)?"
    with serving("echo_server.py", errors=errors) as echo, echo.connect() as client:
        client.settimeout(1)
        with pytest.raises(socket.timeout):
            client.sendall(bytes(64 * MIB))


# tcp_client.py


def test_the_client_sends_a_text_and_prints_the_answer(echo):
    finished = run("tcp_client.py", *echo.address, "hello")
    assert (finished.returncode, finished.stdout, finished.stderr) == (0, "hello\n", "")


def test_the_client_sends_its_standard_input_whole(echo):
    data = os.urandom(3 * MIB)
    finished = subprocess.run(
        command("tcp_client.py", *echo.address), input=data, capture_output=True, timeout=PATIENCE
    )
    assert (finished.returncode, finished.stderr) == (0, b"")
    assert finished.stdout == data


def test_the_client_sends_each_line_as_it_comes(echo):
    with subprocess.Popen(
        command("tcp_client.py", *echo.address), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as client:
        for line in (b"one\n", b"two\n"):
            client.stdin.write(line)
            client.stdin.flush()
            assert client.stdout.readline() == line
        client.stdin.close()
        assert client.wait(PATIENCE) == 0


@pytest.mark.parametrize("size", [3 * MIB, 0])
def test_the_client_sends_a_file_that_is_its_standard_input(size, echo, tmp_path):
    data = os.urandom(size)
    (tmp_path / "file").write_bytes(data)
    with open(tmp_path / "file" if size else "/dev/null", "rb") as file:
        finished = subprocess.run(
            command("tcp_client.py", *echo.address),
            stdin=file,
            capture_output=True,
            timeout=PATIENCE,
        )
    assert (finished.returncode, finished.stderr) == (0, b"")
    assert finished.stdout == data


def test_the_client_talks_to_who_sits_at_a_terminal(echo):
    keyboard, terminal = pty.openpty()
    before = termios.tcgetattr(terminal)
    before[3] &= ~termios.ECHO
    termios.tcsetattr(terminal, termios.TCSANOW, before)
    with subprocess.Popen(
        command("tcp_client.py", *echo.address), stdin=terminal, stdout=terminal
    ) as client:
        for line in (b"one\n", b"two\n"):
            os.write(keyboard, line)
            assert os.read(keyboard, 100) == line.replace(b"\n", b"\r\n")
        os.write(keyboard, b"\x04")  # Ctrl-D
        assert client.wait(PATIENCE) == 0
    assert os.get_blocking(terminal)
    assert termios.tcgetattr(terminal) == before
    os.close(keyboard)
    os.close(terminal)


def test_the_client_reads_no_more_than_the_server_takes(target):
    with subprocess.Popen(
        command("tcp_client.py", *target.getsockname()), stdin=subprocess.PIPE, bufsize=0
    ) as client:
        with target.accept()[0] as accepted:
            os.set_blocking(client.stdin.fileno(), False)
            sent = 0
            # Until the client has taken nothing for a while.
            while select.select([], [client.stdin], [], 0.5)[1]:
                sent += os.write(client.stdin.fileno(), bytes(1 << 16))
                assert sent < 64 * MIB
            client.stdin.close()
            assert len(read_all(accepted)) == sent
        assert client.wait(PATIENCE) == 0


def test_the_client_ends_when_the_server_closes_though_its_input_has_not_ended(target):
    with subprocess.Popen(
        command("tcp_client.py", *target.getsockname()),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as client:
        with target.accept()[0] as accepted:
            accepted.sendall(b"bye\n")
        assert client.stdout.read() == b"bye\n"
        assert client.wait(PATIENCE) == 0


def test_the_client_says_what_went_wrong(target):
    address = target.getsockname()
    target.close()
    finished = run("tcp_client.py", *address, "hello")
    assert finished.returncode == 1
    assert re.fullmatch(r"error: .*refused.*\n", finished.stderr)


def test_the_client_says_what_is_wrong_with_its_arguments():
    finished = run("tcp_client.py", "127.0.0.1", 70000, "hello")
    assert finished.returncode == 1
    assert re.fullmatch(r"cannot connect: port must .*\n", finished.stderr)


@pytest.mark.parametrize("signo", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_client(signo, target):
    with (
        subprocess.Popen(
            command("tcp_client.py", *target.getsockname()),
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as client,
        target.accept()[0],
    ):
        client.send_signal(signo)
        assert client.wait(PATIENCE) == 0
        assert client.stderr.read() == b""


def test_the_client_ends_quietly_when_nobody_reads_its_output(target):
    with (
        subprocess.Popen(
            command("tcp_client.py", *target.getsockname()),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as client,
        target.accept()[0] as accepted,
    ):
        client.stdout.close()
        accepted.sendall(b"hello\n")
        assert client.stderr.read() == b""
        assert client.wait(PATIENCE) == 0


# proxy.py


def test_the_proxy_passes_on_both_ways(joined):
    client, accepted = joined
    client.sendall(b"question")
    assert read_exactly(accepted, 8) == b"question"
    accepted.sendall(b"answer")
    assert read_exactly(client, 6) == b"answer"


@pytest.mark.parametrize("first", [0, 1], ids=["client", "target"])
def test_the_proxy_passes_on_a_half_close_and_what_is_sent_after_it(joined, first):
    one, other = joined[first], joined[1 - first]
    one.sendall(b"question")
    one.shutdown(socket.SHUT_WR)
    assert read_all(other) == b"question"
    other.sendall(b"late answer")
    other.shutdown(socket.SHUT_WR)
    assert read_all(one) == b"late answer"


@pytest.mark.parametrize("first", [0, 1], ids=["client", "target"])
def test_an_error_on_one_side_closes_both(target, first):
    with (
        serving("proxy.py", *target.getsockname(), errors="error: .*reset.*\n") as server,
        server.connect() as client,
        target.accept()[0] as accepted,
    ):
        one, other = [(client, accepted), (accepted, client)][first]
        one.sendall(b"before")
        assert read_exactly(other, 6) == b"before"
        reset(one)
        other.settimeout(PATIENCE)
        assert end_of(other)[0] == 0


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_what_a_client_sends_while_the_target_connects_is_passed_on(target, host):
    data = os.urandom(8 * MIB)  # much more than may wait for the target
    with serving("proxy.py", host, target.getsockname()[1]) as server, server.connect() as client:
        sender = Background(lambda: (client.sendall(data), client.shutdown(socket.SHUT_WR)))
        with target.accept()[0] as accepted:
            accepted.settimeout(PATIENCE)
            assert read_all(accepted) == data
        sender.result()


def test_a_target_that_is_not_there_closes_the_client(target):
    address = target.getsockname()
    target.close()
    errors = "error: .*refused.*\n"
    with serving("proxy.py", *address, errors=errors) as server, server.connect() as client:
        assert end_of(client)[0] == 0


def resident_size(process):
    """Return how many bytes of memory the process holds (VmRSS), and has held at most (VmHWM)."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return [int(re.search(rf"{name}:\s+(\d+) kB", status)[1]) << 10 for name in ("VmRSS", "VmHWM")]


def send_hashed(sock, size):
    """Send so many bytes that never repeat, end the stream, and return their hash."""
    sent, block = hashlib.sha256(), bytearray(os.urandom(MIB))
    for number in range(size // MIB):
        struct.pack_into("Q", block, number % 1000, number)
        sent.update(block)
        sock.sendall(block)
    sock.shutdown(socket.SHUT_WR)
    return sent.digest()


def read_slowly(sock, seconds):
    """Read to the end of the stream, with rests of so much together; give size and hash.

    The rests come between the first 64 MiB: then all buffers on the way are full.
    """
    received, size, rest_at = hashlib.sha256(), 0, 0
    while True:
        data = sock.recv(256 << 10)
        if not data:
            return size, received.digest()
        received.update(data)
        size += len(data)
        if size > rest_at and seconds > 0:
            time.sleep(0.1)
            seconds -= 0.1
            rest_at += MIB


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs /proc")
@pytest.mark.parametrize(
    ("size", "rest"),
    [
        pytest.param(64 * MIB, 1.0, id="64MiB"),
        pytest.param(
            1024 * MIB, 6.0, id="1GiB", marks=[pytest.mark.slow, pytest.mark.timeout(300)]
        ),
    ],
)
def test_the_proxy_takes_no_memory_for_a_slow_reader(proxy, joined, size, rest, record_property):
    client, accepted = joined
    for sock in joined:
        sock.settimeout(60)
    client.sendall(b"!")
    assert accepted.recv(1) == b"!"
    before, _ = resident_size(proxy.process)
    sender = Background(send_hashed, client, size)
    received = read_slowly(accepted, rest)
    assert received == (size, sender.result())
    # The greatest size that it had at any time, where the system tells.
    after, most = resident_size(proxy.process)
    growth = max(after, most) - before
    record_property("growth in KiB", growth >> 10)
    print(f"memory of the proxy: {before >> 10} KiB, {growth >> 10} KiB more at most")
    if not SANITIZED:  # which keep what is freed for a while
        assert growth < GROWTH_LIMIT


# chat.py


@pytest.fixture
def chat():
    with serving("chat.py") as server:
        yield server


class Member:
    """A client of the chat, which reads lines."""

    def __init__(self, chat, name):
        self.sock = chat.connect()
        self._file = self.sock.makefile("rb")
        assert self.line() == "What is your name?"
        self.say(name)

    def say(self, text):
        self.sock.sendall(text.encode() + b"\n")

    def line(self):
        line = self._file.readline()
        assert line.endswith(b"\n"), f"the stream has ended: {line!r}"
        return line.decode()[:-1]

    def end(self):
        return self._file.read()

    def close(self):
        self._file.close()
        self.sock.close()

    def reset(self):
        self._file.close()
        reset(self.sock)


@pytest.fixture
def join(chat):
    members = []

    def join(name, *others):
        """Return a new member, when the others have been told."""
        member = Member(chat, name)
        members.append(member)
        here = [other.name for other in others]
        assert member.line() == f"Here are: {', '.join(here) or 'only you'}"
        for other in others:
            assert other.line() == f"* {name} has joined"
        member.name = name
        return member

    yield join
    for member in members:
        member.close()


def test_what_one_says_goes_to_all_others(join):
    ada = join("ada")
    bob = join("bob", ada)
    eve = join("eve", ada, bob)
    ada.say("hello\nhow are you?")
    for other in (bob, eve):
        assert [other.line(), other.line()] == ["ada: hello", "ada: how are you?"]
    bob.say("fïne")
    assert [ada.line(), eve.line()] == ["bob: fïne"] * 2


def test_a_line_may_come_in_pieces(join):
    ada = join("ada")
    bob = join("bob", ada)
    for piece in (b"o", b"n", b"e\ntw", b"o\n"):
        ada.sock.sendall(piece)
    assert [bob.line(), bob.line()] == ["ada: one", "ada: two"]


def test_who_leaves_is_announced_whether_by_an_end_or_an_error(join):
    ada = join("ada")
    bob = join("bob", ada)
    eve = join("eve", ada, bob)
    bob.sock.shutdown(socket.SHUT_WR)
    assert bob.end() == b""
    assert [ada.line(), eve.line()] == ["* bob has left"] * 2
    eve.reset()
    assert re.fullmatch(r"\* eve is gone: .*reset.*", ada.line())


def test_a_name_is_asked_for_until_it_is_one(join, chat):
    ada = join("ada")
    other = Member(chat, "ada")
    try:
        assert other.line() == "That name is taken. What is yours?"
        for name in ("", "x" * 21, "\x07\t"):
            other.say(name)
            assert other.line() == "A name has 1 to 20 characters. What is yours?"
        other.say(" bob\r")
        assert other.line() == "Here are: ada"
        assert ada.line() == "* bob has joined"
    finally:
        other.close()
    assert ada.line() == "* bob has left"
    bob = join("bob", ada)  # free again
    bob.say("x")
    assert ada.line() == "bob: x"


def test_nothing_that_is_sent_acts_on_a_terminal(join):
    ada = join("ada")
    bob = join("bob", ada)
    ada.sock.sendall(b"\x1b[2Jfoo\x00\xff\r\n")
    assert bob.line() == "ada: [2Jfoo\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize("end", ["", "\n"], ids=["that goes on", "that has come as a whole"])
def test_who_sends_too_long_a_line_is_thrown_out(join, end):
    ada = join("ada")
    bob = join("bob", ada)
    bob.sock.sendall(b"x" * 5000 + end.encode())
    assert ada.line() == "* bob sent too long a line"
    end_of(bob.sock)


def test_who_does_not_read_is_dropped_and_nobody_waits(join):
    ada = join("ada")
    slow = join("slow", ada)
    eve = join("eve", ada, slow)
    said = 0

    def talk():
        nonlocal said
        line = "x" * 4000
        while not dropped:
            ada.say(line)
            said += 1
            # Not faster than those who do read.
            while said - heard > 20 and not dropped:
                time.sleep(0.001)

    dropped, heard = [], 0
    speaker = Background(talk)
    try:
        while True:
            line = eve.line()
            if line.startswith("*"):
                break
            heard += 1
    finally:
        dropped.append(True)
        speaker.result()
    assert line == "* slow was too slow"
    assert ada.line() == "* slow was too slow"


def test_who_is_reset_before_the_end_of_the_server_has_reached_him_is_no_error():
    def talk(lines):
        for line in range(lines):
            ada.say("x" * 4000)
            if eve.line() == "* bob was too slow":
                return line
        return lines

    def leave():
        assert ada.line() == "* the server ends"
        bob.reset()

    with serving("chat.py") as chat:
        ada, eve, bob = (Member(chat, name) for name in ("ada", "eve", "bob"))
        assert ada.line() == "Here are: only you"
        assert eve.line() == "Here are: ada"
        assert [ada.line(), ada.line()] == ["* eve has joined", "* bob has joined"]
        assert eve.line() == "* bob has joined"
        room = talk(10_000)
        assert [ada.line(), eve.line()[:5]] == ["* bob was too slow", "ada: "]
        bob.reset()
        bob = Member(chat, "bob")
        assert [ada.line(), eve.line()] == ["* bob has joined"] * 2
        assert talk(room - 32) == room - 32  # 128 KiB fewer, so that some wait at the server
        leaving = Background(leave)
    leaving.result()
    for member in (ada, eve):
        member.close()


def test_the_end_of_the_server_is_told_to_all_also_to_those_without_a_name():
    with serving("chat.py") as chat:
        ada = Member(chat, "ada")
        assert ada.line() == "Here are: only you"
        nobody = chat.connect()
        assert read_exactly(nobody, 19) == b"What is your name?\n"
    with contextlib.closing(ada), nobody:
        assert ada.end() == b"* the server ends\n"
        assert read_all(nobody) == b"* the server ends\n"


# udp_echo.py


@pytest.mark.parametrize("signo", [signal.SIGINT, signal.SIGTERM])
def test_the_udp_server_echoes_until_a_signal_ends_it(signo):
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(serving("udp_echo.py", signo=signo))
        sock = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        sock.settimeout(PATIENCE)
        for datagram in (b"one", b"", b"x" * 60_000):
            sock.sendto(datagram, server.address)
            assert sock.recvfrom(1 << 16) == (datagram, server.address)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_the_udp_client_prints_the_answer(host):
    with serving("udp_echo.py", f"--host={host}") as server:
        finished = run("udp_echo.py", f"--host={host}", f"--port={server.address[1]}", "--send=hi!")
    assert (finished.returncode, finished.stdout, finished.stderr) == (0, "hi!\n", "")


def test_the_udp_client_sends_again_what_is_not_answered():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(PATIENCE)

        def answer():
            assert sock.recv(100) == b"hi!"
            data, address = sock.recvfrom(100)
            sock.sendto(data.upper(), address)

        answering = Background(answer)
        finished = run("udp_echo.py", f"--port={sock.getsockname()[1]}", "--send=hi!")
        answering.result()
    assert (finished.returncode, finished.stdout) == (0, "HI!\n")


def test_the_udp_programs_say_what_is_wrong():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        finished = run("udp_echo.py", f"--port={port}")
        assert finished.returncode == 1
        assert re.fullmatch(r"cannot open the socket: .*in use.*\n", finished.stderr)
    finished = run("udp_echo.py", f"--port={port}", "--send=hi!")
    assert finished.returncode == 1
    assert re.fullmatch(r"error: .*refused.*\n", finished.stderr)


# Work in threads


def test_background_work_hashes_files(tmp_path):
    contents = {f"file{number}": os.urandom(number * MIB) for number in range(4)}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    finished = run("background_work.py", "--progress", *contents, "missing", cwd=tmp_path)
    assert finished.returncode == 1
    assert sorted(finished.stdout.splitlines()) == sorted(
        f"{hashlib.sha256(content).hexdigest()}  {name}" for name, content in contents.items()
    )
    *_, total = sorted(finished.stderr.splitlines(), key=lambda line: "bytes" in line)
    assert "missing: [Errno 2] No such file" in finished.stderr
    assert re.fullmatch(r"[\d,]+ bytes", total)


def test_background_work_is_cancelled_by_sigint(tmp_path):
    os.mkfifo(tmp_path / "fifo")  # whose open blocks the one thread
    (tmp_path / "file").write_bytes(b"hello")
    arguments = ["--workers=1", "file", "fifo", "file"]
    process = subprocess.Popen(
        command("background_work.py", *arguments),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline().endswith("  file\n")
        with open(tmp_path / "fifo", "wb"):  # the thread is in there now
            process.send_signal(signal.SIGINT)
            assert process.stderr.readline() == "stopped\n"
        assert process.stdout.read() == ""
        assert process.wait(PATIENCE) == 128 + signal.SIGINT
    finally:
        process.kill()
        process.communicate()


# watch.py


@pytest.mark.parametrize("signo", [signal.SIGINT, signal.SIGTERM])
def test_watch_prints_what_changes_until_a_signal(tmp_path, signo):
    folder, file = tmp_path / "folder", tmp_path / "file"
    folder.mkdir()
    file.touch()
    process = subprocess.Popen(
        command("watch.py", folder, file),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline() == f"watching {folder} {file}\n"
        for act, line in [
            ((folder / "new").mkdir, f"appeared {folder}/new"),
            ((folder / "new").rmdir, f"gone {folder}/new"),
            (lambda: file.chmod(0o600), f"changed {file}"),
            (file.unlink, f"gone {file}"),
            (file.mkdir, f"appeared {file}"),
            ((file / "entry").mkdir, f"appeared {file}/entry"),
            (folder.rmdir, f"gone {folder}"),
            (folder.mkdir, f"appeared {folder}"),
        ]:
            act()
            assert process.stdout.readline() == line + "\n"
        process.send_signal(signo)
        assert process.communicate(timeout=PATIENCE) == ("", "")
        assert process.returncode == 0
    finally:
        process.kill()
        process.communicate()


def test_watch_says_in_one_line_what_is_not_there(tmp_path):
    finished = run("watch.py", tmp_path / "missing")
    assert finished.returncode == 1
    assert finished.stderr == f"[Errno 2] No such file or directory: '{tmp_path}/missing'\n"


# copy_file.py


def test_copy_file_copies_contents_and_mode(tmp_path):
    data = os.urandom(20 * MIB + 1)
    (tmp_path / "from").write_bytes(data)
    (tmp_path / "from").chmod(0o700)
    finished = run("copy_file.py", "from", "to", cwd=tmp_path)
    assert (finished.returncode, finished.stderr) == (0, "")
    assert finished.stdout == f"copied {len(data)} bytes\n"
    assert (tmp_path / "to").read_bytes() == data
    assert (tmp_path / "to").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(("source", "target"), [("missing", "to"), ("from", "from"), (".", "to")])
def test_copy_file_says_why_it_cannot(tmp_path, source, target):
    (tmp_path / "from").write_bytes(b"data")
    finished = run("copy_file.py", source, target, cwd=tmp_path)
    assert (finished.returncode, finished.stdout) == (1, "")
    assert re.fullmatch(rf"cannot copy {re.escape(source)}: \[Errno .*\n", finished.stderr)
    assert (tmp_path / "from").read_bytes() == b"data"
    assert not (tmp_path / "to").exists()
