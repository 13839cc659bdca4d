"""Threads are chosen by affinity, quota and measured times; no test here depends on how fast the machine is."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from ofav2.runtime import threads
from ofav2.runtime.threads import choose_threads, cpu_quota, local_processes, thread_counts, time_threads, usable_cpus
from tests.notes import Notes

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _as_found(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    yield
    torch.set_num_threads(before)


def system(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return folder


V2 = "0::/user.slice/job"
V1 = "4:cpu,cpuacct:/docker/ab\n3:memory:/other\n1:name=systemd:/"


@pytest.mark.parametrize(
    ("groups", "files", "quota"),
    [
        (V2, {"sys/fs/cgroup/user.slice/job/cpu.max": "150000 100000"}, 1.5),
        (V2, {"sys/fs/cgroup/user.slice/job/cpu.max": "max 100000"}, None),
        (V2, {"sys/fs/cgroup/user.slice/cpu.max": "50000 100000"}, 0.5),
        (
            V2,
            {
                "sys/fs/cgroup/user.slice/job/cpu.max": "400000 100000",
                "sys/fs/cgroup/user.slice/cpu.max": "200000 100000",
            },
            2.0,
        ),
        ("0::/", {"sys/fs/cgroup/cpu.max": "300000 100000"}, 3.0),
        (
            V1,
            {
                "sys/fs/cgroup/cpu,cpuacct/docker/ab/cpu.cfs_quota_us": "250000",
                "sys/fs/cgroup/cpu,cpuacct/docker/ab/cpu.cfs_period_us": "100000",
            },
            2.5,
        ),
        # In a container, its own group is mounted as the root.
        (V1, {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "100000", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "50000"}, 2.0),
        (V1, {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, None),
        (V1, {"sys/fs/cgroup/memory/other/cpu.cfs_quota_us": "100000"}, None),
        (V2, {"sys/fs/cgroup/user.slice/job/cpu.max": ""}, None),
        ("nonsense", {}, None),
    ],
)
def test_a_quota_is_read_from_control_groups(
    groups: str, files: dict[str, str], quota: float | None, tmp_path: Path
) -> None:
    assert cpu_quota(system(tmp_path, {"proc/self/cgroup": groups, **files})) == quota


def test_without_control_groups_there_is_no_quota(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path) is None


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system has no affinity")
@pytest.mark.parametrize(("limit", "usable"), [("max", 6), ("50000", 1), ("250000", 2), ("900000", 6)])
def test_a_process_may_use_the_cpus_of_its_affinity_and_quota(
    limit: str, usable: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(6)))
    files = {"proc/self/cgroup": V2, "sys/fs/cgroup/user.slice/job/cpu.max": f"{limit} 100000"}
    assert usable_cpus(system(tmp_path, files)) == usable


@pytest.mark.parametrize(
    ("most", "counts"), [(1, (1,)), (2, (1, 2)), (3, (1, 2, 3)), (8, (1, 2, 4, 8)), (12, (1, 2, 4, 8, 12))]
)
def test_powers_of_two_and_the_most_are_tried(most: int, counts: tuple[int, ...]) -> None:
    assert thread_counts(most) == counts


class Machine:
    """A clock that a call moves on by a time that depends on torch's threads."""

    def __init__(self, seconds: Callable[[int, int], float]) -> None:
        self.now, self.seconds, self.used = 0.0, seconds, list[int]()

    def call(self) -> None:
        count = torch.get_num_threads()
        self.now += self.seconds(count, self.used.count(count))
        self.used.append(count)

    def clock(self) -> float:
        return self.now


def test_medians_of_calls_in_turn_decide() -> None:
    machine = Machine(lambda count, call: 0.5 if (count, call) == (1, 3) else 0.3 / count)
    torch.set_num_threads(3)
    assert time_threads(machine.call, (1, 2), machine.clock) == pytest.approx({1: 0.3, 2: 0.15})
    assert machine.used == [1, 2] * (1 + threads.ROUNDS)
    assert torch.get_num_threads() == 3


def test_the_first_call_is_not_counted() -> None:
    machine = Machine(lambda count, call: 5.0 if call == 0 else 0.25)
    assert time_threads(machine.call, (1, 2), machine.clock) == {1: 0.25, 2: 0.25}


def test_slow_calls_are_timed_once() -> None:
    machine = Machine(lambda count, call: threads.BUDGET_SECONDS)
    assert time_threads(machine.call, (1, 2), machine.clock) == dict.fromkeys((1, 2), threads.BUDGET_SECONDS)
    assert machine.used == [1, 2] * 2


def test_far_too_slow_counts_are_tried_once() -> None:
    machine = Machine(lambda count, call: 9.0 if count == 2 else 0.25)
    assert time_threads(machine.call, (1, 2), machine.clock) == {1: 0.25, 2: 9.0}
    assert machine.used.count(2) == 1


def test_a_slow_very_first_call_rules_nothing_out() -> None:
    machine = Machine(lambda count, call: 9.0 if (count, call) == (1, 0) else 0.5 / count)
    assert time_threads(machine.call, (1, 2), machine.clock) == {1: 0.5, 2: 0.25}


def test_threads_come_back_after_an_error() -> None:
    before = torch.get_num_threads()
    with pytest.raises(KeyError):
        time_threads(lambda: {}["no"], (before + 1,))
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(("slow", "chosen"), [(1, 2), (2, 1)])
def test_the_fastest_number_is_used_and_said(
    slow: int, chosen: int, monkeypatch: pytest.MonkeyPatch, notes: Notes
) -> None:
    monkeypatch.setattr(threads, "usable_cpus", lambda: 2)
    monkeypatch.setattr(threads, "time_threads", lambda call, counts: {n: 1.5 if n == slow else 0.25 for n in counts})
    assert choose_threads(lambda: None, "a training step", CPU) == chosen
    assert torch.get_num_threads() == chosen
    times = {slow: "1500 ms", chosen: "250 ms"}
    told = f"threads: {chosen} (a training step takes {times[1]} with 1, {times[2]} with 2)\n"
    assert notes() == told


def test_one_cpu_needs_no_measurement(monkeypatch: pytest.MonkeyPatch, notes: Notes) -> None:
    monkeypatch.setattr(threads, "usable_cpus", lambda: 1)
    assert choose_threads(lambda: pytest.fail("it is called"), "a step", CPU) == 1
    assert torch.get_num_threads() == 1
    assert notes() == ""


def test_the_environment_may_ask_for_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "usable_cpus", lambda: 8)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert choose_threads(lambda: pytest.fail("it is called"), "a step", CPU) == 1


def test_processes_of_a_machine_share_its_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchrun sets OMP_NUM_THREADS to 1 by itself, which no user set."""
    tried: list[tuple[int, ...]] = []

    def timed(call: object, counts: tuple[int, ...]) -> dict[int, float]:
        tried.append(counts)
        return {count: 1.0 / count for count in counts}

    monkeypatch.setattr(threads, "usable_cpus", lambda: 8)
    monkeypatch.setattr(threads, "time_threads", timed)
    for name, value in (("TORCHELASTIC_RUN_ID", "x"), ("OMP_NUM_THREADS", "1"), ("LOCAL_WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    assert choose_threads(lambda: None, "a step", CPU) == 4
    assert tried == [(1, 2, 4)]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "16")
    assert local_processes() == 16
    assert choose_threads(lambda: None, "a step", CPU) == 1


def test_on_cuda_threads_are_limited_and_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "usable_cpus", lambda: 1)
    torch.set_num_threads(2)
    assert choose_threads(lambda: pytest.fail("it is called"), "a step", torch.device("cuda")) == 0
    assert torch.get_num_threads() == 1


def test_more_threads_than_cpus_are_said(monkeypatch: pytest.MonkeyPatch, notes: Notes) -> None:
    monkeypatch.setattr(threads, "usable_cpus", lambda: 2)
    threads.warn_of_too_many(2)
    assert notes() == ""
    threads.warn_of_too_many(3)
    assert "run.threads (3) is more than the CPUs of this process (2)" in notes()


def test_processes_of_one_machine_share_its_cpus(monkeypatch: pytest.MonkeyPatch, notes: Notes) -> None:
    monkeypatch.setattr(threads, "usable_cpus", lambda: 4)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    threads.warn_of_too_many(2)
    assert "run.threads (2) is more than the CPUs of this process (1)" in notes()
