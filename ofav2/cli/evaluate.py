"""`ofav2 evaluate`: measure sub-networks of a run, or an extracted network."""

import argparse
import os.path
import shlex
from typing import TYPE_CHECKING

from ofav2.cli import console
from ofav2.cli.arguments import read_subnet
from ofav2.cli.verb import Verb
from ofav2.errors import UserError
from ofav2.tables import table

if TYPE_CHECKING:
    from ofav2.tasks.class_results import ClassScore

_EPILOG = """\
examples:
  ofav2 evaluate runs/digits                   corner sub-networks on the test split
  ofav2 evaluate runs/digits --split val --phase kernel
  ofav2 evaluate runs/digits --subnet mine.json
  ofav2 evaluate small                         an extracted network, class by class
  ofav2 evaluate small data.root=/data/others  on other images of the same classes

next: ofav2 extract RUN --subnet FILE.json --out DIR, ofav2 predict DIR IMAGE
"""


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN|DIR", help="run folder, or folder of an extracted network")
    parser.add_argument(
        "overrides", metavar="key=value", nargs="*", help="of DIR: settings of data and device to change"
    )
    parser.add_argument("--subnet", metavar="FILE", help="of RUN: measure this sub-network instead of the corners")
    parser.add_argument("--split", choices=("test", "val"), default="test", help="images to measure on (default: test)")
    parser.add_argument("--phase", metavar="NAME", help="of RUN: weights of this phase (default: the last one)")


def _run(arguments: argparse.Namespace) -> None:
    if os.path.exists(os.path.join(arguments.run, "subnet.json")):
        _evaluate_network(arguments)
    else:
        _evaluate_run(arguments)


def _evaluate_run(arguments: argparse.Namespace) -> None:
    if arguments.overrides:
        raise UserError(f"setting ({arguments.overrides[0]}): a run is evaluated on its own data; leave it out")
    from ofav2.data import count_views
    from ofav2.evaluation.corners import usable
    from ofav2.evaluation.measure import measure
    from ofav2.evaluation.opened_run import open_run

    run = open_run(arguments.run, arguments.phase)
    corners = run.loaded.net.space.corners()
    kept = usable(corners)
    subnets = [read_subnet(arguments.subnet)] if arguments.subnet else kept
    measured, metrics = measure(run, subnets, arguments.split), run.evaluator.task.metrics
    columns = ("sub-network", "parameters", "multiply-adds", *(metric.name for metric in metrics))
    rows = [
        (
            str(one.subnet),
            f"{one.cost.params:,}",
            f"{one.cost.macs:,}",
            *(metric.show_from(one.metrics[metric.name], one.images, 2) for metric in metrics),
        )
        for one in measured
    ]
    console.show(table(f"{arguments.run}, phase {run.loaded.phase}, {arguments.split}", columns, rows))
    if not arguments.subnet and len(kept) < len(corners):
        console.say(f"{len(corners) - len(kept)} corners without MBConv are left out: they are not meant to be used")
    images = count_views(run.data.held_out(arguments.split), subnets[0].resolution)
    if grain := run.evaluator.task.metrics[0].grain(images, arguments.split):
        console.say(grain)
    console.say(f"next: ofav2 extract {shlex.quote(arguments.run)} --subnet FILE.json --out DIR")


def _evaluate_network(arguments: argparse.Namespace) -> None:
    for option in ("subnet", "phase"):
        if getattr(arguments, option) is not None:
            raise UserError(
                f"--{option} ({getattr(arguments, option)}) has no effect on an extracted network: leave it out"
            )
    from ofav2.deploy.artifact import describe_subnet
    from ofav2.inference.evaluate import MetricsReport, evaluate_network
    from ofav2.tasks.class_results import worst_first

    found = evaluate_network(arguments.run, arguments.overrides, arguments.split)
    if not found.same_images:
        console.say(
            "these are not the images that the network was tested on when it was written; files that it was trained on"
            " are left out"
        )
    if isinstance(found, MetricsReport):
        columns = ("metric", *(f"exit {exit}" for exit in found.exits))
        values = [
            (metric.name, *(metric.show(own[metric.name]) for own in found.exits.values())) for metric in found.metrics
        ]
        console.show(table(f"{arguments.run}, {arguments.split}", columns, values))
        return
    classes, results = worst_first(found.classes), found.results
    rows = [(score.name, score.images, _share(score.accuracy), _confusion(score)) for score in classes]
    console.show(table(f"{arguments.run}, {results.split}", ("class", "images", "right", "most often taken for"), rows))
    console.show("")
    console.show(table("", ("exit", "top-1"), [(exit, _share(top1)) for exit, top1 in found.top1.items()]))
    console.show(
        f"{results.total} images: top-1 {_share(results.accuracy)}, standard error {_share(found.standard_error)}; "
        f"mean over classes {_share(results.mean_class_accuracy)}"
    )
    if describe_subnet(arguments.run).classifies_pictures:
        console.say(f"next: ofav2 predict {shlex.quote(arguments.run)} IMAGE")


def _share(value: float | None) -> str | None:
    return None if value is None else f"{100 * value:.2f} %"


def _confusion(score: "ClassScore") -> str | None:
    return score.confused_with and f"{score.confused_with} ({score.confused} of {score.images})"


VERB = Verb("evaluate", "Measure sub-networks of a run, or an extracted network.", _EPILOG, _add_arguments, _run)
