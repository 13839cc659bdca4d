"""How long a network takes here: warmed up, repeated, with its spread, on a named device with named threads."""

import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ofav2.errors import UserError

THREADS = 1024
"""More threads than any machine has cores are a slip."""


@dataclass(frozen=True)
class Machine:
    """What a latency belongs to."""

    device: str
    """`cpu` or `cuda`."""
    name: str
    """Name of the processor or graphics card."""
    threads: int
    """Threads that torch computes with on the CPU."""
    torch: str
    """Version of torch."""


@dataclass(frozen=True)
class Latency:
    """Time of one call, in nanoseconds, over some repeats."""

    median: int
    """Median."""
    lower: int
    """First quartile."""
    upper: int
    """Third quartile."""
    repeats: int
    """Calls that were timed."""
    batch: int
    """Images per call."""
    machine: Machine
    """Where."""

    def __str__(self) -> str:
        """One line for people."""
        middle, lower, upper = (f"{value / 1e6:.3g}" for value in (self.median, self.lower, self.upper))
        return (
            f"{middle} ms (quartiles {lower} to {upper}, {self.repeats} calls, batch {self.batch},"
            f" {self.machine.threads} threads, {self.machine.name})"
        )


def measure_latency(
    module: nn.Module, images: Tensor, *, warmup: int = 5, repeats: int = 30, threads: int | None = None
) -> Latency:
    """Times a module in inference, in float32.

    Args:
        module: The module, on the device that it is to be timed on; it is put into evaluation mode.
        images: (N, C, H, W) on the same device; N is the batch that the latency is for.
        warmup: Calls before the first one that is timed.
        repeats: Calls that are timed.
        threads: Threads on the CPU while this runs; None takes torch's own.

    Raises:
        UserError: If a number is out of range.
    """
    if warmup < 0 or repeats < 1:
        raise UserError(f"repeats ({repeats}) must be at least 1 and warmup ({warmup}) at least 0")
    with using_threads(threads):
        call_times(module, images, warmup)
        times = call_times(module, images, repeats)
        machine = this_machine(images.device)
    lower, median, upper = (int(value) for value in np.quantile(times, (0.25, 0.5, 0.75)))
    return Latency(median, lower, upper, repeats, len(images), machine)


def call_times(module: nn.Module, images: Tensor, repeats: int) -> list[int]:
    """Nanoseconds of each of some calls."""
    module.eval()
    times = []
    with torch.inference_mode():
        for _ in range(repeats):
            _finish(images.device)
            start = time.perf_counter_ns()
            module(images)
            _finish(images.device)
            times.append(time.perf_counter_ns() - start)
    return times


@contextmanager
def using_threads(count: int | None) -> Iterator[None]:
    """Lets torch compute with so many threads while the body runs; None leaves them as they are.

    Raises:
        UserError: If the count makes no sense.
    """
    if count is not None and not 1 <= count <= THREADS:
        raise UserError(f"threads ({count}) must be from 1 to {THREADS}")
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def this_machine(device: torch.device) -> Machine:
    """The machine as it is now."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return Machine(device.type, name, torch.get_num_threads(), torch.__version__)


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _processor() -> str:
    """Name of the processor; the architecture's where the system has no better one."""
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text(encoding="utf-8").splitlines() if facts.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
