"""What a training run tells whoever watches it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from esper.heads import HeadTable


@dataclass(frozen=True)
class Plan:
    """What is about to happen."""

    updates: int
    """Updates in all."""
    first_update: int
    """Updates that a resumed run has behind it."""
    vector_steps: int
    """Steps of vector environments between two updates."""
    heads: HeadTable


class Callback:
    """Watches a run; every method may be overridden, none has to be."""

    def on_start(self, plan: Plan) -> None:
        """Before the first update."""

    def on_step(self) -> None:
        """After every step of a vector environment, on whichever thread collects."""

    def on_update(self, metrics: Mapping[str, float]) -> None:
        """After every update, with its row of metrics."""

    def on_end(self) -> None:
        """After the last update, or when the run is stopped."""
