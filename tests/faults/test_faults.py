"""A short part of `make faults`: one error of each function in each scenario, at the first call."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from peers import run_python

PROGRAM = Path(__file__).with_name("run.py")

pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="preloads a library"),
    pytest.mark.skipif("LD_PRELOAD" in os.environ, reason="sanitizers stand before the functions"),
    pytest.mark.skipif(not shutil.which("cc"), reason="compiles a library"),
    pytest.mark.timeout(120),
    pytest.mark.skipif(sys.implementation.name == "pypy", reason="CPython has shown the same"),
]


def test_a_fault_of_any_function_is_raised_or_reported_and_all_else_goes_on():
    done = run_python(PROGRAM, "--json", "--short", timeout=110)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert len(results) > 80
    assert {"achieved", "reported"} <= {result["outcome"] for result in results}
