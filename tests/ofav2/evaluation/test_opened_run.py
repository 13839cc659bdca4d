"""A run that is opened again sees the images that it was trained with, in the splits that it was trained with."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

import ofav2
from ofav2.cli.main import main
from ofav2.errors import RunError, UserError
from ofav2.evaluation.by_class import measure_classes
from ofav2.runs.records import read_run
from tests.notes import Notes
from tests.ofav2 import tiny
from tests.ofav2.changes import change_facts
from tests.ofav2.data.conftest import write_classes, write_image
from tests.shared import made_once

CLASSES = ("ant", "bee", "cat")
RECIPE = (
    tiny.TWO.replace("se_b", "ee_b")
    .replace("name: digits", "name: imagefolder, root: ROOT, cache: CACHE, bad_images: BAD")
    .replace("batch_size: 16", "batch_size: 4")
    .replace("val_fraction: 0.02, test_fraction: 0.03", "val_fraction: 0.25, test_fraction: 0.2")
    .replace("epochs: 0.02", "epochs: 0.2")
)


@dataclass(frozen=True)
class Photos:
    """A run on image files, and its files; a copy to damage."""

    images: Path
    run: Path

    def set(self, before: str, after: str) -> None:
        """Edit the run's recipe."""
        text = (self.run / "recipe.yaml").read_text()
        assert before in text
        (self.run / "recipe.yaml").write_text(text.replace(before, after))


def written(folder: Path, bad_images: str = "refuse") -> Path:
    """Train a run on three classes of ten images below a folder; one more is broken where bad images are skipped."""
    write_classes(folder / "images", dict.fromkeys(CLASSES, 10), ".png")
    if bad_images == "skip":
        (folder / "images" / "ant" / "005.png").write_bytes(b"no image")
    text = RECIPE.replace("ROOT", str(folder / "images")).replace("CACHE", str(folder / "cache"))
    ofav2.train(tiny.written(folder, text.replace("BAD", bad_images)), run_dir=folder / "run")
    return folder


def copied(made: Path, folder: Path) -> Photos:
    shutil.copytree(made, folder)
    photos = Photos(folder / "images", folder / "run")
    for file in (photos.run / "recipe.yaml", photos.run / "run.json"):
        file.write_text(file.read_text().replace(str(made), str(folder)))
    return photos


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_once(tmp_path_factory, "photos", written)


@pytest.fixture(scope="session")
def made_with_a_broken_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_once(tmp_path_factory, "broken", lambda folder: written(folder, "skip"))


@pytest.fixture
def photos(made: Path, tmp_path: Path) -> Photos:
    return copied(made, tmp_path / "copy")


@pytest.fixture
def broken(made_with_a_broken_image: Path, tmp_path: Path) -> Photos:
    return copied(made_with_a_broken_image, tmp_path / "copy")


def names(opened: ofav2.OpenedRun) -> list[list[str] | None]:
    return [split.images.names() for split in (opened.data.train, opened.data.val, opened.data.test)]


VERBS: dict[str, Callable[[Photos], list[str]]] = {
    "evaluate": lambda photos: ["evaluate", str(photos.run)],
    "extract": lambda photos: ["extract", str(photos.run), "--largest", "--out", str(photos.run.parent / "out")],
    "choose": lambda photos: [
        *("extract", str(photos.run), "--max-macs", "1G", "--candidates", "1", "--out", str(photos.run.parent / "out"))
    ],
    "report": lambda photos: ["report", str(photos.run), "--exits"],
    "train": lambda photos: ["train", "--resume", str(photos.run)],
}


@pytest.mark.parametrize("verb", VERBS)
def test_renamed_classes_are_refused_by_every_verb_that_opens_data(
    verb: str, photos: Photos, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos.images / "ant").rename(photos.images / "zebra")
    assert main(VERBS[verb](photos)) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert 'class "ant" is missing, and class "zebra" was not there before; restore the classes' in said
    assert not (photos.run.parent / "out").exists()


@pytest.mark.parametrize("verb", VERBS)
def test_missing_images_are_refused_by_every_verb_that_opens_data(
    verb: str, photos: Photos, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos.images / "bee" / "003.png").unlink()
    assert main(VERBS[verb](photos)) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "images that the run was trained with are missing: 1 (the first: bee/003.png); put them back, or" in said


def test_classes_are_compared_where_the_split_is_lost(photos: Photos) -> None:
    (photos.run / "split.json").unlink()
    (photos.images / "ant").rename(photos.images / "zebra")
    for opening in (ofav2.open_run, ofav2.measure_exits):
        with pytest.raises(RunError):
            opening(photos.run)
    change_facts(photos.run, lambda facts: facts["data"].update(classes=["bee", "ant", "cat"]))
    (photos.images / "zebra").rename(photos.images / "ant")
    with pytest.raises(RunError, match='class 0 was "bee", and is "ant" now; restore the classes that run run was'):
        ofav2.open_run(photos.run)


def test_added_images_are_counted_and_change_neither_split_nor_provenance(
    photos: Photos, tmp_path: Path, notes: Notes
) -> None:
    before = ofav2.open_run(photos.run)
    for number in range(10, 20):
        write_image(photos.images / "ant" / f"{number:03d}.png")
    write_image(photos.images / "ant" / "0000.png")
    notes()
    after = ofav2.open_run(photos.run)
    assert "images that the run was not trained with, left out: 11 (the first: ant/0000.png)" in notes()
    assert names(after) == names(before)
    assert after.same_data
    record = ofav2.extract(after, after.loaded.net.space.largest(), tmp_path / "out", formats=("card",))
    assert record.provenance.data_fingerprint == read_run(photos.run).data.fingerprint == record.measured_fingerprint
    assert "have changed since" not in (tmp_path / "out" / "model_card.md").read_text()


def test_a_run_goes_on_with_its_split_after_images_were_added(photos: Photos) -> None:
    write_image(photos.images / "ant" / "0000.png")
    before = (photos.run / "split.json").read_bytes()
    assert ofav2.resume(photos.run).record == read_run(photos.run)
    assert (photos.run / "split.json").read_bytes() == before


def test_a_copy_with_other_times_is_the_runs_data(photos: Photos, notes: Notes) -> None:
    for path in photos.images.rglob("*.png"):
        os.utime(path, ns=(0, 0))
    assert ofav2.open_run(photos.run).same_data
    assert "other images" not in notes()


def test_changed_images_are_said_and_recorded(photos: Photos, tmp_path: Path, notes: Notes) -> None:
    write_image(photos.images / "ant" / "003.png", (9, 9))
    opened = ofav2.open_run(photos.run)
    assert not opened.same_data
    assert "data set (imagefolder) holds other images, or other labels, than" in notes()
    record = ofav2.extract(opened, opened.loaded.net.space.largest(), tmp_path / "out", formats=("card",))
    assert record.provenance.data_fingerprint == read_run(photos.run).data.fingerprint != record.measured_fingerprint
    assert (
        f"measured on those of fingerprint `{opened.data.fingerprint}`"
        in (tmp_path / "out" / "model_card.md").read_text()
    )
    with pytest.raises(RunError, match=r"data\.fingerprint was .*, is .*--allow-change data\.fingerprint"):
        ofav2.resume(photos.run)
    before = (photos.run / "classes.json").read_bytes()
    with pytest.raises(UserError, match=r"holds other images, .* so results can't be kept as the run's"):
        measure_classes(photos.run)
    assert (photos.run / "classes.json").read_bytes() == before


def test_missing_images_are_left_out_and_counted_by_setting(broken: Photos, notes: Notes) -> None:
    before = ofav2.open_run(broken.run)
    (broken.images / "bee" / "003.png").unlink()
    after = ofav2.open_run(broken.run)
    assert "imagefolder: images that the run was trained with are missing: 1 (the first: bee/003.png)" in notes()
    assert names(after) == [[name for name in split or [] if name != "bee/003.png"] for split in names(before)]
    assert after.data.skipped == (*before.data.skipped, "image bee/003.png: is missing")
    assert not after.same_data


def test_a_run_that_skipped_an_image_goes_on_where_its_folder_was_moved(broken: Photos, tmp_path: Path) -> None:
    record = read_run(broken.run)
    (skipped,) = record.data.skipped.first
    assert skipped.startswith("image ant/005.png: ")
    broken.images.rename(tmp_path / "moved")
    overrides = [f"data.root={tmp_path / 'moved'}"]
    assert ofav2.resume(broken.run, overrides=overrides, allow=["data.root"]).record == record


def test_an_image_that_was_skipped_does_not_have_all_decoded_again(broken: Photos) -> None:
    cache = broken.run.parent / "cache"
    made = {path: path.stat().st_mtime_ns for path in cache.glob("imagefolder-*")}
    # The copied files have other times, but equal content.
    ofav2.open_run(broken.run)
    assert {path: path.stat().st_mtime_ns for path in cache.glob("imagefolder-*")} == made


@pytest.mark.parametrize("kind", ["photos", "broken"])
def test_pictures_that_were_added_and_cannot_be_used_are_left_out_and_counted(
    kind: str, request: pytest.FixtureRequest, notes: Notes
) -> None:
    run: Photos = request.getfixturevalue(kind)
    before = ofav2.open_run(run.run)
    (run.images / "ant" / "new.gif").write_bytes(b"GIF89a")
    shutil.copy(run.images / "bee" / "003.png", run.images / "stray.png")
    notes()
    after = ofav2.open_run(run.run)
    assert "pictures that can't be used and that the run was not trained with, left out: 2 (the first: " in notes()
    assert (names(after), after.data.skipped, after.same_data) == (names(before), before.data.skipped, True)


def test_an_image_that_was_mended_since_stays_left_out(broken: Photos) -> None:
    before = ofav2.open_run(broken.run)
    write_image(broken.images / "ant" / "005.png")
    after = ofav2.open_run(broken.run)
    assert (names(after), after.data.skipped, after.same_data) == (names(before), before.data.skipped, True)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("exif_orientation: true", "exif_orientation: false"),
        ("calibration_images: ", "calibration_images: 1"),
    ],
)
def test_other_preparation_than_the_runs_is_refused(before: str, after: str, photos: Photos) -> None:
    photos.set(before, after)
    with pytest.raises(RunError, match=r"restore its recipe\.yaml"):
        ofav2.open_run(photos.run)


def test_settings_that_draw_a_split_cant_be_changed_afterwards(photos: Photos) -> None:
    photos.set("val_fraction: 0.25", "val_fraction: 0.5")
    with pytest.raises(RunError, match=r"data\.val_fraction is 0\.5, and was 0\.25 when the run was trained"):
        ofav2.open_run(photos.run)


def test_a_run_goes_on_with_another_split_where_that_is_accepted(photos: Photos) -> None:
    change_facts(photos.run, lambda facts: facts.update(status="stopped"))
    before = json.loads((photos.run / "split.json").read_text())
    drawing = {"overrides": ["data.split_seed=1"], "allow": ["data.split_seed"]}
    with pytest.raises(RunError, match=r"data\.fingerprint was"):
        ofav2.resume(photos.run, **drawing)
    drawing["allow"].append("data.fingerprint")
    ofav2.resume(photos.run, **drawing)
    after = json.loads((photos.run / "split.json").read_text())
    assert after["test"] != before["test"]
    assert ofav2.open_run(photos.run).same_data
    assert ofav2.open_run(photos.run).data.test.images.names() == after["test"]["files"]


def test_a_lost_split_is_drawn_again_where_it_has_to_be_the_same(photos: Photos, notes: Notes) -> None:
    kept = (photos.run / "split.json").read_bytes()
    change_facts(photos.run, lambda facts: facts.update(status="stopped"))
    (photos.run / "split.json").unlink()
    assert ofav2.open_run(photos.run).same_data
    assert f"{photos.run / 'split.json'} is missing: it is drawn again" in notes()
    ofav2.resume(photos.run)
    assert (photos.run / "split.json").read_bytes() == kept, "and is kept again"
    (photos.run / "split.json").unlink()
    write_image(photos.images / "ant" / "0000.png")
    with pytest.raises(RunError, match=r"split\.json is missing, and the data set or its recipe has changed since"):
        ofav2.open_run(photos.run)


def test_the_split_of_another_run_is_refused(photos: Photos) -> None:
    change_facts(photos.run, lambda facts: facts["data"].update(fingerprint="ab" * 32))
    with pytest.raises(RunError, match=r"split\.json is of other images than run\.json"):
        ofav2.open_run(photos.run)


@pytest.mark.parametrize("what", ["run", "out"])
def test_folders_among_the_images_are_refused_before_any_work(what: str, photos: Photos) -> None:
    inside, opened = photos.images / "new", ofav2.open_run(photos.run)
    write: dict[str, Callable[[], object]] = {
        "run": lambda: ofav2.train(str(photos.run / "recipe.yaml"), run_dir=inside),
        "out": lambda: ofav2.extract(opened, opened.loaded.net.space.largest(), inside),
    }
    with pytest.raises(UserError, match=r"folder \(.*images/new\): lies in .*, where it would be taken for images"):
        write[what]()
    assert not inside.exists()


def test_calibration_refuses_other_classes_and_other_images(photos: Photos, tmp_path: Path) -> None:
    opened = ofav2.open_run(photos.run)
    ofav2.extract(opened, opened.loaded.net.space.largest(), tmp_path / "out", exits="all", formats=())
    write_image(photos.images / "ant" / "003.png", (9, 9))
    with pytest.raises(UserError, match="is not the one that the network was trained on"):
        ofav2.calibrate_exits(tmp_path / "out")
    # A network that is taken out now is the run's all the same, and not of these images.
    opened = ofav2.open_run(photos.run)
    ofav2.extract(opened, opened.loaded.net.space.largest(), tmp_path / "late", exits="all", formats=())
    with pytest.raises(UserError, match="is not the one that the network was trained on"):
        ofav2.calibrate_exits(tmp_path / "late")
    (photos.images / "ant").rename(photos.images / "zebra")
    with pytest.raises(UserError, match=r'class "ant" is missing, and class "zebra" was not there before'):
        ofav2.calibrate_exits(tmp_path / "out")
