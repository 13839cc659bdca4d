"""`ofav2 finetune`: train an extracted network further."""

import argparse
import shlex

from ofav2.cli import console
from ofav2.cli.arguments import add_formats, read_formats, shift_settings
from ofav2.cli.verb import Verb
from ofav2.errors import UserError
from ofav2.tables import table

_EPILOG = """\
examples:
  ofav2 finetune small --out tuned             on the images that it was trained on
  ofav2 finetune small finetune.lr=0.001 finetune.epochs=50 --out tuned
  ofav2 finetune exits finetune.exit_weights=uniform --out tuned    all its exits together
  ofav2 finetune small data.name=imagefolder data.root=PATH --out mine    other classes: new classifiers
  ofav2 finetune small tuned/recipe.yaml run.seed=1 --out again
  ofav2 finetune timm:resnet18 data.root=PATH --out teacher     any network of timm, with its pretrained weights
  ofav2 finetune timm:resnet18 data.root=PATH --weights none --out teacher     fresh weights
  ofav2 finetune --from-search runs/digits/search --out tuned-front     all networks of a search's front
  ofav2 finetune --from-search runs/digits/search --forms single,joint finetune.epochs=20 --out tuned-front

The first training finds, on validation, after how many epochs the network is best; the second one starts again from the
same weights and takes that many epochs on training and validation images together. Test images are looked at once.

Keys: run.{seed,device,precision,tf32,compile,threads}, data.*, optim.* as in recipes, and
finetune.{lr,epochs,patience,warmup_epochs,dropout,exit_weights,eval_batch_size}; docs/finetune.md tells them all.

A network of timm has the settings of recipe `photos`, at the size of its pretrained weights unless data.resolutions
names another one. It can teach: teacher.policy=timm:NAME teacher.checkpoint=DIR.

Of a front, form `single` trains each network's own exit, `joint` all exits up to it together.

Ctrl-C or SIGTERM leaves nothing behind; of a front, the networks that are done stay, and the same command goes on.

next: ofav2 predict DIR IMAGE; in Python, ofav2.load_classifier(DIR)
"""


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "directory", metavar="DIR", nargs="?", help="folder that `ofav2 extract` or this command made, or timm:NAME"
    )
    parser.add_argument("recipe", metavar="FILE.yaml", nargs="?", help="YAML file with settings to change")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="settings to change")
    parser.add_argument(
        "--weights", metavar="timm|none|FILE", help="of timm:NAME: weights to start from (default: timm)"
    )
    add_formats(parser, "all; with --from-search none")
    parser.add_argument("--from-search", metavar="DIR", help="fine-tune the front of this search instead")
    parser.add_argument("--forms", metavar="NAMES", help="of a front: single (default), joint or single,joint")
    parser.add_argument("--out", metavar="DIR", required=True, help="folder to make")


def _run(arguments: argparse.Namespace) -> None:
    from ofav2.finetuning.run import finetune

    if arguments.from_search is not None:
        _run_front(arguments)
        return
    if arguments.directory is None:
        raise UserError("DIR is missing: name an extracted network, or a search with --from-search DIR")
    if arguments.forms is not None:
        raise UserError(f"--forms ({arguments.forms}) is of a search's front: name one with --from-search DIR")
    formats = read_formats(arguments.formats)
    shift_settings(arguments)
    written = finetune(
        arguments.directory,
        arguments.overrides,
        out=arguments.out,
        file=arguments.recipe,
        weights=arguments.weights,
        formats=formats,
    )
    done = written.finetuning[-1]
    before, after = done.test_before or {}, done.test
    metric, name = written.metric, written.metric.name
    images = done.images.test
    rows: list[tuple[object, ...]] = [
        (
            exit,
            metric.show_from(before[exit], images, 2) if exit in before else None,
            metric.show_from(score, images, 2),
        )
        for exit, score in after.items()
    ]
    if written.ensemble and written.by_class:
        rows.append(("ensemble", None, metric.show_from(written.by_class.accuracy, images, 2)))
    console.show(table(written.name, ("exit", f"test {name} before", f"test {name} fine-tuned"), rows))
    out = shlex.quote(arguments.out)
    predict = f"ofav2 predict {out} IMAGE\n      " if written.classifies_pictures else ""
    console.say(
        f"made {arguments.out}: {done.epochs} epochs on {done.images.train + done.images.val} images\n"
        f"next: {predict}ofav2 evaluate {out}"
    )


def _run_front(arguments: argparse.Namespace) -> None:
    from ofav2.finetuning.front import FORMS, TUNED_COLUMNS, check_forms, finetune_front, tuned_rows

    if arguments.weights is not None:
        raise UserError(f"--weights ({arguments.weights}) is of timm:NAME: leave it out, a front has its own weights")
    # What stands before the settings is no network here, but may be a file of settings.
    given = [text for text in (arguments.directory, arguments.recipe, *arguments.overrides) if text is not None]
    files = [text for text in given if "=" not in text]
    if len(files) > 1:
        raise UserError(f"{files[1]} is one file too many: with --from-search, give one YAML file at most")
    tuned = finetune_front(
        arguments.from_search,
        [text for text in given if "=" in text],
        out=arguments.out,
        forms=FORMS[:1] if arguments.forms is None else check_forms(arguments.forms.split(",")),
        file=files[0] if files else None,
        formats=() if arguments.formats is None else read_formats(arguments.formats),
    )
    console.show(table(f"{tuned.metric.name} of the last exit on test", TUNED_COLUMNS, tuned_rows(tuned)))
    first = f"{arguments.out}/{tuned.networks[0].folder}"
    console.say(f"made {arguments.out}\nnext: in Python, ofav2.load_subnet({first!r})")


VERB = Verb("finetune", "Train an extracted network on, on its images or on others.", _EPILOG, _add_arguments, _run)
