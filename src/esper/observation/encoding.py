"""From readings to the numbers of an observation: sizes, names, bounds, and the encoding itself."""

from __future__ import annotations

import numpy as np

from esper.actions import ALL_BLUEPRINTS
from esper.observation.fields import (
    PROSPECT_FIELDS,
    PROSPECT_SIZE,
    RUN_FIELDS,
    RUN_SIZE,
    SLOT_FIELDS,
    SLOT_SIZE,
    UNKNOWN,
)
from esper.observation.readings import RunReading


def features_size(num_slots: int) -> int:
    """Length of the flat features, ``24 + 34·S``."""
    return RUN_SIZE + SLOT_SIZE * num_slots


def feature_names(num_slots: int) -> list[str]:
    """Name of every feature, in order: ``score``, …, ``slot0.alpha``, …."""
    return [f.name for f in RUN_FIELDS] + [f"slot{s}.{f.name}" for s in range(num_slots) for f in SLOT_FIELDS]


def feature_bounds(num_slots: int) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper bound of every feature, float32 ``[24 + 34·S]``; ``UNKNOWN`` counts in the lower bound."""
    fields = RUN_FIELDS + SLOT_FIELDS * num_slots
    low = np.full(len(fields), UNKNOWN, dtype=np.float32)
    return low, np.array([f.high for f in fields], dtype=np.float32)


def encode(run: RunReading) -> tuple[np.ndarray, np.ndarray]:
    """Encode one run.

    Returns:
        The features, float32 ``[24 + 34·S]``, every number finite, known values in [-1, 1]; and the index of each
        slot's blueprint, int64 ``[S]``, −1 for an empty slot.
    """
    numbers = [f.encode(run) for f in RUN_FIELDS]
    for slot in run.slots:
        numbers.extend(f.encode(slot, run) for f in SLOT_FIELDS)
    return np.array(numbers, dtype=np.float32), np.array([s.blueprint for s in run.slots], dtype=np.int64)


def encode_prospects(run: RunReading) -> np.ndarray:
    """What is known of every blueprint in every slot, float32 ``[S, 13, P]``, known values in [-1, 1]."""
    encoded = np.full((len(run.slots), len(ALL_BLUEPRINTS), PROSPECT_SIZE), UNKNOWN, dtype=np.float32)
    for s, slot in enumerate(run.slots):
        for b, prospect in enumerate(slot.prospects):
            encoded[s, b] = [f.encode(prospect, slot, run) for f in PROSPECT_FIELDS]
    return encoded
