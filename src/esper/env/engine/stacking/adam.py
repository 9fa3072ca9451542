"""Adam over the rows of many pools: one fused pass, each row with its own count of steps."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

from esper.env.engine.stacking.pool import ParameterPool

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8
"""As in :class:`torch.optim.Adam` (Kingma & Ba, 2015, algorithm 1)."""


class StackedAdam:
    """Adam for the first rows of some pools, for as long as nobody comes or goes.

    Args:
        pools: Pools and the number of their first rows that are trained.
    """

    def __init__(self, pools: Iterable[tuple[ParameterPool, int]]) -> None:
        self._pools = list(pools)
        self._groups: dict[float, list[list[Tensor]]] = defaultdict(lambda: [[], [], [], [], []])
        for pool, rows in self._pools:
            states = (pool.weights, pool.gradients, pool.first_moments, pool.second_moments, pool.steps)
            for row, member in enumerate(pool.members[:rows]):
                for tensors, state in zip(self._groups[member.learning_rate], states, strict=True):
                    tensors.append(state[row])

    def backward(self, loss: Tensor) -> None:
        """Compute the gradients of a scalar and keep them in the pools."""
        leaves = [[leaf.data for leaf in pool.leaves(rows)] for pool, rows in self._pools]
        gradients = iter(torch.autograd.grad(loss, [x for group in leaves for x in group], allow_unused=True))
        for (pool, _), group in zip(self._pools, leaves, strict=True):
            pool.gather_gradients([next(gradients) for _ in group])

    @torch.no_grad()
    def step(self) -> None:
        """One step of every row."""
        for pool, rows in self._pools:
            pool.steps[:rows] += 1
        for learning_rate, (weights, gradients, first, second, steps) in self._groups.items():
            torch._fused_adam_(
                weights, gradients, first, second, [], steps, lr=learning_rate, beta1=BETA1, beta2=BETA2, eps=EPSILON,
                weight_decay=0.0, amsgrad=False, maximize=False,
            )  # fmt: skip
