"""Mirror a search to `metrics.jsonl` and Weights & Biases, by the tracking settings of the run that is searched."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ofav2.config.schema import TrackingConfig
from ofav2.nas.engine.loop import Event, Learned, Measured
from ofav2.nas.found import Finalist, FrontRecord, SearchRecord, located, run_names
from ofav2.runs.tracking import Tracker, open_tracker, untracked, with_installed
from ofav2.runtime.processes import SINGLE_PROCESS, Processes
from ofav2.typed_json import read_record, to_plain, write_record

PHASE = "search"
"""The phase that a search's lines are of."""

MIRROR = "wandb.json"
"""Name of the file in a search's folder that names its run in W&B."""
_FORMAT = "ofav2-wandb/1"


@dataclass(frozen=True)
class MirrorRecord:
    """Where a search is mirrored to."""

    run_id: str
    """W&B's id of the run."""


@dataclass
class SearchTracker:
    """Tells a tracker what happens in a search.

    Args:
        tracker: Where to.
        record: What is searched, and how.
        runs: The runs' names, where several are searched.
        measured: Bodies that were measured.
    """

    tracker: Tracker
    record: SearchRecord
    runs: tuple[str, ...] = ()
    measured: int = 0

    def know(self, event: Event) -> None:
        """Count an event that was tracked before."""
        self.measured += isinstance(event, Measured)

    def event(self, event: Event) -> None:
        """Track an event: after each round the hypervolume and the quality of predictions."""
        self.know(event)
        if isinstance(event, Learned):
            tau = {} if event.tau is None else {"tau": event.tau}
            values = {"hypervolume": event.hypervolume, "networks": event.networks, "round": event.round, **tau}
            self.tracker.log("round", global_step=self.measured, phase=PHASE, **values)

    def front(self, front: FrontRecord) -> None:
        """Track the front as a table and a plot, and its optimism."""
        metric, costs = self.record.metric, self.record.costs
        columns = ["subnet", *costs, "searched", metric.name]
        rows: Sequence[Sequence[str | float]] = [
            [self._name(one), *(one.cost(name) for name in costs), one.searched, one.confirmed]
            for one in front.finalists
        ]
        self.tracker.log(
            "result", global_step=self.measured, phase=PHASE, optimism=front.optimism, networks=len(front.finalists)
        )
        self.tracker.table("search/front", columns, rows)
        self.tracker.scatter("search/front_plot", columns, rows, costs[0], metric.name)

    def _name(self, one: Finalist) -> str:
        return f"{self.runs[one.run]}: {one.subnet}" if self.runs else str(one.subnet)


@contextmanager
def track_search(
    place: Path, record: SearchRecord, config: TrackingConfig, processes: Processes = SINGLE_PROCESS
) -> Iterator[SearchTracker]:
    """Track a search for as long as the body runs.

    Args:
        place: The search's folder.
        record: What is searched, and how.
        config: The tracking settings.
        processes: Those that search together; the first one tracks.

    Yields:
        What to tell it.

    Raises:
        RunError: If the search's `metrics.jsonl` can't be written.
    """
    if processes.rank:
        with untracked() as nowhere:
            yield SearchTracker(nowhere, record)
        return
    name, described = place.resolve().name, to_plain(record)
    assert isinstance(described, dict)
    path = place / MIRROR
    known = read_record(path, MirrorRecord, _FORMAT, "remove it").run_id if path.exists() else None
    runs = run_names([located(one.run, place) for one in record.runs]) if len(record.runs) > 1 else ()
    with open_tracker(place, with_installed(config), name=name, recipe=described, run_id=known) as tracker:
        if tracker.run_id is not None and tracker.run_id != known:
            write_record(path, MirrorRecord(tracker.run_id), _FORMAT)
        yield SearchTracker(tracker, record, runs)
