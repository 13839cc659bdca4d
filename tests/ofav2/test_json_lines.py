"""Lines of JSON: what a crash leaves of the last one is never read, and never continued."""

from pathlib import Path
from typing import IO

import pytest

from ofav2 import files
from ofav2.errors import RunError
from ofav2.json_lines import append_line, cut_unfinished_line, whole_lines


@pytest.mark.parametrize("cut", range(9))
def test_a_cut_line_is_left_out_and_the_next_one_starts_anew(cut: int, tmp_path: Path) -> None:
    path = tmp_path / "lines"
    append_line(path, {"a": 1})
    append_line(path, {"b": 22})
    path.write_bytes(path.read_bytes()[: -1 - cut])
    assert [files.parse_json(line) for line in whole_lines(path)] == [{"a": 1}]
    cut_unfinished_line(path)
    append_line(path, {"c": 3})
    assert [files.parse_json(line) for line in whole_lines(path)] == [{"a": 1}, {"c": 3}]


def test_a_line_that_another_process_appends_meanwhile_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lines"
    append_line(path, {"a": 1})
    opened = files.open_in_place

    def late(path: Path, mode: str) -> IO[bytes]:
        if mode != "ab+":
            append_line(path, {"b": 2})
        return opened(path, mode)

    with monkeypatch.context() as patch:
        patch.setattr(files, "open_in_place", late)
        cut_unfinished_line(path)
    assert [files.parse_json(line) for line in whole_lines(path)] == [{"a": 1}, {"b": 2}]


def test_a_missing_file_has_no_lines_and_a_folder_is_refused(tmp_path: Path) -> None:
    cut_unfinished_line(tmp_path / "none")
    assert whole_lines(tmp_path / "none") == []
    assert not (tmp_path / "none").exists()
    with pytest.raises(RunError, match="cannot be read"):
        whole_lines(tmp_path)
