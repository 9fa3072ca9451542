"""Esper grows PyTorch networks while they train."""

import gymnasium

__version__ = "0.1.0"

gymnasium.register(
    "esper/Growth-v0",
    entry_point="esper.env.growth_env:GrowthEnv",
    vector_entry_point="esper.env.growth_env:GrowthVectorEnv",
)
