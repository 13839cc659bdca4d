"""Attach exits to any torch network: trace its own forward, and hang heads on the outputs of some of its modules.

The network's forward becomes a `torch.fx` graph in which a module is a single node, unless a module that an exit reads
lies inside it. So the graph is short, computes what the network computes, and keeps the names of its weights.

`torch.fx` patches `nn.Module` for all threads while it traces: trace before other threads make or call modules.
"""

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node, Tracer
from torch.fx.node import map_aggregate
from torch.nn import functional

from supernets.backbone import Layout, Tap
from supernets.exit_heads import reads_maps
from supernets.graphs import GraphError, Running, is_layer
from supernets.sized_trace import sized_graph

HEADS = "exits"
"""Name of the module that holds the heads of attached exits, by number."""


class Output(NamedTuple):
    """A tensor that a module gives."""

    module: str
    """Its name."""
    item: int | None = None
    """Which of the values that it gives, from 0; None if it gives this tensor alone."""
    items: int = 1
    """How many values it gives."""

    def of(self, value: Any) -> Any:
        """Return the tensor, out of what the module gave."""
        return value if self.item is None else value[self.item]


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


_Make = Callable[[nn.Module, set[str]], Graph]
"""Traces a network, given the names of modules to enter."""


def _graph(net: nn.Module, taps: Sequence[str], shape: Sequence[int] | None, sized_first: bool = False) -> Graph:
    if shape is None:
        return _checked(net, taps, _plain_graph)
    sized: _Make = partial(sized_graph, shape=shape)
    first, second = (sized, _plain_graph) if sized_first else (_plain_graph, sized)
    try:
        return _checked(net, taps, first)
    except GraphError:
        return _checked(net, taps, second)


def _plain_graph(net: nn.Module, entered: set[str]) -> Graph:
    return _TapTracer(entered).trace(net)


def _checked(net: nn.Module, taps: Sequence[str], make: _Make) -> Graph:
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


def _traced(net: nn.Module, taps: Sequence[str], make: _Make) -> Graph:
    parts = (f"net.{tap}".split(".") for tap in taps)
    entered = {"net", *(".".join(names[:count]) for names in parts for count in range(1, len(names)))}
    try:
        graph = make(_Whole(net), entered)
    except Exception as error:
        # The network's own code meets stand-ins for tensors, and fails in every way that code can.
        raise GraphError(f"its forward can't be traced ({type(error).__name__}: {_first_line(error)})") from error
    for node in graph.nodes:
        if node.op in ("call_module", "get_attr"):
            node.target = str(node.target).removeprefix("net.")
    _make_dropouts(net, graph)
    return graph


def _first_line(error: Exception) -> str:
    """Return the first line of an error's text, or its beginning."""
    return (str(error).strip().splitlines() or [""])[0][:120]


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

    Raises:
        GraphError: If the graph can't be run.
    """
    nodes = {_tapped(module.graph, name): name for name in taps}
    found: dict[str, Any] = {}

    class Noting(Running):
        def run_node(self, n: Node) -> Any:
            value = super().run_node(n)
            if n in nodes:
                found[nodes[n]] = value
            return value

    noting = Noting(module, garbage_collect_values=True)
    noting.extra_traceback = False
    try:
        with torch.no_grad():
            noting.run(images)
    except Exception as error:
        # The network's own code runs here, without its network around it.
        raise GraphError(f"its graph can't be run ({type(error).__name__}: {_first_line(error)})") from error
    return found


def find_outputs(net: nn.Module, images: Tensor, wanted: Sequence[Tensor]) -> list[Output | None]:
    """Find the modules that give some features, by the features' numbers.

    Args:
        net: The network in evaluation mode, with weights that make all its features differ.
        images: (N, C, H, W).
        wanted: Features of these images as maps (N, C, H, W).

    Returns:
        For each, the first module that gives it, and of modules inside each other the outermost; None if no module
        that runs once does.
    """
    found: list[list[Output]] = [[] for _ in wanted]
    calls: dict[str, int] = {}

    def note(name: str, value: Any) -> None:
        calls[name] = calls.get(name, 0) + 1
        for output, tensor in _tensors(name, value):
            for known, maps in zip(found, wanted, strict=True):
                if layout_of(tensor, maps) is not None:
                    known.append(output)

    with torch.no_grad(), _noting(net, note):
        net(images)
    once = [[output for output in known if calls[output.module] == 1] for known in found]
    chosen = [_outermost(known, ()) for known in once]
    # A module around another one that an exit reads is entered, so it is no node of the graph.
    for _ in chosen:
        entered = [output.module for output in chosen if output]
        chosen = [_outermost(known, entered) for known in once]
    return chosen


def _outermost(outputs: Sequence[Output], entered: Sequence[str]) -> Output | None:
    """Return the outermost module around the first of some outputs, which come in the order of their computation."""
    around = [one for one in outputs if f"{outputs[0].module}.".startswith(f"{one.module}.")]
    nodes = [one for one in around if not any(name.startswith(f"{one.module}.") for name in entered)]
    return min(nodes, key=lambda one: len(one.module), default=None)


def _tensors(name: str, value: Any) -> Iterator[tuple[Output, Tensor]]:
    if isinstance(value, Tensor):
        yield Output(name), value
    elif isinstance(value, tuple | list):
        for item, tensor in enumerate(value):
            if isinstance(tensor, Tensor):
                yield Output(name, item, len(value)), tensor


@contextmanager
def _noting(net: nn.Module, note: Callable[[str, Any], None]) -> Iterator[None]:
    """Call a function with each module's name and what it gave, but not with the network's own."""
    hooks = [
        module.register_forward_hook(lambda _, given, value, name=name: note(name, value))
        for name, module in net.named_modules()
        if name
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def layout_of(features: object, maps: Tensor) -> tuple[Layout, int] | None:
    """Return the layout of a module's features and their prefix tokens, from the same features as maps.

    Args:
        features: What the module gave.
        maps: The same without prefix tokens as (N, C, H, W); meta tensors are compared by their shapes alone.

    Returns:
        None if the features are no tensor of a known layout, or have other numbers.

    Raises:
        AmbiguousLayoutError: If the shapes of meta tensors allow several layouts.
    """
    if not isinstance(features, Tensor):
        return None
    fitting = [
        (layout, prefix)
        for layout, prefix, found in _as_maps(features, maps.shape)
        if features.is_meta or torch.equal(found, maps)
    ]
    if len(fitting) > 1 and features.is_meta:
        raise AmbiguousLayoutError
    return fitting[0] if fitting else None


class AmbiguousLayoutError(Exception):
    """The shapes of features allow several layouts, of which numbers alone tell the right one."""


def _as_maps(features: Tensor, shape: torch.Size) -> Iterator[tuple[Layout, int, Tensor]]:
    """Yield each layout that features may have by their shape, their prefix tokens, and the features as maps."""
    count, channels, height, width = shape
    if features.shape == shape:
        yield "NCHW", 0, features
    if features.shape == (count, height, width, channels):
        yield "NHWC", 0, features.permute(0, 3, 1, 2)
    prefix = features.shape[1] - height * width if features.ndim == 3 else -1
    if prefix >= 0 and features.shape == (count, prefix + height * width, channels):
        yield "NLC", prefix, features[:, prefix:].transpose(1, 2).reshape(shape)


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
    # Of the values that a module gives, some may be sizes: a graph for one size has numbers in their place.
    graph = _graph(net, [tap.module for tap in taps], shape, any(tap.item is not None for tap in taps))
    net.add_module(HEADS, nn.ModuleDict(names))
    several = {tap.module: tap.items for tap in taps if tap.item is not None}
    values = {module: _unpack(graph, module, items) for module, items in several.items()}
    nodes = [_tapped(graph, tap.module) if tap.item is None else values[tap.module][tap.item] for tap in taps]
    order = {node: index for index, node in enumerate(graph.nodes)}
    if sorted(nodes, key=order.__getitem__) != nodes:
        raise GraphError(f"its forward computes {', '.join(tap.module for tap in taps)} in another order")
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


def _unpack(graph: Graph, module: str, items: int) -> list[Node]:
    """Give each value of a module a node of its own, which all others read; return these nodes."""
    node = _tapped(graph, module)
    readers = [user for user in node.users if user.target is not operator.getitem]
    with graph.inserting_after(node):
        values = [graph.call_function(operator.getitem, (node, item)) for item in reversed(range(items))][::-1]
    for reader in readers:
        reader.args, reader.kwargs = map_aggregate(
            (reader.args, reader.kwargs), lambda given: values if given is node else given
        )
    return values


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
