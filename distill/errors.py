"""Define this package's error, and two phrases that its messages share."""

import difflib
from collections.abc import Iterable

_LONGEST_VALUE = 100


class DistillError(ValueError):
    """A value given to `distill` cannot be used.

    The message is one line: what was given (name and value), the rule it breaks, and the next step.
    """


def shown(value: object) -> str:
    """Return the value as it may stand in a message: its repr, on one line and cut to a readable length."""
    try:
        text = " ".join(repr(value).split())
    except (ValueError, RecursionError):
        # Python refuses to write integers of thousands of digits, and values nested thousands deep.
        return f"a {type(value).__name__} too large to print"
    return text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 3] + "..."


def near(name: str, options: Iterable[str]) -> str:
    """Return ` (did you mean A, B?)` for the options that resemble the name, or nothing."""
    matches = difflib.get_close_matches(name.lower(), list(options), n=3)
    return f" (did you mean {', '.join(matches)}?)" if matches else ""
