import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import ofav2
from ofav2.errors import RunError, UserError
from ofav2.exits import exit_agreement
from ofav2.exits.exit_agreement import compare_predictions, measure_exits, read_exits
from ofav2.runs.records import Run, read_run
from tests.ofav2 import tiny


def test_counts_are_those_of_a_plain_loop() -> None:
    draw = np.random.default_rng([5])
    predicted, labels = draw.integers(0, 3, (4, 50)), draw.integers(0, 3, 50)
    found = compare_predictions(torch.tensor(predicted), torch.tensor(labels), exits=(1, 2, 3, 4, 5), phase="x")
    for one in range(4):
        assert found.top1[one] == sum(predicted[one][i] == labels[i] for i in range(50)) / 50
        for other in range(4):
            same = sum(predicted[one][i] == predicted[other][i] for i in range(50))
            assert found.agree[one][other] == same / 50
    assert found.right_together == sum(labels[i] in predicted[:, i] for i in range(50)) / 50
    assert found.exits == (1, 2, 3, 4)


@pytest.fixture(scope="module")
def measured_run(tiny_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = Path(shutil.copytree(tiny_run.folder, tmp_path_factory.mktemp("exits") / "run"))
    measure_exits(path)
    return path


def test_what_is_measured_is_kept_and_agrees_with_evaluating(measured_run: Path) -> None:
    found = read_exits(measured_run, read_run(measured_run))
    assert found is not None
    assert (found.phase, found.exits) == ("expand", (1, 2, 3, 4, 5))
    assert [found.agree[i][i] for i in range(5)] == [1.0] * 5
    opened = ofav2.open_run(measured_run)
    space = opened.loaded.net.space
    for exit in found.exits:
        (score,) = opened.evaluator.scores(opened.loaded.net, [space.uniform(height=exit)], opened.data.val)
        assert found.top1[exit - 1] == score.value


def test_other_images_are_not_kept_as_the_runs(measured_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, opened = (measured_run / "exits.json").read_bytes(), ofav2.open_run(measured_run)
    monkeypatch.setattr(exit_agreement, "open_run", lambda _: replace(opened, same_data=False))
    with pytest.raises(UserError, match="so results can't be kept as the run's"):
        measure_exits(measured_run)
    assert (measured_run / "exits.json").read_bytes() == before


def test_weights_that_changed_since_are_not_described(measured_run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(measured_run, tmp_path / "copy"))
    kept = json.loads((copy / "exits.json").read_text(encoding="utf-8"))
    (copy / "exits.json").write_text(json.dumps(kept | {"checkpoint_sha256": "0" * 64}), encoding="utf-8")
    assert read_exits(copy, read_run(copy)) is None


@pytest.mark.parametrize("content", ["{", "{}", '{"format": "ofav2-exits/2", "checkpoint_sha256": 3, "phase": 1}'])
def test_a_damaged_file_is_named(measured_run: Path, tmp_path: Path, content: str) -> None:
    copy = Path(shutil.copytree(measured_run, tmp_path / "copy"))
    (copy / "exits.json").write_text(content, encoding="utf-8")
    with pytest.raises(RunError, match=r"exits\.json"):
        read_exits(copy, read_run(copy))


def test_one_exit_has_none_to_compare_with(tmp_path: Path) -> None:
    run = ofav2.train(tiny.written(tmp_path, tiny.TWO), run_dir=tmp_path / "run")
    with pytest.raises(UserError, match="one exit"):
        measure_exits(run.folder)
    assert not (run.folder / "exits.json").exists()
    assert "Exit agreement" not in ofav2.write_report(run.folder).read_text(encoding="utf-8")
