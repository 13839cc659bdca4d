"""A run's largest network is measured class by class when it is done, or later."""

import base64
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import ofav2
from ofav2.data import open_data
from ofav2.data.decoding import decode
from ofav2.errors import RunError
from ofav2.evaluation.by_class import CLASSES, class_answers, read_classes
from ofav2.exits.collect import predict_exits
from ofav2.runs.records import Run
from ofav2.runtime.processes import Processes
from ofav2.runtime.share import Share
from tests.ofav2 import tiny
from tests.ofav2.patches import write_patches


class Brightness(nn.Module):
    """Logits from an image's mean, without weights."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([images.mean((1, 2, 3)) * factor for factor in range(5)], 1)


def test_training_leaves_what_its_largest_network_confuses(tiny_run: Run, run_copy: Path) -> None:
    kept = read_classes(tiny_run.folder, tiny_run.record)
    assert kept is not None
    assert tiny_run.record.test is not None
    assert kept.results.total == tiny_run.record.data.images.test
    assert abs(kept.results.accuracy - tiny_run.record.test.largest) <= 1 / kept.results.total
    wrong = [mistake.probability for mistake in kept.mistakes]
    assert wrong == sorted(wrong)
    assert len(wrong) == min(24, sum(count for *_, count in kept.results.confused))
    pictures = [decode(base64.b64decode(mistake.thumbnail or "")) for mistake in kept.mistakes]
    assert {picture.shape for picture in pictures} == {(3, 16, 16)}

    (run_copy / CLASSES).unlink()
    assert ofav2.measure_classes(run_copy) == kept.results
    assert read_classes(run_copy, tiny_run.record) == kept


def test_logits_that_are_nan_are_no_class() -> None:
    data = tiny.tiny_data()
    broken = nn.Module()
    broken.forward = lambda images: images.new_full((len(images), 5), torch.nan)  # type: ignore[method-assign]
    for measure in (class_answers, predict_exits):
        with pytest.raises(RunError, match="logits that are NaN on test images"):
            measure(broken, tiny.tiny_evaluator(data), data.test, 12)


def test_results_of_other_weights_are_not_shown(tiny_run: Run) -> None:
    last = replace(tiny_run.record.phases[-1], sha256="0" * 64)
    trained_again = replace(tiny_run.record, phases=(*tiny_run.record.phases[:-1], last))
    assert read_classes(tiny_run.folder, trained_again) is None


def test_every_window_of_a_patch_is_an_answer_of_its_own(tmp_path: Path) -> None:
    arrays = write_patches(tmp_path)["test"]
    config = tiny.data_config(
        name="patches", root=str(tmp_path), target="kind", resolutions=(6,), eval_crop=1.0, mean=None, std=None
    )
    data = open_data(config)
    evaluator = tiny.tiny_evaluator(data, eval_crop=1.0)
    found = class_answers(Brightness(), evaluator, data.test, 6)
    assert found.targets.tolist() == np.repeat(arrays["kind"], 4).tolist()
    windows = [
        patch[row : row + 6, column : column + 6].transpose(2, 0, 1)
        for patch in arrays["images"]
        for row in (0, 6)
        for column in (0, 6)
    ]
    with torch.no_grad():
        outputs = Brightness()(data.normalise(torch.from_numpy(np.stack(windows))))
    assert found.predicted.tolist() == outputs.argmax(1).tolist()


def test_processes_share_the_images() -> None:
    data = tiny.tiny_data(test=50)
    alone = class_answers(Brightness(), tiny.tiny_evaluator(data), data.test, 12)
    assert alone.targets.tolist() == data.test.targets.tolist()
    assert len(set(alone.predicted.tolist())) == 2
    parts: list[Any] = []

    class Recorded(Processes):
        def gather(self, value: Any) -> list[Any]:
            parts.append(value)
            return list(parts)

    for rank in range(3):
        runtime = replace(tiny.CPU, processes=Recorded(rank, 3))
        assert runtime.processes.share == Share(rank, 3)
        together = class_answers(Brightness(), tiny.tiny_evaluator(data, runtime=runtime), data.test, 12)
    assert all(np.array_equal(one, other) for one, other in zip(alone, together, strict=True))
