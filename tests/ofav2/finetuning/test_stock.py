"""A network of timm is trained on one's own classes as it is, and then teaches a run."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file

import ofav2
from ofav2.config.schema import Config, PhaseConfig, TeacherConfig, UnlockConfig
from ofav2.data import ImageData
from ofav2.data.splits import TargetSpec
from ofav2.deploy.artifact import StockProvenance
from ofav2.errors import RunError, UserError
from ofav2.finetuning.setup import prepare
from ofav2.finetuning.stock import open_stock
from ofav2.tasks.classification import Classification
from ofav2.training.external import external_teachers
from ofav2.training.phases import make_plan
from tests.ofav2 import tiny
from tests.ofav2.finetuning.conftest import DIGITS, images
from tests.shared import made_once

NAME = "test_resnet"
QUICK = ("data.resolutions=[16]", "data.batch_size=16", "finetune.epochs=1", "run.threads=1")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of timm's trained for an epoch; to look at only."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ofav2.finetuning.setup.open_data", lambda config: images())
        return made_once(
            tmp_path_factory,
            "teacher",
            lambda path: ofav2.finetune(f"timm:{NAME}", QUICK, out=path, weights="none", formats=("card",)),
        )


def test_its_weights_are_those_of_timms_own_network(teacher: Path) -> None:
    model = timm.create_model(NAME, num_classes=10)
    model.load_state_dict(load_file(teacher / "model.safetensors"))
    pixels = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(ofav2.load_subnet(teacher)(pixels), model.eval()(pixels))
    record = ofav2.describe_subnet(teacher)
    assert record.provenance == StockProvenance(NAME, None)
    assert (record.classes, record.exits, record.finetuning[0].new_classifiers) == (DIGITS, "last", True)
    assert f"timm's `{NAME}`, fresh weights" in (teacher / "model_card.md").read_text(encoding="utf-8")


@pytest.mark.usefixtures("noise")
def test_it_can_be_trained_further_but_not_with_another_dropout(teacher: Path, tmp_path: Path) -> None:
    again = ofav2.finetune(teacher, ["finetune.epochs=1"], out=tmp_path / "again", formats=())
    assert len(again.finetuning) == 2
    assert again.finetuning[1].source_sha256 == ofav2.describe_subnet(teacher).sha256
    with pytest.raises(UserError, match=r"finetune.dropout \(0.5\): the network was made with 0"):
        ofav2.finetune(teacher, ["finetune.dropout=0.5"], out=tmp_path / "other", formats=())


@pytest.mark.parametrize("classes", [("a", "b", "c"), DIGITS[::-1]])
def test_other_classes_get_a_new_classifier_and_nothing_else_changes(
    classes: tuple[str, ...], teacher: Path, serve: Callable[[ImageData], None]
) -> None:
    serve(replace(tiny.tiny_data(classes=len(classes), side=16), target=TargetSpec("classes", classes)))
    start, before = prepare(teacher).start, load_file(teacher / "model.safetensors")
    after = start.module.state_dict()
    assert start.new_classifiers
    assert {name for name in before if not torch.equal(before[name], after[name])} == {"fc.weight", "fc.bias"}


@pytest.mark.usefixtures("noise")
@pytest.mark.parametrize(
    ("network", "settings", "weights", "message"),
    [
        ("timm:test_resnot", QUICK, "none", "did you mean test_resnet"),
        (f"timm:{NAME}", (*QUICK, "data.resolutions=[16,24]"), "none", "is trained at one"),
        (f"timm:{NAME}", QUICK, "gone.pth", "there is none"),
        ("some-folder", (), "none", "are for a network of timm"),
    ],
)
def test_what_cannot_be_started_from_is_refused(
    network: str, settings: tuple[str, ...], weights: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        ofav2.finetune(network, settings, out=tmp_path / "out", weights=weights)
    assert not (tmp_path / "out").exists()


def test_images_are_kept_as_large_as_the_network_takes_them() -> None:
    """The recipe's limit is for smaller networks; a network's own size must not be refused for it."""
    for name, side in (("vit_base_patch16_384", 384), ("resnet18", 224), ("tf_efficientnet_b4", 380)):
        data = open_stock(f"timm:{name}", "none").settings.data
        assert data.resolutions == (side,)
        assert data.shrink_to == max(320, 2 * side)


def taught(teacher: Path, data: ImageData, **changes: Any) -> torch.nn.Module:
    """The teacher as a run builds it."""
    config = Config(
        data=tiny.data_config(resolutions=(16,)),
        teacher=TeacherConfig(**{"policy": f"timm:{NAME}", "checkpoint": str(teacher)} | changes),
    )
    net = tiny.tiny_net(resolutions=(16,))
    phases = {"full": PhaseConfig(1, 0.1), "kernel": PhaseConfig(1, 0.1, UnlockConfig(kernel=(3, 5)))}
    plan = make_plan(phases, config.teacher, net.space, 1)
    return external_teachers(plan, config, data, Classification(10), tiny.CPU).networks[config.teacher.policy]


def test_it_teaches_what_it_learned_with_its_own_normalisation(teacher: Path, caplog: pytest.LogCaptureFixture) -> None:
    data, given = images(mean=(0.1, 0.2, 0.3), std=(0.9, 0.8, 0.7)), ofav2.describe_subnet(teacher).input
    pixels = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))

    def normalised(mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
        return (pixels - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)

    with torch.inference_mode(), caplog.at_level(logging.WARNING):
        logits = taught(teacher, data)(normalised(tuple(data.mean), tuple(data.std)))
        torch.testing.assert_close(logits, ofav2.load_subnet(teacher)(normalised(given.mean, given.std)))
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        taught(teacher, images(fingerprint="others"))
    assert "may know test images" in caplog.text


def test_a_teacher_that_does_not_fit_is_refused(teacher: Path, tmp_path: Path) -> None:
    others = replace(images().target, names=tuple(reversed(DIGITS)))
    refused: list[tuple[ImageData, dict[str, Any], str]] = [
        (images(), {"policy": "timm:test_efficientnet"}, "is of timm:test_resnet"),
        (images(), {"mean": (0.5, 0.5, 0.5)}, "says them itself"),
        (images(target=others), {}, 'class 0 was "0", and is "9" now'),
        (
            images(bands=("blue", "green", "red")),
            {},
            "takes the bands red, green, blue, and these images have blue, green",
        ),
        (images(white=1.0), {}, "whose value 255 counts as 1, and here 1 does"),
    ]
    for data, changes, message in refused:
        with pytest.raises(UserError, match=message):
            taught(teacher, data, **changes)
    for name in ("teacher.json", "model.safetensors"):
        (tmp_path / name).write_bytes((teacher / name).read_bytes())
    with (tmp_path / "model.safetensors").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(RunError, match=r"is not the file that teacher.json names"):
        taught(tmp_path, images())
    (tmp_path / "teacher.json").unlink()
    with pytest.raises(RunError, match="`ofav2 finetune timm:NAME` made"):
        taught(tmp_path, images())
