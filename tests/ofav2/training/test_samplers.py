"""Samplers draw what they say, from the generator that they are given."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from ofav2.config.schema import PhaseConfig, TeacherConfig
from ofav2.errors import UserError
from ofav2.training.phases import make_plan
from ofav2.training.samplers import SAMPLERS, Largest, Marginals, Sandwich, Uniform, batch_resolutions
from supernets import Subnet
from tests.ofav2.tiny import phase_config, tiny_net, two_phases

SPACE = tiny_net("ee_dp").space
FRONT = tuple(SPACE.sample(np.random.default_rng([7, number])) for number in range(9))


def made(name: str) -> PhaseConfig:
    """Settings of a phase with this sampler."""
    networks = tuple(one.to_json() for one in FRONT) if name == "marginals" else ()
    config: PhaseConfig = phase_config(subnets=4, sampler=name, networks=networks)
    return config


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
        assert all(subnet in space for subnet in SAMPLERS[name](made(name)).draw(space, np.random.default_rng(seed)))


def shares(networks: Sequence[Subnet], gene: Callable[[Subnet], object]) -> dict[object, float]:
    """How often each choice of a gene is made, among networks that have it to make."""
    found = [choice for choice in map(gene, networks) if choice is not None]
    return {choice: number / len(found) for choice, number in Counter(found).items()}


def of_block(name: str, stage: int, block: int) -> Callable[[Subnet], object]:
    """Reads a block's choice; None of a network that lacks the block."""
    return lambda one: getattr(one, name)[stage][block] if one.height > stage and one.depth[stage] > block else None


def of_stage(stage: int) -> Callable[[Subnet], object]:
    """Reads a stage's depth; None of a network that ends before it."""
    return lambda one: one.depth[stage] if one.height > stage else None


def test_marginals_are_those_of_the_given_networks() -> None:
    """All genes of 2,500 draws, within .05 total variation (fault B1 of NATv2's code: uniform, whatever was given)."""
    drawn = Marginals(2_500, FRONT).draw(SPACE, np.random.default_rng(8))
    blocks = product(("kernel", "expand", "level"), range(5), range(3))
    genes = [lambda one: one.height, *map(of_stage, range(5)), *(of_block(*place) for place in blocks)]
    compared = 0
    for gene in genes:
        expected, found = shares(FRONT, gene), shares(drawn, gene)
        if expected and sum(gene(one) is not None for one in drawn) > 500:
            choices = expected.keys() | found.keys()
            assert sum(abs(expected.get(choice, 0) - found.get(choice, 0)) for choice in choices) / 2 < 0.05
            compared += 1
    assert compared > 20


def test_batches_have_the_networks_resolutions_as_often_as_these() -> None:
    small, large = (replace(SPACE.largest(), resolution=side) for side in (16, 24))
    drawn = batch_resolutions(Marginals(1, (small, large, large)), (16, 20, 24))
    found = {side: drawn.count(side) / len(drawn) for side in (16, 20, 24)}
    assert found == pytest.approx({16: 1 / 3, 20: Marginals.EVEN / 3, 24: 2 / 3}, abs=0.02)
    assert batch_resolutions(Uniform(2), (16, 20)) == (16, 20)


def test_a_gene_that_is_mostly_one_value_is_drawn_so() -> None:
    small, large = SPACE.smallest(), SPACE.largest()
    drawn = Marginals(1_500, (small,) * 14 + (large,) * 11).draw(SPACE, np.random.default_rng(9))
    assert np.mean([one.depth[0] == small.depth[0] for one in drawn]) == pytest.approx(0.56, abs=0.04)


def test_what_no_network_decides_is_drawn_evenly() -> None:
    short = Subnet.from_dict(SPACE.largest().to_dict() | {"height": 1})
    drawn = [one for one in Marginals(1_500, (short,)).draw(SPACE, np.random.default_rng(10)) if one.height > 1]
    assert len(drawn) > 20
    assert {one.depth[1] for one in drawn} == set(SPACE.depth)


def test_a_phase_with_marginals_may_unlock_nothing() -> None:
    phases = {**two_phases(), "adapt": made("marginals")}
    last = make_plan(phases, TeacherConfig("progressive"), SPACE, 5).phases[-1]
    assert last.sampler == Marginals(4, FRONT)
    assert last.space == SPACE
    assert (last.unlocks, last.teacher, last.objective) == ("nothing more", "progressive", "distill")
    assert last.sentence.startswith("phase adapt: sub-networks may differ as before; each step trains ")
    with pytest.raises(UserError, match=r"phases\.adapt\.unlock"):
        make_plan({**phases, "adapt": made("uniform")}, TeacherConfig("progressive"), SPACE, 5)
    wrong = phase_config(sampler="marginals", networks=('{"resolution": 3}',))
    with pytest.raises(UserError, match=r"phases.adapt.networks: .*"):
        make_plan({**phases, "adapt": wrong}, TeacherConfig("progressive"), SPACE, 5)


def test_recipes_can_name_every_sampler_and_no_other() -> None:
    assert set(SAMPLERS) == set(PhaseConfig.__annotations__["sampler"].__args__)


def test_the_largest_network_is_drawn_without_a_random_number() -> None:
    rng = np.random.default_rng(5)
    before = rng.bit_generator.state
    assert Largest().draw(SPACE, rng) == (SPACE.largest(),)
    assert rng.bit_generator.state == before
