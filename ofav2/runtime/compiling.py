"""Compiled forms of the forward passes that are the same in every step: the teacher's and the largest network's.

A form is compiled once per shape of images, when it comes, and tried before it is used: a compiler that is missing or
fails costs speed and no run, and if the first form is slower than the pass as it is, that is said, and none is used.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ofav2.messages import duration
from supernets.outputs import Outputs

logger = logging.getLogger(__name__)

Forward = Callable[[Tensor], Outputs]
"""Images (N, C, H, W) -> logits; rng, statistics and gradients are those of the module behind it."""
Compiler = Callable[[Forward], Forward]
"""A forward pass -> one that computes the same, compiled when it is first called."""

TRIALS = 3
"""Calls of each form that are timed."""
SLOWER = 1.05
"""From how many times the time of the pass as it is a compiled one is given up. Somewhat more than 1: where there is no
difference, a run that goes on should choose as it did before."""
_FORMS = 4096
"""More compiled forms of one function than a run has resolutions; torch would leave it at 8."""


def inductor(forward: Forward) -> Forward:
    """torch.compile, whole and for one shape; dropout draws what it would have drawn."""
    form: Forward = torch.compile(forward, fullgraph=True, dynamic=False, options={"fallback_random": True})
    return form


def compiled(name: str, forward: Forward, module: nn.Module, compiler: Compiler | None) -> Forward:
    """A forward pass in its compiled form, or as it is where there is no compiler.

    Args:
        name: What messages call it.
        forward: The forward pass.
        module: The module whose parameters and buffers it uses.
        compiler: What compiles it; None leaves it as it is.
    """
    return forward if compiler is None else _Compiled(name, forward, module, compiler)


class _Compiled:
    """A forward pass with a compiled form per shape of images; when they are given up, those that there are remain."""

    def __init__(self, name: str, forward: Forward, module: nn.Module, compiler: Compiler) -> None:
        self.name, self.forward, self.module, self.compiler = name, forward, module, compiler
        self.given_up = False
        self.forms: dict[tuple[int, ...], Forward] = {}

    def __call__(self, images: Tensor) -> Outputs:
        shape = tuple(images.shape)
        if shape not in self.forms:
            self.forms[shape] = self.forward if self.given_up else self._tried(images)
        return self.forms[shape](images)

    def _tried(self, images: Tensor) -> Forward:
        """The compiled form, if it works."""
        side, started = images.shape[-1], time.perf_counter()
        try:
            # As torch counts forms per code, not per form of a module, all of a process's count.
            limits = torch._dynamo.config.patch(recompile_limit=_FORMS, accumulated_recompile_limit=_FORMS)
            with limits, _undone(self.module, images):
                form = self.compiler(self.forward)
                _pass(form, images)
        except Exception as error:
            self.given_up = True
            reason = (str(error).strip().splitlines() or [""])[0][:200]
            logger.warning(f"{self.name} can't be compiled ({type(error).__name__}: {reason}): it runs as it is")
            return self.forward
        logger.info(f"{self.name} compiled for {side} pixels in {duration(time.perf_counter() - started)}")
        if not self.forms:
            self.given_up = self._is_slower(form, images)
        return self.forward if self.given_up else form

    def _is_slower(self, form: Forward, images: Tensor) -> bool:
        with _undone(self.module, images):
            _pass(self.forward, images)
            compiled_ms, plain_ms = ((_quickest(one, images)) for one in (form, self.forward))
        slower = compiled_ms > SLOWER * plain_ms
        verdict = ": it runs as it is" if slower else ""
        logger.info(f"{self.name}, compiled: {compiled_ms:.1f} ms, as it is: {plain_ms:.1f} ms{verdict}")
        return slower


def _quickest(forward: Forward, images: Tensor) -> float:
    """Milliseconds of the quickest of some calls, with their backward pass where there is one."""
    times = []
    for _ in range(TRIALS):
        started = time.perf_counter()
        _pass(forward, images)
        times.append(1000 * (time.perf_counter() - started))
    return min(times)


def _pass(forward: Forward, images: Tensor) -> None:
    """A forward pass, and, where gradients are wanted, a backward pass, to their end."""
    outputs = forward(images)
    if torch.is_grad_enabled():
        logits: Sequence[Tensor] = (outputs,) if isinstance(outputs, Tensor) else outputs
        # As in a training step, a backward pass is outside of autocast.
        with torch.autocast(images.device.type, enabled=False):
            torch.stack([exit_logits.float().sum() for exit_logits in logits]).sum().backward()
    if images.device.type == "cuda":
        torch.cuda.synchronize(images.device)


@contextmanager
def _undone(module: nn.Module, images: Tensor) -> Iterator[None]:
    """Whatever passes do to statistics, gradients and torch's random numbers in the body is undone after it."""
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
