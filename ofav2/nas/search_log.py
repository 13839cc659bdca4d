"""Store a search as lines of JSON: an event per line, appended, never changed; read them to go on.

A line of kind `picked` lists the bodies that a round is going to measure, why, and what was predicted of them. A line
of kind `measured` has the networks that a measurement of a body scored. A line of kind `learned` ends a round.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ofav2 import files
from ofav2.errors import RunError
from ofav2.json_lines import append_line, cut_unfinished_line, whole_lines
from ofav2.nas.engine.loop import Event, Learned, Measured, Picked
from ofav2.nas.genes import GeneSpace
from ofav2.tasks.base import Metric
from supernets import SpaceError, Subnet

ARCHIVE = "archive.jsonl"
"""Name of the file in a search folder."""


class SearchLog:
    """The events of a search in its folder."""

    def __init__(self, folder: Path, genes: GeneSpace, metric: Metric) -> None:
        """Use a folder; networks are written as sub-networks, losses as the metric's values."""
        self._path = folder / ARCHIVE
        self._genes = genes
        self._metric = metric
        self._bodies: list[Subnet] = []

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
        """
        cut_unfinished_line(self._path)
        events: list[Event] = []
        for number, line in enumerate(whole_lines(self._path), 1):
            try:
                events.append(self._event(files.parse_json(line)))
            except (ValueError, KeyError, TypeError, IndexError, SpaceError) as error:
                raise RunError(f"{self._path}: line {number} is no line of this search: start a new one") from error
        return events

    def _line(self, event: Event) -> dict[str, Any]:
        if isinstance(event, Picked):
            self._bodies = [self._genes.decode(body) for body in event.bodies]
            predicted = [self._values(losses) for losses in event.predicted]
            return {
                "kind": "picked",
                "round": event.round,
                "bodies": [body.to_dict() for body in self._bodies],
                "why": list(event.why),
                "predicted": predicted,
            }
        if isinstance(event, Measured):
            body = self._genes.encode(self._bodies[event.body])
            nested = self._genes.nested(body)
            return {
                "kind": "measured",
                "round": event.round,
                "body": event.body,
                "networks": [
                    {"subnet": subnet.to_dict(), "value": value, **self._genes.all_costs(subnet)}
                    for subnet, value in zip(map(self._genes.decode, nested), self._values(event.losses), strict=True)
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
            self._bodies = [Subnet.from_dict(fields) for fields in line["bodies"]]
            bodies = np.array([self._genes.encode(body) for body in self._bodies], np.int64)
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


def measured_networks(folder: Path) -> Iterator[tuple[int, Subnet, float]]:
    """Yield round, network and value of everything that a search measured, each network once, in order.

    Raises:
        RunError: If the archive can't be read.
    """
    seen: set[Subnet] = set()
    for number, networks in measured_bodies(folder):
        for subnet, value in networks:
            if subnet not in seen:
                seen.add(subnet)
                yield number, subnet, value


def measured_bodies(folder: Path) -> Iterator[tuple[int, list[tuple[Subnet, float]]]]:
    """Yield, for each measured body, the round and its networks with their values.

    Raises:
        RunError: If the archive can't be read.
    """
    for number, line in enumerate(whole_lines(folder / ARCHIVE), 1):
        try:
            entry = files.parse_json(line)
            if entry["kind"] == "measured":
                networks = [(Subnet.from_dict(one["subnet"]), float(one["value"])) for one in entry["networks"]]
                yield int(entry["round"]), networks
        except (ValueError, KeyError, TypeError, SpaceError) as error:
            raise RunError(f"{folder / ARCHIVE}: line {number} is no line of a search: start a new one") from error
