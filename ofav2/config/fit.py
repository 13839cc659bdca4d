"""Fit plain values to the schema: nothing is converted but lists to tuples and whole numbers to floats.

`typed_json.fit` does so for files that the package wrote. People write recipes: keys have defaults, ranges stand for
lists, and a refusal names the setting that was meant, or how to write the value.
"""

import dataclasses
import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import MISSING
from types import MappingProxyType, NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from ofav2.config.ranges import PHASE_NAME, PHASES_FORM, check
from ofav2.config.schema import Config, TuningConfig
from ofav2.errors import UserError
from ofav2.messages import join, setting, show
from ofav2.typed_json import wrong_number, wrong_type

Settings = TypeVar("Settings", Config, TuningConfig)

_MAX_RANGE = 1024


class _UnknownKeyError(Exception):
    """A key that the schema of its section lacks: (section's schema, name, value, section's key)."""


def fit(schema: type[Settings], values: Mapping[Any, Any]) -> Settings:
    """Make a configuration of plain values, defaults filled in, and check it.

    Args:
        schema: `Config` or `TuningConfig`.
        values: A mapping of sections, as YAML has it.

    Raises:
        UserError: A setting is unknown, missing, of the wrong type or out of range.
    """
    try:
        config: Settings = _section(schema, values, "")
    except _UnknownKeyError as error:
        raise _unknown(schema, *error.args) from error
    check(config)
    return config


def _section(schema: type[Any], value: Any, key: str) -> Any:
    """Return an instance of a dataclass of the schema, defaults filled in; unknown and missing keys are refused."""
    if not isinstance(value, dict):
        raise UserError(f"{key} ({show(value)}): must be a mapping of settings; name one, as in {key}.NAME=VALUE")
    known = {field.name for field in dataclasses.fields(schema)}
    for name in value:
        if name not in known:
            raise _UnknownKeyError(schema, name, value[name], key)
    kinds = get_type_hints(schema)
    for name in _missing(schema, value):
        full = join(key, name)
        if dataclasses.is_dataclass(kinds[name]):
            _fit(kinds[name], {}, full)  # Names what is missing inside.
        raise UserError(f"{full} (missing): has no default; give it, as in {full}=VALUE")
    return schema(**{name: _fit(kinds[name], item, join(key, name)) for name, item in value.items()})


def _missing(schema: type[Any], value: Mapping[Any, Any]) -> tuple[str, ...]:
    """Return the schema's fields without default that the value lacks."""
    fields = dataclasses.fields(schema)
    needed = (field.name for field in fields if field.default is MISSING and field.default_factory is MISSING)
    return tuple(name for name in needed if name not in value)


def _unknown(root: type[Any], schema: type[Any], name: Any, value: Any, key: str) -> UserError:
    """Return the refusal of a key that the schema lacks, with the likely one named."""
    siblings = [field.name for field in dataclasses.fields(schema)]
    near = [join(key, match) for match in difflib.get_close_matches(str(name), siblings, n=1)]
    elsewhere = [full for full in _keys(root, "") if full.rpartition(".")[2] == name]
    likely = near or elsewhere
    hint = f"did you mean {' or '.join(likely)}?" if likely else "remove it or choose one of these"
    return UserError(f"{join(key, name)} ({show(value)}): no such key here ({', '.join(siblings)}); {hint}")


def _keys(schema: type[Any], key: str) -> Iterator[str]:
    """Return every key of the schema in full; NAME stands for a phase's name."""
    for name, kind in get_type_hints(schema).items():
        full = join(key, name)
        if get_origin(kind) is dict:
            kind, full = get_args(kind)[1], f"{full}.NAME"
        if dataclasses.is_dataclass(kind):
            yield from _keys(kind, full)  # type: ignore[arg-type]  # is_dataclass does not narrow to the class
        else:
            yield full


def _fit(kind: Any, value: Any, key: str) -> Any:
    """Return the value in the schema's kind; only lists become tuples, and whole numbers floats."""
    origin = get_origin(kind)
    if dataclasses.is_dataclass(kind):
        return _section(kind, value, key)  # type: ignore[arg-type]  # is_dataclass does not narrow to the class
    if origin is dict:
        return _phases(get_args(kind)[1], value, key)
    if origin is tuple:
        return _items(get_args(kind), value, key)
    if origin is Literal:
        return _choice(get_args(kind), value, key)
    # Up to Python 3.13, a union with a Literal is of the older kind.
    if origin in (UnionType, Union):
        (inner,) = (arm for arm in get_args(kind) if arm is not NoneType)
        return None if value is None else _fit(inner, value, key)
    if kind is Any:
        return _names_or_values(value, key)
    return _scalar(kind, value, key)


def _phases(kind: type[Any], value: Any, key: str) -> dict[str, Any]:
    """Return the mapping of phases, in the recipe's order."""
    if not isinstance(value, dict):
        raise UserError(
            f"{key} ({show(value)}): must be a mapping of phases by name; write it as {setting(key, PHASES_FORM)}"
        )
    for name, phase in value.items():
        # Phases name files of the run folder.
        if not isinstance(name, str) or not PHASE_NAME.fullmatch(name):
            raise UserError(
                f"{join(key, name)} ({show(phase)}): a phase's name is text of 1 to 64 letters, digits, '_' or '-', "
                "and not state-N or aside-N, as states are called, or test, as the scores at the end are; rename it,"
                " with quotes around a number"
            )
    return {name: _phase(kind, name, value, key) for name in value}


def _phase(kind: type[Any], name: str, phases: Mapping[str, Any], key: str) -> Any:
    phase, full = phases[name], join(key, name)
    near = difflib.get_close_matches(name, [other for other in phases if other != name], n=1)
    # An override of a misspelt phase makes a new, incomplete one.
    if near and isinstance(phase, dict) and _missing(kind, phase):
        absent = " and ".join(f"{full}.{field}=VALUE" for field in _missing(kind, phase))
        raise UserError(f"{full} ({show(phase)}): lacks settings; did you mean {key}.{near[0]}? If not, add {absent}")
    return _section(kind, phase, full)


def _items(kinds: tuple[Any, ...], value: Any, key: str) -> tuple[Any, ...]:
    """Return a list of any length (kinds end in an ellipsis) or of a fixed one; of whole numbers, a range will do."""
    if kinds == (int, ...) and isinstance(value, str):
        return _range(value, key)
    if not isinstance(value, list):
        raise UserError(
            f"{key} ({show(value)}): must be a list, which is given as a whole; write it as in {setting(key, '[A,B]')}"
        )
    if kinds[-1] is Ellipsis:
        kinds = kinds[:1] * len(value)
    if len(kinds) != len(value):
        raise UserError(f"{key} ({show(value)}): must be a list of {len(kinds)}; it has {len(value)}, correct it")
    return tuple(_fit(kind, item, f"{key}[{i}]") for i, (kind, item) in enumerate(zip(kinds, value, strict=True)))


def _range(text: str, key: str) -> tuple[int, ...]:
    """Return the numbers that a text such as `48..64 step 4` stands for, both ends included."""
    found = re.fullmatch(r"(\d{1,9})\.\.(\d{1,9}) step (\d{1,9})", " ".join(text.split()), re.ASCII)
    low, high, step = map(int, found.groups()) if found else (0, 0, 0)
    if not found or not step or low > high or (high - low) % step or (high - low) // step >= _MAX_RANGE:
        raise UserError(
            f"{key} ({show(text)}): must be a list or a range that its steps fill, of up to {_MAX_RANGE} numbers; "
            f"write it as in {setting(key, '[48,64]')} or {setting(key, '48..64 step 4')}"
        )
    return tuple(range(low, high + 1, step))


def _choice(choices: tuple[Any, ...], value: Any, key: str) -> Any:
    if value in choices:
        return value
    near = difflib.get_close_matches(str(value), choices, n=1)
    hint = f"did you mean {near[0]}?" if near else f"write it as in {key}={choices[0]}"
    raise UserError(f"{key} ({show(value)}): must be one of {', '.join(choices)}; {hint}")


def _names_or_values(value: Any, key: str) -> Any:
    """Return a name, a number, or lists and mappings of them, whose meaning others know, such as `distill`."""
    if value is None:
        raise UserError(f"{key} (null): must be a name, numbers, or a mapping of them; write it as in {key}=uniform")
    if isinstance(value, list):
        return tuple(_names_or_values(item, f"{key}[{i}]") for i, item in enumerate(value))
    if isinstance(value, dict):
        return {_scalar(str, name, key): _names_or_values(item, join(key, name)) for name, item in value.items()}
    return _scalar(str if isinstance(value, str) else float, value, key)


def _scalar(kind: type[Any], value: Any, key: str) -> Any:
    if problem := wrong_type(kind, value):
        raise UserError(f"{key} ({show(value)}): {problem}; {_STEPS[kind]}")
    if problem := wrong_number(value):
        raise UserError(f"{key} ({show(value)}): {problem}; choose an ordinary number")
    return kind(value)


_STEPS: Mapping[type[Any], str] = MappingProxyType(
    {
        int: "write it in digits, without quotes or fraction",
        float: "write it in digits, without quotes",
        bool: "write one of them, without quotes",
        str: "put quotes around it",
    }
)
