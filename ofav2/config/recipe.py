"""Find, read, merge and write recipes. The only owner of omegaconf and PyYAML.

A recipe is a YAML file that says everything about a run, or names a base and says what differs from it. It is read as
plain values (no code, no interpolation, no environment), overrides are merged over it, and `fit` makes the result a
configuration. Whatever does not fit is refused in one line: the key in full, the value, the rule, the next step.
"""

import dataclasses
import difflib
import os.path
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache, reduce
from importlib import resources
from importlib.resources.abc import Traversable
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any

import yaml
from omegaconf import Container, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ofav2 import files
from ofav2.config.fit import fit
from ofav2.config.ranges import PHASE_NAME
from ofav2.config.schema import Config, TuningConfig
from ofav2.errors import UserError
from ofav2.messages import KEY, one_line, refuse_text, short, show

SECTIONS = tuple(section.name for section in dataclasses.fields(Config))
"""The sections of a recipe in the order in which recipes are written."""

_MAX_BYTES = 2**20
_MAX_MAPPING = 2**24
_MAX_DEPTH = 16
_MAX_BASES = 8
# More than any sub-network needs, which a phase may name, and fewer digits than Python reads as a number.
_MAX_SCALAR = 4000

# What YAML 1.1 takes for another value than the one that is written: 010 for 8, 1:30 for 90, 08 for a text.
_MISREAD = re.compile(r"[-+]?(?:0[\d_]+|\d[\d_]*(?::[0-5]?\d)+(?:\.[\d_]*)?)", re.ASCII)


def names() -> tuple[str, ...]:
    """Return the shipped recipes, sorted by name."""
    files = (file.name for file in resources.files("recipes").iterdir())
    return tuple(sorted(name.removesuffix(".yaml") for name in files if name.endswith(".yaml")))


def describe(name: str) -> str:
    """Return the first sentence of a shipped recipe's header: what the recipe is for.

    Args:
        name: One of `names()`.

    Raises:
        UserError: No shipped recipe has that name.
    """
    _shipped(name)
    sentence = re.match(r".+?\.(?=\s|$)", " ".join(line.lstrip("# ") for line in header(name).splitlines()))
    assert sentence is not None, f"recipe {name} has no header sentence"
    return sentence.group().strip()


def header(recipe: str) -> str:
    """Return the comment at the top of a recipe's file; empty where it has none.

    Args:
        recipe: A name from `names()`, or the path of a .yaml file.

    Raises:
        UserError: The recipe cannot be found or read.
    """
    lines = _text(_find(recipe, Path()), recipe).splitlines(keepends=True)
    return "".join(takewhile(lambda line: line.startswith("#"), lines))


def load(recipe: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a recipe, merge it over its base and overrides over both, and check the result.

    Args:
        recipe: A name from `names()`, or the path of a .yaml file.
        overrides: Settings as `key=value`, where key is a full path such as `phases.full.epochs` and value is YAML. A
            list is replaced as a whole; of two settings of one key the later one wins. `phases.NAME=null` leaves a
            phase out.

    Returns:
        The complete configuration, defaults filled in.

    Raises:
        UserError: The recipe cannot be found or read, or a setting is unknown, missing, of the wrong type or out of
            range. The message names the key in full, the value, the rule and the next step.
    """
    values = _resolved(_find(str(recipe), Path()), str(recipe), ())
    merged = reduce(_merge, _overrides(overrides), values)
    _refuse_unknown_phases(values, merged)
    return fit(Config, _without_dropped_phases(values, merged))


def _refuse_unknown_phases(before: Mapping[Any, Any], merged: Mapping[Any, Any]) -> None:
    """Refuse settings of a phase that a recipe does not have, unless they describe a whole one."""
    known, now = before.get("phases"), merged.get("phases")
    if not isinstance(known, dict) or not isinstance(now, dict):
        return
    for name, settings in now.items():
        whole = isinstance(settings, dict) and {"epochs", "lr"} <= settings.keys()
        if name in known or whole or not isinstance(settings, dict | None):
            continue
        if not isinstance(name, str) or not PHASE_NAME.fullmatch(name):
            # Its name is refused with better words.
            continue
        near = difflib.get_close_matches(name, map(str, known), n=1)
        hint = f"did you mean phases.{near[0]}?" if near else "name one of them, or give a new one its epochs and lr"
        raise UserError(
            f"phases.{name} ({show(settings)}): the recipe's phases are {', '.join(map(str, known))}; {hint}"
        )


def _without_dropped_phases(before: Mapping[Any, Any], merged: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """Leave out the phases that a setting has made null; one that is empty in the file itself stays, to be refused."""
    known, now = before.get("phases"), merged.get("phases")
    if not isinstance(known, dict) or not isinstance(now, dict):
        return merged
    kept = {name: phase for name, phase in now.items() if phase is not None or known.get(name) is None}
    return {**merged, "phases": kept}


def parse(text: str, where: str, overrides: Sequence[str] = ()) -> Config:
    """Read the text of a recipe, such as one that was kept beside results; see `load`.

    Args:
        text: A recipe as YAML.
        where: What messages call it.
        overrides: Settings as `key=value`.

    Raises:
        UserError: As for `load`.
    """
    return fit(Config, reduce(_merge, _overrides(overrides), _parse_recipe(text, where)))


def parse_tuning(text: str, where: str) -> TuningConfig:
    """Read the settings of a fine-tuning as `dump` wrote them; arguments and refusals are those of `parse`."""
    return fit(TuningConfig, _parse(text, where))


def adjust_tuning(base: TuningConfig, file: str | Path | None, overrides: Sequence[str] = ()) -> TuningConfig:
    """Merge a YAML file, which may hold a part of the settings, and then overrides over those of a fine-tuning.

    Args:
        base: The settings to start from.
        file: Path of a .yaml file; None merges overrides alone.
        overrides: Settings as `key=value`.

    Raises:
        UserError: As for `load`.
    """
    values = _plain_values(base)
    if file is not None:
        text = _text(Path(file), str(file), "give the path of a .yaml file")
        values = _merge(values, _parse(text, f"recipe {short(str(file))}"))
    return fit(TuningConfig, reduce(_merge, _overrides(overrides), values))


def dump(config: Config | TuningConfig) -> str:
    """Write a configuration as YAML, complete and in the recipes' order; it reads back as an equal one."""
    return OmegaConf.to_yaml(OmegaConf.create(_plain_values(config)))


def read_mapping(path: Path, step: str) -> dict[Any, Any]:
    """Read a YAML file of plain values that is no recipe, as strictly as one.

    Args:
        path: The file.
        step: The advice if it can't be read, as it ends a message.

    Raises:
        UserError: It can't be read, or holds what a recipe may not hold.
    """
    try:
        text = files.read_bytes(path, _MAX_MAPPING).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8"
        raise UserError(f"file {path}: cannot be read ({reason}); {step}") from error
    return _parse(text, f"file {path}")


def write_mapping(path: Path, values: Mapping[str, Any]) -> None:
    """Write a YAML file of plain values, atomically.

    Raises:
        RunError: It can't be written.
    """
    files.write_text(path, yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True))


def _plain_values(config: Config | TuningConfig) -> dict[Any, Any]:
    return {name: _as_yaml(value) for name, value in dataclasses.asdict(config).items()}


def _as_yaml(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _as_yaml(item) for name, item in value.items()}
    return [_as_yaml(item) for item in value] if isinstance(value, list | tuple) else value


# Finding and reading


def _resolved(file: Traversable, recipe: str, above: tuple[Traversable, ...]) -> dict[Any, Any]:
    """Return the values of a recipe's file, over those of its base.

    Args:
        file: The file.
        recipe: What messages call it.
        above: Files that are based on it, directly or by way of others.
    """
    where = f"recipe {short(recipe)}"
    values = _parse_recipe(_text(file, recipe), where)
    if "base" not in values:
        return dict(values)
    base = values["base"]
    try:
        under = _base(base, file, (*above, file))
    except UserError as error:
        raise UserError(f"{where}, base ({show(base)}): {error}") from error
    merged = _merge(under, {name: value for name, value in values.items() if name != "base"})
    # A schedule is read as a whole: phases that are given replace those of the base.
    return merged | ({"phases": values["phases"]} if "phases" in values else {})


def _base(base: Any, file: Traversable, above: tuple[Traversable, ...]) -> dict[Any, Any]:
    """Return the values of the base that a file names, which is a recipe by itself."""
    if not isinstance(base, str):
        raise UserError("must be the name of a shipped recipe or the path of a .yaml file; write it as in base: digits")
    found = _find(base, file.parent if isinstance(file, Path) else Path())
    if found in above:
        raise UserError("is based on this recipe itself; remove one of the two bases")
    if len(above) > _MAX_BASES:
        raise UserError(f"is more than {_MAX_BASES} bases away from the first recipe; shorten the chain")
    values = _resolved(found, base, above)
    fit(Config, values)
    return values


def _find(recipe: str, folder: Path) -> Traversable:
    """Return the file of a recipe given by name, or by a path from a folder."""
    if os.path.isfile(folder / recipe / "run.json"):
        path = shlex.quote(recipe)
        raise UserError(
            f"recipe ({show(recipe)}): is a run's folder; go on with the run by `ofav2 train --resume {path}`, or train"
            f" its recipe anew by `ofav2 train {shlex.quote(os.path.join(recipe, 'recipe.yaml'))}`"
        )
    is_path = recipe.endswith((".yaml", ".yml")) or "/" in recipe or "\\" in recipe
    return Path(os.path.normpath(folder / recipe)) if is_path else _shipped(recipe)


def _shipped(name: str) -> Traversable:
    """Return the file of a shipped recipe."""
    if name not in names():
        near = difflib.get_close_matches(name, names(), n=1)
        hint = f"did you mean {near[0]}?" if near else "choose one of these, or give the path of a .yaml file"
        raise UserError(f"recipe ({show(name)}): no shipped recipe has this name ({', '.join(names())}); {hint}")
    return resources.files("recipes").joinpath(f"{name}.yaml")


def _text(file: Traversable, recipe: str, step: str = "") -> str:
    """Return the text of a recipe's file, with a bound on its size; `step` is the advice if it is missing."""
    step = step or f"check the path, or take one of {', '.join(names())}"
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


def _parse_recipe(text: str, where: str) -> Mapping[Any, Any]:
    """Return the mapping that a recipe's text holds; to look at only, as the next reader of the text gets it, too."""
    try:
        return _kept_values(text)
    except UserError as error:
        raise UserError(f"{where}{error}") from error


@lru_cache(maxsize=16)
def _kept_values(text: str) -> Mapping[Any, Any]:
    # A command reads a run's recipe several times, from two files, and YAML takes 20 ms each time.
    return _parse(text, "")


def _parse(text: str, where: str) -> dict[Any, Any]:
    """Return the plain mapping that a YAML text holds."""
    if not isinstance(_vet(text, where), yaml.MappingStartEvent):
        raise UserError(f"{where}: must be a mapping; write sections such as `data:` with their keys indented below")
    for before, comment in _comments(text):
        # Folders have names such as "set #2"; in a comment, people leave a space after '#'.
        if getattr(before, "plain", False) and not _is_number(before.value) and re.match(r"#+[^#\s]", comment):
            raise UserError(
                f"{where}, line {before.start_mark.line + 1}: {show(comment)} after {show(before.value)} would be a"
                " comment in YAML; put quotes around the value, or a space after '#'"
            )
    # The text is vetted: without aliases it can't grow, and lists of patches are long.
    return _plain(lambda: OmegaConf.create(text, max_yaml_expanded_nodes=None), where)


def _overrides(texts: Sequence[str]) -> list[dict[Any, Any]]:
    refuse_text("overrides", texts)
    return [_override(text) for text in texts]


def _override(text: str) -> dict[Any, Any]:
    """Return the nested mapping that an override `a.b=value` stands for."""
    key, equals, value = text.partition("=")
    if not equals or not KEY.fullmatch(key):
        raise UserError(f"override ({show(text)}): must read key=value; write it as in run.seed=1, without spaces")
    where = f"override {short(text)}"
    if not value and key.startswith("phases.") and key.count(".") == 1:
        # An empty shell variable must not leave a phase out.
        raise UserError(f"{key} (null): must be a mapping of settings; to leave the phase out, write {key}=null")
    root = _vet(value, where)
    parsed = _plain(lambda: OmegaConf.from_dotlist([f"value={value}"]), where)
    is_plain = isinstance(root, yaml.ScalarEvent) and not root.style
    is_cut = is_plain and isinstance(parsed["value"], str) and parsed["value"] != value
    if is_cut or value == "~" or any(_comments(value)):
        read = show(parsed["value"])
        raise UserError(f"{where}: YAML would read {read}; put quotes around the text, as in {short(key)}='\"...\"'")
    return reduce(lambda inner, name: {name: inner}, reversed(key.split(".")), parsed["value"])


def _merge(under: Mapping[Any, Any], over: Mapping[Any, Any]) -> dict[Any, Any]:
    """Merge mappings key by key; any other value replaces the base's."""
    # omegaconf's own merge fails where a list meets a mapping, which the schema refuses with better words.
    merged = dict(under)
    for name, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(name), dict)
        merged[name] = _merge(merged[name], value) if both else value
    return merged


def _plain(make: Callable[[], Container], where: str) -> dict[Any, Any]:
    """Return the plain mapping that omegaconf makes, its refusals in one line."""
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


def _comments(text: str) -> Iterator[tuple[yaml.Token, str]]:
    """Yield the comments of a vetted YAML text that share a line with what is before them, each with that token."""
    for before, after in pairwise(yaml.scan(text, Loader=yaml.SafeLoader)):
        between = text[before.end_mark.index : after.start_mark.index].split("\n", 1)[0].strip()
        if between.startswith("#"):
            yield before, between


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _refusal(event: yaml.Event) -> str | None:
    """Return why a piece of YAML is refused in a recipe; None where it is fine."""
    if getattr(event, "anchor", None):
        return f"anchor or alias ({show(event.anchor)}): recipes have none; write the value out"
    if getattr(event, "tag", None):
        return f"tag ({show(event.tag)}): recipes hold plain values; remove the tag"
    value = event.value if isinstance(event, yaml.ScalarEvent) else ""
    if len(value) > _MAX_SCALAR:
        return f"value ({show(value)}): is longer than {_MAX_SCALAR} characters; shorten it"
    if "${" in value:
        return f"value ({show(value)}): recipes do not interpolate `${{...}}`; write the value out"
    if isinstance(event, yaml.ScalarEvent) and not event.style and _MISREAD.fullmatch(value):
        return (
            f"number ({value}): YAML does not read it as written; leave out leading zeros, or put quotes around a text"
        )
    if value in ("???", "<<"):
        return f"value ({show(value)}): recipes leave nothing to fill in or merge; write the value out"
    return None


def _malformed(error: yaml.YAMLError, where: str) -> UserError:
    """Return PyYAML's complaint in one line."""
    mark = getattr(error, "problem_mark", None)
    line = f", line {mark.line + 1}" if mark else ""
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
    step = "keep one of the two" if "duplicate key" in problem else "correct the line"
    return UserError(f"{where}{line}: is not valid YAML ({one_line(problem)}); {step}")
