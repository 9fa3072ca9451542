"""What a slot is to a blueprint, what a blueprint is, and the table of all blueprints.

Legend of the shapes in this package: N samples, C channels, L positions of a sequence, H × W positions of an image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

Kind = Literal["vector", "sequence", "image"]

KINDS: tuple[Kind, ...] = ("vector", "sequence", "image")
"""What a slot carries: vectors ``[N, C]``, sequences ``[N, L, C]`` or images ``[N, C, H, W]``."""

_SPATIAL_DIMS: dict[Kind, int] = {"vector": 0, "sequence": 1, "image": 2}


@dataclass(frozen=True)
class SlotSpec:
    """What a slot carries, read from one example.

    Args:
        kind: One of :data:`KINDS`.
        channels: C, at least 1.
        spatial: ``()`` for vectors, ``(L,)`` for sequences, ``(H, W)`` for images, as in the example. A seed also runs
            on other sizes.
        causal: Position t may depend only on positions up to t (sequences only).

    Raises:
        ValueError: For an unknown kind, sizes below 1, or sizes that do not go with the kind.

    Example:
        >>> SlotSpec("image", 8, (4, 4)).positions
        16
    """

    kind: Kind
    channels: int
    spatial: tuple[int, ...] = ()
    causal: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"expected a slot kind out of {KINDS}, got {self.kind!r}")
        if len(self.spatial) != _SPATIAL_DIMS[self.kind]:
            raise ValueError(f"a {self.kind} slot has {_SPATIAL_DIMS[self.kind]} spatial sizes, got {self.spatial}")
        if self.channels < 1 or any(size < 1 for size in self.spatial):
            raise ValueError(f"sizes must be at least 1, got channels={self.channels}, spatial={self.spatial}")
        if self.causal and self.kind != "sequence":
            raise ValueError(f"only sequence slots can be causal, got causal=True for kind {self.kind!r}")

    @property
    def positions(self) -> int:
        """L for a sequence, H·W for an image, 1 for a vector."""
        return math.prod(self.spatial)

    @property
    def channel_dim(self) -> int:
        """The axis of the channels: 1 for images, the last one otherwise."""
        return 1 if self.kind == "image" else -1

    def shape(self, batch: int) -> tuple[int, ...]:
        """Shape of a batch of ``batch`` samples."""
        if self.kind == "image":
            return (batch, self.channels, *self.spatial)
        return (batch, *self.spatial, self.channels)

    def per_channel(self, values: Tensor) -> Tensor:
        """``values [C]`` viewed so that it broadcasts over a batch: ``[C, 1, 1]`` for images, ``[C]`` otherwise."""
        return values[:, None, None] if self.kind == "image" else values


class Blueprint(nn.Module):
    """A kind of module that can be germinated: it maps a slot's output h to ``delta``, of the same shape.

    Every blueprint keeps three promises; :func:`esper.register_blueprint` asks for them:

    - *identity at birth*: its last layer starts at zero, so delta is exactly 0, and the gradient reaches that layer at
      the first backward pass;
    - *no state and no noise*: no batch statistics, no dropout; a sample's delta depends on that sample only, so it
      means the same in training and evaluation;
    - *causality*: in a causal slot delta at position t depends on positions up to t only.

    Args:
        spec: The slot it is built for.

    Raises:
        ValueError: If it does not fit the slot.
    """

    name: ClassVar[str]
    """Its row in :data:`esper.actions.ALL_BLUEPRINTS`."""
    kinds: ClassVar[frozenset[Kind]] = frozenset(KINDS)
    """The kinds of slot it fits."""
    mixes: ClassVar[bool] = False
    """Whether delta at one position depends on others. Then ``forward`` also takes ``keep [N, L]``, bools: delta does
    not depend on positions where it is false (padding); ``None`` keeps all."""

    def __init__(self, spec: SlotSpec) -> None:
        super().__init__()
        if not self.fits(spec):
            raise ValueError(f"blueprint '{self.name}' does not fit {spec}; use one for which fits(spec) is true")
        self.spec = spec

    @classmethod
    def fits(cls, spec: SlotSpec) -> bool:
        """Whether this blueprint can grow in a slot of this kind and size."""
        return spec.kind in cls.kinds

    def forward(self, h: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """``h`` → delta, of the same shape."""
        raise NotImplementedError


BLUEPRINTS: dict[str, type[Blueprint]] = {}
"""Every blueprint by its name."""

_B = TypeVar("_B", bound=type[Blueprint])


def register(blueprint: _B) -> _B:
    """Class decorator: put a blueprint into :data:`BLUEPRINTS`."""
    assert blueprint.name not in BLUEPRINTS, f"two blueprints are named '{blueprint.name}'"
    BLUEPRINTS[blueprint.name] = blueprint
    return blueprint


def zeroed(layer: nn.Linear | nn.Conv1d | nn.Conv2d) -> nn.Module:
    """``layer`` with weight and bias set to zero: the last layer of a seed."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class ChannelNorm(nn.Module):
    """Layer normalisation over the channels at every position, whatever the slot's kind; no learned parameters."""

    def __init__(self, spec: SlotSpec) -> None:
        super().__init__()
        self.channels = spec.channels
        self.channel_dim = spec.channel_dim

    def forward(self, h: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """``h`` with mean 0 and variance 1 over its channels."""
        channels_last = h.movedim(self.channel_dim, -1)
        return torch.nn.functional.layer_norm(channels_last, (self.channels,)).movedim(-1, self.channel_dim)
