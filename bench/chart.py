"""Draws what bench/compare.py and bench/ffi_profile.py have measured, as SVG.

matplotlib is needed, and imported only to draw.
"""

import argparse
import importlib.util
import textwrap
from functools import partial
from pathlib import Path

PYASYNC, OTHERS = "#d9480f", "#8d99ae"
COLORS = {"c": "#222222", "pyasync": PYASYNC, "pypy": PYASYNC, "unbuffered": "#f4a261"}
# In a bar's panel the name stands beside it, in a curve's only the color tells.
CURVES = {"uvloop": "#1864ab", "asyncio": "#2b8a3e", "gevent": "#862e9c", "node": "#5f3dc4",
          "pypy-asyncio": "#74b816", **COLORS}  # fmt: skip
PARTS = ["#64748b", "#dc4c2c", "#2f6fde", "#2a9d6f"]  # of a bar

STYLE = {
    "svg.hashsalt": "pyasync",  # the same figures give the same file
    "svg.fonttype": "none",
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.fontsize": 7,
    "legend.frameon": False,
}


def require_matplotlib():
    if importlib.util.find_spec("matplotlib") is None:
        raise argparse.ArgumentTypeError("needs matplotlib: pip install 'pyasync[bench]'")


def new_folder(text):
    """A type for argparse: a folder to draw into, made now rather than after hours of measuring."""
    require_matplotlib()
    folder = Path(text)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return folder


def new_file(text):
    """A type for argparse: a file to draw into."""
    require_matplotlib()
    path = Path(text)
    if path.is_dir() or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"no file can be made there: {text}")
    return path


def draw_comparison(workloads, measured, options, where):
    """Draw the bars into compare.svg, and the curves into scale.svg. Gives the files' names."""
    bars, curves, rows = [], [], 0
    for workload in workloads:
        summaries = measured.get(workload.name, {})
        if workload.curve and summaries:
            curves.append(partial(draw_curves, workload, summaries, options))
            continue
        heading = workload.title.format(**vars(options))
        for title, summary in summaries.items():
            if summary:
                bars.append(partial(draw_bars, f"{heading}: {title}".strip(": "), summary))
                rows = max(rows, len(summary))
    if bars:
        yield save(options.svg / "compare.svg", bars, rows, where, columns=3)
    if curves:
        yield save(options.svg / "scale.svg", curves, 12, where, columns=2)


def draw_parts(results, path, where):
    """Draw what ffi_profile.py has found: a bar for each variant, with its parts."""
    panels = [partial(draw_stack, name, costs) for name, costs in results.items()]
    save(path, panels, max(map(len, results.values())) + 3, where, columns=1, width=8.5)


def save(path, panels, lines, where, columns, width=4.4):
    """Draw panels, each a function of its axes, so many a row and with room for so many lines."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update(STYLE)
    from matplotlib import pyplot

    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    size = (width * columns, (0.24 * lines + 1.0) * rows + 0.3)
    figure, grid = pyplot.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_visible(False)
    for axes, panel in zip(grid.flat, panels):
        panel(axes)
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
    colors = [COLORS.get(name, OTHERS) for name in summary]
    thin = {"ecolor": "#555555", "elinewidth": 0.8}
    bars = axes.barh(list(summary), medians, 0.72, xerr=spread, color=colors, error_kw=thin)
    axes.bar_label(bars, map(short, medians), padding=2)
    axes.margins(x=0.18)  # for the last label
    axes.invert_yaxis()
    better = "more is better" if figure.endswith("/s") else "less is better"
    axes.set(title=textwrap.fill(heading, 52), xlabel=f"{figure} ({better})")


def draw_curves(workload, summaries, options, axes):
    points = {case.title: case.value for case in workload.cases(options)}
    names = dict.fromkeys(name for summary in summaries.values() for name in summary)
    figure = ""
    for name in names:
        here = {points[title]: summary[name] for title, summary in summaries.items()
                if name in summary}  # fmt: skip
        figure = next(iter(next(iter(here.values()))))
        medians = [figures[figure]["median"] for figures in here.values()]
        own = name in ("pyasync", "pypy")
        line = {"linewidth": 2.2, "zorder": 3} if own else {"linewidth": 1.2, "zorder": 2}
        dashes, color = "--" if name.startswith("pypy") else "-", CURVES.get(name, OTHERS)
        axes.plot(
            list(here), medians, dashes, label=name, marker="o", markersize=3, color=color, **line
        )
    axes.set_xscale("log")
    axes.set_yscale("log", nonpositive="mask")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(plain)
        axis.set_minor_formatter("")
    axes.set(title=workload.title, xlabel=workload.curve, ylabel=f"{figure} (less is better)")
    axes.legend()


def draw_stack(title, variants, axes):
    first = next(iter(variants.values()))
    ends = [0.0] * len(variants)
    for part, color in zip(first["parts"], PARTS):
        widths = [
            max(0.0, costs["parts"][part]) * (1e6 / costs["requests"] if costs["requests"] else 1)
            for costs in variants.values()
        ]
        bars = axes.barh(list(variants), widths, 0.65, left=ends, label=part, color=color)
        shares = [costs["shares"][part] for costs in variants.values()]
        labels = [f"{share:.0%}" if share > 0.05 else "" for share in shares]
        axes.bar_label(bars, labels, label_type="center", color="white")
        ends = [end + width for end, width in zip(ends, widths)]
    axes.bar_label(bars, map(short, ends), padding=3)
    axes.invert_yaxis()
    unit = "µs for each" if first["requests"] else "s"
    axes.set(title=f"{title}: where the CPU time goes", xlabel=f"CPU {unit}")
    axes.legend(ncols=len(PARTS), loc="upper left", bbox_to_anchor=(0, -0.25))


def plain(value, position):
    """What stands at a tick, with no power of ten."""
    return f"{value:,.10g}"


def short(value):
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
