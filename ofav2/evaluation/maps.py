"""Draw what a network with dense heads makes of a few test images, beside the images and their targets."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import torch

from ofav2.data import Batch
from ofav2.data.thumbnails import png
from ofav2.evaluation.evaluator import Evaluator
from ofav2.runs.records import RunRecord, read_kept
from ofav2.tasks.reconstruction import Reconstruction
from ofav2.tasks.regression import Regression
from ofav2.tasks.segmentation import Segmentation
from ofav2.typed_json import Form, Sha256, write_record
from supernets import Subnet
from supernets.multi_exit import Network

MAPS = "maps.json"
"""The file in a run folder that holds pictures of the largest network's maps."""
FORMAT = "ofav2-maps/1"
SHOWN = 6
"""Images that are drawn."""

Picture = Annotated[str, Form("[A-Za-z0-9+/]+={0,2}", "a PNG file in Base64")]
_Colours = npt.NDArray[np.uint8]

# Of ten hues that people with colour blindness tell apart (Wong, Nature Methods 8, 2011, and greys); then again.
_CLASSES = (0x0072B2, 0xE69F00, 0x009E73, 0xCC79A7, 0x56B4E9, 0xD55E00, 0xF0E442, 0x555555, 0xAAAAAA, 0x8B5A2B)
_IGNORED, _RIGHT, _WRONG = 0x000000, 0xE8E8E8, 0xC0392B
_RAMP = (0xF7FBFF, 0x6BAED6, 0x08306B)
_DIFFERENCE = (0x2166AC, 0xF7F7F7, 0xB2182B)


@dataclass(frozen=True)
class Key:
    """What a colour of the maps stands for."""

    colour: Annotated[str, Form("#[0-9a-f]{6}", "a colour such as #0072b2")]
    """The colour."""
    name: str
    """The class, or the number."""


@dataclass(frozen=True)
class MapRow:
    """One image, its target and its output."""

    image: Picture
    """Three of its bands, each stretched over what most pixels have."""
    target: Picture
    """The target."""
    output: Picture
    """The network's output."""
    error: Picture
    """Where and how much the two differ."""


@dataclass(frozen=True)
class MapsRecord:
    """What `maps.json` holds."""

    checkpoint_sha256: Sha256
    """Checksum of the weights."""
    phase: str
    """The phase that left them."""
    subnet: Subnet
    """The network."""
    bands: tuple[str, ...]
    """Bands that are drawn as red, green and blue."""
    plane: str | None
    """The plane of numbers that is drawn; None of classes."""
    keys: tuple[Key, ...]
    """Colours of targets and outputs."""
    error_keys: tuple[Key, ...]
    """Colours of errors."""
    rows: tuple[MapRow, ...]
    """The images."""


def largest_maps(net: Network, largest: Subnet, evaluator: Evaluator, phase: str, sha256: str) -> MapsRecord | None:
    """Draw the largest network's maps of the first test images; None of a task that this package does not know.

    Args:
        net: The supernet.
        largest: The largest network that was trained.
        evaluator: What prepares images.
        phase: The phase that left its weights.
        sha256: Checksum of their file.
    """
    task, bands = evaluator.task, evaluator.data.bands
    if not isinstance(task, Segmentation | Regression | Reconstruction):
        return None
    module = evaluator.calibrated(net, largest, "last")
    images, targets = _first(evaluator, largest.resolution)
    with torch.inference_mode():
        outputs = module(images).float().cpu().numpy()
    truths = targets.cpu().numpy()
    pictures, shown = _pictures(images.cpu().numpy(), bands)
    if isinstance(task, Segmentation):
        plane, keys, error_keys = None, _class_keys(task.classes), _keys((_RIGHT, _WRONG, _IGNORED), _OUTCOMES)
        drawn = _class_maps(truths, outputs.argmax(1))
    else:
        plane = (task.numbers if isinstance(task, Reconstruction) else task).planes[0]
        keys, error_keys, drawn = _number_maps(truths[:, 0], outputs[:, 0])
    rows = tuple(MapRow(*map(_png, row)) for row in zip(pictures, *drawn, strict=True))
    return MapsRecord(sha256, phase, largest, shown, plane, keys, error_keys, rows)


def _first(evaluator: Evaluator, resolution: int) -> Batch:
    """Return the first test images that are drawn; those of a large side come one by one."""
    images, targets, count = [], [], 0
    for batch in evaluator.inputs(evaluator.data.test, resolution):
        images.append(batch.images)
        targets.append(batch.targets)
        count += len(batch.images)
        if count >= SHOWN:
            break
    return Batch(torch.cat(images)[:SHOWN], torch.cat(targets)[:SHOWN])


_OUTCOMES = ("right", "wrong", "does not count")


def _pictures(images: npt.NDArray[np.float32], bands: Sequence[str]) -> tuple[_Colours, tuple[str, ...]]:
    """Return images (N, C, H, W) as colours (N, H, W, 3), and the bands that they show."""
    named = [bands.index(name) for name in ("red", "green", "blue") if name in bands]
    chosen = named if len(named) == 3 else [0, len(bands) // 2, len(bands) - 1]
    values = images[:, chosen].transpose(0, 2, 3, 1)
    low, high = np.percentile(values, (2, 98), axis=(0, 1, 2))
    stretched = np.clip((values - low) / np.maximum(high - low, 1e-6), 0, 1)
    return np.round(255 * stretched).astype(np.uint8), tuple(bands[index] for index in chosen)


def _class_maps(truths: npt.NDArray[np.int64], found: npt.NDArray[np.int64]) -> tuple[_Colours, _Colours, _Colours]:
    """Return targets, outputs and errors (N, H, W, 3) of classes (N, H, W)."""
    colours, counted = _rgb(_CLASSES), truths >= 0
    target = np.where(counted[..., None], colours[truths % len(_CLASSES)], _rgb((_IGNORED,)))
    error = _rgb((_RIGHT, _WRONG, _IGNORED))[np.where(counted, found != truths, 2)]
    return target, colours[found % len(_CLASSES)], error


def _number_maps(
    truths: npt.NDArray[np.float32], found: npt.NDArray[np.float32]
) -> tuple[tuple[Key, ...], tuple[Key, ...], tuple[_Colours, _Colours, _Colours]]:
    """Return keys of values and of errors, and targets, outputs and errors (N, H, W, 3) of numbers (N, H, W)."""
    counted = np.isfinite(truths)
    known = truths[counted] if counted.any() else np.zeros(1)
    low, high = float(known.min()), float(known.max())
    errors = np.where(counted, found - truths, 0)
    worst = float(np.abs(errors).max())

    def ramp(values: npt.NDArray[np.floating], low: float, high: float, colours: Sequence[int]) -> _Colours:
        shares = np.clip((values - low) / max(high - low, 1e-12), 0, 1)
        places = np.linspace(0, 1, len(colours))
        return np.stack([np.interp(shares, places, part) for part in _rgb(colours).T], -1).round().astype(np.uint8)

    ignored = _rgb((_IGNORED,))
    target = np.where(counted[..., None], ramp(np.nan_to_num(truths), low, high, _RAMP), ignored)
    error = np.where(counted[..., None], ramp(errors, -worst, worst, _DIFFERENCE), ignored)
    keys = _keys(_RAMP, [f"{value:.3g}" for value in np.linspace(low, high, 3)])
    error_keys = _keys(_DIFFERENCE, [f"{value:+.3g}" for value in (-worst, 0, worst)])
    return keys, error_keys, (target, ramp(found, low, high, _RAMP), error)


def _class_keys(classes: Sequence[str]) -> tuple[Key, ...]:
    return _keys([_CLASSES[index % len(_CLASSES)] for index in range(len(classes))], classes)


def _keys(colours: Sequence[int], names: Sequence[str]) -> tuple[Key, ...]:
    return tuple(Key(f"#{colour:06x}", name) for colour, name in zip(colours, names, strict=True))


def _rgb(colours: Sequence[int]) -> _Colours:
    """Return colours as bytes (N, 3)."""
    return np.array([[colour >> 16, colour >> 8 & 255, colour & 255] for colour in colours], np.uint8)


def _png(picture: _Colours) -> str:
    return base64.b64encode(png(torch.from_numpy(picture).movedim(-1, 0))).decode("ascii")


def write_maps(folder: Path, record: MapsRecord) -> None:
    """Write a run's `maps.json`.

    Raises:
        RunError: The file can't be written.
    """
    write_record(folder / MAPS, record, FORMAT)


def read_maps(folder: Path, run: RunRecord) -> MapsRecord | None:
    """Return the maps that were kept in a run folder, if they are of the weights that the run holds now; else None.

    Args:
        folder: The run folder.
        run: The run's record.

    Raises:
        RunError: If the file is damaged.
    """
    return read_kept(folder / MAPS, MapsRecord, FORMAT, "remove it; the page is made without it", run)
