"""`ofav2 settings`: look up settings."""

import argparse
import textwrap
from collections.abc import Iterator

from ofav2.cli import console
from ofav2.cli.verb import Verb
from ofav2.config.settings import Setting, find_settings, settings

_EPILOG = """\
examples:
  ofav2 settings                               all settings of a recipe, then those of `ofav2 finetune`
  ofav2 settings data                          a section
  ofav2 settings phases.full.epochs            one setting
  ofav2 settings epochs                        all settings of that name

next: ofav2 train RECIPE KEY=VALUE
"""
_WIDTH = 80


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("key", metavar="KEY", nargs="?", help="setting, section, or last part of a key")


def _run(arguments: argparse.Namespace) -> None:
    found = settings() if arguments.key is None else find_settings(arguments.key)
    console.show("\n\n".join("\n".join(_lines(setting)) for setting in found))


def _lines(setting: Setting) -> Iterator[str]:
    yield f"{setting.key} = {setting.default or '(no default)'}"
    yield from _indented(f"{setting.kind}; {setting.rule}" if setting.rule else setting.kind)
    yield from _indented(setting.sentence)


def _indented(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent="    ", subsequent_indent="    ")


VERB = Verb("settings", "Look up settings: type, range, default, meaning.", _EPILOG, _add_arguments, _run)
