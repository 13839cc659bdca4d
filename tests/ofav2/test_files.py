"""Files are opened in one place, and what is no file is refused at once: a test here that hangs has failed."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from ofav2 import files
from ofav2.errors import RunError


def pipe(path: Path) -> None:
    os.mkfifo(path)


def link_to_pipe(path: Path) -> None:
    os.mkfifo(path.with_name("pipe"))
    path.symlink_to(path.with_name("pipe"))


def listening(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def folder(path: Path) -> None:
    path.mkdir()


NO_FILES = (pipe, link_to_pipe, listening, endless, folder)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A name that is free; relative, as a socket's may have few letters."""
    monkeypatch.chdir(tmp_path)
    return Path("there")


@pytest.mark.parametrize("make", NO_FILES)
def test_what_is_no_file_is_not_read(make: Callable[[Path], None], place: Path) -> None:
    make(place)
    with pytest.raises(OSError, match=r"not a file|No such device") as error:
        files.read_bytes(place)
    assert error.value.strerror
    with pytest.raises(RunError) as refused:
        files.read_json(place)
    assert str(place) in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("make", NO_FILES)
def test_what_is_no_file_is_not_opened_to_be_changed(make: Callable[[Path], None], place: Path) -> None:
    make(place)
    for mode in ("rb+", "ab+"):
        with pytest.raises(OSError, match=r"file|link|No such device|directory"):
            files.open_in_place(place, mode)  # type: ignore[arg-type]  # a loop over both


@pytest.mark.parametrize("make", NO_FILES)
def test_what_is_no_file_is_not_replaced_by_one(make: Callable[[Path], None], place: Path) -> None:
    make(place)
    before = os.lstat(place)
    with pytest.raises(RunError, match="cannot be written"):
        files.write_text(place, "text")
    after = os.lstat(place)  # times are left out: a link that is followed has been accessed
    assert (after.st_mode, after.st_ino, after.st_size) == (before.st_mode, before.st_ino, before.st_size)
    assert sorted(os.listdir()) == sorted({"pipe", "there"} if make is link_to_pipe else {"there"})


def test_a_link_to_a_file_is_read(place: Path) -> None:
    Path("file").write_bytes(b"content")
    place.symlink_to("file")
    assert files.read_bytes(place) == b"content"


def test_a_link_is_not_changed_in_place(place: Path) -> None:
    Path("file").write_bytes(b"content")
    place.symlink_to("file")
    for mode in ("rb+", "ab+"):
        with pytest.raises(OSError, match="is a link"):
            files.open_in_place(place, mode)  # type: ignore[arg-type]  # a loop over both
    assert Path("file").read_bytes() == b"content"


def test_a_dangling_link_makes_no_file_elsewhere(place: Path) -> None:
    place.symlink_to("elsewhere")
    with pytest.raises(OSError, match="is a link"):
        files.open_in_place(place, "ab+")
    assert not Path("elsewhere").exists()


def test_a_link_where_the_temporary_file_will_be_is_not_followed(place: Path) -> None:
    Path("victim").write_text("precious")
    Path(f".there.{os.getpid()}.tmp").symlink_to("victim")
    files.write_text(place, "text")
    assert (place.read_text(), Path("victim").read_text()) == ("text", "precious")
    assert sorted(os.listdir()) == ["there", "victim"]


def test_files_are_changed_in_place(place: Path) -> None:
    with files.open_in_place(place, "ab+") as file:
        file.write(b"one\ntwo\n")
    with files.open_in_place(place, "ab+") as file:
        file.write(b"three\n")
    with files.open_in_place(place, "rb+") as file:
        file.truncate(4)
    assert place.read_bytes() == b"one\n"


def test_large_files_are_refused_before_they_take_memory(place: Path) -> None:
    with place.open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(OSError, match="has more than 1073741824 bytes"):
        files.read_bytes(place)
    place.write_bytes(b"12345")
    assert files.read_bytes(place, 5) == b"12345"
    with pytest.raises(OSError, match="has more than 4 bytes"):
        files.read_bytes(place, 4)


def test_files_of_the_system_that_name_no_size_are_read() -> None:
    assert b"VmRSS" in files.read_bytes(Path("/proc/self/status"))
    with pytest.raises(OSError, match="has more than 10 bytes"):
        files.read_bytes(Path("/proc/self/status"), 10)
