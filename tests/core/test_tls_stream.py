"""TLS of the core: signal handlers that write in between."""

import pytest
from interrupts import each_line
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


@pytest.mark.parametrize("size", [10, 9000], ids=["gathered", "at_once"])
def test_a_handler_may_write_at_any_line_of_a_write(run, size):
    """Whole writes arrive, those of the application in their order; no write raises."""

    def scenario():
        received, clients, events = bytearray(), [], []

        def read(stream, data):
            received.extend(data)

        def ended(event):
            events.append(event)
            server.close()

        def connected(client):
            clients.append(client)
            for letter in b"abc":
                client.write(bytes([letter]) * size)
            client.write(b"end")
            client.close()

        def start():
            nonlocal server
            server = pyasync.tcp_ssl_server(
                "127.0.0.1", 0, read, ssl_context=SERVER(), event_cb=ended
            )
            pyasync.tcp_ssl_connect(
                "127.0.0.1",
                server.address[1],
                print,
                ssl_context=CLIENT(),
                server_hostname="localhost",
                connect_cb=connected,
            )

        def handler():
            if clients and not clients[0].closed:
                clients[0].write(b"S" * 9000)

        scenario.handler = handler
        server = None
        run(start)
        assert [type(event) for event in events] == [pyasync.SocketEOF]
        written = b"".join(bytes([letter]) * size for letter in b"abc") + b"end"
        assert received.replace(b"S", b"") == written
        assert received.count(b"S") in (0, 9000)
        if b"S" in received:
            assert b"S" * 9000 in received

    each_line(scenario, lambda: scenario.handler(), *WRITING)
