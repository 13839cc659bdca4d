"""Scoring all subsets of exits, beside a plain loop over them; docs/log/2026-11-26-pruning.md has the results.

python -m benchmarks.prune                                    # 7 exits, 10,000 images, 200 classes
python -m benchmarks.prune --exits 5 --images 50000 --classes 1000
"""

import argparse
import time
from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

import distill
from benchmarks.sides import command_line
from ofav2.cli import console
from ofav2.exits.scoring import score_fixed, score_learned
from ofav2.exits.subsets import ExitBatch
from ofav2.tables import table

BATCH = 500
"""Images per batch."""


def made_up(exits: int, images: int, classes: int, seed: int = 0) -> list[ExitBatch]:
    """Return logits of exits that agree by half, and are the better the later they come."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, classes, images)
    common = rng.standard_normal((images, classes), dtype=np.float32)
    logits = np.empty((exits, images, classes), np.float32)
    for exit_ in range(exits):
        logits[exit_] = common + rng.standard_normal((images, classes), dtype=np.float32)
        logits[exit_, np.arange(images), targets] += 2 + 2 * exit_ / exits
    return [
        ExitBatch(logits[:, start : start + BATCH], targets[start : start + BATCH]) for start in range(0, images, BATCH)
    ]


def plain(batches: Sequence[ExitBatch], weights: Sequence[Fraction]) -> dict[tuple[int, ...], tuple[int, int]]:
    """Return top-1 and top-5 of each subset, counted as AEP's description has it: one subset after the other."""
    logits = torch.from_numpy(np.concatenate([batch.logits for batch in batches], 1))
    targets = torch.from_numpy(np.concatenate([batch.targets for batch in batches]))
    found = {}
    for count in range(1, len(weights) + 1):
        for choice in combinations(range(len(weights)), count):
            merged: Tensor = sum(float(weights[index]) * logits[index] for index in choice)  # type: ignore[assignment]
            right = merged.topk(5, 1).indices == targets[:, None]
            found[choice] = int(right[:, 0].sum()), int(right.sum())
    return found


def timed(call: Callable[[], object], repeats: int) -> float:
    """Return the least processor time of some calls, in seconds."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return min(times)


def main(arguments: Sequence[str] | None = None) -> None:
    """Time it, and check that all ways count the same."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--exits", type=int, default=7)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--classes", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    batches = made_up(options.exits, options.images, options.classes)
    weights = distill.exit_weights("ascending", options.exits).ensemble
    scored, expected = score_fixed(batches, weights), plain(batches, weights)
    for index, choice in enumerate(scored.choices):
        assert (int(scored.tally.top1[index]), int(scored.tally.top5[index])) == expected[choice], choice
    rows = [
        ("all subsets, fixed weights", timed(lambda: score_fixed(batches, weights), options.repeats)),
        ("all subsets, learned weights", timed(lambda: score_learned(batches, options.exits), 1)),
        ("a loop over the subsets", timed(lambda: plain(batches, weights), 1)),
    ]
    title = f"{2**options.exits - 1} subsets, {options.images:,} images, {options.classes} classes, one thread"
    console.show(table(title, ("", "CPU seconds"), [(name, f"{seconds:.2f}") for name, seconds in rows]))


if __name__ == "__main__":
    command_line(main)
