"""Settings of a network with exits are refused before data are opened, in one line, and nothing is written."""

import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

import ofav2
from ofav2.errors import UserError
from supernets import SpaceError

REFUSED: dict[str, tuple[list[str], str]] = {
    "unknown name": (["network.name=resnet81"], 'network ("resnet81") is unknown to timm'),
    "no classifier": (["network.name=mobilenetv5_300m_enc"], "it returns no logits of classes"),
    "one exit": (["network.exits=[5]"], "leave test_resnet with its own head alone"),
    "small images": (["network.name=vgg11", "data.resolutions=[16]"], "resolution (16) is none that vgg11"),
    "small images in some batches": (["network.name=vgg11", "data.resolutions=[16,32]"], "resolution (16)"),
    "another size": (["network.name=vit_tiny_patch16_224", "data.resolutions=[32,48]"], "it takes 48 alone"),
    "no file": (["network.weights=absent.pth"], "must be a file"),
}


def refusal(settings: list[str], tmp_path: Path) -> str:
    """Return why a training is refused whose images are missing, too."""
    given = ["network.name=test_resnet", f"data.root={tmp_path / 'absent'}", *settings]
    with pytest.raises((UserError, SpaceError)) as caught:
        ofav2.train("exits", given, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("case", REFUSED)
def test_a_network_that_cant_have_exits_is_refused_before_data_are_opened(case: str, tmp_path: Path) -> None:
    settings, message = REFUSED[case]
    assert message in refusal(settings, tmp_path)


def test_weights_of_another_shape_are_refused_before_data_are_opened(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"conv1.weight": torch.zeros(1)}, path)
    assert re.search(r"weights \(.*\) don't fit test_resnet", refusal([f"network.weights={path}"], tmp_path))


def test_a_hub_out_of_reach_is_told_before_data_are_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model

    def offline(*given: Any, pretrained: bool = False, **named: Any) -> Any:
        if pretrained:
            raise OSError("no route to host\nand more")
        return create(*given, **named)

    monkeypatch.setattr(timm, "create_model", offline)
    assert "check the network connection" in refusal(["network.weights=timm"], tmp_path)


def test_missing_data_are_told_where_the_network_is_fine(tmp_path: Path) -> None:
    assert "absent" in refusal([], tmp_path)
