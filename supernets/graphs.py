"""Work on recorded graphs: split at outputs, keep some outputs, cut in two, fold norms into convolutions.

Part k computes output k and hands on what later parts still read; weights are shared with the network, not copied. The
graph's own nodes are sorted into parts, so nothing is written twice and it does not matter where the graph came from.
"""

import copy
import operator
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.fx import Graph, GraphModule, Interpreter, Node
from torch.nn.utils.fusion import fuse_conv_bn_weights

from supernets.cpu_kernels import PointwiseConv2d


class GraphError(ValueError):
    """A network's graph cannot be split; the message says why, and the next step."""


# Convolutions that do no more than convolve. A subclass may do more, such as activate what it gives.
_CONVOLUTIONS = (nn.Conv2d, PointwiseConv2d)
# `x += y` and `x[i] = y`, as torch.fx records them.
_AUGMENTED = frozenset({"iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "imatmul", "setitem"})


class Running(Interpreter):
    """Runs a graph as its generated code does: modules get lists of their own, which they may change."""

    def fetch_args_kwargs_from_env(self, n: Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return a node's arguments."""
        args, kwargs = super().fetch_args_kwargs_from_env(n)
        return tuple(map(plain_lists, args)), {name: plain_lists(value) for name, value in kwargs.items()}


def plain_lists(value: Any) -> Any:
    """Return a node's argument with plain lists in the place of those of `torch.fx`, which nobody may change."""
    if isinstance(value, list):
        return [plain_lists(item) for item in value]
    return tuple(map(plain_lists, value)) if type(value) is tuple else value


def split(module: GraphModule) -> tuple[GraphModule, ...]:
    """Split a network at its outputs.

    A part takes the tensors that the part before it hands on (the first one: the images) and returns its output,
    followed by the tensors that it hands on. What no output needs is in no part. Operations stay in their order.

    Args:
        module: Images (N, …) -> a tuple of tensors. Every value that one part hands to another must have N rows.

    Returns:
        One part per output, in the network's own training or evaluation mode.

    Raises:
        GraphError: If the network has several inputs or returns no tuple of tensors, or if a part would write in place
            into what another one reads: they would see other values than in the whole network.
    """
    outputs, homes = output_nodes(module), _homes(module)
    _refuse_shared_writes(module, homes)
    last = {node: _last_reader(node, homes, outputs) for node in homes}

    def handed_on(index: int) -> list[Node]:
        return [
            node
            for node in module.graph.nodes
            if node in homes and not _is_repeated(node) and homes[node] <= index < last[node]
        ]

    parts = []
    for index, output in enumerate(outputs):
        nodes = [node for node in module.graph.nodes if homes.get(node) == index]
        parts.append(_part(module, handed_on(index - 1), nodes, (output, *handed_on(index))))
    return tuple(parts)


def alone(module: GraphModule, index: int) -> GraphModule:
    """Return the network with only one of its outputs: images -> that tensor; weights are shared.

    Args:
        module: As for `split`.
        index: Which output, from 0.

    Raises:
        GraphError: As for `split`.
    """
    needed = set(_ancestors(output_nodes(module)[index]))
    nodes = [node for node in module.graph.nodes if node in needed and node.op != "placeholder"]
    return _part(module, [_input(module)], nodes, output_nodes(module)[index])


def keep(module: GraphModule, indices: Sequence[int]) -> GraphModule:
    """Return the network with some of its outputs: images -> a tuple of them; weights are shared.

    What only other outputs need is left out. The outputs that stay are the same to the bit.

    Args:
        module: As for `split`.
        indices: Which outputs, from 0, ascending.

    Raises:
        GraphError: If the network has several inputs or returns no tuple of tensors, or if an output that is left out
            writes in place into what another one reads.
    """
    bits, outputs = needed_by(module), output_nodes(module)
    _refuse_shared_writes(module, bits)
    wanted = sum(1 << index for index in set(indices))
    nodes = [node for node in module.graph.nodes if bits.get(node, 0) & wanted and node.op != "placeholder"]
    return _part(module, [_input(module)], nodes, tuple(outputs[index] for index in indices))


@dataclass(frozen=True)
class Piece:
    """The part of a network that the same outputs need."""

    outputs: int
    """These outputs as bits: bit k is output k, from 0."""
    module: GraphModule
    """Takes the values named `takes`, returns a tuple of those named `gives`."""
    takes: tuple[str, ...]
    """Values that it reads; the network's input has the name of its placeholder."""
    gives: tuple[str, ...]
    """Values that others read, or that the network returns."""


def pieces(module: GraphModule) -> tuple[Piece, ...]:
    """Cut a network into pieces, each of what the same outputs need; in an order in which they can run.

    A network with some of the outputs consists of the pieces that any of them needs: the stages that lead to them, and
    their heads. Weights are shared.

    Args:
        module: As for `split`.

    Raises:
        GraphError: As for `keep`.
    """
    bits, outputs = needed_by(module), set(output_nodes(module))
    _refuse_shared_writes(module, bits)
    running = [node for node in module.graph.nodes if node in bits and node.op not in ("placeholder", "get_attr")]
    found = []
    # What a piece reads comes from pieces that more outputs need.
    for group in sorted(dict.fromkeys(bits[node] for node in running), key=lambda group: -group.bit_count()):
        nodes = [node for node in running if bits[node] == group]
        own = set(nodes)
        read = dict.fromkeys(given for node in nodes for given in node.all_input_nodes)
        takes = [node for node in read if node not in own and node.op != "get_attr"]
        gives = [node for node in nodes if node in outputs or any(user in bits for user in {*node.users} - own)]
        part = _part(module, takes, nodes, tuple(gives))
        found.append(Piece(group, part, tuple(node.name for node in takes), tuple(node.name for node in gives)))
    return tuple(found)


def needed_by(module: GraphModule) -> dict[Node, int]:
    """Return the outputs that need each node, as bits: bit k is output k, from 0. What no output needs is missing.

    Raises:
        GraphError: If the network returns no tuple of tensors.
    """
    bits: dict[Node, int] = {}
    for index, output in enumerate(output_nodes(module)):
        for node in _ancestors(output):
            bits[node] = bits.get(node, 0) | 1 << index
    return bits


def _input(module: GraphModule) -> Node:
    inputs: list[Node] = module.graph.find_nodes(op="placeholder")
    if len(inputs) != 1:
        raise GraphError(f"network has {len(inputs)} inputs: early exits need one that takes images alone")
    return inputs[0]


def output_nodes(module: GraphModule) -> tuple[Node, ...]:
    """Return the nodes whose values the network returns.

    Raises:
        GraphError: If it returns no tuple of tensors.
    """
    (output,) = module.graph.find_nodes(op="output")
    (value,) = output.args
    if not isinstance(value, Sequence) or not value or not all(isinstance(node, Node) for node in value):
        raise GraphError("network returns no tuple of logits: extract it with --exits all, or exits such as 2,4")
    return tuple(value)


def _homes(module: GraphModule) -> dict[Node, int]:
    """Return the part in which each node runs: that of the first output that needs it; the images are there before."""
    homes = {_input(module): -1}
    for index, output in enumerate(output_nodes(module)):
        for node in _ancestors(output):
            homes.setdefault(node, index)
    # Of several tensors, those that are read are handed on one by one.
    for node in module.graph.nodes:
        if node in homes and _is_unpacked(node):
            homes.update({item: homes[node] for item in node.users if item in homes})
    return homes


def _is_unpacked(node: Node) -> bool:
    """Return whether a node makes several values, which are read one by one."""
    return bool(node.users) and all(
        user.target is operator.getitem and user.args[0] is node and isinstance(user.args[1], int)
        for user in node.users
    )


def _is_repeated(node: Node) -> bool:
    """Return whether parts repeat a node instead of handing on its value: constants, and sizes of tensors."""
    if node.op == "get_attr" or (node.op == "call_method" and node.target == "size"):
        return True
    if node.op != "call_function":
        return False
    if node.target is getattr:
        return node.args[1] == "shape"
    inputs = node.all_input_nodes
    return bool(inputs) and all(other.op != "get_attr" and _is_repeated(other) for other in inputs)


def _ancestors(output: Node) -> Iterator[Node]:
    seen, waiting = {output}, [output]
    while waiting:
        node = waiting.pop()
        yield node
        new = [other for other in node.all_input_nodes if other not in seen]
        seen.update(new)
        waiting += new


def _last_reader(node: Node, homes: dict[Node, int], outputs: Sequence[Node]) -> int:
    """Return the last part that reads a node's value or returns it; the first part always gets the images."""
    readers = [homes[user] for user in _readers(node) if user in homes]
    return max([*readers, *(index for index, output in enumerate(outputs) if output is node), 0])


def _readers(node: Node) -> Iterator[Node]:
    """Yield the nodes that read a node's value, in the parts in which they run or are repeated."""
    for user in node.users:
        yield user
        if _is_repeated(user):
            yield from _readers(user)


def _part(
    module: GraphModule, inputs: Sequence[Node], nodes: Sequence[Node], returned: Node | tuple[Node, ...]
) -> GraphModule:
    graph = Graph()
    copies = {node: graph.placeholder(node.name) for node in inputs}

    def copied(node: Node) -> Node:
        if node not in copies:
            assert _is_repeated(node), "every other value is handed on"
            copies[node] = graph.node_copy(node, copied)
        return copies[node]

    for node in nodes:
        copies[node] = graph.node_copy(node, copied)
    graph.output(tuple(map(copied, returned)) if isinstance(returned, tuple) else copied(returned))
    graph.lint()
    return GraphModule(module, graph, class_name="Part").train(module.training)


def _refuse_shared_writes(module: GraphModule, homes: Mapping[Node, int]) -> None:
    """Refuse nodes that write in place into what a node of another home reads."""
    for node in module.graph.nodes:
        written = node.all_input_nodes[:1] if _writes(module, node) else []
        if any(homes.get(user) != homes.get(node) for target in written for user in target.users):
            raise GraphError(
                f"network works in place ({node.name}) on what another exit reads: set inplace=False, then split it"
            )


def _writes(module: GraphModule, node: Node) -> bool:
    """Return whether a node changes its first input."""
    if node.op == "call_module":
        return bool(getattr(module.get_submodule(str(node.target)), "inplace", False))
    if node.op not in ("call_function", "call_method"):
        return False
    name = _name(node.target)
    in_place = name.endswith("_") and not name.endswith("__")
    return in_place or name in _AUGMENTED or bool(node.kwargs.get("inplace", False))


def _name(target: Callable[..., object] | str) -> str:
    return target if isinstance(target, str) else getattr(target, "__name__", "")


def fold_norms(module: GraphModule) -> GraphModule:
    """Return an extracted network in which every batch norm that follows a convolution is folded into it.

    For evaluation: a folded convolution scales and shifts by the running statistics, with sums that are rounded
    otherwise. Norms that follow no convolution stay.

    Args:
        module: What `Supernet.extract` gave, in evaluation mode, with the statistics that are to count.

    Returns:
        A module of its own in evaluation mode; it shares the layers that are not folded with `module`, which stays as
        it was.
    """
    assert not module.training, "the statistics of a network in training mode are not used"
    graph, layers = copy.deepcopy(module.graph), _layers(module)
    for before, node in _pairs(graph, layers):
        conv = copy.deepcopy(layers[str(before.target)])
        _fold_(conv, layers[str(node.target)])
        layers[str(before.target)] = conv
        node.replace_all_uses_with(before)
        graph.erase_node(node)
    made = GraphModule(layers | _attributes(module), graph, class_name="FoldedSubnet")
    made.eval()
    return made


def fold_norms_(module: GraphModule) -> None:
    """Fold norms as `fold_norms` does, but in place, in a module that nobody else needs; the norms become identities.

    A second module of a small network takes as long to make as its evaluation.
    """
    assert not module.training, "the statistics of a network in training mode are not used"
    layers = _layers(module)
    for before, node in _pairs(module.graph, layers):
        _fold_(layers[str(before.target)], layers[str(node.target)])
        module.set_submodule(str(node.target), nn.Identity())


def foldable_norms(module: GraphModule) -> dict[str, str]:
    """Return the names of norms that alone read a convolution's output, each with the name of that convolution."""
    return {str(node.target): str(before.target) for before, node in _pairs(module.graph, _layers(module))}


def _fold_(conv: nn.Module, norm: nn.Module) -> None:
    """Give a convolution the weights with which it also normalises."""
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    mean, var = norm.running_mean, norm.running_var
    assert mean is not None
    assert var is not None
    with torch.no_grad():
        conv.weight, conv.bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, mean, var, norm.eps, norm.weight, norm.bias
        )


def _pairs(graph: Graph, layers: Mapping[str, nn.Module]) -> Iterator[tuple[Node, Node]]:
    calls = Counter(str(node.target) for node in filter(is_layer, graph.nodes))
    for node in list(graph.nodes):
        before = node.args[0] if is_layer(node) else None
        if not isinstance(before, Node) or not is_layer(before) or len(before.users) > 1:
            continue
        # What is called again elsewhere computes the same there, without the norm or with another one.
        if calls[str(before.target)] > 1 or calls[str(node.target)] > 1:
            continue
        if type(layers[str(before.target)]) in _CONVOLUTIONS and type(layers[str(node.target)]) is nn.BatchNorm2d:
            yield before, node


def _layers(module: GraphModule) -> dict[str, nn.Module]:
    return {str(node.target): module.get_submodule(str(node.target)) for node in module.graph.nodes if is_layer(node)}


def _attributes(module: GraphModule) -> dict[str, torch.Tensor]:
    """Return the weights that nodes read by themselves, outside of layers."""
    names = (str(node.target) for node in module.graph.find_nodes(op="get_attr"))
    return {name: operator.attrgetter(name)(module) for name in names}


def cut(graph: Graph, part: str) -> tuple[Graph, Graph]:
    """Cut a graph in two at the first point after a part's layers that a single tensor crosses.

    Args:
        graph: The graph, with one input.
        part: Name of a module; the cut is after its layers.
    """
    nodes = list(graph.nodes)
    index = {node: number for number, node in enumerate(nodes)}
    last_use = [max(map(index.__getitem__, node.users), default=number) for number, node in enumerate(nodes)]
    end = max(index[node] for node in nodes if is_layer(node) and str(node.target).startswith(f"{part}."))
    while len(crossing := [node for node in nodes[: end + 1] if last_use[index[node]] > end]) > 1:
        end += 1
    head, tail = Graph(), Graph()
    copies: dict[Node, Node] = {}
    for node in nodes[: end + 1]:
        copies[node] = head.node_copy(node, copies.__getitem__)
    head.output(copies[crossing[0]])
    copies = {crossing[0]: tail.placeholder("features")}
    for node in nodes[end + 1 :]:
        copies[node] = tail.node_copy(node, copies.__getitem__)
    return head, tail


def is_layer(node: Node) -> bool:
    """Return whether the node calls a layer."""
    return node.op == "call_module"
