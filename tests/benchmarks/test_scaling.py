"""Bytes that a step exchanges are counted from a recipe alone."""

import pytest

from benchmarks import scaling, sides
from ofav2.errors import UserError


def test_bytes_of_each_phase_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["bytes", "cifar10_proof", "data.root=x", "--images", "1280", "--classes", "10", "--steps", "3"]
    scaling.main(given)
    shown = capsys.readouterr().out
    assert "MiB of float32 weights" in shown
    for phase in ("full", "kernel", "height", "depth", "expand"):
        assert f"\n{phase} " in shown


def test_a_mistake_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise UserError("something (x) is wrong: correct it")

    with pytest.raises(SystemExit) as ended:
        sides.command_line(main)
    assert ended.value.code == 2
    assert capsys.readouterr().err.endswith("something (x) is wrong: correct it\n")
