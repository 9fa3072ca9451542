"""Rollouts judged once more under another objective: against the first one, by hand, and by what is learned."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from esper import simic
from esper.simic import ppo
from esper.simic.spaces import EnvironmentAdapter
from esper.simic.training.collector import Collector
from esper.simic.training.config import NetworkOptions, TrainConfig
from esper.tamiyo.policy.lstm_bundle import PolicyInput


def offering(tree_world, shift: float, factor: float) -> type:
    """A world that tells of another objective: features moved by ``shift``, rewards times ``factor``."""

    class TwoObjectives(tree_world):  # type: ignore[misc, valid-type]
        def reset(self, **options: Any) -> tuple[dict, dict]:
            observation, infos = super().reset(**options)
            return observation, infos | self.other(np.zeros(self.num_envs))

        def step(self, actions: dict[str, np.ndarray]) -> tuple:
            observation, rewards, terminated, truncated, infos = super().step(actions)
            infos |= self.other(rewards)
            if self.mode is AutoresetMode.SAME_STEP and "final_info" in infos:
                infos["final_info"] |= self.other(rewards, back=1 + (terminated | truncated))
            return observation, rewards, terminated, truncated, infos

        def other(self, rewards: np.ndarray, back: np.ndarray | None = None) -> dict[str, Any]:
            back = np.ones(self.num_envs, dtype=int) if back is None else back
            seen = np.stack([rows[-n][0] for rows, n in zip(self.log, back, strict=True)])
            return {"other_objective": {"features": seen + np.float32(shift), "rewards": factor * rewards}}

    return TwoObjectives


NAMES = ("actions", "log_probs", "entropies", "chosen_values", "state_values", "rewards", "hidden_0", "hidden_1")


def test_under_the_same_objective_it_is_the_same_rollout(mode, tree_world, collected) -> None:
    _, rollout, collector = collected(offering(tree_world, 0.0, 1.0)(4, mode), 40)
    again = collector.hindsight.buffer
    valid = rollout["valid"]
    assert rollout["terminated"].any()
    assert rollout["truncated"].any()
    for name in NAMES:
        ours, theirs = again[name], rollout[name]
        if name.startswith("hidden"):
            ours, theirs = ours.transpose(1, 2), theirs.transpose(1, 2)
        torch.testing.assert_close(ours[valid], theirs[valid], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(again["likelihood_ratios"][valid], torch.ones(int(valid.sum())), atol=1e-5, rtol=0)
    torch.testing.assert_close(again.head_advantages(), rollout.head_advantages(), atol=1e-4, rtol=1e-4)


def test_another_objective_is_judged_with_a_memory_of_its_own(mode, tree_world, collected) -> None:
    """Values and probabilities as when each episode is walked alone, seeing the other objective from its beginning."""
    envs = offering(tree_world, 0.7, -2.0)(3, mode)
    policy, rollout, collector = collected(envs, 40, rollouts=1)
    again, valid = collector.hindsight.buffer, rollout["valid"]
    torch.testing.assert_close(again["rewards"][valid], -2 * rollout["rewards"][valid])
    assert (again["likelihood_ratios"][valid] - 1).abs().max() > 0.1
    for k in range(3):
        hidden = policy.network.initial_hidden(1)
        for t in torch.arange(40)[valid[:, k]].tolist():
            if rollout["episode_starts"][t, k]:
                hidden = policy.network.initial_hidden(1)
            masks = {head: rollout._masks[head][t, k][None, None] for head in policy.heads.names}
            inputs = PolicyInput(rollout["features"][t, k][None, None] + 0.7, None, masks)
            actions = {h: rollout["actions"][t, k, i][None, None] for i, h in enumerate(policy.heads.names)}
            log_probs, _, values, hidden = policy.evaluate_actions(inputs, actions, hidden)
            joint = torch.stack([x[0, 0] for x in log_probs.values()]).sum()
            torch.testing.assert_close(again["chosen_values"][t, k], values[0, 0], atol=1e-4, rtol=1e-4)
            ratio = (joint - rollout["log_probs"][t, k].sum()).exp()
            torch.testing.assert_close(again["likelihood_ratios"][t, k], ratio, atol=1e-4, rtol=1e-3)


def advantages_by_hand(policy, rows: list[tuple], actions: torch.Tensor, drawn_with: torch.Tensor) -> list[float]:
    """Root advantages of one episode seen at features + 0.7 and paid −2 times its rewards.

    ``rows`` are its observations as the world logged them, one more than there are ``actions`` [T, H]; ``drawn_with``
    [T] are the log-probabilities they were drawn with. γ 0.9, λ 0.8.
    """
    hidden, values, weights = policy.network.initial_hidden(1), [], []
    for t, (features, mask, kind, _) in enumerate(rows):
        if kind == "terminated":
            values.append(0.0)
            break
        masks = {head: torch.from_numpy(m)[None] for head, m in mask.items()}
        inputs = PolicyInput(torch.from_numpy(features)[None] + 0.7, None, masks)
        values.append(policy.get_value(inputs.features, hidden, None, masks).item())
        if t == len(actions):
            break
        alone = PolicyInput(inputs.features[:, None], None, {head: m[:, None] for head, m in masks.items()})
        taken = {head: actions[t, i].view(1, 1) for i, head in enumerate(policy.heads.names)}
        log_probs, _, _, hidden = policy.evaluate_actions(alone, taken, hidden)
        joint = sum(float(x.detach()) for x in log_probs.values())
        weights.append(min(1.0, np.exp(joint - float(drawn_with[t]))))
    advantages = [0.0]
    for t in reversed(range(len(actions))):
        difference = -2 * rows[t + 1][3] + 0.9 * values[t + 1] - values[t]
        later = advantages[0] * weights[t + 1] if t + 1 < len(actions) else 0.0
        advantages.insert(0, difference + 0.9 * 0.8 * later)
    return advantages[:-1]


def test_what_follows_an_episode_that_is_cut_off_is_also_judged_under_the_other_objective(
    mode, tree_world, collected
) -> None:
    """Advantages as when each episode is walked alone, whether it ends, or a time limit or the rollout cuts it off."""
    envs = offering(tree_world, 0.7, -2.0)(4, mode, end_rate=0.15)
    policy, rollout, collector = collected(envs, 40, rollouts=1)
    endings = []
    for k in range(4):
        valid = rollout["valid"][:, k]
        actions, drawn_with = rollout["actions"][valid, k], rollout["log_probs"][valid, k].sum(-1)
        got, done = collector.hindsight.buffer.advantages.op[valid, k].tolist(), 0
        starts = [i for i, row in enumerate(envs.log[k]) if row[2] == "start"]
        for begin, end in zip(starts, [*starts[1:], None], strict=True):
            rows = envs.log[k][begin:end]
            steps = slice(done, done := done + len(rows) - 1)
            expected = advantages_by_hand(policy, rows, actions[steps], drawn_with[steps])
            assert got[steps] == pytest.approx(expected, abs=1e-4, rel=1e-3)
            endings.append(rows[-1][2] if len(rows) > 1 else "start")
        assert done == len(got)
    assert {"terminated", "truncated", "step"} <= set(endings)


@pytest.mark.parametrize("options", [{"reward_scale": 0.1}, {"paired": True}], ids=lambda options: next(iter(options)))
def test_rewards_are_scaled_and_environments_paired_as_in_the_rollout_that_is_judged_again(
    mode, tree_world, random_policy, options: dict[str, Any]
) -> None:
    envs = offering(tree_world, 0.0, 1.0)(4, mode)
    adapter = EnvironmentAdapter(envs)
    policy, collector = random_policy(adapter), Collector(envs, adapter, 40)
    collector.reset(policy, seed=0)
    rollout = collector.collect(policy, torch.Generator().manual_seed(0), gamma=0.9, gae_lambda=0.8, **options)
    again = collector.hindsight.buffer
    torch.testing.assert_close(again.advantages.targets, rollout.advantages.targets, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(again.head_advantages(), rollout.head_advantages(), atol=1e-4, rtol=1e-4)


def test_the_first_ratio_of_the_update_is_one(mode, tree_world, collected) -> None:
    policy, rollout, collector = collected(offering(tree_world, 0.7, -2.0)(4, mode), 40)
    config = ppo.PPOConfig(epochs=1, minibatches=1)
    optimizer = ppo.make_optimizer(policy, config)
    metrics = ppo.update(policy, optimizer, [rollout, collector.hindsight.buffer], config, torch.Generator())
    assert max(v for name, v in metrics.items() if name.startswith("first_ratio_error")) < 1e-5


def test_advantages_carry_the_weight_of_the_action_under_the_policy_that_learns(tree_world, collected) -> None:
    *_, collector = collected(offering(tree_world, 2.0, 1.0)(4, AutoresetMode.SAME_STEP), 40)
    again = collector.hindsight.buffer
    weights = again["likelihood_ratios"].clamp(max=1)
    assert weights.min() < 0.5
    torch.testing.assert_close(again.head_advantages()[..., 0], again.advantages.op * weights)
    torch.testing.assert_close(again.head_advantages()[..., 1], again.advantages.sub * weights)


def test_it_goes_on_from_its_state(tree_world, random_policy) -> None:
    def run(resumed: bool) -> torch.Tensor:
        envs = offering(tree_world, 0.7, -2.0)(3, AutoresetMode.NEXT_STEP)
        torch.manual_seed(0)
        adapter = EnvironmentAdapter(envs)
        policy, generator = random_policy(adapter), torch.Generator().manual_seed(0)
        collector = Collector(envs, adapter, 15)
        collector.reset(policy, seed=0)
        collector.collect(policy, generator, gamma=0.9, gae_lambda=0.8)
        if resumed:
            state = collector.state_dict()
            collector = Collector(envs, adapter, 15)
            collector.reset(policy, seed=5)
            collector.load_state_dict(state)
        collector.collect(policy, generator, gamma=0.9, gae_lambda=0.8)
        return collector.hindsight.buffer.head_advantages()

    assert torch.equal(run(resumed=False), run(resumed=True))


class Shop(VectorEnv):
    """One step: buying pays 1 less the price, leaving pays a half. It is free; in hindsight it costs ``price``."""

    def __init__(self, num_envs: int, price: float) -> None:
        self.num_envs, self.price = num_envs, price
        self.metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}
        self.single_observation_space = spaces.Box(0, 1, (1,))
        self.single_action_space = spaces.Discrete(2)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        return self.prices(0.0), self.other(np.zeros(self.num_envs))

    def step(self, actions: np.ndarray) -> tuple:
        ended = np.ones(self.num_envs, dtype=bool)
        buys = np.asarray(actions).reshape(-1) == 1
        pay = lambda price: np.where(buys, 1 - price, 0.5)  # noqa: E731
        return self.prices(0.0), pay(0.0), ended, ~ended, self.other(pay(self.price))

    def prices(self, price: float) -> np.ndarray:
        return np.full((self.num_envs, 1), price, dtype=np.float32)

    def other(self, rewards: np.ndarray) -> dict[str, Any]:
        return {"other_objective": {"features": self.prices(self.price), "rewards": rewards}}


@pytest.mark.parametrize(("price", "probability"), [(1.0, 0.1), pytest.param(0.2, 0.9, marks=pytest.mark.slow)])
def test_a_price_that_was_never_played_is_learned(price: float, probability: float) -> None:
    """It buys while free, and at the other price only where that is cheap. The floor of 0.1 stays."""
    options = TrainConfig(
        updates=40,
        num_steps=8,
        ppo=ppo.PPOConfig(learning_rate=3e-3),
        network=NetworkOptions(probability_floor=0.1),
        normalize_observations=False,
        normalize_rewards=False,
    )
    policy = simic.train(Shop(16, price), config=options).policy
    masks = dict.fromkeys(policy.heads.names)

    def buys(shown: float) -> float:
        draws = policy.act(PolicyInput(torch.full((200, 1), shown), None, masks), policy.initial_hidden(200))
        return float(next(iter(draws.actions.values())).float().mean())

    assert buys(0.0) > 0.8
    assert buys(price) == pytest.approx(probability, abs=0.15)


def test_what_is_told_once_must_be_told_always(tree_world, collected) -> None:
    class Forgetful(offering(tree_world, 0.0, 1.0)):  # type: ignore[misc]
        def step(self, actions: dict[str, np.ndarray]) -> tuple:
            *outcome, infos = super().step(actions)
            del infos["other_objective"]
            return *outcome, infos

    with pytest.raises(ValueError, match="other_objective"):
        collected(Forgetful(2, AutoresetMode.NEXT_STEP), 5)
