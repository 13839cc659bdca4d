"""Open data sets by name, split them, and make batches of a resolution.

Reading order: `catalogue` (names, opening), `splits` (what a data set is), `readers/arrays` and `readers/folders` (how
each is listed), `images` (one image), `cache` (decoding once), `checks` (bad images and doubles), `views` (cropping and
resizing), `augment` (what torchvision does to a batch), `loaders` (batches).
"""

from ofav2.data.catalogue import names, open_data
from ofav2.data.loaders import (
    Batch,
    Request,
    batch_resolution,
    calibration_batches,
    eval_batches,
    steps_per_epoch,
    train_batches,
)
from ofav2.data.splits import ImageData, Split, join, split_record
from ofav2.data.views import normalise

__all__ = [
    "Batch",
    "ImageData",
    "Request",
    "Split",
    "batch_resolution",
    "calibration_batches",
    "eval_batches",
    "join",
    "names",
    "normalise",
    "open_data",
    "split_record",
    "steps_per_epoch",
    "train_batches",
]
