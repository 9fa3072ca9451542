"""Parts of an observation that are no plain numbers, and what encodes them: images, indices, the user's own.

Shapes: N rows, M of them valid, E size of an encoding, C channels, Y height, X width, k indices of a part.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from esper.modes import modes_kept
from esper.tamiyo.networks.initialization import HIDDEN_GAIN, linear

PartKind = Literal["image", "indices", "own"]

_LARGEST_MAP, _LARGE_SIDE = 8, 32
_KERNELS = {1: (3, 1), 2: (3, 1), 4: (8, 3)}
"""Stride → kernel and padding: kernels overlap, and the last one reaches the end, so that every pixel is seen."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One part of an observation, beside the features.

    Args:
        name: Its path in the observation.
        kind: What encodes it: convolutions, an embedding of its indices, or a module of the user's own.
        shape: Of one row; of an image ``(C, Y, X)``.
        low: What an image has least, by its space; 0 where that is not finite.
        high: What it has most; 1 where that is not finite.
        choices: How many values each index may take.
    """

    name: str
    kind: PartKind
    shape: tuple[int, ...]
    low: float = 0.0
    high: float = 1.0
    choices: tuple[int, ...] = ()


class ImageEncoder(nn.Module):
    """Convolutions that make each side smaller until it has 8 pixels or fewer, and a linear layer.

    A side of more than 32 pixels is first divided by 4, with a kernel of 8 as in Mnih et al. (2015); all others are
    halved, with a kernel of 3. So a picture of 7 by 7 keeps its pixels, and one of 84 by 84 becomes 21, 11 and 6 pixels
    wide. The first layer's output is normalised: what is shown in numbers from 0 to 10 of 255 is seen, too.

    Args:
        part: The image.
        size: E.
    """

    def __init__(self, part: Part, size: int) -> None:
        super().__init__()
        self.low, self.scale = part.low, 1.0 / (part.high - part.low)
        channels, *sides = part.shape
        layers: list[nn.Module] = []
        width = 32
        while not layers or max(sides) > _LARGEST_MAP:
            largest = 4 if not layers else 2
            strides = [largest if side > _LARGE_SIDE else 2 if side > _LARGEST_MAP else 1 for side in sides]
            layers += [_convolution(channels, width, strides), nn.ReLU(inplace=True)]
            if len(layers) == 2:
                layers.insert(1, nn.GroupNorm(1, width))
            sides = [_after(side, stride) for side, stride in zip(sides, strides, strict=True)]
            channels, width = width, 64
        layers += [_convolution(channels, width, [1, 1]), nn.ReLU(inplace=True), nn.Flatten()]
        self.layers = nn.Sequential(*layers, linear(width * math.prod(sides), size, HIDDEN_GAIN), nn.ReLU())

    def forward(self, image_NCYX: Shaped[Tensor, "N C Y X"]) -> Float[Tensor, "N E"]:
        """Encodings, of images of any type of number."""
        weight = self.layers[0].weight
        assert isinstance(weight, Tensor)
        # Convolutions on a processor take 0.55 to 0.68 of the time channels last.
        numbers = image_NCYX.to(weight.dtype, memory_format=torch.channels_last)
        return self.layers((numbers - self.low) * self.scale)


class IndexEncoder(nn.Module):
    """The sum of one vector for each index: what a linear layer makes of one-hot numbers, without the numbers.

    Args:
        part: The indices.
        size: E.
    """

    def __init__(self, part: Part, size: int) -> None:
        super().__init__()
        count = len(part.choices)
        self.table = nn.Embedding(sum(part.choices), size)
        nn.init.normal_(self.table.weight, std=1 / math.sqrt(count))
        starts = torch.tensor([0, *part.choices[:-1]]).cumsum(0)
        self.starts = nn.Buffer(starts, persistent=False)

    def forward(self, indices: Int[Tensor, "N ..."]) -> Float[Tensor, "N E"]:
        """Encodings, of indices from 0 to below what each may take."""
        return F.embedding_bag(indices.reshape(indices.shape[0], -1) + self.starts, self.table.weight, mode="sum")


class OwnEncoder(nn.Module):
    """A module of the user's own, of which is found out how much it says.

    Args:
        part: What it encodes.
        module: Takes ``[N, *shape]`` of floating point numbers as the environment shows them, and gives ``[N, E]``.

    Raises:
        ValueError: When it gives something else.
    """

    def __init__(self, part: Part, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        with torch.no_grad(), modes_kept(module):
            shown = module.eval()(torch.zeros(2, *part.shape))
        if not isinstance(shown, Tensor) or shown.ndim != 2 or len(shown) != 2:
            got = list(shown.shape) if isinstance(shown, Tensor) else type(shown).__name__
            raise ValueError(
                f"the encoder given for '{part.name}': expected [N, E], one vector per row of its input "
                f"[N, {', '.join(map(str, part.shape))}], got {got} for N = 2"
            )
        self.size = shown.shape[1]

    def forward(self, x: Shaped[Tensor, "N ..."]) -> Float[Tensor, "N E"]:
        """What the module makes of it."""
        return self.module(x)


class PartEncoder(nn.Module):
    """All parts of an observation, encoded and joined.

    Args:
        parts: The parts, in order.
        size: E, of each that is not the user's own.
        own: Modules of the user's own, by part.

    Raises:
        ValueError: When such a module is missing, names no part that is to have one, or is not fit.
    """

    def __init__(self, parts: tuple[Part, ...], size: int, own: Mapping[str, nn.Module]) -> None:
        super().__init__()
        expected = [part.name for part in parts if part.kind == "own"]
        if sorted(own) != sorted(expected):
            raise ValueError(
                f"expected encoders, modules of your own, for the parts {expected} of the observation, "
                f"got {sorted(own)}"
            )
        self.parts = parts
        self.encoders = nn.ModuleList()
        self.size = 0
        for part in parts:
            if part.kind == "own":
                encoder: nn.Module = OwnEncoder(part, own[part.name])
            else:
                encoder = ImageEncoder(part, size) if part.kind == "image" else IndexEncoder(part, size)
            self.encoders.append(encoder)
            self.size += encoder.size if isinstance(encoder, OwnEncoder) else size

    @property
    def own(self) -> dict[str, nn.Module]:
        """The modules of the user's own, by part."""
        pairs = zip(self.parts, self.encoders, strict=True)
        return {part.name: e.module for part, e in pairs if isinstance(e, OwnEncoder)}

    def forward(
        self, shown: Mapping[str, Tensor], dtype: torch.dtype, valid_N: Bool[Tensor, " N"] | None = None
    ) -> Float[Tensor, "N E_all"]:
        """Encodings of all parts, side by side, in ``dtype``.

        Args:
            shown: The parts, by name, ``[..., *shape]`` with N rows.
            dtype: Of the encodings, and of what modules of the user's own are given.
            valid_N: Rows that are encoded; the encodings of the others are 0, and no encoder sees them: they cost
                nothing, and they are no samples of a batch normalisation. ``None`` for all.
        """
        encoded = []
        for part, encoder in zip(self.parts, self.encoders, strict=True):
            x = shown[part.name].flatten(0, -len(part.shape) - 1)
            x = x if valid_N is None else x[valid_N]
            encoded.append(encoder(x.to(dtype) if part.kind == "own" else x).to(dtype))
        encoded_ME = torch.cat(encoded, dim=-1)
        if valid_N is None:
            return encoded_ME
        return encoded_ME.new_zeros(len(valid_N), self.size).index_put((valid_N,), encoded_ME)


def _after(side: int, stride: int) -> int:
    """What a convolution leaves of a side."""
    kernel, padding = _KERNELS[stride]
    return (side + 2 * padding - kernel) // stride + 1


def _convolution(channels: int, width: int, strides: Sequence[int]) -> nn.Conv2d:
    (height, above), (breadth, beside) = (_KERNELS[stride] for stride in strides)
    layer = nn.Conv2d(channels, width, (height, breadth), (strides[0], strides[1]), (above, beside))
    nn.init.orthogonal_(layer.weight, HIDDEN_GAIN)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer
