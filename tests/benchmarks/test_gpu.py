"""The GPU's command in its quick form, on the CPU: every part comes out, and what is done is not repeated."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu, sides
from benchmarks.gpu import QUICK, markdown, parts, run


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sides, "RESULTS", tmp_path / "benchmarks")


@pytest.mark.slow
def test_every_part_comes_out(tmp_path: Path) -> None:
    gpu.main(["--out", str(tmp_path / "out"), "--quick"])
    found = json.loads((tmp_path / "out" / "gpu.json").read_text())
    assert list(found["parts"]) == list(parts(QUICK))
    assert [name for name, part in found["parts"].items() if "error" in part] == []
    assert "skipped" in found["parts"]["tests"]["last line"]
    text = (tmp_path / "out" / "gpu.md").read_text()
    for name in parts(QUICK):
        assert f"## {name}\n" in text


@pytest.mark.slow
@pytest.mark.parametrize("part", ["full phase beside timm", "loader"])
def test_a_quick_part_has_times_and_a_goal(part: str) -> None:
    found = parts(QUICK)[part]()
    assert len(found["sides"]) == 2
    assert all(times["median"] > 0 for times in found["sides"].values())
    assert found["base"] in found["sides"]
    assert found["goal"]


def test_parts_are_not_repeated_and_failures_cost_no_other_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[str] = []
    seconds = iter(range(0, 10**6, 100))

    def part(name: str) -> Callable[[], Mapping[str, Any]]:
        def measure() -> Mapping[str, Any]:
            called.append(name)
            if name == "b":
                raise RuntimeError("out of memory")
            return {"text": name}

        return measure

    monkeypatch.setattr(gpu, "parts", lambda plan: {name: part(name) for name in "abcd"})
    found = run(QUICK, tmp_path, minutes=8, clock=lambda: next(seconds))
    assert called == ["a", "b"], "eight minutes are over"
    assert found["parts"]["b"]["error"] == "RuntimeError: out of memory"
    found = run(QUICK, tmp_path, minutes=10**6, clock=lambda: next(seconds))
    assert called == ["a", "b", "b", "c", "d"], "what failed is measured again"
    assert json.loads((tmp_path / "gpu.json").read_text()) == found
    assert "Failed: RuntimeError: out of memory" in markdown(found)
    run(QUICK, tmp_path / "some", only=["c"])
    assert called == ["a", "b", "b", "c", "d", "c"]


def test_another_machine_starts_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "parts", lambda plan: {name: lambda: {"text": "done"} for name in "ab"})
    monkeypatch.setattr(gpu, "machine", lambda: {**sides.machine(), "graphics": "one card"})
    run(QUICK, tmp_path, only=["a"])
    monkeypatch.setattr(gpu, "machine", lambda: {**sides.machine(), "graphics": "another card"})
    found = run(QUICK, tmp_path, only=["b"])
    assert list(found["parts"]) == ["b"]
    assert found["machine"]["graphics"] == "another card"


def test_without_a_card_the_full_form_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit):
        gpu.main(["--out", str(tmp_path)])
    assert "try --quick" in capsys.readouterr().err
