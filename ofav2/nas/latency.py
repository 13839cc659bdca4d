"""Measure a network's latency: warmed up, repeated, with its spread, device and threads."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from ofav2.errors import UserError
from ofav2.nas.machine import Machine, this_machine
from supernets.graphs import Piece, pieces

BATCHES = (1, 64)
"""Images per batch at which networks are compared: one that comes alone, and many at once."""
THREADS = 1024
"""More threads than any machine has cores are a slip."""


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
        """Return one line for people."""
        middle, lower, upper = (f"{value / 1e6:.3g}" for value in (self.median, self.lower, self.upper))
        return (
            f"{middle} ms (quartiles {lower} to {upper}, {self.repeats} calls, batch {self.batch},"
            f" {self.machine.threads} threads, {self.machine.name})"
        )


def measure_latency(
    module: nn.Module, images: Tensor, *, warmup: int = 5, repeats: int = 30, threads: int | None = None
) -> Latency:
    """Time a module in inference, in its own precision.

    Args:
        module: The module, on the device that it is to be timed on; it is put into evaluation mode.
        images: (N, C, H, W) of its precision, on the same device; N is the batch that the latency is for.
        warmup: Calls before the first one that is timed.
        repeats: Calls that are timed.
        threads: Threads on the CPU while this runs; None takes torch's own.

    Returns:
        Median and quartiles of a call's time with all N images, in nanoseconds.

    Raises:
        UserError: If a number is out of range.
    """
    if warmup < 0 or repeats < 1:
        raise UserError(f"repeats ({repeats}) must be at least 1 and warmup ({warmup}) at least 0")
    with using_threads(threads):
        call_times(module, (images,), warmup)
        times = call_times(module, (images,), repeats)
        machine = this_machine(images.device)
    lower, median, upper = (int(value) for value in np.quantile(times, (0.25, 0.5, 0.75)))
    return Latency(median, lower, upper, repeats, len(images), machine)


def call_times(module: nn.Module, inputs: tuple[Tensor, ...], repeats: int) -> list[int]:
    """Return the nanoseconds of each of some calls with these inputs."""
    module.eval()
    with torch.inference_mode():
        return [call_time(lambda _: module(*inputs), inputs[0]) for _ in range(repeats)]


def stream_times(
    calls: Sequence[Callable[[Tensor], object]],
    batches: Sequence[Tensor],
    rounds: int,
    tick: Callable[[], None] = lambda: None,
) -> tuple[float, ...]:
    """Return the nanoseconds that each call takes for a whole stream of batches.

    Each call goes through the stream as it would in use, its weights in the caches; then comes the next call's turn, so
    that a busy moment is no single one's. Of the rounds, the median of each batch counts, and these are summed: batches
    may take very different times.

    Args:
        calls: What is timed.
        batches: Images (N, C, H, W) each, on the device that is timed.
        rounds: How often the stream is gone through, after a first call of each on the first batch.
        tick: Called each time that a call has gone through the stream.
    """

    def stream(call: Callable[[Tensor], object]) -> list[int]:
        found = [call_time(call, images) for images in batches]
        tick()
        return found

    with torch.inference_mode():
        for call in calls:
            call(batches[0])
        times = [[stream(call) for call in calls] for _ in range(rounds)]
    return tuple(np.median(times, 0).sum(1).tolist())


def piece_times(pieces: Sequence[Piece], images: Tensor, rounds: int) -> dict[int, int]:
    """Return the nanoseconds of each piece of a network, by the outputs that need it.

    The pieces take turns, so that a busy moment is no single one's; the median of the rounds counts.

    Args:
        pieces: What `supernets.graphs.pieces` made of a network with one input.
        images: (N, C, H, W) on the device that is timed.
        rounds: How often each piece is timed, after a first call.
    """
    times: dict[int, list[int]] = {piece.outputs: [] for piece in pieces}
    (given,) = {name for piece in pieces for name in piece.takes} - {name for piece in pieces for name in piece.gives}
    with torch.inference_mode():
        for _ in range(rounds + 1):
            values = {given: images}
            for piece in pieces:
                taken = [values[name] for name in piece.takes]
                _finish(images.device)
                start = time.perf_counter_ns()
                made = piece.module(*taken)
                _finish(images.device)
                times[piece.outputs].append(time.perf_counter_ns() - start)
                values.update(zip(piece.gives, made, strict=True))
    return {outputs: int(np.median(found[1:])) for outputs, found in times.items()}


def subset_times(module: GraphModule, images: Tensor, choices: Sequence[Sequence[int]], rounds: int) -> tuple[int, ...]:
    """Return the nanoseconds of a network with some of its outputs, predicted as the sum of its pieces' times.

    Args:
        module: A network that returns a tuple of tensors, in evaluation mode, on the device that is timed.
        images: (N, C, H, W) there.
        choices: Which outputs, from 0; a time is returned for each choice.
        rounds: How often each piece is timed.

    Raises:
        GraphError: If the network can't be cut into pieces.
    """
    times = piece_times(pieces(module), images, rounds)
    wanted = [sum(1 << index for index in set(choice)) for choice in choices]
    return tuple(sum(time for outputs, time in times.items() if outputs & own) for own in wanted)


def call_time(call: Callable[[Tensor], object], images: Tensor) -> int:
    """Return the nanoseconds of one call with these images, to the end of what it started on their device."""
    _finish(images.device)
    start = time.perf_counter_ns()
    call(images)
    _finish(images.device)
    return time.perf_counter_ns() - start


@contextmanager
def using_threads(count: int | None) -> Iterator[None]:
    """Let torch compute with so many threads while the body runs; None leaves them as they are.

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


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
