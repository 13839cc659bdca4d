"""Samplers draw what they say, from the generator that they are given."""

import numpy as np
import pytest

from ofav2.config.schema import PhaseConfig
from ofav2.training.samplers import SAMPLERS, Largest, Sandwich, Uniform
from tests.ofav2.tiny import tiny_net

SPACE = tiny_net("ee_dp").space


@pytest.mark.parametrize("count", [1, 2, 5])
def test_uniform_draws_one_after_the_other(count: int) -> None:
    drawn = Uniform(count).draw(SPACE, np.random.default_rng(3))
    generator = np.random.default_rng(3)
    assert drawn == tuple(SPACE.sample(generator) for _ in range(count))


@pytest.mark.parametrize("count", [2, 3, 6])
def test_a_sandwich_has_both_ends_and_random_ones_between(count: int) -> None:
    drawn = Sandwich(count).draw(SPACE, np.random.default_rng(4))
    assert drawn[:2] == (SPACE.largest(), SPACE.smallest())
    assert drawn[2:] == Uniform(count - 2).draw(SPACE, np.random.default_rng(4))
    assert len(drawn) == count


@pytest.mark.parametrize("name", SAMPLERS)
def test_all_draws_lie_in_the_space(name: str) -> None:
    space = SPACE.restrict(resolution=(20,), kernel=(5,), depth=(2, 3), height=(2, 4))
    for seed in range(20):
        assert all(subnet in space for subnet in SAMPLERS[name](4).draw(space, np.random.default_rng(seed)))


def test_recipes_can_name_every_sampler_and_no_other() -> None:
    assert set(SAMPLERS) == set(PhaseConfig.__annotations__["sampler"].__args__)


def test_the_largest_network_is_drawn_without_a_random_number() -> None:
    rng = np.random.default_rng(5)
    before = rng.bit_generator.state
    assert Largest().draw(SPACE, rng) == (SPACE.largest(),)
    assert rng.bit_generator.state == before
