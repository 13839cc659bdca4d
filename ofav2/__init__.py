"""ofav2 trains Once-For-All v2 supernets in phases and takes sub-networks out of them.

    run = ofav2.train("digits", overrides=["run.seed=1"])
    net = ofav2.load_supernet(run.folder)
    module = net.extract(net.space.largest())

Names are imported when they are first used, so that the command line's help does not wait for torch.
"""

from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING

from ofav2.errors import RunError, UserError

if TYPE_CHECKING:
    from ofav2.run import Run, resume, train
    from ofav2.subnets.extract import OpenedRun, extract, measure, open_for_judging
    from ofav2.subnets.load import load_subnet, load_supernet

__all__ = (
    "OpenedRun",
    "Run",
    "RunError",
    "UserError",
    "extract",
    "load_subnet",
    "load_supernet",
    "measure",
    "open_for_judging",
    "resume",
    "train",
)

_ROOMS = MappingProxyType(
    {
        "Run": "ofav2.run",
        "train": "ofav2.run",
        "resume": "ofav2.run",
        "OpenedRun": "ofav2.subnets.extract",
        "extract": "ofav2.subnets.extract",
        "measure": "ofav2.subnets.extract",
        "open_for_judging": "ofav2.subnets.extract",
        "load_subnet": "ofav2.subnets.load",
        "load_supernet": "ofav2.subnets.load",
    }
)


def __getattr__(name: str) -> object:
    """Finds a public name in its room."""
    if name in _ROOMS:
        found: object = getattr(import_module(_ROOMS[name]), name)
        return found
    raise AttributeError(f"module 'ofav2' has no attribute {name!r}")
