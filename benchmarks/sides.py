"""Times several sides of a comparison in one process, in turn, so that what disturbs the machine disturbs them all."""

import gc
import json
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch

from ofav2.cli import console
from ofav2.cli.main import STOPPED
from ofav2.errors import RunError, UserError
from ofav2.nas.machine import this_machine
from ofav2.runtime.signals import Stopped
from ofav2.tables import table
from supernets import SpaceError

RESULTS = Path("build/benchmarks")


def command_line(main: Callable[[], int | None]) -> NoReturn:
    """Run a benchmark's command line; what the user has to correct is one line, with exit code 2.

    A training that was told to stop ends with the exit code of `ofav2 train`.
    """
    try:
        code = main()
    except (UserError, RunError, SpaceError) as wrong:
        console.say(f"{Path(sys.argv[0]).stem}: {wrong}")
        code = 2
    except Stopped as stopped:
        console.say(f"{Path(sys.argv[0]).stem}: stopped after {stopped}; the same command goes on")
        code = STOPPED
    sys.exit(code)


def mean_and_error(values: Sequence[float], *, scale: float = 100, digits: int = 1, sign: str = "") -> str:
    """Return a mean over seeds with its standard error, as text; a single value has none.

    Args:
        values: One per seed.
        scale: What they are multiplied by; shares become percent.
        digits: Digits after the point.
        sign: `+` shows the sign of a positive mean, too.
    """
    scaled = scale * np.asarray(values, np.float64)
    mean = f"{scaled.mean():{sign}.{digits}f}"
    return mean if len(scaled) == 1 else f"{mean} ± {scaled.std(ddof=1) / len(scaled) ** 0.5:.{digits}f}"


@dataclass(frozen=True)
class Times:
    """Milliseconds of one side's calls."""

    median: float
    lower: float
    """First quartile."""
    upper: float
    """Third quartile."""
    repeats: int


def time_sides(
    sides: Mapping[str, Callable[[], object]],
    *,
    repeats: int,
    warmup: int = 2,
    device: str = "cpu",
    before: Callable[[], object] | None = None,
    ready: Mapping[str, Callable[[], object]] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Times]:
    """Calls every side once per round, in an order that turns, and summarises each side's times.

    Args:
        sides: What to call, by name.
        repeats: Rounds that are timed.
        warmup: Rounds before the first one that is timed.
        device: `cuda` waits for the card before and after each call.
        before: Called before each round, untimed.
        ready: Called before each call of the side of that name, untimed.
        clock: Seconds; `time.process_time` leaves out what other processes take.
    """
    taken: dict[str, list[float]] = {name: [] for name in sides}
    names = list(sides)
    with _quick_collections():
        for round_number in range(warmup + repeats):
            if before is not None:
                before()
            turn = round_number % len(names)
            for name in names[turn:] + names[:turn]:
                if ready is not None:
                    ready[name]()
                gc.collect()
                _finish(device)
                started = clock()
                sides[name]()
                _finish(device)
                if round_number >= warmup:
                    taken[name].append(1000 * (clock() - started))
    return {name: _summary(times) for name, times in taken.items()}


def report(name: str, title: str, times: Mapping[str, Times], base: str, facts: Mapping[str, Any]) -> None:
    """Shows a table of all sides beside `base`, and writes it as JSON with the facts and the machine.

    Args:
        name: Name of the JSON file below `build/benchmarks`.
        title: Line above the table.
        times: What `time_sides` measured.
        base: The side that the others are compared with: a ratio of 2 is twice as fast as it.
        facts: What else was measured or chosen: sizes, results, errors.
    """
    rows = [
        (side, found.median, found.lower, found.upper, times[base].median / found.median)
        for side, found in times.items()
    ]
    console.show(table(title, ("side", "median ms", "lower", "upper", f"times as fast as {base}"), rows))
    write(name, {"sides": {side: asdict(found) for side, found in times.items()}, "base": base, **facts})


def write(name: str, facts: Mapping[str, Any]) -> Path:
    """Writes facts with the machine's as `build/benchmarks/NAME.json`."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({**facts, "machine": machine()}, indent=2) + "\n", encoding="utf-8")
    console.say(f"made {path}")
    return path


def machine() -> dict[str, Any]:
    """Where this runs."""
    graphics = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "processor": this_machine(torch.device("cpu")).name,
        "graphics": graphics,
        "python": platform.python_version(),
    }


@contextmanager
def _quick_collections() -> Iterator[None]:
    """Python's garbage collector leaves alone what was there before: to look at it takes longer than a quick side."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _summary(times: Sequence[float]) -> Times:
    lower, median, upper = (float(value) for value in np.quantile(times, (0.25, 0.5, 0.75)))
    return Times(median, lower, upper, len(times))


def _finish(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
