"""Colour, RandAugment, mixup and cutmix: torchvision's own, seeded by (seed, phase, step), the same in parts."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from ofav2 import data
from ofav2.config.schema import DataConfig
from ofav2.data import Batch
from ofav2.data.augment import GROUP, Augmentation, mixed, recoloured
from ofav2.rng import Stream
from ofav2.runtime.share import Share
from tests.ofav2 import tiny

DATA = tiny.tiny_data(train=60, classes=5)
CONFIG = DataConfig("noise", resolutions=(12, 16), batch_size=12, crop_scale=(0.5, 1.0))
JITTER = replace(CONFIG, jitter=(0.4, 0.4, 0.4, 0.1))
SETTINGS = {
    "jitter": JITTER,
    "randaugment": replace(CONFIG, randaugment=(2, 9)),
    "mixup": replace(CONFIG, mixup=0.4),
    "cutmix": replace(CONFIG, cutmix=1.0),
    "all": replace(JITTER, randaugment=(1, 5), mixup=0.2, cutmix=1.0),
}
KEY = (3, 4, 5)


def load(config: DataConfig, *, steps: int = 10, start: int = 0, part: int = 0, parts: int = 1) -> list[Batch]:
    return list(data.train_batches(DATA, config, Stream(1, "full"), range(start, steps), share=Share(part, parts)))


def same(first: list[Batch], second: list[Batch]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a.images, b.images) and torch.equal(a.targets, b.targets)
        for a, b in zip(first, second, strict=True)
    )


def noise(count: int, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.integers(0, 256, (count, 3, 10, 10), dtype=np.uint8))


@pytest.mark.parametrize("config", SETTINGS.values(), ids=SETTINGS)
def test_batches_are_functions_of_the_step(config: DataConfig) -> None:
    whole = load(config)
    assert not same(whole, load(CONFIG))
    assert same(load(config, start=7), whole[7:])
    before = torch.get_rng_state()
    with torch.random.fork_rng():
        torch.manual_seed(5)
        assert same(load(config), whole)
    load(config, steps=1)
    assert torch.equal(torch.get_rng_state(), before), "the global generator is as it was"


@pytest.mark.parametrize("parts", [3, 4])
@pytest.mark.parametrize("config", SETTINGS.values(), ids=SETTINGS)
def test_parts_side_by_side_are_the_batch(config: DataConfig, parts: int) -> None:
    whole = load(config)
    for batch, *pieces in zip(whole, *(load(config, part=part, parts=parts) for part in range(parts)), strict=True):
        assert torch.equal(torch.cat([piece.images for piece in pieces]), batch.images)
        assert torch.equal(torch.cat([piece.targets for piece in pieces]), batch.targets)


def test_each_group_of_a_batch_is_changed_as_torchvision_changes_it() -> None:
    settings = Augmentation((0.4, 0.4, 0.4, 0.1), (2, 9), 0.0, 0.0, 5)
    images = noise(2 * GROUP + 3)
    found = recoloured(images, np.arange(len(images)), settings, KEY)
    assert (found.dtype, found.shape) == (torch.uint8, images.shape)
    transform = v2.Compose([v2.ColorJitter(0.4, 0.4, 0.4, 0.1), v2.RandAugment(2, 9)])
    for start in range(0, len(images), GROUP):
        group = images[start : start + GROUP]
        seeds = data.augment.generator("colour", *KEY, start // GROUP).integers(2**63)
        with torch.random.fork_rng():
            torch.manual_seed(int(seeds))
            assert torch.equal(found[start : start + GROUP], transform(group))
    # An image alone is changed as among its group, which it has nothing to do with but the draw.
    alone = recoloured(images[GROUP + 2 : GROUP + 3], np.array([GROUP + 2]), settings, KEY)
    assert torch.equal(alone[0], found[GROUP + 2])


def test_mixup_mixes_each_image_and_label_with_the_one_before_it() -> None:
    images, labels = noise(7), torch.tensor([0, 1, 2, 3, 4, 0, 1])
    shares = set()
    for step in range(20):
        pictures, probabilities = mixed(images, labels, Augmentation((0,) * 4, (0, 9), 0.4, 0.0, 5), (3, 4, step))
        assert (pictures.dtype, probabilities.dtype) == (torch.float32, torch.float32)
        assert (len(pictures), len(probabilities)) == (6, 6)
        share = float(probabilities[0, 1])
        shares.add(round(share, 4))
        expected = share * images[1:].float() + (1 - share) * images[:-1].float()
        torch.testing.assert_close(pictures, expected, rtol=1e-5, atol=1e-3)
        one_hot = torch.eye(5)
        torch.testing.assert_close(probabilities, share * one_hot[labels[1:]] + (1 - share) * one_hot[labels[:-1]])
    assert len(shares) > 10


def test_cutmix_puts_a_box_of_the_image_before_it_into_each() -> None:
    images, labels = noise(7), torch.tensor([0, 1, 2, 3, 4, 0, 1])
    boxed = 0
    for step in range(20):
        pictures, probabilities = mixed(images, labels, Augmentation((0,) * 4, (0, 9), 0.0, 1.0, 5), (3, 4, step))
        own, other = pictures == images[1:].float(), pictures == images[:-1].float()
        assert (own | other).all()
        share = 1 - float((~own).all(1).any(0).sum()) / 100
        assert abs(float(probabilities[0, 1]) - share) < 0.051  # where both have the same value, no box is seen
        boxed += share < 1
    assert boxed > 10


def test_of_mixup_and_cutmix_each_batch_draws_one() -> None:
    whole = load(replace(CONFIG, mixup=0.4, cutmix=1.0), steps=60)
    by_cutmix = sum(bool((batch.images == batch.images.round()).all()) for batch in whole)
    assert 15 < by_cutmix < 45


def test_mixing_gives_probabilities_and_plain_batches_classes() -> None:
    (mixture,), (plain,) = load(SETTINGS["mixup"], steps=1), load(CONFIG, steps=1)
    assert mixture.targets.shape == (12, 5)
    torch.testing.assert_close(mixture.targets.sum(1), torch.ones(12))
    assert (plain.targets.dtype, plain.targets.shape) == (torch.int64, (12,))
    floats = data.normalise(mixture.images, DATA.mean, DATA.std)
    assert floats.dtype == torch.float32
