"""`ofav2 latency`: time a supernet's parts on this machine."""

import argparse
import shlex
from pathlib import Path

from ofav2.cli import console
from ofav2.cli.verb import Verb
from ofav2.output_folder import check_writable

_EPILOG = """\
examples:
  ofav2 latency runs/digits                    writes runs/digits/latency.json
  ofav2 latency runs/digits --threads 4 --batch 8 --table desktop.json

next: ofav2 extract RUN --max-latency 2ms --out DIR
"""


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="run folder")
    parser.add_argument("--table", metavar="FILE", help="file to write (default: latency.json in the run folder)")
    parser.add_argument("--batch", metavar="N", type=int, default=1, help="images per call (default: 1)")
    parser.add_argument("--threads", metavar="N", type=int, help="CPU threads (default: the recipe's run.threads)")


def _run(arguments: argparse.Namespace) -> None:
    from ofav2.nas.latency_table import TABLE, measure_latency_table, save_latency_table
    from ofav2.runs.records import read_run

    path = Path(arguments.table) if arguments.table else Path(arguments.run) / TABLE
    read_run(Path(arguments.run))
    check_writable(path)
    timed = measure_latency_table(arguments.run, batch=arguments.batch, threads=arguments.threads)
    save_latency_table(timed, path)
    error, machine = timed.error, timed.machine
    console.show(str(path))
    console.say(
        f"made {path}: {len(timed.entries)} parts, batch {timed.batch}, {machine.threads} threads, {machine.name}\n"
        f"off by {error.median:.1%} (median), {error.largest:.1%} (largest) on {error.networks} random networks\n"
        f"next: ofav2 extract {shlex.quote(arguments.run)} --max-latency 2ms --out DIR"
    )


VERB = Verb("latency", "Time a supernet's parts here, to predict and limit latency.", _EPILOG, _add_arguments, _run)
