"""Genes: each network has one vector, costs are those of the cost model, limits are kept."""

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import supernets
from ofav2.errors import UserError
from ofav2.nas.cost_model import CostModel
from ofav2.nas.engine.archive import Archive
from ofav2.nas.engine.belief import describer
from ofav2.nas.engine.problem import Genes
from ofav2.nas.engine.start import spread_networks
from ofav2.nas.genes import HEIGHT, GeneSpace
from ofav2.nas.limits import Limits
from supernets.parts import BlockPart
from supernets.subnet_cost import Position
from tests.ofav2.nas.made_up import made_up_table

COSTS = ("macs", "params", "memory", "latency")


def genes_of(variant: str = "ee_dp", limits: Limits | None = None, costs: tuple[str, ...] = COSTS) -> GeneSpace:
    choices: dict[str, Any] = {"kernel": (3, 5), "expand": (2, 3), "depth": (1, 2, 3), "resolutions": (33, 40)}
    net = supernets.create(variant, num_classes=3, width_mult=0.1, **choices)
    model = CostModel(net.architecture, made_up_table(net.architecture, net.space))
    return GeneSpace(net.space, model, limits or Limits(), costs)


def drawn(genes: GeneSpace, count: int, seed: int = 0) -> Genes:
    """Vectors of which most are not canonical."""
    return np.random.default_rng(seed).integers(0, genes.choices, (count, len(genes.choices)))


def tight(genes: GeneSpace) -> Limits:
    """Limits that most networks break."""
    price = genes.model.price(genes.space.largest())
    return Limits(macs=price.macs // 4, memory=int(price.memory * 0.8), params=price.params // 3)


@pytest.mark.parametrize("variant", ["se_b", "ee_dp"])
def test_every_network_has_one_vector(variant: str) -> None:
    genes, rng = genes_of(variant), np.random.default_rng(0)
    for subnet in [genes.space.sample(rng) for _ in range(60)]:
        vector = genes.encode(subnet)
        assert genes.decode(vector) == subnet
        assert (genes.canonical(vector[None]) == vector).all()


@pytest.mark.parametrize("variant", ["se_b", "ee_dp"])
def test_any_vector_is_the_network_of_its_canonical_one(variant: str) -> None:
    genes = genes_of(variant)
    raw = drawn(genes, 60)
    canonical = genes.canonical(raw)
    assert (genes.canonical(canonical) == canonical).all()
    for vector, same in zip(raw, canonical, strict=True):
        assert genes.decode(vector) == genes.decode(same)
        assert (genes.encode(genes.decode(vector)) == same).all()


@pytest.mark.parametrize("variant", ["se_b", "ee_d", "ee_dp"])
def test_costs_are_those_of_the_cost_model(variant: str) -> None:
    genes = genes_of(variant)
    found = genes.canonical(drawn(genes, 60))
    prices = [genes.model.price(genes.decode(vector)) for vector in found]
    assert genes.costs(found).tolist() == [[getattr(price, name) for name in COSTS] for price in prices]
    assert genes.costs(found[:0]).shape == (0, len(COSTS))


@pytest.mark.parametrize("variant", ["se_b", "ee_dp"])
def test_traits_are_costs_of_whole_networks_and_of_their_stages(variant: str) -> None:
    genes = genes_of(variant)
    genes = replace(genes, space=genes.space.restrict(height=genes.space.height[:4]))
    found = genes.canonical(drawn(genes, 60))
    whole, stages = genes.traits(found)
    highest = max(genes.space.height)
    least = stages.reshape(60, highest, 2).min(0)
    for vector, own, by_stage in zip(found, whole, stages.reshape(60, highest, 2), strict=True):
        subnet = genes.decode(vector)
        price = genes.model.price(subnet)
        assert own.tolist() == [price.params, price.macs]
        for stage in range(highest):
            runs = stage < subnet.height
            blocks = [
                genes.model.block(
                    BlockPart(stage, place > 0, choice), Position(place, subnet.depth[stage]), subnet.resolution
                )
                for place, choice in enumerate(subnet.blocks(stage) if runs else ())
            ]
            # A stage of transformations alone may cost nothing, which has no logarithm.
            sums = [max(1, sum(getattr(block, name) for block in blocks)) for name in ("params", "macs")]
            assert by_stage[stage].tolist() == (sums if runs else least[stage].tolist())
    assert (least > 0).all()


def test_genes_without_effect_change_neither_features_nor_costs() -> None:
    genes, rng = genes_of(), np.random.default_rng(1)
    found = genes.canonical(drawn(genes, 40))
    other = np.where(genes.active(found), found, rng.integers(0, genes.choices, found.shape))
    assert (other != found).any()
    archive = Archive(found, np.zeros(40), genes.costs(found))
    describe = describer(genes_problem(genes), archive)
    assert (describe(other).values == describe(found).values).all()
    assert (genes.costs(other) == genes.costs(found)).all()


def genes_problem(genes: GeneSpace) -> Any:
    """The space is all of a problem but its measurements."""
    return genes


def test_repaired_networks_keep_the_limits_and_the_others_stay() -> None:
    free = genes_of()
    genes = replace(free, limits=tight(free))
    raw = drawn(genes, 80)
    repaired = genes.repair(raw, np.random.default_rng(0))
    assert genes.keeps_limits(repaired).all()
    assert (genes.canonical(repaired) == repaired).all()
    kept = genes.keeps_limits(genes.canonical(raw))
    assert 0 < kept.sum() < 80
    assert (repaired[kept] == genes.canonical(raw)[kept]).all()
    assert len(np.unique(repaired, axis=0)) > 60
    for vector in repaired[:20]:
        price = genes.model.price(genes.decode(vector))
        assert all(getattr(price, name) <= most for name, most in genes.limits.named.items())


def test_networks_move_to_a_place_that_can_keep_the_limits() -> None:
    free = genes_of()
    least = min(free.costs(free.anchors())[:, 1])
    genes = replace(free, limits=Limits(params=int(least)))
    repaired = genes.repair(drawn(genes, 30), np.random.default_rng(0))
    assert set(genes.costs(repaired)[:, 1]) == {least}


def test_limits_that_no_network_keeps_are_refused_at_once() -> None:
    genes = genes_of(limits=Limits(macs=10))
    with pytest.raises(UserError, match=r"limit macs \(10\) is less than any network needs: the least is"):
        genes.repair(drawn(genes, 3), np.random.default_rng(0))


def test_anchors_are_the_cheapest_and_the_largest_networks() -> None:
    genes = genes_of()
    anchors = {genes.decode(vector) for vector in genes.anchors()}
    assert genes.space.largest() in anchors
    macs = min(genes.model.price(genes.decode(vector)).macs for vector in genes.canonical(drawn(genes, 200)))
    assert min(genes.model.price(anchor).macs for anchor in anchors) <= macs
    assert len({(anchor.resolution, anchor.height) for anchor in anchors}) == 10


def test_nested_networks_are_the_body_cut_at_each_exit_within_the_limits() -> None:
    free = genes_of()
    body = free.encode(free.space.uniform(height=4))
    nested = [free.decode(vector) for vector in free.nested(body)]
    assert nested == [replace(free.decode(body), height=height) for height in (1, 2, 3, 4)]
    macs = free.costs(free.nested(body))[:, 0]
    limited = replace(free, limits=Limits(macs=int(macs[1])))
    assert [limited.decode(vector).height for vector in limited.nested(body)] == [
        height for height, cost in zip((1, 2, 3, 4), macs, strict=True) if cost <= macs[1]
    ]


def test_depths_and_exits_of_drawn_networks_are_even() -> None:
    genes = genes_of()
    found = genes.repair(drawn(genes, 6000), np.random.default_rng(0))
    exits = Counter(found[:, HEIGHT].tolist())
    assert all(abs(count / 6000 - 1 / 5) < 0.02 for count in exits.values())
    depths = Counter(found[:, 2].tolist())
    assert all(abs(count / 6000 - 1 / 3) < 0.02 for count in depths.values())


def test_spread_networks_reach_from_the_cheapest_to_the_most_expensive() -> None:
    genes = genes_of("se_b", costs=("macs",))
    costs = genes.costs(spread_networks(genes_problem(genes), np.random.default_rng(0), 400))[:, 0]
    uniform = genes.costs(genes.canonical(drawn(genes, 400)))[:, 0]
    assert np.ptp(costs) > 1.3 * np.ptp(uniform)
