"""The command as a user gives it, on real images, with all files written and read back."""

import re
from dataclasses import fields
from pathlib import Path

import onnxruntime
import pytest
import timm
import torch

import ofav2
import ofav2.timm_plugin
from ofav2.cli import console
from ofav2.cli import main as cli
from ofav2.config.schema import FinetuneConfig
from ofav2.finetuning.setup import prepare
from ofav2.tasks.class_results import share_error

FILES = {
    "model.safetensors",
    "subnet.json",
    "model.onnx",
    "model.pt2",
    "model_card.md",
    "recipe.yaml",
    "trained_images.bin",
}
LITTLE = ("data.val_fraction=0.4", "data.test_fraction=0.5", "data.batch_size=128", "finetune.epochs=1")


@pytest.fixture(scope="module")
def tuned(extracted: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A network fine-tuned on digits by the command line, and what it printed."""
    out = tmp_path_factory.mktemp("tuned") / "out"
    with pytest.MonkeyPatch.context() as patch:
        shown: list[str] = []
        patch.setattr(console, "show", shown.append)
        assert cli.main(["finetune", str(extracted), *LITTLE, "--out", str(out)]) == 0
    return out, "\n".join(shown)


def test_every_file_of_a_fine_tuned_network_computes_what_it_does(tuned: tuple[Path, str]) -> None:
    out, _ = tuned
    assert {entry.name for entry in out.iterdir()} == FILES
    assert [entry.name for entry in out.parent.iterdir()] == ["out"]
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = ofav2.load_subnet(out)(images)
        program = torch.export.load(str(out / "model.pt2")).module()(images)
        model = timm.create_model("ofav2_subnet", subnet_dir=out).eval()
        torch.testing.assert_close(program, expected)
        torch.testing.assert_close(model(images), expected)
    (logits,) = onnxruntime.InferenceSession(str(out / "model.onnx")).run(None, {"images": images.numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), expected, rtol=1e-4, atol=1e-4)


def test_test_accuracy_of_a_fine_tuned_network_can_be_measured_again(tuned: tuple[Path, str]) -> None:
    out, shown = tuned
    record = ofav2.describe_subnet(out)
    tuning = prepare(out)
    (top1,) = tuning.evaluator.exit_scores(ofav2.load_subnet(out), 16, tuning.data.test)
    assert record.scores == {"test": {3: top1}}
    error = share_error(top1, len(tuning.data.test))
    assert shown.splitlines()[-1].endswith(f" {100 * top1:.2f} ± {100 * error:.2f} %")
    assert record.finetuning[0].data_fingerprint == record.data_fingerprint == tuning.data.fingerprint
    data, images = tuning.data, record.finetuning[0].images
    assert (images.train, images.val, images.test) == (len(data.train), len(data.val), len(data.test))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["phases.full.lr=1", "--out", "{tmp}/out"], "phases ("),
        (["no.yaml", "--out", "{tmp}/out"], "recipe no.yaml: there is no such file"),
        (["--out", "{tmp}"], "output folder ("),
    ],
)
def test_a_wrong_finetune_command_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, extracted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    assert cli.main(["finetune", str(extracted), *(text.format(tmp=tmp_path) for text in arguments)]) == 2
    told = capsys.readouterr()
    assert told.err.startswith(f"ofav2: {message}")
    assert (len(told.err.splitlines()), told.out) == (1, "")
    assert [entry.name for entry in tmp_path.iterdir()] == ["mine.txt"]


def test_finetune_md_tells_every_key_with_its_default() -> None:
    page = (Path(__file__).resolve().parents[3] / "docs/finetune.md").read_text(encoding="utf-8")
    told = dict(re.findall(r"^\| `finetune\.(\w+)` \| ([^|]*?) \|", page, re.MULTILINE))
    assert list(told) == [field.name for field in fields(FinetuneConfig)]
    config = FinetuneConfig(lr=1.0)
    known = {name: value for name, value in told.items() if name not in ("lr", "eval_batch_size")}
    assert known == {name: f"{getattr(config, name):{'g' if name != 'exit_weights' else ''}}" for name in known}
