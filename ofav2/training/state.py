"""What a phase in progress has to keep, so that a run that stops goes on as if it had not.

Every random draw is a function of (seed, phase, step), the learning rate one of the step, and the teacher a finished
phase's checkpoint; so weights, the optimiser's tensors, the best validation so far and the place are all there is.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ofav2 import folder
from ofav2.errors import RunError
from ofav2.training import checkpoint

_NAME = re.compile(r"state-(\d{9})\.json")


@dataclass(frozen=True)
class Place:
    """Where a phase in progress stands."""

    phase: str
    """Name of the phase."""
    step: int
    """Steps taken in it."""
    global_step: int
    """Steps taken in the run."""
    metrics_bytes: int
    """Length of `metrics.jsonl`; what was written after is written again."""
    best_top1: float | None = None
    """Best validation so far in the phase; None before the first."""
    skipped: int = 0
    """Batches skipped so far in the phase because their loss was unusable."""
    usual_loss: float | None = None
    """Moving average of the loss; None before the first step of a phase."""


@dataclass(frozen=True)
class State:
    """A place, and the tensors that belong to it."""

    place: Place
    """Where the phase stands."""
    net: Mapping[str, Tensor]
    """The supernet's weights and statistics."""
    optimizer: Mapping[str, Tensor]
    """The optimiser's tensors, as `<parameter>.<name>`."""
    best: Mapping[str, Tensor]
    """The supernet at its best validation; empty before the first."""


def save_state(run_folder: Path, state: State, keep: int) -> None:
    """Writes a state beside the newest `keep - 1` older ones.

    Raises:
        RunError: If it can't be written; older states are left.
    """
    tensors = {
        f"{group}/{name}": tensor
        for group in ("net", "optimizer", "best")
        for name, tensor in getattr(state, group).items()
    }
    path = folder.checkpoint_path(run_folder, f"state-{state.place.global_step:09d}")
    checkpoint.save(path, tensors, asdict(state.place))
    for old in _states(run_folder)[keep:]:
        # The facts go first: tensors without facts are no state.
        for file in reversed(checkpoint.files(old)):
            file.unlink(missing_ok=True)


def load_newest(run_folder: Path, phase: str, say: Callable[[str], None]) -> State | None:
    """The newest state of a phase that is whole; damaged ones are named and passed over.

    Args:
        run_folder: The run folder.
        phase: The phase that is to go on.
        say: Where to say what was passed over.
    """
    for path in _states(run_folder):
        try:
            tensors, facts = checkpoint.load(path)
            place = Place(**{name: facts[name] for name in asdict(_ANYWHERE)})
        except (RunError, KeyError) as error:
            say(f"{error}; taking the state before it")
            continue
        if place.phase == phase:
            return State(place, *(_group(tensors, name) for name in ("net", "optimizer", "best")))
    return None


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Copies of an optimiser's tensors, as `<parameter>.<name>`."""
    return {
        f"{index}.{name}": value.clone()
        for index, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
        if isinstance(value, Tensor)
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Gives a fresh optimiser the tensors of another one of the same network.

    They take their parameter's memory layout, which arithmetic that is equal to the last bit needs.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for key, tensor in tensors.items():
        index, _, name = key.partition(".")
        parameter = parameters[int(index)]
        if tensor.shape == parameter.shape and tensor.ndim:
            optimizer.state[parameter][name] = torch.empty_like(parameter).copy_(tensor)
        else:
            optimizer.state[parameter][name] = tensor.clone()


def cloned(net: nn.Module) -> dict[str, Tensor]:
    """Copies of a module's weights and statistics."""
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


_ANYWHERE = Place("", 0, 0, 0)


def _states(run_folder: Path) -> list[Path]:
    """Paths of all states without suffix, newest first."""
    parent = run_folder / folder.CHECKPOINTS
    found = sorted((path.name for path in parent.glob("state-*.json") if _NAME.fullmatch(path.name)), reverse=True)
    return [parent / name.removesuffix(".json") for name in found]


def _group(tensors: Mapping[str, Tensor], group: str) -> dict[str, Tensor]:
    return {name.partition("/")[2]: tensor for name, tensor in tensors.items() if name.startswith(f"{group}/")}
