"""Another task than classification goes through everything, brought by an installed package."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import ofav2
from ofav2.cli.main import main
from ofav2.data import eval_batches
from ofav2.errors import UserError
from ofav2.runs.records import Run
from ofav2.tasks.registry import names
from tests.notes import Notes
from tests.ofav2 import tiny
from tests.ofav2.changes import change_facts, flip_a_bit
from tests.ofav2.tasks.recipes import OTHER_TASK, RECIPE


def test_an_installed_package_brings_a_task(installed: None) -> None:
    assert names() == ("classification", "segment", "regress", "reconstruct", "digit_value")


def test_an_unknown_task_is_refused_with_the_nearest_one(installed: None, tmp_path: Path) -> None:
    recipe = tiny.written(tmp_path, tiny.TWO.replace("run:", "task: digit_valu\nrun:"))
    with pytest.raises(UserError, match=r"task \(digit_valu\).*did you mean digit_value\?"):
        ofav2.train(recipe, run_dir=tmp_path / "run")


def test_a_distance_of_another_task_is_refused(installed: None, tmp_path: Path) -> None:
    recipe = tiny.written(tmp_path, OTHER_TASK)
    with pytest.raises(UserError, match=r"teacher.distance \(cross_entropy\) makes no sense .* use mse"):
        ofav2.train(recipe, run_dir=tmp_path / "run")


def test_a_distance_of_another_task_is_refused_if_one_phase_alone_has_a_teacher(
    installed: None, tmp_path: Path
) -> None:
    text = OTHER_TASK.replace("kernel: {", "kernel: {teacher: best, ") + "teacher: {policy: none}\n"
    with pytest.raises(UserError, match=r"teacher.distance \(cross_entropy\) makes no sense"):
        ofav2.train(tiny.written(tmp_path, text), run_dir=tmp_path / "run")


@pytest.mark.parametrize("key", ["mixup", "cutmix"])
def test_mixed_classes_are_refused(key: str, installed: None, tmp_path: Path) -> None:
    recipe = tiny.written(tmp_path, RECIPE)
    with pytest.raises(UserError, match=rf"data.{key} \(0.2\) mixes classes, which task digit_value has none of"):
        ofav2.train(recipe, [f"data.{key}=0.2"], tmp_path / "run")


def test_balanced_classes_are_refused(installed: None, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data.balance \(classes\) needs classes, which task digit_value has none of"):
        ofav2.train(tiny.written(tmp_path, RECIPE), ["data.balance=classes"], tmp_path / "run")


def test_the_best_teacher_is_the_one_of_the_lowest_error_when_a_run_goes_on(
    regression_run: Run, tmp_path: Path, notes: Notes
) -> None:
    run = Path(shutil.copytree(regression_run.folder, tmp_path / "run"))

    def cut(facts: dict[str, Any]) -> None:
        del facts["phases"][2:]
        facts.update(test=None, status="stopped")
        facts["phases"][0]["ensemble_score"], facts["phases"][1]["ensemble_score"] = 1.0, 2.0

    change_facts(run, cut)
    flip_a_bit(run / "checkpoints" / "full.safetensors")
    assert ofav2.resume(run).record.status == "finished"
    log = notes()
    assert "going back to the phase before it" in log
    assert "going on with phase full from" in log


def test_another_task_is_no_fine_tuning(regression_run: Run, tmp_path: Path) -> None:
    run = ofav2.open_run(regression_run.folder)
    ofav2.extract(run, run.loaded.net.space.smallest(), tmp_path / "small", formats=())
    with pytest.raises(UserError, match=r"task \(classification, measured as top-1\): the network was trained for"):
        ofav2.finetune(tmp_path / "small", ["task=classification"], out=tmp_path / "tuned")


def test_a_regression_trains_and_its_score_is_its_own_metric(regression_run: Run) -> None:
    lines = [json.loads(line) for line in (regression_run.folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    losses = [line["loss"] for line in lines if line["kind"] == "train"]
    assert losses
    assert all(map(math.isfinite, losses))
    # Digits are worth 4.5 on average: an error above 1 is no share.
    assert regression_run.record.test.largest > 1
    tables = [line for line in lines if line["kind"] == "table"]
    assert {tuple(table["columns"][-2:]) for table in tables} == {("within a half", "MAE")}
    shares = [row[-2] for table in tables for row in table["rows"]]
    assert all(0 <= share <= 1 for share in shares)


def test_an_extracted_regression_has_the_error_that_a_plain_loop_finds(regression_run: Run, tmp_path: Path) -> None:
    run = ofav2.open_run(regression_run.folder)
    largest = run.loaded.net.space.largest()
    written = ofav2.extract(run, largest, tmp_path / "values", formats=())
    module = ofav2.load_subnet(tmp_path / "values")
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (run.data.mean, run.data.std))
    errors = []
    batches = eval_batches(
        run.data.test, resolution=largest.resolution, eval_crop=run.evaluator.eval_crop, batch_size=7, workers=0
    )
    with torch.inference_mode():
        for images, targets in batches:
            errors += (module((images / 255 - mean) / std).squeeze(1) - targets).abs().tolist()
    expected = sum(errors) / len(errors)
    assert written.scores["test"][largest.height] == pytest.approx(expected, rel=1e-5)
    assert regression_run.record.test.largest == pytest.approx(expected, rel=1e-5)


def test_commands_and_pages_name_only_the_metric(
    regression_run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(regression_run.folder)
    other = str(shutil.copytree(run, tmp_path / "other"))
    commands = (
        ("evaluate", run),
        ("extract", run, "--max-macs=10G", "--candidates=3", "--formats=card", "--out", str(tmp_path / "chosen")),
        ("report", run, "--out", str(tmp_path / "report.html")),
        ("compare", run, other, "--out", str(tmp_path / "compare.html")),
    )
    for command in commands:
        assert main(command) == 0, command
        shown = "".join(capsys.readouterr())
        assert "MAE" in shown or command[0] == "report", command
        assert ("within a half" in shown) == (command[0] == "evaluate"), command
        assert "top-1" not in shown.lower(), command
        assert "accura" not in shown.lower(), command
    for page in ("report.html", "compare.html", "chosen/model_card.md"):
        text = (tmp_path / page).read_text("utf-8")
        text = text.split("<script", 1)[0]
        assert "MAE" in text
        assert "top-1" not in text.lower(), page


def test_runs_of_two_tasks_are_not_compared(regression_run: Run, tiny_run: Run, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"different metrics \(values: MAE, six: top-1\)"):
        ofav2.compare_runs([regression_run.folder, tiny_run.folder], tmp_path / "compare.html")


def test_early_exits_need_classes(regression_run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "exits"
    run = ofav2.open_run(regression_run.folder)
    ofav2.extract(run, run.loaded.net.space.largest(), folder, "all", formats=())
    with pytest.raises(UserError, match=r"task \(digit_value\) has no classes"):
        ofav2.calibrate_exits(folder)
