"""Time a training step's layers one by one: torch's own way beside what `supernets/cpu_kernels.py` does on the CPU.

python -m benchmarks.layers --threads 2

Each row is one layer of SE_B at 64 pixels; docs/performance.md has the results.
"""

import argparse
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.grad import conv2d_weight

import supernets
from benchmarks.sides import command_line, time_sides, write
from ofav2.cli import console
from ofav2.config.schema import OptimConfig
from ofav2.runtime.memory import keep_freed_memory
from ofav2.tables import table
from ofav2.training.optim import build_optimizer
from supernets import cpu_kernels

Sides = Mapping[str, Callable[[], object]]

DEPTHWISE = ((240, 8, 7), (480, 4, 7), (672, 4, 5))
"""Channels, side of the input, kernel; of stride 1."""
POINTWISE = ((960, 1280, 1), (480, 120, 1))
"""Input and output channels, side."""


def cases(images: int) -> dict[str, Sides]:
    """What is timed: ways to the same result, by layer."""
    found = {f"depthwise weight, {c} x {s} x {s}, {k}x{k}": depthwise(images, c, s, k) for c, s, k in DEPTHWISE}
    found |= {f"1x1, {i} to {o}, {s} x {s}, forward and backward": pointwise(images, i, o, s) for i, o, s in POINTWISE}
    return found | {"optimiser's step, EE_D": optimiser()}


def depthwise(images: int, channels: int, side: int, kernel: int) -> Sides:
    """The gradient of a depthwise convolution's weight."""
    x, grad = _random(images, channels, side), _random(images, channels, side)
    shape = channels, 1, kernel, kernel
    return {
        "torch": lambda: conv2d_weight(x, shape, grad, 1, kernel // 2, groups=channels),
        "ofav2": lambda: cpu_kernels.weight_gradient(x, grad, kernel, 1),
    }


def pointwise(images: int, inputs: int, outputs: int, side: int) -> Sides:
    """A 1x1 convolution, forward and backward."""
    x, grad = _random(images, inputs, side).requires_grad_(), _random(images, outputs, side)
    weight = _random(outputs, inputs, 1).requires_grad_()
    return {
        "torch": partial(_there_and_back, functional.conv2d, grad, x, weight, None),
        "ofav2": partial(_there_and_back, cpu_kernels.pointwise_conv2d, grad, x, weight, None),
    }


def optimiser() -> Sides:
    """SGD over all of EE_D's parameters."""
    steps = {}
    for name in ("torch", "ofav2"):
        net = supernets.create("ee_d", num_classes=200, seed=0)
        for parameter in net.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer: torch.optim.Optimizer = build_optimizer(net, OptimConfig())
        if name == "torch":
            optimizer = torch.optim.SGD(net.parameters(), lr=0.0, momentum=0.9, nesterov=True, weight_decay=3e-5)
        steps[name] = optimizer.step
    return steps


def _random(images: int, channels: int, side: int) -> Tensor:
    return torch.randn(images, channels, side, side).contiguous(memory_format=torch.channels_last)


def _there_and_back(compute: Callable[..., Tensor], grad: Tensor, *given: Tensor | None) -> None:
    compute(*given).backward(grad)
    for tensor in given:
        if tensor is not None:
            tensor.grad = None


def compare(images: int, repeats: int) -> dict[str, dict[str, float]]:
    """Median milliseconds of every way, by layer."""
    found = {}
    for layer, sides in cases(images).items():
        found[layer] = {side: taken.median for side, taken in time_sides(sides, repeats=repeats).items()}
    rows = [(layer, ms["torch"], ms["ofav2"], ms["torch"] / ms["ofav2"]) for layer, ms in found.items()]
    columns = ("layer", "torch, ms", "ofav2, ms", "times as fast as torch")
    console.show(table(f"{images} images, {torch.get_num_threads()} threads", columns, rows))
    return found


@console.show_logs()
def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=21)
    parser.add_argument("--images", type=int, default=64)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    keep_freed_memory()
    write("layers", {"ms": compare(chosen.images, chosen.repeats), "images": chosen.images})


if __name__ == "__main__":
    command_line(main)
