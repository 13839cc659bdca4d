"""The run folder: atomic files, one writer, and one clear line for everything that is no run folder."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ofav2 import files
from ofav2.errors import RunError
from ofav2.runs import folder

HOLD_LOCK = """
import sys, time
from pathlib import Path
from ofav2.runs import folder
with folder.lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


def assert_one_line(error: pytest.ExceptionInfo[RunError], *parts: object) -> None:
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert str(part) in message


def names(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir())


def test_text_is_written_and_nothing_else_is_left(tmp_path: Path) -> None:
    files.write_text(tmp_path / "recipe.yaml", "name: größe\n")
    assert (tmp_path / "recipe.yaml").read_bytes() == "name: größe\n".encode()
    assert names(tmp_path) == ["recipe.yaml"]


def test_files_get_the_permissions_any_new_file_gets(tmp_path: Path) -> None:
    files.write_text(tmp_path / "ours", "")
    (tmp_path / "plain").write_text("")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_failure_while_writing_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    files.write_text(path, "old")

    def write_half() -> None:
        with files.replacing(path) as temporary:
            temporary.write_text("ne")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["run.json"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_keeps_the_old_file_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    path = tmp_path / "run.json"
    files.write_text(path, "old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(RunError) as error:
        files.write_text(path, "new")
    monkeypatch.undo()
    assert_one_line(error, path, "No space left on device", "free space")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["run.json"]


def test_a_value_json_cannot_hold_touches_no_file(tmp_path: Path) -> None:
    files.write_json(tmp_path / "run.json", {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(tmp_path / "run.json", {"a": float("nan")})
    assert files.read_json(tmp_path / "run.json") == {"a": 1}


def test_a_reader_never_sees_a_part(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    files.write_json(path, {"value": 0, "filler": [0] * 2000})
    done = threading.Event()

    def write() -> None:
        for value in range(1, 30):
            files.write_json(path, {"value": value, "filler": [value] * 2000})
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not done.is_set():
        facts = files.read_json(path)
        assert facts["filler"] == [facts["value"]] * 2000
    writer.join()
    assert files.read_json(path)["value"] == 29


@given(value=st.dictionaries(st.text(), JSON_VALUES))
def test_json_comes_back_as_it_went(value: dict[str, object], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("json") / "value.json"
    files.write_json(path, value)
    assert files.read_json(path) == value


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (b"", "is no JSON"),
        (b'{"a": 1', "is no JSON"),
        (b"\xff\xfe", "is no JSON"),
        (b'{"a": NaN}', "is no JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": ' + b"1" * 5000 + b"}", "is no JSON"),
        (b"[1, 2]", "must hold an object"),
        (b"null", "must hold an object"),
    ],
)
def test_reading_what_is_no_object_names_file_and_rule(tmp_path: Path, content: bytes, rule: str) -> None:
    path = tmp_path / "run.json"
    path.write_bytes(content)
    with pytest.raises(RunError) as error:
        files.read_json(path)
    assert_one_line(error, path, rule)


def test_reading_a_missing_file_or_a_folder_names_it(tmp_path: Path) -> None:
    with pytest.raises(RunError) as error:
        files.read_json(tmp_path / "run.json")
    assert_one_line(error, tmp_path / "run.json", "is missing")
    with pytest.raises(RunError) as error:
        files.read_json(tmp_path)
    assert_one_line(error, tmp_path, "cannot be read")


def test_new_folders_count_on_past_what_is_taken(tmp_path: Path) -> None:
    runs = tmp_path / "made" / "runs"
    first = folder.new_folder(runs, "digits")
    assert first == runs / "digits"
    assert first.is_dir()
    assert folder.new_folder(runs, "digits") == first, "an empty folder is free"
    (first / "run.json").touch()
    (runs / "digits-2").touch()
    (runs / "digits-3").symlink_to(runs / "nowhere")
    (runs / "digits-4").mkdir()
    assert folder.new_folder(runs, "digits") == runs / "digits-4"


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/a", "a/"])
def test_a_name_that_is_a_path_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(RunError) as error:
        folder.new_folder(tmp_path / "runs", name)
    assert_one_line(error, repr(name), "plain folder name")
    assert names(tmp_path) == []


def test_what_a_run_leaves_that_was_killed_before_it_began_is_written_over(tmp_path: Path) -> None:
    for name in (folder.LOCK, folder.RECIPE, folder.SPLIT, folder.INITIAL_IMAGES, f".{folder.RECORD}.17.tmp"):
        (tmp_path / name).touch()
    assert folder.take_folder(tmp_path) == tmp_path
    (tmp_path / "own.txt").touch()
    with pytest.raises(RunError, match=r"is not empty \(own\.txt\) and holds no run"):
        folder.take_folder(tmp_path)


def test_a_parent_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "runs").touch()
    with pytest.raises(RunError) as error:
        folder.new_folder(tmp_path / "runs", "digits")
    assert_one_line(error, tmp_path / "runs" / "digits", "cannot be made")


def test_a_second_writer_is_told_who_holds_the_folder(tmp_path: Path) -> None:
    with folder.lock(tmp_path):
        with pytest.raises(RunError) as error, folder.lock(tmp_path):
            pytest.fail("two writers")
        assert_one_line(error, tmp_path, f"in use by process {os.getpid()}", "wait for it")
    with folder.lock(tmp_path):
        pass


def test_the_lock_is_freed_when_the_body_raises(tmp_path: Path) -> None:
    with pytest.raises(KeyError), folder.lock(tmp_path):
        raise KeyError
    with folder.lock(tmp_path):
        pass


def test_a_killed_process_frees_the_folder(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD_LOCK, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in (os.getcwd(), *sys.path) if path)},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(RunError) as error, folder.lock(tmp_path):
            pytest.fail("two writers")
        assert_one_line(error, f"process {process.pid}")
        process.send_signal(signal.SIGKILL)
        process.wait()
    with folder.lock(tmp_path):
        assert (tmp_path / ".lock").read_text() == str(os.getpid())


def test_a_link_in_the_place_of_the_lock_is_not_written_through(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(victim)
    with pytest.raises(RunError, match="cannot be locked \\(is a link"), folder.lock(tmp_path / "run"):
        pass
    assert victim.read_text() == "precious"


def test_a_folder_that_cannot_be_locked_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError) as error, folder.lock(tmp_path / "nowhere"):
        pytest.fail("locked nothing")
    assert_one_line(error, tmp_path / "nowhere", "cannot be locked")


def claim(runs: Path, queue: "multiprocessing.Queue[str]") -> None:
    made = folder.new_folder(runs, "digits")
    (made / "mine").touch()
    queue.put(made.name)


def test_runs_that_start_together_get_their_own_folders(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    queue: multiprocessing.Queue[str] = context.Queue()
    processes = [context.Process(target=claim, args=(tmp_path, queue)) for _ in range(4)]
    for process in processes:
        process.start()
    made = [queue.get(timeout=30) for _ in processes]
    for process in processes:
        process.join()
    assert set(made) <= {f"digits{suffix}" for suffix in ("", "-2", "-3", "-4")}
