"""A short part of `make soak`: all of it for some seconds."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from peers import run_python

PROGRAM = Path(__file__).resolve().parents[2] / "bench" / "soak.py"

pytestmark = [
    pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="reads /proc"),
    pytest.mark.skipif(not shutil.which("openssl"), reason="needs openssl"),
    pytest.mark.skipif("LD_PRELOAD" in os.environ, reason="its memory is the sanitizers'"),
    pytest.mark.skipif(sys.implementation.name == "pypy", reason="its memory takes long to settle"),
]


@pytest.mark.timeout(180)
def test_some_seconds_of_everything_leave_nothing_behind():
    done = run_python(PROGRAM, "--minutes=0.1", "--json", timeout=150)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(done.stdout)
    assert figures["failures"] == []
    assert figures["exchanges"] > 0
    assert figures["accepted"] > 100
