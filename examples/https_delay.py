"""An HTTPS server that answers each request after a delay: the benchmark's server, over TLS.

    openssl req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out certificate.pem \\
        -subj /CN=localhost -addext subjectAltName=DNS:localhost
    python examples/https_delay.py --certificate certificate.pem --key key.pem --delay 1
    curl --http1.1 --cacert certificate.pem https://localhost:9443/

SIGTERM ends it when its clients have their answers, or five seconds after those are due. SIGINT
(Ctrl-C) ends it at once.
"""

import argparse
import signal
import ssl
import sys

import pyasync

RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 9\r\n\r\nomglolwtf"
GRACE = 5.0  # seconds from the last answer to the end, at SIGTERM


def on_event(event):
    # A handshake that fails, such as that of a client that does not know the certificate, is
    # reported here, and ends that connection alone.
    if isinstance(event, pyasync.EventError):
        print("error:", event, file=sys.stderr)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen at (%(default)s)")
    add("--port", type=int, default=9443, help="port; 0: any that is free (%(default)s)")
    add("--certificate", required=True, help="a file with the certificate, in PEM")
    add("--key", help="a file with its key, if that is not in the same")
    add("--delay", type=float, default=5.0, help="seconds before the answer (%(default)s)")
    options = parser.parse_args()
    if not 0 <= options.delay < 1e6:
        parser.error("--delay must be from 0 to 1,000,000 seconds")

    def on_request(socket, data):
        def respond():
            if not socket.closed:
                socket.write(RESPONSE)
                socket.close()

        pyasync.delay(respond, time=options.delay)

    def stop(signo):
        server.shutdown(options.delay + GRACE, lambda server: pyasync.exit_event_loop())

    with pyasync.event_loop():
        pyasync.signal_handler(signal.SIGINT, lambda signo: pyasync.exit_event_loop())
        pyasync.signal_handler(signal.SIGTERM, stop)
        # One context for all connections: it offers HTTP/1.1 to clients that ask (ALPN).
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.set_alpn_protocols(["http/1.1"])
        try:
            context.load_cert_chain(options.certificate, options.key)
        except OSError as error:  # ssl.SSLError is one
            sys.exit(f"cannot use the certificate {options.certificate}: {error}")
        try:
            server = pyasync.tcp_ssl_server(
                options.host, options.port, on_request, ssl_context=context, event_cb=on_event
            )
        except (OSError, ValueError) as error:
            sys.exit(f"cannot listen: {error}")
        host, port = server.address[:2]
        print(f"listening at {host} port {port}", flush=True)


if __name__ == "__main__":
    main()
