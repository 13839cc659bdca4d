"""The benchmark of the training step in a quick form: it gives its results, and all sides compute the same."""

import itertools
import math
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from benchmarks import step
from benchmarks.step import PlainNetworks, Work, our_step, peers_step
from ofav2.config.schema import RunConfig
from ofav2.runtime.device import Runtime
from supernets import load_ofa_state_dict

HERE = Runtime(torch.device("cpu"), "float32")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def quick(variant: str, **changes: float) -> Work:
    return Work(variant, **{"width": 0.25, "side": 32, "batch": 8, "dropout": 0.0, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "variant", ["ee_dp", *(pytest.param(name, marks=pytest.mark.slow) for name in ("ee_d", "se_b"))]
)
def test_plain_networks_have_the_steps_loss(variant: str) -> None:
    work = quick(variant)
    plain = PlainNetworks(work, HERE)
    plain.prepare()
    loss = plain.step()
    assert all(parameter.grad is not None for module in plain.ready for parameter in module.parameters())
    assert plain.step_with_our_depthwise() == pytest.approx(loss, rel=1e-6)
    step_of_ours = our_step(work, HERE)
    assert step_of_ours() == pytest.approx(loss, rel=1e-5)
    plain.prepare()
    # The supernet has learnt by then, and the plain networks have not.
    assert step_of_ours() != pytest.approx(plain.step(), rel=1e-7)


def test_sub_networks_come_again_after_some_steps() -> None:
    steps = itertools.islice(step.drawn(quick("ee_d", steps=3)), 6)
    first, second, third, *again = steps
    assert again == [first, second, third]
    assert len({first, second, third}) == 3
    assert first == next(step.drawn(quick("ee_d")))


def test_operations_are_counted_alike_of_any_batch() -> None:
    found, larger = (step.operations(quick("ee_d", batch=batch), 3) for batch in (2, 4))
    assert found == larger
    assert found["ofav2"]["convolution"] == found["plain networks"]["convolution"] > 0
    assert found["ofav2"].total() > found["plain networks"].total()


def test_the_peer_computes_the_networks_that_we_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same weights, active sub-networks give the same logits."""
    from ofa.imagenet_classification.elastic_nn.networks import OFAMobileNetV3

    work = quick("se_b", subnets=4)
    theirs = OFAMobileNetV3(
        n_classes=step.CLASSES,
        bn_param=(0.1, 1e-5),
        width_mult=work.width,
        ks_list=[3, 5, 7],
        expand_ratio_list=[3, 4, 6],
        depth_list=[2, 3, 4],
    ).eval()
    ours = work.net().eval()
    load_ofa_state_dict(ours, theirs.state_dict())
    images, _ = work.inputs()
    with torch.no_grad():
        for subnet in next(step.drawn(work)):
            step.activate(theirs, subnet)
            torch.testing.assert_close(theirs(images), ours(images, subnet), rtol=1e-4, atol=1e-4)


def test_both_layouts_of_the_peer_take_steps() -> None:
    work = quick("se_b")
    for layout in (torch.contiguous_format, torch.channels_last):
        losses = [peers_step(work, layout)() for _ in range(2)]
        assert all(math.isfinite(loss) for loss in losses)


@pytest.mark.slow
def test_the_step_benchmark_times_all_sides_and_writes_them_down(tmp_path: Path) -> None:
    times = step.peer(quick("se_b"), HERE, 1)
    assert set(times) == {"ofa", "ofa, given channels-last images", "ofav2"}
    assert len(step.overhead(quick("ee_d"), HERE, 1)) == 3
    assert {path.name for path in (tmp_path / "build/benchmarks").iterdir()} == {"step-peer.json", "step-overhead.json"}


@pytest.mark.slow
def test_a_step_computes_the_same_in_any_form(tmp_path: Path) -> None:
    """The compiler changes nothing here, so that what is around it shows."""
    compiling = replace(HERE, compiler=lambda forward: forward)
    work = quick("ee_d")
    images, _ = work.inputs()
    targets = [step.our_teacher(work, where)(images).logits for where in (HERE, compiling)]
    torch.testing.assert_close(*targets, rtol=1e-4, atol=1e-5)
    assert step.our_full_step(work, compiling)() == step.our_full_step(work, HERE)()
    found = step.forms(work, compiling, 1)
    assert list(found["full"]) == ["eager", "compiled"]
    assert len(found["teacher"]) == 4
    assert list(step.forms(work, HERE, 1)["full"]) == ["eager"]


@pytest.mark.slow
@pytest.mark.parametrize("over_processes", [{1: 2.0, 2: 2.5}, {1: 2.0}], ids=["two processes", "one card"])
def test_a_steps_growth_with_its_sizes_is_drawn(over_processes: dict[int, float], tmp_path: Path) -> None:
    work = quick("se_b", batch=8, side=64)
    found = step.growth(work, HERE, 1, tmp_path / "new" / "plot.svg", over_processes)
    assert {axis: list(points) for axis, points in found.items()} == {
        "sub-networks": [1, 2, 4, 8],
        "images": [2, 4, 8],
        "side in pixels": [32, 48, 64],
        "processes, a batch each": list(over_processes),
    }
    drawing = ElementTree.parse(tmp_path / "new" / "plot.svg")
    assert {"sub-networks", "images", "side in pixels", "ms a step"} <= {part.text for part in drawing.iter()}


def test_the_power_of_growth() -> None:
    assert step.power({1: 3.0, 2: 5.0, 4: 12.0}) == pytest.approx(1.0)
    assert step.power({32: 1.0, 64: 4.0}) == pytest.approx(2.0)


@pytest.mark.slow
def test_a_step_is_timed_in_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(step.__file__).parents[1]))
    found = step.over_processes(quick("ee_d"), RunConfig(device="cpu"), 1)
    assert list(found) == [1, 2]
    assert all(ms > 0 for ms in found.values())


@pytest.mark.slow
def test_memory_is_measured_in_processes_of_their_own() -> None:
    found = step.memory(quick("se_b"), 1)
    assert set(found) == {"ofa", "ofav2"}
    assert all(peak > 1 for peak in found.values())
