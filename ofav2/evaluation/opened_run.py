"""Open a run: its supernet, its data set, and what measures sub-networks on it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import supernets
from ofav2.config import recipe
from ofav2.data import ImageData, open_data
from ofav2.errors import RunError
from ofav2.evaluation.evaluator import Evaluator, open_evaluator
from ofav2.networks.build import build_supernet
from ofav2.runs import checkpoint, folder
from ofav2.runtime.device import Runtime, open_runtime
from ofav2.tasks.registry import make_task
from supernets import SpaceError, Supernet


@dataclass(frozen=True)
class LoadedSupernet:
    """A run's supernet, and where it came from."""

    net: Supernet
    """The supernet, in evaluation mode; `net.space` holds the networks that were trained."""
    phase: str
    """The phase that left these weights."""
    sha256: str
    """Checksum of the weights file."""
    facts: Mapping[str, Any]
    """What the run's `run.json` holds."""


def load_run(run: str | Path, phase: str | None = None) -> LoadedSupernet:
    """Reads a run's supernet with its facts.

    Args:
        run: A run folder.
        phase: The phase whose weights to take; None takes the last one that is finished.

    Raises:
        RunError: If the folder is no run, or the phase has left no weights.
    """
    path = Path(run)
    facts = folder.read_run(path)
    try:
        finished = {record["name"]: record for record in facts["phases"]}
        if not finished:
            raise RunError(f"run folder ({path}) has no finished phase yet: wait for the first one, or train again")
        chosen = phase or next(reversed(finished))
        if chosen not in finished:
            raise RunError(f"phase ({chosen}) has left no weights in {path}: choose one of {', '.join(finished)}")
        net = build_supernet(facts["supernet"])
        trained = finished[chosen]["space"]
        net.space = net.space.restrict(**{name: trained[name] for name in supernets.DIMENSIONS})
    except (KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{path / folder.FACTS} lacks {error}: restore the file, or train again") from error
    except SpaceError as error:
        raise RunError(f"{path / folder.FACTS} describes no supernet: {error}; restore the file") from error
    tensors, record = checkpoint.load(folder.checkpoint_path(path, chosen))
    checkpoint.fill(net, tensors, str(path))
    net.eval()
    return LoadedSupernet(net, chosen, record["sha256"], facts)


def load_supernet(run: str | Path, phase: str | None = None) -> Supernet:
    """Reads a run's supernet.

    Args:
        run: A run folder.
        phase: The phase whose weights to take; None takes the last one that is finished.

    Returns:
        The supernet in evaluation mode, on the CPU. Its `space` holds the networks that were trained up to that phase;
        its batch-norm statistics are those of the largest network.

    Raises:
        RunError: If the folder is no run, or the phase has left no weights.
    """
    return load_run(run, phase).net


@dataclass(frozen=True)
class OpenedRun:
    """A run with its data, ready to evaluate and extract sub-networks."""

    loaded: LoadedSupernet
    data: ImageData
    evaluator: Evaluator
    runtime: Runtime
    same_data: bool
    """Whether the data set is, by its fingerprint, the one that the run was trained on."""
    recipe: str
    """The run's resolved recipe, as YAML."""


def open_run(run: str | Path, phase: str | None = None) -> OpenedRun:
    """Opens a run's supernet and its data set, as the run's own recipe says.

    Raises:
        RunError: If the folder is no run.
        UserError: If its data set can't be opened.
    """
    loaded = load_run(run, phase)
    config = recipe.load(str(Path(run) / folder.RECIPE))
    runtime = open_runtime(config.run)
    data = open_data(config.data)
    if len(data.classes) != loaded.net.architecture.num_classes:
        raise RunError(
            f"data set ({data.name}) has {len(data.classes)} classes now, the run was trained on"
            f" {loaded.net.architecture.num_classes}: restore the images that it was trained on"
        )
    runtime.place(loaded.net)
    evaluator = open_evaluator(config, data, make_task(config.task, data, config.optim), runtime)
    same_data = data.fingerprint == loaded.facts["data"]["fingerprint"]
    return OpenedRun(loaded, data, evaluator, runtime, same_data, recipe.dump(config))
