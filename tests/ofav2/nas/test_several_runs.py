"""Two runs of different widths searched as one space, and what keeps runs from that."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ofav2
from ofav2.cli.main import main
from ofav2.data.halves import halve
from ofav2.errors import UserError
from ofav2.nas.search_log import ARCHIVE
from ofav2.runs.records import Run
from tests.ofav2.changes import change_facts
from tests.ofav2.conftest import QUICK
from tests.shared import made_once


@pytest.fixture(scope="module")
def both(tiny_run: Run, tiny_recipe: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs `narrow` and `wide` and a search `both` of the two; to look at only."""

    def make(path: Path) -> None:
        shutil.copytree(tiny_run.folder, path / "narrow")
        ofav2.train(tiny_recipe, ["supernet.width_mult=0.1", "evaluation.corners=none"], run_dir=path / "wide")
        ofav2.search([path / "narrow", path / "wide"], measurements=10, settings=QUICK, out=path / "both")

    return made_once(tmp_path_factory, "both", make)


def test_each_network_has_the_value_and_cost_of_its_run(both: Path) -> None:
    found = ofav2.load_search(both / "both")
    finalists = found.front.finalists
    assert {one.run for one in finalists} == {0, 1}
    for place, source in enumerate(found.sources):
        run = ofav2.open_run(source.run)
        own = [one for one in finalists if one.run == place]
        for split, name in zip(halve(run.data.val, run.evaluator.seed), ("searched", "confirmed"), strict=True):
            scores = run.evaluator.scores(run.loaded.net, [one.subnet for one in own], split)
            assert {score.subnet: score.value for score in scores} == {one.subnet: getattr(one, name) for one in own}


def test_a_killed_search_of_two_runs_goes_on_to_the_same_bytes(both: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(both / "both", tmp_path / "both"))
    whole, front = (folder / ARCHIVE).read_bytes(), (folder / "front.json").read_bytes()
    (folder / ARCHIVE).write_bytes(whole[: len(whole) // 2])
    (folder / "front.json").unlink()
    ofav2.resume_search(folder)
    assert (folder / ARCHIVE).read_bytes() == whole
    assert (folder / "front.json").read_bytes() == front


def test_a_network_is_extracted_from_its_run(both: Path, tmp_path: Path) -> None:
    found = ofav2.load_search(both / "both")
    for place, name in enumerate(("narrow", "wide")):
        number = next(number for number, one in enumerate(found.front.finalists, 1) if one.run == place)
        arguments = ["--number", str(number), "--formats", "none", "--out", str(tmp_path / name)]
        # Whichever of the runs is named: the search knows the right one.
        run = [str(both / "narrow")] if place else []
        assert main(["extract", *run, "--from-search", str(found.folder), *arguments]) == 0
        written, one = ofav2.describe_subnet(tmp_path / name), found.front.finalists[number - 1]
        assert (written.subnet, written.cost.params, written.cost.macs) == (one.subnet, one.params, one.macs)
        assert written.provenance.checkpoint_sha256 == found.sources[place].weights


def test_tables_and_page_name_the_run_of_each_network(
    both: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = ofav2.load_search(both / "both")
    assert main(["search", "--resume", str(found.folder)]) == 0
    shown = capsys.readouterr().out
    page = ofav2.write_report(found.folder, tmp_path / "page.html").read_text(encoding="utf-8")
    for one in found.front.finalists:
        assert f"{('narrow', 'wide')[one.run]}: {one.subnet}" in page
    assert "wide" in shown
    assert "stage 1" in page


def changed_split(facts: dict[str, Any]) -> None:
    facts["recipe"] = facts["recipe"].replace("split_seed: 0", "split_seed: 1")


def changed_classes(facts: dict[str, Any]) -> None:
    facts["data"]["classes"][0] = "another"


def changed_images(facts: dict[str, Any]) -> None:
    facts["data"]["fingerprint"] = "0" * 64


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        (changed_split, r"seeds of the split \(0 and 1\)"),
        (changed_classes, "classes"),
        (changed_images, "images or splits"),
        (lambda facts: facts["phases"].pop(), "choices of expand"),
    ],
)
def test_runs_that_are_no_one_space_are_refused(
    change: Callable[[dict[str, Any]], object], difference: str, both: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(both / "wide", tmp_path / "other"))
    change_facts(other, change)
    with pytest.raises(UserError, match=f"have different {difference}"):
        ofav2.search([both / "narrow", other], out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_of_one_run_alone_is_refused(both: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs, out = [str(both / "narrow"), str(both / "wide")], str(tmp_path / "out")
    for arguments, message in (
        (["search", runs[0], runs[0], "--out", out], "name each run once"),
        (["search", *runs, "--adapt", "--out", out], "adaptation is of one run"),
        (["search", "--resume", str(both / "both"), "--adapt"], "adaptation is of one run"),
        (["search", *runs, "--latency-table", "t.json", "--max-latency", "1s", "--out", out], "is of one run"),
    ):
        assert main(arguments) == 2
        said = capsys.readouterr().err
        assert message in said
        assert said.count("\n") == 1
    assert not Path(out).exists()
