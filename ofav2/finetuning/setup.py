"""Prepare everything that a fine-tuning needs, and check it before it begins."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from torch import nn

import distill
from ofav2.config import recipe
from ofav2.config.schema import ComputeConfig, EvaluationConfig, FinetuneConfig, TuningConfig
from ofav2.data import ImageData, open_data, steps_per_epoch
from ofav2.deploy.extract import COMPARED
from ofav2.deploy.load import SUBNET_FACTS, describe_subnet, load_subnet
from ofav2.errors import RunError, UserError
from ofav2.evaluation.evaluator import Evaluator
from ofav2.networks.build import build_supernet
from ofav2.runtime.device import Runtime, open_runtime
from ofav2.runtime.threads import choose_threads, sample_images, training_pass
from ofav2.tasks.base import Task
from ofav2.tasks.registry import make_task
from supernets import Architecture, Exits, Subnet

_KEPT = ("format", "name", "subnet", "exits", "supernet", "data", "classes", "provenance", "sha256")


@dataclass(frozen=True)
class Source:
    """An extracted network as it was read."""

    facts: Mapping[str, Any]
    """What its `subnet.json` says of it that is needed here."""
    module: nn.Module
    """The network."""
    subnet: Subnet
    """Its architecture."""
    exits: Exits
    """The exits whose logits it returns, as they were asked for."""
    settings: TuningConfig
    """The settings of a fine-tuning of which nobody changes any."""
    history: tuple[Mapping[str, Any], ...]
    """What earlier fine-tunings recorded, oldest first."""
    fingerprint: str
    """Fingerprint of the images that it was last trained and tested on."""
    test: Mapping[str, float]
    """Test top-1 (0..1) on them by exit, as it was measured when the network was written."""


@dataclass(frozen=True)
class Tuning:
    """Everything that a fine-tuning needs."""

    source: Source
    """The extracted network."""
    config: TuningConfig
    """The settings."""
    data: ImageData
    """The data set."""
    arch: Architecture
    """The architecture of a supernet that holds the network, with the data set's classes."""
    start: nn.Module
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

    @property
    def resolution(self) -> int:
        """Side of the images in pixels."""
        return self.source.subnet.resolution

    @property
    def new_classifiers(self) -> bool:
        """Whether the data set's classes are others than the network's."""
        return not _same_classes(self.source, self.data)


def prepare(directory: str | Path, overrides: Sequence[str] = (), file: str | None = None) -> Tuning:
    """Opens what a fine-tuning needs, and so refuses what can't be done.

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
    _refuse_resolutions(config, source.subnet.resolution)
    runtime = open_runtime(config.run)
    data = open_data(config.data)
    _refuse_data(config, data, source)
    task = make_task(config.task, data, config.optim)
    arch = replace(Architecture.from_dict(source.facts["supernet"]), num_classes=task.outputs)
    net = build_supernet(arch, (source.subnet.resolution,), config.run.seed)
    exits = net.chosen_exits(source.subnet, source.exits)
    start = source.module
    if not _same_classes(source, data):
        start = net.extract(source.subnet, source.exits)
        _adopt_all_but_classifiers(start, source.module)
    for layer in start.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = config.finetune.dropout
    start = runtime.place(start)
    config = _settle_threads(config, start, data, runtime)
    return Tuning(
        source=source,
        config=config,
        data=data,
        arch=arch,
        start=start,
        exits=exits,
        weights=distill.exit_weights(config.finetune.exit_weights, len(exits)),
        task=task,
        runtime=runtime,
        evaluator=_open_evaluator(config, data, task, runtime),
    )


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
    """Reads an extracted network and the settings that go with it.

    They are those of the training that left its weights: a fine-tuning's own, or what the run's recipe says of data
    and optimiser. Images are normalised as the network was trained to expect.

    Raises:
        RunError: If the folder holds no extracted network, or does not say how it was trained.
    """
    facts, module = describe_subnet(directory), load_subnet(directory)
    where, history = directory / SUBNET_FACTS, facts.get("finetuning", [])
    try:
        subnet = Subnet.from_dict(facts["subnet"])
        given, classes = facts["input"], facts["classes"]
        texts = all(isinstance(name, str) for name in classes)
        if not (isinstance(classes, list) and texts and len(classes) == facts["supernet"]["num_classes"]):
            raise RunError(f"{where} does not name each class of the network once: restore it, or extract it again")
        settings = _kept_settings(facts, history, f"recipe in {where}")
        last, when = (history[-1], "after_finetuning") if history else (facts["provenance"], "after_recalibration")
        source = Source(
            facts={name: facts[name] for name in _KEPT},
            module=module,
            subnet=subnet,
            exits=facts["exits"],
            settings=settings,
            history=tuple(history),
            fingerprint=last["data_fingerprint"],
            test=dict(facts["top1_per_exit"][when]["test"]),
        )
        mean, std = _colour(given["mean"]), _colour(given["std"])
        data = replace(settings.data, resolutions=(subnet.resolution,), mean=mean, std=std)
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise RunError(f"{where} does not say how the network was trained ({error}): extract it again") from error
    return replace(source, settings=replace(settings, data=data))


def _colour(values: Sequence[float]) -> tuple[float, float, float]:
    red, green, blue = values
    return float(red), float(green), float(blue)


def _kept_settings(facts: Mapping[str, Any], history: Sequence[Mapping[str, Any]], where: str) -> TuningConfig:
    if history:
        return recipe.parse_tuning(history[-1]["recipe"], where)
    came_from = facts["provenance"]
    config = recipe.parse(came_from["recipe"], where)
    return TuningConfig(
        task=config.task,
        run=ComputeConfig(**{field.name: getattr(config.run, field.name) for field in fields(ComputeConfig)}),
        data=config.data,
        finetune=FinetuneConfig(lr=config.phases[came_from["phase"]].lr, eval_batch_size=config.evaluation.batch_size),
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
    channels = source.facts["supernet"]["in_channels"]
    if data.channels != channels:
        raise UserError(
            f"data.name ({data.name}): its images have {data.channels} channels, and the network takes {channels};"
            " choose another data set"
        )
    steps_per_epoch(len(data.train), config.data.batch_size)


def _same_classes(source: Source, data: ImageData) -> bool:
    return list(data.classes) == source.facts["classes"]


def _adopt_all_but_classifiers(module: nn.Module, trained: nn.Module) -> None:
    """Gives a network another one's tensors, but for the last layer of each exit."""
    kept = {name: tensor for name, tensor in trained.state_dict().items() if ".classifier." not in name}
    module.load_state_dict({**module.state_dict(), **kept})


def _open_evaluator(config: TuningConfig, data: ImageData, task: Task, runtime: Runtime) -> Evaluator:
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
