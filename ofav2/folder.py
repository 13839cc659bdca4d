"""The run folder: what lies where, how its files are written, and who may write them.

    recipe.yaml                     the resolved recipe
    split.json                      which images were held out for validation and test
    run.json                        facts of the run: format, name, versions, seed, data, status, one record per phase
    metrics.jsonl                   one line per measurement (`ofav2.training.tracking`)
    checkpoints/<phase>.safetensors tensors a phase left, with <phase>.json beside them (`ofav2.training.checkpoint`)
    .lock                           held by the process that writes the folder

Files are replaced whole, so a reader sees the old or the new one and never a part.
"""

import fcntl
import json
import math
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import IO, Any

from ofav2.errors import RunError, UserError

FORMAT = "ofav2-run/1"
RECIPE = "recipe.yaml"
SPLIT = "split.json"
FACTS = "run.json"
METRICS = "metrics.jsonl"
CHECKPOINTS = "checkpoints"
LOCK = ".lock"
PHASE_NAME = re.compile(r"(?!(?:state|aside)-\d)[A-Za-z0-9_-]{1,64}")
"""Names that a phase may have: its checkpoint's file is called so, beside those of states."""

# What `replacing` writes to, with the number of the process that does.
_TEMPORARY = re.compile(r"\..+\.(\d+)\.tmp", re.DOTALL)
# Worker processes notice within seconds that the one which forked them was killed.
_ORPHANS_LEAVE_IN = 15.0


def checkpoint_path(folder: Path, phase: object) -> Path:
    """Path of a phase's checkpoint, without the suffixes that `ofav2.training.checkpoint` adds.

    Raises:
        RunError: The name, which may come from a file, is no name of a phase and would lead elsewhere.
    """
    if not isinstance(phase, str) or not PHASE_NAME.fullmatch(phase):
        raise RunError(f"phase ({str(phase)[:80]!r}) is no name of a phase; restore {folder / FACTS} or train again")
    return folder / CHECKPOINTS / phase


def new_folder(parent: Path, name: str) -> Path:
    """Make an empty folder `parent/name`, or `name-2`, `name-3`, … where that one is taken.

    Args:
        parent: Folder of the run folders; made where it is missing.
        name: Wished name, without a path in it.

    Returns:
        The first of these paths that did not exist or was an empty folder; it exists now.

    Raises:
        RunError: The name is a path or unprintable, or the folder cannot be made.
    """
    if name in ("", ".", "..") or name != Path(name).name:
        raise RunError(f"run name ({name!r}) must be a plain folder name; leave out slashes and dots alone")
    _require_printable(parent / name)
    try:
        parent.mkdir(parents=True, exist_ok=True)
        return next(path for path in _candidates(parent, name) if _claim(path))
    except OSError as error:
        raise RunError(
            f"run folder ({parent / name}) cannot be made ({error.strerror}); give a folder that you may write to"
        ) from error


def _candidates(parent: Path, name: str) -> Iterator[Path]:
    yield parent / name
    for number in count(2):
        yield parent / f"{name}-{number}"


def _claim(path: Path) -> bool:
    # Making the folder is the test of whether it exists, so two runs that start together get two folders.
    try:
        path.mkdir()
    except FileExistsError:
        return path.is_dir() and next(path.iterdir(), None) is None
    return True


def take_folder(path: Path) -> Path:
    """Make the folder that a run was given, or take it if it is vacant.

    It is vacant if it is empty, or holds only what a run left that was killed before it began.

    Returns:
        The folder.

    Raises:
        RunError: Something lies in it, or it cannot be made.
    """
    _require_printable(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        lying = [entry.name for entry in path.iterdir()]
    except OSError as error:
        raise RunError(
            f"run folder ({path}) cannot be made ({error.strerror}); give a folder that you may write to"
        ) from error
    if not all(name in (LOCK, RECIPE, SPLIT) or _TEMPORARY.fullmatch(name) for name in lying):
        raise RunError(f"run folder ({path}) is not empty: go on with its run by --resume {path}, or give a new folder")
    return path


def _require_printable(path: Path) -> None:
    # Facts, messages and pages name the folder.
    if not str(path).isprintable():
        raise RunError(f"run folder ({str(path)!r}) must be printable text; leave out line breaks and the like")


def open_run(folder: Path) -> dict[str, Any]:
    """Read the facts of a run folder, after checking that it is one of ours.

    Returns:
        The content of `run.json`.

    Raises:
        RunError: The folder is missing, a file, foreign, damaged, or of another format version.
    """
    try:
        found = [path.exists() for path in (folder, folder / FACTS)]
    except OSError as error:
        raise RunError(f"run folder ({folder}) cannot be looked at ({error.strerror}); check the path") from error
    if not found[0]:
        raise RunError(f"run folder ({folder}) does not exist; give one that `ofav2 train` made")
    if not folder.is_dir():
        raise RunError(f"run folder ({folder}) is a file; give the folder that holds {FACTS}")
    if not found[1]:
        raise RunError(f"run folder ({folder}) has no {FACTS}, so it holds no run; give one that `ofav2 train` made")
    facts = read_json(folder / FACTS)
    if facts.get("format") != FORMAT:
        raise RunError(
            f"{folder / FACTS}: format ({facts.get('format')!r}) must be {FORMAT!r}; "
            "open this folder with the version of ofav2 that made it"
        )
    return facts


def write_facts(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write `run.json`: the given facts, headed by the format version.

    Raises:
        RunError: The file cannot be written.
    """
    write_json(folder / FACTS, {"format": FORMAT, **{key: value for key, value in facts.items() if key != "format"}})


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Keep other processes from writing the folder while the body runs.

    The system frees the lock when the process ends, however it ends. A forked child holds it too for as long as it
    lives; the children of an owner that was killed are waited for. What killed writers left half-written is removed.

    Raises:
        RunError: The folder is in use, missing, or cannot be locked.
    """
    try:
        handle = (folder / LOCK).open("a+", encoding="utf-8")
    except OSError as error:
        raise RunError(
            f"run folder ({folder}) cannot be locked ({error.strerror}); give an existing folder that you may write to"
        ) from error
    with handle:
        _acquire(handle, folder)
        try:
            handle.truncate(0)
            handle.write(str(os.getpid()))
            handle.flush()
            _sweep(folder)
        except OSError as error:
            raise RunError(
                f"run folder ({folder}) cannot be written ({error.strerror}); check the disk's free space"
            ) from error
        yield


def _acquire(handle: IO[str], folder: Path) -> None:
    patience = time.monotonic() + _ORPHANS_LEAVE_IN
    while True:
        try:
            return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            handle.seek(0)
            # Empty for the instant in which another process has the lock and has not yet written its number.
            owner = handle.read().strip()
            if not owner.isdecimal() or _lives(int(owner)) or time.monotonic() > patience:
                raise RunError(
                    f"run folder ({folder}) is in use by process {owner or '(unknown)'};"
                    " wait for it or give another folder"
                ) from error
        except OSError as error:
            raise RunError(
                f"run folder ({folder}) cannot be locked ({error.strerror}); give a folder on a file system with locks"
            ) from error
        time.sleep(0.05)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _sweep(folder: Path) -> None:
    """Remove temporary files whose writer was killed; states are large, and a run may be killed often."""
    for path in [*folder.glob(".*.tmp"), *(folder / CHECKPOINTS).glob(".*.tmp")]:
        named = _TEMPORARY.fullmatch(path.name)
        # A container may give every process that it starts the same number.
        if named and (int(named[1]) == os.getpid() or not _lives(int(named[1]))):
            path.unlink(missing_ok=True)


def check_free(path: Path) -> None:
    """Refuse an output folder that something lies in, before work is put into what shall lie there.

    Raises:
        UserError: It is a file, or a folder that is not empty.
    """
    try:
        taken = path.is_file() or (path.is_dir() and any(path.iterdir()))
    except OSError as error:
        raise UserError(f"output folder ({path}) cannot be looked at ({error.strerror}): give another one") from error
    if taken:
        raise UserError(f"output folder ({path}) is not empty: give a new one with --out")


@contextmanager
def making(path: Path) -> Iterator[Path]:
    """Make a folder with everything in it, or nothing: the body fills the yielded folder, which then becomes `path`.

    The yielded folder lies beside `path` under a hidden name; when anything fails it is removed.

    Args:
        path: The folder to make; it must not exist, or be empty.

    Raises:
        UserError: The system refuses to write.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    except OSError as error:
        raise UserError(
            f"output folder ({path}) cannot be made ({error.strerror}): give one that you may write to"
        ) from error
    try:
        # Temporary folders are made for their owner alone.
        staging.chmod(0o755)
        yield staging
        staging.rename(path)
    except OSError as error:
        raise UserError(f"output folder ({path}) cannot be written ({error.strerror}): give a new one") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Replace a file atomically: the body writes the yielded temporary file, which then takes the name `path`.

    The temporary file lies in the same folder. It is flushed to the disk before it is renamed, and the folder after;
    when anything fails it is removed and `path` stays as it was.

    Raises:
        RunError: The system refuses to write.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            yield temporary
            flush_to_disk(temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        flush_to_disk(path.parent)
    except OSError as error:
        raise RunError(
            f"{path} cannot be written ({error.strerror}); check its folder's permissions and the disk's free space"
        ) from error


def flush_to_disk(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk.

    Raises:
        OSError: The system cannot.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically.

    Raises:
        RunError: The file cannot be written; an older one is left untouched.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically.

    Raises:
        RunError: The file cannot be written; an older one is left untouched.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, atomically.

    Raises:
        RunError: The file cannot be written; an older one is left untouched.
    """
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        RunError: The file is missing, cannot be read, is no JSON, or holds something other than an object.
    """
    try:
        value = parse_json(path.read_bytes())
    except FileNotFoundError as error:
        raise RunError(f"{path} is missing; give a complete run folder") from error
    except OSError as error:
        raise RunError(f"{path} cannot be read ({error.strerror}); check that it is a file you may read") from error
    except ValueError as error:
        raise RunError(f"{path} is no JSON ({error}); restore it from a copy or train again") from error
    if not isinstance(value, dict):
        raise RunError(
            f"{path} holds a JSON {type(value).__name__} and must hold an object; restore it from a copy or train again"
        )
    return value


def parse_json(data: bytes) -> Any:
    """Parse strict JSON: UTF-8, and no NaN or infinity, which JSON does not have, nor numbers that become one.

    Raises:
        ValueError: The bytes are no such JSON.
    """
    try:
        return json.loads(data.decode("utf-8"), parse_constant=_refuse_constant, parse_float=_finite)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:40]} is too large a number")
    return number
