"""What signal handlers and the garbage collector's __del__ change in the middle of a change."""

import contextlib
import gc
import io
import socket
import time

import pytest
from interrupts import each_line
from peers import nothing, small_buffers, when
from tls_peers import CLIENT, SERVER

import pyasync
from pyasync._core import connecting
from pyasync._core.connecting import Connector
from pyasync._core.engine import Engine
from pyasync._core.handles import PythonHandle
from pyasync._core.stream import Stream, call_blocked_callback, pop_first
from pyasync._core.stream_extras import Extras
from pyasync._core.tls_pump import _fits, _next_write
from pyasync._core.tls_stream import TlsStream
from pyasync._core.wakeup import Wakeup

V4 = socket.AF_INET


def at_each_line(run, scenario, *functions):
    """Run scenario(handle): what it gives to handle(fn) is called at each line in turn."""

    def once():
        once.handler = None
        with run():
            scenario(handle)

    def handle(fn):
        once.handler = fn

    def act():
        if once.handler is not None:
            once.handler()

    each_line(once, act, *functions)


def pair(connected, *, read_cb=None, **options):
    """Connect a client; connected(client, accepted) is called when both sides have a socket."""
    sides = {}

    def report(name):
        def connect_cb(sock):
            sides[name] = sock
            if len(sides) == 2:
                server.close()
                connected(sides["client"], sides["server"])

        return connect_cb

    server = pyasync.tcp_server(
        "127.0.0.1", 0, read_cb or nothing, connect_cb=report("server"), event_cb=nothing
    )
    pyasync.tcp_connect(
        "127.0.0.1", server.address[1], nothing, connect_cb=report("client"), event_cb=nothing,
        **options,
    )  # fmt: skip


def close_all(*sockets):
    for sock in sockets:
        sock.close(force=True)


def test_a_handler_may_close_a_stream_while_its_deferred_writes_are_sent(run):
    def scenario(handle):
        def connected(client, accepted):
            client.disable(write=True)
            for _ in range(3):
                client.write(b"deferred")
            handle(lambda: client.close(force=True))
            with contextlib.suppress(pyasync.SocketClosed):
                client.enable(write=True)
            handle(None)
            close_all(client, accepted)

        pair(connected)

    at_each_line(run, scenario, Stream.enable, Stream._stop_deferring, Stream._flush_deferred)


def test_a_handler_may_close_a_stream_while_its_paused_input_is_delivered(run):
    def scenario(handle):
        def connected(client, accepted):
            accepted.disable(read=True)
            extras = accepted._need_extras()
            extras.paused_input.extend([b"one", b"two"])
            accepted.enable(read=True)
            handle(lambda: accepted.close())
            pyasync.call_soon(lambda: (handle(None), close_all(client, accepted)))

        pair(connected)

    at_each_line(run, scenario, Stream._deliver_paused_input, pop_first)


def test_a_handler_may_change_the_time_limits_while_they_are_changed(run):
    def scenario(handle):
        def connected(client, accepted):
            client.set_timeouts(50, 50)
            handle(lambda: client.closed or client.set_timeouts(None, None))
            client.set_timeouts(60, 60)
            client._on_read(b"data", 0, 4)
            client.close()
            handle(None)
            accepted.close()

        pair(connected, read_timeout=40)

    at_each_line(
        run, scenario, Stream._stop_read_timeout, Stream._stop_write_timeout, Stream._on_read,
        Extras.stop_read_timeout, Extras.stop_write_timeout, Extras.stop_timeouts, Extras.read_now,
        Extras.stop_connect_timer, Extras.stop_linger,
    )  # fmt: skip


def test_a_handler_may_close_a_stream_whose_blocked_write_is_done(run):
    def scenario(handle):
        def connected(client, accepted):
            small_buffers(client)
            client.write(bytes(4 << 20), write_cb=nothing)
            handle(lambda: client.closed or client.close(force=True))
            pyasync.delay(lambda: None, time=0).unref()
            watch(client, accepted)

        def watch(client, accepted):
            if client.closed or not client.write_queue_size:
                handle(None)
                close_all(client, accepted)
            else:
                pyasync.call_soon(lambda: watch(client, accepted))

        pair(connected)

    at_each_line(run, scenario, Stream._on_written, call_blocked_callback)


def test_a_handler_may_close_a_tls_stream_at_any_line_of_a_write(run):
    def scenario(handle):
        def connected(client):
            handle(lambda: client.closed or client.close(force=True))
            with contextlib.suppress(pyasync.SocketClosed):
                for size in (10, 10, 10, 9000):
                    client.write(bytes(size))
            pyasync.call_soon(lambda: (handle(None), client.close(force=True)))

        server = pyasync.tcp_ssl_server(
            "127.0.0.1", 0, nothing, ssl_context=SERVER(), event_cb=lambda event: server.close()
        )
        pyasync.tcp_ssl_connect(
            "127.0.0.1", server.address[1], nothing, ssl_context=CLIENT(),
            server_hostname="localhost", connect_cb=connected,
        )  # fmt: skip

    at_each_line(
        run, scenario, TlsStream._send_some, TlsStream._encrypt, TlsStream._may_send,
        _fits, _next_write,
    )  # fmt: skip


def test_a_handler_may_close_a_socket_at_any_line_of_connecting(run, monkeypatch):
    class Found:
        """A lookup that has found an address at which nobody listens, and one."""

        def __init__(self, loop, host, family, found_cb, event_cb):
            pyasync.delay(lambda: found_cb([(V4, "127.0.0.9"), (V4, "127.0.0.1")]), time=0)

        def close(self):
            pass

    def scenario(handle):
        def end(*args):
            handle(None)
            client.close()
            server.close()

        server = pyasync.tcp_server("127.0.0.1", 0, nothing, event_cb=nothing)
        client = pyasync.tcp_connect(
            "some.test", server.address[1], nothing, connect_cb=end, event_cb=end
        )
        handle(lambda: (client.close(), pyasync.call_soon(server.close)))

    monkeypatch.setattr(connecting, "Lookup", Found)
    at_each_line(run, scenario, Connector._try_next, Connector.on_connected, Connector.close)


@pytest.mark.parametrize("action", ["close", "unref", "other"])
def test_a_handler_may_change_what_keeps_the_loop_running(run, action):
    def scenario(handle):
        notifiers = [pyasync.make_notifier(nothing) for _ in range(2)]

        def act():
            if action == "other":
                pyasync.make_notifier(nothing).free()
            elif not notifiers[0].freed:
                getattr(notifiers[0], action)()

        handle(act)
        with contextlib.suppress(pyasync.NotifierFreed):
            notifiers[0].unref()
            notifiers[0].ref()
        for notifier in notifiers:
            notifier.free()
        handle(None)
        assert pyasync.current_loop()._wakeup.holds == {}

    at_each_line(
        run, scenario, PythonHandle.close, PythonHandle.ref, PythonHandle.unref,
        Wakeup.keep_alive, Wakeup.let_end,
    )  # fmt: skip


def test_a_handler_may_close_and_begin_work_while_threads_are_changed(run):
    def scenario(handle):
        pyasync.set_max_workers(1)
        works = [pyasync.work(lambda: time.sleep(0.001), called.append) for _ in range(3)]

        def act():
            works[1].close()
            works.append(pyasync.work(nothing, called.append))

        handle(act)
        pyasync.set_max_workers(2)
        handle(None)

    called = []
    at_each_line(run, scenario, pyasync.set_max_workers)
    assert called


def test_a_handler_may_send_what_is_pending_while_it_is_counted(run):
    def scenario(handle):
        def connected(client, accepted):
            for _ in range(3):
                client.write(b"pending")
            handle(lambda: client.write(b"now", force=True))
            size = client.write_queue_size
            handle(None)
            assert size in (0, 21)
            close_all(client, accepted)

        pair(connected)

    at_each_line(run, scenario, Engine.pending_size)


def test_handles_may_be_closed_and_opened_while_they_are_listed(run, monkeypatch):
    """As by a __del__: any line may make an object, and so start the collector."""
    notifiers = []

    def change(handle):
        notifiers.append(pyasync.make_notifier(nothing))
        notifiers.pop(0).free()
        return True

    monkeypatch.setattr(pyasync.Notifier, "_active", property(change))
    with run():
        notifiers += [pyasync.make_notifier(nothing) for _ in range(10)]
        pyasync.dump_event_loop_status(io.StringIO())
        for notifier in notifiers:
            notifier.free()


class InACycle:
    """Only the collector frees it, and then it does something."""

    def __init__(self, act):
        self.me = self
        self.act = act

    def __del__(self):
        self.act()


@pytest.mark.skipif(not hasattr(gc, "set_threshold"), reason="PyPy collects when it likes")
def test_the_collector_may_close_write_and_disarm_anywhere(run):
    """With a collection at each object that is made."""
    received, left = bytearray(), 300

    def connected(client, accepted):
        nonlocal left
        left -= 1
        for handle in (pyasync.make_notifier(nothing), pyasync.delay(nothing, time=100)):
            InACycle(handle.free)
        InACycle(lambda: client.closed or client.write(b"x", force=left % 2 == 0))
        client.write(b"x")
        assert client.write_queue_size >= 0
        client.set_timeouts(left + 1, left + 1)
        if left % 10 == 0:
            pyasync.dump_event_loop_status(io.StringIO())
        if left:
            pyasync.call_soon(lambda: connected(client, accepted))
        else:
            pyasync.call_soon(lambda: collect(client, accepted))

    def collect(client, accepted):
        gc.collect()
        # The last are written only now: where they have not arrived, a close would discard them.
        when(lambda: len(received) == 600, lambda: end(client, accepted))

    def end(client, accepted):
        InACycle(accepted.close)
        client.close()
        pyasync.call_soon(gc.collect)

    before = gc.get_threshold()
    try:
        with run(limit=60):
            pair(connected, read_cb=lambda sock, data: received.extend(data))
            gc.set_threshold(1)
    finally:
        gc.set_threshold(*before)
    assert received == b"x" * 600
