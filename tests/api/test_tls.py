"""TLS beside what it shares with every stream: handshakes, failures, upgrades, and its end."""

import contextlib
import errno
import gc
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import weakref
from functools import partial

import pytest
from peers import (
    CALLBACKS,
    MORE_THAN_FITS,
    PATIENCE,
    Background,
    after_iterations,
    end_of,
    make_link,
    nothing,
    preloaded,
    read_all,
    read_exactly,
    reset,
    small_buffers,
    tell,
    wait_until,
    when,
    within,
)
from tls_peers import (
    CLIENT,
    HOST,
    SERVER,
    TLS_LINKS,
    Certificate,
    TlsPeer,
    authority,
    certificate,
    client_context,
    connect,
    connect_plain,
    serve,
    server_context,
    wrap,
)

import pyasync


@pytest.fixture(params=TLS_LINKS)
def link(request, run):
    return make_link(run, request.param)


def end_sending(sock):
    sock.shutdown(socket.SHUT_WR)


def be_client(run, peer, *, host=HOST, name="localhost", ssl_context=None, made=nothing, **options):
    """Connect a client of pyasync's to peer(sock), which gets a plain socket in a thread.

    ``made(socket)`` is called before it is connected. Returns what peer returns, and what the
    event_cb was told.
    """
    events, threads = [], []

    def talk(listener):
        with listener:
            sock, _ = listener.accept()
        sock.settimeout(PATIENCE)
        with sock:
            return peer(sock)

    with run():
        listener = socket.create_server((HOST, 0))
        threads.append(Background(talk, listener))
        sock = pyasync.tcp_ssl_connect(
            host,
            listener.getsockname()[1],
            options.pop("read_cb", nothing),
            event_cb=options.pop("event_cb", events.append),
            ssl_context=ssl_context or CLIENT(),
            server_hostname=name,
            **options,
        )
        made(sock)
    return threads[0].result(), events


# Handshakes that succeed


def test_certificates_may_be_given_as_files(run):
    leaf = certificate()

    def talk(server):
        with connect(server.address) as sock:
            sock.sendall(b"data")
            return read_exactly(sock, 4)

    with run():
        server = pyasync.tcp_ssl_server(
            HOST,
            0,
            lambda socket, data: socket.write(data),
            connect_cb=lambda socket: server.close(),
            certificate=leaf.certificate,
            key=leaf.key,
        )
        thread = Background(talk, server)
    assert thread.result() == b"data"


def test_the_handshake_says_what_was_agreed_upon(run):
    agreed = []

    def connected(sock):
        assert isinstance(sock, pyasync.SslSocket)
        assert isinstance(sock, pyasync.TcpSocket)
        agreed.append((sock.ssl_object.version(), sock.cipher[1], sock.alpn))
        sock.close()

    server, client = server_context(), client_context()
    server.set_alpn_protocols(["h2", "http/1.1"])
    client.set_alpn_protocols(["http/1.1"])

    def talk(address):
        with connect(address, client) as sock:
            assert read_all(sock) == b""
            return sock.object.selected_alpn_protocol(), sock.ended_properly

    result, events = serve(run, talk, connect_cb=connected, ssl_context=server)
    assert result == ("http/1.1", True)
    assert agreed == [("TLSv1.3", "TLSv1.3", "http/1.1")]
    assert events == []


def test_before_the_connection_nothing_is_agreed_upon():
    with pyasync.event_loop():
        sock = pyasync.init_tcp_ssl_socket(nothing)
        assert (sock.ssl_object, sock.cipher, sock.alpn, sock.session) == (None,) * 4
        sock.close()


def test_the_name_of_the_host_is_sent_and_verified(run):
    asked = []
    context = server_context()
    context.sni_callback = lambda ssl_object, name, context: asked.append(name)

    def peer(sock):
        with TlsPeer(sock, context, server_side=True):
            pass

    _, events = be_client(run, peer)
    assert asked == ["localhost"]
    assert [type(event) for event in events] == [pyasync.SocketEOF]


# Prints each name that is looked up; all names that end in .test are this host's.
RESOLVER = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <netdb.h>
#include <stdio.h>
#include <string.h>

int getaddrinfo(const char *host, const char *service, const struct addrinfo *hints,
                struct addrinfo **found) {
  int (*next)(const char *, const char *, const struct addrinfo *, struct addrinfo **);

  *(void **) &next = dlsym(RTLD_NEXT, "getaddrinfo");
  printf("looked up %s\n", host);
  fflush(stdout);
  return next("127.0.0.1", service, hints, found);
}
"""

CLIENT_OF_A_NAME = """
import sys, pyasync, ssl
certificate, key, authority, host, name, idna = sys.argv[1:]
if not idna:
    sys.modules["idna"] = None  # the import fails
server_context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
server_context.load_cert_chain(certificate, key)
server_context.sni_callback = lambda tls, name, context: print("asked for", name, flush=True)

def connected(client):
    print("connected", flush=True)
    client.close()
    server.close()

def failed(error):
    print(type(error).__name__, flush=True)
    server.close()

with pyasync.event_loop():
    server = pyasync.tcp_ssl_server(
        "127.0.0.1", 0, print, ssl_context=server_context, event_cb=lambda error: None
    )
    pyasync.tcp_ssl_connect(
        host, server.address[1], print, connect_cb=connected, event_cb=failed,
        server_hostname=name or None,
        ssl_context=ssl.create_default_context(cafile=authority),
    )
"""

STRASSE = "stra\N{LATIN SMALL LETTER SHARP S}e.test"
IDNA_2008, IDNA_2003 = "xn--strae-oqa.test", "strasse.test"
BUECHER = "B\N{LATIN CAPITAL LETTER U WITH DIAERESIS}CHER.Test"


@pytest.mark.parametrize(
    ("host", "name", "with_idna", "looked_up", "certified"),
    [
        (STRASSE, "", "idna", IDNA_2008, IDNA_2008),
        (STRASSE, "", "", IDNA_2003, IDNA_2003),
        ("some.test", STRASSE, "idna", "some.test", IDNA_2008),
        ("some.test", STRASSE, "", "some.test", IDNA_2003),
        (BUECHER, "", "idna", "xn--bcher-kva.test", "xn--bcher-kva.test"),
        (BUECHER, "", "", "xn--bcher-kva.test", "xn--bcher-kva.test"),
        ("Some.TEST.", "", "", "some.test.", "some.test"),
        ("some.test", "other.test.", "", "some.test", "other.test"),
    ],
)
@pytest.mark.parametrize("certificate_fits", [True, False], ids=["right", "wrong"])
def test_the_name_that_is_looked_up_is_the_one_that_is_certified(
    tmp_path, host, name, with_idna, looked_up, certified, certificate_fits
):
    if with_idna:
        pytest.importorskip("idna")
    other = IDNA_2008 if certified == IDNA_2003 else IDNA_2003
    leaf = certificate("DNS:" + (certified if certificate_fits else other))
    arguments = [leaf.certificate, leaf.key, authority().certificate, host, name, with_idna]
    result = subprocess.run(
        [sys.executable, "-c", CLIENT_OF_A_NAME, *map(str, arguments)],
        env=preloaded(tmp_path, RESOLVER), stdout=subprocess.PIPE, text=True, check=True,
        timeout=50,
    )  # fmt: skip
    assert result.stdout.splitlines() == [
        f"looked up {looked_up}",
        f"asked for {certified}",
        "connected" if certificate_fits else "TcpSslError",
    ]


def test_client_certificates(run):
    seen = []
    context = server_context(verify_mode=ssl.CERT_REQUIRED)

    def connected(sock):
        seen.append(sock.ssl_object.getpeercert()["subjectAltName"])

    def talk(address):
        with connect(address, client_context(certificate("DNS:someone"))) as sock:
            sock.sendall(b"hello")
            return read_exactly(sock, 5)

    result, _ = serve(run, talk, connect_cb=connected, ssl_context=context)
    assert result == b"hello"
    assert seen == [(("DNS", "someone"),)]


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_session_is_resumed(run, version):
    context, reused = client_context(maximum_version=version), []

    def dial(session=None):
        pyasync.tcp_ssl_connect(
            "localhost", server.address[1], ended, stream=False, data=b"?",
            ssl_context=context, session=session,
        )  # fmt: skip

    def ended(sock, data):
        reused.append(sock.ssl_object.session_reused)
        sock.close()
        if len(reused) == 1:
            dial(sock.session)
        else:
            server.close()

    with run():
        server = pyasync.tcp_ssl_server(
            HOST, 0, lambda sock, data: sock.write(data), ssl_context=server_context()
        )
        dial()
    assert reused == [False, True]


# Handshakes that fail


def send_http(address):
    with connect_plain(address) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        end_of(sock)


def send_garbage(address):
    with connect_plain(address) as sock:
        sock.sendall(bytes(range(255, 0, -1)))
        end_of(sock)


def send_half_a_hello(address):
    outgoing = ssl.MemoryBIO()
    client = CLIENT().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    with connect_plain(address) as sock:
        sock.sendall(outgoing.read()[:100])


def send_nothing(address):
    with connect_plain(address):
        pass


def share_no_cipher(address):
    context = client_context(maximum_version=ssl.TLSVersion.TLSv1_2)
    context.set_ciphers("ECDHE-RSA-AES128-GCM-SHA256")
    with pytest.raises(ssl.SSLError):
        connect(address, context)


def trust_nobody(address):
    with pytest.raises(ssl.SSLCertVerificationError):
        connect(address, ssl.create_default_context())


def expect_another_host(address):
    with pytest.raises(ssl.SSLCertVerificationError):
        connect(address, name="elsewhere.example")


def show_no_certificate(address):
    try:
        with connect(address) as sock:
            sock.recv(1)
    except (ssl.SSLError, ConnectionError):
        pass


@pytest.mark.parametrize(
    ("misbehave", "reason"),
    [
        (send_http, "HTTP_REQUEST"),
        (send_garbage, "WRONG_VERSION_NUMBER"),
        (send_half_a_hello, "UNEXPECTED_EOF_WHILE_READING"),
        (send_nothing, "UNEXPECTED_EOF_WHILE_READING"),
        (share_no_cipher, "NO_SHARED_CIPHER"),
        (trust_nobody, "TLSV1_ALERT_UNKNOWN_CA"),
        (expect_another_host, None),
        (show_no_certificate, "PEER_DID_NOT_RETURN_A_CERTIFICATE"),
    ],
)
def test_a_client_that_fails_is_reported_once_and_the_server_goes_on(run, misbehave, reason):
    demand = misbehave is show_no_certificate
    context = server_context(verify_mode=ssl.CERT_REQUIRED if demand else ssl.CERT_NONE)
    known = client_context(certificate("DNS:someone"))

    def talk(address):
        misbehave(address)
        with connect(address, known) as sock:
            sock.sendall(b"still there")
            return read_exactly(sock, 11)

    connected = []
    result, events = serve(run, talk, ssl_context=context, connect_cb=connected.append)
    assert result == b"still there"
    assert len(connected) == 1
    (error,) = (event for event in events if not isinstance(event, pyasync.SocketEOF))
    assert type(error) is pyasync.TcpSslError
    assert isinstance(error, ssl.SSLError)
    assert isinstance(error.socket, pyasync.SslSocket)
    assert error.socket.closed
    assert error.library == "SSL"
    if reason is not None:
        assert error.reason == reason


def test_a_client_that_never_answers_is_closed(run):
    def talk(address):
        with connect_plain(address) as sock:
            return end_of(sock)

    result, (error,) = serve(run, talk, handshake_timeout=0.05)
    assert result == (0, None)
    assert type(error) is pyasync.TcpSslError
    assert (error.errno, error.reason) == (errno.ETIMEDOUT, "HANDSHAKE_TIMEOUT")


def test_a_server_that_never_answers_is_given_up(run):
    _, (error,) = be_client(run, end_of, handshake_timeout=0.05)
    assert type(error) is pyasync.TcpSslError
    assert (error.errno, error.reason) == (errno.ETIMEDOUT, "HANDSHAKE_TIMEOUT")
    assert error.errcode == -errno.ETIMEDOUT


def refused(sock, context):
    with pytest.raises(ssl.SSLError) as caught:
        TlsPeer(sock, context, server_side=True).recv(1)
    return caught.value.reason


@pytest.mark.parametrize(
    ("leaf", "name", "code"),
    [
        (lambda: certificate(days=-1), "localhost", 10),
        (lambda: certificate(), "elsewhere.example", 62),
        (lambda: Certificate("itself", ["subjectAltName=DNS:localhost"]), "localhost", 18),
    ],
    ids=["expired", "another host", "self-signed"],
)
def test_a_certificate_that_is_wrong_is_refused_with_an_alert(run, leaf, name, code):
    context = server_context(leaf())
    connected = []
    alert, (error,) = be_client(
        run, lambda sock: refused(sock, context), name=name, connect_cb=connected.append
    )
    assert type(error) is pyasync.TcpSslError
    assert (error.library, error.reason) == ("SSL", "CERTIFICATE_VERIFY_FAILED")
    assert error.verify_code == code
    assert error.verify_message
    assert error.errcode is None  # the error is OpenSSL's
    assert isinstance(error.__cause__, ssl.SSLCertVerificationError)
    assert "ALERT" in alert
    assert connected == []


def test_by_default_an_unknown_authority_is_refused(run):
    context = server_context()
    default = ssl.create_default_context()
    _, (error,) = be_client(run, lambda sock: refused(sock, context), ssl_context=default)
    assert error.reason == "CERTIFICATE_VERIFY_FAILED"


def test_a_server_that_speaks_no_tls_is_refused(run):
    def peer(sock):
        sock.sendall(b"220 mail.example ESMTP\r\n")
        return end_of(sock)

    _, (error,) = be_client(run, peer)
    assert type(error) is pyasync.TcpSslError
    assert error.reason == "WRONG_VERSION_NUMBER"


def test_what_was_written_is_not_sent_to_a_peer_that_fails(run):
    called = []

    def peer(sock):
        sock.sendall(b"no TLS here\r\n")
        return read_all_or_reset(sock)

    received, (error,) = be_client(run, peer, data=b"secret", write_cb=called.append)
    assert isinstance(error, pyasync.TcpSslError)
    assert b"secret" not in received
    assert called == []


def read_all_or_reset(sock):
    data = b""
    try:
        for piece in iter(lambda: sock.recv(1 << 16), b""):
            data += piece
    except ConnectionError:
        pass
    return data


def test_a_reset_during_the_handshake_is_reported(run):
    def peer(sock):
        sock.recv(10)
        reset(sock)

    _, (error,) = be_client(run, peer)
    assert isinstance(error, (pyasync.SocketReset, pyasync.SocketBrokenPipe))


# Errors, and what is under way then

#: A record of application data that was never encrypted.
NO_RECORD = b"\x17\x03\x03\x00\x20" + bytes(32)


def test_a_write_cb_that_waits_is_not_called_after_an_error(run):
    called, events = [], []
    blocked, failed = threading.Event(), threading.Event()

    def talk(address):
        with connect(address) as sock:
            sock.sendall(b"go")
            assert blocked.wait(PATIENCE)
            sock.sock.sendall(NO_RECORD)
            assert failed.wait(PATIENCE)
            end_of(sock.sock)  # what the kernel had refused arrives, and is done

    def read_cb(sock, data):
        small_buffers(sock)
        fill(sock)

    def fill(sock):
        sock.write(bytes(100_000), write_cb=called.append)
        if sock.write_queue_size > 100_000:  # so one write waits in C, another in Python
            blocked.set()
        else:
            pyasync.call_soon(lambda: fill(sock))

    def event_cb(event):
        events.append(type(event))
        called.clear()
        failed.set()

    serve(run, talk, read_cb=read_cb, event_cb=event_cb)
    assert events == [pyasync.TcpSslError]
    assert called == []


def test_an_alert_that_cannot_be_sent_is_no_second_error(run):
    told, gone = threading.Event(), threading.Event()

    def talk(address):
        sock = connect_plain(address)
        sock.sendall(b"\x16\x03\x01\x00\x04\x01\x00\x00\x00")  # an empty ClientHello
        assert told.wait(PATIENCE)
        reset(sock)
        gone.set()

    def event_cb(event):
        events.append(event)
        told.set()
        gone.wait(PATIENCE)

    events = []
    serve(run, talk, event_cb=event_cb)
    assert [type(event) for event in events] == [pyasync.TcpSslError]


def test_a_write_behind_an_error_that_is_kept_back_reports_that_error(run):
    def talk(address):
        with connect(address) as sock:
            sock.object.write(b"go")
            sock.sock.sendall(sock._outgoing.read() + NO_RECORD)
            end_of(sock.sock)

    def read_cb(sock, data):
        sock.disable(read=True)
        pyasync.call_soon(lambda: sock.write(b"more"))

    _, events = serve(run, talk, read_cb=read_cb)
    [event] = events
    assert isinstance(event, pyasync.TcpSslError)
    # The latter since OpenSSL 3.2.
    assert re.search("decryption failed or bad record mac|record layer failure", str(event))


def test_what_is_asked_after_shutdown_gets_no_answer(run):
    """Nothing may follow close_notify, such as the certificate that is asked for behind it."""
    received = []

    def peer(sock):
        context = server_context(verify_mode=ssl.CERT_REQUIRED, post_handshake_auth=True)
        with wrap(sock, context, server_side=True) as tls:
            assert read_all(tls) == b"hello"
            tls.object.verify_client_post_handshake()
            tls.sendall(b"first")
            answered.wait(PATIENCE)
            tls.sendall(b"second")

    def connected(socket):
        socket.write(b"hello")
        socket.shutdown()

    def read_cb(socket, data):
        received.append(data)
        after_iterations(3, answered.set)

    answered = threading.Event()
    context = client_context(certificate("DNS:client"), post_handshake_auth=True)
    _, events = be_client(run, peer, ssl_context=context, connect_cb=connected, read_cb=read_cb)
    assert received == [b"first", b"second"]
    assert [type(event) for event in events] == [pyasync.SocketEOF]


@pytest.mark.parametrize("last", ["connected", "read"])
def test_leaving_the_loop_in_a_callback_makes_it_the_last(run, last):
    """Data and close_notify come in one segment with the end of the handshake."""
    order = []

    def talk(address):
        tls = wrap(
            connect_plain(address), CLIENT(), server_side=False, server_hostname="localhost",
            handshake=False,
        )  # fmt: skip
        with tls.sock:
            tls.handshake(last=False)
            tls.object.write(b"data")
            tls.shutdown(socket.SHUT_WR)
            end_of(tls.sock)

    def called(what):
        order.append(what)
        if what == last:
            pyasync.exit_event_loop()

    with run():
        server = pyasync.tcp_ssl_server(
            HOST, 0, lambda sock, data: called("read"), ssl_context=SERVER(),
            connect_cb=lambda sock: called("connected"), event_cb=lambda event: called("event"),
        )  # fmt: skip
        thread = Background(talk, server.address)
    thread.result()
    assert order == ["connected", "read"][: ["connected", "read"].index(last) + 1]


# The end


def test_a_connection_that_ends_without_close_notify_is_an_error(link):
    told = []

    def peer(sock):
        sock.sendall(b"cut off")
        sock.sock.shutdown(socket.SHUT_WR)
        return read_all(sock)

    link(
        nothing,
        peer,
        read_cb=lambda socket, data: told.append(data),
        event_cb=told.append,
    )
    data, error = told
    assert data == b"cut off"
    assert type(error) is pyasync.TcpSslError
    assert (error.library, error.reason) == ("SSL", "UNEXPECTED_EOF_WHILE_READING")


@pytest.mark.parametrize("size", [0, 10, MORE_THAN_FITS])
def test_close_and_shutdown_end_by_a_close_notify(link, size):
    def peer(sock):
        return len(read_all(sock)), sock.ended_properly

    for end in ("close", "shutdown"):

        def connected(socket, end=end):
            socket.write(bytes(size))
            getattr(socket, end)()

        assert link(connected, peer) == (size, True)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_after_shutdown_reading_goes_on(run, version):
    received = []

    def talk(address):
        with connect(address, client_context(maximum_version=version)) as sock:
            assert read_all(sock) == b"last words"
            assert sock.ended_properly
            sock.sendall(b"an answer")

    def connected(sock):
        sock.write(b"last words")
        sock.shutdown()
        sock.shutdown()
        with pytest.raises(pyasync.SocketBrokenPipe):
            sock.write(b"more")

    _, events = serve(
        run, talk, connect_cb=connected, read_cb=lambda socket, data: received.append(data)
    )
    assert received == [b"an answer"]
    assert [type(event) for event in events] == [pyasync.SocketEOF]


def test_shutdown_in_connect_cb_loses_nothing_that_came_with_the_handshake(run):
    received = []

    def talk(address):
        sock = connect_plain(address)
        # What TLS 1.3 lets a client send behind its last message arrives together with it.
        with TlsPeer(sock, CLIENT(), server_side=False, server_hostname="localhost",
                     handshake=False) as tls:  # fmt: skip
            tls.handshake(last=False)
            tls.object.write(b"together")
            tls.push()
            assert read_all(tls) == b""

    serve(
        run,
        talk,
        connect_cb=lambda sock: sock.shutdown(),
        read_cb=lambda sock, data: received.append(data),
    )
    assert received == [b"together"]


def test_a_socket_closed_before_its_handshake_gives_up_a_silent_peer_after_linger(run):
    _, events = be_client(
        run, end_of, made=lambda sock: sock.close(), data=b"never sent", linger=0.05
    )
    assert [type(event) for event in events] == [pyasync.SocketTimeout]


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("callback", CALLBACKS)
def test_closing_in_any_callback(link, callback, force):
    def act(sock):
        sock.write(b"bye")
        sock.close(force=force)
        sock.close()
        assert sock.closed

    def peer(sock):
        try:
            return read_all(sock), sock.ended_properly
        except (OSError, ValueError):
            return b"", False

    data, proper = within(link, callback, act, peer)
    if not force and callback != "pressure_cb":
        assert (data, proper) == (b"bye", True)


@pytest.mark.parametrize("force", [False, True])
def test_closing_in_the_event_cb_of_a_failed_handshake(run, force):
    events = []

    def event_cb(event):
        events.append(event)
        event.socket.close(force=force)

    serve(run, send_http, event_cb=event_cb)
    assert [type(event) for event in events] == [pyasync.TcpSslError]


def test_leaving_the_loop_in_a_handshake_leaves_nothing(run):
    with run():
        server = pyasync.tcp_ssl_server(HOST, 0, nothing, ssl_context=SERVER())
        pyasync.tcp_ssl_connect(*server.address, nothing, ssl_context=CLIENT(), data=b"data")
        after_iterations(3, pyasync.exit_event_loop)


# Errors of callbacks


class BrokenContext(ssl.SSLContext):
    """It works for the server's own check, and no more."""

    works = True

    def wrap_bio(self, *arguments, **keywords):
        if not self.works:
            raise ssl.SSLError(1, "out of order")
        self.works = False
        return super().wrap_bio(*arguments, **keywords)


@pytest.mark.parametrize("bring", [lambda sock: sock.sendall(b"hello"), end_sending])
def test_what_a_connection_without_tls_brings_along_is_dropped(run, bring):
    """It comes in the same batch as the connection, which fails before it."""

    def event_cb(error):
        events.append(type(error))
        server.close()

    events, socks = [], []
    try:
        with run():
            context = BrokenContext(ssl.PROTOCOL_TLS_SERVER)
            server = pyasync.tcp_ssl_server(
                HOST, 0, nothing, ssl_context=context, event_cb=event_cb
            )
            bring(sock := connect_plain(server.address))
            socks.append(sock)
    finally:
        socks[0].close()
    assert events == [pyasync.TcpSslError]


# Writing


def test_small_writes_of_one_callback_leave_as_one_record(run):
    """A read gives what one record holds."""

    def talk(address):
        with connect(address) as sock:
            sock.sendall(b"go")
            assert sock.recv(100) == b"a" + b"bc" * 20

    def read_cb(sock, data):
        sock.write(b"a", write_cb=lambda sock: called.append("a"))
        for _ in range(20):
            sock.write(b"b")
            sock.write(b"c", write_cb=lambda sock: called.append("c"))
        assert called == []

    called = []
    serve(run, talk, read_cb=read_cb)
    assert called == ["a"] + ["c"] * 20


@pytest.mark.parametrize("read_first", [0, 1 << 20])
def test_a_slow_reader_costs_no_encrypted_copies(run, read_first):
    """What waits is the object that was written, and about one batch of ciphertext."""
    total, looked = 64 << 20, threading.Event()
    data = bytes(total)
    held = []

    def talk(address):
        with connect(address) as sock:
            size = len(read_exactly(sock, read_first)) if read_first else 0
            assert looked.wait(PATIENCE)
            return size + len(read_all(sock))

    def connected(sock):
        small_buffers(sock)
        sock.write(data)
        sock.close()
        after_iterations(10, lambda: look(sock))

    def look(sock):
        refused = sock._blocked_size()
        held.append((refused, sock._delayed_size()))
        looked.set()

    result, _ = serve(run, talk, connect_cb=connected, linger=PATIENCE)
    assert result == total
    ((refused, waiting),) = held
    assert refused <= 256 << 10
    assert waiting > total // 2


def test_bytes_are_kept_by_reference(run):
    data = bytes(4 << 20)
    kept, looked = [], threading.Event()

    def talk(address):
        with connect(address) as sock:
            assert looked.wait(PATIENCE)
            return len(read_all(sock))

    def connected(sock):
        small_buffers(sock)
        sock.write(data)
        ((view, _),) = sock._extras.deferred
        kept.append(view.obj is data)
        looked.set()
        sock.close()

    assert serve(run, talk, connect_cb=connected)[0] == len(data)
    assert kept == [True]


# Failures while much is under way


@pytest.mark.parametrize("how", ["a byte", "close_notify"])
def test_what_arrives_during_a_close_that_flushes_meets_no_read_timeout(run, how):
    closed = threading.Event()

    def talk(address):
        with connect(address) as sock:
            assert closed.wait(PATIENCE)
            if how == "a byte":
                sock.sendall(b"x")
            else:
                sock.shutdown(socket.SHUT_WR)
            return len(read_all(sock))

    def connected(sock):
        small_buffers(sock)
        sock.write(bytes(MORE_THAN_FITS))
        sock.close()
        closed.set()

    result, events = serve(run, talk, connect_cb=connected, read_timeout=PATIENCE, linger=PATIENCE)
    assert (result, events) == (MORE_THAN_FITS, [])


def test_a_handshake_takes_more_at_once_than_is_fed_to_openssl_at_once(run):
    """Behind the client's last message there is more than BATCH_SIZE, in the same read."""
    data, filled = bytes(400_000), threading.Event()
    sizes, received = [], []

    def peer(address):
        with connect(address, handshake=False) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            sock.handshake(last=False)
            while sock.object.write(data[: 16 << 10]) and sock._outgoing.pending < len(data):
                pass
            sizes.append(sock._outgoing.pending)
            sock.push()
            filled.set()

    def wait_for_the_server_hello():
        # When the answer is out, block the loop until all of the peer's flight is here.
        if pyasync.stats().bytes_written > 0:
            assert filled.wait(PATIENCE)
        else:
            pyasync.call_soon(wait_for_the_server_hello)

    events = []
    with run():
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2 << 20)
            listener.bind((HOST, 0))
            address = listener.getsockname()
            server = pyasync.tcp_ssl_server(
                None, 0, lambda socket, data: received.append(len(data)), fd=listener.fileno(),
                ssl_context=SERVER(), event_cb=events.append,
                connect_cb=lambda socket: server.close(),
            )  # fmt: skip
        thread = Background(peer, address)
        pyasync.call_soon(wait_for_the_server_hello)
    thread.result()
    assert [type(event) for event in events] == [pyasync.SocketEOF]
    assert sum(received) > 380_000
    assert sizes[0] >= 400_000


@pytest.mark.parametrize("kept_back", [False, True])
def test_no_write_cb_follows_an_error(run, kept_back):
    """The kernel takes the rest of a write as the peer's error comes."""
    waiting, told = threading.Event(), []

    def talk(address):
        with connect(address) as sock:
            assert waiting.wait(PATIENCE)
            sock.object.write(b"go")
            sock.sock.sendall(sock._outgoing.read() + NO_RECORD)
            with contextlib.suppress(OSError):
                while sock.sock.recv(1 << 18):
                    pass

    def fill(sock):
        if sock._extras.blocked_callbacks and sock._extras.deferred:
            waiting.set()
            time.sleep(0.3)  # both come with one poll
        elif not sock.closed:
            sock.write(bytes(100_000), write_cb=lambda sock: told.append("written"))
            pyasync.call_soon(lambda: fill(sock))

    def connected(sock):
        small_buffers(sock)
        fill(sock)

    def event_cb(event):
        del told[:]
        if isinstance(event, pyasync.TcpSslError):
            told.append(type(event))
            event.socket.close(force=not kept_back)
            sockets.append(event.socket)

    def read_cb(sock, data):
        if kept_back:
            sock.disable(read=True)
            after_iterations(2, lambda: sock.closed or sock.enable(read=True))

    sockets = []
    serve(run, talk, read_cb=read_cb, connect_cb=connected, event_cb=event_cb, linger=PATIENCE)
    assert told == [pyasync.TcpSslError]
    assert sockets[0].closed


def test_what_was_written_before_writing_was_disabled_is_sent(link):
    sent = []

    def connected(sock):
        small_buffers(sock)
        sock.write(bytes(MORE_THAN_FITS), write_cb=written)
        sock.disable(write=True)
        sock.write(b"tail", write_cb=lambda sock: sent.append("tail"))

    def written(sock):
        sent.append("head")
        assert sock.write_queue_size == 4
        after_iterations(3, lambda: go_on(sock))

    def go_on(sock):
        assert sent == ["head"]
        sock.enable(write=True)
        sock.close()

    data = link(connected, read_all)
    assert (len(data), data[-5:], sent) == (MORE_THAN_FITS + 4, b"\0tail", ["head", "tail"])


def test_an_upgrade_that_is_closed_at_once_sends_what_was_written(run):
    """All of the peer's first flight came before the upgrade."""
    context = server_context()

    def on_line(sock, data):
        pyasync.start_tls(
            sock, server_side=True, ssl_context=context, received=data.partition(b"\n")[2]
        )
        sock.write(b"bye")
        sock.close()

    def talk(address):
        with connect(address, handshake=False) as peer:
            with pytest.raises(ssl.SSLWantReadError):
                peer.object.do_handshake()
            peer.sock.sendall(b"STARTTLS\n" + peer._outgoing.read())
            peer.handshake()
            return read_all(peer)

    events = []
    with run():
        server = pyasync.tcp_server(
            HOST, 0, on_line, event_cb=events.append, connect_cb=lambda sock: server.close()
        )
        thread = Background(talk, server.address)
    assert thread.result() == b"bye"
    assert events == []


def test_many_write_cbs_of_one_batch_keep_their_order(run):
    count, called = 4000, []

    def talk(address):
        with connect(address) as sock:
            assert written.wait(PATIENCE)
            return len(read_all(sock))

    def connected(sock):
        small_buffers(sock)
        for number in range(count):
            sock.write(bytes(1000), write_cb=lambda sock, number=number: called.append(number))
        sock.close()
        written.set()

    written = threading.Event()
    assert serve(run, talk, connect_cb=connected, linger=PATIENCE)[0] == count * 1000
    assert called == list(range(count))


def test_a_write_cb_that_raises_stops_no_other_of_its_batch(run):
    called = []

    def read_cb(sock, data):
        sock.write(b"a", write_cb=lambda sock: called.append("a"))
        sock.write(b"b", write_cb=lambda sock: 1 / 0)
        sock.write(b"c", write_cb=lambda sock: called.append("c"))

    def talk(address):
        with connect(address) as sock:
            sock.sendall(b"go")
            return read_exactly(sock, 3)

    events = []
    result, _ = serve(
        partial(run, catch_app_errors=True), talk, read_cb=read_cb,
        event_cb=tell(events),
    )  # fmt: skip
    assert result == b"abc"
    assert called == ["a", "c"]
    # The peer may have ended before the callbacks had their turn.
    assert sorted(event.__name__ for event in events) == ["CallbackError", "SocketEOF"]


def test_a_failure_while_much_waits_is_reported_once(run):
    """The alert cannot be sent either, as the peer reads nothing."""
    ready, told = threading.Event(), []

    def talk(address):
        with connect(address) as sock:
            assert ready.wait(PATIENCE)
            sock.sock.sendall(NO_RECORD)
            wait_until(lambda: loop.stats().closed)

    def connected(sock):
        nonlocal loop
        loop = pyasync.current_loop()
        small_buffers(sock)
        sock.write(bytes(MORE_THAN_FITS))
        when(lambda: sock.write_queue_size < MORE_THAN_FITS and sock._blocked_size(), ready.set)

    loop = None
    serve(
        run, talk, connect_cb=connected, linger=0.2,
        event_cb=tell(told),
    )  # fmt: skip
    assert told == [pyasync.TcpSslError]


@pytest.mark.parametrize("data", [b"GET / HTTP/1.0\r\n\r\n", NO_RECORD])
def test_a_socket_that_has_failed_is_freed_without_the_collector(run, data):
    def talk(address):
        with connect_plain(address) as sock:
            sock.sendall(data)
            end_of(sock)

    def event_cb(event):
        told.append(event.reason)
        sockets.append(weakref.ref(event.socket))

    told, sockets = [], []
    gc.collect()
    gc.disable()
    try:
        serve(run, talk, event_cb=event_cb, linger=PATIENCE)
        if sys.implementation.name == "pypy":
            gc.collect()
        assert sockets[0]() is None
    finally:
        gc.enable()
    assert len(told) == 1


def test_a_signals_handler_that_writes_in_between_keeps_the_order(run):
    """Each write is of one letter: the handler's are capital, and the application's rise."""
    count, size = 3000, 20_000

    def talk(address):
        with connect(address) as sock:
            return read_all(sock)

    def write_in_between(signo, frame):
        """The next signal comes after this one, however slow the machine is, so all ends."""
        for sock in sockets:
            sock.write(b"S" * 9000)
            signal.setitimer(signal.ITIMER_REAL, 0.0003)

    def connected(sock):
        sockets.append(sock)
        signal.setitimer(signal.ITIMER_REAL, 0.0003)
        more(sock, 0)

    def more(sock, number):
        if number == count:
            sockets.clear()
            sock.close()
            return
        sock.write(number.to_bytes(4, "big") * (size // 4))
        pyasync.call_soon(lambda: more(sock, number + 1))

    sockets, before = [], signal.signal(signal.SIGALRM, write_in_between)
    try:
        data, events = serve(partial(run, limit=150), talk, connect_cb=connected, linger=PATIENCE)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert [type(event) for event in events] in ([], [pyasync.SocketEOF])
    assert b"S" * 9000 in data
    data = data.replace(b"S" * 9000, b"")
    assert data == b"".join(number.to_bytes(4, "big") * (size // 4) for number in range(count))


@pytest.mark.skipif(sys.implementation.name == "pypy", reason="PyPy has no such callback")
@pytest.mark.parametrize("moment", ["handshake", "read", "write"])
def test_an_exception_amid_tls_ends_the_connection_with_an_error(run, moment):
    """What a signal's handler raises there may have lost data; here the context's callback does."""
    context = server_context()

    def raise_in(connection, direction, version, content_type, message_type, data):
        if armed and (moment == "handshake" or direction == moment):
            armed.clear()
            raise LookupError("in between")

    def talk(address):
        with contextlib.suppress(OSError), connect(address) as sock:
            assert ready.wait(PATIENCE)  # or it might be decrypted together with the handshake
            sock.sendall(b"go")
            end_of(sock)

    def connected(sock):
        armed.append(True)
        ready.set()
        if moment == "write":
            sock.write(b"data")

    def event_cb(event):
        told.append(getattr(event, "reason", type(event)))
        ready.set()

    context._msg_callback = raise_in
    armed, told, ready = [True] if moment == "handshake" else [], [], threading.Event()
    serve(
        partial(run, catch_app_errors=True), talk, ssl_context=context,
        connect_cb=connected, event_cb=event_cb, linger=PATIENCE,
    )  # fmt: skip
    assert told[0] == "INTERRUPTED"
    assert set(told[1:]) <= {pyasync.CallbackError}


def test_a_pressure_cb_that_raises_is_told_to_the_event_cb(run):
    def talk(address):
        with connect(address) as sock:
            return len(read_all(sock))

    def connected(sock):
        """The kernel takes at once what was held back: then it is no event that ends it."""
        sock.disable(write=True)
        sock.write(bytes(100_000))
        pyasync.call_soon(lambda: sock.enable(write=True))

    def pressure_cb(sock, paused):
        if not paused:
            sock.close()
            raise LookupError("in pressure_cb")

    told = []
    serve(
        partial(run, catch_app_errors=True),
        talk, connect_cb=connected, pressure_cb=pressure_cb,
        event_cb=tell(told),
    )  # fmt: skip
    assert pyasync.CallbackError in told


@pytest.mark.parametrize("set_timeouts", [False, True])
def test_a_peer_that_does_not_answer_shutdown_is_closed_after_shutdown_timeout(run, set_timeouts):
    def talk(address):
        with connect(address) as sock:
            read_all(sock)
            wait_until(lambda: told)

    def connected(sock):
        sock.shutdown()
        if set_timeouts:  # of which that limit is none
            after_iterations(2, lambda: sock.closed or sock.set_timeouts(None, None))

    told = []
    serve(run, talk, connect_cb=connected, shutdown_timeout=0.2, event_cb=tell(told))
    assert told == [pyasync.SocketTimeout]
