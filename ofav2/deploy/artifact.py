"""The folder of an extracted network: its typed record in `subnet.json`, and its weights."""

import os.path
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from torch.fx import GraphModule

from ofav2.errors import RunError
from ofav2.nas.limits import Limits, Method
from ofav2.nas.machine import Machine
from ofav2.networks.build import build_network, without_memory
from ofav2.runs import checkpoint
from ofav2.runs.records import SplitSizes, Spread, check_channels
from ofav2.tasks.base import Metric
from ofav2.tasks.class_results import ClassResults
from ofav2.typed_json import (
    Count,
    Deviation,
    Form,
    Positive,
    Sha256,
    Share,
    Weight,
    read_record,
    to_plain,
    write_record,
)
from supernets import Architecture, SpaceError, Subnet
from supernets.backbone import AnyArchitecture
from supernets.cost import Cost
from supernets.ensembles import ensemble_alone
from supernets.graphs import alone

if TYPE_CHECKING:
    # Loading an extracted network needs this file, and must not need what reads images.
    from ofav2.config.schema import DataConfig
    from ofav2.data import ImageData

FORMAT = "ofav2-subnet/11"
RECORD = "subnet.json"
WEIGHTS = "model.safetensors"

ExitScores = Mapping[int, float]
"""A network's score at each exit, by the exit's number."""


@dataclass(frozen=True)
class InputRecord:
    """What a network takes."""

    bands: tuple[str, ...]
    """Names of the images' channels, in their order."""
    resolution: Positive
    """Side of the square images in pixels."""
    white: Deviation
    """The stored value that counts as 1: 255 of pictures."""
    mean: tuple[float, ...]
    """Mean to normalise with, per band, in units of `white`."""
    std: tuple[Deviation, ...]
    """Standard deviation, likewise."""
    nodata: float | None
    """The stored value of a pixel without data, which is 0 in all bands once normalised; None if there is none."""
    eval_crop: Spread
    """Share of the image's side that evaluation looks at."""
    exif_orientation: bool
    """Whether files are turned as their EXIF orientation says, before all else."""
    shrink_to: Count
    """Pixels that the short side of a larger image is shrunk to, before it is resized to the resolution; 0: none."""

    def __post_init__(self) -> None:
        """Refuse a normalisation for other channels."""
        check_channels(self.channels, self.mean, self.std)

    @property
    def channels(self) -> int:
        """How many bands there are."""
        return len(self.bands)

    @property
    def pictures(self) -> bool:
        """Whether these are pictures, as image files have them."""
        return self.white == 255 and self.nodata is None


def input_record(data: "ImageData", resolution: int, config: "DataConfig") -> InputRecord:
    """Return what a network takes that was trained on a data set.

    Args:
        data: The data set.
        resolution: Side of the images in pixels.
        config: How its images are read and seen.
    """
    return InputRecord(
        bands=tuple(data.bands),
        resolution=resolution,
        white=data.white,
        mean=tuple(data.mean),
        std=tuple(data.std),
        nodata=data.nodata,
        eval_crop=config.eval_crop,
        exif_orientation=config.exif_orientation,
        shrink_to=config.shrink_to,
    )


@dataclass(frozen=True)
class Provenance:
    """Where a network came from."""

    run: str
    """The run."""
    phase: str
    """The phase that left the supernet's weights."""
    checkpoint_sha256: Sha256
    """Checksum of that phase's weights."""
    data_fingerprint: str
    """Digest of the images, labels and splits that the run was trained with."""
    versions: Mapping[str, str | None]
    """Versions that the run was trained with."""
    recipe: str
    """The run's resolved recipe, as YAML."""


@dataclass(frozen=True)
class StockProvenance:
    """Where a network came from that is timm's, and was fine-tuned as it is."""

    timm: str
    """Its name in timm."""
    weights: str | None
    """The weights that fine-tuning started from: `timm` for timm's own, the name of a file, or None of fresh ones."""


@dataclass(frozen=True)
class ChoiceRecord:
    """How a network was chosen from a run's space."""

    limits: Limits
    """The most that it could cost."""
    exits: tuple[int, ...]
    """Exits that it could end at."""
    resolutions: tuple[int, ...]
    """Resolutions that it could have."""
    method: Method
    """Whether random networks were ranked, a short search for one network was made, or a front was searched before."""
    rule: str
    """Which one was taken: `best`, `knee`, or `number` and its number on the front."""
    candidates: Positive
    """Networks that were measured."""
    seed: Count
    """Seed of the draw, or of the search."""
    ranked_on: Literal["val", "confirmation"]
    """The images that they were ranked on: validation, or the half of it that a search never saw."""


@dataclass(frozen=True)
class ExtractionRecord:
    """What was measured and checked when a network was taken out of its supernet."""

    scores_before: Mapping[str, ExitScores]
    """Scores before batch norm was recalibrated, by split and exit."""
    calibration_images: Count
    """Training images that batch norm was recalibrated on."""
    calibration_seed: Count
    """Seed of their draw."""
    compared_images: Positive
    """Images on which supernet and network were compared."""
    supernet_gap: float
    """Largest difference of their logits, as a share of the largest logit."""
    canary: str | None
    """Another network of the space, whose logits must differ; None if there is none."""
    canary_gap: float | None
    """By how much they do."""
    data_fingerprint: str
    """Digest of the images, labels and splits that it was measured on: the run's own, unless files have changed."""
    validation_is_test: bool
    """Whether its test images are the validation images (`data.test_fraction=0`)."""


@dataclass(frozen=True)
class ExportRecord:
    """How the exported files compare with the network."""

    outputs: tuple[Annotated[str, Form("[A-Za-z0-9_]+", "the name of an output")], ...]
    """Names of the outputs, one per exit."""
    batches: tuple[Positive, ...]
    """Images per call on which they were compared."""
    largest_gap: Mapping[str, float]
    """By file, the largest difference of its logits, as a share of the largest logit."""


@dataclass(frozen=True)
class Epoch:
    """What an epoch of fine-tuning did."""

    number: Positive
    """Its number, from 1."""
    loss: float | None
    """Mean loss of its usable steps; None where there was none."""
    lr: float
    """Learning rate of its last step."""
    skipped: Count
    """Steps that changed nothing because their loss was unusable."""


@dataclass(frozen=True)
class Validation:
    """How a network did on validation while it was fine-tuned."""

    epochs: Count
    """Epochs that it was trained, from 0."""
    exits: ExitScores
    """Score by exit."""
    score: float
    """Score of the exits' weighted ensemble, by which epochs are compared."""


@dataclass(frozen=True)
class EpochSearch:
    """What the first training of a fine-tuning did."""

    epochs: tuple[Epoch, ...]
    """Its epochs."""
    before: Validation
    """The network as it was."""
    after: tuple[Validation, ...]
    """The network after each epoch."""

    def best(self, metric: Metric) -> Validation:
        """Return the best validation after an epoch; of equals the last one, whose learning rate is the lowest."""
        return max(self.after, key=lambda found: (metric.rank(found.score), found.epochs))


@dataclass(frozen=True)
class FinetuningRecord:
    """A fine-tuning that a network went through."""

    source_sha256: Sha256
    """Checksum of the weights that it started from."""
    data: str
    """The data set."""
    data_fingerprint: str
    """Digest of its images, labels and splits."""
    images: SplitSizes
    """Its images per split."""
    new_classifiers: bool
    """Whether classifiers were made anew, for other classes."""
    epochs: Positive
    """Epochs of the second training, on training and validation images."""
    search: EpochSearch
    """The first training, which found them."""
    final: tuple[Epoch, ...]
    """The second training."""
    test_before: ExitScores | None
    """Test scores before, by exit; None if they were measured on other images."""
    test: ExitScores
    """Test scores after, by exit."""
    versions: Mapping[str, str | None]
    """Versions of Python and of the packages that results may depend on."""
    recipe: str
    """Its settings, as YAML."""


@dataclass(frozen=True)
class Accuracy:
    """How many images are classified rightly."""

    top1: Share
    """Share (0..1) whose class is right."""
    top5: Share
    """Share (0..1) whose class is among the five most likely ones."""


@dataclass(frozen=True)
class SubsetRecord:
    """Some of a network's exits, and their ensemble."""

    exits: tuple[Positive, ...]
    """The exits, by number."""
    weights: tuple[Weight, ...]
    """Weights of their logits; they sum to 1."""
    val: Accuracy
    """The ensemble on validation; learned weights were learned on other images than they are measured on."""
    cost: Cost
    """What a network of these exits costs per image."""
    nanoseconds: tuple[Count, ...]
    """Predicted time per image at each of the batches: the sum of its pieces' measured times."""


@dataclass(frozen=True)
class PruningRecord:
    """How exits were chosen among those of a network (AEP)."""

    source_sha256: Sha256
    """Checksum of the weights of the network with all exits."""
    ensemble: str
    """Where the weights come from: a scheme, numbers, or `learned`."""
    rule: str
    """The rule that chose."""
    images: Positive
    """Validation images."""
    scale: float | None
    """Factor of the logits whose softmax is calibrated on validation; None of weights that were not learned."""
    chosen: SubsetRecord
    """What was chosen: this network."""
    whole: SubsetRecord
    """All exits together, without those whose weight is 0."""
    last: SubsetRecord
    """The last exit alone."""
    test: Mapping[str, Accuracy]
    """The three on test, by these names."""
    nanoseconds: Mapping[str, tuple[Count, ...]]
    """Measured time per image of the three at each of the batches."""
    front: tuple[SubsetRecord, ...]
    """Subsets that no other one beats in top-1, multiply-adds and parameters, the cheapest first."""
    machine: Machine
    """Where times were measured."""
    batches: tuple[Positive, ...]
    """Images per call that they were measured at."""

    def __post_init__(self) -> None:
        """Refuse measurements of other subsets."""
        if {*self.test} != {"chosen", "whole", "last"} or {*self.nanoseconds} != {*self.test}:
            raise ValueError("test and nanoseconds must have chosen, whole and last")


@dataclass(frozen=True)
class SubnetRecord:
    """What an extracted network is, what it costs and reaches, and where it came from."""

    subnet: Subnet
    """Its choices."""
    exits: Literal["last"] | tuple[int, ...]
    """Exits whose outputs it returns: one tensor for `last`, or a tuple with one per number."""
    ensemble: tuple[Weight, ...] | None
    """Weights of the exits' logits in their ensemble, which sum to 1; None of exits that are used one by one."""
    architecture: AnyArchitecture
    """The supernet, or network with exits, that it is a part of."""
    task: str
    """What it does, as `RunRecord.task`."""
    metric: Metric
    """What its scores are."""
    input: InputRecord
    """What it takes."""
    data: str
    """The data set that it was trained on last."""
    classes: tuple[str, ...]
    """Names of the classes, in the order of the logits."""
    cost: Cost
    """What it costs per image."""
    scores: Mapping[str, ExitScores]
    """Scores of these weights by split and exit; of a fine-tuned network, on `test` alone."""
    by_class: ClassResults | None
    """What the last exit, or the ensemble, reaches on test by class; None of a task without classes."""
    extraction: ExtractionRecord | None
    """How it was taken out of its supernet; None once it was fine-tuned."""
    choice: ChoiceRecord | None
    """How it was chosen; None if it was named, and once it was fine-tuned."""
    pruning: PruningRecord | None
    """How its exits were chosen; None if they were named, and once it was fine-tuned."""
    provenance: Provenance | StockProvenance
    """Where it came from: a run, or timm."""
    finetuning: tuple[FinetuningRecord, ...]
    """The fine-tunings that it went through, oldest first."""
    formats: tuple[Annotated[str, Form("onnx|pt2|card", "onnx, pt2 or card")], ...]
    """Files beside weights and record: `onnx`, `pt2`, `card`."""
    exports: ExportRecord
    """How the exported files compare with the network."""
    sha256: Sha256
    """Checksum of the weights."""
    seen_sha256: Sha256
    """Checksum of `trained_images.bin`: digests of the training and validation images that it has seen."""

    def __post_init__(self) -> None:
        """Refuse fields that contradict each other."""
        self.architecture.space((self.subnet.resolution,)).check(self.subnet)
        passed = [exit for exit in self.architecture.exits if exit <= self.subnet.height]
        if self.exits != "last" and not (self.exits and [*self.exits] == sorted({*self.exits}.intersection(passed))):
            raise ValueError(f"exits ({self.exits}) must be ascending numbers out of {passed}")
        if (self.input.channels, self.input.resolution) != (self.architecture.in_channels, self.subnet.resolution):
            raise ValueError("input has other channels, or another resolution, than the network")
        if self.task == "classification" and len(self.classes) != self.architecture.num_classes:
            raise ValueError(f"classes has {len(self.classes)} names for {self.architecture.num_classes} classes")
        if any(tuple(scores) != self.exit_indices for scores in self.scores.values()) or "test" not in self.scores:
            raise ValueError("scores must have those on test, each with one per exit")
        if self.by_class and len(self.by_class.images) != len(self.classes):
            raise ValueError(f"by_class has {len(self.by_class.images)} classes instead of {len(self.classes)}")
        _check_ensemble(self.ensemble, self.exits)
        if self.pruning and self.pruning.chosen.exits != self.exit_indices:
            raise ValueError(f"pruning chose the exits {self.pruning.chosen.exits}, and not {self.exit_indices}")
        if (self.extraction is None) != bool(self.finetuning):
            raise ValueError("extraction must be there until the network is fine-tuned, and no longer")
        if isinstance(self.provenance, StockProvenance) and not self.finetuning:
            raise ValueError("provenance names a network of timm's, and finetuning no training of it")

    @property
    def name(self) -> str:
        """The choices in short, such as `r64 d4-4-4-4-4 k7 e6 l3 exit 5`."""
        return str(self.subnet)

    @property
    def dense(self) -> bool:
        """Whether an output is a map (N, outputs, H, W)."""
        return isinstance(self.architecture, Architecture) and self.architecture.head_width is not None

    @property
    def classifies_pictures(self) -> bool:
        """Whether `ofav2 predict` can use it: it gives classes of RGB pictures."""
        return self.task == "classification" and self.input.pictures and self.input.channels == 3

    @property
    def exit_indices(self) -> tuple[int, ...]:
        """The exits whose outputs it returns, by number."""
        return (self.subnet.height,) if self.exits == "last" else self.exits

    @property
    def data_fingerprint(self) -> str:
        """Digest of the images that it was last trained on."""
        return self.finetuning[-1].data_fingerprint if self.finetuning else self.run.data_fingerprint

    @property
    def run(self) -> Provenance:
        """The run that a network was taken out of; not of one that is timm's."""
        assert isinstance(self.provenance, Provenance), "a network of timm's is always fine-tuned"
        return self.provenance

    @property
    def measured_fingerprint(self) -> str:
        """Digest of the images that its scores were measured on."""
        return self.extraction.data_fingerprint if self.extraction else self.data_fingerprint


def usage(given: InputRecord, task: str, classes: Sequence[str], outputs: Sequence[str]) -> dict[str, Any]:
    """Return how a network is used, as JSON holds it: every file of it says so, and `load_subnet`'s module, too.

    Args:
        given: What it takes.
        task: What it does.
        classes: Names of the classes, in the order of the logits.
        outputs: Names of its outputs, one per exit.
    """
    return {**to_plain(given), "task": task, "classes": list(classes), "outputs": list(outputs)}


def _check_ensemble(weights: tuple[float, ...] | None, exits: Literal["last"] | tuple[int, ...]) -> None:
    if weights is None:
        return
    if exits == "last" or len(exits) < 2 or len(weights) != len(exits):
        raise ValueError(f"ensemble has {len(weights)} weights: several exits have one each, a single one has none")
    if abs(sum(weights) - 1) > 1e-6:
        raise ValueError(f"ensemble sums to {sum(weights):g}, and not to 1")


def describe_subnet(directory: str | Path) -> SubnetRecord:
    """Read the record of an extracted network.

    Args:
        directory: The folder that `ofav2 extract` or `ofav2 finetune` wrote.

    Returns:
        What `subnet.json` holds: the network's choices, input and classes, costs per image, and scores by exit.

    Raises:
        RunError: `subnet.json` is missing, damaged or foreign.
    """
    path = Path(directory) / RECORD
    # Unlike pathlib's, this takes a name that no file can have for a missing file.
    if not os.path.isfile(path):
        raise RunError(f"folder ({directory}) has no {RECORD}: give one that `ofav2 extract` made")
    return read_record(path, SubnetRecord, FORMAT, "restore the file, or extract the network again")


def write_subnet_record(folder: Path, record: SubnetRecord) -> None:
    """Write the record of an extracted network.

    Raises:
        RunError: The file can't be written.
    """
    write_record(folder / RECORD, record, FORMAT)


def load_subnet(directory: str | Path) -> GraphModule:
    """Read an extracted sub-network that `ofav2 extract` wrote.

    Args:
        directory: The folder with `subnet.json` and `model.safetensors`.

    Returns:
        The network as a plain torch module in evaluation mode: normalised images (N, C, H, W) -> logits (N, classes),
        or a tuple of such logits where it was extracted with exits of its own choice. `module.meta["usage"]` says how
        images are prepared and what the logits mean, as `usage` has it.

    Raises:
        RunError: If a file is missing, damaged or foreign.
    """
    path, record = Path(directory), describe_subnet(directory)
    try:
        with without_memory(record.architecture):
            net = build_network(record.architecture, (record.subnet.resolution,))
            module = net.extract(record.subnet, record.exits)
    except SpaceError as error:
        raise RunError(f"{path / RECORD} describes no network: {error}; extract it again") from error
    checkpoint.fill(module, checkpoint.read_tensors(path / WEIGHTS, record.sha256, RECORD), str(path))
    outputs = record.exports.outputs[: len(record.exit_indices)]
    module.meta["usage"] = usage(record.input, record.task, record.classes, outputs)
    return module


def load_ensemble(directory: str | Path) -> GraphModule:
    """Read a network of `ofav2 prune` as one with a single output, the ensemble of its exits.

    Args:
        directory: The folder with `subnet.json` and `model.safetensors`. Of a network with one exit, its logits are
            the ensemble.

    Returns:
        The network as a plain torch module in evaluation mode: normalised images (N, C, H, W) -> logits (N, classes).

    Raises:
        RunError: If a file is missing, damaged or foreign, or the network has several exits without weights.
    """
    module, record = load_subnet(directory), describe_subnet(directory)
    if record.exits == "last":
        return module
    if record.ensemble is None and len(record.exits) > 1:
        raise RunError(
            f"network ({directory}) has several exits and no weights for their ensemble: choose them with `ofav2 prune"
            f" {directory} --out DIR`"
        )
    merged = ensemble_alone(module, record.ensemble) if record.ensemble else alone(module, 0)
    merged.meta["usage"] = usage(record.input, record.task, record.classes, ("logits",))
    return merged
