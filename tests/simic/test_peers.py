"""What the suites of other PPO libraries hold of theirs, held of this one.

Stable-Baselines3 (values under a time limit, batches of one, saving and going on), sb3-contrib (masks in evaluation,
memory across rollouts) and CleanRL (every loop runs end to end).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import FilterObservation, TimeLimit

from esper.simic import NetworkOptions, PPOConfig, TrainConfig, evaluate, load_bundle, train
from esper.simic.locksmith import Locksmith
from esper.simic.spaces import EnvironmentAdapter

SMALL = NetworkOptions(hidden_dim=16, head_dim=16)


def config(**changes: Any) -> TrainConfig:
    return TrainConfig(**{"updates": 1, "num_envs": 2, "num_steps": 8, "network": SMALL, **changes})


def weights(policy) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in policy.network.parameters()])


class Circle(gym.Env):
    """Four places in a circle, a reward of one for every step, and no end of its own."""

    observation_space = gym.spaces.Discrete(4)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = 0
        return self.place, {}

    def step(self, action):
        self.place = (self.place + 1) % 4
        return self.place, 1.0, False, False, {}


def test_a_time_limit_is_no_end_of_the_world() -> None:
    """The value of every place is 1 / (1 − γ) = 5, though no episode is longer than six steps."""
    envs = SyncVectorEnv([lambda: TimeLimit(Circle(), 6)] * 8, autoreset_mode=AutoresetMode.SAME_STEP)
    ppo = PPOConfig(learning_rate="linear:0.02", gamma=0.8, gae_lambda=0.9, minibatches=2)
    options = config(updates=20, num_steps=16, ppo=ppo, normalize_rewards=False, network=NetworkOptions(memory="none"))
    policy = train(envs, config=options).policy
    inputs = EnvironmentAdapter(envs).encode(np.array([0, 1, 2, 3, 0, 1, 2, 3]), {})
    values = policy.get_value(inputs.features, policy.initial_hidden(8), None, inputs.masks)
    np.testing.assert_allclose(values, 5.0, rtol=0.1)


@pytest.mark.parametrize("num_steps", [1, 2])
def test_a_rollout_may_be_a_single_step_of_a_single_environment(num_steps: int) -> None:
    """A single advantage has no deviation."""
    result = train("CartPole-v1", config=config(updates=3, num_envs=1, num_steps=num_steps))
    assert weights(result.policy).isfinite().all()
    assert math.isfinite(result.metrics[-1]["policy_loss"])


def test_fewer_steps_than_a_rollout_are_a_rollout() -> None:
    result = train("CartPole-v1", config=config(updates=None, total_steps=1))
    assert [row["update"] for row in result.metrics] == [1]


def test_a_saved_policy_goes_on_learning_on_another_number_of_environments(tmp_path: Path) -> None:
    """Its first decisions are those that it was saved with."""
    train("CartPole-v1", config=config(), run_dir=tmp_path)
    saved = weights(load_bundle(tmp_path))
    again = train("CartPole-v1", config=config(num_envs=5), policy=load_bundle(tmp_path))
    assert again.metrics[0]["first_ratio_error/action"] < 1e-5
    assert 0 < (weights(again.policy) - saved).abs().max() < 0.1


def test_memory_goes_on_from_one_rollout_to_the_next() -> None:
    """Locksmith's keys are shown in the first steps: rollouts of four steps are learned from as they were played."""
    result = train("esper/Locksmith-v0", config=config(updates=4, num_steps=4))
    assert max(row["first_ratio_error/key"] for row in result.metrics if row["head_share/key"]) < 1e-5


def test_a_policy_that_had_masks_is_not_evaluated_without() -> None:
    """It would take what it must not, and nobody would notice."""
    policy = train("esper/Locksmith-v0", config=config()).policy
    bare = FilterObservation(Locksmith(), ["door", "key"])
    with pytest.raises(ValueError, match=r"expected masks of \['door'\], which the policy was trained with, got none"):
        evaluate(policy, bare, episodes=1)
