"""Drawing: limits are kept, the least is exact, and rare networks are found."""

from collections.abc import Mapping, Sequence
from functools import cache
from itertools import product
from operator import le
from typing import Any

import numpy as np
import pytest

import supernets
from ofav2.errors import UserError
from ofav2.nas.candidates import draw_within, feasible
from ofav2.nas.cheapest import cheapest, within
from ofav2.nas.cost_model import CostModel, Price
from ofav2.nas.limits import UNITS, Limits
from supernets import Space, Subnet, Supernet
from tests.ofav2.nas.made_up import made_up_table

NAMES = tuple(UNITS)


def small(variant: str, **choices: Any) -> Supernet:
    options: dict[str, Any] = {"kernel": (3,), "expand": (2, 3), "depth": (1, 2), "resolutions": (33, 40)}
    return supernets.create(variant, num_classes=3, width_mult=0.1, **(options | choices))


def everything(net: Supernet, height: int, resolution: int) -> list[Subnet]:
    """Every network of two stages at most, spelt out."""
    space = net.space
    stages = [blocks for depth in space.depth for blocks in product(space.block_choices, repeat=depth)]
    return [
        Subnet(
            resolution=resolution,
            height=height,
            depth=tuple(len(blocks) for blocks in chosen),
            kernel=tuple(tuple(choice.kernel for choice in blocks) for blocks in chosen),
            expand=tuple(tuple(choice.expand for choice in blocks) for blocks in chosen),
            level=tuple(tuple(choice.level for choice in blocks) for blocks in chosen),
        )
        for chosen in product(stages, repeat=height)
    ]


@cache
def priced(variant: str) -> tuple[CostModel, Space, Mapping[tuple[int, int], Sequence[Price]]]:
    """A supernet's costs, the part of its space with two stages at most, and the prices of all networks in it."""
    # Two expansion ratios of parallel blocks would make 17,000 networks of two stages.
    net = small(variant, **({"expand": (2,)} if variant == "ee_dp" else {"kernel": (3, 5)}))
    model = CostModel(net.architecture, made_up_table(net.architecture, net.space))
    ends = product((33, 40), (1, 2))
    prices = {(side, height): [model.price(one) for one in everything(net, height, side)] for side, height in ends}
    return model, net.space.restrict(height=(1, 2)), prices


@pytest.mark.parametrize("names", [("params",), ("macs",), ("memory",), ("latency",), ("macs", "latency"), NAMES])
@pytest.mark.parametrize("variant", ["ee_dp", "ee_d"])
def test_the_least_is_that_of_all_networks(variant: str, names: tuple[str, ...]) -> None:
    model, space, prices = priced(variant)
    found = cheapest(model, space, names)
    assert set(found) == set(prices)
    for end, front in found.items():
        every = {tuple(getattr(price, name) for name in names) for price in prices[end]}
        best = {one for one in every if not any(all(map(le, two, one)) for two in every - {one})}
        assert {tuple(getattr(one.price, name) for name in names) for one in front} == best
        for one in front:
            assert one.price == model.price(one.subnet)
            assert one.subnet in space


def test_a_limit_just_above_the_least_is_met() -> None:
    net = small("ee_dp")
    model = CostModel(net.architecture)
    for name in ("params", "macs", "memory"):
        least = min(getattr(one.price, name) for ones in cheapest(model, net.space, (name,)).values() for one in ones)
        (only, *others) = draw_within(model, net.space, Limits(**{name: least}), candidates=3)
        assert all(getattr(model.price(subnet), name) == least for subnet in (only, *others))
        with pytest.raises(
            UserError, match=f"limit {name} .* is less than any network needs: the least is .*{least:,}"
        ):
            draw_within(model, net.space, Limits(**{name: least - 1}), candidates=3)


@pytest.mark.slow
def test_tight_limits_are_kept_by_many_different_networks() -> None:
    net = supernets.create("ee_dp", num_classes=10, resolutions=(32, 64))
    model, space = CostModel(net.architecture), net.space.restrict(height=(4, 5))
    fronts = cheapest(model, space, ("macs",)).values()
    limits = Limits(params=1_000_000, macs=min(one.price.macs for front in fronts for one in front) * 5 // 4)
    rng = np.random.default_rng(0)
    # Throwing away what misses would find nothing.
    assert not any(within(model.price(space.sample(rng)), limits) for _ in range(1000))
    found = draw_within(model, space, limits, candidates=40, seed=0)
    assert len(set(found)) == 40
    assert all(subnet in space and within(model.price(subnet), limits) for subnet in found)
    assert found == draw_within(model, space, limits, candidates=40, seed=0)
    assert found != draw_within(model, space, limits, candidates=40, seed=1)


def test_a_loose_limit_is_used_up() -> None:
    """Uniform draws cost about half of the largest network; whoever allows 80 % of it wants more than that."""
    net = supernets.create("se_b", num_classes=10, resolutions=(64,))
    model, space = CostModel(net.architecture), net.space
    largest = model.price(space.largest()).macs
    rng = np.random.default_rng(0)
    assert max(model.price(space.sample(rng)).macs for _ in range(100)) < 0.7 * largest
    found = draw_within(model, space, Limits(macs=largest * 8 // 10), candidates=40)
    assert sum(model.price(subnet).macs > 0.7 * largest for subnet in found) >= 10
    assert space.largest() in draw_within(model, space, Limits(macs=largest), candidates=40)


def test_without_limits_draws_reach_the_whole_space() -> None:
    net = small("ee_dp")
    found = draw_within(CostModel(net.architecture), net.space, Limits(), candidates=300)
    assert len(found) == 300
    assert {(subnet.resolution, subnet.height) for subnet in found} == set(product((33, 40), (1, 2, 3, 4, 5)))
    assert {choice for subnet in found for choice in subnet.blocks(0)} == set(net.space.block_choices)


def test_a_space_of_one_network_ends_the_search() -> None:
    net = small("se_b", expand=(2,), depth=(1,), resolutions=(33,))
    assert draw_within(CostModel(net.architecture), net.space, Limits(), candidates=50) == (net.space.smallest(),)


def test_limits_that_exclude_each_other() -> None:
    net = small("ee_dp")
    model = CostModel(net.architecture, made_up_table(net.architecture, net.space))
    fronts = cheapest(model, net.space, ("params", "latency")).values()
    prices = [one.price for front in fronts for one in front]
    least = Limits(params=min(price.params for price in prices), latency=min(price.latency for price in prices))
    with pytest.raises(UserError, match="by no network all at once") as caught:
        feasible(model, net.space, least)
    quickest = min(price.latency for price in prices if price.params <= (least.params or 0))
    assert f"latency {quickest}ns" in str(caught.value) or f"{quickest / 1000:.4g}" in str(caught.value)
    feasible(model, net.space, Limits(params=least.params, latency=quickest))


@pytest.mark.parametrize("candidates", [0, -1, 10**9, 1.5, True])
def test_candidates_are_a_number(candidates: Any) -> None:
    net = small("se_b")
    with pytest.raises(UserError, match="candidates"):
        draw_within(CostModel(net.architecture), net.space, Limits(), candidates=candidates)


def test_latency_needs_a_table() -> None:
    net = small("se_b")
    with pytest.raises(UserError, match="ofav2 latency RUN"):
        draw_within(CostModel(net.architecture), net.space, Limits(latency=1), candidates=1)
