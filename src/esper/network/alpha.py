"""The alpha ramp: how a seed's share moves from one value to another over a number of decisions."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from esper.actions import CURVES

_SIGMOID_STEEPNESS = 6.0


def _sigmoid(x: float) -> float:
    """A logistic curve over [0, 1], stretched so that it starts at exactly 0 and ends at exactly 1."""
    low = 1 / (1 + math.exp(_SIGMOID_STEEPNESS))
    raw = 1 / (1 + math.exp(_SIGMOID_STEEPNESS * (1 - 2 * x)))
    return (raw - low) / (1 - 2 * low)


CURVE_SHAPES: dict[str, Callable[[float], float]] = {
    "linear": lambda x: x,
    "cosine": lambda x: (1 - math.cos(math.pi * x)) / 2,
    "sigmoid": _sigmoid,
}
"""Share of the way that is done when the share x of the time is; 0 → 0, 1/2 → 1/2, 1 → 1."""

assert tuple(CURVE_SHAPES) == CURVES, (tuple(CURVE_SHAPES), CURVES)


@dataclass(frozen=True)
class Ramp:
    """A ramp from ``start`` to ``target`` over ``decisions`` decisions, ``elapsed`` of which are done.

    Example:
        >>> ramp = Ramp(start=0.0, target=1.0, decisions=4, curve="linear")
        >>> ramp.after_one_decision().alpha
        0.25
    """

    start: float
    target: float
    decisions: int
    curve: str
    elapsed: int = 0

    def __post_init__(self) -> None:
        assert 0 <= self.elapsed <= self.decisions and self.decisions >= 1, self

    @property
    def progress(self) -> float:
        """Share of the ramp's time that is done, 0 to 1."""
        return self.elapsed / self.decisions

    @property
    def finished(self) -> bool:
        """Whether alpha has arrived."""
        return self.elapsed == self.decisions

    @property
    def alpha(self) -> float:
        """Alpha now; exactly ``target`` when the ramp is finished."""
        if self.finished:
            return self.target
        return self.start + (self.target - self.start) * CURVE_SHAPES[self.curve](self.progress)

    def after_one_decision(self) -> Ramp:
        """The same ramp one decision later."""
        return Ramp(self.start, self.target, self.decisions, self.curve, self.elapsed + 1)
