"""Measures the memory of a recorded network the slow way: it runs, and the storages that are left are looked at."""

import operator
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node


class Memory(Interpreter):
    """Runs a graph layer by layer, drops each tensor after its last use, and looks at the storages that are left.

    Nothing runs in place. Weights do not count.
    """

    def __init__(self, module: GraphModule) -> None:
        super().__init__(module)
        self.most = 0
        self.weights = {tensor.untyped_storage().data_ptr() for tensor in (*module.parameters(), *module.buffers())}
        for layer in module.modules():
            if getattr(layer, "inplace", False):
                layer.inplace = False  # type: ignore[assignment]

    def run_node(self, n: Node) -> Any:
        made = super().run_node(n)
        alive = [value for value in _flat((*self.env.values(), made)) if isinstance(value, Tensor)]
        storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in alive}
        self.most = max(self.most, sum(size for pointer, size in storages.items() if pointer not in self.weights))
        return made if n.users or n.op == "output" else None

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if target is operator.iadd:
            target = operator.add
        return super().call_function(target, args, {**kwargs, **({"inplace": False} if "inplace" in kwargs else {})})


def most_alive(module: GraphModule, shape: tuple[int, ...]) -> int:
    """Return the most bytes of activations that are alive while the network runs on one input of this shape."""
    memory = Memory(module)
    with torch.inference_mode():
        memory.run(torch.zeros(1, *shape))
    return memory.most


def _flat(values: Any) -> list[Any]:
    return [leaf for value in values for leaf in (_flat(value) if isinstance(value, tuple | list) else [value])]
