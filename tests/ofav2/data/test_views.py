"""Cropping and resizing, against torchvision, Pillow and plain arithmetic."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from ofav2.data import normalise
from ofav2.data.images import pixels_of
from ofav2.data.views import crop_boxes, cut_each, cut_together, draw_views, evaluation_view, short_side
from tests.ofav2.data.plainly import Crop, plain_view

DRAWS = 4000


def noise(height: int, width: int, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.integers(0, 256, (3, height, width), dtype=np.uint8))


def smooth(height: int, width: int) -> torch.Tensor:
    rows, columns = np.mgrid[0:height, 0:width]
    waves = [127 + 127 * np.sin(rows / 5 + k) * np.cos(columns / 7 - k) for k in range(3)]
    return torch.from_numpy(np.stack(waves).astype(np.uint8))


def whole_view(image: torch.Tensor, resolution: int, flip: bool = False, seed: int = 0) -> torch.Tensor:
    randoms = draw_views(1, np.random.default_rng(seed))
    sizes = np.array([image.shape[1:]])
    boxes = crop_boxes(sizes, randoms, scale=(1.0, 1.0), ratio=(1.0, 1.0))
    return cut_each(pixels_of([image]), boxes, (randoms.mirrors < 0.5) & flip, resolution)[0]


def drawn_boxes(
    height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float], randoms: int
) -> np.ndarray:
    sizes = np.repeat([[height, width]], randoms, axis=0)
    return crop_boxes(sizes, draw_views(randoms, np.random.default_rng(0)), scale=scale, ratio=ratio)


def torchvision_crops(
    height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float], randoms: int
) -> np.ndarray:
    image = torch.empty(3, height, width)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transform: Any = v2.RandomResizedCrop(8, scale=scale, ratio=ratio, antialias=True)
        drawn = [transform.make_params([image]) for _ in range(randoms)]
    return np.array([[crop[key] for key in Crop._fields] for crop in drawn])


def largest_gap(first: np.ndarray, second: np.ndarray) -> float:
    """Give the Kolmogorov-Smirnov distance of two samples."""
    points = np.union1d(first, second)
    ranks = [np.searchsorted(np.sort(sample), points, side="right") / len(sample) for sample in (first, second)]
    return float(np.abs(ranks[0] - ranks[1]).max())


@pytest.mark.parametrize(
    ("height", "width", "scale", "ratio"),
    [
        (64, 64, (0.85, 1.0), (3 / 4, 4 / 3)),
        (375, 500, (0.08, 1.0), (3 / 4, 4 / 3)),
        (300, 200, (0.2, 0.9), (0.3, 3.0)),
        (8, 8, (0.5, 1.0), (3 / 4, 4 / 3)),
        (40, 100, (0.3, 1.0), (0.9, 1.2)),  # often falls back to the centred crop
    ],
)
def test_crops_are_distributed_as_torchvisions(
    height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> None:
    ours = drawn_boxes(height, width, scale, ratio, DRAWS)
    theirs = torchvision_crops(height, width, scale, ratio, DRAWS)
    # two samples of one distribution are this far apart with probability 1e-4
    allowed = math.sqrt(-math.log(1e-4 / 2) / DRAWS)
    for column in range(4):
        assert largest_gap(ours[:, column], theirs[:, column]) < allowed
    for derived in (lambda c: c[:, 3] / c[:, 2], lambda c: c[:, 2] * c[:, 3], lambda c: c[:, 0] + c[:, 2] / 2):
        assert largest_gap(derived(ours), derived(theirs)) < allowed
    top, left, crop_height, crop_width = ours.T
    assert (np.minimum(top, left) >= 0).all()
    assert (np.minimum(crop_height, crop_width) >= 1).all()
    assert ((top + crop_height <= height) & (left + crop_width <= width)).all()


@pytest.mark.parametrize("ratio", [(1.0, 1.0), (0.75, 4 / 3), (1.5, 2.0)])
@pytest.mark.parametrize(("height", "width"), [(20, 90), (90, 20), (31, 100), (100, 31)])
def test_the_centred_crop_is_torchvisions(height: int, width: int, ratio: tuple[float, float]) -> None:
    ours = {tuple(box) for box in drawn_boxes(height, width, (1.0, 1.0), ratio, 5).tolist()}
    theirs = {tuple(map(int, crop)) for crop in torchvision_crops(height, width, (1.0, 1.0), ratio, 5)}
    assert len(ours) == 1
    assert ours == theirs


def test_an_image_of_one_pixels_height_is_cropped_to_at_least_a_pixel() -> None:
    assert drawn_boxes(1, 200, (0.9, 1.0), (0.1, 0.2), 1)[0, 2:].tolist() == [1, 1]


@pytest.mark.parametrize(("scale", "ratio"), [((0.85, 1.0), (0.75, 4 / 3)), ((0.1, 0.6), (0.2, 5.0)), ((1, 1), (1, 1))])
def test_boxes_of_many_images_are_those_of_each(scale: tuple[float, float], ratio: tuple[float, float]) -> None:
    rng = np.random.default_rng(1)
    sizes = rng.integers(1, 90, (200, 2))
    randoms = draw_views(200, rng)
    together = crop_boxes(sizes, randoms, scale=scale, ratio=ratio)
    for number, (size, box) in enumerate(zip(sizes, together.tolist(), strict=True)):
        alone = randoms.at(np.array([number]))
        assert tuple(box) == plain_view(tuple(size), alone, scale=scale, ratio=ratio)


@pytest.mark.parametrize("resolution", [5, 8, 16, 21, 64])
@pytest.mark.parametrize("side", [8, 33, 64])
def test_without_cropping_a_square_image_is_resized_and_nothing_else(side: int, resolution: int) -> None:
    image = noise(side, side)
    expected = v2.Resize((resolution, resolution), antialias=True)(image)
    for seed in range(10):
        assert torch.equal(whole_view(image, resolution, seed=seed), expected)


@pytest.mark.parametrize("resolution", [11, 16, 48, 70])
def test_resizing_agrees_with_pillow(resolution: int) -> None:
    image = smooth(48, 48)
    pillow = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((resolution,) * 2, Image.Resampling.BILINEAR)
    difference = (
        whole_view(image, resolution).permute(1, 2, 0).int() - torch.from_numpy(np.asarray(pillow).copy()).int()
    )
    assert difference.abs().max() <= 1


def cut(images: torch.Tensor, boxes: np.ndarray, mirrored: np.ndarray, resolution: int) -> torch.Tensor:
    return cut_together(images, torch.from_numpy(boxes), torch.from_numpy(mirrored), resolution)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (40, 50), (9, 70), (1, 1)])
@pytest.mark.parametrize("resolution", [5, 48, 64, 71])
def test_cuts_are_torchvisions(height: int, width: int, resolution: int) -> None:
    """One by one to the last bit; all at once within one grey level, as torchvision rounds between its two passes."""
    images = torch.stack([noise(height, width, seed) for seed in range(12)])
    randoms = draw_views(12, np.random.default_rng(0))
    sizes = np.repeat([[height, width]], 12, axis=0)
    boxes, mirrored = crop_boxes(sizes, randoms, scale=(0.2, 1.0), ratio=(0.5, 2.0)), randoms.mirrors < 0.5
    resize = v2.Resize((resolution, resolution), antialias=True)
    cropped = [
        resize(v2.functional.crop(image, *box).contiguous()) for image, box in zip(images, boxes.tolist(), strict=True)
    ]
    expected = torch.stack([view.flip(-1) if turn else view for view, turn in zip(cropped, mirrored, strict=True)])
    assert torch.equal(cut_each(pixels_of(list(images)), boxes, mirrored, resolution), expected)
    difference = cut(images, boxes, mirrored, resolution).int() - expected.int()
    assert difference.abs().max() <= 1


def test_cutting_together_is_exact_where_torchvision_computes_in_floats() -> None:
    images = torch.stack([noise(64, 60, seed) for seed in range(8)])
    randoms = draw_views(8, np.random.default_rng(2))
    boxes = crop_boxes(np.repeat([[64, 60]], 8, axis=0), randoms, scale=(0.3, 1.0), ratio=(0.75, 1.3))
    for resolution in (24, 64):
        resize = v2.Resize((resolution, resolution), antialias=True)
        floats = [
            resize(v2.functional.crop(image.double(), *box)) for image, box in zip(images, boxes.tolist(), strict=True)
        ]
        found = cut(images, boxes, np.zeros(8, dtype=bool), resolution)
        assert (found - torch.stack(floats)).abs().max() <= 0.5 + 1e-3


def test_images_of_many_sizes_and_layouts_are_cut_alike() -> None:
    images = [noise(20, 33), noise(64, 64, 1).contiguous(), noise(64, 64, 1).permute(1, 2, 0).contiguous()]
    images[2] = images[2].permute(2, 0, 1)
    boxes = np.array([[2, 3, 15, 20], [4, 4, 50, 60], [4, 4, 50, 60]])
    views = cut_each(pixels_of(images), boxes, np.array([False, True, True]), 32)
    assert torch.equal(views[1], views[2])
    assert views.shape == (3, 3, 32, 32)


def test_boxes_are_slices_in_the_images_own_memory() -> None:
    kept = noise(40, 30, 1)
    images = [noise(20, 33), kept[:, 3:, 4:], noise(9, 12, 2).permute(0, 2, 1)]
    boxes = np.array([[0, 0, 20, 33], [5, 6, 7, 8], [11, 8, 1, 1]])
    pixels = pixels_of(images)
    for image, box, (top, left, height, width) in zip(images, pixels.boxes(boxes), boxes.tolist(), strict=True):
        assert torch.equal(box, image[None, :, top : top + height, left : left + width])
        assert box.untyped_storage().data_ptr() == image.untyped_storage().data_ptr()
    assert all(map(torch.equal, pixels.at(np.array([2, 0, 0])).images(), [images[2], images[0], images[0]]))


def test_half_of_the_views_are_mirrored() -> None:
    image = noise(8, 8)
    plain, mirrored = whole_view(image, 12), whole_view(image, 12).flip(-1)
    views = [whole_view(image, 12, flip=True, seed=seed) for seed in range(1000)]
    count = sum(torch.equal(view, mirrored) for view in views)
    assert all(torch.equal(view, plain) or torch.equal(view, mirrored) for view in views)
    assert abs(count - 500) < 4 * math.sqrt(250)


@pytest.mark.parametrize(
    ("resolution", "eval_crop", "side"),
    [(224, 0.875, 256), (64, 0.875, 74), (48, 0.875, 55), (21, 0.7, 30), (16, 1.0, 16), (9, 0.9, 10), (160, 0.95, 169)],
)
def test_the_short_side_is_exact(resolution: int, eval_crop: float, side: int) -> None:
    assert short_side(resolution, eval_crop) == side


@pytest.mark.parametrize(("height", "width"), [(64, 64), (50, 81), (81, 50), (8, 8), (10, 400)])
@pytest.mark.parametrize(("resolution", "eval_crop"), [(16, 0.875), (48, 0.875), (33, 1.0)])
def test_evaluation_resizes_the_short_side_and_cuts_the_centre(
    height: int, width: int, resolution: int, eval_crop: float
) -> None:
    image = noise(height, width)
    side = math.ceil(resolution / eval_crop)
    reference = v2.Compose([v2.Resize(side, antialias=True), v2.CenterCrop(resolution)])
    view = evaluation_view(image, resolution, eval_crop)
    assert tuple(view.shape) == (3, resolution, resolution)
    assert torch.equal(view, reference(image))


def test_evaluation_at_an_images_own_size_changes_nothing() -> None:
    image = noise(24, 24)
    assert torch.equal(evaluation_view(image, 24, 1.0), image)


def test_evaluation_of_a_batch_is_that_of_each_image() -> None:
    images = torch.stack([noise(50, 81, seed) for seed in range(5)])
    together = evaluation_view(images, 33, 0.875)
    assert torch.equal(together, torch.stack([evaluation_view(image, 33, 0.875) for image in images]))


def test_normalising_is_plain_arithmetic() -> None:
    images = torch.stack([noise(5, 5, seed) for seed in range(4)])
    mean, std = (0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821)
    before = images.clone()
    floats = normalise(images, mean, std)
    expected = (images.double().numpy() / 255 - np.array(mean).reshape(3, 1, 1)) / np.array(std).reshape(3, 1, 1)
    assert floats.dtype == torch.float32
    assert floats.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(floats.numpy(), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(images, before)
    assert torch.equal(normalise(images.float(), mean, std), floats)
    assert torch.equal(normalise(images.contiguous(memory_format=torch.channels_last), mean, std), floats)


def test_a_single_image_is_normalised_as_in_a_batch() -> None:
    image = noise(6, 7)
    colours = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    assert torch.equal(normalise(image, *colours), normalise(image[None], *colours)[0])
