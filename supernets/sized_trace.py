"""Trace a network's forward for images of one size: sizes are numbers, and only the batch stays open.

`torch.fx` traces with stand-ins that know no sizes, so a forward that computes with them, or decides by them, fails.
Here each stand-in carries what the network makes of two batches of meta tensors, of different lengths. A size that is
the same for both is a number; one that differs depends on the batch, and is a node of the graph.
"""

import copy
import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.fx import Graph, Node, Proxy, Tracer
from torch.fx.node import map_aggregate

from supernets.graphs import plain_lists

BATCHES = (2, 3)
"""Lengths of the two batches."""


class SizedProxy(Proxy):
    """A stand-in that knows what it stands for, for each of the two batches."""

    def __init__(self, node: Node, tracer: "SizedTracer", values: tuple[Any, ...]) -> None:
        super().__init__(node, tracer)
        self.values = values

    @property
    def shape(self) -> tuple[Any, ...]:
        """Return a tensor's sizes: numbers, and nodes for those that depend on the batch."""
        sizes = zip(*(value.shape for value in self.values), strict=True)
        return tuple(own[0] if len(set(own)) == 1 else self._size(index) for index, own in enumerate(sizes))

    def _size(self, index: int) -> Any:
        return self.tracer.create_proxy("call_method", "size", (self, index), {})

    def size(self, dim: int | None = None) -> Any:
        """Return a tensor's sizes, or one of them."""
        return self.shape if dim is None else self.shape[dim]

    def dim(self) -> int:
        """Return how many dimensions a tensor has."""
        return int(self.values[0].ndim)

    ndim = property(dim)

    @property
    def dtype(self) -> torch.dtype:
        """Return a tensor's type."""
        found: torch.dtype = self.values[0].dtype
        return found

    def __len__(self) -> int:
        """Return the length of what has the same for both batches."""
        lengths = {len(value) for value in self.values}
        if len(lengths) > 1:
            raise ValueError("a length depends on the batch")
        return lengths.pop()


class SizedTracer(Tracer):
    """Makes stand-ins that know their sizes; modules are nodes of the graph, but those that are entered.

    Args:
        entered: Names of the modules that are entered.
        shape: Shape of the input without the batch dimension.
    """

    def __init__(self, entered: set[str], shape: Sequence[int]) -> None:
        super().__init__()
        self.entered = entered
        self.shape = tuple(shape)
        self._evaluating = False

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Return whether a module becomes a single node."""
        return module_qualified_name not in self.entered

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Record a call, unless a node's values are computed."""
        return forward(*args, **kwargs) if self._evaluating else super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Return a stand-in for a parameter, unless a node's values are computed."""
        return attr_val if self._evaluating else super().getattr(attr, attr_val, parameter_proxy_cache)

    def create_proxy(
        self,
        kind: str,
        target: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        name: str | None = None,
        type_expr: Any = None,
        proxy_factory_fn: Callable[[Node], Proxy] | None = None,
    ) -> Any:
        """Add a node, and compute what it makes of both batches."""
        proxy = super().create_proxy(kind, target, args, kwargs, name, type_expr, proxy_factory_fn)
        if kind == "output":
            return proxy
        with self._computing():
            values = tuple(self._value(kind, target, args, kwargs, index) for index in range(len(BATCHES)))
        if target is operator.getitem and _is_size(values[0]) and all(value == values[0] for value in values):
            # A size that a module gives. What is computed with batches may be equal for two and not for others.
            self.graph.erase_node(proxy.node)
            return values[0]
        return SizedProxy(proxy.node, self, values)

    def iter(self, obj: Proxy) -> Iterator[Any]:
        """Return the parts of a tuple or tensor."""
        assert isinstance(obj, SizedProxy), "all stand-ins of this tracer are"
        return iter([self.create_proxy("call_function", operator.getitem, (obj, at), {}) for at in range(len(obj))])

    @contextmanager
    def _computing(self) -> Iterator[None]:
        before, self._evaluating = self._evaluating, True
        try:
            yield
        finally:
            self._evaluating = before

    def _value(self, kind: str, target: Any, args: Any, kwargs: Any, batch: int) -> Any:
        if kind == "placeholder":
            return torch.empty(BATCHES[batch], *self.shape, device="meta")
        if kind == "get_attr":
            return operator.attrgetter(target)(self.root)
        args, kwargs = (_known(given, batch) for given in (args, kwargs))
        if kind == "call_module":
            return self.root.get_submodule(target)(*args, **kwargs)
        if kind == "call_method":
            return getattr(args[0], target)(*args[1:], **kwargs)
        return target(*args, **kwargs)


def sized_graph(net: nn.Module, entered: set[str], shape: Sequence[int]) -> Graph:
    """Return a network's forward as a graph, for images of one size.

    Args:
        net: The network.
        entered: Names of modules that are entered; all others are nodes of the graph.
        shape: Shape of the images without the batch dimension.

    Raises:
        ValueError: If the forward reads values, or makes constants of its own.
    """
    # Shapes are all that is looked at, and a network without weights computes them at once.
    stand_in = copy.deepcopy(net).to("meta")
    graph = SizedTracer(entered, shape).trace(stand_in)
    for node in graph.find_nodes(op="get_attr"):
        if str(node.target).startswith("_tensor_constant"):
            raise ValueError("it makes constants of its own")
    return graph


def _is_size(value: Any) -> bool:
    """Return whether a value is a number, or several, such as height and width."""
    if isinstance(value, tuple | list):
        return bool(value) and all(map(_is_size, value))
    return isinstance(value, int | float)


def _known(given: Any, batch: int) -> Any:
    """Return arguments with what stand-ins stand for."""
    return plain_lists(
        map_aggregate(given, lambda value: value.values[batch] if isinstance(value, SizedProxy) else value)
    )
