"""A whole run: what it writes to disk, what it saw to get there, and that wrong input writes nothing at all."""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb
import yaml
from torch import Tensor

import distill
import ofav2
import ofav2.training.loop
from ofav2 import files
from ofav2.config import recipe
from ofav2.config.schema import DataConfig
from ofav2.data import ImageData, Split, SplitRecord, open_data
from ofav2.data.images import Images, Indices, Pixels, pixels_of
from ofav2.errors import RunError
from ofav2.evaluation import corners
from ofav2.evaluation.by_class import read_classes
from ofav2.evaluation.evaluator import Evaluator, Score
from ofav2.evaluation.opened_run import OpenedRun
from ofav2.networks.cost import network_cost
from ofav2.report.networks import tables
from ofav2.runs import checkpoint, folder
from ofav2.runs.metrics_file import read_metrics
from ofav2.runs.records import Run, TeacherRecord, read_run
from ofav2.runs.snapshot import read_snapshot
from ofav2.training import setup as prepare
from ofav2.training.step import train_steps
from supernets import SpaceError, Subnet, Supernet
from supernets.layers import Dropout
from tests.notes import Notes
from tests.ofav2 import tiny
from tests.ofav2.wandb_files import history, wandb_records


def metrics(run: Run, kind: str) -> list[dict[str, Any]]:
    return [line for line in read_metrics(run.folder) if line["kind"] == kind]


def train_two(folder: Path, *overrides: str, name: str = "two") -> Run:
    """The least of all runs."""
    return ofav2.train(Path(tiny.written(folder / "recipes", tiny.TWO, name)), overrides, folder / "run")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The least of all runs, finished; to look at only."""
    return train_two(tmp_path_factory.mktemp("two"))


def weights_of(run: Run, phase: str) -> bytes:
    return checkpoint.file_paths(folder.checkpoint_path(run.folder, phase))[0].read_bytes()


# What a run writes


def test_without_corners_a_run_still_tells_what_its_largest_and_smallest_network_reach(
    two: Run, tmp_path: Path
) -> None:
    assert [phase.mean_corner_score for phase in two.record.phases] == [None, None]
    assert [line["name"] for line in metrics(two, "table")] == ["test/corners"]
    assert all("mean" not in line for line in metrics(two, "corners"))
    assert two.record.test is not None
    assert ofav2.write_report(two.folder, tmp_path / "report.html").exists()


def test_all_six_phases_are_trained_in_order(tiny_run: Run) -> None:
    record = read_run(tiny_run.folder)
    assert record.status == "finished"
    assert [phase.name for phase in record.phases] == list(tiny.SIX_PHASES)
    assert [phase.steps for phase in record.phases] == [2] * 6
    assert [phase.end for phase in record.phases] == [2, 4, 6, 8, 10, 12]
    unlocked = {"kernel": (3, 5), "level": (1, 2, 3), "height": (1, 2, 3, 4, 5), "depth": (1, 2), "expand": (2, 3)}
    largest = {"kernel": (5,), "level": (3,), "height": (5,), "depth": (2,), "expand": (3,)}
    for done, phase in enumerate(record.phases[1:], start=1):
        expected = largest | {name: unlocked[name] for name in list(unlocked)[:done]}
        assert {name: getattr(phase.space, name) for name in expected} == expected
    assert record.space == record.phases[-1].space


def test_what_train_returns_is_what_lies_on_disk(two: Run) -> None:
    assert read_run(two.folder) == two.record


def test_every_phase_names_its_teacher_and_why(tiny_run: Run) -> None:
    records = {phase.name: phase for phase in tiny_run.record.phases}
    assert records["full"].teacher == records["height"].teacher == TeacherRecord("none")
    reached = {name: phase.ensemble_score for name, phase in records.items()}
    before = list(tiny.SIX_PHASES)
    expected = {
        "kernel": ("progressive", "full"),
        "level": ("progressive", "kernel"),
        "depth": ("best", max(reversed(before[:4]), key=lambda name: reached[name] or 0.0)),
        "expand": ("fixed", "full"),
    }
    for name, (policy, teacher_phase) in expected.items():
        teacher = records[name].teacher
        assert (teacher.policy, teacher.phase, teacher.score) == (policy, teacher_phase, reached[teacher_phase])
        assert (teacher.reason or "").startswith(f"{policy}: {teacher_phase}'s largest network")


def test_the_recipe_of_the_run_is_complete_and_the_one_that_ran(tiny_run: Run, tiny_recipe: str) -> None:
    kept = str(tiny_run.folder / folder.RECIPE)
    assert recipe.load(kept) == recipe.load(tiny_recipe)
    assert tuple(yaml.safe_load(Path(kept).read_text())) == recipe.SECTIONS


@pytest.mark.parametrize("phase", tiny.SIX_PHASES)
def test_every_checkpoint_loads_and_its_largest_network_does_what_was_recorded(
    phase: str, tiny_run: Run, opened: OpenedRun
) -> None:
    record = next(record for record in tiny_run.record.phases if record.name == phase)
    tensors, facts = checkpoint.load(folder.checkpoint_path(tiny_run.folder, phase))
    assert facts["ensemble_score"] == record.ensemble_score
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    net = ofav2.load_supernet(tiny_run.folder, phase)
    assert tiny.same_bits(net.state_dict(), tensors)
    module = (
        net.extract(net.space.uniform(height=5), exits="all")
        if phase != "full"
        else net.extract(net.space.largest(), "all")
    )
    weights = distill.exit_weights("ascending", 5).ensemble
    assert opened.evaluator.ensemble_score(module, weights, 16, opened.data.val) == record.ensemble_score


def test_classes_are_measured_of_the_largest_network_that_was_trained(tmp_path: Path) -> None:
    text = tiny.SIX.partition("  kernel:")[0].replace(tiny.ALL_CORNERS, tiny.NO_CORNERS)
    weights = ["phases.full.exit_weights=[0.5,0.5,0,0,0]"]
    run = ofav2.train(tiny.written(tmp_path, text), weights, tmp_path / "run")
    found, largest = read_classes(run.folder, run.record), run.record.phases[-1].space.largest()
    assert found
    assert largest.height == 2
    assert found.subnet == largest
    assert run.record.test
    assert found.results.accuracy == pytest.approx(run.record.test.largest)


def test_no_two_phases_left_the_same_weights(tiny_run: Run) -> None:
    assert len({weights_of(tiny_run, phase) for phase in tiny.SIX_PHASES}) == 6


def test_every_step_and_every_validation_is_in_the_metrics(tiny_run: Run) -> None:
    steps = metrics(tiny_run, "train")
    assert [line["global_step"] for line in steps] == list(range(1, 13))
    assert [line["phase"] for line in steps] == [name for name in tiny.SIX_PHASES for _ in range(2)]
    assert all({"loss", "lr", "resolution", "images_per_second"} <= line.keys() for line in steps)
    assert all({"exit_1", "exit_5"} <= line.keys() for line in steps[:2])
    assert all({"task_loss", "kd"} <= line.keys() and line["kd"] > 0 for line in steps[2:])
    ends = [2, 4, 6, 8, 10, 12]
    assert [line["global_step"] for line in metrics(tiny_run, "validation")] == ends, "every_epochs 0: at phases' ends"
    assert all(0 <= line[end] <= 1 for line in metrics(tiny_run, "validation") for end in ("largest", "smallest"))
    assert [line["global_step"] for line in metrics(tiny_run, "corners")] == ends
    assert [line["name"] for line in metrics(tiny_run, "table")] == [
        *(f"{name}/corners" for name in tiny.SIX_PHASES),
        "test/corners",
    ]
    assert [line["name"] for line in metrics(tiny_run, "scatter")] == ["test/accuracy_macs"]
    assert len(metrics(tiny_run, "test")) == 1


def test_every_uniform_corner_is_measured_on_test_and_scores_can_be_reproduced(
    tiny_run: Run, opened: OpenedRun
) -> None:
    table = metrics(tiny_run, "table")[-1]
    net = ofav2.load_supernet(tiny_run.folder)
    scores = list(opened.evaluator.scores(net, net.space.corners(), opened.data.test))
    again = [list(corners.corner_row(net.architecture, score)) for score in scores]
    assert sorted(map(str, again)) == sorted(map(str, table["rows"])), "to the last digit"
    assert len(again) == len(net.space.corners()) == 5 * 2 * (2 * 2 * 2 + 2)
    top1 = {score.subnet: score.value for score in scores}
    found = tiny_run.record.test
    assert found is not None
    assert found.largest == top1[net.space.largest()]
    assert found.smallest == top1[net.space.smallest()]
    assert {score.images for score in scores} == {len(opened.data.test)}


# The same seed


def test_the_same_recipe_and_seed_give_the_same_run_to_the_last_bit(tiny_run: Run, run_without_corners: Run) -> None:
    """That corners are measured alike each time has its own test above."""
    again = run_without_corners
    for phase in tiny.SIX_PHASES:
        assert weights_of(again, phase) == weights_of(tiny_run, phase)
    timed = ("time", "images_per_second")

    def untimed(run: Run) -> list[dict[str, Any]]:
        lines = (line for kind in ("train", "validation") for line in metrics(run, kind))
        return [{key: value for key, value in line.items() if key not in timed} for line in lines]

    assert untimed(again) == untimed(tiny_run)
    first, second = (found.record.test for found in (tiny_run, again))
    assert first is not None
    assert second is not None
    assert (first.largest, first.smallest) == (second.largest, second.smallest)


def test_another_seed_gives_another_network_evaluated_on_the_same_images(two: Run, tmp_path: Path) -> None:
    other = train_two(tmp_path, "run.seed=1")
    assert weights_of(two, "kernel") != weights_of(other, "kernel")
    assert two.record.data == other.record.data


# What a run sees


class Watched:
    """Images that may not be looked at before a file is there."""

    def __init__(self, images: Images, key: Path, seen: list[bool]) -> None:
        self.images, self.key, self.seen = images, key, seen

    def read(self, index: int) -> Tensor:
        self.seen.append(self.key.exists())
        return self.images.read(index)

    def look(self, indices: Indices) -> Pixels:
        return pixels_of([self.read(index) for index in indices.tolist()])

    def take(self, indices: Indices) -> "Watched":
        return Watched(self.images.take(indices), self.key, self.seen)

    def identity(self) -> bytes:
        return self.images.identity()

    def names(self) -> list[str] | None:
        return self.images.names()

    @property
    def decoded(self) -> bool:
        return self.images.decoded

    @property
    def size(self) -> tuple[int, int] | None:
        return self.images.size


def test_the_test_split_is_not_looked_at_before_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, list[bool]] = {"train": [], "val": [], "test": []}
    key = tmp_path / "run" / "checkpoints" / "kernel.json"

    def watched(config: DataConfig, split: SplitRecord | None) -> ImageData:
        data = open_data(config, split)
        splits = {
            name: Split(name, split.targets, Watched(split.images, key, seen[name]))
            for name, split in (("train", data.train), ("val", data.val), ("test", data.test))
        }
        return replace(data, **splits)  # type: ignore[arg-type]

    monkeypatch.setattr(prepare, "open_data", watched)
    train_two(tmp_path, "evaluation.every_epochs=0.01")
    assert len(seen["test"]) >= 50, "at the end it is"
    assert all(seen["test"])
    assert False in seen["val"]
    assert False in seen["train"]


def test_the_split_that_was_drawn_is_kept(tiny_run: Run) -> None:
    kept = files.read_json(tiny_run.folder / folder.SPLIT)
    data = read_run(tiny_run.folder).data
    assert kept["fingerprint"] == data.fingerprint
    assert (len(kept["val"]["indices"]), len(kept["test"]["indices"])) == (data.images.val, data.images.test)


def test_mixed_and_recoloured_images_are_trained_on_alike_each_time(two: Run, tmp_path: Path) -> None:
    settings = ("data.mixup=0.4", "data.cutmix=1.0", "data.randaugment=[1,9]", "data.jitter=[0.2,0.2,0.2,0.1]")
    losses = [
        [line["loss"] for line in read_metrics(train_two(tmp_path / name, *settings).folder) if "loss" in line]
        for name in ("first", "second")
    ]
    assert losses[0]
    assert losses[0] == losses[1]
    plain = [line["loss"] for line in read_metrics(two.folder) if "loss" in line]
    assert plain != losses[0]


def test_phases_that_the_variant_lacks_are_skipped_and_said(tmp_path: Path, notes: Notes) -> None:
    run = train_two(tmp_path)
    assert "height is skipped: this supernet has no choice of height" in notes()
    assert [phase.name for phase in run.record.phases] == ["full", "kernel"]


def test_branches_that_blocks_keep_are_on_in_all_networks_that_are_measured_and_chosen(tmp_path: Path) -> None:
    dropped = [f"phases.{name}=null" for name in ("kernel", "depth", "expand")]
    path = tiny.written(tmp_path / "recipes", tiny.SIX)
    run = ofav2.train(path, ["supernet.keep=[mbconv]", "data.val_fraction=0.1", *dropped], tmp_path / "run")
    assert [phase.space.keep for phase in run.record.phases] == [("mbconv",)] * 3
    opened = ofav2.open_run(run.folder)
    space = opened.loaded.net.space
    assert (space.keep, space.level) == (("mbconv",), (1, 2, 3))
    measured = [network.subnet for network in tables(read_snapshot(run.folder))[-1].networks]
    assert set(measured) == set(space.corners())
    assert {len(subnet.level[0][0]) for subnet in measured} == {1, 3}
    least = network_cost(opened.loaded.net.architecture, space.smallest()).macs
    chosen = ofav2.choose(opened, ofav2.Limits(macs=3 * least), candidates=4)
    for subnet in (*measured, *(one.subnet for one in chosen.ranked)):
        assert all("mbconv" in branches for stage in subnet.level for branches in stage)
    assert ofav2.write_report(run.folder).exists()


def test_the_best_validation_is_carried_on_and_of_equals_the_newer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluated, told = Evaluator.scores, iter([0.25, 0.75, 0.75, 0.5])
    states: list[dict[str, Tensor]] = []

    def scores(evaluator: Evaluator, net: Supernet, subnets: Iterable[Subnet], split: Split) -> Iterator[Score]:
        if len(states) < 4:
            states.append({name: parameter.detach().clone() for name, parameter in net.named_parameters()})
            top1 = next(told)
            return iter([Score(subnet, top1, len(split)) for subnet in dict.fromkeys(subnets)])
        return evaluated(evaluator, net, subnets, split)

    monkeypatch.setattr(Evaluator, "scores", scores)
    run = train_two(tmp_path, "evaluation.every_epochs=0.001", "phases.full.epochs=0.04")
    tensors, _ = checkpoint.load(folder.checkpoint_path(run.folder, "full"))
    assert len(states) == 4
    kept = [all(torch.equal(state[name], tensors[name]) for name in state) for state in states]
    assert kept == [False, False, True, False]


# Wrong input writes nothing


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("suprnet.variant=se_b", r"^suprnet .*did you mean supernet"),
        ("data.batchsize=3", r"^data\.batchsize .*did you mean data\.batch_size"),
        ("data.batch_size=many", r"^data\.batch_size \(.many.\).*whole number"),
        ("data.batch_size=5000", r"^data\.batch_size \(5000\).*1711 images"),
        ("data.name=digit", r"^data\.name \(digit\).*did you mean digits"),
        ("data.name=cifar10", r"^data\.root"),
        ("data.resolutions=[4,16]", r"^resolution \(4\) is smaller than the network's total stride 16"),
        ("supernet.variant=se_x", r"^supernet \('se_x'\) is unknown"),
        ("supernet.kernel=[3,4]", r"kernel.*4.*odd"),
        ("supernet.keep=[skip]", r"^supernet\.keep\[0\] .*mbconv, conv, transform"),
        ("supernet.keep=[conv]", r"^supernet\.keep \(conv\) is no branch of this supernet: it has mbconv"),
        ("supernet.width_mult=0.001", r"^supernet.width_mult \(0\.001\)"),
        ("phases.kernel.unlock.kernel=[5,7]", r"^phases\.kernel\.unlock\.kernel \(7\)"),
        ("supernet.depth=[1,2] phases.kernel.unlock.depth=[2,5]", r"^phases\.kernel\.unlock\.depth \(5\) .*among 1, 2"),
        ("phases.kernel.epochs=0", r"^phases\.kernel\.epochs \(0"),
        ("phases.kernel.teacher=progresive", r"^teacher policy \('progresive'\) is unknown"),
        ("phases.full.patience=2", r"^phases\.full\.patience \(2\) is for networks with exits"),
        ("phases.kernel.teacher=timm:no_such_network", r"^external teacher \('timm:no_such_network'\)"),
        ("teacher.exit_weights=[0.5,0.5]", r"^exit weights .*one number per exit, 1 here"),
        ("teacher.exit_weights=rising", r"^exit weights \('rising'\) name no known scheme"),
        ("run.device=cuda:99", r"^run\.device \(cuda:99\)"),
        ("run.seed=-1", r"^run\.seed \(-1\)"),
        ("evaluation.calibration_images=1", r"^evaluation\.calibration_images \(1\)"),
    ],
)
def test_what_cannot_be_trained_leaves_nothing(
    overrides: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny.written(tmp_path / "recipes", tiny.TWO)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for run_dir in (tmp_path / "run", None):
        with pytest.raises((ofav2.UserError, SpaceError, distill.DistillError), match=message) as caught:
            ofav2.train(path, overrides.split(" "), run_dir)
        assert len(str(caught.value).splitlines()) == 1
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["here", "recipes"]
    assert list((tmp_path / "here").iterdir()) == []


def test_an_unknown_recipe_leaves_nothing(tmp_path: Path) -> None:
    for name in ("digit", "nowhere/mine.yaml", ""):
        with pytest.raises(ofav2.UserError, match="recipe"):
            ofav2.train(name, run_dir=tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


# Run folders


def test_runs_without_a_folder_get_one_by_the_recipes_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tiny.written(tmp_path / "recipes", tiny.TWO, "mine")
    first, second = (ofav2.train(path, ["run.folder=kept", "phases.full.epochs=0.001"]) for _ in range(2))
    assert (first.folder, second.folder) == (Path("kept/mine"), Path("kept/mine-2"))
    assert second.record.name == "mine-2"


def test_an_empty_folder_will_do_as_a_run_folder(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    assert train_two(tmp_path).folder == tmp_path / "run"
    assert sorted(entry.name for entry in (tmp_path / "run").iterdir()) == [
        ".lock",
        "checkpoints",
        "classes.json",
        "metrics.jsonl",
        "recipe.yaml",
        "run.json",
        "split.json",
    ]


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("run.json", "holds a run: go on with it by --resume"),
        ("notes.txt", r"is not empty \(notes.txt\) and holds no run"),
        ("checkpoints/full.json", r"is not empty \(checkpoints\) and holds no run"),
    ],
)
def test_a_folder_that_holds_something_is_left_alone(entry: str, words: str, tmp_path: Path) -> None:
    held = tmp_path / "run" / entry
    held.parent.mkdir(parents=True)
    held.write_text("mine")
    with pytest.raises(RunError, match=rf"run folder \(.*run\) {words}"):
        train_two(tmp_path)
    with pytest.raises(RunError, match=rf"run folder \(.*run\) {words}"):
        ofav2.train("photos", ["data.root=/nowhere"], tmp_path / "run")
    assert held.read_text() == "mine"
    assert [path.name for path in (tmp_path / "run").iterdir()] == [held.relative_to(tmp_path / "run").parts[0]]


def test_allowed_changes_are_a_list(tmp_path: Path) -> None:
    with pytest.raises(ofav2.UserError, match=r'^allowed changes \("data.root"\) must be a list: pass \["data.root"\]'):
        ofav2.resume(tmp_path, allow="data.root")


def test_a_folder_in_use_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with folder.lock(tmp_path / "run"), pytest.raises(RunError, match=r"run folder \(.*run\)"):
        train_two(tmp_path)
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]


def test_every_phase_trains_with_its_own_dropout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, set[float]] = {}

    def steps(net: Supernet, *given: Any, **named: Any) -> Iterator[Any]:
        seen[named["stream"].name] = {module.p for module in net.modules() if isinstance(module, Dropout)}
        return train_steps(net, *given, **named)

    monkeypatch.setattr(ofav2.training.loop, "train_steps", steps)
    text = tiny.TWO.replace("full: {", "full: {dropout: 0.25, ").replace("kernel: {", "kernel: {dropout: 0.5, ")
    ofav2.train(tiny.written(tmp_path, text), run_dir=tmp_path / "run")
    assert seen == {"full": {0.25}, "kernel": {0.5}}


def test_a_run_in_which_training_fails_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RunError("the disk is full")

    monkeypatch.setattr(checkpoint, "save", refuse)
    with pytest.raises(RunError, match="the disk is full"):
        train_two(tmp_path)
    record = read_run(tmp_path / "run")
    assert "RunError" in record.status
    assert record.phases == ()
    with pytest.raises(RunError, match="no finished phase"):
        ofav2.load_supernet(tmp_path / "run")


def test_a_run_that_blows_up_names_the_step_and_the_sub_networks(tmp_path: Path) -> None:
    overrides = ["optim.name=sgd", "phases.full.lr=1e25", "phases.full.epochs=0.1", "optim.skip_limit=0"]
    with pytest.raises(
        RunError, match=r"not finite.*step \d+ of phase full.*sub-networks r(16|20) d1-1-1-1-1 k5 e2"
    ) as caught:
        train_two(tmp_path, *overrides)
    assert len(str(caught.value).splitlines()) == 1
    assert read_run(tmp_path / "run").status == "failed: DivergedError"


@pytest.mark.parametrize("lr", ["1e30", "1e38"])
def test_a_phase_with_weights_that_compute_nothing_never_finishes(lr: str, tmp_path: Path) -> None:
    """So few steps that none has an unusable loss, or too few to stop the run."""
    overrides = ["optim.name=sgd", f"phases.full.lr={lr}", "optim.skip_limit=100"]
    with pytest.raises(RunError, match=r"not finite.*lower phases\.full\.lr"):
        train_two(tmp_path, *overrides)
    assert read_run(tmp_path / "run").phases == ()


# W&B


@pytest.fixture
def wandb_at_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep W&B's caches and settings out of the home folder."""
    home = tmp_path_factory.mktemp("wandb")
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(home))


@pytest.mark.usefixtures("wandb_at_home")
def test_an_offline_run_is_mirrored_and_its_id_kept(two: Run, tmp_path: Path) -> None:
    run = train_two(tmp_path, "tracking.mode=offline", "tracking.artifacts=true")
    assert weights_of(run, "kernel") == weights_of(two, "kernel"), "being watched changes nothing"
    run_id = read_run(run.folder).wandb_run_id
    assert run_id
    assert len(list(run.folder.glob(f"wandb/offline-run-*-{run_id}/run-{run_id}.wandb"))) == 1
    assert any("train/loss" in row for row in history(wandb_records(run.folder)))
    assert two.record.wandb_run_id is None
    assert not (two.folder / "wandb").exists()


def broken(*_: Any, **__: Any) -> Any:
    raise ConnectionError("W&B is down")


@pytest.mark.usefixtures("wandb_at_home")
@pytest.mark.parametrize(("owner", "name"), [(wandb, "init"), (wandb.Run, "log"), (wandb.Run, "finish")])
def test_w_and_b_may_fail_and_training_goes_on(
    owner: Any, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    finish = wandb.Run.finish
    opened: list[Any] = []
    init = wandb.init

    def noted(**settings: Any) -> Any:
        opened.append(init(**settings))
        return opened[-1]

    monkeypatch.setattr(wandb, "init", noted)
    monkeypatch.setattr(owner, name, broken)
    with caplog.at_level(logging.WARNING):
        run = train_two(tmp_path, "tracking.mode=offline")
    for one in opened:
        finish(one)
    assert run.record.status == "finished"
    assert len(metrics(run, "train")) == 4
    assert len([record for record in caplog.records if "W&B is down" in record.getMessage()]) == 1


# The package's front


def test_the_package_has_all_that_its_front_lists() -> None:
    assert all(getattr(ofav2, name) is not None for name in ofav2.__all__)
    assert {"train", "load_supernet", "load_subnet", "extract"} <= set(ofav2.__all__)
    with pytest.raises(AttributeError, match="'ofav2' has no attribute 'trian'"):
        ofav2.trian  # noqa: B018
