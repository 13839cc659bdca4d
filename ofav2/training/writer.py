"""Write a run's files into its folder. Of several processes the first one writes, and all go on with its record."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple, TypeVar

from torch import nn

from ofav2 import files
from ofav2.config.schema import Config
from ofav2.data import ImageData, split_record, write_split
from ofav2.data.digests import Digests
from ofav2.errors import RunError
from ofav2.evaluation.by_class import ClassesRecord, write_classes
from ofav2.evaluation.maps import MapsRecord, write_maps
from ofav2.runs import checkpoint, folder
from ofav2.runs.initial_images import write_initial_images
from ofav2.runs.metrics_file import flushed_bytes
from ofav2.runs.records import RunRecord, read_run, write_run
from ofav2.runs.state import PhaseState, save_state, set_aside_after, set_aside_skipped, set_aside_unlearnt, state_names
from ofav2.runs.tracking import Tracker, open_tracker, untracked
from ofav2.runtime.processes import Processes

T = TypeVar("T")


class SavedPhase(NamedTuple):
    """What is known of a phase once its checkpoint is written."""

    metrics_bytes: int
    """Length of `metrics.jsonl` by then."""
    sha256: str
    """Checksum of the checkpoint's tensors."""


@dataclass(frozen=True)
class RunWriter:
    """Writes into one run folder, from any process."""

    path: Path
    """The run folder."""
    processes: Processes
    """The processes that train the run together."""
    lock: folder.Lock | None
    """The folder's lock, in the first process."""

    def read(self) -> RunRecord:
        """Return what `run.json` holds."""
        return self.processes.on_main(lambda: read_run(self.path))

    def write(self, name: str, text: str) -> None:
        """Write a text file of the folder."""
        self._on_main(lambda: files.write_text(self.path / name, text))

    def keep_split(self, data: ImageData) -> None:
        """Write `split.json`."""
        self._on_main(lambda: write_split(self.path / folder.SPLIT, split_record(data)))

    def keep_initial_images(self, digests: Digests | None) -> None:
        """Write `initial_images.bin`, where it is known what else the weights had seen; else remove it."""
        if digests is None:
            # One may be left of a run that was killed before it began.
            self._on_main(lambda: (self.path / folder.INITIAL_IMAGES).unlink(missing_ok=True))
        else:
            self._on_main(lambda: write_initial_images(self.path, digests))

    def keep_classes(self, record: ClassesRecord | None) -> None:
        """Write `classes.json`, where a task has classes."""
        if record is not None:
            self._on_main(lambda: write_classes(self.path, record))

    def keep_maps(self, record: MapsRecord | None) -> None:
        """Write `maps.json`, where a task's outputs are maps."""
        if record is not None:
            self._on_main(lambda: write_maps(self.path, record))

    def keep(self, record: RunRecord) -> RunRecord:
        """Write `run.json`; return the first process's record."""

        def write() -> RunRecord:
            write_run(self.path, record)
            return record

        return self._on_main(write)

    def keep_status(self, status: str) -> None:
        """Write into `run.json` how the run stands."""
        self._on_main(lambda: write_run(self.path, replace(read_run(self.path), status=status)))

    def keep_failure(self, error: Exception) -> None:
        """Write into `run.json` that the run failed, if the folder can still be written to."""
        # A folder that can't be written may be what failed, and that is what the user has to hear of.
        with suppress(RunError):
            if self.lock is not None:
                self.lock.require()
                failed = f"failed: {type(error).__name__}"
                write_run(self.path, replace(read_run(self.path), status=failed))

    def keep_state(self, make: Callable[[], PhaseState], keep: int) -> None:
        """Save a state, which the first process makes, beside the newest `keep - 1` older ones; `run.json` names it."""

        def bind(name: str, sha256: str) -> None:
            record, there = read_run(self.path), state_names(self.path)
            known = {old: digest for old, digest in record.states.items() if old in there}
            write_run(self.path, replace(record, states={**known, name: sha256}))

        self._on_main(lambda: save_state(self.path, make(), keep, bind))

    def set_aside_after(self, global_step: int) -> None:
        """Set the states aside that are beyond a step."""
        self._on_main(lambda: set_aside_after(self.path, global_step))

    def set_aside_skipped(self, phase: str) -> None:
        """Set a phase's states aside that were saved after a batch had been skipped."""
        self._on_main(lambda: set_aside_skipped(self.path, phase))

    def set_aside_unlearnt(self, phase: str) -> None:
        """Set a diverged phase's states aside whose weights may be driven too far already."""
        self._on_main(lambda: set_aside_unlearnt(self.path, phase))

    def save_phase(self, net: nn.Module, phase: str, end: int, score: float, tracker: Tracker) -> SavedPhase:
        """Save what a phase left.

        Args:
            net: The supernet.
            phase: The phase's name.
            end: Training steps of the run that are planned up to its end.
            score: The largest network's score as a teacher.
            tracker: What keeps the checkpoint, too.
        """

        def save() -> SavedPhase:
            target = folder.checkpoint_path(self.path, phase)
            described = {"phase": phase, "steps": end, "ensemble_score": score}
            sha256 = checkpoint.save(target, net.state_dict(), described)
            tracker.artifact(checkpoint.file_paths(target), f"{self.name}-{phase}", "model")
            return SavedPhase(flushed_bytes(self.path), sha256)

        return self._on_main(save)

    def tracker(self, config: Config, record: RunRecord, steps_per_epoch: int) -> AbstractContextManager[Tracker]:
        """Track the run for as long as the context is open; in other processes, keep nothing."""
        if self.processes.rank:
            return untracked()
        return open_tracker(
            self.path,
            config.tracking,
            name=self.name,
            recipe=asdict(config),
            run_id=record.wandb_run_id,
            steps_per_epoch=steps_per_epoch,
        )

    @property
    def name(self) -> str:
        """Name of the folder, which may have been given as `.`."""
        return self.path.resolve().name

    def _on_main(self, do: Callable[[], T]) -> T:
        """Return what the first process finds when it writes, as long as the folder is this run's alone."""

        def checked() -> T:
            assert self.lock is not None, "held by the first process"
            self.lock.require()
            return do()

        return self.processes.on_main(checked)


@contextmanager
def new_run(
    config: Config, recipe_name: str | Path, run_dir: str | Path | None, processes: Processes
) -> Iterator[RunWriter]:
    """Make a run folder, which is this run's while the body runs.

    Args:
        config: The recipe.
        recipe_name: Its name or path, after which a folder without a name is called.
        run_dir: The folder, new or empty; None makes one under the recipe's `run.folder`.
        processes: The processes that train the run together.

    Yields:
        What writes into it.

    Raises:
        RunError: If the folder can't be used.
    """
    path = processes.on_main(lambda: _new_folder(config, recipe_name, run_dir))
    with _locked(path, processes) as lock:
        yield RunWriter(path, processes, lock)


@contextmanager
def old_run(run_dir: str | Path, processes: Processes) -> Iterator[RunWriter]:
    """Open a run folder, which is this run's while the body runs.

    Yields:
        What writes into it.

    Raises:
        RunError: If the folder is no run, or in use.
    """
    path = Path(run_dir).expanduser()
    processes.on_main(lambda: read_run(path))
    with _locked(path, processes) as lock:
        yield RunWriter(path, processes, lock)


@contextmanager
def _locked(path: Path, processes: Processes) -> Iterator[folder.Lock | None]:
    """Hold the folder's lock in the first process, for all.

    Yields:
        The lock; None in other processes.
    """
    locks: list[folder.Lock] = []
    with ExitStack() as held:
        # A lock is an open file, which can't be told to other processes.
        processes.on_main(lambda: locks.append(held.enter_context(folder.lock(path))))
        yield locks[0] if locks else None


def _new_folder(config: Config, recipe_name: str | Path, run_dir: str | Path | None) -> Path:
    if run_dir is None:
        source = Path(recipe_name)
        # The recipe that a run has kept lies in that run's folder, and the new run takes its name.
        name = source.parent.name if source.name == folder.RECIPE and source.parent.name else source.stem
        return folder.new_folder(Path(config.run.folder).expanduser(), name)
    return folder.take_folder(Path(run_dir).expanduser())
