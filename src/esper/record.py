"""What the picture of one growth is drawn from, decision by decision, and how a score is told."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from esper.lifecycle import Stage


def told(score: float, measure: str = "score") -> str:
    """A score in words, the same everywhere: ``R² 0.512`` of an R², else ``51.2%``; unknown where it is NaN.

    Example:
        >>> told(0.5123), told(0.5123, "R²")
        ('51.2%', 'R² 0.512')
    """
    if not math.isfinite(score):
        return "unknown"
    return f"R² {score:.3f}" if measure == "R²" else f"{score:.1%}"


class SlotState(NamedTuple):
    """One slot after one decision."""

    stage: str
    """Name of the stage, as in :class:`esper.lifecycle.Stage`."""
    blueprint: str | None
    """The seed's blueprint; ``None`` in an empty slot."""
    alpha: float
    """How much of the seed is blended in, 0 to 1."""


@dataclass(frozen=True)
class GrowthRecord:
    """One training run, decision by decision; index 0 is before the first decision, T the number of decisions.

    Raises:
        ValueError: When the histories differ in length, or a stage is unknown.
    """

    task: str
    policy: str
    scores: Sequence[float]
    """Validation scores, at most 1, ``[T + 1]``; NaN where unknown."""
    added_params: Sequence[int]
    """Parameters of all seeds, ``[T + 1]``."""
    slots: Mapping[str, Sequence[SlotState]]
    """The states of each slot, ``[T + 1]``, by name and in the order of execution."""
    host_params: int
    host_alone_scores: Sequence[float] = ()
    """Scores of the same run without growth, ``[T + 1]``; empty when unknown."""
    title: str = ""
    """Title of the figure; by default made of policy and task."""
    measure: str = "score"
    """What the scores are; an ``R²`` is not told in percent."""
    first: int = 0
    """What the first entry is called on the axis: 0 where decisions are counted, 1 where the steps of a growth are."""
    ends: Mapping[str, str] = field(default_factory=dict)
    """What became of seeds at the very end, by slot: ``kept`` or ``pruned``, after the last entry."""
    final_params: int | None = None
    """Parameters of all seeds that are left at the end; ``None``: as in the last entry."""

    def __post_init__(self) -> None:
        slots = {name: tuple(SlotState(*state) for state in states) for name, states in self.slots.items()}
        object.__setattr__(self, "slots", slots)
        lengths = {"scores": len(self.scores), "added_params": len(self.added_params)}
        lengths |= {f"slot '{name}'": len(states) for name, states in slots.items()}
        if self.host_alone_scores:
            lengths["host_alone_scores"] = len(self.host_alone_scores)
        if len(set(lengths.values())) != 1 or len(self.scores) < 2:
            raise ValueError(f"expected histories of one length, at least 2, got {lengths}")
        if not slots:
            raise ValueError("expected at least one slot, got none")
        if wrong := set(self.ends) - set(slots) | set(self.ends.values()) - {"kept", "pruned"}:
            raise ValueError(f"ends are 'kept' or 'pruned', by the names of slots; got {sorted(wrong)}")
        unknown = {state.stage for states in slots.values() for state in states} - set(Stage.__members__)
        if unknown:
            raise ValueError(f"unknown stages {sorted(unknown)}; stages are {', '.join(Stage.__members__)}")

    @property
    def params_left(self) -> int:
        """Parameters of all seeds that are left at the end."""
        return self.added_params[-1] if self.final_params is None else self.final_params

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> GrowthRecord:
        """The record that :meth:`to_json` gave; ``null`` scores are unknown ones."""
        scores = {
            key: [float("nan") if score is None else float(score) for score in data[key]]
            for key in ("scores", "host_alone_scores")
        }
        return cls(**{**data, **scores})
