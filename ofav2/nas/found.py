"""Record what a search is and found, and choose a network from it."""

import os.path
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ofav2.errors import UserError
from ofav2.evaluation.opened_run import LoadedSupernet
from ofav2.nas.candidates import Candidate, Ranking
from ofav2.nas.cheapest import within
from ofav2.nas.cost_model import Price
from ofav2.nas.engine.loop import SearchSettings
from ofav2.nas.limits import Limits, show
from ofav2.tasks.base import Metric
from ofav2.typed_json import Count, Positive, Sha256, read_record
from supernets import Architecture, Space, Subnet

RECORD, FRONT = "search.json", "front.json"
FORMAT, FRONT_FORMAT = "ofav2-search/2", "ofav2-front/2"
SEARCH_AGAIN = "search again with `ofav2 search RUN`"


@dataclass(frozen=True)
class SearchRecord:
    """What a search is: written before it starts, and never changed."""

    run: str
    """The run folder, from the search's folder on where that lies in it; `Found.run` is its path."""
    phase: str
    """The phase that left the weights."""
    weights: Sha256
    """Checksum of the weights."""
    data_fingerprint: str
    """Digest of images, labels and splits."""
    architecture: Architecture
    """The supernet."""
    space: Space
    """The networks that may be found."""
    metric: Metric
    """What is maximised or minimised beside the costs."""
    costs: tuple[str, ...]
    """Costs that are minimised."""
    limits: Limits
    """The most that a network may cost."""
    latency_table: str | None
    """The latency table's file, where latency counts, written as the run folder is."""
    latency_sha256: Sha256 | None
    """Checksum of that file."""
    measurements: Positive
    """Bodies to measure."""
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
    measurement: Sha256
    """Digest of all that a measurement depends on but the network."""
    versions: Mapping[str, str | None]
    """Versions that the search was begun with."""


@dataclass(frozen=True)
class Finalist:
    """A network of the front."""

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
class Found:
    """A finished search."""

    folder: Path
    """Its folder."""
    record: SearchRecord
    """What was searched, and how."""
    front: FrontRecord
    """What was found."""

    @property
    def run(self) -> Path:
        """The run folder."""
        return located(self.record.run, self.folder)

    def best(self, limits: Limits | None = None) -> Finalist:
        """Return the network of the front that is best on the confirming images, among those within limits.

        Raises:
            UserError: If none keeps the limits; the message says what the cheapest ones cost.
        """
        limits = limits or Limits()
        if limits.latency is not None and self.record.latency_table is None:
            raise UserError(
                f"limit latency ({show('latency', limits.latency)}) is not known of search {self.folder}: search again"
                " with latency as an objective or a limit"
            )
        kept = [one for one in self.front.finalists if within(one.price, limits)]
        if not kept:
            least = ", ".join(
                f"{name} {show(name, min(getattr(one, name) for one in self.front.finalists))}" for name in limits.named
            )
            raise UserError(f"limits {limits} are kept by no network of the front: the least there is {least}")
        return max(kept, key=lambda one: (self.record.metric.rank(one.confirmed), -one.cost(self.record.costs[0])))

    def knee(self) -> Finalist:
        """Return the network of the front that lies farthest above the line between its ends, metric by first cost."""
        ends = self.front.finalists
        points = np.array([(one.cost(self.record.costs[0]), self.record.metric.rank(one.confirmed)) for one in ends])
        spans = np.maximum(np.ptp(points, axis=0), 1e-12)
        scaled = (points - points.min(0)) / spans
        return ends[int((scaled[:, 1] - scaled[:, 0]).argmax())]


def read_search(path: Path) -> SearchRecord:
    """Read what a search is.

    Raises:
        RunError: If the folder is no search.
    """
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

    Raises:
        RunError: If the folder is no search, or one that has not finished.
    """
    path = Path(folder)
    record = read_search(path)
    if not os.path.exists(path / FRONT):
        raise UserError(f"search ({path}) has not finished: go on with `ofav2 search --resume {path}`")
    return Found(path, record, read_record(path / FRONT, FrontRecord, FRONT_FORMAT, SEARCH_AGAIN))


def choose_finalist(
    found: Found, run: LoadedSupernet, limits: Limits, *, knee: bool = False, number: int | None = None
) -> Ranking:
    """Choose a network of a search's front: the knee, one by its number, or the best confirmed one within limits.

    Args:
        found: The search.
        run: The run that the network is going to be extracted from.
        limits: The most that it may cost.
        knee: Whether to take the knee.
        number: Its number in `front_rows`.

    Returns:
        The choice as an extraction records it: the chosen network, then the front's others.

    Raises:
        UserError: If the run has other weights than those searched, there is no such number, or none keeps the limits.
    """
    if run.sha256 != found.record.weights:
        raise UserError(f"search ({found.folder}) is of other weights than run {run.folder} has: search it again")
    finalists = found.front.finalists
    if number is not None and not 1 <= number <= len(finalists):
        raise UserError(f"number ({number}) is not on the front of {found.folder}: choose from 1 to {len(finalists)}")
    chosen = finalists[number - 1] if number is not None else found.knee() if knee else found.best(limits)
    others = [one for one in finalists if one is not chosen]
    candidates = tuple(Candidate(one.subnet, one.price, one.confirmed) for one in (chosen, *others))
    record = found.record
    rule = f"number {number}" if number is not None else "knee" if knee else "best"
    return Ranking(
        limits, candidates, record.space, record.seed, record.metric, "front", rule, measured=found.front.networks
    )


def front_columns(found: Found) -> tuple[str, ...]:
    """Return the columns of `front_rows`."""
    fixed = ("number", "sub-network", "parameters", "multiply-adds", "memory", "latency")
    return (*fixed, *_own_costs(found), "search", "confirmed")


def front_rows(found: Found) -> list[tuple[object, ...]]:
    """Return a row per network of the front, numbered from 1."""
    show_value = found.record.metric.show
    return [
        (
            number,
            str(one.subnet),
            f"{one.params:,}",
            f"{one.macs:,}",
            show("memory", one.memory),
            show("latency", one.latency) if one.latency else "-",
            *(f"{one.own[name]:.4g}" for name in _own_costs(found)),
            show_value(one.searched),
            show_value(one.confirmed),
        )
        for number, one in enumerate(found.front.finalists, 1)
    ]


def _own_costs(found: Found) -> list[str]:
    return [name for name in found.record.costs if name not in Price._fields]
