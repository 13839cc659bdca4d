"""Tables that survive a pipe."""

import pytest

from ofav2.tables import table


def test_a_table_is_aligned_and_whole() -> None:
    long = "x" * 300
    text = table(
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


def test_a_combining_accent_takes_no_room() -> None:
    assert table("", ["name", "b"], [["e\u0301te\u0301s", "z"]]).splitlines()[-1] == "e\u0301te\u0301s  z"


def test_a_table_without_title_or_rows_is_its_header() -> None:
    assert table("", ["a", "bcd"], []) == "a  bcd\n-  ---"


def test_a_cell_stays_on_its_line() -> None:
    assert table("", ["a", "b"], [["one\ntwo", "z"]]).splitlines()[-1] == "one two  z"


def test_a_row_that_does_not_fit_its_columns_is_a_bug() -> None:
    with pytest.raises(ValueError, match="zip"):
        table("", ["a"], [[1, 2]])
