"""Draws what bench/compare.py has measured: a panel for each table, as SVG.

matplotlib is needed, and imported only to draw.
"""

import importlib.util
import textwrap
from pathlib import Path

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
COLUMNS = 3


def available():
    return importlib.util.find_spec("matplotlib") is not None


def draw(workloads, measured, options, machine):
    """Draw the bars into compare.svg, and the curves into scale.svg. Gives the files' names."""
    folder = Path(options.svg)
    folder.mkdir(parents=True, exist_ok=True)
    drawn = [workload for workload in workloads if workload.name in measured]
    where = ", ".join(f"{name} {value}" for name, value in machine.items())
    bars = [
        (workload, title, summary)
        for workload in drawn
        if not workload.curve
        for title, summary in measured[workload.name].items()
        if summary
    ]
    if bars:
        panels = [
            lambda axes, panel=panel: draw_bars(axes, *panel, options=options) for panel in bars
        ]
        yield save(folder / "compare.svg", panels, max(len(bar[2]) for bar in bars), where)
    curves = [
        lambda axes, workload=workload: draw_curves(
            axes, workload, measured[workload.name], options
        )
        for workload in drawn
        if workload.curve
    ]
    if curves:
        yield save(folder / "scale.svg", curves, 12, where, columns=2)


def save(path, panels, lines, where, columns=COLUMNS):
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
        figsize=(4.4 * columns, (0.24 * lines + 1.0) * rows + 0.3),
        squeeze=False,
        layout="constrained",
    )
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_visible(False)
    for axes, panel in zip(grid.flat, panels):
        panel(axes)
    figure.supxlabel(where, fontsize=7, color="#666666")
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
    return path


def draw_bars(axes, workload, title, summary, options):
    figure = next(iter(next(iter(summary.values()))))
    names = list(summary)
    medians = [summary[name][figure]["median"] for name in names]
    spread = [
        [summary[name][figure]["median"] - summary[name][figure]["min"] for name in names],
        [summary[name][figure]["max"] - summary[name][figure]["median"] for name in names],
    ]
    axes.barh(
        names,
        medians,
        xerr=spread,
        color=[COLORS.get(name, OTHERS) for name in names],
        height=0.72,
        error_kw={"ecolor": "#555555", "elinewidth": 0.8},
    )
    right = max(max(abs(value) + error for value, error in zip(medians, spread[1])), 1e-9)
    for row, (median, error) in enumerate(zip(medians, spread[1])):
        axes.text(max(0.0, median) + error + right * 0.015, row, short(median), va="center",
                  fontsize=8)  # fmt: skip
    axes.invert_yaxis()
    axes.set_xlim(min(0.0, *medians), right * 1.18)
    heading = workload.title.format(**vars(options))
    axes.set_title(wrapped(f"{heading}: {title}" if title else heading), fontsize=9, loc="left")
    better = "more is better" if figure.endswith("/s") else "less is better"
    axes.set_xlabel(f"{figure} ({better})", fontsize=8)
    tidy(axes)


def draw_curves(axes, workload, summaries, options):
    points = {case.title: case.x for case in workload.cases(options)}
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
            color=CURVES[name],
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
    tidy(axes)


def tidy(axes):
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.tick_params(labelsize=8)


def short(value):
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def wrapped(text, width=52):
    return "\n".join(textwrap.wrap(text, width))
