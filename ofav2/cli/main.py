"""The command `ofav2`: its verbs, their help, and how errors reach the user.

Results go to stdout, notes and progress to stderr. Exit codes: 0 done, 1 another process of the training is gone,
2 what was given can't be used, 75 a training was asked to stop and can be resumed, 130 interrupted.
"""

import argparse
import os
import re
import sys
from collections.abc import Sequence

from ofav2.cli import console, verbs
from ofav2.messages import one_line
from ofav2.runtime.memory import keep_freed_memory
from ofav2.runtime.signals import Lost, Stopped

LOST = 1
"""Exit code of a process whose training ended because another process of the run failed or is gone."""
STOPPED = 75
"""Exit code of a training that was asked to stop and can be resumed (`EX_TEMPFAIL`: try again)."""

# Only what parsing needs is imported here: torch takes seconds to load, and `--help` should not.

_EPILOG = """\
examples:
  ofav2 recipes                                list what can be trained
  ofav2 plan digits                            show a recipe's phases without training
  ofav2 train digits                           train it; prints the run folder
  ofav2 evaluate runs/digits                   measure the corner sub-networks on test
  ofav2 extract runs/digits --largest --out largest
  ofav2 finetune largest --out tuned           train what was taken out on
"""
_TRAIN_EPILOG = """\
examples:
  ofav2 train digits
  ofav2 train digits run.seed=1 tracking.mode=offline --run-dir runs/seed-1
  ofav2 train cifar10 data.root=/data/cifar10 data.download=true
  ofav2 train my_recipe.yaml phases.full.epochs=30
  ofav2 train --resume runs/digits             go on with a run that stopped
  ofav2 train digits --run-dir runs/a --resume auto    start it, or go on: for jobs that are started again
  torchrun --nproc-per-node 2 -m ofav2 train digits    two processes, each with half of every batch

SIGTERM or Ctrl-C lets the step end, saves the run's state and leaves with exit code 75; a second one leaves at once.

next: ofav2 evaluate RUN, ofav2 extract RUN --largest --out DIR
"""
_PLAN_EPILOG = """\
examples:
  ofav2 plan digits
  ofav2 plan tiny_imagenet_paper data.root=/data/tiny-imagenet-200

next: ofav2 train RECIPE
"""
_EVALUATE_EPILOG = """\
examples:
  ofav2 evaluate runs/digits                   corner sub-networks on the test split
  ofav2 evaluate runs/digits --split val --phase kernel
  ofav2 evaluate runs/digits --subnet mine.json

next: ofav2 extract RUN --subnet FILE.json --out DIR
"""
_EXTRACT_EPILOG = """\
examples:
  ofav2 extract runs/digits --largest --out largest
  ofav2 extract runs/digits --subnet mine.json --out mine
  ofav2 extract runs/digits --largest --exits 2,4 --out exits
  ofav2 extract runs/digits --max-macs 2M --max-params 200k --out small
  ofav2 extract runs/digits --max-latency 2ms --exit 3..5 --resolution 16 --candidates 50 --out quick

Limits (and --exit, --resolution, --candidates) rank random networks that keep them on validation and take the best:
counts in k, M, G; memory in B, kB, MB, GB, KiB, MiB, GiB; time in ns, us, ms, s (needs `ofav2 latency RUN` once).

It writes model.safetensors, subnet.json, model.onnx, model.pt2 and model_card.md, each checked on real images;
--formats onnx writes of the last three the ONNX file alone.

A sub-network file is JSON with the keys resolution, depth (one per stage), kernel, expand, level (a list per stage, one
entry per active block) and height; every subnet.json that this command writes holds one under the key "subnet", and
`ofav2.load_supernet(RUN).space.uniform(kernel=5).to_json()` makes one in Python.

next: ofav2 finetune DIR --out TUNED; with several exits, ofav2 calibrate DIR; in Python, ofav2.load_subnet(DIR)
"""
_EARLY_EPILOG = """\
examples:
  ofav2 calibrate exits                            the cheapest threshold that loses nothing on validation
  ofav2 calibrate exits --max-macs 1.5M            the most accurate one of that mean cost
  ofav2 calibrate exits --min-top1 0.96 --confidence margin --ensemble
  ofav2 calibrate exits data.root=/data/cifar10    where the images are now

DIR is what `ofav2 extract RUN --largest --exits all --out exits` makes, or the same with some exits such as 2,4.
It writes early_exits.json and early_exits.html into DIR. Validation chooses; test is measured for the chosen threshold.

next: in Python, ofav2.load_early_exits(DIR).decide(images, ofav2.load_exit_policy(DIR))
"""
_FINETUNE_EPILOG = """\
examples:
  ofav2 finetune small --out tuned             on the images that it was trained on
  ofav2 finetune small finetune.lr=0.001 finetune.epochs=50 --out tuned
  ofav2 finetune exits finetune.exit_weights=uniform --out tuned    all its exits together
  ofav2 finetune small data.name=imagefolder data.root=PATH --out mine    other classes: new classifiers
  ofav2 finetune small tuned/recipe.yaml run.seed=1 --out again

The first training finds, on validation, after how many epochs the network is best; the second one starts again from the
same weights and takes that many epochs on training and validation images together. Test images are looked at once.

Keys: run.{seed,device,precision,tf32,compile,threads}, data.*, optim.* as in recipes, and
finetune.{lr,epochs,patience,warmup_epochs,dropout,exit_weights,eval_batch_size}; docs/finetune.md tells them all.

Ctrl-C or SIGTERM leaves nothing behind.

next: in Python, ofav2.load_subnet(DIR)
"""
_LATENCY_EPILOG = """\
examples:
  ofav2 latency runs/digits                    writes runs/digits/latency.json
  ofav2 latency runs/digits --threads 4 --batch 8 --table desktop.json

next: ofav2 extract RUN --max-latency 2ms --out DIR
"""
_REPORT_EPILOG = """\
examples:
  ofav2 report runs/digits                     writes runs/digits/report.html
  ofav2 report runs/digits --exits             measures first how often the exits agree (needs the data set)
  ofav2 report runs/digits --out page.html     while it trains, too: make the page again to see more

next: open the page in a browser; it needs no network
"""
_COMPARE_EPILOG = """\
examples:
  ofav2 compare runs/digits runs/digits-2
  ofav2 compare runs/seed-* --out seeds.html

next: open the page in a browser; ofav2 report RUN shows one run in full
"""

_IMPORT_EPILOG = """\
examples:
  ofav2 import-ofa ofa_mbv3_d234_e346_k357_w1.0 imagenet_paper data.root=PATH --out runs/ofa

Width, classes and kernels are read off the checkpoint; the recipe says which images it was trained on, and which depths
and expansion ratios.

next: ofav2 evaluate RUN, ofav2 extract RUN --largest --out DIR
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        argv: Arguments without the program's name; None takes the process's.

    Returns:
        The exit code.
    """
    arguments = _parsed(argv)
    keep_freed_memory()
    try:
        with console.show_logs():
            arguments.verb(arguments)
    except Stopped as stopped:
        if _rank() == 0:
            console.say(f"ofav2: stopped after {stopped}; `ofav2 train --resume RUN` goes on from there")
        return STOPPED
    except Lost as lost:
        if _rank() == 0:
            console.say(f"ofav2: {lost}; `ofav2 train --resume RUN` goes on from the last saved state")
        return LOST
    except KeyboardInterrupt:
        console.say("ofav2: interrupted")
        return 130
    except BrokenPipeError:
        # Whoever reads the output has seen enough, as `head` does; what is left in buffers is written when Python ends.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (sys.stdout, sys.stderr):
            os.dup2(nowhere, stream.fileno())
        return 0
    except ValueError as error:
        if not _is_the_users(error):
            raise
        message = str(error)
        if message.startswith("Caught "):
            # A DataLoader's worker hands its error on with a traceback, of which the last line is the message.
            message = message.strip().splitlines()[-1].removeprefix("ofav2.errors.UserError: ")
        # Names that the user gave may hold line breaks.
        message = one_line(message)
        console.say(f"ofav2: process {_rank()}: {message}" if _rank() else f"ofav2: {message}")
        return 2
    return 0


def _parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments; settings may stand before options and after them.

    argparse takes positional arguments in one go, and leaves over what follows an option.
    """
    top = parser()
    arguments, left = top.parse_known_args(argv)
    if left and not (hasattr(arguments, "overrides") and all(re.match(r"[^-=][^=]*=", text) for text in left)):
        top.error(f"unrecognized arguments: {' '.join(left)}")
    if left:
        arguments.overrides = [*arguments.overrides, *left]
    return arguments


def _rank() -> int:
    from ofav2.runtime.processes import own_rank

    return own_rank()


def _is_the_users(error: ValueError) -> bool:
    from distill import DistillError
    from ofav2.errors import UserError
    from supernets import GraphError, SpaceError

    return isinstance(error, UserError | SpaceError | GraphError | DistillError)


def parser() -> argparse.ArgumentParser:
    """What the command takes: a parser per verb, with worked examples in its help."""
    parser = argparse.ArgumentParser(
        prog="ofav2",
        description="Train OFAv2 supernets in phases, and take sub-networks out.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="store_true", help="print the version and leave")
    parser.set_defaults(verb=verbs.without_verb, parser=parser)
    listed = parser.add_subparsers(title="verbs", metavar="VERB")

    def add(name: str, summary: str, epilog: str) -> argparse.ArgumentParser:
        return listed.add_parser(
            name, help=summary, description=summary, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
        )

    recipes = add("recipes", "List the recipes.", "next: ofav2 plan RECIPE, ofav2 train RECIPE\n")
    recipes.set_defaults(verb=verbs.list_recipes)

    plan = add("plan", "Show a recipe's phases, space sizes and steps, without training.", _PLAN_EPILOG)
    _add_recipe(plan)
    plan.set_defaults(verb=verbs.show_plan)

    train = add("train", "Train a recipe through all its phases.", _TRAIN_EPILOG)
    _add_recipe(train, needed=False)
    train.add_argument("--run-dir", metavar="DIR", help="run folder, new or empty (default: a new one under runs/)")
    train.add_argument(
        "--resume", metavar="RUN", help="go on with this run; `auto`: with the one in --run-dir, or start it"
    )
    train.add_argument(
        "--allow-change",
        metavar="KEY",
        action="append",
        default=[],
        help="accept that this key of a resumed run's recipe or data has changed; may be given several times",
    )
    train.set_defaults(verb=verbs.run_training)

    evaluate = add("evaluate", "Measure sub-networks of a run, batch norm recalibrated.", _EVALUATE_EPILOG)
    evaluate.add_argument("run", metavar="RUN", help="run folder")
    evaluate.add_argument("--subnet", metavar="FILE", help="measure this sub-network instead of the corners")
    evaluate.add_argument(
        "--split", choices=("test", "val"), default="test", help="images to measure on (default: test)"
    )
    evaluate.add_argument("--phase", metavar="NAME", help="weights of this phase (default: the last one)")
    evaluate.set_defaults(verb=verbs.evaluate_run)

    extract = add("extract", "Take a sub-network out of a run, as files.", _EXTRACT_EPILOG)
    extract.add_argument("run", metavar="RUN", help="run folder")
    which = extract.add_mutually_exclusive_group()
    which.add_argument("--largest", action="store_true", help="the largest sub-network that was trained")
    which.add_argument("--smallest", action="store_true", help="the smallest one")
    which.add_argument("--subnet", metavar="FILE", help="the one that this JSON file describes")
    _add_choice(extract)
    extract.add_argument(
        "--exits", metavar="WHICH", default="last", help="logits to return: last (default), all, or exits such as 2,4"
    )
    _add_formats(extract)
    extract.add_argument("--out", metavar="DIR", required=True, help="folder to make")
    extract.set_defaults(verb=verbs.extract_subnet)

    early = add("calibrate", "Let images leave a network with several exits early.", _EARLY_EPILOG)
    early.add_argument("directory", metavar="DIR", help="folder of `ofav2 extract --exits all`, or of chosen exits")
    early.add_argument("overrides", metavar="key=value", nargs="*", help="settings of its recipe, such as data.root")
    target = early.add_mutually_exclusive_group()
    target.add_argument("--max-macs", metavar="1.5M", help="mean multiply-adds per image, at most")
    target.add_argument("--min-top1", metavar="0.96", help="validation top-1, at least (0.96 or 96%%)")
    early.add_argument(
        "--confidence",
        metavar="NAME",
        default="max_softmax",
        help="how sure an exit is: max_softmax (default), entropy or margin",
    )
    early.add_argument("--ensemble", action="store_true", help="let an exit speak for all exits up to it")
    early.set_defaults(verb=verbs.calibrate)

    finetune = add("finetune", "Train an extracted network on, on its images or on others.", _FINETUNE_EPILOG)
    finetune.add_argument("directory", metavar="DIR", help="folder that `ofav2 extract`, or this command, made")
    finetune.add_argument("recipe", metavar="FILE.yaml", nargs="?", help="YAML file with settings to change")
    finetune.add_argument("overrides", metavar="key=value", nargs="*", help="settings to change")
    _add_formats(finetune)
    finetune.add_argument("--out", metavar="DIR", required=True, help="folder to make")
    finetune.set_defaults(verb=verbs.finetune_subnet)

    import_ofa = add("import-ofa", "Make a run folder out of an official OFA checkpoint.", _IMPORT_EPILOG)
    import_ofa.add_argument("checkpoint", metavar="CHECKPOINT", help="file of an OFA MobileNetV3 supernet")
    _add_recipe(import_ofa)
    import_ofa.add_argument("--out", metavar="RUN", required=True, help="run folder to make")
    import_ofa.set_defaults(verb=verbs.import_checkpoint)

    latency = add("latency", "Time a supernet's parts here, to predict and limit latency.", _LATENCY_EPILOG)
    latency.add_argument("run", metavar="RUN", help="run folder")
    latency.add_argument("--table", metavar="FILE", help="file to write (default: latency.json in the run folder)")
    latency.add_argument("--batch", metavar="N", type=int, default=1, help="images per call (default: 1)")
    latency.add_argument("--threads", metavar="N", type=int, help="CPU threads (default: the recipe's run.threads)")
    latency.set_defaults(verb=verbs.time_parts)

    report = add("report", "Write a run's page: what was trained, how it went, what came out.", _REPORT_EPILOG)
    report.add_argument("run", metavar="RUN", help="run folder")
    report.add_argument("--out", metavar="FILE", help="page to write (default: report.html in the run folder)")
    report.add_argument("--exits", action="store_true", help="measure exit agreement on validation and keep it")
    report.set_defaults(verb=verbs.write_page)

    compare = add("compare", "Put runs side by side: settings, results, fronts.", _COMPARE_EPILOG)
    compare.add_argument("runs", metavar="RUN", nargs="+", help="run folders, two or more")
    compare.add_argument("--out", metavar="FILE", help="page to write (default: compare.html here)")
    compare.set_defaults(verb=verbs.compare_pages)
    return parser


def _add_recipe(parser: argparse.ArgumentParser, needed: bool = True) -> None:
    parser.add_argument(
        "recipe",
        metavar="RECIPE",
        nargs=None if needed else "?",
        help="name out of `ofav2 recipes`, or path of a YAML file",
    )
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="settings to change")


def _add_formats(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--formats",
        metavar="NAMES",
        help="files beside weights and description: onnx,pt2,card (default: all), or none",
    )


def _add_choice(extract: argparse.ArgumentParser) -> None:
    choice = extract.add_argument_group("limits", "rank random networks that keep them on validation; take the best")
    choice.add_argument("--max-macs", metavar="30M", help="multiply-adds per image")
    choice.add_argument("--max-params", metavar="2M", help="parameters")
    choice.add_argument("--max-memory", metavar="512KiB", help="peak activation memory, batch 1, float32")
    choice.add_argument("--max-latency", metavar="8ms", help="latency that the run's table predicts")
    choice.add_argument("--exit", metavar="3", help="exits to end at: a number, a list 2,4 or a range 3..5")
    choice.add_argument("--resolution", metavar="48..64", help="resolutions, likewise")
    choice.add_argument("--candidates", metavar="N", type=int, help="networks to rank (default: 200)")
    choice.add_argument("--seed", metavar="N", type=int, help="seed of their draw (default: 0)")
    choice.add_argument(
        "--latency-table", metavar="FILE", help="table of `ofav2 latency` (default: latency.json in the run folder)"
    )
