"""The benchmark of exits: its numbers come out for all sides."""

import json
from pathlib import Path

import pytest

from benchmarks import sides
from benchmarks.exits import main


@pytest.mark.slow
def test_all_sides_of_a_step_and_of_inference_are_timed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sides, "RESULTS", tmp_path)
    main(["test_resnet", "--side", "16", "--batch", "2", "--repeats", "2"])
    steps = {"timm, one exit", "graph, one exit", "graph, all exits", "with exits"}
    for kind, names in (("step", steps), ("inference", {"timm, eager", "graph"})):
        facts = json.loads((tmp_path / f"exits-{kind}-test_resnet.json").read_text(encoding="utf-8"))
        assert facts["sides"].keys() == names
        assert all(times["repeats"] == 2 and times["median"] > 0 for times in facts["sides"].values())
    assert "test_resnet: a training step" in capsys.readouterr().out
