"""A package that brings a task, installed for these tests, and a run of it."""

from collections.abc import Iterator

import pytest

import ofav2
from ofav2.runs.records import Run
from tests.ofav2 import tiny
from tests.ofav2.packages import describe_package
from tests.ofav2.tasks.recipes import RECIPE


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Make the entry point known as an installed package does."""
    folder = tmp_path_factory.mktemp("site-packages")
    describe_package(folder, "digit_value", "[ofav2.tasks]\ndigit_value = tests.ofav2.tasks.digit_value:make")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield


@pytest.fixture(scope="session")
def regression_run(installed: None, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run of the task; to look at only."""
    recipe = tiny.written(tmp_path_factory.mktemp("recipes"), RECIPE, "values")
    return ofav2.train(recipe, run_dir=tmp_path_factory.mktemp("runs") / "values")
