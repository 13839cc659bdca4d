"""Extracted networks on disk without a run: only what loading them needs."""

import hashlib
from dataclasses import replace
from pathlib import Path

from ofav2.data.splits import RGB
from ofav2.deploy.artifact import (
    WEIGHTS,
    ExportRecord,
    ExtractionRecord,
    InputRecord,
    Provenance,
    SubnetRecord,
    write_subnet_record,
)
from ofav2.networks.cost import network_cost
from ofav2.runs import checkpoint
from ofav2.tasks.class_results import ClassResults
from ofav2.tasks.classification import NAME, TOP1
from supernets import Exits, Subnet
from supernets.multi_exit import Network
from tests.ofav2 import tiny


def written(folder: Path, net: Network, subnet: Subnet, exits: Exits = "last") -> Path:
    """Writes `subnet.json` and `model.safetensors`; returns their folder."""
    folder.mkdir(parents=True)
    weights = checkpoint.tensor_bytes(net.extract(subnet, exits).state_dict())
    (folder / WEIGHTS).write_bytes(weights)
    write_subnet_record(folder, replace(described(net, subnet, exits), sha256=hashlib.sha256(weights).hexdigest()))
    return folder


def results_of(classes: int) -> ClassResults:
    """Results of ten images per class, of which the first class is never found."""
    right = (0, *[9] * (classes - 1))
    confused = ((0, 1, 10), *((number, 0, 1) for number in range(1, classes)))
    return ClassResults("test", (10,) * classes, right, confused)


def described(net: Network, subnet: Subnet, exits: Exits = "last") -> SubnetRecord:
    """A record of a network that never was trained: all but what it is made of is invented."""
    arch, indices = net.architecture, net.chosen_exits(subnet, exits)
    scores = {"val": {exit: 0.7 + exit / 100 for exit in indices}, "test": {exit: 0.6 + exit / 100 for exit in indices}}
    before = {split: {exit: score / 2 for exit, score in by_exit.items()} for split, by_exit in scores.items()}
    return SubnetRecord(
        subnet=subnet,
        exits=exits if exits == "last" else indices,
        ensemble=None,
        architecture=arch,
        task=NAME,
        metric=TOP1,
        input=InputRecord(RGB, subnet.resolution, 255.0, (0.5, 0.4, 0.3), (0.25, 0.3, 0.2), None, 0.875, True, 0),
        data="digits",
        classes=tuple(f"class {number}" for number in range(arch.num_classes)),
        cost=network_cost(arch, subnet, exits),
        scores=scores,
        by_class=results_of(arch.num_classes),
        extraction=ExtractionRecord(before, 30, 0, 16, 1e-7, None, None, "cd" * 32, validation_is_test=False),
        choice=None,
        pruning=None,
        provenance=Provenance("digits", "expand", "ab" * 32, "cd" * 32, {"torch": "2.12.1", "ofav2": None}, tiny.TWO),
        finetuning=(),
        formats=("onnx", "pt2", "card"),
        exports=ExportRecord(tuple(f"exit_{exit}" for exit in indices), (1, 16), {"model.onnx": 1e-7}),
        sha256="ef" * 32,
        seen_sha256="01" * 32,
    )
