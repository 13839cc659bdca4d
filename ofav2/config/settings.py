"""Describe every setting of a recipe: key, type, default, rule, and the sentence of the schema.

All of it comes from the schema's source and the table of ranges, so that nothing is written twice.
"""

import ast
import dataclasses
import difflib
import inspect
import json
import textwrap
from collections.abc import Iterator
from dataclasses import MISSING, dataclass
from functools import cache
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ofav2.config import schema
from ofav2.config.ranges import RULES
from ofav2.errors import UserError
from ofav2.messages import join, short

PHASE = "NAME"
"""Stands for a phase's name in keys."""

_COMMENT_WIDTH = 100


@dataclass(frozen=True)
class Setting:
    """A setting of a recipe, or of a fine-tuning."""

    key: str
    """Key in full; `phases.NAME.epochs` is every phase's."""
    kind: str
    """Type of the value, or the values to choose from."""
    default: str
    """Default as it is written; empty for a setting without one."""
    rule: str
    """Range of the value; empty where the type says all."""
    sentence: str
    """What it is."""


@cache
def settings() -> tuple[Setting, ...]:
    """Return all settings in the order of the schema: those of a recipe, then those of a fine-tuning alone."""
    tuning = (setting for setting in _settings(schema.TuningConfig, "") if setting.key.startswith("finetune."))
    return (*_settings(schema.Config, ""), *tuning)


def find_settings(key: str) -> tuple[Setting, ...]:
    """Return the setting of a key, or all settings of a section.

    Args:
        key: A key in full, with NAME or a phase's own name in the place of a phase's; a section such as `data`; or the
            last part of keys, such as `epochs`.

    Raises:
        UserError: No setting has this key; the message names near ones.
    """
    parts = key.split(".")
    pattern = ".".join(["phases", PHASE, *parts[2:]]) if parts[0] == "phases" and len(parts) > 1 else key
    found = tuple(
        setting
        for setting in settings()
        if setting.key == pattern or setting.key.startswith(f"{pattern}.") or setting.key.rpartition(".")[2] == key
    )
    if not found:
        keys = [setting.key for setting in settings()]
        last = {full.rpartition(".")[2]: full for full in keys}
        near = difflib.get_close_matches(pattern, keys, n=1) or [
            last[name] for name in difflib.get_close_matches(parts[-1], last, n=1)
        ]
        hint = f"did you mean {near[0]}?" if near else "`ofav2 settings` lists them"
        raise UserError(f"{short(key)}: no such setting; {hint}")
    return found


def comment(text: str) -> str:
    """Write each setting's sentence above it, as a comment.

    A phase's settings are explained where they come first.

    Args:
        text: A recipe as `ofav2.config.recipe.dump` writes it.
    """
    sentences = {setting.key: setting.sentence for setting in settings()}
    lines: list[str] = []
    path: list[str] = []
    for line in text.splitlines():
        name, colon, _ = line.lstrip().partition(":")
        indent = len(line) - len(line.lstrip())
        if colon and not line.lstrip().startswith("-"):
            path = [*path[: indent // 2], name]
            key = ".".join([*path[:1], PHASE, *path[2:]] if path[0] == "phases" else path)
            margin = " " * indent + "# "
            # Taken out, so that it is not said again in the next phase.
            lines += textwrap.wrap(
                sentences.pop(key, ""), _COMMENT_WIDTH, initial_indent=margin, subsequent_indent=margin
            )
        lines.append(line)
    return "\n".join(lines)


def _settings(section: type[Any], key: str) -> Iterator[Setting]:
    sentences = _sentences(section)
    kinds = get_type_hints(section)
    for field in dataclasses.fields(section):
        full, kind = join(key, field.name), kinds[field.name]
        if get_origin(kind) is dict:
            full, kind = join(full, PHASE), get_args(kind)[1]
        if dataclasses.is_dataclass(kind):
            assert isinstance(kind, type)
            yield from _settings(kind, full)
        else:
            yield Setting(full, _kind(kind), _default(field), _rule(full), sentences[field.name])


def _sentences(section: type[Any]) -> dict[str, str]:
    """Return the texts below the fields of a dataclass, those of its bases first."""
    found: dict[str, str] = {}
    for owner in reversed(section.__mro__[:-1]):
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
        assert isinstance(definition, ast.ClassDef)
        for field, text in zip(definition.body, definition.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                assert isinstance(field.target, ast.Name)
                found[field.target.id] = " ".join(str(text.value.value).split())
    return found


def _kind(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return ", ".join(get_args(kind))
    if get_origin(kind) is tuple:
        items = get_args(kind)
        return f"list of {_kind(items[0])}" if items[-1] is Ellipsis else f"{len(items)} x {_kind(items[0])}"
    if arms := get_args(kind):
        return " or ".join("null" if arm is NoneType else _kind(arm) for arm in arms)
    return {bool: "true, false", int: "whole number", float: "number", str: "text"}.get(kind, "text or list of number")


def _default(field: "dataclasses.Field[Any]") -> str:
    return "" if field.default is MISSING else json.dumps(field.default)


def _rule(key: str) -> str:
    pattern = key.replace(f".{PHASE}.", ".*.")
    return next((rule.says for rule in RULES if pattern in rule.keys), "")
