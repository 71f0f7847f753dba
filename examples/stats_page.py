"""A page that shows live how an event loop is: its load, its connections, what it crosses.

    python examples/stats_page.py --port 7003                 then open http://127.0.0.1:7003/
    python bench/http_delay.py --page 7003 --load 100000      the same, of a server under load

In a program of your own, `StatsPage(host, port)` in the loop serves it, and keeps no loop running.
The page and its viewers share the loop, and so they count as well.

It is one HTML file, which draws what comes as server-sent events, twice a second, and the last
three minutes at the beginning. A viewer that does not read misses frames: none wait for it.

SIGTERM ends it when its viewers have taken what waits for them, or after five seconds. SIGINT
(Ctrl-C) ends it at once.
"""

import argparse
import json
import platform
import re
import signal
import sys
from collections import deque
from email.utils import formatdate
from http import HTTPStatus
from pathlib import Path
from urllib.parse import urlsplit

import pyasync

PAGE = Path(__file__).with_name("stats_page.html").read_bytes()

PERIOD = 0.5  # seconds between frames
HISTORY = 360  # frames that a new viewer gets
HEAD_LIMIT = 8 << 10  # bytes of a request
READ_TIMEOUT = 30.0  # seconds for a request to come
WRITE_TIMEOUT = 60.0  # seconds in which a viewer must take something
GRACE = 5.0  # seconds that clients have to take what waits for them, at SIGTERM

REQUEST_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) ([\x21-\x7e]+) HTTP/(\d)\.(\d)")
HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\x00\r\n]*?)[ \t]*")

# The page runs its own script and style, talks to this server, and to nobody else.
SECURITY = (
    "Content-Security-Policy: default-src 'none'; script-src 'unsafe-inline';"
    " style-src 'unsafe-inline'; connect-src 'self'; img-src data:\r\n"
    "X-Content-Type-Options: nosniff\r\n"
)


class BadRequest(Exception):
    """A request that cannot be understood; the connection is of no use any more."""

    def __init__(self, status):
        super().__init__(status)
        self.status = status


class Connection:
    """A client's."""

    __slots__ = ("answering", "ended", "input")

    def __init__(self):
        self.input = bytearray()  # what has come of the next requests
        self.answering = False  # whether an answer is on its way
        self.ended = False  # whether no more will come


class StatsPage:
    """The server of the page, in the loop that it is about."""

    def __init__(self, host, port):
        self.loop = pyasync.current_loop()
        self.viewers = {}  # sockets, and whether each keeps up
        self.history = deque(maxlen=HISTORY)
        self.last = self.loop.stats()
        self.latest = None  # the frame of the last tick
        self.server = pyasync.tcp_server(
            host,
            port,
            self.on_data,
            event_cb=self.on_event,
            connect_cb=self.on_connect,
            pressure_cb=self.on_pressure,
            read_timeout=READ_TIMEOUT,
            allow_half_open=True,
        )
        self.server.unref()
        self.timer = pyasync.interval(self.on_tick, time=PERIOD)
        self.timer.unref()

    @property
    def address(self):
        """Where it listens: host, port."""
        return self.server.address[:2]

    def shutdown(self, timeout, callback):
        """Send what was written, and call ``callback(server)`` then, or after so many seconds."""
        self.timer.close()
        for socket in self.server.connections:
            socket.close()
        self.server.shutdown(timeout, callback)

    # What the loop calls

    def on_connect(self, socket):
        socket.unref()
        socket.data = Connection()

    def on_data(self, socket, data):
        connection = socket.data
        if socket in self.viewers:
            return  # it has nothing more to ask
        connection.input += data
        if not connection.answering:
            self.next_request(socket)
        elif len(connection.input) > HEAD_LIMIT:
            socket.disable(read=True)  # until the client has taken what it asked for before

    def on_answered(self, socket):
        connection = socket.data
        if not socket.closed:
            connection.answering = False
            if len(connection.input) <= HEAD_LIMIT:
                socket.enable(read=True)
            self.next_request(socket)

    def on_event(self, event):
        if isinstance(event, pyasync.SocketAcceptError):
            print("error:", event, file=sys.stderr)
        elif isinstance(event, pyasync.EventInfo):
            # Browsers come and go: that they reset connections, or leave them unused, is no news.
            socket = event.socket
            socket.data.ended = True
            if self.viewers.pop(socket, None) is not None or not socket.data.answering:
                socket.close()
        else:
            raise event  # an exception of ours, which a loop that catches them has passed on

    def on_pressure(self, socket, paused):
        if socket in self.viewers:
            self.viewers[socket] = not paused

    def on_tick(self):
        stats = self.loop.stats()
        interval = stats - self.last
        self.last = stats
        self.latest = self.frame(stats, interval)
        self.history.append(self.latest["row"])
        event = server_sent("frame", self.latest)
        for socket, keeps_up in list(self.viewers.items()):
            if keeps_up:
                socket.write(event)

    # Answers: one after the other, each when the client has taken the last

    def next_request(self, socket):
        connection = socket.data
        received = connection.input
        while received.startswith(b"\r\n"):
            del received[:2]
        size = received.find(b"\r\n\r\n", 0, HEAD_LIMIT)
        if size < 0 and len(received) < HEAD_LIMIT:
            if connection.ended:
                socket.close()
            return
        connection.answering = True
        try:
            if size < 0:
                raise BadRequest(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
            head = bytes(received[:size])
            del received[: size + 4]
            self.answer(socket, *parse(head))
        except BadRequest as error:
            self.respond(socket, error.status, keep=False)

    def answer(self, socket, method, target, headers, version):
        keep = wants_to_keep(headers, version)
        if has_body(headers):
            keep = False  # nobody reads it, so where the next request begins is unknown
        if method not in ("GET", "HEAD"):
            self.respond(
                socket, HTTPStatus.METHOD_NOT_ALLOWED, keep=keep, headers="Allow: GET, HEAD\r\n"
            )
        elif target == "/":
            self.respond(
                socket,
                HTTPStatus.OK,
                PAGE,
                "text/html; charset=utf-8",
                keep=keep,
                head=method == "HEAD",
                headers="Cache-Control: no-cache\r\n" + SECURITY,
            )
        elif target == "/events":
            self.respond_with_events(socket, head=method == "HEAD")
        else:
            self.respond(socket, HTTPStatus.NOT_FOUND, keep=keep, head=method == "HEAD")

    def respond(
        self, socket, status, body=None, kind="text/plain", *, keep, head=False, headers=""
    ):
        if body is None:
            body = f"{status.value} {status.phrase}\n".encode()
        start = response_head(
            status,
            f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
            f"Connection: {'keep-alive' if keep else 'close'}\r\n{headers}",
        )
        socket.write(start if head else start + body, write_cb=self.on_answered)
        if not keep:
            socket.close()

    def respond_with_events(self, socket, *, head):
        # Its length is unknown: the end of the connection is its end (RFC 9112, 6.3).
        socket.write(
            response_head(
                HTTPStatus.OK,
                "Content-Type: text/event-stream\r\nCache-Control: no-store\r\n"
                "Connection: close\r\nX-Accel-Buffering: no\r\n",
            )
        )
        if head:
            socket.close()
            return
        self.viewers[socket] = True
        socket.set_timeouts(None, WRITE_TIMEOUT)
        socket.set_watermarks(0)  # whoever has taken everything gets the next frame
        socket.write(b"retry: 1000\n\n" + server_sent("start", self.start()))

    # What is told

    def start(self):
        """What a viewer gets first."""
        return {
            "program": Path(sys.argv[0]).name or "python",
            "versions": f"pyasync {pyasync.__version__}, libuv {pyasync.libuv_version()},"
            f" {platform.python_implementation()} {platform.python_version()}",
            "period": PERIOD,
            "rows": list(self.history),
            "frame": self.latest,
        }

    def frame(self, stats, interval):
        """What is shown of the time of an interval that has just ended."""
        seconds = interval.busy_time + interval.idle_time or 1.0
        iterations = interval.iterations or 1
        open_connections = (
            stats.incoming_tcp_connections
            + stats.outgoing_tcp_connections
            + stats.incoming_pipe_connections
            + stats.outgoing_pipe_connections
        )
        return {
            "row": [
                round(stats.busy_time + stats.idle_time, 2),
                round(interval.utilization, 4),
                open_connections,
                round(interval.accepted / seconds, 1),
                round(interval.bytes_read / seconds),
                round(interval.bytes_written / seconds),
            ],
            "events": round(interval.events / iterations, 2),
            "crossings": round(interval.crossings / iterations, 2),
            "iterations": round(interval.iterations / seconds, 1),
            "longest": stats.max_callback_time,
            "accepted": stats.accepted,
            "errors": stats.accept_errors,
            "read": stats.bytes_read,
            "written": stats.bytes_written,
            "viewers": len(self.viewers),
            "handles": {kind: count for kind, count in stats.handles.items() if count},
        }


# HTTP (RFC 9112)


def parse(head):
    """Return a request's method, path, headers by name, and version."""
    line, *lines = head.split(b"\r\n")
    found = REQUEST_LINE.fullmatch(line)
    if not found:
        raise BadRequest(HTTPStatus.BAD_REQUEST)
    method, target, major, minor = (part.decode() for part in found.groups())
    if major != "1":
        raise BadRequest(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED)
    headers = {}
    for line in lines:
        found = HEADER.fullmatch(line)
        if not found:
            raise BadRequest(HTTPStatus.BAD_REQUEST)
        name, value = found[1].decode().lower(), found[2].decode("latin-1")
        if name == "host" and name in headers:
            raise BadRequest(HTTPStatus.BAD_REQUEST)
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    if minor != "0" and "host" not in headers:
        raise BadRequest(HTTPStatus.BAD_REQUEST)
    try:
        path = urlsplit(target).path or "/"
    except ValueError:
        raise BadRequest(HTTPStatus.BAD_REQUEST) from None
    return method, path, headers, (1, int(minor))


def wants_to_keep(headers, version):
    """Whether the connection is to stay open after the answer."""
    options = {word.strip().lower() for word in headers.get("connection", "").split(",")}
    return "close" not in options and (version >= (1, 1) or "keep-alive" in options)


def has_body(headers):
    return "transfer-encoding" in headers or headers.get("content-length", "0") != "0"


def response_head(status, headers):
    return (
        f"HTTP/1.1 {status.value} {status.phrase}\r\n"
        f"Date: {formatdate(usegmt=True)}\r\nServer: pyasync\r\n{headers}\r\n"
    ).encode()


def server_sent(name, value):
    """An event of https://html.spec.whatwg.org/multipage/server-sent-events.html."""
    return f"event: {name}\ndata: {json.dumps(value, separators=(',', ':'))}\n\n".encode()


def stop(page):
    page.shutdown(GRACE, lambda server: pyasync.exit_event_loop())


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (%(default)s)")
    parser.add_argument(
        "--port", type=int, default=7003, help="port; 0: any that is free (%(default)s)"
    )
    options = parser.parse_args()

    with pyasync.event_loop():
        pyasync.signal_handler(signal.SIGINT, lambda signo: pyasync.exit_event_loop())
        pyasync.signal_handler(signal.SIGTERM, lambda signo: stop(page))
        try:
            page = StatsPage(options.host, options.port)
        except (OSError, ValueError) as error:
            sys.exit(f"cannot listen: {error}")
        host, port = page.address
        print(f"listening at {host} port {port}", flush=True)


if __name__ == "__main__":
    main()
