"""Auditions: before anything grows in a slot, several kinds of seed train there in isolation and are compared.

A seed in isolation is neither seen nor felt, so several can learn in one slot at once, from the same gradient, beside
the very same host. What each would take off the loss if it were blended in (:func:`esper.network.attribution.gain`) is
measured after every decision; a controller sees the results, and germinates the one it wants as it is, trained.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from esper.network.seed import Seed
from esper.observation import Audition


class Nursery(nn.Module):
    """The candidates of one slot, by the index of their blueprint; all of the style ``add``.

    Args:
        seeds: The candidates.
    """

    def __init__(self, seeds: Mapping[int, Seed]) -> None:
        super().__init__()
        for blueprint, seed in seeds.items():
            self.add_module(str(blueprint), seed)

    @property
    def seeds(self) -> dict[int, Seed]:
        """The candidates."""
        return {int(name): seed for name, seed in self._modules.items() if isinstance(seed, Seed)}

    def let_go(self, blueprint: int) -> Seed:
        """Take a candidate out."""
        seed = self.seeds[blueprint]
        del self._modules[str(blueprint)]
        return seed

    def effects(self, h: Float[Tensor, "*shape"], keep: Tensor | None = None) -> Iterator[Float[Tensor, "*shape"]]:
        """What each candidate would add to the slot's output."""
        for seed in self.seeds.values():
            yield seed.effect(h, keep if seed.mixes_positions else None)

    @property
    def mixes_positions(self) -> bool:
        """Whether the effect of one of them at one position of a sequence depends on others."""
        return any(seed.mixes_positions for seed in self.seeds.values())

    @torch.no_grad()
    def is_finite(self, blueprint: int) -> bool:
        """Whether the weights of a candidate are."""
        return all(bool(torch.isfinite(p).all()) for p in self.seeds[blueprint].parameters())


def older(auditioned: Mapping[int, Audition]) -> dict[int, Audition]:
    """Results of auditions, one decision later."""
    return {blueprint: replace(result, age=result.age + 1) for blueprint, result in auditioned.items()}


def worse_half(auditioned: Mapping[int, Audition], candidates: Mapping[int, object]) -> list[int]:
    """The blueprints that go when a round is over: the worse half, rounded down, the later of equal ones."""
    ranked = sorted(candidates, key=lambda blueprint: (-auditioned[blueprint].gain, blueprint))
    return ranked[(len(ranked) + 1) // 2 :]
