"""Find tasks by name: those of this package, and those of installed packages.

Another package adds a task by an entry point of the group `ofav2.tasks`, a function (data set, optimiser settings) ->
task, as in its `setup.cfg`:

    [options.entry_points]
    ofav2.tasks =
        depth = my_package.depth:make
"""

import difflib
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import entry_points
from types import MappingProxyType

from ofav2.config.schema import OptimConfig
from ofav2.data import ImageData
from ofav2.data.checks import require_near_numbers, require_planes
from ofav2.data.statistics import class_shares
from ofav2.errors import UserError
from ofav2.tasks import classification, reconstruction, regression, segmentation
from ofav2.tasks.base import Task, log_weights

GROUP = "ofav2.tasks"
"""Group of entry points that other packages add tasks to."""

MakeTask = Callable[[ImageData, OptimConfig], Task]
"""(Data set, optimiser settings) -> task."""


def _classification(data: ImageData, optim: OptimConfig) -> Task:
    return classification.Classification(len(data.classes), optim.label_smoothing, _class_weights(data, optim))


def _segment(data: ImageData, optim: OptimConfig) -> Task:
    return segmentation.Segmentation(data.target.names, optim.label_smoothing, _class_weights(data, optim))


def _class_weights(data: ImageData, optim: OptimConfig) -> tuple[float, ...] | None:
    return None if optim.class_weights == "none" else log_weights(class_shares(data.train, len(data.classes)))


def _regress(data: ImageData, optim: OptimConfig) -> Task:
    _refuse_class_weights(regression.NAME, optim)
    return regression.Regression(data.target.names)


def _reconstruct(data: ImageData, optim: OptimConfig) -> Task:
    _refuse_class_weights(reconstruction.NAME, optim)
    return reconstruction.Reconstruction(data.bands, data.target.names if data.target.kind == "numbers" else ())


def _refuse_class_weights(name: str, optim: OptimConfig) -> None:
    if optim.class_weights != "none":
        raise UserError(
            f"optim.class_weights ({optim.class_weights}) needs classes, which task {name} has none of: set it to none"
        )


_OWN: MappingProxyType[str, MakeTask] = MappingProxyType(
    {
        classification.NAME: _classification,
        segmentation.NAME: _segment,
        regression.NAME: _regress,
        reconstruction.NAME: _reconstruct,
    }
)
_TARGETS: MappingProxyType[str, str] = MappingProxyType(
    {classification.NAME: "classes", segmentation.NAME: "codes", regression.NAME: "numbers"}
)
"""Task -> the kind of targets that it needs; one that is not here takes any."""


def measuring_task(name: str, data: ImageData, optim: OptimConfig) -> Task:
    """Make a task that measures and does not train; see `make_task`.

    Weights of classes are part of the loss alone, and counting them reads all training targets.
    """
    return make_task(name, data, replace(optim, class_weights="none"))


def names() -> tuple[str, ...]:
    """Return the names of all tasks, this package's own first."""
    return (*_OWN, *sorted({entry.name for entry in entry_points(group=GROUP)} - _OWN.keys()))


def require_targets(task: Task, data: ImageData) -> None:
    """Refuse a training on targets of which none counts or that are too large, and log classes that training lacks.

    Raises:
        UserError: A split has no pixel that counts, or numbers are far from 0 and 1.
    """
    if task.name in (segmentation.NAME, regression.NAME):
        require_planes(data)
    learns_planes = isinstance(task, regression.Regression) or (
        isinstance(task, reconstruction.Reconstruction) and bool(task.planes)
    )
    if learns_planes:
        require_near_numbers(data)


def make_task(name: str, data: ImageData, optim: OptimConfig) -> Task:
    """Make a task for a data set.

    Args:
        name: One of `names()`.
        data: The data set.
        optim: The optimiser's settings, which hold those of the loss.

    Raises:
        UserError: If there is no such task, or it needs other targets than the data set has.
    """
    if name in _OWN:
        _refuse_targets(name, data)
        return _OWN[name](data, optim)
    found = tuple(entry_points(group=GROUP, name=name))
    if not found:
        near = difflib.get_close_matches(name, names(), n=1)
        hint = f"did you mean {near[0]}?" if near else "choose one of them"
        raise UserError(f"task ({name}): tasks are {', '.join(names())}; {hint}")
    make: MakeTask = found[0].load()
    return make(data, optim)


def _refuse_targets(name: str, data: ImageData) -> None:
    kind = data.target.kind
    if name in _TARGETS and kind == "numbers" and not data.target.names:
        raise UserError(
            f"task ({name}): {data.name} has no targets, or data.target chooses none; set"
            f" task={reconstruction.NAME}, or choose a target or other data"
        )
    fitting = [task for task, needed in _TARGETS.items() if needed == kind]
    if name in _TARGETS and name not in fitting:
        raise UserError(
            f"task ({name}): needs targets that are {_TARGETS[name]}, and those of {data.name} are {kind}; set"
            f" task={fitting[0]}, or choose other data"
        )
