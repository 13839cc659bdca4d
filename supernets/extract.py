"""A sub-network as a plain torch module, made by recording the supernet's own forward.

A stand-in for the images is sent through the network once; every elastic layer that it meets notes itself and the sizes
it was called with. The record is a `torch.fx` graph; each noted layer is then replaced by the stock torch layer holding
the same slice of weights. So there is no second, static copy of the network's code, and what comes out is a
`torch.fx.GraphModule` of stock layers, for `torch.export`, ONNX, quantisation and everything else that takes modules.
Nothing global is patched while recording (`torch.fx.symbolic_trace` would), so other threads can go on computing.
"""

from typing import Any

from torch import nn
from torch.fx import Graph, GraphModule, Proxy
from torch.fx.proxy import GraphAppendingTracer

from supernets.elastic import Layer


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
