"""The objective and the reward: a potential that telescopes, so that nothing can be farmed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RewardConfig:
    """The objective of an episode: J = score − rent · log2(parameters / host parameters) − penalties."""

    kind: str = "potential"
    """``potential``: r_t = Φ_t − Φ_(t−1); ``sparse``: J at the end, 0 before."""
    rent: float = 0.02
    """Price of a doubling of parameters, in points of score."""
    rollback_penalty: float = 0.05
    """Charged (in points of score) each time the governor has to roll a run back."""

    def __post_init__(self) -> None:
        if self.kind not in ("potential", "sparse"):
            raise ValueError(f"reward kind must be 'potential' or 'sparse', got '{self.kind}'")
        if self.rent < 0 or self.rollback_penalty < 0:
            raise ValueError(f"rent and rollback_penalty must be 0 or more, got {self.rent}, {self.rollback_penalty}")


@dataclass
class Objective:
    """Turns the readings of one episode into rewards that sum to J.

    Φ before the first decision is 0, so the rewards of an episode sum to exactly J = Φ_T (DESIGN: potential-based
    rewards; Ng, Harada & Russell 1999), whatever the actions: nothing can be farmed.
    """

    config: RewardConfig
    rent: float
    """Price of a doubling of parameters in this episode, in points of score."""
    potential: float = 0.0
    """Φ after the latest decision."""
    penalty: float = 0.0
    """Penalties charged so far."""
    paid: float = 0.0
    """Rewards given so far."""

    def reward(self, score: float, size_ratio: float, *, rolled_back: bool, done: bool) -> float:
        """Reward of one decision: ``score`` in [0, 1] after it, ``size_ratio`` = log2(parameters / host parameters)."""
        self.penalty += self.config.rollback_penalty * rolled_back
        self.potential = score - self.rent * size_ratio - self.penalty
        reward = self.potential - self.paid if self.config.kind == "potential" or done else 0.0
        self.paid += reward
        return reward
