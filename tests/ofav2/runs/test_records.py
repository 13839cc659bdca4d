"""What a run records of itself comes back equal, and whatever else lies there is refused in one line."""

import json
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ofav2.config.schema import Config, RunConfig
from ofav2.data.splits import RGB
from ofav2.errors import RunError
from ofav2.networks.build import build_supernet
from ofav2.runs import records
from ofav2.runs.records import Run, RunRecord, lasting, new_record, read_run, with_lasting, write_run
from ofav2.tasks.classification import TOP1, Classification
from tests.ofav2.changes import Change, change_facts
from tests.ofav2.fuzzing import JUNK, accepted, changed, fuzz
from tests.ofav2.tiny import data_config, tiny_data, tiny_net


def recorded(**changes: Any) -> RunRecord:
    config = Config(data=data_config(eval_crop=0.75), run=RunConfig(seed=changes.pop("seed", 3)))
    data = changes.pop("data", tiny_data())
    return new_record("trial", config, Classification(5), data, changes.pop("net", tiny_net("ee_dp")), recipe="{}")


def test_a_record_says_what_the_run_is_made_of() -> None:
    record, net = recorded(), tiny_net("ee_dp")
    assert (record.name, record.seed, record.status, record.processes) == ("trial", 3, "training", 1)
    assert (record.phases, record.test, record.imported, record.wandb_run_id) == ((), None, None, None)
    assert (record.task, record.metric) == ("classification", TOP1)
    assert (record.data.images.train, record.data.images.val, record.data.images.test) == (40, 23, 17)
    assert record.data.classes == tuple(f"class {number}" for number in range(5))
    assert (record.data.eval_crop, record.data.bands, record.data.fingerprint) == (0.75, RGB, "noise 0")
    assert (record.architecture, record.space) == (net.architecture, net.space)
    assert datetime.now(UTC) - datetime.fromisoformat(record.created) < timedelta(minutes=5)


@pytest.mark.parametrize("variant", ["se_b", "ee_dp"])
def test_a_new_record_comes_back_equal(variant: str, tmp_path: Path) -> None:
    record = recorded(net=tiny_net(variant), data=replace(tiny_data(), skipped=("a.png: broken", "größe\n: twice")))
    write_run(tmp_path, record)
    assert read_run(tmp_path) == record
    assert record.data.skipped.count == 2


def test_a_finished_record_comes_back_equal(tiny_run: Run, tmp_path: Path) -> None:
    write_run(tmp_path, tiny_run.record)
    assert read_run(tmp_path) == tiny_run.record


def test_a_run_says_in_five_lines_what_it_is_and_reached(tiny_run: Run) -> None:
    first, network, data, validation, test = str(tiny_run).splitlines()
    assert first == f"run {tiny_run.folder}: finished"
    assert network.startswith("network: ee_dp, ")
    assert data.startswith("data: digits, 10 classes; ")
    assert validation.startswith("validation top-1 of all exits together, after phases: full ")
    assert all(phase.name in validation for phase in tiny_run.record.phases)
    assert re.fullmatch(r"test top-1: largest \S+ ± \S+ %, smallest \S+ ± \S+ %", test)
    assert len(repr(tiny_run)) < 300


@pytest.mark.parametrize(
    ("task", "classes", "said"),
    [
        ("classification", ("a", "b"), "2 classes"),
        ("segment", ("water",), "1 class"),
        ("regress", ("mean", "top"), "2 planes"),
        ("reconstruct", (), ""),
    ],
)
def test_planes_of_numbers_are_not_called_classes(task: str, classes: tuple[str, ...], said: str) -> None:
    record = recorded()
    assert replace(record, task=task, data=replace(record.data, classes=classes)).targets == said


def test_the_file_starts_with_its_format(tmp_path: Path) -> None:
    write_run(tmp_path, recorded())
    assert next(iter(json.loads((tmp_path / "run.json").read_text()).items())) == ("format", "ofav2-run/6")


def test_versions_are_those_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    found = recorded().versions
    assert (found["torch"], found["numpy"]) == (version("torch"), version("numpy"))
    monkeypatch.setattr(records, "PACKAGES", ("torch", "no-such-package"))
    assert recorded().versions["no-such-package"] is None


def test_the_supernet_can_be_built_again_from_its_record() -> None:
    for variant in ("se_b", "ee_dp"):
        record = recorded(net=tiny_net(variant))
        again = build_supernet(record.architecture, record.space.resolution)
        assert (again.architecture, again.space) == (record.architecture, record.space)


def test_what_lasts_changes_with_data_net_metric_and_seed_alone() -> None:
    first = recorded()
    assert lasting(replace(first, status="finished", created="2026-01-01", name="other")) == lasting(first)
    others = (
        recorded(seed=4),
        recorded(data=replace(tiny_data(), fingerprint="other")),
        recorded(net=tiny_net("ee_d")),
        replace(first, metric=replace(first.metric, name="top-5")),
    )
    for other in others:
        assert lasting(other) != lasting(first)
        taken = with_lasting(replace(first, name="mine"), other)
        assert (lasting(taken), taken.name) == (lasting(other), "mine")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda facts: facts.pop("architecture"), "architecture is missing"),
        (lambda facts: facts["architecture"].pop("stages"), "architecture: stages is missing"),
        (lambda facts: facts["architecture"].update(surprise=1), "architecture: 'surprise' is no field"),
        (lambda facts: facts["space"].update(kernel=[4]), "space: kernel (4) must be odd"),
        (lambda facts: facts["space"].update(kernel=[3]), "space is not that of the architecture"),
        (lambda facts: facts["phases"][1]["space"].update(kernel=[9]), "phases[1].space: kernel (9)"),
        (lambda facts: facts["phases"][1]["space"].update(blocks=9), "phases[1].space is not a part"),
        (lambda facts: facts["phases"][1].update(name="../full"), "phases[1].name"),
        (lambda facts: facts["phases"][1].update(metrics_bytes=-1), "phases[1].metrics_bytes (-1)"),
        (lambda facts: facts.update(phases=[{"name": "full"}]), "phases[0].space is missing"),
        (lambda facts: facts.update(data=None), "data (null) must be a mapping"),
        (lambda facts: facts["data"].update(mean=["print()"] * 3), 'data.mean[0] ("print()") must be a number'),
        (lambda facts: facts["data"].update(mean=[0.5]), "data: mean has 1 numbers for 3 channels"),
        (lambda facts: facts["data"].update(mean=[0.5, 0.5, True]), "data.mean[2] (true) must be a number"),
        (lambda facts: facts["data"].update(std=[0.5, 0, 0.5]), "data.std[1] (0.0) must be from"),
        (lambda facts: facts["data"].update(eval_crop=0), "data.eval_crop (0.0) must be from"),
        (lambda facts: facts["data"].update(bands="red"), 'data.bands ("red") must be a list'),
        (lambda facts: facts.update(created="today"), "created ('today')"),
        (lambda facts: facts.update(status="late"), 'status ("late") must be training'),
        (lambda facts: facts.update(seed=True), "seed (true) must be a whole number"),
        (lambda facts: facts.update(extra=1), "extra is not a key"),
        (lambda facts: facts.update(format="ofav2-run/1"), "must be 'ofav2-run/6'"),
    ],
)
def test_a_damaged_record_is_refused_by_file_and_key(run_copy: Path, change: Change, message: str) -> None:
    change_facts(run_copy, change)
    with pytest.raises(RunError) as error:
        read_run(run_copy)
    text = str(error.value)
    assert text.startswith(f"{run_copy / 'run.json'}: ")
    assert message in text
    assert text.endswith("or train again")
    assert "\n" not in text


@fuzz(150)
@given(data=st.data())
def test_any_record_comes_back_equal_or_is_refused(data: st.DataObject, tiny_run: Run, tmp_path: Path) -> None:
    facts = changed(json.loads((tiny_run.folder / "run.json").read_bytes()), data.draw, JUNK)
    (tmp_path / "run.json").write_text(json.dumps(facts), encoding="utf-8")
    record = accepted(lambda: read_run(tmp_path))
    if record is not None:
        write_run(tmp_path, record)
        assert read_run(tmp_path) == record


def test_what_is_no_run_folder_of_ours_is_refused_with_a_next_step(tmp_path: Path) -> None:
    file = tmp_path / "run.json"

    def refusal(path: Path) -> str:
        with pytest.raises(RunError) as error:
            read_run(path)
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "does not exist; give one that `ofav2 train` made" in refusal(tmp_path / "nowhere")
    assert "has no run.json, so it holds no run; give one that `ofav2 train` made" in refusal(tmp_path)
    file.write_text("{}")
    assert "is a file; give the folder" in refusal(file)
    assert "format (None) must be 'ofav2-run/6'" in refusal(tmp_path)
    file.write_text(json.dumps({"format": "ofav2-run/9"}))
    assert "use the version of ofav2 that made it" in refusal(tmp_path)
