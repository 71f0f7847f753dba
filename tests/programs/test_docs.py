"""The examples in the docstrings run, and print what they say."""

import doctest
import importlib
import pkgutil
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import pyasync

MODULES = ["pyasync"] + [
    module.name
    for module in pkgutil.walk_packages(pyasync.__path__, "pyasync.")
    if module.name not in ("pyasync._libuv", "pyasync.__main__")
]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_print_what_they_say(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_there_are_examples():
    finder = doctest.DocTestFinder()
    examples = [
        example
        for name in MODULES
        for test in finder.find(importlib.import_module(name))
        for example in test.examples
    ]
    assert len(examples) > 10


DOCS = Path(__file__).resolve().parents[2] / "docs"
API_TESTS = Path(__file__).resolve().parents[1] / "api"
FROM_CL_ASYNC = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in (DOCS / "from-cl-async.md").read_text().splitlines()
    if line.startswith("| `")
]


@pytest.mark.parametrize("row", FROM_CL_ASYNC, ids=lambda row: row[0].replace("`", ""))
def test_what_replaces_a_name_of_cl_async_is_there_and_so_is_its_test(row):
    _, ours, test = row
    for name in re.findall(r"`([A-Za-z]\w*(?:\.\w+)?)`", ours):
        if not name.startswith(("signal.", "socket.", "ssl.", "bytes")):
            owner, _, member = name.partition(".")
            found = getattr(pyasync, owner)
            # What an exception carries is set on each one.
            assert not member or hasattr(found, member) or issubclass(found, Exception)
    if test:
        file, _, function = test.strip("`| ").partition("::")
        assert f"\ndef {function}(" in (API_TESTS / file).read_text()


def test_the_table_of_cl_async_is_whole():
    names = set(re.findall(r"`([^`]+)`", " ".join(row[0] for row in FROM_CL_ASYNC)))
    assert len(FROM_CL_ASYNC) > 80
    assert {"start-event-loop", "tcp-server", "spawn", "mkdtemp", "ssl-socket"} <= names


def test_children_do_not_inherit_a_socket_from_systemd():
    """By the example in docs/streams.md."""
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "streams.md").read_text(), re.DOTALL)
    (example,) = (block for block in blocks if "LISTEN_PID" in block)
    program = f"""
import fcntl, os, pyasync, socket
def on_data(*args):
    pass
with socket.create_server(("127.0.0.1", 0)) as listener:
    elsewhere = fcntl.fcntl(listener, fcntl.F_DUPFD, 10)
os.dup2(elsewhere, 3)  # inheritable, as systemd leaves it
os.close(elsewhere)
os.environ["LISTEN_PID"] = str(os.getpid())
with pyasync.event_loop():
{textwrap.indent(example, "    ")}
    socket.create_connection(server.address).close()
    pyasync.spawn("sh", ["-c", "! test -S /dev/fd/3"],
                  exit_cb=lambda process, status, signo: (server.close(), os._exit(status)))
"""
    assert subprocess.run([sys.executable, "-c", program], timeout=30).returncode == 0
