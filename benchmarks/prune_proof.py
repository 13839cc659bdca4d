"""Pruned exits with fixed and learned weights, over seeds; docs/log/2026-11-26-pruning.md has the results.

python -m benchmarks.prune_proof digits --seeds 5
python -m benchmarks.prune_proof imagefolder --seeds 5 data.root=PATH   # a folder of images by class
"""

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

import distill
import ofav2
from benchmarks.sides import command_line, mean_and_error
from ofav2.cli import console
from ofav2.config import recipe
from ofav2.exits.prune import Source, open_source
from ofav2.exits.scoring import Scored, score_fixed, score_learned
from ofav2.exits.subsets import SubsetTable, choose, joined, tally
from ofav2.nas.limits import Limits
from ofav2.tables import table
from supernets.output_costs import output_costs

SETTINGS = {
    "digits": (
        "data.resolutions=[16]",
        "supernet.stem_stride=1",
        "phases.full.epochs=30",
        "data.val_fraction=0.2",
        "data.test_fraction=0.3",
    ),
    "imagefolder": (
        "data.resolutions=[32]",
        "supernet.stem_stride=1",
        "phases.full.epochs=12",
        "data.flip=true",
        "data.val_fraction=0.2",
        "data.test_fraction=0.3",
    ),
}
"""Settings of a run of one joint phase, by data set."""
RECIPE = """\
run: {device: cpu, threads: 1}
data: {name: NAME, batch_size: 64}
supernet: {variant: ee_d, width_mult: 0.25, kernel: [3], expand: [3], depth: [2]}
optim: {name: adamw, weight_decay: 0.01}
teacher: {exit_weights: mixed}
evaluation: {every_epochs: 0, corners: none}
phases:
  full: {epochs: 1, lr: 0.003, warmup_epochs: 1, objective: joint}
"""
Result = Mapping[str, tuple[float, float]]
"""Test top-1 (0..1) and multiply-adds as a share of all exits' by way of choosing."""


def trained(name: str, seed: int, settings: Sequence[str], folder: Path) -> Source:
    """Train a small network with exits, all jointly, and open it."""
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.replace("NAME", name), encoding="utf-8")
    run = ofav2.train(str(path), [f"run.seed={seed}", *SETTINGS[name], *settings], folder / f"run-{seed}")
    return open_source(run.folder)


def compared(source: Source) -> Result:
    """Return what each way of choosing reaches on test; validation alone chooses."""
    exits, data = len(source.exits), source.evaluator.data
    val = list(source.batches(data.val))
    scheme = recipe.parse(source.record.run.recipe, "recipe").teacher.exit_weights
    fixed = score_fixed(val, distill.exit_weights(scheme, exits).ensemble)
    test = list(source.batches(data.test))
    shape = (source.record.input.channels, source.resolution, source.resolution)
    (everything,) = output_costs(source.module, shape, [range(exits)])
    found: dict[str, tuple[float, float]] = {}
    for kind, scored in (("fixed", fixed), ("learned", score_learned(val, exits))):
        costs = output_costs(source.module, shape, scored.choices)
        subsets = SubsetTable(source.exits, scored.choices, scored.weights, scored.tally, costs)
        chosen = {
            "last exit": scored.choices.index((exits - 1,)),
            f"all exits, {kind}": scored.whole,
            f"best subset, {kind}": choose(subsets, Limits()).index,
            f"cautious, {kind}": choose(subsets, Limits(), cautious=True).index,
        }
        reached = joined([tally(batch, _rows(scored, [*chosen.values()])) for batch in test])
        for way, index, right in zip(chosen, chosen.values(), reached.top1, strict=True):
            found[way] = int(right) / reached.images, costs[index].macs / everything.macs
    return found


def _rows(scored: Scored, indices: Sequence[int]) -> np.ndarray:
    return np.asarray(scored.weights[list(indices)])


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, compare and print a table: means over seeds, with standard errors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=SETTINGS)
    parser.add_argument("settings", nargs="*", metavar="key=value")
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_intermixed_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        results = []
        for seed in range(options.seeds):
            results.append(compared(trained(options.data, seed, options.settings, Path(folder))))
            console.say(f"seed {seed}: {results[-1]}")
    best = np.array([result["best subset, fixed"][0] for result in results])
    rows = []
    for way in results[0]:
        top1, cost = np.array([result[way] for result in results]).T
        lead = top1 - best
        lead_shown = mean_and_error(lead, digits=2, sign="+")
        rows.append((way, f"{100 * top1.mean():.2f}", lead_shown, f"{100 * cost.mean():.0f}"))
    columns = ("", "test top-1 %", "less AEP's winner", "multiply-adds, % of all exits'")
    console.show(table(f"{options.data}, {options.seeds} seeds", columns, rows))


if __name__ == "__main__":
    command_line(main)
