"""Child processes of the asyncio loop, the ends of its connections and servers, and its own end."""

import asyncio
import os
import socket
import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from peers import PATIENCE

import pyasync.aio


def run(main):
    return pyasync.aio.run(asyncio.wait_for(main, PATIENCE))


# Child processes

BOTH = "import sys; data = sys.stdin.read(); print(data.upper(), end='', flush=True); " + (
    "print('err', end='', file=sys.stderr)"
)
PIPE, DEVNULL, STDOUT = subprocess.PIPE, subprocess.DEVNULL, subprocess.STDOUT


@pytest.mark.parametrize(
    ("streams", "given", "expected"),
    [
        ((PIPE, PIPE, PIPE), b"data", (b"DATA", b"err")),
        ((PIPE, PIPE, STDOUT), b"data", (b"DATAerr", None)),
        ((PIPE, PIPE, DEVNULL), b"data", (b"DATA", None)),
        ((PIPE, DEVNULL, PIPE), b"data", (None, b"err")),
        ((DEVNULL, PIPE, PIPE), None, (b"", b"err")),
        ((DEVNULL, DEVNULL, DEVNULL), None, (None, None)),
        (("file", PIPE, PIPE), None, (b"OF A FILE", b"err")),
        (("file", "file", PIPE), None, (None, b"err")),
        (("file", PIPE, "file"), None, (b"OF A FILE", None)),
        (("file", "file", STDOUT), None, (None, None)),
    ],
)
def test_a_childs_streams_are_what_was_asked_for(tmp_path, streams, given, expected):
    (tmp_path / "0").write_text("of a file")
    files = [(tmp_path / str(n)).open("r" if n == 0 else "w") for n in range(3)]

    async def main():
        stdin, stdout, stderr = (
            file if stream == "file" else stream for stream, file in zip(streams, files)
        )
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", BOTH, stdin=stdin, stdout=stdout, stderr=stderr
        )
        assert await child.communicate(given) == expected
        assert child.returncode == 0

    run(main())
    for file in files:
        file.close()
    if streams[1] == "file":
        written = "OF A FILEerr" if streams[2] == STDOUT else "OF A FILE"
        assert (tmp_path / "1").read_text() == written
    if streams[2] == "file":
        assert (tmp_path / "2").read_text() == "err"


def test_a_child_gets_descriptors_and_what_preexec_fn_has_changed(tmp_path):
    program = "import os, sys; os.write(int(sys.argv[1]), os.getcwd().encode())"

    async def main():
        reading, writing = os.pipe()
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-c", program, str(writing)),
            pass_fds=[writing],
            preexec_fn=lambda: os.chdir(tmp_path),
        )
        os.close(writing)
        assert await child.wait() == 0
        with open(reading) as file:
            assert os.path.samefile(file.read(), tmp_path)

    run(main())


def test_a_child_that_reads_late_and_writes_late_loses_nothing():
    program = (
        "import sys, time\n"
        "print('first', flush=True); time.sleep(0.2)\n"
        "data = sys.stdin.buffer.read(); time.sleep(0.2)\n"
        "sys.stdout.buffer.write(data)\n"
    )

    async def main():
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", program, stdin=PIPE, stdout=PIPE
        )
        assert await child.stdout.readline() == b"first\n"
        data = bytes(range(256)) * 4096  # more than a pipe holds
        assert await child.communicate(data) == (data, None)

    run(main())


# Ends of connections


class Recorder(asyncio.Protocol):
    def __init__(self):
        self.calls, self.data = [], b""
        self.lost = asyncio.get_running_loop().create_future()

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.data += data

    def eof_received(self):
        self.calls.append(("eof", len(self.data)))

    def connection_lost(self, error):
        self.calls.append("lost")
        self.lost.set_result(error)


async def connected():
    """Return a protocol with a TCP connection, and the peer's socket."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        theirs, _ = server.accept()
    ours.setblocking(False)
    _, protocol = await asyncio.get_running_loop().create_connection(Recorder, sock=ours)
    return protocol, theirs


@pytest.mark.parametrize("size", [0, 1, 200_000])
def test_the_end_waits_behind_what_came_while_reading_was_paused(size):
    async def main():
        protocol, theirs = await connected()
        protocol.transport.pause_reading()
        theirs.sendall(bytes(size))
        theirs.close()
        await asyncio.sleep(0.05)
        assert protocol.calls == []
        assert protocol.data == b""
        protocol.transport.resume_reading()
        assert await protocol.lost is None
        assert protocol.calls == [("eof", size), "lost"]
        assert len(protocol.data) == size

    run(main())


@pytest.mark.parametrize("end", ["close", "abort"])
def test_a_paused_connection_is_closed_once(end):
    async def main():
        protocol, theirs = await connected()
        protocol.transport.pause_reading()
        theirs.sendall(b"unread")
        await asyncio.sleep(0.01)
        for _ in range(2):
            getattr(protocol.transport, end)()
            protocol.transport.resume_reading()
        assert await protocol.lost is None
        await asyncio.sleep(0.01)
        assert (protocol.calls, protocol.data) == (["lost"], b"")
        theirs.close()

    run(main())


@pytest.mark.parametrize("paused", [False, True])
def test_writes_after_the_peers_reset_are_dropped_and_it_is_told_once(paused):
    async def main():
        protocol, theirs = await connected()
        if paused:
            protocol.transport.pause_reading()
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        theirs.close()
        while not protocol.lost.done():
            protocol.transport.write(bytes(100))
            await asyncio.sleep(0.001)
        assert isinstance(await protocol.lost, ConnectionError)
        protocol.transport.write(bytes(100_000))
        await asyncio.sleep(0.01)
        assert protocol.calls == ["lost"]

    run(main())


@pytest.mark.parametrize("by_context", [False, True])
def test_a_closed_servers_socket_touches_no_other_descriptor(by_context):
    async def main():
        loop = asyncio.get_running_loop()
        server = await loop.create_server(Recorder, "127.0.0.1", 0)
        (sock,) = server.sockets
        if by_context:
            async with server:
                pass
        else:
            server.close()
            await server.wait_closed()
        assert not server.sockets
        assert not server.is_serving()
        await asyncio.sleep(0.01)
        other, peer = socket.socketpair()  # one of them may get the number
        with other, peer:
            assert sock.fileno() == -1
            with pytest.raises(OSError, match="Bad file descriptor"):
                sock.getsockname()
            server.close()
            assert other.getpeername() == ""

    run(main())


# The end of a loop


def never_run(loop):
    pass


def with_a_handle(loop):
    loop.call_soon(pytest.fail)
    loop.call_later(0.001, pytest.fail)


def stopped(loop):
    loop.stop()


def with_a_reader(loop):
    left, right = socket.socketpair()
    loop.add_reader(left, pytest.fail)
    return left, right


def with_a_job(loop):
    with ThreadPoolExecutor(1) as pool:
        loop.run_in_executor(pool, int).add_done_callback(pytest.fail)


def with_a_task(loop):
    async def wait():
        await asyncio.sleep(PATIENCE)

    task = loop.create_task(wait())
    loop.run_until_complete(asyncio.sleep(0))
    task.cancel()
    loop.run_until_complete(asyncio.wait([task]))


def with_a_child(loop):
    protocol = asyncio.SubprocessProtocol
    words = [sys.executable, "-c", "input()"]
    transport, _ = loop.run_until_complete(loop.subprocess_exec(protocol, *words))
    pid = transport.get_pid()
    transport.kill()
    loop.run_until_complete(transport._wait())
    transport.close()
    return pid


@pytest.mark.parametrize(
    "state",
    [never_run, with_a_handle, stopped, with_a_reader, with_a_job, with_a_task, with_a_child],
)
@pytest.mark.parametrize("debug", [False, True])
def test_a_loop_is_closed_in_any_state(state, debug):
    loop = pyasync.aio.new_event_loop()
    loop.set_debug(debug)
    kept = state(loop)
    loop.close()
    assert loop.is_closed()
    loop.close()
    with pytest.raises(RuntimeError, match="closed"):
        loop.run_until_complete(asyncio.Event)
    for sock in kept if isinstance(kept, tuple) else ():
        sock.close()


def test_a_running_loop_is_not_closed(loop):
    async def main():
        with pytest.raises(RuntimeError, match="running"):
            loop.close()
        return await asyncio.sleep(0, "runs on")

    assert loop.run_until_complete(main()) == "runs on"
