"""Inputs for the policies: every used head has an allowed choice, many unused ones have none."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from esper.actions import HEADS
from esper.observation import features_size
from esper.tamiyo.networks import FactoredRecurrentActorCritic
from esper.tamiyo.policy import PolicyInput

MakeInput = Callable[..., PolicyInput]


def _at_least_one(mask: Tensor) -> Tensor:
    """The mask, with one more allowed choice in every row that has none."""
    n = mask.shape[-1]
    extra = torch.nn.functional.one_hot(torch.randint(n, mask.shape[:-1]), n).bool()
    return mask | (extra & ~mask.any(-1, keepdim=True))


@pytest.fixture
def make_input() -> MakeInput:
    """``make_input(*batch, slots=3, allowed=0.4)``: random features, blueprints and masks."""

    def make(*batch: int, slots: int = 3, allowed: float = 0.4) -> PolicyInput:
        def mask(*shape: int) -> Tensor:
            return torch.rand(*batch, *shape) < allowed

        sizes = HEADS.sizes(slots)
        masks: dict[str, Tensor | None] = {name: _at_least_one(mask(n)) for name, n in sizes.items()}
        slot = _at_least_one(mask(6, slots))
        slot[..., 0, :] = False  # WAIT uses no slot
        masks["slot"] = slot
        masks["blueprint"] = _at_least_one(mask(slots, 13))
        masks["curve"] = None
        blueprints = torch.randint(-1, 13, (*batch, slots))
        return PolicyInput(torch.randn(*batch, features_size(slots)), blueprints, masks)

    return make


@pytest.fixture
def network() -> FactoredRecurrentActorCritic:
    """The default network with policy heads far from uniform, so that mistakes show."""
    return sharpened(FactoredRecurrentActorCritic())


@pytest.fixture
def sharpen() -> Callable[[FactoredRecurrentActorCritic], FactoredRecurrentActorCritic]:
    """Make a network's policy far from uniform."""
    return sharpened


def sharpened(network: FactoredRecurrentActorCritic) -> FactoredRecurrentActorCritic:
    with torch.no_grad():
        network.tree.output.weight.mul_(100.0)
    return network
