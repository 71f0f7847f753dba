"""Draws what ffi_profile.py has found: a bar for each variant, a colour for each part."""

from html import escape

STYLE = """
svg { font: 13px system-ui, sans-serif; background: #fff; }
text { fill: #1f2430; } .dim { fill: #6b7280; } .title { font-weight: 600; font-size: 15px; }
.in { font-weight: 600; font-size: 12px; fill: #fff; }
@media (prefers-color-scheme: dark) {
  svg { background: #14171d; } text { fill: #e7e9ee; } .dim { fill: #98a1b0; } .in { fill: #fff; }
}
"""
COLOURS = {
    "kernel": "#64748b",
    "sleep": "#64748b",
    "FFI": "#dc4c2c",
    "pyasync": "#2f6fde",
    "libuv": "#2f6fde",
    "application": "#2a9d6f",
}
WIDTH, LEFT, RIGHT, BAR, STEP = 760, 120, 110, 26, 40


def draw(results, machine):
    """Return the drawing, as the text of an SVG file."""
    shapes, y = [], 34
    shapes.append(text(20, y, "Where the CPU time goes", "title"))
    shapes.append(
        text(20, y + 20, "{python}, cffi {cffi}, libuv {libuv}, {system}".format(**machine), "dim")
    )
    y += 48
    names = next(iter(next(iter(results.values())).values())).parts
    x = 20
    for name in names:
        shapes.append(rectangle(x, y - 11, 12, 12, colour(name)))
        shapes.append(text(x + 18, y, name))
        x += 40 + 7 * len(name)
    for title, variants in results.items():
        y += 44
        shapes.append(text(20, y, title, "title"))
        longest = max(scale(costs) for costs in variants.values())
        for variant, costs in variants.items():
            y += STEP if variant != next(iter(variants)) else 14
            shapes += bar(y, variant, costs, (WIDTH - LEFT - RIGHT) / longest)
        y += BAR
    height = y + 24
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}"'
        f' width="{WIDTH}" height="{height}" role="img" aria-label="Where the CPU time goes">'
        f"<style>{STYLE}</style>{''.join(shapes)}</svg>\n"
    )


def bar(y, variant, costs, pixels):
    """The bar of one variant: its length is the time of a request."""
    yield text(20, y + 17, variant)
    x = LEFT
    for name, seconds in costs.parts.items():
        share = max(0.0, seconds) / costs.total
        width = share * scale(costs) * pixels
        yield rectangle(x, y, width, BAR, colour(name), f"{name}: {share:.1%}")
        if width > 40:
            yield text(x + width / 2, y + 17, f"{share:.0%}", "in", "middle")
        x += width
    unit = "µs" if costs.requests else "s"
    value = scale(costs) * (1e6 if costs.requests else 1)
    yield text(x + 8, y + 17, f"{value:,.1f} {unit}", "dim")


def scale(costs):
    return costs.total / (costs.requests or 1)


def colour(name):
    return COLOURS[name.replace(",", "").split()[0]]


def rectangle(x, y, width, height, fill, title=""):
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height}" fill="{fill}">'
        f"<title>{escape(title)}</title></rect>"
    )


def text(x, y, words, kind="", anchor="start"):
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">'
        f"{escape(words)}</text>"
    )
