"""What an extraction writes: each file computes what the network does, all of them are there or none."""

import copy
import json
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import ofav2
from ofav2.deploy import export
from ofav2.deploy.agreement import TOLERANCE, largest_gap, require_same
from ofav2.deploy.artifact import SubnetRecord
from ofav2.errors import RunError, UserError
from ofav2.evaluation.opened_run import OpenedRun, open_run
from ofav2.runs import checkpoint
from supernets import Exits, SpaceError, Subnet, Supernet
from supernets.outputs import exit_logits
from tests.supernets.randomise import small_net

FILES = {"model.safetensors", "subnet.json", "trained_images.bin", "model.onnx", "model.pt2", "model_card.md"}


@dataclass(frozen=True)
class Extracted:
    """One extraction."""

    folder: Path
    record: SubnetRecord
    subnet: Subnet
    exits: Exits
    indices: tuple[int, ...]


@pytest.fixture(scope="module")
def opened(tiny_run: ofav2.Run) -> OpenedRun:
    return open_run(tiny_run.folder)


@pytest.fixture(scope="module", params=["last", (1, 3)], ids=str)
def extracted(request: pytest.FixtureRequest, opened: OpenedRun, tmp_path_factory: pytest.TempPathFactory) -> Extracted:
    exits = request.param
    subnet = opened.loaded.net.space.uniform(depth=1, level=1, height=3)
    out = tmp_path_factory.mktemp("extracted") / "out"
    indices = (3,) if exits == "last" else exits
    return Extracted(out, ofav2.extract(opened, subnet, out, exits), subnet, exits, indices)


def images(count: int, side: int = 16) -> Tensor:
    return torch.randn((count, 3, side, side), generator=torch.Generator().manual_seed(count))


def logits(extracted: Extracted, batch: Tensor) -> tuple[Tensor, ...]:
    with torch.inference_mode():
        return exit_logits(ofav2.load_subnet(extracted.folder)(batch))


def test_an_extraction_writes_all_its_files_and_no_other(extracted: Extracted) -> None:
    assert {path.name for path in extracted.folder.iterdir()} == FILES
    assert [path.name for path in extracted.folder.parent.iterdir()] == ["out"]
    assert ofav2.describe_subnet(extracted.folder) == extracted.record


@pytest.mark.parametrize("count", [1, 2, 7])
def test_the_onnx_file_takes_any_number_of_images(extracted: Extracted, count: int) -> None:
    session = onnxruntime.InferenceSession(extracted.folder / "model.onnx", providers=["CPUExecutionProvider"])
    names = ["logits"] if extracted.exits == "last" else [f"exit_{exit}" for exit in extracted.indices]
    assert [output.name for output in session.get_outputs()] == names
    assert [entry.name for entry in session.get_inputs()] == ["images"]
    batch = images(count)
    found = [torch.from_numpy(each) for each in session.run(None, {"images": batch.numpy()})]
    expected = logits(extracted, batch)
    assert [each.shape for each in found] == [(count, 10)] * len(extracted.indices)
    torch.testing.assert_close(found, list(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("side", [96, 100, 128])
def test_the_onnx_file_of_a_dense_network_makes_the_same_maps(side: int, tmp_path: Path) -> None:
    """Sides that the stages halve evenly, and one that they do not; bands as satellites have them."""
    sizes = {"num_classes": 4, "width_mult": 0.05, "in_channels": 7, "head_width": 6}
    net = small_net("ee_dp", seed=1, dtype=torch.float32, resolutions=(side,), **sizes).eval()
    module = net.extract(net.space.uniform(depth=2, level=1, height=3), exits="all")
    batch = torch.randn((3, 7, side, side), generator=torch.Generator().manual_seed(0))
    usage = {"outputs": export.output_names((1, 2, 3), single=False)}
    export.write_exports(module, batch[:2], usage, tmp_path, ("onnx",))
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    found = [torch.from_numpy(each) for each in session.run(None, {"images": batch.numpy()})]
    assert [each.shape for each in found] == [(3, 4, side, side)] * 3
    with torch.inference_mode():
        torch.testing.assert_close(found, list(exit_logits(module(batch))), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("extracted", [(1, 3)], ids=str, indirect=True)
def test_the_program_runs_where_this_project_is_not(extracted: Extracted, tmp_path: Path) -> None:
    batches = {str(count): images(count) for count in (1, 2, 7)}
    torch.save(batches, tmp_path / "batches.pt")
    code = (
        "import sys, torch; program = torch.export.load(sys.argv[1]).module()\n"
        "found = {key: program(batch) for key, batch in torch.load('batches.pt', weights_only=True).items()}\n"
        "assert not any(name.split('.')[0] in ('ofav2', 'supernets', 'distill') for name in sys.modules)\n"
        "torch.save(found, 'found.pt')"
    )
    program = str(extracted.folder / "model.pt2")
    subprocess.run([sys.executable, "-I", "-c", code, program], cwd=tmp_path, check=True, capture_output=True)
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    for key, batch in batches.items():
        torch.testing.assert_close(list(exit_logits(found[key])), list(logits(extracted, batch)))


def test_every_file_says_how_it_is_used(extracted: Extracted) -> None:
    given, names = extracted.record.input, extracted.record.exports.outputs
    expected = {
        "bands": ["red", "green", "blue"],
        "resolution": 16,
        "white": 255.0,
        "mean": list(given.mean),
        "std": list(given.std),
        "nodata": None,
        "eval_crop": given.eval_crop,
        "exif_orientation": True,
        "shrink_to": 0,
        "task": "classification",
        "classes": list(extracted.record.classes),
        "outputs": list(names),
    }
    assert ofav2.load_subnet(extracted.folder).meta["usage"] == expected
    files = {"usage.json": ""}
    torch.export.load(extracted.folder / "model.pt2", extra_files=files)
    assert json.loads(files["usage.json"]) == expected
    session = onnxruntime.InferenceSession(extracted.folder / "model.onnx", providers=["CPUExecutionProvider"])
    found = session.get_modelmeta().custom_metadata_map
    assert {name: found[name] if name == "task" else json.loads(found[name]) for name in expected} == expected
    assert [output.name for output in session.get_outputs()] == expected["outputs"]


def test_the_module_returns_the_chosen_exits(extracted: Extracted) -> None:
    output = ofav2.load_subnet(extracted.folder)(images(2))
    assert isinstance(output, Tensor) == (extracted.exits == "last")
    assert extracted.record.exits == ("last" if extracted.exits == "last" else extracted.indices)
    assert extracted.record.exit_indices == extracted.indices


def test_every_exit_has_the_accuracy_of_the_network_cut_there(extracted: Extracted, opened: OpenedRun) -> None:
    after = extracted.record.scores
    for split in (opened.data.val, opened.data.test):
        cuts = [replace(extracted.subnet, height=exit) for exit in extracted.indices]
        alone = {score.subnet: score.value for score in opened.evaluator.scores(opened.loaded.net, cuts, split)}
        assert after[split.name] == {cut.height: alone[cut] for cut in cuts}


def test_the_code_on_the_card_runs_in_its_folder(extracted: Extracted, monkeypatch: pytest.MonkeyPatch) -> None:
    code = (extracted.folder / "model_card.md").read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(extracted.folder)
    exec(code, {})


def test_facts_name_checks_and_origin(extracted: Extracted, opened: OpenedRun, tiny_run: ofav2.Run) -> None:
    extraction, exports, origin = extracted.record.extraction, extracted.record.exports, extracted.record.provenance
    assert extraction is not None
    assert extraction.supernet_gap <= TOLERANCE
    assert extraction.canary_gap is not None
    assert extraction.canary_gap > 0
    assert exports.batches == (1, 16)
    assert set(exports.largest_gap) == {"model.onnx", "model.pt2"}
    assert origin.recipe == (tiny_run.folder / "recipe.yaml").read_text(encoding="utf-8")
    assert origin.checkpoint_sha256 == opened.loaded.sha256
    parameters = sum(each.numel() for each in ofav2.load_subnet(extracted.folder).parameters())
    assert extracted.record.cost.params == parameters


def nothing_in(folder: Path) -> bool:
    return list(folder.iterdir()) == []


def with_other_weights(module: nn.Module) -> nn.Module:
    other = copy.deepcopy(module)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.1)
    return other


def test_a_wrong_onnx_file_is_found_and_nothing_is_written(
    opened: OpenedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = export._write_onnx

    def write_another(program: torch.export.ExportedProgram, *rest: Any) -> None:
        write(export._exported(with_other_weights(program.module()), images(2)), *rest)

    monkeypatch.setattr(export, "_write_onnx", write_another)
    with pytest.raises(RunError, match=r"^model\.onnx does not compute what it should: .*nothing was written"):
        ofav2.extract(opened, opened.loaded.net.space.smallest(), tmp_path / "out", formats=("onnx",))
    assert nothing_in(tmp_path)


def test_a_wrong_program_is_found_and_nothing_is_written(
    opened: OpenedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = export._exported

    monkeypatch.setattr(export, "_exported", lambda module, batch: make(with_other_weights(module), batch))
    with pytest.raises(RunError, match=r"^model\.pt2 does not compute"):
        ofav2.extract(opened, opened.loaded.net.space.smallest(), tmp_path / "out", formats=("pt2",))
    assert nothing_in(tmp_path)


def test_a_wrong_slice_is_found(opened: OpenedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    extract = Supernet.extract

    monkeypatch.setattr(Supernet, "extract", lambda *given: with_other_weights(extract(*given)))
    with pytest.raises(RunError, match="beside the supernet, does not compute what it should"):
        ofav2.extract(opened, opened.loaded.net.space.smallest(), tmp_path / "out")
    assert nothing_in(tmp_path)


def test_the_canary_finds_a_supernet_that_does_not_look_at_the_choices(
    opened: OpenedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, extract = Supernet.forward, Supernet.extract
    always = opened.loaded.net.space.smallest()
    monkeypatch.setattr(Supernet, "forward", lambda self, batch, subnet, *exits: forward(self, batch, always, *exits))
    monkeypatch.setattr(Supernet, "extract", lambda self, subnet, *exits: extract(self, always, *exits))
    with pytest.raises(RunError, match="have the same logits, so choices have no effect"):
        ofav2.extract(opened, opened.loaded.net.space.largest(), tmp_path / "out")
    assert nothing_in(tmp_path)


@pytest.mark.parametrize("exits", [(4, 2), (7,), (), "first", (2, 2), (0,)])
def test_impossible_exits_are_refused(opened: OpenedRun, tmp_path: Path, exits: Any) -> None:
    with pytest.raises(SpaceError, match="exits"):
        ofav2.extract(opened, opened.loaded.net.space.largest(), tmp_path / "out", exits)
    assert nothing_in(tmp_path)


def test_an_extraction_leaves_a_folder_with_something_in_it_alone(opened: OpenedRun, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    for taken in (tmp_path, tmp_path / "mine.txt"):
        with pytest.raises(UserError, match="is not empty"):
            ofav2.extract(opened, opened.loaded.net.space.smallest(), taken)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


def test_a_disk_that_is_full_leaves_nothing(opened: OpenedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch.export, "save", full)
    with pytest.raises(UserError, match=r"cannot be written \(No space left on device\)"):
        ofav2.extract(opened, opened.loaded.net.space.smallest(), tmp_path / "out")
    assert nothing_in(tmp_path)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_never_agree(bad: float) -> None:
    expected = torch.ones(2, 3)
    found = expected.clone()
    found[0, 0] = bad
    with pytest.raises(RunError):
        require_same([found], [expected], "x")
    with pytest.raises(RunError):
        require_same([expected], [found], "x")


def test_a_gap_between_logits_is_a_share_of_the_largest() -> None:
    expected, found = torch.tensor([[-8.0, 1.0]]), torch.tensor([[-8.0, 1.5]])
    assert largest_gap([found], [expected]) == 0.5 / 8
    assert largest_gap([expected], [expected]) == 0
    assert largest_gap([expected[:, :1]], [expected]) == float("inf")
    assert largest_gap([expected, expected], [expected]) == float("inf")
    assert largest_gap([torch.zeros(1, 2)], [torch.zeros(1, 2)]) == 0


# What `ofav2.load_subnet` must do without. torch itself takes numpy where it finds it.
LIBRARIES = (
    "numpy omegaconf wandb timm torchvision rich sklearn yaml PIL onnx onnxruntime onnxscript plotly jinja2 scipy"
)
SINGLE_PROCESS = f"""
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {set(LIBRARIES.split())!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
import torch
import ofav2
from safetensors.torch import load_file

module = ofav2.load_subnet(sys.argv[1])
found = module(load_file("batch.safetensors")["images"])
found = found if isinstance(found, tuple) else (found,)
torch.save([each.detach() for each in found], "found.pt")
"""


@pytest.mark.parametrize("extracted", [(1, 3)], ids=str, indirect=True)
def test_loading_needs_only_torch_and_safetensors(extracted: Extracted, tmp_path: Path) -> None:
    batch = images(3)
    (tmp_path / "batch.safetensors").write_bytes(checkpoint.tensor_bytes({"images": batch}))
    root = str(Path(ofav2.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", SINGLE_PROCESS, str(extracted.folder)],
        cwd=tmp_path,
        env={"PYTHONPATH": root, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    torch.testing.assert_close(found, list(logits(extracted, batch)))


def test_numpy_vectors_still_decode(opened: OpenedRun) -> None:
    space = opened.loaded.net.space
    subnet = space.sample(np.random.default_rng([1, 2]))
    assert space.decode(np.array(space.encode(subnet))) == subnet
