"""Real programs, unchanged, on pyasync's loop. Each is tested where it is installed.

`pip install 'pyasync[programs]'` installs them; Redis and PostgreSQL come from the system.
"""

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest
import tls_peers
from peers import run_python, wait_until

import pyasync.aio

PATIENCE = 60
BENCH = Path(__file__).parents[2] / "bench"


def run(main):
    """Run a coroutine on pyasync's loop, within a time."""

    async def in_time():
        assert isinstance(asyncio.get_running_loop(), pyasync.aio.EventLoop)
        return await asyncio.wait_for(main, PATIENCE)

    return pyasync.aio.run(in_time())


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return sock.getsockname()[1]


def is_listening(port):
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def program(words, port, **options):
    """Run a program until the block ends; it listens at the port when the block begins."""
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, **options)
    try:
        wait_until(lambda: process.poll() is not None or is_listening(port), PATIENCE)
        yield process
        process.send_signal(signal.SIGINT)
        process.wait(PATIENCE)
    finally:
        process.kill()
        process.wait()


# Web servers

APPLICATION = """
async def app(scope, receive, send):
    import asyncio
    if scope["type"] != "http":
        return
    await asyncio.sleep(0.001)
    body = type(asyncio.get_running_loop()).__module__.encode()
    await send({"type": "http.response.start", "status": 200,
                "headers": [(b"content-length", str(len(body)).encode())]})
    await send({"type": "http.response.body", "body": body})
"""

# The dependency is no coroutine, so it runs in a thread of anyio's.
FASTAPI_APPLICATION = """
import asyncio, threading
from fastapi import Depends, FastAPI
from fastapi.responses import PlainTextResponse
app = FastAPI()

def thread():
    return threading.current_thread()

@app.get("/", response_class=PlainTextResponse)
async def root(other=Depends(thread)):
    await asyncio.sleep(0.001)
    assert other is not thread()
    return type(asyncio.get_running_loop()).__module__
"""

SERVERS = {
    # Its other loops are classes of asyncio's and uvloop's, which it names itself.
    "uvicorn, httptools": ["uvicorn", "--http", "httptools", "--loop", "none"],
    "uvicorn, h11": ["uvicorn", "--http", "h11", "--loop", "none"],
    "uvicorn, its own option": ["uvicorn", "--loop", "pyasync.aio:new_event_loop"],
    "uvicorn, FastAPI": ["uvicorn", "--loop", "none"],
    # Workers are processes of their own, in which nobody has changed the loop.
    "hypercorn": ["hypercorn", "--workers", "0"],
}


@pytest.mark.parametrize("name", SERVERS)
def test_an_asgi_server_answers(tmp_path, name):
    module, *options = SERVERS[name]
    pytest.importorskip(module)
    if "httptools" in options:
        pytest.importorskip("httptools")
    if "FastAPI" in name:
        pytest.importorskip("fastapi")
    application = FASTAPI_APPLICATION if "FastAPI" in name else APPLICATION
    (tmp_path / "application.py").write_text(application)
    port = free_port()
    where = ["--bind", f"127.0.0.1:{port}"] if module == "hypercorn" else ["--port", str(port)]
    words = [sys.executable, "-m", "pyasync.aio", "-m", module, *options, *where, "application:app"]
    with program(words, port, cwd=tmp_path):
        for _ in range(20):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=PATIENCE) as answer:
                assert answer.read() == b"pyasync.aio.loop"
        if shutil.which("wrk"):
            report = subprocess.run(
                ["wrk", "-t1", "-c50", "-d1", f"http://127.0.0.1:{port}/"],
                capture_output=True,
                text=True,
            ).stdout
            assert "Requests/sec" in report
            assert "Non-2xx" not in report
            assert "Socket errors" not in report


def test_aiohttp_serves_and_asks(tmp_path):
    web = pytest.importorskip("aiohttp.web")
    aiohttp = pytest.importorskip("aiohttp")
    content = os.urandom(1 << 20)
    (tmp_path / "file").write_bytes(content)

    async def echo(request):
        return web.Response(body=await request.read())

    async def websocket(request):
        ws = web.WebSocketResponse()
        await ws.prepare(request)
        async for message in ws:
            await ws.send_str(message.data.upper())
        return ws

    async def main():
        app = web.Application(client_max_size=8 << 20)
        app.router.add_post("/echo", echo)
        app.router.add_get("/ws", websocket)
        app.router.add_static("/files", tmp_path)
        runner = web.AppRunner(app)
        await runner.setup()
        path = str(tmp_path / "socket")
        sites = [
            web.TCPSite(runner, "127.0.0.1", 0),
            web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls_peers.server_context()),
            web.UnixSite(runner, path),
        ]
        for site in sites:
            await site.start()
        plain, tls = (site._server.sockets[0].getsockname()[1] for site in sites[:2])
        context = tls_peers.client_context()
        async with (
            aiohttp.ClientSession() as session,
            aiohttp.ClientSession(connector=aiohttp.UnixConnector(path)) as by_pipe,
        ):
            for client, base in (
                (session, f"http://127.0.0.1:{plain}"),
                (session, f"https://localhost:{tls}"),
                (by_pipe, "http://localhost"),
            ):
                options = {"ssl": context} if base.startswith("https") else {}
                async with client.post(base + "/echo", data=content, **options) as answer:
                    assert await answer.read() == content
                async with client.get(base + "/files/file", **options) as answer:
                    assert await answer.read() == content
                async with client.ws_connect(base + "/ws", **options) as ws:
                    await ws.send_str("hello")
                    assert (await ws.receive()).data == "HELLO"
        await runner.cleanup()

    run(main())


def test_websockets_echoes():
    pytest.importorskip("websockets")
    from websockets.asyncio.client import connect
    from websockets.asyncio.server import serve

    async def echo(ws):
        async for message in ws:
            await ws.send(message)

    async def main():
        async with serve(echo, "127.0.0.1", 0, max_size=None) as server:
            port = server.sockets[0].getsockname()[1]
            async with connect(f"ws://127.0.0.1:{port}", max_size=None) as ws:
                for message in ("hello", b"x" * 1_000_000):
                    await ws.send(message)
                    assert await ws.recv() == message

    run(main())


def test_httpx_asks_through_anyio():
    httpx = pytest.importorskip("httpx")

    async def serve(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok")
        writer.close()

    async def main():
        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls_peers.server_context())
        port = server.sockets[0].getsockname()[1]
        async with httpx.AsyncClient(verify=tls_peers.client_context()) as client:
            answers = await asyncio.gather(
                *(client.get(f"https://localhost:{port}/") for _ in range(20))
            )
        server.close()
        assert [answer.text for answer in answers] == ["ok"] * 20

    run(main())


def test_tornado_serves_and_asks():
    pytest.importorskip("tornado")
    from tornado import httpclient, httpserver, web

    class Hello(web.RequestHandler):
        async def get(self):
            await asyncio.sleep(0.001)
            self.write("hello")

    async def main():
        server = httpserver.HTTPServer(web.Application([("/", Hello)]))
        with socket.create_server(("127.0.0.1", 0)) as sock:
            sock.setblocking(False)
            server.add_socket(sock)
            url = f"http://127.0.0.1:{sock.getsockname()[1]}/"
            client = httpclient.AsyncHTTPClient()
            answers = await asyncio.gather(*(client.fetch(url) for _ in range(10)))
            assert [answer.body for answer in answers] == [b"hello"] * 10
            client.close()
            server.stop()
            await server.close_all_connections()

    run(main())


def test_grpc_answers():
    grpc = pytest.importorskip("grpc")
    from grpc import aio

    class Handler(grpc.GenericRpcHandler):
        def service(self, details):
            async def answer(request, context):
                return request.upper()

            return grpc.unary_unary_rpc_method_handler(answer)

    async def main():
        server = aio.server()
        server.add_generic_rpc_handlers([Handler()])
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            assert await channel.unary_unary("/service/method")(b"hello") == b"HELLO"
        await server.stop(None)

    run(main())


# Databases


def test_redis_is_asked(tmp_path):
    redis = pytest.importorskip("redis.asyncio")
    if not shutil.which("redis-server"):
        pytest.skip("no redis-server")
    port = free_port()
    words = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", ""]

    async def main():
        client = redis.Redis(port=port)
        await asyncio.gather(*(client.set(f"key {n}", n) for n in range(100)))
        values = await asyncio.gather(*(client.get(f"key {n}") for n in range(100)))
        assert [int(value) for value in values] == list(range(100))
        async with client.pubsub() as listener:
            await listener.subscribe("news")
            await listener.get_message(timeout=PATIENCE)
            await client.publish("news", "hello")
            assert (await listener.get_message(timeout=PATIENCE))["data"] == b"hello"
        await client.aclose()

    with program(words, port, cwd=tmp_path):
        run(main())


def postgres_programs():
    """Return the folder of PostgreSQL's programs: Debian keeps them out of PATH."""
    folders = [Path(path).parent for path in [shutil.which("initdb")] if path]
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: path.parent.name)
    return next((folder for folder in folders[::-1] if (folder / "initdb").exists()), None)


@contextmanager
def postgres():
    """Run a PostgreSQL server; give the port, and the folder of its Unix socket."""
    programs = postgres_programs()
    if programs is None:
        pytest.skip("no PostgreSQL server")
    # Not in tmp_path: the server refuses to run as root, and its user cannot go in there.
    folder = tempfile.mkdtemp(prefix="pyasync-postgres-")
    user = {"user": "nobody", "group": "nogroup"} if os.geteuid() == 0 else {}
    try:
        leaf = tls_peers.certificate()
        for name in ("certificate", "key"):
            copy = shutil.copy(getattr(leaf, name), f"{folder}/{name}")
            os.chmod(copy, 0o600)
        if user:
            for path in (folder, f"{folder}/certificate", f"{folder}/key"):
                shutil.chown(path, "nobody", "nogroup")
        data = f"{folder}/data"
        words = ["--username=test", "--auth=trust", "--no-sync", "--encoding=UTF8", data]
        subprocess.run(
            [programs / "initdb", *words], check=True, capture_output=True, cwd=folder, **user
        )
        port = free_port()
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": port,
            "unix_socket_directories": folder,
            "fsync": "off",
            "ssl": "on",
            "ssl_cert_file": f"{folder}/certificate",
            "ssl_key_file": f"{folder}/key",
        }
        words = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        with program(
            [programs / "postgres", "-D", data, *words],
            port,
            cwd=folder,
            stderr=subprocess.DEVNULL,
            **user,
        ):
            # It listens before it is ready.
            ready = [programs / "pg_isready", "--quiet", "--host=127.0.0.1", f"--port={port}"]
            wait_until(lambda: subprocess.run(ready).returncode == 0)
            yield port, folder
    finally:
        shutil.rmtree(folder)


async def use_postgres(asyncpg, **where):
    answers = asyncio.Queue()
    async with asyncpg.create_pool(
        user="test", database="postgres", min_size=2, max_size=10, **where
    ) as pool:
        await pool.execute("create table numbers (n int primary key, square bigint, data bytea)")
        rows = [(n, n * n, bytes(n)) for n in range(3000)]
        async with pool.acquire() as connection:
            await connection.copy_records_to_table("numbers", records=rows)

            def hear(*news):
                answers.put_nowait(news[-1])

            await connection.add_listener("news", hear)
            await pool.execute("notify news, 'hello'")
            assert await asyncio.wait_for(answers.get(), PATIENCE) == "hello"
            await connection.remove_listener("news", hear)
            sleeping = connection.execute("select pg_sleep(60)", timeout=0.3)
            with pytest.raises(asyncio.TimeoutError):  # it is cancelled by another connection
                await sleeping
            await connection.execute("insert into numbers values (3000, 1, null)")
            with pytest.raises(asyncpg.UniqueViolationError):
                await connection.execute("insert into numbers values (1, 1, null)")
            await connection.execute("delete from numbers where n = 3000")
            assert [tuple(row) async for row in cursor(connection)] == rows
        squares = await asyncio.gather(
            *(pool.fetchval("select square from numbers where n = $1", n) for n in range(100))
        )
        assert squares == [n * n for n in range(100)]
        copied = []

        async def copy(data):
            copied.append(data)

        await pool.copy_from_query("select square from numbers order by n", output=copy)
        assert b"".join(copied).split() == [b"%d" % (n * n) for n in range(3000)]
        await pool.execute("drop table numbers")


async def cursor(connection):
    async with connection.transaction():
        async for row in connection.cursor("select * from numbers order by n", prefetch=100):
            yield row


def test_asyncpg_asks_postgres():
    asyncpg = pytest.importorskip("asyncpg")
    with postgres() as (port, folder):
        for where in (
            {"host": "127.0.0.1", "port": port, "ssl": False},
            {"host": "localhost", "port": port, "ssl": tls_peers.client_context()},
            {"host": folder, "port": port},
        ):
            run(use_postgres(asyncpg, **where))


# Distributed computing


@pytest.mark.parametrize("processes", [False, True])
def test_dask_computes(tmp_path, processes):
    pytest.importorskip("distributed")
    script = tmp_path / "script.py"
    script.write_text(
        "import asyncio\n"
        "from dask.distributed import Client, LocalCluster\n"
        "def square(n): return n * n\n"
        "async def main():\n"
        f"    async with LocalCluster(n_workers=2, threads_per_worker=1, processes={processes},\n"
        "            dashboard_address=None, asynchronous=True) as cluster:\n"
        "        async with Client(cluster, asynchronous=True) as client:\n"
        "            [data] = await client.scatter([list(range(1000))])\n"
        "            total = client.submit(sum, data)\n"
        "            print(await client.submit(square, total),\n"
        "                  sum(await client.gather(client.map(square, range(100)))),\n"
        "                  type(asyncio.get_running_loop()).__module__)\n"
        "if __name__ == '__main__':\n"
        "    asyncio.run(main())\n"
    )
    done = run_python("-m", "pyasync.aio", script, cwd=tmp_path, timeout=2 * PATIENCE)
    total = sum(range(1000)) ** 2
    assert done.stdout == f"{total} {sum(n * n for n in range(100))} pyasync.aio.loop\n", (
        done.stderr
    )


def test_dask_workers_share_the_load_of_a_benchmark():
    pytest.importorskip("distributed")
    words = ["--json", "--workers", "2", "--num-conns", "100", "--delay", "0.1"]
    done = run_python(BENCH / "dask_load.py", *words, timeout=2 * PATIENCE)
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    workers = [event for event in events if event["event"] == "worker"]
    assert [worker["replies"] for worker in workers] == [50, 50]
    assert [worker["loop"] for worker in workers] == ["pyasync.aio.loop.EventLoop"] * 2
    assert len({worker["pid"] for worker in workers}) == 2
    assert all(worker["latency_ms"]["min"] >= 100 for worker in workers)
    (summary,) = (event for event in events if event["event"] == "load-summary")
    assert (summary["replies"], summary["lost"], summary["workers"]) == (100, 0, 2)
    assert events[0]["event"] == "cluster"
    assert any(event["event"] == "load" for event in events)


# Plugins of pytest


@pytest.mark.parametrize("plugin", ["pytest_asyncio", "anyio"])
def test_a_plugin_of_pytest_runs_tests(tmp_path, plugin):
    pytest.importorskip(plugin)
    (tmp_path / "conftest.py").write_text(
        "import pyasync.aio, pytest\n"
        "pyasync.aio.install()\n"
        "@pytest.fixture\n"
        "def anyio_backend(): return 'asyncio'\n"
    )
    (tmp_path / "test_it.py").write_text(
        "import asyncio, pytest, pyasync.aio\n"
        f"@pytest.mark.{'anyio' if plugin == 'anyio' else 'asyncio'}\n"
        "async def test_it():\n"
        "    assert isinstance(asyncio.get_running_loop(), pyasync.aio.EventLoop)\n"
        "    await asyncio.sleep(0.001)\n"
    )
    # Hypothesis's plugin imports Hypothesis at the end, which takes a minute on a slow PyPy.
    quiet = ["-p", "no:cacheprovider", "-p", "no:hypothesispytest", "-W", "ignore"]
    done = run_python("-m", "pytest", *quiet, tmp_path, cwd=tmp_path)
    assert "1 passed" in done.stdout, done.stdout + done.stderr
