"""Scenes become patches, whole or not at all; what is left out is named and counted."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ofav2.config.schema import DataConfig
from ofav2.data import open_data
from ofav2.data.importing.places import cell_of
from ofav2.data.importing.rasters import BandFile, SceneError, coordinates, planes_of
from ofav2.data.importing.scenes import Content, Form, Imported, Scene, import_scenes
from ofav2.errors import UserError
from tests.ofav2.data.importing.scenes import described, noise, stored, tif


def scene(name: str, values: Any, *, mask: Any = None, place: str | None = None, **named: Any) -> Scene:
    """A scene of one file, and of one of masks."""
    facts = {key: named.pop(key) for key in ("split", "label", "product") if key in named}
    masks = (
        {}
        if mask is None
        else {"cover": BandFile(f"{name}_mask.tif", tif(mask, **{k: v for k, v in named.items() if k == "corner"}))}
    )
    content = Content([BandFile(f"{name}.tif", tif(values, **named))], masks)
    return Scene(name, lambda: content, place=place, **facts)


def broken(name: str) -> Scene:
    def read() -> Content:
        raise SceneError("unreadable file", f"{name}.tif can't be decoded (cut off)")

    return Scene(name, read)


def imported(out: Path, *scenes: Scene, **form: Any) -> Imported:
    return import_scenes(scenes, Form(**form), out)


def refusal(out: Path, *scenes: Scene, **form: Any) -> str:
    with pytest.raises(UserError) as raised:
        imported(out, *scenes, **form)
    assert not out.exists()
    assert list(out.parent.iterdir()) == []
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_a_scene_is_cut_into_squares_that_open_as_patches(tmp_path: Path) -> None:
    first, second = noise(2, 20, 28), noise(2, 16, 16, seed=1)
    masks = noise(20, 28, dtype="uint8", high=4), noise(16, 16, dtype="uint8", high=4)
    told = imported(
        tmp_path / "out",
        scene("north", first, mask=masks[0], place="a"),
        scene("south", second, mask=masks[1], place="b", corner=(500000.0, 1000.0)),
        scene("east", second + 1, mask=masks[1], place="c"),
        side=8,
        masks={"cover": "codes"},
    )
    assert (told.patches, told.scenes, told.places, told.side) == ({"train": 14}, 3, 3, (8, 8))
    squares = [first[:, top : top + 8, left : left + 8] for top in (0, 8) for left in (0, 8, 16)]
    np.testing.assert_array_equal(stored(tmp_path / "out")[:6], np.stack(squares).transpose(0, 2, 3, 1))
    np.testing.assert_array_equal(stored(tmp_path / "out", "patches_cover")[5, ..., 0], masks[0][8:16, 16:24])
    assert (tmp_path / "out" / "patches.txt").read_text().split() == ["a"] * 6 + ["b"] * 4 + ["c"] * 4
    rows = (tmp_path / "out" / "scenes.csv").read_text().splitlines()
    assert rows[2] == "patches.npy,6,4,south,b,,0"
    config = DataConfig(name="patches", root=str(tmp_path / "out"), resolutions=(8,), batch_size=2, eval_crop=1.0)
    data = open_data(replace(config, val_fraction=0.3, test_fraction=0.3))
    assert (data.bands, data.classes) == (("1", "2"), ("1", "2", "3"))
    assert len(data.train) + len(data.val) + len(data.test) == 14


def test_splits_classes_and_directions_are_written(tmp_path: Path) -> None:
    told = imported(
        tmp_path / "out",
        scene("a", noise(1, 8, 8), split="train", label="wood"),
        scene("b", noise(1, 8, 8), split="test", label="field", corner=(617300.0, 8000000.0)),
        scene("c", noise(1, 8, 8), split="train", label="field"),
        location=True,
    )
    assert (told.patches, told.places, told.targets) == (
        {"train": 2, "test": 1},
        2,
        {"location": "numbers", "class": "classes"},
    )
    assert stored(tmp_path / "out", "train_class").tolist() == [1, 0]
    assert described(tmp_path / "out")["targets"]["class"] == {"kind": "classes", "names": ["field", "wood"]}
    where = stored(tmp_path / "out", "train_location")
    np.testing.assert_allclose(np.linalg.norm(where, axis=1), 1, rtol=1e-6)
    assert np.degrees(np.arcsin(where[0, 2])) == pytest.approx(-3.3914, abs=1e-3)
    assert (tmp_path / "out" / "train.txt").read_text() == "38D_378R\n38D_378R\n"


def test_masks_of_numbers_keep_their_bands_and_nodata(tmp_path: Path) -> None:
    mask = BandFile("m.tif", tif(noise(2, 8, 8, dtype="float32"), nodata=-1, names=("mean", "top")))
    content = Content([BandFile("a.tif", tif(noise(1, 8, 8)))], {"height": mask})
    imported(tmp_path / "out", Scene("a", lambda: content, place="x"), masks={"height": "numbers"})
    expected = {"kind": "numbers", "names": ["mean", "top"], "nodata": -1}
    assert described(tmp_path / "out")["targets"]["height"] == expected


def test_the_scale_that_masks_state_is_that_of_the_target(tmp_path: Path) -> None:
    stored_heights = noise(8, 8, dtype="int16", high=5000)
    mask = BandFile("m.tif", tif(stored_heights, unit=(0.1, 100.0)))
    content = Content([BandFile("a.tif", tif(noise(1, 8, 8)))], {"height": mask})
    scenes = [Scene(place, lambda: content, place=place) for place in ("w", "x", "y", "z")]
    imported(tmp_path / "out", *scenes, masks={"height": "numbers"})
    config = DataConfig(name="patches", root=str(tmp_path / "out"), resolutions=(8,), batch_size=2, eval_crop=1.0)
    images = open_data(replace(config, val_fraction=0.3, test_fraction=0.3)).train.images
    np.testing.assert_allclose(images.labels(0)[..., 0], stored_heights * 0.1 + 100, rtol=1e-6)  # type: ignore[union-attr]
    (tmp_path / "more").mkdir()
    other = Content(content.bands, {"height": BandFile("n.tif", tif(stored_heights, unit=(0.2, 100.0)))})
    says = "mask n.tif states another scale than the first one; apply them (gdal_translate -unscale)"
    both = (scenes[0], Scene("b", lambda: other, place="y"))
    assert says in refusal(tmp_path / "more" / "out", *both, masks={"height": "numbers"})


def test_the_scale_that_bands_state_is_recorded(tmp_path: Path) -> None:
    imported(tmp_path / "out", scene("a", noise(1, 8, 8), place="x", unit=(0.0001, 0.0)))
    assert "files state scale 0.0001 and offset 0, which is not applied" in described(tmp_path / "out")["about"]


def test_scenes_that_share_ground_in_different_places_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Scenes of 640 m: in different cells, side by side, half on each other, and with less than a hundredth."""

    def warned(out: str, *lefts: float) -> str:
        caplog.clear()
        imported(tmp_path / out, *(scene(f"{x:g}", noise(1, 64, 64), corner=(x, 9625100.0)) for x in lefts))
        return "\n".join(caplog.messages)

    edge = next(x for x in range(617300, 640000, 10) if cells(x) != cells(x + 320))
    assert warned("near", edge, edge + 640) == ""
    assert warned("seam", edge, edge + 635) == ""
    assert warned("one", 617300, 617310) == ""
    assert f'scenes "{edge}" and "{edge + 320}" overlap and lie in different cells (pairs: 1)' in warned(
        "half", edge, edge + 320, 500000
    )


def cells(left: float) -> set[str]:
    """The cell of a scene of 640 m."""
    planes = planes_of([BandFile("a.tif", tif(noise(1, 64, 64), corner=(left, 9625100.0)))])
    return {cell_of(*point) for point in coordinates(planes.grid, [32], [32]).tolist()}


def test_nodata_of_masks_is_no_class_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def with_mask(values: Any) -> Scene:
        content = Content([BandFile("a.tif", tif(noise(1, 8, 8)))], {"cover": BandFile("m.tif", tif(values, nodata=0))})
        return Scene("a", lambda: content, place="x")

    caplog.set_level("INFO")
    codes = (np.arange(64, dtype=np.int32) % 3).reshape(8, 8)
    imported(tmp_path / "out", with_mask(codes), masks={"cover": "codes"})
    assert described(tmp_path / "out")["targets"]["cover"]["codes"] == [1, 2]
    assert "codes of cover: 0 is the masks' nodata, so 22 pixels of it are no class and are ignored" in caplog.text
    (tmp_path / "more").mkdir()
    message = refusal(tmp_path / "more" / "out", with_mask(codes % 2), masks={"cover": "codes"})
    assert "masks have 1 different ones" in message
    assert "0 is their nodata and no class; if it is one, unset it (gdal_edit.py -unsetnodata)" in message


def test_names_of_codes_stand_whether_masks_have_them_or_not(tmp_path: Path) -> None:
    mask = np.full((8, 8), 2, np.uint8)
    form = {"masks": {"cover": "codes"}, "names": {"cover": {0: "clear", 2: "cloud"}}}
    imported(tmp_path / "out", scene("a", noise(1, 8, 8), mask=mask, place="x"), **form)
    expected = {"kind": "codes", "names": ["clear", "cloud"], "codes": [0, 2]}
    assert described(tmp_path / "out")["targets"]["cover"] == expected


def test_an_offset_is_recorded(tmp_path: Path) -> None:
    products = ("S2A_MSIL2A_20200101T0_N0209_R1", "S2A_MSIL2A_20230101T0_N0509_R1")
    scenes = [scene(p, 2000 + noise(1, 8, 8), place="x", product=p) for p in products]
    imported(tmp_path / "out", *scenes, offset="product_id")
    found = stored(tmp_path / "out").astype(int)
    np.testing.assert_array_equal(found[0], found[1] + 1000)
    said = described(tmp_path / "out")["about"]
    assert said.endswith("by product_id: 0 subtracted from 1 scenes, 1000 subtracted from 1 scenes")
    imported(tmp_path / "same", *scenes)
    assert described(tmp_path / "same")["about"].endswith("numbers as they are stored, no offset subtracted")
    np.testing.assert_array_equal(*stored(tmp_path / "same"))


def test_squares_without_any_data_are_left_out_and_counted(tmp_path: Path) -> None:
    values = noise(2, 8, 16)
    values[0, :, 8:] = 0
    values[0, 3, 3] = 0
    told = imported(tmp_path / "out", scene("a", values, nodata=0, place="x"), side=8)
    assert (told.patches, told.blank) == ({"train": 1}, 1)
    np.testing.assert_array_equal(stored(tmp_path / "out")[0], values[:, :, :8].transpose(1, 2, 0))


GOOD = scene("good", noise(2, 8, 8), mask=noise(8, 8, dtype="uint8", high=4), place="x")
BAD: tuple[tuple[Callable[[], Scene], str, str], ...] = (
    (lambda: broken("bad"), "unreadable file", "bad.tif can't be decoded (cut off)"),
    (
        lambda: scene("bad", noise(2, 8, 8) * np.array([[[1]], [[0]]], np.uint16), place="x"),
        "empty band",
        "band 2 holds nothing but 0",
    ),
    (lambda: scene("bad", noise(1, 8, 8), place="x"), "missing band", "band 2 is missing of 1"),
    (lambda: scene("bad", noise(2, 8, 8), place="x"), "missing mask", "has no mask of cover"),
    (
        lambda: scene("bad", noise(2, 9, 8), mask=noise(9, 8), place="x"),
        "other size",
        "has 9 x 8 pixels, and the first",
    ),
    (
        lambda: scene("bad", noise(2, 8, 8, dtype="int16"), place="x"),
        "other type",
        "has int16, and the first one uint16",
    ),
    (
        lambda: scene("bad", noise(2, 8, 8), mask=noise(8, 8, dtype="uint8"), place="x", unit=(0.5, 0.0)),
        "other scale",
        "states scale 0.5 and offset 0 of band 1, and the first one 1 and 0; apply them (gdal_translate -unscale)",
    ),
    (
        lambda: scene("bad", noise(2, 8, 8), mask=noise(8, 8, dtype="uint8"), place="x", pixel=20),
        "other pixel size",
        "has pixels of about 20 m, and the first one of 10 m; bring all to one size (gdalwarp -tr)",
    ),
    (
        lambda: scene("bad", noise(2, 8, 8), nodata=9, place="x"),
        "other nodata",
        "states nodata 9.0, and the first one None",
    ),
    (
        lambda: scene("bad", noise(2, 8, 8), mask=noise(8, 9, dtype="uint8"), place="x"),
        "other mask",
        "mask bad_mask.tif has 8 x 9 pixels, not 8 x 8",
    ),
    (
        lambda: scene("bad", noise(2, 8, 8), mask=noise(8, 8, dtype="float32"), place="x"),
        "other mask",
        "mask bad_mask.tif has 1 bands of float32; codes are one band of whole numbers",
    ),
    (
        lambda: scene("bad", noise(2, 8, 8), mask=noise(8, 8), place="x"),
        "other mask",
        "has other bands, another type or nodata than the first one",
    ),
    (
        lambda: scene("bad", noise(2, 8, 8), mask=noise(8, 8, dtype="uint8"), crs=None),
        "unknown place",
        "does not say where on Earth it lies; name places by file or folder",
    ),
)


@pytest.mark.parametrize(("make", "fault", "says"), BAD)
def test_a_scene_that_does_not_fit_is_refused_or_left_out(
    tmp_path: Path, make: Callable[[], Scene], fault: str, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    masks = {"cover": "codes"}
    message = refusal(tmp_path / "out", GOOD, make(), masks=masks)
    assert says in message
    assert message.endswith("correct it, or leave such scenes out with --broken skip")
    imported(tmp_path / "alone", GOOD, masks=masks)
    caplog.clear()
    told = imported(tmp_path / "out", GOOD, make(), replace(GOOD, name="last"), masks=masks, broken="skip")
    assert (told.left_out, told.scenes) == ({fault: 1}, 2)
    assert any(says in line and line.endswith("left out") for line in caplog.messages)
    assert says in (tmp_path / "out" / "left_out.csv").read_text()
    for name in ("patches", "patches_cover"):
        # A scene that is left out leaves nothing.
        np.testing.assert_array_equal(stored(tmp_path / "out", name)[:1], stored(tmp_path / "alone", name))
        assert len(stored(tmp_path / "out", name)) == 2


def test_what_leaves_nothing_is_refused(tmp_path: Path) -> None:
    bad = [broken("one"), scene("two", 0 * noise(1, 8, 8), place="x")]
    assert refusal(tmp_path / "out", *bad, broken="skip").startswith(
        "scenes: none can be used (empty band 1, unreadable file 1)"
    )
    assert "nothing to import" in refusal(tmp_path / "out")
    apart = noise(2, 8, 8)
    apart[0, :4], apart[1, 4:] = 0, 0
    assert "none can be used (no pixel has data)" in refusal(tmp_path / "out", scene("a", apart, nodata=0, place="x"))


def test_a_scene_without_any_data_in_all_bands_leaves_no_file_of_its_split(tmp_path: Path) -> None:
    apart = noise(2, 8, 8)
    apart[0, :4], apart[1, 4:] = 0, 0
    told = imported(
        tmp_path / "out",
        scene("a", noise(2, 8, 8), nodata=0, place="x", split="train"),
        scene("b", apart, nodata=0, place="y", split="val"),
    )
    assert (told.patches, told.scenes, told.blank) == ({"train": 1}, 2, 1)
    assert not list((tmp_path / "out").glob("val*"))


def test_targets_that_are_none_are_refused(tmp_path: Path) -> None:
    masks = {"cover": "codes"}
    one = scene("a", noise(1, 8, 8), mask=np.ones((8, 8), np.uint8), place="x")
    assert "codes of cover: masks have 1 different ones" in refusal(tmp_path / "out", one, masks=masks)
    many = scene("a", noise(1, 32, 32), mask=np.arange(1024, dtype=np.uint16).reshape(32, 32), place="x")
    assert "masks have 1024 different ones" in refusal(tmp_path / "out", many, masks=masks)
    assert "target location: is the name of" in refusal(tmp_path / "out", one, masks={"location": "codes"})
    nowhere = scene("a", noise(1, 8, 8), place="x", crs=None)
    assert "does not say where on Earth it lies" in refusal(tmp_path / "out", nowhere, location=True)
    labelled = scene("a", noise(1, 8, 8), place="x", label="wood")
    assert 'all scenes are of class "wood"' in refusal(tmp_path / "out", labelled)


def test_a_side_keeps_coarse_pixels_whole(tmp_path: Path) -> None:
    content = Content(
        [BandFile("a", tif(noise(12, 12)), ("a",)), BandFile("b", tif(noise(6, 6), pixel=20), ("b",))], {}
    )
    mixed = Scene("mixed", lambda: content, place="x")
    assert refusal(tmp_path / "out", mixed, side=5).startswith("side (5): the coarsest band has pixels of 2 on a side")
    assert "has 12 x 12 pixels, less than a patch of 14" in refusal(tmp_path / "out", mixed, side=14)


def test_a_target_whose_mask_hides_pixels_is_refused(tmp_path: Path) -> None:
    there = np.arange(64).reshape(8, 8) >= 8
    mask = BandFile("m.tif", tif(noise(1, 8, 8, dtype="float32"), mask=there))
    content = Content([BandFile("a.tif", tif(noise(1, 8, 8)))], {"height": mask})
    whole = Scene("a", lambda: content, place="x")
    assert "of m.tif hides 8 pixels" in refusal(tmp_path / "out", whole, masks={"height": "numbers"})


def test_more_bands_than_the_first_scene_has_are_refused_unless_bands_are_named(tmp_path: Path) -> None:
    first, more = (scene(str(count), noise(count, 8, 8), place="x") for count in (2, 3))
    message = refusal(tmp_path / "out", first, more)
    assert 'scene "3": has band 3, and the first scene only 1, 2; say which to take with --bands' in message
    told = imported(tmp_path / "skipped", first, more, broken="skip")
    assert (told.scenes, told.left_out) == (1, {"other bands": 1})
    assert imported(tmp_path / "named", first, more, bands=("1", "2")).scenes == 2
    names = [scene(str(n), noise(2, 8, 8, seed=n), place="x", names=("a", "b")[:: 1 - 2 * n]) for n in (0, 1)]
    assert imported(tmp_path / "order", *names).bands == ("a", "b")
    np.testing.assert_array_equal(stored(tmp_path / "order")[1, ..., 0], noise(2, 8, 8, seed=1)[1])


@pytest.mark.parametrize(
    ("nodata", "written"), [(float(np.finfo(np.float32).min),) * 2, (-9999.0, -9999), (float("nan"), None)]
)
def test_nodata_of_floats_is_written_as_it_is_read(tmp_path: Path, nodata: float, written: float | None) -> None:
    values = noise(2, 8, 8, dtype="float32")
    values[:, :2] = nodata
    scenes = [scene(place, values, place=place) for place in "abc"]
    imported(tmp_path / "out", *scenes, nodata=nodata)
    found = described(tmp_path / "out")["nodata"]
    assert (found, type(found)) == (written, type(written))
    config = DataConfig("patches", str(tmp_path / "out"), resolutions=(8,), batch_size=2, eval_crop=1.0)
    data = open_data(config)
    assert data.nodata == written
    assert max(data.mean) < 4000
    assert min(data.mean) > 0
