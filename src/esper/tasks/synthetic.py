"""Points in the plane, made on the spot."""

from __future__ import annotations

import numpy as np
from torch import nn

from esper.tasks.hosts import BLOCKS, scaled, vector_host
from esper.tasks.prepare import split_in_three
from esper.tasks.task import Splits, Task, register_task

ARMS = 4
"""Spirals, one for each class."""
_SAMPLES = 2500
_TURNS = 1.25
_NOISE = 0.03
_DATA_SEED = 0


@register_task
class Spirals(Task):
    """Four interleaved noisy spirals in the plane, one a class: 1,500 training, 500 validation, 500 test points.

    Each arm winds once and a quarter around the origin. Of the embedded vector tasks, the one on which growing pays.
    """

    name = "spirals"
    description = "points on four interleaved noisy spirals in the plane, 4 classes (synthetic)"
    slots = BLOCKS

    def load(self) -> Splits:
        """Points spread evenly along the arms, with normal noise around them."""
        rng = np.random.default_rng(_DATA_SEED)
        arm = np.arange(_SAMPLES) % ARMS
        radius = np.sqrt(rng.uniform(0.02, 1.0, _SAMPLES))
        angle = 2 * np.pi * (_TURNS * radius + arm / ARMS)
        points = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
        return split_in_three(points + rng.normal(0.0, _NOISE, points.shape), arm, val=500, test=500)

    def build_host(self, width: float = 1.0, depth: int = 1) -> nn.Module:
        """An MLP of three blocks of 8 features."""
        return vector_host(2, ARMS, scaled(8, width), depth)
