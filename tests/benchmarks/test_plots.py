"""Plots hold what they are given, at the right positions, and are the same each time."""

from xml.etree import ElementTree

import numpy as np

from benchmarks.plots import Panel, Series, chart, curves

SVG = "{http://www.w3.org/2000/svg}"


def texts(drawing: str) -> set[str | None]:
    return {part.text for part in ElementTree.fromstring(drawing).iter(f"{SVG}text")}


def points(drawing: str, count: int) -> np.ndarray:
    """Positions of the first series' markers: the only markers with a clip path."""
    found = [
        (float(use.attrib["x"]), float(use.attrib["y"]))
        for group in ElementTree.fromstring(drawing).iter(f"{SVG}g")
        if "clip-path" in group.attrib
        for use in group.findall(f"{SVG}use")
    ]
    return np.array(found[:count])


def test_a_plot_has_names_and_units() -> None:
    series = Series("a < b", (1.0, 2.0), (3.0, 4.0))
    drawn = chart(
        [Panel("how it went", "size, M", "top-1, %", (series,)), Panel("", "phase", "s", (series,), ("x", "y", "z"))]
    )
    assert {"a < b", "how it went", "size, M", "top-1, %", "phase", "s", "x", "y", "z"} <= texts(drawn)
    assert drawn == chart(
        [Panel("how it went", "size, M", "top-1, %", (series,)), Panel("", "phase", "s", (series,), ("x", "y", "z"))]
    )


def test_what_is_counted_has_whole_ticks() -> None:
    drawn = texts(curves({"processes": {1: 5.0, 2: 9.5}}, "ms"))
    assert {"0", "1", "2"} <= drawn
    assert "1.5" not in drawn


def test_a_plots_points_are_where_they_belong() -> None:
    values = {1: 5.0, 2: 9.5, 8: 20.0}
    placed = points(curves({"sub-networks": values}, "ms"), len(values))
    across, up = np.array(list(values)), np.array(list(values.values()))
    for given, found in ((across, placed[:, 0]), (up, placed[:, 1])):
        assert np.allclose(np.polyval(np.polyfit(given, found, 1), given), found, atol=0.01)
    assert (np.diff(placed[:, 0]) > 0).all()
    assert (np.diff(placed[:, 1]) < 0).all(), "more is higher"
