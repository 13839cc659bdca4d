"""Training in seconds: recipes, data and networks so small that a test can afford them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import supernets
from ofav2.config import recipe
from ofav2.config.schema import DataConfig, EvaluationConfig, PhaseConfig, TeacherConfig, UnlockConfig
from ofav2.data import Batch, ImageData, Split
from ofav2.data.images import ArrayImages
from ofav2.data.splits import RGB, TargetSpec
from ofav2.evaluation.evaluator import Evaluator
from ofav2.rng import Stream
from ofav2.runtime.device import Runtime
from ofav2.tasks.classification import Classification
from ofav2.training.objectives import Draw, Losses
from ofav2.training.phases import Phase, make_plan
from supernets import Space, Subnet, Supernet
from tests.supernets.randomise import randomise

CPU = Runtime(torch.device("cpu"), "float32")
MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.3, 0.2)
SIX_PHASES = ("full", "kernel", "level", "height", "depth", "expand")

COMMON = """\
run: {threads: 1, device: cpu}
data: {name: digits, resolutions: [16], batch_size: 16, val_fraction: 0.02, test_fraction: 0.03}
optim: {name: adamw, weight_decay: 0.01}
evaluation: {every_epochs: 0, calibration_images: 30, calibration_batch: 16}
tracking: {every_steps: 1}
"""

ALL_CORNERS, NO_CORNERS = "evaluation: {", "evaluation: {corners: none, "
"""How a recipe has all corner sub-networks evaluated after each phase, most of the time of a tiny run, or none."""

# All six phases of all that there is: early exits, dense skips, parallel blocks.
SIX = (
    COMMON
    + """\
supernet: {variant: ee_dp, width_mult: 0.05, kernel: [3, 5], expand: [2, 3], depth: [1, 2], stem_stride: 1}
phases:
  full: {epochs: 0.02, lr: 0.003}
  kernel: {epochs: 0.02, lr: 0.001, unlock: {kernel: [3, 5]}}
  level: {epochs: 0.02, lr: 0.001, subnets: 2, unlock: {level: [1, 2, 3]}}
  height: {epochs: 0.02, lr: 0.001, subnets: 3, sampler: sandwich, objective: in_place,
           unlock: {height: [1, 2, 3, 4, 5]}}
  depth: {epochs: 0.02, lr: 0.001, teacher: best, objective: distill_exits, unlock: {depth: [1, 2]}}
  expand: {epochs: 0.02, lr: 0.001, teacher: fixed, unlock: {expand: [2, 3]}}
"""
)

# The least that is a run: a first phase, an elastic one, and one that a single-exit network lacks.
TWO = (
    COMMON.replace(ALL_CORNERS, NO_CORNERS)
    + """\
supernet: {variant: se_b, width_mult: 0.05, kernel: [3, 5], expand: [2], depth: [1], stem_stride: 1}
phases:
  full: {epochs: 0.02, lr: 0.003}
  kernel: {epochs: 0.02, lr: 0.001, unlock: {kernel: [3, 5]}}
  height: {epochs: 0.02, lr: 0.001, unlock: {height: [4, 5]}}
"""
)


def written(folder: Path, text: str, name: str = "tiny") -> str:
    """A recipe's text as a file; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def tiny_data(
    *, classes: int = 5, train: int = 40, val: int = 23, test: int = 17, side: int = 12, seed: int = 0
) -> ImageData:
    """Images of noise in memory, a tint per class."""
    generator = np.random.default_rng([seed, classes])

    def split(name: str, count: int) -> Split:
        labels = np.resize(np.arange(classes), count)
        pixels = generator.integers(0, 160, (count, 3, side, side)) + (labels % 5 * 20)[:, None, None, None]
        return Split(name, labels.astype(np.int64), ArrayImages(pixels.astype(np.uint8)))

    return ImageData(
        name="noise",
        bands=RGB,
        target=TargetSpec("classes", tuple(f"class {number}" for number in range(classes))),
        mean=MEAN,
        std=STD,
        train=split("train", train),
        val=split("val", val),
        test=split("test", test),
        fingerprint=f"noise {seed}",
    )


def tiny_net(variant: str = "ee_dp", *, seed: int = 0, dtype: torch.dtype = torch.float32, **choices: Any) -> Supernet:
    """A narrow shallow supernet, randomised so that its sub-networks all differ."""
    options: dict[str, Any] = {
        "num_classes": 5,
        "width_mult": 0.05,
        "kernel": (3, 5),
        "expand": (2, 3),
        "depth": (1, 2, 3),
        "resolutions": (16, 20),
        "stem_stride": 1,
        "dropout": 0.0,
    }
    net = supernets.create(variant, **(options | choices)).to(dtype)
    randomise(net, seed)
    return net


def tiny_evaluator(data: ImageData, **changes: Any) -> Evaluator:
    """An evaluator whose last batches, of evaluation and of calibration, are smaller than the others."""
    config = EvaluationConfig(batch_size=9, calibration_images=19, calibration_batch=8)
    settings: dict[str, Any] = {"eval_crop": 0.875, "workers": 0, "seed": 3, "runtime": CPU}
    task = changes.pop("task", None) or Classification(len(data.classes))
    return Evaluator(data, task, config, **(settings | changes))


def plan_phases(
    net: Supernet, phases: Mapping[str, PhaseConfig], *, policy: str = "progressive", steps_per_epoch: int = 1
) -> dict[str, Phase]:
    """The planned phases by name."""
    return {phase.name: phase for phase in make_plan(phases, TeacherConfig(policy), net.space, steps_per_epoch).phases}


def phase_config(epochs: float = 2, lr: float = 0.05, *, unlock: Mapping[str, Any] | None = None, **more: Any) -> Any:
    """A phase's settings, without dropout by default."""
    return PhaseConfig(epochs, lr, UnlockConfig(**(unlock or {})), **({"dropout": 0.0} | more))


ELASTIC = {"kernel": (3, 5), "level": (1, 2, 3), "height": (1, 2, 3, 4, 5), "depth": (1, 2, 3), "expand": (2, 3)}


def two_phases(**elastic: Any) -> dict[str, PhaseConfig]:
    """The full phase, and one that unlocks everything."""
    return {"full": phase_config(), "elastic": phase_config(unlock=ELASTIC, **elastic)}


@dataclass(frozen=True)
class Given:
    """A sampler that draws what it was given."""

    subnets: tuple[Subnet, ...]

    def draw(self, space: Space, rng: np.random.Generator) -> tuple[Subnet, ...]:
        return self.subnets


def given(net: Supernet, *subnets: Subnet) -> Draw:
    """The same sub-networks in every step."""
    return Draw(Given(subnets), net.space, Stream(0, "given"))


def drawn_in(phase: Phase, seed: int = 5) -> Draw:
    """The sub-networks of a phase's steps."""
    return Draw(phase.sampler, phase.drawn, Stream(seed, phase.name))


@dataclass(frozen=True)
class FromFunction:
    """An objective whose losses a function yields."""

    yields: Callable[[Tensor, Tensor, int], Iterator[Losses]]
    drawn: Draw | None = None

    def losses(self, images: Tensor, target: Tensor, step: int) -> Iterator[Losses]:
        return self.yields(images, target, step)

    def counted(self, target: Tensor) -> Tensor | None:
        return None

    def describe(self, step: int, resolution: int) -> str:
        return self.drawn.describe(step, resolution) if self.drawn else "a function"


def random_batches(sides: Sequence[int], *, count: int = 6, classes: int = 5, seed: int = 0) -> list[Batch]:
    """A batch of noise per image side."""
    generator = torch.Generator().manual_seed(seed)
    draw = partial(torch.randint, generator=generator)
    return [
        Batch(draw(0, 256, (count, 3, side, side), dtype=torch.uint8), draw(0, classes, (count,))) for side in sides
    ]


def bits(module: nn.Module) -> dict[str, Tensor]:
    """A copy of a module's state."""
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def same_bits(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> bool:
    """Whether two states are equal to the last bit."""
    return left.keys() == right.keys() and all(torch.equal(tensor, right[name]) for name, tensor in left.items())


def data_config(**changes: Any) -> DataConfig:
    """A recipe's data part for `tiny_data`."""
    settings: dict[str, Any] = {"name": "noise", "resolutions": (16, 20), "batch_size": 8}
    return DataConfig(**(settings | changes))


def cut(subnet: Subnet, height: int) -> Subnet:
    """The network cut at an earlier exit."""
    return Subnet.from_dict(subnet.to_dict() | {"height": height})


def middle(space: Space) -> Subnet:
    """A network that is neither the largest nor uniform, and ends at exit 3."""
    fields = space.uniform(height=3).to_dict()
    fields["depth"][1] = min(space.depth)
    fields["kernel"][0][0] = min(space.kernel)
    fields["expand"][2][0] = min(space.expand)
    fields["level"][0][0] = ["mbconv", "transform"]
    return Subnet.from_dict(fields)


def shrunk(name: str, settings: Sequence[str] = (), *, train_images: int) -> list[str]:
    """Overrides after `settings` that keep a recipe's phases, samplers and teachers, with two steps per phase."""
    config = recipe.load(name, ["data.root=null", *settings])
    sides = "[16,20]" if config.supernet.stem_stride == 1 else "[32,40]"
    # Other networks of timm take longer to make than to train for two steps.
    network = ["network.name=test_resnet"] if config.network.kind == "timm" else []
    phases = [
        setting
        for phase in config.phases
        for setting in (f"phases.{phase}.epochs={2 / (train_images // 4)}", f"phases.{phase}.warmup_epochs=0")
    ]
    return [
        "run.device=cpu",
        "run.threads=1",
        "supernet.width_mult=0.05",
        f"data.resolutions={sides}",
        "data.batch_size=4",
        "data.workers=0",
        # Patience counts validations, but two steps are less than an epoch.
        f"evaluation.every_epochs={int(config.network.kind == 'timm')}",
        "evaluation.calibration_images=6",
        "evaluation.calibration_batch=6",
        "evaluation.corners=none",
        "tracking.every_steps=1",
        *network,
        *phases,
    ]
