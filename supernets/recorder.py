"""Make a sub-network a plain torch module, by recording the supernet's own forward.

A stand-in for the images is sent through the network once; every elastic layer that it meets notes itself and the sizes
it was called with. The record is a `torch.fx` graph; each noted layer is then replaced by the stock torch layer holding
the same slice of weights. So there is no second, static copy of the network's code, and what comes out is a
`torch.fx.GraphModule` of stock layers, for `torch.export`, ONNX, quantisation and everything else that takes modules.
Nothing global is patched while recording (`torch.fx.symbolic_trace` would), so other threads can go on computing.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from torch.fx import Graph, GraphModule, Node, Proxy
from torch.fx.proxy import GraphAppendingTracer
from torch.nn import functional

from supernets.graphs import cut, is_layer
from supernets.layers import ElasticLayer

_ACTIVATIONS = (functional.relu, functional.hardswish, functional.hardsigmoid)


class _Recorder(GraphAppendingTracer):
    """Notes each layer's call as a graph node, and makes the layer that takes its place."""

    def __init__(self, graph: Graph, net: nn.Module) -> None:
        super().__init__(graph)
        self.names = {id(layer): name for name, layer in net.named_modules() if isinstance(layer, ElasticLayer)}
        self.layers: dict[str, nn.Module] = {}

    def create_layer(self, layer: ElasticLayer, x: Proxy, sizes: tuple[int, ...]) -> Proxy:
        name = self.names[id(layer)]
        assert name not in self.layers, "a layer runs once per forward"
        self.layers[name] = layer.plain(*sizes).train(layer.training)
        return self.create_proxy("call_module", name, (x,), {})


def record(net: nn.Module, *choices: Any, inputs: Sequence[str] = ("images",)) -> GraphModule:
    """Return the computation of `net(images, *choices)` as a module that is called as `module(images)`.

    Args:
        net: The supernet, or a part of it.
        choices: What follows its inputs in the call.
        inputs: Names of its inputs.
    """
    graph, layers = _trace(net, *choices, inputs=inputs)
    return GraphModule(layers, graph, class_name="ExtractedSubnet")


def record_parts(net: nn.Module, part: str, *choices: Any) -> tuple[GraphModule, GraphModule]:
    """Return `net(images, *choices)` as two modules for inference: `tail(head(images))` is equal to the bit.

    Activations write over what they are given, where nothing else reads it: memory for half of the tensors is then
    neither requested nor cleared, which is much of the time that a large batch takes.

    Args:
        net: The supernet.
        part: Name of a part of it. The cut is at the first point after the part's layers over which a single tensor
            goes, so that networks which are equal up to there have equal heads.
        choices: What follows the images in the network's call.
    """
    graph, layers = _trace(net, *choices)
    for node in graph.nodes:
        if node.op == "call_function" and node.target in _ACTIVATIONS and _is_fresh(node.args[0], layers):
            node.update_kwarg("inplace", True)
    head, tail = cut(graph, part)
    return GraphModule(layers, head, class_name="Head"), GraphModule(layers, tail, class_name="Tail")


def _trace(net: nn.Module, *choices: Any, inputs: Sequence[str] = ("images",)) -> tuple[Graph, dict[str, nn.Module]]:
    """Return the computation of `net(*inputs, *choices)`, and its layers by name."""
    graph = Graph()
    recorder = _Recorder(graph, net)
    given = [Proxy(graph.placeholder(name), recorder) for name in inputs]
    outputs = net(*given, *choices)
    graph.output(recorder.create_arg(outputs))
    graph.lint()
    return graph, recorder.layers


def _is_fresh(given: object, layers: Mapping[str, nn.Module]) -> bool:
    """Return whether this is the output of a layer, in memory of its own, that is read once."""
    if not isinstance(given, Node) or not is_layer(given) or len(given.users) > 1:
        return False
    return isinstance(layers[str(given.target)], nn.Conv2d | nn.BatchNorm2d)
