"""An output folder is made whole by one process, wherever it lies; what stands in the way is said before the work."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ofav2.errors import RunError, UserError
from ofav2.output_folder import LOCK, STAGING, check_free, check_writable, making

LAST = "subnet.json"
NOWHERE = Path("/proc/ofav2-out")
"""Where the system makes nothing, for root neither."""


def fill(folder: Path) -> None:
    (folder / LAST).write_text("last")
    (folder / "model").write_text("weights")
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "full").write_text("inside")


def everything(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def fill_and_fail(folder: Path) -> None:
    fill(folder)
    raise KeyError


WHOLE = ["checkpoints", "checkpoints/full", "model", LAST]


def test_a_new_folder_appears_whole_with_the_folders_above_it(tmp_path: Path) -> None:
    out = tmp_path / "a" / "b" / "out"
    with making(out, LAST) as staging:
        fill(staging)
        assert not out.exists()
    assert everything(out) == WHOLE
    assert everything(out.parent) == ["out", *(f"out/{name}" for name in WHOLE)]


@pytest.mark.parametrize("kind", ["folder", "link", "dot"])
def test_an_empty_folder_stays_the_same_and_is_filled(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mount, such as a container's, can't be replaced, and its parent may not be written to."""
    real = tmp_path / "real"
    real.mkdir()
    before = real.stat().st_ino
    out = real
    if kind == "link":
        out = tmp_path / "link"
        out.symlink_to(real)
    elif kind == "dot":
        monkeypatch.chdir(real)
        out = Path(".")
    with making(out, LAST) as staging:
        fill(staging)
        assert not (real / LAST).exists()
    assert everything(real) == WHOLE
    assert real.stat().st_ino == before
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted({"real", out.name or "real"})


def test_the_last_file_comes_last_into_a_folder_that_exists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[str] = []
    rename = Path.rename

    def note(self: Path, target: Path) -> Path:
        moved.append(self.name)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", note)
    with making(tmp_path, LAST) as staging:
        fill(staging)
    assert set(moved) == {"checkpoints", "model", LAST}
    assert moved[-1] == LAST


def test_a_folder_that_is_filled_in_part_is_emptied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = Path.rename

    def full(self: Path, target: Path) -> Path:
        if self.name == LAST:
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(UserError, match="No space left"), making(tmp_path, LAST) as staging:
        fill(staging)
    assert everything(tmp_path) == []


@pytest.mark.parametrize("exists", [True, False])
def test_a_body_that_fails_leaves_nothing(exists: bool, tmp_path: Path) -> None:
    out = tmp_path / "above" / "out"
    if exists:
        out.mkdir(parents=True)
    with pytest.raises(KeyError), making(out, LAST) as staging:
        fill_and_fail(staging)
    assert everything(tmp_path) == (["above", "above/out"] if exists else [])


def test_a_body_that_fails_on_what_it_reads_is_not_the_folders_fault(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="elsewhere"), making(tmp_path / "out", LAST):
        (tmp_path / "elsewhere").read_bytes()
    with pytest.raises(ConnectionError), making(tmp_path / "out", LAST):
        raise ConnectionResetError(104, "Connection reset by peer")
    assert everything(tmp_path) == []
    with pytest.raises(UserError, match="cannot be written"), making(tmp_path / "out", LAST) as staging:
        (staging / "no" / "folder").write_bytes(b"")


@pytest.mark.parametrize("exists", [True, False])
def test_a_second_process_is_refused_before_its_work_and_the_first_goes_on(exists: bool, tmp_path: Path) -> None:
    out = tmp_path / "out"
    if exists:
        out.mkdir()
    with making(out, LAST) as staging:
        fill(staging)
        with pytest.raises(UserError, match="is being made by another process: wait for it"), making(out, LAST):
            pytest.fail("it began its work")
        with making(tmp_path / "other", LAST) as others:
            fill(others)
        assert everything(staging) == WHOLE
    assert everything(out) == everything(tmp_path / "other") == WHOLE
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "out"]
    with pytest.raises(UserError, match="is not empty"), making(out, LAST):
        pytest.fail("it began its work")


@contextmanager
def killed_while_making(out: Path) -> Iterator[None]:
    """The body runs after another process was killed on its way."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        with making(out, LAST) as staging:
            fill(staging)
            os.write(writer, b"x")
            signal.pause()
    assert os.read(reader, 1) == b"x"
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(reader)
    os.close(writer)
    yield


@pytest.mark.parametrize("exists", [True, False])
@pytest.mark.parametrize("again", ["out", "other"])
def test_what_a_killed_process_left_is_removed_by_the_next_one(exists: bool, again: str, tmp_path: Path) -> None:
    if exists:
        (tmp_path / "out").mkdir()
        again = "out"
    with killed_while_making(tmp_path / "out"):
        assert any(name.endswith(STAGING) for name in everything(tmp_path))
        check_free(tmp_path / "out")
        with making(tmp_path / again, LAST) as staging:
            assert everything(staging) == []
            (staging / LAST).touch()
    assert everything(tmp_path) == [again, f"{again}/{LAST}"]
    assert not any(name.endswith((STAGING, LOCK)) for name in everything(tmp_path))


def test_what_can_not_be_made_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    for out, message in (
        (NOWHERE, "cannot be written"),
        (tmp_path / "file" / "out", "cannot be written"),
        (tmp_path / "file", "is not empty"),
        (tmp_path / "link", "is a link to nothing"),
        (tmp_path, "is not empty"),
    ):
        with pytest.raises(UserError, match=message) as refusal, making(out, LAST):
            pytest.fail("it began its work")
        assert len(str(refusal.value).splitlines()) == 1
    assert everything(tmp_path) == ["file", "link"]


def test_a_file_that_can_not_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text("old")
    check_writable(tmp_path / "new.json")
    check_writable(tmp_path / "old.json")
    assert everything(tmp_path) == ["old.json"]
    assert (tmp_path / "old.json").read_text() == "old"
    for path in (NOWHERE, tmp_path, tmp_path / "nowhere" / "a.json", tmp_path / "old.json" / "a.json"):
        with pytest.raises(RunError, match="cannot be written"):
            check_writable(path)
