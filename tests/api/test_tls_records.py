"""Records of TLS: many at once, many without data, and those that a server sends by itself."""

import contextlib
import socket
import ssl
import threading

import pytest
from peers import (
    MORE_THAN_FITS,
    PATIENCE,
    nothing,
    read_all,
    read_exactly,
    reset,
    small_buffers,
    wait_until,
    when,
)
from tls_peers import (
    client_context,
    connect,
    key_updates,
    serve,
    update_keys,
)

import pyasync

#: More records than a stream decrypts in a turn.
MANY = 2000


def in_records_of_one_byte(sock, data):
    """Write each byte as a record of its own; return all records."""
    for index in range(len(data)):
        sock.object.write(data[index : index + 1])
    return sock._outgoing.read()


# Many records


@pytest.mark.parametrize("end", ["close_notify", "eof", "none"])
@pytest.mark.parametrize("pause", [False, True], ids=["reading", "pausing"])
def test_small_records_are_decrypted_in_turns_and_the_end_comes_behind_them(run, end, pause):
    data = bytes(index % 251 for index in range(MANY))
    received, told, turns = [], [], []

    def talk(address):
        with connect(address) as sock:
            sock.sock.sendall(in_records_of_one_byte(sock, data))
            written.set()
            if end == "eof":
                sock.sock.shutdown(socket.SHUT_WR)
            elif end == "close_notify":
                sock.shutdown(socket.SHUT_WR)
            assert sent.wait(PATIENCE)
            return len(received)

    def connected(sock):
        """All is there when it begins to read, so that one read gets it."""
        sock.disable(read=True)
        when(written.is_set, lambda: sock.enable(read=True))

    def read_cb(sock, piece):
        received.append(piece)
        turns.append(pyasync.stats().iterations)
        if pause:
            sock.disable(read=True)
            pyasync.call_soon(lambda: sock.closed or sock.enable(read=True))
        if len(b"".join(received)) == MANY:
            sent.set()

    def event_cb(event):
        told.append((getattr(event, "reason", type(event)), len(b"".join(received))))

    written, sent = threading.Event(), threading.Event()
    serve(run, talk, read_cb=read_cb, connect_cb=connected, event_cb=event_cb)
    assert b"".join(received) == data
    assert max(map(len, received)) <= 512
    if not pause:  # others had their turns in between; the second is in the first's iteration
        assert len(set(turns)) >= len(turns) - 1
    reason = "UNEXPECTED_EOF_WHILE_READING" if end == "eof" else pyasync.SocketEOF
    assert told == [(reason, MANY)]


def test_what_came_before_a_write_failed_is_reported_first(run):
    received, told = [], []
    written, go_on, gone = threading.Event(), threading.Event(), threading.Event()

    def talk(address):
        with connect(address) as sock:
            sock.sock.sendall(in_records_of_one_byte(sock, bytes(MANY)))
            written.set()
            assert go_on.wait(PATIENCE)
            reset(sock.sock)
            gone.set()

    def connected(sock):
        sock.disable(read=True)
        when(written.is_set, lambda: sock.enable(read=True))

    def read_cb(sock, piece):
        received.append(piece)
        if len(received) == 1:
            go_on.set()
            assert gone.wait(PATIENCE)
        sock.write(b"answer")

    serve(
        run, talk, read_cb=read_cb, connect_cb=connected,
        event_cb=lambda event: told.append((type(event), len(b"".join(received)))),
    )  # fmt: skip
    assert told in ([(pyasync.SocketReset, MANY)], [(pyasync.SocketBrokenPipe, MANY)])


def test_a_handshake_in_very_many_records_goes_on_in_turns(run):
    def talk(address):
        with connect(address, handshake=False) as sock:
            with contextlib.suppress(ssl.SSLWantReadError):
                sock.object.do_handshake()
            hello = sock._outgoing.read()
            # One byte a record: RFC 8446, 5.1.
            parts = [hello[:3] + b"\0\1" + bytes([byte]) for byte in hello[5:]]
            assert len(parts) > 300
            sock.sock.sendall(b"".join(parts))
            sock.handshake()
            sock.sendall(b"data")
            return read_exactly(sock, 4)

    assert serve(run, talk)[0] == b"data"


def test_a_socket_that_was_closed_reads_on_while_it_flushes(run):
    """A peer that sends much and reads later must not be held up, nor the loop."""

    def talk(address):
        with connect(address) as sock:
            sock.sendall(bytes(16 << 20))
            return len(read_all(sock))

    def read_cb(sock, data):
        total[0] += len(data)
        if total[0] > 1 << 20:
            sock.write(bytes(MORE_THAN_FITS))
            sock.close()

    total = [0]
    result, _ = serve(
        run, talk, read_cb=read_cb, connect_cb=small_buffers, linger=PATIENCE, event_cb=nothing
    )
    assert result == MORE_THAN_FITS


# Records without data


@key_updates
def test_key_updates_keep_the_order_of_the_data(run):
    def talk(address):
        with connect(address) as sock:
            for number in range(100):
                update_keys(sock.object)
                sock.sendall(b"%d " % number)
            sock.shutdown(socket.SHUT_WR)
            return read_all(sock)

    assert serve(run, talk)[0] == b"".join(b"%d " % number for number in range(100))


@key_updates
def test_a_peer_that_reads_no_answer_to_its_key_updates_is_ended(run, monkeypatch):
    monkeypatch.setattr("pyasync._core.tls_pump.ANSWERS_SIZE", 10_000)
    blocked, told = threading.Event(), []

    def talk(address):
        with connect(address) as sock:
            assert blocked.wait(PATIENCE)
            with contextlib.suppress(ConnectionError):
                for _ in range(1000):
                    update_keys(sock.object)
                    sock.sendall(b"x")
            wait_until(lambda: told)

    def connected(sock):
        small_buffers(sock)
        sock.write(bytes(MORE_THAN_FITS))
        when(sock._blocked_size, blocked.set)

    serve(
        run, talk, connect_cb=connected, linger=0.1,
        event_cb=lambda event: told.append(getattr(event, "reason", event)),
    )  # fmt: skip
    assert told == ["TOO_MANY_KEY_UPDATES"]


@key_updates
@pytest.mark.parametrize("request_one", [True, False], ids=["answered", "silent"])
@pytest.mark.parametrize("number", [64, 65])
def test_records_without_data_are_limited(run, request_one, number):
    def talk(address):
        with connect(address) as sock:
            for _ in range(3):  # data makes them count anew
                for _ in range(number):
                    update_keys(sock.object, request=request_one)
                with contextlib.suppress(ConnectionError):
                    sock.sendall(b"data")
                    if read_exactly_or_end(sock, 4) != b"data":
                        return "ended"
            return "echoed"

    result, events = serve(run, talk)
    assert result == ("echoed" if number == 64 else "ended")
    reasons = [getattr(event, "reason", None) for event in events]
    assert ("TOO_MANY_RECORDS" in reasons) == (number == 65)


def read_exactly_or_end(sock, size):
    try:
        return read_exactly(sock, size)
    except (AssertionError, ConnectionError):
        return b""


# Tickets


@pytest.mark.parametrize("end", ["close_notify", "eof"])
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_all_that_a_client_sends_arrives_though_it_reads_nothing(run, end, version):
    """Its system would reset the connection for a ticket that it has not read."""
    size, received = 6 << 20, []

    def talk(address):
        sock = connect(address, client_context(maximum_version=version))
        sock.sendall(bytes(size))
        if end == "close_notify":
            with contextlib.suppress(ssl.SSLError):
                sock.object.unwrap()
            sock.push()
        sock.sock.close()

    serve(run, talk, read_cb=lambda sock, data: received.append(len(data)))
    assert sum(received) == size


@pytest.mark.parametrize("answer", [b"", b"data"], ids=["close", "data"])
def test_the_tickets_come_with_data_or_at_the_end(run, answer):
    def talk(address):
        with connect(address) as sock:
            early = sock.object.session.has_ticket
            asked.set()
            assert read_all(sock) == answer
            return early, sock.object.session.has_ticket

    def connected(sock):
        def end():
            sock.write(answer)
            sock.close()

        when(asked.is_set, end)

    asked = threading.Event()
    assert serve(run, talk, connect_cb=connected)[0] == (False, True)
