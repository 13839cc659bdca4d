"""Latency: what is measured is named, a table holds every part, and its sums are its predictions."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ofav2.errors import UserError
from ofav2.nas.latency import measure_latency, stream_times, using_threads
from ofav2.nas.latency_table import (
    LatencyTable,
    PredictionError,
    build_table,
    load_latency_table,
    predict_latency,
    save_latency_table,
)
from ofav2.nas.machine import Machine, this_machine
from supernets import Supernet
from tests.ofav2.tiny import CPU, cut, tiny_net


class Counting(nn.Module):
    """Notes the calls that it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[bool, int]] = []

    def forward(self, images: Tensor) -> Tensor:
        self.calls.append((self.training, torch.get_num_threads()))
        return images


@pytest.fixture(scope="module")
def net() -> Supernet:
    return tiny_net(kernel=(3,), expand=(2,), resolutions=(16,))


@pytest.fixture(scope="module")
def table(net: Supernet) -> LatencyTable:
    return build_table(net, CPU, networks=4, rounds=1, repeats=1)


def test_calls_threads_and_batch_are_as_said() -> None:
    module, before = Counting(), torch.get_num_threads()
    latency = measure_latency(module, torch.zeros(3, 1, 2, 2), warmup=2, repeats=5, threads=2)
    assert module.calls == [(False, 2)] * 7
    assert (latency.repeats, latency.batch, latency.machine.threads) == (5, 3, 2)
    assert 0 < latency.lower <= latency.median <= latency.upper
    assert torch.get_num_threads() == before
    assert "batch 3, 2 threads" in str(latency)


def test_streams_are_timed_in_turn_and_summed() -> None:
    noted: list[tuple[str, int]] = []
    calls = [lambda images, name=name: noted.append((name, len(images))) for name in "ab"]
    times = stream_times(calls, [torch.zeros(1, 2), torch.zeros(3, 2)], 2)
    turn = [("a", 1), ("a", 3), ("b", 1), ("b", 3)]
    assert noted == [("a", 1), ("b", 1), *turn, *turn]
    assert len(times) == 2
    assert min(times) > 0


def test_threads_come_back_after_an_error() -> None:
    before = torch.get_num_threads()
    with pytest.raises(KeyError), using_threads(before + 1):
        raise KeyError
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(("name", "value"), [("warmup", -1), ("repeats", 0), ("threads", 0), ("threads", 10**6)])
def test_numbers_are_checked(name: str, value: int) -> None:
    with pytest.raises(UserError, match=name):
        measure_latency(Counting(), torch.zeros(1, 1, 1, 1), **{name: value})


def test_a_table_knows_every_network(net: Supernet, table: LatencyTable) -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        assert predict_latency(table, net.space.sample(rng)) > 0
    assert table.machine == this_machine(CPU.device)
    assert (table.error.networks, table.batch) == (2, 1)
    assert 0 <= table.error.median <= table.error.largest


def test_a_prediction_is_the_sum_of_its_parts(net: Supernet) -> None:
    names = ("conv", "mbconv k3 e2", "mbconv+conv+transform k3 e2")
    entries = {"stem @16": 1, "stage 1 skip @8": 10, "exit 1 @8": 100}
    entries |= {f"stage 1 first {name} @16": 1000 * number for number, name in enumerate(names, 1)}
    entries |= {f"stage 1 later {name} @8": 10_000 * number for number, name in enumerate(names, 1)}
    table = LatencyTable(Machine("cpu", "", 1, ""), 1, net.architecture, entries, 1.0, PredictionError(1, 0.0, 0.0))
    fields = net.space.largest().to_dict()
    fields["level"][0] = [["conv"], ["mbconv"], ["mbconv", "conv", "transform"]]
    subnet = type(net.space.largest()).from_dict(fields)
    # The third block of a dense stage is followed by the one sum with the first block's output.
    assert predict_latency(table, cut(subnet, 1)) == 1 + 1000 + 20_000 + 30_000 + 10 + 100
    with pytest.raises(UserError, match="stage 2"):
        predict_latency(table, cut(subnet, 2))


def test_the_factor_fits_networks_made_of_their_parts(net: Supernet, table: LatencyTable) -> None:
    from ofav2.nas.latency_table import _fitted

    rng = np.random.default_rng(2)
    subnets = [net.space.sample(rng) for _ in range(6)]
    predicted = [predict_latency(table, subnet) for subnet in subnets]
    fitted = _fitted(
        table,
        subnets,
        [1.5 * value for value in predicted[:3]] + [3.0 * value for value in predicted[3:]],
    )
    assert fitted.factor == pytest.approx(1.5)
    assert fitted.error == PredictionError(3, pytest.approx(0.5), pytest.approx(0.5))
    assert all(fitted.entries[key] == round(fitted.factor * value) for key, value in table.entries.items())


def test_a_table_is_read_back_as_it_was(net: Supernet, table: LatencyTable, tmp_path: Path) -> None:
    save_latency_table(table, tmp_path / "t.json")
    assert load_latency_table(tmp_path / "t.json", net.architecture) == table


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "does not exist"),
        ("{", "no JSON"),
        ("{}", "format"),
        ('{"format": "ofav2-latency/3"}', "machine is missing"),
        (
            '{"format": "ofav2-latency/3", "machine": 3, "batch": 1, "supernet": {}, "entries": {}, "factor": 1,'
            ' "error": {}}',
            r"machine \(3\) must be a mapping",
        ),
    ],
)
def test_a_bad_table_is_one_line(net: Supernet, tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "t.json"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message) as caught:
        load_latency_table(path, net.architecture)
    assert "\n" not in str(caught.value)


def test_a_table_of_another_supernet_is_refused(table: LatencyTable, tmp_path: Path) -> None:
    save_latency_table(table, tmp_path / "t.json")
    with pytest.raises(UserError, match="another supernet"):
        load_latency_table(tmp_path / "t.json", tiny_net("se_b").architecture)
    facts = json.loads((tmp_path / "t.json").read_text(encoding="utf-8"))
    assert facts["supernet"]["variant"] == "ee_dp"
