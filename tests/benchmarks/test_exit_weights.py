"""The comparison of exits' weights: it trains once, goes on where it stopped, and says what is missing."""

from pathlib import Path

import pytest

from benchmarks import exit_weights


@pytest.mark.slow
@pytest.mark.parametrize("recipe", exit_weights.RECIPES)
def test_a_training_is_kept_and_its_row_says_which_seeds_are_missing(
    recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exit_weights, "SCHEMES", ("last", "mixed"))
    settings = ["data.name=digits", "data.batch_size=256", "data.shrink_to=0", "phases.all.warmup_epochs=0"]
    settings += ["data.resolutions=[16]", "data.val_fraction=0.45", "data.test_fraction=0.5"]
    given = [str(tmp_path), *settings, "--recipe", recipe, "--networks", "test_resnet", "--epochs", "1"]
    exit_weights.main([*given, "--seeds", "1"])
    kept = (tmp_path / exit_weights.RESULTS).read_bytes()
    exit_weights.main([*given, "--seeds", "2", "--show"])
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("test_resnet")]
    assert [row[2:6] for row in rows] == [[scheme, "1", "of", "1"] for scheme in ("last", "mixed")] + [
        [scheme, "1", "of", "2"] for scheme in ("last", "mixed")
    ]
    single, mixed = exit_weights.known(tmp_path / exit_weights.RESULTS)
    assert single.last == single.ensemble == single.winner
    assert (single.params, single.macs) == (1, 1)
    assert mixed.params > 0
    assert (tmp_path / exit_weights.RESULTS).read_bytes() == kept
