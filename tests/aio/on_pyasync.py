"""Makes every loop of a program pyasync's, also one that the program makes by asyncio's classes.

A plugin of pytest: `pytest -p on_pyasync`. If the environment has PYASYNC_OUTCOMES, the path of a
file, each test's outcome is written to it, a JSON list a line.
"""

import asyncio
import json
import multiprocessing
import os


def use_pyasync():
    """Let every loop be pyasync's, also after set_event_loop_policy(None)."""
    import pyasync.aio

    asyncio.SelectorEventLoop = asyncio.DefaultEventLoop = pyasync.aio.EventLoop
    asyncio.unix_events._UnixDefaultEventLoopPolicy._loop_factory = pyasync.aio.EventLoop
    for name in ("SelectorEventLoop", "EventLoop"):
        if hasattr(asyncio, name):
            setattr(asyncio, name, pyasync.aio.EventLoop)


def pytest_configure(config):
    if os.environ.get("PYASYNC_LOOP") != "asyncio":
        use_pyasync()


def pytest_runtest_logreport(report):
    path = os.environ.get("PYASYNC_OUTCOMES")
    if path and (report.when == "call" or report.outcome != "passed"):
        with open(path, "a") as file:
            file.write(json.dumps([report.nodeid, report.outcome]) + "\n")


def pytest_unconfigure(config):
    for process in multiprocessing.active_children():
        process.kill()  # a failed test has left it, and Python would wait for its end
