"""`ofav2 train`: train a recipe through all its phases, or resume a run."""

import argparse
import os
import shlex

from ofav2.cli import console
from ofav2.cli.arguments import add_recipe, shift_settings
from ofav2.cli.verb import Verb
from ofav2.config import recipe
from ofav2.errors import UserError

_EPILOG = """\
examples:
  ofav2 train digits
  ofav2 train digits run.seed=1 tracking.mode=offline --run-dir runs/seed-1
  ofav2 train cifar10 data.root=/data/cifar10 data.download=true
  ofav2 train my_recipe.yaml phases.full.epochs=30
  ofav2 train --resume runs/digits             go on with a run that stopped
  ofav2 train digits --run-dir runs/a --resume auto    start it, or go on: for jobs that are started again
  torchrun --nproc-per-node 2 -m ofav2 train digits    two processes, each with half of every batch

SIGTERM or Ctrl-C lets the step end, saves the run's state and exits with code 75; a second one exits at once.

next: ofav2 evaluate RUN, ofav2 extract RUN --largest --out DIR
"""


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe(parser, needed=False)
    parser.add_argument("--run-dir", metavar="DIR", help="run folder, new or empty (default: a new one under runs/)")
    parser.add_argument(
        "--resume", metavar="RUN", help="go on with this run; `auto`: with the one in --run-dir, or start it"
    )
    parser.add_argument(
        "--allow-change",
        metavar="KEY",
        action="append",
        default=[],
        help="accept that this key of a resumed run's recipe or data has changed; may be given several times",
    )


def _run(arguments: argparse.Namespace) -> None:
    if arguments.resume == "":
        # As of a variable that is not set: a new training is not what was meant.
        raise UserError("--resume (empty): must name a run, or be auto; leave it out to begin a new one")
    shift_settings(arguments)
    if "WORLD_SIZE" not in os.environ:
        # Before torch is loaded, which takes seconds; torchrun's processes tell a mistake once, together.
        _check(arguments)
    from ofav2.runtime.processes import process_group
    from ofav2.training.run import resume, train, train_or_resume

    with process_group() as processes:
        if "WORLD_SIZE" in os.environ:
            processes.on_all(lambda: _check(arguments))
        if arguments.resume == "auto":
            run = train_or_resume(arguments.run_dir, arguments.recipe, arguments.overrides, arguments.allow_change)
        elif arguments.resume:
            run = resume(arguments.resume, arguments.recipe, arguments.overrides, arguments.allow_change)
        else:
            run = train(arguments.recipe, arguments.overrides, arguments.run_dir)
        if processes.rank:
            return
        test = run.record.test
        metric = run.record.metric
        images = run.record.data.images.test
        reached = f": largest sub-network {metric.show_from(test.largest, images)} test {metric.name}" if test else ""
        console.show(str(run.folder))
        folder, largest = shlex.quote(str(run.folder)), shlex.quote(f"{run.folder.resolve().name}-largest")
        console.say(
            f"made {run.folder}{reached}\n"
            f"next: ofav2 evaluate {folder}\n"
            f"      ofav2 extract {folder} --largest --out {largest}"
        )


def _check(arguments: argparse.Namespace) -> None:
    if arguments.resume == "auto" and arguments.run_dir is None:
        raise UserError("--resume auto starts or goes on with the run in a folder: name it with --run-dir DIR")
    if arguments.allow_change and arguments.resume is None:
        raise UserError("--allow-change has no effect on a new run: leave it out, or name a run with --resume")
    if arguments.resume not in (None, "auto") and arguments.run_dir:
        raise UserError(f"--run-dir ({arguments.run_dir}) has no effect on a run that is resumed: leave it out")
    if arguments.recipe is None and arguments.resume is None:
        raise UserError("RECIPE is missing: `ofav2 recipes` lists them")
    if arguments.recipe is not None:
        # A mistake in it is told before torch is imported.
        recipe.load(arguments.recipe, arguments.overrides)


VERB = Verb("train", "Train a recipe through all its phases.", _EPILOG, _add_arguments, _run)
