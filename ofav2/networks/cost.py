"""Price sub-networks of a supernet, or a network's exits, from its description alone."""

from functools import lru_cache
from itertools import combinations

import torch
from torch.fx import GraphModule

from ofav2.errors import UserError
from supernets import Architecture, Exits, Subnet
from supernets.backbone import AnyArchitecture, Backbone
from supernets.cost import Cost, LayerCost, graph_cost, graph_layers, graph_steps
from supernets.graphs import alone, keep
from supernets.mobilenetv3 import choose_exits
from supernets.output_costs import output_costs
from supernets.subnet_cost import PartCost, layer_costs, stage_costs, subnet_cost
from supernets.taps import HEADS


def network_cost(arch: AnyArchitecture, subnet: Subnet, exits: Exits = "last") -> Cost:
    """Return the cost of a sub-network as it is extracted.

    Args:
        arch: The supernet, or network with exits: a loaded network's `architecture`.
        subnet: A network of its space.
        exits: Exits that it is extracted with: `last`, `all`, or exits by number.

    Returns:
        Parameters, and multiply-adds and memory in bytes per image.

    Raises:
        SpaceError: If the sub-network has no such exit.
        GraphError: If a network with exits can't be priced.
    """
    if isinstance(arch, Architecture):
        return subnet_cost(arch, subnet, exits)
    chosen = choose_exits(arch.exits, subnet, exits)
    return _cost(arch, subnet.resolution, chosen, exits == "last")


def subset_costs(arch: Backbone, resolution: int) -> dict[tuple[int, ...], Cost]:
    """Return the cost of every subset of a network's exits, with everything after its last exit left out.

    Args:
        arch: The network with exits.
        resolution: Side of its images in pixels.

    Returns:
        Costs by the exits that are kept, from the cheapest to the most expensive one.

    Raises:
        GraphError: If the network can't be priced.
    """
    subsets = [subset for count in arch.exits for subset in combinations(arch.exits, count)]
    choices = [[exit - 1 for exit in subset] for subset in subsets]
    costs = output_costs(_graph(arch), (arch.in_channels, resolution, resolution), choices)
    priced = zip(subsets, costs, strict=True)
    return dict(sorted(priced, key=lambda found: (found[1].macs, found[1].params, found[0])))


def network_layers(arch: AnyArchitecture, subnet: Subnet, exits: Exits = "last") -> tuple[LayerCost, ...]:
    """Return the cost of each layer with weights, in the order in which they run, named as in the extracted network.

    Args:
        arch: As for `network_cost`.
        subnet: A network of its space.
        exits: As for `network_cost`.

    Returns:
        For each layer its name, parameters and multiply-adds per image.

    Raises:
        SpaceError, GraphError: As `network_cost` raises them.
    """
    if isinstance(arch, Architecture):
        return layer_costs(arch, subnet, exits)
    part = _part(arch, choose_exits(arch.exits, subnet, exits), exits == "last")
    return graph_layers(part, (arch.in_channels, subnet.resolution, subnet.resolution))


def network_parts(arch: AnyArchitecture, subnet: Subnet, exits: Exits = "last") -> tuple[PartCost, ...]:
    """Return the cost of each part of a sub-network: stem, stages and exits.

    A network of timm has no stem apart, and its own head is a part of its last stage.

    Args:
        arch: As for `network_cost`.
        subnet: A network of its space.
        exits: As for `network_cost`; of a network of timm, `last` alone.

    Returns:
        For each part its name and cost, in the order in which they run.

    Raises:
        UserError: If other exits of a network of timm are asked for.
        SpaceError, GraphError: As `network_cost` raises them.
    """
    if isinstance(arch, Architecture):
        return stage_costs(arch, subnet, exits)
    if exits != "last":
        raise UserError(f"exits ({exits}) of a network of timm are not priced part by part: take last, or network_cost")
    parts, before = [PartCost("stem", Cost(0, 0))], Cost(0, 0)
    for exit in range(1, subnet.height + 1):
        head = _head(arch, subnet.resolution, exit)
        whole = _cost(arch, subnet.resolution, (exit,), True)
        body = Cost(whole.params - head.params, whole.macs - head.macs)
        own = Cost(body.params - before.params, body.macs - before.macs, whole.memory)
        parts.append(PartCost(f"stage {exit}", own))
        before = body
    return (*parts, PartCost(f"exit {subnet.height}", _head(arch, subnet.resolution, subnet.height)))


def _head(arch: Backbone, resolution: int, exit: int) -> Cost:
    """Return parameters and multiply-adds of an attached exit's head; nothing of the network's own."""
    if exit == arch.exits[-1]:
        return Cost(0, 0)
    steps = graph_steps(alone(_graph(arch), exit - 1), (arch.in_channels, resolution, resolution))
    own = [step for step in steps if step.name == f"{HEADS}.{exit}"]
    return Cost(sum(step.params for step in own), sum(step.macs for step in own))


@lru_cache(maxsize=4096)
def _cost(arch: Backbone, resolution: int, exits: tuple[int, ...], single: bool) -> Cost:
    return graph_cost(_part(arch, exits, single), (arch.in_channels, resolution, resolution))


def _part(arch: Backbone, exits: tuple[int, ...], single: bool) -> GraphModule:
    network = _graph(arch)
    return alone(network, exits[0] - 1) if single else keep(network, [exit - 1 for exit in exits])


@lru_cache(maxsize=8)
def _graph(arch: Backbone) -> GraphModule:
    """Return a network with exits on the meta device, without weights."""
    # Supernets are priced without timm.
    from ofav2.networks.backbone import trace_backbone

    with torch.device("meta"):
        return trace_backbone(arch)
