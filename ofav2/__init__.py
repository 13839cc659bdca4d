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
    from distill import DistillError
    from ofav2.deploy.artifact import SubnetRecord, describe_subnet, load_ensemble, load_subnet
    from ofav2.deploy.extract import extract, extract_finalist
    from ofav2.evaluation.by_class import measure_classes
    from ofav2.evaluation.measure import MeasuredSubnet, measure
    from ofav2.evaluation.opened_run import OpenedRun, load_supernet, open_run
    from ofav2.exits.calibrate import CalibrationStudy, calibrate_exits
    from ofav2.exits.early import EarlyExits, ExitPolicy, Prediction, early_exits
    from ofav2.exits.exit_agreement import Agreement, measure_exits
    from ofav2.exits.policy_file import load_early_exits, load_exit_policy
    from ofav2.exits.prune import PruneStudy, prune_exits
    from ofav2.finetuning.front import TunedFront, TunedNetwork, finetune_front
    from ofav2.finetuning.run import finetune
    from ofav2.inference.classifier import Classified, Classifier, Transform, load_classifier, transform
    from ofav2.inference.evaluate import ClassReport, MetricsReport, evaluate_network
    from ofav2.nas.candidates import Candidate, Ranking
    from ofav2.nas.choosing import choose
    from ofav2.nas.engine.loop import SearchSettings
    from ofav2.nas.found import AdaptSettings, Finalist, Found, load_search
    from ofav2.nas.latency import Latency, measure_latency
    from ofav2.nas.latency_table import (
        LatencyTable,
        load_latency_table,
        measure_latency_table,
        predict_latency,
        save_latency_table,
    )
    from ofav2.nas.limits import Limits, parse_limits
    from ofav2.nas.plugins import SearchPlugins
    from ofav2.nas.search import resume_search, search
    from ofav2.networks.backbone import attach_exits
    from ofav2.networks.cost import network_cost, network_layers, network_parts
    from ofav2.report.compare import compare_runs
    from ofav2.report.comparison import Comparison
    from ofav2.report.report import write_report
    from ofav2.runs.records import Run, RunRecord
    from ofav2.runtime.signals import Lost, Stopped
    from ofav2.tasks.class_results import ClassResults
    from ofav2.training.import_ofa import import_ofa
    from ofav2.training.run import resume, train
    from supernets import GraphError, SpaceError
    from supernets.cost import Cost, LayerCost
    from supernets.subnet_cost import PartCost

__all__ = (
    "AdaptSettings",
    "Agreement",
    "CalibrationStudy",
    "Candidate",
    "ClassReport",
    "ClassResults",
    "Classified",
    "Classifier",
    "Comparison",
    "Cost",
    "DistillError",
    "EarlyExits",
    "ExitPolicy",
    "Finalist",
    "Found",
    "GraphError",
    "Latency",
    "LatencyTable",
    "LayerCost",
    "Limits",
    "Lost",
    "MeasuredSubnet",
    "MetricsReport",
    "OpenedRun",
    "PartCost",
    "Prediction",
    "PruneStudy",
    "Ranking",
    "Run",
    "RunError",
    "RunRecord",
    "SearchPlugins",
    "SearchSettings",
    "SpaceError",
    "Stopped",
    "SubnetRecord",
    "Transform",
    "TunedFront",
    "TunedNetwork",
    "UserError",
    "attach_exits",
    "calibrate_exits",
    "choose",
    "compare_runs",
    "describe_subnet",
    "early_exits",
    "evaluate_network",
    "extract",
    "extract_finalist",
    "finetune",
    "finetune_front",
    "import_ofa",
    "load_classifier",
    "load_early_exits",
    "load_ensemble",
    "load_exit_policy",
    "load_latency_table",
    "load_search",
    "load_subnet",
    "load_supernet",
    "measure",
    "measure_classes",
    "measure_exits",
    "measure_latency",
    "measure_latency_table",
    "network_cost",
    "network_layers",
    "network_parts",
    "open_run",
    "parse_limits",
    "predict_latency",
    "prune_exits",
    "resume",
    "resume_search",
    "save_latency_table",
    "search",
    "train",
    "transform",
    "write_report",
)

_HOMES = MappingProxyType(
    {
        "import_ofa": "ofav2.training.import_ofa",
        "Agreement": "ofav2.exits.exit_agreement",
        "measure_exits": "ofav2.exits.exit_agreement",
        "Comparison": "ofav2.report.comparison",
        "compare_runs": "ofav2.report.compare",
        "write_report": "ofav2.report.report",
        "Run": "ofav2.runs.records",
        "RunRecord": "ofav2.runs.records",
        "SubnetRecord": "ofav2.deploy.artifact",
        "describe_subnet": "ofav2.deploy.artifact",
        "train": "ofav2.training.run",
        "resume": "ofav2.training.run",
        "Candidate": "ofav2.nas.candidates",
        "Ranking": "ofav2.nas.candidates",
        "choose": "ofav2.nas.choosing",
        "Cost": "supernets.cost",
        "LayerCost": "supernets.cost",
        "PartCost": "supernets.subnet_cost",
        "DistillError": "distill",
        "GraphError": "supernets",
        "SpaceError": "supernets",
        "Lost": "ofav2.runtime.signals",
        "Stopped": "ofav2.runtime.signals",
        "network_cost": "ofav2.networks.cost",
        "network_layers": "ofav2.networks.cost",
        "network_parts": "ofav2.networks.cost",
        "Latency": "ofav2.nas.latency",
        "measure_latency": "ofav2.nas.latency",
        "LatencyTable": "ofav2.nas.latency_table",
        "load_latency_table": "ofav2.nas.latency_table",
        "measure_latency_table": "ofav2.nas.latency_table",
        "predict_latency": "ofav2.nas.latency_table",
        "save_latency_table": "ofav2.nas.latency_table",
        "AdaptSettings": "ofav2.nas.found",
        "Finalist": "ofav2.nas.found",
        "Found": "ofav2.nas.found",
        "load_search": "ofav2.nas.found",
        "search": "ofav2.nas.search",
        "resume_search": "ofav2.nas.search",
        "SearchPlugins": "ofav2.nas.plugins",
        "SearchSettings": "ofav2.nas.engine.loop",
        "Limits": "ofav2.nas.limits",
        "parse_limits": "ofav2.nas.limits",
        "attach_exits": "ofav2.networks.backbone",
        "OpenedRun": "ofav2.evaluation.opened_run",
        "extract": "ofav2.deploy.extract",
        "extract_finalist": "ofav2.deploy.extract",
        "MeasuredSubnet": "ofav2.evaluation.measure",
        "measure": "ofav2.evaluation.measure",
        "open_run": "ofav2.evaluation.opened_run",
        "EarlyExits": "ofav2.exits.early",
        "ExitPolicy": "ofav2.exits.early",
        "Prediction": "ofav2.exits.early",
        "early_exits": "ofav2.exits.early",
        "CalibrationStudy": "ofav2.exits.calibrate",
        "calibrate_exits": "ofav2.exits.calibrate",
        "load_early_exits": "ofav2.exits.policy_file",
        "load_exit_policy": "ofav2.exits.policy_file",
        "PruneStudy": "ofav2.exits.prune",
        "prune_exits": "ofav2.exits.prune",
        "load_ensemble": "ofav2.deploy.artifact",
        "load_subnet": "ofav2.deploy.artifact",
        "load_supernet": "ofav2.evaluation.opened_run",
        "TunedFront": "ofav2.finetuning.front",
        "TunedNetwork": "ofav2.finetuning.front",
        "finetune": "ofav2.finetuning.run",
        "finetune_front": "ofav2.finetuning.front",
        "ClassReport": "ofav2.inference.evaluate",
        "MetricsReport": "ofav2.inference.evaluate",
        "ClassResults": "ofav2.tasks.class_results",
        "measure_classes": "ofav2.evaluation.by_class",
        "evaluate_network": "ofav2.inference.evaluate",
        "Classified": "ofav2.inference.classifier",
        "Classifier": "ofav2.inference.classifier",
        "Transform": "ofav2.inference.classifier",
        "load_classifier": "ofav2.inference.classifier",
        "transform": "ofav2.inference.classifier",
    }
)


def __getattr__(name: str) -> object:
    """Find a public name in its module."""
    if name in _HOMES:
        found: object = getattr(import_module(_HOMES[name]), name)
        return found
    raise AttributeError(f"module 'ofav2' has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted(__all__)
