"""Headless Chromium, told what to do over a pair of pipes (the Chrome DevTools Protocol)."""

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time

PROGRAM = shutil.which("chromium-headless-shell") or shutil.which("chromium")
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--hide-scrollbars", "--remote-debugging-pipe"),
]
# Chromium reads messages from descriptor 3, and writes them to 4: JSON with a zero byte behind.
LAUNCHER = """
import fcntl, os, sys
receive, send = (fcntl.fcntl(int(fd), fcntl.F_DUPFD, 10) for fd in sys.argv[1:3])
os.dup2(receive, 3)
os.dup2(send, 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
PATIENCE = 40  # seconds


class Page:
    """One page in a browser of its own. `complaints` has what went wrong in it."""

    def __init__(self, send, receive):
        self._send = send
        self._receive = receive
        self._input = b""
        self._number = 0
        self._session = None
        self.complaints = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = session["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method, **parameters):
        """Call a method of the protocol, and return its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._send, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next_message()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]
            if answer.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
                self.complaints.append(answer["params"])
            if answer.get("method") == "Runtime.consoleAPICalled":
                self.complaints.append(answer["params"])

    def _next_message(self):
        while b"\0" not in self._input:
            ready, _, _ = select.select([self._receive], [], [], PATIENCE)
            data = os.read(self._receive, 1 << 16) if ready else b""
            assert data, "the browser has said no more"
            self._input += data
        message, _, self._input = self._input.partition(b"\0")
        return json.loads(message)

    def open(self, url, *, width=1240, height=900, scheme="light"):
        """Open an address, in a window of a size, in a light or a dark scheme."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            **{"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600},
        )
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", features=features)
        self.call("Page.navigate", url=url)
        self.wait_for(f"location.href === {url!r} && document.readyState === 'complete'")

    def evaluate(self, expression):
        """Return the value of an expression in JavaScript."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait_for(self, expression):
        """Wait until an expression is true in the page, and return its value."""
        deadline = time.monotonic() + PATIENCE
        while True:
            value = self.evaluate(expression)
            if value:
                return value
            assert time.monotonic() < deadline, f"never true: {expression}"
            time.sleep(0.05)

    def point(self, x, y):
        """Move the mouse to a place in the window."""
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def screenshot(self):
        """Return a picture of the whole page, as a PNG file."""
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        return base64.b64decode(data["data"])


@contextlib.contextmanager
def page():
    """Give a Page, and end its browser after the block."""
    with contextlib.ExitStack() as stack:
        profile = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
        to_browser, from_us = os.pipe()
        to_us, from_browser = os.pipe()
        for descriptor in (from_us, to_us):
            stack.callback(os.close, descriptor)
        try:
            process = subprocess.Popen(
                [
                    *(sys.executable, "-c", LAUNCHER, str(to_browser), str(from_browser)),
                    *(PROGRAM, *FLAGS, f"--user-data-dir={profile}"),
                ],
                pass_fds=(to_browser, from_browser),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                # Chromium brings an allocator that the sanitizers' library does not suit.
                env={name: value for name, value in os.environ.items() if name != "LD_PRELOAD"},
            )
        finally:
            os.close(to_browser)
            os.close(from_browser)
        stack.callback(process.wait)
        stack.callback(process.terminate)
        yield Page(from_us, to_us)
