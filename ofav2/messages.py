"""Format keys, values and times for messages: short, on one line, without control characters."""

import json
import re
import shlex
from typing import Any

from ofav2.errors import UserError

MAX_SHOWN = 120
"""Characters of a value that a message shows at the most."""
KEY = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
"""A key in full, such as `phases.full.epochs`."""


def join(key: str, name: Any) -> str:
    """Return a key in full, of a section's key and a name in it."""
    shown = name if isinstance(name, str) and KEY.fullmatch(name) else show(name)
    return f"{key}.{shown}" if key else shown


def show(value: Any) -> str:
    """Return a value as YAML would have it, short and on one line."""
    return short(json.dumps(value, ensure_ascii=False))


def refuse_text(what: str, given: object) -> None:
    """Refuse a text where a list of texts belongs: it would be read letter by letter.

    Raises:
        UserError: It is a text.
    """
    if isinstance(given, str):
        raise UserError(f"{what} ({show(given)}) must be a list: pass [{show(given)}]")


def setting(key: str, value: str) -> str:
    """Return `key=value` as it is typed in a shell, in quotes where some shell would change it."""
    return shlex.quote(f"{key}={value}")


def short(text: str) -> str:
    """Return text on one line, its end left off where it is long."""
    return one_line(text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 1]}…")


def one_line(text: str) -> str:
    """Return text with its line breaks and control characters escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def first_line(error: Exception) -> str:
    """Return the first line of an error of another library, which may write many; its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def typed_line(error: Exception) -> str:
    """Return the same behind the error's type, short: of code whose errors say little without it."""
    return f"{type(error).__name__}: {first_line(error)[:MAX_SHOWN]}"


def lines(text: str) -> str:
    """Return text of several lines with all other control characters escaped, so that a terminal obeys none of it."""
    return "\n".join(map(one_line, text.split("\n")))


def cell(value: object) -> str:
    """Return a value in a table or a line of progress: a dash for None, numbers as `number` has them."""
    if value is None:
        return "-"
    return number(value) if isinstance(value, float) else one_line(" ".join(str(value).splitlines()))


def number(value: float) -> str:
    """Return a number with four significant digits."""
    # Past four digits "g" would turn to an exponent, which nobody reads in a table.
    return f"{value:.0f}" if 1e3 <= abs(value) < 1e15 else f"{value:.4g}"


def duration(seconds: float) -> str:
    """Return a span of time as a person says it: `3.2 s`, `4 min 05 s`, `2 h 03 min`.

    Args:
        seconds: Its length in seconds.
    """
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min"
