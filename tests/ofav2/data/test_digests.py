"""Images are the same if names and bytes are; times only decide whether bytes are read again."""

import hashlib
import io
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ofav2 import data, files
from ofav2.config.schema import DataConfig
from ofav2.data import digests, turns
from ofav2.data.cache import CheckedImages
from ofav2.data.digests import UnreadableError, content_digests
from ofav2.data.images import file_images
from ofav2.errors import UserError
from tests.notes import Notes
from tests.ofav2.changes import flip_a_bit


@pytest.fixture
def config(tmp_path: Path, classes: Callable[..., None]) -> DataConfig:
    """Two classes of ten images, kept in a cache."""
    classes(tmp_path / "images", {"cat": 10, "dog": 10}, ".png")
    return DataConfig("imagefolder", str(tmp_path / "images"), cache=str(tmp_path / "cache"), batch_size=4)


def streamed(config: DataConfig) -> DataConfig:
    return replace(config, cache=None)


def set_times(folder: Path, nanoseconds: int) -> None:
    for path in folder.rglob("*.png"):
        os.utime(path, ns=(nanoseconds, nanoseconds))


def mirror(path: Path) -> None:
    """Replace an image by another one of equal size and times."""
    times, size = path.stat(), path.stat().st_size
    other = next(one for one in path.parent.parent.rglob("*.png") if one.stat().st_size == size and one != path)
    content = other.read_bytes()
    assert content != path.read_bytes()
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def memory(config: DataConfig) -> Path:
    assert config.cache is not None
    (found,) = Path(config.cache).glob(".*.digests")
    return found


def test_a_copy_is_the_same_data_whatever_its_times(config: DataConfig, tmp_path: Path) -> None:
    opened = data.open_data(config)
    copied = shutil.copytree(tmp_path / "images", tmp_path / "copy", copy_function=shutil.copyfile)
    set_times(Path(copied), 10**18)
    for other in (config, streamed(config)):
        assert data.open_data(replace(other, root=str(copied))).fingerprint == opened.fingerprint
    assert len([path for path in Path(str(config.cache)).iterdir() if path.is_dir()]) == 1, "and needs no decoding"


def test_the_identity_is_that_of_files_that_are_read(config: DataConfig) -> None:
    for opened in (data.open_data(config), data.open_data(streamed(config))):
        for split in (opened.train, opened.val, opened.test):
            assert isinstance(split.images, CheckedImages)
            assert split.images.identity() == split.images.files.identity()


def test_equal_names_sizes_and_times_are_not_enough(config: DataConfig, tmp_path: Path) -> None:
    shutil.copytree(tmp_path / "images", tmp_path / "other")
    mirror(tmp_path / "other" / "cat" / "003.png")
    for folder in ("images", "other"):
        set_times(tmp_path / folder, 0)
    other = replace(config, root=str(tmp_path / "other"))
    first, second = data.open_data(config), data.open_data(other)
    assert first.fingerprint != second.fingerprint
    for opened, folder in ((first, "images"), (second, "other")):
        files = file_images(tmp_path / folder, ["cat/003.png"])
        found = [
            split.image(split.images.names().index("cat/003.png"))  # type: ignore[union-attr]
            for split in (opened.train, opened.val, opened.test)
            if "cat/003.png" in (split.images.names() or [])
        ]
        assert torch.equal(found[0], files.read(0)), "each sees its own pixels"


def test_other_content_in_place_is_noticed_though_size_and_time_are_the_same(
    config: DataConfig, tmp_path: Path
) -> None:
    before = data.open_data(config).fingerprint
    mirror(tmp_path / "images" / "cat" / "003.png")
    after = data.open_data(config)
    assert after.fingerprint != before
    assert after.fingerprint == data.open_data(streamed(config)).fingerprint


def test_bytes_are_read_again_only_where_the_system_reports_a_change(
    config: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = data.open_data(config)
    read: list[str] = []
    file_content = digests.file_content

    def noted(path: Path, size: int) -> bytes:
        read.append(path.name)
        return file_content(path, size)

    monkeypatch.setattr(digests, "file_content", noted)
    monkeypatch.setattr(digests, "SAMPLE", 0)
    assert data.open_data(config).fingerprint == before.fingerprint
    assert read == []
    os.utime(tmp_path / "images" / "dog" / "004.png")
    assert data.open_data(config).fingerprint == before.fingerprint
    assert read == ["004.png"]


def test_a_file_system_without_times_is_found_out_by_a_sample(
    config: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, notes: Notes
) -> None:
    listing = digests._listing

    def timeless(*given: object) -> digests.Listing:
        found = listing(*given)  # type: ignore[arg-type]
        return found._replace(stamps=found.stamps * [1, 0, 0, 0])

    monkeypatch.setattr(digests, "_listing", timeless)
    before = data.open_data(config).fingerprint
    mirror(tmp_path / "images" / "cat" / "003.png")
    after = data.open_data(config).fingerprint
    assert f"image {tmp_path / 'images/cat/003.png'}: has other content than before" in notes()
    assert after == data.open_data(streamed(config)).fingerprint != before


@pytest.mark.parametrize("position", [3, 40, -1])
def test_damaged_digests_are_said_and_not_used(config: DataConfig, position: int, notes: Notes) -> None:
    before = data.open_data(config).fingerprint
    flip_a_bit(memory(config), position)
    assert data.open_data(config).fingerprint == before
    assert f"cache {memory(config)}: is damaged" in notes()
    data.open_data(config)
    assert "damaged" not in notes()


@pytest.mark.parametrize(
    "columns", [{}, {"paths": np.zeros(0, "S1")}, {"stamps": np.zeros((20, 2), np.int64)}, {"digests": np.zeros(3)}]
)
def test_a_table_of_another_shape_is_said_and_not_used(
    config: DataConfig, columns: dict[str, np.ndarray], notes: Notes
) -> None:
    before = data.open_data(config).fingerprint
    content = memory(config).read_bytes()[32:]
    with np.load(io.BytesIO(content)) as kept:
        table = dict(kept) | columns if columns else {}
    archive = io.BytesIO()
    np.savez(archive, **table)  # type: ignore[arg-type]
    memory(config).write_bytes(hashlib.sha256(archive.getvalue()).digest() + archive.getvalue())
    assert data.open_data(config).fingerprint == before
    assert "is no table of digests; images are read again" in notes()


def test_many_files_in_many_trees_are_read_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trees = []
    for folder, count in (("train", 50), ("val", 1), ("test", 9)):
        (tmp_path / folder).mkdir()
        names = [f"{number:03d}" for number in range(count)]
        for name in names:
            (tmp_path / folder / name).write_bytes(f"{folder} {name}".encode())
        trees.append(file_images(tmp_path / folder, names))
    written = [path for tree in trees for path in map(tree.path, range(len(tree.paths)))]
    expected = [digests.digest_of(path.read_bytes()) for path in written]
    monkeypatch.setattr(digests, "CHUNK", 4)
    for cache in (None, tmp_path / "cache", tmp_path / "cache"):
        assert content_digests(trees, name="some", root=tmp_path, cache=cache).tolist() == expected
    known = content_digests(trees[:1], name="some", root=tmp_path, cache=tmp_path / "cache")
    assert known.tolist() == expected[:50]


# Trouble of the machine


@pytest.mark.parametrize("bad_images", ["refuse", "skip"])
def test_an_image_that_the_system_refuses_to_read_is_refused_and_not_remembered(
    bad_images: str, config: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(config, bad_images=bad_images)  # type: ignore[arg-type]
    read_bytes = files.read_bytes

    def refused(path: Path, most: int = files.MAX_BYTES) -> bytes:
        if path.name == "005.png":
            raise PermissionError(13, "Permission denied")
        return read_bytes(path, most)

    with monkeypatch.context() as patch:
        patch.setattr(files, "read_bytes", refused)
        with pytest.raises(UserError, match=r"image .*005\.png: cannot be read \(Permission denied\)"):
            data.open_data(config)
    opened = data.open_data(config)
    assert (opened.skipped, len(opened.train) + len(opened.val) + len(opened.test)) == ((), 20)


def test_trouble_that_begins_while_images_are_decoded_is_not_remembered(
    config: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: Path, size: int) -> bytes:
        raise UnreadableError(f"image {path}: cannot be read (Input/output error)")

    with monkeypatch.context() as patch:
        patch.setattr("ofav2.data.cache.file_content", refused)
        with pytest.raises(UserError, match=r"^image .*: cannot be read \(Input/output error\)"):
            data.open_data(replace(config, bad_images="skip"))
    assert data.open_data(replace(config, bad_images="skip")).skipped == ()


def test_a_file_that_is_being_written_is_refused(config: DataConfig, tmp_path: Path) -> None:
    tree = file_images(tmp_path / "images", ["cat/000.png"])
    with (tmp_path / "images" / "cat" / "000.png").open("ab") as file:
        file.write(b"more")
    with pytest.raises(UserError, match=r"cat/000\.png: had \d+ bytes when it was listed, and has \d+ now"):
        content_digests([tree], name="some", root=tmp_path / "images", cache=None)


def test_a_cache_that_cannot_be_written_leaves_digests_unremembered(
    config: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = file_images(tmp_path / "images", ["cat/000.png", "dog/001.png"])
    expected = content_digests([tree], name="some", root=tmp_path / "images", cache=None)
    monkeypatch.setattr(turns, "_lock_file", lambda cache, name: Path("/proc/self/no/lock"))
    found = content_digests([tree], name="some", root=tmp_path / "images", cache=tmp_path / "cache")
    assert np.array_equal(found, expected)
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize(("bound", "files_read"), [(35, 3), (10, 1), (3, 1), (10**6, 8)])
def test_known_files_are_read_again_up_to_a_bound_in_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bound: int, files_read: int
) -> None:
    names = [f"{number}.npy" for number in range(8)]
    for name in names:
        (tmp_path / name).write_bytes(name.encode() * 2)
    known = {"name": "some", "root": tmp_path, "cache": tmp_path / "cache"}
    expected = content_digests([file_images(tmp_path, names)], **known)  # type: ignore[arg-type]
    read: list[str] = []
    file_digest = digests._file_digest

    def noted(path: Path, size: int) -> int:
        read.append(path.name)
        return file_digest(path, size)

    monkeypatch.setattr(digests, "_file_digest", noted)
    monkeypatch.setattr(digests, "CHECKED", bound)
    found = content_digests([file_images(tmp_path, names)], **known)  # type: ignore[arg-type]
    assert np.array_equal(found, expected)
    assert len(read) == files_read
