"""Read a search's folder in any state: searching, finished, or broken off. Nothing in it is changed."""

import os.path
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ofav2 import files
from ofav2.errors import RunError
from ofav2.json_lines import whole_lines
from ofav2.nas.engine.fronts import on_front
from ofav2.nas.engine.problem import Floats
from ofav2.nas.found import (
    FRONT,
    FRONT_FORMAT,
    RECORD,
    Adaptation,
    Adapted,
    FrontRecord,
    SearchRecord,
    located,
    read_adaptation,
    read_search,
)
from ofav2.nas.runs_problem import RunNetwork
from ofav2.nas.search_log import ARCHIVE, read_network
from ofav2.runs.snapshot import is_locked
from ofav2.typed_json import read_record
from supernets import SpaceError, Subnet

SearchStatus = Literal["finished", "searching", "stopped"]


@dataclass(frozen=True)
class SearchedNetwork:
    """A network that a search measured."""

    round: int
    """The round, from 0."""
    body: int
    """Place of the body that it was measured with among the round's, from 0."""
    run: int
    """Place of its run among those searched, from 0."""
    subnet: Subnet
    """The network."""
    costs: Mapping[str, float]
    """What it costs, by name."""
    value: float
    """The metric on the images of the search."""
    predicted: float | None
    """The metric that was predicted before; None in the first round."""
    why: str
    """Why its body was picked."""


@dataclass(frozen=True)
class SearchRound:
    """A round of a search."""

    number: int
    """Its number, from 0."""
    picked: Mapping[str, int]
    """Bodies that it picked, by reason."""
    measured: int
    """Bodies that it has measured."""
    networks: int | None
    """Networks known at its end; None before that."""
    hypervolume: float | None
    """Hypervolume of what was measured, at its end."""
    tau: float | None
    """Kendall's rank correlation of predicted and measured values; None where nothing was predicted."""


@dataclass(frozen=True)
class SearchSnapshot:
    """Everything that a search has written about itself until now, checked."""

    folder: Path
    """Its folder."""
    record: SearchRecord
    """What is searched, and how."""
    state: SearchStatus
    """Whether it is finished, under way, or broken off."""
    networks: tuple[SearchedNetwork, ...]
    """Every measured network once, in order."""
    rounds: tuple[SearchRound, ...]
    """The rounds, the last one possibly unfinished."""
    front: FrontRecord | None
    """The front; None before the end of the search."""
    adaptation: Adaptation | None
    """The adaptation to it; None if none was asked for."""

    @property
    def adapted(self) -> Adapted | None:
        """What the adaptation reached; None before its end."""
        return self.adaptation.result if self.adaptation else None

    @property
    def final(self) -> FrontRecord | None:
        """The front as it is after the adaptation, if that was kept; None before the end of the search."""
        return self.adapted.front if self.adapted and self.adapted.kept else self.front

    @property
    def runs(self) -> tuple[Path, ...]:
        """The run folders."""
        return tuple(located(one.run, self.folder) for one in self.record.runs)

    @property
    def measured(self) -> int:
        """Bodies that were measured."""
        return sum(one.measured for one in self.rounds)

    @property
    def points(self) -> Floats:
        """What the search minimises, of its networks (N, 1 + costs): the metric, lower for better, then costs."""
        metric, costs = self.record.metric, self.record.costs
        rows = [(-metric.rank(one.value), *(one.costs[name] for name in costs)) for one in self.networks]
        return np.array(rows, np.float64).reshape(len(rows), 1 + len(costs))

    def best(self) -> tuple[int, ...]:
        """Return the networks' indices on the front: the final one, or until then as measured; the cheapest first."""
        if self.front:
            places = {(one.run, one.subnet): index for index, one in enumerate(self.networks)}
            return tuple(places[one.run, one.subnet] for one in self.front.finalists)
        found = np.flatnonzero(on_front(self.points)).tolist() if self.networks else []
        return tuple(sorted(found, key=lambda index: self.networks[index].costs[self.record.costs[0]]))


def is_search(folder: str | Path) -> bool:
    """Return whether a folder is a search's."""
    return os.path.lexists(Path(folder) / RECORD)


def read_search_snapshot(folder: str | Path) -> SearchSnapshot:
    """Read a search's folder; it may be written to meanwhile.

    Raises:
        RunError: If the folder is no search, or a file in it is damaged.
    """
    path = Path(folder)
    record = read_search(path)
    # What is written last is looked at first: a front is there only when the archive is whole.
    adaptation = read_adaptation(path)
    front = read_record(path / FRONT, FrontRecord, FRONT_FORMAT, "search again") if (path / FRONT).exists() else None
    networks, rounds = _read_archive(path / ARCHIVE)
    ended = front is not None and (adaptation is None or adaptation.result is not None)
    state: SearchStatus = "finished" if ended else "searching" if is_locked(path) else "stopped"
    snapshot = SearchSnapshot(path, record, state, networks, rounds, front, adaptation)
    known = {(one.run, one.subnet) for one in networks}
    if front and not all((one.run, one.subnet) in known for one in front.finalists):
        raise RunError(f"{path / FRONT} has a network that {ARCHIVE} lacks: start a new search")
    return snapshot


def _read_archive(path: Path) -> tuple[tuple[SearchedNetwork, ...], tuple[SearchRound, ...]]:
    networks: dict[RunNetwork, SearchedNetwork] = {}
    rounds: list[SearchRound] = []
    picked: Mapping[str, Any] = {}
    for number, line in enumerate(whole_lines(path), 1):
        try:
            entry = files.parse_json(line)
            if entry["kind"] == "picked":
                picked = entry
                rounds.append(SearchRound(entry["round"], dict(Counter(entry["why"])), 0, None, None, None))
            elif entry["kind"] == "measured":
                for one in _measured(entry, picked):
                    networks.setdefault(RunNetwork(one.run, one.subnet), one)
                rounds[-1] = replace(rounds[-1], measured=rounds[-1].measured + 1)
            elif entry["kind"] == "learned":
                rounds[-1] = _ended(rounds[-1], entry)
            else:
                raise KeyError(entry["kind"])
        except (ValueError, KeyError, TypeError, IndexError, SpaceError) as error:
            raise RunError(f"{path}: line {number} is no line of a search: start a new one") from error
    return tuple(networks.values()), tuple(rounds)


def _measured(entry: Mapping[str, Any], picked: Mapping[str, Any]) -> Sequence[SearchedNetwork]:
    body, found = entry["body"], entry["networks"]
    predicted = picked["predicted"][body] if picked["predicted"] else [None] * len(found)
    return [
        SearchedNetwork(
            round=int(entry["round"]),
            body=int(body),
            **read_network(one)._asdict(),
            costs={name: cost for name, cost in one.items() if name not in ("run", "subnet", "value")},
            value=float(one["value"]),
            predicted=None if guess is None else float(guess),
            why=str(picked["why"][body]),
        )
        for one, guess in zip(found, predicted, strict=True)
    ]


def _ended(one: SearchRound, entry: Mapping[str, Any]) -> SearchRound:
    tau = None if entry["tau"] is None else float(entry["tau"])
    return replace(one, networks=int(entry["networks"]), hypervolume=float(entry["hypervolume"]), tau=tau)
