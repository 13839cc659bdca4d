"""Build the network that a recipe, or a record, describes: a supernet, or a network with exits."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from typing import Any

import torch

import supernets
from ofav2.config.schema import Config
from ofav2.errors import UserError
from supernets import Architecture, SpaceError, Supernet
from supernets.backbone import AnyArchitecture, Backbone
from supernets.multi_exit import MultiExit, Network

_SOME_CLASSES = 2
"""Classes of a network that is looked at before the data are known."""


def build_network(arch: AnyArchitecture, resolutions: tuple[int, ...], seed: int = 0) -> Network:
    """Return a network of an architecture, with fresh weights.

    Args:
        arch: The architecture.
        resolutions: Image sides in pixels that its space offers.
        seed: Seed of the weights.

    Raises:
        RunError: If timm makes another network of that name than the architecture describes.
    """
    if isinstance(arch, Architecture):
        return build_supernet(arch, resolutions, seed)
    # Reading a supernet's network back must need neither timm nor numpy.
    from ofav2.networks.backbone import make_backbone

    network, made = make_backbone(arch, seed=seed)
    return MultiExit(network, made, resolutions)


def without_memory(arch: AnyArchitecture) -> AbstractContextManager[object]:
    """Return a context in which a network is built that `checkpoint.fill` fills; a supernet takes no memory in it.

    timm's networks compute numbers while they are built, and take their memory at once.
    """
    return torch.device("meta") if isinstance(arch, Architecture) else nullcontext()


def build_supernet(arch: Architecture, resolutions: tuple[int, ...], seed: int = 0) -> Supernet:
    """Return a supernet of an architecture, with fresh weights; arguments as for `build_network`."""
    return supernets.create(
        arch.variant,
        num_classes=arch.num_classes,
        width_mult=arch.width_mult,
        kernel=arch.kernel,
        expand=arch.expand,
        depth=arch.depth,
        resolutions=resolutions,
        stem_stride=arch.stem_stride,
        in_channels=arch.in_channels,
        head_width=arch.head_width,
        seed=seed,
    )


def check_network(config: Config, channels: int) -> None:
    """Check the settings of a network with exits, which takes no data; a supernet's are checked as it is made.

    Args:
        config: The recipe.
        channels: Channels of the images.

    Raises:
        UserError, SpaceError: If one is impossible; the message names it.
    """
    if config.network.kind == "supernet":
        return
    # Supernets are trained without timm, which takes seconds to import.
    from ofav2.networks.backbone import check_sizes, check_weights

    found, sides = _described(config, _SOME_CLASSES, channels), config.data.resolutions
    found.space(sides)
    check_sizes(found, sides)
    check_weights(found, config.network.weights)


def with_own_input(config: Config) -> Config:
    """Return a recipe whose pictures are normalised as timm's weights expect, if it starts from those and says no more.

    Raises:
        UserError: If timm knows no network of that name.
    """
    network, data = config.network, config.data
    if network.kind == "supernet" or network.weights != "timm" or data.name == "patches":
        return config
    if not (data.mean is None and data.std is None):
        return config
    from ofav2.networks.timm_models import own_input

    assert network.name, "the recipe was checked"
    _, mean, std = own_input(network.name)
    return replace(config, data=replace(data, mean=mean, std=std))


def recipe_network(config: Config, *, outputs: int, channels: int, dense: bool = False) -> Network:
    """Return the network of a recipe and its data, with the weights that it starts from.

    Args:
        config: The recipe; of a network with exits, one that `check_network` has seen.
        outputs: Outputs of every exit.
        channels: Channels of the images.
        dense: Whether every pixel has outputs.

    Raises:
        UserError, SpaceError: If a setting is impossible; the message names it.
    """
    if config.network.kind == "supernet":
        options = supernet_options(config, outputs=outputs, channels=channels, dense=dense)
        net = supernets.create(config.supernet.variant, **options)
        try:
            net.space = net.space.keeping(config.supernet.keep)
        except SpaceError as error:
            raise UserError(f"supernet.{error}") from error
        return net
    if dense:
        raise UserError(
            f"network.kind (timm): exits of timm's networks have no dense heads, which task {config.task} needs: set it"
            " to supernet"
        )
    from ofav2.networks.backbone import make_backbone

    network, made = make_backbone(_described(config, outputs, channels), config.network.weights, config.run.seed)
    return MultiExit(network, made, config.data.resolutions)


def _described(config: Config, outputs: int, channels: int) -> Backbone:
    from ofav2.networks.backbone import describe_backbone

    wanted = config.network
    assert wanted.name, "the recipe was checked"
    return describe_backbone(
        wanted.name,
        classes=outputs,
        channels=channels,
        resolution=max(config.data.resolutions),
        exits=wanted.exits,
        head=wanted.head,
        drop_rate=wanted.drop_rate,
    )


def with_classes(arch: AnyArchitecture, classes: int) -> AnyArchitecture:
    """Return an architecture with another number of classes."""
    if isinstance(arch, Architecture):
        return replace(arch, num_classes=classes)
    # Its behaviour is that of its classifiers, too.
    return replace(arch, num_classes=classes, behaviour=())


def supernet_options(config: Config, *, outputs: int, channels: int, dense: bool = False) -> dict[str, Any]:
    """Return keyword arguments of `supernets.create` for a recipe and its data."""
    own = ("variant", "init", "frozen", "keep")
    options = {name: value for name, value in asdict(config.supernet).items() if name not in own}
    return {
        **options,
        "num_classes": outputs,
        "in_channels": channels,
        "head_width": config.supernet.head_width if dense else None,
        "resolutions": config.data.resolutions,
        "seed": config.run.seed,
    }
