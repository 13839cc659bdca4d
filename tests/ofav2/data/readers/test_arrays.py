"""CIFAR, from generated files in torchvision's layout."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torchvision.datasets import CIFAR10, CIFAR100

from ofav2 import data
from ofav2.config.schema import DataConfig
from ofav2.errors import UserError


def write_cifar(root: Path, dataset: type[CIFAR10], label_key: str, classes: int) -> dict[bytes, tuple[str, int]]:
    """Write a small CIFAR and give, by pixels, the file's list and the label of each image."""
    rng = np.random.default_rng(0)
    folder = root / dataset.base_folder
    folder.mkdir(parents=True)
    known = {}
    for kind, files in (("train", dataset.train_list), ("test", dataset.test_list)):
        for name, _ in files:
            pixels = rng.integers(0, 256, (4 * classes, 3072), dtype=np.uint8)
            labels = [i % classes for i in range(4 * classes)]
            (folder / name).write_bytes(pickle.dumps({"data": pixels, label_key: labels}))
            known.update({row.tobytes(): (kind, label) for row, label in zip(pixels, labels, strict=True)})
    names = {dataset.meta["key"]: [f"class {i}" for i in range(classes)]}
    (folder / dataset.meta["filename"]).write_bytes(pickle.dumps(names))
    return known


@pytest.mark.parametrize(
    ("name", "dataset", "label_key", "classes"),
    [("cifar10", CIFAR10, "labels", 10), ("cifar100", CIFAR100, "fine_labels", 100)],
)
def test_cifar_keeps_its_test_split_and_holds_validation_out_of_train(
    name: str, dataset: type[CIFAR10], label_key: str, classes: int, tmp_path: Path, monkeypatch: Any
) -> None:
    known = write_cifar(tmp_path, dataset, label_key, classes)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda path, md5=None: Path(path).is_file())
    opened = data.open_data(DataConfig(name=name, root=str(tmp_path), val_fraction=0.25))
    assert opened.classes == tuple(f"class {i}" for i in range(classes))
    seen = set()
    for split, kind in ((opened.train, "train"), (opened.val, "train"), (opened.test, "test")):
        for i in range(len(split)):
            pixels = split.image(i).numpy().tobytes()
            assert known[pixels] == (kind, split.targets[i])
            seen.add(pixels)
    assert seen == set(known)
    per_class = 4 * len(dataset.train_list)
    assert np.bincount(opened.val.targets).tolist() == [round(per_class * 0.25)] * classes


def test_a_damaged_cifar_is_refused_before_it_is_unpickled(tmp_path: Path) -> None:
    write_cifar(tmp_path, CIFAR10, "labels", 10)
    with pytest.raises(UserError, match=r"data\.root .*cifar-10-batches-py.*set data\.download=true once"):
        data.open_data(DataConfig(name="cifar10", root=str(tmp_path)))
