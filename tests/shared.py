"""What takes long to make is made once per test session, by whichever process needs it first."""

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Return a folder that all processes of a test session share; whoever asks first makes it while others wait.

    Args:
        factory: The session's factory of temporary folders.
        name: The folder's name; it lies alone in a folder of its own.
        make: Makes the folder, which does not exist yet, at the path that it is given.
    """
    base = factory.getbasetemp()
    # pytest-xdist gives each of its processes a folder below the session's.
    parent = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    path, finished = parent / name / name, parent / f"{name}.made"
    path.parent.mkdir(parents=True, exist_ok=True)
    with (parent / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not finished.exists():
            # Whoever was here before may have failed half way.
            shutil.rmtree(path, ignore_errors=True)
            make(path)
            finished.touch()
    return path
