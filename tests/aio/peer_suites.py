"""Runs the test suites of other projects on pyasync.aio, and on asyncio's own loop to compare.

    python tests/aio/peer_suites.py                     all of them, and a table of the results
    python tests/aio/peer_suites.py aiohttp -k cookie   one; more words go to pytest

A test that fails on pyasync.aio and passes on asyncio is run again on both, alone: if it is so
again it counts, and the exit status is 1 unless EXPLAINED has the reason. The suites come from the
projects' own source distributions; peers.txt has what must be installed. `make peers-test` does it.
"""

import argparse
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).parent
SOURCES = HERE.parents[1] / "build" / "peers"

#: The words for pytest, of each suite.
SUITES = {
    # Its own options measure coverage and use all processors. The marks are those that it leaves
    # out by default.
    "aiohttp": [
        *("-o", "addopts=", "-m", "not dev_mode and not autobahn and not internal"),
        "--ignore-glob=*/test_benchmarks_*",
    ],
    "anyio": ["-k", "not trio"],
    "uvicorn": ["-n0"],
}

_SETS_WRITE = "sets `write` of a transport to a mock; the transport has slots, as uvloop's has"

#: What fails on pyasync.aio only, and why: a part of a test's name.
EXPLAINED = {
    "aiohttp": {
        "test_heartbeat_connection_closed": _SETS_WRITE,
        "test_keepalive_expires_on_time": "sets the loop's `time` to a mock; timers do not ask it",
        "test_start_tls_connection_returns_none": "asks for the text of an error: start_tls of a"
        " closed transport raises here, where asyncio's returns None",
    },
    "anyio": {
        "test_asyncio_run_does_not_leak_event_loop": "collects while anyio's worker thread, which"
        " refers to the loop, has yet to end",
    },
    "uvicorn": {
        "test_server_keepalive_ping_timeout": _SETS_WRITE,
        "test_loop_auto": "looks whether the loop's class is one of asyncio's or uvloop's modules",
    },
}


def unpack(name):
    """Return the folder of the sources of the version that is installed."""
    release = f"{name}-{version(name)}"
    folder = SOURCES / release
    if not folder.is_dir():
        words = ["download", "--no-binary", name, "--no-deps", "--dest", str(SOURCES)]
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
        done = subprocess.run(
            [*pip, *words, f"{name}=={version(name)}"], capture_output=True, text=True
        )
        if done.returncode:
            sys.exit(done.stderr)
        with tarfile.open(SOURCES / f"{release}.tar.gz") as archive:
            archive.extractall(SOURCES)
    return folder


def outcomes(name, loop, words, limit):
    """Run tests of a suite on a loop; return the outcome of each, by its name."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "outcomes")
        output = Path(folder, "output")
        environment = {
            **os.environ,
            "PYTHONPATH": str(HERE),
            "PYASYNC_LOOP": loop,
            "PYASYNC_OUTCOMES": str(report),
        }
        pytest = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "on_pyasync",
            "-p",
            "no:cacheprovider",
        ]
        with output.open("w") as file:
            try:
                subprocess.run(  # its status is of no interest: some tests fail anywhere
                    [*pytest, "--timeout=120", *words],
                    cwd=unpack(name),
                    env=environment,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    timeout=limit,
                )
            except subprocess.TimeoutExpired:
                print(f"{name} on {loop} has not ended after {limit:.0f} s")
        if not report.exists():
            print(output.read_text()[-3000:])
            return {}
        found = {}
        for line in report.read_text().splitlines():
            test, outcome = json.loads(line)
            # pytest puts a parameter's name into a test's, also that of the loop's class.
            test = test.replace("_UnixSelectorEventLoop", "EventLoop")
            if found.get(test) != "failed":  # else what comes after its failure
                found[test] = outcome
        return found


def failed(found):
    return {test for test, outcome in found.items() if outcome == "failed"}


def compare(name, words, limit):
    """Run a suite on both loops, and print the difference. Return whether all is explained."""
    start = time.monotonic()
    words = [*SUITES[name], *(words or ["tests"])]
    results = {loop: outcomes(name, loop, words, limit) for loop in ("pyasync", "asyncio")}
    for loop, found in results.items():
        passed = sum(outcome == "passed" for outcome in found.values())
        skipped = sum(outcome == "skipped" for outcome in found.values())
        print(
            f"{name} {version(name)} on {loop}: {len(found)} run, {passed} passed,"
            f" {len(failed(found))} failed, {skipped} skipped",
            flush=True,
        )
    only_here = failed(results["pyasync"]) - failed(results["asyncio"])
    ok = bool(results["pyasync"]) and results["pyasync"].keys() == results["asyncio"].keys()
    if not ok:
        lost = sorted(results["asyncio"].keys() ^ results["pyasync"].keys())
        print("    not run on both:", *lost[:20], sep="\n    ")
    for test in sorted(only_here):
        reason = next((why for part, why in EXPLAINED.get(name, {}).items() if part in test), None)
        if reason is None:
            alone = [*SUITES[name], test]
            again, control = (outcomes(name, loop, alone, limit) for loop in results)
            if not failed(again):
                reason = "passes when it is run again, alone"
            elif failed(control):
                reason = "asyncio fails too when it is run again, alone"
        print(f"    {test}: {reason or 'FAILS'}", flush=True)
        ok = ok and reason is not None
    print(f"    ({time.monotonic() - start:.0f} s)", flush=True)
    return ok


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--limit", type=float, default=1800, help="seconds for a suite")
    parser.add_argument("suite", nargs="?", choices=SUITES)
    parser.add_argument("words", nargs=argparse.REMAINDER, help="for pytest")
    options = parser.parse_args()
    names = [options.suite] if options.suite else list(SUITES)
    SOURCES.mkdir(parents=True, exist_ok=True)
    results = [compare(name, options.words, options.limit) for name in names]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
