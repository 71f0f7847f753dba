"""What bench/compare.py compares, on pyasync; http is bench/http_delay.py.

See peer.py for the command line. --unbuffered: a crossing into libuv for each operation.
"""

import sys
import time

import peer

import pyasync

HOST = "127.0.0.1"
BUFFERED = "--unbuffered" not in sys.argv


def event_loop():
    return pyasync.event_loop(buffer_writes=BUFFERED)


def on_event(event):
    # A client that ends while an answer is on its way resets the connection.
    if isinstance(event, pyasync.EventError) and not isinstance(event, ConnectionError):
        print("error:", event, file=sys.stderr)


def echo():
    with event_loop():
        server = pyasync.tcp_server(
            HOST, 0, lambda socket, data: socket.write(data), event_cb=on_event
        )
        peer.listening(server.address)


def accept():
    with event_loop():
        server = pyasync.tcp_server(
            HOST,
            0,
            lambda socket, data: None,
            event_cb=on_event,
            connect_cb=lambda socket: socket.close(),
        )
        peer.listening(server.address)


def udp():
    if not hasattr(pyasync, "udp_socket"):
        peer.unsupported("this pyasync has no udp_socket")
    with event_loop():
        socket = pyasync.udp_socket(
            HOST, 0, lambda socket, data, address: socket.send(data, address)
        )
        peer.listening(socket.address)


def tls(certificate, key):
    context = peer.server_context(certificate, key)
    with event_loop():
        server = pyasync.tcp_ssl_server(
            HOST,
            0,
            lambda socket, data: socket.write(data),
            ssl_context=context,
            event_cb=lambda event: None,  # the client ends without close_notify
        )
        peer.listening(server.address)


def tls_source(certificate, key, size):
    def send(socket):
        socket.write(data)
        socket.close()

    context = peer.server_context(certificate, key)
    data = b"x" * size
    with event_loop():
        server = pyasync.tcp_ssl_server(
            HOST,
            0,
            lambda socket, data: None,
            connect_cb=send,
            ssl_context=context,
            event_cb=on_event,
        )
        peer.listening(server.address)


def timers(mode, count, spread):
    def on_timer():
        nonlocal fired
        fired += 1

    fired = 0
    events = [None] * count
    before = peer.private_bytes()
    with event_loop():
        began = time.process_time()
        for i, seconds in enumerate(peer.deadlines(mode, count, spread)):
            events[i] = pyasync.delay(on_timer, time=seconds)
        if mode == "pending":
            # What is asked for in this callback has crossed into C when the next one runs.
            pyasync.delay(
                lambda: peer.result(bytes=(peer.private_bytes() - before) / count), time=0.1
            )
        if peer.cancels(mode):
            for event in events:
                event.free()
    if fired != (0 if peer.cancels(mode) else count):
        raise RuntimeError(f"{fired:,} timers have fired")
    peer.result(cpu_seconds=(time.process_time() - began) / count)


def connect(port, connections, seconds):
    def start():
        pyasync.tcp_connect(HOST, port, lambda socket, data: None, event_cb=on_end)

    def on_end(event):
        if isinstance(event, pyasync.EventError):
            raise event
        if pace.one_more():
            start()
        else:
            pace.result()

    with event_loop():
        pace = peer.Pace(seconds)
        for _ in range(connections):
            start()


def wakeups(seconds):
    notifications = peer.Notifications(seconds)

    def on_wakeup(*_):
        if not notifications.on_wakeup():
            notifications.pace.result()

    with event_loop():
        if hasattr(pyasync, "make_notifier"):
            notify = pyasync.make_notifier(on_wakeup, single_shot=False).trigger
        else:
            loop = pyasync.current_loop()
            # Keeps the loop running, which a call from another thread does not.
            pyasync.delay(lambda: None, time=seconds + 10)

            def notify():
                loop.call_threadsafe(on_wakeup)

        notifications.start(notify)


if __name__ == "__main__":
    peer.main(globals(), [word for word in sys.argv[1:] if word != "--unbuffered"])
