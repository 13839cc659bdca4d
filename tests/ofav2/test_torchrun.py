"""Whole runs of several processes: one folder, one voice, stopped, killed and resumed with any number of them."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import ofav2
from ofav2 import data
from ofav2.cli import console
from ofav2.config import recipe
from ofav2.errors import RunError
from ofav2.runs import checkpoint, folder
from ofav2.runs.metrics_file import read_metrics
from ofav2.runs.records import read_run
from ofav2.runtime.signals import Lost, Stopped
from ofav2.training import loop as learn
from ofav2.training import writer
from ofav2.training.run import train_or_resume
from tests.ofav2 import tiny
from tests.ofav2.crew import Ended, run_apart
from tests.ofav2.runtime.test_processes import kinds

SETTINGS = (
    "evaluation.corners=ends",
    "run.save_steps=2",
    "phases.full.epochs=0.06",
    "phases.kernel.epochs=0.06",
    "phases.kernel.subnets=2",
)
STEPS = 12
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Path of a recipe; what it needs is loaded before processes fork, or each would wait for it."""
    path = tiny.written(tmp_path_factory.mktemp("recipes"), tiny.TWO.replace("[16]", "[16, 20]"))
    data.open_data(recipe.load(path).data)
    return path


def started(count: int, path: str, into: Path, *more: str) -> list[Ended]:
    def job() -> Any:
        with console.show_logs():
            return train_or_resume(into, path, [*SETTINGS, *more]).record

    return run_apart(count, job)


@pytest.fixture(scope="module")
def straight(two: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two processes that nothing disturbed; to look at only."""
    path = tmp_path_factory.mktemp("runs") / "straight"
    ended = started(2, two, path)
    assert kinds(ended) == ["NoneType"] * 2
    assert ended[0].found == ended[1].found
    return path


def weights(path: Path, phase: str) -> bytes:
    return checkpoint.file_paths(folder.checkpoint_path(path, phase))[0].read_bytes()


def measured(path: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k not in ("time", "images_per_second")} for line in read_metrics(path)]


def same_run(one: Path, other: Path) -> bool:
    return measured(one) == measured(other) and all(
        weights(one, name) == weights(other, name) for name in ("full", "kernel")
    )


def at_step(target: int, rank: int, act: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets one process do something after so many steps of the run."""
    record = learn._record

    def watching(setup: Any, phase: Any, step: Any, tracker: Any) -> None:
        record(setup, phase, step, tracker)
        if phase.first_step + step.number == target and setup.runtime.processes.rank == rank:
            act()

    monkeypatch.setattr(learn, "_record", watching)


def signal_oneself(number: int) -> Any:
    return lambda: os.kill(os.getpid(), number)


# One run


def test_a_run_of_two_processes_is_one_run(straight: Path) -> None:
    record = read_run(straight)
    assert (record.status, record.processes) == ("finished", 2)
    lines = read_metrics(straight)
    trained = [line["global_step"] for line in lines if line["kind"] == "train"]
    assert trained == list(range(1, STEPS + 1)), "no line twice, none missing"
    assert [line["name"] for line in lines if line["kind"] == "table"] == [
        "full/corners",
        "kernel/corners",
        "test/corners",
    ]
    assert not [path for path in straight.rglob("*") if path.name.endswith(".tmp")]


def test_a_finished_run_of_two_processes_is_resumed_as_finished(straight: Path, two: str) -> None:
    before = (straight / folder.RECORD).read_bytes()
    for count in (1, 2):
        assert kinds(started(count, two, straight)) == ["NoneType"] * count
    assert (straight / folder.RECORD).read_bytes() == before


@pytest.mark.parametrize("signalled", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_stop_that_one_process_hears_stops_all_and_the_run_goes_on_to_the_same_bits(
    signalled: int, straight: Path, two: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run"
    with monkeypatch.context() as patch:
        at_step(9, signalled, signal_oneself(signal.SIGTERM), patch)
        ended = started(2, two, path)
    assert [type(member.error) for member in ended] == [Stopped, Stopped]
    assert str(ended[0].error) == str(ended[1].error) == "step 3 of phase kernel"
    assert read_run(path).status == "stopped"
    assert kinds(started(2, two, path)) == ["NoneType"] * 2
    assert same_run(path, straight)


@pytest.mark.parametrize("killed", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_killed_process_ends_the_others_and_the_run_goes_on_to_the_same_bits(
    killed: int, straight: Path, two: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run"
    with monkeypatch.context() as patch:
        at_step(9, killed, signal_oneself(signal.SIGKILL), patch)
        ended = started(2, two, path)
    assert ended[killed].code == -signal.SIGKILL
    assert isinstance(ended[1 - killed].error, Lost)
    assert kinds(started(2, two, path)) == ["NoneType"] * 2
    assert same_run(path, straight)


@pytest.mark.parametrize(
    ("before", "after"), [(2, 1), *(pytest.param(*counts, marks=pytest.mark.slow) for counts in ((1, 2), (2, 4)))]
)
def test_a_run_goes_on_with_another_number_of_processes_and_says_so(
    before: int,
    after: int,
    two: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "run"
    with monkeypatch.context() as patch:
        at_step(9, 0, signal_oneself(signal.SIGTERM), patch)
        assert kinds(started(before, two, path)) == ["Stopped"] * before
    capfd.readouterr()
    assert kinds(started(after, two, path)) == ["NoneType"] * after
    errors = capfd.readouterr().err
    assert errors.count(f"processes: {after}, before: {before};") == 1
    assert errors.count("going on with phase kernel from step 3") == 1
    assert read_run(path).processes == after
    trained = [line["global_step"] for line in read_metrics(path) if line["kind"] == "train"]
    assert trained == list(range(1, STEPS + 1))


# What goes wrong


def test_a_folder_that_the_first_process_cannot_write_ends_all(
    two: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> None:
        raise RunError("disk full")

    monkeypatch.setattr(writer, "save_state", full)
    path = tmp_path / "run"
    first, second = started(2, two, path)
    assert (type(first.error), str(first.error)) == (RunError, "disk full")
    assert isinstance(second.error, Lost)
    assert read_run(path).status == "failed: RunError"


def test_too_many_unusable_batches_are_told_by_the_first_process(two: str, tmp_path: Path) -> None:
    ended = started(2, two, tmp_path / "run", "phases.full.lr=1e30", "optim.skip_limit=0")
    assert kinds(ended) == ["DivergedError", "Lost"]


def test_a_folder_in_use_is_told_by_the_first_process(two: str, tmp_path: Path) -> None:
    path = tmp_path / "run"
    path.mkdir()
    with folder.lock(path):
        assert kinds(started(2, two, path)) == ["RunError", "Lost"]


def test_resumes_that_disagree_are_refused(straight: Path, two: str) -> None:
    def job() -> None:
        ofav2.resume(straight, two, [*SETTINGS, f"run.threads={1 + int(os.environ['RANK'])}"])

    first, second = run_apart(2, job)
    assert isinstance(first.error, RunError)
    assert "processes disagree: settings is " in str(first.error)
    assert isinstance(second.error, Lost)


# torchrun itself


def torchrun(*arguments: str, restarts: int = 0, log: Path) -> subprocess.Popen[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    with log.open("w") as stderr:
        return subprocess.Popen(
            [*launcher, f"--max-restarts={restarts}", "-m", "ofav2", "train", *arguments],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )


@pytest.mark.slow
def test_the_users_error_is_told_once_and_fails_torchrun(two: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    command = torchrun(two, "data.batch_size=33", "--run-dir", str(tmp_path / "run"), log=log)
    out, _ = command.communicate(timeout=120)
    logged = log.read_text()
    assert command.returncode != 0
    assert out == ""
    assert len(re.findall(r"^ofav2: ", logged, re.MULTILINE)) == 1
    assert "ofav2: data.batch_size (33) can't be shared out evenly to 2 processes" in logged
    assert 'File "' not in logged.partition("ofav2: ")[0], "no traceback of ours before the message"
    assert not (tmp_path / "run").exists()


def workers_of(launcher: int) -> dict[int, int]:
    """Process number of torchrun's workers, by rank."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    found = {}
    for child in map(int, children):
        settings = dict(
            pair.partition("=")[::2] for pair in Path(f"/proc/{child}/environ").read_text().split("\0") if pair
        )
        if "RANK" in settings:
            found[int(settings["RANK"])] = child
    return found


def wait_for_states(path: Path, seconds: float = 180.0) -> Iterator[int]:
    """Steps of the newest state, whenever a newer one is there."""
    newest, deadline = -1, time.monotonic() + seconds
    while time.monotonic() < deadline:
        steps = [int(file.stem.partition("-")[2]) for file in (path / folder.CHECKPOINTS).glob("state-*.json")]
        if steps and max(steps) > newest:
            newest = max(steps)
            yield newest
        time.sleep(0.02)
    pytest.fail("no newer state came")


def train_with_kills(two: str, path: Path, log: Path, killed: Sequence[int]) -> tuple[int, str]:
    """A run of two processes in which torchrun has to put up with the loss of these ranks, one after another."""
    command = torchrun(
        two, *SETTINGS, "phases.full.epochs=0.4", "--run-dir", str(path), "--resume", "auto", restarts=3, log=log
    )
    try:
        states = wait_for_states(path)
        for rank in killed:
            next(states)
            next(states)
            os.kill(workers_of(command.pid)[rank], signal.SIGKILL)
        out, _ = command.communicate(timeout=300)
    finally:
        # torchrun ends its workers when it is asked to end, and leaves them behind when it is killed.
        command.terminate()
        command.wait(60)
    return command.returncode, out


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="workers are found in /proc")
def test_torchrun_restarts_what_was_killed_and_the_run_ends_as_if_nothing_had_happened(
    two: str, tmp_path: Path
) -> None:
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    assert train_with_kills(two, straight, tmp_path / "log", ()) == (0, f"{straight}\n")
    code, out = train_with_kills(two, killed, tmp_path / "killed.log", (1, 0))
    logged = (tmp_path / "killed.log").read_text()
    assert (code, out) == (0, f"{killed}\n"), logged
    assert logged.count("going on with phase full from step") == 2, logged
    assert same_run(killed, straight)
    assert json.loads((killed / folder.RECORD).read_text())["status"] == "finished"
