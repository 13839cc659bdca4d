"""Prepare everything that a fine-tuning needs, and check it before it begins."""

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Literal

import numpy as np
from torch import nn
from torch.fx import GraphModule

import distill
from ofav2.config import recipe
from ofav2.config.schema import TuningConfig
from ofav2.data import ImageData, open_data, steps_per_epoch
from ofav2.data.digests import Digests
from ofav2.data.seen import count_seen, seen_digests, unseen
from ofav2.data.splits import with_test
from ofav2.deploy.artifact import (
    ExitScores,
    FinetuningRecord,
    Provenance,
    StockProvenance,
    input_record,
)
from ofav2.deploy.seen import read_seen
from ofav2.deploy.source import Source, open_evaluator, open_source, refuse_bands, refuse_task, warn_of_units
from ofav2.deploy.write import weights_sha256
from ofav2.errors import UserError
from ofav2.evaluation.evaluator import Evaluator
from ofav2.finetuning.stock import STOCK, StockSource, check_stock, make_stock, open_stock
from ofav2.networks.build import build_network, with_classes, without_memory
from ofav2.runtime.device import Runtime, open_runtime
from ofav2.runtime.threads import choose_threads, sample_images, training_pass
from ofav2.tasks.base import Task, refuse_mixing
from ofav2.tasks.registry import make_task, require_targets
from supernets import Subnet
from supernets.backbone import AnyArchitecture, Backbone
from supernets.taps import HEADS

logger = logging.getLogger(__name__)

_DRAWING = ("name", "root", "val_fraction", "test_fraction", "split_seed")
"""Settings by which validation images are drawn."""


@dataclass(frozen=True)
class Start:
    """What a fine-tuning starts from."""

    name: str
    """What messages call it."""
    module: GraphModule
    """The network that both trainings start from, on the runtime's device."""
    arch: AnyArchitecture
    """The architecture of a supernet that holds it, or its own, with the data set's classes."""
    subnet: Subnet
    """Its choices."""
    exits: Literal["last"] | tuple[int, ...]
    """Exits whose outputs it returns, as in its record."""
    ensemble: tuple[float, ...] | None
    """Weights of the exits' logits in their ensemble, if it has one."""
    provenance: Provenance | StockProvenance
    """Where it came from."""
    finetuning: tuple[FinetuningRecord, ...]
    """The fine-tunings that it went through."""
    sha256: str
    """Checksum of its weights."""
    new_classifiers: bool
    """Whether its classifiers were made anew, for the data set's classes."""
    test_before: ExitScores | None
    """Its scores on test, if they were measured on the same images."""

    @property
    def exit_indices(self) -> tuple[int, ...]:
        """The exits whose outputs it returns, by number."""
        return (self.subnet.height,) if self.exits == "last" else self.exits


@dataclass(frozen=True)
class Tuning:
    """Everything that a fine-tuning needs."""

    start: Start
    """The network to train."""
    config: TuningConfig
    """The settings."""
    data: ImageData
    """The data set."""
    weights: distill.ExitWeights
    """Weights of the network's exits, in the loss and in the ensemble."""
    task: Task
    """What is learnt."""
    runtime: Runtime
    """Where it computes."""
    evaluator: Evaluator
    """What measures it."""
    seen: Digests
    """Digests of all images that the network is trained on when it is done, ascending."""

    @property
    def resolution(self) -> int:
        """Side of the images in pixels."""
        return self.start.subnet.resolution


def prepare(
    network: str | Path,
    overrides: Sequence[str] = (),
    file: str | Path | None = None,
    weights: str | Path | None = None,
) -> Tuning:
    """Open what a fine-tuning needs, and refuse what can't be done.

    Args:
        network: The folder of an extracted network, or `timm:NAME`.
        overrides: Settings to change, as `key=value`.
        file: Path of a YAML file with settings, which overrides are merged over; None for none.
        weights: Of a network of timm's, the weights to start from, see `ofav2.finetuning.stock.open_stock`.

    Raises:
        UserError, DistillError: If a setting is impossible or the data set does not fit; the message names it.
        RunError: If the folder holds no extracted network.
    """
    source = _open(network, weights)
    config = recipe.adjust_tuning(source.settings, file, overrides)
    _refuse_resolutions(config, source)
    runtime = open_runtime(config.run)
    if isinstance(source, StockSource) and config.data.bands is None:
        # Better known now than after all images are decoded.
        check_stock(source, config)
    data = open_data(config.data)
    if data.validation_is_test:
        raise UserError(
            "data.test_fraction (0): test images are the validation images, on which fine-tuning trains in the end;"
            " hold some out, as by data.test_fraction=0.2"
        )
    steps_per_epoch(len(data.train), config.data.batch_size)
    task = make_task(config.task, data, config.optim)
    require_targets(task, data)
    refuse_mixing(task, config.data)
    if isinstance(source, Source):
        refuse_bands(data, source.record)
        warn_of_units(data, source.record)
        refuse_task(task, source)
        seen = read_seen(Path(network), source.record)
        if data.fingerprint != source.record.measured_fingerprint:
            given, data = data, with_test(data, unseen(data.test, seen))
            # Where the split stayed, its validation images are all known, and were only validated on.
            own, known = source.settings.data, count_seen(data.val, seen)
            redrawn = data is not given or any(getattr(config.data, key) != getattr(own, key) for key in _DRAWING)
            fewer = config.data.shots == own.shots and len(data.train) + len(data.val) < len(seen)
            if known and (redrawn or fewer or known < len(data.val)):
                logger.warning(
                    f"validation images that the network may have been trained on: {known} of {len(data.val)}; epochs"
                    " found on them say little"
                )
        start = _start_again(source, config, data, task)
    else:
        seen = np.empty(0, np.uint64)
        start = _start_stock(source, config, data, task)
    if not isinstance(start.provenance, StockProvenance):
        # A network as timm has it was made with that of its own head, see `describe_plain`.
        set_dropout(start.module, config.finetune.dropout)
    start = replace(start, module=runtime.place(start.module))
    config = _settle_threads(config, start.module, data, runtime)
    return Tuning(
        start=start,
        config=config,
        data=data,
        weights=_weights(config, start),
        task=task,
        runtime=runtime,
        evaluator=open_evaluator(config, data, task, runtime),
        seen=np.union1d(seen, seen_digests(data)),
    )


def _open(network: str | Path, weights: str | Path | None) -> Source | StockSource:
    if str(network).startswith(STOCK):
        return open_stock(str(network), None if weights is None else str(weights))
    if weights is not None:
        raise UserError(f"weights ({weights}) are for a network of timm: an extracted one ({network}) has its own")
    return open_source(Path(network))


def set_dropout(module: nn.Module, p: float) -> None:
    """Set the dropout probability of exits; what timm made keeps its own, as `MultiExit.set_dropout` leaves it.

    Raises:
        UserError: There is no such exit, and a probability is asked for.
    """
    layers = [
        layer
        for name, layer in module.named_modules()
        if name.startswith(f"{HEADS}.") and isinstance(layer, nn.Dropout | nn.Dropout2d)
    ]
    if p and not layers:
        raise UserError(f"finetune.dropout ({p:g}): the network's only exit is timm's own head; leave it out")
    for layer in layers:
        layer.p = p


def _start_again(source: Source, config: TuningConfig, data: ImageData, task: Task) -> Start:
    """Return an extracted network as what to start from; with new classifiers where the classes are others."""
    record = source.record
    side = record.subnet.resolution
    net = build_network(with_classes(record.architecture, task.outputs), (side,), config.run.seed)
    module, new_classifiers = source.module, tuple(data.classes) != record.classes
    if new_classifiers:
        module = net.extract(record.subnet, record.exits)
        _adopt_all_but_classifiers(module, source)
        logger.warning(
            f"its {len(record.classes)} classes are not the data set's {len(data.classes)}: classifiers are made anew"
        )
    if record.finetuning and record.data_fingerprint == data.fingerprint:
        logger.warning("validation images were trained on by the last fine-tuning: epochs found on them say little")
    if isinstance(record.provenance, StockProvenance) and isinstance(net.architecture, Backbone):
        _refuse_dropout(config, net.architecture)
    # Only the same images, seen in the same way, can be compared before and after.
    measured_alike = record.measured_fingerprint == data.fingerprint and record.input == input_record(
        data, side, config.data
    )
    return Start(
        name=record.name,
        module=module,
        arch=net.architecture,
        subnet=record.subnet,
        exits=record.exits,
        ensemble=record.ensemble,
        provenance=record.provenance,
        finetuning=record.finetuning,
        sha256=record.sha256,
        new_classifiers=new_classifiers,
        test_before=record.scores["test"] if measured_alike else None,
    )


def _refuse_dropout(config: TuningConfig, arch: Backbone) -> None:
    """Refuse another dropout for a network of timm's, whose own head has it."""
    if config.finetune.dropout != arch.drop_rate:
        raise UserError(
            f"finetune.dropout ({config.finetune.dropout:g}): the network was made with {arch.drop_rate:g}; leave it"
            f" out, or fine-tune {STOCK}{arch.name} anew"
        )


def _start_stock(source: StockSource, config: TuningConfig, data: ImageData, task: Task) -> Start:
    """Return a network of timm's as what to start from."""
    (side,) = config.data.resolutions
    net = make_stock(source, task, channels=data.channels, resolution=side, config=config)
    subnet = net.space.largest()
    module = net.extract(subnet)
    return Start(
        name=f"{STOCK}{source.name}",
        module=module,
        arch=net.architecture,
        subnet=subnet,
        exits="last",
        ensemble=None,
        provenance=StockProvenance(source.name, source.weights and Path(source.weights).name),
        finetuning=(),
        sha256=weights_sha256(module),
        new_classifiers=True,
        test_before=None,
    )


def _weights(config: TuningConfig, start: Start) -> distill.ExitWeights:
    """Return the exits' weights: those of the settings, but in the ensemble those that the network has, if any."""
    weights = distill.exit_weights(config.finetune.exit_weights, len(start.exit_indices))
    return replace(weights, ensemble=tuple(map(Fraction, start.ensemble))) if start.ensemble else weights


def _settle_threads(config: TuningConfig, start: nn.Module, data: ImageData, runtime: Runtime) -> TuningConfig:
    """Return settings with a number of threads; where they had 0, the fastest one for a training step."""
    if config.run.threads:
        return config
    module = copy.deepcopy(start).train()
    (resolution,) = config.data.resolutions
    images = runtime.send(sample_images(config.data.batch_size, data.channels, resolution))
    step = training_pass(module, module, images, runtime.autocast)
    chosen = choose_threads(step, "a training step", runtime.device)
    return replace(config, run=replace(config.run, threads=chosen))


def _refuse_resolutions(config: TuningConfig, source: Source | StockSource) -> None:
    given = ", ".join(map(str, config.data.resolutions))
    if isinstance(source, StockSource):
        if len(config.data.resolutions) > 1:
            raise UserError(f"data.resolutions ({given}): a network of timm's is trained at one; name one")
        return
    resolution = source.record.subnet.resolution
    if config.data.resolutions != (resolution,):
        raise UserError(
            f"data.resolutions ({given}): the network takes images of {resolution} pixels; leave it out, or extract a"
            " network for another resolution"
        )


def _adopt_all_but_classifiers(module: nn.Module, source: Source) -> None:
    """Give a network the tensors of an extracted one, but for those whose shape the number of classes decides."""
    record, trained = source.record, source.module.state_dict()
    arch = with_classes(record.architecture, record.architecture.num_classes + 1)
    with without_memory(arch):
        other = build_network(arch, (record.subnet.resolution,)).extract(record.subnet, record.exits).state_dict()
    kept = {name: tensor for name, tensor in trained.items() if tensor.shape == other[name].shape}
    module.load_state_dict({**module.state_dict(), **kept})
