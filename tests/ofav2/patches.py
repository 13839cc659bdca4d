"""Small data sets of patches on disk, beside a plain reference of what is stored in them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

BANDS = ("blue", "green", "red", "nir")
CODES = (10, 20, 40)
NAMES = ("tree", "grass", "crop")
SIDE = 12
COUNTS = {"train": 6, "val": 3, "test": 3}


def described(**changes: Any) -> dict[str, Any]:
    """What `patches.yaml` holds: three splits, a plane of codes, two planes of numbers, and a class per patch."""
    parts = [
        {
            "images": f"{name}.npy",
            "targets": {target: f"{name}_{target}.npy" for target in ("cover", "height", "kind")},
            "places": f"{name}.txt",
            "split": name,
        }
        for name in COUNTS
    ]
    targets = {
        "cover": {"kind": "codes", "names": [*NAMES], "codes": [*CODES]},
        "height": {"kind": "numbers", "names": ["mean", "top"], "scale": 0.5, "nodata": 255},
        "kind": {"kind": "classes", "names": ["wild", "tame"]},
    }
    whole = {"format": "ofav2-patches/1", "bands": [*BANDS], "nodata": -1, "targets": targets, "parts": parts}
    return {**whole, **changes}


def write_patches(
    root: Path, values: Mapping[str, Any] | None = None, dtype: str = "int16"
) -> dict[str, dict[str, npt.NDArray[Any]]]:
    """Write a data set, and return its arrays by split."""
    root.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(5)
    found = {}
    for name, count in COUNTS.items():
        arrays = {
            "images": rng.integers(0, 200, (count, SIDE, SIDE, len(BANDS))).astype(dtype),
            "cover": rng.choice([*CODES, 99], (count, SIDE, SIDE)).astype(np.uint8),
            "height": rng.integers(0, 255, (count, SIDE, SIDE, 2)).astype(np.uint8),
            "kind": (np.arange(count) % 2).astype(np.int32),
        }
        arrays["height"][0, 0, 0, 0] = 255
        np.save(root / f"{name}.npy", arrays["images"])
        for target in ("cover", "height", "kind"):
            np.save(root / f"{name}_{target}.npy", arrays[target])
        (root / f"{name}.txt").write_text("".join(f"{name} {number // 2}\n" for number in range(count)))
        found[name] = arrays
    (root / "patches.yaml").write_text(yaml.safe_dump(dict(values or described()), sort_keys=False))
    return found
