"""Runs the same programs written on pyasync, C and its peers side by side, and compares the cost.

    make compare                                       sets it up, and runs all: an hour or two
    python bench/compare.py --workloads http echo --servers pyasync c uvloop --rounds 5
    python bench/compare.py --svg docs/img             draws what it has measured, too
    python bench/compare.py --quick                    everything once, in tiny: does it work here?

Each round starts every program once, in turn, so that slow drifts of the machine affect all
programs alike; the figures are medians over the rounds, with the lowest and the highest. A ratio
is the median of the ratios within each round. The program is pinned to one processor, its client
to another. What is not installed, or cannot do a thing, is skipped by name.

Workloads
"""

import itertools
import json
import os
import statistics
import sys

import chart
import common
from common import aligned, positive_float, positive_int, progress, say
from contenders import Unsupported, installed, known_contenders
from workloads import all_workloads

# In full, with --quick, the type, and what --help says of the option; None: it has none.
SIZES = {
    "rounds": (3, 1, positive_int, ""),
    "seconds": (2.0, 0.1, positive_float, "of each load"),
    "warm_up": (0.5, 0.1, positive_float, "seconds before it"),
    "connections": (15_000, 300, positive_int, "that are held"),
    "held_delay": (10.0, 2.0, positive_float, "seconds for that"),
    "timers": (1_000_000, 5_000, positive_int, ""),
    "steps": (1_000_000, 5_000, positive_int, "callbacks, futures or tasks"),
    "mebibytes": ([25, 50, 100], [1, 2], positive_int, "of lines"),
    "spread": (1.0, 0.05, None, None),
    "most": (1_000_000, 100, None, None),
    "waiting": (1024, 8, None, None),
}


def main():
    options = parse_options()
    common.raise_open_files_limit()  # of all that it starts, too
    common.compile_baseline("peer", "load")
    contenders = installed(options.servers)
    here = common.machine()
    if not options.json:
        print(common.in_words(here))
    measured = {}
    for workload in all_workloads():
        if workload.name in options.workloads:
            measured[workload.name] = summaries = compare(workload, contenders, options)
            if not options.json:
                print("", *tables(workload, summaries, options), sep="\n", flush=True)
    if options.json:
        print(json.dumps({"machine": here, "workloads": measured}, indent=2))
    if options.svg:
        for path in chart.draw_comparison(
            all_workloads(), measured, options, common.in_words(here)
        ):
            say(f"drawn: {path}")


# The comparison


def compare(workload, contenders, options):
    """Run all rounds of a workload. Gives a summary for each case, by its title."""
    rounds = 1 if workload.once else options.rounds
    cases = workload.cases(options)
    runs = {case.title: {contender.name: [] for contender in contenders} for case in cases}
    cannot = {}  # as dict.fromkeys would have it: in order
    for number in range(1, rounds + 1):
        for case, contender in itertools.product(cases, contenders):
            if (case.title, contender.name) in cannot:
                continue
            progress(f"{workload.name} {case.title} {number}/{rounds} {contender.name}")
            try:
                figures = workload.measure(contender, case.value, options)
            except Unsupported:
                cannot[case.title, contender.name] = True
            except (RuntimeError, OSError) as error:
                say(f"failed: {contender.name} in {workload.name} {case.title} ({error})")
            else:
                runs[case.title][contender.name].append(figures)
    if cannot:
        names = dict.fromkeys(name for _, name in cannot)
        say(f"skipped in {workload.name}: {', '.join(names)} (cannot do this)")
    progress("")
    return {title: summarize(case_runs, workload.references) for title, case_runs in runs.items()}


def summarize(runs, references):
    """Medians, spread and ratios of the runs of a case, by program."""
    runs = {name: figures for name, figures in runs.items() if figures}
    summary = {}
    for name, figures in runs.items():
        compared = next(iter(figures[0]))
        summary[name] = {figure: spread([run[figure] for run in figures]) for figure in figures[0]}
        summary[name]["ratios"] = {
            reference: statistics.median(
                run[compared] / other[compared] if other[compared] else 1.0
                for run, other in zip(figures, runs[reference])
            )
            for reference in references
            if reference in runs
        }
    return summary


def spread(values):
    median = statistics.median(values)
    return {"median": median, "min": min(values), "max": max(values), "runs": values}


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
        main, ratios = figures[compared], figures["ratios"].values()
        row = [name, number(main["median"]), f"{number(main['min'])}-{number(main['max'])}"]
        row += [f"{ratio:.2f}" for ratio in ratios]
        row += [number(figures[other]["median"]) for other in others]
        rows.append(row)
    return aligned(rows)


def curve_table(workload, summaries):
    """A column for each point of the curve: only the figure that is compared."""
    compared, rows = "nothing", {}
    for title, summary in summaries.items():
        for name, figures in summary.items():
            compared, spread = next(iter(figures.items()))
            rows.setdefault(name, {})[title] = number(spread["median"])
    yield f"  {compared}, by {workload.curve}"
    table = [[name, *(medians.get(title, "-") for title in summaries)]
             for name, medians in rows.items()]  # fmt: skip
    yield from aligned([["", *summaries], *table])


def number(value):
    return f"{value:,.0f}" if abs(value) >= 100 or value == 0 else f"{value:,.2f}"


def parse_options():
    workloads = [workload.name for workload in all_workloads()]
    servers = [contender.name for contender in known_contenders()]
    parser = common.option_parser(__doc__ + "\n".join(explanations()))
    add = parser.add_argument
    add("--workloads", nargs="+", choices=workloads, default=workloads, metavar="NAME",
        help=", ".join(workloads))  # fmt: skip
    add("--servers", nargs="+", choices=servers, default=servers, metavar="NAME",
        help=", ".join(servers))  # fmt: skip
    for name, (full, _, kind, words) in SIZES.items():
        if words is not None:
            many = isinstance(full, list)
            shown = " ".join(map(str, full)) if many else f"{full:,}"
            add(f"--{name.replace('_', '-')}", type=kind, metavar="NUM",
                nargs="+" if many else None, help=f"{words} ({shown})".strip())  # fmt: skip
    add("--quick", action="store_true", help="small numbers; a look, no measurement")
    add("--svg", metavar="FOLDER", type=chart.new_folder, help="draw the figures into this folder")
    options = parser.parse_args()
    for name, (full, quick, *_) in SIZES.items():
        if getattr(options, name, None) is None:
            setattr(options, name, quick if options.quick else full)
    cores = sorted(os.sched_getaffinity(0))
    options.server_cores, options.client_cores = {cores[0]}, {cores[-1]}
    return options


def explanations():
    full = {name: sizes[0] for name, sizes in SIZES.items()}
    for workload in all_workloads():
        yield f"  {workload.name}: {workload.title.format(**full)}"
        yield from (f"      {line}" for line in workload.note.splitlines())


if __name__ == "__main__":
    sys.exit(main())
