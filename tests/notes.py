"""The type of the fixture `notes`: what was logged since the last call, a note per line."""

from collections.abc import Callable

Notes = Callable[[], str]
