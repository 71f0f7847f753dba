"""Runs the same programs written on pyasync, C and its peers side by side, and compares the cost.

    make compare                                       sets it up, and runs all: an hour or two
    python bench/compare.py --workloads http echo --servers pyasync c uvloop --rounds 5
    python bench/compare.py --svg docs/img             draws what it has measured, too
    python bench/compare.py --quick                    everything once, in tiny: does it work here?

Each round starts every program once, in turn, so that all of them meet the machine in the same
mood; the figures are medians over the rounds, with the lowest and the highest. A ratio is the
median of the ratios within each round. The program is pinned to one processor, its client to
another. What is not installed, or cannot do a thing, is skipped by name.

Workloads
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path

import picture
from contenders import BASELINE, Unsupported, known_contenders
from workloads import all_workloads

import pyasync

FULL = {
    "rounds": 3,
    "seconds": 2.0,
    "warm_up": 0.5,
    "connections": 15_000,
    "held_delay": 10.0,
    "timers": 1_000_000,
    "spread": 1.0,
    "most": 1_000_000,
    "waiting": 1024,
}
QUICK = {
    "rounds": 1,
    "seconds": 0.1,
    "warm_up": 0.1,
    "connections": 300,
    "held_delay": 2.0,
    "timers": 5_000,
    "spread": 0.05,
    "most": 100,
    "waiting": 8,
}


def main():
    options = parse_options()
    subprocess.run(["make", "-C", BASELINE], check=True, stdout=subprocess.DEVNULL)
    contenders = []
    for contender in known_contenders():
        if contender.name not in options.servers:
            continue
        if contender.missing:
            say(f"skipped: {contender.name} ({contender.missing})")
        else:
            contenders.append(contender)
    here = machine()
    if not options.json:
        print(", ".join(f"{name} {value}" for name, value in here.items()))
    measured = {}
    for workload in all_workloads():
        if workload.name in options.workloads:
            measured[workload.name] = summaries = compare(workload, contenders, options)
            if not options.json:
                print("", *tables(workload, summaries, options), sep="\n", flush=True)
    if options.json:
        print(json.dumps({"machine": here, "workloads": measured}, indent=2))
    if options.svg:
        for path in picture.draw(all_workloads(), measured, options, here):
            say(f"drawn: {path}")


# The comparison


def compare(workload, contenders, options):
    """Run all rounds of a workload. Gives a summary for each case, by its title."""
    chosen = [contender for contender in contenders if workload.contenders(contender)]
    rounds = 1 if workload.once else options.rounds
    cases = workload.cases(options)
    runs = {case.title: {contender.name: [] for contender in chosen} for case in cases}
    for number in range(1, rounds + 1):
        for case in cases:
            for contender in list(chosen):
                progress(f"{workload.name} {case.title} {number}/{rounds} {contender.name}")
                try:
                    figures = workload.measure(contender, case.value, options)
                except Unsupported:
                    say(f"skipped: {contender.name} in {workload.name} (it cannot do this)")
                    chosen.remove(contender)
                except (RuntimeError, OSError) as error:
                    say(f"failed: {contender.name} in {workload.name} {case.title} ({error})")
                else:
                    runs[case.title][contender.name].append(figures)
    progress("")
    return {title: summarize(case_runs, workload.references) for title, case_runs in runs.items()}


def summarize(runs, references):
    """Medians, spread and ratios of the runs of a case, by program."""
    summary = {}
    for name, figures in runs.items():
        if not figures:
            continue
        summary[name] = {
            figure: {
                "median": statistics.median(values),
                "min": min(values),
                "max": max(values),
                "runs": values,
            }
            for figure in figures[0]
            for values in [[run[figure] for run in figures]]
        }
        compared = next(iter(figures[0]))
        summary[name]["ratios"] = {
            reference: statistics.median(
                run[compared] / other[compared] if other[compared] else 1.0
                for run, other in zip(figures, runs[reference])
            )
            for reference in references
            if runs.get(reference)
        }
    return summary


# What is printed


def tables(workload, summaries, options):
    """What a workload has measured, as lines of text."""
    yield f"{workload.name}: {workload.title.format(**vars(options))}"
    yield from (f"  {line}" for line in workload.note.splitlines())
    if workload.curve:
        yield from curve_table(workload, summaries)
        return
    for title, summary in summaries.items():
        if title:
            yield f"  {title}"
        if summary:
            yield from case_table(summary)


def case_table(summary):
    some = next(iter(summary.values()))
    compared, *others = (figure for figure in some if figure != "ratios")
    rows = [["", compared, "lowest-highest", *(f"÷ {name}" for name in some["ratios"]), *others]]
    for name, figures in summary.items():
        main = figures[compared]
        rows.append(
            [
                name,
                number(main["median"]),
                f"{number(main['min'])}-{number(main['max'])}",
                *(f"{ratio:.2f}" for ratio in figures["ratios"].values()),
                *(number(figures[other]["median"]) for other in others),
            ]
        )
    return aligned(rows)


def curve_table(workload, summaries):
    """A column for each point of the curve: only the figure that is compared."""
    names = list(dict.fromkeys(name for summary in summaries.values() for name in summary))
    figures = [
        next(iter(figures)) for summary in summaries.values() for figures in summary.values()
    ]
    rows = [["", *(f"{title}" for title in summaries)]]
    for name in names:
        medians = [
            number(next(iter(summary[name].values()))["median"]) if name in summary else "-"
            for summary in summaries.values()
        ]
        rows.append([name, *medians])
    yield f"  {figures[0] if figures else 'nothing'}, by {workload.curve}"
    yield from aligned(rows)


def aligned(rows):
    widths = [max(map(len, column)) for column in zip(*rows)]
    for name, *cells in rows:
        cells = [cell.rjust(width) for cell, width in zip(cells, widths[1:])]
        yield "  ".join([" ", name.ljust(widths[0]), *cells])


def number(value):
    return f"{value:,.0f}" if abs(value) >= 100 or value == 0 else f"{value:,.2f}"


def progress(text):
    """Say what is under way, on a terminal."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def say(text):
    progress("")
    print(text, file=sys.stderr, flush=True)


def machine():
    """Where the figures come from."""
    processors = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(": ")[2] for line in processors if line.startswith("model name")]
    return {
        "processor": models[0] if models else platform.machine(),
        "processors": os.cpu_count(),
        "load": f"{os.getloadavg()[0]:.1f}",
        "kernel": platform.release(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "libuv": pyasync.libuv_version(),
    }


def parse_options():
    workloads = [workload.name for workload in all_workloads()]
    servers = [contender.name for contender in known_contenders()]
    parser = argparse.ArgumentParser(
        description=__doc__ + "\n".join(explanations()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--workloads", nargs="+", choices=workloads, default=workloads, metavar="NAME",
        help=", ".join(workloads))  # fmt: skip
    add("--servers", nargs="+", choices=servers, default=servers, metavar="NAME",
        help=", ".join(servers))  # fmt: skip
    add("--rounds", type=int, help=f"({FULL['rounds']})")
    add("--seconds", type=float, help=f"of each load ({FULL['seconds']:g})")
    add("--warm-up", type=float, help=f"seconds before it ({FULL['warm_up']:g})")
    add("--connections", type=int, help=f"that are held ({FULL['connections']:,})")
    add("--held-delay", type=float, help=f"seconds for that ({FULL['held_delay']:g})")
    add("--timers", type=int, help=f"({FULL['timers']:,})")
    add("--quick", action="store_true", help="small numbers; a look, no measurement")
    add("--json", action="store_true", help="print one JSON object, with every run")
    add("--svg", metavar="FOLDER", help="draw the figures into this folder")
    options = parser.parse_args()
    for name, value in (QUICK if options.quick else FULL).items():
        if getattr(options, name, None) is None:
            setattr(options, name, value)
    if options.svg and not picture.available():
        parser.error("--svg needs matplotlib: pip install 'pyasync[bench]'")
    cores = sorted(os.sched_getaffinity(0))
    options.server_cores, options.client_cores = {cores[0]}, {cores[-1]}
    return options


def explanations():
    for workload in all_workloads():
        yield f"  {workload.name}: {workload.title.format(**FULL)}"
        yield from (f"      {line}" for line in workload.note.splitlines())


if __name__ == "__main__":
    main()
