"""Load the original OFA MobileNetV3 supernet (mit-han-lab, ICLR 2020) into SE_B, which has the same layers."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from supernets.architecture import BODY, STEM_CHANNELS, make_divisible
from supernets.mobilenetv3 import Supernet
from supernets.space import SpaceError

# OFA's names, after its wrappers' doubled parts are taken out, against ours; the first pattern that fits is used.
_RENAMES = (
    (r"first_conv\.conv\.(.+)", r"stem.conv.\1"),
    (r"first_conv\.bn\.(.+)", r"stem.norm.\1"),
    (r"blocks\.0\.conv\.(.+)", r"first.\1"),
    (r"final_expand_layer\.conv\.(.+)", r"exits.5.widen.conv.\1"),
    (r"final_expand_layer\.bn\.(.+)", r"exits.5.widen.norm.\1"),
    (r"feature_mix_layer\.conv\.(.+)", r"exits.5.mix.\1"),
    (r"classifier\.linear\.(.+)", r"exits.5.classifier.\1"),
)
_PARTS = (
    ("inverted_bottleneck.conv.", "expand."),
    ("inverted_bottleneck.bn.", "expand_norm."),
    ("depth_conv.se.fc.reduce.", "squeeze.reduce."),
    ("depth_conv.se.fc.expand.", "squeeze.expand."),
    ("depth_conv.conv.", "depthwise."),
    ("depth_conv.bn.", "depthwise_norm."),
    ("point_linear.conv.", "project."),
    ("point_linear.bn.", "project_norm."),
)


def load_ofa_state_dict(net: Supernet, state: Mapping[str, Tensor]) -> None:
    """Load a state dict of OFA's `OFAMobileNetV3` supernet, as the package has it or as its official checkpoints do.

    Args:
        net: An SE_B supernet with the same width, kernels, expansion ratios, depths and classes.
        state: The state dict, or the mapping under a checkpoint's key `state_dict`.

    Raises:
        SpaceError: If the supernet is no SE_B, or a tensor is missing, unknown or of another shape; the message names
            it. The supernet is left as it was.
    """
    if net.architecture.variant != "se_b":
        raise SpaceError(f"variant ({net.architecture.variant}) can't hold OFA weights: create 'se_b'")
    blocks = net.architecture.blocks
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise SpaceError(
                f"{name} is no tensor of an OFA MobileNetV3 supernet: give the mapping of names to tensors"
            )
        if name.endswith("num_batches_tracked"):
            continue
        renamed[_our_name(name, blocks)] = tensor
    own = net.state_dict()
    for name, tensor in own.items():
        if name not in renamed:
            raise SpaceError(f"{name} has no counterpart in the OFA state dict: is it a MobileNetV3 supernet's?")
        if renamed[name].shape != tensor.shape:
            raise SpaceError(
                f"{name} has shape {tuple(renamed[name].shape)} in the OFA state dict, here {tuple(tensor.shape)}:"
                " create the supernet with the checkpoint's width, kernels, expansion ratios, depths and classes"
            )
    for name in renamed:
        if name not in own:
            raise SpaceError(f"{name} of the OFA state dict does not fit here: the checkpoint has more choices")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(renamed[name])


def infer_ofa_options(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the options of the OFA supernet that a state dict belongs to, as keyword arguments of `create`.

    Args:
        state: The state dict, or the mapping under a checkpoint's key `state_dict`.

    Returns:
        `num_classes`, `in_channels`, `width_mult` and `kernel`; and `expand` and `depth` with their largest choice
        alone, since the smaller ones leave no trace in the weights.

    Raises:
        SpaceError: If the tensors are no OFA MobileNetV3 supernet's; the message names the first that shows it.
    """
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise SpaceError(
                f"{name!r} is no tensor of an OFA MobileNetV3 supernet: give the mapping of names to tensors"
            )
    numbered = [int(found[1]) for found in (re.match(r"blocks\.(\d{1,4})\.", name) for name in state) if found]
    blocks, rest = divmod(max(numbered, default=0), len(BODY))
    if blocks == 0 or rest:
        raise SpaceError(
            f"the OFA state dict has {max(numbered, default=0)} blocks after the first:"
            f" an OFA MobileNetV3 supernet has {len(BODY)} stages of equal depth"
        )
    shapes = {_our_name(name, blocks): tuple(tensor.shape) for name, tensor in state.items()}
    classes, last = _shape(shapes, "exits.5.classifier.weight", 2)
    stem, in_channels, _, _ = _shape(shapes, "stem.conv.weight", 4)
    widths = [_shape(shapes, f"stages.{stage}.blocks.0.mbconv.project.weight", 4)[0] for stage in range(len(BODY))]
    kernel = _shape(shapes, "stages.0.blocks.0.mbconv.depthwise.weight", 4)[-1]
    matrices = (re.match(r"stages\.0\.blocks\.0\.mbconv\.depthwise\.matrices\.\d+to(\d+)$", name) for name in shapes)
    hidden = _shape(shapes, f"stages.{len(BODY) - 1}.blocks.{blocks - 1}.mbconv.project.weight", 4)[1]
    inputs = widths[-1] if blocks > 1 else widths[-2]
    return {
        "num_classes": classes,
        "in_channels": in_channels,
        "width_mult": _width_mult([stem, *widths, last]),
        "kernel": tuple(sorted({kernel, *(int(found[1]) for found in matrices if found)})),
        "expand": (max(1, round(hidden / inputs)),),
        "depth": (blocks,),
    }


def _shape(shapes: Mapping[str, tuple[int, ...]], name: str, dimensions: int) -> tuple[int, ...]:
    if name not in shapes:
        raise SpaceError(f"{name} has no counterpart in the OFA state dict: is it a MobileNetV3 supernet's?")
    if len(shapes[name]) != dimensions or 0 in shapes[name]:
        raise SpaceError(f"{name} has shape {shapes[name]} in the OFA state dict: is it a MobileNetV3 supernet's?")
    return shapes[name]


def _width_mult(channels: Sequence[int]) -> float:
    """Return the multiplier with the fewest decimals that gives stem, stages and last layer these channels."""
    bases = (STEM_CHANNELS, *(row[0] for row in BODY), 8 * BODY[-1][0])
    for step in (1.0, 0.1, 0.05, 0.01):
        for count in range(1, round(10 / step) + 1):
            width = round(count * step, 2)
            if all(make_divisible(base * width) == found for base, found in zip(bases, channels, strict=True)):
                return width
    raise SpaceError(
        f"channels of the OFA state dict ({', '.join(map(str, channels))}) fit no width multiplier:"
        " is it a MobileNetV3 supernet's?"
    )


def _our_name(name: str, blocks: int) -> str:
    plain = name.replace(".mobile_inverted_conv.", ".conv.").replace(".bn.bn.", ".bn.")
    plain = plain.replace(".conv.conv.", ".conv.").replace(".linear.linear.", ".linear.")
    for part, ours in _PARTS:
        plain = plain.replace(part, ours)
    plain = re.sub(r"depthwise\.(\d+to\d+)_matrix$", r"depthwise.matrices.\1", plain)
    for pattern, ours in _RENAMES:
        if re.fullmatch(pattern, plain):
            return re.sub(pattern, ours, plain)
    found = re.fullmatch(r"blocks\.(\d+)\.conv\.(.+)", plain)
    if not found:
        raise SpaceError(f"{name} is no tensor of an OFA MobileNetV3 supernet")
    stage, block = divmod(int(found[1]) - 1, blocks)
    return f"stages.{stage}.blocks.{block}.mbconv.{found[2]}"
