"""The page of examples/stats_page.py: its HTTP, and what a browser shows of it."""

import contextlib
import http.client
import importlib.util
import json
import re
import signal
import socket
import subprocess
import sys

import browser
import pytest
from example_programs import EXAMPLES, Server, serving
from peers import MORE_THAN_FITS, PATIENCE, Background, read_all, small_buffers, small_window, when

import pyasync

BENCH = EXAMPLES.parent / "bench"
GET = b"GET /%b HTTP/1.1\r\nHost: localhost\r\n\r\n"

needs_chromium = pytest.mark.skipif(browser.PROGRAM is None, reason="Chromium is not installed")


@pytest.fixture(scope="module")
def stats_page():
    with serving("stats_page.py") as server:
        yield server


@pytest.fixture
def client(stats_page):
    """Give an HTTP client, of the standard library."""
    connection = http.client.HTTPConnection(*stats_page.address, timeout=PATIENCE)
    with contextlib.closing(connection):
        yield connection


def request(client, *arguments, **keywords):
    client.request(*arguments, **keywords)
    answer = client.getresponse()
    return answer, answer.read()


def raw(server, data, *, end=True):
    """Send bytes, and return the whole answer, up to the end of the connection."""
    with server.connect() as sock:
        sock.sendall(data)
        if end:
            sock.shutdown(socket.SHUT_WR)
        return read_all(sock)


def statuses(answer):
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", answer)]


class Events:
    """A viewer: reads server-sent events."""

    def __init__(self, sock, request=GET % b"events"):
        sock.sendall(request)
        self.file = sock.makefile("rb")
        self.head = b"".join(iter(self.file.readline, b"\r\n"))
        assert self.file.readline() == b"retry: 1000\n"
        assert self.file.readline() == b"\n"

    def next(self):
        name, data, end = (self.file.readline() for _ in range(3))
        assert end == b"\n"
        assert name.startswith(b"event: ")
        assert data.startswith(b"data: ")
        return name[7:-1].decode(), json.loads(data[6:])


# HTTP


def test_the_page_is_one_file_that_needs_nothing_else(client):
    answer, body = request(client, "GET", "/")
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert body == (EXAMPLES / "stats_page.html").read_bytes()
    # The one address is a name of XML's.
    assert set(re.findall(rb"https?://[^'\" ]+", body)) == {b"http://www.w3.org/2000/svg"}


def test_a_connection_answers_one_request_after_the_other(client):
    assert request(client, "GET", "/")[0].status == 200
    sock = client.sock
    assert request(client, "GET", "/?query#")[0].status == 200
    assert request(client, "GET", "/nothing/here")[0].status == 404
    assert client.sock is sock


def test_a_head_is_that_of_the_get_without_the_body(client):
    for path in ("/", "/nothing"):
        head, nothing = request(client, "HEAD", path)
        get, body = request(client, "GET", path)
        assert nothing == b""
        assert head.status == get.status
        assert head.headers["Content-Length"] == get.headers["Content-Length"] == str(len(body))


def test_the_head_of_the_events_ends(stats_page):
    answer = raw(stats_page, b"HEAD /events HTTP/1.1\r\nHost: x\r\n\r\n", end=False)
    assert statuses(answer) == [200]
    assert b"text/event-stream" in answer
    assert answer.endswith(b"\r\n\r\n")


def test_other_methods_are_told_what_is_allowed(client):
    answer, _ = request(client, "POST", "/", body=b"some data")
    assert answer.status == 405
    assert answer.headers["Allow"] == "GET, HEAD"
    assert answer.headers["Connection"] == "close"  # its body is not read
    assert request(client, "DELETE", "/")[0].status == 405


@pytest.mark.parametrize(
    ("head", "closes"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close", True),
        (b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Foo, Close", True),
        (b"GET / HTTP/1.0", True),
        (b"GET / HTTP/1.0\r\nConnection: keep-alive", False),
        (b"GET / HTTP/1.1\r\nHost: x", False),
    ],
)
def test_the_client_decides_whether_the_connection_stays(stats_page, head, closes):
    answer = raw(stats_page, head + b"\r\n\r\n" + GET % b"nothing")
    assert statuses(answer) == ([200] if closes else [200, 404])
    assert (b"Connection: close" in answer) == closes


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"hello\r\n\r\n", 400),
        (b"GET /\r\n\r\n", 400),
        (b"GET  / HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET http://[ HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),  # no Host
        (b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost : x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\n folded\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\nHost: x\r\n\r\n", 505),
        (b"GET /" + b"a" * 9000, 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 9000 + b"\r\n\r\n", 431),
    ],
)
def test_what_cannot_be_understood_is_refused_and_ends_the_connection(stats_page, data, status):
    assert statuses(raw(stats_page, data + GET % b"")) == [status]


def test_a_request_may_come_in_pieces_and_in_the_form_for_proxies(stats_page):
    with stats_page.connect() as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in b"\r\nGET http://localhost/nothing?a HTTP/1.1\r\nHost: localhost\r\n\r\n":
            sock.sendall(bytes([byte]))
        sock.shutdown(socket.SHUT_WR)
        assert statuses(read_all(sock)) == [404]


def test_requests_that_come_all_at_once_are_answered_in_order(stats_page):
    answer = raw(stats_page, (GET % b"" + GET % b"nothing") * 150)
    assert statuses(answer) == [200, 404] * 150


def test_half_a_request_gets_no_answer(stats_page):
    assert raw(stats_page, b"GET / HTTP/1.1\r\nHost: ") == b""


# Events


def test_a_viewer_gets_the_past_and_then_frames(stats_page):
    with stats_page.connect() as sock:
        viewer = Events(sock)
        assert b"Content-Type: text/event-stream\r\n" in viewer.head
        name, start = viewer.next()
        assert name == "start"
        assert start["program"] == "stats_page.py"
        assert pyasync.libuv_version() in start["versions"]
        assert all(len(row) == 6 for row in start["rows"])
        frames = [viewer.next() for _ in range(2)]
    assert [name for name, _ in frames] == ["frame", "frame"]
    first, second = (frame for _, frame in frames)
    assert second["row"][0] > first["row"][0] > 0
    assert 0 <= second["row"][1] <= 1
    assert second["row"][2] >= 1  # this connection
    assert second["written"] > first["written"] > 0
    assert second["viewers"] >= 1
    assert second["handles"]["tcp-server"] == 1


def test_accepted_connections_show_in_the_next_frame(stats_page):
    with stats_page.connect() as sock:
        viewer = Events(sock)
        viewer.next()
        before = viewer.next()[1]["accepted"]
        for _ in range(5):
            stats_page.connect().close()
        after = viewer.next()[1]["accepted"]
        while after < before + 5:
            after = viewer.next()[1]["accepted"]
    assert after == before + 5


def test_many_viewers_all_get_frames(stats_page):
    with contextlib.ExitStack() as stack:
        viewers = [Events(stack.enter_context(stats_page.connect())) for _ in range(50)]
        for viewer in viewers:
            assert viewer.next()[0] == "start"
        frames = [viewer.next()[1] for viewer in viewers]
    assert max(frame["viewers"] for frame in frames) >= 50


@pytest.fixture
def module():
    """Give the example, as a module."""
    spec = importlib.util.spec_from_file_location("stats_page", EXAMPLES / "stats_page.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_shutdown_sends_what_was_written_and_waits_for_those_who_read(run, module):
    ended, read = [], []

    def view(viewer):
        stream = page.server.connections[0]
        small_buffers(stream)
        stream.write(bytes(MORE_THAN_FITS))
        page.shutdown(None, ended.append)
        assert ended == []
        read.append(Background(read_all, viewer))

    with run():
        page = module.StatsPage("127.0.0.1", 0)
        viewer = socket.create_connection(page.address)
        viewer.settimeout(PATIENCE)
        when(lambda: page.server.connections, lambda: view(viewer))
    with viewer:
        assert read[0].result() == bytes(MORE_THAN_FITS)
    assert ended == [page.server]


def test_a_viewer_that_does_not_read_misses_frames_and_holds_up_nobody(run, module):
    found = {}

    with run():
        page = module.StatsPage("127.0.0.1", 0)
        slow = socket.socket()
        small_window(slow)  # or it takes tens of thousands of frames
        slow.connect(page.address)
        slow.sendall(GET % b"events")
        quick = pyasync.tcp_connect(
            *page.address, lambda socket, data: chunks.append(len(data)), data=GET % b"events"
        )
        chunks = []

        def flood():
            for viewer in page.viewers:
                small_buffers(viewer)
            page.on_tick()
            waiting = [viewer for viewer, keeps_up in page.viewers.items() if not keeps_up]
            stuck = [viewer for viewer in waiting if viewer.peername == slow.getsockname()]
            if not stuck:
                pyasync.call_soon(flood)
                return
            found["waits"] = stuck[0].write_queue_size
            found["read before"] = sum(chunks)
            go_on(stuck[0], 200)

        def go_on(viewer, ticks):
            page.on_tick()
            if ticks:
                pyasync.call_soon(lambda: go_on(viewer, ticks - 1))
                return
            found["waits later"] = viewer.write_queue_size
            found["read"] = sum(chunks)
            slow.setblocking(False)
            drain(viewer)

        def drain(viewer):
            with contextlib.suppress(BlockingIOError):
                slow.recv(1 << 20)
            if not page.viewers[viewer]:
                pyasync.call_soon(lambda: drain(viewer))
                return
            found["keeps up"] = True
            slow.close()
            quick.close(force=True)

        pyasync.call_soon(flood)
    assert 0 < found["waits"] == found["waits later"]
    assert found["read"] > found["read before"] > 0
    assert found["keeps up"]


def test_a_client_that_asks_on_and_does_not_read_is_not_read_any_more(run, module):
    blocked = []

    with run(limit=100):
        page = module.StatsPage("127.0.0.1", 0)
        greedy = socket.create_connection(page.address)
        greedy.setblocking(False)
        read = []  # by the server, up to each look

        def ask():
            with contextlib.suppress(BlockingIOError):
                while True:
                    greedy.send(GET % b"" * 100)
            read.append(pyasync.stats().bytes_read)
            if read[-1] > 0 and read[-50:] == [read[-1]] * 50:
                blocked.append(len(page.server.connections[0].data.input))
                greedy.close()
            else:
                pyasync.delay(ask, time=0.001)

        ask()
    assert 0 < blocked[0] < 1 << 20


def test_the_page_keeps_no_loop_running(run, module):

    with run():
        page = module.StatsPage("127.0.0.1", 0)
        with socket.create_connection(page.address) as sock:
            sock.sendall(GET % b"events")


# Attached to the benchmark's server


@contextlib.contextmanager
def watched_benchmark(*arguments, status=0):
    """Give http_delay.py's port, and the address of its page; it ends with the exit status."""
    with subprocess.Popen(
        [sys.executable, BENCH / "http_delay.py", "--port=0", "--page=0", "--json", *arguments],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            said = {}
            while "page" not in said:
                line = json.loads(process.stdout.readline())
                said[line["event"]] = line
            yield said["listening"]["port"], said["page"]["url"]
            process.terminate()
            process.communicate(timeout=PATIENCE)
            assert process.returncode == status
        finally:
            process.kill()


def test_the_benchmark_shows_its_own_loop():
    with watched_benchmark("--delay=0") as (port, url):
        host, page_port = re.fullmatch(r"http://([\d.]+):(\d+)/", url).groups()
        with socket.create_connection((host, int(page_port)), timeout=PATIENCE) as sock:
            viewer = Events(sock)
            assert viewer.next()[1]["program"] == "http_delay.py"
            with socket.create_connection((host, port), timeout=PATIENCE) as client:
                client.sendall(GET % b"")
                read_all(client)
            frame = viewer.next()[1]
            while frame["accepted"] < 2:  # a frame of the time before
                frame = viewer.next()[1]
            assert (frame["accepted"], frame["handles"]["tcp-server"]) == (2, 2)


def test_a_page_of_several_workers_is_refused():
    command = [sys.executable, BENCH / "http_delay.py", "--page=0", "--workers=2"]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert finished.returncode == 2
    assert "--page shows one loop" in finished.stderr


# In a browser


@needs_chromium
@pytest.mark.slow
@pytest.mark.parametrize(
    ("width", "scheme"), [(1240, "light"), (390, "dark")], ids=["wide, light", "narrow, dark"]
)
def test_a_browser_shows_the_load_live(width, scheme):
    load = ["--delay=0.2", "--load=100000", "--rate=200"]
    # The load is interrupted, and so the exit status is 1.
    with watched_benchmark(*load, status=1) as (_, url), browser.page() as page:
        page.open(url, width=width, scheme=scheme)
        page.wait_for("document.getElementById('state').textContent === 'live'")
        page.wait_for("rows.length > 4")
        accepted = "frames.get(rows[rows.length - 1][0]).accepted"
        first = page.evaluate(accepted)
        assert page.wait_for(f"{accepted} > {first} && {accepted}") > first
        page.wait_for("parseFloat(document.getElementById('rate').textContent) > 50")
        page.wait_for("parseFloat(document.getElementById('open').textContent) > 5")
        assert "tcp-server" in page.evaluate("document.getElementById('handles').textContent")
        # Something is drawn, and nothing sticks out at the side.
        for canvas in range(4):
            drawn = f"""(canvas => canvas.getContext('2d')
                .getImageData(0, 0, canvas.width, canvas.height).data.some(value => value)
                )(document.querySelectorAll('canvas')[{canvas}])"""
            assert page.evaluate(drawn)
        assert page.evaluate("document.documentElement.scrollWidth") == width
        # A moment that is pointed at shows in place of the last.
        x, y = page.evaluate(
            """(box => [box.right - 24, box.top + 40])(
                document.querySelector('canvas').getBoundingClientRect())"""
        )
        page.point(x, y)
        page.wait_for("document.getElementById('busy').textContent.endsWith('ago')")
        page.point(1, 1)
        page.wait_for("document.getElementById('busy').textContent.endsWith('busy')")
        # Of a moment before the page was opened only the charts tell something: a dash is shown
        # where the figure of another moment would mislead.
        page.open(url, width=width, scheme=scheme)
        page.wait_for("rows.filter(row => !frames.has(row[0])).length > 2")
        page.evaluate("pointed = rows.find(row => !frames.has(row[0]))[0]; refresh()")
        page.wait_for("document.getElementById('accepted').textContent === '\\u2013'")
        assert page.evaluate("document.getElementById('handles').textContent") == ""
        page.evaluate("pointed = null; refresh()")
        page.wait_for("document.getElementById('accepted').textContent !== '\\u2013'")
        # A chart's figures have the unit of its axis.
        for chart, figure in UNITS:
            unit = f"chart('{chart}').unit(limitOf(chart('{chart}')))[1]"
            shown = f"document.querySelector('#{figure} small')?.textContent ?? ''"
            assert page.evaluate(f"{unit} === ({shown})"), figure
        assert page.screenshot().startswith(b"\x89PNG")
        assert page.complaints == []


#: What a chart is about, and its figures.
UNITS = [
    ("load", "utilization"),
    ("open", "open"),
    ("rate", "rate"),
    ("bytes", "in"),
    ("bytes", "out"),
]


@needs_chromium
@pytest.mark.slow
@pytest.mark.parametrize("signo", [signal.SIGKILL, signal.SIGSTOP], ids=["gone", "silent"])
def test_figures_of_a_server_that_is_gone_do_not_look_live(signo):
    server = Server("stats_page.py")
    with contextlib.ExitStack() as stack:
        stack.callback(server.end, signal.SIGKILL)
        page = stack.enter_context(browser.page())
        page.open("http://{}:{}/".format(*server.address))
        page.wait_for("document.getElementById('busy').textContent.endsWith('busy')")
        color = "getComputedStyle(document.getElementById('utilization')).color"
        live = page.evaluate(color)
        server.process.send_signal(signo)
        page.wait_for("document.getElementById('busy').textContent.startsWith('when last seen')")
        assert page.evaluate(color) != live
        assert page.evaluate("document.getElementById('state').textContent").startswith("gone for")
        # It goes on: the last row moves away from the edge that is the present.
        page.wait_for("now() - rows[rows.length - 1][0] > 4")


@needs_chromium
@pytest.mark.slow
def test_a_browser_connects_again_to_a_server_that_is_back():
    with browser.page() as page:
        with serving("stats_page.py") as server:
            port = server.address[1]
            page.open("http://{}:{}/".format(*server.address))
            page.wait_for("document.getElementById('state').textContent === 'live'")
        page.wait_for("document.getElementById('state').textContent !== 'live'")
        with serving("stats_page.py", f"--port={port}"):
            page.wait_for("document.getElementById('state').textContent === 'live'")
