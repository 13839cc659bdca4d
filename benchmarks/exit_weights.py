"""Networks of timm with exits, trained with each scheme of weights; docs/log/2026-11-26-exits.md has the results.

python -m benchmarks.exit_weights FOLDER data.root=PATH                   # a folder of images by class
python -m benchmarks.exit_weights FOLDER data.root=PATH --epochs 8 32 --networks resnet10t mobilenetv3_small_100
python -m benchmarks.exit_weights FOLDER data.name=imagefolder data.root=PATH --recipe aep_paper --epochs 100
python -m benchmarks.exit_weights FOLDER data.root=PATH --show            # what is done already

It answers whether AEP's gain is there at the end of a long training, too, or only because short ones stop early. Every
row is a mean over seeds with its standard error. FOLDER keeps results and runs: a command that was stopped goes on.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch

import distill
from benchmarks.sides import command_line, mean_and_error
from ofav2.cli import console
from ofav2.exits.prune import Source, open_source
from ofav2.exits.scoring import score_fixed
from ofav2.exits.subsets import SubsetTable, choose, joined, tally
from ofav2.json_lines import append_line, cut_unfinished_line, whole_lines
from ofav2.nas.limits import Limits
from ofav2.tables import table
from ofav2.training.run import train_or_resume
from ofav2.typed_json import Share, fit, to_plain
from supernets.output_costs import output_costs

SINGLE = "last"
"""The scheme that trains a network's own exit alone."""
SCHEMES = (SINGLE, "ascending", "descending", "mixed", "uniform")
SETTINGS = ("data.resolutions=[32]", "data.batch_size=64", "run.device=cpu", "run.threads=1")
RECIPES = MappingProxyType({"exits": ("evaluation.every_epochs=0",), "aep_paper": ()})
"""Recipes, with settings of their own. Of `exits` no epoch is chosen by validation: the last one counts, after a cosine
to zero. Of AEP's, the epoch of the best validation ensemble counts, and training ends as soon as validation stalls."""
RESULTS = "results.jsonl"


@dataclass(frozen=True)
class Work:
    """A training."""

    network: str
    """Name in timm."""
    scheme: str
    """Weights of exits."""
    epochs: int
    """How long."""
    seed: int
    """Seed of weights and batches."""
    settings: tuple[str, ...]
    """Further settings of its recipe."""
    recipe: str
    """A key of `RECIPES`."""

    @property
    def folder(self) -> str:
        """Name of its run folder."""
        return f"{self.recipe}-{self.network}-{self.scheme}-{self.epochs}-{self.seed}"


@dataclass(frozen=True)
class Result:
    """What a training reaches on test; of a single exit, that exit counts everywhere."""

    work: Work
    """The training."""
    last: Share
    """Top-1 of the last exit."""
    ensemble: Share
    """Top-1 of all exits' ensemble."""
    winner: Share
    """Top-1 of AEP's winner, the subset that is best on validation."""
    params: float
    """The winner's parameters, as a share of the network's without exits."""
    macs: float
    """Its multiply-adds, likewise."""


def trained(work: Work, folder: Path) -> Source:
    """Train, or go on training, and open the network with all exits."""
    run = folder / work.folder
    settings = (
        *SETTINGS,
        *RECIPES[work.recipe],
        f"network.name={work.network}",
        f"teacher.exit_weights={work.scheme}",
        f"phases.all.epochs={work.epochs}",
        f"run.seed={work.seed}",
        *work.settings,
    )
    return open_source(train_or_resume(run, work.recipe, settings).folder)


def measured(work: Work, source: Source) -> Result:
    """Choose AEP's winner on validation, and score it on test."""
    data, shape = source.evaluator.data, (source.record.input.channels, source.resolution, source.resolution)
    scored = score_fixed(source.batches(data.val), distill.exit_weights(work.scheme, len(source.exits)).ensemble)
    costs = output_costs(source.module, shape, scored.choices)
    subsets = SubsetTable(source.exits, scored.choices, scored.weights, scored.tally, costs)
    last = scored.choices.index((len(source.exits) - 1,))
    winner = last if work.scheme == SINGLE else choose(subsets, Limits()).index
    rows = scored.weights[[last, scored.whole, winner]]
    reached = joined([tally(batch, rows) for batch in source.batches(data.test)])
    at_last, ensemble, at_winner = (reached.top1 / reached.images).tolist()
    shares = costs[winner].params / costs[last].params, costs[winner].macs / costs[last].macs
    return Result(work, at_last, ensemble, at_winner, *shares)


def known(path: Path) -> list[Result]:
    """Return the results that a file holds."""
    cut_unfinished_line(path)
    return [fit(Result, json.loads(line)) for line in whole_lines(path)]


def works(options: argparse.Namespace) -> Iterator[Work]:
    """Yield all trainings, seed by seed, so that an unfinished table compares equal numbers of them."""
    for seed, epochs, network in product(range(options.seeds), options.epochs, options.networks):
        for scheme in SCHEMES:
            yield Work(network, scheme, epochs, seed, tuple(options.settings), options.recipe)


def show(results: Sequence[Result], asked: Sequence[Work]) -> None:
    """Print a row per network, length and scheme: means over seeds with standard errors, and what is missing."""
    found = {result.work: result for result in results}
    rows = []
    for network, epochs, scheme in dict.fromkeys((work.network, work.epochs, work.scheme) for work in asked):
        seeds = [work for work in asked if (work.network, work.epochs, work.scheme) == (network, epochs, scheme)]
        done = [found[work] for work in seeds if work in found]
        if not done:
            continue
        ways = [[getattr(one, way) for one in done] for way in ("last", "ensemble", "winner")]
        costs = [f"{100 * np.mean([getattr(one, cost) for one in done]):.0f}" for cost in ("params", "macs")]
        rows.append((network, epochs, scheme, f"{len(done)} of {len(seeds)}", *map(mean_and_error, ways), *costs))
    columns = ("network", "epochs", "weights", "seeds", "last exit", "ensemble", "AEP's winner", "params %", "MACs %")
    console.show(table("test top-1 %; the winner's cost as shares of the network's without exits", columns, rows))


def main(arguments: Sequence[str] | None = None) -> None:
    """Train what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where results and runs are kept")
    parser.add_argument("settings", nargs="+", metavar="key=value", help="of the recipe; data.root at least")
    parser.add_argument("--recipe", choices=RECIPES, default="exits")
    parser.add_argument("--networks", nargs="+", default=["resnet10t"], help="names in timm")
    parser.add_argument("--epochs", nargs="+", type=int, default=[32], help="lengths of training")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--show", action="store_true", help="train nothing")
    options = parser.parse_intermixed_args(arguments)
    torch.set_num_threads(1)
    path, asked = options.folder / RESULTS, list(works(options))
    done = {result.work for result in known(path)}
    for work in asked:
        if not options.show and work not in done:
            append_line(path, to_plain(measured(work, trained(work, options.folder))))
            console.say(f"done: {work.folder}")
    show(known(path), asked)


if __name__ == "__main__":
    command_line(main)
