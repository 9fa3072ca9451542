"""Small hosts, most of them with three slots: stem → block1 → block2 → block3 → head.

Each block is a residual step h + relu(layer(h)) at every position on its own, so that what a host lacks (neighbours,
normalisation, width, attention) is left to growth.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn


def block_names(count: int) -> tuple[str, ...]:
    """Names of the slots of a host with ``count`` blocks: block1, block2, and so on."""
    return tuple(f"block{number}" for number in range(1, count + 1))


BLOCKS = block_names(3)
"""Names of the slots of a host with three blocks."""


class Residual(nn.Module):
    """h + relu(layer(h)); ``layer`` keeps the shape of h."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, h: Tensor) -> Tensor:
        """The same shape as ``h``."""
        return h + torch.relu(self.layer(h))


class SegmentMean(nn.Module):
    """Mean over each of ``segments`` equal stretches of a sequence: ``[N, L, C]`` → ``[N, segments · C]``."""

    def __init__(self, segments: int) -> None:
        super().__init__()
        self.segments = segments

    def forward(self, h: Tensor) -> Tensor:
        """``[N, L, C]`` → ``[N, segments · C]``; L must be a multiple of ``segments``."""
        return h.unflatten(1, (self.segments, -1)).mean(2).flatten(1)


class GlobalMean(nn.Module):
    """Mean over an image: ``[N, C, H, W]`` → ``[N, C]``."""

    def forward(self, h: Tensor) -> Tensor:
        """``[N, C, H, W]`` → ``[N, C]``."""
        return h.mean((2, 3))


class Host(nn.Sequential):
    """A stem, blocks (the slots) and a head.

    It answers with class logits ``[N, classes]``, or ``[N, L, classes]`` where the head answers at every position.

    Args:
        stem: Turns an input into channels.
        layer: Makes one layer that keeps the shape of the stem's output.
        head: Turns channels into class logits.
        depth: Layers in each block.
        slots: Names of the blocks, in the order of execution.
    """

    def __init__(
        self,
        stem: nn.Module,
        layer: Callable[[], nn.Module],
        head: nn.Module,
        depth: int = 1,
        slots: tuple[str, ...] = BLOCKS,
    ) -> None:
        blocks = {slot: nn.Sequential(*(Residual(layer()) for _ in range(depth))) for slot in slots}
        super().__init__(OrderedDict(stem=stem, **blocks, head=head))


def scaled(channels: int, width: float) -> int:
    """``channels`` times ``width``, rounded to a multiple of 4 and at least 4."""
    return max(4, 4 * round(channels * width / 4))


def vector_host(features: int, classes: int, channels: int, depth: int = 1) -> Host:
    """A small MLP for vectors ``[N, features]``."""
    return Host(
        nn.Linear(features, channels), lambda: nn.Linear(channels, channels), nn.Linear(channels, classes), depth
    )


def sequence_host(
    inputs: int, segments: int, classes: int, channels: int, depth: int = 1, slots: tuple[str, ...] = BLOCKS
) -> Host:
    """A pointwise network for sequences ``[N, L, inputs]``: no position sees another before the head.

    The head reads the means of ``segments`` equal stretches; L must be a multiple of ``segments``. ``slots`` names the
    blocks.
    """
    head = nn.Sequential(SegmentMean(segments), nn.Linear(segments * channels, classes))
    return Host(nn.Linear(inputs, channels), lambda: nn.Linear(channels, channels), head, depth, slots)


def image_host(inputs: int, classes: int, channels: int, stride: int, kernel: int = 1, depth: int = 1) -> Host:
    """A small convolutional network for images ``[N, inputs, H, W]``.

    The stem is a strided convolution, each block one of size ``kernel``; the head reads the mean over the image.
    """
    size = max(3, 2 * stride - 1)
    stem = nn.Sequential(nn.Conv2d(inputs, channels, size, stride, padding=size // 2), nn.ReLU())
    head = nn.Sequential(GlobalMean(), nn.Linear(channels, classes))
    return Host(stem, lambda: nn.Conv2d(channels, channels, kernel, padding=kernel // 2), head, depth)


def token_host(vocabulary: int, channels: int, depth: int = 1) -> Host:
    """A network for tokens ``[N, L]`` that answers at every position and sees only the token there."""
    return Host(
        nn.Embedding(vocabulary, channels),
        lambda: nn.Linear(channels, channels),
        nn.Linear(channels, vocabulary),
        depth,
    )
