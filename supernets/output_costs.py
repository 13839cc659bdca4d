"""Price a network with any of its outputs, from one record of the whole network."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

from torch import nn
from torch.fx import GraphModule, Node

from supernets.cost import BYTES, Cost, Step, graph_steps
from supernets.graphs import needed_by, output_nodes


@dataclass(frozen=True)
class ExitMacs:
    """Multiply-adds of an image that takes an exit."""

    exit: int
    """The exit, from 1."""
    alone: int
    """A network of that exit alone: what leads to it, and its own head."""
    passed: int
    """The same with the heads of all earlier exits, which the image has passed."""


def exit_macs(module: GraphModule, shape: Sequence[int], exits: Sequence[int]) -> tuple[ExitMacs, ...]:
    """Return the multiply-adds of one image by the exit that it takes, ascending.

    Args:
        module: A network that returns a tuple of tensors, one per exit, in evaluation mode.
        shape: Shape of its input without the batch dimension.
        exits: The exits' numbers.

    Raises:
        GraphError: As for `output_costs`.
    """
    indices = range(len(exits))
    alone = output_costs(module, shape, [(index,) for index in indices])
    passed = output_costs(module, shape, [range(index + 1) for index in indices])
    return tuple(ExitMacs(exit, one.macs, many.macs) for exit, one, many in zip(exits, alone, passed, strict=True))


def output_costs(module: GraphModule, shape: Sequence[int], choices: Sequence[Sequence[int]]) -> tuple[Cost, ...]:
    """Return what a network costs with some of its outputs, as `supernets.graphs.keep` makes it.

    Args:
        module: A network that returns a tuple of tensors, in evaluation mode.
        shape: Shape of its input without the batch dimension, such as (3, 224, 224).
        choices: Which outputs, from 0; a cost is returned for each choice.

    Raises:
        GraphError: If the network can't be priced, or returns no tuple of tensors.
    """
    steps = graph_steps(module, shape)
    bits = {node.name: outputs for node, outputs in needed_by(module).items()}
    macs: dict[int, int] = defaultdict(int)
    for step in steps:
        macs[bits.get(step.node, 0)] += step.macs
    params, tensors = _parameters(module, bits), _tensors(module, steps, bits)
    wanted = [sum(1 << index for index in set(choice)) for choice in choices]
    return tuple(Cost(_sum(params, own), _sum(macs, own), BYTES * _peak(tensors, len(steps), own)) for own in wanted)


class _Tensor(NamedTuple):
    """A tensor of the whole network's forward pass."""

    values: int
    """How many values it holds."""
    made: int
    """The step that makes it."""
    maker: int
    """The outputs that need this step, as bits."""
    reads: tuple[tuple[int, int], ...]
    """The last step that reads it for the same outputs, with these outputs as bits."""


def _sum(amounts: dict[int, int], wanted: int) -> int:
    return sum(amount for bits, amount in amounts.items() if bits & wanted)


def _parameters(module: GraphModule, bits: Mapping[str, int]) -> dict[int, int]:
    """Return the numbers of trainable parameters by the outputs that need them; shared ones count once."""
    users: dict[nn.Parameter, int] = defaultdict(int)
    for node in module.graph.nodes:
        for parameter in _own_parameters(module, node):
            users[parameter] |= bits.get(node.name, 0)
    found: dict[int, int] = defaultdict(int)
    for parameter, outputs in users.items():
        found[outputs] += parameter.numel()
    return found


def _own_parameters(module: GraphModule, node: Node) -> list[nn.Parameter]:
    if node.op == "call_module":
        return list(module.get_submodule(str(node.target)).parameters())
    if node.op != "get_attr":
        return []
    path, _, name = str(node.target).rpartition(".")
    value = getattr(module.get_submodule(path), name)
    if isinstance(value, nn.Module):
        return list(value.parameters())
    return [value] if isinstance(value, nn.Parameter) else []


def _tensors(module: GraphModule, steps: Sequence[Step], bits: Mapping[str, int]) -> list[_Tensor]:
    last: dict[int, dict[int, int]] = defaultdict(dict)
    values: dict[str, Sequence[int]] = {}
    made: list[tuple[int, int, int]] = []
    for index, step in enumerate(steps):
        own = bits.get(step.node, 0)
        for tensor in step.reads:
            last[tensor][own] = index
        # What makes no tensor returns a view of what it reads.
        values[step.node] = range(len(made), len(made) + len(step.makes)) if step.makes else step.reads
        made += [(size, index, own) for size in step.makes]
    for output, node in enumerate(output_nodes(module)):
        for tensor in values[node.name]:
            last[tensor][1 << output] = len(steps) - 1
    return [
        _Tensor(*tensor, tuple((step, outputs) for outputs, step in last[number].items()))
        for number, tensor in enumerate(made)
    ]


def _peak(tensors: Sequence[_Tensor], steps: int, wanted: int) -> int:
    """Return the most values that are alive at once when only what the wanted outputs need runs."""
    change = [0] * (steps + 1)
    for tensor in tensors:
        if tensor.maker & wanted:
            last = max((step for step, outputs in tensor.reads if outputs & wanted), default=tensor.made)
            change[tensor.made] += tensor.values
            change[last + 1] -= tensor.values
    return max(accumulate(change))
