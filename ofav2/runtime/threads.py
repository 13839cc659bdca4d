"""Choose how many CPU threads torch computes with.

More threads than free cores are many times slower than one. OpenMP's threads spin while they wait for each other, and
a container with a CPU quota is stopped meanwhile. So the number is measured at the start, not assumed.
"""

import logging
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor, nn

from ofav2.runtime.compiling import Forward
from ofav2.runtime.processes import SINGLE_PROCESS, Processes
from supernets.outputs import exit_logits

Autocast = Callable[[], AbstractContextManager[object]]
"""Makes the context of forward passes, as `Runtime.autocast` does."""

logger = logging.getLogger(__name__)

ROUNDS = 5
"""Timed calls per number of threads."""
BUDGET_SECONDS = 5.0
"""Time after which no further round is started."""
HOPELESS = 3.0
"""How many times as long as with fewer threads a first call takes, where a number of threads is not tried again."""
SYSTEM = Path("/")


def choose_threads(
    call: Callable[[], object], what: str, device: torch.device, processes: Processes = SINGLE_PROCESS
) -> int:
    """Let torch use the fastest number of threads for a piece of work, and return it.

    All processes of a machine measure at the same time and share its CPUs. All use what the first one found.

    Args:
        call: A short piece of the work; called several times.
        what: What messages call it.
        device: Where the work runs.
        processes: The processes that compute together.

    Returns:
        The number of threads; 0 on CUDA, where it is limited and not measured.
    """
    most = max(1, min(processes.gather(_limit() // local_processes())))
    if device.type != "cpu":
        torch.set_num_threads(min(most, torch.get_num_threads()))
        return 0
    counts = thread_counts(most)
    if len(counts) == 1:
        chosen = most
    else:
        seconds = time_threads(call, counts)
        chosen = processes.on_main(lambda: min(counts, key=lambda count: seconds[count]))
        times = ", ".join(f"{1000 * seconds[count]:.0f} ms with {count}" for count in counts)
        logger.info(f"threads: {chosen} ({what} takes {times})")
    torch.set_num_threads(chosen)
    return chosen


def warn_of_too_many(threads: int) -> None:
    """Say so where a number of threads exceeds the CPUs of this process."""
    cpus = max(1, usable_cpus() // local_processes())
    if threads > cpus:
        logger.warning(f"run.threads ({threads}) is more than the CPUs of this process ({cpus}), which makes it slow")


def thread_counts(most: int) -> tuple[int, ...]:
    """Return 1, 2, 4, … below a number, and the number itself."""
    return (*(2**power for power in range(most.bit_length()) if 2**power < most), most)


def time_threads(
    call: Callable[[], object], counts: Sequence[int], clock: Callable[[], float] = time.perf_counter
) -> Mapping[int, float]:
    """Time a call with several thread counts, in turn so that they share what disturbs the machine.

    Beside other busy processes, a call with more threads than free cores takes seconds. One such call is enough.

    Args:
        call: What to time; called once for each number before it is timed.
        counts: Thread counts, ascending.
        clock: Returns seconds.

    Returns:
        Median seconds of a call, by number of threads; those of the first call where it was far too slow. Torch's
        number of threads is as before.
    """
    before, started = torch.get_num_threads(), clock()

    def seconds(count: int) -> float:
        torch.set_num_threads(count)
        begun = clock()
        call()
        return clock() - begun

    try:
        first = {count: seconds(count) for count in counts}
        # Only more threads are ruled out: the very first call also sets up what all share.
        fewest_first = zip(counts, accumulate(first.values(), min), strict=True)
        taken: dict[int, list[float]] = {count: [] for count, best in fewest_first if first[count] <= HOPELESS * best}
        for number in range(ROUNDS):
            if number and clock() - started > BUDGET_SECONDS:
                break
            for count, times in taken.items():
                times.append(seconds(count))
    finally:
        torch.set_num_threads(before)
    return first | {count: statistics.median(times) for count, times in taken.items()}


def usable_cpus(system: Path = SYSTEM) -> int:
    """Return how many CPUs this process may keep busy, by its affinity and its control group.

    Args:
        system: Root of the file system.
    """
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota(system)
    return cpus if quota is None else max(1, min(cpus, int(quota)))


def _limit(environment: Mapping[str, str] = os.environ) -> int:
    """Return the usable CPUs, or OMP_NUM_THREADS where that is less; torchrun sets it to 1, which means nothing."""
    limit = environment.get("OMP_NUM_THREADS", "")
    if "TORCHELASTIC_RUN_ID" in environment or not limit.isdecimal():
        return usable_cpus()
    return max(1, min(usable_cpus(), int(limit)))


def cpu_quota(system: Path = SYSTEM) -> float | None:
    """Return the CPUs that the control groups of this process allow on average; None without a limit.

    A limit of any parent holds as well. In a container, the process's own group may be the mounted root.

    Source: Linux, `admin-guide/cgroup-v2.rst` (`cpu.max`) and `scheduler/sched-bwc.rst` (`cpu.cfs_quota_us`).
    """
    found: list[float] = []
    for folder in _control_groups(system):
        if (text := _read(folder / "cpu.max")) is not None:
            quota, period = (*text.split(), "", "")[:2]
        else:
            quota, period = _read(folder / "cpu.cfs_quota_us") or "max", _read(folder / "cpu.cfs_period_us") or "0"
        if quota.isdecimal() and period.isdecimal() and int(quota) and int(period):
            found.append(int(quota) / int(period))
    return min(found, default=None)


def _control_groups(system: Path) -> list[Path]:
    """Return the folders that may hold a CPU limit of this process: its group and all parents, versions 1 and 2."""
    mount = system / "sys/fs/cgroup"
    folders: list[Path] = []
    for line in (_read(system / "proc/self/cgroup") or "").splitlines():
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if controllers and "cpu" not in controllers.split(","):
            continue
        roots = [mount / controllers, mount / "cpu"] if controllers else [mount, mount / "unified"]
        group = Path(path.lstrip("/"))
        folders += [root / part for root in roots for part in (group, *group.parents)]
    return folders


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None


def local_processes(environment: Mapping[str, str] = os.environ) -> int:
    """Return how many processes torchrun started on this machine; 1 without torchrun."""
    text = environment.get("LOCAL_WORLD_SIZE", "1")
    return max(1, int(text)) if text.isdecimal() else 1


def sample_images(count: int, channels: int, side: int) -> Tensor:
    """Return float images (N, C, H, W), channels last, to time a network with; drawing none from any generator."""
    values = torch.linspace(-2, 2, count * channels * side * side)
    return values.view(count, channels, side, side).contiguous(memory_format=torch.channels_last)


def forward_pass(forward: Forward, images: Tensor) -> Callable[[], None]:
    """Return a function that runs a forward pass without gradients, to be timed."""

    def call() -> None:
        with torch.inference_mode():
            forward(images)

    return call


def training_pass(module: nn.Module, forward: Forward, images: Tensor, autocast: Autocast) -> Callable[[], None]:
    """Return a function that runs a forward and a backward pass, to be timed; torch's random numbers stay untouched.

    Args:
        module: The module that is trained, whose statistics change.
        forward: What it computes.
        images: Images on its device.
        autocast: Makes the context of the forward pass.
    """

    def call() -> None:
        with torch.random.fork_rng([]):
            with autocast():
                outputs = forward(images)
            torch.stack([logits.float().sum() for logits in exit_logits(outputs)]).sum().backward()
        module.zero_grad(set_to_none=True)

    return call
