"""Statistics are those of a plain sum in double precision, in both of the ways in which they are taken."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ofav2.evaluation import evaluator as evaluation
from ofav2.evaluation import recalibration
from ofav2.evaluation.recalibration import recalibrate
from tests.ofav2.tiny import bits, cut, same_bits, tiny_data, tiny_evaluator, tiny_net


def layers(values: Tensor) -> nn.Sequential:
    return nn.Sequential(nn.BatchNorm2d(values.shape[1]).to(values.dtype), nn.ReLU())


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_many_values_are_summed_without_drift(layout: torch.memory_format) -> None:
    """A hundred thousand values per channel, at 3 deviations from zero: what a first layer has."""
    rng = torch.Generator().manual_seed(0)
    batches = [
        (torch.randn(count, 16, 32, 32, generator=rng) * 0.5 + 1.5).to(memory_format=layout) for count in (100, 60)
    ]
    assert batches[1].numel() / 16 > recalibration.MANY_VALUES
    module = layers(batches[0])
    recalibrate(module, batches)
    means = [batch.double().mean((0, 2, 3)) for batch in batches]
    variances = [batch.double().var((0, 2, 3), correction=0) for batch in batches]
    norm = module[0]
    expected = [(100 * one + 60 * other) / 160 for one, other in (means, variances)]
    torch.testing.assert_close(norm.running_mean.double(), expected[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(norm.running_var.double(), expected[1], rtol=1e-6, atol=0)


@pytest.mark.parametrize("variant", ["se_b", "ee_dp"])
@pytest.mark.parametrize("chunk", [2**17, 50])
def test_own_sums_are_those_of_torch(variant: str, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    net = tiny_net(variant, dtype=torch.float64)
    rng = torch.Generator().manual_seed(1)
    inputs = [torch.randn(count, 3, 20, 20, generator=rng, dtype=torch.float64) for count in (6, 4)]
    subnet = net.space.largest()
    expected, found = net.extract(subnet), net.extract(subnet)
    parts = nn.Sequential(*net.extract_parts(subnet))
    recalibrate(expected, inputs)
    monkeypatch.setattr(recalibration, "MANY_VALUES", 1)
    monkeypatch.setattr(recalibration, "CHUNK_VALUES", chunk)
    recalibrate(found, inputs)
    recalibrate(parts, inputs)
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], tensor, rtol=1e-9, atol=1e-10)
    in_parts = {name.partition(".")[2]: tensor for name, tensor in parts.state_dict().items()}
    assert same_bits(in_parts, bits(found))


def test_what_others_read_is_not_written_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recalibration, "MANY_VALUES", 1)
    images = torch.randn(8, 4, 16, 16, generator=torch.Generator().manual_seed(2))
    before = images.clone()
    recalibrate(layers(images), [images])
    assert torch.equal(images, before)


def test_norms_are_put_back_when_a_batch_is_refused() -> None:
    module = layers(torch.zeros(1, 4, 1, 1))
    norm = module[0]
    with pytest.raises(ValueError, match="more than 1 value"):
        recalibrate(module, [torch.zeros(1, 4, 1, 1)])
    assert module[0] is norm


@pytest.mark.parametrize("many", [recalibration.MANY_VALUES, 1])
@pytest.mark.parametrize("variant", ["se_b", "ee_dp"])
def test_sharing_the_first_block_changes_no_logit_by_a_bit(
    variant: str, many: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With nothing kept each network runs from its first layer on, alone."""
    monkeypatch.setattr(recalibration, "MANY_VALUES", many)
    net, data = tiny_net(variant), tiny_data(val=60)
    space = net.space
    wide, narrow = space.uniform(kernel=5, depth=3), space.uniform(kernel=5, depth=2)
    assert wide.blocks(0)[0] == narrow.blocks(0)[0]
    subnets = [wide, narrow, space.smallest(), *([cut(wide, 2)] if variant == "ee_dp" else [])]
    logits: list[list[Tensor]] = []

    def noting(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        found = (outputs,) if isinstance(outputs, Tensor) else outputs
        logits[-1].extend(out.clone() for out in found)
        return found

    monkeypatch.setattr(evaluation, "exit_logits", noting)
    scores = []
    for kept in (evaluation.KEPT_BYTES, 0):
        monkeypatch.setattr(evaluation, "KEPT_BYTES", kept)
        logits.append([])
        scores.append(list(tiny_evaluator(data).scores(net, subnets, data.val)))
    assert scores[0] == scores[1]
    assert len(logits[0]) == len(logits[1]) > 0
    assert all(torch.equal(one, other) for one, other in zip(*logits, strict=True))


def test_a_ranked_network_has_the_score_of_the_one_that_is_written() -> None:
    net, data = tiny_net("ee_dp"), tiny_data(val=60)
    evaluator = tiny_evaluator(data)
    subnet = net.space.uniform(kernel=3)
    (score,) = evaluator.scores(net, [subnet], data.val)
    written = evaluator.calibrated(net, subnet, "last")
    assert score.value == evaluator.exit_scores(written, subnet.resolution, data.val)[0]
    assert any(isinstance(layer, nn.BatchNorm2d) for layer in written.modules()), "nothing is folded in what is written"


@pytest.mark.parametrize("kept", [evaluation.KEPT_BYTES, 0])
def test_networks_are_folded_before_they_are_evaluated(kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever of them is run at once: alone, after a beginning that several share, or with one that is too large."""
    net, data = tiny_net("ee_d"), tiny_data(val=60)
    one, other = net.space.uniform(kernel=3), net.space.uniform(kernel=3, depth=1)
    norms: list[int] = []
    sums = evaluation.Evaluator._sums

    def noting(self: Any, forward: Any, posed: Any) -> Any:
        norms.append(sum(isinstance(layer, nn.BatchNorm2d) for layer in forward.modules()))
        return sums(self, forward, posed)

    monkeypatch.setattr(evaluation, "KEPT_BYTES", kept)
    monkeypatch.setattr(evaluation.Evaluator, "_sums", noting)
    for asked in ([one], [one, other]):
        list(tiny_evaluator(data).scores(net, asked, data.val))
    assert norms == [0] * 3


def test_portions_cover_a_batch_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    data = tiny_data(val=60)
    evaluator = tiny_evaluator(data)
    whole = list(evaluator.inputs(data.val, 20))
    monkeypatch.setattr(evaluation, "CHUNK_PIXELS", 2 * 20 * 20 + 1)
    portions = list(evaluator.inputs(data.val, 20))
    assert {len(images) for images, _ in portions} == {1, 2}
    for index in (0, 1):
        one, other = torch.cat([pair[index] for pair in whole]), torch.cat([pair[index] for pair in portions])
        assert torch.equal(one, other)
