"""The faults of NATv2's code, which a search here must not have: a test for each, here or where its module is tested.

B1 and B2 are about draws of adaptation, B14 to B16 about fine-tuning and data, B12, B13, B25 about training, B17 to B19
about supernets, B20 and B21 about latencies, B23 about logs.
"""

import ast
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import supernets
from ofav2.config.schema import OptimConfig
from ofav2.evaluation.corners import chosen_corners
from ofav2.nas.cost_model import CostModel
from ofav2.nas.engine.archive import Archive
from ofav2.nas.engine.fronts import on_front
from ofav2.nas.engine.start import spread_networks
from ofav2.nas.found import Finalist, Found, FrontRecord
from ofav2.nas.genes import GeneSpace
from ofav2.nas.latency import measure_latency
from ofav2.nas.limits import Limits
from ofav2.report.networks import tables
from ofav2.runs.records import Run
from ofav2.runs.snapshot import read_snapshot
from ofav2.tasks.base import Metric
from ofav2.training.optim import make_updates
from tests.ofav2.nas.engine.tables import SmallTable
from tests.test_architecture import ROOT

HERE, TESTS = Path(__file__).relative_to(ROOT), "tests/ofav2"
FAULTS = {
    "B1": f"{TESTS}/training/test_samplers.py::test_a_gene_that_is_mostly_one_value_is_drawn_so",
    "B2": f"{TESTS}/training/test_samplers.py::test_marginals_are_those_of_the_given_networks",
    "B3": f"{TESTS}/nas/test_genes.py::test_every_network_has_one_vector",
    "B4": f"{TESTS}/nas/engine/test_evolution.py::test_only_canonical_networks_within_the_limits_are_ever_looked_at",
    "B5": f"{TESTS}/nas/test_genes.py::test_genes_without_effect_change_neither_features_nor_costs",
    "B6": f"{HERE}::test_depths_of_the_first_networks_are_even_apart_from_the_anchors",
    "B7": f"{TESTS}/nas/test_search.py::test_a_killed_search_goes_on_to_the_same_bytes",
    "B8": f"{HERE}::test_networks_with_equal_objectives_are_kept_once_each",
    "B9": f"{TESTS}/nas/engine/test_loop.py::test_global_random_states_are_untouched",
    "B10": f"{TESTS}/nas/engine/test_predictors.py::test_a_span_of_forty_points_is_predicted_with_one_of_at_least_36",
    "B11": f"{TESTS}/nas/test_search.py::test_the_order_of_objectives_changes_nothing",
    "B12": f"{HERE}::test_the_gradients_of_all_parameters_are_clipped_together",
    "B13": f"{HERE}::test_corners_are_the_same_at_every_validation",
    "B14": f"{TESTS}/finetuning/test_run.py::test_test_images_are_looked_at_once_after_all_training",
    "B15": f"{TESTS}/data/test_splits.py::test_a_draw_is_disjoint_exhaustive_stratified_and_stable",
    "B16": f"{TESTS}/data/test_loaders.py::test_calibration_takes_a_fixed_part_of_the_training_split",
    "B17": f"{HERE}::test_a_supernet_of_any_number_of_classes_can_be_searched",
    "B18": f"{HERE}::test_heads_are_widened_once",
    "B19": f"{HERE}::test_dense_sums_leave_stored_outputs_unchanged",
    "B20": f"{HERE}::test_timing_leaves_the_network_as_it_was",
    "B21": f"{TESTS}/nas/test_latency.py::test_calls_threads_and_batch_are_as_said",
    "B22": f"{HERE}::test_the_unit_of_a_cost_changes_no_choice",
    "B23": f"{TESTS}/runs/test_metrics_file.py::test_a_torn_last_line_is_ignored_and_cut_off_before_going_on",
    "B24": f"{TESTS}/nas/test_search.py::test_a_score_that_is_not_finite_is_refused_and_not_kept",
    "B25": f"{TESTS}/cli/test_main.py::test_a_run_of_a_recipe_with_a_base_keeps_it_resolved",
}
"""A test of each fault."""


@cache
def functions(path: str) -> frozenset[str]:
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


@pytest.mark.parametrize("fault", [f"B{number}" for number in range(1, 26)])
def test_every_fault_has_its_test(fault: str) -> None:
    path, _, name = FAULTS[fault].partition("::")
    assert name in functions(path)


def small(classes: int = 5, variant: str = "ee_dp", width_mult: float = 0.25) -> supernets.Supernet:
    return supernets.create(variant, num_classes=classes, width_mult=width_mult, resolutions=(32, 48))


def test_depths_of_the_first_networks_are_even_apart_from_the_anchors() -> None:
    net = small()
    space = net.space.restrict(height=(max(net.space.height),))
    genes = GeneSpace(space, CostModel(net.architecture), Limits(), ("macs",))
    problem = SimpleNamespace(choices=genes.choices, anchors=genes.anchors, repair=genes.repair)
    drawn = spread_networks(problem, np.random.default_rng(0), 4_000)  # type: ignore[arg-type]
    stages = [2 + stage * (1 + 3 * space.blocks) for stage in range(space.stages)]
    for stage in stages:
        for choice in range(len(space.depth)):
            share = (genes.anchors()[:, stage] == choice).mean() / 2 + 1 / (2 * len(space.depth))
            assert (drawn[:, stage] == choice).mean() == pytest.approx(share, abs=0.04)


def test_networks_with_equal_objectives_are_kept_once_each() -> None:
    table = SmallTable()
    genes = table.everything()[:6]
    archive = Archive.empty(table).plus(table, np.concatenate([genes, genes]), np.zeros(12))
    assert len(archive) == 6
    assert on_front(np.zeros((6, 2))).sum() == 1


def test_the_gradients_of_all_parameters_are_clipped_together() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    for images in (torch.ones(1, 3), torch.ones(2, 3)):
        (net(images).sum() * 100).backward()
    config = OptimConfig(grad_clip=1.0)
    before = make_updates(net, config, steps=4, warmup_steps=1, peak=0.1).clip(list(net.parameters()))
    gradients = [one.grad for one in net.parameters() if one.grad is not None]
    assert len(gradients) == 4
    assert before > 1
    assert float(nn.utils.get_total_norm(gradients)) == pytest.approx(1.0, abs=1e-4)


def test_corners_are_the_same_at_every_validation(tiny_run: Run) -> None:
    measured = {table.name: table for table in tables(read_snapshot(tiny_run.folder))}
    last = tiny_run.record.phases[-1]
    corners = {*chosen_corners(last.space, "all")}
    assert len(corners) > 10
    for name in (f"{last.name}/corners", "test/corners"):
        assert {network.subnet for network in measured[name].networks} == corners


def test_a_supernet_of_any_number_of_classes_can_be_searched() -> None:
    net = supernets.create("ee_dp", num_classes=7, width_mult=0.1, expand=(3,), depth=(2,), resolutions=(48,))
    genes = GeneSpace(net.space, CostModel(net.architecture), Limits(), ("params",))
    row = genes.encode(net.space.largest())
    module = net.extract(genes.decode(row))
    assert module(torch.zeros(1, 3, 48, 48)).shape == (1, 7)
    assert genes.costs(row[None])[0, 0] == sum(one.numel() for one in module.parameters())


def test_heads_are_widened_once() -> None:
    """At width 1.2 the last exit has 1,152 and 1,536 channels, not 1,384 and 1,840."""
    net = supernets.create("ee_b", num_classes=10, width_mult=1.2)
    last = net.extract(net.space.largest())
    sizes = [tuple(one.shape[:2]) for name, one in last.named_parameters() if name.endswith("weight")]
    assert (1536, 1152) in sizes


def test_dense_sums_leave_stored_outputs_unchanged() -> None:
    net = small(variant="ee_d").eval()
    outputs: list[tuple[torch.Tensor, torch.Tensor]] = []

    def keep(_: nn.Module, __: object, made: torch.Tensor) -> None:
        outputs.append((made, made.clone()))

    for stage in net.stages:
        for block in stage.blocks:
            block.register_forward_hook(keep)
    with torch.inference_mode():
        net(torch.randn(2, 3, 48, 48), net.space.largest())
    assert len(outputs) == 20
    assert all(torch.equal(made, before) for made, before in outputs)


def test_timing_leaves_the_network_as_it_was() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    before = {name: value.clone() for name, value in net.state_dict().items()}
    measure_latency(net, torch.randn(1, 3, 8, 8), warmup=1, repeats=2)
    assert net.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize("factor", [1.0, 1e-6, 1e9])
def test_the_unit_of_a_cost_changes_no_choice(factor: float) -> None:
    rng = np.random.default_rng(1)
    costs, subnet = np.sort(rng.random(9)) + 1, small().space.smallest()
    values = 1 - 0.5 / costs + 0.01 * rng.random(9)
    finalists = tuple(
        Finalist(0, subnet, 1, 1, 1, 0, searched=value, confirmed=value, own={"energy": factor * cost})
        for cost, value in zip(costs.tolist(), values.tolist(), strict=True)
    )
    front = FrontRecord(9, 9, finalists, 0.0, None)
    record = SimpleNamespace(costs=("energy",), metric=Metric("top-1", "%", True))
    found = Found(Path("search"), record, front)  # type: ignore[arg-type]
    plain = replace(
        found,
        front=replace(
            front, finalists=tuple(replace(one, own={"energy": one.own["energy"] / factor}) for one in finalists)
        ),
    )
    assert finalists.index(found.knee()) == plain.front.finalists.index(plain.knee())
