"""Images exit at the first exit that is sure of them, with that exit's logits, and later stages don't see them."""

import math
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import symbolic_trace

import distill
from ofav2.errors import UserError
from ofav2.exits.early import NEVER, EarlyExits, ExitPolicy, Prediction, confidence_of, confidences, early_exits
from supernets import GraphError
from tests.supernets.randomise import exit_choices, images_for, small_net, some_subnets

# Another batch size may change the order of additions in a convolution: in float64, the last bits of about 1e-16.
CLOSE = {"rtol": 1e-9, "atol": 1e-12}


def plain_confidence(name: str, logits: list[float]) -> float:
    """Its definition, for one image."""
    top = max(logits)
    parts = [math.exp(value - top) for value in logits]
    shares = sorted((part / sum(parts) for part in parts), reverse=True)
    if name == "max_softmax":
        return shares[0]
    if name == "margin":
        return shares[0] - shares[1]
    return 1 + sum(share * math.log(share) for share in shares if share) / math.log(len(shares))


def plain_decide(logits: list[Tensor], exits: tuple[int, ...], policy: ExitPolicy) -> tuple[list[int], list[Tensor]]:
    """Image after image, exit after exit, from the whole network's logits."""
    exited, outputs = [], []
    for image in range(len(logits[0])):
        for position, exit in enumerate(exits):
            passed = [one[image] for one in logits[: position + 1]]
            own = passed[-1]
            if policy.ensemble:
                weights = [Fraction(number) for number in exits[: position + 1]]
                own = sum((w * one for w, one in zip(map(float, weights), passed, strict=True)), torch.zeros_like(own))
                own = own / float(sum(weights))
            last = position == len(exits) - 1
            threshold = (
                policy.threshold[position] if isinstance(policy.threshold, tuple) and not last else policy.threshold
            )
            if last or plain_confidence(policy.confidence, own.tolist()) >= threshold:  # type: ignore[operator]
                exited.append(exit)
                outputs.append(own)
                break
    return exited, outputs


def middle(net: EarlyExits, images: Tensor, name: str, share: float) -> float:
    """A threshold between two confidences of the first exit, so that the last bits decide nothing there."""
    with torch.no_grad():
        values = confidence_of(name, net(images)[0]).unique()
    position = min(int(share * len(values)), len(values) - 2)
    return float((values[position] + values[position + 1]) / 2)


def check(net: EarlyExits, images: Tensor, whole: list[Tensor], policy: ExitPolicy) -> Prediction:
    found = net.decide(images, policy)
    exits, outputs = plain_decide(whole, net.exits, policy)
    assert found.exits.tolist() == exits
    torch.testing.assert_close(found.logits, torch.stack(outputs), **CLOSE)
    assert found.classes.tolist() == [int(own.argmax()) for own in outputs]
    return found


@pytest.mark.parametrize("variant", ["ee_b", "ee_d", "ee_p", "ee_dp"])
def test_each_image_has_the_whole_networks_logits_of_its_exit(variant: str) -> None:
    net = small_net(variant, width_mult=0.1, depth=(1, 2))
    images = images_for(net, 7)
    for subnet in some_subnets(net, 1):
        for exits in exit_choices(net, subnet)[1:]:
            if len(net.chosen_exits(subnet, exits)) < 2:
                continue
            module = net.extract(subnet, exits)
            early = early_exits(module, net.chosen_exits(subnet, exits))
            with torch.no_grad():
                whole = list(module(images))
            found = check(early, images, whole, ExitPolicy(middle(early, images, "max_softmax", 0.5)))
            assert len(found.exits.unique()) > 1, "some exit early, some late"


@pytest.fixture(scope="module")
def early() -> EarlyExits:
    net = small_net("ee_dp", width_mult=0.1, depth=(1, 2))
    return early_exits(net.extract(net.space.largest(), "all"))


@pytest.fixture(scope="module")
def images() -> Tensor:
    return images_for(small_net("ee_b", width_mult=0.1, depth=(1, 2)), 9)


@pytest.mark.parametrize("count", [1, 9])
@pytest.mark.parametrize("ensemble", [False, True])
@pytest.mark.parametrize("name", confidences())
def test_any_confidence_ensemble_and_batch(
    name: str, ensemble: bool, count: int, early: EarlyExits, images: Tensor
) -> None:
    with torch.no_grad():
        whole = [logits[:count] for logits in early(images)]
    for share in (0.2, 0.6, 0.9):
        check(early, images[:count], whole, ExitPolicy(middle(early, images, name, share), name, ensemble))
    per_exit = tuple(middle(early, images, name, share) for share in (0.9, 0.3, 0.7, 0.5))
    check(early, images[:count], whole, ExitPolicy(per_exit, name, ensemble))


@pytest.mark.parametrize("name", confidences())
def test_zero_lets_all_leave_at_once_and_over_one_none(name: str, early: EarlyExits, images: Tensor) -> None:
    with torch.inference_mode():
        whole = early(images)
    first = early.predict(images, 0, confidence=name)
    assert first.exits.tolist() == [1] * 9
    assert torch.equal(first.logits, whole[0])
    last = early.predict(images, NEVER, confidence=name)
    assert last.exits.tolist() == [5] * 9
    assert torch.equal(last.logits, whole[-1])


def test_images_that_left_early_are_not_seen_by_later_parts(early: EarlyExits, images: Tensor) -> None:
    seen: list[int] = []
    threshold = middle(early, images, "max_softmax", 0.5)
    hooks = [part.register_forward_pre_hook(lambda _, given: seen.append(len(given[0]))) for part in early.parts]
    found = early.predict(images, threshold)
    for hook in hooks:
        hook.remove()
    still = [int((found.exits > exit).sum()) for exit in range(5)]
    assert seen == [count for count in still if count]
    assert seen[0] == 9
    assert len(set(seen)) > 1


def test_nobody_is_an_answer_too(early: EarlyExits, images: Tensor) -> None:
    for threshold in (0.0, 0.5, NEVER):
        found = early.predict(images[:0], threshold)
        assert [len(found.classes), len(found.exits), *found.logits.shape] == [0, 0, 0, 7]


class Given(nn.Module):
    """Says what it is given: images are logits (N, exits, classes)."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return x[:, 0] * 1, x[:, 1] * 1, x[:, 2] * 1


def given(*logits: Any) -> Prediction:
    net = early_exits(symbolic_trace(Given()), (2, 3, 5)).eval()
    return net.predict(torch.tensor(logits), 0.0)


def test_what_is_no_number_is_never_sure() -> None:
    nan, inf, sure = float("nan"), float("inf"), [9.0, 0.0]
    found = given([[nan, 0.0], sure, sure], [[inf, 0.0], [nan, nan], sure], [sure, sure, sure], [[nan] * 2] * 3)
    assert found.exits.tolist() == [3, 5, 2, 5]
    assert found.classes[:3].tolist() == [0, 0, 0]
    assert found.logits[3].isnan().all()


def test_confidences_are_as_defined_and_between_0_and_1() -> None:
    logits = torch.randn(50, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 5
    extreme = torch.tensor([[0.0] * 6, [1e4, 0, 0, 0, 0, 0], [-1e4, -1e4, 0, 0, 0, 0]], dtype=torch.float64)
    logits = torch.cat([logits, extreme])
    for name in confidences():
        found = confidence_of(name, logits)
        expected = [plain_confidence(name, row) for row in logits.tolist()]
        assert found.tolist() == pytest.approx(expected, abs=1e-9)
        assert ((found >= 0) & (found <= 1)).all()
        assert found[51] == 1


@pytest.mark.parametrize("name", confidences())
def test_single_precision_stays_between_0_and_1(name: str) -> None:
    logits = torch.randn(2000, 10, generator=torch.Generator().manual_seed(2)) * 8
    found = confidence_of(name, torch.cat([logits, torch.zeros(1, 10)]))
    assert ((found >= 0) & (found <= 1)).all()


def test_the_ensemble_is_the_one_that_distillation_has(early: EarlyExits, images: Tensor) -> None:
    with torch.no_grad():
        logits = early(images)
        outputs = early.exit_outputs(logits, ensemble=True)
        assert all(map(torch.equal, early.exit_outputs(logits, ensemble=False), logits))
    for count in range(1, 6):
        weights = distill.exit_weights("ascending", count).ensemble
        torch.testing.assert_close(outputs[count - 1], distill.ensemble(logits[:count], weights), **CLOSE)


def test_exit_i_weighs_i_whichever_exits_there_are() -> None:
    net = early_exits(symbolic_trace(Given()), (2, 3, 5))
    ones = [torch.full((1, 1), value) for value in (1.0, 10.0, 100.0)]
    expected = [1.0, (2 * 1 + 3 * 10) / 5, (2 * 1 + 3 * 10 + 5 * 100) / 10]
    assert [float(found) for found in net.exit_outputs(ones, ensemble=True)] == pytest.approx(expected)


@pytest.mark.parametrize("count", range(2, 9))
def test_weights_of_all_exits_are_the_ascending_ones_to_the_bit(count: int) -> None:
    ascending = tuple(map(float, distill.exit_weights("ascending", count).ensemble))
    assert EarlyExits([], range(1, count + 1))._shares == ascending


def test_weights_are_shared_and_moves_go_both_ways() -> None:
    net = small_net("ee_b", width_mult=0.1, depth=(1, 2))
    module = net.extract(net.space.largest(), "all")
    early = early_exits(module)
    assert {id(p) for p in early.parameters()} == {id(p) for p in module.parameters()}
    early.float()
    assert {p.dtype for p in module.parameters()} == {torch.float32}


def test_memory_layout_outlives_exiting(early: EarlyExits, images: Tensor) -> None:
    layouts: list[bool] = []
    threshold = middle(early, images, "max_softmax", 0.5)
    hook = early.parts[-1].register_forward_pre_hook(
        lambda _, given: layouts.append(given[0].is_contiguous(memory_format=torch.channels_last))
    )
    early.predict(images.to(memory_format=torch.channels_last), (threshold, *[NEVER] * 3))
    hook.remove()
    assert layouts == [True]


def test_half_precision_is_evaluated_in_full() -> None:
    net = early_exits(symbolic_trace(Given())).eval()
    found = net.predict(torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0)).bfloat16(), 0.5)
    assert found.logits.dtype == torch.float32


# What can't be


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"threshold": -0.1}, r"threshold \(.*-0.1"),
        ({"threshold": float("nan")}, r"threshold \(.*nan"),
        ({"threshold": float("inf")}, r"threshold \(.*inf"),
        ({"threshold": True}, r"threshold \(.*True"),
        ({"threshold": "0.9"}, r"threshold"),
        ({"threshold": [0.5] * 5}, r"thresholds \(5\) must be one for each exit but the last, 4"),
        ({"threshold": []}, r"thresholds \(0\)"),
        ({"threshold": 0.5, "confidence": "luck"}, r"confidence \(.*luck.*max_softmax, entropy, margin"),
        ({"threshold": 0.5, "ensemble": "yes"}, r"ensemble"),
    ],
)
def test_impossible_rules_are_refused(arguments: dict[str, Any], words: str, early: EarlyExits, images: Tensor) -> None:
    with pytest.raises(UserError, match=words) as caught:
        early.predict(images, **arguments)
    assert len(str(caught.value).splitlines()) == 1


def test_training_mode_is_refused(images: Tensor) -> None:
    net = small_net("ee_b", width_mult=0.1, depth=(1, 2))
    early = early_exits(net.extract(net.space.largest(), "all")).train()
    with pytest.raises(UserError, match=r"call \.eval"):
        early.predict(images, 0.5)


class Counted(nn.Module):
    """The number of images crosses from one exit to the next."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean = x.sum(0) / 2
        return x + mean, x - mean


def test_a_value_without_a_row_per_image_is_refused_when_images_exit() -> None:
    net = early_exits(symbolic_trace(Counted())).eval()
    images = torch.tensor([[9.0, 0.0], [-4.5, 0.0], [-4.5, 0.0]])
    assert net.predict(images, NEVER).exits.tolist() == [2, 2, 2]
    with pytest.raises(UserError, match="row per image"):
        net.predict(images, 0.999)


def test_networks_without_a_choice_are_refused() -> None:
    net = small_net("se_b", width_mult=0.1, depth=(1, 2))
    with pytest.raises(UserError, match="one exit"):
        early_exits(net.extract(net.space.largest(), "all"))
    with pytest.raises(GraphError, match="no tuple"):
        early_exits(net.extract(net.space.largest()))
    with pytest.raises(UserError, match="one number per output"):
        early_exits(symbolic_trace(Given()), (1, 2))
    for exits in ((1, 3, 2), (0, 1, 2), (1, 1, 2)):
        with pytest.raises(UserError, match=r"exits \(\[.*\]\) must be ascending whole numbers from 1 up"):
            early_exits(symbolic_trace(Given()), exits)
    with pytest.raises(UserError, match="one class"):
        early_exits(symbolic_trace(Given())).eval().predict(torch.zeros(1, 3, 1), 0.5)
