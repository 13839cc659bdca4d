"""Compiled forward passes are used where they work, leave no trace where they fail, and say what happened."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import distill
import ofav2
import supernets
from ofav2.config import recipe
from ofav2.data import Batch
from ofav2.rng import Stream
from ofav2.runs.metrics_file import read_metrics
from ofav2.runtime.compiling import Compiler, Forward, compiled, inductor
from ofav2.runtime.device import open_runtime
from ofav2.tasks.classification import Classification
from ofav2.training.objectives import Joint, all_exits, as_teacher, compiled_exits
from ofav2.training.optim import make_updates
from ofav2.training.step import Guard, train_steps
from supernets import Supernet
from supernets.outputs import Outputs, exit_logits
from tests.notes import Notes
from tests.ofav2 import tiny
from tests.ofav2.tiny import CPU, bits, cut, drawn_in, phase_config, plan_phases, random_batches, same_bits, tiny_net

# Not AdamW, which makes a whole step of a gradient that is nothing but rounding.
OPTIM = recipe.load("cifar10", ["data.root=null"]).optim


def eager(forward: Forward) -> Forward:
    return forward


def dynamo(forward: Forward) -> Forward:
    """All of torch.compile but for the code that it makes."""
    form: Forward = torch.compile(forward, backend="eager", fullgraph=True, dynamic=False)
    return form


def broken(forward: Forward) -> Forward:
    """A compiler that fails when its form is called, as torch's does, in the middle of everything."""

    def form(images: Tensor) -> Outputs:
        forward(images)
        raise RuntimeError("no C++ compiler\nat all")

    return form


def small() -> nn.Sequential:
    """Layers with statistics and random numbers."""
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5)
    return nn.Sequential(*layers, nn.Linear(4, 5))


def noise(side: int = 8) -> Tensor:
    return torch.randn(4, 3, side, side, generator=torch.Generator().manual_seed(side))


def counting(compiler: Compiler, made: list[Forward]) -> Compiler:
    def counted(forward: Forward) -> Forward:
        made.append(compiler(forward))
        return made[-1]

    return counted


def step(forward: Forward, module: nn.Module, images: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Logits, gradients and statistics of a training step."""
    torch.manual_seed(7)
    module.zero_grad(set_to_none=True)
    (logits,) = exit_logits(forward(images))
    logits.square().sum().backward()
    gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    return logits.detach(), gradients, [buffer.clone() for buffer in module.buffers()]


def test_without_a_compiler_a_pass_is_itself() -> None:
    module = small()
    assert compiled("network", module, module, None) is module
    net = tiny_net("se_b")
    images, largest = noise(16), net.space.largest()
    plain, eager = compiled_exits(net, largest, None)(images, largest), all_exits(net)(images, largest)
    assert all(map(torch.equal, plain, eager))
    assert CPU.compiler is None
    assert open_runtime(replace(recipe.load("digits").run, device="cpu")).compiler is None
    assert open_runtime(replace(recipe.load("digits").run, device="cpu", compile=True)).compiler is inductor


@pytest.mark.parametrize("compiler", [eager, broken, dynamo])
def test_the_first_steps_are_those_of_the_eager_pass(compiler: Compiler) -> None:
    """Neither trying a form nor a failure in it leaves a trace in statistics, gradients or random numbers."""
    plain, tried = small(), small()
    forward = compiled("network", tried, tried, compiler)
    for side in (8, 8):
        torch.testing.assert_close(step(forward, tried, noise(side)), step(plain, plain, noise(side)))


def test_gradients_that_are_there_stay() -> None:
    module = small()
    step(module, module, noise())
    before = [parameter.grad for parameter in module.parameters()]
    with torch.no_grad():
        compiled("network", module, module, eager)(noise())
    assert all(parameter.grad is gradient for parameter, gradient in zip(module.parameters(), before, strict=True))


def test_there_is_one_form_per_shape_and_more_than_torchs_eight(notes: Notes, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = torch.compile
    # What inductor makes of the graph is not the point.
    monkeypatch.setattr(torch, "compile", lambda form, options, **rest: plain(form, backend="eager", **rest))
    module, made = nn.Hardswish(), []
    forward = compiled("network", module, module, counting(inductor, made))
    sides = range(8, 18)
    for side in (*sides, *sides):
        with torch.no_grad():
            forward(noise(side))
    assert len(made) == len(sides)
    told = notes()
    assert told.count("network compiled for") == len(sides)
    assert "network compiled for 8 pixels in " in told
    assert "can't" not in told


def test_a_failure_is_said_once_and_no_more_is_tried(notes: Notes) -> None:
    module, made = small(), []
    forward = compiled("teacher", module, module, counting(broken, made))
    for side in (8, 9):
        forward(noise(side))
    assert len(made) == 1
    assert notes() == ("teacher can't be compiled (RuntimeError: no C++ compiler): it runs eager\n")


def test_a_compiler_that_is_not_there_is_a_failure(notes: Notes) -> None:
    def missing(forward: Forward) -> Forward:
        raise RuntimeError("torch.compile is not supported on Python 4")

    module = small().eval()
    found = compiled("teacher", module, module, missing)(noise())
    assert torch.equal(found, module(noise()))  # type: ignore[arg-type]
    assert "not supported on Python 4" in notes()


# In training


def trained(net: Supernet, compiler: Compiler | None, sides: Sequence[int] = (16, 20, 16)) -> list[float]:
    """Losses of a step of the full phase per image side."""
    phase = plan_phases(net, {"full": phase_config(dropout=0.3)})["full"]
    weights = distill.exit_weights("ascending", len(net.architecture.exits)).losses
    forward = compiled_exits(net, phase.space.largest(), compiler)
    net.set_dropout(phase.config.dropout)
    steps = train_steps(
        net,
        [Batch(images.float() / 255 - 0.4, targets) for images, targets in random_batches(sides)],
        Joint(Classification(5, 0.1), drawn_in(phase, 3), weights, forward),
        make_updates(net, OPTIM, steps=phase.steps, warmup_steps=0, peak=phase.config.lr),
        guard=Guard(0.0),
        stream=Stream(3, phase.name),
        runtime=CPU,
    )
    return [step.metrics["loss"] for step in steps]


@pytest.mark.parametrize("compiler", [eager, broken])
def test_the_full_phase_trains_the_supernets_own_parameters(compiler: Compiler) -> None:
    plain, other = tiny_net("ee_d", depth=(1,)), tiny_net("ee_d", depth=(1,))
    assert trained(other, compiler) == trained(plain, None)
    assert same_bits(bits(other), bits(plain))


def test_the_full_phase_is_one_graph_as_a_run_on_the_cpu_trains_it(notes: Notes) -> None:
    """A kernel that asked for the number of threads once broke it, and every run fell back to eager."""
    plain, other = (CPU.place(tiny_net("se_b", depth=(1,))) for _ in range(2))
    for net in (plain, other):
        CPU.use_cpu_kernels(net)
    assert isinstance(plain, Supernet)
    assert isinstance(other, Supernet)
    assert trained(other, dynamo, (16,)) == pytest.approx(trained(plain, None, (16,)), rel=1e-4)
    told = notes()
    assert "largest network compiled for 16 pixels" in told
    assert "can't be compiled" not in told


def test_another_network_than_the_compiled_one_is_refused() -> None:
    net = tiny_net("ee_d")
    exits = compiled_exits(net, net.space.largest(), eager)
    exits(noise(16), replace(net.space.largest(), resolution=20))
    with pytest.raises(AssertionError):
        exits(noise(16), net.space.smallest())


@pytest.mark.parametrize("compiler", [eager, broken])
def test_a_compiled_teacher_says_what_it_would_have_said(compiler: Callable[..., Any]) -> None:
    net = tiny_net("ee_d", depth=(1,))
    module = CPU.place(supernets.fold_norms(net.extract(net.space.largest(), exits="all")))
    weights = distill.exit_weights("ascending", len(net.architecture.exits)).ensemble
    before = torch.get_rng_state()
    target = as_teacher(compiled("teacher", module, module, compiler), weights)(noise(16))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(target.logits, as_teacher(module, weights)(noise(16)).logits)


@pytest.mark.slow
def test_a_run_compiles_its_full_phase_and_its_teacher(
    notes: Notes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With no fallback to eager, and to the losses of a run that compiles nothing."""
    plain = torch.compile
    monkeypatch.setattr(torch, "compile", lambda form, options, **rest: plain(form, backend="eager", **rest))
    # Not AdamW, as above.
    small = tiny.written(tmp_path, tiny.TWO.replace("name: adamw", "name: sgd"))
    losses = []
    for compiling in ("true", "false"):
        run = ofav2.train(small, [f"run.compile={compiling}"], tmp_path / compiling)
        losses.append([line["loss"] for line in read_metrics(run.folder) if line["kind"] == "train"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    told = notes()
    assert "can't be compiled" not in told
    assert told.count("largest network compiled for 16 pixels") == told.count("teacher compiled for 16 pixels") == 1


@pytest.mark.slow
def test_inductors_code_trains_and_teaches_as_torch_does(
    notes: Notes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real compiler, with dropout and statistics, on the first stage of a supernet and its exit."""
    # What a killed process left half-written in the user's own cache fails every later load.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    plain, other = (CPU.place(tiny_net("ee_d", depth=(1,), dropout=0.3)) for _ in range(2))
    assert isinstance(plain, Supernet)
    assert isinstance(other, Supernet)
    subnet = cut(plain.space.largest(), 1)
    forward = compiled_exits(other, subnet, inductor)
    for _ in range(2):
        found = step(lambda images: forward(images, subnet), other, noise(16))
        expected = step(lambda images: plain(images, subnet, exits="all"), plain, noise(16))
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)

    module = CPU.place(supernets.fold_norms(plain.eval().extract(subnet, exits="all")))
    with torch.no_grad():
        teacher = compiled("teacher", module, module, inductor)(noise(16))
        torch.testing.assert_close(teacher, module(noise(16)), rtol=1e-4, atol=1e-4)
    told = notes()
    assert "can't" not in told, "on a CPU with a C++ compiler nothing falls back to eager"
    assert all(line in told for line in ("largest network compiled for 16", "teacher compiled for 16"))
