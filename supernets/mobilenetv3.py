"""Build the supernet: one class; early exits, dense skips and parallel blocks are flags of its architecture.

The sub-network is an argument of every call. Nothing active is stored in the module, so two threads, or a teacher and
its students, can run different sub-networks of the same weights at the same time.
"""

import math
from collections.abc import Sequence
from typing import ClassVar, Literal, overload

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from supernets.architecture import Architecture
from supernets.blocks import ConvNorm, InvertedResidual, build_stage
from supernets.heads import build_head
from supernets.layers import Dropout, ElasticConv2d, ElasticDepthwise, Linear, PixelLinear
from supernets.recorder import record, record_parts
from supernets.space import Space, SpaceError, Subnet

Exits = Literal["last", "all"] | Sequence[int]
"""Which exits' outputs a call returns: the sub-network's own, all up to it, or these (from 1)."""


class Supernet(nn.Module):
    """A MobileNetV3-Large-style supernet (OFAv2, section 3; with no flag set, OFA's).

    Args:
        architecture: Its channels, strides, activations and choices.
        resolutions: Image sides in pixels that its space offers.
        dropout: Dropout probability before each exit's classifier.
        seed: Seed of the initial weights.

    Raises:
        SpaceError: If a resolution is smaller than the network's total stride.
    """

    needs_recalibration: ClassVar[bool] = True
    """No sub-network has the statistics of batch norm that training leaves in the supernet."""

    def __init__(self, architecture: Architecture, resolutions: tuple[int, ...], dropout: float, seed: int) -> None:
        super().__init__()
        self.architecture = architecture
        self.space: Space = architecture.space(resolutions)
        self.stem = ConvNorm(architecture.in_channels, architecture.stem_channels, 3, architecture.stem_stride)
        self.stem_act = nn.Hardswish()
        self.first = InvertedResidual(
            architecture.stem_channels,
            architecture.stem_channels,
            kernels=(3,),
            expands=(1,),
            stride=1,
            act="relu",
            squeeze_excite=False,
        )
        self.stages = nn.ModuleList(build_stage(architecture, stage) for stage in range(len(architecture.stages)))
        self.exits = nn.ModuleDict({str(exit): build_head(architecture, exit, dropout) for exit in architecture.exits})
        initialise(self, torch.Generator().manual_seed(seed))

    def features(self, images: Tensor, subnet: Subnet) -> tuple[Tensor, ...]:
        """Return the outputs of the stem and of the body stages that the sub-network runs.

        Args:
            images: (N, in_channels, H, W), normalised.
            subnet: The sub-network; its resolution is not looked at.

        Returns:
            One tensor (N, C_i, H_i, W_i) for stem and first block, and one per stage up to the sub-network's exit.

        Raises:
            SpaceError: If the sub-network is outside the supernet's space.
        """
        self.space.check_architecture(subnet)
        outputs: list[Tensor] = [self.first(self.stem_act(self.stem(images)), 3, 1)]
        for stage in range(subnet.height):
            outputs.append(self.stages[stage](outputs[-1], subnet.blocks(stage)))
        return tuple(outputs)

    @overload
    def forward(self, images: Tensor, subnet: Subnet, exits: Literal["last"] = "last") -> Tensor: ...
    @overload
    def forward(self, images: Tensor, subnet: Subnet, exits: Literal["all"] | Sequence[int]) -> tuple[Tensor, ...]: ...
    @overload
    def forward(self, images: Tensor, subnet: Subnet, exits: Exits) -> Tensor | tuple[Tensor, ...]: ...

    def forward(self, images: Tensor, subnet: Subnet, exits: Exits = "last") -> Tensor | tuple[Tensor, ...]:
        """Return the outputs of a sub-network.

        Args:
            images: (N, in_channels, H, W), normalised; for dense heads, H and W are multiples of the stem's stride.
            subnet: The sub-network; its resolution is not looked at.
            exits: `last`, `all`, or exits by number, ascending.

        Returns:
            Output (N, outputs), or (N, outputs, H, W) of dense heads, of the sub-network's own exit for `last`; else a
            tuple of such tensors, one per exit.

        Raises:
            SpaceError: If the sub-network is outside the supernet's space, or an exit is not on its way.
        """
        chosen = self.chosen_exits(subnet, exits)
        features = self.features(images, subnet)
        outputs = tuple(self._output(exit, features) for exit in chosen)
        return outputs[0] if exits == "last" else outputs

    def _output(self, exit: int, features: Sequence[Tensor]) -> Tensor:
        output: Tensor = self.exits[str(exit)](*(features[index] for index in self.architecture.head_reads(exit)))
        return output

    def extract(self, subnet: Subnet, exits: Exits = "last") -> GraphModule:
        """Return the sub-network as a plain torch module with weights of its own, in evaluation mode.

        Args:
            subnet: The sub-network; its resolution is not looked at.
            exits: `last`, `all`, or exits by number, ascending.

        Returns:
            A module of stock torch layers: `module(images)` gives what `net(images, subnet, exits)` gives. Batch-norm
            statistics are the supernet's; recalibrate them before evaluating the network.

        Raises:
            SpaceError: If the sub-network is outside the supernet's space, or an exit is not on its way.
        """
        module = record(self, subnet, exits)
        module.eval()
        return module

    def extract_parts(self, subnet: Subnet, exits: Exits = "last") -> tuple[GraphModule, GraphModule]:
        """Return the sub-network as two plain modules for inference: all up to its first block, and the rest.

        Networks with equal choices for that block have equal first parts. `rest(first(images))` is what the module
        that `extract` gives makes of the images, to the bit. A network with dense heads has no such parts, as they read
        the stem's output.

        Args:
            subnet: The sub-network; its resolution is not looked at.
            exits: `last`, `all`, or exits by number, ascending.

        Raises:
            SpaceError: If the sub-network is outside the supernet's space, or an exit is not on its way.
        """
        assert self.architecture.head_width is None, "a single tensor leads from one part to the other"
        first, rest = record_parts(self, "stages.0.blocks.0", subnet, exits)
        return first.eval(), rest.eval()

    def set_dropout(self, p: float) -> None:
        """Set the dropout probability of all exits."""
        for module in self.modules():
            if isinstance(module, Dropout):
                module.p = p

    def chosen_exits(self, subnet: Subnet, exits: Exits) -> tuple[int, ...]:
        """Return the exits that a call of this sub-network returns the logits of, by number.

        Raises:
            SpaceError: If one is not on its way.
        """
        return choose_exits(self.architecture.exits, subnet, exits)


def choose_exits(numbers: Sequence[int], subnet: Subnet, exits: Exits) -> tuple[int, ...]:
    """Return the exits that a call of a sub-network returns the logits of, by number.

    Args:
        numbers: All exits of the network, ascending.
        subnet: The sub-network.
        exits: `last`, `all`, or exits by number, ascending.

    Raises:
        SpaceError: If one is not on the sub-network's way.
    """
    if exits == "last":
        return (subnet.height,)
    there = tuple(exit for exit in numbers if exit <= subnet.height)
    if exits == "all":
        return there
    listed = ", ".join(map(str, there))
    if not isinstance(exits, Sequence) or isinstance(exits, str) or not exits:
        raise SpaceError(f"exits ({exits!r}) must be 'last', 'all' or ascending numbers out of {listed}")
    for exit in exits:
        if not isinstance(exit, int) or isinstance(exit, bool) or exit not in there:
            raise SpaceError(f"exits ({exit!r}) is no exit of this sub-network: it passes {listed}")
    if list(exits) != sorted(set(exits)):
        raise SpaceError(f"exits ({exits!r}) must be ascending, each once, out of {listed}")
    return tuple(exits)


def initialise(net: nn.Module, generator: torch.Generator) -> None:
    """Draw all weights: He normal with fan-out for convolutions, as OFA has it; kernel matrices are left alone.

    The fan-out of a depthwise convolution counts all its channels (OFA's form); batch norm makes up for the scale.
    A network on the meta device has no values, and stays as it is.
    """
    if next(net.parameters()).is_meta:
        return
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, ElasticConv2d | ElasticDepthwise):
                fan_out = module.weight.shape[0] * module.weight.shape[2] * module.weight.shape[3]
                module.weight.normal_(0.0, math.sqrt(2.0 / fan_out), generator=generator)
            elif isinstance(module, Linear | PixelLinear):
                bound = 1.0 / math.sqrt(module.weight.shape[1])
                module.weight.uniform_(-bound, bound, generator=generator)
