"""The proof in pieces: each call continues from the files of the one before."""

import json
import time
from pathlib import Path

import pytest

from benchmarks import gpu_proof, proof
from ofav2.runtime.signals import Stopped
from tests.ofav2.data.conftest import write_classes
from tests.ofav2.test_resume import ask_to_stop, at, before_yielding


@pytest.fixture
def images(tmp_path: Path) -> str:
    for split, count in (("train", 12), ("test", 4)):
        write_classes(tmp_path / "images" / split, {"cat": count, "dog": count})
    return str(tmp_path / "images")


def test_a_row_is_trained_and_measured_in_pieces(images: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"BODIES": 2, "CANDIDATES": 2, "TEST_IMAGES": 5}.items():
        monkeypatch.setattr(proof, name, value)
    out = tmp_path / "out"
    common = [images, "--out", str(out), "--rows", "alone-small", "--quick"]
    # No time at all: nothing is begun, and another call is needed.
    assert gpu_proof.main([*common, "--minutes", "0"]) == gpu_proof.AGAIN
    assert json.loads((out / "proof.json").read_text())["rows"][0]["status"] == "not begun"
    # Too little: the training is told to stop, and saves its state.
    with pytest.MonkeyPatch.context() as patch:
        before_yielding(patch, at("full", 1), ask_to_stop)
        assert gpu_proof.main(common) == gpu_proof.AGAIN
    assert json.loads((out / "proof.json").read_text())["rows"][0]["status"] == "stopped"
    assert gpu_proof.main(common) == 0
    (row,) = json.loads((out / "proof.json").read_text())["rows"]
    assert row["status"] == "finished"
    assert row["measured"]
    assert (out / "results" / "alone-small.json").exists()
    assert "| finished |" in (out / "proof.md").read_text()
    assert gpu_proof.main(common) == 0, "what is measured is left"


def test_time_that_is_over_stops_the_body() -> None:
    with pytest.raises(Stopped, match="time is over"), gpu_proof.stopping_after(0.01):
        time.sleep(30)
    with gpu_proof.stopping_after(30):
        pass
