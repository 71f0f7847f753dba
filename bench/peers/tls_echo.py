"""An echo server over TLS, for bench/tls.py.

    python bench/peers/tls_echo.py KIND CERTIFICATE KEY

KIND is pyasync, uvloop, asyncio, or bare: sockets, each with a bare SSLObject and its two BIOs.
"""

import asyncio
import selectors
import signal
import socket
import ssl
import sys

HOST = "127.0.0.1"


def listening(port):
    print(f"listening on {HOST}:{port}", flush=True)


def serve_pyasync(context):
    import pyasync

    def echo(socket, data):
        socket.write(data)

    def start():
        server = pyasync.tcp_ssl_server(
            HOST, 0, echo, ssl_context=context, event_cb=lambda event: None
        )
        listening(server.address[1])

    pyasync.start_event_loop(start)


class Echo(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.transport.write(data)


async def serve_asyncio(context):
    server = await asyncio.get_running_loop().create_server(Echo, HOST, 0, ssl=context)
    listening(server.sockets[0].getsockname()[1])
    await server.serve_forever()


def serve_bare(context):
    """Hold connections: only what a handshake needs, and what OpenSSL keeps after it."""
    selector = selectors.DefaultSelector()
    listener = socket.create_server((HOST, 0), backlog=1000)
    selector.register(listener, selectors.EVENT_READ)
    listening(listener.getsockname()[1])
    while True:
        for key, _ in selector.select():
            if key.fileobj is listener:
                sock, _ = listener.accept()
                incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
                tls = context.wrap_bio(incoming, outgoing, server_side=True)
                selector.register(sock, selectors.EVENT_READ, (tls, incoming, outgoing))
                continue
            tls, incoming, outgoing = key.data
            data = key.fileobj.recv(1 << 16)
            if not data:
                selector.unregister(key.fileobj)
                key.fileobj.close()
                continue
            incoming.write(data)
            try:
                tls.do_handshake()
                while incoming.pending:
                    tls.write(tls.read(16384))
            except ssl.SSLWantReadError:
                pass
            key.fileobj.send(outgoing.read())


def main():
    kind, certificate, key = sys.argv[1:]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    if kind == "pyasync":
        serve_pyasync(context)
    elif kind == "bare":
        serve_bare(context)
    elif kind == "uvloop":
        import uvloop

        loop = uvloop.new_event_loop()
        loop.run_until_complete(serve_asyncio(context))
    else:
        asyncio.run(serve_asyncio(context))


if __name__ == "__main__":
    main()
