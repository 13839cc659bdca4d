"""A network of timm with exits is trained, stopped, resumed, evaluated and extracted as a supernet is."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

import distill
import ofav2
import ofav2.timm_plugin
from ofav2 import files
from ofav2.cli.main import main
from ofav2.config import recipe
from ofav2.deploy.card import model_card
from ofav2.errors import RunError, UserError
from ofav2.exits import calibrate, prune
from ofav2.nas.constraints import constrain
from ofav2.runs import checkpoint, folder
from ofav2.runs.metrics_file import read_metrics
from ofav2.runs.records import Run, read_run
from ofav2.training.beginning import check_beginning
from ofav2.training.setup import prepare
from supernets.backbone import Backbone
from supernets.multi_exit import MultiExit
from tests.notes import Notes
from tests.ofav2 import tiny
from tests.ofav2.changes import change_facts
from tests.ofav2.crew import run_apart
from tests.ofav2.exactness import assert_same_run
from tests.ofav2.test_resume import at, stopped_after
from tests.shared import made_once

# Backbone first, then all exits.
MIXED = """\
run: {threads: 1, device: cpu}
data: {name: digits, resolutions: [32], batch_size: 16, val_fraction: 0.02, test_fraction: 0.03}
network: {kind: timm, name: test_resnet}
optim: {name: adamw, weight_decay: 0.01}
evaluation: {every_epochs: 0}
tracking: {every_steps: 1}
phases:
  backbone: {epochs: 0.02, lr: 0.003, exit_weights: last}
  all: {epochs: 0.04, lr: 0.003, dropout: 0.2, exit_weights: mixed}
"""


@pytest.fixture(scope="session")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Path of a recipe of two phases."""
    return tiny.written(tmp_path_factory.mktemp("recipes"), MIXED, "mixed")


@pytest.fixture(scope="session")
def exits_run(mixed: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run of it; to look at only."""
    path = made_once(tmp_path_factory, "exits", lambda path: ofav2.train(mixed, run_dir=path))
    return Run(path, read_run(path))


@pytest.fixture(scope="module")
def opened(exits_run: Run) -> ofav2.OpenedRun:
    return ofav2.open_run(exits_run.folder)


def weights(run: Path, phase: str) -> dict[str, torch.Tensor]:
    return checkpoint.load(folder.checkpoint_path(run, phase))[0]


def test_the_record_describes_the_network(exits_run: Run) -> None:
    arch = exits_run.record.architecture
    assert isinstance(arch, Backbone)
    assert (arch.name, arch.exits, arch.num_classes) == ("test_resnet", (1, 2, 3, 4), 10)
    assert len(arch.behaviour) == 4
    assert exits_run.record.status == "finished"
    assert exits_run.record.test is not None


def test_a_backbone_trained_first_leaves_the_attached_exits_alone(exits_run: Run) -> None:
    first, second = (weights(exits_run.folder, phase) for phase in ("backbone", "all"))
    fresh = ofav2.attach_exits("test_resnet", classes=10, resolution=32).state_dict()
    for name, tensor in fresh.items():
        same = torch.equal(first[f"network.{name}"], tensor)
        assert same == name.startswith("exits."), name
        if tensor.is_floating_point():
            assert not torch.equal(second[f"network.{name}"], first[f"network.{name}"]), name


def test_validation_has_every_exit_and_the_ensemble(exits_run: Run) -> None:
    lines = [line for line in read_metrics(exits_run.folder) if line["kind"] == "validation"]
    assert [line["phase"] for line in lines] == ["backbone", "all"]
    for line in lines:
        assert {f"exit_{exit}" for exit in (1, 2, 3, 4)} | {"ensemble"} < line.keys()
        assert (line["largest"], line["smallest"]) == (line["exit_4"], line["exit_1"])
    assert lines[0]["ensemble"] == lines[0]["exit_4"], "the phase's own weights count"


def test_a_loaded_network_scores_what_the_run_recorded(exits_run: Run, opened: ofav2.OpenedRun) -> None:
    net = opened.loaded.net
    assert isinstance(net, MultiExit)
    scores = opened.evaluator.exit_scores(net.network, 32, opened.data.test)
    test = exits_run.record.test
    assert test is not None
    assert (scores[-1], scores[0]) == (test.largest, test.smallest)
    found = opened.evaluator.scores(net, net.space.corners(), opened.data.test)
    assert {score.subnet.height: score.value for score in found} == dict(enumerate(scores, 1))


def test_an_extracted_network_computes_what_the_run_does(opened: ofav2.OpenedRun, tmp_path: Path) -> None:
    net, images = opened.loaded.net, opened.evaluator.sample_inputs(32)[:4]
    subnet = replace(net.space.largest(), height=3)
    written = ofav2.extract(opened, subnet, tmp_path / "three", (1, 3), formats=("card",))
    assert written.extraction is not None
    assert written.extraction.calibration_images == 0
    assert "test_resnet" in (tmp_path / "three" / "model_card.md").read_text(encoding="utf-8")
    module = ofav2.load_subnet(tmp_path / "three")
    assert all(map(torch.equal, module(images), net(images, subnet, (1, 3))))
    assert not any(name.startswith(("layer4", "fc", "exits.2")) for name in module.state_dict())
    assert ofav2.describe_subnet(tmp_path / "three") == written


def test_a_stopped_run_ends_as_a_straight_one(mixed: str, exits_run: Run, tmp_path: Path) -> None:
    with stopped_after(at("all", 1)):
        ofav2.train(mixed, run_dir=tmp_path / "run")
    ofav2.resume(tmp_path / "run")
    assert_same_run(tmp_path / "run", exits_run.folder)


def test_patience_ends_a_phase_and_a_stopped_run_ends_as_a_straight_one(mixed: str, tmp_path: Path) -> None:
    # At this rate nothing falls after the first validations.
    settings = ["phases.all.lr=1e-30", "phases.all.patience=1", "phases.all.epochs=0.2", "phases.all.dropout=0"]
    settings += ["evaluation.every_epochs=0.02", "run.save_steps=1"]
    straight = ofav2.train(mixed, settings, tmp_path / "straight")
    steps = [line["global_step"] for line in read_metrics(straight.folder) if line["kind"] == "validation"]
    backbone, last = straight.record.phases
    assert 0 < last.steps < last.end - backbone.end
    assert steps[-1] == backbone.end + last.steps
    with stopped_after(at("all", last.steps)):
        ofav2.train(mixed, settings, tmp_path / "run")
    ofav2.resume(tmp_path / "run")
    assert_same_run(tmp_path / "run", straight.folder)


def test_two_processes_train_one_network(mixed: str, tmp_path: Path) -> None:
    ended = run_apart(2, lambda: ofav2.train(mixed, run_dir=tmp_path / "run").record)
    assert ended[0].found == ended[1].found
    assert read_run(tmp_path / "run").status == "finished"


def test_training_starts_from_the_weights_of_a_file(mixed: str, tmp_path: Path) -> None:
    state = ofav2.attach_exits("test_resnet", classes=10, resolution=32, seed=7).state_dict()
    own = {name: tensor for name, tensor in state.items() if not name.startswith("exits.")}
    save_file(own, tmp_path / "own.safetensors")
    run = ofav2.train(
        mixed, [f"network.weights={tmp_path / 'own.safetensors'}", "phases.all.lr=1e-12"], tmp_path / "run"
    )
    end = weights(run.folder, "backbone")
    distance = {name: float((end[f"network.{name}"] - tensor).abs().max()) for name, tensor in own.items()}
    assert distance["layer4.0.conv1.weight"] < 0.05
    assert run.record.weights_sha256 == files.sha256(tmp_path / "own.safetensors")
    save_file({name: -tensor for name, tensor in own.items()}, tmp_path / "own.safetensors")
    assert ofav2.resume(run.folder).record == run.record, "what it began with is over"
    with pytest.raises(RunError, match=r"network\.weights was of a part of the run that is over"):
        ofav2.resume(run.folder, overrides=["network.weights=null"], allow=["network"])


def test_a_run_goes_on_where_the_file_that_it_began_with_is_gone(mixed: str, tmp_path: Path) -> None:
    state = ofav2.attach_exits("test_resnet", classes=10, resolution=32, seed=7).state_dict()
    own = tmp_path / "own.safetensors"
    save_file({name: tensor for name, tensor in state.items() if not name.startswith("exits.")}, own)
    straight = ofav2.train(mixed, [f"network.weights={own}"], tmp_path / "straight")
    with stopped_after(at("all", 1)):
        ofav2.train(mixed, [f"network.weights={own}"], tmp_path / "run")
    own.unlink()
    assert ofav2.resume(tmp_path / "run").record.weights_sha256 == straight.record.weights_sha256
    assert_same_run(tmp_path / "run", straight.folder)


def test_the_page_and_the_other_commands_know_networks_with_exits(
    exits_run: Run, opened: ofav2.OpenedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = ofav2.write_report(exits_run.folder, tmp_path / "page.html").read_text(encoding="utf-8")
    assert "test_resnet with 4 exits" in page
    assert '"validated": ["ensemble", "exit_1", "exit_2", "exit_3", "exit_4"]' in page
    assert main(["evaluate", str(exits_run.folder), "--split", "val"]) == 0
    assert "r32 exit 2" in capsys.readouterr().out
    assert main(["latency", str(exits_run.folder)]) == 2
    assert "is no supernet" in capsys.readouterr().err
    with pytest.raises(UserError, match="--largest"):
        constrain(opened.loaded, ofav2.parse_limits(macs="1M"))


def test_plan_lists_the_cost_of_every_subset(mixed: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", mixed, "--latency"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line for line in lines if re.match(r"\d(, \d)* +[\d,]+ +[\d,]+ +[\d.]+[KM]iB +[\d.]+.s +[\d.]+.s", line)]
    assert len(rows) == 2**4 - 1
    assert main(["plan", mixed, "--json"]) == 0
    subsets = json.loads(capsys.readouterr().out)["subsets"]
    priced = [(", ".join(map(str, one["exits"])), f"{one['cost']['macs']:,}") for one in subsets]
    assert priced == [(line[0], line[2]) for line in (re.split(r" {2,}", row) for row in rows)]
    assert main(["plan", "digits", "--latency"]) == 2
    assert "ofav2 latency RUN" in capsys.readouterr().err


def test_exits_that_nothing_trains_choose_no_epoch(mixed: str, tmp_path: Path) -> None:
    """The best epoch, and patience, go by the exits that are trained: here the last one alone."""
    settings = [
        "phases.backbone.objective=distill",
        "phases.backbone.teacher=none",
        "phases.backbone.exit_weights=uniform",
    ]
    run = ofav2.train(mixed, settings, tmp_path / "run").folder
    found = [line for line in read_metrics(run) if line["kind"] == "validation" and line["phase"] == "backbone"]
    assert found
    assert all(line["ensemble"] == line["exit_4"] for line in found)


def test_a_teacher_of_timm_that_no_phase_has_is_refused(mixed: str) -> None:
    with pytest.raises(UserError, match=r"teacher\.policy \(timm:resnet18\): no phase learns from it"):
        prepare(recipe.load(mixed, ["teacher.policy=timm:resnet18"]))


def test_settings_of_a_supernet_are_said_to_have_no_effect(mixed: str, notes: Notes) -> None:
    check_beginning(prepare(recipe.load(mixed, ["supernet.width_mult=0.5"])))
    assert notes() == "supernet.width_mult (0.5): has no effect, as network.kind is timm\n"


BAD = {
    "network.name=null": "network.name (null)",
    "network.kind=supernet": "network.kind (supernet)",
    "network.exits=all": "must be stages",
    "network.head=wide": "network.head",
    "data.resolutions=[8]": "resolution (8) is smaller than the 16 pixels",
    "phases.all.exit_weights=[0.5,0.5]": "one number per exit",
    "phases.all.exit_weights=last": "phases.all.unlock (empty) repeats",
    "phases.all.patience=2": "phases.all.patience (2) counts validations",
}


@pytest.mark.parametrize("setting", BAD)
def test_what_cant_be_trained_is_refused_before_anything_is_written(
    setting: str, mixed: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", mixed, setting, "--run-dir", str(tmp_path / "run")]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert BAD[setting] in line
    assert not (tmp_path / "run").exists()


def test_a_record_of_another_network_than_timm_makes_is_refused(exits_run: Run, run_folder: Path) -> None:
    change_facts(run_folder, lambda facts: facts["architecture"]["behaviour"].__setitem__(0, 99.0))
    with pytest.raises(RunError, match="another network of the name test_resnet"):
        ofav2.load_supernet(run_folder)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("taps", [], "space is not that of the architecture"),
        ("num_classes", "ten", "num_classes"),
        ("head", "wide", "head"),
        ("surplus", 1, "surplus"),
        ("name", "resnet81", "unknown to timm"),
    ],
)
def test_a_damaged_record_is_refused_in_one_line(key: str, value: object, message: str, run_folder: Path) -> None:
    change_facts(run_folder, lambda facts: facts["architecture"].__setitem__(key, value))
    with pytest.raises((RunError, UserError)) as caught:
        ofav2.load_supernet(run_folder)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.fixture
def run_folder(exits_run: Run, tmp_path: Path) -> Path:
    """A folder of the run's record alone, to damage."""
    path = tmp_path / "damaged"
    path.mkdir()
    (path / "run.json").write_text(json.dumps(json.loads((exits_run.folder / "run.json").read_text())))
    return path


# Its exits are pruned


@pytest.fixture(scope="module")
def pruned(exits_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its first two exits, whichever are best; to look at only."""
    path = tmp_path_factory.mktemp("pruned") / "net"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prune, "ROUNDS", 1)
        patch.setattr(prune, "choose", lambda table, *_, **__: prune.Choice(table.choices.index((0, 1)), "made up"))
        study = ofav2.prune_exits(exits_run.folder, out=path, formats=("onnx",))
    assert len(study.table.choices) == 15
    assert study.pruning.ensemble == "mixed"
    return path


def test_a_pruned_network_has_the_logits_of_the_whole_one_to_the_bit(pruned: Path, opened: ofav2.OpenedRun) -> None:
    record = ofav2.describe_subnet(pruned)
    assert record.exits == (1, 2)
    assert record.ensemble == pytest.approx((1 / 3, 2 / 3))
    assert record.pruning is not None
    reached = (record.pruning.chosen.val.top1, record.pruning.test["chosen"].top1)
    assert f"| ensemble | {' | '.join(f'{100 * top1:.2f} %' for top1 in reached)} |" in model_card(record)
    net, images = opened.loaded.net, torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    whole = net.extract(net.space.largest(), "all")
    with torch.no_grad():
        exits = opened.runtime.place(ofav2.load_subnet(pruned))(images)
        assert all(map(torch.equal, exits, opened.runtime.place(whole)(images)[:2]))
        merged = opened.runtime.place(ofav2.load_ensemble(pruned))(images)
        assert torch.equal(merged, distill.ensemble(exits, record.ensemble or ()))
    assert sum(tensor.numel() for tensor in ofav2.load_subnet(pruned).parameters()) == record.cost.params


def test_a_pruned_network_is_calibrated_and_taken_by_timm(pruned: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(pruned, tmp_path / "copy"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibrate, "TIMED_IMAGES", 4)
        patch.setattr(calibrate, "ROUNDS", 1)
        assert ofav2.calibrate_exits(copy, max_macs=10**9, ensemble=True).record.exits == (1, 2)
    model = timm.create_model("ofav2_subnet", subnet_dir=str(copy)).eval()
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(model(images), ofav2.load_ensemble(copy)(images), rtol=1e-4, atol=1e-5)


def test_timm_takes_a_network_of_its_own_with_one_exit(opened: ofav2.OpenedRun, tmp_path: Path) -> None:
    space, images = opened.loaded.net.space, torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for height in (1, 4):
        out = tmp_path / str(height)
        ofav2.extract(opened, replace(space.largest(), height=height), out, formats=())
        model = timm.create_model("ofav2_subnet", subnet_dir=str(out)).eval()
        with torch.no_grad():
            torch.testing.assert_close(model(images), ofav2.load_subnet(out)(images), rtol=1e-4, atol=1e-5)
