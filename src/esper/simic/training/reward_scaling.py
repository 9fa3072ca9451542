"""Rewards in units of the spread of their discounted return.

Legend: T steps, K environments.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from esper.simic.control.normalization import RunningMeanStd
from esper.simic.rollout_buffer import RolloutBuffer


class RewardScaler:
    """Knows how much the discounted sum of past rewards varies; dividing by that leaves returns of order one.

    Rewards are scaled and never shifted: a shift would change which episode length is best.

    Args:
        num_envs: Environments of each rollout, in order.
        gamma: Discount per step.
        device: Where rollouts are kept.
    """

    def __init__(self, num_envs: list[int], gamma: float, device: torch.device) -> None:
        self.gamma = gamma
        self.statistics = RunningMeanStd(()).to(device)
        self._running = [torch.zeros(k, device=device) for k in num_envs]

    @property
    def scale(self) -> float:
        """What to multiply rewards with; 1 before the first rollout."""
        return float(1.0 / torch.sqrt(self.statistics.var + self.statistics.epsilon))

    def observe(self, rollouts: Sequence[RolloutBuffer]) -> None:
        """Learn from finished rollouts, one for each entry of ``num_envs``."""
        for i, rollout in enumerate(rollouts):
            running, sums = self._running[i], []
            for t in range(rollout.num_steps):
                running = torch.where(rollout["episode_starts"][t], 0.0, running) * self.gamma + rollout["rewards"][t]
                sums.append(running)
            self._running[i] = running
            self.statistics.update(torch.stack(sums)[rollout["valid"]])

    def state_dict(self) -> dict[str, Any]:
        """Everything to go on from."""
        return {"statistics": dict(self.statistics.state_dict()), "running": list(self._running)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``; where a rollout has another number of environments now, its sums begin anew."""
        self.statistics.load_state_dict(state["statistics"])
        self._running = [
            new.to(old.device) if new.shape == old.shape else old
            for new, old in zip(state["running"], self._running, strict=True)
        ]
