"""Take a network of timm as it is to start from: any of its networks, on one's own classes."""

from dataclasses import dataclass, replace
from pathlib import Path

from ofav2.config import recipe
from ofav2.config.schema import ComputeConfig, FinetuneConfig, TuningConfig
from ofav2.errors import UserError
from ofav2.tasks.base import Task
from supernets.multi_exit import MultiExit

STOCK = "timm:"
"""What the name of such a network starts with."""
BASE = "photos"
"""The recipe whose settings of data and optimiser are the defaults, so that both train on the same images."""
LR, FRESH_LR = 0.0003, 0.002
"""Peak learning rates: of trained weights, and of fresh ones."""
SOME_CLASSES = 2
"""Classes of a network that is looked at before the data are known."""
WARMUP = 1.0
"""Epochs of linear warm-up."""


@dataclass(frozen=True)
class StockSource:
    """A network of timm."""

    name: str
    """Its name in timm."""
    weights: str | None
    """`timm` for timm's own weights, a .safetensors or .pth file, or None for fresh ones."""
    settings: TuningConfig
    """The settings of a fine-tuning of which nobody changes any."""


def open_stock(network: str, weights: str | None = None) -> StockSource:
    """Find a network of timm, and the settings that go with it.

    Args:
        network: `timm:NAME`, with a weights tag if you like.
        weights: `timm` for timm's pretrained weights, which may need a network connection; `none` for fresh ones; or a
            .safetensors or .pth file. None takes timm's.

    Raises:
        UserError: If timm has no network of that name.
    """
    # Extracted supernets are fine-tuned without timm, which takes seconds to import.
    from ofav2.networks.timm_models import own_input

    name = network.removeprefix(STOCK)
    side, mean, std = own_input(name)
    chosen = None if weights == "none" else weights or "timm"
    base = recipe.load(BASE)
    # Of larger images than the recipe's, so many pixels have to be kept.
    data = replace(base.data, resolutions=(side,), shrink_to=max(base.data.shrink_to, 2 * side))
    if chosen == "timm":
        data = replace(data, mean=mean, std=std)
    lr = LR if chosen else FRESH_LR
    settings = TuningConfig(
        run=ComputeConfig(), data=data, finetune=FinetuneConfig(lr=lr, warmup_epochs=WARMUP), optim=base.optim
    )
    return StockSource(name, chosen, settings)


def check_stock(source: StockSource, config: TuningConfig) -> None:
    """Check a network of timm as far as that needs no data: its size, and that its weights can be had.

    Raises:
        UserError: If it can't look at such images, or its weights don't fit or can't be had.
    """
    from ofav2.networks.backbone import check_weights, describe_plain

    (side,) = config.data.resolutions
    found = describe_plain(source.name, classes=SOME_CLASSES, channels=3, resolution=side, drop_rate=0.0)
    try:
        check_weights(found, source.weights if source.weights in (None, "timm") else Path(source.weights))
    except UserError as error:
        raise UserError(
            f"{error}; or start from others by --weights FILE, or from fresh ones by --weights none"
        ) from error


def make_stock(source: StockSource, task: Task, *, channels: int, resolution: int, config: TuningConfig) -> MultiExit:
    """Return a network of timm with the weights that it starts from, and a classifier for a task's classes.

    Args:
        source: Which one.
        task: What is learnt.
        channels: Channels of the images.
        resolution: Side of the images in pixels.
        config: The settings.

    Raises:
        UserError: If it can't look at such images, its weights don't fit or can't be had, or the task needs maps.
    """
    from ofav2.networks.backbone import describe_plain, make_backbone

    if task.dense:
        raise UserError(f"network ({STOCK}{source.name}) has no maps, which task {task.name} needs: take a supernet")
    found = describe_plain(
        source.name,
        classes=task.outputs,
        channels=channels,
        resolution=resolution,
        drop_rate=config.finetune.dropout,
    )
    weights = source.weights if source.weights in (None, "timm") else Path(source.weights)
    network, made = make_backbone(found, weights, config.run.seed)
    return MultiExit(network, made, (resolution,))
