"""What the tests of TLS share: certificates, contexts, and a plain peer that speaks TLS."""

import atexit
import ctypes
import ctypes.util
import functools
import re
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
from peers import PATIENCE, Background, Link, echo

import pyasync

HOST = "127.0.0.1"

# Certificates


@functools.cache
def _folder():
    folder = tempfile.mkdtemp(prefix="pyasync-tests-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def openssl(*arguments, **options):
    subprocess.run(
        ["openssl", *map(str, arguments)], check=True, capture_output=True, timeout=60, **options
    )


def validity(days):
    """Return openssl's options for so many days from now; negative: they are over."""
    version = subprocess.run(["openssl", "version"], capture_output=True, text=True, check=True)
    if days < 0 and re.match(r"OpenSSL (3\.[4-9]|3\.\d\d|[4-9])", version.stdout):
        # These refuse an end before the beginning, which older ones have no option for.
        return ["-not_before", "20200101000000Z", "-not_after", "20200102000000Z"]
    return ["-days", days]


class Certificate:
    """A certificate and its key, in files; signed by an issuer, or by itself."""

    def __init__(self, name, extensions, *, issuer=None, days=30):
        base = _folder() / name
        self.certificate = base.with_suffix(".crt")
        self.key = base.with_suffix(".key")
        request = base.with_suffix(".csr")
        config = base.with_suffix(".cnf")
        config.write_text(
            "[req]\ndistinguished_name=name\nprompt=no\n[name]\nCN=" + name + "\n"
            "[extensions]\n" + "\n".join(extensions) + "\n"
        )
        openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", self.key)
        openssl("req", "-new", "-key", self.key, "-config", config, "-out", request)
        signer = ["-signkey", self.key]
        if issuer is not None:
            signer = ["-CA", issuer.certificate, "-CAkey", issuer.key, "-CAcreateserial"]
        openssl(
            "x509", "-req", "-in", request, *signer, "-out", self.certificate,
            *validity(days), "-extfile", config, "-extensions", "extensions",
        )  # fmt: skip


@functools.cache
def authority():
    return Certificate(
        "authority",
        [
            "basicConstraints=critical,CA:TRUE",
            "keyUsage=critical,keyCertSign",
            "subjectKeyIdentifier=hash",
        ],
    )


@functools.cache
def certificate(names="DNS:localhost,IP:127.0.0.1,IP:::1", days=30):
    name = f"leaf{abs(hash((names, days)))}"
    # Contexts of Python 3.13 and newer ask for the identifiers (VERIFY_X509_STRICT).
    extensions = [
        f"subjectAltName={names}",
        "basicConstraints=CA:FALSE",
        "subjectKeyIdentifier=hash",
        "authorityKeyIdentifier=keyid",
    ]
    return Certificate(name, extensions, issuer=authority(), days=days)


def server_context(leaf=None, **attributes):
    leaf = leaf or certificate()
    context = ssl.create_default_context(
        ssl.Purpose.CLIENT_AUTH, cafile=str(authority().certificate)
    )
    context.load_cert_chain(str(leaf.certificate), str(leaf.key))
    for name, value in attributes.items():
        setattr(context, name, value)
    return context


def client_context(leaf=None, **attributes):
    context = ssl.create_default_context(cafile=str(authority().certificate))
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    if leaf is not None:
        context.load_cert_chain(str(leaf.certificate), str(leaf.key))
    for name, value in attributes.items():
        setattr(context, name, value)
    return context


# The same contexts for all connections of the conformance suite: making one takes milliseconds.
SERVER = functools.lru_cache(maxsize=None)(server_context)
CLIENT = functools.lru_cache(maxsize=None)(client_context)


@functools.cache
def server_without_tickets():
    """Return a context with which a peer sends nothing by itself, as a plain one.

    A socket that was closed by force would answer its tickets with a reset.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)  # no other has num_tickets before 3.10
    context.load_cert_chain(str(certificate().certificate), str(certificate().key))
    context.num_tickets = 0
    return context


class TlsPeer:
    """A blocking socket that speaks TLS, with the methods of a plain one.

    Unlike `ssl.SSLSocket`, one thread can send while another receives, `shutdown` is a half-close,
    and a timeout loses nothing. `close` reads what is left, so that no reset takes what was sent.
    """

    def __init__(self, sock, context, *, server_side, server_hostname=None, handshake=True):
        self.sock = sock
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.object = context.wrap_bio(
            self._incoming,
            self._outgoing,
            server_side=server_side,
            server_hostname=None if server_side else server_hostname,
        )
        self._lock = threading.RLock()  # of OpenSSL's object, and of the order of its records
        self._unsent = b""
        self._early = b""  # what was read before it was asked for
        self._sent = self._received = 0
        #: Whether the peer has ended by a close_notify.
        self.ended_properly = False
        if handshake:
            self.handshake()

    @property
    def wire(self):
        """How many bytes of TCP were sent and received."""
        return self._sent, self._received

    def handshake(self, *, last=True):
        """Shake hands; without ``last`` the last message leaves together with what follows."""
        while True:
            try:
                self.object.do_handshake()
            except ssl.SSLWantReadError:
                self.push()
                self._feed_record()
            except ssl.SSLError:
                self.push()
                raise
            else:
                if last:
                    self.push()
                return

    def push(self):
        """Send what TLS has to send; what a timeout leaves over is sent the next time."""
        with self._lock:
            self._unsent += self._outgoing.read()
            while self._unsent:
                size = self.sock.send(self._unsent)
                self._sent += size
                self._unsent = self._unsent[size:]

    def _feed_record(self):
        """Read one record: what comes behind the handshake is left to the kernel."""
        record, size = b"", 5
        while len(record) < size:
            piece = self.sock.recv(size - len(record))
            if not piece:
                self._incoming.write_eof()
                return
            self._received += len(piece)
            self._incoming.write(piece)
            record += piece
            size = 5 + int.from_bytes(record[3:5], "big") if len(record) >= 5 else 5

    def _feed(self):
        data = self.sock.recv(1 << 18)
        with self._lock:
            self._received += len(data)
            if data:
                self._incoming.write(data)
            else:
                self._incoming.write_eof()
        return data

    def send(self, data):
        self.push()
        with self._lock:
            size = self.object.write(bytes(data[: 16 << 10]))
            try:
                self.push()
            except socket.timeout:
                pass
        return size

    def sendall(self, data):
        view = memoryview(data).cast("B")
        while view:
            view = view[self.send(view) :]

    def recv(self, size):
        while True:
            with self._lock:
                if self._early:
                    data, self._early = self._early[:size], self._early[size:]
                    return data
                try:
                    data = self.object.read(size)
                    self.ended_properly = self.ended_properly or not data
                    return data
                except ssl.SSLWantReadError:
                    pass
                except ssl.SSLZeroReturnError:
                    self.ended_properly = True
                    return b""
                except ssl.SSLEOFError:
                    return b""
                except ssl.SSLError as error:
                    if error.reason == "PROTOCOL_IS_SHUTDOWN":  # PyPy's SSLZeroReturnError
                        self.ended_properly = True
                        return b""
                    if error.reason == "UNEXPECTED_EOF_WHILE_READING":
                        return b""
                    raise
                finally:
                    pending = self._outgoing.pending
            if pending:
                self.push()
            self._feed()

    def shutdown(self, how):
        with self._lock:
            try:
                while self._incoming.pending:  # OpenSSL would drop it
                    self._early += self.object.read(1 << 18)
            except ssl.SSLError:
                pass
            try:
                self.object.unwrap()
            except ssl.SSLError:
                pass  # the peer's close_notify is still to come
            self.push()
        self.sock.shutdown(socket.SHUT_WR)

    def close(self):
        try:
            self.sock.settimeout(PATIENCE)
            self.shutdown(socket.SHUT_WR)
            while self.sock.recv(1 << 18):
                pass
        except (OSError, ValueError):
            pass
        self.sock.close()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def __getattr__(self, name):
        return getattr(self.sock, name)


class TlsLink(Link):
    """A Link over TLS."""

    def serve(self, **options):
        return pyasync.tcp_ssl_server(self.host, 0, ssl_context=SERVER(), **options)

    def connect(self, address, **options):
        return pyasync.tcp_ssl_connect(self.host, address[1], ssl_context=CLIENT(), **options)

    def accept(self, listener):
        return wrap(super().accept(listener), server_without_tickets(), server_side=True)

    def dial(self, address):
        return wrap(super().dial(address), CLIENT(), server_side=False, server_hostname=self.host)

    @staticmethod
    def reset(sock):
        Link.reset(sock.sock)


def wrap(sock, context, **options):
    try:
        return TlsPeer(sock, context, **options)
    except BaseException:
        sock.close()
        raise


TLS_LINKS = [
    pytest.param(
        {"kind": TlsLink, "family": socket.AF_INET, "host": "127.0.0.1", "incoming": incoming,
         "buffer_writes": incoming},
        id="tls-accepted-buffered" if incoming else "tls-connected-unbuffered",
    )
    for incoming in (True, False)
]  # fmt: skip


def update_keys(tls, *, request=True):
    """Write a KeyUpdate, which may ask for one: `ssl` cannot, but CPython's SSL * is known."""
    pointer = ctypes.c_void_p.from_address(id(tls._sslobj) + 3 * ctypes.sizeof(ctypes.c_void_p))
    libssl = ctypes.CDLL("libssl.so.3")
    libssl.SSL_key_update.argtypes = [ctypes.c_void_p, ctypes.c_int]
    assert libssl.SSL_key_update(pointer.value, int(request)) == 1
    tls.do_handshake()


key_updates = pytest.mark.skipif(
    sys.implementation.name != "cpython"
    or not ssl.OPENSSL_VERSION.startswith("OpenSSL 3")
    or ctypes.util.find_library("ssl") != "libssl.so.3",
    reason="reaches into CPython's SSLObject",
)


def connect_plain(address):
    return socket.create_connection(address, timeout=PATIENCE)


def connect(address, context=None, name="localhost", **options):
    """Return a `TlsPeer` that is connected to a server."""
    return wrap(
        connect_plain(address),
        context or CLIENT(),
        server_side=False,
        server_hostname=name,
        **options,
    )


def serve(run, talk, *, read_cb=None, ssl_context=None, **options):
    """Run a server, which echoes by default, while talk(address) runs in a thread.

    Returns what talk returns, and what the event_cb was told.
    """
    events = []
    options.setdefault("linger", PATIENCE)  # for a busy machine

    with run():
        loop = pyasync.current_loop()
        server = pyasync.tcp_ssl_server(
            HOST,
            0,
            read_cb or echo,
            event_cb=options.pop("event_cb", events.append),
            ssl_context=ssl_context or SERVER(),
            **options,
        )

        def talk_and_end():
            try:
                return talk(server.address)
            finally:
                loop.call_threadsafe(server.close)

        thread = Background(talk_and_end)
    return thread.result(), events
