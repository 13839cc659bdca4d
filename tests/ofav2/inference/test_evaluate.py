"""An extracted network is evaluated class by class."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import ofav2
from ofav2.deploy.artifact import write_subnet_record
from ofav2.errors import UserError
from ofav2.inference.evaluate import class_scores, confusion_matrix


def test_the_results_are_those_of_the_extraction(extracted: Path) -> None:
    record, found = ofav2.describe_subnet(extracted), ofav2.evaluate_network(extracted)
    assert found.top1 == pytest.approx(dict(record.scores["test"]))
    assert found.same_images
    assert found.confusion.sum() == found.images == sum(score.images for score in found.classes)
    right = sum(score.right for score in found.classes)
    assert right / found.images == pytest.approx(found.top1[record.subnet.height])
    assert ofav2.evaluate_network(extracted, split="val").top1 == pytest.approx(dict(record.scores["val"]))


def test_a_confusion_matrix_counts_pairs() -> None:
    targets, predicted = np.array([0, 0, 0, 1, 2, 2]), np.array([0, 1, 1, 1, 0, 2])
    plain = np.zeros((4, 4), np.int64)
    for target, answer in zip(targets, predicted, strict=True):
        plain[target, answer] += 1
    found = confusion_matrix(predicted, targets, 4)
    assert np.array_equal(found, plain)
    scores = class_scores(found, "abcd")
    assert [(score.images, score.right, score.confused_with, score.confused) for score in scores] == [
        (3, 1, "b", 2),
        (1, 1, None, 0),
        (2, 1, "a", 1),
        (0, 0, None, 0),
    ]
    assert [score.accuracy for score in scores] == [pytest.approx(1 / 3), 1, 0.5, None]


def test_a_class_that_is_never_found_shows_in_the_mean_over_classes(extracted: Path) -> None:
    found = ofav2.evaluate_network(extracted)
    plain = [score.right / score.images for score in found.classes if score.images]
    assert found.mean_class_accuracy == pytest.approx(sum(plain) / len(plain))
    share = [*found.top1.values()][-1]
    assert found.standard_error == pytest.approx((share * (1 - share) / found.images) ** 0.5)


def test_other_classes_are_refused_with_the_first_difference(extracted: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(extracted, tmp_path / "other"))

    record = ofav2.describe_subnet(other)
    first, _, *rest = record.classes
    write_subnet_record(other, replace(record, classes=(first, "zebra", *rest)))
    with pytest.raises(UserError, match='class "zebra" is missing, and class "1" was not there before'):
        ofav2.evaluate_network(other)


@pytest.mark.parametrize(
    "setting", ["optim.momentum=0", "data.mean=[0,0,0]", "data.eval_crop=1", "data.resolutions=[8]"]
)
def test_what_is_the_networks_own_cant_be_changed(setting: str, extracted: Path) -> None:
    with pytest.raises(UserError, match="does not belong here"):
        ofav2.evaluate_network(extracted, [setting])


def test_validation_images_that_a_network_was_fine_tuned_on_are_refused(extracted: Path, tmp_path: Path) -> None:
    ofav2.finetune(extracted, ["finetune.epochs=1", "run.threads=1"], out=tmp_path / "tuned", formats=())
    assert ofav2.evaluate_network(tmp_path / "tuned").same_images
    with pytest.raises(UserError, match="was fine-tuned on its validation images"):
        ofav2.evaluate_network(tmp_path / "tuned", split="val")


def test_other_images_than_those_it_was_tested_on_are_refused_unless_they_are_named(
    extracted: Path, tmp_path: Path
) -> None:
    other, record = Path(shutil.copytree(extracted, tmp_path / "other")), ofav2.describe_subnet(extracted)
    assert record.extraction is not None
    write_subnet_record(other, replace(record, extraction=replace(record.extraction, data_fingerprint="0" * 64)))
    with pytest.raises(UserError, match="may be ones that it knows"):
        ofav2.evaluate_network(other)
    assert not ofav2.evaluate_network(other, ["data.split_seed=0"]).same_images
