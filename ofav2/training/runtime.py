"""Where a run computes: device, precision, memory layout, threads, and torch's own random numbers."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ofav2.config import RunConfig
from ofav2.draws import generator
from ofav2.errors import UserError


@dataclass(frozen=True)
class Runtime:
    """Device and precision of a run."""

    device: torch.device
    """Where tensors live."""
    precision: str
    """`float32` or `bfloat16`."""

    def autocast(self) -> AbstractContextManager[object]:
        """The context in which forward passes run."""
        if self.precision == "bfloat16":
            return torch.autocast(self.device.type, torch.bfloat16)
        return nullcontext()

    def place(self, module: nn.Module) -> nn.Module:
        """Moves a module to the device, in place, with channels last, the layout that convolutions run fastest in."""
        return module.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def send(self, tensor: Tensor) -> Tensor:
        """The tensor on the device."""
        return tensor.to(self.device, non_blocking=True)


def open_runtime(config: RunConfig) -> Runtime:
    """The runtime that a recipe asks for; sets torch's thread count where the recipe names one.

    Raises:
        UserError: If the device is unknown or not there.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    return Runtime(_device(config.device), config.precision)


def seed_torch(seed: int, phase: int, step: int) -> None:
    """Sets torch's own generators, from which dropout draws, so that a step's numbers depend on its place alone."""
    torch.manual_seed(int(generator("torch", seed, phase, step).integers(2**63)))


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, colon, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (colon and not (kind == "cuda" and index.isascii() and index.isdecimal())):
        raise UserError(f"run.device ({name}) is unknown: use auto, cpu, cuda or cuda:N")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"run.device ({name}): this machine has {torch.cuda.device_count()} CUDA devices; use auto or cpu"
        )
    return torch.device(kind, int(index)) if index else torch.device(kind)
