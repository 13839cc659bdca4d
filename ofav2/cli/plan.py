"""`ofav2 plan`: show a recipe's phases without training."""

import argparse
import shlex

from ofav2.cli import console
from ofav2.cli.arguments import add_recipe
from ofav2.cli.verb import Verb
from ofav2.config import recipe
from ofav2.tables import table

_EPILOG = """\
examples:
  ofav2 plan digits
  ofav2 plan tiny_imagenet_paper data.root=/data/tiny-imagenet-200

next: ofav2 train RECIPE
"""


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe(parser)


def _run(arguments: argparse.Namespace) -> None:
    config = recipe.load(arguments.recipe, arguments.overrides)
    from ofav2.training.phases import plan_table
    from ofav2.training.setup import prepare

    setup = prepare(config)
    columns, rows = plan_table(setup.plan)
    console.show(
        table(f"{arguments.recipe}: {setup.data.name}, {len(setup.data.train)} training images", columns, rows)
    )
    for sentence in setup.plan.skipped:
        console.show(sentence)
    console.show(f"in all {setup.plan.steps:,} steps of {setup.config.data.batch_size} images")
    console.say(f"next: ofav2 train {shlex.join([arguments.recipe, *arguments.overrides])}")


VERB = Verb("plan", "Show a recipe's phases, space sizes and steps, without training.", _EPILOG, _add_arguments, _run)
