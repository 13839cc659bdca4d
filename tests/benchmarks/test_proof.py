"""The comparison of OFAv2 with OFA, small: rows can be planned, trained, measured and shown."""

import json
import shlex
from dataclasses import replace
from operator import mul
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

import ofav2
import supernets
from benchmarks import proof, proof_tables
from benchmarks.proof import CIFAR10, DATASETS, EUROSAT, IN_PLACE, Row
from ofav2.cli import main as cli
from ofav2.config import recipe
from ofav2.errors import UserError
from ofav2.runs.records import read_run
from ofav2.training.phases import make_plan
from tests.notes import Notes
from tests.ofav2 import tiny
from tests.ofav2.data.conftest import write_classes
from tests.ofav2.test_resume import at, stopped_after

IMAGES = {"train": {"cat": 12, "dog": 12}, "test": {"cat": 4, "dog": 4}}
STEPS_PER_EPOCH = 100
DIGITS_TRAIN_IMAGES = 1150
LITTLE = ("data.val_fraction=0.2", "data.mean=null", "data.std=null", "data.resolutions=[32]")


def epochs(row: Row) -> tuple[float, float]:
    """Epochs of images that a row draws, and that its sub-networks see."""
    config = recipe.load(row.recipe, ["data.root=x", *row.settings])
    choices = {name: getattr(config.supernet, name) for name in ("kernel", "expand", "depth")}
    net = supernets.create(config.supernet.variant, num_classes=10, resolutions=(32,), width_mult=0.05, **choices)
    plan = make_plan(config.phases, config.teacher, net.space, STEPS_PER_EPOCH)
    drawn = [phase.steps / STEPS_PER_EPOCH for phase in plan.phases]
    subnets = [1 if phase.objective == "joint" else phase.config.subnets for phase in plan.phases]
    return sum(drawn), sum(map(mul, drawn, subnets))


def test_rows_of_cifar10_have_equal_budgets_where_they_say_so() -> None:
    budgets = {row.name: epochs(row) for row in CIFAR10}
    for name in ("ofav2-seed1", "ofav2-fixed", "ee_b", "se_d", "ofa-longer"):
        assert budgets[name] == budgets["ofav2"], name
    assert budgets["ofav2-faster"] == budgets["ofav2-faster-kernel"] == budgets["ofav2"]
    assert budgets["in-place-faster-kernel"] == budgets["in-place"]
    assert budgets["ofa"] == budgets["ofa-seed1"] == (budgets["ofav2"][0] - 2, budgets["ofav2"][1] - 4)
    assert budgets["sandwich"][1] == pytest.approx(budgets["ofav2"][1], abs=0.02)
    for size in proof.SIZES:
        assert budgets[f"alone-{size}"] == (budgets["ofav2"][1] / 3,) * 2


def test_the_row_that_is_taught_in_place_takes_as_long_as_ofav2_by_its_measured_steps() -> None:
    ours, theirs = (recipe.load(name, ["data.root=x"]).phases for name in (IN_PLACE, "cifar10_proof"))
    assert ours["full"] == theirs["full"]
    taught = {"kernel": 606, "depth": 750, "expand": 673}
    distilled = {"kernel": 338, "height": 421, "depth": 313, "expand": 269}
    took = [
        sum(milliseconds * phases[name].epochs for name, milliseconds in steps.items())
        for phases, steps in ((ours, taught), (theirs, distilled))
    ]
    assert took[0] == pytest.approx(took[1], rel=0.01)


def test_rows_of_eurosat_have_equal_budgets_where_they_say_so() -> None:
    budgets = {row.name: epochs(row) for row in EUROSAT}
    assert len(budgets) == len(EUROSAT), "names are different"
    whole = budgets["ofav2"]
    for name in ("ofav2-seed1", "ofav2-seed2", "ofav2-fixed-seed2", "ofav2-best", "ee_b", "ofav2-faster"):
        assert budgets[name] == whole, name
    for name in ("se_d", "sandwich", "sandwich-faster"):
        assert budgets[name][1] == pytest.approx(whole[1], abs=0.1), name
    assert budgets["level-on"][1] == pytest.approx(budgets["level-off"][1], abs=0.1)
    for size in proof.SIZES:
        assert budgets[f"alone-{size}"][1] == pytest.approx(whole[1] / 3, abs=0.1)


def test_the_phases_of_eurosat_are_the_papers_by_one_factor() -> None:
    paper, ours = recipe.load("tiny_imagenet_paper").phases, recipe.load(proof.EUROSAT_PAPER).phases
    assert list(paper) == list(ours)
    for name, phase in paper.items():
        short = ours[name]
        assert short.epochs == pytest.approx(phase.epochs / 45, abs=0.006), name
        assert short.warmup_epochs == pytest.approx(phase.warmup_epochs / 45, abs=0.006), name
        assert replace(short, epochs=phase.epochs, warmup_epochs=phase.warmup_epochs) == phase, name


def test_higher_rates_on_eurosat_change_nothing_else() -> None:
    paper, higher = recipe.load(proof.EUROSAT_PAPER, ["data.root=x"]), recipe.load("eurosat_proof", ["data.root=x"])
    phases = {name: replace(phase, lr=paper.phases[name].lr) for name, phase in higher.phases.items()}
    assert replace(higher, phases=phases) == paper
    sandwich = recipe.load(proof.EUROSAT_SANDWICH, ["data.root=x", proof.ELASTIC_FASTER])
    assert sandwich.phases["elastic"].lr == higher.phases["expand_2"].lr


ROWS = tuple((dataset, row) for dataset, rows in DATASETS.items() for row in rows)


def named(pair: tuple[str, Row]) -> str:
    return f"{pair[0]} {pair[1].name}"


@pytest.mark.parametrize("pair", ROWS, ids=named)
def test_a_row_is_a_command_that_the_parser_takes(pair: tuple[str, Row]) -> None:
    dataset, row = pair
    root = None if dataset == proof.PACKAGED else "some images"
    program, *arguments = shlex.split(proof.command(row, root, Path("runs")))
    assert program == "ofav2"
    parsed = cli.parser().parse_args(arguments)
    assert recipe.load(parsed.recipe, parsed.overrides) == recipe.load(row.recipe, parsed.overrides)
    assert parsed.run_dir == f"runs/{row.name}"


def test_images_that_come_with_a_package_have_no_folder_and_others_need_one() -> None:
    with pytest.raises(UserError, match=r"DATA_ROOT \(photos\) is not for digits, .* leave it out"):
        proof.main(["train", "digits", "photos"])
    with pytest.raises(UserError, match="DATA_ROOT is missing: name the folder with the images of eurosat"):
        proof.main(["train", "eurosat"])


def test_rows_are_chosen_by_name() -> None:
    assert [row.name for row in proof.some_rows("eurosat", ["level-off", "ofa"])] == ["ofa", "level-off"]
    with pytest.raises(UserError, match=r"--rows \(level-on\) is no row of cifar10: choose among ofa, "):
        proof.some_rows("cifar10", ["level-on"])


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of images, as both data sets have them."""
    root = tmp_path_factory.mktemp("data") / "images"
    for split, classes in IMAGES.items():
        write_classes(root / split, classes)
    return root


def short(row: Row, train_images: int, *more: str) -> Row:
    """The row with two steps per phase of a small supernet."""
    small = tiny.shrunk(row.recipe, row.settings, train_images=train_images)
    return replace(row, settings=(*row.settings, *small, *LITTLE, *more))


def shapes() -> list[Any]:
    """Rows that differ in more than their seed; all but the first are slow tests."""
    pairs = [pair for pair in ROWS if "-seed" not in pair[1].name]
    return [
        pytest.param(pair, id=named(pair), marks=pytest.mark.slow if number else ())
        for number, pair in enumerate(pairs)
    ]


@pytest.mark.parametrize("pair", shapes())
def test_a_row_starts_stops_and_goes_on(pair: tuple[str, Row], images: Path, tmp_path: Path, notes: Notes) -> None:
    """It is told to stop after the first step of its first two phases; with one phase, it goes on to its end."""
    dataset, row = pair
    root, train_images = (None, DIGITS_TRAIN_IMAGES) if dataset == proof.PACKAGED else (str(images), 20)
    small = short(row, train_images)
    phases = list(recipe.load(small.recipe, ["data.root=x", *small.settings]).phases)
    for phase in phases[:2]:
        with stopped_after(at(phase, 1)):
            proof.train([small], root, tmp_path)
    if len(phases) == 1:
        proof.train([small], root, tmp_path)
    assert f"going on with phase {phases[0]} from step 1" in notes()
    assert len(read_run(tmp_path / row.name).phases) == 1


def test_all_supernets_get_the_same_bodies() -> None:
    spaces = [
        supernets.create(name, num_classes=2, resolutions=(32,)).space for name in ("se_b", "ee_d", "ee_b", "se_d")
    ]
    drawn = [proof.bodies(space) for space in spaces]
    assert drawn[0] == drawn[1] == drawn[2] == drawn[3]
    assert len(set(drawn[0])) == proof.BODIES


def test_proof_tables_without_measurements_say_how_to_measure(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"benchmarks\.proof measure"):
        proof_tables.show(["ofa"], tmp_path)


@pytest.mark.slow
def test_rows_are_trained_measured_and_shown(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], notes: Notes
) -> None:
    for name, value in {"BODIES": 2, "CANDIDATES": 2, "TEST_IMAGES": 5}.items():
        monkeypatch.setattr(proof, name, value)
    some = [row for row in CIFAR10 if row.name in ("ofa", "ofav2", "alone-small")]
    rows = [short(row, 20, "evaluation.corners=all") for row in some]
    runs, results = tmp_path / "runs", tmp_path / "results"
    proof.measure(rows, runs, results)
    assert "ofav2 is not finished: left out" in capsys.readouterr().err
    proof.train(rows, str(images), runs)
    proof.train(rows, str(images), runs)
    assert "is finished already" in notes()
    proof.measure(rows, runs, results)

    found = {row.name: json.loads((results / f"{row.name}.json").read_text()) for row in rows}
    assert [one["exit"] for one in found["ofa"]["random"]] == [5, 5]
    assert sorted(one["exit"] for one in found["ofav2"]["random"]) == sorted([1, 2, 3, 4, 5] * 2)
    assert found["ofa"]["random"][0].keys() == {"exit", "macs", "params", "top1"}
    assert {one["macs"] for one in found["ofa"]["random"]} <= {one["macs"] for one in found["ofav2"]["random"]}
    assert "random" not in found["alone-small"]
    for result in found.values():
        assert result["split"] == {"train": 20, "val": 4, "test": 8}
        assert result["trained"] == read_run(runs / result["name"]).created[:10]
        assert all(phase["steps"] == 2 and phase["images"] == 8 for phase in result["phases"])
    assert [phase["subnet_images"] for phase in found["ofav2"]["phases"]] == [8, 8, 16, 16, 16]

    opened = ofav2.open_run(runs / "ofav2")
    net = opened.loaded.net
    middle = net.space.uniform(kernel=5, depth=3, expand=4)
    (score,) = opened.evaluator.scores(net, [middle], opened.data.test)
    assert found["ofav2"]["sizes"]["middle"]["top1"] == score.value
    whole = found["ofav2"]["chosen"]["100"]
    assert whole["macs"] <= ofav2.network_cost(net.architecture, net.space.largest()).macs

    proof_tables.show([row.name for row in CIFAR10], results)
    shown = capsys.readouterr().out
    assert all(row.title in shown for row in rows)
    assert "| trained alone |" in shown
    assert f"| {rows[0].title} | {found['ofa']['trained']} | 8 |" in shown
    for name in (proof_tables.FRONT, proof_tables.PHASES):
        texts = {part.text for part in ElementTree.parse(results / f"{name}.svg").iter()}
        assert {rows[0].title, rows[1].title} <= texts


def result(name: str, largest: float) -> dict[str, Any]:
    """As much of a file of results as seeds are compared by."""
    first = [] if name.startswith("ofa-") or name == "ofa" else [{"exit": 1, "top1": 0.1}]
    networks = [{"exit": 5, "top1": largest - 0.02}, {"exit": 5, "top1": largest}, *first]
    chosen = {"25": {"top1": largest} if largest > 0.5 else None}
    return {"name": name, "title": name.upper(), "test": {"largest": largest}, "random": networks, "chosen": chosen}


def test_rows_of_other_lengths_and_rates_have_plots_of_their_own_and_further_seeds_none() -> None:
    names = ("ofa", "ofa-seed1", "ofa-longer", "ofa-long", "ofa-long-seed1", "ofa-faster", "in-place-faster-kernel")
    shown = proof_tables.plotted([result(name, 0.5) for name in names])
    assert {kind: [one["name"] for one in some] for kind, some in shown.items()} == {
        "": ["ofa", "ofa-longer"],
        "-long": ["ofa-long"],
        "-faster": ["ofa-faster", "in-place-faster-kernel"],
    }


@pytest.mark.parametrize(
    ("fixed", "verdict"),
    [
        ((0.68, 0.70), "yes: +2.0 ± 0.0"),
        # Of two pairs, chance stays within 12.7 standard errors in 95 % of the cases; of three, within 4.3.
        ((0.68, 0.704), "within the error: +1.8 ± 0.2"),
        ((0.68, 0.704, 0.88), "yes: +1.9 ± 0.1"),
        ((0.71, 0.70, 0.88), "within the error: +1.0 ± 1.0"),
        ((0.68,), "+2.0, too few seeds"),
    ],
)
def test_runs_of_one_seed_are_compared(fixed: tuple[float, ...], verdict: str) -> None:
    names = ("ofav2", "ofav2-seed1", "ofav2-seed2")
    found = [result(name, top1) for name, top1 in zip(names, (0.70, 0.72, 0.90), strict=True)]
    others = [name.replace("ofav2", "ofav2-fixed") for name in names]
    found += [result(name, top1) for name, top1 in zip(others, fixed, strict=False)]
    assert f"| a progressive teacher beats a fixed one | {verdict} |" in proof_tables.claims_table(found)


def test_claims_are_yes_no_or_within_the_error_of_the_seeds() -> None:
    found = [
        *(result(name, top1) for name, top1 in (("ofav2", 0.70), ("ofav2-seed1", 0.72))),
        *(result(name, top1) for name, top1 in (("ofa", 0.50), ("ofa-seed1", 0.52))),
        *(result(name, top1) for name, top1 in (("ofav2-fixed", 0.70), ("ofav2-fixed-seed1", 0.71))),
    ]
    # Of two values, the standard error of the mean is half their distance.
    table = proof_tables.seeds_table(found)
    assert "| OFAV2 | 2 | 71.0 ± 1.0 | 70.0 ± 1.0 | 10.0 ± 0.0 | 71.0 ± 1.0 |" in table
    assert "| OFA | 2 | 51.0 ± 1.0 | 50.0 ± 1.0 | – | 52.0 |" in table
    beats, teachers, *_ = proof_tables.claims_table(found).splitlines()[2:]
    assert beats.startswith(
        "| OFAv2 beats OFA | yes: +20.0 ± 0.0 | yes: +20.0 ± 0.0 | not measured | +20.0, too few seeds |"
    )
    assert "within the error: +0.5 ± 0.5" in teachers
    swapped = [
        {**one, "name": one["name"].replace("ofav2", "x").replace("ofa", "ofav2").replace("x", "ofa")} for one in found
    ]
    assert "| no: -20.0 ± 0.0 |" in proof_tables.claims_table(swapped)
    assert "not measured" in proof_tables.claims_table(found[:2])


def test_networks_alone_stand_beside_those_of_supernets_with_the_number_of_seeds() -> None:
    sizes = {size: {"top1": 0.5} for size in proof.SIZES}
    found = [
        {**result("ofa", 0.5), "sizes": sizes},
        {"name": "alone-small", "title": "small", "test": {"largest": 0.7}},
        {"name": "alone-small-seed1", "title": "small", "test": {"largest": 0.72}},
        {"name": "alone-large", "title": "large", "test": {"largest": 0.8}},
    ]
    ours, alone = proof_tables.alone_table(found).splitlines()[2:]
    assert ours == "| OFA | 50.0 (1) | 50.0 (1) | 50.0 (1) |"
    assert alone == "| trained alone | 71.0 ± 1.0 (2) | – | 80.0 (1) |"
