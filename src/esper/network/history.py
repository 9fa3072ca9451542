"""The history of one run, and what a controller reads of it. The environment and ``Growth`` keep the same one."""

from __future__ import annotations

from dataclasses import dataclass, field

from esper.network.growing_network import GrowingNetwork
from esper.observation import RunReading


@dataclass(eq=False)
class History:
    """Losses and scores of one run, one entry a decision, and the conditions under which it runs.

    Args:
        horizon: Number of decisions of the run; ``None`` if it is not known.
        rent: Price of a doubling of parameters, in points of score.
        budget: Cap on added parameters; ``None`` for no cap.
        learning_rate: Of the optimizer, now.
        train_samples: Number of training samples; ``None`` if it is not known.
        chance_score: Score of a constant guess; ``None`` if it is not known.
    """

    horizon: int | None
    rent: float
    budget: int | None = None
    learning_rate: float | None = None
    train_samples: int | None = None
    chance_score: float | None = None
    decision: int = 0
    """Decisions whose interval of training is over."""
    train_losses: list[float] = field(default_factory=list)
    val_losses: list[float] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    """In [0, 1]: 0 is a useless network, 1 a perfect one, and a hundredth is a point, the unit of ``rent``."""
    rolled_back: bool = False
    """Whether the governor had to roll the run back after the latest interval."""

    def record(self, loss: float, score: float) -> None:
        """Enter the result of an evaluation on validation data; a score below 0 counts as 0."""
        self.val_losses.append(loss)
        self.scores.append(max(score, 0.0))

    def reading(self, network: GrowingNetwork) -> RunReading:
        """What there is to know about the run now; :func:`esper.observation.encode` makes an observation of it."""
        return RunReading(
            decision=self.decision,
            horizon=self.horizon,
            scores=list(self.scores),
            train_losses=list(self.train_losses),
            val_losses=list(self.val_losses),
            host_params=network.host_params,
            added_params=network.added_params,
            rent=self.rent,
            budget=self.budget,
            learning_rate=self.learning_rate,
            train_samples=self.train_samples,
            chance_score=self.chance_score,
            rolled_back=self.rolled_back,
            host_flops=network.host_flops,
            slots=network.slot_readings(),
        )
