"""`ofav2 compare`: compare runs, or searches, side by side."""

import argparse

from ofav2.cli import console
from ofav2.cli.verb import Verb
from ofav2.tables import table

_EPILOG = """\
examples:
  ofav2 compare runs/digits runs/digits-2
  ofav2 compare runs/seed-* --out seeds.html
  ofav2 compare runs/digits/search runs/digits/search-2

next: open the page in a browser; ofav2 report DIR shows one of them in full
"""


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", metavar="DIR", nargs="+", help="folders of runs, or of searches, two or more")
    parser.add_argument("--out", metavar="FILE", help="page to write (default: compare.html, or compare-2.html, …)")


def _run(arguments: argparse.Namespace) -> None:
    from ofav2.report.compare import compare_runs

    comparison = compare_runs(arguments.runs, arguments.out)
    console.show(table(comparison.title, comparison.columns, comparison.results))
    if comparison.settings:
        console.show(table("\nsettings that differ", ("setting", *comparison.names), comparison.settings))
    for warning in comparison.warnings:
        console.say(warning)
    console.say(f"made {comparison.page}: open it in a browser, it needs no network\nnext: ofav2 report DIR")


VERB = Verb("compare", "Put runs or searches side by side: settings, results, fronts.", _EPILOG, _add_arguments, _run)
