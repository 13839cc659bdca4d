"""Hold what a network reaches class by class: accuracy, and which classes it confuses."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ofav2.typed_json import Count


def share_error(share: float, images: int) -> float:
    """Return the standard error of a share of images, from their number alone.

    One image is added on either side, so that all or none of a few images is no certainty.

    Source: Agresti and Coull, Approximate is better than "exact" for interval estimation of binomial proportions, 1998.
    """
    centre = (share * images + 1) / (images + 2)
    return float((centre * (1 - centre) / images) ** 0.5)


@dataclass(frozen=True)
class ClassScore:
    """How well the images of a class are recognised."""

    name: str
    """The class."""
    images: int
    """Its images."""
    right: int
    """Those whose predicted class is the right one."""
    confused_with: str | None
    """The wrong class that most of the others are taken for; None if there are none."""
    confused: int
    """How many are taken for it."""

    @property
    def accuracy(self) -> float | None:
        """Share of its images that are recognised, in 0..1; None without images."""
        return self.right / self.images if self.images else None


@dataclass(frozen=True)
class ClassResults:
    """A network's predictions on a split, counted by class: of the last exit, or of the exits' ensemble if any."""

    split: Literal["val", "test"]
    """The images that it was measured on."""
    images: tuple[Count, ...]
    """Images of each class, in the order of the logits."""
    right: tuple[Count, ...]
    """Those of each class whose predicted class is the right one."""
    confused: tuple[tuple[Count, Count, Count], ...]
    """A class, another one, and how many images of the first are taken for the second; pairs without any are left out.
    """

    def __post_init__(self) -> None:
        """Refuse counts that contradict each other."""
        count = len(self.images)
        wrong = [0] * count
        for target, predicted, images in self.confused:
            if target >= count or predicted >= count or target == predicted or not images:
                raise ValueError("confused must have two different classes and a number of images each")
            wrong[target] += images
        if len({(target, predicted) for target, predicted, _ in self.confused}) != len(self.confused):
            raise ValueError("confused must have a pair of classes once")
        if len(self.right) != count or not any(self.images):
            raise ValueError("images and right must have a number per class, and images must be there")
        if any(found != right + other for found, right, other in zip(self.images, self.right, wrong, strict=True)):
            raise ValueError("images of a class must be those that are right and those that are confused")

    @property
    def total(self) -> int:
        """All images."""
        return sum(self.images)

    @property
    def accuracy(self) -> float:
        """Top-1 (0..1)."""
        return sum(self.right) / self.total

    @property
    def mean_class_accuracy(self) -> float:
        """Mean of the classes' accuracies (0..1), which a rare class moves as much as a frequent one."""
        found = [right / images for right, images in zip(self.right, self.images, strict=True) if images]
        return sum(found) / len(found)

    def matrix(self, classes: Sequence[int] | None = None) -> list[list[int]]:
        """Return the confusion matrix: in row i, column j, images of class i that are taken for class j.

        Args:
            classes: Classes to show, by number; None shows all.
        """
        chosen = range(len(self.images)) if classes is None else classes
        place = {number: index for index, number in enumerate(chosen)}
        found = [[0] * len(place) for _ in place]
        for number, index in place.items():
            found[index][index] = self.right[number]
        for target, predicted, images in self.confused:
            if target in place and predicted in place:
                found[place[target]][place[predicted]] = images
        return found

    def scores(self, names: Sequence[str]) -> tuple[ClassScore, ...]:
        """Return the results of each class, in the order of the logits.

        Args:
            names: Names of the classes.
        """
        most: dict[int, tuple[int, int]] = {}
        for target, predicted, images in self.confused:
            # Of equals, the class that comes first.
            most[target] = max(most.get(target, (0, 0)), (images, -predicted))
        counts = zip(names, self.images, self.right, strict=True)
        return tuple(
            ClassScore(name, images, right, names[-most[number][1]], most[number][0])
            if number in most
            else ClassScore(name, images, right, None, 0)
            for number, (name, images, right) in enumerate(counts)
        )


def worst_first(scores: Sequence[ClassScore]) -> list[ClassScore]:
    """Sort classes by accuracy; those without images come last."""
    return sorted(scores, key=lambda score: (score.accuracy is None, score.accuracy or 0, score.name))


def count_classes(
    predicted: Sequence[int], targets: Sequence[int], classes: int, split: Literal["val", "test"]
) -> ClassResults:
    """Count predictions by class.

    Args:
        predicted: The predicted class of each image.
        targets: The right ones.
        classes: How many classes there are.
        split: The images.
    """
    images, right = [0] * classes, [0] * classes
    confused: dict[tuple[int, int], int] = {}
    for target, answer in zip(targets, predicted, strict=True):
        images[target] += 1
        if target == answer:
            right[target] += 1
        else:
            confused[target, answer] = confused.get((target, answer), 0) + 1
    pairs = tuple((*pair, count) for pair, count in sorted(confused.items()))
    return ClassResults(split, tuple(images), tuple(right), pairs)
