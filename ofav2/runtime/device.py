"""Set up where a run computes: device, precision, memory layout, threads, and torch's own random numbers."""

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from ofav2.config.schema import ComputeConfig
from ofav2.errors import UserError
from ofav2.rng import Stream
from ofav2.runtime.compiling import Compiler, inductor
from ofav2.runtime.processes import SINGLE_PROCESS, Processes
from ofav2.runtime.threads import warn_of_too_many
from supernets import use_cpu_kernels

logger = logging.getLogger(__name__)

Placed = TypeVar("Placed", bound=nn.Module)


@dataclass(frozen=True)
class Runtime:
    """Device, precision and processes of a run."""

    device: torch.device
    """Where tensors live."""
    precision: str
    """`float32` or `bfloat16`."""
    processes: Processes = SINGLE_PROCESS
    """The processes that compute together."""
    tf32: bool = False
    """Whether training steps on CUDA multiply float32 numbers as TF32."""
    compiler: Compiler | None = None
    """What compiles forward passes that are the same in every step; None: nothing does."""

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context in which forward passes run, inside of another one's context, too."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16")

    @contextmanager
    def tf32_for_training(self) -> Iterator[None]:
        """Return the context of a training step's passes, forward and backward; outside of it, float32 is float32."""
        uses_tf32 = self.tf32 and self.device.type == "cuda"
        if uses_tf32:
            _allow_tf32(True)
        try:
            yield
        finally:
            if uses_tf32:
                _allow_tf32(False)

    def place(self, module: Placed) -> Placed:
        """Move a module to the device, in place, with channels last, the layout that convolutions run fastest in."""
        return module.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def use_cpu_kernels(self, module: nn.Module) -> None:
        """Let a module's convolutions take quicker ways on a CPU, in place; do nothing on another device."""
        if self.device.type == "cpu":
            use_cpu_kernels(module)

    def send(self, tensor: Tensor) -> Tensor:
        """Return the tensor on the device."""
        return tensor.to(self.device, non_blocking=True)


def open_runtime(config: ComputeConfig, processes: Processes = SINGLE_PROCESS) -> Runtime:
    """Set up a recipe's runtime, and torch's thread count if the recipe names one.

    Of several processes, each takes the CUDA device of its number on its machine. On CUDA, float32 means float32 from
    here on: torch would have convolutions use TF32, and an extracted network would differ from the supernet by more
    than the order of additions explains.

    Args:
        config: The run part of a recipe, or of a fine-tuning's settings.
        processes: The processes that compute together.

    Raises:
        UserError: If the device is unknown or not there, or would be shared by processes.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
        warn_of_too_many(config.threads)
    device = _device(config.device)
    if processes.count > 1 and device.type == "cuda":
        device = _own_device(config.device, processes)
        # Without it, torch's current CUDA device would be the first one in every process.
        torch.cuda.set_device(device)
    if device.type == "cuda":
        _allow_tf32(False)
    return Runtime(device, config.precision, processes, config.tf32, inductor if config.compile else None)


def seed_torch(stream: Stream, step: int, rank: int = 0) -> None:
    """Seed torch's own generators, from which dropout draws, by (seed, phase, step).

    Processes draw apart from each other, or the shares of a batch would have the same dropout masks.
    """
    seed = int(stream.at("torch", step).integers(2**63, size=rank + 1)[rank])
    if torch.accelerator.is_available():
        torch.manual_seed(seed)
    else:
        # For accelerators that are not there, `torch.manual_seed` would keep stack traces: half a millisecond a step.
        torch.default_generator.manual_seed(seed)


def _allow_tf32(allowed: bool) -> None:
    # The newer settings, `fp32_precision`, break torch.compile up to torch 2.12: it reads these, and refuses a mixture.
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


def _own_device(name: str, processes: Processes) -> torch.device:
    if ":" in name:
        raise UserError(f"run.device ({name}) would be shared by {processes.count} processes: use cuda or auto")
    there = torch.cuda.device_count()
    if processes.local_rank >= there:
        raise UserError(
            f"run.device ({name}): this machine has {there} CUDA devices for more processes than that:"
            f" start {there} processes a machine, or use cpu"
        )
    return torch.device("cuda", processes.local_rank)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "mps":
        if not torch.backends.mps.is_available():
            raise UserError("run.device (mps): this machine, or this torch, has no MPS; use auto or cpu")
        logger.warning("run.device=mps has not been tested: compare some results with run.device=cpu")
        return torch.device("mps")
    kind, colon, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (colon and not (kind == "cuda" and index.isascii() and index.isdecimal())):
        raise UserError(f"run.device ({name}) is unknown: use auto, cpu, cuda, cuda:N or mps")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"run.device ({name}): this machine has {torch.cuda.device_count()} CUDA devices; use auto or cpu"
        )
    return torch.device(kind, int(index)) if index else torch.device(kind)
