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
import pstats
import signal
import subprocess
import sys
from collections import Counter, defaultdict
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import chart
import common
import http_delay
from common import KIB, aligned, positive_int, progress
from ffi_calibration import COUNTS, PYPY, calibrate

import pyasync
from pyasync._ffi import ffi, lib

VARIANTS = {"buffered": False, "unbuffered": True}

# By name: a title, the unit, and what the server of http_delay.py does in place of its answer. The
# load of the same name is put on it.
WORKLOADS = {
    "http": ("http_delay: a connection for each request", "request", None),
    "echo": ("echo: messages of 1 KiB", "message", lambda socket, data: socket.write(data)),
}

CROSSING = "<built-in method pyasync._libuv."
RUN = f"{CROSSING}pa_run>"  # sleeps, too
CFFI = "_cffi_backend"
PACKAGE = "/pyasync/"

KERNEL, FFI, PYASYNC, APPLICATION = "kernel and libuv", "FFI crossings", "pyasync", "application"
SLEEP = "sleep, kernel, libuv"
KERNEL_ALONE, REST = "kernel", "libuv and Python"  # where no profiler tells more
RECORDS, CALLS_IN, COPIES = "event records, in", 'extern "Python" calls, in', "data read, copied"


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
    add("--svg", type=chart.new_file, metavar="FILE", help="draw a bar for each variant into it")
    options = parser.parse_args()
    if options.cpu is not None and options.profile is None:
        parser.error("--cpu needs --from")
    if options.profile and PYPY:
        parser.error("--from needs CPython: PyPy's profiler does not name functions in C")
    return options


# The runs


class Run(NamedTuple):
    """What a run has cost, from the time when the load was started."""

    requests: int
    user: float  # CPU seconds
    system: float
    stats: pyasync.Stats
    counts: Counter  # crossings by name, where they were counted
    profile: dict  # of a profiled one, as cProfile has it

    @property
    def cpu(self):
        return self.user + self.system


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
    found = {}
    for variant in VARIANTS:
        run, plain = best[variant, True], best[variant, False]
        if PYPY:
            found[variant] = analyze_counts(run, plain, calibration)
        else:
            found[variant] = analyze_profile(run.profile, calibration, run=run, plain=plain)
    found["callbacks"] = with_callbacks(found["unbuffered"], calibration)
    return found


def observe(name, watched, unbuffered, options):
    """Run a server under load, and end it with the load. Returns a Run."""
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
    http_delay.serve(http_delay.parse_options(words), send, WORKLOADS[name][2])
    profiler.create_stats()  # which ends it
    output, _ = run.client.communicate()
    if run.client.returncode != 0:
        raise RuntimeError(f"the load on {name} has failed")
    requests = json.loads(output.splitlines()[-1])["done"]
    return Run(requests, *run.cpu, run.loop.stats() - run.stats, counts, profiler.stats)


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


# From a profile, and the calibration, to what the FFI costs


def crossing(name, calls, nanoseconds, in_c=None):
    """A row: a function of C's, or another way of crossing, and what it took in all.

    `in_c` is what was spent on the other side. Both are seconds of CPU.
    """
    return {"name": name, "calls": calls, "cost": calls * nanoseconds / 1e9, "in_c": in_c}


def costs(requests, parts, rows, *, plain=None, measured=None, system=None, computed=False):
    """Where the time of some requests went, in seconds of CPU, as --json has it.

    `requests` are 0 if their number is not known. `plain` is the run that nothing watched: the
    loop's own counter there says how many crossings a request took. The sum is compared with
    `measured`, of which `system` was spent in the kernel.
    """
    total = sum(parts.values())
    for row in rows:
        row["share"] = row["cost"] / total
    return {
        "requests": requests,
        "parts": parts,
        "shares": {name: seconds / total for name, seconds in parts.items()},
        "total": total,
        "crossings": sorted(rows, key=lambda row: -row["cost"]),
        "measured": measured,
        "system": system,
        "residual": measured and total / measured - 1,
        "counted": plain and plain.stats.crossings / plain.requests,
        "computed": computed,
    }


def read_profile(path):
    """Return what a file of cProfile's holds. Raises ValueError or OSError in words of one line."""
    try:
        return pstats.Stats(str(path)).stats
    except OSError:
        raise
    except Exception:  # whatever marshal, and pstats on something odd, may raise
        raise ValueError(f"{path} is not a file that cProfile has written") from None


def analyze_profile(profile, calibration, *, run=None, plain=None, cpu=None):
    """Return the costs that a profile shows.

    It is of a run that was then repeated with no profiler (`plain`); or of a program that used so
    much CPU, if that is known.
    """
    package, roots = find_loop(profile)

    def part(function, caller=None):
        file, _, name = function
        if file != "~":
            return PYASYNC if file.startswith(package) else APPLICATION
        if name.startswith(CROSSING) or CFFI in name:
            return name
        return part(caller) if caller and caller[0] != "~" else APPLICATION

    # The profiler's own time is in the caller's, and to a lesser degree in the function's.
    own_time, overhead, calls = defaultdict(float), defaultdict(float), Counter()
    own_time[PYASYNC] += sum(profile[root][2] for root in roots)
    for caller, function, count, seconds in calls_within(profile, roots):
        callee = part(function, caller)
        in_caller, in_callee = calibration["profiler"]["c" if function[0] == "~" else "python"]
        own_time[callee] += seconds
        calls[callee] += count
        overhead[callee] += count * in_callee / 1e9
        overhead[part(caller)] += count * in_caller / 1e9

    # cProfile's clock goes on while the loop sleeps, and while others have the processor.
    busy, asleep = 1.0, 0.0
    if run:
        asleep = run.stats.idle_time
        busy = run.cpu / (sum(own_time.values()) - asleep)
    elif cpu is not None:
        asleep = max(0.0, sum(entry[2] for entry in profile.values()) - cpu)
    own_time[RUN] = max(0.0, own_time[RUN] - asleep)
    cpu_time = Counter({name: time * busy - overhead[name] for name, time in own_time.items()})

    rows, in_c = rows_inward(run, calibration) if run else [], 0.0
    cpu_time[PYASYNC] -= sum(row["cost"] for row in rows)
    for name, count in calls.items():
        if name.startswith(CROSSING):
            row = crossing_out(name[len(CROSSING) : -1], count, calibration)
            in_c += cpu_time[name] - row["cost"]
            rows.append({**row, "in_c": max(0.0, cpu_time[name] - row["cost"])})
        elif CFFI in name:
            _, function, *_ = name.split("'")
            rows.append(crossing(f"ffi.{function}", count, cpu_time[name] * 1e9 / count))
    parts = {
        SLEEP if run is None and cpu is None else KERNEL: in_c,
        FFI: sum(row["cost"] for row in rows),
        PYASYNC: cpu_time[PYASYNC],
        APPLICATION: cpu_time[APPLICATION],
    }
    if run is None:
        return costs(0, parts, rows)
    scale = run.requests / plain.requests
    measured, system = plain.cpu * scale, plain.system * scale
    return costs(run.requests, parts, rows, plain=plain, measured=measured, system=system)


def analyze_counts(run, plain, calibration):
    """Return the costs that counts of crossings show, times what each costs.

    The sum is what was measured: there is no second figure to compare it with.
    """
    rows, scale = rows_inward(plain, calibration), plain.requests / run.requests
    for name, count in run.counts.items():
        rows.append(crossing_out(name, round(count * scale), calibration))
    crossings = sum(row["cost"] for row in rows)
    parts = {KERNEL_ALONE: plain.system, FFI: crossings, REST: plain.user - crossings}
    return costs(plain.requests, parts, rows, plain=plain)


def with_callbacks(found, calibration):
    """Return what it would cost if C called Python for each event, with all else as it is."""
    rows = [
        crossing(CALLS_IN, row["calls"], calibration["call_in"]) if row["name"] == RECORDS else row
        for row in map(dict, found["crossings"])
    ]
    parts = {**found["parts"], FFI: sum(row["cost"] for row in rows)}
    return costs(found["requests"], parts, rows, computed=True)


def rows_inward(run, calibration):
    """What it costs that events come as records, and that each request is read once."""
    size = run.stats.bytes_read / run.requests
    copy = calibration["copy"] + (calibration["copy_1k"] - calibration["copy"]) * size / KIB
    records = crossing(RECORDS, run.stats.events, calibration["record"])
    return [records, crossing(COPIES, run.requests, copy)]


def crossing_out(function, count, calibration):
    """What calls of a function of the extension's cost: by how many arguments it has."""
    try:
        arguments = len(ffi.typeof(getattr(lib, function)).args)
    except AttributeError:  # a profile of another version
        arguments = 3
    return crossing(function, count, calibration["call_out"][min(arguments, COUNTS[-1])])


def find_loop(profile):
    """Return the package's folder, and the functions in it that run the loop.

    These are told by no name of theirs: the callers of pa_run, theirs in the package, and so on
    to those that are called from outside.
    """
    ahead = [key for function in profile if function[2] == RUN for key in profile[function][4]]
    files = [key[0].replace("\\", "/") for key in ahead]
    if not files or PACKAGE not in files[0]:
        raise ValueError("the profile is not of a program that has run pyasync's event loop")
    package = ahead[0][0][: files[0].rindex(PACKAGE) + len(PACKAGE)]
    callers = {
        function: {caller for caller in entry[4] if caller[0].startswith(package)}
        for function, entry in profile.items()
    }
    above = reach(ahead, lambda function: callers[function])
    return package, {function for function in above if not callers[function] - {function}}


def calls_within(profile, roots):
    """Return (caller, function, calls, own time) of all calls under `roots`."""
    callees = defaultdict(list)
    for function, (_, _, _, _, callers) in profile.items():
        for caller, (calls, _, seconds, _) in callers.items():
            callees[caller].append((caller, function, calls, seconds))
    under = reach(roots, lambda caller: [function for _, function, _, _ in callees[caller]])
    return [call for caller in under for call in callees[caller]]


def reach(start, neighbours):
    """All that can be reached from some functions."""
    reached, ahead = set(start), list(start)
    while ahead:
        found = set(neighbours(ahead.pop())) - reached
        reached |= found
        ahead += found
    return reached


# What is printed


def calibration_text(calibration):
    rows = {
        f"a call out, with {COUNTS[0]} to {COUNTS[-1]} arguments": calibration["call_out"].values(),
        'a call in through extern "Python" *': [calibration["call_in"]],
        "a queue record unpacked and dispatched *": [calibration["record"]],
        "a copy of 1 byte, of 1 KiB": [calibration["copy"], calibration["copy_1k"]],
    }
    if "profiler" in calibration:
        rows["cProfile, for a call of Python, of C"] = map(sum, calibration["profiler"].values())
    yield "calibration, in ns"
    for name, figures in rows.items():
        yield f"  {name:42} {' '.join(f'{figure:.0f}' for figure in figures)}"
    yield "  * to the object that it is for, whose own call is not counted"


MEASURED = {
    "sum": "total",
    "without the profiler": "measured",
    "  of it in the kernel": "system",
    "error of the sum": "residual",
    "crossings, unwatched": "counted",
}
FORMATS = {"error of the sum": "{:+.1%}", "crossings, unwatched": "{:,.3f}        "}


def text(calibration, results):
    yield from calibration_text(calibration)
    for name, variants in results.items():
        title, unit, _ = WORKLOADS.get(name, ("the time in the loop", "", None))
        yield ""
        yield f"{name}: {title}"
        yield from aligned(share_rows(variants, unit))
        for variant, found in variants.items():
            if not found["computed"]:
                yield ""
                yield from aligned(crossing_rows(variant, found, unit))


def share_rows(variants, unit):
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


def crossing_rows(variant, costs, unit):
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
