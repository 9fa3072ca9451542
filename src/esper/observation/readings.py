"""Raw readings of a training run and of its slots: what an observation is made of."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from esper.actions import ALL_BLUEPRINTS
from esper.lifecycle import Stage

Number = TypeVar("Number")
"""What a statistic is kept in: a tensor while it is measured, a plain number in a reading."""


@dataclass(frozen=True)
class Audition:
    """What an audition has shown of one blueprint in one slot."""

    gain: float
    """What the candidate would take off the loss if it were blended in, in points of score."""
    trained: int
    """Decisions for which it had trained."""
    age: int = 0
    """Decisions since it was measured."""


@dataclass
class SlotState:
    """The state of a slot that a controller may see. ``None`` means not known (yet) or not applicable."""

    stage: Stage = Stage.DORMANT
    blueprint: int = -1
    style: int | None = None
    alpha: float = 0.0
    alpha_target: float | None = None
    pruning: bool = False
    decisions_in_stage: int = 0
    decisions_since_germination: int | None = None
    embargo_left: int = 0
    contribution: float | None = None
    """What the seed at its target takes off the loss, in points of score (counterfactual)."""
    contribution_before: float | None = None
    """The contribution measured one decision earlier."""
    contribution_age: int | None = None
    """Decisions since the contribution was measured."""
    germinations: int = 0
    prunes: int = 0
    audition_left: int = 0
    """Decisions that the running audition still takes; 0 where none runs."""
    auditioned: Mapping[int, Audition] = field(default_factory=dict)
    """The latest result of each blueprint that has auditioned here, by its index."""


@dataclass
class SlotStatistics(Generic[Number]):
    """Root mean squares of the last batch that was measured; ``None`` where nothing was."""

    activation_rms: Number | None = None
    slot_gradient_rms: Number | None = None
    """Of the loss gradient with respect to the slot's output."""
    seed_output_rms: Number | None = None
    """Of what the seed adds to (or would add to) the slot's output."""
    seed_gradient_rms: Number | None = None


@dataclass(frozen=True, kw_only=True)
class Prospect:
    """What is known of one blueprint in one slot before it is germinated."""

    fits: bool
    """Whether the slot can carry it."""
    affordable: bool
    """Whether it fits, is allowed, and the budget that is left pays for it."""
    params: int
    """Parameters that it adds in its largest style."""
    flops: int
    """FLOPs that it adds to a forward pass over one sample."""
    audition: Audition | None = None
    """The latest result of its auditions here."""
    auditioning: bool = False
    """Whether it trains in the slot's nursery now."""


@dataclass(kw_only=True)
class SlotReading(SlotState, SlotStatistics[float]):
    """Raw readings of one slot after a decision: its state, its statistics, and what its surroundings say of it."""

    kind: str
    """``"vector"``, ``"sequence"`` or ``"image"``."""
    channels: int
    positions: int
    """Length of a sequence, height × width of an image, 1 for a vector."""
    depth: float
    """Place among the slots in the order of execution, 0 (first) to 1 (last)."""
    ramp_progress: float | None = None
    """Share of the running alpha ramp that is done, 0 to 1."""
    seed_params: int = 0
    host_gradient_rms: float | None = None
    """Root mean square of the loss gradient with respect to the host's own parameters."""
    affordable_share: float | None = None
    """Share of the blueprints that fit the slot and the budget that is left."""

    prospects: Sequence[Prospect] = ()
    """One for each blueprint of the table, in its order."""

    @property
    def auditioning(self) -> list[str]:
        """Names of the blueprints whose candidates train in the slot's nursery."""
        return [ALL_BLUEPRINTS[b] for b, prospect in enumerate(self.prospects) if prospect.auditioning]

    @property
    def blueprint_name(self) -> str | None:
        """Name of the seed's blueprint; ``None`` in an empty slot."""
        return ALL_BLUEPRINTS[self.blueprint] if self.blueprint >= 0 else None


@dataclass(kw_only=True)
class RunReading:
    """Raw readings of one training run after a decision. Histories are oldest first, one entry per decision."""

    decision: int
    horizon: int | None
    scores: Sequence[float]
    """Validation scores in [0, 1]."""
    train_losses: Sequence[float]
    val_losses: Sequence[float]
    host_params: int
    added_params: int
    rent: float
    budget: int | None = None
    """Cap on added parameters; ``None`` means no cap."""
    learning_rate: float | None = None
    train_samples: int | None = None
    chance_score: float | None = None
    rolled_back: bool = False
    host_flops: int | None = None
    """FLOPs of a forward pass of the host over one sample."""
    slots: list[SlotReading] = field(default_factory=list)


def doublings(host_params: int, added_params: int) -> float:
    """log2(parameters / parameters of the host): what rent is charged on."""
    return math.log2((host_params + added_params) / host_params)


def size_ratio(run: RunReading) -> float:
    """The doublings of a run so far."""
    return doublings(run.host_params, run.added_params)
