"""Several runs as one space: one more gene, each network of its own run, and a single run as before."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import supernets
from ofav2.nas.cost_model import CostModel
from ofav2.nas.engine.problem import Genes
from ofav2.nas.genes import GeneSpace
from ofav2.nas.limits import Limits
from ofav2.nas.runs_problem import RunNetwork, RunsProblem
from ofav2.nas.supernet_problem import SupernetProblem
from supernets import Subnet


def part(width: float, limits: Limits) -> SupernetProblem:
    """A run's problem whose measurements are costs."""
    choices: dict[str, Any] = {"kernel": (3, 5), "expand": (2, 3), "depth": (1, 2), "resolutions": (33, 40)}
    net = supernets.create("ee_dp", num_classes=3, width_mult=width, **choices)
    genes = GeneSpace(net.space, CostModel(net.architecture), limits, ("macs", "params"))
    values: dict[Subnet, float] = {}
    store: Any = SimpleNamespace(get=lambda subnet: values.setdefault(subnet, width), known=values)
    metric = SimpleNamespace(rank=lambda value: value, best=lambda *values: max(values))
    evaluator = SimpleNamespace(task=SimpleNamespace(metrics=(metric,)), scores=lambda *_: iter(()))
    run: Any = SimpleNamespace(evaluator=evaluator, loaded=SimpleNamespace(net=net))
    images: Any = None
    return SupernetProblem(run, genes, images, store, lambda value: None)


def limited() -> Limits:
    space = part(0.1, Limits()).genes
    return Limits(params=space.model.price(space.space.largest()).params // 2)


@pytest.fixture(scope="module")
def both() -> RunsProblem:
    return RunsProblem((part(0.1, limited()), part(0.2, limited())))


def drawn(problem: RunsProblem, count: int = 40) -> Genes:
    return np.random.default_rng(3).integers(0, problem.choices, (count, len(problem.choices)))


def test_a_single_run_is_searched_as_it_was() -> None:
    own = part(0.1, limited())
    problem, genes = RunsProblem((own,)), drawn(RunsProblem((own,)))
    assert problem.choices == own.genes.choices
    canonical = problem.repair(genes, np.random.default_rng(1))
    assert (canonical == own.genes.repair(genes, np.random.default_rng(1))).all()
    for name in ("active", "costs"):
        assert (getattr(problem, name)(canonical) == getattr(own.genes, name)(canonical)).all()
    assert (problem.anchors() == own.genes.anchors()).all()
    assert (problem.nested(canonical[0]) == own.genes.nested(canonical[0])).all()
    assert problem.decode(canonical[0]) == RunNetwork(0, own.genes.decode(canonical[0]))


def test_every_network_has_the_genes_and_costs_of_its_run(both: RunsProblem) -> None:
    assert both.choices == (2, *both.parts[0].genes.choices)
    genes = both.repair(drawn(both), np.random.default_rng(2))
    assert set(genes[:, 0]) == {0, 1}
    assert (both.repair(genes, np.random.default_rng(4)) == genes).all()
    assert both.active(genes)[:, 0].all()
    for row, active, costs in zip(genes, both.active(genes), both.costs(genes), strict=True):
        network = both.decode(row)
        own = both.parts[row[0]]
        assert (network.run, network.subnet) == (row[0], own.genes.decode(row[1:]))
        assert (both.encode(network) == row).all()
        assert (active[1:] == own.genes.active(row[None, 1:])[0]).all()
        assert costs.tolist() == list(own.genes.model.price(network.subnet)[1::-1])
        assert both.price(network) == own.genes.model.price(network.subnet)
        assert both.all_costs(network)["params"] <= limited().named["params"]
        nested = both.nested(row)
        assert (nested[:, 0] == row[0]).all()
        assert (nested[:, 1:] == own.genes.nested(row[1:])).all()


def test_anchors_are_those_of_each_run(both: RunsProblem) -> None:
    anchors = both.anchors()
    for run, own in enumerate(both.parts):
        assert (anchors[anchors[:, 0] == run][:, 1:] == own.genes.anchors()).all()


def test_bodies_are_measured_in_their_run_and_a_part_of_them_in_the_same_order(both: RunsProblem) -> None:
    bodies = both.repair(drawn(both, 9), np.random.default_rng(5))
    measured = dict(both.measure(bodies))
    assert sorted(measured) == list(range(9))
    for place, losses in measured.items():
        assert losses.tolist() == [(-0.1, -0.2)[bodies[place, 0]]] * len(both.nested(bodies[place]))
    left = [place for place, _ in both.measure(bodies)][2:]
    assert [sorted(left)[place] for place, _ in both.measure(bodies[sorted(left)])] == left


def test_networks_may_all_be_of_one_run(both: RunsProblem) -> None:
    genes = both.repair(drawn(both), np.random.default_rng(6))
    wide = genes[genes[:, 0] == 1]
    assert (both.costs(wide) == both.costs(genes)[genes[:, 0] == 1]).all()
    for group, own in zip(both.traits(wide), both.parts[1].genes.traits(wide[:, 1:]), strict=True):
        assert (group == own).all()
    assert sorted(place for place, _ in both.measure(wide)) == list(range(len(wide)))


def test_no_networks_cost_nothing(both: RunsProblem) -> None:
    assert both.costs(drawn(both, 0)).shape == (0, 2)
