"""Effects of choices: found where they are known, and none where there are none."""

from dataclasses import replace

import numpy as np
import pytest

from ofav2.nas import effects
from ofav2.nas.effects import LEAST_BODIES, choice_effects
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

    found = choice_effects(space, subnets, [value(subnet) for subnet in subnets], range(len(subnets)))
    assert found is not None
    first, second = found.factors[:2]
    assert (first.name, second.name) == ("stage 1 depth", "resolution")
    assert first.span == pytest.approx(0.4, abs=0.01)
    assert second.span == pytest.approx(0.05, abs=0.005)
    assert [choice.choice for choice in first.choices] == ["1", "2", "3"]
    assert all(factor.span < 0.01 for factor in found.factors[2:])
    assert found.explained > 0.99
    assert found.reliable


def test_a_choice_that_only_comes_with_another_is_not_credited_for_it(space: Space, subnets: list[Subnet]) -> None:
    # Depth decides; kernel 5 in stage 1 comes with depth 3 in nine of ten networks.
    rng = np.random.default_rng(2)
    chosen = [one for one in subnets if (one.kernel[0][0] == 5) == (one.depth[0] == 3) or rng.random() < 0.1]
    found = choice_effects(space, chosen, [float(one.depth[0]) for one in chosen], range(len(chosen)))
    assert found is not None
    spans = {factor.name: factor.span for factor in found.factors}
    assert spans["stage 1 depth"] == pytest.approx(2, abs=0.05)
    assert spans["stage 1 kernel"] < 0.1


def test_noise_explains_nothing_left_out(space: Space, subnets: list[Subnet]) -> None:
    noise = np.random.default_rng(3).normal(size=len(subnets)).tolist()
    found = choice_effects(space, subnets, noise, range(len(subnets)))
    assert found is not None
    assert found.explained < 0.1
    assert all(choice.effect < 4 * choice.error + 0.2 for factor in found.factors for choice in factor.choices)


@pytest.mark.parametrize("count", [8, 12, 20, 47])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_noise_explains_nothing_however_few_networks_there_are(space: Space, count: int, seed: int) -> None:
    """As many columns as networks or more fit any values exactly; those left out they don't."""
    rng = np.random.default_rng(seed)
    few = [space.sample(rng) for _ in range(count)]
    found = choice_effects(space, few, rng.normal(size=count).tolist(), range(count))
    assert found is not None
    # The best of 25 penalties, so a little above what one has.
    assert found.explained < 0.35


def test_noise_is_rarely_taken_for_effects_that_can_be_relied_on(space: Space) -> None:
    taken, above = 0, 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        few = [space.sample(rng) for _ in range(20)]
        found = choice_effects(space, few, rng.normal(size=20).tolist(), range(20))
        assert found is not None
        taken, above = taken + found.reliable, above + (found.explained > 0.1)
    assert taken <= 3
    assert above > 10, "what is explained is above 0 of noise, so 0 can't be the floor"


@pytest.mark.parametrize("count", [20, 40, 100])
def test_noise_that_exits_of_a_body_share_explains_nothing(space: Space, count: int) -> None:
    said, large, choices = [], 0, 0
    for seed in range(5):
        rng = np.random.default_rng(seed)
        subnets, values, bodies = [], [], []
        for body in range(count):
            drawn, noise = space.restrict(height=(max(space.height),)).sample(rng), float(rng.normal())
            for height in space.height:
                subnets.append(replace(drawn, height=height))
                values.append(noise)
                bodies.append(body)
        found = choice_effects(space, subnets, values, bodies)
        assert found is not None
        said.append(found.explained)
        shown = [choice for factor in found.factors for choice in factor.choices]
        large += sum(abs(choice.effect) > 2 * choice.error for choice in shown)
        choices += len(shown)
    assert np.median(said) < 0.1
    assert large < 0.1 * choices


def test_left_out_errors_are_those_of_fits_without_each_body(space: Space) -> None:
    """Beside a plain loop: fit to the other bodies, mean included, and predict."""
    rng = np.random.default_rng(5)
    target, groups = rng.normal(size=24), np.repeat(np.arange(8), 3)
    target = target - target.mean()
    design = rng.normal(size=(24, 30))
    design = design - design.mean(0)
    left, scales, _ = np.linalg.svd(design, full_matrices=False)
    rows = [np.flatnonzero(groups == group) for group in range(8)]
    for penalty in (1e-3, 1.0, 1e3):
        found = effects._left_out(left, scales**2 / (scales**2 + penalty), target, rows)
        for own in rows:
            others = np.setdiff1d(np.arange(24), own)
            centre, level = design[others].mean(0), target[others].mean()
            fitted = design[others] - centre
            slope = np.linalg.solve(fitted.T @ fitted + penalty * np.eye(30), fitted.T @ (target[others] - level))
            np.testing.assert_allclose(found[own], target[own] - level - (design[own] - centre) @ slope, rtol=1e-6)


def test_too_few_bodies_and_equal_values_have_no_effects(space: Space, subnets: list[Subnet]) -> None:
    few = subnets[:LEAST_BODIES]
    values = [float(one.resolution) for one in few]
    assert choice_effects(space, few, values, range(LEAST_BODIES)) is not None
    assert choice_effects(space, few, values, [0, *range(LEAST_BODIES - 1)]) is None
    assert choice_effects(space, subnets, [0.5] * len(subnets), range(len(subnets))) is None


def test_errors_are_those_of_repeated_noise(space: Space, subnets: list[Subnet]) -> None:
    """The stated error of the effect of resolution is the spread that other noise gives it."""
    seen, stated = [], []
    for seed in range(30):
        noise = np.random.default_rng(seed).normal(0, 0.1, len(subnets))
        values = [one.resolution / 4 + own for one, own in zip(subnets, noise, strict=True)]
        found = choice_effects(space, subnets, values, range(len(subnets)))
        assert found is not None
        resolution = next(factor for factor in found.factors if factor.name == "resolution")
        seen.append(resolution.choices[1].effect)
        stated.append(resolution.choices[1].error)
    assert np.std(seen) == pytest.approx(np.mean(stated), rel=0.5)


def test_errors_of_rare_and_frequent_choices_are_those_of_the_effects_shown(space: Space) -> None:
    """Nine of ten bodies have one resolution: its effect is near the mean, so its error is nine times smaller."""
    rng = np.random.default_rng(7)
    sides = rng.permutation([space.resolution[0]] * 90 + [space.resolution[1]] * 10)
    drawn = [replace(space.sample(rng), resolution=int(side)) for side in sides]
    effect, stated = [], []
    for seed in range(40):
        noise = np.random.default_rng(seed).normal(size=len(drawn)).tolist()
        found = choice_effects(space, drawn, noise, range(len(drawn)))
        assert found is not None
        resolution = next(factor for factor in found.factors if factor.name == "resolution")
        effect.append([choice.effect for choice in resolution.choices])
        stated.append([choice.error for choice in resolution.choices])
    spread, error = np.std(effect, 0), np.sqrt(np.mean(np.square(stated), 0))
    assert spread[1] == pytest.approx(9 * spread[0])
    np.testing.assert_allclose(error, spread, rtol=0.4)
