"""A run's recipe is what its record says; where images lie and what computes may be edited in `recipe.yaml`."""

from pathlib import Path

import pytest

from ofav2.errors import RunError
from ofav2.runs.kept_recipe import kept_recipe, trained_recipe
from ofav2.runs.records import Run
from tests.notes import Notes


def edit(run: Path, before: str, after: str) -> None:
    file = run / "recipe.yaml"
    assert before in file.read_text()
    file.write_text(file.read_text().replace(before, after))


def test_a_lost_recipe_is_taken_from_the_record(tiny_run: Run, run_copy: Path, notes: Notes) -> None:
    (run_copy / "recipe.yaml").unlink()
    assert kept_recipe(run_copy, tiny_run.record) == kept_recipe(tiny_run.folder, tiny_run.record)
    assert "recipe.yaml is missing: its settings are taken from run.json" in notes()


def test_another_device_is_taken_and_said(tiny_run: Run, run_copy: Path, notes: Notes) -> None:
    edit(run_copy, "device: cpu", "device: auto")
    found = kept_recipe(run_copy, tiny_run.record)
    assert (found.run.device, trained_recipe(run_copy, tiny_run.record).run.device) == ("auto", "cpu")
    assert "recipe.yaml was edited since the run was trained: run.device" in notes()


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("val_fraction: 0.02", "val_fraction: 0.5", r"data\.val_fraction is 0\.5, and was 0\.02"),
        ("seed: 0", "seed: 1", r"run\.seed is 1, and was 0"),
        ("eval_crop: 0.875", "eval_crop: 0.75", r"data\.eval_crop is 0\.75, and was 0\.875"),
    ],
)
def test_what_made_the_run_is_not_changed(before: str, after: str, message: str, tiny_run: Run, run_copy: Path) -> None:
    edit(run_copy, f"  {before}\n", f"  {after}\n")
    with pytest.raises(RunError, match=message + r" when the run was trained: restore its recipe\.yaml"):
        kept_recipe(run_copy, tiny_run.record)
