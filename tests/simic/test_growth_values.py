"""Training on growing networks: values follow returns, and the advantages of no op are biased.

The worst fault that this design ever had was that the value stored belonged to another draw of the op than the action:
every advantage was biased, and nothing crashed. So it is looked for in the numbers, too.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from episodes import quick_task
from esper import simic
from esper.env.growth_env import GrowthVectorEnv
from esper.env.reward import RewardConfig
from esper.lifecycle import Op
from esper.simic import ppo
from esper.simic.rollout_buffer import RolloutBuffer, minibatches
from esper.simic.spaces import EnvironmentAdapter
from esper.simic.training.collector import Collector
from esper.tamiyo.networks.action_tree import noise_for
from esper.tamiyo.policy.lstm_bundle import LSTMPolicyBundle

HORIZON, ROWS = 3, 16


def growth() -> GrowthVectorEnv:
    """One slot, one blueprint and a price at which each op is worth another sum."""
    task = quick_task("wine", HORIZON)
    task.slots = task.slots[:1]
    return GrowthVectorEnv(ROWS, task, reward=RewardConfig(rent=1.5), blueprints=["mlp_large"])


def play(policy: LSTMPolicyBundle, episodes: int, seed: int) -> RolloutBuffer:
    """That many whole episodes in every row; what follows a step is its Monte-Carlo return."""
    envs = growth()
    collector = Collector(envs, EnvironmentAdapter(envs), HORIZON * episodes)
    collector.reset(policy, seed)
    rollout = collector.collect(policy, torch.Generator().manual_seed(seed), gamma=1.0, gae_lambda=1.0)
    envs.close()
    return rollout


def fit_critic(policy: LSTMPolicyBundle, rollout: RolloutBuffer) -> None:
    """Only the critic learns: the policy whose returns it learns stays as it is."""
    critic = [p for name, p in policy.network.named_parameters() if name.startswith("critic")]
    config = ppo.PPOConfig(epochs=100, minibatches=1, max_grad_norm=100.0)
    ppo.update(policy, torch.optim.Adam(critic, lr=3e-3), [rollout], config, torch.Generator().manual_seed(0))


class Trained(NamedTuple):
    """A policy after some training, its critic then fitted to the returns of as many episodes as are held out."""

    policy: LSTMPolicyBundle
    explained: tuple[float, float, float]
    """Explained variance of returns that were not learned from: at first, after training, after fitting."""
    held_out: RolloutBuffer
    episodes: int
    """Of each row that are held out."""


LONG = pytest.param((16, 32), marks=pytest.mark.slow)


@pytest.fixture(scope="module", params=[(5, 6), LONG], ids=["quick", "long"])
def trained(request: pytest.FixtureRequest) -> Trained:
    """By 16 episodes an update; the long one also has what it takes to see the fault."""
    updates, episodes = request.param
    envs = growth()
    config = simic.TrainConfig(
        updates=updates,
        num_steps=HORIZON,
        normalize_rewards=False,
        network=simic.NetworkOptions(hidden_dim=32, head_dim=32, slot_dim=16),
        # entropy enough that every op goes on being taken
        ppo=ppo.PPOConfig(
            learning_rate="linear:5e-3", gamma=1.0, gae_lambda=1.0, minibatches=2, entropy_coefficient=2.0
        ),
    )
    result = simic.train(envs, config=config)
    envs.close()
    played = play(result.policy, episodes, seed=1)
    after_training = ppo.rollout_metrics([played])["explained_variance"]
    fit_critic(result.policy, played)
    held_out = play(result.policy, episodes, seed=2)
    after_fitting = ppo.rollout_metrics([held_out])["explained_variance"]
    explained = (result.metrics[0]["explained_variance"], after_training, after_fitting)
    return Trained(result.policy, explained, held_out, episodes)


def in_standard_errors(rows: Tensor) -> float:
    """A mean over the rows, in standard errors.

    The rows of an episode share their luck, so an episode is one observation. To the error of the mean comes that of
    the critic, which was fitted to as many episodes.
    """
    episodes = rows.view(-1, HORIZON, ROWS).sum(1)
    return float(episodes.sum() / (2 * episodes.square().sum()).sqrt())


def bias_per_op(rollout: RolloutBuffer) -> dict[str, float]:
    """Mean of (return − Q(s, op)) where an op was taken, in standard errors, for each taken 40 times or more."""
    assert rollout.advantages is not None
    taken = {op.name: rollout["actions"][..., 0] == op for op in Op}
    errors = rollout.advantages.sub
    return {op: in_standard_errors(errors * rows) for op, rows in taken.items() if rows.sum() >= 40}


def test_values_follow_returns(trained: Trained) -> None:
    at_first, after_training, after_fitting = trained.explained
    assert at_first < 0.25 < min(after_training, after_fitting)


def test_the_advantages_of_no_op_are_biased(trained: Trained) -> None:
    """Return less Q(s, op) averages to 0 for each op, and the op head's advantages to 0 over all."""
    biases = bias_per_op(trained.held_out)
    assert {"WAIT", "GERMINATE", "PRUNE"} <= set(biases)
    assert max(map(abs, biases.values())) < 3, biases
    assert trained.held_out.advantages is not None
    assert abs(in_standard_errors(trained.held_out.advantages.op)) < 3


def test_over_the_policy_the_advantages_of_the_ops_are_zero(trained: Trained) -> None:
    """Σ_op π(op|s) [Q(s, op) − V(s)] = 0 in every state, by the V(s) that the rollout stored."""
    policy = trained.policy
    (batch,) = next(iter(minibatches([trained.held_out], 1))).values()
    allowed = batch.inputs.masks["op"]
    assert allowed is not None
    inputs = batch.inputs._replace(masks=dict.fromkeys(policy.heads.names) | {"op": allowed})
    stored = batch.targets - batch.advantages[..., 0]
    total, size = torch.zeros_like(stored), torch.zeros_like(stored)
    for op in Op:
        actions = {**batch.actions, "op": torch.where(allowed[..., op], op, batch.actions["op"])}
        evaluation = policy.evaluate_actions(inputs, actions, batch.hidden, batch.gaps)
        share = evaluation.log_probs["op"].detach().exp() * (evaluation.values.detach() - stored) * allowed[..., op]
        total, size = total + share, size + share.abs()
    assert size[batch.valid].mean() > 0.1
    assert total[batch.valid].abs().max() < 1e-4


class DrawsTwice(LSTMPolicyBundle):
    """Stores the value of another draw of the op than the one it acts on."""

    def judge(self, core: Any, actions: Any, masks: Any) -> Any:
        network, rows = self.network, len(core.core)
        noise = noise_for(network.heads, core.slots.shape[1], (rows,), core.core.device, None)
        other = super().judge(core, network.draw(core, masks, noise), masks)
        return super().judge(core, actions, masks)._replace(value=other.value)


@pytest.mark.parametrize("trained", [LONG], indirect=True, ids=["long"])
def test_a_value_of_another_draw_of_the_op_would_be_seen(trained: Trained) -> None:
    wrong = DrawsTwice(trained.policy.network, observation_normalizer=trained.policy.observation_normalizer)
    biases = bias_per_op(play(wrong, trained.episodes, seed=2))
    assert max(map(abs, biases.values())) > 3, biases
