"""Two runs of different widths searched as one space, and what keeps runs from that."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import ofav2
from ofav2.cli.main import main
from ofav2.config import recipe
from ofav2.data.halves import halve
from ofav2.errors import UserError
from ofav2.nas import adapt
from ofav2.nas.found import ADAPTATION, Finalist
from ofav2.nas.latency_table import TABLE
from ofav2.nas.search_log import ARCHIVE
from ofav2.runs.records import Run, read_run
from tests.ofav2.changes import change_facts
from tests.ofav2.conftest import QUICK, SHORT, volumes
from tests.ofav2.nas.made_up import made_up_table
from tests.shared import made_once


@pytest.fixture(scope="module")
def both(tiny_run: Run, tiny_recipe: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs `narrow` and `wide` and a search `both` of the two; to look at only."""

    def make(path: Path) -> None:
        shutil.copytree(tiny_run.folder, path / "narrow")
        ofav2.train(tiny_recipe, ["supernet.width_mult=0.15", "evaluation.corners=none"], run_dir=path / "wide")
        ofav2.search([path / "narrow", path / "wide"], measurements=10, settings=QUICK, seed=1, out=path / "both")

    return made_once(tmp_path_factory, "both", make)


def require_measured(folder: Path, finalists: list[Finalist]) -> None:
    """Networks have the values that a run's supernet gives them."""
    run = ofav2.open_run(folder)
    for split, name in zip(halve(run.data.val, run.evaluator.seed), ("searched", "confirmed"), strict=True):
        scores = run.evaluator.scores(run.loaded.net, [one.subnet for one in finalists], split)
        assert {score.subnet: score.value for score in scores} == {one.subnet: getattr(one, name) for one in finalists}


def test_each_network_has_the_value_and_cost_of_its_run(both: Path) -> None:
    found = ofav2.load_search(both / "both")
    finalists = found.front.finalists
    assert {one.run for one in finalists} == {0, 1}
    for place, source in enumerate(found.sources):
        require_measured(source.run, [one for one in finalists if one.run == place])


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


def adapted_in(search: Path) -> ofav2.Found:
    """Adapt the runs of a search; what comes out is kept."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adapt, "hypervolume", volumes(0.1))
        return ofav2.resume_search(search, adapt=SHORT)


@pytest.fixture(scope="module")
def both_adapted(both: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The search, with both runs adapted; to look at only."""

    def make(path: Path) -> None:
        shutil.copytree(both / "both", path)
        adapted_in(path)

    return made_once(tmp_path_factory, "both-adapted", make)


@pytest.mark.slow
def test_each_run_is_adapted_to_its_own_networks(both: Path, both_adapted: Path, tmp_path: Path) -> None:
    before, found = ofav2.load_search(both / "both"), ofav2.load_search(both_adapted)
    assert found.adapted is not None
    assert [one.run for one in found.adapted.runs] == [0, 1]
    assert [(one.run, one.subnet) for one in found.final.finalists] == [
        (one.run, one.subnet) for one in before.front.finalists
    ]
    for place, source in enumerate(found.sources):
        assert source.run == both_adapted / f"adapted-{place + 1}"
        assert source.weights != before.sources[place].weights
        own = [one for one in found.final.finalists if one.run == place]
        *_, phase = recipe.parse(read_run(source.run).recipe, "copy").phases.values()
        assert phase.networks == tuple(one.subnet.to_json() for one in own)
        require_measured(source.run, own)
    knee, out = found.knee(), tmp_path / "knee"
    assert main(["extract", "--from-search", str(both_adapted), "--knee", "--formats", "none", "--out", str(out)]) == 0
    assert ofav2.describe_subnet(out).provenance.checkpoint_sha256 == found.sources[knee.run].weights


@pytest.mark.slow
def test_a_killed_adaptation_of_two_runs_goes_on_to_the_same_bytes(
    both: Path, both_adapted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = Path(shutil.copytree(both / "both", tmp_path / "both"))
    train = adapt.resume

    def killed(copy: Path) -> Run:
        if copy.name == "adapted-2":
            raise KeyboardInterrupt
        return train(copy)

    with monkeypatch.context() as patch:
        patch.setattr(adapt, "resume", killed)
        with pytest.raises(KeyboardInterrupt):
            ofav2.resume_search(search, adapt=SHORT)
    found = adapted_in(search)
    assert (search / ADAPTATION).read_bytes() == (both_adapted / ADAPTATION).read_bytes()
    assert [one.weights for one in found.sources] == [one.weights for one in ofav2.load_search(both_adapted).sources]


@pytest.mark.slow
def test_a_run_without_networks_on_the_front_is_not_adapted(both: Path, tmp_path: Path) -> None:
    search = Path(shutil.copytree(both / "both", tmp_path / "both"))
    front = json.loads((search / "front.json").read_text(encoding="utf-8"))
    front["finalists"] = [one for one in front["finalists"] if one["run"]]
    (search / "front.json").write_text(json.dumps(front), encoding="utf-8")
    found = adapted_in(search)
    assert found.adapted is not None
    assert [one.run for one in found.adapted.runs] == [1]
    assert found.sources[0] == ofav2.load_search(both / "both").sources[0]
    assert {path.name for path in search.glob("adapted*")} == {"adapted-2"}


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


def setting(name: str, value: str) -> Callable[[dict[str, Any]], None]:
    """Return a change of a setting in the kept recipe."""

    def change(facts: dict[str, Any]) -> None:
        facts["recipe"], changed = re.subn(rf"(?<= ){name}.*", name + value, facts["recipe"])
        assert changed == 1

    return change


def changed_classes(facts: dict[str, Any]) -> None:
    facts["data"]["classes"][0] = "another"


def changed_images(facts: dict[str, Any]) -> None:
    facts["data"]["fingerprint"] = "0" * 64


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        (changed_split, r"seeds of the split \(0 and 1\)"),
        (setting("eval_crop: ", "0.5"), r"data\.eval_crop \(.* and 0\.5\)"),
        (setting("calibration_images: ", "7"), r"evaluation\.calibration_images \(.* and 7\)"),
        (setting("calibration_batch: ", "3"), r"evaluation\.calibration_batch \(.* and 3\)"),
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


def test_latency_tables_of_other_batches_are_no_one_front(both: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(both, tmp_path / "both"))
    runs = [folder / "narrow", folder / "wide"]
    for run, batch in zip(runs, (1, 2), strict=True):
        net = ofav2.open_run(run).loaded.net
        ofav2.save_latency_table(replace(made_up_table(net.architecture, net.space), batch=batch), run / TABLE)
    with pytest.raises(UserError, match=r"latency tables .* are of different machines, threads or batches"):
        ofav2.search(runs, objectives=["top1", "latency"], out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_of_one_run_alone_is_refused(both: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs, out = [str(both / "narrow"), str(both / "wide")], str(tmp_path / "out")
    for arguments, message in (
        (["search", runs[0], runs[0], "--out", out], "name each run once"),
        (["search", *runs, "--latency-table", "t.json", "--max-latency", "1s", "--out", out], "is of one run"),
    ):
        assert main(arguments) == 2
        said = capsys.readouterr().err
        assert message in said
        assert said.count("\n") == 1
    assert not Path(out).exists()
