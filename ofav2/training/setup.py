"""Prepare everything that a run needs from its recipe, and check it before anything is written."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ofav2 import files
from ofav2.config.schema import Config
from ofav2.data import ImageData, SplitRecord, count_channels, open_data, steps_per_epoch
from ofav2.errors import RunError, UserError
from ofav2.evaluation.evaluator import Evaluator, open_evaluator
from ofav2.messages import short, show
from ofav2.networks.build import check_network, recipe_network
from ofav2.runs import checkpoint
from ofav2.runs.kept_recipe import changed_settings, names_setting
from ofav2.runs.records import InitialWeights, PhaseRecord, RunRecord, lasting, new_record
from ofav2.runs.tracking import check_tracking
from ofav2.runtime.device import Runtime, open_runtime
from ofav2.runtime.processes import SINGLE_PROCESS, Processes
from ofav2.tasks.base import Task, refuse_mixing
from ofav2.tasks.registry import make_task, require_targets
from ofav2.training.external import ExternalTeachers, external_teachers
from ofav2.training.initial import adopt_initial, freeze_body
from ofav2.training.phases import Phase, Plan, make_plan
from supernets import Supernet
from supernets.multi_exit import MultiExit, Network

_LISTED = 8
"""Settings that differ which a message lists."""


@dataclass(frozen=True)
class Setup:
    """Everything that a run needs."""

    config: Config
    """The recipe."""
    data: ImageData
    """The data set."""
    net: Network
    """The supernet, or network with exits: at first with its first weights, on the CPU; then it is trained in place."""
    initial: InitialWeights | None
    """Where these weights come from; None if they are fresh."""
    plan: Plan
    """The phases."""
    external: ExternalTeachers
    """Teachers from timm."""
    weights_sha256: str | None
    """Checksum of `network.weights`: of the file, or of what timm has loaded; None of a network that starts anew."""
    runtime: Runtime
    """Device, precision and processes."""
    task: Task
    """What is learnt."""
    evaluator: Evaluator
    """What measures sub-networks."""


def prepare(
    config: Config,
    processes: Processes = SINGLE_PROCESS,
    split: SplitRecord | None = None,
    data: ImageData | None = None,
    resumed: RunRecord | None = None,
) -> Setup:
    """Build what a recipe describes, and refuse what can't be trained.

    Args:
        config: The recipe.
        processes: The processes that are to train it together.
        split: The split of a run that goes on; None draws one.
        data: Images to take instead of the recipe's; None opens those.
        resumed: The record of a run that goes on from what it trained, so that its first weights are no longer needed,
            and may be gone; None loads those that the recipe names.

    Raises:
        UserError, SpaceError, DistillError: If a setting is impossible; the message names it.
        RunError: If processes have different recipes, data or versions; the message shows how.
    """
    check_tracking(config.tracking)
    processes.on_all(lambda: check_network(_first_network(config, resumed), count_channels(config.data)))
    opened = processes.local_main_first if config.data.download else processes.on_all
    found = data or opened(lambda: open_data(config.data, split))
    setup = processes.on_all(lambda: _build(config, found, processes, resumed))
    record = record_now("", "", setup)
    refuse_disagreement(processes, {"recipe": asdict(config), **lasting(record), "versions": record.versions})
    return setup


def place_to_train(net: Network, runtime: Runtime) -> None:
    """Put a network on the device; of a supernet there, use the layers that train faster on a CPU, where asked for."""
    runtime.place(net)
    if isinstance(net, Supernet):
        # A network with exits stays timm's own layers.
        runtime.use_cpu_kernels(net)


def record_now(name: str, recipe: str, setup: Setup) -> RunRecord:
    """Return the record of a run that starts now.

    Args:
        name: The run's name.
        recipe: The recipe as YAML, which takes time to write.
        setup: What is trained, on what.
    """
    return new_record(
        name,
        setup.config,
        setup.task,
        setup.data,
        setup.net,
        recipe=recipe,
        processes=setup.runtime.processes.count,
        teacher_sha256=setup.external.sha256,
        initial=setup.initial,
        weights_sha256=setup.weights_sha256,
    )


def _build(config: Config, data: ImageData, processes: Processes, resumed: RunRecord | None) -> Setup:
    _check_parts(config.data.batch_size, processes.count)
    runtime = open_runtime(config.run, processes)
    task = make_task(config.task, data, config.optim)
    if resumed is None:
        require_targets(task, data)
    refuse_mixing(task, config.data)
    net = recipe_network(
        _first_network(config, resumed), outputs=task.outputs, channels=data.channels, dense=task.dense
    )
    initial = resumed.initial if resumed else adopt_initial(net, config.supernet, data, task)
    if config.supernet.frozen:
        freeze_body(net)
    steps = steps_per_epoch(len(data.train), config.data.batch_size)
    plan = make_plan(config.phases, config.teacher, net.space, steps)
    for phase in plan.phases:
        _check_patience(config, phase, net)
    _check_distance(config, plan, task)
    return Setup(
        config=config,
        data=data,
        net=net,
        initial=initial,
        plan=plan,
        external=external_teachers(plan, config, data, task, runtime),
        weights_sha256=resumed.weights_sha256 if resumed else _weights_sha256(config.network.weights, net),
        runtime=runtime,
        task=task,
        evaluator=open_evaluator(config, data, task, runtime),
    )


def _first_network(config: Config, resumed: RunRecord | None) -> Config:
    """Return the recipe of the network that is made: of a run that goes on, one without first weights."""
    return config if resumed is None else replace(config, network=replace(config.network, weights=None))


def _weights_sha256(weights: str | None, net: Network) -> str | None:
    """Return the checksum of the weights that a network begins with: of their file, or of what timm has loaded."""
    if weights is None:
        return None
    return checkpoint.networks_sha256([net]) if weights == "timm" else files.sha256(Path(weights).expanduser())


def _check_patience(config: Config, phase: Phase, net: Network) -> None:
    if not phase.config.patience:
        return
    key = f"phases.{phase.name}.patience ({phase.config.patience})"
    if not isinstance(net, MultiExit):
        raise UserError(f"{key} is for networks with exits, whose joint loss is validated: set it to 0")
    if not config.evaluation.every_epochs:
        raise UserError(f"{key} counts validations, and there is one at the end alone: set evaluation.every_epochs=1")


def _check_distance(config: Config, plan: Plan, task: Task) -> None:
    distance = config.teacher.distance
    # In place, the largest network of the step teaches.
    is_used = any(phase.teacher != "none" or phase.objective == "in_place" for phase in plan.phases)
    if is_used and distance not in task.distances:
        raise UserError(
            f"teacher.distance ({distance}) makes no sense for the task {task.name}: use {' or '.join(task.distances)}"
        )


def _check_parts(batch_size: int, count: int) -> None:
    if batch_size % count:
        raise UserError(
            f"data.batch_size ({batch_size}) can't be shared out evenly to {count} processes:"
            f" start as many as divide it, or set it to a multiple of {count}"
        )
    if batch_size == count > 1:
        raise UserError(
            f"data.batch_size ({batch_size}) leaves each of {count} processes one image, of which batch norm can't"
            " gather statistics: start fewer, or set it to a larger multiple"
        )


def refuse_disagreement(processes: Processes, settings: Mapping[str, Any]) -> None:
    """Check that all processes have the same settings.

    Raises:
        RunError: In the first process, if there are differences; the message has those to the first one that differs.
        Lost: In the others.
    """
    first, *others = processes.gather(settings)
    for rank, theirs in enumerate(others, 1):
        differing = changed_settings(first, theirs)
        if differing:
            shown = _listed(differing, f"is {{}} in process 0, {{}} in process {rank}")
            processes.refuse(
                RunError(f"processes disagree: {shown}; give all the same recipe, settings, data and versions")
            )


def refuse_changes(before: Mapping[str, Any], after: Mapping[str, Any], allowed: Sequence[str]) -> None:
    """Check that two sets of settings are the same, but for the allowed keys.

    Args:
        before: Settings that a run was started with.
        after: Settings that it would go on with.
        allowed: Keys in full, such as `data.root`, or of a whole part, such as `tracking`.

    Raises:
        RunError: If another key differs; the message has the differences.
    """
    differing = changed_settings(before, after)
    refused = {key: values for key, values in differing.items() if not names_setting(allowed, key)}
    if refused:
        shown = _listed(refused, "was {}, is {}")
        raise RunError(
            f"run can't go on as it was: {shown}; restore that, or accept it with --allow-change {next(iter(refused))}"
        )


def _listed(differing: Mapping[str, tuple[Any, Any]], form: str) -> str:
    """Return the first settings that differ, each in a form such as `was {}, is {}`, and how many more there are."""
    first = [f"{key} {form.format(*map(show, values))}" for key, values in [*differing.items()][:_LISTED]]
    more = f" and {len(differing) - _LISTED} more" if len(differing) > _LISTED else ""
    return f"{'; '.join(first)}{more}"


def check_progress(finished: Sequence[PhaseRecord], plan: Plan) -> None:
    """Check that a plan can go on after these phases.

    Args:
        finished: The finished phases that a run has recorded.
        plan: The phases of the run's recipe as it is now.

    Raises:
        RunError: If the finished phases are not the plan's first.
    """
    took = [(phase.name, phase.end) for phase in finished]
    takes = [(phase.name, phase.first_step + phase.steps) for phase in plan.phases[: len(finished)]]
    if took != takes:
        raise RunError(
            f"phases that are finished ({_ends(took)}) are not the recipe's first ({_ends(takes)}):"
            " restore the recipe's first phases and data.batch_size, or train in a new folder"
        )


def _ends(phases: Sequence[tuple[str, int]]) -> str:
    return ", ".join(f"{short(name)} to step {end}" for name, end in phases) or "none"
