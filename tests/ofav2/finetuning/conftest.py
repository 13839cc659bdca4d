"""Extracted networks and images, so small that a fine-tuning takes a fraction of a second."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import ofav2
from ofav2.config.schema import DataConfig
from ofav2.data import ImageData
from ofav2.data.splits import TargetSpec
from ofav2.finetuning import setup as prepare
from tests.ofav2 import tiny
from tests.shared import made_once

DIGITS = tuple(str(digit) for digit in range(10))
QUICK = ("finetune.epochs=3", "finetune.patience=0", "finetune.lr=0.01")


def images(**changes: Any) -> ImageData:
    """Noise with the classes of digits: 40 training, 23 validation, 17 test images."""
    data = replace(tiny.tiny_data(classes=10, side=16), target=TargetSpec("classes", DIGITS), fingerprint="noise")
    return replace(data, **changes)


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Callable[[ImageData], None]:
    """Puts a data set where fine-tunings find theirs."""

    def put(data: ImageData) -> None:
        def opened(config: DataConfig) -> ImageData:
            return replace(data, mean=config.mean or data.mean, std=config.std or data.std)

        monkeypatch.setattr(prepare, "open_data", opened)

    return put


@pytest.fixture
def noise(serve: Callable[[ImageData], None]) -> None:
    """Noise instead of digits."""
    serve(images())


@pytest.fixture(scope="session")
def several(opened: ofav2.OpenedRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network with the logits of two exits, taken out of the run; to look at only."""
    subnet = tiny.middle(opened.loaded.net.space)
    return made_once(
        tmp_path_factory, "several", lambda path: ofav2.extract(opened, subnet, path, exits=(2, 3), formats=())
    )
