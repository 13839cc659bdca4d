"""timm's own code takes an extracted network: configuration, transforms, validation, a training step, a new head."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config, resolve_model_data_config
from timm.loss import LabelSmoothingCrossEntropy
from timm.models import PretrainedCfg
from timm.optim import create_optimizer_v2
from timm.utils import AverageMeter, ModelEmaV3, accuracy
from torch import Tensor, nn

import ofav2
import ofav2.timm_plugin
import ofav2.timm_plugin.model
from ofav2.errors import RunError, UserError
from ofav2.networks.backbone import describe_backbone, make_backbone
from supernets.multi_exit import MultiExit
from tests.ofav2 import tiny
from tests.ofav2.deploy.written import written
from tests.supernets.variants import VARIANTS


@pytest.fixture(params=VARIANTS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    net = tiny.tiny_net(request.param).eval()
    return written(tmp_path / "subnet", net, net.space.sample(np.random.default_rng([1])))


@pytest.fixture
def single(tmp_path: Path) -> Path:
    net = tiny.tiny_net("ee_dp").eval()
    return written(tmp_path / "single", net, net.space.largest())


def images(count: int = 3) -> Tensor:
    return torch.randn((count, 3, 20, 20), generator=torch.Generator().manual_seed(count))


def create(folder: Path, **settings: Any) -> Any:
    return timm.create_model("ofav2_subnet", subnet_dir=str(folder), **settings)


def test_parts_make_up_the_network(folder: Path) -> None:
    model, own = create(folder).eval(), ofav2.load_subnet(folder)
    with torch.inference_mode():
        features = model.forward_features(images())
        hidden = model.forward_head(features, pre_logits=True)
        assert features.shape[:2] == (3, model.num_features)
        assert features.ndim == 4
        assert hidden.shape == (3, model.head_hidden_size)
        assert torch.equal(model.get_classifier()(hidden), own(images()))
        assert torch.equal(model.forward_head(features), own(images()))
        assert torch.equal(model(images()), own(images()))
    assert sum(each.numel() for each in model.parameters()) == sum(each.numel() for each in own.parameters())


def test_timm_finds_an_extracted_network_by_name() -> None:
    assert "ofav2_subnet" in timm.list_models("ofav2*")
    assert timm.is_model("ofav2_subnet")


def test_data_configuration_and_transform(single: Path) -> None:
    model = create(single)
    config = resolve_data_config({}, model=model)
    assert config == resolve_model_data_config(model)
    assert config["input_size"] == (3, 20, 20)
    assert config["mean"] == (0.5, 0.4, 0.3)
    assert config["std"] == (0.25, 0.3, 0.2)
    assert config["crop_pct"] == 0.875
    assert config["interpolation"] == "bilinear"
    assert model.default_cfg is model.pretrained_cfg
    assert model.default_cfg["num_classes"] == model.num_classes == 5
    assert PretrainedCfg(**model.default_cfg).label_names == tuple(f"class {number}" for number in range(5))
    view = create_transform(**config)(Image.new("RGB", (40, 30)))
    assert view.shape == (3, 20, 20)
    assert isinstance(model.get_submodule(model.default_cfg["first_conv"]), nn.Conv2d)
    assert model.get_submodule(model.default_cfg["classifier"]) is model.get_classifier()


def test_a_validation_loop_in_timms_manner(single: Path) -> None:
    model, own = create(single).eval(), ofav2.load_subnet(single)
    batch, top1, top5 = images(16), AverageMeter(), AverageMeter()
    labels = own(batch).argmax(1).roll(1)
    with torch.inference_mode():
        first, fifth = accuracy(model(batch), labels, topk=(1, 5))
    top1.update(first.item(), len(batch))
    top5.update(fifth.item(), len(batch))
    assert top1.avg == pytest.approx(100 * (own(batch).argmax(1) == labels).float().mean().item())
    assert top5.avg == 100


def test_training_steps_in_timms_manner_lower_the_loss(single: Path) -> None:
    model = create(single, num_classes=3, drop_rate=0.0).train()
    optimizer = create_optimizer_v2(model, opt="adamw", lr=0.01, weight_decay=0.05)
    average = ModelEmaV3(model, decay=0.9)
    batch, labels, loss_of = images(6), torch.tensor([0, 1, 2, 0, 1, 2]), LabelSmoothingCrossEntropy(0.1)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = loss_of(model(batch), labels)
        loss.backward()
        optimizer.step()
        average.update(model)
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 1.5
    saved = model.state_dict()
    create(single, num_classes=3).load_state_dict(saved, strict=True)


def test_another_number_of_classes_gets_a_new_classifier(single: Path) -> None:
    model, plain = create(single, num_classes=7).eval(), create(single).eval()
    with torch.inference_mode():
        assert torch.equal(model.forward_features(images()), plain.forward_features(images()))
        assert model(images()).shape == (3, 7)
        assert model.num_classes == 7
        model.reset_classifier(0)
        hidden = model.forward_head(model.forward_features(images()), pre_logits=True)
        assert torch.equal(model(images()), hidden)
    assert isinstance(model.get_classifier(), nn.Identity)
    model.double().reset_classifier(2, "avg")
    assert model(images().double()).dtype == torch.float64


def test_a_new_classifier_takes_no_draw_from_torchs_own_generator(single: Path) -> None:
    before = torch.get_rng_state()
    first, second = create(single, num_classes=7), create(single, num_classes=7)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.get_classifier().weight, second.get_classifier().weight)


def test_dropout_acts_in_training_alone(single: Path) -> None:
    model = create(single, drop_rate=0.5)
    features = model.eval().forward_features(images())
    assert torch.equal(model.forward_head(features), model.forward_head(features))
    assert not torch.equal(model.train().forward_head(features), model.forward_head(features))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"in_chans": 1}, r"in_chans \(1\) must be the network's 3"),
        ({"global_pool": "max"}, r"global_pool \('max'\) must be avg"),
        ({"num_classes": -1}, r"num_classes \(-1\)"),
        ({"pretrained_cfg": {"url": "x"}}, "pretrained_cfg has no effect"),
        ({"drop_path_rate": 0.1}, r"drop_path_rate \(0\.1\) is not there for ofav2_subnet: leave it out"),
        ({"output_stride": 8}, r"output_stride \(8\) is not there"),
        ({"out_indices": (1, 2)}, r"out_indices \(\(1, 2\)\) has no effect without features_only"),
        ({"features_only": True, "out_indices": (1, 6)}, r"out_indices \(\(1, 6\)\) must be out of .* 0 to 5"),
        ({"features_only": True, "out_indices": ()}, r"out_indices \(\(\)\) must be out of"),
        ({"features_only": True, "out_indices": 7}, r"out_indices \(7\) must be out of"),
        ({"features_only": True, "in_chans": 1}, r"in_chans \(1\) must be the network's 3"),
    ],
)
def test_settings_that_do_not_fit_are_refused(single: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as refusal:
        create(single, **settings)
    assert "\n" not in str(refusal.value)


def test_settings_that_timms_scripts_always_give_are_taken(single: Path) -> None:
    model = create(
        single, pretrained=False, in_chans=3, num_classes=None, drop_rate=0.0, drop_path_rate=None, global_pool=None,
        bn_momentum=None, bn_eps=None, scriptable=False, pretrained_cfg_overlay={"crop_pct": 1.0},
    )  # fmt: skip
    assert model.pretrained_cfg["crop_pct"] == 1.0
    model.set_grad_checkpointing(False)
    with pytest.raises(UserError, match="gradient checkpointing"):
        model.set_grad_checkpointing()


@pytest.mark.parametrize("seed", range(6))
def test_features_are_those_that_the_exits_read(seed: int, tmp_path: Path) -> None:
    net = tiny.tiny_net("ee_dp").eval()
    subnet = net.space.sample(np.random.default_rng([seed]))
    folder = written(tmp_path / "subnet", net, subnet)
    backbone = create(folder, features_only=True).eval()
    own = net.extract(subnet, exits="all")
    read: list[Tensor] = []
    for exit in range(1, subnet.height + 1):
        own.get_submodule(f"exits.{exit}.widen.conv").register_forward_pre_hook(lambda _, given: read.append(given[0]))
    batch = torch.randn((2, 3, 64, 64), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        own(batch)
        found = backbone(batch)
    assert len(found) == subnet.height + 1
    assert all(map(torch.equal, found[1:], read))
    info = backbone.feature_info
    assert [one.shape[1] for one in found] == info.channels()
    assert [64 // one.shape[2] for one in found] == info.reduction()
    assert not any("exits" in name for name in backbone.state_dict())


def test_features_are_chosen_by_their_indices(single: Path) -> None:
    with torch.inference_mode():
        found = create(single, features_only=True).eval()(images())
        for indices, names in (((0, 2), (0, 2)), ((-1,), (5,)), (2, (4, 5)), ((3, 1), (3, 1))):
            part = create(single, features_only=True, out_indices=indices).eval()
            some = part(images())
            assert all(map(torch.equal, some, (found[index] for index in names)))
            assert len(some) == len(names)
            assert part.feature_info.channels() == [one.shape[1] for one in some]


def test_a_network_with_several_exits_is_a_backbone_too(tmp_path: Path) -> None:
    net = tiny.tiny_net("ee_b").eval()
    several = written(tmp_path / "all", net, net.space.largest(), exits=(1, 5))
    single = written(tmp_path / "last", net, net.space.largest())
    with torch.inference_mode():
        first, second = (create(folder, features_only=True).eval()(images()) for folder in (several, single))
    assert all(map(torch.equal, first, second))


def test_what_is_no_folder_of_ours_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="subnet_dir is missing"):
        timm.create_model("ofav2_subnet")
    with pytest.raises(RunError, match=r"has no subnet\.json"):
        create(tmp_path)


def test_features_of_a_network_of_timm_itself_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = SimpleNamespace(architecture=SimpleNamespace(name="resnet18"), exits="last")
    monkeypatch.setattr(ofav2.timm_plugin.model, "describe_subnet", lambda _: found)
    with pytest.raises(UserError, match=r"is timm's resnet18 with exits, .*: load it with ofav2\.load_subnet"):
        create(tmp_path, features_only=True)


@pytest.mark.parametrize(("name", "read"), [("test_convnext", 64), ("test_byobnet", 256)])
def test_a_network_of_timm_with_its_own_head_keeps_its_logits(name: str, read: int, tmp_path: Path) -> None:
    arch = describe_backbone(
        name, classes=5, channels=3, resolution=64, exits="stages", head="norm_linear", drop_rate=0.0
    )
    net = MultiExit(make_backbone(arch)[0], arch, (64,)).eval()
    model = create(written(tmp_path / "net", net, net.space.largest())).eval()
    with torch.no_grad():
        seen = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(model(seen), net(seen, net.space.largest()))
        assert model.forward_head(model.forward_features(seen), pre_logits=True).shape == (2, read)
    model.reset_classifier(3)
    assert model(seen).shape == (2, 3)


def test_several_exits_are_refused(tmp_path: Path) -> None:
    net = tiny.tiny_net("ee_b").eval()
    folder = written(tmp_path / "all", net, net.space.largest(), exits=(1, 5))
    with pytest.raises(UserError, match="without --exits"):
        create(folder)
