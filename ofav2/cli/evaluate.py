"""`ofav2 evaluate`: measure sub-networks of a run."""

import argparse
import shlex

from ofav2.cli import console
from ofav2.cli.arguments import read_subnet
from ofav2.cli.verb import Verb
from ofav2.tables import table

_EPILOG = """\
examples:
  ofav2 evaluate runs/digits                   corner sub-networks on the test split
  ofav2 evaluate runs/digits --split val --phase kernel
  ofav2 evaluate runs/digits --subnet mine.json

next: ofav2 extract RUN --subnet FILE.json --out DIR
"""


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="run folder")
    parser.add_argument("--subnet", metavar="FILE", help="measure this sub-network instead of the corners")
    parser.add_argument("--split", choices=("test", "val"), default="test", help="images to measure on (default: test)")
    parser.add_argument("--phase", metavar="NAME", help="weights of this phase (default: the last one)")


def _run(arguments: argparse.Namespace) -> None:
    from ofav2.evaluation.measure import measure
    from ofav2.evaluation.opened_run import open_run

    run = open_run(arguments.run, arguments.phase)
    subnets = [read_subnet(arguments.subnet)] if arguments.subnet else run.loaded.net.space.corners()
    columns, rows = measure(run, subnets, arguments.split)
    console.show(table(f"{arguments.run}, phase {run.loaded.phase}, {arguments.split}", columns, rows))
    console.say(f"next: ofav2 extract {shlex.quote(arguments.run)} --subnet FILE.json --out DIR")


VERB = Verb("evaluate", "Measure sub-networks of a run, batch norm recalibrated.", _EPILOG, _add_arguments, _run)
