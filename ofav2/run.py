"""The main path: for each phase, choose the teacher, train, judge, save. Read this file first."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import distill
import supernets
from ofav2 import console, folder, recipe
from ofav2.config import Config
from ofav2.data import ImageData, open_data, steps_per_epoch, train_batches
from ofav2.errors import RunError
from ofav2.facts import describe_run
from ofav2.subnets import corners
from ofav2.training import checkpoint
from ofav2.training.evaluation import Judge, Score, adopt_statistics, mean_top1, open_judge
from ofav2.training.objectives import Objective, joint, students
from ofav2.training.phases import Phase, Plan, make_plan
from ofav2.training.runtime import Runtime, open_runtime
from ofav2.training.teaching import choose_teacher, outside_teachers
from ofav2.training.tracking import Tracker, open_tracker
from ofav2.training.trainer import train_phase


@dataclass(frozen=True)
class Run:
    """A run on disk."""

    folder: Path
    """Its folder."""
    facts: Mapping[str, Any]
    """What `run.json` holds."""


@dataclass(frozen=True)
class Setup:
    """Everything a run needs, checked, before anything is written."""

    config: Config
    data: ImageData
    net: supernets.Supernet
    plan: Plan
    weights: distill.ExitWeights
    runtime: Runtime
    judge: Judge


def prepare(config: Config) -> Setup:
    """Builds what a recipe asks for, and so refuses what can't be trained before anything is written.

    Raises:
        UserError, SpaceError, DistillError: If a setting is impossible; the message names it.
    """
    runtime = open_runtime(config.run)
    data = open_data(config.data)
    net = supernets.create(
        config.supernet.variant, **supernet_options(config, classes=len(data.classes), channels=data.channels)
    )
    weights = distill.exit_weights(config.teacher.exit_weights, len(net.architecture.exits))
    plan = make_plan(
        config.phases, config.teacher.policy, net.space, steps_per_epoch(len(data.train), config.data.batch_size)
    )
    judge = open_judge(config, data, runtime)
    return Setup(config, data, net, plan, weights, runtime, judge)


def supernet_options(config: Config, *, classes: int, channels: int) -> dict[str, Any]:
    """Keyword arguments of `supernets.create` for a recipe and its data."""
    options = {name: value for name, value in asdict(config.supernet).items() if name != "variant"}
    return {
        **options,
        "num_classes": classes,
        "in_channels": channels,
        "resolutions": config.data.resolutions,
        "seed": config.run.seed,
    }


def train(recipe_name: str, overrides: Sequence[str] = (), run_dir: str | Path | None = None) -> Run:
    """Trains a supernet through all phases of a recipe.

    Args:
        recipe_name: Name of a shipped recipe, or path of a YAML file.
        overrides: Settings to change, as `key=value`.
        run_dir: The run folder, new or empty; None makes one under the recipe's `run.folder`.

    Returns:
        The finished run.

    Raises:
        UserError, SpaceError, DistillError: If something given can't be used; the message says what and why.
        RunError: If the run folder can't be used, or a loss is not finite.
    """
    config = recipe.load(recipe_name, overrides)
    setup = prepare(config)
    outside = outside_teachers(setup.plan, config.teacher, setup.data, config.data.resolutions, setup.runtime)
    path = _run_folder(config, _run_name(recipe_name), run_dir)
    with folder.lock(path):
        return _train(setup, outside, path)


def _run_name(recipe_name: str) -> str:
    """Name of a recipe's run; of the recipe that a run has kept, that run's name."""
    path = Path(recipe_name)
    return path.parent.name if path.name == folder.RECIPE and path.parent.name else path.stem


def _run_folder(config: Config, name: str, run_dir: str | Path | None) -> Path:
    if run_dir is None:
        return folder.new_folder(Path(config.run.folder), name)
    path = Path(run_dir)
    if path.is_dir() and any(path.iterdir()):
        raise RunError(f"run folder ({path}) is not empty: give a new one with --run-dir, or remove it first")
    return folder.new_folder(path.parent, path.name)


def _train(setup: Setup, outside: Mapping[str, torch.nn.Module], path: Path) -> Run:
    config, net = setup.config, setup.net
    folder.write_text(path / folder.RECIPE, recipe.dump(config))
    facts = describe_run(path.name, config, setup.data, net)
    folder.write_facts(path, facts)
    console.say(f"run folder: {path}")
    for sentence in setup.plan.skipped:
        console.say(sentence)
    setup.runtime.place(net)
    with open_tracker(path, config.tracking, name=path.name, recipe=asdict(config), run_id=None) as tracker:
        facts["wandb_run_id"] = tracker.run_id
        candidates: list[distill.Candidate] = []
        try:
            for phase in setup.plan.phases:
                candidates.append(_train_phase(setup, phase, outside, candidates, path, facts, tracker))
            _judge_at_the_end(setup, facts, tracker)
        except BaseException as error:
            folder.write_facts(path, {**facts, "status": f"stopped: {type(error).__name__}"})
            raise
        facts["status"] = "finished"
        folder.write_facts(path, facts)
    return Run(path, facts)


def _train_phase(
    setup: Setup,
    phase: Phase,
    outside: Mapping[str, torch.nn.Module],
    candidates: Sequence[distill.Candidate],
    path: Path,
    facts: dict[str, Any],
    tracker: Tracker,
) -> distill.Candidate:
    """One phase, from teacher to checkpoint; returns what it leaves as a candidate for the next teacher."""
    started = time.monotonic()
    net, judge = setup.net, setup.judge
    taught = choose_teacher(
        phase, run_folder=path, net=net, candidates=candidates, outside=outside, weights=setup.weights, judge=judge
    )
    if "reason" in taught.record:
        console.say(f"teacher of {phase.name}: {taught.record['reason']}")
    if "expand" in phase.unlocked:
        supernets.sort_channels(net, phase.unlocked["expand"])
    objective: Objective = (
        joint(setup.weights.losses, setup.config.optim.label_smoothing)
        if phase.joint
        else students(
            taught.teacher,
            distill.distance(setup.config.teacher.distance),
            setup.config.teacher.kd_ratio,
            setup.config.optim.label_smoothing,
        )
    )
    _learn(setup, phase, objective, tracker)

    largest = judge.calibrated(net, net.space.largest(), net.architecture.exits)
    adopt_statistics(net, largest)
    accuracy = judge.ensemble_top1(largest, setup.weights.ensemble, max(net.space.resolution), setup.data.val)
    scores = list(judge.scores(net, phase.judged.corners(), setup.data.val))
    end = phase.first_step + phase.steps
    _show(setup, f"{phase.name}: corner sub-networks, validation", scores)
    rows = [corners.corner_row(net.architecture, score) for score in corners.by_cost(net.architecture, scores)]
    tracker.table(f"{phase.name}/corners", corners.COLUMNS, rows)
    tracker.log("corners", global_step=end, phase=phase.name, mean=mean_top1(scores), teacher=accuracy)
    facts["phases"].append(
        {
            "name": phase.name,
            "space": asdict(phase.judged),
            "steps": phase.steps,
            "global_step": end,
            "teacher": dict(taught.record),
            "ensemble_top1": accuracy,
            "mean_corner_top1": mean_top1(scores),
            "seconds": round(time.monotonic() - started, 1),
        }
    )
    target = folder.checkpoint_path(path, phase.name)
    checkpoint.save(target, net.state_dict(), facts["phases"][-1])
    folder.write_facts(path, facts)
    tracker.artifact(checkpoint.files(target), f"{path.name}-{phase.name}", "model")
    return distill.Candidate(f"{phase.name}'s largest network", phase.name, accuracy)


def _learn(setup: Setup, phase: Phase, objective: Objective, tracker: Tracker) -> None:
    """Trains a phase's steps, and leaves the supernet as it was at its best validation."""
    config, net = setup.config, setup.net
    batches = train_batches(setup.data, config.data, seed=config.run.seed, phase=phase.name, steps=phase.steps)
    every = round(config.evaluation.every_epochs * setup.plan.steps_per_epoch) or phase.steps
    watched = dict.fromkeys((phase.judged.largest(), phase.judged.smallest()))
    best, kept = -1.0, net.state_dict()
    with console.progress(f"{phase.name} ({phase.unlocks})", phase.steps) as advance:
        for step in train_phase(
            net,
            phase,
            batches,
            objective,
            optim=config.optim,
            prepare=setup.judge.prepare,
            runtime=setup.runtime,
            seed=config.run.seed,
        ):
            advance(loss=step.numbers["loss"])
            global_step = phase.first_step + step.number
            if step.number % config.tracking.every_steps == 0 or step.number == phase.steps:
                tracker.log("train", global_step=global_step, phase=phase.name, **step.numbers)
            if step.number % every == 0 or step.number == phase.steps:
                scores = {score.subnet: score.top1 for score in setup.judge.scores(net, watched, setup.data.val)}
                reached = sum(scores.values()) / len(scores)
                ends = {"largest": scores[phase.judged.largest()], "smallest": scores[phase.judged.smallest()]}
                tracker.log("validation", global_step=global_step, phase=phase.name, **ends)
                if reached >= best:
                    best = reached
                    kept = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    net.load_state_dict(kept)


def _judge_at_the_end(setup: Setup, facts: dict[str, Any], tracker: Tracker) -> None:
    """Corner sub-networks on the test split, which nothing before has looked at."""
    net, last = setup.net, setup.plan.phases[-1]
    scores = list(setup.judge.scores(net, last.judged.corners(), setup.data.test))
    rows = [corners.corner_row(net.architecture, score) for score in corners.by_cost(net.architecture, scores)]
    tracker.table("test/corners", corners.COLUMNS, rows)
    tracker.scatter("test/accuracy_macs", corners.COLUMNS, rows, x="macs", y="top1")
    top1 = {score.subnet: score.top1 for score in scores}
    ends = {"largest": top1[last.judged.largest()], "smallest": top1[last.judged.smallest()]}
    tracker.log("test", global_step=setup.plan.steps, phase=last.name, mean=mean_top1(scores), **ends)
    facts["test"] = {"mean_corner_top1": mean_top1(scores), **ends}
    _show(setup, "corner sub-networks, test", scores)


def _show(setup: Setup, title: str, scores: Sequence[Score]) -> None:
    console.say(console.table(title, corners.SUMMARY_COLUMNS, corners.summary_rows(scores)))
