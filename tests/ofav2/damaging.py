"""Files damaged at random, by a seed: bits, pieces, and values inside JSON."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np

from tests.ofav2.fuzzing import paths

VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 3, 2**31, 2**63, -(2**63), 10**30, 10**400, 0.5, -0.5, 1e308, 5e-324),
    *("", " ", "x", "full", "mbconv+conv", "\x1b[2J\x07", "a\nb", "\u202e", "../../etc", "x" * 3000, "1e999", "ü" * 40),
    *([], [[]], [[[]]], [0, 0], ["mbconv"], {}, {"a": {}}, {"kernel": [3]}),
)


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """Return content with one to three things changed in it."""
    for _ in range(int(rng.integers(1, 4))):
        changed = _changed_value(content, rng) if rng.random() < 0.7 else None
        content = changed if changed is not None else _changed_bytes(content, rng)
    return content


def _changed_bytes(content: bytes, rng: np.random.Generator) -> bytes:
    if not content:
        return rng.bytes(5)
    place, length = int(rng.integers(len(content))), int(rng.integers(1, 40))
    new = bytearray(content)
    match int(rng.integers(5)):
        case 0:
            new[place] ^= 1 << int(rng.integers(8))
        case 1:
            del new[place : place + length]
        case 2:
            new[place:place] = content[place : place + length]
        case 3:
            new[place : place + length] = rng.bytes(length)
        case _:
            del new[place:]
    return bytes(new)


def _changed_value(content: bytes, rng: np.random.Generator) -> bytes | None:
    """Change a value inside a JSON file, or inside a line of JSON; None if it is neither."""
    try:
        return json.dumps(_replaced(json.loads(content), rng), indent=2).encode()
    except ValueError:
        lines = content.split(b"\n")
    number = int(rng.integers(len(lines)))
    try:
        lines[number] = json.dumps(_replaced(json.loads(lines[number]), rng)).encode()
    except ValueError:
        return None
    return b"\n".join(lines)


def _replaced(value: Any, rng: np.random.Generator) -> Any:
    found = list(paths(value))
    if not found:
        return _one_of(rng)
    value = copy.deepcopy(value)
    *path, key = found[int(rng.integers(len(found)))]
    inside = value
    for step in path:
        inside = inside[step]
    match int(rng.integers(8)):
        case 0:
            del inside[key]
        case 1 if isinstance(inside, dict):
            inside[str(_one_of(rng))[:40]] = _one_of(rng)
        case 1:
            inside.append(_one_of(rng))
        case _:
            inside[key] = _one_of(rng)
    return value


def _one_of(rng: np.random.Generator) -> Any:
    return copy.deepcopy(VALUES[int(rng.integers(len(VALUES)))])


def files_of(folder: Path) -> list[Path]:
    """The files of a run or a network, at any depth, except for locks and exports."""
    left_out = {".lock", "model.onnx", "model.pt2"}
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in left_out)
