"""A run does not begin with settings that would have no effect; one that began so goes on."""

from pathlib import Path

import pytest

import ofav2
from ofav2.cli.main import main
from ofav2.config import recipe
from ofav2.errors import UserError
from ofav2.training.setup import prepare


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
