"""context=: callbacks in a context of contextvars, of a connection's own or the caller's."""

import contextvars
import socket
import threading

import pytest
from peers import LINKS, MORE_THAN_FITS, PIPE_LINKS, make_link, nothing, read_all, small_buffers
from tls_peers import CLIENT, SERVER, TLS_LINKS

import pyasync

VAR = contextvars.ContextVar("VAR", default="outside")


def context_with(value):
    context = contextvars.copy_context()
    context.run(VAR.set, value)
    return context


@pytest.fixture
def inside():
    return context_with("inside")


@pytest.fixture(params=[*LINKS, *PIPE_LINKS, *TLS_LINKS])
def link(request, run):
    return make_link(run, request.param)


# Calls and timers


@pytest.mark.parametrize(
    "call",
    [
        lambda fn, **options: pyasync.call_soon(fn, **options),
        lambda fn, **options: pyasync.delay(fn, **options),
        lambda fn, **options: pyasync.delay(fn, time=0.001, event_cb=nothing, **options),
        lambda fn, **options: pyasync.make_event(fn, **options).add(0.001),
        lambda fn, **options: pyasync.make_event(fn, event_cb=nothing, **options).add(),
        lambda fn, **options: pyasync.with_delay(0.001, **options)(fn),
        lambda fn, **options: pyasync.work(nothing, lambda result: fn(), **options),
    ],
)
def test_a_call_runs_in_the_context_itself_and_without_one_as_it_is(run, inside, call):
    seen = []

    def fn():
        seen.append(VAR.get())
        VAR.set("changed")

    token = VAR.set("outside")
    try:
        with run():
            call(fn, context=inside)
        with run():
            call(lambda: seen.append(VAR.get()))
    finally:
        VAR.reset(token)
    assert seen == ["inside", "outside"]
    assert inside[VAR] == "changed"


def an_event_that_repeats(fn, *, time, context):
    """Return an event that arms itself again in its callback."""

    def due():
        event.add(time)
        fn()

    event = pyasync.make_event(due, context=context)
    event.add(time)
    return event


@pytest.mark.parametrize(
    "repeat",
    [
        pyasync.interval,
        lambda fn, **options: pyasync.with_interval(**options)(fn),
        an_event_that_repeats,
    ],
    ids=["interval", "with_interval", "make_event"],
)
def test_what_repeats_runs_in_its_context_each_time(run, inside, repeat):
    seen = []

    def tick():
        seen.append(VAR.get())
        VAR.set(f"tick {len(seen)}")
        if len(seen) == 3:
            ticker.close()

    with run():
        ticker = repeat(tick, time=0.001, context=inside)
    assert seen == ["inside", "tick 1", "tick 2"]


def make_and_add(callback, **options):
    pyasync.make_event(callback, **options).add()


@pytest.mark.parametrize("call", [pyasync.delay, make_and_add, pyasync.work])
def test_event_cb_runs_in_the_context_too(run, inside, call):
    seen = []

    def fail():
        raise KeyError

    options = {"callback": nothing} if call is pyasync.work else {}
    with run(catch_app_errors=True):
        call(fail, event_cb=lambda event: seen.append(VAR.get()), context=inside, **options)
    assert seen == ["inside"]


def test_work_runs_in_a_copy_of_the_callers_context(run, inside):
    seen = []

    def fn():
        seen.append((VAR.get(), threading.current_thread() is threading.main_thread()))
        VAR.set("of the thread")

    with run():
        inside.run(pyasync.work, fn, lambda result: seen.append(VAR.get()))
    with run():
        pyasync.work(fn, lambda result: seen.append(VAR.get()), context=inside)
    assert seen == [("inside", False), "outside", ("inside", False), "inside"]
    assert inside[VAR] == "inside"


# Sockets


def test_all_callbacks_of_a_socket_run_in_one_copy(link, inside):
    seen = {}

    def note(name, then=nothing):
        def callback(*args):
            seen.setdefault(name, VAR.get())
            VAR.set("the connection's")
            then(*args)

        return callback

    def begin(stream):
        small_buffers(stream)
        stream.write(b"hello", write_cb=note("write_cb"))
        stream.write(bytes(MORE_THAN_FITS))
        stream.read_cb = note("read_cb", lambda stream, data: stream.shutdown())

    def peer(sock):
        sock.sendall(b"!")
        return len(read_all(sock))

    link(
        note("connect_cb", begin),
        peer,
        event_cb=note("event_cb"),
        pressure_cb=note("pressure_cb"),
        close_cb=note("close_cb"),
        context=inside,
    )
    assert seen.pop("connect_cb") == "inside"
    # A peer that reads fast may let no pressure arise.
    assert set(seen) >= {"read_cb", "write_cb", "event_cb", "close_cb"}
    assert set(seen.values()) == {"the connection's"}
    assert inside[VAR] == "inside"
    assert VAR.get() == "outside"


def test_each_connection_of_a_server_has_a_copy_of_its_own(run, inside):
    seen = []

    def on_connect(stream):
        seen.append(VAR.get())
        VAR.set(stream.peername)

    def on_data(stream, data):
        assert VAR.get() == stream.peername
        seen.append("data")
        stream.close()
        if seen.count("data") == 3:
            server.close()

    with run():
        server = pyasync.tcp_server("127.0.0.1", 0, on_data, connect_cb=on_connect, context=inside)
        socks = [socket.create_connection(server.address) for _ in range(3)]
        for sock in socks:
            sock.sendall(b"!")
    for sock in socks:
        sock.close()
    assert sorted(seen) == ["data"] * 3 + ["inside"] * 3


def test_read_cb_is_told_as_it_was_given(run, inside):
    with run():
        stream = pyasync.init_tcp_socket(nothing, context=inside)
        assert stream.read_cb is nothing
        stream.read_cb = print
        assert stream.read_cb is print
        stream.write(b"!", read_cb=nothing, event_cb=nothing)
        assert stream.read_cb is nothing
        stream.close()


def test_a_callback_that_makes_another_run_inside_it_does_not_enter_the_context_twice(run, inside):
    told = []

    def on_connect(stream):
        stream.disable(write=True)
        stream.write(bytes(200_000))  # calls pressure_cb at once
        assert told == ["inside"]
        stream.close(force=True)
        server.close()

    with run():
        server = pyasync.tcp_server(
            "127.0.0.1",
            0,
            nothing,
            connect_cb=on_connect,
            pressure_cb=lambda stream, paused: told.append(VAR.get()),
            context=inside,
        )
        pyasync.tcp_connect(*server.address, nothing, event_cb=nothing)


def test_the_data_of_a_connect_and_a_file_have_callbacks_in_the_context(run, inside, tmp_path):
    seen = []
    (tmp_path / "file").write_bytes(b"file")

    def sent(stream):
        seen.append(VAR.get())
        if len(seen) == 2:
            stream.close()
            server.close()

    with run():
        server = pyasync.tcp_server("127.0.0.1", 0, nothing)
        client = pyasync.tcp_connect(
            *server.address, nothing, data=b"!", write_cb=sent, context=inside
        )
        with open(tmp_path / "file", "rb") as file:
            client.sendfile(file, write_cb=sent)
    assert seen == ["inside"] * 2


def test_a_connection_keeps_its_context_when_it_goes_on_with_tls(run, inside):
    seen = []

    def on_data(stream, data):
        pyasync.start_tls(
            stream,
            ssl_context=SERVER(),
            server_side=True,
            received=data,
            connect_cb=lambda stream: seen.append(VAR.get()),
            read_cb=lambda stream, data: (seen.append(VAR.get()), stream.close(), server.close()),
        )

    def go_on(stream):
        pyasync.start_tls(stream, ssl_context=CLIENT(), server_hostname="localhost")
        stream.write(b"secret")

    with run():
        server = pyasync.tcp_server("127.0.0.1", 0, on_data, context=inside)
        pyasync.tcp_connect(*server.address, nothing, connect_cb=go_on)
    assert seen == ["inside"] * 2


def test_the_event_cb_of_a_server_runs_in_the_context(run, inside):
    seen = []

    def fail(server):
        raise KeyError

    with run(catch_app_errors=True):
        server = pyasync.tcp_server(
            "127.0.0.1", 0, nothing, event_cb=lambda event: seen.append(VAR.get()), context=inside
        )
        server.shutdown(1, fail)
    assert seen == ["inside"]


def test_exceptions_pass_through_and_the_context_is_left(run, inside):
    events, seen = [], []

    def fail(stream):
        raise KeyError("mine")

    def on_event(event):
        events.append(type(event))
        seen.append(VAR.get())
        for stream in server.connections:
            stream.close()
        server.close()

    with run(catch_app_errors=True):
        server = pyasync.tcp_server(
            "127.0.0.1", 0, nothing, connect_cb=fail, event_cb=on_event, context=inside
        )
        pyasync.tcp_connect(*server.address, nothing, event_cb=nothing)
    assert events == [pyasync.CallbackError]
    assert seen == ["inside"]


# UDP and processes


def test_all_callbacks_of_a_udp_socket_run_in_one_copy(run, inside):
    seen = []

    def note(name, then=nothing):
        def callback(*args):
            seen.append((name, VAR.get()))
            VAR.set(name)
            then()

        return callback

    def answer():
        udp.send(b"!", ("127.0.0.1", 9), write_cb=note("write_cb", refuse))

    def refuse():
        udp.send(b"forbidden", ("127.255.255.255", 9))  # EACCES: it is a broadcast

    with run():
        udp = pyasync.udp_socket(
            "127.0.0.1",
            0,
            note("read_cb", answer),
            event_cb=note("event_cb", lambda: udp.close()),
            context=inside,
        )
        udp.send(b"?", udp.address)
    assert seen == [("read_cb", "inside"), ("write_cb", "read_cb"), ("event_cb", "write_cb")]
    assert inside[VAR] == "inside"
    assert VAR.get() == "outside"


def test_all_callbacks_of_a_process_and_its_pipes_run_in_one_copy(run, inside):
    seen = []

    def note(name, then=nothing):
        def callback(*args):
            seen.append((name, VAR.get()))
            VAR.set("the process's")
            then()

        return callback

    with run():
        cat = pyasync.spawn(
            "cat",
            [],
            exit_cb=note("exit_cb"),
            event_cb=note("event_cb"),
            input=pyasync.StdioPipe(write_cb=note("default write_cb")),
            output=pyasync.StdioPipe(
                read_cb=note("read_cb", lambda: cat.input.close()), close_cb=note("close_cb")
            ),
            context=inside,
        )
        cat.input.write(b"one", write_cb=note("write_cb"))
        cat.input.write(b"two")
    names = {name for name, value in seen}
    assert names == {
        *("write_cb", "default write_cb", "read_cb", "event_cb", "close_cb", "exit_cb"),
    }
    assert [value for name, value in seen] == ["inside"] + ["the process's"] * (len(seen) - 1)
    assert inside[VAR] == "inside"
    assert VAR.get() == "outside"


def test_without_a_context_the_callbacks_of_udp_and_processes_are_not_wrapped(run):
    with run():
        udp = pyasync.udp_socket("127.0.0.1", 0, nothing)
        assert udp._read_cb is nothing
        udp.close()
        child = pyasync.spawn("true", [], exit_cb=nothing, output=pyasync.StdioPipe(read_cb=print))
        assert child._exit_cb is nothing
        assert child.output.read_cb is print


# Without one


def test_without_a_context_nothing_is_wrapped_and_the_fast_path_stays(run):
    seen = []

    def on_data(stream, data):
        seen.append((stream._state, stream._options is server._options, stream._options.read_cb))
        stream.close()
        server.close()

    with run():
        server = pyasync.tcp_server("127.0.0.1", 0, on_data)
        pyasync.tcp_connect(*server.address, nothing, data=b"!").close()
    assert seen == [(0, True, on_data)]
