"""Small data sets on disk, in the layouts that people have."""

import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

WNIDS = ("n02", "n01", "n03")


def write_image(path: Path, size: tuple[int, int] = (12, 10), mode: str = "RGB") -> None:
    """Write an image of noise that depends on the path's last three parts alone; `size` is (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(zlib.crc32("/".join(path.parts[-3:]).encode()))
    Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).convert(mode).save(path)


def write_classes(folder: Path, counts: dict[str, int], suffix: str = ".jpg") -> None:
    """Write one folder of images per class."""
    for name, count in counts.items():
        for number in range(count):
            write_image(folder / name / f"{number:03d}{suffix}")


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """Tiny ImageNet as its archive unpacks, with three classes of eight training and two validation images."""
    root = tmp_path / "tiny-imagenet-200"
    lines = []
    for label, wnid in enumerate(WNIDS):
        for number in range(8):
            write_image(root / "train" / wnid / "images" / f"{wnid}_{number}.JPEG", (64, 64))
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t0\t9\t9\n")
        for number in range(2):
            # file numbers run against the classes' order, as nothing in the archive promises otherwise
            name = f"val_{2 * (len(WNIDS) - label) + number}.JPEG"
            write_image(root / "val" / "images" / name, (64, 64))
            lines.append(f"{name}\t{wnid}\t0\t32\t44\t62\n")
    write_image(root / "test" / "images" / "test_0.JPEG", (64, 64))
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    (root / "wnids.txt").write_text("\n".join(WNIDS) + "\n")
    (root / "words.txt").write_text("n00\tentity\nn01\tgoldfish, Carassius auratus\nn02\tsalamander\n")
    return root


@pytest.fixture
def classes() -> Callable[..., None]:
    """Give `write_classes`."""
    return write_classes


@pytest.fixture
def image() -> Callable[..., None]:
    """Give `write_image`."""
    return write_image
