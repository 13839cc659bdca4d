"""External teachers: weights from files and from timm, without the network and without running a file's code."""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.data import ImageNetInfo
from torch import Tensor, nn

from distill import DistillError, Normalisation, TeacherFile, external_teacher
from tests.memory import GIB, peak

TINY = "test_efficientnet"
MEAN, STD = (0.5, 0.4, 0.3, 0.6, 0.7), (0.25, 0.3, 0.2, 0.35, 0.15)


def ours(channels: int = 3) -> Normalisation:
    return Normalisation(MEAN[:channels], STD[:channels])


def normalised(pixels: Tensor, how: Normalisation) -> Tensor:
    """Pixels in 0..1 as the input of a network, channel by channel."""
    return torch.stack([(pixels[:, c] - mean) / how.std[c] for c, mean in enumerate(how.mean)], 1)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> NoReturn:
        raise AssertionError("an external teacher's test went to the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def no_building(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make building a network, and so downloading its weights, a failure of the test."""

    def refuse(*_: object, **__: object) -> NoReturn:
        raise AssertionError("a network was built before it was refused")

    monkeypatch.setattr(timm, "create_model", refuse)


def tiny(classes: int = 7, channels: int = 3, model: str = TINY) -> nn.Module:
    """Return a tiny network whose weights and batch-norm statistics are all its own."""
    network = timm.create_model(model, num_classes=classes, in_chans=channels)
    generator = torch.Generator().manual_seed(0)
    for tensor in network.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) * 0.2 + 0.05)
    return network.eval()


def save_safetensors(state: dict[str, Tensor], folder: Path) -> Path:
    path = folder / "teacher.safetensors"
    save_file(state, path)
    return path


def save_pth(state: dict[str, Tensor], folder: Path) -> Path:
    path = folder / "teacher.pth"
    torch.save(state, path)
    return path


def save_wrapped(state: dict[str, Tensor], folder: Path) -> Path:
    path = folder / "wrapped.pth"
    torch.save({"epoch": 3, "state_dict": state}, path)
    return path


def save_under_model(state: dict[str, Tensor], folder: Path) -> Path:
    path = folder / "model.pth"
    torch.save({"model": state, "best": 0.5}, path)
    return path


def load(path: Path | str, classes: int = 7, channels: int = 3, model: str = TINY) -> nn.Module:
    file = TeacherFile(Path(path), ours(channels))
    return external_teacher(f"timm:{model}", classes=classes, images=ours(channels), file=file)


def test_a_large_network_is_compared_with_its_file_before_it_takes_memory(tmp_path: Path) -> None:
    path = save_safetensors({"head.weight": torch.zeros(7, 1024)}, tmp_path)

    def refuse() -> None:
        with pytest.raises(DistillError, match="does not fit vit_large_patch16_224"):
            load(path, model="vit_large_patch16_224")

    # Whole, it has 1.2 GB.
    assert peak(refuse) < GIB / 4


def test_a_number_that_stands_for_gigabytes_is_refused(tmp_path: Path) -> None:
    path = save_pth(tiny().state_dict() | {"conv_stem.weight": torch.zeros(1).expand(10**5, 10**5)}, tmp_path)
    with pytest.raises(DistillError, match=r"must hold plain, dense tensors only, which 'conv_stem\.weight' is not"):
        load(path)


@pytest.mark.parametrize("save", [save_safetensors, save_pth, save_wrapped, save_under_model])
@pytest.mark.parametrize(("model", "channels"), [(TINY, 3), (TINY, 1), (TINY, 5), ("test_resnet", 3)])
def test_a_checkpoint_gives_the_same_network_ready_to_teach(
    save: Callable[[dict[str, Tensor], Path], Path], model: str, channels: int, tmp_path: Path
) -> None:
    original = tiny(channels=channels, model=model)
    teacher = load(save(original.state_dict(), tmp_path), channels=channels, model=model)
    images = torch.rand(2, channels, 48, 48, generator=torch.Generator().manual_seed(1))
    logits = teacher(images)
    assert logits.shape == (2, 7)
    assert torch.equal(logits, original(images))
    assert not logits.requires_grad
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


@pytest.mark.parametrize("channels", [3, 1])
def test_images_are_rescaled_to_the_normalisation_that_a_file_was_trained_on(channels: int, tmp_path: Path) -> None:
    original, own = tiny(channels=channels), Normalisation((0.1, 0.2, 0.3)[:channels], (0.9, 0.8, 0.7)[:channels])
    path = save_pth(original.state_dict(), tmp_path)
    teacher = external_teacher(f"timm:{TINY}", classes=7, images=ours(channels), file=TeacherFile(path, own))
    pixels = torch.rand(2, channels, 48, 48, generator=torch.Generator().manual_seed(1))
    expected = original(normalised(pixels, own))
    torch.testing.assert_close(teacher(normalised(pixels, ours(channels))), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(original(normalised(pixels, ours(channels))), expected, rtol=1e-2, atol=1e-2)
    assert not teacher.training


def test_a_normalisation_of_other_channels_is_refused(tmp_path: Path) -> None:
    file = TeacherFile(save_pth(tiny().state_dict(), tmp_path), ours(1))
    with pytest.raises(DistillError, match=r"mean and std have 1 numbers and the images 3 channels"):
        external_teacher(f"timm:{TINY}", classes=7, images=ours(3), file=file)


def test_the_global_random_state_is_left_alone(tmp_path: Path) -> None:
    path = save_pth(tiny().state_dict(), tmp_path)
    before = torch.get_rng_state()
    load(path)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("save", [save_safetensors, save_pth])
def test_a_checkpoint_of_other_classes_is_refused(
    save: Callable[[dict[str, Tensor], Path], Path], tmp_path: Path
) -> None:
    path = save(tiny(classes=7).state_dict(), tmp_path)
    with pytest.raises(
        DistillError, match=r"trained on 7 classes and the data has 10; give a teacher trained on these"
    ):
        load(path, classes=10)


def test_a_checkpoint_of_other_channels_is_refused(tmp_path: Path) -> None:
    path = save_pth(tiny(channels=3).state_dict(), tmp_path)
    with pytest.raises(DistillError, match=r"images of 1 channels: conv_stem\.weight has shape .* instead of"):
        load(path, channels=1)


class Bomb:
    """Writes a file when it is unpickled by a reader that runs code."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.marker),))


def test_a_file_that_would_run_code_is_refused_and_does_not_run_it(tmp_path: Path) -> None:
    path, marker = tmp_path / "bomb.pth", tmp_path / "exploded"
    torch.save({**tiny().state_dict(), "extra": Bomb(marker)}, path)
    with pytest.raises(DistillError, match=r"cannot be read \(UnpicklingError\), because it is damaged or holds more"):
        load(path)
    assert not marker.exists()
    torch.load(path, weights_only=False)
    assert marker.exists(), "the bomb is a dud and this test proves nothing"


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    state = tiny().state_dict()
    for path in (save_safetensors(state, tmp_path), save_pth(state, tmp_path)):
        whole = path.read_bytes()
        noise = (
            torch.randint(256, (4096,), generator=torch.Generator().manual_seed(0), dtype=torch.uint8).numpy().tobytes()
        )
        for damaged in (b"", b"\x80", whole[:5], whole[: len(whole) // 2], whole[:-1], noise, noise + whole[4096:]):
            path.write_bytes(damaged)
            with pytest.raises(DistillError, match=r"teacher checkpoint \(.*cannot be read \(") as refusal:
                load(path)
            assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"must hold a state dict; save the network's state_dict\(\)"),
        ([1, 2], r"must hold a state dict"),
        (torch.zeros(3), r"must hold a state dict"),
        ({}, r"must hold a state dict"),
        ({"state_dict": {}}, r"must hold a state dict"),
        ({"state_dict": None}, r"must hold a state dict"),
        ({"epoch": 3}, r"plain, dense tensors only, which 'epoch' is not"),
        ({"state_dict": {"classifier.weight": "text"}}, r"which 'classifier\.weight' is not"),
        ({"a": torch.zeros(2, dtype=torch.complex64)}, r"which 'a' is not"),
        ({"a": torch.zeros(2, device="meta")}, r"which 'a' is not"),
        ({"a": torch.zeros(2, 2).to_sparse()}, r"which 'a' is not"),
    ],
)
@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
def test_files_that_hold_no_plain_state_dict_are_refused(content: object, message: str, tmp_path: Path) -> None:
    path = tmp_path / "other.pth"
    torch.save(content, path)
    with pytest.raises(DistillError, match=message):
        load(path)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    path = save_pth(tiny(model="test_resnet").state_dict(), tmp_path)
    with pytest.raises(DistillError, match=r"has no classifier\.weight, the classifier of test_efficientnet"):
        load(path)


def without(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in state.items() if key != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: without(s, "conv_stem.weight"), r"lacks 1 of \d+ tensors \(conv_stem\.weight, \.\.\.\)"),
        (lambda s: {**s, "neck.weight": torch.zeros(2)}, r"has 1 foreign ones \(neck\.weight"),
        (lambda s: {**s, 3: torch.zeros(2)}, r"has 1 foreign ones \(3"),
        (lambda s: {**s, "bn1.weight": torch.zeros(2)}, r"bn1\.weight has shape \(2,\) instead of"),
        (lambda s: {**s, "classifier.weight": torch.tensor(1.0)}, r"has no classifier\.weight"),
        (lambda s: {**s, "bn1.weight": s["bn1.weight"] / 0}, r"not finite in bn1\.weight"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]], message: str, tmp_path: Path
) -> None:
    path = save_pth(change(dict(tiny().state_dict())), tmp_path)
    with pytest.raises(DistillError, match=message) as refusal:
        load(path)
    assert "\n" not in str(refusal.value)


def test_missing_files_and_unknown_kinds_are_refused(tmp_path: Path) -> None:
    (tmp_path / "folder.pth").mkdir()
    for name in ("nowhere.pth", "nowhere.safetensors", "folder.pth", "nul\0l.pth"):
        with pytest.raises(DistillError, match=r"must be a file, and there is none; check the path"):
            load(tmp_path / name)
    for name in ("teacher.pt", "teacher.ckpt", "teacher", ""):
        with pytest.raises(DistillError, match=r"must end in \.safetensors or \.pth"):
            load(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:resnet81", r"'timm:resnet81'.*no network of timm .*did you mean .*resnet.*list_models\(\) lists them"),
        ("timm:", r"names no network of timm"),
        ("timm:hf-hub:someone/model", r"names no network of timm"),
        ("timm:local-dir:folder", r"names no network of timm"),
        ("timm:test_resnet.nope", r"names weights that timm .* lacks; .*test_resnet\.r160_in1k"),
        ("resnet18", r"must start with timm:; write timm:resnet18"),
        ("", r"must start with timm:"),
    ],
)
@pytest.mark.usefixtures("no_building")
def test_unknown_names_are_refused_before_anything_is_built(name: str, message: str) -> None:
    for file in (None, TeacherFile(Path("nowhere.pth"), ours())):
        with pytest.raises(DistillError, match=message):
            external_teacher(name, classes=10, images=ours(), file=file)


@pytest.mark.parametrize(
    ("model", "classes", "channels", "message"),
    [
        ("resnet18", 10, 3, r"trained by timm on 1000 classes and the data has 10; give a checkpoint"),
        ("vit_base_patch16_224.augreg_in21k", 1000, 3, r"trained by timm on 21843 classes"),
        ("resnet18", 1000, 4, r"trained by timm on 3 channels and the images have 4; give a checkpoint"),
        ("mobilenetv3_large_075", 1000, 3, r"has no pretrained weights in timm; give a checkpoint"),
    ],
)
@pytest.mark.usefixtures("no_building")
def test_timms_weights_that_do_not_fit_are_refused_before_any_download(
    model: str, classes: int, channels: int, message: str
) -> None:
    with pytest.raises(DistillError, match=message):
        external_teacher(f"timm:{model}", classes=classes, images=ours(channels), file=None)


def serve(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    """Let timm find its pretrained weights in this file instead of on its hub."""
    create = timm.create_model

    def from_disk(name: str, *, pretrained: bool, **options: Any) -> nn.Module:
        return create(name, pretrained=pretrained, pretrained_cfg_overlay={"file": str(path)}, **options)

    monkeypatch.setattr(timm, "create_model", from_disk)


@pytest.mark.parametrize("channels", [3, 1])
def test_timms_own_weights_get_images_as_they_were_trained_on(
    channels: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = tiny(classes=1000)
    serve(monkeypatch, save_safetensors(original.state_dict(), tmp_path))
    before = torch.get_rng_state()
    teacher = external_teacher(f"timm:{TINY}", classes=1000, images=ours(channels), file=None)
    pixels = torch.rand(2, channels, 48, 48, generator=torch.Generator().manual_seed(1))
    about = timm.get_pretrained_cfg(TINY)
    assert about is not None
    own = Normalisation(tuple(about.mean), tuple(about.std))
    expected = original(normalised(pixels.expand(2, 3, 48, 48), own))
    torch.testing.assert_close(teacher(normalised(pixels, ours(channels))), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not teacher.training


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda names: names, None),
        (lambda names: [f"class {number}" for number in range(1000)], None),
        (lambda names: names[::-1], r"class 0 of the data is '(n\d+)', and its own is (?!'\1')'n\d+'"),
        (lambda names: [*names[:998], names[999], names[998]], r"class 998 of the data"),
        (lambda names: [f"n{number:08}" for number in range(1000)], r"class 0 of the data is 'n00000000'"),
    ],
)
def test_classes_in_another_order_than_timms_are_refused(
    change: Callable[[list[str]], list[str]], message: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(monkeypatch, save_safetensors(tiny(classes=1000).state_dict(), tmp_path))
    classes = change(list(ImageNetInfo().label_names()))
    if message is None:
        external_teacher(f"timm:{TINY}", classes=classes, images=ours(), file=None)
        return
    with pytest.raises(DistillError, match=message):
        external_teacher(f"timm:{TINY}", classes=classes, images=ours(), file=None)


@pytest.mark.parametrize("error", [OSError("no route\nto host"), RuntimeError("invalid hash"), ValueError()])
def test_a_failing_download_names_the_next_step(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> NoReturn:
        raise error

    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(DistillError, match=r"could not load its weights .*or give a checkpoint file") as refusal:
        external_teacher(f"timm:{TINY}", classes=1000, images=ours(), file=None)
    assert refusal.value.__cause__ is error
    assert "\n" not in str(refusal.value)
