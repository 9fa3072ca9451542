"""Hosts of 20,000 to 200,000 parameters, written as they are in practice: with normalisation, residuals, attention.

Their slots are whole stages or blocks, three a host, named in the order of execution.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from esper.tasks.hosts import BLOCKS, GlobalMean, SegmentMean

STAGES = ("stage1", "stage2", "stage3")
"""Names of the slots of a residual network."""

Norm = Callable[[int], nn.Module]


class BasicBlock(nn.Module):
    """Two 3×3 convolutions with normalisation and a shortcut (He and others 2016): ``[N, C, H, W]`` → ``[N, C', …]``.

    Args:
        inputs: C.
        outputs: C'.
        stride: Of the first convolution, and of the shortcut's where the shape changes.
        norm: Makes a normalisation of so many channels.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = norm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = norm(outputs)
        changed = stride > 1 or inputs != outputs
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if changed else nn.Identity()

    def forward(self, h: Tensor) -> Tensor:
        """``[N, C, H, W]`` → ``[N, C', H / stride, W / stride]``."""
        branch = self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(h)))))
        return torch.relu(self.shortcut(h) + branch)


def residual_network(inputs: int, classes: int, channels: int, depth: int, norm: Norm) -> nn.Module:
    """A residual network for images ``[N, inputs, H, W]``: three stages of 1, 2 and 4 times ``channels``.

    The stem and the last two stages halve the image; a stage has ``depth`` blocks.
    """
    widths = (channels, 2 * channels, 4 * channels)
    stem = nn.Sequential(nn.Conv2d(inputs, channels, 3, stride=2, padding=1, bias=False), norm(channels), nn.ReLU())
    layers: OrderedDict[str, nn.Module] = OrderedDict(stem=stem)
    before = channels
    for name, width in zip(STAGES, widths, strict=True):
        first = BasicBlock(before, width, 1 if name == STAGES[0] else 2, norm)
        layers[name] = nn.Sequential(first, *(BasicBlock(width, width, 1, norm) for _ in range(depth - 1)))
        before = width
    layers["head"] = nn.Sequential(GlobalMean(), nn.Linear(before, classes))
    return nn.Sequential(layers)


class PreNorm(nn.Module):
    """h + layer(norm(h)), over the last axis."""

    def __init__(self, channels: int, layer: nn.Module) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.layer = layer

    def forward(self, h: Tensor) -> Tensor:
        """The same shape as ``h``."""
        return h + self.layer(self.norm(h))


def two_layers(channels: int, hidden: int) -> nn.Module:
    """Linear, GELU, Linear: ``[..., channels]`` → ``[..., channels]``."""
    return nn.Sequential(nn.Linear(channels, hidden), nn.GELU(), nn.Linear(hidden, channels))


class SelfAttention(nn.Module):
    """Multi-head self-attention over ``[N, L, channels]``; with ``causal`` no position sees those after it."""

    def __init__(self, channels: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.query_key_value = nn.Linear(channels, 3 * channels)
        self.project = nn.Linear(channels, channels)

    def forward(self, h: Tensor) -> Tensor:
        """The same shape as ``h``."""
        query, key, value = self.query_key_value(h).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        return self.project(mixed.transpose(1, 2).flatten(2))


class ConvolutionOverTime(nn.Conv1d):
    """A convolution over the positions of ``[N, L, channels]``; keeps the shape."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__(channels, channels, kernel, padding=kernel // 2)

    def forward(self, h: Tensor) -> Tensor:
        """The same shape as ``h``."""
        return super().forward(h.transpose(1, 2)).transpose(1, 2)


class GRUOverTime(nn.GRU):
    """A gated recurrent unit over the positions of ``[N, L, channels]``, first to last; keeps the shape."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, batch_first=True)

    def forward(self, h: Tensor) -> Tensor:  # type: ignore[override]
        """The same shape as ``h``."""
        return super().forward(h)[0]


class Positions(nn.Module):
    """Adds a learned vector for each of ``length`` positions to ``[N, length, channels]``."""

    def __init__(self, length: int, channels: int) -> None:
        super().__init__()
        self.vectors = nn.Parameter(0.02 * torch.randn(length, channels))

    def forward(self, h: Tensor) -> Tensor:
        """The same shape as ``h``."""
        return h + self.vectors


class PixelsToSequence(nn.Module):
    """``[N, C, H, W]`` → ``[N, H · W, C]``, row by row."""

    def forward(self, h: Tensor) -> Tensor:
        """``[N, C, H, W]`` → ``[N, H · W, C]``."""
        return h.flatten(2).transpose(1, 2)


def in_blocks(stem: nn.Module, block: Callable[[], nn.Module], head: nn.Module, depth: int) -> nn.Module:
    """Stem, three slots of ``depth`` blocks each, head."""
    blocks = {slot: nn.Sequential(*(block() for _ in range(depth))) for slot in BLOCKS}
    return nn.Sequential(OrderedDict(stem=stem, **blocks, head=head))


def _transformer_block(channels: int, hidden: int, causal: bool) -> nn.Module:
    attention = PreNorm(channels, SelfAttention(channels, heads=4, causal=causal))
    return nn.Sequential(attention, PreNorm(channels, two_layers(channels, hidden)))


def vector_network(features: int, classes: int, channels: int, depth: int) -> nn.Module:
    """A residual MLP for tables ``[N, features]``: three blocks, each normalised first."""
    return in_blocks(
        nn.Linear(features, channels),
        lambda: PreNorm(channels, two_layers(channels, channels)),
        nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, classes)),
        depth,
    )


def vision_transformer(inputs: int, side: int, classes: int, channels: int, depth: int) -> nn.Module:
    """A transformer over square images of ``side`` pixels, after a stem of convolutions (Xiao and others 2021).

    Three convolutions of stride 2, then three blocks of four heads over what is left of the pixels; the head reads the
    mean of all positions.
    """
    positions = math.ceil(side / 8) ** 2
    stem = nn.Sequential(
        nn.Conv2d(inputs, channels // 2, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(channels // 2, channels, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(channels, channels, 3, stride=2, padding=1),
        PixelsToSequence(),
        Positions(positions, channels),
    )
    head = nn.Sequential(nn.LayerNorm(channels), SegmentMean(1), nn.Linear(channels, classes))
    return in_blocks(stem, lambda: _transformer_block(channels, 2 * channels, causal=False), head, depth)


def causal_transformer(vocabulary: int, length: int, channels: int, depth: int) -> nn.Module:
    """A decoder for tokens ``[N, length]``, normalised first (Radford and others 2019): three blocks of four heads."""
    stem = nn.Sequential(nn.Embedding(vocabulary, channels), Positions(length, channels))
    head = nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, vocabulary))
    return in_blocks(stem, lambda: _transformer_block(channels, 4 * channels, causal=True), head, depth)


def token_convolutions(vocabulary: int, segments: int, classes: int, channels: int, depth: int) -> nn.Module:
    """A convolutional network for tokens ``[N, L]``: three blocks of a convolution over time and an MLP.

    The head reads the means of ``segments`` equal stretches; L must be a multiple of ``segments``.
    """

    def block() -> nn.Module:
        mixing = PreNorm(channels, nn.Sequential(ConvolutionOverTime(channels, 5), nn.GELU()))
        return nn.Sequential(mixing, PreNorm(channels, two_layers(channels, 2 * channels)))

    head = nn.Sequential(nn.LayerNorm(channels), SegmentMean(segments), nn.Linear(segments * channels, classes))
    return in_blocks(nn.Embedding(vocabulary, channels), block, head, depth)


def recurrent_network(inputs: int, classes: int, channels: int, depth: int) -> nn.Module:
    """A recurrent network for sequences ``[N, L, inputs]``: three residual GRU blocks; the head reads their mean."""
    head = nn.Sequential(nn.LayerNorm(channels), SegmentMean(1), nn.Linear(channels, classes))
    return in_blocks(nn.Linear(inputs, channels), lambda: PreNorm(channels, GRUOverTime(channels)), head, depth)
