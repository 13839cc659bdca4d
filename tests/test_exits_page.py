"""What docs/exits.md shows is what there is: its commands and its Python run."""

import re
import shlex
from pathlib import Path

import pytest

from ofav2.cli.main import main
from ofav2.config import recipe
from ofav2.exits import prune
from ofav2.networks.backbone import attach_exits
from tests.ofav2.data.conftest import write_classes

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "exits.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
# The same with less: a smaller network, and a few steps.
LESS = ["network.name=test_resnet", "phases.all.epochs=1", "phases.all.warmup_epochs=0", "data.batch_size=8"]
LESS += ["run.device=cpu", "run.threads=1"]


def first_commands() -> list[list[str]]:
    """The commands that lead from a folder of images to a pruned ONNX file."""
    shell = next(text for kind, text in BLOCKS if kind == "sh")
    lines = [shlex.split(line) for line in shell.replace("\\\n", " ").splitlines()]
    return [words[1:] for words in lines if words[0] == "ofav2"]


@pytest.mark.slow
def test_the_first_commands_lead_from_images_to_an_onnx_file_that_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(prune, "ROUNDS", 1)
    write_classes(tmp_path / "images", {"a": 12, "b": 12})
    commands = first_commands()
    assert [command[0] for command in commands] == ["plan", "train", "prune"]
    more = {"plan": LESS, "train": LESS, "prune": ["--formats", "onnx"]}
    for command in commands:
        assert main([*command[:2], *more[command[0]], *command[2:]]) == 0
    (code,) = (text for kind, text in BLOCKS if kind == "python" and "onnxruntime" in text)
    found: dict[str, object] = {}
    exec(code, found)
    assert found["logits"].shape == (1, 2)  # type: ignore[attr-defined]


def test_attaching_exits_works_as_shown() -> None:
    (code,) = (text for kind, text in BLOCKS if kind == "python" and "attach_exits" in text)
    found: dict[str, object] = {}
    exec(code, found)
    assert [tuple(logits.shape) for logits in found["per_exit"]] == [(2, 10)] * 4  # type: ignore[attr-defined]


def test_the_recipe_that_is_shown_loads(tmp_path: Path) -> None:
    (text,) = (text for kind, text in BLOCKS if kind == "yaml")
    (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
    config = recipe.load(str(tmp_path / "mine.yaml"))
    assert (config.network.kind, list(config.phases)) == ("timm", ["all"])


def test_the_table_names_every_setting_of_a_network_and_its_argument() -> None:
    rows = re.findall(r"^\| `(network|data)\.(\w+)` \| `(\w+)` \|", PAGE, re.MULTILINE)
    assert {argument for *_, argument in rows} <= set(attach_exits.__annotations__)
    assert {key for section, key, _ in rows if section == "network"} == {
        "name",
        "exits",
        "head",
        "weights",
        "drop_rate",
    }
