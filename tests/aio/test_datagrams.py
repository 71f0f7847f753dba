"""Datagrams of asyncio programs: UDP, and Unix datagrams."""

import asyncio
import contextvars
import errno
import socket
import sys

import pytest
from peers import PATIENCE

import pyasync.aio

LOCAL = ("127.0.0.1", 0)
HOSTS = {"v4": "127.0.0.1", "v6": "::1"}
PYPY = sys.implementation.name == "pypy"  # its sockets take the others for names
each_family = pytest.mark.parametrize("host", HOSTS.values(), ids=HOSTS)


@pytest.fixture
def peer():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.bind(LOCAL)
        peer.settimeout(PATIENCE)
        yield peer


class Recorder(asyncio.DatagramProtocol):
    """Puts what it is told into a queue; `lost` is a future of connection_lost."""

    def __init__(self):
        self.told = asyncio.Queue()
        self.pressure = []
        self.lost = asyncio.get_running_loop().create_future()

    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, data, addr):
        self.told.put_nowait((data, addr))

    def error_received(self, error):
        self.told.put_nowait(error)

    def pause_writing(self):
        self.pressure.append("pause")

    def resume_writing(self):
        self.pressure.append("resume")

    def connection_lost(self, error):
        self.lost.set_result(error)  # raises if it is called twice


async def endpoint(loop, **options):
    return await loop.create_datagram_endpoint(Recorder, **options)


def name_of(transport):
    return transport.get_extra_info("sockname")


async def closed(*protocols):
    for protocol in protocols:
        protocol.transport.close()
        assert await protocol.lost is None


@each_family
async def test_datagrams_go_to_and_fro(loop, host):
    here, ours = await endpoint(loop, local_addr=(host, 0))
    there, theirs = await endpoint(loop, remote_addr=name_of(here)[:2])
    assert there.get_extra_info("peername") == name_of(here)
    assert here.get_extra_info("peername") is None
    assert here.get_extra_info("socket").type == socket.SOCK_DGRAM
    for data in (b"bytes", bytearray(b"an array"), memoryview(b"a view"), b"x" * 60_000):
        there.sendto(data)
        assert await ours.told.get() == (bytes(data), name_of(there))
        here.sendto(data, name_of(there))
        assert await theirs.told.get() == (bytes(data), name_of(here))
    await closed(ours, theirs)
    assert here.is_closing()
    here.sendto(b"to nobody", name_of(there))


async def test_a_protocol_may_replace_its_own_datagram_received(loop, peer):
    transport, protocol = await endpoint(loop, local_addr=LOCAL)
    heard = asyncio.Queue()
    protocol.datagram_received = lambda data, addr: heard.put_nowait(data)
    peer.sendto(b"data", name_of(transport))
    assert await asyncio.wait_for(heard.get(), PATIENCE) == b"data"
    await closed(protocol)


@pytest.mark.parametrize("how", ["remote_addr", "sock"])
async def test_a_connected_socket_talks_to_its_peer_only(loop, peer, how):
    if how == "sock":
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.connect(peer.getsockname())
        transport, protocol = await endpoint(loop, sock=sock)
        transport.sendto(b"ignored address", ("127.0.0.1", 9))  # as with asyncio
        await asyncio.sleep(0)
        assert peer.recv(100) == b"ignored address"
    else:
        transport, protocol = await endpoint(loop, remote_addr=peer.getsockname())
        with pytest.raises(ValueError, match="Invalid address"):
            transport.sendto(b"x", ("127.0.0.1", 9))
    transport.sendto(b"one")
    transport.sendto(b"two", peer.getsockname())
    await asyncio.sleep(0)
    assert [peer.recv(100), peer.recv(100)] == [b"one", b"two"]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        stranger.sendto(b"unheard", name_of(transport))
    peer.sendto(b"heard", name_of(transport))
    assert await protocol.told.get() == (b"heard", peer.getsockname())
    await closed(protocol)


async def test_a_refusal_is_told_and_costs_no_other_datagram(loop, peer):
    address = peer.getsockname()
    peer.close()
    transport, protocol = await endpoint(loop, remote_addr=address)
    transport.sendto(b"refused")
    error = await protocol.told.get()
    assert isinstance(error, ConnectionRefusedError)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as again:
        again.bind(address)
        again.settimeout(PATIENCE)
        transport.sendto(b"now there is somebody")
        await asyncio.sleep(0)
        assert again.recv(100) == b"now there is somebody"
    await closed(protocol)


@pytest.mark.parametrize(
    ("size", "target", "expected"),
    [
        (65507, None, None),
        (65508, None, errno.EMSGSIZE),
        (100_000, None, errno.EMSGSIZE),
        (1, ("127.255.255.255", 9), errno.EACCES),
        (1, ("127.0.0.1", 0), errno.EINVAL),
        (1, ("no such name.invalid", 9), socket.EAI_NONAME),
    ],
)
async def test_what_cannot_be_sent_is_told_and_the_socket_goes_on(
    loop, peer, size, target, expected
):
    transport, protocol = await endpoint(loop, local_addr=LOCAL)
    transport.sendto(bytes(size), target or peer.getsockname())
    if expected is None:
        await asyncio.sleep(0)
        assert len(peer.recv(size + 1)) == size
    else:
        assert (await protocol.told.get()).errno == expected
    transport.sendto(b"next", ("localhost", peer.getsockname()[1]))
    await asyncio.sleep(0)
    assert peer.recv(100) == b"next"
    await closed(protocol)


@pytest.mark.parametrize("target", [None] if PYPY else [None, "name", ["127.0.0.1", 9]])
async def test_an_address_of_a_wrong_type_is_fatal_as_with_asyncio(loop, target):
    reports = []
    loop.set_exception_handler(lambda loop, context: reports.append(context["exception"]))
    transport, protocol = await endpoint(loop, local_addr=LOCAL)
    transport.sendto(b"data", target)
    assert isinstance(await protocol.lost, TypeError)
    assert [type(error) for error in reports] == [TypeError]


async def test_broadcasts_are_sent_if_asked_for(loop):
    here, ours = await endpoint(loop, local_addr=("0.0.0.0", 0))
    broadcast = ("127.255.255.255", name_of(here)[1])
    there, theirs = await endpoint(loop, local_addr=LOCAL, allow_broadcast=True)
    there.sendto(b"to all", broadcast)
    assert await ours.told.get() == (b"to all", name_of(there))
    far, third = await endpoint(loop, remote_addr=broadcast, allow_broadcast=True)
    far.sendto(b"by itself")
    assert (await ours.told.get())[0] == b"by itself"
    await closed(ours, theirs, third)


async def test_several_share_a_port_if_all_ask_for_it(loop):
    first, ours = await endpoint(loop, local_addr=LOCAL, reuse_port=True)
    _, theirs = await endpoint(loop, local_addr=name_of(first), reuse_port=True)
    with pytest.raises(OSError, match="in use"):
        await endpoint(loop, local_addr=name_of(first))
    await closed(ours, theirs)


async def test_a_given_socket_keeps_its_options(loop):
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", 0))
    transport, protocol = await endpoint(loop, sock=sock)
    kept = transport.get_extra_info("socket")
    assert kept.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(name_of(transport))  # as members of a multicast group do
    sock.close()  # the program's object, and not the descriptor
    transport.sendto(b"to itself", name_of(transport))
    assert await protocol.told.get() == (b"to itself", name_of(transport))
    await closed(protocol)


@pytest.mark.parametrize("name", ["path", "abstract", "pair"])
async def test_unix_datagrams(loop, tmp_path, name):
    path = str(tmp_path / "socket") if name == "path" else f"\0pyasync-{tmp_path}"
    if name == "pair":
        one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        here, ours = await endpoint(loop, sock=one)
        there, theirs = await endpoint(loop, sock=other)
    else:
        here, ours = await endpoint(loop, local_addr=path, family=socket.AF_UNIX)
        there, theirs = await endpoint(loop, remote_addr=path, family=socket.AF_UNIX)
    there.sendto(b"hello")
    assert (await ours.told.get())[0] == b"hello"
    await closed(ours, theirs)
    assert here.is_closing()


@pytest.mark.parametrize("end", ["close", "abort"])
@pytest.mark.parametrize("number", [1, 200])
async def test_what_was_sent_before_the_end_arrives(loop, peer, end, number):
    transport, protocol = await endpoint(loop, local_addr=LOCAL)
    for index in range(number):
        transport.sendto(b"%d" % index, peer.getsockname())
    getattr(transport, end)()
    getattr(transport, end)()
    assert transport.is_closing()
    assert await protocol.lost is None
    assert [int(peer.recv(9)) for _ in range(number)] == list(range(number))


@pytest.mark.parametrize("where", ["made", "datagram", "error", "lost"])
@pytest.mark.parametrize("end", ["close", "abort"])
async def test_it_may_be_closed_within_each_callback(loop, peer, where, end):
    address = peer.getsockname()
    peer.close()

    class Closing(Recorder):
        def note(self, name):
            if name == where:
                getattr(self.transport, end)()

        def connection_made(self, transport):
            super().connection_made(transport)
            transport.sendto(b"refused")
            self.note("made")

        def datagram_received(self, data, addr):
            self.note("datagram")

        def error_received(self, error):
            self.note("error")

        def connection_lost(self, error):
            super().connection_lost(error)
            self.note("lost")

    transport, protocol = await loop.create_datagram_endpoint(Closing, remote_addr=address)
    if where == "datagram":
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.bind(address)
            sender.sendto(b"one", name_of(transport))
            sender.sendto(b"two", name_of(transport))
            await protocol.lost
    if where == "lost":
        transport.close()
    assert await protocol.lost is None


async def test_each_callback_has_the_context_of_its_endpoint(loop, peer):
    variable = contextvars.ContextVar("variable")
    seen = []

    class Noting(Recorder):
        def connection_made(self, transport):
            seen.append(variable.get())
            super().connection_made(transport)

        def datagram_received(self, data, addr):
            seen.append(variable.get())
            super().datagram_received(data, addr)

        def connection_lost(self, error):
            seen.append(variable.get())
            super().connection_lost(error)

    variable.set("of the endpoint")
    transport, protocol = await loop.create_datagram_endpoint(Noting, local_addr=LOCAL)
    variable.set("another")
    peer.sendto(b"hello", name_of(transport))
    await protocol.told.get()
    await closed(protocol)
    assert seen == ["of the endpoint"] * 3


async def test_an_exception_of_the_protocol_is_reported_and_the_socket_goes_on(loop, peer):
    reports = []

    class Failing(Recorder):
        def datagram_received(self, data, addr):
            super().datagram_received(data, addr)
            raise ZeroDivisionError

    loop.set_exception_handler(lambda loop, context: reports.append(context["exception"]))
    transport, protocol = await loop.create_datagram_endpoint(Failing, local_addr=LOCAL)
    for _ in range(2):
        peer.sendto(b"hello", name_of(transport))
        await protocol.told.get()
    await closed(protocol)
    assert [type(error) for error in reports] == [ZeroDivisionError] * 2


@pytest.mark.parametrize("data", [b"", bytearray()])
async def test_an_empty_datagram_is_sent_since_python_3_13(loop, peer, data):
    transport, protocol = await endpoint(loop, local_addr=LOCAL)
    transport.sendto(data, peer.getsockname())
    transport.sendto(b"full", peer.getsockname())
    await closed(protocol)
    expected = [b"", b"full"] if sys.version_info >= (3, 13) else [b"full"]
    assert [peer.recv(9) for _ in expected] == expected


def test_a_loop_is_closed_with_an_open_endpoint(peer):
    loop = pyasync.aio.new_event_loop()
    transport, _ = loop.run_until_complete(
        loop.create_datagram_endpoint(Recorder, local_addr=LOCAL)
    )
    transport.sendto(b"last", peer.getsockname())
    loop.close()
    assert peer.recv(9) == b"last"
    assert transport.is_closing()
    transport.close()
    transport.sendto(b"too late", peer.getsockname())


def test_a_protocol_is_paused_while_the_kernel_refuses(strange_kernel):
    output = strange_kernel(
        "REFUSE",
        """if True:
        import asyncio, pyasync.aio

        class Protocol(asyncio.DatagramProtocol):
            def pause_writing(self):
                print("pause", transport.get_write_buffer_size())

            def resume_writing(self):
                print("resume", transport.get_write_buffer_size())
                resumed.set()

        async def main():
            global transport, resumed
            resumed = asyncio.Event()
            transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
                Protocol, local_addr=("127.0.0.1", 0))
            transport.set_write_buffer_limits(high=20000, low=500)
            for _ in range(4):
                transport.sendto(bytes(9000), transport.get_extra_info("sockname"))
            await resumed.wait()
            transport.close()

        pyasync.aio.run(main())
    """,
    )
    assert output.split() == ["pause", "27000", "resume", "0"]


async def test_a_send_that_fails_behind_a_close_is_the_end(loop):
    """C has closed the handle before the program learns of the error."""
    transport, protocol = await endpoint(loop, local_addr=LOCAL)
    address = name_of(transport)
    transport.sendto(b"it fits", address)
    transport.sendto(bytes(70_000), address)
    transport.close()
    assert await protocol.lost is None
    error = await protocol.told.get()
    assert error.errno == errno.EMSGSIZE
