"""Merge the exits of a recorded network: their weighted sum as an output, or one classifier for all exits (AEP)."""

import operator
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from supernets.graphs import GraphError, is_layer, output_nodes
from supernets.taps import trace

JOINED = "ensemble"
"""Name of the layer that `fold_classifiers` makes."""


def with_ensemble(module: GraphModule, weights: Sequence[float]) -> GraphModule:
    """Return the network with the weighted sum of its outputs as a further, last one; layers are shared.

    Products and sums are those of `distill.ensemble`, in the same order.

    Args:
        module: A network that returns a tuple of logits, one per exit.
        weights: One weight per exit.
    """
    graph, outputs = _copied(module)
    graph.output((*outputs, _weighted_sum(graph, outputs, weights)))
    return GraphModule(module, graph, class_name="Ensemble").train(module.training)


def ensemble_alone(module: GraphModule, weights: Sequence[float]) -> GraphModule:
    """Return the network with the weighted sum of its outputs as the only one; layers are shared.

    Args:
        module: A network that returns a tuple of logits, one per exit.
        weights: One weight per exit.
    """
    graph, outputs = _copied(module)
    graph.output(_weighted_sum(graph, outputs, weights))
    return GraphModule(module, graph, class_name="Ensemble").train(module.training)


def fold_classifiers(module: GraphModule, weights: Sequence[float], classes: int) -> GraphModule:
    """Return the weighted sum of a network's outputs as one linear layer on the joined features of all exits.

    A weighted sum of linear layers is a linear layer. It adds in another order, so its logits differ by rounding. An
    exit that does not end in a linear layer joins with its logits.

    Args:
        module: A network that returns a tuple of logits, one per exit, or the logits of one exit.
        weights: One weight per exit.
        classes: Logits per exit.

    Returns:
        Images -> logits (N, classes). Its last layer is called `ensemble`; all other layers are shared.
    """
    graph, outputs = _copied(module)
    graph.output(outputs)
    made = GraphModule(module, graph, class_name="Folded")
    (end,) = graph.find_nodes(op="output")
    with graph.inserting_before(end):
        opened = [_opened(made, node, f"{JOINED}_features_{index}") for index, node in enumerate(outputs)]
        like = next(made.parameters(), torch.empty(0))
        made.add_submodule(JOINED, _joined([layer for _, layer in opened], weights, classes, like))
        joined = graph.call_function(torch.cat, ([features for features, _ in opened], 1))
        end.args = (graph.call_module(JOINED, (joined,)),)
    graph.eliminate_dead_code()
    made.delete_all_unused_submodules()
    made.recompile()
    return made.train(module.training)


def _copied(module: GraphModule) -> tuple[Graph, tuple[Node, ...]]:
    """Return a copy of the network's graph without its end, and the copies of the outputs' nodes."""
    (end,) = module.graph.find_nodes(op="output")
    outputs = end.args if isinstance(end.args[0], Node) else output_nodes(module)
    graph, copies = Graph(), dict[Node, Node]()
    graph.graph_copy(module.graph, copies)
    return graph, tuple(copies[node] for node in outputs)


def _opened(module: GraphModule, node: Node, name: str) -> tuple[Node, nn.Linear | None]:
    """Return what an exit's linear layer reads, and that layer; its logits and None where it has no such layer."""
    layer = module.get_submodule(str(node.target)) if is_layer(node) else None
    (given, *_) = node.args or (None,)
    if isinstance(layer, nn.Linear) and isinstance(given, Node):
        return given, layer
    features, linear = _without_classifier(layer) if layer is not None else (None, None)
    if features is None:
        return node, None
    module.add_submodule(name, features)
    return module.graph.call_module(name, node.args), linear


def _without_classifier(head: nn.Module) -> tuple[nn.Module, nn.Linear] | tuple[None, None]:
    """Return a head up to the linear layer that it ends in, and that layer; Nones where it ends in something else."""
    if isinstance(head, nn.Sequential) and isinstance(head[-1], nn.Linear):
        return head[:-1], head[-1]
    linear = {name: layer for name, layer in head.named_modules() if name and isinstance(layer, nn.Linear)}
    try:
        # timm's heads are modules of their own, with a classifier inside.
        traced = trace(head, [*linear][-1:])
    except GraphError:
        return None, None
    (end,) = traced.graph.find_nodes(op="output")
    last = end.args[0]
    while is_layer(last) and isinstance(traced.get_submodule(str(last.target)), nn.Identity):
        last = last.args[0]
    if not is_layer(last) or str(last.target) not in linear:
        return None, None
    end.args = last.args
    traced.graph.eliminate_dead_code()
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced, linear[str(last.target)]


def _weighted_sum(graph: Graph, outputs: Sequence[Node], weights: Sequence[float]) -> Node:
    total: Node | None = None
    for node, weight in zip(outputs, weights, strict=True):
        term = graph.call_function(operator.mul, (node, float(weight)))
        total = term if total is None else graph.call_function(operator.add, (total, term))
    assert total is not None, "a network has an output"
    return total


def _joined(layers: Sequence[nn.Linear | None], weights: Sequence[float], classes: int, like: Tensor) -> nn.Linear:
    """Return the linear layer that equals the weighted sum of some, on their joined inputs; None stands for logits."""
    blocks, bias = [], like.new_zeros(classes)
    for layer, weight in zip(layers, weights, strict=True):
        own = torch.eye(classes, dtype=like.dtype, device=like.device) if layer is None else layer.weight
        blocks.append(own.detach() * weight)
        if layer is not None and layer.bias is not None:
            bias = bias + layer.bias.detach() * weight
    merged = torch.cat(blocks, 1)
    joined = nn.Linear(merged.shape[1], classes, device="meta", dtype=like.dtype).to_empty(device=like.device)
    with torch.no_grad():
        joined.weight.copy_(merged)
        joined.bias.copy_(bias)
    return joined
