"""The benchmark of single layers in a quick form: numbers come out for every layer and way."""

import pytest

from benchmarks import layers


def test_every_layer_is_timed_every_way(capsys: pytest.CaptureFixture[str]) -> None:
    found = layers.compare(64, 1)
    shown = capsys.readouterr().out
    assert len(found) == len(layers.DEPTHWISE) + len(layers.POINTWISE) + 1
    for layer, ms in found.items():
        assert {"torch", "ofav2"} <= ms.keys(), layer
        assert all(value > 0 for value in ms.values()), layer
        assert layer in shown
