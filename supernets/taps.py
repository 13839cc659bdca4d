"""Attach exits to any torch network: trace its own forward, and hang heads on the outputs of some of its modules.

The network's forward becomes a `torch.fx` graph in which a module is a single node, unless a module that an exit reads
lies inside it. So the graph is short, computes what the network computes, and keeps the names of its weights.

`torch.fx` patches `nn.Module` for all threads while it traces: trace before other threads make or call modules.
"""

import operator
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Interpreter, Node, Tracer
from torch.nn import functional

from supernets.backbone import Layout, Tap
from supernets.exit_heads import reads_maps
from supernets.graphs import GraphError, is_layer
from supernets.sized_trace import sized_graph

HEADS = "exits"
"""Name of the module that holds the heads of attached exits, by number."""


class _Whole(nn.Module):
    """A network as a function of images alone: its forward's other arguments keep their defaults."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Any:
        """Return what the network makes of images (N, C, H, W)."""
        return self.net(images)


class _TapTracer(Tracer):
    """Enters some modules alone; all others are nodes."""

    def __init__(self, entered: set[str]) -> None:
        super().__init__()
        self.entered = entered

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Return whether a module becomes a single node."""
        return module_qualified_name not in self.entered


def trace(net: nn.Module, taps: Sequence[str], shape: Sequence[int] | None = None) -> GraphModule:
    """Return a network's own forward as a graph: images -> what the network returns; weights are shared.

    Without a shape the graph takes images of any size that the network takes. With one it may be for images of that
    size alone: then forwards can be traced, too, that decide by sizes or compute with them. Dropout that the forward
    calls as a function becomes a layer, so that it follows the graph's mode.

    Args:
        net: The network; it is left in the mode that it had.
        taps: Names of modules that must be nodes of the graph.
        shape: Shape of the images without the batch dimension; None leaves it open.

    Raises:
        GraphError: If the forward can't be traced, computes otherwise in training mode than dropout and the layers do,
            or does not call each of these modules once.
    """
    graph = _graph(net, taps, shape)
    return GraphModule(net, graph, class_name="Traced").train(net.training)


def _graph(net: nn.Module, taps: Sequence[str], shape: Sequence[int] | None) -> Graph:
    try:
        return _checked(net, taps, lambda whole, entered: _TapTracer(entered).trace(whole))
    except GraphError:
        if shape is None:
            raise
        return _checked(net, taps, partial(sized_graph, shape=shape))


def _checked(net: nn.Module, taps: Sequence[str], make: Callable[[nn.Module, set[str]], Graph]) -> Graph:
    mode = net.training
    try:
        graph = _traced(net.train(), taps, make)
        other = _traced(net.eval(), taps, make)
    finally:
        net.train(mode)
    if str(graph) != str(other):
        raise GraphError("its forward itself, not its layers, computes otherwise in training mode")
    for name in taps:
        _tapped(graph, name)
    return graph


def _traced(net: nn.Module, taps: Sequence[str], make: Callable[[nn.Module, set[str]], Graph]) -> Graph:
    parts = (f"net.{tap}".split(".") for tap in taps)
    entered = {"net", *(".".join(names[:count]) for names in parts for count in range(1, len(names)))}
    try:
        graph = make(_Whole(net), entered)
    except Exception as error:
        # The network's own code meets stand-ins for tensors, and fails in every way that code can.
        reason = (str(error).strip().splitlines() or [""])[0]
        raise GraphError(f"its forward can't be traced ({type(error).__name__}: {reason[:120]})") from error
    for node in graph.nodes:
        if node.op in ("call_module", "get_attr"):
            node.target = str(node.target).removeprefix("net.")
    _make_dropouts(net, graph)
    return graph


def _make_dropouts(net: nn.Module, graph: Graph) -> None:
    found = [node for node in graph.nodes if node.op == "call_function" and node.target is functional.dropout]
    for number, node in enumerate(found, 1):
        name = f"dropout_{number}"
        net.add_module(name, nn.Dropout(_argument(node, 1, "p", 0.5)))
        with graph.inserting_before(node):
            layer = graph.call_module(name, (node.args[0],))
        node.replace_all_uses_with(layer)
        graph.erase_node(node)


def _argument(node: Node, index: int, name: str, default: float) -> float:
    value = node.args[index] if len(node.args) > index else node.kwargs.get(name, default)
    assert isinstance(value, int | float), "dropout's probability is a number"
    return float(value)


def _tapped(graph: Graph, module: str) -> Node:
    """Return the node that calls a module.

    Raises:
        GraphError: If none does, or several do.
    """
    calls = [node for node in graph.nodes if is_layer(node) and node.target == module]
    if len(calls) != 1:
        raise GraphError(f"its forward calls {module} {len(calls)} times, not once")
    return calls[0]


def tap_values(module: GraphModule, taps: Sequence[str], images: Tensor) -> dict[str, Any]:
    """Run a traced network, and return what the tapped modules gave, by name.

    Args:
        module: What `trace` gave.
        taps: Names of modules.
        images: (N, C, H, W); meta tensors for a network on the meta device.
    """
    nodes = {_tapped(module.graph, name): name for name in taps}
    found: dict[str, Any] = {}

    class Noting(Interpreter):
        def run_node(self, n: Node) -> Any:
            value = super().run_node(n)
            if n in nodes:
                found[nodes[n]] = value
            return value

    with torch.no_grad():
        Noting(module, garbage_collect_values=True).run(images)
    return found


def layout_of(features: object, maps: Tensor) -> tuple[Layout, int] | None:
    """Return the layout of a module's features and their prefix tokens, from the same features as maps.

    Args:
        features: What the module gave.
        maps: The same without prefix tokens as (N, C, H, W).

    Returns:
        None if the features are no tensor of a known layout.
    """
    if not isinstance(features, Tensor):
        return None
    count, channels, height, width = maps.shape
    if features.shape == maps.shape:
        square = channels == height == width
        if square and not features.is_meta and torch.equal(features.permute(0, 3, 1, 2), maps):
            return "NHWC", 0
        return "NCHW", 0
    if features.shape == (count, height, width, channels):
        return "NHWC", 0
    prefix = features.shape[1] - height * width if features.ndim == 3 else -1
    if prefix >= 0 and features.shape[0] == count and features.shape[2] == channels:
        return "NLC", prefix
    return None


def attach(
    net: nn.Module, taps: Sequence[Tap], heads: Sequence[nn.Module], shape: Sequence[int] | None = None
) -> GraphModule:
    """Return a network with exits: images -> a tuple of logits, the network's own last; weights are shared.

    Args:
        net: The network, which returns one tensor; the heads become its module `exits`.
        taps: Where exits read features, in the order in which they run.
        heads: A head per tap, of `supernets.exit_heads`.
        shape: As for `trace`.

    Returns:
        A graph in the network's mode, whose modules have the network's names. Heads are called `exits.1`, `exits.2`, …

    Raises:
        GraphError: As for `trace`; or if the taps run in another order, or the network returns no tensor.
    """
    names = {str(number): head for number, head in enumerate(heads, 1)}
    graph = _graph(net, [tap.module for tap in taps], shape)
    net.add_module(HEADS, nn.ModuleDict(names))
    nodes = [_tapped(graph, tap.module) for tap in taps]
    order = {node: index for index, node in enumerate(graph.nodes)}
    if sorted(nodes, key=order.__getitem__) != nodes:
        raise GraphError(f"its forward calls {', '.join(tap.module for tap in taps)} in another order")
    (output,) = graph.find_nodes(op="output")
    (last,) = output.args
    if not isinstance(last, Node):
        raise GraphError("it returns no single tensor of logits")
    logits = [
        _exit(graph, node, tap, name, head) for node, tap, (name, head) in zip(nodes, taps, names.items(), strict=True)
    ]
    output.args = ((*logits, last),)
    graph.lint()
    return GraphModule(net, graph, class_name="ExitNetwork").train(net.training)


def _exit(graph: Graph, node: Node, tap: Tap, name: str, head: nn.Module) -> Node:
    """Insert an exit right behind the features that it reads; return its logits."""
    with graph.inserting_before(node.next):
        features = node
        if tap.prefix:
            features = graph.call_function(operator.getitem, (features, (slice(None), slice(tap.prefix, None))))
        if not reads_maps(head):
            features = graph.call_method("mean", (features, _POOLED[tap.layout]))
        elif tap.layout == "NHWC":
            features = graph.call_method("permute", (features, 0, 3, 1, 2))
        elif tap.layout == "NLC":
            raise GraphError(f"its exit {name} reads tokens, and this head reads feature maps: use head=norm_linear")
        return graph.call_module(f"{HEADS}.{name}", (features,))


_POOLED: Mapping[str, tuple[int, ...]] = MappingProxyType({"NCHW": (2, 3), "NHWC": (1, 2), "NLC": (1,)})
