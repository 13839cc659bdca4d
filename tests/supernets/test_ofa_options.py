"""The options of an OFA supernet, read off its tensors: the peer's own constructor arguments come back."""

from typing import Any

import pytest
import torch
from ofa.imagenet_classification.elastic_nn.networks import OFAMobileNetV3

import supernets
from supernets import SpaceError, infer_ofa_options, load_ofa_state_dict

GIVEN = {"ks_list": [3, 5, 7], "expand_ratio_list": [3, 4, 6], "depth_list": [2, 3, 4], "width_mult": 0.25}


def state(classes: int = 7, **changes: Any) -> dict[str, Any]:
    net = OFAMobileNetV3(n_classes=classes, bn_param=(0.1, 1e-5), dropout_rate=0.1, **(GIVEN | changes))
    return dict(net.state_dict())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"width_mult": 1.0},
        {"width_mult": 1.2},
        {"width_mult": 0.5, "classes": 3},
        {"ks_list": [3, 7]},
        {"ks_list": [5]},
        {"expand_ratio_list": [2, 3]},
        {"depth_list": [1, 3]},
        {"depth_list": [1], "expand_ratio_list": [4]},
    ],
)
def test_the_peers_arguments_come_back_and_its_weights_fit(changes: dict[str, Any]) -> None:
    tensors = state(**changes)
    found, given = infer_ofa_options(tensors), GIVEN | changes
    assert found == {
        "num_classes": given.get("classes", 7),
        "in_channels": 3,
        "width_mult": given["width_mult"],
        "kernel": tuple(given["ks_list"]),
        "expand": (max(given["expand_ratio_list"]),),
        "depth": (max(given["depth_list"]),),
    }
    choices = {"expand": tuple(given["expand_ratio_list"]), "depth": tuple(given["depth_list"])}
    load_ofa_state_dict(supernets.create("se_b", **(found | choices)), tensors)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: {}, "has 0 blocks"),
        (lambda tensors: {1: torch.zeros(1)}, "1 is no tensor"),
        (lambda tensors: tensors | {"epoch": 3}, "'epoch' is no tensor"),
        (lambda tensors: tensors | {"blocks.21.conv.x": torch.zeros(1)}, "has 21 blocks"),
        (lambda tensors: tensors | {"fc.weight": torch.zeros(1)}, r"fc\.weight is no tensor"),
        (lambda tensors: tensors | {"first_conv.conv.weight": torch.zeros(3)}, r"stem\.conv\.weight has shape \(3,\)"),
        (lambda tensors: tensors | {"first_conv.conv.weight": torch.zeros(4, 3, 3, 3)}, "fit no width multiplier"),
        (lambda tensors: tensors | {"classifier.linear.weight": torch.zeros(0, 9)}, "classifier.weight has shape"),
        (lambda tensors: {k: v for k, v in tensors.items() if "classifier" not in k}, "classifier.weight has no count"),
    ],
)
def test_other_tensors_are_refused_in_one_line(change: Any, message: str) -> None:
    with pytest.raises(SpaceError, match=message) as refusal:
        infer_ofa_options(change(state()))
    assert "\n" not in str(refusal.value)
