"""Open data sets by name, split them, and make batches of a resolution.

Reading order: `catalogue` (names, opening), `splits` (what a data set is), `readers/` (how each is listed), `images`
(one image), `patches` (images of many bands), `statistics` (means of bands), `digests` (what identifies files), `cache`
(decoding once), `checks` (bad images and doubles), `views` (cropping and resizing), `augment` (what torchvision does to
a batch), `loaders` (batches).
"""

from ofav2.data.catalogue import Entry, count_channels, names, open_data, refuse_inside
from ofav2.data.images import ArrayImages, file_images
from ofav2.data.loaders import (
    Batch,
    Request,
    batch_resolution,
    calibration_batches,
    count_views,
    eval_batches,
    steps_per_epoch,
    train_batches,
    view_bytes,
)
from ofav2.data.splits import ImageData, Listed, Split, SplitRecord, join, read_split, split_record, write_split
from ofav2.data.views import normalise

__all__ = [
    "ArrayImages",
    "Batch",
    "Entry",
    "ImageData",
    "Listed",
    "Request",
    "Split",
    "SplitRecord",
    "batch_resolution",
    "calibration_batches",
    "count_channels",
    "count_views",
    "eval_batches",
    "file_images",
    "join",
    "names",
    "normalise",
    "open_data",
    "read_split",
    "refuse_inside",
    "split_record",
    "steps_per_epoch",
    "train_batches",
    "view_bytes",
    "write_split",
]
