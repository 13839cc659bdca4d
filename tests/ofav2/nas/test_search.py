"""A search of a run: what it writes, how it goes on, what it refuses, and what is extracted from it."""

import errno
import json
import math
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import ofav2
from ofav2 import files
from ofav2.cli.main import main
from ofav2.data.halves import halve
from ofav2.errors import RunError, UserError
from ofav2.evaluation.evaluator import Evaluator, Score
from ofav2.nas import adapt, rounds
from ofav2.nas import search as search_module
from ofav2.nas.cost_model import CostModel, Price
from ofav2.nas.found import FRONT, front_ranking, pick_finalist, pick_rule
from ofav2.nas.latency_table import TABLE
from ofav2.nas.limits import Limits
from ofav2.nas.measured import STORE
from ofav2.nas.objectives import read_objectives
from ofav2.nas.rounds import front_optimism
from ofav2.nas.search_clock import SECONDS
from ofav2.nas.search_log import ARCHIVE
from ofav2.nas.search_snapshot import read_search_snapshot
from ofav2.report import search as page
from ofav2.runs import checkpoint, records
from ofav2.runs.folder import checkpoint_path
from ofav2.runs.records import Run, read_run, write_run
from ofav2.tasks.base import Metric
from ofav2.tasks.class_results import share_error
from ofav2.tasks.segmentation import MEAN_IOU
from supernets import Space, Subnet, Supernet
from tests.ofav2.conftest import MEASUREMENTS, QUICK
from tests.ofav2.crew import crew
from tests.ofav2.nas.made_up import made_up_table
from tests.ofav2.tiny import tiny_data
from tests.test_architecture import ROOT

TOP1, ERROR = Metric("top-1", "%", True), Metric("error", "", False)


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / ARCHIVE).read_text(encoding="utf-8").splitlines()]


def test_the_archive_holds_every_measured_network_with_what_it_costs_and_why(searched: Path) -> None:
    found = ofav2.load_search(searched / "search")
    lines = lines_of(found.folder)
    picked = [line for line in lines if line["kind"] == "picked"]
    measured = [line for line in lines if line["kind"] == "measured"]
    assert sum(len(line["bodies"]) for line in picked) == len(measured) == found.front.measured == MEASUREMENTS
    assert {why for line in picked for why in line["why"]} <= {"first", "gain", "spread"}
    model = CostModel(found.record.runs[0].architecture)
    networks = [one for line in measured for one in line["networks"]]
    for one in networks:
        subnet = Subnet.from_dict(one["subnet"])
        price = model.price(subnet)
        assert [one[name] for name in ("params", "macs", "memory")] == [price.params, price.macs, price.memory]
        assert price.params <= 60_000
    assert found.front.networks == len({json.dumps(one["subnet"]) for one in networks})
    assert len(networks) > MEASUREMENTS, "a measurement scores a body at all its exits"


def test_values_are_those_of_the_evaluator_on_either_half(searched: Path, opened: ofav2.OpenedRun) -> None:
    found = ofav2.load_search(searched / "search")
    halves = halve(opened.data.val, opened.evaluator.seed)
    assert len(halves.search) == found.record.search_images
    subnets = [one.subnet for one in found.front.finalists]
    for split, name in zip(halves, ("searched", "confirmed"), strict=True):
        expected = {score.subnet: score.value for score in opened.evaluator.scores(opened.loaded.net, subnets, split)}
        assert {one.subnet: getattr(one, name) for one in found.front.finalists} == expected


def test_optimism_is_the_mean_difference_of_the_halves(searched: Path) -> None:
    front = ofav2.load_search(searched / "search").front
    gaps = [one.searched - one.confirmed for one in front.finalists]
    assert front.optimism == pytest.approx(np.mean(gaps))
    macs = [one.macs for one in front.finalists]
    assert macs == sorted(macs)
    # The finalists share the images, so more of them make it no surer.
    share = float(np.mean([one.confirmed for one in front.finalists]))
    record = ofav2.load_search(searched / "search").record
    errors = [share_error(share, images) for images in (record.search_images, record.confirmation_images)]
    assert front.optimism_error == pytest.approx(np.hypot(*errors))
    certain = [replace(one, confirmed=1.0) for one in front.finalists]
    _, error = front_optimism(record, certain)
    assert error is not None
    assert error > 0, "all of a few images is no certainty"


def test_halves_share_no_image_and_hold_each_label_evenly() -> None:
    val = replace(tiny_data().val, targets=np.repeat(np.arange(4), [6, 6, 6, 5]))
    halves = halve(val, 3)
    images = [split.image(index).numpy().tobytes() for split in halves for index in range(len(split))]
    assert len(images) == len(set(images)) == 23
    for split in halves:
        assert all(abs(int((split.targets == label).sum()) - 3) <= 1 for label in range(4))
    again = halve(val, 3)
    assert again.search.targets.tolist() == halves.search.targets.tolist()


@pytest.mark.parametrize("share", [0.0, 0.35, 0.6])
def test_a_killed_search_goes_on_to_the_same_bytes(share: float, searched: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(searched, tmp_path / "run"))
    folder = run / "search"
    whole = (folder / ARCHIVE).read_bytes()
    front = (folder / FRONT).read_bytes()
    # Cut in the middle of a line; once, without what was measured before.
    (folder / ARCHIVE).write_bytes(whole[: int(share * len(whole))])
    (folder / FRONT).unlink()
    if share == 0.6:
        (run / STORE).unlink()
    ofav2.resume_search(folder)
    assert (folder / ARCHIVE).read_bytes() == whole
    assert (folder / FRONT).read_bytes() == front


def test_a_later_search_measures_nothing_twice(searched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[Subnet] = []
    scores = Evaluator.scores

    def counted(self: Any, net: Any, subnets: Any, split: Any) -> Any:
        chosen = list(subnets)
        measured.extend(chosen if split.name == "search" else ())
        return scores(self, net, chosen, split)

    run = Path(shutil.copytree(searched, tmp_path / "run"))
    monkeypatch.setattr(Evaluator, "scores", counted)
    again = ofav2.search(run, measurements=MEASUREMENTS, settings=QUICK, limits=Limits(params=60_000))
    assert measured == []
    assert again.folder == run / "search-2"
    assert (again.folder / ARCHIVE).read_bytes() == (run / "search" / ARCHIVE).read_bytes()
    other = ofav2.search(run, measurements=MEASUREMENTS, settings=QUICK, seed=1, out=tmp_path / "other")
    known = {one.subnet for one in read_search_snapshot(run / "search").networks}
    assert measured
    assert not known & set(measured)
    assert {one.subnet for one in read_search_snapshot(other.folder).networks} >= set(measured)


def test_damaged_lines_of_what_was_measured_are_measured_again(
    searched: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = Path(shutil.copytree(searched, tmp_path / "run"))
    # The last line is cut, as a killed search leaves it; the first one is no JSON any more.
    (run / STORE).write_bytes(b"x" + (run / STORE).read_bytes()[1:-9])
    again = ofav2.search(run, measurements=MEASUREMENTS, settings=QUICK, limits=Limits(params=60_000))
    assert "line 1 can't be read and is left out" in caplog.text
    assert (again.folder / ARCHIVE).read_bytes() == (run / "search" / ARCHIVE).read_bytes()


def test_a_score_that_is_not_finite_is_refused_and_not_kept(
    searched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Any, net: Any, subnets: Any, split: Any) -> Any:
        return (Score(subnet, float("nan"), len(split)) for subnet in subnets)

    run = Path(shutil.copytree(searched, tmp_path / "run"))
    (run / STORE).unlink()
    monkeypatch.setattr(Evaluator, "scores", broken)
    with pytest.raises(RunError, match="has no finite top-1"):
        ofav2.search(run, measurements=MEASUREMENTS, settings=QUICK, out=tmp_path / "out")
    assert not (run / STORE).exists()
    assert [line["kind"] for line in lines_of(tmp_path / "out")] == ["picked"]


def test_a_full_disk_ends_a_search_which_goes_on_when_there_is_room(
    searched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Path(shutil.copytree(searched, tmp_path / "run"))
    opened, writes = files.open_in_place, []

    def full(path: Path, mode: Any) -> Any:
        writes.append(path.name)
        if writes.count(ARCHIVE) == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        return opened(path, mode)

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(files, "open_in_place", full)
        with pytest.raises(RunError, match=r"archive.jsonl cannot be written \(No space left on device\)"):
            ofav2.search(run, measurements=MEASUREMENTS, settings=QUICK, limits=Limits(params=60_000), out=out)
    assert len(lines_of(out)) == 3
    ofav2.resume_search(out)
    assert (out / ARCHIVE).read_bytes() == (run / "search" / ARCHIVE).read_bytes()


def test_other_objectives_and_a_part_of_the_space_can_be_searched(searched: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(searched, tmp_path / "run"))
    found = ofav2.search(
        run,
        objectives=("memory", "top-1", "params"),
        exits="2..3",
        measurements=6,
        settings=QUICK,
        out=tmp_path / "out",
    )
    assert found.record.costs == ("params", "memory")
    assert {one.subnet.height for one in found.front.finalists} <= {2, 3}


@pytest.mark.parametrize("metric", [TOP1, ERROR])
def test_the_order_of_objectives_changes_nothing(metric: Metric) -> None:
    assert read_objectives(("macs", metric.name, "params"), metric, False) == ("params", "macs")
    assert read_objectives((metric.name, "params", "macs"), metric, False) == ("params", "macs")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("top-1", "speed"), r"objective \(speed\) is unknown: use top-1, params, macs, memory, latency"),
        (("top-1", "macs", "macs"), r"objective \(macs\) is given twice: name each once"),
        (("macs", "params"), r"objectives \(macs, params\) must be top-1 and at least one of"),
        (("top-1",), r"objectives \(top-1\) must be top-1 and at least one of"),
        (("top-1", "latency"), "objective latency needs a latency table"),
    ],
)
def test_wrong_objectives_are_refused(names: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_objectives(names, TOP1, False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"measurements": 0}, r"measurements \(0\) must be a whole number from 1 to 100000"),
        ({"minutes": -1.0}, r"minutes \(-1.0\) must be a number over zero"),
        ({"seed": -1}, r"seed \(-1\) must be a whole number from 0 up"),
        ({"limits": Limits(macs=10)}, r"limit macs \(10\) is less than any network needs"),
        ({"objectives": ("top-1", "top-1")}, r"objective \(top-1\) is given twice"),
        ({"exits": "9"}, r"exit \(9\) was not trained"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_written(
    arguments: dict[str, Any], message: str, searched: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        ofav2.search(searched, out=tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


def test_one_network_is_nothing_to_search(
    searched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Space, "size", lambda _: 1)
    assert main(["search", str(searched), "--out", str(tmp_path / "out")]) == 2
    assert f"run ({searched}) has one network" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["search", "--resume"],
        ["extract", "--out", "out", "--from-search"],
        ["finetune", "--out", "out", "--from-search"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_run_is_no_search(
    arguments: list[str], tiny_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*arguments, str(tiny_run.folder)]) == 2
    said = capsys.readouterr().err
    assert f"folder ({tiny_run.folder}) is a run and no search: make one with `ofav2 search {tiny_run.folder}`" in said
    assert list(tmp_path.iterdir()) == []


def test_limits_that_leave_one_network_end_with_it(searched: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(searched, tmp_path / "run"))
    with pytest.raises(UserError) as refused:
        ofav2.search(run, limits=Limits(params=1), out=tmp_path / "none")
    least = int(re.findall(r"\(([\d,]+)\)", str(refused.value))[-1].replace(",", ""))
    found = ofav2.search(run, limits=Limits(params=least), measurements=6, settings=QUICK, out=tmp_path / "out")
    assert {one.params for one in found.front.finalists} == {least}


def test_a_search_whose_time_is_up_at_once_has_measured_one_network(searched: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(searched, tmp_path / "run"))
    found = ofav2.search(run, minutes=1e-9, settings=QUICK, out=tmp_path / "out")
    assert found.front.measured == 1


@pytest.fixture
def unfinished(searched: Path, tmp_path: Path) -> Path:
    """A search that lies outside of its run's folder and has not finished."""
    folder = Path(shutil.copytree(searched / "search", tmp_path / "unfinished"))
    (folder / FRONT).unlink()
    change_record(folder, {"run": str(searched)})
    return folder


def change_record(folder: Path, changes: dict[str, Any]) -> None:
    record = json.loads((folder / "search.json").read_text(encoding="utf-8"))
    (run,) = record["runs"]
    own = {key: value for key, value in changes.items() if key in run}
    others = {key: value for key, value in changes.items() if key not in run}
    (folder / "search.json").write_text(json.dumps(record | others | {"runs": [run | own]}), encoding="utf-8")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": "0" * 64}, "is of other weights than run"),
        ({"data_fingerprint": "other"}, "is of other images than run"),
        ({"measurement": "0" * 64}, "is of other validation images, calibration or device than run"),
        ({"versions": {"torch": "1.0"}}, r"is of other .* than run"),
        ({"costs": ["energy"]}, r"cost \(energy\) is unknown: give it among the plugins"),
        ({"run": "elsewhere"}, "elsewhere"),
    ],
    ids=str,
)
def test_a_search_goes_on_only_where_measurements_are_the_same(
    changes: dict[str, Any], message: str, unfinished: Path
) -> None:
    with pytest.raises(UserError, match=r"has not finished: go on with `ofav2 search --resume"):
        ofav2.load_search(unfinished)
    change_record(unfinished, changes)
    before = (unfinished / ARCHIVE).read_bytes()
    with pytest.raises(RunError if "run" in changes or "weights" in changes else UserError, match=message):
        ofav2.resume_search(unfinished)
    assert (unfinished / ARCHIVE).read_bytes() == before


@pytest.mark.parametrize("package", ["scikit-learn", "scipy", "pymoo", "moocore"])
def test_a_search_goes_on_only_with_the_packages_that_choose_its_networks(
    package: str, unfinished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = records._version
    monkeypatch.setattr(records, "_version", lambda name: "0.0.1" if name == package else now(name))
    with pytest.raises(RunError, match=rf"is of other {package} \([0-9.]+\) than run"):
        ofav2.resume_search(unfinished)


def test_packages_that_no_number_depends_on_may_differ(
    searched: Path, unfinished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = records._version
    monkeypatch.setattr(records, "_version", lambda name: "0.0.1" if name in ("wandb", "omegaconf") else now(name))
    assert ofav2.resume_search(unfinished).front == ofav2.load_search(searched / "search").front


@pytest.mark.parametrize("name", ["params", "macs", "memory"])
def test_a_search_goes_on_only_with_the_costs_that_it_measured(name: str, unfinished: Path) -> None:
    text = (unfinished / ARCHIVE).read_text(encoding="utf-8")
    changed = re.sub(rf'"{name}": (\d+)', lambda found: f'"{name}": {int(found[1]) + 1}', text, count=1)
    (unfinished / ARCHIVE).write_text(changed, encoding="utf-8")
    with pytest.raises(UserError, match=rf"cost \({name}\) of sub-network \(.*\) is \d+, and was \d+ when"):
        ofav2.resume_search(unfinished)


def test_a_search_with_latencies_goes_on_with_the_same_table_only(searched: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(searched, tmp_path / "run"))
    net = ofav2.load_supernet(run)
    assert isinstance(net, Supernet)
    table = made_up_table(net.architecture, net.space)
    ofav2.save_latency_table(table, run / TABLE)
    found = ofav2.search(run, objectives=("top-1", "latency"), measurements=3, settings=QUICK)
    assert found.record.runs[0].latency_table == f"../{TABLE}"
    (found.folder / FRONT).unlink()
    faster = {key: value // 2 for key, value in table.entries.items()}
    ofav2.save_latency_table(replace(table, entries=faster), run / TABLE)
    with pytest.raises(RunError, match="is of other latencies than run"):
        ofav2.resume_search(found.folder)


def test_a_network_under_a_limit_of_latency_is_timed_when_it_is_extracted(
    searched: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(searched, tmp_path / "run"))
    net = ofav2.load_supernet(run)
    assert isinstance(net, Supernet)
    ofav2.save_latency_table(made_up_table(net.architecture, net.space), run / TABLE)
    found = ofav2.search(run, objectives=("top-1", "latency"), measurements=3, settings=QUICK)
    slowest = max(one.latency for one in found.front.finalists)
    command = ["extract", "--from-search", str(found.folder), "--formats", "none", "--max-latency", f"{slowest}ns"]
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().err
    assert "latency: predicted" in said
    assert "the latency table was measured on" in said
    (run / TABLE).unlink()
    assert main([*command, "--out", str(tmp_path / "again")]) == 0
    assert "the latency table that the search used is gone, or was measured anew" in capsys.readouterr().err


def test_a_search_in_a_run_folder_goes_on_after_both_were_moved(
    searched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(searched, tmp_path / "runs" / "one")
    monkeypatch.chdir(tmp_path)
    found = ofav2.search("runs/one", measurements=3, settings=QUICK)
    outside = ofav2.search("runs/one", measurements=3, settings=QUICK, out="other")
    assert (found.sources[0].run, outside.sources[0].run) == (Path("runs/one"), tmp_path / "runs" / "one")
    (found.folder / FRONT).unlink()
    (outside.folder / FRONT).unlink()
    monkeypatch.chdir(tmp_path / "runs")
    assert ofav2.resume_search(tmp_path / "other").front == ofav2.resume_search("one/search-2").front
    Path("one").rename("two")
    (Path("two") / "search-2" / FRONT).unlink()
    assert ofav2.resume_search("two/search-2").sources[0].run == Path("two")


def test_a_search_does_not_write_among_its_images(
    searched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(loaded: Any, processes: Any) -> Any:
        return SimpleNamespace(
            data=SimpleNamespace(trees=(tmp_path / "images",), val=tiny_data().val), evaluator=SimpleNamespace(seed=0)
        )

    monkeypatch.setattr(search_module, "open_loaded", opened)
    with pytest.raises(UserError, match="where it would be taken for images"):
        ofav2.search(searched, out=tmp_path / "images" / "search")
    assert not (tmp_path / "images").exists()


def test_minutes_count_over_all_stops(searched: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(searched, tmp_path / "run"))
    (run / STORE).unlink()
    found = ofav2.search(run, minutes=10, measurements=4, settings=QUICK, out=tmp_path / "out")
    seconds = [json.loads(line)["seconds"] for line in (found.folder / SECONDS).read_text().splitlines()]
    assert seconds == sorted(seconds)
    assert len(seconds) == len(lines_of(found.folder))
    # As if it had been killed after two measurements, when its time was just up.
    lines = (found.folder / ARCHIVE).read_bytes().splitlines(keepends=True)
    (found.folder / ARCHIVE).write_bytes(b"".join(lines[:3]))
    (found.folder / SECONDS).write_text('{"seconds": 1.5}\n{"seconds": 600.0}\n{"seco')
    (found.folder / FRONT).unlink()
    assert ofav2.resume_search(found.folder).front.measured == 2


def energy(subnet: Subnet, price: Price) -> float:
    return 3.5 * price.macs + 200.0 * sum(subnet.depth)


def test_a_cost_of_ones_own_is_an_objective(searched: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(searched, tmp_path / "run"))
    plugins = ofav2.SearchPlugins(costs={"energy": energy})
    found = ofav2.search(
        run, objectives=("energy", "top-1"), measurements=5, settings=QUICK, plugins=plugins, out=tmp_path / "out"
    )
    assert found.record.costs == ("energy",)
    assert found.record.settings == QUICK
    costs = [one.own["energy"] for one in found.front.finalists]
    assert costs == [energy(one.subnet, one.price) for one in found.front.finalists] == sorted(costs)
    (found.folder / FRONT).unlink()
    other = ofav2.SearchPlugins(costs={"energy": lambda subnet, price: energy(subnet, price) * (1 + 1e-8)})
    with pytest.raises(
        UserError, match=r"cost \(energy\) of sub-network \(.*\) is .*, and was .*: resume with the funct"
    ):
        ofav2.resume_search(found.folder, plugins=other)
    # The last bits may differ.
    plugins = ofav2.SearchPlugins(costs={"energy": lambda subnet, price: energy(subnet, price) * (1 + 1e-12)})
    ofav2.resume_search(found.folder, plugins=plugins)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"settings": ofav2.SearchSettings(predictor="mine")}, r"predictor \(mine\) is unknown: use gp, ridge"),
        ({"settings": ofav2.SearchSettings(picker="mine")}, r"picker \(mine\) is unknown: use gain"),
        ({"settings": ofav2.SearchSettings(batch=0)}, r"setting batch \(0\) must be a whole number from 1 up"),
        ({"settings": ofav2.SearchSettings(optimism=-1.0)}, r"setting optimism \(-1.0\) must be"),
        ({"settings": ofav2.SearchSettings(optimism="2")}, r"setting optimism \(2\) must be"),  # type: ignore[arg-type]
        ({"settings": ofav2.SearchSettings(worst_loss=math.nan)}, r"setting worst_loss \(nan\) must be a number"),
    ],
    ids=str,
)
def test_settings_that_no_search_can_have_are_refused(arguments: dict[str, Any], message: str, searched: Path) -> None:
    with pytest.raises(UserError, match=message):
        ofav2.search(searched, **arguments)


@pytest.mark.parametrize("name", ["macs", "value", "run", "subnet"])
def test_plugins_do_not_take_a_name_of_ofav2(name: str) -> None:
    with pytest.raises(UserError, match=rf"cost \({name}\) is one of ofav2's own"):
        ofav2.SearchPlugins(costs={name: energy})


def search_in_two(run: Path, out: Path) -> bytes:
    ofav2.search(run, measurements=MEASUREMENTS, settings=QUICK, limits=Limits(params=60_000), out=out)
    return (out / ARCHIVE).read_bytes() + (out / FRONT).read_bytes()


@pytest.mark.slow
def test_two_processes_find_what_one_finds(searched: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(searched, tmp_path / "run"))
    (run / STORE).unlink()
    found = crew(2, lambda processes: search_in_two(run, tmp_path / "out"))
    expected = (searched / "search" / ARCHIVE).read_bytes() + (searched / "search" / FRONT).read_bytes()
    assert found == [expected, expected]
    assert len((run / STORE).read_bytes().splitlines()) == len((searched / STORE).read_bytes().splitlines())


def test_a_line_that_is_none_of_a_search_is_refused(unfinished: Path) -> None:
    (unfinished / ARCHIVE).write_bytes(b'{"kind": "picked", "round": 0, "bodies": 3}\n')
    with pytest.raises(RunError, match="line 1 is no line of this search"):
        ofav2.resume_search(unfinished)


def test_the_best_is_the_best_confirmed_one_within_limits(searched: Path) -> None:
    found = ofav2.load_search(searched / "search")
    finalists = found.front.finalists
    assert found.best().confirmed == max(one.confirmed for one in finalists)
    least = min(one.macs for one in finalists)
    assert found.best(Limits(macs=least)).macs == least
    with pytest.raises(UserError, match="are kept by no network of the front: the least there is macs"):
        found.best(Limits(macs=least - 1))
    assert found.knee() in finalists
    first = pick_finalist(found, Limits(), number=1)
    assert first == finalists[0]
    ranking = front_ranking(found, first, Limits(), "number 1")
    assert ranking.best.subnet == first.subnet
    assert len(ranking.ranked) == len(finalists)
    with pytest.raises(UserError, match=r"number \(0\) is not on the front"):
        pick_finalist(found, Limits(), number=0)
    with pytest.raises(UserError, match=r"limit latency \(.*\) is not known of search"):
        found.best(Limits(latency=1))


def test_the_command_searches_goes_on_and_extracts(
    searched: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = Path(shutil.copytree(searched, tmp_path / "run")), tmp_path / "out"
    assert main(["search", str(run), "--measurements", "5", "--max-params", "60k", "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert "finalists of" in said.out
    assert "optimism: top-1 is" in said.err
    assert f"next: ofav2 extract --from-search {out} --knee --out knee" in said.err
    assert main(["search", "--resume", str(out)]) == 0
    capsys.readouterr()
    extract = ["extract", str(run), "--from-search", str(out), "--formats", "none", "--out"]
    assert main([*extract, str(tmp_path / "knee"), "--knee"]) == 0
    record = ofav2.describe_subnet(tmp_path / "knee")
    assert record.subnet == ofav2.load_search(out).knee().subnet
    assert record.choice is not None
    measured = ofav2.load_search(out).front.networks
    assert (record.choice.method, record.choice.rule, record.choice.candidates) == ("front", "knee", measured)
    assert record.choice.ranked_on == "confirmation"
    found, limits = ofav2.load_search(out), Limits(params=60_000)
    python = ofav2.extract_finalist(found, found.knee(), tmp_path / "python", limits=limits, formats=())
    rule = "best" if found.knee() == found.best() else "knee"
    assert python.choice == replace(record.choice, limits=limits, rule=rule)
    least = min(found.final.finalists, key=lambda one: one.macs)
    assert pick_rule(found, found.best(limits), limits) == "best"
    assert pick_rule(found, least) in ("best", "knee", f"number {found.final.finalists.index(least) + 1}")
    with pytest.raises(UserError, match=r"does not keep params .*: take another one"):
        ofav2.extract_finalist(found, found.knee(), tmp_path / "none", limits=Limits(params=1))
    again = replace(found.knee())
    assert len(front_ranking(found, again, Limits(), "knee").ranked) == len(found.final.finalists)
    assert (python.subnet, python.scores) == (record.subnet, record.scores)
    with pytest.raises(UserError, match="is not on the front of"):
        ofav2.extract_finalist(found, replace(found.knee(), params=1), tmp_path / "none")
    assert main(["extract", str(run), "--number", "0", "--out", str(tmp_path / "none")]) == 2
    assert "--number takes a network from a search" in capsys.readouterr().err
    assert main([*extract[:-3], "--formats", "card", "--out", str(tmp_path / "first"), "--number", "1"]) == 0
    card = (tmp_path / "first" / "model_card.md").read_text(encoding="utf-8")
    assert f"number 1 of the front of a search that measured {measured} networks (seed 0)" in card
    assert "random" not in card


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["search"], "RUN is missing"),
        (["search", "RUN", "--resume", "x"], "--resume goes on with a search as it was begun: leave out run"),
        (["extract", "RUN", "--knee", "--out", "x"], "--knee takes a network from a search"),
        (
            ["extract", "RUN", "--max-params", "1M", "--exits", "all", "--out", "x"],
            "limits (params 1M) are on a network with its own exit alone",
        ),
        (["finetune", "--from-search", "s", "--weights", "none", "--out", "x"], "--weights (none) is of timm:NAME"),
        (
            ["extract", "RUN", "--from-search", "s", "--seed", "1", "--out", "x"],
            "--seed has no effect on a search that is done",
        ),
        (
            ["extract", "RUN", "--from-search", "s", "--knee", "--max-macs", "1M", "--out", "x"],
            "--max-macs has no effect on a search that is done",
        ),
    ],
)
def test_options_that_do_not_fit_are_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def change_weights(run: Path) -> None:
    """Make a run another one, of the same space."""
    record = read_run(run)
    path = checkpoint_path(run, record.phases[-1].name)
    tensors, described = checkpoint.load(path, record.phases[-1].sha256)
    first = next(tensor for tensor in tensors.values() if tensor.is_floating_point())
    first += 0.01
    last = replace(record.phases[-1], sha256=checkpoint.save(path, tensors, described))
    write_run(run, replace(record, phases=(*record.phases[:-1], last)))


@pytest.mark.slow
def test_every_command_of_the_page_runs(searched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "search.md").read_text(encoding="utf-8")
    shutil.copytree(searched, tmp_path / "runs" / "digits")
    shutil.rmtree(tmp_path / "runs" / "digits" / "search")
    monkeypatch.chdir(tmp_path)
    shell = "".join(re.findall(r"^```sh\n(.*?)^```$", page, re.MULTILINE | re.DOTALL))
    # Other tests search with two processes, and fine-tune a front.
    lines = [line for line in shell.splitlines() if not line.startswith(("torchrun", "ofav2 finetune"))]
    for name in ("narrow", "wide"):
        shutil.copytree(searched, tmp_path / "runs" / name)
    change_weights(tmp_path / "runs" / "wide")
    commands = [shlex.split(line, comments=True)[1:] for line in lines]
    assert {command[0] for command in commands} == {"search", "extract", "report"}
    for command in commands:
        if command[0] == "extract":
            command += ["--formats", "none"]
        assert main([{"40": "6", "5": "0.05"}.get(word, word) for word in command]) == 0, command
    names: dict[str, Any] = {"ofav2": ofav2}
    for python in re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
        exec(python.replace("measurements=40", "measurements=6"), names)
    assert "energy" in names["found"].record.costs


def test_shares_of_pixels_have_no_error_of_images() -> None:
    record: Any = SimpleNamespace(metric=MEAN_IOU, search_images=10, confirmation_images=10)
    before, after = ([SimpleNamespace(searched=0.45, confirmed=value)] for value in (0.40, 0.42))
    assert rounds.front_optimism(record, before) == (pytest.approx(0.05), None)  # type: ignore[arg-type]
    assert adapt._gain(record, before, after) == (pytest.approx(0.02), None)  # type: ignore[arg-type]
    assert page._band(record, 0.40) is None
