"""`ofav2 patches`: what it says when images are imported, and when they can't be."""

import json
import shlex
import shutil
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ofav2.cli.main import main, parser
from ofav2.data.importing import majortom
from tests.ofav2.data.importing.scenes import noise, stored, tif, write

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    """Two scenes, with masks of classes."""
    for number in range(2):
        write(tmp_path / "in" / "images" / f"{number}.tif", tif(noise(2, 16, 16, seed=number), names=("red", "nir")))
        write(tmp_path / "in" / "masks" / f"{number}.tif", tif(noise(16, 16, dtype="uint8", high=4)))
    return tmp_path / "in"


def run_ok(capsys: Capture, *arguments: str) -> str:
    assert main(["patches", *arguments]) == 0
    out, err = capsys.readouterr()
    assert out.strip() == arguments[-1]
    for line in err.splitlines():
        if line.startswith("next: "):
            parser().parse_args(shlex.split(line.removeprefix("next: "))[1:])
    return err


def refusal(capsys: Capture, *arguments: str) -> str:
    capsys.readouterr()
    assert main(["patches", *arguments]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("ofav2: ")) == ("", 1)
    return err.splitlines()[-1]


def test_a_folder_is_imported_and_too_small_patches_are_said(scenes: Path, tmp_path: Path, capsys: Capture) -> None:
    given = ["tif", str(scenes / "images"), f"--codes=cover={scenes / 'masks'}", "--location", "--side=8"]
    err = run_ok(capsys, *given, "--out", str(tmp_path / "out"))
    assert "8 patches of 8 x 8 pixels and 2 bands (red, nir), from 2 scenes in 1 places" in err
    assert err.splitlines()[-1].endswith(
        "patches of 8 x 8 pixels don't fit the recipes for patches: import again with --side 64, or another even side"
        " of 32 or more"
    )


def test_what_is_next_fits_patches_that_are_not_square(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / "wide.tif", tif(noise(2, 64, 96, seed=0), names=("red", "nir")))
    err = run_ok(capsys, "tif", str(tmp_path / "in"), "--out", str(tmp_path / "out"))
    assert "data.resolutions=[32]" in err


@pytest.mark.parametrize(
    ("option", "plan"),
    [
        ([], ["eo_pretrain"]),
        (["--location"], ["eo_pretrain", "data.target=location"]),
        (["--numbers"], ["eo_regress", "data.target=a"]),
        (["--codes"], ["eo_segment", "data.target=a"]),
        (["--classes"], ["eo_segment", "task=classification", "data.target=class"]),
    ],
)
def test_what_is_next_can_be_planned(option: list[str], plan: list[str], tmp_path: Path, capsys: Capture) -> None:
    for number in range(4):
        corner = (617300.0 + 20000 * number, 9625100.0)
        where = f"{number % 2}/{number}.tif"
        write(tmp_path / "in" / where, tif(noise(2, 64, 64, seed=number), corner=corner))
        write(tmp_path / "masks" / where, tif(noise(64, 64, dtype="uint8", high=4), corner=corner))
    given = [f"{text}=a={tmp_path / 'masks'}" if text in ("--numbers", "--codes") else text for text in option]
    err = run_ok(capsys, "tif", str(tmp_path / "in"), *given, "--out", str(tmp_path / "out"))
    (told,) = [shlex.split(line)[3:] for line in err.splitlines() if line.startswith("next: ")]
    assert [text for text in told if not text.startswith("data.root=")] == plan
    assert (
        main(["plan", *told, "data.batch_size=2", "data.val_fraction=0.3", "data.test_fraction=0.3", "run.device=cpu"])
        == 0
    )


def test_broken_scenes_are_counted(scenes: Path, tmp_path: Path, capsys: Capture) -> None:
    write(scenes / "images" / "2.tif", tif(noise(2, 16, 16))[:300])
    out = ["--out", str(tmp_path / "out")]
    assert 'scene "2": ' in refusal(capsys, "tif", str(scenes / "images"), *out)
    err = run_ok(capsys, "tif", str(scenes / "images"), "--broken=skip", *out)
    assert "scenes left out: 1 (unreadable file 1); see left_out.csv there" in err
    assert len(stored(tmp_path / "out")) == 2


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--codes", "cover"], '--codes ("cover"): must be NAME=DIR'),
        (["--numbers", "a b=x"], '--numbers ("a b=x"): must be NAME=DIR'),
        (["--codes=a=x", "--numbers=a=y"], "a target is named twice"),
        (["--codes=a=x", "--codes=a=y"], "a target is named twice"),
        (["--codes", "cover=none"], "masks of cover (none): is no folder"),
        (["--bands", "red,,nir"], '--bands ("red,,nir"): must be different names'),
        (["--bands", "red,blue"], "band blue is missing of red, nir"),
        (["--band-names", "red"], "has 2 bands, and 1 are named"),
        (["--offset", "auto"], '--offset ("auto"): must be a whole number, or product_id'),
        (["--offset", "product_id"], "product 0 names no processing baseline"),
        (["--side", "17"], "has 16 x 16 pixels, less than a patch of 17"),
        (["--single-bands"], "has 2 bands, and 1 are named"),
        (["--classes"], "lies in no folder that names its class"),
    ],
)
def test_options_that_do_not_fit_are_refused(given: list[str], says: str, scenes: Path, capsys: Capture) -> None:
    out = scenes.parent / "out"
    assert says in refusal(capsys, "tif", str(scenes / "images"), *given, "--out", str(out))
    assert not out.exists()


def test_an_output_folder_that_is_taken_is_refused(scenes: Path, capsys: Capture) -> None:
    assert "is not empty" in refusal(capsys, "tif", str(scenes / "images"), "--out", str(scenes))


@pytest.mark.parametrize(("library", "form"), [("rasterio", "tif"), ("rasterio", "majortom"), ("pyarrow", "majortom")])
def test_a_missing_library_is_named_with_its_extra(
    library: str, form: str, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "in" / "a.tif", b"")
    write(tmp_path / "in" / "a.parquet", b"")
    # None in sys.modules is what Python says of a module that is not there.
    monkeypatch.setitem(sys.modules, library, None)
    says = refusal(capsys, form, str(tmp_path / "in"), "--out", str(tmp_path / "out"))
    assert says.startswith(f"ofav2: {library} (missing): reads ")
    assert says.endswith("install it with `pip install '.[eo]'`")


def test_phileo_bench_is_opened(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "np").mkdir()
    for split, count in (("train", 4), ("val", 2), ("test", 2)):
        tile = 2 if split == "test" else 1
        np.save(tmp_path / "np" / f"japan_{tile}_{split}_s2.npy", noise(count, 8, 8, 10))
        np.save(tmp_path / "np" / f"japan_{tile}_{split}_label_roads.npy", np.full((count, 8, 8, 1), 0.5, np.float32))
    given = ["phileo", str(tmp_path / "np"), "--target", "roads"]
    err = run_ok(capsys, *given, "--shots", "3", "--out", str(tmp_path / "out"))
    assert "3 train + 1 val + 2 test of 2 tiles, target roads, numbers from 0 to 1; files without its labels: 0" in err
    (tmp_path / "list.json").write_text(json.dumps({"japan": {}}))
    said = refusal(capsys, *given, "--list", str(tmp_path / "list.json"), "--out", str(tmp_path / "no"))
    assert "list.json): was made for None train patches of bucket japan, and there are 4" in said
    assert "no file REGION_TILE_train" in refusal(
        capsys, "phileo", str(tmp_path), "--target=lc", "--out", str(tmp_path / "n")
    )


def test_the_commands_of_the_docs_work(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each import of the page on small files, up to the plan that follows it."""
    text = (Path(__file__).parents[3] / "docs" / "earth_observation.md").read_text("utf-8")
    blocks = [block.split("```")[0] for block in text.split("```sh\n")[1:]]
    commands = [shlex.split(line)[1:] for block in blocks for line in block.splitlines() if line.startswith("ofav2 ")]
    imports = [(given, then) for given, then in pairwise(commands) if given[0] == "patches"]
    assert [given[1] for given, _ in imports] == ["tif", "majortom", "majortom", "phileo", "phileo"]
    monkeypatch.chdir(tmp_path)
    for number in range(4):
        corner = (617300.0 + 20000 * number, 9625100.0)
        write(tmp_path / "images" / f"{number}.tif", tif(noise(2, 128, 128, seed=number), corner=corner))
        write(tmp_path / "water" / f"{number}.tif", tif(noise(128, 128, dtype="uint8", high=4), corner=corner))
        write(tmp_path / "dem" / f"{number}.tif", tif(noise(128, 128, dtype="float32"), corner=corner))
        (tmp_path / "downstream_np").mkdir(exist_ok=True)
        for split in ("train", "val") if number else ("test",):
            stem = tmp_path / "downstream_np" / f"japan_{number}_{split}"
            np.save(f"{stem}_s2.npy", noise(20, 128, 128, 10))
            np.save(f"{stem}_label_roads.npy", np.random.default_rng(number).random((20, 128, 128, 1), np.float32))
    (tmp_path / "water").rename(tmp_path / "masks")
    band, mask = tif(noise(128, 128)), tif(noise(128, 128, dtype="uint8", high=4))
    samples = [
        {"grid_cell": f"38D_{number}R", "product_id": "S2A_MSIL2A_2022_N0400_R1", majortom.CLOUDS: mask}
        | dict.fromkeys(majortom.BANDS, band)
        for number in range(4)
    ]
    (tmp_path / "Core-S2L2A" / "images").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(samples), tmp_path / "Core-S2L2A" / "images" / "a.parquet", row_group_size=1)
    for given, then in imports[:4]:
        shutil.rmtree("patches", ignore_errors=True)
        # MajorTOM's samples have 1068 pixels, and these 128.
        assert main([*given, "--side=128"] if "--in-place" in given else given) == 0
        assert then[0] in ("plan", "train")
        small = ["data.batch_size=2", "data.val_fraction=0.3", "data.test_fraction=0.3", "run.device=cpu"]
        assert main(["plan", *then[1:], *small]) == 0
    capsys.readouterr()
