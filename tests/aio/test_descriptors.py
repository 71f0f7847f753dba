"""Descriptors and sockets of the program: add_reader, sock_recv and its like."""

import asyncio
import contextlib
import selectors
import socket

import pytest
from peers import PATIENCE

import pyasync.aio


@pytest.fixture(params=[None, selectors.DefaultSelector], ids=["own set", "a given selector"])
def loop(request):
    loop = pyasync.aio.EventLoop(request.param and request.param())
    yield loop
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with ours, theirs:
        yield ours, theirs


def run(loop, main):
    return loop.run_until_complete(asyncio.wait_for(main, PATIENCE))


async def started(coroutine):
    """Return a task of a sock_* call that waits for its socket."""
    task = asyncio.ensure_future(coroutine)
    await asyncio.sleep(0)
    assert not task.done()
    return task


def datagrams():
    receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    receiver.bind(("127.0.0.1", 0))
    receiver.setblocking(False)
    sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    return receiver, sender


@pytest.mark.parametrize("late", [False, True], ids=["at once", "later"])
@pytest.mark.parametrize("name", ["recv", "recv_into", "recvfrom", "recvfrom_into", "accept"])
async def test_an_operation_ends_when_its_socket_is_ready(loop, name, late):
    buffer = bytearray(10)
    if name == "accept":
        server = socket.create_server(("127.0.0.1", 0))
        server.setblocking(False)
        client = socket.socket()
        with server, client:
            task = asyncio.ensure_future(loop.sock_accept(server))
            await asyncio.sleep(0.01 * late)
            client.connect(server.getsockname())
            connection, address = await task
            with connection:
                assert address == client.getsockname() == connection.getpeername()
                assert connection.gettimeout() == 0
        return
    receiver, sender = datagrams()
    with receiver, sender:
        sender.bind(("127.0.0.1", 0))
        arguments = {"recv": [10], "recvfrom": [10]}.get(name, [buffer])
        task = asyncio.ensure_future(getattr(loop, f"sock_{name}")(receiver, *arguments))
        await asyncio.sleep(0.01 * late)
        sender.sendto(b"hello", receiver.getsockname())
        found = await task
        address = sender.getsockname()
        expected = {"recv": b"hello", "recvfrom": (b"hello", address), "recv_into": 5}
        assert found == expected.get(name, (5, address))
        assert "into" not in name or buffer[:5] == b"hello"


@pytest.mark.parametrize("size", [0, 1, 3_000_000])
@pytest.mark.parametrize("kind", [bytes, bytearray, lambda data: memoryview(data).cast("I")])
async def test_sendall_sends_all(loop, pair, size, kind):
    ours, theirs = pair
    theirs.setblocking(False)
    data = kind(b"abcd" * size)
    sending = asyncio.ensure_future(loop.sock_sendall(ours, data))
    received = bytearray()
    while len(received) < 4 * size:
        received += await loop.sock_recv(theirs, 1 << 20)
    assert await sending is None
    assert received == b"abcd" * size


async def test_both_directions_wait_at_once_and_a_reader_beside_a_writer(loop, pair):
    ours, theirs = pair
    theirs.setblocking(False)
    full = b"x" * 3_000_000
    sending = await started(loop.sock_sendall(ours, full))
    receiving = await started(loop.sock_recv(ours, 100))
    theirs.send(b"hello")
    assert await receiving == b"hello"
    assert not sending.done()
    readable = asyncio.Event()
    loop.add_reader(ours, readable.set)
    theirs.send(b"again")
    await readable.wait()
    assert ours.recv(100) == b"again"
    received = 0
    while received < len(full):
        received += len(await loop.sock_recv(theirs, 1 << 20))
    await sending
    readable.clear()
    theirs.send(b"still")
    await readable.wait()
    assert loop.remove_reader(ours)
    assert not loop.remove_reader(ours)
    before = loop.stats().iterations
    await asyncio.sleep(0.05)
    assert loop.stats().iterations < before + 20  # neither direction is reported any more


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
async def test_sock_connect(loop, address):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with contextlib.ExitStack() as stack:
        server, refused, client = (stack.enter_context(socket.socket(family)) for _ in range(3))
        server.bind((address, 0))
        refused.setblocking(False)
        with pytest.raises(ConnectionRefusedError):
            await loop.sock_connect(refused, server.getsockname()[:2])
        client.setblocking(False)
        server.listen()
        await loop.sock_connect(client, server.getsockname())
        assert client.getpeername() == server.getsockname()


@pytest.mark.parametrize("cancel", ["before it is ready", "when it is ready"])
async def test_a_cancelled_operation_leaves_nothing_and_takes_nothing(loop, pair, cancel):
    ours, theirs = pair
    task = await started(loop.sock_recv(ours, 100))
    if cancel == "when it is ready":
        theirs.send(b"hello")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not loop._selector.get_map()
    if cancel != "when it is ready":
        theirs.send(b"hello")
    await asyncio.sleep(0.01)
    assert await loop.sock_recv(ours, 100) == b"hello"


def replaced(sock):
    """Close a socket, and return a pair of which the first has its number."""
    number = sock.fileno()
    sock.close()
    ours, theirs = socket.socketpair()
    if ours.fileno() != number:
        ours, theirs = theirs, ours
    assert ours.fileno() == number
    ours.setblocking(False)
    return ours, theirs


@pytest.mark.parametrize("before", ["operation", "cancelled", "over", "reader", "writer"])
@pytest.mark.parametrize("then", ["operation", "reader", "connection"])
async def test_a_number_that_was_closed_and_given_again_is_another_file(loop, pair, before, then):
    ours, theirs = pair
    calls, pending = [], None
    if before == "reader":
        loop.add_reader(ours, calls.append, "reader")
    elif before == "writer":
        loop.add_writer(ours, lambda: None)
        await asyncio.sleep(0.01)
    else:
        pending = await started(loop.sock_recv(ours, 100))
    if before == "over":
        theirs.send(b"old")
        assert await pending == b"old"
    elif before == "cancelled":
        pending.cancel()
        await asyncio.sleep(0)
    new, peer = replaced(ours)
    with peer:
        if then == "connection":
            reader, writer = await asyncio.open_connection(sock=new)
            peer.send(b"new")
            assert await reader.read(100) == b"new"
            writer.close()
            await writer.wait_closed()
        else:
            with new:
                if then == "reader":
                    readable = asyncio.Event()
                    loop.add_reader(new, readable.set)
                    peer.send(b"new")
                    await readable.wait()
                    assert loop.remove_reader(new)
                    assert new.recv(100) == b"new"
                else:
                    task = await started(loop.sock_recv(new, 100))
                    peer.send(b"new")
                    assert await task == b"new"
    assert calls == []
    if before == "operation":
        assert not pending.done()  # as with asyncio: nobody tells it
        pending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pending


async def test_a_duplicate_of_a_closed_socket_disturbs_nobody(loop, pair):
    ours, theirs = pair
    task = await started(loop.sock_recv(ours, 100))
    theirs.send(b"hello")
    await task
    with ours.dup():
        new, peer = replaced(ours)
        with new, peer:
            task = await started(loop.sock_recv(new, 100))
            theirs.send(b"for the duplicate")
            before = loop.stats().iterations
            await asyncio.sleep(0.05)
            assert loop.stats().iterations < before + 20
            assert not task.done()
            peer.send(b"for the new one")
            assert await task == b"for the new one"


class Interrupting(socket.socket):
    armed = False

    def recv(self, size):
        if self.armed:
            type(self).armed = False
            raise KeyboardInterrupt
        return super().recv(size)


def test_ctrl_c_in_an_operation_loses_no_other(loop):
    pairs = [socket.socketpair() for _ in range(10)]
    ours = [Interrupting(fileno=one.detach()) for one, _ in pairs]
    for sock in ours:
        sock.setblocking(False)

    async def main():
        tasks = [await started(loop.sock_recv(sock, 100)) for sock in ours]
        Interrupting.armed = True
        for _, theirs in pairs:
            theirs.send(b"hello")
        assert await asyncio.gather(*tasks) == [b"hello"] * len(tasks)

    task = loop.create_task(main())
    with contextlib.ExitStack() as stack:
        for sock in (*ours, *(theirs for _, theirs in pairs)):
            stack.enter_context(sock)
        with pytest.raises(KeyboardInterrupt):
            run(loop, asyncio.shield(task))
        run(loop, task)


def test_a_loop_is_closed_while_operations_wait(pair):
    ours, _ = pair
    loop = pyasync.aio.EventLoop()

    async def main():
        return await started(loop.sock_recv(ours, 100))

    task = loop.run_until_complete(main())
    loop.add_writer(ours, lambda: None)
    loop.close()
    assert not loop.remove_writer(ours)
    with pytest.raises(RuntimeError, match="closed"):
        loop.add_reader(ours, lambda: None)
    task.get_coro().close()
    task._log_destroy_pending = False


async def test_a_transport_has_its_descriptor_for_itself(loop, pair):
    ours, _ = pair
    _, writer = await asyncio.open_connection(sock=ours)
    sock = writer.get_extra_info("socket")
    with pytest.raises(RuntimeError, match="is used by transport"):
        loop.add_reader(sock, lambda: None)
    writer.close()
    await writer.wait_closed()


async def test_what_cannot_be_polled_is_refused(loop, tmp_path):
    with (tmp_path / "file").open("w") as file:
        with pytest.raises(PermissionError):
            loop.add_reader(file, lambda: None)
        assert not loop.remove_reader(file)
    with pytest.raises(ValueError, match="Invalid file"):
        loop.add_writer(object(), lambda: None)
