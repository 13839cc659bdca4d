"""The comparison of OFAv2 with OFA, small: rows can be planned, trained, measured and shown."""

import json
import shlex
from dataclasses import replace
from operator import mul
from pathlib import Path
from xml.etree import ElementTree

import pytest

import ofav2
import supernets
from benchmarks import proof, proof_tables
from benchmarks.proof import ROWS, Row
from ofav2.cli import main as cli
from ofav2.config import recipe
from ofav2.errors import UserError
from ofav2.training.phases import make_plan
from tests.notes import Notes
from tests.ofav2 import tiny
from tests.ofav2.data.conftest import write_classes

IMAGES = {"train": {"cat": 12, "dog": 12}, "test": {"cat": 4, "dog": 4}}
STEPS_PER_EPOCH = 100


def epochs(row: Row) -> tuple[float, float]:
    """Epochs of images that a row rng, and that its sub-networks see."""
    config = recipe.load(row.recipe, ["data.root=x", *row.settings])
    choices = {name: getattr(config.supernet, name) for name in ("kernel", "expand", "depth")}
    net = supernets.create(config.supernet.variant, num_classes=10, resolutions=(32,), **choices)
    plan = make_plan(config.phases, config.teacher.policy, net.space, STEPS_PER_EPOCH)
    drawn = [phase.steps / STEPS_PER_EPOCH for phase in plan.phases]
    subnets = [1 if phase.objective == "joint" else phase.config.subnets for phase in plan.phases]
    return sum(drawn), sum(map(mul, drawn, subnets))


def test_rows_have_equal_budgets_where_they_say_so() -> None:
    budgets = {row.name: epochs(row) for row in ROWS}
    for name in ("ofav2-seed1", "ofav2-fixed", "ee_b", "se_d", "ofa-longer"):
        assert budgets[name] == budgets["ofav2"], name
    assert budgets["ofa"] == budgets["ofa-seed1"] == (budgets["ofav2"][0] - 2, budgets["ofav2"][1] - 4)
    assert budgets["sandwich"][1] == pytest.approx(budgets["ofav2"][1], abs=0.02)
    for size in proof.SIZES:
        assert budgets[f"alone-{size}"] == (budgets["ofav2"][1] / 3,) * 2


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_row_is_a_command_that_the_parser_takes(row: Row) -> None:
    program, *arguments = shlex.split(proof.command(row, "some images", Path("runs")))
    assert program == "ofav2"
    parsed = cli.parser().parse_args(arguments)
    assert recipe.load(parsed.recipe, parsed.overrides) == recipe.load(row.recipe, parsed.overrides)
    assert parsed.run_dir == f"runs/{row.name}"


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
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], notes: Notes
) -> None:
    for name, value in {"BODIES": 2, "CANDIDATES": 2, "TEST_IMAGES": 5}.items():
        monkeypatch.setattr(proof, name, value)
    for split, classes in IMAGES.items():
        write_classes(tmp_path / "images" / split, classes)
    little = (
        "data.val_fraction=0.2",
        "data.mean=null",
        "data.std=null",
        "data.resolutions=[32]",
        "evaluation.corners=all",
    )
    named = [row for row in ROWS if row.name in ("ofa", "ofav2", "alone-small")]
    rows = [replace(row, settings=(*row.settings, *tiny.shrunk(row.recipe, train_images=20), *little)) for row in named]
    runs, results = tmp_path / "runs", tmp_path / "results"
    proof.measure(rows, runs, results)
    assert "ofav2 is not finished: left out" in capsys.readouterr().err
    proof.train(rows, str(tmp_path / "images"), runs)
    proof.train(rows, str(tmp_path / "images"), runs)
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
        assert all(phase["steps"] == 2 and phase["images"] == 8 for phase in result["phases"])
    assert [phase["subnet_images"] for phase in found["ofav2"]["phases"]] == [8, 8, 16, 16, 16]

    opened = ofav2.open_run(runs / "ofav2")
    net = opened.loaded.net
    middle = net.space.uniform(kernel=5, depth=3, expand=4)
    (score,) = opened.evaluator.scores(net, [middle], opened.data.test)
    assert found["ofav2"]["sizes"]["middle"]["top1"] == score.value
    whole = found["ofav2"]["chosen"]["100"]
    assert whole["macs"] <= ofav2.subnet_cost(net.architecture, net.space.largest()).macs

    proof_tables.show([row.name for row in ROWS], results)
    shown = capsys.readouterr().out
    assert all(row.title in shown for row in rows)
    assert "| trained alone |" in shown
    for name in (proof_tables.FRONT, proof_tables.PHASES):
        texts = {part.text for part in ElementTree.parse(results / name).iter()}
        assert {rows[0].title, rows[1].title} <= texts
