"""The command `ofav2`: its verbs, their help, and how errors reach the user.

Results go to stdout, notes and progress to stderr. Exit codes: 0 done, 2 what was given can't be used,
75 a training was asked to stop and can be resumed, 130 interrupted.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ofav2 import console, recipe
from ofav2.training.interrupt import Stopped

if TYPE_CHECKING:
    from supernets import Subnet

STOPPED = 75
"""Exit code of a training that was asked to stop and can be resumed (`EX_TEMPFAIL`: try again)."""

# Only what parsing needs is imported here: torch takes seconds to load, and `--help` should not.

_EPILOG = """\
examples:
  ofav2 recipes                                list what can be trained
  ofav2 plan digits                            show a recipe's phases without training
  ofav2 train digits                           train it; prints the run folder
  ofav2 evaluate runs/digits                   measure the corner sub-networks on test
  ofav2 extract runs/digits --largest --out largest
"""
_TRAIN_EPILOG = """\
examples:
  ofav2 train digits
  ofav2 train digits run.seed=1 tracking.mode=offline --run-dir runs/seed-1
  ofav2 train cifar10 data.root=/data/cifar10 data.download=true
  ofav2 train my_recipe.yaml phases.full.epochs=30
  ofav2 train --resume runs/digits             go on with a run that stopped
  ofav2 train digits --run-dir runs/a --resume auto    start it, or go on: for jobs that are started again

SIGTERM or Ctrl-C lets the step end, saves the run's state and leaves with exit code 75; a second one leaves at once.

next: ofav2 evaluate RUN, ofav2 extract RUN --largest --out DIR
"""
_PLAN_EPILOG = """\
examples:
  ofav2 plan digits
  ofav2 plan tiny_imagenet_paper data.root=/data/tiny-imagenet-200

next: ofav2 train RECIPE
"""
_EVALUATE_EPILOG = """\
examples:
  ofav2 evaluate runs/digits                   corner sub-networks on the test split
  ofav2 evaluate runs/digits --split val --phase kernel
  ofav2 evaluate runs/digits --subnet mine.json

next: ofav2 extract RUN --subnet FILE.json --out DIR
"""
_EXTRACT_EPILOG = """\
examples:
  ofav2 extract runs/digits --largest --out largest
  ofav2 extract runs/digits --subnet mine.json --out mine

A sub-network file is JSON with the keys resolution, depth (one per stage), kernel, expand, level (a list per stage, one
entry per active block) and height; every subnet.json that this command writes holds one under the key "subnet", and
`ofav2.load_supernet(RUN).space.uniform(kernel=5).to_json()` makes one in Python.

next: in Python, ofav2.load_subnet(DIR)
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        argv: Arguments without the program's name; None takes the process's.

    Returns:
        The exit code.
    """
    arguments = _parser().parse_args(argv)
    try:
        arguments.verb(arguments)
    except Stopped as stopped:
        console.say(f"ofav2: stopped after {stopped}; `ofav2 train --resume RUN` goes on from there")
        return STOPPED
    except KeyboardInterrupt:
        console.say("ofav2: interrupted")
        return 130
    except BrokenPipeError:
        # Whoever reads the output has seen enough, as `head` does.
        sys.stderr.close()
        return 0
    except ValueError as error:
        if not _is_the_users(error):
            raise
        # A DataLoader's worker hands its error on with a traceback, of which the last line is the message.
        console.say(f"ofav2: {str(error).strip().splitlines()[-1].removeprefix('ofav2.errors.UserError: ')}")
        return 2
    return 0


def _is_the_users(error: ValueError) -> bool:
    from distill import DistillError
    from ofav2.errors import UserError
    from supernets import SpaceError

    return isinstance(error, UserError | SpaceError | DistillError)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ofav2",
        description="Train OFAv2 supernets in phases, and take sub-networks out.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="store_true", help="print the version and leave")
    parser.set_defaults(verb=_no_verb, parser=parser)
    verbs = parser.add_subparsers(title="verbs", metavar="VERB")

    def add(name: str, summary: str, epilog: str) -> argparse.ArgumentParser:
        return verbs.add_parser(
            name, help=summary, description=summary, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
        )

    recipes = add("recipes", "List the recipes.", "next: ofav2 plan RECIPE, ofav2 train RECIPE\n")
    recipes.set_defaults(verb=_recipes)

    plan = add("plan", "Show a recipe's phases, space sizes and steps, without training.", _PLAN_EPILOG)
    _add_recipe(plan)
    plan.set_defaults(verb=_plan)

    train = add("train", "Train a recipe through all its phases.", _TRAIN_EPILOG)
    _add_recipe(train, needed=False)
    train.add_argument("--run-dir", metavar="DIR", help="run folder, new or empty (default: a new one under runs/)")
    train.add_argument(
        "--resume", metavar="RUN", help="go on with this run; `auto`: with the one in --run-dir, or start it"
    )
    train.add_argument(
        "--allow-change",
        metavar="KEY",
        action="append",
        default=[],
        help="accept that this key of a resumed run's recipe or data has changed; may be given several times",
    )
    train.set_defaults(verb=_train)

    evaluate = add("evaluate", "Measure sub-networks of a run, batch norm recalibrated.", _EVALUATE_EPILOG)
    evaluate.add_argument("run", metavar="RUN", help="run folder")
    evaluate.add_argument("--subnet", metavar="FILE", help="measure this sub-network instead of the corners")
    evaluate.add_argument(
        "--split", choices=("test", "val"), default="test", help="images to measure on (default: test)"
    )
    evaluate.add_argument("--phase", metavar="NAME", help="weights of this phase (default: the last one)")
    evaluate.set_defaults(verb=_evaluate)

    extract = add("extract", "Take a sub-network out of a run, as files.", _EXTRACT_EPILOG)
    extract.add_argument("run", metavar="RUN", help="run folder")
    which = extract.add_mutually_exclusive_group(required=True)
    which.add_argument("--largest", action="store_true", help="the largest sub-network that was trained")
    which.add_argument("--smallest", action="store_true", help="the smallest one")
    which.add_argument("--subnet", metavar="FILE", help="the one that this JSON file describes")
    extract.add_argument("--out", metavar="DIR", required=True, help="folder to make")
    extract.set_defaults(verb=_extract)
    return parser


def _add_recipe(parser: argparse.ArgumentParser, needed: bool = True) -> None:
    parser.add_argument(
        "recipe",
        metavar="RECIPE",
        nargs=None if needed else "?",
        help="name out of `ofav2 recipes`, or path of a YAML file",
    )
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="settings to change")


def _no_verb(arguments: argparse.Namespace) -> None:
    if arguments.version:
        from importlib.metadata import version

        console.show(version("ofav2"))
    else:
        arguments.parser.print_help()


def _recipes(arguments: argparse.Namespace) -> None:
    rows = [(name, recipe.describe(name)) for name in recipe.names()]
    console.show(console.table("", ("recipe", "what it trains"), rows))
    console.say("next: ofav2 plan RECIPE, then ofav2 train RECIPE")


def _plan(arguments: argparse.Namespace) -> None:
    from ofav2.prepare import prepare
    from ofav2.training.phases import plan_table

    setup = prepare(recipe.load(arguments.recipe, arguments.overrides))
    columns, rows = plan_table(setup.plan)
    console.show(
        console.table(f"{arguments.recipe}: {setup.data.name}, {len(setup.data.train)} training images", columns, rows)
    )
    for sentence in setup.plan.skipped:
        console.show(sentence)
    console.show(f"in all {setup.plan.steps:,} steps of {setup.config.data.batch_size} images")
    console.say(f"next: {_again('train', arguments)}")


def _train(arguments: argparse.Namespace) -> None:
    from ofav2.errors import UserError
    from ofav2.run import resume, train

    if arguments.recipe is not None and "=" in arguments.recipe:
        # Without a recipe, argparse takes the first setting for one.
        arguments.recipe, arguments.overrides = None, [arguments.recipe, *arguments.overrides]
    folder = arguments.run_dir if arguments.resume == "auto" else arguments.resume
    if arguments.resume == "auto" and folder is None:
        raise UserError("--resume auto starts or goes on with the run in a folder: name it with --run-dir DIR")
    if arguments.allow_change and arguments.resume is None:
        raise UserError("--allow-change has no effect on a new run: leave it out, or name a run with --resume")
    if arguments.resume not in (None, "auto") and arguments.run_dir:
        raise UserError(f"--run-dir ({arguments.run_dir}) has no effect on a run that is resumed: leave it out")
    if folder is not None and (arguments.resume != "auto" or (Path(folder) / "run.json").exists()):
        run = resume(folder, arguments.recipe, arguments.overrides, arguments.allow_change)
    elif arguments.recipe is None:
        raise UserError("RECIPE is missing: `ofav2 recipes` lists them")
    else:
        run = train(arguments.recipe, arguments.overrides, arguments.run_dir)
    console.show(str(run.folder))
    console.say(
        f"made {run.folder}: largest sub-network {run.facts['test']['largest']:.1%} test top-1\n"
        f"next: ofav2 evaluate {run.folder}\n"
        f"      ofav2 extract {run.folder} --largest --out {run.folder.name}-largest"
    )


def _evaluate(arguments: argparse.Namespace) -> None:
    from ofav2.subnets.extract import measure, open_for_judging

    run = open_for_judging(arguments.run, arguments.phase)
    subnets = [_read_subnet(arguments.subnet)] if arguments.subnet else run.loaded.net.space.corners()
    columns, rows = measure(run, subnets, arguments.split)
    console.show(console.table(f"{arguments.run}, phase {run.loaded.phase}, {arguments.split}", columns, rows))
    console.say(f"next: ofav2 extract {arguments.run} --subnet FILE.json --out DIR")


def _extract(arguments: argparse.Namespace) -> None:
    from ofav2.subnets.extract import extract, open_for_judging

    chosen = _read_subnet(arguments.subnet) if arguments.subnet else None
    run = open_for_judging(arguments.run)
    space = run.loaded.net.space
    subnet = chosen or (space.largest() if arguments.largest else space.smallest())
    written = extract(run, subnet, arguments.out)
    before, after = written["top1"]["before_recalibration"], written["top1"]["after_recalibration"]
    rows = [(split, f"{100 * before[split]:.2f}", f"{100 * after[split]:.2f}") for split in before]
    console.show(console.table(str(subnet), ("split", "top-1 % as extracted", "top-1 % recalibrated"), rows))
    console.say(
        f"made {arguments.out}: {written['cost']['params']:,} parameters, {written['cost']['macs']:,} multiply-adds\n"
        f"next: in Python, ofav2.load_subnet({arguments.out!r})"
    )


def _read_subnet(name: str) -> "Subnet":
    from ofav2.errors import UserError
    from supernets import Subnet

    try:
        fields = json.loads(Path(name).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"sub-network file ({name}) can't be read ({error.strerror}): give a JSON file") from error
    except ValueError as error:
        raise UserError(f"sub-network file ({name}) is no JSON: {error}") from error
    # What `extract` writes holds the sub-network under a key of its own.
    return Subnet.from_dict(fields["subnet"] if isinstance(fields, dict) and "subnet" in fields else fields)


def _again(verb: str, arguments: argparse.Namespace) -> str:
    return " ".join(["ofav2", verb, arguments.recipe, *arguments.overrides])
