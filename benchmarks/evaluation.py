"""Recalibrating and evaluating sub-networks, beside the original OFA package; docs/performance.md has the results.

python -m benchmarks.evaluation DATA_ROOT                 # Tiny ImageNet; images decoded in memory on both sides
python -m benchmarks.evaluation DATA_ROOT --own-loading   # each side decodes and cuts the files as it does by itself
"""

import argparse
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from ofa.imagenet_classification.elastic_nn.networks import OFAMobileNetV3
from ofa.imagenet_classification.elastic_nn.utils import set_running_statistics
from ofa.utils import AverageMeter, accuracy
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

import supernets
from benchmarks.sides import Times, command_line, report, time_sides
from ofav2.cli import console
from ofav2.config.schema import DataConfig, EvaluationConfig
from ofav2.data import ImageData, Split, open_data
from ofav2.data.cache import CheckedImages
from ofav2.data.views import short_side
from ofav2.evaluation.evaluator import Evaluator
from ofav2.runtime.device import Runtime
from ofav2.tasks.classification import Classification
from supernets import Subnet, Supernet

EVAL_CROP = 0.875
Pair = tuple[Tensor, Tensor]
Loader = Callable[[], Iterable[Pair]]


@dataclass(frozen=True)
class Options:
    """What is measured."""

    networks: int = 20
    """Random sub-networks of SE_B."""
    calibration_images: int = 2000
    """Training images per recalibration, in batches of 100."""
    images: int = 10_000
    """Test images per evaluation, in batches of 200; fewer where the data set has fewer."""
    compared: int = 3
    """Networks whose statistics are compared."""
    resolution: int = 64
    """Side of the images in pixels."""
    width_mult: float = 1.0
    """Width of the supernet."""
    own_loading: bool = False
    """Whether each side loads images as it does by itself; results are then not the same."""
    workers: int = 2
    """The peer's processes that load images, where it does."""


@dataclass(frozen=True)
class Outcome:
    """What was found."""

    times: dict[str, Times]
    """Milliseconds per network."""
    seconds: dict[str, float]
    """All networks, the first one's loading included."""
    top1: dict[str, dict[Subnet, float]]
    """Accuracies (0..1) by side."""
    statistics_gap: float | None
    """Largest difference of batch-norm statistics x and y, as |x - y| / (1 + |y|); None where each side loads images of
    its own."""


def compare(data: ImageData, options: Options) -> Outcome:
    """Recalibrates and evaluates the same sub-networks of the same weights in turn, on both sides.

    Raises:
        AssertionError: If the sides, given the same images, find other statistics or other accuracies.
    """
    test = data.test.take("test", np.random.default_rng(0).permutation(len(data.test))[: options.images])
    data = replace(data, test=test)
    classes = len(data.classes)
    theirs = ofa_supernet(classes, options.width_mult)
    net = supernets.create(
        "se_b", num_classes=classes, width_mult=options.width_mult, resolutions=(options.resolution,)
    )
    supernets.load_ofa_state_dict(net, theirs.state_dict())
    rng = np.random.default_rng(0)
    subnets = [net.space.sample(rng) for _ in range(options.networks)]
    evaluator = _evaluator(data, options)
    own = _own_loaders(data, options) if options.own_loading else _kept_loaders(evaluator, data, options)
    top1: dict[str, dict[Subnet, float]] = {"ofav2": {}, "ofa": {}}
    seconds = {"ofav2": 0.0, "ofa": 0.0}

    def side(name: str, results: Iterator[tuple[Subnet, float]]) -> Callable[[], None]:
        def step() -> None:
            started = time.perf_counter()
            subnet, found = next(results)
            seconds[name] += time.perf_counter() - started
            top1[name][subnet] = found

        return step

    ours = ((score.subnet, score.value) for score in evaluator.scores(net, subnets, test))
    peers = ((subnet, evaluate_ofa(theirs, subnet, *own)) for subnet in subnets)
    # Networks that begin alike come one after the other on our side, so the sides go through them in other orders.
    times = time_sides({"ofav2": side("ofav2", ours), "ofa": side("ofa", peers)}, repeats=len(set(subnets)), warmup=0)
    if options.own_loading:
        return Outcome(times, seconds, top1, None)
    gaps = [_gap(evaluator, net, theirs, subnet, own[0]) for subnet in subnets[: options.compared]]
    assert max(gaps) < 1e-5, f"statistics differ by {max(gaps)}"
    assert top1["ofav2"] == top1["ofa"], "accuracies differ"
    return Outcome(times, seconds, top1, max(gaps))


def ofa_supernet(classes: int, width_mult: float) -> nn.Module:
    """The peer's supernet with weights that are the same each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net: nn.Module = OFAMobileNetV3(
            n_classes=classes,
            bn_param=(0.1, 1e-5),
            dropout_rate=0.1,
            width_mult=width_mult,
            ks_list=[3, 5, 7],
            expand_ratio_list=[3, 4, 6],
            depth_list=[2, 3, 4],
        )
    return net.eval()


def evaluate_ofa(supernet: nn.Module, subnet: Subnet, calibration: Loader, images: Loader) -> float:
    """Top-1 (0..1) by the peer's routine, as its tutorial has it: take the network out, recalibrate, measure."""
    module = taken_out(supernet, subnet)
    set_running_statistics(module, calibration())
    module.eval()
    criterion, losses, top1, top5 = nn.CrossEntropyLoss(), AverageMeter(), AverageMeter(), AverageMeter()
    with torch.no_grad():
        for given, labels in images():
            output = module(given)
            losses.update(criterion(output, labels).item(), len(given))
            first, fifth = accuracy(output, labels, topk=(1, 5))
            top1.update(first[0].item(), len(given))
            top5.update(fifth[0].item(), len(given))
    return round(top1.sum / 100) / top1.count


def taken_out(supernet: Any, subnet: Subnet) -> nn.Module:
    """The peer's own static form of a sub-network; blocks that do not run get any choice."""

    def filled(rows: Sequence[Sequence[int | None]]) -> list[int]:
        return [(*row, *[3] * 4)[block] or 3 for row in rows for block in range(4)]

    supernet.set_active_subnet(ks=filled(subnet.kernel), e=filled(subnet.expand), d=list(subnet.depth))
    taken: nn.Module = supernet.get_active_subnet(preserve_weight=True)
    return taken


def _evaluator(data: ImageData, options: Options) -> Evaluator:
    config = EvaluationConfig(batch_size=200, calibration_images=options.calibration_images, calibration_batch=100)
    runtime = Runtime(torch.device("cpu"), "float32")
    task = Classification(len(data.classes))
    return Evaluator(data, task, config, eval_crop=EVAL_CROP, seed=0, workers=0, runtime=runtime)


def _kept_loaders(evaluator: Evaluator, data: ImageData, options: Options) -> tuple[Loader, Loader]:
    """The evaluator's images for the peer, in its layout, and normalised once and for all, which is in its favour."""
    calibration = [
        (images.contiguous(), torch.zeros(len(images))) for images in evaluator.calibration(options.resolution)
    ]
    inputs = evaluator.inputs(data.test, options.resolution)
    batches = [(images.contiguous(), labels) for images, labels in inputs]
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    whole = list(zip(images.split(200), labels.split(200), strict=True))
    return lambda: calibration, lambda: whole


def _own_loaders(data: ImageData, options: Options) -> tuple[Loader, Loader]:
    """The peer's loading: PIL and torchvision in worker processes, anew for each network, as its tutorial has it."""
    normalise = [transforms.ToTensor(), transforms.Normalize(data.mean, data.std)]
    augmented = [
        transforms.RandomResizedCrop(options.resolution),
        transforms.RandomHorizontalFlip(),
        transforms.ColorJitter(brightness=32.0 / 255.0, saturation=0.5),
    ]
    cut = [transforms.Resize(short_side(options.resolution, EVAL_CROP)), transforms.CenterCrop(options.resolution)]
    chosen = np.random.default_rng(0).permutation(len(data.train))[: options.calibration_images]
    calibration = _Pictures(data.train.take("calibration", chosen), transforms.Compose([*augmented, *normalise]))
    images = _Pictures(data.test, transforms.Compose([*cut, *normalise]))
    return (
        lambda: DataLoader(calibration, batch_size=100, num_workers=options.workers),
        lambda: DataLoader(images, batch_size=200, num_workers=options.workers),
    )


@dataclass(frozen=True, eq=False)
class _Pictures(Dataset[tuple[Tensor, int]]):
    split: Split
    transform: Callable[[Image.Image], Tensor]

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        images = self.split.images
        if isinstance(images, CheckedImages) and not images.decoded:
            image = Image.open(images.files.path(index)).convert("RGB")
        else:
            image = transforms.functional.to_pil_image(self.split.image(index))
        return self.transform(image), int(self.split.targets[index])


def _gap(evaluator: Evaluator, net: Supernet, supernet: nn.Module, subnet: Subnet, calibration: Loader) -> float:
    ours, theirs = evaluator.calibrated(net, subnet, "last"), taken_out(supernet, subnet)
    set_running_statistics(theirs, calibration())
    in_order = [ours.get_submodule(str(node.target)) for node in ours.graph.nodes if node.op == "call_module"]
    pairs = list(zip(_norms(in_order), _norms(theirs.modules()), strict=True))
    keys = ("running_mean", "running_var")
    return max(_difference(getattr(a, key), getattr(b, key)) for a, b in pairs for key in keys)


def _difference(found: Tensor, expected: Tensor) -> float:
    return float(((found - expected).abs() / (1 + expected.abs())).max())


def _norms(layers: Iterable[nn.Module]) -> list[Any]:
    return [layer for layer in layers if isinstance(layer, nn.BatchNorm2d)]


@console.show_logs()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data_root", help="folder of Tiny ImageNet, as its archive has it")
    parser.add_argument("--networks", type=int, default=Options.networks)
    parser.add_argument("--calibration-images", type=int, default=Options.calibration_images)
    parser.add_argument("--images", type=int, default=Options.images)
    parser.add_argument("--own-loading", action="store_true")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    options = Options(
        networks=chosen.networks,
        calibration_images=chosen.calibration_images,
        images=chosen.images,
        own_loading=chosen.own_loading,
    )
    show(compare(open_data(tiny_imagenet(chosen.data_root, options.resolution)), options), options)


def tiny_imagenet(root: str, resolution: int) -> DataConfig:
    """The data set that the results are given for."""
    return DataConfig(name="tiny_imagenet", root=root, resolutions=(resolution,))


def show(found: Outcome, options: Options) -> None:
    """Shows the table and writes the JSON."""
    loading = "each side's own loading" if options.own_loading else "decoded images in memory"
    facts = {
        "options": vars(options),
        "seconds": found.seconds,
        "ratio_of_sums": found.seconds["ofa"] / found.seconds["ofav2"],
        "statistics_gap": found.statistics_gap,
    }
    sizes = f"{options.calibration_images} calibration and {options.images} test images"
    sums = f"in all {found.seconds['ofa']:.1f} s and {found.seconds['ofav2']:.1f} s"
    title = f"SE_B, {options.networks} networks, {sizes}, {loading}: {sums}, {facts['ratio_of_sums']:.2f} times"
    report("evaluation-own-loading" if options.own_loading else "evaluation", title, found.times, "ofa", facts)


if __name__ == "__main__":
    command_line(main)
