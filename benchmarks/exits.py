"""Time a training step with exits, and the graph, beside timm's own network; docs/exits.md has the results.

python -m benchmarks.exits                  resnet18, mobilenetv3_small_100, convnext_atto, vit_tiny_patch16_224
python -m benchmarks.exits resnet18 --side 32 --batch 64 --repeats 20 --device cpu
python -m benchmarks.exits resnet18 --cpu-time   # processor time, where other processes take turns

Four steps are timed, each with one thing more: timm's own network, its graph, exits, and this project's loop. Their
differences say what each of these costs.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn import functional

from benchmarks.sides import Times, command_line, report, time_sides
from distill import exit_weights
from ofav2.config.schema import OptimConfig, RunConfig
from ofav2.data import Batch
from ofav2.networks.backbone import attach_exits
from ofav2.rng import Stream
from ofav2.runtime.device import Runtime, open_runtime
from ofav2.tasks.classification import Classification
from ofav2.training.objectives import Plain
from ofav2.training.optim import make_updates
from ofav2.training.step import Guard, train_steps
from supernets.graphs import alone
from supernets.outputs import exit_logits

NETWORKS = ("resnet18", "mobilenetv3_small_100", "convnext_atto", "vit_tiny_patch16_224")
CLASSES = 100
TASK = Classification(CLASSES)
OPTIM = OptimConfig(name="adamw", weight_decay=0.05)


@dataclass(frozen=True)
class Work:
    """What both sides do."""

    name: str
    """Network of timm."""
    side: int
    """Image side in pixels."""
    batch: int
    """Images."""
    device: str
    """Where."""
    clock: Callable[[], float]
    """Seconds."""

    def images(self) -> tuple[Tensor, Tensor]:
        """Return a batch of noise, and labels."""
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(self.batch, 3, self.side, self.side, generator=generator)
        labels = torch.randint(0, CLASSES, (self.batch,), generator=generator)
        return images.to(self.device, memory_format=torch.channels_last), labels.to(self.device)


def plain_network(work: Work) -> nn.Module:
    """Return timm's own network, for images of the side."""
    about = timm.get_pretrained_cfg(work.name)
    size: dict[str, Any] = {"img_size": work.side} if about and about.fixed_input_size else {}
    net: Any = timm.create_model(work.name, num_classes=CLASSES, **size)
    placed: nn.Module = net.to(work.device, memory_format=torch.channels_last)
    return placed


def step_by_hand(work: Work, net: nn.Module, runtime: Runtime) -> Callable[[], object]:
    """Return a network trained by hand: forward, mean of its exits' losses, backward, optimiser.

    Its products are rounded as the loop rounds its own.
    """
    images, labels = work.images()
    updates = make_updates(net.train(), OPTIM, steps=1000, warmup_steps=0, peak=1e-3)

    def step() -> None:
        with runtime.tf32_for_training():
            exits = exit_logits(net(images))
            losses = [functional.cross_entropy(logits, labels) for logits in exits]
            (reduce(torch.add, losses) / len(exits)).backward()
        updates.apply(0)
        updates.reset()

    return step


def network_with_exits(work: Work, runtime: Runtime) -> tuple[GraphModule, int]:
    """Return the same network with exits, and how many there are."""
    net = attach_exits(work.name, classes=CLASSES, resolution=work.side)
    runtime.place(net)
    return net, len(list(net.get_submodule("exits").children())) + 1


def step_of_loop(work: Work, runtime: Runtime) -> Callable[[], object]:
    """Return the same network with exits, trained by this project's loop."""
    net, count = network_with_exits(work, runtime)
    objective = Plain(TASK, net, exit_weights("uniform", count).losses)
    updates = make_updates(net, OPTIM, steps=1000, warmup_steps=0, peak=1e-3)
    batch = Batch(*work.images())

    def batches() -> Iterator[Batch]:
        while True:
            yield batch

    steps = train_steps(net, batches(), objective, updates, guard=Guard(0.0), stream=Stream(0, "step"), runtime=runtime)
    return lambda: next(steps)


def time_training(work: Work, repeats: int) -> dict[str, Times]:
    """Time steps in turn, from timm's own to this project's."""
    runtime = open_runtime(RunConfig(device=work.device))
    one_exit, count = network_with_exits(work, runtime)
    exits, _ = network_with_exits(work, runtime)
    sides = {
        "timm, one exit": step_by_hand(work, plain_network(work), runtime),
        "graph, one exit": step_by_hand(work, alone(one_exit, count - 1), runtime),
        "graph, all exits": step_by_hand(work, exits, runtime),
        "with exits": step_of_loop(work, runtime),
    }
    return time_sides(sides, repeats=repeats, warmup=3, device=work.device, clock=work.clock)


def time_inference(work: Work, repeats: int) -> dict[str, Times]:
    """Time timm's eager network, and the last exit of the graph, in turn."""
    runtime = open_runtime(RunConfig(device=work.device))
    plain, (images, _) = plain_network(work).eval(), work.images()
    net, count = network_with_exits(work, runtime)
    graph = runtime.place(alone(net, count - 1))
    sides = {"timm, eager": lambda: plain(images), "graph": lambda: graph(images)}
    with torch.inference_mode():
        return time_sides(sides, repeats=repeats, warmup=3, device=work.device, clock=work.clock)


def main(given: Sequence[str] | None = None) -> None:
    """Time the networks that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", metavar="NAME", nargs="*", default=list(NETWORKS), help="networks of timm")
    parser.add_argument("--side", type=int, default=64, help="image side in pixels (default: 64)")
    parser.add_argument("--batch", type=int, default=64, help="images per step (default: 64)")
    parser.add_argument("--repeats", type=int, default=20, help="rounds (default: 20)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--cpu-time", action="store_true", help="measure this process's processor time")
    options = parser.parse_args(given)
    clock = time.process_time if options.cpu_time else time.perf_counter
    for name in options.names:
        work = Work(name, options.side, options.batch, options.device, clock)
        facts = {"side": work.side, "batch": work.batch, "device": work.device, "processor time": options.cpu_time}
        times = time_training(work, options.repeats)
        report(f"exits-step-{name}", f"{name}: a training step", times, "timm, one exit", facts)
        times = time_inference(work, options.repeats)
        report(f"exits-inference-{name}", f"{name}: inference", times, "timm, eager", facts)


if __name__ == "__main__":
    command_line(main)
