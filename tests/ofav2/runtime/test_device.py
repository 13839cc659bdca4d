"""Devices are checked by name, precision is a context, and torch's own draws come from seed, phase and step."""

import re

import pytest
import torch
from torch import nn

from ofav2.config.schema import RunConfig
from ofav2.errors import UserError
from ofav2.rng import Stream
from ofav2.runtime.device import Runtime, open_runtime, seed_torch

# Seed, phase and step, from which dropout's random numbers follow.
POSITIONS = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]


@pytest.fixture(autouse=True)
def _as_found() -> object:
    threads, state, found = torch.get_num_threads(), torch.get_rng_state(), tf32()
    yield
    torch.set_num_threads(threads)
    torch.set_rng_state(state)
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = found


def tf32() -> tuple[bool, bool]:
    """Whether matrix products and convolutions on CUDA would use TF32; torch tells without a card, too."""
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


def test_cpu_and_auto_open_a_device_that_exists() -> None:
    assert open_runtime(RunConfig(device="cpu")).device == torch.device("cpu")
    assert open_runtime(RunConfig()).device.type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_auto_takes_cuda_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for there, kind in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert open_runtime(RunConfig(device="auto")).device.type == kind


def test_cuda_devices_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name in ("cuda:1", "cuda:01"):
        assert open_runtime(RunConfig(device=name)).device == torch.device("cuda", 1)
    assert open_runtime(RunConfig(device="cuda")).device == torch.device("cuda")
    with pytest.raises(UserError, match=r"run\.device \(cuda:2\): this machine has 2 CUDA devices"):
        open_runtime(RunConfig(device="cuda:2"))


@pytest.mark.parametrize("name", ["tpu", "cpu:0", "cuda:", "cuda:x", "cuda:²", "cuda:-1", "cuda:0:1", "", "CPU"])
def test_unknown_devices_are_refused_by_value(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    with pytest.raises(UserError, match=rf"run\.device \({re.escape(name)}\) is unknown"):
        open_runtime(RunConfig(device=name))


def test_threads_are_set_where_the_recipe_names_a_number() -> None:
    torch.set_num_threads(2)
    open_runtime(RunConfig(device="cpu", threads=0))
    assert torch.get_num_threads() == 2
    open_runtime(RunConfig(device="cpu", threads=1))
    assert torch.get_num_threads() == 1


def test_bfloat16_is_of_the_forward_pass_and_weights_stay_wide() -> None:
    layer, images = nn.Linear(4, 3), torch.ones(2, 4)
    for precision, dtype in (("bfloat16", torch.bfloat16), ("float32", torch.float32)):
        with Runtime(torch.device("cpu"), precision).autocast():
            assert layer(images).dtype == dtype
    assert layer.weight.dtype == torch.float32


@pytest.mark.parametrize(("outer", "inner"), [("bfloat16", "float32"), ("float32", "bfloat16")])
def test_a_context_inside_of_another_one_has_its_own_precision(outer: str, inner: str) -> None:
    layer, images, cpu = nn.Linear(4, 3), torch.ones(2, 4), torch.device("cpu")
    with Runtime(cpu, outer).autocast():
        with Runtime(cpu, inner).autocast():
            assert layer(images).dtype == getattr(torch, inner)
        assert layer(images).dtype == getattr(torch, outer)


def test_on_cuda_float32_means_float32_outside_of_training_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    runtime = open_runtime(RunConfig(device="cuda"))
    assert tf32() == (False, False)
    with runtime.tf32_for_training():
        assert tf32() == (True, True)
    assert tf32() == (False, False)
    with pytest.raises(ZeroDivisionError), runtime.tf32_for_training():
        raise ZeroDivisionError
    assert tf32() == (False, False)
    with open_runtime(RunConfig(device="cuda", tf32=False)).tf32_for_training():
        assert tf32() == (False, False)


def test_on_the_cpu_tf32_has_no_effect() -> None:
    for found in (True, False):
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = found
        with open_runtime(RunConfig(device="cpu")).tf32_for_training():
            assert tf32() == (found, found)


def test_both_ways_of_asking_torch_agree_on_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch has old and new settings of it, refuses a mixture, and torch.compile reads both."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    matmul, conv = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    runtime = open_runtime(RunConfig(device="cuda"))
    assert "tf32" not in (matmul.fp32_precision, conv.fp32_precision)
    assert torch.get_float32_matmul_precision() == "highest"
    with runtime.tf32_for_training():
        assert (matmul.fp32_precision, conv.fp32_precision) == ("tf32", "tf32")
        assert torch.get_float32_matmul_precision() == "high"


def test_modules_are_placed_channels_last_with_their_values() -> None:
    layer = nn.Conv2d(3, 5, 3)
    weight = layer.weight.detach().clone()
    placed = Runtime(torch.device("cpu"), "float32").place(layer)
    assert placed is layer
    assert layer.weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(layer.weight, weight)


def test_torchs_draws_depend_on_seed_phase_and_step_alone() -> None:
    def drawn(position: tuple[int, int, int]) -> list[float]:
        seed, phase, step = position
        seed_torch(Stream(seed, f"phase {phase}"), step)
        return torch.rand(8).tolist()

    first = [drawn(position) for position in POSITIONS]
    torch.manual_seed(99)
    assert [drawn(position) for position in reversed(POSITIONS)] == first[::-1]
    assert len({tuple(values) for values in first}) == len(POSITIONS)
