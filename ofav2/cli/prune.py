"""`ofav2 prune`: keep the exits of a network that are worth it."""

import argparse
from pathlib import Path

from ofav2.cli import console
from ofav2.cli.arguments import add_formats, read_formats, read_subnet
from ofav2.cli.verb import Verb
from ofav2.tables import table

_EPILOG = """\
examples:
  ofav2 prune runs/digits --out pruned                  the exits that are best together, on validation
  ofav2 prune runs/digits --max-macs 1M --out small     the best of that cost
  ofav2 prune exits --min-top1 97% --out cheap          the cheapest of that accuracy
  ofav2 prune exits --ensemble learned --cautious --out cautious
  ofav2 prune exits data.root=/data/cifar10 --out pruned

SOURCE is a run folder, whose largest network is taken, or what `ofav2 extract RUN --largest --exits all --out exits`
makes. Every subset of its exits is scored on validation. Test is measured for the chosen subset, all exits, and the
last exit alone. Stages after the deepest exit that is kept are left out.

--ensemble names how exits are weighed: ascending, descending, mixed or uniform (AEP's schemes), ascending_paper, last
(the last exit alone), learned (on validation), or numbers from 0 to 1 such as 0.2,0.3,0.5. Exits of weight 0 stand
alone or are left out. Without it, they are weighed as in training. A scheme weighs all exits of the run; a folder with
some of them keeps their weights.

It writes what `ofav2 extract` writes, and pruning.html. model.onnx and model.pt2 return every exit, and their ensemble
as `logits`.

next: ofav2 calibrate DIR; ofav2 finetune DIR --out TUNED; in Python, ofav2.load_ensemble(DIR)
"""


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="run folder, or folder of `ofav2 extract --exits all`")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="settings of its recipe, such as data.root")
    parser.add_argument("--subnet", metavar="FILE", help="the sub-network of a run that this JSON file describes")
    parser.add_argument("--ensemble", metavar="NAME", help="how exits are weighed, see below")
    parser.add_argument("--max-macs", metavar="1.5M", help="multiply-adds per image, at most")
    parser.add_argument("--max-params", metavar="200k", help="parameters, at most")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--min-top1", metavar="0.96", help="the cheapest subset of that validation top-1 (0.96 or 96%%)")
    how.add_argument(
        "--cautious", action="store_true", help="the cheapest subset within one standard error of the best one"
    )
    add_formats(parser)
    parser.add_argument("--out", metavar="DIR", required=True, help="folder to make")


def _run(arguments: argparse.Namespace) -> None:
    from ofav2.exits.prune import prune_columns, prune_exits, prune_rows
    from ofav2.nas.limits import parse_limits, parse_share
    from ofav2.report.subsets import PAGE, write_subsets_page

    limits = parse_limits(macs=arguments.max_macs, params=arguments.max_params)
    study = prune_exits(
        arguments.source,
        arguments.overrides,
        out=arguments.out,
        subnet=read_subnet(arguments.subnet) if arguments.subnet else None,
        ensemble=_ensemble(arguments.ensemble),
        max_macs=limits.macs,
        max_params=limits.params,
        min_top1=None if arguments.min_top1 is None else parse_share("top-1", arguments.min_top1),
        cautious=arguments.cautious,
        formats=read_formats(arguments.formats),
    )
    write_subsets_page(study, Path(arguments.out) / PAGE)
    console.show(table(f"{study.name}, validation", prune_columns(study), prune_rows(study)))
    test = study.pruning.test
    console.show(
        f"chosen: {study.choice.rule}; test top-1 {100 * test['chosen'].top1:.2f} % ({study.whole_name}"
        f" {100 * test['whole'].top1:.2f} %, last exit alone {100 * test['last'].top1:.2f} %)"
    )
    console.say(
        f"made {arguments.out} with {PAGE}: {study.record.cost.params:,} parameters,"
        f" {study.record.cost.macs:,} multiply-adds\nnext: in Python, ofav2.load_ensemble({arguments.out!r})"
    )


def _ensemble(text: str | None) -> str | tuple[float, ...] | None:
    """Return numbers as numbers; whether a name is one is known where it is used."""
    if text is None or "," not in text:
        return text
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        return text


VERB = Verb("prune", "Keep the exits of a network that are best together.", _EPILOG, _add_arguments, _run)
