"""Fine-tune an extracted network in two trainings, as NATv2 does.

The first training, on the training images, finds on validation after how many epochs the network is best. The second
one starts again from the same weights and takes that many epochs on training and validation images together. Test
images are looked at once, in the end.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch.fx import GraphModule

from ofav2 import files
from ofav2.config import recipe
from ofav2.data import join, refuse_inside
from ofav2.deploy.artifact import (
    RECORD,
    WEIGHTS,
    Epoch,
    EpochSearch,
    ExitScores,
    FinetuningRecord,
    StockProvenance,
    SubnetRecord,
    input_record,
    usage,
)
from ofav2.deploy.export import FORMATS, check_formats, output_names
from ofav2.deploy.seen import seen_sha256
from ofav2.deploy.write import complete_folder, write_network
from ofav2.errors import UserError
from ofav2.evaluation.by_class import class_results
from ofav2.finetuning.loop import exit_scores, find_epochs, train_final
from ofav2.finetuning.setup import Tuning, prepare
from ofav2.networks.cost import network_cost
from ofav2.output_folder import making
from ofav2.runs import folder
from ofav2.runs.records import SplitSizes, versions
from ofav2.runs.teacher_record import TeacherNetwork, write_teacher
from ofav2.runtime.processes import process_group
from ofav2.runtime.signals import interruptible
from ofav2.tasks.base import Metric
from supernets.backbone import Backbone
from supernets.ensembles import with_ensemble

logger = logging.getLogger(__name__)


def finetune(
    network: str | Path,
    overrides: Sequence[str] = (),
    *,
    out: str | Path,
    file: str | Path | None = None,
    weights: str | Path | None = None,
    formats: Sequence[str] = FORMATS,
) -> SubnetRecord:
    """Fine-tune an extracted network, or any network of timm; write the result as an extracted network is written.

    Settings are, unless changed, the data set and the optimiser that the network was trained with. Where the data set's
    classes are not the network's, its classifiers are made anew.

    Args:
        network: The folder that `ofav2 extract`, or an earlier fine-tuning, wrote; or `timm:NAME`, whose settings are
            those of the recipe `photos`.
        overrides: Settings to change, as `key=value`.
        out: Folder to make; it must not exist, or be empty.
        file: Path of a YAML file with settings, such as the `recipe.yaml` of an earlier fine-tuning; overrides are
            merged over it.
        weights: Of `timm:NAME`, what to start from: `timm`, as with None, for timm's pretrained weights; `none` for
            fresh ones; or a .safetensors or .pth file.
        formats: Which files to write beside weights and description: `onnx`, `pt2` and `card`, all by default.

    Returns:
        What the new folder's `subnet.json` holds.

    Raises:
        UserError, DistillError: If something given can't be used; the message says what and why.
        RunError: If the folder holds no extracted network, if too many batches had an unusable loss, or if a written
            file does not compute what the network does.
    """
    with process_group() as processes, interruptible():
        if processes.count > 1:
            processes.refuse(
                UserError(f"WORLD_SIZE ({processes.count}): fine-tuning takes one process; start it without torchrun")
            )
        path = Path(out)
        check_formats(formats)
        # A folder that can't be written is better known before the trainings than after.
        with making(path, RECORD) as staging:
            tuning = prepare(network, overrides, file, weights)
            refuse_inside(tuning.data.trees, path, "output folder")
            _introduce(tuning)
            found = find_epochs(tuning)
            metric = tuning.task.metrics[0]
            best = found.best(metric)
            _tell(found, metric)
            everything = replace(tuning.data, train=join(tuning.data.train, tuning.data.val, "train"))
            module, final = train_final(tuning, everything, best.epochs)
            # Nothing before this line has looked at a test image.
            done = _finetuning(tuning, found, final, exit_scores(tuning, module, "test"))
            return _write(tuning, module, staging, done, formats)


def _introduce(tuning: Tuning) -> None:
    data, exits = tuning.data, tuning.start.exit_indices
    logger.info(
        f"fine-tuning {tuning.start.name} on {data.name}: {len(data.train)} training and {len(data.val)} validation"
        f" images, {'exit' if len(exits) == 1 else 'exits'} {', '.join(map(str, exits))}"
    )


def _tell(found: EpochSearch, metric: Metric) -> None:
    best, before = found.best(metric), found.before
    logger.info(
        f"best on validation after epoch {best.epochs} of {len(found.epochs)}: {metric.show(best.score)} {metric.name},"
        f" before {metric.show(before.score)}"
    )
    if metric.rank(best.score) < metric.rank(before.score):
        logger.info("no epoch was as good as the network before: a lower finetune.lr may do better")


def _finetuning(tuning: Tuning, found: EpochSearch, final: Sequence[Epoch], test: ExitScores) -> FinetuningRecord:
    start, data = tuning.start, tuning.data
    return FinetuningRecord(
        source_sha256=start.sha256,
        data=data.name,
        data_fingerprint=data.fingerprint,
        images=SplitSizes(len(data.train), len(data.val), len(data.test)),
        new_classifiers=start.new_classifiers,
        epochs=found.best(tuning.task.metrics[0]).epochs,
        search=found,
        final=tuple(final),
        test_before=start.test_before,
        test=test,
        versions=versions(),
        recipe=recipe.dump(tuning.config),
    )


def _teacher(written: SubnetRecord) -> TeacherNetwork:
    """Return what a run must know of a network of timm's to learn from it."""
    assert isinstance(written.architecture, Backbone), "timm's networks have such a record"
    return TeacherNetwork(
        timm=written.architecture.name,
        file=WEIGHTS,
        sha256=written.sha256,
        classes=written.classes,
        resolution=written.input.resolution,
        bands=written.input.bands,
        white=written.input.white,
        mean=written.input.mean,
        std=written.input.std,
        data_fingerprint=written.data_fingerprint,
    )


def _write(
    tuning: Tuning, module: GraphModule, staging: Path, done: FinetuningRecord, formats: Sequence[str]
) -> SubnetRecord:
    start, data = tuning.start, tuning.data
    images = tuning.evaluator.sample_inputs(tuning.resolution)
    logger.info("writing the files and checking them")
    names = output_names(start.exit_indices, single=start.exits == "last", ensemble=start.ensemble is not None)
    given = input_record(data, tuning.resolution, tuning.config.data)
    about = usage(given, tuning.task.name, data.classes, names)
    exports, sha256 = write_network(staging, module, images, about, formats, start.ensemble)
    form = module if start.ensemble is None else with_ensemble(module, start.ensemble)
    written = SubnetRecord(
        subnet=start.subnet,
        exits=start.exits,
        ensemble=start.ensemble,
        architecture=start.arch,
        task=tuning.task.name,
        metric=tuning.task.metrics[0],
        input=given,
        data=data.name,
        classes=tuple(data.classes),
        cost=network_cost(start.arch, start.subnet, start.exits),
        scores={"test": done.test},
        by_class=class_results(form, tuning.evaluator, tuning.resolution),
        extraction=None,
        choice=None,
        pruning=None,
        provenance=start.provenance,
        finetuning=(*start.finetuning, done),
        formats=tuple(formats),
        exports=exports,
        sha256=sha256,
        seen_sha256=seen_sha256(tuning.seen),
    )
    files.write_text(staging / folder.RECIPE, done.recipe)
    if isinstance(start.provenance, StockProvenance):
        write_teacher(staging, _teacher(written))
    complete_folder(staging, written, tuning.seen, module, images, tuning.runtime)
    return written
