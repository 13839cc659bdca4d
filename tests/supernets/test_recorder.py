"""Extracted sub-networks are the supernet's, to the last bit, and stand on their own."""

import copy
import threading
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from supernets import BRANCHES, Subnet, Supernet
from tests.supernets.randomise import exit_choices, images_for, randomise, small_net, some_subnets
from tests.supernets.variants import VARIANTS


def as_tuple(logits: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (logits,) if isinstance(logits, Tensor) else logits


def same(one: Tensor | tuple[Tensor, ...], other: Tensor | tuple[Tensor, ...]) -> bool:
    if type(one) is not type(other) or len(as_tuple(one)) != len(as_tuple(other)):
        return False
    return all(torch.equal(a, b) for a, b in zip(as_tuple(one), as_tuple(other), strict=True))


def mixed_subnet(net: Supernet) -> Subnet:
    """A small sub-network with every kind of block that the supernet has."""
    branches = [BRANCHES, ("mbconv", "conv"), ("transform",)] if net.architecture.parallel else [("mbconv",)] * 3
    level = ((branches[0], branches[1]), (branches[2], branches[0])) * 3
    largest = net.space.largest()
    height = 4 if net.architecture.exits == (1, 2, 3, 4, 5) else 5
    return replace(largest, height=height, depth=(2,) * 5, level=level[:5], kernel=((3, 7),) * 5, expand=((6, 3),) * 5)


@pytest.mark.parametrize("name", VARIANTS)
def test_extracted_networks_compute_exactly_what_the_supernet_computes(name: str) -> None:
    net = small_net(name, seed=1, dtype=torch.float32)
    for i, subnet in enumerate([mixed_subnet(net), *some_subnets(net, 2, seed=2)]):
        images = images_for(net, 2, 48, 32 + 5 * i, seed=i)
        for exits in exit_choices(net, subnet):
            with torch.no_grad():
                expected = net(images, subnet, exits)
                module = net.extract(subnet, exits)
                assert same(module(images), expected), (subnet, exits)
            assert not module.training


def test_different_sub_networks_give_different_logits() -> None:
    """The canary of the test above: equality would also hold if the sub-network were not looked at."""
    net = small_net("ee_dp", seed=3)
    images = images_for(net)
    largest = net.space.largest()
    changes: list[dict[str, Any]] = [
        {"kernel": (*largest.kernel[:4], (7, 7, 7, 5))},
        {"expand": (*largest.expand[:4], (6, 6, 6, 4))},
        {"depth": (4, 4, 4, 4, 3)},
        {"level": (*largest.level[:4], (BRANCHES, BRANCHES, BRANCHES, BRANCHES[:2]))},
        {"height": 4},
    ]
    subnets = [largest, *(replace(largest, **change) for change in changes)]
    with torch.no_grad():
        logits = [net.extract(subnet)(images) for subnet in subnets]
    for i, one in enumerate(logits):
        assert all(not torch.allclose(one, other, rtol=1e-6) for other in logits[:i])


@pytest.mark.parametrize("name", VARIANTS)
def test_only_stock_torch_is_inside(name: str) -> None:
    net = small_net(name, seed=4)
    module = net.extract(mixed_subnet(net), "all")
    for part in module.modules():
        assert type(part).__module__.split(".")[0] == "torch", type(part)
    stock = {nn.Conv2d, nn.BatchNorm2d, nn.Linear, nn.Dropout}
    leaves = [part for part in module.modules() if not any(part.children())]
    assert {type(leaf) for leaf in leaves} == stock
    for node in module.graph.nodes:
        if node.op == "call_function":
            assert node.target.__module__.split(".")[0] in ("torch", "_operator"), node.target
        elif node.op == "call_method":
            assert hasattr(Tensor, node.target), node.target
        else:
            assert node.op in ("placeholder", "call_module", "output"), node.op


@pytest.mark.parametrize("name", ["se_b", "ee_dp"])
def test_an_extracted_network_lacks_what_does_not_run(name: str) -> None:
    net = small_net(name, seed=5)
    smallest = net.space.smallest()
    largest = net.space.largest()
    sizes = [sum(p.numel() for p in net.extract(subnet).parameters()) for subnet in (smallest, largest)]
    whole = sum(p.numel() for p in net.parameters())
    assert sizes[0] < sizes[1] < whole
    names = set(net.extract(smallest).state_dict())
    stages = {key.split(".")[1] for key in names if key.startswith("stages.")}
    exits = {key.split(".")[1] for key in names if key.startswith("exits.")}
    assert stages == {str(stage) for stage in range(smallest.height)}
    assert exits == {str(smallest.height)}
    assert {key.split(".")[3] for key in names if key.startswith("stages.")} == {"0", "1"}
    assert not any("matrices" in key for key in names)


def test_an_extracted_network_has_weights_of_its_own() -> None:
    net = small_net("ee_dp", seed=6)
    images = images_for(net)
    subnet = net.space.largest()
    module = net.extract(subnet)
    with torch.no_grad():
        before, of_net = module(images), net(images, subnet)
        randomise(net, 7)
        assert torch.equal(module(images), before)
        assert not torch.equal(net(images, subnet), of_net)
        of_net = net(images, subnet)
        randomise(module, 8)
        assert torch.equal(net(images, subnet), of_net)
    held = {tensor.untyped_storage().data_ptr() for tensor in net.state_dict().values()}
    assert all(tensor.untyped_storage().data_ptr() not in held for tensor in module.state_dict().values())
    assert all(p.is_leaf and p.requires_grad and p.grad is None for p in module.parameters())


@pytest.mark.parametrize("training", [True, False])
def test_extraction_leaves_the_supernet_as_it_was(training: bool) -> None:
    net = small_net("ee_dp", seed=9).train(training)
    before = {key: (tensor.clone(), tensor._version) for key, tensor in net.state_dict(keep_vars=True).items()}
    module = net.extract(net.space.largest(), "all")
    assert not module.training
    assert all(part.training is training for part in net.modules())
    assert not any(part.training for part in module.modules())
    for key, tensor in net.state_dict(keep_vars=True).items():
        assert torch.equal(tensor, before[key][0])
        assert tensor._version == before[key][1]
    again = small_net("ee_dp", seed=9)
    images = images_for(net)
    with torch.no_grad():
        assert same(module(images), again(images, net.space.largest(), "all"))


def test_extraction_and_computing_threads_do_not_disturb_each_other() -> None:
    net = small_net("ee_dp", seed=10)
    images = images_for(net)
    small, large = net.space.uniform(depth=2, level=2), net.space.largest()
    with torch.no_grad():
        expected = net(images, small), net(images, large)
    start = threading.Barrier(3)
    computed: list[Tensor] = []
    extracted: dict[int, list[GraphModule]] = {0: [], 1: []}

    def compute() -> None:
        start.wait()
        with torch.no_grad():
            computed.extend(net(images, small) for _ in range(12))

    def extract(i: int, subnet: Subnet) -> None:
        start.wait()
        extracted[i].extend(net.extract(subnet) for _ in range(4))

    threads = [threading.Thread(target=compute)]
    threads += [threading.Thread(target=extract, args=(i, subnet)) for i, subnet in enumerate((small, large))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(computed) == 12
    assert all(torch.equal(logits, expected[0]) for logits in computed)
    for i, modules in extracted.items():
        assert len(modules) == 4
        with torch.no_grad():
            assert all(torch.equal(module(images), expected[i]) for module in modules)


def test_an_extracted_network_trains_as_the_supernet_trains() -> None:
    """In training mode: batch statistics, their running means, dropout, gradients."""
    net = small_net("ee_dp", seed=11, dropout=0.0).train()
    subnet = mixed_subnet(net)
    module = net.extract(subnet, "all").train()
    images = images_for(net, 4, 64, 64)
    logits, expected = module(images), net(images, subnet, "all")
    assert same(logits, expected)
    for tensors in (logits, expected):
        sum(tensor.square().sum() for tensor in tensors).backward()
    for key, parameter in module.named_parameters():
        assert parameter.grad is not None, key
        if "depthwise.weight" in key and not key.startswith("first."):
            continue  # The supernet's kernels get theirs through the kernel matrices.
        grad = net.get_parameter(key).grad
        assert grad is not None
        cut = grad[tuple(slice(size) for size in parameter.shape)]
        torch.testing.assert_close(parameter.grad, cut, rtol=1e-9, atol=1e-12)
    buffers = dict(net.named_buffers())
    for key, buffer in module.named_buffers():
        if not key.endswith("num_batches_tracked"):
            assert torch.equal(buffer, buffers[key][: len(buffer)]), key


def test_dropout_is_the_supernets_and_works_in_training_mode() -> None:
    net = small_net("se_b", seed=12, dropout=0.4)
    module = net.extract(net.space.smallest())
    assert [part.p for part in module.modules() if isinstance(part, nn.Dropout)] == [0.4]
    images = images_for(net, 4, 64, 64)
    with torch.no_grad():
        assert torch.equal(module(images), module(images))
        module.train()
        assert not torch.equal(module(images), module(images))


def test_copies_and_state_dicts() -> None:
    net = small_net("ee_dp", seed=13)
    images, subnet = images_for(net), mixed_subnet(net)
    module = net.extract(subnet, "all")
    duplicate = copy.deepcopy(module)
    other = small_net("ee_dp", seed=14).extract(subnet, "all")
    with torch.no_grad():
        expected = module(images)
        assert same(duplicate(images), expected)
        assert not same(other(images), expected)
        other.load_state_dict(module.state_dict(), strict=True)
        assert same(other(images), expected)
        randomise(module, 15)
        assert same(duplicate(images), expected)


def test_memory_formats() -> None:
    net = small_net("ee_dp", seed=16)
    subnet = mixed_subnet(net)
    images = images_for(net)
    with torch.no_grad():
        expected = net.extract(subnet)(images)
        module = net.extract(subnet).to(memory_format=torch.channels_last)
        got = module(images.to(memory_format=torch.channels_last))
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
        got = net(images.to(memory_format=torch.channels_last), subnet)
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
