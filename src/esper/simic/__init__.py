"""Simic trains: PPO for recurrent policies with factored, masked, dependent heads, over any Gymnasium environment.

Example:
    >>> from esper import simic
    >>> result = simic.train("CartPole-v1", config=simic.TrainConfig(total_steps=64, num_envs=2, num_steps=16))
    >>> simic.evaluate(result.policy, "CartPole-v1", episodes=2).returns.shape
    (2,)
"""

from esper.simic.control import RunningMeanStd
from esper.simic.evaluation import EndlessEpisodeWarning, EvaluationResult, evaluate, load_bundle, record
from esper.simic.locksmith import register_environments
from esper.simic.ppo import PPOConfig
from esper.simic.rollout_buffer import RolloutBuffer
from esper.simic.training.callbacks import Callback, Plan, StopTraining
from esper.simic.training.config import TrainConfig
from esper.simic.training.progress import Progress
from esper.simic.training.vectorized import TrainResult, train
from esper.tamiyo.networks import NetworkOptions

__all__ = [
    "Callback",
    "EndlessEpisodeWarning",
    "EvaluationResult",
    "NetworkOptions",
    "PPOConfig",
    "Plan",
    "Progress",
    "RolloutBuffer",
    "RunningMeanStd",
    "StopTraining",
    "TrainConfig",
    "TrainResult",
    "evaluate",
    "load_bundle",
    "record",
    "register_environments",
    "train",
]
