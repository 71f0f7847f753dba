"""What the standard library needs at the least: what the others are measured by.

A connection over TLS is a plain socket, and an SSLObject with its two BIOs. Lines are read from a
blocking socket. See peer.py for the command line.
"""

import io
import selectors
import socket
import ssl
import sys

import peer


def tls_idle(certificate, key):
    context = peer.server_context(certificate, key)
    selector = selectors.DefaultSelector()
    listener = socket.create_server((peer.HOST, 0), backlog=1000)
    selector.register(listener, selectors.EVENT_READ)
    peer.listening(listener.getsockname())
    while True:
        for entry, _ in selector.select():
            if entry.fileobj is listener:
                sock, _ = listener.accept()
                incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
                tls = context.wrap_bio(incoming, outgoing, server_side=True)
                selector.register(sock, selectors.EVENT_READ, (tls, incoming, outgoing))
                continue
            tls, incoming, outgoing = entry.data
            data = entry.fileobj.recv(1 << 16)
            if not data:
                selector.unregister(entry.fileobj)
                entry.fileobj.close()
                continue
            incoming.write(data)
            try:
                tls.do_handshake()
                while incoming.pending:
                    tls.write(tls.read(16384))
            except ssl.SSLWantReadError:
                pass
            entry.fileobj.send(outgoing.read())


def lines(port, when, limit):
    def read():
        with socket.create_connection((peer.HOST, port)) as sock:
            file = sock.makefile("rb", buffering=peer.BUFFER)
            return peer.count_lines(
                (io.BytesIO(file.read()) if when == "at_end" else file).readline
            )

    peer.measure_lines(read)


if __name__ == "__main__":
    peer.main(globals(), sys.argv[1:])
