"""`ofav2 import-ofa`: turn an official OFA checkpoint into a run folder."""

import argparse
import shlex

from ofav2.cli import console
from ofav2.cli.arguments import add_recipe
from ofav2.cli.verb import Verb

_EPILOG = """\
examples:
  ofav2 import-ofa ofa_mbv3_d234_e346_k357_w1.0 imagenet_paper data.root=PATH --out runs/ofa

Width, classes and kernels are read off the checkpoint; the recipe says which images it was trained on, and which depths
and expansion ratios.

next: ofav2 evaluate RUN, ofav2 extract RUN --largest --out DIR
"""


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="file of an OFA MobileNetV3 supernet")
    add_recipe(parser)
    parser.add_argument("--out", metavar="RUN", required=True, help="run folder to make")


def _run(arguments: argparse.Namespace) -> None:
    from ofav2.training.import_ofa import import_ofa

    run = import_ofa(arguments.checkpoint, arguments.recipe, arguments.overrides, out=arguments.out)
    arch = run.record.architecture
    console.show(str(run.folder))
    folder, largest = shlex.quote(str(run.folder)), shlex.quote(f"{run.folder.resolve().name}-largest")
    console.say(
        f"made {run.folder}: {arch.variant}, {arch.num_classes} classes\n"
        f"next: ofav2 evaluate {folder}\n"
        f"      ofav2 extract {folder} --largest --out {largest}"
    )


VERB = Verb("import-ofa", "Make a run folder out of an official OFA checkpoint.", _EPILOG, _add_arguments, _run)
