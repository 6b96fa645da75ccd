"""The report's figures, as inline SVG that follows the page: its width, its colours, its type size.

Horizontal places are percentages and text has the page's own size, so a figure stays readable on a
phone where a scaled picture would not; colours are the page's CSS classes, so light and dark need no
second copy. All text passes through markupsafe: nothing from data is ever markup.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape

VERDICTS = ("match", "unchecked", "mismatch", "unparsable", "truncated", "error")
Point = tuple[float, float]


@dataclass(frozen=True)
class Bar:
    """One horizontal bar: `value` (None: not there) with an optional interval, `text` its reading."""

    label: str
    value: float | None
    text: str
    style: str = "plain"
    ends: Sequence[float] | None = None
    note: str = ""


@dataclass(frozen=True)
class Line:
    """One curve: points (x, y) by rising x; `dash` tells curves of one colour apart."""

    label: str
    points: Sequence[Point]
    style: str
    dash: int = 0


@dataclass(frozen=True)
class Mark:
    """A labelled place on a curve."""

    x: float
    y: float
    label: str
    style: str


def element(name: str, *content: object, **attributes: object) -> Markup:
    """One element with escaped content and attributes: `class_` is class, `stroke_width` stroke-width."""
    given = Markup("").join(
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), value)
        for key, value in attributes.items()
        if value is not None
    )
    return Markup("<{0}{1}>{2}</{0}>").format(Markup(name), given, Markup("").join(map(escape, content)))


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) within [low, high], about `about` of them."""
    if not high > low:
        return [low]
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def thinned(points: Sequence[Point], most: int = 160) -> list[Point]:
    """At most `most` points, each the mean of as many neighbours."""
    size = max(1, math.ceil(len(points) / most))
    groups = (points[start : start + size] for start in range(0, len(points), size))
    return [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]


def bars(rows: Sequence[Bar], top: float | None = None, line: float | None = None) -> Markup:
    """Horizontal bars from 0 to `top` (or the largest), with whiskers; `line` is drawn across all.

    Label and reading are text beside the bar, so the figure needs no table to be read aloud."""
    reach = [row.ends[1] if row.ends else row.value or 0.0 for row in rows]
    full = top or max([*reach, line or 0.0], default=0.0) * 1.02 or 1.0

    def place(value: float) -> str:
        return f"{100 * min(max(value / full, 0), 1):.2f}%"

    made = []
    for row in rows:
        parts = [element("title", row.note)] if row.note else []
        parts.append(element("rect", class_="rail", width="100%", height="100%", rx=3))
        if row.value is not None:
            parts.append(element("rect", class_=f"fill {row.style}", width=place(row.value), height="100%", rx=3))
        if line is not None:
            parts.append(element("line", class_="reference", x1=place(line), x2=place(line), y1=-2, y2=22))
        if row.ends:
            low, high = map(place, row.ends)
            for kind in ("halo", "whisker"):
                parts.append(element("line", class_=kind, x1=low, x2=high, y1=10, y2=10))
                parts += [element("line", class_=kind, x1=end, x2=end, y1=5, y2=15) for end in (low, high)]
        track = element("svg", *parts, class_="track", height=20, aria_hidden="true", focusable="false")
        label = element("span", row.label, class_="label")
        made.append(element("li", label, track, element("span", row.text, class_="reading")))
    return element("ul", *made, class_="bars")


def forest(rows: Sequence[Bar]) -> Markup:
    """Differences around zero: a dot and its interval each, on one scale; right of zero is better."""
    ends = [abs(end) for row in rows for end in (*(row.ends or ()), row.value or 0.0)]
    reach = max(ends, default=0.0) * 1.1 or 1.0

    def place(value: float) -> str:
        return f"{50 + 50 * value / reach:.2f}%"

    made = []
    for row in rows:
        parts = [element("title", row.note)] if row.note else []
        parts.append(element("line", class_="grid", x1=0, x2="100%", y1=10, y2=10))
        parts.append(element("line", class_="reference", x1="50%", x2="50%", y1=-2, y2=22))
        if row.ends:
            low, high = map(place, row.ends)
            parts.append(element("line", class_="whisker", x1=low, x2=high, y1=10, y2=10))
            parts += [element("line", class_="whisker", x1=end, x2=end, y1=5, y2=15) for end in (low, high)]
        if row.value is not None:
            parts.append(element("circle", class_=f"dot {row.style}", cx=place(row.value), cy=10, r=6))
        track = element("svg", *parts, class_="track", height=20, aria_hidden="true", focusable="false")
        label = element("span", row.label, class_="label")
        made.append(element("li", label, track, element("span", row.text, class_="reading")))
    return element("ul", *made, class_="bars")


def lines(curves: Sequence[Line], x_label: str, y_label: str, about: str, marks: Sequence[Mark] = ()) -> Markup:
    """Curves over shared axes from y = 0; `about` is the figure's text for who cannot see it."""
    points = [point for curve in curves for point in curve.points]
    if not points:
        return Markup("")
    left, right = min(x for x, _ in points), max(x for x, _ in points)
    high = max(max(y for _, y in points) * 1.05, 1e-9)

    def across(x: float) -> float:
        return 100 * (x - left) / (right - left) if right > left else 50.0

    def up(y: float) -> float:
        return 100 - 100 * y / high

    drawn = [_axes(ticks(left, right), ticks(0, high), across, up)]
    for curve in curves:
        path = " ".join(f"{across(x):.2f},{up(y):.2f}" for x, y in curve.points)
        shape = element("polyline", points=path, class_=f"curve {curve.style} dash{curve.dash % 4}")
        frame = {"viewBox": "0 0 100 100", "preserveAspectRatio": "none", "width": "100%", "height": "100%"}
        drawn.append(element("svg", shape, class_="curves", **frame))
        if len(curve.points) <= 40:
            drawn += [
                element("circle", element("title", f"{curve.label} · {x_label} {x:g}: {y:.4g}"),
                        cx=f"{across(x):.2f}%", cy=f"{up(y):.2f}%", r=4, class_=f"dot {curve.style}")
                for x, y in curve.points
            ]  # fmt: skip
    for mark in marks:
        x, y = across(mark.x), up(mark.y)
        anchor = "start" if x < 30 else "end" if x > 70 else "middle"
        drawn.append(element("circle", cx=f"{x:.2f}%", cy=f"{y:.2f}%", r=8, class_=f"ring {mark.style}"))
        below = y < 18 or (y < 85 and mark.y == min(value for _, value in points))  # clear of the curve
        drawn.append(element("text", mark.label, x=f"{x:.2f}%", y=f"{y:.2f}%", dy=24 if below else -14,
                             text_anchor=anchor, class_="mark"))  # fmt: skip
    return framed(drawn, x_label, y_label, about)


def angular_map(importance: Mapping[str, Any]) -> Markup:
    """Angular distance by first removed block (across) and number of blocks (down): stronger is further.

    A dot marks the nearest start of each size, a ring the cut that was made."""
    table = {int(n): row for n, row in importance["angular"].items()}
    removed = list(importance["removed_layers"])
    shown = [n for n in sorted(table) if n <= max(2 * len(removed), 8)]
    blocks = max(n + len(row) - 1 for n, row in table.items())
    values = [value for n in shown for value in table[n]]
    low, span = min(values), (max(values) - min(values)) or 1.0
    width, height = 100 / blocks, 100 / len(shown)
    drawn = []
    for place, n in enumerate(shown):
        nearest = min(table[n])
        text = element("text", n, x=-10, y=f"{(place + 0.5) * height:.2f}%", dy="0.35em", text_anchor="end")
        drawn.append(text)
        for start, value in enumerate(table[n]):
            tip = element("title", f"{n} blocks from block {start}: {value:.4f}")
            box = {"x": f"{start * width:.2f}%", "y": f"{place * height:.2f}%"}
            box |= {"width": f"{width:.2f}%", "height": f"{height:.2f}%"}
            depth = f"{0.06 + 0.94 * (value - low) / span:.2f}"
            drawn.append(element("rect", tip, class_="cell", fill_opacity=depth, **box))
            chosen = n == len(removed) and list(range(start, start + n)) == removed
            if chosen or value == nearest:
                at = {"cx": f"{(start + 0.5) * width:.2f}%", "cy": f"{(place + 0.5) * height:.2f}%"}
                drawn.append(element("circle", r=7 if chosen else 3, class_="chosen" if chosen else "nearest", **at))
    every = max(1, math.ceil(blocks / 16))
    for start in range(0, blocks, every):
        drawn.append(element("text", start, x=f"{(start + 0.5) * width:.2f}%", y="100%", dy=18, text_anchor="middle"))
    about = f"Angular distance for cuts of {shown[0]} to {shown[-1]} blocks at every start; see the table below."
    return framed(drawn, "first removed block", "blocks removed", about, height=max(180, 24 * len(shown)))


def columns(values: Sequence[float], marked: Iterable[int], x_label: str, y_label: str, about: str) -> Markup:
    """One column for each of `values`, those at `marked` places in the colour of the cut."""
    high, width, cut = max(*values, 1e-9) * 1.05, 100 / len(values), set(marked)
    every = max(1, math.ceil(len(values) / 16))
    drawn = [_axes([], ticks(0, high), lambda x: x, lambda y: 100 - 100 * y / high)]
    for i, value in enumerate(values):
        tall = 100 * max(value, 0) / high
        tip = element("title", f"{x_label} {i}: {value:.4g}{' (removed)' if i in cut else ''}")
        box = {"x": f"{(i + 0.12) * width:.2f}%", "width": f"{0.76 * width:.2f}%"}
        box |= {"y": f"{100 - tall:.2f}%", "height": f"{tall:.2f}%"}
        drawn.append(element("rect", tip, class_="fill cut" if i in cut else "fill plain", **box))
        if i % every == 0:
            drawn.append(element("text", i, x=f"{(i + 0.5) * width:.2f}%", y="100%", dy=18, text_anchor="middle"))
    return framed(drawn, x_label, y_label, about, height=180)


def shares(counts: Mapping[str, int]) -> Markup:
    """One stacked bar of the verdicts on generated rows, with a legend that holds every number."""
    total = sum(counts.get(verdict, 0) for verdict in VERDICTS)
    drawn, legend, at = [], [], 0.0
    for verdict in VERDICTS:
        share = 100 * counts.get(verdict, 0) / total if total else 0.0
        if not share:
            continue
        text = f"{counts[verdict]:,} {verdict} ({share:.1f} %)"
        box = {"x": f"{at:.2f}%", "width": f"{share:.2f}%", "height": "100%"}
        drawn.append(element("rect", element("title", text), class_=f"v-{verdict}", **box))
        swatch = element("i", class_=f"swatch v-{verdict}")
        legend.append(element("li", swatch, element("b", verdict), f" {counts[verdict]:,} · {share:.1f} %"))
        at += share
    """Axes' names around what is drawn; `about` is the figure's text for who cannot see it."""
    picture = element("svg", *drawn, class_="stack", height=34, aria_hidden="true", focusable="false")
    return picture + element("ul", *legend, class_="legend")


def legend(curves: Sequence[Line]) -> Markup:
    """Names of curves beside a piece of each."""
    pieces = (
        element("svg", element("line", class_=f"curve {c.style} dash{c.dash % 4}", x1=0, x2=34, y1=6, y2=6),
                width=34, height=12, aria_hidden="true")
        for c in curves
    )  # fmt: skip
    entries = (element("li", piece, " ", curve.label) for curve, piece in zip(curves, pieces, strict=True))
    return element("ul", *entries, class_="legend")


def _axes(xs: Iterable[float], ys: Iterable[float], across: Any, up: Any) -> Markup:
    drawn = []
    for y in ys:
        at = f"{up(y):.2f}%"
        drawn.append(element("line", class_="grid", x1=0, x2="100%", y1=at, y2=at))
        drawn.append(element("text", f"{y:.3g}", x=-10, y=at, dy="0.35em", text_anchor="end"))
    for x in xs:
        drawn.append(element("text", f"{x:g}", x=f"{across(x):.2f}%", y="100%", dy=18, text_anchor="middle"))
    return Markup("").join(drawn)


def framed(drawn: Iterable[Markup], x_label: str, y_label: str, about: str, height: int = 240) -> Markup:
    """Axes' names around what is drawn; `about` is the figure's text for who cannot see it."""
    picture = element("svg", *drawn, role="img", aria_label=about, height=height)
    above, below = element("p", y_label, class_="axis"), element("p", x_label, class_="axis across")
    return element("div", above, picture, below, class_="plot")
