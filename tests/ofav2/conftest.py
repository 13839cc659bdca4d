"""One trained run that many tests look at; a test that changes it takes a copy."""

import fcntl
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ofav2
from ofav2.nas import adapt
from ofav2.runs.records import Run, read_run
from tests.ofav2 import tiny
from tests.ofav2.changes import change_facts
from tests.shared import made_once

MEASUREMENTS = 11
"""Measurements of the search in `searched`."""
QUICK = ofav2.SearchSettings(start=6, batch=2, population=16, generations=2, predictor="ridge")
"""Its settings."""
SHORT = ofav2.AdaptSettings(epochs=0.05)
"""Settings of the adaptation in `adapted`."""


@pytest.fixture(scope="session")
def tiny_recipe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Path of the recipe of `tiny_run`."""
    return tiny.written(tmp_path_factory.mktemp("recipes"), tiny.SIX, "six")


@pytest.fixture(scope="session")
def tiny_run(tiny_recipe: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run of all six phases; to look at only."""
    path = made_once(tmp_path_factory, "six", lambda path: ofav2.train(tiny_recipe, run_dir=path))
    return Run(path, read_run(path))


@pytest.fixture(scope="session")
def run_without_corners(tiny_recipe: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The same recipe trained again, which saves no state on its way and evaluates no corners; to look at only."""

    def make(path: Path) -> None:
        torch.manual_seed(1234)
        np.random.seed(5)
        random.seed(6)
        settings = ["evaluation.corners=none", "run.save_steps=0", "run.save_minutes=0"]
        ofav2.train(tiny_recipe, settings, path)

    path = made_once(tmp_path_factory, "without_corners", make)
    return Run(path, read_run(path))


@pytest.fixture
def run_copy(tiny_run: Run, tmp_path: Path) -> Path:
    """A copy of the run to damage."""
    return Path(shutil.copytree(tiny_run.folder, tmp_path / "copy"))


@pytest.fixture(scope="session")
def opened(tiny_run: Run) -> ofav2.OpenedRun:
    """The run, ready to evaluate; to look at only."""
    return ofav2.open_run(tiny_run.folder)


@pytest.fixture(scope="session")
def extracted(opened: ofav2.OpenedRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sub-network that ends before the last exit, taken out of the run; to look at only."""
    subnet = tiny.middle(opened.loaded.net.space)
    return made_once(tmp_path_factory, "middle", lambda path: ofav2.extract(opened, subnet, path, formats=()))


@pytest.fixture(scope="session")
def searched(tiny_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tiny run with a finished search in it, in its folder `search`; to look at only."""

    def make(path: Path) -> None:
        shutil.copytree(tiny_run.folder, path)
        ofav2.search(path, measurements=MEASUREMENTS, settings=QUICK, limits=ofav2.Limits(params=60_000))

    return made_once(tmp_path_factory, "searched", make)


def volumes(change: float) -> Callable[..., float]:
    """Hypervolumes of which each differs from the one before by this much."""
    found = iter(np.arange(0.5, 0.9, 0.1) if change > 0 else np.arange(0.5, 0.1, -0.1))
    return lambda *_: float(next(found))


@pytest.fixture(scope="session")
def adapted(searched: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a search whose adaptation was kept, whatever came out; to look at only."""

    def make(path: Path) -> None:
        shutil.copytree(searched, path)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(adapt, "hypervolume", volumes(0.1))
            ofav2.resume_search(path / "search", adapt=SHORT)

    return made_once(tmp_path_factory, "adapted", make)


@pytest.fixture
def half_run(run_copy: Path) -> Path:
    """A run in its third phase, cut in the middle of a line; nobody holds its lock."""

    def cut(facts: dict[str, Any]) -> None:
        del facts["phases"][2:]
        facts.update(status="training", test=None)

    change_facts(run_copy, cut)
    lines = (run_copy / "metrics.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    third = next(index for index, line in enumerate(lines) if '"phase": "level"' in line)
    (run_copy / "metrics.jsonl").write_text("".join(lines[: third + 1]) + '{"kind": "trai', encoding="utf-8")
    return run_copy


@pytest.fixture
def training_run(half_run: Path) -> Iterator[Path]:
    """The same while a process holds its lock."""
    with (half_run / ".lock").open("a", encoding="utf-8") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield half_run
