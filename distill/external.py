"""Load an external teacher: a timm network, with weights from a file or timm's own.

Images come normalised as the student's are. The teacher was trained on images normalised in its own way, so they are
rescaled per channel in front of it.
"""

import os.path
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from distill.errors import DistillError, near, shown
from distill.state_files import is_plain, read_torch_file

if TYPE_CHECKING:
    from timm.models import PretrainedCfg

_PREFIX = "timm:"
_GREY = 1
# How ImageNet, of all sizes, calls its classes: numbers of WordNet.
_WORDNET = re.compile(r"n\d{8}", re.ASCII)


@dataclass(frozen=True)
class Normalisation:
    """How pixels in 0..1 become a network's input: (pixel - mean) / std, per channel."""

    mean: tuple[float, ...]
    """Means."""
    std: tuple[float, ...]
    """Standard deviations."""

    def __post_init__(self) -> None:
        """Check that there are as many of both."""
        assert len(self.mean) == len(self.std), f"mean {self.mean}, std {self.std}"


@dataclass(frozen=True)
class TeacherFile:
    """A file with the weights of a teacher, and what it does not say itself."""

    path: Path
    """`.safetensors` or `.pth`, holding the network's state dict (a `.pth` may have it under `state_dict` or `model`);
    loaded without running code."""
    normalisation: Normalisation
    """How the images were normalised that it was trained on, a number per channel."""


def external_teacher(
    name: str, *, classes: Sequence[str] | int, images: Normalisation, file: TeacherFile | None
) -> nn.Module:
    """Return a timm network as teacher: in eval mode, without gradients, on the CPU.

    The weights must have been trained for exactly these classes, because a classifier that starts anew would teach
    noise. A checkpoint's class count is read from its classifier. timm's own weights are refused by their metadata,
    before anything is downloaded; so is another order of the classes, where timm knows their names. Of timm's own
    weights, the input may be the channels they were trained on, or one grey channel, which they are given as colour.

    torch's global random state is left as it was.

    Args:
        name: timm's name with the prefix `timm:`, as `timm:resnet18` or, with a weights tag, `timm:resnet18.a1_in1k`.
        classes: Names of the data's classes in the order of the logits, or their number where they have no names.
        images: How the images are normalised that it will be given.
        file: Weights of that network; None takes timm's pretrained ones.

    Returns:
        A module from images (N, channels, height, width), normalised as `images` says, to logits (N, classes).

    Raises:
        DistillError: The name is unknown, the classes or channels do not fit, the file is missing, foreign or
            damaged, or timm's weights cannot be had.
    """
    names = () if isinstance(classes, int) else tuple(classes)
    count = classes if isinstance(classes, int) else len(names)
    assert count >= 1, f"classes ({classes})"
    model, weights = _known(name)
    if file is None:
        network, own = _pretrained(model, weights, count, names, len(images.mean))
    else:
        network, own = _from_file(model, file, count, len(images.mean)), file.normalisation
    # The same normalisation leaves the network's own arithmetic.
    teacher = network if own == images else _Rescaled(network, images, own)
    return teacher.eval().requires_grad_(False)


class _Rescaled(nn.Module):
    """A network that is given images of another normalisation than its own; grey ones, where its own are colour.

    Args:
        network: The network.
        given: How the images are normalised that it is given: as many channels as its own has, or one.
        own: How the images are normalised that it was trained on.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, network: nn.Module, given: Normalisation, own: Normalisation) -> None:
        super().__init__()
        mean, std, own_mean, own_std = (
            torch.tensor(values, dtype=torch.float64).view(1, -1, 1, 1)
            for values in (given.mean, given.std, own.mean, own.std)
        )
        self.network = network
        self.register_buffer("scale", (std / own_std).float())
        self.register_buffer("shift", ((mean - own_mean) / own_std).float())

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) -> logits (N, classes)."""
        logits: Tensor = self.network(images * self.scale + self.shift)
        return logits


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


def _pretrained(
    model: str, weights: "PretrainedCfg | None", classes: int, names: Sequence[str], channels: int
) -> tuple[nn.Module, Normalisation]:
    if weights is None or not weights.has_weights:
        raise DistillError(
            f"external teacher ('timm:{model}') has no pretrained weights in timm; give a checkpoint file"
        )
    if weights.num_classes != classes:
        raise DistillError(
            f"external teacher ('timm:{model}') was trained by timm on {weights.num_classes} classes and the data has "
            f"{classes}; give a checkpoint file of it trained on these classes"
        )
    _check_order(model, weights, names)
    inputs = weights.input_size[0]
    if channels not in (_GREY, inputs):
        raise DistillError(
            f"external teacher ('timm:{model}') was trained by timm on {inputs} channels and the images have "
            f"{channels}; give a checkpoint file of it trained on these channels"
        )
    own = Normalisation(tuple(weights.mean), tuple(weights.std))
    if len(own.mean) != inputs:
        raise DistillError(
            f"external teacher ('timm:{model}') has {inputs} channels, and timm means of {len(own.mean)}; "
            "give a checkpoint file of it"
        )
    try:
        return _built(model, classes, inputs, pretrained=True), own
    except Exception as error:
        # Between here and the weights lie a hub client, a network and a cache, each with errors of its own.
        raise DistillError(
            f"external teacher ('timm:{model}'): timm could not load its weights ({_first_line(error)}); "
            "check the network connection, or give a checkpoint file"
        ) from error


def _check_order(model: str, weights: "PretrainedCfg", names: Sequence[str]) -> None:
    """Refuse weights whose classes are others, or in another order, as far as timm knows their names."""
    known = _class_names(weights)
    comparable = set(known) & set(names) or all(map(_WORDNET.fullmatch, names))
    if len(known) != len(names) or not comparable:
        return
    differing = [pair for pair in zip(names, known, strict=True) if pair[0] != pair[1]]
    if differing:
        ours, theirs = differing[0]
        raise DistillError(
            f"external teacher ('timm:{model}') was trained by timm on other classes, or in another order: class "
            f"{names.index(ours)} of the data is {shown(ours)}, and its own is {shown(theirs)}; give a checkpoint file "
            "of it trained on these classes"
        )


def _class_names(weights: "PretrainedCfg") -> tuple[str, ...]:
    """Return the names of the classes that weights were trained on, in the order of the logits; none if unknown."""
    from timm.data import ImageNetInfo, infer_imagenet_subset  # type: ignore[attr-defined]

    if isinstance(weights.label_names, list | tuple):
        return tuple(weights.label_names)
    subset = infer_imagenet_subset({"num_classes": weights.num_classes})
    return tuple(ImageNetInfo(subset).label_names()) if subset else ()


def _from_file(model: str, file: TeacherFile, classes: int, channels: int) -> nn.Module:
    own = len(file.normalisation.mean)
    if own != channels:
        raise DistillError(
            f"teacher checkpoint ({file.path}): its mean and std have {own} numbers and the images {channels} "
            "channels; give one number per channel"
        )
    state = read_state_dict(file.path, "teacher checkpoint")
    # On the meta device first: a network that the file does not fit takes no memory.
    with torch.device("meta"):
        described = _built(model, classes, channels, pretrained=False)
    _check_classes(state, described, file.path, model, classes)
    _check_fits(state, described.state_dict(), file.path, model, channels)
    network = _built(model, classes, channels, pretrained=False)
    network.load_state_dict(dict(state))
    _check_finite(network, file.path)
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
    # Unlike pathlib's, this takes a name that no file can have for a missing file. A pipe is none, either.
    if not os.path.isfile(path):
        raise DistillError(f"{what} ({path}) must be a file, and there is none; check the path")
    try:
        content: object = load_file(path) if path.suffix == ".safetensors" else read_torch_file(path)
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
        if not is_plain(value):
            raise DistillError(
                f"{what} ({path}) must hold plain, dense tensors only, which {shown(name)} is not; "
                "save the network's state_dict(), nothing else beside it"
            )
    return content


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
