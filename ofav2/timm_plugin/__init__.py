"""Register extracted sub-networks with timm, as the model `ofav2_subnet`, when this package is imported.

    import timm
    import ofav2.timm_plugin

    model = timm.create_model("ofav2_subnet", subnet_dir="largest")

`as_timm_mobilenetv3` offers the networks that timm's own blocks can express as a stock timm MobileNetV3.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from timm.models import register_model

from ofav2.errors import UserError
from ofav2.timm_plugin.model import TimmFeatures, TimmSubnet, open_features, open_subnet
from ofav2.timm_plugin.stock import as_timm_mobilenetv3

# timm adds to this list what it registers.
__all__ = ["TimmFeatures", "TimmSubnet", "as_timm_mobilenetv3", "ofav2_subnet"]


@register_model
def ofav2_subnet(
    pretrained: bool = True,
    *,
    subnet_dir: str | Path | None = None,
    num_classes: int | None = None,
    in_chans: int | None = None,
    drop_rate: float = 0.0,
    global_pool: str | None = None,
    pretrained_cfg: object = None,
    pretrained_cfg_overlay: Mapping[str, Any] | None = None,
    cache_dir: object = None,
    features_only: bool = False,
    out_indices: int | Sequence[int] | None = None,
    **others: object,
) -> TimmSubnet | TimmFeatures:
    """Return an extracted sub-network as a timm model; called by `timm.create_model("ofav2_subnet", subnet_dir=DIR)`.

    Args:
        pretrained: Not looked at: the folder's weights are the network, so they are always loaded.
        subnet_dir: The folder that `ofav2 extract` wrote.
        num_classes: Classes of the classifier; another number than the network's gives it a new classifier, 0 none.
        in_chans: Channels of the images; None, or the network's.
        drop_rate: Dropout probability before the classifier.
        global_pool: None or `avg`: the network has no other pooling.
        pretrained_cfg: None: the folder says what the network is.
        pretrained_cfg_overlay: Entries of the model's `pretrained_cfg` to replace, such as `crop_pct`.
        cache_dir: Not looked at: nothing is downloaded.
        features_only: Whether to return a backbone, whose output is a list of features; it has no classifier.
        out_indices: Which features, from 0 (the stem's; then one per stage); None takes all.
        others: Nothing: settings of other networks of timm, such as `drop_path_rate`, are refused unless they are off.

    Raises:
        UserError, GraphError: If a setting does not fit the network, or timm can't have it.
        RunError: If the folder holds no extracted network.
    """
    if subnet_dir is None:
        raise UserError("subnet_dir is missing: create_model('ofav2_subnet', subnet_dir=DIR), as `ofav2 extract` wrote")
    if pretrained_cfg is not None:
        raise UserError("pretrained_cfg has no effect here, the folder describes the network: leave it out")
    for name, value in others.items():
        if value:
            raise UserError(f"{name} ({value!r}) is not there for ofav2_subnet: leave it out")
    if out_indices is not None and not features_only:
        raise UserError(f"out_indices ({out_indices!r}) has no effect without features_only=True: leave it out")
    overlay = dict(pretrained_cfg_overlay or {})
    if features_only:
        backbone = open_features(subnet_dir, out_indices, overlay)
        _check_channels(in_chans, backbone.pretrained_cfg["input_size"][0])
        return backbone
    model = open_subnet(subnet_dir, drop_rate, overlay)
    _check_channels(in_chans, model.in_chans)
    if num_classes not in (None, model.num_classes) or global_pool is not None:
        model.reset_classifier(model.num_classes if num_classes is None else num_classes, global_pool)
    return model


def _check_channels(wanted: int | None, own: int) -> None:
    if wanted not in (None, own):
        raise UserError(f"in_chans ({wanted}) must be the network's {own}: leave it out")
