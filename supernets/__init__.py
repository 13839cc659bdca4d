"""Build OFAv2 supernets, choose sub-networks, and extract them as plain torch modules.

net = supernets.create("ee_dp", num_classes=200)
subnet = net.space.sample(np.random.default_rng(0))
logits = net(images, subnet)
module = net.extract(subnet)
"""

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
