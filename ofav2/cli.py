"""The command `ofav2`: its verbs, their help, and how errors reach the user.

Results go to stdout, notes and progress to stderr. Exit codes: 0 done, 1 another process of the training is gone,
2 what was given can't be used, 75 a training was asked to stop and can be resumed, 130 interrupted.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ofav2 import console, recipe
from ofav2.training.interrupt import Lost, Stopped

if TYPE_CHECKING:
    from ofav2.subnets.asked import Asked
    from ofav2.subnets.extract import OpenedRun
    from supernets import Exits, Subnet

LOST = 1
"""Exit code of a process whose training ended because another process of the run failed or is gone."""
STOPPED = 75
"""Exit code of a training that was asked to stop and can be resumed (`EX_TEMPFAIL`: try again)."""

# Only what parsing needs is imported here: torch takes seconds to load, and `--help` should not.

_CHOICE = (
    *("max_macs", "max_params", "max_memory", "max_latency"),
    *("exit", "resolution", "candidates", "seed", "latency_table"),
)

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
  torchrun --nproc-per-node 2 -m ofav2 train digits    two processes, each with half of every batch

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
  ofav2 extract runs/digits --largest --exits 2,4 --out early
  ofav2 extract runs/digits --max-macs 2M --max-params 200k --out small
  ofav2 extract runs/digits --max-latency 2ms --exit 3..5 --resolution 16 --candidates 50 --out quick

Limits (and --exit, --resolution, --candidates) rank random networks that keep them on validation and take the best:
counts in k, M, G; memory in B, kB, MB, GB, KiB, MiB, GiB; time in ns, us, ms, s (needs `ofav2 latency RUN` once).

It writes model.safetensors, subnet.json, model.onnx, model.pt2 and model_card.md, each checked on real images.

A sub-network file is JSON with the keys resolution, depth (one per stage), kernel, expand, level (a list per stage, one
entry per active block) and height; every subnet.json that this command writes holds one under the key "subnet", and
`ofav2.load_supernet(RUN).space.uniform(kernel=5).to_json()` makes one in Python.

next: in Python, ofav2.load_subnet(DIR)
"""
_LATENCY_EPILOG = """\
examples:
  ofav2 latency runs/digits                    writes runs/digits/latency.json
  ofav2 latency runs/digits --threads 4 --batch 8 --table desktop.json

next: ofav2 extract RUN --max-latency 2ms --out DIR
"""
_REPORT_EPILOG = """\
examples:
  ofav2 report runs/digits                     writes runs/digits/report.html
  ofav2 report runs/digits --exits             measures first how often the exits agree (needs the data set)
  ofav2 report runs/digits --out page.html     while it trains, too: make the page again to see more

next: open the page in a browser; it needs no network
"""
_COMPARE_EPILOG = """\
examples:
  ofav2 compare runs/digits runs/digits-2
  ofav2 compare runs/seed-* --out seeds.html

next: open the page in a browser; ofav2 report RUN shows one run in full
"""

_IMPORT_EPILOG = """\
examples:
  ofav2 import-ofa ofa_mbv3_d234_e346_k357_w1.0 imagenet_paper data.root=PATH --out runs/ofa

Width, classes and kernels are read off the checkpoint; the recipe says which images it was trained on, and which depths
and expansion ratios.

next: ofav2 evaluate RUN, ofav2 extract RUN --largest --out DIR
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
        if _rank() == 0:
            console.say(f"ofav2: stopped after {stopped}; `ofav2 train --resume RUN` goes on from there")
        return STOPPED
    except Lost as lost:
        if _rank() == 0:
            console.say(f"ofav2: {lost}; `ofav2 train --resume RUN` goes on from the last saved state")
        return LOST
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
        message = str(error).strip().splitlines()[-1].removeprefix("ofav2.errors.UserError: ")
        console.say(f"ofav2: process {_rank()}: {message}" if _rank() else f"ofav2: {message}")
        return 2
    return 0


def _rank() -> int:
    from ofav2.training.processes import own_rank

    return own_rank()


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
    which = extract.add_mutually_exclusive_group()
    which.add_argument("--largest", action="store_true", help="the largest sub-network that was trained")
    which.add_argument("--smallest", action="store_true", help="the smallest one")
    which.add_argument("--subnet", metavar="FILE", help="the one that this JSON file describes")
    _add_choice(extract)
    extract.add_argument(
        "--exits", metavar="WHICH", default="last", help="logits to return: last (default), all, or exits such as 2,4"
    )
    extract.add_argument("--out", metavar="DIR", required=True, help="folder to make")
    extract.set_defaults(verb=_extract)

    import_ofa = add("import-ofa", "Make a run folder out of an official OFA checkpoint.", _IMPORT_EPILOG)
    import_ofa.add_argument("checkpoint", metavar="CHECKPOINT", help="file of an OFA MobileNetV3 supernet")
    _add_recipe(import_ofa)
    import_ofa.add_argument("--out", metavar="RUN", required=True, help="run folder to make")
    import_ofa.set_defaults(verb=_import_ofa)

    latency = add("latency", "Time a supernet's parts here, to predict and limit latency.", _LATENCY_EPILOG)
    latency.add_argument("run", metavar="RUN", help="run folder")
    latency.add_argument("--table", metavar="FILE", help="file to write (default: latency.json in the run folder)")
    latency.add_argument("--batch", metavar="N", type=int, default=1, help="images per call (default: 1)")
    latency.add_argument("--threads", metavar="N", type=int, help="CPU threads (default: the recipe's run.threads)")
    latency.set_defaults(verb=_latency)

    report = add("report", "Write a run's page: what was trained, how it went, what came out.", _REPORT_EPILOG)
    report.add_argument("run", metavar="RUN", help="run folder")
    report.add_argument("--out", metavar="FILE", help="page to write (default: report.html in the run folder)")
    report.add_argument("--exits", action="store_true", help="measure exit agreement on validation and keep it")
    report.set_defaults(verb=_report)

    compare = add("compare", "Put runs side by side: settings, results, fronts.", _COMPARE_EPILOG)
    compare.add_argument("runs", metavar="RUN", nargs="+", help="run folders, two or more")
    compare.add_argument("--out", metavar="FILE", help="page to write (default: compare.html here)")
    compare.set_defaults(verb=_compare)
    return parser


def _add_recipe(parser: argparse.ArgumentParser, needed: bool = True) -> None:
    parser.add_argument(
        "recipe",
        metavar="RECIPE",
        nargs=None if needed else "?",
        help="name out of `ofav2 recipes`, or path of a YAML file",
    )
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="settings to change")


def _add_choice(extract: argparse.ArgumentParser) -> None:
    choice = extract.add_argument_group("limits", "rank random networks that keep them on validation; take the best")
    choice.add_argument("--max-macs", metavar="30M", help="multiply-adds per image")
    choice.add_argument("--max-params", metavar="2M", help="parameters")
    choice.add_argument("--max-memory", metavar="512KiB", help="peak activation memory, batch 1, float32")
    choice.add_argument("--max-latency", metavar="8ms", help="latency that the run's table predicts")
    choice.add_argument("--exit", metavar="3", help="exits to end at: a number, a list 2,4 or a range 3..5")
    choice.add_argument("--resolution", metavar="48..64", help="resolutions, likewise")
    choice.add_argument("--candidates", metavar="N", type=int, help="networks to rank (default: 200)")
    choice.add_argument("--seed", metavar="N", type=int, help="seed of their draw (default: 0)")
    choice.add_argument(
        "--latency-table", metavar="FILE", help="table of `ofav2 latency` (default: latency.json in the run folder)"
    )


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
    from ofav2.run import resume, train, train_or_resume
    from ofav2.training.processes import together

    # Of several processes, only the first one is heard in here.
    with together() as processes:
        processes.everywhere(lambda: _check_train(arguments))
        if arguments.resume == "auto":
            run = train_or_resume(arguments.run_dir, arguments.recipe, arguments.overrides, arguments.allow_change)
        elif arguments.resume:
            run = resume(arguments.resume, arguments.recipe, arguments.overrides, arguments.allow_change)
        else:
            run = train(arguments.recipe, arguments.overrides, arguments.run_dir)
        console.show(str(run.folder))
        console.say(
            f"made {run.folder}: largest sub-network {run.facts['test']['largest']:.1%} test top-1\n"
            f"next: ofav2 evaluate {run.folder}\n"
            f"      ofav2 extract {run.folder} --largest --out {run.folder.name}-largest"
        )


def _check_train(arguments: argparse.Namespace) -> None:
    from ofav2.errors import UserError

    if arguments.recipe is not None and "=" in arguments.recipe:
        # Without a recipe, argparse takes the first setting for one.
        arguments.recipe, arguments.overrides = None, [arguments.recipe, *arguments.overrides]
    if arguments.resume == "auto" and arguments.run_dir is None:
        raise UserError("--resume auto starts or goes on with the run in a folder: name it with --run-dir DIR")
    if arguments.allow_change and arguments.resume is None:
        raise UserError("--allow-change has no effect on a new run: leave it out, or name a run with --resume")
    if arguments.resume not in (None, "auto") and arguments.run_dir:
        raise UserError(f"--run-dir ({arguments.run_dir}) has no effect on a run that is resumed: leave it out")
    if arguments.recipe is None and arguments.resume is None:
        raise UserError("RECIPE is missing: `ofav2 recipes` lists them")


def _evaluate(arguments: argparse.Namespace) -> None:
    from ofav2.subnets.extract import measure, open_for_judging

    run = open_for_judging(arguments.run, arguments.phase)
    subnets = [_read_subnet(arguments.subnet)] if arguments.subnet else run.loaded.net.space.corners()
    columns, rows = measure(run, subnets, arguments.split)
    console.show(console.table(f"{arguments.run}, phase {run.loaded.phase}, {arguments.split}", columns, rows))
    console.say(f"next: ofav2 extract {arguments.run} --subnet FILE.json --out DIR")


def _extract(arguments: argparse.Namespace) -> None:
    from ofav2.subnets.extract import extract, open_for_judging

    asked = _asked(arguments)
    chosen = _read_subnet(arguments.subnet) if arguments.subnet else None
    run = open_for_judging(arguments.run)
    space = run.loaded.net.space
    if asked:
        subnet = _choose(arguments, run, asked)
    else:
        subnet = chosen or (space.largest() if arguments.largest else space.smallest())
    written = extract(run, subnet, arguments.out, _exits(arguments.exits))
    before, after = (written["top1_per_exit"][f"{when}_recalibration"] for when in ("before", "after"))
    rows = [
        (exit, split, f"{100 * before[split][exit]:.2f}", f"{100 * after[split][exit]:.2f}")
        for split in before
        for exit in before[split]
    ]
    console.show(console.table(str(subnet), ("exit", "split", "top-1 % as extracted", "top-1 % recalibrated"), rows))
    console.say(
        f"made {arguments.out}: {written['cost']['params']:,} parameters, {written['cost']['macs']:,} multiply-adds\n"
        f"next: in Python, ofav2.load_subnet({arguments.out!r})"
    )


def _asked(arguments: argparse.Namespace) -> "Asked | None":
    """What is asked of a network to choose, checked against the run; None where the network is named."""
    from ofav2 import folder
    from ofav2.errors import UserError
    from ofav2.subnets.asked import ask

    given = [name for name in _CHOICE if getattr(arguments, name) is not None]
    named = [name for name in ("largest", "smallest", "subnet") if getattr(arguments, name)]
    if given and named:
        raise UserError(f"{_option(named[0])} names a network and {_option(given[0])} chooses one: leave one out")
    if not given and not named:
        raise UserError("no network is named: give --largest, --smallest, --subnet FILE, or limits such as --max-macs")
    if not given:
        return None
    folder.check_free(Path(arguments.out))
    return ask(
        arguments.run,
        params=arguments.max_params,
        macs=arguments.max_macs,
        memory=arguments.max_memory,
        latency=arguments.max_latency,
        exits=arguments.exit,
        resolutions=arguments.resolution,
        table=arguments.latency_table,
    )


def _choose(arguments: argparse.Namespace, run: "OpenedRun", asked: "Asked") -> "Subnet":
    from ofav2.subnets.asked import CANDIDATE_COLUMNS, candidate_rows, describe_choice
    from ofav2.subnets.choose import choose

    count = 200 if arguments.candidates is None else arguments.candidates
    seed = arguments.seed or 0
    choice = choose(run, asked.limits, space=asked.space, candidates=count, seed=seed, table=asked.table)
    title = f"best of {len(choice.ranked)}: {asked.limits}"
    console.show(console.table(title, CANDIDATE_COLUMNS, candidate_rows(choice)))
    for sentence in describe_choice(run, choice, count, asked.table):
        console.say(sentence)
    return choice.best.subnet


def _latency(arguments: argparse.Namespace) -> None:
    from ofav2.subnets.latency_table import TABLE, measure_table, save_table

    path = Path(arguments.table) if arguments.table else Path(arguments.run) / TABLE
    table = measure_table(arguments.run, batch=arguments.batch, threads=arguments.threads)
    save_table(table, path)
    error, machine = table.error, table.machine
    console.show(str(path))
    console.say(
        f"made {path}: {len(table.entries)} parts, batch {table.batch}, {machine.threads} threads, {machine.name}\n"
        f"off by {error.median:.1%} (median), {error.largest:.1%} (largest) on {error.networks} random networks\n"
        f"next: ofav2 extract {arguments.run} --max-latency 2ms --out DIR"
    )


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _report(arguments: argparse.Namespace) -> None:
    from ofav2.report.exits import measure_exits
    from ofav2.report.single import write_report

    if arguments.exits:
        measure_exits(arguments.run)
    page = write_report(arguments.run, arguments.out)
    console.show(str(page))
    console.say(f"made {page}: open it in a browser, it needs no network\nnext: ofav2 compare {arguments.run} RUN")


def _compare(arguments: argparse.Namespace) -> None:
    from ofav2.report.several import RESULT_COLUMNS, compare_runs

    comparison = compare_runs(arguments.runs, arguments.out)
    console.show(console.table("", RESULT_COLUMNS, comparison.results))
    if comparison.settings:
        console.show(console.table("\nsettings that differ", ("setting", *comparison.names), comparison.settings))
    for warning in comparison.warnings:
        console.say(warning)
    console.say(f"made {comparison.page}: open it in a browser, it needs no network\nnext: ofav2 report RUN")


def _exits(text: str) -> "Exits":
    from ofav2.errors import UserError

    if text == "last":
        return "last"
    if text == "all":
        return "all"
    numbers = text.split(",")
    if not all(number.strip().isdecimal() and len(number) < 5 for number in numbers):
        raise UserError(f"--exits ({text}) must be last, all, or exits by number, such as 2,4")
    return tuple(int(number) for number in numbers)


def _import_ofa(arguments: argparse.Namespace) -> None:
    from ofav2.ofa import import_ofa

    run = import_ofa(arguments.checkpoint, arguments.recipe, arguments.overrides, out=arguments.out)
    supernet = run.facts["supernet"]
    console.show(str(run.folder))
    console.say(
        f"made {run.folder}: {supernet['variant']}, width {supernet['width_mult']}, {supernet['num_classes']} classes\n"
        f"next: ofav2 evaluate {run.folder}\n"
        f"      ofav2 extract {run.folder} --largest --out {run.folder.name}-largest"
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
