"""TLS with OpenSSL's own client and server, and with curl."""

import os
import re
import shutil
import subprocess

import pytest
from example_programs import run as run_example
from example_programs import serving
from peers import PATIENCE
from tls_peers import (
    CLIENT,
    HOST,
    Certificate,
    authority,
    certificate,
    client_context,
    serve,
    server_context,
)

import pyasync

# A sanitizer's library is for our own code: with it curl does not even start.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}

pytestmark = pytest.mark.skipif(not shutil.which("openssl"), reason="needs openssl")


def s_client(address, *arguments):
    return subprocess.Popen(
        ["openssl", "s_client", "-connect", f"{HOST}:{address[1]}", "-servername", "localhost",
         "-CAfile", str(authority().certificate), "-verify_return_error", *arguments],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env=ENVIRONMENT,
    )  # fmt: skip


def converse(process, *turns):
    """Send each turn's text, and read until its answer has come; return all that was printed.

    One by one: of what s_client reads at once, it looks for a command in the first byte alone.
    """
    output = b""
    try:
        for text, answer in turns:
            process.stdin.write(text)
            process.stdin.flush()
            line = b""
            while line != answer:
                line = process.stdout.readline()
                assert line, output
                output += line
        process.stdin.close()
        process.wait(PATIENCE)
        return output
    finally:
        process.kill()
        process.wait()
        for file in (process.stdin, process.stdout):
            file.close()


def answer_lines(socket, data):
    """Answer each line."""
    lines, socket.data = ((socket.data or b"") + data).rsplit(b"\n", 1)
    for line in lines.split(b"\n"):
        socket.write(b"got " + line + b"\n")


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_s_client_is_answered(run, version):
    def talk(address):
        return converse(s_client(address, version), (b"hello\n", b"got hello\n"))

    output, events = serve(run, talk, read_cb=answer_lines)
    assert b"Verify return code: 0 (ok)" in output
    assert [type(event) for event in events] == [pyasync.SocketEOF]


#: OpenSSL 3 refuses a client's renegotiation without it, and `ssl` has no name for it.
OP_ALLOW_CLIENT_RENEGOTIATION = 1 << 8


@pytest.mark.parametrize(
    ("command", "said", "version"),
    [
        (b"K\n", b"KEYUPDATE\n", "-tls1_3"),
        (b"k\n", b"KEYUPDATE\n", "-tls1_3"),
        (b"R\n", b"RENEGOTIATING\n", "-tls1_2"),
    ],
)
def test_key_updates_and_renegotiation_keep_the_order(run, command, said, version):
    """s_client's K asks for a key update of both sides, k updates its own, R renegotiates."""
    context = server_context()
    context.options |= OP_ALLOW_CLIENT_RENEGOTIATION

    def talk(address):
        return converse(
            s_client(address, version),
            (b"one\n", b"got one\n"),
            (command, said),
            (b"two\n", b"got two\n"),
            (command, said),
            (b"three\n", b"got three\n"),
        )

    output, events = serve(run, talk, read_cb=answer_lines, ssl_context=context)
    assert re.findall(rb"got \w+", output) == [b"got one", b"got two", b"got three"]
    assert [type(event) for event in events] == [pyasync.SocketEOF]


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_s_client_resumes_a_session(run, version, tmp_path):
    session = str(tmp_path / "session")

    def talk(address):
        first = converse(s_client(address, version, "-sess_out", session), (b"1\n", b"got 1\n"))
        second = converse(s_client(address, version, "-sess_in", session), (b"2\n", b"got 2\n"))
        return first, second

    (first, second), _ = serve(run, talk, read_cb=answer_lines)
    assert b"\nNew, TLSv1" in first
    assert b"\nReused, TLSv1" in second


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_a_client_of_s_server(run, version):
    leaf, received = certificate(), []
    process = subprocess.Popen(
        ["openssl", "s_server", "-accept", f"{HOST}:0", "-cert", str(leaf.certificate),
         "-key", str(leaf.key), "-rev", version, "-naccept", "1"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=ENVIRONMENT,
    )  # fmt: skip
    try:
        line = b""
        while b"ACCEPT" not in line:
            line = process.stdout.readline()
            assert line
        port = int(line.rpartition(b":")[2])

        def read_cb(sock, data):
            received.append(data)
            sock.close()

        def start():
            pyasync.tcp_ssl_connect(
                HOST, port, read_cb, ssl_context=CLIENT(), data=b"reverse me\n", event_cb=fail
            )

        def fail(event):
            received.append(event)

        run(start)
        assert received == [b"em esrever\n"]
    finally:
        process.kill()
        process.communicate()


def curl(port, *arguments):
    return subprocess.run(
        ["curl", "--silent", "--show-error", "--http1.1", "--max-time", str(PATIENCE),
         "--cacert", str(authority().certificate), "--resolve", f"localhost:{port}:{HOST}",
         *arguments, f"https://localhost:{port}/"],
        capture_output=True, check=True, env=ENVIRONMENT,
    ).stdout  # fmt: skip


needs_curl = pytest.mark.skipif(not shutil.which("curl"), reason="needs curl")


@needs_curl
def test_curl_gets_a_large_answer(run):
    body = bytes(range(256)) * 4096

    def read_cb(sock, data):
        sock.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body))
        sock.write(body)
        sock.close()

    result, _ = serve(run, lambda address: curl(address[1]), read_cb=read_cb)
    assert result == body


@needs_curl
def test_curl_gets_the_answer_of_the_https_example():
    leaf = certificate()
    stranger = Certificate("stranger", ["basicConstraints=critical,CA:TRUE"])
    arguments = ["--delay=0.01", f"--certificate={leaf.certificate}", f"--key={leaf.key}"]
    # A client that knows no authority is an error of its own, and the server goes on. curl says so
    # by an alert, or (8.23) just leaves.
    errors = r"error: .*(unknown ca|without close_notify).*\n"
    with serving("https_delay.py", *arguments, errors=errors) as server:
        with pytest.raises(subprocess.CalledProcessError):
            curl(server.address[1], "--cacert", str(stranger.certificate))
        assert curl(server.address[1]) == b"omglolwtf"
        assert curl(server.address[1], "--tls-max", "1.2") == b"omglolwtf"


def test_the_https_example_ends_when_its_clients_have_their_answers():
    leaf = certificate()
    arguments = ["--delay=0.3", f"--certificate={leaf.certificate}", f"--key={leaf.key}"]
    with serving("https_delay.py", *arguments) as server:
        client = client_context().wrap_socket(server.connect(), server_hostname="localhost")
        client.sendall(b"GET / HTTP/1.1\r\n\r\n")
    with client:  # the server has ended
        assert client.recv(1000).endswith(b"omglolwtf")
        assert client.recv(1000) == b""


def test_the_https_example_says_which_certificate_it_cannot_use():
    done = run_example("https_delay.py", "--certificate=/nowhere")
    assert done.returncode == 1
    assert re.fullmatch(r"cannot use the certificate /nowhere: .*\n", done.stderr)
