"""Attach exits to networks of timm (AEP): describe such a network, make it, and check its images and its weights."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.fx import GraphModule

from ofav2.errors import RunError, UserError
from ofav2.networks.behaviour import behaviour_of, same_behaviour
from ofav2.networks.exit_places import ExitPlaces, chosen_features, find_taps, listed_features, takes_any_size
from ofav2.networks.timm_models import (
    check_logits,
    check_name,
    create_model,
    image_shape,
    refusal,
    timm_version,
    traced,
    wrong_size,
)
from ofav2.networks.timm_weights import fitting_weights, load_weights
from ofav2.rng import Stream
from ofav2.runtime.device import seed_torch
from supernets import GraphError, SpaceError
from supernets.backbone import Backbone, HeadKind, Tap
from supernets.cost import graph_steps
from supernets.exit_heads import exit_head
from supernets.taps import attach


def attach_exits(
    name: str,
    *,
    classes: int,
    resolution: int,
    exits: ExitPlaces = "stages",
    weights: str | Path | None = None,
    channels: int = 3,
    head: HeadKind = "norm_linear",
    drop_rate: float = 0.0,
    seed: int = 0,
) -> GraphModule:
    """Make a timm network with early exits.

    The last exit is the network's own head, so the network itself stays timm's. Its modules keep their names, and an
    earlier exit k is the module `exits.k`.

    Args:
        name: Name in timm, with a weights tag if you like, such as `resnet18` or `resnet18.a1_in1k`.
        classes: Classes of every exit.
        resolution: Side of the square images in pixels; networks of a fixed size are made for it.
        exits: `stages`: an exit behind each stage, or behind each quarter of a network whose features have one size.
            Shares of its multiply-adds, such as `(0.25, 0.5)`, or numbers of timm's features from 1, such as `(2, 3)`;
            its own head is the exit behind the last feature in any case. A share is that of the nearest feature before
            the last one.
        weights: `timm` loads timm's pretrained weights, which may need a network connection; a path those of a
            .safetensors or .pth file; None leaves it untrained. Heads of other classes start anew, exits always.
        channels: Channels of the images.
        head: Heads of the attached exits, see `supernets.exit_heads.exit_head`.
        drop_rate: Dropout probability in the network's own head.
        seed: Seed of fresh weights.

    Returns:
        A `torch.fx` graph in evaluation mode: images (N, channels, H, W) -> a tuple of logits (N, classes), the
        earliest exit first.

    Raises:
        UserError: If an argument can't be used, exits can't be attached so, or the weights don't fit; the message says
            why.
    """
    found = describe_backbone(
        name, classes=classes, channels=channels, resolution=resolution, exits=exits, head=head, drop_rate=drop_rate
    )
    network, _ = make_backbone(found, weights, seed)
    return network


def describe_backbone(
    name: str, *, classes: int, channels: int, resolution: int, exits: ExitPlaces, head: HeadKind, drop_rate: float
) -> Backbone:
    """Find where exits of a network go, without making its weights; arguments and errors as for `attach_exits`.

    The result's `behaviour` is empty until the network is made.
    """
    bare = _bare(name, classes, channels, resolution, drop_rate, head, (Tap("", 1, "NCHW", 0, 1),))
    with torch.device("meta"):
        net = create_model(bare).eval()
    features = listed_features(net, name)
    chosen = chosen_features(net, bare, features, exits)
    taps = find_taps(net, bare, features, chosen)
    any_size = bare.any_size and takes_any_size(net, bare, taps)
    try:
        found = replace(bare, any_size=any_size, taps=taps)
        found.space((bare.resolution,))
    except SpaceError as error:
        raise UserError(str(error)) from error
    return found


def describe_plain(name: str, *, classes: int, channels: int, resolution: int, drop_rate: float) -> Backbone:
    """Describe a network of timm without attached exits: its own head is the only one.

    Args:
        name: As for `attach_exits`, and so are the others.
        classes: Classes.
        channels: Channels of the images.
        resolution: Side of the square images in pixels.
        drop_rate: Dropout probability in its head.

    Raises:
        UserError: If the name is unknown, a number can't be used, or the network can't look at such images.
    """
    bare = _bare(name, classes, channels, resolution, drop_rate, "norm_linear", ())
    with torch.device("meta"):
        net = create_model(bare).eval()
        check_logits(net, bare, torch.empty(2, *image_shape(bare)))
    traced(net, bare, ())
    return replace(bare, any_size=bare.any_size and takes_any_size(net, bare, ()))


def _bare(
    name: str, classes: int, channels: int, resolution: int, drop_rate: float, head: HeadKind, taps: tuple[Tap, ...]
) -> Backbone:
    """Check what is given of a network, and describe it as far as that goes without making it."""
    any_size = not check_name(name)
    classes, channels, resolution, drop_rate = map(_plain, (classes, channels, resolution, drop_rate))
    try:
        return Backbone(name, classes, channels, resolution, any_size, drop_rate, head, taps, ())
    except SpaceError as error:
        raise UserError(str(error)) from error


def _plain(number: Any) -> Any:
    """Return a number of numpy as Python's own, which a record can hold; all else as it is."""
    return number.item() if isinstance(number, np.generic) else number


def make_backbone(arch: Backbone, weights: str | Path | None = None, seed: int = 0) -> tuple[GraphModule, Backbone]:
    """Make a network with exits.

    Args:
        arch: What it is; with a `behaviour`, the network must have it.
        weights: As for `attach_exits`.
        seed: Seed of fresh weights.

    Returns:
        The network in evaluation mode, and what it is with its behaviour.

    Raises:
        UserError: If the network can't be made, overflows with weights of ordinary size, or the weights don't fit.
        RunError: If timm makes another network of that name than it was.
    """
    check_name(arch.name)
    # Networks draw their first weights from torch's own generator.
    with torch.random.fork_rng(devices=()):
        seed_torch(Stream(seed, "network"), 0)
        network = trace_backbone(arch, weights)
    behaviour = behaviour_of(network, arch)
    if arch.behaviour and not same_behaviour(arch.behaviour, behaviour):
        raise RunError(
            f"timm {timm_version()} makes another network of the name {arch.name} than the one that was trained:"
            " install the version that the record's versions name"
        )
    return network, replace(arch, behaviour=arch.behaviour or behaviour)


def trace_backbone(arch: Backbone, weights: str | Path | None = None) -> GraphModule:
    """Return a network with exits in evaluation mode; fresh weights come from torch's generator.

    On the meta device it has none, as for pricing.
    """
    net = create_model(arch, pretrained=weights == "timm").eval()
    heads = [exit_head(arch.head, tap.channels, arch.num_classes) for tap in arch.taps]
    if weights not in (None, "timm"):
        load_weights(net, arch, Path(str(weights)).expanduser())
    try:
        network = attach(net, arch.taps, heads, None if arch.any_size else image_shape(arch)).eval()
    except GraphError as error:
        raise refusal(arch.name, str(error)) from error
    for module in network.modules():
        # Each has a hook of its own, so that networks that are taken out of this one forget, too.
        if type(module).train is not nn.Module.train:
            module.register_load_state_dict_post_hook(_forget)
    return network


def _forget(module: nn.Module, _: object) -> None:
    """Drop what a module keeps of other weights: some of timm's keep attention biases from evaluation to evaluation."""
    mode = module.training
    module.train()
    module.train(mode)


def check_sizes(arch: Backbone, resolutions: Sequence[int]) -> None:
    """Check that a network takes images of these sizes: some networks take two, and none between them.

    Raises:
        UserError: If it doesn't; the message names the first one.
    """
    with torch.device("meta"):
        network = trace_backbone(arch)
    for side in resolutions:
        try:
            graph_steps(network, (arch.in_channels, side, side))
        except (RuntimeError, AssertionError, GraphError) as error:
            raise wrong_size(arch.name, side, error) from error


def check_weights(arch: Backbone, weights: str | Path | None) -> None:
    """Check that a network's weights can be had, and fit it; its own classes may be any.

    Args:
        arch: The network.
        weights: As for `attach_exits`.

    Raises:
        UserError: If not.
    """
    if weights == "timm":
        # Only loading them shows that the hub, or its cache, has them.
        create_model(arch, pretrained=True)
    elif weights is not None:
        with torch.device("meta"):
            net = create_model(arch)
        fitting_weights(net, arch, Path(weights).expanduser())
