"""A sub-network as a plain torch module, made by recording the supernet's own forward.

A stand-in for the images is sent through the network once; every elastic layer that it meets notes itself and the sizes
it was called with. The record is a `torch.fx` graph; each noted layer is then replaced by the stock torch layer holding
the same slice of weights. So there is no second, static copy of the network's code, and what comes out is a
`torch.fx.GraphModule` of stock layers, for `torch.export`, ONNX, quantisation and everything else that takes modules.
Nothing global is patched while recording (`torch.fx.symbolic_trace` would), so other threads can go on computing.
"""

import copy
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
    graph = Graph()
    recorder = _Recorder(graph, net)
    images = Proxy(graph.placeholder("images"), recorder)
    outputs = net(images, *choices)
    graph.output(recorder.create_arg(outputs))
    graph.lint()
    return GraphModule(recorder.layers, graph, class_name="ExtractedSubnet")


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
    graph = copy.deepcopy(module.graph)
    layers = {str(node.target): module.get_submodule(str(node.target)) for node in graph.nodes if _is_layer(node)}
    with torch.no_grad():
        for node in list(graph.nodes):
            before = node.args[0] if _is_layer(node) else None
            if not isinstance(before, Node) or not _is_layer(before) or len(before.users) > 1:
                continue
            conv, norm = layers[str(before.target)], layers[str(node.target)]
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                layers[str(before.target)] = fuse_conv_bn_eval(conv, norm)
                del layers[str(node.target)]
                node.replace_all_uses_with(before)
                graph.erase_node(node)
    folded = GraphModule(layers, graph, class_name="FoldedSubnet")
    folded.eval()
    return folded


def activate_in_place(module: GraphModule) -> GraphModule:
    """An extracted network whose activations write over what they are given, where nothing else reads it.

    For inference: the numbers are the same, to the bit, but memory for half of the tensors is neither asked for nor
    cleared, which is much of the time that a large batch takes.

    Args:
        module: What `Supernet.extract` or `fold_norms` gave.

    Returns:
        A module in the same mode that shares all its layers with `module`, which stays as it was.
    """
    graph = copy.deepcopy(module.graph)
    for node in graph.nodes:
        if node.op == "call_function" and node.target in _ACTIVATIONS and _is_fresh(module, node.args[0]):
            node.update_kwarg("inplace", True)
    return _with_graph(module, graph, "InPlaceSubnet")


def split_after(module: GraphModule, part: str) -> tuple[GraphModule, GraphModule]:
    """Cuts an extracted network in two: `tail(head(images))` is `module(images)`, to the bit.

    Args:
        module: What `Supernet.extract` or `fold_norms` gave.
        part: Name of a part of the network. The cut is at the first place after its layers over which a single tensor
            goes, so that networks which are equal up to there have equal heads.

    Returns:
        Two modules in the same mode that share their layers with `module`, under the same names.
    """
    nodes = list(module.graph.nodes)
    place = {node: number for number, node in enumerate(nodes)}
    last_use = [max(map(place.__getitem__, node.users), default=number) for number, node in enumerate(nodes)]
    over = [[node for node in nodes[: end + 1] if last_use[place[node]] > end] for end in range(len(nodes))]
    last_layer = max(place[node] for node in nodes if _is_layer(node) and str(node.target).startswith(f"{part}."))
    end = next(end for end in range(last_layer, len(nodes)) if len(over[end]) == 1)
    (cut,) = over[end]
    head, tail = Graph(), Graph()
    copies: dict[Node, Node] = {}
    for node in nodes[: end + 1]:
        copies[node] = head.node_copy(node, copies.__getitem__)
    head.output(copies[cut])
    copies = {cut: tail.placeholder("features")}
    for node in nodes[end + 1 :]:
        copies[node] = tail.node_copy(node, copies.__getitem__)
    return _with_graph(module, head, "Head"), _with_graph(module, tail, "Tail")


def _with_graph(module: GraphModule, graph: Graph, class_name: str) -> GraphModule:
    """Another computation with a module's layers, in the same mode."""
    layers = {str(node.target): module.get_submodule(str(node.target)) for node in graph.nodes if _is_layer(node)}
    made = GraphModule(layers, graph, class_name=class_name)
    made.training = module.training
    return made


def _is_fresh(module: GraphModule, given: object) -> bool:
    """Whether this is the output of a layer, in memory of its own, that is read once."""
    if not isinstance(given, Node) or not _is_layer(given) or len(given.users) > 1:
        return False
    return isinstance(module.get_submodule(str(given.target)), nn.Conv2d | nn.BatchNorm2d)


def _is_layer(node: Node) -> bool:
    return node.op == "call_module"
