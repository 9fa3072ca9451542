"""Blueprints that look at one position at a time (1×1 convolutions on images): they fit every slot."""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from esper.network.blueprints.blueprint import Blueprint, ChannelNorm, SlotSpec, register, zeroed


def linear(spec: SlotSpec, inputs: int, outputs: int, *, bias: bool = True) -> nn.Linear | nn.Conv2d:
    """A linear map over the channels at every position of the slot."""
    return nn.Conv2d(inputs, outputs, 1, bias=bias) if spec.kind == "image" else nn.Linear(inputs, outputs, bias=bias)


@register
class Norm(Blueprint):
    """A learned share of the layer-normalised activation (Ba et al., 2016): delta = w · norm(h) + b; 2C parameters."""

    name = "norm"

    def __init__(self, spec: SlotSpec) -> None:
        super().__init__(spec)
        self.norm = ChannelNorm(spec)
        self.weight = nn.Parameter(torch.zeros(spec.channels))
        self.bias = nn.Parameter(torch.zeros(spec.channels))

    @classmethod
    def fits(cls, spec: SlotSpec) -> bool:
        """Every slot with at least two channels: one channel has no variance to normalise by."""
        return super().fits(spec) and spec.channels > 1

    def forward(self, h: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return self.norm(h) * self.spec.per_channel(self.weight) + self.spec.per_channel(self.bias)


class _LowRank(Blueprint):
    """A linear map of low rank r (LoRA, Hu et al., 2021): delta = B A h; 2Cr parameters."""

    divisor: ClassVar[int]
    """r = C / divisor, at least 1."""

    def __init__(self, spec: SlotSpec) -> None:
        super().__init__(spec)
        rank = max(1, spec.channels // self.divisor)
        self.down = linear(spec, spec.channels, rank, bias=False)
        self.up = zeroed(linear(spec, rank, spec.channels, bias=False))

    def forward(self, h: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return self.up(self.down(h))


@register
class LoRA(_LowRank):
    """A linear map of rank C/8."""

    name = "lora"
    divisor = 8


@register
class LoRALarge(_LowRank):
    """A linear map of rank C/2."""

    name = "lora_large"
    divisor = 2


class _Perceptron(Blueprint):
    """Two layers at every position: delta = W₂ gelu(W₁ h)."""

    expansion: ClassVar[int]
    """Hidden channels / C."""

    def __init__(self, spec: SlotSpec) -> None:
        super().__init__(spec)
        hidden = self.expansion * spec.channels
        self.hidden = linear(spec, spec.channels, hidden)
        self.activation = nn.GELU()
        self.out = zeroed(linear(spec, hidden, spec.channels))

    def forward(self, h: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return self.out(self.activation(self.hidden(h)))


@register
class MLP(_Perceptron):
    """Two layers with 2C hidden channels."""

    name = "mlp"
    expansion = 2


@register
class MLPLarge(_Perceptron):
    """Two layers with 4C hidden channels."""

    name = "mlp_large"
    expansion = 4


@register
class GatedMLP(Blueprint):
    """A gated perceptron (SwiGLU, Shazeer, 2020) with 2C hidden channels: delta = W₃ (silu(W₁ h) · W₂ h)."""

    name = "gated_mlp"

    def __init__(self, spec: SlotSpec) -> None:
        super().__init__(spec)
        hidden = 2 * spec.channels
        self.gate = linear(spec, spec.channels, hidden)
        self.hidden = linear(spec, spec.channels, hidden)
        self.activation = nn.SiLU()
        self.out = zeroed(linear(spec, hidden, spec.channels))

    def forward(self, h: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return self.out(self.activation(self.gate(h)) * self.hidden(h))
