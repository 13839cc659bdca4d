"""The benchmark of evaluation: it gives its results, and both sides find the same."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import sides
from benchmarks.evaluation import Options, compare, show
from ofav2.config.schema import DataConfig
from ofav2.data import open_data

QUICK = Options(networks=3, calibration_images=120, images=60, compared=1, resolution=32, width_mult=0.25, workers=0)


@pytest.mark.slow
@pytest.mark.parametrize("own_loading", [False, True])
def test_both_sides_of_the_evaluation_benchmark_find_the_same_results(
    own_loading: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sides, "RESULTS", tmp_path)
    options = replace(QUICK, own_loading=own_loading)
    found = compare(open_data(DataConfig(name="digits", resolutions=(32,))), options)
    assert found.top1["ofav2"].keys() == found.top1["ofa"].keys()
    assert len(found.top1["ofa"]) == 3
    if own_loading:
        assert found.statistics_gap is None
    else:
        assert found.top1["ofav2"] == found.top1["ofa"]
        assert found.statistics_gap is not None
        assert 0 < found.statistics_gap < 1e-5
    assert all(times.repeats == 3 and 0 < times.lower <= times.median <= times.upper for times in found.times.values())
    show(found, options)
    (written,) = tmp_path.iterdir()
    facts = json.loads(written.read_text())
    assert facts["seconds"] == found.seconds
    assert facts["options"]["calibration_images"] == 120
    assert "ofav2" in capsys.readouterr().out
