"""A sub-network as a plain torch module, made by recording the supernet's own forward.

A stand-in for the images is sent through the network once; every elastic layer that it meets notes itself and the sizes
it was called with. The record is a `torch.fx` graph; each noted layer is then replaced by the stock torch layer holding
the same slice of weights. So there is no second, static copy of the network's code, and what comes out is a
`torch.fx.GraphModule` of stock layers, for `torch.export`, ONNX, quantisation and everything else that takes modules.
Nothing global is patched while recording (`torch.fx.symbolic_trace` would), so other threads can go on computing.
"""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.fx import Graph, GraphModule, Node, Proxy
from torch.fx.proxy import GraphAppendingTracer
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from supernets.elastic import Layer

_ACTIVATIONS = (functional.relu, functional.hardswish, functional.hardsigmoid)


class _Recorder(GraphAppendingTracer):
    """Notes each layer's call as a graph node, and makes the layer that takes its place."""

    def __init__(self, graph: Graph, net: nn.Module) -> None:
        super().__init__(graph)
        self.names = {id(layer): name for name, layer in net.named_modules() if isinstance(layer, Layer)}
        self.layers: dict[str, nn.Module] = {}

    def create_layer(self, layer: Layer, x: Proxy, sizes: tuple[int, ...]) -> Proxy:
        name = self.names[id(layer)]
        assert name not in self.layers, "a layer runs once per forward"
        self.layers[name] = layer.plain(*sizes).train(layer.training)
        return self.create_proxy("call_module", name, (x,), {})


def record(net: nn.Module, *choices: Any) -> GraphModule:
    """The computation of `net(images, *choices)` as a module that is called as `module(images)`."""
    graph, layers = _trace(net, *choices)
    return GraphModule(layers, graph, class_name="ExtractedSubnet")


def record_parts(net: nn.Module, part: str, *choices: Any) -> tuple[GraphModule, GraphModule]:
    """The computation of `net(images, *choices)` in two modules, for inference: `tail(head(images))`, to the bit.

    Activations write over what they are given, where nothing else reads it: memory for half of the tensors is then
    neither asked for nor cleared, which is much of the time that a large batch takes.

    Args:
        net: The supernet.
        part: Name of a part of it. The cut is at the first place after the part's layers over which a single tensor
            goes, so that networks which are equal up to there have equal heads.
        choices: What follows the images in the network's call.
    """
    graph, layers = _trace(net, *choices)
    for node in graph.nodes:
        if node.op == "call_function" and node.target in _ACTIVATIONS and _is_fresh(node.args[0], layers):
            node.update_kwarg("inplace", True)
    head, tail = _cut(graph, part)
    return GraphModule(layers, head, class_name="Head"), GraphModule(layers, tail, class_name="Tail")


def _trace(net: nn.Module, *choices: Any) -> tuple[Graph, dict[str, nn.Module]]:
    """The computation of `net(images, *choices)`, and its layers by name."""
    graph = Graph()
    recorder = _Recorder(graph, net)
    images = Proxy(graph.placeholder("images"), recorder)
    outputs = net(images, *choices)
    graph.output(recorder.create_arg(outputs))
    graph.lint()
    return graph, recorder.layers


def _cut(graph: Graph, part: str) -> tuple[Graph, Graph]:
    nodes = list(graph.nodes)
    place = {node: number for number, node in enumerate(nodes)}
    last_use = [max(map(place.__getitem__, node.users), default=number) for number, node in enumerate(nodes)]
    end = max(place[node] for node in nodes if _is_layer(node) and str(node.target).startswith(f"{part}."))
    while len(crossing := [node for node in nodes[: end + 1] if last_use[place[node]] > end]) > 1:
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


def _is_fresh(given: object, layers: Mapping[str, nn.Module]) -> bool:
    """Whether this is the output of a layer, in memory of its own, that is read once."""
    if not isinstance(given, Node) or not _is_layer(given) or len(given.users) > 1:
        return False
    return isinstance(layers[str(given.target)], nn.Conv2d | nn.BatchNorm2d)


def fold_norms(module: GraphModule) -> GraphModule:
    """An extracted network in which every batch norm that follows a convolution is folded into it.

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
    for before, node, folded in _folded(graph, layers):
        layers[str(before.target)] = folded
        node.replace_all_uses_with(before)
        graph.erase_node(node)
    made = GraphModule(layers, graph, class_name="FoldedSubnet")
    made.eval()
    return made


def absorb_norms(module: GraphModule) -> None:
    """Folds the norms of a module that nobody else needs, as `fold_norms` does, but in it; their places stay, empty.

    A second module of a small network takes as long to make as its evaluation.
    """
    assert not module.training, "the statistics of a network in training mode are not used"
    for before, node, folded in _folded(module.graph, _layers(module)):
        module.set_submodule(str(before.target), folded)
        module.set_submodule(str(node.target), nn.Identity())


def lone_norms(module: GraphModule) -> dict[str, str]:
    """Names of the norms that alone read a convolution's output, which they may write over, and of the convolutions."""
    return {str(node.target): str(before.target) for before, node in _pairs(module.graph, _layers(module))}


def _folded(graph: Graph, layers: Mapping[str, nn.Module]) -> Iterator[tuple[Node, Node, nn.Module]]:
    """Each convolution and the norm that alone reads it, and both as one layer."""
    for before, node in _pairs(graph, layers):
        with torch.no_grad():
            folded: nn.Module = fuse_conv_bn_eval(layers[str(before.target)], layers[str(node.target)])  # type: ignore[arg-type, type-var]
        yield before, node, folded


def _pairs(graph: Graph, layers: Mapping[str, nn.Module]) -> Iterator[tuple[Node, Node]]:
    for node in list(graph.nodes):
        before = node.args[0] if _is_layer(node) else None
        if not isinstance(before, Node) or not _is_layer(before) or len(before.users) > 1:
            continue
        if isinstance(layers[str(before.target)], nn.Conv2d) and isinstance(layers[str(node.target)], nn.BatchNorm2d):
            yield before, node


def _layers(module: GraphModule) -> dict[str, nn.Module]:
    return {str(node.target): module.get_submodule(str(node.target)) for node in module.graph.nodes if _is_layer(node)}


def _is_layer(node: Node) -> bool:
    return node.op == "call_module"
