"""Growth as a reinforcement-learning environment: many networks that train side by side, one decision per interval."""

from esper.env.engine.ray_workers import RayWorkers
from esper.env.episode import Variants
from esper.env.growth_env import GrowthEnv, GrowthVectorEnv, find_illegal
from esper.env.reward import RewardConfig

__all__ = ["GrowthEnv", "GrowthVectorEnv", "RayWorkers", "RewardConfig", "Variants", "find_illegal"]
