"""The local file is the truth; W&B (the real one, offline) mirrors it and may fail as it likes."""

import errno
import json
import logging
import math
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import wandb

from ofav2.config.schema import TrackingConfig
from ofav2.errors import UserError
from ofav2.runs import tracking
from ofav2.runs.metrics_file import cut_metrics, flushed_bytes, read_metrics
from ofav2.runs.tracking import with_installed
from tests.ofav2.wandb_files import history, of_type, wandb_records

OFFLINE = TrackingConfig(mode="offline", project="tests", tags=("small", "ee_dp"))
RECIPE = {"data": {"name": "digits", "resolutions": [16, 24]}, "run": {"seed": 3}}
COLUMNS = ["subnet", "macs", "top1"]
ROWS: list[list[tracking.Cell]] = [["largest", 4_000_000, 0.97], ["smallest", 90_000, 0.75]]


@pytest.fixture(autouse=True)
def wandb_at_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep W&B's caches and settings out of the home folder."""
    home = tmp_path_factory.mktemp("wandb")
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(home))


def opened(
    folder: Path, config: TrackingConfig = OFFLINE, run_id: str | None = None
) -> AbstractContextManager[tracking.Tracker]:
    return tracking.open_tracker(folder, config, name="trial", recipe=RECIPE, run_id=run_id, steps_per_epoch=4)


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == tracking.__name__]


def test_the_file_holds_what_was_logged(tmp_path: Path) -> None:
    with opened(tmp_path, TrackingConfig()) as tracker:
        tracker.log("train", global_step=10, phase="full", loss=1.25, lr=np.float32(0.5), images=np.int64(640))
        tracker.log("validation", global_step=10, phase="full", top1=torch.tensor(0.5), better=True)
        assert [line["kind"] for line in read_metrics(tmp_path)] == ["train", "validation"], "flushed at once"
        tracker.table("full/corners", COLUMNS, ROWS)
        tracker.scatter("full/scatter", COLUMNS, ROWS, "macs", "top1")
    lines = read_metrics(tmp_path)
    assert min(line.pop("time") for line in lines) > 1.7e9, "seconds since 1970"
    assert lines[0] == {"kind": "train", "global_step": 10, "phase": "full", "loss": 1.25, "lr": 0.5, "images": 640}
    assert type(lines[0]["images"]) is int
    assert lines[1]["top1"] == 0.5
    assert lines[1]["better"] is True
    assert lines[2] == {"kind": "table", "name": "full/corners", "columns": COLUMNS, "rows": ROWS}
    assert lines[3] == lines[2] | {"kind": "scatter", "name": "full/scatter", "x": "macs", "y": "top1"}
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_nonfinite_metrics_are_null_and_named(tmp_path: Path) -> None:
    with opened(tmp_path, TrackingConfig()) as tracker:
        tracker.log("train", global_step=1, phase="full", loss=math.nan, norm=torch.tensor(math.inf), lr=0.1)
        tracker.table("t", ["a", "b"], [[None, 1.0], ["x", -math.inf]])

    def refuse(constant: str) -> None:
        pytest.fail(f"{constant} is no JSON")

    text = (tmp_path / "metrics.jsonl").read_text()
    first, second = (json.loads(line, parse_constant=refuse) for line in text.splitlines())
    assert (first["loss"], first["norm"], first["lr"]) == (None, None, 0.1)
    assert first["nonfinite"] == ["loss", "norm"]
    assert second["rows"] == [[None, 1.0], ["x", None]]
    assert second["nonfinite"] == [[1, "b"]]


def test_disabled_never_imports_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with opened(tmp_path, TrackingConfig(artifacts=True), run_id="kept") as tracker:
        tracker.log("train", global_step=1, phase="full", loss=1.0)
        tracker.artifact([tmp_path / "nothing"], "supernet", "model")
        assert tracker.run_id == "kept"
        assert tracker.url is None
    assert len(read_metrics(tmp_path)) == 1


def test_wandb_offline_holds_the_same(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with opened(tmp_path) as tracker:
        tracker.log("train", global_step=10, phase="full", loss=1.5, lr=0.25)
        tracker.log("train", global_step=20, phase="kernel", loss=math.nan)
        tracker.table("kernel/corners", COLUMNS, ROWS)
        tracker.scatter("kernel/accuracy", COLUMNS, ROWS, "macs", "top1")
        run_id = tracker.run_id
    assert capfd.readouterr() == ("", ""), "W&B keeps quiet"
    assert wandb.run is None, "the caller's own W&B run is not touched"
    records = wandb_records(tmp_path)

    [run] = of_type(records, "run")
    assert (run.run_id, run.project, run.display_name, list(run.tags)) == (run_id, "tests", "trial", ["small", "ee_dp"])
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert {key: config[key] for key in RECIPE} == RECIPE

    axes = {metric.name or metric.glob_name: metric.step_metric for metric in of_type(records, "metric")}
    assert axes == {"global_step": "", "*": "global_step"}

    rows = history(records)
    assert {key: value for key, value in rows[0].items() if not key.startswith("_")} == {
        "global_step": 10,
        "phase": "full",
        "epoch": 2.5,
        "train/loss": 1.5,
        "train/lr": 0.25,
    }
    assert rows[1]["global_step"] == 20
    assert math.isnan(rows[1]["train/loss"])
    assert rows[2]["kernel/corners/_type"] == "table-file"
    assert (rows[2]["kernel/corners/nrows"], rows[2]["kernel/corners/ncols"]) == (2, 3)
    [media] = tmp_path.glob(f"wandb/offline-run-*/files/{rows[2]['kernel/corners/path']}")
    assert json.loads(media.read_text()) == {"columns": COLUMNS, "data": ROWS}

    charts = [
        json.loads(item.value_json)
        for update in of_type(records, "config")
        for item in update.update
        if list(item.nested_key) == ["_wandb", "visualize", "kernel/accuracy"]
    ]
    assert [chart["panel_config"]["fieldSettings"] for chart in charts] == [{"x": "macs", "y": "top1"}]
    assert [exit.exit_code for exit in of_type(records, "exit")] == [0]


def test_a_table_of_mixed_cells_reaches_wandb(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with opened(tmp_path) as tracker:
        tracker.table("t", ["a", "b"], [["all", None], [3, 1], [None, 0.5]])
    assert warnings_of(caplog) == []
    assert history(wandb_records(tmp_path))[0]["t/nrows"] == 3


@pytest.mark.parametrize("enabled", [True, False])
def test_artifacts_only_when_enabled(tmp_path: Path, enabled: bool) -> None:
    paths = [tmp_path / "full.safetensors", tmp_path / "full.json"]
    for path in paths:
        path.write_text(path.name)
    with opened(tmp_path, TrackingConfig(mode="offline", artifacts=enabled)) as tracker:
        tracker.artifact(paths, "full", "model")
    artifacts = of_type(wandb_records(tmp_path), "artifact")
    assert [(artifact.type, artifact.name) for artifact in artifacts] == ([("model", "full")] if enabled else [])
    assert [{entry.path for entry in artifact.manifest.contents} for artifact in artifacts] == (
        [{"full.safetensors", "full.json"}] if enabled else []
    )


@pytest.mark.parametrize("name", ["lr=0.01-full", "größe/full", "x" * 200])
def test_a_run_folder_of_any_name_has_artifacts(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    with opened(tmp_path, TrackingConfig(mode="offline", artifacts=True)) as tracker:
        tracker.artifact([tmp_path / "metrics.jsonl"], name, "model")
    (artifact,) = of_type(wandb_records(tmp_path), "artifact")
    assert artifact.name == tracking.artifact_name(name)
    assert warnings_of(caplog) == []


def test_the_recipes_rules_for_wandb_are_wandbs_own() -> None:
    for config in (OFFLINE, TrackingConfig(project="x" * 128, tags=("t" * 64,))):
        wandb.Settings(project=config.project, run_tags=config.tags)
    for project, tags in (("a/b", ()), ("x" * 129, ()), ("a", ("t" * 65,)), ("a", ("",))):
        with pytest.raises((wandb.errors.UsageError, ValueError)):
            wandb.Settings(project=project, run_tags=tags)


def test_a_run_is_resumed_under_its_id(tmp_path: Path) -> None:
    with opened(tmp_path, run_id="abc123") as tracker:
        tracker.log("train", global_step=30, phase="depth", loss=0.5)
        assert tracker.run_id == "abc123"
    records = wandb_records(tmp_path)
    assert [(run.run_id, run.resume) for run in of_type(records, "run")] == [("abc123", True)]


def test_a_body_that_raises_ends_the_wandb_run_as_failed(tmp_path: Path) -> None:
    def interrupted() -> None:
        with opened(tmp_path) as tracker:
            tracker.log("train", global_step=1, phase="full", loss=0.5)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [exit.exit_code for exit in of_type(wandb_records(tmp_path), "exit")] == [1]
    assert len(read_metrics(tmp_path)) == 1


def test_a_caller_s_own_wandb_run_goes_on(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "ours").mkdir()
    own = wandb.init(dir=tmp_path / "own", mode="offline", settings=wandb.Settings(silent=True, console="off"))
    try:
        with opened(tmp_path / "ours") as tracker:
            assert tracker.run_id != own.id
            tracker.log("train", global_step=1, phase="full", loss=0.5)
        own.log({"mine": 1})
    finally:
        own.finish()
    assert [row["mine"] for row in history(wandb_records(tmp_path / "own"))] == [1]
    assert len(history(wandb_records(tmp_path / "ours"))) == 1


def raising(*_: object, **__: object) -> None:
    raise RuntimeError("the network\nis down")


def without_wandb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)


def without_init(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wandb, "init", raising)


def without_axis(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wandb.Run, "define_metric", raising)


def test_an_offline_run_says_how_it_gets_to_wandb(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), opened(tmp_path) as tracker:
        run_id = tracker.run_id
    (part,) = (tmp_path / "wandb").glob("offline-run-*")
    assert warnings_of(caplog) == [f"to upload to W&B: wandb sync {part}"]
    (part.parent / f"offline-run-20990101_000000-{run_id}").mkdir()
    caplog.clear()
    with caplog.at_level(logging.INFO):
        tracking._tell_sync(tmp_path, str(run_id))
    assert warnings_of(caplog)[0].startswith(f"to upload to W&B: wandb sync --id {run_id} {part} {part.parent}/")


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows of a run folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder / tracking.BOARD)).Reload()
    return {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in sorted(found.Tags()["scalars"])}


def test_tensorboard_shows_each_series_once_also_after_a_resume(tmp_path: Path) -> None:
    config = TrackingConfig(tensorboard=True)
    with opened(tmp_path, config) as tracker:
        tracker.log("train", global_step=10, phase="full", loss=1.5)
        kept = flushed_bytes(tmp_path)
        tracker.log("train", global_step=20, phase="full", loss=7.0)
    cut_metrics(tmp_path, kept)
    with opened(tmp_path, config) as tracker:
        tracker.log("train", global_step=20, phase="kernel", loss=0.5)
        tracker.log("validation", global_step=20, phase="kernel", largest=0.25)
    assert scalars(tmp_path) == {"train/loss": [(10, 1.5), (20, 0.5)], "validation/largest": [(20, 0.25)]}


def test_tensorboard_forgets_steps_of_a_run_that_saved_nothing(tmp_path: Path) -> None:
    config = TrackingConfig(tensorboard=True)
    for loss in (7.0, 0.5):
        with opened(tmp_path, config) as tracker:
            tracker.log("train", global_step=10, phase="full", loss=loss)
        cut_metrics(tmp_path, 0 if loss == 7 else flushed_bytes(tmp_path))
    assert scalars(tmp_path) == {"train/loss": [(10, 0.5)]}


def test_tensorboard_that_is_missing_is_said_before_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match="pip install tensorboard"), opened(tmp_path, TrackingConfig(tensorboard=True)):
        pass
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_that_is_missing_costs_a_search_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = TrackingConfig(tensorboard=True)
    assert with_installed(config) == config
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert with_installed(config) == TrackingConfig(tensorboard=False)
    assert "TensorBoard is off" in warnings_of(caplog)[0]


def test_tensorboard_that_cannot_be_opened_costs_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / tracking.BOARD).write_text("a file")
    with opened(tmp_path, TrackingConfig(tensorboard=True)) as tracker:
        tracker.log("train", global_step=1, phase="full", loss=1.0)
    assert [text.startswith("TensorBoard is off") for text in warnings_of(caplog)] == [True]
    assert len(read_metrics(tmp_path)) == 1


def test_tensorboard_that_cannot_be_closed_leaves_wandb_finished(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: object) -> None:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter.close", full)
    with opened(tmp_path, TrackingConfig(mode="offline", tensorboard=True)) as tracker:
        tracker.log("train", global_step=1, phase="full", loss=1.0)
    (warning,) = [text for text in warnings_of(caplog) if "TensorBoard" in text]
    assert "no space" in warning
    assert of_type(wandb_records(tmp_path), "exit")[0].exit_code == 0


@pytest.mark.parametrize("break_wandb", [without_wandb, without_init, without_axis])
def test_wandb_that_cannot_start_costs_one_warning(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    break_wandb: Callable[[pytest.MonkeyPatch], None],
) -> None:
    break_wandb(monkeypatch)
    with caplog.at_level(logging.WARNING), opened(tmp_path, OFFLINE, run_id="kept") as tracker:
        for step in range(3):
            tracker.log("train", global_step=step, phase="full", loss=1.0)
        tracker.table("t", COLUMNS, ROWS)
        assert tracker.run_id == "kept", "a later resume can still go on with it"
    [warning] = warnings_of(caplog)
    assert warning.startswith("W&B is off for the rest of this run (")
    assert warning.endswith("metrics.jsonl goes on")
    assert "\n" not in warning
    assert len(read_metrics(tmp_path)) == 4


@pytest.mark.parametrize("what", ["Run.log", "Table", "plot.scatter", "Artifact.add_file", "Run.log_artifact"])
def test_wandb_that_fails_midway_costs_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    config = TrackingConfig(mode="offline", artifacts=True)
    with caplog.at_level(logging.WARNING), opened(tmp_path, config) as tracker:
        tracker.log("train", global_step=0, phase="full", loss=1.0)
        monkeypatch.setattr(f"wandb.{what}", raising)
        for step in range(1, 4):
            tracker.table("t", COLUMNS, ROWS)
            tracker.scatter("s", COLUMNS, ROWS, "macs", "top1")
            tracker.artifact([tmp_path / "metrics.jsonl"], "full", "model")
            tracker.log("train", global_step=step, phase="full", loss=1.0)
    [warning] = warnings_of(caplog)
    assert "RuntimeError: the network is down" in warning
    kinds = [line["kind"] for line in read_metrics(tmp_path)]
    assert kinds == ["train", *["table", "scatter", "train"] * 3]
    steps = [row["global_step"] for row in history(wandb_records(tmp_path)) if "train/loss" in row]
    assert steps == [0], "W&B stays off, and keeps what it had"


def test_a_failed_artifact_turns_off_artifacts_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with opened(tmp_path, TrackingConfig(mode="offline", artifacts=True)) as tracker:
        for step in range(3):
            tracker.artifact([tmp_path / ("nowhere" if step == 1 else "metrics.jsonl")], f"phase-{step}", "model")
            tracker.log("train", global_step=step, phase="full", loss=1.0)
    (warning,) = warnings_of(caplog)
    assert warning.startswith("W&B artifacts are off for the rest of this run (ValueError: ")
    records = wandb_records(tmp_path)
    assert [row["global_step"] for row in history(records)] == [0, 1, 2]
    assert [artifact.name for artifact in of_type(records, "artifact")] == ["phase-0"]


def test_wandb_that_cannot_finish_costs_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish = wandb.Run.finish

    def finish_and_raise(run: Any, **arguments: Any) -> None:
        finish(run, **arguments)
        raise TimeoutError("still uploading")

    monkeypatch.setattr(wandb.Run, "finish", finish_and_raise)
    with caplog.at_level(logging.WARNING), opened(tmp_path) as tracker:
        tracker.finish()
        tracker.finish()
        tracker.log("train", global_step=1, phase="full", loss=1.0)
    assert len(warnings_of(caplog)) == 1
    assert len(read_metrics(tmp_path)) == 1


def test_a_row_that_does_not_fit_its_columns_is_a_bug(tmp_path: Path) -> None:
    with opened(tmp_path, TrackingConfig()) as tracker, pytest.raises(AssertionError):
        tracker.table("t", ["a", "b"], [[1]])
