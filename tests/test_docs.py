"""What the docs say of the sources is made from them, and their links lead somewhere."""

import re
from pathlib import Path

import pytest

from ofav2.cli import main as cli
from ofav2.config import recipe
from tests import module_map

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def test_the_list_of_modules_is_made_from_the_tree() -> None:
    page = module_map.PAGE.read_text(encoding="utf-8")
    assert page == module_map.render(), "modules changed: run `python -m tests.module_map`"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_of_the_docs_leads_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8"))
    assert [target for target in targets if "://" not in target and not (page.parent / target).exists()] == []


def test_the_recipe_that_is_shown_loads_and_its_commands_are_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"^```yaml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    (tmp_path / "my_recipe.yaml").write_text(shown, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    for command in re.findall(r"^ofav2 ([^#\n]+)", page, re.MULTILINE):
        arguments = cli.parser().parse_args(command.split())
        assert arguments.recipe is None or recipe.load(arguments.recipe, arguments.overrides)
