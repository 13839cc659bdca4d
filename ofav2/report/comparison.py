"""Hold what several runs, or several searches, have in common, and what not."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ofav2.runs.kept_recipe import flat_settings
from ofav2.tasks.base import Metric


@dataclass(frozen=True)
class Comparison:
    """What several runs, or several searches, have in common, and what not."""

    names: tuple[str, ...]
    """The runs or searches, each under a name of its own."""
    metric: Metric
    """What the scores of all of them are."""
    title: str
    """What the results are of."""
    columns: tuple[str, ...]
    """Columns of `results`."""
    settings: tuple[tuple[str, ...], ...]
    """Settings that differ: the key, then a value for each."""
    results: tuple[tuple[str, ...], ...]
    """Key results, a row for each; a dash for what there is not yet."""
    warnings: tuple[str, ...]
    """What keeps them from being compared fairly, a sentence each."""
    page: Path
    """The page that was written."""


def folder_names(folders: Sequence[Path]) -> tuple[str, ...]:
    """Return the folders' names, as given on the command line; the whole path if two are equal."""
    taken = Counter(folder.resolve().name for folder in folders)
    return tuple(folder.resolve().name if taken[folder.resolve().name] == 1 else str(folder) for folder in folders)


def differing(settings: Sequence[Mapping[str, Any]]) -> tuple[tuple[str, ...], ...]:
    """Return the settings that differ: the full key, then each value as a recipe has it; a dash for none."""
    flat = [{key: _written(value) for key, value in flat_settings(values)} for values in settings]
    keys = dict.fromkeys(key for values in flat for key in values)
    rows = ((key, *(values.get(key, "–") for values in flat)) for key in keys)
    return tuple(row for row in rows if len(set(row[1:])) > 1)


def _written(value: object) -> str:
    """Return a setting as a recipe has it."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_written, value))}]"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)
