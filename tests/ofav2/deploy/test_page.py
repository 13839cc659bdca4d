"""What docs/deploy.md and docs/earth_observation.md show of using files is what the project itself does."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ofav2
from ofav2.config import recipe
from ofav2.data.decoding import decode
from ofav2.data.views import evaluation_view, normalise
from tests.ofav2 import tiny
from tests.ofav2.tasks import dense

DOCS = Path(__file__).resolve().parents[3] / "docs"


def block(page: str, words: str) -> str:
    """The one Python block of a page that has these words."""
    blocks = re.findall(r"^```python\n(.*?)^```$", (DOCS / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    (found,) = (text for text in blocks if words in text)
    return found


@pytest.mark.parametrize(
    ("size", "upright", "shrink_to"),
    [((60, 48), True, 0), ((41, 97), True, 0), ((16, 16), True, 0), ((60, 48), False, 0), ((60, 97), True, 32)],
)
def test_a_photo_is_prepared_without_torch_as_by_the_project(
    size: tuple[int, int],
    upright: bool,
    shrink_to: int,
    opened: ofav2.OpenedRun,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    subnet = opened.loaded.net.space.smallest()
    settings = ["data.exif_orientation=false"] * (not upright) + [f"data.shrink_to={shrink_to}"]
    changed = replace(opened, recipe=recipe.dump(recipe.parse(opened.recipe, "recipe", settings)))
    record = ofav2.extract(changed, subnet, tmp_path / "largest", formats=("onnx",))
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = 6
    coarse.save(tmp_path / "photo.jpg", quality=95, exif=exif)
    monkeypatch.chdir(tmp_path)
    found: dict[str, object] = {}
    exec(block("deploy.md", "ImageOps"), found)

    stored = decode((tmp_path / "photo.jpg").read_bytes(), upright, shrink_to)
    view = evaluation_view(stored, subnet.resolution, record.input.eval_crop)
    expected = normalise(view, record.input.mean, record.input.std)
    pixels = torch.from_numpy(found["pixels"]).movedim(-1, 0)  # type: ignore[arg-type]
    grey_levels = 255 * torch.tensor(record.input.std).view(-1, 1, 1)
    assert ((pixels - expected).abs() * grey_levels).max() <= 3
    assert ofav2.transform(tmp_path / "largest")(decode((tmp_path / "photo.jpg").read_bytes(), upright)).equal(expected)
    with torch.inference_mode():
        logits = ofav2.load_subnet(tmp_path / "largest")(pixels[None])[0]
    torch.testing.assert_close(torch.from_numpy(found["logits"])[0], logits, rtol=1e-4, atol=1e-4)  # type: ignore[arg-type]


def test_grey_of_16_bits_is_prepared_without_torch_as_by_the_project(
    opened: ofav2.OpenedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = ofav2.extract(opened, opened.loaded.net.space.smallest(), tmp_path / "largest", formats=("onnx",))
    coarse = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 6), dtype=np.uint8)).resize((60, 48))
    Image.fromarray(np.asarray(coarse).astype(np.uint16) * 256 + 7).save(tmp_path / "photo.jpg", "PNG")
    monkeypatch.chdir(tmp_path)
    found: dict[str, object] = {}
    exec(block("deploy.md", "ImageOps"), found)
    expected = ofav2.transform(tmp_path / "largest")(decode((tmp_path / "photo.jpg").read_bytes()))
    pixels = torch.from_numpy(found["pixels"]).movedim(-1, 0)  # type: ignore[arg-type]
    grey_levels = 255 * torch.tensor(record.input.std).view(-1, 1, 1)
    assert ((pixels - expected).abs() * grey_levels).max() <= 3


@pytest.mark.slow
def test_a_scene_becomes_a_map_as_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    patches = dense.write_patches(tmp_path / "patches")
    text = dense.recipe("segment", patches, "cover", phases=dense.ONE_PHASE)
    run = ofav2.train(tiny.written(tmp_path, text), run_dir=tmp_path / "run")
    opened = ofav2.open_run(run.folder)
    ofav2.extract(opened, opened.loaded.net.space.largest(), tmp_path / "water", formats=())
    monkeypatch.chdir(tmp_path)
    found: dict[str, object] = {}
    exec(block("earth_observation.md", "load_subnet"), found)
    side = opened.loaded.net.space.largest().resolution
    assert found["classes"].shape == (side, side)  # type: ignore[attr-defined]
