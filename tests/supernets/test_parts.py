"""The parts of a network are all that it is made of, and a space's parts are all that its networks need."""

import numpy as np
import pytest

import supernets
from supernets.parts import BlockPart, SkipPart, input_shapes, space_parts, subnet_parts
from tests.supernets.randomise import some_subnets
from tests.supernets.variants import VARIANTS


@pytest.mark.parametrize("variant", [*VARIANTS, "dense heads"])
def test_parts_in_a_row_are_the_network(variant: str) -> None:
    name, width = ("ee_dp", 8) if variant == "dense heads" else (variant, None)
    depth, sides = (1, 2, 4, 5), (32, 34)
    net = supernets.create(name, num_classes=3, width_mult=0.1, depth=depth, resolutions=sides, head_width=width)
    for subnet in some_subnets(net, 3):
        parts = [
            node.target if node.op != "call_module" else str(node.target).split(".")[-1]
            for part, _ in subnet_parts(net.architecture, subnet)
            for node in part.record(net).graph.nodes
            if node.op not in ("placeholder", "output")
        ]
        whole = [
            node.target if node.op != "call_module" else str(node.target).split(".")[-1]
            for node in net.extract(subnet).graph.nodes
            if node.op not in ("placeholder", "output")
        ]
        assert parts == whole


@pytest.mark.parametrize("variant", ["se_b", "ee_dp"])
def test_the_parts_of_a_space_are_those_of_its_networks(variant: str) -> None:
    net = supernets.create(variant, num_classes=3, width_mult=0.1, kernel=(3,), expand=(2, 3), resolutions=(32, 33, 40))
    every = {(part, side) for part, sides in space_parts(net.architecture, net.space) for side in sides}
    rng = np.random.default_rng(0)
    drawn = [net.space.sample(rng) for _ in range(1500)]
    assert {part for subnet in drawn for part in subnet_parts(net.architecture, subnet)} == every
    assert len({f"{part} @{side}" for part, side in every}) == len(every)


def test_what_a_part_is_called_and_given() -> None:
    arch = supernets.create("ee_dp", num_classes=3, resolutions=(64,)).architecture
    later = BlockPart(1, True, supernets.BlockChoice(5, 4, ("mbconv", "conv")))
    assert str(later) == "stage 2 later mbconv+conv k5 e4"
    assert input_shapes(arch, later, 8) == ((40, 8, 8),)
    assert input_shapes(arch, BlockPart(1, False, later.choice), 16) == ((24, 16, 16),)
    assert (str(SkipPart(0)), input_shapes(arch, SkipPart(0), 9)) == ("stage 1 skip", ((24, 9, 9),))
