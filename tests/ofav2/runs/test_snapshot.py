from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from ofav2.errors import RunError
from ofav2.report.curves import curves, phase_seconds, phase_spans, unusable_steps
from ofav2.runs import folder
from ofav2.runs.records import Run
from ofav2.runs.snapshot import read_snapshot
from tests.ofav2.changes import change_facts, change_lines
from tests.ofav2.tiny import SIX_PHASES


def test_a_finished_run(tiny_run: Run) -> None:
    run = read_snapshot(tiny_run.folder)
    assert run.state == "finished"
    assert tuple(phase.name for phase in run.record.phases) == SIX_PHASES
    assert run.record == tiny_run.record


def test_the_lock_tells_a_training_run(training_run: Path) -> None:
    assert read_snapshot(training_run).state == "training"


def test_a_killed_run_is_stopped(half_run: Path) -> None:
    assert read_snapshot(half_run).state == "stopped"
    (half_run / ".lock").unlink()
    assert read_snapshot(half_run).state == "stopped"


def test_reading_leaves_the_lock_free(half_run: Path) -> None:
    read_snapshot(half_run)
    with folder.lock(half_run):
        pass


def test_a_run_that_said_why_it_stopped(half_run: Path) -> None:
    change_facts(half_run, lambda facts: facts.update(status="failed: RunError"))
    assert (read_snapshot(half_run).state, read_snapshot(half_run).record.status) == ("stopped", "failed: RunError")


def test_a_run_without_measurements(half_run: Path) -> None:
    (half_run / "metrics.jsonl").unlink()
    assert read_snapshot(half_run).metrics == ()


def test_a_foreign_folder_and_a_lost_recipe(tmp_path: Path, run_copy: Path) -> None:
    with pytest.raises(RunError, match=r"no run\.json"):
        read_snapshot(tmp_path)
    before = read_snapshot(run_copy)
    (run_copy / "recipe.yaml").unlink()
    assert read_snapshot(run_copy) == before


def test_phases_follow_one_another(tiny_run: Run) -> None:
    found = phase_spans(read_snapshot(tiny_run.folder))
    assert [span.first for span in found] == [0, *(span.end for span in found[:-1])]


def test_phases_to_come_are_where_they_will_be(tiny_run: Run, half_run: Path) -> None:
    whole, half = phase_spans(read_snapshot(tiny_run.folder)), phase_spans(read_snapshot(half_run))
    assert [(s.name, s.first, s.end) for s in half] == [(s.name, s.first, s.end) for s in whole]
    assert [s.finished for s in half] == [True, True, False, False, False, False]


def test_curves_hold_every_line_of_their_phase(tiny_run: Run) -> None:
    run = read_snapshot(tiny_run.folder)
    found = curves(run, "train", ("loss", "lr"))
    assert [curve.phase for curve in found] == list(SIX_PHASES)
    told = [(line["global_step"], line["loss"]) for line in run.metrics if line["kind"] == "train"]
    drawn = [pair for curve in found for pair in zip(curve.steps, curve.values["loss"], strict=True)]
    assert drawn == told


def test_a_step_measured_twice_counts_as_last_measured(run_copy: Path) -> None:
    def repeat(lines: list[dict[str, object]]) -> None:
        lines.append({**lines[0], "loss": 7.0})

    change_lines(run_copy, repeat)
    first = curves(read_snapshot(run_copy), "train", ("loss",))[0]
    assert first.values["loss"][0] == 7.0
    assert len(set(first.steps)) == len(first.steps)


def test_a_loss_that_is_not_finite_is_a_gap_and_said(run_copy: Path) -> None:
    change_lines(run_copy, lambda lines: lines[0].update(loss=None, nonfinite=["loss"]))
    run = read_snapshot(run_copy)
    assert curves(run, "train", ("loss",))[0].values["loss"][0] is None
    assert unusable_steps(run) == (1,)


def test_a_skipped_batch_is_said(run_copy: Path) -> None:
    skipped = {"kind": "skipped", "global_step": 3, "phase": "full", "time": 0.0, "loss": None, "nonfinite": ["loss"]}
    change_lines(run_copy, lambda lines: lines.append(skipped))
    assert unusable_steps(read_snapshot(run_copy)) == (3,)


def test_phases_take_the_time_between_their_last_measurements(run_copy: Path) -> None:
    begun = datetime(2026, 1, 1, tzinfo=UTC)
    change_facts(run_copy, lambda facts: facts.update(created=begun.isoformat()))

    def stamp(lines: list[dict[str, Any]]) -> None:
        for line in lines:
            if "phase" in line:
                line["time"] = begun.timestamp() + 10 * (SIX_PHASES.index(line["phase"]) + 1)

    change_lines(run_copy, stamp)
    assert phase_seconds(read_snapshot(run_copy)) == dict.fromkeys(SIX_PHASES, 10.0)


def test_a_line_without_a_step_names_the_file(run_copy: Path) -> None:
    change_lines(run_copy, lambda lines: lines[0].pop("global_step"))
    with pytest.raises(RunError, match=r"metrics\.jsonl"):
        curves(read_snapshot(run_copy), "train", ("loss",))
