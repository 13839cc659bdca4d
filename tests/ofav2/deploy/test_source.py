"""Images that an extracted network may not be measured on as they are."""

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from ofav2.config.schema import DataConfig
from ofav2.data import open_data
from ofav2.deploy.artifact import SubnetRecord
from ofav2.deploy.source import warn_of_units
from tests.notes import Notes
from tests.ofav2.patches import write_patches


@pytest.mark.parametrize(
    ("factor", "added", "said"),
    [(1.0, 0.0, False), (1.5, 20.0, False), (10000.0, 0.0, True), (1e-4, 0.0, True), (1.0, 1000.0, True)],
)
def test_patches_of_another_size_than_those_of_training_are_said(
    tmp_path: Path, notes: Notes, factor: float, added: float, said: bool
) -> None:
    write_patches(tmp_path)
    config = DataConfig(
        name="patches", root=str(tmp_path), target="cover", resolutions=(6,), batch_size=3, eval_crop=1.0
    )
    data = open_data(config)
    trained = SimpleNamespace(
        mean=tuple(factor * mean + added for mean in data.mean), std=tuple(factor * std for std in data.std)
    )
    record = cast("SubnetRecord", SimpleNamespace(input=trained, data_fingerprint="another"))
    notes()
    warn_of_units(data, record)
    assert ("band blue is" in notes()) == said
    record = cast("SubnetRecord", SimpleNamespace(input=trained, data_fingerprint=data.fingerprint))
    warn_of_units(data, record)
    assert notes() == "", "of the same images nothing has to be said"
