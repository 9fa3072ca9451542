"""Rollouts against what the environment itself wrote down, in both autoreset modes."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from esper.simic import TrainConfig
from esper.simic.ppo import PPOConfig, make_optimizer, update
from esper.simic.spaces import EnvironmentAdapter
from esper.simic.training.collector import Collector, Interrupted
from esper.simic.training.reward_scaling import RewardScaler
from esper.tamiyo.policy.lstm_bundle import LSTMPolicyBundle, PolicyInput

GAMMA, LAMBDA = 0.9, 0.8


def values_by_hand(policy: LSTMPolicyBundle, rows: list[tuple]) -> list[float]:
    """V of each observation of one episode, stepping through it alone from an empty memory."""
    hidden, values = policy.network.initial_hidden(1), []
    for features, mask, *_ in rows:
        inputs = PolicyInput(
            torch.from_numpy(features)[None], None, {h: torch.from_numpy(m)[None] for h, m in mask.items()}
        )
        values.append(policy.get_value(inputs.features, hidden, None, inputs.masks).item())
        hidden = policy.act(inputs, hidden).hidden
    return values


def finished_episodes(log: list[tuple]) -> list[list[tuple]]:
    """The rows of each episode that ended in the log of one environment, its final observation included."""
    episodes: list[list[tuple]] = []
    running: list[tuple] = []
    for row in log:
        running = [row] if row[2] == "start" else [*running, row]
        if row[2] in ("terminated", "truncated"):
            episodes.append(running)
    return episodes


def advantages_by_hand(policy: LSTMPolicyBundle, episode: list[tuple]) -> list[float]:
    """Root advantages of every step of one episode."""
    if episode[-1][2] == "terminated":
        values = [*values_by_hand(policy, episode[:-1]), 0.0]
    else:
        values = values_by_hand(policy, episode)
    steps = range(len(episode) - 1)
    differences = [episode[t + 1][3] + GAMMA * values[t + 1] - values[t] for t in steps]
    return [sum((GAMMA * LAMBDA) ** i * d for i, d in enumerate(differences[t:])) for t in steps]


def test_advantages_equal_those_of_each_episode_played_alone(mode, tree_world, collected) -> None:
    """The memory restarts, truncation bootstraps from the final observation, termination from nothing."""
    envs = tree_world(4, mode, end_rate=0.15)
    policy, rollout, _ = collected(envs, 40, rollouts=1)
    assert {row[2] for log in envs.log for row in log} == {"start", "step", "terminated", "truncated"}
    for k in range(4):
        by_hand = [advantages_by_hand(policy, episode) for episode in finished_episodes(envs.log[k])]
        expected = torch.tensor([a for episode in by_hand for a in episode], dtype=torch.float32)
        got = rollout.advantages.op[:, k][rollout["valid"][:, k]]
        torch.testing.assert_close(got[: len(expected)], expected, atol=1e-4, rtol=1e-4)


def test_episodes_are_counted_as_the_environment_counts_them(mode, tree_world, collected) -> None:
    envs = tree_world(5, mode)
    *_, collector = collected(envs, 60, rollouts=1)
    expected = []
    for k in range(5):
        for episode in finished_episodes(envs.log[k]):
            expected.append((sum(row[3] for row in episode[1:]), len(episode) - 1, k / 10))
    got = [(e.reward, e.length, e.metrics["score"]) for e in collector.episodes]
    assert len(got) > 10
    np.testing.assert_allclose(sorted(got), sorted(expected))


def test_reset_rows_are_in_no_sequence_and_in_no_statistic(tree_world, collected) -> None:
    """Their reward of a million reaches nothing."""
    envs = tree_world(5, AutoresetMode.NEXT_STEP)
    _, rollout, _ = collected(envs, 60)
    assert (~rollout["valid"]).any()
    assert rollout["rewards"].abs().max() < 100
    assert rollout.advantages.targets.abs().max() < 100
    scaler = RewardScaler([5], GAMMA, torch.device("cpu"))
    scaler.observe([rollout])
    assert float(scaler.before.count) == float(scaler.after.count) == int(rollout["valid"].sum())
    assert scaler.scale > 0.1


@pytest.mark.parametrize("num_steps", [50, 2])
def test_rewards_are_scaled_by_the_deviation_of_their_discounted_sums(
    mode, tree_world, random_policy, num_steps: int
) -> None:
    """Of those before a step, however many rollouts an episode is cut into, or of those after it, in the rollout."""
    envs = tree_world(3, mode)
    adapter = EnvironmentAdapter(envs)
    policy, collector, generator = random_policy(adapter), Collector(envs, adapter, num_steps), torch.Generator()
    collector.reset(policy, seed=0)
    scaler = RewardScaler([3], GAMMA, torch.device("cpu"))
    assert scaler.scale == 1.0
    before, after, running = [], [], np.zeros(3)
    for _ in range(50 // num_steps):
        rollout = collector.collect(policy, generator, gamma=GAMMA, gae_lambda=LAMBDA)
        scaler.observe([rollout])
        rewards, starts, valid = (rollout[name].numpy() for name in ("rewards", "episode_starts", "valid"))
        for t in range(num_steps):
            running = np.where(starts[t], 0.0, running) * GAMMA + rewards[t]
            before += list(running[valid[t]])
        following = np.zeros(3)
        for t in reversed(range(num_steps)):
            following = rewards[t] + GAMMA * following
            after += list(following[valid[t]])
            following[starts[t]] = 0.0
    assert len(before) == float(scaler.before.count)
    assert float(scaler.before.var) == pytest.approx(np.var(before), rel=1e-4)
    assert float(scaler.after.var) == pytest.approx(np.var(after), rel=1e-4)
    assert scaler.scale == pytest.approx(1 / max(np.std(before), np.std(after)), rel=1e-4)


class Late(gym.Env):
    """200 steps without a reward, after which one episode in four gives 0.3."""

    observation_space, action_space = gym.spaces.Box(-1, 1, (1,)), gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps, self.pays = 0, self.np_random.random() < 0.25
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.steps += 1
        ends = self.steps == 200
        return np.zeros(1, np.float32), 0.3 * (ends and self.pays), ends, False, {}


def test_returns_are_of_order_one_where_a_reward_is_late_and_rare(random_policy) -> None:
    """Seen from behind, rewards are 0 but for the last step of an episode, and would be scaled to returns of 16."""
    envs = gym.vector.SyncVectorEnv([Late] * 8, autoreset_mode=AutoresetMode.SAME_STEP)
    adapter = EnvironmentAdapter(envs)
    collector, scaler = Collector(envs, adapter, 400), RewardScaler([8], 0.99, torch.device("cpu"))
    policy = random_policy(adapter)
    collector.reset(policy, seed=0)
    scaler.observe([collector.collect(policy, torch.Generator(), gamma=0.99, gae_lambda=1.0)])
    rollout = collector.collect(policy, torch.Generator(), gamma=0.99, gae_lambda=1.0, reward_scale=scaler.scale)
    assert rollout["rewards"].gt(0).any()
    assert rollout.advantages.targets.abs().max() < 8
    assert 0.5 < rollout.advantages.targets.std() < 2


def test_while_nothing_was_ever_paid_rewards_are_left_as_they_are(random_policy) -> None:
    envs = gym.vector.SyncVectorEnv([Endless] * 2, autoreset_mode=AutoresetMode.SAME_STEP)
    adapter = EnvironmentAdapter(envs)
    collector, scaler = Collector(envs, adapter, 5), RewardScaler([2], GAMMA, torch.device("cpu"))
    policy = random_policy(adapter)
    collector.reset(policy, seed=0)
    scaler.observe([collector.collect(policy, torch.Generator(), gamma=GAMMA, gae_lambda=LAMBDA)])
    assert scaler.before.count > 0
    assert scaler.scale == 1.0


class Endless(gym.Env):
    """One state; gives the rewards it is told to give."""

    observation_space = gym.spaces.Box(-1, 1, (1,))
    action_space = gym.spaces.Discrete(2)

    def __init__(self, reward: float = 0.0, observation: float = 0.0, mask: tuple[int, int] = (1, 1)) -> None:
        self.reward, self.observation, self.info = reward, observation, {"action_mask": np.array(mask, np.int8)}

    def reset(self, *, seed=None, options=None):
        return np.zeros(1, np.float32), self.info

    def step(self, action):
        return np.full(1, self.observation, np.float32), self.reward, False, False, self.info


def collect_from(env: Endless, random_policy, **options) -> None:
    envs = SyncVectorEnv([lambda: env])
    adapter = EnvironmentAdapter(envs)
    policy = random_policy(adapter)
    collector = Collector(envs, adapter, 3)
    collector.reset(policy, 0)
    collector.collect(policy, torch.Generator(), gamma=1.0, gae_lambda=1.0, **options)


@pytest.mark.parametrize("correlation", [0.0, 0.9])
def test_numbers_are_drawn_with_noise_that_is_as_persistent_as_asked(random_policy, correlation: float) -> None:
    envs = gym.make_vec("Pendulum-v1", 16, vectorization_mode="sync")
    adapter = EnvironmentAdapter(envs)
    policy, collector = random_policy(adapter), Collector(envs, adapter, 400, noise_correlation=correlation)
    collector.reset(policy, 0)
    rollout = collector.collect(policy, torch.Generator().manual_seed(1), gamma=0.9, gae_lambda=0.9)
    torques = rollout["actions"][..., 0].numpy()  # [T, K], the mean moves slowly
    found = np.corrcoef(torques[1:].ravel(), torques[:-1].ravel())[0, 1]
    assert found == pytest.approx(correlation, abs=0.1)
    metrics = update(policy, make_optimizer(policy, PPOConfig()), [rollout], PPOConfig())
    assert metrics["first_ratio_error/action"] < 1e-5


def test_noise_is_not_correlated_where_nothing_is_a_number() -> None:
    envs = gym.make_vec("CartPole-v1", 2)
    with pytest.raises(ValueError, match=r"noise_correlation=0.5 is about numbers .* action space Discrete\(2\)"):
        Collector(envs, EnvironmentAdapter(envs), 4, noise_correlation=0.5)
    with pytest.raises(ValueError, match="noise_correlation: expected a number from 0 to below 1, got 1"):
        TrainConfig(noise_correlation=1.0)


def test_what_is_not_finite_is_refused_by_name(random_policy) -> None:
    with pytest.raises(ValueError, match="environment 0 gave a reward of nan"):
        collect_from(Endless(reward=np.nan), random_policy)
    with pytest.raises(
        ValueError, match=r"observation 'observation' of environment 0 is not finite \(nan at number 0\)"
    ):
        collect_from(Endless(observation=np.nan), random_policy)


def test_a_mask_that_allows_nothing_is_refused_by_head_and_environment(random_policy) -> None:
    with pytest.raises(ValueError, match="head 'action': the mask of batch row 0 allows no choice"):
        collect_from(Endless(mask=(0, 0)), random_policy)


def test_stops_before_a_step_when_asked(random_policy) -> None:
    asked = []

    def should_stop() -> bool:
        asked.append(True)
        return len(asked) == 3

    steps: list[int] = []
    with pytest.raises(Interrupted):
        collect_from(Endless(), random_policy, should_stop=should_stop, on_step=lambda: steps.append(1))
    assert len(steps) == 2


def test_environments_must_reset_themselves(random_policy) -> None:
    envs = SyncVectorEnv([Endless], autoreset_mode=AutoresetMode.DISABLED)
    with pytest.raises(ValueError, match=r"NEXT_STEP or SAME_STEP, got <AutoresetMode.DISABLED"):
        Collector(envs, EnvironmentAdapter(envs), 3)


def test_truncation_needs_the_final_observation(tree_world, random_policy) -> None:
    envs = tree_world(4, AutoresetMode.SAME_STEP)
    adapter = EnvironmentAdapter(envs)
    with pytest.raises(ValueError, match=r"expected infos\['final_obs'\]"):
        adapter.encode_final({}, np.array([0]))
