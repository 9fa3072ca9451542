"""The objective and the reward: a potential that telescopes, so that nothing can be farmed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RewardConfig:
    """The objective of an episode: J = score − rent · log2(parameters / host parameters) − waste − penalties."""

    kind: str = "potential"
    """``potential``: r_t = Φ_t − Φ_(t−1); ``sparse``: J at the end, 0 before."""
    rent: float = 0.02
    """Price of a doubling of parameters, in points of score."""
    rollback_penalty: float = 0.05
    """Charged (in points of score) each time the governor has to roll a run back."""
    waste: float = 0.0
    """Price of training compute that nothing is left of, pruned seeds and measuring contributions, in points of score
    for as many FLOPs as the host alone takes for the whole episode."""

    def __post_init__(self) -> None:
        if self.kind not in ("potential", "sparse"):
            raise ValueError(f"reward kind must be 'potential' or 'sparse', got '{self.kind}'")
        for name in ("rent", "rollback_penalty", "waste"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")


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

    def reward(self, score: float, size_ratio: float, *, rolled_back: bool, done: bool, waste: float = 0.0) -> float:
        """Reward of one decision.

        Args:
            score: On validation data after it, in [0, 1].
            size_ratio: log2(parameters / host parameters).
            rolled_back: Whether the governor had to step in.
            done: Whether the episode is over.
            waste: Compute so far that nothing is left of, in training runs of the host alone.
        """
        self.penalty += self.config.rollback_penalty * rolled_back
        self.potential = score - self.rent * size_ratio - self.config.waste * waste - self.penalty
        reward = self.potential - self.paid if self.config.kind == "potential" or done else 0.0
        self.paid += reward
        return reward
