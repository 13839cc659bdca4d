"""`ofav2 calibrate`: calibrate when images exit early."""

import argparse
import shlex
from pathlib import Path

from ofav2.cli import console
from ofav2.cli.verb import Verb
from ofav2.tables import table

_EPILOG = """\
examples:
  ofav2 calibrate exits                            the cheapest threshold that loses nothing on validation
  ofav2 calibrate exits --max-macs 1.5M            the most accurate one of that mean cost
  ofav2 calibrate exits --min-top1 0.96 --confidence margin --ensemble
  ofav2 calibrate exits --no-timing                in seconds: no times are measured
  ofav2 calibrate exits data.root=/data/cifar10    where the images are now

DIR is what `ofav2 extract RUN --largest --exits all --out exits` makes, or the same with some exits such as 2,4.
It writes early_exits.json and early_exits.html into DIR. Validation chooses; test is measured for the
chosen threshold and for the last exit alone.

next: ofav2 predict DIR IMAGE; in Python, ofav2.load_classifier(DIR)
"""


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", metavar="DIR", help="folder of `ofav2 extract --exits all`, or of chosen exits")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="settings of its recipe, such as data.root")
    target = parser.add_mutually_exclusive_group()
    target.add_argument("--max-macs", metavar="1.5M", help="mean multiply-adds per image, at most")
    target.add_argument("--min-top1", metavar="0.96", help="validation top-1, at least (0.96 or 96%%)")
    parser.add_argument(
        "--confidence",
        metavar="NAME",
        default="max_softmax",
        help="how sure an exit is: max_softmax (default), entropy or margin",
    )
    parser.add_argument(
        "--ensemble",
        action=argparse.BooleanOptionalAction,
        help="average the logits of all exits up to each exit, or not (default: where the network has weights for it)",
    )
    parser.add_argument("--no-timing", action="store_true", help="measure no times")


def _run(arguments: argparse.Namespace) -> None:
    from ofav2.exits.calibrate import calibrate_exits, study_columns, study_rows
    from ofav2.nas.limits import parse_limits, parse_share
    from ofav2.report.early import PAGE, write_early_page

    study = calibrate_exits(
        arguments.directory,
        arguments.overrides,
        max_macs=parse_limits(macs=arguments.max_macs).macs,
        min_top1=None if arguments.min_top1 is None else parse_share("top-1", arguments.min_top1),
        confidence=arguments.confidence,
        ensemble=arguments.ensemble,
        timed=not arguments.no_timing,
    )
    page = Path(arguments.directory) / PAGE
    write_early_page(study, page)
    console.show(table(f"{study.name}, validation", study_columns(study), study_rows(study)))
    record, test = study.record, study.record.test
    console.show(
        f"chosen: {study.own.name}, {record.target}; test top-1 {100 * test.top1:.2f} %"
        f" at {test.mean_macs:,.0f} multiply-adds (last exit alone {100 * record.last_exit_test_top1:.2f} %"
        f" at {study.last.mean_macs:,.0f})"
    )
    console.say(
        f"made {page.with_suffix('.json')} and {page}\nnext: ofav2 predict {shlex.quote(arguments.directory)} IMAGE"
    )


VERB = Verb("calibrate", "Let easy images exit early from a network with several exits.", _EPILOG, _add_arguments, _run)
