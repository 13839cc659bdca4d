"""OFAv2 beside OFA, its own parts one by one, and networks trained alone; docs/results.md has the results.

python -m benchmarks.proof train cifar10 DATA_ROOT     # folders of images: train/CLASS, test/CLASS
python -m benchmarks.proof train eurosat DATA_ROOT     # a folder of images per class
python -m benchmarks.proof train digits                # parallel blocks; the images come with scikit-learn
python -m benchmarks.proof measure cifar10             # random and chosen sub-networks of every finished run
python -m benchmarks.proof show cifar10                # tables as Markdown, plots as SVG

`--rows ofa ofav2` takes some rows only, so that several processes can share the work. Every row is a recipe and a few
settings, so that it can also be trained by itself: `train` says the command before it starts. What was interrupted goes
on where it was. Results are in docs/proof/DATASET, a file per row.
"""

import argparse
import json
import shlex
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import ofav2
from benchmarks.proof_tables import RESULTS, show
from benchmarks.sides import command_line, machine
from ofav2 import files
from ofav2.cli import console
from ofav2.errors import UserError
from ofav2.evaluation.opened_run import OpenedRun
from ofav2.networks.cost import network_cost
from ofav2.progress import log_progress
from ofav2.report.curves import phase_seconds
from ofav2.report.networks import Table, tables
from ofav2.rng import generator
from ofav2.runs import folder
from ofav2.runs.snapshot import RunSnapshot, read_snapshot
from ofav2.training import run
from supernets import Space, Subnet

RUNS = Path("runs/proof")
SHARES = (25, 50, 100)
"""Limits of the chosen networks, in percent of the largest network's multiply-adds."""
BODIES = 100
"""Random networks per run: the same ones for all, up to the exits, which single-exit supernets lack."""
CANDIDATES = 24
"""Networks that are ranked on validation per limit."""
TEST_IMAGES = 2000
"""Test images that the random networks are measured on, the same ones for all; all other scores are of all of them."""


@dataclass(frozen=True)
class Row:
    """One training of the comparison."""

    name: str
    """Its run folder, and its file of results; of further seeds, that of seed 0 and `-seedN`."""
    title: str
    """What a reader calls it."""
    recipe: str
    """A shipped recipe, or a file of benchmarks/recipes."""
    settings: tuple[str, ...] = ()
    """What is changed in it."""


IN_PLACE = "benchmarks/recipes/cifar10_in_place.yaml"
OFA = ("supernet.variant=se_b", "teacher.policy=fixed")
LONGER = "phases.expand.epochs=4"
"""Single-exit supernets skip the two epochs of the height phase; with these they see as many images."""
EUROSAT_LONGER = "phases.expand_2.epochs=6.22"
"""The same for the height phases of EuroSAT, counted in sub-network images."""
EUROSAT_PAPER = "benchmarks/recipes/eurosat_paper.yaml"
"""eurosat_proof at the paper's learning rates."""
EUROSAT_SANDWICH = "benchmarks/recipes/eurosat_sandwich.yaml"
ELASTIC_FASTER = "phases.elastic.lr=0.056"
"""The rate that eurosat_proof has in all phases after the kernel phase."""
ONE_THREAD = ("run.threads=1",)
"""Two threads add sums in another order, and the demo of digits takes all that there are."""
LEVEL_OFF = ("phases.level=null", "phases.expand.epochs=21")
"""Parallel blocks of digits whose branches are always all on; it takes as long as with the phase, by measured steps."""
LEVEL_KEEP = ("supernet.keep=[mbconv]", "phases.expand.epochs=10")
"""The level phase with blocks that keep their MBConv; with fewer epochs of dearer steps, it takes about as long."""
ONE_BRANCH = ("supernet.variant=ee_d", "phases.level=null", "phases.expand.epochs=37")
"""No parallel blocks, as long again."""
FASTER = MappingProxyType({"height": 0.07, "depth": 0.07, "expand": 0.07})
"""Learning rates of elastic phases after the kernel phase; the recipes have 0.03, and 0.1 in the full phase."""
FASTER_KERNEL = MappingProxyType({"kernel": 0.1, **FASTER})
"""The same, and a higher one in the kernel phase, too; the recipes have 0.04."""
LONG_FULL = ("data.batch_size=256", "phases.full.epochs=12", "phases.full.warmup_epochs=1.2", "phases.full.lr=0.2")
LONG = (
    *LONG_FULL,
    *("phases.kernel.epochs=3", "phases.kernel.lr=0.08", "phases.depth.epochs=3", "phases.depth.lr=0.14"),
    *("phases.expand.epochs=6", "phases.expand.lr=0.14"),
)
"""Thirty epochs instead of ten, on twice the batch at twice the rates: the recipe's, and those of `FASTER`."""
LONG_HEIGHT = ("phases.height.epochs=6", "phases.height.lr=0.14")
LONG_EXPAND = "phases.expand.epochs=12"
"""The same for single-exit supernets, with as many images."""
LONG_IN_PLACE = (
    *LONG_FULL,
    *("phases.kernel.epochs=4.02", "phases.kernel.lr=0.2", "phases.depth.epochs=1.62", "phases.depth.lr=0.14"),
    *("phases.expand.epochs=3.63", "phases.expand.lr=0.14"),
)
"""The same for in-place distillation, whose elastic phases take as long as those of OFAv2."""
LONG_ALONE = ("data.batch_size=256", "phases.full.epochs=15", "phases.full.warmup_epochs=1.2", "phases.full.lr=0.2")
SIZES = MappingProxyType(
    {
        "small": {"kernel": 3, "depth": 2, "expand": 3},
        "middle": {"kernel": 5, "depth": 3, "expand": 4},
        "large": {"kernel": 7, "depth": 4, "expand": 6},
    }
)
"""Networks that are also trained alone; they end at the last exit."""


def rates(of: Mapping[str, float], *but: str) -> tuple[str, ...]:
    """The settings that give phases their learning rates, but for some that a recipe lacks."""
    return tuple(f"phases.{name}.lr={rate}" for name, rate in of.items() if name not in but)


def alone(size: str, recipe: str) -> Row:
    """The row of a network that is trained by itself."""
    settings = tuple(f"supernet.{name}=[{value}]" for name, value in SIZES[size].items())
    return Row(f"alone-{size}", f"{size}, alone", recipe, settings)


def seeds(row: Row, count: int) -> tuple[Row, ...]:
    """The row, and the same with further seeds up to `count`."""
    further = [
        replace(
            row,
            name=f"{row.name}-seed{seed}",
            title=f"{row.title}, seed {seed}",
            settings=(*row.settings, f"run.seed={seed}"),
        )
        for seed in range(1, count)
    ]
    return (row, *further)


CIFAR10: tuple[Row, ...] = (
    Row("ofa", "OFA: SE_B, fixed teacher", "cifar10_proof", OFA),
    Row("ofav2", "OFAv2: EE_D, progressive teacher", "cifar10_proof"),
    Row("ofa-seed1", "OFA, seed 1", "cifar10_proof", (*OFA, "run.seed=1")),
    Row("ofav2-seed1", "OFAv2, seed 1", "cifar10_proof", ("run.seed=1",)),
    Row("ofa-longer", "OFA, expand twice as long", "cifar10_proof", (*OFA, LONGER)),
    Row("ofav2-fixed", "OFAv2, fixed teacher", "cifar10_proof", ("teacher.policy=fixed",)),
    Row("ee_b", "EE_B, progressive teacher", "cifar10_proof", ("supernet.variant=ee_b",)),
    Row("se_d", "SE_D, progressive teacher, expand twice as long", "cifar10_proof", ("supernet.variant=se_d", LONGER)),
    Row("sandwich", "EE_D, one elastic phase, sandwich", "cifar10_proof_sandwich"),
    *(alone(size, "cifar10_proof_alone") for size in SIZES),
    *seeds(Row("in-place", "EE_D, in-place distillation, as long as OFAv2", IN_PLACE), 2),
    *seeds(Row("ofav2-faster", "OFAv2, higher rates after the kernel phase", "cifar10_proof", rates(FASTER)), 2),
    *seeds(Row("ofa-faster", "OFA, higher rates after the kernel phase", "cifar10_proof", (*OFA, *rates(FASTER))), 2),
    *seeds(Row("ofav2-faster-kernel", "OFAv2, higher rates", "cifar10_proof", rates(FASTER_KERNEL)), 2),
    *seeds(
        Row(
            "ofav2-faster-uniform",
            "OFAv2, higher rates, exits weighed evenly",
            "cifar10_proof",
            (*rates(FASTER_KERNEL), "teacher.exit_weights=uniform"),
        ),
        2,
    ),
    *seeds(
        Row(
            "in-place-faster-kernel",
            "EE_D, in-place distillation, higher rates",
            IN_PLACE,
            rates(FASTER_KERNEL, "height"),
        ),
        2,
    ),
    *seeds(Row("ofa-long", "OFA, 30 epochs", "cifar10_proof", (*OFA, *LONG, LONG_EXPAND)), 2),
    *seeds(Row("ofav2-long", "OFAv2, 30 epochs", "cifar10_proof", (*LONG, *LONG_HEIGHT)), 2),
    *seeds(Row("in-place-long", "EE_D, in-place distillation, 30 epochs", IN_PLACE, LONG_IN_PLACE), 2),
    Row("se_d-long", "SE_D, 30 epochs", "cifar10_proof", ("supernet.variant=se_d", *LONG, LONG_EXPAND)),
    Row(
        "alone-large-long",
        "large, alone, 15 epochs",
        "cifar10_proof_alone",
        (*alone("large", "cifar10_proof_alone").settings, *LONG_ALONE),
    ),
    Row(
        "alone-exit-1-long",
        "large, exit 1 alone, 15 epochs (see smallest)",
        "cifar10_proof_alone",
        ("supernet.variant=ee_d", "teacher.exit_weights=[1,0,0,0,0]", *LONG_ALONE),
    ),
)
EUROSAT: tuple[Row, ...] = (
    *seeds(Row("ofa", "OFA: SE_B, fixed teacher", EUROSAT_PAPER, OFA), 3),
    *seeds(Row("ofav2", "OFAv2: EE_D, progressive teacher", EUROSAT_PAPER), 3),
    *seeds(Row("ofav2-fixed", "OFAv2, fixed teacher", EUROSAT_PAPER, ("teacher.policy=fixed",)), 3),
    Row("ofav2-best", "OFAv2, best teacher", EUROSAT_PAPER, ("teacher.policy=best",)),
    Row("se_d", "SE_D, last phase longer", EUROSAT_PAPER, ("supernet.variant=se_d", EUROSAT_LONGER)),
    Row("ee_b", "EE_B, progressive teacher", EUROSAT_PAPER, ("supernet.variant=ee_b",)),
    *seeds(Row("ofa-faster", "OFA, higher rates after the kernel phase", "eurosat_proof", OFA), 3),
    *seeds(Row("ofav2-faster", "OFAv2, higher rates after the kernel phase", "eurosat_proof"), 3),
    *seeds(Row("sandwich", "EE_D, one elastic phase, sandwich", EUROSAT_SANDWICH), 3),
    Row("sandwich-faster", "EE_D, one elastic phase, sandwich, higher rate", EUROSAT_SANDWICH, (ELASTIC_FASTER,)),
    Row(
        "sandwich-faster-in-place",
        "EE_D, one elastic phase, in-place distillation, higher rate",
        EUROSAT_SANDWICH,
        (ELASTIC_FASTER, "phases.elastic.objective=in_place", "phases.elastic.dropout=0"),
    ),
    *(row for size in SIZES for row in seeds(alone(size, "benchmarks/recipes/eurosat_alone.yaml"), 3)),
    Row("level-on", "EE_DP, with the level phases", EUROSAT_PAPER, ("supernet.variant=ee_dp",)),
    Row(
        "level-off",
        "EE_DP, without them, last phase longer",
        EUROSAT_PAPER,
        ("supernet.variant=ee_dp", "phases.level_1=null", "phases.level_2=null", "phases.expand_2.epochs=4.45"),
    ),
)
DIGITS: tuple[Row, ...] = (
    *seeds(Row("level-on", "EE_DP, with the level phase", "digits", ONE_THREAD), 3),
    *seeds(Row("level-off", "EE_DP, without it, as long", "digits", (*ONE_THREAD, *LEVEL_OFF)), 3),
    *seeds(Row("level-keep", "EE_DP, with it, MBConv kept, as long", "digits", (*ONE_THREAD, *LEVEL_KEEP)), 3),
    *seeds(Row("ee_d", "EE_D: one branch, as long", "digits", (*ONE_THREAD, *ONE_BRANCH)), 3),
)
DATASETS = MappingProxyType({"cifar10": CIFAR10, "eurosat": EUROSAT, "digits": DIGITS})
"""Everything that is compared on a data set, in the order in which it is trained."""
PACKAGED = "digits"
"""The data set whose images come with a package, so that it has no DATA_ROOT."""


def command(row: Row, root: str | None, runs: Path) -> str:
    """The shell command that trains a row by itself."""
    where = ("--run-dir", str(runs / row.name), "--resume", "auto")
    return shlex.join(["ofav2", "train", row.recipe, *_data(root), *row.settings, *where])


def train(rows: Iterable[Row], root: str | None, runs: Path) -> None:
    """Trains rows one after the other; those that are finished are left as they are.

    Raises:
        UserError, RunError: As `ofav2.train` and `ofav2.resume` raise them.
    """
    for row in rows:
        console.say(command(row, root, runs))
        run.train_or_resume(runs / row.name, row.recipe, (*_data(root), *row.settings))


def measure(rows: Iterable[Row], runs: Path, results: Path) -> None:
    """Measures what each finished run's supernet holds, and writes it as a file of results.

    Raises:
        RunError: If a folder is damaged.
    """
    for row in rows:
        path = runs / row.name
        if not (path / folder.RECORD).exists() or read_snapshot(path).state != "finished":
            console.say(f"{row.name} is not finished: left out")
            continue
        results.mkdir(parents=True, exist_ok=True)
        files.write_text(results / f"{row.name}.json", json.dumps(facts_of(row, path)) + "\n")
        console.say(f"made {results / f'{row.name}.json'}")


def facts_of(row: Row, path: Path) -> dict[str, Any]:
    """Everything that the tables say of a run."""
    run = read_snapshot(path)
    record = run.record
    return {
        **asdict(row),
        "seed": record.seed,
        "trained": record.created[:10],
        "versions": record.versions,
        "earlier_versions": record.earlier_versions,
        # A run does not say what it was trained on.
        "measured_on": machine(),
        "split": asdict(record.data.images),
        "phases": phases(run),
        "test": asdict(record.test) if record.test else None,
        **({} if row.name.startswith("alone") else supernet_facts(ofav2.open_run(path))),
    }


def supernet_facts(opened: OpenedRun) -> dict[str, Any]:
    """What is measured of a supernet's networks after its training."""
    return {
        "random": random_networks(opened),
        "chosen": {str(share): chosen(opened, share) for share in SHARES},
        "sizes": sizes(opened),
    }


def phases(run: RunSnapshot) -> list[dict[str, Any]]:
    """What each phase of a run took, and what its corner networks reached on validation (top-1 in 0..1)."""
    corners = {table.name.split("/")[0]: table for table in tables(run) if table.split == "validation"}
    return [_phase(run, number, corners[phase.name]) for number, phase in enumerate(run.record.phases)]


def _phase(run: RunSnapshot, number: int, corners: Table) -> dict[str, Any]:
    phase, top1 = run.record.phases[number], {network.subnet: network.score for network in corners.networks}
    images = phase.steps * run.config.data.batch_size
    whole = phase.space.restrict(height=(max(phase.space.height),))
    rates = [
        line["images_per_second"] for line in run.metrics if line.get("kind") == "train" and line["phase"] == phase.name
    ]
    return {
        "name": phase.name,
        "steps": phase.steps,
        "images": images,
        "subnet_images": images * (run.config.phases[phase.name].subnets if number else 1),
        "seconds": phase_seconds(run)[phase.name],
        "images_per_second": statistics.median(rates),
        "corners": len(top1),
        "mean": phase.mean_corner_score,
        "largest": top1[phase.space.largest()],
        "smallest": top1[phase.space.smallest()],
        "smallest_at_last_exit": top1[whole.smallest()],
        "lowest": min(top1.values()),
    }


def random_networks(opened: OpenedRun) -> list[dict[str, Any]]:
    """The same random networks for every run, at all exits that there are, on the same test images."""
    net, test = opened.loaded.net, opened.data.test
    some = test.take("some-test", generator("proof images").permutation(len(test))[:TEST_IMAGES])
    subnets = [replace(body, height=exit) for body in bodies(net.space) for exit in net.space.height]
    with log_progress("random networks", len(subnets)) as advance:
        found = []
        for score in opened.evaluator.scores(net, subnets, some):
            found.append(_point(opened, score.subnet, score.value))
            advance(top1=score.value)
    return found


def bodies(space: Space) -> tuple[Subnet, ...]:
    """Random networks that end at the last exit, drawn from the same seed whatever else the supernet has."""
    rng = generator("proof bodies")
    return tuple(space.restrict(height=(max(space.height),)).sample(rng) for _ in range(BODIES))


def chosen(opened: OpenedRun, share: int) -> dict[str, Any] | None:
    """What `ofav2 extract` takes out at `share` percent of the largest network's multiply-adds, measured on test."""
    net = opened.loaded.net
    limits = ofav2.Limits(macs=network_cost(net.architecture, net.space.largest()).macs * share // 100)
    try:
        choice = ofav2.choose(opened, limits, candidates=CANDIDATES)
    except UserError as error:
        console.say(str(error))
        return None
    (score,) = opened.evaluator.scores(net, [choice.best.subnet], opened.data.test)
    return {**_point(opened, score.subnet, score.value), "val": choice.best.score, "candidates": len(choice.ranked)}


def sizes(opened: OpenedRun) -> dict[str, dict[str, Any]]:
    """The networks that are also trained alone, as this supernet has them, on test."""
    net = opened.loaded.net
    subnets = {size: net.space.uniform(**choices) for size, choices in SIZES.items()}
    top1 = {score.subnet: score.value for score in opened.evaluator.scores(net, subnets.values(), opened.data.test)}
    return {size: _point(opened, subnet, top1[subnet]) for size, subnet in subnets.items()}


def _point(opened: OpenedRun, subnet: Subnet, top1: float) -> dict[str, Any]:
    cost = network_cost(opened.loaded.net.architecture, subnet)
    return {"exit": subnet.height, "macs": cost.macs, "params": cost.params, "top1": top1}


def _data(root: str | None) -> tuple[str, ...]:
    if root is None:
        return ()
    return ("data.name=imagefolder", f"data.root={root}", f"data.cache={root.rstrip('/')}-decoded")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="python -m benchmarks.proof", description=__doc__.splitlines()[0])
    verbs = top.add_subparsers(dest="verb", required=True)
    helps = {
        "train": "train the rows",
        "measure": "measure sub-networks of the trained rows",
        "show": "tables as Markdown, plots as SVG",
    }
    for verb, help_ in helps.items():
        made = verbs.add_parser(verb, help=help_)
        made.add_argument("dataset", choices=DATASETS, metavar="DATASET", help=" or ".join(DATASETS))
        if verb == "train":
            made.add_argument(
                "root",
                nargs="?",
                metavar="DATA_ROOT",
                help="folders of images: CLASS, or train/CLASS and test/CLASS; none for digits",
            )
        if verb != "show":
            made.add_argument("--rows", nargs="+", metavar="ROW", help="some rows only; all by default")
            made.add_argument("--runs", type=Path, default=RUNS, help=f"where the run folders are ({RUNS}/DATASET)")
    return top


def some_rows(dataset: str, names: Sequence[str] | None) -> list[Row]:
    """The rows of these names, in the order in which they are trained; None takes all.

    Raises:
        UserError: If a data set has no row of a name.
    """
    rows = DATASETS[dataset]
    known = [row.name for row in rows]
    for name in names or ():
        if name not in known:
            raise UserError(f"--rows ({name}) is no row of {dataset}: choose among {', '.join(known)}")
    return [row for row in rows if names is None or row.name in names]


def check_root(dataset: str, root: str | None) -> None:
    """Refuse a folder of images where they come with a package, and none where they do not.

    Raises:
        UserError: As above; the message says what to do.
    """
    if dataset == PACKAGED and root is not None:
        raise UserError(f"DATA_ROOT ({root}) is not for {dataset}, whose images come with scikit-learn: leave it out")
    if dataset != PACKAGED and root is None:
        raise UserError(f"DATA_ROOT is missing: name the folder with the images of {dataset}")


@console.show_logs()
def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    given = parser().parse_args(argv)
    results = RESULTS / given.dataset
    if given.verb == "show":
        show([row.name for row in DATASETS[given.dataset]], results)
        return
    rows, runs = some_rows(given.dataset, given.rows), given.runs / given.dataset
    if given.verb == "train":
        check_root(given.dataset, given.root)
        train(rows, given.root, runs)
    else:
        measure(rows, runs, results)


if __name__ == "__main__":
    command_line(main)
