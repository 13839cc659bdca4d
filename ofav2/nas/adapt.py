"""Adapt a supernet to the front of a search: a further phase that draws what the front is made of, kept if it helps.

The phase is trained in a copy of the run, in the search's folder, so the searched run stays as it is. Of several runs,
searched as one space, each with networks on the front has a copy, trained on for these networks. Then the front's
networks are measured anew. The copies are removed unless the hypervolume of the confirmed front has risen. Every step
goes on where an earlier call stopped, and ends with the same bytes.
"""

import logging
import math
import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np

from ofav2 import files
from ofav2.config import recipe
from ofav2.config.schema import Config, UnlockConfig
from ofav2.data.halves import halve
from ofav2.errors import RunError, UserError
from ofav2.evaluation.opened_run import (
    LoadedSupernet,
    OpenedRun,
    load_run,
    open_loaded,
    recipe_to_measure,
    refuse_other_images,
)
from ofav2.messages import show
from ofav2.nas.engine.fronts import hypervolume
from ofav2.nas.engine.loop import MARGIN
from ofav2.nas.engine.problem import Floats
from ofav2.nas.found import (
    ADAPTATION,
    ADAPTATION_FORMAT,
    ADAPTED,
    Adaptation,
    Adapted,
    AdaptedRun,
    AdaptSettings,
    Finalist,
    Found,
    FrontRecord,
    SearchRecord,
    read_adaptation,
)
from ofav2.nas.rounds import front_optimism
from ofav2.progress import log_progress
from ofav2.runs import folder
from ofav2.runs.kept_recipe import changed_settings, kept_recipe, trained_recipe
from ofav2.runs.records import RunRecord, read_run, write_run
from ofav2.runtime.processes import Processes
from ofav2.runtime.signals import Stopped
from ofav2.tasks.class_results import share_error
from ofav2.training.phases import ALL_EXITS, Phase, make_plan
from ofav2.training.resuming import refuse_another
from ofav2.training.run import resume
from ofav2.training.setup import prepare
from ofav2.typed_json import write_record
from supernets import Space, Subnet

logger = logging.getLogger(__name__)

PHASE = "adapt"
SLOWER = 3.0
"""By how much the peak learning rate is lower than the last phase's (NATv2: 7.5e-3, then 2.5e-3)."""


def ask_adaptation(place: Path, settings: AdaptSettings) -> None:
    """Write into a search's folder that its supernet is to be adapted.

    Raises:
        UserError: If that was begun already with other settings.
    """
    known = read_adaptation(place)
    if known and known.settings != settings:
        raise UserError(
            f"adaptation ({place / ADAPTATION}) was asked for with other settings: give those, or remove that file and"
            f" what is called {ADAPTED} beside it"
        )
    if not known:
        write_record(place / ADAPTATION, Adaptation(settings, None), ADAPTATION_FORMAT)


def adapt_found(found: Found, processes: Processes) -> Found:
    """Adapt the supernet to a search's front if that was asked for; go on where an earlier call stopped.

    The phase takes its settings from the one that was searched, as `adapted_recipe` says. Its sub-networks are drawn by
    `ofav2.training.samplers.Marginals` of the front.

    Args:
        found: What was found.
        processes: The processes that adapt together.

    Returns:
        The same with what the adaptation reached.

    Raises:
        RunError: If a run has other weights now, or training fails.
        Stopped: If a signal told it to stop; it goes on when the search is resumed.
    """
    asked = processes.on_all(lambda: read_adaptation(found.folder))
    if asked is None:
        return found
    with folder.lock(found.folder) if processes.rank == 0 else nullcontext():
        result = asked.result or _adapt(found, asked.settings, processes)

        def keep() -> None:
            write_record(found.folder / ADAPTATION, replace(asked, result=result), ADAPTATION_FORMAT)
            if not result.kept:
                for one in result.runs:
                    shutil.rmtree(found.adapted_folder(one.run), ignore_errors=True)

        processes.on_main(keep)
    return replace(found, adapted=result)


def _adapt(found: Found, settings: AdaptSettings, processes: Processes) -> Adapted:
    before = found.front.finalists
    runs = tuple(_train_copy(found, run, settings, processes) for run in sorted({one.run for one in before}))
    front = _measured_anew(found, processes)
    volumes = confirmed_volumes(found.record, before, front.finalists)
    return Adapted(runs, front, *volumes, *_gain(found.record, before, front.finalists))


def _train_copy(found: Found, run: int, settings: AdaptSettings, processes: Processes) -> AdaptedRun:
    copy, networks = found.adapted_folder(run), [one.subnet for one in found.front.finalists if one.run == run]
    logger.info(f"adapting the supernet of {found.searched_runs[run]} to {len(networks)} networks of the front")
    processes.on_main(lambda: _copy_run(found, run, settings, networks))
    try:
        phase = resume(copy).record.phases[-1]
    except Stopped as stopped:
        raise Stopped(str(stopped), str(found.folder), "search") from stopped
    return AdaptedRun(run, phase.name, phase.sha256, phase.steps)


def check_adaptation(run: OpenedRun, settings: AdaptSettings, processes: Processes) -> None:
    """Refuse an adaptation that its training would refuse, whatever the front will be.

    Args:
        run: The run that is to be searched and adapted.
        settings: How.
        processes: The processes that are to train it together.

    Raises:
        UserError: If the phase trained the largest network alone, a setting is out of range or impossible, a file is
            missing, or the data set holds other images than the run was trained on.
        RunError: If the run can't go on.
        DistillError: If its teacher can't be loaded.
        Lost: If it was refused in another process.
    """
    loaded = run.loaded

    def planned() -> Config:
        refuse_other_images(run)
        _require_drawable(loaded)
        # Any networks will do to check the settings; those two end at the last exit and at the first one.
        ends = [loaded.net.space.largest(), loaded.net.space.smallest()]
        # Without a number of threads, which would change how the search computes.
        return adapted_recipe(recipe_to_measure(loaded), loaded.record.space, loaded.phase, settings, ends)

    config = processes.on_all(planned)
    begun = _begun_record(loaded.record, loaded.phase, config)
    setup = prepare(config, processes, data=run.data, resumed=begun)
    processes.on_all(lambda: refuse_another(begun, setup, ()))


def _require_drawable(loaded: LoadedSupernet) -> None:
    config = kept_recipe(loaded.folder, loaded.record)
    if _planned_phase(config, loaded.record.space, loaded.phase).alone:
        raise UserError(
            f"--adapt: phase {loaded.phase} of {loaded.folder} trained the largest network alone, so there are no"
            " sub-networks to draw; train its elastic phases first, or search without --adapt"
        )


def _planned_phase(config: Config, space: Space, phase: str) -> Phase:
    """Return a phase of a recipe as it is planned; its length doesn't matter here."""
    names = list(config.phases)
    phases = {name: config.phases[name] for name in names[: names.index(phase) + 1]}
    return make_plan(phases, config.teacher, space, steps_per_epoch=1).phases[-1]


def adapted_recipe(
    config: Config, space: Space, phase: str, settings: AdaptSettings, networks: Sequence[Subnet]
) -> Config:
    """Return a run's recipe up to a phase, with one more that draws what some networks are made of.

    The new phase has the settings of the repeated one, but for its length, its learning rate, and what follows from its
    networks: each is at one exit, so it trains that one alone. After the objective `joint` it learns from the labels
    alone as well, and may end at each exit that `joint` trained.

    Args:
        config: The recipe.
        space: The run's whole space.
        phase: The phase to repeat.
        settings: What differs in the new one.
        networks: The networks.

    Raises:
        UserError: If a setting is out of range.
    """
    names = list(config.phases)
    phases = {name: config.phases[name] for name in names[: names.index(phase) + 1]}
    last, planned = phases[phase], _planned_phase(config, space, phase)
    is_joint = planned.objective == "joint"
    heights = tuple(sorted({*planned.space.height, *planned.evaluated.height}))
    candidates = (f"{PHASE}{number or ''}" for number in range(len(phases) + 1))
    phases[next(name for name in candidates if name not in phases)] = replace(
        last,
        epochs=last.epochs if settings.epochs is None else settings.epochs,
        lr=last.lr / SLOWER if settings.lr is None else settings.lr,
        warmup_epochs=0.0,
        unlock=UnlockConfig(height=heights if heights != planned.space.height else ()),
        objective="distill" if is_joint or planned.objective in ALL_EXITS else last.objective,
        teacher="none" if is_joint else last.teacher,
        sampler="marginals",
        networks=tuple(network.to_json() for network in networks),
    )
    # The front is measured instead of corners. No epoch is chosen: validation has the half that confirms the gain.
    more = replace(config, phases=phases, evaluation=replace(config.evaluation, corners="none", every_epochs=0.0))
    # Written and read again, so that ranges are checked as those of any recipe.
    return recipe.parse(recipe.dump(more), "recipe of the adaptation")


def _copy_run(found: Found, number: int, settings: AdaptSettings, networks: Sequence[Subnet]) -> None:
    """Copy a searched run with a longer recipe, whole or not at all; states of steps, and searches, are left out."""
    run, searched, copy = found.searched_runs[number], found.record.runs[number], found.adapted_folder(number)
    if load_run(run, searched.phase).sha256 != searched.weights:
        raise RunError(f"search ({found.folder}) is of other weights than run {run} has now: search it again")
    record, staging = read_run(run), copy.with_name(f".{copy.name}.tmp")
    config = adapted_recipe(kept_recipe(run, record), record.space, searched.phase, settings, networks)
    if (copy / folder.RECORD).exists():
        _require_same_phases(copy, config)
        return
    shutil.rmtree(staging, ignore_errors=True)
    try:
        (staging / folder.CHECKPOINTS).mkdir(parents=True)
        _copy_files(run, staging, record, searched.phase, config)
        staging.rename(copy)
    except OSError as error:
        raise RunError(
            f"{copy} cannot be written ({error.strerror}); check its folder and the disk's free space"
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _require_same_phases(copy: Path, config: Config) -> None:
    """Refuse a copy that was begun with other settings or networks, such as one whose adaptation.json was removed."""
    # All else is as in the searched run, and may say where its images were before they were moved.
    begun, wanted = ({"phases": asdict(one)["phases"]} for one in (trained_recipe(copy, read_run(copy)), config))
    for key, (before, now) in changed_settings(begun, wanted).items():
        raise RunError(
            f"{copy}: {key} is {show(now)}, and was {show(before)} when this copy was begun: remove that folder to"
            " adapt anew"
        )


def _copy_files(run: Path, target: Path, record: RunRecord, phase: str, config: Config) -> None:
    for name in (folder.SPLIT, folder.INITIAL_IMAGES, folder.METRICS):
        if (run / name).exists():
            shutil.copyfile(run / name, target / name)
    begun = _begun_record(record, phase, config)
    for one in begun.phases:
        for source in (run / folder.CHECKPOINTS).glob(f"{one.name}.*"):
            shutil.copyfile(source, target / folder.CHECKPOINTS / source.name)
    files.write_text(target / folder.RECIPE, begun.recipe)
    write_run(target, begun)


def _begun_record(record: RunRecord, phase: str, config: Config) -> RunRecord:
    """Return the record of a copy of a run that has come as far as a phase, and goes on with another recipe."""
    phases = record.phases[: [one.name for one in record.phases].index(phase) + 1]
    text = recipe.dump(config)
    return replace(record, status="stopped", recipe=text, phases=phases, test=None, wandb_run_id=None, states={})


def _measured_anew(found: Found, processes: Processes) -> FrontRecord:
    """Return the front with the values that its networks have in the copies, in the same order."""
    front, values = found.front.finalists, {}
    with log_progress("measuring the front anew", 2 * len(front)) as advance:
        for number in sorted({one.run for one in front}):
            copy, networks = found.adapted_folder(number), [one.subnet for one in front if one.run == number]
            run = processes.on_all(partial(_opened, copy, processes))
            for name, half in halve(run.data.val, run.evaluator.seed)._asdict().items():
                for score in run.evaluator.scores(run.loaded.net, networks, half):
                    values[number, score.subnet, name] = score.value
                    advance()
    finalists = tuple(
        replace(
            one,
            searched=values[one.run, one.subnet, "search"],
            confirmed=values[one.run, one.subnet, "confirmation"],
        )
        for one in front
    )
    optimism, error = front_optimism(found.record, finalists)
    return replace(found.front, finalists=finalists, optimism=optimism, optimism_error=error)


def _opened(run: Path, processes: Processes) -> OpenedRun:
    return open_loaded(load_run(run), processes)


def confirmed_volumes(
    record: SearchRecord, before: Sequence[Finalist], after: Sequence[Finalist]
) -> tuple[float, float]:
    """Return the hypervolumes of two confirmed fronts, as shares of the box around both, which is a little larger."""
    fronts = [_points(record, front) for front in (before, after)]
    together = np.concatenate(fronts)
    low, span = together.min(0), np.maximum(np.ptp(together, axis=0), 1e-12) * (1 + MARGIN)
    first, second = (hypervolume((points - low) / span, np.ones(len(low))) for points in fronts)
    return first, second


def _points(record: SearchRecord, front: Sequence[Finalist]) -> Floats:
    """Return what is minimised, of confirmed networks (N, 1 + costs): the metric, lower for better, then costs."""
    rows = [(-record.metric.rank(one.confirmed), *(one.cost(name) for name in record.costs)) for one in front]
    return np.array(rows, np.float64)


def _gain(record: SearchRecord, before: Sequence[Finalist], after: Sequence[Finalist]) -> tuple[float, float | None]:
    """Return the mean gain of the confirmed metric, and its standard error as if the images were others after."""
    rank = record.metric.rank
    pairs = list(zip(before, after, strict=True))
    gain = float(np.mean([rank(new.confirmed) - rank(old.confirmed) for old, new in pairs]))
    if not record.metric.counts_images:
        return gain, None
    shares = [float(np.mean([one.confirmed for one in front])) for front in (before, after)]
    return gain, math.hypot(*(share_error(share, record.confirmation_images) for share in shares))
