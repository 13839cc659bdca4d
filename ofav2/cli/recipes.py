"""`ofav2 recipes`: list the recipes, or print one in full."""

import argparse
import shlex

from ofav2.cli import console
from ofav2.cli.arguments import add_recipe, shift_settings
from ofav2.cli.verb import Verb
from ofav2.config import recipe
from ofav2.config.settings import comment
from ofav2.errors import UserError
from ofav2.tables import table

_EPILOG = """\
examples:
  ofav2 recipes                                list them
  ofav2 recipes cifar10                        print one in full: its base merged, every key explained
  ofav2 recipes cifar10 > mine.yaml            start a recipe of your own from it
  ofav2 recipes cifar10 run.seed=1             the same with a setting changed

next: ofav2 plan RECIPE, ofav2 train RECIPE
"""


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe(parser, needed=False)


def _run(arguments: argparse.Namespace) -> None:
    shift_settings(arguments)
    if arguments.overrides and not arguments.recipe:
        raise UserError(f"{arguments.overrides[0]} has no effect on the list: name a recipe before it")
    if arguments.recipe:
        config = recipe.load(arguments.recipe, arguments.overrides)
        header = recipe.header(arguments.recipe)
        console.show(f"{header}\n{comment(recipe.dump(config))}".strip())
        console.say(f"next: ofav2 plan {shlex.join([arguments.recipe, *arguments.overrides])}")
        return
    rows = [(name, recipe.describe(name)) for name in recipe.names()]
    console.show(table("", ("recipe", "what it trains"), rows))
    console.say("next: ofav2 plan RECIPE, then ofav2 train RECIPE")


VERB = Verb("recipes", "List the recipes, or print one in full.", _EPILOG, _add_arguments, _run)
