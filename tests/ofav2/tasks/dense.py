"""Patches on which a tiny supernet can learn dense tasks, and recipes for it."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import yaml

from tests.ofav2 import tiny

SIDE = 16
COUNTS = {"train": 24, "val": 6, "test": 6}
BANDS = ("blue", "red", "nir")

COMMON = (
    tiny.COMMON.replace("name: digits, resolutions: [16]", "name: patches, resolutions: [16], eval_crop: 1")
    .replace("batch_size: 16, ", "batch_size: 8, ")
    .replace("calibration_images: 30, calibration_batch: 16", "calibration_images: 16, calibration_batch: 8")
)
PHASES = """\
supernet:
  {variant: ee_dp, width_mult: 0.05, kernel: [3, 5], expand: [2, 3], depth: [1, 2], stem_stride: 1, head_width: 8}
phases:
  full: {epochs: 2, lr: 0.01, dropout: 0.0}
  kernel: {epochs: 0.4, lr: 0.002, unlock: {kernel: [3, 5]}}
  level: {epochs: 0.4, lr: 0.002, unlock: {level: [1, 2, 3]}}
  height: {epochs: 0.4, lr: 0.002, subnets: 3, sampler: sandwich, unlock: {height: [1, 2, 3, 4, 5]}}
  depth: {epochs: 0.4, lr: 0.002, teacher: best, unlock: {depth: [1, 2]}}
  expand: {epochs: 0.4, lr: 0.002, teacher: fixed, unlock: {expand: [2, 3]}}
"""
TWO_PHASES = PHASES[: PHASES.index("  level:")]
ONE_PHASE = PHASES[: PHASES.index("  kernel:")]
DISTANCE = "teacher: {distance: mse}\n"


def recipe(task: str, root: Path, target: str, *, phases: str = PHASES, more: str = "") -> str:
    """The text of a recipe for a task on `write_patches`."""
    data = COMMON.replace("name: patches", f"name: patches, root: {root}, target: {target}")
    return f"task: {task}\n" + data.replace(tiny.ALL_CORNERS, tiny.NO_CORNERS) + phases + more


def write_patches(root: Path, side: int = SIDE, counts: Mapping[str, int] = COUNTS) -> Path:
    """Write patches of three bands with a plane of classes and a plane of numbers that follow from them."""
    root.mkdir(parents=True)
    rng = np.random.default_rng(7)
    parts = []
    for name, count in counts.items():
        coarse = rng.normal(0, 300, (count, side // 4, side // 4, len(BANDS))).repeat(4, 1).repeat(4, 2)
        images = np.round(1000 + coarse + rng.normal(0, 30, coarse.shape)).astype(np.int16)
        cover = (images[..., 0] > 1000) + (images[..., 2] > 1100).astype(np.uint8)
        height = (images[..., 1] / 1000).astype(np.float32)
        images[0, :2] = -9999
        cover[1, 0], height[1, 0] = 9, np.nan
        arrays = {"images": images, "cover": cover.astype(np.uint8), "height": height}
        for kind, array in arrays.items():
            np.save(root / f"{name}_{kind}.npy", array)
        (root / f"{name}.txt").write_text("".join(f"{name} {number}\n" for number in range(count)))
        targets = {kind: f"{name}_{kind}.npy" for kind in ("cover", "height")}
        parts.append({"images": f"{name}_images.npy", "targets": targets, "places": f"{name}.txt", "split": name})
    described = {
        "format": "ofav2-patches/1",
        "bands": [*BANDS],
        "nodata": -9999,
        "targets": {
            "cover": {"kind": "codes", "names": ["bare", "grass", "wood"]},
            "height": {"kind": "numbers", "names": ["height"]},
        },
        "parts": parts,
    }
    (root / "patches.yaml").write_text(yaml.safe_dump(described, sort_keys=False))
    return root
