"""A network with exits can be called as a supernet is."""

import pytest
import torch
from torch import nn

from supernets import SpaceError
from supernets.backbone import Backbone
from supernets.exit_heads import exit_head
from supernets.multi_exit import MultiExit
from supernets.taps import attach
from tests.supernets.plain_nets import CLASSES, Staged, images
from tests.supernets.test_taps import TAPS


@pytest.fixture
def net() -> MultiExit:
    heads = [exit_head("norm_linear", tap.channels, CLASSES) for tap in TAPS]
    arch = Backbone("staged", CLASSES, 3, 8, True, 0.0, "norm_linear", TAPS, ())
    return MultiExit(attach(Staged(), TAPS, heads), arch, (8, 12)).eval()


def test_calls_return_the_exits_that_are_asked_for(net: MultiExit) -> None:
    whole = net.network(images())
    largest, smallest = net.space.largest(), net.space.smallest()
    assert torch.equal(net(images(), largest), whole[2])
    assert torch.equal(net(images(), smallest), whole[0])
    assert all(map(torch.equal, net(images(), largest, "all"), whole))
    assert all(map(torch.equal, net(images(), largest, (1, 3)), (whole[0], whole[2])))
    with pytest.raises(SpaceError):
        net(images(), smallest, (2,))


def test_what_is_extracted_computes_the_same_with_weights_of_its_own(net: MultiExit) -> None:
    for subnet in net.space.corners():
        single, several = net.extract(subnet), net.extract(subnet, "all")
        assert torch.equal(single(images()), net(images(), subnet))
        assert all(map(torch.equal, several(images()), net(images(), subnet, "all")))
        assert not several.training
        for parameter in several.parameters():
            parameter.data.zero_()
    assert all(bool(parameter.any()) for parameter in net.parameters() if parameter.ndim > 1)


def test_dropout_is_set_on_attached_exits_alone(net: MultiExit) -> None:
    net.set_dropout(0.3)
    rates = {name: layer.p for name, layer in net.named_modules() if isinstance(layer, nn.Dropout)}
    assert {rate for name, rate in rates.items() if ".exits." in name} == {0.3}
    assert {rate for name, rate in rates.items() if ".exits." not in name} == {0.5}
