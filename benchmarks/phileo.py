"""Fill PhilEO Bench's table: roads, buildings and land cover with n shots, from scratch and from a pretrained run.

python -m benchmarks.phileo NP_FOLDER --out runs/phileo --pretrained RUN

NP_FOLDER has PhilEO Bench's `.npy` files. Without --pretrained, all start from scratch. What was interrupted goes on
where it was. The pretrained run must have the same supernet, and the bands of PhilEO Bench in their order.
"""

import argparse
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import ofav2
from benchmarks.earth_observation import network_rows, shown
from benchmarks.sides import command_line
from ofav2.cli import console
from ofav2.data.importing.phileo import Choice, Target, describe_phileo
from ofav2.tables import table
from ofav2.training import run as training

RECIPES: dict[Target, str] = {"roads": "eo_regress", "building": "eo_regress", "lc": "eo_segment"}
"""The recipe of each target."""
SHOTS = (50, 100, 500, 1000, 5000)
"""Training patches per bucket, as in PhilEO Bench."""


class Cell(NamedTuple):
    """One training of the table."""

    target: Target
    """What is learnt."""
    shots: int
    """Training patches per bucket."""
    start: str | None
    """The run whose weights it starts from; None starts anew."""
    seed: int
    """Seed of the run."""

    @property
    def name(self) -> str:
        """Its run folder."""
        return f"{self.target}-{self.shots}-{'pretrained' if self.start else 'scratch'}-{self.seed}"


def train(cell: Cell, source: Path, out: Path, settings: Sequence[str]) -> Path:
    """Train a cell, unless it is finished, and return its run folder."""
    patches = out / f"{cell.target}-{cell.shots}"
    if not patches.exists():
        describe_phileo(source, Choice(cell.target, shots=cell.shots), patches)
    start = [f"supernet.init={cell.start}"] if cell.start else []
    own = [f"data.root={patches}", f"run.seed={cell.seed}", *start, *settings]
    return training.train_or_resume(out / cell.name, RECIPES[cell.target], own).folder


def lines(folder: Path, name: str) -> Iterator[tuple[str, ...]]:
    """Yield what the largest and the smallest network of a run reach on test, with their costs."""
    run = ofav2.open_run(folder)
    space = run.loaded.net.space
    subnets = {f"{name}, largest": space.largest(), f"{name}, smallest": space.smallest()}
    yield from shown(run.evaluator.task, list(network_rows(run, subnets, run.data.test)))


def main(arguments: Sequence[str] | None = None) -> None:
    """Train all cells, and print a table per target."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="NP_FOLDER", type=Path)
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings of all trainings")
    parser.add_argument("--out", type=Path, default=Path("runs/phileo"), help="folder of all runs (runs/phileo)")
    parser.add_argument("--pretrained", metavar="RUN", help="run of eo_pretrain to start from, beside scratch")
    parser.add_argument("--targets", nargs="+", choices=RECIPES, default=[*RECIPES])
    parser.add_argument("--shots", nargs="+", type=int, default=SHOTS)
    parser.add_argument("--seeds", type=int, default=3)
    options: Any = parser.parse_intermixed_args(arguments)
    starts = [None, *([options.pretrained] if options.pretrained else [])]
    options.out.mkdir(parents=True, exist_ok=True)
    for target in options.targets:
        rows: list[tuple[str, ...]] = []
        for shots, start, seed in product(options.shots, starts, range(options.seeds)):
            cell = Cell(target, shots, start, seed)
            rows.extend(lines(train(cell, options.source, options.out, options.settings), cell.name))
        run = ofav2.open_run(options.out / cell.name)
        metrics = (metric.name for metric in run.evaluator.task.metrics)
        columns = ("", "parameters", "multiply-adds", "GFLOP per image", *metrics)
        console.show(table(f"PhilEO Bench, {target}, test", columns, rows))


if __name__ == "__main__":
    command_line(main)
