"""The values that a recipe's data part may have."""

from ofav2.config.schema import DataConfig
from ofav2.errors import UserError


def check_settings(config: DataConfig) -> None:
    """Refuse impossible values of everything but the data set's name and folder.

    Raises:
        UserError: A value breaks its rule; the message names the key.
    """
    _check_sizes(config)
    _check_splits(config)
    _check_crops(config)
    _check_augmentation(config)
    _check_colours(config)


def _check_sizes(config: DataConfig) -> None:
    resolutions = config.resolutions
    positive = len(resolutions) > 0 and all(resolution >= 1 for resolution in resolutions)
    _require("resolutions", resolutions, positive, "give one or more image sides in pixels, each 1 or more")
    distinct = len(set(resolutions)) == len(resolutions)
    _require("resolutions", resolutions, distinct, "sides are drawn with equal chances; give each side once")
    _require("batch_size", config.batch_size, config.batch_size >= 2, "batch norm needs 2 images or more")
    _require("workers", config.workers, config.workers >= 0, "give 0 (no worker processes) or more")
    _require("cache_gib", config.cache_gib, 0 < config.cache_gib < float("inf"), "give a size in GiB above 0")


def _check_splits(config: DataConfig) -> None:
    inside = "give a share above 0 and below 1"
    _require("val_fraction", config.val_fraction, 0 < config.val_fraction < 1, inside)
    _require("test_fraction", config.test_fraction, 0 < config.test_fraction < 1, inside)
    _require("split_seed", config.split_seed, config.split_seed >= 0, "give a whole number from 0 up")


def _check_crops(config: DataConfig) -> None:
    low, high = config.crop_scale
    _require("crop_scale", config.crop_scale, 0 < low <= high <= 1, "give (low, high) with 0 < low <= high <= 1")
    low, high = config.crop_ratio
    ordered = 0 < low <= high < float("inf")
    _require("crop_ratio", config.crop_ratio, ordered, "give (low, high) with 0 < low <= high")
    _require("eval_crop", config.eval_crop, 0 < config.eval_crop <= 1, "give a share above 0 and up to 1")


def _check_augmentation(config: DataConfig) -> None:
    low, hue = min(config.jitter), config.jitter[3]
    _require("jitter", config.jitter, low >= 0 and hue <= 0.5, "give four strengths, each 0 or more, hue up to 0.5")
    operations, magnitude = config.randaugment
    within = operations >= 0 and 0 <= magnitude <= 30
    _require("randaugment", config.randaugment, within, "give (operations, magnitude): 0 or more, and 0 to 30")
    _require("mixup", config.mixup, 0 <= config.mixup < float("inf"), "give an alpha above 0, or 0 for none")
    _require("cutmix", config.cutmix, 0 <= config.cutmix < float("inf"), "give an alpha above 0, or 0 for none")


def _check_colours(config: DataConfig) -> None:
    if config.mean is not None:
        scaled = all(0 <= value <= 1 for value in config.mean)
        _require("mean", config.mean, scaled, "give values in 0..1 (divide those in 0..255 by 255), or null")
    if config.std is not None:
        scaled = all(0 < value <= 1 for value in config.std)
        _require("std", config.std, scaled, "give values above 0 and up to 1 (divide those in 0..255 by 255), or null")


def _require(key: str, value: object, holds: bool, rule: str) -> None:
    if not holds:
        raise UserError(f"data.{key} ({value}): {rule}")
