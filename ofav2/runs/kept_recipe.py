"""Read the recipe that a run was trained by."""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ofav2.config import recipe
from ofav2.config.schema import Config
from ofav2.errors import RunError
from ofav2.messages import show
from ofav2.runs.folder import RECIPE, RECORD
from ofav2.runs.records import RunRecord

logger = logging.getLogger(__name__)

PLACES = ("root", "labels", "download", "cache", "cache_gib", "bad_images", "workers")
"""Settings of data that say where images are and how they are read."""
FREE = (
    *(f"data.{name}" for name in PLACES),
    *("run.device", "run.threads", "run.folder", "evaluation.batch_size", "tracking"),
)
"""Settings that say where things are and what computes: they may be edited in a run's `recipe.yaml`."""


def kept_recipe(folder: Path, record: RunRecord) -> Config:
    """Return the recipe that a run was trained by, with images and device where its `recipe.yaml` has them now.

    Args:
        folder: The run folder. `recipe.yaml` may be lost: `run.json` holds all of it.
        record: The run's record.

    Raises:
        RunError: If `recipe.yaml` differs in something else.
        UserError: If it can't be read.
    """
    kept, path = trained_recipe(folder, record), folder / RECIPE
    if not os.path.lexists(path):
        logger.warning(f"{path} is missing: its settings are taken from {RECORD}")
        return kept
    edited = recipe.load(str(path))
    differing = changed_settings(asdict(kept), asdict(edited))
    for key, (before, now) in differing.items():
        if not names_setting(FREE, key):
            raise RunError(
                f"{path}: {key} is {show(now)}, and was {show(before)} when the run was trained:"
                " restore its recipe.yaml, or remove the file, as run.json holds the recipe"
            )
    if differing:
        logger.info(f"{path} was edited since the run was trained: {', '.join(differing)}")
    return edited


def trained_recipe(folder: Path, record: RunRecord) -> Config:
    """Return the recipe that a run was trained by, from its record alone.

    Raises:
        UserError: If it is damaged.
    """
    return recipe.parse(record.recipe, f"recipe in {folder / RECORD}")


def changed_settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the settings that differ by their full keys, each as it was and as it is; None for one that is missing."""
    old, new = dict(flat_settings(before)), dict(flat_settings(now))
    return {key: (old.get(key), new.get(key)) for key in {**old, **new} if old.get(key) != new.get(key)}


def names_setting(names: Sequence[str], key: str) -> bool:
    """Say whether a setting's full key is among some names, or belongs to a part that they name, such as `tracking`."""
    return any(f"{key}.".startswith(f"{name}.") for name in names)


def flat_settings(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield settings by their full keys, such as `phases.full.lr`."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flat_settings(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", list(value) if isinstance(value, tuple) else value
