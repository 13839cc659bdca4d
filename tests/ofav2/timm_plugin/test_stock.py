"""A stock timm MobileNetV3 with the same logits, or a refusal that names what timm lacks."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from timm.data import resolve_data_config
from timm.models.mobilenetv3 import MobileNetV3
from torch import Tensor

import ofav2
from ofav2.errors import UserError
from ofav2.timm_plugin import as_timm_mobilenetv3, stock
from supernets import Subnet, Supernet
from tests.ofav2 import tiny
from tests.ofav2.deploy.written import written

SIDES = (32, 40, 64)


def net_of(variant: str, **changes: Any) -> Supernet:
    choices = {"stem_stride": 2, "resolutions": SIDES, "kernel": (3, 5, 7), "expand": (3, 4, 6), "depth": (2, 3, 4)}
    return tiny.tiny_net(variant, **(choices | changes)).eval()


def agrees(folder: Path) -> MobileNetV3:
    model, own = as_timm_mobilenetv3(folder), ofav2.load_subnet(folder)
    assert type(model) is MobileNetV3
    for side in (*SIDES, 45):
        images: Tensor = torch.randn((2, 3, side, side), generator=torch.Generator().manual_seed(side))
        with torch.inference_mode():
            torch.testing.assert_close(model(images), own(images), rtol=1e-4, atol=1e-5)
    assert sum(each.numel() for each in model.parameters()) == sum(each.numel() for each in own.parameters())
    return model


@pytest.mark.parametrize("seed", range(4))
def test_random_networks_of_se_b(seed: int, tmp_path: Path) -> None:
    net = net_of("se_b", width_mult=(0.05, 0.25, 0.05, 0.1)[seed])
    agrees(written(tmp_path / "subnet", net, net.space.sample(np.random.default_rng([seed]))))


@pytest.mark.parametrize("expand", [(1,), (1, 2)])
def test_networks_without_expansion(expand: tuple[int, ...], tmp_path: Path) -> None:
    net = net_of("se_b", expand=expand)
    agrees(written(tmp_path / "subnet", net, net.space.smallest()))


def uniform(net: Supernet, **choices: Any) -> Subnet:
    return net.space.uniform(**choices)


@pytest.mark.parametrize(
    ("variant", "choices"),
    [
        ("ee_b", {"height": 3}),
        ("ee_b", {"height": 5}),
        ("se_d", {"depth": 2}),
        ("se_p", {"level": 1}),
        ("ee_dp", {"depth": 2, "level": 1, "height": 1}),
    ],
)
def test_networks_of_other_supernets_that_use_nothing_beyond_ofa(
    variant: str, choices: dict[str, Any], tmp_path: Path
) -> None:
    net = net_of(variant)
    agrees(written(tmp_path / "subnet", net, uniform(net, **choices)))


@pytest.mark.parametrize(
    ("variant", "changes", "choices", "message"),
    [
        ("se_d", {}, {"depth": 3}, "stage 1 sums dense skips over 3 blocks"),
        ("se_p", {}, {"level": ("conv",)}, "block 1 of stage 1 has the branches conv,"),
        ("se_p", {}, {"level": 2}, "branches mbconv, conv"),
        ("se_b", {"stem_stride": 1}, {}, "its stem has stride 1"),
    ],
)
def test_what_timm_lacks_is_refused_by_name(
    variant: str, changes: dict[str, Any], choices: dict[str, Any], message: str, tmp_path: Path
) -> None:
    net = net_of(variant, **changes)
    folder = written(tmp_path / "subnet", net, uniform(net, **choices))
    with pytest.raises(UserError, match=message) as refusal:
        as_timm_mobilenetv3(folder)
    assert "\n" not in str(refusal.value)


def test_one_dense_stage_among_plain_ones_is_refused(tmp_path: Path) -> None:
    net = net_of("se_d")
    subnet = replace(net.space.largest(), depth=(2, 2, 2, 3, 2))
    with pytest.raises(UserError, match="stage 4 sums dense skips"):
        as_timm_mobilenetv3(written(tmp_path / "subnet", net, subnet))


def test_several_exits_are_refused(tmp_path: Path) -> None:
    net = net_of("ee_b")
    with pytest.raises(UserError, match="returns a tuple"):
        as_timm_mobilenetv3(written(tmp_path / "subnet", net, net.space.largest(), exits="all"))


def test_timms_methods_work(tmp_path: Path) -> None:
    net = net_of("se_b")
    model = agrees(written(tmp_path / "subnet", net, net.space.smallest()))
    assert resolve_data_config({}, model=model)["input_size"] == (3, 32, 32)
    assert model.get_submodule(model.default_cfg["first_conv"]) is model.conv_stem
    model.reset_classifier(4)
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 4)


def test_torchs_own_generator_is_left_alone(tmp_path: Path) -> None:
    net = net_of("se_b")
    folder = written(tmp_path / "subnet", net, net.space.smallest())
    before = torch.get_rng_state()
    as_timm_mobilenetv3(folder)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_check_of_logits_bites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    block = stock._block
    monkeypatch.setattr(stock, "_block", lambda *given: block(*given) | {"act_layer": torch.nn.SiLU})
    net = net_of("se_b")
    with pytest.raises(ofav2.RunError, match="stock timm MobileNetV3 does not compute"):
        as_timm_mobilenetv3(written(tmp_path / "subnet", net, net.space.smallest()))
