"""One loop for every phase: what a step draws, and that it does what a plain, slow loop does."""

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

import distill
from ofav2.config.schema import OptimConfig
from ofav2.data import Batch
from ofav2.rng import Stream
from ofav2.runtime.device import Runtime
from ofav2.tasks.classification import Classification
from ofav2.training import step as step_module
from ofav2.training.objectives import Distill, Joint, Losses, Objective, all_exits, as_teacher
from ofav2.training.optim import Updates, make_updates
from ofav2.training.phases import Phase
from ofav2.training.step import Guard, Step, step_gradients, train_steps
from supernets import Subnet, Supernet
from tests.ofav2.tiny import (
    CPU,
    FromFunction,
    bits,
    drawn_in,
    phase_config,
    plan_phases,
    random_batches,
    same_bits,
    tiny_net,
    two_phases,
)

A = tuple(Fraction(i, 15) for i in (5, 4, 3, 2, 1))
B = tuple(Fraction(i, 15) for i in (1, 2, 3, 4, 5))
SGD = OptimConfig()
OPEN = Guard(loss_jump=0.0)


def floats(images: Tensor) -> Tensor:
    return images.double() / 255 - 0.4


def train(
    net: Supernet,
    phase: Phase,
    objective: Objective,
    batches: Sequence[Batch],
    *,
    optim: OptimConfig = SGD,
    seed: int = 5,
    guard: Guard = OPEN,
) -> Iterator[Step]:
    """Trains in the network's own precision, with an optimiser of its own."""
    dtype = next(net.parameters()).dtype
    net.set_dropout(phase.config.dropout)
    return train_steps(
        net,
        [Batch(floats(images).to(dtype), targets) for images, targets in batches],
        objective,
        updates_of(net, phase, optim),
        guard=guard,
        stream=Stream(seed, phase.name),
        runtime=CPU,
    )


def updates_of(net: Supernet, phase: Phase, optim: OptimConfig = SGD) -> Updates:
    return make_updates(net, optim, steps=phase.steps, warmup_steps=phase.warmup_steps, peak=phase.config.lr)


def students(net: Supernet, phase: Phase, smoothing: float = 0.1, seed: int = 5) -> Distill:
    """Labels alone."""
    return Distill(Classification(5, smoothing), drawn_in(phase, seed), net, None, distill.mse, 1.0)


def joint(net: Supernet, phase: Phase, smoothing: float = 0.1) -> Joint:
    return Joint(Classification(5, smoothing), drawn_in(phase), A, all_exits(net))


# How it multiplies


@pytest.mark.parametrize("enabled", [True, False])
def test_forward_and_backward_passes_on_cuda_use_tf32_where_that_is_enabled(enabled: bool) -> None:
    seen: list[bool] = []

    def look(*_: Any) -> None:
        seen.append(torch.backends.cuda.matmul.allow_tf32 and torch.backends.cudnn.allow_tf32)

    def losses() -> Iterator[Losses]:
        look()
        loss = net(torch.ones(2, 3, 16, 16), net.space.largest()).sum()
        loss.register_hook(look)
        yield {"loss": loss}

    net, found = tiny_net(), torch.backends.cudnn.allow_tf32
    # As a run on CUDA has it between its steps; the tensors are on the CPU all the same.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        runtime = Runtime(torch.device("cuda"), "float32", tf32=enabled)
        step_gradients(list(net.parameters()), losses(), runtime)
        look()
    finally:
        torch.backends.cudnn.allow_tf32 = found
    assert seen == [enabled, enabled, False]


# What a step draws


def test_a_steps_sub_networks_depend_on_seed_phase_and_step_alone() -> None:
    phases = plan_phases(tiny_net(), two_phases(subnets=3))
    phase = phases["elastic"]
    forwards = [drawn_in(phase, 5).at(step, 16) for step in range(30)]
    backwards = [drawn_in(phase, 5).at(step, 16) for step in reversed(range(30))]
    assert forwards == backwards[::-1]
    assert len(set(forwards)) == 30, "steps differ"
    assert drawn_in(phase, 6).at(0, 16) != forwards[0], "seeds differ"
    assert drawn_in(replace(phase, name="other")).at(0, 16) != forwards[0], "phases differ"


@pytest.mark.parametrize("sampler", ["uniform", "sandwich"])
def test_drawn_sub_networks_lie_in_the_phases_space_at_the_batchs_resolution(sampler: str) -> None:
    net = tiny_net()
    phases = plan_phases(
        net,
        {
            "full": phase_config(),
            "kernel": phase_config(unlock={"kernel": (3, 5)}, sampler=sampler, subnets=3),
            "rest": phase_config(unlock={"depth": (1, 3), "level": (2, 3)}, sampler=sampler, subnets=3),
        },
    )
    seen: set[Subnet] = set()
    for name in ("kernel", "rest"):
        for step in range(40):
            for resolution in (16, 20):
                subnets = drawn_in(phases[name], 0).at(step, resolution)
                assert len(subnets) == 3
                assert all(subnet in phases[name].space for subnet in subnets)
                assert {subnet.resolution for subnet in subnets} == {resolution}
                seen |= set(subnets) if name == "rest" else set()
    assert {depth for subnet in seen for depth in subnet.depth} == {1, 3}, "only what is unlocked, and all of it"


def test_the_joint_phase_takes_the_largest_whatever_its_settings_say() -> None:
    net = tiny_net()
    phase = plan_phases(net, {"full": phase_config(subnets=4, sampler="sandwich")})["full"]
    assert drawn_in(phase, 0).at(7, 20) == (net.space.uniform(resolution=20),)


# Against a plain loop


@dataclass
class Plain:
    """SGD with Nesterov momentum and AdamW as their papers write them; a parameter without gradient rests."""

    optim: OptimConfig
    memory: dict[str, Any] = field(default_factory=dict)

    def step(self, named: dict[str, Tensor], gradients: dict[str, Tensor], lr: float) -> None:
        for name, gradient in gradients.items():
            weight = named[name]
            decay = self.optim.weight_decay if weight.ndim > 1 else 0.0
            if self.optim.name == "sgd":
                gradient = gradient + decay * weight
                before = self.memory.get(name)
                momentum = gradient if before is None else self.optim.momentum * before + gradient
                self.memory[name] = momentum
                weight -= lr * (gradient + self.optim.momentum * momentum)
            else:
                first, second, count = self.memory.get(name, (0.0, 0.0, 0))
                beta1, beta2 = self.optim.betas
                first, second = beta1 * first + (1 - beta1) * gradient, beta2 * second + (1 - beta2) * gradient**2
                count += 1
                self.memory[name] = first, second, count
                weight *= 1 - lr * decay
                weight -= lr * first / (1 - beta1**count) / ((second / (1 - beta2**count)).sqrt() + 1e-8)


def plain_loop(
    net: Supernet, phase: Phase, batches: Sequence[Batch], teacher: Any, optim: OptimConfig, *, seed: int, kd: float
) -> None:
    """The phase as one would write it down: all losses summed, one backward pass, the optimiser by hand."""
    named = {name: parameter.data for name, parameter in net.named_parameters()}
    plain = Plain(optim)
    net.train()
    for number, (images, targets) in enumerate(batches):
        inputs = floats(images)
        total: Tensor = torch.zeros((), dtype=torch.float64)
        for subnet in drawn_in(phase, seed).at(number, images.shape[-1]):
            if phase.objective == "joint":
                for a, logits in zip(A, net(inputs, subnet, exits="all"), strict=True):
                    total = total + float(a) * functional.cross_entropy(logits, targets, label_smoothing=0.1)
            else:
                logits = net(inputs, subnet)
                total = total + functional.cross_entropy(logits, targets, label_smoothing=0.1)
                with torch.no_grad():
                    exits = teacher(inputs)
                    target = sum(float(b) * out for b, out in zip(B, exits, strict=True)).softmax(1)
                total = total - kd * (target * logits.log_softmax(1)).sum(1).mean()
        found = torch.autograd.grad(total, list(net.parameters()), allow_unused=True)
        gradients = {name: g for (name, _), g in zip(net.named_parameters(), found, strict=True) if g is not None}
        if optim.grad_clip:
            norm = math.sqrt(sum(float((g**2).sum()) for g in gradients.values()))
            gradients = {name: g * min(1.0, optim.grad_clip / (norm + 1e-6)) for name, g in gradients.items()}
        lr = phase.config.lr * 0.5 * (1 + math.cos(math.pi * number / len(batches)))
        plain.step(named, gradients, lr)


@pytest.mark.parametrize(
    ("name", "optim"),
    [
        ("full", OptimConfig(weight_decay=0.01)),
        ("elastic", OptimConfig(weight_decay=0.01, momentum=0.0)),
        ("elastic", OptimConfig(name="adamw", weight_decay=0.1, betas=(0.8, 0.9))),
        ("elastic", OptimConfig(weight_decay=0.01, grad_clip=0.05)),
    ],
    ids=["sgd", "sgd without momentum", "adamw", "clipped"],
)
def test_two_steps_are_those_of_a_plain_loop(name: str, optim: OptimConfig) -> None:
    net = tiny_net(dtype=torch.float64)
    phase = plan_phases(net, two_phases(subnets=3))[name]
    assert phase.steps == 2
    batches = random_batches([20, 16])
    teacher = tiny_net(seed=9, dtype=torch.float64).eval().extract(net.space.largest(), exits="all")
    task, teach = Classification(5, 0.1), as_teacher(teacher, B)
    objective = (
        joint(net, phase)
        if phase.objective == "joint"
        else Distill(task, drawn_in(phase), net, teach, distill.soft_cross_entropy, 0.6)
    )

    expected, before = copy.deepcopy(net), bits(net)
    plain_loop(expected, phase, batches, teacher, optim, seed=5, kd=0.6)
    list(train(net, phase, objective, batches, optim=optim))

    found, correct = bits(net), bits(expected)
    for key, tensor in correct.items():
        # A step is about 1e-2 long; AdamW divides by gradients and so enlarges what rounding leaves.
        assert torch.allclose(found[key], tensor, rtol=1e-7, atol=1e-8), key
    moved = [key for key, _ in net.named_parameters() if not torch.equal(before[key], found[key])]
    assert len(moved) > 50, "the comparison is of a network that learned"


def test_parameters_that_took_no_part_are_untouched() -> None:
    """Neither weight decay nor momentum: what no sub-network ran stays to the last bit."""
    net = tiny_net(dtype=torch.float64)
    phases = {"full": phase_config(), "low": phase_config(unlock={"height": (1, 5)}, epochs=4)}
    phase = plan_phases(net, phases)["low"]
    low = net.space.uniform(height=1, depth=1, resolution=16, level=("mbconv", "conv"))
    high = net.space.uniform(resolution=16)

    def alternating(images: Tensor, target: Tensor, step: int) -> Iterator[Losses]:
        yield {"loss": functional.cross_entropy(net(images, next(order)), target)}

    order = iter([high, low, low, low])
    states: list[dict[str, Tensor]] = []
    for _ in train(
        net, phase, FromFunction(alternating), random_batches([16] * 4), optim=OptimConfig(weight_decay=0.1)
    ):
        states.append(bits(net))
    inactive = [
        name
        for name in states[0]
        if name.startswith(("stages.1", "stages.4", "exits.5", "stages.0.blocks.1", "stages.0.blocks.0.transform"))
    ]
    assert len(inactive) > 20
    for state in states[1:]:
        assert all(torch.equal(state[name], states[0][name]) for name in inactive)
        assert not torch.equal(state["stem.conv.weight"], states[0]["stem.conv.weight"])


# The same seed, the same bits


def trained(seed: int, *, disturb: int, dropout: float = 0.5) -> dict[str, Tensor]:
    net = tiny_net()
    phase = plan_phases(net, two_phases(subnets=2, dropout=dropout))["elastic"]
    objective = students(net, phase, seed=seed)
    torch.manual_seed(disturb)
    np.random.seed(disturb)
    for _ in train(net, phase, objective, random_batches([16, 20]), seed=seed):
        torch.rand(disturb)
        net.eval()
    return bits(net)


def test_one_seed_gives_one_network_to_the_last_bit_dropout_included() -> None:
    assert same_bits(trained(1, disturb=1), trained(1, disturb=22))


def test_another_seed_gives_another() -> None:
    assert not same_bits(trained(1, disturb=1), trained(2, disturb=1))


def test_dropout_is_at_work() -> None:
    assert not same_bits(trained(1, disturb=1), trained(1, disturb=1, dropout=0.0))


def test_evaluation_between_steps_does_not_disturb_training() -> None:
    """Whoever iterates may switch the network to evaluation: the next step trains again."""
    net = tiny_net(dtype=torch.float64)
    phase = plan_phases(net, two_phases())["full"]
    steps = train(net, phase, joint(net, phase), random_batches([16, 16]))
    next(steps)
    net.eval()
    statistics = net.stem.norm.running_mean.clone()
    next(steps)
    assert not torch.equal(net.stem.norm.running_mean, statistics)


# What a step says


def test_a_step_says_what_it_did() -> None:
    net = tiny_net(dtype=torch.float64)
    phase = plan_phases(net, two_phases(subnets=2))["elastic"]
    recorded: list[list[float]] = []

    def noting(images: Tensor, target: Tensor, step: int) -> Iterator[Losses]:
        recorded.append([])
        for losses in students(net, phase, 0.0).losses(images, target, step):
            recorded[-1].append(losses["loss"].item())
            yield losses

    steps = list(train(net, phase, FromFunction(noting), random_batches([16, 20])))
    assert [step.number for step in steps] == [1, 2]
    assert [step.metrics["resolution"] for step in steps] == [16, 20]
    assert [step.metrics["lr"] for step in steps] == pytest.approx([0.05, 0.025])
    for step, losses in zip(steps, recorded, strict=True):
        assert len(losses) == 2
        assert step.metrics["loss"] == pytest.approx(sum(losses) / 2)
        assert step.metrics["task_loss"] == pytest.approx(step.metrics["loss"])
        assert step.metrics["images_per_second"] > 0


def test_the_rate_counts_the_wait_for_images_and_nothing_between_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    net, clock = tiny_net(dtype=torch.float64), [0.0]
    phase = plan_phases(net, two_phases(subnets=2))["elastic"]
    monkeypatch.setattr(step_module.time, "perf_counter", lambda: clock[0])

    def slow() -> Iterator[Batch]:
        for images, targets in random_batches([16, 16, 16], count=6):
            clock[0] += 2.0
            yield Batch(floats(images).double(), targets)

    updates, stream = updates_of(net, phase, SGD), Stream(5, phase.name)
    steps = train_steps(net, slow(), students(net, phase, 0.0), updates, guard=OPEN, stream=stream, runtime=CPU)
    for step in steps:
        assert step.metrics["images_per_second"] == 3
        clock[0] += 100.0  # a validation


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e300])
def test_a_step_whose_loss_is_not_finite_changes_nothing_and_names_phase_and_step(value: float) -> None:
    net = tiny_net(dtype=torch.float64)
    phase = plan_phases(net, two_phases(subnets=2, epochs=3))["elastic"]
    factors = iter([1.0, 1.0, 1.0, value, 1.0, 1.0])

    def bad(images: Tensor, target: Tensor, step: int) -> Iterator[Losses]:
        for subnet in drawn_in(phase).at(step, images.shape[-1]):
            # 1e300 leaves the loss finite; the gradient's norm, a sum of squares, is not.
            yield {"loss": net(images, subnet).square().mean() * next(factors)}

    steps = train(net, phase, FromFunction(bad, drawn_in(phase)), random_batches([16, 20, 16]))
    assert next(steps).refused is None
    before = bits(net)
    refused = next(steps).refused
    assert refused is not None
    assert "not finite" in refused
    assert len(refused.splitlines()) == 1
    assert "step 1 of phase elastic" in refused
    assert "resolution 20" in refused
    assert all(str(subnet) in refused for subnet in drawn_in(phase, 5).at(1, 20))
    assert same_bits(bits(net), before), "neither weights nor statistics"
    assert next(steps).refused is None
    assert not same_bits(bits(net), before), "training goes on"
    assert all(tensor.isfinite().all() for tensor in bits(net).values())


def test_a_loss_that_jumps_is_refused_where_a_jump_is_named() -> None:
    net = tiny_net(dtype=torch.float64)
    phase = plan_phases(net, two_phases(epochs=4))["elastic"]

    def run(guard: Guard) -> list[bool]:
        losses = iter([1.0, 2.9, 4.0, 1.0])

        def objective(images: Tensor, target: Tensor, step: int) -> Iterator[Losses]:
            yield {"loss": net(images, net.space.smallest()).sum() * 0 + next(losses)}

        steps = train(net, phase, FromFunction(objective), random_batches([16] * 4), guard=guard)
        return [step.refused is not None for step in steps]

    # After 1.0 and 2.9 the usual loss is 0.95 * 1.0 + 0.05 * 2.9 = 1.095.
    assert run(Guard(loss_jump=3.0)) == [False, False, True, False]
    assert run(OPEN) == [False] * 4
    assert run(Guard(loss_jump=3.0, usual=0.1)) == [True] * 4


def test_the_guard_goes_on_from_what_it_has_seen() -> None:
    net = tiny_net(dtype=torch.float64)
    phase = plan_phases(net, two_phases())["full"]
    first, second = train(net, phase, joint(net, phase), random_batches([16, 20]))
    assert first.guard.usual == pytest.approx(first.metrics["loss"])
    assert second.guard.usual == pytest.approx(0.95 * first.metrics["loss"] + 0.05 * second.metrics["loss"])


def test_a_phase_goes_on_from_any_step_as_if_it_had_never_stopped() -> None:
    phase = plan_phases(tiny_net(), two_phases(subnets=2, dropout=0.5, epochs=4))["elastic"]
    batches = random_batches([16, 20, 16, 20])
    net = tiny_net()
    list(train(net, phase, students(net, phase), batches))

    stopped = tiny_net()
    stopped.set_dropout(0.5)
    updates = updates_of(stopped, phase)
    inputs = [Batch(floats(images).float(), targets) for images, targets in batches]
    common: dict[str, Any] = {"guard": OPEN, "stream": Stream(5, phase.name), "runtime": CPU}
    for start, end in ((0, 1), (1, 3), (3, 4)):
        part = train_steps(stopped, inputs[start:end], students(stopped, phase), updates, start_step=start, **common)
        assert [step.number for step in part] == list(range(start + 1, end + 1))
        torch.manual_seed(end)
    assert same_bits(bits(stopped), bits(net))
