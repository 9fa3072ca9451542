"""The shapes in the signatures of seeds and their parts are true, for every blueprint, kind of slot and style."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from jaxtyping import TypeCheckError, jaxtyped
from torch import nn

from esper.actions import STYLES
from esper.network.seed import Seed, isolated_gradient, straight_through
from network.hosts import FITTING, SPECS
from shapes import checked


def holding(function: Any) -> Any:
    """The function, with the shapes and types of its signature checked at every call."""
    return jaxtyped(function, typechecker=checked)


def checked_forward(module: nn.Module, *inputs: Any) -> torch.Tensor:
    return holding(type(module).forward)(module, *inputs)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(("name", "kind"), FITTING)
def test_a_seed_keeps_the_shape_of_its_slot(name: str, kind: str, style: str) -> None:
    seed, h = Seed(name, SPECS[kind], style), torch.randn(SPECS[kind].shape(3))
    delta = checked_forward(seed.blueprint, h)
    effect = checked_forward(seed.style, h, delta)
    assert holding(Seed.mix)(seed, h, effect).shape == h.shape
    assert holding(straight_through)(h, holding(Seed.effect)(seed, h)).shape == h.shape
    assert holding(isolated_gradient)(torch.ones_like(h), h, effect.detach()).shape == h.shape
    if seed.mixes_positions:
        keep = torch.ones(h.shape[:2], dtype=torch.bool)
        keep[0, 2:] = False
        assert checked_forward(seed.blueprint, h, keep).shape == holding(Seed.blend)(seed, h, keep).shape == h.shape


def test_a_wrong_shape_is_seen() -> None:
    h = torch.randn(3, 4)
    with pytest.raises(TypeCheckError):
        holding(straight_through)(h, h[:2])
