"""Type checkers know what each call returns, and find a misspelled name."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import pyasync

#: A checker has to find a fault in each line with "# wrong", and in no other.
PROGRAM = """
import pyasync
from pyasync import AsyncStream, SslSocket, TcpSocket


def on_data(socket: TcpSocket, data: bytes) -> None:
    socket.write(data)
    socket.wirte(data)  # wrong


def on_stream(socket: TcpSocket, stream: AsyncStream) -> None:
    stream.write(b"")


def on_secret(socket: SslSocket, data: bytes) -> None:
    print(socket.cipher)


def main(either: bool) -> None:
    client = pyasync.tcp_connect("localhost", 80, on_data, data=b"x", connect_timeout=1)
    client.write("x")
    client.shutdwon()  # wrong
    size: int = client.getsockopt(1, 2)
    raw: bytes = client.getsockopt(1, 2, 4)
    text: str = client.getsockopt(1, 2)  # wrong
    print(size, raw, text)
    pyasync.tcp_connect("localhost", 80, on_data, conect_timeout=1)  # wrong
    pyasync.tcp_connect("localhost", 80, on_stream)  # wrong

    stream = pyasync.tcp_connect("localhost", 80, on_stream, stream=True)
    stream.readline()
    stream.raedline()  # wrong
    unknown = pyasync.tcp_connect("localhost", 80, print, stream=either)
    unknown.close()
    unknown.readline()  # wrong

    later = pyasync.init_tcp_socket(on_data, fd=3)
    pyasync.connect_tcp_socket(later, "localhost", 80).keepalive(5)
    pyasync.connect_tcp_socket(later, "localhost", 80).readline()  # wrong
    pyasync.connect_tcp_socket(stream, "localhost", 80).readline()
    print(pyasync.start_tls(client, server_side=False).cipher)
    print(pyasync.start_tls(client).cypher)  # wrong
    pyasync.start_tls(stream).readline()

    pipe = pyasync.pipe_connect("x", lambda pipe, data: pipe.write(data))
    pipe.write(b"x")
    pipe.nodelay = True  # wrong
    secret = pyasync.tcp_ssl_connect("localhost", 443, on_secret, server_hostname="x")
    print(secret.session, secret.alpn)
    secret.sesion  # wrong
    pyasync.init_tcp_ssl_socket(on_secret, ssl_context=5)  # wrong

    server = pyasync.tcp_server("127.0.0.1", 0, on_data)
    server.clsoe()  # wrong
    pyasync.udp_socket("127.0.0.1").sned(b"")  # wrong
    pyasync.spawn("true", []).kil()  # wrong
    pyasync.delay(main)  # wrong
"""

WRONG = {number for number, line in enumerate(PROGRAM.splitlines(), 1) if "# wrong" in line}
FOLDER = Path(pyasync.__file__).resolve().parent.parent


def check(*command, **environment):
    return subprocess.run(
        command, capture_output=True, text=True, timeout=300, env={**os.environ, **environment}
    )


@pytest.fixture
def program(tmp_path):
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    return path


@pytest.mark.timeout(300)
@pytest.mark.skipif(not importlib.util.find_spec("mypy"), reason="needs mypy: make lint")
def test_mypy_finds_what_is_wrong_and_nothing_else(program):
    done = check(
        *(sys.executable, "-m", "mypy", "--strict", "--cache-dir", program.parent, program),
        MYPYPATH=str(FOLDER),
    )
    assert {int(line) for line in re.findall(r":(\d+): error:", done.stdout)} == WRONG, done.stdout


@pytest.mark.timeout(300)
@pytest.mark.skipif(not shutil.which("pyright"), reason="needs pyright")
def test_pyright_finds_what_is_wrong_and_nothing_else(program):
    settings = {"include": [str(program)], "extraPaths": [str(FOLDER)]}
    (program.parent / "pyrightconfig.json").write_text(json.dumps(settings))
    done = check("pyright", "--outputjson", "--project", program.parent)
    found = [
        each
        for each in json.loads(done.stdout)["generalDiagnostics"]
        if each["severity"] == "error"
    ]
    assert {each["range"]["start"]["line"] + 1 for each in found} == WRONG, found
