"""Which parameters decay, and how the learning rate runs."""

import copy
import math

import pytest
import torch
from torch import nn

from ofav2.config.schema import OptimConfig
from ofav2.training.optim import build_optimizer, learning_rate
from supernets.layers import ElasticBatchNorm2d
from tests.ofav2.tiny import tiny_net


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_weights_decay_and_norms_and_biases_do_not(name: str) -> None:
    net = tiny_net("ee_dp")
    optimizer = build_optimizer(net, OptimConfig(name=name, weight_decay=0.125))  # type: ignore[arg-type]
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(decay), "each parameter once"
    assert decay.keys() == {id(p) for p in net.parameters()}
    norms = {id(p) for module in net.modules() if isinstance(module, ElasticBatchNorm2d) for p in module.parameters()}
    exempt = norms | {id(p) for name, p in net.named_parameters() if name.endswith("bias")}
    assert norms
    for parameter in net.parameters():
        assert decay[id(parameter)] == (0.0 if id(parameter) in exempt else 0.125)


def test_sgd_is_nesterovs() -> None:
    optimizer = build_optimizer(nn.Linear(2, 2), OptimConfig(momentum=0.8))
    assert isinstance(optimizer, torch.optim.SGD)
    assert all(group["momentum"] == 0.8 and group["nesterov"] for group in optimizer.param_groups)


def test_sgd_without_momentum_is_plain() -> None:
    optimizer = build_optimizer(nn.Linear(2, 2), OptimConfig(momentum=0.0))
    assert all(group["momentum"] == 0.0 and not group["nesterov"] for group in optimizer.param_groups)


def test_adamw_takes_its_betas() -> None:
    optimizer = build_optimizer(nn.Linear(2, 2), OptimConfig(name="adamw", betas=(0.5, 0.75)))
    assert isinstance(optimizer, torch.optim.AdamW)
    assert all(group["betas"] == (0.5, 0.75) for group in optimizer.param_groups)


@pytest.mark.parametrize("config", [OptimConfig(), OptimConfig(momentum=0.0), OptimConfig(name="adamw")])
def test_parameters_may_take_part_at_different_times(config: OptimConfig) -> None:
    """Beside torch's plain optimisers, which pass over the parameters one by one; in the layout that a run has."""
    ours = nn.ModuleList(nn.Conv2d(3, 4, 3) for _ in range(3)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    plain = copy.deepcopy(ours)
    assert not ours[0].weight.is_contiguous()
    optimizer = build_optimizer(ours, config)
    kind, groups = type(optimizer), optimizer.param_groups
    settings = {"momentum", "nesterov", "betas"} & groups[0].keys()
    decays = {p.ndim: group["weight_decay"] for group in groups for p in group["params"]}
    of_plain = [{"params": [p], "weight_decay": decays[p.ndim]} for p in plain.parameters()]
    reference = kind(of_plain, lr=0.0, fused=False, foreach=False, **{name: groups[0][name] for name in settings})
    rng = torch.Generator().manual_seed(1)
    for step, parts in enumerate([(1,), (0, 1), (2,), (0, 2), ()]):
        images = torch.randn(2, 3, 5, 5, generator=rng)
        for net, each in ((ours, optimizer), (plain, reference)):
            for part in parts:
                # The first channels alone, as a sub-network takes them; their gradient is not in the weight's layout.
                nn.functional.conv2d(images[:, :2], net[part].weight[:, :2], net[part].bias).square().sum().backward()
            for group in each.param_groups:
                group["lr"] = 0.01 / (step + 1)
            each.step()
            each.zero_grad(set_to_none=True)
        torch.testing.assert_close(list(ours.parameters()), list(plain.parameters()))


@pytest.mark.parametrize(("steps", "warmup"), [(10, 0), (10, 3), (10, 9), (1, 0), (2, 1)])
def test_the_learning_rate_warms_up_and_follows_a_cosine(steps: int, warmup: int) -> None:
    rates = [learning_rate(step, steps=steps, warmup_steps=warmup, peak=0.4) for step in range(steps)]
    assert rates[:warmup] == pytest.approx([0.4 * (step + 1) / warmup for step in range(warmup)])
    half_wave = [0.2 * (1 + math.cos(math.pi * step / (steps - warmup))) for step in range(steps - warmup)]
    assert rates[warmup:] == pytest.approx(half_wave)
    assert max(rates) == pytest.approx(0.4)
    assert all(rate > 0 for rate in rates), "no step is in vain"
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)


def test_the_cosine_is_torchs() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=12)
    for step in range(12):
        assert learning_rate(step, steps=12, warmup_steps=0, peak=0.3) == pytest.approx(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
