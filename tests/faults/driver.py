"""Real training processes that are killed, and what is known of how they end.

A process takes seconds to import torch, so one server process imports everything once and forks itself for each run.
What a run does from there is what `ofav2 train` does.
"""

import multiprocessing
import os
import resource
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from ofav2.runs import folder
from tests.ofav2 import tiny
from tests.ofav2.exactness import assert_same_run

STEPS = 4
"""Steps of each phase."""
PATIENCE = 300.0
"""Seconds after which a process hangs."""
STOPPING = 0.005
"""Seconds that a process may take to hold after it was told to."""

# Six phases of four steps, of all that there is, validated and saved on the way; saved after every step, so that there
# is a state before the newest one.
_RECIPE = (
    tiny.SIX.replace("level: [1, 2, 3]", "level: [2, 3]")
    .replace("epochs: 0.02", "epochs: 0.04")
    .replace(tiny.ALL_CORNERS, "evaluation: {corners: ends, ")
    .replace("every_epochs: 0,", "every_epochs: 0.02,")
    .replace("calibration_images: 30", "calibration_images: 16")
    .replace("device: cpu}", "device: cpu, save_steps: 1, save_minutes: 0}")
)
_ADAMW, _SGD = "{name: adamw, weight_decay: 0.01}", "{name: sgd, grad_clip: 5}"
OPTIMISERS = ("adamw", "sgd")


def write_recipe(parent: Path, optimiser: str) -> str:
    """The recipe of all runs here, with this optimiser; returns its path."""
    text = _RECIPE if optimiser == "adamw" else _RECIPE.replace(_ADAMW, _SGD)
    return tiny.written(parent, text, optimiser)


@dataclass(frozen=True)
class Line:
    """A line of `metrics.jsonl`."""

    kind: str
    """What was measured."""
    phase: str | None
    """In which phase."""
    time: float
    """Seconds, as a clock has them."""


@dataclass(frozen=True)
class Straight:
    """A run that nothing interrupted."""

    recipe: str
    """Path of its recipe."""
    folder: Path
    """Its folder."""
    lines: tuple[Line, ...]
    """What it measured."""

    @property
    def seconds(self) -> float:
        """Seconds from its first line to its last."""
        return self.lines[-1].time - self.lines[0].time

    def seconds_after(self, at: int) -> float:
        """Return the seconds from a line, counted from 0, to the next one."""
        return self.lines[at + 1].time - self.lines[at].time


@dataclass(frozen=True)
class Moment:
    """When to act: some seconds after a line of `metrics.jsonl` was written, or amid the next saving after it."""

    line: int
    """The line's number, from 1."""
    seconds: float
    """Seconds after it; amid a saving, nothing."""
    saving: bool = False
    """Whether a file has to be half-written."""


@dataclass(frozen=True)
class Hit:
    """What a process was at when it was killed."""

    phase: str
    """Name of the phase."""
    at: str
    """`step`, `saving` or `evaluating`."""


def start(arguments: Sequence[str], log: Path, largest_file: int = 0) -> ForkServerProcess:
    """Starts `ofav2` with these arguments in a process group of its own.

    Args:
        arguments: What follows `ofav2` on the command line.
        log: File for what it says.
        largest_file: Bytes after which the system refuses to let a file grow; 0 sets no limit.
    """
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["ofav2.cli.main", "ofav2.training.run", "sklearn.datasets", "torch.fx", __name__])
    process = server.Process(target=_main, args=(tuple(arguments), str(log), largest_file))
    process.start()
    return process


def _main(arguments: Sequence[str], log: str, largest_file: int) -> None:
    os.setpgid(0, 0)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    if largest_file:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    from ofav2.cli.main import main

    sys.exit(main(arguments))


def ended(process: ForkServerProcess) -> int:
    """Waits for a process; returns its exit code, negative for a signal."""
    process.join(PATIENCE)
    if process.exitcode is None:
        process.kill()
        raise AssertionError(f"process {process.pid} hangs")
    return process.exitcode


def run(arguments: Sequence[str], log: Path, largest_file: int = 0) -> int:
    """Runs `ofav2` to its end; returns the exit code."""
    return ended(start(arguments, log, largest_file))


def wait_for(process: ForkServerProcess, run_folder: Path, moment: Moment) -> bool:
    """Waits until a run comes to a moment, and holds it there if it is amid a saving; False if it ended before."""
    metrics = run_folder / folder.METRICS
    deadline = time.monotonic() + PATIENCE
    while not metrics.exists() or metrics.read_bytes().count(b"\n") < moment.line:
        assert time.monotonic() < deadline, f"{run_folder} does not come to line {moment.line}"
        if process.exitcode is not None:
            return False
        time.sleep(0.001)
    if moment.saving:
        return _hold_amid_saving(process, run_folder)
    time.sleep(moment.seconds)
    return process.exitcode is None


def _hold_amid_saving(process: ForkServerProcess, run_folder: Path) -> bool:
    """Stops a process that is writing a file; a saving takes milliseconds, so only what is stopped can be looked at."""
    assert process.pid is not None
    while process.exitcode is None:
        if _is_saving(run_folder):
            os.kill(process.pid, signal.SIGSTOP)
            time.sleep(STOPPING)
            if _is_saving(run_folder):
                return True
            os.kill(process.pid, signal.SIGCONT)
    return False


def _is_saving(run_folder: Path) -> bool:
    return any((run_folder / folder.CHECKPOINTS).glob(".*.tmp"))


def send(process: ForkServerProcess, number: signal.Signals, to_group: bool) -> None:
    """Sends a signal to a process, or to all of its group: the workers that load its images, too; lets it go on."""
    assert process.pid is not None
    for each in (number, signal.SIGCONT):
        with suppress(ProcessLookupError):
            if to_group:
                os.killpg(process.pid, each)
            else:
                os.kill(process.pid, each)


def what_was_hit(run_folder: Path, lines: Sequence[Mapping[str, object]]) -> Hit:
    """What a killed run was at, from the folder and the measurements that it left."""
    taken = sum(line["kind"] == "train" for line in lines)
    phase = tiny.SIX_PHASES[min(max(taken - 1, 0) // STEPS, len(tiny.SIX_PHASES) - 1)]
    if _is_saving(run_folder):
        return Hit(phase, "saving")
    return Hit(phase, "step" if lines and lines[-1]["kind"] == "train" else "evaluating")


def is_same(run_folder: Path, straight: Path) -> str | None:
    """None for a run that ended as the straight one did; else what differs."""
    try:
        assert_same_run(run_folder, straight)
    except AssertionError as error:
        return str(error) or "differs"
    return None
