"""What each verb of the command does: calls one public function, shows its result, and says what to run next.

Rooms are imported when their verb runs, since torch takes seconds to load and `--help` should not wait for it.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ofav2 import files
from ofav2.cli import console
from ofav2.config import recipe
from ofav2.tables import table

if TYPE_CHECKING:
    from ofav2.evaluation.opened_run import OpenedRun
    from ofav2.nas.candidates import Ranking
    from ofav2.nas.constraints import Constraints
    from supernets import Exits, Subnet

_CHOICE = (
    *("max_macs", "max_params", "max_memory", "max_latency"),
    *("exit", "resolution", "candidates", "seed", "latency_table"),
)


def without_verb(arguments: argparse.Namespace) -> None:
    """`ofav2`: the help, or the version."""
    if arguments.version:
        from importlib.metadata import PackageNotFoundError, version

        try:
            console.show(version("ofav2"))
        except PackageNotFoundError:
            console.show("not installed: runs from its sources")
    else:
        arguments.parser.print_help()


def list_recipes(arguments: argparse.Namespace) -> None:
    """`ofav2 recipes`."""
    rows = [(name, recipe.describe(name)) for name in recipe.names()]
    console.show(table("", ("recipe", "what it trains"), rows))
    console.say("next: ofav2 plan RECIPE, then ofav2 train RECIPE")


def show_plan(arguments: argparse.Namespace) -> None:
    """`ofav2 plan`."""
    from ofav2.training.phases import plan_table
    from ofav2.training.setup import prepare

    setup = prepare(recipe.load(arguments.recipe, arguments.overrides))
    columns, rows = plan_table(setup.plan)
    console.show(
        table(f"{arguments.recipe}: {setup.data.name}, {len(setup.data.train)} training images", columns, rows)
    )
    for sentence in setup.plan.skipped:
        console.show(sentence)
    console.show(f"in all {setup.plan.steps:,} steps of {setup.config.data.batch_size} images")
    console.say(f"next: {_again('train', arguments)}")


def run_training(arguments: argparse.Namespace) -> None:
    """`ofav2 train`."""
    from ofav2.runtime.processes import process_group
    from ofav2.training.run import resume, train, train_or_resume

    with process_group() as processes:
        processes.on_all(lambda: _check_train(arguments))
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
        reached = f": largest sub-network {metric.show(test.largest)} test {metric.name}" if test else ""
        console.show(str(run.folder))
        console.say(
            f"made {run.folder}{reached}\n"
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


def evaluate_run(arguments: argparse.Namespace) -> None:
    """`ofav2 evaluate`."""
    from ofav2.evaluation.measure import measure
    from ofav2.evaluation.opened_run import open_run

    run = open_run(arguments.run, arguments.phase)
    subnets = [_read_subnet(arguments.subnet)] if arguments.subnet else run.loaded.net.space.corners()
    columns, rows = measure(run, subnets, arguments.split)
    console.show(table(f"{arguments.run}, phase {run.loaded.phase}, {arguments.split}", columns, rows))
    console.say(f"next: ofav2 extract {arguments.run} --subnet FILE.json --out DIR")


def extract_subnet(arguments: argparse.Namespace) -> None:
    """`ofav2 extract`."""
    from ofav2.deploy.extract import extract
    from ofav2.evaluation.opened_run import open_run

    formats = _formats(arguments.formats)
    constraints = _constraints(arguments)
    chosen = _read_subnet(arguments.subnet) if arguments.subnet else None
    run = open_run(arguments.run)
    space = run.loaded.net.space
    subnet, facts = chosen or (space.largest() if arguments.largest else space.smallest()), None
    if constraints:
        choice = _choose(arguments, run, constraints)
        subnet, facts = choice.best.subnet, choice.to_dict()
    written = extract(run, subnet, arguments.out, _exits(arguments.exits), choice=facts, formats=formats)
    before, after = (written["top1_per_exit"][f"{when}_recalibration"] for when in ("before", "after"))
    rows = [
        (exit, split, f"{100 * before[split][exit]:.2f}", f"{100 * after[split][exit]:.2f}")
        for split in before
        for exit in before[split]
    ]
    console.show(table(str(subnet), ("exit", "split", "top-1 % as extracted", "top-1 % recalibrated"), rows))
    console.say(
        f"made {arguments.out}: {written['cost']['params']:,} parameters, {written['cost']['macs']:,} multiply-adds\n"
        f"next: in Python, ofav2.load_subnet({arguments.out!r})"
    )


def finetune_subnet(arguments: argparse.Namespace) -> None:
    """`ofav2 finetune`."""
    from ofav2.finetuning.run import finetune

    formats = _formats(arguments.formats)
    if arguments.recipe is not None and "=" in arguments.recipe:
        # Without a file, argparse takes the first setting for one.
        arguments.recipe, arguments.overrides = None, [arguments.recipe, *arguments.overrides]
    written = finetune(
        arguments.directory, arguments.overrides, out=arguments.out, file=arguments.recipe, formats=formats
    )
    done = written["finetuning"][-1]
    before, after = done["test_before"] or {}, done["test"]
    rows = [
        (exit, f"{100 * before[exit]:.2f}" if exit in before else None, f"{100 * top1:.2f}")
        for exit, top1 in after.items()
    ]
    console.show(table(written["name"], ("exit", "test top-1 % before", "test top-1 % fine-tuned"), rows))
    console.say(
        f"made {arguments.out}: {done['epochs']} epochs on {done['images']['train'] + done['images']['val']} images\n"
        f"next: in Python, ofav2.load_subnet({arguments.out!r})"
    )


def _constraints(arguments: argparse.Namespace) -> "Constraints | None":
    """What is asked of a network to choose, checked against the run; None where the network is named."""
    from ofav2.errors import UserError
    from ofav2.nas.constraints import ask

    given = [name for name in _CHOICE if getattr(arguments, name) is not None]
    named = [name for name in ("largest", "smallest", "subnet") if getattr(arguments, name)]
    if given and named:
        raise UserError(f"{_option(named[0])} names a network and {_option(given[0])} chooses one: leave one out")
    if not given and not named:
        raise UserError("no network is named: give --largest, --smallest, --subnet FILE, or limits such as --max-macs")
    if not given:
        return None
    files.check_free(Path(arguments.out))
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


def _choose(arguments: argparse.Namespace, run: "OpenedRun", constraints: "Constraints") -> "Ranking":
    from ofav2.nas.candidates import choose
    from ofav2.nas.constraints import CANDIDATE_COLUMNS, candidate_rows, describe_choice

    count = 200 if arguments.candidates is None else arguments.candidates
    seed = arguments.seed or 0
    choice = choose(
        run, constraints.limits, space=constraints.space, candidates=count, seed=seed, table=constraints.table
    )
    title = f"best of {len(choice.ranked)}: {constraints.limits}"
    console.show(table(title, CANDIDATE_COLUMNS, candidate_rows(choice)))
    for sentence in describe_choice(run, choice, count, constraints.table):
        console.say(sentence)
    return choice


def calibrate(arguments: argparse.Namespace) -> None:
    """`ofav2 calibrate`."""
    from ofav2.exits.calibrate import STUDY_COLUMNS, calibrate_exits, study_rows
    from ofav2.nas.limits import parse_limits, parse_share
    from ofav2.report.early import PAGE, write_early_page

    study = calibrate_exits(
        arguments.directory,
        arguments.overrides,
        max_macs=parse_limits(macs=arguments.max_macs).macs,
        min_top1=None if arguments.min_top1 is None else parse_share("top-1", arguments.min_top1),
        confidence=arguments.confidence,
        ensemble=arguments.ensemble,
    )
    page = Path(arguments.directory) / PAGE
    write_early_page(study, page)
    console.show(table(f"{study.name}, validation", STUDY_COLUMNS, study_rows(study)))
    test = study.test
    console.show(
        f"chosen: {study.own.name}, {study.target}; test top-1 {100 * test.top1:.2f} %"
        f" at {test.mean_macs:,.0f} multiply-adds (last exit alone {100 * study.last_test_top1:.2f} %"
        f" at {study.last.mean_macs:,.0f})"
    )
    console.say(
        f"made {page.with_suffix('.json')} and {page}\n"
        f"next: in Python, ofav2.load_early_exits({arguments.directory!r})"
        f".decide(images, ofav2.load_exit_policy({arguments.directory!r}))"
    )


def time_parts(arguments: argparse.Namespace) -> None:
    """`ofav2 latency`."""
    from ofav2.nas.latency_table import TABLE, measure_table, save_table

    path = Path(arguments.table) if arguments.table else Path(arguments.run) / TABLE
    timed = measure_table(arguments.run, batch=arguments.batch, threads=arguments.threads)
    save_table(timed, path)
    error, machine = timed.error, timed.machine
    console.show(str(path))
    console.say(
        f"made {path}: {len(timed.entries)} parts, batch {timed.batch}, {machine.threads} threads, {machine.name}\n"
        f"off by {error.median:.1%} (median), {error.largest:.1%} (largest) on {error.networks} random networks\n"
        f"next: ofav2 extract {arguments.run} --max-latency 2ms --out DIR"
    )


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def write_page(arguments: argparse.Namespace) -> None:
    """`ofav2 report`."""
    from ofav2.exits.exit_agreement import measure_exits
    from ofav2.report.single import write_report

    if arguments.exits:
        measure_exits(arguments.run)
    page = write_report(arguments.run, arguments.out)
    console.show(str(page))
    console.say(f"made {page}: open it in a browser, it needs no network\nnext: ofav2 compare {arguments.run} RUN")


def compare_pages(arguments: argparse.Namespace) -> None:
    """`ofav2 compare`."""
    from ofav2.report.several import RESULT_COLUMNS, compare_runs

    comparison = compare_runs(arguments.runs, arguments.out)
    console.show(table("", RESULT_COLUMNS, comparison.results))
    if comparison.settings:
        console.show(table("\nsettings that differ", ("setting", *comparison.names), comparison.settings))
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


def _formats(text: str | None) -> tuple[str, ...]:
    from ofav2.deploy.export import FORMATS, check_formats

    if text is None:
        return FORMATS
    formats = () if text == "none" else tuple(name.strip() for name in text.split(","))
    check_formats(formats)
    return formats


def import_checkpoint(arguments: argparse.Namespace) -> None:
    """`ofav2 import-ofa`."""
    from ofav2.training.import_ofa import import_ofa

    run = import_ofa(arguments.checkpoint, arguments.recipe, arguments.overrides, out=arguments.out)
    arch = run.record.architecture
    console.show(str(run.folder))
    console.say(
        f"made {run.folder}: {arch.variant}, width {arch.width_mult}, {arch.num_classes} classes\n"
        f"next: ofav2 evaluate {run.folder}\n"
        f"      ofav2 extract {run.folder} --largest --out {run.folder.name}-largest"
    )


def _read_subnet(name: str) -> "Subnet":
    from ofav2.errors import UserError
    from supernets import Subnet

    try:
        fields = files.parse_json(Path(name).read_bytes())
    except OSError as error:
        raise UserError(f"sub-network file ({name}) can't be read ({error.strerror}): give a JSON file") from error
    except ValueError as error:
        raise UserError(f"sub-network file ({name}) is no JSON: {error}") from error
    # What `extract` writes holds the sub-network under a key of its own.
    return Subnet.from_dict(fields["subnet"] if isinstance(fields, dict) and "subnet" in fields else fields)


def _again(verb: str, arguments: argparse.Namespace) -> str:
    return " ".join(["ofav2", verb, arguments.recipe, *arguments.overrides])
