"""Record what a search is and found, and choose a network from it."""

import os.path
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ofav2 import files
from ofav2.errors import RunError, UserError
from ofav2.evaluation.opened_run import LoadedSupernet, load_run
from ofav2.nas.candidates import Candidate, Ranking
from ofav2.nas.cheapest import within
from ofav2.nas.cost_model import Price
from ofav2.nas.engine.loop import SearchSettings
from ofav2.nas.latency_table import LatencyTable, load_latency_table
from ofav2.nas.limits import Limits, show
from ofav2.runs.folder import RECORD as RUN_RECORD
from ofav2.tasks.base import Metric
from ofav2.typed_json import Count, Positive, Sha256, read_record
from supernets import Architecture, Space, Subnet

RECORD, FRONT, ADAPTATION = "search.json", "front.json", "adaptation.json"
FORMAT, FRONT_FORMAT, ADAPTATION_FORMAT = "ofav2-search/4", "ofav2-front/3", "ofav2-adaptation/2"
ADAPTED = "adapted"
"""Name of the run in a search's folder that holds the adapted supernet; several are numbered, as `adapted-2`."""
SEARCH_AGAIN = "search again with `ofav2 search RUN`"


@dataclass(frozen=True)
class SearchedRun:
    """A run that is searched."""

    run: str
    """The run folder, from the search's folder on where that lies in it; `Found.runs` has its path."""
    phase: str
    """The phase that left the weights."""
    weights: Sha256
    """Checksum of the weights."""
    architecture: Architecture
    """The supernet."""
    latency_table: str | None
    """The latency table's file, where latency counts, written as the run folder is."""
    latency_sha256: Sha256 | None
    """Checksum of that file."""
    measurement: Sha256
    """Digest of all that a measurement depends on but the network."""


@dataclass(frozen=True)
class SearchRecord:
    """What a search is: written before it starts, and never changed."""

    runs: tuple[SearchedRun, ...]
    """The runs, searched as one space."""
    data_fingerprint: str
    """Digest of images, labels and splits."""
    space: Space
    """The networks that may be found."""
    metric: Metric
    """What is maximised or minimised beside the costs."""
    costs: tuple[str, ...]
    """Costs that are minimised."""
    limits: Limits
    """The most that a network may cost."""
    measurements: Positive
    """Bodies to measure: networks that are measured at all their exits."""
    minutes: float | None
    """Time after which no other body is measured; None sets no limit."""
    seed: Count
    """Seed of the search."""
    settings: SearchSettings
    """How it searches."""
    search_images: Positive
    """Validation images that it measures on."""
    confirmation_images: Positive
    """Other validation images, on which the front is measured once at the end."""
    versions: Mapping[str, str | None]
    """Versions that the search was begun with."""

    def __post_init__(self) -> None:
        """Refuse a search of nothing."""
        if not self.runs:
            raise ValueError("runs is empty")


@dataclass(frozen=True)
class Finalist:
    """A network of the front."""

    run: Count
    """Place of its run among those searched, from 0."""
    subnet: Subnet
    """The network."""
    params: Positive
    """Parameters."""
    macs: Positive
    """Multiply-adds of an image."""
    memory: Positive
    """Peak activation memory of an image in bytes."""
    latency: Count
    """Predicted latency in nanoseconds; 0 without a latency table."""
    searched: float
    """The metric on the images of the search."""
    confirmed: float
    """The metric on images that the search never saw."""
    own: Mapping[str, float]
    """Costs that the user's own functions give, by name."""

    @property
    def price(self) -> Price:
        """What it costs."""
        return Price(self.params, self.macs, self.memory, self.latency)

    def cost(self, name: str) -> float:
        """Return a cost by its name."""
        return self.own[name] if name in self.own else float(getattr(self, name))


@dataclass(frozen=True)
class FrontRecord:
    """How a search ended."""

    measured: Positive
    """Bodies that were measured."""
    networks: Positive
    """Networks that they scored."""
    finalists: tuple[Finalist, ...]
    """The front, the cheapest first, by the first cost."""
    optimism: float
    """By how much the front is better on the images of the search than on others, on average."""
    optimism_error: float | None
    """Standard error of that, by the numbers of images alone; None of a metric that is no share of images."""


@dataclass(frozen=True)
class AdaptSettings:
    """How a supernet is adapted to a front: by a phase like its last one, which draws what the front is made of."""

    epochs: float | None = None
    """Length of the phase; None takes the last one's."""
    lr: float | None = None
    """Peak learning rate; None takes a third of the last one's."""


@dataclass(frozen=True)
class AdaptedRun:
    """A copy of a searched run that was trained on."""

    run: Count
    """Place of the run among those searched, from 0."""
    phase: str
    """The phase that was added to it."""
    weights: Sha256
    """Checksum of the weights that it left."""
    steps: Positive
    """Its training steps."""


@dataclass(frozen=True)
class Adapted:
    """What an adaptation reached."""

    runs: tuple[AdaptedRun, ...]
    """The copies of those runs that have networks on the front."""
    front: FrontRecord
    """The front's networks, measured anew, in the same order."""
    before: float
    """Hypervolume of the confirmed front before, as a share of the box around both fronts."""
    after: float
    """Hypervolume of the confirmed front after, likewise."""
    gain: float
    """What the confirmed metric gained, on average over the front."""
    gain_error: float | None
    """Standard error of that if all confirming images were new; on the same images it is smaller. None of a metric that
    is no share of images."""

    @property
    def kept(self) -> bool:
        """Whether it helped: the confirmed front covers more than before."""
        return self.after > self.before


@dataclass(frozen=True)
class Adaptation:
    """An adaptation that was asked for."""

    settings: AdaptSettings
    """How."""
    result: Adapted | None
    """What came of it; None until it has ended."""


class Source(NamedTuple):
    """Where the weights of networks are."""

    run: Path
    """The run folder."""
    phase: str
    """The phase that left them."""
    weights: str
    """Their checksum."""


@dataclass(frozen=True)
class Found:
    """A finished search."""

    folder: Path
    """Its folder."""
    record: SearchRecord
    """What was searched, and how."""
    front: FrontRecord
    """What was found."""
    adapted: Adapted | None = None
    """What the adaptation reached; None if none was asked for."""

    @property
    def searched_runs(self) -> tuple[Path, ...]:
        """The runs that were searched."""
        return tuple(located(one.run, self.folder) for one in self.record.runs)

    @property
    def sources(self) -> "tuple[Source, ...]":
        """What holds the networks, by run: the searched runs, or their adapted copies where those were better."""
        found = [
            Source(path, one.phase, one.weights) for path, one in zip(self.searched_runs, self.record.runs, strict=True)
        ]
        for copy in self.adapted.runs if self.adapted and self.adapted.kept else ():
            found[copy.run] = Source(self.adapted_folder(copy.run), copy.phase, copy.weights)
        return tuple(found)

    def adapted_folder(self, run: int) -> Path:
        """Return where the adapted copy of a searched run is, given the run's place among them."""
        return self.folder / (ADAPTED if len(self.record.runs) == 1 else f"{ADAPTED}-{run + 1}")

    @property
    def final(self) -> FrontRecord:
        """The finalists, with the values that they have with the weights that were kept; one may beat another now."""
        return self.adapted.front if self.adapted and self.adapted.kept else self.front

    def best(self, limits: Limits | None = None) -> Finalist:
        """Return the network of the front that is best on the confirming images, among those within limits.

        Raises:
            UserError: If none keeps the limits; the message says what the cheapest ones cost.
        """
        limits = limits or Limits()
        if limits.latency is not None and self.record.runs[0].latency_table is None:
            raise UserError(
                f"limit latency ({show('latency', limits.latency)}) is not known of search {self.folder}: search again"
                " with latency as an objective or a limit"
            )
        kept = [one for one in self.final.finalists if within(one.price, limits)]
        if not kept:
            least = ", ".join(
                f"{name} {show(name, min(getattr(one, name) for one in self.final.finalists))}" for name in limits.named
            )
            raise UserError(f"limits {limits} are kept by no network of the front: the least there is {least}")
        return max(kept, key=lambda one: (self.record.metric.rank(one.confirmed), -one.cost(self.record.costs[0])))

    def knee(self) -> Finalist:
        """Return the network of the front that lies farthest above the line between its ends, metric by first cost."""
        ends = self.final.finalists
        points = np.array([(one.cost(self.record.costs[0]), self.record.metric.rank(one.confirmed)) for one in ends])
        spans = np.maximum(np.ptp(points, axis=0), 1e-12)
        scaled = (points - points.min(0)) / spans
        return ends[int((scaled[:, 1] - scaled[:, 0]).argmax())]


def read_search(path: Path) -> SearchRecord:
    """Read what a search is.

    Raises:
        RunError: If the folder is no search.
    """
    if not os.path.lexists(path / RECORD) and os.path.lexists(path / RUN_RECORD):
        raise RunError(
            f"folder ({path}) is a run and no search: make one with `ofav2 search {path}`, or name one of its own, such"
            f" as {path / 'search'}"
        )
    return read_record(path / RECORD, SearchRecord, FORMAT, SEARCH_AGAIN)


def located(path: str, folder: Path) -> Path:
    """Return the path of what a record in a folder names."""
    return Path(os.path.normpath(folder / path))


def located_from(path: Path, folder: Path, run: Path) -> str:
    """Return how a record in a folder names a path: from there on if both are in the run folder, else absolutely.

    So a run folder can be moved with the searches in it, and a search goes on from any working directory.
    """
    inside = os.path.abspath(run)
    if all(os.path.commonpath([inside, os.path.abspath(one)]) == inside for one in (path, folder)):
        return os.path.relpath(path, folder)
    return os.path.abspath(path)


def load_search(folder: str | Path) -> Found:
    """Read a finished search.

    Args:
        folder: The search's folder.

    Returns:
        The search. `final.finalists` are the networks of its front, the cheapest first; `best` and `knee` pick one.

    Raises:
        RunError: If the folder is no search, or a file in it is damaged.
        UserError: If the search, or its adaptation, has not finished.
    """
    found = read_found(Path(folder))
    if found.adapted is None and read_adaptation(found.folder):
        raise _unfinished(found.folder)
    return found


def read_found(path: Path) -> Found:
    """Read what a search found, whose adaptation may not have ended.

    Raises:
        RunError: If the folder is no search.
        UserError: If it has not finished.
    """
    record, adaptation = read_search(path), read_adaptation(path)
    if not os.path.exists(path / FRONT):
        raise _unfinished(path)
    front = read_record(path / FRONT, FrontRecord, FRONT_FORMAT, SEARCH_AGAIN)
    return Found(path, record, front, adaptation.result if adaptation else None)


def _unfinished(path: Path) -> UserError:
    return UserError(f"search ({path}) has not finished: go on with `ofav2 search --resume {path}`")


def read_adaptation(path: Path) -> Adaptation | None:
    """Read the adaptation in a search's folder; None if none was asked for.

    Raises:
        RunError: If its file is damaged.
    """
    again = f"ofav2 search --resume {path} --adapt"
    step = f"remove it and what is called {ADAPTED} beside it, then adapt again with `{again}`"
    file = path / ADAPTATION
    return read_record(file, Adaptation, ADAPTATION_FORMAT, step) if os.path.lexists(file) else None


def pick_finalist(found: Found, limits: Limits, *, knee: bool = False, number: int | None = None) -> Finalist:
    """Pick a network of a search's front: the knee, one by its number, or the best confirmed one within limits.

    Args:
        found: The search.
        limits: The most that it may cost.
        knee: Whether to take the knee.
        number: Its number in `front_rows`.

    Raises:
        UserError: If there is no such number, or none keeps the limits.
    """
    finalists = found.final.finalists
    if number is not None and not 1 <= number <= len(finalists):
        raise UserError(f"number ({number}) is not on the front of {found.folder}: choose from 1 to {len(finalists)}")
    return finalists[number - 1] if number is not None else found.knee() if knee else found.best(limits)


def pick_rule(found: Found, chosen: Finalist, limits: Limits | None = None) -> str:
    """Return how a network of a front may have been picked: `best`, `knee`, or `number N` of its table."""
    if chosen == found.best(limits):
        return "best"
    return "knee" if chosen == found.knee() else f"number {found.final.finalists.index(chosen) + 1}"


def front_ranking(found: Found, chosen: Finalist, limits: Limits, rule: str) -> Ranking:
    """Return the choice of a network as an extraction records it: the network, then the front's others.

    Args:
        found: The search.
        chosen: The network.
        limits: The most that it may cost.
        rule: How it was picked, such as `knee`.
    """
    record = found.record
    ordered = (chosen, *(one for one in found.final.finalists if one != chosen))
    candidates = tuple(Candidate(one.subnet, one.price, one.confirmed) for one in ordered)
    return Ranking(
        limits, candidates, record.space, record.seed, record.metric, "front", rule, measured=found.front.networks
    )


def load_source(found: Found, chosen: Finalist, run: str | Path | None = None) -> LoadedSupernet:
    """Read the supernet that holds a network of a search's front.

    Args:
        found: The search.
        chosen: The network.
        run: A run that the user names; None takes the one that the search names.

    Raises:
        UserError: If the run has none of the weights that were searched or adapted.
    """
    source = found.sources[chosen.run]
    known = {*(one.weights for one in found.record.runs), *(one.weights for one in found.sources)}
    loaded = load_run(run) if run is not None else load_run(source.run, source.phase)
    if run is not None and loaded.sha256 in known - {source.weights}:
        loaded = load_run(source.run, source.phase)
    if loaded.sha256 != source.weights:
        raise UserError(f"search ({found.folder}) is of other weights than run {loaded.folder} has: search it again")
    return loaded


def latency_table(folder: Path, run: SearchedRun) -> LatencyTable | None:
    """Return the table that latencies of a searched run were predicted by; None if there is none, or another now.

    Args:
        folder: The search's folder.
        run: The run.
    """
    path = located(run.latency_table, folder) if run.latency_table else None
    if path is None or not path.is_file() or files.sha256(path) != run.latency_sha256:
        return None
    return load_latency_table(path, run.architecture)


def run_names(runs: Sequence[Path]) -> tuple[str, ...]:
    """Return what tables and pages call runs: the folders' names, numbered where two are the same."""
    names = [run.resolve().name for run in runs]
    return tuple(name if names.count(name) == 1 else f"{name} ({number})" for number, name in enumerate(names, 1))


def front_columns(found: Found) -> tuple[str, ...]:
    """Return the columns of `front_rows`."""
    run = ("run",) if len(found.record.runs) > 1 else ()
    fixed = ("number", *run, "sub-network", "parameters", "multiply-adds", "memory", "latency")
    return (*fixed, *_own_costs(found), "search", "confirmed")


def front_rows(found: Found) -> list[tuple[object, ...]]:
    """Return a row per network of the front, numbered from 1."""
    show_value, names = found.record.metric.show, run_names(found.searched_runs)
    return [
        (
            number,
            *((names[one.run],) if len(names) > 1 else ()),
            str(one.subnet),
            f"{one.params:,}",
            f"{one.macs:,}",
            show("memory", one.memory),
            show("latency", one.latency) if one.latency else "-",
            *(f"{one.own[name]:.4g}" for name in _own_costs(found)),
            show_value(one.searched),
            show_value(one.confirmed),
        )
        for number, one in enumerate(found.final.finalists, 1)
    ]


def describe_adaptation(record: SearchRecord, adapted: Adapted) -> str:
    """Return what an adaptation reached, as a sentence."""
    show_value = record.metric.show
    error = "" if adapted.gain_error is None else f" ± {show_value(adapted.gain_error)} at most"
    ended = "kept: the networks have the adapted weights" if adapted.kept else "it did not help, and is not kept"
    steps = sum(one.steps for one in adapted.runs)
    return (
        f"adaptation, {steps} steps: hypervolume of the confirmed front {adapted.before:.4f} before,"
        f" {adapted.after:.4f} after; mean gain in {record.metric.name} {show_value(adapted.gain)}{error}; {ended}"
    )


def _own_costs(found: Found) -> list[str]:
    return [name for name in found.record.costs if name not in Price._fields]
