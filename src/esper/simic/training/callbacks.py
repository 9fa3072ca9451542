"""What a training run tells whoever watches it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from esper.tamiyo.policy.lstm_bundle import LSTMPolicyBundle


class StopTraining(Exception):
    """Raised by a callback to end a run early; it ends as one that is done: checkpoint, result, no error.

    From :meth:`Callback.on_step` the rollout at hand is discarded.
    """


@dataclass(frozen=True)
class Plan:
    """What is about to happen."""

    updates: int
    """Updates in all."""
    first_update: int
    """Updates that a resumed run has behind it."""
    vector_steps: int
    """Steps of vector environments between two updates."""
    policy: LSTMPolicyBundle
    """What is trained: it changes at every update. Its ``heads`` are those of the action."""


class Callback:
    """Watches a run; every method may be overridden, none has to be.

    Whatever a method raises ends the run, after a checkpoint of the last update; :class:`StopTraining` ends it well.
    """

    def on_start(self, plan: Plan) -> None:
        """Before the first update."""

    def on_step(self) -> None:
        """After every step of a vector environment, on whichever thread collects."""

    def on_update(self, metrics: Mapping[str, float]) -> None:
        """After every update, and its evaluation if there is one, with its row of metrics, which are logged already."""

    def on_end(self) -> None:
        """After the last update, or when the run is stopped."""
