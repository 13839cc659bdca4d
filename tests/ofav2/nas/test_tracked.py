"""A search mirrored to W&B, the real one, offline: hypervolume, quality of predictions, front."""

import shutil
from pathlib import Path

import pytest

import ofav2
from ofav2.config.schema import TrackingConfig
from ofav2.nas.search_snapshot import read_search_snapshot
from ofav2.nas.tracked import MIRROR, track_search
from ofav2.runs.metrics_file import read_metrics
from tests.ofav2.conftest import MEASUREMENTS
from tests.ofav2.wandb_files import history, wandb_records


@pytest.fixture(autouse=True)
def wandb_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))


@pytest.mark.slow
def test_a_search_is_mirrored_as_the_run_is(searched: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(searched, tmp_path / "run"))
    recipe = (run / "recipe.yaml").read_text(encoding="utf-8")
    (run / "recipe.yaml").write_text(recipe.replace("mode: disabled", "mode: offline"), encoding="utf-8")
    found = ofav2.search(run, measurements=MEASUREMENTS, limits=ofav2.Limits(params=60_000), out=tmp_path / "out")
    rows = history(wandb_records(found.folder))
    rounds, measured = read_search_snapshot(found.folder).rounds, 0
    for one, row in zip(rounds, (row for row in rows if "round/hypervolume" in row), strict=True):
        measured += one.measured
        assert row["global_step"] == measured
        assert row["round/hypervolume"] == pytest.approx(one.hypervolume)
        assert row.get("round/tau") == pytest.approx(one.tau)
    optimism = "result/optimism"
    assert [row[optimism] for row in rows if optimism in row] == [found.front.optimism]
    assert [row["search/front/nrows"] for row in rows if "search/front/nrows" in row] == [len(found.front.finalists)]
    table = next(line for line in read_metrics(found.folder) if line["kind"] == "table")
    assert [row[-1] for row in table["rows"]] == [one.confirmed for one in found.front.finalists]


def test_a_search_that_goes_on_is_the_same_one_in_wandb(searched: Path, tmp_path: Path) -> None:
    record, config = ofav2.load_search(searched / "search").record, TrackingConfig(mode="offline")
    (tmp_path / "out").mkdir()
    ids = []
    for _ in range(2):
        with track_search(tmp_path / "out", record, config) as tracker:
            ids.append(tracker.tracker.run_id)
    assert ids[0] == ids[1]
    assert ids[0] in (tmp_path / "out" / MIRROR).read_text(encoding="utf-8")


def test_without_wandb_there_are_the_lines_alone(searched: Path) -> None:
    lines = [line for line in read_metrics(searched / "search") if line["kind"] == "round"]
    rounds = read_search_snapshot(searched / "search").rounds
    assert [line["hypervolume"] for line in lines] == [one.hypervolume for one in rounds]
    assert not (searched / "search" / MIRROR).exists()
