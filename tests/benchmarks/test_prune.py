"""The benchmark of pruning runs, and its ways of counting agree."""

import pytest

from benchmarks import prune


def test_all_ways_count_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    prune.main(["--exits", "3", "--images", "40", "--classes", "6", "--repeats", "1"])
    assert "7 subsets, 40 images, 6 classes" in capsys.readouterr().out
