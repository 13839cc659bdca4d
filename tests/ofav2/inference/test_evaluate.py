"""An extracted network is evaluated class by class."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import ofav2
from ofav2.deploy.artifact import write_subnet_record
from ofav2.deploy.seen import read_seen
from ofav2.errors import UserError
from ofav2.finetuning.setup import prepare
from ofav2.tasks.class_results import share_error
from tests.notes import Notes
from tests.ofav2 import patches, tiny
from tests.ofav2.data.conftest import write_classes, write_image
from tests.ofav2.tasks import dense


def test_the_results_are_those_of_the_extraction(extracted: Path) -> None:
    record, found = ofav2.describe_subnet(extracted), ofav2.evaluate_network(extracted)
    assert found.top1 == pytest.approx(dict(record.scores["test"]))
    assert found.same_images
    assert found.results == record.by_class
    assert found.results.accuracy == pytest.approx(found.top1[record.subnet.height])
    assert ofav2.evaluate_network(extracted, split="val").top1 == pytest.approx(dict(record.scores["val"]))


def test_a_split_of_another_name_is_refused_before_images_are_opened(
    extracted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ofav2.inference.evaluate.open_data", None)
    with pytest.raises(UserError, match=r'^split \("validation"\) must be val or test'):
        ofav2.evaluate_network(extracted, split="validation")  # type: ignore[arg-type]


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
    ofav2.finetune(
        extracted, ["finetune.epochs=1", "run.threads=1", "data.batch_size=128"], out=tmp_path / "tuned", formats=()
    )
    assert ofav2.evaluate_network(tmp_path / "tuned").same_images
    with pytest.raises(UserError, match="was fine-tuned on its validation images"):
        ofav2.evaluate_network(tmp_path / "tuned", split="val")


def test_other_images_than_those_it_was_tested_on_are_refused_unless_they_are_named(
    extracted: Path, tmp_path: Path, notes: Notes
) -> None:
    other, record = Path(shutil.copytree(extracted, tmp_path / "other")), ofav2.describe_subnet(extracted)
    assert record.extraction is not None
    write_subnet_record(other, replace(record, extraction=replace(record.extraction, data_fingerprint="0" * 64)))
    with pytest.raises(UserError, match="may be ones that it knows"):
        ofav2.evaluate_network(other)
    assert "are drawn by" not in notes()
    assert not ofav2.evaluate_network(other, ["data.test_fraction=0.05"]).same_images
    assert re.search(r"brings no images for test: \d+ of 1797 are drawn by data.test_fraction \(0.05\)", notes())


def test_images_that_were_trained_on_are_no_test_images(extracted: Path, tmp_path: Path, notes: Notes) -> None:
    other = ["data.split_seed=9", "data.test_fraction=0.5", "data.val_fraction=0.8"]
    before = read_seen(extracted, ofav2.describe_subnet(extracted))
    tuned = ofav2.finetune(
        extracted,
        ["finetune.epochs=1", "run.threads=1", "data.batch_size=128", *other],
        out=tmp_path / "tuned",
        formats=(),
    )
    left = tuned.finetuning[-1].images.test
    assert 0 < left < 100, "few of all images were not trained on"
    said = notes()
    assert f"test images that the network was trained on, left out: {901 - left} of 901" in said
    assert "validation images that the network may have been trained on: " in said
    # The same command without settings: the network has kept them.
    again = ofav2.evaluate_network(tmp_path / "tuned")
    assert again.same_images
    assert again.results == tuned.by_class
    assert np.isin(before, read_seen(tmp_path / "tuned", tuned)).all()
    assert ofav2.evaluate_network(extracted, other).results.total == left
    assert f"left out: {901 - left} of 901" in notes()


def test_a_split_that_is_drawn_anew_is_said_where_no_test_image_is_known(
    extracted: Path, tmp_path: Path, notes: Notes
) -> None:
    """Fewer shots leave validation as it was; another share of it does not."""
    quick = ["finetune.epochs=1", "run.threads=1", "data.batch_size=16"]
    ofav2.finetune(extracted, [*quick, "data.shots=4"], out=tmp_path / "shots", formats=())
    assert "may have been trained on" not in notes()
    ofav2.finetune(extracted, [*quick, "data.shots=4", "data.val_fraction=0.3"], out=tmp_path / "share", formats=())
    assert "validation images that the network may have been trained on: " in notes()


@pytest.mark.parametrize("change", ["more", "fewer", "none"])
def test_validation_images_that_are_drawn_of_other_files_are_said(change: str, tmp_path: Path, notes: Notes) -> None:
    """A new test image leaves the images that validation is drawn of as they were."""
    for split, count in (("train", 20), ("test", 4)):
        write_classes(tmp_path / "images" / split, {"a": count, "b": count})
    text = tiny.TWO.replace("name: digits", f"name: imagefolder, root: {tmp_path / 'images'}")
    settings = ["data.val_fraction=0.4", "data.batch_size=4"]
    run = ofav2.open_run(ofav2.train(tiny.written(tmp_path, text), settings, tmp_path / "run").folder)
    ofav2.extract(run, run.loaded.net.space.smallest(), tmp_path / "out", formats=())
    first = sorted((tmp_path / "images" / "train" / "a").iterdir())[0]
    if change == "fewer":
        first.unlink()
    else:
        folder = {"more": "train", "none": "test"}[change]
        write_image(tmp_path / "images" / folder / "a" / "new.png", (31, 17))
    prepare(tmp_path / "out", ["run.threads=1"])
    assert ("may have been trained on" in notes()) == (change != "none")


def test_windows_of_one_patch_count_once_in_the_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They err together, so that four times as many of them don't halve the error."""
    monkeypatch.setattr(patches, "SIDE", 32)
    patches.write_patches(tmp_path / "data")
    text = dense.recipe("classification", tmp_path / "data", "kind", phases=dense.ONE_PHASE)
    run = ofav2.open_run(ofav2.train(tiny.written(tmp_path, text), ["data.batch_size=6"], tmp_path / "run").folder)
    largest = run.loaded.net.space.largest()
    ofav2.extract(run, largest, tmp_path / "out", formats=())
    found = ofav2.evaluate_network(tmp_path / "out")
    assert (found.images, found.results.total) == (3, 12)
    assert found.standard_error == share_error(found.results.accuracy, 3)
    assert [one.images for one in ofav2.measure(run, [largest], "test")] == [3]
