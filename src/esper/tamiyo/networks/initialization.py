"""Initial weights: orthogonal, with a gain that says what the layer feeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import nn

HIDDEN_GAIN = math.sqrt(2.0)
"""Keeps the variance through a ReLU."""

POLICY_GAIN = 0.01
"""Near-uniform first policy: exploration starts wide (Andrychowicz et al. 2021, "What matters in on-policy RL")."""

VALUE_GAIN = 1.0

EMBEDDING_STD = 1.0
"""Small vectors keep later heads from learning to depend on earlier choices: at 0.1 it takes ten times as long."""


def linear(inputs: int, outputs: int, gain: float = HIDDEN_GAIN, bias: bool = True) -> nn.Linear:
    """A linear layer with orthogonal weights of the given gain and zero bias."""
    layer = nn.Linear(inputs, outputs, bias=bias)
    nn.init.orthogonal_(layer.weight, gain)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def stacked(inputs: int, sizes: Sequence[int], gain: float = HIDDEN_GAIN) -> nn.Linear:
    """Linear layers of the given output sizes on top of each other in one, each orthogonal by itself."""
    layer = linear(inputs, sum(sizes), gain)
    with torch.no_grad():
        for block in layer.weight.split(tuple(sizes)):
            nn.init.orthogonal_(block, gain)
    return layer


def embedding(choices: int, size: int) -> nn.Embedding:
    """A table of random vectors, one per choice."""
    table = nn.Embedding(choices, size)
    nn.init.normal_(table.weight, std=EMBEDDING_STD)
    return table


def hidden_layers(inputs: int, sizes: Sequence[int], activation: Callable[[], nn.Module]) -> nn.Sequential:
    """Linear layers of these sizes, each normalised and with an activation; none for no sizes."""
    layers: list[nn.Module] = []
    for size in sizes:
        layers += [linear(inputs, size), nn.LayerNorm(size), activation()]
        inputs = size
    return nn.Sequential(*layers)
