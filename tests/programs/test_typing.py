"""Type checkers know what each call returns, and find a misspelled name."""

import importlib.util
import inspect
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
from pathlib import Path

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

    terminal = pyasync.open_stream(0, lambda terminal, data: terminal.write(data))
    terminal.shutdwon()  # wrong
    pyasync.open_stream(1, None, write_timeout=1).write("x")
    pyasync.open_stream(1, None, conect_cb=None)  # wrong
    pyasync.open_stream(0, on_data)  # wrong
    pyasync.open_stream(0, None, stream=True).readline()

    server = pyasync.tcp_server("127.0.0.1", 0, on_data)
    server.clsoe()  # wrong
    pyasync.udp_socket("127.0.0.1").sned(b"")  # wrong
    pyasync.spawn("true", []).kil()  # wrong
    pyasync.delay(main)  # wrong


def main_of_results(process: pyasync.Process, event: pyasync.EventInfo) -> None:
    if process.input is not None:
        process.input.write(b"")
    process.input.write(b"")  # wrong
    if isinstance(event, pyasync.SocketEOF):
        event.socket.close()
        event.socket.colse()  # wrong
    host, port = pyasync.tcp_server("::1", 0, on_data).address[:2]
    print(host.upper(), port.upper())  # wrong
    pyasync.fs.scandir("x", lambda found: print(found[0].name.upper(), found[0].nmae))  # wrong
    pyasync.fs.readlink(b"x", lambda target: print(target.encode()))  # wrong
    pyasync.mkdtemp(Path("XXXXXX"), lambda path: print(path.encode()))
"""

WRONG = {number for number, line in enumerate(PROGRAM.splitlines(), 1) if "# wrong" in line}
FOLDER = Path(pyasync.__file__).resolve().parent.parent


def check(*command, **environment):
    return subprocess.run(
        command, capture_output=True, text=True, timeout=300, env={**os.environ, **environment}
    )


def mypy(program, cache):
    return check(
        *(sys.executable, "-m", "mypy", "--strict", "--cache-dir", cache, program),
        MYPYPATH=str(FOLDER),
    )


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("mypy")


@pytest.fixture
def program(tmp_path):
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    return path


@pytest.mark.timeout(300)
@pytest.mark.skipif(not importlib.util.find_spec("mypy"), reason="needs mypy: make lint")
def test_mypy_finds_what_is_wrong_and_nothing_else(program, cache):
    done = mypy(program, cache)
    assert {int(line) for line in re.findall(r":(\d+): error:", done.stdout)} == WRONG, done.stdout


#: What the application puts there, and reads, whose None is typed as io's types have it.
ANYTHING = re.compile(r"\.data|AsyncStream\.(peek|read|read1|readinto|readinto1|readline)")


def public_members():
    """Yield each public function, and each member of a public class, with code that reveals it."""
    for module in (pyasync, pyasync.fs):
        for name in module.__all__:
            thing, path = getattr(module, name), f"{module.__name__}.{name}"
            if inspect.isfunction(thing):
                yield path, f"reveal_type({path})"
            elif inspect.isclass(thing):
                instance = f"{path}[str]" if hasattr(thing, "__class_getitem__") else path
                owners = [cls for cls in thing.__mro__ if cls.__module__.startswith("pyasync")]
                members = {member for cls in owners for member in vars(cls)}.union(
                    *(vars(cls).get("__annotations__", ()) for cls in owners)
                )
                if name == "Loop":  # the others are for the package: see test_names.py
                    members = {"call_threadsafe", "stats"}
                for member in sorted(members):
                    if not member.startswith("_"):
                        yield (
                            f"{path}.{member}",
                            f"def f{len(path)}_{member}_of_{name}(of: {instance}) -> None: "
                            f"reveal_type(of.{member})",
                        )


@pytest.mark.timeout(300)
@pytest.mark.skipif(not importlib.util.find_spec("mypy"), reason="needs mypy: make lint")
def test_nothing_public_returns_or_is_any(tmp_path, cache):
    names, lines = zip(*public_members())
    program = tmp_path / "program.py"
    program.write_text("\n".join(["import pyasync", *lines]))
    done = mypy(program, cache)
    revealed = re.findall(r':(\d+): note: Revealed type is "(.*)"', done.stdout)
    assert [int(line) - 2 for line, _ in revealed] == list(range(len(names))), done.stdout
    vague = {
        name
        for name, (_, kind) in zip(names, revealed)
        # Of a function the result counts: where nothing of a type is in brackets any more.
        if re.search(r"-> [^,()]*\bAny\b" if "->" in kind else r"\bAny\b", kind)
    }
    assert {name for name in vague if not ANYTHING.search(name)} == set()


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
