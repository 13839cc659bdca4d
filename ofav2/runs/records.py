"""Reading a run folder, whatever state the run is in: training, finished, or broken off."""

import fcntl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ofav2.config import recipe
from ofav2.config.schema import Config
from ofav2.errors import RunError, UserError
from ofav2.runs import folder as run_folder
from ofav2.runs.tracking import read_metrics
from supernets import Architecture, Space, StageSpec

RunStatus = Literal["finished", "training", "stopped"]


@dataclass(frozen=True)
class PhaseRecord:
    """A phase that is finished, as the run recorded it."""

    name: str
    """Its name in the recipe."""
    space: Space
    """The networks that are evaluated after it."""
    steps: int
    """Its training steps."""
    end: int
    """Training steps of the run when it ended."""
    teacher: Mapping[str, Any]
    """Who phase_teacher it, and why: `policy`, and where there was a teacher `name`, `accuracy` and `reason`."""
    ensemble_score: float | None
    """Validation top-1 (0..1) of the largest network's weighted exits; None of weights that were not trained here."""
    mean_corner_score: float | None
    """Mean validation top-1 (0..1) of the corner sub-networks; None likewise."""


@dataclass(frozen=True)
class RunRecord:
    """Everything that a run has written about itself until now, checked."""

    folder: Path
    """The run folder."""
    name: str
    """The run's name."""
    created: str
    """When it began, ISO 8601."""
    state: RunStatus
    """Whether it is finished, still written, or broken off."""
    status: str
    """The status that the run itself recorded last."""
    seed: int
    """Seed of all its random rng."""
    versions: Mapping[str, str | None]
    """Versions of Python and of the packages that it ran with."""
    data: Mapping[str, Any]
    """Its data set: `name`, `classes`, `fingerprint`, `images` per split, and how they are normalised."""
    arch: Architecture
    """The supernet's architecture."""
    space: Space
    """All networks of the supernet."""
    phases: tuple[PhaseRecord, ...]
    """The finished phases, in order."""
    test: Mapping[str, float] | None
    """Test top-1 (0..1) of `largest` and `smallest`, and the `mean` over the corners; None before the end."""
    config: Config
    """The resolved recipe."""
    recipe: str
    """The same as text, as it stands in the folder."""
    metrics: tuple[Mapping[str, Any], ...]
    """The lines of `metrics.jsonl`, oldest first; an unfinished last line is left out."""


def read_run(run: str | Path) -> RunRecord:
    """Reads a run folder.

    Args:
        run: A run folder; it may be written to meanwhile.

    Raises:
        RunError: If the folder is no run, or a file in it is damaged.
        UserError: If its recipe can't be read.
    """
    path = Path(run)
    facts = run_folder.read_run(path)
    config = recipe.load(str(path / run_folder.RECIPE))
    with checked(path / run_folder.FACTS):
        supernet = facts["supernet"]
        return RunRecord(
            folder=path,
            name=str(facts["name"]),
            created=str(facts["created"]),
            state=_state(path, facts["status"]),
            status=str(facts["status"]),
            seed=facts["seed"],
            versions=dict(facts["versions"]),
            data=_data(facts["data"]),
            arch=_architecture(supernet),
            space=Space(**supernet["space"]),
            phases=tuple(_phase(record) for record in facts["phases"]),
            test=facts.get("test"),
            config=config,
            recipe=(path / run_folder.RECIPE).read_text(encoding="utf-8"),
            # A run that has only just begun has not opened the file yet.
            metrics=tuple(read_metrics(path)) if (path / run_folder.METRICS).exists() else (),
        )


@contextmanager
def checked(path: Path) -> Iterator[None]:
    """Turns what missing or foreign values raise in the body into one line that names the file.

    Raises:
        RunError: If a value is missing, of another kind, or impossible.
    """
    try:
        yield
    except KeyError as error:
        raise RunError(f"{path} lacks {error}: restore the file from a copy, or train again") from error
    except UserError:
        raise
    except (TypeError, AttributeError, IndexError, ValueError) as error:
        raise RunError(
            f"{path} holds a value that can't be ({error}): restore the file from a copy, or train again"
        ) from error


def _state(path: Path, status: str) -> RunStatus:
    if status == "finished":
        return "finished"
    # A run that was killed could no longer say so, but the system has freed its lock.
    return "training" if status == "training" and _is_locked(path) else "stopped"


def _is_locked(path: Path) -> bool:
    try:
        with (path / run_folder.LOCK).open(encoding="utf-8") as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _data(facts: Mapping[str, Any]) -> Mapping[str, Any]:
    return {name: facts[name] for name in ("name", "classes", "fingerprint", "images", "mean", "std", "eval_crop")}


def _architecture(supernet: Mapping[str, Any]) -> Architecture:
    plain: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in supernet.items()
        if name not in ("space", "stages")
    }
    return Architecture(**plain, stages=tuple(StageSpec(**stage) for stage in supernet["stages"]))


def _phase(record: Mapping[str, Any]) -> PhaseRecord:
    return PhaseRecord(
        name=record["name"],
        space=Space(**record["space"]),
        steps=record["steps"],
        end=record["global_step"],
        teacher=dict(record["teacher"]),
        ensemble_score=record["ensemble_score"],
        mean_corner_score=record["mean_corner_score"],
    )
