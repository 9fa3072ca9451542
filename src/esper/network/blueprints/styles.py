"""How a seed's delta joins the slot's output h: ``h + alpha · effect(h, delta)``, one module a style.

All three are the identity while delta is 0, whatever alpha is:

========  ===========================  ==========================================
style     effect                       blended output
========  ===========================  ==========================================
add       delta                        h + alpha · delta
multiply  h · delta                    h · (1 + alpha · delta)
gate      sigmoid(w · h + b) · delta   h + alpha · sigmoid(w · h + b) · delta
========  ===========================  ==========================================
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from esper.actions import STYLES
from esper.network.blueprints.blueprint import SlotSpec


class Style(nn.Module):
    """What a seed adds to the slot's output at alpha 1."""

    def __init__(self, spec: SlotSpec) -> None:
        super().__init__()
        self.spec = spec

    def forward(self, h: Float[Tensor, "*shape"], delta: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """``h`` and ``delta`` → effect, all of the same shape."""
        raise NotImplementedError


class Add(Style):
    """The delta itself."""

    def forward(self, h: Float[Tensor, "*shape"], delta: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return delta


class Multiply(Style):
    """The delta scales the activation."""

    def forward(self, h: Float[Tensor, "*shape"], delta: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return h * delta


class Gate(Style):
    """A gate per channel, open by half at birth, lets the delta through; 2C parameters."""

    def __init__(self, spec: SlotSpec) -> None:
        super().__init__(spec)
        self.weight = nn.Parameter(torch.zeros(spec.channels))
        self.bias = nn.Parameter(torch.zeros(spec.channels))

    def forward(self, h: Float[Tensor, "*shape"], delta: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        weight, bias = self.spec.per_channel(self.weight), self.spec.per_channel(self.bias)
        return torch.sigmoid(h * weight + bias) * delta


STYLE_MODULES: dict[str, type[Style]] = {"add": Add, "multiply": Multiply, "gate": Gate}
"""Every style by its name, in the order of the action space."""

assert tuple(STYLE_MODULES) == STYLES, (tuple(STYLE_MODULES), STYLES)
