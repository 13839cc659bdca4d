"""Wrap an extracted sub-network as a timm model."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from timm.models import FeatureInfo, PretrainedCfg
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.nn import functional

from ofav2.deploy.artifact import SubnetRecord, describe_subnet, load_subnet
from ofav2.errors import UserError
from supernets import Architecture
from supernets.backbone import Backbone
from supernets.ensembles import JOINED, fold_classifiers


class TimmSubnet(nn.Module):
    """A network in timm's three parts: features, head up to the classifier, classifier.

    As in timm's own MobileNetV3, features end before the pooling, and the convolution after it belongs to the head. A
    pruned network with several exits has one classifier on the joined features of all exits, which are pooled already.

    Args:
        features: Images (N, C, H, W) -> features (N, num_features, h, w), or (N, num_features) of several exits.
        head: Features -> what the classifier reads (N, head_hidden_size).
        classifier: The network's own.
        num_features: Channels of the features.
        cfg: timm's description of the network: `pretrained_cfg`, also known as `default_cfg`.
        drop_rate: Dropout probability before the classifier.
    """

    def __init__(
        self,
        features: nn.Module,
        head: nn.Module,
        classifier: nn.Linear,
        *,
        num_features: int,
        cfg: Mapping[str, Any],
        drop_rate: float,
    ) -> None:
        super().__init__()
        self.features = features
        self.head = head
        self.classifier: nn.Module = classifier
        self.pretrained_cfg = self.default_cfg = dict(cfg)
        self.in_chans = int(cfg["input_size"][0])
        self.num_classes = classifier.out_features
        self.head_hidden_size = classifier.in_features
        self.num_features = num_features
        self.drop_rate = drop_rate

    def forward_features(self, images: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, num_features, h, w), or (N, num_features) of several exits."""
        features: Tensor = self.features(images)
        return features

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Features -> logits (N, classes), or (N, head_hidden_size) with `pre_logits`."""
        x = functional.dropout(self.head(features), self.drop_rate, self.training)
        return x if pre_logits else self.classifier(x)

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) -> logits (N, classes)."""
        return self.forward_head(self.forward_features(images))

    def get_classifier(self) -> nn.Module:
        """Return the last layer."""
        return self.classifier

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a new classifier in: small weights, always the same ones; identity for 0 classes.

        Args:
            num_classes: Its classes.
            global_pool: None or `avg`.

        Raises:
            UserError: If there are less than 0 classes, or another pooling is requested.
        """
        if global_pool not in (None, "avg"):
            raise UserError(f"global_pool ({global_pool!r}) must be avg: the head is made for it")
        if num_classes < 0:
            raise UserError(f"num_classes ({num_classes}) must be 0 (no classifier) or more")
        reference = next(self.parameters())
        self.num_classes = num_classes
        self.classifier = _classifier(self.head_hidden_size, num_classes).to(reference).train(self.training)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Refuses gradient checkpointing, which these networks, small as they are, do not have.

        Raises:
            UserError: If it is turned on.
        """
        if enable:
            raise UserError("gradient checkpointing (on) is not there for ofav2_subnet: leave it off")


class TimmFeatures(nn.Module):
    """A network up to its last stage, as timm's backbones are: `features_only=True`.

    Args:
        features: Images (N, C, H, W) -> a tuple of features (N, c, h, w).
        info: What they are, and which of them it returns.
        cfg: timm's description of the network.
    """

    def __init__(self, features: nn.Module, info: FeatureInfo, cfg: Mapping[str, Any]) -> None:
        super().__init__()
        self.features = features
        self.feature_info = info
        self.pretrained_cfg = self.default_cfg = dict(cfg)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(N, C, H, W) -> features (N, c, h, w), in the order of `out_indices`."""
        return list(self.features(images))


def open_subnet(directory: str | Path, drop_rate: float, overlay: Mapping[str, Any]) -> TimmSubnet:
    """Read an extracted sub-network as a timm model.

    Args:
        directory: The folder that `ofav2 extract` wrote.
        drop_rate: Dropout probability before the classifier.
        overlay: Entries of timm's description to replace.

    Raises:
        RunError: If the folder holds no extracted network.
        UserError: If the network returns the logits of several exits, and has no weights for their ensemble.
    """
    record = describe_subnet(directory)
    if record.ensemble is not None:
        return _folded(load_subnet(directory), record, record.ensemble, overlay, drop_rate)
    record = single_exit(directory)
    if isinstance(record.architecture, Backbone):
        return _folded(load_subnet(directory), record, (1.0,), overlay, drop_rate)
    features, head, classifier = _split(load_subnet(directory), record.subnet.height)
    channels = next(layer for layer in head.modules() if isinstance(layer, nn.Conv2d)).in_channels
    cfg = timm_cfg(record) | dict(overlay)
    return TimmSubnet(features, head, classifier, num_features=channels, cfg=cfg, drop_rate=drop_rate)


def open_features(
    directory: str | Path, out_indices: int | Sequence[int] | None, overlay: Mapping[str, Any]
) -> TimmFeatures:
    """Read an extracted sub-network as a backbone: images -> its features after the stem and after each stage.

    Args:
        directory: The folder that `ofav2 extract` wrote, with any exits.
        out_indices: Which features, from 0 (the stem's), or negative from the last; a number takes so many of the
            last ones, None all.
        overlay: Entries of timm's description to replace.

    Raises:
        RunError: If the folder holds no extracted network.
        UserError: If it has no such features, or is a network of timm with exits.
    """
    record = describe_subnet(directory)
    _require_supernets(record, directory)
    module, height = load_subnet(directory), record.subnet.height
    indices = _indices(out_indices, height + 1)
    nodes = list(module.graph.nodes)
    readers = [f"stages.{stage}." for stage in range(height)] + [f"exits.{height}."]
    ends = [_read_by(next(node for node in nodes if str(node.target).startswith(reader))) for reader in readers]
    whole = _part(module, nodes[0], tuple(ends))
    info = FeatureInfo(_feature_info(whole, record.input.channels), indices)
    features = _part(module, nodes[0], tuple(ends[index] for index in indices))
    return TimmFeatures(features, info, timm_cfg(record) | dict(overlay))


def _read_by(first: Node) -> Node:
    """Return the value that a stage or an exit reads, whose first layer this is."""
    read = first.all_input_nodes[0]
    # A stage that begins with a norm alone has its images pooled before.
    return read.all_input_nodes[0] if read.target is functional.max_pool2d else read


def _indices(wanted: int | Sequence[int] | None, count: int) -> tuple[int, ...]:
    """Return which of so many features are wanted, from 0."""
    given = range(count) if wanted is None else range(-wanted, 0) if isinstance(wanted, int) else wanted
    found = tuple(index + count if index < 0 else index for index in given)
    if not found or not all(0 <= index < count for index in found):
        raise UserError(f"out_indices ({wanted}) must be out of the network's {count} features, 0 to {count - 1}")
    return found


def _feature_info(features: GraphModule, channels: int) -> list[dict[str, Any]]:
    """Return timm's description of features: their channels, and by how much their side is smaller than the image's."""
    side = 2**10
    with torch.no_grad():
        found = copy.deepcopy(features).to("meta")(torch.zeros(1, channels, side, side, device="meta"))
    names = ("stem", *(f"stages.{stage}" for stage in range(len(found) - 1)))
    return [
        {"num_chs": one.shape[1], "reduction": side // one.shape[2], "module": name}
        for one, name in zip(found, names, strict=True)
    ]


def single_exit(directory: str | Path) -> SubnetRecord:
    """Return the record of an extracted sub-network with one output, as timm's models have.

    Raises:
        RunError: If the folder holds no extracted network.
        UserError: If the network returns the logits of several exits, or maps.
    """
    record = describe_subnet(directory)
    if record.exits != "last":
        raise UserError(
            f"sub-network ({directory}) returns a tuple, one entry per exit, and timm's models one tensor:"
            f" extract it again without --exits, or weigh its exits with `ofav2 prune {directory}`"
        )
    if record.dense:
        raise UserError(
            f"sub-network ({directory}) returns maps, and timm's models one row per image: take its features with"
            " features_only=True, or the whole with ofav2.load_subnet"
        )
    return record


def _require_supernets(record: SubnetRecord, directory: str | Path) -> None:
    if not isinstance(record.architecture, Architecture):
        raise UserError(
            f"sub-network ({directory}) is timm's {record.architecture.name} with exits, and features_only is for those"
            " of a supernet: load it with ofav2.load_subnet"
        )


def timm_cfg(record: SubnetRecord) -> dict[str, Any]:
    """Return what timm's `resolve_data_config` and its kind read of a model."""
    given = record.input
    cfg = PretrainedCfg(
        architecture="ofav2_subnet",
        input_size=(given.channels, given.resolution, given.resolution),
        interpolation="bilinear",
        crop_pct=given.eval_crop,
        mean=given.mean,
        std=given.std,
        num_classes=len(record.classes),
        # timm's annotation is a tuple of one; it takes any number.
        label_names=record.classes,  # type: ignore[arg-type]
        first_conv="features.stem.conv",
        classifier="classifier",
    )
    described: dict[str, Any] = cfg.to_dict()
    return described


def _split(module: GraphModule, exit: int) -> tuple[GraphModule, GraphModule, nn.Linear]:
    """Features, the head after them, and the classifier, without the dropout in between."""
    nodes = {node.target: node for node in module.graph.nodes if node.op == "call_module"}
    pooled = nodes[f"exits.{exit}.mix"].all_input_nodes[0]
    features = pooled.all_input_nodes[0]
    flat = nodes[f"exits.{exit}.dropout"].all_input_nodes[0]
    images = next(node for node in module.graph.nodes if node.op == "placeholder")
    classifier = module.get_submodule(f"exits.{exit}.classifier")
    assert isinstance(classifier, nn.Linear), "every exit ends in a linear layer"
    return _part(module, images, features), _part(module, features, flat), classifier


def _folded(
    module: GraphModule, record: SubnetRecord, weights: Sequence[float], overlay: Mapping[str, Any], drop_rate: float
) -> TimmSubnet:
    """Return a network with one classifier, which is on the joined features of all exits."""
    folded = fold_classifiers(module, weights, len(record.classes))
    (end,) = folded.graph.find_nodes(op="call_module", target=JOINED)
    (images,) = folded.graph.find_nodes(op="placeholder")
    classifier = folded.get_submodule(JOINED)
    assert isinstance(classifier, nn.Linear), "it was just made"
    features = _part(folded, images, end.all_input_nodes[0])
    cfg = timm_cfg(record) | dict(overlay)
    return TimmSubnet(
        features, nn.Identity(), classifier, num_features=classifier.in_features, cfg=cfg, drop_rate=drop_rate
    )


def _part(module: GraphModule, start: Node, end: Node | tuple[Node, ...]) -> GraphModule:
    """Return the computation from one value to another, or to several, with the same layers under the same names."""
    graph = Graph()
    copies = {start: graph.placeholder("x")}
    needed, waiting = {start}, [end] if isinstance(end, Node) else list(end)
    while waiting:
        node = waiting.pop()
        waiting += [] if node in needed else node.all_input_nodes
        needed.add(node)
    for node in module.graph.nodes:
        if node in needed and node is not start:
            copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(copies[end] if isinstance(end, Node) else tuple(copies[node] for node in end))
    return GraphModule(module, graph)


def _classifier(inputs: int, classes: int) -> nn.Module:
    if classes == 0:
        return nn.Identity()
    layer = nn.Linear(inputs, classes, device="meta").to_empty(device="cpu")
    with torch.no_grad():
        layer.weight.normal_(0.0, 0.01, generator=torch.Generator().manual_seed(0))
        layer.bias.zero_()
    return layer
