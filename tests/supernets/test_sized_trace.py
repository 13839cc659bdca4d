"""A forward that computes with sizes becomes a graph for images of one size, and of any batch."""

import pytest
import torch
from torch import Tensor, nn

from supernets.graphs import GraphError
from supernets.taps import trace

SHAPE = (3, 8, 8)


class Sized(nn.Module):
    """Decides by sizes, loops over them and folds them into the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 4, 3, 2, 1), nn.Linear(4, 5)
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, images: Tensor) -> Tensor:
        features = self.stem(images)
        count, channels, height, width = features.shape
        if height % 2 or len(features.size()) != 4:
            features = features[:, :, :-1]
        windows = features.reshape(count, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
        windows = self.scale * windows.reshape(count * (height // 2) * (width // 2), channels, -1).mean(2)
        first, *_ = windows.reshape(count, -1, channels).unbind(1)
        total: Tensor = first + sum(windows.reshape(count, -1, channels)[:, place] for place in range(height // 2))
        return self.head(total)


class Batched(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.stem(images)
        return features.mean() if features.shape[0] > 1 and features.shape[1] == 4 else features


class Making(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.stem(images)
        return features + torch.ones(features.shape[1], 1, 1)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_graph_computes_what_the_network_does_at_every_batch(count: int) -> None:
    net = Sized()
    with pytest.raises(GraphError, match="can't be traced"):
        trace(net, ("stem",))
    graph, images = trace(net, ("stem",), SHAPE), torch.randn(count, *SHAPE)
    assert torch.equal(graph(images), net(images))
    assert graph.get_parameter("head.weight") is net.head.weight


class Measuring(nn.Module):
    """Gives features and their size, as a list."""

    def forward(self, features: Tensor) -> tuple[Tensor, list[int]]:
        return features, [features.shape[2], features.shape[3]]


class Measured(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.measuring = nn.Conv2d(3, 4, 1), Measuring()

    def forward(self, images: Tensor) -> Tensor:
        features, size = self.measuring(self.stem(images))
        height, width = size
        total: Tensor = sum(features[:, :, row, : width // 2].mean(2) for row in range(height // 2))
        return total


def test_sizes_that_a_module_gives_are_numbers() -> None:
    net, images = Measured(), torch.randn(5, *SHAPE)
    graph = trace(net, ("stem",), SHAPE)
    assert torch.equal(graph(images), net(images))
    assert "slice(None, 4, None)" in str(graph.graph)
    assert [node.name for node in graph.graph.find_nodes(op="call_method", target="size") if node.users] == []


@pytest.mark.parametrize("net", [Batched(), Making()], ids=["decides by the batch", "makes constants"])
def test_what_would_hold_for_one_batch_or_device_alone_is_refused(net: nn.Module) -> None:
    with pytest.raises(GraphError, match="can't be traced"):
        trace(net, ("stem",), SHAPE)
