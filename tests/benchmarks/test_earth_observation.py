"""The benchmark of Earth observation: networks as the evaluator scores them, linear models, errors over places."""

from pathlib import Path

import numpy as np
import pytest
import torch

import ofav2
from benchmarks import earth_observation
from benchmarks.earth_observation import groups_of, linear_rows, network_rows, with_errors
from ofav2.evaluation.opened_run import OpenedRun
from tests.ofav2 import tiny
from tests.ofav2.tasks import dense


def trained(folder: Path, task: str, target: str, more: str = "") -> OpenedRun:
    """An opened run of one phase, on patches of which two of the test split lie in one place."""
    root = dense.write_patches(folder / "patches")
    (root / "test.txt").write_text("a\nb\nb\nc\nd\ne\n")
    text = dense.recipe(task, root, target, phases=dense.ONE_PHASE, more=more)
    return ofav2.open_run(ofav2.train(tiny.written(folder, text), ["phases.full.epochs=1"], folder / "run").folder)


def check(run: OpenedRun, groups: int, least: float = 0.5) -> None:
    """The largest network has the evaluator's score, and one of the linear models learns."""
    task, largest = run.evaluator.task, run.loaded.net.space.largest()
    main = task.metrics[0].name
    (row,) = network_rows(run, {"largest": largest}, run.data.test)
    (score,) = run.evaluator.scores(run.loaded.net, [largest], run.data.test)
    value, error = with_errors(task, row.sums)[main]
    assert value == pytest.approx(score.value, rel=1e-4)
    assert len(row.sums) == groups
    assert error > 0
    found = [with_errors(task, row.sums)[main][0] for row in linear_rows(run, largest.resolution, run.data.test)]
    assert max(found) > least


def test_classes_of_images(tmp_path: Path) -> None:
    recipe = tiny.written(tmp_path, tiny.COMMON + dense.ONE_PHASE)
    run = ofav2.open_run(ofav2.train(recipe, ["phases.full.epochs=0.1"], tmp_path / "run").folder)
    check(run, len(run.data.test), 0.15)


def test_maps_of_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = trained(tmp_path, "segment", "cover")
    check(run, 5)
    earth_observation.main([str(run.loaded.folder), "--random", "1", "--no-linear", "--images", "4"])
    lines = capsys.readouterr().out
    assert "smallest" in lines
    assert "1 random sub-networks: mIoU" in lines


def test_maps_of_numbers_and_errors_by_the_jackknife_over_places(tmp_path: Path) -> None:
    run = trained(tmp_path, "regress", "height", dense.DISTANCE)
    check(run, 5)
    task = run.evaluator.task
    assert groups_of(run.data.test, 16).tolist() == [0, 1, 1, 2, 3, 4]
    assert groups_of(run.data.test, 8).tolist() == np.repeat([0, 1, 1, 2, 3, 4], 4).tolist()
    sums = torch.rand(4, 5, dtype=torch.float64) + torch.tensor([9, 0, 0, 0, 20], dtype=torch.float64)
    values = [task.read(sums[[other for other in range(4) if other != left]].sum(0))["RMSE"] for left in range(4)]
    mean, error = with_errors(task, sums)["RMSE"]
    assert mean == task.read(sums.sum(0))["RMSE"]
    assert error == pytest.approx(np.sqrt(0.75 * np.square(np.array(values) - np.mean(values)).sum()))
