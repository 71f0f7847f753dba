"""Turns: who is read when many have something to read, and what a failed write waits for."""

import socket
import time
import uuid

import pytest
from peers import Background, after_iterations, read_all

import pyasync


def test_a_large_upload_makes_progress_beside_many_small_readers(run):
    """The small ones fill what an iteration reads, and callbacks let each iteration poll."""
    small, received = [], []

    def start():
        server = pyasync.tcp_server("127.0.0.1", 0, on_read)
        server.unref()
        for _ in range(160):
            sock = socket.create_connection(server.address)
            sock.setblocking(False)
            small.append(sock)
        upload.append(Background(send_upload, server.address))
        pyasync.call_soon(send_small)

    def send_upload(address):
        with socket.create_connection(address) as sock:
            sock.sendall(bytes([1]) * (1 << 20))

    def on_read(sock, data):
        if data[0] == 1:
            received.append(len(data))

    def send_small():
        if sum(received) == 1 << 20:
            pyasync.exit_event_loop()
            return
        for sock in small:
            sock.send(bytes(1000))
        time.sleep(0.006)  # longer than an iteration may go without polling
        pyasync.call_soon(send_small)

    upload = []
    try:
        run(start)
    finally:
        for sock in small:
            sock.close()
    upload[0].result()
    assert sum(received) == 1 << 20


@pytest.mark.parametrize("buffer_writes", [True, False], ids=["buffered", "unbuffered"])
def test_callbacks_of_a_failed_write_and_of_those_behind_it_are_not_called(run, buffer_writes):
    """Also where the error waits until what the peer had sent before is read."""
    count, piece = 8, 100_000  # an iteration reads two such pieces of those that wait
    servers, streams, peers, called, errors = [], [], [], [], []
    received = [0] * count
    rounds = iter(["much", "wait", "fail"])

    def start():
        server = pyasync.pipe_server(
            f"\0{uuid.uuid4()}", on_read, connect_cb=accepted, event_cb=told
        )
        servers.append(server)
        for _ in range(count):
            peer = socket.socket(socket.AF_UNIX)
            peer.connect(server.address)
            peers.append(peer)

    def accepted(stream):
        stream.data = len(streams)
        streams.append(stream)
        if len(streams) == count:
            servers[0].close()
            send_to_all(b"?")

    def send_to_all(data):
        for peer in peers:
            peer.sendall(data)

    def on_read(stream, data):
        received[stream.data] += len(data)
        if stream.data != 0:
            return
        if next(rounds) != "fail":
            send_to_all(bytes(piece))
            return
        peers[-1].close()
        victim = streams[-1]
        victim.write(b"a", write_cb=called.append)
        victim.write(b"b", write_cb=called.append)
        pyasync.call_soon(lambda: victim.write(b"c", write_cb=called.append))

    def told(event):
        if isinstance(event, pyasync.EventError):
            errors.append((event.socket, type(event), received[-1]))
            for stream in streams:
                stream.close()

    try:
        run(start, buffer_writes=buffer_writes)
    finally:
        for peer in peers:
            peer.close()
    assert called == []
    assert errors == [(streams[-1], pyasync.SocketBrokenPipe, 1 + 2 * piece)]


def test_thousands_of_pieces_of_one_stream_leave_at_once(run):
    """IOV_MAX, 1,024 of them, is a limit of one system call, and no sign of a full kernel."""
    events, servers, peers, streams = [], [], [], []

    def read_at(address):
        with socket.create_connection(address) as sock:
            return read_all(sock)

    def accepted(stream):
        streams.append(stream)
        if len(streams) == 2:
            servers[0].close()
            after_iterations(3, write_by_turns)  # when nothing else happens any more

    def write_by_turns():
        for _ in range(2500):  # so that the pieces of one do not lie side by side
            for stream in streams:
                stream.write(b"0123456789")
        events.append(pyasync.stats().events)
        after_iterations(3, check)

    def check():
        events.append(pyasync.stats().events)
        for stream in streams:
            stream.close()

    with run():
        server = pyasync.tcp_server("127.0.0.1", 0, lambda *_: None, connect_cb=accepted)
        servers.append(server)
        peers.extend(Background(read_at, server.address) for _ in range(2))
    for peer in peers:
        assert peer.result() == b"0123456789" * 2500
    assert events[1] == events[0]  # nothing was reported as blocked, and then as written
