"""What ``Growth`` remembers of one step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from esper.lifecycle import Stage
from esper.network.growing_network import Event
from esper.tamiyo.policy.protocol import Reason


@dataclass(frozen=True)
class Step:
    """One call of ``Growth.step``: the interval that ended, and the decision for the next one."""

    decision: int
    """Intervals of training that are over, this one included."""
    loss: float
    """Validation loss; at the end of growth, of the network with the seeds that stay."""
    score: float
    """Validation score, at most 1, of the same network; of a loss alone 1 − loss / chance_loss."""
    train_loss: float | None
    """Mean training loss of the interval, where it was given."""
    added_params: int
    """Parameters of all seeds during the interval."""
    slots: dict[str, tuple[str, str | None, float]]
    """Each slot during the interval: name of its stage, blueprint, alpha."""
    contributions: dict[str, float]
    """By slot: what the seed takes off the loss at the end of the interval, in points of score."""
    rolled_back: bool
    """Whether the governor had to take the run back."""
    decided: str
    """The decision for the next interval, in words."""
    events: list[Event] = field(default_factory=list)
    """What the governor and the decision changed."""
    auditions: dict[str, dict[str, float]] = field(default_factory=dict)
    """By slot and blueprint: what each candidate would take off the loss, in points of score, where auditions ran."""
    evaluations: int = 1
    """Number of evaluations that this step took."""
    contribution_seconds: float = 0.0
    """Time spent on measuring contributions."""
    seconds: float = 0.0
    """Time since the step before it, training included."""
    why: Reason = field(default_factory=Reason)
    """Why the policy decided so, as far as it says."""
    judged: dict[str, str] = field(default_factory=dict)
    """By slot, why a seed stays or goes that the policy has not decided on: at the end, or after a rollback."""

    @property
    def reason(self) -> str:
        """Why the policy decided so, in one line; empty where it does not say."""
        if self.why.words or not self.why.op_values:
            return self.why.words
        probable = self.why.probabilities["op"]
        best = sorted(probable, key=lambda op: -probable[op])[:3]
        return ", ".join(f"{op} {probable[op]:.0%} (Q {self.why.op_values[op]:.3f})" for op in best)

    def to_state(self) -> dict[str, Any]:
        """Plain data, as a checkpoint holds it."""
        state = asdict(self)
        for event in state["events"]:
            event["stage"] = int(event["stage"])
        return state

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Step:
        """What :meth:`to_state` gave."""
        events = [Event(**{**event, "stage": Stage(event["stage"])}) for event in state["events"]]
        slots = {name: tuple(seed) for name, seed in state["slots"].items()}
        why = Reason(**state.get("why", {}))
        return cls(**{**state, "events": events, "slots": slots, "why": why})
