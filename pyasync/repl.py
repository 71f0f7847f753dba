"""The interactive prompt: ``python -m pyasync``.

The main thread reads lines, as in any Python prompt, and the event loop runs in a thread of its
own meanwhile. To run a statement the main thread borrows the loop, whose own thread waits in a
callback until it is returned. So a statement is like a callback of the loop, nothing else runs at
the same time, and Ctrl-C interrupts it like any statement of the main thread. (PyPy's line editor
may lose a Ctrl-C that is pressed at the very moment at which a line ends: press it again.)
"""

from __future__ import annotations

import argparse
import code
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread, get_ident
from types import CodeType
from typing import Any

import pyasync
from pyasync.errors import EventLoopNotRunning
from pyasync.loop import Loop, current, exit_event_loop, get_loop, start_event_loop

#: The end of the prompt waits this long for the end of the loop, in seconds: longer than the loop
#: waits for its threads.
CLOSE_WAIT = 3.0


class LoopThread:
    """An event loop in a thread of its own, which another thread may borrow."""

    def __init__(self) -> None:
        self.loop: Loop | None = None
        self._exit: SystemExit | None = None
        self._started = Event()
        # A daemon, because a callback that does not return must not keep the program from ending.
        self._thread = Thread(target=self._run, name="pyasync event loop", daemon=True)
        self._thread.start()
        self._started.wait()

    def _run(self) -> None:
        try:
            start_event_loop(self._start, catch_app_errors=_show)
        except SystemExit as error:
            self._exit = error
        finally:
            self._started.set()

    def _start(self) -> None:
        self.loop = get_loop()
        self.loop.keep_alive(self)
        self._started.set()

    @contextmanager
    def borrow(self) -> Iterator[None]:
        """Let the loop be this thread's, while its own waits. Raises `EventLoopNotRunning`."""
        loop = self.loop
        assert loop is not None
        lent, returned = Event(), Event()

        def lend() -> None:
            lent.set()
            returned.wait()  # returns at once if the borrower has given up

        try:
            loop.call_threadsafe(lend)
            while not lent.wait(0.1):  # the loop may end with the call still queued
                if not self._thread.is_alive():
                    raise EventLoopNotRunning("the event loop has ended")
            owner = loop.thread
            try:
                loop.thread, current.loop = get_ident(), loop
                yield
            finally:
                current.loop = None
                # None: the statement has forked, this is the child, and the loop is the parent's.
                if loop.thread is not None:
                    loop.thread = owner
        finally:
            try:
                returned.set()
            finally:
                returned.set()  # Ctrl-C in the first must not keep the loop's thread waiting

    def raise_exit(self) -> None:
        """Wait for the loop's end; if a callback has ended it by a `SystemExit`, raise that."""
        self._thread.join(CLOSE_WAIT)
        if self._exit is not None:
            raise self._exit from None

    def close(self) -> None:
        """End the loop. A callback that does not return is left to run."""
        assert self.loop is not None
        try:
            self.loop.call_threadsafe(exit_event_loop)
        except EventLoopNotRunning:
            pass
        self._thread.join(CLOSE_WAIT)
        if self._thread.is_alive():
            print("a callback of the event loop still runs: it is left", file=sys.stderr)


class Console(code.InteractiveConsole):
    """A prompt that runs each statement in an event loop."""

    def __init__(self) -> None:
        public = {name: getattr(pyasync, name) for name in pyasync.__all__}
        self.names: dict[str, Any] = {"__name__": "__console__", "pyasync": pyasync, **public}
        super().__init__(self.names)
        self._loop = LoopThread()

    def runcode(self, code: CodeType) -> None:
        while True:
            try:
                with self._loop.borrow():
                    super().runcode(code)  # shows the statement's exception itself
                return
            except EventLoopNotRunning:
                self._loop.raise_exit()
                self.write("the event loop has ended: a new one runs\n")
                self._loop = LoopThread()

    def raw_input(self, prompt: str = "") -> str:
        try:
            return super().raw_input(prompt)
        except ValueError:
            if sys.stdin.closed:  # exit() in a callback closes it
                self._loop.raise_exit()
            raise

    def close(self) -> None:
        self._loop.close()


def _show(error: Exception) -> None:
    sys.excepthook(type(error), error, error.__traceback__)


def _set_up_readline(names: dict[str, Any]) -> None:
    """Give the prompt its history and completion, if there is a readline module."""
    try:
        import readline
        import rlcompleter
    except ImportError:
        return
    # Python calls this hook for its own prompt: it binds the Tab key, reads the history, and saves
    # it at the end.
    hook = getattr(sys, "__interactivehook__", None)
    if hook is not None:
        # Without this, Python 3.13 would save the history of its new prompt, not of readline.
        before = os.environ.get("PYTHON_BASIC_REPL")
        os.environ["PYTHON_BASIC_REPL"] = "1"
        try:
            hook()
        finally:
            if before is None:
                del os.environ["PYTHON_BASIC_REPL"]
            else:
                os.environ["PYTHON_BASIC_REPL"] = before
    readline.set_completer(rlcompleter.Completer(names).complete)


def main() -> None:
    """Run the prompt until its end: Ctrl-D, or ``exit()``."""
    parser = argparse.ArgumentParser(
        prog="python -m pyasync",
        description="An interactive prompt with an event loop running under it. The names of "
        "pyasync are imported; each statement runs in the loop, as a callback does.",
    )
    parser.add_argument("--version", action="version", version=pyasync.__version__)
    parser.parse_args()
    console = Console()
    try:
        _set_up_readline(console.names)
        console.interact(
            banner=f"pyasync {pyasync.__version__} with libuv {pyasync.libuv_version()} on "
            f"{platform.python_implementation()} {platform.python_version()}. An event loop runs "
            "while you type; Ctrl-D ends it.",
            exitmsg="",
        )
    finally:
        console.close()
