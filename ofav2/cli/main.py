"""Parse the command line of `ofav2`, run a verb, and turn errors into messages and exit codes.

Results go to stdout, notes and progress to stderr. Exit codes:

- 0: done;
- 1: another process of the work is gone;
- 2: what was given can't be used;
- 74: the result could not be written to stdout;
- 75: a training was told to stop and can be resumed;
- 130: interrupted.
"""

import argparse
import os
import re
import shlex
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from typing import NoReturn

from ofav2.cli import (
    calibrate,
    compare,
    console,
    evaluate,
    extract,
    finetune,
    import_ofa,
    latency,
    patches,
    plan,
    predict,
    prune,
    recipes,
    report,
    search,
    settings,
    train,
)
from ofav2.config.settings import settings as settings_of_recipes
from ofav2.errors import UserError
from ofav2.messages import one_line
from ofav2.runtime.memory import keep_freed_memory
from ofav2.runtime.signals import Lost, Stopped

_RESUMED = (train.VERB.name, search.VERB.name)
"""Verbs whose work goes on with `--resume`."""
LOST = 1
"""Exit code of a process whose work ended because another process of it failed or is gone."""
UNWRITTEN = 74
"""Exit code of a command whose result could not be written to stdout (`EX_IOERR`)."""
STOPPED = 75
"""Exit code of a training that was told to stop and can be resumed (`EX_TEMPFAIL`: try again)."""

VERBS = tuple(
    module.VERB
    for module in (
        recipes,
        settings,
        plan,
        train,
        evaluate,
        search,
        extract,
        predict,
        prune,
        calibrate,
        finetune,
        import_ofa,
        patches,
        latency,
        report,
        compare,
    )
)
"""The verbs in the order in which help lists them."""

_EPILOG = """\
examples:
  ofav2 recipes                                list what can be trained
  ofav2 plan digits                            show a recipe's phases without training
  ofav2 train digits                           train it; prints the run folder
  ofav2 evaluate runs/digits                   measure the corner sub-networks on test
  ofav2 extract runs/digits --largest --out largest
  ofav2 predict largest photo.jpg              classify images with it
  ofav2 finetune largest --out tuned           train what was taken out on
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments without the program's name; None takes the process's.

    Returns:
        The exit code.
    """
    console.occupy_standard_files()
    try:
        return _exit_code(_parsed(argv))
    finally:
        console.let_go()


def _exit_code(arguments: argparse.Namespace) -> int:
    """Run a verb; say how it ended, where it did not end well."""
    keep_freed_memory()
    try:
        with console.show_logs():
            (arguments.verb.run if arguments.verb else _run_without_verb)(arguments)
    except Stopped as stopped:
        if _rank() == 0:
            run = shlex.quote(stopped.folder)
            console.say(f"ofav2: stopped after {stopped}; `ofav2 {stopped.verb} --resume {run}` goes on from there")
        return STOPPED
    except Lost as lost:
        if _rank() == 0:
            verb = arguments.verb.name if arguments.verb else ""
            again = f"`ofav2 {verb} --resume FOLDER` goes on" if verb in _RESUMED else "start it again"
            console.say(f"ofav2: {lost}; {again}")
        return LOST
    except KeyboardInterrupt:
        console.say("ofav2: interrupted")
        return 130
    except console.UnwrittenError as error:
        console.say(f"ofav2: stdout can't be written ({error}): the work is done, its result was to be shown there")
        return UNWRITTEN
    except (RuntimeError, MemoryError) as error:
        if _ran_out(error):
            reason = one_line(str(error)).strip().partition(" If reserved")[0] or "no more can be had"
            console.say(
                f"ofav2: memory ran out ({reason}): lower data.batch_size, evaluation.batch_size or data.resolutions"
            )
            return 2
        if not str(error).startswith("DataLoader worker"):
            raise
        # torch raises it wherever the training process happens to be.
        console.say(
            f"ofav2: a process that reads images is gone ({one_line(str(error)).strip()}): memory may be short; lower"
            " data.workers, and go on with a training by `ofav2 train --resume RUN`"
        )
        return LOST
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
    """Return the arguments; settings may stand before options and after them.

    argparse takes positional arguments in one go, and leaves over what follows an option.
    """
    top = parser()
    given = _as_option(sys.argv[1:] if argv is None else argv)
    if given and not given[0].startswith("-") and given[0] not in (names := [verb.name for verb in VERBS]):
        near = get_close_matches(given[0], names, n=1)
        hint = f"did you mean `ofav2 {near[0]}`?" if near else f"choose one of {', '.join(names)}"
        top.error(f"no verb {one_line(given[0])}; {hint}")
    arguments, left = top.parse_known_args(given)
    if left and not (hasattr(arguments, "overrides") and all(re.match(r"[^-=][^=]*=", text) for text in left)):
        top.error(f"unrecognized arguments: {one_line(' '.join(left))}{_setting_meant(left[0])}")
    if left:
        arguments.overrides = [*arguments.overrides, *left]
    return arguments


def _as_option(given: Sequence[str]) -> list[str]:
    """Return the arguments with `help` and `help VERB` as the option --help."""
    return [*given[1:2], "--help"] if given and given[0] == "help" else list(given)


def _setting_meant(option: str) -> str:
    """Return what to write where an unknown option has the name of a setting, as in --epochs 5."""
    name = option.lstrip("-").partition("=")[0].replace("-", "_")
    meant = [setting.key for setting in settings_of_recipes() if setting.key.rpartition(".")[2] == name]
    return f"; settings are given as {' or '.join(f'{key}=VALUE' for key in meant)}" if meant else ""


def _rank() -> int:
    """Return the number of this process; 0 where the environment names none that can be."""
    if "RANK" not in os.environ:
        return 0
    from ofav2.runtime.processes import own_rank

    try:
        return own_rank()
    except UserError:
        return 0


def _ran_out(error: Exception) -> bool:
    """Say whether memory of the machine or of its card is too small."""
    # By name, as torch may not be loaded; of the machine's memory torch says so in the text alone.
    named = type(error).__name__ in ("OutOfMemoryError", "MemoryError")
    return named or "DefaultCPUAllocator: " in str(error)


def _is_the_users(error: ValueError) -> bool:
    if isinstance(error, UserError):
        return True
    # Only now, as they load torch.
    from distill import DistillError
    from supernets import GraphError, SpaceError

    return isinstance(error, SpaceError | GraphError | DistillError)


class _Parser(argparse.ArgumentParser):
    """argparse's, whose refusals show arguments without what a terminal would obey: shells write names of files in."""

    def error(self, message: str) -> NoReturn:
        super().error(one_line(message))


def parser() -> argparse.ArgumentParser:
    """Return what the command takes: a parser per verb, with worked examples in its help."""
    top = _Parser(
        prog="ofav2",
        description="Train OFAv2 supernets in phases, and take sub-networks out.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="store_true", help="print the version and exit")
    top.set_defaults(verb=None, parser=top)
    listed = top.add_subparsers(title="verbs", metavar="VERB")
    for verb in VERBS:
        own = listed.add_parser(
            verb.name,
            help=verb.summary,
            description=verb.summary,
            epilog=verb.epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        verb.add_arguments(own)
        own.set_defaults(verb=verb)
    return top


def _run_without_verb(arguments: argparse.Namespace) -> None:
    if arguments.version:
        from importlib.metadata import PackageNotFoundError, version

        try:
            console.show(version("ofav2"))
        except PackageNotFoundError:
            console.show("not installed: runs from its sources")
    else:
        console.show(arguments.parser.format_help().rstrip())
