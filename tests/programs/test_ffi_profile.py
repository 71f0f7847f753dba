"""What bench/ffi_profile.py says of the cost of the FFI: that it adds up, and reads profiles."""

import importlib.util
import json
import marshal
import math
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from peers import run_python

BENCH = Path(__file__).resolve().parents[2] / "bench"
PYPY = sys.implementation.name == "pypy"
PATIENCE = 170  # seconds for a process to end

SMALL_LOAD = ["--requests=400", "--concurrency=20", "--rounds=1"]
PROGRAM = """
import pyasync
with pyasync.event_loop():
    def count():
        global left
        left -= 1
        if not left:
            timer.close()
    left = 20
    timer = pyasync.interval(count, time=0.001)
    print(sum(range(300_000)))
"""

needs_cprofile = pytest.mark.skipif(PYPY, reason="PyPy's profiler does not name functions in C")


def ffi_profile(*arguments):
    """Run ffi_profile.py to its end. Gives its exit status, output and errors."""
    return run_python(BENCH / "ffi_profile.py", *arguments)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Give what a small load has shown, and the drawing of it."""
    svg = tmp_path_factory.mktemp("ffi") / "ffi.svg"
    drawn = [f"--svg={svg}"] if importlib.util.find_spec("matplotlib") else []
    finished = ffi_profile(*SMALL_LOAD, "--json", *drawn)
    assert (finished.returncode, finished.stderr) == (0, "")
    return json.loads(finished.stdout), svg


@pytest.fixture
def profile(tmp_path):
    """Give the profile of a program that uses pyasync."""
    path = tmp_path / "out.prof"
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, "-m", "cProfile", "-o", str(path), str(tmp_path / "program.py")]
    subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE)
    return path


def all_costs(measured):
    return [
        (name, variant, costs)
        for name, variants in measured["results"].items()
        for variant, costs in variants.items()
    ]


def calls(costs):
    """Calls a request, by the name of the crossing."""
    return {row["name"]: row["calls"] / costs["requests"] for row in costs["crossings"]}


# A load


def test_both_workloads_are_shown_in_three_variants(measured):
    shown = {(name, variant) for name, variant, _ in all_costs(measured[0])}
    variants = ["buffered", "unbuffered", "callbacks"]
    assert shown == {(name, variant) for name in ("http", "echo") for variant in variants}


def test_the_shares_add_up_and_the_crossings_to_their_share(measured):
    for name, variant, costs in all_costs(measured[0]):
        where = (name, variant)
        assert math.isclose(sum(costs["shares"].values()), 1), where
        assert math.isclose(sum(costs["parts"].values()), costs["total"]), where
        crossing = sum(row["cost"] for row in costs["crossings"])
        assert math.isclose(crossing, costs["parts"]["FFI crossings"]), where
        assert all(row["calls"] > 0 and row["cost"] > 0 for row in costs["crossings"]), where


def test_the_sum_is_compared_with_the_time_of_a_run_without_a_profiler(measured):
    for name in ("http", "echo"):
        for variant in ("buffered", "unbuffered"):
            costs = measured[0]["results"][name][variant]
            if PYPY:  # there the sum is that time
                assert costs["measured"] is None
                assert set(costs["parts"]) == {"kernel", "FFI crossings", "libuv and Python"}
            else:
                assert 0 <= costs["system"] <= costs["measured"]  # counted in ticks
                assert math.isclose(costs["residual"], costs["total"] / costs["measured"] - 1)
                assert set(costs["parts"]) == {
                    *("kernel and libuv", "FFI crossings", "pyasync", "application"),
                }


def test_each_crossing_is_counted_by_its_name(measured):
    buffered = calls(measured[0]["results"]["http"]["buffered"])
    unbuffered = calls(measured[0]["results"]["http"]["unbuffered"])
    assert 0 < buffered["pa_run"] < 10
    assert "pa_write" not in buffered
    assert unbuffered["pa_write"] == 1
    assert 1 <= unbuffered["pa_close"] < 1.1  # of the listener, too
    # A request is an accept, a read, and the end of the close.
    assert 3 <= buffered["event records, in"] < 3.5


def test_events_as_calls_differ_in_these_alone(measured):
    variants = measured[0]["results"]["echo"]
    unbuffered, callbacks = variants["unbuffered"], variants["callbacks"]
    assert callbacks["computed"]
    assert callbacks["measured"] is None
    assert "event records, in" not in calls(callbacks)
    assert calls(callbacks)['extern "Python" calls, in'] == calls(unbuffered)["event records, in"]
    for name, seconds in unbuffered["parts"].items():
        assert (callbacks["parts"][name] == seconds) == (name != "FFI crossings")


def test_the_calibration_is_part_of_the_result(measured):
    calibration = measured[0]["calibration"]
    assert set(calibration["call_out"]) == set("0123456789")  # by the number of arguments
    assert all(nanoseconds > 0 for nanoseconds in calibration["call_out"].values())
    assert calibration["call_in"] > 0
    assert calibration["copy_1k"] > calibration["copy"] > 0
    assert PYPY or all(sum(pair) > 0 for pair in calibration["profiler"].values())


def test_the_drawing_has_a_bar_for_each_variant(measured):
    pytest.importorskip("matplotlib")
    root = ElementTree.parse(measured[1]).getroot()
    words = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert [words.count(variant) for variant in ("buffered", "unbuffered", "callbacks")] == [2] * 3


def test_the_text_says_what_the_shares_are_of():
    finished = ffi_profile(*SMALL_LOAD, "--workloads=http")
    assert (finished.returncode, finished.stderr) == (0, "")
    for words in ("calibration, in ns", "µs/request", "FFI crossings", "sum", "ns/call", "pa_run"):
        assert words in finished.stdout


# The profile of another program


@needs_cprofile
def test_a_profile_of_any_program_is_read(profile):
    finished = ffi_profile("--from", profile, "--json")
    assert (finished.returncode, finished.stderr) == (0, "")
    costs = json.loads(finished.stdout)["results"]["out.prof"]["profile"]
    assert math.isclose(sum(costs["shares"].values()), 1)
    assert "sleep, kernel, libuv" in costs["parts"]
    counts = {row["name"]: row["calls"] for row in costs["crossings"]}
    assert counts["pa_run"] >= 20


@needs_cprofile
def test_the_cpu_time_tells_sleep_from_work(profile):
    def kernel(*arguments):
        costs = json.loads(ffi_profile("--from", profile, "--json", *arguments).stdout)
        parts = costs["results"]["out.prof"]["profile"]["parts"]
        return parts.get("kernel and libuv", parts.get("sleep, kernel, libuv"))

    assert kernel("--cpu=0.001") < kernel()


@needs_cprofile
def test_the_loop_is_found_in_any_file_of_the_package_and_by_no_name_of_a_function(tmp_path):
    def function(name, file, seconds, *callers):
        key, times = (file, 1, name), (1, 1, seconds, seconds)
        found[key] = (*times, dict.fromkeys(callers, times))
        return key

    found, engine = {}, "/usr/lib/pyasync/_core/engine.py"
    program = ("/home/somebody/program.py", 1, "main")
    turn = function("turn", engine, 1.0, program)
    poll = function("poll", engine, 2.0, turn)
    function("<built-in method pyasync._libuv.pa_run>", "~", 4.0, poll)
    walk = function("walk", "/usr/lib/pyasync/_core/deep/down.py", 8.0, turn)
    on_data = function("on_data", program[0], 16.0, walk)
    function("<built-in method pyasync._libuv.pa_write>", "~", 32.0, walk)
    function("<built-in method time.sleep>", "~", 64.0, on_data)
    found[program] = (1, 1, 128.0, 128.0, {})
    path = tmp_path / "some.prof"
    path.write_bytes(marshal.dumps(found))
    results = json.loads(ffi_profile("--from", path, "--json").stdout)["results"]
    parts = results[path.name]["profile"]["parts"]
    assert {name: round(seconds) for name, seconds in parts.items()} == {
        **{"sleep, kernel, libuv": 4 + 32, "FFI crossings": 0},
        **{"pyasync": 1 + 2 + 8, "application": 16 + 64},
    }


@needs_cprofile
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "No such file"),
        (b"", "is not a file that cProfile has written"),
        (b"no profile", "is not a file that cProfile has written"),
        ("other", "not of a program that has run pyasync's event loop"),
    ],
    ids=["missing", "empty", "odd", "of another program"],
)
def test_what_is_no_profile_of_pyasync_is_one_clear_line(tmp_path, content, words):
    path = tmp_path / "some.prof"
    if content == "other":
        command = [sys.executable, "-m", "cProfile", "-o", str(path), "-m", "this"]
        subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE)
    elif content is not None:
        path.write_bytes(content)
    finished = ffi_profile("--from", path)
    assert finished.returncode == 1
    assert finished.stdout == ""
    assert words in finished.stderr
    assert finished.stderr.startswith("error: ")
    assert finished.stderr.count("\n") == 1


@pytest.mark.parametrize("arguments", [["--cpu=1"], ["--requests=0"], ["--workloads=none"]])
def test_odd_options_are_refused(arguments):
    finished = ffi_profile(*arguments)
    assert finished.returncode == 2
    assert "error: " in finished.stderr
    assert "Traceback" not in finished.stderr
