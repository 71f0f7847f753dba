"""The examples in the docstrings run, and print what they say; links lead somewhere."""

import doctest
import importlib
import inspect
import pkgutil
import re
import shutil
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


def imported(name):
    if name == "pyasync.otel":
        pytest.importorskip("opentelemetry")
    return importlib.import_module(name)


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_print_what_they_say(name):
    assert doctest.testmod(imported(name)).failed == 0


def test_there_are_examples():
    finder = doctest.DocTestFinder()
    examples = [
        example
        for name in MODULES
        if name != "pyasync.otel"
        for test in finder.find(importlib.import_module(name))
        for example in test.examples
    ]
    assert len(examples) > 10


ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
API_TESTS = ROOT / "tests" / "api"
PAGES = [*sorted(DOCS.rglob("*.md")), *sorted(ROOT.glob("*.md"))]


def page_name(path):
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_a_link_leads_to_a_file_and_a_heading_that_are_there(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match("https?:", target):
            continue
        path, _, heading = target.partition("#")
        to = page.parent / path if path else page
        assert to.exists(), target
        assert not heading or heading in headings_of(to), target


def headings_of(page):
    """Return the headings of a page, as links name them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def blocks_of(page):
    """Return the blocks of code of a page: the language of each, and its text."""
    return re.findall(r"^```([^\n]*)\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Give a folder with the files that pages speak of."""
    folder = tmp_path_factory.mktemp("page")
    (command,) = re.findall(r"^openssl .*", (DOCS / "tutorial/tls.md").read_text(), re.MULTILINE)
    subprocess.run(command.split(), cwd=folder, check=True, capture_output=True, timeout=60)
    shutil.copy(folder / "cert.pem", folder / "clients.pem")
    return folder


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if any(language == "python" for language, _ in blocks_of(page))],
    ids=page_name,
)
def test_the_blocks_of_a_page_run(page, folder):
    needs = {"prometheus_client", "opentelemetry"}
    for name in needs:
        if f"import {name}" in page.read_text():
            pytest.importorskip(name)
    command = [sys.executable, str(ROOT / "tests" / "run_page.py"), page_name(page)]
    finished = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert finished.returncode == 0, finished.stderr


def test_a_block_of_commands_names_what_is_there():
    makefile = (ROOT / "Makefile").read_text()
    for page in PAGES:
        text = "".join(text for language, text in blocks_of(page) if language in ("sh", "console"))
        for target in re.findall(r"^(?:\$ )?make ([\w-]+)", text, re.MULTILINE):
            assert f"\n{target}:" in makefile, f"{page_name(page)}: make {target}"
        for program, options in re.findall(
            r"python (?:-m cProfile \S+ \S+ )?(\w+/\S+\.py)(.*)", text
        ):
            source = (ROOT / program).read_text()
            for option in re.findall(r"(?<= )--[\w-]+", options.partition("#")[0]):
                assert option in source or option.replace("--", "") in source, (program, option)


def test_the_site_has_each_page():
    index = (DOCS / "index.md").read_text()
    listed = re.findall(r"^[\w-]+/[\w-]+$", index, re.MULTILINE)
    assert sorted(listed) == sorted(
        str(page.relative_to(DOCS).with_suffix("")) for page in PAGES if page.parent.parent == DOCS
    )


FROM_CL_ASYNC = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in (DOCS / "coming-from/cl-async.md").read_text().splitlines()
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


@pytest.mark.parametrize("library", ["asyncio", "node", "pyuv"])
def test_what_replaces_a_call_of_another_library_is_there(library):
    classes = [each for each in vars(pyasync).values() if inspect.isclass(each)]
    rows = re.findall(
        r"^\| (`.*) \| (.*) \|$", (DOCS / f"coming-from/{library}.md").read_text(), re.M
    )
    assert len(rows) > 20
    for _, ours in rows:
        for name in re.findall(r"(?<![\w(.])(?:\w+\.)?(\w+)\(", ours):
            if not name.endswith("_cb") and name != "partial":
                assert any(hasattr(owner, name) for owner in [pyasync, pyasync.fs, *classes]), ours


def test_the_table_of_cl_async_is_whole():
    names = set(re.findall(r"`([^`]+)`", " ".join(row[0] for row in FROM_CL_ASYNC)))
    assert len(FROM_CL_ASYNC) > 80
    assert {"start-event-loop", "tcp-server", "spawn", "mkdtemp", "ssl-socket"} <= names


def test_children_do_not_inherit_a_socket_from_systemd():
    """By the example in docs/guides/streams.md."""
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "guides/streams.md").read_text(), re.DOTALL)
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
