"""Run the main path: for each phase choose the teacher, train, evaluate, save. Read this file first."""

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path

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
from ofav2.runs.records import (
    FinalScores,
    PhaseRecord,
    Run,
    RunRecord,
    lasting,
    new_record,
    read_run,
    with_lasting,
    write_run,
)
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
from ofav2.training.threads import settle_threads

logger = logging.getLogger(__name__)


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
        setup = settle_threads(prepare(config, processes))
        path = processes.on_main(lambda: _new_folder(config, recipe_name, run_dir))
        with _locked(path, processes):
            record = new_record(path.name, config, setup.task, setup.data, setup.net, processes.count)
            record = replace(record, chosen_threads=_chosen_threads(config, setup))
            processes.on_main(lambda: files.write_text(path / folder.RECIPE, recipe.dump(setup.config)))
            processes.on_main(
                lambda: files.write_text(path / folder.SPLIT, json.dumps(split_record(setup.data)) + "\n")
            )
            return _go_on(setup, path, _note(processes, path, record))


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
        processes.on_main(lambda: read_run(path))
        with _locked(path, processes):
            record = processes.on_main(lambda: read_run(path))
            config = processes.on_main(lambda: _same_recipe(path, recipe_name, overrides, allow))
            setup = settle_threads(prepare(config, processes))
            now = new_record(path.name, config, setup.task, setup.data, setup.net)
            processes.on_main(lambda: _check_same_run(setup, record, now, allow))
            if record.status == "finished":
                logger.info(f"{path} is finished already")
                return Run(path, record)
            chosen = _chosen_threads(config, setup) or _kept_threads(record, config)
            record = replace(_count_again(record, processes), chosen_threads=chosen)
            processes.on_main(lambda: files.write_text(path / folder.RECIPE, recipe.dump(setup.config)))
            return _go_on(setup, path, with_lasting(record, now))


def train_or_resume(
    run_dir: str | Path, recipe_name: str | None = None, overrides: Sequence[str] = (), allow: Sequence[str] = ()
) -> Run:
    """Goes on with the run in a folder, or starts it there where there is none: for jobs that are started again.

    Arguments, result and errors are those of `resume`.
    """
    with process_group() as processes:
        if processes.on_main(lambda: (Path(run_dir) / folder.RECORD).exists()):
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


def _note(processes: Processes, path: Path, record: RunRecord) -> RunRecord:
    """Keeps a record in `run.json`; returns that of the first process."""

    def write() -> RunRecord:
        write_run(path, record)
        return record

    return processes.on_main(write)


def _same_recipe(path: Path, recipe_name: str | None, overrides: Sequence[str], allow: Sequence[str]) -> Config:
    """The recipe that a run is to go on with, which is the one that it kept but for allowed changes."""
    kept = recipe.load(str(path / folder.RECIPE))
    config = recipe.load(recipe_name or str(path / folder.RECIPE), overrides)
    if not config.run.threads:
        # The number that the run chose when it began.
        config = replace(config, run=replace(config.run, threads=kept.run.threads))
    refuse_changes(asdict(kept), asdict(config), allow)
    if config.run.threads != kept.run.threads:
        logger.info(
            f"threads: {config.run.threads}, before: {kept.run.threads}; sums are added in another order, so the run"
            " ends with other last bits"
        )
    return config


def _chosen_threads(config: Config, setup: Setup) -> int | None:
    """The number of threads that was chosen where the recipe names none."""
    return None if config.run.threads else setup.config.run.threads or None


def _kept_threads(record: RunRecord, config: Config) -> int | None:
    """The number that the run chose when it began, as long as the recipe has it."""
    return record.chosen_threads if record.chosen_threads == config.run.threads else None


def _check_same_run(setup: Setup, record: RunRecord, now: RunRecord, allow: Sequence[str]) -> None:
    refuse_changes(lasting(record), lasting(now), allow)
    check_progress(record.phases, setup.plan)


def _count_again(record: RunRecord, processes: Processes) -> RunRecord:
    if record.processes != processes.count:
        logger.info(
            f"processes: {processes.count}, before: {record.processes}; batches, sub-networks and learning rates stay"
            " the same, batch norm sees other parts of a batch"
        )
    return replace(record, processes=processes.count)


def _new_folder(config: Config, recipe_name: str, run_dir: str | Path | None) -> Path:
    if run_dir is None:
        source = Path(recipe_name)
        # The recipe that a run has kept lies in that run's folder, and the new run takes its name.
        name = source.parent.name if source.name == folder.RECIPE and source.parent.name else source.stem
        return folder.new_folder(Path(config.run.folder), name)
    return folder.take_folder(Path(run_dir))


def _go_on(setup: Setup, path: Path, record: RunRecord) -> Run:
    """All phases that are not finished, then the test split; `run.json` keeps the record up to date."""
    config, processes = setup.config, setup.runtime.processes
    logger.info(f"run folder: {path}")
    for sentence in setup.plan.skipped:
        logger.info(sentence)
    setup.runtime.place(setup.net)
    setup.runtime.use_cpu_kernels(setup.net)
    record, state = processes.on_main(lambda: _rewind(setup, path, record))
    processes.copy_first(list(setup.net.state_dict().values()))
    with (
        stop_requests() as stop,
        untracked()
        if processes.rank
        else open_tracker(
            path, config.tracking, name=path.name, recipe=asdict(config), run_id=record.wandb_run_id
        ) as tracker,
    ):
        record = _note(processes, path, replace(record, status="training", wandb_run_id=tracker.run_id))
        try:
            for phase in setup.plan.phases[len(record.phases) :]:
                finished = _run_phase(setup, phase, path, record.phases, tracker, state, stop)
                record = _note(processes, path, replace(record, phases=(*record.phases, finished)))
                state = None
            record = replace(record, test=_evaluate_at_the_end(setup, tracker), status="finished")
        except Stopped:
            _note(processes, path, replace(record, status="stopped"))
            raise
        except Exception as error:
            # A folder that can't be written may be what failed, and that is what the user has to hear of.
            with suppress(RunError):
                if processes.rank == 0:
                    write_run(path, replace(record, status=f"failed: {type(error).__name__}"))
            raise
    return Run(path, _note(processes, path, record))


def _rewind(setup: Setup, path: Path, record: RunRecord) -> tuple[RunRecord, PhaseState | None]:
    """Takes supernet and folder to where the run goes on; returns its record there, and the state of its phase."""
    finished, state = _restore(setup, path, record.phases)
    last = finished[-1] if finished else None
    cut_metrics(path, state.progress.metrics_bytes if state else last.metrics_bytes if last else 0)
    set_aside_after(path, state.progress.global_step if state else last.end if last else 0)
    return replace(record, phases=finished), state


def _restore(
    setup: Setup, path: Path, finished: tuple[PhaseRecord, ...]
) -> tuple[tuple[PhaseRecord, ...], PhaseState | None]:
    """Loads what the last finished phase left into the supernet.

    Returns:
        The finished phases, and the state of the one in progress. A finished phase whose checkpoint is damaged and
        still needed is left out, with those after it, and so trained again.
    """
    begun = bool(finished)
    while (damaged := _first_damaged(path, finished, setup)) is not None:
        finished = finished[:damaged]
    if finished:
        last = folder.checkpoint_path(path, finished[-1].name)
        tensors, _ = checkpoint.load(last)
        checkpoint.fill(setup.net, tensors, str(last))
    if len(finished) == len(setup.plan.phases):
        return finished, None
    state = load_newest(path, setup.plan.phases[len(finished)].name)
    if begun or state:
        where = f"step {state.progress.step}" if state else "its start"
        logger.info(f"going on with phase {setup.plan.phases[len(finished)].name} from {where}")
    return finished, state


def _first_damaged(path: Path, finished: Sequence[PhaseRecord], setup: Setup) -> int | None:
    """Number of the first finished phase, from 0, whose checkpoint can't be read and is still needed; says so."""
    ahead = setup.plan.phases[len(finished) :]
    # Of those that are finished, a policy that chooses one now chooses it or a newer one later on.
    policies = {phase.teacher for phase in ahead} & set(distill.policies()) if finished else set()
    needed = {distill.choose(policy, _candidates(finished)).candidate.phase for policy in policies}
    for number, phase in enumerate(finished):
        if phase.name in needed or phase is finished[-1]:
            try:
                checkpoint.load(folder.checkpoint_path(path, phase.name))
            except RunError as error:
                logger.warning(f"{error}; going back to the phase before it")
                return number
    return None


def _candidates(finished: Sequence[PhaseRecord]) -> list[distill.TeacherCandidate]:
    """What finished phases left that could teach, oldest first."""
    return [
        distill.TeacherCandidate(f"{past.name}'s largest network", past.name, past.ensemble_score)
        for past in finished
        if past.ensemble_score is not None
    ]


def _run_phase(
    setup: Setup,
    phase: Phase,
    path: Path,
    finished: Sequence[PhaseRecord],
    tracker: Tracker,
    state: PhaseState | None,
    stop: Callable[[], bool],
) -> PhaseRecord:
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
    if phase_teacher.record.reason:
        logger.info(f"teacher of {phase.name}: {phase_teacher.record.reason}")
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
    mean = mean_score(scores) if scores else None
    if scores:
        _show_corners(setup, f"{phase.name}/corners", f"{phase.name}: corner sub-networks, validation", scores, tracker)
    measured = {} if mean is None else {"mean": mean}
    tracker.log("corners", global_step=end, phase=phase.name, **measured, teacher=score)
    record = PhaseRecord(
        name=phase.name,
        space=phase.evaluated,
        steps=phase.steps,
        end=end,
        teacher=phase_teacher.record,
        ensemble_score=score,
        mean_corner_score=mean,
        metrics_bytes=0,
    )
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


def _keep(setup: Setup, record: PhaseRecord, path: Path, tracker: Tracker) -> PhaseRecord:
    """Saves what a phase left; returns its record, with what had been measured by then."""
    target = folder.checkpoint_path(path, record.name)
    described = {"phase": record.name, "steps": record.end, "ensemble_score": record.ensemble_score}
    checkpoint.save(target, setup.net.state_dict(), described)
    tracker.artifact(checkpoint.file_paths(target), f"{path.name}-{record.name}", "model")
    return replace(record, metrics_bytes=flushed_bytes(path))


def _evaluate_at_the_end(setup: Setup, tracker: Tracker) -> FinalScores:
    """Corner sub-networks on the test split, which nothing before has looked at."""
    last, metric = setup.plan.phases[-1], setup.task.metrics[0]
    # A run always says what its largest and its smallest network reach.
    subnets = corners.chosen_corners(last.evaluated, "all" if setup.config.evaluation.corners == "all" else "ends")
    scores = list(setup.evaluator.scores(setup.net, subnets, setup.data.test))
    rows = _show_corners(setup, "test/corners", "corner sub-networks, test", scores, tracker)
    tracker.scatter("test/accuracy_macs", corners.columns(metric), rows, x="macs", y=metric.name)
    value = {score.subnet: score.value for score in scores}
    found = FinalScores(
        mean=mean_score(scores), largest=value[last.evaluated.largest()], smallest=value[last.evaluated.smallest()]
    )
    tracker.log("test", global_step=setup.plan.steps, phase=last.name, **asdict(found))
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
