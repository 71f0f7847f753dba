"""What every stream does, whatever it runs over: one suite, run over each kind of connection."""

import array
import contextlib
import errno
import gc
import os
import random
import subprocess
import sys
import threading
import time
import weakref
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peers import (
    BUFFERED_LINKS,
    CALLBACKS,
    FEW_LINKS,
    LINKS,
    MORE_THAN_FITS,
    PATIENCE,
    PIPE_LINKS,
    Background,
    after_iterations,
    count_all,
    echo,
    end_of,
    exchange,
    make_link,
    nothing,
    preloaded,
    read_all,
    read_exactly,
    repetitions,
    run_python,
    segments_received,
    small_buffers,
    small_window,
    tell,
    unread_size,
    waiting_for,
    when,
    within,
)
from tls_peers import TLS_LINKS, TlsLink

import pyasync

# Over this, a write crosses into C at once; up to it, with the others of its iteration.
LARGE = 8193


@pytest.fixture(params=LINKS + PIPE_LINKS + TLS_LINKS)
def link(request, run):
    return make_link(run, request.param)


#: For what a pipe does not have: resets, addresses, and TCP's large buffers.
tcp_only = pytest.mark.parametrize("link", LINKS + TLS_LINKS, indirect=True)

#: For peers in the loop's own thread, where none can answer a handshake, and for how much the
#: kernel keeps of what nobody reads.
plain_only = pytest.mark.parametrize("link", LINKS, indirect=True)


def random_bytes(size, seed=1):
    return random.Random(seed).getrandbits(8 * size).to_bytes(size, "big") if size else b""


# Writing: what is sent


def assorted_writes(seed):
    """Return writes as pairs of arguments and keywords, and what they must send together."""
    rng = random.Random(seed)
    writes, sent = [], bytearray()
    for _ in range(200):
        content = rng.randbytes(rng.choice([0, 1, 7, 100, LARGE - 1, LARGE, 60_000]))
        kind = rng.randrange(7)
        keywords = {"force": True} if rng.random() < 0.1 else {}
        if kind == 0:
            data = bytearray(content)
        elif kind == 1:
            data = memoryview(content)[::-2]
            content = content[::-2]
        elif kind == 2:
            data = array.array("I", content[: len(content) // 4 * 4])
            content = data.tobytes()
        elif kind == 3:
            data = content.decode("latin-1")
            content = data.encode()
        elif kind == 4:
            keywords["start"], keywords["end"] = sorted(rng.choices(range(len(content) + 1), k=2))
            data, content = content, content[keywords["start"] : keywords["end"]]
        elif kind == 5:
            data = memoryview(array.array("H", [len(content)] * 6)).cast("B").cast("H", (2, 3))
            content = data.tobytes()
        else:
            data = content
        writes.append((data, keywords))
        sent += content
    return writes, bytes(sent)


@pytest.mark.parametrize("seed", range(3))
def test_writes_of_any_size_and_type_keep_their_order(link, seed):
    writes, sent = assorted_writes(seed)

    def connected(socket):
        for data, keywords in writes:
            socket.write(data, **keywords)
        socket.close()

    assert link(connected, read_all) == sent


def test_writes_of_many_iterations_keep_their_order(link):
    writes, sent = assorted_writes(4)
    remaining = iter(writes)

    def write_some(socket):
        for data, keywords in remaining:
            socket.write(data, **keywords)
            if len(data) % 3 == 0:
                pyasync.call_soon(lambda: write_some(socket))
                return
        socket.close()

    assert link(write_some, read_all) == sent


def test_ten_thousand_small_writes_of_one_callback_arrive(link):
    def connected(socket):
        for number in range(10_000):
            socket.write(b"%d\n" % number)
        socket.close()

    assert link(connected, read_all) == b"".join(b"%d\n" % number for number in range(10_000))


@pytest.mark.parametrize(
    ("data", "keywords", "sent"),
    [
        ("grüße", {}, "grüße".encode()),
        ("grüße", {"start": 2, "end": 4}, "ü".encode()),
        ("grüße", {"start": 3}, "grüße".encode()[3:]),
        ("grüße", {"end": 3}, "grüße".encode()[:3]),
        (b"0123456789", {"start": 3, "end": 3}, b""),
        (b"0123456789", {"start": 8, "end": 99}, b"89"),
        (b"0123456789", {"start": 10}, b""),
        (array.array("H", b"0123456789"), {"start": 1, "end": 4}, b"123"),
        (memoryview(b"0123456789")[::2], {"start": 1, "end": 3}, b"24"),
        (b"x" * LARGE + b"0123" + b"x" * LARGE, {"start": LARGE, "end": LARGE + 4}, b"0123"),
        (b"x" + b"0" * LARGE, {"start": 1}, b"0" * LARGE),
    ],
)
def test_start_and_end_count_bytes_of_the_encoded_data(link, data, keywords, sent):
    def connected(socket):
        socket.write(data, **keywords)
        socket.close()

    assert link(connected, read_all) == sent


def test_a_length_that_is_not_the_datas_own_is_not_believed(link):
    class Boastful(bytes):
        def __len__(self):
            return 100_000

    def connected(socket):
        socket.write(Boastful(b"data"))
        socket.close()

    assert link(connected, read_all) == b"data"


@pytest.mark.parametrize("size", [10, LARGE, MORE_THAN_FITS])
@pytest.mark.parametrize("force", [False, True])
def test_changing_a_buffer_after_write_does_not_change_what_is_sent(link, size, force):
    data = bytearray(random_bytes(size))
    sent = bytes(data)

    def connected(socket):
        socket.write(data, force=force)
        data[:] = bytes(size)
        data.clear()  # nor is it locked
        socket.close()

    assert link(connected, read_all) == sent


@pytest.mark.parametrize("size", [5, LARGE], ids=["forced", "large"])
def test_what_is_forced_or_large_is_sent_within_the_callback_and_all_before_it(link, size):
    seen = threading.Event()

    def peer(sock):
        assert read_exactly(sock, 7 + size) == b"before," + b"x" * size
        seen.set()
        return read_all(sock)

    def connected(socket):
        socket.write(b"before,")
        socket.write(b"x" * size, force=size != LARGE)
        assert seen.wait(PATIENCE)
        socket.write(b"after")
        socket.close()

    assert link(connected, peer) == b"after"


linux_only = pytest.mark.skipif(sys.platform != "linux", reason="counts segments by Linux's means")


@linux_only
@pytest.mark.parametrize("link", BUFFERED_LINKS, indirect=True)
@pytest.mark.parametrize("last", [{}, {"force": True}, {"write_cb": nothing}])
def test_small_writes_of_one_callback_leave_in_one_packet(link, last):
    def peer(sock):
        return read_exactly(sock, 14), segments_received(sock)

    def connected(socket):
        socket.write("header")
        socket.write(b" ", write_cb=nothing)
        socket.write(b"content", **last)

    assert link(connected, peer) == (b"header content", 1)


@linux_only
@pytest.mark.parametrize("link", BUFFERED_LINKS, indirect=True)
def test_writes_before_a_large_one_leave_in_its_packet(link):
    def peer(sock):
        return read_exactly(sock, 6 + LARGE), segments_received(sock)

    def connected(socket):
        socket.write("header")
        socket.write(b"x" * LARGE)

    assert link(connected, peer) == (b"header" + b"x" * LARGE, 1)


@linux_only
@pytest.mark.parametrize("link", BUFFERED_LINKS, indirect=True)
def test_writes_interleaved_over_two_sockets_leave_in_one_packet_each(link):
    peers, streams = [], []

    def peer(address):
        with link.dial(address) as sock:
            return read_exactly(sock, 12), segments_received(sock)

    def connect_cb(socket):
        streams.append(socket)
        if len(streams) == 2:
            server.close()
            for piece in (b"one,", b"two,", b"end."):
                for stream in streams:
                    stream.write(piece)

    with link.run():
        server = link.serve(read_cb=nothing, connect_cb=connect_cb)
        peers.extend(Background(peer, server.address) for _ in range(2))
    assert [thread.result() for thread in peers] == [(b"one,two,end.", 1)] * 2


# Writing: callbacks


def test_each_write_callback_runs_once_in_order_and_never_inside_write(link):
    called, writing = [], []

    def written(number):
        def write_cb(stream):
            assert not writing
            assert stream is socket
            called.append(number)
            if number == 99:
                socket.close()

        return write_cb

    def connected(stream):
        nonlocal socket
        socket = stream
        writing.append(True)
        for number in range(100):
            size = (1, 0, LARGE, 500_000)[number % 4 if number < 8 else number % 2]
            socket.write(b"x" * size, write_cb=written(number), force=number % 7 == 0)
        writing.clear()

    socket = None
    link(connected, read_all)
    assert called == list(range(100))


def test_a_write_made_by_a_write_callback_gets_its_own(link):
    called = []

    def write(socket):
        called.append(len(called))
        if len(called) < 50:
            socket.write(b"x" * (len(called) % 3), write_cb=write)
        else:
            socket.close()

    link(write, read_all)
    assert len(called) == 50


def test_write_callbacks_do_not_starve_reading(link):
    """A chain of writes without end stops when the peer's data has arrived."""

    def write(socket):
        if not socket.closed:
            socket.write(b"x", write_cb=write)

    def peer(sock):
        sock.sendall(b"stop")
        return end_of(sock)

    link(write, peer, read_cb=lambda socket, data: socket.close())


def test_a_write_callback_waits_until_the_kernel_has_taken_the_data(link):
    called, read = [], threading.Event()

    def connected(socket):
        small_buffers(socket)
        socket.write(b"first", write_cb=lambda socket: called.append("first"))
        socket.write(b"x" * MORE_THAN_FITS, write_cb=lambda socket: called.append("big"))
        socket.write(b"", write_cb=lambda socket: called.append("empty"))
        socket.write(b"last", write_cb=last)
        after_iterations(20, lambda: look(socket))

    def look(socket):
        assert called == ["first"]
        assert socket.write_queue_size > 0
        read.set()

    def last(socket):
        assert called == ["first", "big", "empty"]
        assert socket.write_queue_size == 0
        socket.close()

    assert link(connected, waiting_for(read, count_all)) == 5 + MORE_THAN_FITS + 4


def test_a_write_callback_that_waits_keeps_no_other_alive(link):
    left, read = [], threading.Event()

    class Callback:
        def __call__(self, socket):
            left.append(weakref.ref(self))

    def connected(socket):
        small_buffers(socket)
        socket.write(b"first", write_cb=Callback())
        socket.write(b"x" * MORE_THAN_FITS, write_cb=lambda socket: socket.close())
        after_iterations(20, look)

    def look():
        gc.collect()
        read.set()
        assert [callback() for callback in left] == [None]

    assert link(connected, waiting_for(read, count_all)) == 5 + MORE_THAN_FITS


@pytest.mark.parametrize("size", [0, 1, LARGE, MORE_THAN_FITS])
def test_write_then_close_sends_everything_and_calls_back(link, size):
    called = []

    def connected(socket):
        socket.write(b"x" * size, write_cb=lambda socket: called.append(socket.closed))
        socket.close()

    assert link(connected, read_all) == b"x" * size
    assert called == [True]


def test_an_empty_write_behind_one_that_waits_is_called_back_after_close(link):
    called = []

    def connected(socket):
        small_buffers(socket)
        socket.write(b"x" * MORE_THAN_FITS, write_cb=lambda socket: called.append("big"))
        socket.write(b"", write_cb=lambda socket: called.append("empty"))
        socket.write(b"", write_cb=lambda socket: called.append("also empty"))
        socket.close()

    assert len(link(connected, read_all)) == MORE_THAN_FITS
    assert called == ["big", "empty", "also empty"]


#: The kernel does this to Unix sockets whose peer has gone, be it with all data read.
EMPTY_WRITES_FAIL = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <unistd.h>

ssize_t write(int fd, const void *data, size_t size) {
  ssize_t (*original)(int, const void *, size_t);

  if (size == 0) {
    errno = EPIPE;
    return -1;
  }
  *(void **) &original = dlsym(RTLD_NEXT, "write");
  return original(fd, data, size);
}
"""


def test_an_empty_write_behind_one_that_waits_is_not_handed_to_the_kernel(tmp_path):
    program = """if True:
        import pyasync

        def connected(client):
            for data in (bytes(16 << 20), b"", b"x", b"", b""):
                client.write(data, write_cb=lambda client, size=len(data): print(size))
            assert client.write_queue_size > 0
            client.close()

        def start():
            server = pyasync.tcp_server(
                "127.0.0.1", 0, lambda *args: None, connect_cb=lambda client: server.close()
            )
            pyasync.tcp_connect(
                *server.address, print, connect_cb=connected,
                close_cb=lambda client, error: print(error),
            )

        pyasync.start_event_loop(start)
    """
    done = run_python("-c", program, env=preloaded(tmp_path, EMPTY_WRITES_FAIL))
    assert done.stdout.splitlines() == [str(16 << 20), "0", "1", "0", "0", "None"], done.stderr


def test_write_callbacks_keep_their_order_when_a_write_that_waits_ends_in_the_next_poll(link):
    """Sizes are tried until one is too much for the kernel, but not for its next poll."""
    called, sizes = [], list(range(200_000, 1_000_000, 100_000))
    received = threading.Semaphore(0)

    def peer(sock):
        for size in sizes:
            read_exactly(sock, size)
            received.release()
        return read_all(sock)

    def connected(socket):
        small_buffers(socket)
        write(socket, iter(sizes))

    def write(socket, rest):
        size = next(rest, None)
        if size is None:
            socket.close()
            return
        socket.write(b"", write_cb=lambda socket: called.append((size, "empty")))
        socket.write(bytes(size), write_cb=lambda socket: called.append((size, "whole")))
        received.acquire(timeout=0.01)  # the peer makes room
        when(lambda: socket.write_queue_size == 0, lambda: write(socket, rest))

    assert link(connected, peer) == b""
    assert called == [(size, which) for size in sizes for which in ("empty", "whole")]


def test_a_plain_write_does_not_overtake_one_with_a_callback(link):
    def connected(socket):
        for number in range(100):
            socket.write(b"%d with," % number, write_cb=nothing)
            socket.write(b"%d without," % number)
        socket.close()

    assert link(connected, read_all) == b"".join(
        b"%d with,%d without," % (number, number) for number in range(100)
    )


@pytest.mark.parametrize("size", [10, MORE_THAN_FITS])
def test_force_close_calls_no_write_callback(link, size):
    called = []

    def connected(socket):
        small_buffers(socket)
        socket.write(b"x" * size, write_cb=called.append)
        socket.close(force=True)

    link(connected, end_of)
    assert called == []


@pytest.mark.parametrize("iterations", [1, 5])
def test_a_force_close_later_calls_no_write_callback_that_waits(link, iterations):
    called, closed = [], threading.Event()

    def connected(socket):
        small_buffers(socket)
        socket.write(b"x" * MORE_THAN_FITS, write_cb=called.append)
        after_iterations(iterations, lambda: close(socket))

    def close(socket):
        socket.close(force=True)
        closed.set()

    link(connected, waiting_for(closed, end_of))
    assert called == []


def test_a_failed_connection_calls_no_write_callback(link):
    called, events, blocked = [], [], threading.Event()

    def connected(socket):
        small_buffers(socket)
        for _ in range(3):
            socket.write(b"x" * MORE_THAN_FITS, write_cb=called.append)
        blocked.set()

    link(connected, waiting_for(blocked, link.reset), event_cb=events.append)
    assert [type(event) for event in events] == [pyasync.SocketReset]
    assert called == []


# Writing: errors and limits


@pytest.mark.parametrize("force", [False, True])
def test_a_closed_socket_refuses_every_call_but_close(link, force):
    def connected(socket):
        socket.close(force=force)
        socket.close(force=force)
        for call in (
            socket.fileno,
            socket.shutdown,
            socket.ref,
            socket.unref,
            lambda: socket.write(b"late"),
            lambda: socket.set_timeouts(1, 1),
            lambda: socket.enable(read=True, write=True),
            lambda: socket.disable(read=True, write=True),
            lambda: socket.peername,
            lambda: socket.sockname,
            lambda: socket.write_queue_size,
            lambda: socket.has_ref,
        ):
            with pytest.raises(pyasync.SocketClosed):
                call()

    assert link(connected, end_of)[0] == 0


def test_what_was_written_is_tried_once_when_the_loop_is_left(link):
    streams = []

    def connected(socket):
        streams.append(socket)
        socket.write(b"last ", write_cb=partial(pytest.fail, "delivered"))
        socket.write("words")
        pyasync.exit_event_loop()

    assert link(connected, read_all) == b"last words"
    with pytest.raises((pyasync.SocketClosed, pyasync.EventLoopNotRunning)):
        streams[0].write(b"late")
    streams[0].close()


def test_write_after_shutdown_raises(link):
    def connected(socket):
        socket.write(b"before")
        socket.shutdown()
        with pytest.raises(pyasync.SocketBrokenPipe) as caught:
            socket.write(b"late")
        assert isinstance(caught.value, BrokenPipeError)
        assert caught.value.errno == errno.EPIPE
        assert caught.value.socket is socket

    assert link(connected, read_all) == b"before"


def test_write_replaces_the_callbacks_of_its_socket_alone(link):
    told = []

    def connect_cb(socket):
        if not streams:
            socket.write(
                b"?",
                read_cb=lambda socket, data: told.append(("new", data)),
                event_cb=lambda event: told.append(("new", type(event))),
            )
        else:
            socket.write(b"?")
            server.close()
        streams.append(socket)

    def peer(address):
        for _ in range(2):
            with link.dial(address) as sock:
                assert sock.recv(1) == b"?"
                sock.sendall(b"data")

    streams = []
    with link.run():
        server = link.serve(
            connect_cb=connect_cb,
            read_cb=lambda socket, data: told.append(("old", data)),
            event_cb=lambda event: told.append(("old", type(event))),
        )
        thread = Background(peer, server.address)
    thread.result()
    assert told == [
        ("new", b"data"),
        ("new", pyasync.SocketEOF),
        ("old", b"data"),
        ("old", pyasync.SocketEOF),
    ]


def test_write_queue_size_counts_what_the_kernel_has_not_taken(link):
    looked = threading.Event()

    def connected(socket):
        small_buffers(socket)
        assert socket.write_queue_size == 0
        socket.write(b"x" * MORE_THAN_FITS)
        size = socket.write_queue_size
        assert 0 < size < MORE_THAN_FITS
        socket.write(b"small")
        assert socket.write_queue_size == size + 5
        socket.write("ü", force=True)
        assert socket.write_queue_size == size + 7
        after_iterations(3, lambda: look(socket, size + 7))

    def look(socket, size):
        # The kernel may have taken more: what it was sent is not acknowledged at once.
        assert 0 < socket.write_queue_size <= size
        looked.set()
        when(lambda: socket.write_queue_size == 0, socket.close)

    assert link(connected, waiting_for(looked, count_all)) == MORE_THAN_FITS + 7


@pytest.mark.parametrize("link", BUFFERED_LINKS, indirect=True)
def test_write_queue_size_counts_what_waits_for_the_end_of_the_callback(link):
    def connected(socket):
        socket.write(b"small")
        socket.write("ü", write_cb=lambda socket: sizes.append(socket.write_queue_size))
        assert socket.write_queue_size == 7
        socket.write(b"", force=True)
        assert socket.write_queue_size == 0
        socket.write(b"more")
        assert socket.write_queue_size == 4
        after_iterations(2, socket.close)

    sizes = []
    assert link(connected, read_all) == "smallümore".encode()
    assert sizes == [0]


def test_pressure_is_reported_when_the_queue_fills_and_when_it_has_drained(link):
    reported, paused = [], threading.Event()

    def connected(socket):
        small_buffers(socket)
        socket.set_watermarks(100_000, 10_000)
        socket.write(b"x" * MORE_THAN_FITS)
        socket.write(b"x" * MORE_THAN_FITS)

    def pressure_cb(socket, is_paused):
        reported.append(is_paused)
        if is_paused:
            assert socket.write_queue_size > 100_000
            paused.set()
        else:
            assert socket.write_queue_size <= 10_000
            socket.close()

    assert (
        link(connected, waiting_for(paused, count_all), pressure_cb=pressure_cb)
        == 2 * MORE_THAN_FITS
    )
    assert reported == [True, False]


def test_pressure_has_watermarks_of_64_and_16_kib_by_default(link):
    sizes, paused = [], threading.Event()

    def connected(socket):
        small_buffers(socket)
        socket.write(b"x" * MORE_THAN_FITS)
        after_iterations(3, lambda: fill(socket))

    def fill(socket):
        # Still over the mark, and told once. The kernel may have taken some more meanwhile: the
        # peer of a TLS client reads what comes with the handshake.
        assert socket.write_queue_size > 64 << 10
        assert len(sizes) == 1
        paused.set()

    def pressure_cb(socket, is_paused):
        sizes.append(socket.write_queue_size)
        if not is_paused:
            socket.close()

    link(connected, waiting_for(paused, count_all), pressure_cb=pressure_cb)
    assert sizes[0] > 64 << 10
    assert sizes[1] <= 16 << 10
    assert len(sizes) == 2


def test_a_write_cb_that_raises_does_not_keep_the_end_of_pressure_back(link):
    told = []

    def connected(socket):
        small_buffers(socket)
        socket.write(bytes(MORE_THAN_FITS), write_cb=lambda socket: 1 / 0)

    def pressure_cb(socket, is_paused):
        told.append(is_paused)
        paused.set()
        if not is_paused:
            socket.close()

    def start(go):
        pyasync.current_loop()._catch_app_errors = True
        go()

    errors, paused = [], threading.Event()
    size = link(
        connected, waiting_for(paused, count_all), pressure_cb=pressure_cb, begin=start,
        event_cb=tell(errors),
    )  # fmt: skip
    assert (size, told, errors) == (MORE_THAN_FITS, [True, False], [pyasync.CallbackError])


def test_a_source_that_stops_under_pressure_keeps_the_queue_short(link):
    chunk, total = bytes(32 << 10), 4 << 20
    sizes, stopped, paused_once = [], [], threading.Event()

    def peer(sock):
        assert paused_once.wait(PATIENCE)
        return sum(len(read_exactly(sock, 8 << 10)) for _ in range(total // (8 << 10)))

    def write_more(socket):
        socket.write(chunk)
        sizes.append(socket.write_queue_size)
        if len(sizes) * len(chunk) == total:
            socket.close()
        elif socket.data:
            stopped.append(socket)
        else:
            pyasync.call_soon(lambda: write_more(socket))

    def connected(socket):
        small_buffers(socket)
        write_more(socket)

    def pressure_cb(socket, paused):
        socket.data = paused
        paused_once.set()
        if not paused and stopped:
            write_more(stopped.pop())

    assert link(connected, peer, pressure_cb=pressure_cb) == total
    assert 64 << 10 < max(sizes) <= 128 << 10


# Reading


BOUNDARIES = [1, 2, 1000, 4096, 65_535, 65_536, 65_537, 262_143, 262_144, 262_145, 1 << 20]


@pytest.mark.parametrize("size", BOUNDARIES)
def test_data_of_any_size_is_read_whole(link, size):
    data = random_bytes(size)
    pieces = []

    def read_cb(socket, piece):
        assert type(piece) is bytes
        assert piece
        pieces.append(piece)

    link(nothing, lambda sock: sock.sendall(data), read_cb=read_cb)
    assert b"".join(pieces) == data


@pytest.mark.parametrize("size", BOUNDARIES)
def test_data_of_any_size_comes_back_from_an_echo(link, size):
    data = random_bytes(size)
    assert link(nothing, lambda sock: exchange(sock, data), read_cb=echo) == data


def test_data_sent_byte_by_byte_is_read_whole(link):
    data = random_bytes(2000)

    def peer(sock):
        for index in range(len(data)):
            sock.sendall(data[index : index + 1])
        return read_exactly(sock, len(data))

    assert link(nothing, peer, read_cb=echo) == data


def test_data_sent_in_pieces_of_random_sizes_is_read_whole(link):
    rng = random.Random(5)
    data = random_bytes(3 << 20)

    def peer(sock):
        view = memoryview(data)
        while view:
            size = rng.choice([1, 10, 5000, 70_000, 300_000])
            sock.sendall(view[:size])
            view = view[size:]

    received = []
    link(nothing, peer, read_cb=lambda socket, piece: received.append(piece))
    assert b"".join(received) == data


def test_a_fast_upload_with_pauses_and_exceptions_is_read_whole(link):
    data, pieces, errors = random_bytes(8 << 20), [], []

    def read_cb(socket, piece):
        pieces.append(piece)
        if len(pieces) % 3 == 0:
            socket.disable(read=True)
            pyasync.delay(lambda: socket.enable(read=True), time=0.001)
        if len(pieces) % 5 == 0:
            raise LookupError(len(pieces))

    def begin(go):
        pyasync.current_loop()._catch_app_errors = True
        go()

    link(
        nothing, lambda sock: sock.sendall(data), read_cb=read_cb, begin=begin,
        event_cb=tell(errors),
    )  # fmt: skip
    assert b"".join(pieces) == data
    assert errors == [pyasync.CallbackError] * (len(pieces) // 5) + [pyasync.SocketEOF]


def test_megabytes_both_ways_at_once_arrive_whole(link):
    ours, theirs = random_bytes(6 << 20, 1), random_bytes(6 << 20, 2)
    received = []

    def peer(sock):
        return exchange(sock, theirs)

    def connected(socket):
        socket.write(ours)

    assert link(connected, peer, read_cb=lambda _, piece: received.append(piece)) == ours
    assert b"".join(received) == theirs


def test_megabytes_reach_a_peer_that_reads_little_at_a_time(link):
    data = random_bytes(2 << 20)

    def peer(sock):
        return b"".join(iter(lambda: sock.recv(997), b""))

    def connected(socket):
        small_buffers(socket)
        socket.write(data)
        socket.close()

    assert link(connected, peer) == data


def test_a_peer_that_says_nothing_is_no_event(link):
    looked, told = threading.Event(), []
    link(
        lambda socket: after_iterations(20, looked.set),
        waiting_for(looked),
        read_cb=lambda socket, data: told.append(data),
        event_cb=tell(told),
    )
    assert told == [pyasync.SocketEOF]


@tcp_only
def test_more_than_the_arena_holds_in_one_iteration_is_read_whole(link):
    """40 times 256 KiB lie in the kernel when the loop begins to read; it takes 2 MiB."""
    size, count = 256 << 10, 40
    data = [random_bytes(size, number) for number in range(count)]
    received = {}

    def peer(address, number):
        with link.dial(address) as sock:
            sock.sendall(bytes([number]) + data[number])
            sent.release()
            assert sock.recv(1) == b""

    def connect_cb(socket):
        received[socket] = []
        if len(received) == count:
            server.close()
            for _ in range(count):
                assert sent.acquire(timeout=PATIENCE)

    def read_cb(socket, piece):
        received[socket].append(piece)
        if sum(map(len, received[socket])) == size + 1:
            socket.close()

    threads, sent = [], threading.Semaphore(0)
    with link.run():
        server = link.serve(connect_cb=connect_cb, read_cb=read_cb)
        threads.extend(Background(peer, server.address, number) for number in range(count))
    for thread in threads:
        thread.result()
    assert sorted(b"".join(pieces) for pieces in received.values()) == [
        bytes([number]) + data[number] for number in range(count)
    ]


#: A process, as threads that encrypt would take the interpreter away from the loop.
BLASTER = """
import socket, ssl, sys
host, port, tls = sys.argv[1:]
sock = socket.create_connection((host, int(port)))
if tls == "True":
    sock = ssl._create_unverified_context().wrap_socket(sock)
sock.sendall(b"blast")
while True:
    sock.sendall(bytes(8 << 20))
"""


@tcp_only
def test_a_fast_peer_does_not_starve_a_ping_pong(link):
    """While others send without end, a round trip takes a few iterations, each of bounded size.

    An iteration that has read 128 KiB reads no more; a turn is for 256 KiB at most.
    """
    trips, blasters, enough = 200, 2, 100 * (64 << 10)

    def blast(address):
        words = [link.host, str(address[1]), str(isinstance(link, TlsLink))]
        return subprocess.Popen([sys.executable, "-c", BLASTER, *words], stderr=subprocess.DEVNULL)

    def serve(socket, data):
        if data == b"ping":
            socket.write(b"pong")
        elif not socket.data:
            socket.data = "blaster"
            streams.append(socket)
            if len(streams) == blasters:
                streams.append(link.connect(server.address, read_cb=ponged, connect_cb=ping))

    def ping(socket):
        nonlocal before
        socket.data = 0
        before = pyasync.stats()
        socket.write(b"ping")

    def ponged(socket, data):
        socket.data += 1
        taken = pyasync.stats() - before
        if socket.data < trips or taken.bytes_read < enough:
            socket.write(b"ping")
            return
        # Each way it waits for the next poll: until the others have had a turn, an iteration each.
        assert taken.iterations <= 2 * blasters * socket.data
        assert taken.bytes_read < taken.iterations * (128 + 256 << 10)
        server.close()
        for stream in streams:
            stream.close(force=True)

    before, streams, processes = None, [], []
    try:
        with link.run():
            server = link.serve(read_cb=serve, event_cb=nothing)
            processes.extend(blast(server.address) for _ in range(blasters))
    finally:
        for process in processes:
            process.kill()
            process.wait()


@pytest.fixture
def peers():
    """Give a list for plain sockets in the loop's own thread, which are closed in the end."""
    sockets = []
    yield sockets
    for sock in sockets:
        sock.close()


def dial(link, server, peers, number):
    """Connect so many plain sockets, which do not block, to the server."""
    for _ in range(number):
        peers.append(link.dial(server.address))
        peers[-1].setblocking(False)


@plain_only
def test_fast_peers_that_fill_the_arena_have_their_turns_one_after_the_other(link, peers):
    """The kernel always names them in the same order, and the last peer behind them all."""
    fast = 64

    def connect_cb(socket):
        socket.data = len(streams)
        streams.append(socket)
        if len(streams) == fast + 1:
            send_more(range(fast))

    def send_more(numbers):
        for number in numbers:
            with contextlib.suppress(BlockingIOError):
                peers[number].send(bytes(1 << 20))

    def read_cb(socket, data):
        turns.append(socket.data)
        if socket.data < fast:
            send_more([socket.data])
            if len(turns) == fast:
                peers[-1].send(b"ping")
                pinged.append(len(turns))
        if socket.data == fast or len(turns) == 50 * fast:
            server.close()
            for stream in streams:
                stream.close(force=True)

    streams, turns, pinged = [], [], []
    with link.run():
        server = link.serve(connect_cb=connect_cb, read_cb=read_cb, event_cb=nothing)
        dial(link, server, peers, fast + 1)
    assert turns[-1] == fast
    assert len(turns) - pinged[0] <= 3 * fast


@plain_only
def test_nobody_loses_a_turn_to_a_disable_that_is_undone_at_once(link, peers):
    """As a limit that many share does, which is reached and left in one callback."""
    number, rounds = 16, 20

    def connect_cb(socket):
        streams.append(socket)
        turns[socket] = 0
        if len(streams) == number:
            send_more()

    def send_more():
        for peer in peers:
            with contextlib.suppress(BlockingIOError):
                peer.send(bytes(1 << 20))

    def read_cb(socket, data):
        turns[socket] += 1
        send_more()
        for stream in streams:
            stream.disable(read=True)
            stream.enable(read=True)
        if sum(turns.values()) == number * rounds:
            pyasync.exit_event_loop()

    streams, turns = [], {}
    with link.run():
        server = link.serve(connect_cb=connect_cb, read_cb=read_cb, event_cb=nothing)
        dial(link, server, peers, number)
    assert min(turns.values()) > rounds / 2


@plain_only
@pytest.mark.parametrize("leave", ["disable", "close", "force"])
def test_a_socket_can_be_left_between_the_poll_and_its_turn(link, peers, leave):
    """All are readable at once, more than an iteration reads; the first to be read leaves them."""
    number = 16

    def connect_cb(socket):
        streams.append(socket)
        if len(streams) == number:
            for peer in peers:
                peer.send(bytes(1 << 20))
        elif len(streams) > number:
            peers[-1].send(b"new")

    def read_cb(socket, data):
        told.append((socket, data))
        # When each has been read, and has had much.
        if not left and {socket for socket, _ in told} == set(streams):
            left.append(socket)
            for other in streams:
                if other is not socket:
                    leaves[leave](other)
            del told[:]
            after_iterations(6, join)

    def join():
        assert {socket for socket, _ in told} <= set(left)
        dial(link, server, peers, 1)
        after_iterations(6, finish)

    def finish():
        assert (streams[-1], b"new") in told
        if leave == "disable":
            for stream in streams:
                stream.enable(read=True)
            after_iterations(2 * number, end)
        else:
            end()

    def end():
        if leave == "disable":
            assert {socket for socket, _ in told} >= set(streams) - set(left)
        server.close()
        for stream in streams:
            stream.close(force=True)

    leaves = {
        "disable": lambda socket: socket.disable(read=True),
        "close": lambda socket: socket.close(),
        "force": lambda socket: socket.close(force=True),
    }
    streams, told, left = [], [], []
    with link.run():
        server = link.serve(connect_cb=connect_cb, read_cb=read_cb, event_cb=nothing)
        dial(link, server, peers, number)


def test_what_the_peer_has_sent_before_it_went_comes_before_the_error(link):
    """The kernel refuses what waits to be written in the iteration in which the data comes."""
    told, blocked, gone = [], threading.Event(), threading.Event()

    def peer(sock):
        assert blocked.wait(PATIENCE)
        sock.sendall(b"last words")
        link.reset(sock)
        gone.set()

    def connected(socket):
        small_buffers(socket)
        socket.write(b"x" * MORE_THAN_FITS)
        blocked.set()
        assert gone.wait(PATIENCE)

    def read_cb(socket, data):
        told.append(data)

    link(connected, peer, read_cb=read_cb, event_cb=tell(told))
    assert told[0] == b"last words"
    # A pipe's end has been written to.
    assert told[1:] in ([pyasync.SocketReset], [pyasync.SocketBrokenPipe])


@plain_only
def test_what_the_peer_has_sent_before_it_went_comes_before_the_error_of_a_later_write(link, peers):
    """The write fails between the poll that finds the data, and the turn of who reads it."""
    number, size = 5, 64 << 10

    def connect_cb(socket):
        streams.append(socket)
        if len(streams) == number:
            for peer in peers:
                peer.send(bytes(size))

    def read_cb(socket, data):
        told.append((socket, data))
        if sum(len(data) for _, data in told) == number * size:
            for peer in peers[:-1]:
                peer.send(bytes(1 << 20))
            peers[-1].send(b"last words")
            link.reset(peers[-1])
        elif sum(len(data) for _, data in told) > number * size and not failing:
            assert socket is not streams[-1]
            failing.append(streams[-1])
            failing[0].write(b"what nobody will read")

    def event_cb(event):
        told.append((event.socket, type(event)))
        server.close()
        for stream in streams:
            stream.close(force=True)

    streams, told, failing = [], [], []
    with link.run():
        server = link.serve(connect_cb=connect_cb, read_cb=read_cb, event_cb=event_cb)
        dial(link, server, peers, number)
    assert [what for socket, what in told if socket is failing[0]][-2:] == [
        b"last words",
        pyasync.SocketReset,
    ]


# The end of the stream


def test_the_end_is_reported_once_and_the_socket_then_closed(link):
    events = []

    def event_cb(event):
        assert not event.socket.closed
        events.append((type(event), event.socket))

    def connected(stream):
        nonlocal socket
        socket = stream

    socket = None
    link(connected, nothing, event_cb=event_cb)
    assert events == [(pyasync.SocketEOF, socket)]
    assert socket.closed


def test_the_end_comes_after_all_data(link):
    told = []
    link(
        nothing,
        lambda sock: sock.sendall(bytes(1 << 20)),
        read_cb=lambda socket, data: told.append(len(data)),
        event_cb=tell(told),
    )
    assert told.pop() is pyasync.SocketEOF
    assert sum(told) == 1 << 20


@pytest.mark.parametrize("size", [10, MORE_THAN_FITS])
def test_what_was_written_before_the_end_and_in_its_event_cb_is_flushed(link, size):
    def peer(sock):
        sock.shutdown(1)
        return read_all(sock)

    def connected(socket):
        small_buffers(socket)
        socket.write(b"a" * size)

    def event_cb(event):
        event.socket.write(b"b" * size)

    assert link(connected, peer, event_cb=event_cb) == b"a" * size + b"b" * size


def test_with_allow_half_open_a_later_answer_reaches_a_peer_that_has_shut_down(link):
    def peer(sock):
        sock.sendall(b"question")
        sock.shutdown(1)
        return read_all(sock)

    def read_cb(socket, data):
        when(lambda: events, lambda: answer(socket))

    def answer(socket):
        socket.write(b"answer")
        socket.close()

    events = []
    assert (
        link(
            nothing,
            peer,
            read_cb=read_cb,
            event_cb=tell(events),
            allow_half_open=True,
        )
        == b"answer"
    )
    assert events == [pyasync.SocketEOF]


def test_with_allow_half_open_a_socket_that_both_have_ended_is_closed(link):
    def peer(sock):
        sock.shutdown(1)
        return read_all(sock)

    def event_cb(event):
        event.socket.write(b"last")
        pyasync.call_soon(event.socket.shutdown)

    assert link(nothing, peer, event_cb=event_cb, allow_half_open=True) == b"last"


def test_shutdown_ends_the_sending_side_after_what_was_written_and_reading_goes_on(link):
    received = []

    def peer(sock):
        size = len(read_all(sock))
        sock.sendall(b"still read")
        return size

    def connected(socket):
        small_buffers(socket)
        socket.write(b"x" * MORE_THAN_FITS)
        socket.shutdown()
        socket.shutdown()

    size = link(connected, peer, read_cb=lambda socket, data: received.append(data))
    assert size == MORE_THAN_FITS
    assert received == [b"still read"]


@pytest.mark.parametrize("allow_half_open", [False, True])
def test_a_socket_that_has_shut_down_is_closed_at_the_peers_end(link, allow_half_open):
    events = []
    link(
        lambda socket: socket.shutdown(),
        read_all,
        event_cb=tell(events),
        allow_half_open=allow_half_open,
    )
    assert events == [pyasync.SocketEOF]


# Disabling and enabling


def test_a_disabled_socket_reads_nothing_and_all_when_enabled(link):
    data, received = random_bytes(100_000), []
    sent = threading.Event()

    def peer(sock):
        sock.sendall(data)
        sent.set()

    def connected(socket):
        socket.disable(read=True)
        when(sent.is_set, lambda: after_iterations(5, lambda: enable(socket)))

    def enable(socket):
        assert received == []
        socket.enable(read=True)

    link(connected, peer, read_cb=lambda socket, piece: received.append(piece))
    assert b"".join(received) == data


def test_disabling_reading_slows_the_peer_down(link):
    """It can send no more than the kernel keeps; afterwards all of it is read."""
    total = 32 << 20
    blocked, enabled = threading.Event(), threading.Event()

    def peer(sock):
        data, sent = bytes(1 << 20), 0
        sock.settimeout(0.05)
        while sent < total:
            try:
                sent += sock.send(data[: total - sent])
            except OSError:  # the time is over
                break
        blocked.set()
        assert enabled.wait(PATIENCE)
        sock.settimeout(PATIENCE)
        sock.sendall(bytes(total - sent))
        return sent

    def connected(socket):
        small_buffers(socket)
        socket.disable(read=True)
        when(blocked.is_set, lambda: enable(socket))

    def enable(socket):
        assert sizes == []
        socket.enable(read=True)
        enabled.set()

    sizes = []
    sent = link(connected, peer, read_cb=lambda socket, data: sizes.append(len(data)))
    assert sent < total // 2
    assert sum(sizes) == total


@pytest.mark.parametrize("callback", CALLBACKS)
def test_reading_is_disabled_and_enabled_in_any_callback(link, callback):
    data, received = random_bytes(300_000), []
    acted = threading.Event()

    def act(socket):
        socket.disable(read=True)
        socket.enable(read=True)
        socket.disable(read=True)
        socket.disable(read=True)
        acted.set()
        after_iterations(10, lambda: enable(socket))

    def enable(socket):
        assert received == []
        socket.enable(read=True)
        socket.enable(read=True)
        if callback == "event_cb":
            socket.close()

    def peer(sock):
        assert acted.wait(PATIENCE)
        if callback != "event_cb":
            sock.sendall(data)

    within(link, callback, act, peer, read_cb=lambda socket, piece: received.append(piece))
    assert b"".join(received) == (data if callback != "event_cb" else b"")


@pytest.mark.parametrize("callback", CALLBACKS)
def test_writing_is_disabled_and_enabled_in_any_callback(link, callback):
    def act(socket):
        socket.write(b"before,")
        socket.disable(write=True)
        socket.write(b"held,")
        after_iterations(5, lambda: enable(socket))

    def enable(socket):
        socket.write(b"held later,")
        socket.enable(write=True)
        socket.write(b"after")
        socket.close()

    assert within(link, callback, act, read_all) == b"before,held,held later,after"


def test_disabling_in_each_read_callback_keeps_the_order(link):
    data, received = random_bytes(2 << 20), []

    def read_cb(socket, piece):
        received.append(piece)
        socket.disable(read=True)
        after_iterations(len(received) % 3, lambda: socket.enable(read=True))

    link(nothing, lambda sock: sock.sendall(data), read_cb=read_cb)
    assert b"".join(received) == data


def disable_each_other(link, ends, after, then=nothing):
    """Let the socket that reads first disable the others, whose data lies in the same batch.

    ends(sock) is called when that has happened; after(told) when nothing was told for a while;
    then() in the first callback of each of the others.
    Return what was told to the sockets, each for itself, in order.
    """
    count = 3
    told, threads = {}, []
    accepted, disabled = threading.Event(), threading.Event()
    sent, ended = threading.Semaphore(0), threading.Semaphore(0)

    def peer(address):
        with link.dial(address) as sock:
            assert accepted.wait(PATIENCE)
            sock.sendall(b"data")
            sent.release()
            assert disabled.wait(PATIENCE)
            ends(sock)
            ended.release()

    def connect_cb(socket):
        told[socket] = []
        if len(told) == count:
            server.close()
            accepted.set()
            for _ in range(count):
                assert sent.acquire(timeout=PATIENCE)
            while not all(map(unread_size, told)):  # a loaded system may take its time
                time.sleep(0.001)

    def read_cb(socket, data):
        told[socket].append(data)
        if not disabled.is_set():
            disabled.set()
            others = [other for other in told if other is not socket]
            for other in others:
                other.disable(read=True)
            for _ in range(count):
                assert ended.acquire(timeout=PATIENCE)
            after_iterations(5, lambda: enable(others))
        elif len(told[socket]) == 1:
            then()

    def enable(others):
        after([told[other] for other in others])
        for other in others:
            other.enable(read=True)

    with link.run():
        server = link.serve(
            connect_cb=connect_cb,
            read_cb=read_cb,
            event_cb=lambda event: told[event.socket].append(type(event)),
        )
        threads.extend(Background(peer, server.address) for _ in range(count))
    for thread in threads:
        thread.result()
    return list(told.values())


def test_what_was_read_for_a_socket_disabled_meanwhile_is_kept_back(link):
    def after(told):
        assert told == [[], []]

    told = disable_each_other(link, nothing, after)
    assert told == [[b"data", pyasync.SocketEOF]] * 3


def test_what_comes_later_stays_behind_what_was_kept_back(link):
    told = disable_each_other(link, lambda sock: sock.sendall(b" and more"), nothing)
    assert [what.pop() for what in told] == [pyasync.SocketEOF] * 3
    assert [b"".join(what) for what in told] == [b"data and more"] * 3


def test_leaving_the_loop_ends_the_delivery_of_what_was_kept_back(link):
    told = disable_each_other(
        link, lambda sock: sock.sendall(b" and more"), nothing, pyasync.exit_event_loop
    )
    assert sorted(what[:1] for what in told) == [[], [b"data"], [b"data"]]
    assert sorted(map(len, told))[1] == 1


@tcp_only
def test_an_error_comes_behind_what_was_kept_back(link):
    def after(told):
        assert told == [[], []]

    told = disable_each_other(link, link.reset, after)
    assert told == [[b"data", pyasync.SocketReset]] * 3


def test_writing_while_disabled_is_held_back(link):
    called, told = [], threading.Event()

    def peer(sock):
        first = read_exactly(sock, 6)
        told.set()
        return first + b"|" + read_all(sock)

    def connected(socket):
        small_buffers(socket)
        socket.write(b"before", write_cb=lambda socket: called.append("before"))
        socket.disable(write=True)
        held = bytearray(b"h" * MORE_THAN_FITS)
        socket.write(held, write_cb=lambda socket: called.append("held"))
        held[:] = bytes(len(held))
        socket.write(b"forced", force=True, write_cb=lambda socket: called.append("forced"))
        when(told.is_set, lambda: after_iterations(5, lambda: enable(socket)))

    def enable(socket):
        assert called == ["before"]
        assert socket.write_queue_size == MORE_THAN_FITS + 6
        socket.enable(write=True)
        socket.close()

    assert link(connected, peer) == b"before|" + b"h" * MORE_THAN_FITS + b"forced"
    assert called == ["before", "held", "forced"]


@pytest.mark.parametrize("end", ["close", "shutdown", "end of the peer", "close by force"])
def test_what_is_held_back_is_sent_at_any_end_but_one_by_force(link, end):
    called = []

    def peer(sock):
        if end == "end of the peer":
            sock.shutdown(1)
        return read_all(sock)

    def connected(socket):
        socket.disable(write=True)
        socket.write(b"held", write_cb=called.append)
        if end == "shutdown":
            socket.shutdown()
        elif end != "end of the peer":
            socket.close(force=end == "close by force")

    sent = end != "close by force"
    assert link(connected, peer) == b"held" * sent
    assert len(called) == sent


# Timeouts


def test_a_read_timeout_is_reported_and_the_socket_then_closed(link):
    events, began = [], time.monotonic()

    def event_cb(event):
        assert not event.socket.closed
        events.append(event)

    def connected(stream):
        nonlocal socket
        socket = stream

    socket = None
    assert link(connected, read_all, event_cb=event_cb, read_timeout=0.05) == b""
    (event,) = events
    assert type(event) is pyasync.SocketTimeout
    assert isinstance(event, TimeoutError)
    assert event.errno == errno.ETIMEDOUT
    assert event.socket is socket
    assert time.monotonic() - began >= 0.05


def test_what_is_written_at_a_read_timeout_is_sent(link):
    assert (
        link(
            nothing,
            read_all,
            event_cb=lambda event: event.socket.write(b"too late"),
            read_timeout=0.02,
        )
        == b"too late"
    )


@pytest.mark.parametrize("link", FEW_LINKS, indirect=True)
def test_each_read_postpones_the_read_timeout(link):
    received, times = [], []

    def peer(sock):
        for _ in range(4):
            time.sleep(0.5)
            sock.sendall(b"!")
        return read_all(sock)

    def read_cb(socket, data):
        received.append(data)
        times.append(time.monotonic())

    def event_cb(event):
        times.append(time.monotonic())

    link(nothing, peer, read_cb=read_cb, event_cb=event_cb, read_timeout=1.8)
    assert b"".join(received) == b"!!!!"
    assert times[-1] - times[-2] >= 1.8


@pytest.mark.parametrize("link", FEW_LINKS, indirect=True)
def test_a_read_timeout_stands_still_while_reading_is_disabled(link):
    events = []

    def connected(socket):
        socket.disable(read=True)
        pyasync.delay(lambda: enable(socket), time=0.15)

    def enable(socket):
        assert events == []
        events.append(time.monotonic())
        socket.enable(read=True)

    def event_cb(event):
        events.append(time.monotonic())

    link(connected, read_all, event_cb=event_cb, read_timeout=0.05)
    assert len(events) == 2
    assert events[1] - events[0] >= 0.05


def test_timeouts_are_set_changed_and_cleared_at_any_time(link):
    events = []

    def connected(socket):
        socket.set_timeouts(0.01, 0.01)
        socket.set_timeouts(0.02, 0.02)
        socket.set_timeouts(None, None)
        pyasync.delay(lambda: again(socket), time=0.06)

    def again(socket):
        assert events == []
        socket.set_timeouts(60, 60)
        socket.set_timeouts(0.02, None)

    link(connected, read_all, event_cb=tell(events), read_timeout=60)
    assert events == [pyasync.SocketTimeout]


def test_timeouts_set_on_one_socket_are_its_own(link):
    sockets, told = [], []

    def connect_cb(socket):
        sockets.append(socket)
        if len(sockets) == 1:
            socket.set_timeouts(0.02, None)
        else:
            server.close()

    def event_cb(event):
        told.append((type(event), sockets.index(event.socket)))
        done.set()

    def peer(address):
        with link.dial(address), link.dial(address):
            assert done.wait(PATIENCE)

    done = threading.Event()
    with link.run():
        server = link.serve(connect_cb=connect_cb, read_cb=nothing, event_cb=event_cb)
        thread = Background(peer, server.address)
    thread.result()
    assert told == [(pyasync.SocketTimeout, 0), (pyasync.SocketEOF, 1)]


def test_a_write_timeout_is_reported_when_the_peer_takes_nothing(link):
    events, called, done = [], [], threading.Event()

    def connected(socket):
        small_buffers(socket)
        socket.write(bytes(MORE_THAN_FITS), write_cb=called.append)

    link(connected, waiting_for(done), event_cb=tell(events, done.set), write_timeout=0.05)
    assert events == [pyasync.SocketTimeout]
    assert called == []


def test_a_write_timeout_set_while_data_waits_begins_then(link):
    events, done = [], threading.Event()

    def connected(socket):
        small_buffers(socket)
        socket.write(bytes(MORE_THAN_FITS))
        after_iterations(3, lambda: socket.set_timeouts(None, 0.05))

    link(connected, waiting_for(done), event_cb=tell(events, done.set))
    assert events == [pyasync.SocketTimeout]


@pytest.mark.parametrize("link", FEW_LINKS, indirect=True)
def test_a_write_timeout_is_not_reported_while_the_peer_reads_slowly(link):
    """In 2.4 s it reads all, but never nothing for 1.8 s."""
    piece = MORE_THAN_FITS // 8

    def peer(sock):
        small_window(sock)
        for _ in range(8):
            time.sleep(0.3)
            read_exactly(sock, piece)

    def connected(socket):
        small_buffers(socket)
        socket.write(bytes(MORE_THAN_FITS), write_cb=lambda socket: socket.close())

    link(connected, peer, write_timeout=1.8)


@pytest.mark.parametrize("link", FEW_LINKS, indirect=True)
def test_a_write_timeout_is_not_reported_while_the_queue_grows_but_moves(link):
    """The application writes faster than the peer reads, but it does read."""
    piece, done = MORE_THAN_FITS // 8, threading.Event()

    def peer(sock):
        small_window(sock)
        while not done.is_set():
            read_exactly(sock, piece)
            time.sleep(0.04)
        read_all(sock)

    def connected(socket):
        small_buffers(socket)
        for number in range(30):
            pyasync.delay(lambda: socket.write(bytes(2 * piece)), time=0.08 * number)
        pyasync.delay(lambda: finish(socket), time=2.4)

    def finish(socket):
        assert not socket.closed
        done.set()
        socket.close()

    link(connected, peer, write_timeout=1.8)


# Counters


@tcp_only
def test_asking_for_names_leaves_the_socket_non_blocking(link):
    def connected(socket):
        assert socket.peername
        assert socket.sockname
        assert not os.get_blocking(socket.fileno())
        socket.close()

    link(connected, end_of)


@tcp_only
def test_the_counters_are_right_at_quiet_moments(link):
    seen, size = [], 4 << 20  # so much that Python reads a part by itself: PA_READABLE

    def peer(sock):
        data = exchange(sock, bytes(size))
        sock.shutdown(1)
        assert len(data) + len(read_all(sock)) == size
        return getattr(sock, "wire", (size, size))

    def connected(socket):
        seen.append(pyasync.stats())
        pyasync.add_event_loop_exit_callback(lambda: seen.append(pyasync.stats()))

    def read_cb(socket, data):
        socket.write(data)

    sent, received = link(connected, peer, read_cb=read_cb)
    first, last = seen
    open_name, other_name, made_name = (
        ("incoming_tcp_connections", "outgoing_tcp_connections", "accepted")
        if link.incoming
        else ("outgoing_tcp_connections", "incoming_tcp_connections", "connected")
    )
    assert [getattr(stats, open_name) for stats in seen] == [1, 0]
    assert [getattr(stats, other_name) for stats in seen] == [0, 0]
    assert [getattr(stats, made_name) for stats in seen] == [1, 1]
    assert [first.closed, last.closed] == [0, 1]
    assert [last.accepted + last.connected, last.accept_errors] == [1, 0]
    assert (last.bytes_read, last.bytes_written) == (sent, received)
    assert first.handles["tcp"] == 1
    assert set(last.handles.values()) == {0}


@plain_only
def test_bytes_written_counts_what_the_kernel_has_taken(link):
    done = threading.Event()

    def connected(socket):
        small_buffers(socket)
        socket.write(bytes(MORE_THAN_FITS))
        after_iterations(3, lambda: look(socket))

    def look(socket):
        taken = pyasync.stats().bytes_written
        assert 0 < taken <= MORE_THAN_FITS - socket.write_queue_size
        done.set()
        when(lambda: socket.write_queue_size == 0, lambda: finish(socket))

    def finish(socket):
        assert pyasync.stats().bytes_written == MORE_THAN_FITS
        socket.close()

    assert link(connected, waiting_for(done, count_all)) == MORE_THAN_FITS


# Random schedules

ACTIONS = st.sampled_from(
    [
        *(("write", size) for size in (0, 1, 10, 1000, LARGE, 70_000, 400_000)),
        ("disable read", None),
        ("disable write", None),
        ("enable read", None),
        ("enable write", None),
        ("shutdown", None),
        ("close", None),
        ("close by force", None),
        ("iterate", None),
        ("iterate", None),
        ("iterate", None),
    ]
)


class End:
    """One end of a connection whose both ends are in the loop."""

    def __init__(self):
        self.socket = None
        self.sent, self.received = bytearray(), bytearray()
        self.callbacks = []
        self.called = []
        self.errors = []
        self.closed_by_us = self.closed_by_force = False

    def options(self):
        return {
            "read_cb": lambda socket, data: self.received.extend(data),
            "event_cb": self.on_event,
        }

    def on_event(self, event):
        if not isinstance(event, pyasync.SocketEOF):
            self.errors.append(event)

    def perform(self, action, size):
        socket = self.socket
        try:
            if action == "write":
                data = random_bytes(size, len(self.sent))
                number = len(self.callbacks)
                socket.write(data, write_cb=lambda socket: self.called.append(number))
                self.sent += data
                self.callbacks.append(number)
            elif action == "shutdown":
                socket.shutdown()
            elif action.startswith("close"):
                self.closed_by_us = self.closed_by_us or not socket.closed
                self.closed_by_force = self.closed_by_force or action == "close by force"
                socket.close(force=action == "close by force")
            elif action != "iterate":
                method, side = action.split()
                getattr(socket, method)(**{side: True})
        except (pyasync.SocketClosed, pyasync.SocketBrokenPipe):
            pass  # the schedule does not know

    def finish(self):
        for action in ("enable read", "enable write", "shutdown"):
            self.perform(action, None)


def run_schedule(link, schedule, half_open, small):
    """Perform the actions on both ends, then end the connection properly; return the ends."""
    ends = [End(), End()]
    steps = iter(schedule)

    def step():
        for end, (action, size) in steps:
            ends[end].perform(action, size)
            if action == "iterate":
                pyasync.call_soon(step)
                return
        for end in ends:
            end.finish()

    def connected(end):
        def connect_cb(socket):
            end.socket = socket
            if small:
                small_buffers(socket)
            if all(end.socket for end in ends):
                server.close()
                step()

        return connect_cb

    with link.run():
        options = {"allow_half_open": half_open, "linger": 5}
        server = link.serve(connect_cb=connected(ends[0]), **ends[0].options(), **options)
        link.connect(server.address, connect_cb=connected(ends[1]), **ends[1].options(), **options)
    return ends


def check_schedule(link, schedule, half_open, small):
    ends = run_schedule(link, schedule, half_open, small)
    whole = not any(end.errors or end.closed_by_force for end in ends)
    for end, peer in (ends, ends[::-1]):
        assert peer.received == end.sent[: len(peer.received)]
        assert end.called == end.callbacks[: len(end.called)]
        if whole:
            assert end.called == end.callbacks
            assert peer.closed_by_us or len(peer.received) == len(end.sent)


SCHEDULES = {
    "schedule": st.lists(st.tuples(st.integers(0, 1), ACTIONS), max_size=60),
    "half_open": st.booleans(),
    "small": st.booleans(),
}


@settings(max_examples=repetitions(60))
@given(**SCHEDULES)
def test_any_schedule_delivers_what_was_written_or_reports_an_error(
    link, schedule, half_open, small
):
    check_schedule(link, schedule, half_open, small)


@pytest.mark.slow
@pytest.mark.timeout(300)
@settings(max_examples=2000)
@given(**SCHEDULES)
def test_thousands_of_schedules(link, schedule, half_open, small):
    check_schedule(link, schedule, half_open, small)
