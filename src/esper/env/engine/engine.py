"""What an engine is: K hosts that train side by side, one decision at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from esper.actions import Decision
from esper.env.episode import Episode
from esper.observation import RunReading


@dataclass
class RowReport:
    """What an engine reports of one host after a reset or a decision."""

    reading: RunReading
    """Raw readings; the encoder turns them into an observation."""
    masks: dict[str, np.ndarray]
    """What the host's slots accept now, bool arrays by head."""
    train_samples_seen: int
    """Training samples processed in this episode so far."""

    @property
    def score(self) -> float:
        """Validation score after the latest decision, in [0, 1]."""
        return self.reading.scores[-1]


class Engine(ABC):
    """K hosts of one task. Rows are independent: what happens in one changes no bit of another."""

    num_hosts: int
    slot_names: tuple[str, ...]

    @abstractmethod
    def reset(self, episodes: Mapping[int, Episode]) -> dict[int, RowReport]:
        """Begin the given episodes in their rows; reports of the untrained hosts."""

    @abstractmethod
    def step(self, decisions: Mapping[int, Decision]) -> dict[int, RowReport]:
        """Apply one decision to each given row and train it for one interval."""

    @abstractmethod
    def test_scores(self, rows: Sequence[int]) -> dict[int, float]:
        """Score of the given rows' networks on test data, in [0, 1]. For the final evaluation only."""

    def close(self) -> None:  # noqa: B027 - optional
        """Release processes, if any."""
