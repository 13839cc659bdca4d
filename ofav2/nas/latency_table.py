"""Measure the latency of every block of a supernet, and predict any sub-network's as a sum.

A block's latency depends on its place in the stage (first or later), its choices and the side of its input alone. The
parts are extracted as networks are, and timed in several rounds, so that a busy moment of the machine does not hit one
part's every measurement. From each part the time of an empty call is taken off: a network pays for one call, not for
one per block. A part that is timed alone finds its weights in the caches; one factor, fitted on whole networks, makes
up for that, and the error is measured on others.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ofav2 import files
from ofav2.config import recipe
from ofav2.errors import RunError, UserError
from ofav2.evaluation.opened_run import load_run
from ofav2.nas.latency import Latency, Machine, call_times, measure_latency, this_machine, using_threads
from ofav2.progress import log_progress
from ofav2.rng import generator
from ofav2.runs import folder
from ofav2.runtime.device import Runtime, open_runtime
from supernets import Architecture, BlockChoice, Subnet, Supernet
from supernets.cost import skip_sums
from supernets.cost_layers import block_choices, block_side, stage_side
from supernets.recorder import record

TABLE = "latency.json"
"""Name of the table in a run folder."""
FORMAT = "ofav2-latency/1"
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
    batch: int
    """Images per call."""
    supernet: Mapping[str, Any]
    """The supernet's arch."""
    entries: Mapping[str, int]
    """Nanoseconds by part."""
    factor: float
    """What the entries were multiplied by, as in a network caches are colder than where a part is timed alone."""
    error: PredictionError
    """How well sums of entries predict whole networks that the factor was not fitted to."""


@dataclass(frozen=True)
class _Timed:
    """A part to time."""

    module: nn.Module
    shape: tuple[int, ...]


def stem_latency(table: LatencyTable, resolution: int) -> int:
    """Nanoseconds of stem and first block."""
    return _entry(table, _stem_key(resolution))


def block_latency(table: LatencyTable, stage: int, block: int, choice: BlockChoice, side: int, output: int) -> int:
    """Nanoseconds of a block with the dense skips that meet at its end.

    Args:
        table: The table.
        stage: Body stage, from 0.
        block: Block position, from 0.
        choice: The block's choices.
        side: Side of its input in pixels.
        output: Side of its output in pixels.
    """
    skips = skip_sums(block) if table.supernet["dense"] else 0
    added = skips * _entry(table, _skip_key(stage, output)) if skips else 0
    return _entry(table, _block_key(stage, block, choice, side)) + added


def exit_latency(table: LatencyTable, exit: int, side: int) -> int:
    """Nanoseconds of an exit's head."""
    return _entry(table, _exit_key(exit, side))


def predict_latency(table: LatencyTable, arch: Architecture, subnet: Subnet) -> int:
    """Predicted latency of a sub-network with its own exit, in nanoseconds.

    Args:
        table: The supernet's table.
        arch: The supernet's arch.
        subnet: A network of its space.

    Raises:
        UserError: If the table lacks one of its parts.
    """
    total = stem_latency(table, subnet.resolution)
    side = stage_side(arch, 0, subnet.resolution)
    for stage in range(subnet.height):
        for block, choice in enumerate(subnet.blocks(stage)):
            output = block_side(arch, stage, block, side)
            total += block_latency(table, stage, block, choice, side, output)
            side = output
    return total + exit_latency(table, subnet.height, side)


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
    """Times every part that the networks of a supernet's space are made of, and how well their sums predict.

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
        entries = _time_parts(dict(_parts(net)), runtime, batch, rounds, repeats)
        measured = _time_networks(net, subnets, runtime, batch, rounds, repeats)
        machine = this_machine(runtime.device)
    table = LatencyTable(machine, batch, _plain(arch), entries, 1.0, PredictionError(0, 0.0, 0.0))
    return _fitted(table, arch, subnets, measured)


def measure_table(run: str | Path, *, batch: int = 1, threads: int | None = None) -> LatencyTable:
    """Times the parts of a run's supernet, on the device that its recipe names.

    Args:
        run: A run folder.
        batch: Images per call.
        threads: Threads on the CPU; None takes the recipe's.

    Raises:
        RunError: If the folder is no run.
        UserError: If a number is out of range.
    """
    net = load_run(run).net
    runtime = open_runtime(recipe.load(str(Path(run) / folder.RECIPE)).run)
    runtime.place(net)
    return build_table(net, runtime, batch=batch, threads=threads)


def save_table(table: LatencyTable, path: str | Path) -> None:
    """Writes a table as JSON, whole or not at all.

    Raises:
        RunError: If the file can't be written.
    """
    files.write_json(Path(path), {"format": FORMAT, **asdict(table)})


def load_table(path: str | Path, arch: Architecture) -> LatencyTable:
    """Reads a table of a supernet.

    Args:
        path: The file.
        arch: Numbers of the supernet that it must be of.

    Raises:
        RunError: If the file is missing or no table.
        UserError: If it is of another supernet.
    """
    if not Path(path).is_file():
        raise UserError(f"latency table ({path}) does not exist: measure one with `ofav2 latency RUN`")
    facts = files.read_json(Path(path))
    if facts.get("format") != FORMAT:
        raise RunError(f"{path}: format ({str(facts.get('format'))[:40]}) must be {FORMAT}: measure it again")
    try:
        table = LatencyTable(
            Machine(**facts["machine"]),
            int(facts["batch"]),
            facts["supernet"],
            {str(key): int(value) for key, value in facts["entries"].items()},
            float(facts["factor"]),
            PredictionError(**facts["error"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunError(f"{path} is a damaged latency table ({error}): measure it again") from error
    if _plain(arch) != table.supernet:
        raise UserError(f"latency table ({path}) is of another supernet: measure one with `ofav2 latency RUN`")
    return table


class _Stem(nn.Module):
    """Stem and first block of a supernet."""

    def __init__(self, net: Supernet) -> None:
        super().__init__()
        self.stem, self.act, self.first = net.stem, net.stem_act, net.first

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, stem channels, ceil(H / stride), ceil(W / stride))."""
        features: Tensor = self.first(self.act(self.stem(images)), 3, 1)
        return features


class _Sum(nn.Module):
    """A dense skip: the sum of two tensors."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape."""
        return x + x


class _Empty(nn.Module):
    """What is left of a call when nothing is computed."""

    def forward(self, x: Tensor) -> Tensor:
        """Its input."""
        return x


def _parts(net: Supernet) -> Iterator[tuple[str, _Timed]]:
    """Every different part of the space's networks; parts that differ in the image's side alone share a module."""
    arch, space = net.architecture, net.space
    stem = record(_Stem(net))
    for resolution in space.resolution:
        yield _stem_key(resolution), _Timed(stem, (arch.in_channels, resolution, resolution))
    for stage in range(max(space.height)):
        sides = sorted({stage_side(arch, stage, resolution) for resolution in space.resolution})
        outputs = sorted({stage_side(arch, stage + 1, resolution) for resolution in space.resolution})
        channels = arch.stages[stage].channels
        for block in range(min(2, max(space.depth))):
            for choice in block_choices(space):
                module = record(net.stages[stage].get_submodule("blocks")[block], choice)  # type: ignore[index]
                for side in outputs if block else sides:
                    yield (
                        _block_key(stage, block, choice, side),
                        _Timed(module, (arch.block_inputs(stage, block), side, side)),
                    )
        for side in outputs:
            if arch.dense and skip_sums(max(space.depth) - 1):
                yield _skip_key(stage, side), _Timed(_Sum(), (channels, side, side))
            if stage + 1 in space.height:
                yield (
                    _exit_key(stage + 1, side),
                    _Timed(record(net.exits[str(stage + 1)]), (channels, side, side)),
                )


def _time_parts(parts: Mapping[str, _Timed], runtime: Runtime, batch: int, rounds: int, repeats: int) -> dict[str, int]:
    """Time of every part, less that of an empty call."""
    empty = record(_Empty())
    times: dict[str, list[int]] = {key: [] for key in parts}
    nothing: list[int] = []
    with log_progress("timing parts", rounds * len(parts)) as advance:
        for _ in range(rounds):
            for key, part in parts.items():
                images = _input(part.shape, batch, runtime)
                module = runtime.place(part.module)
                nothing += call_times(empty, images, 1)
                call_times(module, images, 1)
                times[key] += call_times(module, images, repeats)
                advance()
    overhead = _calm(nothing)
    return {key: max(0, round(_calm(values) - overhead)) for key, values in times.items()}


def _time_networks(
    net: Supernet, subnets: Sequence[Subnet], runtime: Runtime, batch: int, rounds: int, repeats: int
) -> list[float]:
    """Time of whole extracted networks."""
    times: list[list[int]] = [[] for _ in subnets]
    modules = [runtime.place(net.extract(subnet)) for subnet in subnets]
    with log_progress("timing whole networks", rounds * len(subnets)) as advance:
        for _ in range(rounds):
            for subnet, module, own in zip(subnets, modules, times, strict=True):
                images = _input((net.architecture.in_channels, subnet.resolution, subnet.resolution), batch, runtime)
                call_times(module, images, 1)
                own += call_times(module, images, repeats)
                advance()
    return [_calm(own) for own in times]


def _calm(times: Sequence[int]) -> float:
    """First quartile: what a part takes when the machine does little else."""
    return float(np.quantile(times, 0.25))


def _fitted(
    table: LatencyTable, arch: Architecture, subnets: Sequence[Subnet], measured: Sequence[float]
) -> LatencyTable:
    """The table times the one factor that suits half of the networks, with its error on the other half."""
    ratios = [real / predict_latency(table, arch, subnet) for subnet, real in zip(subnets, measured, strict=True)]
    half = len(subnets) // 2
    factor = float(np.median(ratios[:half]))
    errors = [abs(factor / ratio - 1) for ratio in ratios[half:]]
    return replace(
        table,
        entries={key: round(factor * value) for key, value in table.entries.items()},
        factor=factor,
        error=PredictionError(len(errors), float(np.median(errors)), max(errors)),
    )


def measure_subnet(net: Supernet, subnet: Subnet, runtime: Runtime, batch: int, threads: int | None = None) -> Latency:
    """Times a sub-network as it is extracted.

    Args:
        net: The supernet.
        subnet: A network of its space.
        runtime: Where to time.
        batch: Images per call.
        threads: Threads on the CPU; None takes torch's own.
    """
    images = _input((net.architecture.in_channels, subnet.resolution, subnet.resolution), batch, runtime)
    return measure_latency(runtime.place(net.extract(subnet)), images, threads=threads)


def _plain(arch: Architecture) -> dict[str, Any]:
    """The numbers as they stand in a JSON file."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(arch)))
    return plain


def _input(shape: tuple[int, ...], batch: int, runtime: Runtime) -> Tensor:
    return torch.zeros(batch, *shape, device=runtime.device).contiguous(memory_format=torch.channels_last)


def _entry(table: LatencyTable, key: str) -> int:
    if key not in table.entries:
        raise UserError(f"latency table has no part ({key}): measure it again with `ofav2 latency RUN`")
    return table.entries[key]


def _stem_key(resolution: int) -> str:
    return f"stem @{resolution}"


def _block_key(stage: int, block: int, choice: BlockChoice, side: int) -> str:
    place = "later" if block else "first"
    mbconv = f" k{choice.kernel} e{choice.expand}" if choice.kernel is not None else ""
    return f"stage {stage + 1} {place} {'+'.join(choice.level)}{mbconv} @{side}"


def _skip_key(stage: int, side: int) -> str:
    return f"stage {stage + 1} skip @{side}"


def _exit_key(exit: int, side: int) -> str:
    return f"exit {exit} @{side}"
