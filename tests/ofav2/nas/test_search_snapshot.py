"""A search's folder read in any state, without changing it."""

import fcntl
import json
import shutil
from pathlib import Path

import pytest

import ofav2
from ofav2.errors import RunError
from ofav2.nas.found import FRONT
from ofav2.nas.runs_problem import RunNetwork
from ofav2.nas.search_log import ARCHIVE, read_network
from ofav2.nas.search_snapshot import is_search, read_search_snapshot
from tests.ofav2.conftest import MEASUREMENTS


@pytest.fixture
def copied(searched: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(searched / "search", tmp_path / "search"))


def test_a_finished_search_is_read_whole(searched: Path) -> None:
    found, snapshot = ofav2.load_search(searched / "search"), read_search_snapshot(searched / "search")
    assert snapshot.state == "finished"
    assert snapshot.measured == MEASUREMENTS
    assert sum(sum(one.picked.values()) for one in snapshot.rounds) == MEASUREMENTS
    lines = map(json.loads, (searched / "search" / ARCHIVE).read_text(encoding="utf-8").splitlines())
    expected: dict[RunNetwork, tuple[int, float]] = {}
    for line in lines:
        for one in line["networks"] if line["kind"] == "measured" else ():
            expected.setdefault(read_network(one), (line["round"], one["value"]))
    found_there = {RunNetwork(one.run, one.subnet): (one.round, one.value) for one in snapshot.networks}
    assert [*found_there.items()] == [*expected.items()]
    assert [snapshot.networks[index].subnet for index in snapshot.best()] == [
        one.subnet for one in found.front.finalists
    ]
    assert all((one.predicted is None) == (one.round == 0) for one in snapshot.networks)
    assert all(one.hypervolume is not None for one in snapshot.rounds)
    assert is_search(searched / "search")
    assert not is_search(searched)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.9])
def test_a_search_under_way_is_read_as_far_as_it_is(copied: Path, share: float) -> None:
    whole = (copied / ARCHIVE).read_bytes()
    (copied / FRONT).unlink()
    (copied / ARCHIVE).write_bytes(whole[: int(share * len(whole))])
    before = (copied / ARCHIVE).read_bytes()
    snapshot = read_search_snapshot(copied)
    assert snapshot.state == "stopped"
    assert (copied / ARCHIVE).read_bytes() == before
    with (copied / ".lock").open("a", encoding="utf-8") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        assert read_search_snapshot(copied).state == "searching"
    best = [snapshot.networks[index] for index in snapshot.best()]
    assert bool(best) == bool(snapshot.networks)
    # A plain reference: no other network is at least as good in both, and better in one.
    for one in snapshot.networks:
        beaten = any(
            other.costs["macs"] <= one.costs["macs"] and other.value >= one.value and other is not one
            for other in snapshot.networks
        )
        assert beaten or one in best
    assert [one.costs["macs"] for one in best] == sorted(one.costs["macs"] for one in best)


@pytest.mark.parametrize(
    "line", ["no json", '{"kind": "other"}', '{"kind": "learned", "round": 0}', '{"kind": "measured", "round": 0}']
)
def test_a_damaged_line_is_named(copied: Path, line: str) -> None:
    (copied / FRONT).unlink()
    (copied / ARCHIVE).write_text(line + "\n", encoding="utf-8")
    with pytest.raises(RunError, match=r"archive.jsonl: line 1 is no line of a search: start a new one"):
        read_search_snapshot(copied)


def test_a_front_of_another_search_is_refused(copied: Path) -> None:
    lines = (copied / ARCHIVE).read_text(encoding="utf-8").splitlines(keepends=True)
    (copied / ARCHIVE).write_text(lines[0] + lines[1], encoding="utf-8")
    assert json.loads(lines[1])["kind"] == "measured"
    with pytest.raises(RunError, match=r"front.json has a network that archive.jsonl lacks"):
        read_search_snapshot(copied)
