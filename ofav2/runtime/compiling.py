"""Compile forward passes that are the same in every step: the teacher's and the largest network's.

There is a compiled form per shape of images, made when the shape first comes. Where compiling fails, the pass runs
eager: a missing compiler costs speed, not the run.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType

import torch
from torch import Tensor, nn

from ofav2.messages import duration, typed_line
from supernets.outputs import Outputs, exit_logits

logger = logging.getLogger(__name__)

Forward = Callable[[Tensor], Outputs]
"""Images (N, C, H, W) -> logits; random numbers, statistics and gradients are those of the module behind it."""
Compiler = Callable[[Forward], Forward]
"""A forward pass -> one that computes the same, compiled when it is first called."""


def inductor(forward: Forward) -> Forward:
    """Compile a forward pass by torch.compile, whole and for one shape; dropout draws what it draws in eager mode."""

    def form(images: Tensor) -> Outputs:
        return forward(images)

    # torch.compile limits the forms of one code object to 8, and a run may have more resolutions.
    own = FunctionType(form.__code__.replace(), form.__globals__, form.__name__, None, form.__closure__)
    made: Forward = torch.compile(own, fullgraph=True, dynamic=False, options={"fallback_random": True})
    return made


def compiled(name: str, forward: Forward, module: nn.Module, compiler: Compiler | None) -> Forward:
    """Return a forward pass that compiles itself for each shape of images, or the pass itself without a compiler.

    Args:
        name: What messages call it.
        forward: The forward pass.
        module: The module whose parameters and buffers it uses.
        compiler: What compiles it; None leaves it eager.
    """
    return forward if compiler is None else _Compiled(name, forward, module, compiler)


class _Compiled:
    """A forward pass with a compiled form per shape of images; after a failure, new shapes run eager."""

    def __init__(self, name: str, forward: Forward, module: nn.Module, compiler: Compiler) -> None:
        self.name, self.forward, self.module, self.compiler = name, forward, module, compiler
        self.failed = False
        self.forms: dict[tuple[int, ...], Forward] = {}

    def __call__(self, images: Tensor) -> Outputs:
        shape = tuple(images.shape)
        if shape not in self.forms:
            self.forms[shape] = self.forward if self.failed else self._compile(images)
        return self.forms[shape](images)

    def _compile(self, images: Tensor) -> Forward:
        started = time.perf_counter()
        try:
            form = self.compiler(self.forward)
            # The backward pass is compiled when it is first called, and so has to be tried as well.
            with _undone(self.module, images):
                _pass(form, images)
        except Exception as error:
            self.failed = True
            reason = typed_line(error)
            logger.warning(f"{self.name} can't be compiled ({reason}): it runs eager")
            return self.forward
        seconds = duration(time.perf_counter() - started)
        logger.info(f"{self.name} compiled for {images.shape[-1]} pixels in {seconds}")
        return form


def _pass(forward: Forward, images: Tensor) -> None:
    """Run a forward pass, and a backward pass where gradients are enabled."""
    outputs = forward(images)
    if torch.is_grad_enabled():
        # As in a training step, a backward pass is outside of autocast.
        with torch.autocast(images.device.type, enabled=False):
            torch.stack([logits.float().sum() for logits in exit_logits(outputs)]).sum().backward()


@contextmanager
def _undone(module: nn.Module, images: Tensor) -> Iterator[None]:
    """Undo afterwards what the body's passes do to statistics, gradients and torch's random numbers."""
    devices = [images.device] if images.device.type == "cuda" else []
    buffers = [(buffer, buffer.clone()) for buffer in module.buffers()] if torch.is_grad_enabled() else []
    gradients = [(parameter, parameter.grad) for parameter in module.parameters()]
    for parameter, _ in gradients:
        parameter.grad = None
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
        for parameter, gradient in gradients:
            parameter.grad = gradient
