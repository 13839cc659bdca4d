"""Recalibrate a sub-network's batch norms, as OFA does."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn import functional

from supernets import Supernet, foldable_norms

MANY_VALUES = 2**12
"""Values per channel from which on a CPU's statistics are summed here. Torch's kernel adds one after the other, which
leaves a relative error of 3e-5 after a hundred thousand values, and it allocates a second tensor."""
CHUNK_VALUES = 2**17
"""Values that are centred and squared at once, so that they stay in a CPU's caches."""


class _Gathering(nn.Module):
    """A batch norm that normalises with its batch, and notes the batch's means and biased variances.

    Args:
        norm: The norm that it stands in for.
        in_place: Whether nothing else reads what it is given.
    """

    def __init__(self, norm: nn.BatchNorm2d, in_place: bool) -> None:
        super().__init__()
        self.norm = norm
        self.in_place = in_place
        self.noted: list[tuple[Tensor, Tensor]] = []

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape."""
        count = x.numel() // x.shape[1]
        if x.device.type == "cpu" and count >= MANY_VALUES:
            mean, var = _statistics(x)
            made = _normalised(x, mean, var, self.norm, self.in_place)
        else:
            mean, var = x.new_zeros(x.shape[1]), x.new_ones(x.shape[1])
            norm = self.norm
            made = functional.batch_norm(x, mean, var, norm.weight, norm.bias, training=True, momentum=1, eps=norm.eps)
            var *= (count - 1) / count
        self.noted.append((mean, var))
        return made


def recalibrate(module: nn.Module, inputs: Iterable[Tensor]) -> None:
    """Recalibrate a plain module's batch norms, in place: mean over images of batch means and variances.

    As in OFA, the variance is the biased one, and batches count by their images. The module is left in evaluation mode.

    Args:
        module: A module with `nn.BatchNorm2d` layers.
        inputs: Normalised images (N, C, H, W) each, N at least 2.
    """
    module.eval()
    lone = set(_lone(module))
    norms = {name: norm for name, norm in module.named_modules() if isinstance(norm, nn.BatchNorm2d)}
    gatherings = {name: _Gathering(norm, name in lone) for name, norm in norms.items()}
    for name, gathering in gatherings.items():
        module.set_submodule(name, gathering)
    sizes: list[int] = []
    try:
        with torch.inference_mode():
            for images in inputs:
                module(images)
                sizes.append(len(images))
    finally:
        for name, norm in norms.items():
            module.set_submodule(name, norm)
    assert sizes, "there is at least one batch to calibrate with"
    for name, norm in norms.items():
        means, variances = (torch.stack(noted) for noted in zip(*gatherings[name].noted, strict=True))
        shares = means.new_tensor(sizes)[:, None] / sum(sizes)
        norm.running_mean, norm.running_var = (means * shares).sum(0), (variances * shares).sum(0)


def _lone(module: nn.Module) -> Iterator[str]:
    """Yield the names of norms that alone read what they are given."""
    for name, part in module.named_modules():
        if isinstance(part, GraphModule):
            prefix = f"{name}." if name else ""
            yield from (prefix + norm for norm in foldable_norms(part))


def _statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance of each channel, in two passes and by pairwise sums."""
    rows = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])
    mean = rows.mean(0)
    squares = torch.zeros_like(mean)
    for part in rows.split(max(1, CHUNK_VALUES // x.shape[1])):
        squares += (part - mean).square_().sum(0)
    return mean, squares / len(rows)


def _normalised(x: Tensor, mean: Tensor, var: Tensor, norm: nn.BatchNorm2d, in_place: bool) -> Tensor:
    scale = norm.weight * (var + norm.eps).rsqrt()
    shift = torch.addcmul(norm.bias, mean, scale, value=-1)
    return torch.addcmul(shift[:, None, None], x, scale[:, None, None], out=x if in_place else None)


def adopt_statistics(net: Supernet, module: nn.Module) -> None:
    """Copy an extracted module's batch-norm statistics into the supernet that it was extracted from."""
    with torch.no_grad():
        for name, layer in module.named_modules():
            if isinstance(layer, nn.BatchNorm2d):
                norm = net.get_submodule(name)
                for key in ("running_mean", "running_var"):
                    statistics = getattr(layer, key)
                    getattr(norm, key)[: len(statistics)].copy_(statistics)
