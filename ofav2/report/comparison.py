"""Hold what several runs, or several searches, have in common, and what not."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
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
    flat = [dict(flat_settings(values)) for values in settings]
    keys = dict.fromkeys(key for values in flat for key in values)
    rows = ((key, [values.get(key, "–") for values in flat]) for key in keys)
    return tuple((key, *_told_apart(values)) for key, values in rows if len({*map(_exact, values)}) > 1)


def _told_apart(values: Sequence[object]) -> list[str]:
    """Return values as a recipe has them: with six digits, or with all where six make different ones alike."""
    short, exact = [_written(value, "{:g}".format) for value in values], [_exact(value) for value in values]
    return short if len({*short}) == len({*exact}) else exact


def _exact(value: object) -> str:
    return _written(value, lambda number: f"{number:g}" if float(f"{number:g}") == number else repr(number))


def _written(value: object, number: Callable[[float], str]) -> str:
    """Return a setting as a recipe has it, its floats written by a function."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(_written(one, number) for one in value)}]"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return number(value) if isinstance(value, float) else str(value)
