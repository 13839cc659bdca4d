"""Treat a network with exits as a supernet whose sub-networks differ in the exit that they end at, and in nothing else.

The network itself is a `torch.fx` graph with an output per exit (`supernets.taps`). Trainers and evaluators that call a
supernet call this.
"""

import copy
from typing import ClassVar

from torch import Tensor, nn
from torch.fx import GraphModule

from supernets.backbone import Backbone
from supernets.graphs import alone, keep
from supernets.mobilenetv3 import Exits, Supernet, choose_exits
from supernets.space import Space, Subnet
from supernets.taps import HEADS


class MultiExit(nn.Module):
    """A network with exits, called as a supernet is.

    Args:
        network: Images -> a tuple of logits, the earliest exit first.
        architecture: What it is.
        resolutions: Image sides in pixels that its space offers.

    Raises:
        SpaceError: If it does not take images of a resolution.
    """

    needs_recalibration: ClassVar[bool] = False
    """All exits were trained with the same statistics of batch norm, so running ones are right."""

    def __init__(self, network: GraphModule, architecture: Backbone, resolutions: tuple[int, ...]) -> None:
        super().__init__()
        self.network = network
        self.architecture = architecture
        self.space: Space = architecture.space(resolutions)

    def forward(self, images: Tensor, subnet: Subnet, exits: Exits = "last") -> Tensor | tuple[Tensor, ...]:
        """Return the logits of a sub-network; arguments and result are those of `Supernet.forward`.

        All exits are computed, whichever are asked for.

        Raises:
            SpaceError: If the sub-network is outside the space, or an exit is not on its way.
        """
        self.space.check_architecture(subnet)
        outputs: tuple[Tensor, ...] = self.network(images)
        chosen = tuple(outputs[exit - 1] for exit in self.chosen_exits(subnet, exits))
        return chosen[0] if exits == "last" else chosen

    def extract(self, subnet: Subnet, exits: Exits = "last") -> GraphModule:
        """Return a sub-network as a module with weights of its own, in evaluation mode, as `Supernet.extract` does.

        Raises:
            SpaceError: If the sub-network is outside the space, or an exit is not on its way.
        """
        self.space.check_architecture(subnet)
        places = [exit - 1 for exit in self.chosen_exits(subnet, exits)]
        part = alone(self.network, places[0]) if exits == "last" else keep(self.network, places)
        return copy.deepcopy(part).eval()

    def set_dropout(self, p: float) -> None:
        """Set the dropout probability of the attached exits; the network's own head keeps its own."""
        for layer in self.network.get_submodule(HEADS).modules():
            if isinstance(layer, nn.Dropout):
                layer.p = p

    def chosen_exits(self, subnet: Subnet, exits: Exits) -> tuple[int, ...]:
        """Return the exits that a call returns the logits of, by number, as `Supernet.chosen_exits` does.

        Raises:
            SpaceError: If one is not on the sub-network's way.
        """
        return choose_exits(self.architecture.exits, subnet, exits)


Network = Supernet | MultiExit
"""What is trained, and sub-networks are taken out of."""
