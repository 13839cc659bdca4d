"""Recipes: finding, reading, merging, checking and writing them. The only owner of omegaconf and PyYAML.

A recipe is a YAML file that says everything about a run. It is read as plain values (no code, no interpolation, no
environment), overrides are merged over it, and the result is fitted to the schema in `schema`. Whatever does
not fit is refused in one line: the key in full, the value, the rule, the next step.
"""

import dataclasses
import difflib
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING
from functools import reduce
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from types import MappingProxyType, NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml
from omegaconf import Container, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ofav2.config.ranges import PHASE_NAME, PHASES_FORM, check
from ofav2.config.schema import Config, TuningConfig
from ofav2.errors import UserError
from ofav2.messages import KEY, join, one_line, short, show

SECTIONS = ("task", "run", "data", "supernet", "phases", "teacher", "optim", "evaluation", "tracking")
"""The sections of a recipe in the order in which recipes are written."""

Settings = TypeVar("Settings", Config, TuningConfig)

_MAX_BYTES = 2**20
_MAX_DEPTH = 16
_MAX_SCALAR = 1000
_MAX_RANGE = 1024


def names() -> tuple[str, ...]:
    """The shipped recipes, sorted by name."""
    files = (file.name for file in resources.files("recipes").iterdir())
    return tuple(sorted(name.removesuffix(".yaml") for name in files if name.endswith(".yaml")))


def describe(name: str) -> str:
    """The first sentence of a shipped recipe's header: what the recipe is for.

    Args:
        name: One of `names()`.

    Raises:
        UserError: No shipped recipe has that name.
    """
    lines = _text(_shipped(name), name, "install the package again").splitlines()
    header = " ".join(line.lstrip("# ") for line in lines if line.startswith("#"))
    sentence = re.match(r".+?\.(?=\s|$)", header)
    assert sentence is not None, f"recipe {name} has no header sentence"
    return sentence.group().strip()


def load(recipe: str, overrides: Sequence[str] = ()) -> Config:
    """Read a recipe, merge overrides over it and check the result.

    Args:
        recipe: A name from `names()`, or the path of a .yaml file.
        overrides: Settings as `key=value`, where key is a full path such as `phases.full.epochs` and value is YAML. A
            list is replaced as a whole; of two settings of one key the later one wins.

    Returns:
        The complete configuration, defaults filled in.

    Raises:
        UserError: The recipe cannot be found or read, or a setting is unknown, missing, of the wrong type or out of
            range. The message names the key in full, the value, the rule and the next step.
    """
    text = _text(_find(recipe), recipe, f"check the path, or take one of {', '.join(names())}")
    return parse(text, f"recipe {short(recipe)}", overrides)


def parse(text: str, where: str, overrides: Sequence[str] = ()) -> Config:
    """Read the text of a recipe, such as one that was kept beside results; see `load`.

    Args:
        text: A recipe as YAML.
        where: What messages call it.
        overrides: Settings as `key=value`.

    Raises:
        UserError: As for `load`.
    """
    return _fitted(Config, [_parse(text, where), *_overrides(overrides)])


def parse_tuning(text: str, where: str) -> TuningConfig:
    """Read the settings of a fine-tuning as `dump` wrote them; arguments and refusals are those of `parse`."""
    return _fitted(TuningConfig, [_parse(text, where)])


def adjust_tuning(base: TuningConfig, file: str | None, overrides: Sequence[str] = ()) -> TuningConfig:
    """Merge a YAML file, which may hold a part of the settings, and then overrides over those of a fine-tuning.

    Args:
        base: The settings to start from.
        file: Path of a .yaml file; None merges overrides alone.
        overrides: Settings as `key=value`.

    Raises:
        UserError: As for `load`.
    """
    layers = [_plain_values(base), *_overrides(overrides)]
    if file is not None:
        layers.insert(1, _parse(_text(Path(file), file, "give the path of a .yaml file"), f"recipe {short(file)}"))
    return _fitted(TuningConfig, layers)


def dump(config: Config | TuningConfig) -> str:
    """Write a configuration as YAML, complete and in the recipes' order; it reads back as an equal one."""
    values = _plain_values(config)
    names = SECTIONS if isinstance(config, Config) else tuple(values)
    return OmegaConf.to_yaml(OmegaConf.create({name: values[name] for name in names}))


def _plain_values(config: Config | TuningConfig) -> dict[Any, Any]:
    return {name: _as_yaml(value) for name, value in dataclasses.asdict(config).items()}


def _as_yaml(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _as_yaml(item) for name, item in value.items()}
    return [_as_yaml(item) for item in value] if isinstance(value, list | tuple) else value


# Finding and reading


def _find(recipe: str) -> Traversable:
    """The file of a recipe given by name or path."""
    is_path = recipe.endswith((".yaml", ".yml")) or "/" in recipe or "\\" in recipe
    return Path(recipe) if is_path else _shipped(recipe)


def _shipped(name: str) -> Traversable:
    """The file of a shipped recipe."""
    if name not in names():
        near = difflib.get_close_matches(name, names(), n=1)
        hint = f"did you mean {near[0]}?" if near else "choose one of these, or give the path of a .yaml file"
        raise UserError(f"recipe ({show(name)}): no shipped recipe has this name ({', '.join(names())}); {hint}")
    return resources.files("recipes").joinpath(f"{name}.yaml")


def _text(file: Traversable, recipe: str, step: str) -> str:
    """The text of a recipe's file, with a bound on its size; `step` is what to do where there is no such file."""
    shown = f"recipe {short(recipe)}"
    try:
        # Only a regular file is opened: a pipe would wait for ever.
        if not file.is_file():
            raise UserError(f"{shown}: there is no such file; {step}")
        with file.open("rb") as stream:
            content = stream.read(_MAX_BYTES + 1)
        if len(content) > _MAX_BYTES:
            raise UserError(f"{shown}: is larger than {_MAX_BYTES} bytes; a recipe is a short text, check the path")
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{shown}: is not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    except OSError as error:
        raise UserError(f"{shown}: cannot be read ({error.strerror}); check the path and its permissions") from error


def _parse(text: str, where: str) -> dict[Any, Any]:
    """The plain mapping that a YAML text holds."""
    if not isinstance(_vet(text, where), yaml.MappingStartEvent):
        raise UserError(f"{where}: must be a mapping; write sections such as `data:` with their keys indented below")
    return _plain(lambda: OmegaConf.create(text), where)


def _overrides(texts: Sequence[str]) -> list[dict[Any, Any]]:
    if isinstance(texts, str):
        raise UserError(f"overrides ({show(texts)}): must be a list of texts; pass [{show(texts)}]")
    return [_override(text) for text in texts]


def _override(text: str) -> dict[Any, Any]:
    """The nested mapping that an override `a.b=value` stands for."""
    key, equals, value = text.partition("=")
    if not equals or not KEY.fullmatch(key):
        raise UserError(f"override ({show(text)}): must read key=value; write it as in run.seed=1, without spaces")
    where = f"override {short(text)}"
    _vet(value, where)
    parsed = _plain(lambda: OmegaConf.from_dotlist([f"value={value}"]), where)
    return reduce(lambda inner, name: {name: inner}, reversed(key.split(".")), parsed["value"])


def _merge(under: Mapping[Any, Any], over: Mapping[Any, Any]) -> dict[Any, Any]:
    """Mappings merge key by key; anything else replaces what was there."""
    # omegaconf's own merge fails where a list meets a mapping, which the schema refuses with better words.
    merged = dict(under)
    for name, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(name), dict)
        merged[name] = _merge(merged[name], value) if both else value
    return merged


def _plain(make: Callable[[], Container], where: str) -> dict[Any, Any]:
    """The plain mapping that omegaconf makes, its refusals in one line."""
    try:
        values = OmegaConf.to_container(make(), resolve=False)
    except yaml.YAMLError as error:
        raise _malformed(error, where) from error
    except (OmegaConfBaseException, ValueError, ArithmeticError) as error:
        # Numbers that Python cannot hold and keys such as null end here.
        reason = one_line(str(error).partition("\n")[0])
        raise UserError(f"{where}: has a value that cannot be read ({reason}); correct it") from error
    assert isinstance(values, dict), "the vetted text is a mapping"
    return values


def _vet(text: str, where: str) -> yaml.Event | None:
    """Refuse the parts of YAML that a recipe has no use for, before any value is made.

    Returns:
        The event of the document's root, None when the document is empty.
    """
    root: yaml.Event | None = None
    depth = 0
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            root = root or (event if isinstance(event, yaml.NodeEvent) else None)
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            refusal = f"nests deeper than {_MAX_DEPTH} levels; flatten it" if depth > _MAX_DEPTH else _refusal(event)
            if refusal:
                raise UserError(f"{where}, line {event.start_mark.line + 1}: {refusal}")
    except yaml.YAMLError as error:
        raise _malformed(error, where) from error
    return root


def _refusal(event: yaml.Event) -> str | None:
    """Why a piece of YAML has no place in a recipe; None where it has one."""
    if getattr(event, "anchor", None):
        return f"anchor or alias ({show(event.anchor)}): recipes have none; write the value out"
    if getattr(event, "tag", None):
        return f"tag ({show(event.tag)}): recipes hold plain values; remove the tag"
    value = event.value if isinstance(event, yaml.ScalarEvent) else ""
    if len(value) > _MAX_SCALAR:
        return f"value ({show(value)}): is longer than {_MAX_SCALAR} characters; shorten it"
    if "${" in value:
        return f"value ({show(value)}): recipes do not interpolate `${{...}}`; write the value out"
    if value in ("???", "<<"):
        return f"value ({show(value)}): recipes leave nothing to fill in or merge; write the value out"
    return None


def _malformed(error: yaml.YAMLError, where: str) -> UserError:
    """PyYAML's complaint in one line."""
    mark = getattr(error, "problem_mark", None)
    line = f", line {mark.line + 1}" if mark else ""
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
    step = "keep one of the two" if "duplicate key" in problem else "correct the line"
    return UserError(f"{where}{line}: is not valid YAML ({one_line(problem)}); {step}")


# Fitting plain values to the schema


class _UnknownKeyError(Exception):
    """A key that the schema of its section lacks: (section's schema, name, value, section's key)."""


def _fitted(schema: type[Settings], layers: Sequence[Mapping[Any, Any]]) -> Settings:
    """The configuration that layers of plain values make, later ones over earlier ones, checked."""
    try:
        config: Settings = _section(schema, reduce(_merge, layers, {}), "")
    except _UnknownKeyError as error:
        raise _unknown(schema, *error.args) from error
    check(config)
    return config


def _section(schema: type[Any], value: Any, key: str) -> Any:
    """An instance of a dataclass of the schema, defaults filled in; unknown and missing keys are refused."""
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
    """The schema's fields without default that the value lacks."""
    fields = dataclasses.fields(schema)
    needed = (field.name for field in fields if field.default is MISSING and field.default_factory is MISSING)
    return tuple(name for name in needed if name not in value)


def _unknown(root: type[Any], schema: type[Any], name: Any, value: Any, key: str) -> UserError:
    """The refusal of a key that the schema lacks, with the likely one named."""
    siblings = [field.name for field in dataclasses.fields(schema)]
    near = [join(key, match) for match in difflib.get_close_matches(str(name), siblings, n=1)]
    elsewhere = [full for full in _keys(root, "") if full.rpartition(".")[2] == name]
    likely = near or elsewhere
    hint = f"did you mean {' or '.join(likely)}?" if likely else "remove it or choose one of these"
    return UserError(f"{join(key, name)} ({show(value)}): no such key here ({', '.join(siblings)}); {hint}")


def _keys(schema: type[Any], key: str) -> Iterator[str]:
    """Every key of the schema in full; NAME stands for a phase's name."""
    for name, kind in get_type_hints(schema).items():
        full = join(key, name)
        if get_origin(kind) is dict:
            kind, full = get_args(kind)[1], f"{full}.NAME"
        if dataclasses.is_dataclass(kind):
            yield from _keys(kind, full)  # type: ignore[arg-type]  # is_dataclass does not narrow to the class
        else:
            yield full


def _fit(kind: Any, value: Any, key: str) -> Any:
    """The value as the schema's kind has it; nothing is converted but lists to tuples and whole numbers to floats."""
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
        return _names_or_numbers(value, key)
    return _scalar(kind, value, key)


def _phases(kind: type[Any], value: Any, key: str) -> dict[str, Any]:
    """The mapping of phases, in the recipe's order."""
    if not isinstance(value, dict):
        raise UserError(f"{key} ({show(value)}): must be a mapping of phases by name; write it as {key}={PHASES_FORM}")
    for name, phase in value.items():
        # Phases name files of the run folder.
        if not isinstance(name, str) or not PHASE_NAME.fullmatch(name):
            raise UserError(
                f"{join(key, name)} ({show(phase)}): a phase's name is text of 1 to 64 letters, digits, '_' or '-', "
                "and not state-N or aside-N, as states are called; rename it, with quotes around a number"
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
    """A list of any length (kinds end in an ellipsis) or of a fixed one; of whole numbers, a range will do."""
    if kinds == (int, ...) and isinstance(value, str):
        return _range(value, key)
    if not isinstance(value, list):
        raise UserError(f"{key} ({show(value)}): must be a list, which is given as a whole; write it as in {key}=[A,B]")
    if kinds[-1] is Ellipsis:
        kinds = kinds[:1] * len(value)
    if len(kinds) != len(value):
        raise UserError(f"{key} ({show(value)}): must be a list of {len(kinds)}; it has {len(value)}, correct it")
    return tuple(_fit(kind, item, f"{key}[{i}]") for i, (kind, item) in enumerate(zip(kinds, value, strict=True)))


def _range(text: str, key: str) -> tuple[int, ...]:
    """The numbers that a text such as `48..64 step 4` stands for, both ends included."""
    found = re.fullmatch(r"(\d{1,9})\.\.(\d{1,9}) step (\d{1,9})", " ".join(text.split()), re.ASCII)
    low, high, step = map(int, found.groups()) if found else (0, 0, 0)
    if not found or not step or low > high or (high - low) % step or (high - low) // step >= _MAX_RANGE:
        raise UserError(
            f"{key} ({show(text)}): must be a list or a range that its steps fill, of up to {_MAX_RANGE} numbers; "
            f"write it as in {key}=[48,64] or {key}='48..64 step 4'"
        )
    return tuple(range(low, high + 1, step))


def _choice(choices: tuple[Any, ...], value: Any, key: str) -> Any:
    if value in choices:
        return value
    near = difflib.get_close_matches(str(value), choices, n=1)
    hint = f"did you mean {near[0]}?" if near else f"write it as in {key}={choices[0]}"
    raise UserError(f"{key} ({show(value)}): must be one of {', '.join(choices)}; {hint}")


def _names_or_numbers(value: Any, key: str) -> Any:
    """A name, a number, or lists and mappings of them: `teacher.exit_weights`, whose meaning `distill` knows."""
    if value is None:
        raise UserError(f"{key} (null): must be a name, numbers, or a mapping of them; write it as in {key}=uniform")
    if isinstance(value, list):
        return tuple(_names_or_numbers(item, f"{key}[{i}]") for i, item in enumerate(value))
    if isinstance(value, dict):
        return {_scalar(str, name, key): _names_or_numbers(item, join(key, name)) for name, item in value.items()}
    return _scalar(str if isinstance(value, str) else float, value, key)


def _scalar(kind: type[Any], value: Any, key: str) -> Any:
    says, step, accepted = _SCALARS[kind]
    if type(value) not in accepted:
        raise UserError(f"{key} ({show(value)}): must be {says}; {step}")
    if not (-(2**63) <= value < 2**63 if type(value) is int else type(value) is not float or math.isfinite(value)):
        raise UserError(f"{key} ({show(value)}): must be finite and fit 64 bits; choose an ordinary number")
    return kind(value)


_SCALARS: Mapping[type[Any], tuple[str, str, tuple[type[Any], ...]]] = MappingProxyType(
    {
        int: ("a whole number", "write it in digits, without quotes or fraction", (int,)),
        float: ("a number", "write it in digits, without quotes", (int, float)),
        bool: ("true or false", "write one of them, without quotes", (bool,)),
        str: ("text", "put quotes around it", (str,)),
    }
)
