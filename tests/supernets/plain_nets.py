"""Small plain networks to attach exits to."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

CLASSES = 5


class Block(nn.Module):
    """A residual block, which a graph with taps outside of it shows as one node."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 2 * channels, 3, stride, 1, bias=False)
        self.norm = nn.BatchNorm2d(2 * channels)
        self.act = nn.ReLU(inplace=True)
        self.skip = nn.Conv2d(channels, 2 * channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm(self.conv(x))
        out += self.skip(x)
        return self.act(out)


class Staged(nn.Module):
    """A stem, three stages and a head whose dropout is a function; `before_head` may change what is computed."""

    def __init__(self, before_head: Callable[[nn.Module, Tensor], Tensor] = lambda net, x: x) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, 1, 1)
        self.stages = nn.Sequential(Block(4, 2), Block(8, 2), Block(16, 1))
        self.head = nn.Linear(32, CLASSES)
        self.before_head = before_head

    def forward(self, images: Tensor, scale: float = 1.0, mask: Tensor | None = None) -> Tensor:
        x = self.stages(self.stem(images)) * scale
        if mask is not None:
            x = x * mask
        x = self.before_head(self, x).mean((2, 3))
        return self.head(functional.dropout(x, 0.5, self.training))


class Tokens(nn.Module):
    """Tokens with a class token in front, and a weight that the forward reads by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 6, 4, 4)
        self.token = nn.Parameter(torch.linspace(-1, 1, 6).reshape(1, 1, 6))
        self.blocks = nn.Sequential(*(nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 6)) for _ in range(3)))
        self.head = nn.Linear(6, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
        return self.head(self.blocks(x)[:, 0])


class Pair(nn.Module):
    """Changes the list of two tensors that it gets, and hands both on."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, given: list[Tensor]) -> list[Tensor]:
        given[0] = self.first(given[0])
        return [given[0], self.second(given[1]) + given[0]]


class Split(nn.Module):
    """Two tensors out of one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, images: Tensor) -> list[Tensor]:
        x = self.conv(images)
        return [x, -x]


class Pairs(nn.Module):
    """Stages that hand on two tensors, as a whole or one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stages, self.head = Split(), nn.ModuleList(Pair() for _ in range(3)), nn.Linear(8, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        first, second = self.stem(images)
        pair = self.stages[1](self.stages[0]([first, second]))
        first, second = self.stages[2](pair)
        return self.head(torch.cat([first, second], 1).mean((2, 3)))


def images(count: int = 3, side: int = 8) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))
