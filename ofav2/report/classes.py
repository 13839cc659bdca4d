"""Collect what a run's page shows of its largest network class by class."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ofav2.evaluation.by_class import Mistake, read_classes
from ofav2.runs.snapshot import RunSnapshot
from ofav2.tasks.class_results import ClassResults, ClassScore, share_error, worst_first

SHOWN = 40
"""Classes that the confusion matrix shows; of more, those with the most errors."""


@dataclass(frozen=True)
class ClassPage:
    """A network's results by class."""

    phase: str
    """The phase that left its weights."""
    subnet: str
    """The network."""
    results: ClassResults
    """The results."""
    standard_error: float
    """Standard error of their accuracy (0..1); windows of one patch count once."""
    scores: tuple[ClassScore, ...]
    """Each class, the worst first."""
    confusion: Mapping[str, Any]
    """Names and confusion matrix, as the page's script reads them."""
    mistakes: tuple[tuple[Mistake, str, str], ...]
    """Images that are wrong, the worst first, with the names of their class and of the predicted one."""


def class_page(run: RunSnapshot) -> ClassPage | None:
    """Return what was measured of a run's largest network; None if nothing was.

    Raises:
        RunError: If the file is damaged.
    """
    kept, names = read_classes(run.folder, run.record), run.record.data.classes
    if kept is None:
        return None
    results = kept.results
    wrong = [images - right for images, right in zip(results.images, results.right, strict=True)]
    chosen = sorted(sorted(range(len(names)), key=lambda number: -wrong[number])[:SHOWN])
    return ClassPage(
        phase=kept.phase,
        subnet=str(kept.subnet),
        results=results,
        standard_error=share_error(results.accuracy, run.record.data.images.test),
        scores=tuple(worst_first(results.scores(names))),
        confusion={"classes": [names[number] for number in chosen], "images": results.matrix(chosen)},
        mistakes=tuple((mistake, names[mistake.target], names[mistake.predicted]) for mistake in kept.mistakes),
    )
