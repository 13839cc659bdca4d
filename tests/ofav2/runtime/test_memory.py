"""Memory that was freed stays with the process where glibc allows it."""

import os
import platform
import resource
import subprocess
import sys

import pytest
import torch

from ofav2.runtime.memory import keep_freed_memory


def page_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def touch_large_blocks() -> int:
    """Page faults of taking and freeing 20 MiB, ten times."""
    before = page_faults()
    for _ in range(10):
        torch.ones(5 * 2**20)
    return page_faults() - before


MEASURE = """
import sys
from ofav2.runtime.memory import keep_freed_memory
from tests.ofav2.runtime.test_memory import touch_large_blocks
returned = touch_large_blocks()
keep_freed_memory()
touch_large_blocks()
print(returned, touch_large_blocks())
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc's malloc that gives memory back")
def test_freed_memory_is_kept() -> None:
    """In a process of its own, whose malloc nothing has set yet."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run([sys.executable, "-c", MEASURE], env=environment, capture_output=True, text=True, check=True)
    returned, kept = map(int, done.stdout.split())
    assert kept < returned / 20


def test_other_systems_are_left_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "win32")
    monkeypatch.setattr("ctypes.CDLL", lambda name: pytest.fail("there is no C library to ask"))
    keep_freed_memory()
