"""What a person sees: a bar on a terminal, plain sparse lines elsewhere, tables that survive a pipe."""

import io
import sys

import pytest

from ofav2 import console


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def usual_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "LINES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")


def run(stream: io.StringIO, total: int, steps: int | None = None) -> list[str]:
    with console.progress("kernel [3,5]", total, stream) as advance:
        for step in range(total if steps is None else steps):
            advance(loss=1 / (step + 1))
    return stream.getvalue().splitlines()


def test_notes_go_to_stderr_and_results_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    console.say("[bold]run[/bold] made in runs/digits")
    console.show("a result")
    assert capsys.readouterr() == ("a result\n", "[bold]run[/bold] made in runs/digits\n")


def test_lines_tell_start_tenths_and_end() -> None:
    lines = run(io.StringIO(), 250)
    assert lines[0] == "kernel [3,5]: 0 of 250"
    middle = [line.split(" of ")[0] for line in lines[1:-1]]
    assert middle == [f"kernel [3,5]: {done}" for done in range(25, 250, 25)]
    assert "(10 %)" in lines[1]
    assert " left, loss 0.04" in lines[1]
    assert lines[-1].startswith("kernel [3,5]: did 250 of 250 in ")
    assert lines[-1].endswith("/s, loss 0.004")
    assert not any("\x1b" in line or "\r" in line for line in lines)


@pytest.mark.parametrize(("total", "count"), [(0, 2), (1, 2), (2, 3), (7, 8), (10, 11), (11, 11), (100_003, 11)])
def test_lines_are_sparse_whatever_the_length(total: int, count: int) -> None:
    assert len(run(io.StringIO(), total)) == count


def test_a_body_that_stops_early_says_where() -> None:
    stream = io.StringIO()

    def interrupted() -> None:
        with console.progress("full", 100, stream) as advance:
            advance()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert stream.getvalue().splitlines()[-1].startswith("full: stopped at 1 of 100 in ")


def test_the_running_line_gives_rate_and_time_left() -> None:
    line = console._running_line("full", 30, 120, 20.0, {"loss": 0.123456, "exit": 5})
    assert line == "full: 30 of 120 (25 %), 1.5/s, 1 min 00 s left, loss 0.1235, exit 5"


def test_a_terminal_gets_a_bar_with_rate_and_last_values() -> None:
    stream = Terminal()
    run(stream, 40)
    text = stream.getvalue()
    assert "\x1b[" in text
    last = text.split("kernel [3,5]")[-1]
    for part in ("━", "40/40", "/s", "loss 0.025", ":"):
        assert part in last


def test_the_bar_lets_notes_pass_above_it(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    with console.progress("full", 2) as advance:
        advance()
        console.say("exit 3 is best")
        advance()
    assert "exit 3 is best" in stream.getvalue()
    assert sys.stderr is stream


def test_the_bar_leaves_a_piped_stdout_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    with console.progress("full", 1, Terminal()) as advance:
        console.show("a result")
        advance()
    assert out.getvalue() == "a result\n"


@pytest.mark.parametrize("kind", ["dumb", "unknown"])
def test_a_terminal_that_cannot_draw_gets_lines(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setenv("TERM", kind)
    assert len(run(Terminal(), 10)) == 11


def test_a_pipe_gets_lines_even_where_colour_is_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b" not in "".join(run(io.StringIO(), 10))


def test_a_table_is_aligned_and_whole() -> None:
    long = "x" * 300
    text = console.table(
        "Corners",
        ["subnet", "macs", "top1"],
        [["largest", "49,798,016", 0.97], ["größe 深", 9, None], [long, 12345.6, 1e-5]],
    )
    title, header, rule, *rows = text.splitlines()
    assert title == "Corners"
    assert header == "subnet" + " " * 294 + "  " + "      macs" + "  " + " top1"
    assert rule == "-" * 300 + "  " + "-" * 10 + "  " + "-" * 5
    assert rows[0] == "largest" + " " * 293 + "  " + "49,798,016" + "  " + " 0.97"
    # The last character is two cells wide, so one blank less keeps the columns straight.
    assert rows[1] == "größe 深" + " " * 292 + "  " + "         9" + "  " + "    -"
    assert rows[2] == long + "  " + "     12346" + "  " + "1e-05"


def test_a_table_without_title_or_rows_is_its_header() -> None:
    assert console.table("", ["a", "bcd"], []) == "a  bcd\n-  ---"


def test_a_cell_stays_on_its_line() -> None:
    assert console.table("", ["a", "b"], [["one\ntwo", "z"]]).splitlines()[-1] == "one two  z"


def test_a_row_that_does_not_fit_its_columns_is_a_bug() -> None:
    with pytest.raises(ValueError, match="zip"):
        console.table("", ["a"], [[1, 2]])


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (3.24, "3.2 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 00 s"),
        (245, "4 min 05 s"),
        (3599.4, "59 min 59 s"),
        (3599.6, "1 h 00 min"),
        (7380, "2 h 03 min"),
        (7199, "2 h 00 min"),
        (360_000, "100 h 00 min"),
    ],
)
def test_durations_read_as_a_person_says_them(seconds: float, text: str) -> None:
    assert console.duration(seconds) == text
