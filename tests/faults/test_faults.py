"""Training processes are killed, stopped, robbed of their newest state and of their disk; each ends as a straight run.

Equal means: weights after every phase to the last bit, and every line of `metrics.jsonl` but for what a clock measured.
The counts go to build/faults/summary.md and .json; docs/reliability.md quotes them.
"""

import json
import os
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest

from ofav2.cli.main import STOPPED
from ofav2.runs import folder
from ofav2.runs.records import read_run
from tests.faults import driver
from tests.faults.driver import Hit, Line, Moment, Straight
from tests.ofav2 import tiny

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("faults")]

Given = TypeVar("Given")
Found = TypeVar("Found")

SEED = 20250
KILLS, STOPS, DAMAGES, DISKS = 9, 4, 4, 2
SUMMARY = Path(__file__).resolve().parents[2] / "build" / "faults"
COMMAND = "make test-slow"


@dataclass(frozen=True)
class Outcome:
    """How one run fared."""

    number: int
    """Number of the trial, which with the seed gives all that was drawn for it."""
    hit: Hit
    """What it was at."""
    lost: str | None
    """What differs from the straight run, or hindered it; None for a run that survived."""
    note: str = ""
    """What else happened to it."""


@dataclass
class Tally:
    """All outcomes by kind of fault, and the seconds they took."""

    outcomes: dict[str, list[Outcome]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


@pytest.fixture(scope="module")
def tally() -> Iterator[Tally]:
    kept = Tally()
    yield kept
    SUMMARY.mkdir(parents=True, exist_ok=True)
    (SUMMARY / "summary.json").write_text(json.dumps(as_json(kept), indent=2) + "\n")
    (SUMMARY / "summary.md").write_text(as_table(kept))
    print(f"\n{as_table(kept)}\nwritten to {SUMMARY}")


def as_json(tally: Tally) -> dict[str, object]:
    return {
        "command": COMMAND,
        "seed": SEED,
        "faults": {
            fault: {
                "tried": len(outcomes),
                "survived": sum(outcome.lost is None for outcome in outcomes),
                "lost": [f"trial {outcome.number}: {outcome.lost}" for outcome in outcomes if outcome.lost],
                "phases": Counter(outcome.hit.phase for outcome in outcomes),
                "at": Counter(outcome.hit.at for outcome in outcomes),
                "notes": Counter(outcome.note for outcome in outcomes if outcome.note),
                "seconds": round(tally.seconds[fault]),
            }
            for fault, outcomes in tally.outcomes.items()
        },
    }


def as_table(tally: Tally) -> str:
    rows = ["| fault | tried | survived | lost | hit |", "|---|---|---|---|---|"]
    for fault, outcomes in tally.outcomes.items():
        survived = sum(outcome.lost is None for outcome in outcomes)
        counts = Counter(outcome.hit.at for outcome in outcomes) + Counter(
            outcome.note for outcome in outcomes if outcome.note
        )
        hit = ", ".join(f"{what} {count}" for what, count in sorted(counts.items()))
        rows.append(f"| {fault} | {len(outcomes)} | {survived} | {len(outcomes) - survived} | {hit} |")
    return "\n".join([*rows, ""])


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Straight]:
    """Runs that nothing interrupts; to look at only."""
    parent = tmp_path_factory.mktemp("straight")

    def make(optimiser: str) -> Straight:
        recipe, path = driver.write_recipe(parent, optimiser), parent / optimiser
        assert driver.run(["train", recipe, "--run-dir", str(path)], parent / f"{optimiser}.log") == 0
        lines = [json.loads(line) for line in (path / folder.METRICS).read_text().splitlines()]
        return Straight(recipe, path, tuple(Line(line["kind"], line.get("phase"), line["time"]) for line in lines))

    return dict(zip(driver.OPTIMISERS, in_parallel(make, driver.OPTIMISERS), strict=True))


def in_parallel(do: Callable[[Given], Found], given: Sequence[Given]) -> list[Found]:
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        return list(pool.map(do, given))


def try_all(fault: str, trials: int, tally: Tally, attempt: Callable[[int], Outcome]) -> None:
    """Makes the trials, counts them, and fails for every run that was lost."""
    started = time.monotonic()
    outcomes = in_parallel(attempt, range(trials))
    tally.outcomes[fault], tally.seconds[fault] = outcomes, time.monotonic() - started
    lost = [outcome for outcome in outcomes if outcome.lost is not None]
    assert not lost, f"seed {SEED}, {fault}: " + "; ".join(map(str, lost))


def moments(fault: int, count: int, straight: Straight) -> list[Moment]:
    """Moments spread evenly over the phases: in turn while a network is evaluated, in a step, and amid a saving."""
    rng = np.random.default_rng([SEED, fault])
    found = []
    for number in range(count):
        phase = tiny.SIX_PHASES[int((number + rng.random()) / count * len(tiny.SIX_PHASES))]
        steps = [at for at, line in enumerate(straight.lines) if line.kind == "train" and line.phase == phase]
        if number % 3 == 0:
            # Its largest network was validated, and the corners are next. A run that is faster than the straight one
            # must not be through with them.
            at = max(at for at, line in enumerate(straight.lines) if line.kind == "validation" and line.phase == phase)
            found.append(Moment(at + 1, float(rng.random() * 0.7 * straight.seconds_after(at))))
        elif number % 3 == 1:
            at = int(rng.choice(steps[:-1]))
            found.append(Moment(at + 1, float(rng.random() * straight.seconds_after(at))))
        else:
            found.append(Moment(int(rng.choice(steps[:-1])) + 1, 0.0, saving=True))
    return found


def interrupt(
    run: Path, straight: Straight, moment: Moment, number: signal.Signals, log: Path, workers: int = 0
) -> tuple[int, Hit]:
    """Starts a run and sends it a signal at a moment, or before where it is too fast; returns exit code and hit."""
    while True:
        settings = [f"data.workers={workers}"] if workers else []
        process = driver.start(["train", straight.recipe, *settings, "--run-dir", str(run)], log)
        if driver.wait_for(process, run, moment):
            driver.send(process, number, to_group=bool(workers) and number == signal.SIGTERM)
            code = driver.ended(process)
            if code != 0 or number == signal.SIGTERM:
                return code, driver.what_was_hit(run, partial_lines(run))
        shutil.rmtree(run)
        moment = Moment(moment.line // 2, 0.0, moment.saving)


def partial_lines(run: Path) -> list[dict[str, object]]:
    whole = (run / folder.METRICS).read_bytes().split(b"\n")[:-1]
    return [json.loads(line) for line in whole]


def end_of(run: Path, straight: Straight, log: Path) -> str | None:
    """Resumes a run to its end; None if it ends as the straight one, else why it is lost."""
    code = driver.run(["train", "--resume", str(run)], log)
    if code != 0:
        return f"exit code {code}: {log.read_text().strip().splitlines()[-1]}"
    return driver.is_same(run, straight.folder)


def of(straight: dict[str, Straight], number: int) -> Straight:
    return straight[driver.OPTIMISERS[number % len(driver.OPTIMISERS)]]


def test_killed_runs_end_as_a_straight_run(straight: dict[str, Straight], tally: Tally, tmp_path: Path) -> None:
    """SIGKILL at random moments; every fourth run is killed once more while it goes on, every fifth has a worker."""
    chosen = {name: moments(1, KILLS, taken) for name, taken in straight.items()}

    def attempt(number: int) -> Outcome:
        source, run, log = of(straight, number), tmp_path / f"run-{number}", tmp_path / f"{number}.log"
        moment = chosen[Path(source.recipe).stem][number]
        code, hit = interrupt(run, source, moment, signal.SIGKILL, log, workers=1 if number % 5 == 4 else 0)
        assert code == -signal.SIGKILL
        note = ""
        if number % 4 == 0:
            note = "killed again"
            process = driver.start(["train", "--resume", str(run)], log)
            time.sleep(float(np.random.default_rng([SEED, 2, number]).uniform(0, source.seconds / 2)))
            process.kill()
            driver.ended(process)
        return Outcome(number, hit, end_of(run, source, log), note)

    try_all("kill -9", KILLS, tally, attempt)
    hits = [outcome.hit for outcome in tally.outcomes["kill -9"]]
    assert {hit.phase for hit in hits} == set(tiny.SIX_PHASES)
    assert {hit.at for hit in hits} == {"step", "saving", "evaluating"}


def test_stopped_runs_end_as_a_straight_run(straight: dict[str, Straight], tally: Tally, tmp_path: Path) -> None:
    """SIGTERM at random moments; to every second run's whole process group, the workers that load its images too."""
    chosen = {name: moments(3, STOPS, taken) for name, taken in straight.items()}

    def attempt(number: int) -> Outcome:
        source, run, log = of(straight, number), tmp_path / f"run-{number}", tmp_path / f"{number}.log"
        moment = chosen[Path(source.recipe).stem][number]
        code, hit = interrupt(run, source, moment, signal.SIGTERM, log, workers=1 if number % 2 else 0)
        if code not in (STOPPED, 0):
            return Outcome(number, hit, f"exit code {code}: {log.read_text().strip().splitlines()[-1]}")
        # A run that is told to stop while it is evaluated for the last time has no step to stop after.
        wrong = (code == 0) != (read_run(run).status == "finished")
        lost = "exit code and status disagree" if wrong else end_of(run, source, log)
        return Outcome(number, hit, lost, "" if code else "ended on its own")

    try_all("SIGTERM", STOPS, tally, attempt)


def test_runs_whose_newest_state_is_damaged_end_as_a_straight_run(
    straight: dict[str, Straight], tally: Tally, tmp_path: Path
) -> None:
    """A run is killed, and then its newest state damaged: bits flipped, cut off, overwritten, or half of it gone."""
    chosen = {name: moments(4, DAMAGES, taken) for name, taken in straight.items()}

    def attempt(number: int) -> Outcome:
        source, run, log = of(straight, number), tmp_path / f"run-{number}", tmp_path / f"{number}.log"
        moment = chosen[Path(source.recipe).stem][number]
        _, hit = interrupt(run, source, replace(moment, line=max(moment.line, 3)), signal.SIGKILL, log)
        damaged = damage_newest(run, np.random.default_rng([SEED, 5, number]))
        # A run that is evaluated for the last time needs no state any more.
        needed = len(read_run(run).phases) < len(tiny.SIX_PHASES)
        lost = end_of(run, source, log)
        if lost is None and needed and damaged not in log.read_text():
            lost = f"no message about {damaged}"
        return Outcome(number, hit, lost)

    try_all("newest state damaged", DAMAGES, tally, attempt)


def damage_newest(run: Path, rng: np.random.Generator) -> str:
    """Damages the newest state's tensors or facts; returns the state's name."""
    newest = max((run / folder.CHECKPOINTS).glob("state-*.json")).with_suffix("")
    file = newest.with_suffix([".safetensors", ".json"][int(rng.integers(2))])
    content = bytearray(file.read_bytes())
    kind, position = int(rng.integers(4)), int(rng.integers(len(content)))
    if kind == 0:
        content[position] ^= 1 << int(rng.integers(8))
    elif kind == 1:
        del content[position:]
    elif kind == 2:
        content[position : position + 512] = bytes(len(content[position : position + 512]))
    if kind == 3:
        file.unlink()
    else:
        file.write_bytes(content)
    return newest.name


def test_runs_on_a_full_disk_end_as_a_straight_run(straight: dict[str, Straight], tally: Tally, tmp_path: Path) -> None:
    """A disk that is full before the run is through: one clear line, and another disk to go on from the last state.

    The disk is a small tmpfs where one may be mounted; elsewhere the system lets no file grow past a size.
    """
    mounts = may_mount(tmp_path)
    needed = sum(file.stat().st_size for file in straight["adamw"].folder.rglob("*") if file.is_file())

    def attempt(number: int) -> Outcome:
        source, log = of(straight, number), tmp_path / f"{number}.log"
        size = int(needed * (0.2 + 0.15 * number))
        with small_disk(tmp_path / f"disk-{number}", size if mounts else 0) as disk:
            limit = 0 if mounts else int(largest_file(source.folder) * (0.3 + 0.2 * number))
            code = driver.run(["train", source.recipe, "--run-dir", str(disk / "run")], log, limit)
            run = Path(shutil.copytree(disk / "run", tmp_path / f"run-{number}"))
        errors = log.read_text().splitlines()
        hit = driver.what_was_hit(run, partial_lines(run))
        reason = "No space left on device" if mounts else "File too large"
        if (
            code != 2
            or not errors[-1].startswith("ofav2: ")
            or reason not in errors[-1]
            or "Traceback" in log.read_text()
        ):
            return Outcome(number, hit, f"exit code {code}, {errors[-1]!r}")
        if left := [path.name for path in run.rglob(".*.tmp")]:
            return Outcome(number, hit, f"left {left} on the full disk")
        return Outcome(number, hit, end_of(run, source, log), "tmpfs" if mounts else "limit of file size")

    try_all("disk full", DISKS, tally, attempt)


def largest_file(run: Path) -> int:
    return max(file.stat().st_size for file in run.rglob("*") if file.is_file())


@contextmanager
def small_disk(path: Path, size: int) -> Iterator[Path]:
    """A tmpfs of some bytes, or for 0 an ordinary folder."""
    path.mkdir()
    if not size:
        yield path
        return
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", str(path)], check=True)


def may_mount(parent: Path) -> bool:
    try:
        with small_disk(parent / "trial", 2**20):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False
