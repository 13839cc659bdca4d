"""`ofav2 extract`: extract a sub-network, named or chosen under limits, as files."""

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from ofav2.cli import console
from ofav2.cli.arguments import LIMITS, PARTS, add_formats, add_limits, read_formats, read_limits, read_subnet
from ofav2.cli.verb import Verb
from ofav2.errors import UserError
from ofav2.output_folder import making
from ofav2.tables import table

if TYPE_CHECKING:
    from ofav2.evaluation.opened_run import LoadedSupernet, OpenedRun
    from ofav2.nas.candidates import Ranking
    from ofav2.nas.constraints import Constraints
    from ofav2.nas.latency_table import LatencyTable
    from supernets import Exits

_CHOICE = (*LIMITS, *PARTS, "candidates", "seed")

_EPILOG = """\
examples:
  ofav2 extract runs/digits --largest --out largest
  ofav2 extract runs/digits --phase full --largest --out best    as an earlier phase left it
  ofav2 extract runs/digits --subnet mine.json --out mine
  ofav2 extract runs/digits --largest --exits 2,4 --out exits
  ofav2 extract runs/digits --max-macs 2M --max-params 200k --out small
  ofav2 extract --from-search runs/digits/search --max-macs 2M --out found
  ofav2 extract --from-search runs/digits/search --knee --out knee
  ofav2 extract runs/digits --max-latency 2ms --exit 3..5 --resolution 16 --candidates 50 --out quick

Limits (and --exit, --resolution, --candidates) search for the best network on validation that keeps them:
counts in k, M, G; memory in B, kB, MB, GB, KiB, MiB, GiB; time in ns, us, ms, s (needs `ofav2 latency RUN` once).

--from-search takes the best confirmed network of a search's front that keeps the limits, without measuring others. The
search names the run: RUN may be left out. After an adaptation that helped, the network has the adapted weights.

It writes model.safetensors, subnet.json, model.onnx, model.pt2 and model_card.md, each checked on real images;
--formats onnx writes of the last three the ONNX file alone.

A sub-network file is JSON with the keys resolution, depth (one per stage), kernel, expand, level (a list per stage, one
entry per active block) and height; every subnet.json that this command writes holds one under the key "subnet", and
`ofav2.load_supernet(RUN).space.uniform(kernel=5).to_json()` makes one in Python.

next: ofav2 finetune DIR --out TUNED; with several exits, ofav2 calibrate DIR; in Python, ofav2.load_subnet(DIR)
"""


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", nargs="?", help="run folder")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--largest", action="store_true", help="the largest sub-network that was trained")
    which.add_argument("--smallest", action="store_true", help="the smallest one")
    which.add_argument("--subnet", metavar="FILE", help="the one that this JSON file describes")
    which.add_argument("--from-search", metavar="DIR", help="one of the front that `ofav2 search` found")
    front = parser.add_mutually_exclusive_group()
    front.add_argument(
        "--knee", action="store_const", const=True, help="with --from-search: the best compromise of the front"
    )
    front.add_argument("--number", metavar="N", type=int, help="with --from-search: number of the front's table")
    _add_choice(parser)
    parser.add_argument("--phase", metavar="NAME", help="weights of this phase (default: the last one)")
    parser.add_argument(
        "--exits", metavar="WHICH", default="last", help="logits to return: last (default), all, or exits such as 2,4"
    )
    add_formats(parser)
    parser.add_argument("--out", metavar="DIR", required=True, help="folder to make")


def _add_choice(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("limits", "search for the best network on validation that keeps them")
    add_limits(group)
    group.add_argument("--candidates", metavar="N", type=int, help="networks to measure (default: 200)")
    group.add_argument("--seed", metavar="N", type=int, help="seed of the search (default: 0)")


def _run(arguments: argparse.Namespace) -> None:
    from ofav2.data import count_views, refuse_inside
    from ofav2.deploy.artifact import RECORD
    from ofav2.deploy.extract import extract_into, refuse_limited_exits
    from ofav2.evaluation.opened_run import open_loaded
    from ofav2.nas.constraints import describe_choice
    from ofav2.runtime.signals import interruptible

    formats, exits = read_formats(arguments.formats), _exits(arguments.exits)
    if arguments.from_search and arguments.phase:
        raise UserError("--phase has no effect on a search, which names its phase: leave it out")
    refuse_limited_exits(read_limits(arguments), exits)
    loaded, found, latencies = _from_search(arguments) or (_named_run(arguments), None, None)
    constraints = None if found else _constraints(arguments, loaded)
    chosen = read_subnet(arguments.subnet) if arguments.subnet else None
    with interruptible(), making(Path(arguments.out), RECORD) as staging:
        run = open_loaded(loaded)
        refuse_inside(run.data.trees, Path(arguments.out), "output folder")
        space = run.loaded.net.space
        ranking = _choose(arguments, run, constraints) if constraints else found
        named = chosen or (space.largest() if arguments.largest else space.smallest())
        subnet = ranking.best.subnet if ranking else named
        written = extract_into(staging, run, subnet, exits, ranking=ranking, formats=formats)
    if ranking and constraints:
        _show_candidates(constraints, ranking)
    for sentence in describe_choice(run, ranking, constraints.table if constraints else latencies) if ranking else ():
        console.say(sentence)
    assert written.extraction, "it was just extracted"
    before, after = written.extraction.scores_before, written.scores
    show, name = written.metric.show_from, written.metric.name
    splits = {"val": run.data.val, "test": run.data.test}
    sizes = {name: len(split) for name, split in splits.items()}
    after_name = f"{name} recalibrated" if written.extraction.calibration_images else f"{name} as written"
    rows = [
        (exit, split, show(before[split][exit], images, 2), show(after[split][exit], images, 2))
        for split, images in sizes.items()
        for exit in before[split]
    ]
    console.show(table(str(subnet), ("exit", "split", f"{name} as extracted", after_name), rows))
    if grain := written.metric.grain(count_views(run.data.val, subnet.resolution), "validation"):
        console.say(grain)
    if run.loaded.record.status != "finished":
        folder = loaded.folder
        console.say(f"{folder} is not finished: `ofav2 train --resume {shlex.quote(str(folder))}` goes on")
    out = shlex.quote(arguments.out)
    step = "calibrate" if len(written.exit_indices) > 1 and written.task == "classification" else "evaluate"
    predict = f"ofav2 predict {out} IMAGE\n      " if written.classifies_pictures else ""
    console.say(
        f"made {arguments.out}: {written.cost.params:,} parameters, {written.cost.macs:,} multiply-adds\n"
        f"next: {predict}ofav2 {step} {out}"
    )


def _constraints(arguments: argparse.Namespace, run: "LoadedSupernet") -> "Constraints | None":
    """Return the constraints on the network to choose, checked against the run; None if the network is named."""
    from ofav2.nas.constraints import constrain

    given = [name for name in _CHOICE if getattr(arguments, name) is not None]
    named = [name for name in ("largest", "smallest", "subnet") if getattr(arguments, name)]
    if given and named:
        raise UserError(f"{_option(named[0])} names a network and {_option(given[0])} chooses one: leave one out")
    if not given and not named:
        raise UserError("no network is named: give --largest, --smallest, --subnet FILE, or limits such as --max-macs")
    if not given:
        return None
    return constrain(
        run,
        read_limits(arguments),
        exits=arguments.exit,
        resolutions=arguments.resolution,
        table=arguments.latency_table,
    )


def _named_run(arguments: argparse.Namespace) -> "LoadedSupernet":
    from ofav2.evaluation.opened_run import load_run

    if arguments.run is None:
        raise UserError("RUN is missing: name a run folder, or a search with --from-search DIR")
    return load_run(arguments.run, arguments.phase)


def _from_search(arguments: argparse.Namespace) -> "tuple[LoadedSupernet, Ranking, LatencyTable | None] | None":
    """Return the choice of a network from a search, with its supernet; None if no search is named.

    Where latency is limited, the table comes with it that the limit holds by.
    """
    from ofav2.nas.found import front_ranking, latency_table, load_search, load_source, pick_finalist

    picks = [name for name in ("knee", "number") if getattr(arguments, name) is not None]
    if arguments.from_search is None:
        if picks:
            raise UserError(f"{_option(picks[0])} takes a network from a search: name it with --from-search DIR")
        return None
    others = [name for name in _CHOICE if name not in LIMITS and getattr(arguments, name) is not None]
    limited = [name for name in LIMITS if getattr(arguments, name) is not None]
    unused = others or (limited if picks else [])
    if unused:
        raise UserError(f"{_option(unused[0])} has no effect on a search that is done: leave it out")
    found = load_search(arguments.from_search)
    limits, number = read_limits(arguments), arguments.number
    chosen = pick_finalist(found, limits, knee=bool(arguments.knee), number=number)
    rule = f"number {number}" if number is not None else "knee" if arguments.knee else "best"
    table = latency_table(found.folder, found.record.runs[chosen.run]) if limits.latency is not None else None
    if limits.latency is not None and table is None:
        console.say("the latency table that the search used is gone, or was measured anew: the network is not timed")
    return load_source(found, chosen, arguments.run), front_ranking(found, chosen, limits, rule), table


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _choose(arguments: argparse.Namespace, run: "OpenedRun", constraints: "Constraints") -> "Ranking":
    from ofav2.nas.choosing import choose

    return choose(
        run,
        constraints.limits,
        space=constraints.space,
        candidates=_candidates(arguments),
        seed=arguments.seed or 0,
        table=constraints.table,
    )


def _candidates(arguments: argparse.Namespace) -> int:
    return 200 if arguments.candidates is None else int(arguments.candidates)


def _show_candidates(constraints: "Constraints", ranking: "Ranking") -> None:
    from ofav2.nas.constraints import CANDIDATE_COLUMNS, candidate_rows

    title = f"best of {len(ranking.ranked)}: {constraints.limits}"
    console.show(table(title, CANDIDATE_COLUMNS, candidate_rows(ranking)))


def _exits(text: str) -> "Exits":
    if text == "last":
        return "last"
    if text == "all":
        return "all"
    parts = text.split(",")
    if not all(number.strip().isdecimal() and len(number) < 5 for number in parts):
        raise UserError(f"--exits ({text}) must be last, all, or exits by number, such as 2,4")
    return tuple(int(number) for number in parts)


VERB = Verb("extract", "Take a sub-network out of a run, as files.", _EPILOG, _add_arguments, _run)
