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
counted, and the time outside of them is one row. docs/ffi.md says more.
"""

import argparse
import json
import os
import platform
import sys
from pathlib import Path

import cffi
import ffi_chart
from ffi_analysis import analyze, read_profile, with_callbacks
from ffi_calibration import PYPY, calibrate, report
from ffi_workloads import COUNTED, PLAIN, PROFILED, WORKLOADS, observe

import pyasync

VARIANTS = {"buffered": False, "unbuffered": True}


def main():
    options = parse_options()
    progress = progress_line()
    try:
        given = read_profile(options.profile) if options.profile else None
        calibration = calibrate(progress)
        if given:
            costs = analyze(given, calibration, cpu=options.cpu)
            results = {options.profile.name: {"profile": costs}}
        else:
            results = {name: measure(name, calibration, options, progress)
                       for name in options.workloads}  # fmt: skip
        progress("")
        if options.json:
            print(json.dumps(as_json(calibration, results), indent=2))
        else:
            print(*text(calibration, results), sep="\n")
        if options.svg:
            options.svg.write_text(ffi_chart.draw(results, machine()), encoding="utf-8")
    except (OSError, ValueError, RuntimeError) as error:
        progress("")
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def measure(name, calibration, options, progress):
    """Run a workload in each variant, some rounds in turn. Returns Costs by variant."""
    observed = {variant: ([], []) for variant in VARIANTS}
    for number in range(options.rounds):
        for variant, unbuffered in VARIANTS.items():
            for runs, mode in zip(observed[variant], (PLAIN, COUNTED if PYPY else PROFILED)):
                progress(f"{name} {number + 1}/{options.rounds}: {variant}, {mode}")
                options.unbuffered = unbuffered
                runs.append(observe(name, mode, options))
    costs = {}
    for variant, (plain, watched) in observed.items():
        # What else the machine does only adds to a run.
        plain, watched = (min(runs, key=lambda run: run.cpu) for runs in (plain, watched))
        costs[variant] = analyze(watched, calibration, plain=plain)
    costs["callbacks"] = with_callbacks(costs["unbuffered"], calibration)
    return costs


def parse_options():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS), metavar="NAME",
        help=", ".join(WORKLOADS))  # fmt: skip
    add("--requests", type=positive, default=20_000, metavar="NUM",
        help="in a run; of echo, messages (%(default)s)")  # fmt: skip
    add("--concurrency", type=positive, default=200, metavar="NUM",
        help="connections at a time (%(default)s)")  # fmt: skip
    add("--rounds", type=positive, default=3, metavar="NUM",
        help="runs of each kind; the one with the least CPU time counts (%(default)s)")  # fmt: skip
    add("--from", dest="profile", type=Path, metavar="FILE",
        help="read a file of cProfile's in place of running anything")  # fmt: skip
    add("--cpu", type=float, metavar="SECONDS",
        help="with --from: the CPU time of the program, as time(1) says; without it what libuv and"
        " the kernel take cannot be told from sleep")  # fmt: skip
    add("--svg", type=Path, metavar="FILE", help="draw a bar for each variant into this file")
    add("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    if options.cpu is not None and (options.profile is None or options.cpu <= 0):
        parser.error("--cpu needs --from, and must be positive")
    if options.profile and PYPY:
        parser.error("--from needs CPython: PyPy's profiler does not name functions in C")
    return options


def positive(text):
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return value


def progress_line():
    """Return a function that shows what is done now, in one line of a terminal."""
    if not sys.stderr.isatty():
        return lambda text: None
    return lambda text: print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def machine():
    """Where the figures come from."""
    return {
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "cffi": cffi.__version__,
        "libuv": pyasync.libuv_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processors": os.cpu_count(),
    }


# What is printed


def as_json(calibration, results):
    return {
        "machine": machine(),
        "calibration": calibration,
        "results": {
            name: {variant: costs.as_dict() for variant, costs in variants.items()}
            for name, variants in results.items()
        },
    }


def text(calibration, results):
    yield ", ".join(f"{name} {value}" for name, value in machine().items())
    yield ""
    yield from report(calibration)
    for name, variants in results.items():
        yield ""
        workload = WORKLOADS.get(name)
        yield f"{name}: {workload.title if workload else 'the time in the loop'}"
        yield from shares(variants, workload.unit if workload else None)
        for variant, costs in variants.items():
            if not costs.computed:
                yield ""
                yield from crossings(variant, costs, workload.unit if workload else None)


def shares(variants, unit):
    """A row for each part, and a pair of columns for each variant."""
    columns = list(variants.values())
    width = max(24, *(len(variant) + 6 for variant in variants))
    per = f"µs/{unit}" if unit else "seconds"

    def row(title, values, kind=""):
        cells = (
            f"{figure(costs, value):>{width - 8}}{value / costs.total:>8.1%}"
            if value is not None
            else f"{kind:>{width}}"
            for costs, value in zip(columns, values)
        )
        return (f"  {title:<22}" + "".join(cells)).rstrip()

    yield " " * 24 + "".join(f"{variant:>{width}}" for variant in variants)
    yield " " * 24 + f"{per:>{width - 8}}{'share':>8}" * len(variants)
    for name in columns[0].parts:
        yield row(name, [costs.parts[name] for costs in columns])
    yield row("sum", [costs.total for costs in columns])
    if columns[0].measured is not None:
        yield row("without the profiler", [costs.measured for costs in columns], "computed")
        yield row("  of it in the kernel", [costs.system for costs in columns])
        errors = (
            f"{'' if costs.residual is None else format(costs.residual, '+.1%'):>{width}}"
            for costs in columns
        )
        yield f"  {'error of the sum':<22}{''.join(errors)}".rstrip()
    if columns[0].counted is not None:
        calls = (
            f"{'' if costs.counted is None else format(costs.counted, ',.3f'):>{width}}"
            for costs in columns
        )
        yield f"  {'crossings, unwatched':<22}{''.join(calls)}".rstrip()


def figure(costs, seconds):
    return f"{seconds * 1e6 / costs.requests:,.2f}" if costs.requests else f"{seconds:,.3f}"


def crossings(variant, costs, unit):
    """A row for each crossing, but for those that are only made at the beginning or the end."""
    heading = f"calls/{unit}" if unit else "calls"
    yield f"  crossings, {variant:<28}{heading:>13}{'ns/call':>9}{'share':>8}{'then in C, ns':>15}"
    for row in costs.crossings:
        if row.calls < costs.requests / 1000:
            continue
        calls = f"{row.calls / costs.requests:,.3f}" if costs.requests else f"{row.calls:,}"
        in_c = "" if row.in_c is None else f"{row.in_c * 1e9 / row.calls:,.0f}"
        yield (
            f"    {row.name:<37}{calls:>13}{row.cost * 1e9 / row.calls:>9,.0f}"
            f"{row.cost / costs.total:>8.2%}{in_c:>15}".rstrip()
        )


if __name__ == "__main__":
    sys.exit(main())
