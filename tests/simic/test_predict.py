"""A trained policy is used without the trainer: as in Stable-Baselines3, for one environment and for a batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from esper import simic
from esper.simic import NetworkOptions, TrainConfig, evaluate, load_bundle, train
from esper.simic.spaces import make_envs
from esper.simic.spaces.plain import from_plain, to_plain
from esper.tamiyo.networks import FactoredRecurrentActorCritic
from esper.tamiyo.policy.lstm_bundle import LSTMPolicyBundle
from simic.everything import Everything

SMALL = NetworkOptions(hidden_dim=16, head_dim=8)
ENVIRONMENTS = ["CartPole-v1", "Taxi-v4", "Blackjack-v1", "Pendulum-v1", "esper/Locksmith-v0", "Everything-v0"]


def decided(env_id: str, run_dir: Path | None = None) -> LSTMPolicyBundle:
    """A policy for an environment, whose heads are far from uniform."""
    simic.register_environments()
    torch.manual_seed(0)
    config = TrainConfig(updates=1, num_envs=2, num_steps=16, network=SMALL)
    policy = train(env_id, config=config, run_dir=run_dir).policy
    torch.nn.init.normal_(policy.network.tree.output.weight, std=1.0)
    return policy


def masks_of(info: dict[str, Any]) -> Any:
    return info.get("action_mask")


def stacked(trees: list[Any]) -> Any:
    if isinstance(trees[0], dict):
        return {key: stacked([tree[key] for tree in trees]) for key in trees[0]}
    return tuple(map(stacked, zip(*trees, strict=True))) if isinstance(trees[0], tuple) else np.stack(trees)


def flat(tree: Any) -> list[np.ndarray]:
    if isinstance(tree, dict):
        return [leaf for key in sorted(tree) for leaf in flat(tree[key])]
    return [leaf for inner in tree for leaf in flat(inner)] if isinstance(tree, tuple) else [np.asarray(tree)]


@pytest.mark.parametrize("env_id", ENVIRONMENTS)
def test_a_batch_is_decided_as_its_rows_are(env_id: str) -> None:
    """Over whole episodes, with memory and masks; and every action is one that the environment takes."""
    policy = decided(env_id)
    envs = [gym.make(env_id) for _ in range(3)]
    shown, infos = map(list, zip(*[env.reset(seed=i) for i, env in enumerate(envs)], strict=True))
    starts, state, states = np.ones(3, bool), None, [None] * 3
    for _ in range(30):
        masks = [masks_of(info) for info in infos]
        together = None if masks[0] is None else stacked(masks)
        batch, state = policy.predict(stacked(shown), state, starts, action_masks=together)
        for i, env in enumerate(envs):
            action, states[i] = policy.predict(shown[i], states[i], starts[i], action_masks=masks[i])
            assert env.action_space.contains(action)
            for one, many in zip(flat(action), flat(batch), strict=True):
                np.testing.assert_allclose(one, many[i], atol=1e-5)
            np.testing.assert_allclose(states[i][0][:, 0], state[0][:, i], atol=1e-5)
            shown[i], _, terminated, truncated, infos[i] = env.step(action)
            starts[i] = terminated or truncated
            if starts[i]:
                shown[i], infos[i] = env.reset()


def test_an_episode_that_starts_has_no_memory() -> None:
    policy = decided("CartPole-v1")
    observation = np.full((2, 4), 0.1, np.float32)
    _, fresh = policy.predict(observation)
    _, state = policy.predict(observation, (fresh[0] + 1, fresh[1] + 1), episode_start=[True, False])
    np.testing.assert_array_equal(state[0][:, 0], fresh[0][:, 0])
    assert not np.allclose(state[0][:, 1], fresh[0][:, 1])


def test_actions_are_drawn_if_asked_for() -> None:
    policy = decided("CartPole-v1")
    torch.nn.init.zeros_(policy.network.tree.output.weight)
    observation = np.zeros((200, 4), np.float32)
    assert len(set(policy.predict(observation)[0].tolist())) == 1
    assert 60 < policy.predict(observation, deterministic=False)[0].sum() < 140


def test_masks_beside_the_observation_are_obeyed() -> None:
    policy = decided("Taxi-v4")
    for allowed in range(6):
        assert policy.predict(7, action_masks=np.eye(6, dtype=np.int8)[allowed])[0] == allowed


@pytest.mark.parametrize("env_id", ["Taxi-v4", "Everything-v0"])
def test_a_policy_that_was_read_back_decides_the_same(env_id: str, tmp_path: Path) -> None:
    policy = decided(env_id, run_dir=tmp_path)
    policy.save(tmp_path / "checkpoint")
    again = load_bundle(tmp_path)
    env = gym.make(env_id)
    observation, info = env.reset(seed=0)
    actions = [p.predict(observation, action_masks=masks_of(info))[0] for p in (policy, again)]
    assert [leaf.tolist() for leaf in flat(actions[0])] == [leaf.tolist() for leaf in flat(actions[1])]


def test_stable_baselines3_plays_with_it() -> None:
    """Its ``evaluate_policy`` calls the policy as its own, and earns what ours does."""
    evaluation = pytest.importorskip("stable_baselines3.common.evaluation")
    vector = pytest.importorskip("stable_baselines3.common.vec_env")
    policy = decided("CartPole-v1")
    theirs = vector.DummyVecEnv([lambda: gym.wrappers.RecordEpisodeStatistics(gym.make("CartPole-v1"))] * 4)
    theirs.seed(0)
    returns, _ = evaluation.evaluate_policy(policy, theirs, n_eval_episodes=12, return_episode_rewards=True, warn=False)
    ours = evaluate(policy, make_envs("CartPole-v1", 4, wrappers=[lambda env: env]), episodes=12)
    assert np.mean(returns) == pytest.approx(ours.mean_return, rel=0.2)


def test_what_does_not_fit_is_said() -> None:
    network = FactoredRecurrentActorCritic(state_dim=4, num_slots=0, heads=decided("CartPole-v1").heads)
    with pytest.raises(ValueError, match="this policy does not know its environment's observations and actions"):
        LSTMPolicyBundle(network).predict(np.zeros(4))
    policy = decided("CartPole-v1")
    with pytest.raises(ValueError, match=r"expected shape \(4,\) of one environment, or \(B, ...\) of several, got"):
        policy.predict(np.zeros(5))
    with pytest.raises(ValueError, match="hidden"):
        policy.predict(np.zeros(4, np.float32), (np.zeros((1, 1, 3)), np.zeros((1, 1, 3))))
    with pytest.raises(ValueError, match="expected an observation of Dict"):
        decided("Everything-v0").predict(3)


# ---------------------------------------------------------------------- spaces


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(-np.inf, np.inf, (2, 3), np.float64),
        spaces.Box(np.float32([0.1, -np.inf]), np.float32([1, 2])),
        spaces.Box(0, 255, (8, 8, 3), np.uint8),
        spaces.Discrete(3, start=-1),
        spaces.MultiDiscrete([[2, 3], [4, 5]], start=[[1, 0], [0, -1]]),
        spaces.MultiBinary((2, 3)),
        Everything().observation_space,
        Everything().action_space,
    ],
    ids=str,
)
def test_a_space_survives_as_plain_data(space: spaces.Space) -> None:
    assert from_plain(to_plain(space)) == space


def test_what_is_no_space_is_refused() -> None:
    with pytest.raises(ValueError, match="unsupported space Text"):
        to_plain(spaces.Text(3))
    for wrong in ({}, {"kind": "Cube"}, {"kind": "Box", "low": 0}, {"kind": "Discrete", "n": -1, "start": 0}):
        with pytest.raises(ValueError, match="expected a space as plain data"):
            from_plain(wrong)
