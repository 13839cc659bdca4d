"""What a person sees: a bar on a terminal, plain sparse lines elsewhere, notes above the bar."""

import io
import logging
import sys

import pytest

from ofav2 import progress
from ofav2.cli import console
from ofav2.progress import log_progress

notes = logging.getLogger("ofav2.training.run")


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


def run(stream: io.StringIO, total: int) -> list[str]:
    with console.show_logs(stream), log_progress("kernel [3,5]", total) as advance:
        for step in range(total):
            advance(loss=1 / (step + 1))
    return stream.getvalue().splitlines()


def test_notes_go_to_stderr_and_results_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    console.say("[bold]run[/bold] made in runs/digits")
    console.show("a result")
    assert capsys.readouterr() == ("a result\n", "[bold]run[/bold] made in runs/digits\n")


def test_a_terminal_is_given_nothing_to_obey(capsys: pytest.CaptureFixture[str]) -> None:
    console.show("a\x1b[2J\nb\r\x07")
    with console.show_logs():
        notes.info("c\u202ed\x9b")
    assert capsys.readouterr() == ("a\\x1b[2J\nb\\r\\x07\n", "c\\u202ed\\x9b\n")


def test_what_is_logged_goes_to_stderr_as_it_is_and_once(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.StreamHandler(sys.stderr)
    logging.getLogger().addHandler(root)
    try:
        with console.show_logs():
            notes.info("[bold]run[/bold] 100 % done")
            notes.warning("batch skipped")
            notes.debug("a detail")
            logging.getLogger("supernets.space").warning("a leaf's")
    finally:
        logging.getLogger().removeHandler(root)
    assert capsys.readouterr() == ("", "[bold]run[/bold] 100 % done\nbatch skipped\na leaf's\n")


def test_loggers_are_as_before_once_logs_are_no_longer_shown(capsys: pytest.CaptureFixture[str]) -> None:
    loggers = [logging.getLogger(name) for name in console.LOGGERS]
    before = [(logger.level, logger.propagate, list(logger.handlers)) for logger in loggers]
    with pytest.raises(KeyboardInterrupt), console.show_logs():
        raise KeyboardInterrupt
    assert [(logger.level, logger.propagate, list(logger.handlers)) for logger in loggers] == before
    notes.info("unseen")
    assert capsys.readouterr() == ("", "")


def test_a_terminal_gets_a_bar_with_rate_and_last_values() -> None:
    stream = Terminal()
    run(stream, 40)
    text = stream.getvalue()
    assert "\x1b[" in text
    last = text.split("kernel [3,5]")[-1]
    for part in ("━", "40/40", "/s", "loss 0.025", ":"):
        assert part in last


def test_a_bar_inside_another_ends_first() -> None:
    stream = Terminal()
    with console.show_logs(stream), log_progress("outer", 2) as advance:
        advance()
        with log_progress("inner", 1) as advance_inner:
            advance_inner()
        advance()
    text = stream.getvalue()
    assert "inner" in text
    assert "2/2" in text.split("outer")[-1]


def test_the_bar_lets_notes_pass_above_it(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    with console.show_logs(), log_progress("full", 2) as advance:
        advance()
        notes.info("exit 3 is best")
        notes.debug("a detail")
        console.say("and exit 4 is next")
        advance()
    assert "exit 3 is best" in stream.getvalue()
    assert "and exit 4 is next" in stream.getvalue()
    assert "a detail" not in stream.getvalue()
    assert sys.stderr is stream


def test_the_bar_leaves_a_piped_stdout_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    with console.show_logs(Terminal()), log_progress("full", 1) as advance:
        console.show("a result")
        advance()
    assert out.getvalue() == "a result\n"


def test_a_pipe_gets_a_line_about_every_tenth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "QUIET", 0.0)
    lines = run(io.StringIO(), 250)
    assert len(lines) == 11
    assert not any("\x1b" in line or "\r" in line for line in lines)


@pytest.mark.parametrize("kind", ["dumb", "unknown"])
def test_a_terminal_that_cannot_draw_gets_lines(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setenv("TERM", kind)
    assert len(run(Terminal(), 10)) == 2


def test_a_pipe_gets_lines_even_where_colour_is_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b" not in "".join(run(io.StringIO(), 10))
