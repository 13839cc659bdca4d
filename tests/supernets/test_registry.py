"""The eight supernets: sizes as published, fresh weights from a seed, and clear refusals."""

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import supernets
from supernets import SpaceError
from tests.supernets.randomise import images_for, randomise, some_subnets
from tests.supernets.variants import VARIANTS

NAMES = ("se_b", "se_d", "se_p", "se_dp", "ee_b", "ee_d", "ee_p", "ee_dp")
# Width 1.0 and 1.2, 200 classes (OFAv2's table).
PARAMETERS = {
    "se_b": (6_654_080, 9_486_152),
    "se_d": (6_654_080, 9_486_152),
    "se_p": (6_864_160, 9_790_592),
    "se_dp": (6_864_160, 9_790_592),
    "ee_b": (8_208_032, 11_626_456),
    "ee_d": (8_208_032, 11_626_456),
    "ee_p": (8_418_112, 11_930_896),
    "ee_dp": (8_418_112, 11_930_896),
}


def test_names() -> None:
    assert supernets.names() == NAMES


@pytest.mark.parametrize(("name", "width"), list(product(NAMES, (0, 1))))
def test_parameter_counts_of_the_paper(name: str, width: int) -> None:
    net = supernets.create(name, num_classes=200, width_mult=(1.0, 1.2)[width])
    assert sum(p.numel() for p in net.parameters() if p.requires_grad) == PARAMETERS[name][width]


def test_the_largest_network_costs_what_ofa_says() -> None:
    """Multiply-adds are those of all convolutions (squeeze-excite's too) and linear layers, half of torch's operations.

    Biases, norms, activations, pooling and sums are not counted.
    """
    net = supernets.create("se_b", num_classes=200)
    module = net.extract(net.space.largest())
    assert sum(p.numel() for p in module.parameters()) == 6_639_960
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(torch.zeros(1, 3, 64, 64))
    assert counter.get_total_flops() == 2 * 49_798_016
    matrices = sum(p.numel() for name, p in net.named_parameters() if "matrices" in name)
    assert matrices == 14_120 == 6_654_080 - 6_639_960


def test_the_space_of_a_variant_is_its_own() -> None:
    for name in NAMES:
        space = supernets.create(name, num_classes=10, width_mult=0.25).space
        assert space.level == ((1, 2, 3) if name in ("se_p", "se_dp", "ee_p", "ee_dp") else (1,))
        assert space.height == ((1, 2, 3, 4, 5) if name.startswith("ee") else (5,))
        assert space.resolution == (48, 52, 56, 60, 64)


class TestWeights:
    def test_a_seed_names_the_weights(self) -> None:
        one, same, other = (supernets.create("ee_dp", num_classes=4, width_mult=0.25, seed=s) for s in (3, 3, 4))
        pairs = zip(one.state_dict().items(), same.state_dict().values(), strict=True)
        assert all(torch.equal(a, b) for (_, a), b in pairs)
        drawn = [n for n, p in one.named_parameters() if p.ndim > 1 and "matrices" not in n]
        assert all(not torch.equal(one.get_parameter(n), other.get_parameter(n)) for n in drawn)

    def test_global_generators_are_left_alone(self) -> None:
        before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
        supernets.create("ee_dp", num_classes=4, width_mult=0.25)
        assert torch.equal(before, torch.get_rng_state())
        assert np.array_equal(numpy_before, np.random.get_state()[1])

    def test_convolutions_are_he_normal_by_fan_out_and_matrices_identities(self) -> None:
        net = supernets.create("se_b", num_classes=10)
        for name, shape_of_spread in (
            ("stages.4.blocks.1.mbconv.expand", (2 / 960) ** 0.5),
            ("stages.4.blocks.1.mbconv.project", (2 / 160) ** 0.5),
            ("stages.4.blocks.1.mbconv.depthwise", (2 / (960 * 49)) ** 0.5),
            ("exits.5.mix", (2 / 1280) ** 0.5),
        ):
            weight = net.get_parameter(f"{name}.weight")
            assert weight.std().item() == pytest.approx(shape_of_spread, rel=0.03)
            assert abs(weight.mean().item()) < 0.03 * shape_of_spread
        for name, parameter in net.named_parameters():
            if "matrices" in name:
                assert torch.equal(parameter, torch.eye(len(parameter)))

    def test_training_mode_and_dropout(self) -> None:
        net = supernets.create("ee_b", num_classes=4, width_mult=0.25, dropout=0.3)
        assert net.training
        assert [exit.dropout.p for exit in net.exits.values()] == [0.3] * 5


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize(
    "choices",
    [
        {"kernel": (3, 7), "expand": (1,), "depth": (3,), "width_mult": 0.05, "resolutions": [33]},
        *(
            pytest.param(choices, marks=pytest.mark.slow)
            for choices in (
                {"kernel": (3,), "expand": (2, 4), "depth": (1, 2), "resolutions": (32, 40)},
                {"in_channels": 13, "stem_stride": 1, "resolutions": (16, 28)},
            )
        ),
    ],
)
def test_other_choices_run_and_extract(name: str, choices: dict[str, Any]) -> None:
    net = supernets.create(name, **{"num_classes": 5, "width_mult": 0.25} | choices)
    randomise(net, 0)
    net.eval()
    for subnet in some_subnets(net, 2):
        images = images_for(net, 2, subnet.resolution, subnet.resolution)
        with torch.no_grad():
            logits = net(images, subnet)
            assert logits.shape == (2, 5)
            assert logits.isfinite().all()
            assert torch.equal(net.extract(subnet)(images), logits)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ee-dp", r"'ee-dp'.*did you mean ee_dp.*se_b, se_d"),
        ("EE_DP", "'EE_DP'"),
        ("resnet", "'resnet'.*se_b, se_d, se_p, se_dp, ee_b, ee_d, ee_p, ee_dp"),
        ("", "''"),
        (None, "None"),
        ([], r"\[\]"),
        ({}, r"\{\}"),
    ],
)
def test_unknown_names_list_what_there_is(name: Any, message: str) -> None:
    with pytest.raises(SpaceError, match=message):
        supernets.create(name, num_classes=10)


HOSTILE: dict[str, list[Any]] = {
    "num_classes": [None, 0, -1, 2.0, True, "10", [], 10**9],
    "in_channels": [None, 0, 3.0, True, "3", 10**9],
    "width_mult": [None, "1", float("nan"), float("inf"), 0, -1.0, 100, True, []],
    "stem_stride": [None, 0, 3, 4, True, "2", []],
    "dropout": [None, -0.1, 1, 1.5, float("nan"), True, "0.1", []],
    "seed": [None, -1, 1.5, "0", True, 2**63],
    "kernel": [None, 3, "3", (), (4,), (3, 4), (0,), (-3,), (33,), (3, 3), (True,), (3.0,), ([],), {3}],
    "expand": [None, 6, (), (0,), (17,), (3, 3), (3.5,), ({},)],
    "depth": [None, 4, (), (0,), (17,), (2, 2), ("2",)],
    "resolutions": [None, 64, "64", (), (0,), (31,), (64, 8), (64.0,), (True,), ("64",), ([],), {64}],
}


@pytest.mark.parametrize(("argument", "value"), [(name, value) for name, values in HOSTILE.items() for value in values])
def test_bad_arguments_are_refused_by_name(argument: str, value: Any) -> None:
    # The space, which is told the resolutions, calls them by its dimension.
    named = "resolution" if argument == "resolutions" else argument
    with pytest.raises(SpaceError, match=named) as refusal:
        supernets.create("ee_dp", **{"num_classes": 5, "width_mult": 0.25, argument: value})
    assert "\n" not in str(refusal.value)
