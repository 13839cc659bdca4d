"""Connect the processes of one run: how they meet, exchange values, and end together.

torchrun starts them (or whatever else sets RANK and WORLD_SIZE); a run without it is alone and pays nothing. All go
through the same steps in the same order. Only the first one logs and touches the run folder: what it reads there
the others are told, so the folder need not be on their machines.

Metrics, flags and values go over the CPU (gloo), and so never wait for a GPU; gradients and weights go over the device
they are on (nccl on CUDA). torch pickles values on their way: they come from processes of the run, never from a file.
"""

import logging
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ofav2.errors import UserError
from ofav2.messages import duration, first_line, short
from ofav2.runtime.share import Share
from ofav2.runtime.signals import Lost

T = TypeVar("T")
logger = logging.getLogger(__name__)

PATIENCE = timedelta(minutes=30)
"""How long a process waits for another one that lives and says nothing: longer than anything that one does alone."""
NAME_PATIENCE = timedelta(minutes=1)
"""How long a process waits until the first one's machine is known by name; on clusters, names may come late."""
BUCKET_BYTES = 25 * 2**20
"""Tensors are exchanged in buffers of about this size."""


@dataclass(frozen=True)
class Processes:
    """The processes of a run, seen from one of them. All have to call the same methods in the same order."""

    rank: int = 0
    """Number of this process, from 0."""
    count: int = 1
    """How many there are."""
    local_rank: int = 0
    """Number of this process on its machine, from 0."""

    @property
    def share(self) -> Share:
        """This process's share of what all of them do."""
        return Share(self.rank, self.count)

    def on_main(self, do: Callable[[], T]) -> T:
        """Return what the first process finds when it alone does something; tensors in it must be on the CPU."""
        if self.count == 1:
            return do()
        found = [do() if self.rank == 0 else None]
        with _heard():
            dist.broadcast_object_list(found, src=0, device=torch.device("cpu"))
        return found[0]  # type: ignore[return-value]

    def on_all(self, do: Callable[[], T]) -> T:
        """Return what this process finds when each does something that may be refused; one refusal ends all.

        Raises:
            ValueError: If it was refused here, and in no process before this one.
            Lost: If it was refused in another process, which says why.
        """
        if self.count == 1:
            return do()
        found: T | None = None
        refusal: ValueError | None = None
        try:
            found = do()
        except ValueError as error:
            refusal = error
        refused = [rank for rank, is_refused in enumerate(self.gather(refusal is not None)) if is_refused]
        if refusal is not None and refused[0] == self.rank:
            raise refusal
        if refused:
            raise Lost(f"process {refused[0]} can't go on")
        return found  # type: ignore[return-value]

    def local_main_first(self, do: Callable[[], T]) -> T:
        """As `on_all`, first by one process of each machine and then by its others, who find what that one made."""
        found = self.on_all(lambda: () if self.local_rank else (do(),))
        return self.on_all(lambda: found[0] if found else do())

    def refuse(self, error: Exception) -> NoReturn:
        """End all processes with an error that all of them found; only the first one raises the error itself."""
        if self.rank == 0:
            raise error
        raise Lost("process 0 can't go on") from error

    def gather(self, value: T) -> list[T]:
        """Return every process's value, by rank."""
        if self.count == 1:
            return [value]
        found: list[T | None] = [None] * self.count
        with _heard():
            dist.all_gather_object(found, value)
        return found  # type: ignore[return-value]

    def totals(self, sums: Sequence[Tensor]) -> list[Tensor]:
        """Add tensors on the CPU over the processes, item by item; a process that has nothing to add gives none."""
        return [sum(column[1:], column[0]) for column in zip(*filter(None, self.gather(list(sums))), strict=True)]

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """For each flag, whether any process has it set."""
        if self.count == 1:
            return flags
        raised = torch.tensor(flags, dtype=torch.int32)
        with _heard():
            dist.all_reduce(raised, dist.ReduceOp.MAX)
        return tuple(bool(flag) for flag in raised)

    def mean(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Return the metrics' means over the processes, the same to the last bit in each."""
        if self.count == 1:
            return dict(metrics)
        values = torch.tensor(list(metrics.values()), dtype=torch.float64)
        with _heard():
            dist.all_reduce(values)
        return dict(zip(metrics, (values / self.count).tolist(), strict=True))

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by their means over the processes, the same to the last bit in each."""
        if self.count > 1:
            for bucket in _buckets(tensors):
                flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
                with _heard():
                    dist.all_reduce(flat)
                _spread(flat.div_(self.count), bucket)

    def copy_first(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by those of the first process."""
        if self.count > 1:
            for bucket in _buckets(tensors):
                flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
                with _heard():
                    dist.broadcast(flat, src=0)
                _spread(flat, bucket)


SINGLE_PROCESS = Processes()
"""One process, as every run is that torchrun didn't start."""


def own_rank() -> int:
    """Return the number of this process among those started together, from 0; 0 for one started alone."""
    count = _started()
    rank = _number("RANK", 0) if count > 1 else 0
    if rank >= count:
        raise UserError(f"RANK ({rank}) in the environment must be below WORLD_SIZE ({count}): start with torchrun")
    return rank


@contextmanager
def process_group() -> Iterator[Processes]:
    """Join the processes that were started together, for as long as the body runs; only the first one logs.

    Where the body has joined already, it stays in what it joined.

    Yields:
        The processes; of a process that was started alone, `SINGLE_PROCESS`.

    Raises:
        UserError: If the processes can't find each other.
    """
    if _started() == 1:
        yield SINGLE_PROCESS
        return
    processes = Processes(own_rank(), _started(), _number("LOCAL_RANK", 0))
    if dist.is_initialized():
        yield processes
        return
    _meet(processes)
    try:
        with _silence() if processes.rank else nullcontext():
            yield processes
    finally:
        # Whoever still waits for this process learns that it has left.
        dist.destroy_process_group()


@contextmanager
def _silence() -> Iterator[None]:
    """Log nothing in the body, as another process logs the same."""
    package = logging.getLogger("ofav2")
    level = package.level
    package.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        package.setLevel(level)


def _started() -> int:
    count = _number("WORLD_SIZE", 1)
    if not count:
        raise UserError("WORLD_SIZE (0) in the environment must be 1 or more: unset it to train in one process")
    return count


def _number(name: str, otherwise: int) -> int:
    text = os.environ.get(name, str(otherwise))
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise UserError(
            f"{name} ({short(text)}) in the environment must be a whole number: start processes with torchrun"
        )
    return int(text)


def _meet(processes: Processes) -> None:
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    if host := os.environ.get("MASTER_ADDR"):
        _await_name(host)
    try:
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            store, rank, count = _clean_store(processes), processes.rank, processes.count
            dist.init_process_group(backend, timeout=PATIENCE, store=store, rank=rank, world_size=count)
        else:
            dist.init_process_group(backend, timeout=PATIENCE)
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"WORLD_SIZE ({_started()}): the processes can't find each other ({first_line(error)});"
            " start them with torchrun, or unset WORLD_SIZE to train in one process"
        ) from error


def _await_name(host: str) -> None:
    """Wait until a machine is known by its name; torch would try for all of `PATIENCE` without a word.

    Raises:
        UserError: It is not after `NAME_PATIENCE`.
    """
    deadline = time.monotonic() + NAME_PATIENCE.total_seconds()
    said = False
    while True:
        try:
            socket.getaddrinfo(host, None)
            return
        except (OSError, UnicodeError) as error:
            problem = f"MASTER_ADDR ({short(host)}) is no machine that is known here ({short(str(error))})"
            if time.monotonic() >= deadline:
                raise UserError(f"{problem}: give the first process's machine by its name or address") from error
        if not said:
            logger.warning(f"{problem}: trying for {duration(NAME_PATIENCE.total_seconds())}")
            said = True
        time.sleep(1)


def _clean_store(processes: Processes) -> "dist.Store":  # type: ignore[name-defined]
    """Return a part of torchrun's store that only these processes know.

    The store outlives restarts and holds the addresses of processes that were killed, which new ones would try to
    reach. Restart counts can't tell the old from the new, as each machine has its own. So each process waits until the
    first one has answered it by name, and the first one until each of them has heard it.
    """
    host, port = os.environ["MASTER_ADDR"], _number("MASTER_PORT", 0)
    store = dist.TCPStore(host, port, is_master=False, timeout=PATIENCE)  # type: ignore[attr-defined]
    me = f"{socket.gethostname()}/{os.getpid()}/{time.time_ns()}"
    if processes.rank:
        store.set(f"ofav2/here/{processes.rank}", me)
        first = store.get(f"ofav2/answer/{me}").decode()
        store.set(f"ofav2/heard/{first}/{processes.rank}", "")
        return dist.PrefixStore(f"ofav2/{first}", store)  # type: ignore[attr-defined]
    missing = set(range(1, processes.count))
    deadline = time.monotonic() + PATIENCE.total_seconds()
    while missing:
        if time.monotonic() > deadline:
            raise RuntimeError(f"process {min(missing)} did not come")
        for rank in missing:
            if store.check([f"ofav2/here/{rank}"]):
                # It may be one that was killed; then another one will come under its number.
                store.set(f"ofav2/answer/{store.get(f'ofav2/here/{rank}').decode()}", me)
        missing = {rank for rank in missing if not store.check([f"ofav2/heard/{me}/{rank}"])}
        time.sleep(0.02)
    return dist.PrefixStore(f"ofav2/{me}", store)  # type: ignore[attr-defined]


@contextmanager
def _heard() -> Iterator[None]:
    """Return what torch raises when another process is gone, as the end of this one."""
    try:
        yield
    except RuntimeError as error:
        raise Lost(f"another process of the run is gone ({first_line(error)})") from error


def _buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Tensors in order, in groups of one type and of about `BUCKET_BYTES`."""
    bucket: list[Tensor] = []
    size = 0
    for tensor in sorted(tensors, key=lambda tensor: str(tensor.dtype)):
        if bucket and (size + tensor.nbytes > BUCKET_BYTES or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.nbytes
    if bucket:
        yield bucket


def _spread(flat: Tensor, bucket: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for tensor, piece in zip(bucket, flat.split([tensor.numel() for tensor in bucket]), strict=True):
            tensor.copy_(piece.view(tensor.shape))
