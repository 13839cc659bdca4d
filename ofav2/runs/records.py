"""Record a run in `run.json`: one typed value for writers and readers."""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol, TypeVar

from ofav2.config.ranges import PHASE_NAME
from ofav2.config.schema import Config
from ofav2.errors import RunError
from ofav2.runs.folder import RECORD
from ofav2.tasks.base import Metric, Task
from ofav2.typed_json import Count, Deviation, Form, Positive, Sha256, Within, read_record, to_plain, write_record
from supernets import DIMENSIONS, Space, SpaceError
from supernets.backbone import AnyArchitecture
from supernets.multi_exit import Network

if TYPE_CHECKING:
    # Loading an extracted network needs this file, and must not need what reads images.
    from ofav2.data import ImageData

FORMAT = "ofav2-run/6"
PACKAGES = ("ofav2", "torch", "torchvision", "timm", "numpy", "omegaconf", "wandb")
SKIPPED_SHOWN = 20
"""Images left out of a data set that a record names, at most."""


@dataclass(frozen=True)
class SplitSizes:
    """Images of each split."""

    train: Count
    val: Count
    test: Count

    @property
    def total(self) -> int:
        """All images."""
        return self.train + self.val + self.test


@dataclass(frozen=True)
class SkippedImages:
    """Images that were left out of a data set."""

    count: Count
    """How many."""
    first: tuple[str, ...]
    """The first ones, and why."""


Spread = Annotated[float, Within(2**-20, 1)]
"""A share that something is divided by, or that an image is cut to."""


def check_channels(channels: int, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    """Refuse a normalisation for another number of channels.

    Raises:
        ValueError: The message names the one that does not fit.
    """
    for name, values in (("mean", mean), ("std", std)):
        if len(values) != channels:
            raise ValueError(f"{name} has {len(values)} numbers for {channels} channels")


@dataclass(frozen=True)
class DataRecord:
    """A run's data set."""

    name: str
    """Its name."""
    classes: tuple[str, ...]
    """Names of the classes, in the order of the labels."""
    bands: tuple[str, ...]
    """Names of the images' channels."""
    mean: tuple[float, ...]
    """Mean that images are normalised with, per band; of pictures, in 0..1."""
    std: tuple[Deviation, ...]
    """Standard deviation, likewise."""
    eval_crop: Spread
    """Share of the image's side that evaluation looks at."""
    fingerprint: str
    """Digest of images, labels and splits."""
    images: SplitSizes
    """Images per split."""
    skipped: SkippedImages
    """Images that were left out."""

    @property
    def channels(self) -> int:
        """Channels of the images."""
        return len(self.bands)

    def __post_init__(self) -> None:
        """Refuse a normalisation for other channels."""
        check_channels(len(self.bands), self.mean, self.std)


@dataclass(frozen=True)
class TeacherRecord:
    """A phase's teacher, and why it was chosen; all but the policy is None without a teacher."""

    policy: str
    """The policy that chose, such as `best`, `none`, or `timm:NAME`."""
    name: str | None = None
    """The teacher."""
    phase: str | None = None
    """The phase that trained it; None for a network from elsewhere."""
    score: float | None = None
    """Its score on validation."""
    reason: str | None = None
    """Why it was chosen, as a sentence."""
    sha256: Sha256 | None = None
    """Checksum of its weights file, if they came from one outside of the run."""


@dataclass(frozen=True)
class PhaseRecord:
    """A finished phase."""

    name: Annotated[str, Form(PHASE_NAME.pattern, "the name of a phase")]
    """Its name in the recipe."""
    space: Space
    """The networks that are evaluated after it."""
    steps: Count
    """Its training steps."""
    end: Count
    """Training steps of the run that its recipe plans up to its end; with patience, a phase may take fewer."""
    teacher: TeacherRecord
    """Its teacher."""
    ensemble_score: float | None
    """Validation score of the largest network's weighted exits, as the mean over resolutions, with the batch-norm
    statistics of each; None of weights that were not trained here."""
    mean_corner_score: float | None
    """Mean validation score of those sub-networks among the recipe's `evaluation.corners` that keep the MBConv branch;
    None likewise, and if none were evaluated."""
    metrics_bytes: Count
    """Length of `metrics.jsonl` when it ended."""
    sha256: Sha256
    """Checksum of its checkpoint's tensors."""


@dataclass(frozen=True)
class FinalScores:
    """Scores on the test split, after the last phase."""

    mean: float
    """Mean over those sub-networks among the recipe's `evaluation.corners`, or else the largest and the smallest, that
    keep the MBConv branch."""
    largest: float
    """The largest sub-network's."""
    smallest: float
    """The smallest sub-network's."""


@dataclass(frozen=True)
class ImportedWeights:
    """The checkpoint that a run was imported from."""

    file: str
    """Name of the file."""
    sha256: Sha256
    """Its checksum."""


@dataclass(frozen=True)
class InitialWeights:
    """The run whose weights another one started from."""

    run: str
    """Its name."""
    phase: str
    """The phase that left the weights."""
    sha256: Sha256
    """Their checksum."""
    fresh: tuple[str, ...]
    """Parameters that started anew, by name."""


@dataclass(frozen=True)
class RunRecord:
    """What a run is, and how far it has come."""

    name: str
    """The run's name."""
    created: str
    """When it began, ISO 8601."""
    status: Annotated[str, Form(r"training|stopped|finished|failed: \w+", "training, stopped, finished or failed: WHY")]
    """`training`, `stopped` on request, `finished`, or `failed:` with the error."""
    versions: Mapping[str, str | None]
    """Versions of Python and of the packages that results may depend on; None for one that is not installed."""
    earlier_versions: tuple[Mapping[str, str | None], ...]
    """Those that earlier parts of the run had, oldest first, where it went on with others."""
    processes: Positive
    """Processes that trained it together last."""
    chosen_threads: Positive | None
    """CPU threads that were measured as the fastest ones; None where the recipe names a number, and on CUDA."""
    seed: Count
    """Seed of all its random numbers."""
    recipe: str
    """Its resolved recipe, as YAML."""
    teacher_sha256: Sha256 | None
    """Checksum of an external teacher's weights, if a phase has it teach: of their file, or of what timm loaded."""
    weights_sha256: Sha256 | None
    """Checksum of the weights that its network began with, likewise; None of one that began anew."""
    task: str
    """What its networks do: `classification`, `segment`, `regress`, `reconstruct`, or a plugin's task."""
    metric: Metric
    """What its scores are."""
    data: DataRecord
    """Its data set."""
    architecture: AnyArchitecture
    """The supernet, or network with exits."""
    space: Space
    """All networks of the supernet."""
    phases: tuple[PhaseRecord, ...]
    """The finished phases, in order."""
    test: FinalScores | None
    """Scores on the test split; None before the end, and of imported weights."""
    imported: ImportedWeights | None
    """Where the weights come from, if they were not trained here."""
    initial: InitialWeights | None
    """Where the weights come from that training started with; None if it started anew."""
    wandb_run_id: str | None
    """Its run at Weights & Biases."""
    states: Mapping[str, Sha256]
    """Checksums of its saved states' tensors by name; some may be of states that are no more."""

    @property
    def targets(self) -> str:
        """What its data set says of images: its number of classes, or of planes of numbers; empty for nothing."""
        count = len(self.data.classes)
        # Their modules need numpy, which loading an extracted network must not.
        planes = self.task in ("regress", "reconstruct")
        one, several = ("plane", "planes") if planes else ("class", "classes")
        return f"{count} {one if count == 1 else several}" if count else ""

    def __post_init__(self) -> None:
        """Refuse fields that contradict each other."""
        try:
            datetime.fromisoformat(self.created)
        except ValueError as error:
            raise ValueError(f"created ({self.created[:40]!r}) must be a time in ISO 8601") from error
        # What blocks keep is a choice of the recipe: weights do not depend on it.
        if self.space != self.architecture.space(self.space.resolution).keeping(self.space.keep):
            raise ValueError("space is not that of the architecture")
        for index, phase in enumerate(self.phases):
            try:
                known = self.space.restrict(**{name: getattr(phase.space, name) for name in DIMENSIONS})
            except SpaceError as error:
                raise ValueError(f"phases[{index}].space: {error}") from error
            if phase.space != known:
                raise ValueError(f"phases[{index}].space is not a part of the run's space")


@dataclass(frozen=True)
class Run:
    """A run on disk."""

    folder: Path
    """Its folder."""
    record: RunRecord
    """What it is, and how far it has come."""

    def __str__(self) -> str:
        """Say in five lines what the run is, and what it reached."""
        record, metric = self.record, self.record.metric
        images, targets = record.data.images, f", {record.targets}" if record.targets else ""
        phases = [f"{phase.name} {metric.show(phase.ensemble_score, 1)}" for phase in record.phases]
        scores = {"largest": record.test.largest, "smallest": record.test.smallest} if record.test else {}
        test = [f"{name} {metric.show_from(score, images.test)}" for name, score in scores.items()]
        return "\n".join(
            (
                f"run {self.folder}: {record.status}",
                f"network: {record.architecture.variant}, {record.space.size():.2g} sub-networks",
                f"data: {record.data.name}{targets}; {images.train:,} training, {images.val:,} validation,"
                f" {images.test:,} test images",
                f"validation {metric.name} of all exits together, after phases:"
                f" {', '.join(phases) or 'none is finished'}",
                f"test {metric.name}: {', '.join(test) or 'not measured'}",
            )
        )

    def __repr__(self) -> str:
        """Name folder and status."""
        return f"Run({str(self.folder)!r}, {self.record.status!r})"


def new_record(
    name: str,
    config: Config,
    task: Task,
    data: "ImageData",
    net: Network,
    *,
    recipe: str,
    processes: int = 1,
    teacher_sha256: str | None = None,
    initial: InitialWeights | None = None,
    weights_sha256: str | None = None,
) -> RunRecord:
    """Return the record of a run that starts now.

    Args:
        name: The run's name.
        config: Its recipe.
        task: Its task.
        data: Its data set.
        net: Its supernet.
        recipe: The recipe as YAML.
        processes: Processes that train it together.
        teacher_sha256: Checksum of an external teacher's weights.
        weights_sha256: Checksum of the weights that the network begins with.
        initial: Where its first weights come from.
    """
    return RunRecord(
        name=name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        status="training",
        versions=versions(),
        earlier_versions=(),
        processes=processes,
        chosen_threads=None,
        seed=config.run.seed,
        recipe=recipe,
        teacher_sha256=teacher_sha256,
        weights_sha256=weights_sha256,
        task=task.name,
        metric=task.metrics[0],
        data=DataRecord(
            name=data.name,
            classes=tuple(data.classes),
            bands=data.bands,
            mean=tuple(data.mean),
            std=tuple(data.std),
            eval_crop=config.data.eval_crop,
            fingerprint=data.fingerprint,
            images=SplitSizes(len(data.train), len(data.val), len(data.test)),
            skipped=SkippedImages(len(data.skipped), tuple(data.skipped[:SKIPPED_SHOWN])),
        ),
        architecture=net.architecture,
        space=net.space,
        phases=(),
        test=None,
        imported=None,
        initial=initial,
        wandb_run_id=None,
        states={},
    )


def versions(more: Sequence[str] = ()) -> dict[str, str | None]:
    """Return versions of Python and of the packages that results may depend on; None for what is not installed.

    Args:
        more: Names of packages that these results depend on, beside `PACKAGES`.
    """
    return {"python": platform.python_version(), **{package: _version(package) for package in (*PACKAGES, *more)}}


def lasting(record: RunRecord) -> dict[str, Any]:
    """Return what stays the same as long as a run lasts: seed, task, data, supernet, teacher file, first weights.

    Keys are those of a recipe's parts, so that a change which `--allow-change` accepts in one is accepted in the other.
    """
    supernet = {**to_plain(record.architecture), "space": record.space.to_dict(), "init": to_plain(record.initial)}
    return {
        "seed": record.seed,
        "task": record.task,
        "metric": to_plain(record.metric),
        "data": to_plain(record.data),
        "supernet": supernet,
        "teacher": {"checkpoint": {"sha256": record.teacher_sha256}},
        "network": {"weights": {"sha256": record.weights_sha256}},
    }


def with_lasting(record: RunRecord, now: RunRecord) -> RunRecord:
    """Return a record with what lasts taken from another one, whose changes were accepted."""
    return replace(
        record,
        seed=now.seed,
        task=now.task,
        metric=now.metric,
        data=now.data,
        architecture=now.architecture,
        space=now.space,
        initial=now.initial,
        recipe=now.recipe,
        teacher_sha256=now.teacher_sha256,
        weights_sha256=now.weights_sha256,
    )


def read_run(folder: Path) -> RunRecord:
    """Read the record of a run folder.

    Raises:
        RunError: The folder is missing, a file, foreign, damaged, or of another format version.
    """
    try:
        found = [path.exists() for path in (folder, folder / RECORD)]
    except OSError as error:
        raise RunError(f"run folder ({folder}) cannot be read ({error.strerror}); check the path") from error
    if not found[0]:
        raise RunError(f"run folder ({folder}) does not exist; give one that `ofav2 train` made")
    if not folder.is_dir():
        raise RunError(f"run folder ({folder}) is a file; give the folder that holds {RECORD}")
    if not found[1]:
        raise RunError(f"run folder ({folder}) has no {RECORD}, so it holds no run; give one that `ofav2 train` made")
    step = "restore the file from a copy, use the version of ofav2 that made it, or train again"
    return read_record(folder / RECORD, RunRecord, FORMAT, step)


class OfWeights(Protocol):
    """What was measured of a run's weights and kept in its folder."""

    @property
    def checkpoint_sha256(self) -> str:
        """Checksum of the weights."""
        ...


Kept = TypeVar("Kept", bound=OfWeights)


def read_kept(path: Path, kind: type[Kept], version: str, step: str, run: RunRecord) -> Kept | None:
    """Return what was measured of a run, if it is there and of the weights that the run holds now; else None.

    Args:
        path: The file, which `write_record` wrote.
        kind: The dataclass that it holds.
        version: The format version that it must have.
        step: What the user should do if it can't be used, as for `read_record`.
        run: The run's record.

    Raises:
        RunError: The file is damaged, or of another version.
    """
    if not path.exists():
        return None
    kept = read_record(path, kind, version, step)
    return kept if run.phases and kept.checkpoint_sha256 == run.phases[-1].sha256 else None


def write_run(folder: Path, record: RunRecord) -> None:
    """Write the record of a run folder.

    Raises:
        RunError: The file cannot be written.
    """
    write_record(folder / RECORD, record, FORMAT)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
