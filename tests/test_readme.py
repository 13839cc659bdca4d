"""What README.md tells people to do works: its Python runs, its commands, targets, files and links are there."""

import re
import shlex
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import ofav2
from ofav2.cli import main as cli
from ofav2.config import recipe
from ofav2.runs.records import Run
from tests.ofav2 import tiny

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DIGITS_TRAIN_IMAGES = 1797
LITTLE = ("data.val_fraction=0.01", "data.test_fraction=0.01", "data.resolutions=[16]")


def blocks(language: str) -> list[str]:
    """The README's code blocks in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    """Every command line of its shell blocks, comments and line continuations taken out."""
    text = "\n".join(blocks("(?:sh|bash|shell|console)")).replace("\\\n", " ")
    lines = [line.strip().removeprefix("$ ").partition("  #")[0].strip() for line in text.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def mentioned() -> list[str]:
    """Every piece of code in the running text."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", README, flags=re.MULTILINE | re.DOTALL))


def test_python_of_the_readme_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it stands, but training is shrunk to two steps a phase, and networks are written without exports."""
    monkeypatch.chdir(tmp_path)
    train = ofav2.train
    monkeypatch.setattr(ofav2, "extract", partial(ofav2.extract, formats=("card",)))
    trained: list[str] = []

    def train_little(recipe_name: str, overrides: Any = (), run_dir: Any = None) -> Run:
        trained.append(recipe_name)
        little = [*tiny.shrunk(recipe_name, train_images=DIGITS_TRAIN_IMAGES), *LITTLE]
        return train(recipe_name, [*overrides, *little], run_dir)

    monkeypatch.setattr(ofav2, "train", train_little)
    written = blocks("python")
    assert written
    namespace: dict[str, Any] = {"__name__": "readme"}
    for number, block in enumerate(written, start=1):
        exec(compile(block, f"README.md, Python block {number}", "exec"), namespace)
    assert trained, "it shows how to train"


def test_commands_of_the_readme_are_ones_that_the_parser_takes() -> None:
    found = [shlex.split(line)[1:] for line in commands() if line.startswith("ofav2 ")]
    assert found
    for arguments in found:
        parsed = cli.parser().parse_args(arguments)
        if getattr(parsed, "recipe", None) in recipe.names():
            recipe.load(parsed.recipe, parsed.overrides)


def test_every_verb_that_the_readme_names_exists(capsys: pytest.CaptureFixture[str]) -> None:
    verbs = {text.split()[1] for text in [*commands(), *mentioned()] if re.match(r"ofav2 [a-z]", text)}
    assert {"train", "plan", "evaluate", "extract"} <= verbs
    for verb in verbs:
        with pytest.raises(SystemExit) as ended:
            cli.main([verb, "--help"])
        assert ended.value.code == 0, verb
        assert f"usage: ofav2 {verb} " in capsys.readouterr().out


def test_every_make_target_that_the_readme_names_exists() -> None:
    named = {text.split()[1] for text in [*commands(), *mentioned()] if re.match(r"make [a-z]", text)}
    there = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert {"demo", "test"} <= named
    assert named <= there


def test_every_recipe_is_listed_in_the_readme() -> None:
    assert set(re.findall(r"^\| `([a-z0-9_]+)` \|", README, re.MULTILINE)) >= set(recipe.names())
