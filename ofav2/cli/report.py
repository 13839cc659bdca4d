"""`ofav2 report`: write the page of a run or a search."""

import argparse
import shlex

from ofav2.cli import console
from ofav2.cli.verb import Verb

_EPILOG = """\
examples:
  ofav2 report runs/digits                     writes runs/digits/report.html
  ofav2 report runs/digits/search              the page of a search
  ofav2 report runs/digits --exits             measures first how often the exits agree (needs the data set)
  ofav2 report runs/digits --out page.html     while it trains or searches, too: make the page again to see more

next: open the page in a browser; it needs no network
"""


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="DIR", help="folder of a run or of a search")
    parser.add_argument("--out", metavar="FILE", help="page to write (default: report.html in the folder)")
    parser.add_argument("--exits", action="store_true", help="measure exit agreement on validation and keep it")
    parser.add_argument(
        "--classes", action="store_true", help="measure the largest network class by class on test and keep it"
    )


def _run(arguments: argparse.Namespace) -> None:
    from ofav2.evaluation.by_class import measure_classes
    from ofav2.exits.exit_agreement import measure_exits
    from ofav2.nas.search_snapshot import is_search
    from ofav2.report.report import write_report

    if arguments.exits:
        measure_exits(arguments.run)
    if arguments.classes:
        measure_classes(arguments.run)
    page = write_report(arguments.run, arguments.out)
    console.show(str(page))
    other = "SEARCH" if is_search(arguments.run) else "RUN"
    console.say(
        f"made {page}: open it in a browser, it needs no network\n"
        f"next: ofav2 compare {shlex.quote(arguments.run)} {other}"
    )


VERB = Verb(
    "report",
    "Write the page of a run or a search: what it is, how it went, what came out.",
    _EPILOG,
    _add_arguments,
    _run,
)
