"""Write `docs/settings.md`, all settings of a recipe, from the schema: `python -m tests.settings_page`."""

from itertools import groupby

from ofav2.config.settings import Setting, settings
from tests.test_architecture import ROOT

PAGE = ROOT / "docs" / "settings.md"
HEAD = """\
# Settings

Every key of a recipe, and of `ofav2 finetune`, with its type, range and default. `ofav2 settings KEY` prints the same;
`python -m tests.settings_page` writes this page from the sources. [Recipes](recipes.md) says how to set them.
"""


def render() -> str:
    """Return the page's text."""
    lines = [HEAD]
    for section, found in groupby(settings(), key=lambda setting: setting.key.partition(".")[0]):
        lines += [f"## {section}", "", "| key | type | default | meaning |", "|---|---|---|---|"]
        lines += [_row(setting) for setting in found]
        lines.append("")
    return "\n".join(lines)


def _row(setting: Setting) -> str:
    kind = f"{setting.kind}; {setting.rule}" if setting.rule else setting.kind
    default = f"`{setting.default}`" if setting.default else ""
    return f"| `{setting.key}` | {kind} | {default} | {setting.sentence} |"


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
