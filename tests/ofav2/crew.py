"""Several processes that run a test's function together, as torchrun would start them but without its start-up time."""

import faulthandler
import multiprocessing
import os
import pickle
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch

from ofav2.runtime.processes import Processes, process_group

PATIENCE = 120.0
"""Seconds after which a crew that hangs is ended, and its test fails."""


@dataclass(frozen=True)
class Ended:
    """How a member of a crew ended."""

    found: Any
    """What its function returned; None if it raised or was killed."""
    error: Exception | None
    """What it raised."""
    code: int | None
    """Its exit code."""


def crew(count: int, job: Callable[[Processes], Any]) -> list[Any]:
    """What the job returns in each of `count` processes, by rank; all have to succeed."""
    ended = run_crew(count, job)
    for member in ended:
        if member.error is not None:
            raise member.error
        assert member.code == 0
    return [member.found for member in ended]


def run_crew(
    count: int, job: Callable[[Processes], Any], env: Mapping[int, Mapping[str, str]] | None = None
) -> list[Ended]:
    """How `count` processes end that run the job after they have joined; `env` adds to the environment by rank."""

    def joined() -> Any:
        with process_group() as processes:
            return job(processes)

    return run_apart(count, joined, env)


def run_apart(count: int, job: Callable[[], Any], env: Mapping[int, Mapping[str, str]] | None = None) -> list[Ended]:
    """How `count` processes end that run a job which has to join them itself."""
    context = multiprocessing.get_context("fork")
    port = _free_port()
    members = []
    for rank in range(count):
        ours, theirs = context.Pipe(duplex=False)
        named = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        settings = {name: str(value) for name, value in named.items()} | dict((env or {}).get(rank, {}))
        process = context.Process(target=_member, args=(job, settings, theirs))
        process.start()
        theirs.close()
        members.append((process, ours))
    try:
        return [_end_of(process, ours) for process, ours in members]
    finally:
        for process, _ in members:
            process.kill()
            process.join()


def _end_of(process: Any, ours: Connection) -> Ended:
    assert ours.poll(PATIENCE), "the crew hangs"
    try:
        found, error = pickle.loads(ours.recv_bytes())
    except EOFError:
        found, error = None, None
    process.join(PATIENCE)
    return Ended(found, error, process.exitcode)


def _member(job: Callable[[], Any], settings: Mapping[str, str], theirs: Connection) -> None:
    # The parent's pool of threads did not come along.
    torch.set_num_threads(1)
    os.environ.update(settings)
    # A member that hangs says where, just before the test that waits for it fails.
    faulthandler.dump_traceback_later(PATIENCE - 5)
    found, error = None, None
    try:
        found = job()
    except Exception as raised:
        error = raised
    theirs.send_bytes(pickle.dumps((found, error)))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
