"""What bench/compare.py compares pyasync with, on gevent: a greenlet for each connection.

The standard library is not patched. See peer.py for the command line.
"""

import contextlib
import sys
import time

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
    fired = 0
    ended = gevent.event.Event()

    def on_timer():
        nonlocal fired
        fired += 1
        if fired == count:
            ended.set()

    make = gevent.get_hub().loop.timer
    watchers = [None] * count
    before = peer.private_bytes()
    began = time.process_time()
    for i, seconds in enumerate(peer.deadlines(mode, count, spread)):
        watchers[i] = watcher = make(seconds)
        watcher.start(on_timer)
    if mode == "pending":
        peer.result(bytes=(peer.private_bytes() - before) / count)
    if peer.cancels(mode):
        for watcher in watchers:
            watcher.stop()
            watcher.close()
    else:
        ended.wait()
    peer.result(cpu_seconds=(time.process_time() - began) / count)


def connect(port, connections, seconds):
    pace = peer.Pace(seconds)

    def run():
        while True:
            with gevent.socket.create_connection((peer.HOST, port)) as sock:
                sock.recv(4096)
            if not pace.one_more():
                pace.result()

    gevent.joinall([gevent.spawn(run) for _ in range(connections)], raise_error=True)


def wakeups(seconds):
    notifications = peer.Notifications(seconds)
    ended = gevent.event.Event()
    watcher = gevent.get_hub().loop.async_()

    def on_wakeup():
        if not notifications.on_wakeup():
            ended.set()

    watcher.start(on_wakeup)
    notifications.start(watcher.send)
    ended.wait()
    notifications.pace.result()


if __name__ == "__main__":
    peer.main(globals(), sys.argv[1:])
