"""The main path: for each phase, choose the teacher, train, evaluator, save. Read this file first."""

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import distill
import supernets
from ofav2 import files
from ofav2.config import recipe
from ofav2.config.schema import Config
from ofav2.data import split_record
from ofav2.errors import RunError, UserError
from ofav2.evaluation import corners
from ofav2.evaluation.evaluator import Score, mean_score
from ofav2.evaluation.recalibration import adopt_statistics
from ofav2.rng import Stream
from ofav2.runs import checkpoint, folder
from ofav2.runs.facts import describe_run, lasting_facts
from ofav2.runs.state import PhaseState, load_newest, set_aside_after
from ofav2.runs.tracking import Tracker, cut_metrics, flushed_bytes, open_tracker, untracked
from ofav2.runtime.processes import Processes, process_group
from ofav2.runtime.signals import Stopped, stop_requests
from ofav2.tables import table
from ofav2.training.loop import learn
from ofav2.training.objectives import Distill, Draw, Joint, Objective, Teacher, compiled_exits
from ofav2.training.phases import Phase
from ofav2.training.samplers import Largest
from ofav2.training.setup import Setup, check_progress, prepare, refuse_changes, refuse_disagreement
from ofav2.training.teacher import choose_teacher, prepare_teacher

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """A run on disk."""

    folder: Path
    """Its folder."""
    facts: Mapping[str, Any]
    """What `run.json` holds."""


def train(recipe_name: str, overrides: Sequence[str] = (), run_dir: str | Path | None = None) -> Run:
    """Trains a supernet through all phases of a recipe.

    Under torchrun, all processes train it together: each takes a part of every batch. The first one speaks and writes.

    Args:
        recipe_name: Name of a shipped recipe, or path of a YAML file.
        overrides: Settings to change, as `key=value`.
        run_dir: The run folder, new or empty; None makes one under the recipe's `run.folder`.

    Returns:
        The finished run.

    Raises:
        UserError, SpaceError, DistillError: If something given can't be used; the message says what and why.
        RunError: If the run folder can't be used, or too many batches had an unusable loss.
        Stopped: If a signal asked the run to stop; it can be resumed.
        Lost: If another process failed, and said why, or is gone.
    """
    with process_group() as processes:
        config = processes.on_all(lambda: recipe.load(recipe_name, overrides))
        setup = prepare(config, processes)
        path = processes.on_main(lambda: _new_folder(config, recipe_name, run_dir))
        with _locked(path, processes):
            facts = describe_run(path.name, config, setup.data, setup.net) | {"processes": processes.count}
            processes.on_main(lambda: files.write_text(path / folder.RECIPE, recipe.dump(config)))
            processes.on_main(
                lambda: files.write_text(path / folder.SPLIT, json.dumps(split_record(setup.data)) + "\n")
            )
            return _go_on(setup, path, _note(processes, path, facts))


def resume(
    run_dir: str | Path, recipe_name: str | None = None, overrides: Sequence[str] = (), allow: Sequence[str] = ()
) -> Run:
    """Goes on with a run from its newest saved state, as if it had not stopped.

    On the CPU it ends with the same weights and measurements, to the last bit, as a run that was not interrupted.

    Args:
        run_dir: The run folder.
        recipe_name: The recipe that the run is thought to have; None takes the one that it kept.
        overrides: Settings to change in it, as `key=value`.
        allow: Keys whose change is accepted, such as `data.root`, or of a whole part, such as `tracking`.

    Returns:
        The finished run; one that was finished already is left as it is.

    Raises:
        RunError: If the folder is no run or in use, or if recipe, data or classes changed; the message shows how.
        Stopped: If a signal asked the run to stop; it can be resumed.
        Lost: If another process failed, and said why, or is gone.
    """
    path = Path(run_dir)
    with process_group() as processes:
        refuse_disagreement(processes, {"RECIPE": recipe_name, "settings": overrides, "--allow-change": allow})
        processes.on_main(lambda: folder.read_run(path))
        with _locked(path, processes):
            facts = processes.on_main(lambda: folder.read_run(path))
            config = processes.on_main(lambda: _same_recipe(path, recipe_name, overrides, allow))
            setup = prepare(config, processes)
            now = describe_run(path.name, config, setup.data, setup.net)
            processes.on_main(lambda: _check_same_run(setup, path, facts, now, allow))
            if facts["status"] == "finished":
                logger.info(f"{path} is finished already")
                return Run(path, facts)
            processes.on_main(lambda: files.write_text(path / folder.RECIPE, recipe.dump(config)))
            return _go_on(setup, path, _count_again(facts, processes) | lasting_facts(now))


def train_or_resume(
    run_dir: str | Path, recipe_name: str | None = None, overrides: Sequence[str] = (), allow: Sequence[str] = ()
) -> Run:
    """Goes on with the run in a folder, or starts it there where there is none: for jobs that are started again.

    Arguments, result and errors are those of `resume`.
    """
    with process_group() as processes:
        if processes.on_main(lambda: (Path(run_dir) / folder.FACTS).exists()):
            return resume(run_dir, recipe_name, overrides, allow)
        if recipe_name is None:
            processes.refuse(UserError("RECIPE is missing: `ofav2 recipes` lists them"))
        return train(recipe_name, overrides, run_dir)


@contextmanager
def _locked(path: Path, processes: Processes) -> Iterator[None]:
    """The run folder is this run's while the body runs; the first process holds the lock for all."""
    with ExitStack() as held:
        processes.on_main(lambda: held.enter_context(folder.lock(path)))
        yield


def _note(processes: Processes, path: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """Keeps facts in `run.json`; returns those of the first process."""

    def write() -> dict[str, Any]:
        folder.write_facts(path, facts)
        return facts

    return processes.on_main(write)


def _same_recipe(path: Path, recipe_name: str | None, overrides: Sequence[str], allow: Sequence[str]) -> Config:
    """The recipe that a run is to go on with, which is the one that it kept but for allowed changes."""
    kept = str(path / folder.RECIPE)
    config = recipe.load(recipe_name or kept, overrides)
    refuse_changes(asdict(recipe.load(kept)), asdict(config), allow)
    return config


def _check_same_run(
    setup: Setup, path: Path, facts: Mapping[str, Any], now: Mapping[str, Any], allow: Sequence[str]
) -> None:
    refuse_changes(lasting_facts(facts), lasting_facts(now), allow)
    check_progress(facts, setup.plan, path / folder.FACTS)


def _count_again(facts: dict[str, Any], processes: Processes) -> dict[str, Any]:
    before = facts.get("processes", 1)
    if before != processes.count:
        logger.info(
            f"processes: {processes.count}, before: {before}; batches, sub-networks and learning rates stay the same,"
            " batch norm sees other parts of a batch"
        )
    return {**facts, "processes": processes.count}


def _new_folder(config: Config, recipe_name: str, run_dir: str | Path | None) -> Path:
    if run_dir is None:
        source = Path(recipe_name)
        # The recipe that a run has kept lies in that run's folder, and the new run takes its name.
        name = source.parent.name if source.name == folder.RECIPE and source.parent.name else source.stem
        return folder.new_folder(Path(config.run.folder), name)
    return folder.take_folder(Path(run_dir))


def _go_on(setup: Setup, path: Path, facts: dict[str, Any]) -> Run:
    """All phases that are not finished, then the test split; `facts` are kept up to date in `run.json`."""
    config, processes = setup.config, setup.runtime.processes
    logger.info(f"run folder: {path}")
    for sentence in setup.plan.skipped:
        logger.info(sentence)
    setup.runtime.place(setup.net)
    setup.runtime.use_cpu_kernels(setup.net)
    facts, state = processes.on_main(lambda: _rewind(setup, path, facts))
    processes.copy_first(list(setup.net.state_dict().values()))
    with (
        stop_requests() as stop,
        untracked()
        if processes.rank
        else open_tracker(
            path, config.tracking, name=path.name, recipe=asdict(config), run_id=facts["wandb_run_id"]
        ) as tracker,
    ):
        facts = _note(processes, path, {**facts, "status": "training", "wandb_run_id": tracker.run_id})
        try:
            for phase in setup.plan.phases[len(facts["phases"]) :]:
                record = _run_phase(setup, phase, path, facts["phases"], tracker, state, stop)
                facts = _note(processes, path, {**facts, "phases": [*facts["phases"], record]})
                state = None
            facts = {**facts, "test": _evaluate_at_the_end(setup, tracker), "status": "finished"}
        except Stopped:
            _note(processes, path, {**facts, "status": "stopped"})
            raise
        except Exception as error:
            # A folder that can't be written may be what failed, and that is what the user has to hear of.
            with suppress(RunError):
                if processes.rank == 0:
                    folder.write_facts(path, {**facts, "status": f"failed: {type(error).__name__}"})
            raise
    return Run(path, _note(processes, path, facts))


def _rewind(setup: Setup, path: Path, facts: dict[str, Any]) -> tuple[dict[str, Any], PhaseState | None]:
    """Takes supernet and folder to where the run goes on; returns its facts there, and the state of its phase."""
    state = _restore(setup, path, facts)
    cut_metrics(path, _metrics_bytes(facts, state))
    set_aside_after(path, _global_step(facts, state))
    return facts, state


def _restore(setup: Setup, path: Path, facts: dict[str, Any]) -> PhaseState | None:
    """Loads what the last finished phase left into the supernet; returns the state of the one in progress.

    A finished phase whose checkpoint is damaged and still needed is forgotten in `facts`, with those after it, and so
    trained again.
    """
    finished = facts["phases"]
    begun = bool(finished)
    while (damaged := _first_damaged(path, finished, setup)) is not None:
        del finished[damaged:]
    if finished:
        last = folder.checkpoint_path(path, finished[-1]["name"])
        tensors, _ = checkpoint.load(last)
        checkpoint.fill(setup.net, tensors, str(last))
    if len(finished) == len(setup.plan.phases):
        return None
    state = load_newest(path, setup.plan.phases[len(finished)].name)
    if begun or state:
        where = f"step {state.progress.step}" if state else "its start"
        logger.info(f"going on with phase {setup.plan.phases[len(finished)].name} from {where}")
    return state


def _first_damaged(path: Path, finished: Sequence[Mapping[str, Any]], setup: Setup) -> int | None:
    """Number of the first finished phase, from 0, whose checkpoint can't be read and is still needed; says so."""
    ahead = setup.plan.phases[len(finished) :]
    # Of those that are finished, a policy that chooses one now chooses it or a newer one later on.
    policies = {phase.teacher for phase in ahead} & set(distill.policies()) if finished else set()
    needed = {distill.choose(policy, _candidates(finished)).candidate.phase for policy in policies}
    for number, record in enumerate(finished):
        if record["name"] in needed or record is finished[-1]:
            try:
                checkpoint.load(folder.checkpoint_path(path, record["name"]))
            except RunError as error:
                logger.warning(f"{error}; going back to the phase before it")
                return number
    return None


def _candidates(finished: Sequence[Mapping[str, Any]]) -> list[distill.TeacherCandidate]:
    """What finished phases left that could teach, oldest first."""
    return [distill.TeacherCandidate(past["leaves"], past["name"], past["ensemble_score"]) for past in finished]


def _metrics_bytes(facts: Mapping[str, Any], state: PhaseState | None) -> int:
    """Length of `metrics.jsonl` at the place where the run goes on."""
    if state is not None:
        return state.progress.metrics_bytes
    return int(facts["phases"][-1]["metrics_bytes"]) if facts["phases"] else 0


def _global_step(facts: Mapping[str, Any], state: PhaseState | None) -> int:
    """Steps taken at the place where the run goes on."""
    if state is not None:
        return state.progress.global_step
    return int(facts["phases"][-1]["global_step"]) if facts["phases"] else 0


def _run_phase(
    setup: Setup,
    phase: Phase,
    path: Path,
    finished: Sequence[Mapping[str, Any]],
    tracker: Tracker,
    state: PhaseState | None,
    stop: Callable[[], bool],
) -> dict[str, Any]:
    """One phase, from teacher to checkpoint; returns what the run records of it."""
    net, evaluator = setup.net, setup.evaluator
    phase_teacher = choose_teacher(
        phase,
        run_folder=path,
        net=net,
        candidates=_candidates(finished),
        external=setup.external,
        weights=setup.weights,
        evaluator=evaluator,
        precision=setup.config.teacher.precision,
    )
    if "reason" in phase_teacher.record:
        logger.info(f"teacher of {phase.name}: {phase_teacher.record['reason']}")
    if "expand" in phase.unlocked and state is None:
        supernets.sort_channels(net, phase.unlocked["expand"])
    objective = make_objective(setup, phase, phase_teacher.teacher)
    learn(setup, phase, objective, path=path, tracker=tracker, state=state, stop=stop)

    largest = evaluator.calibrated(net, net.space.largest(), net.architecture.exits)
    adopt_statistics(net, largest)
    teaching = prepare_teacher(largest, setup.runtime)
    score = evaluator.ensemble_score(teaching, setup.weights.ensemble, max(net.space.resolution), setup.data.val)
    subnets = corners.chosen_corners(phase.evaluated, setup.config.evaluation.corners)
    scores = list(evaluator.scores(net, subnets, setup.data.val))
    end = phase.first_step + phase.steps
    mean = {"mean": mean_score(scores)} if scores else {}
    if scores:
        _show_corners(setup, f"{phase.name}/corners", f"{phase.name}: corner sub-networks, validation", scores, tracker)
    tracker.log("corners", global_step=end, phase=phase.name, **mean, teacher=score)
    record = {
        "name": phase.name,
        "space": asdict(phase.evaluated),
        "steps": phase.steps,
        "global_step": end,
        "teacher": dict(phase_teacher.record),
        "leaves": f"{phase.name}'s largest network",
        "ensemble_score": score,
        "mean_corner_score": mean.get("mean"),
    }
    return setup.runtime.processes.on_main(lambda: _keep(setup, record, path, tracker))


def make_objective(setup: Setup, phase: Phase, teacher: Teacher | None) -> Objective:
    """Make what a phase minimises, as its recipe says."""
    config, net, task = setup.config, setup.net, setup.task
    draw = Draw(phase.sampler, phase.space, Stream(config.run.seed, phase.name))
    if phase.objective == "joint":
        # Only a network that is the same in every step is compiled.
        compiler = setup.runtime.compiler if phase.sampler == Largest() else None
        return Joint(task, draw, setup.weights.losses, compiled_exits(net, phase.space.largest(), compiler))
    distance = distill.distance(config.teacher.distance)
    return Distill(task, draw, net, teacher, distance, config.teacher.kd_ratio)


def _keep(setup: Setup, record: dict[str, Any], path: Path, tracker: Tracker) -> dict[str, Any]:
    """Saves what a phase left; returns its record, with what had been measured by then."""
    target = folder.checkpoint_path(path, record["name"])
    checkpoint.save(target, setup.net.state_dict(), record)
    tracker.artifact(checkpoint.file_paths(target), f"{path.name}-{record['name']}", "model")
    return {**record, "metrics_bytes": flushed_bytes(path)}


def _evaluate_at_the_end(setup: Setup, tracker: Tracker) -> dict[str, float]:
    """Corner sub-networks on the test split, which nothing before has looked at."""
    last, metric = setup.plan.phases[-1], setup.task.metrics[0]
    # A run always says what its largest and its smallest network reach.
    subnets = corners.chosen_corners(last.evaluated, "all" if setup.config.evaluation.corners == "all" else "ends")
    scores = list(setup.evaluator.scores(setup.net, subnets, setup.data.test))
    rows = _show_corners(setup, "test/corners", "corner sub-networks, test", scores, tracker)
    tracker.scatter("test/accuracy_macs", corners.columns(metric), rows, x="macs", y=metric.name)
    value = {score.subnet: score.value for score in scores}
    found = {
        "mean": mean_score(scores),
        "largest": value[last.evaluated.largest()],
        "smallest": value[last.evaluated.smallest()],
    }
    tracker.log("test", global_step=setup.plan.steps, phase=last.name, **found)
    return found


def _show_corners(
    setup: Setup, name: str, title: str, scores: Sequence[Score], tracker: Tracker
) -> list[tuple[str | float | None, ...]]:
    """Records a corner table whole, and shows its summary."""
    arch, metric = setup.net.architecture, setup.task.metrics[0]
    rows = [corners.corner_row(arch, score) for score in corners.by_cost(arch, scores)]
    tracker.table(name, corners.columns(metric), rows)
    logger.info(table(title, corners.SUMMARY_COLUMNS, corners.summary_rows(scores, metric)))
    return rows
