"""Load an external teacher: a timm network, with weights from a file or timm's own."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from distill.errors import DistillError, near, shown

if TYPE_CHECKING:
    from timm.models import PretrainedCfg

_PREFIX = "timm:"
_GREY = 1


def external_teacher(name: str, *, classes: int, channels: int, checkpoint: str | None) -> nn.Module:
    """Return a timm network as teacher: in eval mode, without gradients, on the CPU.

    The weights must have been trained for exactly these classes, because a classifier that starts anew would teach
    noise. A checkpoint's class count is read from its classifier. timm's own weights are refused by their metadata,
    before anything is downloaded. Of timm's own weights, the input may be the channels they were trained on, or one
    grey channel (the first convolution's weights are summed, which is the same as feeding grey as colour).

    torch's global random state is left as it was.

    Args:
        name: timm's name with the prefix `timm:`, as `timm:resnet18` or, with a weights tag, `timm:resnet18.a1_in1k`.
        classes: Number of classes of the data.
        channels: Number of channels of the images.
        checkpoint: Weights file of that network, `.safetensors` or `.pth`, holding its state dict (a `.pth` may have
            it under `state_dict` or `model`); loaded without running code. None takes timm's pretrained weights.

    Returns:
        A module from images (N, channels, height, width) to logits (N, classes).

    Raises:
        DistillError: The name is unknown, the classes or channels do not fit, the file is missing, foreign or
            damaged, or timm's weights cannot be had.
    """
    assert classes >= 1, f"classes ({classes})"
    assert channels >= 1, f"channels ({channels})"
    model, weights = _known(name)
    if checkpoint is None:
        network = _pretrained(model, weights, classes, channels)
    else:
        network = _from_file(model, Path(checkpoint), classes, channels)
    return network.eval().requires_grad_(False)


def _known(name: str) -> tuple[str, "PretrainedCfg | None"]:
    """Return timm's name of the network, and what timm says about its pretrained weights, if it has any."""
    if not name.startswith(_PREFIX):
        raise DistillError(f"external teacher ({shown(name)}) must start with {_PREFIX}; write timm:resnet18, say")
    # timm takes seconds to import, which only runs with an external teacher should pay for.
    import timm

    model = name.removeprefix(_PREFIX)
    architecture = model.split(".", 1)[0]
    architectures = timm.list_models()
    if architecture not in architectures:
        raise DistillError(
            f"external teacher ({shown(name)}) names no network of timm {timm.__version__}"
            f"{near(architecture, architectures)}; timm.list_models() lists them"
        )
    try:
        return model, timm.get_pretrained_cfg(model)
    except RuntimeError as error:
        tagged = ", ".join(timm.list_models(f"{architecture}.*", pretrained=True)) or "none"
        raise DistillError(
            f"external teacher ({shown(name)}) names weights that timm {timm.__version__} lacks; "
            f"use {_PREFIX}{architecture}, or one with weights: {tagged}"
        ) from error


def _pretrained(model: str, weights: "PretrainedCfg | None", classes: int, channels: int) -> nn.Module:
    if weights is None or not weights.has_weights:
        raise DistillError(
            f"external teacher ('timm:{model}') has no pretrained weights in timm; give a checkpoint file"
        )
    if weights.num_classes != classes:
        raise DistillError(
            f"external teacher ('timm:{model}') was trained by timm on {weights.num_classes} classes and the data has "
            f"{classes}; give a checkpoint file of it trained on these classes"
        )
    if channels not in (_GREY, weights.input_size[0]):
        raise DistillError(
            f"external teacher ('timm:{model}') was trained by timm on {weights.input_size[0]} channels and the images "
            f"have {channels}; give a checkpoint file of it trained on these channels"
        )
    try:
        return _built(model, classes, channels, pretrained=True)
    except Exception as error:
        # Between here and the weights lie a hub client, a network and a cache, each with errors of its own.
        raise DistillError(
            f"external teacher ('timm:{model}'): timm could not load its weights ({_first_line(error)}); "
            "check the network connection, or give a checkpoint file"
        ) from error


def _from_file(model: str, path: Path, classes: int, channels: int) -> nn.Module:
    state = read_state_dict(path, "teacher checkpoint")
    network = _built(model, classes, channels, pretrained=False)
    _check_classes(state, network, path, model, classes)
    _check_fits(state, network.state_dict(), path, model, channels)
    network.load_state_dict(dict(state))
    _check_finite(network, path)
    return network


def _built(model: str, classes: int, channels: int, *, pretrained: bool) -> nn.Module:
    import timm

    # timm initialises from the global generator, even what it then overwrites.
    with torch.random.fork_rng(devices=()):
        network: nn.Module = timm.create_model(model, pretrained=pretrained, num_classes=classes, in_chans=channels)
    return network


def read_state_dict(path: Path, what: str) -> Mapping[str, Tensor]:
    """Read the state dict of a network from a file, without running code.

    Args:
        path: A `.safetensors` or `.pth` file; a `.pth` may have the state dict under `state_dict` or `model`.
        what: What messages call the file.

    Raises:
        DistillError: If the file is missing, damaged, or holds something else.
    """
    if path.suffix not in (".safetensors", ".pth"):
        raise DistillError(f"{what} ({path}) must end in .safetensors or .pth; save the state dict as one of them")
    if not path.is_file():
        raise DistillError(f"{what} ({path}) must be a file, and there is none; check the path")
    try:
        content: object = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except Exception as error:
        # Damaged bytes make the readers fail in every way there is; refused code ends here too, and what torch says to
        # it is how to run that code after all, which must not reach the user.
        raise DistillError(
            f"{what} ({path}) cannot be read ({type(error).__name__}), because it is damaged or holds more "
            "than plain weights; save the network's state_dict() again, nothing else beside it"
        ) from error
    return _state_dict(content, path, what)


def _state_dict(content: object, path: Path, what: str) -> Mapping[str, Tensor]:
    if isinstance(content, Mapping):
        content = content.get("state_dict", content.get("model", content))
    if not isinstance(content, Mapping) or not content:
        raise DistillError(f"{what} ({path}) must hold a state dict; save the network's state_dict()")
    for name, value in content.items():
        if not _is_plain(value):
            raise DistillError(
                f"{what} ({path}) must hold plain, dense tensors only, which {shown(name)} is not; "
                "save the network's state_dict(), nothing else beside it"
            )
    return content


def _is_plain(value: object) -> bool:
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and not (value.is_complex() or value.is_quantized or value.is_meta or value.is_nested)
    )


def _check_classes(state: Mapping[str, Tensor], network: nn.Module, path: Path, model: str, classes: int) -> None:
    for name in _classifiers(network):
        if name not in state or state[name].ndim == 0:
            raise DistillError(
                f"teacher checkpoint ({path}) has no {name}, the classifier of {model}; "
                f"give a file of a {model} with its classifier, or name the network that the file is of"
            )
        if len(state[name]) != classes:
            raise DistillError(
                f"teacher checkpoint ({path}) was trained on {len(state[name])} classes and the data has {classes}; "
                "give a teacher trained on these classes"
            )


def _classifiers(network: nn.Module) -> tuple[str, ...]:
    about = getattr(network, "pretrained_cfg", None) or {}
    layers = about.get("classifier") or ()
    return tuple(f"{layer}.weight" for layer in ((layers,) if isinstance(layers, str) else layers))


def _check_fits(
    state: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: Path, model: str, channels: int
) -> None:
    missing = [name for name in expected if name not in state]
    foreign = [name for name in state if name not in expected]
    misfit = [name for name in expected if name in state and state[name].shape != expected[name].shape]
    faults = [f"lacks {len(missing)} of {len(expected)} tensors ({missing[0]}, ...)"] if missing else []
    faults += [f"has {len(foreign)} foreign ones ({foreign[0]}, ...)"] if foreign else []
    faults += [
        f"{name} has shape {tuple(state[name].shape)} instead of {tuple(expected[name].shape)}" for name in misfit[:1]
    ]
    if faults:
        raise DistillError(
            f"teacher checkpoint ({path}) does not fit {model} for images of {channels} channels: {', '.join(faults)}; "
            "name the network that the file is of"
        )


def _check_finite(network: nn.Module, path: Path) -> None:
    for name, tensor in network.state_dict().items():
        if not tensor.isfinite().all():
            raise DistillError(
                f"teacher checkpoint ({path}) has values that are not finite in {name}; take another one"
            )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:120]}" if lines else type(error).__name__
