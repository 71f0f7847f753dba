"""Runs CPython's own tests of asyncio, with pyasync's loop in place of asyncio's.

    python tests/aio/cpython.py                   all modules, and a table of the results
    python tests/aio/cpython.py test_events       one module; more words go to unittest
    python tests/aio/cpython.py --asyncio ...     the same with asyncio's own loop, to compare

The interpreter must have the package test.test_asyncio; Debian leaves it out of python3, and has it
in libpython3-testsuite. Each module runs in a process of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import re
import subprocess
import sys
import time
import unittest

from on_pyasync import use_pyasync

#: Modules that make event loops. Others test what has no loop (queues, locks by mocks, Windows).
MODULES = [
    "test_base_events",
    "test_buffered_proto",
    "test_context",
    "test_eager_task_factory",
    "test_ensurefuture",
    "test_events",
    "test_free_threading",
    "test_futures",
    "test_futures2",
    "test_graph",
    "test_locks",
    "test_pep492",
    "test_protocols",
    "test_queues",
    "test_runners",
    "test_sendfile",
    "test_server",
    "test_server_context",
    "test_sock_lowlevel",
    "test_ssl",
    "test_sslproto",
    "test_staggered",
    "test_streams",
    "test_subprocess",
    "test_taskgroups",
    "test_tasks",
    "test_threads",
    "test_timeouts",
    "test_transports",
    "test_unix_events",
    "test_waitfor",
]

_WAKEUP_FD = "a mock of set_wakeup_fd fails in the main thread, where Python's cannot"

#: Ends of the names of tests that are not run with pyasync's loop, and the reason. They look at
#: parts of asyncio's own implementation that this loop has not got, and at no behaviour of a loop.
NOT_RUN = {
    "SelectorEventLoopSignalTests.test_add_signal_handler_setup_error": _WAKEUP_FD,
    "SelectorEventLoopSignalTests.test_add_signal_handler_install_error": _WAKEUP_FD,
    "SelectorEventLoopSignalTests.test_remove_signal_handler_cleanup_error": _WAKEUP_FD,
    # Of 3.14:
    "test_remote_shutdown_receives_trailing_data_on_slow_socket": "replaces a transport's `write`",
}


class Signals:
    """The module `signal` as asyncio sees it: CPython's tests put a mock in its place there."""

    def __init__(self):
        self.wakeup_fd = -1

    def __getattr__(self, name):
        return getattr(asyncio.unix_events.signal, name)

    def set_wakeup_fd(self, fd, **options):
        """Return the descriptor before, where a mock would return a mock."""
        found = asyncio.unix_events.signal.set_wakeup_fd(fd, **options)
        before, self.wakeup_fd = self.wakeup_fd, fd
        return found if isinstance(found, int) else before


def append_deferred(transport, data):
    """Write to a TLS transport, but do not send: CPython's tests of TLS do so."""
    transport._extras.deferred.append((data, None))
    transport._extras.deferred_size += len(data)


def lead_to_pyasync() -> None:
    """Let what CPython's tests replace or use in asyncio's implementation be pyasync's."""
    import pyasync._core.wakeup
    import pyasync.aio.loop
    from pyasync.aio.tls import SSLTransport

    pyasync.aio.loop.signal = pyasync._core.wakeup.signal = Signals()  # type: ignore
    SSLTransport._test__append_write_backlog = append_deferred  # type: ignore
    SSLTransport._app_reading_paused = SSLTransport._paused  # type: ignore

    protocol = asyncio.sslproto.SSLProtocol
    ours, theirs = SSLTransport.connection_made, protocol.connection_made

    def connection_made(self, transport):
        (ours if isinstance(self, SSLTransport) else theirs)(self, transport)

    protocol.connection_made = connection_made
    SSLTransport.connection_made = lambda *args: protocol.connection_made(*args)


def selected(suite, pattern=None):
    """Yield the tests of a suite that are to be run."""
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            yield from selected(test)
        elif not test.id().endswith(tuple(NOT_RUN)):
            yield test


def run_module(name: str, words: list[str], own: bool) -> int:
    if not own:
        use_pyasync()
        lead_to_pyasync()
    names = [f"test.test_asyncio.{name}"] if not words else None
    loader = unittest.TestLoader()
    if words and words[0].startswith("-k"):
        loader.testNamePatterns = [f"*{word}*" for word in words if word != "-k"]
        names = [f"test.test_asyncio.{name}"]
    elif words:
        names = [f"test.test_asyncio.{name}.{word}" for word in words]
    suite = loader.loadTestsFromNames(names)
    tests = unittest.TestSuite([_module_suite(suite, own)])
    result = unittest.TextTestRunner(verbosity=1 + bool(words)).run(tests)
    return not result.wasSuccessful()


def _module_suite(suite, own):
    return suite if own else unittest.TestSuite(selected(suite))


RESULT = re.compile(r"Ran (\d+) tests? in .*\n\n(OK|FAILED)(?: \((.*)\))?")
FAILED = re.compile(r"^(?:FAIL|ERROR): (.*)$", re.M)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--asyncio", action="store_true", help="run them with asyncio's own loop")
    parser.add_argument("--limit", type=float, default=900, help="seconds for a module")
    parser.add_argument("module", nargs="?")
    parser.add_argument("words", nargs=argparse.REMAINDER, help="test names, or -k PATTERN")
    options = parser.parse_args()
    if importlib.util.find_spec("test.test_asyncio") is None:
        print("this Python has no test.test_asyncio", file=sys.stderr)
        return 2
    if options.module and importlib.util.find_spec(f"test.test_asyncio.{options.module}") is None:
        parser.error(f"there is no module test.test_asyncio.{options.module}")
    if options.module:
        return run_module(options.module, options.words, options.asyncio)
    status = 0
    for name in MODULES:
        if importlib.util.find_spec(f"test.test_asyncio.{name}") is None:
            continue
        words = [sys.executable, __file__, *["--asyncio"][: options.asyncio], name]
        start = time.monotonic()
        try:
            done = subprocess.run(words, capture_output=True, text=True, timeout=options.limit)
            output = done.stderr
        except subprocess.TimeoutExpired:
            output = ""
        found = RESULT.search(output)
        took = time.monotonic() - start
        if found is None:
            status = 1
            print(f"{name:<24} no result after {took:.0f} s", flush=True)
            print(output[-2000:])
            continue
        number, verdict, details = found.groups()
        print(f"{name:<24} {number:>4} {verdict} {details or ''} ({took:.0f} s)", flush=True)
        if verdict != "OK":
            status = 1
            print("    " + "\n    ".join(FAILED.findall(output)), flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
