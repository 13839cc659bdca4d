"""A sub-network is taken out whole, checked, with facts that can be measured again, or not at all."""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import ofav2
from ofav2 import files
from ofav2.data import open_data
from ofav2.data.splits import RGB, TargetSpec
from ofav2.deploy.artifact import RECORD, WEIGHTS, InputRecord, SubnetRecord
from ofav2.deploy.seen import SEEN
from ofav2.errors import RunError, UserError
from ofav2.evaluation import opened_run
from ofav2.evaluation.opened_run import OpenedRun
from ofav2.runs import checkpoint
from supernets import SpaceError, Subnet
from supernets.layers import ElasticConv2d, ElasticDepthwise
from supernets.subnet_cost import subnet_cost
from tests.ofav2 import tiny


@pytest.fixture
def record(extracted: Path) -> SubnetRecord:
    return ofav2.describe_subnet(extracted)


def files_below(path: Path) -> list[str]:
    return sorted(str(entry.relative_to(path)) for entry in path.rglob("*"))


def test_weights_and_description_are_written_and_belong_together(extracted: Path, record: SubnetRecord) -> None:
    assert {RECORD, WEIGHTS} <= {entry.name for entry in extracted.iterdir()}
    assert record.sha256 == hashlib.sha256((extracted / WEIGHTS).read_bytes()).hexdigest()
    assert [entry.name for entry in extracted.parent.iterdir()] == ["middle"], "no staging is left"
    assert extracted.stat().st_mode & 0o777 == 0o755


def test_the_description_of_an_extracted_network_says_what_it_is_and_where_it_came_from(
    record: SubnetRecord, opened: OpenedRun
) -> None:
    subnet = tiny.middle(opened.loaded.net.space)
    cost = subnet_cost(opened.loaded.net.architecture, subnet)
    assert (record.subnet, record.cost) == (subnet, cost)
    assert record.classes == tuple(str(digit) for digit in range(10))
    assert record.input == InputRecord(RGB, 16, 255.0, opened.data.mean, opened.data.std, None, 0.875, True, 0)
    came_from = record.provenance
    assert (came_from.run, came_from.phase, came_from.checkpoint_sha256) == ("six", "expand", opened.loaded.sha256)
    assert came_from.data_fingerprint == opened.data.fingerprint == record.data_fingerprint
    assert record.extraction is not None
    assert record.extraction.calibration_images == 30


def test_accuracies_before_and_after_can_be_measured_again(
    extracted: Path, record: SubnetRecord, opened: OpenedRun
) -> None:
    subnet, evaluator = tiny.middle(opened.loaded.net.space), opened.evaluator
    raw, loaded = opened.loaded.net.extract(subnet), ofav2.load_subnet(extracted)
    for split in (opened.data.val, opened.data.test):
        assert record.extraction.scores_before[split.name] == {3: evaluator.exit_scores(raw, 16, split)[0]}
        assert record.scores[split.name] == {3: evaluator.exit_scores(loaded, 16, split)[0]}
        (score,) = evaluator.scores(opened.loaded.net, [subnet], split)
        assert record.scores[split.name] == {3: score.value}


def test_extracting_again_gives_the_same_bytes_and_leaves_the_run_alone(
    extracted: Path, opened: OpenedRun, tmp_path: Path
) -> None:
    net = opened.loaded.net
    before = tiny.bits(net)
    ofav2.extract(opened, tiny.middle(net.space), tmp_path / "deeper" / "again", formats=())
    assert (tmp_path / "deeper/again" / WEIGHTS).read_bytes() == (extracted / WEIGHTS).read_bytes()
    assert tiny.same_bits(tiny.bits(net), before)
    assert not net.training


def test_an_empty_folder_will_do_for_an_extraction(opened: OpenedRun, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    ofav2.extract(opened, opened.loaded.net.space.smallest(), tmp_path / "out", formats=())
    assert (tmp_path / "out" / RECORD).is_file()
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("taken", ["folder", "file"])
def test_what_lies_there_is_left_alone(taken: str, opened: OpenedRun, tmp_path: Path) -> None:
    held = tmp_path / "out" if taken == "file" else tmp_path / "out" / "mine.txt"
    held.parent.mkdir(exist_ok=True)
    held.write_text("mine")
    with pytest.raises(UserError, match=r"output folder \(.*out\) is not empty"):
        ofav2.extract(opened, opened.loaded.net.space.largest(), tmp_path / "out")
    assert held.read_text() == "mine"
    assert files_below(tmp_path) in (["out"], ["out", "out/mine.txt"])


def test_a_folder_that_cannot_be_made_is_named(opened: OpenedRun, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match=r"output folder \(.*file/out\)"):
        ofav2.extract(opened, opened.loaded.net.space.largest(), tmp_path / "file" / "out")
    assert files_below(tmp_path) == ["file"]


@pytest.mark.parametrize("fails", ["write_bytes", "write_json"])
@pytest.mark.parametrize("kind", [RunError("disk full"), OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_nothing_is_half_written(
    fails: str, kind: BaseException, opened: OpenedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise kind

    monkeypatch.setattr(files, fails, fail)
    expected = UserError if isinstance(kind, OSError) else type(kind)
    with pytest.raises(expected):
        ofav2.extract(opened, opened.loaded.net.space.smallest(), tmp_path / "out", formats=())
    assert files_below(tmp_path) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"resolution": 24}, r"^resolution \(24\)"),
        ({"height": 6, "depth": [2] * 6}, r"height"),
        ({"kernel": [[7] * 2] * 5}, r"^kernel\[0\]\[0\] \(7\)"),
        ({"expand": [[6] * 2] * 5}, r"^expand\[0\]\[0\] \(6\)"),
    ],
)
def test_a_network_outside_the_trained_space_is_refused_by_name_and_value(
    change: dict[str, Any], message: str, opened: OpenedRun, tmp_path: Path
) -> None:
    fields = opened.loaded.net.space.largest().to_dict() | change
    if "height" in change:
        for name in ("kernel", "expand", "level"):
            fields[name] = [*fields[name], fields[name][-1]]
    with pytest.raises(SpaceError, match=message):
        ofav2.extract(opened, Subnet.from_dict(fields), tmp_path / "out")
    assert files_below(tmp_path) == []


def test_what_an_earlier_phase_did_not_train_is_outside_its_space(tiny_run: Any, tmp_path: Path) -> None:
    opened = ofav2.open_run(tiny_run.folder, "kernel")
    subnet = ofav2.load_supernet(tiny_run.folder).space.uniform(depth=1)
    with pytest.raises(SpaceError, match=r"^depth\[0\] \(1\) is not in the space: choose one of 2"):
        ofav2.extract(opened, subnet, tmp_path / "out")


def test_a_network_that_its_ranking_did_not_choose_is_refused(opened: OpenedRun, tmp_path: Path) -> None:
    ranking = ofav2.choose(opened, ofav2.Limits(), candidates=2)
    other = next(one.subnet for one in ranking.ranked if one.subnet != ranking.best.subnet)
    with pytest.raises(UserError, match=r"sub-network \(.*\) is not what the ranking chose \(.*\): extract that one"):
        ofav2.extract(opened, other, tmp_path / "out", ranking=ranking, formats=())
    assert not (tmp_path / "out").exists()
    written = ofav2.extract(opened, ranking.best.subnet, tmp_path / "out", ranking=ranking, formats=())
    assert written.choice is not None


def test_formats_choose_the_files_beside_weights_and_description(opened: OpenedRun, tmp_path: Path) -> None:
    formats, always = ("card", "pt2"), [WEIGHTS, RECORD, SEEN]
    record = ofav2.extract(opened, tiny.middle(opened.loaded.net.space), tmp_path / "out", formats=formats)
    assert files_below(tmp_path / "out") == sorted([*always, "model.pt2", "model_card.md"])
    assert record.formats == formats
    assert list(record.exports.largest_gap) == ["model.pt2"]
    card = (tmp_path / "out" / "model_card.md").read_text()
    assert "model.pt2" in card
    assert "onnx" not in card
    none = ofav2.extract(opened, tiny.middle(opened.loaded.net.space), tmp_path / "none", formats=())
    assert files_below(tmp_path / "none") == always
    assert none.exports.largest_gap == {}


def test_a_format_that_does_not_exist_is_refused_by_name(opened: OpenedRun, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^formats \(tflite\): must be out of onnx, pt2, card"):
        ofav2.extract(opened, opened.loaded.net.space.smallest(), tmp_path / "out", formats=("onnx", "tflite"))
    assert files_below(tmp_path) == []


# The self-check


@pytest.mark.parametrize("layer", [ElasticConv2d, ElasticDepthwise])
def test_a_slice_that_is_wrong_in_extraction_alone_is_found(
    layer: Any, opened: OpenedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = layer.plain

    def wrong(self: Any, *sizes: int) -> Any:
        made = plain(self, *sizes)
        with torch.no_grad():
            made.weight.copy_(made.weight.flip(0))
        return made

    monkeypatch.setattr(layer, "plain", wrong)
    with pytest.raises(RunError, match="extracted network"):
        ofav2.extract(opened, opened.loaded.net.space.smallest(), tmp_path / "out", formats=())
    assert files_below(tmp_path) == []


def test_weights_that_are_written_wrongly_are_found(
    opened: OpenedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = checkpoint.tensor_bytes

    def wrong(tensors: Mapping[str, torch.Tensor]) -> bytes:
        return plain({name: tensor.flip(0) if tensor.ndim == 4 else tensor for name, tensor in tensors.items()})

    monkeypatch.setattr(checkpoint, "tensor_bytes", wrong)
    with pytest.raises(RunError, match="network that was read back does not compute what it should"):
        ofav2.extract(opened, opened.loaded.net.space.smallest(), tmp_path / "out", formats=())
    assert files_below(tmp_path) == []


# Measuring


def test_networks_are_measured_from_the_most_expensive_to_the_cheapest(opened: OpenedRun) -> None:
    space = opened.loaded.net.space
    subnets = [space.smallest(), space.largest(), space.uniform(height=2), space.largest()]
    measured = ofav2.measure(opened, subnets, "val")
    macs = [one.cost.macs for one in measured]
    assert macs == sorted(macs, reverse=True)
    assert len(measured) == 3, "equal ones once"
    assert {one.images for one in measured} == {len(opened.data.val)}
    scores = {
        score.subnet: score.value for score in opened.evaluator.scores(opened.loaded.net, subnets, opened.data.val)
    }
    assert {one.subnet: one.metrics for one in measured} == {s: {"top-1": top1} for s, top1 in scores.items()}


def test_validation_and_test_are_different_images(opened: OpenedRun) -> None:
    assert (len(opened.data.val), len(opened.data.test)) == (36, 50)
    subnet = opened.loaded.net.space.largest()
    for split in (opened.data.val, opened.data.test):
        (score,) = opened.evaluator.scores(opened.loaded.net, [subnet], split)
        (measured,) = ofav2.measure(opened, [subnet], split.name)
        assert (measured.metrics["top-1"], measured.images) == (score.value, len(split))


def test_measuring_outside_the_space_is_refused(opened: OpenedRun) -> None:
    foreign = tiny.tiny_net(resolutions=(16,)).space.uniform(depth=3)
    with pytest.raises(SpaceError, match=r"^depth\[0\] \(3\)"):
        ofav2.measure(opened, [opened.loaded.net.space.largest(), foreign], "val")


@pytest.mark.parametrize("split", ["validation", "train", ""])
def test_a_split_of_another_name_is_refused(split: str, opened: OpenedRun) -> None:
    with pytest.raises(UserError, match=r"^split \(.*\) must be val or test"):
        ofav2.measure(opened, [opened.loaded.net.space.smallest()], split)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"target": TargetSpec("classes", ("none",) * 7)},
            'class "0" is missing, and class "none" was not there before',
        ),
        ({"target": TargetSpec("classes", tuple("0123456798"))}, 'class 8 was "8", and is "9" now; restore'),
        ({"mean": (0.4, 0.4, 0.4)}, "mean was"),
        ({"std": (0.4, 0.4, 0.4)}, "std was"),
    ],
)
def test_data_that_mean_something_else_are_refused(
    changed: dict[str, Any], message: str, run_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opened_run, "open_data", lambda *given: replace(open_data(*given), **changed))
    with pytest.raises(RunError, match=message):
        ofav2.open_run(run_copy)
