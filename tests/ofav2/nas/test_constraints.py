"""Notes on a choice under limits."""

from types import SimpleNamespace
from typing import Any

import pytest

from ofav2.nas import constraints
from ofav2.nas.candidates import Candidate, Ranking
from ofav2.nas.cost_model import Price
from ofav2.nas.latency import Latency
from ofav2.nas.limits import Limits
from ofav2.tasks.classification import TOP1
from tests.ofav2.nas.made_up import made_up_table
from tests.ofav2.tiny import tiny_net


@pytest.mark.parametrize(("lower", "is_over"), [(900, False), (1000, False), (1001, True)])
def test_a_latency_limit_is_judged_as_it_was_predicted(
    lower: int, is_over: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the first quartile, not by a median that a busy machine makes larger."""
    net = tiny_net()
    table = made_up_table(net.architecture, net.space)
    measured = Latency(2000, lower, 3000, 30, 1, table.machine)
    monkeypatch.setattr(constraints, "measure_subnet", lambda *_: measured)
    best = Candidate(net.space.smallest(), Price(1, 1, 1, 990), 0.5)
    ranking = Ranking(Limits(latency=1000), (best,), net.space, 0, TOP1)
    run: Any = SimpleNamespace(loaded=SimpleNamespace(net=net), runtime=None)
    notes = constraints.describe_choice(run, ranking, table)
    assert notes[0].startswith("latency: predicted")
    assert any("first quartile is over the limit" in note for note in notes) == is_over
