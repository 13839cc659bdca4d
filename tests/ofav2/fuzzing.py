"""For tests that give the code anything: values, damaged structures and texts, what counts as an answer."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from distill import DistillError
from ofav2.errors import UserError
from supernets import SpaceError

OURS = (UserError, SpaceError, DistillError)


def fuzz(examples: int) -> Any:
    """As many examples, the same ones each time, however slow the machine is."""
    return settings(
        max_examples=examples,
        derandomize=True,
        phases=[Phase.explicit, Phase.generate, Phase.shrink],
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large],
    )


def accepted(give: Callable[[], Any]) -> Any:
    """What comes of something given; None where it is refused with an error of ours, of one line."""
    try:
        return give()
    except OURS as error:
        message = str(error)
    assert message
    assert "\n" not in message, repr(message)
    return None


NUMBERS = st.sampled_from(
    [0, 1, -1, 2, 3, 5, 7, 10**6, 2**31, 2**63, -(2**63), 10**30, 0.0, -0.0, 0.5, 1e-300, 5e-324, 1e308, -1e308]
) | st.integers(-3, 40)
WORDS = st.sampled_from(
    [
        *("", " ", "null", "~", "true", "off", "1e3", "0x10", "1_000", ".inf", "-.inf", ".nan", "1e999", "12:30:45"),
        *("=", "<<", "???", "${oc.env:HOME}", "${run.seed}", "!!python/object/apply:os.system [true]", "!!binary aGk="),
        *("&a 1", "*a", "2024-01-01", "../../etc/passwd", "/dev/null", "/dev/zero", ".", "..", "~", "a/b", "a\\b"),
        *("a\nb", "\x00", "\x1b[31m", "\u202e", "\ud800", "😀", "full", "kernel", "digits", "imagefolder", "ee_dp"),
        *("se_b", "sgd", "adamw", "uniform", "sandwich", "best", "none", "timm:", "timm:resnet18", "timm:../x"),
        *("ascending", "cuda", "cuda:99", "cuda:²", "cpu", "bfloat16", "cross_entropy", "x" * 5000),
    ]
) | st.text(max_size=12)
PLAIN = st.none() | st.booleans() | NUMBERS | WORDS
VALUES = st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=3), max_leaves=6
)
JUNK = VALUES | st.sampled_from([float("nan"), float("inf"), 2**31, 10**4000, "mbconv", ["conv"], [[["conv"]]]])


def paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all parts of nested mappings and lists."""
    if path:
        yield path
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield from paths(value[key], (*path, key))


def changed(value: Any, draw: Callable[[Any], Any], with_values: Any) -> Any:
    """A copy with a few parts replaced, removed, renamed or doubled."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 3))):
        found = sorted(paths(value), key=repr)
        if not found:
            return value
        *path, key = draw(st.sampled_from(found))
        inside = value
        for step in path:
            inside = inside[step]
        change = draw(st.sampled_from(["replace", "replace", "replace", "remove", "add"]))
        if change == "replace":
            # Examples share what they are drawn from, which must not be changed with the copy.
            inside[key] = copy.deepcopy(draw(with_values))
        elif change == "remove":
            del inside[key]
        elif isinstance(inside, dict):
            inside[draw(WORDS)] = draw(with_values)
        else:
            inside.append(draw(with_values))
    return value


@st.composite
def damaged_texts(draw: Callable[[Any], Any], text: str) -> str:
    """A text with a few parts cut out, doubled or overwritten."""
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        end = min(len(text), start + draw(st.integers(0, 30)))
        text = (
            text[:start]
            + draw(st.sampled_from(["", text[start:end] * 2, *"{}[]:,-&*!|>'\"%@`#\t\x00\ufeff"]) | WORDS)
            + text[end:]
        )
    return text
