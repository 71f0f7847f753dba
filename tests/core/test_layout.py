"""Who may import whom: the core stands by itself, and nothing needs asyncio."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import pyasync

PACKAGE = Path(pyasync.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))

#: What the core may import of the package, besides itself.
ALLOWED = {"pyasync._ffi", "pyasync.errors", "pyasync.counters"}


def imported_by(path):
    """Return the modules of the package that a module imports, also where only types need them."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            module = node.module or ""
            names = {f"{module}.{alias.name}" for alias in node.names}
            found |= {name if is_module(name) else module for name in names}
    return {name for name in found if name.split(".")[0] == "pyasync"}


def is_module(name):
    path = PACKAGE.joinpath(*name.split(".")[1:])
    return path.with_suffix(".py").is_file() or path.is_dir() or name == "pyasync._libuv"


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("_core/*.py")), ids=lambda path: path.stem)
def test_the_core_imports_itself_and_what_has_no_policy(path):
    others = {name for name in imported_by(path) if not name.startswith("pyasync._core")}
    assert others <= ALLOWED


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_the_extension_is_imported_in_one_place(path):
    assert ("pyasync._libuv" in imported_by(path)) == (path.name == "_ffi.py")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_the_asyncio_loop_stands_beside_the_callback_api(path):
    imported = imported_by(path)
    if path.parent.name == "aio":
        # Of the callback API the loop alone: `current_loop` gives it in an asyncio program too.
        others = {
            name for name in imported if not name.startswith(("pyasync._core", "pyasync.aio"))
        }
        assert others <= ALLOWED | {"pyasync.loop"}
    else:
        assert not any(name.startswith("pyasync.aio") for name in imported)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_time_comes_from_libuvs_clock(path):
    """By which timers fire: on macOS Python's own stands still while the machine sleeps."""
    if path.name != "clock.py":
        assert not re.search(r"from time import .*monotonic|time\.monotonic\w*\(", path.read_text())


def test_the_callback_api_does_without_asyncio():
    program = "import sys, pyasync; assert 'asyncio' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, cwd="/", timeout=60)
