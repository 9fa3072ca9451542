"""The life of a seed: its stages, the ops that move it, and which moves are legal.

Pure Python, no tensors: the environment, the ``Growth`` object and the masks all read this one file, so a rule about
a seed's life is changed in one place.

    DORMANT ──GERMINATE──▶ TRAINING ──ADVANCE──▶ BLENDING ──(ramp ends)──▶ HOLDING ──FOSSILIZE──▶ FOSSILIZED
       ▲                      │                    │  ▲                      │ │
       │                      │ PRUNE              │  └──SET_ALPHA_TARGET────┘ │ PRUNE
       │                      ▼                    ▼ PRUNE                     ▼
       └──(cool-down ends)── EMBARGOED ◀──(alpha ramps down to 0, still BLENDING, no op is legal)
"""

from __future__ import annotations

from enum import IntEnum


class Stage(IntEnum):
    """Where a slot's seed is in its life."""

    DORMANT = 0
    """The slot is empty."""
    TRAINING = 1
    """The seed learns in isolation: the host neither sees it nor feels it."""
    BLENDING = 2
    """Alpha is on its way to a target (to 0 when the seed has been pruned)."""
    HOLDING = 3
    """Probation at the alpha target."""
    FOSSILIZED = 4
    """Kept for good."""
    EMBARGOED = 5
    """Empty and closed: a cool-down after a prune."""


class Op(IntEnum):
    """What a controller does at one decision."""

    WAIT = 0
    GERMINATE = 1
    ADVANCE = 2
    SET_ALPHA_TARGET = 3
    PRUNE = 4
    FOSSILIZE = 5


ACTIVE_STAGES = (Stage.TRAINING, Stage.BLENDING, Stage.HOLDING)
"""Stages in which a seed is alive and still undecided."""

LEGAL_OPS: dict[Stage, frozenset[Op]] = {
    Stage.DORMANT: frozenset({Op.GERMINATE}),
    Stage.TRAINING: frozenset({Op.ADVANCE, Op.PRUNE}),
    Stage.BLENDING: frozenset({Op.PRUNE}),
    Stage.HOLDING: frozenset({Op.SET_ALPHA_TARGET, Op.PRUNE, Op.FOSSILIZE}),
    Stage.FOSSILIZED: frozenset(),
    Stage.EMBARGOED: frozenset(),
}
"""The ops that a slot in each stage accepts. WAIT addresses no slot and is always legal."""

EMBARGO_DECISIONS = 2
"""Length of the cool-down after a prune, in decisions."""


class IllegalMoveError(ValueError):
    """An op was applied to a slot whose stage does not accept it."""


def is_legal(op: Op, stage: Stage, *, pruning: bool = False) -> bool:
    """Whether a slot in ``stage`` accepts ``op``; ``pruning`` says that its alpha is already ramping down to 0."""
    return op in LEGAL_OPS[stage] and not pruning


def check_legal(op: Op, stage: Stage, *, slot: str, pruning: bool = False) -> None:
    """Raise :class:`IllegalMoveError` unless ``slot`` (in ``stage``) accepts ``op``."""
    if is_legal(op, stage, pruning=pruning):
        return
    state = f"{stage.name} and already being pruned" if pruning else stage.name
    accepted = ", ".join(sorted(o.name for o in LEGAL_OPS[stage])) if not pruning else ""
    raise IllegalMoveError(
        f"{op.name} was asked of slot '{slot}', which is {state}; it accepts only: {accepted or 'nothing (WAIT)'}. "
        "Choose among the ops that the action mask allows."
    )
