"""What several processes send, gain and change; docs/scaling.md has the results.

python -m benchmarks.scaling bytes tiny_imagenet_paper --images 85000 --classes 200
python -m benchmarks.scaling speed runs/one runs/two
python -m benchmarks.scaling norm
torchrun --standalone --nproc-per-node 2 -m benchmarks.scaling exchange --mib 31
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import distill
import supernets
from benchmarks.sides import command_line
from ofav2.cli import console
from ofav2.config import recipe
from ofav2.networks.build import supernet_options
from ofav2.rng import Stream
from ofav2.runs.metrics_file import read_metrics
from ofav2.runtime.device import Runtime
from ofav2.runtime.processes import SINGLE_PROCESS, process_group
from ofav2.tables import table
from ofav2.tasks.classification import Classification
from ofav2.training.objectives import Distill, Draw, Joint, Objective, all_exits
from ofav2.training.phases import ALL_EXITS, Phase, make_plan
from ofav2.training.step import step_gradients
from supernets import Exits, Space, Subnet, Supernet


def bytes_per_step(name: str, overrides: Sequence[str], images: int, classes: int, steps: int) -> None:
    """Gradients that a step exchanges, by phase: of all parameters that one of its sub-networks ran."""
    config = recipe.load(name, overrides)
    net = supernets.create(config.supernet.variant, **supernet_options(config, outputs=classes, channels=3))
    plan = make_plan(config.phases, config.teacher, net.space, images // config.data.batch_size)
    net.to("meta")
    whole = sum(parameter.nbytes for parameter in net.parameters())
    rows = []
    for phase in plan.phases:
        sent = [_sent(net, phase, config.run.seed, step) for step in np.linspace(0, phase.steps - 1, steps, dtype=int)]
        mean = statistics.mean(sent)
        rows.append(
            (phase.name, phase.steps, mean / 2**20, max(sent) / 2**20, mean / whole, mean * phase.steps / 2**40)
        )
    columns = ("phase", "steps", "MiB a step", "most", "share of weights", "TiB in all")
    console.show(table(f"{name}: {whole / 2**20:.1f} MiB of float32 weights", columns, rows))


@dataclass(frozen=True)
class Ends:
    """A sampler of one end of the space."""

    end: str

    def draw(self, space: Space, rng: np.random.Generator) -> tuple[Subnet, ...]:
        """Return the end."""
        return (space.largest() if self.end == "largest" else space.smallest(),)


def _sent(net: Supernet, phase: Phase, seed: int, step: int) -> int:
    """Bytes of a step's gradients; on torch's meta device, where nothing is computed."""
    resolution = min(phase.space.resolution)
    net.zero_grad(set_to_none=True)
    draw = Draw(phase.sampler, phase.drawn, Stream(seed, phase.name))
    trained: Exits = tuple(phase.space.height) if phase.objective in ALL_EXITS else "all"
    exits = "last" if phase.objective == "distill" else trained
    for subnet in draw.at(int(step), resolution):
        logits = net(torch.empty(2, 3, resolution, resolution, device="meta"), subnet, exits=exits)
        sum(out.sum() for out in (logits if isinstance(logits, tuple) else (logits,))).backward()
    return sum(parameter.nbytes for parameter in net.parameters() if parameter.grad is not None)


def speed(runs: Sequence[Path]) -> None:
    """Median images per second of each phase, and its ratio to that of the first run."""
    medians = []
    for run in runs:
        lines = [line for line in read_metrics(run) if line["kind"] == "train"]
        phases = dict.fromkeys(line["phase"] for line in lines)
        medians.append({p: statistics.median(x["images_per_second"] for x in lines if x["phase"] == p) for p in phases})
    rows = [
        (phase, *(found[phase] for found in medians), *(found[phase] / medians[0][phase] for found in medians[1:]))
        for phase in medians[0]
    ]
    columns = ("phase", *(run.name for run in runs), *(f"{run.name} / {runs[0].name}" for run in runs[1:]))
    console.show(table("median images per second", columns, rows))


def norm(batch: int, side: int) -> None:
    """How far batch norm over parts of a batch turns the gradient, beside how far another batch does."""
    net = supernets.create("ee_d", num_classes=200, width_mult=0.5, resolutions=(side,), seed=0)
    net.set_dropout(0.0)
    rng = torch.Generator().manual_seed(0)
    images, other = (torch.randn(batch, 3, side, side, generator=rng) for _ in range(2))
    labels = torch.randint(200, (batch,), generator=rng)
    weights = distill.exit_weights("ascending", 5).losses
    task = Classification(200, 0.1)
    largest, smallest = (Draw(Ends(end), net.space, Stream(0, "norm")) for end in ("largest", "smallest"))
    for title, objective in (
        ("largest, all exits", Joint(task, largest, weights, all_exits(net))),
        ("smallest, its exit", Distill(task, smallest, net, None, distill.mse, 0.0)),
    ):
        whole = _gradient(net, objective, images, labels, 1)
        rows: list[tuple[object, ...]] = []
        for parts in (2, 4, 8):
            found = _gradient(net, objective, images, labels, parts)
            rows.append((f"{parts} parts of {batch // parts}", _cosine(found, whole), _distance(found, whole)))
        found = _gradient(net, objective, other, labels, 1)
        rows.append(("another batch", _cosine(found, whole), _distance(found, whole)))
        console.show(table(title, ("gradient of", "cosine", "relative distance"), rows))


def exchange(mib: int) -> None:
    """How long the processes take for one exchange of gradients, and for one of a step's metrics."""
    with process_group() as processes:
        tensors = [torch.ones(2**18) for _ in range(mib)]
        rows = []
        for what, act in (
            (f"{mib} MiB of gradients", lambda: processes.average(tensors)),
            ("a step's metrics and flags", lambda: (processes.mean({"loss": 1.0}), processes.any(False, False))),
        ):
            taken = []
            for _ in range(30):
                processes.gather(None)
                started = time.perf_counter()
                act()
                taken.append(time.perf_counter() - started)
            rows.append((what, 1000 * statistics.median(taken), 1000 * min(taken)))
        console.show(table(f"{processes.count} processes", ("exchange of", "median ms", "least ms"), rows))


def _gradient(net: Supernet, objective: Objective, images: Tensor, labels: Tensor, parts: int) -> Tensor:
    """The mean of the parts' gradients, which is what as many processes exchange."""
    total: list[Tensor] = []
    for part, targets in zip(images.chunk(parts), labels.chunk(parts), strict=True):
        net.zero_grad(set_to_none=True)
        net.train()
        runtime = Runtime(torch.device("cpu"), "float32", SINGLE_PROCESS)
        step_gradients(list(net.parameters()), objective.losses(part, targets, 0), runtime)
        total.append(torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None]))
    return torch.stack(total).mean(0)


def _cosine(one: Tensor, other: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(one, other, dim=0))


def _distance(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


@console.show_logs()
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    sent = commands.add_parser("bytes")
    sent.add_argument("recipe")
    sent.add_argument("overrides", nargs="*")
    sent.add_argument("--images", type=int, required=True, help="training images")
    sent.add_argument("--classes", type=int, required=True)
    sent.add_argument("--steps", type=int, default=20, help="steps of each phase to look at")
    commands.add_parser("speed").add_argument("runs", nargs="+", type=Path)
    commands.add_parser("exchange").add_argument("--mib", type=int, default=31)
    normed = commands.add_parser("norm")
    normed.add_argument("--batch", type=int, default=64)
    normed.add_argument("--side", type=int, default=64)
    chosen = parser.parse_args(argv)
    if chosen.command == "bytes":
        bytes_per_step(chosen.recipe, chosen.overrides, chosen.images, chosen.classes, chosen.steps)
    elif chosen.command == "speed":
        speed(chosen.runs)
    elif chosen.command == "exchange":
        exchange(chosen.mib)
    else:
        norm(chosen.batch, chosen.side)


if __name__ == "__main__":
    command_line(main)
