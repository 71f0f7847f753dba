"""Draws what bench/compare.py and bench/ffi_profile.py have measured, as SVG.

matplotlib is needed, and imported only to draw.
"""

import functools
import importlib.util
import textwrap

MISSING = "--svg needs matplotlib: pip install 'pyasync[bench]'"

PYASYNC = "#d9480f"
OTHERS = "#8d99ae"
COLORS = {"c": "#222222", "pyasync": PYASYNC, "pypy": PYASYNC, "unbuffered": "#f4a261"}
CURVES = {  # in a bar's panel the name stands beside it, in a curve's only the color tells
    **COLORS,
    "uvloop": "#1864ab",
    "asyncio": "#2b8a3e",
    "gevent": "#862e9c",
    "node": "#5f3dc4",
    "pypy-asyncio": "#74b816",
}
PARTS = ["#64748b", "#dc4c2c", "#2f6fde", "#2a9d6f"]  # of a bar


def available():
    return importlib.util.find_spec("matplotlib") is not None


def draw_comparison(workloads, measured, options, where):
    """Draw the bars into compare.svg, and the curves into scale.svg. Gives the files' names."""
    bars, curves, rows = [], [], 0
    for workload in workloads:
        summaries = measured.get(workload.name, {})
        if workload.curve and summaries:
            curves.append(functools.partial(draw_curves, workload, summaries, options))
            continue
        heading = workload.title.format(**vars(options))
        for title, summary in summaries.items():
            if summary:
                heading_here = f"{heading}: {title}" if title else heading
                bars.append(functools.partial(draw_bars, heading_here, summary))
                rows = max(rows, len(summary))
    if bars:
        yield save(options.svg / "compare.svg", bars, rows, where, columns=3)
    if curves:
        yield save(options.svg / "scale.svg", curves, 12, where, columns=2)


def draw_parts(results, path, where):
    """Draw what ffi_profile.py has found: a bar for each variant, with its parts."""
    panels = [functools.partial(draw_stack, name, costs) for name, costs in results.items()]
    save(path, panels, max(map(len, results.values())) + 3, where, columns=1, width=8.5)


def save(path, panels, lines, where, columns, width=4.4):
    import matplotlib

    matplotlib.use("svg")
    # The same figures give the same file.
    matplotlib.rcParams.update({"svg.hashsalt": "pyasync", "font.size": 9, "svg.fonttype": "none"})
    from matplotlib import pyplot

    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    figure, grid = pyplot.subplots(
        rows,
        columns,
        figsize=(width * columns, (0.24 * lines + 1.0) * rows + 0.3),
        squeeze=False,
        layout="constrained",
    )
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_visible(False)
    for axes, panel in zip(grid.flat, panels):
        panel(axes)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    figure.supxlabel(where, fontsize=7, color="#666666")
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
    return path


def draw_bars(heading, summary, axes):
    figure = next(iter(next(iter(summary.values()))))
    found = [figures[figure] for figures in summary.values()]
    medians = [one["median"] for one in found]
    spread = [[one["median"] - one["min"] for one in found],
              [one["max"] - one["median"] for one in found]]  # fmt: skip
    bars = axes.barh(
        list(summary),
        medians,
        xerr=spread,
        color=[COLORS.get(name, OTHERS) for name in summary],
        height=0.72,
        error_kw={"ecolor": "#555555", "elinewidth": 0.8},
    )
    axes.bar_label(bars, map(short, medians), padding=2, fontsize=8)
    axes.margins(x=0.18)  # for the last label
    axes.invert_yaxis()
    axes.set_title(textwrap.fill(heading, 52), fontsize=9, loc="left")
    better = "more is better" if figure.endswith("/s") else "less is better"
    axes.set_xlabel(f"{figure} ({better})", fontsize=8)


def draw_curves(workload, summaries, options, axes):
    points = {case.title: case.value for case in workload.cases(options)}
    names = dict.fromkeys(name for summary in summaries.values() for name in summary)
    figure = ""
    for name in names:
        here = [(points[title], summary[name]) for title, summary in summaries.items()
                if name in summary]  # fmt: skip
        figure = next(iter(here[0][1]))
        own = name in ("pyasync", "pypy")
        axes.plot(
            [x for x, _ in here],
            [figures[figure]["median"] for _, figures in here],
            label=name,
            marker="o",
            markersize=3,
            linewidth=2.2 if own else 1.2,
            linestyle="--" if name.startswith("pypy") else "-",
            color=CURVES.get(name, OTHERS),
            zorder=3 if own else 2,
        )
    axes.set_xscale("log")
    axes.set_yscale("log", nonpositive="mask")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, position: f"{value:,.10g}")
        axis.set_minor_formatter("")
    axes.set_title(workload.title, fontsize=9, loc="left")
    axes.set_xlabel(workload.curve, fontsize=8)
    axes.set_ylabel(f"{figure} (less is better)", fontsize=8)
    axes.legend(fontsize=7, frameon=False)


def draw_stack(title, variants, axes):
    first = next(iter(variants.values()))
    ends = [0.0] * len(variants)
    for part, color in zip(first["parts"], PARTS):
        widths = [
            max(0.0, costs["parts"][part]) * (1e6 / costs["requests"] if costs["requests"] else 1)
            for costs in variants.values()
        ]
        bars = axes.barh(list(variants), widths, left=ends, label=part, color=color, height=0.65)
        shares = [costs["shares"][part] for costs in variants.values()]
        labels = [f"{share:.0%}" if share > 0.05 else "" for share in shares]
        axes.bar_label(bars, labels, label_type="center", color="white", fontsize=8)
        ends = [end + width for end, width in zip(ends, widths)]
    axes.bar_label(bars, map(short, ends), padding=3, fontsize=8)
    axes.invert_yaxis()
    axes.set_title(f"{title}: where the CPU time goes", fontsize=9, loc="left")
    axes.set_xlabel(f"CPU {'µs for each' if first['requests'] else 's'}", fontsize=8)
    axes.legend(fontsize=7, frameon=False, ncols=len(PARTS), loc="upper left",
                bbox_to_anchor=(0, -0.25))  # fmt: skip


def short(value):
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
