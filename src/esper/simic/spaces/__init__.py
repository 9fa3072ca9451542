"""Between a Gymnasium vector environment and a policy: observations to inputs, choices to actions."""

from esper.simic.spaces.actions import ACTION_SPACES, declared_heads, heads_of
from esper.simic.spaces.adapter import EnvironmentAdapter, autoreset_mode, imported, make_envs
from esper.simic.spaces.masks import MASK
from esper.simic.spaces.observations import OBSERVATION_SPACES, ObservationOutsideSpaceWarning

__all__ = [
    "ACTION_SPACES",
    "MASK",
    "OBSERVATION_SPACES",
    "EnvironmentAdapter",
    "ObservationOutsideSpaceWarning",
    "autoreset_mode",
    "declared_heads",
    "heads_of",
    "imported",
    "make_envs",
]
