"""Divide work among processes."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Share:
    """Part `part` (from 0) of `parts` equal ones."""

    part: int = 0
    parts: int = 1

    def __post_init__(self) -> None:
        """Check that there is such a part."""
        assert 0 <= self.part < self.parts, (self.part, self.parts)


WHOLE = Share()
"""Everything, as a process takes that computes alone."""
