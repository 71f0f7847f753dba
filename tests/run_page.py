"""Runs the Python blocks of a page of the documentation, in order and in one namespace.

    python tests/run_page.py docs/guides/streams.md

A block that serves without end gets its visitor, if `VISITORS` has one, and then Ctrl-C as soon as
its loop has nothing more to do. What a block prints must be what a block of text after it says,
with ``...`` for what differs from run to run. Ports become free ones.
"""

import contextlib
import doctest
import io
import logging
import os
import random
import re
import signal
import socket
import sys
import threading
from pathlib import Path

import pyasync.loop

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"^```python\n(.*?)^```$(?:\n\n```text\n(.*?)^```$)?", re.DOTALL | re.MULTILINE)
PORT = re.compile(r"\b(7\d\d\d|8080|9009|9464)\b")
#: A loop without an event for so long, in seconds, has nothing more to do: where a block need not
#: print anything, and where it must.
QUIET = 0.4, 20


def talk(port, data, answer):
    """Send data to a server of the page, and wait until the answer has come."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as sock:
        sock.sendall(data)
        received = b""
        while answer not in received:
            more = sock.recv(65536)
            assert more, f"the server has said only {received}"
            received += more


def alike(printed, expected):
    return doctest.OutputChecker().check_output(expected, printed, doctest.ELLIPSIS)


#: By page and some words of a block: the port, what a client sends, and what it must get.
VISITORS = {
    "docs/index.md": {"on_data": ("7000", b"hello\n", b"HELLO\n")},
    "docs/tutorial/first-programs.md": {
        "upper()": ("7000", b"hello\n", b"HELLO\n"),
        "on_pressure": ("7001", b"hello\n", b"hello\n"),
    },
    "docs/tutorial/chat.md": {"members": ("7002", b"", b"welcome, there are 1\n")},
}


class Runner:
    def __init__(self, page):
        self.page = page
        self.namespace = {"__name__": "__main__"}
        self.ports = {}
        self.loop = None
        self.running = False
        enter = pyasync.loop.Loop.enter

        def noted(loop):
            enter(loop)
            self.loop = loop

        pyasync.loop.Loop.enter = noted

    def free_port(self, found):
        """Return a free port that the system gives to no other program: from below its range."""
        candidates = iter(random.sample(range(10_000, 32_768), 100))
        while found[0] not in self.ports:
            address = "127.0.0.1", next(candidates)
            with contextlib.suppress(OSError), socket.create_server(address):
                self.ports[found[0]] = str(address[1])
        return self.ports[found[0]]

    def interrupt(self, signo, frame):
        """End a block. Ctrl-C may come when the block has ended by itself: then it does nothing."""
        if self.running:
            self.running = False
            raise KeyboardInterrupt

    def run(self):
        text = self.page.read_text()
        for block in BLOCK.finditer(text):
            code, expected = (part and PORT.sub(self.free_port, part) for part in block.groups())
            line = text.count("\n", 0, block.start(1))
            compiled = compile("\n" * line + code, str(self.page), "exec")
            printed = self.run_block(compiled, code, expected)
            if expected is not None:
                assert alike(printed, expected), f"line {line} prints\n{printed}"

    def run_block(self, compiled, code, expected):
        self.loop, over, failures = None, threading.Event(), []
        self.running = True
        printed = io.StringIO()
        done = expected and (lambda: alike(printed.getvalue(), expected))
        watch = threading.Thread(target=self.watch, args=(code, over, done, failures))
        logging.basicConfig(stream=printed, format="%(message)s", force=True)
        watch.start()
        try:
            with contextlib.redirect_stdout(printed):
                exec(compiled, self.namespace)
                for name in re.findall(r"^def (test_\w+)", code, re.MULTILINE):
                    self.namespace[name]()
            self.running = False
        except KeyboardInterrupt:
            pass
        finally:
            over.set()
            watch.join()
        assert not failures, failures
        return printed.getvalue()

    def watch(self, code, over, done, failures):
        """Visit the server of a block, and end it when it rests, or has printed what it must."""
        while self.loop is None:
            if over.wait(0.01):
                return
        for words, visit in VISITORS.get(str(self.page.relative_to(ROOT)), {}).items():
            if words in code:
                try:
                    talk(int(self.ports[visit[0]]), *visit[1:])
                except BaseException as error:
                    failures.append(error)
        seen, since = None, 0.0
        while not over.wait(0.1):
            events = self.loop.stats().events
            since = since + 0.1 if events == seen else 0.0
            seen = events
            if since >= QUIET[done is not None] or (done and done()):
                os.kill(os.getpid(), signal.SIGINT)
                return


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "examples"))
    runner = Runner(ROOT / sys.argv[1])
    signal.signal(signal.SIGINT, runner.interrupt)
    runner.run()
