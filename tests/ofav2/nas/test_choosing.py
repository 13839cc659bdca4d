"""Choosing: a search for the one best network that keeps the limits, and what the command says and writes of it."""

from pathlib import Path
from typing import Any

import pytest

import ofav2
from ofav2.cli.main import main
from ofav2.deploy.artifact import describe_subnet
from ofav2.nas import choosing
from ofav2.nas.candidates import draw_within
from ofav2.nas.cheapest import cheapest, within
from ofav2.nas.choosing import choose
from ofav2.nas.cost_model import CostModel
from ofav2.nas.engine.loop import SearchSettings
from ofav2.nas.limits import Limits
from ofav2.runs.records import Run
from supernets import Subnet
from tests.notes import Notes


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search that learns and breeds little, already from 8 networks on."""

    def settings(**chosen: Any) -> SearchSettings:
        return SearchSettings(**chosen, population=8, generations=1, predictor="ridge")

    monkeypatch.setattr(choosing, "SearchSettings", settings)
    monkeypatch.setattr(choosing, "LEAST_SEARCHED", 8)


def half(opened: ofav2.OpenedRun) -> Limits:
    net = opened.loaded.net
    return Limits(macs=CostModel(net.architecture).price(net.space.largest()).macs // 2)


def scores(opened: ofav2.OpenedRun, ranking: ofav2.Ranking) -> dict[Subnet, float]:
    subnets = [one.subnet for one in ranking.ranked]
    return {one.subnet: one.value for one in opened.evaluator.scores(opened.loaded.net, subnets, opened.data.val)}


def test_random_networks_and_their_exits_are_ranked_with_a_small_budget(opened: ofav2.OpenedRun) -> None:
    limits = half(opened)
    ranking = choose(opened, limits, candidates=6, seed=3)
    real = scores(opened, ranking)
    assert [one.score for one in ranking.ranked] == sorted(real.values(), reverse=True)
    assert all(one.score == real[one.subnet] and within(one.price, limits) for one in ranking.ranked)
    drawn = draw_within(CostModel(opened.loaded.net.architecture), ranking.space, limits, candidates=6, seed=3)
    assert set(drawn) < set(real)
    assert ranking.method == "random"


@pytest.mark.usefixtures("quick")
def test_the_best_of_all_that_was_measured_is_chosen_after_a_search(opened: ofav2.OpenedRun) -> None:
    limits = half(opened)
    ranking = choose(opened, limits, candidates=12, seed=3)
    real = scores(opened, ranking)
    assert ranking.method == "search"
    assert ranking.best.score == max(real.values())
    assert all(one.score == real[one.subnet] and within(one.price, limits) for one in ranking.ranked)
    # A quarter is drawn, as with a small budget; what was found then is never lost.
    drawn = draw_within(CostModel(opened.loaded.net.architecture), ranking.space, limits, candidates=3, seed=3)
    assert set(drawn) < set(real)
    assert ranking == choose(opened, limits, candidates=12, seed=3)


@pytest.mark.usefixtures("quick")
def test_limits_that_leave_few_networks_end_with_all_of_them(opened: ofav2.OpenedRun, notes: Notes) -> None:
    space = opened.loaded.net.space
    space = space.restrict(resolution=space.resolution[:1], height=space.height[:1])
    model = CostModel(opened.loaded.net.architecture)
    least = min(one.price.macs for front in cheapest(model, space, ("macs",)).values() for one in front)
    ranking = choose(opened, Limits(macs=least), space=space, candidates=40)
    assert {one.price.macs for one in ranking.ranked} == {least}
    assert ranking.method == "random"
    assert f"few networks: {len(ranking.ranked)} different ones were measured, not 40" in notes()
    # Three networks have more than three scores, one per exit, and are no more for it.
    assert len(choose(opened, Limits(), candidates=3).ranked) > 3
    assert "few networks" not in notes()


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("count", "drawn"), [(6, 2), (12, 2), (8, 1)])
def test_a_search_goes_on_where_random_draws_end_early(
    count: int, drawn: int, opened: ofav2.OpenedRun, notes: Notes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ofav2.nas.choosing.draw_within", lambda *given, **named: draw_within(*given, **named)[:drawn])
    # One network with one exit is too few to learn from.
    space = opened.loaded.net.space.restrict(height=(5,)) if drawn == 1 else opened.loaded.net.space
    ranking = choose(opened, half(opened), space=space, candidates=count, seed=3)
    assert ranking.method == "search"
    assert len(ranking.ranked) >= count
    assert "few networks" not in notes()


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("count", "how"), [("3", "random networks"), ("9", "networks that a short search measured")])
def test_how_a_network_was_chosen_is_written_beside_its_files(
    count: str, how: str, tiny_run: Run, opened: ofav2.OpenedRun, tmp_path: Path
) -> None:
    out, options = (
        tmp_path / "small",
        ["--max-macs", "1M", "--max-params", "1M", "--exit", "1,2", "--candidates", count],
    )
    assert main(["extract", str(tiny_run.folder), *options, "--seed", "4", "--out", str(out), "--formats", "card"]) == 0
    written = describe_subnet(out)
    limits = {"params": 10**6, "macs": 10**6}
    found = written.choice
    assert found is not None
    space = opened.loaded.net.space.restrict(height=(1, 2))
    again = choose(opened, Limits(**limits), space=space, candidates=int(count), seed=4)
    assert (found.limits.named, found.exits, found.seed) == (limits, (1, 2), 4)
    assert (found.candidates, found.method) == (len(again.ranked), again.method)
    assert again.best.subnet == written.subnet
    assert (again.limits, again.space.resolution) == (found.limits, found.resolutions)
    card = (out / "model_card.md").read_text()
    assert f"best on validation of {len(again.ranked)} {how} (seed 4); limits: params 1,000,000, macs 1,000,000" in card


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max-macs", "30X"], "use k, M, G"),
        (["--max-macs", "1"], "the least is"),
        (["--max-latency", "8ms"], "ofav2 latency RUN"),
        (["--max-macs", "1M", "--largest"], "leave one out"),
        (["--seed", "1", "--smallest"], "leave one out"),
        (["--exit", "9"], "was not trained"),
        (["--resolution", "17"], "was not trained"),
        (["--candidates", "0", "--exit", "1"], "candidates (0)"),
        ([], "--max-macs"),
    ],
    ids=str,
)
def test_impossible_limits_are_one_line_and_write_nothing(
    options: list[str], message: str, tiny_run: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["extract", str(tiny_run.folder), "--out", str(out), *options]) == 2
    (line,) = capfd.readouterr().err.strip().splitlines()
    assert message in line
    assert not out.exists()
