"""Measure the latencies of all parts of a supernet; their sums predict any sub-network's.

Parts are recorded as networks are. They are timed in several rounds, so that a busy moment does not spoil all
measurements of one part. The time of an empty call is subtracted from each part, because a network pays for one call,
not for one per block. A part that is timed alone finds its weights in the caches. One factor, fitted on whole
networks, makes up for that; the error is measured on others.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ofav2.errors import UserError
from ofav2.evaluation.opened_run import load_run, recipe_to_measure, require_supernet
from ofav2.nas.latency import Latency, call_times, measure_latency, using_threads
from ofav2.nas.machine import Machine, this_machine
from ofav2.progress import log_progress
from ofav2.rng import generator
from ofav2.runtime.device import Runtime, open_runtime
from ofav2.typed_json import Count, Positive, read_record, write_record
from supernets import Architecture, Subnet, Supernet
from supernets.multi_exit import Network
from supernets.parts import Part, input_shapes, space_parts, subnet_parts
from supernets.recorder import record

TABLE = "latency.json"
"""Name of the table in a run folder."""
FORMAT = "ofav2-latency/3"
ROUNDS = 6
"""Rounds over all parts."""
REPEATS = 3
"""Timed calls of a part in a round, after one that is not timed."""


@dataclass(frozen=True)
class PredictionError:
    """How far predictions are from measurements, as shares of what was measured."""

    networks: int
    """Random networks that were measured."""
    median: float
    """Median of the absolute relative errors."""
    largest: float
    """The largest one."""


@dataclass(frozen=True)
class LatencyTable:
    """Latencies of a supernet's parts on one machine."""

    machine: Machine
    """Where they were measured."""
    batch: Positive
    """Images per call."""
    supernet: Architecture
    """The supernet."""
    entries: Mapping[str, Count]
    """Nanoseconds of a call by part."""
    factor: float
    """What the entries were multiplied by, as in a network caches are colder than where a part is timed alone."""
    error: PredictionError
    """How well sums of entries predict whole networks that the factor was not fitted to."""


@dataclass(frozen=True)
class TimedPart:
    """A part to time."""

    module: nn.Module
    """The part; those that differ in the side of their input alone share it."""
    shapes: tuple[tuple[int, ...], ...]
    """Shapes of its inputs without the batch dimension."""


def part_latency(table: LatencyTable, part: Part, side: int) -> int:
    """Return the nanoseconds of a part.

    Args:
        table: The table.
        part: The part.
        side: Its side, as `supernets.parts.part_side` gives it.

    Raises:
        UserError: If the table lacks it.
    """
    key = _key(part, side)
    if key not in table.entries:
        raise UserError(f"latency table has no part ({key}): measure it again with `ofav2 latency RUN`")
    return table.entries[key]


def predict_latency(table: LatencyTable, subnet: Subnet) -> int:
    """Return the predicted latency of a sub-network with its own exit, in nanoseconds.

    Args:
        table: The supernet's table.
        subnet: A network of the supernet's space.

    Returns:
        Nanoseconds of a call with `table.batch` images.

    Raises:
        UserError: If the table lacks one of its parts.
    """
    return sum(part_latency(table, part, side) for part, side in subnet_parts(table.supernet, subnet))


def build_table(
    net: Supernet,
    runtime: Runtime,
    *,
    batch: int = 1,
    threads: int | None = None,
    networks: int = 40,
    rounds: int = ROUNDS,
    repeats: int = REPEATS,
) -> LatencyTable:
    """Time every part of the networks of a supernet's space, and measure how well their sums predict.

    Args:
        net: The supernet.
        runtime: Where to time; precision is not looked at, as extracted networks are float32.
        batch: Images per call.
        threads: Threads on the CPU; None takes torch's own.
        networks: Random networks that are timed whole: half of them to fit the factor, half to find the error.
        rounds: Rounds over all parts.
        repeats: Timed calls of a part in a round.

    Raises:
        UserError: If a number is out of range.
    """
    for name, value in (("batch", batch), ("networks", networks), ("rounds", rounds), ("repeats", repeats)):
        if not 1 <= value <= 100_000:
            raise UserError(f"{name} ({value}) must be from 1 to 100000")
    if networks < 2:
        raise UserError(f"networks ({networks}) must be at least 2: one half is fitted, the other checks")
    net.eval()
    arch, rng = net.architecture, generator("latency", networks)
    subnets = [net.space.sample(rng) for _ in range(networks)]
    with using_threads(threads):
        entries = _time_parts(dict(timed_parts(net)), runtime, batch, rounds, repeats)
        measured = _time_networks(net, subnets, runtime, batch, rounds, repeats)
        machine = this_machine(runtime.device)
    table = LatencyTable(machine, batch, arch, entries, 1.0, PredictionError(0, 0.0, 0.0))
    return _fitted(table, subnets, measured)


def measure_latency_table(run: str | Path, *, batch: int = 1, threads: int | None = None) -> LatencyTable:
    """Time the parts of a run's supernet, on the device that its recipe names.

    Args:
        run: A run folder.
        batch: Images per call.
        threads: Threads on the CPU; None takes the recipe's, or torch's own where it names none.

    Returns:
        Nanoseconds by part, for a call with `batch` images, and how well their sums predict whole networks.

    Raises:
        RunError: If the folder is no run, or has no finished phase.
        UserError: If a number is out of range, the recipe's device is not there, or the run has no supernet.
    """
    loaded = load_run(run)
    net = require_supernet(loaded.net, "`ofav2 plan RECIPE --latency` times its exits")
    runtime = open_runtime(recipe_to_measure(loaded).run)
    runtime.place(net)
    return build_table(net, runtime, batch=batch, threads=threads)


def save_latency_table(table: LatencyTable, path: str | Path) -> None:
    """Write a table as JSON, whole or not at all.

    Args:
        table: The table.
        path: The file; one that is there is replaced.

    Raises:
        RunError: If the file can't be written.
    """
    write_record(Path(path), table, FORMAT)


def load_latency_table(path: str | Path, arch: Architecture) -> LatencyTable:
    """Read a table of a supernet.

    Args:
        path: The file.
        arch: The supernet that it must be of.

    Returns:
        The table: nanoseconds by part, the images per call that they are for, and the machine.

    Raises:
        RunError: If the file is no table.
        UserError: If it is missing, or of another supernet.
    """
    if not Path(path).is_file():
        raise UserError(f"latency table ({path}) does not exist: measure one with `ofav2 latency RUN`")
    table = read_record(Path(path), LatencyTable, FORMAT, "measure it again with `ofav2 latency RUN`")
    if table.supernet != arch:
        raise UserError(f"latency table ({path}) is of another supernet: measure one with `ofav2 latency RUN`")
    return table


class _Empty(nn.Module):
    """What is left of a call when nothing is computed."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the input."""
        return x


def timed_parts(net: Supernet) -> Iterator[tuple[str, TimedPart]]:
    """Yield every different part of the networks of a supernet's space, by its name in the table."""
    for part, sides in space_parts(net.architecture, net.space):
        module = part.record(net)
        for side in sides:
            yield _key(part, side), TimedPart(module, input_shapes(net.architecture, part, side))


def _time_parts(
    parts: Mapping[str, TimedPart], runtime: Runtime, batch: int, rounds: int, repeats: int
) -> dict[str, int]:
    """Return the time of every part, less that of an empty call."""
    empty = record(_Empty())
    times: dict[str, list[int]] = {key: [] for key in parts}
    nothing: list[int] = []
    with log_progress("timing parts", rounds * len(parts)) as advance:
        for _ in range(rounds):
            for key, part in parts.items():
                inputs = tuple(_input(shape, batch, runtime) for shape in part.shapes)
                module = runtime.place(part.module)
                nothing += call_times(empty, inputs[:1], 1)
                call_times(module, inputs, 1)
                times[key] += call_times(module, inputs, repeats)
                advance()
    overhead = _calm(nothing)
    return {key: max(0, round(_calm(values) - overhead)) for key, values in times.items()}


def _time_networks(
    net: Supernet, subnets: Sequence[Subnet], runtime: Runtime, batch: int, rounds: int, repeats: int
) -> list[float]:
    """Return the times of whole extracted networks."""
    times: list[list[int]] = [[] for _ in subnets]
    modules = [runtime.place(net.extract(subnet)) for subnet in subnets]
    with log_progress("timing whole networks", rounds * len(subnets)) as advance:
        for _ in range(rounds):
            for subnet, module, own in zip(subnets, modules, times, strict=True):
                images = _input((net.architecture.in_channels, subnet.resolution, subnet.resolution), batch, runtime)
                call_times(module, (images,), 1)
                own += call_times(module, (images,), repeats)
                advance()
    return [_calm(own) for own in times]


def _calm(times: Sequence[int]) -> float:
    """Return the first quartile: the time when the machine does little else."""
    return float(np.quantile(times, 0.25))


def _fitted(table: LatencyTable, subnets: Sequence[Subnet], measured: Sequence[float]) -> LatencyTable:
    """Fit one factor to half of the networks, and measure the error on the other half."""
    ratios = [real / predict_latency(table, subnet) for subnet, real in zip(subnets, measured, strict=True)]
    half = len(subnets) // 2
    factor = float(np.median(ratios[:half]))
    errors = [abs(factor / ratio - 1) for ratio in ratios[half:]]
    return replace(
        table,
        entries={key: round(factor * value) for key, value in table.entries.items()},
        factor=factor,
        error=PredictionError(len(errors), float(np.median(errors)), max(errors)),
    )


def measure_subnet(net: Network, subnet: Subnet, runtime: Runtime, batch: int, threads: int | None = None) -> Latency:
    """Time a sub-network in its extracted form.

    Args:
        net: The supernet.
        subnet: A network of its space.
        runtime: Where to time.
        batch: Images per call.
        threads: Threads on the CPU; None takes torch's own.
    """
    images = _input((net.architecture.in_channels, subnet.resolution, subnet.resolution), batch, runtime)
    return measure_latency(runtime.place(net.extract(subnet)), images, threads=threads)


def _input(shape: tuple[int, ...], batch: int, runtime: Runtime) -> Tensor:
    return torch.zeros(batch, *shape, device=runtime.device).contiguous(memory_format=torch.channels_last)


def _key(part: Part, side: int) -> str:
    return f"{part} @{side}"
