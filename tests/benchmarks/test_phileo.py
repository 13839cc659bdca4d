"""The benchmark of PhilEO Bench's table: all cells are trained, once, from scratch and from a pretrained run."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks import phileo
from tests.ofav2 import tiny
from tests.ofav2.tasks import dense

SIDE = 16
CODES = (10, 30, 40, 80)


def write_bench(root: Path) -> Path:
    """Three tiles of one bucket in PhilEO Bench's form."""
    root.mkdir()
    rng = np.random.default_rng(3)
    for tile, split, count in (
        ("japan_1", "train", 12),
        ("japan_1", "val", 6),
        ("japan_2", "train", 12),
        ("japan_3", "test", 3),
    ):
        np.save(root / f"{tile}_{split}_s2.npy", rng.integers(0, 4000, (count, SIDE, SIDE, 10)).astype(np.uint16))
        np.save(root / f"{tile}_{split}_label_lc.npy", rng.choice(CODES, (count, SIDE, SIDE, 1)).astype(np.uint8))
    return root


@pytest.mark.slow
def test_cells_are_trained_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_bench(tmp_path / "np")
    recipe = tiny.written(tmp_path, "task: segment\n" + dense.COMMON + dense.ONE_PHASE)
    monkeypatch.setitem(phileo.RECIPES, "lc", recipe)
    given = [str(source), "--targets", "lc", "--shots", "10", "--seeds", "1", "--out"]
    phileo.main([*given, str(tmp_path / "one"), "phases.full.epochs=1"])
    first = capsys.readouterr().out
    assert "lc-10-scratch-0, largest: exit 5" in first
    scratch = tmp_path / "one" / "lc-10-scratch-0"
    phileo.main([*given, str(tmp_path / "one"), "--pretrained", str(scratch), "phases.full.epochs=1"])
    second = capsys.readouterr().out
    assert "lc-10-pretrained-0, smallest" in second
    # What was finished is not trained again: its rows are the same.
    assert [line.split() for line in first.splitlines() if "scratch" in line] == [
        line.split() for line in second.splitlines() if "scratch" in line
    ]
