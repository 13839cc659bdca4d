"""Write a run's files into its folder. Of several processes the first one writes, and all go on with its record."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from torch import nn

from ofav2 import files
from ofav2.config.schema import Config
from ofav2.errors import RunError
from ofav2.runs import checkpoint, folder
from ofav2.runs.records import PhaseRecord, RunRecord, read_run, write_run
from ofav2.runs.tracking import Tracker, flushed_bytes, open_tracker, untracked
from ofav2.runtime.processes import Processes


@dataclass(frozen=True)
class RunWriter:
    """Writes into one run folder, from any process."""

    path: Path
    """The run folder."""
    processes: Processes
    """The processes that train the run together."""

    def read(self) -> RunRecord:
        """Return what `run.json` holds."""
        return self.processes.on_main(lambda: read_run(self.path))

    def write(self, name: str, text: str) -> None:
        """Write a text file of the folder."""
        self.processes.on_main(lambda: files.write_text(self.path / name, text))

    def keep(self, record: RunRecord) -> RunRecord:
        """Write `run.json`; return the first process's record."""

        def write() -> RunRecord:
            write_run(self.path, record)
            return record

        return self.processes.on_main(write)

    def keep_failure(self, record: RunRecord, error: Exception) -> None:
        """Write into `run.json` that the run failed, if the folder can still be written to."""
        # A folder that can't be written may be what failed, and that is what the user has to hear of.
        with suppress(RunError):
            if self.processes.rank == 0:
                write_run(self.path, replace(record, status=f"failed: {type(error).__name__}"))

    def keep_phase(self, record: PhaseRecord, net: nn.Module, tracker: Tracker) -> PhaseRecord:
        """Save what a phase left; return its record, with what had been measured by then."""

        def save() -> PhaseRecord:
            target = folder.checkpoint_path(self.path, record.name)
            described = {"phase": record.name, "steps": record.end, "ensemble_score": record.ensemble_score}
            checkpoint.save(target, net.state_dict(), described)
            tracker.artifact(checkpoint.file_paths(target), f"{self.path.name}-{record.name}", "model")
            return replace(record, metrics_bytes=flushed_bytes(self.path))

        return self.processes.on_main(save)

    def tracker(self, config: Config, record: RunRecord) -> AbstractContextManager[Tracker]:
        """Track the run for as long as the context is open; in other processes, keep nothing."""
        if self.processes.rank:
            return untracked()
        return open_tracker(
            self.path, config.tracking, name=self.path.name, recipe=asdict(config), run_id=record.wandb_run_id
        )


@contextmanager
def new_run(config: Config, recipe_name: str, run_dir: str | Path | None, processes: Processes) -> Iterator[RunWriter]:
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
    with _locked(path, processes):
        yield RunWriter(path, processes)


@contextmanager
def old_run(run_dir: str | Path, processes: Processes) -> Iterator[RunWriter]:
    """Open a run folder, which is this run's while the body runs.

    Yields:
        What writes into it.

    Raises:
        RunError: If the folder is no run, or in use.
    """
    path = Path(run_dir)
    processes.on_main(lambda: read_run(path))
    with _locked(path, processes):
        yield RunWriter(path, processes)


@contextmanager
def _locked(path: Path, processes: Processes) -> Iterator[None]:
    """Hold the folder's lock in the first process, for all."""
    with ExitStack() as held:
        processes.on_main(lambda: held.enter_context(folder.lock(path)))
        yield


def _new_folder(config: Config, recipe_name: str, run_dir: str | Path | None) -> Path:
    if run_dir is None:
        source = Path(recipe_name)
        # The recipe that a run has kept lies in that run's folder, and the new run takes its name.
        name = source.parent.name if source.name == folder.RECIPE and source.parent.name else source.stem
        return folder.new_folder(Path(config.run.folder), name)
    return folder.take_folder(Path(run_dir))
