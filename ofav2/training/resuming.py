"""Find where a run goes on: with the same recipe and data, from the newest state that can be read."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

import distill
from ofav2.config import recipe
from ofav2.config.schema import Config
from ofav2.data import ImageData, SplitRecord, read_split, split_record
from ofav2.errors import RunError
from ofav2.networks.build import with_own_input
from ofav2.runs import checkpoint, folder
from ofav2.runs.kept_recipe import FREE, changed_settings, names_setting, trained_recipe
from ofav2.runs.metrics_file import cut_metrics
from ofav2.runs.records import PhaseRecord, RunRecord, lasting, with_lasting
from ofav2.runs.split import kept_split
from ofav2.runs.state import PhaseState, load_newest, set_aside_after, state_names
from ofav2.training.setup import Setup, check_progress, record_now, refuse_changes
from ofav2.training.step import DivergedError
from ofav2.training.teacher import candidates, score_order

logger = logging.getLogger(__name__)

_DRAWING = ("name", "val_fraction", "test_fraction", "split_seed", "shots")
"""Settings of a recipe's data part that a split is drawn by."""


class Reopened(NamedTuple):
    """What a run goes on with."""

    config: Config
    """Its recipe: the one that it kept, but for allowed changes."""
    split: SplitRecord | None
    """Its split; None if it has to be drawn, as its file is lost, other images are accepted, or it is to change."""
    resumed: RunRecord | None
    """Its record, if it has something to go on from; None if it begins once more."""


def reopen(
    path: Path, record: RunRecord, recipe_name: str | Path | None, overrides: Sequence[str], allow: Sequence[str]
) -> Reopened:
    """Return what a run is to go on with.

    Args:
        path: The run folder.
        record: The run's record until now.
        recipe_name: The recipe that it is thought to have; None takes the one that it kept.
        overrides: Settings to change in it, as `key=value`.
        allow: Keys whose change is accepted.

    Raises:
        RunError: If something else changed, or `split.json` is damaged or another run's; the message shows how.
    """
    config = _same_recipe(path, record, recipe_name, overrides, allow)
    split = _same_split(path, record, config, allow)
    return Reopened(config, split, record if has_progress(path, record) else None)


def _same_recipe(
    path: Path, record: RunRecord, recipe_name: str | Path | None, overrides: Sequence[str], allow: Sequence[str]
) -> Config:
    """Return the recipe to go on with. `run.json` holds it as well, so a `recipe.yaml` that was edited is a change."""
    kept = trained_recipe(path, record)
    config = recipe.load(recipe_name or path / folder.RECIPE, overrides)
    if kept.data.mean is not None:
        # As it was when the run began; runs from before that was so kept null.
        config = with_own_input(config)
    if not config.run.threads:
        # The number that the run chose when it began.
        config = replace(config, run=replace(config.run, threads=kept.run.threads))
    refuse_changes(asdict(kept), asdict(config), allow)
    _refuse_past_changes(path, record, kept, config)
    if config.run.threads != kept.run.threads:
        logger.info(
            f"threads: {config.run.threads}, before: {kept.run.threads}; sums are added in another order, so the run"
            " ends with other last bits"
        )
    return config


def _refuse_past_changes(path: Path, record: RunRecord, kept: Config, config: Config) -> None:
    """Refuse changes of what is over: the run would be told to have been trained otherwise than it was.

    Raises:
        RunError: If the first weights, or a setting of a finished phase, are others.
    """
    over = [f"phases.{phase.name}" for phase in record.phases if phase.name in config.phases]
    if has_progress(path, record):
        over += ["supernet.init", "network.weights"]
    changes = changed_settings(asdict(kept), asdict(config))
    weighed = [phase.name for phase in record.phases if phase.name in config.phases]
    weighed = [name for name in weighed if config.phases[name].exit_weights is None]
    if weighed and any(names_setting(["teacher.exit_weights"], key) for key in changes):
        raise RunError(
            f"teacher.exit_weights was used by {weighed[0]}, which is over: its largest network was scored with it, and"
            " teaches with it; leave it as it was, and set phases.NAME.exit_weights of phases to come"
        )
    changed = [key for key in changes if names_setting(over, key)]
    if changed:
        raise RunError(
            f"{changed[0]} was of a part of the run that is over, so a change would have no effect: leave it as it was,"
            " or train in a new folder"
        )


def has_progress(path: Path, record: RunRecord) -> bool:
    """Return whether a run has something to go on from, so that the weights that it began with are no longer needed."""
    return bool(record.phases) or not set(record.states).isdisjoint(state_names(path))


def _same_split(path: Path, record: RunRecord, config: Config, allow: Sequence[str]) -> SplitRecord | None:
    kept = trained_recipe(path, record).data
    changed = any(getattr(kept, name) != getattr(config.data, name) for name in _DRAWING)
    if changed or not {"data", "data.fingerprint"}.isdisjoint(allow):
        return None
    return kept_split(path, record)


def warn_of_known_images(path: Path, data: ImageData) -> None:
    """Say how many images that a run was trained on until now are held out by a split that was drawn anew.

    Args:
        path: The run folder, with the split until now.
        data: The data set with the new one.

    Raises:
        RunError: If `split.json` is damaged.
    """
    if not (path / folder.SPLIT).exists():
        return
    before, after = read_split(path / folder.SPLIT).by_name, split_record(data).by_name
    trained = {(before["train"].listed, member) for member in before["train"].members}
    for name in ("val", "test"):
        held = after[name]
        known = sum((held.listed, member) in trained for member in held.members)
        if known:
            logger.warning(
                f"{known} of the {len(held.members)} images of the new split {name} were trained on until now, by their"
                " names: scores on them are too good"
            )


def is_whole(path: Path, record: RunRecord) -> bool:
    """Return whether a run is finished, and its weights are intact; if they are not, it has to be trained again."""
    if record.status != "finished":
        return False
    last = record.phases[-1]
    try:
        checkpoint.load(folder.checkpoint_path(path, last.name), last.sha256)
    except RunError:
        return False
    return True


def first_record(name: str, config: Config, setup: Setup) -> RunRecord:
    """Return the record of a run that begins.

    Args:
        name: Its name.
        config: The recipe as it was given.
        setup: What was made of it, with the number of threads that was chosen.
    """
    return replace(record_now(name, recipe.dump(setup.config), setup), chosen_threads=_chosen_threads(config, setup))


def refuse_another(record: RunRecord, setup: Setup, allow: Sequence[str]) -> None:
    """Check that what a run would go on with is what it was started with.

    Args:
        record: Its record until now.
        setup: What was made of the recipe to go on with.
        allow: Keys whose change is accepted.

    Raises:
        RunError: If data, supernet or phases changed; the message shows how.
    """
    refuse_changes(lasting(record), lasting(record_now("", "", setup)), allow)
    try:
        check_progress(record.phases, setup.plan)
    except RunError as error:
        if record.imported is None:
            raise
        raise RunError("the run was imported, and has nothing to go on with: supernet.init=RUN trains it on") from error


def refuse_late_changes(path: Path, record: RunRecord, config: Config) -> None:
    """Check that a finished run is not asked for another training.

    Raises:
        RunError: If more changed than where images are, and what computes.
    """
    changed = changed_settings(asdict(trained_recipe(path, record)), asdict(config))
    asked = [key for key in changed if not names_setting(FREE, key)]
    if asked:
        raise RunError(
            f"the run is finished, so another {asked[0]} has no effect: train in a new folder, where"
            " supernet.init=RUN starts from this run's weights"
        )


def next_record(record: RunRecord, config: Config, setup: Setup) -> RunRecord:
    """Return the record of a run that goes on.

    Args:
        record: Its record until now.
        config: The recipe to go on with.
        setup: What was made of it.

    Raises:
        RunError: If finished phases trained more networks than the supernet has now.
    """
    now = record_now(record.name, recipe.dump(setup.config), setup)
    count = setup.runtime.processes.count
    if record.processes != count:
        logger.info(
            f"processes: {count}, before: {record.processes}; batches, sub-networks and learning rates stay the same,"
            " batch norm sees other parts of a batch"
        )
    if record.versions != now.versions:
        logger.warning(
            f"versions: {_differing(now.versions, record.versions)}; sums may be added in another order, so the"
            " run ends with other last bits"
        )
        earlier = (*record.earlier_versions, record.versions)
        record = replace(record, versions=now.versions, earlier_versions=earlier)
    # The number that the run chose when it began, as long as the recipe has it.
    kept = record.chosen_threads if record.chosen_threads == config.run.threads else None
    chosen = _chosen_threads(config, setup) or kept
    try:
        return with_lasting(replace(record, processes=count, chosen_threads=chosen), now)
    except ValueError as error:
        raise RunError(
            f"the supernet can't be changed any more, as phases are finished that trained more ({error}): restore its"
            " settings and data.resolutions, or train in a new folder"
        ) from error


def _differing(now: Mapping[str, str | None], before: Mapping[str, str | None]) -> str:
    """Return what differs, as `torch 2.12.0, before 2.11.0`."""
    names = [name for name in {**now, **before} if now.get(name) != before.get(name)]
    return "; ".join(
        f"{name} {now.get(name) or 'not installed'}, before {before.get(name) or 'none'}" for name in names
    )


def _chosen_threads(config: Config, setup: Setup) -> int | None:
    """Return the number of threads that was chosen where the recipe names none."""
    return None if config.run.threads else setup.config.run.threads or None


def rewind(setup: Setup, path: Path, record: RunRecord) -> tuple[RunRecord, PhaseState | None]:
    """Take supernet and folder to where the run goes on, in all processes alike.

    Returns:
        The run's record there, and the saved state of the phase in progress, if there is one.
    """
    record, state = setup.runtime.processes.on_main(lambda: _rewind(setup, path, record))
    setup.runtime.processes.copy_first(list(setup.net.state_dict().values()))
    return record, state


def _rewind(setup: Setup, path: Path, record: RunRecord) -> tuple[RunRecord, PhaseState | None]:
    finished, state = _restore(setup, path, record)
    if not finished and state is None and has_progress(path, record) and (record.initial or record.weights_sha256):
        # The supernet is fresh, as the first weights were not loaded.
        raise RunError(
            "nothing that the run has saved can be read, and it did not begin with fresh weights: restore its files, or"
            " train in a new folder"
        )
    last = finished[-1] if finished else None
    cut_metrics(path, state.progress.metrics_bytes if state else last.metrics_bytes if last else 0)
    set_aside_after(path, state.progress.global_step if state else last.end if last else 0)
    # What was measured on test at an earlier end is of other weights.
    return replace(record, phases=finished, test=None), state


def _restore(setup: Setup, path: Path, record: RunRecord) -> tuple[tuple[PhaseRecord, ...], PhaseState | None]:
    """Load what the last finished phase left into the supernet.

    Returns:
        The finished phases, and the state of the one in progress. A finished phase whose checkpoint is damaged and
        still needed is left out, with those after it, and so trained again.
    """
    finished = record.phases
    begun, diverged = bool(finished), record.status == f"failed: {DivergedError.__name__}"
    while (damaged := _first_damaged(path, finished, setup)) is not None:
        finished = finished[:damaged]
    if finished:
        last = folder.checkpoint_path(path, finished[-1].name)
        tensors, _ = checkpoint.load(last, finished[-1].sha256)
        checkpoint.fill(setup.net, tensors, str(last))
    if len(finished) == len(setup.plan.phases):
        return finished, None
    state = load_newest(path, setup.plan.phases[len(finished)].name, record.states)
    if begun or state or diverged:
        where = f"step {state.progress.step}" if state else "its start"
        why = ", before what made it stop" if diverged else ""
        logger.info(f"going on with phase {setup.plan.phases[len(finished)].name} from {where}{why}")
    return finished, state


def _first_damaged(path: Path, finished: Sequence[PhaseRecord], setup: Setup) -> int | None:
    """Return the number, from 0, of the first finished phase whose checkpoint is damaged and needed; say so."""
    ahead = setup.plan.phases[len(finished) :]
    # Of those that are finished, a policy that chooses one now chooses it or a newer one later on.
    policies = {phase.teacher for phase in ahead} & set(distill.policies()) if finished else set()
    order = score_order(setup.task)
    needed = {distill.choose(policy, candidates(finished), order).candidate.phase for policy in policies}
    for number, phase in enumerate(finished):
        if phase.name in needed or phase is finished[-1]:
            try:
                checkpoint.load(folder.checkpoint_path(path, phase.name), phase.sha256)
            except RunError as error:
                logger.warning(f"{error}; going back to the phase before it")
                return number
    return None
