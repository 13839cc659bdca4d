"""Effects of choices: found where they are known, and none where there are none."""

import numpy as np
import pytest

from ofav2.nas.effects import LEAST_NETWORKS, choice_effects
from supernets import Space, Subnet
from tests.ofav2.tiny import tiny_net


@pytest.fixture(scope="module")
def space() -> Space:
    return tiny_net().space


@pytest.fixture(scope="module")
def subnets(space: Space) -> list[Subnet]:
    rng = np.random.default_rng(0)
    return [space.sample(rng) for _ in range(300)]


def test_additive_effects_are_found_with_their_names_and_order(space: Space, subnets: list[Subnet]) -> None:
    rng = np.random.default_rng(1)

    def value(subnet: Subnet) -> float:
        return 0.5 + 0.05 * (subnet.resolution == 20) + 0.2 * (subnet.depth[0] - 2) + float(rng.normal(0, 0.002))

    found = choice_effects(space, subnets, [value(subnet) for subnet in subnets])
    assert found is not None
    first, second = found.factors[:2]
    assert (first.name, second.name) == ("stage 1 depth", "resolution")
    assert first.span == pytest.approx(0.4, abs=0.01)
    assert second.span == pytest.approx(0.05, abs=0.005)
    assert [choice.choice for choice in first.choices] == ["1", "2", "3"]
    assert all(factor.span < 0.01 for factor in found.factors[2:])
    assert found.explained > 0.99


def test_a_choice_that_only_comes_with_another_is_not_credited_for_it(space: Space, subnets: list[Subnet]) -> None:
    # Depth decides; kernel 5 in stage 1 comes with depth 3 in nine of ten networks.
    rng = np.random.default_rng(2)
    chosen = [one for one in subnets if (one.kernel[0][0] == 5) == (one.depth[0] == 3) or rng.random() < 0.1]
    found = choice_effects(space, chosen, [float(one.depth[0]) for one in chosen])
    assert found is not None
    spans = {factor.name: factor.span for factor in found.factors}
    assert spans["stage 1 depth"] == pytest.approx(2, abs=0.05)
    assert spans["stage 1 kernel"] < 0.1


def test_noise_explains_nothing_left_out(space: Space, subnets: list[Subnet]) -> None:
    found = choice_effects(space, subnets, np.random.default_rng(3).normal(size=len(subnets)).tolist())
    assert found is not None
    assert found.explained < 0.1
    assert all(choice.effect < 4 * choice.error + 0.2 for factor in found.factors for choice in factor.choices)


def test_too_few_networks_and_equal_values_have_no_effects(space: Space, subnets: list[Subnet]) -> None:
    few = subnets[: LEAST_NETWORKS - 1]
    assert choice_effects(space, few, [float(one.resolution) for one in few]) is None
    assert choice_effects(space, subnets, [0.5] * len(subnets)) is None


def test_errors_are_those_of_repeated_noise(space: Space, subnets: list[Subnet]) -> None:
    """The stated error of the effect of resolution is the spread that other noise gives it."""
    seen, stated = [], []
    for seed in range(30):
        noise = np.random.default_rng(seed).normal(0, 0.1, len(subnets))
        found = choice_effects(
            space, subnets, [one.resolution / 4 + own for one, own in zip(subnets, noise, strict=True)]
        )
        assert found is not None
        resolution = next(factor for factor in found.factors if factor.name == "resolution")
        seen.append(resolution.choices[1].effect)
        stated.append(resolution.choices[1].error)
    assert np.std(seen) == pytest.approx(np.mean(stated), rel=0.5)
