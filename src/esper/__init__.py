"""Esper grows PyTorch networks while they train."""

import gymnasium

from esper.growth import Growth
from esper.tamiyo.policy.registry import load_policy, make_policy

__version__ = "0.1.0"
__all__ = ["Growth", "__version__", "load_policy", "make_policy"]

gymnasium.register(
    "esper/Growth-v0",
    entry_point="esper.env.growth_env:GrowthEnv",
    vector_entry_point="esper.env.growth_env:GrowthVectorEnv",
)
gymnasium.register("esper/Locksmith-v0", entry_point="esper.simic.locksmith:Locksmith")
