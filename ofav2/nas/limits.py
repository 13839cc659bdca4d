"""Parse a device's limits, such as `30M`, `8ms` and `512KiB`."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from types import MappingProxyType
from typing import Literal

from ofav2.errors import UserError
from supernets import Space

COUNT_UNITS = MappingProxyType({"": 1, "k": 10**3, "M": 10**6, "G": 10**9})
"""Units of parameters and multiply-adds."""
BYTE_UNITS = MappingProxyType(
    {"B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
)
"""Units of memory, in bytes."""
TIME_UNITS = MappingProxyType({"ns": 1, "us": 10**3, "µs": 10**3, "ms": 10**6, "s": 10**9})
"""Units of time, in nanoseconds."""
UNITS = MappingProxyType({"params": COUNT_UNITS, "macs": COUNT_UNITS, "memory": BYTE_UNITS, "latency": TIME_UNITS})
"""The units of each limit."""
LARGEST = 10**18
"""No limit is larger; a number with hundreds of digits is a slip."""

Method = Literal["random", "search", "front"]
"""How a network was chosen: among random ones that keep the limits, by a short search, or from a search's front."""


@dataclass(frozen=True)
class Limits:
    """The most that a network may cost; None sets no limit.

    Raises:
        UserError: If a limit is no whole number of at least 1.
    """

    params: int | None = None
    """Trainable parameters."""
    macs: int | None = None
    """Multiply-adds of one image."""
    memory: int | None = None
    """Peak activation memory of one image in bytes."""
    latency: int | None = None
    """Predicted latency in nanoseconds, of a call with as many images as the latency table is for."""

    def __post_init__(self) -> None:
        """Check the limits."""
        for name in UNITS:
            value = getattr(self, name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= LARGEST:
                raise UserError(
                    f"limit {name} ({str(value)[:40]}) must be a whole number from 1 to 1e18:"
                    " in Python, parse_limits reads texts such as '30M' and '8ms'"
                )

    @property
    def named(self) -> dict[str, int]:
        """The limits that are set."""
        return {name: getattr(self, name) for name in UNITS if getattr(self, name) is not None}

    def __str__(self) -> str:
        """As people write them."""
        return ", ".join(f"{name} {show(name, value)}" for name, value in self.named.items()) or "no limit"


def parse_limits(
    *, params: str | None = None, macs: str | None = None, memory: str | None = None, latency: str | None = None
) -> Limits:
    """Read limits such as `params="2M"`, `macs="1.5G"`, `memory="512KiB"`, `latency="8ms"`.

    A limit that is not given is None: there is none.

    Args:
        params: Trainable parameters, alone or with k, M or G (1e3, 1e6, 1e9).
        macs: Multiply-adds of one image, likewise.
        memory: Peak activation memory of one image, with B, kB, MB or GB (powers of 1000), KiB, MiB or GiB.
        latency: Predicted latency of a call, with ns, us, ms or s.

    Returns:
        The limits in whole numbers, rounded down: parameters, multiply-adds, bytes and nanoseconds.

    Raises:
        UserError: If one is no number with a unit that there is, or is not over zero.
    """
    given = {"params": params, "macs": macs, "memory": memory, "latency": latency}
    return Limits(**{name: _parse(name, text, UNITS[name]) for name, text in given.items() if text is not None})


def parse_choices(name: str, text: str, choices: Sequence[int]) -> tuple[int, ...]:
    """Read a choice, a list or a range, such as `3`, `2,4` or `48..64`: those of `choices` that it names.

    Args:
        name: What is chosen, for messages.
        text: What the user wrote.
        choices: What there is, ascending.

    Raises:
        UserError: If the text is no such thing, or names something that there is not.
    """
    listed = ", ".join(map(str, choices))
    bounds = re.fullmatch(r"\s*(\d{1,9})\s*\.\.\s*(\d{1,9})\s*", text, re.ASCII)
    if bounds:
        low, high = int(bounds[1]), int(bounds[2])
        found = tuple(choice for choice in choices if low <= choice <= high)
        if not found:
            raise UserError(f"{name} ({text}) holds none of what was trained: {listed}")
        return found
    if not re.fullmatch(r"\s*\d{1,9}\s*(,\s*\d{1,9}\s*)*", text, re.ASCII):
        raise UserError(f"{name} ({text[:40]}) must be a number, a list such as 2,4 or a range such as 3..5")
    found = tuple(sorted({int(part) for part in text.split(",")}))
    for value in found:
        if value not in choices:
            raise UserError(f"{name} ({value}) was not trained: choose among {listed}")
    return found


def parse_share(name: str, text: str) -> float:
    """Read a share of everything, such as `0.96` or `96%`.

    Args:
        name: What it is a share of, for messages.
        text: What the user wrote.

    Raises:
        UserError: If the text is no such thing, or not from 0 to 1.
    """
    found = re.fullmatch(r"\s*(\d{1,18}(?:\.\d{0,18})?)\s*(%?)\s*", text, re.ASCII)
    value = Decimal(found[1]) / (100 if found[2] else 1) if found else Decimal(-1)
    if not 0 <= value <= 1:
        raise UserError(f"{name} ({text[:40]}) must be a share from 0 to 1, such as 0.96, or up to 100 %, such as 96%")
    return float(value)


def narrowed(space: Space, exits: str | None, resolutions: str | None) -> Space:
    """Return the part of a space with these exits and resolutions, as the user wrote them; None keeps all.

    Raises:
        UserError: If one can't be read, or was not trained.
    """
    texts = {"height": ("exit", exits), "resolution": ("resolution", resolutions)}
    return space.restrict(
        **{
            dimension: parse_choices(name, text, getattr(space, dimension))
            for dimension, (name, text) in texts.items()
            if text is not None
        }
    )


def show(name: str, value: int) -> str:
    """Return a cost as people write it, rounded up to four digits, so that a limit of what is shown can be met.

    Args:
        name: `params`, `macs`, `memory` or `latency`.
        value: A number, bytes or nanoseconds.
    """
    units = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "B": 1} if name == "memory" else UNITS[name]
    unit, size = max(((unit, size) for unit, size in units.items() if size <= max(value, 1)), key=lambda pair: pair[1])
    if size == 1:
        return f"{value}{unit}"
    decimals = max(0, 4 - len(str(value // size)))
    scaled = Decimal(math.ceil(Decimal(value) * 10**decimals / size)) / 10**decimals
    return f"{scaled.normalize():f}{unit}"


def _parse(name: str, text: str, units: Mapping[str, int]) -> int:
    known = ", ".join(unit for unit in units if unit)
    examples = {"memory": "512KiB", "latency": "8ms"}
    found = re.fullmatch(r"\s*(\d{1,18}(?:\.\d{1,18})?)\s*([^\d\s.,+-]*)\s*", text, re.ASCII)
    if not found:
        raise UserError(f"limit {name} ({text[:40]}) must be a number and a unit, such as {examples.get(name, '30M')}")
    number, unit = found[1], found[2]
    if unit not in units:
        wrong = f"unit ({unit[:20]}) is unknown" if unit else "the unit is missing"
        raise UserError(f"limit {name} ({text[:40]}): {wrong}; use {known}")
    value = math.floor(Decimal(number) * units[unit])
    if value < 1:
        raise UserError(f"limit {name} ({text[:40]}) is nothing: give more than zero")
    return min(value, LARGEST)
