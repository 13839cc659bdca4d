"""The time of a plan is estimated on copies: nothing is trained, and nothing written."""

import re
from pathlib import Path

import pytest

from ofav2.cli.main import main
from ofav2.config import recipe
from ofav2.data.blank import blank_data
from ofav2.training import timing
from ofav2.training.setup import prepare
from tests.ofav2 import tiny


def test_each_phase_takes_its_steps_times_what_a_step_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = recipe.load(tiny.written(tmp_path, tiny.TWO))
    setup = prepare(config, data=blank_data(config.data, images=200, classes=10))
    before = {name: tensor.clone() for name, tensor in tiny.bits(setup.net).items()}
    assert all(seconds > 0 for seconds in timing.phase_seconds(setup).values())
    assert tiny.same_bits(before, tiny.bits(setup.net))
    monkeypatch.setattr(timing, "_step_seconds", lambda setup, phase: 2.0)
    assert timing.phase_seconds(setup) == {phase.name: 2.0 * phase.steps for phase in setup.plan.phases}


def test_a_plan_needs_no_data_where_counts_are_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = tiny.written(tmp_path, tiny.TWO.replace("name: digits", "name: imagefolder, root: nowhere"))
    assert main(["plan", own, "--images", "200", "--classes", "4", "--time"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("imagined images: ")
    assert re.search(r"about \S+ s of training here, validations not counted:\nfull \S+ s, kernel \S+ s$", shown, re.M)
    assert max(map(len, shown.splitlines()[-2:])) <= 80
    assert main(["plan", own, "--images", "200"]) == 2
    assert main(["plan", own, "--images", "200", "--classes", "4", "--json", "--latency"]) == 2
    assert "give both" in capsys.readouterr().err
