"""Reads lines from a connection in three ways, and shows that AsyncStream's cost is linear.

    python bench/stream_lines.py                           everything, some minutes
    python bench/stream_lines.py --mebibytes 100 --cases filled --rounds 9

A child process sends lines over the loopback, as many as make up each amount of data, then ends
the connection. This process reads them, and counts.

Readers
  pyasync   AsyncStream.readline, called in read_cb until it gives None
  asyncio   StreamReader.readline, awaited until the end
  blocking  io.BufferedReader.readline over a blocking socket with a buffer of 256 KiB: the
            baseline, in C, which waits wherever the others would do something else

Cases
  short   lines of 64 bytes, each piece that arrives read at once
  long    lines of 1 MiB, so that a line comes in many pieces, most of which end no line
  filled  lines of 64 bytes, of which none is read until all have arrived: the whole amount waits
          in one buffer (the baseline's is an io.BytesIO), and is then read line by line

Each round runs every reader once for each amount, in turn, so that all of them meet the machine in
the same mood. The figures are medians over the rounds, with the lowest and the highest. The CPU
time, user and system, is this process's own, without the sender's: it is the figure to compare. If
the cost is linear, a MiB costs the same whatever the amount is. The column "÷ 25 MiB" divides the
CPU time per MiB by that of the smallest amount: 1 is linear, and 4 for four times the data is
quadratic. The columns "÷ asyncio" and "÷ blocking" are ratios of the medians for that amount.
"""

import argparse
import asyncio
import contextlib
import gc
import io
import json
import multiprocessing
import os
import platform
import socket
import statistics
import sys
import time
from typing import NamedTuple

import pyasync

MIB = 1 << 20
BUFFER = 256 << 10  # of the blocking reader; pyasync and asyncio read as much at a time
REFERENCES = ("asyncio", "blocking")


class Case(NamedTuple):
    """What is sent, and when it is read."""

    name: str
    title: str
    line_size: int
    filled: bool = False  # whether all must have arrived before the first line is read


CASES = [
    Case("short", "lines of 64 bytes, read as they arrive", 64),
    Case("long", "lines of 1 MiB, read as they arrive", MIB),
    Case("filled", "lines of 64 bytes, read when all have arrived", 64, filled=True),
]


# The sender


def send(listener, cores):
    """Answer each connection, which says ``line_size mebibytes``, with so many lines."""
    pin(cores)
    while True:
        connection, _ = listener.accept()
        with connection, connection.makefile("rb") as requests:
            line_size, mebibytes = map(int, requests.readline().split())
            block = (b"x" * (line_size - 1) + b"\n") * (MIB // line_size)
            # A reader that has gone away has reported why.
            with contextlib.suppress(ConnectionError):
                for _ in range(mebibytes):
                    connection.sendall(block)


@contextlib.contextmanager
def sender(cores):
    """Run the sender while the block runs. Gives its address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        process = multiprocessing.Process(target=send, args=(listener, cores), daemon=True)
        process.start()
        try:
            yield listener.getsockname()
        finally:
            process.terminate()
            process.join()


def pin(cores):
    """Keep this process on these processors, where the system can."""
    if cores:
        os.sched_setaffinity(0, cores)


# The readers. Each sends the request, reads to the end, and returns how many lines there were.


def read_with_pyasync(address, request, case):
    lines = 0
    errors = []

    def read_lines(stream):
        nonlocal lines
        readline = stream.readline
        while readline():
            lines += 1

    def read_cb(socket, stream):
        if not case.filled:
            read_lines(stream)

    def event_cb(event):
        if isinstance(event, pyasync.SocketEOF):
            read_lines(stream)
        else:
            errors.append(event)

    with pyasync.event_loop():
        stream = pyasync.tcp_connect(
            *address, read_cb, data=request, stream=True, event_cb=event_cb
        )
    if errors:
        raise errors[0]
    return lines


def read_with_asyncio(address, request, case):
    return asyncio.run((read_filled if case.filled else read_as_it_arrives)(address, request, case))


async def read_as_it_arrives(address, request, case):
    limit = max(BUFFER, 2 * case.line_size)  # a longer line is an error
    reader, writer = await asyncio.open_connection(*address, limit=limit)
    writer.write(request)
    lines = 0
    while await reader.readline():
        lines += 1
    writer.close()
    await writer.wait_closed()
    return lines


async def read_filled(address, request, case):
    # open_connection's reader would stop reading from the socket at its limit.
    reader, ended = asyncio.StreamReader(), asyncio.Event()

    class Filler(asyncio.Protocol):
        def connection_made(self, transport):
            transport.write(request)

        def data_received(self, data):
            reader.feed_data(data)

        def eof_received(self):
            reader.feed_eof()
            ended.set()

    await asyncio.get_running_loop().create_connection(Filler, *address)
    await ended.wait()
    lines = 0
    while await reader.readline():
        lines += 1
    return lines


def read_blocking(address, request, case):
    with socket.create_connection(address) as connection:
        connection.sendall(request)
        with connection.makefile("rb", buffering=BUFFER) as file:
            readline = io.BytesIO(file.read()).readline if case.filled else file.readline
            lines = 0
            while readline():
                lines += 1
            return lines


READERS = {
    "pyasync": read_with_pyasync,
    "asyncio": read_with_asyncio,
    "blocking": read_blocking,
}


# The measurements


def measure(name, address, case, mebibytes):
    """Read so much once. Gives the seconds it took, and the CPU seconds."""
    request = b"%d %d\n" % (case.line_size, mebibytes)
    gc.collect()
    started, cpu = time.perf_counter(), time.process_time()
    lines = READERS[name](address, request, case)
    figures = {"seconds": time.perf_counter() - started, "cpu": time.process_time() - cpu}
    expected = mebibytes * MIB // case.line_size
    if lines != expected:
        raise RuntimeError(f"{name} has read {lines:,} lines of {expected:,}")
    return figures


def compare(address, case, options):
    """Run all rounds of a case. Gives what each (reader, amount) measured in each round."""
    runs = {(name, amount): [] for amount in options.mebibytes for name in options.readers}
    for number in range(1, options.rounds + 1):
        for (name, amount), figures in runs.items():
            figures.append(measure(name, address, case, amount))
            print(
                f"{case.name} {number}/{options.rounds} {name} {amount} MiB:"
                f" {figures[-1]['seconds']:.2f} s, CPU {figures[-1]['cpu']:.2f} s",
                file=sys.stderr,
                flush=True,
            )
    return runs


def summarize(runs):
    """Medians, spread and ratios of the runs of a case: a row for each reader and amount."""
    cpu = {key: statistics.median(run["cpu"] for run in runs[key]) for key in runs}
    rows = []
    for (name, amount), figures in runs.items():
        smallest = min(amount for _, amount in runs)
        per_mebibyte = cpu[name, amount] / amount
        rows.append(
            {
                "reader": name,
                "mebibytes": amount,
                "cpu": cpu[name, amount],
                "cpu_min": min(run["cpu"] for run in figures),
                "cpu_max": max(run["cpu"] for run in figures),
                "seconds": statistics.median(run["seconds"] for run in figures),
                "cpu_ms_per_mebibyte": per_mebibyte * 1e3,
                "linearity": per_mebibyte / (cpu[name, smallest] / smallest),
                "ratios": {
                    reference: cpu[name, amount] / cpu[reference, amount]
                    for reference in REFERENCES
                    if (reference, amount) in cpu
                },
                "runs": figures,
            }
        )
    return sorted(rows, key=lambda row: list(READERS).index(row["reader"]))


def table(case, rows):
    """The summary of a case, as lines of text."""
    smallest = min(row["mebibytes"] for row in rows)
    heading = ["", "MiB", "CPU s", "lowest-highest", "CPU ms/MiB", f"÷ {smallest} MiB"]
    heading += [f"÷ {reference}" for reference in rows[0]["ratios"]] + ["seconds"]
    cells = [heading]
    for row in rows:
        cells.append(
            [
                row["reader"],
                f"{row['mebibytes']:,}",
                f"{row['cpu']:.3f}",
                f"{row['cpu_min']:.3f}-{row['cpu_max']:.3f}",
                f"{row['cpu_ms_per_mebibyte']:.2f}",
                f"{row['linearity']:.2f}",
                *(f"{ratio:.2f}" for ratio in row["ratios"].values()),
                f"{row['seconds']:.3f}",
            ]
        )
    widths = [max(map(len, column)) for column in zip(*cells)]
    yield f"{case.name}: {case.title}"
    for name, *numbers in cells:
        numbers = [number.rjust(width) for number, width in zip(numbers, widths[1:])]
        yield "  ".join([" ", name.ljust(widths[0]), *numbers])


def machine():
    """Where the figures come from. Also on PyPy, which cannot ask for its processors."""
    return {
        "machine": platform.machine(),
        "processors": os.cpu_count(),
        "kernel": platform.release(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "libuv": pyasync.libuv_version(),
    }


def main():
    options = parse_options()
    cases = [case for case in CASES if case.name in options.cases]
    here = machine()
    if not options.json:
        print(", ".join(f"{name} {value}" for name, value in here.items()))
    summaries = {}
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    with sender(cores[-1:]) as address:
        pin(cores[:1])
        for case in cases:
            summaries[case.name] = summarize(compare(address, case, options))
            if not options.json:
                print("", *table(case, summaries[case.name]), sep="\n", flush=True)
    if options.json:
        print(json.dumps({"machine": here, "cases": summaries}, indent=2))


def parse_options():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cases = [case.name for case in CASES]
    readers = list(READERS)
    add = parser.add_argument
    add("--mebibytes", nargs="+", type=amount, default=[25, 50, 100], metavar="NUM",
        help="the amounts of data (25 50 100)")  # fmt: skip
    add("--cases", nargs="+", choices=cases, default=cases, metavar="NAME",
        help=", ".join(cases))  # fmt: skip
    add("--readers", nargs="+", choices=readers, default=readers, metavar="NAME",
        help=", ".join(readers))  # fmt: skip
    add("--rounds", type=amount, default=5, help="(%(default)s)")
    add("--json", action="store_true", help="print one JSON object, with every run")
    return parser.parse_args()


def amount(text):
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return value


if __name__ == "__main__":
    main()
