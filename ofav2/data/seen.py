"""Know images again by their content, so that those that a network was trained on are never its test images."""

import logging
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ofav2.data.cache import CheckedImages
from ofav2.data.digests import Digests
from ofav2.data.images import Images, digest_of
from ofav2.data.patches import PatchImages, ReadInPlace
from ofav2.data.splits import ImageData, Split
from ofav2.errors import UserError

logger = logging.getLogger(__name__)


def seen_digests(data: ImageData) -> Digests:
    """Return digests of the training and the validation images, ascending, each once.

    Those of a file are of its bytes, wherever it lies; a copy that was written anew is another image.
    """
    return np.unique(np.concatenate([digests_of(split) for split in (data.train, data.val)]))


def digests_of(split: Split) -> Digests:
    """Return a digest of each image of a split, in its order, as in `seen_digests`."""
    return _digests(split.images, len(split))


def unseen(split: Split, seen: Digests) -> Split:
    """Return a split without the images that a network was trained on, and say how many they are.

    Args:
        split: Images to test it on.
        seen: Digests of the images that it was trained on.

    Raises:
        UserError: No image is left.
    """
    known = _is_known(split, seen)
    if not known.any():
        return split
    if known.all():
        raise UserError(
            f"split {split.name} holds {len(split)} images, and the network was trained on all of them: name images"
            " that it never saw by data.root=PATH"
        )
    logger.warning(f"{split.name} images that the network was trained on, left out: {known.sum()} of {len(split)}")
    return split.take(split.name, np.flatnonzero(~known))


def count_seen(split: Split, seen: Digests) -> int:
    """Count the images of a split that a network was trained on; arguments as for `unseen`."""
    return int(_is_known(split, seen).sum())


def _is_known(split: Split, seen: Digests) -> npt.NDArray[np.bool_]:
    """Return which images have one of some digests; 0 is that of patches that can't be told apart."""
    digests = digests_of(split)
    return np.isin(digests, seen) & (digests != 0)


def count_known(held: Sequence[Split], trained: Split, own: Split) -> tuple[int, ...] | None:
    """Count images of each of some splits that another training saw, and this run's own does not.

    Copies that a data set has in several of its own splits are not counted. Of patches, whole ones are compared, in the
    bands that are learnt; one of which all pixels are equal is known to none.

    Args:
        held: Splits that are held out.
        trained: Training images of the other run.
        own: Training images of this run.

    Returns:
        The counts; None where images of the two runs are read in ways that can't be compared.
    """
    if _kind(own.images) != _kind(trained.images):
        return None
    others = np.setdiff1d(_stored_digests(trained), _stored_digests(own))
    return tuple(int(np.isin(_stored_digests(split), others[others != 0]).sum()) for split in held)


def _kind(images: Images) -> str:
    """Return what digests of images are made of."""
    if isinstance(images, PatchImages):
        return "in place" if any(isinstance(part.images, ReadInPlace) for part in images.parts) else "patches"
    return "files" if isinstance(images, CheckedImages) else "pixels"


def _stored_digests(split: Split) -> Digests:
    images = split.images
    return images.stored_digests() if isinstance(images, PatchImages) else _digests(images, len(split))


def _digests(images: Images, count: int) -> Digests:
    if isinstance(images, CheckedImages):
        return images.digests
    if isinstance(images, PatchImages):
        return np.array([images.digest(index) for index in range(count)], dtype=np.uint64)
    pixels = (images.read(index).contiguous() for index in range(count))
    return np.array([digest_of(image.numpy().tobytes()) for image in pixels], dtype=np.uint64)
