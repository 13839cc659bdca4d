"""Price a recorded network: parameters, multiply-adds and peak activation memory of one image.

Any `torch.fx.GraphModule` in evaluation mode can be priced. Its graph runs once on meta tensors, which have shapes but
no values, so no weight is read and nothing is computed.

Multiply-adds count convolutions and linear layers, without biases. Norms, activations, pooling, sums and products of
activations are left out.

Memory is the largest sum of the sizes of all tensors alive at once, at four bytes a value. A tensor lives from the node
that makes it to the last node that reads it; a node's inputs and its output are alive together. Each operation makes a
new tensor: nothing is fused or done in place. Views and layers that hand on their input make none. Weights, and what a
kernel needs inside, are not counted. A module that holds other modules counts operation by operation.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.node import map_aggregate
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from supernets.graphs import GraphError, Running, is_layer

BYTES = 4
"""Bytes of a value, at float32."""

# Each value of the output is a sum over all weights of one output channel; of a transposed convolution, each value of
# the input is multiplied by all weights of its channel.
_BY_OUTPUT: frozenset[Callable[..., Any]] = frozenset(
    {functional.linear, functional.conv1d, functional.conv2d, functional.conv3d}
)
_BY_INPUT: frozenset[Callable[..., Any]] = frozenset(
    {functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d}
)
# In-place operators, as Python names them.
_AUGMENTED = frozenset({"__iadd__", "__isub__", "__imul__", "__itruediv__", "__ifloordiv__", "__imod__", "__ipow__"})
# These layers multiply their weights where no mode sees it.
_UNCOUNTED = (nn.MultiheadAttention, nn.RNN, nn.GRU, nn.RNNCellBase, nn.Bilinear)


@dataclass(frozen=True)
class Cost:
    """What a network, or a part of it, costs per image."""

    params: int
    """Trainable parameters."""
    macs: int
    """Multiply-adds of one image."""
    memory: int = 0
    """Peak activation memory of one image, in bytes."""

    def __add__(self, other: "Cost") -> "Cost":
        """Return the cost of both, one after the other: of memory, the larger peak."""
        return Cost(self.params + other.params, self.macs + other.macs, max(self.memory, other.memory))


@dataclass(frozen=True)
class LayerCost:
    """What one layer with weights costs."""

    name: str
    """Name of the layer in the network."""
    params: int
    """Trainable parameters."""
    macs: int
    """Multiply-adds of one image."""


class Step(NamedTuple):
    """What one node of a graph does."""

    name: str
    """Name of the layer that it calls, or of the node."""
    params: int
    """Trainable parameters that no earlier step uses."""
    macs: int
    """Multiply-adds of one image."""
    makes: tuple[int, ...]
    """Sizes of the tensors that it makes, in values. Tensors are counted in this order, from 0: the input."""
    reads: tuple[int, ...]
    """Tensors that it reads, by index."""
    node: str
    """Name of the graph's node."""


def graph_cost(module: GraphModule, shape: Sequence[int]) -> Cost:
    """Return what a network costs.

    Args:
        module: The network, in evaluation mode.
        shape: Shape of its input without the batch dimension, such as (3, 224, 224).

    Raises:
        GraphError: If the network can't be priced; the message says why.
    """
    return steps_cost(graph_steps(module, shape))


def graph_layers(module: GraphModule, shape: Sequence[int]) -> tuple[LayerCost, ...]:
    """Return the cost of each layer with weights, in the order in which they run.

    Args:
        module: The network, in evaluation mode.
        shape: Shape of its input without the batch dimension.

    Raises:
        GraphError: As for `graph_cost`.
    """
    return weighted_layers(graph_steps(module, shape))


def graph_steps(module: GraphModule, *shapes: Sequence[int]) -> tuple[Step, ...]:
    """Return what each node does, in the order in which they run; the last step reads what the network returns.

    Args:
        module: The network, in evaluation mode.
        shapes: Shape of each of its inputs without the batch dimension.

    Raises:
        GraphError: As for `graph_cost`.
    """
    for node in filter(is_layer, module.graph.nodes):
        for layer in module.get_submodule(str(node.target)).modules():
            if layer.training:
                raise GraphError(f"layer {node.target} is in training mode: call eval() on the network first")
            if isinstance(layer, _UNCOUNTED):
                raise GraphError(f"layer {node.target} ({type(layer).__name__}) can't be priced: use linear layers")
    meta = _Meta([*module.parameters(), *module.buffers()])
    pricer = _Pricer(module, meta)
    with torch.no_grad():
        pricer.run(*(torch.empty(1, *shape, device="meta") for shape in shapes))
    return tuple(pricer.steps)


def steps_cost(steps: Sequence[Step], *, kept: int = 0) -> Cost:
    """Return what steps cost together.

    Args:
        steps: All steps of a graph.
        kept: How many of its inputs, from the first one on, are read again later.
    """
    return Cost(sum(step.params for step in steps), sum(step.macs for step in steps), BYTES * peak_values(steps, kept))


def weighted_layers(steps: Sequence[Step]) -> tuple[LayerCost, ...]:
    """Return the layers that have weights or multiply-adds."""
    layers = (LayerCost(name, *_sums(own)) for name, own in groupby(steps, attrgetter("name")))
    return tuple(layer for layer in layers if layer.params or layer.macs)


def _sums(steps: Iterable[Step]) -> tuple[int, int]:
    """Return the parameters and multiply-adds of steps."""
    params, macs = zip(*((step.params, step.macs) for step in steps), strict=True)
    return sum(params), sum(macs)


def tensor_sizes(steps: Sequence[Step]) -> tuple[int, ...]:
    """Return the sizes of all tensors in values, ordered by tensor index."""
    return tuple(values for step in steps for values in step.makes)


def peak_values(steps: Sequence[Step], kept: int = 0) -> int:
    """Return the most values that are alive at once.

    Args:
        steps: All steps of a graph.
        kept: As for `steps_cost`.
    """
    sizes = tensor_sizes(steps)
    return max(sum(map(sizes.__getitem__, alive)) for alive in alive_tensors(steps, kept))


def alive_tensors(steps: Sequence[Step], kept: int = 0) -> list[set[int]]:
    """Return the tensors that are alive during each step, by index.

    Args:
        steps: All steps of a graph.
        kept: As for `steps_cost`.
    """
    last = {tensor: index for index, step in enumerate(steps) for tensor in step.reads}
    last |= dict.fromkeys(range(kept), len(steps))
    alive: set[int] = set()
    found, made = [], 0
    for index, step in enumerate(steps):
        alive.update(range(made, made + len(step.makes)))
        made += len(step.makes)
        found.append(set(alive))
        alive = {tensor for tensor in alive if last.get(tensor, index) > index}
    return found


class Operation(NamedTuple):
    """One function that a network called."""

    macs: int
    """Multiply-adds up to here."""
    made: list[Tensor]
    """Tensors that it returned."""
    given: list[Tensor]
    """Tensors that it was given."""


class _Meta(TorchFunctionMode):
    """Runs every function out of place on meta tensors, and counts multiply-adds.

    Args:
        weights: Tensors of the network; each is replaced by one of its shape.
    """

    def __init__(self, weights: Sequence[Tensor]) -> None:
        super().__init__()
        self.weights = weights
        self.meta_weights = {id(weight): weight.detach().to("meta") for weight in weights}
        self.macs = 0
        self.operations: list[Operation] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        args, kwargs = map_aggregate((args, kwargs or {}), self.on_meta)
        given = _tensors((args, kwargs))
        if kwargs.get("inplace"):
            kwargs = {**kwargs, "inplace": False}
        name = getattr(func, "__name__", "")
        if name in _AUGMENTED or (name.endswith("_") and not name.endswith("__")):
            args = (args[0].clone(), *args[1:])
        shape = _quick_shape(func, args)
        result = func(*args, **kwargs) if shape is None else args[0].new_empty(shape)
        if func in _BY_OUTPUT:
            self.macs += result.numel() * _weights_per_channel(args, kwargs)
        elif func in _BY_INPUT:
            self.macs += args[0].numel() * _weights_per_channel(args, kwargs)
        elif func is torch.lstm:
            self.macs += _lstm_macs(args[0], args[2])
        if made := _tensors(result):
            self.operations.append(Operation(self.macs, made, given))
        return result

    def on_meta(self, value: Any) -> Any:
        """Return the meta tensor of the same shape, where the value is a weight."""
        return self.meta_weights.get(id(value), value)


class _Pricer(Running):
    """Runs a graph node by node and notes what each does.

    Args:
        module: The network.
        meta: The mode in which it runs.
    """

    def __init__(self, module: GraphModule, meta: _Meta) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.extra_traceback = False  # it would make an error of ours many lines
        self.meta = meta
        self.steps: list[Step] = []
        self.counted: set[int] = set()
        # Storages stay referenced, so that their ids stay theirs.
        self.storages = [weight.untyped_storage() for weight in meta.meta_weights.values()]
        self.weights = set(map(id, self.storages))
        self.tensors: dict[int, int] = {}

    def run_node(self, n: Node) -> Any:
        """Run a node and note its step."""
        before = self.meta.macs
        self.meta.operations.clear()
        try:
            # Tensors that a node makes out of nothing have no device of their own.
            with torch.device("meta"), self.meta:
                result = super().run_node(n)
        except RuntimeError as error:
            raise GraphError(f"node {n.name} can't be priced without values: {str(error).splitlines()[0]}") from error
        name, params = str(n.target) if n.op == "call_module" else n.name, self._new_params(n)
        for operation in self._operations(n, result):
            reads = self._numbers(operation.given)
            made = self._new(operation.made)
            self.steps.append(Step(name, params, operation.macs - before, made, reads, n.name))
            params, before = 0, operation.macs
        return result

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Return the meta tensor that stands for a weight."""
        return self.meta.on_meta(self.fetch_attr(target))

    def _new(self, tensors: Iterable[Tensor]) -> tuple[int, ...]:
        """Return the numbers of values of those tensors that no earlier step made, and number them."""
        made = []
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if id(storage) not in self.tensors and id(storage) not in self.weights:
                self.tensors[id(storage)] = len(self.tensors)
                self.storages.append(storage)
                made.append(tensor.numel())
        return tuple(made)

    def _numbers(self, tensors: Iterable[Tensor]) -> tuple[int, ...]:
        """Return the numbers of the tensors among these that a step made, ascending."""
        ids = (id(tensor.untyped_storage()) for tensor in tensors)
        return tuple(sorted({self.tensors[storage] for storage in ids if storage in self.tensors}))

    def _operations(self, node: Node, result: Any) -> tuple[Operation, ...]:
        """Return what a node does: as a whole, or of a module that holds others, operation by operation."""
        layer = self.fetch_attr(str(node.target)) if is_layer(node) else None
        if isinstance(layer, nn.Module) and any(layer.children()) and self.meta.operations:
            return tuple(self.meta.operations)
        given = [tensor for other in node.all_input_nodes for tensor in _tensors(self.env[other])]
        return (Operation(self.meta.macs, _tensors(result), given),)

    def _new_params(self, node: Node) -> int:
        if node.op not in ("call_module", "get_attr"):
            return 0
        owner = self.fetch_attr(str(node.target))
        params = list(owner.parameters()) if isinstance(owner, nn.Module) else [owner]
        new = {id(p): p.numel() for p in params if isinstance(p, nn.Parameter) and id(p) not in self.counted}
        self.counted.update(new)
        return sum(new.values())


def _quick_shape(func: Callable[..., Any], args: Sequence[Any]) -> Sequence[int] | None:
    """Return the shape that a common function gives; None leaves it to torch.

    For these torch takes up to a millisecond on meta tensors, and first imports its compiler, which takes a second.
    """
    if func in (functional.batch_norm, functional.relu, functional.hardswish, functional.hardsigmoid):
        return args[0].shape
    if func in (Tensor.add, Tensor.mul) and isinstance(args[-1], Tensor):
        return torch.broadcast_shapes(args[0].shape, args[-1].shape)
    if func is functional.adaptive_avg_pool2d and args[1] == 1:
        return (*args[0].shape[:-2], 1, 1)
    if func is functional.linear and len(args) > 1:
        return (*args[0].shape[:-1], args[1].shape[0])
    return None


def _tensors(value: Any) -> list[Tensor]:
    """Return the tensors of a node's value: one, several or none."""
    found: list[Tensor] = []

    def note(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            found.append(leaf)
        return leaf

    map_aggregate(value, note)
    return found


def _weights_per_channel(args: Sequence[Any], kwargs: dict[str, Any]) -> int:
    weight: Tensor = args[1] if len(args) > 1 else kwargs["weight"]
    return weight.numel() // weight.shape[0]


def _lstm_macs(sequences: Tensor, weights: Sequence[Tensor]) -> int:
    """Return the multiply-adds of an LSTM: each of its matrices times one vector, per place of a sequence."""
    places = sequences.numel() // sequences.shape[-1]
    return places * sum(weight.numel() for weight in weights if weight.ndim == 2)
