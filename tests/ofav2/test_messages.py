"""How values stand in messages."""

import pytest

from ofav2.messages import cell, duration, lines, one_line


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
    assert duration(seconds) == text


def test_control_characters_are_written_out() -> None:
    text = "größe 名前 \x1b]0;title\x07\r\n\u2028\u202e\ud800"
    written = "größe 名前 \\x1b]0;title\\x07\\r{}\\u2028\\u202e\\ud800"
    assert one_line(text) == written.format("\\n")
    assert lines(text) == written.format("\n")
    assert cell("a\nb\x1b") == "a b\\x1b"
