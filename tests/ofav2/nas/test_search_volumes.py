"""Hypervolumes of searches up to a common reference, beside a plain sum of rectangles."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ofav2.nas.engine.fronts import on_front
from ofav2.nas.search_snapshot import read_search_snapshot
from ofav2.nas.search_volumes import common_volumes


def covered(points: np.ndarray) -> float:
    """The part of the unit square that points with two objectives dominate."""
    inside = sorted((x, y) for x, y in points.tolist() if x < 1 and y < 1)
    area, lowest = 0.0, 1.0
    for x, y in inside:
        if y < lowest:
            area += (1 - x) * (lowest - y)
            lowest = y
    return area


def test_volumes_are_parts_of_one_box(searched: Path, tmp_path: Path) -> None:
    whole = read_search_snapshot(searched / "search")
    folder = Path(shutil.copytree(searched / "search", tmp_path / "half"))
    (folder / "front.json").unlink()
    lines = (folder / "archive.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / "archive.jsonl").write_text("".join(lines[: len(lines) // 2]), encoding="utf-8")
    half = read_search_snapshot(folder)
    together = np.concatenate([one.points[on_front(one.points)] for one in (whole, half)])
    low, span = together.min(0), np.ptp(together, axis=0)
    for search, volumes in zip((whole, half), common_volumes([whole, half]), strict=True):
        ended = [one for one in search.rounds if one.hypervolume is not None]
        assert len(volumes) == len(ended)
        for one, (measured, volume) in zip(ended, volumes, strict=True):
            upto = np.array([network.round <= one.number for network in search.networks])
            assert volume == pytest.approx(covered((search.points[upto] - low) / span))
            assert measured == sum(other.measured for other in search.rounds[: one.number + 1])


def test_a_search_without_networks_has_no_volumes(searched: Path) -> None:
    whole = read_search_snapshot(searched / "search")
    empty = replace(whole, networks=(), rounds=(), front=None)
    assert common_volumes([empty, empty]) == [(), ()]
    assert common_volumes([empty, whole])[0] == ()
