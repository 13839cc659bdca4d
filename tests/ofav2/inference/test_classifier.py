"""Image files are classified as the network was evaluated."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.io import ImageReadMode, decode_image, write_png
from torchvision.transforms import v2

import ofav2
from ofav2.deploy.artifact import write_subnet_record
from ofav2.errors import UserError
from ofav2.exits.early import ExitPolicy
from ofav2.inference.classifier import BATCH, classify_files, image_files

SIZES = ((20, 31), (64, 40), (9, 9))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of several sizes, in a folder and below it."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for number, (height, width) in enumerate(SIZES):
        file = folder / ("deep/er" if number else "") / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        write_png(torch.from_numpy(rng.integers(0, 256, (3, height, width), np.uint8)), str(file))
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture(scope="module")
def several(opened: ofav2.OpenedRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network with all exits."""
    path = tmp_path_factory.mktemp("several") / "net"
    ofav2.extract(opened, opened.loaded.net.space.largest(), path, exits="all", formats=())
    return path


def reference(folder: Path, file: Path) -> torch.Tensor:
    """Prepare a file by torchvision's own transforms, and run the network."""
    record = ofav2.describe_subnet(folder)
    side = record.input.resolution
    view = v2.Compose(
        [
            v2.Resize(int(np.ceil(side / record.input.eval_crop)), antialias=True),
            v2.CenterCrop(side),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(record.input.mean, record.input.std),
        ]
    )
    with torch.inference_mode():
        logits: torch.Tensor = ofav2.load_subnet(folder)(view(decode_image(str(file), ImageReadMode.RGB))[None])
    return logits[0]


def test_files_are_prepared_and_classified_as_torchvision_would(extracted: Path, photos: Path) -> None:
    record, files = ofav2.describe_subnet(extracted), image_files([str(photos)])
    found = ofav2.load_classifier(extracted)([*files], top=3)
    for file, own in zip(files, found, strict=True):
        probabilities, indices = reference(extracted, file).softmax(0).topk(3)
        assert own.classes == tuple(record.classes[index] for index in indices.tolist())
        assert own.probabilities == pytest.approx(probabilities.tolist(), rel=1e-4)
        assert own.exit == record.subnet.height


def test_tensors_are_taken_as_files_are(extracted: Path, photos: Path) -> None:
    classifier, files = ofav2.load_classifier(extracted), image_files([str(photos)])
    images = [decode_image(str(file), ImageReadMode.RGB) for file in files]
    assert classifier(images) == classifier(files)
    assert torch.equal(ofav2.transform(extracted)(images[0]), classifier.prepare(files[0]))


@pytest.mark.parametrize(
    "image",
    [
        torch.rand(3, 20, 20),
        torch.zeros(20, 20, 3, dtype=torch.uint8),
        torch.zeros(4, 20, 20, dtype=torch.uint8),
        torch.zeros(1, 20, 20, dtype=torch.uint8),
        torch.zeros(1, 3, 20, 20, dtype=torch.uint8),
        torch.zeros(3, 0, 20, dtype=torch.uint8),
        torch.zeros(3, 20, 20, dtype=torch.int64),
    ],
    ids=lambda image: f"{image.dtype} {tuple(image.shape)}",
)
def test_other_tensors_are_refused(image: torch.Tensor, extracted: Path) -> None:
    for prepare in (ofav2.transform(extracted), lambda one: ofav2.load_classifier(extracted)([one])):
        with pytest.raises(UserError, match=r"image \(torch\..*, shape \(.*\)\) must be a uint8 tensor \(3, H, W\)"):
            prepare(image)


def test_of_fewer_classes_all_are_returned(extracted: Path, photos: Path) -> None:
    record = ofav2.describe_subnet(extracted)
    (found,) = ofav2.load_classifier(extracted)([photos / "0.png"], top=1000)
    assert sorted(found.classes) == sorted(record.classes)
    assert sum(found.probabilities) == pytest.approx(1)


def test_without_a_policy_the_last_exit_answers(several: Path, photos: Path) -> None:
    last = ofav2.describe_subnet(several).exit_indices[-1]
    assert {found.exit for found in ofav2.load_classifier(several)(image_files([str(photos)]))} == {last}


def test_with_a_policy_images_exit_early(several: Path, photos: Path) -> None:
    eager = dataclasses.replace(ofav2.load_classifier(several), policy=ExitPolicy(0.0))
    first = ofav2.describe_subnet(several).exit_indices[0]
    assert {found.exit for found in eager(image_files([str(photos)]))} == {first}


def test_a_file_that_is_no_image_does_not_stop_the_others(extracted: Path, photos: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    good = [photos / "0.png"] * (BATCH + 1)
    paths = [bad, *good, bad]
    found = [result for _, result in classify_files(ofav2.load_classifier(extracted), paths, 1)]
    assert [isinstance(result, UserError) for result in found] == [True, *[False] * len(good), True]
    answers = [result for result in found if not isinstance(result, UserError)]
    (alone,) = ofav2.load_classifier(extracted)([photos / "0.png"], top=1)
    assert {answer.classes for answer in answers} == {alone.classes}
    assert [answer.probabilities[0] for answer in answers] == pytest.approx([alone.probabilities[0]] * len(good))
    with pytest.raises(UserError, match=r"bad\.png"):
        ofav2.load_classifier(extracted)([bad])


@pytest.mark.parametrize(("upright", "shrink_to"), [(True, 0), (False, 0), (True, 16)])
def test_photos_are_turned_and_shrunk_as_in_training(
    extracted: Path, upright: bool, shrink_to: int, tmp_path: Path
) -> None:
    record, other = ofav2.describe_subnet(extracted), Path(shutil.copytree(extracted, tmp_path / "other"))
    given = dataclasses.replace(record.input, exif_orientation=upright, shrink_to=shrink_to)
    write_subnet_record(other, dataclasses.replace(record, input=given))
    pixels = np.random.default_rng(0).integers(0, 256, (40, 20, 3), np.uint8)
    turned = Image.Exif()
    turned[0x0112] = 6  # Turn by 90 degrees to see it upright.
    Image.fromarray(pixels).save(tmp_path / "photo.png", exif=turned)
    shown = np.rot90(pixels, -1) if upright else pixels
    classifier = ofav2.load_classifier(other)
    assert torch.equal(
        classifier.prepare(tmp_path / "photo.png"),
        classifier.transform(torch.from_numpy(shown.copy()).permute(2, 0, 1)),
    )
    assert ofav2.transform(other) == classifier.transform
    assert classifier.transform.input.shrink_to == shrink_to


def test_images_are_found_at_any_depth_in_order(photos: Path) -> None:
    assert [file.name for file in image_files([str(photos)])] == ["0.png", "1.png", "2.png"]
    assert image_files([str(photos / "0.png")]) == [photos / "0.png"]


@pytest.mark.parametrize(("path", "message"), [("none", "no such file"), ("", "no image in it")])
def test_paths_without_images_are_refused(path: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        image_files([str(tmp_path / path)])


def test_another_task_is_refused(extracted: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(extracted, tmp_path / "other"))
    write_subnet_record(other, dataclasses.replace(ofav2.describe_subnet(other), task="regression"))
    with pytest.raises(UserError, match="task regression"):
        ofav2.load_classifier(other)


def test_a_transform_asks_for_pictures(extracted: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(extracted, tmp_path / "patches"))
    record = ofav2.describe_subnet(extracted)
    write_subnet_record(folder, dataclasses.replace(record, input=dataclasses.replace(record.input, white=1.0)))
    for prepare in (ofav2.transform, ofav2.load_classifier):
        with pytest.raises(UserError, match="which image files don't have"):
            prepare(folder)
