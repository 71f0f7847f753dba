"""The examples as programs: to be run to their end, or as servers."""

import contextlib
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from peers import PATIENCE, run_python

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def command(program, *arguments):
    return [sys.executable, str(EXAMPLES / program), *map(str, arguments)]


def run(program, *arguments, **options):
    """Run an example to its end. Gives its exit status, output and errors, as text."""
    return run_python(EXAMPLES / program, *arguments, **options)


class Server:
    """An example that listens, on a free port of its own."""

    def __init__(self, program, *arguments):
        self.process = subprocess.Popen(
            command(program, "--port=0", *arguments),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        first = self.process.stdout.readline()
        found = re.fullmatch(r"listening at (\S+) port (\d+)\n", first)
        if not found:
            self.process.kill()
            pytest.fail(f"no address, but {first!r} and {self.process.communicate()}")
        self.address = found[1], int(found[2])

    def connect(self):
        return socket.create_connection(self.address, timeout=PATIENCE)

    def end(self, signo=signal.SIGTERM):
        """Send the signal, and return the exit status, and what was printed after the address."""
        self.process.send_signal(signo)
        output, errors = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, output, errors


@contextlib.contextmanager
def serving(program, *arguments, signo=signal.SIGTERM, errors=""):
    """Give a Server, which must end by a signal, and have printed errors that match, or none."""
    server = Server(program, *arguments)
    try:
        yield server
        status, output, printed = server.end(signo)
        assert re.fullmatch(errors, printed)
        assert (status, output) == (0, "")
    finally:
        server.process.kill()
        server.process.communicate()
