"""What becomes of exceptions: those that callbacks raise, and those of pyasync itself."""

import contextlib
import copy
import errno
import gc
import logging
import os
import pickle
import re
import resource
import shutil
import signal
import socket
import tempfile
import traceback
import uuid
from functools import partial
from pathlib import Path

import pytest
from peers import MORE_THAN_FITS, first_then, nothing, small_buffers
from tls_peers import CLIENT, SERVER

import pyasync
import pyasync._core.handles
from pyasync import fs
from pyasync._core.pool_requests import dns_error
from pyasync._ffi import lib
from pyasync.errors import filesystem_error, socket_error

HOUR = 3600.0


class AppError(Exception):
    """What the application of these tests raises."""


class Leave(BaseException):
    """No Exception: like KeyboardInterrupt, it is not for catch_app_errors."""


def raise_app_error(*arguments):
    raise AppError


# Callbacks of each kind. Each function arranges that the callback is called once, soon.


def from_start(callback, event_cb):
    callback()


def from_call_soon(callback, event_cb):
    pyasync.call_soon(callback)


def from_call_threadsafe(callback, event_cb):
    pyasync.current_loop().call_threadsafe(callback)
    pyasync.delay(nothing, time=0.001)


def from_delay(callback, event_cb):
    pyasync.delay(callback, event_cb=event_cb)


def from_event(callback, event_cb):
    pyasync.make_event(callback, event_cb=event_cb).add(0.001)


def from_interval(callback, event_cb):
    def tick():
        interval.close()
        callback()

    interval = pyasync.interval(tick, time=0.001, event_cb=event_cb)


def from_signal(callback, event_cb):
    def handle(signo):
        handler.close()
        callback()

    handler = pyasync.signal_handler(signal.SIGUSR1, handle, event_cb=event_cb)
    os.kill(os.getpid(), signal.SIGUSR1)


def from_idler(callback, event_cb):
    def idle():
        idler.close()
        callback()

    idler = pyasync.idle(idle, event_cb=event_cb)


def from_poller(callback, event_cb):
    def ready(readable, writable):
        poller.close()
        callback()

    poller = pyasync.poll(writable_socket(), ready, event_cb=event_cb)


def from_notifier(callback, event_cb):
    pyasync.make_notifier(callback, event_cb=event_cb).trigger()


def from_work(callback, event_cb):
    pyasync.work(nothing, callback, event_cb=event_cb)


def from_stat(callback, event_cb):
    fs.stat("/", callback, event_cb=event_cb)


def from_monitor(callback, event_cb):
    def changed(monitor, *report):
        monitor.close()
        callback()

    folder = temporary_folder()
    pyasync.fs_watch(folder, changed, event_cb=event_cb)
    os.mkdir(folder / "new")


def from_exit(callback, event_cb):
    pyasync.spawn("true", [], exit_cb=callback, event_cb=event_cb)


def from_lookup(callback, event_cb):
    pyasync.dns_lookup("localhost", callback, event_cb=event_cb)


def from_lookup_of_all(callback, event_cb):
    pyasync.dns_lookup_all("localhost", callback, event_cb=event_cb)


def from_reverse_lookup(callback, event_cb):
    pyasync.reverse_dns_lookup("127.0.0.1", callback, event_cb=event_cb)


def from_datagram(callback, event_cb):
    def read(udp, data, address):
        udp.close()
        callback()

    udp = pyasync.udp_socket("127.0.0.1", 0, read, event_cb=event_cb)
    udp.send(b"data", udp.address)


def from_a_datagrams_write(callback, event_cb):
    def written(udp):
        udp.close()
        callback()

    udp = pyasync.udp_socket("127.0.0.1", event_cb=event_cb)
    udp.send(b"data", udp.address, write_cb=written)


def writable_socket():
    pair = socket.socketpair()
    for sock in pair:
        pyasync.add_event_loop_exit_callback(sock.close)
    return pair[0]


def temporary_folder():
    folder = Path(tempfile.mkdtemp(prefix="pyasync-tests-"))
    pyasync.add_event_loop_exit_callback(partial(shutil.rmtree, folder))
    return folder


# Connections: the client sends data, the server sends it back, and the client closes. A loop that
# does not go on with the connection after the exception does not end.

SIZE = MORE_THAN_FITS


def tcp(server_options, client_options):
    server = pyasync.tcp_server("127.0.0.1", 0, **server_options)
    pyasync.tcp_connect("localhost", server.address[1], **client_options)
    return server


def pipe(server_options, client_options):
    server = pyasync.pipe_server(f"\0{uuid.uuid4()}", **server_options)
    pyasync.pipe_connect(server.address, **client_options)
    return server


def tls(server_options, client_options):
    server = pyasync.tcp_ssl_server("127.0.0.1", 0, ssl_context=SERVER(), **server_options)
    pyasync.tcp_ssl_connect(*server.address, ssl_context=CLIENT(), **client_options)
    return server


def from_socket(transport, side, name):
    """Return a function that arranges for that callback of a server's socket, or a client's."""

    def arrange(callback, event_cb):
        def after(function, of_side, of_name):
            """Return the function, followed by the callback if it is the one that is asked for."""

            def call(*arguments):
                function(*arguments)
                if (of_side, of_name) == (side, name):
                    then()

            return call

        def accepted(connection):
            server.close()
            if name == "pressure_cb":
                small_buffers(connection)
                connection.set_watermarks(0)

        def read(connection, data):
            if name == "pressure_cb":
                data += bytes(SIZE - len(data))
            connection.write(data, write_cb=after(nothing, "server", "write_cb"))

        def answered(client, data):
            received.append(len(data))
            if sum(received) == (SIZE if name == "pressure_cb" else len(b"data")):
                client.close()

        received, then = [], first_then(callback, nothing)
        event_cbs = {side: event_cb}
        server = transport(
            {
                "read_cb": after(read, "server", "read_cb"),
                "connect_cb": after(accepted, "server", "connect_cb"),
                "pressure_cb": after(nothing, "server", "pressure_cb"),
                "event_cb": event_cbs.get("server", nothing),
            },
            {
                "read_cb": after(answered, "client", "read_cb"),
                "connect_cb": after(nothing, "client", "connect_cb"),
                "event_cb": event_cbs.get("client", nothing),
                "data": b"data",
                "write_cb": after(nothing, "client", "write_cb"),
            },
        )

    arrange.__name__ = f"from_{transport.__name__}_{side}_{name}"
    return arrange


SOCKETS = [
    *[
        from_socket(tcp, "server", f"{name}_cb")
        for name in ("connect", "read", "write", "pressure")
    ],
    *[from_socket(tcp, "client", f"{name}_cb") for name in ("connect", "read", "write")],
    from_socket(pipe, "client", "connect_cb"),
    from_socket(tls, "server", "connect_cb"),
    from_socket(tls, "client", "read_cb"),
]

WITHOUT_EVENT_CB = [from_start, from_call_soon, from_call_threadsafe]
WITH_EVENT_CB = [
    from_delay,
    from_event,
    from_interval,
    from_signal,
    from_idler,
    from_poller,
    from_notifier,
    from_work,
    from_stat,
    from_monitor,
    from_exit,
    from_lookup,
    from_lookup_of_all,
    from_reverse_lookup,
    from_datagram,
    from_a_datagrams_write,
    *SOCKETS,
]

each_callback = pytest.mark.parametrize("arrange", WITHOUT_EVENT_CB + WITH_EVENT_CB)
each_callback_with_event_cb = pytest.mark.parametrize("arrange", WITH_EVENT_CB)


def assert_logged(caplog, error):
    """The exception was logged, once, with its traceback; nothing else was."""
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("pyasync", logging.ERROR)
    assert record.exc_info[1] is error or record.exc_info[0] is error
    assert record.exc_info[2] is not None


# catch_app_errors=False


@each_callback
def test_an_exception_leaves_the_loop(run, arrange):
    def start():
        pyasync.delay(nothing, time=HOUR)  # for which a loop that goes on would wait
        arrange(raise_app_error, partial(pytest.fail, "event_cb was told"))

    with pytest.raises(AppError) as raised:
        run(start)
    innermost = traceback.extract_tb(raised.value.__traceback__)[-1]
    assert innermost.name == "raise_app_error"
    assert raised.value.__context__ is None
    assert pyasync.current_loop() is None


def test_what_is_due_with_a_callback_that_raises_is_not_delivered(run):
    fired = []

    def start():
        pyasync.delay(partial(fired.append, "before"))
        pyasync.delay(raise_app_error)
        pyasync.delay(partial(fired.append, "after"))
        pyasync.delay(partial(pyasync.call_soon, partial(fired.append, "ready")))

    with pytest.raises(AppError):
        run(start)
    assert fired == ["before"]


def test_an_exception_closes_everything_and_a_new_loop_can_start(run):
    servers, fired = [], []

    def start():
        servers.append(pyasync.tcp_server("127.0.0.1", 0, nothing))
        pyasync.delay(raise_app_error)

    with pytest.raises(AppError):
        run(start)
    assert servers[0].closed
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(servers[0].address)
    run(partial(pyasync.delay, partial(fired.append, "new loop")))
    assert fired == ["new loop"]


def test_an_exception_that_is_part_of_a_cycle_can_be_collected(run):
    """Its traceback refers to the loop's own frames, and to what they were walking."""

    def fail():
        error = AppError()
        error.itself = error
        raise error

    with contextlib.suppress(AppError):
        run(partial(pyasync.delay, fail))
    gc.collect()


# catch_app_errors=True


@each_callback
def test_a_caught_exception_is_logged_and_the_loop_goes_on(run, arrange, caplog):
    fired = []

    def start():
        pyasync.delay(partial(fired.append, "delay"), time=0.01)
        arrange(raise_app_error, None)

    run(start, catch_app_errors=True)
    assert fired == ["delay"]
    assert_logged(caplog, AppError)
    assert "raise_app_error" in caplog.text


@each_callback_with_event_cb
def test_a_caught_exception_goes_to_the_event_cb(run, arrange, caplog):
    """As a CallbackError, which says whose callback it was; the traceback is in the log."""
    told = []
    run(partial(arrange, raise_app_error, told.append), catch_app_errors=True)
    (error,) = (error for error in told if not isinstance(error, pyasync.SocketEOF))
    assert isinstance(error, pyasync.CallbackError)
    assert isinstance(error.error, AppError)
    assert error.__cause__ is error.error
    assert str(error).startswith("AppError")
    assert error.owner is not None
    is_socket = hasattr(type(error.owner), "fileno")
    assert error.socket is (error.owner if is_socket else None)
    assert_logged(caplog, AppError)
    assert "in raise_app_error" in caplog.text


@each_callback_with_event_cb
def test_a_caught_exception_can_be_kept_from_the_event_cb(run, arrange, caplog):
    told = []
    run(
        partial(arrange, raise_app_error, told.append),
        catch_app_errors=True,
        send_errors_to_event_cb=False,
    )
    assert pyasync.CallbackError not in map(type, told)
    assert_logged(caplog, AppError)


@each_callback_with_event_cb
def test_what_an_event_cb_raises_is_logged_and_the_loop_goes_on(run, arrange, caplog):
    fired = []

    def event_cb(error):
        if isinstance(error, pyasync.CallbackError):
            raise ZeroDivisionError

    with run(catch_app_errors=True):
        pyasync.delay(partial(fired.append, "delay"), time=0.01)
        arrange(raise_app_error, event_cb)
    assert fired == ["delay"]
    logged = [record.exc_info[1] for record in caplog.records]
    assert [type(error) for error in logged] == [AppError, ZeroDivisionError]


# catch_app_errors=function


@each_callback
def test_a_function_is_told_of_each_exception_and_the_loop_goes_on(run, arrange, caplog):
    told, fired = [], []

    def start():
        pyasync.delay(partial(fired.append, "delay"), time=0.01)
        arrange(raise_app_error, event_cb)

    def event_cb(error):
        assert isinstance(error, pyasync.SocketEOF)

    run(start, catch_app_errors=told.append)
    assert [type(error) for error in told] == [AppError]
    assert fired == ["delay"]
    assert caplog.records == []


def test_what_the_function_itself_raises_is_logged_and_the_loop_goes_on(run, caplog):
    fired = []

    def catch(error):
        raise ZeroDivisionError

    with run(catch_app_errors=catch):
        pyasync.delay(raise_app_error)
        pyasync.delay(partial(fired.append, "delay"))
    assert fired == ["delay"]
    assert_logged(caplog, ZeroDivisionError)


# Several of one batch


@pytest.mark.parametrize("buffered", [True, False])
@pytest.mark.parametrize("schedule", [pyasync.delay, pyasync.call_soon])
def test_when_all_callbacks_of_a_batch_raise_all_run_in_order(run, schedule, buffered):
    told = []

    def fail(number):
        raise AppError(number)

    with run(catch_app_errors=told.append, buffer_writes=buffered):
        for number in range(10):
            schedule(partial(fail, number))
    assert [error.args for error in told] == [(number,) for number in range(10)]


def test_when_some_callbacks_of_a_batch_raise_the_others_run_once(run, caplog):
    fired = []

    def fire(number):
        fired.append(number)
        if number % 3 == 0:
            raise AppError(number)

    with run(catch_app_errors=True):
        for number in range(10):
            pyasync.delay(partial(fire, number))
    assert fired == list(range(10))
    assert [record.exc_info[1].args for record in caplog.records] == [(0,), (3,), (6,), (9,)]


# Callbacks that are called again. Each function returns the handle.


def each_tick(callback, event_cb):
    return pyasync.interval(callback, time=0.001, event_cb=event_cb)


def each_turn(callback, event_cb):
    return pyasync.idle(callback, event_cb=event_cb)


def each_trigger(callback, event_cb):
    def triggered():
        notifier.trigger()
        callback()

    notifier = pyasync.make_notifier(triggered, event_cb=event_cb, single_shot=False)
    notifier.trigger()
    return notifier


def each_time_it_is_ready(callback, event_cb):
    return pyasync.poll(writable_socket(), callback, event_cb=event_cb)


def each_signal(callback, event_cb):
    def handle(signo):
        os.kill(os.getpid(), signal.SIGUSR1)
        callback()

    handler = pyasync.signal_handler(signal.SIGUSR1, handle, event_cb=event_cb)
    os.kill(os.getpid(), signal.SIGUSR1)
    return handler


def each_change(callback, event_cb):
    def changed(monitor, *report):
        pyasync.call_soon(change)
        callback()

    def change():
        os.mkdir(folder / str(len(os.listdir(folder))))

    folder = temporary_folder()
    monitor = pyasync.fs_watch(folder, changed, event_cb=event_cb)
    change()
    return monitor


def each_datagram(callback, event_cb):
    udp = pyasync.udp_socket("127.0.0.1", 0, callback, event_cb=event_cb)
    for _ in range(3):
        udp.send(b"data", udp.address)
    return udp


def each_connection(callback, event_cb):
    server = pyasync.tcp_server("127.0.0.1", 0, nothing, connect_cb=callback, event_cb=event_cb)
    for _ in range(3):
        pyasync.tcp_connect(*server.address, nothing, connect_cb=lambda client: client.close())
    return server


@pytest.mark.parametrize(
    "arrange",
    [
        each_tick,
        each_turn,
        each_trigger,
        each_time_it_is_ready,
        each_signal,
        each_change,
        each_datagram,
        each_connection,
    ],
)
def test_a_callback_that_raises_is_called_again(run, arrange):
    called, told = [], []

    def callback(*arguments):
        called.append(len(called))
        if len(called) == 3:
            handle.close()
        raise AppError(called[-1])

    def event_cb(error):
        if not isinstance(error, pyasync.SocketEOF):
            told.append(error.error.args)

    with run(catch_app_errors=True):
        handle = arrange(callback, event_cb)
    assert (called, told) == ([0, 1, 2], [(0,), (1,), (2,)])


# Errors of pyasync's own, which an event_cb is told of. Each function provokes one.


def refused(event_cb):
    unused = closed_at_the_end(socket.socket())
    unused.bind(("127.0.0.1", 0))  # and does not listen
    pyasync.tcp_connect("localhost", unused.getsockname()[1], nothing, event_cb=event_cb)


def no_pipe(event_cb):
    pyasync.pipe_connect(f"\0{uuid.uuid4()}", nothing, event_cb=event_cb)


def no_name(event_cb):
    pyasync.dns_lookup("name.invalid", nothing, event_cb=event_cb)


def no_file(event_cb):
    fs.stat("/nowhere/at/all", nothing, event_cb=event_cb)


def no_permission(event_cb):
    udp = pyasync.udp_socket("127.0.0.1", event_cb=event_cb)
    udp.send(b"forbidden", ("127.255.255.255", 9))
    udp.close()


def failed_work(event_cb):
    pyasync.work(raise_app_error, partial(pytest.fail, "called"), event_cb=event_cb)


def no_tls(event_cb):
    def talk_http(client):
        server.close()
        client.write(b"GET / HTTP/1.1\r\n\r\n")

    server = pyasync.tcp_ssl_server(
        "127.0.0.1", 0, nothing, ssl_context=SERVER(), event_cb=event_cb
    )
    pyasync.tcp_connect(*server.address, nothing, connect_cb=talk_http, event_cb=nothing)


each_error = pytest.mark.parametrize(
    ("provoke", "kind", "words"),
    [
        (refused, pyasync.SocketRefused, "SocketRefused"),
        (no_pipe, pyasync.SocketRefused, "SocketRefused"),
        (no_name, pyasync.DnsError, "name.invalid"),
        (no_file, pyasync.FilesystemNotFound, "FilesystemNotFound.*/nowhere/at/all"),
        (no_permission, pyasync.SocketError, "Permission denied"),
        (failed_work, AppError, "in raise_app_error"),
        (no_tls, pyasync.TcpSslError, "TcpSslError.*HTTP_REQUEST"),
    ],
)


@pytest.mark.usefixtures("_sockets_are_closed")
@each_error
def test_an_error_is_told_to_the_event_cb(run, provoke, kind, words, caplog):
    told = []
    run(lambda: provoke(told.append))
    assert len(told) == 1
    assert isinstance(told[0], kind)
    assert caplog.records == []


@pytest.mark.usefixtures("_sockets_are_closed")
@each_error
def test_an_error_that_no_event_cb_is_told_is_logged(run, provoke, kind, words, caplog):
    run(lambda: provoke(None))
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("pyasync", logging.ERROR)
    assert re.search(words, caplog.text)


def end_of_stream(event_cb):
    def accepted(stream):
        server.close()
        stream.close()

    server = pyasync.tcp_server("127.0.0.1", 0, nothing, connect_cb=accepted)
    pyasync.tcp_connect(*server.address, nothing, event_cb=event_cb)


def test_the_end_of_a_stream_is_not_logged(run, caplog):
    with run():
        end_of_stream(None)
    assert caplog.records == []


def silence(event_cb):
    """A read timeout passes, of a connection that the server keeps open as long as it can."""
    server = pyasync.tcp_server("127.0.0.1", 0, nothing, connect_cb=lambda _: server.close())
    pyasync.tcp_connect(*server.address, nothing, read_timeout=0.01, event_cb=event_cb)


def no_listener_in_time(event_cb):
    """A connect timeout passes, because nobody accepts at a pipe whose backlog is full."""
    listener = closed_at_the_end(socket.socket(socket.AF_UNIX))
    listener.bind(f"\0{uuid.uuid4()}")
    listener.listen(0)
    with contextlib.suppress(BlockingIOError):  # there is no more room
        while True:
            client = closed_at_the_end(socket.socket(socket.AF_UNIX))
            client.setblocking(False)
            client.connect(listener.getsockname())
    pyasync.pipe_connect(listener.getsockname(), nothing, connect_timeout=0.01, event_cb=event_cb)


def no_reader(event_cb):
    """A write timeout passes, and then the peer has not taken everything."""

    def connected(stream):
        small_buffers(stream)
        stream.write(bytes(MORE_THAN_FITS))

    listener = closed_at_the_end(socket.create_server(("127.0.0.1", 0)))
    pyasync.tcp_connect(
        *listener.getsockname(),
        nothing,
        connect_cb=connected,
        write_timeout=0.05,
        event_cb=event_cb,
    )


def no_datagram_socket(event_cb):
    def told(error):
        client.close()
        event_cb(error)

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unused:
        unused.bind(("127.0.0.1", 0))
        address = unused.getsockname()
    client = pyasync.udp_socket("127.0.0.1", event_cb=told)
    client.connect(*address)
    client.send(b"!")
    pyasync.delay(lambda: client.closed or client.send(b"!"), time=0.01)  # which is told of it


def no_descriptor(event_cb):
    """A server cannot accept."""

    def told(error):
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        server.close()
        event_cb(error)

    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    server = pyasync.tcp_server("127.0.0.1", 0, nothing, event_cb=told)
    client = closed_at_the_end(socket.create_connection(server.address))
    resource.setrlimit(resource.RLIMIT_NOFILE, (client.fileno() + 1, limits[1]))


def a_callback_that_raises(event_cb):
    pyasync.delay(raise_zero_division, event_cb=event_cb)


def raise_zero_division():
    raise ZeroDivisionError


to_be_closed = []


def closed_at_the_end(sock):
    to_be_closed.append(sock)
    return sock


@pytest.fixture
def _sockets_are_closed():
    yield
    while to_be_closed:
        to_be_closed.pop().close()


#: Each place of the package that calls an event_cb.
each_news = pytest.mark.parametrize(
    "provoke",
    [refused, no_pipe, no_name, no_file, no_permission, failed_work, no_tls, end_of_stream, silence,
     no_listener_in_time, no_reader, no_datagram_socket, no_descriptor],
)  # fmt: skip


@pytest.mark.usefixtures("_sockets_are_closed")
@each_news
def test_what_an_event_cb_raises_leaves_the_loop(run, provoke, caplog):
    def start():
        pyasync.delay(nothing, time=HOUR)  # for which a loop that goes on would wait
        provoke(raise_in_event_cb)

    with pytest.raises(EventCbError):
        run(start)
    assert pyasync.current_loop() is None
    assert caplog.records == []


@pytest.mark.usefixtures("_sockets_are_closed")
@each_news
def test_a_function_is_told_of_what_an_event_cb_raises(run, provoke, caplog):
    told = []
    run(lambda: provoke(raise_in_event_cb), catch_app_errors=told.append)
    assert EventCbError in [type(error) for error in told]
    assert caplog.records == []


@pytest.mark.usefixtures("_sockets_are_closed")
@pytest.mark.parametrize("provoke", [*each_news.args[1], a_callback_that_raises])
def test_what_an_event_cb_raises_is_logged(run, provoke, caplog):
    run(lambda: provoke(raise_in_event_cb), catch_app_errors=True)
    logged = [record.exc_info[1] for record in caplog.records if record.exc_info]
    assert EventCbError in [type(error) for error in logged]


class EventCbError(Exception):
    """What the event_cb of these tests raises."""


def raise_in_event_cb(info):
    raise EventCbError


# What no catch_app_errors catches


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, Leave])
@pytest.mark.parametrize("policy", [False, True, nothing], ids=["false", "true", "function"])
@each_callback
def test_what_is_no_exception_always_leaves_the_loop(run, arrange, policy, error):
    def fail(*arguments):
        raise error

    def start():
        pyasync.delay(nothing, time=HOUR)  # for which a loop that goes on would wait
        arrange(fail, nothing)

    with pytest.raises(error):
        run(start, catch_app_errors=policy)
    assert pyasync.current_loop() is None


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_what_is_no_exception_leaves_the_loop_from_an_event_cb(run, error):
    def event_cb(info):
        raise error

    with pytest.raises(error):
        run(
            partial(pyasync.delay, raise_app_error, event_cb=event_cb),
            catch_app_errors=True,
        )


# What the exceptions of pyasync say


def connect_udp_to_no_name(event_cb):
    with contextlib.closing(pyasync.udp_socket("127.0.0.1")) as udp:
        udp.connect("", 80)


@pytest.mark.parametrize(
    "call",
    [
        lambda event_cb: pyasync.dns_lookup("", nothing, event_cb=event_cb),
        lambda event_cb: pyasync.tcp_connect("", 80, nothing, event_cb=event_cb),
        lambda event_cb: pyasync.tcp_server("", 0, nothing),
        lambda event_cb: pyasync.udp_socket("", 0),
        connect_udp_to_no_name,
    ],
)
def test_an_error_of_a_name_has_libuvs_number_and_the_c_librarys(run, call):
    errors = []
    with run():
        try:
            call(errors.append)
        except (pyasync.DnsError, pyasync.TcpServerBindError) as error:
            errors.append(error)
    (error,) = errors
    assert error.errno == socket.EAI_NONAME
    assert error.errcode == lib.UV_EAI_NONAME == -3008


def test_an_address_of_another_family_has_libuvs_number(run):
    errors = []
    run(lambda: pyasync.dns_lookup("::1", nothing, event_cb=errors.append, family=socket.AF_INET))
    assert errors[0].errcode == lib.UV_EAI_ADDRFAMILY == -3000


@pytest.mark.parametrize("name", [name for name in dir(lib) if name.startswith("UV_EAI_")])
def test_each_error_of_a_lookup_has_libuvs_number(name):
    if not hasattr(socket, name[3:]):
        pytest.skip("this system has no such error")
    error = pyasync.DnsError(getattr(socket, name[3:]), "what happened")
    assert error.errcode == getattr(lib, name)


def test_an_error_of_the_system_in_a_lookup_has_its_number():
    error = dns_error(-errno.ENOMEM, "name.test")
    assert (error.errno, error.errcode) == (socket.EAI_SYSTEM, -errno.ENOMEM)


def test_an_error_that_is_not_the_systems_has_a_text_and_no_number():
    with pytest.raises(pyasync.EventLoopNotRunning) as raised:
        pyasync.now()
    assert raised.value.errcode is None
    assert raised.value.errmsg == str(raised.value) == "no event loop is running in this thread"


class Interrupting:
    """C, with a signal during pa_close whose handler raises."""

    def __getattr__(self, name):
        return getattr(lib, name)

    def pa_close(self, *args):
        lib.pa_close(*args)
        raise AppError


def test_a_handle_is_closed_also_if_its_close_is_interrupted(run, monkeypatch):
    with run():
        server = pyasync.tcp_server("127.0.0.1", 0, nothing)
        monkeypatch.setattr(pyasync._core.handles, "lib", Interrupting())
        with pytest.raises(AppError):
            server.close()
        assert server.closed


# The builtin classes


BUILTIN = {
    errno.EEXIST: FileExistsError,
    errno.ENOENT: FileNotFoundError,
    errno.EISDIR: IsADirectoryError,
    errno.ENOTDIR: NotADirectoryError,
    errno.EACCES: PermissionError,
    errno.EPERM: PermissionError,
    errno.ESRCH: ProcessLookupError,
    errno.EAGAIN: BlockingIOError,
    errno.EINTR: InterruptedError,
    errno.EPIPE: BrokenPipeError,
    errno.ECONNREFUSED: ConnectionRefusedError,
    errno.ECONNRESET: ConnectionResetError,
    errno.ECONNABORTED: ConnectionAbortedError,
    errno.ETIMEDOUT: TimeoutError,
    errno.ENOSPC: OSError,
}


@pytest.mark.parametrize("make", [filesystem_error, socket_error])
@pytest.mark.parametrize("number", BUILTIN, ids=errno.errorcode.get)
def test_an_error_is_of_the_builtin_class_of_its_errno_and_can_be_copied(make, number):
    error = make(-number)
    for each in (error, copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert isinstance(each, BUILTIN[number])
        assert isinstance(each, (pyasync.FilesystemError, pyasync.SocketError))
        assert type(each) is type(error)
        assert (each.errno, str(each), each.errcode) == (number, str(error), -number)


def fail_on_files(folder, told):
    (folder / "file").touch()
    fs.mkdir(folder, nothing, event_cb=told.append)
    fs.open(folder, os.O_WRONLY, nothing, event_cb=told.append)
    fs.scandir(folder / "file", nothing, event_cb=told.append)
    fs.rmdir(folder / "none", nothing, event_cb=told.append)


def test_a_program_can_catch_the_builtin_classes(run, tmp_path):
    told = []
    run(lambda: fail_on_files(tmp_path, told))
    for builtin in (FileExistsError, IsADirectoryError, NotADirectoryError, FileNotFoundError):
        assert [error for error in told if isinstance(error, builtin)], builtin
    with run():
        for call, builtin in [
            (lambda: pyasync.spawn(str(tmp_path), []), PermissionError),
            (lambda: pyasync.pipe_server(tmp_path / "none" / "pipe", nothing), FileNotFoundError),
            (lambda: pyasync.pipe_server(tmp_path / "file" / "pipe", nothing), NotADirectoryError),
        ]:
            with pytest.raises(builtin) as raised:
                call()
            assert isinstance(raised.value, pyasync.EventError)


def test_an_error_of_tls_is_of_no_class_of_an_errno():
    assert not isinstance(pyasync.TcpSslError(errno.EPERM, "text"), PermissionError)
