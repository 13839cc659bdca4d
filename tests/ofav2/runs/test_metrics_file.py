"""The file of measurements: whole lines of known keys, or a refusal that names file and line."""

import json
from pathlib import Path
from typing import Any

import pytest

from ofav2.errors import RunError
from ofav2.runs.metrics_file import cut_metrics, open_metrics, read_metrics

LINE = {"kind": "a", "global_step": 1, "phase": "full", "time": 1.5, "loss": None, "nonfinite": ["loss"]}
TABLE = {"kind": "table", "name": "t", "time": 1.5, "columns": ["a", "b"], "rows": [["x", 1], [None, 0.5]]}


def test_a_torn_last_line_is_ignored_and_cut_off_before_going_on(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{json.dumps(LINE)}\n{{"kind": "b", "lo')
    assert read_metrics(tmp_path) == [LINE]
    with open_metrics(tmp_path) as lines:
        lines.write(json.dumps(LINE) + "\n")
    assert read_metrics(tmp_path) == [LINE, LINE]


def test_going_on_keeps_whole_lines_byte_for_byte(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for before in (b"", b'{"kind": "a"}\n', b'{"kind": "gr\xc3\xb6\xc3\x9fe"}\n{"kind": "b"}\n'):
        path.write_bytes(before)
        with open_metrics(tmp_path):
            pass
        assert path.read_bytes() == before


@pytest.mark.parametrize("line", [b'{"kind": "b", "lo', b"", b"[1]", b"\xff", b'{"loss": NaN}'])
def test_a_bad_line_elsewhere_names_file_and_line(tmp_path: Path, line: bytes) -> None:
    first = json.dumps(LINE).encode() + b"\n"
    (tmp_path / "metrics.jsonl").write_bytes(first + line + b"\n" + first)
    with pytest.raises(RunError, match=r"metrics\.jsonl, line 2,") as error:
        read_metrics(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"kind": 3}, "kind (3) must be text"),
        ({"phase": ["full"]}, "phase"),
        ({"global_step": -1}, "global_step (-1)"),
        ({"global_step": "1"}, 'global_step ("1")'),
        ({"time": None}, "time (null) must be a number"),
        ({"time": 10**400}, "time"),
        ({"loss": "1.0"}, "loss"),
        ({"loss": {"a": 1}}, "loss"),
        ({"nonfinite": "loss"}, "nonfinite"),
    ],
)
def test_a_line_of_other_values_is_named(change: dict[str, Any], told: str, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(json.dumps(LINE) + "\n" + json.dumps(LINE | change) + "\n")
    with pytest.raises(RunError, match=r"metrics\.jsonl, line 2: ") as error:
        read_metrics(tmp_path)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "change", [{"rows": [["x"]]}, {"rows": [[[], 1]]}, {"rows": "x"}, {"columns": [1, 2]}, {"name": None}]
)
def test_a_table_of_other_values_is_named(change: dict[str, Any], tmp_path: Path) -> None:
    for line, whole in ((TABLE, True), (TABLE | change, False), (TABLE | change | {"kind": "scatter"}, False)):
        (tmp_path / "metrics.jsonl").write_text(json.dumps(line) + "\n")
        if whole:
            assert read_metrics(tmp_path) == [line]
            continue
        with pytest.raises(RunError, match=r"metrics\.jsonl, line 1: "):
            read_metrics(tmp_path)


def test_a_link_is_not_written_through(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious, without a line's end")
    (tmp_path / "metrics.jsonl").symlink_to(victim)
    with pytest.raises(RunError, match=r"metrics\.jsonl cannot be (written|cut) \(is a link"), open_metrics(tmp_path):
        pass
    with pytest.raises(RunError, match=r"metrics\.jsonl cannot be cut \(is a link"):
        cut_metrics(tmp_path, 3)
    assert victim.read_text() == "precious, without a line's end"


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"nowhere/metrics\.jsonl cannot be read"):
        read_metrics(tmp_path / "nowhere")
    with pytest.raises(RunError, match=r"nowhere/metrics\.jsonl cannot be written"), open_metrics(tmp_path / "nowhere"):
        pytest.fail("opened nothing")
