"""What bench/compare.py compares, on pyasync; http is the server of bench/http_delay.py.

See peer.py for the command line. --unbuffered: a crossing into libuv for each operation.
"""

import sys

import peer

import pyasync

BUFFERED = "--unbuffered" not in sys.argv


def event_loop():
    return pyasync.event_loop(buffer_writes=BUFFERED)


def on_event(event):
    # A client that ends while an answer is on its way resets the connection.
    if isinstance(event, pyasync.EventError) and not isinstance(event, ConnectionError):
        print("error:", event, file=sys.stderr)


def ignore(*_):
    pass


def send_back(socket, data):
    socket.write(data)


def serve(read_cb=ignore, *, listen=pyasync.tcp_server, event_cb=on_event, **options):
    with event_loop():
        server = listen(peer.HOST, 0, read_cb, event_cb=event_cb, **options)
        peer.listening(server.address)


def http(delay):
    import http_delay

    def send(kind, value):
        if kind == "listening":
            peer.listening(value)

    words = ["--port=0", f"--delay={delay}", *([] if BUFFERED else ["--unbuffered"])]
    http_delay.serve(http_delay.parse_options(words), send)


def echo():
    serve(send_back)


def accept():
    serve(connect_cb=lambda socket: socket.close())


def udp():
    with event_loop():
        socket = pyasync.udp_socket(
            peer.HOST, 0, lambda socket, data, address: socket.send(data, address)
        )
        peer.listening(socket.address)


def tls(certificate, key):
    context = peer.server_context(certificate, key)
    # The client ends without close_notify.
    serve(send_back, listen=pyasync.tcp_ssl_server, ssl_context=context, event_cb=ignore)


tls_idle = tls


def tls_source(certificate, key, size):
    def send(socket):
        socket.write(data)
        socket.close()

    context = peer.server_context(certificate, key)
    data = b"x" * size
    serve(listen=pyasync.tcp_ssl_server, ssl_context=context, connect_cb=send)


def timers(mode, count, spread):
    events = [None] * count
    with event_loop():
        measured = peer.Timers(mode, count, spread)
        on_timer = measured.on_timer
        for i, seconds in enumerate(measured.deadlines):
            events[i] = pyasync.delay(on_timer, time=seconds)
        if mode == "pending":
            # What is asked for in this callback has crossed into C when the next one runs.
            pyasync.delay(measured.end, time=0.1)
        if mode == "cancel":
            for event in events:
                event.free()
    if mode == "fire":
        raise RuntimeError("not all timers have fired")
    measured.end()


def connect(port, connections, seconds):
    def start():
        pyasync.tcp_connect(peer.HOST, port, ignore, event_cb=on_end)

    def on_end(event):
        if isinstance(event, pyasync.EventError):
            raise event
        pace.one_more()
        start()

    with event_loop():
        pace = peer.Pace(seconds)
        for _ in range(connections):
            start()


def wakeups(seconds):
    wakeups = peer.Wakeups(seconds)
    with event_loop():
        wakeups.start(pyasync.make_notifier(wakeups.answer, single_shot=False).trigger)


def lines(port, when, limit):
    def read():
        count = 0

        def count_lines(stream):
            nonlocal count
            count += peer.count_lines(stream.readline)

        def read_cb(socket, stream):
            if when == "at_once":
                count_lines(stream)

        def event_cb(event):
            if not isinstance(event, pyasync.SocketEOF):
                raise event
            count_lines(stream)

        with event_loop():
            stream = pyasync.tcp_connect(peer.HOST, port, read_cb, stream=True, event_cb=event_cb)
        return count

    peer.measure_lines(read)


if __name__ == "__main__":
    peer.main(globals(), [word for word in sys.argv[1:] if word != "--unbuffered"])
