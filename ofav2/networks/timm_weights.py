"""Read the weights of a network of timm from a file, whatever names and classes it has."""

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

import distill
from ofav2.errors import UserError
from ofav2.messages import short
from supernets.backbone import Backbone

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fitting:
    """Weights of a file that fit a network."""

    state: Mapping[str, Tensor]
    """The tensors, under the network's names."""
    fresh: Collection[str]
    """Those of classifiers of other classes."""
    renamed: bool
    """Whether the file has other names."""


def load_weights(net: nn.Module, arch: Backbone, path: Path) -> None:
    """Load the weights of a file; classifiers of other classes start anew."""
    found, expected = fitting_weights(net, arch, path), net.state_dict()
    net.load_state_dict({name: expected[name] if name in found.fresh else found.state[name] for name in expected})
    if found.renamed:
        logger.info(f"weights ({path}) have other names than timm's: their shapes agree, so they are taken in order")
    if found.fresh:
        logger.info(f"weights ({path}): {', '.join(sorted(found.fresh))} have other classes and start anew")


def fitting_weights(net: nn.Module, arch: Backbone, path: Path) -> Fitting:
    """Read a file's weights, and check that they fit a network; its own classes may be any.

    Raises:
        UserError: If not.
    """
    try:
        given = distill.read_state_dict(path, "weights")
    except distill.DistillError as error:
        raise UserError(str(error)) from error
    expected = net.state_dict()
    about: Any = getattr(net, "pretrained_cfg", None) or {}
    layers = about.get("classifier") or ()
    heads = (layers,) if isinstance(layers, str) else tuple(layers)
    resized = {name for name in expected if name.rpartition(".")[0] in heads}
    state = _renamed(given, expected, resized)
    other = [name for name in state if name in expected and state[name].shape != expected[name].shape]
    fresh = {name for name in other if name in resized and state[name].shape[1:] == expected[name].shape[1:]}
    wrong = [name for name in other if name not in fresh]
    missing, foreign = [n for n in expected if n not in state], [n for n in state if n not in expected]
    if wrong or missing or foreign:
        first = (wrong or missing or foreign)[0]
        kind = "has another shape" if wrong else "is missing" if missing else "is foreign"
        raise UserError(
            f"weights ({path}) don't fit {arch.name}: {short(first)} {kind}; name the network of the file, or give its"
            " tensors timm's names"
        )
    for name, tensor in state.items():
        if not tensor.isfinite().all():
            raise UserError(f"weights ({path}) have values in {short(name)} that are not finite: take another file")
    return Fitting(state, fresh, renamed=state.keys() != given.keys())


def _renamed(
    state: Mapping[str, Tensor], expected: Mapping[str, Tensor], resized: Collection[str]
) -> dict[str, Tensor]:
    """Return a state with a network's names; with other ones, tensors are taken in their order if all shapes agree.

    Shapes don't tell blocks of one kind apart, so names that both have must stand at the same positions, too.

    Args:
        state: What the file holds.
        expected: The network's own state.
        resized: Tensors that may have another number of classes, their first dimension.
    """
    agree = len(state) == len(expected) and all(
        (named == name or named not in expected) and given.shape[name in resized :] == own.shape[name in resized :]
        for (named, given), (name, own) in zip(state.items(), expected.items(), strict=True)
    )
    if state.keys() == expected.keys() or not agree:
        return dict(state)
    return dict(zip(expected, state.values(), strict=True))
