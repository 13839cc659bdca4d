"""One trained run that many tests look at; a test that changes it takes a copy."""

import shutil
from pathlib import Path

import pytest

import ofav2
from ofav2.run import Run
from tests.ofav2 import tiny


@pytest.fixture(scope="session")
def tiny_recipe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Path of the recipe of `tiny_run`."""
    return tiny.written(tmp_path_factory.mktemp("recipes"), tiny.SIX, "six")


@pytest.fixture(scope="session")
def tiny_run(tiny_recipe: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run of all six phases; to look at only."""
    return ofav2.train(tiny_recipe, run_dir=tmp_path_factory.mktemp("runs") / "six")


@pytest.fixture
def run_copy(tiny_run: Run, tmp_path: Path) -> Path:
    """A copy of the run to damage."""
    return Path(shutil.copytree(tiny_run.folder, tmp_path / "copy"))


@pytest.fixture(scope="session")
def opened(tiny_run: Run) -> ofav2.OpenedRun:
    """The run, ready to judge; to look at only."""
    return ofav2.open_for_judging(tiny_run.folder)


@pytest.fixture(scope="session")
def extracted(opened: ofav2.OpenedRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sub-network that ends before the last exit, taken out of the run; to look at only."""
    path = tmp_path_factory.mktemp("extracted") / "middle"
    with pytest.MonkeyPatch.context() as patch:
        tiny.without_exports(patch)
        ofav2.extract(opened, tiny.middle(opened.loaded.net.space), path)
    return path
