"""Whatever lies in a run's or a network's folder, a command ends: done, or in one line that no terminal obeys."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import ofav2
from ofav2.cli.main import main
from ofav2.report.curves import curves, phase_seconds, phase_spans, unusable_steps
from ofav2.report.networks import tables
from ofav2.runs.records import Run
from ofav2.runs.snapshot import read_snapshot
from tests.ofav2.changes import change_facts
from tests.ofav2.damaging import damaged, files_of
from tests.ofav2.fuzzing import accepted

SEED = 19
REPORTS, SNAPSHOTS, NETWORKS = 10, 30, 20

Said = Callable[[], str]


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Said:
    """What was printed since the last call, on both streams."""

    def read() -> str:
        both = capsys.readouterr()
        return both.out + both.err

    return read


def assert_ended(code: int, text: str) -> None:
    """A command is done, or said in one line why not; either way it printed lines and nothing else."""
    assert code in (0, 2), text
    assert all(line.isprintable() for line in text.split("\n")), repr(text)
    if code == 2:
        assert [line.startswith("ofav2: ") for line in text.splitlines()].count(True) == 1, text


def each_damaged(folder: Path, number: int, trials: int, suffixes: tuple[str, ...]) -> Iterator[None]:
    """Damage a file of a folder, and put it back when the next one is asked for."""
    rng = np.random.default_rng([SEED, number])
    chosen = [path for path in files_of(folder) if path.suffix in suffixes]
    for _ in range(trials):
        path = chosen[int(rng.integers(len(chosen)))]
        whole = path.read_bytes()
        path.write_bytes(damaged(whole, rng))
        yield
        path.write_bytes(whole)


def test_a_damaged_run_is_reported_on_or_refused(run_copy: Path, said: Said, tmp_path: Path) -> None:
    command = ["report", str(run_copy), "--out", str(tmp_path / "page.html")]
    for _ in each_damaged(run_copy, 1, REPORTS, (".json", ".jsonl", ".yaml")):
        assert_ended(main(command), said())
    assert main(command) == 0


def test_a_damaged_run_is_read_or_refused(run_copy: Path) -> None:
    for _ in each_damaged(run_copy, 2, SNAPSHOTS, (".json", ".jsonl", ".yaml")):
        accepted(lambda: read_all(run_copy))
    assert accepted(lambda: read_all(run_copy)) == 7


def read_all(folder: Path) -> int:
    """All that a page shows of a run, without drawing it; returns the number of its tables."""
    run = read_snapshot(folder)
    curves(run, "train", ("loss", "lr"))
    curves(run, "validation", ("largest",))
    unusable_steps(run)
    phase_seconds(run)
    phase_spans(run)
    return len(tables(run))


def test_a_damaged_network_is_loaded_or_refused(extracted: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(extracted, tmp_path / "network"))
    for _ in each_damaged(copy, 3, NETWORKS, (".json", ".safetensors")):
        accepted(lambda: ofav2.load_subnet(copy))
    assert accepted(lambda: ofav2.load_subnet(copy)) is not None


# What is no file


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: os.symlink("/dev/zero", path), os.mkdir])
@pytest.mark.parametrize("name", ["run.json", "metrics.jsonl", "recipe.yaml"])
def test_a_run_of_what_is_no_file_is_refused_at_once(
    name: str, make: Callable[[Path], None], run_copy: Path, said: Said, tmp_path: Path
) -> None:
    (run_copy / name).unlink()
    make(run_copy / name)
    # A finished run is not opened to be measured on, and pages take the recipe from run.json.
    resuming = [] if name == "metrics.jsonl" else [["train", "--resume", str(run_copy)], ["evaluate", str(run_copy)]]
    showing = [
        ["report", str(run_copy), "--out", str(tmp_path / "page.html")],
        ["compare", str(run_copy), str(run_copy.parent / "other")],
    ]
    for arguments in (*([] if name == "recipe.yaml" else showing), *resuming):
        code = main(arguments)
        assert_ended(code, said())
        assert code == 2


@pytest.mark.parametrize("name", ["checkpoints/expand.json", "checkpoints/expand.safetensors"])
def test_a_checkpoint_that_is_a_pipe_is_refused_at_once(name: str, run_copy: Path, said: Said) -> None:
    (run_copy / name).unlink()
    os.mkfifo(run_copy / name)
    assert main(["evaluate", str(run_copy)]) == 2
    assert "is a pipe, not a file" in said()


@pytest.mark.parametrize("name", ["subnet.json", "model.safetensors"])
def test_a_network_that_is_a_pipe_is_refused_at_once(name: str, extracted: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(extracted, tmp_path / "network"))
    (copy / name).unlink()
    os.mkfifo(copy / name)
    with pytest.raises(ofav2.RunError) as error:
        ofav2.load_subnet(copy)
    assert "\n" not in str(error.value)


def test_arguments_that_name_pipes_are_refused_at_once(tiny_run: Run, said: Said, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.yaml"
    os.mkfifo(pipe)
    network = str(tmp_path / "network")
    for arguments in (
        ["evaluate", str(tiny_run.folder), "--subnet", str(pipe)],
        ["extract", str(tiny_run.folder), "--subnet", str(pipe), "--out", network],
        ["plan", str(pipe)],
        ["train", str(pipe)],
        ["train", "digits", f"teacher.checkpoint={pipe}", "phases.kernel.teacher=timm:test_resnet"],
        ["finetune", network, str(pipe), "--out", network],
        ["import-ofa", str(pipe), "digits", "--out", network],
        ["report", str(tiny_run.folder), "--out", str(pipe)],
    ):
        code = main(arguments)
        assert_ended(code, said())
        assert code == 2


def test_a_foreign_runs_links_are_not_written_through(half_run: Path, said: Said) -> None:
    victim = half_run.parent / "victim"
    precious = "precious" * 10_000
    victim.write_text(precious)
    for name in (".lock", "metrics.jsonl"):
        (half_run / name).unlink(missing_ok=True)
        (half_run / name).symlink_to(victim)
        assert main(["train", "--resume", str(half_run)]) == 2
        assert "is a link, and may lead anywhere" in said()
        assert victim.read_text() == precious
        (half_run / name).unlink()


# What a terminal would obey

ESCAPES = "\x1b]0;owned\x07\x1b[2J\u202e"


def test_nothing_that_a_terminal_obeys_is_printed(run_copy: Path, said: Said, tmp_path: Path) -> None:
    def rename(facts: dict[str, object]) -> None:
        facts.update(
            name=ESCAPES, status="failed: RunError", metric={"name": ESCAPES, "unit": "%", "higher_is_better": True}
        )

    change_facts(run_copy, rename)
    odd = run_copy.rename(tmp_path / f"run{ESCAPES}")
    other = Path(shutil.copytree(odd, tmp_path / "other"))
    page = ["--out", str(tmp_path / f"{ESCAPES}.html")]
    for arguments in (
        ["report", str(odd), *page],
        ["compare", str(odd), str(other), *page],
        ["evaluate", str(odd)],
        ["evaluate", str(odd), "--phase", ESCAPES],
        ["extract", str(odd), "--largest", "--formats", "card", "--out", str(tmp_path / f"out{ESCAPES}")],
        ["calibrate", str(odd)],
        ["finetune", str(odd), "--out", str(tmp_path / "out")],
        ["latency", str(odd)],
        ["train", "--resume", str(odd)],
        ["train", f"digits{ESCAPES}"],
        ["plan", "digits", f"data.root={ESCAPES}", "data.name=imagefolder"],
    ):
        code = main(arguments)
        text = said()
        assert_ended(code, text)
        assert "\x1b" not in text
    with pytest.raises(SystemExit):
        main(["report", str(odd), f"--{ESCAPES}"])
    assert "\x1b" not in said()


def test_a_network_whose_names_a_terminal_obeys_prints_none(extracted: Path, said: Said, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(extracted, tmp_path / f"network{ESCAPES}"))
    facts = json.loads((copy / "subnet.json").read_bytes())
    facts["data"] = facts["provenance"]["run"] = ESCAPES
    (copy / "subnet.json").write_text(json.dumps(facts))
    for arguments in (["calibrate", str(copy)], ["finetune", str(copy), "data.root=x", "--out", str(tmp_path / "out")]):
        assert_ended(main(arguments), said())
