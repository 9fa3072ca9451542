"""How the learning rate moves over a run: the schedules of the environment and of ``esper grow``."""

from __future__ import annotations

import math
from collections.abc import Callable

Schedule = Callable[[int, int], float]
"""(intervals that are over, intervals of the run) → factor on the learning rate in the interval that begins now."""

WARMUP, DECAY = 0.05, 0.2
"""Shares of the run in which ``warmup-stable-decay`` rises and falls."""


def _cosine(done: int, horizon: int) -> float:
    return 0.5 * (1 + math.cos(math.pi * min(done / horizon, 1.0)))


def _warmup_stable_decay(done: int, horizon: int) -> float:
    rising = (done + 1) / max(1.0, WARMUP * horizon)
    falling = (horizon - done) / max(1.0, DECAY * horizon)
    return max(0.0, min(1.0, rising, falling))


SCHEDULES: dict[str, Schedule] = {
    "constant": lambda done, horizon: 1.0,
    "cosine": _cosine,
    "warmup-stable-decay": _warmup_stable_decay,
}
"""Constant; to 0 along half a cosine, as ``CosineAnnealingLR`` stepped once an interval (Loshchilov and Hutter, ICLR
2017); up over the first twentieth, level, and down to 0 over the last fifth (Hu et al. 2024, MiniCPM)."""
