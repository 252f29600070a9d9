"""Charts as SVG that reads without scripts; with them, each shows its values under the pointer."""

import json
import math
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from markupsafe import Markup

WIDTH, HEIGHT = 440, 260
LEFT, RIGHT, TOP, BOTTOM = 54, 22, 14, 42
MOST_POINTS = 300


@dataclass(frozen=True)
class Series:
    """A curve: its name, places and values; `faint` draws it thin, behind the others, and not in the legend."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    faint: bool = False


@dataclass(frozen=True)
class Chart:
    """A drawn chart: its title, what is to be said about it, and the legend: classes of colours with names."""

    title: str
    svg: Markup
    note: str = ""
    legend: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Axis:
    """Maps values between `low` and `high` to pixels between `begin` and `end`."""

    low: float
    high: float
    begin: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high = (math.log10(self.low), math.log10(self.high)) if self.log else (self.low, self.high)
        value = math.log10(value) if self.log else value
        return round(self.begin + (value - low) / (high - low) * (self.end - self.begin), 1)

    def ticks(self) -> list[float]:
        from matplotlib.ticker import LogLocator, MaxNLocator

        if self.log:
            locator = LogLocator(subs=(1, 2, 5), numticks=12)
        else:
            locator = MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10])
        margin = 1e-9 * (self.high - self.low)
        return [
            float(t) for t in locator.tick_values(self.low, self.high) if self.low - margin <= t <= self.high + margin
        ]


def line_chart(
    title: str,
    series: Sequence[Series],
    x_label: str,
    y_label: str = "",
    *,
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float | None, float | None] = (None, None),
    log: bool = False,
    markers: bool = False,
    diagonal: bool = False,
    last_values: bool = True,
    note: str = "",
) -> Chart | None:
    """Curves over a common axis; None if no value is finite.

    Args:
        y_range: limits; None: those of the values.
        log: the vertical axis is logarithmic if the values allow it and span a factor of more than four.
        markers: dots at the points.
        diagonal: also a dashed line from corner to corner.
        last_values: whether the legend tells the last value of each curve; it is empty if not, for a single curve.
    """
    series = [kept for each in series if (kept := _finite(each))]
    if not series:
        return None
    xs = np.concatenate([each.x for each in series])
    ys = np.concatenate([each.y for each in series])
    log = bool(log and ys.min() > 0 and ys.max() > 4 * ys.min())
    x = Axis(*_spread(*(x_range or (float(xs.min()), float(xs.max())))), LEFT, WIDTH - RIGHT)
    low = float(ys.min()) if y_range[0] is None else y_range[0]
    high = float(ys.max()) if y_range[1] is None else y_range[1]
    y = Axis(*_spread(low, high), HEIGHT - BOTTOM, TOP, log)
    curves = [each for each in series if not each.faint]
    last = "; last values: " + ", ".join(f"{each.name} {number(each.y[-1])}" for each in curves[:6])
    svg = _canvas(f"{title}. Line chart over {x_label}{last if last_values else ''}.")
    _axes(svg, x, y, x_label, y_label)
    if diagonal:
        ends = {"x1": x(x.low), "y1": y(y.low), "x2": x(x.high), "y2": y(y.high)}
        _add(svg, "line", {**ends, "class": "diagonal"})
    data, colour = [], 0
    for each in sorted(series, key=lambda each: not each.faint):
        shown = _thinned(each)
        points = [f"{x(a)},{y(b)}" for a, b in zip(shown.x, shown.y, strict=True)]
        if each.faint:
            _add(svg, "polyline", {"points": " ".join(points), "class": "curve faint"})
            continue
        name = colour_class(colour)
        colour += 1
        _add(svg, "polyline", {"points": " ".join(points), "class": f"curve {name}"})
        if markers:
            for point in points if len(points) <= 40 else points[-1:]:
                cx, cy = point.split(",")
                _add(svg, "circle", {"cx": cx, "cy": cy, "r": 3.5, "class": f"dot {name}"})
        data.append({"name": each.name, "colour": name, "x": _rounded(shown.x), "y": _rounded(shown.y)})
    _hover(svg, {"kind": "lines", "label": x_label, "xAxis": _mapping(x), "yAxis": _mapping(y), "series": data})
    if last_values:
        legend = [(each["colour"], f"{each['name']}: {number(each['y'][-1])}") for each in data]
    else:
        legend = [(each["colour"], each["name"]) for each in data] if len(data) > 1 else []
    return Chart(title, to_markup(svg), note, legend)


def bar_chart(
    title: str,
    labels: Sequence[str],
    series: Sequence[tuple[str, Sequence[float]]],
    x_label: str,
    y_label: str,
    *,
    edges: Sequence[float] | None = None,
    note: str = "",
) -> Chart:
    """Stacked bars side by side.

    Args:
        labels: of each bar, for the pointer.
        series: (name, a value for each bar), from bottom to top.
        edges: values at the borders of the bars, one more than there are bars; None: bars are counted from 0.
    """
    totals = np.sum([values for _, values in series], axis=0)
    edges = list(range(len(labels) + 1)) if edges is None else list(edges)
    x = Axis(edges[0], edges[-1], LEFT, WIDTH - RIGHT)
    y = Axis(0, max(float(totals.max(initial=0)), 1e-9) * 1.05 if totals.any() else 1, HEIGHT - BOTTOM, TOP)
    sums = ", ".join(f"{name}: {number(sum(values))}" for name, values in series)
    svg = _canvas(f"{title}. Bar chart over {x_label}; sums: {sums}.")
    _axes(svg, x, y, x_label, y_label)
    base = np.zeros(len(labels))
    gap = 1.0 if (WIDTH - LEFT - RIGHT) / len(labels) > 4 else 0.0
    for index, (_, values) in enumerate(series):
        path = []
        for i, value in enumerate(values):
            if value > 0:
                left, right = x(edges[i]) + gap / 2, x(edges[i + 1]) - gap / 2
                path.append(f"M{left:.1f},{y(base[i])}H{right:.1f}V{y(base[i] + value)}H{left:.1f}Z")
        _add(svg, "path", {"d": "".join(path), "class": f"bar {colour_class(index)}"})
        base = base + np.asarray(values)
    data = [{"name": name, "colour": colour_class(i), "y": _rounded(values)} for i, (name, values) in enumerate(series)]
    _hover(
        svg,
        {
            "kind": "bars",
            "label": x_label,
            "labels": list(labels),
            "xAxis": _mapping(x),
            "edges": _rounded(edges),
            "series": data,
        },
    )
    legend = [(each["colour"], each["name"]) for each in data] if len(data) > 1 else []
    return Chart(title, to_markup(svg), note, legend)


def scatter_chart(
    title: str,
    points: Sequence[tuple[float, float, float, float]],
    labels: Sequence[str],
    x_label: str,
    y_label: str,
    *,
    note: str = "",
) -> Chart:
    """Circles in the unit square, whose vertical axis points down as in images.

    Args:
        points: (x, y, size, weight) each in [0, 1]; the size is the side of a square of the same area as the circle,
            the weight makes it opaque.
        labels: of each point, for the pointer.
    """
    side = 380
    svg = _canvas(f"{title}. Scatter plot of {len(points)} points.", side + 60, side + 52)
    x, y = Axis(0, 1, LEFT, LEFT + side - 14), Axis(0, 1, TOP, TOP + side - 14)
    _axes(svg, x, y, x_label, y_label)
    order = sorted(range(len(points)), key=lambda i: (points[i][3] > 0, -points[i][2]))
    for i in order:
        px, py, size, weight = points[i]
        radius = max(2.5, (side - 14) * size / math.sqrt(math.pi) * 0.35)
        opacity = f"{0.25 + 0.6 * weight:.2f}" if weight else "1"
        _add(
            svg,
            "circle",
            {
                "cx": x(px),
                "cy": y(py),
                "r": f"{radius:.1f}",
                "fill-opacity": opacity,
                "class": "point" if weight else "point idle",
            },
        )
    data = {"x": [x(p[0]) for p in points], "y": [y(p[1]) for p in points], "labels": list(labels)}
    _hover(svg, {"kind": "points", **data})
    return Chart(title, to_markup(svg), note, [])


def small_curve(x: Sequence[float], y: Sequence[float], description: str) -> Markup:
    """A curve in the unit square, as small as a thumbnail, with the area below it filled."""
    width, height = 150, 90
    svg = ET.Element("svg", {"viewBox": f"0 0 {width} {height}", "role": "img", "class": "small"})
    ET.SubElement(svg, "title").text = description
    across, up = Axis(0, 1, 2, width - 2), Axis(0, 1, height - 2, 2)
    points = " ".join(f"{across(a)},{up(b)}" for a, b in zip(x, y, strict=True) if math.isfinite(b))
    _add(svg, "rect", {"x": 2, "y": 2, "width": width - 4, "height": height - 4, "class": "frame"})
    for level in (0.25, 0.5, 0.75):
        _add(svg, "line", {"x1": 2, "x2": width - 2, "y1": up(level), "y2": up(level), "class": "grid"})
    if points:
        _add(svg, "polygon", {"points": f"2,{height - 2} {points} {width - 2},{height - 2}", "class": "area c0"})
        _add(svg, "polyline", {"points": points, "class": "curve c0"})
    return to_markup(svg)


def number(value: float) -> str:
    """Four significant digits at most, whole numbers as such, and a dash for what is not finite."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) < 1e9 else f"{value:.4g}"


def colour_class(index: int) -> str:
    """Class of the style sheet; colours repeat after eight."""
    return f"c{index % 8}"


def to_markup(svg: ET.Element) -> Markup:
    """Serialised, which escapes all text and attributes."""
    return Markup(ET.tostring(svg, encoding="unicode"))


def _canvas(description: str, width: int = WIDTH, height: int = HEIGHT) -> ET.Element:
    view = {"viewBox": f"0 0 {width} {height}", "role": "img", "tabindex": "0"}
    return ET.Element("svg", {**view, "aria-label": description})


def _axes(svg: ET.Element, x: Axis, y: Axis, x_label: str, y_label: str) -> None:
    bottom, top = max(y.begin, y.end), min(y.begin, y.end)
    for tick in y.ticks():
        _add(svg, "line", {"x1": x.begin, "x2": x.end, "y1": y(tick), "y2": y(tick), "class": "grid"})
        _add(svg, "text", {"x": x.begin - 6, "y": y(tick) + 4, "class": "tick y"}, tick_label(tick))
    for tick in x.ticks():
        _add(svg, "line", {"x1": x(tick), "x2": x(tick), "y1": bottom, "y2": bottom + 4, "class": "axis"})
        _add(svg, "text", {"x": x(tick), "y": bottom + 17, "class": "tick x"}, tick_label(tick))
    _add(svg, "line", {"x1": x.begin, "x2": x.end, "y1": bottom, "y2": bottom, "class": "axis"})
    _add(svg, "text", {"x": (x.begin + x.end) / 2, "y": bottom + 36, "class": "name"}, x_label)
    if y_label:
        middle = (top + bottom) / 2
        _add(svg, "text", {"x": 12, "y": middle, "class": "name", "transform": f"rotate(-90 12 {middle})"}, y_label)


def tick_label(value: float) -> str:
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    return f"{value:.0e}".replace("e-0", "e-") if 0 < abs(value) < 1e-3 else f"{value:g}"


def _add(parent: ET.Element, tag: str, attributes: dict[str, object], text: str = "") -> None:
    ET.SubElement(parent, tag, {key: str(value) for key, value in attributes.items()}).text = text or None


def _hover(svg: ET.Element, data: dict[str, object]) -> None:
    svg.set("data-chart", json.dumps(data, separators=(",", ":")))


def _mapping(axis: Axis) -> dict[str, object]:
    return {"low": axis.low, "high": axis.high, "begin": axis.begin, "end": axis.end, "log": axis.log}


def _finite(series: Series) -> Series | None:
    x, y = np.asarray(series.x, dtype=float), np.asarray(series.y, dtype=float)
    kept = np.isfinite(x) & np.isfinite(y)
    return Series(series.name, x[kept], y[kept], series.faint) if kept.any() else None


def _thinned(series: Series) -> Series:
    """At most `MOST_POINTS` of its points, evenly spread, the last one among them."""
    if len(series.x) <= MOST_POINTS:
        return series
    chosen = np.unique(np.linspace(0, len(series.x) - 1, MOST_POINTS).round().astype(int))
    return Series(series.name, np.asarray(series.x)[chosen], np.asarray(series.y)[chosen], series.faint)


def _spread(low: float, high: float) -> tuple[float, float]:
    """The limits, apart if they were equal."""
    if high > low:
        return low, high
    margin = abs(low) * 0.1 or 1.0
    return low - margin, low + margin


def _rounded(values: Sequence[float]) -> list[float]:
    return [float(f"{value:.5g}") for value in values]
