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


def suite(*words):
    done = subprocess.run(
        [sys.executable, str(SUITE), *words], capture_output=True, text=True, timeout=1700
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("module", QUICK)
def test_a_module_of_cpythons_passes(module):
    suite(module)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_all_of_cpythons_suite_passes():
    suite()
