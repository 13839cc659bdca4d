"""The table of teachers has a row per phase and resolution."""

from pathlib import Path

import pytest

import ofav2
from benchmarks import teachers
from tests.ofav2 import tiny


@pytest.mark.slow
def test_every_phase_and_resolution_has_both_scores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = ofav2.train(tiny.written(tmp_path, tiny.TWO), ["data.resolutions=[16,20]"], tmp_path / "run")
    teachers.main([str(run.folder)])
    phases = [phase.name for phase in run.record.phases]
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    rows = [line for line in lines if line[:1] in [[name] for name in phases]]
    assert [(name, side) for name, side, *_ in rows] == [(name, side) for name in phases for side in ("16", "20")]
    # At the largest resolution both are the same network.
    assert all(row[2:4] == row[4:6] for row in rows if row[1] == "20")
