"""Save and load the state of a phase in progress, to resume exactly.

Every random draw is a function of (seed, phase, step), the learning rate one of the step, and the teacher a finished
phase's checkpoint; so weights, the optimiser's tensors, the best validation so far and the progress are all there is.
"""

import hashlib
import logging
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from ofav2 import files
from ofav2.errors import RunError
from ofav2.runs import checkpoint, folder
from ofav2.typed_json import Count, MisfitError, fit

logger = logging.getLogger(__name__)

_NAME = re.compile(r"((?:state|aside)-\d{9})\.(?:json|safetensors)", re.ASCII)

LEARNT = 0.9
"""A diverged phase's state counts as sound if its usual loss is at most so much of the loss of the first step."""
CLIMBED = 1.1
"""And at most so many times the usual loss of an older sound one."""

# Per parameter, what an optimiser remembers after its first step.
_REMEMBERED = MappingProxyType(
    {torch.optim.SGD: {"momentum_buffer"}, torch.optim.AdamW: {"step", "exp_avg", "exp_avg_sq"}}
)


@dataclass(frozen=True)
class Progress:
    """Where a phase in progress stands."""

    phase: str
    """Name of the phase."""
    step: Count
    """Steps taken in it."""
    global_step: Count
    """Steps that the recipe plans up to here: an earlier phase may have ended before its last one."""
    metrics_bytes: Count
    """Length of `metrics.jsonl`; what was written after is written again."""
    best_score: float | None = None
    """Best validation so far in the phase; None before the first."""
    skipped: Count = 0
    """Batches skipped so far in the phase because their loss was unusable."""
    first_loss: float | None = None
    """Loss of the phase's first step; None before it."""
    usual_loss: float | None = None
    """Moving average of the loss; None before the first step of a phase."""
    lowest_loss: float | None = None
    """Lowest joint loss of a validation so far, of a phase with patience; None before the first."""
    stale: Count = 0
    """Validations in a row since then."""
    validated: str | None = None
    """Checksum of what its validations depend on beside the weights, such as the images and how they are cropped; None
    of states from before it was kept."""


@dataclass(frozen=True)
class PhaseState:
    """A phase's progress, and the tensors that belong to it."""

    progress: Progress
    """Where the phase stands."""
    net: Mapping[str, Tensor]
    """The supernet's weights and statistics."""
    optimizer: Mapping[str, Tensor]
    """The optimiser's tensors, as `<parameter>.<name>`."""
    best: Mapping[str, Tensor]
    """The supernet at its best validation; empty before the first."""


def save_state(
    run_folder: Path, state: PhaseState, keep: int, bind: Callable[[str, str], object] | None = None
) -> None:
    """Write a state beside the newest `keep - 1` older ones.

    Args:
        run_folder: The run folder.
        state: The state.
        keep: How many of the newest states to keep, at least 1.
        bind: Takes the state's name and the SHA-256 of its tensors' file, before there is such a file.

    Raises:
        RunError: If it can't be written; older states are left.
    """
    tensors = {
        f"{group}/{name}": tensor
        for group in ("net", "optimizer", "best")
        for name, tensor in getattr(state, group).items()
    }
    path = run_folder / folder.CHECKPOINTS / f"state-{state.progress.global_step:09d}"
    data = checkpoint.tensor_bytes(tensors)
    if bind is not None:
        bind(path.name, hashlib.sha256(data).hexdigest())
    checkpoint.write(path, data, asdict(state.progress))
    for old in [*_states(run_folder, "state")[keep:], *_states(run_folder, "aside")]:
        # The facts go first: tensors without facts are no state.
        for file in reversed(checkpoint.file_paths(old)):
            _remove(file)


def state_names(run_folder: Path) -> tuple[str, ...]:
    """Return the names of the states that there are, newest first."""
    return tuple(path.name for path in _states(run_folder, "state"))


def load_newest(run_folder: Path, phase: str, digests: Mapping[str, str] | None = None) -> PhaseState | None:
    """Return the newest state of a phase that is whole; damaged and foreign ones are logged and passed over.

    Args:
        run_folder: The run folder.
        phase: The phase that is to go on.
        digests: The states' checksums by name, as `save_state` bound them; None takes any state that is whole.
    """
    for path in _states(run_folder, "state"):
        try:
            tensors, facts = checkpoint.load(path, None if digests is None else digests.get(path.name, "unknown"))
            progress = _read_progress(facts, path)
        except RunError as error:
            logger.warning(f"{error}; taking the state before it")
            continue
        if progress.phase == phase:
            return PhaseState(progress, *(_group(tensors, name) for name in ("net", "optimizer", "best")))
    return None


def set_aside_after(run_folder: Path, global_step: int) -> None:
    """Rename the states beyond the step where a run resumes; the next saved state removes them.

    They are damaged, or of steps that will be taken anew: the one would push good states out of the newest, the other
    belongs to a `metrics.jsonl` that is no more.

    Raises:
        RunError: If the system refuses.
    """
    for path in _states(run_folder, "state"):
        if int(path.name.removeprefix("state-")) <= global_step:
            return
        _set_aside(path)


def set_aside_skipped(run_folder: Path, phase: str) -> None:
    """Rename the states of a phase that were saved after a batch had been skipped, and those that can't be read.

    Raises:
        RunError: If the system refuses.
    """
    for path in _states(run_folder, "state"):
        progress = _progress_of(path)
        if progress is None or (progress.phase == phase and progress.skipped):
            _set_aside(path)


def set_aside_unlearnt(run_folder: Path, phase: str) -> None:
    """Rename the states of a diverged phase whose weights may be driven too far already.

    Weights grow before the loss does: behind batch norm, ones that no rate will ever train again have the loss of fresh
    ones. So a state is kept only if the phase had learnt something by then (`LEARNT`), and lost nothing of it since
    (`CLIMBED`).

    Raises:
        RunError: If the system refuses.
    """
    lowest = math.inf
    for path in reversed(_states(run_folder, "state")):
        progress = _progress_of(path)
        if progress is None:
            _set_aside(path)
        elif progress.phase == phase:
            first, usual = progress.first_loss, progress.usual_loss
            if first is None or usual is None or usual > min(LEARNT * first, CLIMBED * lowest):
                _set_aside(path)
            else:
                lowest = min(lowest, usual)


def _progress_of(path: Path) -> Progress | None:
    """Return a state's progress; None if it can't be read."""
    try:
        return _read_progress(files.read_json(checkpoint.file_paths(path)[1]), path)
    except RunError:
        return None


def _set_aside(path: Path) -> None:
    for file in reversed(checkpoint.file_paths(path)):
        try:
            file.replace(file.with_name(file.name.replace("state", "aside", 1)))
        except FileNotFoundError:
            continue
        except OSError as error:
            raise RunError(f"{file} cannot be set aside ({error.strerror}); check its permissions") from error


def check_state(state: PhaseState, net: nn.Module, *, first_step: int, steps: int) -> None:
    """Check that a phase can go on from a state.

    Args:
        state: The state.
        net: The supernet.
        first_step: Steps of all phases before this one.
        steps: Steps of this phase.

    Raises:
        RunError: If its weights do not fit, or its progress is outside the phase, as after a change of recipe.
    """
    progress = state.progress
    where = f"the state at step {progress.global_step}"
    if progress.global_step != first_step + progress.step or progress.step > steps:
        raise RunError(
            f"{where} is step {progress.step} of phase {progress.phase}, which has {steps} steps from step {first_step}"
            " on: restore data.batch_size and the phases' epochs"
        )
    if (progress.best_score is None) == bool(state.best) or (progress.step == steps and not state.best):
        raise RunError(
            f"{where} lacks the best validation of phase {progress.phase}, which has {steps} steps: restore it"
        )
    expected = net.state_dict()
    checkpoint.require_fit(expected, state.net, where)
    if state.best:
        checkpoint.require_fit(expected, state.best, where)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Copy an optimiser's tensors, as `<parameter>.<name>`."""
    return {
        f"{index}.{name}": value.clone()
        for index, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
        if isinstance(value, Tensor)
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Load another optimiser's tensors into a fresh one of the same network.

    They take their parameter's memory layout, which arithmetic that is equal to the last bit needs.

    Raises:
        RunError: If they are another optimiser's, or another network's; nothing was changed.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    found: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        index, _, name = key.partition(".")
        number = int(index) if re.fullmatch(r"\d{1,9}", index, re.ASCII) else len(parameters)
        if number >= len(parameters) or tensor.shape != (() if name == "step" else parameters[number].shape):
            raise RunError(f"state's optimiser tensor ({key[:100]!r}) fits no parameter: restore the state")
        found.setdefault(number, {})[name] = tensor
    for number, values in found.items():
        if values.keys() != _REMEMBERED[type(optimizer)]:
            raise RunError(
                f"state's optimiser remembers {', '.join(sorted(values))[:100]!r} of parameter {number}, which"
                f" {type(optimizer).__name__} does not: restore optim.name until the phase is over"
            )
    for number, values in found.items():
        optimizer.state[parameters[number]] = {
            name: _laid_out_like(parameters[number], tensor) for name, tensor in values.items()
        }


def _laid_out_like(parameter: Tensor, tensor: Tensor) -> Tensor:
    return torch.empty_like(parameter).copy_(tensor) if tensor.ndim else tensor.to(parameter.device, copy=True)


def cloned(net: nn.Module) -> dict[str, Tensor]:
    """Copy a module's weights and statistics."""
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def _read_progress(facts: Mapping[str, Any], path: Path) -> Progress:
    try:
        progress: Progress = fit(Progress, {field.name: facts.get(field.name) for field in fields(Progress)})
    except MisfitError as error:
        raise RunError(
            f"{checkpoint.file_paths(path)[1]} has no valid progress ({error}); restore it or train again"
        ) from error
    return progress


def _states(run_folder: Path, kind: str) -> list[Path]:
    """Paths of all states, or of those set `aside`, without suffix, newest first."""
    parent = run_folder / folder.CHECKPOINTS
    found = {match[1] for path in parent.glob(f"{kind}-*") if (match := _NAME.fullmatch(path.name))}
    return [parent / name for name in sorted(found, reverse=True)]


def _remove(file: Path) -> None:
    try:
        file.unlink(missing_ok=True)
    except OSError as error:
        raise RunError(f"{file} cannot be removed ({error.strerror}); check its folder's permissions") from error


def _group(tensors: Mapping[str, Tensor], group: str) -> dict[str, Tensor]:
    return {name.partition("/")[2]: tensor for name, tensor in tensors.items() if name.startswith(f"{group}/")}
