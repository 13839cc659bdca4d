"""Make networks of timm, and turn their errors into the user's.

Of the packages below `timm_plugin`, this module alone has timm.
"""

import difflib
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from ofav2.errors import UserError
from ofav2.messages import one_line, short, show, typed_line
from supernets import GraphError
from supernets.backbone import Backbone
from supernets.space import shown
from supernets.taps import trace


def check_name(name: str) -> bool:
    """Return whether a network of timm takes images of one size alone.

    Raises:
        UserError: If there is none of that name.
    """
    if not isinstance(name, str):
        raise UserError(f"network ({shown(name)}) must be a name in timm, such as resnet18")
    # timm takes seconds to import, which only networks of its own should pay for.
    import timm

    known, architecture = timm.list_models(), name.split(".", 1)[0]
    if architecture not in known:
        near = difflib.get_close_matches(architecture, known, 3)
        hint = f"did you mean {' or '.join(near)}?" if near else "timm.list_models() lists them"
        raise UserError(f"network ({short(show(name))}) is unknown to timm {timm.__version__}: {hint}")
    try:
        about = timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        tagged = ", ".join(timm.list_models(f"{architecture}.*", pretrained=True)) or "none"
        raise UserError(f"network ({show(name)}) names weights that timm lacks: use one of {short(tagged)}") from error
    return bool(about and about.fixed_input_size)


def own_input(name: str) -> tuple[int, tuple[float, ...], tuple[float, ...]]:
    """Return what timm's weights of a network were trained on: side of the images, mean and standard deviation.

    Raises:
        UserError: If timm knows no network of that name.
    """
    check_name(name)
    import timm

    about = timm.get_pretrained_cfg(name) or timm.models.PretrainedCfg()
    return about.input_size[-1], tuple(about.mean), tuple(about.std)


def timm_version() -> str:
    """Return the version of timm that is installed."""
    import timm

    version: str = timm.__version__
    return version


def create_model(arch: Backbone, pretrained: bool = False) -> nn.Module:
    """Make a network without attached exits.

    Args:
        arch: What it is.
        pretrained: Whether it has timm's weights; else fresh ones of torch's generator.

    Raises:
        UserError: If timm can't make it so, or its weights can't be had.
    """
    import timm

    options: dict[str, Any] = {"num_classes": arch.num_classes, "in_chans": arch.in_channels}
    if arch.drop_rate:
        options["drop_rate"] = arch.drop_rate
    if check_name(arch.name):
        options["img_size"] = arch.resolution
    try:
        with _quiet_hub():
            try:
                net: nn.Module = timm.create_model(arch.name, pretrained=pretrained, **options)
            except TypeError as error:
                if "img_size" not in str(error):
                    raise
                del options["img_size"]
                net = timm.create_model(arch.name, pretrained=pretrained, **options)
                _check_only_size(arch)
    except UserError:
        raise
    except Exception as error:
        # Beyond this call lie a hub client, a network, a cache and each model's own code, with errors of their own.
        if pretrained:
            raise UserError(
                f"weights (timm) of {arch.name} can't be loaded ({typed_line(error)}): check the network connection,"
                " or give a file"
            ) from error
        raise refusal(arch.name, typed_line(error)) from error
    return net


@contextmanager
def _quiet_hub() -> Iterator[None]:
    """Hold back the hub client's warnings of retries, a page of them: an error follows if the last one fails."""
    retries = logging.getLogger("huggingface_hub.utils._http")
    before = retries.level
    retries.setLevel(logging.ERROR)
    try:
        yield
    finally:
        retries.setLevel(before)


def _check_only_size(arch: Backbone) -> None:
    import timm

    about = timm.get_pretrained_cfg(arch.name)
    side = about.input_size[-1] if about else arch.resolution
    if arch.resolution != side:
        raise UserError(f"resolution ({arch.resolution}) is not the one that {arch.name} is made for: use {side}")


def image_shape(arch: Backbone) -> tuple[int, int, int]:
    """Return the shape of an image that a network is described for: channels, height, width."""
    return arch.in_channels, arch.resolution, arch.resolution


def traced(net: nn.Module, arch: Backbone, modules: Sequence[str]) -> GraphModule:
    """Return a network as a graph in which some modules are nodes.

    Raises:
        UserError: If its forward is no graph.
    """
    try:
        return trace(net, modules, image_shape(arch))
    except GraphError as error:
        raise refusal(arch.name, str(error)) from error


def check_logits(net: nn.Module, arch: Backbone, images: Tensor) -> None:
    """Check that a network can look at images (N, C, H, W), and returns logits of its classes.

    Raises:
        UserError: If not.
    """
    with looking(arch):
        logits = net(images)
    if not isinstance(logits, Tensor) or logits.shape != (len(images), arch.num_classes):
        raise refusal(arch.name, "it returns no logits of classes")


@contextmanager
def looking(arch: Backbone) -> Iterator[None]:
    """Run a network's own code, without gradients; its errors become the user's."""
    try:
        with torch.no_grad():
            yield
    except (RuntimeError, AssertionError) as error:
        if "on meta tensors" in str(error):
            raise refusal(arch.name, "its forward decides by numbers, so it is no graph") from error
        raise wrong_size(arch.name, arch.resolution, error) from error
    except Exception as error:
        # Each model of timm has code of its own, with errors of its own.
        raise refusal(arch.name, typed_line(error)) from error


def refusal(name: str, reason: str) -> UserError:
    """Return the error of a network that can't be used, for a reason."""
    return UserError(f"network ({name}) can't be used here: {one_line(reason)}; choose another")


def wrong_size(name: str, resolution: int, error: Exception) -> UserError:
    """Return the error of a network that failed at images of a size."""
    return UserError(
        f"resolution ({resolution}) is none that {name} can look at ({typed_line(error)}): use larger images, or"
        " another size, or another network"
    )
