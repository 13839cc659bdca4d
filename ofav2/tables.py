"""Lay out tables in plain text."""

import unicodedata
from collections.abc import Sequence

from ofav2.messages import cell


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Lay out a table in plain text: aligned, whole, without colours.

    Args:
        title: Line above the table; an empty one is left out.
        columns: Column headings.
        rows: Cells, as many per row as there are columns. Floats are shown with four significant digits, None as a
            dash; columns of numbers, given as text or not, are aligned to the right.

    Returns:
        The lines without a final newline.
    """
    cells = [[cell(value) for value in row] for row in rows]
    widths = [
        max(_width(text) for text in (heading, *(row[index] for row in cells))) for index, heading in enumerate(columns)
    ]
    rights = [all(_is_number(row[index]) for row in cells) for index in range(len(columns))]
    body = [columns, ["-" * width for width in widths], *cells]
    lines = [_aligned(row, widths, rights) for row in body]
    return "\n".join([title, *lines] if title else lines)


def _width(text: str) -> int:
    """Return columns that a text takes on a terminal."""
    return sum(0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF") for c in text)


def _is_number(text: str) -> bool:
    try:
        float(text.removesuffix("%").replace(",", ""))
    except ValueError:
        return text == "-"
    return True


def _aligned(row: Sequence[str], widths: Sequence[int], rights: Sequence[bool]) -> str:
    padded = [
        " " * (width - _width(text)) + text if right else text + " " * (width - _width(text))
        for text, width, right in zip(row, widths, rights, strict=True)
    ]
    return "  ".join(padded).rstrip()
