"""A plain, slow OFAv2 network, written from the method's description on a dictionary of tensors: a second opinion.

Nothing of the package is used but `Subnet`, as a list of choices, and the names of the tensors.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from supernets import Subnet

STRIDES = (2, 2, 2, 1, 2)
HSWISH = (False, False, True, True, True)
SQUEEZE = (False, True, False, True, True)


def divisible(value: float) -> int:
    """The nearest multiple of 8 (upwards from the middle), at least 8, never under 90 % of the value."""
    nearest = min(range(8, int(value) + 17, 8), key=lambda multiple: (abs(multiple - value), -multiple))
    return nearest if nearest >= 0.9 * value else nearest + 8


def hidden(inputs: int, expand: int) -> int:
    return divisible(inputs * expand)


def squeezed(channels: int) -> int:
    return divisible(channels // 4)


def hswish(x: Tensor) -> Tensor:
    return x * (x + 3).clamp(0, 6) / 6


def relu(x: Tensor) -> Tensor:
    return x.clamp(min=0)


def activate(x: Tensor, stage: int) -> Tensor:
    return hswish(x) if HSWISH[stage] else relu(x)


@dataclass
class Reference:
    """The network of a supernet's tensors; `statistics` collects the running statistics that training leaves."""

    state: Mapping[str, Tensor]
    dense: bool
    kernels: tuple[int, ...] = (3, 5, 7)
    stem_stride: int = 2
    training: bool = False
    statistics: dict[str, Tensor] = field(default_factory=dict)

    def run(self, images: Tensor, subnet: Subnet) -> tuple[list[Tensor], dict[int, Tensor]]:
        """Features of the stages that run, and logits of the exits that they pass."""
        x = self.conv(images, "stem.conv", stride=self.stem_stride, padding=1)
        x = hswish(self.norm(x, "stem.norm"))
        y = self.depthwise(x, "first.depthwise", self.state["first.depthwise.weight"], 1)
        y = relu(self.norm(y, "first.depthwise_norm"))
        x = x + self.norm(self.conv(y, "first.project"), "first.project_norm")
        features, logits = [], {}
        for stage in range(subnet.height):
            x = self.stage(x, subnet, stage)
            features.append(x)
            if f"exits.{stage + 1}.classifier.weight" in self.state:
                logits[stage + 1] = self.exit(x, f"exits.{stage + 1}")
        return features, logits

    def stage(self, x: Tensor, subnet: Subnet, stage: int) -> Tensor:
        y = {0: x}
        for i in range(1, subnet.depth[stage] + 1):
            y[i] = self.block(self.with_skips(y, i - 1), subnet, stage, i - 1)
        return self.with_skips(y, subnet.depth[stage])

    def with_skips(self, y: dict[int, Tensor], last: int) -> Tensor:
        """y_i plus the sum of y_1 ... y_{i-2}."""
        total = y[last]
        if self.dense:
            for i in range(1, last - 1):
                total = total + y[i]
        return total

    def block(self, x: Tensor, subnet: Subnet, stage: int, block: int) -> Tensor:
        name = f"stages.{stage}.blocks.{block}"
        stride = STRIDES[stage] if block == 0 else 1
        total = torch.zeros((), dtype=x.dtype)
        if "mbconv" in subnet.level[stage][block]:
            kernel, expand = subnet.kernel[stage][block], subnet.expand[stage][block]
            assert kernel is not None
            assert expand is not None
            y = self.mbconv(x, f"{name}.mbconv", stage, stride, kernel, expand)
            total = total + y + (x if block > 0 else 0)
        if "conv" in subnet.level[stage][block]:
            y = self.norm(self.conv(x, f"{name}.conv.conv", stride=stride), f"{name}.conv.norm")
            total = total + activate(y, stage)
        if "transform" in subnet.level[stage][block]:
            total = total + self.transform(x, f"{name}.transform", stage, stride)
        return total

    def mbconv(self, x: Tensor, name: str, stage: int, stride: int, kernel: int, expand: int) -> Tensor:
        width = hidden(x.shape[1], expand)
        y = x
        if f"{name}.expand.weight" in self.state:
            y = functional.conv2d(x, self.state[f"{name}.expand.weight"][:width])
            y = activate(self.norm(y, f"{name}.expand_norm"), stage)
        weight = self.kernel_of(f"{name}.depthwise", kernel)[:width]
        y = activate(self.norm(self.depthwise(y, name, weight, stride), f"{name}.depthwise_norm"), stage)
        if SQUEEZE[stage]:
            y = self.squeeze(y, f"{name}.squeeze")
        y = functional.conv2d(y, self.state[f"{name}.project.weight"][:, :width])
        return self.norm(y, f"{name}.project_norm")

    def kernel_of(self, name: str, kernel: int) -> Tensor:
        """Kernels of one size, each cut out and multiplied by its matrices one by one."""
        weight, size = self.state[f"{name}.weight"], max(self.kernels)
        while size > kernel:
            smaller = max(k for k in self.kernels if k < size)
            border = (size - smaller) // 2
            matrix = self.state[f"{name}.matrices.{size}to{smaller}"]
            centres = [plane[0, border : size - border, border : size - border] for plane in weight]
            weight = torch.stack([(matrix @ c.flatten()).view(1, smaller, smaller) for c in centres])
            size = smaller
        return weight

    def depthwise(self, x: Tensor, name: str, weight: Tensor, stride: int) -> Tensor:
        return functional.conv2d(x, weight, None, stride, weight.shape[-1] // 2, groups=len(weight))

    def squeeze(self, x: Tensor, name: str) -> Tensor:
        channels = x.shape[1]
        units = squeezed(channels)
        weights = {part: self.state[f"{name}.{part}"] for part in ("reduce.weight", "expand.weight")}
        mean = x.mean(dim=(2, 3))
        y = relu(mean @ weights["reduce.weight"][:units, :channels, 0, 0].T + self.state[f"{name}.reduce.bias"][:units])
        y = y @ weights["expand.weight"][:channels, :units, 0, 0].T + self.state[f"{name}.expand.bias"][:channels]
        return x * ((y + 3).clamp(0, 6) / 6)[:, :, None, None]

    def transform(self, x: Tensor, name: str, stage: int, stride: int) -> Tensor:
        if stride > 1:
            bottom, right = -x.shape[2] % stride, -x.shape[3] % stride
            x = functional.pad(x, (0, right, 0, bottom), value=-torch.inf)
            x = x.unfold(2, stride, stride).unfold(3, stride, stride).amax(dim=(4, 5))
        if x.shape[1] != len(self.state[f"{name}.norm.weight"]):
            x = self.conv(x, f"{name}.conv")
        return activate(self.norm(x, f"{name}.norm"), stage)

    def exit(self, x: Tensor, name: str) -> Tensor:
        x = hswish(self.norm(self.conv(x, f"{name}.widen.conv"), f"{name}.widen.norm"))
        x = hswish(x.mean(dim=(2, 3)) @ self.state[f"{name}.mix.weight"][:, :, 0, 0].T)
        return x @ self.state[f"{name}.classifier.weight"].T + self.state[f"{name}.classifier.bias"]

    def conv(self, x: Tensor, name: str, stride: int = 1, padding: int = 0) -> Tensor:
        return functional.conv2d(x, self.state[f"{name}.weight"], self.state.get(f"{name}.bias"), stride, padding)

    def norm(self, x: Tensor, name: str) -> Tensor:
        """Batch norm of the first channels, by formula; statistics of the batch in training."""
        count = x.shape[1]

        def column(values: Tensor) -> Tensor:
            return values[:count, None, None]

        mean, variance = self.state[f"{name}.running_mean"], self.state[f"{name}.running_var"]
        if self.training:
            batch_mean, batch_variance = x.mean(dim=(0, 2, 3)), x.var(dim=(0, 2, 3), correction=0)
            samples = x.numel() // count
            unbiased = batch_variance * samples / (samples - 1)
            self.statistics[f"{name}.running_mean"] = 0.9 * mean[:count] + 0.1 * batch_mean.detach()
            self.statistics[f"{name}.running_var"] = 0.9 * variance[:count] + 0.1 * unbiased.detach()
            mean, variance = batch_mean, batch_variance
        normal = (x - column(mean)) / (column(variance) + 1e-5).sqrt()
        return normal * column(self.state[f"{name}.weight"]) + column(self.state[f"{name}.bias"])
