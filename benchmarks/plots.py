"""Plots of the documentation, as SVG text that is the same each time."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# Text stays text: smaller, searchable, and in the reader's own font.
STYLE = {"svg.fonttype": "none", "svg.hashsalt": "ofav2", "font.size": 9.0, "axes.grid": True, "grid.color": "#eeeeee"}

COLOURS = 10
"""Colours of matplotlib's own cycle."""
INCHES_PER_NAME = 3.0
"""Width that a name in the legend has."""


@dataclass(frozen=True)
class Series:
    """Points that belong together."""

    name: str
    """What the legend calls them."""
    x: tuple[float, ...]
    y: tuple[float, ...]
    line: str = "-"
    """matplotlib's line style; an empty one draws the points alone."""
    marker: str = "o"
    """matplotlib's marker."""


@dataclass(frozen=True)
class Panel:
    """One plot of several side by side."""

    title: str
    x: str
    """What is across, with its unit."""
    y: str
    """What is up, with its unit."""
    series: tuple[Series, ...]
    ticks: tuple[str, ...] = ()
    """Tick labels at 0, 1, 2, ... across; if empty, matplotlib's own."""


def curves(growth: Mapping[str, Mapping[int, float]], unit: str) -> str:
    """One panel per name with a line through its points, and a dashed one through zero for linear growth.

    Args:
        growth: Values over sizes, by what the sizes count.
        unit: What the values are.
    """
    panels = []
    for name, points in growth.items():
        last = max(points)
        measured = Series("measured", tuple(points), tuple(points.values()))
        linear = Series("linear", (0, last), (0, points[last]), line="--", marker="")
        panels.append(Panel("", name, unit, (measured, linear)))
    return chart(panels)


def chart(panels: Sequence[Panel], width: float = 4.2, height: float = 3.4) -> str:
    """Panels side by side, each `width` x `height` inches."""
    style: Any = STYLE
    with mpl.rc_context(style):
        figure = Figure(figsize=(width * len(panels), height), layout="constrained")
        for position, panel in enumerate(panels, start=1):
            _draw(figure.add_subplot(1, len(panels), position), panel)
        named = {
            label: line for axes in figure.axes for line, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        # Below the panels, where it hides nothing; a name that several panels share is there once.
        columns = max(1, int(width * len(panels) / INCHES_PER_NAME))
        figure.legend(named.values(), named, loc="outside lower center", ncols=columns, fontsize=7, handlelength=3.5)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()


def _draw(axes: Axes, panel: Panel) -> None:
    for number, series in enumerate(panel.series):
        # Colours come back after ten series, which dashes tell apart.
        line = "--" if series.line == "-" and number >= COLOURS else series.line
        axes.plot(series.x, series.y, label=series.name, linestyle=line, marker=series.marker, markersize=3)
    axes.set_title(panel.title)
    axes.set_xlabel(panel.x)
    axes.set_ylabel(panel.y)
    if panel.ticks:
        axes.set_xticks(range(len(panel.ticks)), panel.ticks, rotation=45, ha="right", rotation_mode="anchor")
    elif all(float(x).is_integer() for series in panel.series for x in series.x):
        # What is counted has no halves.
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
