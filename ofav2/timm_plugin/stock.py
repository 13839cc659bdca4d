"""An extracted sub-network as a stock timm MobileNetV3, where timm's blocks can express it.

timm's MobileNetV3 has a stem of stride 2, a row of inverted residuals, and one head. What OFAv2 adds to OFA, dense
skips that meet, parallel branches, a stem of stride 1 and several exits, has no counterpart there and is refused.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timm.models.mobilenetv3 import MobileNetV3, SqueezeExcite  # type: ignore[attr-defined]
from torch import Tensor, nn

from ofav2.deploy.agreement import require_same
from ofav2.deploy.artifact import load_subnet
from ofav2.errors import UserError
from ofav2.timm_plugin.model import single_exit, timm_cfg
from supernets import Architecture, Subnet, walk_blocks
from supernets.architecture import make_divisible

# timm's names of an inverted residual's layers; one without expansion is timm's depthwise-separable block.
_EXPANDED = (
    ("expand.", "conv_pw."),
    ("expand_norm.", "bn1."),
    ("depthwise.", "conv_dw."),
    ("depthwise_norm.", "bn2."),
    ("squeeze.reduce.", "se.conv_reduce."),
    ("squeeze.expand.", "se.conv_expand."),
    ("project.", "conv_pwl."),
    ("project_norm.", "bn3."),
)
_UNEXPANDED = (
    ("depthwise.", "conv_dw."),
    ("depthwise_norm.", "bn1."),
    ("squeeze.reduce.", "se.conv_reduce."),
    ("squeeze.expand.", "se.conv_expand."),
    ("project.", "conv_pw."),
    ("project_norm.", "bn2."),
)


def as_timm_mobilenetv3(subnet_dir: str | Path) -> nn.Module:
    """Return an extracted sub-network as timm's own `MobileNetV3`, in evaluation mode, with the same logits.

    All SE_B networks with a stem of stride 2 can be had so, and those of other supernets whose blocks are plain MBConvs
    in stages without dense sums.

    Args:
        subnet_dir: The folder that `ofav2 extract` wrote.

    Raises:
        UserError: If timm's blocks can't express the network; the message names the part.
        RunError: If the folder holds no extracted network, or the logits differ.
    """
    record = single_exit(subnet_dir)
    subnet, arch = record.subnet, record.architecture
    if not isinstance(arch, Architecture):
        raise _inexpressible(subnet_dir, f"it is a {arch.name}")
    _refuse(arch, subnet, subnet_dir)
    own = load_subnet(subnet_dir)
    model: nn.Module = _empty(arch, subnet)
    names = dict(_names(arch, subnet))
    model.load_state_dict({_renamed(name, names): tensor for name, tensor in own.state_dict().items()}, strict=True)
    model.eval()
    _check_logits(model, own, (arch.in_channels, subnet.resolution, subnet.resolution))
    cfg = timm_cfg(record) | {"architecture": "mobilenetv3", "first_conv": "conv_stem"}
    model.pretrained_cfg = model.default_cfg = cfg  # type: ignore[assignment]
    return model


def _refuse(arch: Architecture, subnet: Subnet, where: str | Path) -> None:
    for stage, block, choice in walk_blocks(subnet):
        if choice.level != ("mbconv",):
            part = f"block {block + 1} of stage {stage + 1} has the branches {', '.join(choice.level)}"
            raise _inexpressible(where, f"{part}, and timm's blocks the MBConv alone")
    for stage, depth in enumerate(subnet.depth):
        if arch.dense and depth > 2:
            raise _inexpressible(where, f"stage {stage + 1} sums dense skips over {depth} blocks")
    if arch.stem_stride != 2:
        raise _inexpressible(where, f"its stem has stride {arch.stem_stride}, and timm's stride 2")


def _inexpressible(where: str | Path, part: str) -> UserError:
    return UserError(
        f"sub-network ({where}) can't be a stock timm MobileNetV3: {part};"
        " timm.create_model('ofav2_subnet', subnet_dir=...) takes every network"
    )


def _empty(arch: Architecture, subnet: Subnet) -> MobileNetV3:
    """Return a network of timm's of this shape."""
    middle, last = arch.exit_channels(subnet.height)
    stem = {"block_type": "ds", "out_chs": arch.stem_channels, "stride": 1, "dw_kernel_size": 3}
    head = {"block_type": "cn", "out_chs": middle, "stride": 1, "kernel_size": 1, "act_layer": nn.Hardswish}
    stages = [
        [_block(arch, stage, block, *choice[:2]) for block, choice in enumerate(subnet.blocks(stage))]
        for stage in range(subnet.height)
    ]
    # timm draws fresh weights from torch's global generator; they are overwritten, so its state is put back.
    with torch.random.fork_rng(devices=()):
        return MobileNetV3(
            block_args=[[stem | {"act_layer": nn.ReLU}], *stages, [head]],
            num_classes=arch.num_classes,
            in_chans=arch.in_channels,
            stem_size=arch.stem_channels,
            fix_stem=True,
            num_features=last,
            head_bias=False,
            act_layer=nn.Hardswish,
            se_layer=partial(
                SqueezeExcite, gate_layer=nn.Hardsigmoid, force_act_layer=nn.ReLU, rd_round_fn=make_divisible
            ),
        )


def _block(arch: Architecture, stage: int, block: int, kernel: int | None, expand: int | None) -> dict[str, Any]:
    body = arch.stages[stage]
    settings: dict[str, Any] = {
        "out_chs": body.channels,
        "stride": body.stride if block == 0 else 1,
        "dw_kernel_size": kernel,
        "se_ratio": 0.25 if body.squeeze_excite else None,
        "act_layer": {"relu": nn.ReLU, "hardswish": nn.Hardswish}[body.activation],
    }
    if arch.expand == (1,):
        return settings | {"block_type": "ds"}
    return settings | {"block_type": "ir", "exp_ratio": float(expand or 1)}


def _names(arch: Architecture, subnet: Subnet) -> Iterator[tuple[str, str]]:
    """Our names of layers, with a final dot, and timm's."""
    own_exit, head = f"exits.{subnet.height}.", f"blocks.{subnet.height + 1}.0."
    yield from (("stem.conv.", "conv_stem."), ("stem.norm.", "bn1."))
    yield from ((f"first.{ours}", f"blocks.0.0.{theirs}") for ours, theirs in _UNEXPANDED)
    layers = _UNEXPANDED if arch.expand == (1,) else _EXPANDED
    for stage, block, _ in walk_blocks(subnet):
        for ours, theirs in layers:
            yield f"stages.{stage}.blocks.{block}.mbconv.{ours}", f"blocks.{stage + 1}.{block}.{theirs}"
    yield from ((f"{own_exit}widen.conv.", f"{head}conv."), (f"{own_exit}widen.norm.", f"{head}bn1."))
    yield from ((f"{own_exit}mix.", "conv_head."), (f"{own_exit}classifier.", "classifier."))


def _renamed(name: str, names: Mapping[str, str]) -> str:
    layer, _, tensor = name.rpartition(".")
    return names[f"{layer}."] + tensor


def _check_logits(model: nn.Module, own: nn.Module, shape: tuple[int, int, int]) -> None:
    images: Tensor = torch.randn((4, *shape), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        require_same([model(images)], [own(images)], "stock timm MobileNetV3")
