"""What was written is read back exactly, and what was tampered with is refused."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.fx import GraphModule

import ofav2
from ofav2.deploy.artifact import RECORD, WEIGHTS
from ofav2.errors import RunError
from ofav2.evaluation.opened_run import OpenedRun, load_run
from ofav2.evaluation.recalibration import adopt_statistics
from ofav2.networks.build import build_supernet
from ofav2.runs.records import Run
from supernets import Supernet
from tests.ofav2 import tiny

Damage = Callable[[Path], object]


def images(seed: int = 0) -> torch.Tensor:
    return torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def refusal(load: Callable[[Path], object], path: Path) -> str:
    """The one line with which a folder is refused."""
    with pytest.raises(RunError) as caught:
        load(path)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert str(path) in message
    return message


def edit(name: str, change: Callable[[dict[str, Any]], object]) -> Damage:
    """Change a JSON file."""

    def damage(path: Path) -> None:
        facts = json.loads((path / name).read_text())
        change(facts)
        (path / name).write_text(json.dumps(facts))

    return damage


# Supernets


def test_a_supernet_comes_back_ready_with_the_space_of_its_phase(tiny_run: Run) -> None:
    net = ofav2.load_supernet(tiny_run.folder)
    assert not any(module.training for module in net.modules())
    assert (net.space.kernel, net.space.depth, net.space.height) == ((3, 5), (1, 2), (1, 2, 3, 4, 5))
    early = ofav2.load_supernet(str(tiny_run.folder), "kernel")
    assert (early.space.kernel, early.space.depth, early.space.height) == ((3, 5), (2,), (5,))
    assert early.space.size() < net.space.size()


def test_the_last_finished_phase_is_taken_unless_one_is_named(tiny_run: Run) -> None:
    assert load_run(tiny_run.folder).phase == "expand"
    loaded = load_run(tiny_run.folder, "level")
    data = (tiny_run.folder / "checkpoints" / "level.safetensors").read_bytes()
    assert (loaded.phase, loaded.sha256) == ("level", hashlib.sha256(data).hexdigest())


def test_a_phase_that_left_nothing_is_refused_by_name(tiny_run: Run) -> None:
    message = refusal(lambda path: ofav2.load_supernet(path, "width"), tiny_run.folder)
    assert message.startswith("phase (width)")
    assert "full, kernel, level, height, depth, expand" in message


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: shutil.rmtree(path), "does not exist"),
        (lambda path: (path / "run.json").unlink(), "has no run.json"),
        (lambda path: (path / "run.json").write_text("{"), "is no JSON"),
        (lambda path: (path / "run.json").write_text("[]"), "must hold an object"),
        (edit("run.json", lambda facts: facts.update(format="ofav2-run/9")), "format ('ofav2-run/9')"),
        (edit("run.json", lambda facts: facts.pop("architecture")), "architecture is missing"),
        (edit("run.json", lambda facts: facts["architecture"].pop("depth")), "depth is missing"),
        (edit("run.json", lambda facts: facts.update(phases=[])), "no finished phase"),
        (edit("run.json", lambda facts: facts.update(phases=7)), "run.json"),
        (edit("run.json", lambda facts: facts["architecture"].update(kernel=[3, 4])), "kernel (4)"),
        (edit("run.json", lambda facts: facts["architecture"].update(num_classes=11)), "do not fit"),
        (edit("run.json", lambda facts: facts["phases"][-1]["space"].update(kernel=[9])), "kernel (9)"),
        (lambda path: (path / "checkpoints" / "expand.json").unlink(), "expand.json is missing"),
        (lambda path: (path / "checkpoints" / "expand.safetensors").unlink(), "expand.safetensors is missing"),
        (lambda path: (path / "checkpoints" / "expand.safetensors").write_bytes(b"\0" * 100), "checksum differs"),
        (
            lambda path: shutil.copy(path / "checkpoints/depth.safetensors", path / "checkpoints/expand.safetensors"),
            "checksum differs",
        ),
    ],
)
def test_a_damaged_or_foreign_run_is_refused(damage: Damage, message: str, run_copy: Path) -> None:
    damage(run_copy)
    assert message in refusal(ofav2.load_supernet, run_copy)


def test_a_file_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine")
    assert "is a file" in refusal(ofav2.load_supernet, tmp_path / "run")


# Extracted networks


def test_an_extracted_network_computes_what_the_recalibrated_supernet_does(extracted: Path, opened: OpenedRun) -> None:
    module = ofav2.load_subnet(extracted)
    net = supernet_of_its_own(opened)
    subnet = tiny.middle(opened.loaded.net.space)
    with torch.no_grad():
        assert not torch.allclose(net(images(), subnet), module(images()), rtol=1e-3), "recalibrated, so different"
        adopt_statistics(net, module)
        torch.testing.assert_close(net(images(), subnet), module(images()), rtol=1e-4, atol=1e-5)
        assert module(images()).shape == (4, 10)


def supernet_of_its_own(opened: OpenedRun) -> Supernet:
    """Another supernet with the run's weights."""
    record = opened.loaded.record
    net = build_supernet(record.architecture, record.space.resolution)
    net.load_state_dict(opened.loaded.net.state_dict())
    return net.eval()


def test_a_loaded_network_is_made_of_torchs_own_modules_alone(extracted: Path) -> None:
    module = ofav2.load_subnet(str(extracted))
    assert isinstance(module, GraphModule)
    assert {type(layer).__module__.partition(".")[0] for layer in module.modules()} == {"torch"}
    called = [node.target for node in module.graph.nodes if node.op == "call_function"]
    assert {getattr(function, "__module__", "").partition(".")[0] for function in called} <= {"_operator", "torch"}
    assert not any(layer.training for layer in module.modules())


def test_reading_twice_gives_two_networks(extracted: Path) -> None:
    first, second = ofav2.load_subnet(extracted), ofav2.load_subnet(extracted)
    assert tiny.same_bits(first.state_dict(), second.state_dict())
    with torch.no_grad():
        next(first.parameters()).add_(1)
    assert not tiny.same_bits(first.state_dict(), second.state_dict())


@pytest.fixture
def damaged(extracted: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(extracted, tmp_path / "damaged"))


def forge(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Put other weights there, with the right checksum."""
    save_file(tensors, path / WEIGHTS)
    forge_checksum(path)


def forge_checksum(path: Path) -> None:
    checksum = hashlib.sha256((path / WEIGHTS).read_bytes()).hexdigest()
    edit(RECORD, lambda facts: facts.update(sha256=checksum))(path)


def without_stem(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in tensors.items() if name != "stem.conv.weight"}


def flip_a_bit(path: Path) -> None:
    data = bytearray((path / WEIGHTS).read_bytes())
    data[-5] ^= 1
    (path / WEIGHTS).write_bytes(data)


def forge_garbage(path: Path) -> None:
    (path / WEIGHTS).write_bytes(b"no tensors at all")
    forge_checksum(path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: shutil.rmtree(path), "has no subnet.json"),
        (lambda path: (path / RECORD).unlink(), "has no subnet.json"),
        (lambda path: (path / RECORD).write_text("{"), "is no JSON"),
        (lambda path: (path / RECORD).write_text("3"), "must hold an object"),
        (lambda path: (path / WEIGHTS).unlink(), "is missing"),
        (flip_a_bit, "checksum differs"),
        (edit(RECORD, lambda facts: facts.update(sha256="0" * 64)), "checksum differs"),
        (edit(RECORD, lambda facts: facts.update(sha256=None)), "sha256 (null) must be text"),
        (edit(RECORD, lambda facts: facts.update(format="other")), "format ('other')"),
        (edit(RECORD, lambda facts: facts.pop("sha256")), "sha256 is missing"),
        (edit(RECORD, lambda facts: facts.pop("subnet")), "subnet is missing"),
        (edit(RECORD, lambda facts: facts["subnet"].pop("depth")), "depth"),
        (edit(RECORD, lambda facts: facts["subnet"].update(height=9)), "depth has 3 entries"),
        (
            edit(RECORD, lambda facts: facts.update(exits=[5])),
            "exits ((5,)) must be ascending numbers out of [1, 2, 3]",
        ),
        (edit(RECORD, lambda facts: facts.update(exits=[3, 2])), "exits ((3, 2))"),
        (edit(RECORD, lambda facts: facts.update(classes=["0"])), "classes has 1 names for 10 classes"),
        (edit(RECORD, lambda facts: facts["input"].update(resolution=20)), "input has other channels"),
        (edit(RECORD, lambda facts: facts["input"].update(mean=[0.5])), "input: mean has 1 numbers for 3 channels"),
        (edit(RECORD, lambda facts: facts["scores"].pop("test")), "scores must have those on test"),
        (edit(RECORD, lambda facts: facts["scores"]["test"].update({"9": 0.5})), "scores must have those on test"),
        (edit(RECORD, lambda facts: facts.update(extraction=None)), "extraction must be there"),
        (edit(RECORD, lambda facts: facts["provenance"].update(more=1)), "provenance.more is not a key"),
        (edit(RECORD, lambda facts: facts["subnet"]["kernel"][0].__setitem__(0, 9)), "kernel[0][0] (9)"),
        (edit(RECORD, lambda facts: facts["subnet"]["kernel"][0].__setitem__(0, 5)), "do not fit"),
        (edit(RECORD, lambda facts: facts["architecture"].update(variant="xx")), "'xx'"),
        (edit(RECORD, lambda facts: facts["architecture"].update(num_classes="ten")), "'ten'"),
        (edit(RECORD, lambda facts: facts["architecture"].update(width_mult=0.2)), "does not go with"),
        (edit(RECORD, lambda facts: facts.update(architecture=[1])), "architecture ([1]) must be a mapping"),
        (lambda path: forge(path, {"weight": torch.zeros(3)}), "do not fit"),
        (lambda path: forge(path, without_stem(load_file(path / WEIGHTS))), "do not fit"),
        (forge_garbage, "model.safetensors"),
    ],
)
def test_a_tampered_network_is_refused(damage: Damage, message: str, damaged: Path) -> None:
    damage(damaged)
    assert message in refusal(ofav2.load_subnet, damaged)


def test_a_run_is_no_extracted_network(tiny_run: Run) -> None:
    assert "has no subnet.json" in refusal(ofav2.load_subnet, tiny_run.folder)
