"""Programs that measure themselves: timers, wake-ups from another thread, and lines."""

import contextlib
import os
import socket
import threading

from common import KIB, MIB
from contenders import run

from workloads import Case, points, workload


def timer_cost(contender, options, mode, count):
    found = run(contender, options.server_cores, "timers", mode, count, options.spread)
    return {"CPU µs/timer": found["cpu_seconds"] * 1e6}


@workload()
def timers(contender, count, options):
    """create {timers:,} timers, due over {spread:g} s, and fire them.

    CPU time of the process. The program measures itself; there is no client.
    """
    return timer_cost(contender, options, "fire", count or options.timers)


@workload()
def cancel(contender, value, options):
    """create {timers:,} timers and cancel them.

    CPU time of the process. The program measures itself; there is no client.
    """
    return timer_cost(contender, options, "cancel", options.timers)


@workload()
def pending(contender, value, options):
    """{timers:,} timers pending.

    Private memory of each, beyond its callback, which all share, and the application's
    reference to it.
    """
    words = ("timers", "pending", options.timers, options.spread)
    return {"bytes/timer": run(contender, options.server_cores, *words)["bytes"]}


@workload(cases=points(100, 10_000, 1_000_000), curve="timers")
def scale_timers(contender, count, options):
    """so many timers created and fired.

    CPU time for each timer, of a process of its own.
    """
    return timers(contender, count, options)


@workload()
def wakeups(contender, value, options):
    """wake-ups from another thread, each answered before the next.

    CPU time of both threads, on one processor; the answer is a semaphore's. There is no
    client. In Python it includes handing the interpreter's lock over twice.
    """
    found = run(contender, options.server_cores, "wakeups", options.seconds)
    return {"CPU µs/wake-up": found["cpu_seconds"] * 1e6, "wake-ups/s": found["per_second"]}


@contextlib.contextmanager
def lines_server(size, mebibytes, cores):
    """Send so much on each connection while the block runs, from a thread. Gives the port."""

    def send():
        os.sched_setaffinity(0, cores)  # this thread alone
        block = (b"x" * (size - 1) + b"\n") * (MIB // size)
        with contextlib.suppress(OSError):  # the listener is closed; or a reader, which says why
            while True:
                connection, _ = listener.accept()
                with connection:
                    for _ in range(mebibytes):
                        connection.sendall(block)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=send, daemon=True).start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)


def line_cases(options):
    return [
        Case(f"{title}, {mebibytes} MiB", (when, size, mebibytes))
        for title, when, size in (
            ("64-byte lines, read as they arrive", "at_once", 64),
            ("1 MiB lines, read as they arrive", "at_once", MIB),
            ("64-byte lines, read when all have arrived", "at_end", 64),
        )
        for mebibytes in options.mebibytes
    ]


@workload(cases=line_cases, references=("asyncio", "bare"))
def lines(contender, value, options):
    """lines of a connection, by AsyncStream.readline, and StreamReader's.

    CPU time of the reader, which has read the same once before. The cost is linear if a MiB
    costs the same whatever the amount. bare is io's readline, in C, which blocks.
    """
    when, size, mebibytes = value
    with lines_server(size, mebibytes, options.client_cores) as port:
        found = run(contender, options.server_cores, "lines", port, when, max(4 * size, 256 * KIB))
    if found["lines"] != mebibytes * MIB // size:
        raise RuntimeError(f"{found['lines']:,} lines were read")
    return {
        "CPU ms/MiB": found["cpu_seconds"] * 1e3 / mebibytes,
        "MiB/s": mebibytes / found["seconds"],
    }
