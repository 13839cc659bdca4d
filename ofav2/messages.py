"""How keys and values stand in messages: short, on one line, nothing in them that a terminal would act on."""

import json
import re
from typing import Any

MAX_SHOWN = 120
"""Characters of a value that a message shows at the most."""
KEY = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
"""A key in full, such as `phases.full.epochs`."""


def join(key: str, name: Any) -> str:
    """A key in full, of a section's key and a name in it."""
    shown = name if isinstance(name, str) and KEY.fullmatch(name) else show(name)
    return f"{key}.{shown}" if key else shown


def show(value: Any) -> str:
    """A value as YAML would have it, short and on one line."""
    return short(json.dumps(value, ensure_ascii=False))


def short(text: str) -> str:
    """Text on one line, its end left off where it is long."""
    return one_line(text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 1]}…")


def one_line(text: str) -> str:
    """Text with its line breaks and control characters escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
