"""The server of cl-async's benchmark page: answers every request after a delay.

    python bench/http_delay.py                  listen on port 9009, answer after 5 seconds
    python bench/http_delay.py --load 10000     the same, under load: then report, and end
    python bench/http_delay.py --delay 8 --workers 4 --load 40000 --rate 6000
    python -m cProfile -s tottime bench/http_delay.py --delay 0 --load 20000 --concurrency 200

The first SIGINT or SIGTERM closes the listener: running connections finish, and the exit status
is 0. A second one ends it at once.
"""

import functools
import signal
import sys
from types import MethodType

import certificates
import harness

import pyasync

RESPONSE = (
    b"HTTP/1.1 200 OK\r\n"
    b"Date: Wed, 03 Oct 2012 23:43:10 GMT\r\n"
    b"Content-Type: text/plain\r\n"
    b"Content-Length: 9\r\n"
    b"\r\n"
    b"omglolwtf"
)


def serve(options, report):
    """Run the server until a signal ends it. Returns how many requests it has answered."""
    delay = options.delay
    listen = pyasync.tcp_server
    if options.tls:
        listen = functools.partial(
            pyasync.tcp_ssl_server, ssl_context=certificates.server_context()
        )
    finished = 0

    def on_request(socket, data):
        if delay:
            # For each connection that waits: a bound method has 64 bytes, a closure some 250.
            pyasync.delay(MethodType(respond, socket), time=delay)
        else:
            respond(socket)

    def respond(socket):
        if not socket.closed:
            socket.write(RESPONSE, write_cb=on_written)

    def on_written(socket):
        nonlocal finished
        finished += 1
        socket.close()

    def on_event(event):
        if isinstance(event, pyasync.EventError):  # the end of a stream is no error
            print("error:", event, file=sys.stderr)

    def on_second():
        report.counters(pyasync.stats(), finished)

    def on_signal(signo):
        pyasync.clear_signal_handlers()
        server.close()  # the loop ends by itself when the last connection has been answered

    with pyasync.event_loop(buffer_writes=not options.unbuffered):
        server = listen(
            options.host,
            options.port,
            on_request,
            event_cb=on_event,
            backlog=options.backlog,
            reuse_port=options.workers > 1,
        )
        for signo in (signal.SIGINT, signal.SIGTERM):
            pyasync.signal_handler(signo, on_signal)
        pyasync.interval(on_second, time=1).unref()  # by itself it keeps no loop running
        report.listening(server.address)
    return finished


if __name__ == "__main__":
    sys.exit(harness.main(__doc__, serve))
