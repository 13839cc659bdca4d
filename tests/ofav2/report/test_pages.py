import json
import re
import shlex
import shutil
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import ofav2
from ofav2.cli.main import main
from ofav2.errors import RunError, UserError
from ofav2.evaluation.by_class import CLASSES, read_classes
from ofav2.nas.latency_table import TABLE
from ofav2.nas.limits import parse_limits
from ofav2.nas.search_snapshot import read_search_snapshot
from ofav2.report.comparison import differing
from ofav2.report.networks import Measured, Table, tables
from ofav2.report.page import count, percent, when
from ofav2.report.search import _effects
from ofav2.report.several import RESULT_COLUMNS
from ofav2.report.single import _drawn, _unlocks
from ofav2.runs.records import Run
from ofav2.runs.snapshot import read_snapshot
from ofav2.tasks.base import Metric
from ofav2.tasks.class_results import share_error
from supernets import Supernet
from supernets.cost import Cost
from tests.ofav2.changes import change_facts, change_lines
from tests.ofav2.nas.made_up import made_up_table
from tests.ofav2.tiny import SIX_PHASES, tiny_net


def change_json(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    values = json.loads(path.read_text(encoding="utf-8"))
    change(values)
    path.write_text(json.dumps(values), encoding="utf-8")


HOSTILE = "</script><img src=x onerror=alert(1)>&amp;\u2028"


class Markup(HTMLParser):
    """Tags, attributes and text of a page, and what its scripts hold."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.scripts: list[str] = []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] == "script" and self.cdata_elem == "script":
            self.scripts[-1] += data
        else:
            self.text += data

    @property
    def payload(self) -> dict[str, Any]:
        values: dict[str, Any] = json.loads(self.scripts[0])
        return values


def test_the_page_is_in_the_run_by_default_and_tells_what_the_run_did(tiny_run: Run, run_copy: Path) -> None:
    page = ofav2.write_report(run_copy)
    assert page == run_copy / "report.html"
    shown = Markup(page)
    test = tiny_run.record.test
    assert test is not None
    shown_from, images = tiny_run.record.metric.show_from, tiny_run.record.data.images.test
    assert (tables(read_snapshot(run_copy))[shown.payload["opened"]]).name == f"{SIX_PHASES[-1]}/corners"
    for told in (
        shown_from(test.largest, images),
        shown_from(test.smallest, images),
        f"ofav2 train {run_copy}/recipe.yaml",
    ):
        assert told in shown.text
    assert (run_copy / "recipe.yaml").read_text(encoding="utf-8").strip() in shown.text
    for phase in tiny_run.record.phases:
        assert (phase.teacher.reason or "") in shown.text
    for package, version in tiny_run.record.versions.items():
        assert version is None or f"{package} {version}" in shown.text


def test_the_page_needs_nothing_from_elsewhere(tiny_run: Run, tmp_path: Path) -> None:
    shown = Markup(ofav2.write_report(tiny_run.folder, tmp_path / "page.html"))
    pointing = [value or "" for name, value in shown.attributes if name in ("src", "href")]
    assert all(value == "data:," or value.startswith("data:image/jpeg;base64,") for value in pointing)


def test_the_page_shows_what_the_largest_network_confuses(tiny_run: Run, run_copy: Path) -> None:
    shown, kept = Markup(ofav2.write_report(run_copy)), read_classes(tiny_run.folder, tiny_run.record)
    assert kept is not None
    assert f"accuracies {percent(kept.results.mean_class_accuracy)}" in shown.text
    assert shown.payload["confusion"]["images"] == kept.results.matrix()
    assert shown.tags.count("img") == len(kept.mistakes)
    (run_copy / CLASSES).unlink()
    assert "--classes" in Markup(ofav2.write_report(run_copy)).text


def test_what_comes_from_a_run_is_text(run_copy: Path, tmp_path: Path) -> None:
    plain = Markup(ofav2.write_report(run_copy, tmp_path / "plain.html"))

    def soil(facts: dict[str, Any]) -> None:
        facts.update(name=HOSTILE)
        facts["data"].update(name=HOSTILE, classes=[HOSTILE] * 10)
        facts["phases"][1]["teacher"].update(name=HOSTILE, reason=HOSTILE)
        facts["versions"]["torch"] = HOSTILE

    change_facts(run_copy, soil)
    soiled = Markup(ofav2.write_report(run_copy, tmp_path / "soiled.html"))
    assert soiled.tags == plain.tags
    assert HOSTILE in soiled.text
    assert soiled.payload["phases"][1]["teacher"]["name"] == HOSTILE


def test_a_shell_takes_the_command_as_it_is_shown(run_copy: Path) -> None:
    odd = run_copy.rename(run_copy.with_name("it's $HOME"))
    shown = Markup(ofav2.write_report(odd))
    line = next(line for line in shown.text.splitlines() if "ofav2 train" in line and "recipe.yaml" in line)
    command = line[line.index("ofav2 train") :].split("Measure")[0]
    assert shlex.split(command)[2] == str(odd / "recipe.yaml")


def test_a_run_under_way_is_shown_as_far_as_it_is(training_run: Path) -> None:
    shown = Markup(ofav2.write_report(training_run))
    assert "Still training" in shown.text
    assert "under way" in shown.text
    assert [phase["finished"] for phase in shown.payload["phases"]] == [True, True, False, False, False, False]


def test_a_run_that_broke_off_says_so(half_run: Path) -> None:
    assert "ended without a word" in Markup(ofav2.write_report(half_run)).text
    change_facts(half_run, lambda facts: facts.update(status="failed: RunError"))
    assert "it failed: RunError" in Markup(ofav2.write_report(half_run)).text


def test_a_phase_is_not_said_to_unlock_what_the_supernet_has_no_choice_of(tiny_run: Run) -> None:
    config = read_snapshot(tiny_run.folder).config
    kernel = config.phases["kernel"]
    both = replace(kernel, unlock=replace(kernel.unlock, level=(1, 2, 3)))
    for variant, said in (("se_b", "kernel 3, 5"), ("ee_dp", "kernel 3, 5; level 1, 2, 3")):
        record = SimpleNamespace(space=tiny_net(variant).space)
        run: Any = SimpleNamespace(config=replace(config, phases={"both": both}), record=record)
        assert _unlocks(run, "both") == said


def test_a_fall_after_the_first_phase_is_explained_with_the_step_that_helps(run_copy: Path) -> None:
    def fall(lines: list[dict[str, Any]]) -> None:
        for line in lines:
            if line["kind"] == "table" and line["name"].endswith("/corners"):
                largest = max(line["rows"], key=lambda row: int(row[line["columns"].index("macs")]))
                largest[-1] = 0.9 if line["name"] == "full/corners" else 0.8

    change_lines(run_copy, fall)
    told = Markup(ofav2.write_report(run_copy)).text
    assert "The largest network fell from 90.0 % after full to 80.0 % after expand" in told
    assert f"ofav2 extract {run_copy} --phase full --largest" in told


def test_a_fall_of_all_exits_together_is_not_called_one_of_the_largest_network_alone(run_copy: Path) -> None:
    def fall(facts: dict[str, Any]) -> None:
        facts["phases"][0]["ensemble_score"], facts["phases"][-1]["ensemble_score"] = 0.99, 0.01

    change_facts(run_copy, fall)
    assert "fell from 99.0 %" not in Markup(ofav2.write_report(run_copy)).text
    change_lines(run_copy, lambda lines: drop(lines, lambda line: "/corners" in str(line.get("name"))))
    told = Markup(ofav2.write_report(run_copy)).text
    assert "The largest network, all exits together, fell from 99.0 % after full to 1.0 % after expand" in told


def test_steps_of_a_phase_that_its_patience_ended_are_those_that_it_took(run_copy: Path) -> None:
    change_facts(run_copy, lambda facts: facts["phases"][0].update(steps=12_345))
    assert "12,345" in Markup(ofav2.write_report(run_copy)).text


def drop(lines: list[dict[str, Any]], unwanted: Callable[[dict[str, Any]], bool]) -> None:
    lines[:] = [line for line in lines if not unwanted(line)]


def test_a_run_that_has_only_begun_has_a_page(half_run: Path) -> None:
    change_facts(half_run, lambda facts: facts.update(phases=[]))
    (half_run / "metrics.jsonl").unlink()
    shown = Markup(ofav2.write_report(half_run))
    assert "Nothing has been measured yet" in shown.text
    assert shown.payload["networks"] == []


@pytest.mark.parametrize("out", ["", "missing/page.html"])
def test_a_place_that_can_hold_no_page_is_refused(tiny_run: Run, tmp_path: Path, out: str) -> None:
    with pytest.raises(UserError, match="output file"):
        ofav2.write_report(tiny_run.folder, tmp_path / out)
    assert not list(tmp_path.iterdir())


def test_a_run_that_cannot_be_read_leaves_the_old_page(run_copy: Path) -> None:
    page = ofav2.write_report(run_copy)
    before = page.read_bytes()
    (run_copy / "metrics.jsonl").write_text("no json\n", encoding="utf-8")
    with pytest.raises(RunError, match=r"metrics\.jsonl, line 1"):
        ofav2.write_report(run_copy)
    assert page.read_bytes() == before


def change_recipe(run: Path, before: str, after: str) -> None:
    change_facts(run, lambda facts: facts.update(recipe=facts["recipe"].replace(before, after)))


def test_comparing_says_what_differs(tiny_run: Run, run_copy: Path, tmp_path: Path) -> None:
    change_recipe(run_copy, "label_smoothing: 0.1", "label_smoothing: 0.25")
    found = ofav2.compare_runs([tiny_run.folder, run_copy], tmp_path / "both.html")
    assert found.settings == (("optim.label_smoothing", "0.1", "0.25"),)
    assert found.names == ("six", "copy")
    assert not found.warnings
    shown = Markup(found.page)
    assert [front["run"] for front in shown.payload["fronts"]] == ["six", "copy"]
    row, test, images = dict(zip(RESULT_COLUMNS, found.results[0], strict=True)), tiny_run.record.test, 50
    assert test is not None
    assert (tiny_run.record.data.images.test, tiny_run.record.metric.unit) == (images, "%")
    error = share_error(test.largest, images)
    assert row["largest on test"] == f"{100 * test.largest:.1f} ± {100 * error:.1f} %"
    (kept,) = (t for t in tables(read_snapshot(tiny_run.folder)) if t.name == f"{SIX_PHASES[-1]}/corners")
    assert row["largest"].split(" ±")[0] == f"{100 * kept.networks[-1].score:.1f}", "choose on validation"


def test_values_that_differ_beyond_six_digits_are_told_apart() -> None:
    before = {"optim": {"lr": 0.1234567, "warmup": 1 / 3, "same": 0.1234567, "whole": 1.0}, "mean": (0.5, 0.1234567)}
    after = {"optim": {"lr": 0.1234568, "warmup": 0.25, "same": 0.1234567, "whole": 1}, "mean": (0.5, 0.1234568)}
    assert differing([before, after]) == (
        ("optim.lr", "0.1234567", "0.1234568"),
        ("optim.warmup", "0.333333", "0.25"),
        ("mean", "[0.5, 0.1234567]", "[0.5, 0.1234568]"),
    )


def test_a_phase_that_only_one_run_has_is_a_difference(tiny_run: Run, run_copy: Path, tmp_path: Path) -> None:
    change_recipe(run_copy, "\n  expand:\n    epochs", "\n  more:\n    epochs")
    settings = ofav2.compare_runs([tiny_run.folder, run_copy], tmp_path / "both.html").settings
    assert ("phases.expand.epochs", "0.02", "–") in settings
    assert ("phases.more.epochs", "–", "0.02") in settings


def test_different_data_and_unfinished_runs_are_said(tiny_run: Run, half_run: Path, tmp_path: Path) -> None:
    change_facts(half_run, lambda facts: facts["data"].update(fingerprint="another"))
    found = ofav2.compare_runs([tiny_run.folder, half_run], tmp_path / "both.html")
    assert "different data" in found.warnings[0]
    assert "copy is not finished" in found.warnings[1]
    assert all(warning in Markup(found.page).text for warning in found.warnings)


def test_test_images_that_chose_epochs_are_told_of_each_run_that_has_them(
    tiny_run: Run, run_copy: Path, tmp_path: Path
) -> None:
    change_recipe(run_copy, "test_fraction: 0.03", "test_fraction: 0.0")
    (told,) = ofav2.compare_runs([tiny_run.folder, run_copy], tmp_path / "both.html").warnings
    assert told.startswith("copy: test images are the validation images that chose its epochs (data.test_fraction=0)")
    change_facts(run_copy, lambda facts: facts.update(test=None, status="stopped"))
    warnings = ofav2.compare_runs([tiny_run.folder, run_copy], tmp_path / "both.html").warnings
    assert not any("flatter" in warning for warning in warnings), "it has no score on test"


@pytest.mark.parametrize(
    ("key", "value"),
    [("eval_crop", "1.0"), ("shrink_to", "32"), ("calibration_images", "25"), ("calibration_batch", "10")],
)
def test_runs_that_were_evaluated_in_different_ways_are_told(
    tiny_run: Run, run_copy: Path, tmp_path: Path, key: str, value: str
) -> None:
    (line,) = re.findall(rf"^  {key}: .*$", tiny_run.record.recipe, re.MULTILINE)
    change_recipe(run_copy, line, f"  {key}: {value}")
    found = ofav2.compare_runs([tiny_run.folder, run_copy], tmp_path / "both.html")
    (told,) = found.warnings
    before, section = line.split(": ")[1], "evaluation" if key.startswith("calibration") else "data"
    assert told.startswith(f"{section}.{key} differs (six: {before}, copy: {value}), so the runs were evaluated in")


def test_times_are_said_to_hold_pauses(tiny_run: Run, run_copy: Path, tmp_path: Path) -> None:
    assert "pauses included" in Markup(ofav2.write_report(run_copy)).text.split("Begun")[0]
    page = ofav2.compare_runs([tiny_run.folder, run_copy], tmp_path / "both.html").page
    assert "Times are by the clock, with pauses" in Markup(page).text


def test_scores_of_test_do_not_stand_beside_those_of_validation(tiny_run: Run, run_copy: Path, tmp_path: Path) -> None:
    change_recipe(run_copy, "corners: all", "corners: none")
    lines = (run_copy / "metrics.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if "/corners" not in line or '"test/corners"' in line]
    (run_copy / "metrics.jsonl").write_text("".join(kept), encoding="utf-8")
    found = ofav2.compare_runs([tiny_run.folder, run_copy], tmp_path / "both.html")
    assert found.warnings == (
        "evaluation.corners differs (six: all, copy: none), so the mean of corners is of other networks.",
        "copy measured no sub-networks on validation: its front is of test, other columns are empty.",
    )
    first, second = (dict(zip(RESULT_COLUMNS, row, strict=True)) for row in found.results)
    validated = ("largest", "smallest", "corner mean", "cheapest near the best")
    assert all(first[name] != "–" for name in validated)
    assert all(second[name] == "–" for name in validated)
    assert second["largest on test"] == first["largest on test"]


def test_a_page_opens_on_the_cheapest_network_near_the_best_where_lower_is_better() -> None:
    metric = Metric("MAE", "", higher_is_better=False)
    space = tiny_net().space
    subnets = [space.uniform(kernel=kernel, resolution=side) for kernel in (3, 5) for side in space.resolution][:4]
    scores = (3.0, 1.005, 5.0, 1.0)
    costs = [Cost(params=1, macs=macs, memory=1) for macs in (10, 20, 30, 40)]
    networks = tuple(Measured(*one) for one in zip(subnets, costs, scores, strict=True))
    drawn = _drawn(Table("full/corners", "validation", networks), {one: i for i, one in enumerate(subnets)}, metric)
    assert drawn["front"] == (0, 1, 3)
    assert drawn["first"] == 1
    # A score that means nothing, such as R2 of equal targets, is in no table.
    assert _drawn(Table("full/corners", "validation", ()), {}, metric)["first"] is None


def test_one_run_is_nothing_to_compare(tiny_run: Run, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="two different"):
        ofav2.compare_runs([tiny_run.folder, f"{tiny_run.folder}/../{tiny_run.folder.name}"], tmp_path / "both.html")
    assert not list(tmp_path.iterdir())


def test_the_verbs(tiny_run: Run, run_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.html"
    assert main(["report", str(run_copy), "--exits", "--out", str(page)]) == 0
    assert capsys.readouterr().out == f"{page}\n"
    assert "agreement" in Markup(page).scripts[4]
    assert main(["compare", str(tiny_run.folder), str(run_copy), "--out", str(tmp_path / "both.html")]) == 0
    assert "copy" in capsys.readouterr().out
    assert main(["report", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert main(["compare", str(tiny_run.folder), "--out", str(page)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_page_of_a_search_tells_what_it_found(searched: Path, tmp_path: Path) -> None:
    found = ofav2.load_search(searched / "search")
    shown = Markup(ofav2.write_report(found.folder, tmp_path / "page.html"))
    assert [value for name, value in shown.attributes if name in ("src", "href")] == ["data:,"]
    for one in found.front.finalists:
        assert f"{one.macs:,}" in shown.text
        assert found.record.metric.show(one.confirmed) in shown.text
        assert str(one.subnet) in shown.text
    assert found.record.metric.show(found.front.optimism) in shown.text
    assert [one["band"][0] < one["confirmed"] < one["band"][1] for one in shown.payload["finalists"]]
    assert len(shown.payload["networks"]) == found.front.networks
    assert f"ofav2 extract --from-search {found.folder} --number 1" in shown.text
    # The limit that it proposes is one that networks of this search can keep, and not all do.
    (limit,) = re.findall(rf"--from-search {re.escape(str(found.folder))} --max-macs (\S+)", shown.text)
    within = [one.macs <= parse_limits(macs=limit).macs for one in found.front.finalists]
    assert sum(within) == (len(within) + 1) // 2
    # Confirmed values may let one beat another, so the page doesn't call these networks a front.
    assert "Finalists" in shown.text
    assert "On the front" not in shown.text


def test_the_page_of_a_search_tells_what_its_adaptation_reached(adapted: Path, tmp_path: Path) -> None:
    found = ofav2.load_search(adapted / "search")
    assert found.adapted is not None
    shown = Markup(ofav2.write_report(found.folder, tmp_path / "page.html"))
    assert "confirmed front 0.5000 before, 0.6000 after" in shown.text
    # All shows the front as `extract` takes it, and the adaptation's section what it was before.
    after, before = ([one.confirmed for one in front.finalists] for front in (found.final, found.front))
    assert shown.payload["adapted"] == [one["confirmed"] for one in shown.payload["finalists"]] == after
    assert shown.payload["before"] == before != after
    assert [one["searched"] for one in shown.payload["finalists"]] == [one.searched for one in found.final.finalists]
    assert found.record.metric.show(found.final.optimism) in shown.text
    assert "All values are those with the adapted weights" in shown.text
    # Until it has ended, the search has not.
    folder = Path(shutil.copytree(found.folder, tmp_path / "search"))
    change_json(folder / "adaptation.json", lambda record: record.update(result=None))
    shown = Markup(ofav2.write_report(folder))
    assert shown.payload["adapted"] is None
    assert "a part of the adaptation" in shown.text
    assert f"ofav2 search --resume {folder}" in shown.text


def test_the_page_of_a_search_shows_no_adaptation_that_was_not_kept(adapted: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(adapted / "search", tmp_path / "search"))
    change_json(folder / "adaptation.json", lambda record: record["result"].update(after=0.4))
    found, shown = ofav2.load_search(folder), Markup(ofav2.write_report(folder))
    assert found.adapted is not None
    assert not found.adapted.kept
    assert [one["confirmed"] for one in shown.payload["finalists"]] == shown.payload["before"]
    assert shown.payload["before"] == [one.confirmed for one in found.front.finalists]
    assert "All values are those with the adapted weights" not in shown.text


def test_the_page_of_a_search_under_way_says_so(searched: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(searched / "search", tmp_path / "search"))
    (folder / "front.json").unlink()
    lines = (folder / "archive.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    for kept, told in ((0, "No network has been measured yet"), (3, "Broken off after 2 of 11"), (len(lines), "–")):
        (folder / "archive.jsonl").write_text("".join(lines[:kept]), encoding="utf-8")
        shown = Markup(ofav2.write_report(folder))
        assert told in shown.text
        assert f"ofav2 search --resume {folder}" in shown.text
        assert shown.payload["finalists"] is None


def test_comparing_searches_says_what_differs(searched: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(searched / "search", tmp_path / "other"))
    change_json(other / "search.json", lambda record: record.update(seed=5))
    (other / "front.json").unlink()
    found = ofav2.compare_runs([searched / "search", other], tmp_path / "both.html")
    assert found.settings == (("seed", "0", "5"),)
    assert [row[:2] for row in found.results] == [("search", "finished"), ("other", "stopped")]
    assert "other is not finished" in found.warnings[0]
    shown = Markup(found.page)
    first, second = shown.payload["volumes"]
    assert first["hypervolume"] == second["hypervolume"]
    assert all(cell in shown.text for row in found.results for cell in row)


def test_searches_that_measured_differently_are_told(searched: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(searched / "search", tmp_path / "other"))

    def change(record: dict[str, Any]) -> None:
        record["runs"][0]["measurement"] = "0" * 64
        record["versions"]["torch"] = "1.0"

    change_json(other / "search.json", change)
    found = ofav2.compare_runs([searched / "search", other], tmp_path / "both.html")
    assert [row[0] for row in found.settings] == ["measurement", "versions.torch"]
    assert "measured the same weights in different ways" in found.warnings[0]


def test_latencies_of_two_machines_are_told(searched: Path, tmp_path: Path) -> None:
    net = ofav2.load_supernet(searched)
    assert isinstance(net, Supernet)
    table = made_up_table(net.architecture, net.space)
    folders = []
    for name, batch in (("one", table.batch), ("two", table.batch + 1)):
        run = Path(shutil.copytree(searched, tmp_path / name))
        ofav2.save_latency_table(replace(table, batch=batch), run / TABLE)
        out = tmp_path / f"search-{name}"
        settings = ofav2.SearchSettings(start=2, batch=1, population=8, generations=2)
        ofav2.search(run, objectives=("top-1", "latency"), measurements=2, settings=settings, out=out)
        folders.append(out)
    found = ofav2.compare_runs(folders, tmp_path / "both.html")
    assert "Latencies are of different machines, threads or batches" in found.warnings[0]
    assert "latency_sha256" in [row[0] for row in found.settings]
    # A table that was made anew, or is damaged, is not the one that was searched with.
    (tmp_path / "one" / TABLE).write_text("{", encoding="utf-8")
    assert not ofav2.compare_runs(folders, tmp_path / "both.html").warnings


def test_searches_that_cannot_be_compared_are_refused(searched: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a search, and not all others are"):
        ofav2.compare_runs([searched, searched / "search"], tmp_path / "both.html")
    other = Path(shutil.copytree(searched / "search", tmp_path / "other"))
    change_json(other / "search.json", lambda record: record.update(costs=["params"]))
    with pytest.raises(UserError, match=r"different objectives \(search: top-1, macs, other: top-1, params\)"):
        ofav2.compare_runs([searched / "search", other], tmp_path / "both.html")


def test_numbers_as_people_read_them() -> None:
    assert [count(n) for n in (7, 1_500, 10_255_760, 2.5e9, 1.5e32)] == ["7", "1.5 k", "10.3 M", "2.5 G", "1.5 × 10³²"]
    assert [count(n) for n in (999.4, 999.6, 999_500, 7.94e12)] == ["999", "1 k", "1 M", "7.9 × 10¹²"]
    assert (percent(0.9888), percent(None)) == ("98.9 %", "–")
    assert (when("2026-11-22T17:50:45+00:00"), when("once")) == ("22 Nov 2026, 17:50 UTC", "once")


@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_the_page_of_a_search_warns_of_effects_that_noise_could_have(
    searched: Path, tmp_path: Path, noise: float
) -> None:
    folder, rng = Path(shutil.copytree(searched / "search", tmp_path / "search")), np.random.default_rng(0)
    lines = [json.loads(line) for line in (folder / "archive.jsonl").read_text(encoding="utf-8").splitlines()]
    for line in lines:
        for network in line.get("networks", ()) if line["kind"] == "measured" else ():
            network["value"] = 0.1 * network["subnet"]["height"] + noise * float(rng.random())
    (folder / "archive.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    found, told = _effects(read_search_snapshot(folder)), Markup(ofav2.write_report(folder)).text
    assert found is not None
    assert found.explained > 0
    assert f"explain at most {percent(found.explained)} of the variance" in told
    assert ("Don't rely on them" in told) == bool(noise) == (found.explained < found.floor)
