"""Let users add costs, predictors and pickers of their own to a search."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from ofav2.errors import UserError
from ofav2.nas.cost_model import Price
from ofav2.nas.engine.loop import SearchSettings
from ofav2.nas.engine.picking import PICKERS, Picker
from ofav2.nas.engine.predictors import PREDICTORS, Predictor
from supernets import Subnet

_ARCHIVED = ("run", "subnet", "value")
"""What the archive has beside a network's costs, by name."""


class OwnCost(Protocol):
    """What a network costs, in any unit; less is better."""

    def __call__(self, subnet: Subnet, price: Price, /) -> float:
        """Return a network's cost; a finite number.

        Args:
            subnet: The network.
            price: Its parameters, multiply-adds, memory and latency.
        """
        ...


@dataclass(frozen=True)
class SearchPlugins:
    """A user's own parts of a search, by the names that objectives and settings may then have.

    A search stores the names only, so it is resumed with the same plugins.
    """

    costs: Mapping[str, OwnCost] = field(default_factory=dict)
    """Costs, for `objectives`."""
    predictors: Mapping[str, Predictor] = field(default_factory=dict)
    """Predictors, for `SearchSettings.predictor`."""
    pickers: Mapping[str, Picker] = field(default_factory=dict)
    """Pickers, for `SearchSettings.picker`."""

    def __post_init__(self) -> None:
        """Refuse names that mean something else.

        Raises:
            UserError: If one is taken.
        """
        for kind, own, known in (
            ("cost", self.costs, (*Price._fields, *_ARCHIVED)),
            ("predictor", self.predictors, PREDICTORS),
            ("picker", self.pickers, PICKERS),
        ):
            for name in own:
                if name in known:
                    raise UserError(f"{kind} ({name}) is one of ofav2's own: give yours another name")

    @property
    def all_predictors(self) -> Mapping[str, Predictor]:
        """All predictors by name."""
        return {**PREDICTORS, **self.predictors}

    @property
    def all_pickers(self) -> Mapping[str, Picker]:
        """All pickers by name."""
        return {**PICKERS, **self.pickers}


def check_settings(settings: SearchSettings, plugins: SearchPlugins) -> None:
    """Refuse settings that no search can have.

    Raises:
        UserError: If a name is unknown, or a number is out of range.
    """
    for kind, name, known in (
        ("predictor", settings.predictor, plugins.all_predictors),
        ("picker", settings.picker, plugins.all_pickers),
    ):
        if name not in known:
            raise UserError(f"{kind} ({name}) is unknown: use {', '.join(known)}, or give it among the plugins")
    for what, value, least in (
        ("start", settings.start, 1),
        ("batch", settings.batch, 1),
        ("population", settings.population, 2),
        ("generations", settings.generations, 1),
    ):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise UserError(f"setting {what} ({value}) must be a whole number from {least} up")
    for what, number in (("optimism", settings.optimism), ("growth", settings.growth)):
        if not (_is_number(number) and number >= 0):
            raise UserError(f"setting {what} ({number}) must be a number from 0 up")
    if settings.worst_loss is not None and not _is_number(settings.worst_loss):
        raise UserError(f"setting worst_loss ({settings.worst_loss}) must be a number, or None")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def require_costs(names: tuple[str, ...], plugins: SearchPlugins) -> None:
    """Refuse to go on with a search without the costs that it was begun with.

    Raises:
        UserError: If one is missing.
    """
    for name in names:
        if name not in Price._fields and name not in plugins.costs:
            raise UserError(f"cost ({name}) is unknown: give it among the plugins, as when the search was begun")
