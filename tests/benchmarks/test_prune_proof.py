"""The comparison of fixed and learned weights runs, and prints one row per way of choosing."""

import pytest

from benchmarks import prune_proof


@pytest.mark.slow
def test_a_tiny_comparison(capsys: pytest.CaptureFixture[str]) -> None:
    small = ("supernet.width_mult=0.05", "phases.full.epochs=0.02", "phases.full.warmup_epochs=0")
    prune_proof.main(["digits", "--seeds", "1", *small, "data.val_fraction=0.02", "data.test_fraction=0.02"])
    shown = capsys.readouterr().out
    for way in ("last exit", "all exits, fixed", "best subset, learned", "cautious, learned"):
        assert f"\n{way}" in shown
