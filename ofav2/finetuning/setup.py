"""Prepare everything that a fine-tuning needs, and check it before it begins."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
from torch import nn
from torch.fx import GraphModule

import distill
from ofav2.config import recipe
from ofav2.config.schema import ComputeConfig, EvaluationConfig, FinetuneConfig, TuningConfig
from ofav2.data import ImageData, open_data, steps_per_epoch
from ofav2.data.digests import Digests
from ofav2.data.seen import seen_digests, unseen
from ofav2.data.splits import with_test
from ofav2.deploy.artifact import RECORD, SubnetRecord, describe_subnet, load_subnet
from ofav2.deploy.extract import COMPARED
from ofav2.deploy.seen import read_seen
from ofav2.errors import RunError, UserError
from ofav2.evaluation.evaluator import Evaluator
from ofav2.networks.build import build_network, with_classes
from ofav2.runtime.device import Runtime, open_runtime
from ofav2.runtime.threads import choose_threads, sample_images, training_pass
from ofav2.tasks.base import Task, refuse_mixing
from ofav2.tasks.registry import make_task
from supernets.backbone import AnyArchitecture


@dataclass(frozen=True)
class Source:
    """An extracted network as it was read."""

    record: SubnetRecord
    """What its `subnet.json` says."""
    module: GraphModule
    """The network."""
    settings: TuningConfig
    """The settings of a fine-tuning of which nobody changes any."""


@dataclass(frozen=True)
class Tuning:
    """Everything that a fine-tuning needs."""

    source: Source
    """The extracted network."""
    config: TuningConfig
    """The settings."""
    data: ImageData
    """The data set."""
    arch: AnyArchitecture
    """The architecture of a supernet that holds the network, with the data set's classes."""
    start: GraphModule
    """The network that both trainings start from, on the runtime's device."""
    exits: tuple[int, ...]
    """The exits whose logits it returns, by number."""
    weights: distill.ExitWeights
    """Their weights."""
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
        return self.source.record.subnet.resolution

    @property
    def new_classifiers(self) -> bool:
        """Whether the data set's classes are others than the network's."""
        return not _same_classes(self.source, self.data)


def prepare(directory: str | Path, overrides: Sequence[str] = (), file: str | None = None) -> Tuning:
    """Open what a fine-tuning needs, and refuse what can't be done.

    Args:
        directory: The folder of an extracted network.
        overrides: Settings to change, as `key=value`.
        file: Path of a YAML file with settings, which overrides are merged over; None for none.

    Raises:
        UserError, DistillError: If a setting is impossible or the data set does not fit; the message names it.
        RunError: If the folder holds no extracted network.
    """
    source = open_source(Path(directory))
    config = recipe.adjust_tuning(source.settings, file, overrides)
    _refuse_resolutions(config, source.record.subnet.resolution)
    runtime = open_runtime(config.run)
    data, seen = open_data(config.data), read_seen(Path(directory), source.record)
    _refuse_data(config, data, source)
    if data.fingerprint != source.record.measured_fingerprint:
        data = with_test(data, unseen(data.test, seen))
    task = make_task(config.task, data, config.optim)
    refuse_task(task, source)
    refuse_mixing(task, config.data)
    net = build_network(
        with_classes(source.record.architecture, task.outputs), (source.record.subnet.resolution,), config.run.seed
    )
    exits = source.record.exit_indices
    start = source.module
    if not _same_classes(source, data):
        start = net.extract(source.record.subnet, source.record.exits)
        _adopt_all_but_classifiers(start, source.module)
    for layer in start.modules():
        if isinstance(layer, nn.Dropout | nn.Dropout2d):
            layer.p = config.finetune.dropout
    start = runtime.place(start)
    config = _settle_threads(config, start, data, runtime)
    return Tuning(
        source=source,
        config=config,
        data=data,
        arch=net.architecture,
        start=start,
        exits=exits,
        weights=_weights(config, source.record),
        task=task,
        runtime=runtime,
        evaluator=open_evaluator(config, data, task, runtime),
        seen=np.union1d(seen, seen_digests(data)),
    )


def _weights(config: TuningConfig, record: SubnetRecord) -> distill.ExitWeights:
    """Return the exits' weights: those of the settings, but in the ensemble those that the network has, if any."""
    weights = distill.exit_weights(config.finetune.exit_weights, len(record.exit_indices))
    return replace(weights, ensemble=tuple(map(Fraction, record.ensemble))) if record.ensemble else weights


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


def open_source(directory: Path) -> Source:
    """Read an extracted network and the settings that go with it.

    They are those of the training that left its weights: a fine-tuning's own, or what the run's recipe says of data
    and optimiser. Images are normalised as the network was trained to expect.

    Raises:
        RunError: If the folder holds no extracted network, or does not say how it was trained.
    """
    record, module = describe_subnet(directory), load_subnet(directory)
    where = directory / RECORD
    settings = kept_settings(record, where)
    given, side = record.input, record.subnet.resolution
    data = replace(settings.data, resolutions=(side,), mean=given.mean, std=given.std)
    return Source(record, module, replace(settings, data=data))


def kept_settings(record: SubnetRecord, where: Path) -> TuningConfig:
    """Return the settings of the training that left a network's weights, see `open_source`.

    Args:
        record: The network's record.
        where: Its file, for messages.

    Raises:
        RunError: They don't fit the record.
    """
    if record.finetuning:
        return recipe.parse_tuning(record.finetuning[-1].recipe, f"recipe in {where}")
    config, phase = recipe.parse(record.provenance.recipe, f"recipe in {where}"), record.provenance.phase
    if phase not in config.phases:
        raise RunError(f"{where}: its recipe has no phase ({phase!r}), which left the weights: extract it again")
    return TuningConfig(
        task=config.task,
        run=ComputeConfig(**{field.name: getattr(config.run, field.name) for field in fields(ComputeConfig)}),
        data=config.data,
        finetune=FinetuneConfig(lr=config.phases[phase].lr, eval_batch_size=config.evaluation.batch_size),
        optim=config.optim,
    )


def _refuse_resolutions(config: TuningConfig, resolution: int) -> None:
    if config.data.resolutions != (resolution,):
        given = ", ".join(map(str, config.data.resolutions))
        raise UserError(
            f"data.resolutions ({given}): the network takes images of {resolution} pixels; leave it out, or extract a"
            " network for another resolution"
        )


def _refuse_data(config: TuningConfig, data: ImageData, source: Source) -> None:
    channels = source.record.architecture.in_channels
    if data.channels != channels:
        raise UserError(
            f"data.name ({data.name}): its images have {data.channels} channels, and the network takes {channels};"
            " choose another data set"
        )
    steps_per_epoch(len(data.train), config.data.batch_size)


def refuse_task(task: Task, source: Source) -> None:
    """Refuse another task, or another metric, than the network was trained for.

    Raises:
        UserError: It is another one.
    """
    record = source.record
    if (task.name, task.metrics[0]) != (record.task, record.metric):
        raise UserError(
            f"task ({task.name}, measured as {task.metrics[0].name}): the network was trained for {record.task},"
            f" measured as {record.metric.name}; leave the key out, or train a supernet for the task"
        )


def _same_classes(source: Source, data: ImageData) -> bool:
    return tuple(data.classes) == source.record.classes


def _adopt_all_but_classifiers(module: nn.Module, trained: nn.Module) -> None:
    """Give a network another one's tensors, but for the last layer of each exit."""
    kept = {name: tensor for name, tensor in trained.state_dict().items() if ".classifier." not in name}
    module.load_state_dict({**module.state_dict(), **kept})


def open_evaluator(config: TuningConfig, data: ImageData, task: Task, runtime: Runtime) -> Evaluator:
    """Make the evaluator of an extracted network."""
    # Batch norms are trained, not recalibrated; calibration images are those that written files are compared on.
    evaluation = EvaluationConfig(
        batch_size=config.finetune.eval_batch_size, calibration_images=COMPARED, calibration_batch=COMPARED
    )
    return Evaluator(
        data,
        task,
        evaluation,
        eval_crop=config.data.eval_crop,
        seed=config.data.split_seed,
        workers=config.data.workers,
        runtime=runtime,
    )
