"""The Gymnasium spaces of growth: what one environment shows and takes, by its number of slots."""

from __future__ import annotations

import numpy as np
from gymnasium import spaces

from esper.actions import ALL_BLUEPRINTS, HEADS
from esper.observation import PROSPECT_SIZE, UNKNOWN, feature_bounds


def observation_space(num_slots: int) -> spaces.Dict:
    """``features`` [24 + 34·S], ``blueprints`` [S], ``prospects`` [S, 13, P] and ``action_mask`` {head: [...]}."""
    low, high = feature_bounds(num_slots)
    return spaces.Dict(
        {
            "features": spaces.Box(low, high, dtype=np.float32),
            "blueprints": spaces.Box(-1, len(ALL_BLUEPRINTS) - 1, (num_slots,), dtype=np.int64),
            "prospects": spaces.Box(UNKNOWN, 1, (num_slots, len(ALL_BLUEPRINTS), PROSPECT_SIZE), dtype=np.float32),
            "action_mask": spaces.Dict(
                {name: spaces.Box(0, 1, shape, dtype=np.bool_) for name, shape in mask_shapes(num_slots).items()}
            ),
        }
    )


def mask_shapes(num_slots: int) -> dict[str, tuple[int, ...]]:
    """Shape of every head's mask: op ``[O]``, slot ``[O, S]``, blueprint ``[S, 13]``, the rest ``[n]``."""
    sizes = HEADS.sizes(num_slots)
    conditional = {"slot": (sizes["op"], num_slots), "blueprint": (num_slots, sizes["blueprint"])}
    return {name: conditional.get(name, (size,)) for name, size in sizes.items()}


def action_space(num_slots: int) -> spaces.Dict:
    """One discrete choice per head."""
    return spaces.Dict({name: spaces.Discrete(size) for name, size in HEADS.sizes(num_slots).items()})
