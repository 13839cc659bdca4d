"""What CUDA could break: each promise that the CPU's tests make with stand-ins, on a real card."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import distill
import ofav2
import supernets
from ofav2.config import recipe
from ofav2.data import Batch, ImageData, open_data, train_batches
from ofav2.rng import Stream
from ofav2.runs.metrics_file import read_metrics
from ofav2.runs.records import read_run
from ofav2.runtime.compiling import compiled, inductor
from ofav2.runtime.device import Runtime, open_runtime
from ofav2.tasks.classification import Classification
from ofav2.training.objectives import Joint, compiled_exits
from ofav2.training.optim import make_updates
from ofav2.training.step import Guard, train_steps
from tests.notes import Notes
from tests.ofav2 import tiny
from tests.ofav2.runtime.test_compiling import OPTIM, drawn_in
from tests.ofav2.test_resume import at, stopped_after

pytestmark = pytest.mark.gpu

CUDA = torch.device("cuda")
CONFIG = replace(recipe.load("digits").data, batch_size=16, resolutions=(16, 20))


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return open_data(CONFIG)


@pytest.fixture
def runtime() -> Runtime:
    return open_runtime(replace(recipe.load("digits").run, device="cuda"))


def batches(data: ImageData, device: torch.device, steps: range = range(6)) -> list[Batch]:
    return list(train_batches(data, CONFIG, Stream(3, "full"), steps, device=device))


def test_batches_are_those_of_the_cpu_within_a_grey_level(digits: ImageData) -> None:
    for here, there in zip(batches(digits, torch.device("cpu")), batches(digits, CUDA), strict=True):
        assert there.images.device.type == "cuda"
        assert (here.images.int() - there.images.cpu().int()).abs().max() <= 1
        assert torch.equal(here.targets, there.targets.cpu())


def test_batches_loaded_ahead_are_the_same_from_any_start(digits: ImageData) -> None:
    straight, later = batches(digits, CUDA), batches(digits, CUDA, range(3, 6))
    for one, other in zip(straight[3:], later, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.targets, other.targets)


def test_a_busy_stream_sees_whole_batches(digits: ImageData) -> None:
    """The next batch is sent on a stream of its own while this one's work is queued on the main stream."""
    calm = batches(digits, CUDA)
    ballast = torch.randn(4096, 4096, device=CUDA)
    for batch, expected in zip(
        train_batches(digits, CONFIG, Stream(3, "full"), range(6), device=CUDA), calm, strict=True
    ):
        for _ in range(10):
            ballast = ballast @ ballast / 64
        kept = batch.images.clone()
        del batch
        assert torch.equal(kept, expected.images)


def test_tf32_is_for_training_steps_alone(runtime: Runtime) -> None:
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("this card has no TF32")
    x = torch.randn(64, 256, 8, 8, device=CUDA)
    conv = nn.Conv2d(256, 256, 3, padding=1, device=CUDA)
    with torch.no_grad():
        exact = conv.double()(x.double())
        conv.float()

        def error() -> float:
            return float((conv(x).double() - exact).abs().max())

        assert error() < 1e-4
        with runtime.tf32_for_training():
            assert error() > 1e-4
        assert error() < 1e-4


def losses(runtime: Runtime) -> list[float]:
    """Losses of the full phase's first steps, without dropout."""
    net = tiny.tiny_net("ee_d", depth=(1,))
    runtime.place(net)
    runtime.use_cpu_kernels(net)
    phase = tiny.plan_phases(net, {"full": tiny.phase_config()})["full"]
    weights = distill.exit_weights("ascending", len(net.architecture.exits)).losses
    net.set_dropout(0.0)
    noise = [
        Batch(runtime.send(images).float() / 255 - 0.4, runtime.send(targets))
        for images, targets in tiny.random_batches((32, 40, 32))
    ]
    steps = train_steps(
        net,
        noise,
        Joint(
            Classification(5, 0.1),
            drawn_in(phase, 3),
            weights,
            compiled_exits(net, phase.space.largest(), runtime.compiler),
        ),
        make_updates(net, OPTIM, steps=phase.steps, warmup_steps=0, peak=0.01),
        guard=Guard(0.0),
        stream=Stream(3, phase.name),
        runtime=runtime,
    )
    return [step.metrics["loss"] for step in steps]


def test_steps_are_those_of_the_cpu(runtime: Runtime) -> None:
    assert losses(replace(runtime, tf32=False)) == pytest.approx(losses(tiny.CPU), rel=1e-3)


def test_bfloat16_is_near_float32(runtime: Runtime) -> None:
    assert losses(replace(runtime, precision="bfloat16")) == pytest.approx(losses(runtime), rel=0.05)


def test_compiled_steps_are_the_eager_ones(runtime: Runtime, notes: Notes) -> None:
    eager = losses(replace(runtime, tf32=False))
    assert losses(replace(runtime, tf32=False, compiler=inductor)) == pytest.approx(eager, rel=1e-3)
    told = notes()
    assert "can't be compiled" not in told
    assert "largest network compiled for 32 pixels" in told


def test_a_compiled_teacher_teaches_the_same(runtime: Runtime, notes: Notes) -> None:
    net = tiny.tiny_net("ee_d", depth=(1,)).eval()
    module = supernets.fold_norms(net.extract(net.space.largest(), exits="all"))
    runtime.place(module)
    form: Callable[[Tensor], object] = compiled("teacher", module, module, inductor)
    images = torch.randn(8, 3, 32, 32, device=CUDA).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        torch.testing.assert_close(form(images), module(images), rtol=1e-3, atol=1e-3)
    assert "can't be compiled" not in notes()


def test_a_run_that_stops_goes_on(tmp_path: Path) -> None:
    """Sums on a card are not the same to the last bit; draws and steps are."""
    text = tiny.TWO.replace("device: cpu", "device: cuda").replace(", lr: 0.003}", ", lr: 0.001}")
    recipe_file = tiny.written(tmp_path, text)
    straight = ofav2.train(recipe_file, [], tmp_path / "straight")
    with stopped_after(at("kernel", 1)):
        ofav2.train(recipe_file, ["run.save_steps=1"], tmp_path / "stopped")
    again = ofav2.resume(tmp_path / "stopped")
    assert read_run(again.folder).status == "finished"

    def trained(run: ofav2.Run) -> list[tuple[object, float]]:
        lines = [line for line in read_metrics(run.folder) if line["kind"] == "train"]
        return [(line["global_step"], line["loss"]) for line in lines]

    for (step, loss), (other_step, other_loss) in zip(trained(straight), trained(again), strict=True):
        assert step == other_step
        assert loss == pytest.approx(other_loss, rel=0.02)
