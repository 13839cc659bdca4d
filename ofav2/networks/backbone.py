"""Make timm's networks, and attach exits to them (AEP). Of the packages below `timm_plugin`, the only one with timm."""

import copy
import difflib
import logging
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

import distill
from ofav2.errors import RunError, UserError
from ofav2.messages import one_line, short, show, typed_line
from ofav2.rng import Stream
from ofav2.runtime.device import seed_torch
from supernets import GraphError, SpaceError
from supernets.backbone import MOST_EXITS, Backbone, HeadKind, Tap
from supernets.cost import graph_steps
from supernets.exit_heads import exit_head
from supernets.graphs import split
from supernets.taps import AmbiguousLayoutError, Output, attach, find_outputs, layout_of, tap_values, trace

logger = logging.getLogger(__name__)

ExitPlaces = str | Sequence[float]
"""`stages`, or shares of the network's multiply-adds, or numbers of timm's features: behind which there is an exit."""

LEAST_STRIDE = 4
"""Input pixels per pixel of features from which on `stages` has exits; stems, and VGG's first blocks, have fewer."""
SAME = 1e-3
"""Largest difference of two networks' behaviour, as a share: rounding alone makes less."""


@dataclass(frozen=True)
class Features:
    """One entry of timm's list of a network's features."""

    module: str
    """Module whose output they are."""
    reduction: int
    """Input pixels per pixel of theirs."""


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
            its own head comes after them in any case.
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
        UserError: If the name is unknown, exits can't be attached so, or the weights don't fit; the message says why.
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
    fixed = _check_name(name)
    bare = Backbone(name, classes, channels, resolution, not fixed, drop_rate, head, (Tap("", 1, "NCHW", 0, 1),), ())
    with torch.device("meta"):
        net = _create(bare).eval()
    features = _features(net, name)
    chosen = _chosen_features(net, bare, features, exits)
    taps = _taps(net, bare, features, chosen)
    any_size = bare.any_size and _any_size(net, bare, taps)
    try:
        found = replace(bare, any_size=any_size, taps=taps)
        found.space((resolution,))
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
        UserError: If the name is unknown, or the network can't look at such images.
    """
    fixed = _check_name(name)
    bare = Backbone(name, classes, channels, resolution, not fixed, drop_rate, "norm_linear", (), ())
    with torch.device("meta"):
        net = _create(bare).eval()
        _check_logits(net, bare, torch.empty(2, channels, resolution, resolution))
    _traced(net, bare, ())
    return replace(bare, any_size=bare.any_size and _any_size(net, bare, ()))


def own_input(name: str) -> tuple[int, tuple[float, ...], tuple[float, ...]]:
    """Return what timm's weights of a network were trained on: side of the images, mean and standard deviation.

    Raises:
        UserError: If timm knows no network of that name.
    """
    _check_name(name)
    import timm

    about = timm.get_pretrained_cfg(name) or timm.models.PretrainedCfg()
    return about.input_size[-1], tuple(about.mean), tuple(about.std)


def make_backbone(arch: Backbone, weights: str | Path | None = None, seed: int = 0) -> tuple[GraphModule, Backbone]:
    """Make a network with exits.

    Args:
        arch: What it is; with a `behaviour`, the network must have it.
        weights: As for `attach_exits`.
        seed: Seed of fresh weights.

    Returns:
        The network in evaluation mode, and what it is with its behaviour.

    Raises:
        UserError: If the network can't be made, or the weights don't fit.
        RunError: If timm makes another network of that name than it was.
    """
    _check_name(arch.name)
    # Networks draw their first weights from torch's own generator.
    with torch.random.fork_rng(devices=()):
        seed_torch(Stream(seed, "network"), 0)
        network = trace_backbone(arch, weights)
    behaviour = _behaviour(network, arch)
    if arch.behaviour and not _same(arch.behaviour, behaviour):
        raise RunError(
            f"timm {_version()} makes another network of the name {arch.name} than the one that was trained: install"
            " the version that the record's versions name"
        )
    return network, replace(arch, behaviour=arch.behaviour or behaviour)


def trace_backbone(arch: Backbone, weights: str | Path | None = None) -> GraphModule:
    """Return a network with exits in evaluation mode; fresh weights come from torch's generator.

    On the meta device it has none, as for pricing.
    """
    net = _create(arch, pretrained=weights == "timm").eval()
    heads = [exit_head(arch.head, tap.channels, arch.num_classes) for tap in arch.taps]
    if weights not in (None, "timm"):
        _load(net, arch, Path(str(weights)))
    try:
        network = attach(net, arch.taps, heads, None if arch.any_size else _shape(arch)).eval()
    except GraphError as error:
        raise _refusal(arch.name, str(error)) from error
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


def check_size(arch: Backbone, resolution: int) -> None:
    """Check that a network takes images of a size.

    Raises:
        UserError: If it doesn't.
    """
    with torch.device("meta"):
        network = trace_backbone(arch)
    try:
        graph_steps(network, (arch.in_channels, resolution, resolution))
    except (RuntimeError, AssertionError, GraphError) as error:
        raise _too_small(arch.name, resolution, error) from error


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
        _create(arch, pretrained=True)
    elif weights is not None:
        with torch.device("meta"):
            net = _create(arch)
        _fitting(net, arch, Path(weights))


def _check_name(name: str) -> bool:
    """Return whether a network of timm takes images of one size alone.

    Raises:
        UserError: If there is none of that name.
    """
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


def _version() -> str:
    import timm

    version: str = timm.__version__
    return version


def _create(arch: Backbone, pretrained: bool = False) -> nn.Module:
    import timm

    options: dict[str, Any] = {"num_classes": arch.num_classes, "in_chans": arch.in_channels}
    if arch.drop_rate:
        options["drop_rate"] = arch.drop_rate
    if _check_name(arch.name):
        options["img_size"] = arch.resolution
    try:
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
        raise _refusal(arch.name, typed_line(error)) from error
    return net


def _check_only_size(arch: Backbone) -> None:
    import timm

    about = timm.get_pretrained_cfg(arch.name)
    side = about.input_size[-1] if about else arch.resolution
    if arch.resolution != side:
        raise UserError(f"resolution ({arch.resolution}) is not the one that {arch.name} is made for: use {side}")


def _features(net: nn.Module, name: str) -> tuple[Features, ...]:
    listed: Any = getattr(net, "feature_info", None)
    if not listed or not hasattr(net, "forward_intermediates"):
        raise _refusal(name, "timm lists no features of it")
    entries = getattr(listed, "info", listed)
    return tuple(Features(entry["module"], entry["reduction"]) for entry in entries)


def _chosen_features(
    net: nn.Module, arch: Backbone, features: Sequence[Features], exits: ExitPlaces
) -> tuple[int, ...]:
    """Return the indices of the features behind which there are exits; the own head follows the last feature."""
    if isinstance(exits, str):
        if exits != "stages":
            raise UserError(
                f"exits ({show(exits)}) must be stages, shares such as [0.25,0.5], or numbers such as [2,3]"
            )
        indices = _stage_ends(features)
    else:
        indices = _listed(net, arch, features, exits)
    chosen = tuple(index for index in indices if index < len(features) - 1)
    if not chosen:
        raise UserError(f"exits ({show(exits)}) leave {arch.name} with its own head alone: name an earlier one")
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
    values = list(exits) if isinstance(exits, Sequence) else []
    numeric = all(
        isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) for value in values
    )
    if not values or not numeric or values != sorted(set(values)):
        raise UserError(f"exits ({short(show(values))}) must be ascending numbers, each once, such as [2,3]")
    if all(0 < value < 1 for value in values):
        return _by_share(net, arch, features, values)
    for value in values:
        if value != int(value) or not 1 <= value <= len(features):
            raise UserError(
                f"exits ({show(value)}) is no feature of {arch.name}: it has those from 1 to {len(features)}, or give"
                " shares between 0 and 1"
            )
    return tuple(int(value) - 1 for value in values)


def _by_share(net: nn.Module, arch: Backbone, features: Sequence[Features], shares: Sequence[float]) -> tuple[int, ...]:
    """Return the features that come nearest to shares of the network's multiply-adds."""
    taps = _taps(net, arch, features, range(len(features)))
    macs, total = dict.fromkeys((tap.module for tap in taps), 0), 0
    for step in graph_steps(_traced(net, arch, tuple(macs)), _shape(arch)):
        total += step.macs
        if step.name in macs:
            macs[step.name] = total
    reached = [macs[tap.module] / total for tap in taps]
    indices = [min(range(len(reached)), key=lambda index: abs(reached[index] - share)) for share in shares]
    if len(set(indices)) < len(indices):
        raise UserError(
            f"exits ({show(list(shares))}) fall on the same features of {arch.name}, which come at"
            f" {', '.join(f'{value:.2f}' for value in reached)}: give other shares"
        )
    return tuple(indices)


def _taps(net: nn.Module, arch: Backbone, features: Sequence[Features], chosen: Sequence[int]) -> tuple[Tap, ...]:
    """Return where exits read features.

    Args:
        net: The network on the meta device.
        arch: What it is.
        features: What timm lists.
        chosen: Indices of the features behind which there are exits.

    Raises:
        UserError: If no module gives a feature, or the forward can't be traced with these modules as nodes.
    """
    images = torch.empty(2, *_shape(arch), device="meta")
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
        net = _create(arch).eval()
        images = torch.rand(1, *_shape(arch), generator=torch.Generator().manual_seed(0))
        _randomise(net)
    maps = _maps(net, arch, images)
    found: dict[int, Output] = {}
    for index, output in zip(chosen, find_outputs(net, images, [maps[index] for index in chosen]), strict=True):
        if output is None:
            raise _refusal(
                arch.name, f"none of its modules gives the features that timm calls {features[index].module}"
            )
        found[index] = output
    try:
        taps = _read(net, arch, images, maps, features, found)
    except GraphError as error:
        raise _refusal(arch.name, str(error)) from error
    if taps is None:
        raise _refusal(arch.name, "its graph computes other features than timm does")
    _check_same(net, arch, taps, images)
    return taps


def _check_same(net: nn.Module, arch: Backbone, taps: Sequence[Tap], images: Tensor) -> None:
    """Check that a network's own head gives the same logits with exits: a module may have changed what it was given."""
    with torch.device("cpu"), torch.random.fork_rng(devices=()):
        heads = [exit_head(arch.head, tap.channels, arch.num_classes).eval() for tap in taps]
    with torch.no_grad():
        expected = net(images)
        try:
            same = torch.equal(attach(net, taps, heads, _shape(arch))(images)[-1], expected)
        except GraphError as error:
            raise _refusal(arch.name, str(error)) from error
    if not same:
        raise _refusal(arch.name, "its graph computes other logits than timm does")


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
    values = tap_values(trace(net, modules, _shape(arch)), modules, images)
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
            tensor.copy_(_scaled(name, 2 * torch.rand(tensor.shape, generator=generator) - 1))


def _traced(net: nn.Module, arch: Backbone, modules: Sequence[str]) -> GraphModule:
    try:
        return trace(net, modules, _shape(arch))
    except GraphError as error:
        raise _refusal(arch.name, str(error)) from error


def _maps(net: nn.Module, arch: Backbone, images: Tensor) -> list[Tensor]:
    """Return a network's features as timm gives them, (N, C, H, W).

    Raises:
        UserError: If it can't look at the images, or returns no logits of classes.
    """
    _check_logits(net, arch, images)
    forward: Any = net.forward_intermediates
    with _looking(arch):
        maps: list[Tensor] = forward(images, output_fmt="NCHW", intermediates_only=True)
    return maps


def _check_logits(net: nn.Module, arch: Backbone, images: Tensor) -> None:
    with _looking(arch):
        logits = net(images)
    if not isinstance(logits, Tensor) or logits.shape != (len(images), arch.num_classes):
        raise _refusal(arch.name, "it returns no logits of classes")


@contextmanager
def _looking(arch: Backbone) -> Iterator[None]:
    """Run a network's own code, without gradients; its errors become the user's."""
    try:
        with torch.no_grad():
            yield
    except (RuntimeError, AssertionError) as error:
        if "on meta tensors" in str(error):
            raise _refusal(arch.name, "its forward decides by numbers, so it is no graph") from error
        raise _too_small(arch.name, arch.resolution, error) from error
    except Exception as error:
        # Each model of timm has code of its own, with errors of its own.
        raise _refusal(arch.name, typed_line(error)) from error


def _any_size(net: nn.Module, arch: Backbone, taps: Sequence[Tap]) -> bool:
    """Return whether a graph for any size is as good as one for a single size: images leave it early, too.

    Args:
        net: The network on the meta device; exits are attached to it.
        arch: What it is.
        taps: Where they read features.
    """
    images = torch.empty(2, *_shape(arch), device="meta")
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


def _shape(arch: Backbone) -> tuple[int, int, int]:
    return arch.in_channels, arch.resolution, arch.resolution


def _load(net: nn.Module, arch: Backbone, path: Path) -> None:
    """Load the weights of a file; classifiers of other classes start anew."""
    found, expected = _fitting(net, arch, path), net.state_dict()
    net.load_state_dict({name: expected[name] if name in found.fresh else found.state[name] for name in expected})
    if found.renamed:
        logger.info(f"weights ({path}) have other names than timm's: their shapes agree, so they are taken in order")
    if found.fresh:
        logger.info(f"weights ({path}): {', '.join(sorted(found.fresh))} have other classes and start anew")


@dataclass(frozen=True)
class _Fitting:
    """Weights of a file that fit a network."""

    state: Mapping[str, Tensor]
    """The tensors, under the network's names."""
    fresh: Collection[str]
    """Those of classifiers of other classes."""
    renamed: bool
    """Whether the file has other names."""


def _fitting(net: nn.Module, arch: Backbone, path: Path) -> _Fitting:
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
        raise UserError(f"weights ({path}) don't fit {arch.name}: {short(first)} {kind}; name the network of the file")
    for name, tensor in state.items():
        if not tensor.isfinite().all():
            raise UserError(f"weights ({path}) have values in {short(name)} that are not finite: take another file")
    return _Fitting(state, fresh, renamed=state.keys() != given.keys())


def _renamed(
    state: Mapping[str, Tensor], expected: Mapping[str, Tensor], resized: Collection[str]
) -> dict[str, Tensor]:
    """Return a state with a network's names; with other ones, tensors are taken in their order if all shapes agree.

    Args:
        state: What the file holds.
        expected: The network's own state.
        resized: Tensors that may have another number of classes, their first dimension.
    """
    agree = len(state) == len(expected) and all(
        given.shape[name in resized :] == own.shape[name in resized :]
        for given, (name, own) in zip(state.values(), expected.items(), strict=True)
    )
    if state.keys() == expected.keys() or not agree:
        return dict(state)
    return dict(zip(expected, state.values(), strict=True))


def _behaviour(network: GraphModule, arch: Backbone) -> tuple[float, ...]:
    """Return the first logit of each exit, of a fixed image and fixed weights; the network keeps its own."""
    # Not torch.func.functional_call: of a layer with several names it leaves the fixed weights behind.
    network = copy.deepcopy(network)
    side = arch.resolution
    images = _spread(arch.in_channels * side**2).reshape(1, arch.in_channels, side, side)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            tensor.copy_(_fixed(name, tensor))
        outputs = network(images)
    # A record holds finite numbers only.
    return tuple(float(output[0, 0].nan_to_num()) for output in outputs)


def _fixed(name: str, tensor: Tensor) -> Tensor:
    """Return a weight's fixed value: of the size that keeps activations near one; statistics as they start."""
    if not tensor.is_floating_point() or name.endswith("running_mean"):
        return torch.zeros_like(tensor) if name.endswith("running_mean") else tensor
    if name.endswith("running_var"):
        return torch.ones_like(tensor)
    return _scaled(name, _spread(tensor.numel()).reshape(tensor.shape))


def _scaled(name: str, values: Tensor) -> Tensor:
    """Scale numbers of [-1, 1) to weights that keep activations near one."""
    if values.ndim <= 1:
        return 0.1 * values + (1.0 if name.endswith("weight") else 0.0)
    return values * (3 / max(1, values.numel() // values.shape[0])) ** 0.5


def _spread(count: int) -> Tensor:
    """Return numbers spread over [-1, 1), by whole-number arithmetic that all machines share."""
    period = 2**16
    values = (torch.arange(period) * 40503 % period).float() / (period / 2) - 1
    return values.repeat(-(-count // period))[:count]


def _same(before: Sequence[float], now: Sequence[float]) -> bool:
    scale = max(map(abs, before))
    return len(before) == len(now) and all(abs(a - b) <= SAME * scale for a, b in zip(before, now, strict=True))


def _refusal(name: str, reason: str) -> UserError:
    return UserError(f"network ({name}) can't be used here: {one_line(reason)}; choose another")


def _too_small(name: str, resolution: int, error: Exception) -> UserError:
    return UserError(
        f"resolution ({resolution}) is none that {name} can look at ({typed_line(error)}): use larger images, or"
        " another network"
    )
