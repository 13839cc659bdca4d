"""A hidden square is what the task asks for: nothing else counts, and the network sees none of it."""

import numpy as np
import torch
from torch import Tensor

from ofav2.tasks.reconstruction import Reconstruction

TASK = Reconstruction(("red", "near infrared"), ("elevation",))


def made_up() -> tuple[Tensor, Tensor]:
    """Images with two pixels without data, and a plane with a number missing."""
    generator = torch.Generator().manual_seed(1)
    images, planes = torch.randn(64, 2, 12, 10, generator=generator), torch.randn(64, 1, 12, 10, generator=generator)
    images[:, :, 4:6, 4] = 0
    planes[0, 0, 0, 0] = torch.nan
    return images, planes


def test_what_counts_is_what_the_network_cannot_see() -> None:
    images, planes = made_up()
    shown, target = TASK.pose(images, planes, np.random.default_rng(2))
    hidden = ((shown == 0).all(1) & (images != 0).all(1))[:, None].expand_as(images)
    assert torch.equal(TASK.counted(target)[:, :2], hidden)
    assert torch.equal(target[:, :2][hidden], images[hidden])
    assert torch.equal(shown[~hidden], images[~hidden])
    torch.testing.assert_close(target[:, 2:], planes, equal_nan=True, rtol=0, atol=0)
    assert TASK.outputs == target.shape[1] == 3


def test_squares_lie_everywhere_in_training_and_in_the_middle_in_evaluation() -> None:
    images, planes = made_up()
    first, second = (TASK.pose(images, planes, np.random.default_rng(3))[0] for _ in range(2))
    assert torch.equal(first, second)
    squares = (first == 0).all(1) & (images != 0).all(1)
    assert {int(square.any(1).nonzero()[0]) for square in squares} == set(range(7))
    middle = (TASK.pose(images, planes, None)[0] == 0).all(1)
    assert middle[:, 3:9, 2:7].all()
    assert middle.sum((1, 2)).unique().tolist() == [30]


def test_an_image_is_posed_alike_in_any_batch() -> None:
    images, planes = made_up()
    whole = TASK.pose(images, planes, None)
    parts = [TASK.pose(*part, None) for part in zip(images.split([10, 54]), planes.split([10, 54]), strict=True)]
    for found, joined in zip(whole, map(torch.cat, zip(*parts, strict=True)), strict=True):
        torch.testing.assert_close(found, joined, equal_nan=True, rtol=0, atol=0)
