"""Rewards in units of the spread of their discounted return.

Legend: T steps, K environments.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from esper.simic.control.normalization import RunningMeanStd
from esper.simic.rollout_buffer import RolloutBuffer


class RewardScaler:
    """Knows how much discounted sums of rewards vary; dividing by that leaves returns of order one, or less.

    They are the sums of an episode's rewards before each step and after it; what varies more counts. The critic learns
    the second. Where a reward comes at the end of long episodes, the first is 0 but for their last step, so that in its
    units returns are far above one and the critic's error drowns the policy's gradient. But where rewards come all the
    time, what comes after a step is cut off where the rollout ends.

    Rewards are scaled and never shifted: a shift would change which episode length is best.

    Args:
        num_envs: Environments of each rollout, in order.
        gamma: Discount per step.
        device: Where rollouts are kept.
    """

    def __init__(self, num_envs: list[int], gamma: float, device: torch.device) -> None:
        self.gamma = gamma
        self.before, self.after = (RunningMeanStd(()).to(device) for _ in range(2))
        self._running = [torch.zeros(k, device=device) for k in num_envs]

    @property
    def scale(self) -> float:
        """What to multiply rewards with; 1 as long as nothing has varied."""
        variance = float(torch.maximum(self.before.var, self.after.var))
        return 1.0 if variance == 0.0 else 1.0 / math.sqrt(variance)

    def observe(self, rollouts: Sequence[RolloutBuffer]) -> None:
        """Learn from finished rollouts, one for each entry of ``num_envs``."""
        for i, rollout in enumerate(rollouts):
            rewards, begins = rollout["rewards"], rollout["episode_starts"]
            before = _sums(rewards, begins, self._running[i], self.gamma)
            self._running[i] = before[-1]
            # Backwards an episode begins with its last step: the step before another begins.
            ends = torch.cat([begins[1:], torch.zeros_like(begins[:1])]).flip(0)
            after = _sums(rewards.flip(0), ends, torch.zeros_like(rewards[0]), self.gamma).flip(0)
            self.before.update(before[rollout["valid"]])
            self.after.update(after[rollout["valid"]])

    def state_dict(self) -> dict[str, Any]:
        """Everything to go on from."""
        statistics = {name: dict(getattr(self, name).state_dict()) for name in ("before", "after")}
        return {**statistics, "running": list(self._running)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``; where a rollout has another number of environments now, its sums begin anew."""
        self.before.load_state_dict(state["before"])
        self.after.load_state_dict(state["after"])
        self._running = [
            new.to(old.device) if new.shape == old.shape else old
            for new, old in zip(state["running"], self._running, strict=True)
        ]


def _sums(rewards_TK: Tensor, begins_TK: Tensor, running_K: Tensor, gamma: float) -> Tensor:
    """Discounted sums ``[T, K]`` of the rewards up to each step, in episodes that begin where ``begins`` says so."""
    sums = []
    for rewards, begins in zip(rewards_TK, begins_TK, strict=True):
        running_K = torch.where(begins, 0.0, running_K) * gamma + rewards
        sums.append(running_K)
    return torch.stack(sums)
