"""A plan is the paper's table, and an order that cannot work is refused by its key before anything is computed."""

import dataclasses
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import Any

import pytest

import supernets
from distill import DistillError, exit_weights
from ofav2.config import recipe
from ofav2.config.schema import PhaseConfig, TeacherConfig, UnlockConfig
from ofav2.errors import UserError
from ofav2.training.phases import PLAN_COLUMNS, make_plan, plan_table
from supernets import Space

# OFAv2, extended progressive shrinking on Tiny ImageNet: dimension, choices after the phase, epochs after the
# warm-up, warm-up epochs, learning rate, sub-networks per step.
PAPER: dict[str, tuple[str, tuple[int, ...], int, int, float, int]] = {
    "kernel": ("kernel", (3, 5, 7), 120, 5, 0.03, 1),
    "level_1": ("level", (2, 3), 25, 0, 0.0025, 2),
    "level_2": ("level", (1, 2, 3), 120, 5, 0.0075, 2),
    "height_1": ("height", (4, 5), 25, 0, 0.001875, 2),
    "height_2": ("height", (3, 4, 5), 60, 5, 0.00375, 2),
    "height_3": ("height", (2, 3, 4, 5), 90, 5, 0.0075, 2),
    "height_4": ("height", (1, 2, 3, 4, 5), 120, 5, 0.015, 2),
    "depth_1": ("depth", (3, 4), 25, 0, 0.0025, 2),
    "depth_2": ("depth", (2, 3, 4), 120, 5, 0.0075, 2),
    "expand_1": ("expand", (4, 6), 25, 0, 0.0025, 4),
    "expand_2": ("expand", (3, 4, 6), 120, 5, 0.0075, 4),
}
STEPS_PER_EPOCH = 85_000 // 64
PROGRESSIVE = TeacherConfig("progressive")
LARGEST = {"kernel": (7,), "level": (3,), "height": (5,), "depth": (4,), "expand": (6,)}


def space_of(variant: str, **choices: Any) -> Space:
    return supernets.create(variant, num_classes=200, width_mult=0.05, **choices).space


def lacking(variant: str) -> set[str]:
    return ({"height"} if variant.startswith("se") else set()) | ({"level"} if "p" not in variant[2:] else set())


@pytest.mark.parametrize("variant", supernets.names())
def test_the_papers_phases(variant: str) -> None:
    space = space_of(variant)
    plan = make_plan(recipe.load("tiny_imagenet_paper").phases, PROGRESSIVE, space, STEPS_PER_EPOCH)
    expected = {name: row for name, row in PAPER.items() if row[0] not in lacking(variant)}
    assert [phase.name for phase in plan.phases] == ["full", *expected]

    full, *elastic = plan.phases
    assert (full.objective, full.teacher, full.steps, full.warmup_steps) == ("joint", "none", 180 * 1328, 0)
    assert (full.config.lr, full.config.dropout, full.choices_before) == (0.08, 0.2, {})
    assert full.space.restrict(resolution=(64,)).size() == 1
    assert full.space.largest() == space.largest()

    unlocked: dict[str, tuple[int, ...]] = {name: (max(getattr(space, name)),) for name in LARGEST}
    for phase, (dimension, choices, epochs, warmup, lr, subnets) in zip(elastic, expected.values(), strict=True):
        assert phase.choices_before == {dimension: unlocked[dimension]}, "what could be chosen before"
        unlocked[dimension] = choices
        assert {name: getattr(phase.space, name) for name in unlocked} == unlocked
        assert phase.space.resolution == space.resolution, "resolution is elastic from the start"
        assert (phase.steps, phase.warmup_steps) == ((epochs + warmup) * 1328, warmup * 1328), "warm-up comes on top"
        assert (phase.config.lr, phase.config.subnets, phase.config.dropout) == (lr, subnets, 0.1)
        assert (phase.objective, phase.teacher) == ("distill", "progressive")
        assert phase.evaluated == phase.space
    assert plan.phases[-1].space == space, "in the end everything can be chosen"


@pytest.mark.parametrize(("variant", "epochs"), [("ee_d", 915), ("ee_dp", 1065), ("se_b", 605)])
def test_the_papers_epochs_in_all(variant: str, epochs: int) -> None:
    plan = make_plan(recipe.load("tiny_imagenet_paper").phases, PROGRESSIVE, space_of(variant), 1)
    assert plan.steps == epochs


@pytest.mark.parametrize("variant", supernets.names())
def test_phases_of_a_dimension_that_is_lacking_are_skipped_and_said(variant: str) -> None:
    plan = make_plan(recipe.load("tiny_imagenet_paper").phases, PROGRESSIVE, space_of(variant), STEPS_PER_EPOCH)
    left_out = {name: row[0] for name, row in PAPER.items() if row[0] in lacking(variant)}
    assert len(plan.skipped) == len(left_out)
    for sentence, (name, dimension) in zip(plan.skipped, left_out.items(), strict=True):
        assert sentence.startswith(f"{name} is skipped")
        assert dimension in sentence


@pytest.mark.parametrize("variant", supernets.names())
def test_spaces_grow_and_steps_add_up(variant: str) -> None:
    phases = recipe.load("tiny_imagenet_paper").phases
    plan = make_plan(phases, TeacherConfig("best"), space_of(variant), STEPS_PER_EPOCH)
    for before, after in pairwise(phase.space for phase in plan.phases):
        assert before.size() < after.size()
        assert all(set(getattr(before, name)) <= set(getattr(after, name)) for name in supernets.DIMENSIONS)
    steps = [phase.steps for phase in plan.phases]
    assert [phase.first_step for phase in plan.phases] == [0, *accumulate(steps)][:-1]
    assert plan.steps == sum(steps)


def test_after_joint_training_every_exit_of_the_largest_is_evaluated() -> None:
    plan = make_plan({"full": PhaseConfig(1, 0.1)}, PROGRESSIVE, space_of("ee_d"), 10)
    (full,) = plan.phases
    assert full.space.height == (5,)
    assert [(subnet.height, subnet.resolution) for subnet in full.evaluated.corners()] == [
        (height, side) for side in (48, 64) for height in (1, 2, 3, 4, 5)
    ]


@pytest.mark.parametrize(
    ("epochs", "warmup", "steps", "warmup_steps"),
    [(1.5, 0.5, 15, 5), (0.001, 0, 1, 0), (0.04, 0.04, 1, 0), (0.26, 0.26, 3, 2), (2, 2, 20, 19), (0.1, 0, 1, 0)],
)
def test_epochs_become_whole_steps(epochs: float, warmup: float, steps: int, warmup_steps: int) -> None:
    (phase,) = make_plan(
        {"full": PhaseConfig(epochs, 0.1, warmup_epochs=warmup)}, TeacherConfig("none"), space_of("se_b"), 10
    ).phases
    assert (phase.steps, phase.warmup_steps) == (steps, warmup_steps)
    assert phase.warmup_steps < phase.steps, "at least the last step is no warm-up"


def unlocking(lr: float = 0.1, **choices: Any) -> PhaseConfig:
    settings = {name: choices.pop(name) for name in ("sampler", "subnets", "teacher") if name in choices}
    return PhaseConfig(1, lr, UnlockConfig(**choices), **settings)


FULL = PhaseConfig(1, 0.1)


def test_the_recipes_order_is_kept_and_any_order_that_grows_will_do() -> None:
    phases = {
        "start": FULL,
        "width": unlocking(expand=(6, 4)),
        "both": unlocking(depth=(4, 2), kernel=(7, 5)),
        "rest": unlocking(depth=(2, 3, 4), expand=(3, 4, 6)),
    }
    plan = make_plan(phases, TeacherConfig("fixed"), space_of("se_b"), 10)
    assert [phase.name for phase in plan.phases] == list(phases)
    both = plan.phases[2]
    assert (both.space.kernel, both.space.depth, both.space.expand) == ((5, 7), (2, 4), (4, 6))
    assert both.choices_before == {"kernel": (7,), "depth": (4,)}
    assert both.unlocks == "kernel 5, 7; depth 2, 4"
    assert plan.phases[0].unlocks == "the largest network alone"


@pytest.mark.parametrize(
    ("variant", "phases", "message"),
    [
        ("se_b", {"full": FULL, "k": unlocking(kernel=(4, 7))}, r"^phases\.k\.unlock\.kernel \(4\) .*among 3, 5, 7$"),
        ("se_b", {"full": FULL, "d": unlocking(depth=(4, 5))}, r"^phases\.d\.unlock\.depth \(5\) .*among 2, 3, 4$"),
        ("se_b", {"full": FULL, "e": unlocking(expand=(1, 6))}, r"^phases\.e\.unlock\.expand \(1\) .*among 3, 4, 6$"),
        ("ee_b", {"full": FULL, "h": unlocking(height=(0, 5))}, r"^phases\.h\.unlock\.height \(0\) .*1, 2, 3, 4, 5$"),
        ("se_p", {"full": FULL, "l": unlocking(level=(3, 4))}, r"^phases\.l\.unlock\.level \(4\) .*among 1, 2, 3$"),
        ("se_b", {"full": FULL, "k": unlocking(kernel=(3, 5))}, r"^phases\.k\.unlock\.kernel \(3, 5\) drops 7"),
        (
            "se_b",
            {"full": FULL, "d1": unlocking(depth=(3, 4)), "d2": unlocking(depth=(2, 4))},
            r"^phases\.d2\.unlock\.depth \(2, 4\) drops 3",
        ),
        ("se_b", {"full": FULL, "k": unlocking(kernel=(7,))}, r"^phases\.k\.unlock\.kernel \(7\) repeats"),
        (
            "se_b",
            {"full": FULL, "k": unlocking(kernel=(5, 7)), "again": unlocking(kernel=(7, 5))},
            r"^phases\.again\.unlock\.kernel \(5, 7\) repeats",
        ),
        (
            "se_b",
            {"full": FULL, "k": unlocking(kernel=(5, 7)), "both": unlocking(kernel=(5, 7), depth=(3, 4))},
            r"^phases\.both\.unlock\.kernel \(5, 7\) repeats",
        ),
        ("se_b", {"full": FULL, "more": FULL}, r"^phases\.more\.unlock \(empty\) repeats phases\.full"),
        (
            "se_b",
            {"full": FULL, "k": unlocking(kernel=(5, 7)), "more": FULL},
            r"^phases\.more\.unlock \(empty\) must unlock something",
        ),
        ("se_b", {"k": unlocking(kernel=(5, 7))}, r"^phases\.k\.teacher \(progressive\) needs a phase before it"),
        (
            "se_b",
            {"k": unlocking(kernel=(5, 7), teacher="fixed")},
            r"^phases\.k\.teacher \(fixed\) needs a phase before it",
        ),
        (
            "se_b",
            {"l": unlocking(level=(2, 3)), "k": unlocking(kernel=(5, 7), teacher="best")},
            r"^phases\.k\.teacher \(best\) needs a phase before it",
        ),
        ("se_b", {"l": unlocking(level=(2, 3))}, r"^phases leave nothing to train"),
        ("se_b", {}, r"^phases leave nothing to train"),
    ],
)
def test_what_cannot_work_is_refused_by_key_and_value(
    variant: str, phases: dict[str, PhaseConfig], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        make_plan(phases, PROGRESSIVE, space_of(variant), 10)
    assert len(str(caught.value).splitlines()) == 1


def test_a_phase_that_repeats_one_names_that_one() -> None:
    last = PhaseConfig(1, 0.1, exit_weights="last")
    with pytest.raises(UserError, match=r"phases\.again\.unlock \(empty\) repeats phases\.all: "):
        make_plan({"full": last, "all": FULL, "again": FULL}, TeacherConfig("fixed"), space_of("ee_b"), 10)


def test_a_first_phase_may_be_elastic_without_a_teacher_of_ones_own() -> None:
    for teacher in ("none", "timm:resnet18"):
        (phase,) = make_plan(
            {"k": unlocking(kernel=(5, 7), teacher=teacher)}, TeacherConfig("best"), space_of("se_b"), 10
        ).phases
        assert (phase.objective, phase.teacher) == ("distill", teacher)


def test_an_unknown_teacher_policy_is_refused() -> None:
    for phases, policy in (
        ({"full": FULL, "k": unlocking(kernel=(5, 7))}, "progresive"),
        ({"full": FULL, "k": unlocking(kernel=(5, 7), teacher="progresive")}, "best"),
        ({"full": FULL}, "progresive"),
    ):
        with pytest.raises(DistillError, match=r"teacher policy \('progresive'\) is unknown"):
            make_plan(phases, TeacherConfig(policy), space_of("se_b"), 10)


def test_a_teacher_whose_loss_counts_nothing_is_none() -> None:
    phases = {"full": FULL, "k": unlocking(kernel=(5, 7))}
    _, kernel = make_plan(phases, replace(PROGRESSIVE, kd_ratio=0.0), space_of("se_b"), 10).phases
    assert kernel.teacher == "none"
    assert "from the labels alone" in kernel.sentence


def test_networks_of_other_resolutions_are_refused() -> None:
    space = space_of("se_b", resolutions=(64,))
    network = replace(space.largest(), resolution=96)
    elastic = replace(unlocking(kernel=(5, 7), sampler="marginals"), networks=(network.to_json(),))
    phases = {"full": FULL, "k": elastic}
    with pytest.raises(UserError, match=r"phases\.k\.networks: resolution \(96\) is none of data.resolutions \(64\)"):
        make_plan(phases, PROGRESSIVE, space, 10)


@pytest.mark.parametrize("weights", ["last", {"losses": "last", "ensemble": "uniform"}, (0.0, 0.0, 0.0, 0.0, 1.0)])
def test_exits_whose_loss_has_no_weight_are_not_trained(weights: Any) -> None:
    phases = {
        "full": replace(FULL, exit_weights=weights),
        "k": unlocking(kernel=(5, 7)),
        "h": unlocking(height=(3, 4, 5)),
    }
    full, kernel, height = make_plan(phases, PROGRESSIVE, space_of("ee_b"), 10).phases
    assert full.evaluated.height == (5,)
    assert full.weights.trained == exit_weights("last", 5)
    assert full.sentence == "phase full: trains the largest network, 1 epoch"
    assert [weight > 0 for weight in kernel.weights.trained.ensemble] == [False] * 4 + [True]
    assert [weight > 0 for weight in height.weights.trained.ensemble] == [False] * 2 + [True] * 3


@pytest.mark.parametrize("objective", ["distill_exits", "in_place"])
def test_of_all_exits_those_without_weight_are_neither_measured_nor_teachers(objective: str) -> None:
    weights = {"losses": (0.0, 0.0, 0.0, 0.5, 0.5), "ensemble": "uniform"}
    phases = {
        "full": replace(FULL, exit_weights="last"),
        "h": replace(
            unlocking(height=(3, 4, 5), sampler="sandwich", subnets=3), objective=objective, exit_weights=weights
        ),
    }
    _, phase = make_plan(phases, PROGRESSIVE, space_of("ee_b"), 10).phases
    assert phase.evaluated.height == (4, 5)
    assert phase.drawn.height == (5,)
    assert set(phase.weights.in_place) == ({4, 5} if objective == "in_place" else set())
    assert [weight > 0 for weight in phase.weights.trained.ensemble] == [False] * 3 + [True] * 2


def test_the_table_shows_what_is_planned() -> None:
    phases = {"full": FULL, "k": unlocking(0.03, kernel=(3, 5, 7), sampler="sandwich", subnets=3, teacher="fixed")}
    plan = make_plan(phases, PROGRESSIVE, space_of("se_b"), 10)
    columns, rows = plan_table(plan)
    shown = [dict(zip(columns, row, strict=True)) for row in rows]
    assert columns == PLAN_COLUMNS
    assert [row["phase"] for row in shown] == ["full", "k"]
    assert [row["unlocks"] for row in shown] == ["nothing", "kernel 3, 5, 7"]
    assert [row["draws"] for row in shown] == ["largest", "3 sandwich"]
    assert [row["teacher"] for row in shown] == ["none", "fixed"]
    assert [(row["epochs"], row["steps"], row["peak lr"]) for row in shown] == [(1, 10, 0.1), (1, 10, 0.03)]


def test_a_plan_is_a_value() -> None:
    first, second = (make_plan({"full": FULL}, TeacherConfig("best"), space_of("ee_dp"), 10) for _ in range(2))
    assert first == second
    with pytest.raises(dataclasses.FrozenInstanceError):
        first.phases[0].steps = 3  # type: ignore[misc]


def test_a_phase_may_name_its_objective() -> None:
    phases = {
        "full": PhaseConfig(1, 0.1, objective="distill", teacher="timm:resnet18"),
        "elastic": replace(unlocking(kernel=(3, 5, 7), height=(2, 3, 4, 5)), objective="joint"),
    }
    full, elastic = make_plan(phases, PROGRESSIVE, space_of("ee_b"), 10).phases
    assert (full.objective, full.teacher) == ("distill", "timm:resnet18")
    assert (elastic.objective, elastic.teacher) == ("joint", "none")
    assert elastic.drawn.height == (5,), "joint training draws networks that have all exits"
    assert elastic.evaluated.height == (1, 2, 3, 4, 5), "and reaches every exit"
    assert elastic.drawn.kernel == (3, 5, 7)
    assert "1 sub-network drawn anew with all its exits, from the labels alone" in elastic.sentence
    assert "1 uniform, all exits" in plan_table(make_plan(phases, PROGRESSIVE, space_of("ee_b"), 10))[1][1]


def test_phases_of_all_exits_keep_their_space_and_say_what_they_train() -> None:
    phases = {
        "full": FULL,
        "k": replace(unlocking(kernel=(3, 5, 7), height=(4, 5)), objective="distill_exits"),
        "d": replace(unlocking(depth=(3, 4), sampler="sandwich", subnets=3), objective="in_place"),
    }
    plan = make_plan(phases, PROGRESSIVE, space_of("ee_b"), 10)
    _, kernel, depth = plan.phases
    assert (kernel.objective, kernel.teacher, depth.objective, depth.teacher) == (
        "distill_exits",
        "progressive",
        "in_place",
        "none",
    )
    assert kernel.space == kernel.evaluated
    assert kernel.space.height == depth.space.height == (4, 5)
    assert "1 sub-network drawn anew with all its exits, from a teacher and the labels" in kernel.sentence
    assert "3 sub-networks drawn anew with all their exits, from the largest one of them and the labels" in (
        depth.sentence
    )
    drawn = [dict(zip(PLAN_COLUMNS, row, strict=True)) for row in plan_table(plan)[1]]
    assert [row["draws"] for row in drawn] == ["largest", "1 uniform, all exits", "3 sandwich, all exits"]
    assert [row["teacher"] for row in drawn] == ["none", "progressive", "in place"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampler": "uniform", "subnets": 3}, r"^phases\.k\.sampler \(uniform\): .*set phases\.k\.sampler=sandwich$"),
        (
            {"sampler": "sandwich", "subnets": 3, "teacher": "best"},
            r"teacher \(best\) has no effect on the in_place obj",
        ),
    ],
)
def test_in_place_needs_the_largest_network_in_each_step_and_no_teacher(changes: Any, message: str) -> None:
    phases = {"full": FULL, "k": replace(unlocking(kernel=(3, 5, 7)), objective="in_place", **changes)}
    with pytest.raises(UserError, match=message) as caught:
        make_plan(phases, PROGRESSIVE, space_of("ee_b"), 10)
    assert len(str(caught.value).splitlines()) == 1


def test_a_teacher_of_joint_training_is_refused() -> None:
    phases = {"full": PhaseConfig(1, 0.1, teacher="timm:resnet18")}
    with pytest.raises(
        UserError, match=r"phases\.full\.teacher \(timm:resnet18\) has no effect on the joint objective"
    ):
        make_plan(phases, PROGRESSIVE, space_of("ee_b"), 10)
