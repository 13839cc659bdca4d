"""Run the main path: for each phase choose the teacher, train, evaluate, save. Read this file first."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ofav2.config import recipe
from ofav2.data import refuse_inside
from ofav2.errors import UserError
from ofav2.evaluation.by_class import largest_by_class
from ofav2.evaluation.maps import largest_maps
from ofav2.messages import refuse_text
from ofav2.networks.build import with_own_input
from ofav2.runs import folder
from ofav2.runs.records import Run, RunRecord
from ofav2.runtime.processes import process_group
from ofav2.runtime.signals import Stopped, stop_requests
from ofav2.training.beginning import check_beginning, images_until_now
from ofav2.training.phase import evaluate_on_test, run_phase
from ofav2.training.resuming import (
    first_record,
    is_whole,
    next_record,
    refuse_another,
    refuse_late_changes,
    reopen,
    rewind,
    warn_of_known_images,
)
from ofav2.training.setup import Setup, place_to_train, prepare, refuse_disagreement
from ofav2.training.threads import settle_threads
from ofav2.training.writer import RunWriter, new_run, old_run

logger = logging.getLogger(__name__)


def train(recipe_name: str | Path, overrides: Sequence[str] = (), run_dir: str | Path | None = None) -> Run:
    """Train a supernet through all phases of a recipe.

    Under torchrun, all processes train it together: each takes a part of every batch. Only the first logs and writes.

    Args:
        recipe_name: Name of a shipped recipe, or path of a YAML file.
        overrides: Settings to change, as `key=value`.
        run_dir: The run folder, new or empty; None makes one under the recipe's `run.folder`.

    Returns:
        The finished run.

    Raises:
        UserError, SpaceError, DistillError: If something given can't be used; the message says what and why.
        RunError: If the run folder can't be used, or too many batches had an unusable loss.
        Stopped: If a signal told the run to stop; it can be resumed.
        Lost: If another process failed with an error message, or is gone.
    """
    with process_group() as processes:
        config = processes.on_all(lambda: with_own_input(recipe.load(recipe_name, overrides)))
        if run_dir is not None:
            processes.on_main(lambda: folder.require_vacant(Path(run_dir).expanduser()))
        setup = prepare(config, processes)
        initial_images = processes.on_main(lambda: check_beginning(setup))
        setup = settle_threads(setup)
        target = Path(run_dir or config.run.folder).expanduser()
        processes.on_main(lambda: refuse_inside(setup.data.trees, target, "run folder"))
        with new_run(config, recipe_name, run_dir, processes) as writer:
            record = first_record(writer.name, config, setup)
            writer.write(folder.RECIPE, record.recipe)
            writer.keep_split(setup.data)
            writer.keep_initial_images(initial_images)
            return _run_phases(setup, writer, writer.keep(record))


def resume(
    run_dir: str | Path, recipe_name: str | Path | None = None, overrides: Sequence[str] = (), allow: Sequence[str] = ()
) -> Run:
    """Go on with a run from its newest saved state, as if it had not stopped.

    On the CPU it ends with the same weights and measurements, to the last bit, as a run that was not interrupted.

    Args:
        run_dir: The run folder.
        recipe_name: The recipe that the run is thought to have; None takes the one that it kept.
        overrides: Settings to change in it, as `key=value`.
        allow: Keys whose change is accepted, such as `data.root`, or of a whole part, such as `tracking`.

    Returns:
        The finished run; one that was finished already is left as it is.

    Raises:
        UserError, SpaceError, DistillError: If something given can't be used, or the recipe's data set or teacher is
            gone; the message says what and why.
        RunError: If the folder is no run or in use, if recipe, data or classes changed, or if too many batches had an
            unusable loss; the message shows how.
        Stopped: If a signal told the run to stop; it can be resumed.
        Lost: If another process failed with an error message, or is gone.
    """
    path = Path(run_dir).expanduser()
    refuse_text("allowed changes", allow)
    with process_group() as processes:
        refuse_disagreement(
            processes, {"RECIPE": recipe_name and str(recipe_name), "settings": overrides, "--allow-change": allow}
        )
        with old_run(path, processes) as writer:
            before = writer.read()
            if not processes.on_main((path / folder.RECIPE).exists):
                logger.warning(f"{path / folder.RECIPE} is missing: it is written again, from {folder.RECORD}")
                writer.write(folder.RECIPE, before.recipe)
            config, split, resumed = processes.on_main(lambda: reopen(path, before, recipe_name, overrides, allow))
            setup = settle_threads(prepare(config, processes, split, resumed=resumed))
            processes.on_main(lambda: refuse_another(before, setup, allow))
            has_other_images = setup.data.fingerprint != before.data.fingerprint
            if processes.on_main(lambda: is_whole(path, before)):
                processes.on_main(lambda: refuse_late_changes(path, before, setup.config))
                if split is None and not has_other_images:
                    writer.keep_split(setup.data)
                logger.info(f"{path} is finished already")
                return Run(path, before)
            record = processes.on_main(lambda: next_record(before, config, setup))
            if resumed is None and (has_other_images or setup.initial != before.initial):
                writer.keep_initial_images(processes.on_main(lambda: check_beginning(setup)))
            elif has_other_images:
                processes.on_main(lambda: warn_of_known_images(path, setup.data))
                writer.keep_initial_images(processes.on_main(lambda: images_until_now(path, before, config)))
            if split is None:
                writer.keep_split(setup.data)
            writer.write(folder.RECIPE, record.recipe)
            return _run_phases(setup, writer, record)


def train_or_resume(
    run_dir: str | Path, recipe_name: str | Path | None = None, overrides: Sequence[str] = (), allow: Sequence[str] = ()
) -> Run:
    """Go on with the run in a folder, or start it there where there is none: for jobs that are started again.

    Arguments, result and errors are those of `resume`.
    """
    with process_group() as processes:
        if processes.on_main(lambda: (Path(run_dir).expanduser() / folder.RECORD).exists()):
            return resume(run_dir, recipe_name, overrides, allow)
        if recipe_name is None:
            processes.refuse(UserError("RECIPE is missing: `ofav2 recipes` lists them"))
        return train(recipe_name, overrides, run_dir)


def _run_phases(setup: Setup, writer: RunWriter, record: RunRecord) -> Run:
    """Run all phases that are not finished, then the test split; `run.json` keeps the record up to date."""
    logger.info(f"run folder: {writer.path}")
    for sentence in setup.plan.skipped:
        logger.info(sentence)
    place_to_train(setup.net, setup.runtime)
    record, state = rewind(setup, writer.path, record)
    with stop_requests() as stop, writer.tracker(setup.config, record, setup.plan.steps_per_epoch) as tracker:
        record = writer.keep(replace(record, status="training", wandb_run_id=tracker.run_id))
        try:
            for phase in setup.plan.phases[len(record.phases) :]:
                finished = run_phase(setup, phase, record.phases, state, writer=writer, tracker=tracker, stop=stop)
                # States were saved meanwhile, which the file on the disk names.
                record = replace(writer.read(), phases=(*record.phases, finished))
                record, state = writer.keep(record), None
            record = replace(record, test=evaluate_on_test(setup, tracker), status="finished")
            last = record.phases[-1]
            # Exits that no loss had a weight of were not trained.
            largest = last.space.largest()
            writer.keep_classes(largest_by_class(setup.net, largest, setup.evaluator, last.name, last.sha256))
            writer.keep_maps(largest_maps(setup.net, largest, setup.evaluator, last.name, last.sha256))
            return Run(writer.path, writer.keep(record))
        except Stopped as stopped:
            writer.keep_status("stopped")
            raise Stopped(str(stopped), str(writer.path)) from stopped
        except Exception as error:
            writer.keep_failure(error)
            raise
