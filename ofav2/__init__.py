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
    from ofav2.ofa import import_ofa
    from ofav2.report.exits import Agreement, measure_exits
    from ofav2.report.several import Comparison, compare_runs
    from ofav2.report.single import write_report
    from ofav2.run import Run, resume, train
    from ofav2.subnets.choose import Candidate, Choice, choose
    from ofav2.subnets.cost import Cost, layer_costs, stage_costs, subnet_cost
    from ofav2.subnets.early import EarlyExits, LeavingRule, Prediction, early_exits
    from ofav2.subnets.early_study import calibrate_exits
    from ofav2.subnets.extract import OpenedRun, extract, measure, open_for_judging
    from ofav2.subnets.latency import Latency, measure_latency
    from ofav2.subnets.latency_table import LatencyTable, load_table, measure_table, predict_latency, save_table
    from ofav2.subnets.limits import Limits, parse_limits
    from ofav2.subnets.load import load_early_exits, load_leaving_rule, load_subnet, load_supernet
    from ofav2.tuning.finetune import finetune

__all__ = (
    "Agreement",
    "Candidate",
    "Choice",
    "Comparison",
    "Cost",
    "EarlyExits",
    "Latency",
    "LatencyTable",
    "LeavingRule",
    "Limits",
    "OpenedRun",
    "Prediction",
    "Run",
    "RunError",
    "UserError",
    "calibrate_exits",
    "choose",
    "compare_runs",
    "early_exits",
    "extract",
    "finetune",
    "import_ofa",
    "layer_costs",
    "load_early_exits",
    "load_leaving_rule",
    "load_subnet",
    "load_supernet",
    "load_table",
    "measure",
    "measure_exits",
    "measure_latency",
    "measure_table",
    "open_for_judging",
    "parse_limits",
    "predict_latency",
    "resume",
    "save_table",
    "stage_costs",
    "subnet_cost",
    "train",
    "write_report",
)

_ROOMS = MappingProxyType(
    {
        "import_ofa": "ofav2.ofa",
        "Agreement": "ofav2.report.exits",
        "measure_exits": "ofav2.report.exits",
        "Comparison": "ofav2.report.several",
        "compare_runs": "ofav2.report.several",
        "write_report": "ofav2.report.single",
        "Run": "ofav2.run",
        "train": "ofav2.run",
        "resume": "ofav2.run",
        "Candidate": "ofav2.subnets.choose",
        "Choice": "ofav2.subnets.choose",
        "choose": "ofav2.subnets.choose",
        "Cost": "ofav2.subnets.cost",
        "layer_costs": "ofav2.subnets.cost",
        "stage_costs": "ofav2.subnets.cost",
        "subnet_cost": "ofav2.subnets.cost",
        "Latency": "ofav2.subnets.latency",
        "measure_latency": "ofav2.subnets.latency",
        "LatencyTable": "ofav2.subnets.latency_table",
        "load_table": "ofav2.subnets.latency_table",
        "measure_table": "ofav2.subnets.latency_table",
        "predict_latency": "ofav2.subnets.latency_table",
        "save_table": "ofav2.subnets.latency_table",
        "Limits": "ofav2.subnets.limits",
        "parse_limits": "ofav2.subnets.limits",
        "OpenedRun": "ofav2.subnets.extract",
        "extract": "ofav2.subnets.extract",
        "measure": "ofav2.subnets.extract",
        "open_for_judging": "ofav2.subnets.extract",
        "EarlyExits": "ofav2.subnets.early",
        "LeavingRule": "ofav2.subnets.early",
        "Prediction": "ofav2.subnets.early",
        "early_exits": "ofav2.subnets.early",
        "calibrate_exits": "ofav2.subnets.early_study",
        "load_early_exits": "ofav2.subnets.load",
        "load_leaving_rule": "ofav2.subnets.load",
        "load_subnet": "ofav2.subnets.load",
        "load_supernet": "ofav2.subnets.load",
        "finetune": "ofav2.tuning.finetune",
    }
)


def __getattr__(name: str) -> object:
    """Finds a public name in its room."""
    if name in _ROOMS:
        found: object = getattr(import_module(_ROOMS[name]), name)
        return found
    raise AttributeError(f"module 'ofav2' has no attribute {name!r}")
