"""TLS of the core: signal handlers that write, or raise, in between."""

import contextlib

import pytest
from interrupts import Interrupt, each_line, raise_interrupt
from tls_peers import CLIENT, SERVER

import pyasync
from pyasync._core.tls_stream import TlsStream

WRITING = [
    TlsStream._defer_write,
    TlsStream._may_send,
    TlsStream._encrypt_soon,
    TlsStream._send,
    TlsStream._send_some,
]


def open_connection(received, connected, told, client_event_cb=None):
    """Connect a client and a server, which closes when it is told of the connection's end."""

    def ended(event):
        told.append(event)
        server.close()

    server = pyasync.tcp_ssl_server(
        "127.0.0.1", 0, lambda stream, data: received.extend(data), ssl_context=SERVER(),
        event_cb=ended,
    )  # fmt: skip
    pyasync.tcp_ssl_connect(
        *server.address, print, ssl_context=CLIENT(), connect_cb=connected,
        event_cb=client_event_cb,
    )  # fmt: skip


@pytest.mark.parametrize("size", [10, 9000], ids=["gathered", "at_once"])
def test_a_handler_may_write_at_any_line_of_a_write(run, size):
    """Whole writes arrive, those of the application in their order; no write raises."""

    def scenario():
        received, clients, events, handled = bytearray(), [], [], []

        def connected(client):
            clients.append(client)
            for letter in b"abc":
                client.write(bytes([letter]) * size)
            client.write(b"end")
            client.close()

        def handler():
            if clients and not clients[0].closed:
                clients[0].write(b"S" * 9000)
                handled.append(1)

        scenario.handler = handler
        with run():
            open_connection(received, connected, events)
        assert [type(event) for event in events] == [pyasync.SocketEOF]
        written = b"".join(bytes([letter]) * size for letter in b"abc") + b"end"
        assert received.replace(b"S", b"") == written
        assert received.count(b"S") == 9000 * len(handled)
        if b"S" in received:
            assert b"S" * 9000 in received

    each_line(scenario, lambda: scenario.handler(), *WRITING)


def test_an_exception_at_any_line_of_a_flush_leaves_a_connection_that_sends_or_says_why():
    """What is written after it arrives, or the connection is closed with an error."""

    def scenario():
        received, errors, told = bytearray(), [], []

        def connected(client):
            with contextlib.suppress(Interrupt):
                client.write(b"first")
            pyasync.delay(lambda: client.closed or client.write(b"second"), time=0.01)
            pyasync.delay(client.close, time=0.02)

        with pyasync.event_loop(catch_app_errors=lambda error: None):
            open_connection(received, connected, told, errors.append)
        assert bytes(received) in (b"firstsecond", b"second") or any(
            isinstance(event, pyasync.EventError) for event in [*errors, *told]
        )

    each_line(scenario, raise_interrupt, TlsStream._flush, TlsStream._encrypt_soon)
