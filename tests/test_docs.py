"""What the docs say of the sources is made from them, and their links lead somewhere."""

import argparse
import ast
import importlib
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest

import supernets
from ofav2.cli import main as cli
from ofav2.config import recipe
from ofav2.training.phases import make_plan
from tests import api_page, module_map
from tests.test_architecture import LAYERS, LEAVES, PACKAGES, ROOT

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def test_the_list_of_modules_is_made_from_the_tree() -> None:
    page = module_map.PAGE.read_text(encoding="utf-8")
    assert page == module_map.render(), "modules changed: run `python -m tests.module_map`"


def test_the_list_of_public_names_is_made_from_their_docstrings() -> None:
    page = api_page.PAGE.read_text(encoding="utf-8")
    assert page == api_page.render(), "the public API changed: run `python -m tests.api_page`"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_of_the_docs_leads_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8"))
    assert [target for target in targets if "://" not in target and not (page.parent / target).exists()] == []


def test_the_recipe_that_is_shown_loads_and_its_commands_are_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    shown, phases = re.findall(r"^```yaml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    (tmp_path / "my_recipe.yaml").write_text(shown, encoding="utf-8")
    (tmp_path / "phases.yaml").write_text(f"base: cifar10\n{phases}", encoding="utf-8")
    config = recipe.load(str(tmp_path / "phases.yaml"))
    space = supernets.create(config.supernet.variant, num_classes=2, width_mult=0.05).space
    planned = make_plan(config.phases, config.teacher, space, 10).phases
    assert [phase.objective for phase in planned] == ["joint", "distill_exits", "in_place"]
    monkeypatch.chdir(tmp_path)
    for command in re.findall(r"^ofav2 ([^#\n]+)", page, re.MULTILINE):
        arguments = cli.parser().parse_args(shlex.split(command))
        # What stands there of a fine-tuning is a setting.
        if getattr(arguments, "recipe", None) is not None and "=" not in arguments.recipe:
            recipe.load(arguments.recipe, arguments.overrides)


def test_architecture_lists_every_package_from_the_bottom_up() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    inside = [f"ofav2/{name}" for name in LAYERS if (ROOT / "ofav2" / name).is_dir()]
    assert re.findall(r"^\| `((?:ofav2/)?\w+)/` \|", page, re.MULTILINE) == [*LEAVES, *inside]


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if page.parent.name != "log"],  # the log keeps the names of its day
    ids=lambda page: page.relative_to(ROOT).as_posix(),
)
def test_every_source_that_the_docs_name_is_there(page: Path) -> None:
    named = re.findall(rf"`((?:{'|'.join(PACKAGES)}|tests|benchmarks)/[\w/.]+)`", page.read_text(encoding="utf-8"))
    assert [path for path in named if not (ROOT / path).exists()] == []


@pytest.mark.parametrize(
    "page", [page for page in PAGES if "```sh" in page.read_text(encoding="utf-8")], ids=lambda page: page.stem
)
def test_every_command_of_the_docs_is_one_that_the_parser_takes(page: Path) -> None:
    shell = "".join(re.findall(r"^```sh\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL))
    commands = [shlex.split(line, comments=True) for line in shell.replace("\\\n", " ").splitlines()]
    for command in (command for command in commands if command[:1] == ["ofav2"]):
        cli.parser().parse_args(command[1:])


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if "```sh" in page.read_text(encoding="utf-8") and page.parent.name != "log"],
    ids=lambda page: page.stem,
)
def test_commands_of_the_docs_can_be_pasted_into_any_shell(page: Path) -> None:
    """zsh takes no comments where one types, and takes brackets for patterns."""
    shell = "".join(re.findall(r"^```sh\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL))
    assert [line for line in shell.splitlines() if re.search(r"(^|\s)#(?!!|SBATCH)", line)] == []
    assert [line for line in shell.splitlines() if "[" in re.sub(r"'[^']*'", "", line)] == []


def benchmark_commands(text: str) -> Iterator[str]:
    """The commands of benchmarks that stand in a text: in blocks, in tables and in sentences."""
    text = re.sub(r"\\\n *", "", text)
    inline = r"`(python -m benchmarks\.\w+[^`]*)`"
    yield from re.findall(inline, text)
    for line in re.sub(inline, "", text).splitlines():
        # Three spaces set a remark apart.
        yield from re.findall(r"python -m benchmarks\.\w+[^#;]*", re.split(r"(?<=\S) {3,}", line.lstrip())[0])


def shown() -> Iterator[tuple[str, str]]:
    """Where commands of benchmarks stand, on pages and in docstrings, and they; `…` would leave something out."""
    texts = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in PAGES}
    for path in sorted(ROOT.glob("benchmarks/*.py")):
        texts[path.relative_to(ROOT).as_posix()] = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    for where, text in texts.items():
        yield from ((where, command) for command in benchmark_commands(text) if not re.search("NAME|…", command))


COMMANDS = list(shown())


@pytest.mark.parametrize(("where", "command"), COMMANDS, ids=[f"{i}-{where}" for i, (where, _) in enumerate(COMMANDS)])
def test_every_command_of_a_benchmark_is_one_that_it_takes(
    where: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, *given = shlex.split(re.sub(r"\$\w+|\bN\b", "1", command))[2:]

    class Taken(Exception):
        pass

    def stopping(parse: Callable[..., object]) -> Callable[..., NoReturn]:
        def taken(parser: argparse.ArgumentParser, arguments: list[str] | None = None) -> NoReturn:
            parse(parser, given if arguments is None else arguments)
            raise Taken

        return taken

    for name in ("parse_args", "parse_intermixed_args"):
        monkeypatch.setattr(argparse.ArgumentParser, name, stopping(getattr(argparse.ArgumentParser, name)))
    monkeypatch.setattr("sys.argv", [module, *given])
    with pytest.raises(Taken):
        importlib.import_module(module).main()
