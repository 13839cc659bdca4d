"""Open an extracted network with several exits, with the data set that it was trained on."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch.fx import GraphModule

from ofav2.config import recipe
from ofav2.data import ImageData, open_data
from ofav2.data.splits import first_other_class
from ofav2.deploy.artifact import SubnetRecord, describe_subnet, load_subnet
from ofav2.errors import UserError
from ofav2.evaluation.evaluator import Evaluator, open_evaluator
from ofav2.exits.collect import require_classes, warn_of_chosen_test
from ofav2.exits.early import EarlyExits, early_exits
from ofav2.exits.policy_file import several_exits
from ofav2.messages import show
from ofav2.runs.kept_recipe import PLACES
from ofav2.runtime.device import Runtime, open_runtime
from ofav2.runtime.threads import choose_threads, forward_pass, sample_images
from ofav2.tasks.registry import measuring_task
from supernets.output_costs import ExitMacs, exit_macs

PLACE_AND_DEVICE = (
    *(f"data.{name}" for name in PLACES),
    "run.device",
    "run.threads",
)
"""Settings of an extracted network's recipe that say where its images are, and what computes."""
_CHANGEABLE = (*PLACE_AND_DEVICE, "evaluation.batch_size")


@dataclass(frozen=True)
class OpenedExits:
    """An extracted network with several exits, and the data that it was trained on."""

    folder: Path
    """Where it lies."""
    net: EarlyExits
    """The network, on the runtime's device."""
    module: GraphModule
    """The same weights as the module that returns all exits at once."""
    record: SubnetRecord
    """What `subnet.json` says."""
    macs: tuple[ExitMacs, ...]
    """What each exit costs."""
    data: ImageData
    """The data set."""
    evaluator: Evaluator
    """What prepares images."""
    runtime: Runtime
    """Device and precision."""


def open_exits(directory: str | Path, overrides: Sequence[str] = ()) -> OpenedExits:
    """Open an extracted network with several exits, with the data set that its own recipe names.

    Raises:
        RunError, UserError: As for `calibrate_exits`.
    """
    path = Path(directory)
    for text in overrides:
        if text.partition("=")[0] not in _CHANGEABLE:
            raise UserError(
                f"setting ({text}) does not belong here: of the network's recipe, change {', '.join(_CHANGEABLE)}"
            )
    exits, module, record = several_exits(path), load_subnet(path), describe_subnet(path)
    if record.finetuning:
        raise UserError(
            f"network ({path}) was fine-tuned on its validation images, so they can't choose: take it as it was before"
        )
    config = recipe.parse(record.run.recipe, f"recipe in {path}/subnet.json", overrides)
    runtime = open_runtime(config.run)
    data = open_data(config.data)
    task = measuring_task(config.task, data, config.optim)
    require_classes(task)
    if difference := first_other_class(record.classes, data.classes):
        raise UserError(f"data set ({data.name}): {difference}; restore the classes that the network was trained with")
    if data.fingerprint != record.run.data_fingerprint:
        raise UserError(
            f"data set ({data.name}) is not the one that the network was trained on, so its validation images may be"
            " ones that it knows: give the folder of that one as data.root=PATH"
        )
    for what, before, now in (("mean", record.input.mean, data.mean), ("std", record.input.std, data.std)):
        if tuple(now) != before:
            raise UserError(
                f"{what} of data set {data.name} is {show(list(now))}, and the network was trained with"
                f" {show(list(before))}: use the version of ofav2 that trained it"
            )
    warn_of_chosen_test(data)
    runtime.place(module)
    if not config.run.threads:
        images = runtime.send(sample_images(config.evaluation.batch_size, data.channels, record.subnet.resolution))
        choose_threads(forward_pass(module, images), "a forward pass", runtime.device)
    net = early_exits(module, exits, record.ensemble)
    costs = exit_macs(module, (record.input.channels, record.input.resolution, record.input.resolution), exits)
    return OpenedExits(path, net, module, record, costs, data, open_evaluator(config, data, task, runtime), runtime)
