"""The benchmark of the input pipeline, small: it gives its results, and both ways of loading give the same batches."""

import json
from pathlib import Path

import pytest

from benchmarks import loader, sides
from tests.ofav2.data.conftest import write_classes


@pytest.mark.slow
def test_the_input_pipeline_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_classes(tmp_path / "images" / "train", {"cat": 12, "dog": 12})
    monkeypatch.setattr(sides, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(loader, "SETTLED", 0.02)
    small = ["--pixels", "32", "24", "--batch", "4", "--workers", "1", "--batches", "2", "--repeats", "2"]
    network = ["--steps", "2", "--width", "0.1"]
    loader.main([str(tmp_path / "images"), "--name", "imagefolder", *small, *network])
    found = json.loads((tmp_path / "results" / "loader.json").read_text())
    names = {loader.BASE, loader.STREAMED, loader.CACHED}
    for pixels in ("32", "24"):
        measured = found["loading"][pixels]
        assert measured["equal"]
        assert set(measured["images_per_second"]) == names
        assert all(rate > 0 for rate in measured["images_per_second"].values())
        assert measured["times_as_fast"][loader.BASE] == 1
    assert set(found["waiting"]) == names - {loader.BASE}
    assert all(0 < row["share"] < 1 for row in found["waiting"].values())
