"""A phase ends when its validation loss has not fallen for a while."""

from math import nan

from ofav2.training.loop import Patience


def ends_after(losses: list[float], limit: int) -> int | None:
    """Which validation, from 1, ends the phase; None if none does."""
    patience = Patience(limit)
    for number, loss in enumerate(losses, 1):
        patience = patience.after(loss)
        if patience.over:
            return number
    return None


def test_a_tie_is_no_improvement_and_a_lower_loss_starts_the_count_anew() -> None:
    assert ends_after([3, 3, 3, 1], 2) == 3
    assert ends_after([3, 4, 2, 2, 5, 1], 3) is None
    assert ends_after([3, 4, 2, 2, 5, 6], 3) == 6
    assert ends_after([nan, nan, 1, 2, nan], 2) == 2
    assert ends_after([1, 2, 3, 4], 0) is None
