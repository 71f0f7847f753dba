"""What the tests of the core share: an engine without a policy, and streams that only record."""

import contextlib
import socket

from pyasync._core.engine import Engine
from pyasync._core.stream import Stream
from pyasync._ffi import lib


class RecordingEngine(Engine):
    """An engine that keeps the errors of callbacks."""

    def __init__(self, **keywords):
        super().__init__(**keywords)
        self.errors = []

    def on_error(self, error, owner):
        self.errors.append(error)


class Options:
    """The least that the core asks of a stream's options."""

    pressure_cb = server = remote = tls = read_timeout = write_timeout = None
    allow_half_open = needs_begin = False
    linger = 2.0

    def __init__(self, loop, read_cb):
        self.loop = loop
        self.read_cb = read_cb

    def copy(self):
        return self


class RecordingStream(Stream):
    """A stream over one end of a socket pair, that keeps what it is told."""

    __slots__ = ("told",)

    def __init__(self, engine, sock, read_cb=None, *, kind=lib.PA_PIPE, read=True):
        self.told = []
        slot = lib.pa_open(engine.c, sock.detach(), kind, read)
        assert slot >= 0
        super().__init__(
            Options(engine, read_cb or (lambda self, data: self._report_data(data))), slot
        )
        engine.register(slot, self)

    def _report_data(self, data):
        self.told.append(data)

    def _report_end(self):
        self.told.append("end")

    def _report_error(self, error):
        self.told.append(error)

    def _report_closed(self):
        self.told.append("closed")


@contextlib.contextmanager
def entered(**keywords):
    """Give an engine that belongs to this thread; close it at the end."""
    engine = RecordingEngine(**keywords)
    try:
        engine.open()
        engine.enter()
        yield engine
        engine.leave()
    finally:
        try:
            engine.close()
        finally:
            engine.close()


@contextlib.contextmanager
def stream_and_peer(engine, read_cb=None):
    """Give a stream of the engine, and a plain socket that does not block, its peer."""
    ours, peer = socket.socketpair()
    ours.setblocking(False)
    peer.setblocking(False)
    with peer:
        yield RecordingStream(engine, ours, read_cb), peer


def step(engine, timeout=0):
    """Run one iteration."""
    engine.poll(timeout)
    engine.dispatch()
    engine.run_ready()


def steps(engine, until, most=1000):
    """Run iterations until the condition holds."""
    for _ in range(most):
        if until():
            return
        step(engine, 0.05)
    raise AssertionError("the condition does not hold")


def read_available(sock):
    """Return what has arrived."""
    data = b""
    with contextlib.suppress(BlockingIOError):
        while piece := sock.recv(1 << 18):
            data += piece
    return data
