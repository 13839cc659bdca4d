"""Every recipe on disk is loaded, planned, and shrunk to a run of two steps a phase, data sets faked."""

from pathlib import Path

import pytest

import ofav2
from ofav2.config import recipe
from ofav2.config.schema import DataConfig
from ofav2.data import ImageData, SplitRecord, open_data
from ofav2.runs import folder
from ofav2.runs.metrics_file import read_metrics
from ofav2.training import setup as prepare
from tests.ofav2 import tiny
from tests.ofav2.tasks import dense

PATCHES = {"eo_segment": ("cover", 3), "eo_regress": ("height", 1), "eo_pretrain": ("height", 4)}
"""What recipes for patches learn, and its outputs."""
CLASSES = {"digits": 10, "cifar10": 10, "tiny_imagenet": 200, "imagenet": 1000, "imagefolder": 3}
TRAIN_IMAGES = 16
QUICK = "aep_paper"
"""The recipe that is run by default, of a network of timm: the README's Python trains `digits`, a supernet."""


def faked(config: DataConfig, split: SplitRecord | None) -> ImageData:
    """Noise with the data set's classes; patches are read from small files."""
    if config.name == "patches":
        return open_data(config, split)
    return tiny.tiny_data(classes=CLASSES[config.name], train=TRAIN_IMAGES, val=6, test=5)


@pytest.fixture(scope="module")
def patches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Patches of the side that recipes have."""
    counts = {"train": TRAIN_IMAGES, "val": 6, "test": 5}
    return dense.write_patches(tmp_path_factory.mktemp("data") / "patches", 64, counts)


def there(name: str, patches: Path) -> list[str]:
    """Where a recipe finds its data."""
    return [f"data.root={patches}", f"data.target={PATCHES[name][0]}"] if name in PATCHES else ["data.root=null"]


@pytest.fixture(autouse=True)
def _no_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "open_data", faked)


def lacking(variant: str) -> set[str]:
    return ({"height"} if variant.startswith("se") else set()) | ({"level"} if "p" not in variant[2:] else set())


@pytest.mark.parametrize("name", recipe.names())
def test_every_recipe_can_be_planned_as_it_is(name: str, patches: Path) -> None:
    config = recipe.load(name, ["data.batch_size=4", *there(name, patches), "run.device=cpu"])
    setup = prepare.prepare(config)
    skipped = {sentence.split()[0] for sentence in setup.plan.skipped}
    planned = [phase.name for phase in setup.plan.phases]
    assert planned == [phase for phase in config.phases if phase not in skipped]
    assert all(phase.partition("_")[0] in lacking(config.supernet.variant) for phase in skipped)
    assert setup.plan.phases[0].objective == "joint"
    last = setup.plan.phases[-1]
    everything = last.space if config.network.kind == "supernet" else last.evaluated
    assert everything == setup.net.space, "in the end everything can be chosen"


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == QUICK else pytest.mark.slow) for name in recipe.names()]
)
def test_every_recipe_runs_through_all_its_phases(name: str, patches: Path, tmp_path: Path) -> None:
    overrides = [*tiny.shrunk(name, train_images=TRAIN_IMAGES), *there(name, patches), "data.download=false"]
    if name in PATCHES:
        overrides.append("data.resolutions=[32,64]")
    run = ofav2.train(name, overrides, tmp_path / "run")
    assert run.record.status == "finished"
    config = recipe.load(str(run.folder / folder.RECIPE))
    expected = [
        phase
        for phase, settings in config.phases.items()
        if not {key for key in lacking(config.supernet.variant) if getattr(settings.unlock, key)}
    ]
    assert [phase.name for phase in run.record.phases] == expected
    assert [phase.steps for phase in run.record.phases] == [2] * len(expected)
    policies = {phase.teacher.policy for phase in run.record.phases[1:]}
    assert policies == {config.phases[phase].teacher or config.teacher.policy for phase in expected[1:]}
    steps = [line for line in read_metrics(run.folder) if line["kind"] == "train"]
    assert len(steps) == 2 * len(expected)
    net = ofav2.load_supernet(run.folder)
    expected_name = config.network.name or config.supernet.variant
    assert net.architecture.variant == expected_name
    assert net.architecture.num_classes == (PATCHES[name][1] if name in PATCHES else CLASSES[config.data.name])


def test_the_demo_trains_all_that_there_is() -> None:
    config = recipe.load("digits")
    assert config.supernet.variant == "ee_dp"
    assert [phase.partition("_")[0] for phase in config.phases] == list(tiny.SIX_PHASES)


@pytest.mark.parametrize("name", ["cifar10", "tiny_imagenet", "eurosat_proof"])
def test_phases_after_the_kernel_phase_have_seven_tenths_of_the_first_rate(name: str) -> None:
    phases = recipe.load(name).phases
    later = [phase.lr for key, phase in phases.items() if key not in ("full", "kernel")]
    assert later == pytest.approx([0.7 * phases["full"].lr] * len(later))


def test_the_paper_and_its_baseline_differ_in_supernet_and_teacher() -> None:
    paper, baseline = recipe.load("tiny_imagenet_paper"), recipe.load("tiny_imagenet_ofa")
    assert (paper.supernet.variant, paper.teacher.policy) == ("ee_d", "progressive")
    assert (baseline.supernet.variant, baseline.teacher.policy) == ("se_b", "fixed")
    assert (paper.data, paper.optim) == (baseline.data, baseline.optim)
