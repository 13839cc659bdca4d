"""`ofav2 prune`: the network that is written is a part of the one with all exits, and what is said of it holds."""

import json
import re
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import timm
import torch
from torch import Tensor

import distill
import ofav2
import ofav2.timm_plugin
from ofav2.cli import main as cli
from ofav2.data import ImageData
from ofav2.deploy.artifact import RECORD
from ofav2.errors import RunError, UserError
from ofav2.exits import prune
from ofav2.exits.collect import split_inputs
from ofav2.exits.prune import PruneStudy, Source, open_source
from ofav2.exits.subsets import SubsetTable
from ofav2.inference.classifier import load_classifier
from ofav2.inference.evaluate import evaluate_network
from ofav2.report.subsets import PAGE, write_subsets_page
from ofav2.runs.records import Run
from supernets.subnet_cost import subnet_cost

Capture = pytest.CaptureFixture[str]
EXITS = (1, 2, 4, 5)
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def source(opened: ofav2.OpenedRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network with four exits; to look at only."""
    path = tmp_path_factory.mktemp("exits") / "net"
    ofav2.extract(opened, opened.loaded.net.space.largest(), path, EXITS, formats=())
    return path


@pytest.fixture(autouse=True)
def _little_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prune, "ROUNDS", 1)


@pytest.fixture(scope="module")
def whole(source: Path) -> Source:
    """The same, opened."""
    return open_source(source)


@pytest.fixture(scope="module")
def pruned(source: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PruneStudy]:
    """Several exits, with all files; to look at only."""
    path = tmp_path_factory.mktemp("pruned") / "net"
    weights = {1: 0.1, 2: 0.2, 4: 0.7}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prune, "ROUNDS", 1)
        patch.setattr(prune, "choose", lambda table, *_, **__: prune.Choice(table.choices.index((0, 1, 2)), "made up"))
        study = ofav2.prune_exits(source, out=path, ensemble=[*weights.values(), 0.0])
    return path, study


def inputs(whole: Source, split: str) -> tuple[Tensor, Tensor]:
    """All images of a split, and their classes."""
    images = {"val": whole.evaluator.data.val, "test": whole.evaluator.data.test}[split]
    (batch,) = split_inputs(whole.evaluator, images, whole.resolution, len(images))
    return batch.images, batch.targets


def accuracy(logits: Tensor, targets: Tensor) -> tuple[float, float]:
    right = logits.topk(5, 1).indices == targets[:, None]
    return float(right[:, 0].double().mean()), float(right.any(1).double().mean())


# What is written


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_logits_are_the_masked_ones_to_the_bit(
    dtype: torch.dtype, pruned: tuple[Path, PruneStudy], whole: Source
) -> None:
    path, study = pruned
    record = ofav2.describe_subnet(path)
    assert record == study.record
    assert (record.exits, record.subnet.height) == ((1, 2, 4), 4)
    assert record.ensemble == pytest.approx((0.1, 0.2, 0.7))
    images = inputs(whole, "val")[0].to(dtype)
    with torch.no_grad():
        masked = whole.module.to(dtype)(images)[:3]
        assert all(map(torch.equal, ofav2.load_subnet(path).to(dtype)(images), masked))
        merged = distill.ensemble(masked, record.ensemble)
        assert torch.equal(ofav2.load_ensemble(path).to(dtype)(images), merged)
    whole.module.float()


def test_every_file_returns_the_exits_and_their_ensemble(pruned: tuple[Path, PruneStudy], whole: Source) -> None:
    path, study = pruned
    names = ["model.onnx", "model.pt2", "model.safetensors", "model_card.md", "subnet.json"]
    assert sorted(entry.name for entry in path.iterdir()) == [*names, "trained_images.bin"]
    images = inputs(whole, "test")[0][:3]
    session = onnxruntime.InferenceSession(str(path / "model.onnx"))
    outputs = [output.name for output in session.get_outputs()]
    assert tuple(outputs) == study.record.exports.outputs == ("exit_1", "exit_2", "exit_4", "logits")
    with torch.no_grad():
        exits = ofav2.load_subnet(path)(images)
        expected = [*exits, ofav2.load_ensemble(path)(images)]
    from_onnx = [torch.from_numpy(found) for found in session.run(None, {"images": images.numpy()})]
    program = torch.export.load(path / "model.pt2").module()
    for found in (from_onnx, program(images)):
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * float(other.abs().max()))
    card = (path / "model_card.md").read_text(encoding="utf-8")
    assert "| ensemble |" in card


def test_what_is_said_of_subsets_can_be_measured_again(pruned: tuple[Path, PruneStudy], whole: Source) -> None:
    path, study = pruned
    record, pruning = study.record, study.pruning
    for split, said in (("val", pruning.chosen.val), ("test", pruning.test["chosen"])):
        images, targets = inputs(whole, split)
        with torch.no_grad():
            assert accuracy(ofav2.load_ensemble(path)(images), targets) == (said.top1, said.top5)
            exits = [accuracy(logits, targets)[0] for logits in ofav2.load_subnet(path)(images)]
            last = accuracy(whole.module(images)[-1], targets)
        assert list(record.scores[split].values()) == exits
        measured = {"val": pruning.last.val, "test": pruning.test["last"]}[split]
        assert last == (measured.top1, measured.top5)
    assert record.cost == subnet_cost(record.architecture, record.subnet, record.exits) == pruning.chosen.cost
    assert study.agreement.images == pruning.images == len(whole.evaluator.data.val)
    assert pruning.whole.exits == (1, 2, 4), "exit 5 has no weight"
    assert pruning.last.exits == (5,)
    assert all(time > 0 for subset in pruning.front for time in subset.nanoseconds)
    assert all(len(times) == 2 and min(times) > 0 for times in pruning.nanoseconds.values())
    assert pruning.scale is None


def test_subsets_are_timed_on_images_as_they_come_in_use(whole: Source) -> None:
    for count in (1, 4):
        images = prune._images(whole, count)
        assert len(images) == count
        assert images.is_contiguous(memory_format=torch.channels_last)


def test_the_winner_of_aep_is_written_from_a_run_with_one_exit_as_a_plain_network(
    tiny_run: Run, opened: ofav2.OpenedRun, tmp_path: Path
) -> None:
    study = ofav2.prune_exits(tiny_run.folder, out=tmp_path / "out", max_macs=350_000, formats=())
    largest = opened.loaded.net.space.largest()
    assert study.name == str(largest)
    assert len(study.table.choices) == 31
    assert study.pruning.ensemble == "ascending"
    within = [index for index, cost in enumerate(study.table.costs) if cost.macs <= 350_000]
    best = max((study.table.top1(index), study.table.top5(index)) for index in within)
    assert best == (study.pruning.chosen.val.top1, study.pruning.chosen.val.top5)
    if len(study.pruning.chosen.exits) == 1:
        assert (study.record.exits, study.record.ensemble) == ("last", None)
    module = ofav2.load_ensemble(tmp_path / "out")
    assert module(torch.zeros(2, 3, 16, 16)).shape == (2, 10)
    assert study.record.cost.macs <= 350_000


def test_one_exit_is_left_as_a_plain_network(source: Path, tmp_path: Path) -> None:
    study = ofav2.prune_exits(source, out=tmp_path / "out", min_top1=0.0, formats=())
    assert study.pruning.chosen.exits == (1,)
    assert study.record.exits == "last"
    assert study.record.ensemble is None
    assert study.record.subnet.height == 1
    loaded = ofav2.load_subnet(tmp_path / "out")
    assert isinstance(loaded(torch.zeros(2, 3, 16, 16)), Tensor)


def test_learned_weights_are_kept_with_their_scale(source: Path, tmp_path: Path) -> None:
    study = ofav2.prune_exits(source, out=tmp_path / "out", ensemble="learned", formats=())
    assert study.pruning.ensemble == "learned"
    assert study.pruning.scale is not None
    assert study.pruning.scale > 0
    rows = study.table.weights
    assert rows.sum(1) == pytest.approx(1)
    assert (rows >= 0).all()


def test_a_network_that_was_pruned_is_pruned_again_with_its_own_weights(
    pruned: tuple[Path, PruneStudy], tmp_path: Path
) -> None:
    study = ofav2.prune_exits(pruned[0], out=tmp_path / "out", formats=())
    assert study.pruning.ensemble == "its own"
    assert study.table.exits == (1, 2, 4)
    first = pruned[1].table
    for index, choice in enumerate(study.table.choices):
        assert study.table.top1(index) == first.top1(first.choices.index(choice))


# What uses it


def test_leaving_early_weighs_exits_as_the_folder_does(pruned: tuple[Path, PruneStudy], whole: Source) -> None:
    images = inputs(whole, "val")[0]
    early = ofav2.load_early_exits(pruned[0])
    with torch.no_grad():
        outputs = early(images)
        first, second, last = early.exit_outputs(outputs, ensemble=True)
        torch.testing.assert_close(first, outputs[0])
        torch.testing.assert_close(second, (0.1 * outputs[0] + 0.2 * outputs[1]) / 0.3)
        assert torch.equal(last, ofav2.load_ensemble(pruned[0])(images))


def test_calibrate_takes_the_folder(pruned: tuple[Path, PruneStudy], tmp_path: Path) -> None:
    copy = Path(shutil.copytree(pruned[0], tmp_path / "copy"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ofav2.exits.calibrate.TIMED_IMAGES", 4)
        patch.setattr("ofav2.exits.calibrate.ROUNDS", 1)
        study = ofav2.calibrate_exits(copy, max_macs=10**9)
        single = ofav2.calibrate_exits(Path(shutil.copytree(copy, tmp_path / "single")), ensemble=False)
    assert study.record.exits == (1, 2, 4)
    # Its own weights hold as they did before; what no image exits early from is the ensemble.
    assert study.record.policy.ensemble
    assert not single.record.policy.ensemble
    chosen = pruned[1].record.pruning
    assert chosen is not None
    by_name = {row.name: row.top1 for row in study.record.measured.rows}
    assert by_name["all exits"] == pytest.approx(chosen.chosen.val.top1)
    assert {row.name: row.top1 for row in single.record.measured.rows}["all exits"] == by_name["exit 4 alone"]
    assert [row.mean_macs for row in study.record.measured.rows if row.name.endswith("alone")] == [
        subnet_cost(pruned[1].record.architecture, replace(pruned[1].record.subnet, height=exit)).macs
        for exit in (1, 2, 4)
    ]


def test_timm_takes_the_folder_as_one_classifier_on_the_exits_joined_features(
    pruned: tuple[Path, PruneStudy], whole: Source
) -> None:
    model = timm.create_model("ofav2_subnet", subnet_dir=str(pruned[0])).eval()
    images = inputs(whole, "val")[0]
    with torch.no_grad():
        torch.testing.assert_close(model(images), ofav2.load_ensemble(pruned[0])(images), rtol=1e-4, atol=1e-4)
        features = model.forward_features(images)
        assert features.shape == (len(images), model.num_features)
        assert torch.equal(model.get_classifier()(features), model(images))
    model.reset_classifier(3)
    assert model(images).shape == (len(images), 3)


def test_predicting_and_evaluating_use_the_ensemble(pruned: tuple[Path, PruneStudy], whole: Source) -> None:
    images, targets = inputs(whole, "test")
    with torch.no_grad():
        logits = ofav2.load_ensemble(pruned[0])(images)
    classifier = load_classifier(pruned[0])
    with torch.no_grad():
        found = [classified.classes[0] for classified in classifier.classify(images, 1)]
    assert found == [classifier.record.classes[index] for index in logits.argmax(1)]
    report = evaluate_network(pruned[0])
    assert list(report.top1) == [1, 2, 4]
    assert sum(score.right for score in report.classes) == int((logits.argmax(1) == targets).sum())


def test_fine_tuning_keeps_the_ensemble(pruned: tuple[Path, PruneStudy], tmp_path: Path) -> None:
    settings = ["finetune.epochs=1", "finetune.warmup_epochs=0", "data.batch_size=64"]
    record = ofav2.finetune(pruned[0], settings, out=tmp_path / "tuned", formats=())
    assert record.ensemble == pruned[1].record.ensemble
    assert record.pruning is None
    images = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        merged = distill.ensemble(ofav2.load_subnet(tmp_path / "tuned")(images), record.ensemble)
        assert torch.equal(ofav2.load_ensemble(tmp_path / "tuned")(images), merged)
    with pytest.raises(UserError, match="was fine-tuned on its validation images"):
        ofav2.prune_exits(tmp_path / "tuned", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("scheme", [*distill.schemes(), (0.1, 0.2, 0.4, 0.2, 0.1)], ids=str)
def test_some_exits_keep_their_weights_among_all(scheme: Any, source: Path, opened: ofav2.OpenedRun) -> None:
    some, exits = ofav2.describe_subnet(source), opened.loaded.net.architecture.exits
    _, of_all = prune._weights(replace(some, exits=exits, scores={"test": dict.fromkeys(exits, 0.5)}), scheme)
    # Those of all exits are the scheme's to the bit.
    assert of_all == distill.exit_weights(scheme, 5).ensemble
    _, found = prune._weights(some, scheme)
    kept = [of_all[exit - 1] for exit in EXITS]
    assert found == tuple(weight / sum(kept) for weight in kept)


def test_numbers_may_be_of_the_exits_that_there_are(source: Path) -> None:
    weights = (Fraction("0.1"), Fraction("0.2"), Fraction("0.3"), Fraction("0.4"))
    assert prune._weights(ofav2.describe_subnet(source), (0.1, 0.2, 0.3, 0.4)) == ("[0.1, 0.2, 0.3, 0.4]", weights)


def test_exits_that_a_scheme_does_not_weigh_are_refused(opened: ofav2.OpenedRun, tmp_path: Path) -> None:
    ofav2.extract(opened, opened.loaded.net.space.largest(), tmp_path / "first", (1, 2), formats=())
    with pytest.raises(UserError, match=r'ensemble \("last"\) gives no weight to exits 1, 2: use another one'):
        ofav2.prune_exits(tmp_path / "first", out=tmp_path / "out", ensemble="last")


# What can't be


def refused(capsys: Capture, *arguments: str) -> str:
    """The one line of a command that is refused."""
    capsys.readouterr()
    assert cli.main(["prune", *arguments]) == 2
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line.startswith("ofav2: ")]
    assert out == ""
    assert len(lines) == 1
    assert "Traceback" not in err
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--max-macs", "1"], r"limit macs \(1\) is less than any subset of exits needs .*: allow at least"),
        (["--max-params", "10"], r"limit params \(10\)"),
        (["--max-macs", "lots"], r"limit macs \(lots\)"),
        (["--min-top1", "100%"], r"top-1 \(1\) is more than any subset reaches on validation: ask for 0\.\d+"),
        (["--min-top1", "97"], r"top-1 \(97\) must be a share"),
        (["--ensemble", "luck"], r"ensemble \(.*luck.*\) is unknown: use one of learned, ascending"),
        (["--ensemble", "0.5,0.5"], r"exit weights .* must hold one number per exit, 4 here"),
        (["--ensemble", "0.0000000001,0.5,0.4999999999,0"], r"has a weight of 1e-10: each must be 1e-09 or more, or 0"),
        (["--ensemble", "0,0,1,0,0"], r"ensemble \(.*\) gives no weight to exits 1, 2, 4, 5"),
        (["--ensemble", "0.5,x"], r"ensemble \(.*0.5,x.*\) is unknown"),
        (["--formats", "tflite"], r"formats \(tflite\)"),
        (["--subnet", "missing.json"], r"sub-network file \(missing.json\)"),
        (["data.mean=[0,0,0]"], r"setting \(data.mean=\[0,0,0\]\) does not belong here"),
        (["data.root=/nowhere"], r"data.root"),
    ],
)
def test_impossible_wishes_are_one_line_and_nothing_is_written(
    arguments: list[str], words: str, source: Path, tmp_path: Path, capsys: Capture
) -> None:
    assert re.search(words, refused(capsys, str(source), "--out", str(tmp_path / "out"), *arguments))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_refused_before_anything_is_measured(
    source: Path, tiny_run: Run, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prune, "score_fixed", None)
    assert "/proc/pruned" in refused(capsys, str(source), "--out", "/proc/pruned")
    monkeypatch.setattr(prune, "take_out", None)

    def refuse(trees: object, path: Path, name: str) -> None:
        raise UserError(f"{name} ({path}) lies among the images")

    monkeypatch.setattr(prune, "refuse_inside", refuse)
    for network in (source, tiny_run.folder):
        assert "out) lies among the images" in refused(capsys, str(network), "--out", str(tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []


def test_wishes_that_exclude_each_other_are_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="leave one out"):
        ofav2.prune_exits(source, out=tmp_path / "out", min_top1=0.5, cautious=True)
    with pytest.raises(UserError, match=r"top-1 \(97\) must be a share"):
        ofav2.prune_exits(source, out=tmp_path / "out", min_top1=97)


def test_other_folders_are_one_line(extracted: Path, tmp_path: Path, capsys: Capture) -> None:
    assert "one exit" in refused(capsys, str(extracted), "--out", str(tmp_path / "out"))
    assert "does not exist" in refused(capsys, str(tmp_path / "missing"), "--out", str(tmp_path / "out"))


def test_a_run_takes_no_settings_and_no_network_with_one_exit(
    tiny_run: Run, opened: ofav2.OpenedRun, tmp_path: Path, capsys: Capture
) -> None:
    folder, out = str(tiny_run.folder), str(tmp_path / "out")
    assert "belongs to an extracted network" in refused(capsys, folder, "data.root=/x", "--out", out)
    (tmp_path / "first.json").write_text(opened.loaded.net.space.uniform(height=1).to_json())
    assert "has one exit" in refused(capsys, folder, "--subnet", str(tmp_path / "first.json"), "--out", out)


def test_an_extracted_network_takes_no_other_one(source: Path, tmp_path: Path, capsys: Capture) -> None:
    said = refused(capsys, str(source), "--subnet", str(source / RECORD), "--out", str(tmp_path / "out"))
    assert "leave --subnet out" in said


def test_validation_images_that_were_trained_on_are_refused(
    source: Path,
    tiny_run: Run,
    opened: ofav2.OpenedRun,
    tmp_path: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    copy = Path(shutil.copytree(source, tmp_path / "moved"))
    facts = json.loads((copy / RECORD).read_text(encoding="utf-8"))
    facts["provenance"]["recipe"] = facts["provenance"]["recipe"].replace("split_seed: 0", "split_seed: 1")
    (copy / RECORD).write_text(json.dumps(facts), encoding="utf-8")
    monkeypatch.setattr(prune, "open_run", lambda _: replace(opened, same_data=False))
    for other in (copy, tiny_run.folder):
        said = refused(capsys, str(other), "--out", str(tmp_path / "out"))
        assert "data set (digits) is not the one" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ensemble": [0.5, 0.5]}, "ensemble has 2 weights"),
        ({"ensemble": [0.5, 0.4, 0.3]}, "ensemble sums to 1.2"),
        ({"ensemble": [0.0, 0.5, 0.5]}, r"ensemble\[0\]"),
        ({"ensemble": "learned"}, "ensemble"),
        ({"pruning": {}}, "pruning.source_sha256 is missing"),
        ({"exits": [1, 2]}, "ensemble has 3 weights|scores must have"),
    ],
)
def test_a_record_that_was_tampered_with_is_refused(
    change: Mapping[str, Any], words: str, pruned: tuple[Path, PruneStudy], tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(pruned[0], tmp_path / "copy"))
    facts = json.loads((copy / RECORD).read_text(encoding="utf-8"))
    (copy / RECORD).write_text(json.dumps({**facts, **change}), encoding="utf-8")
    with pytest.raises(RunError, match=words):
        ofav2.load_ensemble(copy)


def test_exits_without_weights_are_no_ensemble(source: Path) -> None:
    with pytest.raises(RunError, match="no weights for their ensemble: choose them with `ofav2 prune"):
        ofav2.load_ensemble(source)


def test_one_exit_that_was_named_is_its_own_ensemble(opened: ofav2.OpenedRun, tmp_path: Path) -> None:
    ofav2.extract(opened, opened.loaded.net.space.largest(), tmp_path / "net", (3,), formats=())
    images = torch.rand(2, 3, 20, 20, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        (expected,) = ofav2.load_subnet(tmp_path / "net")(images)
        merged = ofav2.load_ensemble(tmp_path / "net")
        assert torch.equal(merged(images), expected)
    assert merged.meta["usage"]["outputs"] == ["logits"]


def test_logits_that_are_not_finite_are_refused_by_exit(whole: Source) -> None:
    def module(images: Tensor) -> tuple[Tensor, ...]:
        return tuple(logits / 0 if place == 2 else logits for place, logits in enumerate(whole.module(images)))

    broken: Any = replace(whole, module=module)  # type: ignore[arg-type]
    with pytest.raises(RunError, match="exit 4 gives logits that are not finite on val images"):
        list(broken.batches(whole.evaluator.data.val))


# The command and the page


def test_the_command_shows_the_front_and_writes_the_page(source: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "out"
    assert cli.main(["prune", str(source), "--out", str(out), "--cautious", "--formats", "none"]) == 0
    shown, said = capsys.readouterr()
    assert sum(line.startswith("->") for line in shown.splitlines()) == 1
    assert "last exit alone" in shown
    assert "within one standard error" in shown
    assert f"load_ensemble({str(out)!r})" in said
    assert sorted(entry.name for entry in out.iterdir()) == [
        "model.safetensors",
        PAGE,
        "subnet.json",
        "trained_images.bin",
    ]


def test_exits_of_weight_0_are_not_called_all(source: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "out"
    assert cli.main(["prune", str(source), "--out", str(out), "--ensemble", "0.5,0.5,0,0", "--formats", "none"]) == 0
    shown = capsys.readouterr().out
    assert "all exits with a weight" in shown
    assert "(all exits with a weight" in shown.splitlines()[-1]
    assert "all exits with a weight: " in (out / PAGE).read_text(encoding="utf-8")


def test_test_images_that_chose_are_told(
    opened: ofav2.OpenedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ImageData, "validation_is_test", True)
    study = ofav2.prune_exits(opened.loaded.folder, out=tmp_path / "out", formats=())
    assert "test images are the validation images" in caplog.text
    write_subsets_page(study, tmp_path / PAGE)
    assert "Test images are the validation images" in (tmp_path / PAGE).read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_commands_and_the_python_of_the_docs_run(
    tiny_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    text = (ROOT / "docs" / "exits.md").read_text(encoding="utf-8").partition("## Prune exits")[2]
    (shell,) = re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    (code,) = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    shutil.copytree(tiny_run.folder, tmp_path / "runs" / "digits")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ofav2.exits.calibrate.TIMED_IMAGES", 4)
    monkeypatch.setattr("ofav2.exits.calibrate.ROUNDS", 1)

    # Which exits win in a run of a few steps is chance; one that is left alone can't be calibrated.
    def several(table: SubsetTable, *_: object, **__: object) -> prune.Choice:
        return prune.Choice(next(index for index, choice in enumerate(table.choices) if len(choice) > 1), "made up")

    monkeypatch.setattr(prune, "choose", several)
    commands = [shlex.split(line, comments=True)[1:] for line in shell.splitlines()]
    assert {command[0] for command in commands} == {"prune", "calibrate"}
    for command in commands:
        assert cli.main([*command, *(["--formats", "none"] if command[0] == "prune" else [])]) == 0, command
    capsys.readouterr()
    exec(compile(code, "docs/exits.md", "exec"), {"__name__": "docs"})


def test_the_page_is_whole_and_text_is_text(pruned: tuple[Path, PruneStudy], tmp_path: Path) -> None:
    study = replace(pruned[1], name="<script>x</script>", data="<b>y</b>")
    write_subsets_page(study, tmp_path / PAGE)
    page = (tmp_path / PAGE).read_text(encoding="utf-8")
    assert "&lt;script&gt;x&lt;/script&gt;" in page
    assert "<b>y</b>" not in page
