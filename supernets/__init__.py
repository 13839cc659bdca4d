"""Build OFAv2 supernets, choose sub-networks, and extract them as plain torch modules.

net = supernets.create("ee_dp", num_classes=200)
subnet = net.space.sample(np.random.default_rng(0))
logits = net(images, subnet)
module = net.extract(subnet)

Names are imported when they are first used, as a recipe is checked without torch, which takes seconds to load.
"""

from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from supernets.architecture import Architecture, StageSpec
    from supernets.cpu_kernels import use_cpu_kernels
    from supernets.graphs import GraphError, fold_norms, fold_norms_, foldable_norms
    from supernets.mobilenetv3 import Exits, Supernet
    from supernets.ofa_weights import infer_ofa_options, load_ofa_state_dict
    from supernets.registry import create, names
    from supernets.reorder import sort_channels
    from supernets.space import BRANCHES, DIMENSIONS, BlockChoice, Space, SpaceError, Subnet, walk_blocks

__all__ = (
    "BRANCHES",
    "DIMENSIONS",
    "Architecture",
    "BlockChoice",
    "Exits",
    "GraphError",
    "Space",
    "SpaceError",
    "StageSpec",
    "Subnet",
    "Supernet",
    "create",
    "fold_norms",
    "fold_norms_",
    "foldable_norms",
    "infer_ofa_options",
    "load_ofa_state_dict",
    "names",
    "sort_channels",
    "use_cpu_kernels",
    "walk_blocks",
)

_HOMES = MappingProxyType(
    {
        "Architecture": "supernets.architecture",
        "BRANCHES": "supernets.space",
        "BlockChoice": "supernets.space",
        "DIMENSIONS": "supernets.space",
        "Exits": "supernets.mobilenetv3",
        "GraphError": "supernets.graphs",
        "Space": "supernets.space",
        "SpaceError": "supernets.space",
        "StageSpec": "supernets.architecture",
        "Subnet": "supernets.space",
        "Supernet": "supernets.mobilenetv3",
        "create": "supernets.registry",
        "fold_norms": "supernets.graphs",
        "fold_norms_": "supernets.graphs",
        "foldable_norms": "supernets.graphs",
        "infer_ofa_options": "supernets.ofa_weights",
        "load_ofa_state_dict": "supernets.ofa_weights",
        "names": "supernets.registry",
        "sort_channels": "supernets.reorder",
        "use_cpu_kernels": "supernets.cpu_kernels",
        "walk_blocks": "supernets.space",
    }
)


def __getattr__(name: str) -> object:
    """Find a public name in its module."""
    if name in _HOMES:
        found: object = getattr(import_module(_HOMES[name]), name)
        return found
    raise AttributeError(f"module 'supernets' has no attribute {name!r}")
