"""Describe the machine that a latency was measured on."""

import platform
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Machine:
    """What a latency belongs to."""

    device: str
    """`cpu` or `cuda`."""
    name: str
    """Name of the processor or graphics card."""
    threads: int
    """Threads that torch computes with on the CPU."""
    torch: str
    """Version of torch."""


def this_machine(device: torch.device) -> Machine:
    """Return this machine, in its present state."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return Machine(device.type, name, torch.get_num_threads(), torch.__version__)


def _processor() -> str:
    """Return the name of the processor; the architecture's where the system has no better one."""
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text(encoding="utf-8").splitlines() if facts.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
