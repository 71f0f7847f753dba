"""What the benchmarks share and does not need pyasync: the peers of other libraries use it too."""

import argparse
import ctypes
import math
import os
import platform
import resource
import signal
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

BENCH = Path(__file__).resolve().parent
BASELINE = BENCH / "baseline"
LOAD = BASELINE / "load"

KIB, MIB = 1 << 10, 1 << 20
PR_SET_PDEATHSIG = 1  # prctl(2)
LIBC = ctypes.CDLL(None)

# What every server answers; those in C and on Node have a copy.
RESPONSE = (
    b"HTTP/1.1 200 OK\r\n"
    b"Date: Wed, 03 Oct 2012 23:43:10 GMT\r\n"
    b"Content-Type: text/plain\r\n"
    b"Content-Length: 9\r\n"
    b"\r\n"
    b"omglolwtf"
)

# Linux connects from half of the 28,232 ports of net.ipv4.ip_local_port_range first, and looks
# for a free one longer and longer as that half fills.
CONNECTIONS_PER_ADDRESS = 10_000

# Descriptors that are no connection: the loop's own, the listener, pipes, open files.
RESERVED_FILES = 64


# Options and output


def option_parser(description):
    """Return a parser with the option that all programs have."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print JSON in place of text")
    return parser


def between(kind, least, most):
    """Return a type for argparse: a number in this range."""

    def read(text):
        value = kind(text)
        if not least <= value <= most:  # nor is NaN
            raise argparse.ArgumentTypeError(f"must be from {least:,} to {most:,}")
        return value

    read.__name__ = kind.__name__  # which argparse names when there is no number
    return read


positive_int = between(int, 1, 10**12)
positive_float = between(float, 1e-6, 1e12)
port_to_listen = between(int, 0, 65535)  # 0 is any port that is free
port_to_connect = between(int, 1, 65535)
delay_time = between(float, 0, 1_000_000)  # before an answer, in seconds


def progress(text):
    """Say what is under way, in one line of a terminal."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def say(text, file=sys.stderr):
    """Print a line, with one write, because processes share the output."""
    progress("")
    print(f"{text}\n", end="", file=file, flush=True)


def aligned(rows):
    """The rows of a table as lines of text: names to the left, figures to the right."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows)]
    for name, *cells in rows:
        cells = [cell.rjust(width) for cell, width in zip(cells, widths[1:])]
        yield "  ".join([" ", name.ljust(widths[0]), *cells]).rstrip()


def machine():
    """Where the figures come from."""
    import cffi

    import pyasync

    processors = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(": ")[2] for line in processors if line.startswith("model name")]
    return {
        "processor": models[0] if models else platform.machine(),
        "processors": os.cpu_count(),
        "load": f"{os.getloadavg()[0]:.1f}",
        "kernel": platform.release(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "cffi": cffi.__version__,
        "libuv": pyasync.libuv_version(),
    }


def in_words(fields):
    return ", ".join(f"{name} {value}" for name, value in fields.items())


# Processes


def compile_baseline(*programs):
    """Compile programs in C, unless that was done before. The load needs no libuv."""
    subprocess.run(["make", "-C", BASELINE, *programs], check=True, stdout=subprocess.DEVNULL)


def end_with_parent():
    """Have the kernel end this process when its parent ends, however that comes."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def raise_open_files_limit():
    """Raise the limit of open files of this process, and of those that it starts, as far as it may.

    Returns it, and what it was.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard, soft


def processes_needed(connections, limit):
    """How many processes can open so many connections, which they share out evenly."""
    return max(1, math.ceil(connections / max(1, limit - RESERVED_FILES)))


def shares(total, count):
    """Split a whole number into so many nearly equal ones."""
    return [total * (i + 1) // count - total * i // count for i in range(count)]


def start_busy_thread():
    """Keep the interpreter busy, as a thread of the application may."""

    def spin():
        while True:
            pass

    threading.Thread(target=spin, daemon=True).start()


def private_bytes(pid="self"):
    """The memory that only this process has (Private_Clean and Private_Dirty, proc(5))."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_"))


class Cpu(NamedTuple):
    """The CPU time that a process, all its threads, has used."""

    seconds: float  # exact
    user: int  # in ticks of 10 ms, of use for the proportion
    system: int

    @classmethod
    def of(cls, pid):
        seconds = time.clock_gettime((~pid << 3) | 2)  # clock_getcpuclockid(3)
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return cls(seconds, int(fields[11]), int(fields[12]))

    def for_each(self, count, since):
        """The microseconds for each of so many: in all, user and system."""
        each = (self.seconds - since.seconds) * 1e6 / max(1, count)
        user, system = self.user - since.user, self.system - since.system
        return each, each * user / (user + system or 1), each * system / (user + system or 1)


# TLS


def make_certificate(folder):
    """Make a certificate of the curve P-256, signed by itself. Returns its file and its key's."""
    certificate, key = Path(folder) / "certificate.pem", Path(folder) / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-nodes", "-keyout", key, "-out", certificate, "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost"],
        check=True, capture_output=True,
    )  # fmt: skip
    return certificate, key


def server_context(certificate=None, key=None):
    """Return a server's context; without a certificate, with one made for it."""
    with tempfile.TemporaryDirectory() as folder:
        if certificate is None:
            certificate, key = make_certificate(folder)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(str(certificate), str(key))
        return context


def trusting_context():
    """Return a client's context that takes any certificate."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
