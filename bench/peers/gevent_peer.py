"""What bench/compare.py compares pyasync with, on gevent: a greenlet for each connection.

The standard library is not patched. See peer.py for the command line.
"""

import contextlib
import sys

import gevent
import gevent.event
import gevent.server
import gevent.socket
import peer


def serve(handle):
    server = gevent.server.StreamServer((peer.HOST, 0), handle, backlog=4096)
    server.start()
    peer.listening(server.address)
    server.serve_forever()


def http(delay):
    def handle(sock, address):
        if sock.recv(65536):
            if delay:
                gevent.sleep(delay)
            sock.sendall(peer.RESPONSE)  # the server closes it

    serve(handle)


def echo():
    def handle(sock, address):
        sock.setsockopt(gevent.socket.IPPROTO_TCP, gevent.socket.TCP_NODELAY, 1)
        # A client that ends while an answer is on its way resets the connection.
        with contextlib.suppress(ConnectionError):
            while data := sock.recv(peer.BUFFER):
                sock.sendall(data)

    serve(handle)


def accept():
    serve(lambda sock, address: None)


def udp():
    # DatagramServer would spawn a greenlet for each datagram.
    sock = gevent.socket.socket(gevent.socket.AF_INET, gevent.socket.SOCK_DGRAM)
    sock.bind((peer.HOST, 0))
    peer.listening(sock.getsockname())
    while True:
        data, address = sock.recvfrom(65536)
        sock.sendto(data, address)


def timers(mode, count, spread):
    make = gevent.get_hub().loop.timer
    watchers = [None] * count
    measured = peer.Timers(mode, count, spread)
    on_timer = measured.on_timer
    for i, seconds in enumerate(measured.deadlines):
        watchers[i] = watcher = make(seconds)
        watcher.start(on_timer)
    if mode == "cancel":
        for watcher in watchers:
            watcher.stop()
            watcher.close()
    if mode != "fire":
        measured.end()
    gevent.event.Event().wait()


def connect(port, connections, seconds):
    pace = peer.Pace(seconds)

    def run():
        while True:
            with gevent.socket.create_connection((peer.HOST, port)) as sock:
                sock.recv(4096)
            pace.one_more()

    gevent.joinall([gevent.spawn(run) for _ in range(connections)], raise_error=True)


def wakeups(seconds):
    wakeups = peer.Wakeups(seconds)
    watcher = gevent.get_hub().loop.async_()
    watcher.start(wakeups.answer)
    wakeups.start(watcher.send)
    gevent.event.Event().wait()


if __name__ == "__main__":
    peer.main(globals(), sys.argv[1:])
