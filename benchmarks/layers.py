"""A training step's layers one by one: torch's own way beside what `supernets/cpu_kernels.py` does on the CPU.

python -m benchmarks.layers --threads 2

Each row is one layer of SE_B at 64 pixels; docs/performance.md has the arch.
"""

import argparse
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.grad import conv2d_weight

import supernets
from benchmarks.sides import time_sides, write
from ofav2.cli import console
from ofav2.config.schema import OptimConfig
from ofav2.runtime.device import keep_freed_memory
from ofav2.tables import table
from ofav2.training.optim import build_optimizer
from supernets import cpu_kernels as convolution

Sides = Mapping[str, Callable[[], object]]

DEPTHWISE = ((96, 32, 7, 2), (144, 16, 7, 1), (144, 16, 5, 1), (240, 8, 7, 1), (480, 4, 7, 1), (672, 4, 5, 1))
"""Channels, side of the input, kernel, stride."""
POINTWISE = ((16, 96, 32), (144, 24, 16), (40, 240, 8), (672, 112, 4), (960, 1280, 1))
"""Input and output channels, side."""
WIDENING = ((16, 96, 32), (24, 144, 16), (40, 240, 8))
"""As `POINTWISE`."""


def cases(images: int) -> dict[str, Sides]:
    """What is timed: ways to the same arch, by layer."""
    found = {
        f"depthwise weight, {c} x {s} x {s}, {k}x{k}/{t}": depthwise(images, c, s, k, t) for c, s, k, t in DEPTHWISE
    }
    found |= {f"1x1, {i} to {o}, {s} x {s}, forward and backward": pointwise(images, i, o, s) for i, o, s in POINTWISE}
    found |= {f"1x1 and norm, {i} to {o}, {s} x {s}, the same": widening(images, i, o, s) for i, o, s in WIDENING}
    return found | {"optimiser's step, EE_D": optimiser()}


def depthwise(images: int, channels: int, side: int, kernel: int, stride: int) -> Sides:
    """The gradient of a depthwise convolution's weight."""
    x, grad = _random(images, channels, side), _random(images, channels, -(-side // stride))
    shape = channels, 1, kernel, kernel
    return {
        "torch": lambda: conv2d_weight(x, shape, grad, stride, kernel // 2, groups=channels),
        "strips": lambda: convolution._by_strips(x, grad, kernel, stride),
        "ofav2": lambda: convolution.weight_gradient(x, grad, kernel, stride),
    }


def pointwise(images: int, inputs: int, outputs: int, side: int) -> Sides:
    """A 1x1 convolution, forward and backward."""
    x, grad = _random(images, inputs, side).requires_grad_(), _random(images, outputs, side)
    weight = _random(outputs, inputs, 1).requires_grad_()
    return {
        "torch": partial(_there_and_back, functional.conv2d, grad, x, weight, None),
        "ofav2": partial(_there_and_back, convolution.pointwise_conv2d, grad, x, weight, None),
    }


def widening(images: int, inputs: int, outputs: int, side: int) -> Sides:
    """A 1x1 convolution and its norm in training mode, forward and backward."""
    x, grad = _random(images, inputs, side).requires_grad_(), _random(images, outputs, side)
    weight = _random(outputs, inputs, 1).requires_grad_()
    scale, shift = torch.ones(outputs, requires_grad=True), torch.zeros(outputs, requires_grad=True)

    def apart(*given: Tensor) -> Tensor:
        images, weight, scale, shift = given
        made = convolution.pointwise_conv2d(images, weight, None)
        return functional.batch_norm(made, None, None, scale, shift, training=True)

    def together(*given: Tensor) -> Tensor:
        images, weight, scale, shift = given
        return convolution.pointwise_norm(images, weight, scale, shift, 1e-5).y

    return {
        "torch": partial(_there_and_back, apart, grad, x, weight, scale, shift),
        "ofav2": partial(_there_and_back, together, grad, x, weight, scale, shift),
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
    rows = [
        (layer, ms["torch"], ms.get("strips", "–"), ms["ofav2"], ms["torch"] / ms["ofav2"])
        for layer, ms in found.items()
    ]
    columns = ("layer", "torch, ms", "strips, ms", "ofav2, ms", "times as fast as torch")
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
    main()
