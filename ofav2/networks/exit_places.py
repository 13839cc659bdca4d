"""Find where exits of a network go: which of timm's features they read, and which modules give these."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ofav2.errors import UserError
from ofav2.messages import show
from ofav2.networks.behaviour import scaled
from ofav2.networks.timm_models import check_logits, create_model, image_shape, looking, refusal, traced
from supernets import GraphError
from supernets.backbone import MOST_EXITS, Backbone, Tap
from supernets.cost import graph_steps
from supernets.exit_heads import exit_head
from supernets.graphs import split
from supernets.space import shown
from supernets.taps import AmbiguousLayoutError, Output, attach, find_outputs, layout_of, tap_values, trace

ExitPlaces = str | Sequence[float]
"""`stages`, or shares of the network's multiply-adds, or numbers of timm's features: behind which there is an exit."""

LEAST_STRIDE = 4
"""Input pixels per pixel of features from which on `stages` has exits; stems, and VGG's first blocks, have fewer."""


@dataclass(frozen=True)
class Features:
    """One entry of timm's list of a network's features."""

    module: str
    """Module whose output they are."""
    reduction: int
    """Input pixels per pixel of theirs."""


def listed_features(net: nn.Module, name: str) -> tuple[Features, ...]:
    """Return the features that timm lists of a network.

    Raises:
        UserError: If it lists none.
    """
    listed: Any = getattr(net, "feature_info", None)
    if not listed or not hasattr(net, "forward_intermediates"):
        raise refusal(name, "timm lists no features of it")
    entries = getattr(listed, "info", listed)
    return tuple(Features(entry["module"], entry["reduction"]) for entry in entries)


def chosen_features(net: nn.Module, arch: Backbone, features: Sequence[Features], exits: ExitPlaces) -> tuple[int, ...]:
    """Return the indices of the features behind which there are exits; the own head follows the last feature."""
    if len(features) < 2:
        raise refusal(arch.name, "timm lists one feature of it, behind which is its own head")
    if isinstance(exits, str):
        if exits != "stages":
            raise UserError(
                f"exits ({show(exits)}) must be stages, shares such as [0.25,0.5], or numbers such as [2,3]"
            )
        chosen = _stage_ends(features)[:-1]
    else:
        chosen = _listed(net, arch, features, exits)
    if len(chosen) >= MOST_EXITS:
        raise UserError(f"exits ({len(chosen) + 1} with the network's own) must be at most {MOST_EXITS}: name fewer")
    return chosen


def _stage_ends(features: Sequence[Features]) -> tuple[int, ...]:
    """Return the last features of each size, or of each quarter of the network where all have one size."""
    count = len(features)
    if len({feature.reduction for feature in features}) == 1:
        return tuple(sorted({-(-count * quarter // 4) - 1 for quarter in (1, 2, 3, 4)}))
    ends = tuple(i for i in range(count) if i == count - 1 or features[i].reduction != features[i + 1].reduction)
    late = tuple(i for i in ends if features[i].reduction >= LEAST_STRIDE)
    return late if len(late) > 1 else ends


def _listed(net: nn.Module, arch: Backbone, features: Sequence[Features], exits: Sequence[float]) -> tuple[int, ...]:
    values = _numbers(exits)
    if not values or values != sorted(set(values)):
        raise UserError(f"exits ({shown(values or exits)}) must be ascending numbers, each once, such as [2,3]")
    if all(0 < value < 1 for value in values):
        return _by_share(net, arch, features, values)
    if values == [len(features)]:
        raise UserError(f"exits ({shown(values)}) leave {arch.name} with its own head alone: name an earlier one")
    for value in values:
        if not isinstance(value, int) or not 1 <= value < len(features):
            raise UserError(
                f"exits ({shown(value)}) must be whole numbers from 1 to {len(features) - 1}, {arch.name}'s features"
                " before the last one, or shares between 0 and 1: its own head is the last exit in any case"
            )
    return tuple(int(value) - 1 for value in values)


def _numbers(exits: Any) -> list[float]:
    """Return numbers as Python's own, whole ones as such; none of what holds something else or is endless."""
    values = exits.tolist() if isinstance(exits, np.ndarray) else exits
    numeric = isinstance(values, Sequence) and all(
        isinstance(value, Real) and not isinstance(value, bool) for value in values
    )
    if not numeric or not all(-math.inf < value < math.inf for value in values):
        return []
    return [int(value) if value == int(value) else float(value) for value in values]


def _by_share(net: nn.Module, arch: Backbone, features: Sequence[Features], shares: Sequence[float]) -> tuple[int, ...]:
    """Return the features, of those before the last one, that come nearest to shares of the network's multiply-adds."""
    taps = find_taps(net, arch, features, range(len(features) - 1))
    macs, total = dict.fromkeys((tap.module for tap in taps), 0), 0
    for step in graph_steps(traced(net, arch, tuple(macs)), image_shape(arch)):
        total += step.macs
        if step.name in macs:
            macs[step.name] = total
    reached = [macs[tap.module] / total for tap in taps]
    indices = [min(range(len(reached)), key=lambda index: abs(reached[index] - share)) for share in shares]
    if len(set(indices)) < len(indices):
        raise UserError(
            f"exits ({shown(list(shares))}) fall on the same features of {arch.name}: those before its last one come at"
            f" {', '.join(f'{value:.2f}' for value in reached)}, give shares near different ones"
        )
    return tuple(indices)


def find_taps(net: nn.Module, arch: Backbone, features: Sequence[Features], chosen: Sequence[int]) -> tuple[Tap, ...]:
    """Return where exits read features.

    Args:
        net: The network on the meta device.
        arch: What it is.
        features: What timm lists.
        chosen: Indices of the features behind which there are exits.

    Raises:
        UserError: If no module gives a feature, or the forward can't be traced with these modules as nodes.
    """
    images = torch.empty(2, *image_shape(arch), device="meta")
    maps = _maps(net, arch, images)
    try:
        taps = _read(net, arch, images, maps, features, {index: Output(features[index].module) for index in chosen})
    except (GraphError, AmbiguousLayoutError):
        taps = None
    return taps or _found_taps(arch, features, chosen)


def _found_taps(arch: Backbone, features: Sequence[Features], chosen: Sequence[int]) -> tuple[Tap, ...]:
    """Return the same where names and shapes don't tell, by the numbers that modules give for random weights."""
    # The caller may make tensors on the meta device; and torch's own generator is left as it was.
    with torch.device("cpu"), torch.random.fork_rng(devices=()):
        net = create_model(arch).eval()
        images = torch.rand(1, *image_shape(arch), generator=torch.Generator().manual_seed(0))
        _randomise(net)
    maps = _maps(net, arch, images)
    found: dict[int, Output] = {}
    for index, output in zip(chosen, find_outputs(net, images, [maps[index] for index in chosen]), strict=True):
        if output is None:
            raise refusal(arch.name, f"none of its modules gives the features that timm calls {features[index].module}")
        found[index] = output
    try:
        taps = _read(net, arch, images, maps, features, found)
    except GraphError as error:
        raise refusal(arch.name, str(error)) from error
    if taps is None:
        raise refusal(arch.name, "its graph computes other features than timm does")
    _check_same(net, arch, taps, images)
    return taps


def _check_same(net: nn.Module, arch: Backbone, taps: Sequence[Tap], images: Tensor) -> None:
    """Check that a network's own head gives the same logits with exits: a module may have changed what it was given."""
    with torch.device("cpu"), torch.random.fork_rng(devices=()):
        heads = [exit_head(arch.head, tap.channels, arch.num_classes).eval() for tap in taps]
    with torch.no_grad():
        expected = net(images)
        try:
            same = torch.equal(attach(net, taps, heads, image_shape(arch))(images)[-1], expected)
        except GraphError as error:
            raise refusal(arch.name, str(error)) from error
    if not same:
        raise refusal(arch.name, "its graph computes other logits than timm does")


def _read(
    net: nn.Module,
    arch: Backbone,
    images: Tensor,
    maps: Sequence[Tensor],
    features: Sequence[Features],
    outputs: Mapping[int, Output],
) -> tuple[Tap, ...] | None:
    """Return taps that read outputs of modules, by the index of their feature; None if these are other features.

    Raises:
        GraphError: If the forward can't be traced with these modules as nodes.
        AmbiguousLayoutError: If the shapes of meta tensors allow several layouts.
    """
    modules = [output.module for output in outputs.values()]
    values = tap_values(trace(net, modules, image_shape(arch)), modules, images)
    taps = []
    for index, output in outputs.items():
        layout = layout_of(output.of(values[output.module]), maps[index])
        if layout is None:
            return None
        reduction = features[index].reduction
        taps.append(Tap(output.module, maps[index].shape[1], *layout, reduction, output.item, output.items))
    return tuple(taps)


def _randomise(net: nn.Module) -> None:
    """Give every weight random numbers, so that no two features are the same, as those of blocks that begin at 0."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in net.state_dict().items():
        if tensor.is_floating_point() and not name.endswith(("running_mean", "running_var")):
            tensor.copy_(scaled(name, 2 * torch.rand(tensor.shape, generator=generator) - 1))


def _maps(net: nn.Module, arch: Backbone, images: Tensor) -> list[Tensor]:
    """Return a network's features as timm gives them, (N, C, H, W).

    Raises:
        UserError: If it can't look at the images, or returns no logits of classes.
    """
    check_logits(net, arch, images)
    forward: Any = net.forward_intermediates
    with looking(arch):
        maps: list[Tensor] = forward(images, output_fmt="NCHW", intermediates_only=True)
    return maps


def takes_any_size(net: nn.Module, arch: Backbone, taps: Sequence[Tap]) -> bool:
    """Return whether a graph for any size is as good as one for a single size: images leave it early, too.

    Args:
        net: The network on the meta device; exits are attached to it.
        arch: What it is.
        taps: Where they read features.
    """
    images = torch.empty(2, *image_shape(arch), device="meta")
    with torch.device("meta"):
        heads = [exit_head(arch.head, tap.channels, arch.num_classes) for tap in taps]
    try:
        network = attach(net, taps, heads)
    except GraphError:
        return False
    try:
        parts = split(network)
    except GraphError:
        # Nor would a graph for a single size be split.
        return True
    values: Sequence[Any] = (images,)
    with torch.no_grad():
        for part in parts:
            _, *values = part(*values)
            if not all(isinstance(value, Tensor) and len(value) == len(images) for value in values):
                return False
    return True
