"""Progress as log records: a line at start, about every tenth, and end; each unit for whoever asks."""

import logging

import pytest

from ofav2 import progress
from ofav2.progress import Status, log_progress
from tests.notes import Notes


def run(total: int, steps: int | None = None) -> None:
    with log_progress("kernel [3,5]", total) as advance:
        for step in range(total if steps is None else steps):
            advance(loss=1 / (step + 1))


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work that takes long enough for every tenth to be told."""
    monkeypatch.setattr(progress, "QUIET", 0.0)


def test_quick_work_has_two_lines(notes: Notes, monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(1000))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now) / 1000)
    run(100)
    assert len(notes().splitlines()) == 2


@pytest.mark.usefixtures("slow")
def test_lines_tell_start_tenths_and_end(notes: Notes) -> None:
    run(250)
    lines = notes().splitlines()
    assert lines[0] == "kernel [3,5]: 0 of 250"
    middle = [line.split(" of ")[0] for line in lines[1:-1]]
    assert middle == [f"kernel [3,5]: {done}" for done in range(25, 250, 25)]
    assert "(10 %)" in lines[1]
    assert " left, loss 0.04" in lines[1]
    assert lines[-1].startswith("kernel [3,5]: did 250 of 250 in ")
    assert lines[-1].endswith("/s, loss 0.004")


@pytest.mark.usefixtures("slow")
@pytest.mark.parametrize(("total", "count"), [(0, 2), (1, 2), (2, 3), (7, 8), (10, 11), (11, 11), (100_003, 11)])
def test_lines_are_sparse_whatever_the_length(total: int, count: int, notes: Notes) -> None:
    run(total)
    assert len(notes().splitlines()) == count


def test_a_body_that_stops_early_says_where(notes: Notes) -> None:
    def interrupted() -> None:
        with log_progress("full", 100) as advance:
            advance()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert notes().splitlines()[-1].startswith("full: stopped at 1 of 100 in ")


def test_the_running_line_gives_rate_and_time_left() -> None:
    status = Status("full", 30, 120, 20.0, {"loss": 0.123456, "exit": 5}, "running")
    assert str(status) == "full: 30 of 120 (25 %), 1.5/s, 1 min 00 s left, loss 0.1235, exit 5"


def test_every_unit_is_there_at_debug(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "ofav2")
    run(25)
    found = [record.msg for record in caplog.records if isinstance(record.msg, Status)]
    assert [status.done for status in found] == [0, *range(1, 26), 25]
    assert [status.state for status in found] == ["started", *["running"] * 25, "finished"]


def test_nothing_is_told_unless_somebody_asks(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    run(10)
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []
