"""Check what is asked of a run that begins: settings without effect, and weights that know its test images.

A run that goes on was checked when it began, maybe by an older version of these rules. It is checked again only if its
images or first weights are exchanged before it has trained anything.
"""

import logging
from dataclasses import fields, replace
from pathlib import Path

import numpy as np

from ofav2.config.schema import Config, DataConfig, PhaseConfig, SupernetConfig
from ofav2.data import ImageData, open_data
from ofav2.data.digests import Digests
from ofav2.data.readers.patches import target_name
from ofav2.data.seen import count_known, count_seen, digests_of
from ofav2.data.splits import Split
from ofav2.errors import RunError, UserError
from ofav2.messages import first_line, show
from ofav2.runs.initial_images import read_initial_images
from ofav2.runs.kept_recipe import PLACES, kept_recipe
from ofav2.runs.records import RunRecord, read_run
from ofav2.runs.split import kept_split, require_drawn_again
from ofav2.tasks import reconstruction
from ofav2.training.phases import Plan
from ofav2.training.setup import Setup

logger = logging.getLogger(__name__)


def check_beginning(setup: Setup) -> Digests | None:
    """Check a run before it begins.

    Returns:
        Digests of the images whose targets `supernet.init` has learnt; None where nobody knows, or weights are fresh.

    Raises:
        UserError: A phase has settings without effect, or `supernet.init` learnt targets of this run's test images.
    """
    _refuse_idle_settings(setup.plan)
    _say_idle_shares(setup.config.data, setup.data)
    _say_idle_supernet(setup.config)
    # Imagined data have no fingerprint.
    if setup.config.supernet.init is None or not setup.data.fingerprint:
        return None
    return _check_initial(Path(setup.config.supernet.init).expanduser(), setup.config, setup.data)


def _refuse_idle_settings(plan: Plan) -> None:
    for phase in plan.phases:
        idle = {"subnets": phase.config.subnets, "sampler": phase.config.sampler} if phase.alone else {}
        for key, value in idle.items():
            if value != getattr(PhaseConfig, key):
                raise UserError(
                    f"phases.{phase.name}.{key} ({value}): has no effect, as the phase trains the largest network"
                    " alone; leave it out, or unlock something"
                )


def _say_idle_shares(config: DataConfig, data: ImageData) -> None:
    """Say which shares have no effect, as the data set brings that split. Recipes have them for other data sets."""
    for key, held in (("val_fraction", "val"), ("test_fraction", "test")):
        brought = held in data.origins and data.origins[held].listed == held
        if brought and getattr(config, key) != getattr(DataConfig, key):
            logger.info(f"data.{key} ({getattr(config, key):g}): {data.name} brings its own {held} images, which count")


def _say_idle_supernet(config: Config) -> None:
    """Say which settings describe a supernet in a recipe of another network. Its base may be a supernet's recipe."""
    if config.network.kind == "supernet":
        return
    of_any = {"init", "frozen"}
    for field in fields(SupernetConfig):
        value = getattr(config.supernet, field.name)
        if field.name not in of_any and value != field.default:
            said = f"supernet.{field.name} ({show(value)})"
            logger.info(f"{said}: has no effect, as network.kind is {config.network.kind}")


def _check_initial(init: Path, config: Config, data: ImageData) -> Digests | None:
    """Refuse weights that learnt targets of test images; say it of validation images, and where nobody knows.

    Returns:
        Digests of the images whose targets the weights have learnt; None where nobody knows.
    """
    record = read_run(init)
    earlier = None if record.imported else read_initial_images(init, record)
    if record.data.fingerprint == data.fingerprint:
        if earlier is not None:
            _check_earlier(init, earlier, data)
        return earlier
    try:
        before = kept_recipe(init, record)
        theirs = _images(init, record, before)
    except UserError as error:
        _say_unknown(init, f"its own can't be opened as they were: {first_line(error)}")
        return None
    if earlier is None:
        _say_unknown(init, "it did not begin with fresh weights")
    counts = count_known((data.test, data.val), theirs.train, data.train)
    if counts is None:
        _say_unknown(init, "its own are stored in another way")
    images_alone = before.task == reconstruction.NAME and not _reconstructs_target(record, before, config)
    for held, count in zip((data.test, data.val), counts or (0, 0), strict=True):
        _refuse_known(init, held, count, images_alone=images_alone, is_val=held is data.val)
    if earlier is None:
        return None
    _check_earlier(init, earlier, data)
    return earlier if images_alone else np.union1d(earlier, digests_of(theirs.train))


def _check_earlier(init: Path, earlier: Digests, data: ImageData) -> None:
    """Refuse, or warn of, held-out images that a run's weights had learnt beside its own images."""
    if not len(earlier):
        # To digest patches reads all their pixels.
        return
    others = np.setdiff1d(earlier, digests_of(data.train))
    for held in (data.test, data.val):
        _refuse_known(init, held, count_seen(held, others), images_alone=False, is_val=held is data.val)


def images_until_now(folder: Path, record: RunRecord, config: Config) -> Digests | None:
    """Return digests of all images that a run was trained on before its split is changed; None where nobody knows.

    Args:
        folder: The run folder, with the split until now.
        record: The run's record until now.
        config: The recipe to go on with, which says where images are now.

    Raises:
        RunError: If the list of what its first weights had seen is damaged.
    """
    earlier = read_initial_images(folder, record)
    try:
        kept = kept_recipe(folder, record)
        here = {name: getattr(config.data, name) for name in PLACES}
        own = digests_of(_images(folder, record, replace(kept, data=replace(kept.data, **here))).train)
    except UserError as error:
        logger.warning(
            "which images the run was trained on until now is not known to what is extracted from it: they can't be"
            f" opened as they were: {first_line(error)}"
        )
        return earlier
    return None if earlier is None else np.union1d(earlier, own)


def _refuse_known(init: Path, held: Split, count: int, *, images_alone: bool, is_val: bool) -> None:
    """Refuse weights that learnt targets of test images, and say it of others that are held out."""
    said = f"supernet.init ({init}): was trained on {count} of the {len(held)} images of this run's split {held.name}"
    if count and images_alone:
        logger.warning(f"{said}, without the targets that are learnt now")
    elif count and is_val:
        logger.warning(f"{said}, so validation scores are too good")
    elif count:
        raise UserError(
            f"{said}, so its scores would be too good: give both runs the same splits, by data.split_seed and equal"
            " fractions, or by folders or a patches.yaml that name them"
        )


def _reconstructs_target(record: RunRecord, before: Config, config: Config) -> bool:
    """Return whether a reconstruction learnt the target that is learnt now, which it does if that is numbers."""
    planes = record.architecture.num_classes > len(record.data.bands)
    return planes and target_name(before.data) == target_name(config.data)


def _images(init: Path, record: RunRecord, config: Config) -> ImageData:
    """Return what a run was trained and validated on.

    Raises:
        UserError: Its images can't be opened, or are no longer the same.
    """
    split = kept_split(init, record)
    data = open_data(replace(config.data, download=False), split)
    if split is None:
        require_drawn_again(init, record, data.fingerprint)
    if data.fingerprint != record.data.fingerprint:
        raise RunError(f"data set ({data.name}) holds other images, or other labels, than {init} was trained on")
    return data


def _say_unknown(init: Path, why: str) -> None:
    logger.warning(f"whether {init} was trained on images that this run holds out is not known for certain: {why}")
