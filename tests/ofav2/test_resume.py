"""A run that stops, however it stops, goes on where it was and ends as if it had not; or it says what hinders it."""

import dataclasses
import errno
import multiprocessing
import os
import re
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ofav2
import ofav2.runs.state
import ofav2.training.loop
import ofav2.training.objectives
import ofav2.training.phase
import ofav2.training.run
import ofav2.training.setup
import ofav2.training.writer
from ofav2 import files
from ofav2.cli.main import STOPPED, main
from ofav2.config import recipe
from ofav2.data import ImageData, open_data
from ofav2.data.seen import digests_of, seen_digests
from ofav2.deploy.seen import seen_by
from ofav2.errors import RunError, UserError
from ofav2.networks.build import with_own_input
from ofav2.runs import checkpoint, folder
from ofav2.runs.records import Run, read_run
from ofav2.runs.state import load_newest
from ofav2.runtime.processes import SINGLE_PROCESS
from ofav2.runtime.signals import Stopped
from ofav2.training import resuming
from ofav2.training.step import train_steps
from ofav2.training.writer import RunWriter
from tests.notes import Notes
from tests.ofav2 import tiny
from tests.ofav2.changes import change_facts, flip_a_bit
from tests.ofav2.data.conftest import write_classes
from tests.ofav2.exactness import assert_same_run, metrics_of

WITHOUT_CORNERS = tiny.SIX.replace(tiny.ALL_CORNERS, tiny.NO_CORNERS)
SGD = "{name: sgd, loss_jump: 100, grad_clip: 5}"
RECIPES = {
    "adamw": WITHOUT_CORNERS,
    # With all that the optimiser's settings can ask for; a jump is watched for and never comes.
    "sgd": WITHOUT_CORNERS.replace("{name: adamw, weight_decay: 0.01}", SGD),
    # Two steps of the first phase, four of the second one.
    "short": tiny.TWO.replace("kernel: {epochs: 0.02", "kernel: {epochs: 0.04"),
}
STRAIGHT = ["run.save_steps=0", "run.save_minutes=0"]
EVERY_STEP = ["run.save_steps=1", "run.keep_states=2"]
SAVING = ["run.save_steps", "run.save_minutes", "run.keep_states"]
STEPS = [("full", 1), ("full", 2), ("kernel", 1), ("kernel", 2), ("kernel", 3), ("kernel", 4)]


class Killed(BaseException):
    """Stands for a kill: nothing in the code catches it on purpose."""


@pytest.fixture(scope="module")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    parent = tmp_path_factory.mktemp("resumed")
    return {name: tiny.written(parent, text, name) for name, text in RECIPES.items()}


@pytest.fixture(scope="module")
def straight(recipes: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupts, and that saves nothing on its way; to look at only."""
    return ofav2.train(recipes["short"], STRAIGHT, tmp_path_factory.mktemp("straight") / "short").folder


@pytest.fixture(scope="module")
def stopped_run(recipes: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was told to stop after two steps of its second phase, with all four states kept."""
    path = tmp_path_factory.mktemp("stopped") / "run"
    with stopped_after(at("kernel", 2)):
        ofav2.train(recipes["short"], ["run.save_steps=1", "run.keep_states=4"], path)
    return path


@pytest.fixture
def stopped(stopped_run: Path, tmp_path: Path) -> Path:
    """A copy of it, to go on with or to damage."""
    return Path(shutil.copytree(stopped_run, tmp_path / "run"))


def before_yielding(patch: pytest.MonkeyPatch, where: Callable[[str, int], bool], act: Callable[[], None]) -> None:
    """Lets something happen when a step is taken, before the loop around it hears of that."""

    def steps(*given: Any, **named: Any) -> Iterator[Any]:
        for step in train_steps(*given, **named):
            if where(named["stream"].name, step.number):
                act()
            yield step

    patch.setattr(ofav2.training.loop, "train_steps", steps)


@contextmanager
def stopped_after(where: Callable[[str, int], bool]) -> Iterator[None]:
    """The body is a run that is told to stop after a step, and does."""
    with pytest.MonkeyPatch.context() as patch:
        before_yielding(patch, where, ask_to_stop)
        with pytest.raises(Stopped):
            yield


@contextmanager
def killed_after(where: Callable[[str, int], bool]) -> Iterator[None]:
    """The body is a run that ends without warning after a step, before that is recorded."""
    with pytest.MonkeyPatch.context() as patch:
        before_yielding(patch, where, kill)
        with pytest.raises(Killed):
            yield


@contextmanager
def killed_at(module: Any, function: str) -> Iterator[None]:
    """The body is a run that ends without warning where it calls a function."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, function, lambda *_, **__: kill())
        with pytest.raises(Killed):
            yield


def at(phase: str, step: int) -> Callable[[str, int], bool]:
    return lambda name, number: (name, number) == (phase, step)


def ask_to_stop() -> None:
    signal.raise_signal(signal.SIGTERM)


def kill() -> None:
    raise Killed


def go_on_to_the_end(run: Path, **named: Any) -> int:
    """Resumes until the run is finished; returns how often it was interrupted on the way."""
    for interruptions in range(4 * len(tiny.SIX_PHASES)):
        try:
            ofav2.resume(run, **named)
        except (Stopped, Killed):
            continue
        return interruptions
    raise AssertionError("the run makes no progress")


def states(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").glob("*-*.json"))


def assert_accepted(run: Path, **named: Any) -> None:
    """A run goes on, which is seen by the next step that it takes."""
    with stopped_after(lambda _, __: True):
        ofav2.resume(run, **named)


# Ends that are equal to the last bit


def test_a_run_stopped_in_every_phase_ends_as_a_straight_one(
    run_without_corners: Run,
    recipes: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    notes: Notes,
) -> None:
    run = tmp_path / "run"
    before_yielding(monkeypatch, lambda _, number: number == 1, ask_to_stop)
    with pytest.raises(Stopped):
        ofav2.train(recipes["adamw"], STRAIGHT, run)
    assert read_run(run).status == "stopped"
    assert go_on_to_the_end(run) == len(tiny.SIX_PHASES) - 1
    assert_same_run(run, run_without_corners.folder)
    assert capfd.readouterr().err.count("SIGTERM: saving after this step") == len(tiny.SIX_PHASES)
    log = notes()
    assert all(f"going on with phase {phase} from step 1" in log for phase in tiny.SIX_PHASES)


@pytest.mark.slow
def test_a_run_killed_in_every_phase_after_more_than_was_saved_ends_as_a_straight_one(
    recipes: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight_run = ofav2.train(recipes["sgd"], STRAIGHT, tmp_path / "straight").folder
    run, killed = tmp_path / "run", set()

    def second_step_for_the_first_time(phase: str, step: int) -> bool:
        if step != 2 or phase in killed:
            return False
        killed.add(phase)
        return True

    before_yielding(monkeypatch, second_step_for_the_first_time, kill)
    with pytest.raises(Killed):
        ofav2.train(recipes["sgd"], EVERY_STEP, run)
    # Such as a kill leaves them: what was logged after the state, and half a line.
    with (run / folder.METRICS).open("a") as lines:
        lines.write('{"kind": "train", "global_step": 2}\n{"kind": "tra')
    assert read_run(run).status == "training"
    assert go_on_to_the_end(run) == len(tiny.SIX_PHASES) - 1
    assert_same_run(run, straight_run)
    assert states(run) == ["state-000000011.json", "state-000000012.json"]


def test_a_run_killed_while_it_is_evaluated_does_not_train_again(
    recipes: dict[str, str], straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last step of a phase is saved, since evaluating may take longer than whoever stops the run will wait."""
    run = tmp_path / "run"
    trained: list[tuple[str, int]] = []

    def note(phase: str, step: int) -> bool:
        trained.append((phase, step))
        return False

    before_yielding(monkeypatch, note, kill)
    with killed_at(ofav2.training.phase, "adopt_statistics"):
        ofav2.train(recipes["short"], run_dir=run)
    with killed_at(ofav2.training.run, "evaluate_on_test"):
        ofav2.resume(run)
    ofav2.resume(run)
    assert trained == STEPS
    assert_same_run(run, straight)


@pytest.mark.parametrize("damage", ["flipped", "truncated", "without facts", "foreign facts"])
def test_a_damaged_newest_state_is_named_and_the_one_before_it_taken(
    damage: str, stopped: Path, straight: Path, notes: Notes
) -> None:
    assert states(stopped) == [f"state-{step:09d}.json" for step in (1, 2, 3, 4)]
    damage_state(stopped, 4, damage)
    # The damaged one is newer than the next that are saved, and must not push them out.
    ofav2.resume(stopped, overrides=["run.keep_states=1"], allow=SAVING)
    log = notes()
    assert "state-000000004" in log
    assert "taking the state before it" in log
    assert "going on with phase kernel from step 1" in log
    assert_same_run(stopped, straight)
    assert states(stopped) == ["state-000000006.json"]


def damage_state(run: Path, step: int, damage: str) -> None:
    tensors, facts = checkpoint.file_paths(run / "checkpoints" / f"state-{step:09d}")
    if damage == "flipped":
        flip_a_bit(tensors)
    elif damage == "truncated":
        tensors.write_bytes(tensors.read_bytes()[:1000])
    elif damage == "without facts":
        facts.unlink()
    else:
        facts.write_bytes((run / "checkpoints" / "state-000000001.json").read_bytes())


def test_a_phase_without_a_good_state_starts_anew(stopped: Path, straight: Path, notes: Notes) -> None:
    damage_state(stopped, 4, "flipped")
    damage_state(stopped, 3, "truncated")
    ofav2.resume(stopped)
    assert "going on with phase kernel from its start" in notes()
    assert_same_run(stopped, straight)


def test_a_damaged_checkpoint_of_a_finished_phase_sends_the_run_back_to_it(
    stopped: Path, straight: Path, notes: Notes, monkeypatch: pytest.MonkeyPatch
) -> None:
    flip_a_bit(stopped / "checkpoints" / "full.safetensors")
    # It is killed again before the next phase has a state of its own: those of its first life are no good to its second
    # one, whose metrics.jsonl has lines of another length.
    with killed_after(at("kernel", 1)):
        ofav2.resume(stopped)
    assert "state-000000003.json" not in states(stopped)
    ofav2.resume(stopped)
    log = notes()
    assert "full.safetensors is damaged" in log
    assert "going back to the phase before it" in log
    assert "going on with phase full from step 2" in log
    assert "going on with phase kernel from its start" in log
    assert_same_run(stopped, straight)


@pytest.mark.parametrize(
    ("policy", "again"), [pytest.param("fixed", True, marks=pytest.mark.slow), ("best", True), ("progressive", False)]
)
def test_a_damaged_teacher_is_trained_again_if_it_is_to_teach(
    policy: str, again: bool, tmp_path: Path, notes: Notes
) -> None:
    phases = """\
phases:
  full: {epochs: 0.02, lr: 0.003}
  kernel: {epochs: 0.01, lr: 0.001, teacher: none, unlock: {kernel: [3, 5]}}
  expand: {epochs: 0.02, lr: 0.001, unlock: {expand: [1, 2]}}
"""
    text = tiny.TWO[: tiny.TWO.index("phases:")].replace("expand: [2]", "expand: [1, 2]") + phases
    recipe = tiny.written(tmp_path, f"{text}teacher: {{policy: {policy}}}\n")
    straight_run = ofav2.train(recipe, STRAIGHT, tmp_path / "straight").folder
    first, second = (phase.ensemble_score for phase in read_run(straight_run).phases[:2])
    phase_teacher = read_run(straight_run).phases[2].teacher.phase
    best = "full" if first > second else "kernel"
    assert phase_teacher == {"fixed": "full", "best": best, "progressive": "kernel"}[policy]
    with stopped_after(at("expand", 1)):
        ofav2.train(recipe, run_dir=tmp_path / "run")
    damaged = tmp_path / "run" / "checkpoints" / f"{phase_teacher if again else 'full'}.safetensors"
    flip_a_bit(damaged)
    ofav2.resume(tmp_path / "run")
    log = notes()
    assert ("going back to the phase before it" in log) == again
    assert f"going on with phase {phase_teacher if again else 'expand'} from" in log
    if not again:
        # Nothing reads it any more, and nothing mends it.
        flip_a_bit(damaged)
    assert_same_run(tmp_path / "run", straight_run)


def test_a_run_without_any_good_file_starts_anew(stopped: Path, straight: Path, notes: Notes) -> None:
    for file in (stopped / "checkpoints").glob("*.safetensors"):
        flip_a_bit(file)
    ofav2.resume(stopped)
    assert notes().count("is damaged") == 5
    assert_same_run(stopped, straight)


# What stands in the way is reported


def test_settings_that_changed_are_shown_and_refused(stopped: Path) -> None:
    with pytest.raises(RunError) as error:
        ofav2.resume(stopped, overrides=["phases.kernel.lr=0.5", "optim.name=sgd"])
    message = str(error.value)
    assert "phases.kernel.lr was 0.001, is 0.5" in message
    assert 'optim.name was "adamw", is "sgd"' in message
    assert "--allow-change" in message
    assert "\n" not in message
    # One yes is for one key, and a part's name is not the beginning of another's.
    for allowed in (["optim.name"], ["phases.kernel.l"], ["phase"]):
        with pytest.raises(RunError, match=r"phases\.kernel\.lr was 0.001, is 0.5"):
            ofav2.resume(stopped, overrides=["phases.kernel.lr=0.5", "optim.name=sgd"], allow=allowed)


@pytest.mark.parametrize("allowed", ["phases.kernel.lr", "phases.kernel", "phases"])
def test_a_change_is_accepted_by_key_or_part_and_then_kept(
    allowed: str, stopped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_accepted(stopped, overrides=["phases.kernel.lr=0.5"], allow=[allowed])
    assert_accepted(stopped)
    assert "lr: 0.5" in (stopped / "recipe.yaml").read_text()


@pytest.mark.parametrize("changed", [{"fingerprint": "other"}, {"mean": (0.5, 0.5, 0.5)}])
def test_data_that_changed_are_refused_with_the_difference(
    changed: dict[str, Any], stopped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def changed_data(*given: Any) -> ImageData:
        return dataclasses.replace(open_data(*given), **changed)

    (name,) = changed
    before = getattr(read_run(stopped).data, name)
    with monkeypatch.context() as patch:
        patch.setattr(ofav2.training.setup, "open_data", changed_data)
        with pytest.raises(RunError, match=rf"data\.{name} was .*, is .*--allow-change data\.{name}$"):
            ofav2.resume(stopped)
        assert getattr(read_run(stopped).data, name) == before
        assert_accepted(stopped, allow=[f"data.{name}"])
        # The yes lasts, as it does for a recipe's key.
        assert getattr(read_run(stopped).data, name) == changed[name]
        assert_accepted(stopped)


def test_another_supernet_is_refused_even_where_its_settings_are_accepted(stopped: Path) -> None:
    wider = ["supernet.width_mult=0.5"]
    with pytest.raises(RunError, match=r"supernet\.width_mult was 0\.05, is 0\.5"):
        ofav2.resume(stopped, overrides=wider)
    with pytest.raises(RunError, match=r"supernet\.\S+ was .+, is .+ with --allow-change supernet"):
        ofav2.resume(stopped, overrides=wider, allow=["supernet.width_mult"])
    with pytest.raises(RunError, match="do not fit the network"):
        ofav2.resume(stopped, overrides=wider, allow=["supernet"])


@pytest.mark.parametrize(
    ("override", "undo", "reason"),
    [
        ("phases.kernel.epochs=0.01", "phases.kernel.epochs=0.04", "which has 1 steps"),
        ("phases.kernel.epochs=0.02", "phases.kernel.epochs=0.04", "lacks the best validation"),
        ("phases.full.epochs=1", "phases.full.epochs=0.02", "is over"),
        ("data.batch_size=32", "data.batch_size=16", "not the recipe's first"),
        ("optim.name=sgd", "optim.name=adamw", "restore optim.name"),
    ],
)
def test_an_accepted_change_that_what_is_done_contradicts_is_refused_and_can_be_undone(
    override: str, undo: str, reason: str, stopped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = override.partition("=")[0]
    with pytest.raises(RunError, match=reason) as error:
        ofav2.resume(stopped, overrides=[override], allow=[key])
    assert "\n" not in str(error.value)
    assert_accepted(stopped, overrides=[undo], allow=[key])


def test_phases_that_differ_from_the_finished_ones_are_refused(stopped: Path, recipes: dict[str, str]) -> None:
    text = RECIPES["short"].replace("  full: {epochs", "  first: {epochs")
    other = tiny.written(stopped.parent / "other", text)
    with pytest.raises(RunError, match=r"finished \(full to step 2\) are not the recipe's first \(first to step 2\)"):
        ofav2.resume(stopped, other, overrides=["run.save_steps=1", "run.keep_states=4"], allow=["phases"])


@pytest.mark.parametrize(
    ("overrides", "key", "message"),
    [
        (["phases.full.lr=9"], "phases", r"^phases\.full\.lr was of a part of the run that is over"),
        (["supernet.init=elsewhere"], "supernet", r"^supernet\.init was of a part of the run that is over"),
        (["data.resolutions=[20]"], "supernet", "can't be changed any more"),
        (["teacher.exit_weights=uniform"], "teacher", r"^teacher\.exit_weights was used by full, which is over"),
    ],
)
def test_what_is_over_is_not_told_otherwise(overrides: list[str], key: str, message: str, stopped: Path) -> None:
    before = read_run(stopped)
    with pytest.raises(UserError, match=message) as refused:
        ofav2.resume(stopped, overrides=overrides, allow=[key, "data"])
    assert "\n" not in str(refused.value)
    assert read_run(stopped) == before


def test_a_finished_run_refuses_to_be_trained_otherwise(tmp_path: Path) -> None:
    full = tiny.written(tmp_path, tiny.TWO[: tiny.TWO.index("  kernel:")])
    run = ofav2.train(full, run_dir=tmp_path / "run")
    changes = ("phases.kernel={epochs: 0.02, lr: 0.001, unlock: {kernel: [3, 5]}}", "optim.weight_decay=0.5")
    for change in (*changes, "run.precision=bfloat16", "evaluation.calibration_images=20"):
        key = change.partition("=")[0]
        with pytest.raises(UserError, match=rf"^the run is finished, so another {key}\S* has no effect") as refused:
            ofav2.resume(run.folder, overrides=[change], allow=[key])
        assert "\n" not in str(refused.value)
    assert ofav2.resume(run.folder, overrides=["tracking.every_steps=2"], allow=["tracking"]).record == run.record


def test_a_run_goes_on_where_the_run_that_it_began_with_is_gone(
    straight: Path, recipes: dict[str, str], tmp_path: Path
) -> None:
    first = Path(shutil.copytree(straight, tmp_path / "first"))
    settings = ["data.shots=9", f"supernet.init={first}", "run.save_steps=1", "run.keep_states=9"]
    whole = ofav2.train(recipes["short"], settings, tmp_path / "whole").folder
    run = tmp_path / "run"
    with stopped_after(at("full", 1)):
        ofav2.train(recipes["short"], settings, run)
    before = (run / folder.INITIAL_IMAGES).read_bytes()
    lost = Path(shutil.copytree(run, tmp_path / "lost"))
    shutil.rmtree(first)
    ofav2.resume(run)
    assert_same_run(run, whole)
    assert read_run(run).initial == read_run(whole).initial is not None
    assert (run / folder.INITIAL_IMAGES).read_bytes() == before
    for path in (lost / "checkpoints").glob("state-*.safetensors"):
        flip_a_bit(path)
    with pytest.raises(RunError, match="nothing that the run has saved can be read, and it did not begin with fresh"):
        ofav2.resume(lost)


def test_before_anything_is_saved_a_run_may_begin_with_other_weights_and_is_judged_again(
    straight: Path, recipes: dict[str, str], tmp_path: Path
) -> None:
    first, second = (Path(shutil.copytree(straight, tmp_path / name)) for name in ("first", "second"))
    run = tmp_path / "run"
    with killed_after(at("full", 1)):
        ofav2.train(recipes["short"], [*STRAIGHT, f"supernet.init={first}"], run)
    with pytest.raises(
        UserError, match=r"was trained on .* images of this run's split test, so its scores would be too good"
    ):
        ofav2.resume(run, overrides=["data.split_seed=1"], allow=["data"])
    shutil.rmtree(first)
    leaking = ofav2.train(recipes["short"], ["data.split_seed=1"], tmp_path / "leaking").folder
    with pytest.raises(UserError, match=r"leaking\): was trained on .* images of this run's split test"):
        ofav2.resume(run, overrides=[f"supernet.init={leaking}"], allow=["supernet.init"])
    other = f"supernet.init={second}"
    assert ofav2.resume(run, overrides=[other], allow=["supernet.init"]).record.status == "finished"
    with pytest.raises(UserError, match=r"^supernet\.init was of a part of the run that is over"):
        ofav2.resume(run, overrides=["supernet.init=null"], allow=["supernet"])


@pytest.mark.parametrize("changed", [[], ["data.eval_crop=0.5"]], ids=["unchanged", "changed"])
def test_the_best_validation_of_other_images_or_settings_is_not_compared(
    changed: list[str], recipes: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    validating = ["run.save_steps=1", "evaluation.every_epochs=0.01"]
    monkeypatch.setattr(ofav2.training.loop, "_ends", lambda *_: ({}, 0.9))
    with stopped_after(at("kernel", 2)):
        ofav2.train(recipes["short"], validating, tmp_path / "run")
    state = load_newest(tmp_path / "run", "kernel")
    assert state is not None
    assert (state.progress.step, state.progress.best_score) == (2, 0.9)
    monkeypatch.setattr(ofav2.training.loop, "_ends", lambda *_: ({}, 0.1))
    run = ofav2.resume(tmp_path / "run", overrides=changed, allow=["data.eval_crop"])
    kept, _ = checkpoint.load(folder.checkpoint_path(run.folder, "kernel"))
    parameters = [name for name, tensor in state.best.items() if "running" not in name and tensor.is_floating_point()]
    assert all(torch.equal(kept[name], state.best[name]) for name in parameters) != bool(changed)


def test_what_a_run_saw_before_its_split_was_changed_is_known_to_what_begins_with_it(
    stopped: Path, recipes: dict[str, str], tmp_path: Path
) -> None:
    ofav2.resume(stopped, overrides=["data.split_seed=1"], allow=["data"])
    with pytest.raises(UserError, match=r"was trained on .* images of this run's split test"):
        ofav2.train(recipes["short"], ["data.split_seed=1", f"supernet.init={stopped}"], tmp_path / "next")


def test_a_folder_may_be_given_from_home(
    recipes: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with stopped_after(at("full", 1)):
        ofav2.training.run.train_or_resume("~/run", recipes["short"])
    assert ofav2.training.run.train_or_resume("~/run", recipes["short"]).record.status == "finished"
    assert ofav2.resume("~/run").folder == tmp_path / "run"
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_finished_run_is_left_as_it_is(tiny_run: Any, run_copy: Path, notes: Notes) -> None:
    def content() -> dict[str, bytes]:
        files = (path for path in run_copy.rglob("*") if path.is_file() and path.name != folder.LOCK)
        return {str(path): path.read_bytes() for path in files}

    before = content()
    assert ofav2.resume(run_copy).record == read_run(tiny_run.folder)
    assert content() == before
    assert "is finished already" in notes()


def test_a_finished_run_whose_weights_are_damaged_trains_the_phase_again(
    tiny_run: Any, run_copy: Path, notes: Notes
) -> None:
    flip_a_bit(run_copy / "checkpoints" / "expand.safetensors")
    record = ofav2.resume(run_copy).record
    assert notes().count("expand.safetensors is damaged") == 1
    assert record.status == "finished"
    assert record.phases[:-1] == tiny_run.record.phases[:-1]
    ofav2.open_run(run_copy)


def test_a_finished_run_whose_weights_are_damaged_takes_an_accepted_change(run_copy: Path, notes: Notes) -> None:
    """It trains on the new split, so its record has to say so."""
    before = read_run(run_copy).data.fingerprint
    with pytest.raises(RunError, match=r"the run is finished, so another data\.split_seed has no effect"):
        ofav2.resume(run_copy, overrides=["data.split_seed=1"], allow=["data"])
    assert read_run(run_copy).data.fingerprint == before
    flip_a_bit(run_copy / "checkpoints" / "expand.safetensors")
    record = ofav2.resume(run_copy, overrides=["data.split_seed=1"], allow=["data"]).record
    assert "of the new split test were trained on until now" in notes()
    assert record.data.fingerprint != before
    assert ofav2.open_run(run_copy).same_data


def test_a_recipe_of_timms_weights_is_the_one_that_began(
    run_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run keeps the normalisation that goes with them; older runs kept none, and go on without."""
    own = ["network.name=vit_tiny_patch16_224.augreg_in21k_ft_in1k", "network.weights=timm"]
    given = recipe.load("exits", own)
    for kept in (with_own_input(given), given):
        monkeypatch.setattr(resuming, "trained_recipe", lambda *_, kept=kept: kept)
        config = resuming.reopen(run_copy, read_run(run_copy), "exits", own, ()).config
        assert config.data.mean == kept.data.mean


def test_a_split_that_is_drawn_anew_says_what_of_it_is_known(half_run: Path, notes: Notes) -> None:
    until_now = digests_of(ofav2.open_run(half_run).data.train)
    with stopped_after(at("level", 1)):
        ofav2.resume(half_run, overrides=["data.split_seed=1"], allow=["data"])
    assert re.search(r"\d+ of the \d+ images of the new split test were trained on until now, by their names", notes())
    opened = ofav2.open_run(half_run)
    assert np.array_equal(seen_by(opened), np.union1d(until_now, seen_digests(opened.data)))
    assert re.search(
        r"\d+ of the \d+ test images were learnt by the weights that .* before its split was changed", notes()
    )


def test_a_run_in_use_is_refused(stopped: Path) -> None:
    with folder.lock(stopped), pytest.raises(RunError, match=f"in use by process {os.getpid()}"):
        ofav2.resume(stopped)


def test_metrics_that_lost_lines_are_refused(stopped: Path) -> None:
    (stopped / folder.METRICS).write_text("")
    with pytest.raises(RunError, match=r"metrics\.jsonl has 0 bytes, but the run had written \d+; restore the file"):
        ofav2.resume(stopped)


@pytest.mark.parametrize(
    "damage",
    [
        {"phases": None},
        {"phases": [None]},
        {"phases": [{"name": "full"}]},
        {"status": None},
        {"wandb_run_id": 7},
        {"data": []},
        {"architecture": None},
    ],
    ids=repr,
)
def test_records_of_a_wrong_schema_are_refused(damage: dict[str, Any], stopped: Path) -> None:
    change_facts(stopped, lambda facts: facts.update(damage))
    with pytest.raises(RunError, match=rf"^{stopped}/run\.json: {next(iter(damage))}") as error:
        ofav2.resume(stopped)
    assert "\n" not in str(error.value)


# From the command line


def test_auto_starts_goes_on_and_finds_the_run_finished(
    recipes: dict[str, str],
    straight: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    command = ["train", recipes["short"], *STRAIGHT, "--run-dir", str(run), "--resume", "auto"]
    with monkeypatch.context() as patch:
        before_yielding(patch, at("kernel", 2), ask_to_stop)
        assert main(command) == STOPPED == 75
    assert f"stopped after step 2 of phase kernel; `ofav2 train --resume {run}` goes on" in capsys.readouterr().err
    assert main(command) == 0
    assert_same_run(run, straight)
    assert main(command) == 0
    assert "is finished already" in capsys.readouterr().err


def test_auto_starts_in_what_a_run_left_that_was_killed_before_it_began(
    recipes: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    with killed_at(ofav2.training.writer, "write_run"):
        ofav2.train(recipes["short"], run_dir=run)
    (run / ".run.json.999999999.tmp").write_text("{")
    left = [".lock", ".run.json.999999999.tmp", "recipe.yaml", "split.json"]
    assert sorted(path.name for path in run.iterdir()) == left
    with monkeypatch.context() as patch:
        before_yielding(patch, at("full", 1), ask_to_stop)
        assert main(["train", recipes["short"], "--run-dir", str(run), "--resume", "auto"]) == STOPPED
    assert not list(run.glob("*.tmp")) + list(run.glob(".*.tmp"))
    assert not (tmp_path / "run-2").exists()


def test_a_run_takes_settings_when_it_is_resumed(stopped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before_yielding(monkeypatch, lambda _, __: True, ask_to_stop)
    assert main(["train", "--resume", str(stopped), "run.save_steps=7", "--allow-change", "run.save_steps"]) == STOPPED
    assert "save_steps: 7" in (stopped / folder.RECIPE).read_text()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["digits", "--resume", "auto"], "--run-dir DIR"),
        (["digits", "--allow-change", "run.seed"], "no effect on a new run"),
        (["digits", "--resume", "RUN", "--run-dir", "elsewhere"], "no effect on a run that is resumed"),
        (["--resume", "nowhere"], "does not exist"),
        (["--resume", "auto", "--run-dir", "nowhere"], "RECIPE is missing"),
        (["digits", "--resume", "RUN"], "was "),
        (["--resume", "RUN", "run.seed=9"], "run.seed was 0, is 9"),
        (["--resume", "RUN", "run.sead=9"], "did you mean run.seed"),
        (["--resume", "RUN/checkpoints"], "holds no run"),
        (["digits", "--run-dir", "RUN"], "holds a run"),
    ],
)
def test_what_does_not_go_together_is_refused_in_a_line(
    arguments: list[str], reason: str, stopped: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = (stopped / folder.RECORD).read_bytes(), (stopped / folder.RECIPE).read_bytes()
    assert main(["train", *(argument.replace("RUN", str(stopped)) for argument in arguments)]) == 2
    printed = capfd.readouterr()
    assert printed.out == ""
    assert reason in printed.err
    assert printed.err.count("\n") == 1
    assert before == ((stopped / folder.RECORD).read_bytes(), (stopped / folder.RECIPE).read_bytes())


# When the machine fails


def test_minutes_are_counted_between_states(
    recipes: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 10**6, 50))
    monkeypatch.setattr(ofav2.training.loop, "time", type("Clock", (), {"monotonic": lambda: next(clock)}))
    settings = ["run.save_steps=0", "run.save_minutes=1.5", "run.keep_states=9", "phases.full.epochs=0.06"]
    before_yielding(monkeypatch, at("kernel", 1), kill)
    with pytest.raises(Killed):
        ofav2.train(recipes["short"], settings, tmp_path / "run")
    # 50 seconds a step: due are every second step and the last one.
    assert states(tmp_path / "run") == [f"state-{step:09d}.json" for step in (2, 4, 6)]


@pytest.mark.parametrize("saving", ["a state", "a checkpoint"])
def test_a_full_disk_stops_the_run_with_the_last_state_intact(
    saving: str,
    recipes: dict[str, str],
    straight: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    full = "state-000000003" if saving == "a state" else "kernel"

    def flush(path: Path) -> None:
        if full in path.name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(files, "flush_to_disk", flush)
        assert main(["train", recipes["short"], *EVERY_STEP, "--run-dir", str(run)]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert full in error
    assert "No space left on device" in error
    assert "free space" in error
    assert read_run(run).status == "failed: RunError"
    assert not list((run / "checkpoints").glob(".*"))
    ofav2.resume(run)
    assert_same_run(run, straight)


def test_lines_that_cannot_be_written_stop_the_run(
    stopped: Path, straight: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = ofav2.training.writer.open_tracker

    def on_a_full_disk(*arguments: Any, **named: Any) -> Any:
        patch.setattr("ofav2.runs.metrics_file._open_lines", lambda _: open("/dev/full", "a", encoding="utf-8"))  # noqa: SIM115
        return real(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(ofav2.training.writer, "open_tracker", on_a_full_disk)
        assert main(["train", "--resume", str(stopped)]) == 2
    assert "metrics.jsonl cannot be written (No space left on device)" in capsys.readouterr().err.splitlines()[-1]
    ofav2.resume(stopped)
    assert_same_run(stopped, straight)


def test_a_folder_that_may_not_be_written_is_refused(stopped_run: Path) -> None:
    """In a child process, since root may write everywhere and has to become someone else first."""
    # Not below pytest's own folder, which nobody but its owner may enter.
    with tempfile.TemporaryDirectory() as parent:
        Path(parent).chmod(0o755)
        run = Path(shutil.copytree(stopped_run, Path(parent) / "run"))
        (run / folder.LOCK).unlink()
        run.chmod(0o555)
        child = os.fork()
        if child == 0:
            os._exit(_refused_as_read_only(run))
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        run.chmod(0o755)
    assert code == 0


def _refused_as_read_only(run: Path) -> int:
    if os.geteuid() == 0:
        os.setuid(65534)
    try:
        ofav2.resume(run)
    except RunError as error:
        return 0 if "cannot be locked (Permission denied)" in str(error) else 1
    return 2


def test_images_that_vanish_stop_the_run_and_are_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "images"
    write_classes(images, {"cat": 30, "dog": 30, "eel": 30})
    text = tiny.TWO.replace("name: digits", f"name: imagefolder, root: {images}").replace("epochs: 0.02", "epochs: 1")
    recipe = tiny.written(tmp_path, text)
    straight_run = ofav2.train(recipe, STRAIGHT, tmp_path / "straight").folder
    before_yielding(monkeypatch, at("kernel", 1), lambda: images.exists() and images.rename(tmp_path / "gone"))
    run = tmp_path / "run"
    assert main(["train", recipe, *EVERY_STEP, "--run-dir", str(run)]) == 2
    assert f"ofav2: image {images}" in capsys.readouterr().err.splitlines()[-1]
    assert main(["train", "--resume", str(run)]) == 2
    assert f"folder {images}: cannot be read" in capsys.readouterr().err.splitlines()[-1]
    (tmp_path / "gone").rename(images)
    monkeypatch.undo()
    ofav2.resume(run)
    assert_same_run(run, straight_run)


# A loss that is not usable


def test_a_skipped_batch_is_named_counted_and_resumed_past(
    recipes: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, notes: Notes
) -> None:
    poisoned = poison(monkeypatch, lambda batch: batch in (1, 3))
    settings = [*EVERY_STEP, "phases.full.epochs=0.06", "optim.skip_limit=2"]
    straight_run = ofav2.train(recipes["short"], settings, tmp_path / "straight").folder
    skipped = [line for line in metrics_of(straight_run) if line["kind"] == "skipped"]
    assert [line["global_step"] for line in skipped] == [2, 4]
    assert all(line["loss"] is None and line["nonfinite"] == ["loss"] for line in skipped)
    log = notes()
    assert "batch skipped (1 of at most 2 in this phase): loss (nan) or gradient norm (nan) is not finite" in log
    assert re.search(r"in step 1 of phase full, resolution (16|20), sub-networks r\1 d1-1-1-1-1 k5 e2 l1 exit 5\n", log)

    run = tmp_path / "run"
    poisoned.clear()
    with stopped_after(at("full", 3)):
        ofav2.train(recipes["short"], settings, run)
    ofav2.resume(run)
    assert_same_run(run, straight_run)
    assert "batch skipped (2 of at most 2 in this phase)" in notes()


def test_one_unusable_batch_too_many_stops_the_run_which_resumes_before_the_first_of_them(
    recipes: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    notes: Notes,
) -> None:
    run = tmp_path / "run"
    # A tiny network learns nothing in one step, and would begin the phase anew.
    monkeypatch.setattr(ofav2.runs.state, "LEARNT", 1.0)
    poisoned = poison(monkeypatch, lambda batch: batch >= 2)
    settings = [*EVERY_STEP, "phases.full.epochs=0.06", "optim.skip_limit=2", "run.keep_states=9"]
    assert main(["train", recipes["short"], *settings, "--run-dir", str(run)]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "step 4 of phase full" in error
    assert "lower phases.full.lr" in error
    assert read_run(run).status == "failed: DivergedError"
    # The loss of the first bad batch was that of the weights after step 2.
    assert states(run) == ["aside-000000002.json", "state-000000001.json"]
    poisoned.clear()
    monkeypatch.undo()
    notes()
    assert_accepted(run, overrides=["phases.full.lr=0.0001"], allow=["phases.full.lr"])
    assert "going on with phase full from step 1, before what made it stop" in notes()


def test_a_run_that_skipped_too_many_batches_goes_back_before_the_first_though_others_trained_between(
    recipes: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, notes: Notes
) -> None:
    run = tmp_path / "run"
    monkeypatch.setattr(ofav2.runs.state, "LEARNT", 1.0)
    poison(monkeypatch, lambda batch: batch in (1, 3, 5))
    settings = [*EVERY_STEP, "phases.full.epochs=0.06", "optim.skip_limit=2", "run.keep_states=9"]
    with pytest.raises(RunError, match=r"3 batches were skipped.*goes back before the first of the skipped batches"):
        ofav2.train(recipes["short"], settings, run)
    assert states(run) == ["aside-000000003.json", "aside-000000005.json", "state-000000001.json"]
    notes()
    ofav2.resume(run, overrides=["optim.skip_limit=3"], allow=["optim.skip_limit"])
    assert "going on with phase full from step 1, before what made it stop" in notes()


def test_no_state_is_saved_while_batches_are_skipped(
    recipes: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, lambda batch: batch in (1, 2))
    saved: list[str] = []
    save = ofav2.training.writer.save_state

    def note(path: Path, state: Any, *given: Any) -> None:
        saved.append(f"{state.progress.phase} {state.progress.step}")
        save(path, state, *given)

    monkeypatch.setattr(ofav2.training.writer, "save_state", note)
    settings = ["run.save_steps=2", "phases.full.epochs=0.06", "optim.skip_limit=2"]
    ofav2.train(recipes["short"], settings, tmp_path / "run")
    # The one that was due at step 2 comes with the next batch that trains.
    assert saved == ["full 4", "full 6", "kernel 2", "kernel 4"]


def test_a_diverged_phase_goes_on_at_a_lower_rate_as_if_it_had_never_had_another(
    recipes: dict[str, str], tmp_path: Path, notes: Notes
) -> None:
    """Weights that were driven too far are in no state that is left, also where the loss does not show it yet."""
    run = tmp_path / "run"
    settings = ["optim.name=sgd", "phases.full.epochs=0.2", "run.save_steps=1", "run.keep_states=20"]
    with pytest.raises(RunError, match=r"--resume (goes back before the first|goes on from before)"):
        ofav2.train(recipes["short"], [*settings, "phases.full.lr=30"], run)
    assert not [name for name in states(run) if name.startswith("state")]
    notes()
    ofav2.resume(run, overrides=["phases.full.lr=0.001"], allow=["phases.full.lr"])
    assert "going on with phase full from its start, before what made it stop" in notes()
    straight_run = ofav2.train(recipes["short"], [*settings, "phases.full.lr=0.001"], tmp_path / "straight").folder
    assert_same_run(run, straight_run)


@pytest.mark.parametrize("place", [("full", 2), ("kernel", 1)])
def test_weights_that_are_not_finite_are_in_no_state_and_end_the_run(
    place: tuple[str, int], recipes: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nets: list[Any] = []
    prepare = ofav2.training.run.prepare

    def keep(*given: Any, **named: Any) -> Any:
        setup = prepare(*given, **named)
        nets.append(setup.net)
        return setup

    def ruin() -> None:
        with torch.no_grad():
            next(nets[-1].parameters())[0] = float("inf")

    monkeypatch.setattr(ofav2.training.run, "prepare", keep)
    with monkeypatch.context() as patch:
        before_yielding(patch, at(*place), ruin)
        with pytest.raises(RunError, match=rf"weights after step {place[1]} of phase {place[0]} are not finite"):
            ofav2.train(recipes["short"], EVERY_STEP, tmp_path / "run")
    for path in (tmp_path / "run" / "checkpoints").glob("state-*.safetensors"):
        assert all(tensor.isfinite().all() for tensor in checkpoint.load(path.with_suffix(""))[0].values())
    assert ofav2.resume(tmp_path / "run").record.status == "finished"


def test_a_validation_that_is_not_finite_ends_the_run(
    recipes: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = ofav2.training.loop._ends
    with monkeypatch.context() as patch:
        patch.setattr(ofav2.training.loop, "_ends", lambda setup, phase: (ends(setup, phase)[0], float("nan")))
        with pytest.raises(
            RunError, match=r"the validation after step 2 of phase full is not finite; lower phases\.full\.lr"
        ):
            ofav2.train(recipes["short"], EVERY_STEP, tmp_path / "run")
    assert read_run(tmp_path / "run").status == "failed: DivergedError"
    assert ofav2.resume(tmp_path / "run").record.status == "finished"


def poison(monkeypatch: pytest.MonkeyPatch, where: Callable[[int], bool]) -> list[int]:
    """Makes the joint loss of some batches, counted in the returned list, not a number."""
    batches: list[int] = []

    class Poisoned(ofav2.training.objectives.Joint):
        def losses(self, *given: Any) -> Iterator[dict[str, Any]]:
            factor = float("nan") if where(len(batches)) else 1.0
            batches.append(len(batches))
            return ({name: value * factor for name, value in parts.items()} for parts in super().losses(*given))

    monkeypatch.setattr(ofav2.training.phase, "Joint", Poisoned)
    return batches


# What belongs to a run


def test_a_state_of_another_run_is_passed_over(
    stopped: Path, straight: Path, recipes: dict[str, str], notes: Notes
) -> None:
    other = stopped.parent / "other"
    with stopped_after(at("kernel", 2)):
        ofav2.train(recipes["short"], ["run.save_steps=1", "run.keep_states=4", "run.seed=9"], other)
    for file in checkpoint.file_paths(stopped / "checkpoints" / "state-000000004"):
        shutil.copy(other / "checkpoints" / file.name, file)
    ofav2.resume(stopped)
    assert "state-000000004.safetensors is not the one that run.json names" in notes()
    assert_same_run(stopped, straight)


def test_a_checkpoint_of_another_run_is_refused_and_trained_again(
    stopped: Path, straight: Path, recipes: dict[str, str], notes: Notes
) -> None:
    other = ofav2.train(recipes["short"], [*STRAIGHT, "run.seed=9"], stopped.parent / "other").folder
    finished = Path(shutil.copytree(straight, stopped.parent / "finished"))
    for run in (stopped, finished):
        for file in checkpoint.file_paths(run / "checkpoints" / "full"):
            shutil.copy(other / "checkpoints" / file.name, file)
    with pytest.raises(RunError, match=r"full\.safetensors is not the one that run\.json names"):
        ofav2.load_supernet(finished, "full")
    ofav2.resume(stopped)
    assert "full.safetensors is not the one that run.json names" in notes()
    assert_same_run(stopped, straight)


def test_other_versions_are_said_and_kept(stopped: Path, notes: Notes) -> None:
    before = read_run(stopped).versions
    change_facts(stopped, lambda facts: facts["versions"].update(torch="1.0"))
    ofav2.resume(stopped)
    assert f"versions: torch {before['torch']}, before 1.0; sums may be added in another order" in notes()
    record = read_run(stopped)
    assert record.versions == before
    assert record.earlier_versions == ({**before, "torch": "1.0"},)


@pytest.mark.parametrize("name", [folder.RECIPE, folder.SPLIT])
def test_a_recipe_or_split_that_is_lost_is_written_again(
    name: str, stopped: Path, straight: Path, notes: Notes
) -> None:
    text = (stopped / name).read_text()
    (stopped / name).unlink()
    assert_accepted(stopped)
    assert f"{name} is missing: it is " in notes()
    assert (stopped / name).read_text() == text
    ofav2.resume(stopped)
    assert_same_run(stopped, straight)
    # Of a finished run as well.
    (stopped / name).unlink()
    ofav2.resume(stopped)
    assert (stopped / name).exists()


def test_a_recipe_that_was_edited_is_a_change(stopped: Path) -> None:
    file = stopped / "recipe.yaml"
    file.write_text(file.read_text().replace("lr: 0.001", "lr: 0.002"))
    with pytest.raises(RunError, match=r"phases\.kernel\.lr was 0\.001, is 0\.002"):
        ofav2.resume(stopped)


def test_a_lock_that_is_removed_ends_the_run_at_the_next_save(
    recipes: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    before_yielding(monkeypatch, at("full", 2), lambda: (run / folder.LOCK).unlink())
    with pytest.raises(RunError, match=r"lost its \.lock while it was written"):
        ofav2.train(recipes["short"], EVERY_STEP, run)
    assert states(run) == ["state-000000001.json"]
    assert read_run(run).status == "training", "another process may write there by now"


# One writer


def test_checkpoints_that_are_a_link_are_not_written_to(stopped: Path, tmp_path: Path) -> None:
    elsewhere = (stopped / "checkpoints").rename(tmp_path / "elsewhere")
    before = sorted(path.name for path in elsewhere.iterdir())
    (stopped / "checkpoints").symlink_to(elsewhere)
    with pytest.raises(RunError, match="checkpoints is a link, and what it leads to would be changed"):
        ofav2.resume(stopped)
    assert sorted(path.name for path in elsewhere.iterdir()) == before


def test_a_split_is_not_written_where_the_lock_was_lost(tmp_path: Path) -> None:
    with folder.lock(tmp_path) as lock:
        (tmp_path / folder.LOCK).unlink()
        with pytest.raises(RunError, match=r"lost its \.lock"):
            RunWriter(tmp_path, SINGLE_PROCESS, lock).keep_split(tiny.tiny_data())
    assert not (tmp_path / folder.SPLIT).exists()


def test_what_a_killed_owner_leaves_running_is_waited_for(tmp_path: Path) -> None:
    """Worker processes are forked with the lock in hand, and notice only after a while that the owner is gone."""
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    owner = context.Process(target=_hold_and_leave_a_child, args=(tmp_path, ready))
    owner.start()
    assert ready.wait(30)
    os.kill(owner.pid or 0, signal.SIGKILL)
    owner.join()
    with folder.lock(tmp_path):
        assert (tmp_path / "child left").exists()


def _hold_and_leave_a_child(path: Path, ready: Any) -> None:
    with folder.lock(path):
        if os.fork() == 0:
            ready.set()
            time.sleep(0.5)
            (path / "child left").touch()
            os._exit(0)
        time.sleep(60)


def test_what_killed_writers_left_is_swept_and_what_others_write_is_not(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    dead = [tmp_path / ".run.json.999999999.tmp", tmp_path / "checkpoints" / f".full.json.{os.getpid()}.tmp"]
    others = [tmp_path / f".report.html.{os.getppid()}.tmp", tmp_path / ".tmp", tmp_path / "notes.tmp"]
    for file in (*dead, *others):
        file.touch()
    with folder.lock(tmp_path):
        assert not any(file.exists() for file in dead)
        assert all(file.exists() for file in others)


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[31m", "\udcff", "a\u2028b"])
def test_run_folders_have_printable_names(name: str, tmp_path: Path, recipes: dict[str, str]) -> None:
    with pytest.raises(UserError, match="must be printable text"):
        ofav2.train(recipes["short"], run_dir=tmp_path / name)
    assert list(tmp_path.iterdir()) == []
