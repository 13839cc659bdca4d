"""Store a search as lines of JSON: an event per line, appended, never changed; read them to go on.

A line of kind `picked` lists the bodies that a round is going to measure, why, and what was predicted of them. A line
of kind `measured` has the networks that a measurement of a body scored. A line of kind `learned` ends a round.
"""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ofav2 import files
from ofav2.errors import RunError, UserError
from ofav2.json_lines import append_line, cut_unfinished_line, whole_lines
from ofav2.nas.cost_model import Price
from ofav2.nas.engine.loop import Event, Learned, Measured, Picked
from ofav2.nas.runs_problem import RunNetwork, RunsProblem
from ofav2.tasks.base import Metric
from supernets import SpaceError, Subnet

ARCHIVE = "archive.jsonl"
"""Name of the file in a search folder."""
COMPARED = 64
"""Measurements, about, whose costs are computed again when a search goes on."""


class SearchLog:
    """The events of a search in its folder."""

    def __init__(self, folder: Path, problem: RunsProblem, metric: Metric) -> None:
        """Use a folder; networks are written as sub-networks of a run, losses as the metric's values."""
        self._path = folder / ARCHIVE
        self._problem = problem
        self._metric = metric
        self._bodies: list[RunNetwork] = []

    def append(self, event: Event) -> None:
        """Write an event.

        Raises:
            RunError: If the file can't be written.
        """
        append_line(self._path, self._line(event))

    def read(self) -> list[Event]:
        """Return all events; a last line that was cut, as a killed search leaves it, is removed from the file.

        Raises:
            RunError: If the file can't be read, or a line is no event of this search.
            UserError: If a network has another cost now.
        """
        cut_unfinished_line(self._path)
        events: list[Event] = []
        measured: list[dict[RunNetwork, dict[str, float]]] = []
        for number, line in enumerate(whole_lines(self._path), 1):
            try:
                entry = files.parse_json(line)
                events.append(self._event(entry))
                if entry["kind"] == "measured":
                    measured.append(self._networks(entry))
            except (ValueError, KeyError, TypeError, IndexError, SpaceError) as error:
                raise RunError(f"{self._path}: line {number} is no line of this search: start a new one") from error
        # Costs of a large network take a while, and another function shows soon.
        for networks in measured[:: max(1, len(measured) // COMPARED)]:
            for network, costs in networks.items():
                self._require_same_costs(network, costs)
        return events

    def _networks(self, line: Mapping[str, Any]) -> dict[RunNetwork, dict[str, float]]:
        """Return the networks that a measurement scored, with their costs by name."""
        names = dict.fromkeys((*Price._fields, *self._problem.parts[0].genes.cost_names))
        found = {read_network(one): {name: float(one[name]) for name in names} for one in line["networks"]}
        if list(found) != self._nested(line["body"]):
            raise ValueError("the networks are not those of the body")
        return found

    def _nested(self, body: int) -> list[RunNetwork]:
        """Return the networks that measuring one of the round's bodies scores."""
        return [self._problem.decode(genes) for genes in self._problem.nested(self._problem.encode(self._bodies[body]))]

    def _require_same_costs(self, network: RunNetwork, costs: Mapping[str, float]) -> None:
        """Refuse to mix two different costs under one name."""
        now = self._problem.all_costs(network)
        for name, before in costs.items():
            # A float may differ in its last bits on another machine; a count does not.
            tolerance = 0.0 if name in Price._fields else 1e-9
            if not math.isclose(now[name], before, rel_tol=tolerance):
                raise UserError(
                    f"cost ({name}) of sub-network ({network.subnet}) is {now[name]:.15g}, and was {before:.15g} when"
                    f" search {self._path.parent} measured it: resume with the function that it was begun with, or"
                    " start a new search"
                )

    def _line(self, event: Event) -> dict[str, Any]:
        if isinstance(event, Picked):
            self._bodies = [self._problem.decode(body) for body in event.bodies]
            predicted = [self._values(losses) for losses in event.predicted]
            return {
                "kind": "picked",
                "round": event.round,
                "bodies": [_to_plain(body) for body in self._bodies],
                "why": list(event.why),
                "predicted": predicted,
            }
        if isinstance(event, Measured):
            return {
                "kind": "measured",
                "round": event.round,
                "body": event.body,
                "networks": [
                    {**_to_plain(network), "value": value, **self._problem.all_costs(network)}
                    for network, value in zip(self._nested(event.body), self._values(event.losses), strict=True)
                ],
            }
        return {
            "kind": "learned",
            "round": event.round,
            "networks": event.networks,
            "hypervolume": event.hypervolume,
            "reference": list(event.reference),
            "tau": event.tau,
        }

    def _event(self, line: dict[str, Any]) -> Event:
        kind, number = line["kind"], line["round"]
        if kind == "picked":
            self._bodies = [read_network(fields) for fields in line["bodies"]]
            bodies = np.array([self._problem.encode(body) for body in self._bodies], np.int64)
            return Picked(number, bodies, tuple(line["why"]), tuple(self._losses(row) for row in line["predicted"]))
        if kind == "measured":
            return Measured(number, line["body"], self._losses(one["value"] for one in line["networks"]))
        if kind == "learned":
            reference = tuple(map(float, line["reference"]))
            return Learned(number, line["networks"], line["hypervolume"], reference, line["tau"])
        raise KeyError(kind)

    def _values(self, losses: Iterable[float]) -> list[float]:
        return [-self._metric.rank(float(loss)) for loss in losses]

    def _losses(self, values: Iterable[float]) -> Any:
        return np.array([-self._metric.rank(value) for value in values], np.float64)


def _to_plain(network: RunNetwork) -> dict[str, Any]:
    return {"run": network.run, "subnet": network.subnet.to_dict()}


def read_network(entry: Mapping[str, Any]) -> RunNetwork:
    """Return a network out of an archive.

    Raises:
        KeyError, TypeError, ValueError, SpaceError: If the entry is none.
    """
    return RunNetwork(int(entry["run"]), Subnet.from_dict(entry["subnet"]))
