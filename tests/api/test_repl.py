"""The interactive prompt, at a terminal."""

import contextlib
import fcntl
import os
import pty
import re
import select
import socket
import subprocess
import sys
import termios

import pytest
from peers import read_all, run_python

import pyasync

#: How long the prompt may take for anything, in seconds: PyPy takes a while to start.
PATIENCE = 30

ESCAPES = re.compile(r"\x1b(\[[0-9;?]*[@-~]|[=>])|[\r\x01\x02\a]")

pytestmark = pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")


class Terminal:
    """`python -m pyasync` at a pseudo-terminal."""

    def __init__(self, home, *arguments):
        self.master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pyasync", *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            # So that Ctrl-C, as a character, becomes a signal.
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
            env={**os.environ, "HOME": str(home), "TERM": "xterm", "INPUTRC": "/dev/null"},
        )
        os.close(slave)
        self.output = ""  # what was printed and not yet expected
        self.marks = 0

    def expect(self, text):
        """Read until the text is there; return what was before it."""
        while text not in self.output:
            self.read()
        before, _, self.output = self.output.partition(text)
        return before

    def read(self):
        ready = select.select([self.master], [], [], PATIENCE)[0]
        assert ready, f"no more than {self.output!r}"
        try:
            data = os.read(self.master, 1 << 16)
        except OSError:  # EIO: nobody has the terminal any more
            data = b""
        if not data:
            raise EOFError(f"the prompt has ended after {self.output!r}")
        self.output += ESCAPES.sub("", data.decode())

    def send(self, text):
        os.write(self.master, text.encode())

    def type(self, line):
        self.send(line + "\n")

    def press_ctrl_c(self):
        """Press Ctrl-C; the line editor may lose it just behind a line, so again."""
        self.send("\x03")
        while "KeyboardInterrupt" not in self.output:
            if not select.select([self.master], [], [], 3)[0]:
                self.send("\x03")
            self.read()
        self.expect("KeyboardInterrupt")

    def at_prompt(self):
        """Wait until the prompt is there, and all that was typed has been run.

        What a key does is sure only then: in between, the kernel would take Ctrl-D for itself.
        """
        self.marks += 1
        self.type(f"print('mark' + '{self.marks}')")
        self.expect(f"mark{self.marks}\n")
        self.expect(">>> ")

    def end(self, keys="\x04"):
        """End the prompt; return the exit status, and what is printed until then."""
        self.at_prompt()
        self.send(keys)
        return self.wait()

    def wait(self):
        with contextlib.suppress(EOFError):
            while True:
                self.read()
        return self.process.wait(PATIENCE), self.output


@pytest.fixture
def terminal(tmp_path):
    terminal = Terminal(tmp_path)
    try:
        yield terminal
    finally:
        terminal.process.kill()
        terminal.process.wait()
        os.close(terminal.master)


def test_a_prompt_with_a_banner_evaluates_and_ends_by_ctrl_d(terminal):
    assert pyasync.__version__ in terminal.expect("An event loop runs")
    terminal.type("6 * 7")
    terminal.expect("42")
    assert terminal.end()[0] == 0


def test_the_names_of_the_package_are_there_and_mean_the_loop(terminal):
    terminal.type("current_loop() is not None and pyasync.current_loop() is current_loop()")
    terminal.expect("True\n")
    terminal.type("delay(lambda: print('lat' + 'er'), time=0.01).has_ref")
    terminal.expect("True\n")
    terminal.expect("later")
    assert terminal.end()[0] == 0


def test_statements_of_several_lines_and_names_of_ones_own(terminal):
    terminal.type("def double(number):\n    return 2 * number\n")
    terminal.type("double(21)")
    terminal.expect("42")
    terminal.type("_ + 1")
    terminal.expect("43\n")
    terminal.end()


def test_a_server_that_is_started_at_the_prompt_serves_while_one_types(terminal):
    terminal.type("server = tcp_server('127.0.0.1', 0, lambda s, data: s.write(data.upper()))")
    terminal.type("print('po' + 'rt', server.address[1])")
    terminal.expect("port ")
    port = int(terminal.expect("\n"))
    terminal.at_prompt()
    terminal.send("half a li")  # the main thread waits for the rest
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as client:
            client.sendall(b"hello")
            assert client.recv(100) == b"HELLO"
    terminal.expect("half a li")  # what is typed and not yet read may outlive Ctrl-C
    terminal.press_ctrl_c()
    assert terminal.end()[0] == 0
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)


def test_the_end_of_the_prompt_closes_everything(terminal):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        terminal.type(f"client = tcp_connect('127.0.0.1', {port}, lambda *a: None, data=b'hi')")
        listener.settimeout(PATIENCE)
        with listener.accept()[0] as accepted:
            accepted.settimeout(PATIENCE)
            assert accepted.recv(2) == b"hi"
            assert terminal.end()[0] == 0
            assert read_all(accepted) == b""


def test_an_exception_of_a_statement_is_printed_and_the_prompt_lives_on(terminal):
    terminal.type("1 / 0")
    assert "Traceback" in terminal.expect("ZeroDivisionError: ")
    assert terminal.end()[0] == 0


def test_an_exception_of_a_callback_is_printed_and_the_loop_lives_on(terminal):
    terminal.type("_ = delay(lambda: 1 / 0)")
    assert "Traceback" in terminal.expect("ZeroDivisionError: ")
    terminal.type("_ = delay(lambda: print(6 * 7))")
    terminal.expect("42")
    assert terminal.end()[0] == 0


def test_ctrl_c_interrupts_the_line(terminal):
    terminal.at_prompt()
    terminal.send("no such line")
    terminal.expect("line")
    terminal.press_ctrl_c()
    terminal.type("6 * 7")
    assert "Error" not in terminal.expect("42")
    terminal.end()


@pytest.mark.parametrize(
    "statement", ["[0 for _ in iter(int, 1)]", "time.sleep(3600)", "gate.wait()"]
)
def test_ctrl_c_interrupts_a_statement(terminal, statement):
    terminal.type("import threading, time; gate = threading.Event()")
    terminal.type(f"print(1 + 1); {statement}")
    terminal.expect("2\n")
    terminal.press_ctrl_c()
    terminal.type("_ = delay(lambda: print(6 * 7))")
    terminal.expect("42")
    assert terminal.end()[0] == 0


def test_ctrl_c_gives_up_waiting_for_a_callback_that_does_not_return(terminal):
    terminal.type("import os, threading; reader, writer = os.pipe()")
    terminal.type("_ = poll(reader, lambda *ready: threading.Event().wait(), writable=False)")
    terminal.at_prompt()
    # From here on the loop is stuck; the prompt is not, until it needs the loop.
    terminal.send("os.write(writer, b'x'), 'writ' + 'ten'\n")
    terminal.expect("written")
    terminal.expect(">>> ")
    terminal.send("1 + 1\n")
    terminal.expect("1 + 1\n")
    terminal.press_ctrl_c()
    terminal.expect(">>> ")
    terminal.send("\x04")
    status, output = terminal.wait()
    assert status == 0
    assert "still runs: it is left" in output


def test_a_loop_that_was_left_is_followed_by_a_new_one(terminal):
    terminal.type("exit_event_loop()")
    terminal.type("_ = delay(lambda: print(6 * 7))")
    assert "a new one runs" in terminal.expect("42")
    assert terminal.end()[0] == 0


@pytest.mark.parametrize(
    ("keys", "status"),
    [("exit()\n", 0), ("quit()\n", 0), ("exit(3)\n", 3), ("raise SystemExit(4)\n", 4)],
)
def test_exit_and_quit_end_the_prompt(terminal, keys, status):
    assert terminal.end(keys)[0] == status


@pytest.mark.parametrize("leave", ["exit(3)", "sys.exit(3)"])
def test_a_callback_that_exits_ends_the_prompt_with_the_next_line(terminal, leave):
    terminal.type("import sys")
    terminal.type("add_event_loop_exit_callback(lambda: print('en' + 'ded'))")
    terminal.type(f"_ = delay(lambda: {leave})")
    terminal.expect("ended")
    terminal.send("1 + 1\n")
    status, output = terminal.wait()
    assert status == 3
    assert "Traceback" not in output


def test_tab_completes_names_of_the_package_and_ones_own(terminal):
    terminal.type("my_long_name = 6 * 7")
    terminal.at_prompt()
    terminal.send("my_lon\t, IGN\t == pyasync.IGNORE, pyasync.__vers\t\n")
    terminal.expect(f"(42, True, '{pyasync.__version__}')")
    terminal.end()


def test_the_history_is_kept_for_the_next_time(terminal, tmp_path):
    terminal.type("'remember' + 'ed'")
    terminal.expect("'remembered'\n")
    terminal.expect(">>> ")
    terminal.send("\x10\n")  # Ctrl-P: the last line again
    terminal.expect("'remembered'\n")
    terminal.end()
    files = [path.read_text() for path in tmp_path.iterdir() if path.is_file()]
    assert any("'remember' + 'ed'" in text for text in files)


def test_sys_ps1_is_the_prompt(terminal):
    terminal.type("import sys; sys.ps1 = 'what' + 'now? '")
    terminal.expect("whatnow? ")
    terminal.send("\x04")
    assert terminal.wait()[0] == 0


# Without a terminal


def test_lines_come_from_a_pipe_as_well(tmp_path):
    lines = "print(6 * 7)\n_ = delay(lambda: 1 / 0)\nprint(current_loop() is None)\n"
    home = {**os.environ, "HOME": str(tmp_path)}
    finished = run_python("-m", "pyasync", input=lines, env=home)
    assert finished.returncode == 0
    assert "42" in finished.stdout
    assert "False" in finished.stdout


def test_it_explains_itself():
    finished = run_python("-m", "pyasync", "--help")
    assert finished.returncode == 0
    assert "python -m pyasync" in finished.stdout
    assert "event loop" in finished.stdout
