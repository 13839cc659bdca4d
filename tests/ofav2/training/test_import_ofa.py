"""An official OFA checkpoint becomes a run that the other verbs accept; anything else becomes one clear line."""

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ofa.imagenet_classification.elastic_nn.networks import OFAMobileNetV3

import ofav2
from ofav2.cli.main import main
from ofav2.config import recipe
from ofav2.errors import RunError, UserError
from ofav2.evaluation.measure import measure
from ofav2.evaluation.opened_run import open_run
from ofav2.report.report import write_report
from ofav2.runs.records import read_run
from ofav2.runs.snapshot import read_snapshot
from ofav2.training.import_ofa import import_ofa
from tests.memory import GIB, peak
from tests.ofav2 import tiny
from tests.supernets.randomise import randomise

RECIPE = tiny.COMMON.replace("[16]", "[32]") + (
    "supernet: {variant: ee_dp, kernel: [3, 5], expand: [2, 3], depth: [1, 2]}\nphases: {full: {epochs: 1, lr: 0.1}}\n"
)
CHOICES = {"ks_list": [3, 5, 7], "expand_ratio_list": [2, 3], "depth_list": [1, 2]}


def peer(classes: int = 10, width_mult: float = 0.1, **changes: Any) -> OFAMobileNetV3:
    net = OFAMobileNetV3(
        n_classes=classes, bn_param=(0.1, 1e-5), dropout_rate=0.1, width_mult=width_mult, **(CHOICES | changes)
    )
    randomise(net, 1)
    return net.eval()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ofa") / "ofa_mbv3.pth"
    torch.save({"state_dict": peer().state_dict()}, path)
    return path


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny.written(tmp_path_factory.mktemp("recipes"), RECIPE)


@pytest.fixture(scope="module")
def run(checkpoint: Path, recipe_file: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return import_ofa(checkpoint, recipe_file, out=tmp_path_factory.mktemp("runs") / "ofa").folder


def test_the_supernet_has_the_peers_logits(run: Path) -> None:
    net, theirs = ofav2.load_supernet(run), peer()
    images = torch.randn((2, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    for seed in range(6):
        subnet = net.space.sample(np.random.default_rng([seed]))
        padded = {
            name: [value for row in getattr(subnet, name) for value in [*row, *[row[0]] * (2 - len(row))]]
            for name in ("kernel", "expand")
        }
        theirs.set_active_subnet(ks=padded["kernel"], e=padded["expand"], d=list(subnet.depth))
        with torch.inference_mode():
            torch.testing.assert_close(net(images, subnet), theirs(images), rtol=1e-4, atol=1e-4)
    assert net.space.kernel == (3, 5, 7)
    assert net.architecture.variant == "se_b"
    assert net.architecture.width_mult == 0.1


def test_there_is_nothing_to_go_on_with(run: Path) -> None:
    with pytest.raises(RunError, match=r"^the run was imported, and has nothing to go on with: supernet\.init=RUN"):
        ofav2.resume(run)


def test_fine_tuning_starts_with_the_rate_of_the_recipes_last_phase(run: Path, recipe_file: str) -> None:
    (phase,) = read_run(run).phases
    rates = [phase.lr for phase in recipe.load(recipe_file).phases.values()]
    kept = recipe.parse(read_run(run).recipe, "recipe").phases[phase.name]
    assert kept.lr == rates[-1]


def test_sub_networks_of_an_imported_run_are_measured_and_extracted(run: Path, tmp_path: Path) -> None:
    opened = open_run(run)
    assert opened.same_data
    assert len(measure(opened, [opened.loaded.net.space.smallest()], "test")) == 1
    record = ofav2.extract(opened, opened.loaded.net.space.smallest(), tmp_path / "out", formats=("onnx",))
    assert record.provenance.phase == "imported"
    assert ofav2.load_subnet(tmp_path / "out")(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


def test_recipe_and_facts_of_an_imported_run_say_what_it_is(run: Path, checkpoint: Path) -> None:
    config = recipe.load(str(run / "recipe.yaml"))
    facts = json.loads((run / "run.json").read_text())
    assert (config.supernet.variant, config.supernet.stem_stride, list(config.phases)) == ("se_b", 2, ["imported"])
    assert facts["status"] == "finished"
    assert facts["imported"]["file"] == checkpoint.name
    assert len(facts["imported"]["sha256"]) == 64


def test_an_imported_run_can_be_reported_on(run: Path, tmp_path: Path) -> None:
    assert read_snapshot(run).record.phases[0].name == "imported"
    assert write_report(run, tmp_path / "report.html").is_file()


def test_a_plain_state_dict_gives_the_same_supernet(run: Path, recipe_file: str, tmp_path: Path) -> None:
    torch.save(peer().state_dict(), tmp_path / "plain.pth")
    other = import_ofa(tmp_path / "plain.pth", recipe_file, out=tmp_path / "run").folder
    assert tiny.same_bits(ofav2.load_supernet(other).state_dict(), ofav2.load_supernet(run).state_dict())


class Bomb:
    """Runs a command when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.target}",)


def saved(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def changed(path: Path, name: str, value: Any) -> Path:
    return saved(path, {**peer().state_dict(), name: value})


def cut_short(path: Path, share: float) -> Path:
    saved(path, peer().state_dict())
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    return path


HOSTILE = {
    "bomb": (lambda path: saved(path, {"state_dict": Bomb(path.parent / "ran")}), "can't be read"),
    "truncated": (lambda path: cut_short(path, 0.7), "can't be read"),
    "empty": (lambda path: cut_short(path, 0), "can't be read"),
    "text": (lambda path: path.write_text("hello") and path, "can't be read"),
    "missing": (lambda path: path, "there is none"),
    "list": (lambda path: saved(path, [torch.zeros(2)]), "holds no state dict"),
    "no tensors": (lambda path: saved(path, {}), "holds no state dict"),
    "not finite": (lambda path: changed(path, "classifier.linear.bias", torch.full((10,), torch.nan)), "finite"),
    "other names": (lambda path: saved(path, torch.nn.Conv2d(3, 8, 3).state_dict()), "has 0 blocks"),
    "a name too many": (lambda path: changed(path, "fc.weight", torch.zeros(2)), r"fc\.weight is no tensor"),
    "other width": (lambda path: changed(path, "first_conv.conv.weight", torch.zeros(48, 3, 3, 3)), "width multiplier"),
    "one number for many": (
        lambda path: changed(path, "classifier.linear.weight", torch.zeros(1).expand(10**5, 10**5)),
        "plain tensors",
    ),
    "other shape": (lambda path: changed(path, "blocks.3.conv.depth_conv.bn.bn.bias", torch.zeros(5)), "has shape"),
    "other classes": (
        lambda path: saved(path, peer(classes=4).state_dict()),
        "has 4 classes and .* digits 10",
    ),
    "other expand": (
        lambda path: saved(path, peer(expand_ratio_list=[4]).state_dict()),
        r"supernet\.expand \(2, 3\): .* 4",
    ),
    "other depth": (lambda path: saved(path, peer(depth_list=[3]).state_dict()), r"supernet\.depth \(1, 2\).* 3"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_is_no_checkpoint_for_this_recipe_is_one_line_and_nothing_is_written(
    case: str, recipe_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, message = HOSTILE[case]
    given = tmp_path / "given.pth"
    make(given)
    before = set(tmp_path.iterdir())
    with pytest.raises(UserError, match=message) as refusal:
        import_ofa(given, recipe_file, out=tmp_path / "run")
    assert "\n" not in str(refusal.value)
    assert set(tmp_path.iterdir()) == before
    assert main(["import-ofa", str(given), recipe_file, "--out", str(tmp_path / "run")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_few_large_shapes_take_no_memory(recipe_file: str, tmp_path: Path) -> None:
    """The tensors that tell of the supernet's size are large, and all others are small."""
    state = peer().state_dict()
    state["first_conv.conv.weight"] = torch.zeros(160, 3, 3, 3)
    state["classifier.linear.weight"] = torch.zeros(10, 12800)
    for block, width in zip(range(1, 10, 2), (240, 400, 800, 1120, 1600), strict=True):
        name = next(name for name in state if re.match(rf"blocks\.{block}\..*point_linear\.conv\.", name))
        state[name] = torch.zeros(width, 3, 1, 1)
    path = saved(tmp_path / "given.pth", state)
    assert path.stat().st_size < 2**21

    def refuse() -> None:
        with pytest.raises(UserError, match="has shape"):
            import_ofa(path, recipe_file, ["supernet.expand=[1]"], out=tmp_path / "run")

    assert peak(refuse) < GIB / 4


def test_too_small_a_resolution_is_refused(checkpoint: Path, recipe_file: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.resolutions \(16\): OFA's network needs 32"):
        import_ofa(checkpoint, recipe_file, ["data.resolutions=[16]"], out=tmp_path / "run")
    assert not any(tmp_path.iterdir())


def test_an_import_leaves_a_folder_with_something_in_it_alone(checkpoint: Path, recipe_file: str, run: Path) -> None:
    before = (run / "run.json").read_bytes()
    with pytest.raises(UserError, match="is not empty"):
        import_ofa(checkpoint, recipe_file, out=run)
    assert (run / "run.json").read_bytes() == before
