"""A run does not begin with settings that would have no effect; one that began so goes on."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import ofav2
from ofav2.cli.main import main
from ofav2.config import recipe
from ofav2.data.seen import seen_digests
from ofav2.deploy.seen import read_seen
from ofav2.errors import RunError, UserError
from ofav2.runs.folder import INITIAL_IMAGES
from ofav2.runs.records import Run
from ofav2.training.beginning import check_beginning
from ofav2.training.setup import prepare
from tests.notes import Notes
from tests.ofav2 import tiny
from tests.ofav2.data.conftest import write_classes


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["subnets=4"], r"^phases\.full\.subnets \(4\): has no effect"),
        (["subnets=3", "sampler=sandwich"], r"^phases\.full\.subnets \(3\): has no effect"),
        (["sampler=marginals", 'networks=["{}"]'], r"^phases\.full\.sampler \(marginals\): has no effect"),
    ],
)
def test_a_phase_of_the_largest_network_alone_draws_nothing(
    settings: list[str], message: str, tiny_recipe: str, tmp_path: Path
) -> None:
    overrides = [f"phases.full.{setting}" for setting in settings]
    with pytest.raises(UserError, match=message):
        ofav2.train(tiny_recipe, overrides, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert main(["plan", tiny_recipe, *overrides]) == 2
    prepare(recipe.load(tiny_recipe, overrides))


def test_images_that_the_first_weights_saw_are_no_test_images_of_what_is_extracted(
    tiny_run: Run, tmp_path: Path, notes: Notes
) -> None:
    """Also of a run that started from a run that started from another one, and where those are gone."""
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    shutil.copytree(tiny_run.folder, first)
    text = tiny.SIX[: tiny.SIX.index("  kernel:")].replace(tiny.ALL_CORNERS, tiny.NO_CORNERS)
    recipe_file, settings = tiny.written(tmp_path, text), ["data.shots=2", "phases.full.epochs=1"]
    ofav2.train(recipe_file, [*settings, f"supernet.init={first}"], second)
    shutil.rmtree(first)
    ofav2.train(recipe_file, [*settings, "data.shots=3", f"supernet.init={second}"], third)
    assert "too good" not in notes(), "the same images are held out in all three"
    shutil.rmtree(second)
    opened = ofav2.open_run(third)
    written = ofav2.extract(opened, opened.loaded.net.space.largest(), tmp_path / "net", formats=())
    seen = read_seen(tmp_path / "net", written)
    before = seen_digests(ofav2.open_run(tiny_run.folder).data)
    own = seen_digests(opened.data)
    assert len(own) < len(before) / 2
    assert np.array_equal(seen, np.union1d(own, before))
    assert "is not known" not in notes()
    (third / INITIAL_IMAGES).write_bytes(b"x" * 48)
    with pytest.raises(RunError, match="is damaged"):
        ofav2.extract(opened, opened.loaded.net.space.largest(), tmp_path / "other", formats=())
    (third / INITIAL_IMAGES).unlink()
    ofav2.extract(opened, opened.loaded.net.space.largest(), tmp_path / "other", formats=())
    assert notes().count("started from is not known") == 1


def test_a_frozen_body_stays_as_it_is_in_every_phase(tiny_run: Run, tmp_path: Path) -> None:
    """Channels that a phase would sort by weight stay in the order in which the first run has trained their shares."""
    text = tiny.SIX.replace(tiny.ALL_CORNERS, tiny.NO_CORNERS)
    settings = [f"supernet.init={tiny_run.folder}", "supernet.frozen=true"]
    run = ofav2.train(tiny.written(tmp_path, text), settings, tmp_path / "run")
    before, after = (dict(ofav2.load_supernet(one.folder).named_parameters()) for one in (tiny_run, run))
    body = [name for name in before if not name.startswith("exits.")]
    assert body
    assert [name for name in body if not torch.equal(before[name], after[name])] == []
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_images_that_weights_before_the_first_ones_saw_are_held_out_images_no_more(
    tiny_run: Run, tmp_path: Path
) -> None:
    """A run on other images in between does not make them new."""
    for split in ("train", "test"):
        write_classes(tmp_path / "other" / split, {str(number): 2 for number in range(10)})
    text = tiny.SIX[: tiny.SIX.index("  kernel:")].replace(tiny.ALL_CORNERS, tiny.NO_CORNERS)
    recipe_file, between = tiny.written(tmp_path, text), tmp_path / "between"
    other = ["data.name=imagefolder", f"data.root={tmp_path / 'other'}", "data.batch_size=8", "data.val_fraction=0.5"]
    ofav2.train(recipe_file, [*other, f"supernet.init={tiny_run.folder}"], between)
    with pytest.raises(UserError, match=r"was trained on \d+ of the 50 images of this run's split test"):
        ofav2.train(recipe_file, ["data.split_seed=1", f"supernet.init={between}"], tmp_path / "run")


def test_a_path_may_begin_with_the_home_folder(tiny_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    shutil.copytree(tiny_run.folder, home / "first")
    monkeypatch.setenv("HOME", str(home))
    text = tiny.SIX[: tiny.SIX.index("  kernel:")].replace(tiny.ALL_CORNERS, tiny.NO_CORNERS)
    run = ofav2.train(tiny.written(tmp_path, text), ["run.folder=~/runs", "supernet.init=~/first"])
    assert run.folder == home / "runs" / "tiny"
    assert run.record.initial is not None


def test_shares_of_splits_that_a_data_set_brings_are_said_to_have_no_effect(tmp_path: Path, notes: Notes) -> None:
    for split in ("train", "test"):
        write_classes(tmp_path / "images" / split, {"a": 8, "b": 8})
    text = tiny.TWO.replace("name: digits", f"name: imagefolder, root: {tmp_path / 'images'}")
    settings = ["data.test_fraction=0.3", "data.val_fraction=0.4", "data.batch_size=4"]
    check_beginning(prepare(recipe.load(tiny.written(tmp_path, text), settings)))
    said = notes()
    assert "data.test_fraction (0.3): imagefolder brings its own test images, which count" in said
    assert "data.val_fraction" not in said
