"""The charts of the page: Plotly figures, which the page's script draws in the colours of its style sheet."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, TypeAlias

import numpy as np
import plotly.graph_objects as go

Values: TypeAlias = Sequence[float] | np.ndarray

HEIGHT = 320
_LOG_TICKS = [digit * 10.0**exponent for exponent in range(-9, 10) for digit in (1, 2, 5)]
_FAINT = {
    "line": {"color": "rgba(128, 128, 128, 0.5)", "width": 1},
    "zorder": -1,
    "showlegend": False,
    "hoverinfo": "skip",
}


@dataclass(frozen=True)
class Series:
    """A curve: its name, places and values; `faint` draws it thin, behind the others, and not in the legend."""

    name: str
    x: Values
    y: Values
    faint: bool = False


@dataclass(frozen=True)
class Chart:
    """A figure without colours.

    Attributes:
        title: above the figure.
        description: the figure in words, for screen readers.
        figure: see `plotly.graph_objects`.
        note: below the figure.
    """

    title: str
    description: str
    figure: go.Figure
    note: str = ""

    @property
    def json(self) -> str:
        """Data and layout for `Plotly.newPlot`."""
        return self.figure.to_json()

    @property
    def height(self) -> int:
        """In pixels."""
        return self.figure.layout.height


def line_chart(
    title: str,
    series: Sequence[Series],
    x_label: str,
    y_label: str = "",
    *,
    x_range: tuple[float, float] | None = None,
    from_zero: bool = False,
    log: bool = False,
    markers: bool = False,
    last_values: bool = True,
    note: str = "",
) -> Chart | None:
    """Curves over a common axis; None if no value is finite.

    Args:
        x_range: limits of the horizontal axis; None: those of the values.
        from_zero: the vertical axis begins at 0.
        log: the vertical axis is logarithmic if the values allow it and span a factor of more than four.
        markers: dots at the points.
        last_values: the legend shows the last value of each curve.
    """
    series = [kept for each in series if (kept := _finite(each))]
    if not series:
        return None
    values = np.concatenate([each.y for each in series])
    figure = _figure(x_label, y_label)
    for each in sorted(series, key=lambda each: each.faint):
        name = f"{each.name}: {number(each.y[-1])}" if last_values else each.name
        figure.add_scatter(
            x=_rounded(each.x),
            y=_rounded(each.y),
            mode="lines+markers" if markers else "lines",
            name=escape(name, quote=False),
            **(_FAINT if each.faint else _hover(each.name, "%{y:.4~g}")),
        )
    figure.update_xaxes(range=x_range)
    figure.update_yaxes(rangemode="tozero" if from_zero else "normal")
    if np.abs(values).max() < 0.01:
        figure.update_yaxes(exponentformat="e")
    if log and values.min() > 0 and values.max() > 4 * values.min():
        figure.update_yaxes(type="log", tickvals=_LOG_TICKS)
    if not last_values:
        return Chart(title, f"{title}. Line chart over {x_label}.", figure, note)
    last = ", ".join(f"{each.name} {number(each.y[-1])}" for each in series if not each.faint)
    return Chart(title, f"{title}. Line chart over {x_label}; last values: {last}.", figure, note)


def share_chart(
    title: str,
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    *,
    markers: bool = False,
    diagonal: bool = False,
    note: str = "",
) -> Chart | None:
    """Curves in the unit square; None if no value is finite.

    Args:
        markers: dots at the points.
        diagonal: also a dashed line from (0, 0) to (1, 1).
    """
    chart = line_chart(title, series, x_label, y_label, markers=markers, last_values=False, note=note)
    if chart is None:
        return None
    chart.figure.update_xaxes(range=(0, 1))
    chart.figure.update_yaxes(range=(0, 1.02))
    if diagonal:
        chart.figure.add_shape(type="line", x0=0, y0=0, x1=1, y1=1, line={"dash": "dash", "width": 1})
    return chart


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
    borders = np.arange(len(labels) + 1) if edges is None else np.asarray(edges)
    figure = _figure(x_label, y_label)
    for name, values in series:
        figure.add_bar(
            x=_rounded((borders[1:] + borders[:-1]) / 2),
            y=list(values),
            width=_rounded(np.diff(borders)),
            name=escape(name, quote=False),
            customdata=[escape(label, quote=False) for label in labels],
            **_hover(name, "%{y:,}", "%{customdata}<br>"),
        )
    figure.update_layout(barmode="stack", hovermode="x", legend_traceorder="normal")
    figure.update_yaxes(rangemode="nonnegative")
    sums = ", ".join(f"{name}: {number(sum(values))}" for name, values in series)
    return Chart(title, f"{title}. Bar chart over {x_label}; sums: {sums}.", figure, note)


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
        points: (x, y, size, weight) each in [0, 1]; the circle grows with the size, the weight makes it opaque.
            Circles of weight 0 are open.
        labels: of each point, for the pointer.
    """
    order = sorted(range(len(points)), key=lambda i: (points[i][3] > 0, -points[i][2]))
    x, y, size, weight = np.array([points[i] for i in order]).T
    figure = _figure(x_label, y_label)
    figure.add_scatter(
        x=_rounded(x),
        y=_rounded(y),
        mode="markers",
        marker={
            "size": _rounded(np.maximum(5, 150 * size)),
            "opacity": _rounded(np.where(weight > 0, 0.25 + 0.6 * weight, 1)),
            "symbol": ["circle" if each else "circle-open" for each in weight],
        },
        hovertext=[escape(labels[i], quote=False) for i in order],
        hoverinfo="text",
    )
    figure.update_layout(hovermode="closest", height=480)
    figure.update_xaxes(range=(0, 1), constrain="domain")
    figure.update_yaxes(range=(1, 0), scaleanchor="x", constrain="domain")
    return Chart(title, f"{title}. Scatter plot of {len(points)} points.", figure, note)


def number(value: float) -> str:
    """Four significant digits at most, whole numbers as such, and a dash for what is not finite."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) < 1e9 else f"{value:.4g}"


def _figure(x_label: str, y_label: str) -> go.Figure:
    return go.Figure(
        layout={
            "template": "none",
            "height": HEIGHT,
            "margin": {"l": 64, "r": 16, "t": 52, "b": 48},
            "hovermode": "x unified",
            "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
            "xaxis": {"title": {"text": escape(x_label, quote=False)}},
            "yaxis": {"title": {"text": escape(y_label, quote=False)}},
        }
    )


def _hover(name: str, value: str, before: str = "") -> dict[str, Any]:
    """Arguments of a trace that show its name and `value`. As `meta`, the name cannot be taken for a part of the
    template."""
    return {"meta": escape(name, quote=False), "hovertemplate": f"{before}%{{meta}}: {value}<extra></extra>"}


def _finite(series: Series) -> Series | None:
    x, y = np.asarray(series.x, dtype=float), np.asarray(series.y, dtype=float)
    kept = np.isfinite(x) & np.isfinite(y)
    return Series(series.name, x[kept], y[kept], series.faint) if kept.any() else None


def _rounded(values: Values) -> list[float]:
    return [float(f"{value:.5g}") for value in values]
