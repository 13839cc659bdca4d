"""`ofav2 search`: find the best trade-offs between a run's metric and costs."""

import argparse
import shlex
from typing import TYPE_CHECKING

from ofav2.cli import console
from ofav2.cli.arguments import LIMITS, PARTS, add_limits, read_limits
from ofav2.cli.verb import Verb
from ofav2.errors import UserError
from ofav2.tables import table

if TYPE_CHECKING:
    from ofav2.nas.found import AdaptSettings, Found

_EPILOG = """\
examples:
  ofav2 search runs/digits --measurements 40
  ofav2 search runs/digits --objectives top-1,params,macs --max-macs 3M --exit 2..4 --out small-search
  ofav2 search runs/digits --measurements 40 --adapt      train the supernet on for the front; keep it if it helps
  ofav2 search runs/narrow runs/wide --out both      two runs of one recipe but for the width, as one space
  ofav2 search --resume runs/digits/search      go on with a search that stopped
  ofav2 search --resume runs/digits/search --adapt --adapt-epochs 5      adapt after a search that has finished

A measurement scores a network at all its exits, on half of the validation images. The networks that no other one beats
are confirmed on the other half. Counts in k, M, G; memory in B, kB, MB, GB, KiB, MiB, GiB; time in ns, us, ms, s.

--adapt then trains a copy of the run for networks like those of the front, and measures them anew. The copy is kept if
the confirmed front covers more.

next: ofav2 extract --from-search DIR --max-macs 2M --out OUT
"""

_NEW = ("objectives", *LIMITS, *PARTS, "measurements", "minutes", "seed", "out")


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", metavar="RUN", nargs="*", help="run folder; several are searched as one space")
    parser.add_argument("--resume", metavar="DIR", help="go on with the search in this folder")
    parser.add_argument(
        "--objectives",
        metavar="NAMES",
        help="the metric and one or more of macs, params, memory, latency (default: the metric,macs)",
    )
    add_limits(parser)
    parser.add_argument("--measurements", metavar="N", type=int, help="networks to measure (default: 300)")
    parser.add_argument("--minutes", metavar="M", type=float, help="time after which no other network is measured")
    parser.add_argument("--seed", metavar="N", type=int, help="seed of the search (default: 0)")
    parser.add_argument("--adapt", action="store_true", help="adapt the supernet to the front; keep it if it helps")
    parser.add_argument("--adapt-epochs", metavar="E", type=float, help="epochs of that (default: the last phase's)")
    parser.add_argument("--adapt-lr", metavar="LR", type=float, help="peak learning rate (default: a third of its)")
    parser.add_argument(
        "--out", metavar="DIR", help="folder to make (default: `search`, `search-2`, … in the run folder)"
    )


def _run(arguments: argparse.Namespace) -> None:
    from ofav2.nas.search import resume_search
    from ofav2.runtime.processes import own_rank

    adapt = _adaptation(arguments)
    given = ["run"] if arguments.runs else []
    given += [name for name in _NEW if getattr(arguments, name) is not None]
    if arguments.resume is not None:
        if given:
            raise UserError(f"--resume goes on with a search as it was begun: leave out {given[0].replace('_', '-')}")
        found = resume_search(arguments.resume, adapt=adapt)
    else:
        found = _begun(arguments, adapt)
    if own_rank() == 0:
        _show(found)


def _adaptation(arguments: argparse.Namespace) -> "AdaptSettings | None":
    from ofav2.nas.found import AdaptSettings

    if arguments.adapt:
        return AdaptSettings(arguments.adapt_epochs, arguments.adapt_lr)
    if arguments.adapt_epochs is not None or arguments.adapt_lr is not None:
        raise UserError("--adapt-epochs and --adapt-lr are settings of --adapt: give it as well, or leave them out")
    return None


def _begun(arguments: argparse.Namespace, adapt: "AdaptSettings | None") -> "Found":
    from ofav2.nas.search import search

    if not arguments.runs:
        raise UserError("RUN is missing: name a run folder, or a search with --resume DIR")
    return search(
        arguments.runs,
        objectives=arguments.objectives.split(",") if arguments.objectives is not None else None,
        limits=read_limits(arguments),
        exits=arguments.exit,
        resolutions=arguments.resolution,
        table=arguments.latency_table,
        measurements=300 if arguments.measurements is None else arguments.measurements,
        minutes=arguments.minutes,
        seed=arguments.seed or 0,
        adapt=adapt,
        out=arguments.out,
    )


def _show(found: "Found") -> None:
    from ofav2.nas.found import describe_adaptation, front_columns, front_rows

    front, record = found.final, found.record
    title = f"finalists of {front.networks} networks, {front.measured} measurements: {record.limits}"
    console.show(table(title, front_columns(found), front_rows(found)))
    show = record.metric.show
    error = "" if front.optimism_error is None else f" ± {show(front.optimism_error)}"
    if found.adapted:
        console.say(describe_adaptation(record, found.adapted))
    extract = shlex.join(["ofav2", "extract", "--from-search", str(found.folder), "--knee", "--out", "knee"])
    console.say(
        f"optimism: {record.metric.name} is {show(front.optimism)}{error} better on the"
        f" {record.search_images} images of the search than on {record.confirmation_images} others\n"
        f"made {found.folder}\n"
        f"next: {extract}\n"
        "      ofav2 finetune knee --out tuned"
    )


VERB = Verb("search", "Find the best trade-offs between a run's metric and costs.", _EPILOG, _add_arguments, _run)
