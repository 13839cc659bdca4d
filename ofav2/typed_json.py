"""Read and write frozen dataclasses as JSON files, each with a format version; check every value in one place.

A dataclass's annotations say what its file must hold. There are no defaults: a file has every key, and no other.
Supported are dataclasses, `str`, `bool`, `int`, `float`, `Literal`, `tuple`, `Mapping`, unions of these, `None`, and
classes with their own `from_dict` and `to_dict`. `Annotated[int, Within(0, 9)]` and `Annotated[str, Form(...)]` bound
a value; what fields must satisfy together is checked by the dataclass's `__post_init__`.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType, NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from ofav2 import files
from ofav2.errors import RunError
from ofav2.messages import join, one_line, short, show

Record = TypeVar("Record")

FORMAT = "format"
"""The key that holds a file's format version."""


@dataclass(frozen=True)
class Within:
    """The range of a number, both ends included."""

    lowest: float
    highest: float

    def problem(self, value: float) -> str | None:
        """Return the rule that a number breaks; None if it is in range."""
        return None if self.lowest <= value <= self.highest else f"must be from {self.lowest} to {self.highest}"


@dataclass(frozen=True)
class Form:
    """The form of a text: a regular expression that all of it matches, and its description."""

    pattern: str
    description: str

    def problem(self, value: str) -> str | None:
        """Return the rule that a text breaks; None if it has the form."""
        return None if re.fullmatch(self.pattern, value, re.ASCII) else f"must be {self.description}"


Count = Annotated[int, Within(0, 2**63 - 1)]
"""A number of things: steps, images, bytes."""
Positive = Annotated[int, Within(1, 2**63 - 1)]
"""A number of things of which there is at least one."""
Share = Annotated[float, Within(0, 1)]
"""A part of a whole."""
Weight = Annotated[float, Within(1e-9, 1)]
"""A part of a sum of 1 that is not nothing."""
LEAST_DEVIATION, LARGEST_DEVIATION = 1e-9, 1e9
Deviation = Annotated[float, Within(LEAST_DEVIATION, LARGEST_DEVIATION)]
"""A standard deviation."""
Sha256 = Annotated[str, Form("[0-9a-f]{64}", "a SHA-256 in 64 hexadecimal digits")]
"""The checksum of a file."""


class MisfitError(ValueError):
    """A value that a dataclass can't hold; the message names its key, the value and the rule."""


def read_record(path: Path, kind: type[Record], version: str, step: str) -> Record:
    """Read a JSON file that `write_record` wrote.

    Args:
        path: The file.
        kind: The dataclass that it holds.
        version: The format version that it must have.
        step: What the user should do if it can't be used, as it ends a message: "extract the network again".

    Raises:
        RunError: The file is missing, no JSON, of another version, or holds a value that does not fit.
    """
    values = files.read_json(path)
    found = values.pop(FORMAT, None)
    if found != version:
        raise RunError(f"{path}: format ({short(repr(found))}) must be {version!r}: {step}")
    try:
        return fit(kind, values)
    except MisfitError as error:
        raise RunError(f"{path}: {error}: {step}") from error


def write_record(path: Path, record: Any, version: str) -> None:
    """Write a dataclass as a JSON file, atomically, headed by its format version.

    Raises:
        RunError: The file can't be written; an older one is left untouched.
    """
    files.write_json(path, {FORMAT: version, **to_plain(record)})


def to_plain(value: Any) -> Any:
    """Return a dataclass, or a part of one, as JSON holds it."""
    if hasattr(value, "to_dict"):
        return value.to_dict()
    if is_dataclass(value):
        return {field.name: to_plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(name): to_plain(item) for name, item in value.items()}
    return [to_plain(item) for item in value] if isinstance(value, tuple | list) else value


def fit(kind: Any, value: Any, key: str = "") -> Any:
    """Return a plain value as a kind has it; nothing is converted but lists, mappings and whole numbers.

    Args:
        kind: A dataclass, or an annotation of its fields.
        value: What JSON held.
        key: Where it stood, for messages; empty for the whole file.

    Raises:
        MisfitError: The value, or a part of it, does not fit.
    """
    origin = get_origin(kind)
    if origin is Annotated:
        plain, *rules = get_args(kind)
        return _ruled(rules, fit(plain, value, key), key)
    if hasattr(kind, "from_dict"):
        return _made(kind.from_dict, (value,), {}, key)
    if is_dataclass(kind):
        return _fields(kind, value, key)
    if origin in (UnionType, Union):
        return _either(get_args(kind), value, key)
    if origin is Literal:
        choices = get_args(kind)
        if not isinstance(value, str) or value not in choices:
            raise _misfit(key, value, f"must be {' or '.join(map(repr, choices))}")
        return value
    if origin is tuple:
        return _items(get_args(kind), value, key)
    if origin is Mapping:
        name_kind, item_kind = get_args(kind)
        return _mapping(name_kind, item_kind, value, key)
    return _scalar(kind, value, key)


def _fields(kind: Any, value: Any, key: str) -> Any:
    if not isinstance(value, dict):
        raise _misfit(key, value, "must be a mapping")
    kinds = _hints(kind)
    for name in value:
        if name not in kinds:
            raise MisfitError(f"{short(join(key, name))} is not a key of this file ({', '.join(kinds)})")
    for name in kinds:
        if name not in value:
            raise MisfitError(f"{short(join(key, name))} is missing")
    return _made(kind, (), {name: fit(kinds[name], value[name], join(key, name)) for name in kinds}, key)


@cache
def _hints(kind: Any) -> Mapping[str, Any]:
    hints = get_type_hints(kind, include_extras=True)
    return MappingProxyType({field.name: hints[field.name] for field in fields(kind)})


def _made(make: Any, arguments: Sequence[Any], named: Mapping[str, Any], key: str) -> Any:
    """Build a value, and name its key where its own checks refuse it."""
    try:
        return make(*arguments, **named)
    except MisfitError:
        raise
    except ValueError as error:
        raise MisfitError(f"{short(key)}{': ' if key else ''}{one_line(str(error))}") from error


def _either(kinds: Sequence[Any], value: Any, key: str) -> Any:
    """Return the first of a union's kinds that fits; the refusal is that of the last one.

    Of several dataclasses, a mapping is the one that has most of its keys.
    """
    if value is None and NoneType in kinds:
        return None
    found = [kind for kind in kinds if kind is not NoneType]
    if isinstance(value, dict) and all(map(is_dataclass, found)):
        return fit(max(found, key=lambda kind: sum(field.name in value for field in fields(kind))), value, key)
    *others, last = found
    for kind in others:
        try:
            return fit(kind, value, key)
        except MisfitError:
            continue
    return fit(last, value, key)


def _items(kinds: tuple[Any, ...], value: Any, key: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise _misfit(key, value, "must be a list")
    if kinds[-1] is Ellipsis:
        kinds = kinds[:1] * len(value)
    if len(kinds) != len(value):
        raise _misfit(key, value, f"must be a list of {len(kinds)}")
    return tuple(fit(kind, item, f"{key}[{i}]") for i, (kind, item) in enumerate(zip(kinds, value, strict=True)))


def _mapping(name_kind: Any, kind: Any, value: Any, key: str) -> Mapping[Any, Any]:
    """Return a mapping by text, or by whole numbers, which JSON holds as text."""
    if not isinstance(value, dict):
        raise _misfit(key, value, "must be a mapping")
    if name_kind is int and not all(re.fullmatch(r"0|[1-9]\d{0,8}", name, re.ASCII) for name in value):
        raise _misfit(key, value, "must be a mapping by whole numbers")
    return {name_kind(name): fit(kind, item, join(key, name)) for name, item in value.items()}


def wrong_type(kind: Any, value: Any) -> str | None:
    """Return the rule that a value breaks which must be an `int`, `float`, `bool` or `str`; None if it is one."""
    rule, accepted = _SCALARS[kind]
    # A truth value is an int in Python, and in no file.
    return None if type(value) in accepted else f"must be {rule}"


def wrong_number(value: Any) -> str | None:
    """Return the rule that a number breaks which no file holds; None for others, and for what is no number."""
    fits = -(2**63) <= value < 2**63 if type(value) is int else type(value) is not float or math.isfinite(value)
    return None if fits else "must be finite and fit 64 bits"


def _scalar(kind: Any, value: Any, key: str) -> Any:
    if problem := wrong_type(kind, value) or wrong_number(value):
        raise _misfit(key, value, problem)
    return kind(value)


def _ruled(rules: Sequence[Any], value: Any, key: str) -> Any:
    for rule in rules:
        problem = rule.problem(value)
        if problem:
            raise _misfit(key, value, problem)
    return value


def _misfit(key: str, value: Any, rule: str) -> MisfitError:
    return MisfitError(f"{short(key)} ({_shown(value)}) {rule}")


def _shown(value: Any) -> str:
    try:
        return show(value)
    except (ValueError, RecursionError):
        # Python writes out neither integers of thousands of digits nor very deep lists.
        return f"a huge {type(value).__name__}"


_SCALARS: Mapping[Any, tuple[str, tuple[type[Any], ...]]] = MappingProxyType(
    {
        int: ("a whole number", (int,)),
        float: ("a number", (int, float)),
        bool: ("true or false", (bool,)),
        str: ("text", (str,)),
    }
)
