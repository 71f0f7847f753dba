"""What the FFI costs: where a server on pyasync spends its CPU time, and what each crossing takes.

    python bench/ffi_profile.py                               http and echo, half a minute
    python bench/ffi_profile.py --svg ffi.svg                 the same, drawn
    python -m cProfile -o out.prof PROGRAM                    a program of yours that uses pyasync,
    python bench/ffi_profile.py --from out.prof               and what its profile says

A server runs under real load, in processes of its own: without a profiler, for the CPU time by the
kernel's accounting, and under cProfile, for the shares. Both are done with the operations joined
into one crossing an iteration (buffered), and with a crossing for each (unbuffered). What a third
design would cost, with a call of C's into Python for each event, is computed from these.

What the profiler itself costs is measured, and taken out. What the rows then add up to, and the
CPU time without a profiler, are both printed: the difference between them is the error. PyPy has
no profiler that names functions in C, and its compiler joins functions: there crossings are
counted, and the time outside of them is one row. docs/inside/ffi.md says more.
"""

import cProfile
import json
import multiprocessing
import os
import signal
import subprocess
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import chart
import common
import http_delay
from common import aligned, positive_int, progress
from ffi_calibration import PYPY, calibrate, report
from ffi_costs import Observation, analyze_profile, analyze_run, read_profile, with_callbacks

import pyasync
from pyasync._ffi import lib

VARIANTS = {"buffered": False, "unbuffered": True}


def main():
    options = parse_options()
    here = common.machine()
    try:
        given = read_profile(options.profile) if options.profile else None
        progress("calibrating")
        calibration = calibrate()
        if given:
            found = analyze_profile(given, calibration, cpu=options.cpu)
            results = {options.profile.name: {"profile": found}}
        else:
            common.compile_baseline("load")
            results = {name: measure(name, calibration, options) for name in options.workloads}
        progress("")
        if options.json:
            found = {"machine": here, "calibration": calibration, "results": results}
            print(json.dumps(found, indent=2))
        else:
            print(common.in_words(here), "", *text(calibration, results), sep="\n")
        if options.svg:
            chart.draw_parts(results, options.svg, common.in_words(here))
    except (OSError, ValueError, RuntimeError) as error:
        common.say(f"error: {error}")
        return 1
    return 0


def parse_options():
    parser = common.option_parser(__doc__)
    add = parser.add_argument
    add("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS), metavar="NAME",
        help=", ".join(WORKLOADS))  # fmt: skip
    add("--requests", type=positive_int, default=20_000, metavar="NUM",
        help="in a run; of echo, messages (%(default)s)")  # fmt: skip
    add("--concurrency", type=positive_int, default=200, metavar="NUM",
        help="connections at a time (%(default)s)")  # fmt: skip
    add("--rounds", type=positive_int, default=3, metavar="NUM",
        help="runs of each kind; the one with the least CPU time counts (%(default)s)")  # fmt: skip
    add("--from", dest="profile", type=Path, metavar="FILE",
        help="read a file of cProfile's in place of running anything")  # fmt: skip
    add("--cpu", type=common.positive_float, metavar="SECONDS",
        help="with --from: the CPU time of the program, as time(1) says; without it what libuv and"
        " the kernel take cannot be told from sleep")  # fmt: skip
    add("--svg", type=common.new_file, metavar="FILE", help="draw a bar for each variant into it")
    options = parser.parse_args()
    if options.cpu is not None and options.profile is None:
        parser.error("--cpu needs --from")
    if options.profile and PYPY:
        parser.error("--from needs CPython: PyPy's profiler does not name functions in C")
    if options.svg and not chart.available():
        parser.error(chart.MISSING)
    return options


# The runs


class Workload(NamedTuple):
    """What the server of http_delay.py does, which the load of the same name is put on."""

    title: str
    unit: str
    on_data: object = None


WORKLOADS = {
    "http": Workload("http_delay: a connection for each request", "request"),
    "echo": Workload("echo: messages of 1 KiB", "message", lambda socket, data: socket.write(data)),
}


def measure(name, calibration, options):
    """Run a workload in each variant, some rounds in turn. Returns costs by variant."""
    observed = {(variant, watched): [] for variant in VARIANTS for watched in (False, True)}
    for number in range(options.rounds):
        for (variant, watched), runs in observed.items():
            how = "watched" if watched else "unwatched"
            progress(f"{name} {number + 1}/{options.rounds}: {variant}, {how}")
            # In a process of its own, which starts as this one is.
            fork = multiprocessing.get_context("fork")
            with ProcessPoolExecutor(1, mp_context=fork) as pool:
                run = pool.submit(observe, name, watched, VARIANTS[variant], options)
                runs.append(run.result())
    # What else the machine does only adds to a run.
    best = {key: min(runs, key=lambda run: run.cpu) for key, runs in observed.items()}
    costs = {
        variant: analyze_run(best[variant, True], best[variant, False], calibration)
        for variant in VARIANTS
    }
    costs["callbacks"] = with_callbacks(costs["unbuffered"], calibration)
    return costs


def observe(name, watched, unbuffered, options):
    """Run a server under load, and end it with the load. Returns an Observation."""
    common.raise_open_files_limit()
    run = SimpleNamespace()

    def send(kind, value):
        if kind == "counters":
            run.cpu = value.user, value.system
            return
        # Before the client, the only child: it may end at once.
        pyasync.signal_handler(signal.SIGCHLD, end_server).unref()
        load = [common.LOAD, "-n", options.requests, name, value[1], options.concurrency]
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE}
        run.client = subprocess.Popen(map(str, load), **pipes)
        run.loop = pyasync.current_loop()
        run.stats = run.loop.stats()

    def end_server(signo):
        os.kill(os.getpid(), signal.SIGTERM)

    words = ["--port=0", "--delay=0", *(["--unbuffered"] if unbuffered else [])]
    counts, profiler = Counter(), cProfile.Profile()
    if watched and PYPY:
        count_crossings(counts)
    elif watched:
        profiler.enable()
    http_delay.serve(http_delay.parse_options(words), send, WORKLOADS[name].on_data)
    profiler.create_stats()  # which ends it
    output, _ = run.client.communicate()
    if run.client.returncode != 0:
        raise RuntimeError(f"the load on {name} has failed")
    requests = json.loads(output.splitlines()[-1])["done"]
    return Observation(requests, *run.cpu, run.loop.stats() - run.stats, counts, profiler.stats)


def count_crossings(counts):
    """Put a counter before each function of C's, where there is no profiler that names them.

    The package's modules have them as attributes of `lib`, in dictionaries, and as globals.
    """

    def counting(function):
        name = getattr(function, "__name__", "")
        if not hasattr(lib, name):  # a constant, or something else
            return function

        def counted(*arguments):
            counts[name] += 1
            return function(*arguments)

        return counted

    counting_lib = SimpleNamespace(**{name: counting(getattr(lib, name)) for name in dir(lib)})
    for module_name, module in sys.modules.items():
        if not module_name.startswith("pyasync.") or "_libuv" in module_name:  # lib is one, too
            continue
        for name, value in list(vars(module).items()):
            if isinstance(value, dict) and not name.startswith("__"):
                value.update({key: counting(function) for key, function in value.items()})
            else:
                setattr(module, name, counting_lib if value is lib else counting(value))


# What is printed

MEASURED = {
    "sum": "total",
    "without the profiler": "measured",
    "  of it in the kernel": "system",
    "error of the sum": "residual",
    "crossings, unwatched": "counted",
}
FORMATS = {"error of the sum": "{:+.1%}", "crossings, unwatched": "{:,.3f}        "}


def text(calibration, results):
    yield from report(calibration)
    for name, variants in results.items():
        workload = WORKLOADS.get(name, Workload("the time in the loop", ""))
        yield ""
        yield f"{name}: {workload.title}"
        yield from aligned(shares(variants, workload.unit))
        for variant, costs in variants.items():
            if not costs["computed"]:
                yield ""
                yield from aligned(crossings(variant, costs, workload.unit))


def shares(variants, unit):
    """A row for each part, with its time and its share of the sum; then what else was measured."""

    def cell(name, costs, value):
        if value is None:
            return "-"
        if name in FORMATS:
            return FORMATS[name].format(value)
        time = value * 1e6 / costs["requests"] if costs["requests"] else value
        return f"{time:,.{2 if unit else 3}f} {value / costs['total']:7.1%}"

    yield [f"µs/{unit}, share" if unit else "seconds, share", *variants]
    found = list(variants.values())
    rows = {name: [costs["parts"][name] for costs in found] for name in found[0]["parts"]}
    rows.update({name: [costs[key] for costs in found] for name, key in MEASURED.items()})
    for name, values in rows.items():
        if set(values) != {None}:
            yield [name, *(cell(name, costs, value) for costs, value in zip(found, values))]


def crossings(variant, costs, unit):
    """A row for each crossing, but for those that are only made at the beginning or the end."""
    requests = costs["requests"]
    calls = f"calls/{unit}" if unit else "calls"
    yield [f"crossings, {variant}", calls, "ns/call", "share", "then in C, ns"]
    for row in costs["crossings"]:
        count, in_c = row["calls"], row["in_c"]
        if count >= requests / 1000:
            yield [
                f"  {row['name']}",
                f"{count / requests:,.3f}" if requests else f"{count:,}",
                f"{row['cost'] * 1e9 / count:,.0f}",
                f"{row['share']:.2%}",
                "" if in_c is None else f"{in_c * 1e9 / count:,.0f}",
            ]


if __name__ == "__main__":
    sys.exit(main())
