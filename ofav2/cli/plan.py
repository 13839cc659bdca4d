"""`ofav2 plan`: show a recipe's phases, and what a network's exits cost, without training."""

import argparse
import json
import shlex
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ofav2.cli import console
from ofav2.cli.arguments import add_recipe
from ofav2.cli.verb import Verb
from ofav2.config import recipe
from ofav2.messages import duration, show
from ofav2.tables import table

if TYPE_CHECKING:
    from ofav2.config.schema import Config
    from ofav2.data import ImageData
    from ofav2.training.preview import Preview
    from ofav2.training.setup import Setup
    from supernets.multi_exit import MultiExit

_EPILOG = """\
examples:
  ofav2 plan digits
  ofav2 plan digits --json
  ofav2 plan digits --time                     how long its steps would take here
  ofav2 plan photos --images 5000 --classes 10    before there is a data set
  ofav2 plan tiny_imagenet_paper data.root=/data/tiny-imagenet-200
  ofav2 plan exits data.root=images network.name=mobilenetv3_small_100
  ofav2 plan exits data.root=images --latency

next: ofav2 train RECIPE
"""
_ROUNDS = 9
_MOST_CLASSES = 20
"""Classes that are listed one by one."""


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe(parser)
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")
    parser.add_argument("--images", metavar="N", type=int, help="plan without data: this many images, all splits")
    parser.add_argument("--classes", metavar="N", type=int, help="plan without data: in this many classes")
    parser.add_argument("--time", action="store_true", help="estimate the time from ten measured steps of each phase")
    parser.add_argument(
        "--latency", action="store_true", help="time a network's subsets of exits, at batches of 1 and 64 images"
    )


def _run(arguments: argparse.Namespace) -> None:
    config = recipe.load(arguments.recipe, arguments.overrides)
    from ofav2.errors import UserError
    from ofav2.training.beginning import check_beginning
    from ofav2.training.phases import plan_table
    from ofav2.training.preview import preview
    from ofav2.training.setup import prepare
    from ofav2.training.threads import settle_threads
    from ofav2.typed_json import to_plain
    from supernets.multi_exit import MultiExit

    if arguments.json and arguments.latency:
        raise UserError("--latency adds times to the table, which --json does not print: leave one of them out")
    setup = prepare(config, data=_imagined(config, arguments.images, arguments.classes))
    check_beginning(setup)
    if arguments.time:
        setup = settle_threads(setup)
    if arguments.latency and not isinstance(setup.net, MultiExit):
        raise UserError("--latency times exits of a network of timm: train the supernet, then use ofav2 latency RUN")
    found = preview(setup, arguments.time)
    if arguments.json:
        console.show_data(json.dumps(to_plain(found), ensure_ascii=False))
        return
    _show_images(found)
    columns, rows = plan_table(setup.plan)
    console.show(table(f"\n{arguments.recipe}", columns, rows))
    for sentence in (*setup.plan.skipped, *_orientation(setup.data, setup.config.data.exif_orientation)):
        console.show(sentence)
    if isinstance(setup.net, MultiExit):
        console.show(_costs(found, setup, setup.net, arguments.latency))
    else:
        rows = [(name, f"{cost.params:,}", f"{cost.macs:,}", shown) for name, (shown, cost) in found.networks.items()]
        console.show(table("\nnetworks", ("", "parameters", "multiply-adds", "choices"), rows))
    console.show(f"in all {setup.plan.steps:,} steps of {setup.config.data.batch_size} images")
    if found.seconds:
        each = ", ".join(f"{name} {duration(seconds)}" for name, seconds in found.seconds.items())
        uncompiled = ", of steps that are not compiled" if setup.config.run.compile else ""
        console.show(
            f"about {duration(sum(found.seconds.values()))} of training here, validations not counted{uncompiled}:\n"
            f"{each}"
        )
    needed = " data.root=PATH" if arguments.images and setup.config.data.root is None else ""
    console.say(f"next: ofav2 train {shlex.join([arguments.recipe, *arguments.overrides])}{needed}")


def _imagined(config: "Config", images: int | None, classes: int | None) -> "ImageData | None":
    """Return black images where counts are given in place of a data set."""
    from ofav2.data.blank import blank_data
    from ofav2.errors import UserError

    if images is None and classes is None:
        return None
    if images is None or classes is None:
        raise UserError("--images and --classes plan without data: give both")
    return blank_data(config.data, images=images, classes=classes)


def _show_images(found: "Preview") -> None:
    sizes = found.sizes
    different = [f"{height} x {width}" for height, width in dict.fromkeys(sizes or ())]
    range_of = " (smallest, median, largest)" if len(different) > 1 else ""
    seen = f" of {', '.join(different)} pixels{range_of}" if different else ""
    splits = ", ".join(f"{count:,} {name}" for name, count in found.images.items())
    console.show(f"{found.data}: {splits} images{seen}")
    if not found.classes:
        return
    if len(found.classes) <= _MOST_CLASSES:
        console.show(table("", ("class", *found.images), [(name, *counts) for name, counts in found.classes.items()]))
    else:
        counts = sorted(found.classes.items(), key=lambda item: item[1][0])
        (few, least), (many, most) = counts[0], counts[-1]
        console.show(f"{len(counts)} classes: {least[0]:,} training images ({few}) to {most[0]:,} ({many})")
    if found.imbalance:
        console.show(found.imbalance)


def _costs(found: "Preview", setup: "Setup", net: "MultiExit", timed: bool) -> str:
    """Return a table of what subsets of a network's exits cost per image, and of predicted times per call."""
    from ofav2.nas.latency import BATCHES, subset_times
    from ofav2.nas.limits import show
    from ofav2.runtime.threads import choose_threads, forward_pass, sample_images

    arch, side = net.architecture, max(net.space.resolution)
    rows: list[tuple[str, ...]] = [
        (", ".join(map(str, one.exits)), f"{one.cost.params:,}", f"{one.cost.macs:,}", show("memory", one.cost.memory))
        for one in found.subsets
    ]
    if timed:
        module = setup.runtime.place(net.network.eval())
        choices = [[exit - 1 for exit in one.exits] for one in found.subsets]
        if not setup.config.run.threads:
            some = setup.runtime.send(sample_images(max(BATCHES), arch.in_channels, side))
            choose_threads(forward_pass(module, some), "a forward pass", setup.runtime.device)
        for batch in BATCHES:
            images = setup.runtime.send(sample_images(batch, arch.in_channels, side))
            times = subset_times(module, images, choices, _ROUNDS)
            rows = [(*row, show("latency", time)) for row, time in zip(rows, times, strict=True)]
    columns = ("exits", "parameters", "multiply-adds", "memory", *(f"batch {batch}" for batch in BATCHES if timed))
    per_call = ", times per call of so many images" if timed else ""
    return table(f"{arch.name}: subsets of its {len(arch.exits)} exits{per_call}", columns, rows)


def _orientation(data: "ImageData", upright: bool) -> Iterator[str]:
    from ofav2.data.headers import count_turned

    found = count_turned(data)
    if found.turned:
        done = "are turned upright" if upright else "stay as they are stored"
        yield (
            f"{found.turned} of {found.of} images have an EXIF orientation and {done}"
            f" (data.exif_orientation={show(upright)})"
        )


VERB = Verb(
    "plan", "Show a recipe's phases, sizes, steps and exits' cost, without training.", _EPILOG, _add_arguments, _run
)
