"""Extract a sub-network from a run: check, recalibrate, measure and write it."""

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from ofav2.config import recipe
from ofav2.data import refuse_inside
from ofav2.data.digests import Digests
from ofav2.deploy.agreement import COMPARED, largest_gap, require_same
from ofav2.deploy.artifact import (
    RECORD,
    ChoiceRecord,
    ExportRecord,
    ExtractionRecord,
    Provenance,
    SubnetRecord,
    input_record,
    usage,
)
from ofav2.deploy.export import FORMATS, check_formats, output_names
from ofav2.deploy.seen import seen_by, seen_sha256
from ofav2.deploy.write import complete_folder, weights_sha256, write_network
from ofav2.errors import RunError, UserError
from ofav2.evaluation.by_class import class_results
from ofav2.evaluation.opened_run import OpenedRun, open_loaded
from ofav2.nas.candidates import Ranking
from ofav2.nas.cheapest import within
from ofav2.nas.found import Finalist, Found, front_ranking, load_source, pick_rule
from ofav2.nas.limits import Limits
from ofav2.networks.cost import network_cost
from ofav2.output_folder import check_free, making
from ofav2.runtime.signals import interruptible
from supernets import Exits, Subnet
from supernets.multi_exit import Network
from supernets.outputs import exit_logits

logger = logging.getLogger(__name__)

CANARY_GAP = 1e-5
"""Least difference of two networks' logits, as a share of the largest; rounding alone makes less."""


def extract(
    run: OpenedRun,
    subnet: Subnet,
    out: str | Path,
    exits: Exits = "last",
    *,
    ranking: Ranking | None = None,
    formats: Sequence[str] = FORMATS,
) -> SubnetRecord:
    """Write a sub-network as files: weights, description, ONNX, `torch.export` program, model card.

    Before it is recalibrated, the extracted network's logits are compared with the supernet's on real images, and a
    canary makes sure that another sub-network has other logits. ONNX file and program are read back and compared.

    Args:
        run: The opened run.
        subnet: A network of the run's space.
        out: Folder to make; it must not exist, or be empty. Nothing else may make it meanwhile.
        exits: Exits whose logits the network returns: `last`, `all`, or exits by number, ascending.
        ranking: How it was chosen, to be kept in `subnet.json`; None for a network that was named.
        formats: Which files to write beside weights and description: `onnx`, `pt2` and `card`, all by default.

    Returns:
        What `subnet.json` holds.

    Raises:
        SpaceError: If the sub-network is outside the space that was trained, or an exit is not on its way.
        UserError: If the folder is not empty or can't be written, a format does not exist, the ranking chose
            another network, or the network was chosen under limits and is to have other exits, too.
        RunError: If the extracted network, or a file, does not compute what the supernet does.
    """
    refuse_inside(run.data.trees, Path(out), "output folder")
    with interruptible(), making(Path(out), RECORD) as staging:
        return extract_into(staging, run, subnet, exits, ranking=ranking, formats=formats)


def extract_finalist(
    found: Found,
    chosen: Finalist,
    out: str | Path,
    exits: Exits = "last",
    *,
    limits: Limits | None = None,
    formats: Sequence[str] = FORMATS,
) -> SubnetRecord:
    """Write a network of a search's front as files, as `extract` does, out of the run that the search names.

    After an adaptation that helped, it has the adapted weights.

    Args:
        found: The search.
        chosen: The network, such as `found.best(limits)` or `found.knee()`.
        out: As for `extract`.
        exits: As for `extract`.
        limits: The limits that it was chosen under, to be kept in `subnet.json`; None for none.
        formats: As for `extract`.

    Returns:
        What `subnet.json` holds.

    Raises:
        UserError: If the network is not of the search's front, or not within the limits, or the run has other weights
            now than those that were searched; and as `extract` raises it.
        SpaceError, RunError: As `extract` raises them.
    """
    if chosen not in found.final.finalists:
        raise UserError(f"network ({chosen.subnet}) is not on the front of {found.folder}: take one that is")
    if limits and not within(chosen.price, limits):
        raise UserError(f"network ({chosen.subnet}) does not keep {limits}: take another one, or leave the limits out")
    ranking = front_ranking(found, chosen, limits or Limits(), pick_rule(found, chosen, limits))
    # `extract` checks these, too, but only once the images are opened.
    check_free(Path(out))
    check_formats(formats)
    refuse_limited_exits(ranking.limits, exits)
    run = open_loaded(load_source(found, chosen))
    return extract(run, chosen.subnet, out, exits, ranking=ranking, formats=formats)


def refuse_limited_exits(limits: Limits, exits: Exits) -> None:
    """Refuse limits on a network that is to have more exits than its own: limits count no other heads.

    Raises:
        UserError: If both are given.
    """
    if exits != "last" and limits.named:
        raise UserError(
            f"limits ({limits}) are on a network with its own exit alone, and other exits add their heads: choose"
            " without --exits, then extract that network again with them, by --subnet DIR/subnet.json, or of a search"
            " by its --number"
        )


def extract_into(
    staging: Path,
    run: OpenedRun,
    subnet: Subnet,
    exits: Exits = "last",
    *,
    ranking: Ranking | None = None,
    formats: Sequence[str] = FORMATS,
) -> SubnetRecord:
    """Write a sub-network into an empty folder, of `output_folder.making`; see `extract`."""
    check_formats(formats)
    if ranking:
        refuse_limited_exits(ranking.limits, exits)
        if subnet != ranking.best.subnet:
            raise UserError(
                f"sub-network ({subnet}) is not what the ranking chose ({ranking.best.subnet}): extract that one, or"
                " leave the ranking out"
            )
    run.loaded.net.space.check(subnet)
    run.loaded.net.chosen_exits(subnet, exits)
    logger.info(f"extracting {subnet}: measuring it, then writing the files and checking them")
    module, images, taken, seen = take_out(run, subnet, exits, ranking)
    about = usage(taken.input, taken.task, taken.classes, taken.exports.outputs)
    exports, sha256 = write_network(staging, module, images, about, formats)
    record = replace(taken, formats=tuple(formats), exports=exports, sha256=sha256)
    complete_folder(staging, record, seen, module, images, run.runtime)
    return record


class TakenOut(NamedTuple):
    """A sub-network out of its supernet."""

    module: GraphModule
    """The network, recalibrated."""
    images: Tensor
    """Images to compare forms of it on."""
    record: SubnetRecord
    """What it is, without exported files."""
    seen: Digests
    """Digests of all images that it has seen, ascending."""


def take_out(run: OpenedRun, subnet: Subnet, exits: Exits = "last", ranking: Ranking | None = None) -> TakenOut:
    """Take a sub-network out of its supernet: check it, recalibrate it and measure it; nothing is written.

    Args:
        run: The opened run.
        subnet: A network of the run's space.
        exits: As for `extract`.
        ranking: As for `extract`.

    Raises:
        SpaceError, RunError: As for `extract`.
    """
    net, evaluator = run.loaded.net, run.evaluator
    net.space.check(subnet)
    module = run.runtime.place(net.extract(subnet, exits))
    images = evaluator.sample_inputs(subnet.resolution)[:COMPARED]
    gap = _check_same(net, module, subnet, exits, images)
    canary, canary_gap = _check_canary(run, module, subnet, exits, images)
    extraction = ExtractionRecord(
        scores_before=_scores(run, module, subnet, exits),
        calibration_images=evaluator.count_calibration(subnet.resolution) if net.needs_recalibration else 0,
        calibration_seed=evaluator.seed,
        compared_images=len(images),
        supernet_gap=gap,
        canary=canary,
        canary_gap=canary_gap,
        data_fingerprint=run.data.fingerprint,
        validation_is_test=run.data.validation_is_test,
    )
    scores = extraction.scores_before
    if net.needs_recalibration:
        module = evaluator.calibrated(net, subnet, exits)
        scores = _scores(run, module, subnet, exits)
    seen = seen_by(run)
    run_record, data, indices = run.loaded.record, run.loaded.record.data, net.chosen_exits(subnet, exits)
    record = SubnetRecord(
        subnet=subnet,
        exits=exits if exits == "last" else indices,
        ensemble=None,
        architecture=net.architecture,
        task=run_record.task,
        metric=run_record.metric,
        input=input_record(run.data, subnet.resolution, recipe.parse(run.recipe, "recipe").data),
        data=data.name,
        classes=data.classes,
        cost=network_cost(net.architecture, subnet, exits),
        scores=scores,
        by_class=class_results(module, evaluator, subnet.resolution),
        extraction=extraction,
        choice=_choice(ranking) if ranking else None,
        pruning=None,
        provenance=_provenance(run),
        finetuning=(),
        formats=(),
        exports=ExportRecord(output_names(indices, single=exits == "last"), (), {}),
        sha256=weights_sha256(module),
        seen_sha256=seen_sha256(seen),
    )
    return TakenOut(module, images, record, seen)


def _provenance(run: OpenedRun) -> Provenance:
    return Provenance(
        run=run.loaded.record.name,
        phase=run.loaded.phase,
        checkpoint_sha256=run.loaded.sha256,
        data_fingerprint=run.loaded.record.data.fingerprint,
        versions=run.loaded.record.versions,
        recipe=run.recipe,
    )


def _choice(ranking: Ranking) -> ChoiceRecord:
    return ChoiceRecord(
        limits=ranking.limits,
        exits=ranking.space.height,
        resolutions=ranking.space.resolution,
        method=ranking.method,
        rule=ranking.rule,
        candidates=ranking.measured or len(ranking.ranked),
        seed=ranking.seed,
        ranked_on="confirmation" if ranking.method == "front" else "val",
    )


def _scores(run: OpenedRun, module: nn.Module, subnet: Subnet, exits: Exits) -> dict[str, dict[int, float]]:
    """Return scores by split and exit; refuse them if one is not finite."""
    exit_indices, metric = run.loaded.net.chosen_exits(subnet, exits), run.evaluator.task.metrics[0]
    found = {
        split.name: dict(zip(exit_indices, run.evaluator.exit_scores(module, subnet.resolution, split), strict=True))
        for split in (run.data.val, run.data.test)
    }
    for name, scores in found.items():
        for exit_, value in scores.items():
            if not math.isfinite(value):
                raise RunError(f"exit {exit_} of {subnet} has no finite {metric.name} on {name}: train the run again")
    return found


def _check_same(net: Network, module: nn.Module, subnet: Subnet, exits: Exits, images: Tensor) -> float:
    with torch.inference_mode():
        expected, found = exit_logits(net.eval()(images, subnet, exits)), exit_logits(module(images))
    return require_same(found, expected, "extracted network, beside the supernet,")


def _check_canary(
    run: OpenedRun, module: nn.Module, subnet: Subnet, exits: Exits, images: Tensor
) -> tuple[str | None, float | None]:
    """Require other logits of another network, or the comparison with the supernet would prove nothing.

    Returns:
        That network and the gap; None if the space holds no other.
    """
    net = run.loaded.net
    # One that ends at the same exit proves more: there, only kernel, expansion, depth or branches differ.
    spaces = (net.space.restrict(height=(subnet.height,)), net.space)
    ends = (end for space in spaces for end in (space.smallest(), space.largest()))
    others = [end for end in (replace(end, resolution=subnet.resolution) for end in ends) if end != subnet]
    if not others:
        return None, None
    with torch.inference_mode():
        other = exit_logits(run.runtime.place(net.extract(others[0]))(images))[-1:]
        gap = largest_gap(other, exit_logits(module(images))[-1:])
    if not gap > CANARY_GAP:
        raise RunError(
            f"sub-networks ({subnet}) and ({others[0]}) have the same logits, so choices have no effect: nothing was"
            " written; if the run was trained at all, please report it with the recipe"
        )
    return str(others[0]), gap
