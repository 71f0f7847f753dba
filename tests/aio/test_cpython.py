"""CPython's own tests of asyncio: see cpython.py."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

SUITE = Path(__file__).with_name("cpython.py")

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("test") is None
        or importlib.util.find_spec("test.test_asyncio") is None,
        reason="this Python has no test.test_asyncio",
    ),
    pytest.mark.skipif("LD_PRELOAD" in os.environ, reason="the other tests of aio are enough"),
]

#: Modules of a few seconds each, which use loops and transports in earnest.
QUICK = [
    "test_base_events",
    "test_buffered_proto",
    "test_sendfile",
    "test_server",
    "test_sock_lowlevel",
    "test_sslproto",
    "test_streams",
    "test_unix_events",
]


def start_suite(*words):
    words = [sys.executable, str(SUITE), *words]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process, seconds):
    output, _ = process.communicate(timeout=seconds)
    assert process.returncode == 0, output


@pytest.fixture(scope="module")
def processes(request):
    """Give a process for each of the modules, all at once: they wait more than they compute."""
    chosen = [item.callspec.params["module"] for item in request.session.items
              if item.function is test_a_module_of_cpythons_passes]  # fmt: skip
    started = {module: start_suite(module) for module in chosen}
    yield started
    for process in started.values():
        process.kill()
        process.communicate()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("module", QUICK)
def test_a_module_of_cpythons_passes(processes, module):
    finish(processes[module], 280)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_all_of_cpythons_suite_passes():
    finish(start_suite(), 1700)
