"""`ofav2 calibrate`: what it says can be measured again, what it writes is read back, what can't be is refused."""

import json
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import ofav2
from ofav2.cli import main as cli
from ofav2.config.schema import DataConfig
from ofav2.data import count_views, eval_batches, open_data
from ofav2.deploy.artifact import RECORD, EpochSearch, FinetuningRecord, Validation, write_subnet_record
from ofav2.errors import RunError, UserError
from ofav2.exits import calibrate
from ofav2.exits.calibrate import CalibrationStudy, OpenedExits, evaluate_policy, open_exits
from ofav2.exits.early import NEVER
from ofav2.exits.policy_file import EARLY_RECORD
from ofav2.report.early import PAGE, write_early_page
from ofav2.runs.records import Run, SplitSizes
from tests.ofav2.patches import write_patches

EXITS = (1, 3, 4)
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def taken(opened: ofav2.OpenedRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network with three exits; to look at only."""
    path = tmp_path_factory.mktemp("early") / "net"
    ofav2.extract(opened, opened.loaded.net.space.uniform(height=4), path, EXITS, formats=())
    return path


@pytest.fixture
def directory(taken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to calibrate, in little time."""
    monkeypatch.setattr(calibrate, "TIMED_IMAGES", 5)
    monkeypatch.setattr(calibrate, "ROUNDS", 1)
    return Path(shutil.copytree(taken, tmp_path / "net"))


def edited(path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    facts = json.loads(path.read_text(encoding="utf-8"))
    change(facts)
    path.write_text(json.dumps(facts), encoding="utf-8")
    return path.parent


@pytest.fixture(scope="module")
def calibrated(taken: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CalibrationStudy, OpenedExits]:
    """A copy that was calibrated so that some images exit early and some late; to look at only."""
    path = Path(shutil.copytree(taken, tmp_path_factory.mktemp("calibrated") / "net"))
    opened = open_exits(path)
    macs = sum(cost.passed for cost in opened.macs) // len(EXITS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibrate, "TIMED_IMAGES", 5)
        patch.setattr(calibrate, "ROUNDS", 1)
        study = ofav2.calibrate_exits(path, max_macs=macs, confidence="margin", ensemble=True)
    return path, study, opened


def test_what_a_calibration_says_can_be_measured_again(calibrated: tuple[Path, CalibrationStudy, OpenedExits]) -> None:
    _, study, opened = calibrated
    for split, outcome in ((opened.data.val, study.record.val), (opened.data.test, study.record.test)):
        assert evaluate_policy(opened, split, study.record.policy) == outcome
    assert study.record.val.images == len(opened.data.val)
    assert sum(study.record.val.shares) == pytest.approx(1)
    assert study.record.exits == EXITS
    assert study.own.threshold == study.record.policy.threshold
    assert (study.own.mean_macs, study.own.top1) == (study.record.val.mean_macs, study.record.val.top1)
    assert study.record.last_exit_test_top1 == opened.evaluator.exit_scores(opened.module, 16, opened.data.test)[-1]
    single = [row.top1 for row in study.record.measured.rows if row.name.endswith("alone")]
    assert single == list(opened.evaluator.exit_scores(opened.module, 16, opened.data.val))
    assert [row.name for row in study.record.measured.rows[-4:]] == [
        "exit 1 alone",
        "exit 3 alone",
        "exit 4 alone",
        "all exits",
    ]
    assert all(len(row.nanoseconds) == 2 and min(row.nanoseconds) > 0 for row in study.record.measured.rows)


def test_every_threshold_of_the_table_is_what_predict_does(
    calibrated: tuple[Path, CalibrationStudy, OpenedExits],
) -> None:
    _, study, opened = calibrated
    for row in study.record.measured.rows:
        if row.threshold is not None:
            policy = ofav2.ExitPolicy(row.threshold, study.record.policy.confidence, study.record.policy.ensemble)
            outcome = evaluate_policy(opened, opened.data.val, policy)
            assert (outcome.mean_macs, outcome.top1, outcome.shares) == (row.mean_macs, row.top1, row.shares)


def test_the_rule_is_read_back_with_the_network(calibrated: tuple[Path, CalibrationStudy, OpenedExits]) -> None:
    directory, study, _ = calibrated
    assert ofav2.load_exit_policy(directory) == study.record.policy
    net = ofav2.load_early_exits(str(directory))
    assert net.exits == EXITS
    assert not any(module.training for module in net.modules())
    images = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert all(map(torch.equal, net(images), ofav2.load_subnet(directory)(images)))
    assert set(net.decide(images, ofav2.load_exit_policy(directory)).exits.tolist()) <= set(EXITS)


def test_calibrating_again_replaces_the_rule_and_test_images_choose_nothing(
    directory: Path, monkeypatch: pytest.MonkeyPatch, calibrated: tuple[Path, CalibrationStudy, OpenedExits]
) -> None:
    shutil.copy(calibrated[0] / EARLY_RECORD, directory)
    looked: list[tuple[str, float]] = []
    evaluated = evaluate_policy

    def noted(opened: Any, split: Any, policy: Any) -> Any:
        looked.append((split.name, policy.threshold))
        return evaluated(opened, split, policy)

    monkeypatch.setattr(calibrate, "evaluate_policy", noted)
    study = ofav2.calibrate_exits(directory, min_top1=0.0)
    assert looked == [("test", study.record.policy.threshold), ("test", NEVER)]
    assert ofav2.load_exit_policy(directory) == study.record.policy
    assert study.record.policy.confidence == "max_softmax"
    assert study.record.val.shares == (1.0, 0.0, 0.0)


def test_without_a_wish_nothing_is_lost_that_the_last_exit_has_right(directory: Path) -> None:
    study, opened = ofav2.calibrate_exits(directory), open_exits(directory)
    last = calibrate.ExitPolicy(NEVER)
    for images, labels in calibrate._inputs(opened, opened.data.val):
        right = opened.net.decide(images, last).classes == labels
        assert (opened.net.decide(images, study.record.policy).classes == labels)[right].all()


def test_with_an_ensemble_nothing_is_lost_that_all_exits_together_have_right(directory: Path) -> None:
    alone = ofav2.calibrate_exits(directory, ensemble=False, timed=False).record.target
    together = ofav2.calibrate_exits(directory, ensemble=True, timed=False).record.target
    assert "is lost that the last exit has right" in alone
    assert "is lost that all exits together have right" in together


@pytest.mark.parametrize("macs", [-5, 6e6])
def test_an_impossible_cost_is_refused_before_anything_is_measured(macs: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^limit macs \(.*\) must be a whole number"):
        ofav2.calibrate_exits(tmp_path / "absent", max_macs=macs)


def test_without_timing_all_is_found_but_times(directory: Path, capsys: Capture) -> None:
    study = ofav2.calibrate_exits(directory, max_macs=10**9, timed=False)
    assert {row.nanoseconds for row in study.record.measured.rows} == {()}
    assert cli.main(["calibrate", str(directory), "--no-timing"]) == 0
    assert "ms per image" not in capsys.readouterr().out
    assert ofav2.load_exit_policy(directory).threshold >= 0
    assert "h-time" not in (directory / PAGE).read_text(encoding="utf-8")


def test_the_file_holds_the_study(calibrated: tuple[Path, CalibrationStudy, OpenedExits]) -> None:
    directory, study, _ = calibrated
    facts = json.loads((directory / EARLY_RECORD).read_text(encoding="utf-8"))
    assert facts["policy"] == {"threshold": study.record.policy.threshold, "confidence": "margin", "ensemble": True}
    assert facts["test"]["top1"] == study.record.test.top1
    assert len(facts["measured"]["rows"]) == len(study.record.measured.rows)
    assert len({len(values) for values in facts["curve"].values()}) == 1
    assert [entry.name for entry in directory.iterdir() if entry.name.startswith(".")] == []


def test_the_page_is_whole_and_text_is_text(calibrated: tuple[Path, CalibrationStudy, OpenedExits]) -> None:
    directory, found, _ = calibrated
    study = replace(found, name="<script>x</script>", data="<b>y</b>")
    write_early_page(study, directory / PAGE)
    page = (directory / PAGE).read_text(encoding="utf-8")
    assert "&lt;script&gt;x&lt;/script&gt;" in page
    assert "<b>y</b>" not in page
    assert all(row.name in page for row in study.record.measured.rows)
    told = "Test images are the validation images"
    assert told not in page
    write_early_page(replace(study, validation_is_test=True), directory / PAGE)
    assert told in (directory / PAGE).read_text(encoding="utf-8")


# What can't be


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda facts: facts.update(format="other"), "format"),
        (lambda facts: facts.update(subnet_sha256="0" * 64), "other weights"),
        (lambda facts: facts.pop("policy"), "policy is missing"),
        (lambda facts: facts["policy"].pop("ensemble"), "policy.ensemble is missing"),
        (lambda facts: facts["policy"].update(threshold="high"), "threshold"),
        (lambda facts: facts["policy"].update(threshold=-1), "threshold"),
        (lambda facts: facts["policy"].update(confidence=["x"]), "confidence"),
        (lambda facts: facts.update(policy=3), r"policy \(3\) must be a mapping"),
    ],
)
def test_a_rule_that_was_tampered_with_is_refused(
    change: Any, words: str, calibrated: tuple[Path, CalibrationStudy, OpenedExits], tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(calibrated[0], tmp_path / "copy"))
    assert ofav2.load_exit_policy(copy) == calibrated[1].record.policy
    edited(copy / EARLY_RECORD, change)
    with pytest.raises(RunError, match=words) as caught:
        ofav2.load_exit_policy(copy)
    assert str(copy) in str(caught.value)


def test_a_network_that_was_not_calibrated_has_no_rule(taken: Path) -> None:
    with pytest.raises(RunError, match="make it with `ofav2 calibrate"):
        ofav2.load_exit_policy(taken)


def refused(capsys: Capture, *arguments: str) -> str:
    """The one line of a command that is refused, results and traces aside."""
    capsys.readouterr()
    assert cli.main(["calibrate", *arguments]) == 2
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line.startswith("ofav2: ")]
    assert out == ""
    assert len(lines) == 1
    assert "Traceback" not in err
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--max-macs", "1"], r"limit macs \(1\) is less than any threshold needs: the mean is at least .* \([\d,]+\)"),
        (["--max-macs", "lots"], r"limit macs \(lots\)"),
        (["--min-top1", "1.0"], r"top-1 \(1\) is more than any threshold reaches on validation: give up to 0\.\d+"),
        (["--min-top1", "97"], r"top-1 \(97\) must be a share from 0 to 1, such as 0.96, or up to 100 %, such as 96%"),
        (["--min-top1", "101%"], r"top-1 \(101%\)"),
        (["--confidence", "luck"], r"confidence \(.*luck"),
        (["data.mean=[0,0,0]"], r"setting \(data.mean=\[0,0,0\]\) does not belong here"),
        (["run.seed"], r"setting \(run.seed\)"),
        (["data.root=/nowhere"], r"data.root"),
    ],
)
def test_impossible_wishes_are_one_line(arguments: list[str], words: str, directory: Path, capsys: Capture) -> None:
    before = sorted(directory.iterdir())
    assert re.search(words, refused(capsys, str(directory), *arguments))
    assert sorted(directory.iterdir()) == before, "nothing is written"


@pytest.mark.parametrize("name", ["root", "labels", "download", "cache", "cache_gib", "bad_images", "workers"])
def test_settings_that_say_where_images_are_can_be_changed(name: str, directory: Path, tmp_path: Path) -> None:
    value = {"cache_gib": "1.5", "workers": "0", "bad_images": "skip", "download": "false"}.get(name, str(tmp_path))
    if name in ("root", "labels", "cache", "bad_images"):
        # Digits lie in no folder, and the data set says so.
        with pytest.raises(UserError, match=rf"^(data\.)?{name} \("):
            open_exits(directory, [f"data.{name}={value}"])
    else:
        assert open_exits(directory, [f"data.{name}={value}"]).record.exit_indices == EXITS


def test_other_folders_are_one_line(extracted: Path, tiny_run: Run, tmp_path: Path, capsys: Capture) -> None:
    assert "one exit" in refused(capsys, str(extracted))
    assert "has no subnet.json" in refused(capsys, str(tiny_run.folder))
    assert "has no subnet.json" in refused(capsys, str(tmp_path / "missing"))


def test_other_images_are_refused(directory: Path) -> None:
    def change(facts: dict[str, Any]) -> None:
        facts["provenance"]["recipe"] = facts["provenance"]["recipe"].replace("split_seed: 0", "split_seed: 1")

    edited(directory / RECORD, change)
    with pytest.raises(UserError, match=r"data set \(digits\) is not the one that the network was trained on"):
        ofav2.calibrate_exits(directory)
    assert not (directory / EARLY_RECORD).exists()


def test_a_network_that_was_tuned_on_its_validation_images_is_refused(directory: Path) -> None:
    record = ofav2.describe_subnet(directory)
    before = Validation(0, record.scores["val"], 0.5)
    step = FinetuningRecord(
        source_sha256=record.sha256,
        data=record.data,
        data_fingerprint=record.data_fingerprint,
        images=SplitSizes(1, 1, 1),
        new_classifiers=False,
        epochs=1,
        search=EpochSearch((), before, (before,)),
        final=(),
        test_before=None,
        test=record.scores["test"],
        versions={},
        recipe="{}",
    )
    write_subnet_record(directory, replace(record, finetuning=(step,), extraction=None))
    with pytest.raises(UserError, match="was fine-tuned on its validation images"):
        ofav2.calibrate_exits(directory)


@pytest.mark.parametrize("key", ["provenance", "scores"])
def test_what_is_missing_is_named(key: str, directory: Path) -> None:
    edited(directory / RECORD, lambda facts: facts.pop(key))
    with pytest.raises(RunError, match=f"{key} is missing"):
        ofav2.calibrate_exits(directory)


def test_the_last_exit_is_scored_on_the_images_of_the_policy_whatever_its_extraction_measured(directory: Path) -> None:
    def change(facts: dict[str, Any]) -> None:
        facts["scores"]["test"] = dict.fromkeys(facts["scores"]["test"], 0.0)

    edited(directory / RECORD, change)
    assert set(ofav2.describe_subnet(directory).scores["test"].values()) == {0.0}
    study, opened = ofav2.calibrate_exits(directory, timed=False), open_exits(directory)
    assert study.record.last_exit_test_top1 == opened.evaluator.exit_scores(opened.module, 16, opened.data.test)[-1]


@pytest.mark.parametrize("size", [1, 3, 5, 7, 64])
def test_each_batch_that_is_timed_has_as_many_images_as_it_is_said_to(
    directory: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    opened, seen = open_exits(directory), []
    measured = calibrate.stream_times

    def noted(calls: Any, batches: Sequence[torch.Tensor], *more: Any) -> tuple[float, ...]:
        seen.extend(batches)
        return measured(calls, batches, *more)

    monkeypatch.setattr(calibrate, "stream_times", noted)
    (((time,)),) = calibrate._call_times(opened, [opened.module], [size])
    assert time > 0
    assert {len(images) for images in seen} == {size}
    assert len(seen) == -(-5 // size)
    first = next(iter(calibrate._inputs(opened, calibrate._timed_images(opened.data.val), 5)))
    given = torch.cat(seen)
    for place, image in enumerate(given):
        torch.testing.assert_close(image, first.images[place % 5])
    assert seen[0].stride() == next(iter(calibrate._inputs(opened, opened.data.val, size))).images.stride()


def test_calibrate_shows_the_policy_that_it_chose(directory: Path, capsys: Capture) -> None:
    assert cli.main(["calibrate", str(directory), "run.threads=1", "--min-top1", "1%", "--ensemble"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[1].split("  ")[0] == ""
    assert sum(line.startswith("->") for line in out.splitlines()) == 1
    assert "chosen: threshold" in out
    assert "next: ofav2 predict" in err
    assert (directory / PAGE).is_file()


def test_times_are_per_window_of_patches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call of 1,000 nanoseconds per input takes so long per image, however many windows a patch has."""
    write_patches(tmp_path)
    data = open_data(DataConfig(name="patches", root=str(tmp_path), target="cover", resolutions=(6,), eval_crop=1.0))
    assert count_views(data.val, 6) == 4 * len(data.val)
    opened: Any = SimpleNamespace(data=data, record=SimpleNamespace(subnet=SimpleNamespace(resolution=6)))
    views = list(eval_batches(data.val, resolution=6, eval_crop=1.0, batch_size=5))
    monkeypatch.setattr(calibrate, "_inputs", lambda *given: views)

    def timed(calls: list[Any], batches: list[torch.Tensor], *more: object) -> list[int]:
        return [1000 * sum(map(len, batches)) for _ in calls]

    monkeypatch.setattr(calibrate, "stream_times", timed)
    assert calibrate._call_times(opened, [len], [5]) == [(1000,)]
