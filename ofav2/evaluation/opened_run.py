"""Open a run: its supernet, its data set, and what measures sub-networks on it."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path

from ofav2.config import recipe
from ofav2.config.schema import Config
from ofav2.data import ImageData, open_data
from ofav2.data.splits import first_other_class
from ofav2.errors import RunError, UserError
from ofav2.evaluation.evaluator import CHUNK_PIXELS, Evaluator, open_evaluator
from ofav2.messages import show
from ofav2.networks.build import build_network, without_memory
from ofav2.runs import checkpoint, folder
from ofav2.runs.kept_recipe import kept_recipe
from ofav2.runs.records import RunRecord, read_run
from ofav2.runs.split import kept_split, require_drawn_again
from ofav2.runtime.device import Runtime, open_runtime
from ofav2.runtime.processes import SINGLE_PROCESS, Processes
from ofav2.runtime.threads import choose_threads, forward_pass, sample_images
from ofav2.tasks.base import Task
from ofav2.tasks.registry import measuring_task
from ofav2.typed_json import to_plain
from supernets import Supernet
from supernets.multi_exit import Network

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedSupernet:
    """A run's supernet, and where it came from."""

    net: Network
    """The supernet, or network with exits, in evaluation mode; `net.space` holds the networks that were trained."""
    phase: str
    """The phase that left these weights."""
    sha256: str
    """Checksum of the weights file."""
    record: RunRecord
    """What the run is, and how far it has come."""
    folder: Path
    """The run folder."""


def load_run(run: str | Path, phase: str | None = None) -> LoadedSupernet:
    """Read a run's supernet with the run's record.

    Args:
        run: A run folder.
        phase: The phase whose weights to take; None takes the last one that is finished.

    Raises:
        RunError: If the folder is no run, or the phase has left no weights.
    """
    path = Path(run)
    record = read_run(path)
    finished = {phase.name: phase for phase in record.phases}
    if not finished:
        raise RunError(f"run folder ({path}) has no finished phase yet: wait for the first one, or train again")
    chosen = phase or next(reversed(finished))
    if chosen not in finished:
        raise RunError(f"phase ({chosen}) has left no weights in {path}: choose one of {', '.join(finished)}")
    with without_memory(record.architecture):
        net = build_network(record.architecture, record.space.resolution)
    net.space = finished[chosen].space
    tensors, described = checkpoint.load(folder.checkpoint_path(path, chosen), finished[chosen].sha256)
    checkpoint.fill(net, tensors, str(path))
    net.eval()
    return LoadedSupernet(net, chosen, described["sha256"], record, path)


def load_supernet(run: str | Path, phase: str | None = None) -> Network:
    """Read a run's supernet.

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


def require_supernet(net: Network, instead: str) -> Supernet:
    """Return a supernet as it is, and refuse a network with exits.

    Args:
        net: What a run trained.
        instead: What the user should do, as it ends a message.

    Raises:
        UserError: If it is no supernet.
    """
    if not isinstance(net, Supernet):
        raise UserError(f"run trained {net.architecture.name} with exits, which is no supernet: {instead}")
    return net


@dataclass(frozen=True)
class OpenedRun:
    """A run with its data, ready to evaluate and extract sub-networks."""

    loaded: LoadedSupernet
    """The supernet, with the phase that left its weights and the run's record."""
    data: ImageData
    """The data set, with the run's split."""
    evaluator: Evaluator
    """Recalibrates sub-networks and scores them on that data set."""
    runtime: Runtime
    """The device and precision to compute with."""
    same_data: bool
    """Whether the data set is, by its fingerprint, the one that the run was trained on."""
    recipe: str
    """The run's resolved recipe, as YAML."""


def open_run(run: str | Path, phase: str | None = None) -> OpenedRun:
    """Open a run's supernet and its data set, by the run's own recipe.

    The split is the run's: images that were added since are left out. Changed images give a warning.

    Args:
        run: A run folder.
        phase: The phase whose weights to take; None takes the last one that is finished.

    Returns:
        The run with its supernet in evaluation mode, on the recipe's device. `loaded.net.space` holds the networks that
        were trained up to that phase.

    Raises:
        RunError: If the folder is no run, the phase has left no weights, or task, classes or normalisation are others
            than the run was trained with.
        UserError: If its data set can't be opened, has other classes, or lacks images that the run was trained with.
    """
    return open_loaded(load_run(run, phase))


def refuse_other_images(run: OpenedRun) -> None:
    """Refuse to keep results in a run folder that would be of other images than the run's.

    Raises:
        UserError: The data set has changed since the training.
    """
    if not run.same_data:
        raise UserError(
            f"data set ({run.data.name}) holds other images, or other labels, than {run.loaded.folder} was trained on,"
            " so results can't be kept as the run's: restore it, or its place in recipe.yaml"
        )


def open_loaded(loaded: LoadedSupernet, processes: Processes = SINGLE_PROCESS) -> OpenedRun:
    """Open the data set of a supernet that was read; see `open_run`.

    Args:
        loaded: The supernet.
        processes: The processes that evaluate together.
    """
    run = loaded.folder
    config = recipe_to_measure(loaded)
    runtime = open_runtime(config.run, processes)
    split = kept_split(run, loaded.record)
    data = open_data(config.data, split)
    if split is None:
        require_drawn_again(run, loaded.record, data.fingerprint)
    task = measuring_task(config.task, data, config.optim)
    _refuse_others(loaded.record, data, task)
    same_data = data.fingerprint == loaded.record.data.fingerprint
    if not same_data:
        logger.warning(
            f"data set ({data.name}) holds other images, or other labels, than {run} was trained on: what is measured"
            " now is not what was measured then"
        )
    runtime.place(loaded.net)
    if not config.run.threads:
        _settle_threads(loaded.net, runtime)
    evaluator = open_evaluator(config, data, task, runtime)
    return OpenedRun(loaded, data, evaluator, runtime, same_data, recipe.dump(config))


def recipe_to_measure(loaded: LoadedSupernet) -> Config:
    """Return a run's recipe without a number of threads that nobody chose."""
    config = kept_recipe(loaded.folder, loaded.record)
    if config.run.threads == loaded.record.chosen_threads:
        # That was the fastest number where and when the run was trained.
        return replace(config, run=replace(config.run, threads=0))
    return config


def _refuse_others(record: RunRecord, data: ImageData, task: Task) -> None:
    """Refuse what would give wrong scores without a word: outputs, or inputs, that mean something else than before."""
    known = record.data
    if difference := first_other_class(known.classes, data.classes):
        raise RunError(
            f"data set ({data.name}): {difference}; restore the classes that run {record.name} was trained with"
        )
    for what, before, now in (
        ("task", record.task, task.name),
        ("metric", record.metric, task.metrics[0]),
        ("outputs", record.architecture.num_classes, task.outputs),
        ("bands", known.bands, data.bands),
        ("mean", known.mean, tuple(data.mean)),
        ("std", known.std, tuple(data.std)),
    ):
        if before != now:
            raise RunError(
                f"{what} was {show(to_plain(before))} when run {record.name} was trained, and is"
                f" {show(to_plain(now))} now:"
                " restore its recipe.yaml, and the images that it was trained on"
            )


def _settle_threads(net: Network, runtime: Runtime) -> None:
    """Let torch use the fastest number of threads for the largest network, on as many images as run at once."""
    largest = net.space.largest()
    count = max(1, CHUNK_PIXELS // largest.resolution**2)
    images = runtime.send(sample_images(count, net.architecture.in_channels, largest.resolution))
    forward = forward_pass(lambda given: net(given, largest), images)
    choose_threads(forward, f"a forward pass of {count} images", runtime.device)
